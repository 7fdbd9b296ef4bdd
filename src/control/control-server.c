/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * control-server.c - the control socket of one daemon
 *
 * Connections are served by the thread that owns the queue; nothing here waits.
 * A connection is in one of three states:
 *
 *   reading   collects bytes up to a NUL, which ends a call
 *   busy      a command or a request to reclaim is under way; input waits in the socket
 *   writing   a reply has not left completely; input waits in the socket
 *
 * So a connection holds one message and one reply at most, whatever its peer does;
 * and after CALLS_A_ROUND calls the others have their turn.
 *
 * It ends on the pool worker or the pressure thread, which only puts it on the list of finished
 * calls (lock class control) and wakes the queue; the reply is made here.
 *
 * Invariants
 *  1. A busy connection is never freed: when its peer has gone, it is marked and
 *     freed once the command has ended.  One that has a pin becomes busy giving it back.
 *  2. The watch is armed for POLLIN in reading, POLLOUT in writing and when calls are
 *     left over for the next round, nothing in busy.
 *  3. Another thread touches neither a connection nor the server once it has let go of the lock.
 */
#define LOG_MODULE "control"
#include "control/control-server.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "control/control-internal.h"
#include "thinpoold/control.h"
#include "util/clock.h"
#include "util/log.h"

/*
 * Each before the other connections, and the daemon's signals, are looked at.  Fewer accepts than
 * places, so that those who ask meanwhile are served, and no longer the most idle.
 */
enum { CALLS_A_ROUND = 16, ACCEPTS_A_ROUND = 16 };

enum connection_state { CONN_READING, CONN_BUSY, CONN_WRITING };

struct connection {
	LIST_ENTRY(connection) link;
	STAILQ_ENTRY(connection) finished_link; /* class control */
	struct control_server *server;
	struct io_watch watch;
	enum connection_state state;
	bool watching;
	bool gone; /* free it once the command has ended */
	uint64_t last_active_usec;
	struct control_call call;
	int result; /* of what made it busy */
	char *in;   /* CONTROL_MESSAGE_MAX bytes */
	size_t in_len;
	char *out; /* a reply with its NUL */
	size_t out_len, out_done;
};

struct control_server {
	struct io_queue *q;
	struct pool *pool;
	struct pressure *pressure;
	struct control_service service;
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	struct io_watch listening, finished_event;
	int spare_fd; /* given up to refuse a client when the process has no other left */
	LIST_HEAD(, connection) connections;
	unsigned nr_connections;
	struct tp_lock lock;
	STAILQ_HEAD(, connection) finished TP_GUARDED_BY(lc_control);
};

static void serve_connection(struct connection *c);
static void command_done(struct pool_command *cmd, int r);

/* ---- connections ---- */

static void connection_watch(struct connection *c, short events)
{
	if (c->watching && c->watch.events == events)
		return;
	if (c->watching)
		io_queue_unwatch(c->server->q, &c->watch);
	c->watching = events != 0;
	c->watch.events = events;
	if (events)
		io_queue_watch(c->server->q, &c->watch);
}

static void close_reply_fd(struct connection *c)
{
	if (c->call.reply_fd >= 0)
		close(c->call.reply_fd);
	c->call.reply_fd = -1;
}

static void connection_free(struct connection *c) TP_TAKES(pool)
{
	connection_watch(c, 0);
	if (c->state == CONN_BUSY) {
		c->gone = true;
		return;
	}
	if (c->call.has_pin) {
		c->state = CONN_BUSY;
		c->gone = true;
		close_reply_fd(c);
		json_decref(c->call.reply);
		c->call.reply = NULL;
		control_call_unpin(&c->call);
		c->call.command.done = command_done;
		pool_command_submit(c->server->pool, &c->call.command);
		return;
	}
	LIST_REMOVE(c, link);
	close_reply_fd(c);
	c->server->nr_connections--;
	close(c->watch.fd);
	json_decref(c->call.reply);
	free(c->out);
	free(c->in);
	free(c);
}

static void connection_ready(struct io_watch *w, short revents)
{
	struct connection *c = container_of(w, struct connection, watch);

	(void)revents;
	serve_connection(c);
}

