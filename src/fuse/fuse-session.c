/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-session.c - life of a server: options, INIT, start, stop
 *
 * libfuse parses requests and forms answers; mounting, reading and threads are ours (fuse-mount.c,
 * fuse-reactor.c).  It sends through our writev so that the answer to INIT can be completed with
 * features of the kernel that this version of libfuse does not know:
 *
 *	HANDLE_KILLPRIV_V2    else the kernel asks for security.capability before every write
 *	DIRECT_IO_ALLOW_MMAP  shared mappings of files opened without the page cache
 *
 * INIT is answered by the starting thread before the workers exist: from then on the settings are
 * constant, and when fuse_server_start() returns the mount answers.
 *
 * End of service: the kernel says so to a worker (unmounted, aborted), or fuse_server_stop()
 * unmounts, which leads to the same, or gives up waiting for that.  The workers then finish what
 * they have; only when they are gone is the connection closed.
 */
#include "fuse/fuse-internal.h"

#include <errno.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/clock.h"

#define LOG_MODULE "fuse"
#include "util/log.h"

/* Newer than the kernel headers this is built with. */
#define INIT2_DIRECT_IO_ALLOW_MMAP (1u << (36 - 32))

/* The kernel sends INIT while it mounts; anything longer is a broken machine. */
#define INIT_TIMEOUT_MSEC 10000

/* Between telling the kernel to detach an idle mount and its saying so: milliseconds. */
#define DETACH_USEC UINT64_C(1000000)

/* --------------------------------------------------------------- transport */

static void complete_init(const struct fuse_server *server, struct fuse_init_out *out)
{
	const struct fuse_init_in *offer = server->offer;

	out->flags |= offer->flags & FUSE_HANDLE_KILLPRIV_V2;
	if (server->cache == FUSE_CACHE_NONE && offer->flags & FUSE_INIT_EXT) {
		out->flags |= FUSE_INIT_EXT;
		out->flags2 |= offer->flags2 & INIT2_DIRECT_IO_ALLOW_MMAP;
	}
}

/* Every answer and notice passes here, from any thread. */
static ssize_t send_message(int fd, struct iovec *iov, int count, void *userdata)
{
	const struct fuse_server *server = userdata;
	ssize_t n;

	if (unlikely(server->offer) && count == 2 && iov[1].iov_len >= sizeof(struct fuse_init_out))
		complete_init(server, iov[1].iov_base);
	n = writev(fd, iov, count);
	/* The other side is gone; libfuse would print a line for each answer it cannot give. */
	if (unlikely(n < 0) && (errno == ENODEV || errno == ECONNABORTED))
		errno = ENOENT;
	return n;
}

static ssize_t receive_message(int fd, void *buffer, size_t length, void *userdata)
{
	(void)userdata;
	return read(fd, buffer, length);
}

static const struct fuse_custom_io transport = {
	.writev = send_message,
	.read = receive_message,
};

static void log_libfuse(enum fuse_log_level level, const char *fmt, va_list args)
{
	char line[256];
	size_t n;

	vsnprintf(line, sizeof(line), fmt, args);
	n = strlen(line);
	if (n && line[n - 1] == '\n')
		line[n - 1] = '\0';
	if (level <= FUSE_LOG_ERR)
		log_err("%s", line);
	else if (level == FUSE_LOG_WARNING)
		log_warn("%s", line);
	else
		log_debug("%s", line);
}

/* -------------------------------------------------------------------- start */

/* Wait for INIT and answer it. */
static int serve_init(struct fuse_server *server)
{
	struct pollfd pfd = { .fd = server->fd, .events = POLLIN };
	TP_CLEANUP(tp_free_string) char *memory = NULL;
	struct fuse_buf buf = { .size = 0 };
	ssize_t n;

	memory = malloc(FUSE_WRITE_HEADER + FUSE_MAX_WRITE);
	if (!memory)
		return -ENOMEM;
	do {
		if (poll(&pfd, 1, INIT_TIMEOUT_MSEC) == 0)
			return -ETIMEDOUT;
		n = read(server->fd, memory, FUSE_WRITE_HEADER + FUSE_MAX_WRITE);
	} while (n < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT));
	if (n < 0)
		return -errno;
	if ((size_t)n < sizeof(struct fuse_in_header) + sizeof(struct fuse_init_in))
		return -EPROTO;

	buf.mem = memory;
	buf.size = (size_t)n;
	server->offer = (const void *)(memory + sizeof(struct fuse_in_header));
	fuse_session_process_buf(server->session, &buf);
	server->offer = NULL;
	return fuse_session_exited(server->session) ? -EPROTO : 0;
}

