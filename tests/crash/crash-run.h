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

struct write_log_entry;

struct crash_plan {
	uint64_t seed, nr_states;
	unsigned nr_ops, states_a_life;
	bool faults; /* in some lives a request fails */
	/* What a device that lies does not do; @keeps_reset before each life.  NULL: it is honest.
	 */
	bool (*keeps)(void *ctx, const struct write_log_entry *e);
	void (*keeps_reset)(void *ctx);
	void *ctx;
	bool keep_images; /* of a state that is wrong, in files */
};

struct crash_result {
	uint64_t nr_states, nr_superblocks; /* distinct ones, as the states had them */
	uint64_t nr_lives, nr_aborts, nr_needs_check, nr_removals, nr_judged; /* by other tools */
	uint64_t nr_entries;                                                  /* logged */
	bool wrong;
	char what[768]; /* wrong: what, and how it was made */
};

/* Until there are enough states, or one is wrong. */
void crash_run(const struct crash_plan *plan, struct crash_result *ret_result);

#endif
