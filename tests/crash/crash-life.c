/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * crash-life.c - a pool in service, doing random work on devices that log everything
 *
 * Pool -> fault-device -> write-log -> mem-device, for both devices.  Up to NR_SLOTS requests
 * are under way, never two on the same sectors, and one command.
 */
#include "crash-life.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "crash-model.h"
#include "fault-device.h"
#include "mem-device.h"
#include "pool-fixture.h"
#include "pool/pool-internal.h"
#include "prng.h"
#include "util/clock.h"
#include "write-log.h"

#define NR_SLOTS 4u
#define MAX_BYTES ((uint64_t)MODEL_MAX_SECTORS * MODEL_SECTOR)
#define OPS_AFTER_ABORT 6u /* most are refused */

struct slot {
	struct pool_io io;
	struct model_volume *v; /* NULL: idle */
	size_t op;              /* of v; NO_OP: a flush, an allocation */
	unsigned begin, end;    /* sectors */
	uint64_t began, ended;
	int result;
	bool done; /* atomic */
	void *base;
	struct work *work;
};
#define NO_OP SIZE_MAX

struct work {
	struct crash_life *life;
	struct prng *p;
	struct model *m;
	const struct crash_geometry *g;
	const struct crash_life_plan *plan;
	struct pool_rig rig;
	struct slot slots[NR_SLOTS];
	bool failed; /* something was answered with -EIO */

	struct pool_command cmd;
	uint64_t cmd_ended;
	int cmd_result;
	bool cmd_done; /* atomic */
};

static uint64_t now(struct work *w)
{
	return write_log_tick(w->life->log);
}

/* The only ones that a failing device, lack of memory or of space, or a pool gone read-only give.
 */
static void note_error(struct work *w, int r)
{
	static const int allowed[] = { 0, -EIO, -ENOMEM, -ENOSPC, -EROFS, -EBUSY, -EINVAL };
	bool known = false;

	for (unsigned i = 0; i < ARRAY_SIZE(allowed); i++)
		known |= r == allowed[i];
	if (!known) {
		fprintf(stderr, "# a request is answered with error %d\n", -r);
		abort();
	}
	w->failed |= r == -EIO;
	w->life->nr_errors += r != 0;
}

/* ---- devices ---- */

void crash_devices_create(struct prng *p, struct io_device *devices[CRASH_DEVICES],
			  struct crash_geometry *g)
{
	static const uint64_t blocks[] = { 64 * KIB, 64 * KIB, 128 * KIB, 192 * KIB };
	static const uint32_t alignments[] = { 1, 512, 4096 };
	uint64_t block = blocks[prng_below(p, ARRAY_SIZE(blocks))];
	uint64_t nr = 3 * MIB / block + prng_below(p, 16);
	uint64_t metadata = (prng_below(p, 3) ? 256 : 160) * 4 * KIB;
	struct pool_rig *rig = pool_rig_create_sized(
		block, nr, alignments[prng_below(p, ARRAY_SIZE(alignments))], metadata);

	TP_INVARIANT(pool_rig_close(rig) == 0);
	devices[CRASH_METADATA] = mem_device_clone(fault_device_inner(rig->meta));
	devices[CRASH_DATA] = mem_device_clone(fault_device_inner(rig->data));
	g->block_bytes = block;
	g->capacity[CRASH_METADATA] = 2 * MIB;
	g->capacity[CRASH_DATA] = (nr + 16) * block;
	pool_rig_destroy(rig);
}

/* ---- requests ---- */

static void slot_done(struct pool_io *io, int r)
{
	struct slot *s = container_of(io, struct slot, io);
	struct io_queue *q = s->work->rig.q;

	s->ended = now(s->work);
	s->result = r;
	__atomic_store_n(&s->done, true, __ATOMIC_RELEASE);
	io_queue_wake(q);
}

