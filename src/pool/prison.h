/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * prison.h - who may use which blocks of a volume now: shared or exclusive cells
 *
 * A cell covers a few consecutive blocks of one owner (a volume).  I/O on mapped blocks
 * holds its cell shared until it is done; whoever changes mappings holds it exclusively.
 * So an exclusive cell waits for the I/O in flight on exactly its blocks, and what comes
 * later waits for it.
 *
 * Layer:    pool.
 * Threads:  any.  Nobody sleeps: a cell that cannot be had is queued, and whoever releases
 *           the obstacle is given it to see to.
 * Units:    data blocks of a volume (vblock_t).
 * Errors:   -ENOMEM when it is made; nothing else can fail.
 * Memory:   cells are embedded in the structures of their users.
 */
#ifndef TP_POOL_PRISON_H
#define TP_POOL_PRISON_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "util/compiler.h"
#include "util/lock-class.h"

struct prison;

struct cell {
	const void *owner;
	uint64_t begin, end; /* blocks; within one zone */
	bool exclusive;
	/* private */
	bool held;
	struct cell *next_granted;
	TAILQ_ENTRY(cell) link;
};

/* A cell never crosses a multiple of @zone_blocks (a power of two). */
int prison_create(uint64_t zone_blocks, struct prison **ret_prison) TP_MUST_CHECK;
/* Nobody holds a cell.  NULL is allowed.  Returns NULL. */
struct prison *prison_destroy(struct prison *p);

/*
 * True: held.  False: queued, in order of arrival among those that it conflicts with; it is
 * returned by a later prison_release() or prison_shrink(), perhaps already in another thread.
 */
bool prison_acquire(struct prison *p, struct cell *cell) TP_TAKES(prison) TP_MUST_CHECK;

/*
 * Give up a held cell, or its blocks from @end on.  Returns the cells that are held now
 * because of it, chained by next_granted: their users must be told.
 */
struct cell *prison_release(struct prison *p, struct cell *cell) TP_TAKES(prison) TP_MUST_CHECK;
struct cell *prison_shrink(struct prison *p, struct cell *cell, uint64_t end)
	TP_TAKES(prison) TP_MUST_CHECK;

#endif
