/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for pool/provision.c and job.c: writes to holes and to shared blocks, what goes to
 * the device for them, and what is left when that fails.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fault-device.h"
#include "mem-device.h"
#include "pool-fixture.h"

#define BLOCK (64 * KIB)
#define WRITES FAULT_OP(IO_WRITE)

static struct pool_rig *rig;
static struct volume *v;

static int setup(void **state)
{
	(void)state;
	return pool_rig_begin(&rig, &v);
}

static int teardown(void **state)
{
	(void)state;
	return pool_rig_end(rig, v);
}

/* The data device has held something before: nothing of it is known to be zero. */
static void soil_data(void)
{
	struct io_device *mem = fault_device_inner(rig->data);
	struct volume *pad;

	rig_close_volume(v);
	assert_int_equal(pool_rig_close(rig), 0);
	/* The first blocks may be the catalog's; what is left of them goes to the pad. */
	memset((uint8_t *)mem_device_data(mem) + 4 * BLOCK, 0xee, io_device_size(mem) - 4 * BLOCK);
	mem_device_touch(mem, 4 * BLOCK, io_device_size(mem) - 4 * BLOCK);
	pool_rig_open(rig);
	v = rig_open_volume(rig, "vol");
	pad = rig_create_volume(rig, "pad", 4 * BLOCK);
	assert_int_equal(rig_fill(rig, pad, 0, 4 * BLOCK, 1), 0);
	rig_close_volume(pad);
}

static uint64_t bytes_written(size_t *ret_nr)
{
	size_t nr;
	const struct fault_log_entry *log = fault_device_log(rig->data, &nr);
	uint64_t bytes = 0;

	*ret_nr = 0;
	for (size_t i = 0; i < nr; i++)
		if (log[i].op == IO_WRITE || log[i].op == IO_ZERO) {
			bytes += log[i].length;
			++*ret_nr;
		}
	return bytes;
}

static void nothing_of_the_device_s_past_shows(void **state)
{
	(void)state;
	soil_data();
	assert_int_equal(rig_fill(rig, v, 5 * BLOCK + 5000, 3000, 1), 0);
	assert_true(rig_reads_as(rig, v, 5 * BLOCK, 5000, 0));
	assert_true(rig_reads_as(rig, v, 5 * BLOCK + 5000, 3000, 1));
	assert_true(rig_reads_as(rig, v, 5 * BLOCK + 8000, BLOCK - 8000, 0));
}

static void a_write_and_the_zeros_around_it_are_one_io(void **state)
{
	size_t nr;

	(void)state;
	soil_data();
	fault_device_log_start(rig->data, false);
	assert_int_equal(rig_fill(rig, v, 5 * BLOCK + 4096, 4096, 1), 0);
	assert_int_equal(bytes_written(&nr), BLOCK);
	assert_int_equal(nr, 1);
}

static void a_known_zero_block_is_not_zeroed(void **state)
{
	size_t nr;

	(void)state;
	fault_device_log_start(rig->data, false);
	assert_int_equal(rig_fill(rig, v, 5 * BLOCK + 4096, 4096, 1), 0);
	assert_int_equal(bytes_written(&nr), 4096);
	assert_int_equal(nr, 1);
	assert_int_equal(rig_status(rig).stats.zeroed_blocks, 0);
}

static void without_zeroing_only_the_data_is_written(void **state)
{
	size_t nr;

	(void)state;
	rig->options.zero_new_blocks = false;
	soil_data();
	fault_device_log_start(rig->data, false);
	assert_int_equal(rig_fill(rig, v, 5 * BLOCK + 4096, 4096, 1), 0);
	assert_int_equal(bytes_written(&nr), 4096);
	/* Nobody has written there, but fallocate() promises zeros. */
	assert_int_equal(rig_io(rig, v, POOL_ALLOCATE, 9 * BLOCK, BLOCK, NULL), 0);
	assert_true(rig_reads_as(rig, v, 9 * BLOCK, BLOCK, 0));
}

static void a_long_write_to_holes_is_contiguous(void **state)
{
	size_t nr;

	(void)state;
	fault_device_log_start(rig->data, false);
	assert_int_equal(rig_fill(rig, v, 0, 1 * MIB, 1), 0);
	assert_int_equal(bytes_written(&nr), 1 * MIB);
	assert_int_equal(nr, 1);
	assert_int_equal(rig_status(rig).stats.provisioned_blocks, 16);
	assert_int_equal(rig_mapped(v), 1 * MIB);
}

