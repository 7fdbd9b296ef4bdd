/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for reclaim/shrinker.c.  Each test says one fact about the module.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>
#include <errno.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "reclaim/shrinker.h"

struct cache {
	uint64_t objects, asked;
};

static uint64_t cache_count(void *ctx)
{
	return ((struct cache *)ctx)->objects;
}

static uint64_t cache_scan(void *ctx, uint64_t nr)
{
	struct cache *c = ctx;

	c->asked += nr;
	c->objects -= nr;
	return nr;
}

static const struct shrinker_ops cache_ops = { .count = cache_count, .scan = cache_scan };

static const char *last_asked;

static uint64_t named_scan(void *ctx, uint64_t nr)
{
	last_asked = ctx;
	return nr;
}

static uint64_t named_count(void *ctx)
{
	/* The one before it has been asked by now. */
	assert_int_equal(((const char *)ctx)[0], last_asked ? last_asked[0] + 1 : 'a');
	return 1;
}

static const struct shrinker_ops named_ops = { .count = named_count, .scan = named_scan };

static void the_oldest_is_asked_first_and_who_is_unregistered_not_at_all(void **state)
{
	static char names[][2] = { "a", "b", "c" };
	struct shrinkers_report report;
	struct shrinker *s[3];

	(void)state;
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(shrinker_register(names[i], &named_ops, names[i], &s[i]), 0);
	shrinkers_reclaim(1, &report);
	assert_int_equal(report.nr_results, 3);
	assert_ptr_equal(last_asked, names[2]);
	for (unsigned i = 0; i < 3; i++)
		assert_null(shrinker_unregister(s[i]));
	shrinkers_reclaim(1, &report);
	assert_int_equal(report.nr_results, 0);
}

static void failed_register_leaves_ret_alone(void **state)
{
	struct shrinker *s = (struct shrinker *)0x1;

	(void)state;
	assert_int_equal(shrinker_register("", &cache_ops, NULL, &s), -EINVAL);
	assert_ptr_equal(s, (struct shrinker *)0x1);
}

static void a_share_is_rounded_up(void **state)
{
	struct cache a = { .objects = 5 }, b = { .objects = 0 }, c = { .objects = 1 };
	struct shrinker *sa, *sb, *sc;
	struct shrinkers_report report;

	(void)state;
	assert_int_equal(shrinker_register("a", &cache_ops, &a, &sa), 0);
	assert_int_equal(shrinker_register("b", &cache_ops, &b, &sb), 0);
	assert_int_equal(shrinker_register("c", &cache_ops, &c, &sc), 0);
	shrinkers_reclaim(4, &report);
	assert_int_equal(report.nr_results, 3);
	assert_int_equal(a.asked, 2);
	assert_int_equal(b.asked, 0);
	assert_int_equal(c.asked, 1);
	assert_int_equal(report.bytes, 0); /* of somebody else */
	assert_null(shrinker_unregister(sa));
	assert_null(shrinker_unregister(sb));
	assert_null(shrinker_unregister(sc));
}

/* A cache whose scan only asks, and whose helper does half of it when it is waited for. */
struct lazy {
	uint64_t asked, freed;
};

static uint64_t lazy_count(void *ctx)
{
	(void)ctx;
	return 100;
}

static uint64_t lazy_scan(void *ctx, uint64_t nr)
{
	((struct lazy *)ctx)->asked += nr;
	return nr;
}

static uint64_t lazy_freed(void *ctx)
{
	return ((struct lazy *)ctx)->freed;
}

static void lazy_settle(void *ctx)
{
	struct lazy *l = ctx;

	l->freed += l->asked / 2;
	l->asked = 0;
}

static const struct shrinker_ops lazy_ops = { lazy_count, lazy_scan, lazy_freed, lazy_settle, 10 };

static void a_report_tells_what_was_freed_and_not_what_was_promised(void **state)
{
	struct lazy l = { .freed = 7 };
	struct shrinkers_report report;
	struct shrinker *s;

	(void)state;
	assert_int_equal(shrinker_register("lazy", &lazy_ops, &l, &s), 0);
	for (unsigned i = 0; i < 2; i++) {
		shrinkers_reclaim(1, &report);
		assert_int_equal(report.nr_results, 1);
		assert_string_equal(report.results[0].name, "lazy");
		assert_int_equal(report.results[0].asked, 100);
		assert_int_equal(report.results[0].freed, 50);
		assert_int_equal(report.results[0].bytes, 500);
		assert_int_equal(report.bytes, 500);
	}
	assert_null(shrinker_unregister(s));
}

static void more_caches_than_a_report_has_room_for_are_all_asked(void **state)
{
	struct cache caches[SHRINKER_RESULTS_MAX + 3] = { 0 };
	struct shrinker *s[SHRINKER_RESULTS_MAX + 3];
	struct shrinkers_report report;

	(void)state;
	for (unsigned i = 0; i < ARRAY_SIZE(s); i++) {
		caches[i].objects = 10;
		assert_int_equal(shrinker_register("c", &cache_ops, &caches[i], &s[i]), 0);
	}
	shrinkers_reclaim(1, &report);
	assert_int_equal(report.nr_results, SHRINKER_RESULTS_MAX);
	for (unsigned i = 0; i < ARRAY_SIZE(s); i++) {
		assert_int_equal(caches[i].objects, 0);
		assert_null(shrinker_unregister(s[i]));
	}
}

static void half_of_a_pair_of_callbacks_is_refused(void **state)
{
	const struct shrinker_ops no_freed = { lazy_count, lazy_scan, NULL, lazy_settle, 10 };
	struct shrinker *s;

	(void)state;
	assert_int_equal(shrinker_register("lazy", &no_freed, NULL, &s), -EINVAL);
}

#ifdef TP_DEBUG_LOCKS
/* The 2023 deadlock: a worker holding the throttle recreates its cache. */
TP_NO_TSA static void register_under_throttle_dies(void **state)
{
	struct tp_lock throttle = TP_LOCK_INIT(throttle);
	struct rlimit no_core = { 0, 0 };
	struct shrinker *s;
	int status;
	pid_t pid;

	(void)state;
	pid = fork();
	if (pid == 0) {
		signal(SIGABRT, SIG_DFL);
		setrlimit(RLIMIT_CORE, &no_core);
		lock_throttle(&throttle);
		_exit(shrinker_register("bufio", &cache_ops, NULL, &s) ? 1 : 0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}
#endif

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_oldest_is_asked_first_and_who_is_unregistered_not_at_all),
		cmocka_unit_test(failed_register_leaves_ret_alone),
		cmocka_unit_test(a_share_is_rounded_up),
		cmocka_unit_test(a_report_tells_what_was_freed_and_not_what_was_promised),
		cmocka_unit_test(more_caches_than_a_report_has_room_for_are_all_asked),
		cmocka_unit_test(half_of_a_pair_of_callbacks_is_refused),
#ifdef TP_DEBUG_LOCKS
		cmocka_unit_test(register_under_throttle_dies),
#endif
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("shrinker", tests, NULL, NULL);
}
