/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What changes and lookups of mappings cost as there are more of them, and what a mapping takes
 * on the metadata device.  For figures: a release build without debug_locks.
 *
 *   bench-growth FILE [MAPPINGS[:CACHE_MIB]]...
 *
 * FILE is made, sparse, and removed at the end.  By default 10^5, 10^6 and 10^7 mappings, each
 * with a cache that holds all of the metadata, so that what is measured is the work and not the
 * device.  10^8 take some 3 GB of memory and of FILE, and minutes.
 *
 * Inserts are in random order over a volume that becomes half full.  "depth" is what the
 * logarithm says, to compare times with.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "io/device.h"
#include "prng.h"
#include "thin/thin-metadata.h"

#define SECTORS 128u
#define METADATA_BYTES (UINT64_C(16) << 30)
#define BATCH UINT64_C(1000000) /* inserts between two commits */
#define VOLUME 1u
#define SNAPSHOT 2u

struct bench {
	struct thin_metadata *tmd;
	struct thin_device *td;
	uint64_t nr;   /* mappings */
	unsigned bits; /* of a virtual block's number */
	struct prng prng;
};

static void must(const char *what, int r)
{
	if (!r)
		return;
	fprintf(stderr, "bench-growth: %s: %s\n", what, strerror(-r));
	exit(1);
}

/* The i-th virtual block to be written: a permutation of the volume that looks random. */
static vblock_t nth_block(const struct bench *b, uint64_t i)
{
	const uint64_t mask = (UINT64_C(1) << b->bits) - 1;

	for (unsigned round = 0; round < 3; round++) {
		i = (i * UINT64_C(0x9e3779b97f4a7c15) + round) & mask;
		i ^= i >> (b->bits / 2 + 1);
	}
	return i;
}

static vblock_t random_mapped(struct bench *b)
{
	return nth_block(b, prng_below(&b->prng, b->nr));
}

static void map(struct bench *b, vblock_t vblock)
{
	dblock_t dblock;

	must("reserve a data block", thin_metadata_reserve_data_block(b->tmd, &dblock));
	must("insert", thin_insert_block(b->td, vblock, dblock));
}

