/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * daemon.c - the parts of one running daemon, put together and taken apart
 *
 * Order of the start: event queue, pool, pressure thread, control socket, mount.  The socket comes
 * before the mount, because the mount names it.  The stop takes the reverse order,
 * so that nothing is closed under somebody who still uses it; it accepts a daemon
 * that was half built.
 */
#define LOG_MODULE "daemon"
#include "daemon/daemon.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "control/control-server.h"
#include "control/metrics.h"
#include "control/status-document.h"
#include "daemon/hook.h"
#include "daemon/notify.h"
#include "fuse/fuse-session.h"
#include "util/clock.h"
#include "util/log.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

#define QUEUE_DEPTH 64 /* sockets, signals, the end of the mount */

/* A mount in use is served this long after SIGTERM, then its users get errors. */
#define STOP_GRACE_USEC (5 * USEC_PER_SEC)

/*
 * A daemon that was killed holds its devices until the last write it had begun has ended: that is
 * what makes it safe to begin after it.  Who goes on with its mount knows that it died; who does
 * not may meet one that lives, which its user wants to be told.
 */
#define SUCCESSOR_PATIENCE_USEC (60 * USEC_PER_SEC)
#define DEVICES_PATIENCE_USEC (3 * USEC_PER_SEC)
#define DEVICES_RETRY_USEC 5000

struct daemon {
	struct io_queue *q;
	struct pool *pool;
	struct pressure *pressure;
	struct hook *hook;
	struct control_server *control;
	_Atomic(struct fuse_server *) fuse; /* the pool's events may come before it is there */
	char metadata_path[4096], data_path[4096], socket_path[128];
	struct fuse_virtual_file files[5];
	struct io_watch signals, mount_end;
	int (*read_config)(void *ctx, struct config *cfg, struct tp_error *error);
	void *ctx;
	int (*check_successor)(void *ctx, struct tp_error *error);
	struct legacy legacy;                           /* connection and state: until mounted */
	struct tp_lock lock;                            /* LC_control, a mutex */
	struct config config TP_GUARDED_BY(lc_control); /* the effective one */
	const char *pooldir, *mountpoint;               /* borrowed from the options */
	int unlocked; /* why memory is not locked; told once the daemon serves */
	bool stopping, handing_over;
	const char *why;
};

static void pool_event(void *ctx, const struct pool_event *event)
{
	struct daemon *d = ctx;
	struct fuse_server *fuse = d->fuse;

	if (event->kind > POOL_EVENT_MODE)
		hook_note(d->hook, event->kind);
	else if (fuse)
		fuse_server_event(fuse, event);
}

/* Of requests; also while the mount is being made, when a file of it can be read already. */
static const char *transport(void *ctx)
{
	struct daemon *d = ctx;
	struct fuse_server *fuse = d->fuse;
	struct fuse_server_stats s;

	if (!fuse)
		return "none yet";
	fuse_server_get_stats(fuse, &s);
	return s.over_uring ? "io_uring" : "/dev/fuse";
}

static char *render_status_text(void *ctx)
{
	struct daemon *d = ctx;
	struct hook_status hook;

	hook_get_status(d->hook, &hook);
	return status_render_text(d->pool, d->pressure, transport(d), &hook);
}

static char *render_status_json(void *ctx)
{
	struct daemon *d = ctx;
	struct hook_status hook;

	hook_get_status(d->hook, &hook);
	return status_render_json(d->pool, d->pressure, transport(d), &hook);
}

