/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-check-read.c - blocks from the metadata device, many at a time
 *
 * A batch is sorted by location, neighbours become one request, and all requests are in flight
 * together.  Only blocks that something refers to are ever read, so a check of a large device
 * with little in it is short.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "io/device.h"
#include "thin/thin-check-internal.h"
#include "util/crc32c.h"
#include "util/le.h"
#include "util/log.h"

#define LOG_MODULE "check"

/* Requests of one batch and what became of them. */
struct batch_io {
	struct io_request io[BATCH_MAX];
	unsigned nr;
};

static void read_done(struct io_request *io, int r)
{
	io->result = r;
}

static void sort_batch(struct batch *b)
{
	for (unsigned i = 1; i < b->nr; i++) {
		mblock_t block = b->block[i];
		uint16_t owner = b->owner[i];
		unsigned j = i;

		for (; j && b->block[j - 1] > block; j--) {
			b->block[j] = b->block[j - 1];
			b->owner[j] = b->owner[j - 1];
		}
		b->block[j] = block;
		b->owner[j] = owner;
	}
}

/* One request from block @begin on; returns the first that it does not contain. */
static unsigned submit_run(struct check *c, struct batch *b, unsigned begin, struct io_request *io)
{
	unsigned end = begin + 1;

	while (end < b->nr && b->block[end] == b->block[end - 1] + 1)
		end++;
	memset(io, 0, sizeof(*io));
	io->device = c->dev;
	io->op = IO_READ;
	io->offset = b->block[begin] * METADATA_BLOCK_SIZE;
	io->done = read_done;
	io_request_set_buffer(io, b->buffer + (size_t)begin * METADATA_BLOCK_SIZE,
			      (uint64_t)(end - begin) * METADATA_BLOCK_SIZE);
	io_queue_submit(c->queue, io);
	return end;
}

int batch_read(struct check *c, struct batch *b)
{
	struct batch_io *ios;
	int r = 0;

	if (!b->buffer)
		b->buffer = io_buffer_alloc(BATCH_MAX * METADATA_BLOCK_SIZE);
	ios = malloc(sizeof(*ios));
	if (!b->buffer || !ios) {
		free(ios);
		return -ENOMEM;
	}
	sort_batch(b);
	ios->nr = 0;
	for (unsigned i = 0; i < b->nr;)
		i = submit_run(c, b, i, &ios->io[ios->nr++]);
	while (io_queue_in_flight(c->queue))
		(void)io_queue_run(c->queue, UINT64_MAX); /* how many is all the same */
	for (unsigned i = 0; i < ios->nr && !r; i++) {
		r = ios->io[i].result;
		if (r)
			log_err("\"%s\": cannot read blocks %" PRIu64 "..%" PRIu64
				": %s; the check cannot go on",
				io_device_name(c->dev), ios->io[i].offset / METADATA_BLOCK_SIZE,
				(ios->io[i].offset + ios->io[i].length) / METADATA_BLOCK_SIZE - 1,
				strerror(-r));
	}
	free(ios);
	if (r)
		return r;
	c->nr_read += b->nr;
	if (c->options->progress)
		c->options->progress(c->options->ctx, c->nr_read,
				     MAX(c->nr_read, c->result.nr_metadata_used));
	return 0;
}

int read_block(struct check *c, mblock_t block, const void **ret_data)
{
	int r;

	c->batch.nr = 1;
	c->batch.block[0] = block;
	r = batch_read(c, &c->batch);
	if (!r)
		*ret_data = batch_block(&c->batch, 0);
	return r;
}

static uint32_t kind_csum_xor(enum block_kind kind)
{
	switch (kind) {
	case KIND_SUPERBLOCK:
	case KIND_SNAPSHOT:
		return SUPERBLOCK_CSUM_XOR;
	case KIND_METADATA_INDEX:
		return INDEX_CSUM_XOR;
	case KIND_DATA_BITMAP:
	case KIND_METADATA_BITMAP:
		return BITMAP_CSUM_XOR;
	default:
		return BTREE_CSUM_XOR;
	}
}

bool block_is_intact(struct check *c, const struct place *place, const void *data)
{
	const struct disk_bitmap_header *header = data; /* all blocks begin alike */
	uint32_t csum = crc32c_raw(0xffffffff, (const uint8_t *)data + sizeof(header->csum),
				   METADATA_BLOCK_SIZE - sizeof(header->csum)) ^
			kind_csum_xor(place->kind);

	if (le32_get(header->csum) != csum) {
		finding_at(c, place, "checksum 0x%08" PRIx32 ", expected 0x%08" PRIx32,
			   le32_get(header->csum), csum);
		return false;
	}
	if (le64_get(header->blocknr) != place->block) {
		finding_at(c, place, "says it is block %" PRIu64, le64_get(header->blocknr));
		return false;
	}
	return true;
}
