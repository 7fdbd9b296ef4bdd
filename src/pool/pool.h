/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pool.h - a thin pool in service: volumes, their I/O, commands, status
 *
 * Layer:    pool; uses util/, io/, thin/ and catalog/.  Front ends (fuse/, control/) see
 *           only this header and never a mapping.
 * Threads:  any, unless a call says otherwise.
 * Units:    bytes.
 * Errors:   0 or a negative errno.
 */
#ifndef TP_POOL_POOL_H
#define TP_POOL_POOL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "catalog/catalog.h"
#include "io/io-queue.h"
#include "thinpoold/types.h"
#include "util/compiler.h"
#include "util/error.h"
#include "util/lock-class.h"

struct pool;
struct volume;
struct pool_event;

/* ---- life ---- */

enum pool_discard { POOL_DISCARD_PASSDOWN, POOL_DISCARD_NO_PASSDOWN, POOL_DISCARD_IGNORE };

/* A low-water mark: what is left when somebody should be told.  Neither field set: none. */
struct pool_low_water {
	uint64_t percent; /* of the total, 0..99 */
	uint64_t bytes;   /* or so much */
};

/* When and how far a pool in files grows by itself. */
struct pool_autoextend {
	unsigned threshold; /* percent in use; 0 or 100: never */
	unsigned percent;   /* of its size, at a time */
	uint64_t max_bytes; /* of data; 0: no limit but the host's */
};

struct pool_options {
	const char *metadata_path, *data_path; /* files, block devices or links to them */
	bool read_only;                        /* nothing is written, not even on close */
	uint64_t cache_bytes;                  /* metadata buffers */
	uint64_t commit_interval_usec;
	enum pool_discard discard;
	bool zero_new_blocks; /* false: new blocks may show what the device held before */
	bool queue_if_no_space;
	uint64_t no_space_timeout_usec; /* 0: for ever */
	struct pool_low_water low_water_data, low_water_metadata;
	struct pool_autoextend autoextend;
	bool keep_unlinked; /* begin as after pool_keep_unlinked() */
	/*
	 * Memory that outlives the process (a memfd, a file in /run): what was acknowledged but not
	 * committed when the process before this one died is done again from it and committed
	 * before the pool is in service.  It belongs to one pool and one mount: whoever makes
	 * a fresh mount gives a fresh (empty) one.  Stays the caller's, who may close it.  0 or
	 * less: none.  Does not count in a pool that is opened read-only.
	 */
	int redo_fd;
	/*
	 * Something front ends cache has changed behind their back.  Called by any thread; must
	 * not wait for the kernel or for the pool.  May be NULL.
	 */
	void (*event)(void *ctx, const struct pool_event *ev);
	void *event_ctx;
};

enum pool_event_kind {
	POOL_EVENT_VOLUME_GONE, /* name no longer leads anywhere, or elsewhere */
	POOL_EVENT_VOLUME_ADDED,
	POOL_EVENT_VOLUME_RESIZED,
	POOL_EVENT_VOLUME_CONTENT, /* rolled back: cached data is not to be trusted */
	POOL_EVENT_MODE,
	/* Space has fallen to its mark, or is all used: once each time. */
	POOL_EVENT_DATA_LOW,
	POOL_EVENT_METADATA_LOW,
	POOL_EVENT_DATA_FULL,
	POOL_EVENT_METADATA_FULL,
};

struct pool_event {
	enum pool_event_kind kind;
	thin_id_t id;
	const char *name;
};

int pool_open(const struct pool_options *options, struct pool **ret_pool,
	      struct tp_error *error) TP_EXCLUDES_ALL TP_MUST_CHECK;

/*
 * Stop the worker, commit, close: all that was acknowledged is durable then.  No I/O or command
 * may be in flight, no volume referenced.  Returns the commit's error, or that of flushing data,
 * or -EIO if metadata fails meanwhile; the pool is gone in any case.  NULL is allowed.
 */
int pool_close(struct pool *pool) TP_EXCLUDES_ALL;

/*
 * Any thread.  From the worker's next pass on: cache_bytes, commit_interval_usec, discard,
 * zero_new_blocks, queue_if_no_space, no_space_timeout_usec, the low-water marks and autoextend
 * of @options; the rest of it does not count.
 */
void pool_configure(struct pool *pool, const struct pool_options *options) TP_TAKES(pool);

/*
 * Any thread.  Requests that wait for data space fail with -ENOSPC, now and later: whoever
 * is about to close the pool waits for them otherwise.
 */
void pool_stop_waiting(struct pool *pool);

/* ---- volumes ---- */

