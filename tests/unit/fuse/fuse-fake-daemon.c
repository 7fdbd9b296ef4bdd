/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-fake-daemon.c - the FUSE layer over a pool in memory, driven by lines on standard input
 *
 *	usage: fuse-fake-daemon MOUNTPOINT [none|pages] [WORKERS] [rw|ro] [EXTRA...]
 *
 *	make=NAME:SIZE      begin with a volume
 *	keep=FD             send connection and state to this socket
 *	adopt=FD,FD         go on with the mount of these
 *	uring=DEPTH         over io_uring, if the kernel offers it
 *	refused             as if the kernel offered that, and then took no queue
 *	noresend            as on a kernel that cannot send requests again
 *
 * Prints "ready", then "ok ..." or "error ERRNO" for each line read:
 *
 *	create NAME SIZE | delete NAME | rename NAME NEW | snapshot NAME NEW ro|rw
 *	resize NAME SIZE | fill NAME BYTE
 *	defer 0|1 | hold 0|1 | fail OP ERRNO COUNT      (OP: number of enum pool_io_op)
 *	counts | drop | trim
 *	stop GRACE_MSEC
 *
 * Ends when the mount has ended, or at end of file.  Prints "ended" and the references left, which
 * must be 0.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fake-pool.h"
#include "fuse/fuse-session.h"
#include "reclaim/shrinker.h"
#include "util/clock.h"

static _Atomic(struct fuse_server *) event_server;

static void on_event(void *ctx, const struct pool_event *ev)
{
	struct fuse_server *server = event_server;

	(void)ctx;
	if (server)
		fuse_server_event(server, ev);
}

static char *render_status(void *ctx)
{
	struct pool_status status;
	char *text;

	pool_get_status(ctx, &status);
	return asprintf(&text, "volumes: %u\n", status.nr_volumes) < 0 ? NULL : text;
}

static char *render_long(void *ctx)
{
	char *text = malloc(300001);

	(void)ctx;
	if (text) {
		memset(text, 'x', 300000);
		text[300000] = '\0';
	}
	return text;
}

static void answer(int r)
{
	if (r)
		printf("error %d\n", -r);
	else
		printf("ok\n");
}

static int command(struct pool *pool, char **word)
{
	static const char *const verbs[] = { "create", "snapshot", "delete", "rename", "resize" };
	struct pool_command cmd = { .op = POOL_COMMIT };

	for (unsigned i = 0; i < ARRAY_SIZE(verbs); i++)
		if (!strcmp(word[0], verbs[i]))
			cmd.op = (enum pool_command_op)i;
	if (cmd.op == POOL_COMMIT)
		return -ENOSYS;
	snprintf(cmd.name, sizeof(cmd.name), "%s", word[1]);
	if (cmd.op == POOL_CREATE || cmd.op == POOL_RESIZE)
		cmd.size_bytes = strtoull(word[2], NULL, 0);
	else if (cmd.op != POOL_DELETE)
		snprintf(cmd.new_name, sizeof(cmd.new_name), "%s", word[2]);
	if (cmd.op == POOL_SNAPSHOT && !strcmp(word[3], "ro"))
		cmd.flags |= POOL_CMD_READ_ONLY;
	if (cmd.op == POOL_RESIZE)
		cmd.flags |= POOL_CMD_SHRINK;
	return pool_command_run(pool, &cmd);
}

static void print_counts(struct pool *pool, struct fuse_server *server)
{
	struct fake_pool_counts c;
	struct fuse_server_stats s;

	fake_pool_get_counts(pool, &c);
	fuse_server_get_stats(server, &s);
	printf("ok reads=%lu writes=%lu durable=%lu flushes=%lu punches=%lu zeroes=%lu "
	       "allocates=%lu commits=%lu unaligned=%lu volumes=%u references=%u requests=%lu "
	       "handed_over=%lu starved=%lu notices=%lu dropped=%lu open=%u uring=%d\n",
	       c.reads, c.writes, c.durable_writes, c.flushes, c.punches, c.zeroes, c.allocates,
	       c.commits, c.unaligned_buffers, c.volumes, c.references, s.requests, s.handed_over,
	       s.starved, s.notices, s.notices_dropped, s.open_volumes, s.over_uring);
}

