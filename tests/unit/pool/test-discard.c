/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for pool/discard.c: punched ranges read as zeros to the byte, their space comes
 * back, and the data device hears of it after the commit.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "commands.h"
#include "pool-fixture.h"

#define BLOCK (64 * KIB)
#define DISCARDS FAULT_OP(IO_DISCARD)
#define NR_PUNCHES 8 /* under way at a time, as in discard.c */

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

static int teardown_failed(void **state)
{
	(void)state;
	return pool_rig_end_failed(rig, v);
}

static void a_punched_range_reads_as_zeros_to_the_byte(void **state)
{
	static const struct {
		uint64_t offset, length, left; /* blocks left of 8 */
	} ranges[] = {
		{ 0, 8 * BLOCK, 0 },
		{ BLOCK, BLOCK, 7 },
		{ 1, 8 * BLOCK - 2, 2 },
		{ BLOCK - 1, 2, 8 },
		{ 100, 200, 8 },
		{ BLOCK + 512, 4 * BLOCK, 5 },
		{ 2 * BLOCK, 3 * BLOCK + 7, 5 },
		{ 511, 1026, 8 },
	};

	(void)state;
	for (unsigned i = 0; i < ARRAY_SIZE(ranges); i++) {
		uint64_t from = ranges[i].offset, to = from + ranges[i].length;

		assert_int_equal(rig_fill(rig, v, 0, 8 * BLOCK, 0x77), 0);
		assert_int_equal(rig_punch(rig, v, from, to - from), 0);
		assert_true(rig_reads_as(rig, v, 0, from, 0x77));
		assert_true(rig_reads_as(rig, v, from, to - from, 0));
		assert_true(rig_reads_as(rig, v, to, 8 * BLOCK - to, 0x77));
		assert_int_equal(rig_mapped(v), ranges[i].left * BLOCK);
	}
}

static void punching_a_hole_maps_nothing(void **state)
{
	(void)state;
	assert_int_equal(rig_punch(rig, v, 100, 5 * BLOCK), 0);
	assert_int_equal(rig_io(rig, v, POOL_ZERO, 0, 8 * MIB, NULL), 0);
	assert_int_equal(rig_mapped(v), 0);
}

static void a_shared_block_is_punched_for_one_alone(void **state)
{
	struct volume *snap;

	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, 3 * BLOCK, 1), 0);
	assert_int_equal(rig_snapshot(rig, "vol", "snap"), 0);
	snap = rig_open_volume(rig, "snap");
	assert_int_equal(rig_punch(rig, v, BLOCK / 2, 2 * BLOCK), 0);
	assert_true(rig_reads_as(rig, snap, 0, 3 * BLOCK, 1));
	assert_true(rig_reads_as(rig, v, 0, BLOCK / 2, 1));
	assert_true(rig_reads_as(rig, v, BLOCK / 2, 2 * BLOCK, 0));
	assert_true(rig_reads_as(rig, v, 5 * BLOCK / 2, BLOCK / 2, 1));
	rig_close_volume(snap);
}

static void the_partial_last_block_goes_with_the_end_of_the_volume(void **state)
{
	struct volume *odd = rig_create_volume(rig, "odd", 2 * BLOCK + 1000);

	(void)state;
	assert_int_equal(rig_fill(rig, odd, 0, 2 * BLOCK + 1000, 1), 0);
	assert_int_equal(rig_punch(rig, odd, BLOCK, 2 * BLOCK), 0);
	assert_int_equal(rig_mapped(odd), BLOCK);
	assert_int_equal(volume_size(odd), 2 * BLOCK + 1000);
	rig_close_volume(odd);
}

static void ignored_discards_are_refused(void **state)
{
	(void)state;
	rig_close_volume(v);
	rig->options.discard = POOL_DISCARD_IGNORE;
	pool_rig_reopen(rig);
	v = rig_open_volume(rig, "vol");
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	assert_int_equal(rig_punch(rig, v, 0, BLOCK), -EOPNOTSUPP);
	assert_int_equal(rig_io(rig, v, POOL_ZERO, 0, BLOCK, NULL), -EOPNOTSUPP);
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 1));
}

/* ---- passing down ---- */

static uint64_t nr_discards(void)
{
	return fault_device_nr_requests(rig->data, DISCARDS);
}

static bool has_passed_down(void *bytes)
{
	return rig_status(rig).stats.passed_down_bytes >= *(uint64_t *)bytes;
}

