/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bench-locks.c - what the run-time check of the order of locks costs
 *
 * Prints nanoseconds of CPU for a lock and unlock, alone and below others, shared and exclusive.
 * Build with and without -Ddebug_locks=true, and compare.
 */
#include <stdio.h>

#include "util/clock.h"
#include "util/lock-class.h"

#define NR_ROUNDS 5000000u

static struct tp_lock throttle, meta_root, bufio, lru;

TP_NO_TSA static void round_of(unsigned depth)
{
	if (depth > 1)
		lock_throttle_shared(&throttle);
	if (depth > 2)
		lock_meta_root_shared(&meta_root);
	lock_bufio_shared(&bufio);
	if (depth > 3) {
		lock_bufio_lru(&lru);
		unlock_bufio_lru(&lru);
	}
	unlock_bufio_shared(&bufio);
	if (depth > 2)
		unlock_meta_root_shared(&meta_root);
	if (depth > 1)
		unlock_throttle_shared(&throttle);
}

int main(void)
{
	tp_lock_init(&throttle, LC_throttle, LOCK_KIND_RW);
	tp_lock_init(&meta_root, LC_meta_root, LOCK_KIND_RW);
	tp_lock_init(&bufio, LC_bufio, LOCK_KIND_RW);
	tp_lock_init(&lru, LC_bufio_lru, LOCK_KIND_MUTEX);
	for (unsigned depth = 1; depth <= 4; depth++) {
		uint64_t best = UINT64_MAX;

		for (unsigned n = 0; n < 5; n++) {
			uint64_t began = time_read_usec(CLOCK_THREAD_CPUTIME_ID), usec;

			for (unsigned i = 0; i < NR_ROUNDS; i++)
				round_of(depth);
			usec = time_read_usec(CLOCK_THREAD_CPUTIME_ID) - began;
			best = usec < best ? usec : best;
		}
		printf("%u held at once  %5.1f ns a lock and unlock\n", depth,
		       (double)best * 1000 / NR_ROUNDS / depth);
	}
	return 0;
}
