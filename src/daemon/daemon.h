/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * daemon.h - the parts of one running daemon, put together and taken apart
 *
 * Layer:    daemon.
 * Threads:  the main thread, which becomes the control thread.
 * Units:    none.
 * Errors:   0 or a negative errno, with a line for a person in @error.
 */
#ifndef TP_DAEMON_DAEMON_H
#define TP_DAEMON_DAEMON_H

#include <stdbool.h>

#include "daemon/config.h"
#include "daemon/handover.h"
#include "util/error.h"
#include "util/lock-class.h"

struct daemon;

struct daemon_options {
	struct config config;
	const char *pooldir, *mountpoint; /* absolute; borrowed until daemon_stop() */
	bool read_only;
	struct legacy legacy; /* what an earlier daemon left; all but LEGACY_LIFE is taken */
	/* What the configuration is by now, for SIGHUP.  @error says what is wrong with it. */
	int (*read_config)(void *ctx, struct config *cfg, struct tp_error *error);
	/* Would the program that is to replace this one start?  @error says why not. */
	int (*check_successor)(void *ctx, struct tp_error *error);
	void *ctx;
};

/* Open the pool, mount, listen: the mount answers when this returns. */
int daemon_start(const struct daemon_options *options, struct daemon **ret_d,
		 struct tp_error *error) TP_EXCLUDES_ALL TP_MUST_CHECK;

enum daemon_end { DAEMON_STOP, DAEMON_HAND_OVER };

/*
 * Say that the daemon is ready, and serve until SIGTERM, SIGINT or an unmount, or until the mount
 * is to be handed over: SIGUSR2, or a control command.  SIGHUP reads the configuration again.  The
 * caller has blocked these signals.
 */
enum daemon_end daemon_run(struct daemon *d) TP_TAKES(catalog);

/*
 * Answer what has been asked, commit, close, but let the mount be.  Afterwards the daemon is gone,
 * and *@ret_legacy is what the next one needs.  On failure it has been stopped.
 */
int daemon_hand_over(struct daemon *d, struct legacy *ret_legacy) TP_EXCLUDES_ALL TP_MUST_CHECK;

/*
 * Unmount, commit, close, in the reverse order of the start.  NULL is allowed.
 * Returns the error of the last commit.
 */
int daemon_stop(struct daemon *d) TP_EXCLUDES_ALL;

#endif
