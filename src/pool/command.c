/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * command.c - changes to the set of volumes, carried out by the worker
 *
 * A command looks at everything that can be wrong before it changes anything; what fails then
 * is an answer, and what fails later is a failure of the metadata, which aborts.  It changes
 * metadata, catalog and table together.  Commands that wait at the same time share a commit
 * and are answered after it; if it fails, or if anything aborts the transaction before, all
 * of them fail: the abort has taken back what they did (volume-commit.c).
 *
 * What goes on elsewhere while a command waits (for quiet, for a commit to make room) may
 * abort too, or change what was looked at before.  So waiting comes first, and t->aborts tells
 * whether the transaction of an earlier command is still there.
 *
 * A volume that goes (deleted, or replaced by a rename) is deleted at once if it is small and
 * unused, otherwise marked UNLINKED and left to volume-remove.c.
 *
 * Locks: changes of the table are made under LC_catalog; nothing that can wait is called then.
 */
#define LOG_MODULE "pool"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pool/request.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/parse-size.h"

/* Mappings that may be removed in one step, in the transaction of the command itself. */
#define SMALL_VOLUME_BLOCKS 1024u

#define NO_ROOM "no data block is free for the record of the volume"
#define fail(cmd, r, ...) tp_error(&(cmd)->error, r, __VA_ARGS__)

/* ---- checks ---- */

int pool_refuse_command(struct pool *pool, struct pool_command *cmd, int r)
{
	char remedy[POOL_REASON_MAX];

	if (!atomic_load(&pool->needs_check) && !atomic_load(&pool->data_failed))
		return fail(cmd, r, "the pool is read-only");
	pool_describe_remedy(pool, remedy, sizeof(remedy));
	return fail(cmd, r, "the pool is read-only, its %s: %s",
		    atomic_load(&pool->needs_check) ? "metadata needs a check"
						    : "data device has failed",
		    remedy);
}

static int check_writable(struct pool *pool, struct pool_command *cmd)
{
	int r = pool_check_writable(pool);

	return r ? pool_refuse_command(pool, cmd, r) : 0;
}

static int check_space(struct pool *pool, struct pool_command *cmd)
{
	int r = pool_check_space(pool);

	if (r == -ENOSPC)
		return fail(cmd, r,
			    "the metadata of the pool is full: enlarge it or delete volumes");
	return r ? check_writable(pool, cmd) : 0;
}

static int check_catalog(struct pool *pool, struct pool_command *cmd)
{
	if (pool->catalog)
		return 0;
	return fail(cmd, -EOPNOTSUPP, "the pool keeps no names: it was not made by thinpoold");
}

static int check_name(struct pool_command *cmd, const char *name)
{
	int r = volume_name_check(name);

	if (r == -ENAMETOOLONG)
		return fail(cmd, r, "the name is longer than %d bytes", VOLUME_NAME_MAX);
	if (r)
		return fail(cmd, r,
			    "\"%s\" is no name for a volume: it must be UTF-8 without \"/\" or "
			    "control characters and not start with a dot",
			    name);
	return 0;
}

static int check_size(struct pool *pool, struct pool_command *cmd)
{
	if (cmd->size_bytes <= pool->max_bytes)
		return 0;
	return fail(cmd, -EFBIG, "a volume of this pool can have %ju bytes at most",
		    (uintmax_t)pool->max_bytes);
}

static int find(struct pool *pool, struct pool_command *cmd, const char *name,
		struct volume **ret_v)
{
	*ret_v = volume_lookup_name(pool->volumes, name);
	return *ret_v ? 0 : fail(cmd, -ENOENT, "there is no volume \"%.255s\"", name);
}

static bool is_open(const struct volume *v)
{
	return atomic_load(&v->entry.open_count) > 0;
}

static int make_room(struct pool *pool, struct pool_command *cmd, const thin_id_t *ids, unsigned nr)
{
	int r = volumes_make_room(pool, ids, nr);

	if (r == -ENOSPC)
		return fail(cmd, r, NO_ROOM);
	return r;
}

/* ---- changing things ---- */

/* The record of @v follows what the table says.  An error has aborted the transaction. */
static int put_record(struct pool *pool, struct volume *v) TP_TAKES(throttle)
{
	struct catalog_record rec;
	int r;

	volume_touch(v);
	if (!pool->catalog)
		return 0;
	volume_make_record(v, &rec);
	r = catalog_put(pool->catalog, &rec);
	v->entry.has_record = true;
	return r ? pool_metadata_failed(pool, "write the record of a volume", r) : 0;
}

