/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for what a data device that fails does to a pool: an error of that request and
 * nothing else, but for flushes, which speak of all that was written (failure.c).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "fault-device.h"
#include "mem-device.h"
#include "pool-fixture.h"
#include "thinpoold/disk-format.h"
#include "util/le.h"

#define BLOCK (64 * KIB)
#define SECTOR 512
#define WRITES FAULT_OP(IO_WRITE)
#define FLUSHES FAULT_OP(IO_FLUSH)
#define ALWAYS UINT64_MAX

static struct pool_rig *rig;
static struct volume *v, *w;

/* "vol" has the blocks 0 to 3, and so has "other". */
static int setup(void **state)
{
	(void)state;
	pool_rig_begin(&rig, &v);
	rig->options.commit_interval_usec = UINT64_C(3600) * 1000 * 1000;
	rig_close_volume(v);
	pool_rig_reopen(rig);
	v = rig_open_volume(rig, "vol");
	w = rig_create_volume(rig, "other", 8 * MIB);
	assert_int_equal(rig_fill(rig, v, 0, 4 * BLOCK, 1), 0);
	assert_int_equal(rig_fill(rig, w, 0, 4 * BLOCK, 2), 0);
	assert_int_equal(rig_commit(rig), 0);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	rig_close_volume(w);
	return pool_rig_end(rig, v);
}

static int teardown_failed(void **state)
{
	(void)state;
	rig_close_volume(w);
	return pool_rig_end_failed(rig, v);
}

static void fail_data(unsigned ops, uint64_t count)
{
	fault_device_add(rig->data, &(struct fault){ .ops = ops, .count = count });
}

/* Where @offset of @vol, which is mapped, is on the device. */
static uint64_t place_of(struct volume *vol, uint64_t offset)
{
	const struct fault_log_entry *log;
	uint64_t place;
	size_t nr;
	char *buffer = io_buffer_alloc(SECTOR);

	fault_device_log_start(rig->data, false);
	assert_int_equal(rig_io(rig, vol, POOL_READ, offset, SECTOR, buffer), 0);
	fault_device_log_stop(rig->data);
	log = fault_device_log(rig->data, &nr);
	assert_int_equal(nr, 1);
	place = log[0].offset;
	fault_device_log_clear(rig->data);
	free(buffer);
	return place;
}

static void make_bad(struct volume *vol, uint64_t offset, uint64_t length)
{
	const struct fault bad = { .ops = WRITES | FAULT_OP(IO_READ) | FAULT_OP(IO_ZERO),
				   .offset = place_of(vol, offset),
				   .length = length,
				   .count = ALWAYS };

	fault_device_add(rig->data, &bad);
}

static int read_at(struct volume *vol, uint64_t offset, uint64_t length)
{
	void *buffer = io_buffer_alloc(length);
	int r = rig_io(rig, vol, POOL_READ, offset, length, buffer);

	free(buffer);
	return r;
}

static int flush_by(struct volume *vol, uint32_t handle)
{
	struct pool_io io = { .op = POOL_FLUSH, .volume = vol, .handle = handle };

	return pool_io_run(rig->pool, rig->q, &io);
}

static bool flag_is_stored(void)
{
	const struct thin_disk_superblock *sb = mem_device_data(fault_device_inner(rig->meta));

	return le32_get(sb->flags) & THIN_NEEDS_CHECK_FLAG;
}

static void assert_writable(void)
{
	assert_int_equal(rig_status(rig).mode, POOL_MODE_WRITE);
	assert_false(rig_status(rig).needs_check);
}

/* The device is well again: all it takes is another opening. */
static void assert_comes_back(void)
{
	struct pool_status s = rig_status(rig);

	assert_int_equal(s.mode, POOL_MODE_READ_ONLY);
	assert_false(s.needs_check);
	assert_non_null(strstr(s.remedy, "thinpoolctl restart"));
	assert_int_equal(rig_fill(rig, v, 20 * BLOCK, BLOCK, 9), -EIO);
	fault_device_clear(rig->data);
	rig_close_volume(v);
	rig_close_volume(w);
	(void)pool_rig_close(rig);
	assert_false(flag_is_stored());
	assert_true(pool_rig_is_clean(rig));
	pool_rig_open(rig);
	v = rig_open_volume(rig, "vol");
	w = rig_open_volume(rig, "other");
	assert_writable();
	assert_true(rig_reads_as(rig, v, 0, 4 * BLOCK, 1));
	assert_int_equal(rig_fill(rig, v, 20 * BLOCK, BLOCK, 9), 0);
	assert_int_equal(rig_flush(rig, v), 0);
}

