/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for pool/command.c and pool/volume-remove.c: what commands do to names, sizes and
 * content, what is left of them after failures and crashes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>

#include "commands.h"
#include "prng.h"

#define BLOCK (64 * KIB)
#define EMPTY (3 * BLOCK) /* a catalog with records of small ids */

static struct pool_rig *rig;

static int setup(void **state)
{
	(void)state;
	rig = pool_rig_create(BLOCK, 256, 512);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	return pool_rig_end(rig, NULL);
}

static void fill(const char *name, uint64_t offset, uint64_t length, int byte)
{
	struct volume *v = rig_open_volume(rig, name);

	assert_int_equal(rig_fill(rig, v, offset, length, byte), 0);
	rig_close_volume(v);
}

static bool reads_as(struct pool_rig *any, const char *name, uint64_t offset, uint64_t length,
		     int byte)
{
	struct volume *v;
	bool same;

	assert_int_equal(pool_volume_find(any->pool, name, &v), 0);
	same = rig_reads_as(any, v, offset, length, byte);
	volume_put(v);
	return same;
}

/* No free data block is left. */
static void fill_pool(void)
{
	struct volume *v;

	assert_int_equal(create(rig, "filler", 256 * BLOCK), 0);
	v = rig_open_volume(rig, "filler");
	for (uint64_t i = 0; rig_fill(rig, v, i * BLOCK, BLOCK, 1) == 0; i++)
		;
	rig_close_volume(v);
	assert_int_equal(rig_commit(rig), 0);
}

/* ---- create ---- */

static void a_created_volume_is_there_after_a_crash(void **state)
{
	struct pool_rig *image;

	(void)state;
	assert_int_equal(create(rig, "a", 12345), 0);
	image = crash_image(rig);
	assert_int_equal(info_of(image, "a").size_bytes, 12345);
	assert_int_equal(info_of(image, "a").id, 1);
	assert_int_equal(info_of(image, "a").generation, info_of(rig, "a").generation);
	pool_rig_destroy(image);
}

static void create_refuses_what_cannot_be(void **state)
{
	char name[VOLUME_NAME_MAX + 1];

	(void)state;
	memset(name, 'x', sizeof(name)); /* without an end */
	assert_int_equal(create(rig, "", 1), -EINVAL);
	assert_int_equal(create(rig, "a/b", 1), -EINVAL);
	assert_int_equal(create(rig, ".a", 1), -EINVAL);
	struct pool_command cmd = command(POOL_CREATE, 0, "", "", 1);
	memcpy(cmd.name, name, sizeof(name));
	assert_int_equal(pool_command_run(rig->pool, &cmd), -ENAMETOOLONG);
	assert_int_equal(create(rig, "a", (uint64_t)INT64_MAX + 1), -EFBIG);
	assert_int_equal(create(rig, "a", UINT64_MAX), -EFBIG);
	assert_int_equal(create(rig, "a", 1), 0);
	assert_int_equal(create(rig, "a", 1), -EEXIST);
}

static void a_size_may_be_any_up_to_the_limit(void **state)
{
	(void)state;
	assert_int_equal(create(rig, "none", 0), 0);
	assert_int_equal(create(rig, "odd", 511), 0);
	assert_int_equal(create(rig, "all", MIN((UINT64_C(1) << 40) * BLOCK, INT64_MAX)), 0);
	pool_rig_reopen(rig);
	assert_int_equal(info_of(rig, "none").size_bytes, 0);
	assert_int_equal(info_of(rig, "odd").size_bytes, 511);
	assert_true(reads_as(rig, "all", (UINT64_C(1) << 40) * BLOCK - BLOCK, BLOCK, 0));
}

static void the_smallest_free_id_is_taken(void **state)
{
	char name[16];

	(void)state;
	for (thin_id_t id = 1; id <= 70; id++) {
		struct pool_command cmd = command(POOL_CREATE, 0, "", "", 1);

		snprintf(cmd.name, sizeof(cmd.name), "v%u", id);
		assert_int_equal(pool_command_run(rig->pool, &cmd), 0);
		assert_int_equal(cmd.id, id);
	}
	for (thin_id_t id = 5; id <= 66; id += 61) {
		snprintf(name, sizeof(name), "v%u", id);
		assert_int_equal(delete_volume(rig, 0, name), 0);
	}
	assert_int_equal(create(rig, "x", 1), 0);
	assert_int_equal(info_of(rig, "x").id, 5);
	assert_int_equal(create(rig, "y", 1), 0);
	assert_int_equal(info_of(rig, "y").id, 66);
	assert_int_equal(create(rig, "z", 1), 0);
	assert_int_equal(info_of(rig, "z").id, 71);
}

