/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for util/lock-class.c and util/lock-check.c: each rule once kept, once broken.
 * A broken rule ends the process, so it is broken in a child, and what that says is read: it has
 * to name the classes, the functions that took them, and who took them the other way round.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/clock.h"
#include "util/lock-check.h"

static struct tp_lock shrinkers, throttle, pool, meta_root, block_a, block_b, tm;

static int init_locks(void **state)
{
	(void)state;
	tp_lock_init(&shrinkers, LC_shrinkers, LOCK_KIND_RW);
	tp_lock_init(&throttle, LC_throttle, LOCK_KIND_RW);
	tp_lock_init(&pool, LC_pool, LOCK_KIND_MUTEX);
	tp_lock_init(&meta_root, LC_meta_root, LOCK_KIND_RW);
	tp_lock_init(&block_a, LC_block, LOCK_KIND_RW);
	tp_lock_init(&block_b, LC_block, LOCK_KIND_RW);
	tp_lock_init(&tm, LC_tm, LOCK_KIND_MUTEX);
	return 0;
}

TP_NO_TSA static void right_order_passes(void **state)
{
	(void)state;
	lock_throttle_shared(&throttle);
	lock_pool(&pool);
	lock_meta_root(&meta_root);
	lock_block(&block_a);
	lock_block_shared(&block_b);
	lock_tm(&tm);
	unlock_tm(&tm);
	unlock_block(&block_a);
	unlock_block_shared(&block_b);
	unlock_meta_root(&meta_root);
	unlock_pool(&pool);
	unlock_throttle_shared(&throttle);
}

static void trylock_of_a_free_lock_succeeds(void **state)
{
	(void)state;
	if (!trylock_meta_root_shared(&meta_root))
		fail_msg("nobody holds it, but the try failed");
	else
		unlock_meta_root_shared(&meta_root);
}

TP_NO_TSA static void *try_shared(void *ret)
{
	*(bool *)ret = trylock_meta_root_shared(&meta_root);
	return NULL;
}

TP_NO_TSA static void trylock_of_another_thread_fails(void **state)
{
	bool got = true;
	pthread_t t;

	(void)state;
	lock_meta_root(&meta_root);
	assert_int_equal(pthread_create(&t, NULL, try_shared, &got), 0);
	pthread_join(t, NULL);
	unlock_meta_root(&meta_root);
	assert_false(got);
}

TP_NO_TSA static void wait_ends_at_its_deadline(void **state)
{
	pthread_cond_t cond;

	(void)state;
	tp_cond_init(&cond);
	lock_pool(&pool);
	assert_false(tp_lock_wait_until(&pool, &cond, time_monotonic_usec() + 1000));
	unlock_pool(&pool);
	pthread_cond_destroy(&cond);
}

#ifdef TP_DEBUG_LOCKS
/* ---- each rule, kept and broken ---- */

#define TEXT_BYTES 8192

