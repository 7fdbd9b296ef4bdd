/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * status-document.c - what a pool is doing, as JSON and as text
 *
 * The JSON object is the interface that scripts read: keys are added, never
 * renamed.  The text is one line a topic, for people.
 */
#include "control/status-document.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "control/control-internal.h"
#include "util/clock.h"
#include "util/error.h"
#include "util/parse-size.h"

static json_int_t number(uint64_t n)
{
	return (json_int_t)n;
}

static json_t *statistics_object(const struct pool_stats *s)
{
	return json_pack(
		"{sI sI sI sI sI sI sI sI sI sI sI sI sI sI sI sI sI sI sI sI sI sI sI sI sI}",
		"reads", number(s->reads), "writes", number(s->writes), "flushes",
		number(s->flushes), "discards", number(s->discards), "read_bytes",
		number(s->read_bytes), "write_bytes", number(s->write_bytes), "discard_bytes",
		number(s->discard_bytes), "provisioned_blocks", number(s->provisioned_blocks),
		"broken_sharing_blocks", number(s->broken_sharing_blocks), "zeroed_blocks",
		number(s->zeroed_blocks), "passed_down_bytes", number(s->passed_down_bytes),
		"deferred", number(s->deferred), "metadata_misses", number(s->metadata_misses),
		"unaligned", number(s->unaligned), "commits", number(s->commits), "aborts",
		number(s->aborts), "commands", number(s->commands), "throttled",
		number(s->throttled), "low_water_data", number(s->low_water_data),
		"low_water_metadata", number(s->low_water_metadata), "throttles",
		number(s->throttles), "throttle_usec", number(s->throttle_usec),
		"autoextended_data", number(s->autoextended_data), "autoextended_metadata",
		number(s->autoextended_metadata), "data_errors", number(s->data_errors));
}

static json_t *pressure_object(struct pressure *pressure)
{
	json_t *sources = json_object();
	struct pressure_stats s;

	if (!pressure) {
		json_decref(sources);
		return json_null();
	}
	pressure_get_stats(pressure, &s);
	for (unsigned i = 0; i < PRESSURE_NR_SOURCES; i++) {
		json_t *source = json_pack(
			"{ss so sI}", "state", pressure_state_name(s.sources[i].state), "why",
			control_text(s.sources[i].why), "events", number(s.sources[i].events));

		if (json_object_set_new(sources, pressure_source_name(i), source)) {
			json_decref(sources);
			return NULL;
		}
	}
	return json_pack("{so sI sI sI}", "sources", sources, "runs", number(s.runs), "given_back",
			 number(s.given_back), "longest_registry_hold_usec",
			 number(s.longest_hold_usec));
}

static const char *discard_word(enum pool_discard discard)
{
	static const char *const words[] = { "passdown", "no_passdown", "ignore" };

	return words[discard];
}

static json_t *settings_object(const struct pool_status *s)
{
	return json_pack("{sf ss sb ss sf}", "commit_interval",
			 (double)s->commit_interval_usec / USEC_PER_SEC, "discard",
			 discard_word(s->discard), "zero_new_blocks", s->zero_new_blocks,
			 "no_space", s->queue_if_no_space ? "queue" : "error", "no_space_timeout",
			 (double)s->no_space_timeout_usec / USEC_PER_SEC);
}

static json_t *autoextend_object(const struct pool_status *s)
{
	return json_pack("{sI sI sI so so}", "threshold", number(s->autoextend.threshold),
			 "percent", number(s->autoextend.percent), "max_size",
			 number(s->autoextend.max_bytes), "data_not_extended",
			 control_text(s->data_not_extended), "metadata_not_extended",
			 control_text(s->metadata_not_extended));
}

static json_t *hook_object(const struct hook_status *hook)
{
	if (!hook)
		return json_null();
	return json_pack("{sb sI sI}", "running", hook->running, "runs", number(hook->runs),
			 "failures", number(hook->failures));
}

json_t *status_document(struct pool *pool, struct pressure *pressure, const char *transport,
			const struct hook_status *hook)
{
	struct pool_status s;

	pool_get_status(pool, &s);
	return json_pack(
		"{ss so so sb sI ss sI sI sI sI sI sI sI sI sI sI sb sb sI sI sb sI sb s{sI sI "
		"sI sI sI} so so so so so sI ss}",
		"mode", pool_mode_name(s.mode), "reason", control_text(s.reason), "remedy",
		control_text(s.remedy), "needs_check", s.needs_check, "longest_abort_usec",
		number(s.longest_abort_usec), "version", TP_VERSION, "pid",
		number((uint64_t)getpid()), "transaction_id", number(s.transaction_id), "held_root",
		number(s.held_root), "block_size", number(s.block_size), "data_used",
		number(s.data_used), "data_total", number(s.data_total), "data_allocated",
		number(s.data_allocated), "metadata_used", number(s.metadata_used),
		"metadata_total", number(s.metadata_total), "metadata_reserve",
		number(s.metadata_reserve), "read_only", s.read_only, "catalog", s.has_catalog,
		"virtual_total", number(s.virtual_total), "low_water_data",
		number(s.low_water_data), "data_is_low", s.data_is_low, "low_water_metadata",
		number(s.low_water_metadata), "metadata_is_low", s.metadata_is_low, "cache", "used",
		number(s.cache_bytes), "limit", number(s.cache_limit_bytes), "hits",
		number(s.cache_hits), "misses", number(s.cache_misses), "shrunk",
		number(s.cache_shrunk), "statistics", statistics_object(&s.stats), "settings",
		settings_object(&s), "autoextend", autoextend_object(&s), "hook", hook_object(hook),
		"pressure", pressure_object(pressure), "longest_throttle_usec",
		number(s.longest_throttle_usec), "transport", transport);
}

