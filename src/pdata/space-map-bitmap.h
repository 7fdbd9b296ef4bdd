/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * space-map-bitmap.h - the 2-bit counts inside one bitmap block
 *
 * Layer:    pdata, private to the space maps.
 * Threads:  pure functions over a block that the caller holds locked.
 * Units:    an entry is the count of one block: 0, 1, 2, or 3 for "three or more".
 * Errors:   none.
 *
 * Entry e is the bit pair at bits 2(e % 32), 2(e % 32) + 1 of 64-bit little-endian word
 * e / 32, and the even bit is the *high* one.  Most work is done on whole words in "even form":
 * a mask with bit 2k set stands for entry k of the word.
 */
#ifndef TP_PDATA_SPACE_MAP_BITMAP_H
#define TP_PDATA_SPACE_MAP_BITMAP_H

#include <stdint.h>

#include "thinpoold/disk-format.h"
#include "util/compiler.h"
#include "util/le.h"

#define BITMAP_ENTRIES_PER_WORD 32u
#define BITMAP_WORDS (ENTRIES_PER_BITMAP / BITMAP_ENTRIES_PER_WORD) /* 510 */
#define BITMAP_GROUPS (ENTRIES_PER_BITMAP / 64u)                    /* 255, of 64 entries */
#define BITMAP_EVEN UINT64_C(0x5555555555555555)

_Static_assert(sizeof(struct disk_bitmap_header) + BITMAP_WORDS * 8 == METADATA_BLOCK_SIZE,
	       "the words fill the block");
_Static_assert(BITMAP_GROUPS * 64 == ENTRIES_PER_BITMAP, "no group is partial");

static inline uint64_t bitmap_word(const void *data, unsigned w)
{
	const struct le64 *words =
		(const void *)((const char *)data + sizeof(struct disk_bitmap_header));

	return le64_get(words[w]);
}

static inline void bitmap_set_word(void *data, unsigned w, uint64_t word)
{
	struct le64 *words = (void *)((char *)data + sizeof(struct disk_bitmap_header));

	words[w] = le64_make(word);
}

/* Even form of: high bits, low bits, entries that are 0. */
static inline uint64_t word_high(uint64_t word)
{
	return word & BITMAP_EVEN;
}

static inline uint64_t word_low(uint64_t word)
{
	return word >> 1 & BITMAP_EVEN;
}

static inline uint64_t word_zero(uint64_t word)
{
	return ~(word | word >> 1) & BITMAP_EVEN;
}

/* Put high and low bits, both in even form, together again. */
static inline uint64_t word_join(uint64_t high, uint64_t low)
{
	return high | low << 1;
}

/* Even form of the entries of word @w that lie in [lo, hi); the two must overlap. */
static inline uint64_t word_span(unsigned w, unsigned lo, unsigned hi)
{
	unsigned base = w * BITMAP_ENTRIES_PER_WORD;
	unsigned from = lo > base ? lo - base : 0, to = hi - base;
	uint64_t mask = BITMAP_EVEN << 2 * from;

	if (to < BITMAP_ENTRIES_PER_WORD)
		mask &= (UINT64_C(1) << 2 * to) - 1;
	return mask;
}

/* From even form to one bit an entry. */
static inline uint32_t word_compress(uint64_t even)
{
	even = (even | even >> 1) & UINT64_C(0x3333333333333333);
	even = (even | even >> 2) & UINT64_C(0x0f0f0f0f0f0f0f0f);
	even = (even | even >> 4) & UINT64_C(0x00ff00ff00ff00ff);
	even = (even | even >> 8) & UINT64_C(0x0000ffff0000ffff);
	return (uint32_t)(even | even >> 16);
}

/* One bit for each of the 64 entries from 64 * @group on that is 0. */
static inline uint64_t bitmap_free_group(const void *data, unsigned group)
{
	uint64_t low = word_zero(bitmap_word(data, 2 * group));
	uint64_t high = word_zero(bitmap_word(data, 2 * group + 1));

	if (!(low | high))
		return 0;
	return word_compress(low) | (uint64_t)word_compress(high) << 32;
}

/* Bits of group @g (of 64) that lie in [lo, hi); the two must overlap. */
static inline uint64_t group_span(unsigned g, unsigned lo, unsigned hi)
{
	unsigned from = lo > g * 64 ? lo - g * 64 : 0, to = hi - g * 64;
	uint64_t mask = UINT64_MAX << from;

	if (to < 64)
		mask &= (UINT64_C(1) << to) - 1;
	return mask;
}

static inline unsigned bitmap_get(const void *data, unsigned e)
{
	uint64_t pair =
		bitmap_word(data, e / BITMAP_ENTRIES_PER_WORD) >> 2 * (e % BITMAP_ENTRIES_PER_WORD);

	return (unsigned)((pair & 1) << 1 | (pair >> 1 & 1));
}

/* Entries that are 0, and the first of them (ENTRIES_PER_BITMAP: none). */
static inline unsigned bitmap_count_free(const void *data, unsigned *ret_first)
{
	unsigned nr = 0, first = ENTRIES_PER_BITMAP;

	for (unsigned w = 0; w < BITMAP_WORDS; w++) {
		uint64_t zero = word_zero(bitmap_word(data, w));

		if (zero && !nr)
			first = w * BITMAP_ENTRIES_PER_WORD + (unsigned)__builtin_ctzll(zero) / 2;
		nr += (unsigned)__builtin_popcountll(zero);
	}
	*ret_first = first;
	return nr;
}

#endif
