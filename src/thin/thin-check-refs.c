/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-check-refs.c - which block is referred to how often, and as what
 *
 * Metadata blocks: arrays over what the metadata map describes, which is never more than
 * MAX_METADATA_BLOCKS nor than the device has; the system gives memory only for the parts that
 * are touched.
 *
 * Data blocks: their number is whatever the superblock claims, so pages of counts are made only
 * around blocks that something refers to.  A byte a block; the few with more references than
 * fit have their count in a hash.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "thin/thin-check-internal.h"

#define CHUNK_PAGES 64u

int array_grow(void *array, size_t nr, size_t *max, size_t size)
{
	size_t new_max = *max ? *max * 2 : 64;
	void *old, *grown;

	if (nr < *max)
		return 0;
	memcpy(&old, array, sizeof(old));
	grown = reallocarray(old, new_max, size);
	if (!grown)
		return -ENOMEM;
	memcpy(array, &grown, sizeof(grown));
	*max = new_max;
	return 0;
}

/* ---- numbers by number ---- */

static uint64_t *find_slot(const struct number_map *m, uint64_t key)
{
	uint64_t h = key * UINT64_C(0x9e3779b97f4a7c15);
	size_t i = (size_t)(h >> 20) & (m->nr_slots - 1);

	while (m->slots[2 * i] && m->slots[2 * i] != key + 1)
		i = (i + 1) & (m->nr_slots - 1);
	return &m->slots[2 * i];
}

static int grow_map(struct number_map *m)
{
	struct number_map bigger = { .nr_slots = m->nr_slots ? m->nr_slots * 2 : 256 };

	bigger.slots = calloc(bigger.nr_slots, 2 * sizeof(*bigger.slots));
	if (!bigger.slots)
		return -ENOMEM;
	for (size_t i = 0; i < m->nr_slots; i++) {
		uint64_t *slot;

		if (!m->slots[2 * i])
			continue;
		slot = find_slot(&bigger, m->slots[2 * i] - 1);
		slot[0] = m->slots[2 * i];
		slot[1] = m->slots[2 * i + 1];
	}
	bigger.nr = m->nr;
	free(m->slots);
	*m = bigger;
	return 0;
}

int number_map_get(const struct number_map *m, uint64_t key, uint64_t *ret_value)
{
	const uint64_t *slot = m->nr_slots ? find_slot(m, key) : NULL;

	if (!slot || !slot[0])
		return -ENODATA;
	*ret_value = slot[1];
	return 0;
}

int number_map_set(struct number_map *m, uint64_t key, uint64_t value)
{
	uint64_t *slot;

	if (m->nr * 2 >= m->nr_slots) {
		int r = grow_map(m);

		if (r)
			return r;
	}
	slot = find_slot(m, key);
	if (!slot[0])
		m->nr++;
	slot[0] = key + 1;
	slot[1] = value;
	return 0;
}

void number_map_free(struct number_map *m)
{
	free(m->slots);
	memset(m, 0, sizeof(*m));
}

/* ---- metadata blocks ---- */

static int add_metadata_ref(struct check *c, mblock_t block)
{
	uint64_t count = UINT8_MAX;

	if (c->refs[block] < UINT8_MAX - 1) {
		c->refs[block]++;
		return 0;
	}
	if (c->refs[block] == UINT8_MAX)
		(void)number_map_get(&c->many, block, &count); /* is there */
	else
		count = c->refs[block];
	c->refs[block] = UINT8_MAX;
	return number_map_set(&c->many, block, count + 1);
}

uint64_t metadata_refs(const struct check *c, mblock_t block)
{
	uint64_t count = c->refs[block];

	if (count == UINT8_MAX)
		(void)number_map_get(&c->many, block, &count); /* is there */
	return count;
}

