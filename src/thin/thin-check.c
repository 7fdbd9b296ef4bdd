/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-check.c - is the metadata of a pool right in every respect?
 *
 * Owns the superblock, the metadata snapshot's, the two lists of devices, and the order:
 *
 *   1. superblock; index and bitmaps of the metadata map (they say what may be shared)
 *   2. mappings and details of the superblock, then of the metadata snapshot
 *   3. the data map, compared with the references that 2 has counted
 *   4. the rest of the metadata map, compared with the references of all
 *
 * Every block that is referred to is read once (top-level and details nodes that the metadata
 * snapshot shares: twice) and believed only after it was checked: no number from the disk is
 * used as an index, a size or a loop bound before it was compared with what is possible.
 */
#include "thin/thin-check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "io/device.h"
#include "thin/thin-check-internal.h"
#include "util/le.h"

/* ---- devices ---- */

int device_found(struct check *c, const struct place *at, uint64_t id, const struct node_memo *memo)
{
	int r;

	if (id > THIN_ID_MAX)
		finding_at(c, at, "device id %" PRIu64 " is above %u", id, THIN_ID_MAX);
	r = array_grow(&c->devices, c->nr_devices, &c->max_devices, sizeof(*c->devices));
	if (r)
		return r;
	c->devices[c->nr_devices++] = (struct device_entry){
		.id = id,
		.nr_mappings = memo->nr_values,
		.complete = memo->complete,
	};
	return 0;
}

static int by_id(const void *a, const void *b)
{
	const struct device_entry *x = a, *y = b;

	return (x->id > y->id) - (x->id < y->id);
}

void device_details(struct check *c, const struct place *at, uint64_t id,
		    const struct disk_device_details *details)
{
	uint32_t created = le32_get(details->creation_time);
	uint32_t snapshotted = le32_get(details->snapshotted_time);
	uint64_t mapped = le64_get(details->mapped_blocks);
	struct device_entry key = { .id = id }, *device;

	if (created > c->clock || snapshotted > c->clock)
		finding_at(c, at,
			   "device %" PRIu64 " was created at time %" PRIu32
			   " and snapshotted at %" PRIu32 ", but the clock says %" PRIu32,
			   id, created, snapshotted, c->clock);
	if (snapshotted < created)
		finding_at(c, at,
			   "device %" PRIu64 " was snapshotted at time %" PRIu32
			   ", before it was created at %" PRIu32,
			   id, snapshotted, created);
	device =
		c->nr_devices ? bsearch(&key, c->devices, c->nr_devices, sizeof(key), by_id) : NULL;
	if (!device) {
		if (c->devices_complete)
			finding_at(c, at, "device %" PRIu64 " has details, but no mapping tree",
				   id);
		return;
	}
	device->has_details = true;
	if (device->complete && device->nr_mappings != mapped)
		finding_at(c, at,
			   "device %" PRIu64 " has %" PRIu64
			   " mapped blocks according to its details, its tree has %" PRIu64,
			   id, mapped, device->nr_mappings);
}

/* The mappings and details of a superblock. */
static int check_devices(struct check *c, const struct place *at,
			 const struct thin_disk_superblock *sb)
{
	bool details_complete;
	int r;

	c->clock = MIN(le32_get(sb->time), THIN_MAX_TIME);
	c->nr_devices = 0;
	r = walk_tree(c, at, KIND_TOP, le64_get(sb->data_mapping_root), &c->devices_complete);
	if (r)
		return r;
	if (c->nr_devices) /* in order already, unless the tree is damaged */
		qsort(c->devices, c->nr_devices, sizeof(*c->devices), by_id);
	r = walk_tree(c, at, KIND_DETAILS, le64_get(sb->device_details_root), &details_complete);
	if (r)
		return r;
	for (size_t i = 0; details_complete && i < c->nr_devices; i++)
		if (!c->devices[i].has_details)
			finding_at(c, at, "device %" PRIu64 " has a mapping tree, but no details",
				   c->devices[i].id);
	return 0;
}

/* ---- superblocks ---- */

