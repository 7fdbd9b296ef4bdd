/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test-space-map-metadata.c - the map that counts the blocks it is made of
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "mem-device.h"
#include "meta-rig.h"
#include "pdata/btree.h"
#include "util/le.h"

#define MIB UINT64_C(1048576)
#define BLOCKS_PER_MIB (MIB / METADATA_BLOCK_SIZE)

/* ---- pins ---- */

/* All that is left; returns how many. */
static unsigned take_all(struct meta_rig *rig)
{
	unsigned nr = 0;
	uint64_t b;

	while (!sm_new_block(rig->metadata, &b))
		nr++;
	return nr;
}

/* The last resort, when nobody has looked at what is free. */
static void an_allocation_gets_what_is_pinned_rather_than_nothing(void **state)
{
	struct meta_rig rig;
	uint64_t b, free_blocks;
	uint32_t pin;

	(void)state;
	meta_rig_create(&rig, 512, 0);
	assert_int_equal(sm_new_block(rig.metadata, &b), 0);
	assert_int_equal(meta_rig_commit(&rig), 0);
	pin = sm_metadata_pin(rig.metadata);
	assert_int_equal(sm_dec_block(rig.metadata, b), 0);
	assert_int_equal(meta_rig_commit(&rig), 0);
	assert_int_equal(sm_get_nr_free(rig.metadata, &free_blocks), 0);
	assert_true(take_all(&rig) > free_blocks);
	assert_false(sm_metadata_unpin(rig.metadata, pin));
	meta_rig_destroy(&rig);
}

/* ---- the layout of a fresh pool ---- */

static uint32_t csum_at(struct meta_rig *rig, mblock_t b)
{
	uint8_t data[METADATA_BLOCK_SIZE];
	struct le32 csum;

	assert_int_equal(io_device_read(rig->dev, data, sizeof(data), b * METADATA_BLOCK_SIZE), 0);
	memcpy(&csum, data, sizeof(csum));
	return le32_get(csum);
}

/* Blocks 1 to 7 of a fresh 16 MiB pool, byte for byte (by their checksums). */
static void fresh_pool_is_the_golden_image(void **state)
{
	static const uint32_t golden[] = { 0x18E0660A, 0xC360E452, 0xA19F6375, 0x787F52C8,
					   0x41BFAA04, 0xCB3DDA35, 0xB1C81346 };
	struct btree_info top = { .levels = 1, .value_type.size = 8 };
	struct btree_info details = { .levels = 1, .value_type.size = 24 };
	struct meta_rig rig;
	mblock_t root;

	(void)state;
	/* As format does it: all in the first transaction. */
	rig = (struct meta_rig){ .dev = mem_device_create(16 * MIB) };
	assert_int_equal(
		bm_create(rig.dev,
			  &(struct block_manager_options){ .cache_bytes = META_RIG_CACHE_BYTES },
			  &rig.bm),
		0);
	rig.metadata = sm_metadata_init();
	assert_int_equal(tm_create(rig.bm, rig.metadata, &rig.tm), 0);
	assert_int_equal(sm_metadata_create(rig.metadata, rig.tm, 16 * BLOCKS_PER_MIB, 1), 0);
	assert_int_equal(sm_disk_create(rig.tm, 0, &rig.data), 0);
	top.tm = details.tm = rig.tm;
	assert_int_equal(btree_empty(&top, &root), 0);
	assert_int_equal(btree_empty(&details, &root), 0);
	assert_int_equal(meta_rig_commit(&rig), 0);
	assert_int_equal(le64_get(rig.metadata_root.nr_allocated), 8);
	assert_int_equal(le64_get(rig.metadata_root.bitmap_root), 1);
	assert_int_equal(le64_get(rig.metadata_root.ref_count_root), 2);
	assert_int_equal(le64_get(rig.data_root.bitmap_root), 4);
	assert_int_equal(le64_get(rig.data_root.ref_count_root), 5);
	for (unsigned k = 0; k < ARRAY_SIZE(golden); k++)
		assert_int_equal(csum_at(&rig, 1 + k), golden[k]);
	meta_rig_close(&rig);
	io_device_close(rig.dev);
}

