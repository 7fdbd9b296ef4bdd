/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * btree-check.c - is a B-tree as the format wants it, and which blocks does it use?
 */
#include "btree-check.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "util/le.h"

struct node_copy {
	struct disk_node_header header;
	uint8_t rest[METADATA_BLOCK_SIZE - sizeof(struct disk_node_header)];
};

struct place {
	mblock_t block;
	unsigned level, depth;
	uint64_t low, high;
	unsigned *leaf_depth; /* of the tree, 0: not known yet; counts from 1 */
};

static uint64_t word_at(const struct node_copy *n, size_t offset)
{
	uint64_t x;

	memcpy(&x, n->rest + offset, sizeof(x));
	return x;
}

static uint64_t key_of(const struct node_copy *n, unsigned i)
{
	return word_at(n, 8 * (size_t)i);
}

static const uint8_t *value_of(const struct node_copy *n, unsigned i)
{
	return n->rest + 8 * (size_t)le32_get(n->header.max_entries) +
	       (size_t)i * le32_get(n->header.value_size);
}

static uint64_t child_of(const struct node_copy *n, unsigned i)
{
	uint64_t x;

	memcpy(&x, value_of(n, i), sizeof(x));
	return x;
}

#define FAIL(c, p, ...) \
	do { \
		int len_ = snprintf((c)->message, sizeof((c)->message), \
				    "block %" PRIu64 " (level %u, depth %u): ", (p)->block, \
				    (p)->level, (p)->depth); \
		snprintf((c)->message + len_, sizeof((c)->message) - (size_t)len_, __VA_ARGS__); \
		return false; \
	} while (0)

static bool check_node(struct btree_check *c, const struct place *p, const struct node_copy *n)
{
	uint32_t nr = le32_get(n->header.nr_entries), max = le32_get(n->header.max_entries);
	uint32_t size = le32_get(n->header.value_size);
	bool leaf = le32_get(n->header.flags) == LEAF_NODE;
	bool inner = p->level + 1 < c->levels;

	if (size != (leaf && !inner ? c->value_size : 8))
		FAIL(c, p, "value size %u", size);
	if (max != NODE_MAX_ENTRIES(size) || nr > max)
		FAIL(c, p, "%u of %u entries", nr, max);
	if (p->depth > 0 && nr < max / 3)
		FAIL(c, p, "%u entries are below the minimum", nr);
	if (!leaf && nr == 0)
		FAIL(c, p, "internal node without entries");
	for (uint32_t i = 0; i < nr; i++)
		if (i ? key_of(n, i) <= key_of(n, i - 1) : key_of(n, 0) < p->low)
			FAIL(c, p, "key %u is too low", i);
	if (nr && key_of(n, nr - 1) > p->high)
		FAIL(c, p, "last key is too high");
	if (leaf && *p->leaf_depth && *p->leaf_depth != p->depth + 1)
		FAIL(c, p, "leaf at another depth than %u", *p->leaf_depth - 1);
	return true;
}

static bool check_place(struct btree_check *c, const struct place *p)
{
	struct locked_block *lb;
	struct node_copy n;
	unsigned nr, roots_depth;
	bool leaf, first = c->counts[p->block]++ == 0;
	bool inner = p->level + 1 < c->levels;

	if (bm_read_lock(c->bm, p->block, &btree_node_validator, &lb))
		FAIL(c, p, "cannot be read");
	memcpy(&n, block_data(lb), sizeof(n));
	bm_unlock(lb);
	if (!check_node(c, p, &n))
		return false;

	leaf = le32_get(n.header.flags) == LEAF_NODE;
	nr = le32_get(n.header.nr_entries);
	if (leaf)
		*p->leaf_depth = p->depth + 1;
	if (first && !inner) {
		c->nr_leaves += leaf;
		c->nr_internal += !leaf;
		c->nr_entries += leaf ? nr : 0;
		c->depth = p->depth > c->depth ? p->depth : c->depth;
	}
	for (unsigned i = 0; i < nr; i++) {
		struct place below = {
			.block = leaf && !inner ? 0 : child_of(&n, i),
			.level = p->level + leaf,
			.depth = leaf ? 0 : p->depth + 1,
			.low = leaf ? 0 : key_of(&n, i),
			.high = leaf         ? UINT64_MAX
				: i + 1 < nr ? key_of(&n, i + 1) - 1
					     : p->high,
			.leaf_depth = leaf ? &roots_depth : p->leaf_depth,
		};

		if (leaf && !inner) {
			if (first && c->value)
				c->value(c->context, key_of(&n, i), value_of(&n, i));
			continue;
		}
		roots_depth = 0;
		/* A shared node holds what is below it once, whoever leads to it. */
		if (first && !check_place(c, &below))
			return false;
	}
	return true;
}

bool btree_check_tree(struct btree_check *c, mblock_t root)
{
	unsigned leaf_depth = 0;
	struct place p = { .block = root, .high = UINT64_MAX, .leaf_depth = &leaf_depth };

	return check_place(c, &p);
}
