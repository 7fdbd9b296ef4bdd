/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * meta-rig.c - both space maps on a metadata device in memory, without a superblock
 *
 * The checker reads nodes, bitmaps and the index by itself, from the format's description, so
 * that it does not share a mistake with what it checks.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "meta-rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mem-device.h"
#include "util/le.h"

/* ---- life ---- */

static void open_bm(struct meta_rig *rig)
{
	const struct block_manager_options options = { .cache_bytes = META_RIG_CACHE_BYTES };

	assert_int_equal(bm_create(rig->dev, &options, &rig->bm), 0);
}

static void drop_maps(struct meta_rig *rig)
{
	rig->data = sm_destroy(rig->data);
	rig->metadata = sm_destroy(rig->metadata);
	rig->tm = tm_destroy(rig->tm);
}

static void make_tm(struct meta_rig *rig)
{
	rig->metadata = sm_metadata_init();
	assert_non_null(rig->metadata);
	assert_int_equal(tm_create(rig->bm, rig->metadata, &rig->tm), 0);
}

static int open_maps(struct meta_rig *rig)
{
	int r;

	make_tm(rig);
	r = sm_metadata_open(rig->metadata, rig->tm, &rig->metadata_root);
	if (r)
		return r;
	return sm_disk_open(rig->tm, &rig->data_root, &rig->data);
}

void meta_rig_create(struct meta_rig *rig, mblock_t nr_metadata, dblock_t nr_data)
{
	*rig = (struct meta_rig){ 0 };
	rig->dev = mem_device_create(nr_metadata * METADATA_BLOCK_SIZE);
	tp_lock_init(&rig->root_lock, LC_meta_root, LOCK_KIND_RW);
	open_bm(rig);
	make_tm(rig);
	assert_int_equal(sm_metadata_create(rig->metadata, rig->tm, nr_metadata, 1), 0);
	assert_int_equal(sm_disk_create(rig->tm, nr_data, &rig->data), 0);
	assert_int_equal(meta_rig_commit(rig), 0);
}

void meta_rig_close(struct meta_rig *rig)
{
	drop_maps(rig);
	rig->bm = bm_destroy(rig->bm);
}

int meta_rig_open(struct meta_rig *rig)
{
	open_bm(rig);
	return open_maps(rig);
}

void meta_rig_destroy(struct meta_rig *rig)
{
	meta_rig_close(rig);
	rig->dev = io_device_close(rig->dev);
	tp_lock_destroy(&rig->root_lock);
}

int meta_rig_commit(struct meta_rig *rig)
{
	int r;

	r = sm_commit(rig->data);
	if (!r)
		r = tm_pre_commit(rig->tm);
	if (!r)
		r = tm_flush(rig->tm);
	if (r)
		return r;
	sm_copy_root(rig->metadata, &rig->metadata_root);
	sm_copy_root(rig->data, &rig->data_root);
	tm_end_transaction(rig->tm);
	return 0;
}

void meta_rig_abort(struct meta_rig *rig)
{
	int r;

	lock_meta_root(&rig->root_lock);
	drop_maps(rig);
	bm_reset(rig->bm);
	r = open_maps(rig);
	unlock_meta_root(&rig->root_lock);
	assert_int_equal(r, 0);
}

void meta_rig_reopen(struct meta_rig *rig)
{
	meta_rig_close(rig);
	assert_int_equal(meta_rig_open(rig), 0);
}

void meta_rig_damage(struct meta_rig *rig, mblock_t b, uint32_t csum_xor,
		     void (*fn)(void *data, void *ctx), void *ctx)
{
	uint8_t block[METADATA_BLOCK_SIZE];
	struct le32 csum;

	assert_int_equal(io_device_read(rig->dev, block, sizeof(block), b * METADATA_BLOCK_SIZE),
			 0);
	fn(block, ctx);
	csum = le32_make(bm_checksum(block, csum_xor));
	memcpy(block, &csum, sizeof(csum));
	assert_int_equal(io_device_write(rig->dev, block, sizeof(block), b * METADATA_BLOCK_SIZE),
			 0);
}

/* ---- the checker ---- */

struct check {
	struct meta_rig *rig;
	uint32_t *refs; /* by metadata block */
	mblock_t nr_blocks;
};

static void read_block(struct check *c, mblock_t b, uint32_t csum_xor, uint8_t *data)
{
	struct le32 csum;

	assert_true(b < c->nr_blocks);
	assert_int_equal(
		io_device_read(c->rig->dev, data, METADATA_BLOCK_SIZE, b * METADATA_BLOCK_SIZE), 0);
	memcpy(&csum, data, sizeof(csum));
	assert_int_equal(le32_get(csum), bm_checksum(data, csum_xor));
	c->refs[b]++;
}

static uint64_t u64_at(const uint8_t *data, size_t offset)
{
	struct le64 v;

	memcpy(&v, data + offset, sizeof(v));
	return le64_get(v);
}

static uint32_t u32_at(const uint8_t *data, size_t offset)
{
	struct le32 v;

	memcpy(&v, data + offset, sizeof(v));
	return le32_get(v);
}

