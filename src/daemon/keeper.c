/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * keeper.c - a tiny process that outlives the daemon
 *
 * To the daemon it is a service manager: it listens at a NOTIFY_SOCKET, keeps descriptors that come
 * with FDSTORE=1, and hands them to the next daemon in LISTEN_FDS.  What else the daemon has to say
 * goes on to the keeper's own service manager, if there is one; signals go the other way.
 *
 * A daemon is known to be dead by a pipe, of which it has the only writing end, rather than by its
 * exit: a thread that waits in the kernel for an answer that only the next daemon can give keeps a
 * killed process from exiting.  The pipe ends with the descriptors of the process; the next daemon
 * waits for the locks of the devices besides.
 *
 *	it ended well, or left nothing      the keeper ends
 *	it left a mount                     another is started
 *	too many, too fast                  every request gets EIO, until somebody unmounts or sends
 *	                                    SIGUSR2 to try again
 */
#define LOG_MODULE "keeper"
#include "daemon/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/handover.h"
#include "daemon/notify.h"
#include "fuse/fuse-refuse.h"
#include "util/clock.h"
#include "util/log.h"

#define MESSAGE_MAX 4096

/* From the end of the pipe to the exit; a thread stuck in the kernel takes longer. */
#define EXIT_PATIENCE_MSEC 2000

struct keeper {
	const struct keeper_options *options;
	int signals, notifications;
	char notify_name[sizeof(struct sockaddr_un)]; /* as NOTIFY_SOCKET has it */
	struct legacy legacy;

	pid_t pid; /* of the daemon; 0: none */
	int life;  /* reading end of its pipe; -1: none */
	bool was_ready, stopping;
	uint64_t *deaths; /* when; a ring of restart_limit */
	unsigned nr_deaths;

	struct fuse_refusal *refusal; /* given up */
	bool over;
	int status;
};

/* ---------------------------------------------------------------- the daemon */

/* The child, between fork() and execv(). */
static TP_NORETURN void become_daemon(struct keeper *k, int life)
{
	struct legacy legacy = k->legacy;
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	legacy.fds[LEGACY_LIFE] = life;
	if (legacy_prepare_exec(&legacy) || setenv("NOTIFY_SOCKET", k->notify_name, 1))
		_exit(EXIT_FAILURE);
	unsetenv("WATCHDOG_USEC"); /* is for the keeper's process */
	unsetenv("WATCHDOG_PID");
	execv(k->options->program, k->options->argv);
	log_err("%s cannot be started: %s", k->options->program, strerror(errno));
	_exit(EXIT_FAILURE);
}

static int start_daemon(struct keeper *k)
{
	int fds[2];
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC))
		return -errno;
	pid = fork();
	if (pid == 0)
		become_daemon(k, fds[1]);
	close(fds[1]);
	if (pid < 0) {
		close(fds[0]);
		return -errno;
	}
	k->pid = pid;
	k->life = fds[0];
	return 0;
}

static void forward_signal(struct keeper *k, int signo)
{
	if (k->pid && kill(k->pid, signo) && errno != ESRCH)
		log_warn("signal %d cannot be handed to the daemon: %s", signo, strerror(errno));
}

/* ------------------------------------------------------------- notifications */

static int listen_for_notifications(struct keeper *k)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	socklen_t length = sizeof(addr);
	int yes = 1;

	k->notifications = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	/* A name of the kernel's choice: a NUL and some letters. */
	if (k->notifications < 0 ||
	    setsockopt(k->notifications, SOL_SOCKET, SO_PASSCRED, &yes, sizeof(yes)) ||
	    bind(k->notifications, (struct sockaddr *)&addr, sizeof(sa_family_t)) ||
	    getsockname(k->notifications, (struct sockaddr *)&addr, &length))
		return -errno;
	length -= (socklen_t)offsetof(struct sockaddr_un, sun_path);
	snprintf(k->notify_name, sizeof(k->notify_name), "@%.*s", (int)length - 1,
		 addr.sun_path + 1);
	return 0;
}

/* The value of a line; it ends at the next newline. */
static bool line_value(const char *message, const char *key, char *ret_value, size_t size)
{
	size_t n = strlen(key);

	for (const char *line = message; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, key, n) || line[n] != '=')
			continue;
		snprintf(ret_value, size, "%.*s", (int)strcspn(line + n + 1, "\n"), line + n + 1);
		return true;
	}
	return false;
}

static void daemon_is_ready(struct keeper *k)
{
	if (!k->was_ready && k->options->ready)
		k->options->ready(k->options->ctx);
	k->was_ready = true;
	if (k->stopping) /* asked for while there was no daemon */
		forward_signal(k, SIGTERM);
}

