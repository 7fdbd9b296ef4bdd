/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-internal.h - the objects behind thin-metadata.h
 *
 *   thin-metadata.c   format, open, close, reopening for an abort
 *   thin-abort.c      abort
 *   thin-commit.c     commit, NEEDS_CHECK
 *   thin-device.c     device records and the details tree; create, snapshot, delete
 *   thin-mapping.c    lookups and walks
 *   thin-change.c     insert, swap, remove
 *   thin-space.c      data blocks, sizes, information
 *   metadata-snap.c   the metadata snapshot
 *
 * Layer:    thin; private to it.
 * Locks:    the functions below say which mode of meta_root they need.
 */
#ifndef TP_THIN_THIN_INTERNAL_H
#define TP_THIN_THIN_INTERNAL_H

#include <errno.h>
#include <stdatomic.h>
#include <sys/queue.h>

#include "io/io-queue.h"
#include "pdata/btree.h"
#include "pdata/space-map-disk.h"
#include "pdata/space-map-metadata.h"
#include "pdata/transaction-manager.h"
#include "thin/superblock.h"
#include "thin/thin-metadata.h"
#include "util/le.h"
#include "util/lock-class.h"

#define DEVICE_BUCKETS 256u

/* A device that is open, or was changed in the open transaction, or lost changes. */
struct thin_device {
	struct thin_metadata *tmd;
	thin_id_t id;
	LIST_ENTRY(thin_device) link TP_GUARDED_BY(lc_meta_root);
	unsigned open_count TP_GUARDED_BY(lc_meta_root);
	/* Was created in a transaction that was thrown away: every call says -ENODATA. */
	bool gone TP_GUARDED_BY(lc_meta_root);
	/* The numbers here are newer than the details tree. */
	bool dirty TP_GUARDED_BY(lc_meta_root);
	uint64_t transaction_id TP_GUARDED_BY(lc_meta_root);
	uint32_t snapshotted_time TP_GUARDED_BY(lc_meta_root);
	/*
	 * Root of the device's own tree, 0 when it must be looked up in the top tree.  Set by
	 * readers (all of them find the same), cleared by each change of the device.
	 */
	_Atomic mblock_t root;
	/* Read without a lock, written with meta_root held exclusively. */
	_Atomic uint64_t mapped_blocks;
	_Atomic uint32_t creation_time;
	/* Mappings differ from the committed ones; and: such differences were thrown away. */
	atomic_bool changed, aborted_changes;
};

LIST_HEAD(device_bucket, thin_device);

struct thin_metadata {
	/* The superblock as it lies on disk; and room to read or prepare one without allocating. */
	_Alignas(METADATA_BLOCK_SIZE) struct thin_disk_superblock committed;
	_Alignas(METADATA_BLOCK_SIZE) struct thin_disk_superblock scratch;
	/* What a commit has begun to write, while it is not known whether it got there. */
	_Alignas(METADATA_BLOCK_SIZE) struct thin_disk_superblock published;

	struct io_device *dev, *data; /* the caller's; @data may be NULL */
	struct block_manager *bm;     /* made at open, destroyed at close, never replaced */
	uint32_t data_block_sectors;
	bool opened_read_only;
	/* The mutator's: who is told of a state before it is committed, and the copy for him. */
	void (*commit_hook)(void *ctx, const void *state);
	void *commit_hook_ctx;
	struct thin_disk_superblock announced;

	struct tp_lock lock; /* class meta_root: all that follows */

	/* NULL after a failed abort. */
	struct space_map *metadata_sm TP_GUARDED_BY(lc_meta_root);
	struct space_map *data_sm TP_GUARDED_BY(lc_meta_root);
	struct transaction_manager *tm TP_GUARDED_BY(lc_meta_root);

	struct btree_info top_info TP_GUARDED_BY(lc_meta_root);     /* id -> root of its tree */
	struct btree_info device_info TP_GUARDED_BY(lc_meta_root);  /* vblock -> mapping */
	struct btree_info mapping_info TP_GUARDED_BY(lc_meta_root); /* both levels in one */
	struct btree_info details_info TP_GUARDED_BY(lc_meta_root); /* id -> details */

	/* The open transaction's view; equal to @committed when nothing has changed. */
	mblock_t root TP_GUARDED_BY(lc_meta_root);
	mblock_t details_root TP_GUARDED_BY(lc_meta_root);
	uint32_t time TP_GUARDED_BY(lc_meta_root);
	uint64_t trans_id TP_GUARDED_BY(lc_meta_root);
	mblock_t held_root TP_GUARDED_BY(lc_meta_root); /* 0: no metadata snapshot */
	/* Sizes in blocks, as committed and with what this transaction adds. */
	dblock_t nr_data_blocks TP_GUARDED_BY(lc_meta_root);
	dblock_t grown_data_blocks TP_GUARDED_BY(lc_meta_root);
	mblock_t nr_metadata_blocks TP_GUARDED_BY(lc_meta_root);
	mblock_t grown_metadata_blocks TP_GUARDED_BY(lc_meta_root);

	uint32_t nr_reopened TP_GUARDED_BY(lc_meta_root); /* pins of another map are lost */
	bool changed TP_GUARDED_BY(lc_meta_root);         /* a commit has something to write */
	bool must_abort TP_GUARDED_BY(lc_meta_root);      /* a change failed half-way */
	bool publishing TP_GUARDED_BY(lc_meta_root);      /* @published may be what is on disk */
	bool landed TP_GUARDED_BY(lc_meta_root);          /* the last abort found that it is */
	atomic_bool data_flush_failed;                    /* the last commit failed so */
	bool fail_io TP_GUARDED_BY(lc_meta_root);
	bool read_only TP_GUARDED_BY(lc_meta_root);