static void reap_slot(struct work *w, struct slot *s)
{
	if (!s->v || !__atomic_load_n(&s->done, __ATOMIC_ACQUIRE))
		return;
	note_error(w, s->result);
	if (s->result && (s->io.op == POOL_FLUSH || s->io.durable))
		model_add_failed_flush(s->v, s->ended);
	else if (!s->result && s->op != NO_OP)
		s->v->ops[s->op].ended = s->ended;
	else if (!s->result && s->io.op == POOL_FLUSH)
		model_add_flush(s->v, s->began, s->ended);
	s->v->size_bytes = volume_size(s->v->handle);
	s->v = NULL;
	free(s->base);
}

/* Until nothing is in flight on @v (NULL: at all). */
static void drain(struct work *w, const struct model_volume *v)
{
	for (;;) {
		bool busy = false;

		for (struct slot *s = w->slots; s < w->slots + NR_SLOTS; s++) {
			reap_slot(w, s);
			busy |= s->v && (!v || s->v == v);
		}
		if (!busy)
			return;
		io_queue_run(w->rig.q, USEC_PER_MSEC);
	}
}

static bool in_the_way(const struct work *w, const struct model_volume *v, unsigned begin,
		       unsigned end)
{
	for (const struct slot *s = w->slots; s < w->slots + NR_SLOTS; s++)
		if (s->v == v && s->begin < end && begin < s->end)
			return true;
	return false;
}

/* An idle one, for a request on these sectors. */
static struct slot *take_slot(struct work *w, const struct model_volume *v, unsigned begin,
			      unsigned end)
{
	while (in_the_way(w, v, begin, end)) {
		io_queue_run(w->rig.q, USEC_PER_MSEC);
		for (struct slot *s = w->slots; s < w->slots + NR_SLOTS; s++)
			reap_slot(w, s);
	}
	for (;;) {
		for (struct slot *s = w->slots; s < w->slots + NR_SLOTS; s++) {
			reap_slot(w, s);
			if (!s->v)
				return s;
		}
		io_queue_run(w->rig.q, USEC_PER_MSEC);
	}
}

static void start(struct work *w, struct slot *s, struct model_volume *v, enum pool_io_op op,
		  unsigned begin, unsigned end, bool durable)
{
	uint64_t offset = (uint64_t)begin * MODEL_SECTOR;

	s->v = v;
	s->op = NO_OP;
	s->begin = begin;
	s->end = end;
	s->done = false;
	s->base = NULL;
	s->work = w;
	s->began = now(w);
	s->io.op = op;
	s->io.durable = durable;
	s->io.volume = v->handle;
	s->io.offset = offset;
	s->io.length = (uint64_t)(end - begin) * MODEL_SECTOR;
	s->io.done = slot_done;
	if (op == POOL_WRITE || op == POOL_PUNCH || op == POOL_ZERO) {
		struct model_op model_op = { .began = s->began,
					     .durable = durable,
					     .zeros = op != POOL_WRITE,
					     .begin = begin,
					     .end = end,
					     .size_bytes = SIZE_SAME };

		if (offset + s->io.length > v->size_bytes)
			model_op.size_bytes = offset + s->io.length;
		s->op = model_add_op(w->m, v, &model_op);
	}
	if (op == POOL_WRITE || op == POOL_READ) {
		uint8_t *buffer;

		s->base = io_buffer_alloc(s->io.length + 4096);
		TP_INVARIANT(s->base);
		buffer = (uint8_t *)s->base + offset % 4096;
		for (unsigned i = begin; i < end && op == POOL_WRITE; i++)
			stamp_fill(buffer + (size_t)(i - begin) * MODEL_SECTOR, v->ops[s->op].id,
				   i);
		s->io.buffer = buffer;
	}
	pool_io_submit(w->rig.pool, w->rig.q, &s->io);
}

