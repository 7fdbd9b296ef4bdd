/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-fs.c - names, attributes, directories
 *
 * The root holds the volumes and .thinpool, which holds a few files of ours.  What changes the set
 * of volumes is a pool_command: submitted by a worker, carried out by the pool's worker, which
 * calls back into the second half of the operation (..._done) to answer.  Those of names go through
 * fuse-again.c.
 *
 *	create, mknod   an empty volume        unlink   delete
 *	link            a snapshot             rename   rename
 *	setattr (size)  resize
 *
 * Positions in the root directory are inode numbers, so a listing that goes on while volumes come
 * and go shows each one that was there all the time exactly once.
 *
 * Names are checked by the pool; only .thinpool is ours to protect.
 */
#include "fuse/fuse-internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int info_by_id(struct fuse_server *server, thin_id_t id, struct volume_info *ret_info)
{
	struct volume *v;
	int r = pool_volume_get(server->pool, id, &v);

	if (r)
		return r == -ENOENT ? -ESTALE : r; /* ESTALE: the kernel looks the name up again */
	volume_get_info(v, ret_info);
	volume_put(v);
	return 0;
}

/* ------------------------------------------------------- lookup, attributes */

static int lookup_volume(struct fuse_server *server, const char *name,
			 struct fuse_entry_param *ret_entry)
{
	struct volume_info info;
	struct volume *v;
	int r;

	if (strlen(name) > VOLUME_NAME_MAX)
		return -ENAMETOOLONG;
	r = pool_volume_find(server->pool, name, &v);
	if (r)
		return r == -EINVAL ? -ENOENT : r; /* no volume can have such a name */
	volume_get_info(v, &info);
	volume_put(v);
	fuse_volume_entry(server, &info, ret_entry);
	return 0;
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_server *server = request_server(req);
	struct fuse_entry_param e = { .attr_timeout = FIXED_TIMEOUT_SEC,
				      .entry_timeout = FIXED_TIMEOUT_SEC };
	int r = 0;

	if (parent == INO_DIRECTORY)
		e.ino = fuse_virtual_lookup(server, name);
	else if (parent == FUSE_ROOT_ID && !strcmp(name, DIRECTORY_NAME))
		e.ino = INO_DIRECTORY;
	else if (parent == FUSE_ROOT_ID)
		r = lookup_volume(server, name, &e);

	if (!r && !e.ino)
		r = -ENOENT;
	if (!r && !ino_is_volume(e.ino))
		fuse_virtual_attr(server, e.ino, &e.attr);
	if (r)
		reply_error(req, r);
	else
		fuse_reply_entry(req, &e);
}

/* Nothing is remembered of what was looked up: see fuse-node.c. */
static void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nr_lookups)
{
	(void)ino;
	(void)nr_lookups;
	fuse_reply_none(req);
}

static void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
	(void)count;
	(void)forgets;
	fuse_reply_none(req);
}

static int attr_of(struct fuse_server *server, fuse_ino_t ino, struct stat *ret_attr)
{
	struct volume_info info;
	int r;

	if (ino_is_volume(ino)) {
		r = info_by_id(server, ino_thin_id(ino), &info);
		if (!r)
			fuse_volume_attr(server, &info, ret_attr);
		return r;
	}
	if (ino >= INO_VIRTUAL_FIRST && !fuse_virtual_exists(server, ino))
		return -ESTALE;
	fuse_virtual_attr(server, ino, ret_attr);
	return 0;
}

static void reply_attr(fuse_req_t req, fuse_ino_t ino)
{
	struct stat attr;
	int r = attr_of(request_server(req), ino, &attr);

	if (r)
		reply_error(req, r);
	else
		fuse_reply_attr(req, &attr,
				ino_is_volume(ino) ? CACHE_TIMEOUT_SEC : FIXED_TIMEOUT_SEC);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)fi;
	reply_attr(req, ino);
}