typedef void (*entry_fn)(struct check *c, void *ctx, uint64_t key, const uint8_t *value);

static void walk_tree(struct check *c, mblock_t root, entry_fn fn, void *ctx)
{
	uint8_t node[METADATA_BLOCK_SIZE];
	uint32_t nr, max, size;

	read_block(c, root, BTREE_CSUM_XOR, node);
	nr = u32_at(node, 16);
	max = u32_at(node, 20);
	size = u32_at(node, 24);
	for (uint32_t i = 0; i < nr; i++) {
		const uint8_t *value = node + 32 + 8 * max + size * i;

		if (u32_at(node, 4) == INTERNAL_NODE)
			walk_tree(c, u64_at(value, 0), fn, ctx);
		else
			fn(c, ctx, u64_at(node, 32 + 8 * i), value);
	}
}

/* Counts of one map as they lie on disk. */
struct counts {
	uint32_t *count; /* nr_bitmaps * ENTRIES_PER_BITMAP */
	uint64_t nr_blocks, nr_threes, nr_tree, next_bitmap;
};

static void add_bitmap(struct check *c, void *ctx, uint64_t i, const uint8_t *entry)
{
	struct counts *counts = ctx;
	uint8_t data[METADATA_BLOCK_SIZE];
	uint32_t nr_free = 0, before = u32_at(entry, 12);

	assert_int_equal(i, counts->next_bitmap++);
	read_block(c, u64_at(entry, 0), BITMAP_CSUM_XOR, data);
	for (unsigned e = 0; e < ENTRIES_PER_BITMAP; e++) {
		unsigned pair = data[16 + e / 4] >> 2 * (e % 4) & 3;
		unsigned value = (pair & 1) * 2 + (pair >> 1);

		counts->count[i * ENTRIES_PER_BITMAP + e] = value;
		nr_free += !value;
		assert_true(value || e >= before);
		counts->nr_threes += value == 3;
	}
	assert_int_equal(nr_free, u32_at(entry, 8));
}

static void add_many(struct check *c, void *ctx, uint64_t b, const uint8_t *value)
{
	struct counts *counts = ctx;

	(void)c;
	assert_true(b < counts->nr_blocks);
	assert_int_equal(counts->count[b], 3);
	assert_true(u32_at(value, 0) >= 3);
	counts->count[b] = u32_at(value, 0);
	counts->nr_tree++;
}

static void counts_init(struct counts *counts, const struct disk_sm_root *root)
{
	*counts = (struct counts){ .nr_blocks = le64_get(root->nr_blocks) };
	counts->count = calloc(DIV_ROUND_UP(counts->nr_blocks, ENTRIES_PER_BITMAP) + 1,
			       ENTRIES_PER_BITMAP * sizeof(uint32_t));
	assert_non_null(counts->count);
}

static void counts_finish(struct check *c, struct counts *counts, const struct disk_sm_root *root)
{
	uint64_t nr_allocated = 0;

	assert_int_equal(counts->next_bitmap, DIV_ROUND_UP(counts->nr_blocks, ENTRIES_PER_BITMAP));
	walk_tree(c, le64_get(root->ref_count_root), add_many, counts);
	assert_int_equal(counts->nr_threes, counts->nr_tree);
	for (uint64_t b = 0; b < counts->next_bitmap * ENTRIES_PER_BITMAP; b++) {
		nr_allocated += counts->count[b] != 0;
		assert_true(b < counts->nr_blocks || !counts->count[b]);
	}
	assert_int_equal(nr_allocated, le64_get(root->nr_allocated));
}

void meta_rig_check(struct meta_rig *rig, const uint32_t *extra)
{
	const struct disk_sm_root *root = &rig->metadata_root;
	struct check c = { .rig = rig, .nr_blocks = le64_get(root->nr_blocks) };
	uint8_t index[METADATA_BLOCK_SIZE];
	struct counts metadata, data;

	c.refs = calloc(c.nr_blocks, sizeof(*c.refs));
	assert_non_null(c.refs);
	c.refs[0] = 1;
	counts_init(&metadata, root);
	read_block(&c, le64_get(root->bitmap_root), INDEX_CSUM_XOR, index);
	for (uint64_t i = 0; i < MAX_METADATA_BITMAPS; i++) {
		if (i * ENTRIES_PER_BITMAP < metadata.nr_blocks)
			add_bitmap(&c, &metadata, i, index + 16 + 16 * i);
		else
			assert_int_equal(u64_at(index, 16 + 16 * i), 0);
	}
	counts_finish(&c, &metadata, root);

	counts_init(&data, &rig->data_root);
	walk_tree(&c, le64_get(rig->data_root.bitmap_root), add_bitmap, &data);
	counts_finish(&c, &data, &rig->data_root);
	free(data.count);

	for (mblock_t b = 0; b < c.nr_blocks; b++) {
		uint32_t expected = c.refs[b] + (extra ? extra[b] : 0);

		if (metadata.count[b] != expected)
			fail_msg("metadata block %ju: count %u, %u references", (uintmax_t)b,
				 metadata.count[b], expected);
	}
	free(metadata.count);
	free(c.refs);
}
