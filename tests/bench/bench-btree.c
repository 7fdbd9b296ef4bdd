/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What B-tree operations cost over cached nodes.  For figures: a release build without
 * debug_locks, on a quiet machine.
 */
#include <stdio.h>
#include <stdlib.h>

#include "pdata-fixture.h"
#include "prng.h"
#include "util/clock.h"
#include "util/le.h"

#define NR_KEYS UINT64_C(80000) /* three levels of nodes */
#define NR_LOOKUPS UINT64_C(3000000)

static void must(int r)
{
	if (r)
		abort();
}

static double nsec_each(uint64_t since, uint64_t nr)
{
	return (double)(time_monotonic_usec() - since) * 1000 / (double)nr;
}

static void insert_all(struct btree_info *info, mblock_t *root, bool random, struct prng *p)
{
	for (uint64_t i = 0; i < NR_KEYS; i++) {
		uint64_t key = random ? prng_below(p, NR_KEYS) : i;
		struct le64 value = le64_make(key);

		must(btree_insert(info, *root, &key, &value, root, NULL));
	}
}

int main(void)
{
	struct pdata_fixture f;
	struct btree_info info = { .levels = 1, .value_type = { .size = 8 } };
	struct btree_run run;
	mblock_t root, random_root, missing;
	uint64_t start, found = 0, keys[16];
	struct le64 value, values[16];
	struct prng p;

	pdata_fixture_init(&f, 8192, 64 << 20);
	info.tm = f.tm;
	prng_init(&p, 1);

	must(btree_empty(&info, &random_root));
	start = time_monotonic_usec();
	insert_all(&info, &random_root, true, &p);
	printf("insert, random      %6.0f ns\n", nsec_each(start, NR_KEYS));

	must(btree_empty(&info, &root));
	start = time_monotonic_usec();
	insert_all(&info, &root, false, &p);
	printf("insert, ascending   %6.0f ns\n", nsec_each(start, NR_KEYS));

	start = time_monotonic_usec();
	for (uint64_t i = 0; i < NR_LOOKUPS; i++) {
		uint64_t key = prng_below(&p, NR_KEYS);

		must(btree_try_lookup(&info, root, &key, &value, &missing));
		found += le64_get(value) == key;
	}
	printf("lookup, random      %6.0f ns\n", nsec_each(start, NR_LOOKUPS));

	start = time_monotonic_usec();
	for (uint64_t i = 0; i < NR_LOOKUPS; i++) {
		uint64_t key = i % NR_KEYS;

		must(btree_try_lookup(&info, root, &key, &value, &missing));
		found += le64_get(value) == key;
	}
	printf("lookup, in order    %6.0f ns\n", nsec_each(start, NR_LOOKUPS));

	start = time_monotonic_usec();
	for (uint64_t i = 0; i < NR_LOOKUPS; i++) {
		uint64_t key = prng_below(&p, NR_KEYS - 16);

		must(btree_lookup_run(&info, root, key, key + 16, false, 16, keys, values, &run,
				      &missing));
	}
	printf("run of <= 16        %6.0f ns\n", nsec_each(start, NR_LOOKUPS));

	start = time_monotonic_usec();
	for (uint64_t key = 0; key < NR_KEYS; key++)
		must(btree_remove(&info, root, &key, &root));
	printf("remove, ascending   %6.0f ns\n", nsec_each(start, NR_KEYS));

	if (found != 2 * NR_LOOKUPS)
		return 1;
	pdata_fixture_destroy(&f);
	return 0;
}