/* The origin's name, or null: none, or it is gone. */
static json_t *origin_name(struct pool *pool, const struct volume_info *v)
{
	struct volume_info origin;
	struct volume *ov;

	if (!v->has_origin || pool_volume_get(pool, v->origin, &ov))
		return json_null();
	volume_get_info(ov, &origin);
	volume_put(ov);
	return origin.unlinked ? json_null() : control_text(origin.name);
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(json_string_value(json_object_get(*(json_t *const *)a, "name")),
		      json_string_value(json_object_get(*(json_t *const *)b, "name")));
}

/* Volumes come in order of id; people look for names. */
static json_t *sorted(json_t *array)
{
	size_t n = json_array_size(array);
	json_t **items = calloc(n ? n : 1, sizeof(*items)), *result = json_array();
	bool ok = items && result;

	if (ok) {
		for (size_t i = 0; i < n; i++)
			items[i] = json_array_get(array, i);
		qsort(items, n, sizeof(*items), compare_names);
	}
	for (size_t i = 0; ok && i < n; i++)
		ok = !json_array_append(result, items[i]);
	free(items);
	json_decref(array);
	if (ok)
		return result;
	json_decref(result);
	return NULL;
}

static json_t *volume_object(struct pool *pool, const struct volume_info *v)
{
	return json_pack("{so sI sI sI so sb sI sb}", "name", control_text(v->name), "id",
			 number(v->id), "size", number(v->size_bytes), "used",
			 number(v->mapped_bytes), "origin", origin_name(pool, v), "read_only",
			 v->read_only, "created", number(v->created_usec / USEC_PER_SEC), "open",
			 v->open_count > 0);
}

json_t *list_document(struct pool *pool)
{
	json_t *array = json_array();
	struct volume_info v;

	for (uint64_t next = 0; next <= THIN_ID_MAX; next = (uint64_t)v.id + 1) {
		if (pool_volume_next(pool, (thin_id_t)next, &v))
			break;
		/* A list that lacks a volume would be a lie: no memory, no list. */
		if (json_array_append_new(array, volume_object(pool, &v))) {
			json_decref(array);
			return NULL;
		}
	}
	return sorted(array);
}

char *status_render_json(struct pool *pool, struct pressure *pressure, const char *transport,
			 const struct hook_status *hook)
{
	json_t *document = status_document(pool, pressure, transport, hook);
	char *flat = document ? json_dumps(document, JSON_INDENT(2)) : NULL, *text = NULL;

	if (flat && asprintf(&text, "%s\n", flat) < 0)
		text = NULL;
	free(flat);
	json_decref(document);
	return text;
}

static double percent(uint64_t part, uint64_t whole)
{
	return whole ? 100.0 * (double)part / (double)whole : 0;
}

static void print_pressure(FILE *f, struct pressure *pressure)
{
	char size[FORMAT_SIZE_MAX];
	struct pressure_stats s;

	pressure_get_stats(pressure, &s);
	for (unsigned i = 0; i < PRESSURE_NR_SOURCES; i++)
		fprintf(f, "%s %s, %s%s%s, %" PRIu64 " events\n",
			i ? "            " : "pressure    ", pressure_source_name(i),
			pressure_state_name(s.sources[i].state), s.sources[i].why[0] ? ": " : "",
			one_line(s.sources[i].why), s.sources[i].events);
	fprintf(f,
		"reclaim      %" PRIu64 " runs gave back %s, the registry was held for at most "
		"%" PRIu64 " us\n",
		s.runs, format_size(s.given_back, size, sizeof(size)), s.longest_hold_usec);
}

static void print_autoextend(FILE *f, const struct pool_status *s)
{
	char max[FORMAT_SIZE_MAX];

	if (!s->autoextend.threshold || s->autoextend.threshold >= 100) {
		fprintf(f, "autoextend   never\n");
		return;
	}
	fprintf(f, "autoextend   at %u %% by %u %%", s->autoextend.threshold,
		s->autoextend.percent);
	if (s->autoextend.max_bytes)
		fprintf(f, ", up to %s", format_size(s->autoextend.max_bytes, max, sizeof(max)));
	fprintf(f, ", so far data %" PRIu64 " times, metadata %" PRIu64 " times\n",
		s->stats.autoextended_data, s->stats.autoextended_metadata);
	if (s->data_not_extended[0])
		fprintf(f, "             data is not extended: %s\n", s->data_not_extended);
	if (s->metadata_not_extended[0])
		fprintf(f, "             metadata is not extended: %s\n", s->metadata_not_extended);
}