/* All places taken: who was silent for longest makes room, unless he reads what he has pinned. */
static void close_most_idle(struct control_server *s)
{
	struct connection *c, *idle = NULL;

	LIST_FOREACH(c, &s->connections, link)
		if (c->state != CONN_BUSY && !c->call.has_pin &&
		    (!idle || c->last_active_usec < idle->last_active_usec))
			idle = c;
	if (idle)
		connection_free(idle);
}

static void connection_open(struct control_server *s, int fd)
{
	struct connection *c;

	if (s->nr_connections >= CONTROL_CONNECTIONS_MAX)
		close_most_idle(s);
	c = s->nr_connections < CONTROL_CONNECTIONS_MAX ? calloc(1, sizeof(*c)) : NULL;
	if (c)
		c->in = malloc(CONTROL_MESSAGE_MAX);
	if (!c || !c->in) {
		log_warn_limited("a control connection was refused: too many, or no memory");
		free(c);
		close(fd);
		return;
	}
	c->server = s;
	c->watch.fd = fd;
	c->watch.ready = connection_ready;
	c->call.reply_fd = -1;
	c->last_active_usec = time_monotonic_usec();
	LIST_INSERT_HEAD(&s->connections, c, link);
	s->nr_connections++;
	connection_watch(c, POLLIN);
}

static int spare_descriptor(void)
{
	return open("/dev/null", O_RDONLY | O_CLOEXEC);
}

/*
 * No descriptor is left.  A client that is never accepted would wake the queue for ever, so it
 * is accepted with the spare one, and closed.
 */
static void refuse_with_spare(struct control_server *s)
{
	int fd;

	log_warn_limited("a control connection was refused: %s", strerror(errno));
	if (s->spare_fd >= 0)
		close(s->spare_fd);
	fd = accept4(s->listening.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd >= 0)
		close(fd);
	s->spare_fd = spare_descriptor();
}

static void listening_ready(struct io_watch *w, short revents)
{
	struct control_server *s = container_of(w, struct control_server, listening);

	(void)revents;
	for (int i = 0; i < ACCEPTS_A_ROUND; i++) {
		int fd = accept4(w->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd >= 0) {
			connection_open(s, fd);
		} else if (errno == EMFILE || errno == ENFILE) {
			refuse_with_spare(s);
		} else if (errno != EINTR && errno != ECONNABORTED) {
			return;
		}
	}
}

/* ---- calls ---- */

/* Returns false when the connection is gone. */
static bool start_reply(struct connection *c)
{
	char *flat = c->call.reply ? json_dumps(c->call.reply, JSON_COMPACT) : NULL;

	json_decref(c->call.reply);
	c->call.reply = NULL;
	if (!flat) {
		c->state = CONN_READING;
		connection_free(c);
		return false;
	}
	free(c->out);
	c->out = flat;
	c->out_len = strlen(flat) + 1;
	c->out_done = 0;
	c->state = CONN_WRITING;
	return true;
}

/* Another thread has done what a call asked for. */
static void call_done(struct control_call *call, int r)
{
	struct connection *c = container_of(call, struct connection, call);
	struct control_server *s = c->server;
	uint64_t one = 1;

	c->result = r;
	lock_control(&s->lock);
	STAILQ_INSERT_TAIL(&s->finished, c, finished_link);
	/* Under the lock: as soon as it is free, the server may be destroyed. */
	if (write(s->finished_event.fd, &one, sizeof(one)) < 0)
		log_warn("a finished control call could not be announced: %s", strerror(errno));
	unlock_control(&s->lock);
}

static void command_done(struct pool_command *cmd, int r)
{
	call_done(container_of(cmd, struct control_call, command), r);
}

static void reclaim_done(struct pressure_request *request, int r)
{
	call_done(container_of(request, struct control_call, reclaim), r);
}

enum handled { HANDLED_ANSWERED, HANDLED_BUSY, HANDLED_GONE };

static enum handled handle_message(struct connection *c, const char *text)
{
	json_error_t where;
	json_t *request = json_loads(text, JSON_REJECT_DUPLICATES, &where);
	enum control_next next = CONTROL_ANSWERED;

