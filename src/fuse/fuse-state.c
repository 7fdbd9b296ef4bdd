/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-state.c - what of a mount outlives the daemon that serves it
 *
 * A file in memory, sparse: what is not used takes no room.
 *
 * Handles.  A volume that is unlinked while open must stay until it is closed, whoever serves it by
 * then, so every open handle is an entry here.  It is made before the open is answered, and cleared
 * before the release is.  Killed before the answer: the open comes again under the same number, and
 * finds its entry.  Killed after it was cleared: the release comes again, and finds none.  An open
 * whose caller was killed before it came again leaves its entry behind: its volume counts as open
 * until the mount ends, which loses nothing.
 *
 * Changes.  Begun is entered before the pool is asked, done when the outcome is known (and on
 * disk).  What was only begun has to be judged by what the names lead to now: see fuse-again.c.
 *
 * Invariants
 *   T1  entries [nr_handles, STATE_HANDLES) were never used; a free one below that stands once on
 *       the stack of free ones.
 *   T2  the file is sealed against shrinking, so nobody's access can fail.
 *   T3  nothing here is trusted: numbers are checked against the table and the pool when used.
 */
#include "fuse/fuse-state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuse/fuse-internal.h"
#include "util/cleanup.h"

#define STATE_MAGIC UINT64_C(0x32657461745370dd) /* its last digit but one: the layout */
#define STATE_HANDLES (1u << 18)
#define STATE_CHANGES 64u
#define HANDLE_INDEX_SHIFT FUSE_HANDLE_ID_BITS
#define HANDLE_INDEX_BITS 20
#define HANDLE_COOKIE_SHIFT (HANDLE_INDEX_SHIFT + HANDLE_INDEX_BITS)
#define HANDLE_COOKIES (1u << (64 - HANDLE_COOKIE_SHIFT))
_Static_assert(STATE_HANDLES <= 1u << HANDLE_INDEX_BITS, "an index fits into a handle");
_Static_assert(THIN_ID_MAX < 1u << FUSE_HANDLE_ID_BITS, "a thin id fits into a handle");

struct area {
	uint64_t magic, bytes;
	uint32_t nr_handles, last_cookie, last_change;
	struct fuse_state_mount mount;
	struct fuse_change changes[STATE_CHANGES];
	struct fuse_state_handle handles[STATE_HANDLES];
	struct fuse_in_header taken[FUSE_WORKERS_MAX * FUSE_SLOTS_PER_WORKER];
};

struct fuse_state {
	int fd;
	struct area *area;
	struct tp_lock lock; /* LC_fuse, a mutex: the handles and changes that are free */
	uint32_t *free;      /* indices; a stack */
	uint32_t nr_free;
};

/* --------------------------------------------------------------------- life */

static void closep(struct fuse_state **state)
{
	*state = fuse_state_close(*state);
}

static int map_area(int fd, struct fuse_state **ret_state)
{
	struct fuse_state *state = calloc(1, sizeof(*state));
	void *p;

	if (!state) {
		close(fd);
		return -ENOMEM;
	}
	state->fd = fd;
	tp_lock_init(&state->lock, LC_fuse, LOCK_KIND_MUTEX);
	state->free = calloc(STATE_HANDLES, sizeof(*state->free));
	p = mmap(NULL, sizeof(struct area), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	state->area = p == MAP_FAILED ? NULL : p;
	if (!state->free || !state->area) {
		fuse_state_close(state);
		return -ENOMEM;
	}
	*ret_state = state;
	return 0;
}

int fuse_state_create(struct fuse_state **ret_state)
{
	int fd = memfd_create("thinpoold-mount", MFD_CLOEXEC | MFD_ALLOW_SEALING), r;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, sizeof(struct area)) ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)) {
		r = -errno;
		close(fd);
		return r;
	}
	r = map_area(fd, ret_state);
	if (r)
		return r;
	(*ret_state)->area->bytes = sizeof(struct area);
	(*ret_state)->area->magic = STATE_MAGIC;
	return 0;
}

