/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests of metadata snapshots: what they hold, what they cost, what a failure leaves; and
 * of pins, which do the same in memory only.
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
#include "fault-device.h"
#include "mem-device.h"
#include "thin-fixture.h"
#include "thin-image.h"
#include "thin/thin-metadata.h"
#include "thinpoold/disk-format.h"
#include "util/le.h"

#define NR_DEVICES 3u
#define NR_BLOCKS 20u /* of each */

/*
 * What thin_dump says, less the superblock's line: a snapshot does not know how large the data
 * device is.  The caller frees it.
 */
static char *dump(struct fixture *f, const char *options)
{
	struct thin_image image = thin_image_save(fault_device_inner(f->meta));
	char command[256], line[1024], *text = NULL;
	size_t len;
	FILE *out, *in;

	snprintf(command, sizeof(command), "thin_dump %s '%s'", options, image.path);
	in = popen(command, "r");
	out = open_memstream(&text, &len);
	assert_non_null(in);
	assert_non_null(out);
	while (fgets(line, sizeof(line), in))
		if (!strstr(line, "<superblock "))
			fputs(line, out);
	fclose(out);
	assert_int_equal(pclose(in), 0);
	thin_image_remove(&image);
	return text;
}

static void assert_holds(struct fixture *f, const char *expected)
{
	char *held = dump(f, "-m");

	assert_string_equal(held, expected);
	free(held);
	assert_true(is_clean(f));
}

/* As a crash would find it. */
static mblock_t held_root_on_disk(struct fixture *f)
{
	const struct thin_disk_superblock *sb = mem_device_data(fault_device_inner(f->meta));

	return le64_get(sb->held_root);
}

static void commit(struct fixture *f)
{
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
}

static int setup(void **state)
{
	struct fixture *f;

	fixture_setup(state);
	f = *state;
	for (thin_id_t id = 0; id < NR_DEVICES; id++) {
		struct thin_device *td;

		assert_int_equal(thin_metadata_create_thin(f->tmd, id), 0);
		td = open_device(f, id);
		for (unsigned v = 0; v < NR_BLOCKS; v++)
			write_block(f->tmd, td, v * (id + 1));
		thin_device_close(td);
	}
	commit(f);
	return 0;
}

/* Something of everything that changes mappings and records. */
static void change_all(struct fixture *f)
{
	struct thin_device *td;
	vblock_t next;

	assert_int_equal(thin_metadata_create_snap(f->tmd, 10, 0), 0);
	td = open_device(f, 0);
	write_block(f->tmd, td, 5);
	write_block(f->tmd, td, 500);
	thin_device_close(td);
	td = open_device(f, 1);
	assert_int_equal(thin_remove_range(td, 0, 11, 100, &next), 0);
	assert_int_equal(thin_swap_blocks(td, 12, 14), 0);
	thin_device_close(td);
	assert_int_equal(thin_metadata_delete_thin(f->tmd, 2), 0);
	assert_int_equal(thin_metadata_set_transaction_id(f->tmd, 0, 7), 0);
}

static void it_holds_what_was_there_whatever_changes(void **state)
{
	struct fixture *f = *state;
	char *before = dump(f, "");

	assert_int_equal(thin_metadata_reserve_snap(f->tmd), 0);
	commit(f);
	assert_int_not_equal(held_root_on_disk(f), 0);
	assert_int_equal(held_root_on_disk(f), info_of(f).held_root);
	assert_holds(f, before);
	change_all(f);
	commit(f);
	assert_holds(f, before);
	/* Not one block that it names can be had. */
	assert_int_equal(info_of(f).nr_data_free, NR_DATA - NR_DEVICES * NR_BLOCKS - 2);

	reopen(f);
	assert_int_not_equal(info_of(f).held_root, 0);
	for (thin_id_t id = 0; id < 2; id++)
		assert_int_equal(thin_metadata_delete_thin(f->tmd, id), 0);
	assert_int_equal(thin_metadata_delete_thin(f->tmd, 10), 0);
	commit(f);
	assert_holds(f, before);
	assert_int_equal(info_of(f).nr_data_free, NR_DATA - NR_DEVICES * NR_BLOCKS);
	free(before);
}