/* Owns @fd, unless it is -1. */
static void act_on(struct keeper *k, const char *message, int fd)
{
	char value[64], name[64] = "";
	enum legacy_kind kind;

	(void)line_value(message, "FDNAME", name, sizeof(name));
	kind = legacy_kind_of(name);
	if (line_value(message, "FDSTORE", value, sizeof(value))) {
		if (kind != NR_LEGACIES && fd >= 0) {
			if (k->legacy.fds[kind])
				close(k->legacy.fds[kind]);
			k->legacy.fds[kind] = fd;
			return;
		}
	} else if (line_value(message, "FDSTOREREMOVE", value, sizeof(value))) {
		if (kind != NR_LEGACIES && k->legacy.fds[kind]) {
			close(k->legacy.fds[kind]);
			k->legacy.fds[kind] = 0;
		}
	} else {
		notify_send("%s", message);
	}
	if (line_value(message, "READY", value, sizeof(value)))
		daemon_is_ready(k);
	if (fd >= 0)
		close(fd);
}

/* Returns false when there is none. */
static bool receive_one(struct keeper *k)
{
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
	} control;
	char message[MESSAGE_MAX];
	struct iovec iov = { .iov_base = message, .iov_len = sizeof(message) - 1 };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	struct ucred sender = { .pid = 0 };
	ssize_t n = recvmsg(k->notifications, &msg, MSG_CMSG_CLOEXEC);
	int fd = -1;

	if (n < 0)
		return errno == EINTR;
	message[n] = '\0';
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
		if (c->cmsg_type == SCM_RIGHTS)
			memcpy(&fd, CMSG_DATA(c), sizeof(fd));
		else if (c->cmsg_type == SCM_CREDENTIALS)
			memcpy(&sender, CMSG_DATA(c), sizeof(sender));
	}
	/* Anybody can send to an abstract name. */
	if (k->pid && sender.pid == k->pid)
		act_on(k, message, fd);
	else if (fd >= 0)
		close(fd);
	return true;
}

/* ------------------------------------------------------------------ its end */

/* So many deaths, the first of them not long ago? */
static bool is_crash_loop(struct keeper *k)
{
	unsigned limit = k->options->restart_limit;
	uint64_t now = time_monotonic_usec();

	k->deaths[k->nr_deaths++ % limit] = now;
	return k->nr_deaths >= limit &&
	       now - k->deaths[k->nr_deaths % limit] < k->options->restart_window_usec;
}

static void end(struct keeper *k, int status)
{
	k->over = true;
	k->status = status;
}

static void give_up(struct keeper *k, const char *why)
{
	int r;

	log_err("'%s' gets EIO from now on: %s.  Repair what is wrong, then send SIGUSR2 to "
		"process "
		"%d to try again, or umount '%s'",
		k->options->mountpoint, why, (int)getpid(), k->options->mountpoint);
	notify_send("STATUS=given up: %s", why);
	r = fuse_refuse_begin(k->legacy.fds[LEGACY_CONNECTION], k->legacy.fds[LEGACY_STATE],
			      &k->refusal);
	if (!r)
		return;
	log_err("the mount cannot even be refused: %s, its users get ENOTCONN", strerror(-r));
	end(k, EXIT_FAILURE);
}

static void start_or_give_up(struct keeper *k)
{
	int r = start_daemon(k);

	if (r)
		give_up(k, strerror(-r));
}

static int exit_status(int status)
{
	return WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAILURE;
}

/* @status: as of waitpid(); -1: it cannot exit yet. */
static void daemon_ended(struct keeper *k, int status)
{
	char why[96];

	k->pid = 0;
	if (status != -1 && WIFEXITED(status) && (!WEXITSTATUS(status) || !k->was_ready)) {
		end(k, WEXITSTATUS(status));
		return;
	}
	if (!k->was_ready || !legacy_is_whole(&k->legacy)) {
		log_err("the daemon died and left no mount to go on with");
		end(k, status == -1 ? EXIT_FAILURE : exit_status(status));
		return;
	}
	if (status != -1 && WIFEXITED(status))
		snprintf(why, sizeof(why), "exit status %d", WEXITSTATUS(status));
	else
		snprintf(why, sizeof(why), "signal %d", status == -1 ? SIGKILL : WTERMSIG(status));
	if (is_crash_loop(k)) {
		char loop[192];

		snprintf(loop, sizeof(loop), "the daemon died %u times within %.0f s, last by %s",
			 k->options->restart_limit,
			 (double)k->options->restart_window_usec / (double)USEC_PER_SEC, why);
		give_up(k, loop);
		return;
	}
	log_warn("the daemon died (%s), starting another", why);
	start_or_give_up(k);
}

