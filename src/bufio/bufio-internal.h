/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bufio-internal.h - what the files of bufio/ share: the structures and the calls between them
 *
 *   bufio.c         life of a client, lookup, hold, new, dirty, forget, reset, statistics
 *   bufio-memory.c  memory of buffers, the reserve, eviction
 *   bufio-read.c    reads: synchronous, prefetched, awaited; waiters
 *   bufio-write.c   write-back
 *   bufio-helper.c  the helper thread and the shrinker callbacks
 *
 * Locks: a shard's lock guards everything about the buffers in it but what is atomic; the
 * client's lock comes after it and is never held while a shard's is taken.  hold goes from 0
 * to 1 only under the shard's lock (shared is enough), so who has it exclusively and sees 0
 * may free the buffer; it goes down without a lock.  A state bit changes only under the
 * shard's lock held exclusively.
 */
#ifndef TP_BUFIO_BUFIO_INTERNAL_H
#define TP_BUFIO_BUFIO_INTERNAL_H

#include <stdatomic.h>
#include <sys/queue.h>

#include "bufio/bufio.h"
#include "reclaim/shrinker.h"
#include "thinpoold/disk-format.h"
#include "util/lock-class.h"

#define SHARD_BITS 6
#define NR_SHARDS (1u << SHARD_BITS)
/* So many neighbours share a shard, so that they are written together. */
#define SHARD_GROUP_BITS 4

enum buffer_state {
	BUFFER_READING = 1 << 0, /* not valid yet; the reader alone touches the data */
	BUFFER_DIRTY = 1 << 1,   /* on the shard's dirty list, else on its clean list */
	BUFFER_WRITING = 1 << 2, /* a copy is on its way to the device; no second one may start */
	BUFFER_DROP = 1 << 3,    /* forgotten while READING or WRITING: drop it when that ends */
	BUFFER_ORPHAN = 1 << 4,  /* with READING: not hashed any more, somebody was in a hurry */
};

struct bufio_buffer {
	struct bufio_buffer *next; /* of the bucket, or of a free list */
	mblock_t block;
	struct bufio_client *client;
	void *data;
	_Atomic uintptr_t aux;
	atomic_uint hold;
	atomic_uint state; /* enum buffer_state */
	atomic_bool referenced;

	/* guarded by the shard's lock */
	unsigned age; /* sweeps since it was last used */
	int error; /* of a failed read, for those who hold it; the buffer is not hashed any more */
	uint64_t pass;                     /* the last write pass that took it */
	const struct bufio_thread *reader; /* while READING: in whose queue; NULL: synchronous */
	TAILQ_ENTRY(bufio_buffer) link;
	STAILQ_HEAD(, bufio_waiter) waiters;

	struct io_request read; /* of an asynchronous read */
	bool resident;          /* data has memory; belongs to who has the buffer to himself */
	bool unlocked;          /* memory was locked before it was given back */
};

TAILQ_HEAD(buffer_list, bufio_buffer);
STAILQ_HEAD(waiter_list, bufio_waiter);

struct bufio_shard {
	struct tp_lock lock;
	struct bufio_buffer **buckets TP_GUARDED_BY(lc_bufio);
	unsigned bucket_bits TP_GUARDED_BY(lc_bufio);
	atomic_uint nr_buffers;
	/* Clock order: the head is looked at first; a referenced one gets another round. */
	struct buffer_list clean TP_GUARDED_BY(lc_bufio);
	struct buffer_list dirty TP_GUARDED_BY(lc_bufio);
} __attribute__((aligned(64)));

/* Threads count apart, so that a hit shares no more cache lines than it must. */
#define COUNTER_BITS 4
#define NR_COUNTERS (1u << COUNTER_BITS)
struct bufio_counters {
	_Atomic uint64_t hits, misses;
} __attribute__((aligned(64)));

struct write_batch;

/* What the helper was asked for. */
struct helper_work {
	uint64_t shrink; /* buffers to free */
	bool write_back, limit, refill, age;
};

struct bufio_client {
	struct io_device *dev;
	char *name;
	void (*prepare_write)(mblock_t block, void *data, uintptr_t aux);
	struct shrinker *shrinker;
	unsigned reserve; /* buffers */
	struct write_batch *batches;

	_Atomic uint64_t limit, nr_cached, nr_dirty; /* buffers */
	_Atomic uint64_t reads, writes, shrunk, resets;
	atomic_uint nr_reading;       /* goes down under the client's lock */
	atomic_uint hand;             /* the shard where eviction looks next */
	atomic_bool resetting;        /* set and cleared under the client's lock */
	atomic_bool fail_allocations; /* for tests */

