/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The test of the test: a pool, or a device below it, that breaks one rule of durability is
 * found out by what test-power-cut.c looks at.
 *
 * Devices that lie leave things out of the log.  A pool that errs is made when this program is
 * linked: calls of five functions come here (--wrap), and go on to the real ones but for one
 * mutant.
 *
 * TP_SEED repeats a run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "catalog/catalog.h"
#include "crash-life.h"
#include "crash-run.h"
#include "io/device.h"
#include "pdata/space-map-common.h"
#include "prng.h"
#include "thin/thin-internal.h"
#include "thin/thin-metadata.h"
#include "write-log.h"

#define MAX_STATES 20000

/* ---- mutants by the linker ---- */

static bool reuses_freed_blocks, writes_catalog_in_place, flushes_no_data, awaits_no_flush;

void __real_data_flush_begin(struct data_flush *flush, struct io_device *data);
void __wrap_data_flush_begin(struct data_flush *flush, struct io_device *data);

void __wrap_data_flush_begin(struct data_flush *flush, struct io_device *data)
{
	__real_data_flush_begin(flush, flushes_no_data ? NULL : data);
}

int __real_data_flush_wait(struct data_flush *flush) TP_MUST_CHECK;
int __wrap_data_flush_wait(struct data_flush *flush) TP_MUST_CHECK;

/* The superblock is written while data is still being flushed. */
int __wrap_data_flush_wait(struct data_flush *flush)
{
	return awaits_no_flush ? 0 : __real_data_flush_wait(flush);
}

int __real_sm_ll_find_new(struct sm_ll *ll, uint64_t end, uint64_t *ret_b) TP_MUST_CHECK;
int __wrap_sm_ll_find_new(struct sm_ll *ll, uint64_t end, uint64_t *ret_b) TP_MUST_CHECK;

/* What is free in the open transaction is good enough, whatever the committed state needs. */
int __wrap_sm_ll_find_new(struct sm_ll *ll, uint64_t end, uint64_t *ret_b)
{
	bool is_data = strcmp(ll->ops->name, "data") == 0;
	uint32_t count;

	for (uint64_t b = 0; b < end && reuses_freed_blocks && is_data; b++) {
		if (sm_ll_get_count(ll, b, &count) || count || sparse_bitmap_test(ll->avoid, b))
			continue;
		*ret_b = b;
		return 0;
	}
	return __real_sm_ll_find_new(ll, end, ret_b);
}

static struct io_device *catalog_device;
static uint64_t catalog_block_bytes;

int __real_catalog_open(struct thin_metadata *tmd, struct io_device *data,
			struct catalog **ret_catalog) TP_MUST_CHECK;
int __wrap_catalog_open(struct thin_metadata *tmd, struct io_device *data,
			struct catalog **ret_catalog) TP_MUST_CHECK;

int __wrap_catalog_open(struct thin_metadata *tmd, struct io_device *data,
			struct catalog **ret_catalog)
{
	struct thin_metadata_info info;

	catalog_device = data;
	if (!thin_metadata_get_info(tmd, &info))
		catalog_block_bytes = (uint64_t)info.data_block_sectors * 512;
	return __real_catalog_open(tmd, data, ret_catalog);
}

int __real_thin_swap_blocks(struct thin_device *td, vblock_t a, vblock_t b) TP_MUST_CHECK;
int __wrap_thin_swap_blocks(struct thin_device *td, vblock_t a, vblock_t b) TP_MUST_CHECK;

/* The changed records are in the data block of the spare, @b: not that block becomes theirs, but
 * what it holds goes to where the old ones are. */
int __wrap_thin_swap_blocks(struct thin_device *td, vblock_t a, vblock_t b)
{
	uint64_t bytes = catalog_block_bytes;
	struct thin_run from, to;
	void *buffer;
	int r;

	if (!writes_catalog_in_place)
		return __real_thin_swap_blocks(td, a, b);
	buffer = io_buffer_alloc(bytes);
	assert_non_null(buffer);
	r = thin_find_run(td, b, 1, &from);
	if (!r)
		r = thin_find_run(td, a, 1, &to);
	if (!r)
		r = io_device_read(catalog_device, buffer, bytes, from.dblock * bytes);
	if (!r)
		r = io_device_write(catalog_device, buffer, bytes, to.dblock * bytes);
	free(buffer);
	return r;
}

/* ---- devices that lie ---- */

/* Was the superblock the last that was written? */
static bool follows_superblock(bool *state, const struct write_log_entry *e)
{
	if (e->device == CRASH_METADATA && e->op == IO_WRITE)
		*state = e->offset == 0;
	return *state;
}

/* As if the superblock was written along with the blocks that it leads to. */
static bool keeps_no_flush_before_superblock(void *ctx, const struct write_log_entry *e)
{
	return follows_superblock(ctx, e) || e->device != CRASH_METADATA || e->op != IO_FLUSH;
}

static bool keeps_no_flush_after_superblock(void *ctx, const struct write_log_entry *e)
{
	return !follows_superblock(ctx, e) || e->device != CRASH_METADATA || e->op != IO_FLUSH;
}

static void forget(void *ctx)
{
	*(bool *)ctx = false;
}

/* ---- facts ---- */

static void expect_found(bool (*keeps)(void *ctx, const struct write_log_entry *e))
{
	bool superblock = false;
	struct crash_plan plan = { .seed = prng_seed(),
				   .nr_states = MAX_STATES,
				   .states_a_life = 200,
				   .life = { .nr_ops = 60, .keeps = keeps, .ctx = &superblock },
				   .before_life = forget };
	struct crash_result result;

	crash_run(&plan, &result);
	reuses_freed_blocks = writes_catalog_in_place = false;
	flushes_no_data = awaits_no_flush = false;
	print_message("# after %" PRIu64 " states: %s\n", result.nr_states,
		      result.wrong ? result.what : "nothing");
	assert_true(result.wrong);
}

static void metadata_without_a_data_flush_is_found(void **state)
{
	(void)state;
	flushes_no_data = true;
	expect_found(NULL);
}

static void metadata_that_does_not_await_the_data_flush_is_found(void **state)
{
	(void)state;
	awaits_no_flush = true;
	expect_found(NULL);
}

static void a_superblock_before_the_flush_is_found(void **state)
{
	(void)state;
	expect_found(keeps_no_flush_before_superblock);
}

static void a_superblock_without_a_flush_is_found(void **state)
{
	(void)state;
	expect_found(keeps_no_flush_after_superblock);
}

static void a_freed_block_used_again_too_early_is_found(void **state)
{
	(void)state;
	reuses_freed_blocks = true;
	expect_found(NULL);
}

static void a_catalog_written_in_place_is_found(void **state)
{
	(void)state;
	writes_catalog_in_place = true;
	expect_found(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(metadata_without_a_data_flush_is_found),
		cmocka_unit_test(metadata_that_does_not_await_the_data_flush_is_found),
		cmocka_unit_test(a_superblock_before_the_flush_is_found),
		cmocka_unit_test(a_superblock_without_a_flush_is_found),
		cmocka_unit_test(a_freed_block_used_again_too_early_is_found),
		cmocka_unit_test(a_catalog_written_in_place_is_found),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
