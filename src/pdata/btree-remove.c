/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * btree-remove.c - taking entries out
 *
 * On the way down every internal node that is about to lose an entry is made to have one
 * to spare, so the loss of a child never has to be passed up.  The leaf is seen to after
 * the removal, when it is known how many entries are left.  A node that is too empty takes
 * its entries from a neighbour: all of them if both fit well into one node, which removes
 * the neighbour, else as many as make both equally full.
 *
 * Whoever takes in the content of a block that somebody else still uses makes a second
 * owner of everything the block points at, so all of that is counted once more.  This
 * holds for a neighbour that is taken in and for a single child that replaces its root
 * (kernels before 2026 forget the latter, so that data is freed below a snapshot).
 *
 * A leaf that loses all its entries is not copied first; if it is shared, its values
 * are not even looked at: the other owner keeps their counts.
 *
 * -ENODATA is found out before anything is changed.
 */
#include <errno.h>

#include "pdata/btree-internal.h"

/* Two neighbours become one if they fill at most this much of it; then it can still grow. */
static unsigned merge_limit(const struct btree_node *n)
{
	return node_max(n) / 4 * 3;
}

/*
 * The content of @lb was copied into another node, and one reference to the block goes
 * away, with the block itself if nobody else has it.  Unlocks @lb.
 */
static int release_copied(struct btree_spine *s, struct locked_block *lb)
{
	struct transaction_manager *tm = s->info->tm;
	mblock_t block = block_location(lb);
	uint32_t count;
	int r;

	r = tm_ref(tm, block, &count);
	if (!r && count > 1)
		r = node_inc_pointees(s->info, s->level, node_of(lb));
	tm_unlock(tm, lb);
	if (r)
		return r;
	return tm_dec(tm, block);
}

/* ---- the root's only child ---- */

/* The node is the root, with one child: the child's content takes its place. */
static int fold_only_child(struct btree_spine *s)
{
	struct btree_node *root = s->node.n;
	mblock_t block = node_child(root, 0);
	struct key_range range = node_child_range(root, 0, s->node.range);
	const struct btree_node *child;
	struct locked_block *lb;
	int r;

	if (block == block_location(s->node.lb))
		return btree_damaged(block, "node that is its own child");
	r = tm_read_lock(s->info->tm, block, &btree_node_validator, &lb);
	if (r)
		return r;
	r = node_check(s->info, s->level, lb, range, s->depth + 1);
	if (r) {
		tm_unlock(s->info->tm, lb);
		return r;
	}
	child = node_of(lb);
	node_init(root, le32_get(child->header.flags), node_value_size(child));
	node_append_all(root, child);
	return release_copied(s, lb);
}

/* Ends: each round makes the tree one level lower; a cycle runs into a count of 0. */
static int fold_root(struct btree_spine *s)
{
	int r = 0;

	for (unsigned i = 0; !r && i < BTREE_MAX_DEPTH; i++) {
		if (s->depth > 0 || node_is_leaf(s->node.n) || node_nr(s->node.n) > 1)
			break;
		r = fold_only_child(s);
	}
	return r;
}

/* ---- a node that is too empty ---- */

static int take_in_sibling(struct btree_spine *s, unsigned sibling_index, struct locked_block *lb)
{
	if (sibling_index < s->index) {
		/* The entry of the left one stays, since its key is the lower, and leads here. */
		node_prepend_all(s->node.n, node_of(lb));
		node_set_child(s->parent.n, sibling_index, block_location(s->node.lb));
		node_delete(s->parent.n, s->index, 1);
		s->index = sibling_index;
	} else {
		node_append_all(s->node.n, node_of(lb));
		node_delete(s->parent.n, sibling_index, 1);
	}
	return release_copied(s, lb);
}

static int balance_with_sibling(struct btree_spine *s, unsigned sibling_index)
{
	unsigned right_index = MAX(sibling_index, s->index);
	struct btree_node *left, *right;
	struct locked_block *sibling;
	int r;

	r = spine_shadow_sibling(s, sibling_index, &sibling);
	if (r)
		return r;
	left = sibling_index < s->index ? node_of_mut(sibling) : s->node.n;
	right = sibling_index < s->index ? s->node.n : node_of_mut(sibling);
	node_balance(left, right, (node_nr(left) + node_nr(right)) / 2);
	node_set_key(s->parent.n, right_index, node_key(right, 0));
	tm_unlock(s->info->tm, sibling);
	return 0;
}

