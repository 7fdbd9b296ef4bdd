/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bufio-helper.c - the helper thread of a cache, and the shrinker callbacks
 *
 * The callbacks run under the registry's lock, maybe in a thread that everything waits
 * for; so they only record how much is wanted and wake the helper, which frees it with no
 * lock but the cache's own.  It also writes back and evicts while the cache is above its
 * limit, refills the reserve, lets unused buffers age, and calls waiters for those who
 * cannot.
 *
 * A pass (helper_busy) takes the cache's locks and does metadata I/O, nothing else, so a
 * reset can wait for it.  Waiters are called outside of passes: what they take is up to
 * them, and nobody but bufio_client_destroy() waits for them.
 */
#include <errno.h>
#include <signal.h>

#include "bufio/bufio-internal.h"
#include "util/clock.h"

#define SWEEP_USEC (60 * USEC_PER_SEC) /* five sweeps unused, about five minutes: evicted */
#define LIMIT_MARGIN 16u               /* buffers freed beyond the limit */

/* ---- passes ---- */

static void shrink(struct bufio_client *c, uint64_t nr) TP_TAKES(bufio)
{
	uint64_t done = evict_count(c, nr);

	if (done < nr && atomic_load(&c->nr_dirty)) {
		(void)write_pass_run(c, WRITE_BACKGROUND, nr - done); /* errors stick */
		done += evict_count(c, nr - done);
	}
	atomic_fetch_add(&c->shrunk, done);
	memory_trim(c);
}

/*
 * Asked for by an allocation that found nothing to evict, and is about to exceed the limit:
 * make room for it and for a few more, so that not every miss asks again.
 */
static void obey_limit(struct bufio_client *c) TP_TAKES(bufio)
{
	uint64_t cached = atomic_load(&c->nr_cached), limit = atomic_load(&c->limit);
	uint64_t target = limit - MIN(LIMIT_MARGIN, limit / 4), excess, done;

	if (cached < limit)
		return;
	excess = cached - target;
	done = evict_count(c, excess);
	if (done == excess)
		return;
	(void)write_pass_run(c, WRITE_BACKGROUND, excess - done); /* errors stick */
	(void)evict_count(c, excess - done);
}

static void helper_pass(struct bufio_client *c, const struct helper_work *work) TP_TAKES(bufio)
{
	if (work->refill)
		reserve_refill(c);
	if (work->limit)
		obey_limit(c);
	if (work->write_back)
		(void)write_pass_run(c, WRITE_BACKGROUND, UINT64_MAX);
	if (work->shrink)
		shrink(c, work->shrink);
	if (work->age)
		evict_aged(c);
}

/* ---- the thread ---- */

static bool is_wanted(const struct helper_work *w)
{
	return w->shrink || w->write_back || w->limit || w->refill || w->age;
}

/* Returns with the lock held, as it was called. */
static void call_waiters(struct bufio_client *c) TP_REQUIRES(lc_bufio_lru)
{
	struct waiter_list calls = STAILQ_HEAD_INITIALIZER(calls);
	struct bufio_waiter *w;

	STAILQ_CONCAT(&calls, &c->calls);
	unlock_bufio_lru(&c->lock);
	while ((w = STAILQ_FIRST(&calls))) {
		STAILQ_REMOVE_HEAD(&calls, link);
		w->done(w, w->result);
	}
	lock_bufio_lru(&c->lock);
}

static void work_once(struct bufio_client *c) TP_REQUIRES(lc_bufio_lru)
{
	struct helper_work work = c->wanted;
	uint64_t scans = c->scans_asked;

	c->wanted = (struct helper_work){ .shrink = 0 };
	c->helper_busy = true;
	unlock_bufio_lru(&c->lock);
	helper_pass(c, &work);
	lock_bufio_lru(&c->lock);
	c->helper_busy = false;
	c->scans_done = scans;
	pthread_cond_broadcast(&c->changed);
}

