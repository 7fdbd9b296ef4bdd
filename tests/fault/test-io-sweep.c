/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The n-th request of a device fails, n = 1, 2, 3 ... until a pool's life from opening to closing
 * has no such request: whatever it hits, clients are told, with an error that means it, nothing
 * that was flushed is lost, names are those of before or after a command, and metadata is right,
 * also after a power cut on top.
 *
 * TP_SEED repeats a sweep but for the threads' interleaving.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <inttypes.h>

#include "crash-run.h"
#include "fault-device.h"
#include "prng.h"

struct sweep {
	unsigned device;
	struct fault fault; /* skip is set for each life */
};

static void set_nth(void *ctx, uint64_t nth)
{
	((struct sweep *)ctx)->fault.skip = nth - 1;
}

static void arm(void *ctx, struct io_device *const devices[CRASH_DEVICES])
{
	struct sweep *sweep = ctx;

	fault_device_add(devices[sweep->device], &sweep->fault);
}

static bool reached(void *ctx, struct io_device *const devices[CRASH_DEVICES])
{
	struct sweep *sweep = ctx;

	return fault_device_nr_failed(devices[sweep->device]) > 0;
}

static void sweep(unsigned device, struct fault fault)
{
	struct sweep sweep = { .device = device, .fault = fault };
	struct crash_plan plan = {
		.seed = prng_seed(),
		.states_a_life = 4,
		.life = { .nr_ops = SWEEP_OPS, .arm = arm, .reached = reached, .ctx = &sweep },
		.keep_images = true
	};
	struct crash_result result;

	crash_sweep(&plan, set_nth, &result);
	print_message("# %" PRIu64 " places, %" PRIu64 " errors told, %" PRIu64 " aborts, %" PRIu64
		      " states, %" PRIu64 " with NEEDS_CHECK\n",
		      result.nr_lives, result.nr_errors, result.nr_aborts, result.nr_states,
		      result.nr_needs_check);
	if (result.wrong)
		fail_msg("%s", result.what);
	assert_true(result.nr_lives > 4);
	assert_true(result.nr_errors > 0);
}

static void one_metadata_request_fails(void **state)
{
	(void)state;
	sweep(CRASH_METADATA, (struct fault){ .count = 1 });
}

static void metadata_fails_from_then_on(void **state)
{
	(void)state;
	sweep(CRASH_METADATA, (struct fault){ .count = UINT64_MAX });
}

static void one_metadata_write_is_torn(void **state)
{
	(void)state;
	sweep(CRASH_METADATA,
	      (struct fault){ .ops = FAULT_OP(IO_WRITE), .count = 1, .apply = 1024 });
}

static void one_data_request_fails(void **state)
{
	(void)state;
	sweep(CRASH_DATA, (struct fault){ .count = 1 });
}

static void data_fails_from_then_on(void **state)
{
	(void)state;
	sweep(CRASH_DATA, (struct fault){ .count = UINT64_MAX });
}

static void one_data_write_is_torn(void **state)
{
	(void)state;
	sweep(CRASH_DATA, (struct fault){ .ops = FAULT_OP(IO_WRITE), .count = 1, .apply = 4096 });
}

/* The host's file system is full: nothing more can be written where nothing was. */
static void data_has_no_space_from_then_on(void **state)
{
	(void)state;
	sweep(CRASH_DATA, (struct fault){ .ops = FAULT_OP(IO_WRITE) | FAULT_OP(IO_ZERO),
					  .count = UINT64_MAX,
					  .error = -ENOSPC });
}

/* The host has room for a part of it. */
static void one_data_write_is_short_for_want_of_space(void **state)
{
	(void)state;
	sweep(CRASH_DATA, (struct fault){ .ops = FAULT_OP(IO_WRITE) | FAULT_OP(IO_ZERO),
					  .count = 1,
					  .error = -ENOSPC,
					  .apply = 4096 });
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_metadata_request_fails),
		cmocka_unit_test(metadata_fails_from_then_on),
		cmocka_unit_test(one_metadata_write_is_torn),
		cmocka_unit_test(one_data_request_fails),
		cmocka_unit_test(data_fails_from_then_on),
		cmocka_unit_test(one_data_write_is_torn),
		cmocka_unit_test(data_has_no_space_from_then_on),
		cmocka_unit_test(one_data_write_is_short_for_want_of_space),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
