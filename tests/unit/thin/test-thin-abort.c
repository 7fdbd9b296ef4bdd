/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One piece of work, done again and again, each time with a later request of the metadata device
 * failing, until none fails any more.
 *
 * Whatever failed: after the abort the pool is as it was committed (or, if only the last flush
 * failed, as it was to be), the tools find nothing wrong, and the same work can be done.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "abort-alone.h"
#include "fault-device.h"
#include "mem-device.h"
#include "thin-fixture.h"
#include "thin-image.h"
#include "thin/thin-metadata.h"
#include "util/crc32c.h"
#include "util/log.h"

#define NR_MAPPED 600u
#define TOOLS_EVERY 8u /* rounds */

/* ---- what a pool says, in one number ---- */

struct fingerprint {
	struct thin_metadata *tmd;
	uint32_t crc;
};

static int add_mapping(void *ctx, const struct thin_mapping *m)
{
	struct fingerprint *f = ctx;
	const uint64_t words[] = { m->vblock, m->dblock, m->nr_blocks, m->time };

	f->crc = crc32c_raw(f->crc, words, sizeof(words));
	return 0;
}

static int add_device(void *ctx, const struct thin_device_details *d)
{
	struct fingerprint *f = ctx;
	const uint64_t words[] = { d->id, d->mapped_blocks, d->transaction_id, d->creation_time,
				   d->snapshotted_time };

	f->crc = crc32c_raw(f->crc, words, sizeof(words));
	return thin_metadata_for_each_mapping(f->tmd, d->id, add_mapping, f);
}

static uint32_t fingerprint(struct thin_metadata *tmd)
{
	struct fingerprint f = { .tmd = tmd, .crc = 0xffffffff };
	struct thin_metadata_info info;

	assert_int_equal(thin_metadata_for_each_device(tmd, add_device, &f), 0);
	assert_int_equal(thin_metadata_get_info(tmd, &info), 0);
	return crc32c_raw(f.crc, &info.time, sizeof(info.time)) + (uint32_t)info.transaction_id +
	       (uint32_t)info.nr_data_free;
}

/* ---- the work ---- */

static int insert_some(struct thin_metadata *tmd, struct thin_device *td, vblock_t from,
		       unsigned nr)
{
	int r = 0;

	for (unsigned i = 0; !r && i < nr; i++) {
		dblock_t b;

		r = thin_metadata_reserve_data_block(tmd, &b);
		if (!r)
			r = thin_insert_block(td, from + i * 3, b);
	}
	return r;
}

static int work_on(struct thin_metadata *tmd, struct thin_device *td)
{
	vblock_t next;
	int r;

	r = insert_some(tmd, td, 100, 40);
	if (!r)
		r = thin_remove_range(td, 500, 1100, 50, &next);
	if (!r)
		r = thin_metadata_create_snap(tmd, 3, 1);
	if (!r)
		r = insert_some(tmd, td, 5000, 10);
	if (!r)
		r = thin_swap_blocks(td, 100, 5000);
	if (!r)
		r = thin_metadata_delete_thin(tmd, 2);
	if (!r)
		r = thin_metadata_create_thin(tmd, 4);
	return r ? r : thin_metadata_commit(tmd);
}

static int work(struct thin_metadata *tmd)
{
	struct thin_device *td;
	int r;

	r = thin_device_open(tmd, 1, &td);
	if (r)
		return r;
	r = work_on(tmd, td);
	thin_device_close(td);
	return r;
}

/* ---- the sweep ---- */

struct sweep {
	struct io_device *base; /* a mem-device with the state before the work */
	uint32_t before, after; /* fingerprints */
};

static struct thin_metadata *open_small(struct io_device *dev)
{
	/* Small, so that there is something to read. */
	const struct thin_metadata_options options = { .cache_bytes = 64 << 10 };
	struct thin_metadata *tmd;

	assert_int_equal(thin_metadata_open(dev, &options, &tmd, NULL), 0);
	return tmd;
}

static int sweep_setup(void **state)
{
	static struct sweep sweep;
	struct io_device *dev = mem_device_create(2 * MIB);
	struct thin_metadata *tmd;
	struct thin_device *td;

	assert_int_equal(thin_metadata_format(dev, SECTORS, NULL), 0);
	tmd = open_small(dev);
	assert_int_equal(thin_metadata_resize_data(tmd, 20000), 0);
	assert_int_equal(thin_metadata_create_thin(tmd, 1), 0);
	assert_int_equal(thin_metadata_commit(tmd), 0);
	assert_int_equal(thin_device_open(tmd, 1, &td), 0);
	assert_int_equal(insert_some(tmd, td, 0, NR_MAPPED), 0);
	assert_int_equal(thin_metadata_create_snap(tmd, 2, 1), 0);
	assert_int_equal(insert_some(tmd, td, 1, NR_MAPPED), 0);
	thin_device_close(td);
	assert_int_equal(thin_metadata_commit(tmd), 0);
	sweep.before = fingerprint(tmd);
	assert_int_equal(thin_metadata_close(tmd), 0);
	sweep.base = mem_device_clone(dev);

	tmd = open_small(dev);
	assert_int_equal(work(tmd), 0);
	sweep.after = fingerprint(tmd);
	assert_int_not_equal(sweep.before, sweep.after);
	assert_int_equal(thin_metadata_close(tmd), 0);
	io_device_close(dev);
	*state = &sweep;
	return 0;
}

