/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for pool/worker.c: when what was acknowledged is durable, what a snapshot cuts,
 * and whom a slow worker makes wait.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fault-device.h"
#include "mem-device.h"
#include "pool-fixture.h"
#include "pool/request.h"
#include "prng.h"
#include "util/clock.h"

#define BLOCK (64 * KIB)
#define FLUSHES FAULT_OP(IO_FLUSH)

static struct pool_rig *rig;
static struct volume *v;

static int setup(void **state)
{
	(void)state;
	return pool_rig_begin(&rig, &v);
}

/* No commit but those that somebody asks for. */
static int setup_unhurried(void **state)
{
	(void)setup(state);
	rig_close_volume(v);
	rig->options.commit_interval_usec = 3600 * USEC_PER_SEC;
	pool_rig_reopen(rig);
	v = rig_open_volume(rig, "vol");
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	return pool_rig_end(rig, v);
}

/* ---- flush ---- */

static uint64_t commits(void)
{
	return rig_status(rig).stats.commits;
}

/* Would a crash now keep it?  The devices as they are, seen by another pool. */
static bool survives_crash(uint64_t offset, uint64_t length, int byte)
{
	struct pool_rig copy = *rig;
	struct volume *volume;
	bool same;

	copy.meta = fault_device_create(mem_device_clone(fault_device_inner(rig->meta)));
	copy.data = fault_device_create(mem_device_clone(fault_device_inner(rig->data)));
	assert_true(pool_rig_is_clean(&copy));
	pool_rig_open(&copy);
	volume = rig_open_volume(&copy, "vol");
	same = rig_reads_as(&copy, volume, offset, length, byte);
	rig_close_volume(volume);
	assert_int_equal(pool_rig_close(&copy), 0);
	io_device_close(copy.meta);
	io_device_close(copy.data);
	return same;
}

static void a_flush_commits_new_mappings(void **state)
{
	uint64_t before = commits();

	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	assert_int_equal(rig_flush(rig, v), 0);
	assert_true(commits() > before);
	assert_true(survives_crash(0, BLOCK, 1));
}

static void a_flush_of_old_mappings_flushes_the_data_device_only(void **state)
{
	uint64_t before, flushes;

	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	assert_int_equal(rig_flush(rig, v), 0);
	before = commits();
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 2), 0);
	flushes = fault_device_nr_requests(rig->data, FLUSHES);
	assert_int_equal(rig_flush(rig, v), 0);
	assert_int_equal(commits(), before);
	assert_int_equal(fault_device_nr_requests(rig->data, FLUSHES), flushes + 1);
}

static void a_flush_of_another_volume_does_not_commit(void **state)
{
	struct volume *other = rig_create_volume(rig, "other", 1 * MIB);
	uint64_t before;

	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	before = commits();
	assert_int_equal(rig_flush(rig, other), 0);
	assert_int_equal(commits(), before);
	rig_close_volume(other);
}

static void flushes_share_a_commit(void **state)
{
	struct rig_request reqs[8];
	uint64_t before;

	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	before = commits();
	fault_device_delay(rig->meta, FAULT_OP(IO_WRITE));
	rig_start(rig, &reqs[0], v, POOL_FLUSH, 0, 0, NULL);
	assert_true(fault_device_wait_held(rig->meta, 1));
	/* The worker is busy committing: these wait for the next one, all together. */
	assert_int_equal(rig_status(rig).stats.commits, before);
	for (unsigned i = 1; i < 8; i++)
		rig_start(rig, &reqs[i], v, POOL_FLUSH, 0, 0, NULL);
	fault_device_release_all(rig->meta);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(rig_wait(rig, &reqs[i]), 0);
	assert_true(commits() <= before + 2);
}

static void a_durable_write_is_durable(void **state)
{
	void *buffer = io_buffer_alloc(BLOCK);

	(void)state;
	memset(buffer, 1, BLOCK);
	assert_int_equal(rig_durable(rig, v, POOL_WRITE, 0, BLOCK, buffer), 0);
	assert_true(survives_crash(0, BLOCK, 1));
	assert_int_equal(rig_durable(rig, v, POOL_PUNCH, 0, BLOCK, NULL), 0);
	assert_true(survives_crash(0, BLOCK, 0));
	free(buffer);
}

static bool has_committed(void *before)
{
	return commits() > *(uint64_t *)before;
}

