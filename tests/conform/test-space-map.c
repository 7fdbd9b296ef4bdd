/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test-space-map.c - what holds for both space maps
 *
 * The metadata map has blocks of its own among those it counts, so a test looks only at blocks
 * it was handed itself; the rig's checker looks at all of them after commits.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "meta-rig.h"
#include "prng.h"

#define NR_BLOCKS (3 * ENTRIES_PER_BITMAP + 100) /* four bitmaps, the last one partial */
#define MANY 20000u                              /* runs longer than a bitmap */

enum which { DATA, METADATA };

/* TP_OPS of the random test. */
#define DEFAULT_OPS 20000

struct suite {
	struct meta_rig rig;
	enum which which;
	uint32_t *count; /* the test's own counts, by block */
};

static struct space_map *map(struct suite *s)
{
	return s->which == DATA ? s->rig.data : s->rig.metadata;
}

static int setup(void **state, enum which which, mblock_t nr_metadata, dblock_t nr_data)
{
	struct suite *s = calloc(1, sizeof(*s));

	assert_non_null(s);
	s->which = which;
	meta_rig_create(&s->rig, nr_metadata, nr_data);
	s->count = calloc(MAX(nr_metadata, nr_data) + 1, sizeof(*s->count));
	assert_non_null(s->count);
	*state = s;
	return 0;
}

static int setup_data(void **state)
{
	return setup(state, DATA, 4096, NR_BLOCKS);
}

static int setup_metadata(void **state)
{
	return setup(state, METADATA, NR_BLOCKS, 0);
}

static int teardown(void **state)
{
	struct suite *s = *state;

	meta_rig_destroy(&s->rig);
	free(s->count);
	free(s);
	return 0;
}

static void commit(struct suite *s)
{
	assert_int_equal(meta_rig_commit(&s->rig), 0);
	meta_rig_check(&s->rig, s->which == METADATA ? s->count : NULL);
}

static uint32_t count_of(struct suite *s, uint64_t b)
{
	uint32_t count;

	assert_int_equal(sm_get_count(map(s), b, &count), 0);
	return count;
}

static uint64_t new_block(struct suite *s)
{
	uint64_t b;

	assert_int_equal(sm_new_block(map(s), &b), 0);
	s->count[b]++;
	return b;
}

static void inc(struct suite *s, uint64_t begin, uint64_t end)
{
	assert_int_equal(sm_inc_blocks(map(s), begin, end), 0);
	for (; begin < end; begin++)
		s->count[begin]++;
}

static void dec(struct suite *s, uint64_t begin, uint64_t end)
{
	assert_int_equal(sm_dec_blocks(map(s), begin, end), 0);
	for (; begin < end; begin++)
		s->count[begin]--;
}

static uint64_t nr_free(struct suite *s)
{
	uint64_t nr;

	assert_int_equal(sm_get_nr_free(map(s), &nr), 0);
	return nr;
}

/* A run of @nr free blocks, which both maps have in their middle when fresh; all get a user. */
static uint64_t new_run(struct suite *s, uint64_t nr)
{
	uint64_t begin = ENTRIES_PER_BITMAP - 100;

	inc(s, begin, begin + nr);
	return begin;
}

/* ---- facts ---- */

static void fresh_map_counts_nothing(void **state)
{
	struct suite *s = *state;
	uint64_t nr;

	assert_int_equal(sm_get_nr_blocks(map(s), &nr), 0);
	assert_int_equal(nr, NR_BLOCKS);
	for (uint64_t b = 100; b < NR_BLOCKS; b += 7)
		assert_int_equal(count_of(s, b), 0);
	assert_true(nr_free(s) > NR_BLOCKS - 100);
	meta_rig_check(&s->rig, NULL);
}

static void new_blocks_are_distinct_and_consecutive(void **state)
{
	struct suite *s = *state;
	uint64_t first = new_block(s);

	for (uint64_t b = first + 1; b < first + MANY; b++) {
		uint64_t got = new_block(s);

		/* The metadata map takes some for itself. */
		assert_true(s->which == METADATA ? got >= b && got < b + 20 : got == b);
		assert_int_equal(s->count[got], 1);
	}
	commit(s);
}

static void inc_and_dec_walk_all_counts_and_back(void **state)
{
	struct suite *s = *state;
	uint64_t b = new_block(s);
	bool more;

	for (uint32_t n = 1; n < 10; n++) {
		assert_int_equal(count_of(s, b), n);
		assert_int_equal(sm_count_is_more_than_one(map(s), b, &more), 0);
		assert_int_equal(more, n > 1);
		inc(s, b, b + 1);
		if (n % 3 == 0)
			commit(s);
	}
	while (s->count[b]) {
		assert_int_equal(count_of(s, b), s->count[b]);
		dec(s, b, b + 1);
		commit(s);
	}
	assert_int_equal(count_of(s, b), 0);
}

