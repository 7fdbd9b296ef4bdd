/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * stats.h - counters that many threads raise and few read
 *
 * Layer:    pool.
 * Threads:  any; counting takes no lock and, as a rule, no shared cache line.
 */
#ifndef TP_POOL_STATS_H
#define TP_POOL_STATS_H

#include <stdatomic.h>
#include <stdint.h>

#include "pool/pool.h"

/* One for each member of struct pool_stats, in that order. */
enum stat {
	STAT_READS,
	STAT_WRITES,
	STAT_FLUSHES,
	STAT_DISCARDS,
	STAT_READ_BYTES,
	STAT_WRITE_BYTES,
	STAT_DISCARD_BYTES,
	STAT_PROVISIONED,
	STAT_BROKEN_SHARING,
	STAT_ZEROED,
	STAT_PASSED_DOWN_BYTES,
	STAT_DEFERRED,
	STAT_METADATA_MISSES,
	STAT_UNALIGNED,
	STAT_COMMITS,
	STAT_ABORTS,
	STAT_COMMANDS,
	STAT_THROTTLED,
	NR_STATS
};
_Static_assert(NR_STATS * sizeof(uint64_t) == sizeof(struct pool_stats), "a stat for each member");

#define STATS_SHARDS 8 /* threads that count at the same time */

struct stats {
	struct {
		_Alignas(64) _Atomic uint64_t count[NR_STATS];
	} shards[STATS_SHARDS];
};

/* @key tells threads apart: the address of something of the thread's own. */
static inline void stats_add(struct stats *s, const void *key, enum stat stat, uint64_t n)
{
	uint64_t shard = ((uintptr_t)key >> 6) * UINT64_C(0x9e3779b97f4a7c15) >> 61;

	atomic_fetch_add_explicit(&s->shards[shard].count[stat], n, memory_order_relaxed);
}

/* Sums of all shards. */
void stats_read(const struct stats *s, struct pool_stats *ret_stats);

#endif