static void changes_are_committed_after_a_while(void **state)
{
	uint64_t before;

	(void)state;
	before = commits();
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	assert_true(rig_await(rig, has_committed, &before));
	assert_true(survives_crash(0, BLOCK, 1));
}

static void closing_commits(void **state)
{
	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	rig_close_volume(v);
	pool_rig_reopen(rig);
	v = rig_open_volume(rig, "vol");
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 1));
}

static void *close_pool(void *ret_r)
{
	*(int *)ret_r = pool_rig_close(rig);
	return NULL;
}

/* The worker had begun it by itself: closing is the last chance to tell. */
static void closing_tells_of_a_commit_under_way_that_fails(void **state)
{
	struct fault every_write = { .ops = FAULT_OP(IO_WRITE), .count = UINT64_MAX };
	struct worker *w = rig->pool->worker;
	pthread_t closer;
	int r = 0;

	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 'a'), 0);
	rig_close_volume(v);
	v = NULL;
	fault_device_delay(rig->meta, FAULT_OP(IO_WRITE));
	fault_device_add(rig->meta, &every_write);
	rig->options.commit_interval_usec = 0;
	pool_configure(rig->pool, &rig->options);
	assert_true(fault_device_wait_held(rig->meta, 1));
	assert_int_equal(pthread_create(&closer, NULL, close_pool, &r), 0);
	while (!atomic_load(&w->stop))
		sched_yield();
	fault_device_release_all(rig->meta);
	assert_int_equal(pthread_join(closer, NULL), 0);
	assert_int_equal(r, -EIO);
	fault_device_clear(rig->meta);
	pool_rig_open(rig);
}

static void closing_flushes_writes_that_need_no_commit(void **state)
{
	uint64_t flushes;

	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	assert_int_equal(rig_flush(rig, v), 0);
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 2), 0);
	rig_close_volume(v);
	flushes = fault_device_nr_requests(rig->data, FLUSHES);
	assert_int_equal(pool_rig_close(rig), 0);
	assert_true(fault_device_nr_requests(rig->data, FLUSHES) > flushes);

	/* Who has written nothing flushes nothing; who cannot flush says so. */
	rig->options.read_only = true;
	pool_rig_open(rig);
	flushes = fault_device_nr_requests(rig->data, FLUSHES);
	assert_int_equal(pool_rig_close(rig), 0);
	assert_int_equal(fault_device_nr_requests(rig->data, FLUSHES), flushes);
	rig->options.read_only = false;
	pool_rig_open(rig);
	fault_device_fail_nth(rig->data, FLUSHES, 1);
	assert_int_equal(pool_rig_close(rig), -EIO);
	pool_rig_open(rig);
	v = rig_open_volume(rig, "vol");
}

static void a_size_that_a_write_made_is_flushed(void **state)
{
	(void)state;
	/* Into a block that is mapped already: nothing but the size changes. */
	assert_int_equal(rig_fill(rig, v, 8 * MIB, 100, 1), 0);
	assert_int_equal(rig_flush(rig, v), 0);
	assert_int_equal(rig_fill(rig, v, 8 * MIB + 100, 100, 2), 0);
	assert_int_equal(rig_flush(rig, v), 0);
	assert_true(survives_crash(8 * MIB, 100, 1));
	assert_true(survives_crash(8 * MIB + 100, 100, 2));
}

/* A commit with a changed block of @other in it waits for its first flush of metadata. */
static void begin_commit(struct volume *other, struct rig_request *flush)
{
	assert_int_equal(rig_fill(rig, other, 0, BLOCK, 1), 0);
	fault_device_delay(rig->meta, FLUSHES);
	rig_start(rig, flush, other, POOL_FLUSH, 0, 0, NULL);
	assert_true(fault_device_wait_held(rig->meta, 1));
}

static void end_commit(struct volume *other, struct rig_request *flush)
{
	fault_device_release_all(rig->meta);
	assert_int_equal(rig_wait(rig, flush), 0);
	rig_close_volume(other);
}

