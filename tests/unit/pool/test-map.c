/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for pool/map.c: what a client sees of reads, writes, seeks and their limits, and
 * that what is mapped needs nobody else.
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
#include "pool-fixture.h"

#define BLOCK (64 * KIB)

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

static void a_hole_reads_as_zeros_without_io(void **state)
{
	uint64_t reads = fault_device_nr_requests(rig->data, FAULT_OP(IO_READ));

	(void)state;
	assert_true(rig_reads_as(rig, v, 0, 1 * MIB, 0));
	assert_true(rig_reads_as(rig, v, 12345, 1000, 0));
	assert_int_equal(fault_device_nr_requests(rig->data, FAULT_OP(IO_READ)), reads);
}

static void what_was_written_is_read(void **state)
{
	(void)state;
	assert_int_equal(rig_fill(rig, v, 3 * BLOCK, 2 * BLOCK, 0x5a), 0);
	assert_true(rig_reads_as(rig, v, 2 * BLOCK, BLOCK, 0));
	assert_true(rig_reads_as(rig, v, 3 * BLOCK, 2 * BLOCK, 0x5a));
	assert_true(rig_reads_as(rig, v, 5 * BLOCK, BLOCK, 0));
}

static void a_run_is_read_with_one_io(void **state)
{
	uint64_t reads;

	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, 1 * MIB, 1), 0);
	reads = fault_device_nr_requests(rig->data, FAULT_OP(IO_READ));
	assert_true(rig_reads_as(rig, v, 0, 1 * MIB, 1));
	assert_int_equal(fault_device_nr_requests(rig->data, FAULT_OP(IO_READ)), reads + 1);
}

static void mapped_io_does_not_need_the_worker(void **state)
{
	uint64_t deferred;

	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, 1 * MIB, 1), 0);
	deferred = rig_status(rig).stats.deferred;
	for (unsigned i = 0; i < 256; i++) {
		assert_int_equal(rig_fill(rig, v, i * 4096, 4096, (int)i), 0);
		assert_true(rig_reads_as(rig, v, i * 4096, 4096, (int)i));
	}
	assert_int_equal(rig_status(rig).stats.deferred, deferred);
}

static void a_read_past_the_end_is_zeros(void **state)
{
	uint8_t buffer[8192];
	struct volume *small = rig_create_volume(rig, "small", 1000);

	(void)state;
	assert_int_equal(rig_fill(rig, small, 0, 1000, 7), 0);
	memset(buffer, 0xff, sizeof(buffer));
	assert_int_equal(rig_io(rig, small, POOL_READ, 0, sizeof(buffer), buffer), 0);
	for (unsigned i = 0; i < sizeof(buffer); i++)
		assert_int_equal(buffer[i], i < 1000 ? 7 : 0);
	assert_true(rig_reads_as(rig, small, 4 * BLOCK, BLOCK, 0));
	rig_close_volume(small);
}

static void a_write_past_the_end_makes_the_volume_larger(void **state)
{
	struct volume *small = rig_create_volume(rig, "small", 1000);

	(void)state;
	assert_int_equal(rig_fill(rig, small, 5000, 100, 7), 0);
	assert_int_equal(volume_size(small), 5100);
	assert_true(rig_reads_as(rig, small, 0, 5000, 0));
	assert_true(rig_reads_as(rig, small, 5000, 100, 7));
	assert_int_equal(rig_flush(rig, small), 0);
	rig_close_volume(small);
	rig_close_volume(v);
	pool_rig_reopen(rig);
	small = rig_open_volume(rig, "small");
	assert_int_equal(volume_size(small), 5100);
	assert_true(rig_reads_as(rig, small, 5000, 100, 7));
	rig_close_volume(small);
	v = rig_open_volume(rig, "vol");
}

static void a_write_beyond_every_limit_is_refused(void **state)
{
	uint8_t byte = 1;

	(void)state;
	assert_int_equal(rig_io(rig, v, POOL_WRITE, INT64_MAX, 1, &byte), -EFBIG);
	assert_int_equal(rig_io(rig, v, POOL_WRITE, UINT64_MAX, 1, &byte), -EFBIG);
	assert_int_equal(volume_size(v), 8 * MIB);
}

static void nothing_takes_no_time(void **state)
{
	(void)state;
	assert_int_equal(rig_io(rig, v, POOL_READ, 100, 0, NULL), 0);
	assert_int_equal(rig_io(rig, v, POOL_WRITE, 100, 0, NULL), 0);
	assert_int_equal(rig_punch(rig, v, 100, 0), 0);
	assert_int_equal(rig_mapped(v), 0);
}

static uint64_t seek(enum pool_io_op op, uint64_t from, int want)
{
	struct pool_io io = { .op = op, .volume = v, .offset = from };

	assert_int_equal(pool_io_run(rig->pool, rig->q, &io), want);
	return io.ret_offset;
}

