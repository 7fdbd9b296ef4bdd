/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Damaged trees: whatever a node says, every operation ends, with an error where the node
 * matters, and without touching memory it should not (run under the sanitizers).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "fault-device.h"
#include "mem-device.h"
#include "pdata-fixture.h"
#include "prng.h"
#include "util/le.h"
#include "util/log.h"

#define NR_BLOCKS 8192
#define NR_DEVS 3
#define NR_KEYS 700

struct fixture {
	struct pdata_fixture f;
	struct btree_info info, inner;
	mblock_t root;
	mblock_t inner_roots[NR_DEVS];
};

static int no_count(void *context, const void *values, unsigned nr)
{
	const uint8_t *bytes = values;
	unsigned sum = 0;

	(void)context;
	for (unsigned i = 0; i < nr * 8; i++) /* the sanitizers see what is read */
		sum += bytes[i];
	return sum == 1 ? 0 : 0;
}

static int setup(void **state)
{
	struct fixture *x = calloc(1, sizeof(*x));

	log_set_level(LOG_LEVEL_ERR - 1);
	pdata_fixture_init(&x->f, NR_BLOCKS, 64 << 20);
	x->info = (struct btree_info){
		.tm = x->f.tm,
		.levels = 2,
		.value_type = { .size = 8, .inc = no_count, .dec = no_count },
	};
	x->inner = x->info;
	x->inner.levels = 1;
	assert_int_equal(btree_empty(&x->info, &x->root), 0);
	for (uint64_t dev = 0; dev < NR_DEVS; dev++) {
		for (uint64_t i = 0; i < NR_KEYS; i++) {
			uint64_t keys[2] = { dev, i * 10 };
			struct le64 value = le64_make(i);

			assert_int_equal(
				btree_insert(&x->info, x->root, keys, &value, &x->root, NULL), 0);
		}
	}
	pdata_fixture_commit(&x->f);
	for (uint64_t dev = 0; dev < NR_DEVS; dev++) {
		struct btree_info top = x->inner;
		struct le64 value;

		assert_int_equal(btree_lookup(&top, x->root, &dev, &value), 0);
		x->inner_roots[dev] = le64_get(value);
	}
	*state = x;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *x = *state;

	pdata_fixture_destroy(&x->f);
	log_set_level(LOG_LEVEL_INFO);
	free(x);
	return 0;
}

static bool allowed(int r)
{
	switch (r) {
	case 0:
	case -ENODATA:
	case -EUCLEAN:
	case -EILSEQ:
	case -ENOTBLK:
	case -EINVAL: /* a count that is 0 already, or a block past the end */
	case -ENOSPC:
		return true;
	default:
		return false;
	}
}

/* ---- all operations, each from the committed state ---- */

static int read_all(struct fixture *x)
{
	uint64_t keys[2], key, run_keys[16];
	struct le64 value, values[16];
	struct btree_run run;
	mblock_t missing;
	int worst = 0, r;

	for (uint64_t dev = 0; dev < NR_DEVS; dev++) {
		keys[0] = dev;
		for (uint64_t i = 0; i < NR_KEYS; i += 7) {
			keys[1] = i * 10;
			r = btree_lookup(&x->info, x->root, keys, &value);
			assert_true(allowed(r));
			worst = r && r != -ENODATA ? r : worst;
			keys[1]++;
			r = btree_lookup_next(&x->info, x->root, keys, &key, &value);
			assert_true(allowed(r));
			worst = r && r != -ENODATA ? r : worst;
			r = btree_lookup_run(&x->inner, x->inner_roots[dev], keys[1], 90000, true,
					     16, run_keys, values, &run, &missing);
			assert_true(allowed(r));
		}
		assert_true(allowed(btree_find_lowest_key(&x->inner, x->inner_roots[dev], &key)));
		assert_true(allowed(btree_find_highest_key(&x->inner, x->inner_roots[dev], &key)));
	}
	return worst;
}

static int visit(void *context, uint64_t key, const void *value)
{
	uint64_t *nr = context;

	(void)key;
	(void)value;
	++*nr;
	return 0;
}

