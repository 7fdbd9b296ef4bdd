/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-device.c - devices: records, the details tree, create, snapshot, delete
 *
 * Owns the table of device records and the agreement between three places that know a device:
 * the details tree, the top mapping tree, and its record in memory.
 *
 * Invariants
 *   1  the details tree and the top tree have the same keys: create and delete change both;
 *   2  a record is newer than its entry in the details tree only while it is dirty; changed
 *      implies dirty.  A commit writes the entry, but both marks stay until the commit is
 *      durable: an abort in between must find out that the device lost something;
 *   3  a record stays in the table while the device is open, dirty, or has lost changes;
 *      a record whose device does not exist any more (gone) only waits for its users.
 *
 * Locks: meta_root protects all of it; counters and marks may also be read without.
 */
#include "thin/thin-internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "io/device.h"
#include "util/log.h"

#define LOG_MODULE "thin-device"

/* ---- records ---- */

static struct thin_device *record_find(struct thin_metadata *tmd, thin_id_t id)
	TP_REQUIRES_SHARED(lc_meta_root)
{
	struct thin_device *td;

	LIST_FOREACH(td, device_bucket(tmd, id), link)
		if (td->id == id && !td->gone)
			return td;
	return NULL;
}

static void record_set(struct thin_device *td, const struct disk_device_details *d)
	TP_REQUIRES(lc_meta_root)
{
	atomic_store(&td->mapped_blocks, le64_get(d->mapped_blocks));
	atomic_store(&td->creation_time, le32_get(d->creation_time));
	td->transaction_id = le64_get(d->transaction_id);
	td->snapshotted_time = le32_get(d->snapshotted_time);
	atomic_store(&td->root, 0);
}

static struct disk_device_details record_details(const struct thin_device *td)
	TP_REQUIRES_SHARED(lc_meta_root)
{
	return (struct disk_device_details){
		.mapped_blocks = le64_make(atomic_load(&td->mapped_blocks)),
		.transaction_id = le64_make(td->transaction_id),
		.creation_time = le32_make(atomic_load(&td->creation_time)),
		.snapshotted_time = le32_make(td->snapshotted_time),
	};
}

static void record_free(struct thin_device *td) TP_REQUIRES(lc_meta_root)
{
	LIST_REMOVE(td, link);
	free(td);
}

static void record_free_if_idle(struct thin_device *td) TP_REQUIRES(lc_meta_root)
{
	if (!td->open_count && (td->gone || (!td->dirty && !atomic_load(&td->aborted_changes))))
		record_free(td);
}

static int details_lookup(struct thin_metadata *tmd, thin_id_t id, struct disk_device_details *ret)
	TP_REQUIRES_SHARED(lc_meta_root) TP_TAKES(bufio)
{
	const uint64_t key = id;

	return btree_lookup(&tmd->details_info, tmd->details_root, &key, ret);
}

static int details_store(struct thin_metadata *tmd, thin_id_t id,
			 const struct disk_device_details *details) TP_REQUIRES(lc_meta_root)
	TP_TAKES(bufio)
{
	const uint64_t key = id;

	return btree_insert(&tmd->details_info, tmd->details_root, &key, details,
			    &tmd->details_root, NULL);
}

/* The record of @id, made from the details tree if there is none.  -ENODATA: no such device. */
static int record_get(struct thin_metadata *tmd, thin_id_t id, struct thin_device **ret_td)
	TP_REQUIRES(lc_meta_root) TP_TAKES(bufio)
{
	struct disk_device_details details;
	struct thin_device *td;
	int r;

	td = record_find(tmd, id);
	if (!td) {
		r = details_lookup(tmd, id, &details);
		if (r)
			return r;
		td = calloc(1, sizeof(*td));
		if (!td)
			return -ENOMEM;
		td->tmd = tmd;
		td->id = id;
		record_set(td, &details);
		LIST_INSERT_HEAD(device_bucket(tmd, id), td, link);
	}
	*ret_td = td;
	return 0;
}

/* Every record; the loop may free the current one. */
#define FOR_EACH_RECORD(tmd, bucket, td, next) \
	for (bucket = (tmd)->devices; bucket < (tmd)->devices + DEVICE_BUCKETS; bucket++) \
		for (td = LIST_FIRST(bucket); td && (next = LIST_NEXT(td, link), true); td = next)