/* What both superblocks have to say alike. */
static void check_constants(struct check *c, const struct place *at,
			    const struct thin_disk_superblock *sb)
{
	uint32_t sectors = le32_get(sb->data_block_size);

	if (le32_get(sb->version) != THIN_METADATA_VERSION)
		finding_at(c, at, "version %" PRIu32 ", expected %u", le32_get(sb->version),
			   THIN_METADATA_VERSION);
	if (le32_get(sb->metadata_block_size) != METADATA_BLOCK_SECTORS)
		finding_at(c, at, "metadata blocks of %" PRIu32 " sectors, expected %u",
			   le32_get(sb->metadata_block_size), METADATA_BLOCK_SECTORS);
	if (sectors < DATA_BLOCK_MIN_SECTORS || sectors > DATA_BLOCK_MAX_SECTORS ||
	    sectors % DATA_BLOCK_MIN_SECTORS)
		finding_at(c, at,
			   "data blocks of %" PRIu32 " sectors, expected a multiple of %u up to %u",
			   sectors, DATA_BLOCK_MIN_SECTORS, DATA_BLOCK_MAX_SECTORS);
	if (le32_get(sb->compat_ro_flags) || le32_get(sb->incompat_flags))
		finding_at(c, at,
			   "unknown features: read-only compatible 0x%" PRIx32
			   ", incompatible 0x%" PRIx32,
			   le32_get(sb->compat_ro_flags), le32_get(sb->incompat_flags));
	if (le32_get(sb->time) > THIN_MAX_TIME)
		finding_at(c, at, "the clock says %" PRIu32 ", at most %u is possible",
			   le32_get(sb->time), THIN_MAX_TIME);
	if (le32_get(sb->flags) & ~THIN_NEEDS_CHECK_FLAG)
		finding(c, THIN_CHECK_HINT, "%s: unknown flags 0x%" PRIx32, kind_text(at->kind),
			le32_get(sb->flags) & ~THIN_NEEDS_CHECK_FLAG);
}

static void check_sizes(struct check *c, const struct place *at)
{
	const struct thin_disk_superblock *sb = c->superblock;
	const struct disk_sm_root *data = (const void *)sb->data_sm_root;
	const struct disk_sm_root *metadata = (const void *)sb->metadata_sm_root;
	uint64_t nr_data = le64_get(data->nr_blocks), nr_metadata = le64_get(metadata->nr_blocks);
	uint64_t block_bytes = (uint64_t)le32_get(sb->data_block_size) * SECTOR_SIZE;

	if (nr_data > DATA_BLOCK_LIMIT)
		finding_at(c, at, "%" PRIu64 " data blocks, at most 2^40 are possible", nr_data);
	else if (c->options->data_bytes != UINT64_MAX && block_bytes &&
		 nr_data > c->options->data_bytes / block_bytes)
		finding_at(c, at,
			   "%" PRIu64 " data blocks, but the data device has room for %" PRIu64,
			   nr_data, c->options->data_bytes / block_bytes);
	if (nr_metadata > MAX_METADATA_BLOCKS)
		finding_at(c, at, "%" PRIu64 " metadata blocks, at most %" PRIu64 " are possible",
			   nr_metadata, MAX_METADATA_BLOCKS);
	else if (nr_metadata > c->nr_device_blocks)
		finding_at(c, at, "%" PRIu64 " metadata blocks, but the device has %" PRIu64,
			   nr_metadata, c->nr_device_blocks);
	c->nr_data_blocks = MIN(nr_data, DATA_BLOCK_LIMIT);
	c->nr_metadata_blocks = MIN(nr_metadata, MAX_METADATA_BLOCKS);
	c->nr_blocks = MIN(c->nr_metadata_blocks, c->nr_device_blocks);
}

static bool is_blank(const void *block)
{
	const char *p = block;

	return !p[0] && !memcmp(p, p + 1, METADATA_BLOCK_SIZE - 1);
}

/* *@ret_sb: the superblock at @at in memory of its own, or NULL if it is none. */
static int load_superblock(struct check *c, const struct place *at,
			   struct thin_disk_superblock **ret_sb)
{
	const struct thin_disk_superblock *sb;
	const void *data;
	int r;

	*ret_sb = NULL;
	r = read_block(c, at->block, &data);
	if (r)
		return r;
	sb = data;
	if (is_blank(data)) {
		finding_at(c, at, "all zero: this was never formatted");
		return 0;
	}
	if (le64_get(sb->magic) != THIN_SUPERBLOCK_MAGIC) {
		finding_at(c, at, "magic number %" PRIu64 ", expected %u: no thin-pool metadata",
			   le64_get(sb->magic), THIN_SUPERBLOCK_MAGIC);
		return 0;
	}
	if (!block_is_intact(c, at, data))
		return 0;
	*ret_sb = malloc(sizeof(**ret_sb));
	if (!*ret_sb)
		return -ENOMEM;
	memcpy(*ret_sb, data, sizeof(**ret_sb));
	return 0;
}

