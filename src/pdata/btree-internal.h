/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * btree-internal.h - nodes, and the way down to one
 *
 * Layer:    pdata; private to btree*.c.
 * Errors:   as btree.h.
 *
 * Every node is reached through its parent, so whoever descends knows which keys it may
 * hold.  struct key_range carries that knowledge, and node_fits() holds each node against
 * it: a pointer to a foreign or old node is found even where that node is valid by itself.
 * Because the ranges of siblings are disjoint, no node can be reached on two paths of one
 * tree, and every walk is bounded by the number of blocks.
 */
#ifndef TP_PDATA_BTREE_INTERNAL_H
#define TP_PDATA_BTREE_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "pdata/btree.h"
#include "util/le.h"
#include "util/lock-class.h"

/* Mapping trees have two; recursion over levels is bounded by it. */
#define BTREE_MAX_LEVELS 2

struct btree_node {
	struct disk_node_header header;
	struct le64 keys[]; /* max_entries of them, then the values */
};

/* Keys from @first to @last, both included. */
struct key_range {
	uint64_t first, last;
};

#define ALL_KEYS ((struct key_range){ 0, UINT64_MAX })

/* ---- reading a node ---- */

static inline const struct btree_node *node_of(const struct locked_block *lb)
{
	return block_data(lb);
}

static inline struct btree_node *node_of_mut(struct locked_block *lb)
{
	return block_data_mut(lb);
}

static inline bool node_is_leaf(const struct btree_node *n)
{
	return le32_get(n->header.flags) & LEAF_NODE;
}

static inline unsigned node_nr(const struct btree_node *n)
{
	return le32_get(n->header.nr_entries);
}

static inline unsigned node_max(const struct btree_node *n)
{
	return le32_get(n->header.max_entries);
}

/* What a node that is not a root has at least. */
static inline unsigned node_min(const struct btree_node *n)
{
	return node_max(n) / 3;
}

static inline unsigned node_free(const struct btree_node *n)
{
	return node_max(n) - node_nr(n);
}

static inline unsigned node_value_size(const struct btree_node *n)
{
	return le32_get(n->header.value_size);
}

static inline uint64_t node_key(const struct btree_node *n, unsigned i)
{
	return le64_get(n->keys[i]);
}

static inline const void *node_value(const struct btree_node *n, unsigned i)
{
	return (const uint8_t *)&n->keys[node_max(n)] + (size_t)i * node_value_size(n);
}

static inline void *node_value_mut(struct btree_node *n, unsigned i)
{
	return (uint8_t *)&n->keys[node_max(n)] + (size_t)i * node_value_size(n);
}

/* The values of internal nodes and of the leaves of outer trees: locations. */
static inline mblock_t node_child(const struct btree_node *n, unsigned i)
{
	return le64_get(*(const struct le64 *)node_value(n, i));
}

/* The largest i whose key is not above @key; -1: all are. */
static inline int node_search(const struct btree_node *n, uint64_t key)
{
	const struct le64 *base = n->keys;
	unsigned len = node_nr(n);

	if (len == 0 || le64_get(base[0]) > key)
		return -1;
	while (len > 1) { /* base[0] <= key, and the answer is one of len entries from there */
		unsigned half = len / 2;

		base += le64_get(base[half]) <= key ? half : 0; /* a conditional move */
		len -= half;
	}
	return (int)(base - n->keys);
}

/* Index of the entry with exactly @key, or -1. */
static inline int node_find(const struct btree_node *n, uint64_t key)
{
	int i = node_search(n, key);

	return i >= 0 && node_key(n, (unsigned)i) == key ? i : -1;
}

/* What child @i of @n may hold, @n itself being limited to @range. */
static inline struct key_range node_child_range(const struct btree_node *n, unsigned i,
						struct key_range range)
{
	return (struct key_range){
		.first = node_key(n, i),
		.last = i + 1 < node_nr(n) ? node_key(n, i + 1) - 1 : range.last,
	};
}

/* ---- is this node one that may stand here? ---- */

static inline bool level_is_innermost(const struct btree_info *info, unsigned level)
{
	return level + 1 == info->levels;
}

static inline unsigned leaf_value_size(const struct btree_info *info, unsigned level)
{
	return level_is_innermost(info, level) ? info->value_type.size
					       : (unsigned)sizeof(struct le64);
}

/* @depth counts from the root of its own tree.  What the validator checked is taken as given. */
static inline bool node_fits(const struct btree_info *info, unsigned level,
			     const struct btree_node *n, struct key_range range, unsigned depth)
{
	unsigned nr = node_nr(n);

	if (node_is_leaf(n)) {
		if (node_value_size(n) != leaf_value_size(info, level))
			return false;
	} else if (depth + 1 >= BTREE_MAX_DEPTH) {
		return false;
	}
	if (nr == 0)
		return depth == 0;
	return node_key(n, 0) >= range.first && node_key(n, nr - 1) <= range.last;
}

/* It does not: say what is wrong.  Returns -EUCLEAN. */
int node_misfit(const struct btree_info *info, unsigned level, const struct locked_block *lb,
		struct key_range range, unsigned depth);

