/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * worker.c - the thread that changes metadata: its passes, its sleep, commits and flushes
 *
 * One pass: pump (collect finished I/O, take deferred work, map what was written, run
 * segments in order of volume and offset, pass discards down); deal with those that found no
 * space; commands; flushes and the periodic commit; answers.
 *
 * Invariants:
 *   W1  Only this thread calls mutators of thin-metadata.h while the pool is in service.
 *   W2  Clients are answered at the end of a step of a pass, with no lock held: answering may
 *       submit again, and a throttle that is held makes the answers wait for its release.
 *   W3  Before it sleeps it says so (sleeping) and looks once more at everything it can be
 *       woken for; who gives it work looks at "sleeping" afterwards.  So no wake is lost, and
 *       none is sent to a worker that is awake.
 *   W4  A callback on this thread's queue only notes what has happened (worker_push()): the
 *       buffer cache runs the queue of the thread while it waits for a read, with metadata
 *       locks held.
 *   W5  From its first pass to its last it holds LC_completion: whoever has given it a request
 *       waits for it, also while the request is not taken yet.  So it never waits for anything
 *       that such a waiter may hold, above all not for the registry of shrinkers.
 *
 * Locks: LC_throttle exclusively in the rest of a pass that has taken longer than a second.
 */
#define LOG_MODULE "pool"
#include "pool/request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util/clock.h"
#include "util/log.h"

/* A pass that takes longer makes new work wait: what is queued has a limit, too. */
#define PASS_MAX_USEC USEC_PER_SEC
#define NR_SPARE_SEGMENTS 1024
/* Punches of what the last commits freed may delay closing so long. */
#define CLOSE_PASSDOWN_USEC (5 * USEC_PER_SEC)

/* ------------------------------------------------------------------ giving it work */

static void wake(struct worker *w)
{
	if (atomic_exchange(&w->sleeping, false))
		io_queue_wake(w->q);
}

void pool_wake_worker(struct pool *pool)
{
	atomic_store(&pool->worker->poked, true);
	wake(pool->worker);
}

static void stack_push(_Atomic(struct work *) *stack, struct work *work)
{
	struct work *head = atomic_load_explicit(stack, memory_order_relaxed);

	do
		work->next = head;
	while (!atomic_compare_exchange_weak(stack, &head, work));
}

/* Everything, first pushed first. */
static struct work *stack_take(_Atomic(struct work *) *stack)
{
	struct work *work = atomic_exchange(stack, NULL), *first = NULL;

	while (work) {
		struct work *next = work->next;

		work->next = first;
		first = work;
		work = next;
	}
	return first;
}

void worker_push(struct pool *pool, struct work *work)
{
	atomic_fetch_add_explicit(&pool->worker->nr_deferred, 1, memory_order_relaxed);
	stack_push(&pool->worker->deferred, work);
	wake(pool->worker);
}

void worker_defer(struct pool *pool, struct work *work, bool may_sleep)
{
	struct worker *w = pool->worker;

	if (may_sleep && !on_worker(pool))
		tp_lock_may_wait(LC_throttle);
	if (on_worker(pool)) {
		atomic_fetch_add_explicit(&w->nr_deferred, 1, memory_order_relaxed);
		stack_push(&w->deferred, work);
	} else if (trylock_throttle_shared(&pool->throttle)) {
		worker_push(pool, work);
		unlock_throttle_shared(&pool->throttle);
	} else if (may_sleep) {
		stats_add(pool->stats, w, STAT_THROTTLED, 1);
		lock_throttle_shared(&pool->throttle);
		worker_push(pool, work);
		unlock_throttle_shared(&pool->throttle);
	} else {
		/* The worker looks here when it has released the throttle. */
		stats_add(pool->stats, w, STAT_THROTTLED, 1);
		atomic_fetch_add_explicit(&w->nr_deferred, 1, memory_order_relaxed);
		stack_push(&w->parked, work);
		wake(w);
	}
}

/* ------------------------------------------------------------------ throttle */

TP_NO_TSA void worker_check_pass(struct pool *pool)
{
	struct worker *w = pool->worker;

	if (w->throttled || time_monotonic_usec() - w->pass_began_usec < PASS_MAX_USEC)
		return;
	lock_throttle(&pool->throttle);
	w->throttled = true;
	w->throttle_began_usec = time_monotonic_usec();
	stats_add(pool->stats, w, STAT_THROTTLES, 1);
}

