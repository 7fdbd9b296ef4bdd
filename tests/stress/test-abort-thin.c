/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Aborts without end: transactions that fail at a random request of a device, under four threads
 * that read and ask for changes and a pressure thread that runs the shrinkers without a pause.
 *
 * The main thread is the mutator.  It does what a pool's worker does: takes requests, changes
 * mappings, commits, aborts, sets NEEDS_CHECK, answers.  The other threads read what is mapped
 * without asking, as the fast path does, and wait for the answers to all else; so does a shrinker,
 * with the registry's lock held, which is the situation that the reset of the cache exists for.
 *
 * After each abort: mappings, contents and the counts on disk are those of the model, in the
 * committed state or, if only the last flush failed, in the new one.  Between the aborts each
 * client sees what it has flushed, or something later of its own; a volume that nobody writes to
 * always reads as it did.  No thread stands still for more than a second unless the machine does.
 *
 * TP_SEED repeats the choices, TP_OPS is the number of aborts.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "abort-thin.h"
#include "fault-device.h"
#include "mem-device.h"
#include "thin-image.h"
#include "thinpoold/disk-format.h"
#include "util/clock.h"
#include "util/log.h"

#ifndef NR_ABORTS
#define NR_ABORTS 1000
#endif

#define METADATA_BYTES (UINT64_C(1) << 20)
#define HANG_USEC (60 * USEC_PER_SEC)
#define NR_FULL_CHECKS 5u /* by everybody's tools */

/* The mutator's own. */
static struct {
	struct prng prng;
	struct heart *heart;
	struct mapping_model now, committed;
	struct request_list flushes;
	uint64_t nr_writes, nr_aborts, nr_commits, nr_landed, nr_needs_check, nr_broken, nr_full;
	uint64_t abort_usec, longest_abort_usec;
} mutator;

static unsigned below(uint64_t limit)
{
	return (unsigned)prng_below(&mutator.prng, limit);
}

/* ---- the mutator: answers ---- */

static void answer(struct request *req, int r)
{
	lock_pool(&world.lock);
	req->result = r;
	req->done = true;
	pthread_cond_broadcast(&world.answered);
	unlock_pool(&world.lock);
}

static void answer_flushes(int r)
{
	struct request *req;

	while ((req = STAILQ_FIRST(&mutator.flushes))) {
		STAILQ_REMOVE_HEAD(&mutator.flushes, link);
		answer(req, r);
	}
}

/* ---- the mutator: changes; all return 0 or what makes an abort necessary ---- */

static int write_block(struct thin_device *td, unsigned device, unsigned v, uint64_t write)
{
	const struct stamp stamp = { .write = write, .device = device, .vblock = v };
	dblock_t b;
	int r = thin_metadata_reserve_data_block(world.tmd, &b);

	if (r)
		return r == -ENOSPC ? -EAGAIN : r; /* nothing has changed; a commit may free some */
	r = io_device_write(world.data, &stamp, sizeof(stamp), b * MODEL_BLOCK_BYTES);
	REQUIRE(!r, "write of data: %d", r);
	r = thin_insert_block(td, v, b);
	if (!r)
		model_map(&mutator.now, device, v, b, write);
	return r;
}

static int remove_range(struct thin_device *td, unsigned device, unsigned begin, unsigned end)
{
	vblock_t next = begin;
	int r = 0;

	while (!r && next < end)
		r = thin_remove_range(td, next, end, 64, &next);
	if (!r)
		model_unmap(&mutator.now, device, begin, end);
	return r;
}

static int serve(struct request *req)
{
	struct thin_device *td = world.live[req->device];
	int r = 0;

	if (req->kind == REQUEST_FLUSH) {
		STAILQ_INSERT_TAIL(&mutator.flushes, req, link);
		return 0;
	}
	if (req->kind == REQUEST_FIND)
		r = thin_find_run(td, req->first, 1, &req->run);
	for (unsigned n = 0; !r && n < req->nr; n++) {
		unsigned v = req->first + n * NR_CLIENTS;

		if (req->kind == REQUEST_WRITE)
			r = write_block(td, req->device, v, req->write + n);
		else
			r = remove_range(td, req->device, v, v + 1);
	}
	mutator.nr_full += r == -EAGAIN;
	/* Without an answer until the abort is over: who waits may hold the registry meanwhile. */
	if (r && r != -EAGAIN)
		STAILQ_INSERT_TAIL(&mutator.flushes, req, link);
	else
		answer(req, r);
	return r == -EAGAIN ? 0 : r;
}

