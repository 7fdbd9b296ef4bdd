/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * volume-commit.c - the table of volumes follows the transactions
 *
 * Commands change the table when they change the metadata, before the commit.  Each volume
 * keeps what the committed state says of it, so that an abort can put the table back without
 * reading anything: the device may be the very reason for the abort.
 *
 * Who has learnt a name from the table that an abort takes back is told by an event.
 */
#define LOG_MODULE "pool"
#include "pool/volume.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pool/pool-internal.h"
#include "util/log.h"

/* ---- commit ---- */

static int put_size(struct pool *pool, struct volume *v)
{
	struct catalog_record rec;
	int r;

	if (!pool->catalog) {
		atomic_store(&v->size_dirty, false);
		volume_touch(v);
		return 0;
	}
	/* A size, unlike a name, can go with an earlier commit than its neighbours' do. */
	r = catalog_check_room(pool->catalog, &v->id, 1);
	if (r == -EAGAIN) {
		pool->redo_carries_sizes = true;
		r = thin_metadata_commit(pool->tmd);
		pool->redo_carries_sizes = false;
		if (r)
			return r;
		volumes_after_commit(pool);
		r = catalog_check_room(pool->catalog, &v->id, 1);
	}
	if ((r == -EAGAIN || r == -ENOSPC) && !v->entry.has_record) {
		log_warn("no data block is free for the record of volume %u: its size is what is "
			 "mapped, when the pool is opened again",
			 v->id);
		atomic_store(&v->size_dirty, false);
		return 0;
	}
	if (r)
		return r;
	/* Before the size is read: a write that comes later sets it again. */
	atomic_store(&v->size_dirty, false);
	volume_make_record(v, &rec);
	r = catalog_put(pool->catalog, &rec);
	if (r)
		return r;
	v->entry.has_record = true;
	volume_touch(v);
	return 0;
}

static bool has_device(const struct volume *v)
{
	return v->entry.state <= VOLUME_REMOVING;
}

int volumes_before_commit(struct pool *pool)
{
	struct volume *v;
	int r = 0;

	if (!atomic_exchange(&pool->sizes_dirty, false))
		return 0;
	TAILQ_FOREACH(v, &pool->volumes->all, entry.all_link) {
		if (atomic_load(&v->size_dirty) && has_device(v)) {
			r = put_size(pool, v);
			if (r)
				break;
		}
	}
	return r;
}

void volumes_after_commit(struct pool *pool)
{
	struct volume_table *t = pool->volumes;
	struct volume_list *deleted = &t->states[VOLUME_DELETED];
	struct volume *v;

	if (pool->catalog)
		catalog_committed(pool->catalog);
	while ((v = STAILQ_FIRST(&t->touched))) {
		STAILQ_REMOVE_HEAD(&t->touched, entry.touched_link);
		v->entry.touched = false;
		atomic_store(&v->entry.is_committed, v->entry.state != VOLUME_DELETED);
		if (!atomic_load(&v->size_dirty))
			atomic_store(&v->size_uncommitted, false);
		volume_make_record(v, &v->entry.committed);
	}
	while ((v = TAILQ_FIRST(deleted))) {
		lock_catalog(&pool->catalog_lock);
		volume_erase(pool, v);
		unlock_catalog(&pool->catalog_lock);
		volume_free(v);
	}
}

/* ---- abort ---- */

static bool was_unlinked(const struct volume *v)
{
	return (v->entry.committed.flags & CATALOG_UNLINKED) != 0;
}

/* Take out every name that is to change, so that none is in the way when the old ones go in. */
static TP_REQUIRES(lc_catalog) void withdraw(struct pool *pool, struct volume *v)
{
	const struct volume_entry *e = &v->entry;
	bool stays =
		e->is_committed && !was_unlinked(v) && strcmp(e->now.name, e->committed.name) == 0;

	if (e->state != VOLUME_LIVE || stays)
		return;
	volumes_queue_event(pool, POOL_EVENT_VOLUME_GONE, v->id, e->now.name);
	volume_set_state(pool, v, e->is_committed ? VOLUME_UNLINKED : VOLUME_GONE);
}

