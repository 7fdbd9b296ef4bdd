/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-metadata.c - format, open, close; reopening for an abort
 *
 * Owns the life of a struct thin_metadata: which objects exist when.
 *
 *   whole life        block manager with its buffer cache; the lock; open devices
 *   a transaction     metadata space map, data space map, transaction manager: rebuilt by
 *                     every abort (thin-abort.c) from the committed superblock
 *
 * Invariants
 *   1  bm is never NULL and never replaced;
 *   2  the three objects of a transaction are all there, or (fail_io) all NULL;
 *   3  without fail_io, @committed is the superblock that a crash would leave now, except
 *      while a commit is writing it;
 *   4  !changed: the scalars and devices agree with @committed.
 *
 * Locks: everything but open and close works under meta_root, taken here.
 */
#include "thin/thin-internal.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/device.h"
#include "util/log.h"

#define LOG_MODULE "thin-metadata"

#define METADATA_RESERVE_MAX 4096u /* blocks */

/* Below this even an empty pool could not be committed with a reserve kept back. */
#define METADATA_MIN_BLOCKS 64u

/* Enough for format, whose few blocks are all dirty. */
#define FORMAT_CACHE_BYTES (4u << 20)

/* ---- the objects of a transaction ---- */

void metadata_objects_destroy(struct thin_metadata *tmd)
{
	tmd->data_sm = sm_destroy(tmd->data_sm);
	tmd->tm = tm_destroy(tmd->tm);
	tmd->metadata_sm = sm_destroy(tmd->metadata_sm);
	tmd->nr_reopened++;
}

static void setup_trees(struct thin_metadata *tmd) TP_REQUIRES(lc_meta_root)
{
	tmd->device_info =
		(struct btree_info){ .tm = tmd->tm, .levels = 1, .value_type = mapping_value_type };
	tmd->mapping_info = tmd->device_info;
	tmd->mapping_info.levels = 2;
	tmd->top_info =
		(struct btree_info){ .tm = tmd->tm, .levels = 1, .value_type = subtree_value_type };
	tmd->details_info = (struct btree_info){
		.tm = tmd->tm,
		.levels = 1,
		.value_type = { .size = sizeof(struct disk_device_details) },
	};
	tmd->device_info.value_type.context = tmd;
	tmd->mapping_info.value_type.context = tmd;
	tmd->top_info.value_type.context = tmd;
}

/* A shell of the metadata map and the transaction manager around it. */
static int objects_begin(struct thin_metadata *tmd) TP_REQUIRES(lc_meta_root)
{
	int r;

	tmd->metadata_sm = sm_metadata_init();
	if (!tmd->metadata_sm)
		return -ENOMEM;
	r = tm_create(tmd->bm, tmd->metadata_sm, &tmd->tm);
	if (!r)
		setup_trees(tmd);
	return r;
}

/* From the superblock in @committed.  Half-built objects are left to metadata_objects_destroy(). */
static int objects_open(struct thin_metadata *tmd) TP_REQUIRES(lc_meta_root)
{
	int r;

	r = objects_begin(tmd);
	if (!r)
		r = sm_metadata_open(tmd->metadata_sm, tmd->tm,
				     (const void *)tmd->committed.metadata_sm_root);
	if (!r)
		r = sm_disk_open(tmd->tm, (const void *)tmd->committed.data_sm_root, &tmd->data_sm);
	return r;
}

/* The order of the calls decides where a fresh image has what. */
static int objects_create(struct thin_metadata *tmd, mblock_t nr_blocks) TP_REQUIRES(lc_meta_root)
	TP_TAKES(bufio)
{
	int r;

	r = objects_begin(tmd);
	if (!r)
		r = sm_metadata_create(tmd->metadata_sm, tmd->tm, nr_blocks,
				       THIN_SUPERBLOCK_LOCATION + 1);
	if (!r)
		r = sm_disk_create(tmd->tm, 0, &tmd->data_sm);
	if (!r)
		r = btree_empty(&tmd->mapping_info, &tmd->root);
	if (!r)
		r = btree_empty(&tmd->details_info, &tmd->details_root);
	return r;
}

