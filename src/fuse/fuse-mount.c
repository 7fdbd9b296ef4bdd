/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-mount.c - put a FUSE mount into the tree and take it out again
 *
 * The superuser calls mount(2) itself; everybody else asks fusermount3, which is set-user-id and
 * sends the descriptor of the connection back over a socket.  libfuse can do both, but it closes
 * the connection before it unmounts, so that dirty pages and open files would be lost, and it
 * detaches whatever it finds at the path.  Here a mount is recognised by its id before it is
 * taken away, and an orderly unmount goes on being served by the workers until it is done.
 */
#include "fuse/fuse-mount.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/cleanup.h"

#define LOG_MODULE "fuse"
#include "util/log.h"

#define FUSE_DEVICE "/dev/fuse"
#define FUSE_SOURCE "thinpoold"
#define FUSE_TYPE "fuse.thinpoold"

struct fuse_mount {
	char *path; /* absolute, without links */
	bool by_helper, identified;
	uint64_t mount_id;
};

extern char **environ;

static void fuse_mount_freep(struct fuse_mount **m)
{
	*m = fuse_mount_free(*m);
}

/* ---------------------------------------------------------- the mount point */

/* The id of the mount that @path lies on, and whether @path is its root.  Asks no server. */
static int path_mount(const char *path, uint64_t *ret_id, bool *ret_is_root)
{
	struct statx sx;

	if (statx(AT_FDCWD, path, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, STATX_MNT_ID, &sx))
		return -errno;
	*ret_id = sx.stx_mnt_id;
	*ret_is_root = sx.stx_attributes & STATX_ATTR_MOUNT_ROOT;
	return 0;
}

static int check_empty(const char *path, struct tp_error *error)
{
	DIR *dir = opendir(path);
	const struct dirent *e;
	int r = 0;

	if (!dir)
		return tp_error(error, -errno, "cannot look into mount point '%s': %s", path,
				strerror(errno));
	while (!r && (e = readdir(dir)))
		if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
			r = tp_error(
				error, -ENOTEMPTY,
				"mount point '%s' is not empty (there is '%s'): mounting would "
				"hide what it holds, name an empty directory",
				path, e->d_name);
	closedir(dir);
	return r;
}

static int check_mountpoint(const char *path, struct tp_error *error)
{
	struct stat st;
	uint64_t id = 0;
	bool is_root = false;

	if (stat(path, &st)) {
		if (errno == ENOTCONN || errno == ECONNABORTED)
			return tp_error(error, -EBUSY,
					"mount point '%s' carries a mount whose daemon is dead: "
					"remove it by umount '%s'",
					path, path);
		return tp_error(error, -errno, "mount point '%s': %s%s", path, strerror(errno),
				errno == ENOENT ? "; create the directory first" : "");
	}
	if (!S_ISDIR(st.st_mode))
		return tp_error(error, -ENOTDIR,
				"mount point '%s' is not a directory: name an empty one", path);
	if (!path_mount(path, &id, &is_root) && is_root)
		return tp_error(error, -EBUSY,
				"mount point '%s' has something mounted on it already: umount it, "
				"or name another directory",
				path);
	return check_empty(path, error);
}

/* -------------------------------------------------------------------- mount */

static int mount_directly(const char *path, bool read_only, bool allow_other, int *ret_fd,
			  struct tp_error *error)
{
	TP_CLEANUP(tp_close_fd) int fd = -1;
	unsigned long flags = MS_NOSUID | MS_NODEV | (read_only ? MS_RDONLY : 0);
	char options[128];

