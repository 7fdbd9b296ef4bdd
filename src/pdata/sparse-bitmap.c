/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sparse-bitmap.c - a set of block numbers in memory
 *
 * A hash of chunks, chained.  A chunk that has become empty stays, so that setting and clearing
 * single bits in turn does not go to the allocator each time; empty chunks are swept when
 * the table would have to grow.
 *
 * Invariants: 1. nr_set of the set is the sum of its chunks', each the number of bits in words.
 *             2. a chunk number occurs at most once.
 * Locks: none; see the header.
 */
#include "pdata/sparse-bitmap.h"

#include <errno.h>
#include <stdlib.h>

#include "thinpoold/disk-format.h"
#include "util/cleanup.h"

_Static_assert(SPARSE_CHUNK_BITS == ENTRIES_PER_BITMAP, "chunks match the bitmaps on disk");

#define FIRST_BUCKETS 16u

struct sparse_chunk {
	struct sparse_chunk *next;
	uint64_t nr;
	uint32_t nr_set;
	uint64_t words[SPARSE_CHUNK_WORDS];
};

static size_t bucket_of(uint64_t nr, size_t nr_buckets)
{
	return (size_t)(nr * UINT64_C(0x9e3779b97f4a7c15) >> 32) & (nr_buckets - 1);
}

static struct sparse_chunk *chunk_find(const struct sparse_bitmap *sb, uint64_t nr)
{
	struct sparse_chunk *c;

	if (!sb->nr_buckets)
		return NULL;
	for (c = sb->buckets[bucket_of(nr, sb->nr_buckets)]; c; c = c->next)
		if (c->nr == nr)
			return c;
	return NULL;
}

static void sweep_empty(struct sparse_bitmap *sb)
{
	for (size_t i = 0; i < sb->nr_buckets; i++) {
		struct sparse_chunk **link = &sb->buckets[i], *c;

		while ((c = *link)) {
			if (c->nr_set) {
				link = &c->next;
				continue;
			}
			*link = c->next;
			free(c);
			sb->nr_chunks--;
		}
	}
}

static int grow(struct sparse_bitmap *sb)
{
	size_t nr_buckets = sb->nr_buckets ? 2 * sb->nr_buckets : FIRST_BUCKETS;
	struct sparse_chunk **buckets = calloc(nr_buckets, sizeof(*buckets)), *c;

	if (!buckets)
		return -ENOMEM;
	for (size_t i = 0; i < sb->nr_buckets; i++) {
		while ((c = sb->buckets[i])) {
			size_t to = bucket_of(c->nr, nr_buckets);

			sb->buckets[i] = c->next;
			c->next = buckets[to];
			buckets[to] = c;
		}
	}
	free(sb->buckets);
	sb->buckets = buckets;
	sb->nr_buckets = nr_buckets;
	return 0;
}

static int make_room(struct sparse_bitmap *sb)
{
	bool full = sb->nr_chunks >= sb->nr_buckets;
	bool limited = sb->max_chunks && sb->nr_chunks >= sb->max_chunks;

	if (!full && !limited)
		return 0;
	sweep_empty(sb);
	if (sb->max_chunks && sb->nr_chunks >= sb->max_chunks)
		return -ENOMEM;
	/* Half full after the sweep: otherwise the next sweep would come too soon. */
	return sb->nr_chunks * 2 >= sb->nr_buckets ? grow(sb) : 0;
}

static int chunk_get(struct sparse_bitmap *sb, uint64_t nr, struct sparse_chunk **ret_chunk)
{
	struct sparse_chunk *c = chunk_find(sb, nr);
	size_t bucket;
	int r;

	if (!c) {
		r = make_room(sb);
		if (r)
			return r;
		c = calloc(1, sizeof(*c));
		if (!c)
			return -ENOMEM;
		bucket = bucket_of(nr, sb->nr_buckets);
		c->nr = nr;
		c->next = sb->buckets[bucket];
		sb->buckets[bucket] = c;
		sb->nr_chunks++;
	}
	*ret_chunk = c;
	return 0;
}

void sparse_bitmap_clear(struct sparse_bitmap *sb)
{
	struct sparse_chunk *c;

	for (size_t i = 0; i < sb->nr_buckets; i++) {
		while ((c = sb->buckets[i])) {
			sb->buckets[i] = c->next;
			free(c);
		}
	}
	free(sb->buckets);
	sb->buckets = NULL;
	sb->nr_buckets = sb->nr_chunks = 0;
	sb->nr_set = 0;
}

const uint64_t *sparse_bitmap_words(const struct sparse_bitmap *sb, uint64_t nr)
{
	const struct sparse_chunk *c = chunk_find(sb, nr);

	return c && c->nr_set ? c->words : NULL;
}

