/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * space-map-common.c - bitmaps, overflow tree and index: what both space maps are made of
 *
 * Two descriptors of the same device are kept: the committed one and the one being
 * changed.  Bitmaps are copied on write, so the committed bitmaps can be read until
 * the next commit, and a block is handed out only if it is free in both (L2).
 *
 * A change works on one bitmap at a time: copy it, change whole words, and note which
 * entries moved between free and used and which need the tree; unlock it; then do the
 * accounting and the tree.  No bitmap is locked while the tree is changed, because
 * changing the tree may ask for counts.
 *
 * nr_allocated and the numbers in the index are hints, see space-map-search.c.
 *
 * Invariants
 *  1. now.nr_blocks >= committed.nr_blocks; the index has an entry for every bitmap.
 *  2. an entry whose bitmap or numbers changed since the last commit is dirty, and so is its chunk.
 *  3. nr_taken counts the blocks below committed.nr_blocks that are free in the committed state
 *     and used now.  avoid holds only blocks free in both.
 *  4. exhausted implies that no block is available.
 *  5. an exact entry's numbers are those of its bitmap.
 *
 * Locks: the caller's meta_root.  Queries change nothing but load index chunks, see
 * space-map-index.h.
 */
#include "pdata/space-map-common.h"

#include <errno.h>
#include <inttypes.h>

#include "util/log.h"

#define LOG_MODULE "space-map"

static int bitmap_check(const void *data, mblock_t block, mblock_t nr_blocks)
{
	(void)data;
	(void)block;
	(void)nr_blocks;
	return 0; /* every bit pattern is a count */
}

const struct block_validator bitmap_validator = {
	.name = "space map bitmap",
	.csum_xor = BITMAP_CSUM_XOR,
	.check = bitmap_check,
};

/* ---- index ---- */

int sm_ll_load_chunk(void *ctx, uint64_t first, struct sm_index_entry *entries)
{
	struct sm_ll *ll = ctx;
	uint64_t end = MIN(first + INDEX_CHUNK_ENTRIES, bitmaps_for(ll->committed.nr_blocks));

	return first < end ? ll->ops->load_index(ll, first, end, entries) : 0;
}

static int get_entry(struct sm_ll *ll, uint64_t i, struct sm_index_chunk **ret_chunk,
		     struct sm_index_entry **ret_entry)
{
	struct sm_index_entry *entry;
	int r;

	r = sm_index_get_chunk(&ll->index, i, sm_ll_load_chunk, ll, ret_chunk);
	if (r)
		return r;
	entry = &(*ret_chunk)->entries[i % INDEX_CHUNK_ENTRIES];
	if (unlikely(!entry->bitmap || entry->bitmap >= bm_nr_blocks(ll->bm))) {
		log_err_limited("%s map: the index places bitmap %" PRIu64 " at block %" PRIu64
				", which cannot be; its blocks cannot be counted",
				ll->ops->name, i, entry->bitmap);
		return -EUCLEAN;
	}
	*ret_entry = entry;
	return 0;
}

int sm_ll_find_entry(struct sm_ll *ll, uint64_t i, struct sm_index_entry **ret_entry)
{
	struct sm_index_chunk *chunk;

	return get_entry(ll, i, &chunk, ret_entry);
}

int sm_ll_read_bitmap(struct sm_ll *ll, mblock_t bitmap, struct locked_block **ret_lb)
{
	return tm_read_lock(ll->tm, bitmap, &bitmap_validator, ret_lb);
}

struct sm_index_chunk *sm_ll_next_dirty_chunk(struct sm_ll *ll, uint64_t *c)
{
	for (; *c < ll->index.nr_chunks; (*c)++) {
		struct sm_index_chunk *chunk = sm_index_loaded_chunk(&ll->index, *c);

		if (chunk && chunk->dirty)
			return chunk;
	}
	return NULL;
}

/* ---- life ---- */

void sm_ll_init(struct sm_ll *ll, struct transaction_manager *tm, const struct sm_ll_ops *ops)
{
	*ll = (struct sm_ll){
		.tm = tm,
		.bm = tm_block_manager(tm),
		.ops = ops,
		.ref_count_info = { .tm = tm, .levels = 1, .value_type.size = sizeof(struct le32) },
		.index_info = { .tm = tm,
				.levels = 1,
				.value_type.size = sizeof(struct disk_index_entry) },
	};
}

void sm_ll_exit(struct sm_ll *ll)
{
	sm_index_exit(&ll->index);
}

