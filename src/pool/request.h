/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * request.h - a request's way through the pool: request, segments, jobs
 *
 * A request (a struct pool_io) is carved into segments, from front to back.  A segment is a
 * byte range within one zone of the prison.  Shared segments are for reads and for writes in
 * place: one lookup, one data I/O; a segment is cut short at the end of the run that the
 * lookup finds, and carving goes on behind it.  So lookups of a request follow each other
 * while its data I/O runs in parallel.  Exclusive segments are for all that changes mappings
 * or needs more than one I/O; the worker alone runs them, by means of jobs: one job moves
 * the data of one run of blocks and, if they are new, maps them afterwards.
 *
 *                      gate          cell           lookup
 *     carved --> STAGE_GATE --> STAGE_CELL --> STAGE_HELD --> data I/O --> finished
 *                                   ^              |             ^
 *                                   |   exclusive  |             |
 *                                   +--------------+--> jobs ----+
 *
 * A segment may have to wait before each stage: for the gate of a quiesced volume, for its
 * cell, for a metadata node that is being read, for a job, for space.  While it waits it
 * belongs to whoever will wake it, and its former thread must not touch it any more.
 *
 * Layer:    pool; private to its I/O half.
 * Threads:  any that serves I/O, where a call does not say "worker only".
 * Units:    bytes of a volume; data blocks where the type says so.
 * Errors:   0 or a negative errno, which ends up as the request's result.
 */
#ifndef TP_POOL_REQUEST_H
#define TP_POOL_REQUEST_H

#include <semaphore.h>

#include "io/copier.h"
#include "pool/pool-internal.h"
#include "pool/prison.h"
#include "pool/stats.h"
#include "util/lock-class.h"

/* Something that the worker shall do; @run is called by it, out of its pump. */
struct work {
	struct work *next;
	void (*run)(struct pool *pool, struct work *work);
};

enum segment_stage { STAGE_GATE, STAGE_CELL, STAGE_HELD, STAGE_UNALIGNED };

struct segment {
	struct request *request;
	uint64_t offset, end; /* bytes of the volume that are still to be started */
	struct cell cell;
	enum segment_stage stage;
	bool exclusive; /* independent of the carving; see above */
	bool wants_space;
	uint64_t epoch;       /* of the lookup that the data I/O relies on */
	uint64_t redo_offset; /* from here on once more, as an abort came between; UINT64_MAX: no */
	uint8_t misses;       /* of the metadata cache, in a row */
	unsigned nr_jobs;     /* plus 1 while more may be started; worker only */
	int result;
	struct io_queue *q; /* of the thread that runs it */
	pthread_t owner;
	struct work work;
	struct io_request io;
	struct thin_waiter waiter;
	STAILQ_ENTRY(segment) link; /* gated, todo, no_space, job_waiters, free */
};

struct request {
	atomic_uint pending; /* segments, plus 1 while it is being carved */
	_Atomic int result;  /* the first error */
	uint64_t pos, end;   /* bytes not yet carved */
	bool past_gate;      /* the worker's own, on a quiesced volume */
	bool may_sleep;      /* its submitter waits for it and so may wait for the throttle */
	bool first_used;
	bool flushed;               /* the flush that a durable write ends with was done */
	uint64_t begin_usec;        /* 0: not counted */
	uint64_t flush_number;      /* flush_begin() */
	uint64_t zero_from;         /* read: bytes of the volume from here on are past its end */
	struct io_queue *q;         /* of the submitter */
	struct waiting_io *waiting; /* pool_io_run(), pool_worker_io() */
	struct work work;
	STAILQ_ENTRY(request) link; /* flushes, finished */
	struct segment first;
};
STAILQ_HEAD(request_list, request);

_Static_assert(sizeof(struct request) <= sizeof(struct pool_io_private),
	       "pool.h gives room for a request");

static inline struct request *request_of(struct pool_io *io)
{
	return (struct request *)(void *)&io->private;
}

static inline struct pool_io *request_io(struct request *req)
{
	return container_of((struct pool_io_private *)(void *)req, struct pool_io, private);
}

static inline struct volume *segment_volume(struct segment *seg)
{
	return request_io(seg->request)->volume;
}

/* ---- flushes of the data device, and what they cover: failure.c ---- */

