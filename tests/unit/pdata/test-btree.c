/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for pdata/btree*.c.  Each test says one fact.  Random work against an oracle:
 * model/test-btree-model.c; damaged trees: test-btree-damage.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "btree-check.h"
#include "fake-space-map.h"
#include "fault-device.h"
#include "prng.h"
#include "util/le.h"

#define NR_BLOCKS 16384
#define NR_OBJECTS 1000

/* Values of 8 bytes: the lower half names an object, the rest is of no account. */
struct fixture {
	struct pdata_fixture f;
	struct btree_info info;  /* one level */
	struct btree_info outer; /* two levels */
	uint32_t objects[NR_OBJECTS];
};

static int objects_change(struct fixture *x, const void *values, unsigned nr, int by)
{
	for (unsigned i = 0; i < nr; i++) {
		uint32_t id = (uint32_t)le64_get(((const struct le64 *)values)[i]);

		if (id < NR_OBJECTS) {
			x->objects[id] += (uint32_t)by;
			assert_true(x->objects[id] < UINT32_MAX / 2);
		}
	}
	return 0;
}

static int objects_inc(void *context, const void *values, unsigned nr)
{
	return objects_change(context, values, nr, 1);
}

static int objects_dec(void *context, const void *values, unsigned nr)
{
	return objects_change(context, values, nr, -1);
}

static bool objects_equal(void *context, const void *a, const void *b)
{
	(void)context;
	return (uint32_t)le64_get(*(const struct le64 *)a) ==
	       (uint32_t)le64_get(*(const struct le64 *)b);
}

static int setup(void **state)
{
	struct fixture *x = calloc(1, sizeof(*x));

	pdata_fixture_init(&x->f, NR_BLOCKS, 128 << 20);
	x->info = (struct btree_info){
		.tm = x->f.tm,
		.levels = 1,
		.value_type = { .size = 8,
				.context = x,
				.inc = objects_inc,
				.dec = objects_dec,
				.equal = objects_equal },
	};
	x->outer = x->info;
	x->outer.levels = 2;
	*state = x;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *x = *state;

	pdata_fixture_destroy(&x->f);
	free(x);
	return 0;
}

/* Values that are no objects unless wanted: id is the key, moved out of their way. */
static struct le64 plain(uint64_t key)
{
	return le64_make(key + NR_OBJECTS);
}

static mblock_t empty(struct fixture *x)
{
	mblock_t root;

	assert_int_equal(btree_empty(&x->info, &root), 0);
	return root;
}

static void insert(struct fixture *x, mblock_t *root, uint64_t key, struct le64 value)
{
	assert_int_equal(btree_insert(&x->info, *root, &key, &value, root, NULL), 0);
}

static mblock_t ascending(struct fixture *x, uint64_t nr)
{
	mblock_t root = empty(x);

	for (uint64_t key = 0; key < nr; key++)
		insert(x, &root, key, plain(key));
	return root;
}

static struct btree_check check(struct fixture *x, mblock_t root, unsigned levels)
{
	struct btree_check c = {
		.bm = x->f.bm,
		.levels = levels,
		.value_size = 8,
		.counts = calloc(NR_BLOCKS, sizeof(uint32_t)),
	};

	if (!btree_check_tree(&c, root))
		fail_msg("%s", c.message);
	free(c.counts);
	c.counts = NULL;
	return c;
}

static uint32_t count(struct fixture *x, mblock_t b)
{
	uint32_t n;

	assert_int_equal(tm_ref(x->f.tm, b, &n), 0);
	return n;
}

/* ---- empty and small ---- */

static void an_empty_tree_has_nothing(void **state)
{
	struct fixture *x = *state;
	mblock_t root = empty(x), missing = 0, same = root;
	uint64_t key = 5, found;
	struct btree_run run;
	struct le64 value;

	assert_int_equal(btree_lookup(&x->info, root, &key, &value), -ENODATA);
	assert_int_equal(btree_lookup_next(&x->info, root, &key, &found, &value), -ENODATA);
	assert_int_equal(btree_find_lowest_key(&x->info, root, &found), -ENODATA);
	assert_int_equal(btree_find_highest_key(&x->info, root, &found), -ENODATA);
	assert_int_equal(btree_remove(&x->info, root, &key, &same), -ENODATA);
	assert_int_equal(same, root);
	assert_int_equal(
		btree_lookup_run(&x->info, root, 3, 9, true, 1, &found, &value, &run, &missing), 0);
	assert_int_equal(run.nr, 0);
	assert_int_equal(run.next_key, 9);
	assert_int_equal(btree_del(&x->info, root), 0);
	assert_int_equal(count(x, root), 0);
}

