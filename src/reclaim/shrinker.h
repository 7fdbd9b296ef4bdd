/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * shrinker.h - registry of caches that can give memory back
 *
 * Layer:    reclaim; may include util/ only.  bufio registers here, the
 *           pressure thread calls in; neither knows the other.
 * Threads:  any call, from any thread.  One lock, class "shrinkers".
 * Units:    an "object" is whatever the cache frees at a time (bufio: one
 *           buffer).  Counts are objects, never bytes.
 * Errors:   0 or a negative errno; ret_ parameters are written on success only.
 */
#ifndef TP_RECLAIM_SHRINKER_H
#define TP_RECLAIM_SHRINKER_H

#include <stdint.h>

#include "util/compiler.h"
#include "util/lock-class.h"

struct shrinker; /* opaque, owned by the registry */

/*
 * All are called with the "shrinkers" lock held shared, by whichever thread runs out
 * of memory.  They may take locks of later classes and wait for whatever needs only
 * these, I/O on a volume included (so whoever holds a pool lock must not wait for this
 * one); they must not register or unregister anything.
 */
struct shrinker_ops {
	/* How many objects could be freed now?  May be stale; 0 means skip. */
	uint64_t (*count)(void *ctx);

	/* Free at most @nr objects (@nr > 0); returns how many were freed, or will be soon. */
	uint64_t (*scan)(void *ctx, uint64_t nr);

	/*
	 * For a cache whose scan only asks a helper; both or none.  How many objects have been
	 * freed at the request of scans, ever; and wait until what was asked for is done.
	 */
	uint64_t (*freed)(void *ctx);
	void (*settle)(void *ctx);

	uint64_t
		object_bytes; /* memory of this process an object gives back; 0: of somebody else */
};

/*
 * Add a cache to the registry.  @name is copied; @ops and @ctx are borrowed
 * until shrinker_unregister().
 *
 * Takes the outermost lock, so the caller may hold none: recreating a cache
 * below the throttle or the metadata lock is the deadlock of the 2023 dm-thin
 * patch.  Reset the cache instead (bufio_client_reset()).
 *
 *   -EINVAL  @name is empty, or a callback is missing
 *   -ENOMEM
 */
int shrinker_register(const char *name, const struct shrinker_ops *ops, void *ctx,
		      struct shrinker **ret_s) TP_EXCLUDES_ALL TP_MUST_CHECK;

/*
 * Remove and free.  On return no callback runs and none will start.  NULL is
 * allowed.  Always returns NULL, for: s = shrinker_unregister(s).
 */
struct shrinker *shrinker_unregister(struct shrinker *s) TP_EXCLUDES_ALL;

/* What one cache has done. */
struct shrinker_result {
	char name[32];
	uint64_t asked, freed; /* objects */
	uint64_t bytes;        /* of this process */
};

#define SHRINKER_RESULTS_MAX 8

struct shrinkers_report {
	struct shrinker_result results[SHRINKER_RESULTS_MAX]; /* of the oldest ones */
	unsigned nr_results;
	uint64_t bytes; /* of all */
};

/*
 * Ask every registered cache, oldest first, for its @divisor-th part (1: for all it has), rounded
 * up, and wait until it is freed.
 */
void shrinkers_reclaim(unsigned divisor, struct shrinkers_report *ret_report) TP_EXCLUDES_ALL;

/* How long callbacks have kept the registry at most, in microseconds, since the program began. */
uint64_t shrinkers_longest_hold_usec(void);

#endif