int refer(struct check *c, const struct place *from, mblock_t block, enum block_kind kind,
	  bool counted, enum arrival *ret_arrival)
{
	enum block_kind known;
	int r;

	if (block >= c->nr_blocks) {
		finding_at(c, from,
			   "refers to block %" PRIu64 " (%s), but the metadata ends at %" PRIu64,
			   block, kind_text(kind), c->nr_blocks);
		c->hidden = true;
		*ret_arrival = ARRIVE_REFUSED;
		return 0;
	}
	r = counted ? add_metadata_ref(c, block) : 0;
	if (r)
		return r;
	known = block_kind(c, block);
	if (known == KIND_UNSEEN) {
		c->kinds[block] = (uint8_t)(kind | BLOCK_OPEN << 4);
		*ret_arrival = ARRIVE_FIRST;
	} else if (known == kind) {
		*ret_arrival = ARRIVE_AGAIN;
	} else {
		finding_at(c, from, "refers to block %" PRIu64 " (%s), which is in use as %s",
			   block, kind_text(kind), kind_text(known));
		c->hidden = true;
		*ret_arrival = ARRIVE_REFUSED;
	}
	return 0;
}

/* ---- data blocks ---- */

static uint8_t *find_page(struct check *c, uint64_t page_nr)
{
	uint64_t address;

	if (c->last_page && c->last_page_nr == page_nr)
		return c->last_page;
	if (number_map_get(&c->data_pages, page_nr, &address))
		return NULL;
	c->last_page_nr = page_nr;
	c->last_page = (uint8_t *)(uintptr_t)address;
	return c->last_page;
}

static int make_page(struct check *c, uint64_t page_nr, uint8_t **ret_page)
{
	uint8_t *page;
	int r;

	if (c->nr_pages == c->nr_chunks * CHUNK_PAGES) {
		uint8_t **chunks = reallocarray(c->chunks, c->nr_chunks + 1, sizeof(*chunks));

		if (!chunks)
			return -ENOMEM;
		c->chunks = chunks;
		chunks[c->nr_chunks] = calloc(CHUNK_PAGES, DATA_PAGE_ENTRIES);
		if (!chunks[c->nr_chunks])
			return -ENOMEM;
		c->nr_chunks++;
	}
	page = c->chunks[c->nr_chunks - 1] + c->nr_pages % CHUNK_PAGES * (size_t)DATA_PAGE_ENTRIES;
	r = number_map_set(&c->data_pages, page_nr, (uintptr_t)page);
	if (r)
		return r;
	c->nr_pages++;
	*ret_page = page;
	return 0;
}

static int data_byte(struct check *c, dblock_t block, uint8_t **ret_byte)
{
	uint8_t *page = find_page(c, block / DATA_PAGE_ENTRIES);
	int r = page ? 0 : make_page(c, block / DATA_PAGE_ENTRIES, &page);

	if (!r)
		*ret_byte = page + block % DATA_PAGE_ENTRIES;
	return r;
}

int data_refs_add(struct check *c, dblock_t block)
{
	uint64_t count = DATA_REFS_MANY - 1;
	uint8_t *byte;
	int r;

	r = data_byte(c, block, &byte);
	if (r)
		return r;
	if ((*byte & DATA_REFS_MANY) < DATA_REFS_MANY - 1) {
		++*byte;
		return 0;
	}
	if ((*byte & DATA_REFS_MANY) == DATA_REFS_MANY)
		(void)number_map_get(&c->data_many, block, &count); /* is there */
	*byte |= DATA_REFS_MANY;
	return number_map_set(&c->data_many, block, count + 1);
}

int data_refs_mark(struct check *c, dblock_t block, uint64_t *ret_refs)
{
	uint8_t *byte;
	int r;

	r = data_byte(c, block, &byte);
	if (r)
		return r;
	*byte |= DATA_REFS_IN_TREE;
	*ret_refs = data_refs_value(c, block, *byte);
	return 0;
}

const uint8_t *data_refs_page(struct check *c, uint64_t page_nr)
{
	return find_page(c, page_nr);
}

uint64_t data_refs_value(const struct check *c, dblock_t block, uint8_t byte)
{
	uint64_t count = byte & DATA_REFS_MANY;

	if (count == DATA_REFS_MANY)
		(void)number_map_get(&c->data_many, block, &count); /* is there */
	return count;
}

void refs_free(struct check *c)
{
	free(c->refs);
	free(c->kinds);
	free(c->memo);
	free(c->memos);
	number_map_free(&c->many);
	number_map_free(&c->data_pages);
	number_map_free(&c->data_many);
	for (size_t i = 0; i < c->nr_chunks; i++)
		free(c->chunks[i]);
	free(c->chunks);
}
