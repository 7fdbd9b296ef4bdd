/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test-bufio-model.c - random use by four threads, against an array of versions
 *
 * Each block holds a version, in all its words, so that a torn or lost copy shows.  The
 * threads run in epochs.  Within one they read, change, make, forget, prefetch, await and
 * shrink at will, each behaving as an event loop, and now and then one of them flushes.
 * Between epochs the main thread flushes or resets.
 *
 *   After a flush   the device has the current version of every block.
 *   After a reset   every block reads as the device has it, which is the version of the
 *                   last flush; or a later one, whole and as it was prepared for writing,
 *                   if something wrote in the background (a "loose" epoch).
 *
 * Changes to a block exclude each other and its readers (a lock a block); a flush excludes
 * changes, as in the pool, but nothing else.
 */
#include <errno.h>
#include <semaphore.h>
#include <stdio.h>
#include <string.h>

#include "fixture.h"
#include "prng.h"

#define NR_THREADS 4u
#define NR_MODEL_BLOCKS 400u
#define NR_WAITERS 4u
#define OPS_PER_EPOCH 400u
#define CHECK_AT (STAMP_AT - 8) /* version ^ block, written by the preparation only */
#define NR_WORDS (CHECK_AT / 8)

struct model {
	struct io_device *dev;
	struct bufio_client *c;
	struct tp_lock meta_root;
	pthread_rwlock_t changes; /* shared: somebody changes; exclusive: a flush */
	pthread_rwlock_t locks[NR_MODEL_BLOCKS];
	uint64_t current[NR_MODEL_BLOCKS], flushed[NR_MODEL_BLOCKS];
	bool loose; /* this epoch writes in the background */

	atomic_uint epoch;
	sem_t arrived;
	atomic_bool stop;
	atomic_ulong nr_wrong; /* reported once, asserted by the main thread */
};

struct worker {
	struct model *m;
	struct prng prng;
	pthread_t thread;
	struct told told[NR_WAITERS];
	int expected[NR_WAITERS]; /* calls */
};

static void prepare(mblock_t block, void *data, uintptr_t aux)
{
	uint64_t check = first_word(data) ^ block;

	(void)aux;
	memcpy((char *)data + CHECK_AT, &check, sizeof(check));
}

static void fill(void *data, uint64_t version)
{
	for (unsigned i = 0; i < NR_WORDS; i++)
		memcpy((char *)data + 8 * i, &version, sizeof(version));
}

static bool is_whole(const void *data, uint64_t version)
{
	for (unsigned i = 0; i < NR_WORDS; i++)
		if (first_word((const char *)data + 8 * i) != version)
			return false;
	return true;
}

static void wrong(struct model *m, const char *what, mblock_t block)
{
	if (m->nr_wrong++ == 0)
		printf("# wrong: %s, block %llu\n", what, (unsigned long long)block);
}

/* ---- what the threads do ---- */

static void look(struct model *m, mblock_t block, bool only_cached)
{
	struct bufio_buffer *b;
	int r;

	pthread_rwlock_rdlock(&m->locks[block]);
	r = only_cached ? bufio_get(m->c, block, &b) : bufio_read(m->c, block, &b);
	if (r == 0) {
		if (!is_whole(bufio_data(b), m->current[block]))
			wrong(m, "content read", block);
		bufio_release(b);
	} else if (!only_cached) {
		wrong(m, "read failed", block);
	}
	pthread_rwlock_unlock(&m->locks[block]);
}

/* @make: as a new block, maybe after it was forgotten. */
static void change(struct model *m, mblock_t block, bool make, bool forget)
{
	struct bufio_buffer *b;

	pthread_rwlock_rdlock(&m->changes);
	pthread_rwlock_wrlock(&m->locks[block]);
	if (forget)
		bufio_forget(m->c, block);
	if (make ? bufio_new(m->c, block, &b) : bufio_read(m->c, block, &b)) {
		wrong(m, "read or new failed", block);
	} else {
		if (!is_whole(bufio_data(b), make ? 0 : m->current[block]))
			wrong(m, "content before a change", block);
		fill(bufio_data(b), ++m->current[block]);
		bufio_mark_dirty(b);
		bufio_release(b);
	}
	pthread_rwlock_unlock(&m->locks[block]);
	pthread_rwlock_unlock(&m->changes);
}