static void an_open_deleted_volume_keeps_its_id(void **state)
{
	struct volume_info before;
	struct volume *v;

	(void)state;
	v = rig_create_volume(rig, "a", 1);
	assert_int_equal(rig_fill(rig, v, 0, 1, 1), 0);
	before = info_of(rig, "a");
	assert_int_equal(delete_volume(rig, 0, "a"), 0);
	assert_int_equal(create(rig, "a", 1), 0);
	assert_int_equal(info_of(rig, "a").id, 2);
	rig_close_volume(v);
	await_data_used(rig, EMPTY);
	assert_int_equal(create(rig, "b", 1), 0);
	assert_int_equal(info_of(rig, "b").id, before.id);
	assert_int_not_equal(info_of(rig, "b").generation, before.generation);
}

/* ---- snapshot ---- */

static void a_snapshot_keeps_what_was_there(void **state)
{
	struct volume_info info;

	(void)state;
	assert_int_equal(create(rig, "a", 10 * BLOCK + 5), 0);
	fill("a", 0, 2 * BLOCK, 1);
	assert_int_equal(snapshot(rig, 0, "a", "s"), 0);
	fill("a", BLOCK, BLOCK, 2);
	fill("s", 0, BLOCK, 3);
	info = info_of(rig, "s");
	assert_int_equal(info.size_bytes, 10 * BLOCK + 5);
	assert_true(info.has_origin);
	assert_int_equal(info.origin, info_of(rig, "a").id);
	assert_false(info.read_only);
	pool_rig_reopen(rig);
	assert_true(reads_as(rig, "a", 0, BLOCK, 1));
	assert_true(reads_as(rig, "a", BLOCK, BLOCK, 2));
	assert_true(reads_as(rig, "s", 0, BLOCK, 3));
	assert_true(reads_as(rig, "s", BLOCK, BLOCK, 1));
	assert_true(info_of(rig, "s").has_origin);
}

static void a_snapshot_may_be_read_only(void **state)
{
	struct volume *v;

	(void)state;
	assert_int_equal(create(rig, "a", BLOCK), 0);
	assert_int_equal(snapshot(rig, POOL_CMD_READ_ONLY, "a", "s"), 0);
	for (int round = 0; round < 2; round++) {
		assert_true(info_of(rig, "s").read_only);
		assert_int_equal(pool_volume_find(rig->pool, "s", &v), 0);
		assert_int_equal(volume_open(v, true), -EROFS);
		assert_int_equal(volume_open(v, false), 0);
		assert_int_equal(rig_fill(rig, v, 0, 512, 1), -EROFS);
		rig_close_volume(v);
		assert_int_equal(resize(rig, 0, "s", 2 * BLOCK), -EROFS);
		pool_rig_reopen(rig);
	}
	assert_int_equal(rename_to(rig, 0, "s", "t"), 0);
	assert_int_equal(snapshot(rig, 0, "t", "u"), 0);
	assert_false(info_of(rig, "u").read_only);
	assert_int_equal(delete_volume(rig, 0, "t"), 0);
}

static void a_size_grown_by_writes_is_in_both_records(void **state)
{
	struct pool_rig *image;

	(void)state;
	assert_int_equal(create(rig, "a", 100), 0);
	fill("a", 3 * BLOCK, 1000, 7);
	assert_int_equal(snapshot(rig, 0, "a", "s"), 0);
	image = crash_image(rig);
	assert_int_equal(info_of(image, "a").size_bytes, 3 * BLOCK + 1000);
	assert_int_equal(info_of(image, "s").size_bytes, 3 * BLOCK + 1000);
	assert_true(reads_as(image, "s", 3 * BLOCK, 1000, 7));
	pool_rig_destroy(image);
}

static void a_flush_makes_a_grown_size_durable(void **state)
{
	struct pool_rig *image;
	struct volume *v;

	(void)state;
	v = rig_create_volume(rig, "a", 0);
	assert_int_equal(rig_fill(rig, v, 0, 5 * BLOCK + 1, 7), 0);
	assert_int_equal(rig_flush(rig, v), 0);
	image = crash_image(rig);
	assert_int_equal(info_of(image, "a").size_bytes, 5 * BLOCK + 1);
	pool_rig_destroy(image);
	rig_close_volume(v);
}

static void snapshot_refuses_what_cannot_be(void **state)
{
	(void)state;
	assert_int_equal(create(rig, "a", 1), 0);
	assert_int_equal(create(rig, "b", 1), 0);
	assert_int_equal(snapshot(rig, 0, "x", "s"), -ENOENT);
	assert_int_equal(snapshot(rig, 0, "a", "b"), -EEXIST);
	assert_int_equal(snapshot(rig, 0, "a", "a"), -EEXIST);
	assert_int_equal(snapshot(rig, 0, "a", "s/"), -EINVAL);
}

/* ---- delete ---- */

static void delete_gives_the_space_back(void **state)
{
	(void)state;
	assert_int_equal(create(rig, "a", 10 * BLOCK), 0);
	fill("a", 0, 10 * BLOCK, 1);
	assert_int_equal(delete_volume(rig, 0, "a"), 0);
	assert_false(exists(rig, "a"));
	await_data_used(rig, EMPTY);
	assert_int_equal(delete_volume(rig, 0, "a"), -ENOENT);
}