static void a_fresh_root_is_the_golden_leaf(void **state)
{
	struct fixture *x = *state;
	mblock_t root;
	struct disk_node_header *h;

	do
		root = empty(x);
	while (root != 6);
	pdata_fixture_commit(&x->f);
	h = pdata_fixture_disk(&x->f, 6);
	assert_int_equal(le32_get(h->csum), 0xCB3DDA35); /* ondisk-format.md, section 9 */
}

static void overwriting_releases_the_old_value(void **state)
{
	struct fixture *x = *state;
	mblock_t root = empty(x);
	uint64_t key = 1;
	struct le64 value;
	bool inserted;

	x->objects[7] = x->objects[8] = 1;
	value = le64_make(7);
	assert_int_equal(btree_insert(&x->info, root, &key, &value, &root, &inserted), 0);
	assert_true(inserted);
	value = le64_make(8);
	assert_int_equal(btree_insert(&x->info, root, &key, &value, &root, &inserted), 0);
	assert_false(inserted);
	assert_int_equal(x->objects[7], 0);
	assert_int_equal(x->objects[8], 1);

	/* The same object with other bits around it: nothing is released. */
	value = le64_make(UINT64_C(1) << 40 | 8);
	assert_int_equal(btree_insert(&x->info, root, &key, &value, &root, &inserted), 0);
	assert_int_equal(x->objects[8], 1);
	assert_int_equal(btree_lookup(&x->info, root, &key, &value), 0);
	assert_int_equal(le64_get(value), UINT64_C(1) << 40 | 8);
	assert_int_equal(btree_remove(&x->info, root, &key, &root), 0);
	assert_int_equal(x->objects[8], 0);
}

static void the_ends_of_the_key_space_are_keys(void **state)
{
	struct fixture *x = *state;
	mblock_t root = ascending(x, 1000);
	uint64_t key = UINT64_MAX, found;
	struct le64 value = plain(1);

	insert(x, &root, key, value);
	assert_int_equal(btree_lookup(&x->info, root, &key, &value), 0);
	assert_int_equal(btree_find_highest_key(&x->info, root, &found), 0);
	assert_int_equal(found, UINT64_MAX);
	assert_int_equal(btree_find_lowest_key(&x->info, root, &found), 0);
	assert_int_equal(found, 0);
	key = 1000;
	assert_int_equal(btree_lookup_next(&x->info, root, &key, &found, &value), 0);
	assert_int_equal(found, UINT64_MAX);
	key = UINT64_MAX;
	assert_int_equal(btree_remove(&x->info, root, &key, &root), 0);
	assert_int_equal(btree_lookup(&x->info, root, &key, &value), -ENODATA);
}

/* ---- how full leaves are ---- */

static void random_inserts_take_at_most_20_bytes_a_mapping(void **state)
{
	struct fixture *x = *state;
	const uint64_t nr = 80000;
	uint64_t *keys = malloc(nr * sizeof(*keys));
	mblock_t root = empty(x);
	struct btree_check c;
	struct prng p;

	prng_init(&p, prng_seed());
	for (uint64_t i = 0; i < nr; i++)
		keys[i] = i;
	for (uint64_t i = nr; i > 1; i--) {
		uint64_t j = prng_below(&p, i), k = keys[i - 1];

		keys[i - 1] = keys[j];
		keys[j] = k;
	}
	for (uint64_t i = 0; i < nr; i++)
		insert(x, &root, keys[i], plain(keys[i]));
	free(keys);

	c = check(x, root, 1);
	assert_int_equal(c.nr_entries, nr);
	print_message("# %u leaves, %u internal, %.1f bytes a mapping, %.1f %% full\n",
		      (unsigned)c.nr_leaves, (unsigned)c.nr_internal,
		      4096.0 * (double)(c.nr_leaves + c.nr_internal) / (double)nr,
		      100.0 * (double)nr / (double)(252 * c.nr_leaves));
	assert_true(4096 * (c.nr_leaves + c.nr_internal) <= 20 * nr);
	assert_true(nr * 100 >= 80 * 252 * c.nr_leaves);
}

