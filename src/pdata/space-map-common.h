/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * space-map-common.h - bitmaps, overflow tree and index: what both space maps are made of
 *
 * Layer:    pdata, private to the space maps.
 * Threads:  sm_ll_get_count(), _get_bits() and _nr_free() under meta_root shared, the
 *           rest under meta_root exclusive.
 * Units:    blocks of the device counted; "bitmap i" counts blocks from 16320 i on.
 * Errors:   those of space-map.h, and -EUCLEAN for an index or a tree that breaks the format
 *           (logged here).
 */
#ifndef TP_PDATA_SPACE_MAP_COMMON_H
#define TP_PDATA_SPACE_MAP_COMMON_H

#include <stdbool.h>
#include <stdint.h>

#include "pdata/btree.h"
#include "pdata/space-map-bitmap.h"
#include "pdata/space-map-index.h"
#include "pdata/space-map.h"
#include "pdata/sparse-bitmap.h"
#include "pdata/transaction-manager.h"
#include "util/lock-class.h"

struct sm_ll;

enum sm_change { SM_INC, SM_DEC };

/* Where the two kinds of map differ. */
struct sm_ll_ops {
	const char *name;    /* of what is counted, for messages: "data", "metadata" */
	uint64_t max_blocks; /* the map cannot describe more */

	/* An empty index on disk; *@ret_root is what the root struct calls bitmap_root. */
	int (*create_index)(struct sm_ll *ll, mblock_t *ret_root);
	/* Entries of bitmaps [first, end) as committed, into @entries. */
	int (*load_index)(struct sm_ll *ll, uint64_t first, uint64_t end,
			  struct sm_index_entry *entries);
	/* Write dirty entries; sets ll->now.bitmap_root. */
	int (*write_index)(struct sm_ll *ll);

	/* @b is free, but may it be handed out?  0, or the next block to try.  May be NULL. */
	uint64_t (*skip)(struct sm_ll *ll, uint64_t b);
	/*
	 * Blocks @base + k for each bit k of @mask got their first, or lost their last, user;
	 * those of @fresh, a part of them, are free in the committed state.  May be NULL.
	 */
	void (*moved)(struct sm_ll *ll, uint64_t base, uint32_t mask, uint32_t fresh,
		      enum sm_change how);
};

struct sm_ll_state {
	uint64_t nr_blocks;
	uint64_t nr_allocated; /* a hint */
	mblock_t bitmap_root;
	mblock_t ref_count_root;
};

/* Which entries of one bitmap a change concerned, by word, in even form. */
struct sm_ll_scratch {
	uint64_t moved[BITMAP_WORDS]; /* between 0 and not 0 */
	uint64_t fresh[BITMAP_WORDS]; /* of these, those that the committed state has free */
	uint64_t third[BITMAP_WORDS]; /* got their third user; or back to two */
	uint64_t many[BITMAP_WORDS];  /* had three or more */
};

struct sm_ll {
	struct transaction_manager *tm; /* borrowed */
	struct block_manager *bm;       /* the tm's */
	const struct sm_ll_ops *ops;
	struct btree_info ref_count_info;
	struct btree_info index_info; /* data map only */

	struct sm_ll_state now;
	struct sm_ll_state committed; /* "old" in L2 */
	struct sm_index index;

	/* Not to be handed out, all of them free; or NULL.  The owner calls sm_ll_set_changed(). */
	const struct sparse_bitmap *avoid;

	uint64_t cursor;   /* where the next search begins */
	uint64_t nr_taken; /* free in the committed state, in use now */
	bool exhausted;    /* the last search found nothing and nothing came back since */
	uint64_t nr_exact; /* bitmaps [0, nr_exact) have exact entries */
	struct sm_ll_scratch scratch;
};

/* Neither creates nor opens anything.  @tm may not be used again after sm_ll_exit(). */
void sm_ll_init(struct sm_ll *ll, struct transaction_manager *tm, const struct sm_ll_ops *ops);
void sm_ll_exit(struct sm_ll *ll);

/* Empty index, then empty overflow tree; no blocks yet. */
int sm_ll_create(struct sm_ll *ll) TP_TAKES(bufio) TP_MUST_CHECK;
int sm_ll_open(struct sm_ll *ll, const struct disk_sm_root *root) TP_MUST_CHECK;
int sm_ll_extend(struct sm_ll *ll, uint64_t extra_blocks) TP_TAKES(bufio) TP_MUST_CHECK;

/* -EINVAL (logged) unless begin <= end <= nr_blocks. */
int sm_ll_check_range(const struct sm_ll *ll, uint64_t begin, uint64_t end) TP_MUST_CHECK;

/* What the bitmap says: 0, 1, 2, or 3 for more. */
int sm_ll_get_bits(struct sm_ll *ll, uint64_t b, unsigned *ret_bits) TP_TAKES(bufio) TP_MUST_CHECK;
int sm_ll_get_count(struct sm_ll *ll, uint64_t b, uint32_t *ret_count)
	TP_TAKES(bufio) TP_MUST_CHECK;

int sm_ll_change(struct sm_ll *ll, uint64_t begin, uint64_t end, enum sm_change how)
	TP_TAKES(bufio) TP_MUST_CHECK;

/* Search from the cursor on, wrapping at @end, and move the cursor behind what was found. */
int sm_ll_find_new(struct sm_ll *ll, uint64_t end, uint64_t *ret_b) TP_TAKES(bufio) TP_MUST_CHECK;

/* Blocks that sm_ll_find_new() could hand out now. */
int sm_ll_nr_free(struct sm_ll *ll, uint64_t *ret_count) TP_TAKES(bufio) TP_MUST_CHECK;

/* One bit a block of bitmap @i: could it be handed out?  @ret_groups has BITMAP_GROUPS words. */
int sm_ll_available(struct sm_ll *ll, uint64_t i, uint64_t *ret_groups)
	TP_TAKES(bufio) TP_MUST_CHECK;

int sm_ll_commit(struct sm_ll *ll) TP_MUST_CHECK;
void sm_ll_copy_root(const struct sm_ll *ll, struct disk_sm_root *ret_root);

/* An sm_index_load_fn. */
int sm_ll_load_chunk(void *ctx, uint64_t first, struct sm_index_entry *entries) TP_MUST_CHECK;

/* For write_index(): the first chunk from *@c on that is dirty, or NULL. */
struct sm_index_chunk *sm_ll_next_dirty_chunk(struct sm_ll *ll, uint64_t *c);

/* ---- between space-map-common.c and space-map-search.c ---- */

static inline uint64_t bitmaps_for(uint64_t nr_blocks)
{
	return DIV_ROUND_UP(nr_blocks, (uint64_t)ENTRIES_PER_BITMAP);
}

/* Entries of bitmap @i below block @nr_blocks. */
static inline unsigned entries_below(uint64_t i, uint64_t nr_blocks)
{
	uint64_t base = i * ENTRIES_PER_BITMAP;

	return nr_blocks <= base ? 0 : (unsigned)MIN(ENTRIES_PER_BITMAP, nr_blocks - base);
}

int sm_ll_find_entry(struct sm_ll *ll, uint64_t i, struct sm_index_entry **ret_entry) TP_MUST_CHECK;
/* Make the entry's numbers exact. */
int sm_ll_count_entry(struct sm_ll *ll, struct sm_index_entry *entry) TP_TAKES(bufio) TP_MUST_CHECK;
int sm_ll_read_bitmap(struct sm_ll *ll, mblock_t bitmap, struct locked_block **ret_lb)
	TP_TAKES(bufio) TP_MUST_CHECK;

extern const struct block_validator bitmap_validator;

#endif
