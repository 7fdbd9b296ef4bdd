/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fake-pool.h - pool/pool.h over volumes in memory, for tests of front ends
 *
 * Link it instead of the pool layer.  Commands are carried out by a worker thread, as in the
 * real pool; I/O by the thread that submits it, or by the worker when told so.
 */
#ifndef TP_TESTS_FAKE_POOL_H
#define TP_TESTS_FAKE_POOL_H

#include "pool/pool.h"

#define FAKE_BLOCK_SIZE 65536u

/* Carry out all I/O in the worker thread from now on, or in the submitting one. */
void fake_pool_set_deferred(struct pool *pool, bool deferred);

/* While held, deferred I/O waits.  Needs fake_pool_set_deferred(). */
void fake_pool_hold(struct pool *pool, bool hold);

/* The next @count requests of @op end with @r.  -1: all. */
void fake_pool_fail(struct pool *pool, enum pool_io_op op, int r, int count);

/* While held, commands wait. */
void fake_pool_hold_commands(struct pool *pool, bool hold);

/* Commands end with @r and @text from now on; 0: they are carried out again. */
void fake_pool_fail_commands(struct pool *pool, int r, const char *text);

/* Content replaced behind everybody's back, as a roll-back does; reported by an event. */
int fake_pool_fill(struct pool *pool, const char *name, unsigned char byte);

struct fake_pool_counts {
	uint64_t reads, writes, durable_writes, flushes, punches, zeroes, allocates, commits;
	uint64_t unaligned_buffers; /* (buffer - offset) was no multiple of 4096 */
	unsigned volumes;           /* that still exist, unlinked ones included */
	unsigned references;        /* on all of them, opens included */
};
void fake_pool_get_counts(struct pool *pool, struct fake_pool_counts *ret_counts);

#endif