/* The left one, unless it would have to be copied and the right one not. */
static int choose_sibling(struct btree_spine *s, unsigned *ret_index)
{
	bool shared;
	int r;

	if (s->index == 0 || s->index + 1 == node_nr(s->parent.n)) {
		*ret_index = s->index == 0 ? 1 : s->index - 1;
		return 0;
	}
	r = tm_block_is_shared(s->info->tm, node_child(s->parent.n, s->index - 1), &shared);
	if (!r)
		*ret_index = shared ? s->index + 1 : s->index - 1;
	return r;
}

/* The parent has other children.  It may lose one of them. */
static int refill(struct btree_spine *s)
{
	struct locked_block *lb;
	unsigned sibling_index;
	int r;

	r = choose_sibling(s, &sibling_index);
	if (r)
		return r;
	r = spine_read_sibling(s, sibling_index, &lb);
	if (r)
		return r;
	if (node_nr(s->node.n) + node_nr(node_of(lb)) <= merge_limit(s->node.n))
		return take_in_sibling(s, sibling_index, lb);
	tm_unlock(s->info->tm, lb);
	return balance_with_sibling(s, sibling_index);
}

/* ---- removing a run ---- */

struct removal {
	struct key_range keys; /* .first is in the tree */
	unsigned nr_removed;
	bool done;
};

static int release_values(struct btree_spine *s, const struct btree_node *n, unsigned from,
			  unsigned nr)
{
	const struct btree_value_type *vt = &s->info->value_type;

	return vt->dec ? vt->dec(vt->context, node_value(n, from), nr) : 0;
}

/* The parent's child @lb, a leaf, goes as a whole.  Unlocks @lb. */
static int drop_leaf(struct btree_spine *s, unsigned i, struct locked_block *lb, struct removal *rm)
{
	mblock_t block = block_location(lb);
	uint32_t count;
	int r;

	rm->nr_removed = node_nr(node_of(lb));
	rm->done = true;
	r = tm_ref(s->info->tm, block, &count);
	if (!r && count <= 1)
		r = release_values(s, node_of(lb), 0, node_nr(node_of(lb)));
	tm_unlock(s->info->tm, lb);
	if (r)
		return r;
	node_delete(s->node.n, i, 1);
	return tm_dec(s->info->tm, block);
}

/* If child @i is a leaf that is to go as a whole, and the node can do without it: do that. */
static int try_drop_leaf(struct btree_spine *s, unsigned i, struct removal *rm)
{
	mblock_t block = node_child(s->node.n, i);
	const struct btree_node *n;
	struct locked_block *lb;
	int r;

	if (rm->keys.first == rm->keys.last || node_nr(s->node.n) < 2)
		return 0;
	if (block == block_location(s->node.lb))
		return btree_damaged(block, "node that is its own child");
	r = tm_read_lock(s->info->tm, block, &btree_node_validator, &lb);
	if (r)
		return r;
	r = node_check(s->info, s->level, lb, node_child_range(s->node.n, i, s->node.range),
		       s->depth + 1);
	n = node_of(lb);
	if (!r && node_is_leaf(n) && node_key(n, 0) >= rm->keys.first &&
	    node_key(n, node_nr(n) - 1) <= rm->keys.last)
		return drop_leaf(s, i, lb, rm);
	tm_unlock(s->info->tm, lb);
	return r;
}

/* To the leaf with the first key, or to where that leaf was. */
static int descend(struct btree_spine *s, struct removal *rm)
{
	while (!node_is_leaf(s->node.n)) {
		int i, r;

		r = fold_root(s);
		if (r)
			return r;
		if (node_is_leaf(s->node.n))
			return 0;
		i = node_search(s->node.n, rm->keys.first);
		if (i < 0)
			return -ENODATA;
		r = try_drop_leaf(s, (unsigned)i, rm);
		if (r || rm->done)
			return r;
		r = spine_step(s, (unsigned)i);
		if (r)
			return r;
		if (!node_is_leaf(s->node.n) && node_nr(s->node.n) <= node_min(s->node.n) &&
		    node_nr(s->parent.n) > 1) {
			/* Either the node has enough now, or the parent has one child less. */
			r = refill(s);
			if (r)
				return r;
			spine_up(s);
		}
	}
	return 0;
}

