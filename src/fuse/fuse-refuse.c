/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-refuse.c - a mount that nobody can serve answers EIO rather than hang
 *
 * What the dead daemon had taken is failed too: the kernel sends it again or, where it cannot, it
 * is in the state of the mount.
 */
#include "fuse/fuse-refuse.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <unistd.h>

#include "fuse/fuse-internal.h"
#include "util/cleanup.h"
#include "util/clock.h"

struct fuse_refusal {
	int fd;
	struct fuse_state *state;
	struct fuse_mount *mount;
	char *buffer; /* for any request */
};

static void refusal_freep(struct fuse_refusal **refusal)
{
	*refusal = fuse_refuse_end(*refusal);
}

/* The kernel does not mind an answer to what it does not wait for (any more). */
static void fail(const struct fuse_refusal *refusal, uint64_t unique)
{
	struct fuse_out_header out = { .len = sizeof(out), .error = -EIO, .unique = unique };
	ssize_t n = write(refusal->fd, &out, sizeof(out));

	(void)n;
}

static void fail_taken(void *ctx, struct fuse_in_header *in)
{
	fail(ctx, in->unique);
	in->unique = 0;
}

static struct fuse_state *open_state(int state_fd)
{
	struct fuse_state *state;
	int fd = fcntl(state_fd, F_DUPFD_CLOEXEC, 3);

	return fd < 0 || fuse_state_open(fd, &state, NULL) ? NULL : state;
}

bool fuse_refuse_is_due(int state_fd, unsigned limit, uint64_t window_usec)
{
	struct fuse_state *state = open_state(state_fd);
	uint64_t now = time_monotonic_usec();
	struct fuse_state_mount *m;
	bool is_due = false;

	if (!state)
		return false; /* whoever wants to use it says why */
	m = fuse_state_mount(state);
	if (m->is_expected) {
		m->is_expected = false;
	} else {
		m->starts_usec[m->nr_starts++ % FUSE_STATE_STARTS] = now;
		is_due = limit <= FUSE_STATE_STARTS && m->nr_starts >= limit &&
			 now - m->starts_usec[(m->nr_starts - limit) % FUSE_STATE_STARTS] <
				 window_usec;
	}
	fuse_state_close(state);
	return is_due;
}

void fuse_refuse_expect(int state_fd)
{
	struct fuse_state *state = open_state(state_fd);

	if (!state)
		return;
	fuse_state_mount(state)->nr_starts = 0;
	fuse_state_mount(state)->is_expected = true;
	fuse_state_close(state);
}

int fuse_refuse_begin(int connection_fd, int state_fd, struct fuse_refusal **ret_refusal)
{
	TP_CLEANUP(refusal_freep) struct fuse_refusal *refusal = calloc(1, sizeof(*refusal));
	const struct fuse_state_mount *m;
	int r;

	if (!refusal)
		return -ENOMEM;
	refusal->fd = connection_fd;
	refusal->buffer = malloc(FUSE_WRITE_HEADER + FUSE_MAX_WRITE);
	refusal->state = open_state(state_fd);
	if (!refusal->buffer || !refusal->state)
		return refusal->buffer ? -EPROTO : -ENOMEM;
	m = fuse_state_mount(refusal->state);
	r = fuse_mount_adopt(m->path, m->by_helper, m->identified, m->mount_id, &refusal->mount);
	if (!r && fcntl(connection_fd, F_SETFL, O_NONBLOCK) < 0)
		r = -errno;
	if (r)
		return r;
	fuse_ask_to_resend(connection_fd);
	fuse_state_for_each_taken(refusal->state, fail_taken, refusal);
	*ret_refusal = tp_take(&refusal);
	return 0;
}

int fuse_refuse_some(struct fuse_refusal *refusal)
{
	const struct fuse_in_header *in = (const void *)refusal->buffer;

	for (;;) {
		ssize_t n = read(refusal->fd, refusal->buffer, FUSE_WRITE_HEADER + FUSE_MAX_WRITE);

		if (n < 0 && errno == EAGAIN)
			return 0;
		if (n < 0 && (errno == EINTR || errno == ENOENT))
			continue;
		if (n < 0)
			return -ENODEV;
		fail(refusal, in->unique);
	}
}

int fuse_refuse_unmount(struct fuse_refusal *refusal)
{
	return fuse_mount_remove(refusal->mount, true);
}

struct fuse_refusal *fuse_refuse_end(struct fuse_refusal *refusal)
{
	if (!refusal)
		return NULL;
	fuse_state_close(refusal->state);
	fuse_mount_free(refusal->mount);
	free(refusal->buffer);
	free(refusal);
	return NULL;
}
