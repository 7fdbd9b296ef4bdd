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

static void run_empties_oldest_first_and_stops_at_nr(void **state)
{
	struct cache a = { .objects = 5 }, b = { .objects = 5 };
	struct shrinker *sa, *sb;

	(void)state;
	assert_int_equal(shrinker_register("a", &cache_ops, &a, &sa), 0);
	assert_int_equal(shrinker_register("b", &cache_ops, &b, &sb), 0);

	assert_int_equal(shrinkers_run(7), 7);
	assert_int_equal(a.asked, 5);
	assert_int_equal(b.asked, 2);
	assert_int_equal(shrinkers_run(100), 3);

	assert_null(shrinker_unregister(sa));
	assert_null(shrinker_unregister(sb));
	assert_int_equal(shrinkers_run(1), 0);
}

static void failed_register_leaves_ret_alone(void **state)
{
	struct shrinker *s = (struct shrinker *)0x1;

	(void)state;
	assert_int_equal(shrinker_register("", &cache_ops, NULL, &s), -EINVAL);
	assert_ptr_equal(s, (struct shrinker *)0x1);
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
		cmocka_unit_test(run_empties_oldest_first_and_stops_at_nr),
		cmocka_unit_test(failed_register_leaves_ret_alone),
#ifdef TP_DEBUG_LOCKS
		cmocka_unit_test(register_under_throttle_dies),
#endif
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("shrinker", tests, NULL, NULL);
}
