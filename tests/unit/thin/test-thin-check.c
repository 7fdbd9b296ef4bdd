/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests of the checker: what is right is called right, and what is wrong gets its line.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check-rig.h"
#include "fault-device.h"
#include "mem-device.h"
#include "thin-fixture.h"
#include "thin/thin-metadata.h"
#include "util/le.h"

#define UNKNOWN UINT64_MAX

static void assert_lines(struct io_device *meta, uint64_t data_bytes, const char *lines)
{
	struct report report;

	check_image(meta, data_bytes, &report);
	assert_int_equal(report.r, 0);
	assert_string_equal(report.lines ? report.lines : "", lines);
	report_free(&report);
}

/* ---- what is right ---- */

static void fresh_metadata_is_clean(void **state)
{
	struct io_device *meta = mem_device_create(16 * MIB);
	struct report report;

	(void)state;
	assert_int_equal(thin_metadata_format(meta, 128, NULL), 0);
	check_image(meta, 0, &report);
	assert_true(report_is_clean(&report));
	assert_int_equal(report.result.nr_devices, 0);
	assert_int_equal(report.result.nr_metadata_used, 8);
	assert_int_equal(report.result.nr_data_used, 0);
	report_free(&report);
	io_device_close(meta);
}

static void many_users_of_a_block_are_counted(void **state)
{
	struct io_device *meta = crowded_image();

	(void)state;
	assert_lines(meta, UNKNOWN, "");
	io_device_close(meta);
}

struct kernel_pool {
	const char *name;
	uint64_t data_bytes;
	const char *lines;
	bool needs_check;
	uint64_t transaction_id, nr_devices;
};

static const struct kernel_pool kernel_pools[] = {
	{ .name = "simple64k", .data_bytes = 268435456, .lines = "", .nr_devices = 1 },
	{
		.name = "snapshots128k",
		.data_bytes = 268435456,
		.lines = "",
		.transaction_id = 42,
		.nr_devices = 5,
	},
	{ .name = "fs512k", .data_bytes = 536870912, .lines = "", .nr_devices = 6 },
	{
		.name = "lvm",
		.data_bytes = 201326592,
		.lines = "",
		.transaction_id = 7,
		.nr_devices = 5,
	},
	{ .name = "many300", .data_bytes = 67108864, .lines = "", .nr_devices = 280 },
	{ .name = "discard192k", .data_bytes = 104857600, .lines = "", .nr_devices = 2 },
	{ .name = "metasnap", .data_bytes = 67108864, .lines = "", .nr_devices = 3 },
	{ .name = "nospace", .data_bytes = 16777216, .lines = "", .nr_devices = 2 },
	{
		.name = "needscheck",
		.data_bytes = 67108864,
		.lines = "",
		.needs_check = true,
		.nr_devices = 1,
	},
	{
		.name = "metafull",
		.data_bytes = 536870912,
		.lines = "leak: data block 2221: counted 1, but nothing refers to it\n",
		.needs_check = true,
		.nr_devices = 1,
	},
};

/* One of kernel_pools, by cmocka's initial state. */
static void pool_of_the_kernel_is_judged_right(void **state)
{
	const struct kernel_pool *pool = *state;
	struct io_device *meta = fixture_image(pool->name);
	struct report report;

	check_image(meta, pool->data_bytes, &report);
	assert_int_equal(report.r, 0);
	assert_string_equal(report.lines ? report.lines : "", pool->lines);
	assert_int_equal(report.result.needs_check, pool->needs_check);
	assert_int_equal(report.result.transaction_id, pool->transaction_id);
	assert_int_equal(report.result.nr_devices, pool->nr_devices);
	report_free(&report);
	io_device_close(meta);
}

#define POOL(i) \
	{ \
		.name = kernel_pools[i].name, .test_func = pool_of_the_kernel_is_judged_right, \
		.initial_state = (void *)(uintptr_t)&kernel_pools[i], \
	}
_Static_assert(ARRAY_SIZE(kernel_pools) == 10, "each has its line in main()");

/* ---- what is not there ---- */

static void blank_device_was_never_formatted(void **state)
{
	struct io_device *meta = mem_device_create(1 * MIB);

	(void)state;
	assert_lines(meta, UNKNOWN, "damage: superblock: all zero: this was never formatted\n");
	io_device_close(meta);
}

static void tiny_device_has_no_superblock(void **state)
{
	struct io_device *meta = mem_device_create(4095);

	(void)state;
	assert_lines(meta, UNKNOWN, "damage: superblock: the device is too small to have one\n");
	io_device_close(meta);
}

