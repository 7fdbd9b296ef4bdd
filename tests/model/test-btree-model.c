/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Random operations on B-trees against arrays.
 *
 * A world has a few roots (the live tree, snapshots of it as a metadata snapshot would hold
 * them), each of one or two levels; with two levels each root has a few devices, which can
 * be snapshots of each other.  A value's first four bytes name an object that is counted.
 * Every so often everything is compared: content, the format's rules, and the counts of all
 * blocks and objects recomputed from what the roots lead to.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "btree-check.h"
#include "pdata-fixture.h"
#include "prng.h"
#include "util/le.h"

#define NR_ROOTS 3
#define NR_DEVS 3
#define NR_OBJECTS 500
#define NR_BLOCKS 40000
#define MAX_VALUE_SIZE 400

struct shape {
	unsigned levels;
	uint32_t value_size;
	uint32_t nr_keys;
};

/* One innermost tree as it should be. */
struct dev_model {
	bool exists;
	bool *present;
	uint8_t *values;
};

struct root_model {
	bool used;
	mblock_t root;
	struct dev_model devs[NR_DEVS];
};

struct world {
	struct shape shape;
	struct pdata_fixture f;
	struct btree_info info, top; /* top: the outer tree by itself */
	uint32_t objects[NR_OBJECTS], committed_objects[NR_OBJECTS];
	struct root_model roots[NR_ROOTS], committed[NR_ROOTS];
	struct prng prng;
	uint32_t found_objects[NR_OBJECTS];
};

/* ---- values ---- */

static uint32_t object_of(const void *value)
{
	uint32_t id;

	memcpy(&id, value, sizeof(id));
	return id;
}

static int objects_inc(void *context, const void *values, unsigned nr)
{
	struct world *w = context;

	for (unsigned i = 0; i < nr; i++)
		w->objects[object_of((const uint8_t *)values + (size_t)i * w->shape.value_size)]++;
	return 0;
}

static int objects_dec(void *context, const void *values, unsigned nr)
{
	struct world *w = context;

	for (unsigned i = 0; i < nr; i++) {
		uint32_t id = object_of((const uint8_t *)values + (size_t)i * w->shape.value_size);

		assert_true(w->objects[id] > 0);
		w->objects[id]--;
	}
	return 0;
}

static bool objects_equal(void *context, const void *a, const void *b)
{
	(void)context;
	return object_of(a) == object_of(b);
}

static int roots_inc(void *context, const void *values, unsigned nr)
{
	struct world *w = context;

	for (unsigned i = 0; i < nr; i++)
		if (tm_inc(w->f.tm, le64_get(((const struct le64 *)values)[i])))
			return -EUCLEAN;
	return 0;
}

static int roots_dec(void *context, const void *values, unsigned nr)
{
	struct world *w = context;
	struct btree_info inner = w->info;

	inner.levels = 1;
	for (unsigned i = 0; i < nr; i++)
		if (btree_del(&inner, le64_get(((const struct le64 *)values)[i])))
			return -EUCLEAN;
	return 0;
}

/* ---- keys: an index into the model's arrays, spread over 64 bits ---- */

static uint64_t key_at(struct world *w, uint32_t i)
{
	uint64_t step = UINT64_MAX / (w->shape.nr_keys - 1);

	return i == w->shape.nr_keys - 1 ? UINT64_MAX : i * step;
}

/* ---- the model ---- */

static struct dev_model dev_model_copy(struct world *w, const struct dev_model *d)
{
	struct dev_model copy = { .exists = d->exists };

	if (!d->exists)
		return copy;
	copy.present = malloc(w->shape.nr_keys * sizeof(bool));
	copy.values = malloc((size_t)w->shape.nr_keys * w->shape.value_size);
	memcpy(copy.present, d->present, w->shape.nr_keys * sizeof(bool));
	memcpy(copy.values, d->values, (size_t)w->shape.nr_keys * w->shape.value_size);
	return copy;
}

static struct dev_model dev_model_new(struct world *w)
{
	return (struct dev_model){
		.exists = true,
		.present = calloc(w->shape.nr_keys, sizeof(bool)),
		.values = calloc(w->shape.nr_keys, w->shape.value_size),
	};
}

static void dev_model_free(struct dev_model *d)
{
	free(d->present);
	free(d->values);
	*d = (struct dev_model){ 0 };
}

static void root_model_free(struct root_model *r)
{
	for (unsigned i = 0; i < NR_DEVS; i++)
		dev_model_free(&r->devs[i]);
	*r = (struct root_model){ 0 };
}

static struct root_model root_model_copy(struct world *w, const struct root_model *r)
{
	struct root_model copy = { .used = r->used, .root = r->root };

