/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * process-rest.h - does a process hang?
 */
#ifndef TP_TESTS_PROCESS_REST_H
#define TP_TESTS_PROCESS_REST_H

#include <stdbool.h>
#include <sys/types.h>

/*
 * Looks at process @pid for up to @msec: true if all its threads slept all the while and none
 * ran for a moment.  On a busy machine a thread that has to run is runnable, not asleep, so
 * this is no matter of speed; a process without timers that rests waits for ever.
 */
bool process_rests(pid_t pid, unsigned msec);

#endif
