/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pinned-device.c - a device as it was at some moment, while its owner goes on writing
 *
 * The owner has promised to leave alone what was in use then, all but the beginning, which says
 * where the rest is and changes with each commit.  So the beginning is a copy, and the rest is
 * read from the device.  Nothing can be written.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io/io-internal.h"

struct pinned_device {
	struct io_device base;
	struct io_device *inner;
	uint32_t bytes;
	uint8_t beginning[];
};

static struct pinned_device *pinned_device(struct io_device *dev)
{
	return container_of(dev, struct pinned_device, base);
}

static bool reads_beginning(const struct pinned_device *p, const struct io_request *io)
{
	return io->op == IO_READ && io->offset < p->bytes;
}

static void put_beginning(const struct pinned_device *p, const struct io_request *io)
{
	uint64_t at = io->offset;

	for (unsigned i = 0; i < io->nr_iov && at < p->bytes; i++) {
		size_t n = MIN(io->iov[i].iov_len, p->bytes - at);

		memcpy(io->iov[i].iov_base, p->beginning + at, n);
		at += n;
	}
}

static int pinned_execute(struct io_device *dev, struct io_request *io)
{
	struct pinned_device *p = pinned_device(dev);
	int r = p->inner->ops->execute(p->inner, io);

	if (!r && reads_beginning(p, io))
		put_beginning(p, io);
	return r;
}

static void pinned_submit(struct io_device *dev, struct io_queue *q, struct io_request *io)
{
	struct pinned_device *p = pinned_device(dev);

	if (reads_beginning(p, io)) /* once or twice in all */
		io_queue_complete(q, io, pinned_execute(dev, io));
	else
		p->inner->ops->submit(p->inner, q, io);
}

static int pinned_next_data(struct io_device *dev, uint64_t offset, uint64_t *ret_offset)
{
	struct pinned_device *p = pinned_device(dev);

	return p->inner->ops->next_data(p->inner, offset, ret_offset);
}

static int pinned_resize(struct io_device *dev, uint64_t bytes)
{
	(void)dev;
	(void)bytes;
	return -EROFS;
}

static int pinned_allocated(struct io_device *dev, uint64_t *ret_bytes)
{
	return io_device_allocated(pinned_device(dev)->inner, ret_bytes);
}

static void pinned_close(struct io_device *dev)
{
	struct pinned_device *p = pinned_device(dev);

	io_device_close(p->inner);
	free(p);
}

static const struct io_device_ops pinned_ops = {
	.submit = pinned_submit,
	.execute = pinned_execute,
	.next_data = pinned_next_data,
	.resize = pinned_resize,
	.allocated = pinned_allocated,
	.close = pinned_close,
};

int io_device_open_pinned(struct io_device *inner, const void *beginning, uint32_t bytes,
			  struct io_device **ret_dev)
{
	struct pinned_device *p = malloc(sizeof(*p) + bytes);

	if (!p)
		return -ENOMEM;
	p->base = (struct io_device){
		.ops = &pinned_ops,
		.name = inner->name,
		.size = io_device_size(inner),
		.alignment = inner->alignment,
		.read_only = true,
		.is_block_device = inner->is_block_device,
		.no_discard = true,
	};
	p->inner = inner;
	p->bytes = bytes;
	memcpy(p->beginning, beginning, bytes);
	*ret_dev = &p->base;
	return 0;
}
