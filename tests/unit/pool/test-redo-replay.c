/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What was acknowledged is there when only the process dies; what cannot be done again costs no
 * more than the open transaction, and is not kept quiet.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dying-pool.h"
#include "fault-device.h"
#include "pool/pool-internal.h"
#include "pool/redo.h"

#define BLOCK (64 * KIB)

static struct dying_pool *dp;
static struct pool_rig *rig;
static struct volume *v;

static int setup(void **unused)
{
	(void)unused;
	dp = dying_pool_create(BLOCK, 64, 512 * KIB, 0);
	rig = dp->rig;
	v = rig_create_volume(rig, "v", MIB);
	return 0;
}

static int teardown(void **unused)
{
	(void)unused;
	if (v)
		rig_close_volume(v);
	v = NULL;
	dying_pool_destroy(dp);
	return 0;
}

static void die(bool same_boot)
{
	struct death *death = dying_pool_die(dp);

	if (v)
		rig_close_volume(v);
	dying_pool_rise(dp, death, same_boot);
	v = NULL;
	if (rig_status(rig).mode == POOL_MODE_WRITE)
		v = rig_open_volume(rig, "v");
}

/* ------------------------------------------------------------------ nothing acknowledged is lost
 */

static void a_write_to_a_hole_survives(void **unused)
{
	(void)unused;
	assert_int_equal(rig_fill(rig, v, 5 * BLOCK + 512, 3 * BLOCK, 'a'), 0);
	die(true);
	assert_true(rig_reads_as(rig, v, 5 * BLOCK, 512, 0));
	assert_true(rig_reads_as(rig, v, 5 * BLOCK + 512, 3 * BLOCK, 'a'));
	assert_int_equal(rig_mapped(v), 4 * BLOCK);
	assert_true(dying_pool_is_clean(dp));
}

static void so_does_one_that_broke_sharing(void **unused)
{
	struct volume *s;

	(void)unused;
	assert_int_equal(rig_fill(rig, v, 0, 2 * BLOCK, 'a'), 0);
	assert_int_equal(rig_snapshot(rig, "v", "s"), 0);
	assert_int_equal(rig_fill(rig, v, 4096, 4096, 'b'), 0);
	die(true);
	assert_true(rig_reads_as(rig, v, 0, 4096, 'a'));
	assert_true(rig_reads_as(rig, v, 4096, 4096, 'b'));
	assert_true(rig_reads_as(rig, v, 8192, 2 * BLOCK - 8192, 'a'));
	s = rig_open_volume(rig, "s");
	assert_true(rig_reads_as(rig, s, 0, 2 * BLOCK, 'a'));
	rig_close_volume(s);
	assert_true(dying_pool_is_clean(dp));
}

static bool uses(void *bytes)
{
	return rig_status(rig).data_used == *(uint64_t *)bytes;
}

static void so_does_a_punch(void **unused)
{
	uint64_t used;

	(void)unused;
	assert_int_equal(rig_fill(rig, v, 0, 4 * BLOCK, 'a'), 0);
	assert_int_equal(rig_flush(rig, v), 0);
	used = rig_status(rig).data_used - BLOCK;
	assert_int_equal(rig_punch(rig, v, BLOCK + 4096, 2 * BLOCK), 0);
	die(true);
	assert_true(rig_reads_as(rig, v, 0, BLOCK + 4096, 'a'));
	assert_true(rig_reads_as(rig, v, BLOCK + 4096, 2 * BLOCK, 0));
	assert_true(rig_reads_as(rig, v, 3 * BLOCK + 4096, BLOCK - 4096, 'a'));
	assert_int_equal(rig_mapped(v), 3 * BLOCK);
	assert_true(rig_await(rig, uses, &used)); /* when it is punched */
	assert_true(dying_pool_is_clean(dp));
}

static void so_do_growth_and_what_was_written_behind_the_end(void **unused)
{
	(void)unused;
	assert_int_equal(rig_fill(rig, v, MIB + 4096, 512, 'a'), 0);
	die(true);
	assert_int_equal(volume_size(v), MIB + 4096 + 512);
	assert_true(rig_reads_as(rig, v, MIB, 4096, 0));
	assert_true(rig_reads_as(rig, v, MIB + 4096, 512, 'a'));
	assert_true(dying_pool_is_clean(dp));
}

