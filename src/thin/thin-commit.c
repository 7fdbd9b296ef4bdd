/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-commit.c - making a transaction durable
 *
 * Owns the order in which a commit reaches the disk (L3):
 *
 *   lock       step
 *   none       begin to flush the data device: what new mappings point at
 *   exclusive  device records into the details tree; then the data space map; then the metadata
 *              space map, whose own blocks are the last that are allocated
 *   shared     write and flush all dirty blocks: nothing on disk leads to them yet
 *   none       wait for the flush of the data device
 *   none       who wants to know the state that comes is told (thin_metadata_set_commit_hook())
 *   exclusive  fill the superblock; end of the transaction's shadows
 *   shared     write and flush the superblock: from here on the new state is the state
 *   exclusive  only now: nothing is "changed" any more
 *
 * Between the steps nobody else can change anything, because this thread is the only mutator;
 * lookups go on in the shared ones, and in the gaps.  A failure anywhere leaves the device in
 * the old state or, if only the last flush failed, in the new one, and the abort that must
 * follow reads which; the flags say "changed" until then, so that it can tell who lost what.
 */
#include "thin/thin-internal.h"

#include <stdlib.h>
#include <string.h>

#include "io/device.h"

/* The exclusive steps before the first write.  Leaves the next superblock in @scratch. */
static int prepare(struct thin_metadata *tmd) TP_REQUIRES(lc_meta_root) TP_TAKES(bufio)
{
	struct thin_disk_superblock *sb = &tmd->scratch;
	struct disk_sm_root sm_root;
	int r;

	r = devices_write_details(tmd);
	if (!r)
		r = sm_commit(tmd->data_sm);
	if (!r)
		r = tm_pre_commit(tmd->tm);
	if (r)
		return r;

	memcpy(sb, &tmd->committed, sizeof(*sb));
	sb->time = le32_make(tmd->time);
	sb->trans_id = le64_make(tmd->trans_id);
	sb->held_root = le64_make(tmd->held_root);
	if (tmd->grown_metadata_blocks != tmd->nr_metadata_blocks)
		sb->metadata_nr_blocks = le64_make(tmd->grown_metadata_blocks);
	sb->data_mapping_root = le64_make(tmd->root);
	sb->device_details_root = le64_make(tmd->details_root);
	sm_copy_root(tmd->data_sm, &sm_root);
	memcpy(sb->data_sm_root, &sm_root, sizeof(sm_root));
	sm_copy_root(tmd->metadata_sm, &sm_root);
	memcpy(sb->metadata_sm_root, &sm_root, sizeof(sm_root));
	return 0;
}

/* The checksum is made when the block is written; a flag says nothing of what is committed. */
static void make_state(struct thin_disk_superblock *ret_state,
		       const struct thin_disk_superblock *sb)
{
	memcpy(ret_state, sb, sizeof(*ret_state));
	ret_state->csum = ret_state->flags = le32_make(0);
}

static void announce(struct thin_metadata *tmd) TP_TAKES(meta_root)
{
	make_state(&tmd->announced, &tmd->scratch);
	tmd->commit_hook(tmd->commit_hook_ctx, &tmd->announced);
}

static int write_superblock(struct thin_metadata *tmd) TP_TAKES(meta_root)
{
	int r;

	lock_meta_root(&tmd->lock);
	r = superblock_set(tmd->bm, &tmd->scratch);
	if (!r) {
		memcpy(&tmd->published, &tmd->scratch, sizeof(tmd->published));
		tmd->publishing = true;
		tm_end_transaction(tmd->tm);
	}
	unlock_meta_root(&tmd->lock);
	if (r)
		return r;

	lock_meta_root_shared(&tmd->lock);
	r = tm_flush(tmd->tm);
	unlock_meta_root_shared(&tmd->lock);
	return r;
}

int commit_to_disk(struct thin_metadata *tmd, struct data_flush *flush)
{
	int r;

	lock_meta_root(&tmd->lock);
	r = prepare(tmd);
	unlock_meta_root(&tmd->lock);
	if (r)
		return r;

	lock_meta_root_shared(&tmd->lock);
	r = tm_flush(tmd->tm);
	unlock_meta_root_shared(&tmd->lock);
	if (!r)
		r = data_flush_wait(flush);
	if (!r && tmd->commit_hook)
		announce(tmd);
	if (!r)
		r = write_superblock(tmd);
	if (r)
		return r;

	lock_meta_root(&tmd->lock);
	memcpy(&tmd->committed, &tmd->scratch, sizeof(tmd->committed));
	metadata_load_scalars(tmd);
	tmd->publishing = false;
	devices_committed(tmd);
	unlock_meta_root(&tmd->lock);
	return 0;
}

