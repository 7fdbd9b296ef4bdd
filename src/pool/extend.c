/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * extend.c - making a pool larger while it is in service
 *
 * Worker only.  First the file or device, then the metadata that describes it: a crash in between
 * leaves a device that is larger than the pool, which is no harm.  Metadata goes first and is
 * committed, because the counts of new data blocks need metadata blocks, and there may have been
 * none left.  What waits for space goes on after the commit, which is when the new blocks can be
 * had (pool_refresh_info()).
 *
 * Everything that can be wrong is looked at before the transaction is touched, the room for the
 * new counts too: running out of it half-way could only be answered with an abort.
 */
#define LOG_MODULE "pool"
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "io/device.h"
#include "pool/pool-internal.h"
#include "thinpoold/disk-format.h"
#include "util/log.h"
#include "util/parse-size.h"

/* Nodes and bitmaps that an extension changes besides making new ones. */
#define COPIED_BLOCKS 8

#define fail(cmd, r, ...) tp_error(&(cmd)->error, r, __VA_ARGS__)

static int get_info(struct pool *pool, struct pool_command *cmd, struct thin_metadata_info *info)
{
	int r = thin_metadata_get_info(pool->tmd, info);

	return r ? fail(cmd, r, "the size of the pool is not known: %s", strerror(-r)) : 0;
}

/* A file grows, a block device must have grown. */
static int grow_device(struct pool_command *cmd, struct io_device *dev, uint64_t bytes)
{
	char want[FORMAT_SIZE_MAX];
	int r;

	if (io_device_size(dev) >= bytes)
		return 0;
	r = io_device_resize(dev, bytes);
	format_size(bytes, want, sizeof(want));
	if (r == -EOPNOTSUPP)
		return fail(cmd, r, "\"%s\" is a block device of less than %s: enlarge it first",
			    io_device_name(dev), want);
	return r ? fail(cmd, r, "\"%s\" cannot be made %s large: %s", io_device_name(dev), want,
			strerror(-r))
		 : 0;
}

static int check_not_smaller(struct pool_command *cmd, const char *what, uint64_t bytes,
			     uint64_t now)
{
	char text[FORMAT_SIZE_MAX];

	if (bytes >= now)
		return 0;
	return fail(cmd, -EINVAL, "%s has %s (%" PRIu64 " bytes) and cannot be made smaller", what,
		    format_size(now, text, sizeof(text)), now);
}

/* Sizes become those of whole blocks; what is not asked for stays as it is. */
static int check_sizes(struct pool *pool, struct pool_command *cmd)
{
	struct thin_metadata_info info;
	uint64_t data, metadata;
	int r = get_info(pool, cmd, &info);

	if (r)
		return r;
	data = info.nr_data_blocks * pool->block_size;
	metadata = info.nr_metadata_blocks * METADATA_BLOCK_SIZE;
	if (!cmd->size_bytes && !cmd->metadata_bytes)
		return fail(cmd, -EINVAL, "say how large data or metadata shall be");
	if (cmd->size_bytes > INT64_MAX || cmd->size_bytes / pool->block_size > DATA_BLOCK_LIMIT)
		return fail(cmd, -EFBIG, "a pool has 2^40 blocks and 8 EiB of data at most");

	cmd->size_bytes =
		cmd->size_bytes ? cmd->size_bytes / pool->block_size * pool->block_size : data;
	cmd->metadata_bytes = cmd->metadata_bytes ? MIN(cmd->metadata_bytes / METADATA_BLOCK_SIZE,
							MAX_METADATA_BLOCKS) *
							    METADATA_BLOCK_SIZE
						  : metadata;
	r = check_not_smaller(cmd, "data", cmd->size_bytes, data);
	return r ? r : check_not_smaller(cmd, "metadata", cmd->metadata_bytes, metadata);
}

void pool_allocate_metadata(struct pool *pool)
{
	uint64_t bytes = io_device_size(pool->metadata);
	int r = io_device_allocate_cheaply(pool->metadata, 0, bytes);

	if (r)
		log_warn("\"%s\" stays sparse (%s): metadata will fail if its file system is full "
			 "when it needs more of it",
			 io_device_name(pool->metadata), strerror(-r));
}

static int extend_metadata(struct pool *pool, struct pool_command *cmd)
{
	mblock_t blocks = cmd->metadata_bytes / METADATA_BLOCK_SIZE;
	struct thin_metadata_info info;
	int r = get_info(pool, cmd, &info);

	if (r || blocks == info.nr_metadata_blocks)
		return r;
	r = grow_device(cmd, pool->metadata, cmd->metadata_bytes);
	if (r)
		return r;
	pool_allocate_metadata(pool);
	r = thin_metadata_resize_metadata(pool->tmd);
	if (r)
		return pool_metadata_failed(pool, "extend metadata", r);
	r = pool_commit_now(pool);
	if (!r)
		r = get_info(pool, cmd, &info);
	if (!r)
		cmd->metadata_bytes = info.nr_metadata_blocks * METADATA_BLOCK_SIZE;
	return r;
}

/* The bitmaps of the new blocks, and the tree that leads to them, need metadata blocks. */
static int check_room_for_counts(struct pool_command *cmd, const struct thin_metadata_info *info,
				 dblock_t blocks)
{
	uint64_t bitmaps = DIV_ROUND_UP(blocks, ENTRIES_PER_BITMAP) -
			   DIV_ROUND_UP(info->nr_data_blocks, ENTRIES_PER_BITMAP);
	/* Nodes of the index may be filled by half. */
	uint64_t need = bitmaps + bitmaps / (NODE_MAX_ENTRIES(16) / 2) + COPIED_BLOCKS;

	/* A share of the reserve may be used: this is one of the ways out of a full pool. */
	if (need <= info->nr_metadata_free + info->metadata_reserve / 4)
		return 0;
	return fail(cmd, -ENOSPC,
		    "%" PRIu64 " blocks of metadata are needed to count so much data, and %" PRIu64
		    " are free: extend metadata too",
		    need, (uint64_t)info->nr_metadata_free);
}

static int extend_data(struct pool *pool, struct pool_command *cmd)
{
	dblock_t blocks = cmd->size_bytes / pool->block_size;
	struct thin_metadata_info info;
	int r = get_info(pool, cmd, &info);

	if (r || blocks == info.nr_data_blocks)
		return r;
	r = check_room_for_counts(cmd, &info, blocks);
	if (!r)
		r = grow_device(cmd, pool->data, cmd->size_bytes);
	if (r)
		return r;
	r = thin_metadata_resize_data(pool->tmd, blocks);
	return r ? pool_metadata_failed(pool, "extend data", r) : 0;
}

int pool_extend(struct pool *pool, struct pool_command *cmd)
{
	int r = pool_check_writable(pool);

	if (r)
		return pool_refuse_command(pool, cmd, r);
	r = check_sizes(pool, cmd);
	if (!r)
		r = extend_metadata(pool, cmd);
	if (!r)
		r = extend_data(pool, cmd);
	return r;
}
