/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test-space-map-common.c - bitmaps and index entries as they lie on disk; hints that lie
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "meta-rig.h"
#include "pdata/space-map-bitmap.h"
#include "pdata/space-map-index.h"

/* ---- encoding ---- */

static void fill(uint8_t *data, uint8_t byte)
{
	memset(data, 0xee, METADATA_BLOCK_SIZE);
	memset(data + 16, byte, METADATA_BLOCK_SIZE - 16);
}

static void even_bit_is_the_high_one(void **state)
{
	static const uint8_t bytes[] = { 0x00, 0xaa, 0x55, 0xff };
	uint8_t data[METADATA_BLOCK_SIZE];

	(void)state;
	for (unsigned value = 0; value < 4; value++) {
		fill(data, bytes[value]);
		for (unsigned e = 0; e < ENTRIES_PER_BITMAP; e++)
			assert_int_equal(bitmap_get(data, e), value);
	}
}

/* The worked examples of the format's description. */
static void entries_are_where_the_format_has_them(void **state)
{
	uint8_t data[METADATA_BLOCK_SIZE];

	(void)state;
	fill(data, 0);
	data[0x10] = 0x02;
	data[0xd2] = 0x0c;
	data[0x109] = 0x80;
	data[0x10a] = 0xff;
	assert_int_equal(bitmap_get(data, 0), 1);
	assert_int_equal(bitmap_get(data, 777), 3);
	assert_int_equal(bitmap_get(data, 998), 0);
	assert_int_equal(bitmap_get(data, 999), 1);
	assert_int_equal(bitmap_get(data, 1003), 3);
	assert_int_equal(bitmap_get(data, 1004), 0);
}

static void masks_name_free_entries(void **state)
{
	uint8_t data[METADATA_BLOCK_SIZE];
	unsigned first;

	(void)state;
	fill(data, 0xaa);
	assert_int_equal(bitmap_count_free(data, &first), 0);
	assert_int_equal(first, ENTRIES_PER_BITMAP);
	data[16 + 40] = 0x8a; /* entry 162 */
	data[4095] = 0x2a;    /* entry 16319 */
	assert_int_equal(bitmap_count_free(data, &first), 2);
	assert_int_equal(first, 162);
	assert_int_equal(bitmap_free_group(data, 2), UINT64_C(1) << 34);
	assert_int_equal(bitmap_free_group(data, 254), UINT64_C(1) << 63);
	assert_int_equal(bitmap_free_group(data, 3), 0);
	assert_int_equal(word_span(1, 33, 35), 0x14);
	assert_int_equal(word_span(1, 0, 100), BITMAP_EVEN);
	assert_int_equal(group_span(1, 66, 68), 0xc);
	assert_int_equal(group_span(1, 0, 1000), UINT64_MAX);
}

static void index_entry_is_sixteen_bytes(void **state)
{
	static const uint8_t golden[16] = { 0x0d, 0, 0, 0, 0, 0, 0, 0, 0xe5, 3, 0, 0, 1, 0, 0, 0 };
	struct disk_index_entry disk;
	struct sm_index_entry entry;

	(void)state;
	memcpy(&disk, golden, sizeof(disk));
	sm_index_entry_from_disk(&entry, &disk);
	assert_int_equal(entry.bitmap, 13);
	assert_int_equal(entry.committed_bitmap, 13);
	assert_int_equal(entry.nr_free, 997);
	assert_int_equal(entry.none_free_before, 1);
	assert_false(entry.exact || entry.dirty);
	memset(&disk, 0xff, sizeof(disk));
	sm_index_entry_to_disk(&entry, &disk);
	assert_memory_equal(&disk, golden, sizeof(golden));

	disk.nr_free = le32_make(UINT32_MAX);
	disk.none_free_before = le32_make(UINT32_MAX);
	sm_index_entry_from_disk(&entry, &disk);
	assert_int_equal(entry.nr_free, ENTRIES_PER_BITMAP);
	assert_int_equal(entry.none_free_before, 0);
}

/* ---- hints and damage, on a data map of two bitmaps ---- */

#define NR_DATA (2 * ENTRIES_PER_BITMAP)

struct two_bitmaps {
	struct meta_rig rig;
	mblock_t index_leaf, ref_count_leaf;
};

static int setup(void **state)
{
	struct two_bitmaps *t = calloc(1, sizeof(*t));

	assert_non_null(t);
	meta_rig_create(&t->rig, 4096, NR_DATA);
	t->index_leaf = le64_get(t->rig.data_root.bitmap_root);
	t->ref_count_leaf = le64_get(t->rig.data_root.ref_count_root);
	*state = t;
	return 0;
}

static int teardown(void **state)
{
	struct two_bitmaps *t = *state;

	meta_rig_destroy(&t->rig);
	free(t);
	return 0;
}

/* New value for the entry of bitmap @i; its location stays if @bitmap is 0. */
struct new_entry {
	unsigned i;
	mblock_t bitmap;
	uint32_t nr_free, none_free_before;
};

