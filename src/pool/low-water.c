/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * low-water.c - telling in time that a pool will be full
 *
 * Worker only, but for low_water_mark().  Data and metadata have a mark each: so much free space,
 * or less, is low.  Falling to the mark is told once; to be told again, free space must have
 * risen above the mark by a margin, so that a client that writes and discards a few blocks at the
 * mark does not fill the log.
 *
 *	            free <= mark: log, count
 *	    enough -------------------------> low
 *	           <-------------------------
 *	          free > mark + margin, or no mark
 *
 * Free metadata is counted without the reserve, of which clients get nothing.
 */
#define LOG_MODULE "pool"
#include "pool/request.h"

#include "thinpoold/disk-format.h"
#include "util/log.h"
#include "util/parse-size.h"

#define MARGIN_DIVISOR 8 /* of the mark; a block at least */

uint64_t low_water_mark(const struct pool_low_water *low_water, uint64_t total)
{
	if (!low_water->percent)
		return low_water->bytes;
	return total / 100 * low_water->percent + total % 100 * low_water->percent / 100;
}

/* One of the two kinds of space. */
struct space {
	const char *name;
	uint64_t free, total, mark, unit; /* bytes */
	enum pool_stat stat;
	enum pool_event_kind event;
	struct log_limit *log;
};

static void tell(const struct space *s)
{
	char free[FORMAT_SIZE_MAX], total[FORMAT_SIZE_MAX], mark[FORMAT_SIZE_MAX];

	log_line_limited(s->log, LOG_LEVEL_WARN, LOG_MODULE,
			 "%s space is low: %s of %s is free, the mark is %s: extend the pool or "
			 "delete volumes",
			 s->name, format_size(s->free, free, sizeof(free)),
			 format_size(s->total, total, sizeof(total)),
			 format_size(s->mark, mark, sizeof(mark)));
}

static void check(struct pool *pool, const struct space *s, atomic_bool *low)
{
	uint64_t margin = MAX(s->mark / MARGIN_DIVISOR, s->unit);

	if (!s->mark || s->free > s->mark + margin) {
		atomic_store(low, false);
	} else if (s->free <= s->mark && !atomic_exchange(low, true)) {
		stats_add(pool->stats, pool->worker, s->stat, 1);
		tell(s);
		pool_event(pool, s->event, 0, NULL);
	}
}

void low_water_check(struct pool *pool, const struct thin_metadata_info *info)
{
	struct space data = {
		.name = "data",
		.free = info->nr_data_free * pool->block_size,
		.total = info->nr_data_blocks * pool->block_size,
		.unit = pool->block_size,
		.stat = STAT_LOW_WATER_DATA,
		.event = POOL_EVENT_DATA_LOW,
		.log = &pool->low_water_log[0],
	};
	struct space metadata = {
		.name = "metadata",
		.free = info->nr_metadata_free * METADATA_BLOCK_SIZE,
		.total = info->nr_metadata_blocks * METADATA_BLOCK_SIZE,
		.unit = METADATA_BLOCK_SIZE,
		.stat = STAT_LOW_WATER_METADATA,
		.event = POOL_EVENT_METADATA_LOW,
		.log = &pool->low_water_log[1],
	};

	if (info->failed || pool->opened_read_only)
		return;
	data.mark = low_water_mark(&pool->options.low_water_data, data.total);
	metadata.mark = low_water_mark(&pool->options.low_water_metadata, metadata.total);
	/* A trim or a large discard keeps much of what is free to itself, for a while only. */
	if (data.free <= data.mark)
		data.free += passdown_blocks(pool) * pool->block_size;
	check(pool, &data, &pool->data_is_low);
	check(pool, &metadata, &pool->metadata_is_low);
}
