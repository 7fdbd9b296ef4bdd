/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for reclaim/pressure.c: what each source makes the shrinkers do, and that the thread
 * ends without losing a request.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "reclaim/pressure.h"
#include "util/clock.h"

#define PATIENCE_USEC (30 * USEC_PER_SEC) /* under sanitizers, on a busy machine */

/* A cache of numbered things. */
struct cache {
	_Atomic uint64_t objects, scans;
	sem_t entered, leave; /* a scan waits if @blocks */
	bool blocks;
};

static uint64_t cache_count(void *ctx)
{
	return ((struct cache *)ctx)->objects;
}

static uint64_t cache_scan(void *ctx, uint64_t nr)
{
	struct cache *c = ctx;

	c->scans++;
	if (c->blocks) {
		sem_post(&c->entered);
		while (sem_wait(&c->leave))
			;
	}
	c->objects -= nr;
	return nr;
}

static const struct shrinker_ops cache_ops = { .count = cache_count,
					       .scan = cache_scan,
					       .object_bytes = 4096 };

static struct {
	struct cache cache;
	struct shrinker *shrinker;
	struct pressure *p;
	char directory[64], fifo[96];
} bench;

static int set_up(void **state)
{
	(void)state;
	memset(&bench, 0, sizeof(bench));
	bench.cache.objects = 1000;
	sem_init(&bench.cache.entered, 0, 0);
	sem_init(&bench.cache.leave, 0, 0);
	snprintf(bench.directory, sizeof(bench.directory), "/tmp/test-pressure-XXXXXX");
	if (!mkdtemp(bench.directory))
		return -1;
	snprintf(bench.fifo, sizeof(bench.fifo), "%s/fifo", bench.directory);
	if (mkfifo(bench.fifo, 0600))
		return -1;
	return shrinker_register("cache", &cache_ops, &bench.cache, &bench.shrinker);
}

static int tear_down(void **state)
{
	(void)state;
	bench.p = pressure_destroy(bench.p);
	bench.shrinker = shrinker_unregister(bench.shrinker);
	sem_destroy(&bench.cache.entered);
	sem_destroy(&bench.cache.leave);
	unlink(bench.fifo);
	return rmdir(bench.directory);
}

static void start(const struct pressure_options *options)
{
	assert_int_equal(pressure_start(options, &bench.p), 0);
}

static void start_for_requests(void)
{
	start(&(struct pressure_options){ .enabled = { [PRESSURE_REQUEST] = true } });
}

static struct pressure_stats stats(void)
{
	struct pressure_stats s;

	pressure_get_stats(bench.p, &s);
	return s;
}

static void await_events(enum pressure_source source, uint64_t nr)
{
	uint64_t end = time_monotonic_usec() + PATIENCE_USEC;

	while (stats().sources[source].events < nr) {
		assert_true(time_monotonic_usec() < end);
		usleep(1000);
	}
}

static void await_objects(uint64_t nr)
{
	uint64_t end = time_monotonic_usec() + PATIENCE_USEC;

	while (bench.cache.objects != nr) {
		assert_true(time_monotonic_usec() < end);
		usleep(1000);
	}
}

struct asking {
	struct pressure_request request;
	sem_t answered;
	int r;
};

static void answered(struct pressure_request *request, int r)
{
	struct asking *a = container_of(request, struct asking, request);

	a->r = r;
	sem_post(&a->answered);
}

static void ask(struct asking *a)
{
	*a = (struct asking){ .request.done = answered, .r = 1 };
	sem_init(&a->answered, 0, 0);
	pressure_submit(bench.p, &a->request);
}

static int await_answer(struct asking *a)
{
	while (sem_wait(&a->answered))
		;
	sem_destroy(&a->answered);
	return a->r;
}