static void ranges_cross_bitmaps(void **state)
{
	struct suite *s = *state;
	uint64_t begin = new_run(s, MANY), end = begin + MANY;

	inc(s, begin + 50, end - 50);
	inc(s, begin + 90, begin + 110);
	inc(s, begin + 99, begin + 1099);
	commit(s);
	meta_rig_reopen(&s->rig);
	assert_int_equal(count_of(s, begin - 1), 0);
	for (uint64_t b = begin; b < end; b++)
		assert_int_equal(count_of(s, b), s->count[b]);
	assert_int_equal(count_of(s, end), 0);

	dec(s, begin + 99, begin + 1099);
	dec(s, begin, end);
	commit(s);
	for (uint64_t b = begin; b < end; b++)
		assert_int_equal(count_of(s, b), s->count[b]);
}

static void freed_block_waits_for_the_commit(void **state)
{
	struct suite *s = *state;
	uint64_t begin = new_run(s, 1000), b, free_before;

	commit(s);
	free_before = nr_free(s);
	dec(s, begin, begin + 1000);
	/* The metadata map has made copies of bitmaps meanwhile. */
	assert_true(s->which == METADATA ? nr_free(s) <= free_before : nr_free(s) == free_before);
	/* Go all the way round. */
	while (!sm_new_block(map(s), &b)) {
		assert_false(b >= begin && b < begin + 1000);
		s->count[b]++;
	}
	assert_int_equal(nr_free(s), 0);
	if (s->which == METADATA)
		return; /* not even a commit is possible now */
	commit(s);
	assert_int_equal(nr_free(s), 1000);
	b = new_block(s);
	assert_true(b >= begin && b < begin + 1000);
}

/* At once in the metadata map, after the commit in the data map (space-map-disk.c says why). */
static void block_freed_in_its_own_transaction_comes_back(void **state)
{
	struct suite *s = *state;
	bool waits = s->which == DATA;
	uint64_t free_before, b, c;

	commit(s);
	new_block(s); /* copies of bitmaps are made now */
	free_before = nr_free(s);
	b = new_block(s);
	assert_int_equal(nr_free(s), free_before - 1);
	dec(s, b, b + 1);
	assert_int_equal(nr_free(s), free_before - waits);
	if (waits) {
		while (!sm_new_block(map(s), &c)) {
			assert_int_not_equal(c, b);
			s->count[c]++;
		}
		commit(s);
		assert_int_equal(nr_free(s), 1);
	}
	for (;;) {
		assert_int_equal(sm_new_block(map(s), &c), 0);
		s->count[c]++;
		if (c == b)
			break;
	}
}

static void full_map_says_enospc_and_recovers(void **state)
{
	struct suite *s = *state;
	uint64_t b, last = 0, nr = 0, free_before = nr_free(s);
	int r;

	while (!(r = sm_new_block(map(s), &b))) {
		last = b;
		nr++;
	}
	assert_int_equal(r, -ENOSPC);
	assert_int_equal(sm_new_block(map(s), &b), -ENOSPC);
	assert_int_equal(nr_free(s), 0);
	assert_true(nr <= free_before && nr > free_before - 20);
	assert_true(last > NR_BLOCKS - 20);
	if (s->which == DATA) {
		/* It was free at the last commit and will be free at the next. */
		assert_int_equal(sm_dec_block(map(s), last - 5), 0);
		assert_int_equal(nr_free(s), 0);
		assert_int_equal(sm_new_block(map(s), &b), -ENOSPC);
	}

	meta_rig_abort(&s->rig);
	assert_int_equal(nr_free(s), free_before);
	b = new_block(s);
	assert_true(b < last);
	commit(s);
}

static void underflow_and_range_errors_are_refused(void **state)
{
	struct suite *s = *state;
	uint32_t count;
	bool more;

	assert_int_equal(sm_get_count(map(s), NR_BLOCKS, &count), -EINVAL);
	assert_int_equal(sm_count_is_more_than_one(map(s), UINT64_MAX, &more), -EINVAL);
	assert_int_equal(sm_inc_blocks(map(s), NR_BLOCKS - 1, NR_BLOCKS + 1), -EINVAL);
	assert_int_equal(sm_inc_blocks(map(s), 10, 9), -EINVAL);
	assert_int_equal(sm_inc_blocks(map(s), UINT64_MAX, UINT64_MAX), -EINVAL);
	assert_int_equal(sm_inc_blocks(map(s), 1000, 1000), 0);
	assert_int_equal(sm_dec_blocks(map(s), 2000, 2001), -EINVAL);
	meta_rig_abort(&s->rig);
	assert_int_equal(count_of(s, 2000), 0);
	new_block(s);
	commit(s);
}

