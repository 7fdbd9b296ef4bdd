/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A whole pool against arrays: two threads do random I/O at random bytes of a few volumes, each
 * on stripes of its own, whose ends lie within blocks and sectors.  So each byte has one
 * writer and a known value, while blocks and sectors are contended for.  Between rounds, with
 * the threads at rest: snapshots, deletions, the metadata snapshot, reopening, a look at a copy of
 * the devices (what a crash would leave), and a comparison of everything.
 *
 * TP_SEED repeats a run, TP_OPS is the number of rounds.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fault-device.h"
#include "mem-device.h"
#include "pool-fixture.h"
#include "pool/pool-internal.h"
#include "prng.h"
#include "util/clock.h"

#define NR_VOLUMES 4
#define VOLUME_BYTES (2 * MIB + 12345)
#define NR_THREADS 2
#define DEPTH 6
#define OPS_A_ROUND 150

static struct pool_rig *rig;
static uint64_t stripe_bytes;
static bool snap_is_held; /* the metadata snapshot */

static struct model {
	struct volume *v; /* NULL: there is none */
	char name[16];
	uint8_t *bytes;
	bool busy[VOLUME_BYTES / 1000 + 1]; /* stripes with a request under way: their owner's */
} volumes[NR_VOLUMES];

/* A request of a thread, and the thread's mailbox of those that are done. */
struct thread;
struct op {
	struct pool_io io;
	struct thread *thread;
	struct model *model;
	uint64_t stripe;
	int result;
	void *base;
	struct op *next;
};
struct thread {
	pthread_t id;
	struct prng prng;
	unsigned number;
	struct io_queue *q;
	pthread_mutex_t lock;
	struct op *done, *idle;
	struct op ops[DEPTH];
	unsigned nr_busy;
};

static void require(bool ok, const char *what, const struct op *op)
{
	if (ok)
		return;
	fprintf(stderr, "# %s: op %d of \"%s\" at %llu + %llu: %s\n", what, op->io.op,
		op->model->name, (unsigned long long)op->io.offset,
		(unsigned long long)op->io.length, strerror(-op->result));
	abort();
}

static void op_done(struct pool_io *io, int r)
{
	struct op *op = container_of(io, struct op, io);
	struct thread *t = op->thread;

	op->result = r;
	pthread_mutex_lock(&t->lock);
	op->next = t->done;
	t->done = op;
	io_queue_wake(t->q);
	pthread_mutex_unlock(&t->lock);
}

static void random_op(struct thread *t, struct op *op)
{
	static const enum pool_io_op kinds[] = {
		POOL_READ,  POOL_READ,  POOL_READ, POOL_WRITE, POOL_WRITE,    POOL_WRITE,
		POOL_WRITE, POOL_WRITE, POOL_ZERO, POOL_PUNCH, POOL_ALLOCATE, POOL_FLUSH,
	};
	uint64_t begin, end, nr_stripes = VOLUME_BYTES / stripe_bytes;
	struct prng *p = &t->prng;
	struct model *m;
	uint8_t *buffer;

	for (unsigned tries = 0; tries < 100; tries++) {
		m = &volumes[prng_below(p, NR_VOLUMES)];
		op->stripe = prng_below(p, nr_stripes / NR_THREADS) * NR_THREADS + t->number;
		if (m->v && !m->busy[op->stripe])
			break;
		m = NULL;
	}
	if (!m) {
		op->next = t->idle;
		t->idle = op;
		return;
	}
	m->busy[op->stripe] = true;
	begin = op->stripe * stripe_bytes;
	end = begin + stripe_bytes;
	if (prng_below(p, 3))
		begin += prng_below(p, stripe_bytes);
	if (prng_below(p, 3))
		end = begin + 1 + prng_below(p, end - begin);
	if (prng_below(p, 3) == 0) { /* what front ends like best */
		uint64_t down = begin & ~UINT64_C(4095), up = (end + 4095) & ~UINT64_C(4095);

		begin = down >= op->stripe * stripe_bytes ? down : begin;
		end = up <= (op->stripe + 1) * stripe_bytes ? up : end;
	}

	op->model = m;
	op->thread = t;
	op->base = io_buffer_alloc(end - begin + 8192);
	buffer = (uint8_t *)op->base + begin % 4096 + (prng_below(p, 8) ? 0 : prng_below(p, 4096));
	op->io.op = kinds[prng_below(p, ARRAY_SIZE(kinds))];
	op->io.durable = prng_below(p, 16) == 0;
	op->io.volume = m->v;
	op->io.offset = begin;
	op->io.length = end - begin;
	op->io.buffer = buffer;
	op->io.done = op_done;
	if (op->io.op == POOL_WRITE) {
		prng_fill(p, buffer, end - begin);
		memcpy(m->bytes + begin, buffer, end - begin);
	} else if (op->io.op == POOL_ZERO || op->io.op == POOL_PUNCH) {
		memset(m->bytes + begin, 0, end - begin);
	}
	t->nr_busy++;
	pool_io_submit(rig->pool, t->q, &op->io);
}

