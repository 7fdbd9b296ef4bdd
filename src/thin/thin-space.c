/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-space.c - data blocks, sizes, and what there is to know about them
 *
 * Owns the way from a free data block to a mapping: a block is reserved (in memory only) while
 * its first content is written, and counted when it is mapped.  Whoever forgets a reservation, a
 * crash or an abort, leaves a free block, never a leaked one.
 *
 * Locks: meta_root; reservations are changed by the mutator only.
 */
#include "thin/thin-internal.h"

#include <string.h>

#include "io/device.h"

/* ---- data blocks ---- */

int thin_metadata_reserve_data_block(struct thin_metadata *tmd, dblock_t *ret_block)
{
	int r;

	lock_meta_root(&tmd->lock);
	r = metadata_may_change(tmd);
	if (!r)
		r = sm_disk_reserve_block(tmd->data_sm, ret_block);
	unlock_meta_root(&tmd->lock);
	return r;
}

int thin_metadata_reserve_data_blocks(struct thin_metadata *tmd, dblock_t begin, dblock_t end)
{
	int r;

	lock_meta_root(&tmd->lock);
	r = metadata_may_change(tmd);
	if (!r)
		r = sm_disk_reserve_range(tmd->data_sm, begin, end);
	unlock_meta_root(&tmd->lock);
	return r;
}

int thin_metadata_reserve_free_run(struct thin_metadata *tmd, dblock_t from, uint64_t max_blocks,
				   dblock_t *ret_begin, dblock_t *ret_end)
{
	dblock_t begin = 0, end = 0;
	int r;

	/* Only the caller changes anything, so the search needs no more than this. */
	lock_meta_root_shared(&tmd->lock);
	r = tmd->fail_io ? -EINVAL
			 : sm_disk_next_free_run(tmd->data_sm, from, max_blocks, &begin, &end);
	unlock_meta_root_shared(&tmd->lock);
	if (r)
		return r;
	lock_meta_root(&tmd->lock);
	r = metadata_may_change(tmd);
	if (!r)
		r = sm_disk_reserve_range(tmd->data_sm, begin, end);
	unlock_meta_root(&tmd->lock);
	if (r)
		return r;
	*ret_begin = begin;
	*ret_end = end;
	return 0;
}

/* Also after an abort, which has forgotten the reservations: then nothing is there to do. */
void thin_metadata_unreserve_data_blocks(struct thin_metadata *tmd, dblock_t begin, dblock_t end)
{
	lock_meta_root(&tmd->lock);
	if (tmd->data_sm)
		sm_disk_unreserve_range(tmd->data_sm, begin, end);
	unlock_meta_root(&tmd->lock);
}

struct freed {
	struct thin_metadata *tmd;
	void (*fn)(void *ctx, dblock_t begin, dblock_t end);
	void *ctx;
};

static void freed_run(void *ctx, dblock_t begin, dblock_t end) TP_REQUIRES(lc_meta_root)
{
	const struct freed *freed = ctx;

	/* A run that cannot be reserved is not free any more: it must not be punched. */
	if (freed->fn && !sm_disk_reserve_range(freed->tmd->data_sm, begin, end))
		freed->fn(freed->ctx, begin, end);
}

void thin_metadata_take_freed(struct thin_metadata *tmd,
			      void (*fn)(void *ctx, dblock_t begin, dblock_t end), void *ctx)
{
	struct freed freed = { .tmd = tmd, .fn = fn, .ctx = ctx };

	lock_meta_root(&tmd->lock);
	if (tmd->data_sm && !tmd->changed)
		sm_disk_take_freed(tmd->data_sm, freed_run, &freed);
	unlock_meta_root(&tmd->lock);
}

int thin_metadata_data_block_is_shared(struct thin_metadata *tmd, dblock_t block, bool *ret_shared)
{
	uint32_t count;
	int r;

	lock_meta_root_shared(&tmd->lock);
	r = tmd->fail_io ? -EINVAL : sm_get_count(tmd->data_sm, block, &count);
	unlock_meta_root_shared(&tmd->lock);
	if (!r)
		*ret_shared = count > 1;
	return r;
}

/* ---- sizes ---- */

static int grow_data(struct thin_metadata *tmd, dblock_t nr_blocks) TP_REQUIRES(lc_meta_root)
{
	int r;

	metadata_change_begin(tmd);
	r = sm_extend(tmd->data_sm, nr_blocks - tmd->grown_data_blocks);
	if (!r)
		tmd->grown_data_blocks = nr_blocks;
	return metadata_change_end(tmd, r);
}

