/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for io/io-queue.c and its two backends.  Each test says one fact.
 */
#include "io-fixture.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "fault-device.h"
#include "mem-device.h"
#include "util/clock.h"

static void the_asked_backend_is_used(void **state)
{
	struct fixture *f = *state;
	struct io_queue *q;

	assert_int_equal(io_queue_create_sync(1, &q), 0);
	assert_string_equal(io_queue_backend_name(q), "system calls");
	assert_null(io_queue_destroy(q));
	print_message("# best backend: %s\n", io_queue_backend_name(f->q));
	assert_int_equal(io_queue_create(0, &q), -EINVAL);
}

static void what_is_written_is_read_back(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = fixture_file(f, 1 * MIB, 0);
	char *a = io_buffer_alloc(64 * KIB), *b = io_buffer_alloc(64 * KIB);

	memset(a, 0x5a, 64 * KIB);
	assert_int_equal(tracked_io(f->q, dev, IO_WRITE, 128 * KIB, a, 64 * KIB), 0);
	assert_int_equal(tracked_io(f->q, dev, IO_FLUSH, 0, NULL, 0), 0);
	assert_int_equal(tracked_io(f->q, dev, IO_READ, 128 * KIB, b, 64 * KIB), 0);
	assert_memory_equal(a, b, 64 * KIB);
	assert_int_equal(tracked_io(f->q, dev, IO_READ, 192 * KIB, b, 64 * KIB), 0);
	assert_true(all_zero(b, 64 * KIB));
	free(a);
	free(b);
	assert_null(io_device_close(dev));
}

/* Vectors of odd counts, transferred a sector at a time. */
static void short_transfers_are_continued(void **state)
{
	enum { NR = 5 };
	struct fixture *f = *state;
	struct io_device *dev = fixture_file(f, 1 * MIB, 0);
	uint32_t unit = MAX(io_device_alignment(dev), 512);
	struct iovec out[NR], in[NR];
	struct tracked t = { 0 };
	struct prng prng;
	uint64_t length = 0;

	prng_init(&prng, prng_seed());
	for (unsigned i = 0; i < NR; i++) {
		out[i].iov_len = in[i].iov_len = (1 + i) * 2 * unit;
		out[i].iov_base = io_buffer_alloc(out[i].iov_len);
		in[i].iov_base = io_buffer_alloc(in[i].iov_len);
		prng_fill(&prng, out[i].iov_base, out[i].iov_len);
		length += out[i].iov_len;
	}
	/* Less than a vector, one and a half, all but the last piece, all. */
	for (uint32_t max = unit; max <= length; max += unit) {
		t = (struct tracked){ .io = { .device = dev, .op = IO_WRITE, .offset = unit } };
		t.io.length = length;
		t.io.iov = out;
		t.io.nr_iov = NR;
		t.io.done = tracked_done;
		io_device_set_max_transfer(dev, max);
		io_queue_submit(f->q, &t.io);
		assert_int_equal(tracked_wait(f->q, &t), 0);

		t = (struct tracked){ .io = t.io };
		t.io.op = IO_READ;
		t.io.iov = in;
		for (unsigned i = 0; i < NR; i++)
			memset(in[i].iov_base, 0, in[i].iov_len);
		io_queue_submit(f->q, &t.io);
		assert_int_equal(tracked_wait(f->q, &t), 0);
		for (unsigned i = 0; i < NR; i++)
			assert_memory_equal(out[i].iov_base, in[i].iov_base, in[i].iov_len);
		assert_int_equal(io_device_zero(dev, unit, length), 0);
	}
	for (unsigned i = 0; i < NR; i++) {
		free(out[i].iov_base);
		free(in[i].iov_base);
	}
	io_device_close(dev);
}

static void more_requests_than_depth_wait_inside(void **state)
{
	enum { NR = 50 * FIXTURE_DEPTH };
	struct fixture *f = *state;
	struct io_device *dev = fixture_file(f, NR * 4 * KIB, 0);
	static struct tracked t[NR];
	char *buffers = io_buffer_alloc(NR * 4 * KIB);
	uint64_t word;

	for (uint64_t i = 0; i < NR; i++) {
		memcpy(buffers + i * 4 * KIB, &i, sizeof(i));
		tracked_submit(f->q, &t[i], dev, IO_WRITE, i * 4 * KIB, buffers + i * 4 * KIB,
			       4 * KIB);
	}
	assert_int_equal(io_queue_in_flight(f->q), NR);
	while (io_queue_in_flight(f->q)) {
		assert_true(f->q->nr_started <= FIXTURE_DEPTH);
		assert_true(io_queue_run(f->q, UINT64_MAX) > 0);
	}
	for (uint64_t i = 0; i < NR; i++) {
		assert_int_equal(t[i].nr_done, 1);
		assert_int_equal(t[i].result, 0);
		assert_int_equal(io_device_read(dev, buffers, 4 * KIB, i * 4 * KIB), 0);
		memcpy(&word, buffers, sizeof(word));
		assert_int_equal(word, i);
	}
	free(buffers);
	io_device_close(dev);
}

