/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for pool/extend.c: a pool grows in service, and never shrinks.
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
#define NR_BLOCKS 64u

static struct pool_rig *rig;
static struct volume *v;

static int setup(void **state)
{
	(void)state;
	rig = pool_rig_create(BLOCK, NR_BLOCKS, 512);
	v = rig_create_volume(rig, "vol", 64 * MIB);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	return pool_rig_end(rig, v);
}

/* 0: as it is. */
static int extend(uint64_t data, uint64_t metadata, struct pool_command *cmd)
{
	int r;

	*cmd = command(POOL_EXTEND, 0, "", "", data);
	cmd->metadata_bytes = metadata;
	r = pool_command_run(rig->pool, cmd);
	assert_int_equal(r != 0, cmd->error.text[0] != '\0');
	return r;
}

static uint64_t fill_up(void)
{
	uint64_t n = 0;
	int r;

	while (!(r = rig_fill(rig, v, n * BLOCK, BLOCK, (int)n % 250 + 1)))
		n++;
	assert_int_equal(r, -ENOSPC);
	return n;
}

static void data_grows_and_stays_grown(void **state)
{
	uint64_t n = fill_up(), more;
	struct pool_command cmd;

	(void)state;
	assert_int_equal(rig_status(rig).mode, POOL_MODE_OUT_OF_DATA_SPACE);
	assert_int_equal(extend(2 * NR_BLOCKS * BLOCK, 0, &cmd), 0);
	assert_int_equal(cmd.size_bytes, 2 * NR_BLOCKS * BLOCK);
	assert_int_equal(cmd.metadata_bytes, rig_status(rig).metadata_total);
	assert_int_equal(rig_status(rig).mode, POOL_MODE_WRITE);
	assert_int_equal(rig_status(rig).data_total, 2 * NR_BLOCKS * BLOCK);
	assert_int_equal(io_device_size(rig->data), 2 * NR_BLOCKS * BLOCK);
	more = fill_up();
	assert_int_equal(more, n + NR_BLOCKS);
	rig_close_volume(v);
	pool_rig_reopen(rig);
	v = rig_open_volume(rig, "vol");
	assert_int_equal(rig_status(rig).data_total, 2 * NR_BLOCKS * BLOCK);
	for (uint64_t i = 0; i < more; i++)
		assert_true(rig_reads_as(rig, v, i * BLOCK, BLOCK, (int)i % 250 + 1));
}

static bool is_out_of_space(void *unused)
{
	(void)unused;
	return rig_status(rig).mode == POOL_MODE_OUT_OF_DATA_SPACE;
}

static void waiting_writers_go_on_at_once(void **state)
{
	uint64_t n = fill_up(), began;
	void *buffer = io_buffer_alloc(BLOCK);
	struct rig_request write;
	struct pool_command cmd;

	(void)state;
	rig->options.queue_if_no_space = true;
	rig->options.commit_interval_usec = 30 * USEC_PER_SEC;
	rig_close_volume(v);
	pool_rig_reopen(rig);
	v = rig_open_volume(rig, "vol");
	memset(buffer, 5, BLOCK);
	rig_start(rig, &write, v, POOL_WRITE, n * BLOCK, BLOCK, buffer);
	assert_true(rig_await(rig, is_out_of_space, NULL));
	began = time_monotonic_usec();
	assert_int_equal(extend((NR_BLOCKS + 1) * BLOCK, 0, &cmd), 0);
	assert_int_equal(rig_wait(rig, &write), 0);
	assert_true(time_monotonic_usec() - began < 5 * USEC_PER_SEC);
	assert_true(rig_reads_as(rig, v, n * BLOCK, BLOCK, 5));
	free(buffer);
}

static void sizes_are_rounded_down_to_blocks(void **state)
{
	struct pool_command cmd;

	(void)state;
	assert_int_equal(extend(100 * BLOCK + BLOCK - 1, 9 * MIB + 5000, &cmd), 0);
	assert_int_equal(cmd.size_bytes, 100 * BLOCK);
	assert_int_equal(cmd.metadata_bytes, 9 * MIB + 4096);
	assert_int_equal(rig_status(rig).data_total, 100 * BLOCK);
	assert_int_equal(rig_status(rig).metadata_total, 9 * MIB + 4096);
	/* Less than a block more is the same size. */
	assert_int_equal(extend(100 * BLOCK + 1, 0, &cmd), 0);
	assert_int_equal(cmd.size_bytes, 100 * BLOCK);
}

