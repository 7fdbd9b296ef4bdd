/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * scenarios.c - three ways for memory reclaim and an abort to wait for each other
 *
 * Acts out the stories of src/LOCKING.md with a pool in service.  This file is linked three
 * times: with the abort of src/thin/thin-abort.c, and with the two old ones beside this file
 * in its place (ABORT_RESETS, ABORT_RECREATES, ABORT_SWAPS).  Each round of a scenario is a
 * child process with two parties that meet at two barriers:
 *
 *   the pressure thread   runs the shrinkers, one of which does I/O on a volume and waits for it;
 *                         "holds the registry": from inside that shrinker;
 *   the pool worker       commits, the metadata device fails, it aborts;
 *                         "in abort": at its first step towards the cache, whatever it then does.
 *
 *   1  the shrinker reads what is mapped, once the worker is in abort    registry -> meta_root
 *   2  it writes to a hole, once a worker that is behind is in abort     registry -> throttle
 *   3  it flushes, and that is the commit that fails                     registry -> completion
 *
 * Nothing is left to chance: the barriers are waited for, the worker's clock is moved on to make it
 * late, and what the worker holds in the abort is looked at and has to be what the scenario is
 * about.  A round is hung when all its threads sleep and none has run for a while; then it is
 * killed. Debug builds also see the run-time checker report what is going to happen.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bufio/bufio.h"
#include "fault-device.h"
#include "pool-fixture.h"
#include "pool/pool-internal.h"
#include "process-rest.h"
#include "reclaim/shrinker.h"
#include "thin/thin-internal.h"
#include "util/clock.h"
#include "util/lock-check.h"
#include "util/log.h"

enum abort_kind { RECREATES, SWAPS, RESETS };
static const enum abort_kind kind = ABORT_KIND;

enum scenario { META_ROOT = 1, THROTTLE, COMPLETION };

#define BLOCK (64 * KIB)
#define NR_ROUNDS 100u
#define CLOCK_STEP_USEC (2 * USEC_PER_SEC) /* more than a pass may take */
#define ROUND_MAX_USEC (20 * USEC_PER_SEC)
#define REST_MSEC 20u
/* A process that aborts may sleep while the system takes it apart. */
#define DEATH_MSEC 2000u
#define REPORT_BYTES 8192

/* What a round lets its parent see. */
static struct shared {
	atomic_bool io_begun, in_abort, io_done, finished;
	bool had_meta_root, had_throttle; /* the worker, in abort */
	int io_result;
	atomic_uint nr_reports;
	char report[REPORT_BYTES]; /* the first one */
} * shared;

/* ---- the hooks: where the worker turns to the cache, and what it takes for the time ---- */

static struct pool_rig *rig;
static struct volume *volume;
static enum scenario scenario;
static bool sleeping_lookup; /* scenario 1: not by a request, but by who may sleep on meta_root */
static atomic_bool armed, late;
static _Atomic uint64_t clock_ahead_usec;
static sem_t registry_held, abort_reached, fault_armed, commit_over;
static _Thread_local bool is_bystander; /* neither the worker nor a helper of a cache */

TP_NO_TSA static void worker_in_abort(void)
{
	struct pool *pool;

	if (is_bystander || !atomic_exchange(&armed, false))
		return;
	pool = rig->pool;
	shared->had_meta_root = !trylock_meta_root_shared(&pool->tmd->lock);
	if (!shared->had_meta_root)
		unlock_meta_root_shared(&pool->tmd->lock);
	shared->had_throttle = !trylock_throttle_shared(&pool->throttle);
	if (!shared->had_throttle)
		unlock_throttle_shared(&pool->throttle);
	atomic_store(&late, false);
	atomic_store(&shared->in_abort, true);
	sem_post(&abort_reached);
}

/* The linker leads calls of these to their __wrap_ forms. */
int __real_shrinker_register(const char *name, const struct shrinker_ops *ops, void *ctx,
			     struct shrinker **ret_s);
int __wrap_shrinker_register(const char *name, const struct shrinker_ops *ops, void *ctx,
			     struct shrinker **ret_s);