static void done_is_never_called_by_submit(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = mem_device_create(1 * MIB);
	struct tracked t;
	char buffer[512];

	tracked_submit(f->q, &t, dev, IO_READ, 0, buffer, sizeof(buffer));
	assert_int_equal(t.nr_done, 0);
	io_queue_kick(f->q);
	assert_int_equal(t.nr_done, 0);
	assert_int_equal(io_queue_in_flight(f->q), 1);
	assert_int_equal(io_queue_run(f->q, 0), 1);
	assert_int_equal(t.nr_done, 1);
	assert_int_equal(io_queue_in_flight(f->q), 0);
	io_device_close(dev);
}

static void bad_requests_end_with_an_error(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = mem_device_create(1 * MIB);
	char *b = io_buffer_alloc(4 * KIB);

	mem_device_set_alignment(dev, 512);
	assert_int_equal(tracked_io(f->q, dev, IO_READ, 1 * MIB - 512, b, 1024), -EIO);
	assert_int_equal(tracked_io(f->q, dev, IO_READ, UINT64_MAX - 511, b, 1024), -EIO);
	assert_int_equal(tracked_io(f->q, dev, IO_WRITE, 1 * MIB, b, 512), -EIO);
	assert_int_equal(tracked_io(f->q, dev, IO_DISCARD, 0, NULL, 2 * MIB), -EIO);
	assert_int_equal(tracked_io(f->q, dev, IO_READ, 256, b, 512), -EINVAL);
	assert_int_equal(tracked_io(f->q, dev, IO_READ, 512, b, 256), -EINVAL);
	assert_int_equal(tracked_io(f->q, dev, IO_READ, 512, b + 256, 512), -EINVAL);
	assert_int_equal(tracked_io(f->q, dev, IO_READ, 0, b, 0), 0);
	mem_device_set_read_only(dev, true);
	assert_int_equal(tracked_io(f->q, dev, IO_READ, 0, b, 512), 0);
	assert_int_equal(tracked_io(f->q, dev, IO_WRITE, 0, b, 512), -EROFS);
	assert_int_equal(tracked_io(f->q, dev, IO_ZERO, 0, NULL, 512), -EROFS);
	assert_int_equal(tracked_io(f->q, dev, IO_FLUSH, 0, NULL, 0), 0);
	free(b);
	io_device_close(dev);
}

/* Somebody truncated the file behind our back. */
static void read_of_a_truncated_file_is_eio(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = fixture_file(f, 1 * MIB, 0);
	char *b = io_buffer_alloc(16 * KIB);

	assert_int_equal(truncate(f->path, 68 * KIB + 100), 0);
	assert_int_equal(tracked_io(f->q, dev, IO_READ, 64 * KIB, b, 4 * KIB), 0);
	assert_int_equal(tracked_io(f->q, dev, IO_READ, 64 * KIB, b, 16 * KIB), -EIO);
	assert_int_equal(tracked_io(f->q, dev, IO_READ, 512 * KIB, b, 16 * KIB), -EIO);
	free(b);
	io_device_close(dev);
}

/* --------------------------------------------------------------- nested runs */

struct nest {
	struct tracked outer, inner;
	struct io_queue *q;
	struct io_device *dev;
	char *buffer;
};

static void nest_done(struct io_request *io, int r)
{
	struct nest *n = container_of(io, struct nest, outer.io);

	tracked_done(io, r);
	assert_int_equal(tracked_wait(n->q, &n->inner), 0);
	assert_int_equal(tracked_io(n->q, n->dev, IO_READ, 0, n->buffer, 4 * KIB), 0);
}