static void so_does_what_is_written_again_where_it_was_mapped(void **unused)
{
	(void)unused;
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 'a'), 0);
	assert_int_equal(rig_fill(rig, v, 0, 4096, 'b'), 0); /* in place: no record */
	die(true);
	assert_true(rig_reads_as(rig, v, 0, 4096, 'b'));
	assert_true(rig_reads_as(rig, v, 4096, BLOCK - 4096, 'a'));
}

/* Whether anybody opens it again or it is removed: its records are no reason to refuse others. */
static void records_of_an_unlinked_volume_are_good(void **unused)
{
	struct volume *w = rig_create_volume(rig, "w", MIB);

	(void)unused;
	assert_int_equal(rig_delete(rig, "w"), 0);
	assert_int_equal(rig_fill(rig, w, 2 * MIB, BLOCK, 'w'), 0);
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 'a'), 0);
	rig_close_volume(w);
	die(true);
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 'a'));
	assert_int_equal(rig_flush(rig, v), 0);
	assert_int_equal(rig_commit(rig), 0);
	assert_true(dying_pool_is_clean(dp));
}

static void changes_of_one_block_are_made_in_their_order(void **unused)
{
	(void)unused;
	for (unsigned i = 1; i < 6; i++) {
		assert_int_equal(rig_fill(rig, v, 0, BLOCK, (int)i), 0);
		assert_int_equal(rig_punch(rig, v, 0, BLOCK), 0);
		assert_int_equal(rig_fill(rig, v, i * BLOCK, BLOCK, (int)i), 0);
	}
	assert_int_equal(rig_fill(rig, v, 512, 512, 'z'), 0);
	die(true);
	assert_true(rig_reads_as(rig, v, 0, 512, 0));
	assert_true(rig_reads_as(rig, v, 512, 512, 'z'));
	assert_true(rig_reads_as(rig, v, 1024, BLOCK - 1024, 0));
	for (unsigned i = 1; i < 6; i++)
		assert_true(rig_reads_as(rig, v, i * BLOCK, BLOCK, (int)i));
	assert_true(dying_pool_is_clean(dp));
}

static void it_survives_as_often_as_the_process_dies(void **unused)
{
	(void)unused;
	for (unsigned i = 0; i < 5; i++) {
		assert_int_equal(rig_fill(rig, v, i * BLOCK, BLOCK, (int)i + 1), 0);
		die(true);
	}
	for (unsigned i = 0; i < 5; i++)
		assert_true(rig_reads_as(rig, v, i * BLOCK, BLOCK, (int)i + 1));
	assert_true(dying_pool_is_clean(dp));
}

static void what_is_done_again_is_committed_at_once(void **unused)
{
	(void)unused;
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 'a'), 0);
	die(true);
	die(false);
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 'a'));
}

static void with_the_power_goes_what_was_not_flushed(void **unused)
{
	(void)unused;
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 'a'), 0);
	assert_int_equal(rig_flush(rig, v), 0);
	assert_int_equal(rig_fill(rig, v, BLOCK, BLOCK, 'b'), 0);
	die(false);
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 'a'));
	assert_true(rig_reads_as(rig, v, BLOCK, BLOCK, 0));
	assert_int_equal(rig_flush(rig, v), 0);
	assert_true(dying_pool_is_clean(dp));
}

/* ------------------------------------------------------------------ the area follows commits */

/* A flush is a commit: the process dies before each of its I/Os in turn. */
static void at_every_point_of_a_commit_it_is_whole(void **unused)
{
	unsigned long n = 0;
	bool died = true;

	(void)unused;
	for (; died; n++) {
		int byte = (int)(n % 250) + 1;

		assert_int_equal(rig_fill(rig, v, 0, BLOCK, byte),
				 0); /* shared since the last round */
		assert_int_equal(rig_punch(rig, v, n % 2 ? BLOCK : 2 * BLOCK, BLOCK), 0);
		assert_int_equal(rig_fill(rig, v, n % 2 ? 2 * BLOCK : BLOCK, BLOCK, byte), 0);
		assert_int_equal(rig_fill(rig, v, MIB + n * 512, 512, byte), 0);
		dying_pool_die_at(dp, n + 1);
		assert_int_equal(rig_flush(rig, v), 0);
		died = dp->death;
		if (died) {
			rig_close_volume(v);
			dying_pool_rise(dp, dp->death, true);
			dp->death = NULL;
			v = rig_open_volume(rig, "v");
		}
		dying_pool_die_at(dp, 0);
		assert_true(rig_reads_as(rig, v, 0, BLOCK, byte));
		assert_true(rig_reads_as(rig, v, BLOCK, BLOCK, n % 2 ? 0 : byte));
		assert_true(rig_reads_as(rig, v, 2 * BLOCK, BLOCK, n % 2 ? byte : 0));
		assert_int_equal(volume_size(v), MIB + (n + 1) * 512);
		assert_true(rig_reads_as(rig, v, MIB + n * 512, 512, byte));
		assert_int_equal(rig_commit(rig), 0);
		assert_true(dying_pool_is_clean(dp));
		assert_int_equal(rig_delete(rig, "s"), n ? 0 : -ENOENT);
		assert_int_equal(rig_snapshot(rig, "v", "s"), 0);
	}
	print_message("# %lu points\n", n);
	assert_true(n > 5);
}

