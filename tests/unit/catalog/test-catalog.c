/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for catalog/catalog.c and catalog-record.c, over the real thin layer and devices
 * in memory.  Each test says one fact.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "abort-alone.h"
#include "catalog-rig.h"
#include "fault-device.h"
#include "io/device.h"
#include "mem-device.h"
#include "prng.h"
#include "thin-image.h"
#include "thin/thin-metadata.h"
#include "thinpoold/catalog-format.h"
#include "util/crc32c.h"
#include "util/le.h"
#include "util/log.h"

#define GiB (UINT64_C(1) << 30)

/* ---- records ---- */

static struct catalog_record record(thin_id_t id, const char *name, uint64_t size)
{
	struct catalog_record rec = { .id = id, .size_bytes = size, .created_usec = 1000 + id };

	snprintf(rec.name, sizeof(rec.name), "%s", name);
	return rec;
}

static int put(struct rig *rig, thin_id_t id, uint64_t size)
{
	char name[32];

	snprintf(name, sizeof(name), "vol-%u", id);
	struct catalog_record rec = record(id, name, size);

	return catalog_put(rig->c, &rec);
}

struct found {
	thin_id_t id;
	struct catalog_record rec;
	unsigned nr, nr_damaged;
};

static int find_fn(void *ctx, const struct catalog_record *rec)
{
	struct found *f = ctx;

	f->nr++;
	f->nr_damaged += !rec->name[0];
	if (rec->id == f->id)
		f->rec = *rec;
	return 0;
}

static struct found find(struct rig *rig, thin_id_t id)
{
	struct found f = { .id = id };

	assert_int_equal(catalog_for_each(rig->c, find_fn, &f), 0);
	return f;
}

static void assert_size(struct rig *rig, thin_id_t id, uint64_t size)
{
	struct found f = find(rig, id);

	assert_int_equal(f.rec.id, id);
	assert_int_equal(f.rec.size_bytes, size);
}

/* Leave no free data block: give them all to device 1. */
static void fill_pool(struct rig *rig)
{
	struct thin_device *td;
	dblock_t block;
	vblock_t v = 0;

	assert_int_equal(thin_metadata_create_thin(rig->tmd, 1), 0);
	assert_int_equal(thin_device_open(rig->tmd, 1, &td), 0);
	while (thin_metadata_reserve_data_block(rig->tmd, &block) == 0)
		assert_int_equal(thin_insert_block(td, v++, block), 0);
	thin_device_close(td);
	rig_commit(rig);
}

/* Where the record of @id is on the data device. */
static uint8_t *raw_slot(struct rig *rig, thin_id_t id)
{
	uint64_t offset = (uint64_t)id * CATALOG_RECORD_BYTES;
	struct thin_device *td;
	struct thin_run run;

	assert_int_equal(thin_device_open(rig->tmd, CATALOG_ID, &td), 0);
	assert_int_equal(thin_find_run(td, offset / rig->block_bytes, 1, &run), 0);
	assert_true(run.mapped);
	thin_device_close(td);
	return (uint8_t *)mem_device_data(rig->data_mem) + run.dblock * rig->block_bytes +
	       offset % rig->block_bytes;
}

/* ---- finding the catalog ---- */

static void a_pool_gets_one_catalog(void **state)
{
	struct rig rig = { 0 };

	(void)state;
	rig_format(&rig, 64 * KiB, 16);
	assert_int_equal(catalog_open(rig.tmd, rig.data, &rig.c), -ENODATA);
	assert_int_equal(catalog_create(rig.tmd, rig.data), 0);
	assert_int_equal(thin_metadata_commit(rig.tmd), 0);
	assert_int_equal(catalog_create(rig.tmd, rig.data), -EEXIST);
	assert_int_equal(catalog_open(rig.tmd, rig.data, &rig.c), 0);
	assert_int_equal(find(&rig, 1).nr, 0);
	rig_end(&rig);
}

