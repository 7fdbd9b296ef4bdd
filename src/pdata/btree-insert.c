/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * btree-insert.c - new trees and new entries
 *
 * Room is made on the way down: a full node is relieved before it is entered, so a split
 * below always finds place for one more entry in the parent, and nothing needs to be
 * passed up again.  A full leaf that has the key already is left alone.
 *
 * How room is made decides how full the leaves end up:
 *
 *   key at the end of a run   what comes before it fills the left neighbour up, or else
 *                             the node is split there.  Ascending inserts, be it in
 *                             several places at once, so leave full leaves behind.
 *   elsewhere                 spread evenly with a neighbour that has room; if both
 *                             neighbours are full, two nodes become three.
 *
 * A neighbour that somebody else shares is never touched: that would copy it for nothing.
 * Every split leaves at least the minimum fill (a third) in each part.
 *
 * Two levels: the outer leaf is made private before the inner tree's root is looked at,
 * because that may raise the root's count, and only then can be told whether it is shared.
 */
#include <errno.h>
#include <string.h>

#include "pdata/btree-internal.h"

/* Fewer free slots in a neighbour than this are not worth moving entries for. */
static unsigned spill_min_free(const struct btree_node *n)
{
	return MAX(1, MIN(8, node_max(n) / 4)); /* nodes of large values have few slots */
}

static int new_node(const struct btree_info *info, uint32_t flags, uint32_t value_size,
		    struct locked_block **ret_lb)
{
	int r = tm_new_block(info->tm, &btree_node_validator, ret_lb);

	if (!r)
		node_init(node_of_mut(*ret_lb), flags, value_size);
	return r;
}

static int empty_tree(const struct btree_info *info, unsigned level, mblock_t *ret_root)
{
	struct locked_block *lb;
	int r;

	r = new_node(info, LEAF_NODE, leaf_value_size(info, level), &lb);
	if (r)
		return r;
	*ret_root = block_location(lb);
	tm_unlock(info->tm, lb);
	return 0;
}

int btree_empty(const struct btree_info *info, mblock_t *ret_root)
{
	return empty_tree(info, 0, ret_root);
}

/* ---- making room ---- */

/* An empty node of the same kind. */
static int new_like(struct btree_spine *s, const struct btree_node *n, struct locked_block **ret_lb)
{
	return new_node(s->info, le32_get(n->header.flags), node_value_size(n), ret_lb);
}

/*
 * If @key continues an ascending run of keys: how many entries of the node come before it,
 * else 0.  So many keys in a row, none of them by chance.
 */
static unsigned run_before(const struct btree_node *n, uint64_t key)
{
	const unsigned min_run = 8;
	unsigned at = (unsigned)(node_search(n, key) + 1), nr = node_nr(n);

	if (at == nr)
		return nr;
	if (!node_is_leaf(n) || at < min_run || node_key(n, at) == key + 1)
		return 0;
	return node_key(n, at - min_run) == key - min_run ? at : 0;
}

/* How many entries the left part of a split keeps. */
static unsigned split_point(const struct btree_node *n, unsigned run)
{
	unsigned nr = node_nr(n);

	if (run == 0)
		return nr / 2;
	return MIN(MAX(run, node_min(n)), nr - node_min(n));
}

/* The root keeps its place and becomes the parent of its two halves. */
static int split_root(struct btree_spine *s, unsigned run)
{
	struct btree_node *root = s->node.n;
	struct locked_block *left, *right;
	int r;

	r = new_like(s, root, &left);
	if (r)
		return r;
	r = new_like(s, root, &right);
	if (r) {
		tm_unlock(s->info->tm, left);
		return r;
	}
	node_append_all(node_of_mut(left), root);
	node_balance(node_of_mut(left), node_of_mut(right), split_point(root, run));

	node_init(root, INTERNAL_NODE, sizeof(struct le64));
	node_insert_child(root, 0, node_key(node_of(left), 0), block_location(left));
	node_insert_child(root, 1, node_key(node_of(right), 0), block_location(right));
	tm_unlock(s->info->tm, left);
	tm_unlock(s->info->tm, right);
	return 0;
}

static int split_one(struct btree_spine *s, unsigned run)
{
	struct locked_block *right;
	int r;

	r = new_like(s, s->node.n, &right);
	if (r)
		return r;
	node_balance(s->node.n, node_of_mut(right), split_point(s->node.n, run));
	node_insert_child(s->parent.n, s->index + 1, node_key(node_of(right), 0),
			  block_location(right));
	tm_unlock(s->info->tm, right);
	return 0;
}

