/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * catalog.c - records in the data blocks of one thin device
 *
 * The device has a vblock for each stretch of records and, just beyond the last of them, the
 * spare: a data block whose content means nothing.  Changing a record for the first time in
 * a transaction moves its vblock: the content goes, with the change, into the spare's data
 * block, and the two mappings are exchanged.  What was the record's block is then the spare;
 * it still holds the committed records, so it is not touched before the commit.  A second
 * vblock changed in the same transaction needs a free data block, unless a commit is made
 * first.  A vblock that has moved already is written in place.
 *
 * Data blocks may have a GiB, of which a few chunks hold records.  What is known about each
 * chunk (64 KiB) of each vblock is kept in c->chunks, so that only data is copied and only
 * what is not zero yet is zeroed.
 *
 * Invariants
 *   1. A data block that the committed state maps below the spare is never written.
 *   2. c->moved[v]: the data block of v was taken into use in this transaction.
 *   3. A chunk that CHUNK_ZERO is said of reads as zeros.  Nothing is said of others.
 *   4. Content is written before the mapping that makes it a record's block changes, so an
 *      error leaves at worst a moved mapping with good content; the caller aborts.
 *   5. c->cached, when valid, is what the device holds in that chunk.
 *
 * Locks: none; the mutator thread owns it all.  Callers: pool/volume.c, pool/command.c, tools.
 */
#include "catalog/catalog.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "catalog/catalog-internal.h"
#include "io/device.h"
#include "thin/thin-metadata.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/le.h"
#include "util/log.h"

#define LOG_MODULE "catalog"

#define CHUNK_BYTES 65536u /* the smallest data block; every data block is a multiple of it */
#define RECORDS_PER_CHUNK (CHUNK_BYTES / CATALOG_RECORD_BYTES)
#define CHUNKS_PER_PIECE 16u /* one transfer: 1 MiB */
#define RECORDS_BYTES ((uint64_t)(THIN_ID_MAX + 1) * CATALOG_RECORD_BYTES)
#define NO_CHUNK UINT64_MAX
#define ROOM_MAX_IDS 8u

enum chunk_state { CHUNK_UNKNOWN = 0, CHUNK_ZERO, CHUNK_MAYBE_DATA };

struct catalog {
	struct thin_metadata *tmd; /* borrowed */
	struct io_device *data;    /* borrowed */
	struct thin_device *td;
	uint64_t block_bytes;
	uint64_t chunks_per_block;
	vblock_t spare;  /* vblock of the spare: all below hold records */
	bool spare_used; /* the spare's data block held records in the committed state */
	uint8_t *chunks; /* enum chunk_state of all vblocks, the spare, and one being prepared */
	uint8_t *moved;  /* one a vblock, see invariant 2 */
	bool any_moved;
	uint64_t cached_index; /* chunk of the catalog in @cached, or NO_CHUNK */
	uint8_t *cached;       /* CHUNK_BYTES */
	uint8_t *piece;        /* CHUNKS_PER_PIECE chunks, for transfers */
	bool data_failed;
	/* Free blocks for which the host has space, as of the last catalog_check_room(). */
	dblock_t ready[ROOM_MAX_IDS];
	unsigned nr_ready;
};

/* ---- places ---- */

static uint8_t *block_chunks(struct catalog *c, vblock_t v)
{
	return c->chunks + v * c->chunks_per_block;
}

/* The states of a data block that has no vblock yet. */
static uint8_t *prepared_chunks(struct catalog *c)
{
	return block_chunks(c, c->spare + 1);
}

static vblock_t vblock_of(const struct catalog *c, thin_id_t id)
{
	return (uint64_t)id * CATALOG_RECORD_BYTES / c->block_bytes;
}

static uint64_t chunk_of(thin_id_t id)
{
	return id / RECORDS_PER_CHUNK;
}

static struct disk_catalog_record *cached_slot(struct catalog *c, thin_id_t id)
{
	return (struct disk_catalog_record *)(c->cached + (size_t)(id % RECORDS_PER_CHUNK) *
								  CATALOG_RECORD_BYTES);
}

static uint64_t disk_offset(const struct catalog *c, dblock_t dblock, uint64_t chunk_in_block)
{
	return dblock * c->block_bytes + chunk_in_block * CHUNK_BYTES;
}

/* @r: of the data device. */
static int data_result(struct catalog *c, int r)
{
	c->data_failed |= r != 0;
	return r;
}

