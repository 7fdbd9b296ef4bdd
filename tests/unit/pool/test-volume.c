/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for pool/volume.c, volume-load.c and volume-commit.c: how volumes are found and
 * held, and what a pool looks like when it is opened.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <pthread.h>

#include "commands.h"
#include "pool/pool-internal.h"
#include "thin-image.h"
#include "thin/thin-metadata.h"
#include "thinpoold/catalog-format.h"
#include "util/clock.h"
#include "util/crc32c.h"
#include "util/le.h"
#include "util/log.h"

#define BLOCK (64 * KIB)
#define EMPTY (3 * BLOCK)

static struct pool_rig *rig;

static int setup(void **state)
{
	(void)state;
	rig = pool_rig_create(BLOCK, 512, 512);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	return pool_rig_end(rig, NULL);
}

static struct volume *get(thin_id_t id)
{
	struct volume *v = NULL;

	assert_int_equal(pool_volume_get(rig->pool, id, &v), 0);
	return v;
}

/* ---- finding and holding ---- */

static void a_volume_is_found_by_name_and_by_id(void **state)
{
	struct volume *v, *w;

	(void)state;
	assert_int_equal(create(rig, "a", 1), 0);
	assert_int_equal(pool_volume_find(rig->pool, "a", &v), 0);
	w = get(1);
	assert_ptr_equal(v, w);
	assert_int_equal(volume_id(v), 1);
	volume_put(v);
	volume_put(w);
	assert_int_equal(pool_volume_find(rig->pool, "b", &v), -ENOENT);
	assert_int_equal(pool_volume_get(rig->pool, 2, &v), -ENOENT);
	/* Neither the catalog nor what is no id. */
	assert_int_equal(pool_volume_get(rig->pool, THIN_ID_MAX, &v), -ENOENT);
	assert_int_equal(pool_volume_get(rig->pool, UINT32_MAX, &v), -ENOENT);
	assert_int_equal(pool_volume_find(rig->pool, ".catalog", &v), -ENOENT);
}

static void info_tells_what_is_known(void **state)
{
	uint64_t before = time_real_usec();
	struct volume_info info;
	struct volume *v;

	(void)state;
	v = rig_create_volume(rig, "a", 1000000);
	assert_int_equal(rig_fill(rig, v, 0, 2 * BLOCK, 1), 0);
	volume_get_info(v, &info);
	assert_int_equal(info.id, 1);
	assert_string_equal(info.name, "a");
	assert_int_equal(info.size_bytes, 1000000);
	assert_int_equal(info.mapped_bytes, 2 * BLOCK);
	assert_in_range(info.created_usec, before, time_real_usec());
	assert_int_equal(info.open_count, 1);
	assert_false(info.read_only || info.has_origin || info.unlinked);
	rig_close_volume(v);
	pool_rig_reopen(rig);
	assert_int_equal(info_of(rig, "a").created_usec, info.created_usec);
	assert_int_equal(info_of(rig, "a").generation, info.generation);
}

static void next_walks_the_visible_volumes(void **state)
{
	struct volume_info info;
	struct volume *v;

	(void)state;
	assert_int_equal(pool_volume_next(rig->pool, 0, &info), -ENODATA);
	assert_int_equal(create(rig, "a", 1), 0);
	v = rig_create_volume(rig, "b", 1);
	assert_int_equal(create(rig, "c", 1), 0);
	assert_int_equal(delete_volume(rig, 0, "b"), 0);
	assert_int_equal(pool_volume_next(rig->pool, 0, &info), 0);
	assert_int_equal(info.id, 1);
	assert_int_equal(pool_volume_next(rig->pool, 2, &info), 0);
	assert_int_equal(info.id, 3);
	assert_int_equal(pool_volume_next(rig->pool, 4, &info), -ENODATA);
	assert_int_equal(pool_volume_next(rig->pool, THIN_ID_MAX, &info), -ENODATA);
	rig_close_volume(v);
}