static char *render_metrics(void *ctx)
{
	struct daemon *d = ctx;
	struct fuse_server *fuse = d->fuse; /* NULL until the mount is complete */
	struct fuse_server_stats s = { .requests = 0 };
	struct hook_status hook;

	if (fuse)
		fuse_server_get_stats(fuse, &s);
	hook_get_status(d->hook, &hook);
	const struct metric more[] = {
		{ "fuse_requests_total", "Requests read from the kernel", s.requests },
		{ "fuse_over_io_uring", "Whether requests come over io_uring, not /dev/fuse",
		  s.over_uring },
		{ "fuse_handed_over_total", "Requests that another thread answered",
		  s.handed_over },
		{ "fuse_starved_total", "Times a thread was out of request buffers", s.starved },
		{ "fuse_notices_total", "Times the kernel was told to forget something",
		  s.notices },
		{ "fuse_notices_dropped_total", "Notices that found no room", s.notices_dropped },
		{ "open_volumes", "Volumes that somebody has open", s.open_volumes },
		{ "restarts_total", "Daemons that took the mount over from another", s.restarts },
		{ "restart_pause_microseconds",
		  "How long the last hand-over took; 0: there was none, or the daemon died",
		  s.last_pause_usec },
		{ "hook_running", "Whether the program for low space runs", hook.running },
		{ "hook_runs_total", "Times that it was started", hook.runs },
		{ "hook_failures_total", "Times that it failed or took too long", hook.failures },
	};

	return metrics_render(d->pool, d->pressure, more, ARRAY_SIZE(more));
}

static char *render_config(void *ctx)
{
	struct daemon *d = ctx;
	struct config config;
	char *text = NULL;
	size_t length;
	FILE *f = open_memstream(&text, &length);

	if (!f)
		return NULL;
	lock_control(&d->lock);
	config = d->config;
	unlock_control(&d->lock);
	config_print(&config, f);
	if (!fclose(f))
		return text;
	free(text);
	return NULL;
}

static char *render_version(void *ctx)
{
	(void)ctx;
	return strdup("thinpoold " TP_VERSION "\n");
}

/*
 * With a limit on locked memory (an ordinary user's) mlockall() may succeed, and everything that is
 * mapped later fails: try what the workers will map.
 */
static bool locked_memory_has_room(const struct config *cfg)
{
	size_t bytes = ((size_t)cfg->workers + 1) << 30;
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return false;
	munmap(p, bytes);
	return true;
}

/*
 * The daemon serves the pages that reclaim wants to write back, so it must not wait for reclaim.
 * 0, or why memory could not be locked.
 */
static int prepare_memory(const struct config *cfg)
{
	int r;

	if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) && errno != EPERM)
		log_debug("no PR_SET_IO_FLUSHER: %s", strerror(errno));
	if (!cfg->lock_memory)
		return 0;
	r = mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) ? -errno : 0;
	if (!r && !locked_memory_has_room(cfg)) {
		munlockall();
		r = -ENOMEM;
	}
	return r;
}

static struct pool_options pool_options_of(const struct config *cfg)
{
	return (struct pool_options){
		.cache_bytes = cfg->cache_size,
		.commit_interval_usec = cfg->commit_interval_usec,
		.discard = cfg->discard,
		.zero_new_blocks = cfg->zero_new_blocks,
		.queue_if_no_space = cfg->queue_if_no_space,
		.no_space_timeout_usec = cfg->no_space_timeout_usec,
		.low_water_data = cfg->low_water_data,
		.low_water_metadata = cfg->low_water_metadata,
		.autoextend = { .threshold = cfg->autoextend_threshold,
				.percent = cfg->autoextend_percent,
				.max_bytes = cfg->max_size },
	};
}

/* What is acknowledged but not committed survives this process, if somebody keeps where it stands.
 */
static void make_redo_area(struct daemon *d)
{
	int fd;

	if (d->legacy.fds[LEGACY_REDO] || !notify_is_possible())
		return;
	fd = memfd_create("thinpoold-redo", MFD_CLOEXEC);
	if (fd < 0) {
		log_warn("no redo area: %s, a death of the daemon loses what is not committed",
			 strerror(errno));
		return;
	}
	legacy_store(LEGACY_REDO, fd);
	d->legacy.fds[LEGACY_REDO] = fd;
}

static int open_devices_of(struct daemon *d, const struct pool_options *options,
			   struct tp_error *error)
{
	uint64_t patience =
		legacy_is_whole(&d->legacy) ? SUCCESSOR_PATIENCE_USEC : DEVICES_PATIENCE_USEC;
	uint64_t deadline = time_monotonic_usec() + patience;
	bool is_told = false;
	int r;

