/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * redo.h - the redo area: what was acknowledged since the last commit, in memory that outlives us
 *
 * A disk with a volatile cache loses that cache with its power; here, power is the machine's.  When
 * only the daemon dies, the kernel goes on believing in every write it was told of, and the
 * data of those writes lies on the data device; what died with the daemon is the open transaction
 * that says where.  So each change of a mapping or a size is appended here, in shared memory,
 * before anybody can be told of it; the next daemon makes the changes again (redo-replay.c).
 *
 * The area has two halves.  One half holds the records of the open transaction and a copy of the
 * superblock that they build on.  A commit begins the other half, with the superblock that it is
 * about to write, just before it writes it.  So at each moment the superblock on the device says
 * which half counts, and what a commit made durable is never done again.
 *
 * Nothing in the area is trusted: headers, counts and records have checksums, and a record is only
 * good in the half, and at the place, that it was written for.
 *
 * Layer:    pool, private to it; this half of it knows nothing of pools.
 * Threads:  one at a time: who opens the pool, then the worker.
 * Errors:   0 or a negative errno.
 */
#ifndef TP_POOL_REDO_H
#define TP_POOL_REDO_H

#include <stdbool.h>
#include <stdint.h>

#include "thin/thin-metadata.h"
#include "thinpoold/types.h"
#include "util/compiler.h"

struct redo;

/* A new area has so many bytes: two halves of 130,000 records, a second of the fastest writers. */
#define REDO_BYTES (UINT64_C(8) << 20)

enum redo_type {
	REDO_INSERT = 1, /* vblock, nr, dblock: mapped to nr data blocks that follow each other */
	REDO_UNMAP,      /* vblock, nr */
	REDO_SIZE,       /* bytes: the volume has at least so many */
	REDO_LOST,       /* acknowledged writes to the volume were lost: who flushes is told */
};

struct redo_record {
	enum redo_type type;
	thin_id_t volume;
	vblock_t vblock;
	union {
		uint64_t nr;
		uint64_t bytes;
	};
	dblock_t dblock;
};

/* Who may use the records: the same boot, the same two devices. */
struct redo_owner {
	char boot_id[40];
	uint64_t devices[6];
};

void redo_find_owner(struct redo_owner *ret_owner, const char *metadata_path,
		     const char *data_path);

/*
 * Map the area in @fd, which is borrowed for the call.  An empty file becomes REDO_BYTES large.
 *   -EINVAL  too small to be one
 *   -ENOSPC, -ENOMEM  no memory for it
 */
int redo_open(int fd, const struct redo_owner *owner, struct redo **ret_redo) TP_MUST_CHECK;
/* The area itself stays as it is.  NULL is allowed.  Returns NULL. */
struct redo *redo_close(struct redo *redo);

enum redo_finding {
	REDO_BLANK,   /* never used, or cleared */
	REDO_ALIEN,   /* of another boot or pool: nobody here waits for it */
	REDO_OLD,     /* builds on another state, but says nothing */
	REDO_GOOD,    /* *ret_nr records (maybe none) that build on @state */
	REDO_DAMAGED, /* ... which cannot be read */
	REDO_ORPHAN,  /* has records, but the pool was changed by somebody else since */
};

/* What is in the area, for a pool whose committed state (thin_metadata_get_state()) is @state? */
enum redo_finding redo_look(struct redo *redo, const void *state, uint64_t *ret_nr);

/* Record @i of those that redo_look() found.  -EUCLEAN: it is not what it was. */
int redo_get(const struct redo *redo, uint64_t i, struct redo_record *ret_record) TP_MUST_CHECK;

/* Begin the other half: records from now on build on @state.  The present half stays until then. */
void redo_begin(struct redo *redo, const void *state);
/* There is nothing to be done again, now or ever. */
void redo_clear(struct redo *redo);

bool redo_has_room(const struct redo *redo);
/*
 * Who cares commits when there is no room: without it the half is spoilt, so that whoever needs it
 * finds out that something is missing (REDO_DAMAGED).
 */
void redo_append(struct redo *redo, const struct redo_record *record);
void redo_spoil(struct redo *redo);

#endif