int sm_ll_create(struct sm_ll *ll)
{
	int r;

	r = ll->ops->create_index(ll, &ll->now.bitmap_root);
	if (r)
		return r;
	return btree_empty(&ll->ref_count_info, &ll->now.ref_count_root);
}

int sm_ll_open(struct sm_ll *ll, const struct disk_sm_root *root)
{
	struct sm_ll_state state = {
		.nr_blocks = le64_get(root->nr_blocks),
		.nr_allocated = le64_get(root->nr_allocated),
		.bitmap_root = le64_get(root->bitmap_root),
		.ref_count_root = le64_get(root->ref_count_root),
	};

	if (state.nr_blocks > ll->ops->max_blocks) {
		log_err("%s map: %" PRIu64 " blocks are more than the format allows; "
			"it cannot be opened",
			ll->ops->name, state.nr_blocks);
		return -EUCLEAN;
	}
	state.nr_allocated = MIN(state.nr_allocated, state.nr_blocks);
	ll->now = ll->committed = state;
	return sm_index_grow(&ll->index, bitmaps_for(state.nr_blocks));
}

void sm_ll_copy_root(const struct sm_ll *ll, struct disk_sm_root *ret_root)
{
	ret_root->nr_blocks = le64_make(ll->now.nr_blocks);
	ret_root->nr_allocated = le64_make(ll->now.nr_allocated);
	ret_root->bitmap_root = le64_make(ll->now.bitmap_root);
	ret_root->ref_count_root = le64_make(ll->now.ref_count_root);
}

int sm_ll_commit(struct sm_ll *ll)
{
	struct sm_index_chunk *chunk;
	uint64_t c = 0;
	int r;

	if (sm_ll_next_dirty_chunk(ll, &c)) {
		r = ll->ops->write_index(ll);
		if (r)
			return r;
	}
	for (c = 0; (chunk = sm_ll_next_dirty_chunk(ll, &c)); c++) {
		for (unsigned k = 0; k < INDEX_CHUNK_ENTRIES; k++) {
			chunk->entries[k].committed_bitmap = chunk->entries[k].bitmap;
			chunk->entries[k].dirty = false;
		}
		chunk->dirty = false;
	}
	ll->committed = ll->now;
	ll->nr_taken = 0;
	ll->exhausted = false;
	return 0;
}

/* ---- numbers of an entry ---- */

/* Make the numbers exact.  They are hints on disk, so the entry need not become dirty. */
int sm_ll_count_entry(struct sm_ll *ll, struct sm_index_entry *entry)
{
	struct locked_block *lb;
	unsigned first;
	int r;

	r = sm_ll_read_bitmap(ll, entry->bitmap, &lb);
	if (r)
		return r;
	entry->nr_free = (uint16_t)bitmap_count_free(block_data(lb), &first);
	entry->none_free_before = (uint16_t)first;
	entry->exact = true;
	tm_unlock(ll->tm, lb);
	return 0;
}

/* ---- extending ---- */

static int append_bitmap(struct sm_ll *ll, uint64_t i)
{
	struct sm_index_chunk *chunk;
	struct locked_block *lb;
	mblock_t location;
	int r;

	r = tm_new_block(ll->tm, &bitmap_validator, &lb);
	if (r)
		return r;
	location = block_location(lb);
	tm_unlock(ll->tm, lb);

	r = sm_index_get_chunk(&ll->index, i, sm_ll_load_chunk, ll, &chunk);
	if (r)
		return r;
	chunk->entries[i % INDEX_CHUNK_ENTRIES] = (struct sm_index_entry){
		.bitmap = location,
		.nr_free = ENTRIES_PER_BITMAP,
		.dirty = true,
		.exact = true,
	};
	chunk->dirty = true;
	return 0;
}

int sm_ll_extend(struct sm_ll *ll, uint64_t extra_blocks)
{
	uint64_t nr_blocks = ll->now.nr_blocks + extra_blocks;
	uint64_t nr_bitmaps = bitmaps_for(ll->now.nr_blocks);
	struct sm_index_entry *last;
	int r;

	if (nr_blocks < extra_blocks || nr_blocks > ll->ops->max_blocks)
		return -EINVAL;
	r = sm_index_grow(&ll->index, bitmaps_for(nr_blocks));
	if (r)
		return r;
	if (ll->now.nr_blocks % ENTRIES_PER_BITMAP) {
		/* What was past the end becomes real, and not everybody counted it as free. */
		r = sm_ll_find_entry(ll, nr_bitmaps - 1, &last);
		if (r)
			return r;
		r = sm_ll_count_entry(ll, last);
		if (r)
			return r;
	}
	for (; nr_bitmaps < bitmaps_for(nr_blocks); nr_bitmaps++) {
		r = append_bitmap(ll, nr_bitmaps);
		if (r)
			return r;
	}
	ll->now.nr_blocks = nr_blocks;
	ll->exhausted = false;
	return 0;
}

