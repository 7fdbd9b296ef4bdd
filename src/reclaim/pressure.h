/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pressure.h - the thread that runs the shrinkers when memory is short
 *
 * Layer:    reclaim; uses util/ and the registry of shrinkers, nothing else.
 * Threads:  any, but for start and stop.  The pressure thread calls shrinkers and the
 *           ends of requests, and holds no lock but the registry's, shared.
 * Units:    bytes and microseconds.
 * Errors:   0 or a negative errno.  A source that cannot be had is no error: its state
 *           tells why.
 *
 * An event of a source asks each cache for a quarter of what it holds, at most once a
 * second, so that pressure that lasts empties them step by step.  A request asks for all.
 */
#ifndef TP_RECLAIM_PRESSURE_H
#define TP_RECLAIM_PRESSURE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "reclaim/shrinker.h"
#include "util/compiler.h"
#include "util/lock-class.h"

struct pressure;

enum pressure_source {
	PRESSURE_PSI,     /* stalls of the whole system: /proc/pressure/memory */
	PRESSURE_CGROUP,  /* of the daemon's own control group: its memory.pressure */
	PRESSURE_WATCH,   /* what the service manager names: MEMORY_PRESSURE_WATCH */
	PRESSURE_REQUEST, /* pressure_submit() */
	PRESSURE_TIMER,
	PRESSURE_NR_SOURCES
};

/* Stalls are added up over so long.  (Others than root may not ask for less.) */
#define PRESSURE_WINDOW_USEC 2000000
/* Between two runs for events of psi, cgroup and watch; what comes earlier is only counted. */
#define PRESSURE_INTERVAL_USEC 1000000
/* An event asks for this part. */
#define PRESSURE_DIVISOR 4

struct pressure_options {
	bool enabled[PRESSURE_NR_SOURCES];
	uint64_t stall_usec;     /* psi, cgroup: stalled so long in a window; below the window */
	uint64_t timer_usec;     /* between two events of the timer */
	const char *psi_path;    /* NULL: /proc/pressure/memory */
	const char *cgroup_path; /* NULL: memory.pressure of the own control group */
	/* MEMORY_PRESSURE_WATCH and MEMORY_PRESSURE_WRITE of the environment; NULL: not set. */
	const char *watch_path, *watch_write;
};

/* Strings are not kept.  -ENOMEM, -EAGAIN, -EMFILE. */
int pressure_start(const struct pressure_options *options,
		   struct pressure **ret_p) TP_EXCLUDES_ALL TP_MUST_CHECK;

/*
 * End the thread.  A run under way is waited for: whoever serves what its callbacks wait for
 * must still do so.  Requests that have not begun, and later ones, end with -ESHUTDOWN; the
 * numbers can still be read.  NULL is allowed.
 */
void pressure_stop(struct pressure *p) TP_EXCLUDES_ALL;

/* Stops it if need be.  NULL is allowed.  Returns NULL. */
struct pressure *pressure_destroy(struct pressure *p) TP_EXCLUDES_ALL;

/* Embedded in the caller's structure. */
struct pressure_request {
	/*
	 * Called once with no lock held, by the pressure thread or out of pressure_submit():
	 * 0, -EOPNOTSUPP (requests are switched off) or -ESHUTDOWN.
	 */
	void (*done)(struct pressure_request *request, int r);
	struct shrinkers_report report;           /* out */
	uint64_t resident_before, resident_after; /* out: bytes of the process; 0: unknown */

	/* private to pressure.c */
	STAILQ_ENTRY(pressure_request) link;
};

void pressure_submit(struct pressure *p, struct pressure_request *request) TP_TAKES(control);

enum pressure_state {
	PRESSURE_OFF, /* by configuration */
	PRESSURE_WATCHED,
	PRESSURE_MISSING, /* cannot be had, or was lost */
};

struct pressure_stats {
	struct {
		enum pressure_state state;
		char why[128]; /* it is missing */
		uint64_t events;
	} sources[PRESSURE_NR_SOURCES];
	uint64_t runs;              /* of the shrinkers */
	uint64_t given_back;        /* bytes, by all runs */
	uint64_t longest_hold_usec; /* shrinkers_longest_hold_usec() */
};

void pressure_get_stats(struct pressure *p, struct pressure_stats *ret_stats) TP_TAKES(pressure);

/* "psi", "cgroup", "watch", "request", "timer" */
const char *pressure_source_name(enum pressure_source source);
/* "off", "watched", "missing" */
const char *pressure_state_name(enum pressure_state state);

/* One line for the log: what is watched, and what not and why. */
void pressure_describe(struct pressure *p, char *buf, size_t size) TP_TAKES(pressure);

#endif