static void writes_to_one_hole_meet_in_one_block(void **state)
{
	struct rig_request reqs[16];
	static _Alignas(4096) uint8_t buffers[16][4096];

	(void)state;
	soil_data();
	for (unsigned i = 0; i < 16; i++) {
		memset(buffers[i], (int)i + 1, 4096);
		rig_start(rig, &reqs[i], v, POOL_WRITE, 7 * BLOCK + i * 4096, 4096, buffers[i]);
	}
	for (unsigned i = 0; i < 16; i++)
		assert_int_equal(rig_wait(rig, &reqs[i]), 0);
	for (unsigned i = 0; i < 16; i++)
		assert_true(rig_reads_as(rig, v, 7 * BLOCK + i * 4096, 4096, (int)i + 1));
	assert_int_equal(rig_mapped(v), BLOCK);
}

static void allocation_fills_holes_and_keeps_content(void **state)
{
	(void)state;
	soil_data();
	assert_int_equal(rig_fill(rig, v, BLOCK, BLOCK, 1), 0);
	assert_int_equal(rig_io(rig, v, POOL_ALLOCATE, 100, 3 * BLOCK, NULL), 0);
	assert_int_equal(rig_mapped(v), 4 * BLOCK);
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 0));
	assert_true(rig_reads_as(rig, v, BLOCK, BLOCK, 1));
	assert_true(rig_reads_as(rig, v, 2 * BLOCK, 2 * BLOCK, 0));
}

/* ---- sharing ---- */

static void a_snapshot_keeps_what_was_and_costs_nothing(void **state)
{
	struct volume *snap;
	uint64_t used;

	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, 4 * BLOCK, 1), 0);
	assert_int_equal(rig_commit(rig), 0);
	used = rig_status(rig).data_used;
	assert_int_equal(rig_snapshot(rig, "vol", "snap"), 0);
	assert_int_equal(rig_status(rig).data_used, used);
	snap = rig_open_volume(rig, "snap");
	assert_int_equal(rig_fill(rig, v, BLOCK + 1000, 1000, 2), 0); /* copies */
	assert_int_equal(rig_fill(rig, v, 2 * BLOCK, BLOCK, 3), 0);   /* need not */
	assert_int_equal(rig_fill(rig, snap, 3 * BLOCK + 512, 512, 4), 0);
	assert_true(rig_reads_as(rig, snap, 0, 3 * BLOCK + 512, 1));
	assert_true(rig_reads_as(rig, snap, 3 * BLOCK + 512, 512, 4));
	assert_true(rig_reads_as(rig, snap, 3 * BLOCK + 1024, BLOCK - 1024, 1));
	assert_true(rig_reads_as(rig, v, 0, BLOCK + 1000, 1));
	assert_true(rig_reads_as(rig, v, BLOCK + 1000, 1000, 2));
	assert_true(rig_reads_as(rig, v, BLOCK + 2000, BLOCK - 2000, 1));
	assert_true(rig_reads_as(rig, v, 2 * BLOCK, BLOCK, 3));
	assert_true(rig_reads_as(rig, v, 3 * BLOCK, BLOCK, 1));
	assert_int_equal(rig_status(rig).stats.broken_sharing_blocks, 3);
	rig_close_volume(snap);
}

static void overwriting_a_whole_shared_block_reads_nothing(void **state)
{
	uint64_t reads;

	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, 4 * BLOCK, 1), 0);
	assert_int_equal(rig_snapshot(rig, "vol", "snap"), 0);
	reads = fault_device_nr_requests(rig->data, FAULT_OP(IO_READ));
	assert_int_equal(rig_fill(rig, v, 0, 4 * BLOCK, 2), 0);
	assert_int_equal(fault_device_nr_requests(rig->data, FAULT_OP(IO_READ)), reads);
}

static void sharing_is_broken_once(void **state)
{
	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	assert_int_equal(rig_snapshot(rig, "vol", "snap"), 0);
	assert_int_equal(rig_fill(rig, v, 0, 4096, 2), 0);
	assert_int_equal(rig_fill(rig, v, 4096, 4096, 3), 0);
	assert_int_equal(rig_status(rig).stats.broken_sharing_blocks, 1);
	/* The count of a data block under a shared leaf is 1: that must not deceive anybody. */
	assert_int_equal(rig_snapshot(rig, "vol", "snap2"), 0);
	assert_int_equal(rig_fill(rig, v, 0, 4096, 4), 0);
	assert_int_equal(rig_status(rig).stats.broken_sharing_blocks, 2);
}

/* ---- failure ---- */

static void expect_no_block_leaked(uint64_t used)
{
	assert_int_equal(rig_commit(rig), 0);
	assert_int_equal(rig_status(rig).data_used, used);
}

