/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-check-maps.c - space maps: are they well-formed, and do they tell the truth?
 *
 * The bitmaps of the metadata map are read first, because they say which nodes may have two
 * parents, and kept (a mebibyte at most).  All else is compared in passing, after the trees that
 * refer to data blocks have been walked: first the ref count tree, each entry against the
 * references, leaving a mark on the block; then the bitmaps, where a 3 needs that mark.  The
 * metadata's own ref count tree comes last and is kept until it is walked, for it is among
 * what it counts.
 *
 * A count that is too high loses space; one that is too low will lose data.  Where damage
 * hides references, a count that looks too high may be right: it is not called a leak then.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "thin/thin-check-internal.h"
#include "util/le.h"

#define BITMAP_BYTES (METADATA_BLOCK_SIZE - (uint32_t)sizeof(struct disk_bitmap_header))
#define COUNT_IN_TREE 3u

_Static_assert(BITMAP_BYTES * 4 == ENTRIES_PER_BITMAP, "two bits a block");

/* Two bits, the high one first. */
static unsigned bits_get(const uint8_t *bits, uint64_t entry)
{
	unsigned two = bits[entry / 4] >> (entry % 4 * 2);

	return (two & 1) << 1 | (two >> 1 & 1);
}

static bool all_zero(const void *data, size_t length)
{
	const char *p = data;

	return !length || (!p[0] && !memcmp(p, p + 1, length - 1));
}

/* ---- counts against references ---- */

static void tell_run(struct check *c)
{
	struct count_compare *m = &c->compare;
	enum thin_check_severity severity =
		m->recorded > m->used ? THIN_CHECK_LEAK : THIN_CHECK_DAMAGE;
	char blocks[64];

	if (m->begin == m->end)
		return;
	if (m->end - m->begin == 1)
		snprintf(blocks, sizeof(blocks), "%s block %" PRIu64, m->what, m->begin);
	else
		snprintf(blocks, sizeof(blocks), "%s blocks %" PRIu64 "..%" PRIu64, m->what,
			 m->begin, m->end - 1);
	if (!m->used)
		finding(c, severity, "%s: counted %" PRIu64 ", but nothing refers to it", blocks,
			m->recorded);
	else
		finding(c, severity, "%s: counted %" PRIu64 ", but has %" PRIu64 " reference%s",
			blocks, m->recorded, m->used, m->used == 1 ? "" : "s");
	m->begin = m->end = 0;
}

static void judge(struct check *c, uint64_t block, uint64_t recorded, uint64_t used)
{
	struct count_compare *m = &c->compare;

	if (recorded == used)
		return;
	if (recorded > used && c->hidden) {
		m->nr_hidden++;
		return;
	}
	if (m->begin == m->end || m->end != block || m->recorded != recorded || m->used != used) {
		tell_run(c);
		m->begin = block;
		m->recorded = recorded;
		m->used = used;
	}
	m->end = block + 1;
}

static void compare_begin(struct check *c, const char *what, uint64_t nr_blocks)
{
	c->compare = (struct count_compare){ .what = what, .nr_blocks = nr_blocks };
}

static void compare_end(struct check *c, const struct disk_sm_root *root, bool all_read)
{
	struct count_compare *m = &c->compare;
	uint64_t claimed = le64_get(root->nr_allocated);

	tell_run(c);
	if (m->nr_hidden)
		finding(c, THIN_CHECK_DAMAGE,
			"%s map: %" PRIu64 " blocks are counted more often than was seen; "
			"the damage above may hide who refers to them",
			m->what, m->nr_hidden);
	if (all_read && claimed != m->nr_allocated)
		finding(c, THIN_CHECK_HINT,
			"%s map: claims %" PRIu64 " allocated blocks, its bitmaps have %" PRIu64,
			m->what, claimed, m->nr_allocated);
}

/* A bitmap and the ref count tree must agree on who has the count. */
static bool is_consistent(struct check *c, uint64_t block, unsigned recorded, bool in_tree)
{
	const struct count_compare *m = &c->compare;

	if (in_tree && recorded != COUNT_IN_TREE) {
		finding(c, THIN_CHECK_DAMAGE,
			"%s block %" PRIu64
			": the bitmap counts %u, but the ref count tree has it too",
			m->what, block, recorded);
		return false;
	}
	if (!in_tree && recorded == COUNT_IN_TREE) {
		if (m->counts_complete)
			finding(c, THIN_CHECK_DAMAGE,
				"%s block %" PRIu64 ": the bitmap points to the ref count tree, "
				"which does not have it",
				m->what, block);
		return false;
	}
	return true;
}

