/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * space-map-index.c - the index of a space map in memory: where its bitmaps are
 *
 * Invariants: 1. a chunk that is not in memory is as on disk, whole.
 *             2. a published chunk stays where it is, so pointers to entries are good until the
 *                map is destroyed.
 * Locks: none; see the header.  Only publishing a chunk is done by readers, with one
 *        compare-and-swap.
 */
#include "pdata/space-map-index.h"

#include <errno.h>
#include <stdlib.h>

#include "util/cleanup.h"
#include "util/le.h"

static void chunk_freep(struct sm_index_chunk **chunk)
{
	free(*chunk);
}

int sm_index_grow(struct sm_index *index, uint64_t nr_bitmaps)
{
	uint64_t nr_chunks = DIV_ROUND_UP(nr_bitmaps, INDEX_CHUNK_ENTRIES);
	_Atomic(struct sm_index_chunk *) *chunks;

	if (nr_chunks <= index->nr_chunks)
		return 0;
	chunks = calloc(nr_chunks, sizeof(*chunks));
	if (!chunks)
		return -ENOMEM;
	for (uint64_t c = 0; c < index->nr_chunks; c++)
		atomic_init(&chunks[c], sm_index_loaded_chunk(index, c));
	free(index->chunks);
	index->chunks = chunks;
	index->nr_chunks = nr_chunks;
	return 0;
}

void sm_index_exit(struct sm_index *index)
{
	for (uint64_t c = 0; c < index->nr_chunks; c++)
		free(sm_index_loaded_chunk(index, c));
	free(index->chunks);
	*index = (struct sm_index){ 0 };
}

int sm_index_get_chunk(struct sm_index *index, uint64_t i, sm_index_load_fn load, void *ctx,
		       struct sm_index_chunk **ret_chunk)
{
	uint64_t c = i / INDEX_CHUNK_ENTRIES;
	TP_CLEANUP(chunk_freep) struct sm_index_chunk *fresh = NULL;
	struct sm_index_chunk *chunk;
	int r;

	TP_INVARIANT(c < index->nr_chunks);
	chunk = sm_index_loaded_chunk(index, c);
	if (likely(chunk)) {
		*ret_chunk = chunk;
		return 0;
	}

	fresh = calloc(1, sizeof(*fresh));
	if (!fresh)
		return -ENOMEM;
	r = load(ctx, c * INDEX_CHUNK_ENTRIES, fresh->entries);
	if (r)
		return r;
	/* Who loses the race takes the winner's chunk, left in @chunk, and frees its own. */
	if (atomic_compare_exchange_strong(&index->chunks[c], &chunk, fresh))
		chunk = tp_take(&fresh);
	*ret_chunk = chunk;
	return 0;
}

void sm_index_entry_from_disk(struct sm_index_entry *entry, const struct disk_index_entry *disk)
{
	uint32_t nr_free = le32_get(disk->nr_free), before = le32_get(disk->none_free_before);

	*entry = (struct sm_index_entry){
		.bitmap = le64_get(disk->blocknr),
		.committed_bitmap = le64_get(disk->blocknr),
		.nr_free = (uint16_t)MIN(nr_free, ENTRIES_PER_BITMAP),
		.none_free_before = before <= ENTRIES_PER_BITMAP ? (uint16_t)before : 0,
	};
}

void sm_index_entry_to_disk(const struct sm_index_entry *entry, struct disk_index_entry *ret_disk)
{
	ret_disk->blocknr = le64_make(entry->bitmap);
	ret_disk->nr_free = le32_make(entry->nr_free);
	ret_disk->none_free_before = le32_make(entry->none_free_before);
}