/* The inner one ends in the same batch as the outer, and yet is not out of reach. */
static void a_callback_may_run_the_queue(void **state)
{
	struct fixture *f = *state;
	struct io_device *devs[] = { mem_device_create(1 * MIB), fixture_file(f, 1 * MIB, 0) };

	for (unsigned i = 0; i < ARRAY_SIZE(devs); i++) {
		struct nest n = { .q = f->q, .dev = devs[i], .buffer = io_buffer_alloc(4 * KIB) };

		tracked_submit(f->q, &n.outer, n.dev, IO_READ, 0, n.buffer, 4 * KIB);
		n.outer.io.done = nest_done;
		tracked_submit(f->q, &n.inner, n.dev, IO_FLUSH, 0, NULL, 0);
		assert_int_equal(tracked_wait(f->q, &n.outer), 0);
		assert_int_equal(io_queue_in_flight(f->q), 0);
		free(n.buffer);
		io_device_close(devs[i]);
	}
}

static void resubmit_done(struct io_request *io, int r)
{
	struct nest *n = container_of(io, struct nest, outer.io);

	n->outer.nr_done++;
	n->outer.result = r;
	if (n->outer.nr_done < 100)
		io_queue_submit(n->q, io);
}

/* A device that always answers at once must not keep the caller inside for ever. */
static void a_run_ends_though_callbacks_resubmit(void **state)
{
	struct fixture *f = *state;
	struct nest n = { .q = f->q, .dev = mem_device_create(1 * MIB), .buffer = malloc(512) };

	tracked_submit(f->q, &n.outer, n.dev, IO_READ, 0, n.buffer, 512);
	n.outer.io.done = resubmit_done;
	for (unsigned i = 1; i <= 100; i++) {
		assert_int_equal(io_queue_run(f->q, UINT64_MAX), 1);
		assert_int_equal(n.outer.nr_done, i);
	}
	free(n.buffer);
	io_device_close(n.dev);
}

/* -------------------------------------------------------- time, wake, watches */

static void run_returns_after_its_timeout(void **state)
{
	struct fixture *f = *state;
	uint64_t begin = time_monotonic_usec();

	assert_int_equal(io_queue_run(f->q, 0), 0);
	assert_int_equal(io_queue_run(f->q, 30 * USEC_PER_MSEC), 0);
	assert_true(time_monotonic_usec() - begin >= 30 * USEC_PER_MSEC);
}

static void *waker(void *q)
{
	io_queue_wake(q);
	return NULL;
}

static void another_thread_wakes_a_sleeping_run(void **state)
{
	struct fixture *f = *state;
	pthread_t thread;

	for (unsigned i = 0; i < 20; i++) {
		assert_int_equal(pthread_create(&thread, NULL, waker, f->q), 0);
		assert_int_equal(io_queue_run(f->q, UINT64_MAX), 0);
		assert_int_equal(pthread_join(thread, NULL), 0);
	}
}

static void wakes_before_a_run_count_once(void **state)
{
	struct fixture *f = *state;
	uint64_t begin = time_monotonic_usec();

	io_queue_wake(f->q);
	io_queue_wake(f->q);
	assert_int_equal(io_queue_run(f->q, UINT64_MAX), 0);
	assert_int_equal(io_queue_run(f->q, 10 * USEC_PER_MSEC), 0);
	assert_true(time_monotonic_usec() - begin >= 10 * USEC_PER_MSEC);
}

/* The request takes several rounds of the kernel; an old wake must not end the run. */
static void a_wake_ends_one_run_only(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = fixture_file(f, 1 * MIB, 0);
	char *b = io_buffer_alloc(64 * KIB);
	struct tracked t;

	io_device_set_max_transfer(dev, 4 * KIB);
	io_queue_wake(f->q);
	assert_int_equal(io_queue_run(f->q, UINT64_MAX), 0);
	tracked_submit(f->q, &t, dev, IO_READ, 0, b, 64 * KIB);
	assert_int_equal(io_queue_run(f->q, UINT64_MAX), 1);
	assert_int_equal(t.nr_done, 1);
	free(b);
	io_device_close(dev);
}

struct watched {
	struct io_watch w;
	struct io_queue *q;
	unsigned nr_ready;
	bool unwatch, drain;
};

static void watched_ready(struct io_watch *w, short revents)
{
	struct watched *x = container_of(w, struct watched, w);
	uint64_t count;

	assert_true(revents & POLLIN);
	x->nr_ready++;
	if (x->drain)
		assert_int_equal(read(w->fd, &count, sizeof(count)), sizeof(count));
	if (x->unwatch)
		io_queue_unwatch(x->q, w);
}

