/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * abort-thin-clients.c - who reads, asks and waits in test-abort-thin.c
 *
 * A client has blocks of its own in each live device and knows what it has written to them: so it
 * can tell old from new, its own from foreign, and what was durable from what may be lost.
 */
#include "abort-thin.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <sched.h>

#include "util/clock.h"

#define MAX_RUN 3u /* blocks of a request */
#define STEPS_A_TURN 8u

struct world world;

void client_init(struct client *c, unsigned number, uint64_t seed, struct heart *heart)
{
	c->number = number;
	c->heart = heart;
	prng_init(&c->prng, seed);
	for (unsigned d = 0; d < NR_LIVE; d++)
		for (unsigned i = 0; i < NR_OWN; i++)
			c->own[d][i].may_be_hole = true;
}

/* ---- clients: asking ---- */

/* Through the throttle, as a deferral; the answer is awaited. */
static int ask(struct client *c, struct request *req)
{
	tp_lock_may_wait(LC_completion);
	lock_throttle_shared(&world.throttle);
	lock_pool(&world.lock);
	STAILQ_INSERT_TAIL(&world.requests, req, link);
	unlock_pool(&world.lock);
	unlock_throttle_shared(&world.throttle);

	lock_pool(&world.lock);
	while (!req->done)
		tp_lock_wait(&world.lock, &world.answered);
	unlock_pool(&world.lock);
	c->nr_answered++;
	c->nr_failed += req->result != 0;
	return req->result;
}

/* ---- clients: reading ---- */

static void note_done(struct thin_waiter *w)
{
	__atomic_store_n(&w->opaque[7], 1, __ATOMIC_RELEASE);
}

/* As the threads of a front end do: reads what it misses through its own queue, never sleeps on a
 * lock that is held for long. */
static int find_patiently(struct client *c, unsigned device, unsigned v, struct thin_run *ret_run)
{
	struct request req = { .kind = REQUEST_FIND, .device = device, .first = v };
	struct io_queue *q;
	mblock_t missing;
	int r;

	REQUIRE(!io_queue_self(&q), "no queue");
	while ((r = thin_try_find_run(world.live[device], v, 1, ret_run, &missing)) ==
	       -EWOULDBLOCK) {
		struct thin_waiter w = { .done = note_done };

		if (missing == MBLOCK_NONE)
			break;
		r = thin_metadata_prefetch(world.tmd, missing, &w);
		while (r == -EINPROGRESS && !__atomic_load_n(&w.opaque[7], __ATOMIC_ACQUIRE))
			io_queue_run(q, USEC_PER_MSEC); /* the answer may come from elsewhere */
		if (r == -EINPROGRESS && w.result && w.result != -EAGAIN)
			break; /* perhaps another's read, from when reads failed: find out */
	}
	if (r != -EWOULDBLOCK && r != -EINPROGRESS)
		return r;
	r = ask(c, &req);
	*ret_run = req.run;
	return r;
}

/* The stamp of a block: of zeros if it is a hole.  -EAGAIN: @guard has changed meanwhile. */
static int read_stamp(struct client *c, unsigned device, unsigned v, atomic_uint *guard,
		      struct stamp *ret_stamp)
{
	unsigned before = atomic_load(guard);
	unsigned faults = atomic_load(&world.read_faults);
	struct thin_run run;
	int r;

	*ret_stamp = (struct stamp){ .write = 0 };
	if (prng_below(&c->prng, 16)) {
		r = find_patiently(c, device, v, &run);
	} else { /* may sleep on meta_root, also with the registry held */
		tp_lock_may_wait(LC_meta_root);
		r = thin_find_run(world.live[device], v, 1, &run);
	}
	if (r == -EIO && (faults % 2 || atomic_load(&world.read_faults) != faults))
		return -EAGAIN;
	REQUIRE(!r, "lookup of block %u of device %u: %d", v, device, r);
	if (run.mapped)
		REQUIRE(!io_device_read(world.data, ret_stamp, sizeof(*ret_stamp),
					run.dblock * MODEL_BLOCK_BYTES),
			"data block %" PRIu64, run.dblock);
	c->nr_reads++;
	return before % 2 || atomic_load(guard) != before ? -EAGAIN : 0;
}

static unsigned own_index(const struct client *c, unsigned i)
{
	return i * NR_CLIENTS + c->number;
}

/* Own blocks are changed by nobody else, but for aborts. */
static void client_read_own(struct client *c, unsigned device, unsigned i)
{
	unsigned epoch = atomic_load(&world.epoch), v = own_index(c, i);
	const struct own_block *o = &c->own[device][i];
	struct stamp s;

	if (read_stamp(c, device, v, &world.epoch, &s)) {
		c->nr_retried++;
		return;
	}
	if (epoch == c->known && epoch == atomic_load(&world.epoch))
		REQUIRE(s.write == o->expected,
			"block %u of device %u: write %#" PRIx64 ", not %#" PRIx64, v, device,
			s.write, o->expected);
	if (!s.write)
		REQUIRE(o->may_be_hole, "block %u of device %u is gone", v, device);
	else
		REQUIRE(s.device == device && s.vblock == v && s.write >= o->durable &&
				s.write <= o->submitted,
			"block %u of device %u: write %#" PRIx64 " of %u/%u, not %#" PRIx64
			" to %#" PRIx64,
			v, device, s.write, s.device, s.vblock, o->durable, o->submitted);
	c->nr_verified++;
}

