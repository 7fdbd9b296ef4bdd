/* SPDX-License-Identifier: GPL-2.0-or-later */
/* give-up.c - a mount whose daemons die again and again answers EIO */
#define LOG_MODULE "daemon"
#include "daemon/give-up.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "daemon/config.h"
#include "daemon/notify.h"
#include "fuse/fuse-refuse.h"
#include "util/clock.h"
#include "util/log.h"

bool give_up_is_due(const struct legacy *legacy, const struct config *cfg)
{
	/* The keeper counts by itself; and one that replaces itself is expected. */
	return legacy_is_whole(legacy) && !legacy->fds[LEGACY_LIFE] &&
	       fuse_refuse_is_due(legacy->fds[LEGACY_STATE], cfg->restart_limit,
				  cfg->restart_window_usec);
}

static void unmount(struct fuse_refusal *refusal)
{
	int r = fuse_refuse_unmount(refusal);

	if (r)
		log_err("cannot unmount: %s, its users get ENOTCONN", strerror(-r));
}

/* 0: neither of them. */
static int read_signal(int fd)
{
	struct signalfd_siginfo info;

	while (read(fd, &info, sizeof(info)) == sizeof(info))
		if (info.ssi_signo == SIGUSR2 || info.ssi_signo == SIGTERM ||
		    info.ssi_signo == SIGINT)
			return (int)info.ssi_signo;
	return 0;
}

/* Returns what ended it; 0: it was unmounted. */
static int refuse(struct fuse_refusal *refusal, int connection, int signals) TP_TAKES(completion)
{
	struct pollfd fds[2] = { { .fd = signals, .events = POLLIN },
				 { .fd = connection, .events = POLLIN } };

	for (;;) {
		int signo;

		if (poll(fds, 2, -1) < 0)
			continue;
		signo = read_signal(signals);
		if (signo == SIGTERM || signo == SIGINT)
			unmount(refusal);
		if (signo)
			return signo;
		if (fds[1].revents && fuse_refuse_some(refusal)) {
			log_info("unmounted");
			return 0;
		}
	}
}

bool give_up(const struct legacy *legacy, const struct config *cfg, const char *mountpoint)
{
	struct fuse_refusal *refusal;
	int signals, signo = 0, r;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGUSR2);
	signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	r = signals < 0 ? -errno
			: fuse_refuse_begin(legacy->fds[LEGACY_CONNECTION],
					    legacy->fds[LEGACY_STATE], &refusal);
	if (r) {
		log_err("'%s' cannot even be refused: %s, its users get ENOTCONN", mountpoint,
			strerror(-r));
	} else {
		log_err("'%s' gets EIO from now on: the daemon died %u times within %.0f s.  "
			"Repair "
			"what is wrong, then send SIGUSR2 to process %d to try again, or umount "
			"'%s'",
			mountpoint, cfg->restart_limit,
			(double)cfg->restart_window_usec / (double)USEC_PER_SEC, (int)getpid(),
			mountpoint);
		notify_send("READY=1\nSTATUS=given up: the daemon died %u times, '%s' gets EIO",
			    cfg->restart_limit, mountpoint);
		signo = refuse(refusal, legacy->fds[LEGACY_CONNECTION], signals);
		fuse_refuse_end(refusal);
	}
	if (signals >= 0)
		close(signals);
	if (signo == SIGUSR2) {
		log_info("trying again");
		fuse_refuse_expect(legacy->fds[LEGACY_STATE]);
	} else {
		notify_send("STOPPING=1");
		legacy_remove_all();
	}
	return signo == SIGUSR2;
}
