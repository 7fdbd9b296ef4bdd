/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bufio-read.c - reads: synchronous, prefetched, awaited
 *
 * A synchronous read blocks in the device; who wants the same block sleeps until it ends.
 * A prefetch goes through the queue of the thread that wanted it and ends when that thread
 * runs it.  The thread itself, when it needs the block, runs its queue.  Any other thread
 * does not wait, since what it holds may be what that thread sleeps for: it puts a buffer
 * of its own in the place, reads that, and leaves the first one an orphan, which is freed
 * when its read ends.  A reset makes orphans of all of them: it runs with a pool's locks held, for
 * which that thread may be waiting.  Only the destruction waits for event loops.
 *
 * Waiters are called where nobody holds a lock: out of the event loop of the thread that
 * read, or by the helper if the read ended inside of a call to bufio/, whose caller may
 * hold anything.
 *
 * A failed read leaves nothing behind: the buffer is unhashed when the read ends, and
 * freed by the last one who holds it.
 */
#include <errno.h>
#include <string.h>

#include "bufio/bufio-internal.h"
#include "util/log.h"

#define LOG_MODULE "bufio"

_Thread_local struct bufio_thread bufio_self;

/* ---- the end of a read ---- */

/* Returns true if the buffer is the caller's now, to be freed. */
static bool end_read_locked(struct bufio_shard *s, struct bufio_buffer *b, int r)
	TP_REQUIRES(lc_bufio)
{
	bool drop = buffer_state(b) & BUFFER_DROP;
	bool held = atomic_load_explicit(&b->hold, memory_order_acquire) > 0;

	if (buffer_state(b) & BUFFER_ORPHAN) {
		b->error = -EAGAIN;
		buffer_set_state(b, 0);
		return !held;
	}
	/* Unhashed before the result shows, so that who sees it finds no second user. */
	if (r || (drop && !held)) {
		b->error = r;
		shard_remove(s, b);
		buffer_set_state(b, 0);
		return !held;
	}
	buffer_set_state(b, buffer_state(b) & ~(BUFFER_READING | BUFFER_DROP));
	return false;
}

/* @b has been read with @r; without a hold of the caller's own it may be gone on return. */
static void end_read(struct bufio_buffer *b, int r, bool call_directly) TP_TAKES(bufio)
{
	struct waiter_list waiters = STAILQ_HEAD_INITIALIZER(waiters);
	struct bufio_client *c = b->client;
	struct bufio_shard *s = shard_of(c, b->block);
	struct bufio_waiter *w;
	bool gone;

	if (r)
		log_err_limited("%s: reading metadata block %llu failed: %s",
				io_device_name(c->dev), (unsigned long long)b->block, strerror(-r));
	else
		atomic_fetch_add_explicit(&c->reads, 1, memory_order_relaxed);

	lock_bufio(&s->lock);
	STAILQ_CONCAT(&waiters, &b->waiters);
	gone = end_read_locked(s, b, r);
	unlock_bufio(&s->lock);
	if (gone)
		buffer_free(c, b);
	if (!call_directly && !STAILQ_EMPTY(&waiters))
		helper_call(c, &waiters, r);

	lock_bufio_lru(&c->lock); /* the last use of the client, which may be destroyed then */
	atomic_fetch_sub(&c->nr_reading, 1);
	pthread_cond_broadcast(&c->changed);
	unlock_bufio_lru(&c->lock);

	while ((w = STAILQ_FIRST(&waiters))) {
		STAILQ_REMOVE_HEAD(&waiters, link);
		w->done(w, r);
	}
}

void buffer_orphan(struct bufio_shard *s, struct bufio_buffer *b, struct waiter_list *ret_waiters)
{
	shard_remove(s, b);
	buffer_set_state(b, BUFFER_READING | BUFFER_ORPHAN);
	STAILQ_CONCAT(ret_waiters, &b->waiters);
}

void buffer_put_failed(struct bufio_buffer *b)
{
	/* Unhashed: no new holder can come, so the last one frees it. */
	if (atomic_fetch_sub_explicit(&b->hold, 1, memory_order_acq_rel) == 1)
		buffer_free(b->client, b);
}

/* ---- synchronous ---- */

int buffer_read_now(struct bufio_buffer *b)
{
	int r;

	tp_lock_may_wait(LC_bufio);
	bufio_self.submitting++;
	r = io_device_read(b->client->dev, b->data, METADATA_BLOCK_SIZE,
			   b->block * METADATA_BLOCK_SIZE);
	bufio_self.submitting--;
	end_read(b, r, false);
	if (!r)
		return 0;
	buffer_put_failed(b);
	return r;
}

/* Run the thread's own queue until something has happened. */
static void pump(void) TP_TAKES(bufio)
{
	struct io_queue *q = NULL;
	int r = io_queue_self(&q);

	TP_INVARIANT(r == 0); /* it exists: reads are in flight in it */
	bufio_self.pumping++;
	io_queue_run(q, UINT64_MAX);
	bufio_self.pumping--;
}

