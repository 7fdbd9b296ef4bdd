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
 * Both are called with the "shrinkers" lock held shared, by whichever thread
 * runs out of memory.  They may take locks of later classes, but must not wait
 * for I/O and must not register or unregister anything.
 */
struct shrinker_ops {
	/* How many objects could be freed now?  May be stale; 0 means skip. */
	uint64_t (*count)(void *ctx);

	/* Free at most @nr objects (@nr > 0); returns how many were freed. */
	uint64_t (*scan)(void *ctx, uint64_t nr);
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

/*
 * Ask the registered caches, oldest first, to free @nr objects in all.
 * Returns the number freed, which may be less (nothing left) but never more
 * than the caches reported.
 */
uint64_t shrinkers_run(uint64_t nr) TP_EXCLUDES_ALL;

#endif
