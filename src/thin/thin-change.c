/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-change.c - mapping and unmapping the blocks of a device
 *
 * Owns every change of a device's tree, and the counting that goes with it: what a copied or
 * dropped leaf refers to.
 *
 * All changes go through the two-level tree, never through a device's root alone: if the leaf of
 * the top tree is shared with a metadata snapshot, making it private is what tells that the
 * device's root is shared too, and it has to happen first.
 *
 * Invariants
 *   1  a data block's count is the number of leaf entries that name it; a block gets its first
 *      count in the same transaction as its mapping, never before;
 *   2  a device's cached root is forgotten by each change;
 *   3  mapped_blocks is the number of keys of the device's tree.
 *
 * Locks: meta_root exclusively.
 */
#include "thin/thin-internal.h"

#include <inttypes.h>

#include "io/device.h"
#include "util/log.h"

#define LOG_MODULE "thin-change"

/* ---- what leaf entries refer to ---- */

/* Call @fn of the data space map for each run of blocks that follow each other. */
static int for_each_data_run(struct thin_metadata *tmd, const void *values, unsigned nr,
			     int (*fn)(struct space_map *sm, uint64_t begin, uint64_t end))
	TP_REQUIRES(lc_meta_root)
{
	const struct le64 *v = values;

	for (unsigned i = 0, n; i < nr; i += n) {
		const dblock_t begin = mapping_dblock(v[i]);
		int r;

		for (n = 1; i + n < nr && mapping_dblock(v[i + n]) == begin + n; n++)
			;
		if (begin + n > tmd->nr_data_blocks) {
			log_err_limited("%s: a mapping names data block %" PRIu64 " of %" PRIu64
					", the change fails",
					io_device_name(tmd->dev), begin + n - 1,
					tmd->nr_data_blocks);
			return -EUCLEAN;
		}
		r = fn(tmd->data_sm, begin, begin + n);
		if (r)
			return r;
	}
	return 0;
}

static int inc_data(struct space_map *sm, uint64_t begin, uint64_t end)
{
	return sm_inc_blocks(sm, begin, end);
}

static int dec_data(struct space_map *sm, uint64_t begin, uint64_t end)
{
	return sm_dec_blocks(sm, begin, end);
}

static int mappings_inc(void *context, const void *values, unsigned nr) TP_REQUIRES(lc_meta_root)
{
	return for_each_data_run(context, values, nr, inc_data);
}

static int mappings_dec(void *context, const void *values, unsigned nr) TP_REQUIRES(lc_meta_root)
{
	return for_each_data_run(context, values, nr, dec_data);
}

/* The clock is no part of what a mapping refers to. */
static bool mappings_equal(void *context, const void *a, const void *b)
{
	const struct le64 *x = a, *y = b;

	(void)context;
	return mapping_dblock(*x) == mapping_dblock(*y);
}

const struct btree_value_type mapping_value_type = {
	.size = sizeof(struct le64),
	.inc = mappings_inc,
	.dec = mappings_dec,
	.equal = mappings_equal,
};

static int subtrees_inc(void *context, const void *values, unsigned nr) TP_REQUIRES(lc_meta_root)
{
	struct thin_metadata *tmd = context;
	const struct le64 *roots = values;
	int r = 0;

	for (unsigned i = 0; !r && i < nr; i++)
		r = tm_inc(tmd->tm, le64_get(roots[i]));
	return r;
}

static int subtrees_dec(void *context, const void *values, unsigned nr) TP_REQUIRES(lc_meta_root)
{
	struct thin_metadata *tmd = context;
	const struct le64 *roots = values;
	int r = 0;

	for (unsigned i = 0; !r && i < nr; i++)
		r = btree_del(&tmd->device_info, le64_get(roots[i]));
	return r;
}

static bool subtrees_equal(void *context, const void *a, const void *b)
{
	const struct le64 *x = a, *y = b;

	(void)context;
	return le64_get(*x) == le64_get(*y);
}

const struct btree_value_type subtree_value_type = {
	.size = sizeof(struct le64),
	.inc = subtrees_inc,
	.dec = subtrees_dec,
	.equal = subtrees_equal,
};

/* ---- insert ---- */

static int device_may_change(struct thin_device *td) TP_REQUIRES_SHARED(lc_meta_root)
{
	int r = metadata_may_change(td->tmd);

	return r ? r : device_is_alive(td);
}

/* The caller has provided the reference of @value. */
static int map(struct thin_device *td, vblock_t vblock, struct le64 value, bool *ret_inserted)
	TP_REQUIRES(lc_meta_root) TP_TAKES(bufio)
{
	const uint64_t keys[2] = { td->id, vblock };
	struct thin_metadata *tmd = td->tmd;

	atomic_store(&td->root, 0);
	return btree_insert(&tmd->mapping_info, tmd->root, keys, &value, &tmd->root, ret_inserted);
}

static int insert_block(struct thin_device *td, vblock_t vblock, dblock_t dblock)
	TP_REQUIRES(lc_meta_root) TP_TAKES(bufio)
{
	struct thin_metadata *tmd = td->tmd;
	bool inserted;
	int r;

	device_change_begin(td);
	r = sm_disk_use_reserved(tmd->data_sm, dblock);
	if (!r)
		r = map(td, vblock, mapping_make(dblock, tmd->time), &inserted);
	if (!r && inserted)
		atomic_fetch_add(&td->mapped_blocks, 1);
	return metadata_change_end(tmd, r);
}