static void a_full_area_means_commit_first(void **unused)
{
	struct pool_status s;

	(void)unused;
	teardown(NULL);
	/* Sixteen records in each half. */
	dp = dying_pool_create(BLOCK, 64, 512 * KIB, 2 * (8192 + 16 * 32));
	rig = dp->rig;
	v = rig_create_volume(rig, "v", 4 * MIB);
	s = rig_status(rig);
	for (unsigned i = 0; i < 40; i++)
		assert_int_equal(rig_fill(rig, v, i * BLOCK, BLOCK, (int)i + 1), 0);
	assert_int_equal(rig_status(rig).stats.commits - s.stats.commits, 2);
	for (unsigned i = 0; i < 40; i++) {
		assert_int_equal(rig_punch(rig, v, i * BLOCK, BLOCK), 0);
		assert_int_equal(rig_fill(rig, v, 4 * MIB + i * 512, 512, (int)i + 1), 0);
	}
	assert_true(rig_status(rig).stats.commits - s.stats.commits >= 7);
	die(true);
	assert_true(rig_reads_as(rig, v, 0, 40 * BLOCK, 0));
	for (unsigned i = 0; i < 40; i++)
		assert_true(rig_reads_as(rig, v, 4 * MIB + i * 512, 512, (int)i + 1));
	assert_true(dying_pool_is_clean(dp));
}

static void a_pool_that_is_closed_leaves_nothing_to_do(void **unused)
{
	uint8_t byte = 1;

	(void)unused;
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 'a'), 0);
	rig_close_volume(v);
	assert_int_equal(pool_rig_close(rig), 0);
	assert_int_equal(pread(dp->area_fd, &byte, 1, 0), 1);
	assert_int_equal(byte, 0);
	pool_rig_open(rig);
	v = rig_open_volume(rig, "v");
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 'a'));
	assert_int_equal(rig_flush(rig, v), 0);
}

/* ------------------------------------------------------------------ nothing is trusted */

/* Write records for the present state, as if a process had done so, and let the pool find them. */
#define NO_CHANGE SIZE_MAX

/* As if a process had recorded that; byte @change of the state they build on is another one. */
static int rise_with(const struct redo_record *records, unsigned nr, size_t change)
{
	uint8_t *state = malloc(THIN_STATE_BYTES);
	struct redo_owner owner;
	struct redo *redo;
	uint64_t found;
	int r;

	assert_non_null(state);
	thin_metadata_get_state(rig->pool->tmd, state);
	rig_close_volume(v);
	v = NULL;
	redo_find_owner(&owner, io_device_name(rig->meta), io_device_name(rig->data));
	assert_int_equal(redo_open(dp->area_fd, &owner, &redo), 0);
	(void)redo_look(redo, state, &found);
	if (change != NO_CHANGE) {
		state[change]++;
		redo_begin(redo, state); /* neither half is of the present state */
	}
	redo_begin(redo, state);
	for (unsigned i = 0; i < nr; i++)
		redo_append(redo, &records[i]);
	redo_close(redo);
	free(state);
	r = dying_pool_try_rise(dp, dying_pool_die(dp), true);
	if (!r)
		v = rig_open_volume(rig, "v");
	return r;
}

/* As it was committed, writable, and who flushes is told. */
static bool was_refused(void)
{
	return rig_mapped(v) == BLOCK && rig_reads_as(rig, v, 0, BLOCK, 'a') &&
	       rig_reads_as(rig, v, BLOCK, 3 * BLOCK, 0) && volume_size(v) == MIB &&
	       rig_flush(rig, v) == -EIO && !rig_flush(rig, v) &&
	       rig_status(rig).mode == POOL_MODE_WRITE && rig_fill(rig, v, BLOCK, 512, 'x') == 0 &&
	       rig_commit(rig) == 0 && dying_pool_is_clean(dp);
}