	struct tp_lock lock;    /* class bufio_lru */
	pthread_cond_t changed; /* a read, write pass, helper pass or reset has ended */
	pthread_cond_t work;    /* for the helper */

	/* memory: buffers nobody uses; "ready" ones have memory and hold the reserve */
	struct bufio_buffer *ready TP_GUARDED_BY(lc_bufio_lru);
	struct bufio_buffer *idle TP_GUARDED_BY(lc_bufio_lru);
	unsigned nr_ready TP_GUARDED_BY(lc_bufio_lru);
	struct buffer_slab *slabs TP_GUARDED_BY(lc_bufio_lru);

	/* write-back: one pass at a time, and who is in it owns the batches */
	bool writer_busy TP_GUARDED_BY(lc_bufio_lru);
	atomic_uint nr_flushers; /* threads that want to be the writer; background passes yield */
	int write_error TP_GUARDED_BY(lc_bufio_lru); /* sticky */
	_Atomic mblock_t failed_block;               /* of the last write error */
	uint64_t pass TP_GUARDED_BY(lc_bufio_lru);

	/* helper */
	pthread_t helper;
	bool helper_runs;
	bool helper_stop TP_GUARDED_BY(lc_bufio_lru);
	bool helper_busy TP_GUARDED_BY(lc_bufio_lru); /* in a pass */
	struct helper_work wanted TP_GUARDED_BY(lc_bufio_lru);
	/* Scans of the shrinker, numbered: asked for, and those whose buffers are free by now. */
	uint64_t scans_asked TP_GUARDED_BY(lc_bufio_lru), scans_done TP_GUARDED_BY(lc_bufio_lru);
	struct waiter_list calls TP_GUARDED_BY(lc_bufio_lru); /* waiters the helper is to call */

	struct bufio_counters counters[NR_COUNTERS];
	struct bufio_shard shards[NR_SHARDS];
};

/* The calling thread's relation to bufio/, whatever the client. */
struct bufio_thread {
	unsigned nr_reads;   /* in flight in its own queue */
	unsigned pumping;    /* bufio/ runs its queue: the caller of bufio/ may hold locks */
	unsigned submitting; /* inside a device's submission */
	struct io_queue *write_queue; /* for write passes only: no foreign callback runs there */
};
extern _Thread_local struct bufio_thread bufio_self;

/* ---- bufio.c ---- */

static inline struct bufio_shard *shard_of(struct bufio_client *c, mblock_t block)
{
	return &c->shards[((block >> SHARD_GROUP_BITS) * UINT64_C(0x9e3779b97f4a7c15)) >>
			  (64 - SHARD_BITS)];
}

static inline unsigned buffer_state(const struct bufio_buffer *b)
{
	return atomic_load_explicit(&b->state, memory_order_acquire);
}

static inline void buffer_set_state(struct bufio_buffer *b, unsigned state) TP_REQUIRES(lc_bufio)
{
	atomic_store_explicit(&b->state, state, memory_order_release);
}

struct bufio_buffer *shard_find(const struct bufio_shard *s, mblock_t block)
	TP_REQUIRES_SHARED(lc_bufio);

/* Hash @b, which is the caller's alone, as @block. */
void shard_insert(struct bufio_shard *s, struct bufio_buffer *b, mblock_t block, unsigned state)
	TP_REQUIRES(lc_bufio);

/* Take @b out of the shard; it then belongs to the caller and to who still holds it. */
void shard_remove(struct bufio_shard *s, struct bufio_buffer *b) TP_REQUIRES(lc_bufio);

/* Move @b between the lists; @b is in the other state. */
void buffer_make_dirty(struct bufio_shard *s, struct bufio_buffer *b) TP_REQUIRES(lc_bufio);
void buffer_make_clean(struct bufio_shard *s, struct bufio_buffer *b) TP_REQUIRES(lc_bufio);

/* ---- bufio-memory.c ---- */

enum alloc_how {
	ALLOC_IF_EASY, /* for prefetches: never above the limit, never from the reserve */
	ALLOC_WANTED,  /* above the limit if need be, never from the reserve; does not sleep */
	ALLOC_MUST,    /* to the last buffer; may write dirty ones first, so it may sleep */
};

/* A buffer for the caller alone: hold 0, state 0, aux 0, data undefined.  NULL: no memory. */
struct bufio_buffer *buffer_alloc(struct bufio_client *c, enum alloc_how how)
	TP_TAKES(bufio) TP_MUST_CHECK;
