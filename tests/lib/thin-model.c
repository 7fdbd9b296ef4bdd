/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-model.c - what a pool's metadata should say, kept in plain arrays
 */
#include "thin-model.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CLUSTER 512u
#define CLUSTER_DISTANCE UINT64_C(1000003)

thin_id_t thin_model_id(unsigned device)
{
	return device + 1 == MODEL_DEVICES ? THIN_ID_MAX : device * device * 7;
}

vblock_t thin_model_key(unsigned v)
{
	return v + v / CLUSTER * CLUSTER_DISTANCE;
}

/* The block with this key; MODEL_VBLOCKS: none has it. */
static unsigned key_to_v(vblock_t key)
{
	for (unsigned c = 0; c <= MODEL_VBLOCKS / CLUSTER; c++) {
		vblock_t first = thin_model_key(c * CLUSTER);

		if (key >= first && key < first + CLUSTER &&
		    c * CLUSTER + (key - first) < MODEL_VBLOCKS)
			return (unsigned)(c * CLUSTER + (key - first));
	}
	return MODEL_VBLOCKS;
}

static unsigned id_to_device(uint64_t id)
{
	unsigned i;

	for (i = 0; i < MODEL_DEVICES && thin_model_id(i) != id; i++)
		;
	return i;
}

/* ---- changes ---- */

void thin_model_create(struct thin_model *m, unsigned device)
{
	struct thin_model_device *d = &m->devices[device];

	memset(d, 0, sizeof(*d));
	d->exists = true;
	d->transaction_id = m->transaction_id;
	d->creation_time = d->snapshotted_time = m->time;
}

void thin_model_snap(struct thin_model *m, unsigned device, unsigned origin)
{
	struct thin_model_device *d = &m->devices[device];

	m->time++;
	m->devices[origin].snapshotted_time = m->time;
	*d = m->devices[origin];
	d->transaction_id = m->transaction_id;
	d->creation_time = d->snapshotted_time = m->time;
}

void thin_model_delete(struct thin_model *m, unsigned device)
{
	memset(&m->devices[device], 0, sizeof(m->devices[device]));
}

void thin_model_map(struct thin_model *m, unsigned device, unsigned v, dblock_t dblock)
{
	struct thin_model_device *d = &m->devices[device];

	if (!d->map[v].mapped)
		d->mapped_blocks++;
	d->map[v] =
		(struct thin_model_mapping){ .dblock = dblock, .time = m->time, .mapped = true };
}

void thin_model_unmap(struct thin_model *m, unsigned device, unsigned begin, unsigned end)
{
	struct thin_model_device *d = &m->devices[device];

	for (unsigned v = begin; v < end; v++) {
		if (d->map[v].mapped)
			d->mapped_blocks--;
		memset(&d->map[v], 0, sizeof(d->map[v]));
	}
}

void thin_model_swap(struct thin_model *m, unsigned device, unsigned a, unsigned b)
{
	struct thin_model_mapping *map = m->devices[device].map, t = map[a];

	map[a] = map[b];
	map[b] = t;
}

/* ---- questions ---- */

unsigned thin_model_count(const struct thin_model *m, dblock_t dblock)
{
	unsigned n = 0;

	for (unsigned i = 0; i < MODEL_DEVICES; i++)
		for (unsigned v = 0; v < MODEL_VBLOCKS; v++)
			n += m->devices[i].map[v].mapped && m->devices[i].map[v].dblock == dblock;
	return n;
}

void thin_model_mark_used(const struct thin_model *m, bool *used, dblock_t nr)
{
	for (unsigned i = 0; i < MODEL_DEVICES; i++)
		for (unsigned v = 0; v < MODEL_VBLOCKS; v++)
			if (m->devices[i].map[v].mapped && m->devices[i].map[v].dblock < nr)
				used[m->devices[i].map[v].dblock] = true;
}

/* ---- comparing ---- */

static int differs(const char *what, uint64_t where, uint64_t is, uint64_t should)
{
	fprintf(stderr, "# %s at %" PRIu64 " is %" PRIu64 ", should be %" PRIu64 "\n", what, where,
		is, should);
	return -1;
}