static void collect_free_handles(struct fuse_state *state)
{
	struct area *a = state->area;

	a->nr_handles = MIN(a->nr_handles, STATE_HANDLES);
	for (uint32_t i = a->nr_handles; i-- > 0;)
		if (!atomic_load(&a->handles[i].fh))
			state->free[state->nr_free++] = i;
}

int fuse_state_open(int fd, struct fuse_state **ret_state, struct tp_error *error)
{
	TP_CLEANUP(closep) struct fuse_state *state = NULL;
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;
	int r;

	if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(fd, &st) ||
	    st.st_size != sizeof(struct area)) {
		close(fd);
		return tp_error(error, -EPROTO,
				"the state of the mount is not of this version of "
				"thinpoold: umount, and start it anew");
	}
	r = map_area(fd, &state);
	if (r)
		return tp_error(error, r, "the state of the mount: %s", strerror(-r));
	if (state->area->magic != STATE_MAGIC || state->area->bytes != sizeof(struct area))
		return tp_error(error, -EPROTO,
				"the state of the mount is not of this version of "
				"thinpoold: umount, and start it anew");
	state->area->mount.path[sizeof(state->area->mount.path) - 1] = '\0';
	state->area->mount.socket_path[sizeof(state->area->mount.socket_path) - 1] = '\0';
	collect_free_handles(state);
	*ret_state = tp_take(&state);
	return 0;
}

struct fuse_state *fuse_state_close(struct fuse_state *state)
{
	if (!state)
		return NULL;
	if (state->area)
		munmap(state->area, sizeof(struct area));
	close(state->fd);
	free(state->free);
	tp_lock_destroy(&state->lock);
	free(state);
	return NULL;
}

int fuse_state_fd(const struct fuse_state *state)
{
	return state->fd;
}

struct fuse_state_mount *fuse_state_mount(struct fuse_state *state)
{
	return &state->area->mount;
}

/* ------------------------------------------------------------------ handles */

static uint32_t index_of(uint64_t fh)
{
	return (uint32_t)(fh >> HANDLE_INDEX_SHIFT) & ((1u << HANDLE_INDEX_BITS) - 1);
}

TP_REQUIRES(lc_fuse)
static struct fuse_state_handle *find_handle_locked(struct area *a, uint64_t unique)
{
	for (uint32_t i = 0; i < a->nr_handles; i++)
		if (atomic_load(&a->handles[i].fh) && a->handles[i].unique == unique)
			return &a->handles[i];
	return NULL;
}

TP_REQUIRES(lc_fuse)
static int new_handle_locked(struct fuse_state *state, const struct fuse_state_handle *wanted,
			     thin_id_t id, uint64_t *ret_fh)
{
	struct area *a = state->area;
	struct fuse_state_handle *h;
	uint32_t i;

	if (!state->nr_free && a->nr_handles == STATE_HANDLES)
		return -ENFILE;
	i = state->nr_free ? state->free[--state->nr_free] : a->nr_handles++;
	h = &a->handles[i];
	a->last_cookie = (a->last_cookie + 1) % HANDLE_COOKIES;
	if (!a->last_cookie)
		a->last_cookie = 1; /* no handle is 0 */
	h->unique = wanted->unique & ~FUSE_RESENT;
	h->generation = wanted->generation;
	h->pool_handle = wanted->pool_handle;
	*ret_fh = (uint64_t)a->last_cookie << HANDLE_COOKIE_SHIFT |
		  (uint64_t)i << HANDLE_INDEX_SHIFT | id;
	atomic_store(&h->fh, *ret_fh);
	return 0;
}

int fuse_state_open_handle(struct fuse_state *state, const struct fuse_state_handle *wanted,
			   thin_id_t id, uint64_t *ret_fh, bool *ret_is_old)
{
	struct fuse_state_handle *h = NULL;
	int r = 0;

	lock_fuse(&state->lock);
	if (wanted->unique & FUSE_RESENT)
		h = find_handle_locked(state->area, wanted->unique & ~FUSE_RESENT);
	*ret_is_old = h;
	if (h)
		*ret_fh = atomic_load(&h->fh);
	else
		r = new_handle_locked(state, wanted, id, ret_fh);
	unlock_fuse(&state->lock);
	return r;
}

