/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test-sparse-bitmap.c - a set of block numbers against an array
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "pdata/sparse-bitmap.h"
#include "prng.h"

#define NR (40 * SPARSE_CHUNK_BITS)

static uint8_t model[NR + 1];

struct seen {
	uint64_t end, nr;
};

/* Ascending, not touching, and each as long as it can be. */
static void check_run(void *ctx, uint64_t begin, uint64_t end)
{
	struct seen *seen = ctx;

	assert_true(begin < end && end <= NR);
	assert_true(begin > seen->end || (begin == 0 && seen->nr == 0));
	assert_false(begin && model[begin - 1]);
	assert_false(model[end]);
	for (uint64_t b = begin; b < end; b++)
		assert_true(model[b]);
	seen->end = end;
	seen->nr += end - begin;
}

static void random_ranges_match_an_array(void **state)
{
	struct sparse_bitmap sb = { 0 };
	struct prng prng;
	uint64_t nr_ops = prng_ops(3000);

	(void)state;
	prng_init(&prng, prng_seed());
	memset(model, 0, sizeof(model));
	for (uint64_t k = 0; k < nr_ops; k++) {
		uint64_t begin = prng_below(&prng, NR);
		uint64_t max = prng_below(&prng, 8) ? 100 : 3 * SPARSE_CHUNK_BITS;
		uint64_t end = begin + prng_below(&prng, max);
		struct seen seen = { 0 };

		end = end < NR ? end : NR;
		if (prng_below(&prng, 2)) {
			assert_int_equal(sparse_bitmap_set_range(&sb, begin, end), 0);
			memset(model + begin, 1, end - begin);
		} else {
			sparse_bitmap_clear_range(&sb, begin, end);
			memset(model + begin, 0, end - begin);
		}
		assert_int_equal(sparse_bitmap_test(&sb, begin), model[begin]);
		if (k % 100)
			continue;
		assert_int_equal(sparse_bitmap_for_each_run(&sb, check_run, &seen), 0);
		assert_int_equal(seen.nr, sb.nr_set);
		for (uint64_t b = 0; b < NR; b++)
			seen.nr -= model[b];
		assert_int_equal(seen.nr, 0);
	}
	sparse_bitmap_clear(&sb);
	assert_int_equal(sb.nr_set, 0);
}

static void limit_counts_chunks_in_use(void **state)
{
	struct sparse_bitmap sb = { .max_chunks = 2 };

	(void)state;
	assert_int_equal(sparse_bitmap_set_range(&sb, 0, 2 * SPARSE_CHUNK_BITS), 0);
	assert_int_equal(sparse_bitmap_set_range(&sb, NR, NR + 1), -ENOMEM);
	assert_int_equal(sb.nr_set, 2 * SPARSE_CHUNK_BITS);
	sparse_bitmap_clear_range(&sb, 0, SPARSE_CHUNK_BITS);
	assert_int_equal(sparse_bitmap_set_range(&sb, NR, NR + 1), 0);
	assert_true(sparse_bitmap_test(&sb, NR));
	assert_false(sparse_bitmap_test(&sb, 0));
	assert_null(sparse_bitmap_words(&sb, 0));
	sparse_bitmap_clear(&sb);
}

/* Wherever they lie in the table. */
static void empty_chunks_make_room_for_others(void **state)
{
	enum { CHUNKS = 64 };
	struct sparse_bitmap sb = { .max_chunks = CHUNKS };

	(void)state;
	for (uint64_t k = 0; k < CHUNKS; k++)
		assert_int_equal(sparse_bitmap_set_range(&sb, k * SPARSE_CHUNK_BITS,
							 k * SPARSE_CHUNK_BITS + 1),
				 0);
	sparse_bitmap_clear_range(&sb, 0, CHUNKS * SPARSE_CHUNK_BITS);
	for (uint64_t k = CHUNKS; k < 2 * CHUNKS; k++)
		assert_int_equal(sparse_bitmap_set_range(&sb, k * SPARSE_CHUNK_BITS,
							 k * SPARSE_CHUNK_BITS + 1),
				 0);
	assert_int_equal(sb.nr_set, CHUNKS);
	sparse_bitmap_clear(&sb);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_ranges_match_an_array),
		cmocka_unit_test(limit_counts_chunks_in_use),
		cmocka_unit_test(empty_chunks_make_room_for_others),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("sparse-bitmap", tests, NULL, NULL);
}