bool catalog_data_failed(const struct catalog *c)
{
	return c->data_failed;
}

/* ---- what is in the chunks ---- */

/* Find out which of the chunks [from, from + nr) of @dblock read as zeros, by halving. */
static void probe_chunks(struct catalog *c, uint8_t *states, dblock_t dblock, uint64_t from,
			 uint64_t nr)
{
	if (io_device_known_zero(c->data, disk_offset(c, dblock, from), nr * CHUNK_BYTES)) {
		memset(states + from, CHUNK_ZERO, nr);
	} else if (nr == 1) {
		states[from] = CHUNK_MAYBE_DATA;
	} else {
		probe_chunks(c, states, dblock, from, nr / 2);
		probe_chunks(c, states, dblock, from + nr / 2, nr - nr / 2);
	}
}

/* A block is probed as a whole, when first looked at. */
static void know_chunks(struct catalog *c, vblock_t v, dblock_t dblock)
{
	uint8_t *states = block_chunks(c, v);

	if (states[0] == CHUNK_UNKNOWN)
		probe_chunks(c, states, dblock, 0, c->chunks_per_block);
}

static int load_chunk(struct catalog *c, uint64_t index, dblock_t dblock)
{
	uint64_t in_block = index % c->chunks_per_block;
	int r;

	if (c->cached_index == index)
		return 0;

	know_chunks(c, index / c->chunks_per_block, dblock);
	c->cached_index = NO_CHUNK;
	if (c->chunks[index] == CHUNK_ZERO) {
		memset(c->cached, 0, CHUNK_BYTES);
	} else {
		r = io_device_read(c->data, c->cached, CHUNK_BYTES,
				   disk_offset(c, dblock, in_block));
		if (data_result(c, r))
			return r;
	}
	c->cached_index = index;
	return 0;
}

/* ---- changing a record ---- */

/* How many chunks from @from on, at most @max, are alike: with data (or cached), or without? */
static uint64_t run_of_chunks(const uint8_t *states, uint64_t from, uint64_t end, uint64_t max,
			      uint64_t changed, bool *ret_data)
{
	bool data = states[from] != CHUNK_ZERO || from == changed;
	uint64_t nr = 1;

	while (nr < max && from + nr < end &&
	       data == (states[from + nr] != CHUNK_ZERO || from + nr == changed))
		nr++;
	*ret_data = data;
	return nr;
}

static int copy_piece(struct catalog *c, dblock_t source, dblock_t target, uint64_t from,
		      uint64_t nr, uint64_t changed)
{
	bool only_changed = nr == 1 && from == changed;
	int r;

	if (!only_changed) {
		r = io_device_read(c->data, c->piece, nr * CHUNK_BYTES,
				   disk_offset(c, source, from));
		if (data_result(c, r))
			return r;
	}
	if (changed >= from && changed < from + nr)
		memcpy(c->piece + (changed - from) * CHUNK_BYTES, c->cached, CHUNK_BYTES);
	r = io_device_write(c->data, c->piece, nr * CHUNK_BYTES, disk_offset(c, target, from));
	return data_result(c, r);
}

/* Make the chunks [from, from + nr) of @target read as zeros; those that do are left alone. */
static int zero_chunks(struct catalog *c, const uint8_t *states, dblock_t target, uint64_t from,
		       uint64_t nr)
{
	for (uint64_t end = from + nr; from < end; from += nr) {
		bool zero = states[from] == CHUNK_ZERO;

		nr = 1;
		while (from + nr < end && zero == (states[from + nr] == CHUNK_ZERO))
			nr++;
		if (!zero) {
			int r = io_device_zero(c->data, disk_offset(c, target, from),
					       nr * CHUNK_BYTES);

			if (data_result(c, r))
				return r;
		}
	}
	return 0;
}

/*
 * Fill @target, of which @target_states tells, with the content of vblock @v as @source has
 * it, except that chunk @changed of the block is taken from the cached chunk.
 */
static int copy_block(struct catalog *c, vblock_t v, dblock_t source, dblock_t target,
		      const uint8_t *target_states, uint64_t changed)
{
	const uint8_t *states = block_chunks(c, v);
	uint64_t nr;

	for (uint64_t i = 0; i < c->chunks_per_block; i += nr) {
		bool data;
		int r;

		nr = run_of_chunks(states, i, c->chunks_per_block, CHUNKS_PER_PIECE, changed,
				   &data);
		r = data ? copy_piece(c, source, target, i, nr, changed)
			 : zero_chunks(c, target_states, target, i, nr);
		if (r)
			return r;
	}
	return 0;
}

