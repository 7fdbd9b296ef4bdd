// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Unit tests of the checker: what is right is called right, and what is wrong gets its line.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
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

int main(void)
{
	struct CMUnitTest tests[] = {
		cmocka_unit_test(fresh_metadata_is_clean),
		cmocka_unit_test(blank_device_was_never_formatted),
		cmocka_unit_test(tiny_device_has_no_superblock),
		cmocka_unit_test(unreadable_block_is_an_error),
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