static void unreadable_block_is_an_error(void **state)
{
	struct io_device *mem = fixture_image("simple64k");
	struct io_device *meta = fault_device_create(mem);
	struct report report;

	(void)state;
	fault_device_fail_nth(meta, FAULT_OP(IO_READ), 3);
	check_image(meta, UNKNOWN, &report);
	assert_int_equal(report.r, -EIO);
	report_free(&report);
	io_device_close(meta);
}

/* ---- what is wrong ---- */

struct damaged {
	struct io_device *meta;
	uint8_t *image;
	struct thin_disk_superblock *sb;
};

static int damaged_setup(void **state)
{
	struct damaged *d = calloc(1, sizeof(*d));

	d->meta = rich_image();
	d->image = mem_device_data(d->meta);
	d->sb = (void *)d->image;
	*state = d;
	return 0;
}

static int damaged_teardown(void **state)
{
	struct damaged *d = *state;

	io_device_close(d->meta);
	free(d);
	return 0;
}
#define DAMAGED(name) cmocka_unit_test_setup_teardown(name, damaged_setup, damaged_teardown)

static struct disk_node_header *node_at(struct damaged *d, uint64_t block)
{
	return image_block(d->image, block);
}

static struct le64 *keys_of(struct disk_node_header *node)
{
	return (void *)(node + 1);
}

/* Of nodes with values of 8 bytes. */
static struct le64 *values_of(struct disk_node_header *node)
{
	return keys_of(node) + NODE_MAX_ENTRIES(8);
}

/* Root of the tree of a device from 1 to 6: all are in the first leaf of the top-level tree. */
static mblock_t device_root(struct damaged *d, unsigned id)
{
	struct disk_node_header *node = node_at(d, le64_get(d->sb->data_mapping_root));

	node = node_at(d, le64_get(values_of(node)[0]));
	assert_int_equal(le64_get(keys_of(node)[id - 1]), id);
	return le64_get(values_of(node)[id - 1]);
}

static void reseal(struct damaged *d, mblock_t block)
{
	seal(image_block(d->image, block), block ? BTREE_CSUM_XOR : SUPERBLOCK_CSUM_XOR);
}

static void *data_bitmap(struct damaged *d)
{
	struct disk_sm_root *root = (void *)d->sb->data_sm_root;
	struct disk_node_header *node = node_at(d, le64_get(root->bitmap_root));
	struct disk_index_entry *entries =
		(void *)(keys_of(node) + NODE_MAX_ENTRIES(sizeof(*entries)));

	return image_block(d->image, le64_get(entries[0].blocknr));
}

/* One of the lines is exactly @line. */
static void assert_says(struct damaged *d, const char *fmt, ...) TP_PRINTF(2, 3);
static void assert_says(struct damaged *d, const char *fmt, ...)
{
	char line[300] = "\n", *lines;
	struct report report;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line + 1, sizeof(line) - 2, fmt, ap);
	va_end(ap);
	strcat(line, "\n");
	check_image(d->meta, UNKNOWN, &report);
	assert_int_equal(report.r, 0);
	assert_int_not_equal(asprintf(&lines, "\n%s", report.lines ? report.lines : ""), -1);
	if (!strstr(lines, line))
		fail_msg("no line%sin:%s", line, lines);
	free(lines);
	report_free(&report);
}

static void disorder_is_told_with_its_place(void **state)
{
	struct damaged *d = *state;
	mblock_t leaf = le64_get(values_of(node_at(d, device_root(d, 1)))[1]);
	struct le64 *keys = keys_of(node_at(d, leaf));
	uint64_t first = le64_get(keys[3]), second = le64_get(keys[4]);

	keys[3] = le64_make(second);
	keys[4] = le64_make(first);
	reseal(d, leaf);
	assert_says(d,
		    "damage: mapping leaf %" PRIu64 " of device 1: key %" PRIu64
		    " after key %" PRIu64,
		    leaf, first, second);
}

static void neighbouring_leaks_are_one_finding(void **state)
{
	struct damaged *d = *state;
	uint8_t *bitmap = data_bitmap(d);
	struct report report;

	bitmap[16 + 16000 / 4] = 0xaa;
	seal(bitmap, BITMAP_CSUM_XOR);
	assert_says(d, "leak: data blocks 16000..16003: counted 1, but nothing refers to it");
	check_image(d->meta, UNKNOWN, &report);
	assert_int_equal(report.result.nr_leaks, 1);
	assert_int_equal(report.result.nr_damages, 0);
	assert_int_equal(report.result.nr_hints, 2); /* nr_free, nr_allocated */
	report_free(&report);
}

