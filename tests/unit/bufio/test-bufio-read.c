/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for bufio/bufio-read.c.  Each test says one fact about the module.
 */
#include <errno.h>
#include <sched.h>

#include "fixture.h"
#include "util/log.h"

/* ---- prefetch and waiters ---- */

static void prefetched_blocks_are_there_after_a_run(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(read_word(f, 8), 8);
	bufio_prefetch(f->c, 7, 3);
	run_own_queue();
	assert_int_equal(nr_requests(f, IO_READ), 3);
	for (mblock_t i = 7; i < 10; i++)
		assert_int_equal(read_word(f, i), i);
	assert_int_equal(nr_requests(f, IO_READ), 3);
}

static void prefetch_stops_at_the_end_of_the_device(void **state)
{
	struct fixture *f = *state;

	bufio_prefetch(f->c, NR_BLOCKS - 2, 10);
	run_own_queue();
	assert_int_equal(nr_requests(f, IO_READ), 2);
}

static void failed_prefetch_leaves_nothing(void **state)
{
	struct fixture *f = *state;

	fault_device_fail_nth(f->dev, FAULT_OP(IO_READ), 1);
	bufio_prefetch(f->c, 7, 1);
	run_own_queue();
	assert_int_equal(stats(f).cached_bytes, 0);
	assert_int_equal(read_word(f, 7), 7);
}

static void reader_of_a_failed_prefetch_reads_itself(void **state)
{
	struct fixture *f = *state;

	fault_device_fail_nth(f->dev, FAULT_OP(IO_READ), 1);
	bufio_prefetch(f->c, 7, 1);
	assert_int_equal(read_word(f, 7), 7);
}

static void read_of_a_block_prefetched_by_the_thread_itself_runs_its_queue(void **state)
{
	struct fixture *f = *state;
	struct actor a;

	fault_device_delay(f->dev, FAULT_OP(IO_READ));
	bufio_prefetch(f->c, 7, 1);
	start(&a, f, 0, releasing_when_held);
	assert_int_equal(read_word(f, 7), 7);
	assert_int_equal(nr_requests(f, IO_READ), 1);
	finish(&a);
}

/* It may sleep on a lock that the reader holds. */
static void read_does_not_wait_for_the_event_loop_of_another_thread(void **state)
{
	struct fixture *f = *state;
	struct told t = { .w.done = tell };
	struct actor a, b;

	start(&a, f, 7, prefetching_only);
	start(&b, f, 8, prefetching_only);
	while (!a.started || !b.started)
		sched_yield();
	assert_int_equal(bufio_read_async(f->c, 7, &t.w), -EINPROGRESS);
	assert_int_equal(read_word(f, 7), 7);
	await_told(&t);
	assert_int_equal(t.r, 0);
	write_word(f, 8, 100);
	released = true;
	finish(&a);
	finish(&b);
	assert_int_equal(read_word(f, 7), 7);
	assert_int_equal(read_word(f, 8), 100);
	assert_int_equal(stats(f).cached_bytes, 2 * METADATA_BLOCK_SIZE);
}

static void waiters_are_told_once_the_read_has_ended(void **state)
{
	struct fixture *f = *state;
	struct told t[2] = { { .w.done = tell }, { .w.done = tell } };

	assert_int_equal(bufio_read_async(f->c, 7, &t[0].w), -EINPROGRESS);
	assert_int_equal(bufio_read_async(f->c, 7, &t[1].w), -EINPROGRESS);
	assert_int_equal(t[0].calls, 0);
	run_own_queue();
	assert_int_equal(t[0].calls, 1);
	assert_int_equal(t[1].calls, 1);
	assert_int_equal(t[0].r, 0);
	assert_int_equal(nr_requests(f, IO_READ), 1);
	assert_int_equal(bufio_read_async(f->c, 7, &t[0].w), 0);
	assert_int_equal(t[0].calls, 1);
}

static void waiters_are_told_of_an_error(void **state)
{
	struct fixture *f = *state;
	struct told t = { .w.done = tell };

	fault_device_fail_nth(f->dev, FAULT_OP(IO_READ), 1);
	assert_int_equal(bufio_read_async(f->c, 7, &t.w), -EINPROGRESS);
	run_own_queue();
	assert_int_equal(t.calls, 1);
	assert_int_equal(t.r, -EIO);
}