static void set_name(struct pool *pool, struct volume *v, const char *name)
{
	volumes_queue_event(pool, POOL_EVENT_VOLUME_GONE, v->id, v->entry.now.name);
	lock_catalog(&pool->catalog_lock);
	volume_set_name(pool, v, name);
	unlock_catalog(&pool->catalog_lock);
	volumes_queue_event(pool, POOL_EVENT_VOLUME_ADDED, v->id, name);
}

/* Out of the directory: DELETED if it is idle and @at_once, otherwise UNLINKED. */
static enum volume_state take_out(struct pool *pool, struct volume *v, bool at_once)
{
	enum volume_state state;

	volumes_queue_event(pool, POOL_EVENT_VOLUME_GONE, v->id, v->entry.now.name);
	lock_catalog(&pool->catalog_lock);
	state = at_once && volume_is_idle(v) ? VOLUME_DELETED : VOLUME_UNLINKED;
	volume_set_state(pool, v, state);
	v->entry.now.flags |= CATALOG_UNLINKED;
	unlock_catalog(&pool->catalog_lock);
	return state;
}

/*
 * @v leaves the directory, and the pool as soon as nobody uses it.  The caller has made room
 * for its record.  An error has aborted the transaction.
 */
static int unlink_volume(struct pool *pool, struct volume *v)
{
	bool small = thin_device_mapped_blocks(v->td) <= SMALL_VOLUME_BLOCKS;

	if (take_out(pool, v, small || !pool->catalog) == VOLUME_DELETED)
		return volume_delete_device(pool, v);
	return put_record(pool, v);
}

/*
 * The device of @rec has been created in the open transaction: give it a volume and a record.
 * Its id is reserved.  An error has aborted the transaction.
 */
static int add_volume(struct pool *pool, const struct catalog_record *rec) TP_TAKES(throttle)
{
	struct volume *v;
	int r;

	r = volume_new(pool, rec, &v);
	if (r) {
		r = pool_metadata_failed(pool, "open a new volume", r);
		lock_catalog(&pool->catalog_lock);
		volume_release_id(pool->volumes, rec->id);
		unlock_catalog(&pool->catalog_lock);
		return r;
	}
	lock_catalog(&pool->catalog_lock);
	volume_insert(pool, v, rec->name);
	unlock_catalog(&pool->catalog_lock);
	volumes_queue_event(pool, POOL_EVENT_VOLUME_ADDED, rec->id, rec->name);
	return put_record(pool, v);
}

static int reserve_id(struct pool *pool, struct pool_command *cmd, thin_id_t id) TP_TAKES(catalog)
{
	int r;

	lock_catalog(&pool->catalog_lock);
	r = volume_reserve_id(pool->volumes, id);
	unlock_catalog(&pool->catalog_lock);
	return r ? fail(cmd, r, "no memory for another volume") : 0;
}

/*
 * Create a device by create_thin or, with @origin, create_snap.  Everything has been checked,
 * and room made.
 */
static int create_device(struct pool *pool, struct pool_command *cmd,
			 const struct catalog_record *rec, const struct volume *origin)
{
	int r;

	r = reserve_id(pool, cmd, rec->id);
	if (r)
		return r;
	r = origin ? thin_metadata_create_snap(pool->tmd, rec->id, origin->id)
		   : thin_metadata_create_thin(pool->tmd, rec->id);
	if (!r) {
		cmd->id = rec->id;
		return add_volume(pool, rec);
	}
	lock_catalog(&pool->catalog_lock);
	volume_release_id(pool->volumes, rec->id);
	unlock_catalog(&pool->catalog_lock);
	if (r == -EOVERFLOW)
		return fail(cmd, -ENOSPC, "2^24 snapshots were taken in this pool: no further one");
	return pool_metadata_failed(pool, origin ? "create a snapshot" : "create a volume", r);
}

static int find_free_id(struct pool *pool, struct pool_command *cmd, thin_id_t *ret_id)
{
	int r = volume_find_free_id(pool->volumes, ret_id);

	return r ? fail(cmd, r, "the pool has %u volumes: no further one", VOLUMES_MAX) : 0;
}

