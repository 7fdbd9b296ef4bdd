/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * map.c - requests from front ends, and the fast path: what a mapping that is cached allows
 *
 * Runs in the threads of the front ends, and in the worker for what had to wait.  See
 * request.h for the parts of a request.
 *
 * Invariants:
 *   M1  Nothing here sleeps: a lock held during I/O is tried, a metadata node that is not
 *       cached is waited for by a callback, everything else goes to the worker.
 *   M2  A data I/O is under way only while its segment holds its cell and is counted by
 *       the gate of its volume: so a mapping does not change while it is being used, and a
 *       closed gate with nothing in flight is a consistent cut.
 *   M3  Of one request at most one shared segment is between its gate and its data I/O:
 *       the one carved last.  Cutting it short moves the request's position back.
 *   M4  A segment that waits is not touched by the thread that made it wait.
 *
 * Locks: none is held across a call of done().
 */
#include "pool/request.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "util/clock.h"

/* Nodes of a path missed in a row, before the worker is asked to sleep for them. */
#define MISSES_MAX 16
/* Lookups of one seek before others get a turn. */
#define SEEK_STEPS 256
/*
 * Parts of a long punch that are started before others get a turn: who reads meanwhile may have to
 * wait for that long.
 */
#define CARVE_STEPS 16
/* Who changes metadata is soon done with a step of it; so long it is not worth to ask the worker.
 */
#define BUSY_TRIES 200
#define BUSY_PAUSES 16

static bool segment_enter(struct pool *pool, struct segment *seg, struct io_queue *q);
static void seek_run(struct pool *pool, struct request *req, struct io_queue *q);

/* ------------------------------------------------------------------ the gate */

void volume_io_init(struct volume *v, struct pool *pool, struct thin_device *td,
		    uint64_t size_bytes)
{
	v->pool = pool;
	v->td = td;
	v->id = thin_device_id(td);
	v->size_bytes = size_bytes;
	v->size_dirty = v->size_uncommitted = v->lost_writes = false;
	v->written = 0;
	v->in_flight = 0;
	v->gate_closed = 0;
	lock_pool(&pool->lock);
	STAILQ_INIT(&v->gated);
	v->losses = (struct losses){ 0 };
	unlock_pool(&pool->lock);
}

TP_NO_TSA void volume_io_destroy(struct volume *v)
{
	TP_INVARIANT(v->in_flight == 0 && v->gate_closed == 0);
	free(v->losses.told);
}

static void gate_leave(struct pool *pool, struct volume *v)
{
	if (atomic_fetch_sub(&v->in_flight, 1) == 1 && unlikely(atomic_load(&v->gate_closed)))
		pool_wake_worker(pool);
}

/* The gate looked closed.  True: it was, and the segment waits for it. */
static bool gate_park(struct pool *pool, struct volume *v, struct segment *seg)
{
	bool closed, last = false;

	lock_pool(&pool->lock);
	closed = v->gate_closed;
	if (closed) {
		seg->stage = STAGE_GATE;
		STAILQ_INSERT_TAIL(&v->gated, seg, link);
		/* Under the lock: once on the list it may be resumed, end, and the volume go. */
		last = atomic_fetch_sub(&v->in_flight, 1) == 1;
	}
	unlock_pool(&pool->lock);
	if (last)
		pool_wake_worker(pool);
	return closed;
}

/* ------------------------------------------------------------------ cells */

/* Whoever waits for a cell goes on in the worker. */
static void wake_granted(struct pool *pool, struct cell *cell)
{
	struct cell *next;

	for (; unlikely(cell); cell = next) {
		struct segment *seg = container_of(cell, struct segment, cell);

		next = cell->next_granted;
		seg->stage = STAGE_HELD;
		worker_push(pool, &seg->work);
	}
}

void segment_leave(struct pool *pool, struct segment *seg)
{
	wake_granted(pool, prison_release(pool->prison, &seg->cell));
	gate_leave(pool, segment_volume(seg));
}

/* ------------------------------------------------------------------ segments */

static void segment_work_run(struct pool *pool, struct work *work)
{
	struct segment *seg = container_of(work, struct segment, work);

	STAILQ_INSERT_TAIL(&pool->worker->todo, seg, link);
}

