/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pool-mode.c - what a pool can still do: modes, lack of space
 *
 * Worker only, but for the predicates.
 *
 *                     no data block, nothing to wait for
 *             WRITE ------------------------------------> OUT_OF_DATA_SPACE
 *               |   <------------------------------------
 *               |       space was freed, data extended
 *               |   only the reserve of metadata is left
 *               |-----------------------------------------> OUT_OF_METADATA_SPACE
 *               |   <------------------------------------
 *               |  deleting, discarding, metadata extended
 *               |   a metadata operation failed, abort done
 *               +-----------------------------------------> READ_ONLY     (until reopened)
 *                   abort failed too
 *               ------------------------------------------> FAIL          (until reopened)
 *
 *                          mapped, own   hole, shared   punch    commands
 *   WRITE                  written       written        yes      all
 *   OUT_OF_DATA_SPACE      written       ENOSPC, waits  yes      all that find a block
 *   OUT_OF_METADATA_SPACE  written       ENOSPC         yes      deleting ones
 *   READ_ONLY              written       EIO, EROFS     no       none
 *   FAIL                   EIO           EIO            no       none
 */
#define LOG_MODULE "pool"
#include "pool/request.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "util/clock.h"
#include "util/log.h"

/* ------------------------------------------------------------------ modes */

const char *pool_mode_name(enum pool_mode mode)
{
	switch (mode) {
	case POOL_MODE_WRITE:
		return "rw";
	case POOL_MODE_OUT_OF_DATA_SPACE:
		return "out_of_data_space";
	case POOL_MODE_OUT_OF_METADATA_SPACE:
	case POOL_MODE_READ_ONLY:
		return "ro";
	case POOL_MODE_FAIL:
		break;
	}
	return "fail";
}

void pool_event(struct pool *pool, enum pool_event_kind kind, thin_id_t id, const char *name)
{
	struct pool_event ev = { .kind = kind, .id = id, .name = name };

	if (pool->options.event)
		pool->options.event(pool->options.event_ctx, &ev);
}

/* The one line that tells it all. */
static void log_failure(struct pool *pool, enum pool_mode mode, const char *reason)
{
	char remedy[POOL_REASON_MAX];

	pool_describe_remedy(pool, remedy, sizeof(remedy));
	log_err("%s; the pool is %s: %s", reason,
		mode == POOL_MODE_FAIL
			? "out of service, as its committed state could not be read again"
			: "back at its committed state and read-only",
		remedy);
}

void pool_set_mode(struct pool *pool, enum pool_mode mode, const char *reason)
{
	enum pool_mode old = pool->mode;

	if (old == mode || old == POOL_MODE_FAIL || (old == POOL_MODE_READ_ONLY && mode < old))
		return;
	lock_pool(&pool->lock);
	pool->mode = mode;
	snprintf(pool->reason, sizeof(pool->reason), "%s", reason);
	unlock_pool(&pool->lock);
	/* At the edge of its space a pool may come and go as often as clients write and discard. */
	if (mode == POOL_MODE_WRITE)
		log_line_limited(&pool->mode_log[mode], LOG_LEVEL_INFO, LOG_MODULE,
				 "there is space again, the pool is writable");
	else if (mode >= POOL_MODE_READ_ONLY)
		log_failure(pool, mode, reason);
	else
		log_line_limited(&pool->mode_log[mode], LOG_LEVEL_WARN, LOG_MODULE, "%s", reason);
	pool_event(pool, POOL_EVENT_MODE, 0, NULL);
	if (mode == POOL_MODE_OUT_OF_DATA_SPACE)
		pool_event(pool, POOL_EVENT_DATA_FULL, 0, NULL);
	else if (mode == POOL_MODE_OUT_OF_METADATA_SPACE)
		pool_event(pool, POOL_EVENT_METADATA_FULL, 0, NULL);
}

int pool_check_writable(struct pool *pool)
{
	if (likely(atomic_load_explicit(&pool->mode, memory_order_relaxed) < POOL_MODE_READ_ONLY))
		return 0;
	return pool->opened_read_only ? -EROFS : -EIO;
}

int pool_check_space(struct pool *pool)
{
	if (unlikely(atomic_load_explicit(&pool->mode, memory_order_relaxed) ==
		     POOL_MODE_OUT_OF_METADATA_SPACE))
		return -ENOSPC;
	return pool_check_writable(pool);
}

/* ------------------------------------------------------------------ numbers */

/* When blocks are short, who reads an old state (POOL_PIN) has to give way. */
static int get_info(struct pool *pool, struct thin_metadata_info *ret_info) TP_TAKES(meta_root)
{
	int r = thin_metadata_get_info(pool->tmd, ret_info);

	if (r || ret_info->failed || ret_info->nr_metadata_free)
		return r;
	if (!thin_metadata_drop_pins(pool->tmd))
		return 0;
	log_warn("metadata space is short, who was reading an old state of it has to begin anew");
	return thin_metadata_get_info(pool->tmd, ret_info);
}