int buffer_await_read(struct bufio_buffer *b)
{
	struct bufio_client *c = b->client;

	tp_lock_may_wait(LC_bufio);
	while ((buffer_state(b) & BUFFER_READING) && b->reader)
		pump();

	lock_bufio_lru(&c->lock);
	while (buffer_state(b) & BUFFER_READING)
		tp_lock_wait(&c->lock, &c->changed);
	unlock_bufio_lru(&c->lock);
	return b->error;
}

void reads_abandon(struct bufio_client *c)
{
	struct waiter_list waiters = STAILQ_HEAD_INITIALIZER(waiters);
	struct bufio_buffer *b, *next;

	for (unsigned i = 0; i < NR_SHARDS; i++) {
		struct bufio_shard *s = &c->shards[i];

		lock_bufio(&s->lock);
		for (b = TAILQ_FIRST(&s->clean); b; b = next) {
			next = TAILQ_NEXT(b, link);
			if (buffer_state(b) & BUFFER_READING) {
				TP_INVARIANT(b->reader && atomic_load(&b->hold) == 0);
				buffer_orphan(s, b, &waiters);
			}
		}
		unlock_bufio(&s->lock);
	}
	if (!STAILQ_EMPTY(&waiters))
		helper_call(c, &waiters, -EAGAIN);
}

void reads_drain(struct bufio_client *c)
{
	tp_lock_may_wait(LC_bufio);
	while (atomic_load(&c->nr_reading) && bufio_self.nr_reads)
		pump();

	lock_bufio_lru(&c->lock);
	while (atomic_load(&c->nr_reading))
		tp_lock_wait(&c->lock, &c->changed);
	unlock_bufio_lru(&c->lock);
}

/* ---- asynchronous ---- */

static void read_done(struct io_request *io, int r)
{
	struct bufio_buffer *b = container_of(io, struct bufio_buffer, read);

	bufio_self.nr_reads--;
	end_read(b, r, bufio_self.pumping == 0);
}

/* @b is hashed and READING, and only its completion will look at it. */
static void submit_read(struct io_queue *q, struct bufio_buffer *b)
{
	b->read = (struct io_request){
		.device = b->client->dev,
		.op = IO_READ,
		.offset = b->block * METADATA_BLOCK_SIZE,
		.done = read_done,
	};
	io_request_set_buffer(&b->read, b->data, METADATA_BLOCK_SIZE);
	bufio_self.nr_reads++;
	bufio_self.submitting++;
	io_queue_submit(q, &b->read);
	bufio_self.submitting--;
}

/*
 * What there is to do for @block: 0 it is cached, -EINPROGRESS it is being read and *@w
 * waits for it, -ENOENT it must be read.  With @fresh it is inserted then.
 */
static int join_read(struct bufio_client *c, mblock_t block, struct bufio_waiter *w,
		     struct bufio_buffer *fresh) TP_TAKES(bufio)
{
	struct bufio_shard *s = shard_of(c, block);
	struct bufio_buffer *b;
	int r = 0;

	lock_bufio(&s->lock);
	b = shard_find(s, block);
	if (!b) {
		r = -ENOENT;
		b = fresh;
		if (b) {
			shard_insert(s, b, block, BUFFER_READING);
			b->reader = &bufio_self;
			atomic_fetch_add(&c->nr_reading, 1);
		}
	} else if (buffer_state(b) & BUFFER_READING) {
		r = -EINPROGRESS;
	}
	if (b && w) {
		atomic_store_explicit(&b->referenced, true, memory_order_relaxed);
		if (r)
			STAILQ_INSERT_TAIL(&b->waiters, w, link);
	}
	unlock_bufio(&s->lock);
	return r;
}

/* Returns 0 if @block is cached, -EINPROGRESS if it is being read now, or an error. */
static int start_read(struct bufio_client *c, struct io_queue *q, mblock_t block,
		      struct bufio_waiter *w) TP_TAKES(bufio)
{
	struct bufio_buffer *fresh;
	int r = join_read(c, block, w, NULL);

	if (r != -ENOENT)
		return r;
	fresh = buffer_alloc(c, w ? ALLOC_WANTED : ALLOC_IF_EASY);
	if (!fresh)
		return -ENOMEM;
	r = join_read(c, block, w, fresh);
	if (r != -ENOENT) {
		buffer_free(c, fresh); /* somebody was faster */
		return r;
	}
	submit_read(q, fresh);
	return -EINPROGRESS;
}

void bufio_prefetch(struct bufio_client *c, mblock_t block, unsigned nr_blocks)
{
	mblock_t end = io_device_size(c->dev) / METADATA_BLOCK_SIZE;
	struct io_queue *q;
	int r;

	if (atomic_load(&c->resetting) || block >= end || io_queue_self(&q))
		return;
	end = MIN(end, block + nr_blocks);
	for (; block < end; block++) {
		r = start_read(c, q, block, NULL);
		if (r == -ENOMEM)
			break;
	}
	io_queue_kick(q);
}

int bufio_read_async(struct bufio_client *c, mblock_t block, struct bufio_waiter *w)
{
	struct io_queue *q;
	int r;

	if (atomic_load(&c->resetting))
		return -EAGAIN;
	r = io_queue_self(&q);
	return r ? r : start_read(c, q, block, w);
}
