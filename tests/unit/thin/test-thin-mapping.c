/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests of lookups, changes of mappings, data blocks and sizes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>

#include "abort-alone.h"
#include "fault-device.h"
#include "mem-device.h"
#include "thin-fixture.h"
#include "thin/thin-metadata.h"
#include "thinpoold/disk-format.h"
#include "util/le.h"

/* ---- mappings ---- */

static void runs_are_merged(void **state)
{
	struct fixture *f = *state;
	struct thin_device *td;
	struct thin_run run;
	dblock_t first;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	td = open_device(f, 1);
	first = write_block(f->tmd, td, 100);
	for (unsigned i = 1; i < 20; i++)
		assert_int_equal(write_block(f->tmd, td, 100 + i), first + i);
	run = find(td, 100, 1000);
	assert_true(run.mapped);
	assert_int_equal(run.dblock, first);
	assert_int_equal(run.nr_blocks, 20);
	run = find(td, 105, 4);
	assert_int_equal(run.dblock, first + 5);
	assert_int_equal(run.nr_blocks, 4);
	run = find(td, 40, 1000); /* a hole ends where the mapping begins */
	assert_false(run.mapped);
	assert_int_equal(run.nr_blocks, 60);
	run = find(td, 120, 1000);
	assert_false(run.mapped);
	assert_int_equal(run.nr_blocks, 1000);
	run = find(td, UINT64_MAX, 5);
	assert_false(run.mapped);
	assert_int_equal(run.nr_blocks, 1);

	/* Sharing in the middle cuts the run. */
	assert_int_equal(thin_metadata_create_snap(f->tmd, 2, 1), 0);
	write_block(f->tmd, td, 110);
	assert_int_equal(find(td, 100, 1000).nr_blocks, 10);
	assert_true(find(td, 100, 1000).shared);
	assert_int_equal(find(td, 110, 1000).nr_blocks, 1);
	assert_int_equal(find(td, 111, 1000).nr_blocks, 9);
	thin_device_close(td);
}

/* Data blocks that lie together make no run if only some of them may be written to. */
static void sharing_ends_a_run(void **state)
{
	struct fixture *f = *state;
	struct thin_device *td;
	dblock_t low, high;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	td = open_device(f, 1);
	assert_int_equal(thin_metadata_reserve_data_block(f->tmd, &low), 0);
	high = write_block(f->tmd, td, 21);
	assert_int_equal(high, low + 1);
	assert_int_equal(thin_metadata_create_snap(f->tmd, 2, 1), 0);
	assert_int_equal(thin_insert_block(td, 20, low), 0);
	assert_int_equal(write_block(f->tmd, td, 22), high + 1);
	assert_int_equal(find(td, 20, 10).nr_blocks, 1);
	assert_false(find(td, 20, 10).shared);
	assert_int_equal(find(td, 21, 10).nr_blocks, 1);
	assert_true(find(td, 21, 10).shared);
	assert_false(find(td, 22, 10).shared);
	thin_device_close(td);
}

static void swap_moves_blocks_and_frees_none(void **state)
{
	struct fixture *f = *state;
	struct thin_device *td;
	dblock_t a, b;
	uint64_t nr_free;
	bool shared;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	td = open_device(f, 1);
	a = write_block(f->tmd, td, 1);
	assert_int_equal(thin_metadata_create_snap(f->tmd, 2, 1), 0);
	b = write_block(f->tmd, td, 2);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	nr_free = info_of(f).nr_data_free;
	assert_int_equal(thin_swap_blocks(td, 1, 3), -ENODATA);
	assert_false(thin_metadata_changed(f->tmd));
	assert_int_equal(thin_swap_blocks(td, 1, 2), 0);
	assert_mapped(td, 1, b, false);
	assert_mapped(td, 2, a, true);
	assert_int_equal(thin_metadata_data_block_is_shared(f->tmd, a, &shared), 0);
	assert_true(shared);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	assert_int_equal(info_of(f).nr_data_free, nr_free);
	assert_int_equal(thin_device_mapped_blocks(td), 2);
	assert_true(is_clean(f));
	thin_device_close(td);
}