static void set_entry(void *data, void *ctx)
{
	struct new_entry *new = ctx;
	struct disk_index_entry *entry =
		(void *)((uint8_t *)data + 32 + 8 * NODE_MAX_ENTRIES(16) + 16 * new->i);

	if (new->bitmap)
		entry->blocknr = le64_make(new->bitmap);
	entry->nr_free = le32_make(new->nr_free);
	entry->none_free_before = le32_make(new->none_free_before);
}

static void damage_entry(struct two_bitmaps *t, unsigned i, mblock_t bitmap, uint32_t nr_free,
			 uint32_t none_free_before)
{
	struct new_entry new = { i, bitmap, nr_free, none_free_before };

	meta_rig_close(&t->rig);
	meta_rig_damage(&t->rig, t->index_leaf, BTREE_CSUM_XOR, set_entry, &new);
	assert_int_equal(meta_rig_open(&t->rig), 0);
}

static uint64_t allocate_all(struct two_bitmaps *t)
{
	uint64_t nr = 0, b;
	int r;

	while (!(r = sm_new_block(t->rig.data, &b)))
		nr++;
	assert_int_equal(r, -ENOSPC);
	return nr;
}

static void blocks_hidden_by_hints_are_found(void **state)
{
	struct two_bitmaps *t = *state;
	uint64_t nr;

	damage_entry(t, 0, 0, 0, ENTRIES_PER_BITMAP);
	damage_entry(t, 1, 0, 5, 16000);
	assert_int_equal(allocate_all(t), NR_DATA);
	assert_int_equal(sm_get_nr_free(t->rig.data, &nr), 0);
	assert_int_equal(nr, 0);
	assert_int_equal(meta_rig_commit(&t->rig), 0);
	meta_rig_check(&t->rig, NULL);
}

static void free_blocks_promised_by_hints_are_not_there(void **state)
{
	struct two_bitmaps *t = *state;
	uint64_t nr;

	assert_int_equal(sm_inc_blocks(t->rig.data, 0, NR_DATA), 0);
	assert_int_equal(meta_rig_commit(&t->rig), 0);
	t->index_leaf = le64_get(t->rig.data_root.bitmap_root);
	damage_entry(t, 0, 0, 77, 3);
	assert_int_equal(allocate_all(t), 0);
	/* A change that does not fit the hint makes it right again. */
	assert_int_equal(sm_dec_blocks(t->rig.data, 100, 200), 0);
	assert_int_equal(meta_rig_commit(&t->rig), 0);
	meta_rig_check(&t->rig, NULL);
	assert_int_equal(sm_get_nr_free(t->rig.data, &nr), 0);
	assert_int_equal(nr, 100);
}

static void hints_that_a_change_disproves_are_put_right(void **state)
{
	struct two_bitmaps *t = *state;

	assert_int_equal(sm_inc_blocks(t->rig.data, 0, ENTRIES_PER_BITMAP), 0);
	assert_int_equal(meta_rig_commit(&t->rig), 0);
	t->index_leaf = le64_get(t->rig.data_root.bitmap_root);
	damage_entry(t, 0, 0, ENTRIES_PER_BITMAP, 0); /* it is full */
	assert_int_equal(sm_dec_blocks(t->rig.data, 100, 200), 0);
	assert_int_equal(meta_rig_commit(&t->rig), 0);
	meta_rig_check(&t->rig, NULL);
	t->index_leaf = le64_get(t->rig.data_root.bitmap_root);
	damage_entry(t, 1, 0, 3, 0); /* it is empty */
	assert_int_equal(sm_inc_blocks(t->rig.data, ENTRIES_PER_BITMAP, ENTRIES_PER_BITMAP + 50),
			 0);
	assert_int_equal(meta_rig_commit(&t->rig), 0);
	meta_rig_check(&t->rig, NULL);
}

static void nr_allocated_too_high_hides_nothing(void **state)
{
	struct two_bitmaps *t = *state;
	uint64_t nr;

	t->rig.data_root.nr_allocated = le64_make(UINT64_MAX);
	meta_rig_reopen(&t->rig);
	assert_int_equal(sm_get_nr_free(t->rig.data, &nr), 0);
	assert_true(nr > 0);
	assert_int_equal(allocate_all(t), NR_DATA);
	assert_int_equal(meta_rig_commit(&t->rig), 0);
	meta_rig_check(&t->rig, NULL);
}

static void nr_allocated_too_low_promises_once(void **state)
{
	struct two_bitmaps *t = *state;
	uint64_t nr;

	assert_int_equal(sm_inc_blocks(t->rig.data, 0, NR_DATA), 0);
	assert_int_equal(meta_rig_commit(&t->rig), 0);
	t->rig.data_root.nr_allocated = le64_make(7);
	meta_rig_reopen(&t->rig);
	assert_int_equal(allocate_all(t), 0);
	assert_int_equal(sm_get_nr_free(t->rig.data, &nr), 0);
	assert_int_equal(nr, 0);
	assert_int_equal(sm_dec_block(t->rig.data, 9), 0);
	assert_int_equal(meta_rig_commit(&t->rig), 0);
	assert_int_equal(sm_get_nr_free(t->rig.data, &nr), 0);
	assert_int_equal(nr, 1);
	meta_rig_check(&t->rig, NULL);
}

