/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bufio-write.c - write-back: passes over the dirty buffers
 *
 * One thread at a time is the writer of a client: a flush, the helper, or who needs
 * memory.  It owns two batches of 64 pages.  It fills a batch with copies of dirty buffers
 * (under the shard's lock, so the copy and the change from DIRTY to WRITING are one step),
 * finishes the copies (checksums), sorts them by block, writes neighbours with one request,
 * and fills the other batch meanwhile.  The writer submits through a queue of its thread
 * that serves nothing else, since its caller may hold locks that foreign callbacks take.
 *
 *   - A buffer is taken at most once in a pass, so a pass ends.
 *   - Dirtied again while WRITING, a buffer stays dirty and is for the next pass.
 *   - What could not be written is dirty again (the device has not what the cache has),
 *     the error sticks until a flush reports it or a reset clears it, and the pass stops.
 *   - Whoever wants a WRITING buffer written waits for the pass; no write outlives it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bufio/bufio-internal.h"
#include "util/log.h"

#define LOG_MODULE "bufio"
#define BATCH_BLOCKS 64u
#define NR_BATCHES 2u
#define WRITE_QUEUE_DEPTH (BATCH_BLOCKS * NR_BATCHES)

/* A copy on its way. */
struct write_slot {
	mblock_t block;
	void *data; /* a page of the batch; sorting moves it between slots */
	struct bufio_buffer *buffer;
	uintptr_t aux;
};

/* Request i writes the slots from i on, as many as it has vectors. */
struct write_io {
	struct io_request io;
	struct write_batch *batch;
};

struct write_batch {
	struct write_pass *pass; /* while in use */
	void *pages;
	unsigned nr, outstanding; /* slots filled; requests in flight */
	struct write_slot slots[BATCH_BLOCKS];
	struct write_io ios[BATCH_BLOCKS];
	struct iovec iov[BATCH_BLOCKS];
};

struct write_pass {
	struct bufio_client *client;
	enum write_mode mode;
	uint64_t quota, number;
	unsigned shard;     /* where the scan is */
	struct io_queue *q; /* NULL: write with blocking calls */
	int error;
};

/* ---- the thread's queue for writing ---- */

static pthread_key_t queue_key;
static pthread_once_t queue_once = PTHREAD_ONCE_INIT;
static bool queue_key_valid;

static void queue_destroy(void *q)
{
	bufio_self.write_queue = io_queue_destroy(q);
}

static void queue_key_create(void)
{
	queue_key_valid = pthread_key_create(&queue_key, queue_destroy) == 0;
}

/* NULL if there is none to be had; then writes block one by one. */
static struct io_queue *write_queue(void)
{
	if (bufio_self.write_queue)
		return bufio_self.write_queue;
	pthread_once(&queue_once, queue_key_create);
	if (!queue_key_valid || io_queue_create(WRITE_QUEUE_DEPTH, &bufio_self.write_queue))
		return NULL;
	if (pthread_setspecific(queue_key, bufio_self.write_queue))
		bufio_self.write_queue = io_queue_destroy(bufio_self.write_queue);
	return bufio_self.write_queue;
}

/* ---- the end of a write ---- */

static void end_write(struct bufio_buffer *b, int r) TP_TAKES(bufio)
{
	struct bufio_client *c = b->client;
	struct bufio_shard *s = shard_of(c, b->block);
	unsigned state;
	bool gone;

	lock_bufio(&s->lock);
	state = buffer_state(b);
	buffer_set_state(b, state & ~(BUFFER_WRITING | BUFFER_DROP));
	gone = (state & BUFFER_DROP) && atomic_load_explicit(&b->hold, memory_order_acquire) == 0;
	if (gone)
		shard_remove(s, b);
	else if (r && !(state & (BUFFER_DIRTY | BUFFER_DROP)))
		buffer_make_dirty(s, b);
	unlock_bufio(&s->lock);
	if (gone)
		buffer_free(c, b);
}

static void end_run(struct write_batch *batch, unsigned first, unsigned nr, int r) TP_TAKES(bufio)
{
	struct write_pass *pass = batch->pass;

	if (r) {
		log_err_limited("%s: writing metadata blocks %llu to %llu failed: %s",
				io_device_name(pass->client->dev),
				(unsigned long long)batch->slots[first].block,
				(unsigned long long)batch->slots[first].block + nr - 1,
				strerror(-r));
		pass->error = r;
		atomic_store(&pass->client->failed_block, batch->slots[first].block);
	} else {
		atomic_fetch_add_explicit(&pass->client->writes, nr, memory_order_relaxed);
	}
	for (unsigned i = first; i < first + nr; i++)
		end_write(batch->slots[i].buffer, r);
}

static void write_done(struct io_request *io, int r)
{
	struct write_io *wio = container_of(io, struct write_io, io);
	struct write_batch *batch = wio->batch;

	batch->outstanding--;
	end_run(batch, (unsigned)(wio - batch->ios), io->nr_iov, r);
}

/* ---- filling ---- */

static bool may_take(const struct write_pass *pass, const struct bufio_buffer *b)
	TP_REQUIRES(lc_bufio)
{
	if (b->pass == pass->number)
		return false;
	return pass->mode == WRITE_ALL || atomic_load_explicit(&b->hold, memory_order_acquire) == 0;
}

static void take(struct write_pass *pass, struct write_batch *batch, struct bufio_shard *s,
		 struct bufio_buffer *b) TP_REQUIRES(lc_bufio)
{
	struct write_slot *slot = &batch->slots[batch->nr++];

	/* Only this pass can be writing it, and it takes no buffer twice. */
	TP_INVARIANT(!(buffer_state(b) & BUFFER_WRITING));
	buffer_make_clean(s, b);
	buffer_set_state(b, buffer_state(b) | BUFFER_WRITING);
	b->pass = pass->number;
	slot->block = b->block;
	slot->buffer = b;
	slot->aux = bufio_aux(b);
	memcpy(slot->data, b->data, METADATA_BLOCK_SIZE);
	pass->quota--;
}

/* Returns true when the shard has no more for this pass, false when the batch is full. */
static bool take_from_shard(struct write_pass *pass, struct write_batch *batch,
			    struct bufio_shard *s) TP_REQUIRES(lc_bufio)
{
	struct bufio_buffer *b, *next;

	for (b = TAILQ_FIRST(&s->dirty); b; b = next) {
		next = TAILQ_NEXT(b, link);
		if (!may_take(pass, b))
			continue;
		if (batch->nr == BATCH_BLOCKS || pass->quota == 0)
			return false;
		take(pass, batch, s, b);
	}
	return true;
}

/* Somebody more urgent wants to write, or nothing may be written any more. */
static bool must_stop(const struct write_pass *pass)
{
	struct bufio_client *c = pass->client;

	return pass->error || pass->quota == 0 || atomic_load(&c->resetting) ||
	       (pass->mode == WRITE_BACKGROUND && atomic_load(&c->nr_flushers));
}

static void fill(struct write_pass *pass, struct write_batch *batch) TP_TAKES(bufio)
{
	bool exhausted = true;

	batch->pass = pass;
	batch->nr = 0;
	for (; exhausted && pass->shard < NR_SHARDS && !must_stop(pass); pass->shard += exhausted) {
		struct bufio_shard *s = &pass->client->shards[pass->shard];

		lock_bufio(&s->lock);
		exhausted = take_from_shard(pass, batch, s);
		unlock_bufio(&s->lock);
	}
}

/* ---- writing ---- */

static int compare_slots(const void *a, const void *b)
{
	mblock_t x = ((const struct write_slot *)a)->block;
	mblock_t y = ((const struct write_slot *)b)->block;

	return (x > y) - (x < y);
}

static void write_run(struct write_batch *batch, unsigned first, unsigned nr) TP_TAKES(bufio)
{
	struct write_pass *pass = batch->pass;
	struct io_request *io = &batch->ios[first].io;
	int r = 0;

	bufio_self.submitting++;
	if (pass->q) {
		*io = (struct io_request){
			.device = pass->client->dev,
			.op = IO_WRITE,
			.offset = batch->slots[first].block * METADATA_BLOCK_SIZE,
			.length = (uint64_t)nr * METADATA_BLOCK_SIZE,
			.iov = &batch->iov[first],
			.nr_iov = nr,
			.done = write_done,
		};
		batch->outstanding++;
		io_queue_submit(pass->q, io);
		bufio_self.submitting--;
		return;
	}
	for (unsigned i = first; i < first + nr && !r; i++)
		r = io_device_write(pass->client->dev, batch->slots[i].data, METADATA_BLOCK_SIZE,
				    batch->slots[i].block * METADATA_BLOCK_SIZE);
	bufio_self.submitting--;
	end_run(batch, first, nr, r);
}

/* Finish the copies and start writing them, neighbours together. */
static void write_batch_start(struct write_batch *batch) TP_TAKES(bufio)
{
	struct bufio_client *c = batch->pass->client;
	unsigned first = 0;

	qsort(batch->slots, batch->nr, sizeof(batch->slots[0]), compare_slots);
	for (unsigned i = 0; i < batch->nr; i++) {
		struct write_slot *slot = &batch->slots[i];

		if (c->prepare_write)
			c->prepare_write(slot->block, slot->data, slot->aux);
		batch->iov[i] = (struct iovec){ slot->data, METADATA_BLOCK_SIZE };
		if (i + 1 == batch->nr || batch->slots[i + 1].block != slot->block + 1) {
			write_run(batch, first, i + 1 - first);
			first = i + 1;
		}
	}
	if (batch->pass->q)
		io_queue_kick(batch->pass->q);
}

static void write_batch_wait(struct write_batch *batch) TP_TAKES(bufio)
{
	while (batch->outstanding)
		io_queue_run(batch->pass->q, UINT64_MAX);
}

static void write_batches(struct write_pass *pass) TP_TAKES(bufio)
{
	struct write_batch *batches = pass->client->batches;

	for (unsigned i = 0;; i = (i + 1) % NR_BATCHES) {
		write_batch_wait(&batches[i]);
		fill(pass, &batches[i]);
		if (batches[i].nr == 0)
			break;
		write_batch_start(&batches[i]);
	}
	for (unsigned i = 0; i < NR_BATCHES; i++)
		write_batch_wait(&batches[i]);
}

/* Become the writer.  Returns false if the pass is not to be. */
static bool pass_begin(struct bufio_client *c, enum write_mode mode, uint64_t *ret_number)
	TP_TAKES(bufio_lru)
{
	bool mine = true;

	lock_bufio_lru(&c->lock);
	if (mode == WRITE_BACKGROUND) {
		mine = !c->writer_busy && !atomic_load(&c->nr_flushers) && !c->write_error &&
		       !atomic_load(&c->resetting);
	} else {
		atomic_fetch_add(&c->nr_flushers, 1);
		while (c->writer_busy || atomic_load(&c->resetting))
			tp_lock_wait(&c->lock, &c->changed);
		atomic_fetch_sub(&c->nr_flushers, 1);
	}
	if (mine) {
		c->writer_busy = true;
		*ret_number = ++c->pass;
	}
	unlock_bufio_lru(&c->lock);
	return mine;
}

static int pass_end(struct write_pass *pass) TP_TAKES(bufio_lru)
{
	struct bufio_client *c = pass->client;
	int r = 0;

	lock_bufio_lru(&c->lock);
	c->writer_busy = false;
	if (pass->error && !c->write_error)
		c->write_error = pass->error;
	if (pass->mode == WRITE_ALL) {
		r = c->write_error;
		c->write_error = 0;
	}
	pthread_cond_broadcast(&c->changed);
	unlock_bufio_lru(&c->lock);
	return r;
}

int write_pass_run(struct bufio_client *c, enum write_mode mode, uint64_t quota)
{
	struct write_pass pass = { .client = c, .mode = mode, .quota = quota };

	tp_lock_may_wait(LC_bufio);
	if (!pass_begin(c, mode, &pass.number))
		return 0;
	if (atomic_load(&c->nr_dirty)) {
		pass.q = write_queue();
		write_batches(&pass);
	}
	return pass_end(&pass);
}

/* ---- public ---- */

int bufio_write_dirty_buffers(struct bufio_client *c)
{
	return write_pass_run(c, WRITE_ALL, UINT64_MAX);
}

mblock_t bufio_failed_block(const struct bufio_client *c)
{
	return atomic_load(&c->failed_block);
}

void bufio_write_dirty_buffers_async(struct bufio_client *c)
{
	helper_ask(c, &(struct helper_work){ .write_back = true });
}

int bufio_issue_flush(struct bufio_client *c)
{
	int r;

	tp_lock_may_wait(LC_bufio);
	r = io_device_flush(c->dev);
	if (r)
		log_err_limited("%s: flushing the metadata device failed: %s",
				io_device_name(c->dev), strerror(-r));
	return r;
}

int write_init(struct bufio_client *c)
{
	c->batches = calloc(NR_BATCHES, sizeof(struct write_batch));
	if (!c->batches)
		return -ENOMEM;
	for (unsigned i = 0; i < NR_BATCHES; i++) {
		struct write_batch *batch = &c->batches[i];

		batch->pages = io_buffer_alloc((uint64_t)BATCH_BLOCKS * METADATA_BLOCK_SIZE);
		if (!batch->pages)
			return -ENOMEM;
		memset(batch->pages, 0, (size_t)BATCH_BLOCKS * METADATA_BLOCK_SIZE);
		for (unsigned j = 0; j < BATCH_BLOCKS; j++) {
			batch->slots[j].data =
				(char *)batch->pages + (size_t)j * METADATA_BLOCK_SIZE;
			batch->ios[j].batch = batch;
		}
	}
	return 0;
}

void write_destroy(struct bufio_client *c)
{
	for (unsigned i = 0; c->batches && i < NR_BATCHES; i++)
		free(c->batches[i].pages);
	free(c->batches);
}
