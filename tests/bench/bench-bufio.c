/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bench-bufio.c - what a hit in the buffer cache costs
 *
 * Prints nanoseconds for bufio_get() + bufio_release(), by threads: of one block, as the
 * root of a tree is used, and of many at random.  Build without lock checks to compare.
 */
#include <stdio.h>
#include <stdlib.h>

#include "bufio/bufio.h"
#include "mem-device.h"
#include "prng.h"
#include "thinpoold/disk-format.h"
#include "util/clock.h"

#define MAX_THREADS 4u
#define NR_BLOCKS 4096u
#define NR_HITS 5000000u

struct job {
	struct bufio_client *c;
	pthread_t thread;
	pthread_barrier_t *start;
	mblock_t nr_blocks;
	uint64_t seed, usec;
};

static void *hit(void *arg)
{
	struct job *j = arg;
	struct bufio_buffer *b;
	struct prng p;
	uint64_t begin;

	prng_init(&p, j->seed);
	pthread_barrier_wait(j->start);
	begin = time_monotonic_usec();
	for (unsigned i = 0; i < NR_HITS; i++) {
		if (bufio_get(j->c, prng_next(&p) & (j->nr_blocks - 1), &b))
			abort();
		bufio_release(b);
	}
	j->usec = time_monotonic_usec() - begin;
	return NULL;
}

static void measure(struct bufio_client *c, const char *what, mblock_t nr_blocks,
		    unsigned nr_threads)
{
	struct job jobs[MAX_THREADS];
	pthread_barrier_t start;
	uint64_t usec = 0;

	pthread_barrier_init(&start, NULL, nr_threads);
	for (unsigned i = 0; i < nr_threads; i++) {
		jobs[i] = (struct job){
			.c = c, .start = &start, .nr_blocks = nr_blocks, .seed = i + 1
		};
		if (pthread_create(&jobs[i].thread, NULL, hit, &jobs[i]))
			abort();
	}
	for (unsigned i = 0; i < nr_threads; i++) {
		pthread_join(jobs[i].thread, NULL);
		usec += jobs[i].usec;
	}
	pthread_barrier_destroy(&start);
	printf("%-12s %u threads  %6.1f ns a hit\n", what, nr_threads,
	       (double)usec * 1000 / NR_HITS / nr_threads);
}

int main(void)
{
	struct io_device *dev = mem_device_create((uint64_t)NR_BLOCKS * METADATA_BLOCK_SIZE);
	const struct bufio_options options = { .name = "bench",
					       .limit_bytes = 2 * io_device_size(dev),
					       .reserve_buffers = 6 };
	struct bufio_buffer *b;
	struct bufio_client *c;

	if (bufio_client_create(dev, &options, &c))
		return 1;
	for (mblock_t i = 0; i < NR_BLOCKS; i++) {
		if (bufio_new(c, i, &b))
			return 1;
		bufio_release(b);
	}
	for (unsigned nr = 1; nr <= MAX_THREADS; nr *= 2) {
		measure(c, "one block", 1, nr);
		measure(c, "4096 blocks", NR_BLOCKS, nr);
	}
	bufio_client_destroy(c);
	io_device_close(dev);
	return 0;
}