static struct watched watched_eventfd(struct io_queue *q)
{
	return (struct watched){
		.w = { .fd = eventfd(0, EFD_NONBLOCK), .events = POLLIN, .ready = watched_ready },
		.q = q
	};
}

static void a_watch_fires_as_long_as_its_event_holds(void **state)
{
	struct fixture *f = *state;
	struct watched x = watched_eventfd(f->q);
	uint64_t one = 1;

	io_queue_watch(f->q, &x.w);
	assert_int_equal(io_queue_in_flight(f->q), 0);
	assert_int_equal(io_queue_run(f->q, 1), 0);
	assert_int_equal(write(x.w.fd, &one, sizeof(one)), sizeof(one));
	for (unsigned i = 1; i <= 3; i++) {
		assert_int_equal(io_queue_run(f->q, UINT64_MAX), 1);
		assert_int_equal(x.nr_ready, i);
	}
	x.drain = true;
	assert_int_equal(io_queue_run(f->q, UINT64_MAX), 1);
	assert_int_equal(io_queue_run(f->q, USEC_PER_MSEC), 0);
	assert_int_equal(x.nr_ready, 4);
	io_queue_unwatch(f->q, &x.w);
	close(x.w.fd);
}

static void an_unwatched_watch_is_never_called(void **state)
{
	struct fixture *f = *state;
	struct watched x = watched_eventfd(f->q), *freed;
	uint64_t one = 1;

	/* Armed, fired in the kernel, not collected yet; its memory goes at once. */
	freed = malloc(sizeof(*freed));
	*freed = x;
	io_queue_watch(f->q, &freed->w);
	assert_int_equal(io_queue_run(f->q, 0), 0);
	assert_int_equal(write(x.w.fd, &one, sizeof(one)), sizeof(one));
	io_queue_unwatch(f->q, &freed->w);
	free(freed);
	assert_int_equal(io_queue_run(f->q, USEC_PER_MSEC), 0);

	/* By its own callback, and then watched again. */
	x.unwatch = true;
	for (unsigned i = 1; i <= 3; i++) {
		io_queue_watch(f->q, &x.w);
		assert_int_equal(io_queue_run(f->q, UINT64_MAX), 1);
		assert_int_equal(io_queue_run(f->q, USEC_PER_MSEC), 0);
		assert_int_equal(x.nr_ready, i);
	}
	close(x.w.fd);
}

/* A read of the disk and a descriptor let go: neither waits until a run finds nothing else. */
static void runs_that_find_something_hold_nothing_up(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = fixture_file(f, 1 * MIB, 0);
	struct watched x = watched_eventfd(f->q), y = { .q = f->q }, z = watched_eventfd(f->q);
	uint64_t one = 1, end = time_monotonic_usec() + 10 * USEC_PER_SEC;
	void *b = io_buffer_alloc(64 * KIB);
	struct tracked t = { .nr_done = 0 };
	bool let_go = false;
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
	y.w = (struct io_watch){ .fd = pair[0], .events = POLLIN, .ready = watched_ready };
	io_queue_watch(f->q, &y.w);
	assert_int_equal(io_queue_run(f->q, 0), 0);
	io_queue_unwatch(f->q, &y.w);
	close(pair[0]);
	assert_int_equal(write(x.w.fd, &one, sizeof(one)), sizeof(one));
	io_queue_watch(f->q, &x.w);
	tracked_submit(f->q, &t, dev, IO_READ, 0, b, 64 * KIB);
	while ((!t.nr_done || !let_go) && time_monotonic_usec() < end) {
		/* Taking a watch back leaves a completion for the next run to find. */
		io_queue_watch(f->q, &z.w);
		io_queue_run(f->q, USEC_PER_SEC);
		io_queue_unwatch(f->q, &z.w);
		let_go = !recv(pair[1], &one, 1, 0);
	}
	assert_true(let_go);
	close(z.w.fd);
	assert_int_equal(t.nr_done, 1);
	assert_int_equal(t.result, 0);
	assert_true(x.nr_ready > 0);
	io_queue_unwatch(f->q, &x.w);
	close(x.w.fd);
	close(pair[1]);
	free(b);
	io_device_close(dev);
}

/* --------------------------------------------------------------- own queues */

