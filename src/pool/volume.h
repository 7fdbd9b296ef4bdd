/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * volume.h - the table of volumes, as the files of the volume half see it
 *
 * volume.c keeps the table, volume-load.c fills it at open, volume-commit.c follows the
 * transactions, volume-remove.c takes unlinked volumes away, command.c makes changes.
 *
 * Layer:    pool; the volume half, private to it.
 * Threads:  the worker changes, others read.
 * Units:    bytes for sizes, data blocks where a name says so.
 * Errors:   0 or a negative errno.
 *
 * Locks: the worker is the only one who changes anything here, and it does so with
 *        LC_catalog held exclusively; so the worker reads without it, others with it held
 *        shared.  Atomic fields say for themselves who changes them.
 */
#ifndef TP_POOL_VOLUME_H
#define TP_POOL_VOLUME_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "catalog/catalog.h"
#include "pool/pool.h"
#include "thinpoold/types.h"
#include "util/compiler.h"
#include "util/error.h"
#include "util/lock-class.h"

struct queued_event;

/*
 *            found by   device
 * LIVE       name, id   yes
 * UNLINKED   id         yes     waits until nobody has it open or refers to it
 * REMOVING   -          yes     its mappings are being removed, slice by slice
 * DELETED    -          no      waits for the commit that makes this durable
 * GONE       -          no      its creation was rolled back; waits for the last reference
 */
enum volume_state {
	VOLUME_LIVE,
	VOLUME_UNLINKED,
	VOLUME_REMOVING,
	VOLUME_DELETED,
	VOLUME_GONE,
};

/* The volume half's part of struct volume. */
struct volume_entry {
	enum volume_state state;
	atomic_uint refs;       /* one is the table's; any thread */
	atomic_uint open_count; /* any thread */
	uint32_t generation;

	/*
	 * What the catalog record says, or would say.  The size of @now is only right in the
	 * making of a record: volume->size_bytes is the size.  @committed is what an abort
	 * goes back to.
	 */
	struct catalog_record now, committed;
	atomic_bool
		is_committed; /* the device exists in the committed state; see volume_is_seen() */
	bool has_record;      /* a good one; else name and size are made up */
	bool touched;         /* on table->touched: @now and @committed may differ */
	vblock_t remove_next; /* REMOVING: go on here */

	TAILQ_ENTRY(volume) all_link;
	LIST_ENTRY(volume) name_link;   /* LIVE: its bucket */
	TAILQ_ENTRY(volume) state_link; /* all states but LIVE: table->states[] */
	STAILQ_ENTRY(volume) touched_link;
};

#define VOLUME_PAGE_BITS 12
#define VOLUME_PAGE_SIZE (1u << VOLUME_PAGE_BITS)
#define VOLUME_NR_PAGES ((THIN_ID_MAX + 1) >> VOLUME_PAGE_BITS)
#define VOLUME_NR_STATES (VOLUME_GONE + 1)
#define VOLUMES_MAX (1u << 20) /* a pool's memory has a limit; about 1.5 KiB each */

LIST_HEAD(volume_bucket, volume);
TAILQ_HEAD(volume_list, volume);
STAILQ_HEAD(volume_touched, volume);
STAILQ_HEAD(command_list, pool_command);
STAILQ_HEAD(queued_events, queued_event);

struct volume_table {
	struct volume **pages[VOLUME_NR_PAGES]; /* by id; LIVE and UNLINKED */
	uint64_t *used_ids;                     /* a bit each: also the other states, the catalog */
	thin_id_t lowest_free;                  /* no smaller id >= 1 is free */
	struct volume_bucket *buckets;
	uint32_t nr_buckets; /* a power of two */
	uint32_t nr_named, nr_volumes;

	struct volume_list all;
	struct volume_list states[VOLUME_NR_STATES]; /* [VOLUME_LIVE] is not used */
	struct volume_touched touched;

	thin_id_t *orphans; /* records without a device, to be erased */
	size_t nr_orphans;

	struct queued_events events; /* to be told when no lock is held */
	struct command_list answers; /* commands that are done */

	atomic_uint nr_leaving; /* volumes UNLINKED or GONE: their last user has to tell */
	atomic_bool look;       /* one of them may be without users now */
	unsigned aborts;        /* transactions thrown away; worker only */
};