static void a_foreign_device_with_the_id_is_no_catalog(void **state)
{
	struct rig rig = { 0 };
	struct thin_device *td;
	dblock_t block;

	(void)state;
	rig_format(&rig, 64 * KiB, 16);
	assert_int_equal(thin_metadata_create_thin(rig.tmd, CATALOG_ID), 0);
	assert_int_equal(catalog_open(rig.tmd, rig.data, &rig.c), -ENODATA);
	assert_int_equal(thin_device_open(rig.tmd, CATALOG_ID, &td), 0);
	assert_int_equal(thin_metadata_reserve_data_block(rig.tmd, &block), 0);
	assert_int_equal(thin_insert_block(td, 262143, block), 0);
	thin_device_close(td);
	assert_int_equal(catalog_open(rig.tmd, rig.data, &rig.c), -ENODATA);
	assert_int_equal(thin_metadata_commit(rig.tmd), 0);
	rig_end(&rig);
}

static void a_damaged_catalog_is_not_taken_for_a_volume(void **state)
{
	struct rig rig = { 0 };

	(void)state;
	rig_make(&rig, 64 * KiB, 16);
	raw_slot(&rig, CATALOG_ID)[500] ^= 1;
	rig.c = catalog_close(rig.c);
	assert_int_equal(catalog_open(rig.tmd, rig.data, &rig.c), -EUCLEAN);
	rig_end(&rig);
}

/* ---- records ---- */

static void a_record_comes_back_as_it_was_put(void **state)
{
	struct catalog_record rec = record(77, "b\xc3\xa4r", UINT64_C(0x7fffffffffffffff));
	struct rig rig = { 0 };
	struct found f;

	(void)state;
	rig_make(&rig, 64 * KiB, 16);
	rec.flags = CATALOG_READ_ONLY | CATALOG_HAS_ORIGIN | 1u << 31;
	rec.origin = 0xabcdef;
	assert_int_equal(catalog_put(rig.c, &rec), 0);
	rig_commit(&rig);
	rig_reopen(&rig);
	f = find(&rig, 77);
	assert_int_equal(f.nr, 1);
	assert_memory_equal(&f.rec, &rec, sizeof(rec));
	rig_end(&rig);
}

static void a_name_may_fill_its_place_and_leaves_nothing_behind(void **state)
{
	char name[VOLUME_NAME_MAX + 1] = { 0 };
	const struct disk_catalog_record *d;
	struct catalog_record rec;
	struct rig rig = { 0 };

	(void)state;
	memset(name, 'n', VOLUME_NAME_MAX);
	rig_make(&rig, 64 * KiB, 16);
	rec = record(5, name, 1);
	assert_int_equal(catalog_put(rig.c, &rec), 0);
	rig_commit(&rig);
	rig_reopen(&rig);
	assert_string_equal(find(&rig, 5).rec.name, name);
	rec = record(5, "short", 1);
	assert_int_equal(catalog_put(rig.c, &rec), 0);
	rig_commit(&rig);
	d = (const struct disk_catalog_record *)raw_slot(&rig, 5);
	memset(name, 0, sizeof(name));
	assert_memory_equal(d->name, "short", 5);
	assert_memory_equal(d->name + 5, name, sizeof(d->name) - 5);
	rig_end(&rig);
}

static void records_come_in_order_from_all_over(void **state)
{
	static const thin_id_t ids[] = { 0, 63, 64, 4711, 65536, 0xfffffe };
	struct rig rig = { 0 };

	(void)state;
	rig_make(&rig, 192 * KiB, 16); /* does not divide 16 GiB */
	for (size_t i = 0; i < ARRAY_SIZE(ids); i++)
		assert_int_equal(put(&rig, ids[i], ids[i]), 0);
	rig_commit(&rig);
	rig_reopen(&rig);
	for (size_t i = 0; i < ARRAY_SIZE(ids); i++)
		assert_size(&rig, ids[i], ids[i]);
	assert_int_equal(find(&rig, 0).nr, ARRAY_SIZE(ids));
	rig_end(&rig);
}

static int stop_fn(void *ctx, const struct catalog_record *rec)
{
	*(thin_id_t *)ctx = rec->id;
	return 42;
}

static void the_walk_stops_when_told(void **state)
{
	struct rig rig = { 0 };
	thin_id_t seen = 0;

	(void)state;
	rig_make(&rig, 64 * KiB, 16);
	assert_int_equal(put(&rig, 5, 1), 0);
	assert_int_equal(put(&rig, 6, 1), 0);
	assert_int_equal(catalog_for_each(rig.c, stop_fn, &seen), 42);
	assert_int_equal(seen, 5);
	rig_commit(&rig);
	rig_end(&rig);
}

