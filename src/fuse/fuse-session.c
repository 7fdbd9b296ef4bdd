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
 *	OVER_IO_URING         see fuse-uring.c
 *
 * A mount that an earlier daemon has served is gone on with: INIT, which the kernel sends only
 *once, is kept, and given to libfuse again; its answer goes nowhere.  Then the kernel is asked to
 *send again what it has got no answer for.
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
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/clock.h"

#define LOG_MODULE "fuse"
#include "util/log.h"

/* Newer than the kernel headers this is built with. */
#define INIT2_DIRECT_IO_ALLOW_MMAP (1u << (36 - 32))
#define INIT2_HAS_RESEND (1u << (39 - 32))
#define NOTIFY_RESEND 7

/* Flags2 included: every kernel since 5.17 sends more. */
#define INIT_MIN_BYTES (sizeof(struct fuse_in_header) + sizeof(struct fuse_init_in))

/* The kernel sends INIT while it mounts; anything longer is a broken machine. */
#define INIT_TIMEOUT_MSEC 10000

#define HANG_UP_MSEC 1000

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
	if (server->over_uring) {
		out->flags |= FUSE_INIT_EXT;
		out->flags2 |= FUSE_INIT2_OVER_IO_URING;
	}
}

/* Keep what was agreed on, or compare it with what is to be from the next mount on. */
static bool settle_init(struct fuse_server *server, const struct iovec *iov)
{
	struct fuse_state_mount *m = fuse_state_mount(server->state);

	if (!server->adopting) {
		m->answer_bytes = (uint32_t)MIN(iov->iov_len, sizeof(m->answer));
		memcpy(m->answer, iov->iov_base, m->answer_bytes);
		return false;
	}
	if (m->answer_bytes != iov->iov_len || memcmp(m->answer, iov->iov_base, iov->iov_len))
		log_info("what was agreed on with the kernel stays until the next mount");
	return true;
}

/*
 * The end of waiting for space is no answer when another daemon can go on waiting: the request
 * comes again.
 */
static bool withheld(const struct fuse_server *server, const struct iovec *iov)
{
	const struct fuse_out_header *out = iov[0].iov_base;

	return atomic_load_explicit(&server->withholding, memory_order_relaxed) &&
	       out->error == -ENOSPC;
}

static ssize_t length_of(const struct iovec *iov, int count)
{
	size_t length = 0;

	for (int i = 0; i < count; i++)
		length += iov[i].iov_len;
	return (ssize_t)length;
}