/* The device of a deleted volume is there again; without it the volume cannot be served. */
static bool reopen_device(struct pool *pool, struct volume *v) TP_TAKES(meta_root)
{
	int r = thin_device_open(pool->tmd, v->id, &v->td);

	if (r)
		log_err("volume %u cannot be opened again after the abort: %s", v->id,
			strerror(-r));
	return r == 0;
}

static TP_REQUIRES(lc_catalog) void restore(struct pool *pool, struct volume *v) TP_TAKES(pool)
{
	struct volume_entry *e = &v->entry;
	bool was_live = e->state == VOLUME_LIVE, loses;

	e->touched = false;
	e->remove_next = 0;
	if (e->state == VOLUME_GONE || e->state == VOLUME_REMOVING)
		return;
	if (!e->is_committed || (e->state == VOLUME_DELETED && !reopen_device(pool, v))) {
		volume_set_state(pool, v, VOLUME_GONE);
		return;
	}

	loses = thin_device_aborted_changes(v->td) || atomic_load(&v->size_uncommitted);
	atomic_store(&v->size_dirty, false);
	if (volume_size(v) != e->committed.size_bytes) {
		atomic_store(&v->size_bytes, e->committed.size_bytes);
		volumes_queue_event(pool, POOL_EVENT_VOLUME_RESIZED, v->id, e->committed.name);
	}
	atomic_store(&v->read_only, (e->committed.flags & CATALOG_READ_ONLY) != 0);
	/* The name in the table is the same (see withdraw()), or there is none. */
	e->now = e->committed;
	if (!was_live) {
		volume_set_state(pool, v, was_unlinked(v) ? VOLUME_UNLINKED : VOLUME_LIVE);
		if (!was_unlinked(v))
			volumes_queue_event(pool, POOL_EVENT_VOLUME_ADDED, v->id, e->now.name);
	}
	if (loses) {
		volume_lose_writes(v);
		volumes_queue_event(pool, POOL_EVENT_VOLUME_CONTENT, v->id, e->now.name);
	}
	atomic_store(&v->size_uncommitted, false);
}

void volumes_after_abort(struct pool *pool)
{
	struct volume_table *t = pool->volumes;
	struct volume *v;

	t->aborts++;
	if (pool->catalog)
		catalog_aborted(pool->catalog);
	atomic_store(&pool->sizes_dirty, false);

	lock_catalog(&pool->catalog_lock);
	STAILQ_INIT(&t->touched);
	TAILQ_FOREACH(v, &t->all, entry.all_link)
		withdraw(pool, v);
	TAILQ_FOREACH(v, &t->all, entry.all_link)
		restore(pool, v);
	unlock_catalog(&pool->catalog_lock);
}

/* ---- what front ends are told ---- */

struct queued_event {
	enum pool_event_kind kind;
	thin_id_t id;
	char name[VOLUME_NAME_MAX + 1];
	STAILQ_ENTRY(queued_event) link;
};

void volumes_queue_event(struct pool *pool, enum pool_event_kind kind, thin_id_t id,
			 const char *name)
{
	struct queued_event *ev = calloc(1, sizeof(*ev));

	if (!ev) {
		log_err("no memory to tell of volume %u, what is cached of it may be old", id);
		return;
	}
	ev->kind = kind;
	ev->id = id;
	snprintf(ev->name, sizeof(ev->name), "%s", name);
	STAILQ_INSERT_TAIL(&pool->volumes->events, ev, link);
}

void volumes_deliver_events(struct pool *pool)
{
	struct queued_events *events = &pool->volumes->events;
	struct queued_event *ev;

	while ((ev = STAILQ_FIRST(events))) {
		STAILQ_REMOVE_HEAD(events, link);
		pool_event(pool, ev->kind, ev->id, ev->name);
		free(ev);
	}
}

void volumes_drop_events(struct volume_table *t)
{
	struct queued_event *ev;

	while ((ev = STAILQ_FIRST(&t->events))) {
		STAILQ_REMOVE_HEAD(&t->events, link);
		free(ev);
	}
}