/* May the spare's data block be written?  Not if a snapshot of the catalog may refer to it too. */
static int spare_usable(struct catalog *c, dblock_t *ret_dblock, bool *ret_usable)
{
	struct thin_run run;
	int r;

	*ret_usable = false;
	if (c->spare_used)
		return 0;
	r = thin_find_run(c->td, c->spare, 1, &run);
	if (r || !run.mapped)
		return r;
	*ret_dblock = run.dblock;
	*ret_usable = !run.shared;
	return 0;
}

static void mark_moved(struct catalog *c, vblock_t v)
{
	c->moved[v] = true;
	c->any_moved = true;
}

/* The metadata has no room: unlike a lack of data blocks that cannot be left standing. */
static int fatal(int r)
{
	return r == -ENOSPC ? -EIO : r;
}

static int move_to_spare(struct catalog *c, vblock_t v, dblock_t source, dblock_t spare,
			 uint64_t changed)
{
	uint8_t *states = block_chunks(c, v), *old = prepared_chunks(c);
	int r;

	know_chunks(c, c->spare, spare);
	r = copy_block(c, v, source, spare, block_chunks(c, c->spare), changed);
	if (r)
		return r;
	c->spare_used = true;
	r = thin_swap_blocks(c->td, v, c->spare);
	if (r)
		return fatal(r);

	memcpy(old, states, c->chunks_per_block);
	states[changed] = CHUNK_MAYBE_DATA;
	memcpy(block_chunks(c, c->spare), old, c->chunks_per_block);
	mark_moved(c, v);
	return 0;
}

static int reserve_block(struct catalog *c, dblock_t *ret_block)
{
	while (c->nr_ready) {
		*ret_block = c->ready[--c->nr_ready];
		if (!thin_metadata_reserve_data_blocks(c->tmd, *ret_block, *ret_block + 1))
			return 0;
	}
	return thin_metadata_reserve_data_block(c->tmd, ret_block);
}

/* Also for a vblock that was not mapped: its chunks are then all CHUNK_ZERO. */
static int move_to_new_block(struct catalog *c, vblock_t v, dblock_t source, uint64_t changed)
{
	uint8_t *states = block_chunks(c, v);
	dblock_t target;
	int r;

	r = reserve_block(c, &target);
	if (r)
		return r;
	probe_chunks(c, prepared_chunks(c), target, 0, c->chunks_per_block);
	r = copy_block(c, v, source, target, prepared_chunks(c), changed);
	if (r) {
		thin_metadata_unreserve_data_blocks(c->tmd, target, target + 1);
		return r;
	}
	r = thin_insert_block(c->td, v, target);
	if (r)
		return fatal(r);
	states[changed] = CHUNK_MAYBE_DATA;
	mark_moved(c, v);
	return 0;
}

/* Somebody else's tool has unmapped or shared the spare: take another while there is room. */
static int renew_spare(struct catalog *c)
{
	dblock_t block;
	int r;

	r = thin_metadata_reserve_data_block(c->tmd, &block);
	if (r)
		return r == -ENOSPC ? 0 : r;
	memset(block_chunks(c, c->spare), CHUNK_UNKNOWN, c->chunks_per_block);
	return fatal(thin_insert_block(c->td, c->spare, block));
}

/* The slot of @id, in the cached chunk, to where it stands in @dblock, with its alignment. */
static int write_slot_in_place(struct catalog *c, thin_id_t id, dblock_t dblock)
{
	uint64_t unit = MAX(io_device_alignment(c->data), CATALOG_RECORD_BYTES);
	uint64_t in_chunk = (uint64_t)(id % RECORDS_PER_CHUNK) * CATALOG_RECORD_BYTES;
	uint64_t in_block = chunk_of(id) % c->chunks_per_block;

	in_chunk -= in_chunk % unit;
	c->chunks[chunk_of(id)] = CHUNK_MAYBE_DATA;
	return data_result(c, io_device_write(c->data, c->cached + in_chunk, unit,
					      disk_offset(c, dblock, in_block) + in_chunk));
}