static void a_request_empties_the_caches_and_tells_how_much(void **state)
{
	struct asking a;

	(void)state;
	start_for_requests();
	ask(&a);
	assert_int_equal(await_answer(&a), 0);
	assert_int_equal(bench.cache.objects, 0);
	assert_int_equal(a.request.report.nr_results, 1);
	assert_string_equal(a.request.report.results[0].name, "cache");
	assert_int_equal(a.request.report.results[0].asked, 1000);
	assert_int_equal(a.request.report.results[0].freed, 1000);
	assert_int_equal(a.request.report.bytes, 1000 * 4096);
	assert_true(a.request.resident_before > 0 && a.request.resident_after > 0);
	assert_int_equal(stats().sources[PRESSURE_REQUEST].events, 1);
	assert_int_equal(stats().runs, 1);
	assert_int_equal(stats().given_back, 1000 * 4096);
}

static void requests_that_wait_share_a_run(void **state)
{
	struct asking first, others[5];

	(void)state;
	bench.cache.blocks = true;
	start_for_requests();
	ask(&first);
	while (sem_wait(&bench.cache.entered))
		;
	for (unsigned i = 0; i < 5; i++)
		ask(&others[i]);
	bench.cache.objects = 2000; /* so that the next run finds some */
	sem_post(&bench.cache.leave);
	sem_post(&bench.cache.leave);
	assert_int_equal(await_answer(&first), 0);
	for (unsigned i = 0; i < 5; i++) {
		assert_int_equal(await_answer(&others[i]), 0);
		assert_int_equal(others[i].request.report.results[0].freed, 1000);
	}
	assert_int_equal(stats().runs, 2);
	assert_int_equal(stats().sources[PRESSURE_REQUEST].events, 6);
}

static void a_run_is_what_the_longest_hold_tells(void **state)
{
	struct asking a;

	(void)state;
	bench.cache.blocks = true;
	start_for_requests();
	ask(&a);
	while (sem_wait(&bench.cache.entered))
		;
	usleep(200000);
	sem_post(&bench.cache.leave);
	assert_int_equal(await_answer(&a), 0);
	assert_true(stats().longest_hold_usec >= 200000);
}

static void requests_can_be_switched_off(void **state)
{
	struct asking a;

	(void)state;
	start(&(struct pressure_options){ .timer_usec = 0 });
	ask(&a);
	assert_int_equal(await_answer(&a), -EOPNOTSUPP);
	assert_int_equal(bench.cache.objects, 1000);
	assert_int_equal(stats().sources[PRESSURE_REQUEST].state, PRESSURE_OFF);
}

static void tell_fifo(void)
{
	int fd = open(bench.fifo, O_WRONLY | O_NONBLOCK);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, "x", 1), 1);
	close(fd);
}

static void start_with_fifo(void)
{
	start(&(struct pressure_options){
		.enabled = { [PRESSURE_WATCH] = true, [PRESSURE_REQUEST] = true },
		.watch_path = bench.fifo });
}

static void an_event_asks_for_a_quarter_once_a_second(void **state)
{
	uint64_t began;

	(void)state;
	start_with_fifo();
	began = time_monotonic_usec();
	tell_fifo();
	await_objects(750);
	tell_fifo();
	await_events(PRESSURE_WATCH, 2);
	/* Counted, but too early, if this machine is not slow. */
	if (time_monotonic_usec() - began < PRESSURE_INTERVAL_USEC)
		assert_int_equal(bench.cache.objects, 750);
	while (time_monotonic_usec() - began < 3 * PRESSURE_INTERVAL_USEC)
		usleep(1000);
	began = bench.cache.objects;
	tell_fifo();
	await_objects(began - (began + 3) / 4);
}

static void a_request_is_never_too_early(void **state)
{
	struct asking a;

	(void)state;
	start_with_fifo();
	tell_fifo();
	await_objects(750);
	ask(&a);
	assert_int_equal(await_answer(&a), 0);
	assert_int_equal(bench.cache.objects, 0);
}

static void the_timer_goes_on(void **state)
{
	(void)state;
	start(&(struct pressure_options){ .enabled = { [PRESSURE_TIMER] = true },
					  .timer_usec = 1000 });
	await_events(PRESSURE_TIMER, 20);
	await_objects(0);
}

