/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests of devices: create, snapshot, delete, list.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>

#include "fault-device.h"
#include "thin-fixture.h"
#include "thin-image.h"
#include "thin/thin-metadata.h"
#include "thinpoold/disk-format.h"

/* ---- devices ---- */

static void ids_are_taken_once(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(thin_metadata_create_thin(f->tmd, THIN_ID_MAX + 1), -EINVAL);
	assert_int_equal(thin_metadata_create_thin(f->tmd, THIN_ID_MAX), 0);
	assert_int_equal(thin_metadata_create_thin(f->tmd, THIN_ID_MAX), -EEXIST);
	assert_int_equal(thin_metadata_create_snap(f->tmd, THIN_ID_MAX, THIN_ID_MAX), -EEXIST);
	assert_int_equal(thin_metadata_create_snap(f->tmd, 5, 4), -ENODATA);
	assert_int_equal(thin_metadata_delete_thin(f->tmd, 4), -ENODATA);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	assert_int_equal(thin_metadata_create_thin(f->tmd, THIN_ID_MAX), -EEXIST);
	assert_true(is_clean(f));
}

static void device_made_and_deleted_in_one_transaction(void **state)
{
	struct fixture *f = *state;
	struct thin_device *td;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	td = open_device(f, 1);
	write_block(f->tmd, td, 7);
	assert_int_equal(thin_metadata_delete_thin(f->tmd, 1), -EBUSY);
	td = thin_device_close(td);
	assert_int_equal(thin_metadata_delete_thin(f->tmd, 1), 0);
	assert_int_equal(thin_device_open(f->tmd, 1, &td), -ENODATA);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	assert_int_equal(info_of(f).nr_data_free, NR_DATA);
	assert_true(is_clean(f));
	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
}

static void open_devices_keep_metadata_open(void **state)
{
	struct fixture *f = *state;
	struct thin_device *td, *again;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	td = open_device(f, 1);
	again = open_device(f, 1);
	assert_ptr_equal(td, again);
	assert_int_equal(thin_device_id(td), 1);
	assert_null(thin_device_close(td));
	assert_int_equal(thin_metadata_close(f->tmd), -EBUSY);
	thin_device_close(again);
	assert_null(thin_device_close(NULL));
	assert_int_equal(thin_metadata_close(NULL), 0);
}

static void snapshot_shares_and_writes_part(void **state)
{
	struct fixture *f = *state;
	struct thin_device *origin, *snap;
	dblock_t b, mine;
	bool shared;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	origin = open_device(f, 1);
	b = write_block(f->tmd, origin, 10);
	assert_mapped(origin, 10, b, false);
	assert_int_equal(thin_metadata_create_snap(f->tmd, 2, 1), 0);
	snap = open_device(f, 2);
	assert_mapped(origin, 10, b, true);
	/* A snapshot's own mappings are as old as its origin's: it must not write them either. */
	assert_mapped(snap, 10, b, true);
	assert_int_equal(thin_metadata_data_block_is_shared(f->tmd, b, &shared), 0);
	assert_false(shared); /* the leaf that names it is one, with two owners */

	mine = write_block(f->tmd, origin, 10);
	assert_int_not_equal(mine, b);
	assert_mapped(origin, 10, mine, false);
	assert_mapped(snap, 10, b, true);
	assert_int_equal(thin_device_mapped_blocks(origin), 1);
	assert_int_equal(thin_device_mapped_blocks(snap), 1);
	write_block(f->tmd, snap, 11);
	assert_hole(origin, 11);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	assert_true(is_clean(f));
	thin_device_close(origin);
	thin_device_close(snap);
}

static void exact_sharing_tells_leaves_apart(void **state)
{
	struct fixture *f = *state;
	struct thin_device *origin;
	dblock_t b;
	bool shared;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	origin = open_device(f, 1);
	b = write_block(f->tmd, origin, 0);
	assert_int_equal(thin_metadata_create_snap(f->tmd, 2, 1), 0);
	write_block(f->tmd, origin, 1); /* copies the leaf: b is named twice */
	assert_int_equal(thin_metadata_data_block_is_shared(f->tmd, b, &shared), 0);
	assert_true(shared);
	assert_int_equal(thin_metadata_delete_thin(f->tmd, 2), 0);
	assert_int_equal(thin_metadata_data_block_is_shared(f->tmd, b, &shared), 0);
	assert_false(shared);
	assert_mapped(origin, 0, b, true); /* the clock cannot know */
	thin_device_close(origin);
}

