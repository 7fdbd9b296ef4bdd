/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-session.h - serve a pool as a directory of files
 *
 * A volume is a regular file, inode 16 + thin id.  `.thinpool` holds files whose text the caller
 * makes.  Inodes and directory positions follow from what is on disk; what else the kernel knows of
 * a mount stands in memory that outlives the daemon (fuse-state.h).  With that and the connection
 * another daemon goes on serving the mount, whatever became of the one before.
 *
 * Layer:    fuse; uses util/, reclaim/, io/, catalog/ and pool/.
 * Threads:  the calls below come from any thread that serves no I/O of this pool.
 * Units:    bytes; times in microseconds.
 * Errors:   0 or a negative errno.
 *
 * Memory: each worker maps about 1 GiB of address space for request buffers, touched only as
 * far as requests in flight need it.  mlockall() therefore wants MCL_ONFAULT.  A server registers
 * shrinkers: for these buffers, and on request for the kernel's pages of the volumes.
 */
#ifndef TP_FUSE_FUSE_SESSION_H
#define TP_FUSE_FUSE_SESSION_H

#include <stdbool.h>
#include <stdint.h>

#include "pool/pool.h"
#include "util/compiler.h"
#include "util/error.h"
#include "util/lock-class.h"

struct fuse_server;

enum fuse_cache_mode {
	FUSE_CACHE_PAGES, /* the kernel caches pages between opens; writes go through at once */
	FUSE_CACHE_NONE,  /* every read and write comes to the daemon */
};

/* A read-only file in `.thinpool`; each open sees the text made at that moment. */
struct fuse_virtual_file {
	const char *name;
	/* Text from malloc(), or NULL when there is no memory.  Called by a FUSE worker: no
	 * waiting. */
	char *(*render)(void *ctx);
	void *ctx;
};

#define FUSE_VIRTUAL_FILES_MAX 13 /* inodes 3..15 */

struct fuse_server_options {
	struct pool *pool;
	const char *mountpoint;
	unsigned nr_workers; /* 0: FUSE_WORKERS_DEFAULT */
	enum fuse_cache_mode cache;
	bool read_only;
	bool allow_other;        /* users other than the daemon's may look in */
	unsigned max_background; /* requests that nobody waits for, in work; 0: FUSE_MAX_BACKGROUND
				  */
	const char
		*socket_path; /* told by the xattr user.thinpool.socket of the root; NULL: none */
	/*
	 * The connection and the state of an earlier daemon's mount, to go on with; both are taken
	 * over in any case.  0: make a new mount.
	 */
	int connection_fd, state_fd;
	/* A new mount was made that can be gone on with: both descriptors are to be kept by whoever
	 * starts the next daemon.  Called before the mount answers; may be NULL. */
	void (*keep)(void *ctx, int connection_fd, int state_fd);
	void *keep_ctx;
	/*
	 * If the kernel offers FUSE over io_uring: take it, with so many requests of one CPU in
	 * work at a time.  Such a mount cannot be handed over, and is not kept.  0: do not.
	 */
	unsigned uring_depth;
	bool uring_refused; /* do as on a kernel that offers it, and takes no queue; for tests */
	bool no_resend;     /* do as on a kernel that cannot send requests again; for tests */
	const struct fuse_virtual_file *files; /* names are borrowed until the server is gone */
	unsigned nr_files;
	/*
	 * When memory is short: drop the kernel's cached pages of volumes, for at most so long at
	 * a time (0: never), and not again within the interval.
	 */
	uint64_t drop_pages_limit_usec, drop_pages_interval_usec;
};

#define FUSE_URING_DEPTH_MAX 960
#define FUSE_WORKERS_DEFAULT 2
#define FUSE_WORKERS_MAX 64

/*
 * Mount, or go on with a mount, and serve.  The mount answers when this returns.  The pool that
 * goes on with a mount is to be opened with keep_unlinked. -ENOENT, -ENOTDIR, -ENOTEMPTY, -EBUSY
 * (something is mounted there), -ENODEV (no FUSE), -EPERM, -EPROTO (that mount is not one to go on
 * with): @error says what to do.
 */
int fuse_server_start(const struct fuse_server_options *options, struct fuse_server **ret_server,
		      struct tp_error *error) TP_EXCLUDES_ALL TP_MUST_CHECK;

/*
 * Becomes readable, and stays so, when the mount is gone: unmounted by somebody, or aborted.
 * The caller then calls fuse_server_stop().  Owned by the server.
 */
int fuse_server_end_fd(const struct fuse_server *server);

/*
 * Unmount and end the threads.  A mount in use (a loop device, an open file) is detached from the
 * tree and served for @grace_usec more; who still uses it then gets ENOTCONN.
 * Requests in flight are waited for: the pool must be able to end them.  Afterwards nothing of the
 * pool is referenced or called any more; fuse_server_event() is still allowed and does nothing, so
 * that the pool can be closed before fuse_server_destroy().  NULL is allowed.
 */
void fuse_server_stop(struct fuse_server *server, uint64_t grace_usec) TP_EXCLUDES_ALL;

/* False: the mount ends with this daemon, because requests come over io_uring. */
bool fuse_server_can_hand_over(const struct fuse_server *server);

/*
 * End the service, but not the mount: requests that were taken are answered, others wait for the
 * next daemon.  Otherwise as fuse_server_stop().  The descriptors are the caller's.
 */
int fuse_server_hand_over(struct fuse_server *server, int *ret_connection_fd,
			  int *ret_state_fd) TP_EXCLUDES_ALL TP_MUST_CHECK;

/* After fuse_server_stop() and the last event.  NULL is allowed.  Returns NULL. */
struct fuse_server *fuse_server_destroy(struct fuse_server *server) TP_TAKES(fuse);

/*
 * Make the kernel forget what @event says has changed.  Only queues: for pool_options.event.  May
 * be called with any lock held that comes before lc_fuse.
 */
void fuse_server_event(struct fuse_server *server, const struct pool_event *event) TP_TAKES(fuse);

struct fuse_server_stats {              /* since this daemon began to serve */
	uint64_t requests, handed_over; /* read from the kernel; ended by another thread */
	uint64_t starved;               /* times a worker was out of request buffers */
	uint64_t notices, notices_dropped;
	unsigned open_volumes;
	bool over_uring;          /* else over /dev/fuse */
	unsigned restarts;        /* daemons that took over since the mount */
	uint64_t last_pause_usec; /* in the last hand-over; 0: none, or a daemon died */
};
void fuse_server_get_stats(struct fuse_server *server, struct fuse_server_stats *ret_stats)
	TP_TAKES(fuse);

#endif
