/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pressure.c - the thread that runs the shrinkers when memory is short
 *
 * It sleeps in poll() on the sources' descriptors and on an event descriptor for requests
 * and the end.  A run takes the registry's lock shared, for as long as callbacks take, and
 * nothing else; so nobody who holds a pool lock may wait for the registry (LOCKING.md).
 *
 * After a run malloc()'s free memory is given back, too: the heap of a program that frees
 * many small things stays as large as it ever was.
 *
 * Invariants
 *   P1  The lock guards requests and numbers, and is never held during a run or a call.
 *   P2  Descriptors are the thread's own while it runs.
 *   P3  Nothing is added to the requests once stop is set, under the lock.
 */
#include "reclaim/pressure.h"

#include <errno.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "reclaim/pressure-source.h"
#include "util/cleanup.h"
#include "util/clock.h"

#define LOG_MODULE "reclaim"
#include "util/log.h"

STAILQ_HEAD(request_list, pressure_request);

#define NR_FDS 3 /* of psi, cgroup and watch */

struct pressure {
	pthread_t thread;
	bool started;
	atomic_bool stop;
	int wake_fd;
	struct pressure_fd fds[NR_FDS];
	bool accepts_requests;
	uint64_t timer_usec; /* 0: none */
	uint64_t last_run_usec, next_timer_usec;

	struct tp_lock lock; /* LC_pressure, a mutex */
	struct request_list requests TP_GUARDED_BY(lc_pressure);
	struct pressure_stats stats TP_GUARDED_BY(lc_pressure);
};

const char *pressure_source_name(enum pressure_source source)
{
	static const char *const names[] = { "psi", "cgroup", "watch", "request", "timer" };

	return names[source];
}

const char *pressure_state_name(enum pressure_state state)
{
	static const char *const names[] = { "off", "watched", "missing" };

	return names[state];
}

/* ---- runs ---- */

