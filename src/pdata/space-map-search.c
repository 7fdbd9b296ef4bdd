/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * space-map-search.c - finding blocks that can be handed out
 *
 * A block is available if it is free in the committed and in the current state, and is not to
 * be avoided.  The search goes round from a cursor, so that consecutive calls give consecutive
 * blocks and full bitmaps are not looked at again.
 *
 * Facts and hints.  Bitmaps are facts.  nr_allocated and an entry's nr_free and
 * none_free_before are hints that other programs get wrong at times; they decide where to
 * look first, never whether a block can be had.  When a search by hints fails, bitmaps whose
 * numbers are still hearsay are read and counted, once, after which their numbers are exact.
 *
 * Invariants: those of space-map-common.c.
 * Locks: the caller's meta_root; sm_ll_nr_free() and sm_ll_available() change nothing.
 */
#include "pdata/space-map-common.h"

#include <errno.h>

/*
 * How many bitmaps one failed search may read to check their numbers: 4 TiB of 64 KiB data
 * blocks.  The rest waits for the next failure, since all this happens under meta_root.
 */
#define VERIFY_BUDGET 4096u
#define VERIFY_AHEAD 32u

/* Does the entry say that no block below the end of the device is free? */
static bool entry_says_full(const struct sm_ll *ll, uint64_t i, const struct sm_index_entry *entry)
{
	unsigned past_end = ENTRIES_PER_BITMAP - entries_below(i, ll->now.nr_blocks);

	/* Others may or may not count what lies past the end: only our own number is sure. */
	return entry->nr_free <= (entry->exact ? past_end : 0);
}

/* Read-lock the bitmap, and the committed one where that is another block. */
static int read_both(struct sm_ll *ll, const struct sm_index_entry *entry,
		     struct locked_block **ret_now, struct locked_block **ret_committed)
{
	struct locked_block *now, *committed = NULL;
	int r;

	r = sm_ll_read_bitmap(ll, entry->bitmap, &now);
	if (r)
		return r;
	if (entry->committed_bitmap && entry->committed_bitmap != entry->bitmap) {
		r = sm_ll_read_bitmap(ll, entry->committed_bitmap, &committed);
		if (r) {
			tm_unlock(ll->tm, now);
			return r;
		}
	}
	*ret_now = now;
	*ret_committed = committed;
	return 0;
}

static void unlock_both(struct sm_ll *ll, struct locked_block *now, struct locked_block *committed)
{
	if (committed)
		tm_unlock(ll->tm, committed);
	tm_unlock(ll->tm, now);
}

/* ---- searching ---- */

/* First available entry of bitmap @i in [lo, hi). */
static int find_in_bitmap(struct sm_ll *ll, uint64_t i, const struct sm_index_entry *entry,
			  unsigned lo, unsigned hi, unsigned *ret_e)
{
	const uint64_t *avoid = ll->avoid ? sparse_bitmap_words(ll->avoid, i) : NULL;
	struct locked_block *now, *committed;
	uint64_t free_mask = 0;
	unsigned g;
	int r;

	r = read_both(ll, entry, &now, &committed);
	if (r)
		return r;
	for (g = lo / 64; g * 64 < hi; g++) {
		free_mask = bitmap_free_group(block_data(now), g) & group_span(g, lo, hi);
		if (free_mask && committed)
			free_mask &= bitmap_free_group(block_data(committed), g);
		if (free_mask && avoid)
			free_mask &= ~avoid[g];
		if (free_mask)
			break;
	}
	unlock_both(ll, now, committed);
	if (!free_mask)
		return -ENOSPC;
	*ret_e = g * 64 + (unsigned)__builtin_ctzll(free_mask);
	return 0;
}

/* First available block in [begin, end), going by the hints.  Changes nothing. */
static int find_by_hints(struct sm_ll *ll, uint64_t begin, uint64_t end, uint64_t *ret_b)
{
	struct sm_index_entry *entry;
	unsigned lo, hi, e;
	uint64_t i;
	int r;

	for (; begin < end; begin = (i + 1) * ENTRIES_PER_BITMAP) {
		i = begin / ENTRIES_PER_BITMAP;
		r = sm_ll_find_entry(ll, i, &entry);
		if (r)
			return r;
		lo = (unsigned)MAX(begin % ENTRIES_PER_BITMAP, entry->none_free_before);
		hi = entries_below(i, end);
		if (entry_says_full(ll, i, entry) || lo >= hi)
			continue;
		r = find_in_bitmap(ll, i, entry, lo, hi, &e);
		if (r == -ENOSPC)
			continue;
		if (!r)
			*ret_b = i * ENTRIES_PER_BITMAP + e;
		return r;
	}
	return -ENOSPC;
}

static int find_acceptable(struct sm_ll *ll, uint64_t begin, uint64_t end, uint64_t *ret_b)
{
	uint64_t b, next;
	int r;

	for (;;) {
		r = find_by_hints(ll, begin, end, &b);
		if (r)
			return r;
		next = ll->ops->skip ? ll->ops->skip(ll, b) : 0;
		if (!next) {
			*ret_b = b;
			return 0;
		}
		begin = next;
	}
}

