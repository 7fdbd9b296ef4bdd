/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pdata-fixture.h - metadata in memory: device, block manager, counts, transaction manager
 */
#ifndef TP_TESTS_PDATA_FIXTURE_H
#define TP_TESTS_PDATA_FIXTURE_H

#include "io/device.h"
#include "pdata/btree.h"
#include "pdata/transaction-manager.h"

struct pdata_fixture {
	struct io_device *dev; /* a fault device around a device in memory */
	struct block_manager *bm;
	struct space_map *sm; /* a fake */
	struct transaction_manager *tm;
	struct tp_lock meta_root;
	mblock_t nr_blocks;
};

/* These abort on failure: a test cannot go on without them. */
void pdata_fixture_init(struct pdata_fixture *f, mblock_t nr_blocks, uint64_t cache_bytes);
void pdata_fixture_destroy(struct pdata_fixture *f);

/* The block as it lies on the device. */
void *pdata_fixture_disk(struct pdata_fixture *f, mblock_t b);

/* Both phases but the superblock. */
void pdata_fixture_commit(struct pdata_fixture *f);

/* Empty the cache (uncommitted changes are lost with it). */
void pdata_fixture_reset(struct pdata_fixture *f);

/* Throw the transaction away: counts, cache and shadows are those of the last commit. */
void pdata_fixture_abort(struct pdata_fixture *f);

/*
 * Write the checksum and location that a block on the device ought to have, after its
 * content was changed there.
 */
void pdata_fixture_seal(struct pdata_fixture *f, mblock_t b, uint32_t csum_xor);

#endif