static int serve_requests(void)
{
	struct request_list list = STAILQ_HEAD_INITIALIZER(list);
	struct request *req;
	int r = 0;

	lock_pool(&world.lock);
	STAILQ_CONCAT(&list, &world.requests);
	unlock_pool(&world.lock);
	while (!r && (req = STAILQ_FIRST(&list))) {
		STAILQ_REMOVE_HEAD(&list, link);
		r = serve(req);
	}
	lock_pool(&world.lock); /* what is left is for the next transaction */
	STAILQ_CONCAT(&list, &world.requests);
	STAILQ_CONCAT(&world.requests, &list);
	unlock_pool(&world.lock);
	return r;
}

/* Random; MODEL_DEVICES: none is like that. */
static unsigned some_device(unsigned from, bool existing)
{
	unsigned nr = MODEL_DEVICES - from, first = below(nr);

	for (unsigned n = 0; n < nr; n++)
		if (mutator.now.devices[from + (first + n) % nr].exists == existing)
			return from + (first + n) % nr;
	return MODEL_DEVICES;
}

static int create_some(bool snapshot)
{
	unsigned device = some_device(NR_LIVE, false), origin = some_device(0, true);
	int r;

	if (device == MODEL_DEVICES)
		return 0;
	if (!snapshot) {
		r = thin_metadata_create_thin(world.tmd, model_id(device));
		if (!r)
			model_create(&mutator.now, device);
		return r;
	}
	r = thin_metadata_create_snap(world.tmd, model_id(device), model_id(origin));
	if (!r)
		model_snap(&mutator.now, device, origin);
	return r;
}

static int delete_some(void)
{
	unsigned device = some_device(NR_LIVE, true);
	int r;

	if (device == MODEL_DEVICES)
		return 0;
	r = thin_metadata_delete_thin(world.tmd, model_id(device));
	if (!r)
		model_delete(&mutator.now, device);
	return r;
}

static int change_some(bool punch)
{
	unsigned device = some_device(NR_LIVE, true), v = below(MODEL_VBLOCKS);
	unsigned end = v + 1 + below(punch ? 100 : 16);
	struct thin_device *td;
	int r;

	if (device == MODEL_DEVICES)
		return 0;
	end = MIN(end, MODEL_VBLOCKS);
	r = thin_device_open(world.tmd, model_id(device), &td);
	if (r)
		return r;
	if (punch)
		r = remove_range(td, device, v, end);
	for (; !punch && !r && v < end; v++)
		r = write_block(td, device, v, write_number(NR_CLIENTS + 1, ++mutator.nr_writes));
	td = thin_device_close(td);
	return r == -EAGAIN ? 0 : r;
}

static int some_step(void)
{
	unsigned what = below(100);
	int r;

	atomic_fetch_add(&world.churn, 1);
	r = serve_requests();
	if (!r && what < 60)
		r = change_some(what < 15);
	else if (!r && what < 75)
		r = create_some(what < 70);
	else if (!r && what < 88)
		r = delete_some();
	atomic_fetch_add(&world.churn, 1);
	heart_beat(mutator.heart);
	return r;
}

/* ---- the mutator: commit and abort ---- */

/* The number tells afterwards whether a commit that failed has landed. */
static int commit(void)
{
	uint64_t id = mutator.now.transaction_id;
	int r;

	atomic_fetch_add(&world.churn, 1);
	r = thin_metadata_set_transaction_id(world.tmd, id, id + 1);
	if (!r) {
		mutator.now.transaction_id++;
		r = thin_metadata_commit(world.tmd);
	}
	if (!r) {
		mutator.committed = mutator.now;
		mutator.nr_commits++;
		thin_metadata_take_freed(world.tmd, NULL, NULL);
	}
	atomic_fetch_add(&world.churn, 1);
	if (!r)
		answer_flushes(0);
	heart_beat(mutator.heart);
	return r;
}

