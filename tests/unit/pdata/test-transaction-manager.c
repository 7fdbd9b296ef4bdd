/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for pdata/transaction-manager.c.  Each test says one fact about the module.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "fake-space-map.h"
#include "fault-device.h"
#include "pdata-fixture.h"

#define NR_BLOCKS 8192
#define AT 100 /* a byte of the content */

static const struct block_validator apple = { .name = "apple", .csum_xor = 1 };

static int setup(void **state)
{
	struct pdata_fixture *f = calloc(1, sizeof(*f));

	pdata_fixture_init(f, NR_BLOCKS, 64 << 20);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	pdata_fixture_destroy(*state);
	free(*state);
	return 0;
}

static mblock_t new_block(struct pdata_fixture *f, uint8_t content)
{
	struct locked_block *lb;
	mblock_t b;

	assert_int_equal(tm_new_block(f->tm, &apple, &lb), 0);
	((uint8_t *)block_data_mut(lb))[AT] = content;
	b = block_location(lb);
	tm_unlock(f->tm, lb);
	return b;
}

/* Shadow @b and change it to @content; returns the new location. */
static mblock_t shadow(struct pdata_fixture *f, mblock_t b, uint8_t content, bool *ret_inc)
{
	struct locked_block *lb;
	mblock_t to;

	assert_int_equal(tm_shadow_block(f->tm, b, &apple, &lb, ret_inc), 0);
	((uint8_t *)block_data_mut(lb))[AT] = content;
	to = block_location(lb);
	tm_unlock(f->tm, lb);
	return to;
}

static uint32_t count(struct pdata_fixture *f, mblock_t b)
{
	uint32_t n;

	assert_int_equal(tm_ref(f->tm, b, &n), 0);
	return n;
}

static uint8_t content(struct pdata_fixture *f, mblock_t b)
{
	struct locked_block *lb;
	uint8_t x;

	assert_int_equal(tm_read_lock(f->tm, b, &apple, &lb), 0);
	x = ((const uint8_t *)block_data(lb))[AT];
	tm_unlock(f->tm, lb);
	return x;
}

static uint8_t on_disk(struct pdata_fixture *f, mblock_t b)
{
	return ((uint8_t *)pdata_fixture_disk(f, b))[AT];
}

static void a_block_of_this_transaction_is_changed_in_place(void **state)
{
	struct pdata_fixture *f = *state;
	mblock_t b = new_block(f, 1);
	bool inc = true;

	assert_int_equal(count(f, b), 1);
	assert_int_equal(shadow(f, b, 2, &inc), b);
	assert_false(inc);
	assert_int_equal(count(f, b), 1);
	assert_int_equal(content(f, b), 2);
}

static void a_committed_block_is_copied_and_never_overwritten(void **state)
{
	struct pdata_fixture *f = *state;
	mblock_t b = new_block(f, 1), to;
	bool inc = true;

	pdata_fixture_commit(f);
	to = shadow(f, b, 2, &inc);
	assert_int_not_equal(to, b);
	assert_false(inc); /* the pointers pass to the copy */
	assert_int_equal(count(f, b), 0);
	assert_int_equal(count(f, to), 1);
	assert_int_equal(shadow(f, to, 3, &inc), to); /* one copy a transaction */
	pdata_fixture_commit(f);
	assert_int_equal(on_disk(f, b), 1);
	assert_int_equal(on_disk(f, to), 3);
}

static void a_shared_block_is_copied_and_its_pointers_counted(void **state)
{
	struct pdata_fixture *f = *state;
	mblock_t b = new_block(f, 1), to;
	bool inc = false;

	pdata_fixture_commit(f);
	assert_int_equal(tm_inc(f->tm, b), 0);
	to = shadow(f, b, 2, &inc);
	assert_int_not_equal(to, b);
	assert_true(inc);
	assert_int_equal(count(f, b), 1);
	assert_int_equal(content(f, b), 1);
}

static void a_new_block_shared_since_is_copied_too(void **state)
{
	struct pdata_fixture *f = *state;
	mblock_t b = new_block(f, 1), to;
	bool inc = false;

	assert_int_equal(tm_inc(f->tm, b), 0);
	to = shadow(f, b, 2, &inc);
	assert_int_not_equal(to, b);
	assert_true(inc);
	assert_int_equal(content(f, b), 1);
	assert_int_equal(shadow(f, b, 3, &inc), b); /* its last owner again */
	assert_false(inc);
}

static void an_abort_finds_the_committed_content(void **state)
{
	struct pdata_fixture *f = *state;
	mblock_t b = new_block(f, 1), to;
	bool inc;

	pdata_fixture_commit(f);
	to = shadow(f, b, 2, &inc);
	assert_int_equal(tm_flush(f->tm), 0); /* any of it may be on disk */
	pdata_fixture_abort(f);
	assert_int_equal(content(f, b), 1);
	assert_int_equal(count(f, b), 1);
	assert_int_equal(count(f, to), 0);
}