static void a_reference_keeps_a_deleted_volume(void **state)
{
	struct volume *v;

	(void)state;
	assert_int_equal(create(rig, "a", BLOCK), 0);
	v = get(1);
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 4), 0);
	assert_int_equal(delete_volume(rig, 0, "a"), 0);
	assert_int_equal(rig_commit(rig), 0);
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 4));
	volume_put(v);
	await_data_used(rig, EMPTY);
}

static void a_handle_keeps_a_volume_without_a_reference(void **state)
{
	struct volume *v;

	(void)state;
	v = rig_create_volume(rig, "a", BLOCK);
	volume_put(v);
	assert_int_equal(delete_volume(rig, 0, "a"), 0);
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 4), 0);
	assert_int_equal(rig_commit(rig), 0);
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 4));
	volume_close(v);
	await_data_used(rig, EMPTY);
}

static void handles_are_counted(void **state)
{
	struct volume *v;

	(void)state;
	assert_int_equal(create(rig, "a", BLOCK), 0);
	v = get(1);
	assert_int_equal(volume_open(v, true), 0);
	assert_int_equal(volume_open(v, false), 0);
	assert_int_equal(info_of(rig, "a").open_count, 2);
	volume_close(v);
	assert_int_equal(delete_volume(rig, POOL_CMD_IF_CLOSED, "a"), -EBUSY);
	volume_close(v);
	assert_int_equal(delete_volume(rig, POOL_CMD_IF_CLOSED, "a"), 0);
	volume_put(v);
}

/* ---- what an abort takes back ---- */

static void a_size_grown_by_a_lost_write_shrinks_back(void **state)
{
	static const struct fault broken = { .ops = FAULT_OP(IO_WRITE), .count = UINT64_MAX };
	struct volume *v;

	(void)state;
	v = rig_create_volume(rig, "a", 100);
	assert_int_equal(rig_fill(rig, v, 5 * BLOCK, 1000, 1), 0);
	assert_int_equal(volume_size(v), 5 * BLOCK + 1000);
	fault_device_add(rig->meta, &broken);
	assert_int_equal(rig_flush(rig, v), -EIO);
	assert_int_equal(volume_size(v), 100);
	fault_device_clear(rig->meta);
	rig_close_volume(v);
	pool_rig_reopen(rig);
	assert_int_equal(info_of(rig, "a").size_bytes, 100);
}

/* ---- opening what others have made or changed ---- */

static struct thin_metadata *open_metadata(void)
{
	struct thin_metadata_options options = { .cache_bytes = 1 << 20, .data = rig->data };
	struct thin_metadata *tmd = NULL;

	assert_int_equal(pool_rig_close(rig), 0);
	assert_int_equal(thin_metadata_open(rig->meta, &options, &tmd, NULL), 0);
	return tmd;
}

static void close_metadata(struct thin_metadata *tmd)
{
	assert_int_equal(thin_metadata_commit(tmd), 0);
	assert_int_equal(thin_metadata_close(tmd), 0);
	pool_rig_open(rig);
}

static void map_block(struct thin_metadata *tmd, thin_id_t id, vblock_t v)
{
	struct thin_device *td;
	dblock_t block;

	assert_int_equal(thin_device_open(tmd, id, &td), 0);
	assert_int_equal(thin_metadata_reserve_data_block(tmd, &block), 0);
	assert_int_equal(thin_insert_block(td, v, block), 0);
	thin_device_close(td);
}

/* A pool that dm-thin or LVM has made, with volumes 0, 7 and one that has the catalog's id. */
static void make_foreign_pool(void)
{
	struct thin_metadata_options options = { .cache_bytes = 1 << 20, .data = rig->data };
	struct thin_metadata *tmd = NULL;

	assert_int_equal(pool_rig_close(rig), 0);
	assert_int_equal(thin_metadata_format(rig->meta, BLOCK / 512, NULL), 0);
	assert_int_equal(thin_metadata_open(rig->meta, &options, &tmd, NULL), 0);
	assert_int_equal(thin_metadata_resize_data(tmd, 512), 0);
	assert_int_equal(thin_metadata_commit(tmd), 0);
	assert_int_equal(thin_metadata_create_thin(tmd, 0), 0);
	assert_int_equal(thin_metadata_create_thin(tmd, 7), 0);
	assert_int_equal(thin_metadata_create_thin(tmd, CATALOG_ID), 0);
	map_block(tmd, 7, 3);
	map_block(tmd, 7, 20);
	map_block(tmd, CATALOG_ID, 1);
	close_metadata(tmd);
}