static void abort_forgets_the_transaction(void **state)
{
	struct suite *s = *state;
	uint64_t begin = new_run(s, 500), free_before;

	inc(s, begin, begin + 300);
	inc(s, begin, begin + 200);
	commit(s);
	free_before = nr_free(s);
	assert_int_equal(sm_dec_blocks(map(s), begin, begin + 500), 0);
	assert_int_equal(sm_dec_blocks(map(s), begin, begin + 300), 0);
	assert_int_equal(sm_inc_blocks(map(s), begin + 5000, begin + 9000), 0);
	meta_rig_abort(&s->rig);
	for (uint64_t b = begin; b < begin + 500; b++)
		assert_int_equal(count_of(s, b), s->count[b]);
	assert_int_equal(count_of(s, begin + 5000), 0);
	assert_int_equal(nr_free(s), free_before);
	commit(s);
}

/*
 * Random changes against an array.  A block handed out must have been free for the array
 * and at the last commit.
 */
struct model {
	struct suite *s;
	struct prng prng;
	uint32_t *committed; /* counts at the last commit */
	uint64_t runs[64][2];
	unsigned nr_runs;
};

static void model_save(struct model *m)
{
	memcpy(m->committed, m->s->count, (NR_BLOCKS + 1) * sizeof(uint32_t));
}

static void model_verify(struct model *m, unsigned step)
{
	for (uint64_t b = prng_below(&m->prng, step); b < NR_BLOCKS; b += step)
		if (m->s->which == DATA || m->s->count[b])
			assert_int_equal(count_of(m->s, b), m->s->count[b]);
}

static void model_allocate(struct model *m)
{
	uint64_t nr = 1 + prng_below(&m->prng, 200);

	while (nr--) {
		uint64_t b = new_block(m->s);

		assert_int_equal(m->s->count[b], 1);
		assert_int_equal(m->committed[b], 0);
	}
}

/* A run of blocks in use, starting anywhere; false: the map is nearly empty. */
static bool model_pick_run(struct model *m, uint64_t *ret_begin, uint64_t *ret_end)
{
	uint64_t begin = prng_below(&m->prng, NR_BLOCKS), end, max;

	for (unsigned k = 0; k < NR_BLOCKS && !m->s->count[begin]; k++)
		begin = (begin + 1) % NR_BLOCKS;
	max = 1 + prng_below(&m->prng, prng_below(&m->prng, 10) ? 50 : MANY);
	for (end = begin; end < NR_BLOCKS && end - begin < max && m->s->count[end]; end++)
		;
	*ret_begin = begin;
	*ret_end = end;
	return begin < end;
}

static void model_step(struct model *m)
{
	uint64_t begin, end;

	switch (prng_below(&m->prng, 16)) {
	case 0:
	case 1:
	case 2:
		if (nr_free(m->s) > 1000)
			model_allocate(m);
		break;
	case 3:
		if (prng_below(&m->prng, 16))
			break;
		commit(m->s);
		model_save(m);
		model_verify(m, 50);
		break;
	case 4:
		if (prng_below(&m->prng, 50))
			break;
		if (prng_below(&m->prng, 2))
			meta_rig_abort(&m->s->rig);
		else
			meta_rig_reopen(&m->s->rig);
		memcpy(m->s->count, m->committed, (NR_BLOCKS + 1) * sizeof(uint32_t));
		model_verify(m, 50);
		break;
	case 5:
	case 6:
	case 7:
	case 8:
	case 9:
		if (model_pick_run(m, &begin, &end))
			inc(m->s, begin, end);
		break;
	default:
		if (model_pick_run(m, &begin, &end))
			dec(m->s, begin, end);
	}
}

static void random_changes_match_an_array(void **state)
{
	struct suite *s = *state;
	uint64_t nr_ops = prng_ops(DEFAULT_OPS);
	struct model m = { .s = s };

	prng_init(&m.prng, prng_seed());
	m.committed = calloc(NR_BLOCKS + 1, sizeof(*m.committed));
	assert_non_null(m.committed);
	for (uint64_t k = 0; k < nr_ops; k++) {
		model_step(&m);
		if (k % 1000 == 0)
			model_verify(&m, 200);
	}
	commit(s);
	meta_rig_reopen(&s->rig);
	model_verify(&m, 1);
	free(m.committed);
}

#define BOTH(f) \
	{ #f " (data)", f, setup_data, teardown, NULL }, \
	{ \
#f " (metadata)", f, setup_metadata, teardown, NULL \
	}

int main(void)
{
	const struct CMUnitTest tests[] = {
		BOTH(fresh_map_counts_nothing),
		BOTH(new_blocks_are_distinct_and_consecutive),
		BOTH(inc_and_dec_walk_all_counts_and_back),
		BOTH(ranges_cross_bitmaps),
		BOTH(freed_block_waits_for_the_commit),
		BOTH(block_freed_in_its_own_transaction_comes_back),
		BOTH(full_map_says_enospc_and_recovers),
		BOTH(underflow_and_range_errors_are_refused),
		BOTH(abort_forgets_the_transaction),
		BOTH(random_changes_match_an_array),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("space-map", tests, NULL, NULL);
}
