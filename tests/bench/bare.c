/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bare.c - the floor that FUSE sets: a server that serves one file, offset for offset
 *
 *	bare FILE MOUNTPOINT          every request goes to FILE, through one io_uring
 *	bare --null SIZE MOUNTPOINT   every request is answered from memory
 *	bare --io-uring N ...         requests and answers over the io_uring, N entries a CPU
 *
 * MOUNTPOINT is a file; the mount's root is a file too.  It uses the transport of thinpoold: a
 * nonblocking /dev/fuse, requests read so that the payload of a WRITE starts at a page, data
 * straight into and out of that memory, one writev() an answer.  It has no names, no handles, no
 * statistics and speaks the protocol by hand.  One thread.
 *
 * Ends when the mount is removed.  Needs root.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fuse/fuse-uring-abi.h"

enum { PAGE = 4096, WRITE_HEADER = 80, MAX_WRITE = 1 << 20, NR_SLOTS = 1024, BATCH = 32 };

/* As in thinpoold: the structure and the request's header in page 0, the payload from page 1. */
struct slot {
	struct slot *next;
	uint64_t unique;
	uint32_t length;
	bool is_read;
	bool is_entry; /* of a queue of the kernel's; then: */
	uint16_t qid;
	struct iovec iov[2];
	struct fuse_uring_header header;
};
enum { SLOT_BYTES = PAGE + MAX_WRITE };

static struct {
	int fuse_fd, file_fd; /* file_fd -1: null */
	uint64_t size;
	struct io_uring ring;
	struct slot *free;
	unsigned queue_depth; /* 0: everything over /dev/fuse */
	struct slot *serving;
	bool ended;
} server;

static void die(const char *what)
{
	fprintf(stderr, "bare: %s: %s\n", what, strerror(errno));
	exit(1);
}

static char *payload(struct slot *slot)
{
	return (char *)slot + PAGE;
}

static struct io_uring_sqe *get_sqe(void)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&server.ring);

	if (!sqe) {
		io_uring_submit(&server.ring);
		sqe = io_uring_get_sqe(&server.ring);
	}
	return sqe;
}

static void command(struct slot *slot, uint32_t op)
{
	struct io_uring_sqe *sqe = get_sqe();
	struct fuse_uring_command cmd = { .qid = slot->qid,
					  .commit_id = slot->header.entry.commit_id };

	memset(sqe, 0, 2 * sizeof(*sqe));
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = server.fuse_fd;
	sqe->cmd_op = op;
	if (op == FUSE_URING_REGISTER) {
		sqe->addr = (uintptr_t)slot->iov;
		sqe->len = 2;
	}
	memcpy(sqe->cmd, &cmd, sizeof(cmd));
	io_uring_sqe_set_data(sqe, (char *)slot + 1);
}

static void commit(struct slot *slot, const struct fuse_out_header *out, const void *data,
		   size_t bytes)
{
	memcpy(slot->header.in_out, out, sizeof(*out));
	if (data && data != payload(slot))
		memcpy(payload(slot), data, bytes);
	slot->header.entry.payload_bytes = (uint32_t)bytes;
	command(slot, FUSE_URING_COMMIT_AND_FETCH);
}

static void reply(uint64_t unique, int error, const void *data, size_t bytes)
{
	struct fuse_out_header out = {
		.len = (uint32_t)(sizeof(out) + bytes),
		.error = error,
		.unique = unique,
	};
	struct iovec iov[2] = {
		{ .iov_base = &out, .iov_len = sizeof(out) },
		{ .iov_base = (void *)(uintptr_t)data, .iov_len = bytes },
	};

	if (server.serving && server.serving->is_entry) {
		commit(server.serving, &out, data, bytes);
		return;
	}
	/* ENOENT: the request was interrupted or the mount is gone. */
	if (writev(server.fuse_fd, iov, bytes ? 2 : 1) < 0 && errno != ENOENT && errno != ENODEV)
		die("answer");
}

static void put_slot(struct slot *slot)
{
	slot->next = server.free;
	server.free = slot;
}

static void end(struct slot *slot, int res)
{
	struct fuse_write_out out = { .size = slot->length };

	server.serving = slot;
	if (res < 0)
		reply(slot->unique, res, NULL, 0);
	else if (slot->is_read)
		reply(slot->unique, 0, payload(slot), slot->length);
	else if (slot->length)
		reply(slot->unique, 0, &out, sizeof(out));
	else
		reply(slot->unique, 0, NULL, 0);
	server.serving = NULL;
	if (!slot->is_entry)
		put_slot(slot);
}

/* ---------------------------------------------------------------- operations */

static void fill_attr(struct fuse_attr *attr)
{
	*attr = (struct fuse_attr){
		.ino = 1,
		.size = server.size,
		.blocks = server.size / 512,
		.mode = S_IFREG | 0600,
		.nlink = 1,
		.blksize = PAGE,
	};
}

