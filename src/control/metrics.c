/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * metrics.c - what a pool is doing, for Prometheus
 *
 * Names are an interface: samples are added, never renamed.  What is one number of a
 * structure stands in a table; what has labels has a function.
 */
#include "control/metrics.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/clock.h"

#define PREFIX "thinpoold_"

enum number_kind { NUMBER_U64, NUMBER_U32, NUMBER_UNSIGNED, NUMBER_BOOL };

/* A field of struct pool_status. */
struct number {
	const char *name, *help;
	enum number_kind kind;
	size_t offset;
};

#define OF(field, k) .kind = k, .offset = offsetof(struct pool_status, field)

/* clang-format off: a table */
static const struct number pool_numbers[] = {
	{ "needs_check", "Whether the metadata needs a check", OF(needs_check, NUMBER_BOOL) },
	{ "block_size_bytes", "Size of a data block", OF(block_size, NUMBER_U32) },
	{ "data_used_bytes", "Data space in use", OF(data_used, NUMBER_U64) },
	{ "data_size_bytes", "Data space there is", OF(data_total, NUMBER_U64) },
	{ "data_allocated_bytes", "What the data file takes on its host",
	  OF(data_allocated, NUMBER_U64) },
	{ "metadata_used_bytes", "Metadata space in use", OF(metadata_used, NUMBER_U64) },
	{ "metadata_size_bytes", "Metadata space there is", OF(metadata_total, NUMBER_U64) },
	{ "metadata_reserve_bytes", "Metadata space kept for commits",
	  OF(metadata_reserve, NUMBER_U64) },
	{ "data_low_water_bytes", "Free data space at which it is low",
	  OF(low_water_data, NUMBER_U64) },
	{ "data_low", "Whether data space is low", OF(data_is_low, NUMBER_BOOL) },
	{ "data_low_total", "Times that data space became low",
	  OF(stats.low_water_data, NUMBER_U64) },
	{ "metadata_low_water_bytes", "Free metadata space at which it is low",
	  OF(low_water_metadata, NUMBER_U64) },
	{ "metadata_low", "Whether metadata space is low", OF(metadata_is_low, NUMBER_BOOL) },
	{ "metadata_low_total", "Times that metadata space became low",
	  OF(stats.low_water_metadata, NUMBER_U64) },
	{ "autoextend_threshold_percent", "Use at which data or metadata grow; 100: never",
	  OF(autoextend.threshold, NUMBER_UNSIGNED) },
	{ "data_autoextended_total", "Times that data grew by itself",
	  OF(stats.autoextended_data, NUMBER_U64) },
	{ "metadata_autoextended_total", "Times that metadata grew by itself",
	  OF(stats.autoextended_metadata, NUMBER_U64) },
	{ "volumes", "Volumes", OF(nr_volumes, NUMBER_UNSIGNED) },
	{ "virtual_size_bytes", "Sum of what the volumes claim to be",
	  OF(virtual_total, NUMBER_U64) },
	{ "transaction_id", "Transaction id in the superblock", OF(transaction_id, NUMBER_U64) },
	{ "requests_in_flight", "Requests not answered yet", OF(in_flight, NUMBER_U64) },
	{ "worker_queue_length", "Requests, or parts of them, waiting for the pool worker",
	  OF(waiting_worker, NUMBER_UNSIGNED) },
	{ "space_queue_length", "Writes, or parts of them, waiting for a free data block",
	  OF(waiting_space, NUMBER_UNSIGNED) },
	{ "command_queue_length", "Changes to the set of volumes waiting for the pool worker",
	  OF(waiting_commands, NUMBER_UNSIGNED) },
	{ "blocks_provisioned_total", "Data blocks given to holes",
	  OF(stats.provisioned_blocks, NUMBER_U64) },
	{ "blocks_unshared_total", "Shared data blocks copied or replaced",
	  OF(stats.broken_sharing_blocks, NUMBER_U64) },
	{ "blocks_zeroed_total", "New data blocks filled up with zeros",
	  OF(stats.zeroed_blocks, NUMBER_U64) },
	{ "passed_down_bytes_total", "Space given back to the host",
	  OF(stats.passed_down_bytes, NUMBER_U64) },
	{ "deferred_total", "Requests, or parts of them, that needed the pool worker",
	  OF(stats.deferred, NUMBER_U64) },
	{ "metadata_misses_total", "Lookups that waited for a read of metadata",
	  OF(stats.metadata_misses, NUMBER_U64) },
	{ "unaligned_total", "Requests that the data device could not take as they were",
	  OF(stats.unaligned, NUMBER_U64) },
	{ "throttled_total", "Requests that waited for a worker that was behind",
	  OF(stats.throttled, NUMBER_U64) },
	{ "throttles_total", "Times that a worker that was behind made new work wait",
	  OF(stats.throttles, NUMBER_U64) },
	{ "data_errors_total", "Reads, writes and flushes that the data device failed",
	  OF(stats.data_errors, NUMBER_U64) },
	{ "commits_total", "Transactions made durable", OF(stats.commits, NUMBER_U64) },
	{ "aborts_total", "Transactions thrown away", OF(stats.aborts, NUMBER_U64) },
	{ "longest_abort_microseconds", "Longest time from a failure to the committed state",
	  OF(longest_abort_usec, NUMBER_U64) },
	{ "commands_total", "Changes to the set of volumes", OF(stats.commands, NUMBER_U64) },
	{ "cache_bytes", "Metadata in the cache", OF(cache_bytes, NUMBER_U64) },
	{ "cache_limit_bytes", "What the cache may hold", OF(cache_limit_bytes, NUMBER_U64) },
	{ "cache_hits_total", "Metadata blocks found in the cache", OF(cache_hits, NUMBER_U64) },
	{ "cache_misses_total", "Metadata blocks read from the device",
	  OF(cache_misses, NUMBER_U64) },
	{ "cache_shrunk_total", "Metadata blocks dropped because memory was short",
	  OF(cache_shrunk, NUMBER_U64) },
};
/* clang-format on */