/* ---- reads and writes ---- */

static void a_bad_sector_is_an_error_of_who_asks_for_it(void **state)
{
	uint64_t bad = BLOCK + 8 * SECTOR;

	(void)state;
	make_bad(v, bad, SECTOR);
	assert_int_equal(read_at(v, bad, SECTOR), -EIO);
	assert_int_equal(read_at(v, 0, 4 * BLOCK), -EIO);
	assert_int_equal(rig_fill(rig, v, bad, SECTOR, 5), -EIO);
	assert_int_equal(read_at(v, bad - SECTOR, SECTOR), 0);
	assert_int_equal(rig_fill(rig, v, bad + SECTOR, SECTOR, 5), 0);
	assert_true(rig_reads_as(rig, v, bad + SECTOR, SECTOR, 5));
	assert_true(rig_reads_as(rig, w, 0, 4 * BLOCK, 2));
	assert_int_equal(rig_flush(rig, v), 0);
	assert_int_equal(rig_status(rig).stats.data_errors, 3);
	assert_writable();
	fault_device_clear(rig->data);
	assert_true(rig_reads_as(rig, v, bad - SECTOR, 2 * SECTOR, 1));
}

static void part_of_a_sector_cannot_be_written_without_reading_it(void **state)
{
	uint64_t bad = BLOCK + 8 * SECTOR;

	(void)state;
	fault_device_add(rig->data, &(struct fault){ .ops = FAULT_OP(IO_READ),
						     .offset = place_of(v, bad),
						     .length = SECTOR,
						     .count = ALWAYS });
	assert_int_equal(rig_fill(rig, v, bad + 7, 100, 5), -EIO);
	assert_int_equal(rig_fill(rig, v, bad, SECTOR, 6), 0);
	fault_device_clear(rig->data);
	assert_true(rig_reads_as(rig, v, bad, SECTOR, 6));
	assert_writable();
}

static void a_hole_stays_one_when_its_block_cannot_be_written(void **state)
{
	uint64_t used = rig_status(rig).data_used;

	(void)state;
	for (unsigned i = 0; i < 10; i++) {
		fail_data(WRITES, 1);
		assert_int_equal(rig_fill(rig, v, 10 * BLOCK + 100, 3 * BLOCK, 5), -EIO);
		fault_device_clear(rig->data);
	}
	assert_int_equal(rig_fill(rig, v, 30 * BLOCK, BLOCK, 6), 0); /* neighbours go on */
	assert_int_equal(rig_commit(rig), 0);
	assert_true(rig_status(rig).data_used <= used + 4 * BLOCK); /* parts may be written */
	assert_int_equal(rig_punch(rig, v, 10 * BLOCK, 4 * BLOCK), 0);
	assert_int_equal(rig_commit(rig), 0);
	assert_int_equal(rig_fill(rig, v, 10 * BLOCK + 100, 3 * BLOCK, 5), 0);
	assert_true(rig_reads_as(rig, v, 10 * BLOCK, 100, 0));
	assert_true(rig_reads_as(rig, v, 10 * BLOCK + 100, 3 * BLOCK, 5));
	assert_writable();
}

/* ---- copies ---- */

static void what_cannot_be_copied_stays_shared(void **state)
{
	(void)state;
	assert_int_equal(rig_snapshot(rig, "vol", "snap"), 0);
	make_bad(v, BLOCK + 8 * SECTOR, SECTOR);
	assert_int_equal(rig_fill(rig, v, BLOCK, SECTOR, 5), -EIO);
	assert_true(rig_reads_as(rig, v, BLOCK, 8 * SECTOR, 1));
	assert_int_equal(rig_fill(rig, v, 2 * BLOCK, SECTOR, 5), 0); /* another block */
	assert_int_equal(rig_fill(rig, v, BLOCK, BLOCK, 6), 0);      /* nothing to copy */
	assert_true(rig_reads_as(rig, v, BLOCK, BLOCK, 6));
	assert_true(rig_reads_as(rig, v, 2 * BLOCK + SECTOR, BLOCK - SECTOR, 1));
	assert_writable();
}