static void a_flush_waits_for_the_commit_that_has_the_size(void **state)
{
	struct volume *other = rig_create_volume(rig, "other", 1 * MIB);
	struct rig_request commit, flush;
	bool too_early;

	(void)state;
	assert_int_equal(rig_fill(rig, v, 8 * MIB, 100, 1), 0);
	assert_int_equal(rig_flush(rig, v), 0);
	assert_int_equal(rig_fill(rig, v, 8 * MIB + 100, 100, 2), 0);
	begin_commit(other, &commit); /* nothing of v is dirty any more, but it is not durable */
	rig_start(rig, &flush, v, POOL_FLUSH, 0, 0, NULL);
	for (unsigned i = 0; i < 20; i++)
		io_queue_run(rig->q, USEC_PER_MSEC);
	too_early = rig_is_done(&flush);
	end_commit(other, &commit);
	assert_int_equal(rig_wait(rig, &flush), 0);
	assert_false(too_early);
	assert_true(survives_crash(8 * MIB + 100, 100, 2));
}

static void command_done(struct pool_command *cmd, int r)
{
	cmd->result = r;
	__atomic_store_n((bool *)cmd->waiter, true, __ATOMIC_RELEASE);
}

static bool is_true(void *flag)
{
	return __atomic_load_n((bool *)flag, __ATOMIC_ACQUIRE);
}

static void a_commit_of_nothing_answers_no_flush(void **state)
{
	bool done = false;
	struct pool_command cmd = { .op = POOL_COMMIT, .done = command_done, .waiter = &done };
	struct volume *other = rig_create_volume(rig, "other", 1 * MIB);
	struct rig_request commit, flush;
	uint64_t flushes;

	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	begin_commit(other, &commit);
	/* In place, after the commit has flushed data: only one more flush covers it. */
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 2), 0);
	flushes = fault_device_nr_requests(rig->data, FLUSHES);
	rig_start(rig, &flush, v, POOL_FLUSH, 0, 0, NULL);
	pool_command_submit(rig->pool, &cmd); /* in the pass that takes up the flush */
	end_commit(other, &commit);
	assert_int_equal(rig_wait(rig, &flush), 0);
	assert_true(rig_await(rig, is_true, &done));
	assert_int_equal(fault_device_nr_requests(rig->data, FLUSHES), flushes + 1);
}

/* ---- failure ---- */

static void expect_read_only(void)
{
	struct pool_status s = rig_status(rig);

	assert_int_equal(s.mode, POOL_MODE_READ_ONLY);
	assert_true(s.needs_check);
	assert_string_not_equal(s.reason, "");
	assert_int_equal(s.stats.aborts, 1);
}

static int reopen_unchecked(void)
{
	struct tp_error error = { "" };

	fault_device_clear(rig->meta);
	rig_close_volume(v);
	(void)pool_rig_close(rig); /* its last commit may have failed, which is the point */
	return pool_open_devices(&rig->options, rig->meta, rig->data, &rig->pool, &error);
}

static void a_failed_commit_makes_the_pool_read_only(void **state)
{
	struct fault fault = { .ops = FAULT_OP(IO_WRITE), .count = 1 };

	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	assert_int_equal(rig_flush(rig, v), 0);
	assert_int_equal(rig_fill(rig, v, BLOCK, BLOCK, 2), 0);
	fault_device_add(rig->meta, &fault);
	assert_int_equal(rig_flush(rig, v), -EIO);
	expect_read_only();

	/* What was lost has been told; what is there is served. */
	assert_int_equal(rig_flush(rig, v), 0);
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 1));
	assert_true(rig_reads_as(rig, v, BLOCK, BLOCK, 0));
	assert_int_equal(rig_fill(rig, v, 0, 4096, 3), 0);
	assert_true(rig_reads_as(rig, v, 0, 4096, 3));
	assert_int_equal(rig_fill(rig, v, 2 * BLOCK, BLOCK, 4), -EIO);
	assert_int_equal(rig_punch(rig, v, 0, BLOCK), -EIO);

	assert_int_equal(reopen_unchecked(), 0);
	assert_true(rig_status(rig).needs_check);
	assert_int_equal(rig_status(rig).mode, POOL_MODE_READ_ONLY);
	assert_int_equal(pool_volume_find(rig->pool, "vol", &v), 0);
	assert_int_equal(volume_open(v, true), -EROFS);
	assert_int_equal(volume_open(v, false), 0);
	assert_true(rig_reads_as(rig, v, 0, 4096, 3));
}

static void a_durable_write_that_is_lost_fails(void **state)
{
	struct fault fault = { .ops = FAULT_OP(IO_WRITE), .count = 1 };
	void *buffer = io_buffer_alloc(BLOCK);

	(void)state;
	memset(buffer, 1, BLOCK);
	fault_device_add(rig->meta, &fault);
	assert_int_equal(rig_durable(rig, v, POOL_WRITE, 0, BLOCK, buffer), -EIO);
	expect_read_only();
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 0));
	free(buffer);
}