/* In the order of enum pool_latency_op. */
static const char *const op_words[] = { "read", "write", "flush", "discard" };
_Static_assert(ARRAY_SIZE(op_words) == POOL_NR_LATENCY_OPS, "a name for each");

static uint64_t value_of(const struct number *n, const struct pool_status *status)
{
	const char *field = (const char *)status + n->offset;

	switch (n->kind) {
	case NUMBER_U64:
		return *(const uint64_t *)(const void *)field;
	case NUMBER_U32:
		return *(const uint32_t *)(const void *)field;
	case NUMBER_UNSIGNED:
		return *(const unsigned *)(const void *)field;
	case NUMBER_BOOL:
		break;
	}
	return *(const bool *)field;
}

static void print_head(FILE *out, const char *name, const char *type, const char *help)
{
	fprintf(out, "# HELP " PREFIX "%s %s.\n# TYPE " PREFIX "%s %s\n", name, help, name, type);
}

static void print_number(FILE *out, const char *name, const char *help, uint64_t value)
{
	const char *end = strrchr(name, '_');

	print_head(out, name, end && !strcmp(end, "_total") ? "counter" : "gauge", help);
	fprintf(out, PREFIX "%s %" PRIu64 "\n", name, value);
}

static void print_mode(FILE *out, const struct pool_status *s)
{
	static const char *const modes[] = { "rw", "out_of_data_space", "ro", "fail" };

	print_head(out, "mode", "gauge", "1 for the mode the pool is in");
	for (size_t i = 0; i < ARRAY_SIZE(modes); i++)
		fprintf(out, PREFIX "mode{mode=\"%s\"} %d\n", modes[i],
			!strcmp(modes[i], pool_mode_name(s->mode)));
}

static void print_op(FILE *out, const char *metric, enum pool_latency_op op, uint64_t value)
{
	fprintf(out, PREFIX "%s{op=\"%s\"} %" PRIu64 "\n", metric, op_words[op], value);
}

static void print_requests(FILE *out, const struct pool_stats *s)
{
	print_head(out, "requests_total", "counter", "Requests of front ends");
	print_op(out, "requests_total", POOL_LATENCY_READ, s->reads);
	print_op(out, "requests_total", POOL_LATENCY_WRITE, s->writes);
	print_op(out, "requests_total", POOL_LATENCY_FLUSH, s->flushes);
	print_op(out, "requests_total", POOL_LATENCY_DISCARD, s->discards);
	print_head(out, "request_bytes_total", "counter", "Bytes these requests were about");
	print_op(out, "request_bytes_total", POOL_LATENCY_READ, s->read_bytes);
	print_op(out, "request_bytes_total", POOL_LATENCY_WRITE, s->write_bytes);
	print_op(out, "request_bytes_total", POOL_LATENCY_DISCARD, s->discard_bytes);
}

static void print_seconds(FILE *out, uint64_t usec)
{
	fprintf(out, "%" PRIu64 ".%06" PRIu64, usec / USEC_PER_SEC, usec % USEC_PER_SEC);
}

static void print_duration(FILE *out, const char *name, const char *type, const char *help,
			   uint64_t usec)
{
	print_head(out, name, type, help);
	fprintf(out, PREFIX "%s ", name);
	print_seconds(out, usec);
	fputc('\n', out);
}

