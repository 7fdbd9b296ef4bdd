/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fault-device.c - a wrapper around any device: requests fail, wait, and are logged
 *
 * An asynchronous request is carried out through a copy of it (struct passage), so
 * that the wrapper learns of its end.  The copy is submitted to the inner device
 * below the queue's own accounting: its callback stands for that of the original,
 * which it makes itself.
 *
 *	arrive: count, choose a fault -> [held] -> go: log, inner device -> end: log, done
 *
 * A held request of a queue must go on in that queue's thread.  The wrapper keeps
 * one "gate" for each queue that has requests held: an eventfd watched by the queue,
 * which fault_device_release() writes to.  The gate is closed by the queue's thread
 * when its last held request has gone, so a queue can be destroyed afterwards.
 *
 * Lock: "io", for everything below; never held across the inner device or a callback.
 */
#include "fault-device.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "mem-device.h"
#include "util/clock.h"

enum { MAX_FAULTS = 16, NR_OPS = IO_ZERO + 1 };
#define WAIT_HELD_USEC (10 * USEC_PER_SEC)

struct gate {
	struct fault_device *dev;
	struct io_queue *q;
	struct io_watch watch;
	unsigned nr_passages; /* held or released, not gone yet */
	LIST_ENTRY(gate) link;
};

struct passage {
	struct io_request copy;
	struct io_request *io;
	struct fault_device *dev;
	struct io_queue *q; /* NULL: a blocking call */
	struct gate *gate;
	const struct fault *fault;
	struct fault fault_copy;
	size_t log_index, log_round; /* SIZE_MAX: not logged */
	bool released;
	TAILQ_ENTRY(passage) link;
};

TAILQ_HEAD(passage_list, passage);

struct fault_device {
	struct io_device base;
	struct io_device *inner;
	struct tp_lock lock;
	pthread_cond_t changed; /* something was held or released */

	struct fault faults[MAX_FAULTS];
	unsigned nr_faults;
	uint64_t nr_failed, nr_requests[NR_OPS];

	unsigned delayed_ops, nr_held;
	struct passage_list held; /* and released, until its thread takes it */
	LIST_HEAD(, gate) gates;

	bool logging, log_data;
	uint64_t clock;
	struct fault_log_entry *log;
	size_t nr_log, log_room, log_round; /* rounds end with a clear */
};

static struct fault_device *fault_device(struct io_device *dev)
{
	return container_of(dev, struct fault_device, base);
}

/* ------------------------------------------------------------------- arrival */

static bool touches(const struct fault *f, const struct io_request *io)
{
	return (!f->ops || f->ops & FAULT_OP(io->op)) &&
	       (!f->length ||
		(io->offset < f->offset + f->length && f->offset < io->offset + io->length));
}

/* All faults count the request, the first one due takes it. */
static bool choose_fault(struct fault_device *d, const struct io_request *io, struct fault *ret)
{
	struct fault *f, *due = NULL;

	for (f = d->faults; f < d->faults + d->nr_faults; f++) {
		if (!touches(f, io))
			continue;
		if (f->skip)
			f->skip--;
		else if (f->count && !due)
			due = f;
	}
	if (!due)
		return false;
	if (due->count != UINT64_MAX)
		due->count--;
	d->nr_failed++;
	*ret = *due;
	return true;
}

/* True: the request is held now. */
static bool arrive(struct fault_device *d, struct passage *p) TP_REQUIRES(lc_io)
{
	d->nr_requests[p->io->op]++;
	p->log_index = SIZE_MAX;
	p->fault = choose_fault(d, p->io, &p->fault_copy) ? &p->fault_copy : NULL;
	if (!(d->delayed_ops & FAULT_OP(p->io->op)) || (p->q && !p->gate))
		return false;
	TAILQ_INSERT_TAIL(&d->held, p, link);
	d->nr_held++;
	pthread_cond_broadcast(&d->changed);
	return true;
}

/* ----------------------------------------------------------------------- log */

/* The first @length bytes that @io writes, as one aligned buffer. */
static void *gather(const struct io_request *io, uint64_t length)
{
	char *data = io_buffer_alloc(length), *at = data;
	uint64_t part;

	TP_INVARIANT(data);
	for (unsigned i = 0; i < io->nr_iov && length; i++, length -= part, at += part) {
		part = MIN(length, io->iov[i].iov_len);
		memcpy(at, io->iov[i].iov_base, part);
	}
	return data;
}

