/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * crash-replay.c - what a power cut can leave of two devices
 *
 * A disk is two tables of pages: "under" is the durable content, "over" what the state being
 * looked at has changed of it.  Advancing applies what becomes durable to "under"; building a
 * state empties "over", and applies the chosen part of what is pending to it.
 *
 * Invariants
 *   1. pending[] holds, in the order they began, the entries that have begun and are not durable.
 *   2. Writes that overlap were not in flight together (the pool's cells and the buffer cache see
 *      to that), so the order in which they began is the order they reach the medium in.
 *
 * Lock: "io", for the pages, as the pool looks at them from several threads.
 */
#include "crash-replay.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/device.h"
#include "mem-device.h"
#include "prng.h"
#include "write-log.h"

#define PAGE 4096u
#define SECTOR 512u

struct disk {
	struct io_device base;
	struct tp_lock lock;
	size_t nr_pages; /* capacity */
	uint64_t durable_size;
	uint8_t **under; /* NULL: a hole */
	uint8_t **over;  /* NULL: as under; HOLE; or what the state has */
	size_t *changed; /* indices of over[] */
	size_t nr_changed;
	bool written; /* through the device */

	size_t *pending; /* indices of the log */
	size_t nr_pending, pending_room;
};

/* Begins or ends, in the order of the clock. */
struct event {
	uint64_t moment;
	size_t entry;
	bool ends;
};

struct crash_replay {
	const struct write_log_entry *log;
	struct event *events;
	size_t nr_events, next_event;
	struct disk disks[CRASH_DEVICES];
};

static uint8_t hole_mark;
#define HOLE (&hole_mark)

static void *must_alloc(size_t n, size_t size)
{
	void *p = calloc(n ? n : 1, size);

	TP_INVARIANT(p);
	return p;
}

/* ---- pages ---- */

static const uint8_t *page_of(const struct disk *d, size_t i)
{
	return !d->over[i] ? d->under[i] : d->over[i] == HOLE ? NULL : d->over[i];
}

static void make_hole(struct disk *d, size_t i, bool durable)
{
	uint8_t **slot = durable ? &d->under[i] : &d->over[i];

	if (!durable && !*slot)
		d->changed[d->nr_changed++] = i;
	if (*slot != HOLE)
		free(*slot);
	*slot = durable ? NULL : HOLE;
}

static uint8_t *make_page(struct disk *d, size_t i, bool durable)
{
	uint8_t **slot = durable ? &d->under[i] : &d->over[i];
	const uint8_t *old = durable ? d->under[i] : page_of(d, i);
	uint8_t *page;

	if (*slot && *slot != HOLE)
		return *slot;
	if (!durable && !*slot)
		d->changed[d->nr_changed++] = i;
	page = must_alloc(1, PAGE);
	if (old)
		memcpy(page, old, PAGE);
	*slot = page;
	return page;
}

/* @data NULL: zeros. */
static void put(struct disk *d, bool durable, uint64_t offset, uint64_t length, const uint8_t *data)
{
	while (length) {
		uint64_t in_page = offset % PAGE, part = MIN(PAGE - in_page, length);
		uint8_t *page = make_page(d, offset / PAGE, durable);

		if (data)
			memcpy(page + in_page, data, part);
		else
			memset(page + in_page, 0, part);
		data = data ? data + part : NULL;
		offset += part;
		length -= part;
	}
}

static void punch(struct disk *d, bool durable, uint64_t offset, uint64_t length)
{
	uint64_t first = DIV_ROUND_UP(offset, PAGE), last = (offset + length) / PAGE;

	if (first >= last) {
		put(d, durable, offset, length, NULL);
		return;
	}
	put(d, durable, offset, first * PAGE - offset, NULL);
	put(d, durable, last * PAGE, offset + length - last * PAGE, NULL);
	for (; first < last; first++)
		make_hole(d, first, durable);
}

static void drop_state(struct disk *d)
{
	for (size_t i = 0; i < d->nr_changed; i++) {
		uint8_t **slot = &d->over[d->changed[i]];

		if (*slot != HOLE)
			free(*slot);
		*slot = NULL;
	}
	d->nr_changed = 0;
	d->written = false;
	d->base.size = d->durable_size;
}

/* ---- the device ---- */

static void disk_read(const struct disk *d, uint64_t offset, uint8_t *to, uint64_t length)
{
	while (length) {
		uint64_t in_page = offset % PAGE, part = MIN(PAGE - in_page, length);
		const uint8_t *page = page_of(d, offset / PAGE);

		if (page)
			memcpy(to, page + in_page, part);
		else
			memset(to, 0, part);
		to += part;
		offset += part;
		length -= part;
	}
}

static int disk_execute(struct io_device *dev, struct io_request *io)
{
	struct disk *d = container_of(dev, struct disk, base);
	uint64_t at = io->offset;

	lock_io(&d->lock);
	d->written |= io->op != IO_READ && io->op != IO_FLUSH;
	for (unsigned i = 0; i < io->nr_iov && io->op <= IO_WRITE; at += io->iov[i++].iov_len) {
		if (io->op == IO_READ)
			disk_read(d, at, io->iov[i].iov_base, io->iov[i].iov_len);
		else
			put(d, false, at, io->iov[i].iov_len, io->iov[i].iov_base);
	}
	if (io->op == IO_DISCARD)
		punch(d, false, io->offset, io->length);
	else if (io->op == IO_ZERO)
		put(d, false, io->offset, io->length, NULL);
	unlock_io(&d->lock);
	return 0;
}

