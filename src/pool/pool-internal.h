/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pool-internal.h - what the files of pool/ know of each other
 *
 * Two halves.  The I/O half (pool.c, map.c, worker.c ...) moves data and owns the worker
 * thread.  The volume half (volume.c, command.c) owns the table of volumes, their names,
 * open counts and catalog records, and the commands.
 *
 * "Worker only" calls are made by the pool's worker thread (or before it runs and after it
 * has ended, by the thread that opens or closes the pool), with no lock held.  The worker is
 * the mutator of thin-metadata.h.
 */
#ifndef TP_POOL_POOL_INTERNAL_H
#define TP_POOL_POOL_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "io/device.h"
#include "pool/pool.h"
#include "pool/volume.h"
#include "thin/thin-metadata.h"
#include "util/lock-class.h"
#include "util/log.h"

struct prison;
struct segment;
struct stats;
struct volume_table;
struct worker;

STAILQ_HEAD(segment_list, segment);

/* What grows by itself, and what is in the way of that (autoextend.c). */
enum growth_kind { GROWTH_DATA, GROWTH_METADATA, NR_GROWTHS };
enum growth_obstacle { GROWTH_FREE, GROWTH_DEVICE, GROWTH_LIMIT, GROWTH_HOST, GROWTH_ERROR };

struct pool {
	/* Constant while the pool is open. */
	struct io_device *metadata, *data;
	bool owns_devices;
	char *directory;           /* POOLDIR, for messages; NULL: not known */
	atomic_bool keep_unlinked; /* see pool.h */
	bool opened_read_only;     /* by option, or because the metadata needs a check */
	struct thin_metadata *tmd;
	uint32_t block_size; /* bytes */
	int block_shift;     /* log2 of it; -1: not a power of two */
	uint64_t zone_bytes; /* of the prison: a segment does not cross a multiple of it */
	uint32_t alignment;  /* of the data device */
	uint64_t max_bytes;  /* a volume can have: 2^40 blocks or INT64_MAX */
	struct prison *prison;
	struct redo *redo; /* NULL: none; redo-replay.c */
	struct stats *stats;
	struct worker *worker;

	/* Taken shared for an instant by whoever defers, exclusively by a worker that is behind. */
	struct tp_lock throttle; /* LC_throttle, rw */

	/*
	 * LC_pool, a mutex.  Guards the lists below, the reason and the copied info; nothing
	 * that sleeps is called with it held.
	 */
	struct tp_lock lock;
	/*
	 * Paths are not kept.  The worker is the only one to change it, and reads it without
	 * the lock; event and read_only never change, and anybody reads them so.
	 */
	struct pool_options options;
	struct pool_options wanted TP_GUARDED_BY(lc_pool);   /* of pool_configure() */
	atomic_bool is_wanted;                               /* the worker has to take it over */
	struct command_list commands TP_GUARDED_BY(lc_pool); /* waiting for the worker */
	char reason[POOL_REASON_MAX] TP_GUARDED_BY(lc_pool);
	struct thin_metadata_info info TP_GUARDED_BY(lc_pool); /* as of the last commit or pass */
	unsigned waiting_space TP_GUARDED_BY(lc_pool);         /* likewise */

	_Atomic enum pool_mode mode; /* changed by the worker, under LC_pool */
	_Atomic uint64_t epoch;      /* aborts so far (failure.c); changed by the worker */
	_Atomic uint64_t longest_abort_usec;
	_Atomic uint32_t next_handle;
	/* Flushes of the data device, numbered; see flush_begin() in failure.c. */
	_Atomic uint64_t flushes_begun, flushed;
	atomic_bool data_failed; /* that is why it is read-only: its metadata is as it should be */
	struct log_limit mode_log[POOL_MODE_FAIL + 1];
	atomic_bool needs_check;
	atomic_bool data_is_low, metadata_is_low; /* changed by the worker (low-water.c) */
	struct log_limit low_water_log[2];
	struct growth {
		enum growth_obstacle obstacle;
		uint64_t retry_usec; /* not before, if there is one */
		char why[GROWTH_WHY_MAX] TP_GUARDED_BY(lc_pool);
		struct log_limit log;
	} growth[NR_GROWTHS];   /* worker only, but for why */
	bool growing;           /* worker only */
	atomic_bool never_wait; /* pool_stop_waiting() */
	atomic_bool refuses_discards;
	atomic_bool sizes_dirty; /* some volume's size_dirty is set: a commit is needed */