static bool data_device_has(const struct thin_metadata *tmd, dblock_t nr_blocks)
	TP_REQUIRES(lc_meta_root)
{
	uint64_t block_bytes = (uint64_t)tmd->data_block_sectors * SECTOR_SIZE;

	return !tmd->data || io_device_size(tmd->data) / block_bytes >= nr_blocks;
}

int thin_metadata_resize_data(struct thin_metadata *tmd, dblock_t nr_blocks)
{
	int r;

	lock_meta_root(&tmd->lock);
	r = metadata_may_change(tmd);
	if (!r && (nr_blocks < tmd->grown_data_blocks || nr_blocks > DATA_BLOCK_LIMIT ||
		   !data_device_has(tmd, nr_blocks)))
		r = -EINVAL;
	if (!r && nr_blocks > tmd->grown_data_blocks)
		r = grow_data(tmd, nr_blocks);
	unlock_meta_root(&tmd->lock);
	return r;
}

static int grow_metadata(struct thin_metadata *tmd, mblock_t nr_blocks) TP_REQUIRES(lc_meta_root)
{
	int r;

	metadata_change_begin(tmd);
	r = sm_extend(tmd->metadata_sm, nr_blocks - tmd->grown_metadata_blocks);
	if (!r)
		tmd->grown_metadata_blocks = nr_blocks;
	return metadata_change_end(tmd, r);
}

int thin_metadata_resize_metadata(struct thin_metadata *tmd)
{
	mblock_t nr_blocks = bm_nr_blocks(tmd->bm);
	int r;

	lock_meta_root(&tmd->lock);
	r = metadata_may_change(tmd);
	if (!r && nr_blocks < tmd->grown_metadata_blocks)
		r = -EINVAL;
	if (!r && nr_blocks > tmd->grown_metadata_blocks)
		r = grow_metadata(tmd, nr_blocks);
	unlock_meta_root(&tmd->lock);
	return r;
}

/* ---- the transaction id ---- */

int thin_metadata_set_transaction_id(struct thin_metadata *tmd, uint64_t old, uint64_t new)
{
	int r;

	lock_meta_root(&tmd->lock);
	r = metadata_may_change(tmd);
	if (!r && tmd->trans_id != old)
		r = -EINVAL;
	if (!r && new != old) {
		metadata_change_begin(tmd);
		tmd->trans_id = new;
	}
	unlock_meta_root(&tmd->lock);
	return r;
}

/* ---- information ---- */

static int fill_counts(struct thin_metadata *tmd, struct thin_metadata_info *info)
	TP_REQUIRES_SHARED(lc_meta_root)
{
	uint64_t free_blocks;
	int r;

	r = sm_get_nr_free(tmd->data_sm, &info->nr_data_free);
	if (!r)
		r = sm_get_nr_free(tmd->metadata_sm, &free_blocks);
	if (r)
		return r;
	info->nr_data_blocks = tmd->nr_data_blocks;
	info->nr_metadata_blocks = tmd->nr_metadata_blocks;
	info->metadata_reserve = metadata_reserve(tmd);
	info->nr_metadata_free = free_blocks - MIN(free_blocks, info->metadata_reserve);
	return 0;
}

int thin_metadata_get_info(struct thin_metadata *tmd, struct thin_metadata_info *ret_info)
{
	struct thin_metadata_info info = { 0 };
	int r = 0;

	lock_meta_root_shared(&tmd->lock);
	info.data_block_sectors = tmd->data_block_sectors;
	info.transaction_id = tmd->trans_id;
	info.time = tmd->time;
	info.needs_check = le32_get(tmd->committed.flags) & THIN_NEEDS_CHECK_FLAG;
	info.failed = tmd->fail_io;
	info.read_only = tmd->read_only;
	info.held_root = tmd->held_root;
	if (!tmd->fail_io)
		r = fill_counts(tmd, &info);
	unlock_meta_root_shared(&tmd->lock);
	if (!r)
		*ret_info = info;
	return r;
}

void thin_metadata_set_cache_limit(struct thin_metadata *tmd, uint64_t bytes)
{
	bm_set_cache_limit(tmd->bm, bytes);
}

void thin_metadata_get_cache_stats(struct thin_metadata *tmd, struct cache_stats *ret_stats)
{
	bm_get_stats(tmd->bm, ret_stats);
}
