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