static void *helper_main(void *arg)
{
	struct bufio_client *c = arg;
	uint64_t sweep = time_monotonic_usec() + SWEEP_USEC;

	/* Requests wait for the reads whose waiters it calls. */
	tp_lock_hold_begin(c, LC_completion);
	lock_bufio_lru(&c->lock);
	while (!c->helper_stop || !STAILQ_EMPTY(&c->calls)) {
		if (!STAILQ_EMPTY(&c->calls)) {
			call_waiters(c);
		} else if (is_wanted(&c->wanted) && !atomic_load(&c->resetting)) {
			work_once(c);
		} else if (!tp_lock_wait_until(&c->lock, &c->work, sweep)) {
			sweep = time_monotonic_usec() + SWEEP_USEC;
			c->wanted.age = true;
		}
	}
	unlock_bufio_lru(&c->lock);
	tp_lock_hold_end(c, LC_completion);
	return NULL;
}

int helper_start(struct bufio_client *c)
{
	sigset_t all, old;
	int r;

	sigfillset(&all); /* signals are for the control thread */
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&c->helper, NULL, helper_main, c);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r)
		return -r;
	c->helper_runs = true;
	(void)pthread_setname_np(c->helper, "bufio"); /* for people only */
	return 0;
}

void helper_stop(struct bufio_client *c)
{
	if (!c->helper_runs)
		return;
	lock_bufio_lru(&c->lock);
	c->helper_stop = true;
	pthread_cond_signal(&c->work);
	unlock_bufio_lru(&c->lock);
	tp_lock_may_wait(LC_shrinkers); /* what it calls takes what it likes */
	pthread_join(c->helper, NULL);
	c->helper_runs = false;
}

/* ---- asking ---- */

void helper_ask(struct bufio_client *c, const struct helper_work *work)
{
	lock_bufio_lru(&c->lock);
	if (work->shrink > UINT64_MAX - c->wanted.shrink)
		c->wanted.shrink = UINT64_MAX;
	else
		c->wanted.shrink += work->shrink;
	c->scans_asked += work->shrink != 0;
	c->wanted.write_back |= work->write_back;
	c->wanted.limit |= work->limit;
	c->wanted.refill |= work->refill;
	c->wanted.age |= work->age;
	pthread_cond_signal(&c->work);
	unlock_bufio_lru(&c->lock);
}

void helper_call(struct bufio_client *c, struct waiter_list *waiters, int r)
{
	struct bufio_waiter *w;

	STAILQ_FOREACH(w, waiters, link)
	w->result = r;
	lock_bufio_lru(&c->lock);
	STAILQ_CONCAT(&c->calls, waiters);
	pthread_cond_signal(&c->work);
	unlock_bufio_lru(&c->lock);
}

static uint64_t shrink_count(void *ctx)
{
	struct bufio_client *c = ctx;
	uint64_t dirty = atomic_load(&c->nr_dirty), cached = atomic_load(&c->nr_cached);

	return cached > dirty ? cached - dirty : 0;
}

/* Answers what it has promised: who asks must not wait, nor take it from others as well. */
static uint64_t shrink_scan(void *ctx, uint64_t nr)
{
	helper_ask(ctx, &(struct helper_work){ .shrink = nr });
	return nr;
}

static uint64_t shrink_freed(void *ctx)
{
	return atomic_load(&((struct bufio_client *)ctx)->shrunk);
}

/* What a reset overtakes is done, too: the cache is empty then. */
static void shrink_settle(void *ctx)
{
	struct bufio_client *c = ctx;
	uint64_t scans;

	tp_lock_may_wait(LC_bufio);
	lock_bufio_lru(&c->lock);
	for (scans = c->scans_asked; c->scans_done < scans;)
		tp_lock_wait(&c->lock, &c->changed);
	unlock_bufio_lru(&c->lock);
}

const struct shrinker_ops bufio_shrinker_ops = { .count = shrink_count,
						 .scan = shrink_scan,
						 .freed = shrink_freed,
						 .settle = shrink_settle,
						 .object_bytes = METADATA_BLOCK_SIZE };

/* ---- for tests ---- */

void bufio_test_settle(struct bufio_client *c)
{
	lock_bufio_lru(&c->lock);
	while (is_wanted(&c->wanted) || c->helper_busy)
		tp_lock_wait(&c->lock, &c->changed);
	unlock_bufio_lru(&c->lock);
}