/* Ticks off what was seen. */
struct comparison {
	const struct thin_model *m;
	unsigned device; /* whose mappings are compared */
	bool seen_device[MODEL_DEVICES];
	uint64_t nr_mapped;
};

static int compare_details(void *ctx, const struct thin_device_details *d)
{
	struct comparison *c = ctx;
	unsigned i = id_to_device(d->id);
	const struct thin_model_device *md;

	if (i == MODEL_DEVICES || !c->m->devices[i].exists || c->seen_device[i])
		return differs("a device that is not there", d->id, 1, 0);
	md = &c->m->devices[i];
	c->seen_device[i] = true;
	if (d->mapped_blocks != md->mapped_blocks)
		return differs("mapped_blocks", d->id, d->mapped_blocks, md->mapped_blocks);
	if (d->transaction_id != md->transaction_id)
		return differs("device transaction", d->id, d->transaction_id, md->transaction_id);
	if (d->creation_time != md->creation_time)
		return differs("creation time", d->id, d->creation_time, md->creation_time);
	if (d->snapshotted_time != md->snapshotted_time)
		return differs("snapshotted time", d->id, d->snapshotted_time,
			       md->snapshotted_time);
	return 0;
}

static int compare_mapping(void *ctx, const struct thin_mapping *r)
{
	struct comparison *c = ctx;

	for (uint64_t i = 0; i < r->nr_blocks; i++) {
		unsigned v = key_to_v(r->vblock + i);
		const struct thin_model_mapping *mm;

		if (v == MODEL_VBLOCKS || !c->m->devices[c->device].map[v].mapped)
			return differs("a mapping that is not there", r->vblock + i, 1, 0);
		mm = &c->m->devices[c->device].map[v];
		if (mm->dblock != r->dblock + i)
			return differs("data block", r->vblock + i, r->dblock + i, mm->dblock);
		if (mm->time != r->time)
			return differs("time", r->vblock + i, r->time, mm->time);
	}
	c->nr_mapped += r->nr_blocks;
	return 0;
}

static bool all_devices_seen(const struct comparison *c)
{
	for (unsigned i = 0; i < MODEL_DEVICES; i++)
		if (c->m->devices[i].exists && !c->seen_device[i])
			return differs("a device that is missing", thin_model_id(i), 0, 1) == 0;
	return true;
}

static bool mappings_match(const struct thin_model *m, struct thin_metadata *tmd, unsigned i)
{
	struct comparison c = { .m = m, .device = i };
	int r;

	r = thin_metadata_for_each_mapping(tmd, thin_model_id(i), compare_mapping, &c);
	if (r) {
		fprintf(stderr, "# mappings of device %u: %d\n", thin_model_id(i), r);
		return false;
	}
	if (c.nr_mapped != m->devices[i].mapped_blocks)
		return differs("mappings", thin_model_id(i), c.nr_mapped,
			       m->devices[i].mapped_blocks) == 0;
	return true;
}

bool thin_model_matches(const struct thin_model *m, struct thin_metadata *tmd)
{
	struct comparison c = { .m = m };
	struct thin_metadata_info info;
	int r;

	r = thin_metadata_for_each_device(tmd, compare_details, &c);
	if (r) {
		fprintf(stderr, "# devices: %d\n", r);
		return false;
	}
	if (!all_devices_seen(&c))
		return false;
	for (unsigned i = 0; i < MODEL_DEVICES; i++)
		if (m->devices[i].exists && !mappings_match(m, tmd, i))
			return false;

	r = thin_metadata_get_info(tmd, &info);
	if (r)
		return differs("info", 0, (uint64_t)-r, 0) == 0;
	if (info.time != m->time)
		return differs("clock", 0, info.time, m->time) == 0;
	if (info.transaction_id != m->transaction_id)
		return differs("transaction id", 0, info.transaction_id, m->transaction_id) == 0;
	if (info.nr_data_blocks != m->nr_data_blocks)
		return differs("data blocks", 0, info.nr_data_blocks, m->nr_data_blocks) == 0;
	return true;
}

