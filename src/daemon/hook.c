/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * hook.c - a program of the administrator's that is run when space is short (on_low_space)
 *
 * The pool's worker only sets a bit and wakes the main thread, which has nothing to do with I/O: it
 * starts the program, watches for its end by a pidfd, and ends it when it takes too long.
 *
 * Started with vfork(): nothing of the daemon's memory, which is large, locked and shared with
 * io_uring, is copied, and no other thread is stopped.  Until execve() the child shares that
 * memory, so it makes system calls only, with all signals blocked.  It gets nothing of the
 * daemon's: no descriptor, environment, signal mask or session.  So it keeps neither a mount nor a
 * lock alive, and the keeper sees a death of the daemon while it runs.  When the daemon dies it
 * gets SIGTERM, since the next daemon knows nothing of it and might run another.
 *
 * A daemon that hands over becomes the next one by execv(), in the same process: the child stays
 * its child, and its number is left in the environment.
 */
#define LOG_MODULE "hook"
#include "daemon/hook.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/config.h"
#include "util/clock.h"
#include "util/log.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

#define HEIR "THINPOOLD_HOOK_PID"
#define EXIT_NOT_STARTED 127

struct hook {
	struct io_queue *q;
	const char *pooldir, *mountpoint;
	char program[CONFIG_LINE_MAX + 1];
	uint64_t timeout_usec;
	atomic_uint noted; /* bits of POOL_EVENT_DATA_LOW ... */

	pid_t pid; /* 0: none runs */
	struct io_watch end;
	uint64_t deadline_usec;
	bool killed;

	atomic_bool running; /* pid, for status */
	_Atomic uint64_t runs, failures;
};

/* ------------------------------------------------------------------ its end */

static void tell_how_it_ended(struct hook *h, int status)
{
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return;
	atomic_fetch_add(&h->failures, 1);
	if (WIFEXITED(status))
		log_warn("on_low_space: %s ended with exit status %d", h->program,
			 WEXITSTATUS(status));
	else
		log_warn("on_low_space: %s was ended by signal %d%s", h->program, WTERMSIG(status),
			 h->killed ? ", having taken too long" : "");
}

static void forget(struct hook *h)
{
	if (h->end.fd >= 0) {
		io_queue_unwatch(h->q, &h->end);
		close(h->end.fd);
	}
	h->end.fd = -1;
	h->pid = 0;
	atomic_store(&h->running, false);
}

static void ended(struct io_watch *w, short revents)
{
	struct hook *h = container_of(w, struct hook, end);
	int status = 0;
	pid_t pid;

	(void)revents;
	pid = waitpid(h->pid, &status, WNOHANG);
	if (!pid)
		return;
	if (pid == h->pid)
		tell_how_it_ended(h, status);
	forget(h);
	io_queue_wake(h->q); /* for what was noted meanwhile */
}

/* From now on @pid, a child, is the one that runs. */
static void watch(struct hook *h, pid_t pid)
{
	h->pid = pid;
	h->killed = false;
	h->deadline_usec = time_monotonic_usec() + h->timeout_usec;
	atomic_store(&h->running, true);
	h->end.fd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (h->end.fd >= 0) {
		h->end.events = POLLIN;
		h->end.ready = ended;
		io_queue_watch(h->q, &h->end);
		return;
	}
	log_warn("on_low_space: its end cannot be seen (%s), so it is ended", strerror(errno));
	kill(-pid, SIGKILL);
	(void)waitpid(pid, NULL, 0);
	forget(h);
}

/* ------------------------------------------------------------------ its start */

/* In the child, with the parent's memory: system calls only. */
static _Noreturn void become(const char *program, char *const argv[], char *const envp[],
			     pid_t parent, volatile int *error)
{
	struct sigaction usual = { .sa_handler = SIG_DFL };
	sigset_t none;
	int null;

	for (int i = 1; i < NSIG; i++)
		(void)sigaction(i, &usual, NULL);
	(void)setsid(); /* so that all that it starts can be ended with it */
	(void)prctl(PR_SET_PDEATHSIG, SIGTERM);
	(void)prctl(PR_SET_IO_FLUSHER, 0, 0, 0, 0);
	if (getppid() != parent)
		_exit(EXIT_NOT_STARTED);
	null = open("/dev/null", O_RDWR);
	if (null >= 0)
		(void)dup2(null, STDIN_FILENO);
	(void)syscall(SYS_close_range, STDERR_FILENO + 1, ~0u, 0); /* all close on exec anyway */
	if (!chdir("/")) {
		sigemptyset(&none);
		(void)sigprocmask(SIG_SETMASK, &none, NULL);
		execve(program, argv, envp);
	}
	*error = errno;
	_exit(EXIT_NOT_STARTED);
}

/* Returns the child, or a negative errno. */
static __attribute__((noinline)) pid_t start(const char *program, char *const argv[],
					     char *const envp[])
{
	pid_t parent = getpid(), pid;
	volatile int error = 0;
	sigset_t all, old;

	sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	pid = vfork();
	if (!pid)
		become(program, argv, envp, parent, &error);
	if (pid < 0)
		error = errno;
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (!error)
		return pid;
	if (pid > 0)
		(void)waitpid(pid, NULL, 0);
	return -error;
}

struct numbers {
	const char *space, *event;
	uint64_t used, size; /* bytes */
};

