/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * space-map-index.h - the index of a space map in memory: where its bitmaps are
 *
 * A table of chunks, each for INDEX_CHUNK_ENTRIES bitmaps, read when first asked for and kept
 * until the map is destroyed: 24 bytes a bitmap, i.e. for 16320 blocks.  So nothing is
 * ever evicted, and no change to an entry can be lost before the commit writes it.
 *
 * Layer:    pdata, private to the space maps.
 * Threads:  lookups by any number of threads under meta_root shared (two may load the same chunk;
 *           the first one published stays); everything else under meta_root exclusive.
 * Units:    bitmaps; blocks of the metadata device for where they are.
 * Errors:   0 or a negative errno, as space-map.h.
 */
#ifndef TP_PDATA_SPACE_MAP_INDEX_H
#define TP_PDATA_SPACE_MAP_INDEX_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "thinpoold/disk-format.h"
#include "thinpoold/types.h"
#include "util/compiler.h"

#define INDEX_CHUNK_ENTRIES 256u /* the whole index of a metadata map is one chunk */

struct sm_index_entry {
	mblock_t bitmap;           /* 0: the index on disk has no such entry */
	mblock_t committed_bitmap; /* same as of the last commit; 0: made since */
	uint16_t nr_free;          /* hints until exact; at most ENTRIES_PER_BITMAP */
	uint16_t none_free_before;
	bool dirty; /* differs from the index on disk */
	bool exact; /* the two numbers were made from the bitmap, not read from the index */
};

struct sm_index_chunk {
	bool dirty; /* one of the entries is */
	struct sm_index_entry entries[INDEX_CHUNK_ENTRIES];
};

struct sm_index {
	_Atomic(struct sm_index_chunk *) *chunks;
	uint64_t nr_chunks;
};

/* Fill entries of bitmaps [first, first + INDEX_CHUNK_ENTRIES), zeroed before, from disk. */
typedef int (*sm_index_load_fn)(void *ctx, uint64_t first, struct sm_index_entry *entries);

/* Room for @nr_bitmaps; entries of chunks not loaded are left to be loaded. */
int sm_index_grow(struct sm_index *index, uint64_t nr_bitmaps) TP_MUST_CHECK;
void sm_index_exit(struct sm_index *index);

/* The chunk with bitmap @i, which must be inside the table. */
int sm_index_get_chunk(struct sm_index *index, uint64_t i, sm_index_load_fn load, void *ctx,
		       struct sm_index_chunk **ret_chunk) TP_MUST_CHECK;

/* Chunk number @c if it is in memory. */
static inline struct sm_index_chunk *sm_index_loaded_chunk(struct sm_index *index, uint64_t c)
{
	return atomic_load_explicit(&index->chunks[c], memory_order_acquire);
}

/* Hints out of range become harmless ones. */
void sm_index_entry_from_disk(struct sm_index_entry *entry, const struct disk_index_entry *disk);
void sm_index_entry_to_disk(const struct sm_index_entry *entry, struct disk_index_entry *ret_disk);

#endif
