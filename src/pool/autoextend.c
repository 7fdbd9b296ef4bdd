/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * autoextend.c - a pool in files grows before it is full
 *
 * Worker only.  Data and metadata have the same threshold: when so many percent are in use, the
 * file is made larger by some percent, as "extend" would do it (extend.c): first the file, then
 * what describes it.  Metadata is looked at after each commit, before anybody is told that only the
 * reserve is left; data once a pass, before those who found no block are given up.
 *
 * A file grows into what its host can still hold for certain: free space, less what the pool's
 * sparse files there have promised and not taken yet, less a reserve for others.
 *
 *	host file system:  | used | free                                      |
 *	                          | promised | reserve | room to grow into    |
 *
 * What stands in the way is told in log and status, and looked at again after a while.
 */
#define LOG_MODULE "pool"
#include "pool/request.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "thinpoold/disk-format.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/parse-size.h"

#define RETRY_USEC USEC_PER_SEC
#define RESERVE_PART 20 /* of the host file system */
#define RESERVE_MAX_BYTES (UINT64_C(1) << 30)

/* ------------------------------------------------------------------ the host */

/* What a sparse file may still take of its host. */
static uint64_t promised(struct io_device *dev)
{
	uint64_t size = io_device_size(dev), allocated;

	if (io_device_allocated(dev, &allocated))
		return size;
	return size - MIN(size, allocated);
}

/* Bytes by which @dev can grow. */
static uint64_t room_of(struct pool *pool, struct io_device *dev)
{
	struct io_device *other = dev == pool->data ? pool->metadata : pool->data;
	struct io_host_space host, others_host;
	uint64_t taken;

	if (io_device_host_space(dev, &host))
		return UINT64_MAX;
	taken = MIN(host.total / RESERVE_PART, RESERVE_MAX_BYTES) + promised(dev);
	if (!io_device_host_space(other, &others_host) && others_host.id == host.id)
		taken += promised(other);
	return host.available - MIN(host.available, taken);
}

/* ------------------------------------------------------------------ what is in the way */

static const char *const names[NR_GROWTHS] = { "data", "metadata" };

static void set_obstacle(struct pool *pool, enum growth_kind kind, enum growth_obstacle obstacle,
			 const char *why)
{
	struct growth *g = &pool->growth[kind];
	bool news = g->obstacle != obstacle;

	if (!news && obstacle == GROWTH_FREE)
		return;
	g->obstacle = obstacle;
	g->retry_usec = time_monotonic_usec() + RETRY_USEC;
	lock_pool(&pool->lock);
	snprintf(g->why, sizeof(g->why), "%s", why);
	unlock_pool(&pool->lock);
	if (news && obstacle != GROWTH_FREE)
		log_line_limited(&g->log, LOG_LEVEL_WARN, LOG_MODULE, "%s is not extended: %s",
				 names[kind], why);
}

/* ------------------------------------------------------------------ growing */

struct numbers {
	enum growth_kind kind;
	struct io_device *dev;
	uint64_t used, total, unit, max; /* blocks of @unit bytes */
};

static struct numbers data_numbers(struct pool *pool, const struct thin_metadata_info *info)
{
	uint64_t max = pool->options.autoextend.max_bytes / pool->block_size;
	uint64_t limit = MIN(DATA_BLOCK_LIMIT, INT64_MAX / pool->block_size);
	/* What a trim or a large discard keeps to itself comes back. */
	uint64_t free = MIN(info->nr_data_free + passdown_blocks(pool), info->nr_data_blocks);

	return (struct numbers){ .kind = GROWTH_DATA,
				 .dev = pool->data,
				 .used = info->nr_data_blocks - free,
				 .total = info->nr_data_blocks,
				 .unit = pool->block_size,
				 .max = pool->options.autoextend.max_bytes ? MIN(max, limit)
									   : limit };
}

/* The reserve is not there to be used. */
static struct numbers metadata_numbers(struct pool *pool, const struct thin_metadata_info *info)
{
	return (struct numbers){ .kind = GROWTH_METADATA,
				 .dev = pool->metadata,
				 .used = info->nr_metadata_blocks - info->metadata_reserve -
					 info->nr_metadata_free,
				 .total = info->nr_metadata_blocks - info->metadata_reserve,
				 .unit = METADATA_BLOCK_SIZE,
				 .max = MAX_METADATA_BLOCKS };
}