/* ---- bitmaps ---- */

struct bitmap_facts {
	unsigned nr_existing; /* entries that stand for blocks */
	unsigned nr_free, first_free;
};

static unsigned existing_entries(uint64_t nr_blocks, uint64_t bitmap_nr)
{
	return (unsigned)MIN(nr_blocks - bitmap_nr * ENTRIES_PER_BITMAP, ENTRIES_PER_BITMAP);
}

/* Entries past the end of the map. */
static void check_tail(struct check *c, const struct place *at, const uint8_t *bits, unsigned begin)
{
	for (unsigned e = begin; e < ENTRIES_PER_BITMAP; e++) {
		if (!bits_get(bits, e))
			continue;
		finding_at(c, at, "entry %u counts %u, but the map ends at entry %u", e,
			   bits_get(bits, e), begin);
		return;
	}
}

static void check_hints(struct check *c, const struct place *at,
			const struct disk_index_entry *entry, const struct bitmap_facts *facts)
{
	uint32_t nr_free = le32_get(entry->nr_free), before = le32_get(entry->none_free_before);
	unsigned past_end = ENTRIES_PER_BITMAP - facts->nr_existing;

	/* Some writers count what is past the end as free, others do not. */
	if (nr_free != facts->nr_free && nr_free != facts->nr_free + past_end)
		finding(c, THIN_CHECK_HINT,
			"%s %" PRIu64 ": the index claims %" PRIu32 " free entries, there are %u",
			kind_text(at->kind), at->block, nr_free, facts->nr_free);
	if (before > facts->first_free)
		finding(c, THIN_CHECK_HINT,
			"%s %" PRIu64
			": the index claims that nothing is free before entry %" PRIu32
			", but entry %u is",
			kind_text(at->kind), at->block, before, facts->first_free);
}

static void note_entry(struct bitmap_facts *facts, unsigned entry, unsigned recorded)
{
	if (recorded)
		return;
	if (!facts->nr_free++)
		facts->first_free = entry;
}

/* ---- the data map ---- */

/* One page of entries, from @entry of the bitmap on. */
static void compare_page(struct check *c, uint64_t block, const uint8_t *bits, unsigned entry,
			 unsigned nr, struct bitmap_facts *facts)
{
	const uint8_t *page = data_refs_page(c, block / DATA_PAGE_ENTRIES);

	if (!page && all_zero(bits + entry / 4, DIV_ROUND_UP(nr, 4))) {
		note_entry(facts, entry, 0);
		facts->nr_free += nr - 1;
		return;
	}
	for (unsigned i = 0; i < nr; i++) {
		unsigned recorded = bits_get(bits, entry + i);
		uint8_t byte = page ? page[i] : 0;

		note_entry(facts, entry + i, recorded);
		if (is_consistent(c, block + i, recorded, byte & DATA_REFS_IN_TREE) &&
		    recorded != COUNT_IN_TREE)
			judge(c, block + i, recorded, data_refs_value(c, block + i, byte));
	}
}

static void compare_bitmap(struct check *c, const struct place *at, uint64_t bitmap_nr,
			   const struct disk_index_entry *entry, const uint8_t *bits)
{
	uint64_t begin = bitmap_nr * ENTRIES_PER_BITMAP;
	struct bitmap_facts facts = {
		.nr_existing = existing_entries(c->nr_data_blocks, bitmap_nr),
	};

	facts.first_free = facts.nr_existing;
	for (unsigned e = 0; e < facts.nr_existing; e += DATA_PAGE_ENTRIES)
		compare_page(c, begin + e, bits, e, MIN(facts.nr_existing - e, DATA_PAGE_ENTRIES),
			     &facts);
	check_tail(c, at, bits, facts.nr_existing);
	check_hints(c, at, entry, &facts);
	c->compare.nr_allocated += facts.nr_existing - facts.nr_free;
}

