/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Whole pools that fail, one after another: a request of a device fails at random under four
 * threads with I/O on a volume, commands, and a pressure thread that runs the shrinkers without
 * a pause, one of which does I/O on the volume and waits for it.
 *
 * Each round: the pool is opened, fails, goes read-only while its readers go on, with NEEDS_CHECK
 * unless only its data device failed, is closed, checked, and the flag cleared.  Each page of the
 * volume has one writer, who knows what he wrote and what was flushed: what is read is the last
 * flushed or a later one, before closing and after opening the same; a snapshot stays what it was;
 * a volume that nobody writes to, too. No thread stands still for more than a second unless the
 * machine does.
 *
 * TP_SEED repeats the choices, TP_OPS is the number of rounds.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "fault-device.h"
#include "mem-device.h"
#include "pool-fixture.h"
#include "pool/pool-internal.h"
#include "prng.h"
#include "reclaim/pressure.h"
#include "require.h"
#include "stall-watch.h"
#include "thin-image.h"
#include "thin/thin-check.h"
#include "thinpoold/disk-format.h"
#include "util/clock.h"
#include "util/le.h"
#include "util/log.h"

#ifndef NR_ABORTS
#define NR_ABORTS 100
#endif

#define BLOCK (64 * KIB)
#define PAGE UINT64_C(4096)
#define METADATA_BYTES (1 * MIB)
#define NR_BLOCKS 160u
#define NR_IO_THREADS 4u
#define NR_CLIENTS (NR_IO_THREADS + 1) /* and the shrinker */
#define NR_OWN 80u                     /* pages of a client */
#define NR_PAGES (NR_CLIENTS * NR_OWN)
#define VOLUME_BYTES (NR_PAGES * PAGE)
#define HANG_USEC (60 * USEC_PER_SEC)
#define FULL_CHECK_EVERY 500u

/* A page as its writer knows it.  Writes have rising numbers; 0: never written. */
struct page {
	_Atomic uint64_t acknowledged, submitted;
	uint64_t durable;
};

/* What a page begins and ends with. */
struct stamp {
	uint64_t page, write;
};

struct client {
	unsigned number;
	pthread_t thread;
	struct prng prng;
	struct heart *heart;
	struct io_queue *q;
	uint8_t *buffer; /* a page */
	uint64_t nr_writes, nr_failed, nr_reads;
	_Atomic uint64_t nr_steps;
};

static struct pool_rig *rig;
static struct volume *volume, *fixed;
static struct prng prng; /* the main thread's */
static struct heart *main_heart;
static struct page pages[NR_PAGES];
static struct client clients[NR_CLIENTS];
static pthread_barrier_t begin, end;
static atomic_bool pause_io, stop, reads_fail;

/* The snapshot: its pages lie between the two, and once they were read they stay. */
static struct {
	uint64_t first[NR_PAGES], last[NR_PAGES];
	bool exists, known;
} snapshot;

static struct {
	uint64_t nr_aborts, nr_failed_pools, nr_flags, nr_snapshots;
	uint64_t longest_round_usec, longest_abort_usec;
} totals;

static unsigned below(uint64_t limit)
{
	return (unsigned)prng_below(&prng, limit);
}

/* ---- pages ---- */

static void fill_page(uint8_t *buffer, uint64_t page, uint64_t write)
{
	const struct stamp stamp = { .page = page, .write = write };

	for (uint64_t at = 0; at < PAGE; at += sizeof(stamp))
		memcpy(buffer + at, &stamp, sizeof(stamp));
}

/* Whole, and of this page; returns which write it is. */
static uint64_t page_write(const uint8_t *buffer, uint64_t page)
{
	struct stamp first, other;

	memcpy(&first, buffer, sizeof(first));
	for (uint64_t at = 512; at < PAGE; at += 512) {
		memcpy(&other, buffer + at, sizeof(other));
		REQUIRE(other.page == first.page && other.write == first.write,
			"page %" PRIu64 " is torn", page);
	}
	REQUIRE(first.page == page || (!first.page && !first.write),
		"page %" PRIu64 " shows %" PRIu64, page, first.page);
	return first.write;
}

