/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for pool/stats.c: counters and histograms that are sums of shards.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "pool/stats.h"

static struct stats *stats;

static int setup(void **state)
{
	(void)state;
	stats = aligned_alloc(64, sizeof(*stats));
	assert_non_null(stats);
	memset(stats, 0, sizeof(*stats));
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	free(stats);
	return 0;
}

static void each_bucket_ends_at_its_bound(void **state)
{
	uint64_t bound = POOL_LATENCY_FIRST_USEC;

	(void)state;
	assert_int_equal(stats_latency_bucket(0), 0);
	assert_int_equal(stats_latency_bucket(1), 0);
	for (unsigned i = 0; i < POOL_LATENCY_BUCKETS - 1; i++, bound *= 2) {
		assert_int_equal(stats_latency_bucket(bound), i);
		assert_int_equal(stats_latency_bucket(bound + 1), i + 1);
	}
	assert_int_equal(stats_latency_bucket(UINT64_MAX), POOL_LATENCY_BUCKETS - 1);
}

static void what_many_threads_count_is_added_up(void **state)
{
	struct pool_latency latency[POOL_NR_LATENCY_OPS];
	struct pool_stats sums;
	char keys[100 * 64];

	(void)state;
	for (unsigned i = 0; i < 100; i++) {
		stats_add(stats, keys + i * 64, STAT_READ_BYTES, 1000);
		stats_add(stats, keys + i * 64, STAT_THROTTLED, 1);
		stats_begin(stats, keys + i * 64);
		if (i % 2)
			stats_end(stats, keys, POOL_LATENCY_FLUSH, 20);
	}
	stats_read(stats, &sums);
	assert_int_equal(sums.read_bytes, 100000);
	assert_int_equal(sums.throttled, 100);
	assert_int_equal(sums.reads, 0);
	stats_read_latency(stats, latency);
	assert_int_equal(latency[POOL_LATENCY_FLUSH].buckets[1], 50);
	assert_int_equal(latency[POOL_LATENCY_FLUSH].sum_usec, 1000);
	assert_int_equal(latency[POOL_LATENCY_READ].buckets[1], 0);
	assert_int_equal(stats_in_flight(stats), 50);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(each_bucket_ends_at_its_bound),
		TEST(what_many_threads_count_is_added_up),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("stats", tests, NULL, NULL);
}