TP_NO_TSA static void throttle_end(struct pool *pool)
{
	struct worker *w = pool->worker;
	uint64_t now = time_monotonic_usec();

	if (w->throttled) {
		unlock_throttle(&pool->throttle);
		stats_add(pool->stats, w, STAT_THROTTLE_USEC, now - w->throttle_began_usec);
		if (now - w->throttle_began_usec > w->longest_throttle_usec)
			w->longest_throttle_usec = now - w->throttle_began_usec;
	}
	w->throttled = false;
	w->pass_began_usec = now;
}

/* ------------------------------------------------------------------ the pump */

static bool goes_before(struct segment *a, struct segment *b)
{
	thin_id_t id_a = segment_volume(a)->id, id_b = segment_volume(b)->id;

	return id_a != id_b ? id_a < id_b : a->offset <= b->offset;
}

/* Merge sort of a chain of @n segments; the rest of the chain is left in *@chain. */
static struct segment *sort(struct segment **chain, size_t n)
{
	struct segment *a, *b, *first, **tail = &first;

	if (n == 1) {
		a = *chain;
		*chain = STAILQ_NEXT(a, link);
		STAILQ_NEXT(a, link) = NULL;
		return a;
	}
	a = sort(chain, n / 2);
	b = sort(chain, n - n / 2);
	while (a && b) {
		struct segment **lesser = goes_before(a, b) ? &a : &b;

		*tail = *lesser;
		tail = &STAILQ_NEXT(*lesser, link);
		*lesser = *tail;
	}
	*tail = a ? a : b;
	return first;
}

/* In order of their blocks, so that writers get data blocks in that order. */
static void run_todo(struct pool *pool)
{
	struct segment *chain = STAILQ_FIRST(&pool->worker->todo), *seg;
	size_t n = 0;

	if (!chain)
		return;
	STAILQ_FOREACH(seg, &pool->worker->todo, link)
	n++;
	STAILQ_INIT(&pool->worker->todo);
	for (chain = sort(&chain, n); chain;) {
		seg = chain;
		chain = STAILQ_NEXT(seg, link);
		segment_resume(pool, seg);
		worker_check_pass(pool);
	}
}

static bool has_free_segment(struct pool *pool)
{
	bool has;

	lock_pool(&pool->lock);
	has = !STAILQ_EMPTY(&pool->worker->free_segments);
	unlock_pool(&pool->lock);
	return has;
}

/* Whoever frees a segment looks at nr_starved afterwards, and wakes the worker. */
static void run_starved(struct pool *pool)
{
	struct worker *w = pool->worker;
	struct request *req;

	while ((req = STAILQ_FIRST(&w->starved)) && has_free_segment(pool)) {
		STAILQ_REMOVE_HEAD(&w->starved, link);
		atomic_fetch_sub(&w->nr_starved, 1);
		request_carve(pool, req, w->q);
	}
}

void worker_pump(struct pool *pool)
{
	struct worker *w = pool->worker;
	struct work *work, *next;

	io_queue_run(w->q, 0);
	for (work = stack_take(&w->deferred); work; work = next) {
		next = work->next;
		atomic_fetch_sub_explicit(&w->nr_deferred, 1, memory_order_relaxed);
		work->run(pool, work);
		worker_check_pass(pool);
	}
	jobs_finish_prepared(pool);
	(void)jobs_resume_waiters(pool); /* none is as good as any: there is more to run */
	do
		run_todo(pool);
	while (jobs_resume_waiters(pool));
	run_starved(pool);
	passdown_run(pool);
	io_queue_kick(w->q);
}

static void unpark(struct pool *pool)
{
	struct work *work = stack_take(&pool->worker->parked), *next;

	for (; work; work = next) {
		next = work->next;
		stack_push(&pool->worker->deferred, work);
	}
}

static void deliver_requests(struct pool *pool)
{
	struct worker *w = pool->worker;
	struct request *req;

	while ((req = STAILQ_FIRST(&w->finished))) {
		STAILQ_REMOVE_HEAD(&w->finished, link);
		request_answer(req);
	}
}

static bool has_work(const struct worker *w)
{
	return atomic_load(&w->deferred) || atomic_load(&w->poked) || atomic_load(&w->parked) ||
	       !STAILQ_EMPTY(&w->prepared) || w->again;
}