static void bitmap_out_of_place_is_damage(void **state)
{
	static const mblock_t places[] = { 4096, UINT64_MAX, UINT64_C(1) << 40 };
	struct two_bitmaps *t = *state;
	uint32_t count;
	uint64_t b;

	for (unsigned k = 0; k < ARRAY_SIZE(places); k++) {
		damage_entry(t, 1, places[k], 5, 0);
		assert_int_equal(sm_get_count(t->rig.data, NR_DATA - 1, &count), -EUCLEAN);
		assert_int_equal(sm_inc_block(t->rig.data, NR_DATA - 1), -EUCLEAN);
		assert_int_equal(sm_get_count(t->rig.data, 0, &count), 0);
		assert_int_equal(sm_new_block(t->rig.data, &b), 0);
	}
	damage_entry(t, 1, t->index_leaf, 5, 0);
	assert_int_equal(sm_get_count(t->rig.data, NR_DATA - 1, &count), -EUCLEAN);
	damage_entry(t, 1, t->ref_count_leaf, 5, 0);
	assert_int_equal(sm_get_count(t->rig.data, NR_DATA - 1, &count), -EILSEQ);
}

static void root_for_more_bitmaps_than_there_are_is_damage(void **state)
{
	struct two_bitmaps *t = *state;
	uint32_t count;

	t->rig.data_root.nr_blocks = le64_make(UINT64_C(1) << 40);
	meta_rig_reopen(&t->rig);
	assert_int_equal(sm_get_count(t->rig.data, NR_DATA - 1, &count), 0);
	assert_int_equal(sm_get_count(t->rig.data, NR_DATA, &count), -EUCLEAN);
	assert_int_equal(sm_get_count(t->rig.data, (UINT64_C(1) << 40) - 1, &count), -EUCLEAN);

	meta_rig_close(&t->rig);
	t->rig.data_root.nr_blocks = le64_make((UINT64_C(1) << 40) + 1);
	assert_int_equal(meta_rig_open(&t->rig), -EUCLEAN);
}

static void set_first_count(void *data, void *ctx)
{
	struct le32 value = le32_make(*(uint32_t *)ctx);

	memcpy((uint8_t *)data + 32 + 8 * NODE_MAX_ENTRIES(4), &value, sizeof(value));
}

static void forget_counts(void *data, void *ctx)
{
	struct disk_node_header *header = data;

	(void)ctx;
	header->nr_entries = le32_make(0);
}

static void large_count_is_checked(void **state)
{
	struct two_bitmaps *t = *state;
	uint32_t count, max = UINT32_MAX, two = 2;

	for (int k = 0; k < 3; k++)
		assert_int_equal(sm_inc_block(t->rig.data, 4711), 0);
	assert_int_equal(meta_rig_commit(&t->rig), 0);
	t->ref_count_leaf = le64_get(t->rig.data_root.ref_count_root);

	meta_rig_close(&t->rig);
	meta_rig_damage(&t->rig, t->ref_count_leaf, BTREE_CSUM_XOR, set_first_count, &max);
	assert_int_equal(meta_rig_open(&t->rig), 0);
	assert_int_equal(sm_get_count(t->rig.data, 4711, &count), 0);
	assert_int_equal(count, UINT32_MAX);
	assert_int_equal(sm_inc_block(t->rig.data, 4711), -EINVAL);

	meta_rig_close(&t->rig);
	meta_rig_damage(&t->rig, t->ref_count_leaf, BTREE_CSUM_XOR, set_first_count, &two);
	assert_int_equal(meta_rig_open(&t->rig), 0);
	assert_int_equal(sm_get_count(t->rig.data, 4711, &count), -EUCLEAN);

	meta_rig_close(&t->rig);
	meta_rig_damage(&t->rig, t->ref_count_leaf, BTREE_CSUM_XOR, forget_counts, NULL);
	assert_int_equal(meta_rig_open(&t->rig), 0);
	assert_int_equal(sm_get_count(t->rig.data, 4711, &count), -EUCLEAN);
	assert_int_equal(sm_dec_block(t->rig.data, 4711), -EUCLEAN);
}

#define TWO(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(even_bit_is_the_high_one),
		cmocka_unit_test(entries_are_where_the_format_has_them),
		cmocka_unit_test(masks_name_free_entries),
		cmocka_unit_test(index_entry_is_sixteen_bytes),
		TWO(blocks_hidden_by_hints_are_found),
		TWO(free_blocks_promised_by_hints_are_not_there),
		TWO(hints_that_a_change_disproves_are_put_right),
		TWO(nr_allocated_too_high_hides_nothing),
		TWO(nr_allocated_too_low_promises_once),
		TWO(bitmap_out_of_place_is_damage),
		TWO(root_for_more_bitmaps_than_there_are_is_damage),
		TWO(large_count_is_checked),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("space-map-common", tests, NULL, NULL);
}