/* ---- clients ---- */

struct op {
	struct pool_io io;
	struct io_queue *q;
	int result;
	atomic_bool done;
};

static void op_done(struct pool_io *io, int r)
{
	struct op *op = container_of(io, struct op, io);
	struct io_queue *q = op->q;

	op->result = r;
	atomic_store(&op->done, true); /* from here on the operation may be gone */
	io_queue_wake(q);
}

/* As a front end: never sleeps but in its event loop. */
static int submit(struct client *c, struct op *op)
{
	op->q = c->q;
	op->io.done = op_done;
	atomic_store(&op->done, false);
	pool_io_submit(rig->pool, c->q, &op->io);
	while (!atomic_load(&op->done))
		io_queue_run(c->q, USEC_PER_MSEC);
	return op->result;
}

static int client_io(struct client *c, enum pool_io_op kind, bool durable, uint64_t page)
{
	struct op op = { .io = { .op = kind,
				 .durable = durable,
				 .volume = volume,
				 .offset = page * PAGE,
				 .length = kind == POOL_FLUSH ? 0 : PAGE,
				 .buffer = c->buffer } };

	if (c->number < NR_IO_THREADS)
		return submit(c, &op);
	return pool_io_run(rig->pool, c->q, &op.io); /* waits, also for the throttle */
}

static bool is_writable(void)
{
	return !pool_check_writable(rig->pool);
}

static void client_write(struct client *c, uint64_t page)
{
	struct page *p = &pages[page];
	uint64_t write = ++c->nr_writes;
	bool durable = prng_below(&c->prng, 16) == 0;
	int r;

	fill_page(c->buffer, page, write);
	atomic_store(&p->submitted, write);
	r = client_io(c, POOL_WRITE, durable, page);
	if (r) {
		c->nr_failed++;
		REQUIRE(r == -EIO, "write: %d", r);
		return;
	}
	atomic_store(&p->acknowledged, write);
	if (durable && is_writable())
		p->durable = write;
}

static void client_read(struct client *c, uint64_t page)
{
	const struct page *p = &pages[page];
	int r = client_io(c, POOL_READ, false, page);
	uint64_t write;

	if (r == -EIO && atomic_load(&reads_fail)) /* set before reads fail, until the next round */
		return;
	REQUIRE(!r, "read: %d", r);
	write = page_write(c->buffer, page);
	if (is_writable())
		REQUIRE(write == p->acknowledged || write == p->submitted,
			"page %" PRIu64 ": write %" PRIu64 ", not %" PRIu64, page, write,
			p->acknowledged);
	REQUIRE(write >= p->durable && write <= p->submitted,
		"page %" PRIu64 ": write %" PRIu64 ", not %" PRIu64 " to %" PRIu64, page, write,
		p->durable, p->submitted);
	c->nr_reads++;
}

static void client_flush(struct client *c)
{
	int r = client_io(c, POOL_FLUSH, false, 0);

	if (r) {
		c->nr_failed++;
		REQUIRE(r == -EIO, "flush: %d", r);
		return;
	}
	/* After a failure others may have been told what was lost, in our place. */
	if (!is_writable())
		return;
	for (unsigned i = 0; i < NR_OWN; i++) {
		struct page *p = &pages[i * NR_CLIENTS + c->number];

		p->durable = p->acknowledged;
	}
}

static void client_step(struct client *c)
{
	uint64_t page = prng_below(&c->prng, NR_OWN) * NR_CLIENTS + c->number;
	unsigned what = (unsigned)prng_below(&c->prng, 16);

	if (what < 7)
		client_write(c, page);
	else if (what < 15)
		client_read(c, page);
	else
		client_flush(c);
	atomic_fetch_add(&c->nr_steps, 1);
	heart_beat(c->heart);
}

