/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * catalog-rig.h - a pool in memory: two devices, its metadata and its catalog
 *
 * All of these fail the test if something goes wrong.
 */
#ifndef TP_TESTS_CATALOG_RIG_H
#define TP_TESTS_CATALOG_RIG_H

#include "catalog/catalog.h"

#define KiB UINT64_C(1024)

/* Zeroed at first. */
struct rig {
	struct io_device *meta, *meta_mem, *data, *data_mem; /* fault devices around mem-devices */
	struct thin_metadata *tmd;
	struct catalog *c;
	uint64_t block_bytes;
};

/* A pool without a catalog; a pool with one. */
void rig_format(struct rig *rig, uint64_t block_bytes, uint64_t nr_blocks);
void rig_make(struct rig *rig, uint64_t block_bytes, uint64_t nr_blocks);
/* It has to be clean, unless it is dropped. */
void rig_end(struct rig *rig);
void rig_drop(struct rig *rig);

void rig_open_tmd(struct rig *rig);
void rig_shut(struct rig *rig);
void rig_open(struct rig *rig);
/* Uncommitted changes are lost. */
void rig_reopen(struct rig *rig);

void rig_commit(struct rig *rig);
void rig_abort(struct rig *rig);

/* Copies of the devices as they are now, closed; what a crash at this moment leaves, opened. */
void rig_clone(struct rig *rig, struct rig *image);
void rig_crash_image(struct rig *rig, struct rig *image);

/* Since the last call; the log of the data device has to be on. */
uint64_t data_bytes_written(struct rig *rig);

#endif