static void seek_finds_data_and_holes(void **state)
{
	(void)state;
	assert_int_equal(rig_fill(rig, v, 3 * BLOCK + 100, 10, 1), 0);
	assert_int_equal(rig_fill(rig, v, 4 * BLOCK, BLOCK, 1), 0);
	assert_int_equal(seek(POOL_SEEK_DATA, 0, 0), 3 * BLOCK);
	assert_int_equal(seek(POOL_SEEK_DATA, 3 * BLOCK + 7, 0), 3 * BLOCK + 7);
	assert_int_equal(seek(POOL_SEEK_HOLE, 0, 0), 0);
	assert_int_equal(seek(POOL_SEEK_HOLE, 3 * BLOCK + 7, 0), 5 * BLOCK);
	seek(POOL_SEEK_DATA, 5 * BLOCK, -ENXIO);
	seek(POOL_SEEK_DATA, 8 * MIB, -ENXIO);
	seek(POOL_SEEK_HOLE, 8 * MIB, -ENXIO);
	assert_int_equal(rig_fill(rig, v, 8 * MIB - 1, 1, 1), 0);
	assert_int_equal(seek(POOL_SEEK_HOLE, 8 * MIB - 1, 0), 8 * MIB);
}

static void an_error_of_the_data_device_reaches_the_client(void **state)
{
	struct fault fault = { .ops = FAULT_OP(IO_READ), .count = 1 };
	static _Alignas(4096) uint8_t buffer[4096];

	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	fault_device_add(rig->data, &fault);
	assert_int_equal(rig_io(rig, v, POOL_READ, 0, sizeof(buffer), buffer), -EIO);
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 1));
}

/* ---- bytes ---- */

static void unaligned_writes_leave_their_neighbours_alone(void **state)
{
	static const struct {
		uint64_t offset, length;
	} ranges[] = { { 1, 1 },     { 511, 2 },        { 512, 100 },  { 1000, 3000 },
		       { 65535, 2 }, { 70000, 130000 }, { 511, 513 },  { 3, 300000 },
		       { 4096, 1 },  { 131071, 1 },     { 1024, 1023 } };

	(void)state;
	for (unsigned i = 0; i < ARRAY_SIZE(ranges); i++) {
		uint64_t from = ranges[i].offset, to = from + ranges[i].length;

		assert_int_equal(rig_fill(rig, v, 0, 1 * MIB, 0x11), 0);
		assert_int_equal(rig_fill(rig, v, from, to - from, 0x22), 0);
		assert_true(rig_reads_as(rig, v, 0, from, 0x11));
		assert_true(rig_reads_as(rig, v, from, to - from, 0x22));
		assert_true(rig_reads_as(rig, v, to, 1 * MIB - to, 0x11));
	}
}

static void buffers_may_be_anywhere(void **state)
{
	uint8_t *base = malloc(1 * MIB);

	(void)state;
	for (unsigned shift = 1; shift < 4096; shift += 1023) {
		memset(base, 0x33, 1 * MIB);
		assert_int_equal(rig_io(rig, v, POOL_WRITE, 2 * BLOCK, 5 * BLOCK, base + shift), 0);
		assert_true(rig_reads_as(rig, v, 2 * BLOCK, 5 * BLOCK, 0x33));
		memset(base, 0x44, 1 * MIB);
		assert_int_equal(
			rig_io(rig, v, POOL_WRITE, 2 * BLOCK + 5, 5 * BLOCK - 9, base + shift), 0);
		assert_true(rig_reads_as(rig, v, 2 * BLOCK, 5, 0x33));
		assert_true(rig_reads_as(rig, v, 2 * BLOCK + 5, 5 * BLOCK - 9, 0x44));
		assert_true(rig_reads_as(rig, v, 7 * BLOCK - 4, 4, 0x33));
		memset(base, 0, 1 * MIB);
		assert_int_equal(
			rig_io(rig, v, POOL_READ, 2 * BLOCK + 5, 5 * BLOCK - 9, base + shift), 0);
		for (uint64_t i = 0; i < 5 * BLOCK - 9; i++)
			assert_int_equal(base[shift + i], 0x44);
		assert_int_equal(base[shift - 1], 0);
		assert_int_equal(base[shift + 5 * BLOCK - 9], 0);
	}
	free(base);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(a_hole_reads_as_zeros_without_io),
		T(what_was_written_is_read),
		T(a_run_is_read_with_one_io),
		T(mapped_io_does_not_need_the_worker),
		T(a_read_past_the_end_is_zeros),
		T(a_write_past_the_end_makes_the_volume_larger),
		T(a_write_beyond_every_limit_is_refused),
		T(nothing_takes_no_time),
		T(seek_finds_data_and_holes),
		T(an_error_of_the_data_device_reaches_the_client),
		T(unaligned_writes_leave_their_neighbours_alone),
		T(buffers_may_be_anywhere),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
