/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for bufio/bufio.c.  Each test says one fact about the module.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fixture.h"

/* ---- lookup ---- */

static void first_read_misses_second_hits(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(read_word(f, 7), 7);
	assert_int_equal(read_word(f, 7), 7);
	assert_int_equal(stats(f).misses, 1);
	assert_int_equal(stats(f).hits, 1);
	assert_int_equal(stats(f).reads, 1);
	assert_int_equal(stats(f).cached_bytes, METADATA_BLOCK_SIZE);
}

static void get_never_reads(void **state)
{
	struct fixture *f = *state;
	struct bufio_buffer *b;

	assert_int_equal(bufio_get(f->c, 7, &b), -EWOULDBLOCK);
	assert_int_equal(fault_device_nr_requests(f->dev, FAULT_ALL_OPS), 0);
	assert_int_equal(read_word(f, 7), 7);
	assert_int_equal(bufio_get(f->c, 7, &b), 0);
	assert_int_equal(bufio_block(b), 7);
	bufio_release(b);
}

static void read_error_is_not_cached(void **state)
{
	struct fixture *f = *state;
	struct bufio_buffer *b;

	fault_device_fail_nth(f->dev, FAULT_OP(IO_READ), 1);
	assert_int_equal(bufio_read(f->c, 7, &b), -EIO);
	assert_int_equal(stats(f).cached_bytes, 0);
	assert_int_equal(read_word(f, 7), 7);
}

static void read_past_the_end_is_eio(void **state)
{
	struct fixture *f = *state;
	struct bufio_buffer *b;

	assert_int_equal(bufio_read(f->c, NR_BLOCKS, &b), -EIO);
}

static void two_readers_of_a_block_share_one_read(void **state)
{
	struct fixture *f = *state;
	struct actor a, b;

	fault_device_delay(f->dev, FAULT_OP(IO_READ));
	start(&a, f, 7, reading);
	assert_true(fault_device_wait_held(f->dev, 1));
	start(&b, f, 7, reading);
	release_late(f);
	finish(&a);
	finish(&b);
	assert_int_equal(a.word, 7);
	assert_int_equal(b.word, 7);
	assert_int_equal(nr_requests(f, IO_READ), 1);
}

static void new_is_zeroed_and_not_read(void **state)
{
	struct fixture *f = *state;
	static const char zeros[METADATA_BLOCK_SIZE];
	struct bufio_buffer *b;

	for (int cached = 0; cached < 2; cached++) {
		assert_int_equal(bufio_new(f->c, 7, &b), 0);
		assert_memory_equal(bufio_data(b), zeros, sizeof(zeros));
		assert_int_equal(bufio_aux(b), 0);
		memset(bufio_data(b), 1, METADATA_BLOCK_SIZE);
		bufio_set_aux(b, 5);
		bufio_release(b);
	}
	assert_int_equal(nr_requests(f, IO_READ), 0);
}

static void aux_stays_with_the_buffer_and_goes_with_it(void **state)
{
	struct fixture *f = *state;
	struct bufio_buffer *b;

	assert_int_equal(bufio_read(f->c, 7, &b), 0);
	assert_int_equal(bufio_aux(b), 0);
	bufio_set_aux(b, 5);
	bufio_release(b);
	assert_int_equal(bufio_get(f->c, 7, &b), 0);
	assert_int_equal(bufio_aux(b), 5);
	bufio_release(b);

	reset(f);
	assert_int_equal(bufio_read(f->c, 7, &b), 0);
	assert_int_equal(bufio_aux(b), 0);
	bufio_release(b);
}

/* ---- forget ---- */

static void forget_drops_clean_and_dirty_but_not_held(void **state)
{
	struct fixture *f = *state;
	struct bufio_buffer *b;

	assert_int_equal(read_word(f, 7), 7);
	write_word(f, 8, 100);
	assert_int_equal(bufio_read(f->c, 9, &b), 0);
	for (mblock_t i = 7; i < 11; i++)
		bufio_forget(f->c, i);
	assert_false(is_cached(f, 7));
	assert_false(is_cached(f, 8));
	assert_true(is_cached(f, 9));
	bufio_release(b);
	assert_int_equal(bufio_write_dirty_buffers(f->c), 0);
	assert_int_equal(nr_requests(f, IO_WRITE), 0);
}

static void forgotten_while_read_is_dropped_then(void **state)
{
	struct fixture *f = *state;
	struct told t = { .w.done = tell };

	assert_int_equal(bufio_read_async(f->c, 7, &t.w), -EINPROGRESS);
	bufio_forget(f->c, 7);
	run_own_queue();
	assert_int_equal(t.calls, 1);
	assert_false(is_cached(f, 7));
}

static void forgotten_while_written_is_dropped_then(void **state)
{
	struct fixture *f = *state;
	struct actor a;

	write_word(f, 7, 100);
	fault_device_delay(f->dev, FAULT_OP(IO_WRITE));
	start(&a, f, 0, writing);
	assert_true(fault_device_wait_held(f->dev, 1));
	bufio_forget(f->c, 7);
	fault_device_release_all(f->dev);
	finish(&a);
	assert_false(is_cached(f, 7));
	assert_int_equal(stats(f).cached_bytes, 0);
}