static int remove_from_leaf(struct btree_spine *s, struct removal *rm)
{
	struct btree_node *n = s->node.n;
	int from = node_find(n, rm->keys.first), to = node_search(n, rm->keys.last);
	unsigned nr;
	int r;

	if (from < 0)
		return -ENODATA;
	nr = (unsigned)(to - from) + 1;
	r = release_values(s, n, (unsigned)from, nr);
	if (r)
		return r;
	node_delete(n, (unsigned)from, nr);
	rm->nr_removed = nr;

	if (s->depth == 0 || node_nr(n) >= node_min(n))
		return 0;
	if (node_nr(s->parent.n) > 1)
		return refill(s);
	if (node_nr(n) == 0)
		return btree_damaged(block_location(s->parent.lb),
				     "inner node with a single child");
	return 0;
}

static int remove_run(struct btree_spine *s, struct removal *rm)
{
	int r;

	r = descend(s, rm);
	if (r)
		return r;
	if (!rm->done) {
		r = remove_from_leaf(s, rm);
		if (r)
			return r;
		if (s->depth > 0)
			spine_up(s);
	}
	/* If that was the root's last child but one, the root is not needed any more. */
	return fold_root(s);
}

static int remove_innermost(const struct btree_info *info, unsigned level, mblock_t root,
			    struct removal *rm, mblock_t *ret_root)
{
	struct btree_spine s;
	int r;

	r = spine_begin(&s, info, level, root);
	if (!r)
		r = remove_run(&s, rm);
	if (!r)
		*ret_root = s.root;
	spine_end(&s);
	return r;
}

/* Recursion: at most BTREE_MAX_LEVELS deep. */
static int remove_level(const struct btree_info *info, unsigned level, mblock_t root,
			const uint64_t *keys, struct removal *rm, mblock_t *ret_root)
{
	mblock_t outer_root, leaf, old_subtree, subtree;
	unsigned index;
	int r;

	if (level_is_innermost(info, level))
		return remove_innermost(info, level, root, rm, ret_root);
	r = spine_to_leaf(info, level, root, keys[level], &outer_root, &leaf, &index, &old_subtree);
	if (r)
		return r;
	r = remove_level(info, level + 1, old_subtree, keys, rm, &subtree);
	if (!r && subtree != old_subtree)
		r = spine_patch_leaf(info, leaf, index, subtree);
	if (!r)
		*ret_root = outer_root;
	return r;
}

/* First key in [keys[levels - 1], last]. */
static int find_first(const struct btree_info *info, mblock_t root, const uint64_t *keys,
		      uint64_t last, uint64_t *ret_first)
{
	uint8_t value[METADATA_BLOCK_SIZE];
	uint64_t key;
	int r;

	TP_INVARIANT(info->value_type.size <= sizeof(value));
	r = btree_lookup_next(info, root, keys, &key, value);
	if (r)
		return r;
	if (key > last)
		return -ENODATA;
	*ret_first = key;
	return 0;
}

static int remove_range(const struct btree_info *info, mblock_t root, const uint64_t *keys,
			uint64_t last, mblock_t *ret_root, unsigned *ret_nr)
{
	struct removal rm = { .keys.last = last };
	int r;

	r = find_first(info, root, keys, last, &rm.keys.first);
	if (r)
		return r;
	r = remove_level(info, 0, root, keys, &rm, ret_root);
	if (!r)
		*ret_nr = rm.nr_removed;
	return r;
}

int btree_remove(const struct btree_info *info, mblock_t root, const uint64_t *keys,
		 mblock_t *ret_root)
{
	unsigned nr;

	return remove_range(info, root, keys, keys[info->levels - 1], ret_root, &nr);
}

int btree_remove_leaves(const struct btree_info *info, mblock_t root, const uint64_t *keys,
			uint64_t end, mblock_t *ret_root, unsigned *ret_nr)
{
	if (end <= keys[info->levels - 1])
		return -ENODATA;
	return remove_range(info, root, keys, end - 1, ret_root, ret_nr);
}