static void worker_sleep(struct worker *w, uint64_t timeout_usec) TP_TAKES(bufio)
{
	atomic_store(&w->sleeping, true);
	if (has_work(w))
		timeout_usec = 0;
	io_queue_run(w->q, timeout_usec);
	atomic_store(&w->sleeping, false);
}

void worker_pump_until(struct pool *pool, bool (*is_over)(void *ctx), void *ctx)
{
	struct worker *w = pool->worker;
	bool again = w->again;

	/* Who still comes through the throttle may be what we wait for. */
	throttle_end(pool);
	for (;;) {
		unpark(pool);
		w->again = false;
		again |= atomic_exchange(&w->poked, false);
		worker_pump(pool);
		throttle_end(pool);
		deliver_requests(pool); /* of other volumes: this may take a while */
		if (is_over(ctx))
			break;
		worker_sleep(w, UINT64_MAX);
	}
	w->again = again;
}

static bool volume_is_quiet(void *v)
{
	return !atomic_load(&((struct volume *)v)->in_flight);
}

int pool_quiesce_volume(struct pool *pool, struct volume *v)
{
	uint64_t epoch = pool->epoch;

	atomic_fetch_add(&v->gate_closed, 1);
	worker_pump_until(pool, volume_is_quiet, v);
	return pool->epoch == epoch ? 0 : -EIO;
}

void pool_resume_volume(struct pool *pool, struct volume *v)
{
	struct segment_list list = STAILQ_HEAD_INITIALIZER(list);
	struct segment *seg;

	lock_pool(&pool->lock);
	TP_INVARIANT(v->gate_closed);
	if (atomic_fetch_sub(&v->gate_closed, 1) == 1)
		STAILQ_CONCAT(&list, &v->gated);
	unlock_pool(&pool->lock);
	while ((seg = STAILQ_FIRST(&list))) {
		STAILQ_REMOVE_HEAD(&list, link);
		worker_push(pool, &seg->work);
	}
}

/* ------------------------------------------------------------------ flushes */

static void flush_done_work(struct pool *pool, struct work *work)
{
	struct request *req = container_of(work, struct request, work);

	if (unlikely(req->result)) {
		pool_data_flush_failed(pool, req->result);
		if (volume_take_loss(request_io(req)))
			request_fail(req, -EIO);
	}
	request_end(pool, req);
}

static void flush_done(struct io_request *io, int r)
{
	struct request *req = container_of(io, struct request, first.io);
	struct pool *pool = request_io(req)->volume->pool;

	if (likely(!r)) {
		flush_succeeded(pool, req->flush_number);
	} else {
		data_error(pool, io, r);
		request_fail(req, r);
	}
	req->flushed = true;
	if (!on_worker(pool) && likely(!r)) {
		request_end(pool, req);
	} else { /* W4 */
		req->work.run = flush_done_work;
		worker_push(pool, &req->work);
	}
}

/* No mapping has changed: the data device's cache is all there is. */
static void request_flush_data(struct pool *pool, struct request *req, struct io_queue *q)
{
	struct io_request *io = &req->first.io;

	io->device = pool->data;
	io->op = IO_FLUSH;
	io->offset = io->length = 0;
	io->iov = NULL;
	io->nr_iov = 0;
	io->done = flush_done;
	req->flush_number = flush_begin(pool);
	io_queue_submit(q, io);
}

static void flush_work(struct pool *pool, struct work *work)
{
	struct request *req = container_of(work, struct request, work);

	STAILQ_INSERT_TAIL(&pool->worker->flushes, req, link);
}

void request_flush(struct pool *pool, struct request *req, struct io_queue *q)
{
	struct volume *v = request_io(req)->volume;

	if (pool->options.read_only) {
		req->flushed = true;
		request_end(pool, req);
	} else if (thin_device_changed(v->td) || atomic_load(&v->size_uncommitted) ||
		   unlikely(thin_device_aborted_changes(v->td) || atomic_load(&v->lost_writes))) {
		/* The marks of loss after those of change: F2 of failure.c. */
		req->work.run = flush_work;
		worker_defer(pool, &req->work, req->may_sleep);
	} else {
		request_flush_data(pool, req, q);
	}
}

/* ------------------------------------------------------------------ answers, commits */

void worker_finish(struct pool *pool, struct request *req)
{
	if (req->past_gate)
		request_answer(req); /* the worker itself is waiting for it */
	else
		STAILQ_INSERT_TAIL(&pool->worker->finished, req, link);
}