int devices_write_details(struct thin_metadata *tmd)
{
	struct device_bucket *bucket;
	struct thin_device *td, *next;

	FOR_EACH_RECORD(tmd, bucket, td, next)
	{
		struct disk_device_details details = record_details(td);
		int r;

		if (td->gone || !td->dirty)
			continue;
		r = details_store(tmd, td->id, &details);
		if (r)
			return r;
	}
	return 0;
}

void devices_committed(struct thin_metadata *tmd)
{
	struct device_bucket *bucket;
	struct thin_device *td, *next;

	FOR_EACH_RECORD(tmd, bucket, td, next)
	{
		td->dirty = false;
		atomic_store(&td->changed, false);
		record_free_if_idle(td);
	}
}

void devices_mark_aborted(struct thin_metadata *tmd)
{
	struct device_bucket *bucket;
	struct thin_device *td, *next;

	FOR_EACH_RECORD(tmd, bucket, td, next)
	if (atomic_load(&td->changed))
		atomic_store(&td->aborted_changes, true);
}

int devices_reload(struct thin_metadata *tmd)
{
	struct device_bucket *bucket;
	struct thin_device *td, *next;

	FOR_EACH_RECORD(tmd, bucket, td, next)
	{
		struct disk_device_details details;
		int r = td->gone ? -ENODATA : details_lookup(tmd, td->id, &details);

		if (!r)
			record_set(td, &details);
		else if (r == -ENODATA)
			td->gone = true;
		else
			return r;
		td->dirty = false;
		atomic_store(&td->changed, false);
		record_free_if_idle(td);
	}
	return 0;
}

bool devices_any_open(struct thin_metadata *tmd)
{
	struct device_bucket *bucket;
	struct thin_device *td, *next;

	FOR_EACH_RECORD(tmd, bucket, td, next)
	if (td->open_count)
		return true;
	return false;
}

void devices_free(struct thin_metadata *tmd)
{
	struct device_bucket *bucket;
	struct thin_device *td, *next;

	FOR_EACH_RECORD(tmd, bucket, td, next)
	record_free(td);
}

/* ---- roots of devices ---- */

int device_root(struct thin_metadata *tmd, struct thin_device *td, thin_id_t id, mblock_t *ret_root,
		mblock_t *ret_missing)
{
	const uint64_t key = id;
	struct le64 value;
	mblock_t root;
	int r;

	root = td ? atomic_load_explicit(&td->root, memory_order_relaxed) : 0;
	if (root) {
		*ret_root = root;
		return 0;
	}
	r = ret_missing ? btree_try_lookup(&tmd->top_info, tmd->root, &key, &value, ret_missing)
			: btree_lookup(&tmd->top_info, tmd->root, &key, &value);
	if (r == -ENODATA && td) {
		log_err_limited("%s: device %" PRIu32 " has details but no mapping tree, its I/O "
				"fails",
				io_device_name(tmd->dev), id);
		return -EUCLEAN;
	}
	if (r)
		return r;
	root = le64_get(value);
	if (root == THIN_SUPERBLOCK_LOCATION)
		return -EUCLEAN;
	if (td)
		atomic_store_explicit(&td->root, root, memory_order_relaxed);
	*ret_root = root;
	return 0;
}

/* ---- open and close ---- */

int thin_device_open(struct thin_metadata *tmd, thin_id_t id, struct thin_device **ret_td)
{
	struct thin_device *td;
	int r;

	lock_meta_root(&tmd->lock);
	r = tmd->fail_io ? -EINVAL : record_get(tmd, id, &td);
	if (!r)
		td->open_count++;
	unlock_meta_root(&tmd->lock);
	if (!r)
		*ret_td = td;
	return r;
}

struct thin_device *thin_device_close(struct thin_device *td)
{
	struct thin_metadata *tmd;

	if (!td)
		return NULL;
	tmd = td->tmd;
	lock_meta_root(&tmd->lock);
	TP_INVARIANT(td->open_count);
	td->open_count--;
	record_free_if_idle(td);
	unlock_meta_root(&tmd->lock);
	return NULL;
}

thin_id_t thin_device_id(const struct thin_device *td)
{
	return td->id;
}

uint64_t thin_device_mapped_blocks(const struct thin_device *td)
{
	return atomic_load_explicit(&td->mapped_blocks, memory_order_relaxed);
}

uint32_t thin_device_creation_time(const struct thin_device *td)
{
	return atomic_load_explicit(&td->creation_time, memory_order_relaxed);
}

bool thin_device_changed(const struct thin_device *td)
{
	return atomic_load_explicit(&td->changed, memory_order_acquire);
}