/* A range within @nr_sectors, of the sizes that matter. */
static void choose_range(struct work *w, unsigned nr_sectors, unsigned *begin, unsigned *end)
{
	unsigned block = (unsigned)(w->g->block_bytes / MODEL_SECTOR), length;

	*begin = (unsigned)prng_below(w->p, nr_sectors);
	switch (prng_below(w->p, 4)) {
	case 0:
		length = 1 + (unsigned)prng_below(w->p, 3);
		break;
	case 1:
		*begin -= *begin % 8;
		length = 8 * (1 + (unsigned)prng_below(w->p, 4));
		break;
	case 2:
		*begin -= *begin % block;
		length = block * (1 + (unsigned)prng_below(w->p, 2));
		break;
	default:
		length = 1 + (unsigned)prng_below(w->p, 2 * block);
		break;
	}
	*end = MIN(*begin + length, nr_sectors);
}

static void random_request(struct work *w, struct model_volume *v)
{
	static const enum pool_io_op kinds[] = {
		POOL_WRITE, POOL_WRITE, POOL_WRITE, POOL_WRITE,    POOL_WRITE, POOL_WRITE,
		POOL_WRITE, POOL_PUNCH, POOL_PUNCH, POOL_ZERO,     POOL_FLUSH, POOL_FLUSH,
		POOL_FLUSH, POOL_WRITE, POOL_READ,  POOL_ALLOCATE,
	};
	enum pool_io_op op = kinds[prng_below(w->p, ARRAY_SIZE(kinds))];
	unsigned begin = 0, end = 0, sectors = (unsigned)(v->size_bytes / MODEL_SECTOR);
	bool grows = op == POOL_WRITE && prng_below(w->p, 10) == 0;

	if (grows) {
		drain(w, v);
		sectors = (unsigned)MIN(v->size_bytes / MODEL_SECTOR + 200, MODEL_MAX_SECTORS);
	}
	if (op != POOL_FLUSH)
		choose_range(w, sectors, &begin, &end);
	start(w, take_slot(w, v, begin, end), v, op, begin, end, prng_below(w->p, 16) == 0);
	if (grows)
		drain(w, v);
}

/* ---- commands ---- */

static void command_done(struct pool_command *cmd, int r)
{
	struct work *w = container_of(cmd, struct work, cmd);
	struct io_queue *q = w->rig.q;

	w->cmd_ended = now(w);
	w->cmd_result = r;
	__atomic_store_n(&w->cmd_done, true, __ATOMIC_RELEASE);
	io_queue_wake(q);
}

/* Requests go on meanwhile.  *@ret_ended: when it was answered. */
static int run_command(struct work *w, const struct pool_command *cmd, uint64_t *ret_ended)
{
	w->cmd = *cmd;
	w->cmd.done = command_done;
	w->cmd_done = false;
	pool_command_submit(w->rig.pool, &w->cmd);
	while (!__atomic_load_n(&w->cmd_done, __ATOMIC_ACQUIRE))
		io_queue_run(w->rig.q, USEC_PER_MSEC);
	note_error(w, w->cmd_result);
	*ret_ended = w->cmd_ended;
	return w->cmd_result;
}

static struct pool_command named(enum pool_command_op op, unsigned name, unsigned new_name)
{
	struct pool_command cmd = { .op = op };

	snprintf(cmd.name, sizeof(cmd.name), "%s", model_name(name));
	snprintf(cmd.new_name, sizeof(cmd.new_name), "%s", model_name(new_name));
	return cmd;
}

/* The names as @cmd makes them are in place already. */
static int run_naming(struct work *w, const struct pool_command *cmd)
{
	uint64_t ended;
	int r = run_command(w, cmd, &ended);

	if (!r)
		model_last_names(w->m)->ended = ended;
	else if (r != -EIO)
		model_drop_names(w->m);
	return r;
}

static struct model_volume *volume_called(struct work *w, unsigned name)
{
	int i = model_last_names(w->m)->volumes[name];

	return i < 0 ? NULL : w->m->volumes[i];
}

static void open_handle(struct pool_rig *rig, struct model_volume *v, unsigned name)
{
	struct volume *volume = NULL;

	TP_INVARIANT(pool_volume_find(rig->pool, model_name(name), &volume) == 0);
	TP_INVARIANT(volume_open(volume, !v->read_only) == 0);
	v->handle = volume;
}

static void close_handle(struct model_volume *v)
{
	if (v->handle)
		rig_close_volume(v->handle);
	v->handle = NULL;
}