static void require_same(const struct op *op)
{
	const uint8_t *got = op->io.buffer, *want = op->model->bytes + op->io.offset;

	for (uint64_t i = 0; i < op->io.length; i++) {
		if (got[i] == want[i])
			continue;
		fprintf(stderr, "# byte %llu is %#x, not %#x\n",
			(unsigned long long)(op->io.offset + i), got[i], want[i]);
		require(false, "wrong data", op);
	}
}

static void op_end(struct thread *t, struct op *op)
{
	require(op->result == 0, "error", op);
	if (op->io.op == POOL_READ)
		require_same(op);
	op->model->busy[op->stripe] = false;
	free(op->base);
	t->nr_busy--;
	op->next = t->idle;
	t->idle = op;
}

static struct op *take_done(struct thread *t)
{
	struct op *op;

	pthread_mutex_lock(&t->lock);
	op = t->done;
	t->done = NULL;
	pthread_mutex_unlock(&t->lock);
	return op;
}

static void *round_of_io(void *arg)
{
	struct thread *t = arg;
	unsigned left = OPS_A_ROUND;

	if (io_queue_self(&t->q))
		abort();
	while (left || t->nr_busy) {
		struct op *op, *next;

		while (left && t->idle) {
			op = t->idle;
			t->idle = op->next;
			left--;
			random_op(t, op);
		}
		for (op = take_done(t); op; op = next) {
			next = op->next;
			op_end(t, op);
		}
		if (t->nr_busy)
			io_queue_run(t->q, USEC_PER_SEC);
	}
	return NULL;
}

/* ---- between rounds ---- */

static void create_volume(struct model *m)
{
	m->v = rig_create_volume(rig, m->name, VOLUME_BYTES);
	memset(m->bytes, 0, VOLUME_BYTES);
}

static void delete_volume(struct model *m)
{
	if (!m->v)
		return;
	rig_close_volume(m->v);
	m->v = NULL;
	assert_int_equal(rig_delete(rig, m->name), 0);
}

static void compare(struct pool_rig *r, struct model *m, struct volume *v)
{
	uint8_t *buffer = io_buffer_alloc(VOLUME_BYTES);

	assert_int_equal(volume_size(v), VOLUME_BYTES);
	assert_int_equal(rig_io(r, v, POOL_READ, 0, VOLUME_BYTES, buffer), 0);
	for (uint64_t i = 0; i < VOLUME_BYTES; i++)
		if (buffer[i] != m->bytes[i])
			fail_msg("\"%s\", byte %llu: %#x, not %#x", m->name, (unsigned long long)i,
				 buffer[i], m->bytes[i]);
	free(buffer);
}

static void require_metadata_snap(struct pool_rig *r)
{
	assert_int_equal(rig_status(r).held_root != 0, snap_is_held);
}

static void change_metadata_snap(struct prng *p)
{
	bool reserve = prng_below(p, 2);
	int wanted = reserve == snap_is_held ? (reserve ? -EBUSY : -EINVAL) : 0;

	assert_int_equal(rig_metadata_snap(rig, reserve), wanted);
	snap_is_held = reserve;
	require_metadata_snap(rig);
}

/* What was flushed is there in a copy of the devices, taken while the pool is in service. */
static void look_at_crash(void)
{
	struct pool_rig copy = *rig;

	for (unsigned i = 0; i < NR_VOLUMES; i++)
		if (volumes[i].v)
			assert_int_equal(rig_flush(rig, volumes[i].v), 0);
	copy.meta = fault_device_create(mem_device_clone(fault_device_inner(rig->meta)));
	copy.data = fault_device_create(mem_device_clone(fault_device_inner(rig->data)));
	assert_true(pool_rig_is_clean(&copy));
	pool_rig_open(&copy);
	require_metadata_snap(&copy);
	for (unsigned i = 0; i < NR_VOLUMES; i++)
		if (volumes[i].v) {
			struct volume *v = rig_open_volume(&copy, volumes[i].name);

			compare(&copy, &volumes[i], v);
			rig_close_volume(v);
		}
	assert_int_equal(pool_rig_close(&copy), 0);
	assert_true(pool_rig_is_clean(&copy));
	io_device_close(copy.meta);
	io_device_close(copy.data);
}

