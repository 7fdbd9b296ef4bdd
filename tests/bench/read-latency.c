/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * 4k reads at random places of a file, one at a time and past the page cache, until SIGTERM:
 * how long they take.  Says "ready" when the first has come back, and at the end
 *
 *   READS P50 P99 LONGEST        (microseconds)
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/clock.h"
#include "util/compiler.h"

#define READ_BYTES 4096
#define SLOTS (10u << 20) /* of a microsecond each; the last for all that take longer */

static uint32_t counts[SLOTS];
static volatile sig_atomic_t stop;

static void on_signal(int sig)
{
	(void)sig;
	stop = 1;
}

static unsigned percentile(uint64_t nr, double part)
{
	uint64_t sum = 0;
	unsigned i;

	for (i = 0; i < SLOTS - 1; i++) {
		sum += counts[i];
		if ((double)sum >= part * (double)nr)
			break;
	}
	return i;
}

int main(int argc, char **argv)
{
	const struct sigaction action = { .sa_handler = on_signal };
	uint64_t nr = 0, longest = 0;
	struct stat st;
	void *buffer = aligned_alloc(READ_BYTES, READ_BYTES);
	int fd = argc == 2 ? open(argv[1], O_RDONLY | O_DIRECT) : -1;

	if (fd < 0 || fstat(fd, &st) || st.st_size < READ_BYTES || !buffer) {
		fprintf(stderr, "usage: read-latency FILE\n");
		return 2;
	}
	sigaction(SIGTERM, &action, NULL);
	srandom(1);
	while (!stop) {
		off_t at = (off_t)random() % (st.st_size / READ_BYTES) * READ_BYTES;
		uint64_t begin = time_monotonic_usec(), usec;

		if (pread(fd, buffer, READ_BYTES, at) != READ_BYTES) {
			perror("read-latency");
			return 1;
		}
		usec = time_monotonic_usec() - begin;
		counts[MIN(usec, SLOTS - 1)]++;
		longest = MAX(longest, usec);
		if (!nr++) {
			puts("ready");
			fflush(stdout);
		}
	}
	printf("%llu %u %u %llu\n", (unsigned long long)nr, percentile(nr, 0.5),
	       percentile(nr, 0.99), (unsigned long long)longest);
	return 0;
}