static void abort_changes(struct fixture *x)
{
	pdata_fixture_abort(&x->f);
	x->info.tm = x->inner.tm = x->f.tm;
}

static void change_all(struct fixture *x)
{
	uint64_t keys[2] = { 1, 0 }, nr = 0;
	struct le64 value = le64_make(1);
	mblock_t root;
	unsigned n;
	int r;

	for (uint64_t dev = 0; dev < NR_DEVS; dev++)
		assert_true(allowed(btree_walk(&x->inner, x->inner_roots[dev], visit, &nr)));
	assert_true(nr <= UINT64_C(2) * NR_DEVS * NR_KEYS);

	root = x->root;
	for (uint64_t i = 0; i < 400; i++) {
		keys[1] = 5 + i * 17;
		r = btree_insert(&x->info, root, keys, &value, &root, NULL);
		assert_true(allowed(r));
		if (r)
			break;
	}
	abort_changes(x);

	root = x->root;
	for (uint64_t i = 0; i < NR_KEYS; i++) {
		keys[1] = i * 10;
		r = btree_remove(&x->info, root, keys, &root);
		assert_true(allowed(r));
		if (r && r != -ENODATA)
			break;
	}
	abort_changes(x);

	root = x->root;
	keys[1] = 300;
	do {
		r = btree_remove_leaves(&x->info, root, keys, 6000, &root, &n);
		assert_true(allowed(r));
	} while (!r);
	abort_changes(x);

	assert_true(allowed(tm_inc(x->f.tm, x->inner_roots[1])));
	root = x->root;
	keys[1] = 2000;
	assert_true(allowed(btree_insert(&x->info, root, keys, &value, &root, NULL)));
	abort_changes(x);

	assert_true(allowed(btree_del(&x->info, x->root)));
	abort_changes(x);
}

/* ---- damaging ---- */

struct node {
	struct disk_node_header header;
	struct le64 words[(METADATA_BLOCK_SIZE - sizeof(struct disk_node_header)) / 8];
};

static struct node *on_disk(struct fixture *x, mblock_t b)
{
	return pdata_fixture_disk(&x->f, b);
}

static mblock_t child(struct fixture *x, mblock_t b, unsigned i)
{
	return le64_get(on_disk(x, b)->words[252 + i]);
}

/* Try everything with the node as it is now on disk, then put it back. */
static int try_damage(struct fixture *x, mblock_t b, const struct node *good)
{
	int r;

	pdata_fixture_seal(&x->f, b, BTREE_CSUM_XOR);
	pdata_fixture_reset(&x->f);
	r = read_all(x);
	change_all(x);
	*on_disk(x, b) = *good;
	mem_device_touch(fault_device_inner(x->f.dev), b * METADATA_BLOCK_SIZE,
			 METADATA_BLOCK_SIZE);
	pdata_fixture_reset(&x->f);
	return r;
}

enum field { FLAGS, NR_ENTRIES, MAX_ENTRIES, VALUE_SIZE };

static void set_field(struct node *n, enum field field, uint32_t value)
{
	struct le32 *fields[] = { &n->header.flags, &n->header.nr_entries, &n->header.max_entries,
				  &n->header.value_size };

	*fields[field] = le32_make(value);
}

static void wrong_header_fields_are_euclean(void **state)
{
	static const struct {
		enum field field;
		uint32_t value;
	} damage[] = {
		{ FLAGS, 0 },
		{ FLAGS, 3 },
		{ FLAGS, 4 },
		{ FLAGS, 0x80000002 },
		{ NR_ENTRIES, 253 },
		{ NR_ENTRIES, UINT32_MAX },
		{ NR_ENTRIES, 0 },
		{ MAX_ENTRIES, 0 },
		{ MAX_ENTRIES, 251 },
		{ MAX_ENTRIES, 255 },
		{ MAX_ENTRIES, UINT32_MAX },
		{ VALUE_SIZE, 0 },
		{ VALUE_SIZE, 4 },
		{ VALUE_SIZE, 16 },
		{ VALUE_SIZE, 4064 },
		{ VALUE_SIZE, UINT32_MAX },
	};
	struct fixture *x = *state;
	mblock_t nodes[] = { x->inner_roots[1], child(x, x->inner_roots[1], 1) };

	for (unsigned i = 0; i < ARRAY_SIZE(damage); i++) {
		for (unsigned n = 0; n < ARRAY_SIZE(nodes); n++) {
			struct node good = *on_disk(x, nodes[n]);

			set_field(on_disk(x, nodes[n]), damage[i].field, damage[i].value);
			if (try_damage(x, nodes[n], &good) != -EUCLEAN)
				fail_msg("field %u, value %u, node %u", damage[i].field,
					 damage[i].value, n);
		}
	}
	assert_int_equal(read_all(x), 0);
}