static void snapshots_tick_the_clock(void **state)
{
	struct fixture *f = *state;
	struct thin_device *td;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	for (thin_id_t id = 2; id < 5; id++)
		assert_int_equal(thin_metadata_create_snap(f->tmd, id, 1), 0);
	assert_int_equal(info_of(f).time, 3);
	td = open_device(f, 4);
	assert_int_equal(thin_device_creation_time(td), 3);
	thin_device_close(td);
}

static void clock_ends_at_24_bits(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	assert_int_equal(thin_metadata_close(f->tmd), 0);
	set_time(f, THIN_MAX_TIME - 1);
	f->tmd = open_metadata(f);
	assert_int_equal(thin_metadata_create_snap(f->tmd, 2, 1), 0);
	assert_int_equal(info_of(f).time, THIN_MAX_TIME);
	assert_int_equal(thin_metadata_create_snap(f->tmd, 3, 1), -EOVERFLOW);
	assert_int_equal(thin_metadata_commit(f->tmd), 0); /* it has changed nothing */
}

static void transaction_id_is_compared(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(thin_metadata_set_transaction_id(f->tmd, 1, 5), -EINVAL);
	assert_false(thin_metadata_changed(f->tmd));
	assert_int_equal(thin_metadata_set_transaction_id(f->tmd, 0, 5), 0);
	assert_true(thin_metadata_changed(f->tmd));
	reopen(f);
	assert_int_equal(info_of(f).transaction_id, 0);
	assert_int_equal(thin_metadata_set_transaction_id(f->tmd, 0, 5), 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	reopen(f);
	assert_int_equal(info_of(f).transaction_id, 5);
}

static int collect_id(void *ctx, const struct thin_device_details *d)
{
	thin_id_t **next = ctx;

	*(*next)++ = d->id;
	return d->id == 777 ? 42 : 0;
}

static void devices_are_listed_in_order(void **state)
{
	struct fixture *f = *state;
	thin_id_t ids[200], *next = ids;

	for (thin_id_t id = 150; id > 0; id--)
		assert_int_equal(thin_metadata_create_thin(f->tmd, id * 3), 0);
	assert_int_equal(thin_metadata_for_each_device(f->tmd, collect_id, &next), 0);
	assert_int_equal(next - ids, 150);
	for (unsigned i = 0; i < 150; i++)
		assert_int_equal(ids[i], (i + 1) * 3);
	assert_int_equal(thin_metadata_create_thin(f->tmd, 777), 0);
	assert_int_equal(thin_metadata_create_thin(f->tmd, 778), 0);
	next = ids;
	assert_int_equal(thin_metadata_for_each_device(f->tmd, collect_id, &next), 42);
	assert_int_equal(next - ids, 151);
}

/* A new device of that id would take the tree's place, and free what it maps. */
static void a_tree_without_details_is_not_replaced(void **state)
{
	struct fixture *f = *state;
	struct thin_device *td;
	uint64_t nr_free;

	assert_int_equal(thin_metadata_check_free_id(f->tmd, 1), 0);
	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	assert_int_equal(thin_metadata_check_free_id(f->tmd, 1), -EEXIST);
	td = open_device(f, 1);
	write_block(f->tmd, td, 7);
	td = thin_device_close(td);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	nr_free = info_of(f).nr_data_free;
	thin_forget_details(f->tmd, 1);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);

	assert_int_equal(thin_device_open(f->tmd, 1, &td), -ENODATA);
	assert_int_equal(thin_metadata_check_free_id(f->tmd, 1), -EUCLEAN);
	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), -EUCLEAN);
	assert_int_equal(thin_metadata_create_thin(f->tmd, 2), 0);
	assert_int_equal(thin_metadata_create_snap(f->tmd, 1, 2), -EUCLEAN);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	assert_int_equal(info_of(f).nr_data_free, nr_free);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(ids_are_taken_once),
		TEST(device_made_and_deleted_in_one_transaction),
		TEST(open_devices_keep_metadata_open),
		TEST(snapshot_shares_and_writes_part),
		TEST(exact_sharing_tells_leaves_apart),
		TEST(snapshots_tick_the_clock),
		TEST(clock_ends_at_24_bits),
		TEST(transaction_id_is_compared),
		TEST(devices_are_listed_in_order),
		TEST(a_tree_without_details_is_not_replaced),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("thin-device", tests, NULL, NULL);
}