	for (unsigned i = 0; i < NR_DEVS; i++)
		copy.devs[i] = dev_model_copy(w, &r->devs[i]);
	return copy;
}

static void roots_copy(struct world *w, struct root_model *to, const struct root_model *from)
{
	for (unsigned i = 0; i < NR_ROOTS; i++) {
		root_model_free(&to[i]);
		to[i] = root_model_copy(w, &from[i]);
	}
}

/* ---- life ---- */

static void world_init(struct world *w, const struct shape *shape, uint64_t seed)
{
	memset(w, 0, sizeof(*w));
	w->shape = *shape;
	prng_init(&w->prng, seed);
	pdata_fixture_init(&w->f, NR_BLOCKS, 64 << 20);
	w->info = (struct btree_info){
		.tm = w->f.tm,
		.levels = shape->levels,
		.value_type = { .size = shape->value_size,
				.context = w,
				.inc = objects_inc,
				.dec = objects_dec,
				.equal = objects_equal },
	};
	w->top = (struct btree_info){
		.tm = w->f.tm,
		.levels = 1,
		.value_type = { .size = 8, .context = w, .inc = roots_inc, .dec = roots_dec },
	};
	w->roots[0].used = true;
	assert_int_equal(btree_empty(&w->info, &w->roots[0].root), 0);
	if (shape->levels == 1)
		w->roots[0].devs[0] = dev_model_new(w);
	pdata_fixture_commit(&w->f);
	roots_copy(w, w->committed, w->roots);
}

static void world_destroy(struct world *w)
{
	for (unsigned i = 0; i < NR_ROOTS; i++) {
		root_model_free(&w->roots[i]);
		root_model_free(&w->committed[i]);
	}
	pdata_fixture_destroy(&w->f);
}

/* ---- comparing ---- */

static void check_dev(struct world *w, struct root_model *r, unsigned dev)
{
	struct dev_model *d = &r->devs[dev];
	uint8_t value[MAX_VALUE_SIZE];
	uint64_t keys[2] = { dev, 0 };
	unsigned inner = w->shape.levels - 1;
	int want;

	for (uint32_t i = 0; i < w->shape.nr_keys; i++) {
		keys[inner] = key_at(w, i);
		want = d->exists && d->present[i] ? 0 : -ENODATA;
		if (btree_lookup(&w->info, r->root, keys, value) != want)
			fail_msg("dev %u key %u: wrong presence", dev, i);
		if (!want)
			assert_memory_equal(value, d->values + (size_t)i * w->shape.value_size,
					    w->shape.value_size);
	}
}

/* All entries, by the calls that go from one to the next. */
static void check_order(struct world *w, struct root_model *r, unsigned dev)
{
	struct dev_model *d = &r->devs[dev];
	uint8_t value[MAX_VALUE_SIZE];
	uint64_t keys[2] = { dev, 0 };
	unsigned inner = w->shape.levels - 1;
	uint64_t key;

	for (uint32_t i = 0; d->exists && i < w->shape.nr_keys; i++) {
		if (!d->present[i])
			continue;
		assert_int_equal(btree_lookup_next(&w->info, r->root, keys, &key, value), 0);
		assert_int_equal(key, key_at(w, i));
		if (key == UINT64_MAX)
			return;
		keys[inner] = key + 1;
	}
	assert_int_equal(btree_lookup_next(&w->info, r->root, keys, &key, value), -ENODATA);
}

static void count_object(void *context, uint64_t key, const void *value)
{
	struct world *w = context;

	(void)key;
	w->found_objects[object_of(value)]++;
}

static void check_counts(struct world *w)
{
	struct btree_check c = {
		.bm = w->f.bm,
		.levels = w->shape.levels,
		.value_size = w->shape.value_size,
		.value = count_object,
		.context = w,
		.counts = calloc(NR_BLOCKS, sizeof(uint32_t)),
	};

	memset(w->found_objects, 0, sizeof(w->found_objects));
	c.counts[0] = 1;
	for (unsigned i = 0; i < NR_ROOTS; i++)
		if (w->roots[i].used && !btree_check_tree(&c, w->roots[i].root))
			fail_msg("root %u: %s", i, c.message);
	for (mblock_t b = 0; b < NR_BLOCKS; b++) {
		uint32_t count;

		assert_int_equal(sm_get_count(w->f.sm, b, &count), 0);
		if (count != c.counts[b])
			fail_msg("block %u: count %u, but %u references", (unsigned)b, count,
				 c.counts[b]);
	}
	free(c.counts);
	assert_memory_equal(w->objects, w->found_objects, sizeof(w->objects));
}

static void check_world(struct world *w)
{
	check_counts(w);
	for (unsigned i = 0; i < NR_ROOTS; i++)
		for (unsigned dev = 0; w->roots[i].used && dev < NR_DEVS; dev++)
			if (w->roots[i].devs[dev].exists) {
				check_dev(w, &w->roots[i], dev);
				check_order(w, &w->roots[i], dev);
			}
}

