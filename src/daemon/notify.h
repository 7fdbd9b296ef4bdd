/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * notify.h - tell the service manager how the daemon is (sd_notify(3)'s protocol)
 *
 * Layer:    daemon.
 * Threads:  any.
 * Units:    none.
 * Errors:   none to the caller; a failure is logged.
 */
#ifndef TP_DAEMON_NOTIFY_H
#define TP_DAEMON_NOTIFY_H

#include <stdbool.h>

#include "util/compiler.h"

/* Is there somebody to tell? */
bool notify_is_possible(void);

/* Send lines such as "READY=1\nSTATUS=...".  Without a service manager nothing happens. */
void notify_send(const char *fmt, ...) TP_PRINTF(1, 2);

/* The same with a copy of a descriptor. */
void notify_send_fd(int fd, const char *fmt, ...) TP_PRINTF(2, 3);

#endif