bool thin_device_aborted_changes(const struct thin_device *td)
{
	return atomic_load_explicit(&td->aborted_changes, memory_order_acquire);
}

/* ---- create ---- */

/* A new device would take the place of a tree that nobody has details of. */
static int check_free_id(struct thin_metadata *tmd, thin_id_t id) TP_REQUIRES_SHARED(lc_meta_root)
	TP_TAKES(bufio)
{
	struct disk_device_details details;
	mblock_t root;
	int r;

	r = details_lookup(tmd, id, &details);
	if (r != -ENODATA)
		return r ? r : -EEXIST;
	r = device_root(tmd, NULL, id, &root, NULL);
	if (r)
		return r == -ENODATA ? 0 : r;
	log_err_limited("%s: device %" PRIu32 " has a mapping tree but no details, it cannot be "
			"served",
			io_device_name(tmd->dev), id);
	return -EUCLEAN;
}

int thin_metadata_check_free_id(struct thin_metadata *tmd, thin_id_t id)
{
	int r;

	lock_meta_root_shared(&tmd->lock);
	r = tmd->fail_io ? -EINVAL : check_free_id(tmd, id);
	unlock_meta_root_shared(&tmd->lock);
	return r;
}

/* 0: @id is free to be used. */
static int check_new_id(struct thin_metadata *tmd, thin_id_t id) TP_REQUIRES(lc_meta_root)
	TP_TAKES(bufio)
{
	int r = metadata_may_change(tmd);

	if (r)
		return r;
	return id > THIN_ID_MAX ? -EINVAL : check_free_id(tmd, id);
}

static int add_to_top_tree(struct thin_metadata *tmd, thin_id_t id, mblock_t root)
	TP_REQUIRES(lc_meta_root) TP_TAKES(bufio)
{
	const struct le64 value = le64_make(root);
	const uint64_t key = id;

	return btree_insert(&tmd->top_info, tmd->root, &key, &value, &tmd->root, NULL);
}

static int add_details(struct thin_metadata *tmd, thin_id_t id, uint64_t mapped_blocks)
	TP_REQUIRES(lc_meta_root) TP_TAKES(bufio)
{
	const struct disk_device_details details = {
		.mapped_blocks = le64_make(mapped_blocks),
		.transaction_id = le64_make(tmd->trans_id),
		.creation_time = le32_make(tmd->time),
		.snapshotted_time = le32_make(tmd->time),
	};

	return details_store(tmd, id, &details);
}

static int create_thin(struct thin_metadata *tmd, thin_id_t id) TP_REQUIRES(lc_meta_root)
	TP_TAKES(bufio)
{
	mblock_t root;
	int r;

	metadata_change_begin(tmd);
	r = btree_empty(&tmd->device_info, &root);
	if (!r)
		r = add_to_top_tree(tmd, id, root);
	if (!r)
		r = add_details(tmd, id, 0);
	return metadata_change_end(tmd, r);
}

int thin_metadata_create_thin(struct thin_metadata *tmd, thin_id_t id)
{
	int r;

	lock_meta_root(&tmd->lock);
	r = check_new_id(tmd, id);
	if (!r)
		r = create_thin(tmd, id);
	unlock_meta_root(&tmd->lock);
	return r;
}

/*
 * Both devices have the same root from here on, with two references.  The origin's cached root
 * stays right: it changes with the first insert into either, which copies it.
 */
static int create_snap(struct thin_metadata *tmd, thin_id_t id, struct thin_device *origin)
	TP_REQUIRES(lc_meta_root) TP_TAKES(bufio)
{
	mblock_t root;
	int r;

	r = device_root(tmd, origin, origin->id, &root, NULL);
	if (r)
		return r;
	metadata_change_begin(tmd);
	origin->dirty = true;
	r = tm_inc(tmd->tm, root);
	if (!r)
		r = add_to_top_tree(tmd, id, root);
	if (!r) {
		/* What was mapped before this tick is shared, what comes later is not. */
		tmd->time++;
		origin->snapshotted_time = tmd->time;
		r = add_details(tmd, id, atomic_load(&origin->mapped_blocks));
	}
	return metadata_change_end(tmd, r);
}

int thin_metadata_create_snap(struct thin_metadata *tmd, thin_id_t id, thin_id_t origin_id)
{
	struct thin_device *origin = NULL;
	int r;

	lock_meta_root(&tmd->lock);
	r = check_new_id(tmd, id);
	if (!r && tmd->time >= THIN_MAX_TIME)
		r = -EOVERFLOW;
	if (!r)
		r = record_get(tmd, origin_id, &origin);
	if (!r) {
		r = create_snap(tmd, id, origin);
		record_free_if_idle(origin);
	}
	unlock_meta_root(&tmd->lock);
	return r;
}