static void open_changes_are_part_of_it(void **state)
{
	struct fixture *f = *state;
	char *after;

	change_all(f);
	assert_int_equal(thin_metadata_reserve_snap(f->tmd), 0);
	commit(f);
	after = dump(f, "");
	assert_int_equal(thin_metadata_delete_thin(f->tmd, 10), 0);
	commit(f);
	assert_holds(f, after);
	free(after);
}

static void released_it_leaves_nothing_behind(void **state)
{
	struct fixture *f = *state;
	struct thin_metadata_info before, after;

	/* The counts of shared blocks have grown what they need. */
	assert_int_equal(thin_metadata_reserve_snap(f->tmd), 0);
	commit(f);
	assert_int_equal(thin_metadata_release_snap(f->tmd), 0);
	commit(f);
	before = info_of(f);
	for (unsigned round = 0; round < 3; round++) {
		assert_int_equal(thin_metadata_reserve_snap(f->tmd), 0);
		commit(f);
		assert_int_equal(thin_metadata_release_snap(f->tmd), 0);
		commit(f);
		assert_int_equal(held_root_on_disk(f), 0);
		assert_true(is_clean(f));
	}
	after = info_of(f);
	assert_int_equal(after.held_root, 0);
	assert_int_equal(after.nr_metadata_free, before.nr_metadata_free);
	assert_int_equal(after.nr_data_free, before.nr_data_free);
}

static void what_only_it_had_is_free_when_it_is_released(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(thin_metadata_reserve_snap(f->tmd), 0);
	commit(f);
	change_all(f);
	commit(f);
	for (thin_id_t id = 0; id < 2; id++)
		assert_int_equal(thin_metadata_delete_thin(f->tmd, id), 0);
	assert_int_equal(thin_metadata_delete_thin(f->tmd, 10), 0);
	commit(f);
	assert_int_equal(thin_metadata_release_snap(f->tmd), 0);
	commit(f);
	assert_int_equal(info_of(f).nr_data_free, NR_DATA);
	assert_true(is_clean(f));
}

static void there_is_one_at_most(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(thin_metadata_release_snap(f->tmd), -ENODATA);
	assert_false(thin_metadata_changed(f->tmd));
	assert_int_equal(thin_metadata_reserve_snap(f->tmd), 0);
	assert_int_equal(thin_metadata_reserve_snap(f->tmd), -EBUSY);
	commit(f);
	assert_int_equal(thin_metadata_reserve_snap(f->tmd), -EBUSY);
	assert_false(thin_metadata_changed(f->tmd));
	assert_int_equal(thin_metadata_release_snap(f->tmd), 0);
	assert_int_equal(thin_metadata_release_snap(f->tmd), -ENODATA);
	/* Both in one transaction. */
	assert_int_equal(thin_metadata_reserve_snap(f->tmd), 0);
	commit(f);
	assert_true(is_clean(f));
	thin_metadata_set_read_only(f->tmd);
	assert_int_equal(thin_metadata_release_snap(f->tmd), -EPERM);
}

/*
 * A superblock written before the counts it needs would name a copy whose blocks can be
 * allocated; one written with the rest thrown away, too.
 */