/* The reverse; fills the reserve first.  NULL is allowed. */
void buffer_free(struct bufio_client *c, struct bufio_buffer *b) TP_TAKES(bufio_lru);

/* Take the least recently used buffer that is clean and unheld.  NULL: there is none. */
struct bufio_buffer *evict_one(struct bufio_client *c) TP_TAKES(bufio);
/* Free at most @nr such buffers; returns how many there were. */
uint64_t evict_count(struct bufio_client *c, uint64_t nr) TP_TAKES(bufio);
/* One sweep of ageing: free what was not used during the last sweeps. */
void evict_aged(struct bufio_client *c) TP_TAKES(bufio);

/* Bring the reserve to its size, if there is memory. */
void reserve_refill(struct bufio_client *c) TP_TAKES(bufio);
bool reserve_is_full(struct bufio_client *c) TP_TAKES(bufio_lru);
/* Give back the memory of spare buffers that are not needed for the reserve. */
void memory_trim(struct bufio_client *c) TP_TAKES(bufio_lru);
/* Everything; no buffer is cached any more. */
void memory_destroy(struct bufio_client *c);

/* ---- bufio-read.c ---- */

/*
 * Wait until @b, held by the caller, is not READING: it is read synchronously by somebody
 * or in the caller's own queue.  Returns the read's result; the hold stays.
 */
int buffer_await_read(struct bufio_buffer *b) TP_TAKES(bufio) TP_MUST_CHECK;
/* Read the block of @b, which the caller has just inserted READING.  On failure the hold is gone.
 */
int buffer_read_now(struct bufio_buffer *b) TP_TAKES(bufio) TP_MUST_CHECK;
/* The asynchronous read of @b is not waited for: unhash it and take over its waiters. */
void buffer_orphan(struct bufio_shard *s, struct bufio_buffer *b, struct waiter_list *ret_waiters)
	TP_REQUIRES(lc_bufio);
/* Drop a hold on a buffer whose read has failed. */
void buffer_put_failed(struct bufio_buffer *b) TP_TAKES(bufio_lru);
/*
 * Make orphans of all reads in flight and have their waiters told -EAGAIN.  Nobody reads
 * synchronously: that is done with meta_root held, which the caller has exclusively.
 */
void reads_abandon(struct bufio_client *c) TP_TAKES(bufio);
/* Wait until no read is in flight; runs the thread's queue for its own. */
void reads_drain(struct bufio_client *c) TP_TAKES(bufio);

/* ---- bufio-write.c ---- */

enum write_mode {
	WRITE_ALL,        /* for a flush: waits for the running pass; held buffers too */
	WRITE_UNHELD,     /* to get memory: waits for the running pass */
	WRITE_BACKGROUND, /* like UNHELD, but gives way to all others and stops on errors */
};

/*
 * Write at most @quota dirty buffers and wait for them.  WRITE_ALL returns and clears the
 * sticky error, the others return 0.
 */
int write_pass_run(struct bufio_client *c, enum write_mode mode, uint64_t quota) TP_TAKES(bufio);
int write_init(struct bufio_client *c) TP_MUST_CHECK;
void write_destroy(struct bufio_client *c);

/* ---- bufio-helper.c ---- */

extern const struct shrinker_ops bufio_shrinker_ops;

int helper_start(struct bufio_client *c) TP_MUST_CHECK;
void helper_stop(struct bufio_client *c) TP_EXCLUDES_ALL;
/* Add @work to what is wanted and wake the helper. */
void helper_ask(struct bufio_client *c, const struct helper_work *work) TP_TAKES(bufio_lru);
/* Have the waiters called by the helper, with @r. */
void helper_call(struct bufio_client *c, struct waiter_list *waiters, int r) TP_TAKES(bufio_lru);

/* For tests: wait until the helper has done all that it was asked for. */
void bufio_test_settle(struct bufio_client *c) TP_TAKES(bufio_lru);
/* For tests: from now on no memory can be had (or can again). */
void bufio_test_fail_allocations(struct bufio_client *c, bool fail);
/* For tests: buffers that are neither cached nor unused.  0 while nothing is under way. */
uint64_t bufio_test_lost_count(struct bufio_client *c) TP_TAKES(bufio_lru);
/* For tests: buffers in the reserve. */
unsigned bufio_test_reserve_count(struct bufio_client *c) TP_TAKES(bufio_lru);

#endif
