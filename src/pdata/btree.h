/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * btree.h - copy-on-write B-trees with 64-bit keys and values of a fixed size
 *
 * A tree of @levels levels is a tree whose values are roots of trees, and so on; keys is
 * then an array of @levels keys.  Only the innermost values are the caller's.
 *
 * Layer:    pdata.
 * Threads:  changes by the one mutator (meta_root exclusive), lookups under meta_root shared.
 * Units:    keys are plain numbers; sizes of values are bytes; counts are entries.
 * Values:   little-endian, info->value_type.size bytes, passed by pointer.
 * Errors:   -ENODATA    no such key (lookup, remove); nothing was changed
 *           -EUCLEAN    the tree breaks the format's rules (type, order, depth, a cycle, wrong
 *                       value size, a child outside its parent's range); logged with block number
 *           -EWOULDBLOCK from the try forms
 *           and those of transaction-manager.h.
 *           After any other error of a change the transaction must be aborted.
 * The disk is not trusted: depth is bounded (BTREE_MAX_DEPTH), so a cycle ends as -EUCLEAN.
 */
#ifndef TP_PDATA_BTREE_H
#define TP_PDATA_BTREE_H

#include "pdata/transaction-manager.h"
#include "util/lock-class.h"

/* Enough for 2^64 keys at minimum fill; deeper is damage. */
#define BTREE_MAX_DEPTH 16

struct btree_value_type {
	uint32_t size; /* bytes */
	void *context;
	/*
	 * @nr values at @values (packed) were copied into a second block, or are going away:
	 * count what they refer to.  NULL: they refer to nothing.  Work on runs where possible.
	 */
	int (*inc)(void *context, const void *values, unsigned nr);
	int (*dec)(void *context, const void *values, unsigned nr);
	/* Do both refer to the same thing (then overwriting one by the other releases nothing)? */
	bool (*equal)(void *context, const void *a, const void *b);
};

struct btree_info {
	struct transaction_manager *tm;
	unsigned levels; /* >= 1 */
	struct btree_value_type value_type;
};

int btree_empty(const struct btree_info *info, mblock_t *ret_root) TP_TAKES(bufio) TP_MUST_CHECK;

/* Release the tree: its blocks where nobody else has them, and then what its values refer to. */
int btree_del(const struct btree_info *info, mblock_t root) TP_TAKES(bufio) TP_MUST_CHECK;

int btree_lookup(const struct btree_info *info, mblock_t root, const uint64_t *keys,
		 void *ret_value) TP_TAKES(bufio) TP_MUST_CHECK;

/* Without I/O: -EWOULDBLOCK and the missing block. */
int btree_try_lookup(const struct btree_info *info, mblock_t root, const uint64_t *keys,
		     void *ret_value, mblock_t *ret_missing) TP_TAKES(bufio) TP_MUST_CHECK;

/* The smallest innermost key >= keys[levels - 1] (the outer keys must match), and its value. */
int btree_lookup_next(const struct btree_info *info, mblock_t root, const uint64_t *keys,
		      uint64_t *ret_key, void *ret_value) TP_TAKES(bufio) TP_MUST_CHECK;

/* Single-level trees: one descent collects the entries of the leaf with keys >= @key and < @end. */
struct btree_run {
	unsigned nr;       /* entries found, 0: none in [key, end) within this leaf */
	uint64_t next_key; /* go on here; == end when the range is exhausted */
};
/*
 * @keys and @values have room for @max entries.  With @block false no I/O is done
 * (-EWOULDBLOCK, *@ret_missing).
 */
int btree_lookup_run(const struct btree_info *info, mblock_t root, uint64_t key, uint64_t end,
		     bool block, unsigned max, uint64_t *keys, void *values,
		     struct btree_run *ret_run, mblock_t *ret_missing)
	TP_TAKES(bufio) TP_MUST_CHECK;

/*
 * *@ret_inserted: the key was new.  May be NULL.  The caller provides the value's reference,
 * unless it overwrites a value that is equal.  An outer key that is missing gets an empty tree.
 */
int btree_insert(const struct btree_info *info, mblock_t root, const uint64_t *keys,
		 const void *value, mblock_t *ret_root, bool *ret_inserted)
	TP_TAKES(bufio) TP_MUST_CHECK;

int btree_remove(const struct btree_info *info, mblock_t root, const uint64_t *keys,
		 mblock_t *ret_root) TP_TAKES(bufio) TP_MUST_CHECK;

/*
 * Remove innermost keys in [keys[levels - 1], end) of one leaf: as many as that leaf has.
 * *@ret_nr counts them; -ENODATA: there are none at all in the range any more.
 */
int btree_remove_leaves(const struct btree_info *info, mblock_t root, const uint64_t *keys,
			uint64_t end, mblock_t *ret_root, unsigned *ret_nr)
	TP_TAKES(bufio) TP_MUST_CHECK;

/* Innermost keys of a single-level tree, or outermost of several; -ENODATA: empty. */
int btree_find_lowest_key(const struct btree_info *info, mblock_t root, uint64_t *ret_key)
	TP_TAKES(bufio) TP_MUST_CHECK;
int btree_find_highest_key(const struct btree_info *info, mblock_t root, uint64_t *ret_key)
	TP_TAKES(bufio) TP_MUST_CHECK;

/* Call @fn for each entry of a single-level tree in key order until it returns non-zero. */
int btree_walk(const struct btree_info *info, mblock_t root,
	       int (*fn)(void *context, uint64_t key, const void *value), void *context)
	TP_TAKES(bufio) TP_MUST_CHECK;

extern const struct block_validator btree_node_validator;

#endif
