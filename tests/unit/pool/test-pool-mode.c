/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for pool/pool-mode.c: a pool without data space, without metadata space, read-only.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "util/clock.h"

#define BLOCK (64 * KIB)
#define NR_BLOCKS 64u

static struct pool_rig *rig;
static struct volume *v;
static atomic_uint mode_events;

static void count_events(void *ctx, const struct pool_event *ev)
{
	(void)ctx;
	if (ev->kind == POOL_EVENT_MODE)
		mode_events++;
}

static void open_again(void)
{
	rig_close_volume(v);
	pool_rig_reopen(rig);
	v = rig_open_volume(rig, "vol");
}

static int setup(void **state)
{
	(void)state;
	rig = pool_rig_create(BLOCK, NR_BLOCKS, 512);
	v = rig_create_volume(rig, "vol", 16 * MIB);
	rig->options.event = count_events;
	open_again();
	mode_events = 0;
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	return pool_rig_end(rig, v);
}

/* Write blocks until there is no space; returns how many there were. */
static uint64_t fill_up(void)
{
	uint64_t n = 0;
	int r;

	while (!(r = rig_fill(rig, v, n * BLOCK, BLOCK, (int)n + 1)))
		n++;
	assert_int_equal(r, -ENOSPC);
	assert_true(n > NR_BLOCKS / 2);
	return n;
}

static void a_full_pool_serves_what_it_has(void **state)
{
	uint64_t n = fill_up();

	(void)state;
	assert_int_equal(rig_status(rig).mode, POOL_MODE_OUT_OF_DATA_SPACE);
	assert_string_equal(pool_mode_name(rig_status(rig).mode), "out_of_data_space");
	assert_int_equal(mode_events, 1);
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 99), 0);
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 99));
	assert_true(rig_reads_as(rig, v, n * BLOCK, BLOCK, 0));
	assert_int_equal(rig_flush(rig, v), 0);
	assert_int_equal(rig_snapshot(rig, "vol", "snap"), 0);
	assert_int_equal(rig_fill(rig, v, 0, 4096, 1), -ENOSPC); /* would break sharing */
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 99));
}

static void a_discard_makes_a_full_pool_writable(void **state)
{
	uint64_t n = fill_up();

	(void)state;
	assert_int_equal(rig_punch(rig, v, 0, 4 * BLOCK), 0);
	/* Not before the commit are the blocks free: the write waits for it, and for the punch. */
	assert_int_equal(rig_fill(rig, v, n * BLOCK, 4 * BLOCK, 7), 0);
	assert_true(rig_reads_as(rig, v, n * BLOCK, 4 * BLOCK, 7));
	assert_int_equal(rig_status(rig).mode, POOL_MODE_WRITE);
	assert_string_equal(rig_status(rig).reason, "");
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 7), -ENOSPC);
}

static void deleting_makes_a_full_pool_writable(void **state)
{
	struct volume *other = rig_create_volume(rig, "other", 1 * MIB);

	(void)state;
	assert_int_equal(rig_fill(rig, other, 0, 4 * BLOCK, 1), 0);
	rig_close_volume(other);
	fill_up();
	assert_int_equal(rig_delete(rig, "other"), 0);
	assert_int_equal(rig_fill(rig, v, 15 * MIB, BLOCK, 7), 0);
}

/* The first step of a removal gives back nothing that a snapshot has too: the write awaits the
 * next. */
static void a_removal_under_way_is_waited_for(void **state)
{
	enum { SHARED = 5000, OWN = 100 };
	struct pool_rig *large = pool_rig_create(BLOCK, SHARED + OWN + 50, 512);
	void *buffer = io_buffer_alloc(BLOCK);
	struct volume *big, *other;
	uint64_t i;

	(void)state;
	large->options.zero_new_blocks = false;
	pool_rig_reopen(large);
	big = rig_create_volume(large, "big", 1000 * MIB);
	other = rig_create_volume(large, "other", 1000 * MIB);
	memset(buffer, 1, BLOCK);
	for (i = 0; i < SHARED; i++)
		assert_int_equal(rig_io(large, big, POOL_WRITE, i * BLOCK, 4096, buffer), 0);
	assert_int_equal(rig_snapshot(large, "big", "snap"), 0);
	for (; i < SHARED + OWN; i++)
		assert_int_equal(rig_io(large, big, POOL_WRITE, i * BLOCK, 4096, buffer), 0);
	for (i = 0; !rig_io(large, other, POOL_WRITE, i * BLOCK, 4096, buffer);)
		i++;
	rig_close_volume(big);
	assert_int_equal(rig_delete(large, "big"), 0);
	assert_int_equal(rig_fill(large, other, i * BLOCK, OWN / 2 * BLOCK, 7), 0);
	rig_close_volume(other);
	assert_int_equal(pool_rig_close(large), 0);
	assert_true(pool_rig_is_clean(large));
	pool_rig_destroy(large);
	free(buffer);
}

