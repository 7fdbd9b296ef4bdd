/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * btree-node.c - one B-tree node: what makes it valid, and moving entries about
 *
 * A node is a header, room for max_entries keys, and room for as many values.  The values
 * start behind the full room of the keys, so their place follows from max_entries; the
 * validator ties max_entries to the value size, so no access below can leave the block.
 * Slots beyond nr_entries hold leftovers and mean nothing.
 *
 * Called by the other btree*.c with the node's block locked as needed.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "pdata/btree-internal.h"
#include "util/log.h"

#define LOG_MODULE "btree"

/* ---- validity ---- */

static bool keys_increase(const struct btree_node *n)
{
	unsigned nr = node_nr(n), bad = 0;

	for (unsigned i = 1; i < nr; i++) /* no early exit: this way it is vectorised */
		bad |= node_key(n, i - 1) >= node_key(n, i);
	return !bad;
}

static int node_validate(const void *data, mblock_t block, mblock_t nr_blocks)
{
	const struct btree_node *n = data;
	uint32_t flags = le32_get(n->header.flags);
	uint32_t value_size = node_value_size(n);

	(void)block;
	(void)nr_blocks;
	if (flags != INTERNAL_NODE && flags != LEAF_NODE)
		return -EUCLEAN;
	if (value_size == 0 || value_size > METADATA_BLOCK_SIZE)
		return -EUCLEAN;
	if (node_max(n) == 0 || node_max(n) != NODE_MAX_ENTRIES(value_size))
		return -EUCLEAN;
	if (node_nr(n) > node_max(n))
		return -EUCLEAN;
	if (flags == INTERNAL_NODE && (value_size != sizeof(struct le64) || node_nr(n) == 0))
		return -EUCLEAN;
	return keys_increase(n) ? 0 : -EUCLEAN;
}

const struct block_validator btree_node_validator = {
	.name = "btree node",
	.csum_xor = BTREE_CSUM_XOR,
	.check = node_validate,
};

int node_misfit(const struct btree_info *info, unsigned level, const struct locked_block *lb,
		struct key_range range, unsigned depth)
{
	const struct btree_node *n = node_of(lb);
	mblock_t block = block_location(lb);

	if (node_is_leaf(n) && node_value_size(n) != leaf_value_size(info, level))
		log_err_limited("block %" PRIu64 ": leaf with values of %u bytes in a tree of "
				"values of %u bytes; the operation fails",
				block, node_value_size(n), leaf_value_size(info, level));
	else if (node_nr(n) == 0)
		return btree_damaged(block, "empty node below a root");
	else if (!node_is_leaf(n) && depth + 1 >= BTREE_MAX_DEPTH)
		return btree_damaged(block, "tree too deep, perhaps a cycle");
	else
		log_err_limited("block %" PRIu64 ": node with keys %" PRIu64 "..%" PRIu64
				" where its parent has room for %" PRIu64 "..%" PRIu64
				"; the operation fails",
				block, node_key(n, 0), node_key(n, node_nr(n) - 1), range.first,
				range.last);
	return -EUCLEAN;
}

int btree_damaged(mblock_t block, const char *what)
{
	log_err_limited("block %" PRIu64 ": %s; the operation fails", block, what);
	return -EUCLEAN;
}

/* ---- entries ---- */

static void set_nr(struct btree_node *n, unsigned nr)
{
	TP_INVARIANT(nr <= node_max(n));
	n->header.nr_entries = le32_make(nr);
}

void node_init(struct btree_node *n, uint32_t flags, uint32_t value_size)
{
	n->header.flags = le32_make(flags);
	n->header.nr_entries = le32_make(0);
	n->header.max_entries = le32_make(NODE_MAX_ENTRIES(value_size));
	n->header.value_size = le32_make(value_size);
	n->header.padding = le32_make(0);
}

void node_set_key(struct btree_node *n, unsigned i, uint64_t key)
{
	n->keys[i] = le64_make(key);
}

void node_set_child(struct btree_node *n, unsigned i, mblock_t child)
{
	*(struct le64 *)node_value_mut(n, i) = le64_make(child);
}

/* Entries [from, end) move to @to on. */
static void shift_entries(struct btree_node *n, unsigned to, unsigned from, unsigned end)
{
	size_t nr = end - from;

	memmove(&n->keys[to], &n->keys[from], nr * sizeof(n->keys[0]));
	memmove(node_value_mut(n, to), node_value(n, from), nr * node_value_size(n));
}

