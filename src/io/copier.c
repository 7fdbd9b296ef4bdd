/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * copier.c - copy and zero ranges, in pieces of a fixed set of buffers
 *
 * A job is cut into pieces of one buffer.  Pieces of one job, and of the jobs after
 * it, are in flight at the same time, as many as there are buffers; jobs are begun
 * in the order they came.  A copied piece is read, then written from the same
 * buffer.  Zeroing needs no memory of its own: it borrows a piece as the place to
 * keep the request.
 *
 * Invariants
 *   C1  finished <= submitted <= length for each job; a job is queued exactly
 *       while submitted < length and nothing of it has failed.
 *   C2  a job ends when it is not queued and finished == submitted.
 *   C3  done() is the last thing a callback does here, so it may start new jobs or
 *       destroy the copier.
 */
#include "io/copier.h"

#include <errno.h>
#include <stdlib.h>

struct piece {
	struct io_request io;
	struct copier *copier;
	struct copy_job *job;
	uint64_t to;
	void *buffer;
	STAILQ_ENTRY(piece) link;
};

struct copier {
	struct io_queue *q;
	uint64_t buffer_bytes;
	unsigned nr_pieces;
	STAILQ_HEAD(, piece) free;
	STAILQ_HEAD(, copy_job) jobs;
	struct piece pieces[];
};

static void pump(struct copier *c);

/* ----------------------------------------------------------------- one piece */

static void job_failed(struct copier *c, struct copy_job *job, int r)
{
	if (!job->result)
		job->result = r;
	if (job->queued)
		STAILQ_REMOVE(&c->jobs, job, copy_job, link);
	job->queued = false;
}

static void piece_ended(struct piece *p, uint64_t length, int r)
{
	struct copier *c = p->copier;
	struct copy_job *job = p->job;
	bool ended;

	job->finished += length;
	if (r)
		job_failed(c, job, r);
	ended = !job->queued && job->finished == job->submitted;
	STAILQ_INSERT_HEAD(&c->free, p, link);
	pump(c);
	if (ended)
		job->done(job, job->result);
}

static void last_done(struct io_request *io, int r)
{
	piece_ended(container_of(io, struct piece, io), io->length, r);
}

static void read_done(struct io_request *io, int r)
{
	struct piece *p = container_of(io, struct piece, io);

	/* The rest of the job has failed: spare the write. */
	if (!r)
		r = p->job->result;
	if (r) {
		piece_ended(p, io->length, r);
		return;
	}
	io->op = IO_WRITE;
	io->offset = p->to;
	io->done = last_done;
	io_queue_submit(p->copier->q, io);
}

static void piece_start(struct piece *p, struct copy_job *job)
{
	struct io_request *io = &p->io;
	uint64_t at = job->submitted, left = job->length - at;

	p->job = job;
	io->device = job->device;
	if (job->zero) {
		io->op = IO_ZERO;
		io->offset = job->to;
		io->length = left;
		io->done = last_done;
	} else {
		io->op = IO_READ;
		io->offset = job->from + at;
		p->to = job->to + at;
		io_request_set_buffer(io, p->buffer, MIN(left, p->copier->buffer_bytes));
		io->done = read_done;
	}
	job->submitted += io->length;
	io_queue_submit(p->copier->q, io);
}

/* Begin what there are buffers for. */
static void pump(struct copier *c)
{
	struct copy_job *job;
	struct piece *p;

	while ((job = STAILQ_FIRST(&c->jobs)) && (p = STAILQ_FIRST(&c->free))) {
		STAILQ_REMOVE_HEAD(&c->free, link);
		piece_start(p, job);
		if (job->submitted < job->length)
			continue;
		STAILQ_REMOVE_HEAD(&c->jobs, link);
		job->queued = false;
	}
}

/* ---------------------------------------------------------------------- jobs */

static void job_start(struct copier *c, struct copy_job *job, bool zero)
{
	job->zero = zero;
	job->submitted = job->finished = 0;
	job->result = 0;
	job->queued = true;
	STAILQ_INSERT_TAIL(&c->jobs, job, link);
	pump(c);
}

void copier_copy(struct copier *c, struct copy_job *job)
{
	job_start(c, job, false);
}

void copier_zero(struct copier *c, struct copy_job *job)
{
	job_start(c, job, true);
}

/* ------------------------------------------------------- create and destroy */

static int pieces_init(struct copier *c)
{
	for (unsigned i = 0; i < c->nr_pieces; i++) {
		struct piece *p = &c->pieces[i];

		p->copier = c;
		p->buffer = io_buffer_alloc(c->buffer_bytes);
		if (!p->buffer)
			return -ENOMEM;
		STAILQ_INSERT_TAIL(&c->free, p, link);
	}
	return 0;
}

int copier_create(struct io_queue *q, uint64_t buffer_bytes, unsigned nr_buffers,
		  struct copier **ret_copier)
{
	struct copier *c;
	int r;

	if (!nr_buffers || !buffer_bytes || buffer_bytes % 4096)
		return -EINVAL;
	c = calloc(1, sizeof(*c) + nr_buffers * sizeof(c->pieces[0]));
	if (!c)
		return -ENOMEM;
	c->q = q;
	c->buffer_bytes = buffer_bytes;
	c->nr_pieces = nr_buffers;
	STAILQ_INIT(&c->free);
	STAILQ_INIT(&c->jobs);
	r = pieces_init(c);
	if (r) {
		copier_destroy(c);
		return r;
	}
	*ret_copier = c;
	return 0;
}

struct copier *copier_destroy(struct copier *c)
{
	if (!c)
		return NULL;
	for (unsigned i = 0; i < c->nr_pieces; i++)
		free(c->pieces[i].buffer);
	free(c);
	return NULL;
}