static void client_start(struct client *c)
{
	REQUIRE(!io_queue_self(&c->q), "no queue");
	c->buffer = io_buffer_alloc(PAGE);
	REQUIRE(c->buffer, "no memory");
}

static void *io_thread_main(void *arg)
{
	struct client *c = arg;

	client_start(c);
	for (;;) {
		pthread_barrier_wait(&begin);
		if (atomic_load(&stop))
			break;
		tp_lock_hold_begin(c, LC_completion); /* a front end answers requests itself */
		heart_beat(c->heart);
		while (!atomic_load(&pause_io))
			client_step(c);
		heart_rest(c->heart);
		tp_lock_hold_end(c, LC_completion);
		pthread_barrier_wait(&end);
	}
	free(c->buffer);
	return NULL;
}

/* ---- pressure: a timer without a pause, not even while the pool is closed ---- */

static uint64_t volume_count(void *ctx)
{
	(void)ctx;
	return PRESSURE_DIVISOR; /* of which one is asked for */
}

/* Out of the pressure thread, with the registry held shared. */
static uint64_t volume_scan(void *ctx, uint64_t nr)
{
	struct client *c = ctx;

	(void)nr;
	if (!c->q)
		client_start(c);
	client_step(c);
	return 1;
}

static const struct shrinker_ops volume_shrinker = { .count = volume_count, .scan = volume_scan };

static struct pressure *start_pressure(void)
{
	const struct pressure_options options = {
		.enabled = { [PRESSURE_TIMER] = true },
		.stall_usec = USEC_PER_SEC,
		.timer_usec = 1,
	};
	struct pressure *p = NULL;

	assert_int_equal(pressure_start(&options, &p), 0);
	return p;
}

/* ---- the main thread: snapshots ---- */

static void snapshot_create(void)
{
	int r;

	for (unsigned i = 0; i < NR_PAGES; i++)
		snapshot.first[i] = is_writable() ? atomic_load(&pages[i].acknowledged) : 0;
	r = rig_snapshot(rig, "vol", "snap");
	REQUIRE(r == 0 || r == -EIO, "snapshot: %d", r);
	for (unsigned i = 0; i < NR_PAGES; i++)
		snapshot.last[i] = atomic_load(&pages[i].submitted);
	snapshot.known = false;
	snapshot.exists = true; /* if not, that is found out when the pool is open again */
	totals.nr_snapshots++;
}

static void snapshot_delete(void)
{
	int r = rig_delete(rig, "snap");

	REQUIRE(r == 0 || r == -EIO, "delete: %d", r);
	snapshot.exists = r != 0;
}

static void some_command(void)
{
	if (!is_writable())
		return;
	if (snapshot.exists)
		snapshot_delete();
	else
		snapshot_create();
}

/* ---- the main thread: looking at everything, while nobody writes ---- */

static void read_volume(const char *name, uint64_t bytes, uint8_t *buffer)
{
	struct volume *v = NULL;

	REQUIRE(!pool_volume_find(rig->pool, name, &v), "no volume \"%s\"", name);
	REQUIRE(!volume_open(v, false), "open \"%s\"", name);
	REQUIRE(!rig_io(rig, v, POOL_READ, 0, bytes, buffer), "read \"%s\"", name);
	volume_close(v);
	volume_put(v);
}

static void look_at_volume(uint8_t *buffer)
{
	read_volume("vol", VOLUME_BYTES, buffer);
	for (unsigned i = 0; i < NR_PAGES; i++) {
		uint64_t write = page_write(buffer + i * PAGE, i);
		struct page *p = &pages[i];

		REQUIRE(write >= p->durable && write <= p->submitted,
			"page %u: write %" PRIu64 ", not %" PRIu64 " to %" PRIu64, i, write,
			p->durable, p->submitted);
		/* What was thrown away is gone: from now on it is this. */
		p->durable = write;
		atomic_store(&p->acknowledged, write);
		atomic_store(&p->submitted, write);
	}
}