static void an_open_volume_lives_until_it_is_closed(void **state)
{
	struct volume_info info;
	struct volume *v;
	thin_id_t id;

	(void)state;
	v = rig_create_volume(rig, "a", 2 * BLOCK);
	id = volume_id(v);
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	assert_int_equal(delete_volume(rig, POOL_CMD_IF_CLOSED, "a"), -EBUSY);
	assert_int_equal(delete_volume(rig, 0, "a"), 0);
	assert_false(exists(rig, "a"));
	assert_true(id_exists(rig, id));
	volume_get_info(v, &info);
	assert_true(info.unlinked);
	assert_int_equal(rig_fill(rig, v, BLOCK, BLOCK, 2), 0);
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 1));
	struct pool_command cmd = command(POOL_RESIZE, POOL_CMD_BY_ID, "", "", 3 * BLOCK);
	cmd.id = id;
	assert_int_equal(pool_command_run(rig->pool, &cmd), 0);
	assert_int_equal(volume_size(v), 3 * BLOCK);
	rig_close_volume(v);
	await_data_used(rig, EMPTY);
	assert_false(id_exists(rig, id));
}

static void an_unlinked_volume_is_removed_after_a_crash(void **state)
{
	struct pool_rig *image;
	struct volume *v;

	(void)state;
	v = rig_create_volume(rig, "a", 2 * BLOCK);
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	assert_int_equal(delete_volume(rig, 0, "a"), 0);
	image = crash_image(rig);
	assert_false(exists(image, "a"));
	await_data_used(image, EMPTY);
	assert_int_equal(pool_rig_close(image), 0);
	assert_true(pool_rig_is_clean(image));
	pool_rig_destroy(image);
	rig_close_volume(v);
}

static void a_large_volume_goes_in_slices_also_over_a_crash(void **state)
{
	struct pool_rig *big = pool_rig_create(BLOCK, 20000, 512), *image;
	struct pool_command cmd = command(POOL_DELETE, 0, "a", "", 0);
	struct volume *v;

	(void)state;
	v = rig_create_volume(big, "a", 19000 * BLOCK);
	assert_int_equal(rig_io(big, v, POOL_ALLOCATE, 0, 19000 * BLOCK, NULL), 0);
	rig_close_volume(v);
	assert_int_equal(rig_commit(big), 0);
	assert_int_equal(pool_command_run(big->pool, &cmd), 0);
	image = crash_image(big);
	assert_false(exists(image, "a"));
	await_data_used(image, EMPTY);
	assert_int_equal(pool_rig_close(image), 0);
	assert_true(pool_rig_is_clean(image));
	pool_rig_destroy(image);
	/* Closing in the middle of it is fine, too. */
	pool_rig_reopen(big);
	await_data_used(big, EMPTY);
	assert_int_equal(pool_rig_close(big), 0);
	assert_true(pool_rig_is_clean(big));
	pool_rig_destroy(big);
}

/* ---- rename ---- */

static void rename_gives_another_name(void **state)
{
	thin_id_t id;

	(void)state;
	assert_int_equal(create(rig, "a", 5), 0);
	id = info_of(rig, "a").id;
	assert_int_equal(rename_to(rig, 0, "a", "b"), 0);
	assert_false(exists(rig, "a"));
	assert_int_equal(info_of(rig, "b").id, id);
	assert_int_equal(rename_to(rig, 0, "b", "b"), 0);
	assert_int_equal(rename_to(rig, 0, "a", "c"), -ENOENT);
	assert_int_equal(rename_to(rig, 0, "b", "c\n"), -EINVAL);
	pool_rig_reopen(rig);
	assert_false(exists(rig, "a"));
	assert_int_equal(info_of(rig, "b").id, id);
}

static void rename_replaces_the_old_owner_of_the_name(void **state)
{
	struct volume *v;

	(void)state;
	assert_int_equal(create(rig, "a", 1), 0);
	assert_int_equal(create(rig, "b", 2), 0);
	fill("b", 0, BLOCK, 9);
	assert_int_equal(rename_to(rig, POOL_CMD_NO_REPLACE, "a", "b"), -EEXIST);
	v = rig_open_volume(rig, "b");
	assert_int_equal(rename_to(rig, POOL_CMD_IF_CLOSED, "a", "b"), -EBUSY);
	assert_int_equal(rename_to(rig, 0, "a", "b"), 0);
	assert_int_equal(info_of(rig, "b").size_bytes, 1);
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 9));
	rig_close_volume(v);
	await_data_used(rig, EMPTY);
	assert_int_equal(create(rig, "c", 3), 0);
	assert_int_equal(rename_to(rig, 0, "c", "b"), 0);
	pool_rig_reopen(rig);
	assert_int_equal(info_of(rig, "b").size_bytes, 3);
	assert_int_equal(rig_status(rig).nr_volumes, 1);
}

