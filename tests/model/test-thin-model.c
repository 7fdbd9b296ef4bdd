/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Random work on a pool's metadata, compared with plain arrays.
 *
 * Two states are kept: as committed, and as it is now.  A commit copies the one into the other,
 * an abort the other into the one.  With faults, any request of the metadata device may fail;
 * what follows is an abort, after which everything must be as it was committed.
 *
 * TP_SEED repeats a run, TP_OPS makes it longer; TP_IMAGES is the number of commits whose image
 * is shown to thin_check, thin_dump and thinmeta.py (0: none).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "abort-alone.h"
#include "fault-device.h"
#include "mem-device.h"
#include "prng.h"
#include "thin-image.h"
#include "thin-model.h"
#include "util/log.h"

#define BLOCK_SECTORS 128u
#define MAX_DATA_BLOCKS 40000u
#define FIRST_METADATA_BYTES (UINT64_C(1) << 20)
#define CARELESS_METADATA_BYTES (UINT64_C(256) << 10)
#define MAX_METADATA_BYTES (UINT64_C(8) << 20)
#define FREE_METADATA_MIN 100u /* blocks; less, and something is given up */

/* The metadata snapshot: what it shows. */
struct held {
	bool exists;
	struct thin_model model;
};

struct run {
	struct prng prng;
	struct io_device *meta, *data; /* fault devices */
	struct thin_metadata *tmd;
	struct thin_device *open[MODEL_DEVICES];
	struct thin_model now, committed;
	struct held held_now, held_committed;
	dblock_t grown_to; /* size of the data device after the next commit */
	bool faults, careless;
	bool changed_closed[MODEL_DEVICES]; /* closed since it was changed, and not committed */
	bool lost[MODEL_DEVICES];           /* had changes when a transaction was aborted */
	bool *used_now, *used_committed;
	bool *taken; /* mapped by the open transaction, perhaps freed again: not to be had in it */
	uint64_t nr_images, nr_snaps_shown, nr_commits, nr_aborts, nr_faults, nr_full,
		nr_metadata_full;
};

/* One of the faults was met, or metadata ran out: what was done must be thrown away. */
static bool is_failure(struct run *run, int r)
{
	return (r == -EIO && run->faults) || r == -ENOSPC;
}

static void open_pool(struct run *run)
{
	const struct thin_metadata_options options = {
		.cache_bytes = run->faults ? 192 << 10 : 8 << 20,
		.data = run->data,
	};
	struct tp_error error = { 0 };

	if (thin_metadata_open(run->meta, &options, &run->tmd, &error))
		fail_msg("%s", error.text);
}

static void close_device(struct run *run, unsigned i)
{
	if (run->open[i] && thin_device_changed(run->open[i]))
		run->changed_closed[i] = true;
	run->open[i] = thin_device_close(run->open[i]);
}

static void close_devices(struct run *run)
{
	for (unsigned i = 0; i < MODEL_DEVICES; i++)
		close_device(run, i);
}

/* A device of which nothing is left to remember. */
static void forget_device(struct run *run, unsigned i)
{
	run->open[i] = thin_device_close(run->open[i]);
	run->changed_closed[i] = run->lost[i] = false;
}

static struct thin_device *device(struct run *run, unsigned i)
{
	if (!run->open[i]) {
		int r;

		/* Faults are about changes; opening is tried until it works. */
		do
			r = thin_device_open(run->tmd, thin_model_id(i), &run->open[i]);
		while (r == -EIO && run->faults);
		assert_int_equal(r, 0);
	}
	return run->open[i];
}

static unsigned below(struct run *run, uint64_t limit)
{
	return (unsigned)prng_below(&run->prng, limit);
}

/* Random; MODEL_DEVICES: there is none such. */
static unsigned some_device(struct run *run, bool existing)
{
	unsigned from = below(run, MODEL_DEVICES);

	for (unsigned n = 0; n < MODEL_DEVICES; n++) {
		unsigned i = (from + n) % MODEL_DEVICES;

		if (run->now.devices[i].exists == existing)
			return i;
	}
	return MODEL_DEVICES;
}

/* ---- commit and abort ---- */

static void show_image(struct run *run)
{
	struct thin_image image = thin_image_save(fault_device_inner(run->meta));

	assert_true(thin_image_is_clean(&image));
	assert_true(thin_model_matches_dump(&run->committed, "", image.path));
	if (run->held_committed.exists) {
		assert_true(thin_model_matches_dump(&run->held_committed.model, "-m", image.path));
		run->nr_snaps_shown++;
	}
	thin_image_remove(&image);
}

