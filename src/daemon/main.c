/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * main.c - thinpoold: arguments, configuration, going to the background
 *
 * The background process is forked before any thread exists.  Its parent waits at
 * a pipe for the outcome, so that the exit status and the one line on stderr are
 * the truth: 0 means that the mount answers.
 */
#define LOG_MODULE "thinpoold"
#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <syslog.h>
#include <unistd.h>

#include "daemon/config.h"
#include "daemon/daemon.h"
#include "util/cleanup.h"
#include "util/log.h"

enum { EXIT_USAGE = 2, OPTION_READ_ONLY = 256, OPTION_CHECK_CONFIG };

const char *argp_program_version = "thinpoold " TP_VERSION;
const char *argp_program_bug_address = NULL;

struct arguments {
	const char *config_path, *pooldir, *mountpoint;
	bool foreground, read_only, check_config;
};

static const struct argp_option option_table[] = {
	{ "foreground", 'f', NULL, 0, "Stay in the foreground", 0 },
	{ "config", 'c', "CONF", 0, "Read CONF instead of " CONFIG_DEFAULT_PATH, 0 },
	{ "read-only", OPTION_READ_ONLY, NULL, 0, "Change nothing in the pool", 0 },
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
	/* One line, without a priority mark: this is the answer to a command. */
	fprintf(stderr, "thinpoold: %s\n", error->text[0] ? error->text : strerror(-r));
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

/* From now on nobody reads stderr. */
static void leave_terminal(void)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	openlog("thinpoold", LOG_PID, LOG_DAEMON);
	log_set_tap(log_to_syslog, NULL);
	if (null < 0)
		return;
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	dup2(null, STDERR_FILENO);
	if (null > STDERR_FILENO)
		close(null);
}

static int serve(const struct daemon_options *options, int ready_fd)
{
	struct tp_error error = { "" };
	struct daemon *d;
	sigset_t set;
	int r;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);

	r = daemon_start(options, &d, &error);
	if (r)
		return fail(&error, r);
	if (ready_fd >= 0) {
		leave_terminal();
		if (write(ready_fd, "", 1) != 1)
			log_warn("the starting process has gone");
		close(ready_fd);
	}
	daemon_run(d);
	return daemon_stop(d) ? EXIT_FAILURE : EXIT_SUCCESS;
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

static int serve_in_background(const struct daemon_options *options)
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
	return serve(options, fds[1]);
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
	mountpoint = realpath(a.mountpoint, NULL);
	if (!mountpoint) {
		r = -errno;
		tp_error(&error, r, "%s: %s, make this directory first", a.mountpoint,
			 strerror(-r));
		return fail(&error, r);
	}
	options.pooldir = pooldir;
	options.mountpoint = mountpoint;
	options.read_only = a.read_only;
	a.pooldir = pooldir;
	options.read_config = read_config_again;
	options.ctx = &a;
	return a.foreground ? serve(&options, -1) : serve_in_background(&options);
}
