/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * block-manager.h - typed, locked access to metadata blocks
 *
 * Layer:    pdata; the only user of bufio/.
 * Threads:  readers share; one mutator at a time (who holds meta_root
 *           exclusively), see thin/thin-metadata.h.
 * Locks:    a locked block holds its buffer.  Exclusion between threads comes from
 *           meta_root; debug builds stop the program when readers meet a writer.
 *           A writer that comes upon its own locked block again has been led there
 *           by damage (a block named twice): -EUCLEAN.
 * Units:    a block is METADATA_BLOCK_SIZE bytes; block numbers are mblock_t.
 * Errors:   0 or a negative errno.  Damage is logged here, with block number.
 *             -EILSEQ       checksum or magic is wrong
 *             -ENOTBLK      the block says it lives elsewhere
 *             -EUCLEAN      the content breaks a rule of the format, the block was
 *                           used as another type before or is locked for writing
 *                           already, or it lies past the end
 *             -EWOULDBLOCK  would need I/O (try forms only)
 *             -EPERM        the block manager is read-only
 *             -EIO, -ENOMEM
 */
#ifndef TP_PDATA_BLOCK_MANAGER_H
#define TP_PDATA_BLOCK_MANAGER_H

#include <stdbool.h>
#include <stdint.h>

#include "thinpoold/disk-format.h"
#include "thinpoold/types.h"
#include "util/compiler.h"
#include "util/lock-class.h"

struct io_device;
struct block_manager;
struct locked_block; /* a block between lock and unlock */
struct block_waiter;

/*
 * What makes a block of one type valid.  @check runs once, when the block enters
 * the cache, after location and checksum were found right; it must bound every
 * count and pointer it can (counts against capacity, value sizes, flags), so that
 * later code need not fear wild reads.
 */
struct block_validator {
	const char *name;  /* for messages: "superblock", "btree node" ... */
	uint32_t csum_xor; /* disk-format.h */
	int (*check)(const void *data, mblock_t block, mblock_t nr_blocks);
};

struct block_manager_options {
	uint64_t cache_bytes;
	bool read_only;
};

/* @dev stays the caller's.  Creates a buffer cache, so: not below any lock. */
int bm_create(struct io_device *dev, const struct block_manager_options *options,
	      struct block_manager **ret_bm) TP_EXCLUDES_ALL TP_MUST_CHECK;
struct block_manager *bm_destroy(struct block_manager *bm) TP_EXCLUDES_ALL;

/* Whole blocks of the device, at most MAX_METADATA_BLOCKS.  Follows a resize of the device. */
mblock_t bm_nr_blocks(const struct block_manager *bm);

/* Lock for reading; the thread sleeps for the I/O. */
int bm_read_lock(struct block_manager *bm, mblock_t b, const struct block_validator *v,
		 struct locked_block **ret_lb) TP_TAKES(bufio) TP_MUST_CHECK;
/* The same without I/O. */
int bm_read_try_lock(struct block_manager *bm, mblock_t b, const struct block_validator *v,
		     struct locked_block **ret_lb) TP_TAKES(bufio) TP_MUST_CHECK;
/* For changing it; marks it dirty at unlock. */
int bm_write_lock(struct block_manager *bm, mblock_t b, const struct block_validator *v,
		  struct locked_block **ret_lb) TP_TAKES(bufio) TP_MUST_CHECK;
/* A new block: not read, all zeros. */
int bm_write_lock_zero(struct block_manager *bm, mblock_t b, const struct block_validator *v,
		       struct locked_block **ret_lb) TP_TAKES(bufio) TP_MUST_CHECK;
void bm_unlock(struct locked_block *lb) TP_TAKES(bufio);

mblock_t block_location(const struct locked_block *lb);
const void *block_data(const struct locked_block *lb);
void *block_data_mut(struct locked_block *lb); /* write-locked only */

/*
 * Block 0 exactly as it lies on the device, without validation: to tell an unformatted
 * device (all zeros) from a damaged one.  @data: METADATA_BLOCK_SIZE bytes, 4096-aligned.
 */
int bm_read_raw(struct block_manager *bm, mblock_t b, void *data) TP_TAKES(bufio) TP_MUST_CHECK;

/* Write all dirty blocks, wait, flush the device.  -EPERM when read-only. */
int bm_flush(struct block_manager *bm) TP_TAKES(bufio) TP_MUST_CHECK;

/* See bufio_client_reset(): same preconditions. */
void bm_reset(struct block_manager *bm) TP_REQUIRES(lc_meta_root) TP_TAKES(bufio);

void bm_prefetch(struct block_manager *bm, mblock_t b, unsigned nr_blocks) TP_TAKES(bufio);

/* See bufio_read_async(). @done may be called by any thread, with no lock held. */
struct block_waiter {
	void (*done)(struct block_waiter *w, int r);
	uintptr_t opaque[4]; /* private to pdata/ */
};
int bm_read_async(struct block_manager *bm, mblock_t b, struct block_waiter *w)
	TP_TAKES(bufio) TP_MUST_CHECK;

void bm_forget(struct block_manager *bm, mblock_t b) TP_TAKES(bufio);

/*
 * What the last call that failed, of any thread, ran into.  Kept over resets, so that who
 * aborts can still tell why.
 */
enum bm_failure_kind {
	BM_FAILURE_NONE,
	BM_FAILURE_READ,
	BM_FAILURE_WRITE,
	BM_FAILURE_FLUSH,   /* no block */
	BM_FAILURE_CONTENT, /* it was read, and is not what it should be */
};
struct bm_failure {
	enum bm_failure_kind kind;
	int error; /* what the call returned */
	mblock_t block;
};
struct bm_failure bm_last_failure(const struct block_manager *bm);

/* Write locks and flushes return -EPERM from now on, or no longer do. */
void bm_set_read_only(struct block_manager *bm, bool read_only);
bool bm_is_read_only(const struct block_manager *bm);

void bm_get_stats(struct block_manager *bm, struct cache_stats *ret_stats);
void bm_set_cache_limit(struct block_manager *bm, uint64_t bytes) TP_TAKES(bufio);

/* Checksum of a block of this type, as it belongs at byte 0. */
uint32_t bm_checksum(const void *data, uint32_t csum_xor);

#endif