static void check_snapshot_fields(struct check *c, const struct place *at)
{
	const struct thin_disk_superblock *live = c->superblock, *sb = c->snapshot;
	static const uint8_t zeros[SPACE_MAP_ROOT_SIZE];

	check_constants(c, at, sb);
	if (le32_get(sb->data_block_size) != le32_get(live->data_block_size))
		finding_at(c, at, "data blocks of %" PRIu32 " sectors, the pool has %" PRIu32,
			   le32_get(sb->data_block_size), le32_get(live->data_block_size));
	if (le32_get(sb->time) > le32_get(live->time))
		finding_at(c, at, "the clock says %" PRIu32 ", the pool's says %" PRIu32,
			   le32_get(sb->time), le32_get(live->time));
	if (le64_get(sb->held_root))
		finding(c, THIN_CHECK_HINT,
			"metadata snapshot %" PRIu64
			": names a metadata snapshot itself, block %" PRIu64,
			at->block, le64_get(sb->held_root));
	if (memcmp(sb->data_sm_root, zeros, sizeof(zeros)) ||
	    memcmp(sb->metadata_sm_root, zeros, sizeof(zeros)))
		finding(c, THIN_CHECK_HINT,
			"metadata snapshot %" PRIu64 ": names space maps, expected none",
			at->block);
}

static int check_snapshot(struct check *c)
{
	struct place from = { .kind = KIND_SUPERBLOCK };
	struct place at = {
		.kind = KIND_SNAPSHOT,
		.block = le64_get(c->superblock->held_root),
		.of_snapshot = true,
	};
	enum arrival arrival;
	int r;

	if (!at.block)
		return 0;
	r = refer(c, &from, at.block, at.kind, true, &arrival);
	if (r || arrival != ARRIVE_FIRST)
		return r;
	r = load_superblock(c, &at, &c->snapshot);
	if (r)
		return r;
	if (!c->snapshot) {
		c->hidden = true;
		return 0;
	}
	check_snapshot_fields(c, &at);
	return check_devices(c, &at, c->snapshot);
}

/* ---- the whole ---- */

static int allocate(struct check *c)
{
	size_t nr = MAX(c->nr_blocks, (mblock_t)1);

	c->refs = calloc(nr, sizeof(*c->refs));
	c->kinds = calloc(nr, sizeof(*c->kinds));
	c->memo = calloc(nr, sizeof(*c->memo));
	c->nr_memos = NO_MEMO + 1;
	return c->refs && c->kinds && c->memo ? 0 : -ENOMEM;
}

static int check_all(struct check *c)
{
	struct place at = { .kind = KIND_SUPERBLOCK };
	enum arrival arrival;
	int r;

	if (!c->nr_device_blocks) {
		finding_at(c, &at, "the device is too small to have one");
		return 0;
	}
	r = load_superblock(c, &at, &c->superblock);
	if (r || !c->superblock)
		return r;
	c->result.needs_check = le32_get(c->superblock->flags) & THIN_NEEDS_CHECK_FLAG;
	c->result.transaction_id = le64_get(c->superblock->trans_id);
	check_constants(c, &at, c->superblock);
	check_sizes(c, &at);
	r = allocate(c);
	if (!r)
		r = refer(c, &at, THIN_SUPERBLOCK_LOCATION, KIND_SUPERBLOCK, true, &arrival);
	if (!r)
		r = metadata_map_load(c);
	if (!r)
		r = check_devices(c, &at, c->superblock);
	if (r)
		return r;
	c->result.nr_devices = c->nr_devices;
	for (size_t i = 0; i < c->nr_devices; i++)
		c->result.nr_mappings += c->devices[i].nr_mappings;
	r = check_snapshot(c);
	if (!r)
		r = data_map_compare(c);
	return r ? r : metadata_map_compare(c);
}

static void check_free(struct check *c)
{
	(void)io_queue_destroy(c->queue); /* returns NULL */
	refs_free(c);
	free(c->batch.buffer);
	free(c->superblock);
	free(c->snapshot);
	free(c->metadata_bits);
	free(c->metadata_counts);
	free(c->devices);
	free(c);
}

int thin_check(struct io_device *metadata, const struct thin_check_options *options,
	       struct thin_check_result *ret_result)
{
	struct check *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	c->dev = metadata;
	c->options = options;
	c->nr_device_blocks = io_device_size(metadata) / METADATA_BLOCK_SIZE;
	r = io_queue_create(BATCH_MAX, &c->queue);
	if (!r)
		r = check_all(c);
	if (!r) {
		findings_end(c);
		*ret_result = c->result;
	}
	check_free(c);
	return r;
}
