/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * provision.c - exclusive segments: what is written to holes and shared blocks, and punched
 *
 * Worker only.  A segment that holds its cell exclusively is walked from front to back, a run
 * of the mapping at a time; for each run a job is made that writes it (in place, to new
 * blocks, to a copy), several at once.  When a job's data is on the device, its blocks are
 * mapped; then the request is acknowledged.  Durable is the mapping after the next commit.
 *
 * Invariants:
 *   V1  A new block is reserved in memory only until it is mapped: whatever fails in between
 *       leaks nothing (L2: the reservation keeps it from everybody else).
 *   V2  A mapping is inserted after the data that it points at was written (L3: the commit
 *       flushes the data device before it makes the mapping durable).
 *   V3  A block that may be shared is never written in place.  Its count does not tell: a
 *       snapshot shares nodes of the tree above it, and the block counts once for all of
 *       them.  So the first write after a snapshot is gone copies once more, as in dm-thin.
 *   V4  When only the reserve of metadata is left, nothing more is mapped, not even what was
 *       being written already: the jobs under way could need more than there is.
 *   V5  A new mapping is recorded in the redo area before its cell is released: then other
 *       threads write to the block, and answer.
 *   V6  A reservation does not survive an abort: jobs remember the epoch they began in.
 */
#include "pool/request.h"

#include <errno.h>

/* What a step of a segment can come to, besides 0 and an error for the client. */
enum step { STEP_NO_JOB = -EBUSY, STEP_NO_SPACE = -EAGAIN };

/* ------------------------------------------------------------------ jobs */

static struct job *job_new(struct pool *pool, struct segment *seg, vblock_t vblock,
			   uint64_t nr_blocks, dblock_t dblock, uint64_t end)
{
	struct job *job = STAILQ_FIRST(&pool->worker->free_jobs);
	struct pool_io *io = request_io(seg->request);

	STAILQ_REMOVE_HEAD(&pool->worker->free_jobs, link);
	job->seg = seg;
	job->vblock = vblock;
	job->nr_blocks = nr_blocks;
	job->dblock = dblock;
	job->begin = seg->offset;
	job->end = end;
	if (io->op == POOL_ALLOCATE) /* writes nothing of its own */
		job->begin = job->end = vblock * pool->block_size;
	job->data = NULL;
	if (io->op == POOL_READ || io->op == POOL_WRITE)
		job->data = (uint8_t *)io->buffer + (seg->offset - io->offset);
	job->reads = job->insert = job->old_is_block = job->fill = false;
	job->epoch = pool->epoch;
	seg->nr_jobs++;
	seg->offset = end;
	return job;
}

bool jobs_resume_waiters(struct pool *pool)
{
	struct worker *w = pool->worker;
	struct segment *waiter;
	struct job *job;
	bool any = false;

	STAILQ_FOREACH(job, &w->free_jobs, link)
	{
		waiter = STAILQ_FIRST(&w->job_waiters);
		if (!waiter)
			break;
		STAILQ_REMOVE_HEAD(&w->job_waiters, link);
		STAILQ_INSERT_TAIL(&w->todo, waiter, link);
		any = true;
	}
	return any;
}

static void segment_part_done(struct pool *pool, struct segment *seg)
{
	if (--seg->nr_jobs)
		return;
	if (unlikely(seg->redo_offset != UINT64_MAX) && !seg->result) {
		seg->offset = seg->redo_offset;
		seg->redo_offset = UINT64_MAX;
		seg->wants_space = false;
		worker_push(pool, &seg->work);
		return;
	}
	if (seg->wants_space && !seg->result && seg->request->past_gate)
		segment_finish(pool, seg,
			       -ENOSPC); /* the worker waits for it: it cannot wait too */
	else if (seg->wants_space && !seg->result)
		low_space_park(pool, seg);
	else
		segment_finish(pool, seg, seg->result);
}

/* ------------------------------------------------------------------ space */

static int reserve_block(struct pool *pool, dblock_t *ret_block)
{
	struct worker *w = pool->worker;
	int r;

	if (w->stash_full) {
		w->stash_full = false;
		*ret_block = w->stash;
		return 0;
	}
	r = thin_metadata_reserve_data_block(pool->tmd, ret_block);
	if (r == -ENOSPC)
		return STEP_NO_SPACE;
	if (r)
		return pool_metadata_failed(pool, "allocate a data block", r);
	return 0;
}

void release_stash(struct pool *pool)
{
	struct worker *w = pool->worker;

	if (w->stash_full)
		thin_metadata_unreserve_data_blocks(pool->tmd, w->stash, w->stash + 1);
	w->stash_full = false;
}