static void exchange_swaps_two_names(void **state)
{
	(void)state;
	assert_int_equal(create(rig, "a", 1), 0);
	assert_int_equal(rename_to(rig, POOL_CMD_EXCHANGE, "a", "b"), -ENOENT);
	assert_int_equal(create(rig, "b", 2), 0);
	assert_int_equal(rename_to(rig, POOL_CMD_EXCHANGE, "a", "b"), 0);
	for (int round = 0; round < 2; round++) {
		assert_int_equal(info_of(rig, "a").size_bytes, 2);
		assert_int_equal(info_of(rig, "b").size_bytes, 1);
		pool_rig_reopen(rig);
	}
}

/* ---- resize ---- */

static void a_volume_grows_and_reads_zeros_there(void **state)
{
	(void)state;
	assert_int_equal(create(rig, "a", 100), 0);
	assert_int_equal(resize(rig, 0, "a", 2 * BLOCK + 3), 0);
	pool_rig_reopen(rig);
	assert_int_equal(info_of(rig, "a").size_bytes, 2 * BLOCK + 3);
	assert_true(reads_as(rig, "a", 0, 2 * BLOCK, 0));
	assert_int_equal(resize(rig, 0, "a", UINT64_MAX), -EFBIG);
	assert_int_equal(resize(rig, 0, "b", 1), -ENOENT);
	assert_int_equal(resize(rig, 0, "a", 2 * BLOCK + 3), 0);
}

static void what_was_cut_off_never_comes_back(void **state)
{
	(void)state;
	assert_int_equal(create(rig, "a", 4 * BLOCK), 0);
	fill("a", 0, 4 * BLOCK, 5);
	assert_int_equal(snapshot(rig, 0, "a", "s"), 0);
	assert_int_equal(resize(rig, 0, "a", BLOCK + 700), -EINVAL);
	assert_int_equal(info_of(rig, "a").size_bytes, 4 * BLOCK);
	assert_int_equal(resize(rig, POOL_CMD_SHRINK, "a", BLOCK + 700), 0);
	assert_int_equal(info_of(rig, "a").mapped_bytes, 2 * BLOCK);
	assert_int_equal(resize(rig, 0, "a", 4 * BLOCK), 0);
	pool_rig_reopen(rig);
	assert_true(reads_as(rig, "a", 0, BLOCK + 700, 5));
	assert_true(reads_as(rig, "a", BLOCK + 700, 3 * BLOCK - 700, 0));
	assert_true(reads_as(rig, "s", 0, 4 * BLOCK, 5));
	assert_int_equal(resize(rig, POOL_CMD_SHRINK, "a", 0), 0);
	assert_int_equal(info_of(rig, "a").mapped_bytes, 0);
}

/* What is left of a block shared with a snapshot has to be copied, and there is nowhere to. */
static void a_cut_that_finds_no_block_fails_and_keeps_all(void **state)
{
	struct volume *v;
	int r;

	(void)state;
	assert_int_equal(create(rig, "a", 4 * BLOCK), 0);
	fill("a", 0, 4 * BLOCK, 1);
	assert_int_equal(snapshot(rig, 0, "a", "s"), 0);
	assert_int_equal(create(rig, "b", 256 * BLOCK), 0);
	v = rig_open_volume(rig, "b");
	for (uint64_t n = 0; !(r = rig_fill(rig, v, n * BLOCK, BLOCK, 2));)
		n++;
	rig_close_volume(v);
	assert_int_equal(r, -ENOSPC);
	assert_int_equal(resize(rig, POOL_CMD_SHRINK, "a", BLOCK + 700), -ENOSPC);

	/* The same where writers wait: a command does not. */
	rig->options.queue_if_no_space = true;
	pool_rig_reopen(rig);
	assert_int_equal(resize(rig, POOL_CMD_SHRINK, "a", BLOCK + 700), -ENOSPC);
	assert_int_equal(info_of(rig, "a").size_bytes, 4 * BLOCK);
	v = rig_open_volume(rig, "a");
	assert_true(rig_reads_as(rig, v, 0, 4 * BLOCK, 1));
	/* Whole blocks need none.  What that frees is found, though only a commit makes it free. */
	assert_int_equal(rig_punch(rig, v, 3 * BLOCK, BLOCK), 0);
	rig_close_volume(v);
	assert_int_equal(delete_volume(rig, 0, "s"), 0);
	assert_int_equal(resize(rig, POOL_CMD_SHRINK, "a", BLOCK + 700), 0);
}

/* ---- read-only volumes ---- */

static int set_read_only(const char *name, bool read_only)
{
	return run(rig, POOL_SET_READ_ONLY, read_only ? POOL_CMD_READ_ONLY : 0, name, "", 0);
}

