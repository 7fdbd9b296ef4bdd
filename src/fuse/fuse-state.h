/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-state.h - what of a mount outlives the daemon that serves it
 *
 * Memory that is passed from one daemon to the next beside the connection: the INIT that the
 * kernel sent once and the answer it got, the open handles, the changes of names under way, and,
 * for kernels that cannot send a request twice, the requests taken.  Nothing of it is on disk: it
 * ends with the mount.
 *
 * The daemon may be killed between any two instructions, so whatever is entered becomes valid by
 * one store, its last.
 *
 * Layer:    fuse; private to it.
 * Threads:  any, except where noted.
 * Errors:   0 or a negative errno.
 */
#ifndef TP_FUSE_FUSE_STATE_H
#define TP_FUSE_FUSE_STATE_H

#include <linux/fuse.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "fuse/fuse-session.h"
#include "thinpoold/types.h"
#include "util/compiler.h"
#include "util/error.h"
#include "util/lock-class.h"

struct fuse_state;

/* A request that the kernel sends again says so in its number. */
#define FUSE_RESENT (UINT64_C(1) << 63)

/* ---- life ---- */

int fuse_state_create(struct fuse_state **ret_state) TP_MUST_CHECK;
/* That of an earlier daemon; @fd is taken in any case. */
int fuse_state_open(int fd, struct fuse_state **ret_state, struct tp_error *error) TP_MUST_CHECK;
/* NULL is allowed.  Returns NULL. */
struct fuse_state *fuse_state_close(struct fuse_state *state);
int fuse_state_fd(const struct fuse_state *state);

/* ---- the mount; only while it is started or handed over ---- */

#define FUSE_STATE_INIT_MAX 256
#define FUSE_STATE_STARTS 64u

struct fuse_state_mount {
	uint64_t mount_id;
	uint8_t by_helper, identified;
	uint8_t request[FUSE_STATE_INIT_MAX], answer[FUSE_STATE_INIT_MAX]; /* INIT, whole */
	uint32_t request_bytes, answer_bytes;                              /* 0: not yet */
	char path[4096];       /* of the mount point, absolute, without links */
	char socket_path[128]; /* of the last daemon */
	uint32_t nr_restarts;  /* daemons that took the mount over */
	uint64_t stopped_usec; /* monotonic: service was handed over; 0: it broke off */
	uint64_t last_pause_usec;
	/* When daemons went on after one that died: a ring.  See fuse_refuse_is_due(). */
	uint64_t starts_usec[FUSE_STATE_STARTS];
	uint32_t nr_starts;
	uint8_t is_expected; /* the next one: the mount was handed over */
};
struct fuse_state_mount *fuse_state_mount(struct fuse_state *state);

/* ---- open handles ---- */

/* A handle's number: thin id, place in the table, and a cookie that tells its users apart. */
#define FUSE_HANDLE_ID_BITS 24
static inline thin_id_t fuse_handle_id(uint64_t fh)
{
	return (thin_id_t)(fh & ((1u << FUSE_HANDLE_ID_BITS) - 1));
}

struct fuse_state_handle {
	_Atomic uint64_t fh;  /* 0: free.  Written last */
	uint64_t unique;      /* of the open */
	uint32_t generation;  /* of the volume */
	uint32_t pool_handle; /* see volume_handle(); each daemon's pool has its own numbers */
};
/*
 * A new handle for the open request @wanted->unique, or the one that an earlier daemon made for it:
 * then
 * *@ret_is_old.  It holds from now on, whether its answer arrives or not: a request that is not
 * answered comes again.  -ENFILE.
 */
int fuse_state_open_handle(struct fuse_state *state, const struct fuse_state_handle *wanted,
			   thin_id_t id, uint64_t *ret_fh, bool *ret_is_old)
	TP_TAKES(fuse) TP_MUST_CHECK;
/* False: it is closed already. */
bool fuse_state_close_handle(struct fuse_state *state, uint64_t fh) TP_TAKES(fuse);
/* POOL_NO_HANDLE: it is not open. */
uint32_t fuse_state_pool_handle(const struct fuse_state *state, uint64_t fh);
/* Those whose open request was @unique: it will never be answered. */
void fuse_state_drop_handles_of(struct fuse_state *state, uint64_t unique) TP_TAKES(fuse);

/* The used entry at or after *@index, which is moved behind it.  NULL: none.  One thread only. */
struct fuse_state_handle *fuse_state_next_handle(struct fuse_state *state, uint32_t *index);

/* ---- changes of names ---- */

#define FUSE_NO_VOLUME UINT32_MAX

enum fuse_change_state { FUSE_CHANGE_FREE, FUSE_CHANGE_BEGUN, FUSE_CHANGE_DONE };

/*
 * A request that must not be carried out twice.  The kernel has one of them at a time, since they
 * change the same directory; the table has room for what that cannot promise.
 */
struct fuse_change {
	_Atomic uint32_t state; /* enum fuse_change_state, written last */
	int32_t result;         /* DONE: what to answer */
	uint64_t unique;
	thin_id_t id;             /* DONE: of the new volume */
	thin_id_t source, target; /* before: what the names led to, or FUSE_NO_VOLUME */
};

struct fuse_change *fuse_state_begin_change(struct fuse_state *state, uint64_t unique,
					    thin_id_t source, thin_id_t target) TP_TAKES(fuse);
void fuse_change_done(struct fuse_change *change, int result, thin_id_t id);
/* What is known of a request that comes again.  NULL: nothing. */
struct fuse_change *fuse_state_find_change(struct fuse_state *state, uint64_t unique)
	TP_TAKES(fuse);

/* ---- requests taken, for kernels that do not send them again ---- */

/* Where the header of request @slot of @worker is to be read to; zeroed when it is answered. */
struct fuse_in_header *fuse_state_taken(struct fuse_state *state, unsigned worker, unsigned slot);
/* Each one left: for who took over.  One thread only. */
void fuse_state_for_each_taken(struct fuse_state *state,
			       void (*fn)(void *ctx, struct fuse_in_header *header), void *ctx);

#endif