static void a_copy_that_cannot_be_written_is_none(void **state)
{
	uint64_t used;

	(void)state;
	assert_int_equal(rig_snapshot(rig, "vol", "snap"), 0);
	used = rig_status(rig).data_used;
	for (unsigned i = 0; i < 10; i++) {
		fault_device_fail_nth(rig->data, WRITES, 1 + i % 2);
		assert_int_equal(rig_fill(rig, v, BLOCK + SECTOR, SECTOR, 5), -EIO);
		fault_device_clear(rig->data);
	}
	assert_int_equal(rig_commit(rig), 0);
	assert_int_equal(rig_status(rig).data_used, used);
	assert_true(rig_reads_as(rig, v, BLOCK, BLOCK, 1));
	assert_int_equal(rig_fill(rig, v, BLOCK + SECTOR, SECTOR, 5), 0);
	assert_true(rig_reads_as(rig, v, BLOCK + SECTOR, SECTOR, 5));
	assert_true(rig_reads_as(rig, v, BLOCK + 2 * SECTOR, BLOCK - 2 * SECTOR, 1));
	assert_writable();
}

/* ---- zeros and holes ---- */

static void a_punch_whose_ends_cannot_be_zeroed_says_so(void **state)
{
	(void)state;
	fail_data(WRITES | FAULT_OP(IO_ZERO), ALWAYS);
	assert_int_equal(rig_punch(rig, v, BLOCK + SECTOR, SECTOR), -EIO);
	assert_int_equal(rig_punch(rig, v, 2 * BLOCK, BLOCK), 0); /* touches no data */
	fault_device_clear(rig->data);
	assert_true(rig_reads_as(rig, v, BLOCK, BLOCK, 1));
	assert_true(rig_reads_as(rig, v, 2 * BLOCK, BLOCK, 0));
	assert_int_equal(rig_punch(rig, v, BLOCK + SECTOR, SECTOR), 0);
	assert_true(rig_reads_as(rig, v, BLOCK + SECTOR, SECTOR, 0));
	assert_writable();
	assert_int_equal(rig_fill(rig, v, 2 * BLOCK, BLOCK, 1), 0);
}

static void an_allocation_that_cannot_be_zeroed_is_none(void **state)
{
	uint64_t used = rig_status(rig).data_used;

	(void)state;
	mem_device_touch(fault_device_inner(rig->data), 0, io_device_size(rig->data));
	fail_data(WRITES | FAULT_OP(IO_ZERO), ALWAYS);
	assert_int_equal(rig_io(rig, v, POOL_ALLOCATE, 10 * BLOCK, BLOCK, NULL), -EIO);
	fault_device_clear(rig->data);
	assert_int_equal(rig_commit(rig), 0);
	assert_int_equal(rig_status(rig).data_used, used);
	assert_writable();
}

/* ---- a device that vanishes ---- */

static void a_device_that_comes_back_is_used_again(void **state)
{
	uint64_t used = rig_status(rig).data_used;

	(void)state;
	fail_data(FAULT_ALL_OPS, ALWAYS);
	assert_int_equal(read_at(v, 0, BLOCK), -EIO);
	assert_int_equal(read_at(v, 50 * BLOCK, BLOCK), 0); /* a hole is known to be one */
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 5), -EIO);
	assert_int_equal(rig_fill(rig, v, 10 * BLOCK, 8 * BLOCK, 5), -EIO);
	assert_int_equal(rig_flush(rig, v), -EIO);
	assert_writable();
	fault_device_clear(rig->data);
	assert_int_equal(rig_flush(rig, w), 0);
	assert_true(rig_reads_as(rig, w, 0, 4 * BLOCK, 2));
	assert_int_equal(rig_fill(rig, v, 10 * BLOCK, BLOCK, 5), 0);
	assert_int_equal(rig_commit(rig), 0);
	assert_int_equal(rig_status(rig).data_used, used + BLOCK);
	assert_writable();
}

static void names_cannot_be_changed_without_it_and_nothing_is_wrong_afterwards(void **state)
{
	(void)state;
	fail_data(WRITES, ALWAYS);
	assert_int_equal(create(rig, "new", MIB), -EIO);
	assert_false(exists(rig, "new"));
	assert_comes_back();
	assert_int_equal(create(rig, "new", MIB), 0);
}