static void log_begin(struct fault_device *d, struct passage *p)
{
	const struct io_request *io = p->io;
	struct fault_log_entry *e;

	lock_io(&d->lock);
	if (d->logging) {
		if (d->nr_log == d->log_room) {
			d->log_room = MAX(64, d->log_room * 2);
			d->log = realloc(d->log, d->log_room * sizeof(*d->log));
			TP_INVARIANT(d->log);
		}
		p->log_index = d->nr_log;
		p->log_round = d->log_round;
		e = &d->log[d->nr_log++];
		*e = (struct fault_log_entry){ .op = io->op,
					       .offset = io->offset,
					       .length = io->length,
					       .began = ++d->clock };
		if (d->log_data && io->op == IO_WRITE)
			e->data = gather(io, io->length);
	}
	unlock_io(&d->lock);
}

static void log_end(struct fault_device *d, struct passage *p, int r)
{
	lock_io(&d->lock);
	if (p->log_index != SIZE_MAX && p->log_round == d->log_round) {
		d->log[p->log_index].ended = ++d->clock;
		d->log[p->log_index].result = r;
	}
	unlock_io(&d->lock);
}

/* ------------------------------------------------------------- going and end */

static int fault_result(const struct fault *f)
{
	return f->error ? f->error : -EIO;
}

/* What a torn write leaves: its first bytes. */
static void apply_part(struct fault_device *d, struct passage *p)
{
	uint64_t part = MIN(p->fault->apply, p->io->length);
	void *data;

	part -= part % d->base.alignment;
	if (p->io->op != IO_WRITE || !part)
		return;
	data = gather(p->io, part);
	TP_INVARIANT(!io_device_write(d->inner, data, part, p->io->offset));
	free(data);
}

static void passage_done(struct io_request *copy, int r)
{
	struct passage *p = container_of(copy, struct passage, copy);
	struct io_request *io = p->io;

	log_end(p->dev, p, r);
	free(p);
	io->done(io, r);
}

/* On the thread of p->q. */
static void go(struct fault_device *d, struct passage *p)
{
	log_begin(d, p);
	p->copy = *p->io;
	p->copy.device = d->inner;
	p->copy.done = passage_done;
	/* The vector of one may be inside the original, which stays until it is done. */
	if (p->fault) {
		apply_part(d, p);
		io_queue_complete(p->q, &p->copy, fault_result(p->fault));
	} else {
		d->inner->ops->submit(d->inner, p->q, &p->copy);
	}
}

/* --------------------------------------------------------------------- gates */

static struct passage *take_released(struct fault_device *d, struct gate *g) TP_REQUIRES(lc_io)
{
	struct passage *p;

	TAILQ_FOREACH(p, &d->held, link)
		if (p->released && p->gate == g)
			break;
	if (p)
		TAILQ_REMOVE(&d->held, p, link);
	return p;
}

static void gate_ready(struct io_watch *w, short revents)
{
	struct gate *g = container_of(w, struct gate, watch);
	struct fault_device *d = g->dev;
	struct passage *p;
	uint64_t count;
	bool empty;

	(void)revents;
	TP_INVARIANT(read(w->fd, &count, sizeof(count)) == sizeof(count) || errno == EAGAIN);
	lock_io(&d->lock);
	while ((p = take_released(d, g))) {
		g->nr_passages--;
		unlock_io(&d->lock);
		go(d, p);
		lock_io(&d->lock);
	}
	empty = !g->nr_passages;
	if (empty)
		LIST_REMOVE(g, link);
	unlock_io(&d->lock);
	if (!empty)
		return;
	io_queue_unwatch(g->q, w);
	close(w->fd);
	free(g);
}

/* The gate of @q, on whose thread we are: nobody else adds or removes it. */
static struct gate *gate_of(struct fault_device *d, struct io_queue *q)
{
	struct gate *g;

	lock_io(&d->lock);
	LIST_FOREACH(g, &d->gates, link)
		if (g->q == q)
			break;
	if (g)
		g->nr_passages++;
	unlock_io(&d->lock);
	if (g)
		return g;

	g = calloc(1, sizeof(*g));
	TP_INVARIANT(g);
	g->dev = d;
	g->q = q;
	g->nr_passages = 1;
	g->watch = (struct io_watch){ .fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
				      .events = POLLIN,
				      .ready = gate_ready };
	TP_INVARIANT(g->watch.fd >= 0);
	io_queue_watch(q, &g->watch);
	lock_io(&d->lock);
	LIST_INSERT_HEAD(&d->gates, g, link);
	unlock_io(&d->lock);
	return g;
}