void metadata_load_scalars(struct thin_metadata *tmd)
{
	const struct thin_disk_superblock *sb = &tmd->committed;
	const struct disk_sm_root *data = (const void *)sb->data_sm_root;
	const struct disk_sm_root *metadata = (const void *)sb->metadata_sm_root;

	tmd->root = le64_get(sb->data_mapping_root);
	tmd->details_root = le64_get(sb->device_details_root);
	tmd->time = le32_get(sb->time);
	tmd->trans_id = le64_get(sb->trans_id);
	tmd->held_root = le64_get(sb->held_root);
	tmd->nr_data_blocks = tmd->grown_data_blocks = le64_get(data->nr_blocks);
	tmd->nr_metadata_blocks = tmd->grown_metadata_blocks = le64_get(metadata->nr_blocks);
	tmd->data_block_sectors = le32_get(sb->data_block_size);
	tmd->changed = false;
	tmd->must_abort = false;
}

mblock_t metadata_reserve(const struct thin_metadata *tmd)
{
	return MIN(tmd->nr_metadata_blocks / 10, METADATA_RESERVE_MAX);
}

/* ---- the thing itself ---- */

/* Also takes half-built ones. */
static void metadata_free(struct thin_metadata *tmd) TP_EXCLUDES_ALL
{
	if (!tmd)
		return;
	lock_meta_root(&tmd->lock);
	metadata_objects_destroy(tmd);
	devices_free(tmd);
	unlock_meta_root(&tmd->lock);
	tmd->bm = bm_destroy(tmd->bm);
	tp_lock_destroy(&tmd->lock);
	free(tmd);
}

static int metadata_alloc(struct io_device *dev, const struct thin_metadata_options *options,
			  struct thin_metadata **ret_tmd) TP_EXCLUDES_ALL
{
	const struct block_manager_options bm_options = {
		.cache_bytes = options->cache_bytes,
		.read_only = options->read_only,
	};
	struct thin_metadata *tmd;
	int r;

	tmd = aligned_alloc(METADATA_BLOCK_SIZE, sizeof(*tmd));
	if (!tmd)
		return -ENOMEM;
	memset(tmd, 0, sizeof(*tmd));
	tp_lock_init(&tmd->lock, LC_meta_root, LOCK_KIND_RW);
	tmd->dev = dev;
	tmd->data = options->data;
	tmd->opened_read_only = options->read_only;
	lock_meta_root(&tmd->lock);
	tmd->read_only = options->read_only;
	unlock_meta_root(&tmd->lock);

	r = bm_create(dev, &bm_options, &tmd->bm);
	if (r) {
		metadata_free(tmd);
		return r;
	}
	*ret_tmd = tmd;
	return 0;
}

/* ---- format ---- */

int thin_metadata_is_unformatted(struct io_device *dev, bool *ret_unformatted)
{
	struct thin_disk_superblock *sb;
	int r;

	if (io_device_size(dev) < sizeof(*sb)) {
		*ret_unformatted = true;
		return 0;
	}
	sb = io_buffer_alloc(sizeof(*sb));
	if (!sb)
		return -ENOMEM;
	r = io_device_read(dev, sb, sizeof(*sb), THIN_SUPERBLOCK_LOCATION * METADATA_BLOCK_SIZE);
	if (!r)
		*ret_unformatted = superblock_is_blank(sb);
	free(sb);
	return r;
}

/*
 * An old superblock goes first: from here until the new one is written, a crash leaves a
 * device that is not formatted, never old roots over new blocks.
 */
static int wipe_superblock(struct io_device *dev) TP_TAKES(bufio)
{
	bool unformatted;
	void *zeros;
	int r;

	r = thin_metadata_is_unformatted(dev, &unformatted);
	if (r || unformatted)
		return r;
	zeros = io_buffer_alloc(METADATA_BLOCK_SIZE);
	if (!zeros)
		return -ENOMEM;
	memset(zeros, 0, METADATA_BLOCK_SIZE);
	r = io_device_write(dev, zeros, METADATA_BLOCK_SIZE, 0);
	free(zeros);
	return r ? r : io_device_flush(dev);
}