/* Consistent by itself, but not with the tree it is in. */
static void a_leaf_of_another_tree_is_euclean(void **state)
{
	static const uint32_t sizes[] = { 4, 16, 24, 400 };
	struct fixture *x = *state;
	mblock_t leaf = child(x, x->inner_roots[1], 1);
	struct node good = *on_disk(x, leaf);

	for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
		set_field(on_disk(x, leaf), VALUE_SIZE, sizes[i]);
		set_field(on_disk(x, leaf), MAX_ENTRIES, NODE_MAX_ENTRIES(sizes[i]));
		set_field(on_disk(x, leaf), NR_ENTRIES, 5);
		assert_int_equal(try_damage(x, leaf, &good), -EUCLEAN);
	}
}

static void wrong_keys_are_euclean(void **state)
{
	struct fixture *x = *state;
	mblock_t nodes[] = { x->inner_roots[1], child(x, x->inner_roots[1], 1),
			     child(x, x->inner_roots[1], 0) };

	for (unsigned n = 0; n < ARRAY_SIZE(nodes); n++) {
		struct node good = *on_disk(x, nodes[n]);
		struct node *bad = on_disk(x, nodes[n]);
		unsigned nr = le32_get(good.header.nr_entries);
		bool internal = n == 0;

		bad->words[1] = bad->words[0]; /* twice the same */
		assert_int_equal(try_damage(x, nodes[n], &good), -EUCLEAN);
		bad->words[0] = le64_make(UINT64_MAX);
		assert_int_equal(try_damage(x, nodes[n], &good), -EUCLEAN);
		bad->words[nr - 1] = le64_make(0);
		assert_int_equal(try_damage(x, nodes[n], &good), -EUCLEAN);
		if (n == 1) { /* below the parent's key */
			bad->words[0] = le64_make(0);
			assert_int_equal(try_damage(x, nodes[n], &good), -EUCLEAN);
		}
		if (!internal) { /* in the next leaf's range */
			bad->words[nr - 1] = le64_make(6999);
			assert_int_equal(try_damage(x, nodes[n], &good), -EUCLEAN);
		}
		if (internal) { /* above the child's first key */
			bad->words[1] = le64_make(le64_get(bad->words[1]) + 1);
			assert_int_equal(try_damage(x, nodes[n], &good), -EUCLEAN);
		}
	}
}

static void wrong_children_are_errors(void **state)
{
	struct fixture *x = *state;
	mblock_t root = x->inner_roots[1];
	struct node good = *on_disk(x, root);
	mblock_t wrong[] = { root,      x->inner_roots[0], child(x, root, 1), child(x, root, 2), 0,
			     NR_BLOCKS, NR_BLOCKS - 1,     UINT64_MAX,        UINT64_C(1) << 63 };

	for (unsigned i = 0; i < ARRAY_SIZE(wrong); i++) {
		on_disk(x, root)->words[252] = le64_make(wrong[i]);
		if (!try_damage(x, root, &good))
			fail_msg("child %u was accepted", i);
	}
	/* Leaves of other trees whose keys and values fit: nobody can tell, but all ends. */
	on_disk(x, root)->words[252] = le64_make(child(x, x->inner_roots[0], 0));
	assert_int_equal(try_damage(x, root, &good), 0);
	on_disk(x, root)->words[252] = le64_make(x->root);
	assert_int_equal(try_damage(x, root, &good), 0);
}