static void a_failed_write_past_the_space_leaks_nothing(void **state)
{
	uint64_t n = fill_up(), used;

	(void)state;
	assert_int_equal(rig_commit(rig), 0);
	used = rig_status(rig).data_used;
	assert_int_equal(rig_punch(rig, v, 0, 2 * BLOCK), 0);
	/* Two of four find a place, and stay: half a write is better than none for nobody. */
	assert_int_equal(rig_fill(rig, v, n * BLOCK, 4 * BLOCK, 7), -ENOSPC);
	assert_int_equal(rig_commit(rig), 0);
	assert_int_equal(rig_status(rig).data_used, used);
}

/* ---- waiting for space ---- */

static bool is_out_of_space(void *unused)
{
	(void)unused;
	return rig_status(rig).mode == POOL_MODE_OUT_OF_DATA_SPACE;
}

static void queued_writes_go_on_when_there_is_space(void **state)
{
	uint64_t n = fill_up();
	void *buffer = io_buffer_alloc(BLOCK);
	struct rig_request write;

	(void)state;
	rig->options.queue_if_no_space = true;
	open_again();
	memset(buffer, 5, BLOCK);
	rig_start(rig, &write, v, POOL_WRITE, n * BLOCK, BLOCK, buffer);
	assert_true(rig_await(rig, is_out_of_space, NULL));
	/* It holds nothing that others need. */
	assert_true(rig_reads_as(rig, v, n * BLOCK, BLOCK, 0));
	assert_int_equal(rig_snapshot(rig, "vol", "snap"), 0);
	assert_int_equal(rig_delete(rig, "snap"), 0);
	assert_false(rig_is_done(&write));
	assert_int_equal(rig_punch(rig, v, 0, BLOCK), 0);
	assert_int_equal(rig_wait(rig, &write), 0);
	assert_true(rig_reads_as(rig, v, n * BLOCK, BLOCK, 5));
	free(buffer);
}

static void queued_writes_fail_after_the_timeout(void **state)
{
	uint64_t n = fill_up(), began;

	(void)state;
	rig->options.queue_if_no_space = true;
	rig->options.no_space_timeout_usec = 300 * USEC_PER_MSEC;
	open_again();
	began = time_monotonic_usec();
	assert_int_equal(rig_fill(rig, v, n * BLOCK, BLOCK, 1), -ENOSPC);
	assert_true(time_monotonic_usec() - began >= 300 * USEC_PER_MSEC);
	/* From now on at once. */
	began = time_monotonic_usec();
	assert_int_equal(rig_fill(rig, v, n * BLOCK, BLOCK, 1), -ENOSPC);
	assert_true(time_monotonic_usec() - began < 300 * USEC_PER_MSEC);
}

/* ---- metadata space ---- */

static void without_metadata_space_deleting_still_works(void **state)
{
	struct pool_rig *small = pool_rig_create_sized(BLOCK, 300000, 512, 2 * MIB);
	struct volume *big;
	void *buffer = io_buffer_alloc(4096);
	uint64_t n = 0;
	int r;

	(void)state;
	small->options.zero_new_blocks = false; /* a device in memory is slow to say what is zero */
	pool_rig_reopen(small);
	big = rig_create_volume(small, "big", 1000 * 1000 * MIB);
	memset(buffer, 1, 4096);
	/* Far apart, so that each write needs leaves of its own. */
	while (!(r = rig_io(small, big, POOL_WRITE,
			    n * 1000 * MIB % (1000 * 1000 * MIB) + n / 1000 * BLOCK, 4096,
			    buffer)) &&
	       n < 100000)
		n++;
	assert_int_equal(r, -ENOSPC);
	assert_int_equal(rig_status(small).mode, POOL_MODE_OUT_OF_METADATA_SPACE);
	assert_int_equal(rig_status(small).stats.aborts, 0);
	assert_false(rig_status(small).needs_check);
	assert_int_equal(rig_io(small, big, POOL_WRITE, 0, 4096, buffer), 0);
	assert_int_equal(rig_flush(small, big), 0);
	/* Opening again gives nobody a share of the reserve. */
	rig_close_volume(big);
	pool_rig_reopen(small);
	big = rig_open_volume(small, "big");
	assert_int_equal(rig_status(small).mode, POOL_MODE_OUT_OF_METADATA_SPACE);
	assert_int_equal(rig_io(small, big, POOL_WRITE, 999999 * MIB, 4096, buffer), -ENOSPC);
	assert_int_equal(rig_punch(small, big, 0, 500 * 1000 * MIB), 0);
	assert_int_equal(rig_commit(small), 0);
	assert_int_equal(rig_status(small).mode, POOL_MODE_WRITE);
	assert_int_equal(rig_io(small, big, POOL_WRITE, 0, 4096, buffer), 0);
	rig_close_volume(big);
	assert_int_equal(rig_delete(small, "big"), 0);
	assert_int_equal(pool_rig_close(small), 0);
	assert_true(pool_rig_is_clean(small));
	pool_rig_destroy(small);
	free(buffer);
}

