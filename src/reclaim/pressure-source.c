/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pressure-source.c - descriptors that become ready when memory is short
 *
 * Three kinds.  A pressure file of the kernel (/proc/pressure/memory, memory.pressure of a
 * control group) becomes a trigger by what is written into it, and says POLLPRI.  A FIFO or
 * a socket of a service manager says POLLIN, and what it holds is read and thrown away.
 */
#include "reclaim/pressure-source.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "util/cleanup.h"

#define WRITE_MAX 256 /* decoded bytes: a trigger has about 30 */

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static void close_file(FILE **f)
{
	if (*f)
		fclose(*f);
}

static void free_text(char **text)
{
	free(*text);
}

static int fail(struct tp_error *error, const char *path)
{
	int r = -errno;

	return tp_error(error, r, "%s: %s", path, strerror(-r));
}

/* ---- pressure files ---- */

int pressure_fd_open_psi(const char *path, uint64_t stall_usec, uint64_t window_usec,
			 struct pressure_fd *ret_fd, struct tp_error *error)
{
	TP_CLEANUP(close_fd) int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	char trigger[64];
	int n;

	if (fd < 0)
		return fail(error, path);
	n = snprintf(trigger, sizeof(trigger), "some %llu %llu", (unsigned long long)stall_usec,
		     (unsigned long long)window_usec);
	if (write(fd, trigger, (size_t)n + 1) < 0)
		return fail(error, path);
	ret_fd->fd = fd;
	ret_fd->events = POLLPRI;
	fd = -1;
	return 0;
}

/* The mount point of the cgroup v2 hierarchy; NULL: there is none. */
static char *find_hierarchy(void)
{
	TP_CLEANUP(close_file) FILE *f = fopen("/proc/self/mountinfo", "re");
	TP_CLEANUP(free_text) char *line = NULL;
	size_t room = 0;

	while (f && getline(&line, &room, f) > 0) {
		char *word = line;

		if (!strstr(line, " - cgroup2 "))
			continue;
		for (unsigned field = 1; field < 5 && word; field++) {
			word = strchr(word, ' ');
			word = word ? word + 1 : NULL;
		}
		if (word)
			return strndup(word, strcspn(word, " "));
	}
	return NULL;
}

/* The own group, as a path below the hierarchy; NULL: not known. */
static char *find_group(void)
{
	TP_CLEANUP(close_file) FILE *f = fopen("/proc/self/cgroup", "re");
	TP_CLEANUP(free_text) char *line = NULL;
	size_t room = 0;

	while (f && getline(&line, &room, f) > 0) {
		if (strncmp(line, "0::", 3))
			continue;
		line[strcspn(line, "\n")] = '\0';
		return strdup(line + 3);
	}
	return NULL;
}

int pressure_fd_open_cgroup(uint64_t stall_usec, uint64_t window_usec, struct pressure_fd *ret_fd,
			    struct tp_error *error)
{
	TP_CLEANUP(free_text) char *hierarchy = find_hierarchy();
	TP_CLEANUP(free_text) char *group = find_group();
	TP_CLEANUP(free_text) char *path = NULL;

	if (!hierarchy || !group)
		return tp_error(error, -ENOENT, "there are no control groups of version 2");
	if (asprintf(&path, "%s%s/memory.pressure", hierarchy, strcmp(group, "/") ? group : "") <
	    0) {
		path = NULL;
		return tp_error(error, -ENOMEM, "no memory");
	}
	return pressure_fd_open_psi(path, stall_usec, window_usec, ret_fd, error);
}

/* ---- what a service manager names ---- */

static int digit_of(char c)
{
	static const char digits[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	const char *p = c ? strchr(digits, c) : NULL;

	return p ? (int)(p - digits) : -1;
}

/* Base64 with its padding.  The number of bytes, or -EINVAL. */
static ssize_t decode(const char *text, unsigned char *out, size_t room)
{
	size_t len = strlen(text), n = 0;
	unsigned pad = 0;

	if (len % 4)
		return -EINVAL;
	while (pad < 2 && pad < len && text[len - 1 - pad] == '=')
		pad++;
	for (size_t i = 0; i < len; i += 4) {
		unsigned bits = 0;

		for (size_t j = i; j < i + 4; j++) {
			int d = j < len - pad ? digit_of(text[j]) : 0;

			if (d < 0)
				return -EINVAL;
			bits = bits << 6 | (unsigned)d;
		}
		for (unsigned k = 0; k < 3 && i / 4 * 3 + k < len / 4 * 3 - pad; k++) {
			if (n == room)
				return -EINVAL;
			out[n++] = (unsigned char)(bits >> (16 - 8 * k));
		}
	}
	return (ssize_t)n;
}

static int connect_to(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd, err;

	if (strlen(path) >= sizeof(addr.sun_path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memcpy(addr.sun_path, path, strlen(path) + 1);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || !connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
		return fd;
	err = errno;
	close(fd);
	errno = err;
	return -1;
}

static int open_watch(const char *path, bool writes, short *ret_events)
{
	struct stat st;
	int fd;

	if (stat(path, &st))
		return -1;
	*ret_events = S_ISREG(st.st_mode) ? POLLPRI : POLLIN;
	if (S_ISSOCK(st.st_mode))
		return connect_to(path);
	/* Open for writing a FIFO has no end when its last writer goes. */
	fd = open(path, (writes || S_ISFIFO(st.st_mode) ? O_RDWR : O_RDONLY) | O_NONBLOCK |
				O_CLOEXEC | O_NOCTTY);
	if (fd < 0 && errno == EACCES && !writes)
		fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
	return fd;
}

int pressure_fd_open_watch(const char *path, const char *text, struct pressure_fd *ret_fd,
			   struct tp_error *error)
{
	TP_CLEANUP(close_fd) int fd = -1;
	unsigned char bytes[WRITE_MAX];
	ssize_t n = text ? decode(text, bytes, sizeof(bytes)) : 0;
	short events = 0;

	if (!path || !*path)
		return tp_error(error, -ENOENT, "MEMORY_PRESSURE_WATCH is not set");
	if (*path != '/')
		return tp_error(error, -EINVAL, "MEMORY_PRESSURE_WATCH is no absolute path");
	if (n < 0)
		return tp_error(error, -EINVAL, "MEMORY_PRESSURE_WRITE is no Base64");
	fd = open_watch(path, n > 0, &events);
	if (fd < 0 || (n > 0 && write(fd, bytes, (size_t)n) != n))
		return fail(error, path);
	ret_fd->fd = fd;
	ret_fd->events = events;
	fd = -1;
	return 0;
}

bool pressure_watch_is_forbidden(const char *path)
{
	return path && !strcmp(path, "/dev/null");
}

/* ---- events ---- */

int pressure_fd_take(const struct pressure_fd *f, short revents)
{
	char buf[4096];
	ssize_t n;
	int event = 0;

	/* A trigger whose group is gone says POLLERR and POLLPRI together. */
	if (f->events == POLLPRI)
		return revents & (POLLERR | POLLNVAL) ? -ENODEV : !!(revents & POLLPRI);
	while ((n = read(f->fd, buf, sizeof(buf))) > 0)
		event = 1;
	if (n == 0)
		return event ? event : -EPIPE;
	return errno == EAGAIN || errno == EINTR ? event : -errno;
}
