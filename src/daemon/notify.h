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

#include "util/compiler.h"

/* Send lines such as "READY=1\nSTATUS=...".  Without a service manager nothing happens. */
void notify_send(const char *fmt, ...) TP_PRINTF(1, 2);

#endif