static void launch(struct hook *h, const struct numbers *n)
{
	enum { VARIABLE_MAX = 4096 + 64 };
	char text[8][VARIABLE_MAX];
	char *argv[] = { h->program, (char *)n->space, (char *)n->event, NULL };
	char *envp[ARRAY_SIZE(text) + 1] = { NULL };
	pid_t pid;

	snprintf(text[0], VARIABLE_MAX,
		 "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
	snprintf(text[1], VARIABLE_MAX, "THINPOOLD_POOL=%s", h->pooldir);
	snprintf(text[2], VARIABLE_MAX, "THINPOOLD_MOUNT=%s", h->mountpoint);
	snprintf(text[3], VARIABLE_MAX, "THINPOOLD_SPACE=%s", n->space);
	snprintf(text[4], VARIABLE_MAX, "THINPOOLD_EVENT=%s", n->event);
	snprintf(text[5], VARIABLE_MAX, "THINPOOLD_PERCENT=%" PRIu64,
		 n->size ? (uint64_t)(100.0 * (double)n->used / (double)n->size) : 0);
	snprintf(text[6], VARIABLE_MAX, "THINPOOLD_USED=%" PRIu64, n->used);
	snprintf(text[7], VARIABLE_MAX, "THINPOOLD_SIZE=%" PRIu64, n->size);
	for (size_t i = 0; i < ARRAY_SIZE(text); i++)
		envp[i] = text[i];

	atomic_fetch_add(&h->runs, 1);
	pid = start(h->program, argv, envp);
	if (pid < 0) {
		atomic_fetch_add(&h->failures, 1);
		log_warn("on_low_space: %s cannot be started: %s", h->program, strerror(-pid));
		return;
	}
	log_info("on_low_space: %s %s %s", h->program, n->space, n->event);
	watch(h, pid);
}

/* ------------------------------------------------------------------ what is due */

static unsigned bit(enum pool_event_kind kind)
{
	return 1u << kind;
}

/* Nothing is started for what is over by now. */
static void launch_for_data(struct hook *h, const struct pool_status *s, bool full)
{
	struct numbers n = { "data", full ? "full" : "low", s->data_used, s->data_total };

	if (full ? s->mode == POOL_MODE_OUT_OF_DATA_SPACE : s->data_is_low)
		launch(h, &n);
}

static void launch_for_metadata(struct hook *h, const struct pool_status *s, bool full)
{
	struct numbers n = { "metadata", full ? "full" : "low", s->metadata_used,
			     s->metadata_total - s->metadata_reserve };

	if (full ? s->mode == POOL_MODE_OUT_OF_METADATA_SPACE : s->metadata_is_low)
		launch(h, &n);
}

static void run_noted(struct hook *h, struct pool *pool)
{
	unsigned data = bit(POOL_EVENT_DATA_LOW) | bit(POOL_EVENT_DATA_FULL);
	struct pool_status status;
	unsigned noted;

	while (!h->pid && (noted = atomic_load(&h->noted))) {
		unsigned now = noted & data ? data : ~data;

		atomic_fetch_and(&h->noted, ~now);
		if (!h->program[0])
			continue;
		pool_get_status(pool, &status);
		if (now == data)
			launch_for_data(h, &status, noted & bit(POOL_EVENT_DATA_FULL));
		else
			launch_for_metadata(h, &status, noted & bit(POOL_EVENT_METADATA_FULL));
	}
}

void hook_note(struct hook *h, enum pool_event_kind kind)
{
	atomic_fetch_or(&h->noted, bit(kind));
	io_queue_wake(h->q);
}

uint64_t hook_run(struct hook *h, struct pool *pool)
{
	uint64_t now;

	run_noted(h, pool);
	if (!h->pid || h->killed)
		return UINT64_MAX;
	now = time_monotonic_usec();
	if (now < h->deadline_usec)
		return h->deadline_usec - now;
	h->killed = true;
	kill(-h->pid, SIGKILL);
	return UINT64_MAX;
}

/* ------------------------------------------------------------------ life */

static void adopt(struct hook *h)
{
	const char *text = getenv(HEIR);
	pid_t pid = text ? (pid_t)strtol(text, NULL, 10) : 0;
	siginfo_t info = { .si_pid = 0 };

	unsetenv(HEIR);
	if (pid > 1 && !waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT))
		watch(h, pid);
}

struct hook *hook_create(struct io_queue *q, const char *pooldir, const char *mountpoint)
{
	struct hook *h = calloc(1, sizeof(*h));

	if (!h)
		return NULL;
	h->q = q;
	h->pooldir = pooldir;
	h->mountpoint = mountpoint;
	h->end.fd = -1;
	h->timeout_usec = 60 * USEC_PER_SEC;
	adopt(h);
	return h;
}

void hook_configure(struct hook *h, const char *program, uint64_t timeout_usec)
{
	snprintf(h->program, sizeof(h->program), "%s", program);
	h->deadline_usec += timeout_usec - h->timeout_usec; /* of what runs, too */
	h->timeout_usec = timeout_usec;
}

void hook_get_status(struct hook *h, struct hook_status *ret_status)
{
	*ret_status = (struct hook_status){ .running = atomic_load(&h->running),
					    .runs = atomic_load(&h->runs),
					    .failures = atomic_load(&h->failures) };
}

void hook_destroy(struct hook *h, bool handing_over)
{
	char number[24];

	if (!h)
		return;
	snprintf(number, sizeof(number), "%d", (int)h->pid);
	if (h->pid && handing_over)
		(void)setenv(HEIR, number, 1); /* without it nobody waits for the program */
	else if (h->pid)
		kill(-h->pid, SIGTERM);
	forget(h);
	free(h);
}