static void a_pool_without_names_is_served_by_number(void **state)
{
	(void)state;
	make_foreign_pool();
	assert_false(rig_status(rig).has_catalog);
	assert_int_equal(rig_status(rig).nr_volumes, 3);
	assert_int_equal(info_of(rig, "thin-0").size_bytes, 0);
	assert_int_equal(info_of(rig, "thin-7").size_bytes, 21 * BLOCK);
	assert_int_equal(info_of(rig, "thin-16777215").size_bytes, 2 * BLOCK);
}

static void a_pool_without_names_has_fewer_commands(void **state)
{
	(void)state;
	make_foreign_pool();
	assert_int_equal(create(rig, "a", 1), -EOPNOTSUPP);
	assert_int_equal(create(rig, "thin-1", 1), -EOPNOTSUPP);
	assert_int_equal(rename_to(rig, 0, "thin-7", "a"), -EOPNOTSUPP);
	assert_int_equal(resize(rig, 0, "thin-7", 1), -EOPNOTSUPP);
	assert_int_equal(snapshot(rig, 0, "thin-7", "a"), -EOPNOTSUPP);
	assert_int_equal(snapshot(rig, 0, "thin-7", "thin-08"), -EOPNOTSUPP);
	assert_int_equal(snapshot(rig, 0, "thin-7", "thin-16777216"), -EOPNOTSUPP);
	assert_int_equal(snapshot(rig, 0, "thin-7", "thin-0"), -EEXIST);
	assert_int_equal(snapshot(rig, 0, "thin-7", "thin-8"), 0);
	assert_int_equal(delete_volume(rig, 0, "thin-7"), 0);
	for (int round = 0; round < 2; round++) {
		assert_int_equal(info_of(rig, "thin-8").size_bytes, 21 * BLOCK);
		assert_int_equal(info_of(rig, "thin-8").id, 8);
		assert_int_equal(rig_status(rig).nr_volumes, 3);
		pool_rig_reopen(rig);
	}
}

static void a_pool_without_names_lets_open_volumes_live(void **state)
{
	struct volume *v;

	(void)state;
	make_foreign_pool();
	v = rig_open_volume(rig, "thin-7");
	assert_int_equal(delete_volume(rig, 0, "thin-7"), 0);
	assert_int_equal(snapshot(rig, 0, "thin-0", "thin-7"), -EEXIST);
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	rig_close_volume(v);
	await_data_used(rig, BLOCK);
}

static void devices_and_records_need_not_match(void **state)
{
	struct thin_metadata *tmd;

	(void)state;
	assert_int_equal(create(rig, "a", 1), 0);
	assert_int_equal(create(rig, "b", 1), 0);
	assert_int_equal(create(rig, "thin-9", 1), 0);
	tmd = open_metadata();
	assert_int_equal(thin_metadata_delete_thin(tmd, 2), 0);
	assert_int_equal(thin_metadata_create_thin(tmd, 8), 0);
	assert_int_equal(thin_metadata_create_thin(tmd, 9), 0);
	map_block(tmd, 8, 4);
	close_metadata(tmd);

	assert_int_equal(rig_status(rig).nr_volumes, 4);
	assert_false(exists(rig, "b"));
	assert_int_equal(info_of(rig, "thin-8").size_bytes, 5 * BLOCK);
	assert_int_equal(info_of(rig, "thin-9").id, 3); /* who has the name keeps it */
	assert_int_equal(info_of(rig, "thin-9-2").id, 9);
	/* From now on they are like any other. */
	assert_int_equal(rename_to(rig, 0, "thin-8", "c"), 0);
	assert_int_equal(create(rig, "d", 77), 0);
	assert_int_equal(info_of(rig, "d").id, 2);
	pool_rig_reopen(rig);
	assert_int_equal(info_of(rig, "c").id, 8);
	assert_int_equal(info_of(rig, "c").size_bytes, 5 * BLOCK);
	assert_int_equal(info_of(rig, "d").size_bytes, 77);
}