static void register_entries(void)
{
	long nr_cpus = sysconf(_SC_NPROCESSORS_CONF);

	/* Some are left for what comes over /dev/fuse all the same. */
	if (nr_cpus * server.queue_depth > NR_SLOTS - 64) {
		errno = E2BIG;
		die("entries");
	}
	for (long i = 0; i < nr_cpus * server.queue_depth; i++) {
		struct slot *slot = server.free;

		server.free = slot->next;
		slot->is_entry = true;
		slot->qid = (uint16_t)(i % nr_cpus);
		slot->iov[0] = (struct iovec){ .iov_base = &slot->header,
					       .iov_len = sizeof(slot->header) };
		slot->iov[1] = (struct iovec){ .iov_base = payload(slot), .iov_len = MAX_WRITE };
		command(slot, FUSE_URING_REGISTER);
	}
}

static void do_init(uint64_t unique, const struct fuse_init_in *in)
{
	const uint32_t wanted = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ASYNC_DIO |
				FUSE_MAX_PAGES | FUSE_PARALLEL_DIROPS | FUSE_AUTO_INVAL_DATA |
				FUSE_HANDLE_KILLPRIV_V2;
	struct fuse_init_out out = {
		.major = FUSE_KERNEL_VERSION,
		.minor = FUSE_KERNEL_MINOR_VERSION,
		.max_readahead = in->max_readahead,
		.flags = in->flags & wanted,
		.max_background = 256,
		.congestion_threshold = 192,
		.max_write = MAX_WRITE,
		.time_gran = 1,
		.max_pages = MAX_WRITE / PAGE,
	};

	if (server.queue_depth) {
		if (!(in->flags2 & FUSE_INIT2_OVER_IO_URING)) {
			errno = ENOTSUP;
			die("FUSE over io_uring");
		}
		out.flags |= FUSE_INIT_EXT;
		out.flags2 |= FUSE_INIT2_OVER_IO_URING;
	}
	reply(unique, 0, &out, sizeof(out));
	if (server.queue_depth)
		register_entries();
}

/* Returns whether the slot is kept. */
static bool do_read(struct slot *slot, const struct fuse_read_in *in)
{
	struct io_uring_sqe *sqe;
	uint64_t left = in->offset < server.size ? server.size - in->offset : 0;

	slot->is_read = true;
	slot->length = (uint32_t)(in->size < left ? in->size : left);
	if (server.file_fd < 0 || !slot->length) {
		end(slot, 0);
		return true;
	}
	sqe = get_sqe();
	io_uring_prep_read(sqe, server.file_fd, payload(slot), slot->length, in->offset);
	io_uring_sqe_set_data(sqe, slot);
	return true;
}

static bool do_write(struct slot *slot, const struct fuse_write_in *in)
{
	struct io_uring_sqe *sqe;

	slot->is_read = false;
	slot->length = in->size;
	if (server.file_fd < 0) {
		end(slot, 0);
		return true;
	}
	sqe = get_sqe();
	io_uring_prep_write(sqe, server.file_fd, payload(slot), in->size, in->offset);
	io_uring_sqe_set_data(sqe, slot);
	return true;
}

static bool do_other(struct slot *slot, struct io_uring_sqe *sqe)
{
	slot->is_read = false;
	slot->length = 0;
	io_uring_sqe_set_data(sqe, slot);
	return true;
}

static bool do_fsync(struct slot *slot)
{
	struct io_uring_sqe *sqe = get_sqe();

	if (server.file_fd < 0)
		io_uring_prep_nop(sqe);
	else
		io_uring_prep_fsync(sqe, server.file_fd, IORING_FSYNC_DATASYNC);
	return do_other(slot, sqe);
}

static bool do_fallocate(struct slot *slot, const struct fuse_fallocate_in *in)
{
	struct io_uring_sqe *sqe = get_sqe();

	if (server.file_fd < 0)
		io_uring_prep_nop(sqe);
	else
		io_uring_prep_fallocate(sqe, server.file_fd, (int)in->mode, (off_t)in->offset,
					(off_t)in->length);
	return do_other(slot, sqe);
}

static void do_open(uint64_t unique)
{
	struct fuse_open_out out = { .open_flags = FOPEN_KEEP_CACHE };

	reply(unique, 0, &out, sizeof(out));
}

static void do_getattr(uint64_t unique)
{
	struct fuse_attr_out out = { .attr_valid = 3600 };

	fill_attr(&out.attr);
	reply(unique, 0, &out, sizeof(out));
}

static void do_statfs(uint64_t unique)
{
	struct fuse_statfs_out out = { .st = { .bsize = 65536, .frsize = 65536, .namelen = 255 } };

	reply(unique, 0, &out, sizeof(out));
}

/* Returns whether the slot is kept. */
static bool serve(struct slot *slot, const struct fuse_in_header *in, const void *arg)
{
	slot->unique = in->unique;
	switch (in->opcode) {
	case FUSE_READ:
		return do_read(slot, arg);
	case FUSE_WRITE:
		return do_write(slot, arg);
	case FUSE_FSYNC:
		return do_fsync(slot);
	case FUSE_FALLOCATE:
		return do_fallocate(slot, arg);
	case FUSE_INIT:
		do_init(in->unique, arg);
		return false;
	case FUSE_OPEN:
		do_open(in->unique);
		return false;
	case FUSE_GETATTR:
	case FUSE_SETATTR:
		do_getattr(in->unique);
		return false;
	case FUSE_STATFS:
		do_statfs(in->unique);
		return false;
	case FUSE_RELEASE:
		reply(in->unique, 0, NULL, 0);
		return false;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		return false;
	default:
		reply(in->unique, -ENOSYS, NULL, 0);
		return false;
	}
}

