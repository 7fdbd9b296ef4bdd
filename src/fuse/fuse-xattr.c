/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-xattr.c - extended attributes: how tools ask about a volume and find the daemon
 *
 *	root      user.thinpool.socket     the control socket
 *	a volume  user.thinpool.id         its thin id
 *	          user.thinpool.used       bytes mapped
 *	          user.thinpool.origin     thin id of what it is a snapshot of, if it is one
 *	          user.thinpool.read-only  "yes" or "no"
 *
 * They are read only, and there are no others; names that the kernel asks for by itself
 * (security.capability, access control lists) are answered at once.
 */
#include "fuse/fuse-internal.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
	else if (!strcmp(name, "origin") && info && info->has_origin)
		snprintf(text, size, "%u", info->origin);
	else if (!strcmp(name, "read-only") && info)
		snprintf(text, size, "%s", info->read_only ? "yes" : "no");
	else
		return -ENODATA;
	return 0;
}

static const char *const names[] = { "socket", "id", "used", "origin", "read-only" };

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

void fuse_op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value,
		      size_t size, int flags)
{
	(void)ino;
	(void)name;
	(void)value;
	(void)size;
	(void)flags;
	reply_error(req, -EOPNOTSUPP);
}

void fuse_op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
	(void)ino;
	(void)name;
	reply_error(req, -EOPNOTSUPP);
}