bool sparse_bitmap_test(const struct sparse_bitmap *sb, uint64_t b)
{
	const uint64_t *words = sparse_bitmap_words(sb, b / SPARSE_CHUNK_BITS);
	unsigned bit = (unsigned)(b % SPARSE_CHUNK_BITS);

	return words && (words[bit / 64] >> bit % 64 & 1);
}

/* Set or clear bits [lo, hi) of one chunk. */
static void chunk_change(struct sparse_bitmap *sb, struct sparse_chunk *c, unsigned lo, unsigned hi,
			 bool set)
{
	uint32_t before = c->nr_set;

	while (lo < hi) {
		unsigned w = lo / 64, from = lo % 64, nr = MIN(64 - from, hi - lo);
		uint64_t mask = (nr == 64 ? UINT64_MAX : (UINT64_C(1) << nr) - 1) << from;

		c->nr_set -= (uint32_t)__builtin_popcountll(c->words[w]);
		if (set)
			c->words[w] |= mask;
		else
			c->words[w] &= ~mask;
		c->nr_set += (uint32_t)__builtin_popcountll(c->words[w]);
		lo += nr;
	}
	sb->nr_set += (uint64_t)c->nr_set - before;
}

int sparse_bitmap_set_range(struct sparse_bitmap *sb, uint64_t begin, uint64_t end)
{
	struct sparse_chunk *c;
	int r;

	while (begin < end) {
		unsigned lo = (unsigned)(begin % SPARSE_CHUNK_BITS);
		unsigned hi = (unsigned)MIN(SPARSE_CHUNK_BITS, lo + (end - begin));

		r = chunk_get(sb, begin / SPARSE_CHUNK_BITS, &c);
		if (r)
			return r;
		chunk_change(sb, c, lo, hi, true);
		begin += hi - lo;
	}
	return 0;
}

void sparse_bitmap_clear_range(struct sparse_bitmap *sb, uint64_t begin, uint64_t end)
{
	struct sparse_chunk *c;

	while (begin < end && sb->nr_set) {
		unsigned lo = (unsigned)(begin % SPARSE_CHUNK_BITS);
		unsigned hi = (unsigned)MIN(SPARSE_CHUNK_BITS, lo + (end - begin));

		c = chunk_find(sb, begin / SPARSE_CHUNK_BITS);
		if (c && c->nr_set)
			chunk_change(sb, c, lo, hi, false);
		begin += hi - lo;
	}
}

/* ---- runs ---- */

/* The run seen last, not told yet: the next one may continue it. */
struct run {
	void (*fn)(void *ctx, uint64_t begin, uint64_t end);
	void *ctx;
	uint64_t begin, end;
};

static void run_add(struct run *run, uint64_t begin, uint64_t end)
{
	if (begin == run->end && run->begin < run->end) {
		run->end = end;
		return;
	}
	if (run->begin < run->end)
		run->fn(run->ctx, run->begin, run->end);
	run->begin = begin;
	run->end = end;
}

static void chunk_runs(const struct sparse_chunk *c, struct run *run)
{
	uint64_t base = c->nr * SPARSE_CHUNK_BITS;

	for (unsigned w = 0; w < SPARSE_CHUNK_WORDS; w++) {
		uint64_t word = c->words[w];

		while (word) {
			unsigned from = (unsigned)__builtin_ctzll(word);
			uint64_t rest = ~(word >> from);
			unsigned nr = rest ? (unsigned)__builtin_ctzll(rest) : 64;

			run_add(run, base + w * 64 + from, base + w * 64 + from + nr);
			if (from + nr == 64)
				break;
			word &= UINT64_MAX << (from + nr);
		}
	}
}

static int by_number(const void *a, const void *b)
{
	const struct sparse_chunk *const *x = a, *const *y = b;

	return (*x)->nr < (*y)->nr ? -1 : (*x)->nr > (*y)->nr;
}

int sparse_bitmap_for_each_run(const struct sparse_bitmap *sb,
			       void (*fn)(void *ctx, uint64_t begin, uint64_t end), void *ctx)
{
	struct run run = { .fn = fn, .ctx = ctx };
	struct sparse_chunk **sorted, *c;
	size_t nr = 0;

	if (!sb->nr_set)
		return 0;
	sorted = calloc(sb->nr_chunks, sizeof(*sorted));
	if (!sorted)
		return -ENOMEM;
	for (size_t i = 0; i < sb->nr_buckets; i++)
		for (c = sb->buckets[i]; c; c = c->next)
			sorted[nr++] = c;
	qsort(sorted, nr, sizeof(*sorted), by_number);
	for (size_t i = 0; i < nr; i++)
		chunk_runs(sorted[i], &run);
	free(sorted);
	if (run.begin < run.end)
		fn(ctx, run.begin, run.end);
	return 0;
}