static void deliver(struct pool *pool)
{
	if (pool->worker->throttled)
		return;
	deliver_requests(pool);
	pool_deliver_commands(pool);
}

bool pool_is_dirty(struct pool *pool)
{
	return !pool_check_writable(pool) &&
	       (thin_metadata_changed(pool->tmd) || atomic_load(&pool->sizes_dirty));
}

/* @r: of the commit that they waited for.  Without @committed data is still to be flushed. */
static void answer_flushes(struct pool *pool, struct request_list *list, bool committed, int r)
{
	struct request *req;

	while ((req = STAILQ_FIRST(list))) {
		struct pool_io *io = request_io(req);

		STAILQ_REMOVE_HEAD(list, link);
		if (volume_take_loss(io) || r) {
			request_fail(req, -EIO);
		} else if (!committed) {
			request_flush_data(pool, req, pool->worker->q);
			continue;
		}
		req->flushed = true;
		request_end(pool, req);
	}
}

int pool_commit_now(struct pool *pool)
{
	struct worker *w = pool->worker;
	struct request_list waiting = STAILQ_HEAD_INITIALIZER(waiting);
	bool changed = false;
	uint64_t flush;
	int r = pool_check_writable(pool);

	if (r)
		return r;
	/* Acknowledged before this moment, so covered: whoever comes later waits for the next one.
	 */
	STAILQ_CONCAT(&waiting, &w->flushes);
	r = volumes_before_commit(pool);
	if (r) {
		r = pool_metadata_failed(pool, "write the catalog", r);
	} else {
		changed = thin_metadata_changed(pool->tmd);
		flush = flush_begin(pool);
		r = thin_metadata_commit(pool->tmd);
		if (r)
			r = pool_metadata_failed(pool, "commit", r);
		else if (changed)
			flush_succeeded(pool, flush);
	}
	if (!r) {
		stats_add(pool->stats, w, STAT_COMMITS, 1);
		passdown_collect(pool);
		volumes_after_commit(pool);
		autoextend_metadata(pool);
		pool_refresh_info(pool, true);
	}
	w->last_commit_usec = time_monotonic_usec();
	answer_flushes(pool, &waiting, changed, r); /* a commit of nothing flushes nothing */
	worker_check_pass(pool);
	return r;
}

void commit_changes(struct pool *pool)
{
	if (pool_is_dirty(pool) && pool_commit_now(pool))
		return; /* the failure has been dealt with, and nobody here asked */
}

static void run_flushes(struct pool *pool)
{
	struct worker *w = pool->worker;

	if (STAILQ_EMPTY(&w->flushes))
		return;
	if (pool_is_dirty(pool) && !pool_commit_now(pool))
		return;
	/* Committed between the request's look and ours, or read-only by now. */
	answer_flushes(pool, &w->flushes, false, 0);
}

/* ------------------------------------------------------------------ the thread */

static void worker_pass(struct pool *pool) TP_TAKES(throttle)
{
	struct worker *w = pool->worker;

	w->pass_began_usec = time_monotonic_usec();
	atomic_store(&w->poked, false);
	w->again = false;
	pool_take_configuration(pool);
	worker_pump(pool);
	autoextend_run(pool);
	low_space_run(pool);
	deliver(pool);
	if (!atomic_load(&w->stop) && pool_run_commands(pool))
		w->again = true;
	deliver(pool);
	run_flushes(pool);
	if (time_monotonic_usec() - w->last_commit_usec >= pool->options.commit_interval_usec)
		commit_changes(pool);
	passdown_run(pool); /* of what was committed just now */
	release_stash(pool);
	failure_retry(pool, false);
	pool_refresh_info(pool, false);
	throttle_end(pool);
	unpark(pool);
	deliver(pool);
}

static uint64_t next_timeout(struct pool *pool) TP_TAKES(meta_root)
{
	struct worker *w = pool->worker;
	uint64_t now = time_monotonic_usec(), deadline = low_space_deadline(pool), due;

	if (pool_is_dirty(pool)) {
		due = w->last_commit_usec + pool->options.commit_interval_usec;
		deadline = MIN(deadline, due);
	}
	deadline = MIN(deadline, pool->worker->needs_check_due_usec);
	if (deadline == UINT64_MAX)
		return UINT64_MAX;
	return deadline > now ? deadline - now : 0;
}