	/* The commit to come leaves out some sizes; some volume has lost writes.  Worker only. */
	bool redo_carries_sizes, redo_any_lost;

	/* The volume half's.  Guarded by catalog_lock (LC_catalog) as volume.c says. */
	struct tp_lock catalog_lock;
	struct volume_table *volumes;
	struct catalog *catalog; /* NULL: none.  Worker only */
	atomic_bool has_catalog;
};

struct told {
	uint32_t handle;
	bool of_disk; /* changes nothing any more */
};

/* Writes were lost: which handles have been told of it.  LC_pool. */
struct losses {
	bool anybody_told;
	uint32_t first_later; /* handles from here on were opened when somebody had been told */
	struct told *told;    /* of the others */
	unsigned nr_told, capacity;
	bool nobody_changes; /* a disk was told, and there was no memory to note which */
};

struct volume {
	/* The I/O half reads these; they stay valid while anybody refers to the volume. */
	struct pool *pool;
	thin_id_t id;
	struct thin_device *td;      /* open as long as the structure lives */
	_Atomic uint64_t size_bytes; /* changed by the worker only */
	atomic_bool read_only;       /* refuses writes with -EROFS */
	/*
	 * A write has made the volume larger than its catalog record says: set by the I/O half
	 * (with size_uncommitted and pool->sizes_dirty), cleared by volumes_before_commit().
	 */
	atomic_bool size_dirty;
	atomic_bool size_uncommitted; /* until the commit that has the record is done */
	atomic_bool lost_writes;      /* see volume_lose_writes() */
	_Atomic uint64_t written;     /* pool->flushes_begun after its last write; 0: none */
	struct losses losses TP_GUARDED_BY(lc_pool);

	/* The I/O half's own: the gate (map.c). */
	_Alignas(64) atomic_uint in_flight;               /* segments of requests past the gate */
	atomic_uint gate_closed;                          /* how many have asked for quiet */
	struct segment_list gated TP_GUARDED_BY(lc_pool); /* wait until it opens */

	/* The volume half's own from here on. */
	_Alignas(64) struct volume_entry entry;
};

/* ---- what the I/O half does for the volume half ---- */

/*
 * Prepare the I/O fields of a fresh volume: pool, id, td, size.  The volume half calls it
 * once, before anybody else can see the volume, and volume_io_destroy() when nobody can
 * any more (no request is in flight then).
 */
void volume_io_init(struct volume *v, struct pool *pool, struct thin_device *td,
		    uint64_t size_bytes) TP_TAKES(pool);
void volume_io_destroy(struct volume *v);

/*
 * Worker only.  Keep new I/O of @v from starting, and go on working (deferred requests,
 * data I/O, mappings) until all that had started is done: then no write of @v is under
 * way, and every acknowledged one is in the open transaction.  Requests that wait for free
 * space or for a commit do not count: they are not acknowledged.  May nest; other volumes
 * go on; a commit may happen if metadata space is short.  The error (-EIO) says that
 * metadata failed meanwhile; the gate is closed anyway.
 */
int pool_quiesce_volume(struct pool *pool, struct volume *v) TP_TAKES(throttle) TP_MUST_CHECK;
void pool_resume_volume(struct pool *pool, struct volume *v) TP_TAKES(pool);

