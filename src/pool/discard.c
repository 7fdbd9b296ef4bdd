/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * discard.c - blocks that lose their mapping, and what becomes of their space
 *
 * Worker only.  Unmapping happens under an exclusive cell, so no I/O on the blocks is in
 * flight.  A block whose last user went is free after the commit; then, in the background,
 * the run is taken out of allocation, punched on the data device and put back.  A crash or
 * an abort in between loses nothing but the punch.  A trim does the same with every run that
 * is free already.
 */
#define LOG_MODULE "pool"
#include "pool/request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util/log.h"

#define NR_PASSDOWNS 8   /* punches at a time: enough for a disk, few enough to stay behind I/O */
#define SKIP_LOOKUPS 256 /* of one request in a row */
/*
 * What a trim keeps from being allocated counts as used meanwhile: few enough of the free blocks
 * that nobody is told that space is low.
 */
#define TRIM_SLICE_BYTES (UINT64_C(1) << 30)
#define TRIM_SLICE_PART 128     /* of what is free, for each of NR_PASSDOWNS */
#define UNMAP_SLICE 1024        /* mappings removed by one call, which holds meta_root */
#define UNMAP_BLOCKS_PER_FREE 8 /* mappings removed by one call for each free metadata block */

struct passdown {
	struct io_request io;
	struct pool *pool;
	struct freed_run run;
	uint64_t epoch;
	bool busy, trims; /* trims: for the first of worker->trims */
	int result;
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
		      uint64_t max_blocks, bool record, vblock_t *ret_next)
{
	int r = pool_check_writable(pool);

	if (!r && record)
		r = pool_redo_make_room(pool);
	if (r)
		return r;
	r = thin_remove_range(v->td, begin, end, unmap_limit(pool, max_blocks), ret_next);
	if (r)
		return pool_metadata_failed(pool, "unmap a range", r);
	if (record)
		pool_redo_unmap(v, begin, *ret_next);
	/* Removing copies nodes: it may not eat the reserve that the commit needs. */
	return pool_metadata_is_low(pool) && pool_is_dirty(pool) ? pool_commit_now(pool) : 0;
}

int unmap_blocks(struct pool *pool, struct segment *seg, vblock_t begin, vblock_t end)
{
	bool record = !seg->request->past_gate; /* what a command does is done when it commits */
	int r = 0;

	while (begin < end && !r)
		r = unmap_some(pool, segment_volume(seg), begin, end, UNMAP_SLICE, record, &begin);
	return r;
}

