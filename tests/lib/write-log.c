/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * write-log.c - all that several devices were asked to change, in one global order
 *
 * An asynchronous request is carried out through a copy of it (struct passage), whose callback
 * notes the end and makes that of the original; see fault-device.c for why that is sound.  So a
 * write has ended when its submitter knows, not when the inner device was through with it: a
 * flush by somebody who could not know of it does not cover it.
 *
 * Lock: "io", for everything in the log; never held across the inner device or a callback.
 */
#include "write-log.h"

#include <stdlib.h>
#include <string.h>

struct write_log {
	struct tp_lock lock;
	uint64_t clock;
	struct write_log_entry *entries;
	size_t nr, room;
	bool (*keeps)(void *ctx, const struct write_log_entry *e);
	void *keeps_ctx;
};

struct log_device {
	struct io_device base;
	struct io_device *inner;
	struct write_log *log;
	unsigned number;
};

struct passage {
	struct io_request copy;
	struct io_request *io;
	struct write_log *log;
	size_t index;
};

#define NOT_LOGGED SIZE_MAX

static struct log_device *log_device(struct io_device *dev)
{
	return container_of(dev, struct log_device, base);
}

/* ---- the log ---- */

static void *gather(const struct io_request *io)
{
	char *data = malloc(io->length), *at = data;

	TP_INVARIANT(data);
	for (unsigned i = 0; i < io->nr_iov; at += io->iov[i++].iov_len)
		memcpy(at, io->iov[i].iov_base, io->iov[i].iov_len);
	return data;
}

static size_t log_begin(struct write_log *log, struct write_log_entry e,
			const struct io_request *io)
{
	size_t index = NOT_LOGGED;

	if (e.op == IO_READ)
		return index;
	lock_io(&log->lock);
	e.began = ++log->clock;
	if (!log->keeps || log->keeps(log->keeps_ctx, &e)) {
		if (log->nr == log->room) {
			log->room = MAX(1024, log->room * 2);
			log->entries = realloc(log->entries, log->room * sizeof(*log->entries));
			TP_INVARIANT(log->entries);
		}
		if (e.op == IO_WRITE)
			e.data = gather(io);
		index = log->nr++;
		log->entries[index] = e;
	}
	unlock_io(&log->lock);
	return index;
}

static void log_end(struct write_log *log, size_t index)
{
	if (index == NOT_LOGGED)
		return;
	lock_io(&log->lock);
	log->entries[index].ended = ++log->clock;
	unlock_io(&log->lock);
}

static struct write_log_entry entry_of(const struct log_device *d, const struct io_request *io)
{
	return (struct write_log_entry){
		.device = d->number, .op = io->op, .offset = io->offset, .length = io->length
	};
}

/* ---- the device ---- */

static void passage_done(struct io_request *copy, int r)
{
	struct passage *p = container_of(copy, struct passage, copy);
	struct io_request *io = p->io;

	TP_INVARIANT(!r); /* faults go on top of the log, so that it tells what was done */
	log_end(p->log, p->index);
	free(p);
	io->done(io, r);
}

static void log_submit(struct io_device *dev, struct io_queue *q, struct io_request *io)
{
	struct log_device *d = log_device(dev);
	struct passage *p = calloc(1, sizeof(*p));

	TP_INVARIANT(p);
	p->io = io;
	p->log = d->log;
	p->index = log_begin(d->log, entry_of(d, io), io);
	p->copy = *io;
	p->copy.device = d->inner;
	p->copy.done = passage_done;
	/* The vector of one may be inside the original, which stays until it is done. */
	d->inner->ops->submit(d->inner, q, &p->copy);
}

static int log_execute(struct io_device *dev, struct io_request *io)
{
	struct log_device *d = log_device(dev);
	size_t index = log_begin(d->log, entry_of(d, io), io);
	int r = d->inner->ops->execute(d->inner, io);

	TP_INVARIANT(!r);
	log_end(d->log, index);
	return r;
}

static int log_next_data(struct io_device *dev, uint64_t offset, uint64_t *ret_offset)
{
	struct io_device *inner = log_device(dev)->inner;

	return inner->ops->next_data(inner, offset, ret_offset);
}

static int log_resize(struct io_device *dev, uint64_t bytes)
{
	struct log_device *d = log_device(dev);
	size_t index =
		log_begin(d->log,
			  (struct write_log_entry){
				  .device = d->number, .op = WRITE_LOG_GROW, .length = bytes },
			  NULL);
	int r = io_device_resize(d->inner, bytes);

	TP_INVARIANT(!r);
	log_end(d->log, index);
	return r;
}

static int log_allocated(struct io_device *dev, uint64_t *ret_bytes)
{
	return io_device_allocated(log_device(dev)->inner, ret_bytes);
}

static void log_close(struct io_device *dev)
{
	struct log_device *d = log_device(dev);

	io_device_close(d->inner);
	free(d);
}

static const struct io_device_ops log_ops = {
	.submit = log_submit,
	.execute = log_execute,
	.next_data = log_next_data,
	.resize = log_resize,
	.allocated = log_allocated,
	.close = log_close,
};

struct io_device *write_log_wrap(struct write_log *log, unsigned device, struct io_device *inner)
{
	struct log_device *d = calloc(1, sizeof(*d));

	TP_INVARIANT(d);
	d->base = *inner;
	d->base.ops = &log_ops;
	d->inner = inner;
	d->log = log;
	d->number = device;
	return &d->base;
}

/* ---- the test's side ---- */

struct write_log *write_log_create(void)
{
	struct write_log *log = calloc(1, sizeof(*log));

	TP_INVARIANT(log);
	tp_lock_init(&log->lock, LC_io, LOCK_KIND_MUTEX);
	return log;
}

void write_log_destroy(struct write_log *log)
{
	for (size_t i = 0; i < log->nr; i++)
		free(log->entries[i].data);
	free(log->entries);
	tp_lock_destroy(&log->lock);
	free(log);
}

uint64_t write_log_tick(struct write_log *log)
{
	uint64_t now;

	lock_io(&log->lock);
	now = ++log->clock;
	unlock_io(&log->lock);
	return now;
}

void write_log_set_filter(struct write_log *log,
			  bool (*keeps)(void *ctx, const struct write_log_entry *e), void *ctx)
{
	lock_io(&log->lock);
	log->keeps = keeps;
	log->keeps_ctx = ctx;
	unlock_io(&log->lock);
}

const struct write_log_entry *write_log_entries(const struct write_log *log, size_t *ret_nr)
{
	*ret_nr = log->nr;
	return log->entries;
}