/* Anybody's block: it may be any of its owner's writes. */
static void client_read_any(struct client *c)
{
	unsigned device = (unsigned)prng_below(&c->prng, NR_LIVE);
	unsigned v = (unsigned)prng_below(&c->prng, MODEL_VBLOCKS);
	struct stamp s;

	/* The first device never changes, whatever is done to its snapshots. */
	if (read_stamp(c, device, v, device ? &world.churn : &world.still, &s)) {
		c->nr_retried++;
		return;
	}
	if (!device)
		REQUIRE(s.write == write_number(NR_CLIENTS, v + 1), "%#" PRIx64, s.write);
	if (s.write)
		REQUIRE(s.device == device && s.vblock == v &&
				(!device || s.write >> 48 == v % NR_CLIENTS + 1),
			"block %u of device %u shows write %#" PRIx64 " of %u/%u", v, device,
			s.write, s.device, s.vblock);
	c->nr_verified++;
}

/* ---- clients: changing ---- */

/* What it is now it stays: an abort may have taken the last write back. */
static void note_durable(struct client *c, struct own_block *o, unsigned device, unsigned v)
{
	struct stamp s;

	while (read_stamp(c, device, v, &world.epoch, &s))
		heart_beat(c->heart);
	REQUIRE(s.write ? s.write >= o->durable && s.write <= o->submitted : o->may_be_hole,
		"block %u of device %u: write %#" PRIx64, v, device, s.write);
	*o = (struct own_block){
		.expected = s.write,
		.durable = s.write,
		.submitted = s.write,
		.may_be_hole = !s.write,
	};
	c->nr_verified++;
}

static void client_flush(struct client *c)
{
	struct request req = { .kind = REQUEST_FLUSH };
	unsigned epoch;

	if (ask(c, &req))
		return;
	epoch = atomic_load(&world.epoch);
	for (unsigned d = 1; d < NR_LIVE; d++)
		for (unsigned i = 0; i < NR_OWN; i++)
			note_durable(c, &c->own[d][i], d, own_index(c, i));
	c->known = epoch;
}

static void client_change(struct client *c, enum request_kind kind)
{
	unsigned i = (unsigned)prng_below(&c->prng, NR_OWN - MAX_RUN + 1);
	struct request req = {
		.kind = kind,
		.device = 1 + (unsigned)prng_below(&c->prng, NR_LIVE - 1),
		.first = own_index(c, i),
		.nr = 1 + (unsigned)prng_below(&c->prng, MAX_RUN),
	};

	req.write = write_number(c->number, c->nr_writes + 1);
	for (unsigned n = 0; n < req.nr; n++) {
		struct own_block *o = &c->own[req.device][i + n];

		if (kind == REQUEST_PUNCH)
			o->may_be_hole = true;
		else
			o->submitted = req.write + n;
		o->expected = kind == REQUEST_PUNCH ? 0 : req.write + n;
	}
	c->nr_writes += req.nr;
	if (ask(c, &req)) /* each block reads as old or new */
		c->known = UINT_MAX;
}

static void client_step(struct client *c)
{
	unsigned what = (unsigned)prng_below(&c->prng, 100);
	unsigned device = 1 + (unsigned)prng_below(&c->prng, NR_LIVE - 1);

	if (what < 40)
		client_read_own(c, device, (unsigned)prng_below(&c->prng, NR_OWN));
	else if (what < 85)
		client_read_any(c);
	else if (what < 96)
		client_change(c, REQUEST_WRITE);
	else if (what < 99)
		client_change(c, REQUEST_PUNCH);
	else
		client_flush(c);
	heart_beat(c->heart);
	if (++c->nr_steps % STEPS_A_TURN == 0)
		sched_yield(); /* the mutator has the most to do */
}

void *io_thread_main(void *arg)
{
	struct client *c = arg;

	while (!atomic_load(&world.stop))
		client_step(c);
	heart_rest(c->heart);
	atomic_fetch_sub(&world.nr_running, 1);
	return NULL;
}

/* ---- pressure ---- */

static uint64_t volume_count(void *ctx)
{
	(void)ctx;
	return 1;
}

/* Causes I/O on a volume and waits for it, as the inode shrinker of a file system does. */
static uint64_t volume_scan(void *ctx, uint64_t nr)
{
	(void)nr;
	client_step(ctx);
	return 1;
}

const struct shrinker_ops volume_shrinker = { .count = volume_count, .scan = volume_scan };

void *pressure_main(void *arg)
{
	struct shrinkers_report report;
	struct client *c = arg;

	while (!atomic_load(&world.stop)) {
		shrinkers_reclaim(1, &report);
		heart_beat(c->heart);
	}
	heart_rest(c->heart);
	atomic_fetch_sub(&world.nr_running, 1);
	return NULL;
}