static void disk_submit(struct io_device *dev, struct io_queue *q, struct io_request *io)
{
	io_queue_complete(q, io, disk_execute(dev, io));
}

static int disk_next_data(struct io_device *dev, uint64_t offset, uint64_t *ret_offset)
{
	struct disk *d = container_of(dev, struct disk, base);
	uint64_t size = io_device_size(dev);
	size_t i = offset / PAGE;

	lock_io(&d->lock);
	while (i * PAGE < size && !page_of(d, i))
		i++;
	unlock_io(&d->lock);
	*ret_offset = MIN(MAX(i * PAGE, offset), size);
	return 0;
}

static int disk_resize(struct io_device *dev, uint64_t bytes)
{
	return bytes <= container_of(dev, struct disk, base)->nr_pages * PAGE ? 0 : -ENOSPC;
}

static int disk_allocated(struct io_device *dev, uint64_t *ret_bytes)
{
	*ret_bytes = io_device_size(dev);
	return 0;
}

static void disk_close(struct io_device *dev)
{
	(void)dev; /* the replay's */
}

static const struct io_device_ops disk_ops = {
	.submit = disk_submit,
	.execute = disk_execute,
	.next_data = disk_next_data,
	.resize = disk_resize,
	.allocated = disk_allocated,
	.close = disk_close,
};

/* ---- life ---- */

static void disk_init(struct disk *d, struct io_device *before, uint64_t capacity)
{
	uint64_t size = io_device_size(before), at, next;

	d->base = (struct io_device){ .ops = &disk_ops,
				      .name = "after a power cut",
				      .size = size,
				      .alignment = io_device_alignment(before) };
	tp_lock_init(&d->lock, LC_io, LOCK_KIND_MUTEX);
	d->nr_pages = DIV_ROUND_UP(capacity, PAGE);
	d->durable_size = size;
	d->under = must_alloc(d->nr_pages, sizeof(*d->under));
	d->over = must_alloc(d->nr_pages, sizeof(*d->over));
	d->changed = must_alloc(d->nr_pages, sizeof(*d->changed));
	for (at = 0; at < size; at = next + PAGE) {
		TP_INVARIANT(!before->ops->next_data(before, at, &next));
		next -= next % PAGE;
		if (next < size)
			put(d, true, next, MIN(PAGE, size - next),
			    (uint8_t *)mem_device_data(before) + next);
	}
}

static int by_moment(const void *a, const void *b)
{
	const struct event *x = a, *y = b;

	return (x->moment > y->moment) - (x->moment < y->moment);
}

struct crash_replay *crash_replay_create(const struct write_log *log,
					 struct io_device *const before[CRASH_DEVICES],
					 const uint64_t capacity[CRASH_DEVICES])
{
	struct crash_replay *r = must_alloc(1, sizeof(*r));
	size_t nr;

	r->log = write_log_entries(log, &nr);
	r->events = must_alloc(2 * nr, sizeof(*r->events));
	for (size_t i = 0; i < nr; i++) {
		r->events[r->nr_events++] = (struct event){ r->log[i].began, i, false };
		if (r->log[i].ended)
			r->events[r->nr_events++] = (struct event){ r->log[i].ended, i, true };
	}
	qsort(r->events, r->nr_events, sizeof(*r->events), by_moment);
	for (unsigned i = 0; i < CRASH_DEVICES; i++)
		disk_init(&r->disks[i], before[i], capacity[i]);
	return r;
}

void crash_replay_destroy(struct crash_replay *r)
{
	for (unsigned n = 0; n < CRASH_DEVICES; n++) {
		struct disk *d = &r->disks[n];

		drop_state(d);
		for (size_t i = 0; i < d->nr_pages; i++)
			free(d->under[i]);
		free(d->under);
		free(d->over);
		free(d->changed);
		free(d->pending);
		tp_lock_destroy(&d->lock);
	}
	free(r->events);
	free(r);
}

/* ---- going on ---- */

/* Bytes [from, end) of what the entry changes. */
static void apply_part(struct disk *d, const struct write_log_entry *e, bool durable, uint64_t from,
		       uint64_t end)
{
	uint64_t reach = e->op == WRITE_LOG_GROW ? e->length : e->offset + end;

	TP_INVARIANT(reach <= d->nr_pages * PAGE);
	if (e->op == IO_WRITE)
		put(d, durable, e->offset + from, end - from, (uint8_t *)e->data + from);
	else if (e->op == IO_DISCARD)
		punch(d, durable, e->offset + from, end - from);
	else if (e->op == IO_ZERO)
		put(d, durable, e->offset + from, end - from, NULL);
	/* A write beyond the end of a file, which has lost its growth, makes it longer too. */
	d->base.size = MAX(d->base.size, reach);
	if (durable)
		d->durable_size = MAX(d->durable_size, reach);
}

