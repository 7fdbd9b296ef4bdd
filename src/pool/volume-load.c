/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * volume-load.c - the table of volumes, from the devices of a pool and their records
 *
 * Devices are the truth: one without a record is served all the same, under a made-up name and
 * with a size that shows all it has; a record without a device is dropped.  So nothing that a
 * kernel or a tool did to the pool meanwhile makes it impossible to open, or hides data.
 *
 * Three steps: devices, records, names for those that got none.  Pools without a catalog stop
 * after the devices and name them all.
 *
 * Read-only, what cannot be read is told and left out, so that the rest can be saved.
 *
 * Locks: none is needed, nobody else knows the pool yet; LC_catalog is taken for the calls
 * that ask for it.
 */
#define LOG_MODULE "pool"
#include "pool/volume.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "pool/pool-internal.h"
#include "util/error.h"
#include "util/log.h"

/*
 * In a pool that is opened to save what is in it, one volume that cannot be read does not stand in
 * the way of the others.  Returns what is to become of the error.
 */
static int do_without(const struct pool *pool, int r)
{
	return pool->opened_read_only && r != -ENOMEM ? 0 : r;
}

/* ---- devices ---- */

/* A mark of volumes that no record has spoken for yet; no record has it, see volume_name_check().
 */
static void make_placeholder(char *name, thin_id_t id)
{
	snprintf(name, VOLUME_NAME_MAX + 1, "/%u", id);
}

static bool has_placeholder(const struct volume *v)
{
	return v->entry.now.name[0] == '/';
}

static int enter(struct pool *pool, struct volume *v, const char *name)
{
	int r;

	lock_catalog(&pool->catalog_lock);
	r = volume_reserve_id(pool->volumes, v->id);
	if (!r)
		volume_insert(pool, v, name);
	unlock_catalog(&pool->catalog_lock);
	return r;
}

static int device_fn(void *ctx, const struct thin_device_details *d)
{
	struct pool *pool = ctx;
	struct catalog_record rec = { .id = d->id };
	struct volume *v;
	int r;

	if (pool->catalog && d->id == CATALOG_ID)
		return 0;
	r = volume_new(pool, &rec, &v);
	if (r)
		return r;
	make_placeholder(rec.name, d->id);
	r = enter(pool, v, rec.name);
	if (r) {
		volume_free(v);
		return r;
	}
	v->entry.is_committed = true;
	/* Without a record: an id used again has another clock or transaction. */
	v->entry.generation = volume_make_generation(d->transaction_id << 24 | d->creation_time);
	return 0;
}

/* ---- records ---- */

static int note_orphan(struct volume_table *t, thin_id_t id)
{
	size_t bytes = (t->nr_orphans + 1) * sizeof(*t->orphans);
	thin_id_t *more =
		t->nr_orphans % 64 ? t->orphans : realloc(t->orphans, bytes + 63 * sizeof(*more));

	if (!more)
		return -ENOMEM;
	t->orphans = more;
	t->orphans[t->nr_orphans++] = id;
	log_warn("record of volume %u, which does not exist, is dropped", id);
	return 0;
}

static int record_fn(void *ctx, const struct catalog_record *rec)
{
	struct pool *pool = ctx;
	struct volume *v = volume_lookup_id(pool->volumes, rec->id);
	const struct volume *other;
	int r;

	if (!v) { /* the record of a device whose mappings are there all the same is kept */
		r = thin_metadata_check_free_id(pool->tmd, rec->id);
		return r ? do_without(pool, r) : note_orphan(pool->volumes, rec->id);
	}
	if (!rec->name[0]) {
		/* Whoever wants to write takes a snapshot of it. */
		v->entry.now.flags |= CATALOG_READ_ONLY;
		atomic_store(&v->read_only, true);
		return 0;
	}

	v->entry.generation = volume_make_generation(rec->created_usec);
	v->entry.now.flags = rec->flags;
	v->entry.now.origin = rec->origin;
	v->entry.now.created_usec = rec->created_usec;
	v->entry.now.size_bytes = MIN(rec->size_bytes, pool->max_bytes);
	atomic_store(&v->size_bytes, v->entry.now.size_bytes);
	atomic_store(&v->read_only, (rec->flags & CATALOG_READ_ONLY) != 0);
	v->entry.has_record = true;

	other = volume_lookup_name(pool->volumes, rec->name);
	if (other && !(rec->flags & CATALOG_UNLINKED)) {
		log_err("volumes %u and %u are both called \"%s\", the second gets another name",
			other->id, rec->id, rec->name);
		return 0;
	}
	lock_catalog(&pool->catalog_lock);
	volume_set_name(pool, v, rec->name);
	if (rec->flags & CATALOG_UNLINKED)
		volume_set_state(pool, v, VOLUME_UNLINKED);
	unlock_catalog(&pool->catalog_lock);
	return 0;
}

/* ---- those without ---- */

