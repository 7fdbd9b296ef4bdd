/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuzz-catalog.c - a catalog that is damaged, or does not fit to the devices, and work with it
 *
 * An input is a byte of options and a list of records of 12 bytes.  Some change the catalog of a
 * small pool (checksums are made good again, unless the record says otherwise) or the devices
 * that it speaks of; the metadata stays right.  Then the catalog is worked with by itself, or a
 * pool is opened and commands are given.
 *
 * What must hold, besides that nothing breaks and nothing is leaked:
 *
 *	C1  whatever the catalog says, the pool opens; read-only, nothing is written.  Only if the
 *	    record of the catalog itself is damaged it has to be opened read-only
 *	C2  volumes have names that may be, each its own, and each is found by it
 *	C3  no work ends with an error that speaks of damage
 *	C4  the pool closes without an error, the checker finds nothing in its metadata, and whoever
 *	    opens it again finds the same volumes; only names of volumes without a record may be
 *	    made up in another way
 *	C5  a record that was put is read as it was put, after a commit by others too
 */
#include "fuzz.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "abort-alone.h"
#include "catalog/catalog.h"
#include "fault-device.h"
#include "io/device.h"
#include "mem-device.h"
#include "pool-fixture.h"
#include "pool/pool-internal.h"
#include "thin/thin-check.h"
#include "thin/thin-metadata.h"
#include "thinpoold/catalog-format.h"
#include "util/clock.h"
#include "util/crc32c.h"
#include "util/le.h"
#include "util/log.h"

enum { MAX_RECORDS = 100, MAX_VOLUMES = 64, RECORD_BYTES = 12 };

struct record {
	uint8_t op, slot;
	uint16_t aux;
	uint64_t value;
};

/* Set: work with what has been damaged. */
#define OP_WORK 0x40

enum options { IN_API = 1, LARGE_BLOCKS = 2, NO_CATALOG = 4, READ_ONLY = 8 };

struct base {
	struct io_device *meta, *data; /* pristine */
};

static struct base bases[3];

/* Of one input. */
static struct {
	struct io_device *meta, *data;
	struct thin_metadata *tmd;
	struct catalog *catalog;
	struct pool *pool;
	struct io_queue *q;
	uint64_t block_bytes;
} now;

static const char *const names[] = {
	"a",    "b",      "c", "thin-1", "thin-1-2", "",     ".catalog", "a/b",
	"\xff", "thin-2", "d", "..",     "a\nb",     "long", "/1",       "e",
};

static const thin_id_t slots[] = { 0,           1,  2,  3,    4,    5,
				   63,          64, 65, 1000, 1024, THIN_ID_MAX - 1,
				   THIN_ID_MAX, 6,  7,  8 };

static thin_id_t slot_of(const struct record *rec)
{
	return slots[rec->slot % ARRAY_SIZE(slots)];
}

static void name_of(uint64_t which, char name[VOLUME_NAME_MAX + 1])
{
	if (which % ARRAY_SIZE(names) != 13) {
		strcpy(name, names[which % ARRAY_SIZE(names)]);
		return;
	}
	memset(name, 'l', VOLUME_NAME_MAX);
	name[VOLUME_NAME_MAX - which / ARRAY_SIZE(names) % 2] = '\0';
}

/* An error that speaks of damage, or of failed devices. */
static void sound(int r)
{
	HOLDS(r != -EIO && r != -EUCLEAN && r != -EILSEQ && r != -ENOTBLK);
}

/* ---- damage ---- */

/* The record's place on the device; NULL: the catalog has none there. */
static struct disk_catalog_record *place_of(thin_id_t id)
{
	uint64_t at = (uint64_t)id * CATALOG_RECORD_BYTES;
	struct thin_device *td;
	struct thin_run run = { .mapped = false };

	if (thin_device_open(now.tmd, CATALOG_ID, &td))
		return NULL;
	sound(thin_find_run(td, at / now.block_bytes, 1, &run));
	thin_device_close(td);
	if (!run.mapped)
		return NULL;
	at = run.dblock * now.block_bytes + at % now.block_bytes;
	mem_device_touch(now.data, at, CATALOG_RECORD_BYTES);
	return (void *)((uint8_t *)mem_device_data(now.data) + at);
}

static void seal(struct disk_catalog_record *d)
{
	size_t from = offsetof(struct disk_catalog_record, version);

	d->csum = le32_make(crc32c((const uint8_t *)d + from, sizeof(*d) - from));
}