static void find_used(const struct thin_model *m, const struct held *held, bool *used)
{
	memset(used, 0, MAX_DATA_BLOCKS * sizeof(*used));
	thin_model_mark_used(m, used, MAX_DATA_BLOCKS);
	if (held->exists)
		thin_model_mark_used(&held->model, used, MAX_DATA_BLOCKS);
}

/* Every block that is mapped nowhere must be free, and no other. */
static void check_free(struct run *run)
{
	struct thin_metadata_info info;
	uint64_t nr_used = 0;

	find_used(&run->committed, &run->held_committed, run->used_committed);
	for (dblock_t b = 0; b < run->committed.nr_data_blocks; b++)
		nr_used += run->used_committed[b];
	assert_int_equal(thin_metadata_get_info(run->tmd, &info), 0);
	assert_int_equal(info.nr_data_free, run->committed.nr_data_blocks - nr_used);
}

static void check_device_after_abort(struct run *run, unsigned i)
{
	struct thin_device *td = run->open[i];
	struct thin_run found;

	if (td) {
		assert_false(thin_device_changed(td));
		assert_int_equal(thin_device_aborted_changes(td), run->lost[i]);
	}
	if (!run->now.devices[i].exists) {
		if (td)
			assert_int_equal(thin_find_run(td, 0, 1, &found), -ENODATA);
		forget_device(run, i);
	} else if (td) {
		assert_int_equal(thin_device_mapped_blocks(td), run->now.devices[i].mapped_blocks);
	}
}

static void do_abort(struct run *run)
{
	struct thin_metadata_info info;
	bool landed, changed[MODEL_DEVICES];

	fault_device_clear(run->meta);
	for (unsigned i = 0; i < MODEL_DEVICES; i++)
		changed[i] = run->changed_closed[i] ||
			     (run->open[i] && thin_device_changed(run->open[i]));
	memset(run->changed_closed, 0, sizeof(run->changed_closed));
	assert_int_equal(abort_alone(run->tmd), 0);
	run->nr_aborts++;
	memset(run->taken, 0, MAX_DATA_BLOCKS * sizeof(bool));

	/* If only the last flush failed, the new state is the one on disk. */
	assert_int_equal(thin_metadata_get_info(run->tmd, &info), 0);
	landed = info.transaction_id == run->now.transaction_id &&
		 run->now.transaction_id != run->committed.transaction_id;
	assert_int_equal(thin_metadata_commit_landed(run->tmd), landed);
	for (unsigned i = 0; i < MODEL_DEVICES; i++)
		run->lost[i] |= changed[i] && !landed;
	if (landed) {
		run->now.nr_data_blocks = run->grown_to;
		run->committed = run->now;
		run->held_committed = run->held_now;
	} else {
		run->now = run->committed;
		run->held_now = run->held_committed;
	}
	run->grown_to = run->now.nr_data_blocks;

	for (unsigned i = 0; i < MODEL_DEVICES; i++)
		check_device_after_abort(run, i);
	assert_true(thin_model_matches(&run->committed, run->tmd));
	check_free(run);
}

/* True: go on.  False: it failed, and was aborted. */
static bool worked(struct run *run, int r)
{
	if (!r)
		return true;
	if (!is_failure(run, r))
		fail_msg("unexpected error %d", r);
	run->nr_metadata_full += r == -ENOSPC;
	do_abort(run);
	return false;
}

static void freed_run(void *ctx, dblock_t begin, dblock_t end)
{
	struct run *run = ctx;

	for (dblock_t b = begin; b < end; b++)
		assert_false(run->used_committed[b]);
}

static bool do_commit(struct run *run)
{
	int r;

	/* The number tells afterwards whether a commit that failed has landed. */
	if (run->faults) {
		r = thin_metadata_set_transaction_id(run->tmd, run->now.transaction_id,
						     run->now.transaction_id + 1);
		if (!worked(run, r))
			return false;
		run->now.transaction_id++;
	}
	r = thin_metadata_commit(run->tmd);
	if (!worked(run, r))
		return false;
	assert_false(thin_metadata_changed(run->tmd));
	run->now.nr_data_blocks = run->grown_to;
	run->committed = run->now;
	run->held_committed = run->held_now;
	memset(run->changed_closed, 0, sizeof(run->changed_closed));
	memset(run->taken, 0, MAX_DATA_BLOCKS * sizeof(bool));
	run->nr_commits++;
	fault_device_clear(run->meta);

	assert_true(thin_model_matches(&run->committed, run->tmd));
	check_free(run);
	thin_metadata_take_freed(run->tmd, below(run, 2) ? freed_run : NULL, run);
	thin_metadata_unreserve_data_blocks(run->tmd, 0, MAX_DATA_BLOCKS);
	return true;
}

