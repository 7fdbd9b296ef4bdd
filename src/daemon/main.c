/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * main.c - thinpoold: arguments, configuration, going to the background
 *
 * The background process is forked before any thread exists.  Its parent waits at
 * a pipe for the outcome, so that the exit status and the one line on stderr are
 * the truth: 0 means that the mount answers.
 *
 * A daemon that hands its mount over becomes the next one by execv(): whatever program is at its
 * path by then, in the same process, with the descriptors of handover.h.
 */
#define LOG_MODULE "thinpoold"
#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <limits.h>
#include <poll.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <syslog.h>
#include <unistd.h>

#include "daemon/config.h"
#include "daemon/daemon.h"
#include "daemon/give-up.h"
#include "daemon/handover.h"
#include "daemon/keeper.h"
#include "util/cleanup.h"
#include "util/log.h"

enum { EXIT_USAGE = 2, OPTION_READ_ONLY = 256, OPTION_CHECK_CONFIG, OPTION_KEEPER, OPTION_SYSLOG };

/* A program that takes longer to say whether it likes the configuration is not one to start. */
#define CHECK_PATIENCE_MSEC 10000

const char *argp_program_version = "thinpoold " TP_VERSION;
const char *argp_program_bug_address = NULL;

struct arguments {
	const char *config_path, *pooldir, *mountpoint;
	bool foreground, read_only, check_config, keeper, to_syslog;
	struct legacy legacy;    /* what this process was started with */
	char *program, *argv[9]; /* to start a daemon like this one */
};

static const struct argp_option option_table[] = {
	{ "foreground", 'f', NULL, 0, "Stay in the foreground", 0 },
	{ "config", 'c', "CONF", 0, "Read CONF instead of " CONFIG_DEFAULT_PATH, 0 },
	{ "read-only", OPTION_READ_ONLY, NULL, 0, "Change nothing in the pool", 0 },
	{ "keeper", OPTION_KEEPER, NULL, 0,
	  "Start the daemon from a process that starts another when it dies, and keeps the mount",
	  0 },
	{ "syslog", OPTION_SYSLOG, NULL, 0, "Log to syslog, as in the background", 0 },
	{ "check-config", OPTION_CHECK_CONFIG, NULL, 0,
	  "Print the effective configuration, or what is wrong with it, and exit", 0 },
	{ 0 },
};

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
	struct arguments *a = state->input;

	switch (key) {
	case 'f':
		a->foreground = true;
		return 0;
	case 'c':
		a->config_path = arg;
		return 0;
	case OPTION_READ_ONLY:
		a->read_only = true;
		return 0;
	case OPTION_KEEPER:
		a->keeper = true;
		return 0;
	case OPTION_SYSLOG:
		a->to_syslog = true;
		return 0;
	case OPTION_CHECK_CONFIG:
		a->check_config = true;
		return 0;
	case ARGP_KEY_ARG:
		if (state->arg_num == 0)
			a->pooldir = arg;
		else if (state->arg_num == 1)
			a->mountpoint = arg;
		else
			argp_usage(state);
		return 0;
	case ARGP_KEY_END:
		if (!a->mountpoint && !a->check_config)
			argp_usage(state);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static const struct argp argp = {
	.options = option_table,
	.parser = parse_option,
	.args_doc = "POOLDIR MOUNTPOINT",
	.doc = "Serve the thin pool in POOLDIR (files or links to block devices named metadata and "
	       "data) as the directory MOUNTPOINT, a file for each thin volume."
	       "\vMake a pool with thinpoolctl format.  See thinpoold(8).",
};

static int fail(const struct tp_error *error, int r)
{
	const char *text = error->text[0] ? error->text : strerror(-r);

	/* One line, without a priority mark: this is the answer to a command. */
	fprintf(stderr, "thinpoold: %s\n", text);
	return EXIT_FAILURE;
}

/* Defaults, then the configuration file, then pool.conf of the pool. */
static int read_config(const struct arguments *a, const char *pooldir, struct config *cfg,
		       struct tp_error *error)
{
	TP_CLEANUP(tp_free_string) char *pool_conf = NULL;
	const char *path = a->config_path ? a->config_path : CONFIG_DEFAULT_PATH;
	int r;

	config_set_defaults(cfg);
	r = config_read(path, cfg, error);
	if (r == -ENOENT && a->config_path)
		return tp_error(error, r, "%s: no such file", path);
	if (r && r != -ENOENT)
		return r;
	if (!pooldir)
		return 0;
	if (asprintf(&pool_conf, "%s/pool.conf", pooldir) < 0)
		return -ENOMEM;
	r = config_read(pool_conf, cfg, error);
	return r == -ENOENT ? 0 : r;
}

/* For SIGHUP: what main() did, again. */
static int read_config_again(void *ctx, struct config *cfg, struct tp_error *error)
{
	const struct arguments *a = ctx;

	return read_config(a, a->pooldir, cfg, error);
}

static void log_to_syslog(enum log_level level, const char *line, void *ctx)
{
	(void)ctx;
	syslog((int)level, "%s", line);
}

static void use_syslog(void)
{
	openlog("thinpoold", LOG_PID, LOG_DAEMON);
	log_set_tap(log_to_syslog, NULL);
}

/* From now on nobody reads stderr. */
static void leave_terminal(void)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	use_syslog();
	if (null < 0)
		return;
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	dup2(null, STDERR_FILENO);
	if (null > STDERR_FILENO)
		close(null);
}