static void bitmaps_follow_the_ref_count_leaf(void **state)
{
	struct meta_rig rig;

	(void)state;
	meta_rig_create(&rig, 3 * ENTRIES_PER_BITMAP + 1, 0);
	assert_int_equal(le64_get(rig.metadata_root.nr_allocated), 1 + 1 + 1 + 4 + 2);
	meta_rig_check(&rig, NULL);
	meta_rig_destroy(&rig);
}

static void largest_device_is_counted(void **state)
{
	struct meta_rig rig;
	uint32_t count;

	(void)state;
	meta_rig_create(&rig, MAX_METADATA_BLOCKS, 0);
	assert_int_equal(sm_inc_block(rig.metadata, MAX_METADATA_BLOCKS - 1), 0);
	assert_int_equal(meta_rig_commit(&rig), 0);
	meta_rig_reopen(&rig);
	assert_int_equal(sm_get_count(rig.metadata, MAX_METADATA_BLOCKS - 1, &count), 0);
	assert_int_equal(count, 1);
	assert_int_equal(sm_extend(rig.metadata, 1), -EINVAL);
	meta_rig_destroy(&rig);
}

static void too_small_a_device_is_enospc(void **state)
{
	struct meta_rig rig;

	(void)state;
	for (mblock_t nr = 1; nr <= 3; nr++) {
		rig = (struct meta_rig){ .dev = mem_device_create(nr * METADATA_BLOCK_SIZE) };
		assert_int_equal(bm_create(rig.dev,
					   &(struct block_manager_options){
						   .cache_bytes = META_RIG_CACHE_BYTES },
					   &rig.bm),
				 0);
		rig.metadata = sm_metadata_init();
		assert_int_equal(tm_create(rig.bm, rig.metadata, &rig.tm), 0);
		assert_int_equal(sm_metadata_create(rig.metadata, rig.tm, nr, 1), -ENOSPC);
		meta_rig_close(&rig);
		io_device_close(rig.dev);
	}
}

/* ---- filling ---- */

struct filled {
	struct meta_rig rig;
	uint32_t *now, *committed; /* our own references, by block */
	size_t size;
};

static void filled_init(struct filled *f, mblock_t nr_blocks)
{
	f->size = 200 * BLOCKS_PER_MIB * sizeof(uint32_t);
	f->now = calloc(1, f->size);
	f->committed = calloc(1, f->size);
	assert_true(f->now && f->committed);
	meta_rig_create(&f->rig, nr_blocks, 0);
}

static void filled_exit(struct filled *f)
{
	meta_rig_destroy(&f->rig);
	free(f->now);
	free(f->committed);
}

static int filled_commit(struct filled *f)
{
	int r = meta_rig_commit(&f->rig);

	if (!r) {
		memcpy(f->committed, f->now, f->size);
		meta_rig_check(&f->rig, f->committed);
	}
	return r;
}

static void filled_abort(struct filled *f)
{
	meta_rig_abort(&f->rig);
	memcpy(f->now, f->committed, f->size);
}

/* Blocks with one to five users, so that the tree of large counts grows as well. */
static int filled_allocate(struct filled *f, unsigned nr)
{
	mblock_t b;
	int r = 0;

	for (unsigned k = 0; k < nr && !r; k++) {
		uint32_t nr_users = 1 + k % 5;

		r = sm_new_block(f->rig.metadata, &b);
		for (uint32_t n = 1; !r && n < nr_users; n++)
			r = sm_inc_block(f->rig.metadata, b);
		if (!r) {
			assert_int_equal(f->now[b], 0);
			assert_int_equal(f->committed[b], 0);
			f->now[b] += nr_users;
		}
	}
	return r;
}

