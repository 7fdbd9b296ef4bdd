/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * io-internal.h - what the files of io/ share; tests of io/ may use it too
 *
 * Layer:    io.
 *
 * Three parts: a queue and its backends; a file device; the steps of one request
 * on a file, which both backends walk through (file-io.c).
 */
#ifndef TP_IO_IO_INTERNAL_H
#define TP_IO_IO_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "io/device.h"
#include "io/io-queue.h"

/* ------------------------------------------------------------------ queues */

enum { IO_QUEUE_MAX_WATCHES = 64 };

struct io_backend {
	const char *name;
	/* Begin @io on its target, a file device.  False: no room now, ask again later. */
	bool (*start)(struct io_queue *q, struct io_request *io);
	/* Hand to the kernel what was started. */
	void (*kick)(struct io_queue *q);
	/*
	 * Arm the watches; wait for at most @timeout_usec until something ended or fired;
	 * collect what did.  0, -EINTR, or an error that the next call may not see again.
	 */
	int (*wait)(struct io_queue *q, uint64_t timeout_usec);
	/* Give @cmd to the kernel.  False: no room now, ask again later.  NULL: it has none. */
	bool (*command)(struct io_queue *q, struct io_command *cmd);
	/* @w is off the list already. */
	void (*unwatch)(struct io_queue *q, struct io_watch *w);
	/* Free @q itself. */
	void (*destroy)(struct io_queue *q);
};

STAILQ_HEAD(io_request_list, io_request);
LIST_HEAD(io_watch_list, io_watch);
STAILQ_HEAD(io_command_list, io_command);

/* First member of every backend's queue. */
struct io_queue {
	const struct io_backend *backend;
	pthread_t owner;
	unsigned depth;
	unsigned nr_in_flight;          /* submitted, not called back */
	unsigned nr_started;            /* of these: with the backend; at most depth */
	unsigned nr_done;               /* of these: on the done list */
	struct io_request_list waiting; /* for room in the backend */
	struct io_request_list done;

	struct io_command_list commands_waiting; /* for room in the backend */
	struct io_command_list commands_done;
	unsigned nr_commands_done;

	struct io_watch_list watches; /* wake_watch is one of them */
	unsigned nr_watches, nr_fired;
	uint64_t last_watch_id;

	int wake_fd;
	struct io_watch wake_watch;
	atomic_bool wake_pending; /* wake_fd was written and not read yet; any thread */
	bool woken;               /* io_queue_run() shall return */
};

/* Backends: allocate a queue with the common part zeroed. -ENOSYS: not on this kernel. */
int uring_queue_alloc(unsigned depth, struct io_queue **ret_q) TP_MUST_CHECK;
int sync_queue_alloc(unsigned depth, struct io_queue **ret_q) TP_MUST_CHECK;

/* As io_queue_create(), with ordinary system calls; for tests. */
int io_queue_create_sync(unsigned depth, struct io_queue **ret_q) TP_MUST_CHECK;

/* For file devices: carry out @io, now or as soon as there is room. */
void io_queue_start(struct io_queue *q, struct io_request *io);
/* For backends: a started request has ended, or has to be started anew later. */
void io_queue_ended(struct io_queue *q, struct io_request *io, int r);
void io_queue_start_later(struct io_queue *q, struct io_request *io);
/* For backends: the driver's answer. */
void io_queue_command_ended(struct io_queue *q, struct io_command *cmd, int r);
/* For backends: the answer to an armed watch. */
void io_queue_fired(struct io_queue *q, struct io_watch *w, short revents);

/* ------------------------------------------------------------ file devices */

struct file_device {
	struct io_device base;
	int fd;
	uint32_t max_transfer;     /* bytes a system call moves at most */
	atomic_bool no_zero_range; /* the file said that it cannot */
};

/* For tests: pretend that the kernel moves at most @bytes a call. */
void io_device_set_max_transfer(struct io_device *dev, uint32_t bytes);

/* For tests: pretend that fallocate() knows none of our modes. */
void io_device_set_no_fallocate(struct io_device *dev);

/*
 * True if @io needs no work, then *@ret_r is how it ends: it is empty, or against
 * the rules of its device.
 */
bool io_request_ends_at_once(const struct io_request *io, int *ret_r);

/* --------------------------------------------------- steps of one request */

enum io_step_kind { STEP_READ, STEP_WRITE, STEP_SYNC, STEP_FALLOCATE };

/* One system call. */
struct io_step {
	enum io_step_kind kind;
	int mode;                /* of fallocate */
	const struct iovec *iov; /* NULL: @buffer */
	unsigned nr_iov;
	void *buffer;
	uint64_t length, offset;
};

void file_io_begin(struct file_device *dev, struct io_request *io);
void file_io_step(const struct file_device *dev, const struct io_request *io,
		  struct io_step *ret_step);

/*
 * The current step returned @res.  True: @io has ended with *@ret_r; false: there
 * is another step.
 */
bool file_io_advance(struct file_device *dev, struct io_request *io, int64_t res, int *ret_r);

/* What it has now, which somebody may have changed behind our back. */
int file_current_size(int fd, bool is_block_device, uint64_t *ret_bytes) TP_MUST_CHECK;

/* All steps, blocking. */
int file_io_execute(struct file_device *dev, struct io_request *io);

#endif