static void arm_fault(void)
{
	struct fault f = { .skip = below(12), .count = below(2) ? 1 : UINT64_MAX };

	switch (below(10)) {
	case 0:
		fault_device_add(world.data, &(struct fault){ .ops = FAULT_OP(IO_FLUSH) });
		return;
	case 1:
	case 2:
	case 3:
		atomic_fetch_add(&world.read_faults, 1);
		f.ops = FAULT_OP(IO_READ);
		break;
	case 4:
	case 5:
		f.ops = FAULT_OP(IO_FLUSH);
		f.skip %= 2;
		break;
	case 6: /* a torn write, but never of the superblock */
		f.offset = METADATA_BLOCK_SIZE;
		f.length = METADATA_BYTES;
		f.apply = 512 * below(8);
		f.ops = FAULT_OP(IO_WRITE);
		break;
	default:
		f.ops = FAULT_OP(IO_WRITE);
	}
	fault_device_add(world.meta, &f);
}

static void disarm(void)
{
	fault_device_clear(world.meta);
	fault_device_clear(world.data);
	if (atomic_load(&world.read_faults) % 2)
		atomic_fetch_add(&world.read_faults, 1);
}

static uint64_t nr_faults_met(void)
{
	return fault_device_nr_failed(world.meta) + fault_device_nr_failed(world.data);
}

static void timed_abort(void)
{
	uint64_t began = time_monotonic_usec(), took;
	int r;

	tp_lock_assert_answers();
	r = thin_metadata_abort(world.tmd);
	REQUIRE(!r, "abort: %d", r);
	took = time_monotonic_usec() - began;
	mutator.abort_usec += took;
	mutator.longest_abort_usec = MAX(mutator.longest_abort_usec, took);
}

static bool has_flag(void)
{
	struct thin_metadata_info info;

	REQUIRE(!thin_metadata_get_info(world.tmd, &info), "information");
	return info.needs_check;
}

/* As after each failure of a pool; then, as if it had been checked, in service again. */
static void needs_check_and_back(bool broken)
{
	int r = thin_metadata_set_needs_check(world.tmd);

	REQUIRE(!r || broken, "NEEDS_CHECK: %d", r);
	disarm();
	mutator.nr_needs_check += r == 0;
	mutator.nr_broken += r != 0;
	if (!r) {
		REQUIRE(has_flag(), "no flag");
		REQUIRE(thin_metadata_create_thin(world.tmd, 77777) == -EPERM, "writable");
		thin_image_clear_needs_check(fault_device_inner(world.meta));
		timed_abort();
	} else {
		/* It may have been written and not flushed: what is on disk counts. */
		timed_abort();
		if (has_flag()) {
			thin_image_clear_needs_check(fault_device_inner(world.meta));
			timed_abort();
		}
	}
	REQUIRE(!has_flag(), "flag");
}

/* The new state if the last flush was all that failed, else the old one. */
static void find_what_landed(void)
{
	struct thin_metadata_info info;

	REQUIRE(!thin_metadata_get_info(world.tmd, &info), "information");
	if (info.transaction_id == mutator.now.transaction_id &&
	    mutator.now.transaction_id != mutator.committed.transaction_id) {
		mutator.committed = mutator.now;
		mutator.nr_landed++;
	}
	mutator.now = mutator.committed;
}

static void require_model(void)
{
	struct io_device *mem = fault_device_inner(world.meta);
	const uint8_t *data = mem_device_data(fault_device_inner(world.data));

	REQUIRE(model_holds(&mutator.committed, world.tmd, data, mem), "after abort %" PRIu64,
		mutator.nr_aborts);
	for (unsigned d = 0; d < NR_LIVE; d++)
		REQUIRE(!thin_device_changed(world.live[d]) &&
				thin_device_mapped_blocks(world.live[d]) ==
					mutator.committed.devices[d].mapped_blocks,
			"device %u: %" PRIu64 " blocks", d,
			thin_device_mapped_blocks(world.live[d]));
}

TP_NO_TSA static void fail_and_recover(void)
{
	bool throttled = below(2), reads = atomic_load(&world.read_faults) % 2;
	bool broken = !reads && below(3) == 0; /* the device stays as it is until after the abort */

	if (throttled) /* as a worker whose pass takes long */
		lock_throttle(&world.throttle);
	if (!broken)
		disarm();
	atomic_fetch_add(&world.churn, 1);
	atomic_fetch_add(&world.epoch, 1);
	timed_abort();
	atomic_fetch_add(&world.epoch, 1);
	atomic_fetch_add(&world.churn, 1);
	mutator.nr_aborts++;
	find_what_landed();
	heart_beat(mutator.heart);
	if (broken || below(4) == 0)
		needs_check_and_back(broken);
	heart_beat(mutator.heart);
	require_model();
	if (throttled)
		unlock_throttle(&world.throttle);
	answer_flushes(-EIO);
	heart_beat(mutator.heart);
}