	for (;;) {
		error->text[0] = '\0';
		r = pool_open(options, &d->pool, error);
		if (r != -EBUSY || time_monotonic_usec() > deadline)
			return r;
		if (!is_told && legacy_is_whole(&d->legacy))
			log_info("%s; waiting for up to %u s", error->text,
				 (unsigned)(patience / USEC_PER_SEC));
		is_told = true;
		usleep(DEVICES_RETRY_USEC);
	}
}

static int open_pool(struct daemon *d, const struct daemon_options *o, struct tp_error *error)
{
	struct pool_options options = pool_options_of(&o->config);

	options.metadata_path = d->metadata_path;
	options.data_path = d->data_path;
	options.read_only = o->read_only;
	options.event = pool_event;
	options.event_ctx = d;

	if (snprintf(d->metadata_path, sizeof(d->metadata_path), "%s/metadata", o->pooldir) >=
		    (int)sizeof(d->metadata_path) ||
	    snprintf(d->data_path, sizeof(d->data_path), "%s/data", o->pooldir) >=
		    (int)sizeof(d->data_path))
		return tp_error(error, -ENAMETOOLONG, "%s: the path is too long", o->pooldir);
	make_redo_area(d);
	options.redo_fd = d->legacy.fds[LEGACY_REDO];
	options.keep_unlinked = legacy_is_whole(&d->legacy);
	return open_devices_of(d, &options, error);
}

static int start_pressure(struct daemon *d, const struct config *cfg, struct tp_error *error)
{
	struct pressure_options options = {
		.enabled = { [PRESSURE_PSI] = cfg->psi,
			     [PRESSURE_CGROUP] = cfg->cgroup,
			     [PRESSURE_WATCH] = cfg->watch,
			     [PRESSURE_REQUEST] = cfg->request,
			     [PRESSURE_TIMER] = cfg->timer_usec > 0 },
		.stall_usec = cfg->stall_usec,
		.timer_usec = cfg->timer_usec,
		.watch_path = getenv("MEMORY_PRESSURE_WATCH"),
		.watch_write = getenv("MEMORY_PRESSURE_WRITE"),
	};
	int r = pressure_start(&options, &d->pressure);

	return r ? tp_error(error, r, "no pressure thread: %s", strerror(-r)) : 0;
}

/* Where a socket may live: root's runtime directory, or the user's. */
static int make_socket_path(struct daemon *d, struct tp_error *error)
{
	const char *user_dir = getenv("XDG_RUNTIME_DIR");
	char dir[96];
	struct stat st;

	if (geteuid() == 0)
		snprintf(dir, sizeof(dir), "/run/thinpoold");
	else if (user_dir && *user_dir && strlen(user_dir) < 64)
		snprintf(dir, sizeof(dir), "%s/thinpoold", user_dir);
	else
		snprintf(dir, sizeof(dir), "/tmp/thinpoold-%u", geteuid());
	if (mkdir(dir, 0700) && errno != EEXIST)
		return tp_error(error, -errno, "%s: cannot be made: %s", dir, strerror(errno));
	/* In /tmp somebody else may have been first. */
	if (lstat(dir, &st) || !S_ISDIR(st.st_mode) || st.st_uid != geteuid() ||
	    st.st_mode & (S_IWGRP | S_IWOTH))
		return tp_error(error, -EPERM, "%s: is not a directory of ours alone, remove it",
				dir);
	snprintf(d->socket_path, sizeof(d->socket_path), "%s/%d.sock", dir, (int)getpid());
	return 0;
}

/* From now on the mount outlives this process, if somebody keeps what it needs. */
static void keep_mount(void *ctx, int connection_fd, int state_fd)
{
	(void)ctx;
	legacy_store(LEGACY_CONNECTION, connection_fd);
	legacy_store(LEGACY_STATE, state_fd);
}