static void every_one_of_many_shadows_is_known(void **state)
{
	struct pdata_fixture *f = *state;
	mblock_t blocks[3000];
	bool inc;

	for (unsigned round = 0; round < 2; round++) {
		for (unsigned i = 0; i < ARRAY_SIZE(blocks); i++)
			blocks[i] = new_block(f, 1);
		for (unsigned i = 0; i < ARRAY_SIZE(blocks); i++)
			assert_int_equal(shadow(f, blocks[i], 2, &inc), blocks[i]);
		pdata_fixture_commit(f);
		assert_int_not_equal(shadow(f, blocks[0], 3, &inc), blocks[0]);
	}
}

static void a_block_made_and_freed_is_never_written(void **state)
{
	struct pdata_fixture *f = *state;
	mblock_t b = new_block(f, 1);
	uint64_t writes;

	pdata_fixture_commit(f);
	b = new_block(f, 1);
	assert_int_equal(tm_dec(f->tm, b), 0);
	writes = fault_device_nr_requests(f->dev, FAULT_OP(IO_WRITE));
	pdata_fixture_commit(f);
	assert_int_equal(fault_device_nr_requests(f->dev, FAULT_OP(IO_WRITE)), writes);
}

static void a_shared_block_stays_cached_when_one_owner_goes(void **state)
{
	struct pdata_fixture *f = *state;
	mblock_t b = new_block(f, 1), missing = 0;
	struct locked_block *lb;

	pdata_fixture_commit(f);
	assert_int_equal(tm_inc(f->tm, b), 0);
	assert_int_equal(tm_dec(f->tm, b), 0);
	assert_int_equal(tm_read_try_lock(f->tm, b, &apple, &lb, &missing), 0);
	tm_unlock(f->tm, lb);
	assert_int_equal(tm_dec(f->tm, b), 0);
	assert_int_equal(tm_read_try_lock(f->tm, b, &apple, &lb, &missing), -EWOULDBLOCK);
	assert_int_equal(missing, b);
	assert_int_equal(content(f, b), 1); /* the committed state still has it */
}

static void freeing_a_free_block_is_an_error(void **state)
{
	struct pdata_fixture *f = *state;

	assert_int_equal(tm_dec(f->tm, 77), -EINVAL);
	assert_int_equal(tm_dec(f->tm, NR_BLOCKS), -EINVAL);
}

static void a_block_in_use_but_counted_free_is_damage(void **state)
{
	struct pdata_fixture *f = *state;
	struct locked_block *lb;
	bool inc;

	/* The fake hands out block 1 next, so the copy would be made over the original. */
	assert_int_equal(tm_shadow_block(f->tm, 1, &apple, &lb, &inc), -EUCLEAN);
}

static void no_space_is_passed_on(void **state)
{
	struct pdata_fixture *f = *state;
	mblock_t b = new_block(f, 1);
	struct locked_block *lb;
	bool inc;

	pdata_fixture_commit(f);
	fake_sm_fail_new_block(f->sm, 1);
	assert_int_equal(tm_shadow_block(f->tm, b, &apple, &lb, &inc), -ENOSPC);
	fake_sm_fail_new_block(f->sm, 1);
	assert_int_equal(tm_new_block(f->tm, &apple, &lb), -ENOSPC);
}

static void nothing_stays_locked_after_an_error(void **state)
{
	struct pdata_fixture *f = *state;
	mblock_t b = new_block(f, 1);
	struct locked_block *lb;
	bool inc;

	pdata_fixture_commit(f);
	pdata_fixture_reset(f);
	fault_device_fail_nth(f->dev, FAULT_OP(IO_READ), 1);
	assert_int_equal(tm_shadow_block(f->tm, b, &apple, &lb, &inc), -EIO);
	pdata_fixture_abort(f); /* checks that no buffer is held */
	assert_int_equal(content(f, b), 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_block_of_this_transaction_is_changed_in_place),
		TEST(a_committed_block_is_copied_and_never_overwritten),
		TEST(a_shared_block_is_copied_and_its_pointers_counted),
		TEST(a_new_block_shared_since_is_copied_too),
		TEST(an_abort_finds_the_committed_content),
		TEST(every_one_of_many_shadows_is_known),
		TEST(a_block_made_and_freed_is_never_written),
		TEST(a_shared_block_stays_cached_when_one_owner_goes),
		TEST(freeing_a_free_block_is_an_error),
		TEST(a_block_in_use_but_counted_free_is_damage),
		TEST(no_space_is_passed_on),
		TEST(nothing_stays_locked_after_an_error),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