/* The cached chunk has the new record of @id in it: make the device say the same. */
static int store_slot(struct catalog *c, thin_id_t id, const struct thin_run *run)
{
	uint64_t changed = chunk_of(id) % c->chunks_per_block;
	vblock_t v = vblock_of(c, id);
	dblock_t spare = 0;
	bool usable = false;
	int r = 0;

	if (run->mapped && c->moved[v])
		return write_slot_in_place(c, id, run->dblock);
	if (run->mapped)
		r = spare_usable(c, &spare, &usable);
	if (r)
		return r;
	if (usable)
		return move_to_spare(c, v, run->dblock, spare, changed);
	r = move_to_new_block(c, v, run->dblock, changed);
	return r || !run->mapped || c->spare_used ? r : renew_spare(c);
}

/* @rec NULL: erase. */
static int change_slot(struct catalog *c, thin_id_t id, const struct catalog_record *rec)
{
	vblock_t v = vblock_of(c, id);
	struct disk_catalog_record *slot;
	struct thin_run run;
	int r;

	r = thin_find_run(c->td, v, 1, &run);
	if (r)
		return r;
	if (!run.mapped) {
		if (!rec)
			return 0;
		run.dblock = 0;
		memset(block_chunks(c, v), CHUNK_ZERO, c->chunks_per_block);
	}
	r = load_chunk(c, chunk_of(id), run.dblock);
	if (r)
		return r;

	slot = cached_slot(c, id);
	if (rec) {
		catalog_record_encode(rec, slot);
	} else if (catalog_slot_is_empty(slot)) {
		return 0;
	} else {
		memset(slot, 0, sizeof(*slot));
	}
	r = store_slot(c, id, &run);
	if (r)
		c->cached_index = NO_CHUNK;
	return r;
}

int catalog_put(struct catalog *c, const struct catalog_record *rec)
{
	int r;

	if (rec->id >= CATALOG_ID)
		return -EINVAL;
	r = volume_name_check(rec->name);
	if (r)
		return r;
	return change_slot(c, rec->id, rec);
}

int catalog_erase(struct catalog *c, thin_id_t id)
{
	if (id >= CATALOG_ID)
		return -EINVAL;
	return change_slot(c, id, NULL);
}

/*
 * What copy_block() would write to @target gets space on the host, so that it cannot fail for want
 * of it.  A chunk with data has it already, so this costs nothing as a rule.
 */
static int allocate_chunks(struct catalog *c, vblock_t v, dblock_t target,
			   const uint8_t *target_states, uint64_t changed)
{
	const uint8_t *states = block_chunks(c, v);

	for (uint64_t i = 0; i < c->chunks_per_block; i++) {
		bool data = states[i] != CHUNK_ZERO || i == changed;
		int r = 0;

		if (data && target_states[i] == CHUNK_ZERO)
			r = io_device_allocate(c->data, disk_offset(c, target, i), CHUNK_BYTES);
		if (r)
			return r;
	}
	return 0;
}

static bool seen_before(const struct catalog *c, const thin_id_t *ids, unsigned i)
{
	for (unsigned j = 0; j < i; j++)
		if (vblock_of(c, ids[j]) == vblock_of(c, ids[i]))
			return true;
	return false;
}

/* Room in the block that the record is in now: it may be written in place, or be the next spare. */
static int allocate_here(struct catalog *c, thin_id_t id, const struct thin_run *run)
{
	vblock_t v = vblock_of(c, id);
	uint64_t changed = chunk_of(id) % c->chunks_per_block;

	if (!run->mapped) {
		memset(block_chunks(c, v), CHUNK_ZERO, c->chunks_per_block);
		return 0;
	}
	know_chunks(c, v, run->dblock);
	if (block_chunks(c, v)[changed] != CHUNK_ZERO)
		return 0;
	return io_device_allocate(c->data, disk_offset(c, run->dblock, changed), CHUNK_BYTES);
}

/* Tried out, since a count of free blocks can promise too much.  The caller gives the block back.
 */
static int take_block(struct catalog *c, thin_id_t id, dblock_t *ret_block)
{
	int r = thin_metadata_reserve_data_block(c->tmd, ret_block);

	if (r)
		return r == -ENOSPC && thin_metadata_changed(c->tmd) ? -EAGAIN : r;
	probe_chunks(c, prepared_chunks(c), *ret_block, 0, c->chunks_per_block);
	r = allocate_chunks(c, vblock_of(c, id), *ret_block, prepared_chunks(c),
			    chunk_of(id) % c->chunks_per_block);
	if (r)
		thin_metadata_unreserve_data_blocks(c->tmd, *ret_block, *ret_block + 1);
	return r;
}