/* The pipe has ended: no thread of the daemon that uses a device is left. */
static void life_ended(struct keeper *k)
{
	struct pollfd pfd = { .fd = k->signals, .events = POLLIN };
	uint64_t deadline = time_monotonic_usec() + EXIT_PATIENCE_MSEC * USEC_PER_MSEC;
	struct signalfd_siginfo info;
	int status = -1;
	pid_t pid;

	close(k->life);
	k->life = -1;
	while (receive_one(k)) /* its last words */
		;
	while ((pid = waitpid(k->pid, &status, WNOHANG)) == 0 && time_monotonic_usec() < deadline) {
		/* Other signals stay blocked, and are seen when the next daemon is there. */
		(void)poll(&pfd, 1, 5);
		if (read(k->signals, &info, sizeof(info)) == sizeof(info) &&
		    (info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT))
			k->stopping = true;
	}
	daemon_ended(k, pid == k->pid ? status : -1);
}

/* ------------------------------------------------------------------ the loop */

static void try_again(struct keeper *k)
{
	k->refusal = fuse_refuse_end(k->refusal);
	k->nr_deaths = 0;
	memset(k->deaths, 0, k->options->restart_limit * sizeof(*k->deaths));
	log_info("trying again");
	start_or_give_up(k);
}

static void signal_without_daemon(struct keeper *k, uint32_t signo)
{
	int r;

	if (signo == SIGUSR2) {
		try_again(k);
	} else if (signo == SIGTERM || signo == SIGINT) {
		r = fuse_refuse_unmount(k->refusal);
		if (r)
			log_err("cannot unmount: %s, its users get ENOTCONN", strerror(-r));
		end(k, EXIT_FAILURE);
	}
}

static void read_signals(struct keeper *k)
{
	struct signalfd_siginfo info;

	while (!k->over && read(k->signals, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGCHLD) {
			/* The one in charge is told of by its pipe; others were stuck once. */
			for (siginfo_t si = { .si_pid = 0 };
			     !waitid(P_ALL, 0, &si, WEXITED | WNOHANG | WNOWAIT) && si.si_pid &&
			     si.si_pid != k->pid;
			     si.si_pid = 0)
				(void)waitpid(si.si_pid, NULL, WNOHANG);
			continue;
		}
		k->stopping |= info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT;
		if (k->refusal)
			signal_without_daemon(k, info.ssi_signo);
		else
			forward_signal(k, (int)info.ssi_signo);
	}
}

static void refuse(struct keeper *k)
{
	if (!fuse_refuse_some(k->refusal))
		return;
	log_info("unmounted");
	end(k, EXIT_FAILURE);
}

static void run_once(struct keeper *k)
{
	struct pollfd fds[3] = { { .fd = k->signals, .events = POLLIN },
				 { .fd = k->notifications, .events = POLLIN },
				 { .fd = k->life, .events = POLLIN } };

	if (k->refusal)
		fds[2].fd = k->legacy.fds[LEGACY_CONNECTION];
	if (poll(fds, 3, -1) < 0)
		return;
	if (fds[1].revents)
		(void)receive_one(k);
	if (fds[2].revents && k->refusal)
		refuse(k);
	else if (fds[2].revents)
		life_ended(k);
	if (fds[0].revents && !k->over)
		read_signals(k);
}

static int prepare(struct keeper *k)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGCHLD);
	k->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (k->signals < 0)
		return -errno;
	k->deaths = calloc(k->options->restart_limit, sizeof(*k->deaths));
	if (!k->deaths)
		return -ENOMEM;
	return listen_for_notifications(k);
}

int keeper_run(const struct keeper_options *options)
{
	struct keeper k = { .options = options,
			    .signals = -1,
			    .notifications = -1,
			    .life = -1,
			    .status = EXIT_FAILURE };
	int r;

	r = prepare(&k);
	if (!r)
		r = start_daemon(&k);
	if (r)
		log_err("no keeper: %s", strerror(-r));
	while (!r && !k.over)
		run_once(&k);

	fuse_refuse_end(k.refusal);
	legacy_close(&k.legacy);
	free(k.deaths);
	if (k.signals >= 0)
		close(k.signals);
	if (k.notifications >= 0)
		close(k.notifications);
	if (k.life >= 0)
		close(k.life);
	return k.status;
}
