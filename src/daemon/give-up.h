/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * give-up.h - a mount whose daemons die again and again answers EIO
 *
 * Where the service manager starts the daemons: it would let go of the mount, whose users then get
 * ENOTCONN for good.  With the keeper it is the keeper who does this.
 *
 * Layer:    daemon.
 * Threads:  one.
 * Units:    none.
 * Errors:   none: a failure is logged.
 */
#ifndef TP_DAEMON_GIVE_UP_H
#define TP_DAEMON_GIVE_UP_H

#include <stdbool.h>

#include "daemon/handover.h"
#include "util/lock-class.h"

struct config;

/* Is this start one too many?  It counts, unless the mount was handed over. */
bool give_up_is_due(const struct legacy *legacy, const struct config *cfg);

/*
 * Answer EIO until somebody unmounts, sends SIGTERM, which unmounts, or SIGUSR2: then returns true,
 * and a daemon shall try again.  The caller has blocked these signals.
 */
bool give_up(const struct legacy *legacy, const struct config *cfg, const char *mountpoint)
	TP_TAKES(completion);

#endif