/* ---- counts ---- */

int sm_ll_check_range(const struct sm_ll *ll, uint64_t begin, uint64_t end)
{
	if (likely(begin <= end && end <= ll->now.nr_blocks))
		return 0;
	log_err_limited("%s map: blocks %" PRIu64 " to %" PRIu64 " (excluded) lie past the end "
			"(%" PRIu64 " blocks); the operation fails",
			ll->ops->name, begin, end, ll->now.nr_blocks);
	return -EINVAL;
}

int sm_ll_get_bits(struct sm_ll *ll, uint64_t b, unsigned *ret_bits)
{
	struct sm_index_entry *entry;
	struct locked_block *lb;
	int r;

	if (b >= ll->now.nr_blocks)
		return sm_ll_check_range(ll, b, b + 1);
	r = sm_ll_find_entry(ll, b / ENTRIES_PER_BITMAP, &entry);
	if (r)
		return r;
	r = sm_ll_read_bitmap(ll, entry->bitmap, &lb);
	if (r)
		return r;
	*ret_bits = bitmap_get(block_data(lb), (unsigned)(b % ENTRIES_PER_BITMAP));
	tm_unlock(ll->tm, lb);
	return 0;
}

/* The count of a block whose bitmap entry says "three or more". */
static int tree_count(struct sm_ll *ll, uint64_t b, uint32_t *ret_count)
{
	struct le32 value;
	int r;

	r = btree_lookup(&ll->ref_count_info, ll->now.ref_count_root, &b, &value);
	if (r && r != -ENODATA)
		return r;
	if (r || le32_get(value) < 3) {
		log_err_limited("%s map: the bitmap counts three or more users of block %" PRIu64
				", the tree of large counts %s; the operation fails",
				ll->ops->name, b, r ? "has no entry for it" : "fewer than three");
		return -EUCLEAN;
	}
	*ret_count = le32_get(value);
	return 0;
}

int sm_ll_get_count(struct sm_ll *ll, uint64_t b, uint32_t *ret_count)
{
	unsigned bits;
	int r;

	r = sm_ll_get_bits(ll, b, &bits);
	if (r)
		return r;
	if (bits == 3)
		return tree_count(ll, b, ret_count);
	*ret_count = bits;
	return 0;
}

/* ---- changing ---- */

/* The words of one bitmap that a change touches, and what it found there. */
struct change {
	enum sm_change how;
	uint64_t i;      /* bitmap */
	unsigned lo, hi; /* entries */
	unsigned nr_moved;
	bool tree;
};

#define for_each_word(w, change) \
	for (unsigned w = (change)->lo / BITMAP_ENTRIES_PER_WORD; \
	     w <= ((change)->hi - 1) / BITMAP_ENTRIES_PER_WORD; w++)

static void inc_words(struct sm_ll_scratch *s, struct change *change, void *data)
{
	for_each_word(w, change)
	{
		uint64_t mask = word_span(w, change->lo, change->hi);
		uint64_t word = bitmap_word(data, w);
		uint64_t high = word_high(word), low = word_low(word);

		s->moved[w] = ~(high | low) & mask;
		s->third[w] = high & ~low & mask;
		s->many[w] = high & low & mask;
		change->nr_moved += (unsigned)__builtin_popcountll(s->moved[w]);
		change->tree |= s->third[w] || s->many[w];

		/* 0 1 2 3 -> 1 2 3 3 */
		high = (high & ~mask) | ((high | low) & mask);
		low = (low & ~mask) | ((~low | word_high(word)) & mask);
		bitmap_set_word(data, w, word_join(high, low));
	}
}

/* Returns false if an entry is 0, and which. */
static bool dec_words(struct sm_ll_scratch *s, struct change *change, void *data,
		      unsigned *ret_zero)
{
	for_each_word(w, change)
	{
		uint64_t mask = word_span(w, change->lo, change->hi);
		uint64_t word = bitmap_word(data, w);
		uint64_t high = word_high(word), low = word_low(word);
		uint64_t zero = word_zero(word) & mask;

		if (zero) {
			*ret_zero =
				w * BITMAP_ENTRIES_PER_WORD + (unsigned)__builtin_ctzll(zero) / 2;
			return false;
		}
		s->moved[w] = ~high & low & mask;
		s->third[w] = 0;
		s->many[w] = high & low & mask;
		change->nr_moved += (unsigned)__builtin_popcountll(s->moved[w]);
		change->tree |= s->many[w] != 0;

		/* 1 2 3 -> 0 1 3; what becomes of 3 is for the tree to say */
		low = (low & ~mask) | (high & mask);
		high = (high & ~mask) | (s->many[w] & mask);
		bitmap_set_word(data, w, word_join(high, low));
	}
	return true;
}