/* ---- devices ---- */

static void do_create(struct run *run)
{
	unsigned i = some_device(run, false);
	unsigned other = some_device(run, true);

	if (other < MODEL_DEVICES) {
		int r = thin_metadata_create_thin(run->tmd, thin_model_id(other));

		if (is_failure(run, r)) { /* it had to be looked up */
			do_abort(run);
			return;
		}
		assert_int_equal(r, -EEXIST);
	}
	if (i < MODEL_DEVICES && worked(run, thin_metadata_create_thin(run->tmd, thin_model_id(i))))
		thin_model_create(&run->now, i);
}

static void do_snap(struct run *run)
{
	unsigned i = some_device(run, false), origin = some_device(run, true);

	if (i < MODEL_DEVICES && origin < MODEL_DEVICES &&
	    worked(run,
		   thin_metadata_create_snap(run->tmd, thin_model_id(i), thin_model_id(origin))))
		thin_model_snap(&run->now, i, origin);
}

static void do_delete(struct run *run)
{
	unsigned i = some_device(run, true);

	if (i == MODEL_DEVICES)
		return;
	if (run->open[i])
		assert_int_equal(thin_metadata_delete_thin(run->tmd, thin_model_id(i)), -EBUSY);
	close_device(run, i);
	if (worked(run, thin_metadata_delete_thin(run->tmd, thin_model_id(i)))) {
		thin_model_delete(&run->now, i);
		forget_device(run, i);
	}
}

static void do_close(struct run *run)
{
	close_device(run, below(run, MODEL_DEVICES));
}

/* ---- blocks ---- */

/* A block for a mapping; -ENOSPC must be true. */
static int reserve(struct run *run, dblock_t *ret_block)
{
	int r = thin_metadata_reserve_data_block(run->tmd, ret_block);

	if (r != 0 && r != -ENOSPC)
		return r;
	find_used(&run->now, &run->held_now, run->used_now);
	find_used(&run->committed, &run->held_committed, run->used_committed);
	if (r == 0) {
		assert_true(*ret_block < run->committed.nr_data_blocks);
		assert_false(run->used_now[*ret_block]);
		assert_false(run->used_committed[*ret_block]); /* L2 */
		return 0;
	}
	for (dblock_t b = 0; b < run->committed.nr_data_blocks; b++)
		assert_true(run->used_now[b] || run->used_committed[b] || run->taken[b]);
	run->nr_full++;
	return r;
}

static bool write_one(struct run *run, unsigned i, unsigned v)
{
	struct thin_run found;
	dblock_t b;
	int r;

	r = thin_find_run(device(run, i), thin_model_key(v), 1, &found);
	if (!worked(run, r))
		return false;
	assert_true(thin_model_run_matches(&run->now, i, v, 1, &found));
	if (found.mapped && !found.shared && below(run, 8))
		return true;
	r = reserve(run, &b);
	if (r == -ENOSPC) {
		do_commit(run);
		return false;
	}
	if (!worked(run, r))
		return false;
	if (below(run, 20) == 0) { /* the first write of the block failed */
		thin_metadata_unreserve_data_blocks(run->tmd, b, b + 1);
		return true;
	}
	if (!worked(run, thin_insert_block(device(run, i), thin_model_key(v), b)))
		return false;
	thin_model_map(&run->now, i, v, b);
	run->taken[b] = true;
	return true;
}

static void do_write(struct run *run)
{
	unsigned i = some_device(run, true), v = below(run, MODEL_VBLOCKS);
	unsigned nr = 1 + below(run, below(run, 6) ? 8 : 120);
	bool scattered = below(run, 3) == 0;

	if (i == MODEL_DEVICES)
		return;
	for (unsigned n = 0; n < nr && v < MODEL_VBLOCKS; n++) {
		if (!write_one(run, i, v))
			return;
		v = scattered ? below(run, MODEL_VBLOCKS) : v + 1;
	}
}

