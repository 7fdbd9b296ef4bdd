/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-io.c - open files: read, write, fallocate, fsync, lseek
 *
 * Each operation takes the slot of its request, fills in a pool_io and submits it on its
 * worker's queue; the answer is sent by whichever thread the pool calls back on.  A WRITE's
 * payload already lies at a page boundary of the slot; a READ's answer is put as far into a
 * page as its offset is, so the pool moves aligned data without copying.
 *
 * A close does not commit (FLUSH is not even implemented, so the kernel stops sending it):
 * volumes are disks with a write cache, and fsync is how to empty it.
 *
 * O_SYNC, O_DSYNC and RWF_DSYNC: the kernel follows a synchronous write with FSYNC, except where
 * the write went past the page cache, through FOPEN_DIRECT_IO or asynchronously through O_DIRECT.
 * Those carry the flag in the request, and the write itself is made durable.
 */
#include "fuse/fuse-internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <string.h>
#include <unistd.h>

static struct fuse_slot *slot_of_io(struct pool_io *io)
{
	return container_of(io, struct fuse_slot, io);
}

/* ------------------------------------------------------------ open, release */

static uint32_t open_flags(const struct fuse_server *server)
{
	if (server->cache == FUSE_CACHE_NONE)
		return FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES;
	return FOPEN_KEEP_CACHE;
}

static void fill_entry(struct fuse_entry_out *out, const struct fuse_entry_param *e)
{
	const struct stat *st = &e->attr;

	*out = (struct fuse_entry_out){
		.nodeid = e->ino,
		.generation = e->generation,
		.entry_valid = (uint64_t)e->entry_timeout,
		.attr_valid = (uint64_t)e->attr_timeout,
		.attr = {
			.ino = st->st_ino,
			.mode = st->st_mode,
			.nlink = (uint32_t)st->st_nlink,
			.uid = st->st_uid,
			.gid = st->st_gid,
			.size = (uint64_t)st->st_size,
			.blksize = (uint32_t)st->st_blksize,
			.blocks = (uint64_t)st->st_blocks,
			.atime = (uint64_t)st->st_atim.tv_sec,
			.mtime = (uint64_t)st->st_mtim.tv_sec,
			.ctime = (uint64_t)st->st_ctim.tv_sec,
			.atimensec = (uint32_t)st->st_atim.tv_nsec,
			.mtimensec = (uint32_t)st->st_mtim.tv_nsec,
			.ctimensec = (uint32_t)st->st_ctim.tv_nsec,
		},
	};
}

/* Made by hand: libfuse 3.14 has no name for FOPEN_PARALLEL_DIRECT_WRITES. */
int fuse_reply_open_volume(struct fuse_slot *slot, const struct fuse_entry_param *entry,
			   uint64_t fh)
{
	struct fuse_open_out open_out = { .fh = fh, .open_flags = open_flags(slot->server) };
	struct fuse_entry_out entry_out;
	struct iovec iov[2] = {
		{ .iov_base = &entry_out, .iov_len = sizeof(entry_out) },
		{ .iov_base = &open_out, .iov_len = sizeof(open_out) },
	};

	if (!entry)
		return fuse_reply_iov(slot->req, &iov[1], 1);
	fill_entry(&entry_out, entry);
	return fuse_reply_iov(slot->req, iov, 2);
}

void fuse_op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct fuse_server *server = request_server(req);
	struct fuse_slot *slot;
	struct volume *v;
	uint64_t fh;
	int r;

	if (!ino_is_volume(ino)) {
		fuse_virtual_open(req, ino, fi);
		return;
	}
	slot = fuse_slot_take(req);
	r = pool_volume_get(server->pool, ino_thin_id(ino), &v);
	if (r) {
		fuse_slot_end_with(slot, r == -ENOENT ? -ESTALE : r);
		return;
	}
	r = fuse_node_open(server, v, (fi->flags & O_ACCMODE) != O_RDONLY, fuse_slot_unique(slot),
			   &fh);
	if (r) {
		volume_put(v);
		fuse_slot_end_with(slot, r);
		return;
	}
	if (fuse_reply_open_volume(slot, NULL, fh) == -ENOENT)
		fuse_node_close(server, fh); /* withdrawn: no RELEASE will come */
	fuse_slot_end(slot);
}

void fuse_op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	if (!ino_is_volume(ino)) {
		fuse_virtual_release(req, fi);
		return;
	}
	fuse_node_close(request_server(req), fi->fh);
	fuse_reply_err(req, 0);
}

/* --------------------------------------------------------------------- read */

