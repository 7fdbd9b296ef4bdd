/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * control.h - how thinpoolctl speaks to thinpoold
 *
 * A UNIX stream socket, mode 0600.  Messages are JSON objects ended by a NUL byte, in
 * varlink's shape:
 *
 *   call    {"method": "org.thinpoold.Create", "parameters": {"name": "vol", "size": 1073741824}}
 *   reply   {"parameters": {"id": 7}}
 *   error   {"error": "org.thinpoold.Exists", "parameters": {"message": "..."}}
 *
 * Calls of one connection are answered in order; one longer than CONTROL_MESSAGE_MAX by Failed, and
 * by the end of the connection.  A descriptor comes as SCM_RIGHTS with the first byte of its reply.
 * The path of the socket is the value of the extended attribute CONTROL_XATTR of the mount's root.
 *
 *   method     parameters                              reply
 *   GetStatus  -                                       the keys of status --json
 *   List       -                                       volumes: [the keys of list --json]
 *   Create     name, size                              id
 *   Snapshot   origin, name, read_only (optional)      id
 *   Delete     name
 *   Rename     name, new_name
 *   Resize     name, size, shrink (optional)
 *   MetadataSnap  reserve: true to take the metadata snapshot, false to release it
 *   Extend     data_size, metadata_size (one or both)  data_size, metadata_size: as they are now
 *   Pin        -                                       superblock (in hexadecimal), data_size
 *                                                      (and a descriptor of the metadata)
 *   Unpin      -
 *   Trim       -                                       bytes
 *   Reclaim    -                                       bytes, resident_before, resident_after,
 *                                                      shrinkers: [name, objects, bytes]
 *   GetRestarts  -                                     restarts, pause_usec (of the last)
 *   Restart    -                                       restarts, as they are before it
 *   org.varlink.service.GetInfo and GetInterfaceDescription as varlink has them
 */
#ifndef THINPOOLD_CONTROL_H
#define THINPOOLD_CONTROL_H

#define CONTROL_INTERFACE "org.thinpoold"
#define CONTROL_XATTR "user.thinpool.socket"
#define CONTROL_MESSAGE_MAX 65536 /* bytes of one call, with its NUL */
#define CONTROL_CONNECTIONS_MAX 32

/* Errors, after CONTROL_INTERFACE and a dot. */
#define CONTROL_ERROR_NOT_FOUND "NotFound"
#define CONTROL_ERROR_EXISTS "Exists"
#define CONTROL_ERROR_BUSY "Busy"
#define CONTROL_ERROR_NO_SPACE "NoSpace"
#define CONTROL_ERROR_FAILED "Failed" /* everything else; the message tells */
/* org.varlink.service: MethodNotFound, InvalidParameter, InterfaceNotFound as varlink has them. */

/* Exit codes of thinpoolctl. */
enum ctl_exit {
	CTL_OK = 0,
	CTL_FAILED = 1,
	CTL_USAGE = 2,
	CTL_NOT_FOUND = 3,
	CTL_EXISTS = 4,
	CTL_BUSY = 5,
	CTL_NO_SPACE = 6,
	CTL_NO_DAEMON = 69,
};

#endif