static void reopen(void)
{
	for (unsigned i = 0; i < NR_VOLUMES; i++)
		if (volumes[i].v)
			rig_close_volume(volumes[i].v);
	assert_int_equal(pool_rig_close(rig), 0);
	assert_true(pool_rig_is_clean(rig));
	pool_rig_open(rig);
	require_metadata_snap(rig);
	for (unsigned i = 0; i < NR_VOLUMES; i++)
		if (volumes[i].v)
			volumes[i].v = rig_open_volume(rig, volumes[i].name);
}

static void between_rounds(struct prng *p)
{
	struct model *a = &volumes[prng_below(p, NR_VOLUMES)];
	struct model *b = &volumes[prng_below(p, NR_VOLUMES)];

	switch (prng_below(p, 10)) {
	case 0:
	case 1:
	case 2:
	case 3:
		if (a == b || !a->v)
			break;
		delete_volume(b);
		assert_int_equal(rig_snapshot(rig, a->name, b->name), 0);
		b->v = rig_open_volume(rig, b->name);
		memcpy(b->bytes, a->bytes, VOLUME_BYTES);
		break;
	case 4:
		delete_volume(a);
		break;
	case 5:
		if (!a->v)
			create_volume(a);
		break;
	case 6:
		reopen();
		break;
	case 7:
		look_at_crash();
		break;
	default:
		change_metadata_snap(p);
		break;
	}
}

/* ---- the test ---- */

static void run_rounds(struct prng *p, uint64_t rounds)
{
	struct thread threads[NR_THREADS];

	memset(threads, 0, sizeof(threads));
	for (unsigned i = 0; i < NR_THREADS; i++) {
		struct thread *t = &threads[i];

		t->number = i;
		prng_init(&t->prng, prng_next(p));
		pthread_mutex_init(&t->lock, NULL);
		for (unsigned j = 0; j < DEPTH; j++) {
			t->ops[j].next = t->idle;
			t->idle = &t->ops[j];
		}
	}
	for (uint64_t n = 0; n < rounds; n++) {
		for (unsigned i = 0; i < NR_THREADS; i++)
			assert_int_equal(
				pthread_create(&threads[i].id, NULL, round_of_io, &threads[i]), 0);
		for (unsigned i = 0; i < NR_THREADS; i++)
			pthread_join(threads[i].id, NULL);
		for (unsigned i = 0; i < NR_VOLUMES; i++)
			if (volumes[i].v && prng_below(p, 4) == 0)
				compare(rig, &volumes[i], volumes[i].v);
		between_rounds(p);
		if (!volumes[0].v)
			create_volume(&volumes[0]);
	}
}

static void pool_behaves_as_its_model(void **state)
{
	static const uint64_t blocks[] = { 64 * KIB, 192 * KIB, 1 * MIB };
	static const uint32_t alignments[] = { 1, 512, 4096 };
	uint64_t block;
	struct prng p;

	(void)state;
	prng_init(&p, prng_seed());
	block = blocks[prng_below(&p, ARRAY_SIZE(blocks))];
	stripe_bytes = 1000 + prng_below(&p, 250000);
	/* Twice what the volumes have, as the metadata snapshot may hold what they had before. */
	rig = pool_rig_create(block, NR_VOLUMES * (VOLUME_BYTES / block + 1) * 3 + 16,
			      alignments[prng_below(&p, ARRAY_SIZE(alignments))]);
	print_message("# blocks of %llu KiB, stripes of %llu bytes, alignment %u\n",
		      (unsigned long long)(block / KIB), (unsigned long long)stripe_bytes,
		      io_device_alignment(rig->data));
	for (unsigned i = 0; i < NR_VOLUMES; i++) {
		snprintf(volumes[i].name, sizeof(volumes[i].name), "vol%u", i);
		volumes[i].bytes = calloc(1, VOLUME_BYTES);
	}
	create_volume(&volumes[0]);
	run_rounds(&p, prng_ops(20));
	for (unsigned i = 0; i < NR_VOLUMES; i++)
		if (volumes[i].v)
			compare(rig, &volumes[i], volumes[i].v);
	look_at_crash();
	reopen();
	for (unsigned i = 0; i < NR_VOLUMES; i++) {
		if (volumes[i].v) {
			compare(rig, &volumes[i], volumes[i].v);
			rig_close_volume(volumes[i].v);
		}
		free(volumes[i].bytes);
	}
	assert_int_equal(pool_rig_close(rig), 0);
	assert_true(pool_rig_is_clean(rig));
	pool_rig_destroy(rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(pool_behaves_as_its_model) };

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
