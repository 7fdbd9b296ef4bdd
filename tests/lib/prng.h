/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * prng.h - random numbers that can be had again
 *
 * A random test takes its seed from prng_seed(), which prints it; TP_SEED in the
 * environment repeats a run.
 */
#ifndef TP_TESTS_PRNG_H
#define TP_TESTS_PRNG_H

#include <stddef.h>
#include <stdint.h>

struct prng {
	uint64_t state;
};

/* TP_SEED, or else the time; printed as a TAP comment. */
uint64_t prng_seed(void);

/* TP_OPS, or else @fallback: how long a random test shall go on. */
uint64_t prng_ops(uint64_t fallback);

void prng_init(struct prng *p, uint64_t seed);
uint64_t prng_next(struct prng *p);
/* 0 <= result < @limit; @limit is not 0. */
uint64_t prng_below(struct prng *p, uint64_t limit);
void prng_fill(struct prng *p, void *buffer, size_t length);

#endif
