/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * space-map-disk.c - counts of the data device's blocks
 *
 * The common map with its index in a B-tree (key: bitmap number), plus three sets that
 * live in memory only:
 *
 *   reserved   kept out of allocation, free in both states; "avoid" of the common part.
 *   held       of these, the blocks that the open transaction took and freed again: nobody
 *              gets them before the commit, so what it did can be done again in any part
 *              (pool/redo.h) without one block's new content showing in another place.
 *   freed      in two halves: of the open transaction, and of committed ones for which
 *              nobody has asked yet.  A block leaves both when it gets a user again, and
 *              it is left out when it is reserved: somebody may be writing to it.
 *              Bounded: what does not fit is forgotten, which loses a punch, not space.
 *
 * Invariants: 1. a reserved block is free in both states, unless the metadata is damaged and a
 *                mapping names a block that nobody counted.
 *             2. allocation goes up to the committed size only: an extension is there after
 *                the commit, when the caller has made it durable.
 * Locks: the caller's meta_root, exclusive for all but queries and sm_disk_next_free_run().
 */
#include "pdata/space-map-disk.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "pdata/space-map-common.h"
#include "util/cleanup.h"
#include "util/log.h"

#define LOG_MODULE "space-map"

/* 2 KiB each: 8 MiB remember 4 TiB of 64 KiB blocks. */
#define MAX_FREED_CHUNKS 4096u

#define INDEX_BATCH 64u /* entries fetched in one descent of the index tree */

struct sm_disk {
	struct space_map sm;
	struct sm_ll ll;
	struct sparse_bitmap reserved, held;
	struct sparse_bitmap freed;           /* by the open transaction */
	struct sparse_bitmap freed_committed; /* by earlier ones, not taken yet */
};

static struct sm_disk *to_disk(struct space_map *sm)
{
	return container_of(sm, struct sm_disk, sm);
}

/* ---- index ---- */

static int create_index(struct sm_ll *ll, mblock_t *ret_root)
{
	return btree_empty(&ll->index_info, ret_root);
}

/* The tree of the last commit: now.bitmap_root changes in write_index() only. */
static int load_index(struct sm_ll *ll, uint64_t first, uint64_t end,
		      struct sm_index_entry *entries)
{
	uint64_t keys[INDEX_BATCH];
	struct disk_index_entry values[INDEX_BATCH];
	struct btree_run run;
	mblock_t missing;
	int r;

	for (uint64_t i = first; i < end; i = run.next_key) {
		r = btree_lookup_run(&ll->index_info, ll->now.bitmap_root, i, end, true,
				     INDEX_BATCH, keys, values, &run, &missing);
		if (r)
			return r;
		for (unsigned k = 0; k < run.nr; k++)
			sm_index_entry_from_disk(&entries[keys[k] - first], &values[k]);
		if (run.next_key <= i)
			return -EUCLEAN;
	}
	return 0;
}

static int write_index(struct sm_ll *ll)
{
	struct sm_index_chunk *chunk;
	struct disk_index_entry value;
	uint64_t c, i;
	int r;

	for (c = 0; (chunk = sm_ll_next_dirty_chunk(ll, &c)); c++) {
		for (unsigned k = 0; k < INDEX_CHUNK_ENTRIES; k++) {
			if (!chunk->entries[k].dirty)
				continue;
			i = c * INDEX_CHUNK_ENTRIES + k;
			sm_index_entry_to_disk(&chunk->entries[k], &value);
			r = btree_insert(&ll->index_info, ll->now.bitmap_root, &i, &value,
					 &ll->now.bitmap_root, NULL);
			if (r)
				return r;
		}
	}
	return 0;
}

/* ---- freed blocks ---- */

typedef void (*run_fn)(struct sm_disk *smd, uint64_t begin, uint64_t end);

static void for_each_run(struct sm_disk *smd, uint64_t base, uint32_t mask, run_fn fn)
{
	while (mask) {
		unsigned from = (unsigned)__builtin_ctz(mask);
		uint32_t rest = ~(mask >> from);
		unsigned nr = rest ? (unsigned)__builtin_ctz(rest) : 32;

		fn(smd, base + from, base + from + nr);
		if (from + nr == 32)
			break;
		mask &= UINT32_MAX << (from + nr);
	}
}