int pool_unmap_slice(struct pool *pool, struct volume *v, vblock_t begin, vblock_t end,
		     uint64_t max_blocks, vblock_t *ret_next)
{
	return unmap_some(pool, v, begin, end, max_blocks, false, ret_next);
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

/* The first trim has punched a run, or could not. */
static void trim_count(struct pool *pool, const struct passdown *p)
{
	struct worker *w = pool->worker;
	struct pool_command *cmd = STAILQ_FIRST(&w->trims);

	w->trims_in_flight--;
	if (!p->result) {
		cmd->size_bytes += p->io.length;
		return;
	}
	w->trim_next = UINT64_MAX;
	cmd->result = tp_error(&cmd->error, p->result, "the data device cannot discard: %s",
			       strerror(-p->result));
}

/* The run is allocatable again, unless an abort has made it so already. */
static void put_back(struct pool *pool, const struct freed_run *run, uint64_t epoch)
{
	if (epoch != pool->epoch)
		return;
	thin_metadata_unreserve_data_blocks(pool->tmd, run->begin, run->end);
	if (pool->mode == POOL_MODE_OUT_OF_DATA_SPACE)
		pool_refresh_info(pool, false); /* before who waits has taken it all */
	low_space_retry(pool);
}

static void passdown_end(struct pool *pool, struct work *work)
{
	struct passdown *p = container_of(work, struct passdown, work);

	p->busy = false;
	pool->worker->passdowns_in_flight--;
	put_back(pool, &p->run, p->epoch);
	if (p->trims)
		trim_count(pool, p);
}

static void passdown_done(struct io_request *io, int r)
{
	struct passdown *p = container_of(io, struct passdown, io);

	p->result = r;
	if (!r)
		stats_add(p->pool->stats, p->pool->worker, STAT_PASSED_DOWN_BYTES, io->length);
	worker_push(p->pool, &p->work); /* the space is free, punched or not */
}

static void passdown_start(struct pool *pool, struct passdown *p, const struct freed_run *run,
			   bool trims)
{
	struct io_request *io = &p->io;

	p->run = *run;
	p->epoch = pool->epoch;
	p->busy = true;
	p->trims = trims;
	io->device = pool->data;
	io->op = IO_DISCARD;
	io->offset = run->begin * pool->block_size;
	io->length = (run->end - run->begin) * pool->block_size;
	io->done = passdown_done;
	pool->worker->passdowns_in_flight++;
	io_queue_submit(pool->worker->q, io);
}

/* ------------------------------------------------------------------ trim */

/*
 * A run at a time for each punch that is idle, so that what was freed meanwhile is not kept
 * waiting, and most of the free space can be allocated.
 */
static int trim_start(struct pool *pool, struct passdown *p)
{
	struct worker *w = pool->worker;
	struct thin_metadata_info info;
	struct freed_run run;
	uint64_t max_blocks;
	int r;

	if (atomic_load(&pool->never_wait))
		return tp_error(&STAILQ_FIRST(&w->trims)->error, -ECANCELED,
				"the daemon is stopping, not all was trimmed");
	/* What is free is not certain any more when metadata has failed, and a punch is for good.
	 */
	r = pool_check_writable(pool);
	if (!r)
		r = thin_metadata_get_info(pool->tmd, &info);
	if (r)
		return r;
	max_blocks = MIN(TRIM_SLICE_BYTES / pool->block_size, info.nr_data_free / TRIM_SLICE_PART);
	max_blocks = MAX(max_blocks, 1);
	r = thin_metadata_reserve_free_run(pool->tmd, w->trim_next, max_blocks, &run.begin,
					   &run.end);
	if (r && r != -ENODATA)
		return pool_query_failed(pool, "look for free data blocks", r);
	if (r)
		return r;
	w->trim_next = run.end;
	w->trims_in_flight++;
	passdown_start(pool, p, &run, true);
	return 0;
}

/* Give the trim that is under way idle punches; answer it when it is over, and begin the next. */
static void trim_run(struct pool *pool)
{
	struct worker *w = pool->worker;
	struct pool_command *cmd = STAILQ_FIRST(&w->trims);
	int r = 0;

	for (unsigned i = 0; i < NR_PASSDOWNS && w->trim_next != UINT64_MAX; i++) {
		if (w->passdowns[i].busy)
			continue;
		r = trim_start(pool, &w->passdowns[i]);
		if (r)
			w->trim_next = UINT64_MAX;
		if (r && r != -ENODATA)
			cmd->result = r;
	}
	if (w->trim_next != UINT64_MAX || w->trims_in_flight)
		return;
	STAILQ_REMOVE_HEAD(&w->trims, link);
	w->trim_next = 0;
	w->again = true;                /* the answer leaves in a pass */
	pool_refresh_info(pool, false); /* who asks now shall not see what was kept back */
	pool_answer_command(pool, cmd, cmd->result);
}

int trim_begin(struct pool *pool, struct pool_command *cmd)
{
	int r = pool_check_writable(pool);

	if (r)
		return pool_refuse_command(pool, cmd, r);
	/* What was freed but not committed is not free yet. */
	if (pool_is_dirty(pool))
		r = pool_commit_now(pool);
	if (r)
		return r;
	cmd->size_bytes = 0;
	cmd->result = 0;
	STAILQ_INSERT_TAIL(&pool->worker->trims, cmd, link);
	return -EINPROGRESS;
}

/* ------------------------------------------------------------------ in the background */

void passdown_run(struct pool *pool)
{
	struct worker *w = pool->worker;

	for (unsigned i = 0; i < NR_PASSDOWNS && w->next_freed < w->nr_freed; i++)
		if (!w->passdowns[i].busy)
			passdown_start(pool, &w->passdowns[i], &w->freed[w->next_freed++], false);
	if (w->next_freed == w->nr_freed)
		w->next_freed = w->nr_freed = 0;
	if (!STAILQ_EMPTY(&w->trims))
		trim_run(pool);
}

bool passdown_busy(const struct pool *pool)
{
	return pool->worker->passdowns_in_flight || pool->worker->nr_freed;
}

uint64_t passdown_blocks(const struct pool *pool)
{
	const struct worker *w = pool->worker;
	uint64_t nr = 0;

	for (unsigned i = 0; i < NR_PASSDOWNS; i++)
		if (w->passdowns[i].busy)
			nr += w->passdowns[i].run.end - w->passdowns[i].run.begin;
	for (size_t i = w->next_freed; i < w->nr_freed; i++)
		nr += w->freed[i].end - w->freed[i].begin;
	return nr;
}

/* What has not been started is forgotten: after an abort, or when closing takes too long. */
void passdown_drop(struct pool *pool)
{
	pool->worker->next_freed = pool->worker->nr_freed = 0;
}

int passdown_create(struct pool *pool)
{
	struct worker *w = pool->worker;

	STAILQ_INIT(&w->trims);
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