static void an_erased_record_is_gone(void **state)
{
	struct rig rig = { 0 };

	(void)state;
	rig_make(&rig, 64 * KiB, 16);
	assert_int_equal(put(&rig, 5, 1), 0);
	assert_int_equal(put(&rig, 6, 2), 0);
	rig_commit(&rig);
	assert_int_equal(catalog_erase(rig.c, 5), 0);
	assert_int_equal(catalog_erase(rig.c, 100000), 0); /* never was there */
	rig_commit(&rig);
	rig_reopen(&rig);
	assert_int_equal(find(&rig, 5).nr, 1);
	assert_size(&rig, 6, 2);
	rig_end(&rig);
}

static void bad_names_and_the_own_id_are_refused(void **state)
{
	struct catalog_record rec = record(1, "a/b", 0);
	struct rig rig = { 0 };

	(void)state;
	rig_make(&rig, 64 * KiB, 16);
	assert_int_equal(catalog_put(rig.c, &rec), -EINVAL);
	rec = record(CATALOG_ID, "ok", 0);
	assert_int_equal(catalog_put(rig.c, &rec), -EINVAL);
	assert_int_equal(catalog_erase(rig.c, CATALOG_ID), -EINVAL);
	rig_end(&rig);
}

static void what_a_later_version_keeps_in_a_record_survives(void **state)
{
	struct disk_catalog_record *d;
	struct rig rig = { 0 };

	(void)state;
	rig_make(&rig, 64 * KiB, 16);
	assert_int_equal(put(&rig, 5, 1), 0);
	rig_commit(&rig);

	d = (struct disk_catalog_record *)raw_slot(&rig, 5);
	d->reserved[700] = 0x5a;
	d->csum = le32_make(crc32c((uint8_t *)d + 12, sizeof(*d) - 12));
	rig_reopen(&rig);
	assert_int_equal(put(&rig, 5, 2), 0);
	rig_commit(&rig);
	assert_int_equal(((struct disk_catalog_record *)raw_slot(&rig, 5))->reserved[700], 0x5a);
	rig_end(&rig);
}

static void a_damaged_record_is_reported_and_the_others_are_read(void **state)
{
	struct rig rig = { 0 };
	struct found f;

	(void)state;
	rig_make(&rig, 64 * KiB, 16);
	for (thin_id_t id = 5; id < 8; id++)
		assert_int_equal(put(&rig, id, id), 0);
	rig_commit(&rig);
	raw_slot(&rig, 6)[30] ^= 1;
	rig_reopen(&rig);
	f = find(&rig, 6);
	assert_int_equal(f.nr, 3);
	assert_int_equal(f.nr_damaged, 1);
	assert_int_equal(f.rec.id, 6);
	assert_string_equal(f.rec.name, "");
	assert_size(&rig, 7, 7);
	/* It can be made good. */
	assert_int_equal(put(&rig, 6, 66), 0);
	rig_commit(&rig);
	assert_size(&rig, 6, 66);
	rig_end(&rig);
}

/* ---- transactions ---- */

static void an_abort_brings_the_committed_records_back(void **state)
{
	struct rig rig = { 0 };

	(void)state;
	rig_make(&rig, 64 * KiB, 16);
	assert_int_equal(put(&rig, 5, 1), 0);
	rig_commit(&rig);
	assert_int_equal(put(&rig, 5, 2), 0);
	assert_int_equal(put(&rig, 6, 2), 0);
	assert_int_equal(put(&rig, 500, 2), 0);
	assert_size(&rig, 5, 2);
	rig_abort(&rig);
	assert_size(&rig, 5, 1);
	assert_int_equal(find(&rig, 5).nr, 1);
	/* And the next transaction starts from there. */
	assert_int_equal(put(&rig, 6, 3), 0);
	rig_commit(&rig);
	rig_reopen(&rig);
	assert_size(&rig, 5, 1);
	assert_size(&rig, 6, 3);
	rig_end(&rig);
}

static void a_crash_leaves_the_committed_records_only(void **state)
{
	struct rig rig = { 0 };

	(void)state;
	rig_make(&rig, 64 * KiB, 32);
	for (uint64_t round = 1; round < 20; round++) {
		for (unsigned step = 0; step < 4; step++) {
			struct rig image = { 0 };

			assert_int_equal(put(&rig, step % 2 ? 3 : 300, round * 10 + step), 0);
			rig_crash_image(&rig, &image);
			if (round > 1) {
				assert_size(&image, 3, (round - 1) * 10 + 3);
				assert_size(&image, 300, (round - 1) * 10 + 2);
			} else {
				assert_int_equal(find(&image, 3).nr, 0);
			}
			rig_drop(&image);
		}
		rig_commit(&rig);
	}
	rig_end(&rig);
}