/* Up to @max blocks that follow each other on the data device. */
static int reserve_run(struct pool *pool, uint64_t max, dblock_t *ret_first, uint64_t *ret_nr)
{
	struct worker *w = pool->worker;
	dblock_t first, next;
	uint64_t nr = 1;
	int r = reserve_block(pool, &first);

	if (r)
		return r;
	for (; nr < max; nr++) {
		r = thin_metadata_reserve_data_block(pool->tmd, &next);
		if (r == -ENOSPC)
			break; /* what there is is enough for a start */
		if (r)
			return pool_metadata_failed(pool, "allocate a data block", r);
		if (next != first + nr) {
			w->stash = next;
			w->stash_full = true;
			break;
		}
	}
	*ret_first = first;
	*ret_nr = nr;
	return 0;
}

/* ------------------------------------------------------------------ steps of a segment */

static int write_in_place(struct pool *pool, struct segment *seg, vblock_t vblock, dblock_t dblock,
			  uint64_t end)
{
	uint64_t nr = pool_block_of(pool, end - 1) + 1 - vblock;
	struct job *job;

	if (STAILQ_EMPTY(&pool->worker->free_jobs))
		return STEP_NO_JOB;
	job = job_new(pool, seg, vblock, nr, dblock, end);
	job->old_is_block = true;
	job->old = dblock;
	job_start(job);
	return 0;
}

/* New blocks for [vblock, ...) up to byte @end.  @old: what they are copies of; NULL: holes. */
static int write_new(struct pool *pool, struct segment *seg, vblock_t vblock, uint64_t end,
		     const dblock_t *old, bool replaces)
{
	uint64_t begin = vblock * pool->block_size, nr = 0, zeroed;
	bool allocate = request_io(seg->request)->op == POOL_ALLOCATE;
	struct job *job;
	dblock_t first = 0;
	int r = pool_check_space(pool);

	if (r)
		return r;
	if (STAILQ_EMPTY(&pool->worker->free_jobs))
		return STEP_NO_JOB;
	r = reserve_run(pool, pool_block_of(pool, end - 1) + 1 - vblock, &first, &nr);
	if (r)
		return r;
	end = MIN(end, begin + nr * pool->block_size);
	job = job_new(pool, seg, vblock, nr, first, end);
	job->insert = true;
	zeroed = nr * pool->block_size - (job->end - job->begin);
	if (old) {
		job->old_is_block = job->fill = true;
		job->old = *old;
	} else if (zeroed && (pool->options.zero_new_blocks || allocate)) {
		job->fill = !io_device_known_zero(pool->data, first * pool->block_size,
						  nr * pool->block_size);
		if (job->fill)
			stats_add(pool->stats, pool->worker, STAT_ZEROED, nr);
	}
	stats_add(pool->stats, pool->worker, replaces ? STAT_BROKEN_SHARING : STAT_PROVISIONED, nr);
	job_start(job);
	return 0;
}

static int break_sharing(struct pool *pool, struct segment *seg, vblock_t vblock, dblock_t old,
			 uint64_t end)
{
	uint64_t begin = vblock * pool->block_size, whole;

	if (request_io(seg->request)->op == POOL_WRITE && seg->offset == begin) {
		whole = pool_block_of(pool, end - begin) * pool->block_size;
		if (whole)
			return write_new(pool, seg, vblock, begin + whole, NULL, true);
	}
	return write_new(pool, seg, vblock, MIN(end, begin + pool->block_size), &old, true);
}

/* Whole blocks are unmapped at once; true: that is done, or has failed. */
static bool punch_whole(struct pool *pool, struct segment *seg, vblock_t vblock, uint64_t end,
			int *ret_r)
{
	uint64_t begin = vblock * pool->block_size, nr, reach = end;

	/* Behind the end of the volume there is nothing that a partial last block could keep. */
	if (end == seg->end && end >= volume_size(segment_volume(seg)))
		reach = end + pool->block_size - 1;
	nr = pool_block_of(pool, reach - begin);
	if (seg->offset != begin || !nr)
		return false;
	*ret_r = unmap_blocks(pool, seg, vblock, vblock + nr);
	if (!*ret_r)
		seg->offset = MIN(end, begin + nr * pool->block_size);
	return true;
}