static void gate_close_if_unused(struct fault_device *d, struct gate *g)
{
	bool unused;

	lock_io(&d->lock);
	unused = !--g->nr_passages;
	if (unused)
		LIST_REMOVE(g, link);
	unlock_io(&d->lock);
	if (!unused)
		return;
	io_queue_unwatch(g->q, &g->watch);
	close(g->watch.fd);
	free(g);
}

static void open_gate(const struct gate *g)
{
	uint64_t one = 1;

	TP_INVARIANT(write(g->watch.fd, &one, sizeof(one)) == sizeof(one));
}

/* ----------------------------------------------------------------------- ops */

static bool is_delayed(struct fault_device *d, enum io_op op)
{
	bool delayed;

	lock_io(&d->lock);
	delayed = d->delayed_ops & FAULT_OP(op);
	unlock_io(&d->lock);
	return delayed;
}

static void fault_submit(struct io_device *dev, struct io_queue *q, struct io_request *io)
{
	struct fault_device *d = fault_device(dev);
	struct passage *p = calloc(1, sizeof(*p));
	bool held;

	TP_INVARIANT(p);
	p->io = io;
	p->dev = d;
	p->q = q;
	/* A gate takes the lock and the queue, so it has to be there before. */
	p->gate = is_delayed(d, io->op) ? gate_of(d, q) : NULL;
	lock_io(&d->lock);
	held = arrive(d, p);
	unlock_io(&d->lock);
	if (held)
		return;
	if (p->gate)
		gate_close_if_unused(d, p->gate);
	go(d, p);
}

static int fault_execute(struct io_device *dev, struct io_request *io)
{
	struct fault_device *d = fault_device(dev);
	struct passage p = { .io = io, .dev = d };
	int r;

	lock_io(&d->lock);
	if (arrive(d, &p)) {
		while (!p.released)
			tp_lock_wait(&d->lock, &d->changed);
		TAILQ_REMOVE(&d->held, &p, link);
	}
	unlock_io(&d->lock);

	log_begin(d, &p);
	if (p.fault) {
		apply_part(d, &p);
		r = fault_result(p.fault);
	} else {
		r = d->inner->ops->execute(d->inner, io);
	}
	log_end(d, &p, r);
	return r;
}

static int fault_next_data(struct io_device *dev, uint64_t offset, uint64_t *ret_offset)
{
	struct io_device *inner = fault_device(dev)->inner;

	return inner->ops->next_data(inner, offset, ret_offset);
}

static int fault_resize(struct io_device *dev, uint64_t bytes)
{
	return io_device_resize(fault_device(dev)->inner, bytes);
}

static int fault_host_space(struct io_device *dev, struct io_host_space *ret_space)
{
	return io_device_host_space(fault_device(dev)->inner, ret_space);
}

static int fault_allocate(struct io_device *dev, uint64_t offset, uint64_t length)
{
	return io_device_allocate(fault_device(dev)->inner, offset, length);
}

static int fault_allocated(struct io_device *dev, uint64_t *ret_bytes)
{
	return io_device_allocated(fault_device(dev)->inner, ret_bytes);
}

static void fault_close(struct io_device *dev)
{
	struct fault_device *d = fault_device(dev);

	TP_INVARIANT(TAILQ_EMPTY(&d->held));
	fault_device_log_clear(dev);
	free(d->log);
	io_device_close(d->inner);
	pthread_cond_destroy(&d->changed);
	tp_lock_destroy(&d->lock);
	free(d);
}

static const struct io_device_ops fault_ops = {
	.submit = fault_submit,
	.execute = fault_execute,
	.next_data = fault_next_data,
	.resize = fault_resize,
	.allocated = fault_allocated,
	.host_space = fault_host_space,
	.allocate = fault_allocate,
	.close = fault_close,
};

struct io_device *fault_device_create(struct io_device *inner)
{
	struct fault_device *d = calloc(1, sizeof(*d));

	TP_INVARIANT(d);
	d->base = *inner;
	d->base.ops = &fault_ops;
	d->inner = inner;
	tp_lock_init(&d->lock, LC_io, LOCK_KIND_MUTEX);
	tp_cond_init(&d->changed);
	TAILQ_INIT(&d->held);
	LIST_INIT(&d->gates);
	return &d->base;
}

