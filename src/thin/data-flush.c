/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * data-flush.c - the flush of the data device that is under way while a commit writes metadata
 *
 * Nothing on disk leads to the metadata that a commit writes before its superblock, so the data
 * that it points at need not be durable earlier than the superblock is written: both devices are
 * flushed at the same time.  Where their files lie in one file system, one commit of its journal
 * does for both.
 *
 * Invariant: between data_flush_begin() and the return of data_flush_end() the structure stays
 * where it is; it is the request.
 *
 * No locks: all of it is the mutator's, and is called by it holding none.
 */
#include "thin/thin-internal.h"

#include "io/device.h"

static void flushed(struct io_request *io, int r)
{
	struct data_flush *flush = container_of(io, struct data_flush, io);

	flush->result = r;
	flush->under_way = false;
}

void data_flush_begin(struct data_flush *flush, struct io_device *data)
{
	*flush = (struct data_flush){ .io = { .device = data, .op = IO_FLUSH, .done = flushed } };
	if (!data)
		return;
	if (io_queue_self(&flush->queue)) { /* no memory for one */
		flush->result = io_device_flush(data);
		return;
	}
	flush->under_way = true;
	io_queue_submit(flush->queue, &flush->io);
	io_queue_kick(flush->queue);
}

void data_flush_end(struct data_flush *flush)
{
	while (flush->under_way)
		io_queue_run(flush->queue, UINT64_MAX);
}

int data_flush_wait(struct data_flush *flush)
{
	data_flush_end(flush);
	return flush->result;
}
