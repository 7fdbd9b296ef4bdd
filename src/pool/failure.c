/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * failure.c - a metadata operation has failed: the one way from there, and who is told what
 *
 * Whatever fails (a read, a write, a flush, a checksum, space, an inconsistency found), wherever
 * it is found, comes to pool_metadata_failed():
 *
 *   abort             the cache is reset, everything read again from the committed superblock
 *   volumes follow    names, sizes, and who has lost what was acknowledged
 *   NEEDS_CHECK       stored at once; if that fails it is tried again now and then, and at the end
 *   read-only         until the pool is checked and reopened; or, if the committed state could not
 *                     be read again, out of service
 *
 * There is no way back, so it is taken once in a pool's life.  What cannot have anything to do
 * with the metadata (no memory, a client's mistake) does not come here.
 *
 * The data device.  What it cannot read or write is an error of that request, and nothing else: a
 * block is mapped when it has been written.  But a flush that fails says that any write since the
 * last good one may be gone, and says it once.  A transaction that maps such blocks must never be
 * committed, not even by a commit whose own flush succeeds, so it takes the same way, as in
 * dm-thin; so it does when a record of the catalog cannot be written, which is data too.  As the
 * committed metadata is as it should be, NEEDS_CHECK is left out: reopening the pool is enough.
 * Without an open transaction the pool stays as it is.  In any case each volume that was written
 * to since the last good flush has lost writes, mapped before or not.
 *
 * Invariants:
 *   F1  pool->epoch is raised after the abort and before anybody is told of it: who looked up a
 *       mapping before the abort and finds the same epoch after his write was done, was done
 *       before anybody was told.
 *   F2  A volume's mark of loss is set before its marks of change go (thin/), and looked at after
 *       them: no flush slips through between.
 *
 *   F3  A write is noted (volume_note_write()) after it has ended and before it is answered; a
 * flush covers what was noted under smaller numbers than its own.  Who looks for losses takes a
 *       number first: a write that ends meanwhile is noted under that one, and looked at next time.
 *
 * Locks: LC_pool guards who has been told.
 */
#define LOG_MODULE "pool"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pool/request.h"
#include "pool/volume.h"
#include "util/clock.h"
#include "util/log.h"

#define NEEDS_CHECK_RETRY_USEC (5 * USEC_PER_SEC)

/* ------------------------------------------------------------------ the one way */

void pool_describe_remedy(const struct pool *pool, char *text, size_t size)
{
	if (atomic_load(&pool->data_failed) && !atomic_load(&pool->needs_check))
		snprintf(text, size,
			 "see to the data device, then run \"thinpoolctl restart\" on "
			 "the mount or start the daemon again");
	else
		snprintf(text, size,
			 "stop the daemon and run \"thinpoolctl check --clear-needs-check %s\"",
			 pool->directory ? pool->directory : "POOLDIR");
}

static void store_needs_check(struct pool *pool)
{
	struct worker *w = pool->worker;
	int r = thin_metadata_set_needs_check(pool->tmd);

	if (r && w->needs_check_due_usec == UINT64_MAX)
		log_err("NEEDS_CHECK cannot be stored now (%s), it will be tried again",
			strerror(-r));
	else if (!r && w->needs_check_due_usec != UINT64_MAX)
		log_info("NEEDS_CHECK is stored now");
	w->needs_check_due_usec = r ? time_monotonic_usec() + NEEDS_CHECK_RETRY_USEC : UINT64_MAX;
}

bool failure_due(const struct pool *pool)
{
	return pool->worker->needs_check_due_usec != UINT64_MAX;
}

void failure_retry(struct pool *pool, bool now)
{
	uint64_t due = pool->worker->needs_check_due_usec;

	if (due != UINT64_MAX && (now || time_monotonic_usec() >= due))
		store_needs_check(pool);
}

static void note_duration(struct pool *pool, uint64_t began_usec)
{
	uint64_t usec = time_monotonic_usec() - began_usec;

	if (usec > atomic_load(&pool->longest_abort_usec))
		atomic_store(&pool->longest_abort_usec, usec);
}

/* Whoever has written since the last good flush, and was not told of it yet. */
static void lose_unflushed(struct pool *pool)
{
	uint64_t number = flush_begin(pool), since = atomic_load(&pool->flushed); /* F3 */
	struct volume *v;

	TAILQ_FOREACH(v, &pool->volumes->all, entry.all_link) {
		if (!atomic_load(&v->written) || atomic_load(&v->written) < since)
			continue;
		volume_lose_writes(v);
		volumes_queue_event(pool, POOL_EVENT_VOLUME_CONTENT, v->id, v->entry.now.name);
	}
	flush_succeeded(pool, number); /* as far as telling goes */
}

/* @lost: a flush of the data device has failed, @of_data: or it is to blame in another way, alone.
 */
static int fail(struct pool *pool, const char *what, int r, bool lost, bool of_data)
	TP_TAKES(throttle)
{
	char cause[POOL_REASON_MAX - 128], reason[POOL_REASON_MAX];
	uint64_t began = time_monotonic_usec();
	struct worker *w = pool->worker;
	int r2;

	tp_lock_assert_answers();
	if (pool->mode >= POOL_MODE_READ_ONLY)
		return -EIO; /* what follows from the first failure, or cannot be helped */
	stats_add(pool->stats, w, STAT_ABORTS, 1);
	thin_metadata_describe_failure(pool->tmd, r, cause, sizeof(cause));
	snprintf(reason, sizeof(reason), "cannot %s: %s", what, cause);

	w->stash_full = false;
	passdown_drop(pool);
	r2 = thin_metadata_abort(pool->tmd);
	atomic_fetch_add(&pool->epoch, 1); /* F1 */
	atomic_store(&pool->data_failed, !r2 && of_data);
	if (!r2 && !of_data)
		store_needs_check(pool);
	if (!r2)
		thin_metadata_set_read_only(pool->tmd);
	pool_set_mode(pool, r2 ? POOL_MODE_FAIL : POOL_MODE_READ_ONLY, reason);
	note_duration(pool, began);
	pool_refresh_info(pool, false);
	if (!r2 && thin_metadata_commit_landed(pool->tmd))
		volumes_after_commit(pool);
	volumes_after_abort(pool);
	if (lost)
		lose_unflushed(pool);
	pool_redo_aborted(pool);
	low_space_fail(pool, -EIO);
	return -EIO;
}

int pool_metadata_failed(struct pool *pool, const char *what, int r)
{
	bool alone, lost = thin_metadata_data_flush_failed(pool->tmd, &alone);
	bool of_catalog = pool->catalog && catalog_data_failed(pool->catalog);

	return fail(pool, what, r, lost, alone && (lost || of_catalog));
}

void pool_data_flush_failed(struct pool *pool, int r)
{
	log_err_limited(
		"\"%s\" cannot be flushed (%s): what was written since it could may be lost, "
		"who flushes is told",
		io_device_name(pool->data), strerror(-r));
	if (pool_is_dirty(pool)) {
		(void)fail(pool, "flush the data device", r, true, true);
		return;
	}
	lose_unflushed(pool);
	pool_redo_aborted(pool);
}

int pool_query_failed(struct pool *pool, const char *what, int r)
{
	if (r == -ENOMEM)
		return -EIO;
	return pool_metadata_failed(pool, what, r);
}

void data_error(struct pool *pool, const struct io_request *io, int r)
{
	stats_add(pool->stats, io, STAT_DATA_ERRORS, 1);
	if (io->op == IO_FLUSH)
		return; /* more has to be said of it */
	log_err_limited("\"%s\": %" PRIu64 " bytes at %" PRIu64 " cannot be %s: %s",
			io_device_name(pool->data), io->length, io->offset,
			io->op == IO_READ ? "read" : "written", strerror(-r));
}

/* ------------------------------------------------------------------ who is told */

uint32_t volume_handle(struct volume *v)
{
	uint32_t handle;

	do
		handle = atomic_fetch_add(&v->pool->next_handle, 1);
	while (handle == POOL_NO_HANDLE);
	return handle;
}

static TP_REQUIRES(lc_pool) struct told *find_told(struct losses *l, uint32_t handle)
{
	for (unsigned i = 0; i < l->nr_told; i++)
		if (l->told[i].handle == handle)
			return &l->told[i];
	return NULL;
}

void volume_forget_handle(struct volume *v, uint32_t handle)
{
	struct losses *l = &v->losses;
	struct told *told;

	if (likely(!atomic_load(&v->lost_writes)))
		return;
	lock_pool(&v->pool->lock);
	told = find_told(l, handle);
	if (told)
		*told = l->told[--l->nr_told];
	unlock_pool(&v->pool->lock);
}

void volume_lose_writes(struct volume *v)
{
	struct losses *l = &v->losses;
	unsigned nr_disks = 0;

	lock_pool(&v->pool->lock);
	/* A disk that was told before changes nothing meanwhile either. */
	for (unsigned i = 0; i < l->nr_told; i++)
		if (l->told[i].of_disk)
			l->told[nr_disks++] = l->told[i];
	l->nr_told = nr_disks;
	l->anybody_told = false;
	unlock_pool(&v->pool->lock);
	atomic_store(&v->lost_writes, true);
}

/* Was it opened after somebody had been told?  Numbers of another life of the daemon were not. */
static TP_REQUIRES(lc_pool) bool came_later(const struct losses *l, uint32_t handle, uint32_t next)
{
	return l->anybody_told && handle - l->first_later < next - l->first_later;
}

static TP_REQUIRES(lc_pool) bool tell(struct losses *l, uint32_t handle, bool of_disk,
				      uint32_t next)
{
	struct told *told = find_told(l, handle);

	if (came_later(l, handle, next))
		return false;
	if (!l->anybody_told) {
		l->anybody_told = true;
		l->first_later = next;
	}
	if (told) {
		told->of_disk |= of_disk;
		return told->of_disk;
	}
	if (l->nr_told == l->capacity) {
		unsigned capacity = l->capacity ? 2 * l->capacity : 8;
		struct told *more = realloc(l->told, capacity * sizeof(*more));

		if (!more) {
			l->nobody_changes |= of_disk;
			return true; /* and once more next time */
		}
		l->told = more;
		l->capacity = capacity;
	}
	l->told[l->nr_told++] = (struct told){ .handle = handle, .of_disk = of_disk };
	return true;
}

int volume_take_loss(const struct pool_io *io)
{
	struct volume *v = io->volume;
	struct pool *pool = v->pool;
	bool told;

	if (likely(!atomic_load(&v->lost_writes)))
		return 0;
	lock_pool(&pool->lock);
	told = tell(&v->losses, io->handle, io->of_disk, atomic_load(&pool->next_handle));
	unlock_pool(&pool->lock);
	return told ? -EIO : 0;
}

int volume_check_disk(const struct pool_io *io)
{
	struct volume *v = io->volume;
	const struct told *told;
	bool may;

	if (likely(!atomic_load(&v->lost_writes)))
		return 0;
	lock_pool(&v->pool->lock);
	told = find_told(&v->losses, io->handle);
	may = !v->losses.nobody_changes && !(told && told->of_disk);
	unlock_pool(&v->pool->lock);
	return may ? 0 : -EIO;
}