/*
 * The record of a device that somebody else has made may need a data block of its own, and the last
 * one may just have been written to.
 */
static void a_size_without_room_for_its_first_record_costs_nothing_else(void **state)
{
	struct thin_metadata *tmd;
	struct volume *v, *pad;
	uint64_t n = 0;

	(void)state;
	tmd = open_metadata();
	assert_int_equal(thin_metadata_create_thin(tmd, 5000), 0);
	close_metadata(tmd);
	pad = rig_create_volume(rig, "pad", 1024 * BLOCK);
	while (rig_status(rig).data_total - rig_status(rig).data_used > BLOCK)
		assert_int_equal(rig_fill(rig, pad, n++ * BLOCK, BLOCK, 1), 0);
	v = rig_open_volume(rig, "thin-5000");
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 7), 0);
	assert_int_equal(rig_flush(rig, v), 0);
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 8), 0);
	rig_close_volume(v);
	rig_close_volume(pad);

	pool_rig_reopen(rig);
	pad = rig_open_volume(rig, "pad");
	assert_int_equal(info_of(rig, "thin-5000").size_bytes, BLOCK);
	v = rig_open_volume(rig, "thin-5000");
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 8));
	/* With room it gets a record, and goes like any other then. */
	assert_int_equal(rig_punch(rig, pad, 0, 4 * BLOCK), 0);
	assert_int_equal(rig_commit(rig), 0);
	assert_int_equal(rig_fill(rig, v, 2 * BLOCK, 100, 9), 0);
	assert_int_equal(rig_flush(rig, v), 0);
	rig_close_volume(v);
	rig_close_volume(pad);
	pool_rig_reopen(rig);
	assert_int_equal(info_of(rig, "thin-5000").size_bytes, 2 * BLOCK + 100);
}

/* Call @fn for the records of @name (old ones too) where the data is. */
static void change_record(const char *name, void (*fn)(struct disk_catalog_record *d))
{
	struct io_device *mem = fault_device_inner(rig->data);
	uint8_t *at = mem_device_data(mem);
	unsigned nr = 0;

	for (uint64_t i = 0; i < io_device_size(mem); i += CATALOG_RECORD_BYTES) {
		struct disk_catalog_record *d = (struct disk_catalog_record *)(at + i);

		if (strcmp((char *)d->name, name) == 0) {
			fn(d);
			nr++;
		}
	}
	assert_int_not_equal(nr, 0);
}

static void flip_a_bit(struct disk_catalog_record *d)
{
	d->size_bytes.b[6] ^= 1;
}

static void damage_record(const char *name)
{
	change_record(name, flip_a_bit);
}

static void call_it_a(struct disk_catalog_record *d)
{
	d->name[0] = 'a';
	d->csum = le32_make(crc32c((uint8_t *)d + 12, sizeof(*d) - 12));
}

static void two_records_with_one_name_are_both_served(void **state)
{
	(void)state;
	assert_int_equal(create(rig, "a", 1), 0);
	assert_int_equal(create(rig, "b", 2), 0);
	assert_int_equal(pool_rig_close(rig), 0);
	change_record("b", call_it_a);
	pool_rig_open(rig);
	assert_int_equal(info_of(rig, "a").size_bytes, 1);
	assert_int_equal(info_of(rig, "thin-2").size_bytes, 2);
	assert_int_equal(rename_to(rig, 0, "thin-2", "b"), 0);
	pool_rig_reopen(rig);
	assert_int_equal(info_of(rig, "b").size_bytes, 2);
}