static void do_discard(struct run *run)
{
	unsigned i = some_device(run, true), begin = below(run, MODEL_VBLOCKS);
	unsigned end = begin + 1 + below(run, below(run, 3) ? 40 : MODEL_VBLOCKS);
	vblock_t next = thin_model_key(begin), last;

	if (i == MODEL_DEVICES)
		return;
	end = end < MODEL_VBLOCKS ? end : MODEL_VBLOCKS;
	last = thin_model_key(end);
	while (next < last) {
		vblock_t from = next;

		if (!worked(run, thin_remove_range(device(run, i), from, last, 1 + below(run, 200),
						   &next)))
			return;
		assert_true(next > from);
	}
	thin_model_unmap(&run->now, i, begin, end);
}

/* The next mapped block, if there is one; now and then any. */
static unsigned some_mapped(struct run *run, unsigned i)
{
	unsigned v = below(run, MODEL_VBLOCKS);

	if (below(run, 8) == 0)
		return v;
	for (unsigned n = 0; n < MODEL_VBLOCKS && !run->now.devices[i].map[v].mapped; n++)
		v = (v + 1) % MODEL_VBLOCKS;
	return v;
}

static void do_swap(struct run *run)
{
	unsigned i = some_device(run, true), a, b;
	int r;

	if (i == MODEL_DEVICES)
		return;
	a = some_mapped(run, i);
	b = some_mapped(run, i);
	r = thin_swap_blocks(device(run, i), thin_model_key(a), thin_model_key(b));
	if (!run->now.devices[i].map[a].mapped || !run->now.devices[i].map[b].mapped)
		assert_true(r == -ENODATA || (is_failure(run, r) && run->faults));
	if (r == -ENODATA)
		return;
	if (worked(run, r))
		thin_model_swap(&run->now, i, a, b);
}

static void note_done(struct thin_waiter *w)
{
	w->opaque[7] = 1;
}

/* The form that does not sleep, reading what it misses. */
static int find_patiently(struct run *run, struct thin_device *td, vblock_t v, uint64_t max,
			  struct thin_run *found)
{
	struct io_queue *q;
	mblock_t missing;
	int r;

	assert_int_equal(io_queue_self(&q), 0);
	while ((r = thin_try_find_run(td, v, max, found, &missing)) == -EWOULDBLOCK) {
		struct thin_waiter w = { .done = note_done };

		r = thin_metadata_prefetch(run->tmd, missing, &w);
		while (r == -EINPROGRESS && !w.opaque[7])
			io_queue_run(q, UINT64_MAX);
		if (w.result)
			return w.result;
	}
	return r;
}

static void do_lookup(struct run *run)
{
	unsigned i = some_device(run, true), v = below(run, MODEL_VBLOCKS);
	uint64_t max = 1 + below(run, below(run, 2) ? 16 : 2000);
	struct thin_run found = { 0 };
	bool shared;
	int r;

	if (i == MODEL_DEVICES)
		return;
	if (below(run, 2))
		r = find_patiently(run, device(run, i), thin_model_key(v), max, &found);
	else
		r = thin_find_run(device(run, i), thin_model_key(v), max, &found);
	if (!worked(run, r))
		return;
	assert_true(thin_model_run_matches(&run->now, i, v, max, &found));
	if (!found.mapped)
		return;
	/*
	 * The clock may say "shared" for nothing, but never fail to say it.  It knows nothing of
	 * the metadata snapshot, which holds blocks but not their content.
	 */
	r = thin_metadata_data_block_is_shared(run->tmd, found.dblock, &shared);
	if (!worked(run, r))
		return;
	if (shared && !run->held_now.exists)
		assert_true(found.shared);
	if (thin_model_count(&run->now, found.dblock) > 1)
		assert_true(found.shared);
	else if (!run->held_now.exists)
		assert_false(shared);
}

/* Now and then, for a metadata snapshot makes every change dearer. */
static void do_metadata_snap(struct run *run)
{
	if (run->held_now.exists) {
		assert_int_equal(thin_metadata_reserve_snap(run->tmd), -EBUSY);
		if (worked(run, thin_metadata_release_snap(run->tmd)))
			run->held_now.exists = false;
		return;
	}
	assert_int_equal(thin_metadata_release_snap(run->tmd), -ENODATA);
	if (!do_commit(run) || !worked(run, thin_metadata_reserve_snap(run->tmd)))
		return;
	run->held_now.exists = true;
	run->held_now.model = run->committed;
}