/* Just before a flush begins: its number. */
static inline uint64_t flush_begin(struct pool *pool)
{
	return atomic_fetch_add(&pool->flushes_begun, 1) + 1;
}

/* It has succeeded: what was written before it began is durable. */
static inline void flush_succeeded(struct pool *pool, uint64_t number)
{
	uint64_t flushed = atomic_load(&pool->flushed);

	while (flushed < number && !atomic_compare_exchange_weak(&pool->flushed, &flushed, number))
		;
}

/* A write has ended, somehow; before it is answered. */
static inline void volume_note_write(struct volume *v)
{
	uint64_t number = atomic_load(&v->pool->flushes_begun), written = atomic_load(&v->written);

	/* Again if a flush, or somebody who looks for losses, came in between. */
	while (unlikely(written < number))
		if (atomic_compare_exchange_weak(&v->written, &written, number))
			number = atomic_load(&v->pool->flushes_begun);
}

/* ---- jobs: provision.c decides, job.c moves the data ---- */

#define JOB_EDGE_BYTES 4096 /* the largest alignment of a device */

struct job {
	struct pool *pool;
	struct segment *seg;
	vblock_t vblock;
	dblock_t dblock; /* of vblock; the others follow */
	uint64_t nr_blocks;
	uint64_t begin, end; /* bytes of the volume that are written or read; may be none */
	uint8_t *data;       /* for byte @begin; NULL: zeros */
	bool reads;          /* an unaligned read; else a write */
	bool insert;         /* the blocks are reserved, and mapped when the data is there */
	bool old_is_block;   /* bytes outside [begin, end) are those of block @old, else zeros */
	bool fill;           /* new blocks: they must be made so */
	dblock_t old;
	uint64_t epoch; /* reservations and lookups do not survive an abort */

	/* job.c */
	unsigned pending;
	int result;
	void (*next)(struct job *job); /* when nothing is pending any more */
	struct work work;
	struct job_io {
		struct io_request io;
		struct job *job;
	} io[2];
	struct job_copy {
		struct copy_job copy;
		struct job *job;
	} copies[3];
	struct iovec iov[5];
	uint8_t *edges, *bounce;
	uint64_t chunk; /* bounce: bytes of the volume done so far */
	STAILQ_ENTRY(job) link;
};
STAILQ_HEAD(job_list, job);

/* Start moving data; it ends in worker->prepared. */
void job_start(struct job *job);
/* Jobs' memory: buffers for edges, bounces, zeros and copies. */
int jobs_create(struct pool *pool) TP_MUST_CHECK;
void jobs_destroy(struct pool *pool);

/* ---- the worker ---- */

#define NR_BOUNCES 8

struct freed_run {
	dblock_t begin, end;
};

/* All fields are the worker thread's own unless they say otherwise. */
struct worker {
	pthread_t thread;
	bool running; /* the thread exists */
	struct io_queue *q;
	atomic_bool sleeping; /* any thread: it has to be woken */
	atomic_bool poked;    /* any thread: it has something to look at */
	atomic_bool stop;
	uint64_t epoch_at_stop; /* of the pool; set before stop is */
	bool again;             /* a nested wait saw a poke that was meant for the next pass */
	int result;             /* of creating the thread's objects, then of the last commit */
	sem_t ready;

	/* Any thread: pushed without a lock, taken all at once. */
	_Atomic(struct work *) deferred;
	/* The same, of those that could not have the throttle. */
	_Atomic(struct work *) parked;
	atomic_uint nr_deferred; /* in both; for status */

	struct segment_list todo;
	struct request_list flushes;  /* wait for a commit */
	struct request_list finished; /* to be answered when no lock is held */
	struct request_list starved;  /* carving waits for a free segment */
	atomic_uint nr_starved;

	bool throttled; /* holds pool->throttle */
	uint64_t throttle_began_usec;
	_Atomic uint64_t longest_throttle_usec; /* changed by the worker alone */
	uint64_t pass_began_usec;

	uint64_t last_commit_usec;
	uint64_t needs_check_due_usec; /* NEEDS_CHECK is to be stored then; UINT64_MAX: no */
	bool stash_full;               /* a reserved block that did not follow the one before it */
	dblock_t stash;