/*
 * Worker only.  Carry out one POOL_READ, WRITE, PUNCH, ZERO or ALLOCATE on a volume whose
 * gate is closed, and wait for it; done and private of @io are overwritten.  A shrinking
 * POOL_RESIZE is a POOL_PUNCH of what lies behind the new end.
 */
int pool_worker_io(struct pool *pool, struct pool_io *io) TP_TAKES(throttle) TP_MUST_CHECK;

/*
 * Worker only.  Unmap about @max_blocks of [begin, end) of a volume that has no I/O in
 * flight (removal of an unlinked one, slice by slice).  Commits if metadata space is short.
 * On error the metadata has failed.
 */
int pool_unmap_slice(struct pool *pool, struct volume *v, vblock_t begin, vblock_t end,
		     uint64_t max_blocks, vblock_t *ret_next) TP_TAKES(throttle) TP_MUST_CHECK;

/*
 * Worker only.  volumes_before_commit(), commit, volumes_after_commit(); counts as the
 * periodic commit and answers all flushes that wait.  On failure it has called
 * pool_metadata_failed() already.
 */
int pool_commit_now(struct pool *pool) TP_TAKES(throttle) TP_MUST_CHECK;

/*
 * Worker only.  A mutator returned @r while doing @what ("insert a mapping"): abort, set
 * NEEDS_CHECK, go read-only (or fail), volumes_after_abort(), error whatever waits for a
 * commit.  Returns what to tell the client: -EIO.
 */
int pool_metadata_failed(struct pool *pool, const char *what, int r) TP_TAKES(throttle);

/*
 * Worker only.  A flush of the data device outside a commit has failed: what was written since the
 * last one that did not may be gone, and the device does not say it twice.  So the open
 * transaction, which may map such blocks, is thrown away, and who has written since is told when he
 * flushes.
 */
void pool_data_flush_failed(struct pool *pool, int r) TP_TAKES(throttle);

/* The same for a call that changes nothing; that it found no memory (-ENOMEM) is no failure. */
int pool_query_failed(struct pool *pool, const char *what, int r) TP_TAKES(throttle);

/*
 * Worker only, after an abort.  Writes to the volume that were acknowledged are gone: its handles
 * will be told, as pool.h says.
 */
void volume_lose_writes(struct volume *v) TP_TAKES(pool);

/* @r of pool_check_writable(), told with what to do about it. */
int pool_refuse_command(struct pool *pool, struct pool_command *cmd, int r);
/* What to do about a pool that went read-only, in words. */
void pool_describe_remedy(const struct pool *pool, char *text, size_t size);

/*
 * 0, or why metadata may not be changed now: -EROFS, -EIO (failed while in service).
 * pool_check_space(): also -ENOSPC when metadata has only its reserve left, which is kept
 * for deleting and discarding.  Any thread.
 */
int pool_check_writable(struct pool *pool) TP_MUST_CHECK;
int pool_check_space(struct pool *pool) TP_MUST_CHECK;

/*
 * Worker only.  Does metadata have nothing but its reserve left, with what the open transaction
 * has taken?  Then it is time to commit, if there is anything to (pool_is_dirty()), before the
 * reserve is eaten: the commit needs it.
 */
bool pool_metadata_is_low(struct pool *pool) TP_TAKES(meta_root);
bool pool_is_dirty(struct pool *pool) TP_TAKES(meta_root);

/*
 * Have the host keep space for all of the metadata, if that takes little of what it has: so that a
 * host that is full cannot make a commit fail.  Worker only.
 */
void pool_allocate_metadata(struct pool *pool) TP_TAKES(bufio);

/* Worker only.  POOL_EXTEND, but for the last commit. */
int pool_extend(struct pool *pool, struct pool_command *cmd) TP_TAKES(throttle) TP_MUST_CHECK;

/* Worker only.  Take over what pool_configure() asked for. */
void pool_take_configuration(struct pool *pool) TP_TAKES(pool);