static void run_used(struct sm_disk *smd, uint64_t begin, uint64_t end)
{
	sparse_bitmap_clear_range(&smd->freed, begin, end);
	sparse_bitmap_clear_range(&smd->freed_committed, begin, end);
	if (smd->held.nr_set) { /* a count that fell to 0 and rose again */
		sparse_bitmap_clear_range(&smd->held, begin, end);
		sparse_bitmap_clear_range(&smd->reserved, begin, end);
	}
}

static void run_freed(struct sm_disk *smd, uint64_t begin, uint64_t end)
{
	(void)!sparse_bitmap_set_range(&smd->freed, begin, end); /* see head */
}

/* Without memory the block can be had at once: a redo then finds it taken, and gives up. */
static void run_held(struct sm_disk *smd, uint64_t begin, uint64_t end)
{
	if (!sparse_bitmap_set_range(&smd->held, begin, end))
		(void)!sparse_bitmap_set_range(&smd->reserved, begin, end);
}

static void moved(struct sm_ll *ll, uint64_t base, uint32_t mask, uint32_t fresh,
		  enum sm_change how)
{
	struct sm_disk *smd = container_of(ll, struct sm_disk, ll);

	for_each_run(smd, base, mask, how == SM_INC ? run_used : run_freed);
	if (how == SM_DEC)
		for_each_run(smd, base, fresh, run_held);
}

static void release_held(void *ctx, uint64_t begin, uint64_t end)
{
	sparse_bitmap_clear_range(ctx, begin, end);
}

/* Without memory they wait for the next commit. */
static void release_all_held(struct sm_disk *smd)
{
	if (!sparse_bitmap_for_each_run(&smd->held, release_held, &smd->reserved))
		sparse_bitmap_clear(&smd->held);
}

static void add_freed(void *ctx, uint64_t begin, uint64_t end)
{
	(void)!sparse_bitmap_set_range(ctx, begin, end); /* see head */
}

static const struct sm_ll_ops ll_ops = {
	.name = "data",
	.max_blocks = DATA_BLOCK_LIMIT,
	.create_index = create_index,
	.load_index = load_index,
	.write_index = write_index,
	.moved = moved,
};

/* ---- the common operations ---- */

static void disk_destroy(struct space_map *sm)
{
	struct sm_disk *smd = to_disk(sm);

	sm_ll_exit(&smd->ll);
	sparse_bitmap_clear(&smd->reserved);
	sparse_bitmap_clear(&smd->held);
	sparse_bitmap_clear(&smd->freed);
	sparse_bitmap_clear(&smd->freed_committed);
	free(smd);
}

static int disk_extend(struct space_map *sm, uint64_t extra_blocks)
{
	return sm_ll_extend(&to_disk(sm)->ll, extra_blocks);
}

static int disk_get_nr_blocks(struct space_map *sm, uint64_t *ret_count)
{
	*ret_count = to_disk(sm)->ll.committed.nr_blocks;
	return 0;
}

static int disk_get_nr_free(struct space_map *sm, uint64_t *ret_count)
{
	return sm_ll_nr_free(&to_disk(sm)->ll, ret_count);
}

static int disk_get_count(struct space_map *sm, uint64_t b, uint32_t *ret_count)
{
	return sm_ll_get_count(&to_disk(sm)->ll, b, ret_count);
}

static int disk_count_is_more_than_one(struct space_map *sm, uint64_t b, bool *ret_more)
{
	unsigned bits;
	int r = sm_ll_get_bits(&to_disk(sm)->ll, b, &bits);

	if (!r)
		*ret_more = bits > 1;
	return r;
}

static int disk_inc_blocks(struct space_map *sm, uint64_t begin, uint64_t end)
{
	return sm_ll_change(&to_disk(sm)->ll, begin, end, SM_INC);
}

static int disk_dec_blocks(struct space_map *sm, uint64_t begin, uint64_t end)
{
	return sm_ll_change(&to_disk(sm)->ll, begin, end, SM_DEC);
}

static int disk_new_block(struct space_map *sm, uint64_t *ret_b)
{
	struct sm_disk *smd = to_disk(sm);
	uint64_t b;
	int r;

	r = sm_ll_find_new(&smd->ll, smd->ll.committed.nr_blocks, &b);
	if (r)
		return r;
	r = sm_ll_change(&smd->ll, b, b + 1, SM_INC);
	if (!r)
		*ret_b = b;
	return r;
}

