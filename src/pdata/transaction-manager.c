/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * transaction-manager.c - copy-on-write of metadata blocks, and the two-phase commit
 *
 * Owns the shadow set: the locations allocated since the last commit, as new blocks or
 * as copies.  Only those may be written, because nothing on disk leads to them yet (L1).
 *
 * Invariants
 *   1  a location in the set was allocated by this transaction (it may have been freed
 *      again since; then only this transaction can have allocated it anew);
 *   2  a location missing from the set costs a needless copy and nothing else, so
 *      memory that cannot be had while recording one is no error;
 *   3  a shadow with more than one reference is copied like a committed block: the
 *      other owner must not see the change.
 *
 * Locks: none.  The set is used by the one mutator only, who holds meta_root exclusively;
 *        readers never look at it.
 */
#include "pdata/transaction-manager.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "util/log.h"

#define LOG_MODULE "transaction-manager"

/* ---- the set of shadows: open addressing, at most half full; block 0 is never one ---- */

#define NO_BLOCK UINT64_C(0)
#define SET_MIN_BITS 8 /* 2 KiB: kept between transactions */
#define SET_KEEP_BITS 16

struct block_set {
	mblock_t *slots; /* 2^bits, NO_BLOCK where empty; NULL: none yet */
	unsigned bits;
	size_t nr;
};

static size_t set_capacity(const struct block_set *set)
{
	return set->slots ? (size_t)1 << set->bits : 0;
}

/* Slot of @b, or the empty slot where it belongs. */
static size_t set_slot(const struct block_set *set, mblock_t b)
{
	size_t mask = set_capacity(set) - 1;
	size_t i = (b * UINT64_C(0x9e3779b97f4a7c15)) >> (64 - set->bits);

	while (set->slots[i] != b && set->slots[i] != NO_BLOCK)
		i = (i + 1) & mask;
	return i;
}

static bool set_contains(const struct block_set *set, mblock_t b)
{
	return set->nr && b != NO_BLOCK && set->slots[set_slot(set, b)] == b;
}

static bool set_grow(struct block_set *set)
{
	struct block_set bigger = { .bits = set->slots ? set->bits + 1 : SET_MIN_BITS };

	bigger.slots = calloc((size_t)1 << bigger.bits, sizeof(*bigger.slots));
	if (!bigger.slots)
		return false;
	for (size_t i = 0; i < set_capacity(set); i++)
		if (set->slots[i] != NO_BLOCK)
			bigger.slots[set_slot(&bigger, set->slots[i])] = set->slots[i];
	bigger.nr = set->nr;
	free(set->slots);
	*set = bigger;
	return true;
}

static void set_add(struct block_set *set, mblock_t b)
{
	size_t i;

	if (2 * (set->nr + 1) > set_capacity(set) && !set_grow(set))
		return; /* invariant 2 */
	i = set_slot(set, b);
	if (set->slots[i] == NO_BLOCK) {
		set->slots[i] = b;
		set->nr++;
	}
}

static void set_clear(struct block_set *set)
{
	if (set->bits > SET_KEEP_BITS) {
		free(set->slots); /* one huge transaction need not cost memory for ever */
		*set = (struct block_set){ 0 };
	} else if (set->nr) {
		memset(set->slots, 0, set_capacity(set) * sizeof(*set->slots));
		set->nr = 0;
	}
}

/* ---- the manager ---- */

struct transaction_manager {
	struct block_manager *bm; /* borrowed */
	struct space_map *sm;     /* borrowed */
	struct block_set shadows;
};

int tm_create(struct block_manager *bm, struct space_map *sm, struct transaction_manager **ret_tm)
{
	struct transaction_manager *tm = calloc(1, sizeof(*tm));

	if (!tm)
		return -ENOMEM;
	tm->bm = bm;
	tm->sm = sm;
	*ret_tm = tm;
	return 0;
}

struct transaction_manager *tm_destroy(struct transaction_manager *tm)
{
	if (tm)
		free(tm->shadows.slots);
	free(tm);
	return NULL;
}

struct block_manager *tm_block_manager(struct transaction_manager *tm)
{
	return tm->bm;
}

/* ---- new blocks and copies ---- */

static int make_block(struct transaction_manager *tm, mblock_t b, const struct block_validator *v,
		      struct locked_block **ret_lb)
{
	int r = bm_write_lock_zero(tm->bm, b, v, ret_lb);