/* A transaction; most of them fail. */
static void one_transaction(void)
{
	uint64_t met = nr_faults_met();
	int r = 0;

	if (below(4))
		arm_fault();
	for (unsigned n = 1 + below(4); !r && n; n--)
		r = some_step();
	if (!r)
		r = commit();
	if (r) {
		REQUIRE(r == -ENOSPC || (r == -EIO && nr_faults_met() > met), "error %d", r);
		fail_and_recover();
	}
	disarm();
}

/* ---- the test ---- */

static void open_metadata(void)
{
	/* Small, so that there is something to read even without pressure. */
	const struct thin_metadata_options options = { .cache_bytes = 512 << 10,
						       .data = world.data };
	struct tp_error error = { 0 };

	if (thin_metadata_open(world.meta, &options, &world.tmd, &error))
		fail_msg("%s", error.text);
}

static void make_pool(void)
{
	world.meta = fault_device_create_mem(METADATA_BYTES);
	world.data = fault_device_create_mem((uint64_t)MODEL_DBLOCKS * MODEL_BLOCK_BYTES);
	assert_int_equal(thin_metadata_format(world.meta, MODEL_BLOCK_SECTORS, NULL), 0);
	open_metadata();
	assert_int_equal(thin_metadata_resize_data(world.tmd, MODEL_DBLOCKS), 0);
	assert_int_equal(thin_metadata_commit(world.tmd), 0);
	for (unsigned d = 0; d < NR_LIVE; d++) {
		assert_int_equal(thin_metadata_create_thin(world.tmd, model_id(d)), 0);
		model_create(&mutator.now, d);
		assert_int_equal(thin_device_open(world.tmd, model_id(d), &world.live[d]), 0);
	}
	for (unsigned v = 0; v < MODEL_VBLOCKS; v++)
		assert_int_equal(write_block(world.live[0], 0, v, write_number(NR_CLIENTS, v + 1)),
				 0);
	assert_int_equal(commit(), 0);
	require_model();
}

static void start(struct client *c, unsigned number, struct stall_watch *watch)
{
	static const char *const names[] = { "io 0", "io 1", "io 2", "io 3", "pressure" };

	client_init(c, number, prng_next(&mutator.prng), stall_watch_enter(watch, names[number]));
	atomic_fetch_add(&world.nr_running, 1);
	assert_int_equal(pthread_create(&c->thread, NULL,
					number < NR_IO_THREADS ? io_thread_main : pressure_main, c),
			 0);
}

/* Who waits gets an answer until nobody is left. */
static void end_clients(struct client *clients)
{
	atomic_store(&world.stop, true);
	while (atomic_load(&world.nr_running)) {
		REQUIRE(!some_step(), "without a fault");
		REQUIRE(!commit(), "without a fault");
	}
	for (unsigned i = 0; i < NR_CLIENTS; i++)
		pthread_join(clients[i].thread, NULL);
}

static long resident_kib(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_maxrss;
}

/* Images to be shown to other programs once nobody waits for the mutator any more. */
static struct thin_image images[NR_FULL_CHECKS];
static unsigned nr_images;

static void run_until(uint64_t nr_aborts)
{
	long early_kib = 0;

	while (mutator.nr_aborts < nr_aborts) {
		one_transaction();
		if (nr_images == NR_FULL_CHECKS ||
		    mutator.nr_aborts < (nr_images + 1) * nr_aborts / (NR_FULL_CHECKS + 1))
			continue;
		images[nr_images++] = thin_image_save(fault_device_inner(world.meta));
		print_message("# %" PRIu64 " aborts, at most %ld KiB resident\n", mutator.nr_aborts,
			      resident_kib());
		early_kib = early_kib ? early_kib : resident_kib();
	}
	/* Sanitizers keep what was freed. */
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
	assert_true(resident_kib() - early_kib < 16 << 10);
#endif
}

static void check_images(void)
{
	for (unsigned i = 0; i < nr_images; i++) {
		assert_true(thin_image_is_clean(&images[i]));
		thin_image_remove(&images[i]);
	}
}

