/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bufio.h - the buffer cache of the metadata device, which can be reset in place
 *
 * Layer:    bufio; uses util/, reclaim/ and io/.
 * Threads:  any, at the same time, except where a call says otherwise.  One
 *           helper thread a client shrinks, ages and writes back.
 * Locks:    lookup takes a shard's lock (class "bufio"); sizes, lists and waits
 *           have the client's lock (class "bufio_lru").  Neither is held during I/O.
 * Units:    a block is METADATA_BLOCK_SIZE bytes; block numbers are mblock_t;
 *           sizes are bytes and say so.
 * Errors:   0 or a negative errno; failed reads are not cached.
 *
 * A buffer is held from bufio_read(), _get() or _new() to bufio_release(); held
 * buffers stay.  Who modifies a held buffer excludes other users by locks of
 * upper layers and calls bufio_mark_dirty() before the release.
 *
 * Nobody waits for the event loop of another thread, except bufio_client_destroy().  So a
 * thread with reads of its own in flight (bufio_prefetch(), bufio_read_async()) may sleep on
 * any lock.  If such a thread calls bufio_read() for a block it is reading, its queue is run inside
 * that call: callbacks of others on that queue must cope with the locks the thread
 * holds.  All other calls run no callbacks but bufio's own.
 *
 * A write takes a copy of the buffer first (checksums are made in the copy), so
 * readers may use the buffer while it is written, and a buffer dirtied again
 * meanwhile stays dirty.
 */
#ifndef TP_BUFIO_BUFIO_H
#define TP_BUFIO_BUFIO_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "io/device.h"
#include "thinpoold/types.h"
#include "util/compiler.h"
#include "util/lock-class.h"

struct bufio_client;
struct bufio_buffer;

struct bufio_options {
	const char *name;         /* for messages and the shrinker registry; copied */
	uint64_t limit_bytes;     /* cached buffers; exceeded only by held and dirty ones */
	unsigned reserve_buffers; /* preallocated, so that progress needs no memory; >= 6 */
	/*
	 * Called on the copy about to be written, with the buffer's aux word: fills in
	 * location and checksum.  May be NULL.  Takes no locks.
	 */
	void (*prepare_write)(mblock_t block, void *data, uintptr_t aux);
};

/*
 * A cache of @dev, which stays the caller's.  Registers a shrinker, so it takes the
 * outermost lock: never create or destroy a client below a pool lock; reset it.
 */
int bufio_client_create(struct io_device *dev, const struct bufio_options *options,
			struct bufio_client **ret_c) TP_EXCLUDES_ALL TP_MUST_CHECK;

/* No buffer may be held.  Dirty buffers are dropped, not written.  NULL is allowed.  Returns NULL.
 */
struct bufio_client *bufio_client_destroy(struct bufio_client *c) TP_EXCLUDES_ALL;

/*
 * Empty the cache in place: client, shrinker registration and helper stay.
 *
 *   - dirty buffers are discarded, never written.  That is right because nothing
 *     of an open transaction may overwrite a committed block (L1 to L3);
 *   - writes in flight are awaited first, so that none lands later; reads in event loops are
 *     not: they end in memory that is no longer cached, and their waiters are told -EAGAIN;
 *   - the sticky write error is cleared; remembered block types (aux) are gone;
 *   - the reserve stays filled, so that reopening needs no memory;
 *   - a running helper pass is awaited, with no lock held that it needs.
 *
 * Preconditions (checked): the caller holds meta_root exclusively, so no buffer is
 * held; whatever caches roots, index entries or shadows was destroyed before; the
 * caller is not itself inside the submission of metadata I/O.  No prefetch may be
 * started by others until meta_root is dropped.
 */
void bufio_client_reset(struct bufio_client *c) TP_REQUIRES(lc_meta_root) TP_TAKES(bufio);

/* The block, read if need be; the calling thread sleeps for the I/O.  -EIO, -ENOMEM. */
int bufio_read(struct bufio_client *c, mblock_t block, struct bufio_buffer **ret_b)
	TP_TAKES(bufio) TP_MUST_CHECK;

/* The block if it is cached and valid, else -EWOULDBLOCK.  Never sleeps for I/O. */
int bufio_get(struct bufio_client *c, mblock_t block, struct bufio_buffer **ret_b)
	TP_TAKES(bufio) TP_MUST_CHECK;

/* The block without reading it: zeroed, aux 0.  For blocks about to be written whole. */
int bufio_new(struct bufio_client *c, mblock_t block, struct bufio_buffer **ret_b)
	TP_TAKES(bufio) TP_MUST_CHECK;

void bufio_release(struct bufio_buffer *b);

/* By a holder that changed the data. */
void bufio_mark_dirty(struct bufio_buffer *b) TP_TAKES(bufio);

void *bufio_data(struct bufio_buffer *b); /* METADATA_BLOCK_SIZE bytes, 4096-aligned */
mblock_t bufio_block(const struct bufio_buffer *b);

/* A word of the holder's, kept as long as the buffer is cached; 0 at first.  Atomic. */
uintptr_t bufio_aux(const struct bufio_buffer *b);
void bufio_set_aux(struct bufio_buffer *b, uintptr_t aux);

/*
 * Start reading blocks into the cache through the calling thread's queue, without
 * waiting.  Blocks cached already are passed over; errors are forgotten.
 */
void bufio_prefetch(struct bufio_client *c, mblock_t block, unsigned nr_blocks) TP_TAKES(bufio);

/* Told once a read has ended; embedded in the caller's structure. */
struct bufio_waiter {
	void (*done)(struct bufio_waiter *w, int r); /* any thread, no lock held; 0 or -errno */
	/* private to bufio/ */
	int result;
	STAILQ_ENTRY(bufio_waiter) link;
};

/*
 * Like a prefetch of one block, with a call when it is there (or failed, or was reset
 * away: -EAGAIN).  Returns -EINPROGRESS if @w will be called, 0 if the block is cached
 * already, or an error; @w is not called in the latter two cases.
 */
int bufio_read_async(struct bufio_client *c, mblock_t block, struct bufio_waiter *w)
	TP_TAKES(bufio) TP_MUST_CHECK;

/*
 * Write all dirty buffers, held ones too, in batches and wait for them; then report and
 * clear the sticky write error.  Nobody may be changing a buffer meanwhile; reading is
 * fine.  What could not be written stays dirty, and after an error the rest is not tried.
 * Does not flush the device.
 */
int bufio_write_dirty_buffers(struct bufio_client *c) TP_TAKES(bufio) TP_MUST_CHECK;

/* The first block of the last write that failed, whoever wrote; says nothing before one has. */
mblock_t bufio_failed_block(const struct bufio_client *c);

/* Start writing dirty buffers that nobody holds in the background (the helper does it). */
void bufio_write_dirty_buffers_async(struct bufio_client *c) TP_TAKES(bufio_lru);

/* Make durable what was written. */
int bufio_issue_flush(struct bufio_client *c) TP_TAKES(bufio) TP_MUST_CHECK;

/* The block is free now: drop it, dirty or not, unless held. */
void bufio_forget(struct bufio_client *c, mblock_t block) TP_TAKES(bufio);

void bufio_get_stats(struct bufio_client *c, struct cache_stats *ret_stats);

void bufio_set_limit(struct bufio_client *c, uint64_t limit_bytes) TP_TAKES(bufio);

#endif
