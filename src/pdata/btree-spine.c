/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * btree-spine.c - the mutator's way down a tree
 *
 * A spine is a node and its parent, both shadows of this transaction and write-locked.
 * Stepping down shadows the child, stores the child's new location in the node and lets
 * the parent go: at most these two (and a sibling) are held at any time, however deep the
 * tree is.
 *
 * Invariants
 *   1  node and parent are private: made by this transaction, one reference each;
 *   2  if shadowing copied a shared block, what it points at was counted once more
 *      before anything else happened;
 *   3  the parent's entry leads to the node, the node fits its range there.
 *
 * The locations come from disk and may lie: none that is held already is locked again.
 */
#include <errno.h>

#include "pdata/btree-internal.h"

/* Shadow @block, which must fit its place. */
static int shadow_node(const struct btree_info *info, unsigned level, mblock_t block,
		       struct key_range range, unsigned depth, struct locked_block **ret_lb)
{
	struct locked_block *lb;
	bool inc;
	int r;

	r = tm_shadow_block(info->tm, block, &btree_node_validator, &lb, &inc);
	if (r)
		return r;
	r = node_check(info, level, lb, range, depth);
	if (!r && inc)
		r = node_inc_pointees(info, level, node_of(lb));
	if (r) {
		tm_unlock(info->tm, lb);
		return r;
	}
	*ret_lb = lb;
	return 0;
}

static int shadow_child(struct btree_spine *s, struct spine_node *parent, unsigned i,
			unsigned depth, struct spine_node *ret_child)
{
	mblock_t child = node_child(parent->n, i);
	struct key_range range = node_child_range(parent->n, i, parent->range);
	struct locked_block *lb;
	int r;

	if (child == block_location(parent->lb))
		return btree_damaged(child, "node that is its own child");
	r = shadow_node(s->info, s->level, child, range, depth, &lb);
	if (r)
		return r;
	node_set_child(parent->n, i, block_location(lb));
	*ret_child = (struct spine_node){ .lb = lb, .n = node_of_mut(lb), .range = range };
	return 0;
}

static void let_go(struct btree_spine *s, struct spine_node *node)
{
	if (node->lb)
		tm_unlock(s->info->tm, node->lb);
	*node = (struct spine_node){ 0 };
}

int spine_begin(struct btree_spine *s, const struct btree_info *info, unsigned level, mblock_t root)
{
	struct locked_block *lb;
	int r;

	*s = (struct btree_spine){ .info = info, .level = level };
	r = shadow_node(info, level, root, ALL_KEYS, 0, &lb);
	if (r)
		return r;
	s->root = block_location(lb);
	s->node = (struct spine_node){ .lb = lb, .n = node_of_mut(lb), .range = ALL_KEYS };
	return 0;
}

int spine_step(struct btree_spine *s, unsigned i)
{
	let_go(s, &s->parent);
	s->parent = s->node;
	s->node = (struct spine_node){ 0 };
	s->index = i;
	s->depth++;
	return shadow_child(s, &s->parent, i, s->depth, &s->node);
}

int spine_restep(struct btree_spine *s, unsigned i)
{
	let_go(s, &s->node);
	s->index = i;
	return shadow_child(s, &s->parent, i, s->depth, &s->node);
}

void spine_up(struct btree_spine *s)
{
	let_go(s, &s->node);
	s->node = s->parent;
	s->parent = (struct spine_node){ 0 };
	s->depth--;
}

void spine_end(struct btree_spine *s)
{
	let_go(s, &s->node);
	let_go(s, &s->parent);
}

/* ---- siblings ---- */

static int check_sibling_location(struct btree_spine *s, mblock_t sibling)
{
	if (sibling == block_location(s->parent.lb))
		return btree_damaged(sibling, "node that is its own child");
	if (sibling == block_location(s->node.lb))
		return btree_damaged(sibling, "node that is its own sibling");
	return 0;
}

static int check_sibling_kind(struct btree_spine *s, const struct locked_block *lb)
{
	if (!node_same_kind(s->node.n, node_of(lb)))
		return btree_damaged(block_location(lb), "leaf and internal node are siblings");
	return 0;
}

int spine_read_sibling(struct btree_spine *s, unsigned i, struct locked_block **ret_lb)
{
	struct spine_node *parent = &s->parent;
	mblock_t block = node_child(parent->n, i);
	struct locked_block *lb;
	int r;

	r = check_sibling_location(s, block);
	if (r)
		return r;
	r = tm_read_lock(s->info->tm, block, &btree_node_validator, &lb);
	if (r)
		return r;
	r = node_check(s->info, s->level, lb, node_child_range(parent->n, i, parent->range),
		       s->depth);
	if (!r)
		r = check_sibling_kind(s, lb);
	if (r) {
		tm_unlock(s->info->tm, lb);
		return r;
	}
	*ret_lb = lb;
	return 0;
}

int spine_shadow_sibling(struct btree_spine *s, unsigned i, struct locked_block **ret_lb)
{
	struct spine_node sibling = { 0 };
	int r;

	r = check_sibling_location(s, node_child(s->parent.n, i));
	if (r)
		return r;
	r = shadow_child(s, &s->parent, i, s->depth, &sibling);
	if (r)
		return r;
	r = check_sibling_kind(s, sibling.lb);
	if (r) {
		tm_unlock(s->info->tm, sibling.lb);
		return r;
	}
	*ret_lb = sibling.lb;
	return 0;
}

/* ---- outer trees ---- */

static int descend_to_key(struct btree_spine *s, uint64_t key, unsigned *ret_index)
{
	int i, r;

	while (!node_is_leaf(s->node.n)) {
		i = node_search(s->node.n, key);
		if (i < 0)
			return -ENODATA;
		r = spine_step(s, (unsigned)i);
		if (r)
			return r;
	}
	i = node_find(s->node.n, key);
	if (i < 0)
		return -ENODATA;
	*ret_index = (unsigned)i;
	return 0;
}

int spine_to_leaf(const struct btree_info *info, unsigned level, mblock_t root, uint64_t key,
		  mblock_t *ret_root, mblock_t *ret_leaf, unsigned *ret_index, mblock_t *ret_child)
{
	struct btree_spine s;
	int r;

	r = spine_begin(&s, info, level, root);
	if (!r)
		r = descend_to_key(&s, key, ret_index);
	if (!r) {
		*ret_root = s.root;
		*ret_leaf = block_location(s.node.lb);
		*ret_child = node_child(s.node.n, *ret_index);
	}
	spine_end(&s);
	return r;
}

int spine_patch_leaf(const struct btree_info *info, mblock_t leaf, unsigned index, mblock_t child)
{
	struct locked_block *lb;
	int r;

	/* Not shadowed again: the leaf is private already, and its parent was let go. */
	r = bm_write_lock(tm_block_manager(info->tm), leaf, &btree_node_validator, &lb);
	if (r)
		return r;
	node_set_child(node_of_mut(lb), index, child);
	tm_unlock(info->tm, lb);
	return 0;
}