static void a_flush_tells_of_a_size_that_is_lost(void **state)
{
	struct volume *other = rig_create_volume(rig, "other", 1 * MIB);

	(void)state;
	assert_int_equal(rig_fill(rig, v, 8 * MIB, 100, 1), 0);
	assert_int_equal(rig_flush(rig, v), 0);
	/* No mapping of v changes, only how much of the block belongs to it. */
	assert_int_equal(rig_fill(rig, v, 8 * MIB + 100, 100, 2), 0);
	assert_int_equal(rig_fill(rig, other, 0, BLOCK, 1), 0);
	fault_device_fail_nth(rig->meta, FAULT_OP(IO_WRITE), 1);
	assert_int_equal(rig_flush(rig, other), -EIO);
	assert_int_equal(volume_size(v), 8 * MIB + 100);
	assert_int_equal(rig_flush(rig, v), -EIO);
	rig_close_volume(other);
}

static void unreadable_metadata_fails_the_pool(void **state)
{
	static _Alignas(4096) uint8_t buffer[4096];
	struct fault fault = { .count = UINT64_MAX };

	(void)state;
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	fault_device_add(rig->meta, &fault);
	assert_int_equal(rig_flush(rig, v), -EIO);
	assert_int_equal(rig_status(rig).mode, POOL_MODE_FAIL);
	assert_string_equal(pool_mode_name(rig_status(rig).mode), "fail");
	assert_int_equal(rig_io(rig, v, POOL_READ, 0, sizeof(buffer), buffer), -EIO);
	fault_device_clear(rig->meta);
}

/* A failed pool has nothing to be compared with. */
static int teardown_failed(void **state)
{
	(void)state;
	return pool_rig_end_failed(rig, v);
}

static void writes_in_flight_at_an_abort_fail(void **state)
{
	struct fault fault = { .ops = FAULT_OP(IO_WRITE), .count = 1 };
	struct rig_request write, flush;
	void *buffer = io_buffer_alloc(BLOCK);

	(void)state;
	memset(buffer, 1, BLOCK);
	assert_int_equal(rig_fill(rig, v, 5 * BLOCK, BLOCK, 1), 0);
	fault_device_delay(rig->data, FAULT_OP(IO_WRITE));
	rig_start(rig, &write, v, POOL_WRITE, 0, BLOCK, buffer);
	assert_true(fault_device_wait_held(rig->data, 1));
	fault_device_add(rig->meta, &fault);
	rig_start(rig, &flush, v, POOL_FLUSH, 0, 0, NULL);
	assert_int_equal(rig_wait(rig, &flush), -EIO);
	fault_device_release_all(rig->data);
	assert_int_equal(rig_wait(rig, &write), -EIO);
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 0));
	free(buffer);
}

/* ---- the cut that a snapshot makes ---- */

#define NR_SLOTS 24
#define SLOT_BYTES (100 * KIB) /* some cross blocks */
#define SECTOR 512

static atomic_uint started[NR_SLOTS], acked[NR_SLOTS];
static atomic_bool stop_writing;

static void fill_slot(uint8_t *buffer, unsigned value)
{
	for (unsigned i = 0; i < SLOT_BYTES / sizeof(value); i++)
		memcpy(buffer + i * sizeof(value), &value, sizeof(value));
}

static void *write_slots(void *arg)
{
	unsigned first = *(unsigned *)arg;
	struct io_queue *q;
	uint8_t *buffer = io_buffer_alloc(SLOT_BYTES);
	unsigned value = 0;

	if (io_queue_self(&q))
		abort();
	while (!atomic_load(&stop_writing)) {
		value++;
		for (unsigned s = first; s < NR_SLOTS; s += 2) {
			struct pool_io io = { .op = POOL_WRITE,
					      .volume = v,
					      .offset = s * SLOT_BYTES,
					      .length = SLOT_BYTES,
					      .buffer = buffer };

			fill_slot(buffer, value);
			atomic_store(&started[s], value);
			if (pool_io_run(rig->pool, q, &io))
				abort();
			atomic_store(&acked[s], value);
		}
	}
	free(buffer);
	return NULL;
}