	c->call.pool = c->server->pool;
	c->call.pressure = c->server->pressure;
	c->call.service = &c->server->service;
	if (!json_is_object(request)) {
		c->call.reply = control_reply_error(
			CONTROL_ERROR_FAILED, request ? "a call is a JSON object" : where.text);
	} else {
		next = control_call_begin(&c->call, request);
	}
	json_decref(request);
	if (next == CONTROL_ANSWERED)
		return start_reply(c) ? HANDLED_ANSWERED : HANDLED_GONE;

	c->state = CONN_BUSY;
	connection_watch(c, 0);
	if (next == CONTROL_RECLAIM) {
		c->call.reclaim.done = reclaim_done;
		pressure_submit(c->server->pressure, &c->call.reclaim);
	} else {
		c->call.command.done = command_done;
		pool_command_submit(c->server->pool, &c->call.command);
	}
	return HANDLED_BUSY; /* it goes on in finished_ready() */
}

/* What follows is not known to be the beginning of a call, so this is the connection's end. */
static void refuse_long_call(struct connection *c)
{
	char message[64];

	log_warn_limited("a control message over %u bytes was refused", CONTROL_MESSAGE_MAX);
	snprintf(message, sizeof(message), "a call has at most %u bytes", CONTROL_MESSAGE_MAX);
	c->call.reply = control_reply_error(CONTROL_ERROR_FAILED, message);
	if (!start_reply(c))
		return;
	/* All earlier replies have left, so there is room for it, or the peer does not read. */
	(void)!send(c->watch.fd, c->out, c->out_len, MSG_NOSIGNAL);
	connection_free(c);
}

/* More bytes of the socket, up to what one message may hold.  False: stop for now, or gone. */
static bool read_more(struct connection *c)
{
	ssize_t n;

	if (c->in_len == CONTROL_MESSAGE_MAX) {
		refuse_long_call(c);
		return false;
	}
	n = read(c->watch.fd, c->in + c->in_len, CONTROL_MESSAGE_MAX - c->in_len);
	if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
		connection_watch(c, POLLIN);
		return false;
	}
	if (n <= 0) {
		connection_free(c);
		return false;
	}
	c->in_len += (size_t)n;
	c->last_active_usec = time_monotonic_usec();
	return true;
}

static ssize_t send_some(struct connection *c)
{
	struct iovec iov = { c->out + c->out_done, c->out_len - c->out_done };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(int))];
	} control = { .space = { 0 } };

	if (c->call.reply_fd >= 0) {
		control.head = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int)),
						 .cmsg_level = SOL_SOCKET,
						 .cmsg_type = SCM_RIGHTS };
		memcpy(CMSG_DATA(&control.head), &c->call.reply_fd, sizeof(int));
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
	}
	return sendmsg(c->watch.fd, &msg, MSG_NOSIGNAL);
}

/* False: the peer is slow or gone. */
static bool write_more(struct connection *c)
{
	while (c->out_done < c->out_len) {
		ssize_t n = send_some(c);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			connection_watch(c, POLLOUT);
			return false;
		}
		if (n < 0) {
			connection_free(c);
			return false;
		}
		close_reply_fd(c); /* it went with the first byte */
		c->out_done += (size_t)n;
		c->last_active_usec = time_monotonic_usec();
	}
	free(c->out); /* it may be a long list */
	c->out = NULL;
	c->state = CONN_READING;
	return true;
}

static void serve_connection(struct connection *c)
{
	unsigned nr_calls = 0;

	for (;;) {
		enum handled handled;
		size_t used;
		char *end;

		if (c->state == CONN_WRITING && !write_more(c))
			return;
		end = memchr(c->in, '\0', c->in_len);
		if (!end) {
			if (!read_more(c))
				return;
			continue;
		}
		if (nr_calls++ == CALLS_A_ROUND) {
			connection_watch(c, POLLOUT);
			return;
		}
		used = (size_t)(end - c->in) + 1;
		handled = handle_message(c, c->in);
		if (handled == HANDLED_GONE)
			return;
		memmove(c->in, c->in + used, c->in_len - used);
		c->in_len -= used;
		if (handled == HANDLED_BUSY)
			return;
	}
}