static void low_count_is_damage(void **state)
{
	struct damaged *d = *state;
	uint8_t *bitmap = data_bitmap(d);
	unsigned block = 0;

	while ((bitmap[16 + block / 4] >> block % 4 * 2 & 3) != 2)
		block++;
	bitmap[16 + block / 4] &= (uint8_t) ~(3u << block % 4 * 2);
	seal(bitmap, BITMAP_CSUM_XOR);
	assert_says(d, "damage: data block %u: counted 0, but has 1 reference", block);
}

static void damage_hides_no_leaks(void **state)
{
	struct damaged *d = *state;
	mblock_t leaf = le64_get(values_of(node_at(d, device_root(d, 1)))[2]);
	struct report report;

	node_at(d, leaf)->csum = le32_make(0);
	check_image(d->meta, UNKNOWN, &report);
	assert_int_equal(report.r, 0);
	assert_int_equal(report.result.nr_leaks, 0);
	assert_non_null(strstr(report.lines, "the damage above may hide who refers to them"));
	report_free(&report);
}

static void cycle_is_not_followed(void **state)
{
	struct damaged *d = *state;
	mblock_t root = device_root(d, 1);

	values_of(node_at(d, root))[0] = le64_make(root);
	reseal(d, root);
	assert_says(d,
		    "damage: mapping node %" PRIu64 " of device 1: refers to block %" PRIu64
		    ", which is above it: a cycle",
		    root, root);
}

static void block_has_one_use(void **state)
{
	struct damaged *d = *state;
	mblock_t root = device_root(d, 1), details = le64_get(d->sb->device_details_root);

	values_of(node_at(d, root))[0] = le64_make(details);
	reseal(d, root);
	assert_says(d,
		    "damage: superblock: refers to block %" PRIu64
		    " (details), which is in use as mapping",
		    details);
}

/* The leaf was walked as part of device 1; that it is wrong for device 3 is known from its memo. */
static void shared_leaf_has_to_fit_each_parent(void **state)
{
	struct damaged *d = *state;
	mblock_t root1 = device_root(d, 1), root5 = device_root(d, 5);
	struct disk_node_header *node = node_at(d, root5);
	unsigned last = le32_get(node->nr_entries) - 1;
	mblock_t leaf = le64_get(values_of(node)[last]);
	uint64_t max;

	assert_int_not_equal(root1, root5);
	max = le64_get(keys_of(node_at(d, leaf))[le32_get(node_at(d, leaf)->nr_entries) - 1]);
	values_of(node)[last - 1] = le64_make(leaf);
	reseal(d, root5);
	assert_says(d,
		    "damage: mapping leaf %" PRIu64 " of device 5: last key %" PRIu64
		    " is above %" PRIu64 ", the last that its parent allows",
		    leaf, max, le64_get(keys_of(node)[last]) - 1);
}

static void nodes_are_not_too_empty(void **state)
{
	struct damaged *d = *state;
	mblock_t leaf = le64_get(values_of(node_at(d, device_root(d, 1)))[1]);

	node_at(d, leaf)->nr_entries = le32_make(83);
	reseal(d, leaf);
	assert_says(d,
		    "damage: mapping leaf %" PRIu64 " of device 1: 83 entries, at least 84 are due",
		    leaf);
}

static void nothing_was_mapped_in_the_future(void **state)
{
	struct damaged *d = *state;
	mblock_t leaf = le64_get(values_of(node_at(d, device_root(d, 1)))[1]);
	struct le64 *value = &values_of(node_at(d, leaf))[5];
	uint64_t key = le64_get(keys_of(node_at(d, leaf))[5]);
	uint32_t clock = le32_get(d->sb->time);

	*value = le64_make((le64_get(*value) & ~(uint64_t)THIN_MAX_TIME) | (clock + 1));
	reseal(d, leaf);
	assert_says(d,
		    "damage: mapping leaf %" PRIu64 " of device 1: block %" PRIu64
		    " was mapped at time %u, but the clock says %u",
		    leaf, key, clock + 1, clock);
}

/* What a metadata snapshot shares must be as old as it is; known from the memo of the root. */
static void nothing_in_a_snapshot_is_younger_than_it(void **state)
{
	struct damaged *d = *state;
	struct thin_disk_superblock *held = image_block(d->image, le64_get(d->sb->held_root));
	mblock_t root = device_root(d, 1);

	held->time = le32_make(4);
	seal(held, SUPERBLOCK_CSUM_XOR);
	assert_says(d,
		    "damage: mapping node %" PRIu64 " of device 1 in the metadata snapshot: "
		    "a block was mapped at time 5, but the clock says 4",
		    root);
}

