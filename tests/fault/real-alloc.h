/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * real-alloc.h - memory for test code, in a program where allocations of the pool fail
 *
 * Included by the compiler before everything else (-include); see test-memory-sweep.c.
 */
#ifndef TP_TESTS_REAL_ALLOC_H
#define TP_TESTS_REAL_ALLOC_H

#include <stdlib.h>

#include "io/device.h"

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);

static inline void *real_buffer_alloc(uint64_t length)
{
	return __real_aligned_alloc(4096, DIV_ROUND_UP(MAX(length, 1), 4096) * 4096);
}

#define malloc __real_malloc
#define calloc __real_calloc
#define realloc __real_realloc
#define io_buffer_alloc real_buffer_alloc

#endif