int catalog_check_room(struct catalog *c, const thin_id_t *ids, unsigned nr)
{
	dblock_t spare = 0;
	bool usable = false;
	struct thin_run run;
	int r;

	if (nr > ROOM_MAX_IDS)
		return -EINVAL;
	c->nr_ready = 0;
	r = spare_usable(c, &spare, &usable);
	if (!r && usable)
		know_chunks(c, c->spare, spare);
	for (unsigned i = 0; !r && i < nr; i++) {
		vblock_t v = vblock_of(c, ids[i]);

		r = thin_find_run(c->td, v, 1, &run);
		if (!r)
			r = allocate_here(c, ids[i], &run);
		if (r || seen_before(c, ids, i) || (run.mapped && c->moved[v]))
			continue;
		if (run.mapped && usable) {
			usable = false;
			r = allocate_chunks(c, v, spare, block_chunks(c, c->spare),
					    chunk_of(ids[i]) % c->chunks_per_block);
		} else {
			r = take_block(c, ids[i], &c->ready[c->nr_ready]);
			c->nr_ready += !r;
		}
	}
	for (unsigned i = 0; i < c->nr_ready; i++)
		thin_metadata_unreserve_data_blocks(c->tmd, c->ready[i], c->ready[i] + 1);
	return r;
}

/* ---- transactions ---- */

static void forget_transaction(struct catalog *c)
{
	if (c->any_moved)
		memset(c->moved, 0, c->spare);
	c->any_moved = false;
	c->spare_used = false;
}

void catalog_committed(struct catalog *c)
{
	forget_transaction(c);
}

void catalog_aborted(struct catalog *c)
{
	forget_transaction(c);
	c->cached_index = NO_CHUNK;
	memset(c->chunks, CHUNK_UNKNOWN, (c->spare + 2) * c->chunks_per_block);
}

/* ---- reading all of it ---- */

struct walk {
	int (*fn)(void *ctx, const struct catalog_record *rec);
	void *ctx;
	int unread; /* the error of the first piece that could not be read */
};

static int visit_slot(const struct walk *w, const struct disk_catalog_record *d, thin_id_t id)
{
	struct catalog_record rec;
	const char *why;

	if (id == CATALOG_ID || catalog_slot_is_empty(d))
		return 0;
	if (catalog_record_decode(d, id, &rec, &why)) {
		log_err("record of volume %u is damaged (%s), its name and size are lost", id, why);
		rec = (struct catalog_record){ .id = id };
	}
	return w->fn(w->ctx, &rec);
}

/* Chunks [from, from + nr) of vblock @v. */
static int visit_piece(struct catalog *c, struct walk *w, vblock_t v, dblock_t dblock,
		       uint64_t from, uint64_t nr)
{
	uint64_t first_id = (v * c->chunks_per_block + from) * RECORDS_PER_CHUNK;
	int r;

	r = io_device_read(c->data, c->piece, nr * CHUNK_BYTES, disk_offset(c, dblock, from));
	if (r) {
		log_err("cannot read the records of volumes %ju to %ju: %s", (uintmax_t)first_id,
			(uintmax_t)(first_id + nr * RECORDS_PER_CHUNK - 1), strerror(-r));
		w->unread = w->unread ? w->unread : r;
		return 0;
	}
	for (uint64_t i = 0; i < nr * RECORDS_PER_CHUNK; i++) {
		const uint8_t *slot = c->piece + i * CATALOG_RECORD_BYTES;

		/* A block of 192 KiB, say, can reach beyond the last record. */
		if (first_id + i > THIN_ID_MAX)
			return 0;
		r = visit_slot(w, (const struct disk_catalog_record *)slot,
			       (thin_id_t)(first_id + i));
		if (r)
			return r;
	}
	return 0;
}

static int visit_block(struct catalog *c, struct walk *w, vblock_t v, dblock_t dblock)
{
	const uint8_t *states = block_chunks(c, v);
	uint64_t nr;

	know_chunks(c, v, dblock);
	for (uint64_t i = 0; i < c->chunks_per_block; i += nr) {
		bool data;
		int r;

		nr = run_of_chunks(states, i, c->chunks_per_block, CHUNKS_PER_PIECE, UINT64_MAX,
				   &data);
		r = data ? visit_piece(c, w, v, dblock, i, nr) : 0;
		if (r)
			return r;
	}
	return 0;
}