static void copy_entries(struct btree_node *dst, unsigned to, const struct btree_node *src,
			 unsigned from, unsigned nr)
{
	TP_INVARIANT(to + nr <= node_max(dst) && from + nr <= node_max(src));
	TP_INVARIANT(node_value_size(dst) == node_value_size(src));
	memcpy(&dst->keys[to], &src->keys[from], nr * sizeof(dst->keys[0]));
	memcpy(node_value_mut(dst, to), node_value(src, from), (size_t)nr * node_value_size(dst));
}

void node_insert(struct btree_node *n, unsigned at, uint64_t key, const void *value)
{
	unsigned nr = node_nr(n);

	TP_INVARIANT(at <= nr && nr < node_max(n));
	shift_entries(n, at + 1, at, nr);
	node_set_key(n, at, key);
	memcpy(node_value_mut(n, at), value, node_value_size(n));
	set_nr(n, nr + 1);
}

void node_insert_child(struct btree_node *n, unsigned at, uint64_t key, mblock_t child)
{
	struct le64 value = le64_make(child);

	TP_INVARIANT(node_value_size(n) == sizeof(value));
	node_insert(n, at, key, &value);
}

void node_delete(struct btree_node *n, unsigned at, unsigned nr)
{
	unsigned had = node_nr(n);

	TP_INVARIANT(at + nr <= had);
	shift_entries(n, at, at + nr, had);
	set_nr(n, had - nr);
}

void node_append_all(struct btree_node *dst, const struct btree_node *src)
{
	unsigned had = node_nr(dst), nr = node_nr(src);

	copy_entries(dst, had, src, 0, nr);
	set_nr(dst, had + nr);
}

void node_prepend_all(struct btree_node *dst, const struct btree_node *src)
{
	unsigned had = node_nr(dst), nr = node_nr(src);

	TP_INVARIANT(had + nr <= node_max(dst));
	shift_entries(dst, nr, 0, had);
	copy_entries(dst, 0, src, 0, nr);
	set_nr(dst, had + nr);
}

void node_balance(struct btree_node *left, struct btree_node *right, unsigned target)
{
	unsigned nr_left = node_nr(left), nr_right = node_nr(right);

	TP_INVARIANT(target <= nr_left + nr_right);
	if (target > nr_left) {
		unsigned nr = target - nr_left;

		copy_entries(left, nr_left, right, 0, nr);
		node_delete(right, 0, nr);
	} else {
		unsigned nr = nr_left - target;

		TP_INVARIANT(nr_right + nr <= node_max(right));
		shift_entries(right, nr, 0, nr_right);
		copy_entries(right, 0, left, target, nr);
		set_nr(right, nr_right + nr);
	}
	set_nr(left, target);
}

void node_spread(struct btree_node *left, struct btree_node *middle, struct btree_node *right)
{
	unsigned nr_left = node_nr(left), nr_right = node_nr(right);
	unsigned third = (nr_left + nr_right) / 3;
	unsigned from_left, from_right;

	TP_INVARIANT(node_nr(middle) == 0 && nr_left >= third && nr_right >= third);
	from_left = nr_left - third;
	from_right = nr_right - third;
	copy_entries(middle, 0, left, third, from_left);
	copy_entries(middle, from_left, right, 0, from_right);
	set_nr(middle, from_left + from_right);
	set_nr(left, third);
	node_delete(right, 0, from_right);
}

bool node_same_kind(const struct btree_node *a, const struct btree_node *b)
{
	return node_is_leaf(a) == node_is_leaf(b) && node_value_size(a) == node_value_size(b);
}

/* ---- counts ---- */

/* Neighbouring children often lie in neighbouring blocks: count them as runs. */
static int inc_children(struct transaction_manager *tm, const struct btree_node *n)
{
	unsigned nr = node_nr(n), i = 0;

	while (i < nr) {
		mblock_t begin = node_child(n, i), end = begin + 1;
		int r;

		for (i++; i < nr && node_child(n, i) == end; i++)
			end++;
		r = tm_inc_range(tm, begin, end);
		if (r)
			return r;
	}
	return 0;
}

int node_inc_pointees(const struct btree_info *info, unsigned level, const struct btree_node *n)
{
	const struct btree_value_type *vt = &info->value_type;

	if (!node_is_leaf(n) || !level_is_innermost(info, level))
		return inc_children(info->tm, n);
	if (!vt->inc || node_nr(n) == 0)
		return 0;
	return vt->inc(vt->context, node_value(n, 0), node_nr(n));
}