/* Write-lock the bitmap, at a new place where it was not copied in this transaction yet. */
static int shadow_bitmap(struct sm_ll *ll, uint64_t i, struct sm_index_entry **ret_entry,
			 struct locked_block **ret_lb)
{
	struct sm_index_entry *entry;
	struct sm_index_chunk *chunk;
	bool inc; /* bitmaps point at nothing */
	int r;

	r = get_entry(ll, i, &chunk, &entry);
	if (r)
		return r;
	r = tm_shadow_block(ll->tm, entry->bitmap, &bitmap_validator, ret_lb, &inc);
	if (r)
		return r;
	entry->bitmap = block_location(*ret_lb);
	entry->dirty = chunk->dirty = true;
	*ret_entry = entry;
	return 0;
}

/* Of the entries that moved, those that the committed state has free. */
static int count_taken(struct sm_ll *ll, const struct change *change,
		       const struct sm_index_entry *entry, unsigned *ret_nr)
{
	unsigned limit = entries_below(change->i, ll->committed.nr_blocks), nr = 0;
	struct locked_block *lb = NULL;
	int r;

	if (entry->committed_bitmap) {
		r = sm_ll_read_bitmap(ll, entry->committed_bitmap, &lb);
		if (r)
			return r;
	}
	for_each_word(w, change)
	{
		uint64_t fresh = ll->scratch.moved[w];

		fresh = w * BITMAP_ENTRIES_PER_WORD < limit ? fresh & word_span(w, 0, limit) : 0;
		if (fresh && lb)
			fresh &= word_zero(bitmap_word(block_data(lb), w));
		ll->scratch.fresh[w] = fresh;
		nr += (unsigned)__builtin_popcountll(fresh);
	}
	if (lb)
		tm_unlock(ll->tm, lb);
	*ret_nr = nr;
	return 0;
}

static int account_used(struct sm_ll *ll, const struct change *change, struct sm_index_entry *entry)
{
	unsigned taken;
	int r;

	r = count_taken(ll, change, entry, &taken);
	if (r)
		return r;
	ll->nr_taken += taken;
	ll->now.nr_allocated = MIN(ll->now.nr_allocated + change->nr_moved, ll->now.nr_blocks);
	if (entry->nr_free < change->nr_moved)
		return sm_ll_count_entry(ll, entry);
	entry->nr_free -= (uint16_t)change->nr_moved;
	/* The whole of [lo, hi) is in use now. */
	if (change->lo <= entry->none_free_before && entry->none_free_before < change->hi)
		entry->none_free_before = (uint16_t)change->hi;
	return 0;
}

static int account_free(struct sm_ll *ll, const struct change *change, struct sm_index_entry *entry)
{
	unsigned given_back, first = change->hi;
	int r;

	r = count_taken(ll, change, entry, &given_back);
	if (r)
		return r;
	if (given_back)
		ll->exhausted = false;
	ll->nr_taken -= MIN(given_back, ll->nr_taken);
	ll->now.nr_allocated -= MIN(change->nr_moved, ll->now.nr_allocated);
	if (entry->nr_free + change->nr_moved > ENTRIES_PER_BITMAP)
		return sm_ll_count_entry(ll, entry);
	entry->nr_free += (uint16_t)change->nr_moved;
	for_each_word(w, change)
	{
		if (!ll->scratch.moved[w])
			continue;
		first = w * BITMAP_ENTRIES_PER_WORD +
			(unsigned)__builtin_ctzll(ll->scratch.moved[w]) / 2;
		break;
	}
	entry->none_free_before = (uint16_t)MIN(entry->none_free_before, first);
	return 0;
}

static int account(struct sm_ll *ll, const struct change *change, struct sm_index_entry *entry)
{
	int r;

	if (!change->nr_moved)
		return 0;
	r = change->how == SM_INC ? account_used(ll, change, entry)
				  : account_free(ll, change, entry);
	if (r || !ll->ops->moved)
		return r;
	for_each_word(w, change)
	{
		uint64_t base = change->i * ENTRIES_PER_BITMAP + w * BITMAP_ENTRIES_PER_WORD;

		if (ll->scratch.moved[w])
			ll->ops->moved(ll, base, word_compress(ll->scratch.moved[w]),
				       word_compress(ll->scratch.fresh[w]), change->how);
	}
	return 0;
}

