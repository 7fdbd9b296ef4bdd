/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for util/lock-class.c: each rule once kept, once broken.  A broken
 * rule ends the process, so it is broken in a child.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/lock-class.h"
#include "util/clock.h"

static struct tp_lock throttle, pool, meta_root, block_a, block_b, tm;

static int init_locks(void **state)
{
	(void)state;
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
TP_NO_TSA static void break_order(void)
{
	lock_meta_root(&meta_root);
	lock_throttle_shared(&throttle);
}

TP_NO_TSA static void break_recursion(void)
{
	lock_meta_root_shared(&meta_root);
	lock_meta_root_shared(&meta_root);
}

TP_NO_TSA static void break_wait(void)
{
	lock_meta_root(&meta_root);
	tp_lock_may_wait(LC_throttle);
}

TP_NO_TSA static void break_hold(void)
{
	tp_lock_hold_begin(&pool, LC_throttle);
	tp_lock_may_wait(LC_shrinkers);
}

TP_NO_TSA static void break_class(void)
{
	lock_meta_root(&pool);
}

TP_NO_TSA static void break_drop(void)
{
	unlock_pool(&pool);
}

TP_NO_TSA static void break_after_trylock(void)
{
	if (trylock_meta_root(&meta_root))
		lock_pool(&pool);
}

static void break_assert_held(void)
{
	tp_lock_assert_held(LC_meta_root);
}

static void expect_abort(void (*broken)(void))
{
	struct rlimit no_core = { 0, 0 };
	int status, null;
	pid_t pid = fork();

	if (pid == 0) {
		signal(SIGABRT, SIG_DFL);
		setrlimit(RLIMIT_CORE, &no_core);
		null = open("/dev/null", O_WRONLY | O_CLOEXEC);
		dup2(null, STDERR_FILENO);
		broken();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static void broken_rules_abort(void **state)
{
	(void)state;
	expect_abort(break_order);
	expect_abort(break_recursion);
	expect_abort(break_wait);
	expect_abort(break_hold);
	expect_abort(break_class);
	expect_abort(break_drop);
	expect_abort(break_after_trylock);
	expect_abort(break_assert_held);
}
#endif

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(right_order_passes),
		cmocka_unit_test(trylock_of_a_free_lock_succeeds),
		cmocka_unit_test(trylock_of_another_thread_fails),
		cmocka_unit_test(wait_ends_at_its_deadline),
#ifdef TP_DEBUG_LOCKS
		cmocka_unit_test(broken_rules_abort),
#endif
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("lock-class", tests, init_locks, NULL);
}
