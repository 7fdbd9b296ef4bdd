/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * transaction-manager.h - copy-on-write of metadata blocks, and the two-phase commit
 *
 * A transaction is everything since the last commit.  Committed blocks are never
 * overwritten (L1): who wants to change one shadows it.
 *
 * Layer:    pdata.
 * Threads:  changes by the one mutator (meta_root held exclusively); reads by anyone who
 *           holds meta_root shared.
 * Units:    metadata blocks (mblock_t).
 * Errors:   those of block-manager.h and space-map.h.  After an error of a change the only
 *           legal calls are tm_destroy() and reading: the transaction must be aborted.
 */
#ifndef TP_PDATA_TRANSACTION_MANAGER_H
#define TP_PDATA_TRANSACTION_MANAGER_H

#include "pdata/block-manager.h"
#include "pdata/space-map.h"
#include "util/lock-class.h"

struct transaction_manager;

/* @bm and @sm (the metadata space map) stay the caller's. */
int tm_create(struct block_manager *bm, struct space_map *sm,
	      struct transaction_manager **ret_tm) TP_MUST_CHECK;
struct transaction_manager *tm_destroy(struct transaction_manager *tm);

struct block_manager *tm_block_manager(struct transaction_manager *tm);

/* A new block, zeroed and write-locked, count 1. */
int tm_new_block(struct transaction_manager *tm, const struct block_validator *v,
		 struct locked_block **ret_lb) TP_TAKES(bufio) TP_MUST_CHECK;

/*
 * A write-locked block with the content of @orig that may be changed: @orig itself if it was
 * made in this transaction and is not shared, else a copy at a new location (and @orig loses
 * one reference).  The caller stores the new location in the parent; if *@ret_inc it also
 * increments everything the block points at, because two blocks now do.
 */
int tm_shadow_block(struct transaction_manager *tm, mblock_t orig, const struct block_validator *v,
		    struct locked_block **ret_lb, bool *ret_inc) TP_TAKES(bufio) TP_MUST_CHECK;

int tm_read_lock(struct transaction_manager *tm, mblock_t b, const struct block_validator *v,
		 struct locked_block **ret_lb) TP_TAKES(bufio) TP_MUST_CHECK;
/* -EWOULDBLOCK instead of I/O; then *@ret_missing is the block to read (bm_read_async()). */
int tm_read_try_lock(struct transaction_manager *tm, mblock_t b, const struct block_validator *v,
		     struct locked_block **ret_lb, mblock_t *ret_missing)
	TP_TAKES(bufio) TP_MUST_CHECK;
void tm_unlock(struct transaction_manager *tm, struct locked_block *lb) TP_TAKES(bufio);

int tm_inc(struct transaction_manager *tm, mblock_t b) TP_MUST_CHECK;
int tm_inc_range(struct transaction_manager *tm, mblock_t begin, mblock_t end) TP_MUST_CHECK;
/* A block whose count falls to 0 leaves the cache. */
int tm_dec(struct transaction_manager *tm, mblock_t b) TP_TAKES(bufio) TP_MUST_CHECK;
int tm_ref(struct transaction_manager *tm, mblock_t b, uint32_t *ret_count) TP_MUST_CHECK;
int tm_block_is_shared(struct transaction_manager *tm, mblock_t b, bool *ret_shared) TP_MUST_CHECK;

/*
 * The commit, in pieces, so that the I/O can be done with meta_root held shared:
 *
 *   (the caller writes details, then sm_commit() of the data map)
 *   tm_pre_commit()   exclusive  sm_commit() of the metadata map: the last allocations
 *   tm_flush()        shared     all dirty blocks written and flushed
 *   (the caller fills the superblock, write-locked, exclusive)
 *   tm_end_transaction() exclusive  empties the shadow set
 *   tm_flush()        shared     the superblock written and flushed
 */
int tm_pre_commit(struct transaction_manager *tm) TP_MUST_CHECK;
int tm_flush(struct transaction_manager *tm) TP_TAKES(bufio) TP_MUST_CHECK;
void tm_end_transaction(struct transaction_manager *tm);

#endif