struct shrinker *__real_shrinker_unregister(struct shrinker *s);
struct shrinker *__wrap_shrinker_unregister(struct shrinker *s);
void __real_bufio_client_reset(struct bufio_client *c);
void __wrap_bufio_client_reset(struct bufio_client *c);
int __real_clock_gettime(clockid_t clock, struct timespec *ts);
int __wrap_clock_gettime(clockid_t clock, struct timespec *ts);

int __wrap_shrinker_register(const char *name, const struct shrinker_ops *ops, void *ctx,
			     struct shrinker **ret_s)
{
	worker_in_abort();
	return __real_shrinker_register(name, ops, ctx, ret_s);
}

struct shrinker *__wrap_shrinker_unregister(struct shrinker *s)
{
	worker_in_abort();
	return __real_shrinker_unregister(s);
}

void __wrap_bufio_client_reset(struct bufio_client *c)
{
	worker_in_abort();
	__real_bufio_client_reset(c);
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *ts)
{
	int r = __real_clock_gettime(clock, ts);

	if (atomic_load(&late) && !is_bystander)
		atomic_fetch_add(&clock_ahead_usec, CLOCK_STEP_USEC);
	ts->tv_sec += (time_t)(atomic_load(&clock_ahead_usec) / USEC_PER_SEC);
	return r;
}

/* ---- the pressure thread ---- */

static void await(sem_t *sem)
{
	while (sem_wait(sem) && errno == EINTR)
		;
}

static int do_io(enum pool_io_op op, uint64_t offset)
{
	static _Alignas(4096) uint8_t buffer[4096];
	struct pool_io io = { .op = op,
			      .volume = volume,
			      .offset = offset,
			      .length = op == POOL_FLUSH ? 0 : sizeof(buffer),
			      .buffer = op == POOL_FLUSH ? NULL : buffer };
	struct io_queue *q;
	int r = io_queue_self(&q);

	memset(buffer, 0xa5, sizeof(buffer));
	if (!r)
		r = pool_io_run(rig->pool, q, &io);
	if (!r && op == POOL_READ && (buffer[0] != 1 || buffer[sizeof(buffer) - 1] != 1))
		r = -EBADMSG;
	return r;
}

static int look_up(void)
{
	struct thin_run run;
	int r = thin_find_run(volume->td, 0, 1, &run);

	return r ? r : run.mapped ? 0 : -EBADMSG;
}

static int io_of_the_scenario(void)
{
	switch (scenario) {
	case META_ROOT:
		return sleeping_lookup ? look_up() : do_io(POOL_READ, 0);
	case THROTTLE:
		return do_io(POOL_WRITE, 5 * BLOCK);
	case COMPLETION:
		return do_io(POOL_FLUSH, 0);
	}
	return -EINVAL;
}

static uint64_t inode_count(void *unused)
{
	(void)unused;
	return 1;
}

/* As a file system's, which has to read a bitmap or to write a superblock. */
static uint64_t inode_scan(void *unused, uint64_t nr)
{
	(void)unused;
	(void)nr;
	sem_post(&registry_held);
	if (scenario == COMPLETION)
		await(&fault_armed);
	else
		await(&abort_reached);
	atomic_store(&shared->io_begun, true);
	shared->io_result = io_of_the_scenario();
	atomic_store(&shared->io_done, true);
	return 1;
}

static void *pressure_main(void *unused)
{
	struct shrinkers_report report;

	is_bystander = true;
	(void)pthread_setname_np(pthread_self(), "pressure");
	shrinkers_reclaim(1, &report);
	return unused;
}

/* ---- a round, in its own process ---- */

static void must(bool good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "# %s\n", what);
	_exit(2);
}

#ifdef TP_DEBUG_LOCKS
static void keep_report(const char *text)
{
	if (!atomic_fetch_add(&shared->nr_reports, 1))
		snprintf(shared->report, sizeof(shared->report), "%s", text);
}
#endif

static void commit_done(struct pool_command *cmd, int r)
{
	(void)cmd;
	(void)r;
	sem_post(&commit_over);
}

static void flush_done(struct pool_io *io, int r)
{
	(void)io;
	(void)r;
	sem_post(&commit_over);
}

static void fail_metadata(void)
{
	fault_device_add(rig->meta, &(struct fault){ .ops = FAULT_OP(IO_WRITE) });
}

