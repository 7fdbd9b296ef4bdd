/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-notify.c - telling the kernel what to forget
 *
 * Names, sizes and contents change behind the kernel's back: a control command deletes or resizes
 * a volume, a failed commit rolls content back.  A notice makes the kernel take the lock of the
 * inode or directory concerned, and a request that holds that lock may be waiting for a worker:
 * so notices are sent by a thread of their own, which nobody waits for; but the shrinker of pages
 * does, which has no lock that a request may need.
 *
 * When the daemon is killed, a notice may go on waiting, for an answer that only the next daemon
 * can give, and with it this process; but the next daemon must wait until the devices of this one
 * have been let go of.  So the thread has a table of descriptors of its own, with nothing in it but
 * the connection.  That forbids everything that opens, closes or names a descriptor: no logging,
 * and libfuse's own notices, which may log, are not used.
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

#include <linux/close_range.h>
#include <linux/fuse.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* As in newer kernel headers than those this is built with. */
struct entry_notice {
	uint64_t parent;
	uint32_t length, flags;
};
#define ENTRY_EXPIRE_ONLY (1u << 0)

/* ------------------------------------------------------------------ sending */

/* False: ENOENT, the usual answer: the kernel does not know it.  Others: the mount has gone. */
static bool send_bytes(const struct fuse_server *server, struct iovec *iov, int count, int code)
{
	struct fuse_out_header out = { .len = sizeof(out), .error = code };

	for (int i = 1; i < count; i++)
		out.len += (uint32_t)iov[i].iov_len;
	iov[0] = (struct iovec){ .iov_base = &out, .iov_len = sizeof(out) };
	return writev(server->fd, iov, count) >= 0;
}

static void forget_name(struct fuse_server *server, const char *name)
{
	struct entry_notice notice = { .parent = FUSE_ROOT_ID,
				       .length = (uint32_t)strlen(name),
				       .flags = server->can_expire ? ENTRY_EXPIRE_ONLY : 0 };
	struct iovec iov[3] = {
		[1] = { .iov_base = &notice, .iov_len = sizeof(notice) },
		[2] = { .iov_base = (char *)(uintptr_t)name, .iov_len = notice.length + 1 },
	};

	if (notice.length)
		(void)send_bytes(server, iov, 3, FUSE_NOTIFY_INVAL_ENTRY);
}

/*
 * Attributes and cached pages, dirty ones being written back first; length 0: all that follow.
 * Returns false if the kernel does not know the volume.
 */
static bool forget_range(struct fuse_server *server, thin_id_t id, uint64_t offset, uint64_t length)
{
	struct fuse_notify_inval_inode_out notice = { .ino = thin_id_ino(id),
						      .off = (int64_t)offset,
						      .len = (int64_t)length };
	struct iovec iov[2] = { [1] = { .iov_base = &notice, .iov_len = sizeof(notice) } };

	return send_bytes(server, iov, 2, FUSE_NOTIFY_INVAL_INODE);
}

static void forget_content(struct fuse_server *server, thin_id_t id)
{
	(void)forget_range(server, id, 0, 0);
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
	default: /* fuse_server_event() lets no others in */
		break;
	}
}

/* The thread of the notices does it: it alone may be stuck in the kernel when the daemon dies. */
bool fuse_notify_drop(struct fuse_server *server, thin_id_t id, uint64_t offset, uint64_t length)
{
	struct fuse_drop *drop = &server->drop;
	bool is_known;

	tp_lock_may_wait(LC_completion);
	lock_fuse(&server->lock);
	*drop = (struct fuse_drop){
		.state = FUSE_DROP_WANTED, .id = id, .offset = offset, .length = length
	};
	pthread_cond_signal(&server->notify_cond);
	while (drop->state != FUSE_DROP_DONE && !server->notifier_stop)
		tp_lock_wait(&server->lock, &server->drop_cond);
	is_known = drop->state == FUSE_DROP_DONE && drop->is_known;
	drop->state = FUSE_DROP_NONE;
	unlock_fuse(&server->lock);
	return is_known;
}

/* ---------------------------------------------------------------- the queue */

void fuse_server_event(struct fuse_server *server, const struct pool_event *event)
{
	const char *name = event->name ? event->name : "";
	size_t name_bytes = strlen(name) + 1;
	struct fuse_notice *n;

	if (event->kind >= POOL_EVENT_MODE)
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

/* The lock is taken and released in between. */
static TP_REQUIRES(lc_fuse) void drop_locked(struct fuse_server *server)
{
	struct fuse_drop drop = server->drop;
	bool is_known;

	server->drop.state = FUSE_DROP_UNDER_WAY;
	unlock_fuse(&server->lock);
	is_known = forget_range(server, drop.id, drop.offset, drop.length);
	lock_fuse(&server->lock);
	server->drop.is_known = is_known;
	server->drop.state = FUSE_DROP_DONE;
	pthread_cond_signal(&server->drop_cond);
}

/* Sends one thing, without the lock.  Returns false when it is time to end. */
static bool serve_one(struct fuse_server *server)
{
	struct fuse_notice *n;
	bool all, stop;

	lock_fuse(&server->lock);
	while (STAILQ_EMPTY(&server->notices) && !server->forget_all && !server->notifier_stop) {
		if (server->drop.state == FUSE_DROP_WANTED)
			drop_locked(server);
		else
			tp_lock_wait(&server->lock, &server->notify_cond);
	}
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

/* See the head of the file.  A kernel that refuses this has the old table. */
static void have_only(int fd)
{
	if (unshare(CLONE_FILES))
		return;
	if (fd > 0)
		(void)close_range(0, (unsigned)fd - 1, 0);
	(void)close_range((unsigned)fd + 1, ~0u, 0);
}

static void *notifier_main(void *arg)
{
	struct fuse_server *server = arg;

	have_only(server->fd);
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
	pthread_cond_signal(&server->drop_cond);
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