/* The contract of closing: no request is in flight.  What is left is our own. */
static void drain(struct pool *pool) TP_TAKES(throttle)
{
	struct worker *w = pool->worker;
	uint64_t deadline = time_monotonic_usec() + CLOSE_PASSDOWN_USEC;
	int r;

	if (pool_is_dirty(pool))
		w->result = pool_commit_now(pool);
	while (io_queue_in_flight(w->q) || passdown_busy(pool)) {
		if (time_monotonic_usec() > deadline)
			passdown_drop(pool);
		worker_pump(pool);
		if (io_queue_in_flight(w->q))
			io_queue_run(w->q, CLOSE_PASSDOWN_USEC);
	}
	failure_retry(pool, true);
	/* Perhaps in a pass that was under way: nobody else hears of it. */
	if (!w->result && atomic_load(&pool->epoch) != w->epoch_at_stop)
		w->result = -EIO;
	/* Writes in place need no commit, and nobody may have asked for a flush. */
	r = pool->options.read_only ? 0 : io_device_flush(pool->data);
	if (r)
		pool_data_flush_failed(pool, r);
	if (r && !w->result)
		w->result = r;
	deliver(pool);
}

static int thread_objects_create(struct pool *pool) TP_TAKES(bufio)
{
	struct worker *w = pool->worker;
	/* The one that the buffer cache uses for prefetches of this thread. */
	int r = io_queue_self(&w->q);

	return r ? r : jobs_create(pool);
}

static void *worker_main(void *arg)
{
	struct pool *pool = arg;
	struct worker *w = pool->worker;

	pthread_setname_np(pthread_self(), "pool-worker");
	w->thread = pthread_self();
	w->running = true;
	w->result = thread_objects_create(pool);
	if (w->result)
		atomic_store(&w->stop, true);
	w->last_commit_usec = time_monotonic_usec();
	sem_post(&w->ready);

	tp_lock_hold_begin(w, LC_completion); /* W5 */
	while (!atomic_load(&w->stop)) {
		worker_pass(pool);
		/* The poke that came with it may have been taken for one of this pass. */
		if (!atomic_load(&w->stop))
			worker_sleep(w, next_timeout(pool));
	}
	if (w->q && w->copier) {
		worker_pass(pool);
		drain(pool);
	}
	tp_lock_hold_end(w, LC_completion);
	jobs_destroy(pool);
	return NULL;
}

TP_NO_TSA int worker_create(struct pool *pool)
{
	struct worker *w = calloc(1, sizeof(*w));

	if (!w)
		return -ENOMEM;
	pool->worker = w;
	sem_init(&w->ready, 0, 0);
	STAILQ_INIT(&w->todo);
	STAILQ_INIT(&w->flushes);
	STAILQ_INIT(&w->finished);
	STAILQ_INIT(&w->starved);
	STAILQ_INIT(&w->job_waiters);
	STAILQ_INIT(&w->no_space);
	STAILQ_INIT(&w->free_jobs);
	STAILQ_INIT(&w->prepared);
	STAILQ_INIT(&w->bounce_waiters);
	STAILQ_INIT(&w->free_segments);
	w->no_space_deadline_usec = w->needs_check_due_usec = UINT64_MAX;
	w->segments = calloc(NR_SPARE_SEGMENTS, sizeof(*w->segments));
	if (!w->segments)
		return -ENOMEM;
	for (unsigned i = 0; i < NR_SPARE_SEGMENTS; i++)
		STAILQ_INSERT_TAIL(&w->free_segments, &w->segments[i], link);
	return passdown_create(pool);
}

int worker_start(struct pool *pool)
{
	struct worker *w = pool->worker;
	pthread_t thread;
	int r = -pthread_create(&thread, NULL, worker_main, pool);

	if (r)
		return r;
	tp_lock_may_wait(LC_completion);
	while (sem_wait(&w->ready))
		; /* a signal */
	return w->result;
}

int worker_stop(struct pool *pool)
{
	struct worker *w = pool->worker;

	if (!w || !w->running)
		return 0;
	tp_lock_may_wait(LC_completion);
	w->epoch_at_stop = atomic_load(&pool->epoch);
	atomic_store(&w->stop, true);
	pool_wake_worker(pool);
	pthread_join(w->thread, NULL);
	w->running = false;
	return w->result;
}

void worker_destroy(struct pool *pool)
{
	struct worker *w = pool->worker;

	if (!w)
		return;
	passdown_destroy(pool);
	sem_destroy(&w->ready);
	free(w->segments);
	free(w);
	pool->worker = NULL;
}
