/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * job.c - moving the data of a job: edges, gaps, bounces
 *
 * Worker only.  A job writes bytes [begin, end) of a few blocks that follow each other on the
 * data device.  Three things can make that more than one I/O:
 *
 *   edges  begin or end is not aligned as the device wants it: the sector there is read
 *          from the old block (or is zeros) and written back with the job's bytes in it;
 *          nobody else touches it meanwhile, because the cell is held exclusively;
 *   gaps   the blocks are new: what lies before and behind the aligned part is zeros or a
 *          copy of the old block;
 *   bounce the buffer is not congruent to the offset: its bytes are copied piece by piece.
 *
 *        block                  begin              end                   block
 *          |--------- gap --------|--|==============|--|------- gap ------|
 *                                edge     middle     edge
 *
 * Zeros of a moderate length, edges and middle go out as one vectored write.
 *
 * A job is a chain of phases: each starts some I/O and names the next; the pump runs the next
 * one when nothing is pending (W4).
 */
#include "pool/request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define NR_JOBS 256
#define ZEROS_BYTES (256u << 10) /* longer gaps are zeroed by the device or by the copier */
#define BOUNCE_BYTES (128u << 10)
#define COPY_BUFFER_BYTES (256u << 10)
#define NR_COPY_BUFFERS 8

struct layout {
	uint64_t block_begin, block_end;     /* of all the job's blocks */
	uint64_t aligned_begin, aligned_end; /* what is written on behalf of the request */
	uint64_t middle_begin, middle_end;   /* without the edges */
	bool head_edge, tail_edge;           /* one sector with both ends is a head */
};

static struct layout layout_of(const struct job *job)
{
	uint64_t align = job->pool->alignment, mask = align - 1;
	struct layout l = {
		.block_begin = job->vblock * job->pool->block_size,
		.block_end = (job->vblock + job->nr_blocks) * job->pool->block_size,
		.aligned_begin = job->begin & ~mask,
		.aligned_end = (job->end + mask) & ~mask,
	};

	l.head_edge = job->begin & mask;
	l.tail_edge =
		(job->end & mask) && !(l.head_edge && l.aligned_end == l.aligned_begin + align);
	l.middle_begin = l.aligned_begin + (l.head_edge ? align : 0);
	l.middle_end = l.aligned_end - (l.tail_edge ? align : 0);
	return l;
}

/* Where byte @offset of the volume is in the run of data blocks that starts at @dblock. */
static uint64_t device_offset(const struct job *job, dblock_t dblock, uint64_t offset)
{
	uint64_t size = job->pool->block_size;

	return dblock * size + (offset - job->vblock * size);
}

/* ------------------------------------------------------------------ phases */

static void job_advance(struct pool *pool, struct work *work)
{
	struct job *job = container_of(work, struct job, work);

	(void)pool;
	job->next(job);
}

static void part_done(struct job *job, int r)
{
	if (r < 0 && !job->result)
		job->result = r;
	if (!--job->pending)
		worker_push(job->pool, &job->work);
}

static void job_io_done(struct io_request *io, int r)
{
	struct job *job = container_of(io, struct job_io, io)->job;

	if (unlikely(r))
		data_error(job->pool, io, r);
	part_done(job, r);
}

static void job_copy_done(struct copy_job *copy, int r)
{
	struct job *job = container_of(copy, struct job_copy, copy)->job;
	const struct io_request io = { .op = IO_WRITE, .offset = copy->to, .length = copy->length };

	/* Or what it is a copy of cannot be read. */
	if (unlikely(r))
		data_error(job->pool, &io, r);
	part_done(job, r);
}

static void submit_io(struct job *job, unsigned slot, enum io_op op, uint64_t offset)
{
	struct io_request *io = &job->io[slot].io;

	io->device = job->pool->data;
	io->op = op;
	io->offset = offset;
	io->done = job_io_done;
	job->pending++;
	io_queue_submit(job->pool->worker->q, io);
}

static void submit_buffer(struct job *job, unsigned slot, enum io_op op, uint64_t offset,
			  void *buffer, uint64_t length)
{
	io_request_set_buffer(&job->io[slot].io, buffer, length);
	submit_io(job, slot, op, offset);
}

/* Bytes [begin, end) of the volume in the new blocks become zeros, or those of the old block. */
static void fill(struct job *job, unsigned slot, uint64_t begin, uint64_t end, bool zeros)
{
	struct copy_job *copy = &job->copies[slot].copy;

	if (begin == end)
		return;
	copy->device = job->pool->data;
	copy->to = device_offset(job, job->dblock, begin);
	copy->length = end - begin;
	copy->done = job_copy_done;
	job->pending++;
	if (zeros) {
		copier_zero(job->pool->worker->copier, copy);
	} else {
		copy->from = device_offset(job, job->old, begin);
		copier_copy(job->pool->worker->copier, copy);
	}
}