/* Pointers at free blocks: those that the copies of the very nodes above will get. */
static void children_that_will_be_allocated_are_errors(void **state)
{
	struct fixture *x = *state;
	mblock_t root = x->inner_roots[1];
	struct node good = *on_disk(x, root);
	mblock_t next, first;

	assert_int_equal(sm_new_block(x->f.sm, &first), 0);
	for (next = first; next < first + 12; next++) {
		for (unsigned i = 0; i < 3; i++) {
			abort_changes(x);
			on_disk(x, root)->words[252 + i] = le64_make(next);
			assert_int_not_equal(try_damage(x, root, &good), 0);
		}
	}
}

static void wrong_subtree_roots_are_errors(void **state)
{
	struct fixture *x = *state;
	struct node good = *on_disk(x, x->root);
	mblock_t wrong[] = { x->root, 0, NR_BLOCKS, UINT64_MAX };

	for (unsigned i = 0; i < ARRAY_SIZE(wrong); i++) {
		on_disk(x, x->root)->words[252 + 1] = le64_make(wrong[i]);
		if (i == 0) /* also a leaf with values of 8 bytes: must only end */
			try_damage(x, x->root, &good);
		else
			assert_int_not_equal(try_damage(x, x->root, &good), 0);
	}
}

static void a_chain_of_single_children_is_bounded(void **state)
{
	struct fixture *x = *state;
	mblock_t root = x->inner_roots[1];
	struct node good = *on_disk(x, root), *bad = on_disk(x, root);
	uint64_t key = 5;
	struct le64 value;

	set_field(bad, NR_ENTRIES, 1);
	bad->words[0] = le64_make(0);
	bad->words[252] = le64_make(root);
	pdata_fixture_seal(&x->f, root, BTREE_CSUM_XOR);
	pdata_fixture_reset(&x->f);
	assert_int_equal(btree_lookup(&x->inner, root, &key, &value), -EUCLEAN);
	*bad = good;
	pdata_fixture_seal(&x->f, root, BTREE_CSUM_XOR);
	assert_int_equal(try_damage(x, root, &good), 0);
}

/* Random bytes anywhere in any node. */
static void random_damage_never_crashes_or_hangs(void **state)
{
	struct fixture *x = *state;
	uint64_t nr = prng_ops(600);
	struct prng p;
	mblock_t nodes[64];
	unsigned nr_nodes = 0;

	prng_init(&p, prng_seed());
	for (mblock_t b = 1; b < NR_BLOCKS && nr_nodes < ARRAY_SIZE(nodes); b++) {
		uint32_t count;

		assert_int_equal(tm_ref(x->f.tm, b, &count), 0);
		if (count)
			nodes[nr_nodes++] = b;
	}
	for (uint64_t i = 0; i < nr; i++) {
		mblock_t b = nodes[prng_below(&p, nr_nodes)];
		struct node good = *on_disk(x, b);
		uint8_t *bytes = (uint8_t *)on_disk(x, b);
		unsigned changes = 1 + (unsigned)prng_below(&p, 3);

		while (changes--) {
			unsigned at = 4 + (unsigned)prng_below(&p, METADATA_BLOCK_SIZE - 4);

			if (prng_below(&p, 4) == 0)
				at = 4 + at % 28;
			else if (prng_below(&p, 2)) /* a child pointer gets another small value */
				at = 2048 + 8 * (unsigned)prng_below(&p, 12);
			if (prng_below(&p, 2))
				bytes[at]++;
			else
				bytes[at] = (uint8_t)prng_next(&p);
		}
		try_damage(x, b, &good);
	}
	assert_int_equal(read_all(x), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(wrong_header_fields_are_euclean),
		TEST(a_leaf_of_another_tree_is_euclean),
		TEST(wrong_keys_are_euclean),
		TEST(wrong_children_are_errors),
		TEST(children_that_will_be_allocated_are_errors),
		TEST(wrong_subtree_roots_are_errors),
		TEST(a_chain_of_single_children_is_bounded),
		TEST(random_damage_never_crashes_or_hangs),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
