/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * metadata-snap.c - a copy of the committed state for tools to read while the pool runs
 *
 * Owns the held superblock: a copy of block 0 in an ordinary block, without space maps, that
 * counts as one more user of both trees.  Copying on write does the rest: whoever changes a
 * block that the copy leads to gets a new one.
 *
 * Invariants
 *   1  held_root is kept in memory and written by a commit only, together with the counts it
 *      needs: no superblock names a copy whose blocks it thinks free, nor forgets one whose
 *      blocks it counts;
 *   2  the copy is of a committed state: what it leads to is on disk already, and the blocks
 *      it names were in use before the transaction that publishes it.
 *
 * Locks: meta_root exclusively.
 */
#include "thin/thin-internal.h"

#include <inttypes.h>
#include <string.h>

#include "io/device.h"
#include "util/log.h"

#define LOG_MODULE "metadata-snap"

/* A copy of the committed superblock, as tools expect it. */
static int copy_superblock(struct thin_metadata *tmd, mblock_t *ret_block) TP_REQUIRES(lc_meta_root)
	TP_TAKES(bufio)
{
	struct thin_disk_superblock *copy;
	struct locked_block *lb;
	int r;

	r = tm_new_block(tmd->tm, &superblock_validator, &lb);
	if (r)
		return r;
	*ret_block = block_location(lb);
	copy = block_data_mut(lb);
	memcpy(copy, &tmd->committed, sizeof(*copy));
	memset(copy->data_sm_root, 0, sizeof(copy->data_sm_root));
	memset(copy->metadata_sm_root, 0, sizeof(copy->metadata_sm_root));
	copy->held_root = le64_make(0);
	tm_unlock(tmd->tm, lb);
	return 0;
}

static int reserve(struct thin_metadata *tmd) TP_REQUIRES(lc_meta_root) TP_TAKES(bufio)
{
	mblock_t held;
	int r;

	metadata_change_begin(tmd);
	r = copy_superblock(tmd, &held);
	if (!r)
		r = tm_inc(tmd->tm, tmd->root);
	if (!r)
		r = tm_inc(tmd->tm, tmd->details_root);
	if (!r)
		tmd->held_root = held;
	return metadata_change_end(tmd, r);
}

static int may_reserve(struct thin_metadata *tmd) TP_REQUIRES_SHARED(lc_meta_root)
{
	int r = metadata_may_change(tmd);

	return r ? r : tmd->held_root ? -EBUSY : 0;
}

int thin_metadata_reserve_snap(struct thin_metadata *tmd)
{
	int r;

	lock_meta_root_shared(&tmd->lock);
	r = may_reserve(tmd);
	unlock_meta_root_shared(&tmd->lock);
	if (!r)
		r = thin_metadata_commit(tmd); /* invariant 2 */
	if (r)
		return r;

	lock_meta_root(&tmd->lock);
	r = reserve(tmd);
	unlock_meta_root(&tmd->lock);
	return r;
}

/* The trees of the held superblock.  Changes nothing. */
static int read_held(struct thin_metadata *tmd, mblock_t *ret_root, mblock_t *ret_details)
	TP_REQUIRES(lc_meta_root) TP_TAKES(bufio)
{
	const struct thin_disk_superblock *held;
	struct locked_block *lb;
	int r;

	r = tm_read_lock(tmd->tm, tmd->held_root, &superblock_validator, &lb);
	if (r)
		return r;
	held = block_data(lb);
	*ret_root = le64_get(held->data_mapping_root);
	*ret_details = le64_get(held->device_details_root);
	tm_unlock(tmd->tm, lb);
	if (*ret_root != THIN_SUPERBLOCK_LOCATION && *ret_details != THIN_SUPERBLOCK_LOCATION)
		return 0;
	log_err("%s: the metadata snapshot in block %" PRIu64
		" names the superblock as a tree, it cannot be released",
		io_device_name(tmd->dev), tmd->held_root);
	return -EUCLEAN;
}

static int release(struct thin_metadata *tmd) TP_REQUIRES(lc_meta_root) TP_TAKES(bufio)
{
	mblock_t root, details;
	int r;

	r = read_held(tmd, &root, &details);
	if (r)
		return metadata_change_end(tmd, r);
	metadata_change_begin(tmd);
	r = btree_del(&tmd->mapping_info, root);
	if (!r)
		r = btree_del(&tmd->details_info, details);
	if (!r)
		r = tm_dec(tmd->tm, tmd->held_root);
	if (!r)
		tmd->held_root = 0;
	return metadata_change_end(tmd, r);
}

int thin_metadata_release_snap(struct thin_metadata *tmd)
{
	int r;

	lock_meta_root(&tmd->lock);
	r = metadata_may_change(tmd);
	if (!r && !tmd->held_root)
		r = -ENODATA;
	if (!r)
		r = release(tmd);
	unlock_meta_root(&tmd->lock);
	return r;
}

/* ---- pins ---- */

int thin_metadata_pin(struct thin_metadata *tmd, void *ret_superblock, uint64_t *ret_pin)
{
	struct thin_disk_superblock *sb = ret_superblock;
	int r = 0;

	lock_meta_root(&tmd->lock);
	if (tmd->fail_io || tmd->must_abort)
		r = -EINVAL;
	else if (tmd->changed)
		r = -EBUSY;
	if (!r) {
		memcpy(sb, &tmd->committed, sizeof(*sb));
		sb->csum = le32_make(bm_checksum(sb, SUPERBLOCK_CSUM_XOR));
		*ret_pin = (uint64_t)tmd->nr_reopened << 32 | sm_metadata_pin(tmd->metadata_sm);
	}
	unlock_meta_root(&tmd->lock);
	return r;
}

bool thin_metadata_unpin(struct thin_metadata *tmd, uint64_t pin)
{
	bool kept = false;

	lock_meta_root(&tmd->lock);
	if (!tmd->fail_io && tmd->nr_reopened == pin >> 32)
		kept = sm_metadata_unpin(tmd->metadata_sm, (uint32_t)pin);
	unlock_meta_root(&tmd->lock);
	return kept;
}

bool thin_metadata_drop_pins(struct thin_metadata *tmd)
{
	bool any = false;

	lock_meta_root(&tmd->lock);
	if (!tmd->fail_io)
		any = sm_metadata_drop_pins(tmd->metadata_sm);
	unlock_meta_root(&tmd->lock);
	return any;
}