static void thousands_of_updates_in_a_transaction_are_cheap(void **state)
{
	struct rig rig = { 0 };
	struct thin_device *td;

	(void)state;
	rig_make(&rig, 64 * KiB, 64);
	fault_device_log_start(rig.data, false);
	for (uint64_t i = 0; i < 5000; i++)
		assert_int_equal(put(&rig, (thin_id_t)(1 + i % 640), i), 0);
	/* 11 blocks move once; each update writes a unit of the device. */
	assert_true(data_bytes_written(&rig) <= 11 * 64 * KiB + 5000 * 4 * KiB);
	rig_commit(&rig);
	for (thin_id_t id = 1; id <= 640; id++)
		assert_size(&rig, id, 4480 + id - 1 < 5000 ? 4480 + id - 1 : 3840 + id - 1);
	assert_int_equal(thin_device_open(rig.tmd, CATALOG_ID, &td), 0);
	assert_int_equal(thin_device_mapped_blocks(td), 11 + 2);
	thin_device_close(td);
	rig_end(&rig);
}

/* ---- space ---- */

static bool needs_commit(struct catalog *c, thin_id_t id)
{
	return catalog_check_room(c, &id, 1) == -EAGAIN;
}

static void a_full_pool_can_update_and_erase(void **state)
{
	static const thin_id_t both[] = { 5, 500 };
	struct rig rig = { 0 };

	(void)state;
	rig_make(&rig, 64 * KiB, 32);
	assert_int_equal(put(&rig, 5, 1), 0);
	assert_int_equal(put(&rig, 500, 1), 0);
	fill_pool(&rig);

	assert_false(needs_commit(rig.c, 5));
	assert_int_equal(catalog_check_room(rig.c, both, 2), -ENOSPC);
	assert_int_equal(put(&rig, 5, 2), 0);
	assert_false(needs_commit(rig.c, 6)); /* in place */
	assert_true(needs_commit(rig.c, 500));
	assert_int_equal(put(&rig, 500, 2), -ENOSPC);
	rig_commit(&rig);
	assert_false(needs_commit(rig.c, 500));
	assert_int_equal(catalog_erase(rig.c, 500), 0);
	rig_commit(&rig);
	/* Nothing helps a record that needs a data block of its own. */
	assert_int_equal(put(&rig, 5000, 1), -ENOSPC);
	assert_false(needs_commit(rig.c, 5000));
	rig_reopen(&rig);
	assert_size(&rig, 5, 2);
	assert_int_equal(find(&rig, 5).nr, 1);
	rig_end(&rig);
}

static void what_the_device_held_before_is_not_shown(void **state)
{
	struct rig rig = { 0 };
	struct catalog_record own = record(9, "old", 1);

	(void)state;
	rig_format(&rig, 64 * KiB, 16);
	/* Old records everywhere: the worst that can be found in a data block. */
	for (uint64_t i = 0; i < 16 * 64; i++) {
		uint8_t *slot = (uint8_t *)mem_device_data(rig.data_mem) + i * 1024;

		memset(slot, 0xaa, 1024);
	}
	mem_device_touch(rig.data_mem, 0, 16 * 64 * KiB);
	assert_int_equal(catalog_create(rig.tmd, rig.data), 0);
	assert_int_equal(thin_metadata_commit(rig.tmd), 0);
	assert_int_equal(catalog_open(rig.tmd, rig.data, &rig.c), 0);
	assert_int_equal(catalog_put(rig.c, &own), 0);
	rig_commit(&rig);
	assert_int_equal(put(&rig, 10, 1), 0);
	rig_commit(&rig);
	rig_reopen(&rig);
	assert_int_equal(find(&rig, 9).nr, 2);
	assert_int_equal(find(&rig, 9).nr_damaged, 0);
	rig_end(&rig);
}

