/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * notify.c - tell the service manager how the daemon is
 *
 * One datagram to the socket named by NOTIFY_SOCKET; "@" stands for the NUL that
 * begins an abstract name.  A failure is nobody's business but the log's.
 */
#define LOG_MODULE "notify"
#include "daemon/notify.h"

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "util/log.h"

void notify_send(const char *fmt, ...)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	char message[512];
	va_list args;
	int fd, n;

	if (!path || (*path != '/' && *path != '@') || strlen(path) >= sizeof(addr.sun_path))
		return;
	memcpy(addr.sun_path, path, strlen(path));
	if (*path == '@')
		addr.sun_path[0] = '\0';

	va_start(args, fmt);
	n = vsnprintf(message, sizeof(message), fmt, args);
	va_end(args);
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || n < 0 ||
	    sendto(fd, message, strlen(message), MSG_NOSIGNAL, (struct sockaddr *)&addr,
		   (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path))) < 0)
		log_warn("the service manager could not be told: %s", strerror(errno));
	if (fd >= 0)
		close(fd);
}
