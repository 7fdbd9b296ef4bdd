/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mapping-model.h - what a small pool's metadata and data should say, cheap enough for each abort
 *
 * A few devices of a few hundred blocks in plain arrays; a state is copied by assignment.  Each
 * mapping knows its data block, its time and which write put the content there: every write has a
 * number of its own, and leaves a stamp in the data block.
 */
#ifndef TP_TESTS_MAPPING_MODEL_H
#define TP_TESTS_MAPPING_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "thin/thin-metadata.h"

#define MODEL_DEVICES 9u
#define MODEL_VBLOCKS 320u /* more than a leaf holds */
#define MODEL_DBLOCKS 1400u
#define MODEL_BLOCK_SECTORS 128u
#define MODEL_BLOCK_BYTES (MODEL_BLOCK_SECTORS * 512u)

/* At the beginning of each data block. */
struct stamp {
	uint64_t write;          /* its number; 0: never written */
	uint32_t device, vblock; /* for whom it was written */
};

struct model_mapping {
	uint32_t dblock, time;
	uint64_t write; /* 0: not mapped */
};

struct model_device {
	bool exists;
	uint64_t mapped_blocks, transaction_id;
	uint32_t creation_time, snapshotted_time;
	struct model_mapping map[MODEL_VBLOCKS];
};

struct mapping_model {
	uint32_t time;
	uint64_t transaction_id;
	struct model_device devices[MODEL_DEVICES];
};

/* Devices have these ids. */
thin_id_t model_id(unsigned device);

void model_create(struct mapping_model *m, unsigned device);
void model_snap(struct mapping_model *m, unsigned device, unsigned origin);
void model_delete(struct mapping_model *m, unsigned device);
void model_map(struct mapping_model *m, unsigned device, unsigned v, dblock_t dblock,
	       uint64_t write);
void model_unmap(struct mapping_model *m, unsigned device, unsigned begin, unsigned end);

/*
 * Right after a commit or an abort, nothing being changed: does @tmd say the same, and is what it
 * leads to in @data (the content of the data device) what was written there?  Also: the counts of
 * both space maps on the metadata device, which must be a mem-device, are what the trees make them,
 * nothing is leaked.  If not, the first difference is told on stderr.
 */
bool model_holds(const struct mapping_model *m, struct thin_metadata *tmd, const uint8_t *data,
		 struct io_device *metadata);

#endif
