/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * handover.c - what one daemon leaves to the next
 *
 * LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES tell a program of the descriptors 3, 4 ... that it was
 * started with.  FDSTORE=1 with a FDNAME gives one away; FDPOLL=0, because a connection whose mount
 * has gone is still wanted: it is how the next daemon learns that there is nothing left to do.
 */
#define LOG_MODULE "daemon"
#include "daemon/handover.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/notify.h"
#include "util/log.h"

enum { FIRST_FD = 3, FDS_MAX = 64 };

static const char *const names[NR_LEGACIES] = { "connection", "state", "redo", "life" };

const char *legacy_name(enum legacy_kind kind)
{
	return names[kind];
}

enum legacy_kind legacy_kind_of(const char *name)
{
	for (int i = 0; i < NR_LEGACIES; i++)
		if (!strcmp(name, names[i]))
			return (enum legacy_kind)i;
	return NR_LEGACIES;
}

static void take_one(struct legacy *legacy, int fd, const char *name)
{
	enum legacy_kind kind = legacy_kind_of(name);

	if (kind == NR_LEGACIES || legacy->fds[kind] || fcntl(fd, F_SETFD, FD_CLOEXEC)) {
		close(fd);
		return;
	}
	legacy->fds[kind] = fd;
}

void legacy_take(struct legacy *ret_legacy)
{
	const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
	const char *list = getenv("LISTEN_FDNAMES");
	char *copy = list ? strdup(list) : NULL, *rest = copy;
	long n = count ? strtol(count, NULL, 10) : 0;

	*ret_legacy = (struct legacy){ .fds = { 0 } };
	if (pid && strtol(pid, NULL, 10) == (long)getpid() && n > 0 && n <= FDS_MAX)
		for (int fd = FIRST_FD; fd < FIRST_FD + n; fd++) {
			const char *name = rest ? strsep(&rest, ":") : NULL;

			take_one(ret_legacy, fd, name ? name : "");
		}
	free(copy);
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
}

void legacy_close(struct legacy *legacy)
{
	for (int i = 0; i < NR_LEGACIES; i++) {
		if (legacy->fds[i])
			close(legacy->fds[i]);
		legacy->fds[i] = 0;
	}
}

void legacy_store(enum legacy_kind kind, int fd)
{
	notify_send_fd(fd, "FDSTORE=1\nFDNAME=%s\nFDPOLL=0", names[kind]);
}

void legacy_remove_all(void)
{
	for (int i = 0; i < NR_LEGACIES; i++)
		notify_send("FDSTOREREMOVE=1\nFDNAME=%s", names[i]);
}

int legacy_prepare_exec(const struct legacy *legacy)
{
	int spare[NR_LEGACIES], n = 0;
	char list[64] = "", number[24];

	/* First out of the way, then to where they belong. */
	for (int i = 0; i < NR_LEGACIES; i++) {
		if (!legacy->fds[i])
			continue;
		spare[n] = fcntl(legacy->fds[i], F_DUPFD_CLOEXEC, FIRST_FD + NR_LEGACIES);
		if (spare[n++] < 0)
			return -errno;
		snprintf(list + strlen(list), sizeof(list) - strlen(list), "%s%s", *list ? ":" : "",
			 names[i]);
	}
	for (int i = 0; i < n; i++)
		if (dup2(spare[i], FIRST_FD + i) < 0)
			return -errno;
	snprintf(number, sizeof(number), "%d", n);
	if (setenv("LISTEN_FDS", number, 1) || setenv("LISTEN_FDNAMES", list, 1))
		return -ENOMEM;
	snprintf(number, sizeof(number), "%d", (int)getpid());
	return setenv("LISTEN_PID", number, 1) ? -ENOMEM : 0;
}