static void discards_are_passed_down_after_the_commit(void **state)
{
	uint64_t bytes = 4 * BLOCK;

	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, 8 * BLOCK, 1), 0);
	assert_int_equal(rig_commit(rig), 0);
	assert_int_equal(rig_punch(rig, v, 0, 4 * BLOCK), 0);
	assert_int_equal(nr_discards(), 0);
	assert_int_equal(rig_commit(rig), 0);
	assert_true(rig_await(rig, has_passed_down, &bytes));
	assert_int_equal(nr_discards(), 1); /* one run */
}

static void a_shared_block_is_passed_down_with_its_last_user(void **state)
{
	uint64_t bytes = 4 * BLOCK;

	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, 4 * BLOCK, 1), 0);
	assert_int_equal(rig_snapshot(rig, "vol", "snap"), 0);
	assert_int_equal(rig_punch(rig, v, 0, 4 * BLOCK), 0);
	assert_int_equal(rig_commit(rig), 0);
	assert_int_equal(rig_status(rig).stats.passed_down_bytes, 0);
	assert_int_equal(rig_delete(rig, "snap"), 0);
	assert_true(rig_await(rig, has_passed_down, &bytes));
}

static void without_passing_down_the_device_hears_nothing(void **state)
{
	(void)state;
	rig_close_volume(v);
	rig->options.discard = POOL_DISCARD_NO_PASSDOWN;
	pool_rig_reopen(rig);
	v = rig_open_volume(rig, "vol");
	assert_int_equal(rig_fill(rig, v, 0, 4 * BLOCK, 1), 0);
	assert_int_equal(rig_commit(rig), 0);
	assert_int_equal(rig_punch(rig, v, 0, 4 * BLOCK), 0);
	assert_int_equal(rig_commit(rig), 0);
	assert_int_equal(rig_mapped(v), 0);
	assert_int_equal(nr_discards(), 0);
}

static void a_failed_discard_gives_the_space_back_all_the_same(void **state)
{
	struct fault fault = { .ops = DISCARDS, .count = UINT64_MAX };
	struct volume *all = rig_create_volume(rig, "all", 16 * MIB);

	(void)state;
	fault_device_add(rig->data, &fault);
	for (unsigned i = 0; i < 3; i++) { /* 240 of 256 blocks */
		assert_int_equal(rig_fill(rig, all, 0, 15 * MIB, 1), 0);
		assert_int_equal(rig_punch(rig, all, 0, 15 * MIB), 0);
	}
	assert_true(rig_reads_as(rig, all, 0, 15 * MIB, 0));
	fault_device_clear(rig->data);
	rig_close_volume(all);
}

static void a_discard_waits_for_reads_in_flight(void **state)
{
	static _Alignas(4096) uint8_t buffer[4096];
	struct rig_request read, punch;

	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, 2 * BLOCK, 1), 0);
	fault_device_delay(rig->data, FAULT_OP(IO_READ));
	rig_start(rig, &read, v, POOL_READ, 0, 4096, buffer);
	rig_start(rig, &punch, v, POOL_PUNCH, 0, BLOCK, NULL);
	/* Another block is not concerned. */
	assert_int_equal(rig_punch(rig, v, BLOCK, BLOCK), 0);
	assert_int_equal(rig_mapped(v), BLOCK);
	assert_false(rig_is_done(&punch));
	fault_device_release_all(rig->data);
	assert_int_equal(rig_wait(rig, &read), 0);
	assert_int_equal(rig_wait(rig, &punch), 0);
	assert_int_equal(buffer[0], 1);
	assert_int_equal(rig_mapped(v), 0);
}

/* ---- trim, and settings that change ---- */

static int trim(uint64_t *ret_bytes)
{
	struct pool_command cmd = { .op = POOL_TRIM };
	int r = pool_command_run(rig->pool, &cmd);

	*ret_bytes = cmd.size_bytes;
	assert_int_equal(r != 0, cmd.error.text[0] != '\0');
	return r;
}

static uint64_t free_bytes(void)
{
	struct pool_status s = rig_status(rig);

	return s.data_total - s.data_used;
}