static int split_with_sibling(struct btree_spine *s, unsigned sibling_index)
{
	unsigned right_index = MAX(sibling_index, s->index);
	struct btree_node *left, *right;
	struct locked_block *sibling, *middle;
	int r;

	r = spine_shadow_sibling(s, sibling_index, &sibling);
	if (r)
		return r;
	r = new_like(s, s->node.n, &middle);
	if (r) {
		tm_unlock(s->info->tm, sibling);
		return r;
	}
	left = sibling_index < s->index ? node_of_mut(sibling) : s->node.n;
	right = sibling_index < s->index ? s->node.n : node_of_mut(sibling);
	node_spread(left, node_of_mut(middle), right);
	node_set_key(s->parent.n, right_index, node_key(right, 0));
	node_insert_child(s->parent.n, right_index, node_key(node_of(middle), 0),
			  block_location(middle));
	tm_unlock(s->info->tm, middle);
	tm_unlock(s->info->tm, sibling);
	return 0;
}

/* Free slots of child @i of the parent, if it is ours alone. */
static int look_at_sibling(struct btree_spine *s, unsigned i, bool *ret_ours, unsigned *ret_free)
{
	struct locked_block *lb;
	bool shared;
	int r;

	r = tm_block_is_shared(s->info->tm, node_child(s->parent.n, i), &shared);
	if (r)
		return r;
	*ret_ours = !shared;
	*ret_free = 0;
	if (shared)
		return 0;
	r = spine_read_sibling(s, i, &lb);
	if (r)
		return r;
	*ret_free = node_free(node_of(lb));
	tm_unlock(s->info->tm, lb);
	return 0;
}

static int spill(struct btree_spine *s, unsigned sibling_index, unsigned run)
{
	unsigned right_index = MAX(sibling_index, s->index);
	struct btree_node *left, *right;
	struct locked_block *sibling;
	unsigned total, target;
	int r;

	r = spine_shadow_sibling(s, sibling_index, &sibling);
	if (r)
		return r;
	left = sibling_index < s->index ? node_of_mut(sibling) : s->node.n;
	right = sibling_index < s->index ? s->node.n : node_of_mut(sibling);
	total = node_nr(left) + node_nr(right);
	target = total / 2;
	if (run)
		target = MIN(MIN(node_max(left), node_nr(left) + run), total - node_min(right));
	node_balance(left, right, target);
	node_set_key(s->parent.n, right_index, node_key(right, 0));
	tm_unlock(s->info->tm, sibling);
	return 0;
}

/* A full node that is not the root. */
static int relieve(struct btree_spine *s, unsigned run)
{
	unsigned index = s->index, free_slots;
	bool ours_left = false, ours_right = false;
	int r;

	if (index > 0) {
		r = look_at_sibling(s, index - 1, &ours_left, &free_slots);
		if (r)
			return r;
		if (free_slots >= spill_min_free(s->node.n))
			return spill(s, index - 1, run);
	}
	if (run)
		return split_one(s, run);

	if (index + 1 < node_nr(s->parent.n)) {
		r = look_at_sibling(s, index + 1, &ours_right, &free_slots);
		if (r)
			return r;
		if (free_slots >= spill_min_free(s->node.n))
			return spill(s, index + 1, 0);
	}
	if (ours_left)
		return split_with_sibling(s, index - 1);
	if (ours_right)
		return split_with_sibling(s, index + 1);
	return split_one(s, 0);
}

/* The node is full.  Afterwards the spine stands at a node on the way to @key that is not. */
static int make_room(struct btree_spine *s, uint64_t key)
{
	unsigned run = run_before(s->node.n, key);
	int r;

	if (s->depth == 0)
		return split_root(s, run); /* the root has two entries now */

	r = relieve(s, run);
	if (r)
		return r;
	return spine_restep(s, (unsigned)node_search(s->parent.n, key));
}

/* ---- inserting ---- */

/* To the leaf where @key is or belongs; if it is not there, there is room for it. */
static int descend(struct btree_spine *s, uint64_t key)
{
	for (;;) {
		struct btree_node *n = s->node.n;
		bool leaf = node_is_leaf(n);
		int i, r;

		if (node_free(n) == 0 && !(leaf && node_find(n, key) >= 0)) {
			r = make_room(s, key);
			if (r)
				return r;
			continue;
		}
		if (leaf)
			return 0;
		i = node_search(n, key);
		if (i < 0) {
			node_set_key(n, 0, key);
			i = 0;
		}
		r = spine_step(s, (unsigned)i);
		if (r)
			return r;
	}
}