static int disk_commit(struct space_map *sm)
{
	struct sm_disk *smd = to_disk(sm);
	int r;

	r = sm_ll_commit(&smd->ll);
	if (r)
		return r;
	if (smd->held.nr_set)
		release_all_held(smd);
	if (!smd->freed_committed.nr_set) {
		/* The usual case: everything freed before was taken. */
		sparse_bitmap_clear(&smd->freed_committed);
		smd->freed_committed = smd->freed;
		smd->freed = (struct sparse_bitmap){ .max_chunks = MAX_FREED_CHUNKS };
		return 0;
	}
	(void)!sparse_bitmap_for_each_run(&smd->freed, add_freed, &smd->freed_committed);
	sparse_bitmap_clear(&smd->freed);
	return 0;
}

static void disk_copy_root(struct space_map *sm, struct disk_sm_root *ret_root)
{
	sm_ll_copy_root(&to_disk(sm)->ll, ret_root);
}

static const struct space_map_ops disk_ops = {
	.destroy = disk_destroy,
	.extend = disk_extend,
	.get_nr_blocks = disk_get_nr_blocks,
	.get_nr_free = disk_get_nr_free,
	.get_count = disk_get_count,
	.count_is_more_than_one = disk_count_is_more_than_one,
	.inc_blocks = disk_inc_blocks,
	.dec_blocks = disk_dec_blocks,
	.new_block = disk_new_block,
	.commit = disk_commit,
	.copy_root = disk_copy_root,
};

/* ---- life ---- */

static void disk_freep(struct sm_disk **smdp)
{
	if (*smdp)
		disk_destroy(&(*smdp)->sm);
}

static struct sm_disk *disk_alloc(struct transaction_manager *tm)
{
	struct sm_disk *smd = calloc(1, sizeof(*smd));

	if (!smd)
		return NULL;
	smd->sm.ops = &disk_ops;
	sm_ll_init(&smd->ll, tm, &ll_ops);
	smd->ll.avoid = &smd->reserved;
	smd->freed.max_chunks = smd->freed_committed.max_chunks = MAX_FREED_CHUNKS;
	return smd;
}

int sm_disk_create(struct transaction_manager *tm, dblock_t nr_blocks, struct space_map **ret_sm)
{
	TP_CLEANUP(disk_freep) struct sm_disk *smd = disk_alloc(tm);
	int r;

	if (!smd)
		return -ENOMEM;
	r = sm_ll_create(&smd->ll);
	if (r)
		return r;
	r = sm_ll_extend(&smd->ll, nr_blocks);
	if (r)
		return r;
	r = sm_ll_commit(&smd->ll);
	if (r)
		return r;
	*ret_sm = &smd->sm;
	smd = NULL;
	return 0;
}

int sm_disk_open(struct transaction_manager *tm, const struct disk_sm_root *root,
		 struct space_map **ret_sm)
{
	TP_CLEANUP(disk_freep) struct sm_disk *smd = disk_alloc(tm);
	int r;

	if (!smd)
		return -ENOMEM;
	r = sm_ll_open(&smd->ll, root);
	if (r)
		return r;
	*ret_sm = &smd->sm;
	smd = NULL;
	return 0;
}

/* ---- reservations ---- */

int sm_disk_reserve_block(struct space_map *sm, dblock_t *ret_b)
{
	struct sm_disk *smd = to_disk(sm);
	dblock_t b;
	int r;

	r = sm_ll_find_new(&smd->ll, smd->ll.committed.nr_blocks, &b);
	if (r)
		return r;
	r = sparse_bitmap_set_range(&smd->reserved, b, b + 1);
	if (!r)
		*ret_b = b;
	return r;
}

/* Are entries [lo, hi) all set? */
static bool groups_all_set(const uint64_t *groups, unsigned lo, unsigned hi)
{
	for (unsigned g = lo / 64; g * 64 < hi; g++)
		if (group_span(g, lo, hi) & ~groups[g])
			return false;
	return true;
}

static int check_available(struct sm_disk *smd, dblock_t begin, dblock_t end)
{
	uint64_t groups[BITMAP_GROUPS];
	int r;

	while (begin < end) {
		uint64_t i = begin / ENTRIES_PER_BITMAP;
		unsigned lo = (unsigned)(begin % ENTRIES_PER_BITMAP);
		unsigned hi = (unsigned)MIN(ENTRIES_PER_BITMAP, lo + (end - begin));

		r = sm_ll_available(&smd->ll, i, groups);
		if (r)
			return r;
		if (!groups_all_set(groups, lo, hi))
			return -EINVAL;
		begin += hi - lo;
	}
	return 0;
}