static inline int node_check(const struct btree_info *info, unsigned level,
			     const struct locked_block *lb, struct key_range range, unsigned depth)
{
	if (likely(node_fits(info, level, node_of(lb), range, depth)))
		return 0;
	return node_misfit(info, level, lb, range, depth);
}

/* Any other rule broken, found at @block.  Returns -EUCLEAN. */
int btree_damaged(mblock_t block, const char *what);

/* ---- changing a node ---- */

void node_init(struct btree_node *n, uint32_t flags, uint32_t value_size);
void node_set_key(struct btree_node *n, unsigned i, uint64_t key);
void node_set_child(struct btree_node *n, unsigned i, mblock_t child);
void node_insert(struct btree_node *n, unsigned at, uint64_t key, const void *value);
void node_insert_child(struct btree_node *n, unsigned at, uint64_t key, mblock_t child);
void node_delete(struct btree_node *n, unsigned at, unsigned nr);
/* All of @src goes behind (or in front of) what @dst has; @src stays as it is. */
void node_append_all(struct btree_node *dst, const struct btree_node *src);
void node_prepend_all(struct btree_node *dst, const struct btree_node *src);
/* Move entries between neighbours until @left has @target. */
void node_balance(struct btree_node *left, struct btree_node *right, unsigned target);
/* The last entries of @left and the first of @right go to the empty @middle between them. */
void node_spread(struct btree_node *left, struct btree_node *middle, struct btree_node *right);
bool node_same_kind(const struct btree_node *a, const struct btree_node *b);

/* ---- counts ---- */

/* Two blocks with the content of @n exist now: count what it points at once more. */
int node_inc_pointees(const struct btree_info *info, unsigned level, const struct btree_node *n);

/* ---- finding, for readers ---- */

struct leaf_place {
	struct locked_block *lb; /* read-locked */
	const struct btree_node *n;
	struct key_range range; /* no other leaf has keys of it */
};

/*
 * The leaf of the tree at @root whose range holds @key, or the first leaf if @key is
 * below all.  @wait false: no I/O, -EWOULDBLOCK and *@ret_missing.
 */
int btree_find_leaf(const struct btree_info *info, unsigned level, mblock_t root, uint64_t key,
		    bool wait, struct leaf_place *ret_place, mblock_t *ret_missing)
	TP_TAKES(bufio) TP_MUST_CHECK;

/* Root of the innermost tree that keys[0 .. levels - 1) lead to.  -ENODATA */
int btree_find_inner_root(const struct btree_info *info, mblock_t root, const uint64_t *keys,
			  bool wait, mblock_t *ret_root, mblock_t *ret_missing)
	TP_TAKES(bufio) TP_MUST_CHECK;

/* ---- the way down, for the mutator: btree-spine.c ---- */

struct spine_node {
	struct locked_block *lb; /* write-locked shadow; NULL: none */
	struct btree_node *n;
	struct key_range range;
};

struct btree_spine {
	const struct btree_info *info;
	unsigned level;
	mblock_t root;  /* of this tree, as shadowed */
	unsigned depth; /* of @node */
	unsigned index; /* of @node in @parent */
	struct spine_node parent, node;
};

/* Shadow the root.  After an error of any call: spine_end(). */
int spine_begin(struct btree_spine *s, const struct btree_info *info, unsigned level, mblock_t root)
	TP_TAKES(bufio) TP_MUST_CHECK;
/* Shadow child @i of the node and go there; the parent is let go. */
int spine_step(struct btree_spine *s, unsigned i) TP_TAKES(bufio) TP_MUST_CHECK;
/* Stay below the same parent, but at its child @i. */
int spine_restep(struct btree_spine *s, unsigned i) TP_TAKES(bufio) TP_MUST_CHECK;
/* Back to the parent; its own parent is not known any more. */
void spine_up(struct btree_spine *s) TP_TAKES(bufio);
void spine_end(struct btree_spine *s) TP_TAKES(bufio);

/* Sibling @i of the node, below the same parent, read-locked and found to be of its kind. */
int spine_read_sibling(struct btree_spine *s, unsigned i, struct locked_block **ret_lb)
	TP_TAKES(bufio) TP_MUST_CHECK;
/* The same, shadowed. */
int spine_shadow_sibling(struct btree_spine *s, unsigned i, struct locked_block **ret_lb)
	TP_TAKES(bufio) TP_MUST_CHECK;

/*
 * Shadow the way to the leaf with @key, which must exist, without changing any node's
 * entries.  Gives the leaf's location, the entry's index and its value, a subtree's root;
 * nothing stays locked.
 */
int spine_to_leaf(const struct btree_info *info, unsigned level, mblock_t root, uint64_t key,
		  mblock_t *ret_root, mblock_t *ret_leaf, unsigned *ret_index, mblock_t *ret_child)
	TP_TAKES(bufio) TP_MUST_CHECK;

/* Store @child in entry @index of the shadow @leaf: it needs no count, it replaced the old one. */
int spine_patch_leaf(const struct btree_info *info, mblock_t leaf, unsigned index, mblock_t child)
	TP_TAKES(bufio) TP_MUST_CHECK;

#endif