	struct device_bucket devices[DEVICE_BUCKETS] TP_GUARDED_BY(lc_meta_root);
};

/* ---- thin-metadata.c ---- */

/* May the open transaction be changed? */
static inline TP_MUST_CHECK int metadata_may_change(const struct thin_metadata *tmd)
	TP_REQUIRES_SHARED(lc_meta_root)
{
	if (tmd->fail_io)
		return -EINVAL;
	if (tmd->read_only || (le32_get(tmd->committed.flags) & THIN_NEEDS_CHECK_FLAG))
		return -EPERM;
	return tmd->must_abort ? -EINVAL : 0;
}

/* Every change is made between these two; a failed one can only be aborted. */
static inline void metadata_change_begin(struct thin_metadata *tmd) TP_REQUIRES(lc_meta_root)
{
	tmd->changed = true;
}

static inline int metadata_change_end(struct thin_metadata *tmd, int r) TP_REQUIRES(lc_meta_root)
{
	if (r)
		tmd->must_abort = true;
	return r;
}

/* Blocks kept back for commits and deletes. */
mblock_t metadata_reserve(const struct thin_metadata *tmd) TP_REQUIRES_SHARED(lc_meta_root);

/* Take over the scalars of @committed. */
void metadata_load_scalars(struct thin_metadata *tmd) TP_REQUIRES(lc_meta_root);

/* What one transaction needs; also takes half-built and no objects. */
void metadata_objects_destroy(struct thin_metadata *tmd) TP_REQUIRES(lc_meta_root);

/*
 * Read the committed state again, with an empty cache and no objects.  On failure there are
 * none either, and the metadata has failed (fail_io).
 */
int metadata_reopen(struct thin_metadata *tmd) TP_REQUIRES(lc_meta_root)
	TP_TAKES(bufio) TP_MUST_CHECK;

/* ---- data-flush.c ---- */

struct data_flush {
	struct io_request io;
	struct io_queue *queue; /* the calling thread's own */
	bool under_way;
	int result;
};

/* Covers what has been written to @data before.  @data NULL: over at once, with success. */
void data_flush_begin(struct data_flush *flush, struct io_device *data) TP_TAKES(bufio);
/* What it came to; may be asked more than once. */
int data_flush_wait(struct data_flush *flush) TP_TAKES(bufio) TP_MUST_CHECK;
/* Whoever has begun one ends it, so that nothing is in flight any more. */
void data_flush_end(struct data_flush *flush) TP_TAKES(bufio);

/* ---- thin-commit.c ---- */

/*
 * The part of a commit that needs no device records: space maps, flush, superblock, flush.
 * Takes and drops meta_root.  @flush has begun, and is waited for before the superblock is
 * written.  Success: the scalars are committed.
 */
int commit_to_disk(struct thin_metadata *tmd, struct data_flush *flush)
	TP_TAKES(meta_root) TP_MUST_CHECK;

/* ---- thin-device.c ---- */

static inline struct device_bucket *device_bucket(struct thin_metadata *tmd, thin_id_t id)
	TP_REQUIRES_SHARED(lc_meta_root)
{
	return &tmd->devices[id % DEVICE_BUCKETS];
}

/* Does @td still stand for a device? */
static inline TP_MUST_CHECK int device_is_alive(const struct thin_device *td)
	TP_REQUIRES_SHARED(lc_meta_root)
{
	if (td->tmd->fail_io)
		return -EINVAL;
	return td->gone ? -ENODATA : 0;
}

/* To be called before mappings of the device are changed. */
static inline void device_change_begin(struct thin_device *td) TP_REQUIRES(lc_meta_root)
{
	metadata_change_begin(td->tmd);
	td->dirty = true;
	atomic_store_explicit(&td->changed, true, memory_order_release);
}

/* Write the records of changed devices into the details tree. */
int devices_write_details(struct thin_metadata *tmd) TP_REQUIRES(lc_meta_root)
	TP_TAKES(bufio) TP_MUST_CHECK;
/* The transaction is durable: no record differs from the details tree. */
void devices_committed(struct thin_metadata *tmd) TP_REQUIRES(lc_meta_root);
/* In an abort, before the marks go: remember who loses changes. */
void devices_mark_aborted(struct thin_metadata *tmd) TP_REQUIRES(lc_meta_root);
/* After it: read the records again. */
int devices_reload(struct thin_metadata *tmd) TP_REQUIRES(lc_meta_root)
	TP_TAKES(bufio) TP_MUST_CHECK;
bool devices_any_open(struct thin_metadata *tmd) TP_REQUIRES(lc_meta_root);
void devices_free(struct thin_metadata *tmd) TP_REQUIRES(lc_meta_root);

/*
 * Root of device @id in the top tree; @td (may be NULL) caches it.  With @ret_missing no I/O
 * is done.  A device without a tree is -EUCLEAN if @td is given, else -ENODATA.
 */
int device_root(struct thin_metadata *tmd, struct thin_device *td, thin_id_t id, mblock_t *ret_root,
		mblock_t *ret_missing) TP_REQUIRES_SHARED(lc_meta_root)
	TP_TAKES(bufio) TP_MUST_CHECK;

/* ---- thin-mapping.c ---- */

static inline dblock_t mapping_dblock(struct le64 value)
{
	return le64_get(value) >> MAPPING_TIME_BITS;
}

static inline uint32_t mapping_time(struct le64 value)
{
	return (uint32_t)(le64_get(value) & THIN_MAX_TIME);
}

static inline struct le64 mapping_make(dblock_t dblock, uint32_t time)
{
	return le64_make(dblock << MAPPING_TIME_BITS | time);
}

/* How the trees count what their values refer to; called by pdata/ with meta_root held. */
extern const struct btree_value_type mapping_value_type, subtree_value_type;

#endif