static void a_huge_block_costs_what_its_records_do(void **state)
{
	struct rig rig = { 0 };

	(void)state;
	rig_make(&rig, GiB, 8);
	fault_device_log_start(rig.data, false);
	for (uint64_t i = 1; i <= 20; i++) {
		assert_int_equal(put(&rig, 7, i), 0);
		assert_int_equal(put(&rig, 1000000, i), 0);
		rig_commit(&rig);
		assert_true(data_bytes_written(&rig) < 512 * KiB);
	}
	rig_reopen(&rig);
	assert_size(&rig, 7, 20);
	assert_size(&rig, 1000000, 20);
	rig_end(&rig);
}

static void a_piece_is_copied_around_the_change(void **state)
{
	struct rig rig = { 0 };

	(void)state;
	rig_make(&rig, 4096 * KiB, 8); /* 64 chunks, four pieces */
	for (thin_id_t id = 1; id < 4096; id += 17)
		assert_int_equal(put(&rig, id, id), 0);
	rig_commit(&rig);
	for (thin_id_t id = 1; id < 4096; id += 17 * 16) {
		assert_int_equal(put(&rig, id, id + 1), 0);
		rig_commit(&rig);
	}
	rig_reopen(&rig);
	for (thin_id_t id = 1; id < 4096; id += 17)
		assert_size(&rig, id, (id - 1) % (17 * 16) == 0 ? id + 1 : id);
	rig_end(&rig);
}

/* Two records in different chunks of different data blocks: 64 is in the second of its block. */
static void the_spare_is_cleared_of_what_it_held(void **state)
{
	struct rig rig = { 0 };

	(void)state;
	for (int aborted = 0; aborted < 2; aborted++) {
		rig_make(&rig, 256 * KiB, 8);
		assert_int_equal(put(&rig, 64, 1), 0);
		assert_int_equal(put(&rig, 256, 1), 0);
		rig_commit(&rig);
		assert_int_equal(put(&rig, 64, 2), 0);
		aborted ? rig_abort(&rig) : rig_commit(&rig);
		assert_int_equal(put(&rig, 256, 2), 0);
		rig_commit(&rig);
		rig_reopen(&rig);
		assert_size(&rig, 64, aborted ? 1 : 2);
		assert_size(&rig, 256, 2);
		assert_int_equal(find(&rig, 64).nr, 2);
		rig_end(&rig);
	}
}

/* ---- others meddle ---- */

static void a_snapshot_of_the_catalog_keeps_its_content(void **state)
{
	uint8_t before[CATALOG_RECORD_BYTES], *slot;
	struct rig rig = { 0 };

	(void)state;
	rig_make(&rig, 64 * KiB, 32);
	assert_int_equal(put(&rig, 5, 1), 0);
	rig_commit(&rig);
	slot = raw_slot(&rig, 5);
	memcpy(before, slot, sizeof(before));
	assert_int_equal(thin_metadata_create_snap(rig.tmd, 1, CATALOG_ID), 0);
	rig_commit(&rig);
	for (uint64_t i = 2; i < 10; i++) {
		assert_int_equal(put(&rig, 5, i), 0);
		rig_commit(&rig);
		assert_memory_equal(slot, before, sizeof(before));
	}
	assert_size(&rig, 5, 9);
	rig_end(&rig);
}

static void a_lost_spare_is_replaced(void **state)
{
	struct thin_device *td;
	struct rig rig = { 0 };
	vblock_t next;

	(void)state;
	rig_make(&rig, 64 * KiB, 32);
	assert_int_equal(put(&rig, 5, 1), 0);
	assert_int_equal(thin_device_open(rig.tmd, CATALOG_ID, &td), 0);
	assert_int_equal(thin_remove_range(td, 262144, 262145, 1, &next), 0);
	thin_device_close(td);
	rig_commit(&rig);
	rig_reopen(&rig);
	assert_int_equal(put(&rig, 5, 2), 0);
	rig_commit(&rig);
	fill_pool(&rig);
	assert_int_equal(put(&rig, 5, 3), 0);
	rig_commit(&rig);
	rig_reopen(&rig);
	assert_size(&rig, 5, 3);
	rig_end(&rig);
}

/* ---- failing ---- */