uint32_t fuse_state_pool_handle(const struct fuse_state *state, uint64_t fh)
{
	uint32_t i = index_of(fh);
	const struct fuse_state_handle *h;

	if (i >= STATE_HANDLES)
		return POOL_NO_HANDLE;
	h = &state->area->handles[i];
	/* Whoever uses a handle keeps it open. */
	return atomic_load_explicit(&h->fh, memory_order_acquire) == fh ? h->pool_handle
									: POOL_NO_HANDLE;
}

bool fuse_state_close_handle(struct fuse_state *state, uint64_t fh)
{
	uint32_t i = index_of(fh);
	bool is_open = false;

	lock_fuse(&state->lock);
	if (fh && i < state->area->nr_handles && atomic_load(&state->area->handles[i].fh) == fh) {
		is_open = true;
		atomic_store(&state->area->handles[i].fh, 0);
		state->free[state->nr_free++] = i;
	}
	unlock_fuse(&state->lock);
	return is_open;
}

void fuse_state_drop_handles_of(struct fuse_state *state, uint64_t unique)
{
	struct fuse_state_handle *h;
	uint64_t fh;

	lock_fuse(&state->lock);
	h = find_handle_locked(state->area, unique & ~FUSE_RESENT);
	fh = h ? atomic_load(&h->fh) : 0;
	unlock_fuse(&state->lock);
	(void)fuse_state_close_handle(state, fh);
}

struct fuse_state_handle *fuse_state_next_handle(struct fuse_state *state, uint32_t *index)
{
	struct area *a = state->area;

	while (*index < a->nr_handles) {
		struct fuse_state_handle *h = &a->handles[(*index)++];

		if (atomic_load(&h->fh))
			return h;
	}
	return NULL;
}

/* ------------------------------------------------------------------ changes */

TP_REQUIRES(lc_fuse)
static struct fuse_change *find_change_locked(struct area *a, uint64_t unique)
{
	for (unsigned i = 0; i < STATE_CHANGES; i++)
		if (atomic_load(&a->changes[i].state) != FUSE_CHANGE_FREE &&
		    a->changes[i].unique == unique)
			return &a->changes[i];
	return NULL;
}

struct fuse_change *fuse_state_begin_change(struct fuse_state *state, uint64_t unique,
					    thin_id_t source, thin_id_t target)
{
	struct area *a = state->area;
	struct fuse_change *c;

	/* The oldest one's place: nothing lasts as long as so many others. */
	lock_fuse(&state->lock);
	c = find_change_locked(a, unique & ~FUSE_RESENT);
	if (!c) {
		a->last_change = (a->last_change + 1) % STATE_CHANGES;
		c = &a->changes[a->last_change];
	}
	atomic_store(&c->state, FUSE_CHANGE_FREE);
	c->unique = unique & ~FUSE_RESENT;
	c->source = source;
	c->target = target;
	atomic_store(&c->state, FUSE_CHANGE_BEGUN);
	unlock_fuse(&state->lock);
	return c;
}

void fuse_change_done(struct fuse_change *change, int result, thin_id_t id)
{
	change->result = result;
	change->id = id;
	atomic_store(&change->state, FUSE_CHANGE_DONE);
}

struct fuse_change *fuse_state_find_change(struct fuse_state *state, uint64_t unique)
{
	struct fuse_change *found;

	lock_fuse(&state->lock);
	found = find_change_locked(state->area, unique & ~FUSE_RESENT);
	unlock_fuse(&state->lock);
	return found;
}

/* ----------------------------------------------------------- requests taken */

struct fuse_in_header *fuse_state_taken(struct fuse_state *state, unsigned worker, unsigned slot)
{
	return &state->area->taken[worker * FUSE_SLOTS_PER_WORKER + slot];
}

void fuse_state_for_each_taken(struct fuse_state *state,
			       void (*fn)(void *ctx, struct fuse_in_header *header), void *ctx)
{
	for (size_t i = 0; i < ARRAY_SIZE(state->area->taken); i++)
		if (state->area->taken[i].unique)
			fn(ctx, &state->area->taken[i]);
}