	/* provision.c */
	struct segment_list job_waiters, no_space;
	uint64_t no_space_deadline_usec; /* UINT64_MAX: none */
	bool no_space_expired;
	struct job *jobs;
	struct job_list free_jobs, prepared;

	/* job.c */
	struct copier *copier;
	uint8_t *edges, *bounces, *zeros;
	uint8_t *free_bounces[NR_BOUNCES];
	unsigned nr_free_bounces;
	struct job_list bounce_waiters;

	/* discard.c */
	struct freed_run *freed;
	size_t nr_freed, freed_capacity, next_freed;
	unsigned passdowns_in_flight;
	struct passdown *passdowns;

	struct command_list trims; /* POOL_TRIM; the first one is under way */
	dblock_t trim_next;        /* it goes on here; UINT64_MAX: no further */
	unsigned trims_in_flight;  /* its runs that are being punched */

	/* Spare segments.  LC_pool. */
	struct segment *segments;
	struct segment_list free_segments;
};

static inline bool on_worker(struct pool *pool)
{
	return pool->worker->running && pthread_equal(pool->worker->thread, pthread_self());
}

int worker_create(struct pool *pool) TP_MUST_CHECK;
/* Start the thread. */
int worker_start(struct pool *pool) TP_TAKES(completion) TP_MUST_CHECK;
/* Ends the thread, committing first; returns the commit's result. */
int worker_stop(struct pool *pool) TP_TAKES(completion);
void worker_destroy(struct pool *pool);

/*
 * Let the worker run @work.  worker_push() is for what is already in flight; worker_defer()
 * passes the throttle first: new work waits for a worker that is behind.
 */
void worker_push(struct pool *pool, struct work *work);
void worker_defer(struct pool *pool, struct work *work, bool may_sleep) TP_TAKES(throttle);
/* Any thread.  Make acknowledged writes of the volume durable. */
void request_flush(struct pool *pool, struct request *req, struct io_queue *q) TP_TAKES(throttle);
/* Worker only: a request has ended and will be answered. */
void worker_finish(struct pool *pool, struct request *req);
/* Worker only.  Commit what has changed, if anything has; who waits for it is told. */
void commit_changes(struct pool *pool) TP_TAKES(throttle);
/* Worker only.  Everything but commands and commits, once, without waiting. */
void worker_pump(struct pool *pool) TP_TAKES(throttle);
/* The same, again and again, sleeping in between, until @is_over(@ctx). */
void worker_pump_until(struct pool *pool, bool (*is_over)(void *ctx), void *ctx) TP_TAKES(throttle);
/* Worker only.  Hold the throttle if this pass has been too long. */
void worker_check_pass(struct pool *pool) TP_TAKES(throttle);

/* ---- map.c ---- */

static inline uint64_t pool_block_of(const struct pool *pool, uint64_t bytes)
{
	return likely(pool->block_shift >= 0) ? bytes >> pool->block_shift
					      : bytes / pool->block_size;
}

/* Carve what is left of the request on this thread. */
void request_carve(struct pool *pool, struct request *req, struct io_queue *q) TP_TAKES(throttle);
/* One part less is in flight; the last one ends the request. */
void request_put(struct pool *pool, struct request *req) TP_TAKES(throttle);
void request_fail(struct request *req, int r);
/* Call done(), with no lock held. */
void request_answer(struct request *req);
/* It is over: flush if it must be durable, then answer. */
void request_end(struct pool *pool, struct request *req) TP_TAKES(throttle);

/* Worker only.  Go on with a segment that waited. */
void segment_resume(struct pool *pool, struct segment *seg) TP_TAKES(throttle);
/* Cell and gate are given up, the request loses a part. */
void segment_finish(struct pool *pool, struct segment *seg, int r) TP_TAKES(throttle);
/* It fails while it waits, holding neither cell nor gate. */
void segment_abandon(struct pool *pool, struct segment *seg, int r) TP_TAKES(throttle);
/* Give up the cell and leave the gate, keeping the segment. */
void segment_leave(struct pool *pool, struct segment *seg) TP_TAKES(prison);
/*
 * A lookup for a held segment.  -EINPROGRESS: the segment waits and comes back by itself
 * (segment_resume()).
 */