static void entry_begins(struct crash_replay *r, size_t entry)
{
	struct disk *d = &r->disks[r->log[entry].device];

	if (r->log[entry].op == IO_FLUSH)
		return;
	if (d->nr_pending == d->pending_room) {
		d->pending_room = MAX(64, d->pending_room * 2);
		d->pending = realloc(d->pending, d->pending_room * sizeof(*d->pending));
		TP_INVARIANT(d->pending);
	}
	d->pending[d->nr_pending++] = entry;
}

static void flush_ends(struct crash_replay *r, const struct write_log_entry *flush)
{
	struct disk *d = &r->disks[flush->device];
	size_t kept = 0;

	for (size_t i = 0; i < d->nr_pending; i++) {
		const struct write_log_entry *e = &r->log[d->pending[i]];

		if (e->ended && e->ended < flush->began)
			apply_part(d, e, true, 0, e->length);
		else
			d->pending[kept++] = d->pending[i];
	}
	d->nr_pending = kept;
}

void crash_replay_advance(struct crash_replay *r, uint64_t moment)
{
	for (unsigned i = 0; i < CRASH_DEVICES; i++)
		drop_state(&r->disks[i]);
	for (; r->next_event < r->nr_events; r->next_event++) {
		const struct event *ev = &r->events[r->next_event];

		if (ev->moment > moment)
			return;
		if (!ev->ends)
			entry_begins(r, ev->entry);
		else if (r->log[ev->entry].op == IO_FLUSH)
			flush_ends(r, &r->log[ev->entry]);
	}
}

/* ---- choosing ---- */

/* What reached the medium of all that is pending on a device. */
enum choice { NONE, ALL, SOME, SOME_TORN, PREFIX, PREFIX_TORN, ALL_BUT_ONE, ONE, NR_CHOICES };

static const char *const choice_names[NR_CHOICES] = {
	"none", "all", "some", "some torn", "the first", "the first, torn", "all but", "only",
};

/* The first sectors of it, or any. */
static void apply_torn(struct disk *d, const struct write_log_entry *e, struct prng *p)
{
	uint64_t nr = DIV_ROUND_UP(e->length, SECTOR), cut = prng_below(p, nr + 1);
	bool any = prng_below(p, 2);

	if (e->op == WRITE_LOG_GROW) {
		apply_part(d, e, false, 0, e->length);
		return;
	}
	for (uint64_t i = 0; i < nr; i++) {
		bool reaches = any ? prng_below(p, 2) : i < cut;

		if (reaches)
			apply_part(d, e, false, i * SECTOR, MIN((i + 1) * SECTOR, e->length));
	}
}

static void build_disk(struct crash_replay *r, struct disk *d, struct prng *p, char *how,
		       size_t how_bytes)
{
	enum choice choice = d->nr_pending ? prng_below(p, NR_CHOICES) : NONE;
	size_t one = d->nr_pending ? prng_below(p, d->nr_pending) : 0;

	for (size_t i = 0; i < d->nr_pending; i++) {
		const struct write_log_entry *e = &r->log[d->pending[i]];
		bool take[NR_CHOICES] = {
			[ALL] = true,
			[SOME] = prng_below(p, 2),
			[PREFIX] = i < one,
			[PREFIX_TORN] = i < one,
			[ALL_BUT_ONE] = i != one,
			[ONE] = i == one,
		};

		if (take[choice])
			apply_part(d, e, false, 0, e->length);
		else if (choice == SOME_TORN || (choice == PREFIX_TORN && i == one))
			apply_torn(d, e, p);
	}
	snprintf(how, how_bytes, "%s (%zu) of %zu pending", choice_names[choice], one,
		 d->nr_pending);
}

void crash_replay_build(struct crash_replay *r, struct prng *p, char *how, size_t how_bytes)
{
	char parts[CRASH_DEVICES][96];

	for (unsigned i = 0; i < CRASH_DEVICES; i++) {
		struct disk *d = &r->disks[i];

		drop_state(d);
		build_disk(r, d, p, parts[i], sizeof(parts[i]));
	}
	snprintf(how, how_bytes, "device 0: %s; device 1: %s", parts[0], parts[1]);
}

/* ---- the result ---- */

struct io_device *crash_replay_device(struct crash_replay *r, unsigned device)
{
	return &r->disks[device].base;
}

bool crash_replay_was_written(const struct crash_replay *r, unsigned device)
{
	return r->disks[device].written;
}

struct io_device *crash_replay_copy(struct crash_replay *r, unsigned device)
{
	const struct disk *d = &r->disks[device];
	uint64_t size = io_device_size(&d->base);
	struct io_device *mem = mem_device_create(size);

	mem_device_set_alignment(mem, d->base.alignment);
	for (uint64_t at = 0; at < size; at += PAGE) {
		const uint8_t *page = page_of(d, at / PAGE);
		uint64_t part = MIN(PAGE, size - at);

		if (!page)
			continue;
		memcpy((uint8_t *)mem_device_data(mem) + at, page, part);
		mem_device_touch(mem, at, part);
	}
	return mem;
}
