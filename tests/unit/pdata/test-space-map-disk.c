/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test-space-map-disk.c - reserved and freed blocks, extension, the index tree
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "meta-rig.h"
#include "util/le.h"

#define NR_DATA (2 * ENTRIES_PER_BITMAP + 1000)

static int setup(void **state)
{
	struct meta_rig *rig = calloc(1, sizeof(*rig));

	assert_non_null(rig);
	meta_rig_create(rig, 4096, NR_DATA);
	*state = rig;
	return 0;
}

static int teardown(void **state)
{
	meta_rig_destroy(*state);
	free(*state);
	return 0;
}

static void commit(struct meta_rig *rig)
{
	assert_int_equal(meta_rig_commit(rig), 0);
	meta_rig_check(rig, NULL);
}

static uint64_t nr_free(struct meta_rig *rig)
{
	uint64_t nr;

	assert_int_equal(sm_get_nr_free(rig->data, &nr), 0);
	return nr;
}

static uint32_t count_of(struct meta_rig *rig, dblock_t b)
{
	uint32_t count;

	assert_int_equal(sm_get_count(rig->data, b, &count), 0);
	return count;
}

/* ---- reserved ---- */

static void reserved_blocks_are_consecutive_and_uncounted(void **state)
{
	struct meta_rig *rig = *state;
	dblock_t b, other;

	for (dblock_t k = 0; k < 100; k++) {
		assert_int_equal(sm_disk_reserve_block(rig->data, &b), 0);
		assert_int_equal(b, k);
		assert_int_equal(count_of(rig, b), 0);
	}
	assert_int_equal(nr_free(rig), NR_DATA - 100);
	assert_int_equal(sm_new_block(rig->data, &other), 0);
	assert_int_equal(other, 100);
	assert_int_equal(sm_disk_use_reserved(rig->data, 50), 0);
	assert_int_equal(count_of(rig, 50), 1);
	assert_int_equal(sm_disk_use_reserved(rig->data, 50), -EINVAL);
	assert_int_equal(sm_disk_use_reserved(rig->data, 2000), -EINVAL);
	assert_int_equal(nr_free(rig), NR_DATA - 101);
	commit(rig);
	assert_int_equal(nr_free(rig), NR_DATA - 101);
	assert_int_equal(le64_get(rig->data_root.nr_allocated), 2);
}

static void reservation_ends_with_an_abort(void **state)
{
	struct meta_rig *rig = *state;
	dblock_t b;

	assert_int_equal(sm_disk_reserve_block(rig->data, &b), 0);
	meta_rig_abort(rig);
	assert_int_equal(nr_free(rig), NR_DATA);
	assert_int_equal(sm_disk_use_reserved(rig->data, b), -EINVAL);
}

static void range_is_reserved_whole_or_not(void **state)
{
	struct meta_rig *rig = *state;
	dblock_t b;

	assert_int_equal(sm_inc_block(rig->data, 20000), 0);
	assert_int_equal(sm_disk_reserve_range(rig->data, 10, 20001), -EINVAL);
	assert_int_equal(nr_free(rig), NR_DATA - 1);
	assert_int_equal(sm_disk_reserve_range(rig->data, 0, 20000), 0);
	assert_int_equal(nr_free(rig), NR_DATA - 20001);
	assert_int_equal(sm_disk_reserve_range(rig->data, 19999, 20000), -EINVAL);
	assert_int_equal(sm_disk_reserve_range(rig->data, 30000, NR_DATA + 1), -EINVAL);
	assert_int_equal(sm_new_block(rig->data, &b), 0);
	assert_int_equal(b, 20001);
	sm_disk_unreserve_range(rig->data, 16000, NR_DATA);
	assert_int_equal(sm_disk_reserve_range(rig->data, 16000, 16001), 0);
	assert_int_equal(nr_free(rig), NR_DATA - 2 - 16001);
}

/* What the transaction did can be done again in part, and no block is then two things. */
static void a_block_taken_and_freed_waits_for_the_commit(void **state)
{
	struct meta_rig *rig = *state;
	dblock_t b, begin, end;

	assert_int_equal(sm_disk_reserve_block(rig->data, &b), 0);
	assert_int_equal(sm_disk_use_reserved(rig->data, b), 0);
	assert_int_equal(sm_dec_block(rig->data, b), 0);
	assert_int_equal(count_of(rig, b), 0);
	assert_int_equal(nr_free(rig), NR_DATA - 1);
	assert_int_equal(sm_disk_reserve_range(rig->data, b, b + 1), -EINVAL);
	assert_int_equal(sm_disk_next_free_run(rig->data, b, 10, &begin, &end), 0);
	assert_int_equal(begin, b + 1);
	/* Only who counts it again, without asking for a block, has it. */
	assert_int_equal(sm_inc_block(rig->data, b), 0);
	assert_int_equal(sm_dec_block(rig->data, b), 0);
	assert_int_equal(nr_free(rig), NR_DATA - 1);
	commit(rig);
	assert_int_equal(nr_free(rig), NR_DATA);
	assert_int_equal(sm_disk_reserve_range(rig->data, b, b + 1), 0);
}

