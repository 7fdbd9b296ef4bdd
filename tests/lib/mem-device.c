/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mem-device.c - a device in memory
 *
 * One mapping of the whole size, which the kernel fills page by page, and a byte
 * for each page that says whether it was written to, for next_data and allocated.
 */
#include "mem-device.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE UINT64_C(4096)

struct mem_device {
	struct io_device base;
	struct tp_lock lock;
	char *data;
	uint8_t *written; /* enum page_state, one a page */
	uint64_t nr_pages;
	uint64_t limit; /* bytes */
	struct mem_host *host;
};

enum page_state { PAGE_HOLE, PAGE_DATA, PAGE_ALLOCATED };

static struct mem_device *mem_device(struct io_device *dev)
{
	return container_of(dev, struct mem_device, base);
}

static void *map(uint64_t bytes)
{
	void *p = mmap(NULL, MAX(bytes, 1), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	TP_INVARIANT(p != MAP_FAILED);
	return p;
}

static bool take_page(struct mem_host *host)
{
	if (!host || atomic_fetch_add(&host->used, PAGE) + PAGE <= atomic_load(&host->total))
		return true;
	atomic_fetch_sub(&host->used, PAGE);
	return false;
}

/* Returns how many of the bytes have found room, from the first on. */
static uint64_t mark(struct mem_device *m, uint64_t offset, uint64_t length, enum page_state state)
{
	for (uint64_t page = offset / PAGE; page * PAGE < offset + length; page++) {
		if (m->written[page] == PAGE_HOLE && !take_page(m->host))
			return page * PAGE > offset ? page * PAGE - offset : 0;
		if (m->written[page] != PAGE_DATA)
			m->written[page] = state;
	}
	return length;
}

static void release(struct mem_device *m, uint64_t first, uint64_t last)
{
	for (uint64_t page = first; m->host && page < last; page++)
		if (m->written[page] != PAGE_HOLE)
			atomic_fetch_sub(&m->host->used, PAGE);
	memset(m->written + first, PAGE_HOLE, last - first);
}

/* Whole pages go back to the system; the ends of the range are cleared. */
static void discard(struct mem_device *m, uint64_t offset, uint64_t length)
{
	uint64_t first = DIV_ROUND_UP(offset, PAGE), last = (offset + length) / PAGE;

	if (first >= last) {
		memset(m->data + offset, 0, length);
		return;
	}
	memset(m->data + offset, 0, first * PAGE - offset);
	memset(m->data + last * PAGE, 0, offset + length - last * PAGE);
	TP_INVARIANT(!madvise(m->data + first * PAGE, (last - first) * PAGE, MADV_DONTNEED));
	release(m, first, last);
}

/* The first @length bytes of it. */
static void transfer(struct mem_device *m, const struct io_request *io, uint64_t length)
{
	char *at = m->data + io->offset;
	uint64_t part;

	for (unsigned i = 0; length; at += part, length -= part, i++) {
		part = MIN(length, io->iov[i].iov_len);
		if (io->op == IO_READ)
			memcpy(io->iov[i].iov_base, at, part);
		else
			memcpy(at, io->iov[i].iov_base, part);
	}
}

static int mem_execute(struct io_device *dev, struct io_request *io)
{
	struct mem_device *m = mem_device(dev);
	uint64_t done = io->length;

	lock_io(&m->lock);
	switch (io->op) {
	case IO_WRITE:
		done = mark(m, io->offset, io->length, PAGE_DATA);
		transfer(m, io, done);
		break;
	case IO_READ:
		transfer(m, io, io->length);
		break;
	case IO_FLUSH:
		break;
	case IO_ZERO:
		discard(m, io->offset, io->length);
		done = mark(m, io->offset, io->length, PAGE_DATA);
		break;
	case IO_DISCARD:
		discard(m, io->offset, io->length);
		break;
	}
	unlock_io(&m->lock);
	return done == io->length ? 0 : -ENOSPC;
}

static void mem_submit(struct io_device *dev, struct io_queue *q, struct io_request *io)
{
	io_queue_complete(q, io, mem_execute(dev, io));
}

static int mem_next_data(struct io_device *dev, uint64_t offset, uint64_t *ret_offset)
{
	struct mem_device *m = mem_device(dev);
	const uint8_t *found = NULL;
	uint64_t at = io_device_size(dev);

	lock_io(&m->lock);
	if (offset < at)
		found = memchr(m->written + offset / PAGE, PAGE_DATA, m->nr_pages - offset / PAGE);
	if (found)
		at = MAX((uint64_t)(found - m->written) * PAGE, offset);
	unlock_io(&m->lock);
	*ret_offset = MIN(at, io_device_size(dev));
	return 0;
}

static int mem_resize(struct io_device *dev, uint64_t bytes)
{
	struct mem_device *m = mem_device(dev);
	uint64_t nr_pages = DIV_ROUND_UP(bytes, PAGE);

	if (bytes > m->limit)
		return -ENOSPC;
	lock_io(&m->lock);
	m->data = mremap(m->data, MAX(io_device_size(dev), 1), MAX(bytes, 1), MREMAP_MAYMOVE);
	m->written = mremap(m->written, MAX(m->nr_pages, 1), MAX(nr_pages, 1), MREMAP_MAYMOVE);
	TP_INVARIANT(m->data != MAP_FAILED && m->written != MAP_FAILED);
	m->nr_pages = nr_pages;
	unlock_io(&m->lock);
	return 0;
}

static int mem_allocated(struct io_device *dev, uint64_t *ret_bytes)
{
	struct mem_device *m = mem_device(dev);
	uint64_t nr = 0;

	lock_io(&m->lock);
	for (uint64_t i = 0; i < m->nr_pages; i++)
		nr += m->written[i] != PAGE_HOLE;
	unlock_io(&m->lock);
	*ret_bytes = nr * PAGE;
	return 0;
}

static int mem_host_space(struct io_device *dev, struct io_host_space *ret_space)
{
	struct mem_host *host = mem_device(dev)->host;
	uint64_t total, used;

	if (!host)
		return -EOPNOTSUPP;
	total = atomic_load(&host->total);
	used = MIN(total, atomic_load(&host->used));
	*ret_space = (struct io_host_space){ .id = (uintptr_t)host,
					     .total = total,
					     .free = total - used,
					     .available = total - used };
	return 0;
}

static int mem_allocate(struct io_device *dev, uint64_t offset, uint64_t length)
{
	struct mem_device *m = mem_device(dev);
	uint64_t done;

	lock_io(&m->lock);
	done = mark(m, offset, length, PAGE_ALLOCATED);
	unlock_io(&m->lock);
	return done == length ? 0 : -ENOSPC;
}

static void mem_close(struct io_device *dev)
{
	struct mem_device *m = mem_device(dev);

	munmap(m->data, MAX(io_device_size(dev), 1));
	munmap(m->written, MAX(m->nr_pages, 1));
	tp_lock_destroy(&m->lock);
	free(m);
}

static const struct io_device_ops mem_ops = {
	.submit = mem_submit,
	.execute = mem_execute,
	.next_data = mem_next_data,
	.resize = mem_resize,
	.allocated = mem_allocated,
	.host_space = mem_host_space,
	.allocate = mem_allocate,
	.close = mem_close,
};

struct io_device *mem_device_create(uint64_t bytes)
{
	struct mem_device *m = calloc(1, sizeof(*m));

	TP_INVARIANT(m);
	m->base = (struct io_device){
		.ops = &mem_ops, .name = "memory", .size = bytes, .alignment = 1
	};
	tp_lock_init(&m->lock, LC_io, LOCK_KIND_MUTEX);
	m->nr_pages = DIV_ROUND_UP(bytes, PAGE);
	m->limit = UINT64_MAX;
	m->data = map(bytes);
	m->written = map(m->nr_pages);
	return &m->base;
}

void mem_device_set_alignment(struct io_device *dev, uint32_t alignment)
{
	dev->alignment = alignment;
}

void mem_device_set_limit(struct io_device *dev, uint64_t bytes)
{
	mem_device(dev)->limit = bytes;
}

void mem_device_set_read_only(struct io_device *dev, bool read_only)
{
	dev->read_only = read_only;
}

void *mem_device_data(struct io_device *dev)
{
	return mem_device(dev)->data;
}

void mem_device_touch(struct io_device *dev, uint64_t offset, uint64_t length)
{
	(void)mark(mem_device(dev), offset, length, PAGE_DATA);
}

void mem_device_set_host(struct io_device *dev, struct mem_host *host)
{
	struct mem_device *m = mem_device(dev);
	uint64_t has;

	TP_INVARIANT(!mem_allocated(dev, &has));
	if (m->host)
		atomic_fetch_sub(&m->host->used, has);
	m->host = host;
	if (host)
		atomic_fetch_add(&host->used, has);
}

struct io_device *mem_device_clone(struct io_device *dev)
{
	struct mem_device *from = mem_device(dev), *to;
	uint64_t at, size = io_device_size(dev);

	to = mem_device(mem_device_create(size));
	to->base.alignment = dev->alignment;
	lock_io(&from->lock);
	memcpy(to->written, from->written, from->nr_pages);
	for (uint64_t i = 0; i < from->nr_pages; i++) {
		at = i * PAGE;
		if (from->written[i])
			memcpy(to->data + at, from->data + at, MIN(PAGE, size - at));
	}
	unlock_io(&from->lock);
	return &to->base;
}