/* NULL: all are in use; the worker carves on when one is free. */
static struct segment *segment_get(struct pool *pool, struct request *req)
{
	struct segment *seg = &req->first;

	if (likely(!req->first_used)) {
		req->first_used = true;
	} else {
		lock_pool(&pool->lock);
		seg = STAILQ_FIRST(&pool->worker->free_segments);
		if (seg)
			STAILQ_REMOVE_HEAD(&pool->worker->free_segments, link);
		unlock_pool(&pool->lock);
		if (!seg)
			return NULL;
	}
	seg->request = req;
	seg->wants_space = false;
	seg->redo_offset = UINT64_MAX;
	seg->misses = 0;
	seg->nr_jobs = 0;
	seg->result = 0;
	seg->work.run = segment_work_run;
	return seg;
}

static void segment_free(struct pool *pool, struct segment *seg)
{
	if (likely(seg == &seg->request->first))
		return;
	lock_pool(&pool->lock);
	STAILQ_INSERT_HEAD(&pool->worker->free_segments, seg, link);
	unlock_pool(&pool->lock);
	if (unlikely(atomic_load(&pool->worker->nr_starved)))
		pool_wake_worker(pool);
}

void request_fail(struct request *req, int r)
{
	int none = 0;

	(void)atomic_compare_exchange_strong(&req->result, &none, r); /* keeps the first */
}

void segment_abandon(struct pool *pool, struct segment *seg, int r)
{
	struct request *req = seg->request;

	if (unlikely(r < 0))
		request_fail(req, r);
	segment_free(pool, seg);
	request_put(pool, req);
}

void segment_finish(struct pool *pool, struct segment *seg, int r)
{
	if (request_io(seg->request)->op != POOL_READ)
		volume_note_write(segment_volume(seg));
	segment_leave(pool, seg);
	segment_abandon(pool, seg, r);
}

/* Nothing of the segment lies behind block @end any more; carving goes on there. */
static void segment_truncate(struct pool *pool, struct segment *seg, vblock_t end)
{
	seg->end = end * pool->block_size;
	seg->request->pos = seg->end;
	wake_granted(pool, prison_shrink(pool->prison, &seg->cell, end));
}

/* The segment needs the worker, which will hold the cell for it alone. */
static void segment_make_exclusive(struct pool *pool, struct segment *seg)
{
	bool may_sleep = seg->request->may_sleep;

	wake_granted(pool, prison_release(pool->prison, &seg->cell));
	seg->exclusive = true;
	seg->stage = STAGE_CELL;
	stats_add(pool->stats, seg->q, STAT_DEFERRED, 1);
	worker_defer(pool, &seg->work, may_sleep);
}

/*
 * The data I/O is done.  An abort since the lookup may have taken back the mapping that a write
 * relied on: then it is done once more, by what is mapped now.
 */
static void segment_end_io(struct pool *pool, struct segment *seg, int r)
{
	if (likely(seg->epoch == atomic_load(&pool->epoch)) ||
	    request_io(seg->request)->op == POOL_READ || r) {
		segment_finish(pool, seg, r);
	} else {
		seg->result = 0;
		seg->work.run = segment_work_run;
		segment_make_exclusive(pool, seg);
	}
}

static void segment_done_work(struct pool *pool, struct work *work)
{
	struct segment *seg = container_of(work, struct segment, work);

	segment_end_io(pool, seg, seg->result);
}

static void segment_io_done(struct io_request *io, int r)
{
	struct segment *seg = container_of(io, struct segment, io);
	struct pool *pool = segment_volume(seg)->pool;

	if (unlikely(r))
		data_error(pool, io, r);
	if (seg->q != pool->worker->q) {
		segment_end_io(pool, seg, r);
	} else { /* W4 */
		seg->result = r;
		seg->work.run = segment_done_work;
		worker_push(pool, &seg->work);
	}
}

static bool is_aligned(const struct pool *pool, uint64_t offset, uint64_t end, const void *buffer)
{
	return !((offset | end | (uintptr_t)buffer) & (pool->alignment - 1));
}

static uint8_t *segment_buffer(struct segment *seg)
{
	struct pool_io *io = request_io(seg->request);

	return (uint8_t *)io->buffer + (seg->offset - io->offset);
}

