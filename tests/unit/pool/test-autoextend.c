/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for pool/autoextend.c: a pool grows at its threshold, into what its host can hold for
 * certain and no further, and tells why when it does not.
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
#include "util/clock.h"

#define BLOCK (64 * KIB)
#define NR_BLOCKS 100u

static struct pool_rig *rig;
static struct volume *v;
static struct mem_host host;

static void reopen_with(struct pool_autoextend autoextend)
{
	if (v)
		rig_close_volume(v);
	rig->options.autoextend = autoextend;
	pool_rig_reopen(rig);
	v = v ? rig_open_volume(rig, "vol") : rig_create_volume(rig, "vol", 256 * MIB);
}

static void be_on_host(uint64_t bytes)
{
	host.total = bytes;
	host.used = 0;
	mem_device_set_host(fault_device_inner(rig->meta), &host);
	mem_device_set_host(fault_device_inner(rig->data), &host);
}

static int setup(void **state)
{
	(void)state;
	rig = pool_rig_create_sized(BLOCK, NR_BLOCKS, 512, 2 * MIB);
	v = NULL;
	reopen_with((struct pool_autoextend){ .threshold = 80, .percent = 20 });
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	return pool_rig_end(rig, v);
}

static uint64_t total(void)
{
	return rig_status(rig).data_total / BLOCK;
}

static uint64_t used(void)
{
	return rig_status(rig).data_used / BLOCK;
}

static int write_block(uint64_t n)
{
	return rig_fill(rig, v, n * BLOCK, BLOCK, (int)n % 250 + 1);
}

/* Blocks of the volume from 0 on, until that many of the pool are in use. */
static uint64_t use(uint64_t blocks)
{
	uint64_t n = 0;

	for (; used() < blocks; n++) {
		assert_int_equal(write_block(n), 0);
		assert_int_equal(rig_commit(rig), 0);
	}
	return n;
}

static void data_grows_at_the_threshold_and_not_before(void **state)
{
	uint64_t n = use(79);

	(void)state;
	assert_int_equal(total(), 100);
	assert_int_equal(rig_status(rig).stats.autoextended_data, 0);
	assert_int_equal(write_block(n), 0);
	assert_int_equal(rig_commit(rig), 0);
	assert_int_equal(total(), 120);
	assert_int_equal(io_device_size(rig->data), 120 * BLOCK);
	assert_int_equal(rig_status(rig).stats.autoextended_data, 1);
	assert_string_equal(rig_status(rig).data_not_extended, "");
	/* And stays so. */
	reopen_with(rig->options.autoextend);
	assert_int_equal(total(), 120);
	assert_true(rig_reads_as(rig, v, n * BLOCK, BLOCK, (int)n % 250 + 1));
}

/* In one pass more is written than is free: those who find no block wait for the extension. */
static void nobody_is_told_of_a_full_pool_that_can_grow(void **state)
{
	enum { WRITES = 400 };
	struct rig_request *writes = calloc(WRITES, sizeof(*writes));
	void *buffer = io_buffer_alloc(BLOCK);

	(void)state;
	assert_false(rig->options.queue_if_no_space);
	memset(buffer, 7, BLOCK);
	for (unsigned i = 0; i < WRITES; i++)
		rig_start(rig, &writes[i], v, POOL_WRITE, i * BLOCK, BLOCK, buffer);
	for (unsigned i = 0; i < WRITES; i++)
		assert_int_equal(rig_wait(rig, &writes[i]), 0);
	assert_int_equal(rig_status(rig).mode, POOL_MODE_WRITE);
	assert_true(total() > WRITES);
	assert_true(rig_reads_as(rig, v, 0, WRITES * BLOCK, 7));
	free(buffer);
	free(writes);
}

static void a_threshold_of_100_means_never(void **state)
{
	uint64_t n = 0;
	int r;

	(void)state;
	reopen_with((struct pool_autoextend){ .threshold = 100, .percent = 20 });
	while (!(r = write_block(n)))
		n++;
	assert_int_equal(r, -ENOSPC);
	assert_int_equal(total(), 100);
	assert_string_equal(rig_status(rig).data_not_extended, "");
}

static void data_does_not_outgrow_max_size(void **state)
{
	uint64_t n = 0;
	int r;

	(void)state;
	reopen_with((struct pool_autoextend){
		.threshold = 80, .percent = 20, .max_bytes = 130 * BLOCK + 5 });
	while (!(r = write_block(n)))
		n++;
	assert_int_equal(r, -ENOSPC);
	assert_int_equal(total(), 130);
	assert_non_null(strstr(rig_status(rig).data_not_extended, "max_size"));
	/* A larger limit counts at once. */
	rig->options.autoextend.max_bytes = 200 * BLOCK;
	pool_configure(rig->pool, &rig->options);
	assert_int_equal(write_block(n), 0);
	assert_int_equal(rig_commit(rig), 0);
	assert_true(total() > 130);
	assert_string_equal(rig_status(rig).data_not_extended, "");
}

/* 10 MiB: 2 of metadata, 6.25 of data, of which most is promised; a twentieth is kept back. */
static void data_takes_no_more_than_the_host_can_hold(void **state)
{
	uint64_t n = 0, promised;
	int r;

	(void)state;
	be_on_host(10 * MIB);
	while (!(r = write_block(n)))
		n++;
	assert_int_equal(r, -ENOSPC);
	assert_true(total() > NR_BLOCKS);
	promised = io_device_size(rig->data) + io_device_size(rig->meta);
	assert_true(promised <= 10 * MIB - 10 * MIB / 20);
	assert_true(promised > 10 * MIB - 10 * MIB / 20 - 2 * BLOCK);
	assert_non_null(strstr(rig_status(rig).data_not_extended, "not promised or reserved"));
	assert_int_equal(rig_status(rig).mode, POOL_MODE_OUT_OF_DATA_SPACE);
	assert_int_equal(rig_status(rig).stats.aborts, 0);
}

