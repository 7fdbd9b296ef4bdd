/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * crash-model.h - what was written, acknowledged and flushed when, and what may be left of it
 *
 * Every write has a number of its own, which stands in each sector that it wrote.  A moment is
 * one of the clock of the write log, so what the model knows can be compared with what a power
 * cut leaves: at each moment a sector holds the last write that was durable then, or one that
 * was begun later.  Names are a series of states, one for each command.
 *
 * Threads:  one.
 * Units:    sectors of 512 bytes; sizes of volumes in bytes.
 */
#ifndef TP_TESTS_CRASH_MODEL_H
#define TP_TESTS_CRASH_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "pool/pool.h"

#define MODEL_SECTOR 512u
#define MODEL_MAX_SECTORS 1536u /* of a volume */
#define MODEL_NAMES 6u
#define MODEL_MAX_VOLUMES 256u /* in a life, with those deleted */

/* ---- sectors ---- */

/* Content of sector @sector as write number @id left it; id 0: zeros. */
void stamp_fill(uint8_t *to, uint64_t id, uint64_t sector);
/* Who wrote this?  False: nobody, or for another sector. */
bool stamp_read(const uint8_t *from, uint64_t sector, uint64_t *ret_id);

/* ---- volumes ---- */

struct model_op {
	uint64_t id, began, ended; /* ended 0: not acknowledged, or with an error */
	bool durable;              /* on its own, when it is acknowledged */
	bool zeros;
	unsigned begin, end; /* sectors */
	uint64_t size_bytes; /* of the volume from then on; SIZE_SAME: unchanged */
};
#define SIZE_SAME UINT64_MAX

struct model_flush {
	uint64_t began, ended;
};

struct model_volume {
	uint64_t base[MODEL_MAX_SECTORS]; /* ids, when the life or the volume began */
	uint64_t base_size;
	/*
	 * From this sector on there may be more than the base says: a write beyond the end of the
	 * volume, of which a power cut left the data but not the size.  It shows when the volume
	 * grows, and is new rather than old.
	 */
	unsigned hidden_from;
	bool base_unknown; /* a snapshot whose taking was answered with an error */
	struct model_op *ops;
	size_t nr_ops, ops_room;
	struct model_flush *flushes;
	size_t nr_flushes, flushes_room;
	/*
	 * A flush that failed told of the loss of the first nr_told operations, as far as they were
	 * not durable before: later ones say nothing of them.  The last such flush.
	 */
	size_t nr_told;
	uint64_t told_moment;

	/* The worker's own (crash-work.c). */
	struct volume *handle; /* NULL: not open */
	bool read_only;
	uint64_t size_bytes; /* as far as is known */
};

struct model_names {
	int volumes[MODEL_NAMES]; /* index of a volume, -1: no such name */
	uint64_t began, ended;    /* ended 0: not acknowledged, or with an error */
};

struct model {
	uint64_t last_id; /* goes on over all lives */
	struct model_volume *volumes[MODEL_MAX_VOLUMES];
	unsigned nr_volumes;
	struct model_names *names;
	size_t nr_names, names_room;
	struct model_flush *flushes; /* of the whole pool */
	size_t nr_flushes, flushes_room;
};

/* Volumes and names are forgotten, numbers go on. */
void model_clear(struct model *m);

struct model_volume *model_add_volume(struct model *m, uint64_t size_bytes);
/* The op's index; the caller sets ended when it is acknowledged. */
size_t model_add_op(struct model *m, struct model_volume *v, const struct model_op *op);
void model_add_flush(struct model_volume *v, uint64_t began, uint64_t ended);
void model_add_failed_flush(struct model_volume *v, uint64_t ended);
void model_add_pool_flush(struct model *m, uint64_t began, uint64_t ended);
/* The next state of the names, a copy of the last, begun now. */
struct model_names *model_add_names(struct model *m, uint64_t began);
/* It never was: the command was refused. */
void model_drop_names(struct model *m);
struct model_names *model_last_names(struct model *m);
const char *model_name(unsigned i);
/* All of it, one line each, beginning with the moment. */
void model_tell(const struct model *m, FILE *out);

/* ---- judgement ---- */

struct model_found {
	bool exists[MODEL_NAMES];
	uint64_t size_bytes[MODEL_NAMES];
	const uint8_t *content[MODEL_NAMES]; /* size_bytes of it */
};

/* May a power cut at @moment have left this?  If not: why, in at least 256 bytes of @why. */
bool model_allows(const struct model *m, uint64_t moment, const struct model_found *found,
		  char *why, size_t why_bytes);

#endif