/* Each sector holds a value that was acknowledged before or under way during the snapshot. */
static void check_slot(struct volume *snap, unsigned s, unsigned low, unsigned high)
{
	uint8_t *buffer = io_buffer_alloc(SLOT_BYTES);
	unsigned value, first;

	assert_int_equal(rig_io(rig, snap, POOL_READ, s * SLOT_BYTES, SLOT_BYTES, buffer), 0);
	for (unsigned i = 0; i < SLOT_BYTES; i += SECTOR) {
		memcpy(&first, buffer + i, sizeof(first));
		assert_in_range(first, low, high);
		for (unsigned j = 0; j < SECTOR; j += sizeof(value)) {
			memcpy(&value, buffer + i + j, sizeof(value));
			assert_int_equal(value, first);
		}
	}
	free(buffer);
}

static void a_snapshot_has_all_that_was_acknowledged_and_nothing_later(void **state)
{
	unsigned firsts[2] = { 0, 1 }, low[NR_SLOTS], high[NR_SLOTS];
	pthread_t threads[2];
	uint64_t rounds = prng_ops(15);

	(void)state;
	stop_writing = false;
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, write_slots, &firsts[i]), 0);
	for (uint64_t n = 0; n < rounds; n++) {
		struct volume *snap;

		for (unsigned s = 0; s < NR_SLOTS; s++)
			low[s] = acked[s];
		assert_int_equal(rig_snapshot(rig, "vol", "snap"), 0);
		for (unsigned s = 0; s < NR_SLOTS; s++)
			high[s] = started[s];
		snap = rig_open_volume(rig, "snap");
		for (unsigned s = 0; s < NR_SLOTS; s++)
			check_slot(snap, s, low[s], high[s]);
		rig_close_volume(snap);
		assert_int_equal(rig_delete(rig, "snap"), 0);
	}
	stop_writing = true;
	for (unsigned i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
}

static void *take_snapshot(void *done)
{
	if (rig_snapshot(rig, "vol", "snap"))
		abort();
	atomic_store((atomic_bool *)done, true);
	return NULL;
}

static bool gate_is_closed(void *unused)
{
	(void)unused;
	return atomic_load(&v->gate_closed);
}

static void a_snapshot_waits_for_writes_in_flight_and_holds_back_later_ones(void **state)
{
	struct volume *other = rig_create_volume(rig, "other", 1 * MIB), *snap;
	struct rig_request before, after;
	uint8_t *buffers = io_buffer_alloc(2 * BLOCK);
	atomic_bool snapped = false;
	pthread_t thread;

	(void)state;
	memset(buffers, 2, BLOCK);
	memset(buffers + BLOCK, 3, BLOCK);
	assert_int_equal(rig_fill(rig, v, 0, 2 * BLOCK, 1), 0);
	assert_int_equal(rig_fill(rig, other, 0, BLOCK, 4), 0);
	fault_device_delay(rig->data, FAULT_OP(IO_WRITE));
	rig_start(rig, &before, v, POOL_WRITE, 0, BLOCK, buffers);
	assert_int_equal(pthread_create(&thread, NULL, take_snapshot, &snapped), 0);
	assert_true(rig_await(rig, gate_is_closed, NULL));
	rig_start(rig, &after, v, POOL_WRITE, BLOCK, BLOCK, buffers + BLOCK);
	assert_int_equal(fault_device_nr_held(rig->data), 1);
	/* Another volume goes on, in the fast path and in the worker. */
	assert_true(rig_reads_as(rig, other, 0, BLOCK, 4));
	assert_int_equal(rig_punch(rig, other, 0, BLOCK), 0);
	assert_false(snapped);

	fault_device_release_all(rig->data);
	assert_int_equal(rig_wait(rig, &before), 0);
	assert_int_equal(rig_wait(rig, &after), 0);
	pthread_join(thread, NULL);
	snap = rig_open_volume(rig, "snap");
	assert_true(rig_reads_as(rig, snap, 0, BLOCK, 2));
	assert_true(rig_reads_as(rig, snap, BLOCK, BLOCK, 1));
	assert_true(rig_reads_as(rig, v, BLOCK, BLOCK, 3));
	rig_close_volume(snap);
	rig_close_volume(other);
	free(buffers);
}

/* ---- waiting for segments ---- */

static bool is_starved(void *unused)
{
	(void)unused;
	return atomic_load(&rig->pool->worker->nr_starved) > 0;
}