/* The caller of bufio_read() may hold anything, so somebody else has to call. */
static void waiter_of_a_synchronous_read_is_told_without_locks(void **state)
{
	struct fixture *f = *state;
	struct told sync = { .w.done = tell }, own = { .w.done = tell };
	struct actor a, rel;

	fault_device_delay(f->dev, FAULT_OP(IO_READ));
	start(&a, f, 7, reading);
	assert_true(fault_device_wait_held(f->dev, 1));
	assert_int_equal(bufio_read_async(f->c, 7, &sync.w), -EINPROGRESS);
	fault_device_release_all(f->dev);
	await_told(&sync);
	assert_int_equal(sync.r, 0);
	finish(&a);

	fault_device_delay(f->dev, FAULT_OP(IO_READ));
	assert_int_equal(bufio_read_async(f->c, 8, &own.w), -EINPROGRESS);
	start(&rel, f, 0, releasing_when_held);
	lock_meta_root(&f->meta_root);
	assert_int_equal(read_word(f, 8), 8);
	unlock_meta_root(&f->meta_root);
	await_told(&own);
	assert_int_equal(own.r, 0);
	finish(&rel);
}

static void nothing_is_read_ahead_while_the_cache_is_reset(void **state)
{
	struct fixture *f = *state;
	struct told t = { .w.done = tell };
	struct actor a;

	write_word(f, 7, 100);
	fault_device_delay(f->dev, FAULT_OP(IO_WRITE));
	bufio_write_dirty_buffers_async(f->c);
	assert_true(fault_device_wait_held(f->dev, 1));
	start(&a, f, 0, resetting);
	await_reset_begun(f);
	bufio_prefetch(f->c, 8, 1);
	assert_int_equal(bufio_read_async(f->c, 8, &t.w), -EAGAIN);
	release_late(f);
	finish(&a);
	assert_int_equal(nr_requests(f, IO_READ), 0);
	assert_int_equal(t.calls, 0);
	assert_int_equal(bufio_read_async(f->c, 8, &t.w), -EINPROGRESS);
	run_own_queue();
	assert_int_equal(t.calls, 1);
}

static void nothing_past_the_end_is_prefetched(void **state)
{
	struct fixture *f = *state;

	bufio_prefetch(f->c, NR_BLOCKS, 1);
	run_own_queue();
	assert_int_equal(nr_requests(f, IO_READ), 0);
}

static void *reading_ahead(void *arg)
{
	struct actor *a = arg;
	struct told t = { .w.done = tell };

	bufio_prefetch(a->f->c, a->block, 1);
	a->r = bufio_read_async(a->f->c, a->block, &t.w);
	return NULL;
}

static void a_thread_without_a_queue_reads_nothing_ahead(void **state)
{
	struct fixture *f = *state;
	struct actor a;

	fail_descriptors(true);
	start(&a, f, 7, reading_ahead);
	finish(&a);
	fail_descriptors(false);
	assert_int_equal(a.r, -EMFILE);
	assert_int_equal(nr_requests(f, IO_READ), 0);
	assert_int_equal(read_word(f, 7), 7);
}

#define TRIES 200000u

static atomic_uint nr_taken_for_good;

static void *trying_in_vain(void *arg)
{
	struct actor *a = arg;
	struct bufio_buffer *b;

	for (unsigned i = 0; i < TRIES; i++) {
		if (bufio_read(a->f->c, a->block, &b) == 0) {
			nr_taken_for_good++;
			bufio_release(b);
		}
	}
	return NULL;
}

/* Also when it ends between another thread's finding the buffer and its looking at it. */
static void a_failed_read_is_taken_for_good_by_nobody(void **state)
{
	struct fixture *f = *state;
	struct actor a[2];

	nr_taken_for_good = 0;
	log_set_level(LOG_LEVEL_ERR - 1);
	fault_device_add(f->dev, &(struct fault){ .ops = FAULT_OP(IO_READ), .count = UINT64_MAX });
	start(&a[0], f, 7, trying_in_vain);
	start(&a[1], f, 7, trying_in_vain);
	finish(&a[0]);
	finish(&a[1]);
	fault_device_clear(f->dev);
	log_set_level(LOG_LEVEL_INFO);
	assert_int_equal(nr_taken_for_good, 0);
	assert_int_equal(read_word(f, 7), 7);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		FACT(prefetched_blocks_are_there_after_a_run),
		FACT(prefetch_stops_at_the_end_of_the_device),
		FACT(failed_prefetch_leaves_nothing),
		FACT(reader_of_a_failed_prefetch_reads_itself),
		FACT(read_of_a_block_prefetched_by_the_thread_itself_runs_its_queue),
		FACT(read_does_not_wait_for_the_event_loop_of_another_thread),
		FACT(waiters_are_told_once_the_read_has_ended),
		FACT(waiters_are_told_of_an_error),
		FACT(waiter_of_a_synchronous_read_is_told_without_locks),
		FACT(nothing_is_read_ahead_while_the_cache_is_reset),
		FACT(nothing_past_the_end_is_prefetched),
		FACT(a_thread_without_a_queue_reads_nothing_ahead),
		FACT(a_failed_read_is_taken_for_good_by_nobody),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("bufio-read", tests, NULL, NULL);
}
