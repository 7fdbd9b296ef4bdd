/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * crash-run.h - lives, and after each of them a look at what power cuts leave of it
 *
 * The next life begins with one of these states.
 *
 * Threads:  one.
 */
#ifndef TP_TESTS_CRASH_RUN_H
#define TP_TESTS_CRASH_RUN_H

#include <stdbool.h>
#include <stdint.h>

#include "crash-life.h"

struct crash_plan {
	uint64_t seed, nr_states;
	unsigned states_a_life;
	struct crash_life_plan life;    /* faults: in some lives */
	void (*before_life)(void *ctx); /* with life.ctx; or NULL */
	bool keep_images;               /* of a state that is wrong, in files */
};

struct crash_result {
	uint64_t nr_states, nr_superblocks; /* distinct ones, as the states had them */
	uint64_t nr_lives, nr_aborts, nr_needs_check, nr_removals, nr_judged; /* by other tools */
	uint64_t nr_entries;                                                  /* logged */
	uint64_t nr_errors; /* answered in all lives */
	bool wrong;
	char what[768]; /* wrong: what, and how it was made */
};

/* Until there are enough states, or one is wrong. */
void crash_run(const struct crash_plan *plan, struct crash_result *ret_result);

/*
 * Lives that are all the same, from a pool with some volumes in it, in which something fails in one
 * place after another: life.ctx is told by @arm_nth which one, from 1.  Ends when a life in which
 * nothing was reached any more shows that these were all.  nr_states is not used.
 */
void crash_sweep(const struct crash_plan *plan, void (*arm_nth)(void *ctx, uint64_t nth),
		 struct crash_result *ret_result);

#endif