/* Nobody has written to it since it is there.  False: it could not be read. */
static bool read_base(struct pool_rig *rig, struct model_volume *v)
{
	uint64_t size = volume_size(v->handle);
	uint8_t *buffer = io_buffer_alloc(MAX_BYTES);
	bool read;

	TP_INVARIANT(buffer && size <= MAX_BYTES);
	read = rig_io(rig, v->handle, POOL_READ, 0, size, buffer) == 0;
	for (uint64_t s = 0; s < size / MODEL_SECTOR && read; s++)
		TP_INVARIANT(stamp_read(buffer + s * MODEL_SECTOR, s, &v->base[s]));
	v->base_size = v->size_bytes = size;
	v->hidden_from = (unsigned)(size / MODEL_SECTOR);
	free(buffer);
	return read;
}

static void do_create(struct work *w, unsigned name)
{
	struct pool_command cmd = named(POOL_CREATE, name, name);
	struct model_volume *v;

	cmd.size_bytes = MODEL_SECTOR * (1 + prng_below(w->p, MODEL_MAX_SECTORS));
	v = model_add_volume(w->m, cmd.size_bytes);
	model_add_names(w->m, now(w))->volumes[name] = (int)w->m->nr_volumes - 1;
	if (!run_naming(w, &cmd))
		open_handle(&w->rig, v, name);
}

static void do_snapshot(struct work *w, unsigned from, unsigned to)
{
	struct pool_command cmd = named(POOL_SNAPSHOT, from, to);
	struct model_volume *origin = volume_called(w, from), *v;
	int r;

	if (w->life->fault_moment)
		drain(w, origin);
	v = model_add_volume(w->m, origin->size_bytes);
	v->read_only = prng_below(w->p, 3) == 0;
	cmd.flags = v->read_only ? POOL_CMD_READ_ONLY : 0;
	model_add_names(w->m, now(w))->volumes[to] = (int)w->m->nr_volumes - 1;
	r = run_naming(w, &cmd);
	v->base_unknown = r != 0;
	if (r)
		return;
	open_handle(&w->rig, v, to);
	v->base_unknown = !read_base(&w->rig, v);
}

static void do_delete(struct work *w, unsigned name)
{
	struct pool_command cmd = named(POOL_DELETE, name, name);
	struct model_volume *v = volume_called(w, name);

	drain(w, v);
	if (prng_below(w->p, 2))
		close_handle(v);
	model_add_names(w->m, now(w))->volumes[name] = -1;
	if (run_naming(w, &cmd) && !v->handle && !w->failed)
		open_handle(&w->rig, v, name);
}

static void do_rename(struct work *w, unsigned from, unsigned to)
{
	struct pool_command cmd = named(POOL_RENAME, from, to);
	bool exchange = volume_called(w, to) && prng_below(w->p, 2);
	struct model_names *n = model_add_names(w->m, now(w));
	int other = n->volumes[to];

	cmd.flags = exchange ? POOL_CMD_EXCHANGE : 0;
	n->volumes[to] = n->volumes[from];
	n->volumes[from] = exchange ? other : -1;
	(void)run_naming(w, &cmd);
}

static void do_resize(struct work *w, unsigned name)
{
	struct pool_command cmd = named(POOL_RESIZE, name, name);
	struct model_volume *v = volume_called(w, name);
	unsigned old, new = 1 + (unsigned)prng_below(w->p, MODEL_MAX_SECTORS);
	struct model_op op = { .durable = true, .zeros = true };
	uint64_t ended;
	size_t i;

	if (v->read_only)
		return;
	drain(w, v);
	old = (unsigned)(v->size_bytes / MODEL_SECTOR);
	cmd.size_bytes = (uint64_t) new *MODEL_SECTOR;
	cmd.flags = POOL_CMD_SHRINK;
	op.began = now(w);
	op.begin = MIN(old, new);
	op.end = old;
	op.size_bytes = cmd.size_bytes;
	i = model_add_op(w->m, v, &op);
	if (!run_command(w, &cmd, &ended))
		v->ops[i].ended = ended;
	v->size_bytes = volume_size(v->handle);
}