/* It sleeps, with nothing to do, each time that it is looked at, twenty times in a row. */
static bool sleeps_well(void *times)
{
	struct worker *w = rig->pool->worker;
	unsigned *n = times;

	if (atomic_load(&w->sleeping) && !atomic_load(&w->deferred) && !atomic_load(&w->poked))
		++*n;
	else
		*n = 0;
	return *n == 20;
}

/* The volume is quiesced, so each part of the request stays at the gate and keeps its segment. */
static void the_worker_sleeps_while_a_request_waits_for_segments(void **state)
{
	struct pool_command grow = { .op = POOL_RESIZE, .name = "vol", .size_bytes = 8192 * MIB };
	struct rig_request write, allocate;
	uint8_t *buffer = io_buffer_alloc(BLOCK);
	unsigned times = 0;
	bool slept;
	atomic_bool snapped = false;
	pthread_t thread;

	(void)state;
	memset(buffer, 1, BLOCK);
	assert_int_equal(pool_command_run(rig->pool, &grow), 0);
	fault_device_delay(rig->data, FAULT_OP(IO_WRITE));
	rig_start(rig, &write, v, POOL_WRITE, 0, BLOCK, buffer);
	assert_true(fault_device_wait_held(rig->data, 1));
	assert_int_equal(pthread_create(&thread, NULL, take_snapshot, &snapped), 0);
	assert_true(rig_await(rig, gate_is_closed, NULL));
	rig_start(rig, &allocate, v, POOL_ALLOCATE, BLOCK, 8191 * MIB, NULL);
	assert_true(rig_await(rig, is_starved, NULL));

	slept = rig_await(rig, sleeps_well, &times);

	fault_device_release_all(rig->data);
	assert_int_equal(rig_wait(rig, &write), 0);
	assert_int_equal(rig_wait(rig, &allocate), -ENOSPC); /* but it has come to its end */
	pthread_join(thread, NULL);
	assert_true(slept);
	free(buffer);
}

/* ---- throttle ---- */

static void who_may_not_sleep_is_parked_while_the_worker_catches_up(void **state)
{
	struct rig_request write;
	void *buffer = io_buffer_alloc(BLOCK);

	(void)state;
	memset(buffer, 1, BLOCK);
	lock_throttle(&rig->pool->throttle); /* as a worker that is behind does */
	rig_start(rig, &write, v, POOL_WRITE, 0, BLOCK, buffer);
	unlock_throttle(&rig->pool->throttle);
	assert_int_equal(rig_wait(rig, &write), 0);
	assert_int_equal(rig_status(rig).stats.throttled, 1);
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 1));
	free(buffer);
}

static void *release_after_a_while(void *arg)
{
	uint64_t end = time_monotonic_usec() + 1200000; /* what the worker calls behind, and more */

	while (time_monotonic_usec() < end)
		usleep(10000);
	fault_device_release_all(arg);
	return NULL;
}

/* The commit of a slow device is a slow pass. */
static void a_pass_that_takes_long_is_told(void **state)
{
	struct pool_status before = rig_status(rig), after;
	pthread_t thread;

	(void)state;
	assert_int_equal(before.stats.throttles, 0);
	assert_int_equal(before.longest_throttle_usec, 0);
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	fault_device_delay(rig->meta, FLUSHES);
	assert_int_equal(pthread_create(&thread, NULL, release_after_a_while, rig->meta), 0);
	assert_int_equal(rig_flush(rig, v), 0);
	pthread_join(thread, NULL);
	assert_int_equal(rig_commit(rig), 0); /* the pass has ended */
	after = rig_status(rig);
	assert_int_equal(after.stats.throttles, 1);
	assert_int_equal(after.stats.throttle_usec, after.longest_throttle_usec); /* the one */
}

/* Something that takes as long as the test wants. */
struct hold {
	struct work work;
	sem_t running, go;
};

static void hold_run(struct pool *pool, struct work *work)
{
	struct hold *h = container_of(work, struct hold, work);

	(void)pool;
	sem_post(&h->running);
	while (sem_wait(&h->go))
		;
}

static void hold_start(struct hold *h)
{
	h->work.run = hold_run;
	sem_init(&h->running, 0, 0);
	sem_init(&h->go, 0, 0);
	worker_push(rig->pool, &h->work);
}