/* ---- delete ---- */

static int check_deletable(struct thin_metadata *tmd, thin_id_t id) TP_REQUIRES(lc_meta_root)
	TP_TAKES(bufio)
{
	struct disk_device_details details;
	struct thin_device *td;
	mblock_t root;
	int r;

	r = metadata_may_change(tmd);
	if (r)
		return r;
	/* Before anything that could fail for another reason. */
	td = record_find(tmd, id);
	if (td && td->open_count && !td->gone)
		return -EBUSY;
	r = details_lookup(tmd, id, &details);
	if (r)
		return r;
	r = device_root(tmd, NULL, id, &root, NULL);
	return r == -ENODATA ? -EUCLEAN : r;
}

static int delete_thin(struct thin_metadata *tmd, thin_id_t id) TP_REQUIRES(lc_meta_root)
	TP_TAKES(bufio)
{
	struct thin_device *td = record_find(tmd, id);
	const uint64_t key = id;
	int r;

	metadata_change_begin(tmd);
	r = btree_remove(&tmd->details_info, tmd->details_root, &key, &tmd->details_root);
	if (!r) /* takes the device's own tree along, through subtree_value_type */
		r = btree_remove(&tmd->top_info, tmd->root, &key, &tmd->root);
	if (!r && td)
		record_free(td);
	return metadata_change_end(tmd, r);
}

int thin_metadata_delete_thin(struct thin_metadata *tmd, thin_id_t id)
{
	int r;

	lock_meta_root(&tmd->lock);
	r = check_deletable(tmd, id);
	if (!r)
		r = delete_thin(tmd, id);
	unlock_meta_root(&tmd->lock);
	return r;
}

/* ---- listing ---- */

/* Entries taken under the lock at a time. */
#define DEVICE_BATCH 64u

static void fill_details(struct thin_metadata *tmd, thin_id_t id,
			 const struct disk_device_details *stored, struct thin_device_details *ret)
	TP_REQUIRES_SHARED(lc_meta_root)
{
	const struct thin_device *td = record_find(tmd, id);
	struct disk_device_details d = td ? record_details(td) : *stored;

	*ret = (struct thin_device_details){
		.id = id,
		.mapped_blocks = le64_get(d.mapped_blocks),
		.transaction_id = le64_get(d.transaction_id),
		.creation_time = le32_get(d.creation_time),
		.snapshotted_time = le32_get(d.snapshotted_time),
	};
}

/* Up to DEVICE_BATCH devices from id @from on.  *@ret_nr < DEVICE_BATCH: these are the last. */
static int collect_devices(struct thin_metadata *tmd, uint64_t from,
			   struct thin_device_details *batch, unsigned *ret_nr)
	TP_REQUIRES_SHARED(lc_meta_root) TP_TAKES(bufio)
{
	unsigned nr = 0;
	int r = 0;

	if (tmd->fail_io)
		return -EINVAL;
	while (nr < DEVICE_BATCH && from <= THIN_ID_MAX) {
		struct disk_device_details stored;
		uint64_t id;

		r = btree_lookup_next(&tmd->details_info, tmd->details_root, &from, &id, &stored);
		if (r == -ENODATA)
			break;
		if (r)
			return r;
		if (id > THIN_ID_MAX) {
			log_err_limited("%s: device id %" PRIu64 " is larger than any can be",
					io_device_name(tmd->dev), id);
			return -EUCLEAN;
		}
		fill_details(tmd, (thin_id_t)id, &stored, &batch[nr++]);
		from = id + 1;
	}
	*ret_nr = nr;
	return 0;
}

int thin_metadata_for_each_device(struct thin_metadata *tmd,
				  int (*fn)(void *ctx, const struct thin_device_details *d),
				  void *ctx)
{
	struct thin_device_details batch[DEVICE_BATCH];
	uint64_t from = 0;
	unsigned nr;
	int r;

	do {
		lock_meta_root_shared(&tmd->lock);
		r = collect_devices(tmd, from, batch, &nr);
		unlock_meta_root_shared(&tmd->lock);
		for (unsigned i = 0; !r && i < nr; i++)
			r = fn(ctx, &batch[i]);
		if (!r && nr)
			from = (uint64_t)batch[nr - 1].id + 1;
	} while (!r && nr == DEVICE_BATCH);
	return r;
}