/* A commit that fails.  Whoever waits for it must not poll: a round that hangs is at rest. */
static void cause_abort(void)
{
	static struct pool_command command = { .op = POOL_COMMIT, .done = commit_done };
	static struct pool_io flush = { .op = POOL_FLUSH, .done = flush_done };

	fail_metadata();
	if (scenario == META_ROOT) {
		pool_command_submit(rig->pool, &command);
		await(&commit_over);
	} else if (scenario == THROTTLE) {
		atomic_store(&late, true);
		flush.volume = volume;
		pool_io_submit(rig->pool, rig->q, &flush);
		await(&commit_over);
	} else {
		sem_post(&fault_armed);
	}
}

static void check_result(void)
{
	struct pool_status status = rig_status(rig);

	must(shared->io_result == (scenario == META_ROOT ? 0 : -EIO),
	     "result of the shrinker's I/O");
	must(status.mode == POOL_MODE_READ_ONLY && status.stats.aborts == 1,
	     "mode after the abort");
	must(rig_reads_as(rig, volume, 0, 4096, 1), "committed data after the abort");
}

static void play(bool reports)
{
	static const struct shrinker_ops inode_ops = { .count = inode_count, .scan = inode_scan };
	struct rlimit no_core = { 0, 0 };
	struct shrinker *inodes;
	pthread_t pressure;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (int sig = 1; sig < SIGRTMIN; sig++)
		signal(sig, SIG_DFL); /* cmocka's handlers would go on with the parent's tests */
	setrlimit(RLIMIT_CORE, &no_core);
	log_set_level(LOG_LEVEL_ERR - 1);
	is_bystander = true;
	sem_init(&registry_held, 0, 0);
	sem_init(&abort_reached, 0, 0);
	sem_init(&fault_armed, 0, 0);
	sem_init(&commit_over, 0, 0);
	must(!shrinker_register("inodes", &inode_ops, NULL, &inodes), "register");
	rig = pool_rig_create_sized(BLOCK, 64, 4096, 1 * MIB);
	volume = rig_create_volume(rig, "v", 16 * BLOCK);
	must(!rig_fill(rig, volume, 0, BLOCK, 1) && !rig_flush(rig, volume), "committed data");
	must(!rig_fill(rig, volume, BLOCK, BLOCK, 2), "uncommitted data");
#ifdef TP_DEBUG_LOCKS
	lock_check_set_report(reports ? keep_report : NULL);
#else
	(void)reports;
#endif
	atomic_store(&armed, true);
	must(!pthread_create(&pressure, NULL, pressure_main, NULL), "thread");
	await(&registry_held);
	cause_abort();
	pthread_join(pressure, NULL);

	must(shared->in_abort, "there was no abort");
	check_result();
	rig_close_volume(volume);
	pool_rig_destroy(rig);
	shrinker_unregister(inodes);
	atomic_store(&shared->finished, true);
}

/* ---- its parent ---- */

enum outcome { HUNG, FINISHED, ABORTED, BROKEN };
static const char *const outcome_names[] = { "hung", "finished", "was aborted", "is broken" };

static pid_t start(enum scenario which, unsigned round, bool reports, int err)
{
	pid_t pid;

	memset(shared, 0, sizeof(*shared));
	scenario = which;
	sleeping_lookup = round % 2;
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		if (err >= 0)
			dup2(err, STDERR_FILENO);
		play(reports);
		_exit(0);
	}
	assert_true(pid > 0);
	return pid;
}

/* It hangs if it has met what it is about and nothing of it has run for @rest_msec. */
static enum outcome await_outcome(pid_t pid, unsigned rest_msec)
{
	uint64_t deadline = time_monotonic_usec() + ROUND_MAX_USEC;
	enum outcome outcome = BROKEN;
	int status;

	while (waitpid(pid, &status, WNOHANG) == 0) {
		bool met = atomic_load(&shared->io_begun) && atomic_load(&shared->in_abort);
		bool rests = process_rests(pid, rest_msec);

		if ((met && rests) || time_monotonic_usec() > deadline) {
			outcome = met && rests ? HUNG : BROKEN;
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
			return outcome;
		}
	}
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0 && shared->finished)
		return FINISHED;
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT ? ABORTED : BROKEN;
}

