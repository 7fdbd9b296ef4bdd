/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-mount.h - put a FUSE mount into the tree and take it out again
 *
 * Layer:    fuse.
 * Threads:  one at a time; never one that serves the mount.
 * Units:    none.
 * Errors:   0 or a negative errno; the line in @error says what to do about it.
 */
#ifndef TP_FUSE_FUSE_MOUNT_H
#define TP_FUSE_FUSE_MOUNT_H

#include <stdbool.h>
#include <stdint.h>

#include "util/compiler.h"
#include "util/error.h"
#include "util/lock-class.h"

struct fuse_mount;

/*
 * Mount on an empty directory that is no mount point.  @ret_fd: the connection, nonblocking,
 * the caller's.
 */
int fuse_mount_create(const char *mountpoint, bool read_only, bool allow_other,
		      struct fuse_mount **ret_mount, int *ret_fd,
		      struct tp_error *error) TP_MUST_CHECK;

/* That of an earlier daemon, as fuse_mount_tell() told it.  Asks no server. */
int fuse_mount_adopt(const char *path, bool by_helper, bool identified, uint64_t mount_id,
		     struct fuse_mount **ret_mount) TP_MUST_CHECK;
void fuse_mount_tell(const struct fuse_mount *mount, bool *ret_by_helper, bool *ret_identified,
		     uint64_t *ret_mount_id);

/* Which mount it is can be asked for only once it answers: call this after INIT. */
void fuse_mount_identify(struct fuse_mount *mount);

/*
 * Take it out of the tree; @detach: even when in use.  0 too when it is gone already.
 * -EBUSY.
 */
int fuse_mount_remove(struct fuse_mount *mount, bool detach) TP_TAKES(completion) TP_MUST_CHECK;

/* Frees the description, not the mount.  NULL is allowed.  Returns NULL. */
struct fuse_mount *fuse_mount_free(struct fuse_mount *mount);

const char *fuse_mount_path(const struct fuse_mount *mount);

#endif