int segment_find(struct pool *pool, struct segment *seg, struct io_queue *q, vblock_t vblock,
		 uint64_t max_blocks, struct thin_run *ret_run) TP_TAKES(throttle) TP_MUST_CHECK;

/* ---- provision.c (worker only) ---- */

/* A segment that holds its cell exclusively. */
void exclusive_segment_run(struct pool *pool, struct segment *seg) TP_TAKES(throttle);
void unaligned_read_run(struct pool *pool, struct segment *seg);
/* A job's data has been moved: map its blocks, end it. */
void jobs_finish_prepared(struct pool *pool) TP_TAKES(throttle);
/*
 * Put as many of those that wait for a job on the todo list as there are free jobs.  Not all of
 * them will need one after all.  Were there any?
 */
bool jobs_resume_waiters(struct pool *pool);
void release_stash(struct pool *pool) TP_TAKES(meta_root);

/* ---- discard.c (worker only) ---- */

/* Move the request's position past what a punch or an allocation has nothing to do with. */
void range_request_skip(struct pool *pool, struct request *req) TP_TAKES(bufio);
int unmap_blocks(struct pool *pool, struct segment *seg, vblock_t begin, vblock_t end)
	TP_TAKES(throttle) TP_MUST_CHECK;
void passdown_collect(struct pool *pool) TP_TAKES(meta_root);
void passdown_run(struct pool *pool) TP_TAKES(throttle);
bool passdown_busy(const struct pool *pool);
/* Free blocks that cannot be allocated before they are punched. */
uint64_t passdown_blocks(const struct pool *pool);
void passdown_drop(struct pool *pool);
int passdown_create(struct pool *pool) TP_MUST_CHECK;
void passdown_destroy(struct pool *pool);
/* Returns -EINPROGRESS, and answers the command later, or why it cannot be begun. */
int trim_begin(struct pool *pool, struct pool_command *cmd) TP_TAKES(throttle) TP_MUST_CHECK;

/* ---- pool-mode.c (worker only) ---- */

void pool_set_mode(struct pool *pool, enum pool_mode mode, const char *reason) TP_TAKES(pool);
/* Copy the numbers for status, and change modes if they say so; @committed: just now. */
void pool_refresh_info(struct pool *pool, bool committed) TP_TAKES(pool);
/* Segments that found no free block: commit and look again, wait, or fail. */
void low_space_park(struct pool *pool, struct segment *seg) TP_TAKES(prison);
void low_space_fail(struct pool *pool, int r) TP_TAKES(throttle);
void low_space_run(struct pool *pool) TP_TAKES(throttle);
void low_space_retry(struct pool *pool);
void low_space_restart(struct pool *pool);
uint64_t low_space_deadline(const struct pool *pool);

/* ---- failure.c (worker only) ---- */

/* Is NEEDS_CHECK still to be stored? */
bool failure_due(const struct pool *pool);
/* Store it if it is, and it is time or @now. */
void failure_retry(struct pool *pool, bool now) TP_TAKES(meta_root);
/* Any thread.  The data device has failed @io: count and log it. */
void data_error(struct pool *pool, const struct io_request *io, int r);
/* 0, or -EIO for the handle of a flush that has to be told of lost writes; see pool.h. */
int volume_take_loss(const struct pool_io *io) TP_TAKES(pool) TP_MUST_CHECK;
/* Any thread.  0, or -EIO for a change by a disk that has been told. */
int volume_check_disk(const struct pool_io *io) TP_TAKES(pool) TP_MUST_CHECK;

/* ---- autoextend.c (worker only) ---- */

/* Data and metadata grow if it is time and they can; who waits for data space is then retried. */
void autoextend_run(struct pool *pool) TP_TAKES(throttle);
/* Metadata alone: after each commit, before the mode follows. */
void autoextend_metadata(struct pool *pool) TP_TAKES(throttle);
/* What was in the way of data may be gone then; UINT64_MAX: that is not to be expected. */
uint64_t autoextend_deadline(const struct pool *pool);

/* ---- low-water.c ---- */

/* The mark in bytes of free space; 0: none.  Any thread. */
uint64_t low_water_mark(const struct pool_low_water *low_water, uint64_t total);
/* Worker only.  Has free space come down to a mark, or risen well above it? */
void low_water_check(struct pool *pool, const struct thin_metadata_info *info) TP_TAKES(fuse);

#endif