/* The mapping is known and will not change while the cell is held. */
static void segment_resolve(struct pool *pool, struct segment *seg, const struct thin_run *run,
			    struct io_queue *q)
{
	struct pool_io *io = request_io(seg->request);
	uint64_t in_block = seg->offset - seg->cell.begin * pool->block_size;
	uint8_t *buffer = segment_buffer(seg);

	if (seg->cell.begin + run->nr_blocks < seg->cell.end)
		segment_truncate(pool, seg, seg->cell.begin + run->nr_blocks);
	if (io->op == POOL_READ && !run->mapped) {
		memset(buffer, 0, seg->end - seg->offset);
		segment_finish(pool, seg, 0);
		return;
	}
	if (io->op == POOL_WRITE && (!run->mapped || run->shared)) {
		segment_make_exclusive(pool, seg);
		return;
	}

	seg->io.offset = run->dblock * pool->block_size + in_block;
	if (unlikely(!is_aligned(pool, seg->offset, seg->end, buffer))) {
		seg->stage = STAGE_UNALIGNED; /* a read: writes were made exclusive before */
		worker_defer(pool, &seg->work, seg->request->may_sleep);
		return;
	}
	seg->io.device = pool->data;
	seg->io.op = io->op == POOL_READ ? IO_READ : IO_WRITE;
	seg->io.done = segment_io_done;
	io_request_set_buffer(&seg->io, buffer, seg->end - seg->offset);
	io_queue_submit(q, &seg->io);
}

/*
 * Look up and act.  True: the segment needs its thread no more.  False: it waits, and whoever
 * resumes it carves on.
 */
static bool segment_run(struct pool *pool, struct segment *seg, struct io_queue *q)
{
	struct thin_run run;
	int r;

	if (seg->exclusive) {
		exclusive_segment_run(pool, seg);
		return true;
	}
	seg->stage = STAGE_HELD;
	seg->epoch = atomic_load(&pool->epoch);
	r = segment_find(pool, seg, q, seg->cell.begin, seg->cell.end - seg->cell.begin, &run);
	if (r == -EINPROGRESS)
		return false;
	if (unlikely(r))
		segment_finish(pool, seg, -EIO);
	else
		segment_resolve(pool, seg, &run, q);
	return true;
}

static bool segment_lock(struct pool *pool, struct segment *seg, struct io_queue *q)
{
	bool exclusive = seg->exclusive;

	if (exclusive && q != pool->worker->q) {
		seg->stage = STAGE_CELL;
		stats_add(pool->stats, q, STAT_DEFERRED, 1);
		worker_defer(pool, &seg->work, seg->request->may_sleep);
		return true;
	}
	seg->cell.owner = segment_volume(seg);
	seg->cell.begin = pool_block_of(pool, seg->offset);
	seg->cell.end = pool_block_of(pool, seg->end - 1) + 1;
	seg->cell.exclusive = exclusive;
	if (unlikely(!prison_acquire(pool->prison, &seg->cell)))
		return exclusive;
	return segment_run(pool, seg, q);
}

/* Worker only: so that a volume is not made smaller in between. */
static int volume_grow(struct pool *pool, struct volume *v, uint64_t size_bytes)
{
	int r = pool_check_writable(pool);

	if (size_bytes <= volume_size(v))
		return 0;
	if (!r && !pool->has_catalog)
		r = -EFBIG; /* nowhere to record it */
	if (!r)
		r = pool_redo_make_room(pool);
	if (r)
		return r;
	atomic_store(&v->size_dirty, true);
	atomic_store(&v->size_uncommitted, true);
	atomic_store(&pool->sizes_dirty, true);
	atomic_store(&v->size_bytes, size_bytes);
	pool_redo_size(v);
	return 0;
}

static bool segment_enter(struct pool *pool, struct segment *seg, struct io_queue *q)
{
	struct volume *v = segment_volume(seg);
	bool exclusive = seg->exclusive, write = request_io(seg->request)->op == POOL_WRITE;
	int r;

	atomic_fetch_add(&v->in_flight, 1);
	if (unlikely(atomic_load(&v->gate_closed)) && !seg->request->past_gate &&
	    gate_park(pool, v, seg))
		return exclusive;
	if (unlikely(write && q == pool->worker->q && seg->end > volume_size(v))) {
		/* Made smaller while the write waited: nothing may stay behind the end. */
		r = volume_grow(pool, v, seg->end);
		if (r) {
			gate_leave(pool, v);
			segment_abandon(pool, seg, r);
			return true;
		}
	}
	return segment_lock(pool, seg, q);
}