static void block_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGCHLD); /* for the keeper: others have no use for it */
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
}

/* The one who waits for the outcome may go. */
static void tell_ready(int ready_fd)
{
	leave_terminal();
	if (write(ready_fd, "", 1) != 1)
		log_warn("the starting process has gone");
	close(ready_fd);
}

/* ---- the next daemon ---- */

/* Returns the wait status of a child, or a negative errno: -ETIME when it was killed. */
static int await_check(pid_t pid)
{
	struct pollfd pfd = { .fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN };
	bool ended = pfd.fd >= 0 && poll(&pfd, 1, CHECK_PATIENCE_MSEC) == 1;
	int status;

	if (!ended)
		kill(pid, SIGKILL);
	if (pfd.fd >= 0)
		close(pfd.fd);
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return ended ? status : -ETIME;
}

/* What stands at our path now, perhaps a newer one: does it start, and understand what is
 * configured? */
static int check_successor(void *ctx, struct tp_error *error)
{
	const struct arguments *a = ctx;
	char *argv[] = {
		a->program, (char *)"--check-config", (char *)a->pooldir, NULL, NULL, NULL
	};
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	sigset_t none;
	int r;
	pid_t pid;

	if (a->config_path) {
		argv[3] = (char *)"-c";
		argv[4] = (char *)a->config_path;
	}
	sigemptyset(&none);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
	r = -posix_spawn(&pid, a->program, &actions, &attr, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attr);
	if (r)
		return tp_error(error, r, "%s cannot be started: %s", a->program, strerror(-r));
	r = await_check(pid);
	if (r)
		return tp_error(error, -ENOEXEC,
				"\"%s --check-config\" %s: this daemon goes on serving", a->program,
				r < 0 ? strerror(-r) : "fails");
	return 0;
}

/* The command line of a daemon that goes on where this one ends. */
static int prepare_successor(struct arguments *a, const char *mountpoint)
{
	static char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	int i = 0;

	if (n < 0)
		return -errno;
	self[n] = '\0';
	a->program = self;
	a->argv[i++] = self;
	a->argv[i++] = (char *)"-f";
	if (a->to_syslog || !a->foreground)
		a->argv[i++] = (char *)"--syslog";
	if (a->read_only)
		a->argv[i++] = (char *)"--read-only";
	if (a->config_path) {
		a->argv[i++] = (char *)"-c";
		a->argv[i++] = (char *)a->config_path;
	}
	a->argv[i++] = (char *)a->pooldir;
	a->argv[i++] = (char *)mountpoint;
	a->argv[i] = NULL;
	return 0;
}

/* Becomes the next daemon, in this process. */
static int exec_successor(const struct arguments *a, struct legacy *legacy)
{
	int r;

	legacy->fds[LEGACY_LIFE] = a->legacy.fds[LEGACY_LIFE];
	r = legacy_prepare_exec(legacy);
	if (!r) {
		execv(a->program, a->argv);
		r = -errno;
		log_err("%s cannot be started (%s), going on with the old program", a->program,
			strerror(errno));
		execv("/proc/self/exe", a->argv);
	}
	log_err("the mount has lost its daemon: %s", strerror(-r));
	return EXIT_FAILURE;
}

static int serve(const struct daemon_options *options, const struct arguments *a, int ready_fd)
{
	struct tp_error error = { "" };
	struct legacy legacy;
	struct daemon *d;
	int r;

	block_signals();
	if (a->to_syslog)
		use_syslog();
	if (give_up_is_due(&options->legacy, &options->config)) {
		legacy = options->legacy;
		return give_up(&legacy, &options->config, options->mountpoint)
			       ? exec_successor(a, &legacy)
			       : EXIT_SUCCESS;
	}
	r = daemon_start(options, &d, &error);
	if (r) {
		if (a->to_syslog)
			log_err("%s", error.text[0] ? error.text : strerror(-r));
		return fail(&error, r);
	}
	if (ready_fd >= 0)
		tell_ready(ready_fd);
	else if (a->to_syslog)
		leave_terminal();
	if (daemon_run(d) == DAEMON_STOP)
		return daemon_stop(d) ? EXIT_FAILURE : EXIT_SUCCESS;
	return daemon_hand_over(d, &legacy) ? EXIT_FAILURE : exec_successor(a, &legacy);
}