static void a_failed_write_is_an_error_and_the_abort_heals(void **state)
{
	struct rig rig = { 0 };

	(void)state;
	rig_make(&rig, 64 * KiB, 32);
	assert_int_equal(put(&rig, 5, 1), 0);
	rig_commit(&rig);
	for (unsigned nth = 1; nth <= 3; nth++) {
		int r = 0;

		fault_device_fail_nth(rig.data, FAULT_OP(IO_WRITE), nth);
		for (thin_id_t id = 4; id < 8 && !r; id++)
			r = put(&rig, id, 99);
		assert_int_equal(r, -EIO);
		rig_abort(&rig);
		assert_size(&rig, 5, 1);
		assert_int_equal(find(&rig, 5).nr, 1);
	}
	rig_end(&rig);
}

static int change_records(struct rig *rig)
{
	int r = 0;

	if (!rig->c)
		r = catalog_open(rig->tmd, rig->data, &rig->c);
	if (!r)
		r = put(rig, 5, 99);
	if (!r)
		r = put(rig, 5001, 99); /* in another block */
	if (!r)
		r = catalog_erase(rig->c, 70);
	if (!r)
		r = thin_metadata_commit(rig->tmd);
	if (!r)
		catalog_committed(rig->c);
	return r;
}

static void assert_changed(struct rig *rig, bool changed)
{
	assert_size(rig, 5, changed ? 99 : 1);
	assert_int_equal(find(rig, 5001).rec.size_bytes, changed ? 99 : 0);
	assert_int_equal(find(rig, 70).rec.size_bytes, changed ? 0 : 2);
	assert_size(rig, 5000, 3);
}

/* A life in which the @nth such request fails; false: there was none. */
static bool fail_nth(struct rig *base, bool metadata, enum io_op op, uint64_t nth)
{
	struct io_device *dev;
	struct rig rig;
	bool met;
	int r;

	rig_clone(base, &rig);
	dev = metadata ? rig.meta : rig.data;
	rig_open_tmd(&rig);
	fault_device_fail_nth(dev, FAULT_OP(op), nth);
	r = change_records(&rig);
	met = fault_device_nr_failed(dev) > 0;
	fault_device_clear(dev);
	if (r) {
		assert_int_equal(r, -EIO);
		assert_true(met);
		if (rig.c)
			rig_abort(&rig);
		else
			assert_int_equal(catalog_open(rig.tmd, rig.data, &rig.c), 0);
		assert_changed(&rig, false);
		assert_int_equal(change_records(&rig), 0);
	}
	assert_changed(&rig, true);
	rig_reopen(&rig);
	assert_changed(&rig, true);
	rig_drop(&rig);
	return met;
}

static void whatever_fails_records_are_old_or_new(void **state)
{
	static const struct {
		bool metadata;
		enum io_op op;
	} what[] = {
		{ true, IO_READ }, { true, IO_WRITE }, { false, IO_READ }, { false, IO_WRITE }
	};
	struct rig base = { 0 };

	(void)state;
	rig_make(&base, 64 * KiB, 200);
	assert_int_equal(put(&base, 5, 1), 0);
	assert_int_equal(put(&base, 70, 2), 0);
	assert_int_equal(put(&base, 5000, 3), 0);
	rig_commit(&base);
	log_set_level(LOG_LEVEL_ERR - 1); /* errors are what this is about */
	for (unsigned i = 0; i < ARRAY_SIZE(what); i++) {
		uint64_t nth = 1;

		while (fail_nth(&base, what[i].metadata, what[i].op, nth))
			nth++;
		assert_true(nth > 2);
	}
	log_set_level(LOG_LEVEL_INFO);
	rig_end(&base);
}

/* ---- all of it, against a model ---- */

#define MODEL_IDS 400u

struct model {
	uint64_t size[MODEL_IDS]; /* 0: no record */
	thin_id_t spacing;        /* of the ids */
};

static int model_fn(void *ctx, const struct catalog_record *rec)
{
	struct model *m = ctx;
	unsigned i = rec->id / m->spacing;

	assert_true(rec->id % m->spacing == 0 && i < MODEL_IDS);
	assert_int_equal(rec->size_bytes, m->size[i]);
	m->size[i] = 0;
	return 0;
}

static void assert_model(struct rig *rig, const struct model *m)
{
	struct model left = *m;

	assert_int_equal(catalog_for_each(rig->c, model_fn, &left), 0);
	for (unsigned i = 0; i < MODEL_IDS; i++)
		assert_int_equal(left.size[i], 0);
}

static void assert_crash_image(struct rig *rig, const struct model *committed)
{
	struct rig image = { 0 };

	rig_crash_image(rig, &image);
	assert_model(&image, committed);
	rig_drop(&image);
}

