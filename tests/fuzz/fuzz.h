/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuzz.h - what a target is, and how it takes its input apart
 *
 * Linked with libFuzzer a target is fuzzed; linked with main.c it replays files.
 */
#ifndef TP_TESTS_FUZZ_H
#define TP_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "require.h"

/* What must hold, or the program ends: that is a finding. */
#define HOLDS(cond) REQUIRE(cond, "does not hold")

/* The names are libFuzzer's.  Called once. */
int LLVMFuzzerInitialize(int *argc, char ***argv);
/* One input.  Leaves nothing behind that the next could see.  Returns 0. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Bytes not used yet; behind the end there are zeros. */
struct fuzz_input {
	const uint8_t *data;
	size_t left;
};

static inline void fuzz_take(struct fuzz_input *in, void *ret, size_t size)
{
	size_t n = size < in->left ? size : in->left;

	memset(ret, 0, size);
	if (n)
		memcpy(ret, in->data, n);
	in->data += n;
	in->left -= n;
}

static inline uint8_t fuzz_u8(struct fuzz_input *in)
{
	uint8_t v;

	fuzz_take(in, &v, sizeof(v));
	return v;
}

static inline uint16_t fuzz_u16(struct fuzz_input *in)
{
	uint16_t v;

	fuzz_take(in, &v, sizeof(v));
	return v;
}

static inline uint64_t fuzz_u64(struct fuzz_input *in)
{
	uint64_t v;

	fuzz_take(in, &v, sizeof(v));
	return v;
}

#endif