struct volume_info {
	thin_id_t id;
	uint32_t generation; /* tells a reused id from its former owner */
	char name[VOLUME_NAME_MAX + 1];
	uint64_t size_bytes, mapped_bytes;
	bool read_only, has_origin, unlinked;
	thin_id_t origin;
	uint64_t created_usec; /* since 1970; 0: unknown */
	unsigned open_count;
};

/* By name or by id, with a reference.  -ENOENT. */
int pool_volume_find(struct pool *pool, const char *name, struct volume **ret_v)
	TP_TAKES(catalog) TP_MUST_CHECK;
int pool_volume_get(struct pool *pool, thin_id_t id, struct volume **ret_v)
	TP_TAKES(catalog) TP_MUST_CHECK;
void volume_put(struct volume *v);

thin_id_t volume_id(const struct volume *v);
void volume_get_info(struct volume *v, struct volume_info *ret_info) TP_TAKES(catalog);
uint64_t volume_size(const struct volume *v); /* lock-free */

/*
 * A handle.  An open volume that is unlinked stays usable until the last close, which
 * deletes it in the background.  -EROFS: opened for writing, but the volume (or the pool) is
 * read-only.
 */
int volume_open(struct volume *v, bool for_writing) TP_TAKES(catalog) TP_MUST_CHECK;
void volume_close(struct volume *v);

/*
 * Writes that were acknowledged can be lost all the same, when the transaction that maps their
 * blocks has to be thrown away.  Who is told of it, and when, follows the rule that the kernel has
 * for errors of write-back (errseq_t):
 *
 *   - a flush with a handle that was open when the writes were lost fails with -EIO, once;
 *   - so does the first one with a handle that was opened later, as long as nobody had been told
 *     when it was opened: closing a file and opening it again hides nothing;
 *   - a handle opened after somebody has been told starts clean;
 *   - a durable write (struct pool_io) ends with a flush, which counts;
 *   - a flush that fails because it waited for the commit that failed has told its handle;
 *   - handles of volumes that have lost nothing are told nothing.
 *
 * Once is too little for a handle that serves as a disk (pool_io.of_disk), as a loop device's
 * does.  Many writers share it, and only one of them would hear.  And a file system does not heed
 * every flush: ext4's log lets go of what it has checkpointed although the flush before failed.
 * So a disk's flushes fail as long as it is open, as those of the kernel's dm-thin do, and after
 * the first of them its changes fail too, mapped or not: what can still mend the file system, its
 * log, stays as it is.
 *
 * volume_handle() gives a number to a handle that has just been opened; with pool_io.handle
 * it says who asks.  POOL_NO_HANDLE is for requests that have none: they are one handle together,
 * which is open all the time.  A number that this pool has not given out (it comes from the
 * predecessor of a daemon that was replaced) counts as opened before everything.
 * volume_forget_handle() goes before volume_close().
 */
#define POOL_NO_HANDLE UINT32_C(0)
uint32_t volume_handle(struct volume *v);
void volume_forget_handle(struct volume *v, uint32_t handle) TP_TAKES(pool);

/*
 * Whether unlinked volumes that nobody has open stay.  While handles pass from one process to the
 * next they are open in nobody's eyes, and must not be taken for closed.
 */
void pool_keep_unlinked(struct pool *pool, bool keep) TP_TAKES(io);

/* The visible volume with the smallest id >= @from.  -ENODATA: none. */
int pool_volume_next(struct pool *pool, thin_id_t from, struct volume_info *ret_info)
	TP_TAKES(catalog) TP_MUST_CHECK;

/* ---- I/O ---- */

enum pool_io_op {
	POOL_READ,      /* past the end of the volume: zeros */
	POOL_WRITE,     /* past the end: the volume grows, as a file does */
	POOL_FLUSH,     /* all that was acknowledged before is durable; offset, length unused */
	POOL_PUNCH,     /* reads as zeros; whole blocks are unmapped */
	POOL_ZERO,      /* the same; kept apart for statistics */
	POOL_ALLOCATE,  /* holes and shared blocks get blocks of their own; content stays */
	POOL_SEEK_DATA, /* -> ret_offset: the first byte mapped at or after offset; -ENXIO */
	POOL_SEEK_HOLE, /* -> ret_offset: the first byte of a hole, or the end; -ENXIO */
};

/*
 * One request, embedded in the caller's own structure, any offset and length in bytes.
 * @buffer is best aligned so that (buffer - offset) is a multiple of 4096: then nothing is
 * copied.  The caller holds the volume (open or referenced) until @done.
 */
struct pool_io {
	enum pool_io_op op;
	bool durable;    /* write, punch, zero: durable before it is acknowledged (O_DSYNC) */
	bool of_disk;    /* flush, or durable: the handle serves as a disk */
	uint32_t handle; /* flush, changes: whose; see volume_handle() */
	struct volume *volume;
	uint64_t offset, length; /* bytes */
	void *buffer;            /* read, write */
	/*
	 * Called once, by any thread, with no lock held: 0 or -EIO, -ENOSPC, -EROFS, -EFBIG ...
	 * May be called before pool_io_submit() returns.  May submit again.
	 */
	void (*done)(struct pool_io *io, int r);
	uint64_t ret_offset;

