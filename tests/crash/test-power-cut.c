/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Whatever a power cut leaves of the two devices, a pool can be made of it: nothing that was
 * flushed is missing, nothing that was not is but old or new, nothing is foreign, names are those
 * of before or after a command, and metadata is right to the last bit.
 *
 * TP_SEED repeats the work and the choice of states (not the threads' interleaving; a state that
 * is wrong is kept), TP_CRASH_STATES is the number of states.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <inttypes.h>
#include <stdlib.h>

#include "crash-run.h"
#include "prng.h"

static void what_a_power_cut_leaves_is_right(void **state)
{
	const char *wanted = getenv("TP_CRASH_STATES");
	struct crash_plan plan = { .nr_states = wanted ? strtoull(wanted, NULL, 0) : NR_STATES,
				   .states_a_life = 120,
				   .life = { .nr_ops = 120, .faults = true },
				   .keep_images = true };
	struct crash_result result;

	(void)state;
	plan.seed = prng_seed();
	crash_run(&plan, &result);
	print_message("# %" PRIu64 " states of %" PRIu64 " lives, %" PRIu64
		      " distinct superblocks, %" PRIu64 " writes and flushes logged, %" PRIu64
		      " aborts, %" PRIu64 " states with NEEDS_CHECK, %" PRIu64
		      " with removals finished, %" PRIu64 " shown to other tools\n",
		      result.nr_states, result.nr_lives, result.nr_superblocks, result.nr_entries,
		      result.nr_aborts, result.nr_needs_check, result.nr_removals,
		      result.nr_judged);
	if (result.wrong)
		fail_msg("%s", result.what);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(what_a_power_cut_leaves_is_right) };

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