static void change_field(struct disk_catalog_record *d, const struct record *rec)
{
	switch (rec->aux % 9) {
	case 0:
		d->magic = le64_make(rec->value);
		break;
	case 1:
		d->version = le32_make((uint32_t)rec->value);
		break;
	case 2:
		d->id = le32_make((uint32_t)rec->value);
		break;
	case 3:
		d->flags = le32_make((uint32_t)rec->value);
		break;
	case 4:
		d->size_bytes = le64_make(rec->value);
		break;
	case 5:
		d->created_usec = le64_make(rec->value);
		break;
	case 6:
		d->origin = le32_make((uint32_t)rec->value);
		break;
	case 7:
		d->name_bytes = le32_make((uint32_t)rec->value);
		break;
	default:
		d->reserved[rec->value % sizeof(d->reserved)] ^= 1;
	}
}

static void change_name(struct disk_catalog_record *d, const struct record *rec)
{
	char name[VOLUME_NAME_MAX + 1];

	name_of(rec->value, name);
	memset(d->name, 0, sizeof(d->name));
	memcpy(d->name, name, strlen(name));
	d->name_bytes = le32_make((uint32_t)strlen(name));
}

static void make_record(struct disk_catalog_record *d, const struct record *rec)
{
	memset(d, 0, sizeof(*d));
	d->magic = le64_make(CATALOG_MAGIC);
	d->version = le32_make(CATALOG_VERSION);
	d->id = le32_make(slot_of(rec));
	d->flags = le32_make(rec->aux);
	d->size_bytes = le64_make(MIB);
	change_name(d, rec);
}

enum damage {
	DAMAGE_FIELD,
	DAMAGE_NAME,
	DAMAGE_MAKE,
	DAMAGE_COPY,
	DAMAGE_BYTES,
	DAMAGE_ZERO,
	DAMAGE_UNSEALED,
	DAMAGE_CREATE, /* from here on: of the devices */
	DAMAGE_DELETE,
	DAMAGE_UNMAP,
	DAMAGE_MAP,
	NR_DAMAGES,
};

static void damage_record(const struct record *rec, enum damage op)
{
	struct disk_catalog_record *d = place_of(slot_of(rec)), *from;

	if (!d)
		return;
	if (op == DAMAGE_FIELD)
		change_field(d, rec);
	else if (op == DAMAGE_NAME)
		change_name(d, rec);
	else if (op == DAMAGE_MAKE)
		make_record(d, rec);
	else if (op == DAMAGE_ZERO)
		memset(d, 0, sizeof(*d));
	else if (op != DAMAGE_COPY)
		memcpy((uint8_t *)d + rec->aux % (sizeof(*d) - 8), &rec->value, 8);
	if (op == DAMAGE_COPY && (from = place_of(slots[rec->value % ARRAY_SIZE(slots)]))) {
		memmove(d, from, sizeof(*d));
		if (rec->aux & 1)
			d->id = le32_make(slot_of(rec));
	}
	if (op != DAMAGE_UNSEALED && op != DAMAGE_ZERO)
		seal(d);
}

static int map_block(struct thin_device *td, vblock_t v)
{
	dblock_t block;
	int r = thin_metadata_reserve_data_block(now.tmd, &block);

	return r ? r : thin_insert_block(td, v, block);
}

/* Returns an error after which only an abort may come; others have changed nothing. */
static int damage_device(const struct record *rec, enum damage op)
{
	vblock_t v = rec->aux & 1 ? rec->value : rec->value % 512, next;
	struct thin_device *td;
	int r;

	if (op == DAMAGE_CREATE)
		return thin_metadata_create_thin(now.tmd, slot_of(rec));
	if (op == DAMAGE_DELETE)
		return thin_metadata_delete_thin(now.tmd, slot_of(rec));
	r = thin_device_open(now.tmd, slot_of(rec), &td);
	if (r)
		return r;
	if (op == DAMAGE_MAP)
		r = map_block(td, v);
	else
		r = thin_remove_range(td, v, MAX(v, v + rec->aux), UINT64_MAX, &next);
	thin_device_close(td);
	return r;
}