static void nothing_is_made_smaller(void **state)
{
	struct pool_command cmd;

	(void)state;
	assert_int_equal(extend(NR_BLOCKS * BLOCK - 1, 0, &cmd), -EINVAL);
	assert_non_null(strstr(cmd.error.text, "data has 4M"));
	assert_int_equal(extend(0, 4 * MIB, &cmd), -EINVAL);
	assert_non_null(strstr(cmd.error.text, "metadata has 8M"));
	/* Both are looked at before one is changed. */
	assert_int_equal(extend(1, 16 * MIB, &cmd), -EINVAL);
	assert_int_equal(rig_status(rig).metadata_total, 8 * MIB);
	assert_int_equal(io_device_size(rig->meta), 8 * MIB);
	assert_int_equal(extend(0, 0, &cmd), -EINVAL);
	assert_int_equal(extend(UINT64_MAX, 0, &cmd), -EFBIG);
	assert_int_equal(rig_status(rig).mode, POOL_MODE_WRITE);
	assert_int_equal(rig_status(rig).stats.aborts, 0);
}

static void a_read_only_pool_is_not_extended(void **state)
{
	struct pool_command cmd;

	(void)state;
	rig_close_volume(v);
	rig->options.read_only = true;
	pool_rig_reopen(rig);
	assert_int_equal(extend(2 * NR_BLOCKS * BLOCK, 0, &cmd), -EROFS);
	assert_int_equal(io_device_size(rig->data), NR_BLOCKS * BLOCK);
	rig->options.read_only = false;
	pool_rig_reopen(rig);
	v = rig_open_volume(rig, "vol");
}

/* 16 TiB of 64K blocks need 64 MiB of bitmaps: refused, not begun and aborted. */
static void counts_that_find_no_room_are_refused(void **state)
{
	struct pool_command cmd;

	(void)state;
	assert_int_equal(extend(16 * MIB * MIB, 0, &cmd), -ENOSPC);
	assert_non_null(strstr(cmd.error.text, "extend metadata too"));
	assert_int_equal(rig_status(rig).stats.aborts, 0);
	assert_int_equal(rig_status(rig).data_total, NR_BLOCKS * BLOCK);
	assert_int_equal(io_device_size(rig->data), NR_BLOCKS * BLOCK);
}

static void data_and_metadata_grow_together(void **state)
{
	struct pool_command cmd;

	(void)state;
	assert_int_equal(extend(20000 * BLOCK, 64 * MIB, &cmd), 0);
	assert_int_equal(rig_status(rig).data_total, 20000 * BLOCK);
	assert_int_equal(rig_status(rig).metadata_total, 64 * MIB);
	assert_int_equal(rig_fill(rig, v, 0, 16 * MIB, 3), 0);
	assert_true(rig_reads_as(rig, v, 0, 16 * MIB, 3));
}

/* The nth write or flush of metadata fails, in a copy of the pool. */
static bool extension_fails_at(unsigned n)
{
	struct pool_rig *main_rig = rig, *image = crash_image(rig);
	struct pool_command cmd;
	uint64_t total;
	bool failed;

	rig = image;
	fault_device_fail_nth(image->meta, FAULT_OP(IO_WRITE) | FAULT_OP(IO_FLUSH), n);
	failed = extend(2 * NR_BLOCKS * BLOCK, 16 * MIB, &cmd) != 0;
	fault_device_clear(image->meta);
	rig = main_rig;
	assert_int_equal(fault_device_nr_failed(image->meta), failed);
	(void)pool_rig_close(image);
	assert_true(pool_rig_is_clean(image));
	pool_rig_open(image);
	total = rig_status(image).data_total;
	assert_true(total == 2 * NR_BLOCKS * BLOCK || (failed && total == NR_BLOCKS * BLOCK));
	assert_int_equal(rig_status(image).needs_check, failed);
	pool_rig_destroy(image);
	return failed;
}

static void a_failure_leaves_the_old_size_or_the_new(void **state)
{
	unsigned n = 1;

	(void)state;
	while (extension_fails_at(n))
		n++;
	assert_true(n > 4);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(data_grows_and_stays_grown),       T(waiting_writers_go_on_at_once),
		T(sizes_are_rounded_down_to_blocks), T(nothing_is_made_smaller),
		T(a_read_only_pool_is_not_extended), T(counts_that_find_no_room_are_refused),
		T(data_and_metadata_grow_together),  T(a_failure_leaves_the_old_size_or_the_new),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
