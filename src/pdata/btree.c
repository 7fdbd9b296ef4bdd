/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * btree.c - looking things up in a B-tree
 *
 * Readers hold meta_root shared, so nothing changes below them and one node need be held
 * at a time: the child's location and range are noted, the parent is let go, the child is
 * locked.  btree-spine.c tells how the mutator goes down, btree-insert.c and
 * btree-remove.c what it does there, btree-walk.c what concerns whole trees.
 *
 * Internal nodes have no links to their neighbours.  Whoever needs the next leaf looks up
 * the key after the range of this one: some nodes more are visited, but there is only one
 * way to descend.
 */
#include <errno.h>
#include <string.h>

#include "pdata/btree-internal.h"

static inline int lock_node(const struct btree_info *info, mblock_t block, bool wait,
			    struct locked_block **ret_lb, mblock_t *ret_missing)
{
	if (wait)
		return tm_read_lock(info->tm, block, &btree_node_validator, ret_lb);
	return tm_read_try_lock(info->tm, block, &btree_node_validator, ret_lb, ret_missing);
}

int btree_find_leaf(const struct btree_info *info, unsigned level, mblock_t root, uint64_t key,
		    bool wait, struct leaf_place *ret_place, mblock_t *ret_missing)
{
	struct key_range range = ALL_KEYS;
	mblock_t block = root;

	/* Ends: node_check() refuses an internal node that is too deep. */
	for (unsigned depth = 0;; depth++) {
		const struct btree_node *n;
		struct locked_block *lb;
		int i, r;

		r = lock_node(info, block, wait, &lb, ret_missing);
		if (r)
			return r;
		r = node_check(info, level, lb, range, depth);
		if (r) {
			tm_unlock(info->tm, lb);
			return r;
		}
		n = node_of(lb);
		if (node_is_leaf(n)) {
			*ret_place = (struct leaf_place){ .lb = lb, .n = n, .range = range };
			return 0;
		}
		i = MAX(node_search(n, key), 0);
		block = node_child(n, (unsigned)i);
		range = node_child_range(n, (unsigned)i, range);
		tm_unlock(info->tm, lb);
	}
}

static int lookup_in_level(const struct btree_info *info, unsigned level, mblock_t root,
			   uint64_t key, bool wait, void *ret_value, mblock_t *ret_missing)
{
	struct leaf_place place;
	int i, r;

	r = btree_find_leaf(info, level, root, key, wait, &place, ret_missing);
	if (r)
		return r;
	i = node_find(place.n, key);
	if (i >= 0)
		memcpy(ret_value, node_value(place.n, (unsigned)i), node_value_size(place.n));
	tm_unlock(info->tm, place.lb);
	return i >= 0 ? 0 : -ENODATA;
}

int btree_find_inner_root(const struct btree_info *info, mblock_t root, const uint64_t *keys,
			  bool wait, mblock_t *ret_root, mblock_t *ret_missing)
{
	TP_INVARIANT(info->levels >= 1 && info->levels <= BTREE_MAX_LEVELS);
	for (unsigned level = 0; !level_is_innermost(info, level); level++) {
		struct le64 value;
		int r;

		r = lookup_in_level(info, level, root, keys[level], wait, &value, ret_missing);
		if (r)
			return r;
		root = le64_get(value);
	}
	*ret_root = root;
	return 0;
}

static int lookup(const struct btree_info *info, mblock_t root, const uint64_t *keys, bool wait,
		  void *ret_value, mblock_t *ret_missing)
{
	unsigned innermost = info->levels - 1;
	int r;

	r = btree_find_inner_root(info, root, keys, wait, &root, ret_missing);
	if (r)
		return r;
	return lookup_in_level(info, innermost, root, keys[innermost], wait, ret_value,
			       ret_missing);
}

int btree_lookup(const struct btree_info *info, mblock_t root, const uint64_t *keys,
		 void *ret_value)
{
	return lookup(info, root, keys, true, ret_value, NULL);
}

int btree_try_lookup(const struct btree_info *info, mblock_t root, const uint64_t *keys,
		     void *ret_value, mblock_t *ret_missing)
{
	return lookup(info, root, keys, false, ret_value, ret_missing);
}

/* Index of the first entry with a key not below @key; the number of entries if there is none. */
static unsigned first_not_below(const struct btree_node *n, uint64_t key)
{
	int i = node_search(n, key);

	if (i < 0)
		return 0;
	return node_key(n, (unsigned)i) == key ? (unsigned)i : (unsigned)i + 1;
}

int btree_lookup_next(const struct btree_info *info, mblock_t root, const uint64_t *keys,
		      uint64_t *ret_key, void *ret_value)
{
	unsigned innermost = info->levels - 1;
	uint64_t key = keys[innermost];
	int r;

	r = btree_find_inner_root(info, root, keys, true, &root, NULL);
	if (r)
		return r;

	/* The leaf where the key belongs may end before it; then the next leaf has the answer. */
	for (;;) {
		struct leaf_place place;
		unsigned i;
		bool found;

		r = btree_find_leaf(info, innermost, root, key, true, &place, NULL);
		if (r)
			return r;
		i = first_not_below(place.n, key);
		found = i < node_nr(place.n);
		if (found) {
			*ret_key = node_key(place.n, i);
			memcpy(ret_value, node_value(place.n, i), node_value_size(place.n));
		}
		tm_unlock(info->tm, place.lb);
		if (found)
			return 0;
		if (place.range.last == UINT64_MAX)
			return -ENODATA;
		key = place.range.last + 1;
	}
}

/* Copy entries of one leaf with keys in [key, end). */
static void collect_run(const struct leaf_place *place, uint64_t key, uint64_t end, unsigned max,
			uint64_t *keys, void *values, struct btree_run *ret_run)
{
	const struct btree_node *n = place->n;
	unsigned from = first_not_below(n, key);
	unsigned to = first_not_below(n, end);
	unsigned nr = MIN(to - from, max);

	for (unsigned i = 0; i < nr; i++)
		keys[i] = node_key(n, from + i);
	memcpy(values, node_value(n, from), (size_t)nr * node_value_size(n));

	ret_run->nr = nr;
	if (nr < to - from)
		ret_run->next_key = node_key(n, from + nr);
	else if (to < node_nr(n) || place->range.last >= end - 1)
		ret_run->next_key = end;
	else
		ret_run->next_key = place->range.last + 1;
}

int btree_lookup_run(const struct btree_info *info, mblock_t root, uint64_t key, uint64_t end,
		     bool block, unsigned max, uint64_t *keys, void *values,
		     struct btree_run *ret_run, mblock_t *ret_missing)
{
	struct leaf_place place;
	int r;

	TP_INVARIANT(info->levels == 1);
	if (key >= end || max == 0) {
		*ret_run = (struct btree_run){ .nr = 0, .next_key = key };
		return 0;
	}
	r = btree_find_leaf(info, 0, root, key, block, &place, ret_missing);
	if (r)
		return r;
	collect_run(&place, key, end, max, keys, values, ret_run);
	tm_unlock(info->tm, place.lb);
	return 0;
}
