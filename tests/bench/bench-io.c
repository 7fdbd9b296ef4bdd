/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bench-io.c - what a 4 KiB random read costs through an io_queue, and without it
 *
 * Usage: bench-io FILE [queue|sync|raw|raw-plain] [SECONDS] [DEPTH]
 *
 * "raw" drives an io_uring with the same flags by hand; "raw-plain" one without
 * flags.  The figure to compare is the CPU time a read takes, as the device's own
 * speed varies.
 */
#include <errno.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "io/device.h"
#include "io/io-internal.h"
#include "prng.h"
#include "util/clock.h"

enum { BLOCK = 4096, MAX_DEPTH = 1024 };

struct bench {
	struct io_device *dev;
	struct io_queue *q;
	struct prng prng;
	uint64_t nr_blocks, nr_reads, deadline;
	unsigned depth;
	bool stop;
};

struct slot {
	struct io_request io;
	struct bench *b;
	void *buffer;
};

static uint64_t random_offset(struct bench *b)
{
	return prng_below(&b->prng, b->nr_blocks) * BLOCK;
}

static void read_done(struct io_request *io, int r)
{
	struct slot *s = container_of(io, struct slot, io);

	TP_INVARIANT(!r);
	s->b->nr_reads++;
	if (s->b->stop)
		return;
	io->offset = random_offset(s->b);
	io_queue_submit(s->b->q, io);
}

static void run_queue(struct bench *b, struct slot *slots)
{
	for (unsigned i = 0; i < b->depth; i++) {
		slots[i].io =
			(struct io_request){ .device = b->dev, .op = IO_READ, .done = read_done };
		slots[i].io.offset = random_offset(b);
		io_request_set_buffer(&slots[i].io, slots[i].buffer, BLOCK);
		io_queue_submit(b->q, &slots[i].io);
	}
	while (io_queue_in_flight(b->q)) {
		io_queue_run(b->q, UINT64_MAX);
		b->stop = time_monotonic_usec() > b->deadline;
	}
}

static void raw_read(struct bench *b, struct io_uring *ring, struct slot *s)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

	io_uring_prep_read(sqe, container_of(b->dev, struct file_device, base)->fd, s->buffer,
			   BLOCK, random_offset(b));
	sqe->user_data = (uintptr_t)s;
}

static void run_raw(struct bench *b, struct slot *slots, unsigned flags)
{
	struct io_uring_cqe *cqe;
	struct io_uring ring;
	unsigned head, nr, in_flight = b->depth;

	TP_INVARIANT(!io_uring_queue_init(b->depth, &ring, flags));
	io_uring_register_ring_fd(&ring);
	for (unsigned i = 0; i < b->depth; i++)
		raw_read(b, &ring, &slots[i]);
	while (in_flight) {
		TP_INVARIANT(io_uring_submit_and_wait(&ring, 1) >= 0);
		nr = 0;
		io_uring_for_each_cqe(&ring, head, cqe)
		{
			TP_INVARIANT(cqe->res == BLOCK);
			nr++;
			if (b->stop)
				in_flight--;
			else
				raw_read(b, &ring, (struct slot *)(uintptr_t)cqe->user_data);
		}
		io_uring_cq_advance(&ring, nr);
		b->nr_reads += nr;
		b->stop = time_monotonic_usec() > b->deadline;
	}
	io_uring_queue_exit(&ring);
}

static double cpu_usec(void)
{
	struct rusage ru;

	getrusage(RUSAGE_SELF, &ru);
	return (double)(ru.ru_utime.tv_sec + ru.ru_stime.tv_sec) * 1e6 +
	       (double)(ru.ru_utime.tv_usec + ru.ru_stime.tv_usec);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 2 ? argv[2] : "queue";
	double seconds = argc > 3 ? atof(argv[3]) : 3, cpu;
	static struct slot slots[MAX_DEPTH];
	struct bench b = { .depth = argc > 4 ? (unsigned)atoi(argv[4]) : 32 };
	int r = argc > 1 ? io_device_open(argv[1], IO_OPEN_READ_ONLY, &b.dev) : -EINVAL;

	if (r || !b.depth || b.depth > MAX_DEPTH || io_device_size(b.dev) < BLOCK) {
		fprintf(stderr,
			"usage: bench-io FILE [queue|sync|raw|raw-plain] [SECONDS] [DEPTH]: %s\n",
			strerror(-r));
		return 1;
	}
	prng_init(&b.prng, 1);
	b.nr_blocks = io_device_size(b.dev) / BLOCK;
	for (unsigned i = 0; i < b.depth; i++) {
		slots[i].b = &b;
		slots[i].buffer = io_buffer_alloc(BLOCK);
	}
	cpu = cpu_usec();
	b.deadline = time_monotonic_usec() + (uint64_t)(seconds * 1e6);
	if (!strcmp(mode, "raw")) {
		run_raw(&b, slots, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
	} else if (!strcmp(mode, "raw-plain")) {
		run_raw(&b, slots, 0);
	} else {
		r = strcmp(mode, "sync") ? io_queue_create(b.depth, &b.q)
					 : io_queue_create_sync(b.depth, &b.q);
		TP_INVARIANT(!r);
		run_queue(&b, slots);
		io_queue_destroy(b.q);
	}
	cpu = cpu_usec() - cpu;
	printf("%-9s depth %u alignment %u: %.0f reads/s, %.2f us CPU a read\n", mode, b.depth,
	       io_device_alignment(b.dev), (double)b.nr_reads / seconds, cpu / (double)b.nr_reads);
	for (unsigned i = 0; i < b.depth; i++)
		free(slots[i].buffer);
	io_device_close(b.dev);
	return 0;
}