/* ... once: what is reserved later stays so. */
static void what_a_commit_lets_go_may_be_reserved_for_good(void **state)
{
	struct meta_rig *rig = *state;
	dblock_t b;

	assert_int_equal(sm_new_block(rig->data, &b), 0);
	assert_int_equal(sm_dec_block(rig->data, b), 0);
	commit(rig);
	assert_int_equal(sm_disk_reserve_range(rig->data, b, b + 1), 0);
	commit(rig);
	assert_int_equal(sm_disk_reserve_range(rig->data, b, b + 1), -EINVAL);
}

static void reserving_everything_is_enospc_until_put_back(void **state)
{
	struct meta_rig *rig = *state;
	dblock_t b;

	assert_int_equal(sm_disk_reserve_range(rig->data, 0, NR_DATA), 0);
	assert_int_equal(nr_free(rig), 0);
	assert_int_equal(sm_disk_reserve_block(rig->data, &b), -ENOSPC);
	assert_int_equal(sm_new_block(rig->data, &b), -ENOSPC);
	sm_disk_unreserve_range(rig->data, 30000, 30001);
	assert_int_equal(nr_free(rig), 1);
	assert_int_equal(sm_disk_reserve_block(rig->data, &b), 0);
	assert_int_equal(b, 30000);
	commit(rig);
	assert_int_equal(nr_free(rig), 0);
}

/* ---- freed ---- */

struct runs {
	dblock_t run[16][2];
	unsigned nr;
	struct space_map *reserve_in; /* or NULL */
};

static void note_run(void *ctx, dblock_t begin, dblock_t end)
{
	struct runs *runs = ctx;

	assert_true(runs->nr < ARRAY_SIZE(runs->run));
	runs->run[runs->nr][0] = begin;
	runs->run[runs->nr++][1] = end;
	if (runs->reserve_in)
		assert_int_equal(sm_disk_reserve_range(runs->reserve_in, begin, end), 0);
}

static void expect_freed(struct meta_rig *rig, unsigned nr, const dblock_t run[][2])
{
	struct runs runs = { .nr = 0 };

	sm_disk_take_freed(rig->data, note_run, &runs);
	assert_int_equal(runs.nr, nr);
	for (unsigned k = 0; k < nr; k++) {
		assert_int_equal(runs.run[k][0], run[k][0]);
		assert_int_equal(runs.run[k][1], run[k][1]);
	}
}

static void freed_runs_are_told_once_after_the_commit(void **state)
{
	static const dblock_t expected[][2] = { { 100, 200 }, { 16000, 17000 } };
	struct meta_rig *rig = *state;

	assert_int_equal(sm_inc_blocks(rig->data, 0, 20000), 0);
	assert_int_equal(sm_inc_blocks(rig->data, 150, 151), 0);
	commit(rig);
	expect_freed(rig, 0, NULL);
	assert_int_equal(sm_dec_blocks(rig->data, 16000, 17000), 0);
	assert_int_equal(sm_dec_blocks(rig->data, 100, 200), 0);
	assert_int_equal(sm_dec_blocks(rig->data, 150, 151), 0);
	assert_int_equal(sm_dec_blocks(rig->data, 300, 301), 0);
	assert_int_equal(sm_inc_blocks(rig->data, 300, 301), 0); /* used again */
	expect_freed(rig, 0, NULL);
	commit(rig);
	expect_freed(rig, 2, expected);
	expect_freed(rig, 0, NULL);
}

static void freed_blocks_pile_up_until_taken(void **state)
{
	static const dblock_t expected[][2] = { { 0, 10 }, { 20, 30 } };
	struct meta_rig *rig = *state;

	assert_int_equal(sm_inc_blocks(rig->data, 0, 100), 0);
	commit(rig);
	assert_int_equal(sm_dec_blocks(rig->data, 0, 10), 0);
	commit(rig);
	assert_int_equal(sm_dec_blocks(rig->data, 20, 40), 0);
	commit(rig);
	/* Free since the commit, and used again before anybody asked. */
	assert_int_equal(sm_inc_blocks(rig->data, 30, 35), 0);
	assert_int_equal(sm_disk_reserve_range(rig->data, 35, 40), 0);
	expect_freed(rig, 2, expected);
}