static void filled_to_the_brim(struct filled *f)
{
	int r;

	do {
		r = filled_allocate(f, 500);
		if (!r)
			r = filled_commit(f);
	} while (!r);
	assert_int_equal(r, -ENOSPC);
	/* Broken until the abort, and nothing gets through. */
	assert_int_not_equal(meta_rig_commit(&f->rig), 0);
	filled_abort(f);
	/* What is left now is less than a batch: take it one by one. */
	do {
		r = filled_allocate(f, 1);
		if (!r)
			r = filled_commit(f);
	} while (!r);
	assert_int_equal(r, -ENOSPC);
	filled_abort(f);
}

static void free_some(struct filled *f, unsigned nr)
{
	for (mblock_t b = 0; nr; b++) {
		for (; f->now[b]; f->now[b]--)
			assert_int_equal(sm_dec_block(f->rig.metadata, b), 0);
		nr -= f->committed[b] != 0;
	}
}

static void device_fills_and_recovers_by_abort(void **state)
{
	struct filled f;
	uint64_t nr_free;

	(void)state;
	filled_init(&f, 2 * ENTRIES_PER_BITMAP);
	filled_to_the_brim(&f);
	assert_int_equal(sm_get_nr_free(f.rig.metadata, &nr_free), 0);
	assert_true(nr_free < 20);
	meta_rig_check(&f.rig, f.committed);
	filled_exit(&f);
}

static void map_with_little_room_goes_round(void **state)
{
	struct filled f;
	uint64_t nr_free;

	(void)state;
	filled_init(&f, 2000);
	/* A change of large counts copies bitmap, index and up to three nodes, twice around. */
	do {
		assert_int_equal(filled_allocate(&f, 5), 0);
		assert_int_equal(filled_commit(&f), 0);
		assert_int_equal(sm_get_nr_free(f.rig.metadata, &nr_free), 0);
	} while (nr_free > 20);
	for (unsigned k = 0; k < 1000; k++) {
		free_some(&f, 3);
		assert_int_equal(filled_commit(&f), 0);
		assert_int_equal(filled_allocate(&f, 3), 0);
		assert_int_equal(filled_commit(&f), 0);
	}
	filled_exit(&f);
}

/* All blocks of the bitmap have one user, but for entry 100. */
static void use_all_but_one(void *data, void *ctx)
{
	(void)ctx;
	memset((uint8_t *)data + sizeof(struct disk_bitmap_header), 0xaa,
	       METADATA_BLOCK_SIZE - sizeof(struct disk_bitmap_header));
	((uint8_t *)data)[sizeof(struct disk_bitmap_header) + 25] = 0xa8;
}

/*
 * One free block under each of two bitmaps: copying the first bitmap takes the block under the
 * second, and counting that needs a third block.
 */
static void two_free_blocks_are_not_enough(void **state)
{
	struct meta_rig rig;
	mblock_t b;

	(void)state;
	meta_rig_create(&rig, 2 * ENTRIES_PER_BITMAP, 0);
	meta_rig_close(&rig);
	meta_rig_damage(&rig, 3, BITMAP_CSUM_XOR, use_all_but_one, NULL);
	meta_rig_damage(&rig, 4, BITMAP_CSUM_XOR, use_all_but_one, NULL);
	assert_int_equal(meta_rig_open(&rig), 0);
	assert_int_equal(sm_new_block(rig.metadata, &b), -ENOSPC);
	assert_int_equal(sm_inc_block(rig.metadata, 9), -ENOSPC);
	meta_rig_destroy(&rig);
}

/* ---- extending ---- */

static void grow_device(struct meta_rig *rig, mblock_t nr_blocks)
{
	assert_int_equal(io_device_resize(rig->dev, nr_blocks * METADATA_BLOCK_SIZE), 0);
}