static void damage(const struct record *rec)
{
	enum damage op = rec->op % OP_WORK % NR_DAMAGES;
	int r;

	if (op < DAMAGE_CREATE) {
		damage_record(rec, op);
		return;
	}
	r = damage_device(rec, op);
	sound(r);
	if (r && r != -EEXIST && r != -ENODATA)
		HOLDS(!abort_alone(now.tmd));
}

static void open_metadata(void)
{
	const struct thin_metadata_options options = { .cache_bytes = MIB, .data = now.data };

	HOLDS(!thin_metadata_open(now.meta, &options, &now.tmd, NULL));
}

static void close_metadata(void)
{
	HOLDS(!thin_metadata_close(now.tmd));
	now.tmd = NULL;
}

/* ---- the catalog by itself ---- */

static int check_record(void *ctx, const struct catalog_record *rec)
{
	const struct catalog_record **looked_for = ctx;
	const struct catalog_record *wanted = looked_for ? *looked_for : NULL;

	HOLDS(rec->id < CATALOG_ID);
	HOLDS(!rec->name[0] || !volume_name_check(rec->name));
	if (!wanted || wanted->id != rec->id)
		return 0;
	HOLDS(!strcmp(wanted->name, rec->name) && wanted->flags == rec->flags &&
	      wanted->size_bytes == rec->size_bytes && wanted->created_usec == rec->created_usec &&
	      wanted->origin == rec->origin);
	*looked_for = NULL;
	return 0;
}

static void open_catalog(void)
{
	int r;

	open_metadata();
	r = catalog_open(now.tmd, now.data, &now.catalog);
	HOLDS(!r || r == -ENODATA || r == -EUCLEAN);
	if (r)
		now.catalog = NULL;
	else
		HOLDS(!catalog_for_each(now.catalog, check_record, NULL));
}

static void close_catalog(void)
{
	now.catalog = catalog_close(now.catalog);
	close_metadata();
}

static int put(const struct record *rec)
{
	struct catalog_record r = { .id = slot_of(rec),
				    .flags = rec->aux & 7,
				    .size_bytes = rec->value,
				    .created_usec = rec->value >> 8,
				    .origin = rec->aux >> 3 };
	const struct catalog_record *looked_for = &r;
	int error;

	if (r.id == CATALOG_ID)
		return 0;
	name_of(rec->aux, r.name);
	error = catalog_put(now.catalog, &r);
	if (volume_name_check(r.name)) {
		HOLDS(error);
		return error;
	}
	if (error)
		return error;
	HOLDS(!catalog_for_each(now.catalog, check_record, &looked_for));
	HOLDS(!looked_for);
	if (rec->slot & 0x80) {
		HOLDS(!thin_metadata_commit(now.tmd));
		close_catalog();
		open_catalog();
		looked_for = &r;
		HOLDS(!catalog_for_each(now.catalog, check_record, &looked_for) && !looked_for);
	}
	return 0;
}

/* Room that is there is enough. */
static int check_room(const struct record *rec)
{
	thin_id_t ids[2] = { slot_of(rec), slots[rec->aux % ARRAY_SIZE(slots)] };
	struct catalog_record r = { .name = "room" };
	int error;

	if (ids[0] == CATALOG_ID || ids[1] == CATALOG_ID)
		return 0;
	error = catalog_check_room(now.catalog, ids, 2);
	HOLDS(!error || error == -EAGAIN || error == -ENOSPC);
	for (unsigned i = 0; i < 2 && !error && rec->value & 1; i++) {
		r.id = ids[i];
		HOLDS(!catalog_put(now.catalog, &r));
	}
	return 0;
}

static int api_work(const struct record *rec)
{
	int r = 0;

	switch (rec->op % OP_WORK % 8) {
	case 0:
	case 1:
		return put(rec);
	case 2:
		return slot_of(rec) == CATALOG_ID ? 0 : catalog_erase(now.catalog, slot_of(rec));
	case 3:
		return check_room(rec);
	case 4:
		r = thin_metadata_commit(now.tmd);
		if (!r)
			catalog_committed(now.catalog);
		return r;
	case 5:
		return -ECANCELED; /* leads to an abort */
	case 6:
		close_catalog();
		open_catalog();
		return 0;
	default:
		HOLDS(!catalog_for_each(now.catalog, check_record, NULL));
		return 0;
	}
}