/* Every answer and notice passes here, from any thread. */
static ssize_t send_message(int fd, struct iovec *iov, int count, void *userdata)
{
	struct fuse_server *server = userdata;
	ssize_t n;

	if (unlikely(server->offer) && count == 2 &&
	    iov[1].iov_len >= sizeof(struct fuse_init_out)) {
		complete_init(server, iov[1].iov_base);
		if (settle_init(server, &iov[1]))
			return length_of(iov, count);
	}
	if (((const struct fuse_out_header *)iov[0].iov_base)->unique & FUSE_ENTRY_NUMBER)
		return fuse_uring_answer(server, iov, count);
	if (unlikely(withheld(server, iov)))
		return length_of(iov, count);
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

/* --------------------------------------------------------------- parts of it */

/* Give libfuse an INIT request: @memory is its whole text. */
static int process_init(struct fuse_server *server, char *memory, size_t bytes)
{
	struct fuse_buf buf = { .mem = memory, .size = bytes };

	server->offer = (const void *)(memory + sizeof(struct fuse_in_header));
	server->can_resend = !server->no_resend && server->offer->flags & FUSE_INIT_EXT &&
			     server->offer->flags2 & INIT2_HAS_RESEND;
	fuse_session_process_buf(server->session, &buf);
	server->offer = NULL;
	return fuse_session_exited(server->session) ? -EPROTO : 0;
}

static bool offers_uring(const struct fuse_init_in *offer)
{
	return offer->flags & FUSE_INIT_EXT && offer->flags2 & FUSE_INIT2_OVER_IO_URING;
}

/* Wait for INIT and answer it. */
static int serve_init(struct fuse_server *server, unsigned uring_depth)
{
	struct fuse_state_mount *m = fuse_state_mount(server->state);
	struct pollfd pfd = { .fd = server->fd, .events = POLLIN };
	TP_CLEANUP(tp_free_string) char *memory = NULL;
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
	if ((size_t)n < INIT_MIN_BYTES || (size_t)n > sizeof(m->request))
		return -EPROTO;
	memcpy(m->request, memory, (size_t)n);
	m->request_bytes = (uint32_t)n;
	server->over_uring = offers_uring((const void *)(memory + sizeof(struct fuse_in_header))) &&
			     uring_depth && fuse_uring_prepare(server, uring_depth);
	return process_init(server, memory, (size_t)n);
}

/* Answer the INIT that an earlier daemon got, to libfuse only. */
static int repeat_init(struct fuse_server *server)
{
	const struct fuse_state_mount *m = fuse_state_mount(server->state);
	/* Aligned, and longer than what may be said to be in it. */
	_Alignas(struct fuse_in_header) char memory[2 * FUSE_STATE_INIT_MAX] = { 0 };
	struct fuse_init_out agreed = { .max_write = 0 };
	int r;

	if (m->request_bytes < INIT_MIN_BYTES || m->request_bytes > sizeof(m->request) ||
	    m->answer_bytes < sizeof(agreed) || m->answer_bytes > sizeof(m->answer))
		return -EPROTO;
	memcpy(&agreed, m->answer, sizeof(agreed));
	if (agreed.max_write > FUSE_MAX_WRITE)
		return -EPROTO; /* our buffers are too small for what the kernel may send */
	memcpy(memory, m->request, m->request_bytes);
	server->adopting = true;
	r = process_init(server, memory, m->request_bytes);
	server->adopting = false;
	return r;
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
	server->no_resend = options->no_resend;
	server->uring.is_refused = options->uring_refused;
	server->nr_workers = options->nr_workers ? options->nr_workers : FUSE_WORKERS_DEFAULT;
	server->max_background =
		options->max_background ? options->max_background : FUSE_MAX_BACKGROUND;
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
	tp_cond_init(&server->drop_cond);
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
	fuse_state_close(server->state);
	fuse_notices_destroy(server);
	fuse_workers_destroy(server);
	fuse_mount_free(server->mount);
	if (server->end_fd >= 0)
		close(server->end_fd);
	free(server->socket_path);
	pthread_cond_destroy(&server->notify_cond);
	pthread_cond_destroy(&server->drop_cond);
	tp_lock_destroy(&server->lock);
	free(server);
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

static void end_threads(struct fuse_server *server)
{
	/* First, while requests are still served: a notice under way may be waiting for one. */
	fuse_notifier_stop(server);
	atomic_store(&server->stopping, true);
	fuse_workers_wake(server);
	fuse_workers_join(server);
}

static void server_freep(struct fuse_server **server)
{
	if (!*server)
		return;
	/* It never served, so nobody uses it.  An earlier daemon's mount waits for another attempt.
	 */
	if ((*server)->mount && !(*server)->is_adopted && fuse_mount_remove((*server)->mount, true))
		log_err("'%s' stays mounted", fuse_mount_path((*server)->mount));
	server_disconnect(*server);
	server_free(*server);
}

/* ------------------------------------------------------------- a new mount */

static int make_mount(struct fuse_server *server, const struct fuse_server_options *options,
		      struct tp_error *error)
{
	struct fuse_state_mount *m;
	int r = fuse_state_create(&server->state);

	if (r)
		return tp_error(error, r, "no memory for the state of the mount: %s", strerror(-r));
	r = fuse_mount_create(options->mountpoint, options->read_only, options->allow_other,
			      &server->mount, &server->fd, error);
	if (r)
		return r;
	r = make_session(server);
	if (!r)
		r = serve_init(server, options->uring_depth);
	if (r)
		return tp_error(error, r, "cannot come to terms with the kernel's FUSE: %s",
				strerror(-r));
	if (options->keep && !server->over_uring)
		options->keep(options->keep_ctx, server->fd, fuse_state_fd(server->state));
	m = fuse_state_mount(server->state);
	m->by_helper = geteuid() != 0;
	snprintf(m->path, sizeof(m->path), "%s", fuse_mount_path(server->mount));
	return 0;
}

/* Only now does it answer. */
static void identify_mount(struct fuse_server *server)
{
	struct fuse_state_mount *m = fuse_state_mount(server->state);
	bool by_helper, identified;

	fuse_mount_identify(server->mount);
	fuse_mount_tell(server->mount, &by_helper, &identified, &m->mount_id);
	m->by_helper = by_helper;
	m->identified = identified;
}

/* ------------------------------------------------ an earlier daemon's mount */

static void fail_taken(void *ctx, struct fuse_in_header *in)
{
	struct fuse_server *server = ctx;
	struct fuse_out_header out = { .len = sizeof(out), .error = -EIO, .unique = in->unique };

	fuse_state_drop_handles_of(server->state, in->unique);
	/* A request that wants no answer, or has got one, is unknown to the kernel: ENOENT. */
	if (write(server->fd, &out, sizeof(out)) < 0 && errno != ENOENT && errno != ENODEV)
		log_warn("a request of the dead daemon cannot be failed: %s", strerror(errno));
	in->unique = 0;
}

void fuse_ask_to_resend(int connection_fd)
{
	struct fuse_out_header out = { .len = sizeof(out), .error = NOTIFY_RESEND };

	/* Without a connection any more whoever reads it sees that. */
	if (write(connection_fd, &out, sizeof(out)) < 0 && errno != ENODEV && errno != ENOTCONN)
		log_err("the kernel does not send again the requests that were in flight (%s)",
			strerror(errno));
}

/* A daemon that was killed leaves its socket behind. */
static void remove_stale_socket(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct pollfd pfd = { .events = POLLIN };
	bool is_stale;

	if (!*path || strlen(path) >= sizeof(addr.sun_path))
		return;
	memcpy(addr.sun_path, path, strlen(path));
	pfd.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (pfd.fd < 0)
		return;
	/*
	 * Its number may belong to another daemon now, which would not hang up; the dead one may be
	 * about to close it.
	 */
	is_stale = connect(pfd.fd, (struct sockaddr *)&addr, sizeof(addr))
			   ? errno == ECONNREFUSED
			   : poll(&pfd, 1, HANG_UP_MSEC) == 1;
	if (is_stale)
		unlink(path);
	close(pfd.fd);
}

static void keep_socket_path(struct fuse_server *server)
{
	struct fuse_state_mount *m = fuse_state_mount(server->state);
	const char *path = server->socket_path ? server->socket_path : "";

	if (server->is_adopted && strcmp(m->socket_path, path))
		remove_stale_socket(m->socket_path);
	snprintf(m->socket_path, sizeof(m->socket_path), "%s", path);
}

static int adopt_mount(struct fuse_server *server, const struct fuse_server_options *options,
		       struct tp_error *error)
{
	const struct fuse_state_mount *m;
	int r;

	server->is_adopted = true;
	server->fd = options->connection_fd;
	r = fuse_state_open(options->state_fd, &server->state, error);
	if (r)
		return r;
	m = fuse_state_mount(server->state);
	r = fuse_mount_adopt(m->path, m->by_helper, m->identified, m->mount_id, &server->mount);
	if (!r && fcntl(server->fd, F_SETFL, O_NONBLOCK) < 0)
		r = -errno;
	if (!r)
		r = make_session(server);
	if (!r)
		r = repeat_init(server);
	if (r)
		return tp_error(error, r,
				"the mount of an earlier daemon cannot be gone on with "
				"(%s): umount it, and start anew",
				strerror(-r));
	/* Before a worker takes anything: what we are at work on is not to come again. */
	if (server->can_resend)
		fuse_ask_to_resend(server->fd);
	else
		fuse_state_for_each_taken(server->state, fail_taken, server);
	fuse_nodes_adopt(server);
	pool_keep_unlinked(server->pool, false);
	return 0;
}

/* The new daemon serves. */
static void note_restart(struct fuse_server *server)
{
	struct fuse_state_mount *m = fuse_state_mount(server->state);

	m->last_pause_usec = m->stopped_usec ? time_monotonic_usec() - m->stopped_usec : 0;
	m->stopped_usec = 0;
	m->nr_restarts++;
	log_info("'%s' is served again, %u volumes are open", fuse_mount_path(server->mount),
		 atomic_load(&server->nr_open_volumes));
}

/* -------------------------------------------------------------------- start */

static int build(struct fuse_server *server, const struct fuse_server_options *options,
		 struct tp_error *error)
{
	int r = server && server->end_fd >= 0 ? copy_options(server, options) : -ENOMEM;

	if (!r)
		r = fuse_workers_create(server);
	if (r && options->connection_fd) {
		close(options->connection_fd);
		close(options->state_fd);
	}
	if (r)
		return tp_error(error, r, "no memory for the mount's buffers");
	return options->connection_fd ? adopt_mount(server, options, error)
				      : make_mount(server, options, error);
}

static int start_threads(struct fuse_server *server, struct tp_error *error)
{
	int r = fuse_notifier_start(server);

	if (!r)
		r = fuse_workers_start(server);
	if (!r)
		r = fuse_reclaim_start(server);
	return r ? tp_error(error, r, "cannot start threads: %s", strerror(-r)) : 0;
}

int fuse_server_start(const struct fuse_server_options *options, struct fuse_server **ret_server,
		      struct tp_error *error)
{
	TP_CLEANUP(server_freep) struct fuse_server *server = NULL;
	int r;

	TP_INVARIANT(options->nr_files <= FUSE_VIRTUAL_FILES_MAX);
	TP_INVARIANT(options->nr_workers <= FUSE_WORKERS_MAX);
	server = server_alloc();
	r = build(server, options, error);
	if (r)
		return r;
	r = start_threads(server, error);
	if (r) {
		fuse_reclaim_stop(server);
		if (!server->is_adopted)
			unmount(server, 0);
		end_threads(server);
		return r;
	}
	if (server->is_adopted)
		note_restart(server);
	else
		identify_mount(server);
	keep_socket_path(server);
	*ret_server = tp_take(&server);
	return 0;
}

/* --------------------------------------------------------------------- stop */

int fuse_server_end_fd(const struct fuse_server *server)
{
	return server->end_fd;
}

void fuse_server_stop(struct fuse_server *server, uint64_t grace_usec)
{
	if (!server)
		return;

	/* While requests are served: a callback under way may be waiting for some. */
	fuse_reclaim_stop(server);
	unmount(server, grace_usec);
	end_threads(server);
	server_disconnect(server);
}

bool fuse_server_can_hand_over(const struct fuse_server *server)
{
	return !server->over_uring;
}

int fuse_server_hand_over(struct fuse_server *server, int *ret_connection_fd, int *ret_state_fd)
{
	struct fuse_state_mount *m = fuse_state_mount(server->state);
	int connection = fcntl(server->fd, F_DUPFD_CLOEXEC, 3);
	int state = fcntl(fuse_state_fd(server->state), F_DUPFD_CLOEXEC, 3), r = -errno;

	if (connection < 0 || state < 0) {
		if (connection >= 0)
			close(connection);
		return r;
	}
	fuse_reclaim_stop(server);
	pool_keep_unlinked(server->pool, true);
	fuse_notifier_stop(server);
	m->stopped_usec = time_monotonic_usec();
	m->is_expected = true;
	atomic_store(&server->stopping, true);
	fuse_workers_wake(server);
	/* Requests that wait for space would keep us; the next daemon gets them again. */
	atomic_store(&server->withholding, server->can_resend);
	pool_stop_waiting(server->pool);
	end_threads(server);
	server_disconnect(server);
	*ret_connection_fd = connection;
	*ret_state_fd = state;
	return 0;
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

	s.over_uring = server->over_uring && !atomic_load(&server->uring.has_failed);
	s.restarts = fuse_state_mount(server->state)->nr_restarts;
	s.last_pause_usec = fuse_state_mount(server->state)->last_pause_usec;
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