static void look_at_snapshot(uint8_t *buffer)
{
	struct volume *v = NULL;

	snapshot.exists = pool_volume_find(rig->pool, "snap", &v) == 0;
	if (!snapshot.exists)
		return;
	volume_put(v);
	read_volume("snap", VOLUME_BYTES, buffer);
	for (unsigned i = 0; i < NR_PAGES; i++) {
		uint64_t write = page_write(buffer + i * PAGE, i);

		REQUIRE(write >= snapshot.first[i] && write <= snapshot.last[i],
			"page %u of the snapshot: write %" PRIu64 ", not %" PRIu64 " to %" PRIu64,
			i, write, snapshot.first[i], snapshot.last[i]);
		if (snapshot.known)
			continue;
		snapshot.first[i] = snapshot.last[i] = write;
	}
	snapshot.known = true;
}

static void look_at_everything(void)
{
	uint8_t *buffer = io_buffer_alloc(VOLUME_BYTES);

	REQUIRE(buffer, "no memory");
	look_at_volume(buffer);
	look_at_snapshot(buffer);
	read_volume("fixed", 4 * BLOCK, buffer);
	for (unsigned i = 0; i < 4 * BLOCK / PAGE; i++)
		REQUIRE(page_write(buffer + i * PAGE, 1000 + i) == 1, "page %u", i);
	free(buffer);
}

/* ---- the main thread: failures ---- */

static void arm_fault(void)
{
	struct fault f = { .ops = FAULT_OP(IO_WRITE), .skip = below(30), .count = 1 };

	switch (below(8)) {
	case 0:
	case 1:
	case 2:
		f.count = UINT64_MAX;
		break;
	case 3:
		f.ops = FAULT_OP(IO_FLUSH);
		f.skip %= 4;
		break;
	case 4:
		fault_device_add(rig->data, &(struct fault){ .ops = FAULT_OP(IO_FLUSH) });
		return;
	case 5:
		atomic_store(&reads_fail, true);
		f.ops = FAULT_OP(IO_READ);
		f.count = below(2) ? 1 : UINT64_MAX;
		break;
	default:
		break;
	}
	fault_device_add(rig->meta, &f);
}

static void disarm(void)
{
	fault_device_clear(rig->meta);
	fault_device_clear(rig->data);
}

static void await_failure(void)
{
	uint64_t again = time_monotonic_usec() + 200 * USEC_PER_MSEC;

	while (is_writable()) {
		some_command();
		heart_beat(main_heart);
		io_queue_run(rig->q, 200);
		if (time_monotonic_usec() < again)
			continue;
		/* A read that failed costs its reader an error, but not the pool its mode. */
		fault_device_add(rig->meta,
				 &(struct fault){ .ops = FAULT_OP(IO_WRITE), .count = UINT64_MAX });
		again = UINT64_MAX;
	}
}

/* Each of them gets on, whatever the pool cannot do any more. */
static void await_steps(void)
{
	uint64_t enough[NR_CLIENTS];

	for (unsigned i = 0; i < NR_CLIENTS; i++)
		enough[i] = atomic_load(&clients[i].nr_steps) + 3;
	for (unsigned i = 0; i < NR_CLIENTS; i++)
		while (atomic_load(&clients[i].nr_steps) < enough[i]) {
			heart_beat(main_heart);
			io_queue_run(rig->q, 200);
		}
}

/* The counts are those of the mappings; returns whether the flag is set. */
static bool check_metadata(uint64_t round)
{
	struct io_device *mem = fault_device_inner(rig->meta);
	const struct thin_disk_superblock *sb = mem_device_data(mem);
	struct thin_check_options options = { .data_bytes = NR_BLOCKS * BLOCK };
	struct thin_check_result result;

	REQUIRE(!thin_check(mem, &options, &result), "check");
	heart_rest(main_heart); /* other programs may be run */
	if (result.nr_hints || result.nr_leaks || result.nr_damages ||
	    round % FULL_CHECK_EVERY == 0)
		REQUIRE(thin_device_is_clean(mem), "round %" PRIu64, round);
	heart_beat(main_heart);
	return le32_get(sb->flags) & THIN_NEEDS_CHECK_FLAG;
}

