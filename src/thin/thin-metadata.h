/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-metadata.h - the metadata of one pool: volumes, mappings, transactions
 *
 * Layer:    thin; the only user of pdata/.
 * Threads:  queries from any thread.  Calls marked "mutator" come from one thread at
 *           a time (the pool worker; a tool's main thread): it is the only one, so
 *           nothing changes between two of its calls.
 * Locks:    every call takes meta_root itself: queries shared, mutators exclusively,
 *           and only while in-core structures change; the I/O of a commit runs with it
 *           shared, so that lookups go on meanwhile.
 * Units:    blocks as types.h names them; sizes in blocks unless they say bytes or sectors.
 * Errors:   0 or a negative errno:
 *             -ENODATA      no such device or mapping
 *             -EEXIST       the device id is taken
 *             -EWOULDBLOCK  would need I/O
 *             -ENOSPC       no free block (data or metadata)
 *             -EPERM        read-only, or NEEDS_CHECK is set
 *             -EINVAL       the metadata has failed (fail_io): only close is left; or a bad
 *                           argument, where a call says so; or a mutator before the abort
 *                           that an earlier error made necessary
 *             -EOVERFLOW    2^24 snapshots were taken: no further one
 *             -EILSEQ, -ENOTBLK, -EUCLEAN, -EIO  damage or a device error, logged where found
 *           After an error of a mutator, other than -EEXIST, -ENODATA, -EBUSY, -EPERM,
 *           -EOVERFLOW, a bad argument and data -ENOSPC (these have changed nothing), the only
 *           legal mutators are thin_metadata_abort() and _close(); commit refuses.
 */
#ifndef TP_THIN_THIN_METADATA_H
#define TP_THIN_THIN_METADATA_H

#include <stdbool.h>
#include <stdint.h>

#include "thinpoold/disk-format.h"
#include "thinpoold/types.h"
#include "util/compiler.h"
#include "util/error.h"
#include "util/lock-class.h"

struct io_device;
struct thin_metadata;
struct thin_device;

/* ---- life ---- */

/*
 * Write fresh metadata over @dev (its size decides how much is used): no devices, no
 * data blocks yet.  The caller has made sure that nothing of value is there.
 *   -EINVAL  @data_block_sectors is not a multiple of 128 in 128..2097152; device too small
 */
int thin_metadata_format(struct io_device *dev, uint32_t data_block_sectors,
			 struct tp_error *error) TP_EXCLUDES_ALL TP_MUST_CHECK;

/* All 4096 bytes of block 0 are zero (or it does not exist): nothing was ever formatted here. */
int thin_metadata_is_unformatted(struct io_device *dev, bool *ret_unformatted)
	TP_TAKES(bufio) TP_MUST_CHECK;

struct thin_metadata_options {
	uint64_t cache_bytes;
	bool read_only; /* never writes a byte */
	/* Flushed before each commit (L3).  Stays the caller's.  NULL for tools that write no data.
	 */
	struct io_device *data;
};

/*
 * @dev stays the caller's.  Refuses what the kernel would, and more;
 * @error says what and what to do about it.
 *   -ENODATA     not formatted
 *   -EILSEQ, -ENOTBLK, -EUCLEAN  no thin-pool metadata, or damaged
 *   -EOPNOTSUPP  made by something newer (feature flags, version)
 *   -EINVAL      the metadata or data device is smaller than it was
 */
int thin_metadata_open(struct io_device *dev, const struct thin_metadata_options *options,
		       struct thin_metadata **ret_tmd,
		       struct tp_error *error) TP_EXCLUDES_ALL TP_MUST_CHECK;

/*
 * Uncommitted changes are dropped: commit first.  -EBUSY (nothing done) while devices are
 * open.  NULL is allowed.
 */
int thin_metadata_close(struct thin_metadata *tmd) TP_EXCLUDES_ALL TP_MUST_CHECK;

/* ---- transactions (mutators) ---- */

/*
 * Data device flushed, then metadata, then the superblock; durable on return.  Does nothing
 * when nothing has changed.  On failure: abort.
 */
int thin_metadata_commit(struct thin_metadata *tmd) TP_TAKES(meta_root) TP_MUST_CHECK;

/* Is there anything a commit would write? */
bool thin_metadata_changed(struct thin_metadata *tmd) TP_TAKES(meta_root);

/*
 * Throw the open transaction away: in-core objects are destroyed, the same buffer cache is
 * reset in place, and everything (roots, clock, transaction id, counters of open devices) is
 * read again from the committed superblock.  Open devices stay open; one that had uncommitted
 * changes answers thin_device_aborted_changes() with true; one that does not exist in the
 * committed state answers every call with -ENODATA.  Never takes the shrinkers lock, for it is
 * called by who answers requests (LC_completion), perhaps with the throttle held.
 * On failure the metadata has failed (fail_io): every later call but close says -EINVAL.
 */
int thin_metadata_abort(struct thin_metadata *tmd) TP_REQUIRES(lc_completion)
	TP_TAKES(meta_root) TP_MUST_CHECK;

/*
 * After an abort: the commit that had failed before it is on the device after all (only the
 * flush of its superblock failed, say), so nothing was thrown away and no device lost anything.
 */
bool thin_metadata_commit_landed(struct thin_metadata *tmd) TP_TAKES(meta_root);

/*
 * Set NEEDS_CHECK in the committed superblock and make that durable at once.  For after an
 * abort: also when the metadata was made read-only since, so that it can be tried again, but
 * not (-EPERM) when it was opened so.  A failure leaves nothing to be written later.
 */
int thin_metadata_set_needs_check(struct thin_metadata *tmd) TP_TAKES(meta_root) TP_MUST_CHECK;

/*
 * Take NEEDS_CHECK out of the superblock of a device that nobody uses, and make that durable.
 * The caller has just found the metadata right (thin_check()).  A flag that is not set is no error.
 */
int thin_metadata_clear_needs_check(struct io_device *dev, struct tp_error *error)
	TP_TAKES(bufio) TP_MUST_CHECK;

/*
 * What a call that returned @r (negative) ran into, for a person: with the number of the metadata
 * block, if one was to blame.  To be asked soon after.
 */
void thin_metadata_describe_failure(struct thin_metadata *tmd, int r, char *text, size_t size);

/* In the last commit the data device could not be flushed; *@ret_alone: and nothing else failed. */
bool thin_metadata_data_flush_failed(struct thin_metadata *tmd, bool *ret_alone);

/*
 * What tells one committed state from the next: a copy of the superblock, without its flags and
 * checksum.  Two that follow each other differ if a mapping or a device does.
 */
#define THIN_STATE_BYTES METADATA_BLOCK_SIZE
void thin_metadata_get_state(struct thin_metadata *tmd, void *ret_state) TP_TAKES(meta_root);

/*
 * From now on each commit calls @fn with the state that it is about to make durable: all of it
 * is on the device, but the superblock still says the one before.  Called by the mutator with
 * no lock held; may not call mutators.  NULL: nobody.
 */
void thin_metadata_set_commit_hook(struct thin_metadata *tmd,
				   void (*fn)(void *ctx, const void *state), void *ctx);

/* No change and no write from now on (-EPERM). */
void thin_metadata_set_read_only(struct thin_metadata *tmd) TP_TAKES(meta_root);

/* ---- devices (mutators) ---- */

/* Ids above THIN_ID_MAX are -EINVAL. */
int thin_metadata_create_thin(struct thin_metadata *tmd, thin_id_t id)
	TP_TAKES(meta_root) TP_MUST_CHECK;
/* The caller has quiesced the origin's I/O.  -ENODATA: no such origin. */
int thin_metadata_create_snap(struct thin_metadata *tmd, thin_id_t id, thin_id_t origin)
	TP_TAKES(meta_root) TP_MUST_CHECK;
/* -EBUSY: open. */
int thin_metadata_delete_thin(struct thin_metadata *tmd, thin_id_t id)
	TP_TAKES(meta_root) TP_MUST_CHECK;

/* Compare and swap.  -EINVAL: the current one is not @old; nothing is changed. */
int thin_metadata_set_transaction_id(struct thin_metadata *tmd, uint64_t old, uint64_t new)
	TP_TAKES(meta_root) TP_MUST_CHECK;

/*
 * Grow to @nr_blocks; takes effect at the commit.  -EINVAL: smaller than now, or larger than
 * the data device or 2^40 blocks; nothing is changed.
 */
int thin_metadata_resize_data(struct thin_metadata *tmd, dblock_t nr_blocks)
	TP_TAKES(meta_root) TP_MUST_CHECK;
/* Use the metadata device up to its present size. */
int thin_metadata_resize_metadata(struct thin_metadata *tmd) TP_TAKES(meta_root) TP_MUST_CHECK;

/*
 * Keep a copy of the state as it is now for tools (thin_dump -m, thin_delta) to read while the
 * pool runs; at most one.  Commits first; the copy is published by the commit that follows.
 *   -EBUSY  there is one
 */
int thin_metadata_reserve_snap(struct thin_metadata *tmd) TP_TAKES(meta_root) TP_MUST_CHECK;
/* Give it up; effective with the commit that follows.  -ENODATA: there is none. */
int thin_metadata_release_snap(struct thin_metadata *tmd) TP_TAKES(meta_root) TP_MUST_CHECK;

/*
 * Keep the committed state readable for somebody who reads the metadata device itself, as long as
 * he has the pin: what it uses is not overwritten, but for the superblock, of which
 * @ret_superblock (THIN_STATE_BYTES) is a copy as it should be on disk.  In memory only; lost by
 * an abort, and when memory or metadata space is short.
 *   -EBUSY   something has changed: commit first
 */
int thin_metadata_pin(struct thin_metadata *tmd, void *ret_superblock, uint64_t *ret_pin)
	TP_TAKES(meta_root) TP_MUST_CHECK;
/* False: it was lost, what was read since may be anything. */
bool thin_metadata_unpin(struct thin_metadata *tmd, uint64_t pin) TP_TAKES(meta_root) TP_MUST_CHECK;
/* Give up all pins, if they keep any block from being used.  Returns whether. */
bool thin_metadata_drop_pins(struct thin_metadata *tmd) TP_TAKES(meta_root);

/* ---- queries ---- */

/*
 * Does neither tree of devices know @id?  0, -EEXIST, or -EUCLEAN: it has mappings and no details,
 * so it can be neither opened nor created.
 */
int thin_metadata_check_free_id(struct thin_metadata *tmd, thin_id_t id)
	TP_TAKES(meta_root) TP_MUST_CHECK;

struct thin_metadata_info {
	uint32_t data_block_sectors;
	uint64_t transaction_id;
	uint32_t time;
	bool needs_check, failed, read_only;
	mblock_t held_root;                            /* 0: no metadata snapshot */
	dblock_t nr_data_blocks, nr_data_free;         /* free: can be allocated now */
	mblock_t nr_metadata_blocks, nr_metadata_free; /* free: without the reserve */
	mblock_t metadata_reserve;                     /* kept back for commits */
};
/* When the metadata has failed: 0 with @failed set and all counts zero. */
int thin_metadata_get_info(struct thin_metadata *tmd, struct thin_metadata_info *ret_info)
	TP_TAKES(meta_root) TP_MUST_CHECK;

/* Any thread; shrinks by and by. */
void thin_metadata_set_cache_limit(struct thin_metadata *tmd, uint64_t bytes) TP_TAKES(bufio);

void thin_metadata_get_cache_stats(struct thin_metadata *tmd, struct cache_stats *ret_stats);

/*
 * Devices in order of id, as they are in the open transaction: call @fn for each until it
 * returns non-zero, and return that.  @fn is called with no lock held and may call back.
 */
struct thin_device_details {
	thin_id_t id;
	uint64_t mapped_blocks, transaction_id;
	uint32_t creation_time, snapshotted_time;
};
int thin_metadata_for_each_device(struct thin_metadata *tmd,
				  int (*fn)(void *ctx, const struct thin_device_details *d),
				  void *ctx) TP_TAKES(meta_root) TP_MUST_CHECK;

/* Mappings of a device in order, as maximal runs; the same rules.  For tools and tests. */
struct thin_mapping {
	vblock_t vblock;
	dblock_t dblock;
	uint64_t nr_blocks;
	uint32_t time;
};
int thin_metadata_for_each_mapping(struct thin_metadata *tmd, thin_id_t id,
				   int (*fn)(void *ctx, const struct thin_mapping *m), void *ctx)
	TP_TAKES(meta_root) TP_MUST_CHECK;

/* ---- data blocks (mutators) ---- */

/*
 * A free data block, kept out of further allocation in memory only: on disk it stays free
 * until thin_insert_block() gives it a user.  -ENOSPC: commit and ask again, then it is full.
 */
int thin_metadata_reserve_data_block(struct thin_metadata *tmd, dblock_t *ret_block)
	TP_TAKES(meta_root) TP_MUST_CHECK;
/* Reserve the blocks [begin, end), all of them free.  -EINVAL: one is not; nothing is changed. */
int thin_metadata_reserve_data_blocks(struct thin_metadata *tmd, dblock_t begin, dblock_t end)
	TP_TAKES(meta_root) TP_MUST_CHECK;
/* Give reserved blocks back: a first write that failed, or a punch that is done. */
void thin_metadata_unreserve_data_blocks(struct thin_metadata *tmd, dblock_t begin, dblock_t end)
	TP_TAKES(meta_root);

/*
 * Reserve the next run of free data blocks from @from on, @max_blocks at most.  -ENODATA: there
 * is none.
 */
int thin_metadata_reserve_free_run(struct thin_metadata *tmd, dblock_t from, uint64_t max_blocks,
				   dblock_t *ret_begin, dblock_t *ret_end)
	TP_TAKES(meta_root) TP_MUST_CHECK;

/*
 * After a successful commit: the runs of data blocks that it made free.  Each is reserved
 * (nobody can allocate it) and handed to @fn, which sees to it that thin_metadata_
 * unreserve_data_blocks() is called when the discard has been passed down.  @fn may not
 * call back into this module.  Without @fn the runs are forgotten and stay allocatable.
 */
void thin_metadata_take_freed(struct thin_metadata *tmd,
			      void (*fn)(void *ctx, dblock_t begin, dblock_t end), void *ctx)
	TP_TAKES(meta_root);

/*
 * Do more leaves than one refer to the block?  A leaf that a snapshot shares counts once, so
 * false does not allow to write in place to what thin_run.shared says is shared.
 */
int thin_metadata_data_block_is_shared(struct thin_metadata *tmd, dblock_t block, bool *ret_shared)
	TP_TAKES(meta_root) TP_MUST_CHECK;

/* ---- one device ---- */

int thin_device_open(struct thin_metadata *tmd, thin_id_t id, struct thin_device **ret_td)
	TP_TAKES(meta_root) TP_MUST_CHECK;
/* NULL is allowed.  Returns NULL. */
struct thin_device *thin_device_close(struct thin_device *td) TP_TAKES(meta_root);

thin_id_t thin_device_id(const struct thin_device *td);

/* What one stretch of a device is: a hole, or data blocks that follow each other. */
struct thin_run {
	bool mapped;
	bool shared; /* mapped: a snapshot may refer to it too: do not write in place */
	dblock_t dblock;
	uint64_t nr_blocks; /* >= 1 */
};

/*
 * The longest run at @vblock that can be told from one leaf, at most @max_blocks.
 * thin_find_run() sleeps for I/O.  thin_try_find_run() neither sleeps for I/O nor for
 * meta_root: -EWOULDBLOCK with *@ret_missing the metadata block to read, or, if meta_root
 * was busy, with *@ret_missing == MBLOCK_NONE.
 */
#define MBLOCK_NONE UINT64_MAX
int thin_find_run(struct thin_device *td, vblock_t vblock, uint64_t max_blocks,
		  struct thin_run *ret_run) TP_TAKES(meta_root) TP_MUST_CHECK;
int thin_try_find_run(struct thin_device *td, vblock_t vblock, uint64_t max_blocks,
		      struct thin_run *ret_run, mblock_t *ret_missing)
	TP_TAKES(bufio) TP_MUST_CHECK;

/*
 * Start reading a missing block through the calling thread's io_queue.  -EINPROGRESS: @w is
 * called when it is there or failed: look up again, or if @result says that it failed, defer
 * to a thread that may sleep in thin_find_run().  0: look up again at once (the block is there
 * already, or meta_root was busy).
 */
struct thin_waiter {
	void (*done)(struct thin_waiter *w); /* any thread, no lock held */
	int result;                          /* 0, -EAGAIN (reset away: look up again), -errno */
	uintptr_t opaque[8];                 /* private to thin/ */
};
int thin_metadata_prefetch(struct thin_metadata *tmd, mblock_t missing, struct thin_waiter *w)
	TP_TAKES(bufio) TP_MUST_CHECK;

/* Mutators.  @dblock is reserved; it is counted and no longer reserved afterwards. */
int thin_insert_block(struct thin_device *td, vblock_t vblock, dblock_t dblock)
	TP_TAKES(meta_root) TP_MUST_CHECK;

/*
 * Exchange the data blocks of two mapped vblocks of one device: no block is needed or freed.
 * -ENODATA: one of them is not mapped; nothing is changed.
 */
int thin_swap_blocks(struct thin_device *td, vblock_t a, vblock_t b)
	TP_TAKES(meta_root) TP_MUST_CHECK;

/*
 * Unmap [begin, end), at most about @max_blocks mapped blocks of it (a leaf's worth at least),
 * so that a huge range can be taken in slices.  *@ret_next: go on here; == @end when all is done.
 */
int thin_remove_range(struct thin_device *td, vblock_t begin, vblock_t end, uint64_t max_blocks,
		      vblock_t *ret_next) TP_TAKES(meta_root) TP_MUST_CHECK;

uint64_t thin_device_mapped_blocks(const struct thin_device *td); /* lock-free */
uint32_t thin_device_creation_time(const struct thin_device *td);
/* -ENODATA: nothing is mapped. */
int thin_device_highest_mapped(struct thin_device *td, vblock_t *ret_vblock)
	TP_TAKES(meta_root) TP_MUST_CHECK;

/* Changed since the last commit: a flush of this volume needs one.  Lock-free. */
bool thin_device_changed(const struct thin_device *td);
/*
 * Acknowledged changes of this device were rolled back.  Stays true, also for who opens it
 * later, until the metadata is closed.  Lock-free.
 */
bool thin_device_aborted_changes(const struct thin_device *td);

#endif