/* ---- operations ---- */

static struct root_model *pick_root(struct world *w)
{
	struct root_model *r;

	do
		r = &w->roots[prng_below(&w->prng, NR_ROOTS)];
	while (!r->used);
	return r;
}

static unsigned pick_dev(struct world *w)
{
	return w->shape.levels == 1 ? 0 : (unsigned)prng_below(&w->prng, NR_DEVS);
}

static void insert_one(struct world *w, struct root_model *r, unsigned dev, uint32_t i)
{
	struct dev_model *d = &r->devs[dev];
	uint64_t keys[2] = { dev, 0 };
	uint8_t value[MAX_VALUE_SIZE];
	uint32_t id = (uint32_t)prng_below(&w->prng, NR_OBJECTS);
	bool inserted;
	uint8_t *have;

	keys[w->shape.levels - 1] = key_at(w, i);
	if (!d->exists)
		*d = dev_model_new(w);
	have = d->values + (size_t)i * w->shape.value_size;
	prng_fill(&w->prng, value, w->shape.value_size);
	memcpy(value, &id, sizeof(id));
	if (!d->present[i] || object_of(have) != id)
		w->objects[id]++; /* the caller's reference */
	assert_int_equal(btree_insert(&w->info, r->root, keys, value, &r->root, &inserted), 0);
	assert_int_equal(inserted, !d->present[i]);
	d->present[i] = true;
	memcpy(have, value, w->shape.value_size);
}

static void op_insert(struct world *w)
{
	insert_one(w, pick_root(w), pick_dev(w), (uint32_t)prng_below(&w->prng, w->shape.nr_keys));
}

/* A run of neighbours, up or down. */
static void op_insert_run(struct world *w)
{
	struct root_model *r = pick_root(w);
	unsigned dev = pick_dev(w);
	uint32_t nr = 1 + (uint32_t)prng_below(&w->prng, w->shape.nr_keys / 8);
	uint32_t from = (uint32_t)prng_below(&w->prng, w->shape.nr_keys - nr);
	bool down = prng_below(&w->prng, 4) == 0;

	for (uint32_t i = 0; i < nr; i++)
		insert_one(w, r, dev, down ? from + nr - 1 - i : from + i);
}

static void op_remove(struct world *w)
{
	struct root_model *r = pick_root(w);
	unsigned dev = pick_dev(w);
	struct dev_model *d = &r->devs[dev];
	uint32_t start = (uint32_t)prng_below(&w->prng, w->shape.nr_keys);
	uint64_t keys[2] = { dev, 0 };

	/* Mostly one that exists; now and then one that may not. */
	if (d->exists && prng_below(&w->prng, 8))
		for (uint32_t i = 0; i < w->shape.nr_keys && !d->present[start]; i++)
			start = (start + 1) % w->shape.nr_keys;
	keys[w->shape.levels - 1] = key_at(w, start);
	if (d->exists && d->present[start]) {
		assert_int_equal(btree_remove(&w->info, r->root, keys, &r->root), 0);
		d->present[start] = false;
	} else {
		mblock_t root = r->root;

		assert_int_equal(btree_remove(&w->info, r->root, keys, &root), -ENODATA);
		assert_int_equal(root, r->root);
	}
}

static void op_remove_range(struct world *w)
{
	struct root_model *r = pick_root(w);
	unsigned dev = pick_dev(w), inner = w->shape.levels - 1;
	struct dev_model *d = &r->devs[dev];
	uint32_t nr = (uint32_t)prng_below(&w->prng, w->shape.nr_keys / 3), removed = 0, want = 0;
	uint32_t from = (uint32_t)prng_below(&w->prng, w->shape.nr_keys - nr);
	uint64_t keys[2] = { dev, 0 };
	unsigned got;
	int res;

	keys[inner] = key_at(w, from);
	while (!(res = btree_remove_leaves(&w->info, r->root, keys, key_at(w, from + nr), &r->root,
					   &got))) {
		assert_true(got > 0);
		removed += got;
	}
	assert_int_equal(res, -ENODATA);
	for (uint32_t i = from; d->exists && i < from + nr; i++) {
		want += d->present[i];
		d->present[i] = false;
	}
	assert_int_equal(removed, want);
}

/* dm-thin's create_snap: one more entry leads to the same subtree. */
static void op_snapshot_dev(struct world *w)
{
	struct root_model *r = pick_root(w);
	uint64_t from = pick_dev(w), to = pick_dev(w);
	struct le64 subtree;
	bool inserted;

	if (w->shape.levels == 1 || !r->devs[from].exists || r->devs[to].exists)
		return;
	assert_int_equal(btree_lookup(&w->top, r->root, &from, &subtree), 0);
	assert_int_equal(tm_inc(w->f.tm, le64_get(subtree)), 0);
	assert_int_equal(btree_insert(&w->top, r->root, &to, &subtree, &r->root, &inserted), 0);
	assert_true(inserted);
	r->devs[to] = dev_model_copy(w, &r->devs[from]);
}

