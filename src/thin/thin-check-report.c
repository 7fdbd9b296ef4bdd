/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-check-report.c - findings of the checker, one line each
 *
 * Findings are counted always and told up to the limit that the caller has set, so that a
 * destroyed tree does not bury the first line, which says why.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "thin/thin-check-internal.h"

#define LINE_TEXT 320

static const char *const kind_texts[NR_KINDS] = {
	[KIND_UNSEEN] = "nothing",
	[KIND_SUPERBLOCK] = "superblock",
	[KIND_SNAPSHOT] = "metadata snapshot",
	[KIND_TOP] = "top-level",
	[KIND_MAPPING] = "mapping",
	[KIND_DETAILS] = "details",
	[KIND_DATA_INDEX] = "data index",
	[KIND_DATA_COUNTS] = "data ref count",
	[KIND_METADATA_COUNTS] = "metadata ref count",
	[KIND_METADATA_INDEX] = "metadata index",
	[KIND_DATA_BITMAP] = "data bitmap",
	[KIND_METADATA_BITMAP] = "metadata bitmap",
};

const char *kind_text(enum block_kind kind)
{
	return kind_texts[kind];
}

/* "mapping leaf 1220 of device 8 in the metadata snapshot" */
static void place_text(const struct place *p, char *text, size_t size)
{
	bool is_node = p->kind >= KIND_TOP && p->kind <= KIND_METADATA_COUNTS;
	char device[32] = "";

	if (p->kind == KIND_SUPERBLOCK) {
		snprintf(text, size, "superblock");
		return;
	}
	if (p->kind == KIND_MAPPING)
		snprintf(device, sizeof(device), " of device %" PRIu64, p->device);
	snprintf(text, size, "%s%s %" PRIu64 "%s%s", kind_text(p->kind),
		 !is_node     ? ""
		 : p->is_leaf ? " leaf"
			      : " node",
		 p->block, device, p->of_snapshot && is_node ? " in the metadata snapshot" : "");
}

static void count_and_tell(struct check *c, enum thin_check_severity severity, const char *line)
{
	unsigned max = c->options->max_findings;

	switch (severity) {
	case THIN_CHECK_HINT:
		c->result.nr_hints++;
		break;
	case THIN_CHECK_LEAK:
		c->result.nr_leaks++;
		break;
	case THIN_CHECK_DAMAGE:
		c->result.nr_damages++;
		break;
	}
	if (max && c->nr_reported >= max) {
		c->worst_unreported = MAX(c->worst_unreported, severity);
		return;
	}
	c->nr_reported++;
	if (c->options->report)
		c->options->report(c->options->ctx, severity, line);
}

void finding(struct check *c, enum thin_check_severity severity, const char *fmt, ...)
{
	char line[LINE_TEXT];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	count_and_tell(c, severity, line);
}

void finding_at(struct check *c, const struct place *place, const char *fmt, ...)
{
	char line[LINE_TEXT], where[PLACE_TEXT], what[LINE_TEXT - PLACE_TEXT - 2];
	va_list ap;

	place_text(place, where, sizeof(where));
	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	snprintf(line, sizeof(line), "%s: %s", where, what);
	count_and_tell(c, THIN_CHECK_DAMAGE, line);
}

void findings_end(struct check *c)
{
	uint64_t nr = c->result.nr_hints + c->result.nr_leaks + c->result.nr_damages;
	char line[64];

	if (nr == c->nr_reported || !c->options->report)
		return;
	snprintf(line, sizeof(line), "... and %" PRIu64 " more", nr - c->nr_reported);
	c->options->report(c->options->ctx, c->worst_unreported, line);
}