static void work_in_api(const struct record *records, size_t nr)
{
	int r;

	open_catalog();
	for (size_t i = 0; i < nr && now.catalog; i++) {
		if (!(records[i].op & OP_WORK))
			continue;
		r = api_work(&records[i]);
		sound(r);
		if (r && r != -ENOSPC && r != -EINVAL && r != -ENAMETOOLONG) {
			HOLDS(!abort_alone(now.tmd));
			catalog_aborted(now.catalog);
		}
	}
	HOLDS(!thin_metadata_commit(now.tmd));
	close_catalog();
}

/* ---- a pool ---- */

struct listing {
	struct volume_info volumes[MAX_VOLUMES];
	unsigned nr;
};

/* C2. */
static void list(struct listing *l)
{
	struct volume_info *info;
	struct volume *v;
	thin_id_t from = 0;

	for (l->nr = 0; l->nr < MAX_VOLUMES; from = info->id + 1) {
		info = &l->volumes[l->nr];
		if (pool_volume_next(now.pool, from, info))
			return;
		HOLDS(info->id >= from && !volume_name_check(info->name));
		for (unsigned i = 0; i < l->nr; i++)
			HOLDS(strcmp(l->volumes[i].name, info->name));
		HOLDS(!pool_volume_find(now.pool, info->name, &v) && volume_id(v) == info->id);
		volume_put(v);
		l->nr++;
	}
}

/* Returns whether it opens, as it must but for one reason. */
static bool open_pool(bool read_only)
{
	const struct pool_options options = {
		.read_only = read_only,
		.cache_bytes = MIB,
		.commit_interval_usec = USEC_PER_SEC,
		.zero_new_blocks = true,
	};
	struct tp_error error = { "" };
	int r = pool_open_devices(&options, now.meta, now.data, &now.pool, &error);

	if (r == -EUCLEAN && !read_only && strstr(error.text, "the catalog"))
		return false;
	REQUIRE(!r, "%s", error.text);
	return true;
}

static void close_pool(void)
{
	HOLDS(!pool_close(now.pool));
	now.pool = NULL;
}

static bool is_made_up(const struct volume_info *info)
{
	char begin[32];

	snprintf(begin, sizeof(begin), "thin-%u", info->id);
	return !strncmp(info->name, begin, strlen(begin));
}

static void same_listing(const struct listing *a, const struct listing *b)
{
	HOLDS(a->nr == b->nr);
	for (unsigned i = 0; i < a->nr; i++) {
		const struct volume_info *x = &a->volumes[i], *y = &b->volumes[i];

		REQUIRE(x->id == y->id &&
				(!strcmp(x->name, y->name) || (is_made_up(x) && is_made_up(y))),
			"%u '%s' was %u '%s'", y->id, y->name, x->id, x->name);
		HOLDS(x->size_bytes == y->size_bytes && x->mapped_bytes == y->mapped_bytes);
		HOLDS(x->read_only == y->read_only && x->has_origin == y->has_origin);
	}
}

static void reopen_pool(void)
{
	struct listing before, after;

	list(&before);
	close_pool();
	HOLDS(open_pool(false));
	list(&after);
	same_listing(&before, &after);
}

/* C1. */
static void look_read_only(void)
{
	struct io_device *meta = mem_device_clone(now.meta), *data = mem_device_clone(now.data);
	struct listing listing;

	mem_device_set_read_only(now.meta, true);
	mem_device_set_read_only(now.data, true);
	HOLDS(open_pool(true));
	list(&listing);
	close_pool();
	mem_device_set_read_only(now.meta, false);
	mem_device_set_read_only(now.data, false);
	HOLDS(!memcmp(mem_device_data(meta), mem_device_data(now.meta), io_device_size(meta)));
	HOLDS(!memcmp(mem_device_data(data), mem_device_data(now.data),
		      MIN(io_device_size(data), 4 * MIB)));
	io_device_close(meta);
	io_device_close(data);
}

static int run_command(const struct record *rec)
{
	static const enum pool_command_op ops[] = { POOL_CREATE, POOL_SNAPSHOT, POOL_DELETE,
						    POOL_RENAME, POOL_RESIZE,   POOL_SET_READ_ONLY,
						    POOL_COMMIT };
	struct pool_command cmd = { .op = ops[rec->op % OP_WORK % 9],
				    .flags = rec->aux % 64,
				    .size_bytes = rec->value % (4 * MIB) };

	if (cmd.op == POOL_RESIZE && rec->aux & 0x8000)
		cmd.size_bytes = rec->value;
	cmd.id = slot_of(rec);
	name_of(rec->slot, cmd.name);
	name_of(rec->value >> 56, cmd.new_name);
	return pool_command_run(now.pool, &cmd);
}