static void ascending_inserts_leave_full_leaves(void **state)
{
	struct fixture *x = *state;
	struct btree_check c = check(x, ascending(x, 80000), 1);

	assert_true(c.nr_leaves <= 80000 / 252 + 2);
	assert_int_equal(c.depth, 2);
}

/* Two files written side by side: their keys ascend in two places of one tree. */
static void two_ascending_streams_leave_full_leaves(void **state)
{
	struct fixture *x = *state;
	mblock_t root = empty(x);
	struct btree_check c;

	for (uint64_t i = 0; i < 40000; i++) {
		insert(x, &root, i, plain(i));
		insert(x, &root, 1000000 + i, plain(i));
	}
	c = check(x, root, 1);
	assert_true(c.nr_leaves <= 80000 / 252 + 8);
}

static void descending_inserts_are_well_filled(void **state)
{
	struct fixture *x = *state;
	mblock_t root = empty(x);
	struct btree_check c;

	for (uint64_t i = 80000; i-- > 0;)
		insert(x, &root, i, plain(i));
	c = check(x, root, 1);
	assert_true(80000 * 100 >= 65 * 252 * c.nr_leaves);
}

/* ---- reading ---- */

static int add_key(void *context, uint64_t key, const void *value)
{
	uint64_t *next = context;

	assert_int_equal(key, *next);
	assert_int_equal(le64_get(*(const struct le64 *)value), key + NR_OBJECTS);
	++*next;
	return key == 6000 ? 42 : 0;
}

static void a_walk_visits_all_in_order_until_told_to_stop(void **state)
{
	struct fixture *x = *state;
	uint64_t next = 0;

	assert_int_equal(btree_walk(&x->info, ascending(x, 5000), add_key, &next), 0);
	assert_int_equal(next, 5000);
	next = 0;
	assert_int_equal(btree_walk(&x->info, ascending(x, 9000), add_key, &next), 42);
	assert_int_equal(next, 6001);
}

static void runs_cover_a_range_without_gap_or_repetition(void **state)
{
	struct fixture *x = *state;
	mblock_t root = empty(x), missing;
	struct le64 values[64];
	uint64_t keys[64];

	for (uint64_t key = 10; key < 20000; key += 3)
		insert(x, &root, key, plain(key));
	for (uint64_t begin = 0; begin < 3000; begin += 311) {
		for (uint64_t end = begin; end < 25000; end += 4999) {
			uint64_t at = begin, want = begin <= 10 ? 10 : begin + (13 - begin % 3) % 3;

			while (at < end) {
				struct btree_run run;

				assert_int_equal(btree_lookup_run(&x->info, root, at, end, true, 64,
								  keys, values, &run, &missing),
						 0);
				assert_true(run.next_key > at && run.next_key <= end);
				for (unsigned i = 0; i < run.nr; i++, want += 3) {
					assert_int_equal(keys[i], want);
					assert_int_equal(le64_get(values[i]), want + NR_OBJECTS);
				}
				at = run.next_key;
			}
			assert_true(want >= end || want >= 20000);
		}
	}
}

static void a_try_names_the_missing_block_until_all_are_there(void **state)
{
	struct fixture *x = *state;
	mblock_t root = ascending(x, 80000), missing;
	uint64_t key = 40000, keys[4];
	struct le64 value, values[4];
	unsigned nr_missing = 0;
	struct btree_run run;
	int r;

	pdata_fixture_commit(&x->f);
	pdata_fixture_reset(&x->f);
	assert_int_equal(btree_lookup_run(&x->info, root, key, key + 4, false, 4, keys, values,
					  &run, &missing),
			 -EWOULDBLOCK);
	assert_int_equal(missing, root);
	while ((r = btree_try_lookup(&x->info, root, &key, &value, &missing)) == -EWOULDBLOCK) {
		struct locked_block *lb;

		nr_missing++;
		assert_int_equal(tm_read_lock(x->f.tm, missing, &btree_node_validator, &lb), 0);
		tm_unlock(x->f.tm, lb);
	}
	assert_int_equal(r, 0);
	assert_int_equal(nr_missing, 3);
	assert_int_equal(le64_get(value), key + NR_OBJECTS);
	assert_int_equal(btree_lookup_run(&x->info, root, key, key + 4, false, 4, keys, values,
					  &run, &missing),
			 0);
	assert_int_equal(run.nr, 4);
}

