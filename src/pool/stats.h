/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * stats.h - counters that many threads raise and few read
 *
 * Layer:    pool.
 * Threads:  any; counting takes no lock and, as a rule, no shared cache line.
 * Units:    requests, bytes, blocks or microseconds, as the counter's name says.
 * Errors:   none.
 */
#ifndef TP_POOL_STATS_H
#define TP_POOL_STATS_H

#include <stdatomic.h>
#include <stdint.h>

#include "pool/pool.h"

/* One for each member of struct pool_stats, in that order. */
enum pool_stat {
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
	STAT_LOW_WATER_DATA,
	STAT_LOW_WATER_METADATA,
	STAT_THROTTLES,
	STAT_THROTTLE_USEC,
	STAT_DATA_ERRORS,
	STAT_AUTOEXTENDED_DATA,
	STAT_AUTOEXTENDED_METADATA,
	NR_STATS
};
_Static_assert(NR_STATS * sizeof(uint64_t) == sizeof(struct pool_stats), "a stat for each member");

#define STATS_SHARDS 8 /* threads that count at the same time */

struct stats {
	struct {
		_Alignas(64) _Atomic uint64_t count[NR_STATS];
		_Atomic uint64_t begun; /* requests; the latencies count those that have ended */
		struct {
			_Atomic uint64_t buckets[POOL_LATENCY_BUCKETS], sum_usec;
		} latency[POOL_NR_LATENCY_OPS];
	} shards[STATS_SHARDS];
};

/* @key tells threads apart: the address of something of the thread's own. */
static inline unsigned stats_shard(const void *key)
{
	return (unsigned)(((uintptr_t)key >> 6) * UINT64_C(0x9e3779b97f4a7c15) >> 61);
}

static inline void stats_add(struct stats *s, const void *key, enum pool_stat stat, uint64_t n)
{
	atomic_fetch_add_explicit(&s->shards[stats_shard(key)].count[stat], n,
				  memory_order_relaxed);
}

static inline unsigned stats_latency_bucket(uint64_t usec)
{
	unsigned bits =
		usec > POOL_LATENCY_FIRST_USEC ? 64 - (unsigned)__builtin_clzll(usec - 1) : 4;

	return bits - 4 < POOL_LATENCY_BUCKETS ? bits - 4 : POOL_LATENCY_BUCKETS - 1;
}
_Static_assert(POOL_LATENCY_FIRST_USEC == 1 << 4, "the first bucket takes four bits");

static inline void stats_begin(struct stats *s, const void *key)
{
	atomic_fetch_add_explicit(&s->shards[stats_shard(key)].begun, 1, memory_order_relaxed);
}

static inline void stats_end(struct stats *s, const void *key, enum pool_latency_op op,
			     uint64_t usec)
{
	unsigned shard = stats_shard(key);

	atomic_fetch_add_explicit(&s->shards[shard].latency[op].buckets[stats_latency_bucket(usec)],
				  1, memory_order_relaxed);
	atomic_fetch_add_explicit(&s->shards[shard].latency[op].sum_usec, usec,
				  memory_order_relaxed);
}

/* Sums of all shards. */
void stats_read(const struct stats *s, struct pool_stats *ret_stats);
void stats_read_latency(const struct stats *s,
			struct pool_latency ret_latency[POOL_NR_LATENCY_OPS]);
/* Requests begun and not ended; about so, while they come and go. */
uint64_t stats_in_flight(const struct stats *s);

#endif
