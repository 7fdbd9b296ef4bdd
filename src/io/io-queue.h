/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * io-queue.h - asynchronous I/O: one queue a thread
 *
 * Layer:    io; uses util/ only.
 * Threads:  a queue belongs to the thread that made it: only that thread
 *           submits, runs it and is called back.  io_queue_wake() alone may be
 *           called by others.
 * Backends: an io_uring, with DEFER_TASKRUN and SINGLE_ISSUER where the kernel
 *           has them; where io_uring cannot be had (old kernel, forbidden by
 *           sysctl or seccomp) requests are executed in io_queue_run() with
 *           ordinary system calls.
 * Units:    bytes.
 * Errors:   0 or a negative errno.
 */
#ifndef TP_IO_IO_QUEUE_H
#define TP_IO_IO_QUEUE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/uio.h>

#include "util/compiler.h"
#include "util/lock-class.h"

struct io_device;
struct io_queue;

enum io_op {
	IO_READ,
	IO_WRITE,
	IO_FLUSH,   /* what was written before it was submitted is durable when it is done */
	IO_DISCARD, /* the range reads as zeros afterwards and its space is given back */
	IO_ZERO,    /* the range reads as zeros afterwards and keeps its space where it can */
};

/*
 * A request, embedded in the caller's own structure.  The caller fills the first
 * part and owns it all again when @done is called.  @done is called exactly once,
 * by the queue's thread out of io_queue_run() (never out of io_queue_submit()),
 * with 0 or a negative errno.  Short transfers are continued by the queue; a read
 * past the end of a device is -EIO.  @done may submit again.
 */
struct io_request {
	struct io_device *device;
	enum io_op op;
	uint64_t offset;         /* bytes; aligned as io_device_alignment() says */
	uint64_t length;         /* bytes; for reads and writes the sum of the vectors */
	const struct iovec *iov; /* borrowed until @done; not used by flush, discard, zero */
	unsigned nr_iov;
	void (*done)(struct io_request *io, int r);

	/* private to io/ */
	struct iovec single; /* what io_request_set_buffer() points at */
	uint64_t transferred;
	struct io_device *target; /* who carries it out: @device, or what that wraps */
	int result;
	int stage; /* which way of zeroing or discarding is being tried */
	STAILQ_ENTRY(io_request) link;
};

/* For the common case of one contiguous buffer: sets iov, nr_iov and length. */
static inline void io_request_set_buffer(struct io_request *io, void *buffer, uint64_t length)
{
	io->single.iov_base = buffer;
	io->single.iov_len = length;
	io->iov = &io->single;
	io->nr_iov = 1;
	io->length = length;
}

/*
 * A queue for the calling thread with room for @depth requests in flight; more
 * may be submitted and wait inside.
 */
int io_queue_create(unsigned depth, struct io_queue **ret_q) TP_MUST_CHECK;

/* Waits for everything in flight (calling back).  NULL is allowed.  Returns NULL. */
struct io_queue *io_queue_destroy(struct io_queue *q) TP_TAKES(bufio);

/* The calling thread's own queue: made at first use, destroyed when the thread ends. */
int io_queue_self(struct io_queue **ret_q) TP_TAKES(bufio) TP_MUST_CHECK;

/* Never blocks and never fails: what goes wrong is told to @done. */
void io_queue_submit(struct io_queue *q, struct io_request *io);

/* Hand to the kernel what was submitted since the last run.  io_queue_run() does it too. */
void io_queue_kick(struct io_queue *q);

/*
 * Submit, wait until something happened or @timeout_usec passed (0: do not wait;
 * UINT64_MAX: for ever), and call back all that is done.  Returns the number of
 * callbacks made, which is 0 after a timeout, a wake or a signal.  May be called from a
 * callback of the same queue.
 */
unsigned io_queue_run(struct io_queue *q, uint64_t timeout_usec) TP_TAKES(bufio);

/* Requests submitted and not yet called back. */
unsigned io_queue_in_flight(const struct io_queue *q);

/* From any thread: make the current or the next io_queue_run() return early. */
void io_queue_wake(struct io_queue *q);

/*
 * Watch @fd for @events (POLLIN ...): @ready is called by io_queue_run() each time they
 * hold (level-triggered) until io_queue_unwatch().  A watch does not count as in flight.
 */
struct io_watch {
	int fd;
	short events;
	void (*ready)(struct io_watch *w, short revents);
	/* private to io/ */
	uint64_t id;   /* names the watch to the kernel, which may outlive it */
	bool armed;    /* the kernel was asked */
	short revents; /* it answered, @ready is yet to be called */
	LIST_ENTRY(io_watch) link;
};

/* At most 64 watches a queue.  @ready may watch and unwatch, also itself. */
void io_queue_watch(struct io_queue *q, struct io_watch *w);
/* On return @ready will not be called again and @w may be freed. */
void io_queue_unwatch(struct io_queue *q, struct io_watch *w);

/*
 * A command that a driver in the kernel understands (IORING_OP_URING_CMD), given by descriptor.
 * Like a watch it does not count as in flight: it may take for ever, and @done is not called for
 * those that the end of the queue finds under way.
 */
#define IO_COMMAND_BYTES 32 /* of the command area, which has 80 */

struct io_command {
	int fd;
	uint32_t op;
	const void *address; /* what the driver expects here */
	uint32_t length;
	uint8_t area[IO_COMMAND_BYTES];
	void (*done)(struct io_command *cmd, int r); /* by io_queue_run(); @r: the driver's */

	/* private to io/ */
	int result;
	STAILQ_ENTRY(io_command) link;
};

/* Whether this backend, on this kernel, has commands. */
bool io_queue_has_commands(const struct io_queue *q);

/* Only if it has.  Never blocks; goes to the kernel with the next run or kick. */
void io_queue_command(struct io_queue *q, struct io_command *cmd);

/* "io_uring" or "system calls", for status. */
const char *io_queue_backend_name(const struct io_queue *q);

#endif