static void a_volume_can_be_made_read_only_and_writable_again(void **state)
{
	static const struct fault broken = { .ops = FAULT_OP(IO_WRITE), .count = UINT64_MAX };
	struct volume *v;

	(void)state;
	v = rig_create_volume(rig, "a", 2 * BLOCK);
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	assert_int_equal(set_read_only("none", true), -ENOENT);
	assert_int_equal(set_read_only("a", true), 0);
	assert_true(info_of(rig, "a").read_only);
	/* Who has it open is refused as well. */
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 2), -EROFS);
	assert_int_equal(rig_punch(rig, v, 0, BLOCK), -EROFS);
	assert_int_equal(volume_open(v, true), -EROFS);
	assert_int_equal(resize(rig, 0, "a", 3 * BLOCK), -EROFS);
	rig_close_volume(v);
	pool_rig_reopen(rig);
	assert_true(info_of(rig, "a").read_only);
	assert_true(reads_as(rig, "a", 0, BLOCK, 1));
	assert_int_equal(set_read_only("a", false), 0);
	pool_rig_reopen(rig);
	assert_false(info_of(rig, "a").read_only);
	fill("a", 0, BLOCK, 2);
	/* What a failed commit takes back. */
	fault_device_add(rig->meta, &broken);
	assert_int_equal(set_read_only("a", true), -EIO);
	assert_false(info_of(rig, "a").read_only);
}

/* ---- commits ---- */

static void commands_that_wait_share_a_commit(void **state)
{
	struct async first, a[20];
	uint64_t commits;
	char name[16];

	(void)state;
	fault_device_delay(rig->meta, FAULT_OP(IO_FLUSH));
	start(rig, &first, POOL_CREATE, "first", "", 1);
	assert_true(fault_device_wait_held(rig->meta, 1));
	commits = rig_status(rig).stats.commits;
	for (unsigned i = 0; i < ARRAY_SIZE(a); i++) {
		snprintf(name, sizeof(name), "v%u", i);
		start(rig, &a[i], POOL_CREATE, name, "", i);
	}
	fault_device_release_all(rig->meta);
	assert_int_equal(finish(rig, &first), 0);
	for (unsigned i = 0; i < ARRAY_SIZE(a); i++) {
		assert_int_equal(finish(rig, &a[i]), 0);
		assert_int_equal(a[i].cmd.id, i + 2);
	}
	assert_in_range(rig_status(rig).stats.commits - commits, 1, 2);
}

static void a_command_sees_what_the_one_before_it_did(void **state)
{
	struct async a[5];

	(void)state;
	fault_device_delay(rig->meta, FAULT_OP(IO_FLUSH));
	start(rig, &a[0], POOL_CREATE, "a", "", 1);
	assert_true(fault_device_wait_held(rig->meta, 1));
	start(rig, &a[1], POOL_CREATE, "b", "", 2);
	start(rig, &a[2], POOL_RENAME, "b", "c", 0);
	start(rig, &a[3], POOL_SNAPSHOT, "c", "d", 0);
	start(rig, &a[4], POOL_DELETE, "c", "", 0);
	fault_device_release_all(rig->meta);
	for (unsigned i = 0; i < ARRAY_SIZE(a); i++)
		assert_int_equal(finish(rig, &a[i]), 0);
	for (int round = 0; round < 2; round++) {
		assert_int_equal(rig_status(rig).nr_volumes, 2);
		assert_int_equal(info_of(rig, "d").size_bytes, 2);
		pool_rig_reopen(rig);
	}
}

static void a_commit_is_a_command_too(void **state)
{
	struct pool_rig *image;

	(void)state;
	assert_int_equal(create(rig, "a", BLOCK), 0);
	fill("a", 0, BLOCK, 3);
	assert_int_equal(run(rig, POOL_COMMIT, 0, "", "", 0), 0);
	image = crash_image(rig);
	assert_true(reads_as(image, "a", 0, BLOCK, 3));
	pool_rig_destroy(image);
}

static void a_metadata_snapshot_is_held_until_it_is_released(void **state)
{
	struct pool_rig *image;

	(void)state;
	assert_int_equal(create(rig, "a", 4 * BLOCK), 0);
	fill("a", 0, 2 * BLOCK, 3);
	assert_int_equal(run(rig, POOL_METADATA_SNAP_RELEASE, 0, "", "", 0), -EINVAL);
	assert_int_equal(run(rig, POOL_METADATA_SNAP_RESERVE, 0, "", "", 0), 0);
	assert_int_not_equal(rig_status(rig).held_root, 0);
	image = crash_image(rig);
	assert_int_not_equal(rig_status(image).held_root, 0);
	pool_rig_destroy(image);
	assert_int_equal(run(rig, POOL_METADATA_SNAP_RESERVE, 0, "", "", 0), -EBUSY);

	/* What it names is not free for others. */
	assert_int_equal(delete_volume(rig, 0, "a"), 0);
	assert_int_equal(rig_commit(rig), 0);
	assert_int_equal(rig_status(rig).data_used, EMPTY + 2 * BLOCK);
	pool_rig_reopen(rig);
	assert_int_not_equal(rig_status(rig).held_root, 0);
	assert_int_equal(run(rig, POOL_METADATA_SNAP_RELEASE, 0, "", "", 0), 0);
	assert_int_equal(rig_status(rig).held_root, 0);
	await_data_used(rig, EMPTY);
}