static struct connection *take_finished(struct control_server *s)
{
	struct connection *c;

	lock_control(&s->lock);
	c = STAILQ_FIRST(&s->finished);
	if (c)
		STAILQ_REMOVE_HEAD(&s->finished, finished_link);
	unlock_control(&s->lock);
	return c;
}

static void finished_ready(struct io_watch *w, short revents)
{
	struct control_server *s = container_of(w, struct control_server, finished_event);
	struct connection *c;
	uint64_t count;

	(void)revents;
	(void)!read(w->fd, &count, sizeof(count));
	while ((c = take_finished(s))) {
		c->state = CONN_READING;
		control_call_finish(&c->call, c->result);
		if (c->gone) {
			connection_free(c);
			continue;
		}
		if (start_reply(c))
			serve_connection(c);
	}
}

/* ---- life ---- */

static int listen_at(const char *path, struct tp_error *error)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct stat st;
	int fd, r = 0;

	if (strlen(path) >= sizeof(addr.sun_path))
		return tp_error(error, -ENAMETOOLONG, "%s: too long for a socket", path);
	memcpy(addr.sun_path, path, strlen(path) + 1);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return tp_error(error, -errno, "no control socket: %s", strerror(errno));
	if (!lstat(path, &st) && S_ISSOCK(st.st_mode))
		unlink(path);
	/* The mode of a socket before it is bound is what bind() makes: 0600 from the beginning. */
	if (fchmod(fd, 0600) || bind(fd, (struct sockaddr *)&addr, sizeof(addr)))
		r = -errno;
	if (!r && listen(fd, CONTROL_CONNECTIONS_MAX)) {
		r = -errno;
		unlink(path);
	}
	if (r) {
		close(fd);
		return tp_error(error, r, "%s: no control socket: %s", path, strerror(-r));
	}
	return fd;
}

int control_server_create(struct io_queue *q, struct pool *pool, struct pressure *pressure,
			  const struct control_service *service, const char *path,
			  struct control_server **ret_server, struct tp_error *error)
{
	struct control_server *s = calloc(1, sizeof(*s));

	if (!s)
		return tp_error(error, -ENOMEM, "out of memory");
	s->finished_event.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	s->listening.fd = s->finished_event.fd < 0 ? tp_error(error, -errno, "no event descriptor")
						   : listen_at(path, error);
	if (s->listening.fd < 0) {
		int r = s->listening.fd;

		if (s->finished_event.fd >= 0)
			close(s->finished_event.fd);
		free(s);
		return r;
	}
	s->spare_fd = spare_descriptor();
	s->q = q;
	s->pool = pool;
	s->pressure = pressure;
	s->service = *service;
	memcpy(s->path, path, strlen(path) + 1);
	tp_lock_init(&s->lock, LC_control, LOCK_KIND_MUTEX);
	STAILQ_INIT(&s->finished);
	LIST_INIT(&s->connections);
	s->listening.events = s->finished_event.events = POLLIN;
	s->listening.ready = listening_ready;
	s->finished_event.ready = finished_ready;
	io_queue_watch(q, &s->listening);
	io_queue_watch(q, &s->finished_event);
	*ret_server = s;
	return 0;
}

struct control_server *control_server_destroy(struct control_server *s)
{
	struct connection *c, *next;

	if (!s)
		return NULL;
	io_queue_unwatch(s->q, &s->listening);
	close(s->listening.fd);
	unlink(s->path);
	for (c = LIST_FIRST(&s->connections); c; c = next) {
		next = LIST_NEXT(c, link);
		connection_free(c);
	}
	/* Only busy ones are left; their end comes through the queue. */
	tp_lock_may_wait(LC_completion);
	while (s->nr_connections)
		io_queue_run(s->q, UINT64_MAX);
	lock_control(&s->lock); /* a worker may be about to let go of it */
	unlock_control(&s->lock);
	io_queue_unwatch(s->q, &s->finished_event);
	close(s->finished_event.fd);
	if (s->spare_fd >= 0)
		close(s->spare_fd);
	tp_lock_destroy(&s->lock);
	free(s);
	return NULL;
}