static void random_changes(struct rig *rig, thin_id_t spacing)
{
	struct model now = { .spacing = spacing }, committed = now;
	uint64_t nr_ops = prng_ops(2000);
	struct prng p;

	prng_init(&p, prng_seed());
	for (uint64_t i = 1; i <= nr_ops; i++) {
		thin_id_t nr = (thin_id_t)prng_below(&p, MODEL_IDS), id = nr * spacing;
		uint64_t what = prng_below(&p, 100);

		if (what < 10 || needs_commit(rig->c, id)) {
			rig_commit(rig);
			committed = now;
		}
		if (what < 50) {
			assert_int_equal(put(rig, id, i), 0);
			now.size[nr] = i;
		} else if (what < 90) {
			assert_int_equal(catalog_erase(rig->c, id), 0);
			now.size[nr] = 0;
		} else if (what < 95) {
			what < 93 ? rig_abort(rig) : rig_reopen(rig);
			now = committed;
		} else if (what < 97) {
			assert_crash_image(rig, &committed);
		}
		if (i % 16 == 0)
			assert_model(rig, &now);
	}
}

static void random_changes_match_the_model(void **state)
{
	struct rig rig = { 0 };

	(void)state;
	rig_make(&rig, 64 * KiB, 14); /* 7 vblocks of records, own, spare: not enough to move all */
	random_changes(&rig, 1);
	rig_end(&rig);
}

static void random_changes_in_larger_blocks_match_the_model(void **state)
{
	struct rig rig = { 0 };

	(void)state;
	rig_make(&rig, 256 * KiB, 20);
	random_changes(&rig, 8);
	rig_end(&rig);
}

static void random_changes_in_used_blocks_match_the_model(void **state)
{
	struct rig rig = { 0 };

	(void)state;
	rig_format(&rig, 256 * KiB, 20);
	memset(mem_device_data(rig.data_mem), 0xaa, 20 * 256 * KiB);
	mem_device_touch(rig.data_mem, 0, 20 * 256 * KiB);
	assert_int_equal(catalog_create(rig.tmd, rig.data), 0);
	assert_int_equal(thin_metadata_commit(rig.tmd), 0);
	assert_int_equal(catalog_open(rig.tmd, rig.data, &rig.c), 0);
	random_changes(&rig, 8);
	rig_end(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_pool_gets_one_catalog),
		cmocka_unit_test(a_foreign_device_with_the_id_is_no_catalog),
		cmocka_unit_test(a_damaged_catalog_is_not_taken_for_a_volume),
		cmocka_unit_test(a_record_comes_back_as_it_was_put),
		cmocka_unit_test(a_name_may_fill_its_place_and_leaves_nothing_behind),
		cmocka_unit_test(records_come_in_order_from_all_over),
		cmocka_unit_test(the_walk_stops_when_told),
		cmocka_unit_test(an_erased_record_is_gone),
		cmocka_unit_test(bad_names_and_the_own_id_are_refused),
		cmocka_unit_test(what_a_later_version_keeps_in_a_record_survives),
		cmocka_unit_test(a_damaged_record_is_reported_and_the_others_are_read),
		cmocka_unit_test(an_abort_brings_the_committed_records_back),
		cmocka_unit_test(a_crash_leaves_the_committed_records_only),
		cmocka_unit_test(thousands_of_updates_in_a_transaction_are_cheap),
		cmocka_unit_test(a_full_pool_can_update_and_erase),
		cmocka_unit_test(what_the_device_held_before_is_not_shown),
		cmocka_unit_test(a_huge_block_costs_what_its_records_do),
		cmocka_unit_test(a_piece_is_copied_around_the_change),
		cmocka_unit_test(the_spare_is_cleared_of_what_it_held),
		cmocka_unit_test(a_snapshot_of_the_catalog_keeps_its_content),
		cmocka_unit_test(a_lost_spare_is_replaced),
		cmocka_unit_test(a_failed_write_is_an_error_and_the_abort_heals),
		cmocka_unit_test(whatever_fails_records_are_old_or_new),
		cmocka_unit_test(random_changes_match_the_model),
		cmocka_unit_test(random_changes_in_larger_blocks_match_the_model),
		cmocka_unit_test(random_changes_in_used_blocks_match_the_model),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("catalog", tests, NULL, NULL);
}