static int sweep_teardown(void **state)
{
	struct sweep *sweep = *state;

	io_device_close(sweep->base);
	return 0;
}

/* Old or new, nothing between; then the work is done, if it was not. */
static void check_and_finish(const struct sweep *sweep, struct io_device *dev,
			     struct thin_metadata *tmd, bool may_have_landed, bool tools)
{
	uint32_t is = fingerprint(tmd);

	assert_true(is == sweep->before || (may_have_landed && is == sweep->after));
	if (tools)
		assert_true(thin_device_is_clean(fault_device_inner(dev)));
	if (is == sweep->before) {
		assert_int_equal(work(tmd), 0);
		assert_int_equal(fingerprint(tmd), sweep->after);
		if (tools)
			assert_true(thin_device_is_clean(fault_device_inner(dev)));
	}
}

/* False: there is no @nth request, the work was done. */
static bool fail_and_abort(const struct sweep *sweep, unsigned ops, uint64_t nth, bool all_later,
			   bool abort_fails)
{
	struct io_device *dev = fault_device_create(mem_device_clone(sweep->base));
	struct thin_metadata *tmd = open_small(dev);
	bool tools = nth % TOOLS_EVERY == 1;
	bool met, failed;
	int r;

	fault_device_add(dev, &(struct fault){ .ops = ops,
					       .skip = nth - 1,
					       .count = all_later ? UINT64_MAX : 1 });
	r = work(tmd);
	met = fault_device_nr_failed(dev) > 0;
	failed = r != 0;
	assert_int_equal(r, failed ? -EIO : 0);
	/* A block that could not be read ahead is read again. */
	assert_true(failed == met || (ops & FAULT_OP(IO_READ)));
	fault_device_clear(dev);
	if (failed && abort_fails) {
		fault_device_add(dev,
				 &(struct fault){ .ops = FAULT_OP(IO_READ), .count = UINT64_MAX });
		assert_int_not_equal(abort_alone(tmd), 0);
		fault_device_clear(dev);
		assert_int_equal(work(tmd), -EINVAL);
		assert_int_equal(thin_metadata_close(tmd), 0);
		tmd = open_small(dev);
	} else if (failed) {
		struct cache_stats stats;

		assert_int_equal(abort_alone(tmd), 0);
		thin_metadata_get_cache_stats(tmd, &stats);
		assert_int_equal(stats.resets, 1);
		assert_int_equal(stats.dirty_bytes, 0);
	}
	if (failed)
		check_and_finish(sweep, dev, tmd, ops & FLUSHES, tools);
	else
		assert_int_equal(fingerprint(tmd), sweep->after);
	assert_int_equal(thin_metadata_close(tmd), 0);
	io_device_close(dev);
	return met;
}

static void sweep_over(const struct sweep *sweep, unsigned ops, bool all_later, bool abort_fails,
		       uint64_t at_least)
{
	uint64_t nth = 1;

	log_set_level(LOG_LEVEL_ERR - 1); /* errors are what this is about */
	while (fail_and_abort(sweep, ops, nth, all_later, abort_fails))
		nth++;
	log_set_level(LOG_LEVEL_INFO);
	print_message("# %u requests failed in turn\n", (unsigned)nth - 1);
	assert_true(nth > at_least);
}

static void any_read_may_fail(void **state)
{
	sweep_over(*state, FAULT_OP(IO_READ), false, false, 10);
}

static void any_write_may_fail(void **state)
{
	sweep_over(*state, WRITES, false, false, 3);
}

static void all_writes_from_one_on_may_fail(void **state)
{
	sweep_over(*state, WRITES, true, false, 3);
}

static void any_flush_may_fail(void **state)
{
	sweep_over(*state, FLUSHES, false, false, 2);
}

static void the_abort_may_fail_too(void **state)
{
	sweep_over(*state, WRITES, false, true, 3);
	sweep_over(*state, FLUSHES, false, true, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(any_read_may_fail),
		cmocka_unit_test(any_write_may_fail),
		cmocka_unit_test(all_writes_from_one_on_may_fail),
		cmocka_unit_test(any_flush_may_fail),
		cmocka_unit_test(the_abort_may_fail_too),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("thin-abort", tests, sweep_setup, sweep_teardown);
}