/* Two writes of a block are never in flight together, so the last one is what stays. */
static void new_after_forget_is_written_after_the_old_write(void **state)
{
	struct fixture *f = *state;
	struct actor a, b;

	write_word(f, 7, 100);
	fault_device_delay(f->dev, FAULT_OP(IO_WRITE));
	start(&a, f, 0, writing);
	assert_true(fault_device_wait_held(f->dev, 1));
	bufio_forget(f->c, 7);
	write_word(f, 7, 200);
	start(&b, f, 0, writing);
	usleep(20000);
	assert_int_equal(fault_device_nr_held(f->dev), 1);
	fault_device_release_all(f->dev);
	finish(&a);
	finish(&b);
	assert_int_equal(first_word(disk(f, 7)), 200);
}

/* ---- reset ---- */

static void reset_discards_dirty_and_never_writes(void **state)
{
	struct fixture *f = *state;

	write_word(f, 7, 100);
	reset(f);
	assert_int_equal(nr_requests(f, IO_WRITE), 0);
	assert_int_equal(stats(f).dirty_bytes, 0);
	assert_int_equal(stats(f).cached_bytes, 0);
	assert_int_equal(read_word(f, 7), 7);
	assert_int_equal(bufio_write_dirty_buffers(f->c), 0);
	assert_int_equal(nr_requests(f, IO_WRITE), 0);
	assert_int_equal(stats(f).resets, 1);
}

static void reset_clears_the_sticky_error(void **state)
{
	struct fixture *f = *state;

	fault_device_fail_nth(f->dev, FAULT_OP(IO_WRITE), 1);
	write_word(f, 7, 100);
	bufio_write_dirty_buffers_async(f->c);
	bufio_test_settle(f->c);
	assert_int_equal(fault_device_nr_failed(f->dev), 1);
	reset(f);
	assert_int_equal(bufio_write_dirty_buffers(f->c), 0);
}

/* It may be asleep on a lock that the caller of the reset holds. */
static void reset_does_not_wait_for_the_event_loop_of_another_thread(void **state)
{
	struct fixture *f = *state;
	struct actor a;

	start(&a, f, 7, prefetching_only);
	while (!a.started)
		sched_yield();
	reset(f);
	assert_false(released);
	assert_int_equal(stats(f).cached_bytes, 0);
	write_word(f, 7, 100);
	released = true;
	finish(&a);
	assert_int_equal(read_word(f, 7), 100);
	assert_int_equal(stats(f).cached_bytes, METADATA_BLOCK_SIZE);
}

static void reset_awaits_a_write_of_another_thread(void **state)
{
	struct fixture *f = *state;
	struct actor a, r;

	for (mblock_t i = 0; i < 200; i++)
		write_word(f, 2 * i, 5000);
	fault_device_delay(f->dev, FAULT_OP(IO_WRITE));
	start(&a, f, 0, writing);
	assert_true(fault_device_wait_held(f->dev, 128)); /* the two batches */
	start(&r, f, 0, resetting);
	await_reset_begun(f);
	release_late(f);
	finish(&r);
	finish(&a);
	assert_true(r.after_release);
	assert_int_equal(stats(f).cached_bytes, 0);
	assert_int_equal(nr_requests(f, IO_WRITE), 128); /* it started no more */
}

static void reset_awaits_the_helper(void **state)
{
	struct fixture *f = *state;
	struct actor r;

	write_word(f, 7, 100);
	fault_device_delay(f->dev, FAULT_OP(IO_WRITE));
	bufio_write_dirty_buffers_async(f->c);
	assert_true(fault_device_wait_held(f->dev, 1));
	start(&r, f, 0, resetting);
	await_reset_begun(f);
	release_late(f);
	finish(&r);
	assert_true(r.after_release);
	assert_int_equal(stats(f).cached_bytes, 0);
}

static void reset_leaves_own_reads_to_the_own_queue(void **state)
{
	struct fixture *f = *state;
	struct told t = { .w.done = tell };

	assert_int_equal(bufio_read_async(f->c, 7, &t.w), -EINPROGRESS);
	reset(f);
	await_told(&t);
	assert_int_equal(t.r, -EAGAIN);
	assert_int_equal(stats(f).cached_bytes, 0);
	assert_int_equal(read_word(f, 7), 7);
	run_own_queue();
	assert_int_equal(t.calls, 1);
	assert_int_equal(stats(f).cached_bytes, METADATA_BLOCK_SIZE);
}

struct waiting {
	struct actor actor;
	struct told told;
};

static void *reading_async(void *arg)
{
	struct waiting *w = arg;
	struct io_queue *q;

	w->actor.r = bufio_read_async(w->actor.f->c, 7, &w->told.w);
	if (io_queue_self(&q) == 0)
		while (io_queue_in_flight(q))
			io_queue_run(q, UINT64_MAX);
	return NULL;
}

