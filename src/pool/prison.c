/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * prison.c - shared and exclusive cells over blocks of volumes
 *
 * The blocks of an owner are cut into zones, and each (owner, zone) hashes to a bucket; a
 * cell lies within one zone, so two cells that overlap are always in one bucket.  A bucket
 * has a short list of the cells that are held and a queue of those that wait.
 *
 * Invariants:
 *   P1  Two held cells of one owner that overlap are both shared.
 *   P2  A waiting cell overlaps a held cell or an earlier waiting one that it conflicts with.
 *       So nobody is overtaken for ever, and a release never leaves a cell behind that
 *       could be held.
 *   P3  nr_exclusive counts the exclusive cells of both lists: while it is 0 a shared cell
 *       is taken without looking at the lists.
 *
 * Locks: LC_prison, one mutex a bucket; never two at once.
 */
#include "pool/prison.h"

#include <errno.h>
#include <stdlib.h>

#define NR_BUCKETS 512 /* several times the requests in flight */

TAILQ_HEAD(cell_list, cell);

struct bucket {
	struct tp_lock lock; /* LC_prison */
	unsigned nr_exclusive TP_GUARDED_BY(lc_prison);
	struct cell_list held TP_GUARDED_BY(lc_prison);
	struct cell_list waiting TP_GUARDED_BY(lc_prison);
} __attribute__((aligned(64)));

struct prison {
	unsigned zone_shift;
	struct bucket buckets[NR_BUCKETS];
};

TP_NO_TSA int prison_create(uint64_t zone_blocks, struct prison **ret_prison)
{
	struct prison *p = aligned_alloc(64, sizeof(*p));

	TP_INVARIANT(zone_blocks && !(zone_blocks & (zone_blocks - 1)));
	if (!p)
		return -ENOMEM;
	p->zone_shift = __builtin_ctzll(zone_blocks);
	for (unsigned i = 0; i < NR_BUCKETS; i++) {
		struct bucket *b = &p->buckets[i];

		tp_lock_init(&b->lock, LC_prison, LOCK_KIND_MUTEX);
		b->nr_exclusive = 0;
		TAILQ_INIT(&b->held);
		TAILQ_INIT(&b->waiting);
	}
	*ret_prison = p;
	return 0;
}

TP_NO_TSA struct prison *prison_destroy(struct prison *p)
{
	if (!p)
		return NULL;
	for (unsigned i = 0; i < NR_BUCKETS; i++) {
		TP_INVARIANT(TAILQ_EMPTY(&p->buckets[i].held));
		TP_INVARIANT(TAILQ_EMPTY(&p->buckets[i].waiting));
		tp_lock_destroy(&p->buckets[i].lock);
	}
	free(p);
	return NULL;
}

static struct bucket *bucket_of(struct prison *p, const struct cell *cell)
{
	uint64_t key = (uintptr_t)cell->owner / 64 + (cell->begin >> p->zone_shift);

	TP_INVARIANT(cell->begin < cell->end);
	TP_INVARIANT(cell->begin >> p->zone_shift == (cell->end - 1) >> p->zone_shift);
	key *= UINT64_C(0x9e3779b97f4a7c15);
	return &p->buckets[key >> 55];
}

_Static_assert(NR_BUCKETS == 1 << (64 - 55), "bucket_of() takes the hash's upper bits");

static bool conflicts(const struct cell *a, const struct cell *b)
{
	return (a->exclusive || b->exclusive) && a->owner == b->owner && a->begin < b->end &&
	       b->begin < a->end;
}

/* Does @cell conflict with a held cell, or with one that waits before it (all of them if it does
 * not wait)? */
static bool must_wait(const struct bucket *b, const struct cell *cell) TP_REQUIRES(lc_prison)
{
	const struct cell *other;

	TAILQ_FOREACH(other, &b->held, link)
		if (conflicts(other, cell))
			return true;
	TAILQ_FOREACH(other, &b->waiting, link) {
		if (other == cell)
			return false;
		if (conflicts(other, cell))
			return true;
	}
	return false;
}

/* Hold all cells that nothing stands in the way of any more. */
static struct cell *grant(struct bucket *b) TP_REQUIRES(lc_prison)
{
	struct cell *cell, *next, *first = NULL, **tail = &first;

	for (cell = TAILQ_FIRST(&b->waiting); cell; cell = next) {
		next = TAILQ_NEXT(cell, link);
		if (must_wait(b, cell))
			continue;
		TAILQ_REMOVE(&b->waiting, cell, link);
		TAILQ_INSERT_HEAD(&b->held, cell, link);
		cell->held = true;
		cell->next_granted = NULL;
		*tail = cell;
		tail = &cell->next_granted;
	}
	return first;
}

bool prison_acquire(struct prison *p, struct cell *cell)
{
	struct bucket *b = bucket_of(p, cell);
	bool held;

	cell->next_granted = NULL;
	lock_prison(&b->lock);
	held = (!cell->exclusive && !b->nr_exclusive) || !must_wait(b, cell);
	cell->held = held;
	b->nr_exclusive += cell->exclusive;
	if (held)
		TAILQ_INSERT_HEAD(&b->held, cell, link);
	else
		TAILQ_INSERT_TAIL(&b->waiting, cell, link);
	unlock_prison(&b->lock);
	return held;
}

struct cell *prison_release(struct prison *p, struct cell *cell)
{
	struct bucket *b = bucket_of(p, cell);
	struct cell *granted = NULL;

	lock_prison(&b->lock);
	TP_INVARIANT(cell->held);
	cell->held = false;
	TAILQ_REMOVE(&b->held, cell, link);
	b->nr_exclusive -= cell->exclusive;
	if (!TAILQ_EMPTY(&b->waiting))
		granted = grant(b);
	unlock_prison(&b->lock);
	return granted;
}

struct cell *prison_shrink(struct prison *p, struct cell *cell, uint64_t end)
{
	struct bucket *b = bucket_of(p, cell);
	struct cell *granted = NULL;

	lock_prison(&b->lock);
	TP_INVARIANT(cell->held && end > cell->begin && end <= cell->end);
	cell->end = end;
	if (!TAILQ_EMPTY(&b->waiting))
		granted = grant(b);
	unlock_prison(&b->lock);
	return granted;
}