static void nothing_of_it_is_on_disk_before_the_commit(void **state)
{
	struct fixture *f = *state;
	uint64_t writes = fault_device_nr_requests(f->meta, WRITES);
	char *before = dump(f, "");

	assert_int_equal(thin_metadata_reserve_snap(f->tmd), 0);
	assert_int_equal(fault_device_nr_requests(f->meta, WRITES), writes);
	assert_int_equal(abort_alone(f->tmd), 0);
	assert_int_equal(info_of(f).held_root, 0);
	commit(f);
	assert_int_equal(held_root_on_disk(f), 0);
	assert_true(is_clean(f));

	assert_int_equal(thin_metadata_reserve_snap(f->tmd), 0);
	commit(f);
	assert_int_equal(thin_metadata_release_snap(f->tmd), 0);
	assert_int_equal(info_of(f).held_root, 0);
	assert_int_equal(abort_alone(f->tmd), 0);
	assert_int_not_equal(info_of(f).held_root, 0);
	assert_holds(f, before);
	/* NEEDS_CHECK is written at once, and alone. */
	assert_int_equal(thin_metadata_release_snap(f->tmd), 0);
	assert_int_equal(thin_metadata_set_needs_check(f->tmd), 0);
	assert_int_not_equal(held_root_on_disk(f), 0);
	reopen(f);
	assert_holds(f, before);
	free(before);
}

/* Reserve (or release) with the @nth request of kind @ops failing; false: it was not reached. */
static bool fails_at(struct fixture *f, unsigned ops, unsigned nth, bool reserve)
{
	int r;

	fault_device_fail_nth(f->meta, ops, nth);
	r = reserve ? thin_metadata_reserve_snap(f->tmd) : thin_metadata_release_snap(f->tmd);
	if (!r)
		r = thin_metadata_commit(f->tmd);
	fault_device_clear(f->meta);
	if (!r)
		return false;
	assert_int_equal(r, -EIO);
	assert_int_equal(abort_alone(f->tmd), 0);
	/* The last flush is the one that may fail with all on disk. */
	assert_int_equal(info_of(f).held_root, held_root_on_disk(f));
	assert_true(is_clean(f));
	return (info_of(f).held_root != 0) != reserve;
}

static void any_request_may_fail(void **state)
{
	struct fixture *f = *state;
	char *before = dump(f, "");
	static const unsigned kinds[] = { FAULT_OP(IO_READ), WRITES, FLUSHES };

	for (unsigned k = 0; k < 3; k++) {
		unsigned nth = 1;

		reopen(f); /* with an empty cache there is something to read */
		while (fails_at(f, kinds[k], nth, true))
			nth++;
		assert_true(nth > 1);
		assert_holds(f, before);
		reopen(f);
		for (nth = 1; fails_at(f, kinds[k], nth, false); nth++)
			;
		assert_true(nth > 1);
		assert_int_equal(held_root_on_disk(f), 0);
		assert_true(is_clean(f));
	}
	free(before);
}

static void a_damaged_one_is_not_released(void **state)
{
	struct fixture *f = *state;
	struct io_device *mem = fault_device_inner(f->meta);
	mblock_t held;

	assert_int_equal(thin_metadata_reserve_snap(f->tmd), 0);
	commit(f);
	held = info_of(f).held_root;
	((char *)mem_device_data(mem))[held * METADATA_BLOCK_SIZE + 100] ^= 1;
	mem_device_touch(mem, held * METADATA_BLOCK_SIZE, METADATA_BLOCK_SIZE);
	reopen(f);
	assert_int_equal(thin_metadata_release_snap(f->tmd), -EILSEQ);
	assert_int_equal(abort_alone(f->tmd), 0);
	assert_int_equal(info_of(f).held_root, held);
}

/* ---- pins ---- */

/* What the device holds if block 0 is @superblock: the same as @expected, every count right. */
static void assert_pinned(struct fixture *f, const void *superblock, const char *expected)
{
	struct io_device *mem = fault_device_inner(f->meta);
	uint8_t now[METADATA_BLOCK_SIZE];
	char *text;

	memcpy(now, mem_device_data(mem), sizeof(now));
	memcpy(mem_device_data(mem), superblock, sizeof(now));
	mem_device_touch(mem, 0, sizeof(now));
	assert_true(is_clean(f));
	text = dump(f, "");
	assert_string_equal(text, expected);
	free(text);
	memcpy(mem_device_data(mem), now, sizeof(now));
	mem_device_touch(mem, 0, sizeof(now));
}