static void full_device_can_be_extended(void **state)
{
	struct filled f;
	uint64_t nr, from = 24 * BLOCKS_PER_MIB, to = 200 * BLOCKS_PER_MIB;

	(void)state;
	filled_init(&f, from);
	filled_to_the_brim(&f);
	assert_int_equal(sm_extend(f.rig.metadata, to - from), -EINVAL); /* device as before */
	grow_device(&f.rig, to);
	assert_int_equal(sm_extend(f.rig.metadata, to - from), 0);
	assert_int_equal(sm_get_nr_blocks(f.rig.metadata, &nr), 0);
	assert_int_equal(nr, from);
	assert_int_equal(filled_allocate(&f, 100), 0);
	assert_int_equal(filled_commit(&f), 0);
	assert_int_equal(sm_get_nr_blocks(f.rig.metadata, &nr), 0);
	assert_int_equal(nr, to);
	assert_int_equal(sm_get_nr_free(f.rig.metadata, &nr), 0);
	assert_in_range(nr, to - from - 200, to - from);
	meta_rig_reopen(&f.rig);
	assert_int_equal(filled_allocate(&f, 30000), 0);
	assert_int_equal(filled_commit(&f), 0);
	filled_exit(&f);
}

static void extension_of_any_size_keeps_counts_right(void **state)
{
	static const uint64_t extra[] = { 1, 700, 1023, 1024, 16320, 1, 15000, 40000, 900 };
	struct filled f;
	mblock_t nr_blocks = ENTRIES_PER_BITMAP - 100;

	(void)state;
	filled_init(&f, nr_blocks);
	for (unsigned k = 0; k < ARRAY_SIZE(extra); k++) {
		if (nr_blocks + extra[k] > 200 * BLOCKS_PER_MIB)
			break;
		if (k % 2)
			assert_int_equal(filled_allocate(&f, 50), 0);
		nr_blocks += extra[k];
		grow_device(&f.rig, nr_blocks);
		assert_int_equal(sm_extend(f.rig.metadata, extra[k]), 0);
		assert_int_equal(filled_allocate(&f, 100), 0);
		assert_int_equal(filled_commit(&f), 0);
	}
	assert_true(nr_blocks > 50000);
	filled_exit(&f);
}

static void extension_goes_with_an_abort(void **state)
{
	struct filled f;
	uint64_t nr;

	(void)state;
	filled_init(&f, 4096);
	assert_int_equal(filled_allocate(&f, 100), 0);
	assert_int_equal(filled_commit(&f), 0);
	grow_device(&f.rig, 50000);
	assert_int_equal(sm_extend(f.rig.metadata, 50000 - 4096), 0);
	filled_abort(&f);
	assert_int_equal(sm_get_nr_blocks(f.rig.metadata, &nr), 0);
	assert_int_equal(nr, 4096);
	assert_int_equal(sm_extend(f.rig.metadata, 50000 - 4096), 0);
	assert_int_equal(filled_commit(&f), 0);
	filled_exit(&f);
}

/* ---- low space ---- */

static void count_call(void *ctx)
{
	(*(unsigned *)ctx)++;
}

static void threshold_is_told_once_a_crossing(void **state)
{
	struct filled f;
	unsigned nr_calls = 0;
	uint64_t nr_free;
	mblock_t b;

	(void)state;
	filled_init(&f, 4096);
	assert_int_equal(sm_get_nr_free(f.rig.metadata, &nr_free), 0);
	sm_metadata_set_threshold(f.rig.metadata, nr_free - 300, count_call, &nr_calls);
	assert_int_equal(filled_allocate(&f, 200), 0);
	assert_int_equal(nr_calls, 0);
	assert_int_equal(filled_allocate(&f, 200), 0);
	assert_int_equal(nr_calls, 1);
	assert_int_equal(filled_commit(&f), 0);
	assert_int_equal(filled_allocate(&f, 10), 0);
	assert_int_equal(nr_calls, 1);
	free_some(&f, 300);
	assert_int_equal(filled_commit(&f), 0);
	assert_int_equal(nr_calls, 1);
	assert_int_equal(filled_allocate(&f, 300), 0);
	assert_int_equal(nr_calls, 2);
	sm_metadata_set_threshold(f.rig.metadata, 0, NULL, NULL);
	assert_int_equal(sm_new_block(f.rig.metadata, &b), 0);
	filled_exit(&f);
}

/* ---- damage ---- */