static void job_done(struct job *job)
{
	struct worker *w = job->pool->worker;
	struct job *waiter;

	if (job->bounce) {
		w->free_bounces[w->nr_free_bounces++] = job->bounce;
		job->bounce = NULL;
		waiter = STAILQ_FIRST(&w->bounce_waiters);
		if (waiter) {
			STAILQ_REMOVE_HEAD(&w->bounce_waiters, link);
			worker_push(job->pool, &waiter->work);
		}
	}
	STAILQ_INSERT_TAIL(&w->prepared, job, link);
}

/* False: there is none free, and the job comes back to the same phase when there is. */
static bool take_bounce(struct job *job, void (*phase)(struct job *))
{
	struct worker *w = job->pool->worker;

	if (job->bounce)
		return true;
	if (!w->nr_free_bounces) {
		job->next = phase;
		STAILQ_INSERT_TAIL(&w->bounce_waiters, job, link);
		return false;
	}
	job->bounce = w->free_bounces[--w->nr_free_bounces];
	return true;
}

/* ------------------------------------------------------------------ unaligned reads */

static void bounce_read(struct job *job);

static void bounce_copy_out(struct job *job)
{
	struct layout l = layout_of(job);
	uint64_t end = MIN(job->chunk + BOUNCE_BYTES, l.aligned_end);
	uint64_t from = MAX(job->chunk, job->begin), to = MIN(end, job->end);

	if (!job->result)
		memcpy(job->data + (from - job->begin), job->bounce + (from - job->chunk),
		       to - from);
	job->chunk = end;
	bounce_read(job);
}

static void bounce_read(struct job *job)
{
	struct layout l = layout_of(job);

	if (!take_bounce(job, bounce_read))
		return;
	if (job->chunk == l.aligned_end || job->result) {
		job_done(job);
		return;
	}
	job->next = bounce_copy_out;
	submit_buffer(job, 0, IO_READ, device_offset(job, job->dblock, job->chunk), job->bounce,
		      MIN(BOUNCE_BYTES, l.aligned_end - job->chunk));
}

/* ------------------------------------------------------------------ writes */

static void bounce_write(struct job *job)
{
	struct layout l = layout_of(job);
	uint64_t align = job->pool->alignment, begin, end, from, to;

	if (job->result) {
		job_done(job);
		return;
	}
	if (!take_bounce(job, bounce_write))
		return;
	begin = job->chunk;
	if (begin == l.aligned_end) {
		job_done(job);
		return;
	}
	end = MIN(begin + BOUNCE_BYTES, l.aligned_end);
	if (l.head_edge && begin == l.aligned_begin)
		memcpy(job->bounce, job->edges, align);
	if (l.tail_edge && end == l.aligned_end)
		memcpy(job->bounce + (end - align - begin), job->edges + JOB_EDGE_BYTES, align);
	from = MAX(begin, l.middle_begin);
	to = MIN(end, l.middle_end);
	if (from < to)
		memcpy(job->bounce + (from - begin), job->data + (from - job->begin), to - from);
	job->chunk = end;
	job->next = bounce_write;
	submit_buffer(job, 0, IO_WRITE, device_offset(job, job->dblock, begin), job->bounce,
		      end - begin);
}

static void add_iov(struct job *job, void *base, uint64_t length)
{
	struct io_request *io = &job->io[0].io;

	if (!length)
		return;
	job->iov[io->nr_iov].iov_base = base;
	job->iov[io->nr_iov++].iov_len = length;
	io->length += length;
}

/* One vectored write of edges and middle, with the zeros around them where @begin, @end say so. */
static void write_vector(struct job *job, const struct layout *l, uint64_t begin, uint64_t end)
{
	uint64_t align = job->pool->alignment;
	uint8_t *zeros = job->pool->worker->zeros;
	struct io_request *io = &job->io[0].io;

	io->iov = job->iov;
	io->nr_iov = 0;
	io->length = 0;
	add_iov(job, zeros, l->aligned_begin - begin);
	add_iov(job, job->edges, l->head_edge ? align : 0);
	add_iov(job, job->data ? job->data + (l->middle_begin - job->begin) : zeros,
		l->middle_end - l->middle_begin);
	add_iov(job, job->edges + JOB_EDGE_BYTES, l->tail_edge ? align : 0);
	add_iov(job, zeros, end - l->aligned_end);
	if (io->length)
		submit_io(job, 0, IO_WRITE, device_offset(job, job->dblock, begin));
}

/* Zeros too long for the buffer of zeros: the edges are written on their own. */
static void write_long_zeros(struct job *job, const struct layout *l)
{
	uint64_t align = job->pool->alignment;

	if (l->head_edge)
		submit_buffer(job, 0, IO_WRITE, device_offset(job, job->dblock, l->aligned_begin),
			      job->edges, align);
	if (l->tail_edge)
		submit_buffer(job, 1, IO_WRITE, device_offset(job, job->dblock, l->middle_end),
			      job->edges + JOB_EDGE_BYTES, align);
	fill(job, 2, l->middle_begin, l->middle_end, true);
}

