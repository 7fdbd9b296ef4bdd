/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * hook.h - a program of the administrator's that is run when space is short (on_low_space)
 *
 * Layer:    daemon.
 * Threads:  hook_note(): any; hook_get_status(): any; the rest: the thread that owns the queue.
 * Units:    microseconds.
 * Errors:   none; what goes wrong is in the log.
 *
 * One program at a time.  What happens while it runs is noted, and it is run again for that
 * afterwards, once for each kind of space.
 */
#ifndef TP_DAEMON_HOOK_H
#define TP_DAEMON_HOOK_H

#include <stdbool.h>
#include <stdint.h>

#include "control/status-document.h"
#include "io/io-queue.h"
#include "pool/pool.h"
#include "util/compiler.h"
#include "util/lock-class.h"

struct hook;

/*
 * The strings are borrowed.  A program that was running when the daemon handed over to this one
 * (hook_destroy()) is waited for as if it had just been started.  NULL: no memory.
 */
struct hook *hook_create(struct io_queue *q, const char *pooldir,
			 const char *mountpoint) TP_MUST_CHECK;

/* @program is copied; "": none, from now on. */
void hook_configure(struct hook *h, const char *program, uint64_t timeout_usec);

/* POOL_EVENT_DATA_LOW and the like; wakes the queue. */
void hook_note(struct hook *h, enum pool_event_kind kind);

/*
 * Start what is due, end what has taken too long.  Returns how long io_queue_run() may wait until
 * there is something to do again.
 */
uint64_t hook_run(struct hook *h, struct pool *pool) TP_TAKES(catalog);

void hook_get_status(struct hook *h, struct hook_status *ret_status);

/*
 * A program that still runs is asked to end (SIGTERM) and no longer waited for; or, with
 * @handing_over, left to the next daemon in this process.  NULL is allowed.
 */
void hook_destroy(struct hook *h, bool handing_over);

#endif