/* ---- sharing ---- */

/*
 * The defect of kernels before 2026: the root has a single child, a snapshot shares the
 * child through a shared root, one more entry is removed, the child's content moves up.
 */
static void folding_a_shared_child_counts_its_values_twice(void **state)
{
	struct fixture *x = *state;
	mblock_t root = empty(x), snap, child;
	struct locked_block *lb, *child_lb;
	uint64_t key;

	/* An internal root with one child, as the kernel leaves it: made by hand. */
	for (key = 0; key < 160; key++) {
		x->objects[key] = 1;
		insert(x, &root, key, le64_make(key));
	}
	child = root;
	assert_int_equal(btree_empty(&x->info, &root), 0);
	assert_int_equal(bm_write_lock(x->f.bm, root, &btree_node_validator, &lb), 0);
	assert_int_equal(bm_read_lock(x->f.bm, child, &btree_node_validator, &child_lb), 0);
	{
		struct disk_node_header *h = block_data_mut(lb);
		struct le64 *keys = (struct le64 *)(h + 1);

		h->flags = le32_make(INTERNAL_NODE);
		h->nr_entries = le32_make(1);
		keys[0] = le64_make(0);
		keys[252] = le64_make(child);
	}
	bm_unlock(child_lb);
	bm_unlock(lb);
	pdata_fixture_commit(&x->f);
	assert_int_equal(check(x, root, 1).depth, 1);

	snap = root;
	assert_int_equal(tm_inc(x->f.tm, snap), 0);
	key = 5;
	assert_int_equal(btree_remove(&x->info, root, &key, &root), 0);

	assert_int_equal(check(x, root, 1).depth, 0);
	assert_int_equal(check(x, snap, 1).nr_entries, 160);
	for (key = 0; key < 160; key++)
		assert_int_equal(x->objects[key], key == 5 ? 1 : 2);
	assert_int_equal(count(x, child), 1);
	assert_int_equal(count(x, snap), 1);
	assert_int_equal(btree_del(&x->info, snap), 0);
	assert_int_equal(btree_del(&x->info, root), 0);
	for (key = 0; key < 160; key++)
		assert_int_equal(x->objects[key], 0);
	assert_int_equal(fake_sm_nr_allocated(x->f.sm), 1);
}

static void deleting_a_shared_tree_leaves_the_other_owner_all(void **state)
{
	struct fixture *x = *state;
	mblock_t root = ascending(x, 80000);
	uint64_t before = fake_sm_nr_allocated(x->f.sm);

	assert_int_equal(tm_inc(x->f.tm, root), 0);
	assert_int_equal(btree_del(&x->info, root), 0);
	assert_int_equal(fake_sm_nr_allocated(x->f.sm), before);
	assert_int_equal(check(x, root, 1).nr_entries, 80000);
	assert_int_equal(btree_del(&x->info, root), 0);
	assert_int_equal(fake_sm_nr_allocated(x->f.sm), 1);
}

static unsigned nr_dec_calls;

static int count_dec(void *context, const void *values, unsigned nr)
{
	nr_dec_calls++;
	return objects_dec(context, values, nr);
}

static void removing_whole_shared_leaves_touches_no_value(void **state)
{
	struct fixture *x = *state;
	mblock_t root = ascending(x, 252 * 20), snap = root;
	uint64_t key = 252;
	unsigned nr, total = 0;

	assert_int_equal(tm_inc(x->f.tm, root), 0);
	x->info.value_type.dec = count_dec;
	nr_dec_calls = 0;
	while (btree_remove_leaves(&x->info, root, &key, 252 * 12, &root, &nr) == 0)
		total += nr;
	assert_int_equal(total, 252 * 11);
	assert_int_equal(nr_dec_calls, 0);
	assert_int_equal(check(x, root, 1).nr_entries, 252 * 9);
	assert_int_equal(check(x, snap, 1).nr_entries, 252 * 20);
}

static uint64_t insert2(struct fixture *x, mblock_t *root, uint64_t dev, uint64_t key, uint32_t id)
{
	uint64_t keys[2] = { dev, key };
	struct le64 value = le64_make(id);

	x->objects[id]++;
	assert_int_equal(btree_insert(&x->outer, *root, keys, &value, root, NULL), 0);
	return key;
}