/* Any thread.  There is something for the worker to look at. */
void pool_wake_worker(struct pool *pool);

/* Call options.event, if there is one. */
void pool_event(struct pool *pool, enum pool_event_kind kind, thin_id_t id, const char *name)
	TP_TAKES(fuse);

/*
 * pool_open() for devices that are the caller's and stay so: tests put them in memory.
 * The paths of @options are not used.
 */
int pool_open_devices(const struct pool_options *options, struct io_device *metadata,
		      struct io_device *data, struct pool **ret_pool,
		      struct tp_error *error) TP_EXCLUDES_ALL TP_MUST_CHECK;

/* ---- redo-replay.c: what must not be lost when only the process dies (worker only) ---- */

/*
 * Before the worker runs, with volumes loaded: make the changes again that are recorded in the area
 * in @fd and not committed, commit them, and record from now on.  An area that cannot be used is
 * said in the log, and is no error.
 */
int pool_redo_open(struct pool *pool, int fd) TP_TAKES(throttle) TP_MUST_CHECK;
/* @committed: nothing is left that could be done again. */
void pool_redo_close(struct pool *pool, bool committed);

/*
 * Before a change that is recorded: there is room for a record, if need be after a commit.  The
 * error (-EIO) says that the commit has failed.
 */
int pool_redo_make_room(struct pool *pool) TP_TAKES(throttle) TP_MUST_CHECK;
/* Behind the change, and before anybody can see it. */
void pool_redo_insert(const struct volume *v, vblock_t vblock, dblock_t dblock, uint64_t nr_blocks);
void pool_redo_unmap(const struct volume *v, vblock_t begin, vblock_t end);
void pool_redo_size(const struct volume *v);
/* The open transaction was thrown away, and volumes know what they have lost. */
void pool_redo_aborted(struct pool *pool) TP_TAKES(meta_root);

/* ---- what the volume half does for the I/O half ---- */

/*
 * Fill pool->volumes and pool->catalog after thin_metadata_open(), before the worker runs.
 * volumes_unload() is its reverse, also of a half-done load; no volume is referenced.
 */
int volumes_load(struct pool *pool, struct tp_error *error) TP_TAKES(catalog) TP_MUST_CHECK;
void volumes_unload(struct pool *pool) TP_TAKES(meta_root);

/*
 * Worker only, once in each pass.  Carry out the commands that wait in pool->commands, one
 * after another, commit once for all of them with pool_commit_now(), and have the answers
 * ready for pool_deliver_commands(); do a slice of background work (removal of unlinked
 * volumes).  Returns true if there is more to do: then the worker comes back without waiting
 * to be woken.
 */
bool pool_run_commands(struct pool *pool) TP_TAKES(throttle) TP_MUST_CHECK;

/*
 * Worker only, when no lock is held, not even the throttle: call @done of the commands that
 * are carried out, and tell front ends what has changed.
 */
void pool_deliver_commands(struct pool *pool) TP_TAKES(fuse);

/*
 * Worker only.  Before a commit: write the catalog records of volumes that writes made larger,
 * clear size_dirty and pool->sizes_dirty.  An error is a metadata failure.
 */
int volumes_before_commit(struct pool *pool) TP_TAKES(catalog) TP_MUST_CHECK;
void volumes_after_commit(struct pool *pool) TP_TAKES(catalog);
/* The transaction was thrown away: volumes created in it are gone, sizes are the committed ones. */
void volumes_after_abort(struct pool *pool) TP_TAKES(catalog);

/* Worker only.  Have the answer of a command ready that pool_run_commands() has left open. */
void pool_answer_command(struct pool *pool, struct pool_command *cmd, int r) TP_TAKES(meta_root);

/* For status.  Takes LC_catalog for a moment. */
void volumes_get_totals(struct pool *pool, unsigned *ret_nr, uint64_t *ret_virtual_bytes)
	TP_TAKES(catalog);

#endif
