/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * io-queue.c - the part of a queue that does not depend on how I/O is done
 *
 * A request goes through up to three lists, all its own thread's, so there is no lock:
 *
 *	submit -> [waiting] -> backend -> [done] -> io_request.done()
 *
 * It is in "waiting" only while the backend has as many as it has room for.  A
 * device that is no file (in memory, say) goes straight to "done" by
 * io_queue_complete().
 *
 * Invariants
 *   Q1  nr_in_flight counts the requests in any of the three places.
 *   Q2  nr_started <= depth.
 *   Q3  callbacks are made by io_queue_run() only, and each request is off all
 *       lists before its callback: a callback may do anything, even run the queue.
 *   Q4  a watch with revents set is on the list and counted by nr_fired.
 *
 * io_queue_wake() is the one call for other threads; it touches wake_pending and
 * wake_fd and nothing else.
 */
#include "io/io-internal.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "util/clock.h"

/* A thread's own queue serves whoever asks for it; deeper than one disk can use. */
enum { SELF_DEPTH = 256 };

static void assert_owner(const struct io_queue *q)
{
	TP_INVARIANT(pthread_equal(q->owner, pthread_self()));
}

/* ------------------------------------------------------- create and destroy */

static void wake_ready(struct io_watch *w, short revents)
{
	struct io_queue *q = container_of(w, struct io_queue, wake_watch);
	uint64_t count;

	(void)revents;
	while (read(q->wake_fd, &count, sizeof(count)) < 0 && errno == EINTR)
		;
	/* An exchange, to see what the waker wrote before it found the flag set. */
	atomic_exchange(&q->wake_pending, false);
	q->woken = true;
}

static int queue_init(struct io_queue *q, unsigned depth)
{
	q->owner = pthread_self();
	q->depth = depth;
	STAILQ_INIT(&q->waiting);
	STAILQ_INIT(&q->done);
	STAILQ_INIT(&q->commands_waiting);
	STAILQ_INIT(&q->commands_done);
	LIST_INIT(&q->watches);
	q->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (q->wake_fd < 0)
		return -errno;
	q->wake_watch =
		(struct io_watch){ .fd = q->wake_fd, .events = POLLIN, .ready = wake_ready };
	io_queue_watch(q, &q->wake_watch);
	return 0;
}

static int queue_create(unsigned depth, int (*alloc)(unsigned, struct io_queue **),
			struct io_queue **ret_q)
{
	struct io_queue *q;
	int r = depth ? alloc(depth, &q) : -EINVAL;

	if (r)
		return r;
	r = queue_init(q, depth);
	if (r) {
		q->backend->destroy(q);
		return r;
	}
	*ret_q = q;
	return 0;
}

int io_queue_create_sync(unsigned depth, struct io_queue **ret_q)
{
	return queue_create(depth, sync_queue_alloc, ret_q);
}

int io_queue_create(unsigned depth, struct io_queue **ret_q)
{
	int r = queue_create(depth, uring_queue_alloc, ret_q);

	return r == -ENOSYS ? io_queue_create_sync(depth, ret_q) : r;
}

struct io_queue *io_queue_destroy(struct io_queue *q)
{
	if (!q)
		return NULL;
	while (q->nr_in_flight)
		io_queue_run(q, UINT64_MAX);
	close(q->wake_fd);
	q->backend->destroy(q);
	return NULL;
}

static pthread_key_t self_key;
static int self_key_error;

static void self_destroy(void *q)
{
	io_queue_destroy(q);
}

static void self_key_create(void)
{
	self_key_error = -pthread_key_create(&self_key, self_destroy);
}

int io_queue_self(struct io_queue **ret_q)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct io_queue *q;
	int r;

	pthread_once(&once, self_key_create);
	if (self_key_error)
		return self_key_error;

	q = pthread_getspecific(self_key);
	if (!q) {
		r = io_queue_create(SELF_DEPTH, &q);
		if (r)
			return r;
		r = -pthread_setspecific(self_key, q);
		if (r) {
			io_queue_destroy(q);
			return r;
		}
	}
	*ret_q = q;
	return 0;
}

/* ---------------------------------------------------------------- requests */

void io_queue_submit(struct io_queue *q, struct io_request *io)
{
	int r;

	assert_owner(q);
	q->nr_in_flight++;
	if (unlikely(io_request_ends_at_once(io, &r)))
		io_queue_complete(q, io, r);
	else
		io->device->ops->submit(io->device, q, io);
}

void io_queue_complete(struct io_queue *q, struct io_request *io, int r)
{
	io->result = r;
	q->nr_done++;
	STAILQ_INSERT_TAIL(&q->done, io, link);
}

void io_queue_start(struct io_queue *q, struct io_request *io)
{
	if (q->nr_started < q->depth && STAILQ_EMPTY(&q->waiting) && q->backend->start(q, io))
		q->nr_started++;
	else
		STAILQ_INSERT_TAIL(&q->waiting, io, link);
}

void io_queue_start_later(struct io_queue *q, struct io_request *io)
{
	q->nr_started--;
	STAILQ_INSERT_HEAD(&q->waiting, io, link);
}

void io_queue_ended(struct io_queue *q, struct io_request *io, int r)
{
	q->nr_started--;
	io_queue_complete(q, io, r);
}

static void start_waiting(struct io_queue *q)
{
	struct io_request *io;

	while (q->nr_started < q->depth && (io = STAILQ_FIRST(&q->waiting))) {
		/* Off the list first: a backend uses the link as it likes. */
		STAILQ_REMOVE_HEAD(&q->waiting, link);
		if (!q->backend->start(q, io)) {
			STAILQ_INSERT_HEAD(&q->waiting, io, link);
			return;
		}
		q->nr_started++;
	}
}