static void a_name_that_a_second_record_has_does_not_come_back(void **state)
{
	(void)state;
	assert_int_equal(create(rig, "a", 1), 0);
	assert_int_equal(create(rig, "b", 2), 0);
	assert_int_equal(pool_rig_close(rig), 0);
	change_record("b", call_it_a);
	pool_rig_open(rig);
	assert_int_equal(delete_volume(rig, 0, "a"), 0);
	pool_rig_reopen(rig);
	assert_false(exists(rig, "a"));
	assert_int_equal(info_of(rig, "thin-2").size_bytes, 2);
}

/* ---- records without devices are told of when they are found ---- */

static unsigned nr_dropped;

static void count_dropped(enum log_level level, const char *line, void *ctx)
{
	(void)level;
	(void)ctx;
	nr_dropped += strstr(line, "is dropped") != NULL;
}

static bool orphan_is_erased(void *ctx)
{
	(void)ctx;
	nr_dropped = 0;
	pool_rig_reopen(rig);
	return nr_dropped == 0;
}

static void a_record_without_a_device_is_erased(void **state)
{
	struct thin_metadata *tmd;

	(void)state;
	assert_int_equal(create(rig, "a", 1), 0);
	tmd = open_metadata();
	assert_int_equal(thin_metadata_delete_thin(tmd, 1), 0);
	nr_dropped = 0;
	log_set_tap(count_dropped, NULL);
	close_metadata(tmd);
	assert_int_equal(nr_dropped, 1);
	assert_true(rig_await(rig, orphan_is_erased, NULL));
	log_set_tap(NULL, NULL);
}

static void a_deleted_volume_leaves_no_record(void **state)
{
	(void)state;
	assert_int_equal(create(rig, "a", 1), 0);
	assert_int_equal(delete_volume(rig, 0, "a"), 0);
	nr_dropped = 0;
	log_set_tap(count_dropped, NULL);
	pool_rig_reopen(rig);
	log_set_tap(NULL, NULL);
	assert_int_equal(nr_dropped, 0);
}

static void a_volume_with_a_damaged_record_is_read_only(void **state)
{
	struct volume *v;

	(void)state;
	v = rig_create_volume(rig, "victim", 10 * BLOCK);
	assert_int_equal(rig_fill(rig, v, 2 * BLOCK, 10, 6), 0);
	rig_close_volume(v);
	assert_int_equal(pool_rig_close(rig), 0);
	damage_record("victim");
	pool_rig_open(rig);
	assert_int_equal(info_of(rig, "thin-1").size_bytes, 3 * BLOCK);
	assert_true(info_of(rig, "thin-1").read_only);
	/* The way out. */
	assert_int_equal(snapshot(rig, 0, "thin-1", "rescued"), 0);
	v = rig_open_volume(rig, "rescued");
	assert_true(rig_reads_as(rig, v, 2 * BLOCK, 10, 6));
	rig_close_volume(v);
	assert_int_equal(delete_volume(rig, 0, "thin-1"), 0);
	pool_rig_reopen(rig);
	assert_int_equal(rig_status(rig).nr_volumes, 1);
}

static void a_damaged_catalog_opens_read_only(void **state)
{
	struct tp_error error = { "" };

	(void)state;
	assert_int_equal(create(rig, "a", BLOCK), 0);
	assert_int_equal(pool_rig_close(rig), 0);
	damage_record(".catalog");
	assert_int_equal(pool_open_devices(&rig->options, rig->meta, rig->data, &rig->pool, &error),
			 -EUCLEAN);
	assert_non_null(strstr(error.text, "read-only"));
	rig->options.read_only = true;
	pool_rig_open(rig);
	assert_true(exists(rig, "thin-1"));
}

/* ---- many ---- */

static void many(const char *what, unsigned nr, uint64_t since)
{
	print_message("# %s: %u volumes in %ju ms\n", what, nr,
		      (uintmax_t)((time_monotonic_usec() - since) / USEC_PER_MSEC));
}

#define MANY 1000u

