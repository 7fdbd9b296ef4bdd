/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * prng.c - xorshift64*, seeded through one round of splitmix64
 */
#include "prng.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/clock.h"

uint64_t prng_seed(void)
{
	const char *s = getenv("TP_SEED");
	uint64_t seed = s ? strtoull(s, NULL, 0) : time_real_usec();

	printf("# TP_SEED=%llu\n", (unsigned long long)seed);
	fflush(stdout);
	return seed;
}

uint64_t prng_ops(uint64_t fallback)
{
	const char *s = getenv("TP_OPS");

	return s ? strtoull(s, NULL, 0) : fallback;
}

void prng_init(struct prng *p, uint64_t seed)
{
	uint64_t z = seed + UINT64_C(0x9e3779b97f4a7c15);

	/* Spreads small seeds over all bits. */
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	z ^= z >> 31;
	p->state = z ? z : 1;
}

uint64_t prng_next(struct prng *p)
{
	uint64_t x = p->state;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	p->state = x;
	return x * UINT64_C(0x2545f4914f6cdd1d);
}

uint64_t prng_below(struct prng *p, uint64_t limit)
{
	/* The bias is below 2^-32 for every limit that a test uses. */
	return (prng_next(p) >> 1) % limit;
}

void prng_fill(struct prng *p, void *buffer, size_t length)
{
	char *to = buffer;
	uint64_t x;

	for (; length >= sizeof(x); to += sizeof(x), length -= sizeof(x)) {
		x = prng_next(p);
		memcpy(to, &x, sizeof(x));
	}
	x = prng_next(p);
	memcpy(to, &x, length);
}