	/* private to pool/ */
	struct pool_io_private {
		uint64_t words[80];
	} private;
};

/*
 * Never sleeps: neither for I/O nor for a lock held during I/O.  Data I/O is submitted on
 * @q, the calling thread's own queue (io_queue_self()), or by the pool worker.
 */
void pool_io_submit(struct pool *pool, struct io_queue *q, struct pool_io *io) TP_TAKES(throttle);

/*
 * The same, waiting for the end, and for the throttle of a worker that is behind; @done is
 * overwritten.  Other requests of the thread are called back meanwhile.
 */
int pool_io_run(struct pool *pool, struct io_queue *q, struct pool_io *io)
	TP_TAKES(completion) TP_MUST_CHECK;

/* ---- commands: changes to the set of volumes ---- */

enum pool_command_op {
	POOL_CREATE,        /* name, size_bytes */
	POOL_SNAPSHOT,      /* name (of the origin), new_name; a consistent cut */
	POOL_DELETE,        /* name */
	POOL_RENAME,        /* name, new_name */
	POOL_RESIZE,        /* name or id, size_bytes */
	POOL_SET_READ_ONLY, /* name or id; POOL_CMD_READ_ONLY: refuse writes, else allow them */
	POOL_EXTEND,        /* size_bytes, metadata_bytes: of data, of metadata; 0: as it is */
	POOL_COMMIT,
	POOL_METADATA_SNAP_RESERVE, /* -EBUSY: there is one */
	POOL_METADATA_SNAP_RELEASE, /* -EINVAL: there is none */
	/*
	 * -> pin, superblock, fd: keep the metadata as committed now readable in the file that fd
	 * is open on, but for the superblock, until POOL_UNPIN with pin.
	 */
	POOL_PIN,
	POOL_UNPIN, /* -EBUSY: what was read is not what it was, space or metadata were short */
	POOL_TRIM,  /* -> size_bytes: free data space that was given back to the host */
};

enum pool_command_flags {
	POOL_CMD_READ_ONLY = 1 << 0, /* snapshot, set read-only: make it so */
	POOL_CMD_SHRINK = 1 << 1,    /* resize: allow it to lose data past the new end */
	POOL_CMD_IF_CLOSED =
		1 << 2, /* delete, rename over: -EBUSY when open, else keep until last close */
	POOL_CMD_NO_REPLACE = 1 << 3, /* rename: -EEXIST when new_name exists */
	POOL_CMD_BY_ID = 1 << 4,    /* resize, set read-only: by id (an unlinked one has no name) */
	POOL_CMD_EXCHANGE = 1 << 5, /* rename: swap the two names */
};

/*
 * Done by the worker, one after another, in one transaction with the catalog, durable and
 * visible when @done is called.  Embedded in the caller's structure; strings are copied.
 *   -ENOENT, -EEXIST, -EINVAL (name, size), -ENAMETOOLONG, -EBUSY, -ENOSPC, -EROFS, -EIO,
 *   -EFBIG (larger than 2^40 blocks or INT64_MAX), -EOPNOTSUPP (the pool has no catalog;
 *   extend: a block device that is not that large)
 *
 * Extending data and metadata grows their files or uses what block devices have grown by; it
 * never shrinks (-EINVAL).  A size is rounded down to whole blocks; metadata uses all of a device
 * that is larger.  What was extended stays so when the other of the two fails.
 */
struct pool_command {
	enum pool_command_op op;
	unsigned flags; /* enum pool_command_flags */
	char name[VOLUME_NAME_MAX + 1], new_name[VOLUME_NAME_MAX + 1];
	uint64_t size_bytes;     /* extend: out: what data has now */
	uint64_t metadata_bytes; /* extend: the same for metadata */
	thin_id_t id;            /* in with POOL_CMD_BY_ID; out: of the new volume */
	uint64_t pin;            /* out of POOL_PIN; in for POOL_UNPIN */
	int fd;                  /* out: POOL_PIN; the caller closes it; -1: no file */
	uint8_t *superblock;     /* out: POOL_PIN, METADATA_BLOCK_SIZE bytes of the caller's */
	void (*done)(struct pool_command *cmd, int r); /* the worker thread, no lock held */
	struct tp_error error;                         /* a line for a person, when r < 0 */

	/* private to pool/ */
	int result;
	void *waiter;
	STAILQ_ENTRY(pool_command) link;
};

