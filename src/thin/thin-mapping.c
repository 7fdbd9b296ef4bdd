/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-mapping.c - where the blocks of a device are
 *
 * Owns lookups, from the try form that every request takes to the walk over a whole device, and
 * the meaning of a mapping's 64 bits: data block << 24 | clock.
 *
 * The device's root is cached in its record, so that a lookup descends one tree, not two.
 *
 * What comes from disk is not trusted: a mapping to a block past the end of the data device is
 * damage (-EUCLEAN) for the request that meets it and never leads to I/O.
 *
 * Locks: meta_root shared; the try forms only try it.
 */
#include "thin/thin-internal.h"

#include <inttypes.h>

#include "io/device.h"
#include "util/log.h"

#define LOG_MODULE "thin-mapping"

/* One leaf's worth. */
#define MAX_RUN NODE_MAX_ENTRIES(sizeof(struct le64))

static int check_dblock(const struct thin_metadata *tmd, thin_id_t id, vblock_t vblock,
			dblock_t dblock) TP_REQUIRES_SHARED(lc_meta_root)
{
	if (likely(dblock < tmd->nr_data_blocks))
		return 0;
	log_err_limited("%s: block %" PRIu64 " of device %" PRIu32
			" is mapped to data block %" PRIu64 " of %" PRIu64 ", its I/O fails",
			io_device_name(tmd->dev), vblock, id, dblock, tmd->nr_data_blocks);
	return -EUCLEAN;
}

static bool is_shared(const struct thin_device *td, struct le64 value)
	TP_REQUIRES_SHARED(lc_meta_root)
{
	return td->snapshotted_time > mapping_time(value);
}

/* ---- lookups; with @ret_missing they do no I/O ---- */

static int find_one(struct thin_device *td, mblock_t root, vblock_t vblock,
		    struct thin_run *ret_run, mblock_t *ret_missing)
	TP_REQUIRES_SHARED(lc_meta_root) TP_TAKES(bufio)
{
	const struct btree_info *info = &td->tmd->device_info;
	struct le64 value;
	int r;

	r = ret_missing ? btree_try_lookup(info, root, &vblock, &value, ret_missing)
			: btree_lookup(info, root, &vblock, &value);
	if (r == -ENODATA) {
		*ret_run = (struct thin_run){ .nr_blocks = 1 };
		return 0;
	}
	if (!r)
		r = check_dblock(td->tmd, td->id, vblock, mapping_dblock(value));
	if (r)
		return r;
	*ret_run = (struct thin_run){
		.mapped = true,
		.shared = is_shared(td, value),
		.dblock = mapping_dblock(value),
		.nr_blocks = 1,
	};
	return 0;
}

/* How many of the entries from the first on make one run with it. */
static unsigned run_length(const struct thin_device *td, const uint64_t *keys,
			   const struct le64 *values, unsigned nr) TP_REQUIRES_SHARED(lc_meta_root)
{
	const dblock_t dblock = mapping_dblock(values[0]);
	const bool shared = is_shared(td, values[0]);
	unsigned n;

	for (n = 1; n < nr; n++)
		if (keys[n] != keys[0] + n || mapping_dblock(values[n]) != dblock + n ||
		    dblock + n >= td->tmd->nr_data_blocks || is_shared(td, values[n]) != shared)
			break;
	return n;
}

static int find_many(struct thin_device *td, mblock_t root, vblock_t vblock, uint64_t max_blocks,
		     struct thin_run *ret_run, mblock_t *ret_missing)
	TP_REQUIRES_SHARED(lc_meta_root) TP_TAKES(bufio)
{
	const uint64_t end = max_blocks > UINT64_MAX - vblock ? UINT64_MAX : vblock + max_blocks;
	const unsigned max = (unsigned)MIN(max_blocks, MAX_RUN);
	uint64_t keys[MAX_RUN], next;
	struct le64 values[MAX_RUN];
	struct btree_run run;
	mblock_t unused;
	int r;

	r = btree_lookup_run(&td->tmd->device_info, root, vblock, end, !ret_missing, max, keys,
			     values, &run, ret_missing ? ret_missing : &unused);
	if (r)
		return r;
	if (run.nr && keys[0] == vblock) {
		r = check_dblock(td->tmd, td->id, vblock, mapping_dblock(values[0]));
		if (r)
			return r;
		*ret_run = (struct thin_run){
			.mapped = true,
			.shared = is_shared(td, values[0]),
			.dblock = mapping_dblock(values[0]),
			.nr_blocks = run_length(td, keys, values, run.nr),
		};
		return 0;
	}
	next = run.nr ? keys[0] : run.next_key;
	if (next <= vblock)
		return -EUCLEAN;
	*ret_run = (struct thin_run){ .nr_blocks = MIN(next, end) - vblock };
	return 0;
}

static int find_run(struct thin_device *td, vblock_t vblock, uint64_t max_blocks,
		    struct thin_run *ret_run, mblock_t *ret_missing)
	TP_REQUIRES_SHARED(lc_meta_root) TP_TAKES(bufio)
{
	mblock_t root;
	int r;

	r = device_is_alive(td);
	if (!r)
		r = device_root(td->tmd, td, td->id, &root, ret_missing);
	if (r)
		return r;
	/* The last possible block cannot be the begin of a range with an end. */
	if (max_blocks <= 1 || vblock == UINT64_MAX)
		return find_one(td, root, vblock, ret_run, ret_missing);
	return find_many(td, root, vblock, max_blocks, ret_run, ret_missing);
}