int sm_disk_reserve_range(struct space_map *sm, dblock_t begin, dblock_t end)
{
	struct sm_disk *smd = to_disk(sm);
	int r;

	if (begin > end || end > smd->ll.committed.nr_blocks)
		return -EINVAL;
	r = check_available(smd, begin, end);
	if (r)
		return r;
	r = sparse_bitmap_set_range(&smd->reserved, begin, end);
	if (r)
		sparse_bitmap_clear_range(&smd->reserved, begin, end);
	return r;
}

void sm_disk_unreserve_range(struct space_map *sm, dblock_t begin, dblock_t end)
{
	struct sm_disk *smd = to_disk(sm);

	sparse_bitmap_clear_range(&smd->reserved, begin, end);
	smd->ll.exhausted = false;
}

int sm_disk_use_reserved(struct space_map *sm, dblock_t b)
{
	struct sm_disk *smd = to_disk(sm);

	if (!sparse_bitmap_test(&smd->reserved, b))
		return -EINVAL;
	sparse_bitmap_clear_range(&smd->reserved, b, b + 1);
	return sm_ll_change(&smd->ll, b, b + 1, SM_INC);
}

/* ---- what was freed, what is free ---- */

static void leave_out(void *ctx, uint64_t begin, uint64_t end)
{
	sparse_bitmap_clear_range(ctx, begin, end);
}

void sm_disk_take_freed(struct space_map *sm, void (*fn)(void *ctx, dblock_t begin, dblock_t end),
			void *ctx)
{
	struct sm_disk *smd = to_disk(sm);
	struct sparse_bitmap freed = smd->freed_committed; /* @fn may reserve what it is told */
	int r;

	smd->freed_committed = (struct sparse_bitmap){ .max_chunks = MAX_FREED_CHUNKS };
	r = sparse_bitmap_for_each_run(&smd->reserved, leave_out, &freed);
	if (!r)
		r = sparse_bitmap_for_each_run(&freed, fn, ctx);
	if (r)
		log_debug("no memory to tell which blocks were freed: they are not punched");
	sparse_bitmap_clear(&freed);
}

/* First entry >= @from that is set (or clear); ENTRIES_PER_BITMAP: none. */
static unsigned groups_find(const uint64_t *groups, unsigned from, bool set)
{
	for (unsigned g = from / 64; g < BITMAP_GROUPS; g++) {
		uint64_t word =
			(set ? groups[g] : ~groups[g]) & group_span(g, from, ENTRIES_PER_BITMAP);

		if (word)
			return g * 64 + (unsigned)__builtin_ctzll(word);
	}
	return ENTRIES_PER_BITMAP;
}

/* First block in [from, end) that is available (or not); @end: none. */
static int find_available(struct sm_disk *smd, dblock_t from, dblock_t end, bool available,
			  dblock_t *ret_b)
{
	uint64_t groups[BITMAP_GROUPS];
	int r;

	while (from < end) {
		uint64_t i = from / ENTRIES_PER_BITMAP;
		unsigned e;

		r = sm_ll_available(&smd->ll, i, groups);
		if (r)
			return r;
		e = groups_find(groups, (unsigned)(from % ENTRIES_PER_BITMAP), available);
		from = i * ENTRIES_PER_BITMAP + e;
		if (e < ENTRIES_PER_BITMAP)
			break;
	}
	*ret_b = MIN(from, end);
	return 0;
}

int sm_disk_next_free_run(struct space_map *sm, dblock_t from, uint64_t max_blocks,
			  dblock_t *ret_begin, dblock_t *ret_end)
{
	struct sm_disk *smd = to_disk(sm);
	dblock_t nr_blocks = smd->ll.committed.nr_blocks, begin, end;
	int r;

	if (from >= nr_blocks)
		return -ENODATA;
	r = find_available(smd, from, nr_blocks, true, &begin);
	if (r)
		return r;
	if (begin == nr_blocks)
		return -ENODATA;
	/* No further than asked: whoever goes through all free blocks in slices asks often. */
	r = find_available(smd, begin, begin + MIN(max_blocks, nr_blocks - begin), false, &end);
	if (r)
		return r;
	*ret_begin = begin;
	*ret_end = end;
	return 0;
}