/* Returns the grace in microseconds to stop with, or -1 to go on. */
static int64_t serve_line(struct pool *pool, struct fuse_server *server, char *line)
{
	char *word[5] = { line, line, line, line, line }, *save = NULL;
	unsigned n = 0;

	for (char *w = strtok_r(line, " \n", &save); w && n < 5; w = strtok_r(NULL, " \n", &save))
		word[n++] = w;
	if (!n)
		return -1;
	if (!strcmp(word[0], "stop"))
		return n > 1 ? atoll(word[1]) * 1000 : 0;

	if (!strcmp(word[0], "fill")) {
		answer(fake_pool_fill(pool, word[1], (unsigned char)atoi(word[2])));
	} else if (!strcmp(word[0], "defer")) {
		fake_pool_set_deferred(pool, atoi(word[1]));
		answer(0);
	} else if (!strcmp(word[0], "hold")) {
		fake_pool_hold(pool, atoi(word[1]));
		answer(0);
	} else if (!strcmp(word[0], "fail")) {
		fake_pool_fail(pool, (enum pool_io_op)atoi(word[1]), -atoi(word[2]), atoi(word[3]));
		answer(0);
	} else if (!strcmp(word[0], "drop")) {
		struct shrinkers_report report;

		shrinkers_reclaim(1, &report);
		answer(0);
	} else if (!strcmp(word[0], "counts")) {
		print_counts(pool, server);
	} else {
		answer(command(pool, word));
	}
	fflush(stdout);
	return -1;
}

static uint64_t serve(struct pool *pool, struct fuse_server *server)
{
	struct pollfd fds[2] = { { .fd = STDIN_FILENO, .events = POLLIN },
				 { .fd = fuse_server_end_fd(server), .events = POLLIN } };
	char line[1024];
	int64_t grace = -1;

	setvbuf(stdin, NULL, _IONBF, 0); /* poll() must see what is left */
	while (grace < 0) {
		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			return 0;
		if (fds[1].revents)
			return 0;
		if (!fds[0].revents)
			continue;
		if (!fgets(line, sizeof(line), stdin))
			return 0;
		grace = serve_line(pool, server, line);
	}
	return (uint64_t)grace;
}

/* Two descriptors in one message. */
static void keep(void *ctx, int connection_fd, int state_fd)
{
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(2 * sizeof(int))];
	} control = { .space = { 0 } };
	int fds[2] = { connection_fd, state_fd };
	struct iovec iov = { .iov_base = (char *)"", .iov_len = 1 };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control) };

	control.head = (struct cmsghdr){ .cmsg_level = SOL_SOCKET,
					 .cmsg_type = SCM_RIGHTS,
					 .cmsg_len = CMSG_LEN(sizeof(fds)) };
	memcpy(CMSG_DATA(&control.head), fds, sizeof(fds));
	if (sendmsg(*(int *)ctx, &msg, MSG_NOSIGNAL) < 0)
		abort();
}

static int keep_socket;

static int take_extra(const char *word, struct pool *pool, struct fuse_server_options *options)
{
	struct pool_command cmd = { .op = POOL_CREATE };

	if (!strcmp(word, "noresend")) {
		options->no_resend = true;
	} else if (!strcmp(word, "refused")) {
		options->uring_refused = true;
	} else if (sscanf(word, "uring=%u", &options->uring_depth) == 1) {
		return 0;
	} else if (sscanf(word, "keep=%d", &keep_socket) == 1) {
		options->keep = keep;
		options->keep_ctx = &keep_socket;
	} else if (sscanf(word, "make=%255[^:]:%" SCNu64, cmd.name, &cmd.size_bytes) == 2) {
		return pool_command_run(pool, &cmd);
	} else if (sscanf(word, "adopt=%d,%d", &options->connection_fd, &options->state_fd) != 2) {
		return -EINVAL;
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct pool_options pool_options = { .event = on_event };
	struct fuse_virtual_file files[] = { { "status", render_status, NULL },
					     { "long", render_long, NULL } };
	struct fuse_server_options options = { .socket_path = "/run/fake/socket",
					       .files = files,
					       .nr_files = ARRAY_SIZE(files) };
	struct tp_error error = { "" };
	struct fake_pool_counts counts;
	struct fuse_server *server;
	struct pool *pool;
	int r;

	if (argc < 2)
		return 2;
	signal(SIGPIPE, SIG_IGN);
	options.mountpoint = argv[1];
	options.cache = argc > 2 && !strcmp(argv[2], "none") ? FUSE_CACHE_NONE : FUSE_CACHE_PAGES;
	options.nr_workers = argc > 3 ? (unsigned)atoi(argv[3]) : 0;
	options.read_only = argc > 4 && !strcmp(argv[4], "ro");
	options.allow_other = geteuid() == 0;
	options.drop_pages_limit_usec = USEC_PER_SEC;
	r = pool_open(&pool_options, &pool, &error);
	if (r)
		return 1;
	options.pool = pool;
	for (int i = 5; i < argc; i++)
		if (take_extra(argv[i], pool, &options))
			return 2;
	files[0].ctx = pool;
	r = fuse_server_start(&options, &server, &error);
	if (r) {
		printf("error %d %s\n", -r, error.text);
		return pool_close(pool) ? 1 : 3;
	}
	event_server = server;
	printf("ready\n");
	fflush(stdout);

	uint64_t grace = serve(pool, server);

	fuse_server_stop(server, grace);
	fake_pool_get_counts(pool, &counts);
	printf("ended references=%u\n", counts.references);
	fflush(stdout);
	r = pool_close(pool);
	fuse_server_destroy(server);
	return r || counts.references ? 1 : 0;
}