int thin_insert_block(struct thin_device *td, vblock_t vblock, dblock_t dblock)
{
	struct thin_metadata *tmd = td->tmd;
	int r;

	lock_meta_root(&tmd->lock);
	r = device_may_change(td);
	if (!r && dblock >= tmd->nr_data_blocks)
		r = -EINVAL;
	if (!r)
		r = insert_block(td, vblock, dblock);
	unlock_meta_root(&tmd->lock);
	return r;
}

/* ---- swap ---- */

static int lookup_value(struct thin_device *td, vblock_t vblock, struct le64 *ret_value)
	TP_REQUIRES(lc_meta_root) TP_TAKES(bufio)
{
	struct thin_metadata *tmd = td->tmd;
	mblock_t root;
	int r;

	r = device_root(tmd, td, td->id, &root, NULL);
	return r ? r : btree_lookup(&tmd->device_info, root, &vblock, ret_value);
}

/*
 * Each block is counted once more while it is named twice, so that neither is freed by the first
 * of the two inserts.  The clocks move along: they say who else may refer to the block.
 */
static int swap(struct thin_device *td, vblock_t a, struct le64 value_a, vblock_t b,
		struct le64 value_b) TP_REQUIRES(lc_meta_root) TP_TAKES(bufio)
{
	struct thin_metadata *tmd = td->tmd;
	int r;

	device_change_begin(td);
	r = mappings_inc(tmd, &value_a, 1);
	if (!r)
		r = mappings_inc(tmd, &value_b, 1);
	if (!r)
		r = map(td, a, value_b, NULL);
	if (!r)
		r = map(td, b, value_a, NULL);
	return metadata_change_end(tmd, r);
}

int thin_swap_blocks(struct thin_device *td, vblock_t a, vblock_t b)
{
	struct thin_metadata *tmd = td->tmd;
	struct le64 value_a, value_b;
	int r;

	lock_meta_root(&tmd->lock);
	r = device_may_change(td);
	if (!r)
		r = lookup_value(td, a, &value_a);
	if (!r)
		r = lookup_value(td, b, &value_b);
	if (!r && !mappings_equal(NULL, &value_a, &value_b))
		r = swap(td, a, value_a, b, value_b);
	unlock_meta_root(&tmd->lock);
	return r;
}

/* ---- remove ---- */

/* The first mapped block of [from, end), or @end. */
static int next_mapped(struct thin_device *td, vblock_t from, vblock_t end, vblock_t *ret_vblock)
	TP_REQUIRES_SHARED(lc_meta_root) TP_TAKES(bufio)
{
	struct thin_metadata *tmd = td->tmd;
	struct le64 value;
	mblock_t root;
	vblock_t next;
	int r;

	r = device_root(tmd, td, td->id, &root, NULL);
	if (!r)
		r = btree_lookup_next(&tmd->device_info, root, &from, &next, &value);
	if (r == -ENODATA || (!r && next > end))
		next = end;
	else if (r)
		return r;
	*ret_vblock = next;
	return 0;
}

static void count_removed(struct thin_device *td, unsigned nr) TP_REQUIRES(lc_meta_root)
{
	uint64_t mapped = atomic_load(&td->mapped_blocks);

	/* The number on disk may have been wrong; the tree is the truth. */
	if (nr > mapped)
		log_warn_limited("%s: device %" PRIu32 " had more mappings than its details said",
				 io_device_name(td->tmd->dev), td->id);
	atomic_store(&td->mapped_blocks, mapped - MIN(nr, mapped));
}

/* Remove what one leaf has of [begin, end), where @begin is mapped. */
static int remove_leaf(struct thin_device *td, vblock_t begin, vblock_t end, unsigned *ret_nr)
	TP_REQUIRES(lc_meta_root) TP_TAKES(bufio)
{
	const uint64_t keys[2] = { td->id, begin };
	struct thin_metadata *tmd = td->tmd;
	unsigned nr;
	int r;

	device_change_begin(td);
	atomic_store(&td->root, 0);
	r = btree_remove_leaves(&tmd->mapping_info, tmd->root, keys, end, &tmd->root, &nr);
	if (r == -ENODATA || (!r && !nr))
		r = -EUCLEAN; /* a lookup has just found it */
	if (!r) {
		count_removed(td, nr);
		*ret_nr = nr;
	}
	return metadata_change_end(tmd, r);
}

/* The leaf is read while others may look things up; nobody but the caller changes it. */
static int find_next(struct thin_device *td, vblock_t from, vblock_t end, vblock_t *ret_vblock)
	TP_TAKES(meta_root)
{
	struct thin_metadata *tmd = td->tmd;
	int r;

	lock_meta_root_shared(&tmd->lock);
	r = device_may_change(td);
	if (!r)
		r = next_mapped(td, from, end, ret_vblock);
	unlock_meta_root_shared(&tmd->lock);
	return r;
}

/* A leaf at a time, so that lookups get their turn in between. */
int thin_remove_range(struct thin_device *td, vblock_t begin, vblock_t end, uint64_t max_blocks,
		      vblock_t *ret_next)
{
	struct thin_metadata *tmd = td->tmd;
	uint64_t removed = 0;
	vblock_t next;
	int r;

	r = find_next(td, begin, end, &next);
	while (!r && next < end && removed < MAX(max_blocks, 1)) {
		unsigned nr;

		lock_meta_root(&tmd->lock);
		r = remove_leaf(td, next, end, &nr);
		unlock_meta_root(&tmd->lock);
		if (r)
			break;
		removed += nr;
		r = find_next(td, next, end, &next);
	}
	if (!r)
		*ret_next = next;
	return r;
}
