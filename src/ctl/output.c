/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * output.c - what thinpoolctl prints: aligned tables, or JSON
 */
#include <inttypes.h>
#include <libsmartcols.h>
#include <stdio.h>
#include <string.h>

#include "ctl/ctl.h"
#include "util/parse-size.h"

void ctl_print_json(json_t *document)
{
	json_dumpf(document, stdout, JSON_INDENT(2));
	putchar('\n');
}

static const char *text_of(json_t *object, const char *key)
{
	const char *s = json_string_value(json_object_get(object, key));

	return s ? s : "";
}

static uint64_t number_of(json_t *object, const char *key)
{
	return (uint64_t)json_integer_value(json_object_get(object, key));
}

/* A size cell; @buf holds FORMAT_SIZE_MAX bytes. */
static const char *size_of(json_t *object, const char *key, char *buf)
{
	return format_size(number_of(object, key), buf, FORMAT_SIZE_MAX);
}

static struct libscols_table *new_table(void)
{
	struct libscols_table *table;

	scols_init_debug(0);
	table = scols_new_table();
	if (!table)
		ctl_fail(CTL_FAILED, "out of memory");
	return table;
}

static int print_and_free(struct libscols_table *table, int r)
{
	if (!r)
		r = scols_print_table(table);
	scols_unref_table(table);
	return r ? ctl_fail(CTL_FAILED, "the table cannot be printed: %s", strerror(-r)) : CTL_OK;
}

/* Append a row of @nr cells.  0 or a negative errno. */
static int add_row(struct libscols_table *table, const char *const *cells, unsigned nr)
{
	struct libscols_line *line = scols_table_new_line(table, NULL);
	int r = line ? 0 : -1;

	for (unsigned i = 0; !r && i < nr; i++)
		r = scols_line_set_data(line, i, cells[i]);
	return r;
}

int ctl_print_list(json_t *volumes)
{
	static const struct {
		const char *name;
		int flags;
	} columns[] = { { "NAME", 0 },
			{ "ID", SCOLS_FL_RIGHT },
			{ "SIZE", SCOLS_FL_RIGHT },
			{ "USED", SCOLS_FL_RIGHT },
			{ "ORIGIN", 0 },
			{ "RO", 0 } };
	struct libscols_table *table = new_table();
	json_t *v;
	size_t i;
	int r = 0;

	if (!table)
		return CTL_FAILED;
	for (i = 0; i < ARRAY_SIZE(columns); i++)
		if (!scols_table_new_column(table, columns[i].name, 0, columns[i].flags))
			r = -1;
	json_array_foreach(volumes, i, v)
	{
		char id[24], size[FORMAT_SIZE_MAX], used[FORMAT_SIZE_MAX];
		const char *cells[] = {
			text_of(v, "name"),
			id,
			size_of(v, "size", size),
			size_of(v, "used", used),
			text_of(v, "origin"),
			json_is_true(json_object_get(v, "read_only")) ? "yes" : "no",
		};

		snprintf(id, sizeof(id), "%" PRIu64, number_of(v, "id"));
		if (!r)
			r = add_row(table, cells, ARRAY_SIZE(cells));
	}
	return print_and_free(table, r);
}

static int add_fact(struct libscols_table *table, const char *what, const char *value)
{
	const char *cells[] = { what, value };

	return add_row(table, cells, ARRAY_SIZE(cells));
}

static int add_usage(struct libscols_table *table, json_t *s, const char *what,
		     const char *used_key, const char *total_key)
{
	char used[FORMAT_SIZE_MAX], total[FORMAT_SIZE_MAX], line[96];
	uint64_t whole = number_of(s, total_key);
	double percent = whole ? 100.0 * (double)number_of(s, used_key) / (double)whole : 0;

	snprintf(line, sizeof(line), "%s of %s (%.1f %%)", size_of(s, used_key, used),
		 size_of(s, total_key, total), percent);
	return add_fact(table, what, line);
}

static int add_cache(struct libscols_table *table, json_t *cache)
{
	char used[FORMAT_SIZE_MAX], limit[FORMAT_SIZE_MAX], line[200];

	snprintf(line, sizeof(line),
		 "%s of %s, %" PRIu64 " hits, %" PRIu64 " misses, %" PRIu64 " buffers given back",
		 size_of(cache, "used", used), size_of(cache, "limit", limit),
		 number_of(cache, "hits"), number_of(cache, "misses"), number_of(cache, "shrunk"));
	return add_fact(table, "cache", line);
}

