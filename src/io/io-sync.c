/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * io-sync.c - the backend of last resort: ordinary system calls
 *
 * For kernels without io_uring and places where it is forbidden.  A started
 * request is kept on a list and executed, blocking, by the next io_queue_run();
 * watches are polled.
 */
#include "io/io-internal.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>

struct sync_queue {
	struct io_queue base;
	struct io_request_list started;
};

static struct sync_queue *sync_queue(struct io_queue *q)
{
	return container_of(q, struct sync_queue, base);
}

static bool sync_start(struct io_queue *q, struct io_request *io)
{
	STAILQ_INSERT_TAIL(&sync_queue(q)->started, io, link);
	return true;
}

static void sync_kick(struct io_queue *q)
{
	(void)q;
}

static int timeout_msec(uint64_t usec)
{
	/* Rounded up: returning early would make the caller spin until its deadline. */
	uint64_t msec = usec / 1000 + (usec % 1000 ? 1 : 0);

	return usec == UINT64_MAX ? -1 : (int)MIN(msec, (uint64_t)INT_MAX);
}

static int poll_watches(struct io_queue *q, uint64_t timeout_usec)
{
	struct pollfd fds[IO_QUEUE_MAX_WATCHES];
	struct io_watch *of[IO_QUEUE_MAX_WATCHES], *w;
	nfds_t nr = 0;
	int r;

	LIST_FOREACH(w, &q->watches, link) {
		if (w->revents)
			continue;
		fds[nr] = (struct pollfd){ .fd = w->fd, .events = w->events };
		of[nr++] = w;
	}
	r = poll(fds, nr, timeout_msec(timeout_usec));
	if (r < 0)
		return -errno;
	for (nfds_t i = 0; i < nr; i++)
		if (fds[i].revents)
			io_queue_fired(q, of[i], fds[i].revents);
	return 0;
}

static int sync_wait(struct io_queue *q, uint64_t timeout_usec)
{
	struct sync_queue *s = sync_queue(q);
	struct io_request *io;

	while ((io = STAILQ_FIRST(&s->started))) {
		STAILQ_REMOVE_HEAD(&s->started, link);
		io_queue_ended(q, io, io->target->ops->execute(io->target, io));
	}
	return poll_watches(q, q->nr_done ? 0 : timeout_usec);
}

static void sync_unwatch(struct io_queue *q, struct io_watch *w)
{
	(void)q;
	(void)w;
}

static void sync_destroy(struct io_queue *q)
{
	free(sync_queue(q));
}

static const struct io_backend sync_backend = {
	.name = "system calls",
	.start = sync_start,
	.kick = sync_kick,
	.wait = sync_wait,
	.unwatch = sync_unwatch,
	.destroy = sync_destroy,
};

int sync_queue_alloc(unsigned depth, struct io_queue **ret_q)
{
	struct sync_queue *s = calloc(1, sizeof(*s));

	(void)depth;
	if (!s)
		return -ENOMEM;
	s->base.backend = &sync_backend;
	STAILQ_INIT(&s->started);
	*ret_q = &s->base;
	return 0;
}