static int format_device(struct thin_metadata *tmd, uint32_t data_block_sectors) TP_TAKES(meta_root)
{
	mblock_t nr_blocks = bm_nr_blocks(tmd->bm);
	struct data_flush no_data;
	int r;

	r = wipe_superblock(tmd->dev);
	if (r)
		return r;
	lock_meta_root(&tmd->lock);
	superblock_init(&tmd->committed, data_block_sectors, nr_blocks);
	r = objects_create(tmd, nr_blocks);
	unlock_meta_root(&tmd->lock);
	data_flush_begin(&no_data, NULL);
	return r ? r : commit_to_disk(tmd, &no_data);
}

int thin_metadata_format(struct io_device *dev, uint32_t data_block_sectors, struct tp_error *error)
{
	const struct thin_metadata_options options = { .cache_bytes = FORMAT_CACHE_BYTES };
	struct thin_metadata *tmd;
	int r;

	if (data_block_sectors < DATA_BLOCK_MIN_SECTORS ||
	    data_block_sectors > DATA_BLOCK_MAX_SECTORS ||
	    data_block_sectors % DATA_BLOCK_MIN_SECTORS)
		return tp_error(error, -EINVAL,
				"data blocks of %" PRIu32
				" sectors are not possible: use a multiple of 64 KiB up to 1 GiB",
				data_block_sectors);
	if (io_device_size(dev) / METADATA_BLOCK_SIZE < METADATA_MIN_BLOCKS)
		return tp_error(error, -EINVAL,
				"\"%s\" has %" PRIu64
				" bytes, too few for metadata: give it at least %u KiB",
				io_device_name(dev), io_device_size(dev),
				METADATA_MIN_BLOCKS * (METADATA_BLOCK_SIZE / 1024));

	r = metadata_alloc(dev, &options, &tmd);
	if (!r) {
		r = format_device(tmd, data_block_sectors);
		metadata_free(tmd);
	}
	if (r)
		return tp_error(error, r, "cannot format \"%s\": %s", io_device_name(dev),
				strerror(-r));
	return 0;
}

/* ---- open and close ---- */

static int check_data_device(const struct thin_metadata *tmd, struct tp_error *error)
	TP_REQUIRES(lc_meta_root)
{
	uint64_t block_bytes = (uint64_t)tmd->data_block_sectors * SECTOR_SIZE;

	if (!tmd->data || io_device_size(tmd->data) / block_bytes >= tmd->nr_data_blocks)
		return 0;
	return tp_error(error, -EINVAL,
			"the data device \"%s\" has %" PRIu64 " bytes, but the pool uses %" PRIu64
			" blocks of %" PRIu64 " bytes: it was cut off or is the wrong one",
			io_device_name(tmd->data), io_device_size(tmd->data), tmd->nr_data_blocks,
			block_bytes);
}

/* What open and abort share.  Fails with nothing but half-built objects. */
static int load(struct thin_metadata *tmd, struct tp_error *error) TP_REQUIRES(lc_meta_root)
	TP_TAKES(bufio)
{
	int r;

	r = superblock_read(tmd->bm, tmd->opened_read_only, io_device_name(tmd->dev), &tmd->scratch,
			    error);
	if (r)
		return r;
	memcpy(&tmd->committed, &tmd->scratch, sizeof(tmd->committed));
	metadata_load_scalars(tmd);
	r = check_data_device(tmd, error);
	if (r)
		return r;
	r = objects_open(tmd);
	if (r)
		return tp_error(error, r,
				"the space maps of \"%s\" cannot be read (%s): repair a copy "
				"with thin_repair",
				io_device_name(tmd->dev), tp_error_words(r));
	return 0;
}

int thin_metadata_open(struct io_device *dev, const struct thin_metadata_options *options,
		       struct thin_metadata **ret_tmd, struct tp_error *error)
{
	struct thin_metadata *tmd;
	bool unformatted;
	int r;

