/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-xattr.c - extended attributes: how tools ask about a volume and find the daemon
 *
 *	root      user.thinpool.socket     the control socket
 *	a volume  user.thinpool.id         its thin id
 *	          user.thinpool.used       bytes mapped
 *	          user.thinpool.mapped     the same in data blocks of the pool
 *	          user.thinpool.origin     thin id of what it is a snapshot of, if it is one
 *	          user.thinpool.read_only  1: writes are refused; 0.  This one can be set
 *	          user.thinpool.created    seconds since 1970, if known
 *
 * There are no others, and none can be removed; names that the kernel asks for by itself
 * (security.capability, access control lists) are answered at once, without a look at the pool.
 */
#include "fuse/fuse-internal.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

#include "util/clock.h"

#define PREFIX "user.thinpool."

/* A value as text; -ENODATA: this inode has no such attribute. */
static int value_of(struct fuse_server *server, const struct volume_info *info, const char *name,
		    char *text, size_t size)
{
	if (!strcmp(name, "socket") && !info && server->socket_path)
		snprintf(text, size, "%s", server->socket_path);
	else if (!strcmp(name, "id") && info)
		snprintf(text, size, "%u", info->id);
	else if (!strcmp(name, "used") && info)
		snprintf(text, size, "%llu", (unsigned long long)info->mapped_bytes);
	else if (!strcmp(name, "mapped") && info)
		snprintf(text, size, "%llu",
			 (unsigned long long)(info->mapped_bytes / server->block_size));
	else if (!strcmp(name, "origin") && info && info->has_origin)
		snprintf(text, size, "%u", info->origin);
	else if (!strcmp(name, "read_only") && info)
		snprintf(text, size, "%d", info->read_only);
	else if (!strcmp(name, "created") && info && info->created_usec)
		snprintf(text, size, "%llu",
			 (unsigned long long)(info->created_usec / USEC_PER_SEC));
	else
		return -ENODATA;
	return 0;
}

static const char *const names[] = { "socket", "id",        "used",   "mapped",
				     "origin", "read_only", "created" };

/* 0 with @ret_info filled when it is a volume, else -ENODATA for inodes without attributes. */
static int inode_info(struct fuse_server *server, fuse_ino_t ino, struct volume_info *ret_info,
		      bool *ret_is_volume)
{
	struct volume *v;

	*ret_is_volume = ino_is_volume(ino);
	if (!*ret_is_volume)
		return ino == FUSE_ROOT_ID ? 0 : -ENODATA;
	if (pool_volume_get(server->pool, ino_thin_id(ino), &v))
		return -ENODATA;
	volume_get_info(v, ret_info);
	volume_put(v);
	return 0;
}

static void reply_value(fuse_req_t req, const char *value, size_t length, size_t size)
{
	if (!size)
		fuse_reply_xattr(req, length);
	else if (size < length)
		fuse_reply_err(req, ERANGE);
	else
		fuse_reply_buf(req, value, length);
}

void fuse_op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	struct fuse_server *server = request_server(req);
	struct volume_info info;
	char text[PATH_MAX];
	bool is_volume;
	int r = -ENODATA;

	if (!strncmp(name, PREFIX, strlen(PREFIX)))
		r = inode_info(server, ino, &info, &is_volume);
	if (!r)
		r = value_of(server, is_volume ? &info : NULL, name + strlen(PREFIX), text,
			     sizeof(text));
	if (r)
		fuse_reply_err(req, ENODATA); /* means just this here; no other error is possible */
	else
		reply_value(req, text, strlen(text), size);
}

void fuse_op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
	struct fuse_server *server = request_server(req);
	char list[ARRAY_SIZE(names) * 32], text[PATH_MAX];
	struct volume_info info;
	size_t length = 0;
	bool is_volume;

	if (!inode_info(server, ino, &info, &is_volume))
		for (size_t i = 0; i < ARRAY_SIZE(names); i++)
			if (!value_of(server, is_volume ? &info : NULL, names[i], text,
				      sizeof(text)))
				length += 1 + (size_t)snprintf(list + length, sizeof(list) - length,
							       PREFIX "%s", names[i]);
	reply_value(req, list, length, size);
}

/* 0: @name is one that can be set.  -EPERM: one of ours that cannot. */
static int check_settable(const struct fuse_server *server, fuse_ino_t ino, const char *name)
{
	if (strncmp(name, PREFIX, strlen(PREFIX)) != 0)
		return -EOPNOTSUPP;
	if (!ino_is_volume(ino) || strcmp(name, PREFIX "read_only") != 0)
		return -EPERM;
	return server->read_only ? -EROFS : 0;
}

void fuse_op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value,
		      size_t size, int flags)
{
	struct fuse_server *server = request_server(req);
	struct fuse_slot *slot;
	int r = check_settable(server, ino, name);

	if (!r && flags & XATTR_CREATE)
		r = -EEXIST;
	if (!r && (size != 1 || (*value != '0' && *value != '1')))
		r = -EINVAL;
	if (r) {
		reply_error(req, r);
		return;
	}
	slot = fuse_slot_take(req);
	slot->command = (struct pool_command){
		.op = POOL_SET_READ_ONLY,
		.flags = POOL_CMD_BY_ID | (*value == '1' ? POOL_CMD_READ_ONLY : 0),
		.id = ino_thin_id(ino),
		.done = fuse_command_done,
	};
	pool_command_submit(server->pool, &slot->command);
}

void fuse_op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
	(void)ino;
	reply_error(req, strncmp(name, PREFIX, strlen(PREFIX)) ? -EOPNOTSUPP : -EPERM);
}