/* ---- failures ---- */

static void assert_as_before_the_failure(void)
{
	assert_int_equal(info_of(rig, "a").size_bytes, 2 * BLOCK);
	assert_int_equal(info_of(rig, "b").size_bytes, 2);
	assert_int_equal(info_of(rig, "c").size_bytes, 3);
	assert_int_equal(info_of(rig, "d").size_bytes, 4);
	assert_int_equal(rig_status(rig).nr_volumes, 4);
	assert_int_equal(rig_status(rig).virtual_total, 2 * BLOCK + 9);
}

static void a_failed_commit_takes_everything_back(void **state)
{
	static const struct fault broken = { .ops = FAULT_OP(IO_WRITE), .count = UINT64_MAX };
	struct async first, a[8];
	struct volume *held;

	(void)state;
	assert_int_equal(create(rig, "a", 2 * BLOCK), 0);
	assert_int_equal(create(rig, "b", 2), 0);
	assert_int_equal(create(rig, "c", 3), 0);
	assert_int_equal(create(rig, "d", 4), 0);
	fill("a", 0, BLOCK, 1);

	fault_device_delay(rig->meta, FAULT_OP(IO_FLUSH));
	start(rig, &first, POOL_COMMIT, "", "", 0);
	assert_true(fault_device_wait_held(rig->meta, 1));
	start(rig, &a[0], POOL_CREATE, "new", "", 1);
	start(rig, &a[1], POOL_DELETE, "b", "", 0);
	start(rig, &a[2], POOL_RENAME, "c", "b", 0);
	start(rig, &a[3], POOL_RENAME, "d", "c", 0);
	start(rig, &a[4], POOL_RESIZE, "a", "", 5 * BLOCK);
	start(rig, &a[5], POOL_CREATE, "d", "", 9);
	start(rig, &a[6], POOL_SNAPSHOT, "a", "snap", 0);
	start(rig, &a[7], POOL_DELETE, "new", "", 0);
	fault_device_log_start(rig->meta, false);
	fault_device_release(rig->meta, 1);
	/* The second flush of the first commit is the last thing that works. */
	assert_true(fault_device_wait_held(rig->meta, 1));
	fault_device_add(rig->meta, &broken);
	fault_device_release_all(rig->meta);
	assert_int_equal(finish(rig, &first), 0);
	for (unsigned i = 0; i < ARRAY_SIZE(a); i++)
		assert_int_equal(finish(rig, &a[i]), -EIO);
	assert_as_before_the_failure();
	assert_true(reads_as(rig, "a", 0, BLOCK, 1));
	assert_int_equal(create(rig, "x", 1), -EIO);
	assert_int_equal(delete_volume(rig, 0, "a"), -EIO);

	/* A reference to a volume that never was may be kept as long as one likes. */
	assert_int_equal(pool_volume_find(rig->pool, "new", &held), -ENOENT);
	fault_device_clear(rig->meta);
	assert_int_equal(pool_rig_close(rig), 0);
	pool_rig_open(rig);
	assert_as_before_the_failure();
	assert_true(reads_as(rig, "a", 0, BLOCK, 1));
}

static void a_failure_takes_the_commands_before_it_along(void **state)
{
	struct async first, a[3];

	(void)state;
	assert_int_equal(create(rig, "a", 1), 0);
	fault_device_delay(rig->meta, FAULT_OP(IO_FLUSH));
	start(rig, &first, POOL_CREATE, "first", "", 1);
	assert_true(fault_device_wait_held(rig->meta, 1));
	start(rig, &a[0], POOL_CREATE, "x", "", 1);
	start(rig, &a[1], POOL_RENAME, "a", "b", 1);
	start(rig, &a[2], POOL_CREATE, "y", "", 1);
	/* The record of "x" moves its data block, that of "b" is then written in place. */
	fault_device_fail_nth(rig->data, FAULT_OP(IO_WRITE), 2);
	fault_device_release_all(rig->meta);
	assert_int_equal(finish(rig, &first), 0);
	for (unsigned i = 0; i < ARRAY_SIZE(a); i++)
		assert_int_equal(finish(rig, &a[i]), -EIO);
	assert_int_equal(rig_status(rig).nr_volumes, 2);
	assert_true(exists(rig, "a") && exists(rig, "first"));
}