	if (!r)
		set_add(&tm->shadows, b);
	return r;
}

int tm_new_block(struct transaction_manager *tm, const struct block_validator *v,
		 struct locked_block **ret_lb)
{
	mblock_t b;
	int r;

	r = sm_new_block(tm->sm, &b);
	if (r)
		return r;
	return make_block(tm, b, v, ret_lb);
}

static int copy_block(struct transaction_manager *tm, mblock_t orig,
		      const struct block_validator *v, struct locked_block **ret_lb)
{
	struct locked_block *from, *to;
	mblock_t b;
	int r;

	r = sm_new_block(tm->sm, &b);
	if (r)
		return r;
	if (b == orig) {
		log_err_limited("block %" PRIu64 " (type: %s) is in use but counted as free; "
				"changing it fails",
				orig, v->name);
		return -EUCLEAN;
	}
	r = bm_read_lock(tm->bm, orig, v, &from);
	if (r)
		return r;
	r = make_block(tm, b, v, &to);
	if (r) {
		bm_unlock(from);
		return r;
	}
	memcpy(block_data_mut(to), block_data(from), METADATA_BLOCK_SIZE);
	bm_unlock(from);

	/*
	 * The original stays cached although its count may be 0 now: a space map goes on
	 * reading its committed bitmaps until the commit (L2), and an abort needs the rest.
	 */
	r = sm_dec_block(tm->sm, orig);
	if (r) {
		bm_unlock(to);
		return r;
	}
	*ret_lb = to;
	return 0;
}

int tm_shadow_block(struct transaction_manager *tm, mblock_t orig, const struct block_validator *v,
		    struct locked_block **ret_lb, bool *ret_inc)
{
	bool shared;
	int r;

	r = sm_count_is_more_than_one(tm->sm, orig, &shared);
	if (r)
		return r;
	if (!shared && set_contains(&tm->shadows, orig))
		r = bm_write_lock(tm->bm, orig, v, ret_lb);
	else
		r = copy_block(tm, orig, v, ret_lb);
	if (!r)
		*ret_inc = shared;
	return r;
}

int tm_read_lock(struct transaction_manager *tm, mblock_t b, const struct block_validator *v,
		 struct locked_block **ret_lb)
{
	return bm_read_lock(tm->bm, b, v, ret_lb);
}

int tm_read_try_lock(struct transaction_manager *tm, mblock_t b, const struct block_validator *v,
		     struct locked_block **ret_lb, mblock_t *ret_missing)
{
	int r = bm_read_try_lock(tm->bm, b, v, ret_lb);

	if (r == -EWOULDBLOCK)
		*ret_missing = b;
	return r;
}

void tm_unlock(struct transaction_manager *tm, struct locked_block *lb)
{
	(void)tm;
	bm_unlock(lb);
}

/* ---- counts ---- */

int tm_inc(struct transaction_manager *tm, mblock_t b)
{
	return sm_inc_block(tm->sm, b);
}

int tm_inc_range(struct transaction_manager *tm, mblock_t begin, mblock_t end)
{
	return sm_inc_blocks(tm->sm, begin, end);
}

/*
 * The cached copy of a freed block is of no use: nothing refers to it, and if it was made
 * by this transaction it need not be written.  "Shared" may be a guess; then it just stays.
 */
int tm_dec(struct transaction_manager *tm, mblock_t b)
{
	bool shared;
	int r;

	r = sm_count_is_more_than_one(tm->sm, b, &shared);
	if (r)
		return r;
	r = sm_dec_block(tm->sm, b);
	if (r)
		return r;
	if (!shared)
		bm_forget(tm->bm, b);
	return 0;
}

int tm_ref(struct transaction_manager *tm, mblock_t b, uint32_t *ret_count)
{
	return sm_get_count(tm->sm, b, ret_count);
}

int tm_block_is_shared(struct transaction_manager *tm, mblock_t b, bool *ret_shared)
{
	return sm_count_is_more_than_one(tm->sm, b, ret_shared);
}

/* ---- commit ---- */

int tm_pre_commit(struct transaction_manager *tm)
{
	return sm_commit(tm->sm);
}

int tm_flush(struct transaction_manager *tm)
{
	return bm_flush(tm->bm);
}

void tm_end_transaction(struct transaction_manager *tm)
{
	set_clear(&tm->shadows);
}
