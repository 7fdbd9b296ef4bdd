/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * keeper.h - a tiny process that outlives the daemon
 *
 * Where no service manager keeps a mount's descriptors: it starts the daemon, keeps what that gives
 * it, and starts another when it dies.
 *
 * Layer:    daemon.
 * Threads:  one; the process has no other.
 * Units:    microseconds.
 * Errors:   an exit status.
 */
#ifndef TP_DAEMON_KEEPER_H
#define TP_DAEMON_KEEPER_H

#include <stdint.h>

#include "util/lock-class.h"

struct keeper_options {
	const char *program; /* the daemon's; whatever is there when one is started */
	char *const *argv;   /* of the daemon */
	const char *pooldir, *mountpoint;
	/* So many deaths in so much time are a crash loop. */
	unsigned restart_limit;
	uint64_t restart_window_usec;
	/* The first daemon serves. */
	void (*ready)(void *ctx);
	void *ctx;
};

/*
 * Returns the exit status: that of a daemon that ended as it was told to, or never served.  The
 * caller has blocked SIGTERM, SIGINT, SIGHUP, SIGUSR2 and SIGCHLD.
 */
int keeper_run(const struct keeper_options *options) TP_TAKES(completion);

#endif
