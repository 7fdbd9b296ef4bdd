/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for bufio/bufio-memory.c and bufio-helper.c.  Each test says one fact about the
 * module.
 */
#include <errno.h>
#include <unistd.h>

#include "fixture.h"

/* ---- memory ---- */

static void limit_is_obeyed_by_clean_buffers(void **state)
{
	struct fixture *f = *state;
	struct bufio_buffer *b;

	assert_int_equal(bufio_read(f->c, 0, &b), 0);
	for (mblock_t i = 1; i < NR_BLOCKS; i++) {
		assert_int_equal(read_word(f, i), i);
		assert_true(stats(f).cached_bytes <= stats(f).limit_bytes);
	}
	assert_true(is_cached(f, 0));
	bufio_release(b);
	bufio_set_limit(f->c, 10 * METADATA_BLOCK_SIZE);
	assert_int_equal(stats(f).cached_bytes, 10 * METADATA_BLOCK_SIZE);
}

static void above_the_limit_dirty_buffers_are_written_by_the_helper(void **state)
{
	struct fixture *f = *state;

	for (mblock_t i = 0; i < LIMIT_BLOCKS; i++)
		write_word(f, i, i + 5000);
	bufio_test_settle(f->c);
	assert_int_equal(nr_requests(f, IO_WRITE), 0);
	for (mblock_t i = LIMIT_BLOCKS; i < NR_BLOCKS; i++)
		write_word(f, i, i + 5000);
	bufio_test_settle(f->c);
	assert_true(stats(f).cached_bytes <= stats(f).limit_bytes);
	for (mblock_t i = 0; i < NR_BLOCKS; i++)
		assert_int_equal(read_word(f, i), i + 5000);
}

static void what_was_used_again_is_evicted_later(void **state)
{
	struct fixture *f = *state;

	for (mblock_t i = 0; i < LIMIT_BLOCKS; i++)
		read_word(f, i);
	for (mblock_t i = 0; i < LIMIT_BLOCKS; i += 8)
		read_word(f, i);
	evict_count(f->c, LIMIT_BLOCKS / 2);
	for (mblock_t i = 0; i < LIMIT_BLOCKS; i += 8)
		assert_true(is_cached(f, i));
}

static void unused_buffers_age_away(void **state)
{
	struct fixture *f = *state;

	read_word(f, 7);
	read_word(f, 8);
	for (unsigned i = 0; i < 10; i++) {
		assert_true(is_cached(f, 8));
		evict_aged(f->c);
	}
	assert_false(is_cached(f, 7));
}

/* A sweep after its last use starts the count. */
static void a_buffer_ages_away_in_the_fifth_sweep_unused(void **state)
{
	struct fixture *f = *state;

	read_word(f, 7);
	read_word(f, 7);
	bufio_prefetch(f->c, 100, 1); /* and never used */
	run_own_queue();
	for (unsigned i = 0; i < 4; i++) {
		evict_aged(f->c);
		assert_int_equal(stats(f).cached_bytes, 2 * METADATA_BLOCK_SIZE);
	}
	evict_aged(f->c);
	assert_int_equal(stats(f).cached_bytes, METADATA_BLOCK_SIZE);
	evict_aged(f->c);
	assert_int_equal(stats(f).cached_bytes, 0);
}

static void reserve_is_used_without_memory_and_filled_again(void **state)
{
	struct fixture *f = *state;
	struct bufio_buffer *held[RESERVE], *b;

	assert_int_equal(bufio_test_reserve_count(f->c), RESERVE);
	bufio_test_fail_allocations(f->c, true);
	for (mblock_t i = 0; i < RESERVE; i++)
		assert_int_equal(bufio_read(f->c, i, &held[i]), 0);
	assert_int_equal(bufio_test_reserve_count(f->c), 0);
	assert_int_equal(bufio_read(f->c, 100, &b), -ENOMEM);
	assert_int_equal(bufio_new(f->c, 100, &b), -ENOMEM);

	bufio_release(held[0]); /* and so it can be evicted */
	assert_int_equal(bufio_read(f->c, 100, &held[0]), 0);

	for (mblock_t i = 0; i < RESERVE; i++)
		bufio_release(held[i]);
	reset(f);
	assert_int_equal(bufio_test_reserve_count(f->c), RESERVE);
}

static void prefetch_without_memory_is_dropped(void **state)
{
	struct fixture *f = *state;
	struct told t = { .w.done = tell };

	bufio_test_fail_allocations(f->c, true);
	bufio_prefetch(f->c, 0, 100);
	run_own_queue();
	assert_int_equal(nr_requests(f, IO_READ), 0);
	assert_int_equal(bufio_read_async(f->c, 0, &t.w), -ENOMEM);
	assert_int_equal(bufio_test_reserve_count(f->c), RESERVE);
}

static void without_memory_dirty_buffers_are_written_to_go_on(void **state)
{
	struct fixture *f = *state;

	bufio_test_fail_allocations(f->c, true);
	for (mblock_t i = 0; i < NR_BLOCKS; i++)
		write_word(f, i, i + 5000);
	for (mblock_t i = 0; i < NR_BLOCKS; i++)
		assert_int_equal(read_word(f, i), i + 5000);
}

/* ---- shrinking ---- */

static void shrinker_frees_through_the_helper(void **state)
{
	struct fixture *f = *state;

	for (mblock_t i = 0; i < 100; i++)
		read_word(f, i);
	assert_int_equal(bufio_shrinker_ops.scan(f->c, 30), 30); /* promised */
	bufio_test_settle(f->c);
	assert_int_equal(stats(f).cached_bytes, 70 * METADATA_BLOCK_SIZE);
	assert_int_equal(stats(f).shrunk_buffers, 30);
}