/* No change is under way. */
static void flush(struct model *m)
{
	if (bufio_write_dirty_buffers(m->c) || bufio_issue_flush(m->c))
		wrong(m, "flush failed", 0);
	memcpy(m->flushed, m->current, sizeof(m->flushed));
}

static void await_one(struct worker *w, mblock_t block)
{
	unsigned i = (unsigned)prng_below(&w->prng, NR_WAITERS);
	int r;

	if (w->told[i].calls != w->expected[i])
		return; /* not told yet */
	r = bufio_read_async(w->m->c, block, &w->told[i].w);
	if (r == -EINPROGRESS)
		w->expected[i]++;
	else if (r)
		wrong(w->m, "asynchronous read failed", block);
}

static void in_background(struct worker *w)
{
	struct shrinkers_report report;
	struct model *m = w->m;

	switch (prng_below(&w->prng, 4)) {
	case 0:
		bufio_write_dirty_buffers_async(m->c);
		break;
	case 1:
		bufio_set_limit(m->c,
				(20 + prng_below(&w->prng, NR_MODEL_BLOCKS)) * METADATA_BLOCK_SIZE);
		break;
	default:
		shrinkers_reclaim(1 + (unsigned)prng_below(&w->prng, 20), &report);
	}
}

static void operate(struct worker *w, struct io_queue *q)
{
	struct model *m = w->m;
	mblock_t block = prng_below(&w->prng, NR_MODEL_BLOCKS);
	uint64_t what = prng_below(&w->prng, 100);

	if (what < 30)
		look(m, block, false);
	else if (what < 50)
		look(m, block, true);
	else if (what < 65)
		change(m, block, false, false);
	else if (what < 75)
		change(m, block, true, what < 70);
	else if (what < 85)
		bufio_prefetch(m->c, block, 1 + (unsigned)prng_below(&w->prng, 5));
	else if (what < 92)
		await_one(w, block);
	else if (what < 97)
		io_queue_run(q, 0);
	else if (m->loose)
		in_background(w);
	if (m->loose && prng_below(&w->prng, 200) == 0) {
		pthread_rwlock_wrlock(&m->changes);
		flush(m);
		pthread_rwlock_unlock(&m->changes);
	}
}

static void *work(void *arg)
{
	struct worker *w = arg;
	struct model *m = w->m;
	struct io_queue *q;
	unsigned epoch = 0;

	if (io_queue_self(&q))
		abort();
	while (!m->stop) {
		if (m->epoch == epoch) {
			io_queue_run(q, 200); /* an event loop between requests */
			continue;
		}
		epoch++;
		for (unsigned i = 0; i < OPS_PER_EPOCH; i++)
			operate(w, q);
		sem_post(&m->arrived);
	}
	while (io_queue_in_flight(q))
		io_queue_run(q, UINT64_MAX);
	return NULL;
}

/* ---- between the epochs: the threads only run their queues ---- */

static const void *on_device(struct model *m, mblock_t block)
{
	return (char *)mem_device_data(fault_device_inner(m->dev)) + block * METADATA_BLOCK_SIZE;
}

static void check_device(struct model *m, mblock_t block)
{
	const void *data = on_device(m, block);
	uint64_t version = first_word(data);

	assert_true(is_whole(data, version));
	assert_true(version == 0 || first_word((const char *)data + CHECK_AT) == (version ^ block));
	if (m->loose)
		assert_in_range(version, m->flushed[block], m->current[block]);
	else
		assert_int_equal(version, m->flushed[block]);
}

static void reset_model(struct model *m)
{
	struct cache_stats s;

	lock_meta_root(&m->meta_root);
	bufio_client_reset(m->c);
	unlock_meta_root(&m->meta_root);
	bufio_get_stats(m->c, &s);
	assert_int_equal(s.cached_bytes, 0);
	assert_int_equal(s.dirty_bytes, 0);
	for (mblock_t i = 0; i < NR_MODEL_BLOCKS; i++) {
		check_device(m, i);
		m->current[i] = m->flushed[i] = first_word(on_device(m, i));
	}
	assert_int_equal(bufio_test_reserve_count(m->c), RESERVE);
}