static void resize_done(struct pool_command *cmd, int r)
{
	struct fuse_slot *slot = container_of(cmd, struct fuse_slot, command);
	struct volume_info info;

	if (r) {
		fuse_slot_end_with(slot, r);
		return;
	}
	if (!info_by_id(slot->server, cmd->id, &info))
		fuse_node_touch(slot->server, &info);
	reply_attr(slot->req, slot->step.ino);
	fuse_slot_end(slot);
}

/* Mode and owner follow from the volume and the daemon; asking for what they are is no change. */
static bool changes_owner_or_mode(const struct stat *is, const struct stat *wanted, int to_set)
{
	return (to_set & FUSE_SET_ATTR_MODE &&
		(wanted->st_mode & 07777) != (is->st_mode & 07777)) ||
	       (to_set & FUSE_SET_ATTR_UID && wanted->st_uid != is->st_uid) ||
	       (to_set & FUSE_SET_ATTR_GID && wanted->st_gid != is->st_gid);
}

/* Times are accepted and not kept: touch(1) and cp -p are to work. */
static void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *wanted, int to_set,
		       struct fuse_file_info *fi)
{
	struct fuse_server *server = request_server(req);
	struct fuse_slot *slot;
	struct stat is;
	int r = attr_of(server, ino, &is);

	(void)fi;
	if (!r && changes_owner_or_mode(&is, wanted, to_set))
		r = -EPERM;
	if (!r && to_set & FUSE_SET_ATTR_SIZE && !ino_is_volume(ino))
		r = -EACCES;
	if (!r && to_set & FUSE_SET_ATTR_SIZE && server->read_only)
		r = -EROFS;
	if (r) {
		reply_error(req, r);
		return;
	}
	if (!(to_set & FUSE_SET_ATTR_SIZE) || wanted->st_size == is.st_size) {
		reply_attr(req, ino);
		return;
	}
	slot = fuse_slot_take(req);
	slot->step.ino = ino;
	slot->command = (struct pool_command){
		.op = POOL_RESIZE,
		.flags = POOL_CMD_BY_ID | POOL_CMD_SHRINK,
		.id = ino_thin_id(ino),
		.size_bytes = (uint64_t)wanted->st_size,
		.done = resize_done,
	};
	pool_command_submit(server->pool, &slot->command);
}

/* ----------------------------------------------------- changes to the names */

/* 0 when @name in @parent may become or stop being a volume's. */
static int check_name(const struct fuse_server *server, fuse_ino_t parent, const char *name)
{
	if (server->read_only)
		return -EROFS;
	if (parent != FUSE_ROOT_ID || !strcmp(name, DIRECTORY_NAME))
		return -EPERM;
	return strlen(name) > VOLUME_NAME_MAX ? -ENAMETOOLONG : 0;
}

/* Take a slot and start a command; the names have been checked.  @new_name may be NULL. */
static struct fuse_slot *command_slot(fuse_req_t req, enum pool_command_op op, const char *name,
				      const char *new_name,
				      void (*done)(struct pool_command *, int))
{
	struct fuse_slot *slot = fuse_slot_take(req);

	slot->command = (struct pool_command){ .op = op, .done = done };
	memcpy(slot->command.name, name, strlen(name) + 1);
	if (new_name)
		memcpy(slot->command.new_name, new_name, strlen(new_name) + 1);
	return slot;
}

void fuse_command_done(struct pool_command *cmd, int r)
{
	fuse_slot_end_with(container_of(cmd, struct fuse_slot, command), r);
}

/* Answer with the volume that a command has made. */
static void entry_done(struct pool_command *cmd, int r)
{
	struct fuse_slot *slot = container_of(cmd, struct fuse_slot, command);
	struct fuse_entry_param e;
	struct volume_info info;

	if (!r)
		r = info_by_id(slot->server, cmd->id, &info);
	if (r) {
		fuse_slot_end_with(slot, r);
		return;
	}
	fuse_volume_entry(slot->server, &info, &e);
	fuse_reply_entry(slot->req, &e);
	fuse_slot_end(slot);
}