static void print_pressure(FILE *out, struct pressure *pressure)
{
	struct pressure_stats s;

	pressure_get_stats(pressure, &s);
	print_head(out, "pressure_events_total", "counter", "Signs that memory is short");
	for (unsigned i = 0; i < PRESSURE_NR_SOURCES; i++)
		fprintf(out, PREFIX "pressure_events_total{source=\"%s\"} %" PRIu64 "\n",
			pressure_source_name(i), s.sources[i].events);
	print_head(out, "pressure_watched", "gauge", "1 for the sources that are watched");
	for (unsigned i = 0; i < PRESSURE_NR_SOURCES; i++)
		fprintf(out, PREFIX "pressure_watched{source=\"%s\"} %d\n", pressure_source_name(i),
			s.sources[i].state == PRESSURE_WATCHED);
	print_number(out, "reclaim_runs_total", "Times that the caches were asked for memory",
		     s.runs);
	print_number(out, "reclaimed_bytes_total", "Memory that they gave back", s.given_back);
	print_duration(out, "registry_hold_longest_seconds", "gauge",
		       "How long the caches' callbacks have kept their registry at most",
		       s.longest_hold_usec);
}

/* Prometheus' buckets hold all that is not longer, ours what the one before does not hold. */
static void print_histogram(FILE *out, const char *op, const struct pool_latency *latency)
{
	uint64_t count = 0;

	for (unsigned i = 0; i < POOL_LATENCY_BUCKETS; i++) {
		count += latency->buckets[i];
		fprintf(out, PREFIX "request_duration_seconds_bucket{op=\"%s\",le=\"", op);
		if (i < POOL_LATENCY_BUCKETS - 1)
			print_seconds(out, (uint64_t)POOL_LATENCY_FIRST_USEC << i);
		else
			fputs("+Inf", out);
		fprintf(out, "\"} %" PRIu64 "\n", count);
	}
	fprintf(out, PREFIX "request_duration_seconds_sum{op=\"%s\"} ", op);
	print_seconds(out, latency->sum_usec);
	fprintf(out, "\n" PREFIX "request_duration_seconds_count{op=\"%s\"} %" PRIu64 "\n", op,
		count);
}

static void print_latencies(FILE *out, struct pool *pool)
{
	struct pool_latency latency[POOL_NR_LATENCY_OPS];

	pool_get_latency(pool, latency);
	print_head(out, "request_duration_seconds", "histogram",
		   "Time from the submission of a request to its answer");
	for (size_t i = 0; i < POOL_NR_LATENCY_OPS; i++)
		print_histogram(out, op_words[i], &latency[i]);
}

/* A name holds no control characters, so these two are all that need an escape. */
static void print_volume_sample(FILE *out, const char *metric, const char *name, uint64_t value)
{
	fprintf(out, PREFIX "%s{volume=\"", metric);
	for (; *name; name++) {
		if (*name == '"' || *name == '\\')
			fputc('\\', out);
		fputc(*name, out);
	}
	fprintf(out, "\"} %" PRIu64 "\n", value);
}

/* Samples of one metric stand together, so the volumes are gone through twice. */
static void print_volumes(FILE *out, struct pool *pool, const char *metric, const char *help,
			  bool size)
{
	struct volume_info v;
	uint64_t next = 0;

	print_head(out, metric, "gauge", help);
	for (unsigned n = 0; n < METRICS_VOLUMES_MAX && next <= THIN_ID_MAX; n++) {
		if (pool_volume_next(pool, (thin_id_t)next, &v))
			break;
		print_volume_sample(out, metric, v.name, size ? v.size_bytes : v.mapped_bytes);
		next = (uint64_t)v.id + 1;
	}
}

char *metrics_render(struct pool *pool, struct pressure *pressure, const struct metric *more,
		     size_t nr_more)
{
	struct pool_status status;
	char *text = NULL;
	size_t length;
	FILE *out = open_memstream(&text, &length);

	if (!out)
		return NULL;
	pool_get_status(pool, &status);
	print_head(out, "info", "gauge", "The program");
	fprintf(out, PREFIX "info{version=\"" TP_VERSION "\"} 1\n");
	print_mode(out, &status);
	for (size_t i = 0; i < ARRAY_SIZE(pool_numbers); i++)
		print_number(out, pool_numbers[i].name, pool_numbers[i].help,
			     value_of(&pool_numbers[i], &status));
	print_duration(out, "throttle_seconds_total", "counter",
		       "How long a worker that was behind made new work wait",
		       status.stats.throttle_usec);
	print_duration(out, "throttle_longest_seconds", "gauge", "How long at most at a time",
		       status.longest_throttle_usec);
	if (pressure)
		print_pressure(out, pressure);
	print_requests(out, &status.stats);
	print_latencies(out, pool);
	for (size_t i = 0; i < nr_more; i++)
		print_number(out, more[i].name, more[i].help, more[i].value);
	print_volumes(out, pool, "volume_size_bytes", "What a volume claims to be", true);
	print_volumes(out, pool, "volume_used_bytes", "What is mapped in a volume", false);
	if (!fclose(out))
		return text;
	free(text);
	return NULL;
}