static void keeper_ready(void *ctx)
{
	const int *ready_fd = ctx;

	if (*ready_fd >= 0)
		tell_ready(*ready_fd);
}

/* Serve, from this process or from one that it keeps. */
static int serve_somehow(const struct daemon_options *options, struct arguments *a, int ready_fd)
{
	struct keeper_options keeper = {
		.program = a->program,
		.argv = a->argv,
		.pooldir = options->pooldir,
		.mountpoint = options->mountpoint,
		.restart_limit = options->config.restart_limit,
		.restart_window_usec = options->config.restart_window_usec,
		.ready = keeper_ready,
		.ctx = &ready_fd,
	};

	if (!a->keeper)
		return serve(options, a, ready_fd);
	block_signals();
	if (a->to_syslog)
		use_syslog();
	return keeper_run(&keeper);
}

/* The parent's part: the child's outcome becomes ours. */
static int await_child(pid_t pid, int fd)
{
	char ready;
	int status;

	if (read(fd, &ready, 1) == 1)
		return EXIT_SUCCESS;
	if (waitpid(pid, &status, 0) != pid)
		return EXIT_FAILURE;
	if (WIFEXITED(status))
		return WEXITSTATUS(status) ? WEXITSTATUS(status) : EXIT_FAILURE;
	fprintf(stderr, "thinpoold: ended by signal %d while starting\n", WTERMSIG(status));
	return EXIT_FAILURE;
}

static int serve_in_background(const struct daemon_options *options, struct arguments *a)
{
	int fds[2];
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC)) {
		fprintf(stderr, "thinpoold: no pipe: %s\n", strerror(errno));
		return EXIT_FAILURE;
	}
	pid = fork();
	if (pid < 0) {
		fprintf(stderr, "thinpoold: no process: %s\n", strerror(errno));
		return EXIT_FAILURE;
	}
	if (pid > 0) {
		close(fds[1]);
		return await_child(pid, fds[0]);
	}
	close(fds[0]);
	setsid();
	if (chdir("/"))
		log_warn("cannot leave the working directory: %s", strerror(errno));
	return serve_somehow(options, a, fds[1]);
}

int main(int argc, char **argv)
{
	TP_CLEANUP(tp_free_string) char *pooldir = NULL;
	TP_CLEANUP(tp_free_string) char *mountpoint = NULL;
	TP_CLEANUP(tp_free_string) char *config_path = NULL;
	struct daemon_options options = { .read_only = false };
	struct arguments a = { .foreground = false };
	struct tp_error error = { "" };
	int r;

	argp_err_exit_status = EXIT_USAGE;
	argp_parse(&argp, argc, argv, 0, NULL, &a);
	legacy_take(&a.legacy);

	if (a.pooldir) {
		pooldir = realpath(a.pooldir, NULL);
		if (!pooldir) {
			r = -errno;
			tp_error(&error, r, "%s: %s, name a directory that thinpoolctl format made",
				 a.pooldir, strerror(-r));
			return fail(&error, r);
		}
	}
	/* Absolute: it is read again when the working directory is another. */
	if (a.config_path) {
		config_path = realpath(a.config_path, NULL);
		if (config_path)
			a.config_path = config_path;
	}
	r = read_config(&a, pooldir, &options.config, &error);
	if (r)
		return fail(&error, r);
	log_set_level(options.config.log_level);
	if (a.check_config) {
		config_print(&options.config, stdout);
		return EXIT_SUCCESS;
	}
	/* That of an earlier daemon would not answer. */
	mountpoint =
		legacy_is_whole(&a.legacy) ? strdup(a.mountpoint) : realpath(a.mountpoint, NULL);
	if (!mountpoint) {
		r = -errno;
		tp_error(&error, r, "%s: %s, make this directory first", a.mountpoint,
			 strerror(-r));
		return fail(&error, r);
	}
	options.pooldir = pooldir;
	options.mountpoint = mountpoint;
	options.read_only = a.read_only;
	options.legacy = a.legacy;
	a.pooldir = pooldir;
	options.read_config = read_config_again;
	options.check_successor = check_successor;
	options.ctx = &a;
	r = prepare_successor(&a, mountpoint);
	if (r) {
		tp_error(&error, r, "/proc/self/exe: %s", strerror(-r));
		return fail(&error, r);
	}
	return a.foreground ? serve_somehow(&options, &a, -1) : serve_in_background(&options, &a);
}