static void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t dev)
{
	int r = S_ISREG(mode) ? check_name(request_server(req), parent, name) : -EPERM;

	(void)dev;
	if (r)
		reply_error(req, r);
	else
		fuse_change_submit(command_slot(req, POOL_CREATE, name, NULL, entry_done));
}

/* Open @v, whose reference is given away, and answer a create. */
static int open_created(struct fuse_slot *slot, struct volume *v)
{
	struct fuse_server *server = slot->server;
	struct fuse_entry_param e;
	struct volume_info info;
	uint64_t fh;
	int r;

	r = fuse_node_open(server, v, (slot->step.flags & O_ACCMODE) != O_RDONLY,
			   fuse_slot_unique(slot), &fh);
	if (r) {
		volume_put(v);
		return r;
	}
	volume_get_info(v, &info);
	fuse_volume_entry(server, &info, &e);
	if (fuse_reply_open_volume(slot, &e, fh) == -ENOENT)
		fuse_node_close(server, fh); /* withdrawn: no RELEASE will come */
	return 0;
}

static void create_done(struct pool_command *cmd, int r)
{
	struct fuse_slot *slot = container_of(cmd, struct fuse_slot, command);
	struct pool *pool = slot->server->pool;
	struct volume *v;

	if (!r)
		r = pool_volume_get(pool, cmd->id, &v);
	else if (r == -EEXIST && !(slot->step.flags & O_EXCL))
		r = pool_volume_find(pool, cmd->name, &v); /* a control command was faster */
	if (!r)
		r = open_created(slot, v);
	if (r)
		reply_error(slot->req, r);
	fuse_slot_end(slot);
}

static void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
		      struct fuse_file_info *fi)
{
	struct fuse_slot *slot;
	int r = check_name(request_server(req), parent, name);

	(void)mode;
	if (r) {
		reply_error(req, r);
		return;
	}
	slot = command_slot(req, POOL_CREATE, name, NULL, create_done);
	slot->step.flags = fi->flags;
	fuse_change_submit(slot);
}

static void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	int r = check_name(request_server(req), parent, name);

	if (r)
		reply_error(req, r);
	else
		fuse_change_submit(command_slot(req, POOL_DELETE, name, NULL, fuse_command_done));
}

static void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent,
		      const char *new_name, unsigned flags)
{
	struct fuse_server *server = request_server(req);
	struct fuse_slot *slot;
	int r = check_name(server, parent, name);

	if (!r)
		r = check_name(server, new_parent, new_name);
	if (!r && flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE))
		r = -EINVAL;
	if (r) {
		reply_error(req, r);
		return;
	}
	slot = command_slot(req, POOL_RENAME, name, new_name, fuse_command_done);
	if (flags & RENAME_NOREPLACE)
		slot->command.flags |= POOL_CMD_NO_REPLACE;
	if (flags & RENAME_EXCHANGE)
		slot->command.flags |= POOL_CMD_EXCHANGE;
	fuse_change_submit(slot);
}

/* The answer names an inode of its own: a snapshot is no second name of its origin. */
static void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t new_parent, const char *new_name)
{
	struct fuse_server *server = request_server(req);
	struct volume_info info;
	int r = check_name(server, new_parent, new_name);

	if (!r)
		r = ino_is_volume(ino) ? info_by_id(server, ino_thin_id(ino), &info) : -EPERM;
	if (!r && info.unlinked)
		r = -ENOENT;
	if (r)
		reply_error(req, r);
	else
		fuse_change_submit(
			command_slot(req, POOL_SNAPSHOT, info.name, new_name, entry_done));
}

static void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	(void)parent;
	(void)name;
	(void)mode;
	reply_error(req, -EPERM);
}

static void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	(void)parent;
	(void)name;
	reply_error(req, -EPERM);
}