static void what_is_missing_is_told_and_the_rest_works(void **state)
{
	struct pressure_options options = { .psi_path = "/nowhere/psi",
					    .cgroup_path = "/nowhere/cgroup" };
	char line[400];
	struct asking a;

	(void)state;
	for (unsigned i = 0; i < PRESSURE_NR_SOURCES; i++)
		options.enabled[i] = i != PRESSURE_TIMER;
	start(&options);
	for (unsigned i = PRESSURE_PSI; i <= PRESSURE_WATCH; i++) {
		assert_int_equal(stats().sources[i].state, PRESSURE_MISSING);
		assert_true(stats().sources[i].why[0]);
	}
	assert_int_equal(stats().sources[PRESSURE_REQUEST].state, PRESSURE_WATCHED);
	assert_int_equal(stats().sources[PRESSURE_TIMER].state, PRESSURE_OFF);
	pressure_describe(bench.p, line, sizeof(line));
	assert_string_equal(line, "memory pressure is watched by request; not by psi "
				  "(/nowhere/psi: No such file or directory); not by cgroup "
				  "(/nowhere/cgroup: No such file or directory); not by watch "
				  "(MEMORY_PRESSURE_WATCH is not set)");
	ask(&a);
	assert_int_equal(await_answer(&a), 0);
}

static void a_service_manager_can_forbid_watching(void **state)
{
	(void)state;
	start(&(struct pressure_options){ .enabled = { true, true, true, true, false },
					  .stall_usec = 200000,
					  .watch_path = "/dev/null" });
	for (unsigned i = PRESSURE_PSI; i <= PRESSURE_WATCH; i++) {
		assert_int_equal(stats().sources[i].state, PRESSURE_MISSING);
		assert_non_null(strstr(stats().sources[i].why, "forbids"));
	}
	assert_int_equal(stats().sources[PRESSURE_REQUEST].state, PRESSURE_WATCHED);
}

static void *release_scan(void *arg)
{
	(void)arg;
	usleep(2000); /* nothing hangs on it: before or after the stop began */
	sem_post(&bench.cache.leave);
	return NULL;
}

static void stopping_awaits_a_run_and_refuses_the_rest(void **state)
{
	struct asking running, waiting, late;
	pthread_t thread;

	(void)state;
	bench.cache.blocks = true;
	start_for_requests();
	ask(&running);
	while (sem_wait(&bench.cache.entered))
		;
	ask(&waiting);
	assert_int_equal(pthread_create(&thread, NULL, release_scan, NULL), 0);
	pressure_stop(bench.p);
	pthread_join(thread, NULL);
	assert_int_equal(bench.cache.objects, 0);
	assert_int_equal(await_answer(&running), 0);
	assert_int_equal(await_answer(&waiting), -ESHUTDOWN);
	ask(&late);
	assert_int_equal(await_answer(&late), -ESHUTDOWN);
	assert_int_equal(stats().runs, 1);
}

static void starting_and_stopping_leaves_nothing(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 50; i++) {
		start_with_fifo();
		bench.p = pressure_destroy(bench.p);
	}
	assert_null(pressure_destroy(NULL));
	pressure_stop(NULL);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_request_empties_the_caches_and_tells_how_much),
		TEST(requests_that_wait_share_a_run),
		TEST(a_run_is_what_the_longest_hold_tells),
		TEST(requests_can_be_switched_off),
		TEST(an_event_asks_for_a_quarter_once_a_second),
		TEST(a_request_is_never_too_early),
		TEST(the_timer_goes_on),
		TEST(what_is_missing_is_told_and_the_rest_works),
		TEST(a_service_manager_can_forbid_watching),
		TEST(stopping_awaits_a_run_and_refuses_the_rest),
		TEST(starting_and_stopping_leaves_nothing),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("pressure", tests, NULL, NULL);
}