static void flush_model(struct model *m)
{
	flush(m);
	for (mblock_t i = 0; i < NR_MODEL_BLOCKS; i++)
		assert_int_equal(first_word(on_device(m, i)), m->current[i]);
	for (mblock_t i = 0; i < NR_MODEL_BLOCKS; i++)
		check_device(m, i);
}

/* A device that fails some writes: what is told is an error, and a reset leads out. */
static void fail_and_reset(struct model *m, struct prng *p)
{
	fault_device_add(m->dev, &(struct fault){ .ops = FAULT_OP(IO_WRITE),
						  .skip = prng_below(p, 5),
						  .count = 1 + prng_below(p, 3) });
	m->loose = true;
	if (bufio_write_dirty_buffers(m->c) == 0)
		memcpy(m->flushed, m->current, sizeof(m->flushed));
	fault_device_clear(m->dev);
	reset_model(m);
}

static void run_epochs(struct model *m, struct prng *p, uint64_t nr)
{
	for (uint64_t i = 0; i < nr; i++) {
		m->loose = prng_below(p, 2);
		if (!m->loose) {
			bufio_set_limit(m->c, 2 * NR_MODEL_BLOCKS * METADATA_BLOCK_SIZE);
			bufio_test_settle(m->c);
			memcpy(m->flushed, m->current, sizeof(m->flushed));
			assert_int_equal(bufio_write_dirty_buffers(m->c), 0);
		}
		m->epoch++;
		for (unsigned j = 0; j < NR_THREADS; j++)
			sem_wait(&m->arrived);
		switch (prng_below(p, 5)) {
		case 0:
			fail_and_reset(m, p);
			break;
		case 1:
		case 2:
			reset_model(m);
			break;
		default:
			flush_model(m);
		}
		assert_int_equal(m->nr_wrong, 0);
	}
}

static void cache_agrees_with_the_model(void **state)
{
	static struct model m;
	static struct worker workers[NR_THREADS];
	const struct bufio_options options = { .name = "model",
					       .limit_bytes = 100 * METADATA_BLOCK_SIZE,
					       .reserve_buffers = RESERVE,
					       .prepare_write = prepare };
	uint64_t seed = prng_seed(), epochs = prng_ops(40000) / OPS_PER_EPOCH;
	struct prng p;

	(void)state;
	prng_init(&p, seed);
	m.dev = fault_device_create_mem((uint64_t)NR_MODEL_BLOCKS * METADATA_BLOCK_SIZE);
	tp_lock_init(&m.meta_root, LC_meta_root, LOCK_KIND_RW);
	pthread_rwlock_init(&m.changes, NULL);
	sem_init(&m.arrived, 0, 0);
	for (unsigned i = 0; i < NR_MODEL_BLOCKS; i++)
		pthread_rwlock_init(&m.locks[i], NULL);
	assert_int_equal(bufio_client_create(m.dev, &options, &m.c), 0);
	for (unsigned i = 0; i < NR_THREADS; i++) {
		struct worker *w = &workers[i];

		w->m = &m;
		prng_init(&w->prng, prng_next(&p));
		for (unsigned j = 0; j < NR_WAITERS; j++)
			w->told[j].w.done = tell;
		assert_int_equal(pthread_create(&w->thread, NULL, work, w), 0);
	}

	run_epochs(&m, &p, epochs);

	m.stop = true;
	for (unsigned i = 0; i < NR_THREADS; i++)
		pthread_join(workers[i].thread, NULL);
	bufio_test_settle(m.c);
	assert_int_equal(bufio_test_lost_count(m.c), 0);
	assert_null(bufio_client_destroy(m.c)); /* the last waiters are told */
	for (unsigned i = 0; i < NR_THREADS; i++)
		for (unsigned j = 0; j < NR_WAITERS; j++)
			assert_int_equal(workers[i].told[j].calls, workers[i].expected[j]);
	io_device_close(m.dev);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(cache_agrees_with_the_model) };

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("bufio-model", tests, NULL, NULL);
}