/* How many blocks it shall have; 0: it cannot grow, and that has been told. */
static uint64_t size_to_be(struct pool *pool, const struct numbers *n, uint64_t now_has)
{
	uint64_t room = room_of(pool, n->dev) / n->unit;
	uint64_t step = MAX(now_has / 100 * pool->options.autoextend.percent +
				    now_has % 100 * pool->options.autoextend.percent / 100,
			    1);
	char text[FORMAT_SIZE_MAX];
	char why[GROWTH_WHY_MAX];

	if (n->dev->is_block_device) {
		snprintf(why, sizeof(why),
			 "it is on a block device, enlarge it and use \"thinpoolctl extend\"");
		set_obstacle(pool, n->kind, GROWTH_DEVICE, why);
		return 0;
	}
	if (now_has >= n->max) {
		snprintf(why, sizeof(why), "it has %s, which is %s",
			 format_size(now_has * n->unit, text, sizeof(text)),
			 n->kind == GROWTH_DATA && pool->options.autoextend.max_bytes
				 ? "max_size"
				 : "as much as the format allows");
		set_obstacle(pool, n->kind, GROWTH_LIMIT, why);
		return 0;
	}
	if (!room) {
		snprintf(why, sizeof(why),
			 "its file system has no space left that is not promised or reserved");
		set_obstacle(pool, n->kind, GROWTH_HOST, why);
		return 0;
	}
	return now_has + MIN(MIN(step, room), n->max - now_has);
}

static bool extend_to(struct pool *pool, const struct numbers *n, uint64_t now_has, uint64_t wanted)
{
	char from[FORMAT_SIZE_MAX], to[FORMAT_SIZE_MAX], why[GROWTH_WHY_MAX];
	struct pool_command cmd = { .op = POOL_EXTEND };
	int r;

	*(n->kind == GROWTH_DATA ? &cmd.size_bytes : &cmd.metadata_bytes) = wanted * n->unit;
	r = pool_extend(pool, &cmd);
	if (!r && n->kind == GROWTH_DATA)
		r = pool_commit_now(pool);
	if (pool_check_writable(pool))
		return false; /* metadata has failed, which is told elsewhere */
	if (r) {
		snprintf(why, sizeof(why), "%s", cmd.error.text[0] ? cmd.error.text : strerror(-r));
		set_obstacle(pool, n->kind, GROWTH_ERROR, why);
		return false;
	}
	set_obstacle(pool, n->kind, GROWTH_FREE, "");
	stats_add(pool->stats, pool->worker,
		  n->kind == GROWTH_DATA ? STAT_AUTOEXTENDED_DATA : STAT_AUTOEXTENDED_METADATA, 1);
	log_info("%s was %" PRIu64 " %% full and has been extended from %s to %s", names[n->kind],
		 n->used * 100 / n->total, format_size(now_has * n->unit, from, sizeof(from)),
		 format_size(wanted * n->unit, to, sizeof(to)));
	return true;
}

static bool grow(struct pool *pool, const struct numbers *n, uint64_t now_has)
{
	uint64_t wanted;

	if (!n->total || n->used * 100 < n->total * pool->options.autoextend.threshold) {
		set_obstacle(pool, n->kind, GROWTH_FREE, "");
		return false;
	}
	if (pool->growth[n->kind].obstacle != GROWTH_FREE &&
	    time_monotonic_usec() < pool->growth[n->kind].retry_usec)
		return false;
	wanted = size_to_be(pool, n, now_has);
	return wanted && extend_to(pool, n, now_has, wanted);
}

static bool may_grow(struct pool *pool, struct thin_metadata_info *ret_info)
{
	const struct pool_autoextend *o = &pool->options.autoextend;

	return o->threshold && o->threshold < 100 && !pool->growing && pool->worker->running &&
	       !atomic_load(&pool->worker->stop) && !pool_check_writable(pool) &&
	       !thin_metadata_get_info(pool->tmd, ret_info) && !ret_info->failed;
}

void autoextend_metadata(struct pool *pool)
{
	struct thin_metadata_info info;
	struct numbers n;

	while (may_grow(pool, &info)) {
		n = metadata_numbers(pool, &info);
		pool->growing = true; /* the commit of an extension comes here too */
		if (!grow(pool, &n, info.nr_metadata_blocks)) {
			pool->growing = false;
			break;
		}
		pool->growing = false;
	}
}

void autoextend_run(struct pool *pool)
{
	struct thin_metadata_info info;
	struct numbers n;

	autoextend_metadata(pool);
	if (!may_grow(pool, &info))
		return;
	n = data_numbers(pool, &info);
	if (grow(pool, &n, info.nr_data_blocks))
		low_space_retry(pool);
}

uint64_t autoextend_deadline(const struct pool *pool)
{
	const struct growth *g = &pool->growth[GROWTH_DATA];

	return g->obstacle == GROWTH_HOST || g->obstacle == GROWTH_ERROR ? g->retry_usec
									 : UINT64_MAX;
}
