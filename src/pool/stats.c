/* SPDX-License-Identifier: GPL-2.0-or-later */
/* stats.c - see stats.h */
#include "pool/stats.h"

#include <string.h>

_Static_assert(STATS_SHARDS == 1 << (64 - 61), "stats_add() takes the hash's upper bits");

void stats_read(const struct stats *s, struct pool_stats *ret_stats)
{
	uint64_t sums[NR_STATS] = { 0 };

	for (unsigned i = 0; i < STATS_SHARDS; i++)
		for (unsigned j = 0; j < NR_STATS; j++)
			sums[j] +=
				atomic_load_explicit(&s->shards[i].count[j], memory_order_relaxed);
	memcpy(ret_stats, sums, sizeof(sums));
}

static uint64_t load(const _Atomic uint64_t *counter)
{
	return atomic_load_explicit(counter, memory_order_relaxed);
}

void stats_read_latency(const struct stats *s, struct pool_latency ret_latency[POOL_NR_LATENCY_OPS])
{
	memset(ret_latency, 0, POOL_NR_LATENCY_OPS * sizeof(*ret_latency));
	for (unsigned i = 0; i < STATS_SHARDS; i++) {
		for (unsigned op = 0; op < POOL_NR_LATENCY_OPS; op++) {
			for (unsigned b = 0; b < POOL_LATENCY_BUCKETS; b++)
				ret_latency[op].buckets[b] +=
					load(&s->shards[i].latency[op].buckets[b]);
			ret_latency[op].sum_usec += load(&s->shards[i].latency[op].sum_usec);
		}
	}
}

uint64_t stats_in_flight(const struct stats *s)
{
	struct pool_latency latency[POOL_NR_LATENCY_OPS];
	uint64_t begun = 0, ended = 0;

	/* Ends first: the other way round more may have ended than begun. */
	stats_read_latency(s, latency);
	for (unsigned op = 0; op < POOL_NR_LATENCY_OPS; op++)
		for (unsigned b = 0; b < POOL_LATENCY_BUCKETS; b++)
			ended += latency[op].buckets[b];
	for (unsigned i = 0; i < STATS_SHARDS; i++)
		begun += load(&s->shards[i].begun);
	return begun > ended ? begun - ended : 0;
}