static void op_delete_dev(struct world *w)
{
	struct root_model *r = pick_root(w);
	uint64_t dev = pick_dev(w);

	if (w->shape.levels == 1 || !r->devs[dev].exists)
		return;
	assert_int_equal(btree_remove(&w->top, r->root, &dev, &r->root), 0);
	dev_model_free(&r->devs[dev]);
}

static void op_snapshot_root(struct world *w)
{
	struct root_model *r = pick_root(w);

	for (unsigned i = 0; i < NR_ROOTS; i++) {
		if (w->roots[i].used)
			continue;
		assert_int_equal(tm_inc(w->f.tm, r->root), 0);
		w->roots[i] = root_model_copy(w, r);
		return;
	}
}

static void op_delete_root(struct world *w)
{
	struct root_model *r = pick_root(w);
	unsigned nr_used = 0;

	for (unsigned i = 0; i < NR_ROOTS; i++)
		nr_used += w->roots[i].used;
	if (nr_used == 1)
		return;
	assert_int_equal(btree_del(&w->info, r->root), 0);
	root_model_free(r);
}

static void op_commit(struct world *w)
{
	pdata_fixture_commit(&w->f);
	memcpy(w->committed_objects, w->objects, sizeof(w->objects));
	roots_copy(w, w->committed, w->roots);
	if (prng_below(&w->prng, 2))
		pdata_fixture_reset(&w->f); /* all is read and checked again */
}

static void op_abort(struct world *w)
{
	pdata_fixture_abort(&w->f);
	w->info.tm = w->top.tm = w->f.tm;
	memcpy(w->objects, w->committed_objects, sizeof(w->objects));
	roots_copy(w, w->roots, w->committed);
}

static const struct {
	void (*op)(struct world *w);
	unsigned weight;
} ops[] = {
	{ op_insert, 400 },      { op_insert_run, 8 },   { op_remove, 400 },
	{ op_remove_range, 6 },  { op_snapshot_dev, 4 }, { op_delete_dev, 1 },
	{ op_snapshot_root, 3 }, { op_delete_root, 3 },  { op_commit, 6 },
	{ op_abort, 2 },
};

static void step(struct world *w)
{
	unsigned total = 0;
	uint64_t at;

	for (unsigned i = 0; i < ARRAY_SIZE(ops); i++)
		total += ops[i].weight;
	at = prng_below(&w->prng, total);
	for (unsigned i = 0;; i++) {
		if (at < ops[i].weight) {
			ops[i].op(w);
			return;
		}
		at -= ops[i].weight;
	}
}

static void run_shape(const struct shape *shape)
{
	static struct world w; /* large */
	uint64_t nr = prng_ops(6000);

	world_init(&w, shape, prng_seed());
	for (uint64_t i = 1; i <= nr; i++) {
		step(&w);
		if (i % 500 == 0)
			check_world(&w);
	}
	check_world(&w);
	op_commit(&w);
	pdata_fixture_reset(&w.f);
	check_world(&w);
	world_destroy(&w);
}

#define SHAPE(name, ...) \
	static void name(void **state) \
	{ \
		const struct shape shape = { __VA_ARGS__ }; \
\
		(void)state; \
		run_shape(&shape); \
	}

SHAPE(one_level_of_4_bytes, 1, 4, 6000)
SHAPE(one_level_of_8_bytes, 1, 8, 6000)
SHAPE(one_level_of_16_bytes, 1, 16, 6000)
SHAPE(one_level_of_24_bytes, 1, 24, 6000)
SHAPE(deep_trees_of_400_bytes, 1, 400, 6000)
SHAPE(two_levels_of_8_bytes, 2, 8, 4000)
SHAPE(two_levels_of_24_bytes, 2, 24, 4000)
SHAPE(two_levels_of_400_bytes, 2, 400, 4000)
SHAPE(small_trees, 2, 8, 300)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_level_of_4_bytes),
		cmocka_unit_test(one_level_of_8_bytes),
		cmocka_unit_test(one_level_of_16_bytes),
		cmocka_unit_test(one_level_of_24_bytes),
		cmocka_unit_test(deep_trees_of_400_bytes),
		cmocka_unit_test(two_levels_of_8_bytes),
		cmocka_unit_test(two_levels_of_24_bytes),
		cmocka_unit_test(two_levels_of_400_bytes),
		cmocka_unit_test(small_trees),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