static void serve_until_it_fails(struct shrinker **shrinker)
{
	REQUIRE(!shrinker_register("volume", &volume_shrinker, &clients[NR_IO_THREADS], shrinker),
		"register");
	atomic_store(&pause_io, false);
	pthread_barrier_wait(&begin);
	for (unsigned n = below(3); n; n--)
		some_command();
	arm_fault();
	await_failure();
	await_steps();
	atomic_store(&pause_io, true);
	pthread_barrier_wait(&end);
	*shrinker = shrinker_unregister(*shrinker); /* waits for its I/O */
	heart_rest(clients[NR_IO_THREADS].heart);
}

static void one_round(uint64_t round)
{
	bool broken = below(2); /* the device stays as it is until the pool is closed */
	struct shrinker *shrinker;
	struct pool_status status;
	uint64_t began = time_monotonic_usec();

	volume = rig_open_volume(rig, "vol");
	serve_until_it_fails(&shrinker);
	heart_beat(main_heart);
	REQUIRE(rig_commit(rig) == -EIO, "writable"); /* the worker is done with its abort */
	status = rig_status(rig);
	/* When it is the data device that fails, the metadata needs no check. */
	REQUIRE(status.mode >= POOL_MODE_READ_ONLY && status.reason[0] &&
			status.needs_check == !strstr(status.reason, "the data device"),
		"mode %d, needs_check %d, reason \"%s\"", status.mode, status.needs_check,
		status.reason);
	totals.nr_aborts += status.stats.aborts;
	totals.longest_abort_usec = MAX(totals.longest_abort_usec, status.longest_abort_usec);
	totals.nr_failed_pools += status.mode == POOL_MODE_FAIL;
	if (!broken || atomic_load(&reads_fail))
		disarm();
	if (status.mode != POOL_MODE_FAIL)
		look_at_everything();
	rig_close_volume(volume);
	heart_beat(main_heart);
	(void)pool_rig_close(rig); /* the failure has been told */
	disarm();
	atomic_store(&reads_fail, false);
	heart_beat(main_heart);
	if (check_metadata(round)) {
		totals.nr_flags++;
		thin_image_clear_needs_check(fault_device_inner(rig->meta));
	}
	heart_beat(main_heart);
	pool_rig_open(rig);
	look_at_everything();
	heart_beat(main_heart);
	totals.longest_round_usec = MAX(totals.longest_round_usec, time_monotonic_usec() - began);
}

/* ---- the test ---- */

static void make_volumes(void)
{
	uint8_t *buffer = io_buffer_alloc(PAGE);

	fixed = rig_create_volume(rig, "fixed", 4 * BLOCK);
	for (unsigned i = 0; i < 4 * BLOCK / PAGE; i++) {
		fill_page(buffer, 1000 + i, 1);
		assert_int_equal(rig_io(rig, fixed, POOL_WRITE, i * PAGE, PAGE, buffer), 0);
	}
	assert_int_equal(rig_flush(rig, fixed), 0);
	rig_close_volume(fixed);
	rig_close_volume(rig_create_volume(rig, "vol", VOLUME_BYTES));
	free(buffer);
}

static void start_clients(struct stall_watch *watch)
{
	static const char *const names[] = { "io 0", "io 1", "io 2", "io 3", "pressure" };

	for (unsigned i = 0; i < NR_CLIENTS; i++) {
		struct client *c = &clients[i];

		c->number = i;
		c->heart = stall_watch_enter(watch, names[i]);
		prng_init(&c->prng, prng_next(&prng));
		if (i < NR_IO_THREADS)
			assert_int_equal(pthread_create(&c->thread, NULL, io_thread_main, c), 0);
	}
}

static long resident_kib(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_maxrss;
}