static int check_free_name(struct pool *pool, struct pool_command *cmd, const char *name)
{
	if (!volume_lookup_name(pool->volumes, name))
		return 0;
	return fail(cmd, -EEXIST, "there is a volume \"%s\" already", name);
}

/* ---- the commands ---- */

static int do_create(struct pool *pool, struct pool_command *cmd)
{
	struct catalog_record rec = { .size_bytes = cmd->size_bytes,
				      .created_usec = time_real_usec() };
	int r;

	r = check_catalog(pool, cmd);
	if (!r)
		r = check_name(cmd, cmd->name);
	if (!r)
		r = check_free_name(pool, cmd, cmd->name);
	if (!r)
		r = check_size(pool, cmd);
	if (!r)
		r = check_space(pool, cmd);
	if (!r)
		r = find_free_id(pool, cmd, &rec.id);
	if (!r)
		r = make_room(pool, cmd, &rec.id, 1);
	if (r)
		return r;
	memcpy(rec.name, cmd->name, sizeof(rec.name));
	return create_device(pool, cmd, &rec, NULL);
}

/*
 * The id of a new snapshot.  Without a catalog a volume is called by its number, so the name
 * decides; id 0 is a number like any other then.
 */
static int snapshot_id(struct pool *pool, struct pool_command *cmd, thin_id_t *ret_id)
{
	char name[32];
	unsigned id;

	if (pool->catalog)
		return find_free_id(pool, cmd, ret_id);
	if (sscanf(cmd->new_name, "thin-%8u", &id) != 1 || id > THIN_ID_MAX)
		return fail(cmd, -EOPNOTSUPP,
			    "the pool keeps no names: call the snapshot thin-NUMBER");
	snprintf(name, sizeof(name), "thin-%u", id);
	if (strcmp(name, cmd->new_name) != 0)
		return fail(cmd, -EOPNOTSUPP, "the pool keeps no names: call the snapshot %s",
			    name);
	if (volume_id_is_used(pool->volumes, id))
		return fail(cmd, -EEXIST, "volume %u is still being removed", id);
	*ret_id = id;
	return 0;
}

/* The origin's gate is closed: no write of it is under way. */
static int snapshot_quiet(struct pool *pool, struct pool_command *cmd, struct volume *origin)
{
	struct catalog_record rec = { .created_usec = time_real_usec() };
	int r;

	r = check_space(pool, cmd);
	if (!r)
		r = snapshot_id(pool, cmd, &rec.id);
	if (!r)
		r = make_room(pool, cmd, &rec.id, 1);
	if (r)
		return r;
	rec.size_bytes = volume_size(origin);
	rec.origin = origin->id;
	rec.flags = CATALOG_HAS_ORIGIN;
	if (cmd->flags & POOL_CMD_READ_ONLY)
		rec.flags |= CATALOG_READ_ONLY;
	memcpy(rec.name, cmd->new_name, sizeof(rec.name));
	return create_device(pool, cmd, &rec, origin);
}

static int do_snapshot(struct pool *pool, struct pool_command *cmd)
{
	struct volume *origin;
	int r;

	r = find(pool, cmd, cmd->name, &origin);
	if (!r)
		r = check_name(cmd, cmd->new_name);
	if (!r)
		r = check_free_name(pool, cmd, cmd->new_name);
	if (!r)
		r = check_space(pool, cmd);
	if (r)
		return r;
	r = pool_quiesce_volume(pool, origin);
	if (!r)
		r = snapshot_quiet(pool, cmd, origin);
	pool_resume_volume(pool, origin);
	return r;
}

/* A volume that has no record, in a pool that has no room for one: now or not at all. */
static int delete_at_once(struct pool *pool, struct pool_command *cmd, struct volume *v)
{
	bool idle;

	lock_catalog(&pool->catalog_lock);
	idle = volume_is_idle(v);
	if (idle)
		volume_set_state(pool, v, VOLUME_DELETED);
	unlock_catalog(&pool->catalog_lock);
	if (!idle)
		return fail(cmd, -ENOSPC, NO_ROOM);
	volumes_queue_event(pool, POOL_EVENT_VOLUME_GONE, v->id, v->entry.now.name);
	return volume_delete_device(pool, v);
}

