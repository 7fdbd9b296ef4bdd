/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * abort-swap.c - the abort of commit 8111964f1b85, half a fix, in the place of thin-abort.c
 *
 * The new buffer cache is made before meta_root is taken, and the old one destroyed after it was
 * released.  But whoever aborts has requests to answer, and perhaps the throttle, so clang does
 * not compile this with -Wthread-safety either, and the test programs that are linked with it
 * hang in two scenarios of three.  Nothing but tests/deadlock/ uses it.
 */
#include "pdata/block-manager.h"
#include "thin/thin-internal.h"

int thin_metadata_abort(struct thin_metadata *tmd)
{
	const struct block_manager_options options = { .cache_bytes = 4u << 20 };
	struct block_manager *fresh, *old;
	int r = bm_create(tmd->dev, &options, &fresh);

	if (r)
		return r;
	old = fresh;
	r = -EINVAL;
	lock_meta_root(&tmd->lock);
	if (!tmd->fail_io) {
		metadata_objects_destroy(tmd);
		old = tmd->bm;
		tmd->bm = fresh;
		r = metadata_reopen(tmd);
	}
	unlock_meta_root(&tmd->lock);
	bm_destroy(old);
	return r;
}