/* ---- flushes ---- */

static void a_flush_that_fails_is_told_to_all_who_have_written(void **state)
{
	uint32_t of_v = volume_handle(v), of_w = volume_handle(w);
	struct volume *idle = rig_create_volume(rig, "idle", MIB);
	uint32_t of_idle = volume_handle(idle);

	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, SECTOR, 3), 0); /* both in place */
	assert_int_equal(rig_fill(rig, w, 0, SECTOR, 3), 0);
	fail_data(FLUSHES, 1);
	assert_int_equal(flush_by(v, of_v), -EIO);
	assert_writable();
	assert_int_equal(flush_by(v, of_v), 0);
	assert_int_equal(flush_by(idle, of_idle), 0);
	assert_int_equal(flush_by(w, of_w), -EIO); /* the device would not say it again */
	assert_int_equal(flush_by(w, of_w), 0);
	assert_int_equal(rig_fill(rig, v, 10 * BLOCK, BLOCK, 3), 0);
	assert_int_equal(flush_by(v, of_v), 0);
	rig_close_volume(idle);
}

/* The pool stays writable, so that it can happen again. */
static void a_disk_that_was_told_stays_so_when_more_is_lost(void **state)
{
	uint32_t disk = volume_handle(v), file = volume_handle(v);
	void *buffer = io_buffer_alloc(SECTOR);
	struct pool_io flush = { .op = POOL_FLUSH, .volume = v, .of_disk = true, .handle = disk };
	struct pool_io write = {
		.op = POOL_WRITE, .volume = v, .handle = disk, .length = SECTOR, .buffer = buffer
	};

	(void)state;
	memset(buffer, 4, SECTOR);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(rig_fill(rig, v, 0, SECTOR, 3), 0);
		fail_data(FLUSHES, 1);
		assert_int_equal(flush_by(v, file), -EIO);
		assert_int_equal(flush_by(v, file), 0);
		assert_writable();
		assert_int_equal(pool_io_run(rig->pool, rig->q, &write), i ? -EIO : 0);
		if (!i)
			assert_int_equal(pool_io_run(rig->pool, rig->q, &flush), -EIO);
		assert_int_equal(pool_io_run(rig->pool, rig->q, &write), -EIO);
	}
	free(buffer);
}

static void what_was_flushed_before_is_not_lost(void **state)
{
	uint32_t of_v = volume_handle(v), of_w = volume_handle(w);

	(void)state;
	assert_int_equal(rig_fill(rig, w, 0, SECTOR, 3), 0);
	assert_int_equal(flush_by(w, of_w), 0);
	assert_int_equal(rig_fill(rig, v, 0, SECTOR, 3), 0);
	fail_data(FLUSHES, 1);
	assert_int_equal(flush_by(v, of_v), -EIO);
	assert_int_equal(flush_by(w, of_w), 0);
	assert_writable();
}

/* Its blocks may hold anything; a later commit, whose own flush succeeds, must not map them. */
static void a_transaction_does_not_survive_a_flush_that_fails(void **state)
{
	uint32_t of_v = volume_handle(v), of_w = volume_handle(w);

	(void)state;
	assert_int_equal(rig_fill(rig, v, 10 * BLOCK, BLOCK, 3), 0);
	fail_data(FLUSHES, 1);
	assert_int_equal(flush_by(w, of_w), -EIO); /* has nothing to commit */
	assert_int_equal(flush_by(v, of_v), -EIO);
	assert_int_equal(flush_by(v, of_v), 0);
	assert_true(rig_reads_as(rig, v, 10 * BLOCK, BLOCK, 0));
	assert_comes_back();
	assert_true(rig_reads_as(rig, v, 10 * BLOCK, BLOCK, 0));
}

static void a_commit_whose_data_cannot_be_flushed_is_none(void **state)
{
	const struct fault_log_entry *log;
	uint32_t of_v = volume_handle(v), of_w = volume_handle(w);
	size_t nr;

	(void)state;
	assert_int_equal(rig_fill(rig, v, 10 * BLOCK, BLOCK, 3), 0);
	assert_int_equal(rig_fill(rig, w, 0, SECTOR, 3), 0); /* in place */
	fault_device_log_start(rig->meta, false);
	fail_data(FLUSHES, 1);
	assert_int_equal(flush_by(v, of_v), -EIO);
	fault_device_log_stop(rig->meta);
	log = fault_device_log(rig->meta, &nr);
	for (size_t i = 0; i < nr; i++) /* the superblock */
		assert_false(log[i].op == IO_WRITE && !log[i].offset);
	fault_device_log_clear(rig->meta);
	assert_int_equal(flush_by(v, of_v), 0);
	assert_int_equal(flush_by(w, of_w), -EIO);
	assert_comes_back();
}