static void read_done(struct pool_io *io, int r)
{
	struct fuse_slot *slot = slot_of_io(io);

	if (unlikely(r))
		reply_error(slot->req, r);
	else
		fuse_reply_buf(slot->req, io->buffer, io->length);
	fuse_slot_end(slot);
}

void fuse_op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
		  struct fuse_file_info *fi)
{
	struct fuse_slot *slot;
	struct volume *v;
	uint64_t end, from = (uint64_t)offset;
	int r;

	if (unlikely(!ino_is_volume(ino))) {
		fuse_virtual_read(req, ino, size, offset, fi);
		return;
	}
	slot = fuse_slot_take(req);
	r = fuse_volume_of(slot, fuse_handle_id(fi->fh), &v);
	if (unlikely(r || size > FUSE_MAX_WRITE)) {
		fuse_slot_end_with(slot, r ? r : -EIO);
		return;
	}
	end = volume_size(v);
	if (unlikely(from >= end)) {
		fuse_reply_buf(req, NULL, 0);
		fuse_slot_end(slot);
		return;
	}
	slot->io = (struct pool_io){
		.op = POOL_READ,
		.volume = v,
		.offset = from,
		.length = MIN(size, end - from),
		.buffer = fuse_slot_payload(slot) + (from & (FUSE_PAGE - 1)),
		.done = read_done,
	};
	fuse_slot_touch(slot, slot->io.length);
	fuse_slot_submit_io(slot);
}

/* -------------------------------------------------------------------- write */

static void write_done(struct pool_io *io, int r)
{
	struct fuse_slot *slot = slot_of_io(io);

	if (unlikely(r))
		reply_error(slot->req, r);
	else
		fuse_reply_write(slot->req, io->length);
	fuse_slot_end(slot);
}

/* Will the kernel leave it to this request to reach the disk?  See the head of the file. */
static bool must_be_durable(const struct fuse_server *server, int flags)
{
	return flags & O_DSYNC && (server->cache == FUSE_CACHE_NONE || flags & O_DIRECT);
}

/*
 * Loop and the like sync from a thread of the kernel's, which is in no process group.  A process
 * of a PID namespace that the mount does not see has number 0 and is taken for one.
 */
static bool is_disk(fuse_req_t req)
{
	pid_t pid = fuse_req_ctx(req)->pid;

	return pid == 0 || getpgid(pid) == 0;
}

void fuse_op_write(fuse_req_t req, fuse_ino_t ino, const char *buffer, size_t size, off_t offset,
		   struct fuse_file_info *fi)
{
	struct fuse_server *server = request_server(req);
	struct fuse_slot *slot;
	struct volume *v;
	int r;

	if (unlikely(!ino_is_volume(ino))) {
		reply_error(req, -EACCES);
		return;
	}
	slot = fuse_slot_take(req);
	r = fuse_volume_of(slot, fuse_handle_id(fi->fh), &v);
	if (unlikely(r || size > fuse_slot_left(slot, buffer))) {
		fuse_slot_end_with(slot, r ? r : -EIO);
		return;
	}
	slot->io = (struct pool_io){
		.op = POOL_WRITE,
		.durable = must_be_durable(server, fi->flags),
		.of_disk = must_be_durable(server, fi->flags) && is_disk(req),
		.handle = fuse_state_pool_handle(server->state, fi->fh),
		.volume = v,
		.offset = (uint64_t)offset,
		.length = size,
		.buffer = (char *)(uintptr_t)buffer, /* in the slot; a write does not change it */
		.done = write_done,
	};
	fuse_node_modified(server, fuse_handle_id(fi->fh));
	fuse_slot_submit_io(slot);
}

/* -------------------------------------------------------------------- fsync */

static void plain_done(struct pool_io *io, int r)
{
	fuse_slot_end_with(slot_of_io(io), r);
}

void fuse_op_fsync(fuse_req_t req, fuse_ino_t ino, int data_only, struct fuse_file_info *fi)
{
	struct fuse_slot *slot;
	struct volume *v;
	int r;

	(void)data_only; /* a size needs the same commit as a mapping */
	if (!ino_is_volume(ino)) {
		fuse_reply_err(req, 0);
		return;
	}
	slot = fuse_slot_take(req);
	r = fuse_volume_of(slot, fuse_handle_id(fi->fh), &v);
	if (r) {
		fuse_slot_end_with(slot, r);
		return;
	}
	slot->io = (struct pool_io){
		.op = POOL_FLUSH,
		.of_disk = is_disk(req),
		.handle = fuse_state_pool_handle(slot->server->state, fi->fh),
		.volume = v,
		.done = plain_done,
	};
	fuse_slot_submit_io(slot);
}