static int do_delete(struct pool *pool, struct pool_command *cmd)
{
	struct volume *v;
	int r;

	r = find(pool, cmd, cmd->name, &v);
	if (!r)
		r = check_writable(pool, cmd);
	if (!r && cmd->flags & POOL_CMD_IF_CLOSED && is_open(v))
		r = fail(cmd, -EBUSY, "volume \"%s\" is in use", cmd->name);
	if (r)
		return r;
	/* Without a record there is nothing to erase, so a full pool can still be rid of it. */
	r = volumes_make_room(pool, &v->id, 1);
	if (r == -ENOSPC && !v->entry.has_record)
		return delete_at_once(pool, cmd, v);
	if (r == -ENOSPC)
		r = fail(cmd, r, NO_ROOM);
	return r ? r : unlink_volume(pool, v);
}

static int exchange(struct pool *pool, struct pool_command *cmd, struct volume *a, struct volume *b)
{
	int r;

	volumes_queue_event(pool, POOL_EVENT_VOLUME_GONE, a->id, cmd->name);
	volumes_queue_event(pool, POOL_EVENT_VOLUME_GONE, b->id, cmd->new_name);
	lock_catalog(&pool->catalog_lock);
	volume_set_name(pool, a, cmd->new_name);
	volume_set_name(pool, b, cmd->name);
	unlock_catalog(&pool->catalog_lock);
	volumes_queue_event(pool, POOL_EVENT_VOLUME_ADDED, a->id, cmd->new_name);
	volumes_queue_event(pool, POOL_EVENT_VOLUME_ADDED, b->id, cmd->name);
	r = put_record(pool, a);
	return r ? r : put_record(pool, b);
}

static int check_replace(struct pool_command *cmd, const struct volume *target)
{
	if (!target)
		return cmd->flags & POOL_CMD_EXCHANGE
			       ? fail(cmd, -ENOENT, "there is no volume \"%s\"", cmd->new_name)
			       : 0;
	if (cmd->flags & POOL_CMD_NO_REPLACE)
		return fail(cmd, -EEXIST, "there is a volume \"%s\" already", cmd->new_name);
	if (cmd->flags & POOL_CMD_IF_CLOSED && !(cmd->flags & POOL_CMD_EXCHANGE) && is_open(target))
		return fail(cmd, -EBUSY, "volume \"%s\" is in use", cmd->new_name);
	return 0;
}

static int do_rename(struct pool *pool, struct pool_command *cmd)
{
	struct volume *v, *target = NULL;
	thin_id_t ids[2];
	int r;

	r = find(pool, cmd, cmd->name, &v);
	if (!r)
		r = check_catalog(pool, cmd);
	if (!r)
		r = check_name(cmd, cmd->new_name);
	if (!r)
		target = volume_lookup_name(pool->volumes, cmd->new_name);
	if (!r)
		r = check_replace(cmd, target);
	if (!r)
		r = check_writable(pool, cmd);
	if (r || target == v)
		return r;

	ids[0] = v->id;
	ids[1] = target ? target->id : v->id;
	r = make_room(pool, cmd, ids, 2);
	if (r)
		return r;
	if (target && cmd->flags & POOL_CMD_EXCHANGE)
		return exchange(pool, cmd, v, target);
	r = target ? unlink_volume(pool, target) : 0;
	if (r)
		return r;
	set_name(pool, v, cmd->new_name);
	return put_record(pool, v);
}

/* What lies behind the new end is unmapped, and the rest of the last block zeroed. */
static int cut(struct pool *pool, struct pool_command *cmd, struct volume *v)
{
	uint64_t old = volume_size(v), block_end;
	struct pool_io io = { .op = POOL_PUNCH, .volume = v };
	int r = 0;

	/* The part of a block first: it can fail for lack of space, and nothing is lost then. */
	block_end = DIV_ROUND_UP(cmd->size_bytes, pool->block_size) * pool->block_size;
	io.offset = cmd->size_bytes;
	io.length = MIN(block_end, old) - cmd->size_bytes;
	if (io.length)
		r = pool_worker_io(pool, &io);
	/* What this transaction has freed can be had after the commit. */
	if (r == -ENOSPC && pool_is_dirty(pool)) {
		r = pool_commit_now(pool);
		if (!r)
			r = pool_worker_io(pool, &io);
	}
	if (!r && block_end < old) {
		io = (struct pool_io){ .op = POOL_PUNCH,
				       .volume = v,
				       .offset = block_end,
				       .length = old - block_end };
		r = pool_worker_io(pool, &io);
	}
	if (r == -ENOSPC)
		return fail(cmd, r, "no block is free to zero the rest of a shared one in");
	return r ? fail(cmd, r, "cannot remove what is behind the new end") : 0;
}