/* Returns NULL if its queue works; not by cmocka's assertions, as they are for the main thread. */
static void *own_queue(void *arg)
{
	struct io_device *dev = arg;
	struct io_queue *q, *again;
	void *b = io_buffer_alloc(4 * KIB), *bad = NULL;

	if (io_queue_self(&q) || io_queue_self(&again) || q != again ||
	    tracked_io(q, dev, IO_READ, 0, b, 4 * KIB))
		bad = dev;
	free(b);
	return bad;
}

static void each_thread_has_a_queue_of_its_own(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = fixture_file(f, 1 * MIB, 0);
	pthread_t thread;
	void *bad;

	/* The other's is destroyed with its thread: the leak checker watches. */
	assert_int_equal(pthread_create(&thread, NULL, own_queue, dev), 0);
	assert_int_equal(pthread_join(thread, &bad), 0);
	assert_null(bad);
	assert_null(own_queue(dev));
	io_device_close(dev);
}

struct tracked_command {
	struct io_command cmd;
	unsigned nr_done;
	int r;
};

static void command_done(struct io_command *cmd, int r)
{
	struct tracked_command *t = container_of(cmd, struct tracked_command, cmd);

	t->nr_done++;
	t->r = r;
}

/* What SIOCINQ asks for, as a command (Linux 6.7): the bytes of the next datagram. */
static void a_command_ends_with_the_answer_of_its_driver(void **state)
{
	enum { NR = 1000, OP_SIOCINQ = 0 }; /* more than there is room for at once */
	static struct tracked_command commands[NR];
	struct fixture *f = *state;
	struct sockaddr_in to = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof(to);
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), other = eventfd(0, EFD_CLOEXEC);
	unsigned nr = 0;

	if (!io_queue_has_commands(f->q)) {
		assert_string_equal(io_queue_backend_name(f->q), "system calls");
		goto out;
	}
	assert_int_equal(bind(sock, (struct sockaddr *)&to, sizeof(to)), 0);
	assert_int_equal(getsockname(sock, (struct sockaddr *)&to, &length), 0);
	assert_int_equal(sendto(sock, "12345", 5, 0, (struct sockaddr *)&to, length), 5);
	for (unsigned i = 0; i < NR; i++) {
		commands[i] = (struct tracked_command){ .cmd = { .fd = i % 2 ? sock : other,
								 .op = OP_SIOCINQ,
								 .done = command_done } };
		io_queue_command(f->q, &commands[i].cmd);
	}
	assert_int_equal(commands[0].nr_done, 0); /* not before a run */
	assert_int_equal(io_queue_in_flight(f->q), 0);
	while (nr < NR)
		nr += io_queue_run(f->q, 1000000);
	for (unsigned i = 0; i < NR; i++) {
		assert_int_equal(commands[i].nr_done, 1);
		if (i % 2 == 0)
			assert_int_equal(commands[i].r, -EOPNOTSUPP); /* it has no commands */
		else if (commands[i].r != -EOPNOTSUPP)
			assert_int_equal(commands[i].r, 5);
	}
out:
	close(sock);
	close(other);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_BOTH_BACKENDS(the_asked_backend_is_used),
		ON_BOTH_BACKENDS(what_is_written_is_read_back),
		ON_BOTH_BACKENDS(short_transfers_are_continued),
		ON_BOTH_BACKENDS(more_requests_than_depth_wait_inside),
		ON_BOTH_BACKENDS(done_is_never_called_by_submit),
		ON_BOTH_BACKENDS(bad_requests_end_with_an_error),
		ON_BOTH_BACKENDS(read_of_a_truncated_file_is_eio),
		ON_BOTH_BACKENDS(a_callback_may_run_the_queue),
		ON_BOTH_BACKENDS(a_run_ends_though_callbacks_resubmit),
		ON_BOTH_BACKENDS(run_returns_after_its_timeout),
		ON_BOTH_BACKENDS(another_thread_wakes_a_sleeping_run),
		ON_BOTH_BACKENDS(wakes_before_a_run_count_once),
		ON_BOTH_BACKENDS(a_wake_ends_one_run_only),
		ON_BOTH_BACKENDS(a_watch_fires_as_long_as_its_event_holds),
		ON_BOTH_BACKENDS(an_unwatched_watch_is_never_called),
		ON_BOTH_BACKENDS(runs_that_find_something_hold_nothing_up),
		ON_BOTH_BACKENDS(each_thread_has_a_queue_of_its_own),
		ON_BOTH_BACKENDS(a_command_ends_with_the_answer_of_its_driver),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