static int make_session(struct fuse_server *server)
{
	char *argv[] = { (char *)"thinpoold", NULL };
	struct fuse_args args = FUSE_ARGS_INIT(1, argv);
	int r;

	fuse_set_log_func(log_libfuse);
	server->session =
		fuse_session_new(&args, &fuse_operations, sizeof(fuse_operations), server);
	fuse_opt_free_args(&args);
	if (!server->session)
		return -ENOMEM;
	r = fuse_session_custom_io(server->session, &transport, server->fd);
	return r < 0 ? r : 0;
}

static int copy_options(struct fuse_server *server, const struct fuse_server_options *options)
{
	server->pool = options->pool;
	server->cache = options->cache;
	server->read_only = options->read_only;
	server->files = options->files;
	server->nr_files = options->nr_files;
	/* Without a page cache there is nothing to drop. */
	server->pages.limit_usec =
		options->cache == FUSE_CACHE_PAGES ? options->drop_pages_limit_usec : 0;
	server->pages.interval_usec = options->drop_pages_interval_usec;
	server->nr_workers = options->nr_workers ? options->nr_workers : FUSE_WORKERS_DEFAULT;
	server->uid = geteuid();
	server->gid = getegid();
	server->block_size = pool_block_size(options->pool);
	server->start_usec = time_real_usec();
	if (options->socket_path) {
		server->socket_path = strdup(options->socket_path);
		if (!server->socket_path)
			return -ENOMEM;
	}
	return 0;
}

static struct fuse_server *server_alloc(void)
{
	struct fuse_server *server = calloc(1, sizeof(*server));

	if (!server)
		return NULL;
	server->fd = server->end_fd = -1;
	tp_lock_init(&server->lock, LC_fuse, LOCK_KIND_MUTEX);
	tp_cond_init(&server->notify_cond);
	STAILQ_INIT(&server->notices);
	server->end_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return server;
}

/* The threads have ended or never started: close the connection and let go of the pool. */
static void server_disconnect(struct fuse_server *server)
{
	if (server->session)
		fuse_session_destroy(server->session); /* closes fd: what was left gets ENOTCONN */
	else if (server->fd >= 0)
		close(server->fd);
	server->session = NULL;
	server->fd = -1;
	fuse_virtual_destroy(server);
	fuse_nodes_destroy(server);
}

static void server_free(struct fuse_server *server)
{
	fuse_notices_destroy(server);
	fuse_workers_destroy(server);
	fuse_mount_free(server->mount);
	if (server->end_fd >= 0)
		close(server->end_fd);
	free(server->socket_path);
	pthread_cond_destroy(&server->notify_cond);
	tp_lock_destroy(&server->lock);
	free(server);
}

static void server_freep(struct fuse_server **server)
{
	if (!*server)
		return;
	/* It never served, so nobody uses it. */
	if ((*server)->mount && fuse_mount_remove((*server)->mount, true))
		log_err("'%s' stays mounted", fuse_mount_path((*server)->mount));
	server_disconnect(*server);
	server_free(*server);
}

int fuse_server_start(const struct fuse_server_options *options, struct fuse_server **ret_server,
		      struct tp_error *error)
{
	TP_CLEANUP(server_freep) struct fuse_server *server = NULL;
	int r;

	TP_INVARIANT(options->nr_files <= FUSE_VIRTUAL_FILES_MAX);
	if (options->nr_workers > FUSE_WORKERS_MAX)
		return tp_error(error, -EINVAL, "more than %u workers", FUSE_WORKERS_MAX);