static void block_freed_in_its_own_transaction_is_told(void **state)
{
	static const dblock_t expected[][2] = { { 0, 1 }, { 2, 3 } };
	struct meta_rig *rig = *state;
	dblock_t b;

	for (int k = 0; k < 3; k++)
		assert_int_equal(sm_new_block(rig->data, &b), 0);
	assert_int_equal(sm_dec_blocks(rig->data, 0, 3), 0);
	assert_int_equal(sm_inc_block(rig->data, 1), 0);
	commit(rig);
	expect_freed(rig, 2, expected);
}

static void told_runs_may_be_reserved_at_once(void **state)
{
	struct meta_rig *rig = *state;
	struct runs runs = { .reserve_in = rig->data };

	assert_int_equal(sm_inc_blocks(rig->data, 0, 100), 0);
	commit(rig);
	assert_int_equal(sm_dec_blocks(rig->data, 10, 20), 0);
	assert_int_equal(sm_dec_blocks(rig->data, 30, 40), 0);
	commit(rig);
	sm_disk_take_freed(rig->data, note_run, &runs);
	assert_int_equal(runs.nr, 2);
	assert_int_equal(nr_free(rig), NR_DATA - 100);
}

/* ---- free runs ---- */

static void free_runs_leave_out_both_states_and_reserved(void **state)
{
	struct meta_rig *rig = *state;
	dblock_t begin, end;

	assert_int_equal(sm_inc_blocks(rig->data, 50, 60), 0);
	assert_int_equal(sm_inc_blocks(rig->data, 20000, 20001), 0);
	commit(rig);
	assert_int_equal(sm_dec_blocks(rig->data, 55, 60), 0); /* used in the committed state */
	assert_int_equal(sm_inc_blocks(rig->data, 60, 70), 0); /* used in the current one */
	assert_int_equal(sm_disk_reserve_range(rig->data, 70, 80), 0);

	assert_int_equal(sm_disk_next_free_run(rig->data, 0, UINT64_MAX, &begin, &end), 0);
	assert_int_equal(begin, 0);
	assert_int_equal(end, 50);
	assert_int_equal(sm_disk_next_free_run(rig->data, 50, UINT64_MAX, &begin, &end), 0);
	assert_int_equal(begin, 80);
	assert_int_equal(end, 20000);
	assert_int_equal(sm_disk_next_free_run(rig->data, 20000, UINT64_MAX, &begin, &end), 0);
	assert_int_equal(begin, 20001);
	assert_int_equal(end, NR_DATA);
	assert_int_equal(sm_disk_next_free_run(rig->data, NR_DATA, UINT64_MAX, &begin, &end),
			 -ENODATA);
}

static uint64_t lookups(struct meta_rig *rig)
{
	struct cache_stats s;

	bm_get_stats(rig->bm, &s);
	return s.hits + s.misses;
}

static void a_slice_of_a_free_run_is_found_without_a_look_at_the_rest(void **state)
{
	struct meta_rig *rig = *state;
	uint64_t before, slice, all;
	dblock_t begin, end;

	assert_int_equal(sm_disk_next_free_run(rig->data, 0, UINT64_MAX, &begin, &end), 0);
	assert_int_equal(end, NR_DATA);
	before = lookups(rig);
	assert_int_equal(sm_disk_next_free_run(rig->data, 7, 100, &begin, &end), 0);
	slice = lookups(rig) - before;
	assert_int_equal(begin, 7);
	assert_int_equal(end, 107);
	before = lookups(rig);
	assert_int_equal(sm_disk_next_free_run(rig->data, 7, UINT64_MAX, &begin, &end), 0);
	all = lookups(rig) - before;
	assert_true(slice < all);
}

/* ---- extending ---- */