static void a_record_that_cannot_be_means_that_none_is_good(void **unused)
{
	const thin_id_t id = volume_id(v);
	const struct redo_record bad[] = {
		{ .type = REDO_INSERT, .volume = id + 1, .vblock = 2, .nr = 1, .dblock = 20 },
		{ .type = REDO_INSERT, .volume = CATALOG_ID, .vblock = 9, .nr = 1, .dblock = 20 },
		{ .type = REDO_INSERT, .volume = id, .vblock = 2, .nr = 0, .dblock = 20 },
		{ .type = REDO_INSERT, .volume = id, .vblock = 2, .nr = 1, .dblock = 64 },
		{ .type = REDO_INSERT, .volume = id, .vblock = 2, .nr = 2, .dblock = 63 },
		{ .type = REDO_INSERT, .volume = id, .vblock = 2, .nr = UINT64_MAX, .dblock = 20 },
		{ .type = REDO_INSERT, .volume = id, .vblock = UINT64_MAX, .nr = 1, .dblock = 20 },
		{ .type = REDO_INSERT,
		  .volume = id,
		  .vblock = UINT64_C(1) << 40,
		  .nr = 1,
		  .dblock = 20 },
		{ .type = REDO_INSERT, .volume = id, .vblock = 2, .nr = 1, .dblock = 30 },
		{ .type = REDO_INSERT, .volume = id, .vblock = 2, .nr = 30, .dblock = 1 },
		{ .type = REDO_UNMAP, .volume = id + 1, .vblock = 0, .nr = 1 },
		{ .type = REDO_UNMAP, .volume = id, .vblock = 0, .nr = 0 },
		{ .type = REDO_UNMAP, .volume = id, .vblock = 1, .nr = UINT64_MAX },
		{ .type = REDO_UNMAP, .volume = id, .vblock = 1, .nr = UINT64_C(1) << 40 },
		{ .type = REDO_SIZE, .volume = id, .bytes = INT64_MAX },
		{ .type = REDO_SIZE, .volume = id + 1, .bytes = 2 * MIB },
		{ .type = REDO_LOST, .volume = id + 1 },
		{ .type = (enum redo_type)0, .volume = id, .nr = 1 },
		{ .type = (enum redo_type)77, .volume = id, .nr = 1 },
	};

	(void)unused;
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		/* The first two could be made again, and are not either. */
		const struct redo_record records[] = {
			{ .type = REDO_INSERT, .volume = id, .vblock = 1, .nr = 1, .dblock = 30 },
			{ .type = REDO_SIZE, .volume = id, .bytes = 2 * MIB },
			bad[i],
		};

		if (i) {
			teardown(NULL);
			setup(NULL);
		}
		assert_int_equal(rig_fill(rig, v, 0, BLOCK, 'a'), 0);
		assert_int_equal(rig_flush(rig, v), 0);
		assert_int_equal(rise_with(records, 3, NO_CHANGE), 0);
		if (!was_refused())
			fail_msg("record %u was taken", i);
	}
}

static void good_ones_are_taken_from_anywhere(void **unused)
{
	const struct redo_record records[] = {
		{ .type = REDO_INSERT, .volume = volume_id(v), .vblock = 1, .nr = 2, .dblock = 30 },
		{ .type = REDO_UNMAP, .volume = volume_id(v), .vblock = 0, .nr = 1 },
		{ .type = REDO_SIZE, .volume = volume_id(v), .bytes = 2 * MIB },
		{ .type = REDO_SIZE, .volume = volume_id(v), .bytes = MIB / 2 }, /* grown since */
	};

	(void)unused;
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 'a'), 0);
	assert_int_equal(rig_flush(rig, v), 0);
	assert_int_equal(rise_with(records, ARRAY_SIZE(records), NO_CHANGE), 0);
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 0));
	assert_int_equal(rig_mapped(v), 2 * BLOCK);
	assert_int_equal(volume_size(v), 2 * MIB);
	assert_int_equal(rig_flush(rig, v), 0);
	assert_true(dying_pool_is_clean(dp));
}