static void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
	(void)target;
	(void)parent;
	(void)name;
	reply_error(req, -EPERM);
}

/* -------------------------------------------------------------- directories */

struct listing {
	fuse_req_t req;
	char *buffer;
	size_t size, used;
	bool plus; /* with attributes, and each entry counts as looked up */
};

/* Returns false when it does not fit any more.  @next: where to go on after this entry. */
static bool list_entry(struct listing *l, const char *name, const struct fuse_entry_param *e,
		       off_t next)
{
	char *at = l->buffer + l->used;
	size_t room = l->size - l->used, n;

	n = l->plus ? fuse_add_direntry_plus(l->req, at, room, name, e, next)
		    : fuse_add_direntry(l->req, at, room, name, &e->attr, next);
	if (n > room)
		return false;
	l->used += n;
	return true;
}

static bool list_fixed(struct listing *l, const char *name, fuse_ino_t ino, off_t next)
{
	bool dots = name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
	struct fuse_entry_param e = { .attr_timeout = FIXED_TIMEOUT_SEC,
				      .entry_timeout = FIXED_TIMEOUT_SEC };

	e.ino = dots ? 0 : ino; /* 0: not looked up */
	fuse_virtual_attr(request_server(l->req), ino, &e.attr);
	return list_entry(l, name, &e, next);
}

/* Positions: 1, 2, 3 after the fixed entries; then the inode number of the entry before. */
static void list_root(struct listing *l, off_t position)
{
	struct fuse_server *server = request_server(l->req);
	struct fuse_entry_param e;
	struct volume_info info;
	thin_id_t from = 0;

	if (position < 1 && !list_fixed(l, ".", FUSE_ROOT_ID, 1))
		return;
	if (position < 2 && !list_fixed(l, "..", FUSE_ROOT_ID, 2))
		return;
	if (position < 3 && !list_fixed(l, DIRECTORY_NAME, INO_DIRECTORY, 3))
		return;
	if (position >= INO_VOLUME_FIRST)
		from = ino_thin_id((fuse_ino_t)position) + 1;
	while (from <= THIN_ID_MAX && !pool_volume_next(server->pool, from, &info)) {
		fuse_volume_entry(server, &info, &e);
		if (!list_entry(l, info.name, &e, (off_t)e.ino))
			return;
		from = info.id + 1;
	}
}

static void list_directory(struct listing *l, off_t position)
{
	struct fuse_server *server = request_server(l->req);

	if (position < 1 && !list_fixed(l, ".", INO_DIRECTORY, 1))
		return;
	if (position < 2 && !list_fixed(l, "..", FUSE_ROOT_ID, 2))
		return;
	for (off_t i = MAX(position - 2, 0); i < server->nr_files; i++)
		if (!list_fixed(l, server->files[i].name, (fuse_ino_t)(INO_VIRTUAL_FIRST + i),
				i + 3))
			return;
}

static void list(fuse_req_t req, fuse_ino_t ino, size_t size, off_t position, bool plus)
{
	struct fuse_slot *slot = fuse_slot_take(req);
	struct listing l = { .req = req,
			     .buffer = fuse_slot_payload(slot),
			     .size = MIN(size, FUSE_MAX_WRITE),
			     .plus = plus };

	fuse_slot_touch(slot, l.size);
	if (ino == FUSE_ROOT_ID)
		list_root(&l, position);
	else if (ino == INO_DIRECTORY)
		list_directory(&l, position);
	fuse_reply_buf(req, l.buffer, l.used);
	fuse_slot_end(slot);
}

static void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t position,
		       struct fuse_file_info *fi)
{
	(void)fi;
	list(req, ino, size, position, false);
}

static void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t position,
			   struct fuse_file_info *fi)
{
	(void)fi;
	list(req, ino, size, position, true);
}

/* Implemented only because the kernel caches listings, unasked, when it is not. */
static void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	fi->fh = 0;
	fuse_reply_open(req, fi);
}