static void report(const struct client *clients, const struct stall_report *stalls, uint64_t usec)
{
	struct client sum = { .number = 0 };
	struct cache_stats cache;

	for (unsigned i = 0; i < NR_CLIENTS; i++) {
		sum.nr_reads += clients[i].nr_reads;
		sum.nr_verified += clients[i].nr_verified;
		sum.nr_retried += clients[i].nr_retried;
		sum.nr_answered += clients[i].nr_answered;
		sum.nr_failed += clients[i].nr_failed;
	}
	thin_metadata_get_cache_stats(world.tmd, &cache);
	print_message("# %" PRIu64 " aborts in %.1f s: longest %" PRIu64 " us, mean %" PRIu64
		      " us; %" PRIu64 " resets; %" PRIu64 " commits, %" PRIu64
		      " landed though they failed; NEEDS_CHECK set %" PRIu64
		      " times and could not be %" PRIu64 " times; data full %" PRIu64 " times\n",
		      mutator.nr_aborts, (double)usec / USEC_PER_SEC, mutator.longest_abort_usec,
		      mutator.abort_usec / cache.resets, cache.resets, mutator.nr_commits,
		      mutator.nr_landed, mutator.nr_needs_check, mutator.nr_broken,
		      mutator.nr_full);
	print_message("# %" PRIu64 " reads, %" PRIu64 " of them compared; %" PRIu64
		      " requests, %" PRIu64 " of them failed; %" PRIu64 " buffers shrunk\n",
		      sum.nr_reads, sum.nr_verified, sum.nr_answered, sum.nr_failed,
		      cache.shrunk_buffers);
	print_message("# longest stall %.3f s, %.3f s without explanation (\"%s\"), of the machine "
		      "%.3f s; at most %ld KiB resident\n",
		      (double)stalls->longest_usec / USEC_PER_SEC,
		      (double)stalls->unexplained_usec / USEC_PER_SEC, stalls->name,
		      (double)stalls->machine_usec / USEC_PER_SEC, resident_kib());
	assert_true(stalls->unexplained_usec < stalls->limit_usec);
	/* It was what it is meant to be. */
	assert_true(cache.shrunk_buffers > mutator.nr_aborts);
	assert_true(sum.nr_verified > mutator.nr_aborts && sum.nr_failed > 0);
	assert_true(mutator.nr_landed && mutator.nr_needs_check && mutator.nr_broken);
}

static void aborts_under_pressure(void **state)
{
	struct client *clients = calloc(NR_CLIENTS, sizeof(*clients));
	struct stall_watch *watch = stall_watch_start(HANG_USEC);
	struct shrinker *shrinker = NULL;
	struct stall_report stalls;
	uint64_t began = time_monotonic_usec();

	(void)state;
	prng_init(&mutator.prng, prng_seed());
	mutator.heart = stall_watch_enter(watch, "mutator");
	make_pool();
	log_set_level(LOG_LEVEL_ERR - 1); /* errors are what this is about */
	assert_int_equal(
		shrinker_register("volume", &volume_shrinker, &clients[NR_IO_THREADS], &shrinker),
		0);
	for (unsigned i = 0; i < NR_CLIENTS; i++)
		start(&clients[i], i, watch);
	tp_lock_hold_begin(&world, LC_completion); /* clients wait for answers */
	run_until(prng_ops(NR_ABORTS));
	end_clients(clients);
	tp_lock_hold_end(&world, LC_completion);
	log_set_level(LOG_LEVEL_INFO);
	shrinker_unregister(shrinker);

	require_model();
	stalls = stall_watch_end(watch);
	check_images();
	report(clients, &stalls, time_monotonic_usec() - began);
	for (unsigned d = 0; d < NR_LIVE; d++)
		thin_device_close(world.live[d]);
	assert_int_equal(thin_metadata_close(world.tmd), 0);
	assert_true(thin_device_is_clean(fault_device_inner(world.meta)));
	io_device_close(world.meta);
	io_device_close(world.data);
	free(clients);
}

TP_NO_TSA static int setup(void **state)
{
	(void)state;
	tp_lock_init(&world.throttle, LC_throttle, LOCK_KIND_RW);
	tp_lock_init(&world.lock, LC_pool, LOCK_KIND_MUTEX);
	tp_cond_init(&world.answered);
	STAILQ_INIT(&world.requests);
	STAILQ_INIT(&mutator.flushes);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	pthread_cond_destroy(&world.answered);
	tp_lock_destroy(&world.lock);
	tp_lock_destroy(&world.throttle);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(aborts_under_pressure) };

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("abort-thin", tests, setup, teardown);
}
