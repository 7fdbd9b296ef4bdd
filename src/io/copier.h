/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * copier.h - copy and zero ranges of a device without blocking
 *
 * Layer:    io.
 * Threads:  a copier belongs to the thread whose queue it was made with.
 * Units:    bytes; offsets and lengths are multiples of io_device_alignment().
 * Errors:   told to the job's @done: 0 or the first negative errno; what was copied till then
 *           stays.
 * Memory:   all buffers are allocated at creation; jobs beyond them wait inside.
 */
#ifndef TP_IO_COPIER_H
#define TP_IO_COPIER_H

#include "io/device.h"

struct copier;

int copier_create(struct io_queue *q, uint64_t buffer_bytes, unsigned nr_buffers,
		  struct copier **ret_copier) TP_MUST_CHECK;
/* No job may be running.  NULL is allowed.  Returns NULL. */
struct copier *copier_destroy(struct copier *c);

/* Embedded in the caller's structure; @done is called once, out of io_queue_run(). */
struct copy_job {
	struct io_device *device;
	uint64_t from, to, length; /* bytes */
	void (*done)(struct copy_job *job, int r);
	/* private to io/ */
	uint64_t submitted, finished;
	bool zero, queued;
	int result;
	STAILQ_ENTRY(copy_job) link;
};

/* Copy [from, from + length) to [to, to + length) of one device; the ranges do not overlap. */
void copier_copy(struct copier *c, struct copy_job *job);

/* Write zeros to [to, to + length). */
void copier_zero(struct copier *c, struct copy_job *job);

#endif
