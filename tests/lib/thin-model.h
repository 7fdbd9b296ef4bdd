/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-model.h - what a pool's metadata should say, kept in plain arrays
 *
 * Devices and blocks are indices here; thin_model_id() and thin_model_key() spread them over the
 * real number ranges.  A state is copied by assignment, so that "as committed" and "as it is now"
 * are two variables.
 */
#ifndef TP_TESTS_THIN_MODEL_H
#define TP_TESTS_THIN_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "thin/thin-metadata.h"

#define MODEL_DEVICES 12u
#define MODEL_VBLOCKS 1536u

struct thin_model_mapping {
	dblock_t dblock;
	uint32_t time;
	bool mapped;
};

struct thin_model_device {
	bool exists;
	uint64_t mapped_blocks, transaction_id;
	uint32_t creation_time, snapshotted_time;
	struct thin_model_mapping map[MODEL_VBLOCKS];
};

struct thin_model {
	uint32_t time;
	uint64_t transaction_id;
	dblock_t nr_data_blocks; /* as of the last commit */
	struct thin_model_device devices[MODEL_DEVICES];
};

thin_id_t thin_model_id(unsigned device);
/* Rising with @v, contiguous within clusters of 512. */
vblock_t thin_model_key(unsigned v);

void thin_model_create(struct thin_model *m, unsigned device);
void thin_model_snap(struct thin_model *m, unsigned device, unsigned origin);
void thin_model_delete(struct thin_model *m, unsigned device);
void thin_model_map(struct thin_model *m, unsigned device, unsigned v, dblock_t dblock);
void thin_model_unmap(struct thin_model *m, unsigned device, unsigned begin, unsigned end);
void thin_model_swap(struct thin_model *m, unsigned device, unsigned a, unsigned b);

/* How many mappings name the block. */
unsigned thin_model_count(const struct thin_model *m, dblock_t dblock);
/* Mark each block that a mapping names; @used has @nr entries. */
void thin_model_mark_used(const struct thin_model *m, bool *used, dblock_t nr);

/*
 * Does the open transaction of @tmd say the same: devices, mappings, clock, transaction id?  If
 * not, tells the first difference on stderr.
 */
bool thin_model_matches(const struct thin_model *m, struct thin_metadata *tmd);

/* Is @run right for block @v of the device? */
bool thin_model_run_matches(const struct thin_model *m, unsigned device, unsigned v,
			    uint64_t max_blocks, const struct thin_run *run);

/* Does the XML of thin_dump, with these options, for the image at @path say the same? */
bool thin_model_matches_dump(const struct thin_model *m, const char *options, const char *path);

#endif