/* With the gate closed: the size does not change but here. */
static int resize_quiet(struct pool *pool, struct pool_command *cmd, struct volume *v)
{
	bool grows;
	int r = 0;

	grows = cmd->size_bytes > volume_size(v);
	if (!grows)
		r = cut(pool, cmd, v);
	if (!r)
		r = make_room(pool, cmd, &v->id, 1);
	if (!r && grows)
		r = pool_redo_make_room(pool);
	if (r)
		return r;
	atomic_store(&v->size_bytes, cmd->size_bytes);
	if (grows)
		pool_redo_size(v); /* from now on writes behind the former end are answered */
	atomic_store(&v->size_dirty, false); /* the record says it all, once it is committed */
	volumes_queue_event(pool, POOL_EVENT_VOLUME_RESIZED, v->id, v->entry.now.name);
	return put_record(pool, v);
}

static int find_by_name_or_id(struct pool *pool, struct pool_command *cmd, struct volume **ret_v)
{
	if (!(cmd->flags & POOL_CMD_BY_ID))
		return find(pool, cmd, cmd->name, ret_v);
	*ret_v = volume_lookup_id(pool->volumes, cmd->id);
	return *ret_v ? 0 : fail(cmd, -ENOENT, "there is no volume with id %u", cmd->id);
}

static int do_resize(struct pool *pool, struct pool_command *cmd)
{
	struct volume *v;
	int r;

	r = find_by_name_or_id(pool, cmd, &v);
	if (!r)
		r = check_catalog(pool, cmd);
	if (!r)
		r = check_size(pool, cmd);
	if (!r)
		r = check_writable(pool, cmd);
	if (r)
		return r;
	if (atomic_load(&v->read_only))
		return fail(cmd, -EROFS, "volume \"%s\" is read-only", v->entry.now.name);

	r = pool_quiesce_volume(pool, v);
	if (!r && cmd->size_bytes < volume_size(v) && !(cmd->flags & POOL_CMD_SHRINK))
		r = fail(cmd, -EINVAL,
			 "volume \"%s\" has %ju bytes: making it smaller loses data, say --shrink",
			 v->entry.now.name, (uintmax_t)volume_size(v));
	else if (!r && cmd->size_bytes != volume_size(v))
		r = resize_quiet(pool, cmd, v);
	pool_resume_volume(pool, v);
	return r;
}

/*
 * Have every write that was let through before come to its end, in two rounds: one that met a
 * closed gate goes on when the first round opens it.
 */
static int settle_writes(struct pool *pool, struct volume *v)
{
	int r = 0;

	for (unsigned round = 0; round < 2 && !r; round++) {
		r = pool_quiesce_volume(pool, v);
		pool_resume_volume(pool, v);
	}
	return r;
}

/* Room for the record has been made. */
static int put_read_only(struct pool *pool, struct volume *v, bool read_only)
{
	lock_catalog(&pool->catalog_lock);
	if (read_only)
		v->entry.now.flags |= CATALOG_READ_ONLY;
	else
		v->entry.now.flags &= ~CATALOG_READ_ONLY;
	unlock_catalog(&pool->catalog_lock);
	atomic_store(&v->read_only, read_only);
	return put_record(pool, v);
}

/* It holds for those too who have the volume open: their next write is refused. */
static int do_set_read_only(struct pool *pool, struct pool_command *cmd)
{
	bool read_only = cmd->flags & POOL_CMD_READ_ONLY, was;
	struct volume *v;
	int r;

	r = find_by_name_or_id(pool, cmd, &v);
	if (!r)
		r = check_catalog(pool, cmd);
	if (!r)
		r = check_writable(pool, cmd);
	if (r)
		return r;
	was = atomic_exchange(&v->read_only, read_only || atomic_load(&v->read_only));
	if (was == read_only)
		return 0;
	r = read_only ? settle_writes(pool, v) : 0;
	if (!r)
		r = make_room(pool, cmd, &v->id, 1);
	if (!r)
		return put_read_only(pool, v, read_only);
	atomic_store(&v->read_only, was);
	return r;
}

