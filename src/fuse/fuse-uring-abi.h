/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-uring-abi.h - the kernel's side of FUSE over io_uring
 *
 * Newer than the kernel headers this is built with.  Source of the facts: include/uapi/linux/fuse.h
 * since Linux 6.14, and fs/fuse/dev_uring.c for what the layout does not say:
 *
 *	- a command is an IORING_OP_URING_CMD on the connection, in a ring with SQE128; its
 *	  fuse_uring_command stands in the command area;
 *	- REGISTER: addr points to two iovecs (len 2), the header and the payload of an entry; they
 *	  are used until the connection ends, from within the thread that gave the command;
 *	- every possible CPU has a queue, and every queue needs an entry before any is used;
 *	- a payload has room for max(8192, max_write, max_pages pages);
 *	- FORGET, INTERRUPT and notices go through the connection as ever.
 *
 * Layer:    fuse; the benchmark's server uses it, too.
 * Threads:  none; these are facts.
 * Units:    bytes.
 * Errors:   none.
 */
#ifndef TP_FUSE_FUSE_URING_ABI_H
#define TP_FUSE_FUSE_URING_ABI_H

#include <stdint.h>

/* In fuse_init_in.flags2 and fuse_init_out.flags2: bit 41 of both words. */
#define FUSE_INIT2_OVER_IO_URING (1u << (41 - 32))

enum { FUSE_URING_REGISTER = 1, FUSE_URING_COMMIT_AND_FETCH = 2 };

/* In the command area of an SQE. */
struct fuse_uring_command {
	uint64_t flags;
	uint64_t commit_id;
	uint16_t qid;
	uint8_t padding[6];
};

/* Written by the kernel with each request, and read by it with each answer. */
struct fuse_uring_header {
	uint8_t in_out[128]; /* fuse_in_header, fuse_out_header */
	uint8_t op_in[128];  /* what follows the header in an ordinary request, without payload */
	struct {
		uint64_t flags;
		uint64_t commit_id;
		uint32_t payload_bytes;
		uint32_t padding;
		uint64_t reserved;
	} entry;
};
_Static_assert(sizeof(struct fuse_uring_header) == 288, "as the kernel has it");

#endif