/* A mount over io_uring cannot be kept, so it is not, unless the user would rather have it so. */
static bool wants_uring(const struct config *cfg)
{
	return cfg->io_uring == CONFIG_IO_URING_YES ||
	       (cfg->io_uring == CONFIG_IO_URING_AUTO && !notify_is_possible());
}

static int start_fuse(struct daemon *d, const struct daemon_options *o, struct tp_error *error)
{
	struct fuse_server_options options = {
		.pool = d->pool,
		.mountpoint = o->mountpoint,
		.nr_workers = o->config.workers,
		.cache = o->config.cache == CONFIG_CACHE_NONE ? FUSE_CACHE_NONE : FUSE_CACHE_PAGES,
		.read_only = o->read_only,
		.allow_other = o->config.allow_other,
		.max_background = o->config.max_background,
		.socket_path = d->socket_path,
		.connection_fd = d->legacy.fds[LEGACY_CONNECTION],
		.state_fd = d->legacy.fds[LEGACY_STATE],
		.keep = keep_mount,
		.uring_depth = wants_uring(&o->config) ? o->config.io_uring_depth : 0,
		.files = d->files,
		.nr_files = ARRAY_SIZE(d->files),
		.drop_pages_limit_usec = o->config.page_cache ? o->config.page_cache_limit_usec : 0,
		.drop_pages_interval_usec = o->config.page_cache_interval_usec,
	};
	struct fuse_server *fuse;
	int r;

	d->files[0] = (struct fuse_virtual_file){ "status", render_status_text, d };
	d->files[1] = (struct fuse_virtual_file){ "status.json", render_status_json, d };
	d->files[2] = (struct fuse_virtual_file){ "metrics", render_metrics, d };
	d->files[3] = (struct fuse_virtual_file){ "config", render_config, d };
	d->files[4] = (struct fuse_virtual_file){ "version", render_version, d };
	/* They are the server's now, also if it cannot start. */
	d->legacy.fds[LEGACY_CONNECTION] = d->legacy.fds[LEGACY_STATE] = 0;
	r = fuse_server_start(&options, &fuse, error);
	if (!r)
		d->fuse = fuse;
	return r;
}

/* Every request that was running goes on; what cannot change is said, and stays as it was. */
static void reload(struct daemon *d)
{
	struct config_changes changes = { "", "" };
	struct tp_error error = { "" };
	struct config fresh, config;
	struct pool_options options;
	int r;

	notify_send("RELOADING=1\nMONOTONIC_USEC=%llu", (unsigned long long)time_monotonic_usec());
	r = d->read_config(d->ctx, &fresh, &error);
	lock_control(&d->lock);
	config = d->config;
	unlock_control(&d->lock);
	if (!r)
		r = config_apply(&config, &fresh, &changes);
	if (r) {
		log_err("the configuration stays as it was: %s",
			error.text[0] ? error.text : strerror(-r));
	} else {
		log_set_level(config.log_level);
		options = pool_options_of(&config);
		pool_configure(d->pool, &options);
		hook_configure(d->hook, config.on_low_space, config.on_low_space_timeout_usec);
		lock_control(&d->lock);
		d->config = config;
		unlock_control(&d->lock);
		log_info("configuration read again: %s",
			 changes.made[0] ? changes.made : "nothing to change");
		if (changes.later[0])
			log_warn("this takes effect only when the daemon is started again: %s",
				 changes.later);
	}
	notify_send("READY=1");
}

/* Only to a program that starts: another would not get the mount back on its feet. */
static int begin_hand_over(struct daemon *d, struct tp_error *error)
{
	int r;

	if (!fuse_server_can_hand_over(d->fuse))
		r = tp_error(
			error, -EOPNOTSUPP,
			"'%s' is served over io_uring, and the kernel hands such a mount to no "
			"other process: umount it, and set io_uring = no in [fuse]",
			d->mountpoint);
	else
		r = d->check_successor ? d->check_successor(d->ctx, error) : -EOPNOTSUPP;
	if (r) {
		log_err("no hand-over: %s", error->text[0] ? error->text : strerror(-r));
		return r;
	}
	d->handing_over = d->stopping = true;
	d->why = "handing over";
	return 0;
}