/* The new value takes the place of one; what that referred to is released. */
static int overwrite(struct btree_spine *s, unsigned i, const void *value)
{
	const struct btree_value_type *vt = &s->info->value_type;
	void *old = node_value_mut(s->node.n, i);
	int r = 0;

	if (vt->dec && !(vt->equal && vt->equal(vt->context, old, value)))
		r = vt->dec(vt->context, old, 1);
	if (!r)
		memcpy(old, value, vt->size);
	return r;
}

static int insert_here(struct btree_spine *s, uint64_t key, const void *value, bool *ret_inserted)
{
	int i = node_search(s->node.n, key);
	bool have = i >= 0 && node_key(s->node.n, (unsigned)i) == key;
	int r = 0;

	if (have)
		r = overwrite(s, (unsigned)i, value);
	else
		node_insert(s->node.n, (unsigned)(i + 1), key, value);
	if (!r)
		*ret_inserted = !have;
	return r;
}

static int insert_innermost(const struct btree_info *info, unsigned level, mblock_t root,
			    uint64_t key, const void *value, mblock_t *ret_root, bool *ret_inserted)
{
	struct btree_spine s;
	int r;

	r = spine_begin(&s, info, level, root);
	if (!r)
		r = descend(&s, key);
	if (!r)
		r = insert_here(&s, key, value, ret_inserted);
	if (!r)
		*ret_root = s.root;
	spine_end(&s);
	return r;
}

struct outer_entry {
	mblock_t root;    /* of the outer tree, shadowed */
	mblock_t leaf;    /* private */
	unsigned index;   /* in @leaf */
	mblock_t subtree; /* its value */
};

/* The node is the leaf for @key: find the subtree, or make an empty one. */
static int get_subtree(struct btree_spine *s, uint64_t key, struct outer_entry *ret_entry)
{
	int i = node_search(s->node.n, key);

	if (i < 0 || node_key(s->node.n, (unsigned)i) != key) {
		mblock_t subtree;
		int r = empty_tree(s->info, s->level + 1, &subtree);

		if (r)
			return r;
		node_insert_child(s->node.n, (unsigned)++i, key, subtree);
	}
	*ret_entry = (struct outer_entry){
		.root = s->root,
		.leaf = block_location(s->node.lb),
		.index = (unsigned)i,
		.subtree = node_child(s->node.n, (unsigned)i),
	};
	return 0;
}

static int open_outer(const struct btree_info *info, unsigned level, mblock_t root, uint64_t key,
		      struct outer_entry *ret_entry)
{
	struct btree_spine s;
	int r;

	r = spine_begin(&s, info, level, root);
	if (!r)
		r = descend(&s, key);
	if (!r)
		r = get_subtree(&s, key, ret_entry);
	spine_end(&s);
	return r;
}

/* Recursion: at most BTREE_MAX_LEVELS deep. */
static int insert_level(const struct btree_info *info, unsigned level, mblock_t root,
			const uint64_t *keys, const void *value, mblock_t *ret_root,
			bool *ret_inserted)
{
	struct outer_entry entry;
	mblock_t subtree;
	int r;

	if (level_is_innermost(info, level))
		return insert_innermost(info, level, root, keys[level], value, ret_root,
					ret_inserted);
	r = open_outer(info, level, root, keys[level], &entry);
	if (r)
		return r;
	r = insert_level(info, level + 1, entry.subtree, keys, value, &subtree, ret_inserted);
	if (!r && subtree != entry.subtree)
		r = spine_patch_leaf(info, entry.leaf, entry.index, subtree);
	if (!r)
		*ret_root = entry.root;
	return r;
}

int btree_insert(const struct btree_info *info, mblock_t root, const uint64_t *keys,
		 const void *value, mblock_t *ret_root, bool *ret_inserted)
{
	bool inserted;
	int r;

	TP_INVARIANT(info->levels >= 1 && info->levels <= BTREE_MAX_LEVELS);
	r = insert_level(info, 0, root, keys, value, ret_root, &inserted);
	if (!r && ret_inserted)
		*ret_inserted = inserted;
	return r;
}