	server = server_alloc();
	r = server && server->end_fd >= 0 ? copy_options(server, options) : -ENOMEM;
	if (!r)
		r = fuse_workers_create(server);
	if (r)
		return tp_error(error, r, "no memory for the mount's buffers");

	r = fuse_mount_create(options->mountpoint, options->read_only, options->allow_other,
			      &server->mount, &server->fd, error);
	if (r)
		return r;
	r = make_session(server);
	if (!r)
		r = serve_init(server);
	if (r)
		return tp_error(error, r, "cannot come to terms with the kernel's FUSE: %s",
				strerror(-r));

	r = fuse_notifier_start(server);
	if (!r)
		r = fuse_workers_start(server);
	if (!r)
		r = fuse_reclaim_start(server);
	if (r) {
		fuse_server_stop(server, 0);
		fuse_server_destroy(tp_take(&server));
		return tp_error(error, r, "cannot start threads: %s", strerror(-r));
	}
	fuse_mount_identify(server->mount);
	*ret_server = tp_take(&server);
	return 0;
}

/* --------------------------------------------------------------------- stop */

int fuse_server_end_fd(const struct fuse_server *server)
{
	return server->end_fd;
}

/* Returns whether the end has come within @timeout_usec. */
static bool await_end(const struct fuse_server *server, uint64_t timeout_usec)
{
	struct pollfd pfd = { .fd = server->end_fd, .events = POLLIN };
	uint64_t deadline = time_monotonic_usec() + timeout_usec, now = deadline - timeout_usec;

	while (!atomic_load(&server->ended) && now < deadline) {
		uint64_t msec = DIV_ROUND_UP(deadline - now, USEC_PER_MSEC);

		(void)poll(&pfd, 1, (int)MIN(msec, (uint64_t)60000));
		now = time_monotonic_usec();
	}
	return atomic_load(&server->ended);
}

static void unmount(struct fuse_server *server, uint64_t grace_usec)
{
	const char *path = fuse_mount_path(server->mount);
	int r = fuse_mount_remove(server->mount, false);

	if (r == -EBUSY && !atomic_load(&server->ended)) {
		log_warn("'%s' is in use, it is detached and served for %.1f s more", path,
			 (double)grace_usec / (double)USEC_PER_SEC);
		r = fuse_mount_remove(server->mount, true);
	} else if (r == -EBUSY) {
		r = fuse_mount_remove(server->mount, true); /* aborted: nothing left to save */
	} else {
		grace_usec = MAX(grace_usec, DETACH_USEC);
	}
	if (r)
		log_err("cannot unmount '%s': %s, its users get ENOTCONN", path, strerror(-r));
	if (!await_end(server, grace_usec))
		log_warn("'%s' is still in use, its users get ENOTCONN", path);
}

void fuse_server_stop(struct fuse_server *server, uint64_t grace_usec)
{
	if (!server)
		return;

	/* While requests are served: a callback under way may be waiting for some. */
	fuse_reclaim_stop(server);
	unmount(server, grace_usec);
	/* Likewise, while requests are still served: a notice under way may be waiting for one. */
	fuse_notifier_stop(server);
	atomic_store(&server->stopping, true);
	fuse_workers_wake(server);
	fuse_workers_join(server);
	server_disconnect(server);
}

struct fuse_server *fuse_server_destroy(struct fuse_server *server)
{
	if (server)
		server_free(server);
	return NULL;
}

void fuse_server_get_stats(struct fuse_server *server, struct fuse_server_stats *ret_stats)
{
	struct fuse_server_stats s = { .open_volumes = atomic_load(&server->nr_open_volumes) };

	for (unsigned i = 0; i < server->nr_workers; i++) {
		struct fuse_worker *w = &server->workers[i];

		s.requests += atomic_load_explicit(&w->requests, memory_order_relaxed);
		s.starved += atomic_load_explicit(&w->starved, memory_order_relaxed);
		lock_fuse(&w->lock);
		s.handed_over += w->handed_over;
		unlock_fuse(&w->lock);
	}
	lock_fuse(&server->lock);
	s.notices = server->notices_sent;
	s.notices_dropped = server->notices_dropped;
	unlock_fuse(&server->lock);
	*ret_stats = s;
}