static int segment_step(struct pool *pool, struct segment *seg, vblock_t vblock,
			const struct thin_run *run)
{
	enum pool_io_op op = request_io(seg->request)->op;
	uint64_t begin = vblock * pool->block_size;
	uint64_t end = MIN(seg->end, begin + run->nr_blocks * pool->block_size);
	bool punch = op == POOL_PUNCH || op == POOL_ZERO;
	int r;

	if ((punch && !run->mapped) || (op == POOL_ALLOCATE && run->mapped && !run->shared)) {
		seg->offset = end;
		return 0;
	}
	if (punch && punch_whole(pool, seg, vblock, end, &r))
		return r;
	if (punch)
		end = MIN(end, begin + pool->block_size);
	if (!run->mapped)
		return write_new(pool, seg, vblock, end, NULL, false);
	if (run->shared)
		return break_sharing(pool, seg, vblock, run->dblock, end);
	return write_in_place(pool, seg, vblock, run->dblock, end);
}

void exclusive_segment_run(struct pool *pool, struct segment *seg)
{
	int r = 0;

	seg->stage = STAGE_HELD;
	if (!seg->nr_jobs)
		seg->nr_jobs = 1; /* ours, until all are started */
	while (!seg->result && !seg->wants_space && seg->offset < seg->end) {
		vblock_t vblock = pool_block_of(pool, seg->offset);
		struct thin_run run;

		r = segment_find(pool, seg, pool->worker->q, vblock,
				 pool_block_of(pool, seg->end - 1) + 1 - vblock, &run);
		if (r == -EINPROGRESS)
			return;
		r = r ? -EIO : segment_step(pool, seg, vblock, &run);
		if (r == STEP_NO_JOB) {
			STAILQ_INSERT_TAIL(&pool->worker->job_waiters, seg, link);
			return;
		}
		if (r == STEP_NO_SPACE)
			seg->wants_space = true;
		else if (r)
			seg->result = r;
	}
	segment_part_done(pool, seg);
}

/* A read whose cell is held and whose place is known, but which the device cannot do as it is. */
void unaligned_read_run(struct pool *pool, struct segment *seg)
{
	uint64_t in_block = seg->offset - seg->cell.begin * pool->block_size;
	dblock_t dblock = pool_block_of(pool, seg->io.offset - in_block);
	struct job *job;

	if (STAILQ_EMPTY(&pool->worker->free_jobs)) {
		STAILQ_INSERT_TAIL(&pool->worker->job_waiters, seg, link);
		return;
	}
	job = job_new(pool, seg, seg->cell.begin, seg->cell.end - seg->cell.begin, dblock,
		      seg->end);
	job->reads = true;
	job_start(job);
}

/* ------------------------------------------------------------------ mapping */

static int map_blocks(struct pool *pool, struct job *job)
{
	struct thin_device *td = segment_volume(job->seg)->td;

	for (uint64_t i = 0; i < job->nr_blocks; i++) {
		int r = thin_insert_block(td, job->vblock + i, job->dblock + i);

		if (r)
			return pool_metadata_failed(pool, "insert a mapping", r);
	}
	pool_redo_insert(segment_volume(job->seg), job->vblock, job->dblock, job->nr_blocks);
	return 0;
}

static void job_finish(struct pool *pool, struct job *job)
{
	struct segment *seg = job->seg;
	int r = job->result;

	if (job->insert && !r)
		r = pool_redo_make_room(pool);
	if (job->insert && !r)
		r = job->epoch == pool->epoch ? pool_check_space(pool) : -EIO;
	if (job->insert && job->epoch != pool->epoch)
		; /* the abort has forgotten the reservation */
	else if (job->insert && r)
		thin_metadata_unreserve_data_blocks(pool->tmd, job->dblock,
						    job->dblock + job->nr_blocks);
	else if (job->insert)
		r = map_blocks(pool, job);
	else if (!r && !job->reads && job->epoch != pool->epoch)
		seg->redo_offset = MIN(seg->redo_offset, job->begin); /* as segment_end_io() does */
	if (r && !seg->result)
		seg->result = r;
	STAILQ_INSERT_HEAD(&pool->worker->free_jobs, job, link);
	segment_part_done(pool, seg);
}

void jobs_finish_prepared(struct pool *pool)
{
	struct worker *w = pool->worker;
	struct job *job;

	while ((job = STAILQ_FIRST(&w->prepared))) {
		bool mapped = job->insert;

		STAILQ_REMOVE_HEAD(&w->prepared, link);
		job_finish(pool, job);
		/* Before the reserve is eaten: the commit needs it. */
		if (mapped && pool_metadata_is_low(pool))
			commit_changes(pool);
		worker_check_pass(pool);
	}
}
