/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sparse-bitmap.h - a set of block numbers in memory
 *
 * Kept in chunks that cover the same blocks as one bitmap of a space map, so that the two
 * can be combined word by word.  A chunk takes 2 KiB and exists only where bits were set.
 *
 * Layer:    pdata, private to the space maps.
 * Threads:  the caller excludes writers from everybody else.
 * Units:    blocks.
 * Errors:   0 or -ENOMEM.
 */
#ifndef TP_PDATA_SPARSE_BITMAP_H
#define TP_PDATA_SPARSE_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/compiler.h"

#define SPARSE_CHUNK_BITS 16320u /* ENTRIES_PER_BITMAP */
#define SPARSE_CHUNK_WORDS (SPARSE_CHUNK_BITS / 64)

struct sparse_chunk;

/* All zeros is the empty set. */
struct sparse_bitmap {
	struct sparse_chunk **buckets;
	size_t nr_buckets; /* 0 or a power of two */
	size_t nr_chunks;
	uint64_t nr_set;   /* bits */
	size_t max_chunks; /* set_range() fails beyond; 0: no limit */
};

/* Forget everything and free the memory. */
void sparse_bitmap_clear(struct sparse_bitmap *sb);

/* SPARSE_CHUNK_WORDS words of chunk @nr, NULL if it has none. */
const uint64_t *sparse_bitmap_words(const struct sparse_bitmap *sb, uint64_t nr);

bool sparse_bitmap_test(const struct sparse_bitmap *sb, uint64_t b);

/* -ENOMEM: a front part may have been set. */
int sparse_bitmap_set_range(struct sparse_bitmap *sb, uint64_t begin, uint64_t end) TP_MUST_CHECK;
void sparse_bitmap_clear_range(struct sparse_bitmap *sb, uint64_t begin, uint64_t end);

/* The runs in ascending order, runs across chunks joined.  @fn may not change @sb. */
int sparse_bitmap_for_each_run(const struct sparse_bitmap *sb,
			       void (*fn)(void *ctx, uint64_t begin, uint64_t end),
			       void *ctx) TP_MUST_CHECK;

#endif
