/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-abort.c - throw the open transaction away
 *
 * Twenty lines that the order of locks hangs on.  The cache of the metadata device is emptied
 * in place (bm_reset()) instead of being destroyed and made anew: making or destroying one
 * takes the registry of shrinkers, the outermost lock, and whoever holds that may be waiting
 * for meta_root, for the throttle, or for this very thread to answer a request.
 * src/LOCKING.md tells these three stories; tests/deadlock/ acts them out, with this file and
 * with the two others that were in its place in dm-thin before.
 *
 * Locks: meta_root exclusively, all the while; LC_completion is the caller's, who may have the
 * throttle, too.
 */
#include "thin/thin-internal.h"

int thin_metadata_abort(struct thin_metadata *tmd)
{
	int r = -EINVAL;

	lock_meta_root(&tmd->lock);
	if (!tmd->fail_io) {
		/* All of these cache what the reset is about to forget. */
		metadata_objects_destroy(tmd);
		bm_reset(tmd->bm);
		r = metadata_reopen(tmd);
	}
	unlock_meta_root(&tmd->lock);
	return r;
}