/* Of this thread: with all in the cache it waits for nothing, and others do not count. */
static uint64_t cpu_nsec(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static double nsec_each(uint64_t since, uint64_t nr)
{
	return (double)(cpu_nsec() - since) / (double)nr;
}

static void commit(struct bench *b)
{
	must("commit", thin_metadata_commit(b->tmd));
	thin_metadata_take_freed(b->tmd, NULL, NULL);
}

static uint64_t used_blocks(struct bench *b)
{
	struct thin_metadata_info info;

	must("get info", thin_metadata_get_info(b->tmd, &info));
	return info.nr_metadata_blocks - info.nr_metadata_free - info.metadata_reserve;
}

static void fill(struct bench *b)
{
	uint64_t step = MAX(BATCH, b->nr / 10);

	for (uint64_t i = 0; i < b->nr; i++) {
		map(b, nth_block(b, i));
		if ((i + 1) % step == 0)
			commit(b);
	}
	commit(b);
}

static double lookups(struct bench *b, uint64_t nr)
{
	uint64_t start = cpu_nsec();

	for (uint64_t i = 0; i < nr; i++) {
		struct thin_run run;
		mblock_t missing;

		must("lookup", thin_try_find_run(b->td, random_mapped(b), 1, &run, &missing));
		if (!run.mapped)
			must("a mapping that was made", -ENODATA);
	}
	return nsec_each(start, nr);
}

static double inserts(struct bench *b, uint64_t nr)
{
	uint64_t start = cpu_nsec();

	for (uint64_t i = 0; i < nr; i++)
		map(b, nth_block(b, b->nr++));
	return nsec_each(start, nr);
}

static double breaks(struct bench *b, uint64_t nr)
{
	uint64_t start;
	double each;

	must("snapshot", thin_metadata_create_snap(b->tmd, SNAPSHOT, VOLUME));
	commit(b);
	start = cpu_nsec();
	for (uint64_t i = 0; i < nr; i++)
		map(b, random_mapped(b));
	each = nsec_each(start, nr);
	commit(b);
	return each;
}

static double discards(struct bench *b, uint64_t nr)
{
	uint64_t start = cpu_nsec();
	vblock_t next;

	for (uint64_t i = 0; i < nr; i++) {
		vblock_t v = nth_block(b, --b->nr);

		must("discard", thin_remove_range(b->td, v, v + 1, 1, &next));
	}
	return nsec_each(start, nr);
}

/* All that is left, in slices as the pool does it; for each mapping. */
static double discard_all(struct bench *b)
{
	uint64_t start = cpu_nsec(), nr = thin_device_mapped_blocks(b->td);
	const vblock_t end = UINT64_C(1) << b->bits;

	for (vblock_t v = 0; v < end;)
		must("discard", thin_remove_range(b->td, v, end, 1024, &v));
	return nsec_each(start, nr);
}

static void open_pool(struct bench *b, struct io_device *dev, uint64_t cache_bytes)
{
	const struct thin_metadata_options options = { .cache_bytes = cache_bytes };
	struct tp_error error = { "" };

	must("format", thin_metadata_format(dev, SECTORS, &error));
	must("open", thin_metadata_open(dev, &options, &b->tmd, &error));
	must("make room", thin_metadata_resize_data(b->tmd, 3 * b->nr + 3 * BATCH));
	must("create a volume", thin_metadata_create_thin(b->tmd, VOLUME));
	commit(b);
	must("open a volume", thin_device_open(b->tmd, VOLUME, &b->td));
}

static void run(struct io_device *dev, uint64_t nr, uint64_t cache_bytes)
{
	struct bench b = { .nr = nr };
	const uint64_t ops = MIN(nr / 4, UINT64_C(200000));
	const uint64_t nr_breaks = MIN(nr / 500, UINT64_C(20000)); /* most copy a leaf */
	uint64_t start, empty;
	double fill_nsec, bytes;

	while ((UINT64_C(1) << b.bits) < 2 * nr)
		b.bits++;
	prng_init(&b.prng, 1);
	open_pool(&b, dev, cache_bytes);
	empty = used_blocks(&b);
	start = cpu_nsec();
	fill(&b);
	fill_nsec = nsec_each(start, nr);
	bytes = (double)(used_blocks(&b) - empty) * METADATA_BLOCK_SIZE / (double)nr;
	printf("%10llu  %5.2f  %7.2f  %7.0f", (unsigned long long)nr, log((double)nr) / log(180),
	       bytes, fill_nsec);
	printf("  %7.0f", lookups(&b, 5 * ops));
	printf("  %7.0f", inserts(&b, ops));
	commit(&b);
	printf("  %7.0f", discards(&b, ops));
	commit(&b);
	printf("  %7.0f", breaks(&b, nr_breaks));
	printf("  %7.0f\n", discard_all(&b));
	fflush(stdout);
	commit(&b);
	b.td = thin_device_close(b.td);
	must("close", thin_metadata_close(b.tmd));
}

int main(int argc, char **argv)
{
	static const char *const usual[] = { "100000", "1000000", "10000000", NULL };
	const char *const *sizes = argc > 2 ? (const char *const *)argv + 2 : usual;
	struct io_device *dev;

	if (argc < 2) {
		fprintf(stderr, "usage: bench-growth FILE [MAPPINGS[:CACHE_MIB]]...\n");
		return 2;
	}
	must(argv[1], io_device_open(argv[1], IO_OPEN_CREATE, &dev));
	printf("  mappings  depth  bytes of  ns of CPU each:\n");
	printf("                    metadata     fill   lookup   insert  discard    break  "
	       "discard all\n");
	for (const char *const *s = sizes; *s; s++) {
		const char *colon = strchr(*s, ':');
		uint64_t nr = strtoull(*s, NULL, 10);
		uint64_t mib = colon ? strtoull(colon + 1, NULL, 10) : 64 + nr / 25000;

		must("empty the file", io_device_empty(dev, METADATA_BYTES));
		run(dev, nr, mib << 20);
	}
	io_device_close(dev);
	unlink(argv[1]);
	return 0;
}