int thin_find_run(struct thin_device *td, vblock_t vblock, uint64_t max_blocks,
		  struct thin_run *ret_run)
{
	int r;

	lock_meta_root_shared(&td->tmd->lock);
	r = find_run(td, vblock, max_blocks, ret_run, NULL);
	unlock_meta_root_shared(&td->tmd->lock);
	return r;
}

int thin_try_find_run(struct thin_device *td, vblock_t vblock, uint64_t max_blocks,
		      struct thin_run *ret_run, mblock_t *ret_missing)
{
	int r;

	*ret_missing = MBLOCK_NONE;
	if (!trylock_meta_root_shared(&td->tmd->lock))
		return -EWOULDBLOCK;
	r = find_run(td, vblock, max_blocks, ret_run, ret_missing);
	unlock_meta_root_shared(&td->tmd->lock);
	return r;
}

int thin_device_highest_mapped(struct thin_device *td, vblock_t *ret_vblock)
{
	struct thin_metadata *tmd = td->tmd;
	mblock_t root;
	int r;

	lock_meta_root_shared(&tmd->lock);
	r = device_is_alive(td);
	if (!r)
		r = device_root(tmd, td, td->id, &root, NULL);
	if (!r)
		r = btree_find_highest_key(&tmd->device_info, root, ret_vblock);
	unlock_meta_root_shared(&tmd->lock);
	return r;
}

/* ---- reading ahead for the try form ---- */

_Static_assert(sizeof(struct block_waiter) <= sizeof(((struct thin_waiter *)0)->opaque),
	       "a block_waiter lives in a thin_waiter's opaque part");

static void prefetch_done(struct block_waiter *bw, int r)
{
	struct thin_waiter *w = container_of((void *)bw, struct thin_waiter, opaque);

	w->result = r;
	w->done(w);
}

/* Under meta_root, because a read that began during a reset would survive it. */
int thin_metadata_prefetch(struct thin_metadata *tmd, mblock_t missing, struct thin_waiter *w)
{
	struct block_waiter *bw = (struct block_waiter *)w->opaque;
	int r;

	if (!trylock_meta_root_shared(&tmd->lock))
		return 0;
	bw->done = prefetch_done;
	r = tmd->fail_io ? -EINVAL : bm_read_async(tmd->bm, missing, bw);
	unlock_meta_root_shared(&tmd->lock);
	return r;
}

/* ---- the walk ---- */

struct walk {
	thin_id_t id;
	uint64_t from; /* the next key to look at */
	bool done;
	unsigned nr;
	uint64_t keys[MAX_RUN];
	struct le64 values[MAX_RUN];
};

/* One leaf. */
static int walk_leaf(struct thin_metadata *tmd, struct walk *walk) TP_REQUIRES_SHARED(lc_meta_root)
	TP_TAKES(bufio)
{
	struct btree_run run;
	mblock_t root, unused;
	int r;

	if (tmd->fail_io)
		return -EINVAL;
	r = device_root(tmd, NULL, walk->id, &root, NULL);
	if (!r)
		r = btree_lookup_run(&tmd->device_info, root, walk->from, UINT64_MAX, true, MAX_RUN,
				     walk->keys, walk->values, &run, &unused);
	for (unsigned i = 0; !r && i < run.nr; i++)
		r = check_dblock(tmd, walk->id, walk->keys[i], mapping_dblock(walk->values[i]));
	if (r)
		return r;
	walk->nr = run.nr;
	walk->done = run.next_key == UINT64_MAX;
	if (!walk->done && run.next_key <= walk->from)
		return -EUCLEAN;
	walk->from = run.next_key;
	return 0;
}

/* Lengthen @m by the entry, or hand it to @fn and begin a new one. */
static int walk_entry(struct thin_mapping *m, uint64_t key, struct le64 value,
		      int (*fn)(void *ctx, const struct thin_mapping *m), void *ctx)
{
	int r = 0;

	if (m->nr_blocks && key == m->vblock + m->nr_blocks &&
	    mapping_dblock(value) == m->dblock + m->nr_blocks && mapping_time(value) == m->time) {
		m->nr_blocks++;
		return 0;
	}
	if (m->nr_blocks)
		r = fn(ctx, m);
	*m = (struct thin_mapping){
		.vblock = key,
		.dblock = mapping_dblock(value),
		.nr_blocks = 1,
		.time = mapping_time(value),
	};
	return r;
}

int thin_metadata_for_each_mapping(struct thin_metadata *tmd, thin_id_t id,
				   int (*fn)(void *ctx, const struct thin_mapping *m), void *ctx)
{
	struct walk walk = { .id = id };
	struct thin_mapping m = { 0 };
	int r = 0;

	while (!r && !walk.done) {
		lock_meta_root_shared(&tmd->lock);
		r = walk_leaf(tmd, &walk);
		unlock_meta_root_shared(&tmd->lock);
		for (unsigned i = 0; !r && i < walk.nr; i++)
			r = walk_entry(&m, walk.keys[i], walk.values[i], fn, ctx);
	}
	if (!r && m.nr_blocks)
		r = fn(ctx, &m);
	return r;
}