static void extension_counts_from_the_commit_on(void **state)
{
	struct meta_rig *rig = *state;
	uint64_t nr;
	dblock_t b;

	assert_int_equal(sm_inc_blocks(rig->data, 0, NR_DATA), 0);
	commit(rig);
	assert_int_equal(sm_extend(rig->data, 50), 0); /* within the last bitmap */
	assert_int_equal(sm_extend(rig->data, 20000), 0);
	assert_int_equal(sm_get_nr_blocks(rig->data, &nr), 0);
	assert_int_equal(nr, NR_DATA);
	assert_int_equal(sm_new_block(rig->data, &b), -ENOSPC);
	commit(rig);
	assert_int_equal(sm_get_nr_blocks(rig->data, &nr), 0);
	assert_int_equal(nr, NR_DATA + 20050);
	assert_int_equal(nr_free(rig), 20050);
	assert_int_equal(sm_new_block(rig->data, &b), 0);
	assert_int_equal(b, NR_DATA);
	meta_rig_reopen(rig);
	assert_int_equal(nr_free(rig), 20050);
	assert_int_equal(sm_extend(rig->data, UINT64_MAX), -EINVAL);
	assert_int_equal(sm_extend(rig->data, UINT64_C(1) << 40), -EINVAL);
}

static void set_last_free(void *data, void *ctx)
{
	struct disk_index_entry *entry =
		(void *)((uint8_t *)data + 32 + 8 * NODE_MAX_ENTRIES(16) + 16 * 2);

	(void)ctx;
	entry->nr_free = le32_make(0);
	entry->none_free_before = le32_make(1000);
}

/* Some tools count only existing blocks as free: a full last bitmap then says 0. */
static void extension_behind_a_tools_entry_is_used_first(void **state)
{
	struct meta_rig *rig = *state;
	dblock_t b;

	assert_int_equal(sm_inc_blocks(rig->data, 0, NR_DATA), 0);
	commit(rig);
	meta_rig_close(rig);
	meta_rig_damage(rig, le64_get(rig->data_root.bitmap_root), BTREE_CSUM_XOR, set_last_free,
			NULL);
	assert_int_equal(meta_rig_open(rig), 0);
	assert_int_equal(sm_extend(rig->data, 20000), 0);
	assert_int_equal(meta_rig_commit(rig), 0);
	assert_int_equal(sm_new_block(rig->data, &b), 0);
	assert_int_equal(b, NR_DATA);
	commit(rig);
}

/* More bitmaps than one chunk of the index and one leaf of its tree have. */
static void map_of_many_bitmaps(void **state)
{
	struct meta_rig rig;
	dblock_t nr_blocks = 700 * (dblock_t)ENTRIES_PER_BITMAP + 17, b;

	(void)state;
	meta_rig_create(&rig, 8192, 0);
	assert_int_equal(sm_extend(rig.data, nr_blocks), 0);
	assert_int_equal(meta_rig_commit(&rig), 0);
	meta_rig_check(&rig, NULL);
	meta_rig_reopen(&rig);
	assert_int_equal(sm_inc_blocks(rig.data, 0, nr_blocks - 3), 0);
	assert_int_equal(meta_rig_commit(&rig), 0);
	meta_rig_check(&rig, NULL);
	meta_rig_reopen(&rig);
	for (dblock_t k = 3; k; k--) {
		assert_int_equal(sm_new_block(rig.data, &b), 0);
		assert_int_equal(b, nr_blocks - k);
	}
	assert_int_equal(sm_new_block(rig.data, &b), -ENOSPC);
	meta_rig_destroy(&rig);
}

static void leave(void *data, void *ctx)
{
	(void)data;
	(void)ctx;
}

/* Chunks of the index that are in memory stay there; a new table has room for more. */
static void map_grows_over_a_chunk_of_the_index(void **state)
{
	struct meta_rig *rig = *state;
	const dblock_t extra = 300 * (dblock_t)ENTRIES_PER_BITMAP;
	dblock_t b;

	assert_int_equal(sm_inc_blocks(rig->data, 0, NR_DATA), 0);
	commit(rig);
	assert_int_equal(sm_extend(rig->data, extra), 0);
	commit(rig);
	assert_int_equal(nr_free(rig), extra);
	assert_int_equal(count_of(rig, NR_DATA - 1), 1);
	assert_int_equal(count_of(rig, NR_DATA + extra - 1), 0);
	assert_int_equal(sm_new_block(rig->data, &b), 0);
	assert_int_equal(b, NR_DATA);
	commit(rig);
	meta_rig_reopen(rig);
	assert_int_equal(count_of(rig, NR_DATA), 1);
	assert_int_equal(nr_free(rig), extra - 1);
}