static int find_wrapping(struct sm_ll *ll, uint64_t end, uint64_t *ret_b)
{
	uint64_t cursor = MIN(ll->cursor, end);
	int r;

	r = find_acceptable(ll, cursor, end, ret_b);
	if (r == -ENOSPC)
		r = find_acceptable(ll, 0, cursor, ret_b);
	return r;
}

static void prefetch_bitmaps(struct sm_ll *ll, uint64_t i, uint64_t end)
{
	struct sm_index_entry *entry;

	for (end = MIN(end, i + VERIFY_AHEAD); i < end; i++)
		if (!sm_ll_find_entry(ll, i, &entry))
			bm_prefetch(ll->bm, entry->bitmap, 1);
}

/* Count bitmaps whose numbers are hearsay.  *@ret_better: one has more to offer than it said. */
static int verify_hints(struct sm_ll *ll, bool *ret_better)
{
	uint64_t nr_bitmaps = bitmaps_for(ll->now.nr_blocks);
	unsigned nr_read = 0;
	bool better = false;
	int r;

	for (; ll->nr_exact < nr_bitmaps && nr_read < VERIFY_BUDGET; ll->nr_exact++) {
		struct sm_index_entry *entry;
		unsigned nr_free, before;

		r = sm_ll_find_entry(ll, ll->nr_exact, &entry);
		if (r)
			return r;
		if (entry->exact)
			continue;
		if (nr_read++ % VERIFY_AHEAD == 0)
			prefetch_bitmaps(ll, ll->nr_exact, nr_bitmaps);
		nr_free = entry->nr_free;
		before = entry->none_free_before;
		r = sm_ll_count_entry(ll, entry);
		if (r)
			return r;
		better |= entry->nr_free > nr_free || entry->none_free_before < before;
	}
	*ret_better = better;
	return 0;
}

/* Nothing is available and all numbers are exact: put right what the root said. */
static int correct_nr_allocated(struct sm_ll *ll)
{
	uint64_t nr_bitmaps = bitmaps_for(ll->now.nr_blocks);
	uint64_t nr_free = 0, unavailable = ll->nr_taken + (ll->avoid ? ll->avoid->nr_set : 0);
	struct sm_index_entry *entry;
	int r;

	for (uint64_t i = 0; i < nr_bitmaps; i++) {
		unsigned past_end = ENTRIES_PER_BITMAP - entries_below(i, ll->now.nr_blocks);

		r = sm_ll_find_entry(ll, i, &entry);
		if (r)
			return r;
		nr_free += entry->nr_free - MIN(entry->nr_free, past_end);
	}
	ll->now.nr_allocated = ll->now.nr_blocks - nr_free;
	ll->committed.nr_allocated =
		ll->committed.nr_blocks - MIN(unavailable, ll->committed.nr_blocks);
	return 0;
}

int sm_ll_find_new(struct sm_ll *ll, uint64_t end, uint64_t *ret_b)
{
	bool better;
	int r;

	if (ll->exhausted)
		return -ENOSPC;
	r = find_wrapping(ll, end, ret_b);
	if (r == -ENOSPC) {
		r = verify_hints(ll, &better);
		if (r)
			return r;
		r = better ? find_wrapping(ll, end, ret_b) : -ENOSPC;
	}
	if (!r) {
		ll->cursor = *ret_b + 1;
		return 0;
	}
	if (r != -ENOSPC)
		return r;
	ll->exhausted = true;
	if (ll->nr_exact == bitmaps_for(ll->now.nr_blocks)) {
		r = correct_nr_allocated(ll);
		if (r)
			return r;
	}
	return -ENOSPC;
}

int sm_ll_nr_free(struct sm_ll *ll, uint64_t *ret_count)
{
	const struct sm_ll_state *state = &ll->committed;
	uint64_t unavailable = state->nr_allocated + ll->nr_taken;
	uint64_t b;
	int r;

	if (ll->avoid)
		unavailable += ll->avoid->nr_set;
	if (ll->exhausted) {
		*ret_count = 0;
		return 0;
	}
	if (unavailable < state->nr_blocks) {
		*ret_count = state->nr_blocks - unavailable;
		return 0;
	}
	/* The root's number is a hint; who believes it would not even try to allocate. */
	r = find_by_hints(ll, 0, state->nr_blocks, &b);
	if (r && r != -ENOSPC)
		return r;
	*ret_count = r ? 0 : 1;
	return 0;
}

int sm_ll_available(struct sm_ll *ll, uint64_t i, uint64_t *ret_groups)
{
	const uint64_t *avoid = ll->avoid ? sparse_bitmap_words(ll->avoid, i) : NULL;
	unsigned limit = entries_below(i, ll->committed.nr_blocks);
	struct locked_block *now, *committed;
	struct sm_index_entry *entry;
	int r;

	r = sm_ll_find_entry(ll, i, &entry);
	if (r)
		return r;
	r = read_both(ll, entry, &now, &committed);
	if (r)
		return r;
	for (unsigned g = 0; g < BITMAP_GROUPS; g++) {
		uint64_t mask = g * 64 < limit ? group_span(g, 0, limit) : 0;

		if (mask)
			mask &= bitmap_free_group(block_data(now), g);
		if (committed)
			mask &= bitmap_free_group(block_data(committed), g);
		ret_groups[g] = avoid ? mask & ~avoid[g] : mask;
	}
	unlock_both(ll, now, committed);
	return 0;
}
