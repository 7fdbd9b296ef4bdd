/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * stall-watch.h - does every thread of a test get on, and if not, was it the machine?
 *
 * Each thread has a heart that beats when it has done something.  A reference thread, which takes
 * no lock and waits for nobody, does a little work now and then and notes how much longer that
 * took than it should: so much the machine was busy elsewhere.  What a thread stood still for
 * beyond that is the program's own doing.
 *
 * Threads:  one that starts the others and ends last; a heart is for the thread it was made for.
 * Units:    microseconds.
 */
#ifndef TP_TESTS_STALL_WATCH_H
#define TP_TESTS_STALL_WATCH_H

#include <stdint.h>

struct stall_watch;
struct heart;

/* A heart that stands still for @hang_usec ends the program, after telling of all of them. */
struct stall_watch *stall_watch_start(uint64_t hang_usec);

/* For a thread that is about to be started; counts from its first beat on.  @name stays the
 * caller's. */
struct heart *stall_watch_enter(struct stall_watch *w, const char *name);

/* Something is done. */
void heart_beat(struct heart *h);
/* What comes until the next beat does not count: a pause on purpose. */
void heart_rest(struct heart *h);

struct stall_report {
	uint64_t longest_usec;     /* that a heart stood still */
	uint64_t unexplained_usec; /* the same, less what the machine took meanwhile */
	uint64_t machine_usec;     /* the longest that the reference thread was held up */
	/*
	 * A second; more if the machine was so busy that a chain of threads, each of which waits
	 * for the next, takes longer: every one of them is held up.
	 */
	uint64_t limit_usec; /* of unexplained_usec */
	const char *name;    /* whose heart stood still longest without explanation */
};

/* When all threads but the caller have ended.  Frees @w. */
struct stall_report stall_watch_end(struct stall_watch *w);

#endif
