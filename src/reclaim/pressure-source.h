/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pressure-source.h - descriptors that become ready when memory is short
 *
 * Layer:    reclaim, for pressure.c.
 * Threads:  any; nothing is shared.
 * Units:    microseconds.
 * Errors:   a negative errno, with the reason as a phrase in @error.
 */
#ifndef TP_RECLAIM_PRESSURE_SOURCE_H
#define TP_RECLAIM_PRESSURE_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "util/compiler.h"
#include "util/error.h"

struct pressure_fd {
	int fd;       /* -1: none */
	short events; /* for poll(): POLLPRI, or POLLIN: then something is to be read */
};

/*
 * A trigger on a pressure file of the kernel: ready when tasks have waited for memory for
 * @stall_usec out of @window_usec.
 */
int pressure_fd_open_psi(const char *path, uint64_t stall_usec, uint64_t window_usec,
			 struct pressure_fd *ret_fd, struct tp_error *error) TP_MUST_CHECK;

/* The same of the control group that this process is in. */
int pressure_fd_open_cgroup(uint64_t stall_usec, uint64_t window_usec, struct pressure_fd *ret_fd,
			    struct tp_error *error) TP_MUST_CHECK;

/*
 * What a service manager names in MEMORY_PRESSURE_WATCH: a pressure file, a FIFO or a UNIX
 * stream socket, into which the bytes of @write (Base64, NULL: none) are written first.
 */
int pressure_fd_open_watch(const char *path, const char *write, struct pressure_fd *ret_fd,
			   struct tp_error *error) TP_MUST_CHECK;

/*
 * poll() has said @revents.  1: an event; 0: nothing; negative: the source is lost, and is to be
 * closed.
 */
int pressure_fd_take(const struct pressure_fd *f, short revents);

/* The service manager asks not to watch at all. */
bool pressure_watch_is_forbidden(const char *path);

#endif
