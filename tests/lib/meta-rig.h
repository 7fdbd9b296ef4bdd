/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * meta-rig.h - both space maps on a metadata device in memory, without a superblock
 *
 * What a pool keeps in block 0 is kept in the rig: the roots of the last commit.  Failures
 * of set-up calls end the test (assertions of cmocka; main thread only).
 */
#ifndef TP_TESTS_META_RIG_H
#define TP_TESTS_META_RIG_H

#include "pdata/space-map-disk.h"
#include "pdata/space-map-metadata.h"
#include "pdata/transaction-manager.h"
#include "thinpoold/disk-format.h"

#define META_RIG_CACHE_BYTES (UINT64_C(16) << 20)

struct meta_rig {
	struct io_device *dev; /* a mem-device */
	struct block_manager *bm;
	struct transaction_manager *tm;
	struct space_map *metadata, *data;
	struct disk_sm_root metadata_root, data_root; /* as of the last commit */
	struct tp_lock root_lock;
};

/* Format and commit. */
void meta_rig_create(struct meta_rig *rig, mblock_t nr_metadata, dblock_t nr_data);
void meta_rig_destroy(struct meta_rig *rig);

/* Data map, metadata map, flush, new roots, new transaction. */
int meta_rig_commit(struct meta_rig *rig);

/* Drop the transaction: reset the cache in place, open the last commit. */
void meta_rig_abort(struct meta_rig *rig);

/* Drop everything in memory, then open the last commit with a cold cache. */
void meta_rig_reopen(struct meta_rig *rig);

/* The same in two steps, to change the device in between or to see open fail. */
void meta_rig_close(struct meta_rig *rig);
int meta_rig_open(struct meta_rig *rig);

/*
 * Right after a commit: walk both maps from their roots and compare the counts of all metadata
 * blocks with what refers to them; @extra (may be NULL) has the references of the caller, by
 * block.  Also: index numbers exact, nr_allocated right, nothing set past the end.
 */
void meta_rig_check(struct meta_rig *rig, const uint32_t *extra);

/* Rewrite the committed content of block @b on the device, with a right checksum. */
void meta_rig_damage(struct meta_rig *rig, mblock_t b, uint32_t csum_xor,
		     void (*fn)(void *data, void *ctx), void *ctx);

#endif
