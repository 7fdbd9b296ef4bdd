/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * btree-walk.c - whole trees: first and last key, all entries, deletion
 *
 * Reading goes from leaf to leaf by keys (btree.c).  Deletion keeps its own stack: one
 * frame a level of nodes, which is bounded, so no recursion and no memory is needed.
 * No block stays locked while counts change.
 */
#include <errno.h>
#include <string.h>

#include "pdata/btree-internal.h"

/* Children read ahead of the deletion. */
#define PREFETCH_CHILDREN 16

int btree_find_lowest_key(const struct btree_info *info, mblock_t root, uint64_t *ret_key)
{
	struct leaf_place place;
	int r;

	r = btree_find_leaf(info, 0, root, 0, true, &place, NULL);
	if (r)
		return r;
	if (node_nr(place.n))
		*ret_key = node_key(place.n, 0);
	else
		r = -ENODATA;
	tm_unlock(info->tm, place.lb);
	return r;
}

int btree_find_highest_key(const struct btree_info *info, mblock_t root, uint64_t *ret_key)
{
	struct leaf_place place;
	int r;

	r = btree_find_leaf(info, 0, root, UINT64_MAX, true, &place, NULL);
	if (r)
		return r;
	if (node_nr(place.n))
		*ret_key = node_key(place.n, node_nr(place.n) - 1);
	else
		r = -ENODATA;
	tm_unlock(info->tm, place.lb);
	return r;
}

int btree_walk(const struct btree_info *info, mblock_t root,
	       int (*fn)(void *context, uint64_t key, const void *value), void *context)
{
	uint64_t key = 0;

	TP_INVARIANT(info->levels == 1);
	/* Ends: ranges of leaves follow each other up to UINT64_MAX. */
	for (;;) {
		struct leaf_place place;
		int r;

		r = btree_find_leaf(info, 0, root, key, true, &place, NULL);
		if (r)
			return r;
		for (unsigned i = 0; !r && i < node_nr(place.n); i++)
			r = fn(context, node_key(place.n, i), node_value(place.n, i));
		tm_unlock(info->tm, place.lb);
		if (r || place.range.last == UINT64_MAX)
			return r;
		key = place.range.last + 1;
	}
}

/* ---- deletion ---- */

/* A node whose children are being released; it has one reference itself, which goes last. */
struct del_frame {
	mblock_t block;
	unsigned level, depth;
	unsigned next, nr; /* children released, and all of them */
	struct key_range range;
	bool is_leaf; /* of an outer tree: the children are roots */
};

struct deletion {
	const struct btree_info *info;
	unsigned nr_frames;
	struct del_frame frames[BTREE_MAX_LEVELS * BTREE_MAX_DEPTH];
};

static int lock_and_check(const struct btree_info *info, const struct del_frame *f,
			  struct locked_block **ret_lb)
{
	struct locked_block *lb;
	int r;

	r = tm_read_lock(info->tm, f->block, &btree_node_validator, &lb);
	if (r)
		return r;
	r = node_check(info, f->level, lb, f->range, f->depth);
	if (r) {
		tm_unlock(info->tm, lb);
		return r;
	}
	*ret_lb = lb;
	return 0;
}

/* An innermost leaf without other owners. */
static int release_leaf(const struct btree_info *info, struct locked_block *lb)
{
	const struct btree_value_type *vt = &info->value_type;
	mblock_t block = block_location(lb);
	unsigned nr = node_nr(node_of(lb));
	uint8_t values[METADATA_BLOCK_SIZE];

	if (vt->dec && nr)
		memcpy(values, node_value(node_of(lb), 0), (size_t)nr * vt->size);
	tm_unlock(info->tm, lb);
	if (vt->dec && nr) {
		int r = vt->dec(vt->context, values, nr);

		if (r)
			return r;
	}
	return tm_dec(info->tm, block);
}

/* One reference to the node at @f->block goes away; if it was the last, look below. */
static int release_node(struct deletion *d, struct del_frame *f)
{
	const struct btree_info *info = d->info;
	struct locked_block *lb;
	uint32_t count;
	int r;

	r = tm_ref(info->tm, f->block, &count);
	if (r)
		return r;
	if (count > 1)
		return tm_dec(info->tm, f->block);
	r = lock_and_check(info, f, &lb);
	if (r)
		return r;
	f->is_leaf = node_is_leaf(node_of(lb));
	f->nr = node_nr(node_of(lb));
	if (f->is_leaf && level_is_innermost(info, f->level))
		return release_leaf(info, lb);
	tm_unlock(info->tm, lb);

	TP_INVARIANT(d->nr_frames < ARRAY_SIZE(d->frames)); /* node_check() bounds the depth */
	d->frames[d->nr_frames++] = *f;
	return 0;
}

/* Only what nobody else has is going to be read. */
static int prefetch_children(const struct btree_info *info, const struct btree_node *n,
			     unsigned from)
{
	unsigned end = MIN(from + PREFETCH_CHILDREN, node_nr(n));

	for (unsigned i = from; i < end; i++) {
		bool shared;
		int r;

		r = tm_block_is_shared(info->tm, node_child(n, i), &shared);
		if (r)
			return r;
		if (!shared)
			bm_prefetch(tm_block_manager(info->tm), node_child(n, i), 1);
	}
	return 0;
}

static int release_next_child(struct deletion *d, struct del_frame *f)
{
	const struct btree_info *info = d->info;
	struct del_frame child = { .level = f->level, .depth = f->depth + 1 };
	struct locked_block *lb;
	int r;

	r = lock_and_check(info, f, &lb);
	if (r)
		return r;
	if (f->next % PREFETCH_CHILDREN == 0)
		r = prefetch_children(info, node_of(lb), f->next);
	child.block = node_child(node_of(lb), f->next);
	child.range = node_child_range(node_of(lb), f->next, f->range);
	tm_unlock(info->tm, lb);
	if (r)
		return r;
	if (f->is_leaf) {
		child.level++;
		child.depth = 0;
		child.range = ALL_KEYS;
	}
	f->next++;
	return release_node(d, &child);
}

int btree_del(const struct btree_info *info, mblock_t root)
{
	struct deletion d = { .info = info };
	struct del_frame first = { .block = root, .range = ALL_KEYS };
	int r;

	TP_INVARIANT(info->levels >= 1 && info->levels <= BTREE_MAX_LEVELS);
	r = release_node(&d, &first);
	while (!r && d.nr_frames) {
		struct del_frame *f = &d.frames[d.nr_frames - 1];

		if (f->next < f->nr) {
			r = release_next_child(&d, f);
		} else {
			d.nr_frames--;
			r = tm_dec(info->tm, f->block);
		}
	}
	return r;
}