static void point_at(void *data, void *ctx)
{
	struct disk_metadata_index *index = data;

	index->index[0].blocknr = le64_make(*(mblock_t *)ctx);
}

static void index_that_points_anywhere_is_damage(void **state)
{
	static mblock_t places[] = { 0, 1, 2, 4, 2500, 4096, UINT64_MAX };
	struct meta_rig rig;
	uint32_t count;
	mblock_t b;

	(void)state;
	meta_rig_create(&rig, 4096, 0);
	for (unsigned k = 0; k < ARRAY_SIZE(places); k++) {
		meta_rig_close(&rig);
		meta_rig_damage(&rig, 1, INDEX_CSUM_XOR, point_at, &places[k]);
		assert_int_equal(meta_rig_open(&rig), 0);
		assert_true(sm_get_count(rig.metadata, 1, &count) < 0);
		assert_true(sm_inc_block(rig.metadata, 1) < 0);
		assert_true(sm_new_block(rig.metadata, &b) < 0);
		assert_true(sm_dec_block(rig.metadata, 1) < 0);
	}
	meta_rig_destroy(&rig);
}

/* Every block is said to be free, the bitmap itself among them. */
static void forget_all_users(void *data, void *ctx)
{
	(void)ctx;
	memset((uint8_t *)data + sizeof(struct disk_bitmap_header), 0,
	       METADATA_BLOCK_SIZE - sizeof(struct disk_bitmap_header));
}

static void bitmap_that_forgets_itself_is_damage(void **state)
{
	struct meta_rig rig;
	mblock_t b;
	int r = 0;

	(void)state;
	meta_rig_create(&rig, 4096, 0);
	meta_rig_close(&rig);
	meta_rig_damage(&rig, 3, BITMAP_CSUM_XOR, forget_all_users, NULL);
	assert_int_equal(meta_rig_open(&rig), 0);
	for (unsigned k = 0; k < 20 && !r; k++)
		r = sm_new_block(rig.metadata, &b);
	if (!r)
		r = meta_rig_commit(&rig);
	assert_true(r < 0);
	meta_rig_destroy(&rig);
}

static void root_larger_than_the_device_is_refused(void **state)
{
	struct meta_rig rig;

	(void)state;
	meta_rig_create(&rig, 4096, 0);
	meta_rig_close(&rig);
	rig.metadata_root.nr_blocks = le64_make(4097);
	assert_int_equal(meta_rig_open(&rig), -EUCLEAN);
	meta_rig_close(&rig);
	rig.metadata_root.nr_blocks = le64_make(0);
	assert_int_equal(meta_rig_open(&rig), -EUCLEAN);
	meta_rig_close(&rig);
	rig.metadata_root.nr_blocks = le64_make(4096);
	rig.metadata_root.bitmap_root = le64_make(UINT64_MAX);
	assert_int_equal(meta_rig_open(&rig), -EUCLEAN);
	meta_rig_destroy(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fresh_pool_is_the_golden_image),
		cmocka_unit_test(bitmaps_follow_the_ref_count_leaf),
		cmocka_unit_test(largest_device_is_counted),
		cmocka_unit_test(too_small_a_device_is_enospc),
		cmocka_unit_test(device_fills_and_recovers_by_abort),
		cmocka_unit_test(map_with_little_room_goes_round),
		cmocka_unit_test(two_free_blocks_are_not_enough),
		cmocka_unit_test(full_device_can_be_extended),
		cmocka_unit_test(extension_of_any_size_keeps_counts_right),
		cmocka_unit_test(extension_goes_with_an_abort),
		cmocka_unit_test(an_allocation_gets_what_is_pinned_rather_than_nothing),
		cmocka_unit_test(threshold_is_told_once_a_crossing),
		cmocka_unit_test(index_that_points_anywhere_is_damage),
		cmocka_unit_test(bitmap_that_forgets_itself_is_damage),
		cmocka_unit_test(root_larger_than_the_device_is_refused),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("space-map-metadata", tests, NULL, NULL);
}
