/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dying-pool.h - a pool whose process dies, and the one that comes after it
 *
 * Dying is a copy of what outlives the process: both devices as they are, unflushed writes and all,
 * and the redo area.  It is taken at rest, or by the pool's worker itself when it is about to
 * begin its n-th I/O.  The pool that served until then goes on, and is thrown away; the next one
 * begins with the copy.
 */
#ifndef TP_TESTS_DYING_POOL_H
#define TP_TESTS_DYING_POOL_H

#include "pool-fixture.h"

struct death;

struct dying_pool {
	struct pool_rig
		*rig;        /* for all that pool-fixture.h has; its devices are no fault devices */
	int area_fd;         /* the redo area */
	struct death *death; /* that the countdown has made */
	unsigned long countdown;
};

/* Nothing is committed by the clock.  @area_bytes 0: as large as a daemon's. */
struct dying_pool *dying_pool_create(uint64_t block_bytes, uint64_t nr_blocks,
				     uint64_t metadata_bytes, uint64_t area_bytes);
void dying_pool_destroy(struct dying_pool *dp);
struct io_device *dying_pool_metadata(struct dying_pool *dp); /* a fault device */
struct io_device *dying_pool_data(struct dying_pool *dp);

/* Now; no request is under way, and the worker gets the time to fall asleep. */
struct death *dying_pool_die(struct dying_pool *dp);
/* At once: the worker waits for a request that the test holds. */
struct death *dying_pool_die_now(struct dying_pool *dp);
/* Before the worker's n-th I/O from now on (n >= 1): dp->death.  0: not any more. */
void dying_pool_die_at(struct dying_pool *dp, unsigned long n);

/*
 * The next process.  Handles on the former pool are closed.  @death is freed.  Without @same_boot
 * the machine has lost its power too: there is no area.
 */
void dying_pool_rise(struct dying_pool *dp, struct death *death, bool same_boot);
/* As dying_pool_rise(), and what the pool's opening says. */
int dying_pool_try_rise(struct dying_pool *dp, struct death *death, bool same_boot);
void death_free(struct death *death);

/* Are the counts of the present metadata device right, and is no block leaked?  At rest only. */
bool dying_pool_is_clean(struct dying_pool *dp);

#endif
