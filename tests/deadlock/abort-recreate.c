/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * abort-recreate.c - the abort as it was before December 2022, in the place of thin-abort.c
 *
 * The buffer cache is destroyed and made anew with meta_root held.  Both take the registry of
 * shrinkers exclusively, so clang does not compile this with -Wthread-safety, and the test
 * programs that are linked with it hang.  Nothing but tests/deadlock/ uses it.
 */
#include "pdata/block-manager.h"
#include "thin/thin-internal.h"

int thin_metadata_abort(struct thin_metadata *tmd)
{
	const struct block_manager_options options = { .cache_bytes = 4u << 20 };
	int r = -EINVAL;

	lock_meta_root(&tmd->lock);
	if (!tmd->fail_io) {
		metadata_objects_destroy(tmd);
		tmd->bm = bm_destroy(tmd->bm);
		r = bm_create(tmd->dev, &options, &tmd->bm);
		if (!r)
			r = metadata_reopen(tmd);
	}
	unlock_meta_root(&tmd->lock);
	return r;
}
