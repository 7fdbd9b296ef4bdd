/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * crash-judge.h - is what a power cut has left right in every respect?
 *
 * Threads:  one.
 */
#ifndef TP_TESTS_CRASH_JUDGE_H
#define TP_TESTS_CRASH_JUDGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct crash_replay;
struct model;
struct prng;

struct crash_judge {
	uint8_t *contents; /* of the volumes */
	uint64_t nr_needs_check, nr_removals;

	/* Told about the state judged last. */
	uint64_t superblock; /* a hash of it */
	bool needs_check;
};

void crash_judge_init(struct crash_judge *j);
void crash_judge_destroy(struct crash_judge *j);

/*
 * The state that @replay has built last, of @moment: does our checker find nothing, can the pool be
 * opened, are names and contents such as @model allows, and is the pool right again when it is
 * closed?  @failed: NEEDS_CHECK may be set.  If not: why, in at least 256 bytes.
 */
bool crash_judge_state(struct crash_judge *j, struct crash_replay *replay,
		       const struct model *model, uint64_t moment, bool failed, struct prng *p,
		       char *why, size_t why_bytes);

#endif
