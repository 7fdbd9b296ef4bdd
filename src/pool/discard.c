/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * discard.c - blocks that lose their mapping, and what becomes of their space
 *
 * Worker only.  Unmapping happens under an exclusive cell, so no I/O on the blocks is in
 * flight.  A block whose last user went is free after the commit; then, in the background,
 * the run is taken out of allocation, punched on the data device and put back.  A crash or
 * an abort in between loses nothing but the punch.
 */
#define LOG_MODULE "pool"
#include "pool/request.h"

#include <errno.h>
#include <stdlib.h>

#include "util/log.h"

#define NR_PASSDOWNS 8   /* punches at a time: enough for a disk, few enough to stay behind I/O */
#define SKIP_LOOKUPS 256 /* of one request in a row */
#define UNMAP_SLICE 1024 /* mappings removed by one call, which holds meta_root */
#define UNMAP_BLOCKS_PER_FREE 8 /* mappings removed by one call for each free metadata block */

struct passdown {
	struct io_request io;
	struct pool *pool;
	struct freed_run run;
	uint64_t epoch;
	bool busy;
	struct work work;
};

/* ------------------------------------------------------------------ unmapping */

void range_request_skip(struct pool *pool, struct request *req)
{
	struct pool_io *io = request_io(req);
	bool allocate = io->op == POOL_ALLOCATE;

	for (unsigned n = 0; n < SKIP_LOOKUPS && req->pos < req->end; n++) {
		vblock_t vblock = pool_block_of(pool, req->pos);
		uint64_t max = pool_block_of(pool, req->end - 1) + 1 - vblock;
		struct thin_run run;
		mblock_t missing;

		/* What cannot be told now is found out by the segment. */
		if (thin_try_find_run(io->volume->td, vblock, max, &run, &missing))
			return;
		if (allocate ? !run.mapped || run.shared : run.mapped)
			return;
		req->pos = MIN(req->end, (vblock + run.nr_blocks) * pool->block_size);
	}
}

/*
 * Removing copies nodes, a few for each leaf and each bitmap that it touches: what one step takes
 * must fit into what is left of metadata, with room for the commit.
 */
static uint64_t unmap_limit(struct pool *pool, uint64_t max_blocks)
{
	struct thin_metadata_info info;

	if (thin_metadata_get_info(pool->tmd, &info))
		return 1; /* the change itself will say why */
	return MIN(max_blocks,
		   1 + (info.nr_metadata_free + info.metadata_reserve) * UNMAP_BLOCKS_PER_FREE);
}

static int unmap_some(struct pool *pool, struct volume *v, vblock_t begin, vblock_t end,
		      uint64_t max_blocks, vblock_t *ret_next)
{
	int r = pool_check_writable(pool);

	if (r)
		return r;
	r = thin_remove_range(v->td, begin, end, unmap_limit(pool, max_blocks), ret_next);
	if (r)
		return pool_metadata_failed(pool, "unmap a range", r);
	/* Removing copies nodes: it may not eat the reserve that the commit needs. */
	return pool_metadata_is_low(pool) && pool_is_dirty(pool) ? pool_commit_now(pool) : 0;
}

int unmap_blocks(struct pool *pool, struct segment *seg, vblock_t begin, vblock_t end)
{
	int r = 0;

	while (begin < end && !r)
		r = unmap_some(pool, segment_volume(seg), begin, end, UNMAP_SLICE, &begin);
	return r;
}

int pool_unmap_slice(struct pool *pool, struct volume *v, vblock_t begin, vblock_t end,
		     uint64_t max_blocks, vblock_t *ret_next)
{
	return unmap_some(pool, v, begin, end, max_blocks, ret_next);
}

/* ------------------------------------------------------------------ passing down */

static void note_freed(void *ctx, dblock_t begin, dblock_t end)
{
	struct pool *pool = ctx;
	struct worker *w = pool->worker;

	if (w->nr_freed > w->next_freed && w->freed[w->nr_freed - 1].end == begin) {
		w->freed[w->nr_freed - 1].end = end;
		return;
	}
	if (w->nr_freed == w->freed_capacity) {
		size_t capacity = w->freed_capacity ? 2 * w->freed_capacity : 1024;
		struct freed_run *more = realloc(w->freed, capacity * sizeof(*more));

		if (!more) {
			log_err_limited("no memory to pass down data blocks %llu to %llu: they "
					"cannot be used again before the pool is reopened",
					(unsigned long long)begin, (unsigned long long)end);
			return;
		}
		w->freed = more;
		w->freed_capacity = capacity;
	}
	w->freed[w->nr_freed++] = (struct freed_run){ begin, end };
}

void passdown_collect(struct pool *pool)
{
	bool pass = pool->options.discard == POOL_DISCARD_PASSDOWN;

	thin_metadata_take_freed(pool->tmd, pass ? note_freed : NULL, pool);
}

/* The run is allocatable again, unless an abort has made it so already. */
static void put_back(struct pool *pool, const struct freed_run *run, uint64_t epoch)
{
	if (epoch != pool->worker->epoch)
		return;
	thin_metadata_unreserve_data_blocks(pool->tmd, run->begin, run->end);
	low_space_retry(pool);
}

static void passdown_end(struct pool *pool, struct work *work)
{
	struct passdown *p = container_of(work, struct passdown, work);

	p->busy = false;
	pool->worker->passdowns_in_flight--;
	put_back(pool, &p->run, p->epoch);
}

static void passdown_done(struct io_request *io, int r)
{
	struct passdown *p = container_of(io, struct passdown, io);

	if (!r)
		stats_add(p->pool->stats, p->pool->worker, STAT_PASSED_DOWN_BYTES, io->length);
	worker_push(p->pool, &p->work); /* the space is free, punched or not */
}

static void passdown_start(struct pool *pool, struct passdown *p, const struct freed_run *run)
{
	struct io_request *io = &p->io;

	p->run = *run;
	p->epoch = pool->worker->epoch;
	p->busy = true;
	io->device = pool->data;
	io->op = IO_DISCARD;
	io->offset = run->begin * pool->block_size;
	io->length = (run->end - run->begin) * pool->block_size;
	io->done = passdown_done;
	pool->worker->passdowns_in_flight++;
	io_queue_submit(pool->worker->q, io);
}

void passdown_run(struct pool *pool)
{
	struct worker *w = pool->worker;

	for (unsigned i = 0; i < NR_PASSDOWNS && w->next_freed < w->nr_freed; i++)
		if (!w->passdowns[i].busy)
			passdown_start(pool, &w->passdowns[i], &w->freed[w->next_freed++]);
	if (w->next_freed == w->nr_freed)
		w->next_freed = w->nr_freed = 0;
}

bool passdown_busy(const struct pool *pool)
{
	return pool->worker->passdowns_in_flight || pool->worker->nr_freed;
}

/* What has not been started is forgotten: after an abort, or when closing takes too long. */
void passdown_drop(struct pool *pool)
{
	pool->worker->next_freed = pool->worker->nr_freed = 0;
}

int passdown_create(struct pool *pool)
{
	struct worker *w = pool->worker;

	w->passdowns = calloc(NR_PASSDOWNS, sizeof(*w->passdowns));
	if (!w->passdowns)
		return -ENOMEM;
	for (unsigned i = 0; i < NR_PASSDOWNS; i++) {
		w->passdowns[i].pool = pool;
		w->passdowns[i].work.run = passdown_end;
	}
	return 0;
}

void passdown_destroy(struct pool *pool)
{
	free(pool->worker->passdowns);
	free(pool->worker->freed);
}
