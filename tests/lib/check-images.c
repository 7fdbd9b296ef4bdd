/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * check-images.c - images for the checker's tests, written by the engine
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "check-rig.h"
#include "mem-device.h"
#include "thin-fixture.h"
#include "thin/thin-metadata.h"
#include "util/le.h"

static struct thin_metadata *create(struct io_device *meta, dblock_t nr_data)
{
	const struct thin_metadata_options options = { .cache_bytes = 4 * MIB };
	struct thin_metadata *tmd = NULL;

	assert_int_equal(thin_metadata_format(meta, SECTORS, NULL), 0);
	assert_int_equal(thin_metadata_open(meta, &options, &tmd, NULL), 0);
	assert_int_equal(thin_metadata_resize_data(tmd, nr_data), 0);
	assert_int_equal(thin_metadata_commit(tmd), 0);
	return tmd;
}

static void map_every(struct thin_metadata *tmd, thin_id_t id, vblock_t begin, vblock_t end,
		      vblock_t step)
{
	struct thin_device *td = NULL;

	assert_int_equal(thin_device_open(tmd, id, &td), 0);
	for (vblock_t v = begin; v < end; v += step)
		(void)write_block(tmd, td, v); /* which one it is, is all the same */
	thin_device_close(td);
}

static void snapshot(struct thin_metadata *tmd, thin_id_t id, thin_id_t origin)
{
	assert_int_equal(thin_metadata_create_snap(tmd, id, origin), 0);
}

/* The count of a block in a bitmap, and a change of it. */
static void set_count(void *image, mblock_t block, unsigned count)
{
	const struct thin_disk_superblock *sb = image;
	const struct disk_sm_root *root = (const void *)sb->metadata_sm_root;
	const struct disk_metadata_index *index = image_block(image, le64_get(root->bitmap_root));
	uint8_t *bitmap = image_block(image, le64_get(index->index[0].blocknr));
	unsigned shift = block % 4 * 2;
	uint8_t *byte = bitmap + sizeof(struct disk_bitmap_header) + block / 4;

	*byte = (uint8_t)((*byte & ~(3u << shift)) | (count >> 1 & 1) << shift |
			  (count & 1) << (shift + 1));
	seal(bitmap, BITMAP_CSUM_XOR);
}

static mblock_t find_free(void *image, mblock_t nr)
{
	static const uint8_t zeros[METADATA_BLOCK_SIZE];

	for (mblock_t b = nr; b--;)
		if (!memcmp(image_block(image, b), zeros, sizeof(zeros)))
			return b;
	fail_msg("no block is free");
	return 0;
}

/* As a reservation does it: a copy of the superblock, and one more count for each root. */
static void hold_snapshot(struct io_device *meta)
{
	void *image = mem_device_data(meta);
	struct thin_disk_superblock *sb = image, *held;
	struct disk_sm_root *root = (void *)sb->metadata_sm_root;
	struct disk_metadata_index *index = image_block(image, le64_get(root->bitmap_root));
	mblock_t at = find_free(image, io_device_size(meta) / METADATA_BLOCK_SIZE);

	set_count(image, at, 1);
	set_count(image, le64_get(sb->data_mapping_root), 2);
	set_count(image, le64_get(sb->device_details_root), 2);
	index->index[0].nr_free = le32_make(le32_get(index->index[0].nr_free) - 1);
	seal(index, INDEX_CSUM_XOR);
	root->nr_allocated = le64_make(le64_get(root->nr_allocated) + 1);
	sb->held_root = le64_make(at);
	seal(sb, SUPERBLOCK_CSUM_XOR);

	held = image_block(image, at);
	memcpy(held, sb, sizeof(*held));
	held->blocknr = le64_make(at);
	held->held_root = le64_make(0);
	memset(held->data_sm_root, 0, sizeof(held->data_sm_root));
	memset(held->metadata_sm_root, 0, sizeof(held->metadata_sm_root));
	seal(held, SUPERBLOCK_CSUM_XOR);
	mem_device_touch(meta, 0, io_device_size(meta));
}

struct io_device *rich_image(void)
{
	const struct thin_metadata_options options = { .cache_bytes = 4 * MIB };
	struct io_device *meta = mem_device_create(4 * MIB);
	struct thin_metadata *tmd = create(meta, RICH_DATA_BLOCKS);
	struct thin_device *td = NULL;
	vblock_t next;

	/* Volumes of several leaves, which share some of them and most of their data blocks. */
	assert_int_equal(thin_metadata_create_thin(tmd, 1), 0);
	map_every(tmd, 1, 0, 2400, 3);
	for (thin_id_t id = 2; id <= 5; id++)
		snapshot(tmd, id, 1);
	assert_int_equal(thin_metadata_commit(tmd), 0);
	for (thin_id_t id = 2; id <= 4; id++)
		map_every(tmd, id, id, 1700, 200);
	snapshot(tmd, 6, 2);
	map_every(tmd, 1, 1, 2400, 300);
	assert_int_equal(thin_device_open(tmd, 6, &td), 0);
	assert_int_equal(thin_remove_range(td, 100, 130, UINT64_MAX, &next), 0);
	thin_device_close(td);

	/* Many that share a root, and so many that their ids take two levels. */
	assert_int_equal(thin_metadata_create_thin(tmd, 10), 0);
	map_every(tmd, 10, 5, 10, 1);
	for (thin_id_t id = 11; id < 290; id++)
		snapshot(tmd, id, 10);
	assert_int_equal(thin_metadata_create_thin(tmd, THIN_ID_MAX), 0);
	assert_int_equal(thin_metadata_set_transaction_id(tmd, 0, 7), 0);
	assert_int_equal(thin_metadata_commit(tmd), 0);
	assert_int_equal(thin_metadata_close(tmd), 0);
	hold_snapshot(meta);

	/* The volumes go on under the metadata snapshot. */
	assert_int_equal(thin_metadata_open(meta, &options, &tmd, NULL), 0);
	map_every(tmd, 2, 7, 1000, 400);
	assert_int_equal(thin_metadata_delete_thin(tmd, 289), 0);
	snapshot(tmd, 300, 3);
	assert_int_equal(thin_metadata_commit(tmd), 0);
	assert_int_equal(thin_metadata_close(tmd), 0);
	return meta;
}

struct io_device *large_image(void)
{
	struct io_device *meta = mem_device_create(4 * MIB);
	struct thin_metadata *tmd = create(meta, UINT64_C(183) * ENTRIES_PER_BITMAP - 1000);

	assert_int_equal(thin_metadata_create_thin(tmd, 1), 0);
	map_every(tmd, 1, 0, 20, 1);
	assert_int_equal(thin_metadata_commit(tmd), 0);
	assert_int_equal(thin_metadata_close(tmd), 0);
	return meta;
}

struct io_device *crowded_image(void)
{
	struct io_device *meta = mem_device_create(4 * MIB);
	struct thin_metadata *tmd = create(meta, RICH_DATA_BLOCKS);

	assert_int_equal(thin_metadata_create_thin(tmd, 0), 0);
	map_every(tmd, 0, 0, 5, 1);
	for (thin_id_t id = 1; id < 300; id++) {
		snapshot(tmd, id, 0);
		map_every(tmd, id, 0, 1, 1); /* makes the leaf its own */
	}
	assert_int_equal(thin_metadata_commit(tmd), 0);
	assert_int_equal(thin_metadata_close(tmd), 0);
	return meta;
}