static void a_failed_first_write_leaks_nothing(void **state)
{
	uint64_t used = rig_status(rig).data_used;
	struct fault fault = { .ops = WRITES, .count = 1 };

	(void)state;
	fault_device_add(rig->data, &fault);
	assert_int_equal(rig_fill(rig, v, 0, 4 * BLOCK, 1), -EIO);
	expect_no_block_leaked(used);
	assert_int_equal(rig_mapped(v), 0);
	assert_int_equal(rig_status(rig).mode, POOL_MODE_WRITE);
	assert_true(rig_reads_as(rig, v, 0, 4 * BLOCK, 0));
	fault_device_clear(rig->data);
	assert_int_equal(rig_fill(rig, v, 0, 4 * BLOCK, 2), 0);
	assert_true(rig_reads_as(rig, v, 0, 4 * BLOCK, 2));
}

static void a_failed_copy_leaves_the_shared_block(void **state)
{
	uint64_t used;
	struct fault fault = { .ops = FAULT_OP(IO_READ), .count = 1 };

	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	assert_int_equal(rig_snapshot(rig, "vol", "snap"), 0);
	used = rig_status(rig).data_used;
	fault_device_add(rig->data, &fault);
	assert_int_equal(rig_fill(rig, v, 4096, 4096, 2), -EIO);
	fault_device_clear(rig->data);
	expect_no_block_leaked(used);
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 1));
}

static void a_volume_that_is_read_only_refuses_writes(void **state)
{
	struct pool_command cmd = {
		.op = POOL_SNAPSHOT, .flags = POOL_CMD_READ_ONLY, .name = "vol", .new_name = "snap"
	};
	struct volume *snap;
	uint8_t byte = 1;

	(void)state;
	assert_int_equal(pool_command_run(rig->pool, &cmd), 0);
	assert_int_equal(pool_volume_find(rig->pool, "snap", &snap), 0);
	assert_int_equal(volume_open(snap, false), 0);
	assert_int_equal(rig_io(rig, snap, POOL_WRITE, 0, 1, &byte), -EROFS);
	assert_int_equal(rig_punch(rig, snap, 0, BLOCK), -EROFS);
	assert_true(rig_reads_as(rig, snap, 0, BLOCK, 0));
	rig_close_volume(snap);
}

/* ---- more at once than there is room for ---- */

#define NR_WRITES 600u
#define NR_JOBS 256u /* as in job.c */

/* The first ones take all jobs; of those that wait most will not need one, as there is no space. */
static void whoever_waits_for_a_job_goes_on_also_when_others_need_none(void **state)
{
	static _Alignas(4096) uint8_t page[4096];
	struct rig_request *reqs = calloc(NR_WRITES, sizeof(*reqs));
	uint64_t written = 0, room;

	(void)state;
	assert_non_null(reqs);
	rig_close_volume(v);
	pool_rig_destroy(rig);
	rig = pool_rig_create(BLOCK, NR_JOBS + 40, 512);
	v = rig_create_volume(rig, "vol", NR_WRITES * BLOCK);
	room = (rig_status(rig).data_total - rig_status(rig).data_used) / BLOCK;
	fault_device_delay(rig->data, WRITES);
	for (unsigned i = 0; i < NR_WRITES; i++)
		rig_start(rig, &reqs[i], v, POOL_WRITE, i * BLOCK, sizeof(page), page);
	assert_true(fault_device_wait_held(rig->data, NR_JOBS));
	fault_device_release_all(rig->data);
	for (unsigned i = 0; i < NR_WRITES; i++) {
		int r = rig_wait(rig, &reqs[i]);

		assert_true(r == 0 || r == -ENOSPC);
		written += r == 0;
	}
	assert_int_equal(written, room);
	free(reqs);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(nothing_of_the_device_s_past_shows),
		T(a_write_and_the_zeros_around_it_are_one_io),
		T(a_known_zero_block_is_not_zeroed),
		T(without_zeroing_only_the_data_is_written),
		T(a_long_write_to_holes_is_contiguous),
		T(writes_to_one_hole_meet_in_one_block),
		T(allocation_fills_holes_and_keeps_content),
		T(a_snapshot_keeps_what_was_and_costs_nothing),
		T(overwriting_a_whole_shared_block_reads_nothing),
		T(sharing_is_broken_once),
		T(a_failed_first_write_leaks_nothing),
		T(a_failed_copy_leaves_the_shared_block),
		T(a_volume_that_is_read_only_refuses_writes),
		T(whoever_waits_for_a_job_goes_on_also_when_others_need_none),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