/* Bytes of the process that are in memory; 0: unknown. */
static uint64_t resident_bytes(void)
{
	FILE *f = fopen("/proc/self/statm", "re");
	unsigned long pages = 0;

	if (f && fscanf(f, "%*u %lu", &pages) != 1)
		pages = 0;
	if (f)
		fclose(f);
	return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void run(struct pressure *p, unsigned divisor,
		struct shrinkers_report *ret_report) TP_EXCLUDES_ALL
{
	shrinkers_reclaim(divisor, ret_report);
	malloc_trim(0);
	p->last_run_usec = time_monotonic_usec();
	lock_pressure(&p->lock);
	p->stats.runs++;
	p->stats.given_back += ret_report->bytes;
	unlock_pressure(&p->lock);
}

static void count_event(struct pressure *p, enum pressure_source source, uint64_t nr)
	TP_TAKES(pressure)
{
	lock_pressure(&p->lock);
	p->stats.sources[source].events += nr;
	unlock_pressure(&p->lock);
}

static void run_for(struct pressure *p, enum pressure_source source)
{
	struct shrinkers_report report;

	run(p, PRESSURE_DIVISOR, &report);
	log_debug("memory pressure (%s): %llu bytes given back", pressure_source_name(source),
		  (unsigned long long)report.bytes);
}

/* All that wait now share one run: each sees what was given back after it had asked. */
static void serve_requests(struct pressure *p)
{
	struct request_list list = STAILQ_HEAD_INITIALIZER(list);
	struct pressure_request *request, result = { .done = NULL };
	uint64_t nr = 0;

	lock_pressure(&p->lock);
	STAILQ_CONCAT(&list, &p->requests);
	unlock_pressure(&p->lock);
	if (STAILQ_EMPTY(&list))
		return;
	STAILQ_FOREACH(request, &list, link)
	nr++;
	count_event(p, PRESSURE_REQUEST, nr);
	result.resident_before = resident_bytes();
	run(p, 1, &result.report);
	result.resident_after = resident_bytes();
	while ((request = STAILQ_FIRST(&list))) {
		STAILQ_REMOVE_HEAD(&list, link);
		request->report = result.report;
		request->resident_before = result.resident_before;
		request->resident_after = result.resident_after;
		request->done(request, 0);
	}
}

/* ---- the thread ---- */

static void lose(struct pressure *p, enum pressure_source source, int r)
{
	close(p->fds[source].fd);
	p->fds[source].fd = -1;
	lock_pressure(&p->lock);
	p->stats.sources[source].state = PRESSURE_MISSING;
	snprintf(p->stats.sources[source].why, sizeof(p->stats.sources[source].why),
		 "it was taken away: %s", strerror(-r));
	unlock_pressure(&p->lock);
	log_warn("memory pressure is no longer watched by %s: %s", pressure_source_name(source),
		 strerror(-r));
}

/* One run, whatever sources have come together. */
static void serve_sources(struct pressure *p, const struct pollfd *polled)
{
	enum pressure_source first = PRESSURE_NR_SOURCES;

	for (unsigned i = 0; i < NR_FDS; i++) {
		int r = polled[i].revents ? pressure_fd_take(&p->fds[i], polled[i].revents) : 0;

		if (r < 0)
			lose(p, i, r);
		if (r <= 0)
			continue;
		count_event(p, i, 1);
		if (first == PRESSURE_NR_SOURCES)
			first = i;
	}
	if (first != PRESSURE_NR_SOURCES &&
	    time_monotonic_usec() - p->last_run_usec >= PRESSURE_INTERVAL_USEC)
		run_for(p, first);
}

static void serve_timer(struct pressure *p)
{
	if (!p->timer_usec || time_monotonic_usec() < p->next_timer_usec)
		return;
	count_event(p, PRESSURE_TIMER, 1);
	run_for(p, PRESSURE_TIMER);
	p->next_timer_usec = time_monotonic_usec() + p->timer_usec;
}

static void sleep_until_something(struct pressure *p, struct pollfd polled[NR_FDS + 1])
{
	uint64_t now = time_monotonic_usec();
	struct timespec timeout = { 0 }, *limit = NULL;

	if (p->timer_usec) {
		uint64_t usec = p->next_timer_usec > now ? p->next_timer_usec - now : 0;

		timeout.tv_sec = (time_t)(usec / USEC_PER_SEC);
		timeout.tv_nsec = (long)(usec % USEC_PER_SEC * NSEC_PER_USEC);
		limit = &timeout;
	}
	for (unsigned i = 0; i < NR_FDS; i++)
		polled[i] = (struct pollfd){ .fd = p->fds[i].fd, .events = p->fds[i].events };
	polled[NR_FDS] = (struct pollfd){ .fd = p->wake_fd, .events = POLLIN };
	if (ppoll(polled, NR_FDS + 1, limit, NULL) <= 0)
		for (unsigned i = 0; i <= NR_FDS; i++)
			polled[i].revents = 0;
}

static void *pressure_main(void *arg)
{
	struct pollfd polled[NR_FDS + 1];
	struct pressure *p = arg;
	uint64_t count;

	pthread_setname_np(pthread_self(), "pressure");
	p->next_timer_usec = time_monotonic_usec() + p->timer_usec;
	while (!atomic_load(&p->stop)) {
		sleep_until_something(p, polled);
		if (polled[NR_FDS].revents)
			(void)!read(p->wake_fd, &count, sizeof(count));
		if (atomic_load(&p->stop))
			break;
		serve_requests(p);
		serve_sources(p, polled);
		serve_timer(p);
	}
	return NULL;
}

static void wake(struct pressure *p)
{
	uint64_t one = 1;

	while (write(p->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

void pressure_submit(struct pressure *p, struct pressure_request *request)
{
	int r = p->accepts_requests ? 0 : -EOPNOTSUPP;

	lock_pressure(&p->lock);
	if (!r && atomic_load(&p->stop))
		r = -ESHUTDOWN;
	if (!r)
		STAILQ_INSERT_TAIL(&p->requests, request, link);
	unlock_pressure(&p->lock);
	if (r)
		request->done(request, r);
	else
		wake(p);
}

/* ---- numbers ---- */

void pressure_get_stats(struct pressure *p, struct pressure_stats *ret_stats)
{
	lock_pressure(&p->lock);
	*ret_stats = p->stats;
	unlock_pressure(&p->lock);
	ret_stats->longest_hold_usec = shrinkers_longest_hold_usec();
}

void pressure_describe(struct pressure *p, char *buf, size_t size)
{
	struct pressure_stats stats;
	size_t used = 0;
	unsigned nr = 0;

	pressure_get_stats(p, &stats);
	used += (size_t)snprintf(buf, size, "memory pressure is watched by ");
	for (unsigned i = 0; i < PRESSURE_NR_SOURCES; i++)
		if (stats.sources[i].state == PRESSURE_WATCHED && used < size)
			used += (size_t)snprintf(buf + used, size - used, "%s%s", nr++ ? ", " : "",
						 pressure_source_name(i));
	if (!nr && used < size)
		used += (size_t)snprintf(buf + used, size - used, "nothing");
	for (unsigned i = 0; i < PRESSURE_NR_SOURCES; i++)
		if (stats.sources[i].state == PRESSURE_MISSING && used < size)
			used += (size_t)snprintf(buf + used, size - used, "; not by %s (%s)",
						 pressure_source_name(i), stats.sources[i].why);
}

/* ---- life ---- */

static int open_source(struct pressure *p, const struct pressure_options *o,
		       enum pressure_source source, struct tp_error *error)
{
	struct pressure_fd *f = source < NR_FDS ? &p->fds[source] : NULL;

	switch (source) {
	case PRESSURE_PSI:
		return pressure_fd_open_psi(o->psi_path ? o->psi_path : "/proc/pressure/memory",
					    o->stall_usec, PRESSURE_WINDOW_USEC, f, error);
	case PRESSURE_CGROUP:
		if (o->cgroup_path)
			return pressure_fd_open_psi(o->cgroup_path, o->stall_usec,
						    PRESSURE_WINDOW_USEC, f, error);
		return pressure_fd_open_cgroup(o->stall_usec, PRESSURE_WINDOW_USEC, f, error);
	case PRESSURE_WATCH:
		return pressure_fd_open_watch(o->watch_path, o->watch_write, f, error);
	default:
		return 0; /* they need nothing */
	}
}

/* Nobody else knows it yet. */
TP_NO_TSA static void open_sources(struct pressure *p, const struct pressure_options *o)
{
	for (unsigned i = 0; i < PRESSURE_NR_SOURCES; i++) {
		struct tp_error error = { "" };
		int r;

		if (!o->enabled[i])
			continue; /* zeroed: off */
		if (i < NR_FDS && pressure_watch_is_forbidden(o->watch_path))
			r = tp_error(&error, -EPERM, "MEMORY_PRESSURE_WATCH forbids it");
		else
			r = open_source(p, o, i, &error);
		p->stats.sources[i].state = r ? PRESSURE_MISSING : PRESSURE_WATCHED;
		snprintf(p->stats.sources[i].why, sizeof(p->stats.sources[i].why), "%.120s",
			 error.text);
	}
	p->accepts_requests = o->enabled[PRESSURE_REQUEST];
	p->timer_usec = o->enabled[PRESSURE_TIMER] ? o->timer_usec : 0;
}

static int start_thread(struct pressure *p)
{
	sigset_t all, old;
	int r;

	sigfillset(&all); /* signals are for the main thread */
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = -pthread_create(&p->thread, NULL, pressure_main, p);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	p->started = !r;
	return r;
}

TP_NO_TSA int pressure_start(const struct pressure_options *options, struct pressure **ret_p)
{
	struct pressure *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return -ENOMEM;
	for (unsigned i = 0; i < NR_FDS; i++)
		p->fds[i].fd = -1;
	STAILQ_INIT(&p->requests);
	tp_lock_init(&p->lock, LC_pressure, LOCK_KIND_MUTEX);
	p->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r = p->wake_fd < 0 ? -errno : 0;
	if (!r) {
		open_sources(p, options);
		r = start_thread(p);
	}
	if (r) {
		(void)pressure_destroy(p);
		return r;
	}
	*ret_p = p;
	return 0;
}

/* The thread has ended, so nobody else takes requests. */
static void refuse_requests(struct pressure *p) TP_EXCLUDES_ALL
{
	struct request_list list = STAILQ_HEAD_INITIALIZER(list);
	struct pressure_request *request;

	lock_pressure(&p->lock);
	STAILQ_CONCAT(&list, &p->requests);
	unlock_pressure(&p->lock);
	while ((request = STAILQ_FIRST(&list))) {
		STAILQ_REMOVE_HEAD(&list, link);
		request->done(request, -ESHUTDOWN);
	}
}

void pressure_stop(struct pressure *p)
{
	if (!p || !p->started)
		return;
	lock_pressure(&p->lock);
	atomic_store(&p->stop, true);
	unlock_pressure(&p->lock);
	wake(p);
	/* A run waits for I/O on volumes. */
	tp_lock_may_wait(LC_shrinkers);
	pthread_join(p->thread, NULL);
	p->started = false;
	refuse_requests(p);
}

struct pressure *pressure_destroy(struct pressure *p)
{
	if (!p)
		return NULL;
	pressure_stop(p);
	for (unsigned i = 0; i < NR_FDS; i++)
		if (p->fds[i].fd >= 0)
			close(p->fds[i].fd);
	if (p->wake_fd >= 0)
		close(p->wake_fd);
	tp_lock_destroy(&p->lock);
	free(p);
	return NULL;
}