/* Not only data is to blame then: NEEDS_CHECK is stored, and who wrote data is told all the same.
 */
static void both_devices_may_fail_in_one_commit(void **state)
{
	uint32_t of_w = volume_handle(w);

	(void)state;
	assert_int_equal(rig_fill(rig, v, 10 * BLOCK, BLOCK, 3), 0);
	assert_int_equal(rig_fill(rig, w, 0, SECTOR, 3), 0); /* in place */
	fail_data(FLUSHES, 1);
	fault_device_add(rig->meta, &(struct fault){ .ops = WRITES, .count = 1 });
	assert_int_equal(rig_flush(rig, v), -EIO);
	assert_int_equal(flush_by(w, of_w), -EIO);
	assert_int_equal(flush_by(w, of_w), 0);
	assert_int_equal(rig_status(rig).mode, POOL_MODE_READ_ONLY);
	assert_true(rig_status(rig).needs_check);
	assert_true(flag_is_stored());
}

static void the_last_flush_of_all_may_fail_too(void **state)
{
	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, SECTOR, 3), 0);
	fail_data(FLUSHES, ALWAYS);
	rig_close_volume(v);
	rig_close_volume(w);
	assert_int_equal(pool_rig_close(rig), -EIO);
	fault_device_clear(rig->data);
	assert_true(pool_rig_is_clean(rig));
	pool_rig_open(rig);
	v = rig_open_volume(rig, "vol");
	w = rig_open_volume(rig, "other");
	assert_writable();
}

/* ---- how many writers there may be ---- */

/* Each write is either covered by a flush that succeeded, or told of. */
static void no_write_is_missed_between_flushes(void **state)
{
	uint32_t of_v = volume_handle(v);
	struct rig_request flushes[8], write;
	void *buffer = io_buffer_alloc(SECTOR);

	(void)state;
	memset(buffer, 7, SECTOR);
	/* It ends while flushes that began before it, and fail after it, are under way. */
	fault_device_delay(rig->data, FLUSHES);
	for (unsigned i = 0; i < 8; i++)
		rig_start(rig, &flushes[i], w, POOL_FLUSH, 0, 0, NULL);
	assert_true(fault_device_wait_held(rig->data, 8));
	rig_start(rig, &write, v, POOL_WRITE, 0, SECTOR, buffer);
	assert_int_equal(rig_wait(rig, &write), 0);
	fault_device_release_all(rig->data);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(rig_wait(rig, &flushes[i]), 0);
	/* None of them covers it: they had begun. */
	fail_data(FLUSHES, 1);
	assert_int_equal(rig_flush(rig, w), -EIO);
	assert_int_equal(flush_by(v, of_v), -EIO);
	free(buffer);
	assert_writable();
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(a_bad_sector_is_an_error_of_who_asks_for_it),
		T(part_of_a_sector_cannot_be_written_without_reading_it),
		T(a_hole_stays_one_when_its_block_cannot_be_written),
		T(what_cannot_be_copied_stays_shared),
		T(a_copy_that_cannot_be_written_is_none),
		T(a_punch_whose_ends_cannot_be_zeroed_says_so),
		T(an_allocation_that_cannot_be_zeroed_is_none),
		T(a_device_that_comes_back_is_used_again),
		T(names_cannot_be_changed_without_it_and_nothing_is_wrong_afterwards),
		T(a_flush_that_fails_is_told_to_all_who_have_written),
		T(a_disk_that_was_told_stays_so_when_more_is_lost),
		T(what_was_flushed_before_is_not_lost),
		T(a_transaction_does_not_survive_a_flush_that_fails),
		T(a_commit_whose_data_cannot_be_flushed_is_none),
		cmocka_unit_test_setup_teardown(both_devices_may_fail_in_one_commit, setup,
						teardown_failed),
		T(the_last_flush_of_all_may_fail_too),
		T(no_write_is_missed_between_flushes),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