#define NR_AT_ONCE 126u
#define LEAF 100u /* blocks: further apart than this they are in different leaves */

/* One write to each leaf of the volume, all under way at the same time; the errors are counted. */
static unsigned write_everywhere(struct pool_rig *r, struct volume *vol, void *buffer)
{
	static struct rig_request writes[NR_AT_ONCE];
	unsigned nr_errors = 0;

	fault_device_delay(r->data, FAULT_OP(IO_WRITE));
	for (unsigned i = 0; i < NR_AT_ONCE; i++)
		rig_start(r, &writes[i], vol, POOL_WRITE, (uint64_t)i * LEAF * BLOCK, BLOCK,
			  buffer);
	(void)fault_device_wait_held(r->data, NR_AT_ONCE / 2); /* a full pool holds none */
	fault_device_release_all(r->data);
	for (unsigned i = 0; i < NR_AT_ONCE; i++) {
		int result = rig_wait(r, &writes[i]);

		assert_true(result == 0 || result == -ENOSPC);
		nr_errors += result != 0;
	}
	return nr_errors;
}

/* After a snapshot each write takes a leaf of its own: so many together need more than the reserve.
 */
static void many_writes_at_once_leave_the_commit_its_reserve(void **state)
{
	struct pool_rig *small = pool_rig_create_sized(BLOCK, 300000, 512, 2 * MIB);
	void *buffer = io_buffer_alloc(BLOCK);
	struct volume *big;
	char name[32];
	unsigned n = 0;

	(void)state;
	small->options.zero_new_blocks = false;
	pool_rig_reopen(small);
	big = rig_create_volume(small, "big", 4096 * MIB);
	memset(buffer, 1, BLOCK);
	for (uint64_t i = 0; i < NR_AT_ONCE * LEAF; i++)
		assert_int_equal(rig_io(small, big, POOL_WRITE, i * BLOCK, 4096, buffer), 0);
	do {
		memset(buffer, (int)++n + 1, BLOCK);
		snprintf(name, sizeof(name), "snap%u", n);
		assert_int_equal(rig_snapshot(small, "big", name), 0);
		assert_true(n < 10);
	} while (!write_everywhere(small, big, buffer));
	assert_int_equal(rig_status(small).mode, POOL_MODE_OUT_OF_METADATA_SPACE);
	assert_int_equal(rig_status(small).stats.aborts, 0);
	assert_int_equal(rig_flush(small, big), 0);

	for (; n; n--) {
		snprintf(name, sizeof(name), "snap%u", n);
		assert_int_equal(rig_delete(small, name), 0);
	}
	while (rig_status(small).nr_volumes > 1 || rig_status(small).mode != POOL_MODE_WRITE)
		assert_int_equal(rig_commit(small), 0);
	assert_int_equal(write_everywhere(small, big, buffer), 0);
	rig_close_volume(big);
	assert_int_equal(pool_rig_close(small), 0);
	assert_true(pool_rig_is_clean(small));
	pool_rig_destroy(small);
	free(buffer);
}