	r = thin_metadata_is_unformatted(dev, &unformatted);
	if (r)
		return tp_error(error, r, "cannot read \"%s\": %s", io_device_name(dev),
				strerror(-r));
	if (unformatted)
		return tp_error(error, -ENODATA,
				"\"%s\" is not formatted: use \"thinpoolctl format\"",
				io_device_name(dev));
	r = metadata_alloc(dev, options, &tmd);
	if (r)
		return tp_error(error, r, "cannot open \"%s\": %s", io_device_name(dev),
				strerror(-r));

	lock_meta_root(&tmd->lock);
	r = load(tmd, error);
	unlock_meta_root(&tmd->lock);
	if (r) {
		metadata_free(tmd);
		return r;
	}
	*ret_tmd = tmd;
	return 0;
}

int thin_metadata_close(struct thin_metadata *tmd)
{
	bool busy;

	if (!tmd)
		return 0;
	lock_meta_root(&tmd->lock);
	busy = devices_any_open(tmd);
	unlock_meta_root(&tmd->lock);
	if (busy)
		return -EBUSY;
	metadata_free(tmd);
	return 0;
}

/* ---- after an abort ---- */

/* Is what the device has now what the commit that failed was writing? */
static bool has_landed(const struct thin_metadata *tmd) TP_REQUIRES(lc_meta_root)
{
	const size_t from = offsetof(struct thin_disk_superblock, uuid);

	return tmd->publishing &&
	       !memcmp((const char *)&tmd->committed + from, (const char *)&tmd->published + from,
		       sizeof(tmd->committed) - from);
}

/* Marks of what was lost come before marks of what was changed go: both are read without a lock. */
int metadata_reopen(struct thin_metadata *tmd)
{
	struct tp_error error = { 0 };
	int r;

	r = load(tmd, &error);
	tmd->landed = !r && has_landed(tmd);
	tmd->publishing = false;
	if (!tmd->landed)
		devices_mark_aborted(tmd);
	if (!r)
		r = devices_reload(tmd);
	if (!r)
		return 0;
	log_err("%s: the committed state cannot be read again (%s), the pool has failed",
		io_device_name(tmd->dev), error.text[0] ? error.text : strerror(-r));
	metadata_objects_destroy(tmd);
	tmd->fail_io = true;
	return r;
}

bool thin_metadata_commit_landed(struct thin_metadata *tmd)
{
	bool landed;

	lock_meta_root_shared(&tmd->lock);
	landed = tmd->landed;
	unlock_meta_root_shared(&tmd->lock);
	return landed;
}

/* ---- telling ---- */

bool thin_metadata_data_flush_failed(struct thin_metadata *tmd, bool *ret_alone)
{
	*ret_alone = bm_last_failure(tmd->bm).kind == BM_FAILURE_NONE;
	return atomic_load(&tmd->data_flush_failed);
}

void thin_metadata_describe_failure(struct thin_metadata *tmd, int r, char *text, size_t size)
{
	static const char *const words[] = {
		[BM_FAILURE_READ] = "cannot be read",
		[BM_FAILURE_WRITE] = "cannot be written",
		[BM_FAILURE_CONTENT] = "is damaged",
	};
	const struct bm_failure f = bm_last_failure(tmd->bm);

	if (atomic_load(&tmd->data_flush_failed))
		snprintf(text, size, "the data device cannot be flushed (%s)", tp_error_words(r));
	else if (r == -ENOSPC && f.error != r) /* else it is the host's space */
		snprintf(text, size, "no metadata block is free");
	else if (f.kind == BM_FAILURE_NONE || f.error != r)
		snprintf(text, size, "%s", tp_error_words(r));
	else if (f.kind == BM_FAILURE_FLUSH)
		snprintf(text, size, "the metadata device cannot be flushed (%s)",
			 tp_error_words(r));
	else
		snprintf(text, size, "metadata block %" PRIu64 " %s (%s)", f.block, words[f.kind],
			 tp_error_words(r));
}