static void hold_await(struct hold *h)
{
	while (sem_wait(&h->running))
		;
}

/* The pass has been going on for two seconds. */
static void age_run(struct pool *pool, struct work *work)
{
	(void)work;
	pool->worker->pass_began_usec -= 2 * USEC_PER_SEC;
}

static void *write_and_wait(void *done)
{
	static _Alignas(4096) uint8_t page[4096];
	struct pool_io io = {
		.op = POOL_WRITE, .volume = v, .offset = 3 * BLOCK, .length = 4096, .buffer = page
	};
	struct io_queue *q;

	if (io_queue_self(&q) || pool_io_run(rig->pool, q, &io))
		abort();
	atomic_store((atomic_bool *)done, true);
	return NULL;
}

static bool two_are_throttled(void *unused)
{
	(void)unused;
	return rig_status(rig).stats.throttled == 2;
}

static void a_pass_that_is_too_long_makes_new_work_wait_for_its_end(void **state)
{
	struct work age = { .run = age_run };
	struct hold before, during;
	struct rig_request write;
	void *buffer = io_buffer_alloc(BLOCK);
	atomic_bool sleeper_done = false;
	bool held = true;
	pthread_t sleeper;

	(void)state;
	memset(buffer, 1, BLOCK);
	hold_start(&before); /* so that the next two are taken at once */
	hold_await(&before);
	worker_push(rig->pool, &age);
	hold_start(&during);
	sem_post(&before.go);
	hold_await(&during);

	/* Who may not sleep is parked, who may sleeps; both for as long as the pass goes on. */
	if (trylock_throttle_shared(&rig->pool->throttle)) {
		unlock_throttle_shared(&rig->pool->throttle);
		held = false;
	}
	rig_start(rig, &write, v, POOL_WRITE, 0, BLOCK, buffer);
	held = held && rig_status(rig).stats.throttled == 1;
	assert_int_equal(pthread_create(&sleeper, NULL, write_and_wait, &sleeper_done), 0);
	held = held && rig_await(rig, two_are_throttled, NULL);
	held = held && !rig_is_done(&write) && !atomic_load(&sleeper_done);

	sem_post(&during.go);
	assert_int_equal(rig_wait(rig, &write), 0);
	pthread_join(sleeper, NULL);
	assert_true(held);
	assert_true(sleeper_done);
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 1));
	/* The next pass is a new one. */
	assert_int_equal(rig_fill(rig, v, 5 * BLOCK, BLOCK, 2), 0);
	assert_int_equal(rig_status(rig).stats.throttled, 2);
	free(buffer);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define T_FAILED(name) cmocka_unit_test_setup_teardown(name, setup, teardown_failed)
#define T_UNHURRIED(name, teardown) cmocka_unit_test_setup_teardown(name, setup_unhurried, teardown)
	const struct CMUnitTest tests[] = {
		T(a_flush_commits_new_mappings),
		T(a_flush_of_old_mappings_flushes_the_data_device_only),
		T(a_flush_of_another_volume_does_not_commit),
		T(flushes_share_a_commit),
		T(a_durable_write_is_durable),
		T(changes_are_committed_after_a_while),
		T(closing_commits),
		T_UNHURRIED(closing_tells_of_a_commit_under_way_that_fails, teardown),
		T(closing_flushes_writes_that_need_no_commit),
		T(a_size_that_a_write_made_is_flushed),
		T_UNHURRIED(a_flush_waits_for_the_commit_that_has_the_size, teardown),
		T_UNHURRIED(a_commit_of_nothing_answers_no_flush, teardown),
		T_FAILED(a_failed_commit_makes_the_pool_read_only),
		T_FAILED(a_durable_write_that_is_lost_fails),
		T_UNHURRIED(a_flush_tells_of_a_size_that_is_lost, teardown_failed),
		T_FAILED(unreadable_metadata_fails_the_pool),
		T_FAILED(writes_in_flight_at_an_abort_fail),
		T(a_snapshot_has_all_that_was_acknowledged_and_nothing_later),
		T(a_snapshot_waits_for_writes_in_flight_and_holds_back_later_ones),
		T(the_worker_sleeps_while_a_request_waits_for_segments),
		T(who_may_not_sleep_is_parked_while_the_worker_catches_up),
		T(a_pass_that_takes_long_is_told),
		T(a_pass_that_is_too_long_makes_new_work_wait_for_its_end),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