/* A pool that is not written to has nothing to commit. */
static int do_extend(struct pool *pool, struct pool_command *cmd)
{
	char data[FORMAT_SIZE_MAX], metadata[FORMAT_SIZE_MAX];
	int r = pool_extend(pool, cmd);

	if (!r)
		log_info("extending the pool: data %s, metadata %s",
			 format_size(cmd->size_bytes, data, sizeof(data)),
			 format_size(cmd->metadata_bytes, metadata, sizeof(metadata)));
	return r;
}

static int do_commit(struct pool *pool, struct pool_command *cmd)
{
	int r = pool_check_writable(pool);

	return r == -EROFS ? 0 : r ? check_writable(pool, cmd) : 0;
}

/* ---- the metadata snapshot ---- */

static int metadata_snap_failed(struct pool *pool, int r)
{
	return pool_metadata_failed(pool, "change the metadata snapshot", r);
}

/*
 * The commit comes first, through the pool, which has more to do after one than the metadata
 * knows of: what thin_metadata_reserve_snap() commits is nothing then.
 */
static int do_metadata_snap_reserve(struct pool *pool, struct pool_command *cmd)
{
	int r = check_space(pool, cmd);

	if (!r)
		r = pool_commit_now(pool);
	if (!r)
		r = check_space(pool, cmd); /* the commit may have found that there is none */
	if (r)
		return r;
	r = thin_metadata_reserve_snap(pool->tmd);
	if (r == -EBUSY)
		return fail(cmd, r, "the pool has a metadata snapshot already: release it first");
	return r ? metadata_snap_failed(pool, r) : 0;
}

static int do_metadata_snap_release(struct pool *pool, struct pool_command *cmd)
{
	int r = check_writable(pool, cmd);

	if (r)
		return r;
	r = thin_metadata_release_snap(pool->tmd);
	if (r == -ENODATA)
		return fail(cmd, -EINVAL, "the pool has no metadata snapshot");
	return r ? metadata_snap_failed(pool, r) : 0;
}

/* ---- a state for others to read ---- */

/* The descriptor is for who asks to hand on; a device that has none can be pinned all the same. */
static int do_pin(struct pool *pool, struct pool_command *cmd)
{
	int r = pool_is_dirty(pool) ? pool_commit_now(pool) : 0;

	if (!r)
		r = thin_metadata_pin(pool->tmd, cmd->superblock, &cmd->pin);
	if (r)
		return fail(cmd, r == -EIO ? r : -EBUSY, "the metadata cannot be read now: %s",
			    tp_error_words(r));
	r = io_device_share(pool->metadata, &cmd->fd);
	if (!r || r == -EOPNOTSUPP)
		return 0;
	(void)!thin_metadata_unpin(pool->tmd, cmd->pin);
	return fail(cmd, r, "\"%s\" cannot be opened again: %s", io_device_name(pool->metadata),
		    strerror(-r));
}

static int do_unpin(struct pool *pool, struct pool_command *cmd)
{
	if (thin_metadata_unpin(pool->tmd, cmd->pin))
		return 0;
	return fail(cmd, -EBUSY,
		    "the pool needed the space, or its metadata failed, while it was being read: "
		    "try again");
}

static int execute(struct pool *pool, struct pool_command *cmd)
{
	switch (cmd->op) {
	case POOL_CREATE:
		return do_create(pool, cmd);
	case POOL_SNAPSHOT:
		return do_snapshot(pool, cmd);
	case POOL_DELETE:
		return do_delete(pool, cmd);
	case POOL_RENAME:
		return do_rename(pool, cmd);
	case POOL_RESIZE:
		return do_resize(pool, cmd);
	case POOL_SET_READ_ONLY:
		return do_set_read_only(pool, cmd);
	case POOL_EXTEND:
		return do_extend(pool, cmd);
	case POOL_COMMIT:
		return do_commit(pool, cmd);
	case POOL_METADATA_SNAP_RESERVE:
		return do_metadata_snap_reserve(pool, cmd);
	case POOL_METADATA_SNAP_RELEASE:
		return do_metadata_snap_release(pool, cmd);
	case POOL_PIN:
		return do_pin(pool, cmd);
	case POOL_UNPIN:
		return do_unpin(pool, cmd);
	case POOL_TRIM:
		return trim_begin(pool, cmd);
	}
	return -EINVAL;
}

/* ---- the queue ---- */