void data_index_entry(struct check *c, const struct place *at, uint64_t bitmap_nr,
		      const struct disk_index_entry *entry, const void *bitmap)
{
	struct place bitmap_at = { .kind = KIND_DATA_BITMAP, .block = le64_get(entry->blocknr) };
	uint64_t nr_bitmaps = DIV_ROUND_UP(c->nr_data_blocks, ENTRIES_PER_BITMAP);

	if (bitmap_nr >= nr_bitmaps) {
		finding_at(c, at, "has bitmap %" PRIu64 ", but the map ends at %" PRIu64, bitmap_nr,
			   nr_bitmaps);
		return;
	}
	if (bitmap_nr != c->next_bitmap)
		finding_at(c, at, "has bitmap %" PRIu64 " where %" PRIu64 " is due", bitmap_nr,
			   c->next_bitmap);
	c->next_bitmap = bitmap_nr + 1;
	if (bitmap)
		compare_bitmap(c, &bitmap_at, bitmap_nr, entry,
			       (const uint8_t *)bitmap + sizeof(struct disk_bitmap_header));
}

int data_map_compare(struct check *c)
{
	const struct disk_sm_root *root = (const void *)c->superblock->data_sm_root;
	struct place from = { .kind = KIND_SUPERBLOCK };
	uint64_t nr_bitmaps = DIV_ROUND_UP(c->nr_data_blocks, ENTRIES_PER_BITMAP);
	bool complete;
	int r;

	compare_begin(c, "data", c->nr_data_blocks);
	r = walk_tree(c, &from, KIND_DATA_COUNTS, le64_get(root->ref_count_root),
		      &c->compare.counts_complete);
	if (r)
		return r;
	tell_run(c);
	c->next_bitmap = 0;
	r = walk_tree(c, &from, KIND_DATA_INDEX, le64_get(root->bitmap_root), &complete);
	if (r)
		return r;
	if (complete && c->next_bitmap < nr_bitmaps)
		finding_at(c, &from, "the data index ends at bitmap %" PRIu64 " of %" PRIu64,
			   c->next_bitmap, nr_bitmaps);
	compare_end(c, root, complete && c->next_bitmap == nr_bitmaps);
	c->result.nr_data_used = c->compare.nr_allocated;
	return 0;
}

/* ---- ref count trees ---- */

static int keep_metadata_count(struct check *c, uint64_t block, uint32_t count)
{
	int r = array_grow(&c->metadata_counts, c->nr_metadata_counts, &c->max_metadata_counts,
			   sizeof(*c->metadata_counts));

	if (!r)
		c->metadata_counts[c->nr_metadata_counts++] =
			(struct metadata_count){ .block = block, .count = count };
	return r;
}

int count_entry(struct check *c, const struct place *at, uint64_t block, uint32_t count)
{
	uint64_t used;
	int r;

	if (count < COUNT_IN_TREE)
		finding_at(c, at,
			   "block %" PRIu64 " has count %" PRIu32 ", which belongs into a bitmap",
			   block, count);
	if (block >= c->compare.nr_blocks) {
		finding_at(c, at, "counts block %" PRIu64 ", but the %s map ends at %" PRIu64,
			   block, c->compare.what, c->compare.nr_blocks);
		return 0;
	}
	if (at->kind == KIND_METADATA_COUNTS)
		return keep_metadata_count(c, block, count);
	r = data_refs_mark(c, block, &used);
	if (!r)
		judge(c, block, count, used);
	return r;
}

/* ---- the metadata map ---- */

unsigned metadata_recorded(const struct check *c, mblock_t block)
{
	return c->metadata_bits && block < c->nr_blocks ? bits_get(c->metadata_bits, block) : 0;
}

/* The last bitmaps' worth of entries that the index does not need. */
static void check_unused_entries(struct check *c, const struct place *at,
				 const struct disk_metadata_index *index, unsigned nr)
{
	for (unsigned i = nr; i < MAX_METADATA_BITMAPS; i++) {
		if (all_zero(&index->index[i], sizeof(index->index[i])))
			continue;
		finding_at(c, at, "entry %u is in use, but the map ends at %u", i, nr);
		return;
	}
}

static void load_bitmap(struct check *c, const struct place *at, unsigned nr,
			const struct disk_index_entry *entry, const void *data)
{
	const uint8_t *bits = (const uint8_t *)data + sizeof(struct disk_bitmap_header);
	struct bitmap_facts facts = {
		.nr_existing = existing_entries(c->nr_metadata_blocks, nr),
	};

	facts.first_free = facts.nr_existing;
	for (unsigned e = 0; e < facts.nr_existing; e++)
		note_entry(&facts, e, bits_get(bits, e));
	check_tail(c, at, bits, facts.nr_existing);
	check_hints(c, at, entry, &facts);
	c->result.nr_metadata_used += facts.nr_existing - facts.nr_free;
	memcpy(c->metadata_bits + (size_t)nr * BITMAP_BYTES, bits, BITMAP_BYTES);
	c->has_bitmap[nr] = true;
}