static void a_shared_outer_leaf_is_made_private_before_the_inner_tree(void **state)
{
	struct fixture *x = *state;
	mblock_t root, held;
	uint64_t keys[2] = { 1, 0 };
	struct le64 value;

	assert_int_equal(btree_empty(&x->outer, &root), 0);
	for (uint32_t i = 0; i < 300; i++)
		insert2(x, &root, 1, i, i);
	pdata_fixture_commit(&x->f);

	held = root; /* a metadata snapshot */
	assert_int_equal(tm_inc(x->f.tm, held), 0);
	insert2(x, &root, 1, 10, 900); /* overwrites 10 in the live tree only */

	keys[1] = 10;
	assert_int_equal(btree_lookup(&x->outer, held, keys, &value), 0);
	assert_int_equal(le64_get(value), 10);
	assert_int_equal(btree_lookup(&x->outer, root, keys, &value), 0);
	assert_int_equal(le64_get(value), 900);
	assert_int_equal(x->objects[10], 1);
	assert_int_equal(x->objects[11], 2);
	check(x, root, 2);
	check(x, held, 2);
	assert_int_equal(btree_del(&x->outer, held), 0);
	assert_int_equal(x->objects[10], 0);
	assert_int_equal(x->objects[11], 1);
	assert_int_equal(btree_del(&x->outer, root), 0);
	assert_int_equal(fake_sm_nr_allocated(x->f.sm), 1);
}

/* ---- failures ---- */

/* Let the nth allocation fail, for every n, and abort: the committed tree is as it was. */
static void any_failed_allocation_can_be_aborted(void **state)
{
	struct fixture *x = *state;
	mblock_t committed = ascending(x, 20000), root;
	uint64_t key, n = 0;
	struct le64 value;
	int r;

	pdata_fixture_commit(&x->f);
	do {
		fake_sm_fail_new_block(x->f.sm, ++n);
		root = committed;
		r = tm_inc(x->f.tm, root);
		for (key = 100; !r && key < 600; key++) {
			value = plain(key);
			r = btree_insert(&x->info, root, &key, &value, &root, NULL);
			if (!r && key % 3 == 0)
				r = btree_remove(&x->info, root, &key, &root);
		}
		assert_true(r == 0 || r == -ENOSPC);
		pdata_fixture_abort(&x->f);
		x->info.tm = x->f.tm;
		assert_int_equal(check(x, committed, 1).nr_entries, 20000);
	} while (r);
	assert_true(n > 3);
}

static void any_failed_read_can_be_aborted(void **state)
{
	struct fixture *x = *state;
	mblock_t committed = ascending(x, 20000), root;
	uint64_t key, n = 0;
	unsigned nr;
	int r;

	pdata_fixture_commit(&x->f);
	do {
		pdata_fixture_reset(&x->f);
		fault_device_fail_nth(x->f.dev, FAULT_OP(IO_READ), ++n);
		root = committed;
		key = 1000;
		while (!(r = btree_remove_leaves(&x->info, root, &key, 1900, &root, &nr)))
			;
		if (r == -ENODATA)
			r = btree_del(&x->info, root);
		fault_device_clear(x->f.dev);
		assert_true(r == 0 || r == -EIO);
		pdata_fixture_abort(&x->f);
		x->info.tm = x->f.tm;
		assert_int_equal(check(x, committed, 1).nr_entries, 20000);
	} while (r && n < 200);
	assert_true(n > 3);
}

/* ---- threads ---- */

struct reader {
	struct fixture *x;
	mblock_t *root; /* guarded by meta_root */
	atomic_bool *stop;
	unsigned seed;
	_Atomic uint64_t nr_read;
	uint64_t nr_wrong;
};

/* Keys below 20000 are always there; assertions belong to the main thread. */
static void *read_all_the_time(void *arg)
{
	struct reader *rd = arg;
	struct prng p;

	prng_init(&p, rd->seed);
	while (!atomic_load(rd->stop)) {
		uint64_t key = prng_below(&p, 20000);
		struct le64 value;
		int r;

		lock_meta_root_shared(&rd->x->f.meta_root);
		r = btree_lookup(&rd->x->info, *rd->root, &key, &value);
		unlock_meta_root_shared(&rd->x->f.meta_root);
		if (r || le64_get(value) != key + NR_OBJECTS)
			rd->nr_wrong++;
		atomic_fetch_add(&rd->nr_read, 1);
	}
	return NULL;
}