/* The held copy shares the top tree's leaf, and through it the devices' own trees. */
static void metadata_snapshot_keeps_its_mappings(void **state)
{
	struct fixture *f = *state;
	struct thin_device *td[2];
	vblock_t next;

	for (thin_id_t id = 0; id < 2; id++) {
		assert_int_equal(thin_metadata_create_thin(f->tmd, id), 0);
		td[id] = open_device(f, id);
		for (unsigned i = 0; i < 10; i++)
			write_block(f->tmd, td[id], i);
		thin_device_close(td[id]);
	}
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	hold_metadata(f);
	assert_true(info_of(f).held_root > 0);
	assert_true(is_clean(f));

	td[0] = open_device(f, 0);
	td[1] = open_device(f, 1);
	write_block(f->tmd, td[0], 20);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	assert_true(is_clean(f));
	assert_int_equal(thin_remove_range(td[0], 0, 15, 100, &next), 0);
	assert_int_equal(thin_swap_blocks(td[1], 1, 2), 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	assert_true(is_clean(f));
	/* Nothing that the held copy names has been freed. */
	assert_int_equal(info_of(f).nr_data_free, NR_DATA - 21);
	thin_device_close(td[0]);
	thin_device_close(td[1]);
	assert_int_equal(thin_metadata_delete_thin(f->tmd, 0), 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	assert_int_equal(info_of(f).nr_data_free, NR_DATA - 20);
	assert_true(is_clean(f));
}

static void ranges_are_removed_in_slices(void **state)
{
	struct fixture *f = *state;
	struct thin_device *td;
	vblock_t next = 0, highest;
	unsigned slices = 0;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	td = open_device(f, 1);
	assert_int_equal(thin_device_highest_mapped(td, &highest), -ENODATA);
	for (unsigned i = 0; i < 800; i++)
		write_block(f->tmd, td, i * 1000);
	assert_int_equal(thin_device_highest_mapped(td, &highest), 0);
	assert_int_equal(highest, 799000);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);

	/* Nothing is there: nothing changes. */
	assert_int_equal(thin_remove_range(td, 1, 1000, 10, &next), 0);
	assert_int_equal(next, 1000);
	assert_false(thin_metadata_changed(f->tmd));

	for (next = 500; next < 790001; slices++) {
		vblock_t from = next;

		assert_int_equal(thin_remove_range(td, from, 790001, 100, &next), 0);
		assert_true(next > from);
	}
	assert_int_equal(next, 790001);
	assert_true(slices > 2);
	assert_int_equal(thin_device_mapped_blocks(td), 10);
	assert_hole(td, 1000);
	assert_true(find(td, 0, 1).mapped);
	assert_true(find(td, 791000, 1).mapped);
	assert_int_equal(thin_remove_range(td, 0, UINT64_MAX, UINT64_MAX, &next), 0);
	assert_int_equal(thin_device_mapped_blocks(td), 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	assert_int_equal(info_of(f).nr_data_free, NR_DATA);
	assert_true(is_clean(f));
	thin_device_close(td);
}

struct awaited {
	struct thin_waiter waiter;
	bool called;
};

static void note_called(struct thin_waiter *w)
{
	((struct awaited *)w)->called = true;
}

static void cold_lookups_read_without_sleeping(void **state)
{
	struct fixture *f = *state;
	struct thin_device *td;
	struct io_queue *q;
	struct thin_run run;
	mblock_t missing;
	unsigned rounds = 0;
	int r;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	td = open_device(f, 1);
	for (unsigned i = 0; i < 600; i++)
		write_block(f->tmd, td, i);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	thin_device_close(td);
	reopen(f);
	td = open_device(f, 1);

	assert_int_equal(io_queue_self(&q), 0);
	while ((r = thin_try_find_run(td, 300, 10, &run, &missing)) == -EWOULDBLOCK) {
		struct awaited a = { .waiter.done = note_called };

		assert_true(missing < METADATA_BYTES / METADATA_BLOCK_SIZE);
		r = thin_metadata_prefetch(f->tmd, missing, &a.waiter);
		assert_true(r == 0 || r == -EINPROGRESS);
		while (r == -EINPROGRESS && !a.called)
			io_queue_run(q, UINT64_MAX);
		assert_int_equal(a.waiter.result, 0);
		assert_true(++rounds < 10);
	}
	assert_int_equal(r, 0);
	assert_true(run.mapped);
	assert_true(rounds >= 2);
	thin_device_close(td);
}

static void failed_prefetch_says_so(void **state)
{
	struct fixture *f = *state;
	struct awaited a = { .waiter.done = note_called };
	struct thin_device *td;
	struct thin_run run;
	struct io_queue *q;
	mblock_t missing;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	td = open_device(f, 1);
	write_block(f->tmd, td, 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	thin_device_close(td);
	reopen(f);
	td = open_device(f, 1);
	assert_int_equal(io_queue_self(&q), 0);
	assert_int_equal(thin_try_find_run(td, 0, 1, &run, &missing), -EWOULDBLOCK);
	fault_device_add(f->meta, &(struct fault){ .ops = FAULT_OP(IO_READ), .count = UINT64_MAX });
	assert_int_equal(thin_metadata_prefetch(f->tmd, missing, &a.waiter), -EINPROGRESS);
	while (!a.called)
		io_queue_run(q, UINT64_MAX);
	assert_int_equal(a.waiter.result, -EIO);
	assert_int_equal(thin_find_run(td, 0, 1, &run), -EIO);
	fault_device_clear(f->meta);
	assert_int_equal(thin_find_run(td, 0, 1, &run), 0);
	thin_device_close(td);
}

static void mapping_past_the_end_is_never_used(void **state)
{
	struct fixture *f = *state;
	struct io_device *mem = fault_device_inner(f->meta);
	struct disk_sm_root *root;
	struct thin_device *td;
	struct thin_disk_superblock *sb;
	struct thin_run run;
	vblock_t next;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	td = open_device(f, 1);
	for (unsigned i = 0; i < 10; i++)
		write_block(f->tmd, td, i);
	thin_device_close(td);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	assert_int_equal(thin_metadata_close(f->tmd), 0);

	/* Let the data device end in the middle of what is mapped. */
	sb = mem_device_data(mem);
	root = (void *)sb->data_sm_root;
	root->nr_blocks = le64_make(5);
	set_time(f, 0);
	f->tmd = open_metadata(f);
	td = open_device(f, 1);
	assert_int_equal(find(td, 0, 100).nr_blocks, 5);
	assert_int_equal(thin_find_run(td, 5, 1, &run), -EUCLEAN);
	assert_int_equal(thin_find_run(td, 7, 100, &run), -EUCLEAN);
	assert_int_equal(thin_remove_range(td, 0, 10, 10, &next), -EUCLEAN);
	assert_int_equal(thin_metadata_commit(f->tmd), -EINVAL);
	assert_int_equal(abort_alone(f->tmd), 0);
	thin_device_close(td);
}

/* ---- data blocks ---- */

static void reserved_blocks_are_free_on_disk(void **state)
{
	struct fixture *f = *state;
	dblock_t a, b;

	assert_int_equal(thin_metadata_reserve_data_block(f->tmd, &a), 0);
	assert_int_equal(thin_metadata_reserve_data_block(f->tmd, &b), 0);
	assert_int_equal(b, a + 1);
	assert_int_equal(thin_metadata_reserve_data_blocks(f->tmd, b, b + 2), -EINVAL);
	assert_false(thin_metadata_changed(f->tmd));
	assert_int_equal(info_of(f).nr_data_free, NR_DATA - 2);
	thin_metadata_unreserve_data_blocks(f->tmd, b, b + 1);
	assert_int_equal(info_of(f).nr_data_free, NR_DATA - 1);
	assert_int_equal(abort_alone(f->tmd), 0);
	assert_int_equal(info_of(f).nr_data_free, NR_DATA);
	thin_metadata_unreserve_data_blocks(f->tmd, a, a + 1); /* gone already: no matter */
	assert_int_equal(info_of(f).nr_data_free, NR_DATA);
}

static void data_runs_out_and_comes_back_with_a_commit(void **state)
{
	struct fixture *f = *state;
	struct thin_device *td;
	vblock_t next;
	dblock_t b;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	td = open_device(f, 1);
	for (unsigned i = 0; i < NR_DATA; i++)
		write_block(f->tmd, td, i);
	assert_int_equal(thin_metadata_reserve_data_block(f->tmd, &b), -ENOSPC);
	assert_int_equal(thin_metadata_commit(f->tmd), 0); /* that was no reason to abort */
	assert_int_equal(info_of(f).nr_data_free, 0);
	assert_int_equal(thin_remove_range(td, 10, 20, 100, &next), 0);
	/* Freed, but in use in the committed state (L2). */
	assert_int_equal(thin_metadata_reserve_data_block(f->tmd, &b), -ENOSPC);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	assert_int_equal(info_of(f).nr_data_free, 10);
	assert_int_equal(thin_metadata_reserve_data_block(f->tmd, &b), 0);
	thin_device_close(td);
}

struct runs {
	unsigned nr;
	dblock_t begin[8], end[8];
};

static void note_run(void *ctx, dblock_t begin, dblock_t end)
{
	struct runs *runs = ctx;

	assert_true(runs->nr < ARRAY_SIZE(runs->begin));
	runs->begin[runs->nr] = begin;
	runs->end[runs->nr++] = end;
}

static void freed_runs_are_kept_until_punched(void **state)
{
	struct fixture *f = *state;
	struct runs runs = { 0 };
	struct thin_device *td;
	dblock_t first = 0;
	vblock_t next;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	td = open_device(f, 1);
	for (unsigned i = 0; i < 10; i++) {
		dblock_t b = write_block(f->tmd, td, i);

		first = i ? first : b;
	}
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	assert_int_equal(thin_remove_range(td, 2, 6, 100, &next), 0);
	thin_metadata_take_freed(f->tmd, note_run, &runs);
	assert_int_equal(runs.nr, 0); /* not before the commit */
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	thin_metadata_take_freed(f->tmd, note_run, &runs);
	assert_int_equal(runs.nr, 1);
	assert_int_equal(runs.begin[0], first + 2);
	assert_int_equal(runs.end[0], first + 6);
	assert_int_equal(info_of(f).nr_data_free, NR_DATA - 10);
	thin_metadata_unreserve_data_blocks(f->tmd, runs.begin[0], runs.end[0]);
	assert_int_equal(info_of(f).nr_data_free, NR_DATA - 6);
	thin_metadata_take_freed(f->tmd, note_run, &runs);
	assert_int_equal(runs.nr, 1); /* told once */

	assert_int_equal(thin_remove_range(td, 6, 8, 100, &next), 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	thin_metadata_take_freed(f->tmd, NULL, NULL);
	assert_int_equal(info_of(f).nr_data_free, NR_DATA - 4);
	thin_device_close(td);
}

/* ---- sizes ---- */

static void data_grows_with_the_commit(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(thin_metadata_resize_data(f->tmd, NR_DATA - 1), -EINVAL);
	assert_int_equal(thin_metadata_resize_data(f->tmd, NR_DATA + 1), -EINVAL); /* no device */
	assert_int_equal(thin_metadata_resize_data(f->tmd, NR_DATA), 0);
	assert_false(thin_metadata_changed(f->tmd));
	assert_int_equal(io_device_resize(f->data, (uint64_t)40000 * BLOCK_BYTES), 0);
	assert_int_equal(thin_metadata_resize_data(f->tmd, 20000), 0);
	assert_int_equal(thin_metadata_resize_data(f->tmd, 40000), 0);
	assert_int_equal(thin_metadata_resize_data(f->tmd, 20000), -EINVAL);
	assert_int_equal(info_of(f).nr_data_blocks, NR_DATA);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	assert_int_equal(info_of(f).nr_data_blocks, 40000);
	assert_int_equal(info_of(f).nr_data_free, 40000);
	assert_true(is_clean(f));
	assert_int_equal(thin_metadata_resize_data(f->tmd, DATA_BLOCK_LIMIT + 1), -EINVAL);
}

static void metadata_grows_to_its_device(void **state)
{
	struct fixture *f = *state;
	struct thin_metadata_info before = info_of(f), after;
	const struct thin_disk_superblock *sb;

	assert_int_equal(before.nr_metadata_blocks, 4096);
	assert_int_equal(before.metadata_reserve, 409);
	assert_int_equal(thin_metadata_resize_metadata(f->tmd), 0);
	assert_false(thin_metadata_changed(f->tmd));
	assert_int_equal(io_device_resize(f->meta, 200 * MIB), 0);
	assert_int_equal(thin_metadata_resize_metadata(f->tmd), 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	after = info_of(f);
	assert_int_equal(after.nr_metadata_blocks, 51200);
	assert_int_equal(after.metadata_reserve, 4096);
	assert_true(after.nr_metadata_free > 47000);
	sb = mem_device_data(fault_device_inner(f->meta));
	assert_int_equal(le64_get(sb->metadata_nr_blocks), 51200);
	assert_true(is_clean(f));
	reopen(f);
	assert_int_equal(info_of(f).nr_metadata_blocks, 51200);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(runs_are_merged),
		TEST(sharing_ends_a_run),
		TEST(swap_moves_blocks_and_frees_none),
		TEST(metadata_snapshot_keeps_its_mappings),
		TEST(ranges_are_removed_in_slices),
		TEST(cold_lookups_read_without_sleeping),
		TEST(failed_prefetch_says_so),
		TEST(mapping_past_the_end_is_never_used),
		TEST(reserved_blocks_are_free_on_disk),
		TEST(data_runs_out_and_comes_back_with_a_commit),
		TEST(freed_runs_are_kept_until_punched),
		TEST(data_grows_with_the_commit),
		TEST(metadata_grows_to_its_device),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("thin-mapping", tests, NULL, NULL);
}