/* ---------------------------------------------------------------- fallocate */

/* Start slot->step on what lies within the volume. */
static void allocate_range(struct fuse_slot *slot)
{
	struct volume *v = slot->step.volume;
	uint64_t offset = slot->step.offset, end = volume_size(v);
	uint64_t length = offset < end ? MIN(slot->step.length, end - offset) : 0;

	if (!length) {
		fuse_slot_end_with(slot, 0);
		return;
	}
	slot->io = (struct pool_io){
		.op = slot->step.mode & FALLOC_FL_PUNCH_HOLE   ? POOL_PUNCH
		      : slot->step.mode & FALLOC_FL_ZERO_RANGE ? POOL_ZERO
							       : POOL_ALLOCATE,
		.durable = must_be_durable(slot->server, slot->step.flags),
		.of_disk = must_be_durable(slot->server, slot->step.flags) && is_disk(slot->req),
		.handle = slot->step.handle,
		.volume = v,
		.offset = offset,
		.length = length,
		.done = plain_done,
	};
	fuse_slot_submit_io(slot);
}

static void grown(struct pool_command *cmd, int r)
{
	struct fuse_slot *slot = container_of(cmd, struct fuse_slot, command);
	uint64_t end = slot->step.offset + slot->step.length;

	/* A write may have made it larger still meanwhile: then there was nothing to grow. */
	if (r && volume_size(slot->step.volume) < end)
		fuse_slot_end_with(slot, r);
	else
		allocate_range(slot);
}

static bool is_fallocate_mode(int mode)
{
	switch (mode) {
	case 0:
	case FALLOC_FL_KEEP_SIZE:
	case FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE:
	case FALLOC_FL_ZERO_RANGE:
	case FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE:
		return true;
	default:
		return false;
	}
}

void fuse_op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
		       struct fuse_file_info *fi)
{
	struct fuse_server *server = request_server(req);
	struct fuse_slot *slot;
	struct volume *v;
	uint64_t end;
	int r;

	if (!ino_is_volume(ino) || !is_fallocate_mode(mode)) {
		reply_error(req, ino_is_volume(ino) ? -EOPNOTSUPP : -EACCES);
		return;
	}
	if (offset < 0 || length <= 0 || __builtin_add_overflow((uint64_t)offset, length, &end) ||
	    end > INT64_MAX) {
		reply_error(req, -EFBIG);
		return;
	}
	slot = fuse_slot_take(req);
	slot->step.mode = mode;
	slot->step.flags = fi->flags;
	slot->step.handle = fuse_state_pool_handle(server->state, fi->fh);
	slot->step.offset = (uint64_t)offset;
	slot->step.length = (uint64_t)length;
	r = fuse_volume_of(slot, fuse_handle_id(fi->fh), &v);
	if (r) {
		fuse_slot_end_with(slot, r);
		return;
	}

	slot->step.volume = v;
	fuse_node_modified(server, fuse_handle_id(fi->fh));
	if (mode & FALLOC_FL_KEEP_SIZE || end <= volume_size(v)) {
		allocate_range(slot);
		return;
	}
	slot->command = (struct pool_command){
		.op = POOL_RESIZE,
		.flags = POOL_CMD_BY_ID,
		.id = fuse_handle_id(fi->fh),
		.size_bytes = end,
		.done = grown,
	};
	pool_command_submit(server->pool, &slot->command);
}

/* -------------------------------------------------------------------- lseek */

static void seek_done(struct pool_io *io, int r)
{
	struct fuse_slot *slot = slot_of_io(io);

	if (r)
		reply_error(slot->req, r);
	else
		fuse_reply_lseek(slot->req, (off_t)io->ret_offset);
	fuse_slot_end(slot);
}

void fuse_op_lseek(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence,
		   struct fuse_file_info *fi)
{
	struct fuse_slot *slot;
	struct volume *v;
	int r;

	if (!ino_is_volume(ino) || (whence != SEEK_DATA && whence != SEEK_HOLE)) {
		reply_error(req, -EINVAL);
		return;
	}
	slot = fuse_slot_take(req);
	r = fuse_volume_of(slot, fuse_handle_id(fi->fh), &v);
	if (!r && (uint64_t)offset >= volume_size(v))
		r = -ENXIO;
	if (r) {
		fuse_slot_end_with(slot, r);
		return;
	}
	slot->io = (struct pool_io){
		.op = whence == SEEK_DATA ? POOL_SEEK_DATA : POOL_SEEK_HOLE,
		.volume = v,
		.offset = (uint64_t)offset,
		.done = seek_done,
	};
	fuse_slot_submit_io(slot);
}