void pool_answer_command(struct pool *pool, struct pool_command *cmd, int r)
{
	if (r == -EIO)
		(void)fail(cmd, r, "the metadata of the pool failed, the change was %s",
			   thin_metadata_commit_landed(pool->tmd) ? "made nevertheless"
								  : "taken back");
	if (r && cmd->fd >= 0) { /* pinned, and then the commit of others has failed */
		close(cmd->fd);
		cmd->fd = -1;
	}
	cmd->result = r;
	STAILQ_INSERT_TAIL(&pool->volumes->answers, cmd, link);
}

static void answer_all(struct pool *pool, struct command_list *list, int r)
{
	struct pool_command *cmd;

	while ((cmd = STAILQ_FIRST(list))) {
		STAILQ_REMOVE_HEAD(list, link);
		pool_answer_command(pool, cmd, r);
	}
}

static void take_commands(struct pool *pool, struct command_list *list)
{
	lock_pool(&pool->lock);
	STAILQ_CONCAT(list, &pool->commands);
	unlock_pool(&pool->lock);
}

/* Many commands share a transaction: it must not need more than there is. */
static void commit_if_low(struct pool *pool, struct command_list *waiting)
{
	if (pool_metadata_is_low(pool) && pool_is_dirty(pool))
		answer_all(pool, waiting, pool_commit_now(pool));
}

static void run_batch(struct pool *pool, struct command_list *todo)
{
	struct command_list waiting = STAILQ_HEAD_INITIALIZER(waiting);
	struct volume_table *t = pool->volumes;
	struct pool_command *cmd;
	int r = 0;

	while ((cmd = STAILQ_FIRST(todo))) {
		unsigned aborts;

		commit_if_low(pool, &waiting);
		aborts = t->aborts;
		STAILQ_REMOVE_HEAD(todo, link);
		r = execute(pool, cmd);
		if (r == -EINPROGRESS)
			continue; /* it is answered when it is done: pool_answer_command() */
		if (t->aborts != aborts) {
			answer_all(pool, &waiting, -EIO);
			r = -EIO;
		}
		if (r)
			pool_answer_command(pool, cmd, r);
		else
			STAILQ_INSERT_TAIL(&waiting, cmd, link);
	}
	if (STAILQ_EMPTY(&waiting))
		return;
	r = pool_check_writable(pool) == -EROFS ? 0 : pool_commit_now(pool);
	answer_all(pool, &waiting, r);
}

bool pool_run_commands(struct pool *pool)
{
	struct command_list todo = STAILQ_HEAD_INITIALIZER(todo);

	take_commands(pool, &todo);
	if (!STAILQ_EMPTY(&todo))
		run_batch(pool, &todo);
	return volumes_remove_slice(pool);
}

void pool_deliver_commands(struct pool *pool)
{
	struct command_list *answers = &pool->volumes->answers;
	struct pool_command *cmd;

	volumes_deliver_events(pool);
	while ((cmd = STAILQ_FIRST(answers))) {
		STAILQ_REMOVE_HEAD(answers, link);
		cmd->done(cmd, cmd->result);
	}
}

void pool_command_submit(struct pool *pool, struct pool_command *cmd)
{
	cmd->error.text[0] = '\0';
	cmd->fd = -1;
	lock_pool(&pool->lock);
	STAILQ_INSERT_TAIL(&pool->commands, cmd, link);
	unlock_pool(&pool->lock);
	pool_wake_worker(pool);
}

/* ---- waiting for one ---- */

struct waiter {
	struct pool *pool;
	pthread_cond_t cond;
	bool done TP_GUARDED_BY(lc_pool);
	int result TP_GUARDED_BY(lc_pool);
};

/* The command's opaque pointer leads back to who waits. */
static void wake_waiter(struct pool_command *cmd, int r)
{
	struct waiter *w = cmd->waiter;

	lock_pool(&w->pool->lock);
	w->result = r;
	w->done = true;
	pthread_cond_signal(&w->cond);
	unlock_pool(&w->pool->lock);
}

int pool_command_run(struct pool *pool, struct pool_command *cmd)
{
	struct waiter w = { .pool = pool };
	int r;

	tp_cond_init(&w.cond);
	cmd->done = wake_waiter;
	cmd->waiter = &w;
	tp_lock_may_wait(LC_completion);
	pool_command_submit(pool, cmd);
	lock_pool(&pool->lock);
	while (!w.done)
		tp_lock_wait(&pool->lock, &w.cond);
	r = w.result;
	unlock_pool(&pool->lock);
	pthread_cond_destroy(&w.cond);
	return r;
}
