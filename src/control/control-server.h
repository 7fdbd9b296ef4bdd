/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * control-server.h - the control socket of one daemon
 *
 * Layer:    control; uses util/, io/ (as its event loop) and pool/.
 * Threads:  all calls from the thread that owns the queue.
 * Units:    bytes.
 * Errors:   0 or a negative errno, with a line for a person in @error.
 * Bounds:   CONTROL_MESSAGE_MAX bytes a call, CONTROL_CONNECTIONS_MAX connections; when all
 *           are taken the one idle for longest is closed for a new one.
 */
#ifndef TP_CONTROL_CONTROL_SERVER_H
#define TP_CONTROL_CONTROL_SERVER_H

#include "control/status-document.h"
#include "io/io-queue.h"
#include "pool/pool.h"
#include "reclaim/pressure.h"
#include "util/compiler.h"
#include "util/error.h"
#include "util/lock-class.h"

struct control_server;

/* What calls about the daemon itself lead to.  Called out of io_queue_run(). */
struct control_service {
	/* Hand the mount over to a new daemon; *@ret_restarts: how often that has been done. */
	int (*restart)(void *ctx, unsigned *ret_restarts, struct tp_error *error);
	void (*get_hook)(void *ctx, struct hook_status *ret_status); /* NULL: there is none */
	void (*get_restarts)(void *ctx, unsigned *ret_restarts, uint64_t *ret_pause_usec);
	/* How requests come from the kernel, in a word. */
	const char *(*transport)(void *ctx);
	void *ctx;
};

/*
 * Listen at @path (made with mode 0600; a stale socket there is replaced) and answer calls
 * about @pool out of io_queue_run(@q).  Requests to reclaim memory go to @pressure.
 */
int control_server_create(struct io_queue *q, struct pool *pool, struct pressure *pressure,
			  const struct control_service *service, const char *path,
			  struct control_server **ret_server, struct tp_error *error) TP_MUST_CHECK;

/*
 * Close and remove the socket; waits for commands and requests under way, so the pool and the
 * pressure thread are still there, or the latter has ended.  NULL is allowed.  Returns NULL.
 */
struct control_server *control_server_destroy(struct control_server *s) TP_TAKES(completion);

#endif