/* "thin-7", or "thin-7-2" ... if a volume has been given that very name. */
static void make_name(struct pool *pool, struct volume *v)
{
	char name[VOLUME_NAME_MAX + 1];

	snprintf(name, sizeof(name), "thin-%u", v->id);
	for (unsigned i = 2; volume_lookup_name(pool->volumes, name); i++)
		snprintf(name, sizeof(name), "thin-%u-%u", v->id, i);
	lock_catalog(&pool->catalog_lock);
	volume_set_name(pool, v, name);
	unlock_catalog(&pool->catalog_lock);
}

/*
 * The record has another volume's name: it is to have this one from the next commit on.  Left as it
 * is it would give the volume that name when the other is gone, or take it away from a third.
 */
static void keep_name(struct pool *pool, struct volume *v)
{
	atomic_store(&v->size_dirty, true);
	atomic_store(&pool->sizes_dirty, true);
}

/* All that is mapped, to the end of its last block. */
static int size_from_mappings(struct pool *pool, struct volume *v)
{
	uint64_t bytes = 0;
	vblock_t last;
	int r;

	r = thin_device_highest_mapped(v->td, &last);
	if (r && r != -ENODATA)
		return r;
	if (!r)
		bytes = last < pool->max_bytes / pool->block_size ? (last + 1) * pool->block_size
								  : pool->max_bytes;
	v->entry.now.size_bytes = bytes;
	atomic_store(&v->size_bytes, bytes);
	return 0;
}

static void drop(struct pool *pool, struct volume *v, int r) TP_TAKES(catalog)
{
	log_err("volume %u (\"%s\") cannot be read (%s), the others are served without it", v->id,
		v->entry.now.name, tp_error_words(r));
	lock_catalog(&pool->catalog_lock);
	volume_erase(pool, v);
	unlock_catalog(&pool->catalog_lock);
	volume_free(v);
}

static int complete(struct pool *pool) TP_TAKES(catalog)
{
	struct volume *v, *next;
	int r, error = 0;

	for (v = TAILQ_FIRST(&pool->volumes->all); v; v = next) {
		next = TAILQ_NEXT(v, entry.all_link);
		if (v->entry.state == VOLUME_LIVE && has_placeholder(v)) {
			make_name(pool, v);
			if (v->entry.has_record)
				keep_name(pool, v);
			if (pool->catalog)
				log_warn("volume %u has no usable record, it is called \"%s\"",
					 v->id, v->entry.now.name);
		}
		if (!v->entry.has_record) {
			r = size_from_mappings(pool, v);
			if (r && do_without(pool, r))
				return r;
			if (r) {
				drop(pool, v, r);
				error = r;
				continue;
			}
		}
		v->entry.committed = v->entry.now;
	}
	return pool->volumes->nr_volumes ? 0 : error; /* nothing can be saved this way */
}

/* ---- life ---- */

static int open_catalog(struct pool *pool, struct tp_error *error) TP_TAKES(meta_root)
{
	int r = catalog_open(pool->tmd, pool->data, &pool->catalog);

	if (r == -ENODATA)
		return 0;
	if (r && !do_without(pool, r)) {
		log_err("the catalog of \"%s\" cannot be read (%s), volumes are shown by number",
			io_device_name(pool->metadata), tp_error_words(r));
		return 0;
	}
	if (r)
		return tp_error(error, r,
				"the catalog of the pool in \"%s\" cannot be read (%s): open the "
				"pool with --read-only to save what is in the volumes",
				io_device_name(pool->metadata), tp_error_words(r));
	atomic_store(&pool->has_catalog, true);
	return 0;
}

int volumes_load(struct pool *pool, struct tp_error *error)
{
	int r;

	r = volume_table_create(&pool->volumes);
	if (r)
		return tp_error(error, r, "no memory for the table of volumes");
	r = open_catalog(pool, error);
	if (r)
		return r;

	lock_catalog(&pool->catalog_lock);
	r = pool->catalog ? volume_reserve_id(pool->volumes, CATALOG_ID) : 0;
	unlock_catalog(&pool->catalog_lock);
	if (!r)
		r = thin_metadata_for_each_device(pool->tmd, device_fn, pool);
	if (!r && pool->catalog)
		r = do_without(pool, catalog_for_each(pool->catalog, record_fn, pool));
	if (!r)
		r = complete(pool);
	if (r)
		return tp_error(error, r,
				"the list of volumes in \"%s\" cannot be read (%s): see "
				"\"thinpoolctl check\", repair a copy with thin_repair",
				io_device_name(pool->metadata), tp_error_words(r));
	if (!pool->catalog && pool->volumes->nr_volumes)
		log_info("the pool keeps no names: its %u volumes are called by number",
			 pool->volumes->nr_volumes);
	return 0;
}

void volumes_unload(struct pool *pool)
{
	pool->volumes = volume_table_destroy(pool->volumes);
	pool->catalog = catalog_close(pool->catalog);
}