static enum outcome outcome_due(enum scenario which)
{
	if (kind == RESETS || (kind == SWAPS && which == META_ROOT))
		return FINISHED;
	return HUNG;
}

#ifdef TP_DEBUG_LOCKS
static void assert_says(const char *words)
{
	if (strstr(shared->report, words))
		return;
	fputs(shared->report, stderr); /* too long for cmocka */
	fail_msg("nothing of %s in the report", words);
}
#endif

/* The checker needs no hang: it is right also about the one that half the fix prevents. */
static void check_report(enum scenario which)
{
#ifdef TP_DEBUG_LOCKS
	if (kind == RESETS) {
		assert_string_equal(shared->report, "");
		return;
	}
	assert_says("taking \"shrinkers\"");
	assert_says("thread pool-worker");
	assert_says("\"completion\" since");
	assert_int_equal(!strstr(shared->report, "\"throttle\" since"), which != THROTTLE);
	assert_int_equal(!strstr(shared->report, "\"meta_root\" since"), kind != RECREATES);
	if (which == COMPLETION)
		assert_says("then waited for a user of \"completion\"");
#else
	(void)which;
	assert_int_equal(shared->nr_reports, 0);
#endif
}

static void all_rounds(enum scenario which)
{
	const char *env = getenv("TP_ROUNDS");
	unsigned nr = env ? (unsigned)strtoul(env, NULL, 0) : NR_ROUNDS;

	for (unsigned round = 0; round < nr; round++) {
		enum outcome outcome = await_outcome(start(which, round, true, -1), REST_MSEC);

		if (outcome != outcome_due(which))
			fail_msg("round %u %s, %s%s%s", round, outcome_names[outcome],
				 shared->in_abort ? "in abort" : "before the abort",
				 shared->io_begun ? ", I/O begun" : "",
				 shared->io_done ? ", I/O done" : "");
		/* The stage was the right one. */
		assert_true(shared->in_abort);
		assert_int_equal(shared->had_meta_root, kind != SWAPS);
		assert_int_equal(shared->had_throttle, which == THROTTLE);
		assert_int_equal(shared->io_done, outcome == FINISHED);
		check_report(which);
	}
	print_message("# %u rounds %s\n", nr, outcome_names[outcome_due(which)]);
}

static void registry_and_meta_root(void **state)
{
	(void)state;
	all_rounds(META_ROOT);
}

static void registry_and_throttle(void **state)
{
	(void)state;
	all_rounds(THROTTLE);
}

static void registry_and_completion(void **state)
{
	(void)state;
	all_rounds(COMPLETION);
}

#ifdef TP_DEBUG_LOCKS
/* As in every other test: the first report ends the process, and names functions. */
static void the_checker_ends_it(void **state)
{
	(void)state;
	for (enum scenario which = META_ROOT; which <= COMPLETION; which++) {
		FILE *err = tmpfile();
		enum outcome outcome;
		size_t n;

		assert_non_null(err);
		outcome = await_outcome(start(which, 0, false, fileno(err)), DEATH_MSEC);
		rewind(err);
		n = fread(shared->report, 1, sizeof(shared->report) - 1, err);
		shared->report[n] = '\0';
		fclose(err);
		assert_int_equal(outcome, kind == RESETS ? FINISHED : ABORTED);
		if (kind == RESETS) {
			assert_string_equal(shared->report, "");
			continue;
		}
		assert_says("\"completion\" since worker_main at worker.c:");
		assert_says(kind == RECREATES ? "thin_metadata_abort at abort-recreate.c:"
					      : "thin_metadata_abort at abort-swap.c:");
		assert_says("pool_metadata_failed at ");
		if (which == THROTTLE)
			assert_says("\"throttle\" since worker_check_pass at worker.c:");
		if (which == COMPLETION)
			assert_says("\"shrinkers\" since shrinkers_reclaim at shrinker.c:");
	}
}
#endif

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(registry_and_meta_root),
		cmocka_unit_test(registry_and_throttle),
		cmocka_unit_test(registry_and_completion),
#ifdef TP_DEBUG_LOCKS
		cmocka_unit_test(the_checker_ends_it),
#endif
	};

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	if (shared == MAP_FAILED)
		return 99;
	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("scenarios", tests, NULL, NULL);
}