struct io_device *fault_device_create_mem(uint64_t bytes)
{
	return fault_device_create(mem_device_create(bytes));
}

struct io_device *fault_device_inner(struct io_device *dev)
{
	return fault_device(dev)->inner;
}

/* -------------------------------------------------------------- the test's side */

void fault_device_add(struct io_device *dev, const struct fault *fault)
{
	struct fault_device *d = fault_device(dev);
	struct fault *f;

	lock_io(&d->lock);
	TP_INVARIANT(d->nr_faults < MAX_FAULTS);
	f = &d->faults[d->nr_faults++];
	*f = *fault;
	f->count = MAX(f->count, 1);
	unlock_io(&d->lock);
}

void fault_device_fail_nth(struct io_device *dev, unsigned ops, uint64_t nth)
{
	fault_device_add(dev, &(struct fault){ .ops = ops, .skip = nth - 1, .count = 1 });
}

void fault_device_clear(struct io_device *dev)
{
	struct fault_device *d = fault_device(dev);

	lock_io(&d->lock);
	d->nr_faults = 0;
	unlock_io(&d->lock);
}

uint64_t fault_device_nr_failed(struct io_device *dev)
{
	struct fault_device *d = fault_device(dev);
	uint64_t nr;

	lock_io(&d->lock);
	nr = d->nr_failed;
	unlock_io(&d->lock);
	return nr;
}

uint64_t fault_device_nr_requests(struct io_device *dev, unsigned ops)
{
	struct fault_device *d = fault_device(dev);
	uint64_t nr = 0;

	lock_io(&d->lock);
	for (unsigned op = 0; op < NR_OPS; op++)
		nr += ops & FAULT_OP(op) ? d->nr_requests[op] : 0;
	unlock_io(&d->lock);
	return nr;
}

void fault_device_delay(struct io_device *dev, unsigned ops)
{
	struct fault_device *d = fault_device(dev);

	lock_io(&d->lock);
	d->delayed_ops = ops;
	unlock_io(&d->lock);
}

unsigned fault_device_release(struct io_device *dev, unsigned nr)
{
	struct fault_device *d = fault_device(dev);
	struct passage *p;
	unsigned done = 0;

	lock_io(&d->lock);
	TAILQ_FOREACH(p, &d->held, link) {
		if (done == nr)
			break;
		if (p->released)
			continue;
		p->released = true;
		d->nr_held--;
		done++;
		if (p->gate)
			open_gate(p->gate);
	}
	pthread_cond_broadcast(&d->changed);
	unlock_io(&d->lock);
	return done;
}

void fault_device_release_all(struct io_device *dev)
{
	fault_device_delay(dev, 0);
	(void)fault_device_release(dev, UINT32_MAX);
}

unsigned fault_device_nr_held(struct io_device *dev)
{
	struct fault_device *d = fault_device(dev);
	unsigned nr;

	lock_io(&d->lock);
	nr = d->nr_held;
	unlock_io(&d->lock);
	return nr;
}

bool fault_device_wait_held(struct io_device *dev, unsigned nr)
{
	struct fault_device *d = fault_device(dev);
	uint64_t deadline = time_monotonic_usec() + WAIT_HELD_USEC;
	bool in_time = true;

	lock_io(&d->lock);
	while (d->nr_held < nr && in_time)
		in_time = tp_lock_wait_until(&d->lock, &d->changed, deadline);
	in_time = d->nr_held >= nr;
	unlock_io(&d->lock);
	return in_time;
}

void fault_device_log_start(struct io_device *dev, bool with_data)
{
	struct fault_device *d = fault_device(dev);

	lock_io(&d->lock);
	d->logging = true;
	d->log_data = with_data;
	unlock_io(&d->lock);
}

void fault_device_log_stop(struct io_device *dev)
{
	struct fault_device *d = fault_device(dev);

	lock_io(&d->lock);
	d->logging = false;
	unlock_io(&d->lock);
}

void fault_device_log_clear(struct io_device *dev)
{
	struct fault_device *d = fault_device(dev);

	lock_io(&d->lock);
	for (size_t i = 0; i < d->nr_log; i++)
		free(d->log[i].data);
	d->nr_log = 0;
	d->log_round++;
	unlock_io(&d->lock);
}

const struct fault_log_entry *fault_device_log(struct io_device *dev, size_t *ret_nr)
{
	struct fault_device *d = fault_device(dev);

	*ret_nr = d->nr_log;
	return d->log;
}
