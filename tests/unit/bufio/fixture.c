/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fixture.c - a cache on a device in memory, and threads that use it
 */
#include "fixture.h"

#include <sched.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

atomic_bool released;

/* The copy about to be written says what was passed along. */
static void stamp(mblock_t block, void *data, uintptr_t aux)
{
	uint64_t words[2] = { block, aux };

	memcpy((char *)data + STAMP_AT, words, sizeof(words));
}

void *disk(struct fixture *f, mblock_t block)
{
	return (char *)mem_device_data(fault_device_inner(f->dev)) + block * METADATA_BLOCK_SIZE;
}

int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct bufio_options options = {
		.name = "test",
		.limit_bytes = (uint64_t)LIMIT_BLOCKS * METADATA_BLOCK_SIZE,
		.reserve_buffers = RESERVE,
		.prepare_write = stamp,
	};

	released = false;
	f->dev = fault_device_create_mem((uint64_t)NR_BLOCKS * METADATA_BLOCK_SIZE);
	mem_device_set_alignment(fault_device_inner(f->dev), 4096);
	tp_lock_init(&f->meta_root, LC_meta_root, LOCK_KIND_RW);
	for (mblock_t i = 0; i < NR_BLOCKS; i++)
		memcpy(disk(f, i), &i, sizeof(i));
	*state = f;
	return bufio_client_create(f->dev, &options, &f->c);
}

int teardown(void **state)
{
	struct fixture *f = *state;

	bufio_test_settle(f->c);
	assert_int_equal(bufio_test_lost_count(f->c), 0);
	assert_null(bufio_client_destroy(f->c));
	io_device_close(f->dev);
	tp_lock_destroy(&f->meta_root);
	free(f);
	return 0;
}

void reset(struct fixture *f)
{
	lock_meta_root(&f->meta_root);
	bufio_client_reset(f->c);
	unlock_meta_root(&f->meta_root);
}

struct cache_stats stats(struct fixture *f)
{
	struct cache_stats s;

	bufio_get_stats(f->c, &s);
	return s;
}

uint64_t first_word(const void *data)
{
	uint64_t x;

	memcpy(&x, data, sizeof(x));
	return x;
}

/* Read the block through the cache; returns its first word. */
uint64_t read_word(struct fixture *f, mblock_t block)
{
	struct bufio_buffer *b;
	uint64_t x;

	assert_int_equal(bufio_read(f->c, block, &b), 0);
	x = first_word(bufio_data(b));
	bufio_release(b);
	return x;
}

/* Make a new block with the word in it. */
void write_word(struct fixture *f, mblock_t block, uint64_t word)
{
	struct bufio_buffer *b;

	assert_int_equal(bufio_new(f->c, block, &b), 0);
	memcpy(bufio_data(b), &word, sizeof(word));
	bufio_mark_dirty(b);
	bufio_release(b);
}

uint64_t nr_requests(struct fixture *f, enum io_op op)
{
	return fault_device_nr_requests(f->dev, FAULT_OP(op));
}

bool is_cached(struct fixture *f, mblock_t block)
{
	struct bufio_buffer *b;

	if (bufio_get(f->c, block, &b))
		return false;
	bufio_release(b);
	return true;
}

void run_own_queue(void)
{
	struct io_queue *q;

	assert_int_equal(io_queue_self(&q), 0);
	while (io_queue_in_flight(q))
		io_queue_run(q, UINT64_MAX);
}

/* ---- other threads ---- */

void start(struct actor *a, struct fixture *f, mblock_t block, void *(*fn)(void *))
{
	*a = (struct actor){ .f = f, .block = block };
	assert_int_equal(pthread_create(&a->thread, NULL, fn, a), 0);
}

void finish(struct actor *a)
{
	assert_int_equal(pthread_join(a->thread, NULL), 0);
}

void *reading(void *arg)
{
	struct actor *a = arg;
	struct bufio_buffer *b;

	a->r = bufio_read(a->f->c, a->block, &b);
	a->after_release = released;
	if (!a->r) {
		a->word = first_word(bufio_data(b));
		bufio_release(b);
	}
	return NULL;
}

void *prefetching_only(void *arg)
{
	struct actor *a = arg;
	struct io_queue *q;

	bufio_prefetch(a->f->c, a->block, 1);
	a->started = true;
	while (!released)
		sched_yield();
	if (io_queue_self(&q) == 0)
		while (io_queue_in_flight(q))
			io_queue_run(q, UINT64_MAX);
	return NULL;
}

void *writing(void *arg)
{
	struct actor *a = arg;

	a->r = bufio_write_dirty_buffers(a->f->c);
	a->after_release = released;
	return NULL;
}

void *resetting(void *arg)
{
	struct actor *a = arg;

	reset(a->f);
	a->after_release = released;
	return NULL;
}

void *releasing_when_held(void *arg)
{
	struct actor *a = arg;

	if (fault_device_wait_held(a->f->dev, 1)) {
		released = true;
		fault_device_release_all(a->f->dev);
	}
	return NULL;
}

/* Give a call that does not wait the time to return too early, then let the requests go. */
void release_late(struct fixture *f)
{
	usleep(20000);
	released = true;
	fault_device_release_all(f->dev);
}

void await_reset_begun(struct fixture *f)
{
	while (!atomic_load(&f->c->resetting))
		sched_yield();
}

void fail_descriptors(bool fail)
{
	static rlim_t before;
	struct rlimit limit;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	if (fail)
		before = limit.rlim_cur;
	limit.rlim_cur = fail ? 0 : before;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

/* ---- waiters ---- */

void tell(struct bufio_waiter *w, int r)
{
	struct told *t = container_of(w, struct told, w);

	tp_lock_may_wait(LC_throttle); /* dies if any lock is held */
	t->r = r;
	t->calls++;
}

void await_told(struct told *t)
{
	while (!t->calls)
		sched_yield();
}
