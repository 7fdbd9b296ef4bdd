/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The n-th allocation of the pool fails, or all from the n-th on, n = 1, 2, 3 ... until a pool's
 * life from opening to closing has no such allocation: nothing is asserted, leaked or lost, and
 * whoever asked is told.  Judged as a power cut is, and with one on top.
 *
 * The linker leads all allocations here (--wrap); test code is compiled with real-alloc.h and goes
 * past it.
 *
 * TP_SEED repeats a sweep but for the threads' interleaving.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <inttypes.h>
#include <stdatomic.h>

#include "crash-run.h"
#include "prng.h"

static atomic_bool armed;
static atomic_long left; /* allocations until the one that fails */
static bool goes_on;     /* and all that follow */

static bool fails(void)
{
	long now;

	if (!atomic_load(&armed))
		return false;
	now = atomic_fetch_sub(&left, 1);
	return now == 1 || (goes_on && now < 1);
}

void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
char *__wrap_strdup(const char *s);
char *__real_strdup(const char *s);

void *__wrap_malloc(size_t size)
{
	return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
	return fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t size)
{
	return fails() ? NULL : __real_realloc(p, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
	return fails() ? NULL : __real_aligned_alloc(alignment, size);
}

char *__wrap_strdup(const char *s)
{
	return fails() ? NULL : __real_strdup(s);
}

static void set_nth(void *ctx, uint64_t nth)
{
	(void)ctx;
	atomic_store(&left, (long)nth);
}

static void arm(void *ctx, struct io_device *const devices[CRASH_DEVICES])
{
	(void)ctx;
	(void)devices;
	atomic_store(&armed, true);
}

static bool reached(void *ctx, struct io_device *const devices[CRASH_DEVICES])
{
	(void)ctx;
	(void)devices;
	atomic_store(&armed, false);
	return atomic_load(&left) < 1;
}

static void sweep(bool all)
{
	struct crash_plan plan = { .seed = prng_seed(),
				   .states_a_life = 3,
				   .life = { .nr_ops = SWEEP_OPS, .arm = arm, .reached = reached },
				   .keep_images = true };
	struct crash_result result;

	goes_on = all;
	crash_sweep(&plan, set_nth, &result);
	print_message("# %" PRIu64 " places, %" PRIu64 " errors told, %" PRIu64 " aborts, %" PRIu64
		      " states\n",
		      result.nr_lives, result.nr_errors, result.nr_aborts, result.nr_states);
	if (result.wrong)
		fail_msg("%s", result.what);
	assert_true(result.nr_lives > 20);
	assert_true(result.nr_errors > 0);
}

static void one_allocation_fails(void **state)
{
	(void)state;
	sweep(false);
}

static void memory_is_gone_from_then_on(void **state)
{
	(void)state;
	sweep(true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_allocation_fails),
		cmocka_unit_test(memory_is_gone_from_then_on),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