static void a_pool_opened_read_only_refuses_commands(void **state)
{
	(void)state;
	assert_int_equal(create(rig, "a", 1), 0);
	assert_int_equal(pool_rig_close(rig), 0);
	rig->options.read_only = true;
	pool_rig_open(rig);
	assert_int_equal(create(rig, "b", 1), -EROFS);
	assert_int_equal(delete_volume(rig, 0, "a"), -EROFS);
	assert_int_equal(rename_to(rig, 0, "a", "b"), -EROFS);
	assert_int_equal(resize(rig, 0, "a", 2), -EROFS);
	assert_int_equal(snapshot(rig, 0, "a", "b"), -EROFS);
	assert_int_equal(run(rig, POOL_COMMIT, 0, "", "", 0), 0);
	assert_true(exists(rig, "a"));
}

static void a_full_pool_can_still_change_names_and_delete(void **state)
{
	char name[16];

	(void)state;
	/* Records in three data blocks of the catalog. */
	for (unsigned i = 1; i <= 189; i++) {
		snprintf(name, sizeof(name), "v%u", i);
		assert_int_equal(create(rig, name, i), 0);
	}
	fill_pool();
	assert_int_equal(rename_to(rig, 0, "v1", "w1"), 0);
	assert_int_equal(rename_to(rig, 0, "v100", "w100"), 0);
	assert_int_equal(resize(rig, 0, "v150", 1000), 0);
	assert_int_equal(snapshot(rig, 0, "v1", "s"), -ENOENT);
	/* Two blocks of the catalog at once need a free one: refused, and nothing is half done. */
	assert_int_equal(rename_to(rig, 0, "w1", "v150"), -ENOSPC);
	assert_int_equal(info_of(rig, "w1").size_bytes, 1);
	assert_int_equal(info_of(rig, "v150").size_bytes, 1000);
	/* A new record needs a data block when its neighbours have none: ids 192 and on. */
	assert_int_equal(create(rig, "n1", 1), 0);
	assert_int_equal(create(rig, "n2", 1), -ENOSPC);
	assert_false(exists(rig, "n2"));
	assert_int_equal(delete_volume(rig, 0, "v60"), 0);
	assert_int_equal(delete_volume(rig, 0, "v130"), 0);
	assert_int_equal(delete_volume(rig, 0, "filler"), 0);
	await_data_used(rig, 5 * BLOCK);
	pool_rig_reopen(rig);
	assert_true(exists(rig, "w100"));
	assert_false(exists(rig, "v60"));
	assert_int_equal(rig_status(rig).nr_volumes, 188);
}

/* ---- events ---- */

static char events[4096];

static void record_event(void *ctx, const struct pool_event *ev)
{
	static const char *const names[] = { "gone", "added", "resized", "content" };
	size_t used = strlen(events);

	(void)ctx;
	if (ev->kind < POOL_EVENT_MODE)
		snprintf(events + used, sizeof(events) - used, "%s %u %s; ", names[ev->kind],
			 ev->id, ev->name);
}

static void assert_events(const char *expected)
{
	assert_string_equal(events, expected);
	events[0] = '\0';
}

/* The answer comes after the event, so no waiting is needed here. */
static void front_ends_are_told(void **state)
{
	(void)state;
	rig->options.event = record_event;
	pool_rig_reopen(rig);
	events[0] = '\0';
	assert_int_equal(create(rig, "a", 1), 0);
	assert_events("added 1 a; ");
	assert_int_equal(create(rig, "b", 1), 0);
	events[0] = '\0';
	assert_int_equal(rename_to(rig, 0, "a", "c"), 0);
	assert_events("gone 1 a; added 1 c; ");
	assert_int_equal(rename_to(rig, POOL_CMD_EXCHANGE, "b", "c"), 0);
	assert_events("gone 2 b; gone 1 c; added 2 c; added 1 b; ");
	assert_int_equal(rename_to(rig, 0, "b", "c"), 0);
	assert_events("gone 2 c; gone 1 b; added 1 c; ");
	assert_int_equal(resize(rig, 0, "c", 9), 0);
	assert_events("resized 1 c; ");
	assert_int_equal(delete_volume(rig, 0, "c"), 0);
	assert_events("gone 1 c; ");
}

static void an_abort_is_told_as_well(void **state)
{
	static const struct fault broken = { .ops = FAULT_OP(IO_WRITE), .count = UINT64_MAX };

	(void)state;
	rig->options.event = record_event;
	pool_rig_reopen(rig);
	assert_int_equal(create(rig, "a", 1), 0);
	events[0] = '\0';
	fault_device_add(rig->meta, &broken);
	assert_int_equal(rename_to(rig, 0, "a", "b"), -EIO);
	assert_events("gone 1 a; added 1 b; gone 1 b; added 1 a; ");
	fault_device_clear(rig->meta);
}

/* ---- all of it, against a model ---- */

#define MODEL_NAMES 12u

struct model_volume {
	bool exists;
	uint64_t size_bytes;
	int mark; /* first bytes of it */
};