/* A segment has what it waited for; any thread that runs segments. */
static void segment_continue(struct pool *pool, struct segment *seg, struct io_queue *q)
{
	struct request *req = seg->request;
	bool carve = !seg->exclusive, going_on;

	if (request_io(req)->op >= POOL_SEEK_DATA) {
		seek_run(pool, req, q);
		return;
	}
	if (seg->stage == STAGE_UNALIGNED) {
		unaligned_read_run(pool, seg);
		return;
	}
	seg->q = q;
	seg->owner = pthread_self();
	if (seg->stage == STAGE_GATE)
		going_on = segment_enter(pool, seg, q);
	else if (seg->stage == STAGE_CELL)
		going_on = segment_lock(pool, seg, q);
	else
		going_on = segment_run(pool, seg, q);
	if (carve && going_on)
		request_carve(pool, req, q);
}

void segment_resume(struct pool *pool, struct segment *seg)
{
	segment_continue(pool, seg, pool->worker->q);
}

/* ------------------------------------------------------------------ lookup */

static void segment_node_arrived(struct thin_waiter *w)
{
	struct segment *seg = container_of(w, struct segment, waiter);
	struct pool *pool = segment_volume(seg)->pool;

	if (w->result < 0 && w->result != -EAGAIN)
		seg->misses = MISSES_MAX;
	if (seg->misses < MISSES_MAX && !on_worker(pool) &&
	    pthread_equal(seg->owner, pthread_self()))
		segment_continue(pool, seg, seg->q);
	else
		worker_push(pool, &seg->work);
}

/* In a loop that waits for another CPU. */
static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/* thin_try_find_run(), several times if all that is in the way is a step of a change. */
static int try_find(struct thin_device *td, vblock_t vblock, uint64_t max_blocks,
		    struct thin_run *ret_run, mblock_t *ret_missing)
{
	int r;

	for (unsigned n = 0; n < BUSY_TRIES; n++) {
		r = thin_try_find_run(td, vblock, max_blocks, ret_run, ret_missing);
		if (likely(r != -EWOULDBLOCK || *ret_missing != MBLOCK_NONE))
			break;
		for (unsigned i = 0; i < BUSY_PAUSES; i++)
			relax();
	}
	return r;
}

int segment_find(struct pool *pool, struct segment *seg, struct io_queue *q, vblock_t vblock,
		 uint64_t max_blocks, struct thin_run *ret_run)
{
	struct thin_device *td = segment_volume(seg)->td;
	bool worker = q == pool->worker->q;
	mblock_t missing;
	int r;

	while (seg->misses < MISSES_MAX) {
		r = try_find(td, vblock, max_blocks, ret_run, &missing);
		if (likely(!r)) {
			seg->misses = 0;
			return 0;
		}
		/* What has failed is for the worker to find again: it must be dealt with. */
		if (r != -EWOULDBLOCK || missing == MBLOCK_NONE)
			break;
		seg->misses++;
		stats_add(pool->stats, q, STAT_METADATA_MISSES, 1);
		seg->waiter.done = segment_node_arrived;
		r = thin_metadata_prefetch(pool->tmd, missing, &seg->waiter);
		if (r == -EINPROGRESS)
			return r;
		if (r)
			seg->misses = MISSES_MAX;
	}
	if (worker) {
		seg->misses = 0;
		r = thin_find_run(td, vblock, max_blocks, ret_run);
		if (unlikely(r == -ENODATA))
			return -EIO; /* a volume that an abort has taken back */
		return unlikely(r) ? pool_query_failed(pool, "look up a block", r) : 0;
	}
	stats_add(pool->stats, q, STAT_DEFERRED, 1);
	worker_defer(pool, &seg->work, seg->request->may_sleep);
	return -EINPROGRESS;
}

/* ------------------------------------------------------------------ requests */