static void report(const struct stall_report *stalls, const struct pressure_stats *pressure,
		   uint64_t usec)
{
	uint64_t nr_steps = 0, nr_reads = 0, nr_failed = 0;

	for (unsigned i = 0; i < NR_CLIENTS; i++) {
		nr_steps += clients[i].nr_steps;
		nr_reads += clients[i].nr_reads;
		nr_failed += clients[i].nr_failed;
	}
	print_message("# %" PRIu64
		      " aborts in %.1f s, longest round %.3f s; NEEDS_CHECK stored %" PRIu64
		      " times, %" PRIu64 " pools failed altogether; %" PRIu64 " snapshots tried\n",
		      totals.nr_aborts, (double)usec / USEC_PER_SEC,
		      (double)totals.longest_round_usec / USEC_PER_SEC, totals.nr_flags,
		      totals.nr_failed_pools, totals.nr_snapshots);
	print_message("# longest abort %.3f s; %" PRIu64
		      " runs of the shrinkers, the longest held the registry for %.3f s\n",
		      (double)totals.longest_abort_usec / USEC_PER_SEC, pressure->runs,
		      (double)pressure->longest_hold_usec / USEC_PER_SEC);
	print_message("# %" PRIu64 " requests, %" PRIu64 " failed, %" PRIu64 " reads compared\n",
		      nr_steps, nr_failed, nr_reads);
	print_message("# longest stall %.3f s, %.3f s without explanation (\"%s\"), of the machine "
		      "%.3f s; at most %ld KiB resident\n",
		      (double)stalls->longest_usec / USEC_PER_SEC,
		      (double)stalls->unexplained_usec / USEC_PER_SEC, stalls->name,
		      (double)stalls->machine_usec / USEC_PER_SEC, resident_kib());
	assert_true(stalls->unexplained_usec < stalls->limit_usec);
	assert_true(pressure->runs > totals.nr_aborts);
	assert_true(totals.nr_flags > 0 && nr_failed > 0 && nr_reads > totals.nr_aborts);
}

static void pools_that_fail(void **state)
{
	struct stall_watch *watch = stall_watch_start(HANG_USEC);
	uint64_t nr = prng_ops(NR_ABORTS), began = time_monotonic_usec();
	struct pressure_stats pressure_stats;
	struct pressure *pressure;
	struct stall_report stalls;

	(void)state;
	prng_init(&prng, prng_seed());
	main_heart = stall_watch_enter(watch, "main");
	rig = pool_rig_create_sized(BLOCK, NR_BLOCKS, 512, METADATA_BYTES);
	rig->options.cache_bytes = 256 * KIB;
	rig->options.commit_interval_usec = 5 * USEC_PER_MSEC;
	make_volumes();
	log_set_level(LOG_LEVEL_ERR - 1); /* errors are what this is about */
	pthread_barrier_init(&begin, NULL, NR_IO_THREADS + 1);
	pthread_barrier_init(&end, NULL, NR_IO_THREADS + 1);
	start_clients(watch);
	pressure = start_pressure();
	pool_rig_reopen(rig);
	for (uint64_t round = 1; round <= nr; round++)
		one_round(round);
	heart_rest(main_heart);
	atomic_store(&stop, true);
	pthread_barrier_wait(&begin);
	for (unsigned i = 0; i < NR_IO_THREADS; i++)
		pthread_join(clients[i].thread, NULL);
	pressure_get_stats(pressure, &pressure_stats);
	pressure_destroy(pressure);
	free(clients[NR_IO_THREADS].buffer);
	log_set_level(LOG_LEVEL_INFO);
	stalls = stall_watch_end(watch);
	report(&stalls, &pressure_stats, time_monotonic_usec() - began);
	assert_int_equal(pool_rig_close(rig), 0);
	assert_true(pool_rig_is_clean(rig));
	pool_rig_destroy(rig);
	pthread_barrier_destroy(&begin);
	pthread_barrier_destroy(&end);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(pools_that_fail) };

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("abort-pool", tests, NULL, NULL);
}