/* The index, and which entries of it are there, is read when it is needed. */
static void map_with_a_damaged_index_is_not_extended(void **state)
{
	struct meta_rig rig;

	(void)state;
	meta_rig_create(&rig, 4096, 2 * ENTRIES_PER_BITMAP); /* the next block needs a bitmap */
	meta_rig_close(&rig);
	meta_rig_damage(&rig, le64_get(rig.data_root.bitmap_root), BTREE_CSUM_XOR + 1, leave, NULL);
	assert_int_equal(meta_rig_open(&rig), 0);
	assert_int_equal(sm_extend(rig.data, ENTRIES_PER_BITMAP), -EILSEQ);
	meta_rig_destroy(&rig);
}

static void full_map_has_no_free_run(void **state)
{
	struct meta_rig *rig = *state;
	dblock_t begin, end;

	assert_int_equal(sm_inc_blocks(rig->data, 0, NR_DATA), 0);
	commit(rig);
	assert_int_equal(sm_disk_next_free_run(rig->data, 0, UINT64_MAX, &begin, &end), -ENODATA);
	assert_int_equal(sm_disk_next_free_run(rig->data, NR_DATA - 1, 100, &begin, &end),
			 -ENODATA);
}

struct reader {
	pthread_t thread;
	struct meta_rig *rig;
	dblock_t nr_blocks;
	unsigned nr_wrong;
};

/* No cmocka in threads. */
static void *read_counts(void *arg)
{
	struct reader *reader = arg;
	struct meta_rig *rig = reader->rig;
	uint64_t nr_free;
	uint32_t count;
	bool more;

	lock_meta_root_shared(&rig->root_lock);
	for (dblock_t b = 0; b < reader->nr_blocks; b += ENTRIES_PER_BITMAP / 2)
		if (sm_get_count(rig->data, b, &count) || count != 1 ||
		    sm_count_is_more_than_one(rig->data, b, &more) || more ||
		    sm_get_nr_free(rig->data, &nr_free) || nr_free != 3)
			reader->nr_wrong++;
	unlock_meta_root_shared(&rig->root_lock);
	return NULL;
}

static void read_together(struct meta_rig *rig, dblock_t nr_blocks)
{
	struct reader readers[4];

	for (unsigned k = 0; k < ARRAY_SIZE(readers); k++) {
		readers[k] = (struct reader){ .rig = rig, .nr_blocks = nr_blocks };
		assert_int_equal(pthread_create(&readers[k].thread, NULL, read_counts, &readers[k]),
				 0);
	}
	for (unsigned k = 0; k < ARRAY_SIZE(readers); k++) {
		assert_int_equal(pthread_join(readers[k].thread, NULL), 0);
		assert_int_equal(readers[k].nr_wrong, 0);
	}
}

/* A map just opened: all readers find no chunk of the index in memory, and no block in the cache.
 */
static void readers_may_load_the_index_together(void **state)
{
	struct meta_rig rig;
	dblock_t nr_blocks = 700 * (dblock_t)ENTRIES_PER_BITMAP;

	(void)state;
	meta_rig_create(&rig, 8192, nr_blocks);
	assert_int_equal(sm_inc_blocks(rig.data, 0, nr_blocks - 3), 0);
	assert_int_equal(meta_rig_commit(&rig), 0);
	for (unsigned round = 0; round < 30; round++) {
		meta_rig_reopen(&rig);
		read_together(&rig, nr_blocks);
	}
	meta_rig_destroy(&rig);
}

#define FACT(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		FACT(reserved_blocks_are_consecutive_and_uncounted),
		FACT(reservation_ends_with_an_abort),
		FACT(range_is_reserved_whole_or_not),
		FACT(a_block_taken_and_freed_waits_for_the_commit),
		FACT(what_a_commit_lets_go_may_be_reserved_for_good),
		FACT(reserving_everything_is_enospc_until_put_back),
		FACT(freed_runs_are_told_once_after_the_commit),
		FACT(freed_blocks_pile_up_until_taken),
		FACT(block_freed_in_its_own_transaction_is_told),
		FACT(told_runs_may_be_reserved_at_once),
		FACT(free_runs_leave_out_both_states_and_reserved),
		FACT(a_slice_of_a_free_run_is_found_without_a_look_at_the_rest),
		FACT(extension_counts_from_the_commit_on),
		FACT(extension_behind_a_tools_entry_is_used_first),
		FACT(map_grows_over_a_chunk_of_the_index),
		FACT(full_map_has_no_free_run),
		cmocka_unit_test(map_with_a_damaged_index_is_not_extended),
		cmocka_unit_test(map_of_many_bitmaps),
		cmocka_unit_test(readers_may_load_the_index_together),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("space-map-disk", tests, NULL, NULL);
}
