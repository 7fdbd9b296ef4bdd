/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-errno.c - the only place where our errors become those of a system call
 *
 * Inside, errors say what is wrong with the pool (-EUCLEAN, -ENOTBLK, -EILSEQ ...).  A program
 * that reads a file understands only what read(2) and its like are documented to return, and
 * some numbers mean something else to it or to the kernel's FUSE: ENOSYS switches an operation
 * off for good, EAGAIN and EINTR ask for a retry that nobody promised will work, and ENODATA
 * is "no such attribute".  So a list of what may pass; all else is EIO.
 */
#include "fuse/fuse-internal.h"

#include <errno.h>

int fuse_errno(int r)
{
	switch (-r) {
	case 0:
	case EPERM:
	case ENOENT:
	case EIO:
	case ENXIO: /* lseek: nothing there */
	case ENOMEM:
	case EACCES:
	case EBUSY:
	case EEXIST:
	case ENODEV:
	case ENOTDIR:
	case EISDIR:
	case EINVAL:
	case ENFILE:
	case EFBIG:
	case ENOSPC:
	case EROFS:
	case EMLINK:
	case ERANGE:
	case ENAMETOOLONG:
	case ENOTEMPTY:
	case EOPNOTSUPP:
	case ESTALE:
	case EDQUOT:
		return -r;
	default: /* EUCLEAN, EILSEQ, ENOTBLK, ENODATA, EWOULDBLOCK ... */
		return EIO;
	}
}