/* ------------------------------------------------------------------ the loop */

/* Returns whether there may be more. */
static bool read_request(void)
{
	struct slot *slot = server.free;
	char *at;
	ssize_t n;

	if (!slot)
		return false;
	at = payload(slot) - WRITE_HEADER;
	n = read(server.fuse_fd, at, WRITE_HEADER + MAX_WRITE);
	if (n < 0 && (errno == EINTR || errno == ENOENT))
		return true;
	if (n < 0 && errno == EAGAIN)
		return false;
	if (n <= 0) {
		server.ended = true;
		return false;
	}
	server.free = slot->next;
	if (!serve(slot, (const void *)at, at + sizeof(struct fuse_in_header)))
		put_slot(slot);
	return true;
}

static void entry_filled(struct slot *slot, int res)
{
	const struct fuse_in_header *in = (const void *)slot->header.in_out;

	if (res < 0) {
		if (res != -ENOTCONN && res != -ECANCELED) {
			errno = -res;
			die("queue");
		}
		return;
	}
	server.serving = slot;
	(void)serve(slot, in, slot->header.op_in);
	server.serving = NULL;
}

static void run(void)
{
	bool armed = false;

	while (!server.ended) {
		struct io_uring_cqe *cqe;
		struct io_uring_sqe *sqe;

		if (!armed && server.free) {
			sqe = get_sqe();
			io_uring_prep_poll_add(sqe, server.fuse_fd, POLLIN);
			io_uring_sqe_set_data(sqe, NULL);
			armed = true;
		}
		if (io_uring_submit_and_wait(&server.ring, 1) < 0 && errno != EINTR)
			die("io_uring");
		while (!io_uring_peek_cqe(&server.ring, &cqe)) {
			struct slot *slot = io_uring_cqe_get_data(cqe);
			int res = cqe->res;

			io_uring_cqe_seen(&server.ring, cqe);
			if ((uintptr_t)slot & 1) {
				entry_filled((struct slot *)(void *)((char *)slot - 1), res);
				continue;
			}
			if (slot) {
				if (res >= 0 && slot->length && (uint32_t)res != slot->length)
					res = -EIO;
				end(slot, res);
				continue;
			}
			armed = false;
			for (unsigned i = 0; i < BATCH && read_request(); i++)
				;
		}
	}
}

static void set_up_slots(void)
{
	char *memory = mmap(NULL, (size_t)NR_SLOTS * SLOT_BYTES, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		die("memory");
	for (int i = NR_SLOTS - 1; i >= 0; i--)
		put_slot((struct slot *)(void *)(memory + (size_t)i * SLOT_BYTES));
}

static void set_up_mount(const char *mountpoint)
{
	char options[128];

	server.fuse_fd = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (server.fuse_fd < 0)
		die("/dev/fuse");
	snprintf(options, sizeof(options), "fd=%d,rootmode=100000,user_id=0,group_id=0",
		 server.fuse_fd);
	if (mount("bare", mountpoint, "fuse.bare", MS_NOSUID | MS_NODEV, options))
		die(mountpoint);
}

int main(int argc, char **argv)
{
	struct io_uring_params params = { .flags = IORING_SETUP_SINGLE_ISSUER |
						   IORING_SETUP_DEFER_TASKRUN };
	struct stat st;
	bool null;

	if (argc > 3 && !strcmp(argv[1], "--io-uring")) {
		server.queue_depth = (unsigned)strtoul(argv[2], NULL, 0);
		params.flags |= IORING_SETUP_SQE128;
		argc -= 2;
		argv += 2;
	}
	null = argc == 4 && !strcmp(argv[1], "--null");

	if (argc != 3 && !null) {
		fprintf(stderr, "usage: bare FILE MOUNTPOINT | bare --null SIZE MOUNTPOINT\n");
		return 2;
	}
	server.file_fd = -1;
	if (null) {
		server.size = strtoull(argv[2], NULL, 0);
	} else {
		server.file_fd = open(argv[1], O_RDWR | O_CLOEXEC | O_DIRECT);
		if (server.file_fd < 0 || fstat(server.file_fd, &st))
			die(argv[1]);
		server.size = (uint64_t)st.st_size;
	}
	errno = -io_uring_queue_init_params(NR_SLOTS, &server.ring, &params);
	if (errno) {
		params = (struct io_uring_params){ 0 };
		errno = -io_uring_queue_init_params(NR_SLOTS, &server.ring, &params);
	}
	if (errno)
		die("io_uring");
	set_up_slots();
	set_up_mount(argv[null ? 3 : 2]);
	run();
	return 0;
}