static int tree_set(struct sm_ll *ll, uint64_t b, uint32_t count)
{
	struct le32 value = le32_make(count);

	return btree_insert(&ll->ref_count_info, ll->now.ref_count_root, &b, &value,
			    &ll->now.ref_count_root, NULL);
}

static int tree_inc(struct sm_ll *ll, uint64_t b)
{
	uint32_t count;
	int r;

	r = tree_count(ll, b, &count);
	if (r)
		return r;
	if (count == UINT32_MAX) {
		log_err_limited("%s map: block %" PRIu64 " has %" PRIu32 " users, one more cannot "
				"be counted; the operation fails",
				ll->ops->name, b, count);
		return -EINVAL;
	}
	return tree_set(ll, b, count + 1);
}

static int tree_dec(struct sm_ll *ll, uint64_t b, bool *ret_two)
{
	uint32_t count;
	int r;

	r = tree_count(ll, b, &count);
	if (r)
		return r;
	*ret_two = count == 3;
	if (count > 3)
		return tree_set(ll, b, count - 1);
	return btree_remove(&ll->ref_count_info, ll->now.ref_count_root, &b,
			    &ll->now.ref_count_root);
}

/* Tree work for one word; entries back to two users are added to scratch.third. */
static int change_tree_word(struct sm_ll *ll, const struct change *change, unsigned w)
{
	uint64_t base = change->i * ENTRIES_PER_BITMAP + w * BITMAP_ENTRIES_PER_WORD;
	uint64_t third = ll->scratch.third[w];
	uint64_t left = third | ll->scratch.many[w];
	int r = 0;

	for (; left && !r; left &= left - 1) {
		uint64_t bit = left & -left;
		uint64_t b = base + (unsigned)__builtin_ctzll(bit) / 2;
		bool two = false;

		if (change->how == SM_DEC)
			r = tree_dec(ll, b, &two);
		else if (third & bit)
			r = tree_set(ll, b, 3);
		else
			r = tree_inc(ll, b);
		if (two)
			ll->scratch.third[w] |= bit;
	}
	return r;
}

/* Entries in scratch.third went from 3 to 2. */
static int set_to_two(struct sm_ll *ll, const struct change *change)
{
	struct sm_index_entry *entry;
	struct locked_block *lb;
	void *data;
	int r;

	r = shadow_bitmap(ll, change->i, &entry, &lb);
	if (r)
		return r;
	data = block_data_mut(lb);
	for_each_word(w, change)
		bitmap_set_word(data, w, bitmap_word(data, w) & ~(ll->scratch.third[w] << 1));
	tm_unlock(ll->tm, lb);
	return 0;
}

static int change_tree(struct sm_ll *ll, const struct change *change)
{
	uint64_t twos = 0;
	int r;

	for_each_word(w, change)
	{
		r = change_tree_word(ll, change, w);
		if (r)
			return r;
		twos |= ll->scratch.third[w];
	}
	return change->how == SM_DEC && twos ? set_to_two(ll, change) : 0;
}

static int change_bitmap(struct sm_ll *ll, struct change *change)
{
	struct sm_index_entry *entry;
	struct locked_block *lb;
	unsigned zero = 0;
	bool ok = true;
	int r;

	r = shadow_bitmap(ll, change->i, &entry, &lb);
	if (r)
		return r;
	if (change->how == SM_INC)
		inc_words(&ll->scratch, change, block_data_mut(lb));
	else
		ok = dec_words(&ll->scratch, change, block_data_mut(lb), &zero);
	tm_unlock(ll->tm, lb);
	if (!ok) {
		log_err_limited("%s map: block %" PRIu64 " loses a user, but none is counted; "
				"the operation fails",
				ll->ops->name, change->i * ENTRIES_PER_BITMAP + zero);
		return -EINVAL;
	}
	r = account(ll, change, entry);
	if (r || !change->tree)
		return r;
	return change_tree(ll, change);
}

int sm_ll_change(struct sm_ll *ll, uint64_t begin, uint64_t end, enum sm_change how)
{
	int r;

	r = sm_ll_check_range(ll, begin, end);
	while (!r && begin < end) {
		struct change change = { .how = how, .i = begin / ENTRIES_PER_BITMAP };

		change.lo = (unsigned)(begin % ENTRIES_PER_BITMAP);
		change.hi = (unsigned)MIN(ENTRIES_PER_BITMAP, change.lo + (end - begin));
		r = change_bitmap(ll, &change);
		begin += change.hi - change.lo;
	}
	return r;
}
