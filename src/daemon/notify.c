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

static const char *address(struct sockaddr_un *ret_addr, socklen_t *ret_length)
{
	const char *path = getenv("NOTIFY_SOCKET");

	*ret_addr = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (!path || (*path != '/' && *path != '@') || strlen(path) >= sizeof(ret_addr->sun_path))
		return NULL;
	memcpy(ret_addr->sun_path, path, strlen(path));
	if (*path == '@')
		ret_addr->sun_path[0] = '\0';
	*ret_length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
	return path;
}

bool notify_is_possible(void)
{
	struct sockaddr_un addr;
	socklen_t length;

	return address(&addr, &length);
}

/* @fd < 0: no descriptor. */
static void send_lines(int fd, const char *fmt, va_list args)
{
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(int))];
	} control = { .space = { 0 } };
	struct sockaddr_un addr;
	char message[512];
	struct iovec iov = { .iov_base = message };
	struct msghdr msg = { .msg_name = &addr, .msg_iov = &iov, .msg_iovlen = 1 };
	int sock, n;

	if (!address(&addr, &msg.msg_namelen))
		return;
	n = vsnprintf(message, sizeof(message), fmt, args);
	iov.iov_len = n < 0 ? 0 : strlen(message);
	if (fd >= 0) {
		control.head = (struct cmsghdr){ .cmsg_level = SOL_SOCKET,
						 .cmsg_type = SCM_RIGHTS,
						 .cmsg_len = CMSG_LEN(sizeof(int)) };
		memcpy(CMSG_DATA(&control.head), &fd, sizeof(int));
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
	}
	sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (sock < 0 || n < 0 || sendmsg(sock, &msg, MSG_NOSIGNAL) < 0)
		log_warn("the service manager could not be told: %s", strerror(errno));
	if (sock >= 0)
		close(sock);
}

void notify_send(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	send_lines(-1, fmt, args);
	va_end(args);
}

void notify_send_fd(int fd, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	send_lines(fd, fmt, args);
	va_end(args);
}