static int answer_code(int r)
{
	switch (r) {
	case 0:
	case -EIO:
	case -ENOSPC:
	case -EROFS:
	case -EFBIG:
	case -ENXIO:
	case -EOPNOTSUPP:
		return r;
	default: /* the metadata's own vocabulary means nothing to a client */
		return -EIO;
	}
}

static enum pool_latency_op latency_op(enum pool_io_op op)
{
	switch (op) {
	case POOL_WRITE:
	case POOL_ALLOCATE:
		return POOL_LATENCY_WRITE;
	case POOL_FLUSH:
		return POOL_LATENCY_FLUSH;
	case POOL_PUNCH:
	case POOL_ZERO:
		return POOL_LATENCY_DISCARD;
	case POOL_READ:
	case POOL_SEEK_DATA:
	case POOL_SEEK_HOLE:
		break;
	}
	return POOL_LATENCY_READ;
}

void request_answer(struct request *req)
{
	struct pool_io *io = request_io(req);

	if (req->begin_usec)
		stats_end(io->volume->pool->stats, req->q, latency_op(io->op),
			  time_monotonic_usec() - req->begin_usec);
	io->done(io, answer_code(req->result));
}

static bool changes_volume(enum pool_io_op op)
{
	return op == POOL_WRITE || op == POOL_PUNCH || op == POOL_ZERO || op == POOL_ALLOCATE;
}

void request_end(struct pool *pool, struct request *req)
{
	struct pool_io *io = request_io(req);

	if (io->op == POOL_READ && unlikely(req->zero_from < req->end) && !req->result)
		memset((uint8_t *)io->buffer + (req->zero_from - io->offset), 0,
		       req->end - req->zero_from);
	if (unlikely(io->durable) && changes_volume(io->op) && !req->flushed && !req->result) {
		request_flush(pool, req, on_worker(pool) ? pool->worker->q : req->q);
		return;
	}
	if (on_worker(pool))
		worker_finish(pool, req);
	else
		request_answer(req);
}

void request_put(struct pool *pool, struct request *req)
{
	if (atomic_fetch_sub(&req->pending, 1) == 1)
		request_end(pool, req);
}

static void request_starve(struct pool *pool, struct work *work)
{
	struct request *req = container_of(work, struct request, work);

	STAILQ_INSERT_TAIL(&pool->worker->starved, req, link);
}

/* Worker: carve a request that was deferred as a whole. */
static void request_carve_work(struct pool *pool, struct work *work)
{
	request_carve(pool, container_of(work, struct request, work), pool->worker->q);
}

/* Where the next segment ends: at the end of the zone that it begins in. */
static uint64_t carve_end(const struct pool *pool, const struct request *req)
{
	uint64_t zone = pool->zone_bytes;
	uint64_t rest = zone - (pool->block_shift >= 0 ? req->pos & (zone - 1) : req->pos % zone);

	return rest < req->end - req->pos ? req->pos + rest : req->end;
}

void request_carve(struct pool *pool, struct request *req, struct io_queue *q)
{
	const struct pool_io *io = request_io(req);
	bool range = io->op > POOL_WRITE;
	unsigned steps = 0;

	for (;;) {
		struct segment *seg;

		if (range)
			range_request_skip(pool, req);
		if (req->pos >= req->end || req->result)
			break;
		if (range && ++steps > CARVE_STEPS) {
			req->work.run = request_carve_work;
			worker_push(pool, &req->work);
			return;
		}
		seg = segment_get(pool, req);
		if (unlikely(!seg)) {
			atomic_fetch_add(&pool->worker->nr_starved, 1);
			req->work.run = request_starve;
			worker_push(pool, &req->work);
			return;
		}
		seg->offset = req->pos;
		seg->end = req->pos = carve_end(pool, req);
		seg->exclusive =
			range || (io->op == POOL_WRITE &&
				  !is_aligned(pool, seg->offset, seg->end, segment_buffer(seg)));
		seg->q = q;
		seg->owner = pthread_self();
		atomic_fetch_add_explicit(&req->pending, 1, memory_order_relaxed);
		if (!segment_enter(pool, seg, q))
			return;
	}
	request_put(pool, req);
}

/* ------------------------------------------------------------------ seek */

static void seek_end(struct pool *pool, struct request *req, int r, uint64_t offset)
{
	if (r)
		request_fail(req, r);
	else
		request_io(req)->ret_offset = offset;
	request_end(pool, req);
}