/* The request's bytes take their place in the edges. */
static void overlay(struct job *job, uint8_t *edge, uint64_t edge_begin)
{
	uint64_t from = MAX(edge_begin, job->begin);
	uint64_t to = MIN(edge_begin + job->pool->alignment, job->end);

	if (job->data)
		memcpy(edge + (from - edge_begin), job->data + (from - job->begin), to - from);
	else
		memset(edge + (from - edge_begin), 0, to - from);
}

static void write_data(struct job *job)
{
	uint64_t align = job->pool->alignment, begin, end;
	struct layout l = layout_of(job);
	bool zeros = !job->old_is_block, direct;

	if (job->result) {
		job_done(job);
		return;
	}
	if (l.head_edge)
		overlay(job, job->edges, l.aligned_begin);
	if (l.tail_edge)
		overlay(job, job->edges + JOB_EDGE_BYTES, l.middle_end);

	direct = job->data ? !(((uintptr_t)job->data - job->begin) & (align - 1))
			   : l.middle_end - l.middle_begin <= ZEROS_BYTES;
	begin = l.aligned_begin;
	end = l.aligned_end;
	job->next = job_done;
	job->pending++; /* until all is started */
	if (job->fill && direct && zeros && begin - l.block_begin <= ZEROS_BYTES)
		begin = l.block_begin;
	else if (job->fill)
		fill(job, 0, l.block_begin, begin, zeros);
	if (job->fill && direct && zeros && l.block_end - end <= ZEROS_BYTES)
		end = l.block_end;
	else if (job->fill)
		fill(job, 1, end, l.block_end, zeros);

	if (direct)
		write_vector(job, &l, begin, end);
	else if (!job->data)
		write_long_zeros(job, &l);
	else
		job->next = bounce_write;
	part_done(job, 0);
}

static void read_edge(struct job *job, unsigned slot, uint64_t offset)
{
	uint8_t *edge = job->edges + slot * JOB_EDGE_BYTES;

	if (job->old_is_block)
		submit_buffer(job, slot, IO_READ, device_offset(job, job->old, offset), edge,
			      job->pool->alignment);
	else
		memset(edge, 0, job->pool->alignment);
}

void job_start(struct job *job)
{
	struct layout l = layout_of(job);

	job->pending = 0;
	job->result = 0;
	job->chunk = l.aligned_begin;
	if (l.head_edge || l.tail_edge || job->reads)
		stats_add(job->pool->stats, job->pool->worker, STAT_UNALIGNED, 1);
	if (job->reads) {
		bounce_read(job);
		return;
	}
	job->pending++;
	if (l.head_edge)
		read_edge(job, 0, l.aligned_begin);
	if (l.tail_edge)
		read_edge(job, 1, l.middle_end);
	if (--job->pending)
		job->next = write_data;
	else
		write_data(job);
}

/* ------------------------------------------------------------------ memory */

int jobs_create(struct pool *pool)
{
	struct worker *w = pool->worker;

	w->jobs = calloc(NR_JOBS, sizeof(*w->jobs));
	w->edges = io_buffer_alloc((uint64_t)NR_JOBS * 2 * JOB_EDGE_BYTES);
	w->bounces = io_buffer_alloc((uint64_t)NR_BOUNCES * BOUNCE_BYTES);
	w->zeros = io_buffer_alloc(ZEROS_BYTES);
	if (!w->jobs || !w->edges || !w->bounces || !w->zeros)
		return -ENOMEM;
	memset(w->zeros, 0, ZEROS_BYTES);
	for (unsigned i = 0; i < NR_BOUNCES; i++)
		w->free_bounces[w->nr_free_bounces++] = w->bounces + (size_t)i * BOUNCE_BYTES;
	for (unsigned i = 0; i < NR_JOBS; i++) {
		struct job *job = &w->jobs[i];

		job->pool = pool;
		job->edges = w->edges + (size_t)i * 2 * JOB_EDGE_BYTES;
		job->work.run = job_advance;
		for (unsigned j = 0; j < ARRAY_SIZE(job->io); j++)
			job->io[j].job = job;
		for (unsigned j = 0; j < ARRAY_SIZE(job->copies); j++)
			job->copies[j].job = job;
		STAILQ_INSERT_TAIL(&w->free_jobs, job, link);
	}
	return copier_create(w->q, COPY_BUFFER_BYTES, NR_COPY_BUFFERS, &w->copier);
}

void jobs_destroy(struct pool *pool)
{
	struct worker *w = pool->worker;

	w->copier = copier_destroy(w->copier);
	free(w->jobs);
	free(w->edges);
	free(w->bounces);
	free(w->zeros);
}