static uint64_t fewest_reads(struct reader *readers, unsigned nr)
{
	uint64_t fewest = UINT64_MAX;

	for (unsigned i = 0; i < nr; i++)
		fewest = MIN(fewest, atomic_load(&readers[i].nr_read));
	return fewest;
}

static void readers_are_undisturbed_by_changes_and_commits(void **state)
{
	struct fixture *x = *state;
	mblock_t root = ascending(x, 20000);
	atomic_bool stop = false;
	struct reader readers[3];
	pthread_t threads[3];

	pdata_fixture_commit(&x->f);
	pdata_fixture_reset(&x->f);
	bm_set_cache_limit(x->f.bm, 32 * METADATA_BLOCK_SIZE); /* much is read again */
	for (unsigned i = 0; i < ARRAY_SIZE(readers); i++) {
		readers[i] = (struct reader){ x, &root, &stop, i, 0, 0 };
		assert_int_equal(pthread_create(&threads[i], NULL, read_all_the_time, &readers[i]),
				 0);
	}
	/* Until each reader was there for a while. */
	for (uint64_t i = 0; i < 3000 || fewest_reads(readers, ARRAY_SIZE(readers)) < 500; i++) {
		lock_meta_root(&x->f.meta_root);
		insert(x, &root, 20000 + i % 3000, plain(i));
		if (i % 100 == 0)
			assert_int_equal(tm_pre_commit(x->f.tm), 0);
		unlock_meta_root(&x->f.meta_root);
		if (i % 100)
			continue;
		lock_meta_root_shared(&x->f.meta_root);
		assert_int_equal(tm_flush(x->f.tm), 0);
		unlock_meta_root_shared(&x->f.meta_root);
		lock_meta_root(&x->f.meta_root);
		tm_end_transaction(x->f.tm);
		unlock_meta_root(&x->f.meta_root);
	}
	atomic_store(&stop, true);
	for (unsigned i = 0; i < ARRAY_SIZE(readers); i++) {
		pthread_join(threads[i], NULL);
		assert_int_equal(readers[i].nr_wrong, 0);
	}
	check(x, root, 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

/* Few values fit into a leaf, so there are three levels of nodes. */
static void tall_trees_are_found_in(void **state)
{
	enum { SIZE = 1000, NR = 1200 };
	struct fixture *x = *state;
	uint8_t value[SIZE] = { 0 }, got[SIZE];
	struct btree_info tall = { .tm = x->f.tm, .levels = 1, .value_type.size = SIZE };
	mblock_t root;

	assert_int_equal(btree_empty(&tall, &root), 0);
	for (uint64_t key = 0; key < NR; key++) {
		memcpy(value, &key, sizeof(key));
		assert_int_equal(btree_insert(&tall, root, &key, value, &root, NULL), 0);
	}
	for (uint64_t key = 0; key < NR; key++) {
		assert_int_equal(btree_lookup(&tall, root, &key, got), 0);
		assert_memory_equal(got, &key, sizeof(key));
	}
	assert_int_equal(btree_lookup(&tall, root, &(uint64_t){ NR }, got), -ENODATA);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(an_empty_tree_has_nothing),
		TEST(a_fresh_root_is_the_golden_leaf),
		TEST(overwriting_releases_the_old_value),
		TEST(the_ends_of_the_key_space_are_keys),
		TEST(random_inserts_take_at_most_20_bytes_a_mapping),
		TEST(ascending_inserts_leave_full_leaves),
		TEST(two_ascending_streams_leave_full_leaves),
		TEST(descending_inserts_are_well_filled),
		TEST(a_walk_visits_all_in_order_until_told_to_stop),
		TEST(runs_cover_a_range_without_gap_or_repetition),
		TEST(a_try_names_the_missing_block_until_all_are_there),
		TEST(folding_a_shared_child_counts_its_values_twice),
		TEST(deleting_a_shared_tree_leaves_the_other_owner_all),
		TEST(removing_whole_shared_leaves_touches_no_value),
		TEST(a_shared_outer_leaf_is_made_private_before_the_inner_tree),
		TEST(any_failed_allocation_can_be_aborted),
		TEST(any_failed_read_can_be_aborted),
		TEST(readers_are_undisturbed_by_changes_and_commits),
		TEST(tall_trees_are_found_in),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
