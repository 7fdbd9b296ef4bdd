/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * volume-remove.c - taking volumes away, a slice at a time
 *
 * A volume can have millions of mappings, and the worker has other things to do.  So deleting
 * one means: its record says UNLINKED (durable before the answer), and from then on mappings
 * are removed in slices between other work, each slice in whatever transaction is open.  The
 * last slice deletes the device and erases the record in one transaction.  A crash in between
 * leaves an UNLINKED record, and the next opening goes on.
 *
 *	UNLINKED --(nobody uses it)--> REMOVING --(no mappings left)--> DELETED --(commit)--> freed
 *
 * Small volumes, and all of a pool that has no catalog to say UNLINKED in, are deleted in one
 * step by command.c, which calls volume_delete_device().
 *
 * An error of metadata stops it all for good: the pool is read-only then.
 */
#define LOG_MODULE "pool"
#include "pool/volume.h"

#include <errno.h>

#include "pool/pool-internal.h"
#include "util/log.h"

/* Mapped blocks a slice removes: some milliseconds of work. */
#define SLICE_BLOCKS 4096u

int volumes_make_room(struct pool *pool, const thin_id_t *ids, unsigned nr)
{
	int r;

	if (!pool->catalog)
		return 0;
	r = catalog_check_room(pool->catalog, ids, nr);
	if (r == -EAGAIN) {
		r = pool_commit_now(pool);
		if (r)
			return -EIO;
		r = catalog_check_room(pool->catalog, ids, nr);
	}
	if (r == -EAGAIN)
		r = -ENOSPC; /* freed blocks that are still being discarded */
	return r && r != -ENOSPC ? pool_metadata_failed(pool, "look into the catalog", r) : r;
}

int volume_delete_device(struct pool *pool, struct volume *v)
{
	int r;

	v->td = thin_device_close(v->td);
	r = thin_metadata_delete_thin(pool->tmd, v->id);
	if (!r && pool->catalog)
		r = catalog_erase(pool->catalog, v->id);
	if (r)
		return pool_metadata_failed(pool, "delete a volume", r);
	volume_touch(v);
	return 0;
}

/* ---- finding work ---- */

void pool_keep_unlinked(struct pool *pool, bool keep)
{
	atomic_store(&pool->keep_unlinked, keep);
	if (keep)
		return;
	atomic_store(&pool->volumes->look, true);
	pool_wake_worker(pool);
}

/* Volumes that nobody uses any more: unlinked ones are to be removed, gone ones are freed. */
static void collect_idle(struct pool *pool, bool may_remove)
{
	struct volume_table *t = pool->volumes;
	struct volume *v, *next;

	if (!atomic_exchange(&t->look, false))
		return;
	for (v = TAILQ_FIRST(&t->states[VOLUME_GONE]); v; v = next) {
		bool idle;

		next = TAILQ_NEXT(v, entry.state_link);
		lock_catalog(&pool->catalog_lock);
		idle = volume_is_idle(v);
		if (idle)
			volume_erase(pool, v);
		unlock_catalog(&pool->catalog_lock);
		if (idle)
			volume_free(v);
	}
	for (v = TAILQ_FIRST(&t->states[VOLUME_UNLINKED]); v && may_remove; v = next) {
		next = TAILQ_NEXT(v, entry.state_link);
		lock_catalog(&pool->catalog_lock);
		/* A touched one has not been committed as unlinked: after the commit. */
		if (v->entry.touched)
			atomic_store(&t->look, true);
		else if (volume_is_idle(v))
			volume_set_state(pool, v, VOLUME_REMOVING);
		unlock_catalog(&pool->catalog_lock);
	}
}

/* ---- one slice ---- */

/* All that is mapped is gone: the device too. */
static int finish_removal(struct pool *pool, struct volume *v)
{
	int r;

	r = volumes_make_room(pool, &v->id, 1);
	if (r)
		return r;
	lock_catalog(&pool->catalog_lock);
	volume_set_state(pool, v, VOLUME_DELETED);
	unlock_catalog(&pool->catalog_lock);
	return volume_delete_device(pool, v);
}

static int remove_slice(struct pool *pool, struct volume *v)
{
	vblock_t last;
	int r;

	if (!pool->catalog)
		return finish_removal(pool, v);
	r = thin_device_highest_mapped(v->td, &last);
	if (r == -ENODATA || (!r && last < v->entry.remove_next))
		return finish_removal(pool, v);
	if (r)
		return pool_metadata_failed(pool, "remove a volume", r);
	return pool_unmap_slice(pool, v, v->entry.remove_next, last + 1, SLICE_BLOCKS,
				&v->entry.remove_next);
}

static void erase_orphan(struct pool *pool)
{
	struct volume_table *t = pool->volumes;
	thin_id_t id = t->orphans[t->nr_orphans - 1];
	int r;

	t->nr_orphans--;
	if (volume_id_is_used(t, id))
		return; /* a new volume has the record now */
	r = volumes_make_room(pool, &id, 1);
	if (r)
		return;
	r = catalog_erase(pool->catalog, id);
	if (r)
		(void)pool_metadata_failed(pool, "erase a record", r);
}

bool volumes_remove_slice(struct pool *pool)
{
	struct volume_table *t = pool->volumes;
	bool writable = pool_check_writable(pool) == 0;
	struct volume *v;

	collect_idle(pool, writable && !atomic_load(&pool->keep_unlinked));
	if (!writable)
		return false;
	if (t->nr_orphans) {
		erase_orphan(pool);
		return true;
	}
	v = TAILQ_FIRST(&t->states[VOLUME_REMOVING]);
	if (!v || remove_slice(pool, v))
		return false;
	return !TAILQ_EMPTY(&t->states[VOLUME_REMOVING]);
}