static void do_highest(struct run *run)
{
	unsigned i = some_device(run, true), v = MODEL_VBLOCKS;
	vblock_t highest;
	int r;

	if (i == MODEL_DEVICES)
		return;
	while (v > 0 && !run->now.devices[i].map[v - 1].mapped)
		v--;
	r = thin_device_highest_mapped(device(run, i), &highest);
	if (r == -EIO && run->faults)
		do_abort(run);
	else if (v == 0)
		assert_int_equal(r, -ENODATA);
	else
		assert_true(r == 0 && highest == thin_model_key(v - 1));
}

/* ---- sizes, flags, reopening ---- */

static void do_grow_data(struct run *run)
{
	dblock_t to = run->grown_to + below(run, run->grown_to < 16000 ? 200 : 3000);
	uint64_t bytes = to * BLOCK_SECTORS * SECTOR_SIZE;

	if (to > MAX_DATA_BLOCKS)
		return;
	if (bytes > io_device_size(run->data))
		assert_int_equal(io_device_resize(run->data, bytes), 0);
	if (worked(run, thin_metadata_resize_data(run->tmd, to)))
		run->grown_to = to;
}

static void do_grow_metadata(struct run *run)
{
	uint64_t bytes = io_device_size(run->meta) * 5 / 4 / 4096 * 4096;

	if (run->careless)
		return;
	if (bytes > MAX_METADATA_BYTES)
		bytes = MAX_METADATA_BYTES;
	if (bytes <= io_device_size(run->meta))
		return;
	assert_int_equal(io_device_resize(run->meta, bytes), 0);
	(void)worked(run, thin_metadata_resize_metadata(run->tmd));
}

/* On a copy: this pool shall go on. */
static void do_needs_check(struct run *run)
{
	const struct thin_metadata_options options = { .cache_bytes = 1 << 20 };
	struct io_device *copy = mem_device_clone(fault_device_inner(run->meta));
	struct thin_metadata *tmd;
	struct thin_metadata_info info;

	assert_int_equal(thin_metadata_open(copy, &options, &tmd, NULL), 0);
	assert_int_equal(thin_metadata_set_needs_check(tmd), 0);
	assert_int_equal(thin_metadata_close(tmd), 0);
	assert_int_equal(thin_metadata_open(copy, &options, &tmd, NULL), 0);
	assert_int_equal(thin_metadata_get_info(tmd, &info), 0);
	assert_true(info.needs_check);
	assert_int_equal(thin_metadata_create_thin(tmd, 12345), -EPERM);
	assert_true(thin_model_matches(&run->committed, tmd));
	assert_int_equal(thin_metadata_close(tmd), 0);
	io_device_close(copy);
}

static void do_reopen(struct run *run)
{
	if (below(run, 2) && !do_commit(run))
		return;
	fault_device_clear(run->meta);
	close_devices(run);
	assert_int_equal(thin_metadata_close(run->tmd), 0);
	run->now = run->committed; /* what was not committed is gone */
	run->held_now = run->held_committed;
	run->grown_to = run->now.nr_data_blocks;
	memset(run->lost, 0, sizeof(run->lost));
	memset(run->changed_closed, 0, sizeof(run->changed_closed));
	open_pool(run);
	assert_true(thin_model_matches(&run->committed, run->tmd));
	check_free(run);
}

/* Before metadata runs out: commit, grow, or give up a device.  Careless runs stay small. */
static void mind_the_space(struct run *run)
{
	struct thin_metadata_info info;

	assert_int_equal(thin_metadata_get_info(run->tmd, &info), 0);
	if (run->careless || info.nr_metadata_free >= FREE_METADATA_MIN || !do_commit(run))
		return;
	assert_int_equal(thin_metadata_get_info(run->tmd, &info), 0);
	if (info.nr_metadata_free >= FREE_METADATA_MIN)
		return;
	if (io_device_size(run->meta) < MAX_METADATA_BYTES)
		do_grow_metadata(run);
	else if (run->held_now.exists)
		do_metadata_snap(run);
	else
		do_delete(run);
	(void)do_commit(run);
}

static void set_fault(struct run *run)
{
	static const unsigned ops[] = { FAULT_OP(IO_READ), FAULT_OP(IO_WRITE), FAULT_OP(IO_FLUSH) };

	fault_device_clear(run->meta); /* one that was never reached */
	fault_device_fail_nth(run->meta, ops[below(run, 3)], 1 + below(run, 30));
	run->nr_faults++;
}

/* ---- the run ---- */