static void many_commands_at_once_leave_the_commit_its_reserve(void **state)
{
	enum { NR = 600 };
	struct pool_rig *small = pool_rig_create_sized(BLOCK, 300, 512, 2 * MIB);
	struct async *creates = calloc(NR, sizeof(*creates));
	unsigned made = 0;
	char name[32];

	(void)state;
	/* The first one's commit is held, so that the others wait together. */
	fault_device_delay(small->meta, FAULT_OP(IO_FLUSH));
	for (unsigned i = 0; i < NR; i++) {
		snprintf(name, sizeof(name), "v%u", i);
		start(small, &creates[i], POOL_CREATE, name, "", MIB);
	}
	fault_device_release_all(small->meta);
	for (unsigned i = 0; i < NR; i++) {
		int r = finish(small, &creates[i]);

		assert_true(r == 0 || r == -ENOSPC);
		made += r == 0;
	}
	assert_true(made > 100 && made < NR);
	assert_int_equal(rig_status(small).nr_volumes, made);
	assert_int_equal(rig_status(small).mode, POOL_MODE_OUT_OF_METADATA_SPACE);
	assert_int_equal(rig_status(small).stats.aborts, 0);
	assert_int_equal(rig_delete(small, "v0"), 0);
	assert_int_equal(rig_delete(small, "v1"), 0);
	assert_int_equal(rig_status(small).mode, POOL_MODE_WRITE);
	assert_int_equal(create(small, "v0", MIB), 0);
	assert_int_equal(pool_rig_close(small), 0);
	assert_true(pool_rig_is_clean(small));
	pool_rig_destroy(small);
	free(creates);
}

/* ---- read-only ---- */

static void a_read_only_pool_is_never_written(void **state)
{
	static _Alignas(4096) uint8_t buffer[4096];
	uint64_t writes;

	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	rig_close_volume(v);
	rig->options.read_only = true;
	pool_rig_reopen(rig);
	writes = fault_device_nr_requests(rig->data, FAULT_ALL_OPS & ~FAULT_OP(IO_READ)) +
		 fault_device_nr_requests(rig->meta, FAULT_ALL_OPS & ~FAULT_OP(IO_READ));
	assert_int_equal(pool_volume_find(rig->pool, "vol", &v), 0);
	assert_int_equal(volume_open(v, true), -EROFS);
	assert_int_equal(volume_open(v, false), 0);
	assert_int_equal(rig_io(rig, v, POOL_WRITE, 0, sizeof(buffer), buffer), -EROFS);
	assert_int_equal(rig_punch(rig, v, 0, BLOCK), -EROFS);
	assert_int_equal(rig_flush(rig, v), 0);
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 1));
	assert_string_equal(pool_mode_name(rig_status(rig).mode), "ro");
	rig_close_volume(v);
	rig->options.read_only = false;
	pool_rig_reopen(rig);
	assert_int_equal(
		fault_device_nr_requests(rig->data, FAULT_ALL_OPS & ~FAULT_OP(IO_READ)) +
			fault_device_nr_requests(rig->meta, FAULT_ALL_OPS & ~FAULT_OP(IO_READ)),
		writes);
	v = rig_open_volume(rig, "vol");
}

static void the_numbers_of_status_add_up(void **state)
{
	struct pool_status s = rig_status(rig);
	uint64_t used = s.data_used;

	(void)state;
	assert_int_equal(s.block_size, BLOCK);
	assert_int_equal(s.data_total, NR_BLOCKS * BLOCK);
	assert_int_equal(s.metadata_total, 8 * MIB);
	assert_true(s.metadata_used > 0 && s.metadata_used < 1 * MIB);
	assert_int_equal(s.nr_volumes, 1);
	assert_int_equal(s.virtual_total, 16 * MIB);
	assert_int_equal(rig_fill(rig, v, 0, 4 * BLOCK, 1), 0);
	assert_int_equal(rig_commit(rig), 0);
	s = rig_status(rig);
	assert_int_equal(s.data_used, used + 4 * BLOCK);
	assert_int_equal(s.stats.writes, 1);
	assert_int_equal(s.stats.write_bytes, 4 * BLOCK);
	assert_int_equal(s.stats.provisioned_blocks, 4);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(a_full_pool_serves_what_it_has),
		T(a_discard_makes_a_full_pool_writable),
		T(deleting_makes_a_full_pool_writable),
		T(a_removal_under_way_is_waited_for),
		T(a_failed_write_past_the_space_leaks_nothing),
		T(queued_writes_go_on_when_there_is_space),
		T(queued_writes_fail_after_the_timeout),
		T(without_metadata_space_deleting_still_works),
		T(many_writes_at_once_leave_the_commit_its_reserve),
		T(many_commands_at_once_leave_the_commit_its_reserve),
		T(a_read_only_pool_is_never_written),
		T(the_numbers_of_status_add_up),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