static void assert_model(struct pool_rig *any, const struct model_volume *m)
{
	unsigned nr = 0;
	char name[16];

	for (unsigned i = 0; i < MODEL_NAMES; i++) {
		snprintf(name, sizeof(name), "v%u", i);
		assert_int_equal(exists(any, name), m[i].exists);
		if (!m[i].exists)
			continue;
		nr++;
		assert_int_equal(info_of(any, name).size_bytes, m[i].size_bytes);
		assert_true(reads_as(any, name, 0, 512, m[i].mark));
	}
	assert_int_equal(rig_status(any).nr_volumes, nr);
}

static void random_command(struct prng *p, struct model_volume *m, int op)
{
	unsigned i = (unsigned)prng_below(p, MODEL_NAMES), j = (unsigned)prng_below(p, MODEL_NAMES);
	uint64_t bytes = 512 + prng_below(p, 4 * BLOCK);
	unsigned what = (unsigned)prng_below(p, 6);
	struct model_volume swap = m[i];
	char a[16], b[16];

	snprintf(a, sizeof(a), "v%u", i);
	snprintf(b, sizeof(b), "v%u", j);
	if (what == 0) {
		assert_int_equal(create(rig, a, bytes), m[i].exists ? -EEXIST : 0);
		if (!m[i].exists)
			m[i] = (struct model_volume){ true, bytes, 0 };
	} else if (!m[i].exists) {
		assert_int_equal(delete_volume(rig, 0, a), -ENOENT);
	} else if (what == 1) {
		assert_int_equal(delete_volume(rig, 0, a), 0);
		m[i].exists = false;
	} else if (what == 2) {
		assert_int_equal(rename_to(rig, 0, a, b), 0);
		m[i].exists = false;
		m[j] = swap;
	} else if (what == 3) {
		assert_int_equal(rename_to(rig, POOL_CMD_EXCHANGE, a, b),
				 m[j].exists ? 0 : -ENOENT);
		if (m[j].exists) {
			m[i] = m[j];
			m[j] = swap;
		}
	} else if (what == 4) {
		assert_int_equal(snapshot(rig, 0, a, b), m[j].exists ? -EEXIST : 0);
		if (!m[j].exists)
			m[j] = m[i];
	} else {
		assert_int_equal(resize(rig, POOL_CMD_SHRINK, a, bytes), 0);
		m[i].size_bytes = bytes;
		m[i].mark = op % 250 + 1;
		fill(a, 0, 512, m[i].mark);
		assert_int_equal(rig_commit(rig), 0);
	}
}

static void random_commands_match_the_model_after_crashes(void **state)
{
	struct model_volume m[MODEL_NAMES] = { 0 };
	uint64_t nr_ops = prng_ops(400);
	struct prng p;

	(void)state;
	prng_init(&p, prng_seed());
	for (uint64_t op = 1; op <= nr_ops; op++) {
		random_command(&p, m, (int)op);
		if (op % 20 == 0) {
			struct pool_rig *image = crash_image(rig);

			assert_model(rig, m);
			assert_model(image, m);
			assert_int_equal(pool_rig_close(image), 0);
			assert_true(op % 100 || pool_rig_is_clean(image));
			pool_rig_destroy(image);
		}
		if (op % 70 == 0)
			pool_rig_reopen(rig);
	}
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_created_volume_is_there_after_a_crash),
		TEST(create_refuses_what_cannot_be),
		TEST(a_size_may_be_any_up_to_the_limit),
		TEST(the_smallest_free_id_is_taken),
		TEST(an_open_deleted_volume_keeps_its_id),
		TEST(a_snapshot_keeps_what_was_there),
		TEST(a_snapshot_may_be_read_only),
		TEST(a_size_grown_by_writes_is_in_both_records),
		TEST(a_flush_makes_a_grown_size_durable),
		TEST(snapshot_refuses_what_cannot_be),
		TEST(delete_gives_the_space_back),
		TEST(an_open_volume_lives_until_it_is_closed),
		TEST(an_unlinked_volume_is_removed_after_a_crash),
		TEST(a_large_volume_goes_in_slices_also_over_a_crash),
		TEST(rename_gives_another_name),
		TEST(rename_replaces_the_old_owner_of_the_name),
		TEST(exchange_swaps_two_names),
		TEST(a_volume_grows_and_reads_zeros_there),
		TEST(what_was_cut_off_never_comes_back),
		TEST(a_cut_that_finds_no_block_fails_and_keeps_all),
		TEST(a_volume_can_be_made_read_only_and_writable_again),
		TEST(commands_that_wait_share_a_commit),
		TEST(a_command_sees_what_the_one_before_it_did),
		TEST(a_commit_is_a_command_too),
		TEST(a_metadata_snapshot_is_held_until_it_is_released),
		TEST(a_failed_commit_takes_everything_back),
		TEST(a_failure_takes_the_commands_before_it_along),
		TEST(a_pool_opened_read_only_refuses_commands),
		TEST(a_full_pool_can_still_change_names_and_delete),
		TEST(front_ends_are_told),
		TEST(an_abort_is_told_as_well),
		TEST(random_commands_match_the_model_after_crashes),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("command", tests, NULL, NULL);
}