static void seek_run(struct pool *pool, struct request *req, struct io_queue *q)
{
	struct segment *seg = &req->first;
	bool want_data = request_io(req)->op == POOL_SEEK_DATA;

	seg->q = q;
	seg->owner = pthread_self();
	for (unsigned n = 0; n < SEEK_STEPS; n++) {
		vblock_t vblock = pool_block_of(pool, req->pos);
		struct thin_run run;
		int r;

		if (req->pos >= req->end) {
			seek_end(pool, req, want_data ? -ENXIO : 0, req->end);
			return;
		}
		r = segment_find(pool, seg, q, vblock,
				 pool_block_of(pool, req->end - 1) + 1 - vblock, &run);
		if (r == -EINPROGRESS)
			return;
		if (r || run.mapped == want_data) {
			seek_end(pool, req, r ? -EIO : 0, req->pos);
			return;
		}
		req->pos = (vblock + run.nr_blocks) * pool->block_size;
	}
	worker_push(pool, &seg->work);
}

static void seek_start(struct pool *pool, struct request *req, struct io_queue *q)
{
	struct pool_io *io = request_io(req);

	req->pos = io->offset;
	req->end = volume_size(io->volume);
	(void)segment_get(pool, req); /* only for its lookup */
	if (req->pos >= req->end)
		seek_end(pool, req, -ENXIO, 0);
	else
		seek_run(pool, req, q);
}

/* ------------------------------------------------------------------ submission */

static void request_refuse(struct pool *pool, struct request *req, int r)
{
	req->flushed = true; /* nothing was done that could be lost */
	if (r)
		request_fail(req, r);
	request_end(pool, req);
}

static void read_start(struct pool *pool, struct request *req, struct io_queue *q)
{
	struct pool_io *io = request_io(req);
	uint64_t size = volume_size(io->volume), end = io->offset + io->length;
	uint64_t aligned = (size + pool->alignment - 1) & ~(uint64_t)(pool->alignment - 1);

	stats_add(pool->stats, q, STAT_READS, 1);
	stats_add(pool->stats, q, STAT_READ_BYTES, io->length);
	if (unlikely(end > size)) {
		uint64_t from = MAX(io->offset, aligned);

		/* Up to the next aligned byte it is read and made zero afterwards. */
		req->zero_from = MAX(size, io->offset);
		if (end > from) {
			memset((uint8_t *)io->buffer + (from - io->offset), 0, end - from);
			end = from;
		}
	}
	req->pos = io->offset;
	req->end = end;
	if (req->zero_from > end)
		req->zero_from = end;
	request_carve(pool, req, q);
}

/* Worker: the volume becomes large enough, then the write goes its way. */
static void write_growing(struct pool *pool, struct work *work)
{
	struct request *req = container_of(work, struct request, work);
	int r = volume_grow(pool, request_io(req)->volume, req->end);

	if (r)
		request_fail(req, r);
	request_carve(pool, req, pool->worker->q);
}

static void write_start(struct pool *pool, struct request *req, struct io_queue *q)
{
	struct pool_io *io = request_io(req);

	stats_add(pool->stats, q, STAT_WRITES, 1);
	stats_add(pool->stats, q, STAT_WRITE_BYTES, io->length);
	req->pos = io->offset;
	req->end = io->offset + io->length;
	if (unlikely(req->end > volume_size(io->volume))) {
		req->work.run = write_growing;
		worker_defer(pool, &req->work, req->may_sleep);
	} else {
		request_carve(pool, req, q);
	}
}

/* Punch, zero, allocate: up to the end of the volume, by the worker. */
static void range_start(struct pool *pool, struct request *req, struct io_queue *q)
{
	struct pool_io *io = request_io(req);

	req->pos = io->offset;
	req->end = io->offset + io->length;
	if (io->op != POOL_ALLOCATE) {
		if (atomic_load_explicit(&pool->refuses_discards, memory_order_relaxed) &&
		    !req->past_gate) {
			request_refuse(pool, req, -EOPNOTSUPP);
			return;
		}
		stats_add(pool->stats, q, STAT_DISCARDS, 1);
		stats_add(pool->stats, q, STAT_DISCARD_BYTES, io->length);
	}
	if (!req->past_gate)
		req->end = MIN(req->end, volume_size(io->volume));
	req->work.run = request_carve_work;
	worker_defer(pool, &req->work, req->may_sleep);
}