/* ---- volume.c ---- */

int volume_table_create(struct volume_table **ret_table) TP_TAKES(meta_root) TP_MUST_CHECK;
/* Frees volumes too; nobody refers to them.  NULL is allowed.  Returns NULL. */
struct volume_table *volume_table_destroy(struct volume_table *t) TP_TAKES(meta_root);

/*
 * A volume for device @rec->id, which exists: opened, but not in the table yet.  The rest of
 * @rec is its record.
 */
int volume_new(struct pool *pool, const struct catalog_record *rec, struct volume **ret_v)
	TP_TAKES(pool) TP_MUST_CHECK;
/* Neither in the table nor referenced.  NULL is allowed.  Returns NULL. */
struct volume *volume_free(struct volume *v) TP_TAKES(meta_root);

/* Mark the id used and have room for its volume, so that volume_insert() cannot fail. */
int volume_reserve_id(struct volume_table *t, thin_id_t id) TP_REQUIRES(lc_catalog) TP_MUST_CHECK;
void volume_release_id(struct volume_table *t, thin_id_t id) TP_REQUIRES(lc_catalog);

/* Enter a new volume, whose id is reserved, as LIVE under @name or, if that is NULL, UNLINKED. */
void volume_insert(struct pool *pool, struct volume *v, const char *name) TP_REQUIRES(lc_catalog);
/* Take it out of all lists and release its id.  The caller frees it. */
void volume_erase(struct pool *pool, struct volume *v) TP_REQUIRES(lc_catalog);

/* Move to another state; name (for LIVE: that of the record) and id are entered or removed. */
void volume_set_state(struct pool *pool, struct volume *v, enum volume_state state)
	TP_REQUIRES(lc_catalog);
/* LIVE: give it another name, which is free. */
void volume_set_name(struct pool *pool, struct volume *v, const char *name) TP_REQUIRES(lc_catalog);

/* @v's record will differ from the committed one. */
void volume_touch(struct volume *v);
/* What is to be put into the catalog for @v as it is now. */
void volume_make_record(const struct volume *v, struct catalog_record *ret_rec);

/* Without a reference; the worker needs no lock.  NULL: none. */
struct volume *volume_lookup_name(const struct volume_table *t, const char *name);
struct volume *volume_lookup_id(const struct volume_table *t, thin_id_t id);

/* The smallest id >= 1 that nothing uses.  -ENOSPC: none, or too many volumes. */
int volume_find_free_id(struct volume_table *t, thin_id_t *ret_id) TP_MUST_CHECK;
bool volume_id_is_used(const struct volume_table *t, thin_id_t id);

/* Nobody has it open or refers to it, and nobody can any more once it is out of the table. */
bool volume_is_idle(const struct volume *v) TP_REQUIRES(lc_catalog);

/* From what is stored of a volume's creation, so that it is the same after a restart. */
uint32_t volume_make_generation(uint64_t created);

/* ---- volume-commit.c ---- */

/* Tell front ends, by and by: volumes_deliver_events(), with no lock held. */
void volumes_queue_event(struct pool *pool, enum pool_event_kind kind, thin_id_t id,
			 const char *name);
void volumes_deliver_events(struct pool *pool) TP_TAKES(fuse);
void volumes_drop_events(struct volume_table *t);

/* ---- volume-remove.c ---- */

/*
 * Delete the device of an idle volume that is in no table any more, in the open transaction.
 * -EIO: the metadata has failed.
 */
int volume_delete_device(struct pool *pool, struct volume *v) TP_TAKES(throttle) TP_MUST_CHECK;

/* A slice of the removal of unlinked volumes.  Is there more to do? */
bool volumes_remove_slice(struct pool *pool) TP_TAKES(throttle) TP_MUST_CHECK;

/*
 * See to it that the catalog can take changes of the records of @ids in the open transaction,
 * with a commit if need be.  -ENOSPC: it cannot.  -EIO: the commit has failed.
 */
int volumes_make_room(struct pool *pool, const thin_id_t *ids, unsigned nr)
	TP_TAKES(throttle) TP_MUST_CHECK;

#endif
