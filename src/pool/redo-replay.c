/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * redo-replay.c - what goes into the redo area, and what the next process does with it
 *
 * Recorded is what a client may have been told of and would lose with the open transaction: blocks
 * mapped, blocks unmapped for clients, volumes that grew.  Commands are answered after their
 * commit, and a volume is not to be found before it, so they need no records; what a command
 * does to mappings on the way (a cut, a removal) is left out too.  That is in order because no
 * data block that the transaction freed is used again in it: whichever of its changes are made
 * again, each block has the content that it was mapped for.
 *
 * Replaying makes the changes in the open transaction, each data block at its place, through the
 * same calls as ever, and commits.  A record that cannot be (no such volume, a block that is
 * taken) means that the area is not what it seems: all of it is refused then, the pool opens as it
 * was committed, and every volume has lost writes, as after an abort: whoever goes on using it
 * is told when he flushes.
 *
 * What an abort takes back is noted here too (REDO_LOST), so that the next process tells those whom
 * this one has not told; it cannot know who had been.
 *
 * Worker only; pool_redo_open() and _close() by who opens and closes the pool.
 */
#define LOG_MODULE "redo"
#include "pool/redo.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pool/request.h"
#include "pool/volume.h"
#include "util/log.h"

#define UNMAP_SLICE 1024 /* mappings removed by one call, which holds meta_root */

/* ------------------------------------------------------------------ appending */

int pool_redo_make_room(struct pool *pool)
{
	if (likely(!pool->redo || redo_has_room(pool->redo)))
		return 0;
	return pool_commit_now(pool);
}

static void append(struct pool *pool, const struct redo_record *record)
{
	if (pool->redo)
		redo_append(pool->redo, record);
}

void pool_redo_insert(const struct volume *v, vblock_t vblock, dblock_t dblock, uint64_t nr_blocks)
{
	append(v->pool, &(struct redo_record){ .type = REDO_INSERT,
					       .volume = v->id,
					       .vblock = vblock,
					       .nr = nr_blocks,
					       .dblock = dblock });
}

void pool_redo_unmap(const struct volume *v, vblock_t begin, vblock_t end)
{
	append(v->pool,
	       &(struct redo_record){
		       .type = REDO_UNMAP, .volume = v->id, .vblock = begin, .nr = end - begin });
}

void pool_redo_size(const struct volume *v)
{
	append(v->pool, &(struct redo_record){
				.type = REDO_SIZE, .volume = v->id, .bytes = volume_size(v) });
}

/* What no commit makes durable: losses, and sizes that come with the next one. */
static void append_of_volumes(struct pool *pool)
{
	bool any_lost = false;
	struct volume *v;

	TAILQ_FOREACH(v, &pool->volumes->all, entry.all_link) {
		if (atomic_load(&v->size_dirty))
			pool_redo_size(v);
		if (atomic_load(&v->lost_writes)) {
			append(pool, &(struct redo_record){ .type = REDO_LOST, .volume = v->id });
			any_lost = true;
		}
	}
	pool->redo_any_lost = any_lost;
}

/* Records so far are of the state that the superblock to come replaces. */
static void begin_half(void *ctx, const void *state)
{
	struct pool *pool = ctx;

	redo_begin(pool->redo, state);
	if (pool->redo_carries_sizes || pool->redo_any_lost)
		append_of_volumes(pool);
}

/* Of the state that is committed now. */
static void begin_anew(struct pool *pool) TP_TAKES(meta_root)
{
	void *state = malloc(THIN_STATE_BYTES);

	if (!state) {
		redo_spoil(pool->redo);
		return;
	}
	thin_metadata_get_state(pool->tmd, state);
	begin_half(pool, state);
	free(state);
}

void pool_redo_aborted(struct pool *pool)
{
	if (!pool->redo)
		return;
	pool->redo_any_lost = true;
	begin_anew(pool);
}

/* ------------------------------------------------------------------ replaying */

static const char *const impossible = "it cannot be";

static int refuse(const struct redo_record *record, const char *why)
{
	log_err("record of kind %u for volume %" PRIu32 " at block %" PRIu64 ": %s", record->type,
		record->volume, record->vblock, why);
	return -EUCLEAN;
}

static bool range_is_possible(const struct pool *pool, const struct redo_record *record)
{
	uint64_t max = pool->max_bytes / pool->block_size;

	return record->nr && record->vblock < max && record->nr <= max - record->vblock;
}

static int replay_insert(struct pool *pool, struct volume *v, const struct redo_record *record,
			 dblock_t nr_data_blocks)
{
	int r;

	if (!range_is_possible(pool, record) || record->dblock >= nr_data_blocks ||
	    record->nr > nr_data_blocks - record->dblock)
		return refuse(record, impossible);
	r = thin_metadata_reserve_data_blocks(pool->tmd, record->dblock,
					      record->dblock + record->nr);
	if (r == -EINVAL)
		return refuse(record, "its data block is in use");
	for (uint64_t i = 0; !r && i < record->nr; i++)
		r = thin_insert_block(v->td, record->vblock + i, record->dblock + i);
	return r ? pool_metadata_failed(pool, "map a block again", r) : 0;
}

static int replay_unmap(struct pool *pool, struct volume *v, const struct redo_record *record)
{
	vblock_t next = record->vblock, end = record->vblock + record->nr;
	int r = 0;

	if (!range_is_possible(pool, record))
		return refuse(record, impossible);
	while (!r && next < end)
		r = thin_remove_range(v->td, next, end, UNMAP_SLICE, &next);
	return r ? pool_metadata_failed(pool, "unmap a range again", r) : 0;
}

