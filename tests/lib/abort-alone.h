/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * abort-alone.h - thin_metadata_abort() as the pool's worker calls it, without a pool
 */
#ifndef TP_TESTS_ABORT_ALONE_H
#define TP_TESTS_ABORT_ALONE_H

#include "thin/thin-metadata.h"

/* Nobody waits for an answer here, but the checker shall look at the abort as if. */
TP_NO_TSA TP_MUST_CHECK static inline int abort_alone(struct thin_metadata *tmd)
{
	int r;

	tp_lock_hold_begin(tmd, LC_completion);
	r = thin_metadata_abort(tmd);
	tp_lock_hold_end(tmd, LC_completion);
	return r;
}

#endif
