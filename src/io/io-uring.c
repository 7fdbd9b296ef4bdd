/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * io-uring.c - the backend on an io_uring
 *
 * One ring a queue.  Submissions collect in the ring and go to the kernel in one
 * system call together with the wait for completions.  Nothing is allocated and
 * no lock is taken per request.
 *
 * With DEFER_TASKRUN the kernel finishes requests only inside our own system
 * calls: completions come in batches and never interrupt the thread.
 *
 * user_data tells completions apart by its low bits:
 *	request   the address of the io_request
 *	watch     the watch's id; not its address, because the completion of a poll
 *	          that was cancelled may arrive when the watch has been freed
 *	ignore    cancellations
 *	command   the address of the io_command
 *
 * The completion ring cannot overflow for good: the kernel keeps what does not fit
 * (IORING_FEAT_NODROP, older than anything accepted here).
 */
#include "io/io-internal.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "util/clock.h"

struct uring_queue {
	struct io_queue base;
	struct io_uring ring;
};

enum {
	TAG_REQUEST,
	TAG_WATCH,
	TAG_IGNORE,
	TAG_COMMAND,
	TAG_BITS = 2,
	TAG_MASK = (1 << TAG_BITS) - 1
};

/* Small rings cost as much as this one, and watches need room too. */
enum { MIN_ENTRIES = 16, MAX_ENTRIES = 4096 };

static struct uring_queue *uring_queue(struct io_queue *q)
{
	return container_of(q, struct uring_queue, base);
}

/* NULL: the kernel does not take what is in the ring now. */
static struct io_uring_sqe *get_sqe(struct uring_queue *u)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

	if (likely(sqe))
		return sqe;
	io_uring_submit(&u->ring);
	return io_uring_get_sqe(&u->ring);
}

static void prepare(struct io_uring_sqe *sqe, int fd, const struct io_step *s)
{
	switch (s->kind) {
	case STEP_READ:
		if (s->iov)
			io_uring_prep_readv(sqe, fd, s->iov, s->nr_iov, s->offset);
		else
			io_uring_prep_read(sqe, fd, s->buffer, (unsigned)s->length, s->offset);
		break;
	case STEP_WRITE:
		if (s->iov)
			io_uring_prep_writev(sqe, fd, s->iov, s->nr_iov, s->offset);
		else
			io_uring_prep_write(sqe, fd, s->buffer, (unsigned)s->length, s->offset);
		break;
	case STEP_SYNC:
		io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
		break;
	case STEP_FALLOCATE:
		io_uring_prep_fallocate(sqe, fd, s->mode, (off_t)s->offset, (off_t)s->length);
		break;
	}
}

static bool uring_start(struct io_queue *q, struct io_request *io)
{
	struct uring_queue *u = uring_queue(q);
	struct file_device *dev = container_of(io->target, struct file_device, base);
	struct io_uring_sqe *sqe = get_sqe(u);
	struct io_step step;

	if (unlikely(!sqe))
		return false;
	file_io_step(dev, io, &step);
	prepare(sqe, dev->fd, &step);
	sqe->user_data = (uintptr_t)io | TAG_REQUEST;
	return true;
}

static void uring_kick(struct io_queue *q)
{
	/* What cannot be taken now stays in the ring and is tried again by the next run. */
	io_uring_submit(&uring_queue(q)->ring);
}

/* ----------------------------------------------------------------- watches */

static uint64_t watch_user_data(const struct io_watch *w)
{
	return w->id << TAG_BITS | TAG_WATCH;
}

static void arm_watches(struct uring_queue *u)
{
	struct io_uring_sqe *sqe;
	struct io_watch *w;

	LIST_FOREACH(w, &u->base.watches, link) {
		if (w->armed || w->revents)
			continue;
		sqe = get_sqe(u);
		if (!sqe)
			return;
		io_uring_prep_poll_add(sqe, w->fd, (unsigned)w->events);
		sqe->user_data = watch_user_data(w);
		w->armed = true;
	}
}

/* Submitted at once: the caller may close the descriptor and its number come back. */
static void uring_unwatch(struct io_queue *q, struct io_watch *w)
{
	struct uring_queue *u = uring_queue(q);
	struct io_uring_sqe *sqe;

	if (!w->armed)
		return;
	sqe = get_sqe(u);
	if (!sqe)
		return; /* its completion will find no watch */
	io_uring_prep_poll_remove(sqe, watch_user_data(w));
	sqe->user_data = TAG_IGNORE;
	io_uring_submit(&u->ring);
}

static void watch_completed(struct io_queue *q, uint64_t id, int res)
{
	struct io_watch *w;

	LIST_FOREACH(w, &q->watches, link) {
		if (w->id != id)
			continue;
		if (res == -ECANCELED || res == -EINTR || res == -EAGAIN || res == -ENOMEM || !res)
			w->armed = false; /* ask again */
		else
			io_queue_fired(q, w, res < 0 ? POLLNVAL : (short)res);
		return;
	}
}

/* -------------------------------------------------------------------- wait */

static void request_completed(struct io_queue *q, struct io_request *io, int res)
{
	struct file_device *dev = container_of(io->target, struct file_device, base);
	int r;

	if (likely(file_io_advance(dev, io, res, &r)))
		io_queue_ended(q, io, r);
	else if (!uring_start(q, io))
		io_queue_start_later(q, io);
}