static int replay_size(struct pool *pool, struct volume *v, const struct redo_record *record)
{
	if (!pool->catalog || record->bytes > pool->max_bytes)
		return refuse(record, impossible);
	if (record->bytes > volume_size(v)) {
		atomic_store(&v->size_bytes, record->bytes);
		atomic_store(&v->size_uncommitted, true);
		atomic_store(&v->size_dirty, true);
		atomic_store(&pool->sizes_dirty, true);
	}
	return 0;
}

static int replay_record(struct pool *pool, const struct redo_record *record,
			 dblock_t nr_data_blocks)
{
	struct volume *v = volume_lookup_id(pool->volumes, record->volume);

	if (!v)
		return refuse(record, "there is no such volume");
	switch (record->type) {
	case REDO_LOST:
		volume_lose_writes(v);
		return 0;
	case REDO_INSERT:
		return replay_insert(pool, v, record, nr_data_blocks);
	case REDO_UNMAP:
		return replay_unmap(pool, v, record);
	case REDO_SIZE:
		return replay_size(pool, v, record);
	}
	return refuse(record, impossible);
}

/* As pool_commit_now(), for nobody waits for it, and there is no worker yet. */
static int commit_replayed(struct pool *pool)
{
	int r = volumes_before_commit(pool);

	if (!r)
		r = thin_metadata_commit(pool->tmd);
	if (r)
		return pool_metadata_failed(pool, "commit what was done again", r);
	stats_add(pool->stats, pool->worker, STAT_COMMITS, 1);
	passdown_collect(pool);
	volumes_after_commit(pool);
	return 0;
}

/*
 * -EUCLEAN: the area is not what it seems, and nothing was committed.  -EIO: the metadata is not,
 * and the pool is read-only now, as when that happens in service.
 */
static int replay(struct pool *pool, uint64_t nr)
{
	struct thin_metadata_info info;
	struct redo_record record;
	int r = thin_metadata_get_info(pool->tmd, &info);

	for (uint64_t i = 0; !r && i < nr; i++) {
		r = redo_get(pool->redo, i, &record);
		/* Whose pool was aborted is not written to any more. */
		if (!r && record.type != REDO_LOST)
			r = pool_check_writable(pool) ? refuse(&record, "the pool is read-only")
						      : 0;
		if (!r)
			r = replay_record(pool, &record, info.nr_data_blocks);
	}
	if (!r && pool_is_dirty(pool)) {
		r = commit_replayed(pool);
		if (!r)
			log_info("what was acknowledged but not committed is done again, changes: "
				 "%" PRIu64,
				 nr);
	}
	return r;
}

/* Who was told of a write that is gone finds out when he flushes. */
static int lose_all(struct pool *pool)
{
	struct volume *v;
	int r = 0;

	tp_lock_assert_answers();
	if (!pool_check_writable(pool) && pool_is_dirty(pool)) {
		r = thin_metadata_abort(pool->tmd);
		volumes_after_abort(pool);
	}
	TAILQ_FOREACH(v, &pool->volumes->all, entry.all_link) {
		volumes_queue_event(pool, POOL_EVENT_VOLUME_CONTENT, v->id, v->entry.now.name);
		volume_lose_writes(v);
	}
	return r;
}

/* What was found, but for records that are good, and what comes of it. */
static int deal_with(struct pool *pool, enum redo_finding finding)
{
	const char *why = "is damaged";

	switch (finding) {
	case REDO_BLANK:
	case REDO_OLD:
	case REDO_GOOD:
		return 0;
	case REDO_ALIEN:
		log_warn("the redo area is of another boot or another pool, it is not used");
		return 0;
	case REDO_ORPHAN:
		why = "does not fit the pool, which was changed by somebody else since";
		break;
	case REDO_DAMAGED:
		break;
	}
	log_err("the redo area %s: what was acknowledged but not committed is lost, who has a "
		"volume "
		"open is told when he flushes",
		why);
	return lose_all(pool);
}

/* ------------------------------------------------------------------ life */

static int look_and_replay(struct pool *pool) TP_TAKES(throttle)
{
	void *state = malloc(THIN_STATE_BYTES);
	enum redo_finding finding;
	uint64_t nr;
	int r;

	if (!state)
		return -ENOMEM;
	thin_metadata_get_state(pool->tmd, state);
	finding = redo_look(pool->redo, state, &nr);
	free(state);
	r = finding == REDO_GOOD ? replay(pool, nr) : 0;
	if (r == -EUCLEAN)
		finding = REDO_DAMAGED;
	return deal_with(pool, finding);
}

int pool_redo_open(struct pool *pool, int fd)
{
	struct redo_owner owner;
	int r;

	redo_find_owner(&owner, io_device_name(pool->metadata), io_device_name(pool->data));
	r = redo_open(fd, &owner, &pool->redo);
	if (r) {
		log_warn("no redo area (%s): what is not committed is lost if the daemon dies",
			 strerror(-r));
		return 0;
	}
	thin_metadata_set_commit_hook(pool->tmd, begin_half, pool);
	tp_lock_hold_begin(pool->redo, LC_completion); /* as the worker, who aborts in service */
	r = look_and_replay(pool);
	tp_lock_hold_end(pool->redo, LC_completion);
	pool->redo_any_lost = true; /* is found out now */
	if (!r)
		begin_anew(pool);
	return r;
}

void pool_redo_close(struct pool *pool, bool committed)
{
	if (pool->redo && committed && !pool->redo_any_lost)
		redo_clear(pool->redo);
	pool->redo = redo_close(pool->redo);
}