static void a_trim_punches_every_free_block_and_nothing_else(void **state)
{
	uint64_t bytes, before;

	(void)state;
	rig_close_volume(v);
	rig->options.discard = POOL_DISCARD_NO_PASSDOWN;
	pool_rig_reopen(rig);
	v = rig_open_volume(rig, "vol");
	assert_int_equal(rig_fill(rig, v, 0, 8 * MIB, 1), 0);
	for (uint64_t b = 0; b < 128; b += 2) /* many short runs */
		assert_int_equal(rig_punch(rig, v, b * BLOCK, BLOCK), 0);
	before = rig_status(rig).stats.passed_down_bytes;
	assert_int_equal(trim(&bytes), 0); /* what is freed but not committed counts too */
	assert_int_equal(bytes, free_bytes());
	assert_int_equal(rig_status(rig).stats.passed_down_bytes - before, bytes);
	for (uint64_t b = 0; b < 128; b++)
		assert_true(rig_reads_as(rig, v, b * BLOCK, BLOCK, b % 2 ? 1 : 0));
	/* All of it can be had again, and a second one finds the same. */
	assert_int_equal(trim(&bytes), 0);
	assert_int_equal(bytes, free_bytes());
	assert_int_equal(rig_fill(rig, v, 0, 8 * MIB, 2), 0);
}

static void a_trim_tells_that_the_device_cannot(void **state)
{
	struct fault fault = { .ops = DISCARDS, .count = UINT64_MAX };
	uint64_t bytes, was_free = free_bytes();

	(void)state;
	fault_device_add(rig->data, &fault);
	assert_true(trim(&bytes) < 0);
	fault_device_clear(rig->data);
	assert_int_equal(rig_commit(rig), 0);
	assert_int_equal(free_bytes(), was_free);
	assert_int_equal(trim(&bytes), 0);
	assert_int_equal(bytes, was_free);
}

static void a_stopping_pool_ends_a_trim(void **state)
{
	uint64_t bytes;

	(void)state;
	pool_stop_waiting(rig->pool);
	assert_int_equal(trim(&bytes), -ECANCELED);
}

/* What is free is not certain any more; a punch could take what a repair would bring back. */
static void a_trim_ends_when_metadata_fails(void **state)
{
	struct fault fault = { .ops = FAULT_OP(IO_WRITE), .count = 1 };
	uint64_t punched;
	struct async a;

	(void)state;
	fault_device_delay(rig->data, DISCARDS);
	start(rig, &a, POOL_TRIM, "", "", 0);
	assert_true(fault_device_wait_held(rig->data, NR_PUNCHES));
	punched = fault_device_nr_requests(rig->data, DISCARDS);
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	fault_device_add(rig->meta, &fault);
	assert_int_equal(rig_flush(rig, v), -EIO);
	assert_int_equal(rig_status(rig).mode, POOL_MODE_READ_ONLY);
	fault_device_release_all(rig->data);
	assert_int_equal(finish(rig, &a), -EIO);
	assert_int_equal(fault_device_nr_requests(rig->data, DISCARDS), punched);
}

static bool ignores_discards(void *wanted)
{
	return (rig_status(rig).discard == POOL_DISCARD_IGNORE) == *(bool *)wanted;
}

static void settings_change_while_the_pool_is_in_service(void **state)
{
	struct pool_options options = rig->options;
	bool yes = true, no = false;

	(void)state;
	options.discard = POOL_DISCARD_IGNORE;
	options.cache_bytes = 3 * MIB;
	pool_configure(rig->pool, &options);
	assert_true(rig_await(rig, ignores_discards, &yes));
	assert_int_equal(rig_status(rig).cache_limit_bytes, 3 * MIB);
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	assert_int_equal(rig_punch(rig, v, 0, BLOCK), -EOPNOTSUPP);
	options.discard = POOL_DISCARD_PASSDOWN;
	pool_configure(rig->pool, &options);
	assert_true(rig_await(rig, ignores_discards, &no));
	assert_int_equal(rig_punch(rig, v, 0, BLOCK), 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(a_punched_range_reads_as_zeros_to_the_byte),
		T(punching_a_hole_maps_nothing),
		T(a_shared_block_is_punched_for_one_alone),
		T(the_partial_last_block_goes_with_the_end_of_the_volume),
		T(ignored_discards_are_refused),
		T(discards_are_passed_down_after_the_commit),
		T(a_shared_block_is_passed_down_with_its_last_user),
		T(without_passing_down_the_device_hears_nothing),
		T(a_failed_discard_gives_the_space_back_all_the_same),
		T(a_discard_waits_for_reads_in_flight),
		T(a_trim_punches_every_free_block_and_nothing_else),
		T(a_trim_tells_that_the_device_cannot),
		T(a_stopping_pool_ends_a_trim),
		cmocka_unit_test_setup_teardown(a_trim_ends_when_metadata_fails, setup,
						teardown_failed),
		T(settings_change_while_the_pool_is_in_service),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