static int read_bitmap(struct check *c, const struct place *from, unsigned nr,
		       const struct disk_index_entry *entry)
{
	struct place at = { .kind = KIND_METADATA_BITMAP, .block = le64_get(entry->blocknr) };
	enum arrival arrival;
	const void *data;
	int r;

	r = refer(c, from, at.block, at.kind, true, &arrival);
	if (r)
		return r;
	if (arrival == ARRIVE_AGAIN)
		finding_at(c, from, "refers to block %" PRIu64 ", which is in use already",
			   at.block);
	if (arrival != ARRIVE_FIRST)
		return 0;
	r = read_block(c, at.block, &data);
	if (!r && block_is_intact(c, &at, data))
		load_bitmap(c, &at, nr, entry, data);
	return r;
}

static int read_index(struct check *c, const struct place *at,
		      const struct disk_metadata_index *index)
{
	unsigned nr = (unsigned)DIV_ROUND_UP(c->nr_metadata_blocks, ENTRIES_PER_BITMAP);
	int r = 0;

	check_unused_entries(c, at, index, nr);
	c->metadata_bits = calloc(MAX(nr, 1u), BITMAP_BYTES);
	if (!c->metadata_bits)
		return -ENOMEM;
	for (unsigned i = 0; i < nr && !r; i++)
		r = read_bitmap(c, at, i, &index->index[i]);
	return r;
}

int metadata_map_load(struct check *c)
{
	const struct disk_sm_root *root = (const void *)c->superblock->metadata_sm_root;
	struct place from = { .kind = KIND_SUPERBLOCK };
	struct place at = { .kind = KIND_METADATA_INDEX, .block = le64_get(root->bitmap_root) };
	struct disk_metadata_index *index;
	enum arrival arrival;
	const void *data;
	int r;

	r = refer(c, &from, at.block, at.kind, true, &arrival);
	if (r || arrival != ARRIVE_FIRST)
		return r;
	r = read_block(c, at.block, &data);
	if (r || !block_is_intact(c, &at, data))
		return r;
	index = malloc(sizeof(*index));
	if (!index)
		return -ENOMEM;
	memcpy(index, data, sizeof(*index));
	r = read_index(c, &at, index);
	free(index);
	return r;
}

static int by_block(const void *a, const void *b)
{
	const struct metadata_count *x = a, *y = b;

	return (x->block > y->block) - (x->block < y->block);
}

static void compare_metadata_blocks(struct check *c)
{
	size_t next = 0;

	/* In order already, unless the tree is damaged. */
	if (c->nr_metadata_counts)
		qsort(c->metadata_counts, c->nr_metadata_counts, sizeof(*c->metadata_counts),
		      by_block);
	for (mblock_t b = 0; b < c->nr_blocks; b++) {
		unsigned recorded = metadata_recorded(c, b);
		bool in_tree = next < c->nr_metadata_counts && c->metadata_counts[next].block == b;
		uint64_t count = in_tree ? c->metadata_counts[next].count : recorded;

		while (next < c->nr_metadata_counts && c->metadata_counts[next].block == b)
			next++;
		if (c->has_bitmap[b / ENTRIES_PER_BITMAP] && is_consistent(c, b, recorded, in_tree))
			judge(c, b, count, metadata_refs(c, b));
	}
}

int metadata_map_compare(struct check *c)
{
	const struct disk_sm_root *root = (const void *)c->superblock->metadata_sm_root;
	struct place from = { .kind = KIND_SUPERBLOCK };
	bool all = true;
	int r;

	compare_begin(c, "metadata", c->nr_metadata_blocks);
	c->compare.nr_allocated = c->result.nr_metadata_used;
	r = walk_tree(c, &from, KIND_METADATA_COUNTS, le64_get(root->ref_count_root),
		      &c->compare.counts_complete);
	if (r)
		return r;
	compare_metadata_blocks(c);
	for (unsigned i = 0; i < DIV_ROUND_UP(c->nr_metadata_blocks, ENTRIES_PER_BITMAP); i++)
		all &= c->has_bitmap[i];
	compare_end(c, root, all);
	return 0;
}