static struct io_command *command_of(uint64_t user_data)
{
	return (struct io_command *)(uintptr_t)(user_data & ~(uint64_t)TAG_MASK);
}

static void reap(struct uring_queue *u)
{
	struct io_uring_cqe *cqe;
	uint64_t user_data;
	unsigned left = io_uring_cq_ready(&u->ring);
	int res;

	/* One at a time: a request that goes on may submit, and the kernel then wants room. */
	while (left-- && !io_uring_peek_cqe(&u->ring, &cqe)) {
		user_data = cqe->user_data;
		res = cqe->res;
		io_uring_cqe_seen(&u->ring, cqe);
		switch (user_data & TAG_MASK) {
		case TAG_REQUEST:
			request_completed(&u->base, (struct io_request *)(uintptr_t)user_data, res);
			break;
		case TAG_WATCH:
			watch_completed(&u->base, user_data >> TAG_BITS, res);
			break;
		case TAG_COMMAND:
			io_queue_command_ended(&u->base, command_of(user_data), res);
			break;
		default:
			break;
		}
	}
}

/* ---------------------------------------------------------------- commands */

/* The area for the command is the second half of an entry. */
static bool uring_command(struct io_queue *q, struct io_command *cmd)
{
	struct io_uring_sqe *sqe = get_sqe(uring_queue(q));

	if (unlikely(!sqe))
		return false;
	io_uring_prep_rw(IORING_OP_URING_CMD, sqe, cmd->fd, cmd->address, cmd->length, 0);
	sqe->cmd_op = cmd->op;
	memcpy(sqe->cmd, cmd->area, sizeof(cmd->area));
	sqe->user_data = (uintptr_t)cmd | TAG_COMMAND;
	return true;
}

static int submit_and_wait(struct uring_queue *u, uint64_t timeout_usec)
{
	struct __kernel_timespec ts;
	struct io_uring_cqe *cqe;
	int r;

	if (timeout_usec == 0)
		return io_uring_submit_and_get_events(&u->ring);
	if (timeout_usec == UINT64_MAX)
		return io_uring_submit_and_wait(&u->ring, 1);
	ts.tv_sec = (int64_t)(timeout_usec / USEC_PER_SEC);
	ts.tv_nsec = (long long)(timeout_usec % USEC_PER_SEC * NSEC_PER_USEC);
	r = io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &ts, NULL);
	/* It does not look for work that has ended when a watch that is ready at once is enough. */
	if (r >= 0 && IO_URING_READ_ONCE(*u->ring.sq.kflags) & IORING_SQ_TASKRUN)
		r = io_uring_get_events(&u->ring);
	return r;
}

static int uring_wait(struct io_queue *q, uint64_t timeout_usec)
{
	struct uring_queue *u = uring_queue(q);
	int r;

	arm_watches(u);
	r = submit_and_wait(u, timeout_usec);
	/* Only the ring's owner may enter it, and none of these codes is a matter of load. */
	TP_INVARIANT(r != -EEXIST && r != -EBADF && r != -EFAULT && r != -EINVAL);
	reap(u);
	return r == -EINTR ? r : 0;
}

/* ------------------------------------------------------- create and destroy */

static void uring_destroy(struct io_queue *q)
{
	struct uring_queue *u = uring_queue(q);

	io_uring_queue_exit(&u->ring);
	free(u);
}

/* On rings with entries of the ordinary size. */
static const struct io_backend uring_backend_without_commands = {
	.name = "io_uring",
	.start = uring_start,
	.kick = uring_kick,
	.wait = uring_wait,
	.unwatch = uring_unwatch,
	.destroy = uring_destroy,
};

static const struct io_backend uring_backend = {
	.name = "io_uring",
	.command = uring_command,
	.start = uring_start,
	.kick = uring_kick,
	.wait = uring_wait,
	.unwatch = uring_unwatch,
	.destroy = uring_destroy,
};

/* The best ring that this kernel has. */
static int ring_init(struct io_uring *ring, unsigned depth)
{
	static const unsigned wishes[] = {
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
			IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CLAMP |
			IORING_SETUP_SQE128,
		IORING_SETUP_CLAMP,
	};
	unsigned entries = MIN(MAX(depth, (unsigned)MIN_ENTRIES), (unsigned)MAX_ENTRIES);

	for (size_t i = 0; i < ARRAY_SIZE(wishes); i++) {
		struct io_uring_params p = { .flags = wishes[i] };

		if (io_uring_queue_init_params(entries, ring, &p))
			continue;
		/* Timeouts without a request of their own; came after all else that is used. */
		if (p.features & IORING_FEAT_EXT_ARG)
			return 0;
		io_uring_queue_exit(ring);
		break;
	}
	return -ENOSYS;
}

int uring_queue_alloc(unsigned depth, struct io_queue **ret_q)
{
	struct uring_queue *u = calloc(1, sizeof(*u));
	int r;

	if (!u)
		return -ENOMEM;
	r = ring_init(&u->ring, depth);
	if (r) {
		free(u);
		return r;
	}
	/* Saves looking the ring's descriptor up in each call; as well without. */
	(void)io_uring_register_ring_fd(&u->ring);
	u->base.backend = u->ring.flags & IORING_SETUP_SQE128 ? &uring_backend
							      : &uring_backend_without_commands;
	*ret_q = &u->base;
	return 0;
}