/* A control command. */
static int restart(void *ctx, unsigned *ret_restarts, struct tp_error *error)
{
	struct daemon *d = ctx;
	struct fuse_server_stats s;

	fuse_server_get_stats(d->fuse, &s);
	*ret_restarts = s.restarts;
	return begin_hand_over(d, error);
}

static void get_hook(void *ctx, struct hook_status *ret_status)
{
	struct daemon *d = ctx;

	hook_get_status(d->hook, ret_status);
}

static void get_restarts(void *ctx, unsigned *ret_restarts, uint64_t *ret_pause_usec)
{
	struct daemon *d = ctx;
	struct fuse_server_stats s;

	fuse_server_get_stats(d->fuse, &s);
	*ret_restarts = s.restarts;
	*ret_pause_usec = s.last_pause_usec;
}

static void signals_ready(struct io_watch *w, short revents)
{
	struct daemon *d = container_of(w, struct daemon, signals);
	struct signalfd_siginfo info;
	struct tp_error error = { "" };

	(void)revents;
	while (read(w->fd, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGHUP) {
			reload(d);
			continue;
		}
		if (info.ssi_signo == SIGUSR2) {
			(void)begin_hand_over(d, &error); /* it has been logged */
			continue;
		}
		d->handing_over = false;
		d->stopping = true;
		d->why = strsignal((int)info.ssi_signo);
	}
}

static void mount_end_ready(struct io_watch *w, short revents)
{
	struct daemon *d = container_of(w, struct daemon, mount_end);

	(void)revents;
	d->handing_over = false;
	d->stopping = true;
	d->why = "unmounted";
}

static int watch_for_the_end(struct daemon *d, struct tp_error *error)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGUSR2);
	d->signals.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (d->signals.fd < 0)
		return tp_error(error, -errno, "no signal descriptor: %s", strerror(errno));
	d->signals.events = d->mount_end.events = POLLIN;
	d->signals.ready = signals_ready;
	d->mount_end.ready = mount_end_ready;
	d->mount_end.fd = fuse_server_end_fd(d->fuse);
	io_queue_watch(d->q, &d->signals);
	io_queue_watch(d->q, &d->mount_end);
	return 0;
}

static int start_control(struct daemon *d, struct tp_error *error)
{
	const struct control_service service = {
		.restart = restart,
		.get_hook = get_hook,
		.get_restarts = get_restarts,
		.transport = transport,
		.ctx = d,
	};

	return control_server_create(d->q, d->pool, d->pressure, &service, d->socket_path,
				     &d->control, error);
}

static int start_parts(struct daemon *d, const struct daemon_options *o,
		       struct tp_error *error) TP_EXCLUDES_ALL
{
	int r;

	d->unlocked = prepare_memory(&o->config);
	r = io_queue_create(QUEUE_DEPTH, &d->q);
	if (r)
		return tp_error(error, r, "no event queue: %s", strerror(-r));
	/* Before the pool, which tells of low space as soon as it is open. */
	d->hook = hook_create(d->q, o->pooldir, o->mountpoint);
	if (!d->hook)
		return tp_error(error, -ENOMEM, "out of memory");
	hook_configure(d->hook, o->config.on_low_space, o->config.on_low_space_timeout_usec);
	r = open_pool(d, o, error);
	if (!r)
		r = start_pressure(d, &o->config, error);
	if (!r)
		r = make_socket_path(d, error);
	if (!r)
		r = start_control(d, error);
	if (!r)
		r = start_fuse(d, o, error);
	if (!r)
		r = watch_for_the_end(d, error);
	return r;
}

int daemon_start(const struct daemon_options *options, struct daemon **ret_d,
		 struct tp_error *error)
{
	struct daemon *d = calloc(1, sizeof(*d));
	int r;