void pool_command_submit(struct pool *pool, struct pool_command *cmd) TP_TAKES(pool);

/* The same, waiting for the end.  Not from a thread that serves I/O. */
int pool_command_run(struct pool *pool, struct pool_command *cmd)
	TP_TAKES(completion) TP_MUST_CHECK;

/* ---- status ---- */

/* Ordered from good to bad; what each allows is said in pool-mode.c. */
enum pool_mode {
	POOL_MODE_WRITE,
	POOL_MODE_OUT_OF_DATA_SPACE,
	POOL_MODE_OUT_OF_METADATA_SPACE,
	POOL_MODE_READ_ONLY,
	POOL_MODE_FAIL,
};

/* "rw", "out_of_data_space", "ro" (also out of metadata space), "fail" */
const char *pool_mode_name(enum pool_mode mode);

struct pool_stats {                                /* since the pool was opened */
	uint64_t reads, writes, flushes, discards; /* requests of front ends */
	uint64_t read_bytes, write_bytes, discard_bytes;
	uint64_t provisioned_blocks, broken_sharing_blocks, zeroed_blocks, passed_down_bytes;
	uint64_t deferred, metadata_misses, unaligned; /* ways off the fast path */
	uint64_t commits, aborts, commands, throttled;
	uint64_t low_water_data, low_water_metadata; /* times that free space fell to the mark */
	uint64_t throttles, throttle_usec; /* passes that made new work wait, and for how long */
	uint64_t data_errors;              /* reads, writes and flushes of data that failed */
	uint64_t autoextended_data, autoextended_metadata; /* times that they grew by themselves */
};

#define POOL_REASON_MAX 768
#define GROWTH_WHY_MAX 512

struct pool_status {
	enum pool_mode mode;
	char reason[POOL_REASON_MAX]; /* why the mode is not rw; "" if it is */
	char remedy[POOL_REASON_MAX]; /* read-only by a failure: what to do about it; else "" */
	bool needs_check, has_catalog, read_only;
	uint32_t block_size; /* bytes */
	uint64_t transaction_id;
	mblock_t held_root;                          /* block of the metadata snapshot; 0: none */
	uint64_t data_used, data_total;              /* bytes */
	uint64_t metadata_used, metadata_total;      /* bytes; used: without the reserve */
	uint64_t metadata_reserve;                   /* bytes */
	uint64_t data_allocated;                     /* bytes the data file takes on its host */
	uint64_t low_water_data, low_water_metadata; /* bytes free at which it is low; 0: no mark */
	bool data_is_low, metadata_is_low;           /* fell to the mark, not well above it since */
	/* Why they do not grow by themselves now, though it is time; "": they do, or it is not. */
	char data_not_extended[GROWTH_WHY_MAX], metadata_not_extended[GROWTH_WHY_MAX];
	uint64_t virtual_total; /* sum of the volumes' sizes */
	/* As they are configured now. */
	enum pool_discard discard;
	bool zero_new_blocks, queue_if_no_space;
	uint64_t no_space_timeout_usec, commit_interval_usec;
	struct pool_autoextend autoextend;
	unsigned nr_volumes;
	uint64_t cache_bytes, cache_limit_bytes, cache_hits, cache_misses;
	uint64_t cache_shrunk;          /* buffers given back when memory was short */
	uint64_t longest_throttle_usec; /* of stats.throttle_usec */
	/* How many wait now, and for what. */
	uint64_t in_flight;          /* requests of front ends that are not answered yet */
	unsigned waiting_worker;     /* of these or their parts: deferred to the worker */
	unsigned waiting_space;      /* parts that found no free data block */
	unsigned waiting_commands;   /* changes to the set of volumes */
	uint64_t longest_abort_usec; /* from the failure to read-only */
	struct pool_stats stats;
};
void pool_get_status(struct pool *pool, struct pool_status *ret_status) TP_TAKES(catalog);

/* ---- how long requests take, from submission to answer ---- */

enum pool_latency_op {
	POOL_LATENCY_READ,
	POOL_LATENCY_WRITE,
	POOL_LATENCY_FLUSH,
	POOL_LATENCY_DISCARD
};
#define POOL_NR_LATENCY_OPS 4

/* Bucket i counts requests of at most 16 << i microseconds, the last one those longer than all. */
#define POOL_LATENCY_BUCKETS 22
#define POOL_LATENCY_FIRST_USEC 16

struct pool_latency {
	uint64_t buckets[POOL_LATENCY_BUCKETS]; /* each request in one of them */
	uint64_t sum_usec;
};
/* Since the pool was opened. */
void pool_get_latency(struct pool *pool, struct pool_latency ret_latency[POOL_NR_LATENCY_OPS]);

uint32_t pool_block_size(const struct pool *pool); /* bytes */

#endif