int catalog_for_each(struct catalog *c, int (*fn)(void *ctx, const struct catalog_record *rec),
		     void *ctx)
{
	struct walk w = { .fn = fn, .ctx = ctx };
	struct thin_run run;

	for (vblock_t v = 0; v < c->spare; v += run.nr_blocks) {
		int r = thin_find_run(c->td, v, c->spare - v, &run);

		for (uint64_t i = 0; !r && run.mapped && i < run.nr_blocks; i++)
			r = visit_block(c, &w, v + i, run.dblock + i);
		if (r)
			return r;
	}
	return w.unread;
}

/* ---- life ---- */

struct catalog *catalog_close(struct catalog *c)
{
	if (!c)
		return NULL;
	thin_device_close(c->td);
	free(c->chunks);
	free(c->moved);
	free(c->cached);
	free(c->piece);
	free(c);
	return NULL;
}

static void catalog_closep(struct catalog **cp)
{
	catalog_close(*cp);
}

/* Everything but the look at what the device holds. */
static int attach(struct thin_metadata *tmd, struct io_device *data, struct catalog **ret_catalog)
{
	TP_CLEANUP(catalog_closep) struct catalog *c = calloc(1, sizeof(*c));
	struct thin_metadata_info info;
	int r;

	if (!c)
		return -ENOMEM;
	r = thin_metadata_get_info(tmd, &info);
	if (r)
		return r;
	c->tmd = tmd;
	c->data = data;
	c->block_bytes = (uint64_t)info.data_block_sectors << SECTOR_SHIFT;
	c->chunks_per_block = c->block_bytes / CHUNK_BYTES;
	c->spare = DIV_ROUND_UP(RECORDS_BYTES, c->block_bytes);
	c->cached_index = NO_CHUNK;

	c->chunks = calloc(c->spare + 2, c->chunks_per_block);
	c->moved = calloc(c->spare, 1);
	c->cached = io_buffer_alloc(CHUNK_BYTES);
	c->piece = io_buffer_alloc((uint64_t)CHUNKS_PER_PIECE * CHUNK_BYTES);
	if (!c->chunks || !c->moved || !c->cached || !c->piece)
		return -ENOMEM;
	r = thin_device_open(tmd, CATALOG_ID, &c->td);
	if (r)
		return r;
	*ret_catalog = tp_take(&c);
	return 0;
}

/* Does the record in the device's own slot say that this is a catalog? */
static int check_own_record(struct catalog *c)
{
	const struct disk_catalog_record *d = cached_slot(c, CATALOG_ID);
	struct catalog_record own;
	struct thin_run run;
	const char *why;
	int r;

	r = thin_find_run(c->td, vblock_of(c, CATALOG_ID), 1, &run);
	if (r)
		return r;
	if (!run.mapped)
		return -ENODATA;
	r = load_chunk(c, chunk_of(CATALOG_ID), run.dblock);
	if (r)
		return r;
	if (le64_get(d->magic) != CATALOG_MAGIC)
		return -ENODATA;
	if (catalog_record_decode(d, CATALOG_ID, &own, &why)) {
		log_err("the record of the catalog itself is damaged (%s)", why);
		return -EUCLEAN;
	}
	return strcmp(own.name, CATALOG_OWN_NAME) == 0 ? 0 : -ENODATA;
}

int catalog_open(struct thin_metadata *tmd, struct io_device *data, struct catalog **ret_catalog)
{
	TP_CLEANUP(catalog_closep) struct catalog *c = NULL;
	int r;

	r = attach(tmd, data, &c);
	if (r)
		return r;
	r = check_own_record(c);
	if (r)
		return r;
	*ret_catalog = tp_take(&c);
	return 0;
}

int catalog_create(struct thin_metadata *tmd, struct io_device *data)
{
	TP_CLEANUP(catalog_closep) struct catalog *c = NULL;
	struct catalog_record own = { .id = CATALOG_ID,
				      .created_usec = time_real_usec(),
				      .name = CATALOG_OWN_NAME };
	dblock_t spare;
	int r;

	r = thin_metadata_create_thin(tmd, CATALOG_ID);
	if (r)
		return r;
	r = attach(tmd, data, &c);
	if (r)
		return r;
	r = change_slot(c, CATALOG_ID, &own);
	if (r)
		return r;
	r = thin_metadata_reserve_data_block(tmd, &spare);
	if (r)
		return r;
	return thin_insert_block(c->td, c->spare, spare);
}