static void who_waits_goes_on_when_the_host_has_room_again(void **state)
{
	void *buffer = io_buffer_alloc(BLOCK);
	struct rig_request write;
	uint64_t n, began;

	(void)state;
	be_on_host(9 * MIB);
	rig->options.queue_if_no_space = true;
	pool_configure(rig->pool, &rig->options);
	n = use(total() * 8 / 10);
	while (used() < total() && used() < 1000)
		assert_int_equal(write_block(n++), 0);
	memset(buffer, 9, BLOCK);
	rig_start(rig, &write, v, POOL_WRITE, n * BLOCK, BLOCK, buffer);
	began = time_monotonic_usec();
	while (rig_status(rig).mode != POOL_MODE_OUT_OF_DATA_SPACE)
		assert_true(time_monotonic_usec() - began < 10 * USEC_PER_SEC);
	assert_false(rig_is_done(&write));
	host.total = 100 * MIB;
	assert_int_equal(rig_wait(rig, &write), 0);
	assert_int_equal(rig_status(rig).mode, POOL_MODE_WRITE);
	free(buffer);
}

/* Snapshots and a write after each copy nodes without end. */
static void metadata_grows_before_only_the_reserve_is_left(void **state)
{
	char name[32];
	uint64_t began = rig_status(rig).metadata_total;

	(void)state;
	for (unsigned i = 0; i < 600; i++) {
		snprintf(name, sizeof(name), "s%u", i);
		assert_int_equal(rig_snapshot(rig, "vol", name), 0);
		assert_int_equal(write_block(0), 0);
	}
	assert_true(rig_status(rig).metadata_total > began);
	assert_true(rig_status(rig).stats.autoextended_metadata > 0);
	assert_int_equal(rig_status(rig).mode, POOL_MODE_WRITE);
	assert_int_equal(io_device_size(rig->meta), rig_status(rig).metadata_total);
}

static void metadata_that_cannot_grow_stays_as_it_is(void **state)
{
	char name[32];

	(void)state;
	reopen_with((struct pool_autoextend){ .threshold = 3, .percent = 20 });
	be_on_host(10 * MIB);
	assert_int_equal(io_device_allocate(rig->meta, 0, 2 * MIB), 0);
	host.total = host.used + 4 * MIB; /* promised to data */
	for (unsigned i = 0; i < 50; i++) {
		snprintf(name, sizeof(name), "s%u", i);
		assert_int_equal(rig_snapshot(rig, "vol", name), 0);
		assert_int_equal(write_block(i % 8), 0);
	}
	assert_non_null(strstr(rig_status(rig).metadata_not_extended, "file system"));
	assert_int_equal(rig_status(rig).mode, POOL_MODE_WRITE);
	assert_int_equal(rig_status(rig).stats.aborts, 0);
	assert_int_equal(rig_status(rig).metadata_total, 2 * MIB);
}

static void a_block_device_is_left_alone(void **state)
{
	uint64_t n;

	(void)state;
	fault_device_inner(rig->data)->is_block_device = true;
	rig->data->is_block_device = true;
	n = use(80);
	assert_int_equal(write_block(n), 0);
	assert_int_equal(rig_commit(rig), 0);
	assert_int_equal(total(), 100);
	assert_non_null(strstr(rig_status(rig).data_not_extended, "block device"));
	rig->data->is_block_device = false;
}

/* The nth write or flush of metadata fails while the pool grows by itself. */
static bool extension_fails_at(unsigned n)
{
	struct pool_rig *main_rig = rig, *image = crash_image(rig);
	struct volume *main_v = v;
	uint64_t was = 0, now;
	bool failed;

	rig = image;
	v = rig_open_volume(rig, "vol");
	was = total();
	fault_device_fail_nth(image->meta, FAULT_OP(IO_WRITE) | FAULT_OP(IO_FLUSH), n);
	(void)write_block(200);
	(void)rig_commit(rig);
	failed = fault_device_nr_failed(image->meta) > 0;
	fault_device_clear(image->meta);
	rig_close_volume(v);
	rig = main_rig;
	v = main_v;
	(void)pool_rig_close(image);
	assert_true(pool_rig_is_clean(image));
	pool_rig_open(image);
	now = rig_status(image).data_total / BLOCK;
	assert_true(now == was + was / 5 || (failed && now == was));
	pool_rig_destroy(image);
	return failed;
}

static void a_failure_leaves_the_old_size_or_the_new(void **state)
{
	unsigned n = 1;

	(void)state;
	(void)use(79);
	while (extension_fails_at(n))
		n++;
	assert_true(n > 4);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(data_grows_at_the_threshold_and_not_before),
		T(nobody_is_told_of_a_full_pool_that_can_grow),
		T(a_threshold_of_100_means_never),
		T(data_does_not_outgrow_max_size),
		T(data_takes_no_more_than_the_host_can_hold),
		T(who_waits_goes_on_when_the_host_has_room_again),
		T(metadata_grows_before_only_the_reserve_is_left),
		T(metadata_that_cannot_grow_stays_as_it_is),
		T(a_block_device_is_left_alone),
		T(a_failure_leaves_the_old_size_or_the_new),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