static const struct {
	unsigned weight;
	void (*step)(struct run *run);
} steps[] = {
	{ 4, do_create },        { 5, do_snap },          { 3, do_delete },      { 4, do_close },
	{ 60, do_write },        { 10, do_discard },      { 5, do_swap },        { 40, do_lookup },
	{ 3, do_highest },       { 1, do_grow_data },     { 1, do_needs_check }, { 1, do_reopen },
	{ 1, do_grow_metadata }, { 2, do_metadata_snap },
};

static void random_step(struct run *run)
{
	unsigned total = 0, n;

	for (unsigned s = 0; s < ARRAY_SIZE(steps); s++)
		total += steps[s].weight;
	n = below(run, total + 8);
	if (n >= total + 1) {
		(void)do_commit(run);
		return;
	}
	if (n >= total) {
		do_abort(run);
		return;
	}
	for (unsigned s = 0; s < ARRAY_SIZE(steps); s++) {
		if (n < steps[s].weight) {
			steps[s].step(run);
			return;
		}
		n -= steps[s].weight;
	}
}

static void start(struct run *run, uint64_t seed, bool faults, bool careless)
{
	prng_init(&run->prng, seed);
	run->faults = faults;
	run->careless = careless;
	run->used_now = calloc(MAX_DATA_BLOCKS, sizeof(bool));
	run->used_committed = calloc(MAX_DATA_BLOCKS, sizeof(bool));
	run->taken = calloc(MAX_DATA_BLOCKS, sizeof(bool));
	run->meta = fault_device_create_mem(run->careless ? CARELESS_METADATA_BYTES
							  : FIRST_METADATA_BYTES);
	run->data = fault_device_create_mem(0);
	assert_int_equal(thin_metadata_format(run->meta, BLOCK_SECTORS, NULL), 0);
	open_pool(run);
	/* Either soon full, or with a second bitmap within reach. */
	run->grown_to = below(run, 2) ? 700 : 16000;
	assert_int_equal(io_device_resize(run->data, run->grown_to * BLOCK_SECTORS * SECTOR_SIZE),
			 0);
	assert_int_equal(thin_metadata_resize_data(run->tmd, run->grown_to), 0);
	assert_true(do_commit(run));
}

static void finish(struct run *run)
{
	fault_device_clear(run->meta);
	/* Where space runs out the last transaction may be the one that it costs. */
	assert_true(do_commit(run) || run->careless);
	show_image(run);
	close_devices(run);
	assert_int_equal(thin_metadata_close(run->tmd), 0);
	io_device_close(run->meta);
	io_device_close(run->data);
	free(run->used_now);
	free(run->used_committed);
	free(run->taken);
	print_message("# %" PRIu64 " commits, %" PRIu64 " aborts, %" PRIu64 " faults set, %" PRIu64
		      " images and %" PRIu64 " metadata snapshots shown; full: data %" PRIu64
		      " times, metadata %" PRIu64 "\n",
		      run->nr_commits, run->nr_aborts, run->nr_faults, run->nr_images,
		      run->nr_snaps_shown, run->nr_full, run->nr_metadata_full);
}

static uint64_t images_wanted(void)
{
	const char *s = getenv("TP_IMAGES");

	return s ? strtoull(s, NULL, 10) : 4;
}

static void random_work(bool faults, bool careless)
{
	uint64_t nr_steps = prng_ops(2000), images = images_wanted();
	struct run *run = calloc(1, sizeof(*run));

	assert_non_null(run);
	start(run, prng_seed() + faults + 2 * careless, faults, careless);
	for (uint64_t n = 0; n < nr_steps; n++) {
		if (faults && n % 8 == 0)
			set_fault(run);
		mind_the_space(run);
		random_step(run);
		if (run->nr_images < images &&
		    n >= (run->nr_images + 1) * nr_steps / (images + 1) && do_commit(run)) {
			show_image(run);
			run->nr_images++;
		}
	}
	finish(run);
	free(run);
}

static void everything_is_as_in_the_model(void **state)
{
	(void)state;
	random_work(false, false);
}

static void a_failed_request_costs_one_transaction(void **state)
{
	(void)state;
	log_set_level(LOG_LEVEL_ERR - 1); /* there will be many */
	random_work(true, false);
	log_set_level(LOG_LEVEL_INFO);
}

static void metadata_that_runs_out_costs_one_transaction(void **state)
{
	(void)state;
	random_work(false, true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(everything_is_as_in_the_model),
		cmocka_unit_test(a_failed_request_costs_one_transaction),
		cmocka_unit_test(metadata_that_runs_out_costs_one_transaction),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("thin-model", tests, NULL, NULL);
}