	fd = open(FUSE_DEVICE, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return tp_error(error, errno == ENOENT ? -ENODEV : -errno, "cannot open %s: %s%s",
				FUSE_DEVICE, strerror(errno),
				errno == ENOENT || errno == ENODEV ? "; try: modprobe fuse" : "");

	snprintf(options, sizeof(options),
		 "fd=%d,rootmode=40000,user_id=%u,group_id=%u,default_permissions%s", fd, geteuid(),
		 getegid(), allow_other ? ",allow_other" : "");
	if (mount(FUSE_SOURCE, path, FUSE_TYPE, flags, options))
		return tp_error(error, -errno, "cannot mount on '%s': %s%s", path, strerror(errno),
				errno == EPERM ? " (mounting needs CAP_SYS_ADMIN)" : "");
	*ret_fd = fd;
	fd = -1;
	return 0;
}

/* Run fusermount3 and wait for it.  Returns its exit status, or a negative errno. */
static int run_helper(char *const argv[], char *const envp[])
{
	posix_spawnattr_t attr;
	sigset_t none;
	int status, r;
	pid_t pid;

	/* The threads here block signals; the helper must not inherit that. */
	sigemptyset(&none);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
	r = -posix_spawnp(&pid, "fusermount3", NULL, &attr, argv, envp);
	posix_spawnattr_destroy(&attr);
	if (r)
		return r;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

static int receive_fd(int sock, int *ret_fd)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	char byte;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	const struct cmsghdr *c;
	ssize_t n;

	do {
		n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	c = n ? CMSG_FIRSTHDR(&msg) : NULL;
	if (!c || c->cmsg_type != SCM_RIGHTS)
		return -EPERM;
	memcpy(ret_fd, CMSG_DATA(c), sizeof(int));
	return 0;
}

/* The environment with the number of our socket in it, for the caller to free() as one block. */
static char **environment_with(char *assignment)
{
	size_t n = 0;
	char **env;

	while (environ[n])
		n++;
	env = calloc(n + 2, sizeof(*env));
	if (!env)
		return NULL;
	memcpy(env, environ, n * sizeof(*env));
	env[n] = assignment;
	return env;
}

static int mount_by_helper(const char *path, bool read_only, bool allow_other, int *ret_fd,
			   struct tp_error *error)
{
	TP_CLEANUP(tp_close_fd) int ours = -1;
	TP_CLEANUP(tp_close_fd) int theirs = -1;
	char options[128], assignment[32];
	char *argv[] = { (char *)"fusermount3", (char *)"-o", options,
			 (char *)"--",          (char *)path, NULL };
	int pair[2], r, fd = -1;
	char **env;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return tp_error(error, -errno, "cannot make a socket: %s", strerror(errno));
	ours = pair[0];
	theirs = pair[1];
	if (fcntl(theirs, F_SETFD, 0) < 0) /* the helper is to have it */
		return tp_error(error, -errno, "cannot pass a socket on: %s", strerror(errno));

	snprintf(options, sizeof(options), "fsname=%s,subtype=thinpoold,default_permissions%s%s",
		 FUSE_SOURCE, allow_other ? ",allow_other" : "", read_only ? ",ro" : "");
	snprintf(assignment, sizeof(assignment), "_FUSE_COMMFD=%d", theirs);
	env = environment_with(assignment);
	if (!env)
		return tp_error(error, -ENOMEM, "no memory");
	r = run_helper(argv, env);
	free(env);
	close(theirs);
	theirs = -1;

	if (r < 0)
		return tp_error(error, r, "cannot run fusermount3, which mounts for users: %s",
				strerror(-r));
	if (r > 0)
		return tp_error(error, -EPERM, "fusermount3 refused to mount on '%s'", path);
	r = receive_fd(ours, &fd);
	if (!r && fcntl(fd, F_SETFL, O_NONBLOCK) < 0) {
		r = -errno;
		close(fd);
	}
	if (r)
		return tp_error(error, r, "fusermount3 gave no connection: %s", strerror(-r));
	*ret_fd = fd;
	return 0;
}

int fuse_mount_create(const char *mountpoint, bool read_only, bool allow_other,
		      struct fuse_mount **ret_mount, int *ret_fd, struct tp_error *error)
{
	TP_CLEANUP(fuse_mount_freep) struct fuse_mount *m = NULL;
	int r;

	r = check_mountpoint(mountpoint, error);
	if (r)
		return r;

	m = calloc(1, sizeof(*m));
	if (m)
		m->path = realpath(mountpoint, NULL);
	if (!m || !m->path)
		return tp_error(error, m ? -errno : -ENOMEM, "mount point '%s': %s", mountpoint,
				strerror(m ? errno : ENOMEM));

	m->by_helper = geteuid() != 0;
	r = m->by_helper ? mount_by_helper(m->path, read_only, allow_other, ret_fd, error)
			 : mount_directly(m->path, read_only, allow_other, ret_fd, error);
	if (r)
		return r;

	*ret_mount = tp_take(&m);
	return 0;
}

int fuse_mount_adopt(const char *path, bool by_helper, bool identified, uint64_t mount_id,
		     struct fuse_mount **ret_mount)
{
	struct fuse_mount *m = calloc(1, sizeof(*m));

	if (m)
		m->path = strdup(path);
	if (!m || !m->path) {
		fuse_mount_free(m);
		return -ENOMEM;
	}
	m->by_helper = by_helper;
	m->identified = identified;
	m->mount_id = mount_id;
	*ret_mount = m;
	return 0;
}

void fuse_mount_tell(const struct fuse_mount *m, bool *ret_by_helper, bool *ret_identified,
		     uint64_t *ret_mount_id)
{
	*ret_by_helper = m->by_helper;
	*ret_identified = m->identified;
	*ret_mount_id = m->mount_id;
}

void fuse_mount_identify(struct fuse_mount *m)
{
	bool is_root = false;

	m->identified = !path_mount(m->path, &m->mount_id, &is_root) && is_root;
}

/* ------------------------------------------------------------------ unmount */

/* False only when it is known that something else, or nothing, is mounted there now. */
static bool still_there(const struct fuse_mount *m)
{
	uint64_t id = 0;
	bool is_root = false;

	if (!m->identified || path_mount(m->path, &id, &is_root))
		return true;
	return is_root && id == m->mount_id;
}

static int remove_by_helper(const struct fuse_mount *m, bool detach)
{
	char *lazy[] = { (char *)"fusermount3", (char *)"-u", (char *)"-q", (char *)"-z",
			 (char *)"--",          m->path,      NULL };
	char *plain[] = { (char *)"fusermount3", (char *)"-u", (char *)"-q",
			  (char *)"--",          m->path,      NULL };
	int r = run_helper(detach ? lazy : plain, environ);

	if (r <= 0)
		return r;
	return still_there(m) ? -EBUSY : 0; /* its exit status does not tell why */
}

int fuse_mount_remove(struct fuse_mount *m, bool detach)
{
	/* What is cached of the volumes may be written first. */
	tp_lock_may_wait(LC_completion);
	if (!still_there(m))
		return 0;
	if (m->by_helper)
		return remove_by_helper(m, detach);
	if (!umount2(m->path, UMOUNT_NOFOLLOW | (detach ? MNT_DETACH : 0)))
		return 0;
	/* EINVAL: not a mount point any more. */
	return errno == EINVAL || errno == ENOENT ? 0 : -errno;
}

struct fuse_mount *fuse_mount_free(struct fuse_mount *m)
{
	if (m)
		free(m->path);
	free(m);
	return NULL;
}

const char *fuse_mount_path(const struct fuse_mount *m)
{
	return m->path;
}