static void op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	(void)fi;
	fuse_reply_err(req, 0);
}

static void op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int data_only, struct fuse_file_info *fi)
{
	struct fuse_server *server = request_server(req);
	struct fuse_slot *slot;

	(void)ino;
	(void)data_only;
	(void)fi;
	if (server->read_only) {
		fuse_reply_err(req, 0);
		return;
	}
	slot = command_slot(req, POOL_COMMIT, "", NULL, fuse_command_done);
	pool_command_submit(server->pool, &slot->command);
}

/* ---------------------------------------------------------- the file system */

/* The block size must be the data block's: a loop device takes it as its discard granularity. */
static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	struct fuse_server *server = request_server(req);
	struct pool_status status;
	struct statvfs st = { .f_namemax = VOLUME_NAME_MAX };
	uint64_t free_bytes;

	(void)ino;
	pool_get_status(server->pool, &status);
	free_bytes = status.data_total - MIN(status.data_used, status.data_total);
	st.f_bsize = st.f_frsize = server->block_size;
	st.f_blocks = status.data_total / server->block_size;
	st.f_bfree = st.f_bavail = free_bytes / server->block_size;
	st.f_files = THIN_ID_MAX;
	st.f_ffree = st.f_favail = THIN_ID_MAX - status.nr_volumes;
	fuse_reply_statfs(req, &st);
}

/* FUSE_CAP_* the kernel has and we want on top of libfuse's choice, and what we do not want. */
static void op_init(void *userdata, struct fuse_conn_info *conn)
{
	struct fuse_server *server = userdata;
	unsigned wanted =
		FUSE_CAP_ASYNC_READ | FUSE_CAP_ASYNC_DIO | FUSE_CAP_PARALLEL_DIROPS |
		FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO |
		/* content changes behind the kernel's back are told to it, see fuse-notify.c */
		FUSE_CAP_EXPLICIT_INVAL_DATA | FUSE_CAP_EXPIRE_ONLY;
	unsigned unwanted =
		FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE |
		FUSE_CAP_AUTO_INVAL_DATA |
		FUSE_CAP_ATOMIC_O_TRUNC |  /* a resize waits, an open does not */
		FUSE_CAP_WRITEBACK_CACHE | /* would turn small writes into read-modify-write */
		FUSE_CAP_IOCTL_DIR;

	conn->want = (conn->want | (wanted & conn->capable)) & ~unwanted;
	conn->max_write = FUSE_MAX_WRITE;
	conn->max_background = server->max_background;
	conn->congestion_threshold = server->max_background * 3 / 4;
	server->can_expire = conn->capable & FUSE_CAP_EXPIRE_ONLY;
}

const struct fuse_lowlevel_ops fuse_operations = {
	.init = op_init,
	.lookup = op_lookup,
	.forget = op_forget,
	.forget_multi = op_forget_multi,
	.getattr = op_getattr,
	.setattr = op_setattr,
	.mknod = op_mknod,
	.create = op_create,
	.unlink = op_unlink,
	.rename = op_rename,
	.link = op_link,
	.mkdir = op_mkdir,
	.rmdir = op_rmdir,
	.symlink = op_symlink,
	.opendir = op_opendir,
	.readdir = op_readdir,
	.readdirplus = op_readdirplus,
	.releasedir = op_releasedir,
	.fsyncdir = op_fsyncdir,
	.statfs = op_statfs,
	.getxattr = fuse_op_getxattr,
	.listxattr = fuse_op_listxattr,
	.setxattr = fuse_op_setxattr,
	.removexattr = fuse_op_removexattr,
	.open = fuse_op_open,
	.release = fuse_op_release,
	.read = fuse_op_read,
	.write = fuse_op_write,
	.fsync = fuse_op_fsync,
	.fallocate = fuse_op_fallocate,
	.lseek = fuse_op_lseek,
};