/* Details of the first devices; sealed by reseal(d, *ret_leaf). */
static struct disk_device_details *details_of(struct damaged *d, mblock_t *ret_leaf)
{
	struct disk_node_header *root = node_at(d, le64_get(d->sb->device_details_root));

	*ret_leaf = le64_get(values_of(root)[0]);
	return (void *)(keys_of(node_at(d, *ret_leaf)) +
			NODE_MAX_ENTRIES(sizeof(struct disk_device_details)));
}

static void times_of_devices_make_sense(void **state)
{
	struct damaged *d = *state;
	uint32_t clock = le32_get(d->sb->time);
	mblock_t leaf;
	struct disk_device_details *details = details_of(d, &leaf);

	details[0].snapshotted_time = le32_make(clock + 1);
	details[4].creation_time = le32_make(clock);
	reseal(d, leaf);
	assert_says(d,
		    "damage: details leaf %" PRIu64 ": device 1 was created at time 0 and "
		    "snapshotted at %u, but the clock says %u",
		    leaf, clock + 1, clock);
	assert_says(d,
		    "damage: details leaf %" PRIu64 ": device 5 was snapshotted at time %u, "
		    "before it was created at %u",
		    leaf, le32_get(details[4].snapshotted_time), clock);
}

static void clocks_make_sense(void **state)
{
	struct damaged *d = *state;
	struct thin_disk_superblock *held = image_block(d->image, le64_get(d->sb->held_root));
	uint32_t clock = le32_get(d->sb->time);

	held->time = le32_make(clock + 1);
	seal(held, SUPERBLOCK_CSUM_XOR);
	assert_says(d,
		    "damage: metadata snapshot %" PRIu64 ": the clock "
		    "says %u, the pool's says %u",
		    le64_get(d->sb->held_root), clock + 1, clock);
	d->sb->time = le32_make(1u << 24);
	reseal(d, 0);
	assert_says(d, "damage: superblock: the clock says 16777216, at most 16777215 is possible");
}

static void ids_have_24_bits(void **state)
{
	struct damaged *d = *state;
	struct disk_node_header *root = node_at(d, le64_get(d->sb->data_mapping_root));
	mblock_t leaf = le64_get(values_of(root)[le32_get(root->nr_entries) - 1]);
	struct disk_node_header *node = node_at(d, leaf);

	keys_of(node)[le32_get(node->nr_entries) - 1] = le64_make(UINT64_C(1) << 24);
	reseal(d, leaf);
	assert_says(d, "damage: top-level leaf %" PRIu64 ": device id 16777216 is above 16777215",
		    leaf);
}

static void entries_of_ref_count_trees_make_sense(void **state)
{
	struct damaged *d = *state;
	struct disk_sm_root *map = (void *)d->sb->data_sm_root;
	struct disk_node_header *root = node_at(d, le64_get(map->ref_count_root)), *node;
	mblock_t leaf = le64_get(values_of(root)[le32_get(root->nr_entries) - 1]);
	uint64_t block;
	struct le32 *counts;
	uint32_t nr;

	node = node_at(d, leaf);
	counts = (void *)(keys_of(node) + NODE_MAX_ENTRIES(sizeof(*counts)));
	nr = le32_get(node->nr_entries);
	block = le64_get(keys_of(node)[0]);
	counts[0] = le32_make(2);
	keys_of(node)[nr - 1] = le64_make(RICH_DATA_BLOCKS);
	reseal(d, leaf);
	assert_says(d,
		    "damage: data ref count leaf %" PRIu64 ": block %" PRIu64
		    " has count 2, which belongs into a bitmap",
		    leaf, block);
	assert_says(d,
		    "damage: data ref count leaf %" PRIu64
		    ": counts block 20000, but the data map ends at 20000",
		    leaf);
}

static void space_maps_share_nothing(void **state)
{
	struct damaged *d = *state;
	struct disk_sm_root *map = (void *)d->sb->data_sm_root;
	mblock_t root = le64_get(map->ref_count_root);
	struct disk_node_header *node = node_at(d, root);

	values_of(node)[1] = values_of(node)[0];
	reseal(d, root);
	assert_says(d,
		    "damage: data ref count node %" PRIu64 ": refers to block %" PRIu64
		    ", which is in use already",
		    root, le64_get(values_of(node)[0]));
}

static void leaves_have_one_depth(void **state)
{
	struct damaged *d = *state;
	mblock_t root1 = device_root(d, 1), root5 = device_root(d, 5);
	struct disk_node_header *node = node_at(d, root5);

	values_of(node)[1] = le64_make(root1);
	reseal(d, root5);
	assert_says(d,
		    "damage: mapping node %" PRIu64 " of device 5: the subtree at key %" PRIu64
		    " has height 2, others have 1",
		    root5, le64_get(keys_of(node)[1]));
}