static void reset_tells_waiters_eagain(void **state)
{
	struct fixture *f = *state;
	struct waiting w = { .told.w.done = tell };

	fault_device_delay(f->dev, FAULT_OP(IO_READ));
	start(&w.actor, f, 7, reading_async);
	assert_true(fault_device_wait_held(f->dev, 1));
	assert_int_equal(w.told.calls, 0);
	reset(f);
	await_told(&w.told);
	assert_int_equal(w.told.r, -EAGAIN);
	fault_device_release_all(f->dev);
	finish(&w.actor);
	assert_int_equal(w.actor.r, -EINPROGRESS);
	assert_int_equal(w.told.calls, 1);
}

static void reset_keeps_the_reserve_without_memory(void **state)
{
	struct fixture *f = *state;

	for (mblock_t i = 0; i < LIMIT_BLOCKS; i++)
		write_word(f, i, 1);
	bufio_test_fail_allocations(f->c, true);
	reset(f);
	assert_int_equal(bufio_test_reserve_count(f->c), RESERVE);
	assert_int_equal(read_word(f, 7), 7);
}

/* ---- reset and the registry of shrinkers ---- */

static atomic_bool registry_taken, registry_let_go;

static uint64_t sit_on_registry(void *ctx)
{
	(void)ctx;
	registry_taken = true;
	while (!registry_let_go)
		sched_yield();
	return 0;
}

static uint64_t free_nothing(void *ctx, uint64_t nr)
{
	(void)ctx;
	(void)nr;
	return 0;
}

static void *running_shrinkers(void *arg)
{
	struct shrinkers_report report;

	shrinkers_reclaim(1, &report);
	return arg;
}

static void reset_needs_no_registry_and_stays_registered(void **state)
{
	static const struct shrinker_ops ops = { .count = sit_on_registry, .scan = free_nothing };
	struct fixture *f = *state;
	struct shrinkers_report report;
	struct shrinker *s;
	struct actor a;

	registry_taken = registry_let_go = false;
	assert_int_equal(shrinker_register("sitter", &ops, NULL, &s), 0);
	for (mblock_t i = 0; i < 5; i++)
		read_word(f, i);
	start(&a, f, 0, running_shrinkers);
	while (!registry_taken)
		sched_yield();
	reset(f); /* the thread still has the registry */
	assert_false(registry_let_go);
	registry_let_go = true;
	finish(&a);
	assert_null(shrinker_unregister(s));

	for (mblock_t i = 0; i < 20; i++)
		read_word(f, i);
	bufio_test_settle(f->c);
	uint64_t before = stats(f).cached_bytes;

	shrinkers_reclaim(1, &report);
	assert_int_equal(report.bytes, before);
	assert_int_equal(stats(f).cached_bytes, 0);
}

#ifdef TP_DEBUG_LOCKS
static void expect_abort(struct fixture *f, void (*fn)(struct fixture *f))
{
	const struct rlimit no_core = { 0, 0 };
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		signal(SIGABRT, SIG_DFL);
		setrlimit(RLIMIT_CORE, &no_core);
		fclose(stderr);
		fn(f);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static void reset_holding(struct fixture *f)
{
	struct bufio_buffer *b;

	if (bufio_read(f->c, 7, &b) == 0)
		reset(f);
}

TP_NO_TSA static void reset_unlocked(struct fixture *f)
{
	bufio_client_reset(f->c);
}

TP_NO_TSA static void destroy_under_meta_root(struct fixture *f)
{
	lock_meta_root(&f->meta_root);
	bufio_client_destroy(f->c);
}

static void preconditions_are_checked(void **state)
{
	expect_abort(*state, reset_holding);
	expect_abort(*state, reset_unlocked);
	expect_abort(*state, destroy_under_meta_root);
}
#endif

int main(void)
{
	const struct CMUnitTest tests[] = {
		FACT(first_read_misses_second_hits),
		FACT(get_never_reads),
		FACT(read_error_is_not_cached),
		FACT(read_past_the_end_is_eio),
		FACT(two_readers_of_a_block_share_one_read),
		FACT(new_is_zeroed_and_not_read),
		FACT(aux_stays_with_the_buffer_and_goes_with_it),
		FACT(forget_drops_clean_and_dirty_but_not_held),
		FACT(forgotten_while_read_is_dropped_then),
		FACT(forgotten_while_written_is_dropped_then),
		FACT(new_after_forget_is_written_after_the_old_write),
		FACT(reset_discards_dirty_and_never_writes),
		FACT(reset_clears_the_sticky_error),
		FACT(reset_does_not_wait_for_the_event_loop_of_another_thread),
		FACT(reset_awaits_a_write_of_another_thread),
		FACT(reset_awaits_the_helper),
		FACT(reset_leaves_own_reads_to_the_own_queue),
		FACT(reset_tells_waiters_eagain),
		FACT(reset_keeps_the_reserve_without_memory),
		FACT(reset_needs_no_registry_and_stays_registered),
#ifdef TP_DEBUG_LOCKS
		FACT(preconditions_are_checked),
#endif
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("bufio", tests, NULL, NULL);
}
