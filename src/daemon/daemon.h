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
#include "util/error.h"
#include "util/lock-class.h"

struct daemon;

struct daemon_options {
	struct config config;
	const char *pooldir, *mountpoint; /* absolute; borrowed until daemon_stop() */
	bool read_only;
	/* What the configuration is by now, for SIGHUP.  @error says what is wrong with it. */
	int (*read_config)(void *ctx, struct config *cfg, struct tp_error *error);
	void *ctx;
};

/* Open the pool, mount, listen: the mount answers when this returns. */
int daemon_start(const struct daemon_options *options, struct daemon **ret_d,
		 struct tp_error *error) TP_EXCLUDES_ALL TP_MUST_CHECK;

/*
 * Say that the daemon is ready, and serve until SIGTERM, SIGINT or an unmount; SIGHUP reads the
 * configuration again.  The caller has blocked these signals.
 */
void daemon_run(struct daemon *d) TP_TAKES(bufio);

/*
 * Unmount, commit, close, in the reverse order of the start.  NULL is allowed.
 * Returns the error of the last commit.
 */
int daemon_stop(struct daemon *d) TP_EXCLUDES_ALL;

#endif