static void device_sizes_are_compared(void **state)
{
	struct damaged *d = *state;
	struct disk_sm_root *root = (void *)d->sb->metadata_sm_root;

	assert_lines(d->meta, (RICH_DATA_BLOCKS - 1) * (uint64_t)BLOCK_BYTES,
		     "damage: superblock: 20000 data blocks, but the data device has room for "
		     "19999\n");
	root->nr_blocks = le64_make(1025);
	reseal(d, 0);
	assert_says(d, "damage: superblock: 1025 metadata blocks, but the device has 1024");
}

/* It must not take memory for what is only claimed. */
static void huge_claims_cost_nothing(void **state)
{
	struct damaged *d = *state;
	struct disk_sm_root *root = (void *)d->sb->data_sm_root;

	root->nr_blocks = le64_make(DATA_BLOCK_LIMIT);
	reseal(d, 0);
	assert_says(d, "damage: superblock: the data index ends at bitmap 2 of 67372037");
}

static void lines_are_limited_and_the_rest_is_counted(void **state)
{
	struct damaged *d = *state;
	struct report report = { 0 };
	const struct thin_check_options options = {
		.data_bytes = UNKNOWN,
		.report = report_line,
		.ctx = &report,
		.max_findings = 2,
	};

	d->sb->version = le32_make(3);
	d->sb->metadata_block_size = le32_make(9);
	d->sb->incompat_flags = le32_make(1);
	d->sb->data_block_size = le32_make(1);
	reseal(d, 0);
	assert_int_equal(thin_check(d->meta, &options, &report.result), 0);
	/* The metadata snapshot has another data block size then. */
	assert_string_equal(report.lines,
			    "damage: superblock: version 3, expected 2\n"
			    "damage: superblock: metadata blocks of 9 sectors, expected 8\n"
			    "damage: ... and 3 more\n");
	assert_int_equal(report.result.nr_damages, 5);
	report_free(&report);
}

static void note_progress(void *ctx, uint64_t done, uint64_t total)
{
	uint64_t *last = ctx;

	assert_true(done > *last && done <= total);
	*last = done;
}

static void progress_comes_to_its_end(void **state)
{
	struct damaged *d = *state;
	uint64_t done = 0;
	struct thin_check_result result;
	const struct thin_check_options options = {
		.data_bytes = UNKNOWN,
		.progress = note_progress,
		.ctx = &done,
	};

	assert_int_equal(thin_check(d->meta, &options, &result), 0);
	assert_int_equal(result.nr_damages + result.nr_leaks + result.nr_hints, 0);
	/* Some nodes are read a second time for the metadata snapshot. */
	assert_in_range(done, result.nr_metadata_used, result.nr_metadata_used + 10);
}

int main(void)
{
	struct CMUnitTest tests[] = {
		cmocka_unit_test(fresh_metadata_is_clean),
		cmocka_unit_test(many_users_of_a_block_are_counted),
		cmocka_unit_test(blank_device_was_never_formatted),
		cmocka_unit_test(tiny_device_has_no_superblock),
		cmocka_unit_test(unreadable_block_is_an_error),
		DAMAGED(disorder_is_told_with_its_place),
		DAMAGED(neighbouring_leaks_are_one_finding),
		DAMAGED(low_count_is_damage),
		DAMAGED(damage_hides_no_leaks),
		DAMAGED(cycle_is_not_followed),
		DAMAGED(block_has_one_use),
		DAMAGED(shared_leaf_has_to_fit_each_parent),
		DAMAGED(nodes_are_not_too_empty),
		DAMAGED(nothing_was_mapped_in_the_future),
		DAMAGED(nothing_in_a_snapshot_is_younger_than_it),
		DAMAGED(times_of_devices_make_sense),
		DAMAGED(clocks_make_sense),
		DAMAGED(ids_have_24_bits),
		DAMAGED(entries_of_ref_count_trees_make_sense),
		DAMAGED(space_maps_share_nothing),
		DAMAGED(leaves_have_one_depth),
		DAMAGED(device_sizes_are_compared),
		DAMAGED(huge_claims_cost_nothing),
		DAMAGED(lines_are_limited_and_the_rest_is_counted),
		DAMAGED(progress_comes_to_its_end),
		POOL(0),
		POOL(1),
		POOL(2),
		POOL(3),
		POOL(4),
		POOL(5),
		POOL(6),
		POOL(7),
		POOL(8),
		POOL(9),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("thin-check", tests, NULL, NULL);
}