static int check_submission(struct pool *pool, const struct pool_io *io)
{
	if (unlikely(atomic_load_explicit(&pool->mode, memory_order_relaxed) == POOL_MODE_FAIL))
		return -EIO;
	if (changes_volume(io->op) &&
	    (pool->options.read_only ||
	     atomic_load_explicit(&io->volume->read_only, memory_order_relaxed)))
		return -EROFS;
	if (changes_volume(io->op) && unlikely(volume_check_disk(io)))
		return -EIO;
	if (io->op != POOL_FLUSH &&
	    (io->offset > pool->max_bytes || io->length > pool->max_bytes - io->offset))
		return io->op == POOL_SEEK_DATA || io->op == POOL_SEEK_HOLE ? -ENXIO : -EFBIG;
	return 0;
}

static void submit(struct pool *pool, struct io_queue *q, struct pool_io *io, bool may_sleep,
		   bool past_gate)
{
	struct request *req = request_of(io);
	int r = past_gate ? 0 : check_submission(pool, io);

	req->pending = 1;
	req->result = 0;
	req->pos = req->end = 0;
	req->past_gate = past_gate;
	req->may_sleep = may_sleep;
	req->first_used = false;
	req->flushed = past_gate; /* the worker's caller commits */
	req->zero_from = UINT64_MAX;
	req->q = q;
	req->begin_usec = past_gate ? 0 : time_monotonic_usec();
	if (!past_gate)
		stats_begin(pool->stats, q);

	if (unlikely(r) || (!io->length && io->op < POOL_SEEK_DATA && io->op != POOL_FLUSH)) {
		request_refuse(pool, req, r);
		return;
	}
	switch (io->op) {
	case POOL_READ:
		read_start(pool, req, q);
		break;
	case POOL_WRITE:
		write_start(pool, req, q);
		break;
	case POOL_FLUSH:
		stats_add(pool->stats, q, STAT_FLUSHES, 1);
		request_flush(pool, req, q);
		break;
	case POOL_PUNCH:
	case POOL_ZERO:
	case POOL_ALLOCATE:
		range_start(pool, req, q);
		break;
	case POOL_SEEK_DATA:
	case POOL_SEEK_HOLE:
		seek_start(pool, req, q);
		break;
	}
}

void pool_io_submit(struct pool *pool, struct io_queue *q, struct pool_io *io)
{
	/* A callback in the worker may submit again: its own queue belongs to another thread. */
	submit(pool, on_worker(pool) ? pool->worker->q : q, io, false, false);
}

/* ------------------------------------------------------------------ waiting forms */

struct waiting_io {
	struct io_queue *q;
	int result;
	atomic_int state; /* 0: under way, 1: done, 2: and no longer looked at by who did it */
};

static void waiting_done(struct pool_io *io, int r)
{
	struct waiting_io *w = request_of(io)->waiting;

	w->result = r;
	atomic_store(&w->state, 1);
	io_queue_wake(w->q);
	atomic_store(&w->state, 2);
}

int pool_io_run(struct pool *pool, struct io_queue *q, struct pool_io *io)
{
	struct waiting_io w = { .q = q };

	tp_lock_may_wait(LC_completion);
	io->done = waiting_done;
	request_of(io)->waiting = &w;
	submit(pool, q, io, true, false);
	while (!atomic_load(&w.state))
		io_queue_run(q, UINT64_MAX);
	while (atomic_load(&w.state) != 2)
		sched_yield();
	return w.result;
}

static bool waiting_is_over(void *w)
{
	return ((struct waiting_io *)w)->state;
}

static void worker_io_done(struct pool_io *io, int r)
{
	struct waiting_io *w = request_of(io)->waiting;

	w->result = r;
	w->state = 2;
}

int pool_worker_io(struct pool *pool, struct pool_io *io)
{
	struct worker *worker = pool->worker;
	struct waiting_io w = { .q = worker->q };

	io->done = worker_io_done;
	request_of(io)->waiting = &w;
	submit(pool, worker->q, io, false, true);
	worker_pump_until(pool, waiting_is_over, &w);
	return w.result;
}
