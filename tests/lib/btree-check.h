/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * btree-check.h - is a B-tree as the format wants it, and which blocks does it use?
 *
 * Knows the nodes' layout by itself: nothing of btree*.c is used but the validator.
 */
#ifndef TP_TESTS_BTREE_CHECK_H
#define TP_TESTS_BTREE_CHECK_H

#include "pdata-fixture.h"

struct btree_check {
	struct block_manager *bm;
	unsigned levels;
	uint32_t value_size;
	/* Each entry of a leaf of the innermost trees, once a distinct leaf. */
	void (*value)(void *context, uint64_t key, const void *value);
	void *context;

	/* filled in */
	uint32_t *counts; /* references to each metadata block; calloc()ed by the caller */
	uint64_t nr_leaves, nr_internal, nr_entries; /* of innermost trees */
	unsigned depth;                              /* of the deepest innermost tree */
	char message[200];                           /* what is wrong */
};

/* Adds what the tree at @root uses.  False, with a message: a rule of the format is broken. */
bool btree_check_tree(struct btree_check *c, mblock_t root);

#endif