bool pool_metadata_is_low(struct pool *pool)
{
	struct thin_metadata_info info;

	return !get_info(pool, &info) && !info.failed && !info.nr_metadata_free;
}

/* The committed state tells whether only the reserve of metadata is left. */
static void adjust_mode(struct pool *pool, const struct thin_metadata_info *info, bool committed)
	TP_TAKES(pool)
{
	enum pool_mode mode = pool->mode;

	if (info->failed || mode >= POOL_MODE_READ_ONLY)
		return;
	if (committed && !info->nr_metadata_free) {
		pool_set_mode(pool, POOL_MODE_OUT_OF_METADATA_SPACE,
			      "no metadata space is left but the reserve: new blocks are refused "
			      "until something is deleted or discarded, or metadata is extended");
	} else if ((committed && mode == POOL_MODE_OUT_OF_METADATA_SPACE) ||
		   (mode == POOL_MODE_OUT_OF_DATA_SPACE && info->nr_data_free)) {
		low_space_restart(pool);
		pool_set_mode(pool, POOL_MODE_WRITE, "");
		low_space_retry(pool);
	}
}

void pool_refresh_info(struct pool *pool, bool committed)
{
	const struct segment *seg;
	struct thin_metadata_info info;
	unsigned waiting = 0;

	if (get_info(pool, &info))
		return;
	STAILQ_FOREACH(seg, &pool->worker->no_space, link)
	waiting++;
	lock_pool(&pool->lock);
	pool->info = info;
	pool->waiting_space = waiting;
	unlock_pool(&pool->lock);
	atomic_store(&pool->needs_check, info.needs_check || info.failed || failure_due(pool));
	adjust_mode(pool, &info, committed);
	low_water_check(pool, &info);
}

/* ------------------------------------------------------------------ lack of data space */

void low_space_park(struct pool *pool, struct segment *seg)
{
	segment_leave(pool, seg); /* who waits for space stands in nobody's way */
	seg->stage = STAGE_GATE;
	STAILQ_INSERT_TAIL(&pool->worker->no_space, seg, link);
}

/* They have left gate and cell already. */
void low_space_fail(struct pool *pool, int r)
{
	struct segment_list list = STAILQ_HEAD_INITIALIZER(list);
	struct segment *seg;

	STAILQ_CONCAT(&list, &pool->worker->no_space);
	while ((seg = STAILQ_FIRST(&list))) {
		STAILQ_REMOVE_HEAD(&list, link);
		segment_abandon(pool, seg, r);
	}
}

void low_space_retry(struct pool *pool)
{
	struct worker *w = pool->worker;
	struct segment *seg;

	while ((seg = STAILQ_FIRST(&w->no_space))) {
		STAILQ_REMOVE_HEAD(&w->no_space, link);
		seg->wants_space = false;
		worker_push(pool, &seg->work);
	}
}

uint64_t low_space_deadline(const struct pool *pool)
{
	if (STAILQ_EMPTY(&pool->worker->no_space))
		return UINT64_MAX;
	return MIN(pool->worker->no_space_deadline_usec, autoextend_deadline(pool));
}

/* Waiting begins anew, by what is configured now. */
void low_space_restart(struct pool *pool)
{
	pool->worker->no_space_deadline_usec = UINT64_MAX;
	pool->worker->no_space_expired = false;
}

void pool_stop_waiting(struct pool *pool)
{
	atomic_store(&pool->never_wait, true);
	pool_wake_worker(pool);
}

/* Nothing is left that could give a block back: wait or fail, as configured. */
static void out_of_data_space(struct pool *pool)
{
	struct worker *w = pool->worker;
	uint64_t now = time_monotonic_usec();

	if (pool->mode == POOL_MODE_WRITE)
		pool_set_mode(pool, POOL_MODE_OUT_OF_DATA_SPACE,
			      "no data space is left: new blocks are refused until something is "
			      "deleted or discarded, or data is extended");
	if (pool->options.queue_if_no_space && !w->no_space_expired &&
	    !atomic_load(&pool->never_wait)) {
		if (!pool->options.no_space_timeout_usec)
			return;
		if (w->no_space_deadline_usec == UINT64_MAX)
			w->no_space_deadline_usec = now + pool->options.no_space_timeout_usec;
		if (now < w->no_space_deadline_usec)
			return;
		w->no_space_expired = true;
		log_warn("no data space for %llu s: writers get an error now",
			 (unsigned long long)(pool->options.no_space_timeout_usec / USEC_PER_SEC));
	}
	low_space_fail(pool, -ENOSPC);
}

void low_space_run(struct pool *pool)
{
	int r;

	if (STAILQ_EMPTY(&pool->worker->no_space))
		return;
	r = pool_check_space(pool);
	if (r) {
		low_space_fail(pool, r);
	} else if (pool_is_dirty(pool)) {
		/*
		 * Blocks freed in this transaction can be had after the commit (L2).  A removal
		 * that is under way changes something in each pass, so it is waited for too.
		 */
		if (!pool_commit_now(pool))
			low_space_retry(pool);
	} else if (!passdown_busy(pool)) {
		out_of_data_space(pool);
	}
}