static void records_for_a_state_that_somebody_else_changed_are_refused(void **unused)
{
	const struct redo_record record = {
		.type = REDO_INSERT, .volume = volume_id(v), .vblock = 1, .nr = 1, .dblock = 30
	};

	(void)unused;
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 'a'), 0);
	assert_int_equal(rig_flush(rig, v), 0);
	assert_int_equal(rise_with(&record, 1, THIN_STATE_BYTES - 1), 0);
	assert_true(was_refused());
}

/* Whoever was told of a write that is gone goes on using the volumes, whoever serves them. */
static void a_refusal_outlives_processes_too(void **unused)
{
	const struct redo_record record = { .type = REDO_UNMAP, .volume = CATALOG_ID };

	(void)unused;
	assert_int_equal(rise_with(&record, 1, NO_CHANGE), 0);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(rig_fill(rig, v, 0, BLOCK, 'b'), 0);
		assert_int_equal(rig_flush(rig, v), -EIO);
		assert_int_equal(rig_flush(rig, v), 0);
		die(true);
		assert_true(rig_reads_as(rig, v, 0, BLOCK, 'b'));
	}
	die(false); /* a fresh mount */
	assert_int_equal(rig_flush(rig, v), 0);
}

/* ------------------------------------------------------------------ losses are told */

static void what_an_abort_took_back_is_still_an_error_for_the_next_process(void **unused)
{
	struct volume *w;

	(void)unused;
	w = rig_create_volume(rig, "w", MIB);
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 'a'), 0);
	fault_device_add(dying_pool_metadata(dp),
			 &(struct fault){ .ops = FAULT_OP(IO_WRITE), .count = 1 });
	assert_int_equal(rig_flush(rig, v), -EIO);
	rig_close_volume(w);
	for (unsigned i = 0; i < 3; i++) {
		die(true);
		assert_int_equal(rig_status(rig).mode, POOL_MODE_READ_ONLY);
		assert_int_equal(pool_volume_find(rig->pool, "v", &w), 0);
		assert_true(rig_reads_as(rig, w, 0, BLOCK, 0));
		assert_int_equal(rig_flush(rig, w), -EIO);
		volume_put(w);
		assert_int_equal(pool_volume_find(rig->pool, "w", &w), 0);
		assert_int_equal(rig_flush(rig, w), 0); /* it has lost nothing */
		volume_put(w);
	}
}

static void created(struct pool_command *cmd, int r)
{
	cmd->result = r;
	atomic_store((atomic_bool *)cmd->waiter, true);
}

static bool is_set(void *flag)
{
	return atomic_load((atomic_bool *)flag);
}

/* Its new end is there for all to see while the command is not done. */
static void what_is_written_behind_the_end_that_a_resize_moves_survives(void **unused)
{
	atomic_bool done = false;
	struct pool_command cmd = { .op = POOL_RESIZE,
				    .size_bytes = BLOCK,
				    .name = "v",
				    .done = created,
				    .waiter = &done };
	struct death *death;

	(void)unused;
	assert_int_equal(rig_fill(rig, v, 0, MIB, 'a'), 0);
	cmd.size_bytes = 4096;
	cmd.flags = POOL_CMD_SHRINK;
	assert_int_equal(pool_command_run(rig->pool, &cmd), 0);
	cmd.size_bytes = BLOCK;
	cmd.done = created;
	cmd.waiter = &done;
	fault_device_delay(dying_pool_data(dp), FAULT_OP(IO_FLUSH));
	pool_command_submit(rig->pool, &cmd);
	assert_true(fault_device_wait_held(dying_pool_data(dp), 1));
	assert_int_equal(rig_fill(rig, v, 8192, 4096, 'b'), 0); /* in place */
	death = dying_pool_die_now(dp);
	fault_device_release_all(dying_pool_data(dp));
	assert_true(rig_await(rig, is_set, &done));
	rig_close_volume(v);
	dying_pool_rise(dp, death, true);
	v = rig_open_volume(rig, "v");
	assert_int_equal(volume_size(v), BLOCK);
	assert_true(rig_reads_as(rig, v, 8192, 4096, 'b'));
	assert_true(dying_pool_is_clean(dp));
}

/* Two volumes, with records in two blocks of the catalog, and no free block in the pool. */
static struct volume *two[2];

static void open_two(void)
{
	two[0] = rig_open_volume(rig, "2");
	two[1] = rig_open_volume(rig, "69");
}

static void close_two(void)
{
	rig_close_volume(two[0]);
	rig_close_volume(two[1]);
}