static void do_extend(struct work *w)
{
	struct pool_command cmd = { .op = POOL_EXTEND };
	uint64_t data = io_device_size(w->rig.data), metadata = io_device_size(w->rig.meta), ended;

	data += w->g->block_bytes * prng_below(w->p, 4);
	metadata += 4 * KIB * prng_below(w->p, 32);
	if (data <= w->g->capacity[CRASH_DATA])
		cmd.size_bytes = data;
	if (metadata <= w->g->capacity[CRASH_METADATA])
		cmd.metadata_bytes = metadata;
	(void)run_command(w, &cmd, &ended);
}

/* Commands that change nothing that a client sees.  A commit is about names: it is no flush. */
static void do_other(struct work *w)
{
	static const enum pool_command_op ops[] = { POOL_COMMIT, POOL_COMMIT,
						    POOL_METADATA_SNAP_RESERVE,
						    POOL_METADATA_SNAP_RELEASE, POOL_TRIM };
	struct pool_command cmd = { .op = ops[prng_below(w->p, ARRAY_SIZE(ops))] };
	uint64_t ended;

	(void)run_command(w, &cmd, &ended);
}

static void random_command(struct work *w)
{
	unsigned a = (unsigned)prng_below(w->p, MODEL_NAMES);
	unsigned b = (unsigned)prng_below(w->p, MODEL_NAMES);

	if (w->m->nr_volumes == MODEL_MAX_VOLUMES)
		return;
	switch (prng_below(w->p, 12)) {
	case 0:
		do_extend(w);
		break;
	case 1:
	case 2:
	case 3:
		do_other(w);
		break;
	case 4:
	case 5:
	case 6:
		if (!volume_called(w, a))
			do_create(w, a);
		else
			do_resize(w, a);
		break;
	case 7:
		if (volume_called(w, a))
			do_delete(w, a);
		break;
	case 8:
		if (a != b && volume_called(w, a))
			do_rename(w, a, b);
		break;
	default:
		if (volume_called(w, a) && !volume_called(w, b))
			do_snapshot(w, a, b);
		break;
	}
}

/* ---- failures ---- */

/* One request that comes some time fails, perhaps half done. */
static void arm_fault(struct work *w)
{
	bool metadata = prng_below(w->p, 3);
	struct fault fault = { .ops = FAULT_OP(IO_FLUSH),
			       .skip = prng_below(w->p, 30),
			       .apply = MODEL_SECTOR * prng_below(w->p, 9) };

	if (metadata)
		fault.ops |= FAULT_OP(IO_WRITE);
	else if (prng_below(w->p, 2))
		fault.ops = FAULT_OP(IO_WRITE);
	w->life->fault_moment = now(w);
	fault_device_add(metadata ? w->rig.meta : w->rig.data, &fault);
}

/* ---- a life ---- */

/* What a pool on copies of the devices shows. */
static void find_volumes(struct work *w)
{
	struct model_names *n = model_add_names(w->m, 0);
	struct pool_rig copy = w->rig;
	struct volume_info info;

	copy.meta = mem_device_clone(w->life->before[CRASH_METADATA]);
	copy.data = mem_device_clone(w->life->before[CRASH_DATA]);
	pool_rig_open(&copy);
	for (thin_id_t id = 0; !pool_volume_next(copy.pool, id, &info); id = info.id + 1) {
		struct model_volume *v = model_add_volume(w->m, 0);
		unsigned name = (unsigned)info.name[0] - 'a';

		TP_INVARIANT(name < MODEL_NAMES);
		n->volumes[name] = (int)w->m->nr_volumes - 1;
		v->read_only = info.read_only;
		open_handle(&copy, v, name);
		TP_INVARIANT(read_base(&copy, v));
		close_handle(v);
	}
	TP_INVARIANT(pool_rig_close(&copy) == 0);
	io_device_close(copy.meta);
	io_device_close(copy.data);
}

