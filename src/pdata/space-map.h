/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * space-map.h - a reference count for every block of a device
 *
 * Two implementations share the bitmaps and the overflow tree of
 * space-map-common.c: space-map-disk.c counts data blocks, space-map-metadata.c
 * counts the metadata blocks, among them its own.
 *
 * Layer:    pdata.
 * Threads:  the caller holds meta_root: shared for queries, exclusively for changes.
 * Units:    blocks of the device counted.
 * Errors:   0 or a negative errno; after an error of a change the only legal
 *           calls are destroy (the transaction must be aborted).
 *             -ENOSPC   nothing free in both the committed and the current state
 *             -EINVAL   block past the end, or a count below zero or above 32 bits
 *
 * L2: a block in use in the committed state is not handed out before the next
 * commit, even if its count has dropped to 0 meanwhile.
 */
#ifndef TP_PDATA_SPACE_MAP_H
#define TP_PDATA_SPACE_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "thinpoold/disk-format.h"
#include "util/compiler.h"

struct space_map;

struct space_map_ops {
	void (*destroy)(struct space_map *sm);
	int (*extend)(struct space_map *sm, uint64_t extra_blocks);
	int (*get_nr_blocks)(struct space_map *sm, uint64_t *ret_count);
	int (*get_nr_free)(struct space_map *sm, uint64_t *ret_count);
	int (*get_count)(struct space_map *sm, uint64_t b, uint32_t *ret_count);
	int (*count_is_more_than_one)(struct space_map *sm, uint64_t b, bool *ret_more);
	int (*inc_blocks)(struct space_map *sm, uint64_t begin, uint64_t end);
	int (*dec_blocks)(struct space_map *sm, uint64_t begin, uint64_t end);
	int (*new_block)(struct space_map *sm, uint64_t *ret_b);
	int (*commit)(struct space_map *sm);
	void (*copy_root)(struct space_map *sm, struct disk_sm_root *ret_root);
};

struct space_map {
	const struct space_map_ops *ops;
};

/* NULL is allowed.  Returns NULL. */
static inline struct space_map *sm_destroy(struct space_map *sm)
{
	if (sm)
		sm->ops->destroy(sm);
	return NULL;
}

static inline TP_MUST_CHECK int sm_extend(struct space_map *sm, uint64_t extra_blocks)
{
	return sm->ops->extend(sm, extra_blocks);
}

/* As of the last commit: an extension counts from the next one on. */
static inline TP_MUST_CHECK int sm_get_nr_blocks(struct space_map *sm, uint64_t *ret_count)
{
	return sm->ops->get_nr_blocks(sm, ret_count);
}

/*
 * Blocks free in the committed state, less what this transaction allocated.  Blocks freed
 * by this transaction do not count: they cannot be had before the commit.
 */
static inline TP_MUST_CHECK int sm_get_nr_free(struct space_map *sm, uint64_t *ret_count)
{
	return sm->ops->get_nr_free(sm, ret_count);
}

static inline TP_MUST_CHECK int sm_get_count(struct space_map *sm, uint64_t b, uint32_t *ret_count)
{
	return sm->ops->get_count(sm, b, ret_count);
}

/* May answer yes when unsure (semantics of the transaction manager's shadow). */
static inline TP_MUST_CHECK int sm_count_is_more_than_one(struct space_map *sm, uint64_t b,
							  bool *ret_more)
{
	return sm->ops->count_is_more_than_one(sm, b, ret_more);
}

static inline TP_MUST_CHECK int sm_inc_blocks(struct space_map *sm, uint64_t begin, uint64_t end)
{
	return sm->ops->inc_blocks(sm, begin, end);
}

static inline TP_MUST_CHECK int sm_dec_blocks(struct space_map *sm, uint64_t begin, uint64_t end)
{
	return sm->ops->dec_blocks(sm, begin, end);
}

static inline TP_MUST_CHECK int sm_inc_block(struct space_map *sm, uint64_t b)
{
	return sm->ops->inc_blocks(sm, b, b + 1);
}

static inline TP_MUST_CHECK int sm_dec_block(struct space_map *sm, uint64_t b)
{
	return sm->ops->dec_blocks(sm, b, b + 1);
}

/* Finds a block free in both states, sets its count to 1. */
static inline TP_MUST_CHECK int sm_new_block(struct space_map *sm, uint64_t *ret_b)
{
	return sm->ops->new_block(sm, ret_b);
}

/*
 * Write what is cached into the map's own blocks, so that copy_root() is true.  The
 * new state becomes the "old" state of L2: the caller makes it durable or aborts.
 */
static inline TP_MUST_CHECK int sm_commit(struct space_map *sm)
{
	return sm->ops->commit(sm);
}

static inline void sm_copy_root(struct space_map *sm, struct disk_sm_root *ret_root)
{
	sm->ops->copy_root(sm, ret_root);
}

#endif