int thin_metadata_commit(struct thin_metadata *tmd)
{
	struct data_flush flush;
	bool changed;
	int r;

	lock_meta_root_shared(&tmd->lock);
	changed = tmd->changed;
	r = tmd->fail_io ? -EINVAL : changed ? metadata_may_change(tmd) : 0;
	unlock_meta_root_shared(&tmd->lock);
	if (r || !changed)
		return r;

	data_flush_begin(&flush, tmd->data);
	r = commit_to_disk(tmd, &flush);
	data_flush_end(&flush);
	atomic_store(&tmd->data_flush_failed, flush.result != 0);
	if (r) {
		lock_meta_root(&tmd->lock);
		tmd->must_abort = true;
		unlock_meta_root(&tmd->lock);
	}
	return r;
}

_Static_assert(THIN_STATE_BYTES == sizeof(struct thin_disk_superblock), "a state is all of it");

void thin_metadata_get_state(struct thin_metadata *tmd, void *ret_state)
{
	lock_meta_root_shared(&tmd->lock);
	make_state(ret_state, &tmd->committed);
	unlock_meta_root_shared(&tmd->lock);
}

void thin_metadata_set_commit_hook(struct thin_metadata *tmd,
				   void (*fn)(void *ctx, const void *state), void *ctx)
{
	tmd->commit_hook = fn;
	tmd->commit_hook_ctx = ctx;
}

bool thin_metadata_changed(struct thin_metadata *tmd)
{
	bool changed;

	lock_meta_root_shared(&tmd->lock);
	changed = tmd->changed;
	unlock_meta_root_shared(&tmd->lock);
	return changed;
}

/* The committed superblock with other flags; alone, as nothing else is dirty after an abort. */
static int write_flags(struct thin_metadata *tmd, uint32_t flags) TP_REQUIRES(lc_meta_root)
	TP_TAKES(bufio)
{
	struct thin_disk_superblock *sb = &tmd->scratch;
	bool read_only = bm_is_read_only(tmd->bm);
	int r;

	memcpy(sb, &tmd->committed, sizeof(*sb));
	sb->flags = le32_make(flags);
	bm_set_read_only(tmd->bm, false);
	r = superblock_set(tmd->bm, sb);
	if (!r)
		r = bm_flush(tmd->bm);
	bm_set_read_only(tmd->bm, read_only);
	if (!r)
		tmd->committed.flags = sb->flags;
	else
		bm_forget(tmd->bm, THIN_SUPERBLOCK_LOCATION); /* dirty only while it is written */
	return r;
}

/*
 * The superblock as it is on disk plus one bit is right at any time: it leads to nothing new.
 * Blocks of an open transaction that the flush writes along are free in the committed state.
 */
int thin_metadata_set_needs_check(struct thin_metadata *tmd)
{
	uint32_t flags;
	int r = 0;

	lock_meta_root(&tmd->lock);
	flags = le32_get(tmd->committed.flags);
	if (tmd->fail_io)
		r = -EINVAL;
	else if (flags & THIN_NEEDS_CHECK_FLAG)
		; /* durable already */
	else if (tmd->opened_read_only)
		r = -EPERM;
	else
		r = write_flags(tmd, flags | THIN_NEEDS_CHECK_FLAG);
	unlock_meta_root(&tmd->lock);
	return r;
}

/* Read and written past any cache: this is the only block that changes. */
static int clear_flag(struct io_device *dev, struct thin_disk_superblock *sb,
		      struct tp_error *error)
{
	uint32_t flags;
	int r;

	r = io_device_read(dev, sb, sizeof(*sb), THIN_SUPERBLOCK_LOCATION * METADATA_BLOCK_SIZE);
	if (!r)
		r = superblock_check(sb, io_device_size(dev) / METADATA_BLOCK_SIZE, false,
				     io_device_name(dev), error);
	if (r)
		return r;
	flags = le32_get(sb->flags);
	if (!(flags & THIN_NEEDS_CHECK_FLAG))
		return 0;
	sb->flags = le32_make(flags & ~THIN_NEEDS_CHECK_FLAG);
	sb->csum = le32_make(bm_checksum(sb, SUPERBLOCK_CSUM_XOR));
	r = io_device_write(dev, sb, sizeof(*sb), THIN_SUPERBLOCK_LOCATION * METADATA_BLOCK_SIZE);
	return r ? r : io_device_flush(dev);
}

int thin_metadata_clear_needs_check(struct io_device *dev, struct tp_error *error)
{
	struct thin_disk_superblock *sb = io_buffer_alloc(sizeof(*sb));
	int r = sb ? clear_flag(dev, sb, error) : -ENOMEM;

	free(sb);
	if (r)
		return tp_error(error, r, "cannot clear the needs_check flag of \"%s\": %s",
				io_device_name(dev), tp_error_words(r));
	return 0;
}

void thin_metadata_set_read_only(struct thin_metadata *tmd)
{
	lock_meta_root(&tmd->lock);
	tmd->read_only = true;
	bm_set_read_only(tmd->bm, true);
	unlock_meta_root(&tmd->lock);
}