static void make_devices(struct work *w, struct io_device *devices[CRASH_DEVICES])
{
	struct crash_life *life = w->life;

	life->log = write_log_create();
	write_log_set_filter(life->log, w->plan->keeps, w->plan->ctx);
	for (unsigned i = 0; i < CRASH_DEVICES; i++) {
		life->before[i] = mem_device_clone(devices[i]);
		life->after[i] = devices[i];
		devices[i] = fault_device_create(write_log_wrap(life->log, i, devices[i]));
	}
	w->rig.meta = devices[CRASH_METADATA];
	w->rig.data = devices[CRASH_DATA];
	w->rig.options = (struct pool_options){
		.cache_bytes = prng_below(w->p, 2) ? 4 * MIB : 256 * KIB,
		.commit_interval_usec = prng_below(w->p, 3) ? 3600 * USEC_PER_SEC : USEC_PER_MSEC,
		.zero_new_blocks = true,
	};
	TP_INVARIANT(io_queue_self(&w->rig.q) == 0);
}

static void work(struct work *w)
{
	unsigned nr_ops = w->plan->nr_ops;
	unsigned fault_at = w->plan->faults ? (unsigned)prng_below(w->p, nr_ops) : UINT32_MAX;

	for (unsigned name = 0; name < MODEL_NAMES; name++)
		if (volume_called(w, name))
			open_handle(&w->rig, volume_called(w, name), name);
	for (unsigned i = 0; i < nr_ops; i++) {
		struct model_volume *v = volume_called(w, (unsigned)prng_below(w->p, MODEL_NAMES));

		if (i == fault_at)
			arm_fault(w);
		if (v && v->handle && !v->read_only && prng_below(w->p, 4))
			random_request(w, v);
		else if (!w->failed)
			random_command(w);
		if (w->failed && nr_ops > i + OPS_AFTER_ABORT)
			nr_ops = i + OPS_AFTER_ABORT;
	}
	drain(w, NULL);
	for (unsigned i = 0; i < w->m->nr_volumes; i++)
		close_handle(w->m->volumes[i]);
}

static void live(struct work *w)
{
	struct tp_error error = { "" };
	uint64_t began;
	int r = pool_open_devices(&w->rig.options, w->rig.meta, w->rig.data, &w->rig.pool, &error);

	if (r) {
		TP_INVARIANT(w->plan->arm && error.text[0]);
		note_error(w, r);
		return;
	}
	work(w);
	w->life->nr_aborts = (unsigned)rig_status(&w->rig).stats.aborts;
	began = now(w);
	r = pool_rig_close(&w->rig);
	note_error(w, r);
	if (!r && !w->life->nr_aborts)
		model_add_pool_flush(w->m, began, now(w));
}

struct crash_life *crash_life_run(const struct crash_life_plan *plan, struct prng *p,
				  struct model *m, struct io_device *devices[CRASH_DEVICES],
				  const struct crash_geometry *g)
{
	struct crash_life *life = calloc(1, sizeof(*life));
	struct work *w = calloc(1, sizeof(*w));

	TP_INVARIANT(life && w);
	model_clear(m);
	w->life = life;
	w->p = p;
	w->m = m;
	w->g = g;
	w->plan = plan;
	make_devices(w, devices);
	find_volumes(w);
	if (plan->arm) {
		life->fault_moment = now(w);
		plan->arm(plan->ctx, devices);
	}
	live(w);
	if (plan->arm)
		life->reached = plan->reached(plan->ctx, devices);
	life->end_moment = now(w);
	for (unsigned i = 0; i < CRASH_DEVICES; i++) {
		life->after[i] = mem_device_clone(life->after[i]);
		io_device_close(devices[i]);
		devices[i] = NULL;
	}
	free(w);
	return life;
}

void crash_life_destroy(struct crash_life *life)
{
	for (unsigned i = 0; i < CRASH_DEVICES; i++) {
		io_device_close(life->before[i]);
		io_device_close(life->after[i]);
	}
	write_log_destroy(life->log);
	free(life);
}
