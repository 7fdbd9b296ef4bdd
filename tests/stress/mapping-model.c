/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mapping-model.c - what a small pool's metadata and data should say
 *
 * That the mappings are those of the model is seen through the engine; that the counts on disk are
 * those of the mappings, by the checker, which shares no code with the engine.  Both together: the
 * counts are those of the model.
 */
#include "mapping-model.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "thin/thin-check.h"

thin_id_t model_id(unsigned device)
{
	return 1 + device * device * 7;
}

/* ---- changes ---- */

void model_create(struct mapping_model *m, unsigned device)
{
	struct model_device *d = &m->devices[device];

	memset(d, 0, sizeof(*d));
	d->exists = true;
	d->transaction_id = m->transaction_id;
	d->creation_time = d->snapshotted_time = m->time;
}

void model_snap(struct mapping_model *m, unsigned device, unsigned origin)
{
	struct model_device *d = &m->devices[device];

	m->time++;
	m->devices[origin].snapshotted_time = m->time;
	*d = m->devices[origin];
	d->transaction_id = m->transaction_id;
	d->creation_time = d->snapshotted_time = m->time;
}

void model_delete(struct mapping_model *m, unsigned device)
{
	memset(&m->devices[device], 0, sizeof(m->devices[device]));
}

void model_map(struct mapping_model *m, unsigned device, unsigned v, dblock_t dblock,
	       uint64_t write)
{
	struct model_device *d = &m->devices[device];

	d->mapped_blocks += !d->map[v].write;
	d->map[v] = (struct model_mapping){ .dblock = (uint32_t)dblock,
					    .time = m->time,
					    .write = write };
}

void model_unmap(struct mapping_model *m, unsigned device, unsigned begin, unsigned end)
{
	struct model_device *d = &m->devices[device];

	for (unsigned v = begin; v < end; v++) {
		d->mapped_blocks -= d->map[v].write != 0;
		d->map[v] = (struct model_mapping){ .write = 0 };
	}
}

/* ---- comparing ---- */

static int differs(const char *what, uint64_t where, uint64_t is, uint64_t should)
{
	fprintf(stderr, "# %s at %" PRIu64 " is %" PRIu64 ", should be %" PRIu64 "\n", what, where,
		is, should);
	return -1;
}

struct comparison {
	const struct mapping_model *m;
	const uint8_t *data;
	unsigned nr_devices; /* seen so far: they come in order */
	const struct model_device *device;
	uint64_t nr_mapped;
	bool used[MODEL_DBLOCKS];
};

static int compare_device(void *ctx, const struct thin_device_details *is)
{
	struct comparison *c = ctx;
	const struct model_device *d;

	while (c->nr_devices < MODEL_DEVICES && !c->m->devices[c->nr_devices].exists)
		c->nr_devices++;
	if (c->nr_devices == MODEL_DEVICES || model_id(c->nr_devices) != is->id)
		return differs("a device", is->id, is->id,
			       c->nr_devices < MODEL_DEVICES ? model_id(c->nr_devices) : 0);
	d = &c->m->devices[c->nr_devices++];
	if (is->mapped_blocks != d->mapped_blocks)
		return differs("mapped_blocks", is->id, is->mapped_blocks, d->mapped_blocks);
	if (is->transaction_id != d->transaction_id)
		return differs("device transaction", is->id, is->transaction_id, d->transaction_id);
	if (is->creation_time != d->creation_time)
		return differs("creation time", is->id, is->creation_time, d->creation_time);
	if (is->snapshotted_time != d->snapshotted_time)
		return differs("snapshotted time", is->id, is->snapshotted_time,
			       d->snapshotted_time);
	return 0;
}

static int compare_run(void *ctx, const struct thin_mapping *run)
{
	struct comparison *c = ctx;

	for (uint64_t i = 0; i < run->nr_blocks; i++) {
		vblock_t v = run->vblock + i;
		dblock_t b = run->dblock + i;
		const struct model_mapping *mm;
		struct stamp stamp;

		if (v >= MODEL_VBLOCKS || !c->device->map[v].write)
			return differs("a mapping that is not there", v, b, 0);
		mm = &c->device->map[v];
		if (b != mm->dblock)
			return differs("data block", v, b, mm->dblock);
		if (run->time != mm->time)
			return differs("time", v, run->time, mm->time);
		memcpy(&stamp, c->data + b * MODEL_BLOCK_BYTES, sizeof(stamp));
		if (stamp.write != mm->write || stamp.vblock != v)
			return differs("content", v, stamp.write, mm->write);
		c->used[b] = true;
	}
	c->nr_mapped += run->nr_blocks;
	return 0;
}

static bool devices_match(struct comparison *c, struct thin_metadata *tmd)
{
	if (thin_metadata_for_each_device(tmd, compare_device, c))
		return false;
	for (; c->nr_devices < MODEL_DEVICES; c->nr_devices++)
		if (c->m->devices[c->nr_devices].exists)
			return differs("a device that is missing", model_id(c->nr_devices), 0, 1) ==
			       0;
	for (unsigned i = 0; i < MODEL_DEVICES; i++) {
		c->device = &c->m->devices[i];
		c->nr_mapped = 0;
		if (!c->device->exists)
			continue;
		if (thin_metadata_for_each_mapping(tmd, model_id(i), compare_run, c))
			return false;
		if (c->nr_mapped != c->device->mapped_blocks)
			return differs("mappings", i, c->nr_mapped, c->device->mapped_blocks) == 0;
	}
	return true;
}

static void show_finding(void *ctx, enum thin_check_severity severity, const char *line)
{
	(void)ctx;
	(void)severity;
	fprintf(stderr, "# the checker: %s\n", line);
}

static bool counts_match(struct io_device *metadata)
{
	struct thin_check_options options = { .data_bytes =
						      (uint64_t)MODEL_DBLOCKS * MODEL_BLOCK_BYTES,
					      .report = show_finding };
	struct thin_check_result result;
	int r = thin_check(metadata, &options, &result);

	return !r && !result.nr_hints && !result.nr_leaks && !result.nr_damages;
}

bool model_holds(const struct mapping_model *m, struct thin_metadata *tmd, const uint8_t *data,
		 struct io_device *metadata)
{
	struct comparison c = { .m = m, .data = data };
	struct thin_metadata_info info;
	uint64_t nr_free = 0;

	if (thin_metadata_get_info(tmd, &info) || info.failed)
		return differs("information", 0, 1, 0) == 0;
	if (info.time != m->time)
		return differs("clock", 0, info.time, m->time) == 0;
	if (info.transaction_id != m->transaction_id)
		return differs("transaction id", 0, info.transaction_id, m->transaction_id) == 0;
	if (!devices_match(&c, tmd))
		return false;
	for (dblock_t b = 0; b < MODEL_DBLOCKS; b++)
		nr_free += !c.used[b];
	if (info.nr_data_free != nr_free)
		return differs("free data blocks", 0, info.nr_data_free, nr_free) == 0;
	return counts_match(metadata);
}
