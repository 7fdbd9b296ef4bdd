/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One request of the metadata or the data device fails, the n-th since the pool was opened, for
 * many n: whatever it hits, the pool goes on serving, tells the client, and leaves metadata
 * that every checker finds right, with nothing leaked; what was flushed before is there.
 *
 * TP_SEED repeats a run, TP_OPS is the number of places tried.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>

#include "fault-device.h"
#include "pool-fixture.h"
#include "prng.h"

#define BLOCK (64 * KIB)

static struct pool_rig *rig;

/* What a client does, going on after errors.  Returns how many there were. */
static unsigned scenario(struct volume *v)
{
	struct volume *snap = NULL;
	unsigned errors = 0;

	for (unsigned i = 0; i < 8; i++)
		errors += rig_fill(rig, v, (10 + 3 * i) * BLOCK + 100, 2 * BLOCK, 2) != 0;
	errors += rig_flush(rig, v) != 0;
	errors += rig_snapshot(rig, "vol", "snap") != 0;
	errors += rig_fill(rig, v, 11 * BLOCK + 5, 4 * BLOCK, 3) != 0;
	errors += rig_io(rig, v, POOL_ALLOCATE, 40 * BLOCK, 4 * BLOCK, NULL) != 0;
	errors += rig_metadata_snap(rig, true) != 0;
	errors += rig_punch(rig, v, 12 * BLOCK + 77, 10 * BLOCK) != 0;
	errors += rig_flush(rig, v) != 0;
	if (rig_status(rig).held_root)
		errors += rig_metadata_snap(rig, false) != 0;
	if (!pool_volume_find(rig->pool, "snap", &snap)) {
		volume_put(snap);
		errors += rig_delete(rig, "snap") != 0;
	}
	errors += rig_commit(rig) != 0;
	return errors;
}

/* The n-th request of @dev fails; false: so many there are not. */
static bool fail_nth(bool metadata, uint64_t nth)
{
	struct io_device *dev;
	struct volume *v;
	unsigned errors;
	bool reached;

	rig = pool_rig_create(BLOCK, 256, 512);
	dev = metadata ? rig->meta : rig->data;
	v = rig_create_volume(rig, "vol", 8 * MIB);
	assert_int_equal(rig_fill(rig, v, 0, 4 * BLOCK, 1), 0);
	assert_int_equal(rig_flush(rig, v), 0);

	fault_device_fail_nth(dev, FAULT_ALL_OPS, nth);
	errors = scenario(v);
	reached = fault_device_nr_failed(dev) > 0;
	fault_device_clear(dev);
	if (errors && !reached)
		fail_msg("%u errors without a fault", errors);
	if (rig_status(rig).mode < POOL_MODE_FAIL)
		assert_true(rig_reads_as(rig, v, 0, 4 * BLOCK, 1));
	rig_close_volume(v);
	(void)pool_rig_close(rig);

	/* Errors are told, and only what was told is lost. */
	if (!pool_rig_is_clean(rig))
		fail_msg("not clean after request %llu of the %s device failed",
			 (unsigned long long)nth, metadata ? "metadata" : "data");
	rig->options.read_only = true;
	pool_rig_open(rig);
	assert_int_equal(pool_volume_find(rig->pool, "vol", &v), 0);
	assert_int_equal(volume_open(v, false), 0);
	assert_true(rig_reads_as(rig, v, 0, 4 * BLOCK, 1));
	if (!errors)
		assert_true(rig_reads_as(rig, v, 11 * BLOCK + 5, BLOCK + 72, 3));
	rig_close_volume(v);
	assert_int_equal(pool_rig_close(rig), 0);
	pool_rig_destroy(rig);
	return reached;
}

static void one_failed_request_does_no_harm(void **state)
{
	uint64_t tries = prng_ops(24), last[2] = { 8, 8 };
	struct prng p;

	(void)state;
	prng_init(&p, prng_seed());
	while (tries--) {
		bool metadata = tries % 2;
		uint64_t nth = 1 + prng_below(&p, last[metadata]);

		if (fail_nth(metadata, nth))
			last[metadata] = last[metadata] < 2 * nth ? 2 * nth : last[metadata];
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(one_failed_request_does_no_harm) };

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