void io_queue_kick(struct io_queue *q)
{
	assert_owner(q);
	q->backend->kick(q);
}

unsigned io_queue_in_flight(const struct io_queue *q)
{
	return q->nr_in_flight;
}

const char *io_queue_backend_name(const struct io_queue *q)
{
	return q->backend->name;
}

/* ---------------------------------------------------------------- commands */

bool io_queue_has_commands(const struct io_queue *q)
{
	return q->backend->command;
}

void io_queue_command(struct io_queue *q, struct io_command *cmd)
{
	assert_owner(q);
	if (!STAILQ_EMPTY(&q->commands_waiting) || !q->backend->command(q, cmd))
		STAILQ_INSERT_TAIL(&q->commands_waiting, cmd, link);
}

void io_queue_command_ended(struct io_queue *q, struct io_command *cmd, int r)
{
	cmd->result = r;
	q->nr_commands_done++;
	STAILQ_INSERT_TAIL(&q->commands_done, cmd, link);
}

static void give_waiting_commands(struct io_queue *q)
{
	struct io_command *cmd;

	while ((cmd = STAILQ_FIRST(&q->commands_waiting))) {
		STAILQ_REMOVE_HEAD(&q->commands_waiting, link);
		if (!q->backend->command(q, cmd)) {
			STAILQ_INSERT_HEAD(&q->commands_waiting, cmd, link);
			return;
		}
	}
}

/* As with requests: those done by now. */
static unsigned call_back_commands(struct io_queue *q)
{
	unsigned nr = 0, limit = q->nr_commands_done;
	struct io_command *cmd;

	while (nr < limit && (cmd = STAILQ_FIRST(&q->commands_done))) {
		STAILQ_REMOVE_HEAD(&q->commands_done, link);
		q->nr_commands_done--;
		nr++;
		cmd->done(cmd, cmd->result);
	}
	return nr;
}

/* ----------------------------------------------------------------- watches */

void io_queue_watch(struct io_queue *q, struct io_watch *w)
{
	assert_owner(q);
	TP_INVARIANT(q->nr_watches < IO_QUEUE_MAX_WATCHES);
	w->id = ++q->last_watch_id;
	w->armed = false;
	w->revents = 0;
	q->nr_watches++;
	LIST_INSERT_HEAD(&q->watches, w, link);
}

void io_queue_unwatch(struct io_queue *q, struct io_watch *w)
{
	assert_owner(q);
	if (w->revents)
		q->nr_fired--;
	q->nr_watches--;
	LIST_REMOVE(w, link);
	q->backend->unwatch(q, w);
}

void io_queue_fired(struct io_queue *q, struct io_watch *w, short revents)
{
	w->armed = false;
	w->revents = revents;
	q->nr_fired++;
}

void io_queue_wake(struct io_queue *q)
{
	uint64_t one = 1;

	if (atomic_exchange(&q->wake_pending, true))
		return;
	while (write(q->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

/* --------------------------------------------------------------------- run */

/* Those done by now, not those that a callback makes done: a run has to end. */
static unsigned call_back_done(struct io_queue *q)
{
	unsigned nr = 0, limit = q->nr_done;
	struct io_request *io;

	while (nr < limit && (io = STAILQ_FIRST(&q->done))) {
		STAILQ_REMOVE_HEAD(&q->done, link);
		q->nr_done--;
		q->nr_in_flight--;
		nr++;
		io->done(io, io->result);
	}
	return nr;
}

static struct io_watch *first_fired(struct io_queue *q)
{
	struct io_watch *w;

	LIST_FOREACH(w, &q->watches, link)
		if (w->revents)
			return w;
	return NULL;
}

static unsigned call_back_fired(struct io_queue *q)
{
	unsigned nr = 0;
	struct io_watch *w;
	short revents;

	/* Ends: a watch fires again only after the backend was asked again. */
	while (q->nr_fired && (w = first_fired(q))) {
		revents = w->revents;
		w->revents = 0;
		q->nr_fired--;
		if (w != &q->wake_watch)
			nr++;
		w->ready(w, revents);
	}
	return nr;
}

static uint64_t time_left(uint64_t timeout_usec, uint64_t deadline)
{
	uint64_t now;

	if (timeout_usec == 0 || timeout_usec == UINT64_MAX)
		return timeout_usec;
	now = time_monotonic_usec();
	return now < deadline ? deadline - now : 0;
}

unsigned io_queue_run(struct io_queue *q, uint64_t timeout_usec)
{
	uint64_t deadline = UINT64_MAX, left = timeout_usec;
	unsigned nr;
	int r;

	assert_owner(q);
	/* No I/O under a lock of the buffer cache, nor under one of ours. */
	tp_lock_may_wait(LC_bufio);
	if (timeout_usec && timeout_usec < UINT64_MAX / 2)
		deadline = time_monotonic_usec() + timeout_usec;
	else if (timeout_usec)
		left = timeout_usec = UINT64_MAX;

	for (;;) {
		bool any = q->nr_done || q->nr_fired || q->nr_commands_done;

		start_waiting(q);
		give_waiting_commands(q);
		r = q->backend->wait(q, any ? 0 : left);
		nr = call_back_done(q);
		nr += call_back_commands(q);
		nr += call_back_fired(q);
		if (q->woken || r == -EINTR)
			break;
		left = time_left(timeout_usec, deadline);
		if (nr || !left)
			break;
	}
	q->woken = false;
	return nr;
}