bool thin_model_run_matches(const struct thin_model *m, unsigned device, unsigned v,
			    uint64_t max_blocks, const struct thin_run *run)
{
	const struct thin_model_device *d = &m->devices[device];
	vblock_t key = thin_model_key(v);

	if (!run->nr_blocks || run->nr_blocks > max_blocks)
		return differs("run length", key, run->nr_blocks, max_blocks) == 0;
	for (unsigned n = v; n < MODEL_VBLOCKS && thin_model_key(n) - key < run->nr_blocks; n++) {
		const struct thin_model_mapping *mm = &d->map[n];
		uint64_t i = thin_model_key(n) - key;

		if (mm->mapped != run->mapped)
			return differs("mapped", thin_model_key(n), run->mapped, mm->mapped) == 0;
		if (!mm->mapped)
			continue;
		if (mm->dblock != run->dblock + i)
			return differs("run's data block", thin_model_key(n), run->dblock + i,
				       mm->dblock) == 0;
		if (run->shared != (d->snapshotted_time > mm->time))
			return differs("shared", thin_model_key(n), run->shared, !run->shared) == 0;
	}
	/* A mapped run stays within a cluster, since nothing is mapped between them. */
	if (run->mapped && run->nr_blocks > CLUSTER)
		return differs("run length", key, run->nr_blocks, CLUSTER) == 0;
	return true;
}

/* ---- thin_dump ---- */

static uint64_t attribute(const char *line, const char *name)
{
	char pattern[64];
	const char *p;

	snprintf(pattern, sizeof(pattern), " %s=\"", name);
	p = strstr(line, pattern);
	return p ? strtoull(p + strlen(pattern), NULL, 10) : UINT64_MAX;
}

static int compare_line(struct comparison *c, const char *line)
{
	if (strstr(line, "<superblock ")) {
		if (attribute(line, "time") != c->m->time)
			return differs("dumped clock", 0, attribute(line, "time"), c->m->time);
		if (attribute(line, "transaction") != c->m->transaction_id)
			return differs("dumped transaction", 0, attribute(line, "transaction"),
				       c->m->transaction_id);
		return 0;
	}
	if (strstr(line, "<device ")) {
		const struct thin_device_details d = {
			.id = (thin_id_t)attribute(line, "dev_id"),
			.mapped_blocks = attribute(line, "mapped_blocks"),
			.transaction_id = attribute(line, "transaction"),
			.creation_time = (uint32_t)attribute(line, "creation_time"),
			.snapshotted_time = (uint32_t)attribute(line, "snap_time"),
		};

		c->device = id_to_device(d.id);
		return compare_details(c, &d);
	}
	if (strstr(line, "_mapping ")) {
		bool single = strstr(line, "<single_mapping ");
		const struct thin_mapping mapping = {
			.vblock = attribute(line, single ? "origin_block" : "origin_begin"),
			.dblock = attribute(line, single ? "data_block" : "data_begin"),
			.nr_blocks = single ? 1 : attribute(line, "length"),
			.time = (uint32_t)attribute(line, "time"),
		};

		return compare_mapping(c, &mapping);
	}
	return 0;
}

bool thin_model_matches_dump(const struct thin_model *m, const char *options, const char *path)
{
	struct comparison c = { .m = m };
	uint64_t nr_mapped = 0;
	char command[512], line[1024];
	FILE *dump;
	int r = 0;

	snprintf(command, sizeof(command), "thin_dump %s '%s'", options, path);
	dump = popen(command, "r");
	if (!dump)
		return false;
	while (!r && fgets(line, sizeof(line), dump))
		r = compare_line(&c, line);
	if (pclose(dump) != 0 && !r) {
		fprintf(stderr, "# thin_dump fails\n");
		return false;
	}
	for (unsigned i = 0; i < MODEL_DEVICES; i++)
		nr_mapped += m->devices[i].mapped_blocks;
	if (!r && c.nr_mapped != nr_mapped)
		r = differs("dumped mappings", 0, c.nr_mapped, nr_mapped);
	return !r && all_devices_seen(&c);
}
