/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-refuse.h - a mount that nobody can serve answers EIO rather than hang
 *
 * Layer:    fuse.
 * Threads:  one; no server uses the connection.
 * Units:    none.
 * Errors:   0 or a negative errno.
 */
#ifndef TP_FUSE_FUSE_REFUSE_H
#define TP_FUSE_FUSE_REFUSE_H

#include <stdbool.h>
#include <stdint.h>

#include "util/compiler.h"
#include "util/lock-class.h"

struct fuse_refusal;

/*
 * A daemon starts that goes on with this mount: has it come to @limit of them after deaths within
 * @window_usec?  For who has no keeper to count; @limit above FUSE_STATE_STARTS (64) is none.
 */
bool fuse_refuse_is_due(int state_fd, unsigned limit, uint64_t window_usec);
/* The next one to start is not counted, and those before are forgotten. */
void fuse_refuse_expect(int state_fd);

/* Both descriptors are borrowed, and nonblocking reads of the first will be made. */
int fuse_refuse_begin(int connection_fd, int state_fd,
		      struct fuse_refusal **ret_refusal) TP_MUST_CHECK;

/* Fail the requests that are there now.  -ENODEV: unmounted. */
int fuse_refuse_some(struct fuse_refusal *refusal) TP_MUST_CHECK;

/* Detach the mount from the tree. */
int fuse_refuse_unmount(struct fuse_refusal *refusal) TP_TAKES(completion) TP_MUST_CHECK;

/* NULL is allowed.  Returns NULL. */
struct fuse_refusal *fuse_refuse_end(struct fuse_refusal *refusal);

#endif