static void shrunk_pages_lose_their_memory(void **state)
{
	struct fixture *f = *state;
	struct bufio_buffer *b, *idle;
	struct shrinkers_report report;
	unsigned nr = 0;

	for (mblock_t i = 0; i < 100; i++)
		read_word(f, i);
	shrinkers_reclaim(1, &report);
	lock_bufio_lru(&f->c->lock);
	for (idle = f->c->idle; idle; idle = idle->next)
		nr += !idle->resident;
	unlock_bufio_lru(&f->c->lock);
	assert_true(nr >= 100 - RESERVE);
	assert_int_equal(bufio_test_reserve_count(f->c), RESERVE);
	assert_int_equal(bufio_read(f->c, 7, &b), 0);
	bufio_release(b);
}

static void what_a_reclaim_reports_is_free_when_it_returns(void **state)
{
	struct fixture *f = *state;
	struct shrinkers_report report;

	for (mblock_t i = 0; i < 200; i++)
		read_word(f, i);
	shrinkers_reclaim(4, &report);
	assert_int_equal(report.nr_results, 1);
	assert_int_equal(report.results[0].freed, 50);
	assert_int_equal(report.bytes, 50 * METADATA_BLOCK_SIZE);
	assert_int_equal(stats(f).cached_bytes, 150 * METADATA_BLOCK_SIZE);
	for (mblock_t i = 500; i < 510; i++)
		write_word(f, i, 1);
	shrinkers_reclaim(1, &report);
	assert_int_equal(report.results[0].asked, 150); /* dirty ones are not offered */
	assert_int_equal(report.results[0].freed, 150);
	assert_int_equal(stats(f).cached_bytes, 10 * METADATA_BLOCK_SIZE);
	assert_int_equal(stats(f).dirty_bytes, 10 * METADATA_BLOCK_SIZE);
}

/* ---- everybody at the same time ---- */

#define NR_READERS 3
#define LOOKUPS 50000u /* of each */

struct busy {
	struct fixture *f;
	pthread_t thread;
	unsigned seed;
	uint64_t wrong, done;
	atomic_bool *stop;
	atomic_uint *running;
};

/* As lookups do: under meta_root shared, so that no buffer is held when it is reset. */
static void *look_up(void *arg)
{
	struct busy *b = arg;
	struct fixture *f = b->f;

	for (; b->done < LOOKUPS; b->done++) {
		mblock_t block = (mblock_t)rand_r(&b->seed) % NR_BLOCKS;
		struct bufio_buffer *buffer;

		lock_meta_root_shared(&f->meta_root);
		if (bufio_read(f->c, block, &buffer)) {
			b->wrong++;
		} else {
			b->wrong += first_word(bufio_data(buffer)) != block;
			bufio_release(buffer);
		}
		unlock_meta_root_shared(&f->meta_root);
	}
	atomic_fetch_sub(b->running, 1);
	return NULL;
}

static void *give_back(void *arg)
{
	struct busy *b = arg;
	struct shrinkers_report report;

	while (!atomic_load(b->stop)) {
		shrinkers_reclaim(b->done % 2 ? 1 : 4, &report);
		b->wrong += report.results[0].freed > report.results[0].asked;
		b->done++;
	}
	return NULL;
}

static void lookups_and_resets_go_on_while_memory_is_given_back(void **state)
{
	struct fixture *f = *state;
	atomic_bool stop = false;
	atomic_uint running = NR_READERS;
	struct busy readers[NR_READERS], shrinker = { .f = f, .stop = &stop };
	uint64_t above = 0;

	assert_int_equal(pthread_create(&shrinker.thread, NULL, give_back, &shrinker), 0);
	for (unsigned i = 0; i < NR_READERS; i++) {
		readers[i] = (struct busy){ .f = f, .seed = i, .running = &running };
		assert_int_equal(pthread_create(&readers[i].thread, NULL, look_up, &readers[i]), 0);
	}
	while (atomic_load(&running)) {
		reset(f);
		/* A reader has one above the limit while the helper makes room. */
		above += stats(f).cached_bytes > (LIMIT_BLOCKS + NR_READERS) * METADATA_BLOCK_SIZE;
		usleep(1000); /* so that there is something to reset */
	}
	for (unsigned i = 0; i < NR_READERS; i++)
		pthread_join(readers[i].thread, NULL);
	atomic_store(&stop, true);
	pthread_join(shrinker.thread, NULL);
	for (unsigned i = 0; i < NR_READERS; i++) {
		assert_int_equal(readers[i].done, LOOKUPS);
		assert_int_equal(readers[i].wrong, 0);
	}
	assert_int_equal(shrinker.wrong, 0);
	assert_true(shrinker.done > 10);
	assert_true(stats(f).shrunk_buffers > 0);
	assert_int_equal(above, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		FACT(limit_is_obeyed_by_clean_buffers),
		FACT(above_the_limit_dirty_buffers_are_written_by_the_helper),
		FACT(what_was_used_again_is_evicted_later),
		FACT(unused_buffers_age_away),
		FACT(a_buffer_ages_away_in_the_fifth_sweep_unused),
		FACT(reserve_is_used_without_memory_and_filled_again),
		FACT(prefetch_without_memory_is_dropped),
		FACT(without_memory_dirty_buffers_are_written_to_go_on),
		FACT(shrinker_frees_through_the_helper),
		FACT(shrunk_pages_lose_their_memory),
		FACT(what_a_reclaim_reports_is_free_when_it_returns),
		FACT(lookups_and_resets_go_on_while_memory_is_given_back),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("bufio-memory", tests, NULL, NULL);
}