static int write_some(const struct record *rec)
{
	static char bytes[4096];
	struct pool_io io = { .op = rec->aux & 1 ? POOL_PUNCH : POOL_WRITE,
			      .offset = rec->value % (2 * MIB),
			      .length = sizeof(bytes),
			      .buffer = bytes };
	char name[VOLUME_NAME_MAX + 1];
	int r;

	name_of(rec->slot, name);
	r = pool_volume_find(now.pool, name, &io.volume);
	if (r)
		return r;
	r = volume_open(io.volume, true);
	if (!r) {
		r = pool_io_run(now.pool, now.q, &io);
		volume_close(io.volume);
	}
	volume_put(io.volume);
	return r;
}

static void work_in_pool(const struct record *records, size_t nr)
{
	struct listing listing;

	if (!open_pool(false))
		return;
	for (size_t i = 0; i < nr; i++) {
		if (!(records[i].op & OP_WORK))
			continue;
		if (records[i].op % OP_WORK % 9 < 7)
			sound(run_command(&records[i]));
		else if (records[i].op % OP_WORK % 9 == 7)
			sound(write_some(&records[i]));
		else
			reopen_pool();
	}
	list(&listing);
	reopen_pool();
	close_pool();
}

/* ---- one input ---- */

/* C4. */
static void check(void)
{
	const struct thin_check_options options = { .data_bytes = UINT64_MAX };
	struct thin_check_result result;

	HOLDS(!thin_check(now.meta, &options, &result));
	REQUIRE(!result.nr_damages && !result.nr_leaks, "%lu damages, %lu leaks",
		(unsigned long)result.nr_damages, (unsigned long)result.nr_leaks);
}

static void base_init(struct base *b, uint64_t block_bytes, bool has_catalog)
{
	struct pool_rig *rig = pool_rig_create_sized(block_bytes, 24, 512, MIB / 2);

	for (unsigned i = 0; i < 3; i++)
		rig_close_volume(rig_create_volume(rig, names[i], MIB));
	HOLDS(!rig_snapshot(rig, "a", "d"));
	HOLDS(!pool_rig_close(rig));
	b->meta = mem_device_clone(fault_device_inner(rig->meta));
	b->data = mem_device_clone(fault_device_inner(rig->data));
	pool_rig_destroy(rig);
	if (has_catalog)
		return;
	now.meta = b->meta;
	now.data = b->data;
	open_metadata();
	HOLDS(!thin_metadata_delete_thin(now.tmd, CATALOG_ID));
	HOLDS(!thin_metadata_commit(now.tmd));
	close_metadata();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	base_init(&bases[0], 64 * KIB, true);
	base_init(&bases[1], MIB, true);
	base_init(&bases[2], 64 * KIB, false);
	HOLDS(!io_queue_self(&now.q));
	log_set_level(LOG_LEVEL_ERR - 1);
	return 0;
}

static size_t read_records(struct fuzz_input *in, struct record *records)
{
	size_t nr = 0;

	for (; in->left && nr < MAX_RECORDS; nr++) {
		records[nr].op = fuzz_u8(in);
		records[nr].slot = fuzz_u8(in);
		records[nr].aux = fuzz_u16(in);
		records[nr].value = fuzz_u64(in);
	}
	return nr;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct record records[MAX_RECORDS];
	struct fuzz_input in = { data, size };
	uint8_t options = fuzz_u8(&in);
	unsigned base = options & NO_CATALOG ? 2 : options & LARGE_BLOCKS ? 1 : 0;
	size_t nr = read_records(&in, records);

	now.meta = mem_device_clone(bases[base].meta);
	now.data = mem_device_clone(bases[base].data);
	now.block_bytes = base == 1 ? MIB : 64 * KIB;
	open_metadata();
	for (size_t i = 0; i < nr; i++)
		if (!(records[i].op & OP_WORK))
			damage(&records[i]);
	HOLDS(!thin_metadata_commit(now.tmd));
	close_metadata();

	if (options & READ_ONLY)
		look_read_only();
	if (options & IN_API)
		work_in_api(records, nr);
	else
		work_in_pool(records, nr);
	check();
	io_device_close(now.meta);
	io_device_close(now.data);
	return 0;
}