	if (!d)
		return tp_error(error, -ENOMEM, "out of memory");
	d->signals.fd = -1;
	tp_lock_init(&d->lock, LC_control, LOCK_KIND_MUTEX);
	lock_control(&d->lock);
	d->config = options->config;
	unlock_control(&d->lock);
	d->read_config = options->read_config;
	d->check_successor = options->check_successor;
	d->legacy = options->legacy;
	d->ctx = options->ctx;
	r = start_parts(d, options, error);
	if (r) {
		(void)daemon_stop(d); /* the reason to tell is why it did not start */
		return r;
	}
	d->pooldir = options->pooldir;
	d->mountpoint = options->mountpoint;
	*ret_d = d;
	return 0;
}

enum daemon_end daemon_run(struct daemon *d)
{
	char pressure[400];

	log_info("serving %s at %s, pid %d", d->pooldir, d->mountpoint, (int)getpid());
	if (d->unlocked)
		log_info("memory is not locked (%s): the daemon may be swapped out",
			 strerror(-d->unlocked));
	pressure_describe(d->pressure, pressure, sizeof(pressure));
	log_info("%s", pressure);
	notify_send("READY=1\nSTATUS=serving %s at %s", d->pooldir, d->mountpoint);
	while (!d->stopping)
		io_queue_run(d->q, hook_run(d->hook, d->pool));
	log_info("stopping: %s", d->why);
	if (d->handing_over) {
		notify_send("RELOADING=1\nMONOTONIC_USEC=%llu\nSTATUS=%s",
			    (unsigned long long)time_monotonic_usec(), d->why);
		return DAEMON_HAND_OVER;
	}
	notify_send("STOPPING=1\nSTATUS=stopping: %s", d->why);
	return DAEMON_STOP;
}

static void stop_watching(struct daemon *d)
{
	if (d->signals.fd < 0)
		return;
	io_queue_unwatch(d->q, &d->signals);
	io_queue_unwatch(d->q, &d->mount_end);
	close(d->signals.fd);
	d->signals.fd = -1;
}

/* The mount is gone or in other hands. */
static int close_rest(struct daemon *d)
{
	/* The server itself goes last: events of the pool's end may still name it. */
	struct fuse_server *fuse = d->fuse;
	int r;

	control_server_destroy(d->control);
	r = pool_close(d->pool);
	fuse_server_destroy(fuse);
	pressure_destroy(d->pressure);
	hook_destroy(d->hook, d->handing_over);
	if (r)
		log_err("the last commit failed: %s", strerror(-r));
	if (d->legacy.fds[LEGACY_REDO])
		close(d->legacy.fds[LEGACY_REDO]);
	if (d->q)
		io_queue_destroy(d->q);
	tp_lock_destroy(&d->lock);
	free(d);
	return r;
}

int daemon_stop(struct daemon *d)
{
	if (!d)
		return 0;
	stop_watching(d);
	if (d->pool)
		pool_stop_waiting(d->pool); /* the end of service awaits every request */
	/* While the mount is served: what the thread is in may wait for a write to a volume. */
	pressure_stop(d->pressure);
	if (d->fuse) {
		fuse_server_stop(d->fuse, STOP_GRACE_USEC);
		legacy_remove_all();
	}
	return close_rest(d);
}

int daemon_hand_over(struct daemon *d, struct legacy *ret_legacy)
{
	struct legacy legacy = { .fds = { 0 } };
	int r;

	stop_watching(d);
	pressure_stop(d->pressure);
	r = fuse_server_hand_over(d->fuse, &legacy.fds[LEGACY_CONNECTION],
				  &legacy.fds[LEGACY_STATE]);
	if (r) {
		log_err("no hand-over: %s", strerror(-r));
		(void)daemon_stop(d);
		return r;
	}
	legacy.fds[LEGACY_REDO] = d->legacy.fds[LEGACY_REDO];
	d->legacy.fds[LEGACY_REDO] = 0;
	(void)close_rest(d); /* the next one sees what was committed */
	*ret_legacy = legacy;
	return 0;
}