static void start_each(struct async *a, enum pool_command_op op, const char *from, const char *to,
		       const char *what)
{
	uint64_t since = time_monotonic_usec();
	char name[32], new_name[32];

	for (unsigned i = 0; i < MANY; i++) {
		snprintf(name, sizeof(name), "%s%u", from, i);
		snprintf(new_name, sizeof(new_name), "%s%u", to, i);
		start(rig, &a[i], op, name, new_name, i);
	}
	for (unsigned i = 0; i < MANY; i++)
		assert_int_equal(finish(rig, &a[i]), 0);
	many(what, MANY, since);
}

static void a_thousand_volumes_come_and_go(void **state)
{
	struct async *a = calloc(MANY, sizeof(*a));
	uint64_t since;
	char name[32];

	(void)state;
	assert_non_null(a);
	start_each(a, POOL_CREATE, "vol", "", "created");
	start_each(a, POOL_SNAPSHOT, "vol", "snap", "snapshots");
	start_each(a, POOL_RENAME, "vol", "renamed", "renamed");
	since = time_monotonic_usec();
	pool_rig_reopen(rig);
	many("reopened", 2 * MANY, since);
	assert_int_equal(rig_status(rig).nr_volumes, 2 * MANY);
	for (unsigned i = 0; i < MANY; i++) {
		snprintf(name, sizeof(name), "renamed%u", i);
		assert_int_equal(info_of(rig, name).size_bytes, i);
		snprintf(name, sizeof(name), "snap%u", i);
		assert_int_equal(info_of(rig, name).size_bytes, i);
	}
	start_each(a, POOL_DELETE, "renamed", "", "deleted");
	start_each(a, POOL_DELETE, "snap", "", "deleted");
	assert_int_equal(rig_status(rig).nr_volumes, 0);
	pool_rig_reopen(rig);
	assert_int_equal(rig_status(rig).nr_volumes, 0);
	assert_int_equal(create(rig, "a", 1), 0);
	assert_int_equal(info_of(rig, "a").id, 1);
	free(a);
}

/* ---- threads ---- */

static atomic_bool stop;

static void *look_around(void *arg)
{
	struct pool *pool = rig->pool;
	uintptr_t nr = 0;

	while (!atomic_load(&stop)) {
		struct volume_info info;
		struct volume *v;

		for (thin_id_t id = 0; pool_volume_next(pool, id, &info) == 0; id = info.id + 1)
			nr++;
		if (pool_volume_find(pool, (char *)arg, &v) == 0) {
			if (volume_open(v, true) == 0)
				volume_close(v);
			volume_get_info(v, &info);
			volume_put(v);
		}
		if (pool_volume_get(pool, 1, &v) == 0)
			volume_put(v);
	}
	return (void *)nr;
}