static void make_two_and_no_space(void)
{
	char name[8];

	for (unsigned i = 2; i < 70; i++) {
		snprintf(name, sizeof(name), "%u", i);
		rig_close_volume(rig_create_volume(rig, name, 4096));
	}
	open_two();
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(rig_fill(rig, two[i], 0, 4096, 'a'), 0);
	for (uint64_t at = 0; !rig_fill(rig, v, at, BLOCK, 'a'); at += BLOCK)
		;
	assert_int_equal(rig_commit(rig), 0);
}

/* The catalog takes one of the sizes, and the other when that is committed. */
static void sizes_that_come_with_the_next_commit_are_carried_over(void **unused)
{
	unsigned long n = 0;
	bool died = true;

	(void)unused;
	make_two_and_no_space();
	for (uint64_t bytes = 4096; died; bytes += 512) {
		for (unsigned i = 0; i < 2; i++)
			assert_int_equal(rig_fill(rig, two[i], bytes, 512, 'b'), 0);
		dying_pool_die_at(dp, ++n);
		assert_int_equal(rig_flush(rig, two[0]), 0);
		died = dp->death;
		if (died) {
			close_two();
			rig_close_volume(v);
			dying_pool_rise(dp, dp->death, true);
			dp->death = NULL;
			v = rig_open_volume(rig, "v");
			open_two();
		}
		for (unsigned i = 0; i < 2; i++) {
			assert_int_equal(volume_size(two[i]), bytes + 512);
			assert_true(rig_reads_as(rig, two[i], 4096, bytes - 4096 + 512, 'b'));
		}
		assert_true(dying_pool_is_clean(dp));
	}
	dying_pool_die_at(dp, 0);
	print_message("# %lu points\n", n);
	close_two();
	assert_true(n > 10); /* two commits */
}

/* Or writes to it would be acknowledged before it is. */
static void a_volume_is_not_found_before_its_commit(void **unused)
{
	atomic_bool done = false;
	struct pool_command cmd = {
		.op = POOL_CREATE, .size_bytes = MIB, .name = "w", .done = created, .waiter = &done
	};
	thin_id_t id = volume_id(v) + 1;
	struct volume_info info;
	struct volume *w;

	(void)unused;
	fault_device_delay(dying_pool_metadata(dp), FAULT_OP(IO_FLUSH));
	pool_command_submit(rig->pool, &cmd);
	assert_true(fault_device_wait_held(dying_pool_metadata(dp), 1));
	assert_int_equal(pool_volume_find(rig->pool, "w", &w), -ENOENT);
	assert_int_equal(pool_volume_get(rig->pool, id, &w), -ENOENT);
	assert_int_equal(pool_volume_next(rig->pool, id, &info), -ENODATA);
	fault_device_release_all(dying_pool_metadata(dp));
	assert_true(rig_await(rig, is_set, &done));
	assert_int_equal(cmd.result, 0);
	assert_int_equal(cmd.id, id);
	rig_close_volume(rig_open_volume(rig, "w"));
	assert_int_equal(pool_volume_next(rig->pool, id, &info), 0);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(a_write_to_a_hole_survives),
		T(so_does_one_that_broke_sharing),
		T(so_does_a_punch),
		T(so_do_growth_and_what_was_written_behind_the_end),
		T(so_does_what_is_written_again_where_it_was_mapped),
		T(records_of_an_unlinked_volume_are_good),
		T(changes_of_one_block_are_made_in_their_order),
		T(it_survives_as_often_as_the_process_dies),
		T(what_is_done_again_is_committed_at_once),
		T(with_the_power_goes_what_was_not_flushed),
		T(at_every_point_of_a_commit_it_is_whole),
		T(a_full_area_means_commit_first),
		T(a_pool_that_is_closed_leaves_nothing_to_do),
		T(a_record_that_cannot_be_means_that_none_is_good),
		T(good_ones_are_taken_from_anywhere),
		T(records_for_a_state_that_somebody_else_changed_are_refused),
		T(a_refusal_outlives_processes_too),
		T(what_an_abort_took_back_is_still_an_error_for_the_next_process),
		T(what_is_written_behind_the_end_that_a_resize_moves_survives),
		T(sizes_that_come_with_the_next_commit_are_carried_over),
		T(a_volume_is_not_found_before_its_commit),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("redo-replay", tests, NULL, NULL);
}