/* Runs @fn in a child.  True: it ended by abort(); what it said on stderr is in @ret_text. */
static bool aborts(void (*fn)(void), char ret_text[TEXT_BYTES])
{
	struct rlimit no_core = { 0, 0 };
	size_t length = 0;
	int status, pipes[2];
	ssize_t n;
	pid_t pid;

	assert_int_equal(pipe(pipes), 0);
	pid = fork();
	if (pid == 0) {
		signal(SIGABRT, SIG_DFL);
		setrlimit(RLIMIT_CORE, &no_core);
		dup2(pipes[1], STDERR_FILENO);
		close(pipes[0]);
		close(pipes[1]);
		fn();
		_exit(0);
	}
	assert_true(pid > 0);
	close(pipes[1]);
	while ((n = read(pipes[0], ret_text + length, TEXT_BYTES - 1 - length)) > 0)
		length += (size_t)n;
	ret_text[length] = '\0';
	close(pipes[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

TP_NO_TSA static void keep_order(void)
{
	lock_throttle_shared(&throttle);
	lock_meta_root(&meta_root);
	unlock_meta_root(&meta_root);
	unlock_throttle_shared(&throttle);
}

TP_NO_TSA static void break_order(void)
{
	lock_meta_root(&meta_root);
	lock_throttle_shared(&throttle);
}

/* What break_order() is told about: throttle, then meta_root by way of pool. */
TP_NO_TSA static void *take_first_half(void *unused)
{
	pthread_setname_np(pthread_self(), "first-half");
	lock_throttle_shared(&throttle);
	lock_pool(&pool);
	unlock_pool(&pool);
	unlock_throttle_shared(&throttle);
	return unused;
}

TP_NO_TSA static void *take_second_half(void *unused)
{
	pthread_setname_np(pthread_self(), "second-half");
	lock_pool(&pool);
	lock_meta_root(&meta_root);
	unlock_meta_root(&meta_root);
	unlock_pool(&pool);
	return unused;
}

static void break_order_seen_by_two(void)
{
	pthread_t t[2];

	if (pthread_create(&t[0], NULL, take_first_half, NULL) ||
	    pthread_create(&t[1], NULL, take_second_half, NULL))
		_exit(1);
	pthread_join(t[0], NULL);
	pthread_join(t[1], NULL);
	break_order();
}

TP_NO_TSA static void keep_recursion(void)
{
	lock_block(&block_a);
	lock_block(&block_b);
	unlock_block(&block_b);
	unlock_block(&block_a);
}

TP_NO_TSA static void break_recursion(void)
{
	lock_meta_root_shared(&meta_root);
	lock_meta_root_shared(&meta_root);
}

TP_NO_TSA static void keep_wait(void)
{
	lock_throttle(&throttle);
	tp_lock_may_wait(LC_meta_root);
	unlock_throttle(&throttle);
}

TP_NO_TSA static void break_wait(void)
{
	lock_meta_root(&meta_root);
	tp_lock_may_wait(LC_throttle);
}

/* Waiting for who needs a class is like taking it, also if it is the one that is held. */
TP_NO_TSA static void break_wait_same(void)
{
	lock_throttle_shared(&throttle);
	tp_lock_may_wait(LC_throttle);
}

TP_NO_TSA static void keep_hold(void)
{
	tp_lock_hold_begin(&pool, LC_completion);
	lock_throttle(&throttle);
	unlock_throttle(&throttle);
	tp_lock_hold_end(&pool, LC_completion);
	lock_shrinkers(&shrinkers);
	unlock_shrinkers(&shrinkers);
}

/* Two threads and no lock in common but one: what no checker of mutexes alone can see. */
TP_NO_TSA static void *wait_for_a_request(void *unused)
{
	pthread_setname_np(pthread_self(), "reclaim");
	lock_shrinkers_shared(&shrinkers);
	tp_lock_may_wait(LC_completion);
	unlock_shrinkers_shared(&shrinkers);
	return unused;
}

TP_NO_TSA static void break_hold(void)
{
	pthread_t t;

	if (pthread_create(&t, NULL, wait_for_a_request, NULL))
		_exit(1);
	pthread_join(t, NULL);
	tp_lock_hold_begin(&pool, LC_completion);
	lock_shrinkers(&shrinkers);
}

TP_NO_TSA static void keep_class(void)
{
	lock_pool(&pool);
	unlock_pool(&pool);
}

TP_NO_TSA static void break_class(void)
{
	lock_meta_root(&pool);
}

TP_NO_TSA static void break_drop(void)
{
	unlock_pool(&pool);
}

TP_NO_TSA static void break_hold_end(void)
{
	tp_lock_hold_end(&pool, LC_completion);
}

/* A try cannot wait: it may be made in any order. */
TP_NO_TSA static void keep_trylock(void)
{
	lock_meta_root(&meta_root);
	if (trylock_pool(&pool))
		unlock_pool(&pool);
	unlock_meta_root(&meta_root);
}

TP_NO_TSA static void break_after_trylock(void)
{
	if (trylock_meta_root(&meta_root))
		lock_pool(&pool);
}

TP_NO_TSA static void keep_assert_held(void)
{
	lock_meta_root_shared(&meta_root);
	tp_lock_assert_held(LC_meta_root);
	unlock_meta_root_shared(&meta_root);
	tp_lock_hold_begin(&pool, LC_completion);
	tp_lock_assert_answers();
	tp_lock_hold_end(&pool, LC_completion);
}

static void break_assert_held(void)
{
	tp_lock_assert_held(LC_meta_root);
}

static void break_assert_answers(void)
{
	tp_lock_assert_answers();
}

static void keep_number(void)
{
	static char held[32];

	for (size_t i = 0; i < sizeof(held); i++)
		tp_lock_hold_begin(&held[i], LC_block);
	for (size_t i = 0; i < sizeof(held); i++)
		tp_lock_hold_end(&held[i], LC_block);
}

static void break_number(void)
{
	static char held[33];

	for (size_t i = 0; i < sizeof(held); i++)
		tp_lock_hold_begin(&held[i], LC_block);
}

static void kept_rules_pass(void **state)
{
	static void (*const kept[])(void) = {
		keep_order, keep_recursion, keep_wait,   keep_hold,
		keep_class, keep_trylock,   keep_number, keep_assert_held,
	};
	char text[TEXT_BYTES];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(kept); i++) {
		assert_false(aborts(kept[i], text));
		assert_string_equal(text, "");
	}
}

static const struct broken {
	void (*fn)(void);
	const char *says[8]; /* in this order */
} broken[] = {
	{ break_order,
	  { "lock order: taking \"throttle\" in break_order at test-lock-class.c:",
	    "while holding:", "\"meta_root\" since break_order at test-lock-class.c:",
	    "\"throttle\" comes before \"meta_root\" in the table; nobody has taken them so yet",
	    "called from:", "break_order at" } },
	{ break_order_seen_by_two,
	  { "taking \"throttle\"", "\"meta_root\" since break_order at",
	    "the other way round, seen before:",
	    "\"throttle\" since take_first_half at test-lock-class.c:",
	    "then took \"pool\" in take_first_half at", "thread first-half",
	    "\"pool\" since take_second_half at test-lock-class.c:",
	    "then took \"meta_root\" in take_second_half at" } },
	{ break_recursion,
	  { "taking \"meta_root\" in break_recursion", "\"meta_root\" since break_recursion",
	    "\"meta_root\" is held already" } },
	{ break_wait,
	  { "waiting for a user of \"throttle\" in break_wait", "\"meta_root\" since break_wait",
	    "\"throttle\" comes before \"meta_root\"" } },
	{ break_wait_same,
	  { "waiting for a user of \"throttle\"", "\"throttle\" since break_wait_same",
	    "\"throttle\" is held already" } },
	{ break_hold,
	  { "taking \"shrinkers\" in break_hold", "\"completion\" since break_hold",
	    "the other way round, seen before:", "\"shrinkers\" since wait_for_a_request",
	    "then waited for a user of \"completion\" in wait_for_a_request", "thread reclaim" } },
	{ break_class, { "bad class for \"meta_root\" in break_class", "holding nothing" } },
	{ break_drop, { "dropping unheld \"pool\" in break_drop", "holding nothing" } },
	{ break_hold_end, { "dropping unheld \"completion\" in break_hold_end" } },
	{ break_after_trylock,
	  { "taking \"pool\" in break_after_trylock", "\"meta_root\" since break_after_trylock" } },
	{ break_assert_held, { "caller lacks \"meta_root\" in break_assert_held" } },
	{ break_assert_answers, { "caller lacks \"completion\" in break_assert_answers" } },
	{ break_number, { "too many locks for \"block\" in break_number" } },
};

static void broken_rules_abort_and_tell_both_chains(void **state)
{
	char text[TEXT_BYTES];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(broken); i++) {
		const char *at = text;

		assert_true(aborts(broken[i].fn, text));
		for (size_t j = 0; j < ARRAY_SIZE(broken[i].says) && broken[i].says[j]; j++) {
			const char *found = strstr(at, broken[i].says[j]);

			if (!found) {
				fputs(text, stderr); /* too long for cmocka */
				fail_msg("nothing of %s in the report", broken[i].says[j]);
			}
			at = found;
		}
	}
}

static char reported[TEXT_BYTES];

static void keep_report(const char *text)
{
	snprintf(reported, sizeof(reported), "%s", text);
}

TP_NO_TSA static void a_test_can_take_reports_and_go_on(void **state)
{
	(void)state;
	lock_check_set_report(keep_report);
	lock_meta_root(&meta_root);
	lock_throttle_shared(&throttle);
	unlock_throttle_shared(&throttle);
	unlock_meta_root(&meta_root);
	lock_check_set_report(NULL);
	assert_non_null(strstr(reported, "taking \"throttle\""));
}
#endif

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(trylock_of_a_free_lock_succeeds),
		cmocka_unit_test(trylock_of_another_thread_fails),
		cmocka_unit_test(wait_ends_at_its_deadline),
#ifdef TP_DEBUG_LOCKS
		/* First: they tell which orders were never seen. */
		cmocka_unit_test(kept_rules_pass),
		cmocka_unit_test(broken_rules_abort_and_tell_both_chains),
		cmocka_unit_test(a_test_can_take_reports_and_go_on),
#endif
		cmocka_unit_test(right_order_passes),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("lock-class", tests, init_locks, NULL);
}