static int add_throttle(struct libscols_table *table, json_t *s)
{
	json_t *statistics = json_object_get(s, "statistics");
	char line[200];

	snprintf(line, sizeof(line),
		 "%" PRIu64 " times, %.3f s in all, %.3f s at most, %" PRIu64 " requests waited",
		 number_of(statistics, "throttles"),
		 (double)number_of(statistics, "throttle_usec") / 1e6,
		 (double)number_of(s, "longest_throttle_usec") / 1e6,
		 number_of(statistics, "throttled"));
	return add_fact(table, "throttle", line);
}

static int add_pressure(struct libscols_table *table, json_t *pressure)
{
	char text[FORMAT_SIZE_MAX], line[400];
	const char *name;
	json_t *source;
	int r = 0;

	json_object_foreach(json_object_get(pressure, "sources"), name, source)
	{
		const char *why = text_of(source, "why");

		snprintf(line, sizeof(line), "%s, %s%s%s, %" PRIu64 " events", name,
			 text_of(source, "state"), *why ? ": " : "", why,
			 number_of(source, "events"));
		if (!r)
			r = add_fact(table, "memory pressure", line);
	}
	snprintf(line, sizeof(line),
		 "%" PRIu64 " runs gave back %s, the registry was held for at most %.3f s",
		 number_of(pressure, "runs"), size_of(pressure, "given_back", text),
		 (double)number_of(pressure, "longest_registry_hold_usec") / 1e6);
	return r ? r : add_fact(table, "reclaim", line);
}

/* Why a pool does not grow by itself now, if there is something in the way. */
static int add_obstacle(struct libscols_table *table, json_t *s, const char *what, const char *key)
{
	const char *why = text_of(json_object_get(s, "autoextend"), key);

	return *why ? add_fact(table, what, why) : 0;
}

int ctl_print_status(json_t *s)
{
	struct libscols_table *table = new_table();
	char text[FORMAT_SIZE_MAX], line[1024];
	const char *reason = text_of(s, "reason");
	uint64_t aborts;
	int r;

	if (!table)
		return CTL_FAILED;
	scols_table_enable_noheadings(table, 1);
	r = scols_table_new_column(table, "WHAT", 0, 0) &&
			    scols_table_new_column(table, "VALUE", 0, 0)
		    ? 0
		    : -1;
	snprintf(line, sizeof(line), "%s%s%s%s", text_of(s, "mode"), *reason ? " (" : "", reason,
		 *reason ? ")" : "");
	if (!r)
		r = add_fact(table, "mode", line);
	if (!r)
		r = add_usage(table, s, "data used", "data_used", "data_total");
	if (!r)
		r = add_fact(table, "data on the host", size_of(s, "data_allocated", text));
	if (!r)
		r = add_usage(table, s, "metadata used", "metadata_used", "metadata_total");
	if (!r && json_is_true(json_object_get(s, "data_is_low")))
		r = add_fact(table, "low space", "data: extend the pool or delete volumes");
	if (!r && json_is_true(json_object_get(s, "metadata_is_low")))
		r = add_fact(table, "low space", "metadata: extend it or delete volumes");
	if (!r)
		r = add_obstacle(table, s, "data not extended", "data_not_extended");
	if (!r)
		r = add_obstacle(table, s, "metadata not extended", "metadata_not_extended");
	if (!r)
		r = add_fact(table, "block size", size_of(s, "block_size", text));
	snprintf(line, sizeof(line), "%" PRIu64, number_of(s, "transaction_id"));
	if (!r)
		r = add_fact(table, "transaction id", line);
	snprintf(line, sizeof(line), "%" PRIu64, number_of(s, "held_root"));
	if (!r && number_of(s, "held_root"))
		r = add_fact(table, "held root", line);
	snprintf(line, sizeof(line), "yes: %s", text_of(s, "remedy"));
	if (!r)
		r = add_fact(table, "needs check",
			     json_is_true(json_object_get(s, "needs_check")) ? line : "no");
	if (!r && !json_is_true(json_object_get(s, "needs_check")) && text_of(s, "remedy")[0])
		r = add_fact(table, "remedy", text_of(s, "remedy"));
	aborts = number_of(json_object_get(s, "statistics"), "aborts");
	snprintf(line, sizeof(line), "%" PRIu64 ", the longest took %" PRIu64 " us", aborts,
		 number_of(s, "longest_abort_usec"));
	if (!r && aborts)
		r = add_fact(table, "aborts", line);
	if (!r)
		r = add_cache(table, json_object_get(s, "cache"));
	if (!r)
		r = add_throttle(table, s);
	if (!r && json_is_object(json_object_get(s, "pressure")))
		r = add_pressure(table, json_object_get(s, "pressure"));
	if (!r)
		r = add_fact(table, "transport", text_of(s, "transport"));
	snprintf(line, sizeof(line), "%" PRIu64, number_of(s, "pid"));
	if (!r)
		r = add_fact(table, "pid", line);
	return print_and_free(table, r);
}
