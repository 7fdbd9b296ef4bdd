/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-notify.c - telling the kernel what to forget
 *
 * Names, sizes and contents change behind the kernel's back: a control command deletes or resizes
 * a volume, a failed commit rolls content back.  A notice makes the kernel take the lock of the
 * inode or directory concerned, and a request that holds that lock may be waiting for a worker:
 * so notices are sent by a thread of their own, which nobody waits for.
 *
 * Names are made to expire rather than removed where the kernel can: removing one whose file is
 * open would show it as deleted in /proc and in losetup's list.
 *
 * Invariants
 *   E1  nr_notices counts the list, at most FUSE_NOTICES_MAX.  What does not fit, or cannot be
 *       allocated, sets forget_all: then the contents of every volume are given up, and names
 *       expire by themselves after CACHE_TIMEOUT_SEC.
 */
#include "fuse/fuse-internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LOG_MODULE "fuse"
#include "util/log.h"

/* ------------------------------------------------------------------ sending */

static void forget_name(struct fuse_server *server, const char *name)
{
	size_t length = strlen(name);

	if (!length)
		return;
	/* ENOENT, the usual answer: the kernel does not know the name. */
	if (server->can_expire)
		(void)fuse_lowlevel_notify_expire_entry(server->session, FUSE_ROOT_ID, name, length,
							FUSE_LL_EXPIRE_ONLY);
	else
		(void)fuse_lowlevel_notify_inval_entry(server->session, FUSE_ROOT_ID, name, length);
}

/* Attributes and every cached page; dirty ones are written back first. */
static void forget_content(struct fuse_server *server, thin_id_t id)
{
	(void)fuse_lowlevel_notify_inval_inode(server->session, thin_id_ino(id), 0, 0);
}

static void forget_all_contents(struct fuse_server *server) TP_TAKES(catalog)
{
	struct volume_info info = { .id = 0 };

	for (thin_id_t from = 0; !pool_volume_next(server->pool, from, &info); from = info.id + 1)
		forget_content(server, info.id);
}

static void send_notice(struct fuse_server *server, const struct fuse_notice *n)
{
	switch (n->kind) {
	case POOL_EVENT_VOLUME_GONE:
	case POOL_EVENT_VOLUME_ADDED: /* a name exchanged leads elsewhere now */
		forget_name(server, n->name);
		break;
	case POOL_EVENT_VOLUME_RESIZED: /* pages past a shorter end must not come back */
	case POOL_EVENT_VOLUME_CONTENT:
		forget_content(server, n->id);
		break;
	case POOL_EVENT_MODE:
		break;
	}
}

bool fuse_notify_drop(struct fuse_server *server, thin_id_t id, uint64_t offset, uint64_t length)
{
	tp_lock_may_wait(LC_completion);
	return fuse_lowlevel_notify_inval_inode(server->session, thin_id_ino(id), (off_t)offset,
						(off_t)length) == 0;
}

/* ---------------------------------------------------------------- the queue */

void fuse_server_event(struct fuse_server *server, const struct pool_event *event)
{
	const char *name = event->name ? event->name : "";
	size_t name_bytes = strlen(name) + 1;
	struct fuse_notice *n;

	if (event->kind == POOL_EVENT_MODE)
		return; /* nothing that the kernel caches */
	n = malloc(sizeof(*n) + name_bytes);
	if (n) {
		n->kind = event->kind;
		n->id = event->id;
		memcpy(n->name, name, name_bytes);
	}

	lock_fuse(&server->lock);
	if (server->notifier_stop) {
		/* Unmounted: nobody is left to be told. */
	} else if (n && server->nr_notices < FUSE_NOTICES_MAX) {
		STAILQ_INSERT_TAIL(&server->notices, n, link);
		server->nr_notices++;
		n = NULL;
	} else {
		server->notices_dropped++;
		server->forget_all = true;
	}
	pthread_cond_signal(&server->notify_cond);
	unlock_fuse(&server->lock);
	free(n);
}

/* Sends one thing, without the lock.  Returns false when it is time to end. */
static bool serve_one(struct fuse_server *server)
{
	struct fuse_notice *n;
	bool all, stop;

	lock_fuse(&server->lock);
	while (STAILQ_EMPTY(&server->notices) && !server->forget_all && !server->notifier_stop)
		tp_lock_wait(&server->lock, &server->notify_cond);
	stop = server->notifier_stop;
	n = STAILQ_FIRST(&server->notices);
	if (n) {
		STAILQ_REMOVE_HEAD(&server->notices, link);
		server->nr_notices--;
		server->notices_sent++;
	}
	all = !n && server->forget_all;
	if (all)
		server->forget_all = false;
	unlock_fuse(&server->lock);

	if (n && !stop)
		send_notice(server, n);
	else if (all && !stop)
		forget_all_contents(server);
	free(n);
	return n || !stop;
}

static void *notifier_main(void *arg)
{
	struct fuse_server *server = arg;

	pthread_setname_np(pthread_self(), "fuse-notify");
	while (serve_one(server))
		;
	return NULL;
}

int fuse_notifier_start(struct fuse_server *server)
{
	int r = -pthread_create(&server->notifier, NULL, notifier_main, server);

	server->notifier_started = !r;
	return r;
}

void fuse_notifier_stop(struct fuse_server *server)
{
	lock_fuse(&server->lock);
	server->notifier_stop = true;
	pthread_cond_signal(&server->notify_cond);
	unlock_fuse(&server->lock);
	if (!server->notifier_started)
		return;
	/* A notice under way ends when the requests it waits for do, or with the connection. */
	tp_lock_may_wait(LC_shrinkers);
	pthread_join(server->notifier, NULL);
	server->notifier_started = false;
}

void fuse_notices_destroy(struct fuse_server *server)
{
	struct fuse_notice *n;

	lock_fuse(&server->lock);
	while ((n = STAILQ_FIRST(&server->notices))) {
		STAILQ_REMOVE_HEAD(&server->notices, link);
		free(n);
	}
	unlock_fuse(&server->lock);
}