/* So often that the search for free blocks goes round the device. */
static void change_often(struct fixture *f)
{
	struct thin_device *td = open_device(f, 1);

	for (unsigned i = 0; i < 600; i++) {
		vblock_t next;

		if (i % 2)
			assert_int_equal(thin_remove_range(td, 100, 101, 1, &next), 0);
		else
			write_block(f->tmd, td, 100);
		commit(f);
	}
	thin_device_close(td);
}

static void a_pinned_state_stays_as_it_was(void **state)
{
	uint8_t first[THIN_STATE_BYTES], second[THIN_STATE_BYTES];
	struct fixture *f = *state;
	char *before = dump(f, ""), *between;
	uint64_t pin, later;

	assert_int_equal(thin_metadata_pin(f->tmd, first, &pin), 0);
	change_all(f);
	assert_int_equal(thin_metadata_pin(f->tmd, second, &later), -EBUSY);
	commit(f);
	between = dump(f, "");
	assert_int_equal(thin_metadata_pin(f->tmd, second, &later), 0);
	change_often(f);
	assert_pinned(f, first, before);
	assert_pinned(f, second, between);
	assert_true(thin_metadata_unpin(f->tmd, pin));
	change_often(f);
	assert_pinned(f, second, between);
	assert_true(is_clean(f));
	assert_true(thin_metadata_unpin(f->tmd, later));
	assert_false(thin_metadata_drop_pins(f->tmd));
	free(between);
	free(before);
}

static void what_was_pinned_is_free_afterwards(void **state)
{
	uint8_t superblock[THIN_STATE_BYTES];
	struct fixture *f = *state;
	mblock_t nr_free;
	uint64_t pin;

	change_often(f);
	nr_free = info_of(f).nr_metadata_free;
	assert_int_equal(thin_metadata_pin(f->tmd, superblock, &pin), 0);
	change_often(f);
	assert_in_range(info_of(f).nr_metadata_free, 1, nr_free - 1);
	/* What was taken since is free again, however often: it is not part of the state. */
	assert_in_range(info_of(f).nr_metadata_free, nr_free - 20, nr_free - 1);
	assert_true(thin_metadata_unpin(f->tmd, pin));
	assert_int_equal(info_of(f).nr_metadata_free, nr_free);
}

static void a_pin_can_be_lost(void **state)
{
	uint8_t superblock[THIN_STATE_BYTES];
	struct fixture *f = *state;
	uint64_t pin;

	assert_int_equal(thin_metadata_pin(f->tmd, superblock, &pin), 0);
	assert_int_equal(abort_alone(f->tmd), 0);
	assert_false(thin_metadata_unpin(f->tmd, pin));

	assert_int_equal(thin_metadata_pin(f->tmd, superblock, &pin), 0);
	assert_false(thin_metadata_drop_pins(f->tmd)); /* it is in nobody's way */
	change_often(f);
	assert_true(thin_metadata_drop_pins(f->tmd));
	assert_false(thin_metadata_unpin(f->tmd, pin));
	/* A later one is another. */
	assert_int_equal(thin_metadata_pin(f->tmd, superblock, &pin), 0);
	assert_false(thin_metadata_unpin(f->tmd, pin - 1));
	assert_true(thin_metadata_unpin(f->tmd, pin));
}

#define SNAP_TEST(name) cmocka_unit_test_setup_teardown(name, setup, fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		SNAP_TEST(it_holds_what_was_there_whatever_changes),
		SNAP_TEST(open_changes_are_part_of_it),
		SNAP_TEST(released_it_leaves_nothing_behind),
		SNAP_TEST(what_only_it_had_is_free_when_it_is_released),
		SNAP_TEST(there_is_one_at_most),
		SNAP_TEST(nothing_of_it_is_on_disk_before_the_commit),
		SNAP_TEST(any_request_may_fail),
		SNAP_TEST(a_damaged_one_is_not_released),
		SNAP_TEST(a_pinned_state_stays_as_it_was),
		SNAP_TEST(what_was_pinned_is_free_afterwards),
		SNAP_TEST(a_pin_can_be_lost),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("metadata-snap", tests, NULL, NULL);
}