static void others_may_look_while_volumes_come_and_go(void **state)
{
	static char a[] = "a", b[] = "b";
	pthread_t threads[2];

	(void)state;
	atomic_store(&stop, false);
	assert_int_equal(pthread_create(&threads[0], NULL, look_around, a), 0);
	assert_int_equal(pthread_create(&threads[1], NULL, look_around, b), 0);
	for (unsigned i = 0; i < 200; i++) {
		assert_int_equal(create(rig, "a", i), 0);
		assert_int_equal(snapshot(rig, 0, "a", "c"), 0);
		assert_int_equal(rename_to(rig, 0, "a", "b"), 0);
		assert_int_equal(delete_volume(rig, 0, "b"), 0);
		assert_int_equal(delete_volume(rig, 0, "c"), 0);
	}
	atomic_store(&stop, true);
	assert_int_equal(pthread_join(threads[0], NULL), 0);
	assert_int_equal(pthread_join(threads[1], NULL), 0);
	/* None is left behind: a lost wake-up would leave one for ever. */
	await_data_used(rig, EMPTY);
	assert_int_equal(create(rig, "a", 1), 0);
	assert_int_equal(info_of(rig, "a").id, 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

/* ---- what cannot be read ---- */

/* The records of "a" and of "far" lie in two blocks; that of "far" cannot be read. */
static void read_only_a_pool_is_served_without_the_names_it_cannot_read(void **state)
{
	struct fault fault = { .ops = FAULT_OP(IO_READ), .count = UINT64_MAX, .length = BLOCK };
	struct io_device *mem = fault_device_inner(rig->data);
	struct pool_options options = rig->options;
	struct thin_metadata *tmd;
	uint64_t at = 0;

	(void)state;
	assert_int_equal(create(rig, "a", BLOCK), 0);
	tmd = open_metadata();
	assert_int_equal(thin_metadata_create_thin(tmd, 5000), 0);
	close_metadata(tmd);
	assert_int_equal(rename_to(rig, 0, "thin-5000", "far"), 0);
	while (strcmp((char *)((struct disk_catalog_record *)((uint8_t *)mem_device_data(mem) + at))
			      ->name,
		      "far") != 0)
		at += CATALOG_RECORD_BYTES;
	fault.offset = at / BLOCK * BLOCK;
	assert_int_equal(pool_rig_close(rig), 0);
	fault_device_add(rig->data, &fault);

	assert_int_equal(pool_open_devices(&options, rig->meta, rig->data, &rig->pool, NULL), -EIO);
	rig->options.read_only = true;
	pool_rig_open(rig);
	assert_int_equal(info_of(rig, "a").size_bytes, BLOCK);
	assert_int_equal(info_of(rig, "thin-5000").id, 5000);
	assert_false(exists(rig, "far"));

	fault_device_clear(rig->data);
	pool_rig_reopen(rig);
	assert_true(exists(rig, "far"));
}

static int teardown_damaged(void **state)
{
	(void)state;
	return pool_rig_end_failed(rig, NULL);
}

/* Its record is not dropped, so that a repair finds the name again. */
static void mappings_without_details_are_not_taken_for_nothing(void **state)
{
	struct pool_options options = rig->options;
	struct thin_metadata *tmd;

	(void)state;
	assert_int_equal(create(rig, "a", BLOCK), 0);
	assert_int_equal(create(rig, "b", BLOCK), 0);
	tmd = open_metadata();
	thin_forget_details(tmd, 2);
	assert_int_equal(thin_metadata_commit(tmd), 0);
	assert_int_equal(thin_metadata_close(tmd), 0);
	assert_int_equal(pool_open_devices(&options, rig->meta, rig->data, &rig->pool, NULL),
			 -EUCLEAN);
	rig->options.read_only = true;
	pool_rig_open(rig);
	assert_true(exists(rig, "a"));
	assert_false(exists(rig, "b"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_volume_is_found_by_name_and_by_id),
		TEST(info_tells_what_is_known),
		TEST(next_walks_the_visible_volumes),
		TEST(a_reference_keeps_a_deleted_volume),
		TEST(a_handle_keeps_a_volume_without_a_reference),
		TEST(handles_are_counted),
		TEST(a_size_grown_by_a_lost_write_shrinks_back),
		TEST(a_pool_without_names_is_served_by_number),
		TEST(a_pool_without_names_has_fewer_commands),
		TEST(a_pool_without_names_lets_open_volumes_live),
		TEST(devices_and_records_need_not_match),
		TEST(read_only_a_pool_is_served_without_the_names_it_cannot_read),
		cmocka_unit_test_setup_teardown(mappings_without_details_are_not_taken_for_nothing,
						setup, teardown_damaged),
		TEST(a_size_without_room_for_its_first_record_costs_nothing_else),
		TEST(two_records_with_one_name_are_both_served),
		TEST(a_name_that_a_second_record_has_does_not_come_back),
		TEST(a_record_without_a_device_is_erased),
		TEST(a_deleted_volume_leaves_no_record),
		TEST(a_volume_with_a_damaged_record_is_read_only),
		TEST(a_damaged_catalog_opens_read_only),
		TEST(a_thousand_volumes_come_and_go),
		TEST(others_may_look_while_volumes_come_and_go),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("volume", tests, NULL, NULL);
}