char *status_render_text(struct pool *pool, struct pressure *pressure, const char *transport,
			 const struct hook_status *hook)
{
	char a[FORMAT_SIZE_MAX], b[FORMAT_SIZE_MAX], c[FORMAT_SIZE_MAX];
	struct pool_status s;
	size_t len;
	char *text = NULL;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return NULL;
	pool_get_status(pool, &s);
	fprintf(f, "mode         %s%s%s%s\n", pool_mode_name(s.mode), s.reason[0] ? " (" : "",
		s.reason, s.reason[0] ? ")" : "");
	if (s.needs_check)
		fprintf(f, "needs check  yes: %s\n", s.remedy);
	else if (s.remedy[0])
		fprintf(f, "remedy       %s\n", s.remedy);
	fprintf(f, "data         %s of %s used (%.1f %%), %s on the host, in blocks of %s\n",
		format_size(s.data_used, a, sizeof(a)), format_size(s.data_total, b, sizeof(b)),
		percent(s.data_used, s.data_total), format_size(s.data_allocated, c, sizeof(c)),
		format_size(s.block_size, (char[FORMAT_SIZE_MAX]){ 0 }, FORMAT_SIZE_MAX));
	fprintf(f, "metadata     %s of %s used (%.1f %%), %s of it reserved for commits\n",
		format_size(s.metadata_used, a, sizeof(a)),
		format_size(s.metadata_total, b, sizeof(b)),
		percent(s.metadata_used, s.metadata_total),
		format_size(s.metadata_reserve, c, sizeof(c)));
	fprintf(f, "settings     commits every %g s, discards %s, new blocks %s, ",
		(double)s.commit_interval_usec / USEC_PER_SEC, discard_word(s.discard),
		s.zero_new_blocks ? "zeroed" : "not zeroed");
	if (s.queue_if_no_space && s.no_space_timeout_usec)
		fprintf(f, "a full pool lets writers wait %g s\n",
			(double)s.no_space_timeout_usec / USEC_PER_SEC);
	else
		fprintf(f, "a full pool %s\n",
			s.queue_if_no_space ? "lets writers wait" : "fails writers");
	if (s.data_is_low || s.metadata_is_low)
		fprintf(f, "low space    %s%s%s: extend the pool or delete volumes\n",
			s.data_is_low ? "data" : "",
			s.data_is_low && s.metadata_is_low ? " and " : "",
			s.metadata_is_low ? "metadata" : "");
	print_autoextend(f, &s);
	if (hook && hook->runs)
		fprintf(f, "hook         ran %" PRIu64 " times, %" PRIu64 " of them in vain%s\n",
			hook->runs, hook->failures, hook->running ? ", and runs" : "");
	fprintf(f, "volumes      %u, %s together\n", s.nr_volumes,
		format_size(s.virtual_total, a, sizeof(a)));
	fprintf(f, "transport    %s\n", transport);
	fprintf(f, "transaction  %" PRIu64 "\n", s.transaction_id);
	if (s.held_root)
		fprintf(f, "held root    %" PRIu64 ": a metadata snapshot is held\n", s.held_root);
	fprintf(f,
		"requests     %" PRIu64 " reads, %" PRIu64 " writes, %" PRIu64 " flushes, %" PRIu64
		" discards\n",
		s.stats.reads, s.stats.writes, s.stats.flushes, s.stats.discards);
	fprintf(f, "blocks       %" PRIu64 " provisioned, %" PRIu64 " unshared\n",
		s.stats.provisioned_blocks, s.stats.broken_sharing_blocks);
	fprintf(f, "commits      %" PRIu64 ", %" PRIu64 " aborts", s.stats.commits, s.stats.aborts);
	if (s.stats.aborts)
		fprintf(f, ", the longest took %" PRIu64 " us", s.longest_abort_usec);
	fputc('\n', f);
	fprintf(f,
		"throttle     %" PRIu64 " times, %" PRIu64 " us in all, %" PRIu64
		" us at most, %" PRIu64 " requests waited\n",
		s.stats.throttles, s.stats.throttle_usec, s.longest_throttle_usec,
		s.stats.throttled);
	fprintf(f,
		"cache        %s of %s, %" PRIu64 " hits, %" PRIu64 " misses, %" PRIu64
		" buffers given back\n",
		format_size(s.cache_bytes, a, sizeof(a)),
		format_size(s.cache_limit_bytes, b, sizeof(b)), s.cache_hits, s.cache_misses,
		s.cache_shrunk);
	if (pressure)
		print_pressure(f, pressure);
	if (!fclose(f))
		return text;
	free(text);
	return NULL;
}
