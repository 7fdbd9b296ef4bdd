/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * block-manager.c - typed, locked access to metadata blocks
 *
 * Owns the buffer cache of a metadata device and what is known about the blocks in
 * it.  A locked block is a held buffer and nothing more: its handle is the buffer's
 * address with the lowest bit telling a write lock, so that locking a cached block
 * costs one lookup and no memory.
 *
 * A block has no type on disk; who points at it knows.  At first use it is checked
 * as a block of that type, and the type is kept in the buffer's aux word until the
 * buffer leaves the cache.  The aux word points at an entry of the manager's own
 * table of types rather than at the validator, so that a buffer leads back to its
 * manager (bm_unlock() gets nothing else).
 *
 * Invariants
 *   1  a buffer whose aux is not 0 was found valid as that type, or was made here;
 *   2  a dirty buffer has a type, so that its checksum can be made when it is written;
 *   3  a block is locked by any number of readers or by one writer.  Exclusion comes
 *      from meta_root; debug builds count, and stop the program when readers meet a
 *      writer.  Damaged metadata can name a block twice, though, so that its only writer
 *      comes upon it again: while a block is locked for writing, its aux word says so,
 *      and that is an error;
 *   4  types[0..n) are used without gaps, are never changed and never removed.
 *
 * Locks: none of its own.  Class "block" stands for locked blocks in the checker.
 */
#include "pdata/block-manager.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bufio/bufio.h"
#include "util/cleanup.h"
#include "util/crc32c.h"
#include "util/le.h"
#include "util/log.h"

#define LOG_MODULE "block-manager"

/* Superblock, node, bitmap, index, and room for tests. */
#define MAX_TYPES 8

/* So that a commit and an abort get on without memory: a path and what its space map needs. */
#define RESERVE_BUFFERS 32

/* In handles and in aux words. */
#define WRITE_LOCKED ((uintptr_t)1)

/* What every block in use starts with. */
struct disk_block_header {
	struct le32 csum;
	struct le32 type_specific;
	struct le64 blocknr;
};

struct block_type {
	const struct block_validator *_Atomic validator;
	struct block_manager *bm;
};

struct block_manager {
	struct io_device *dev; /* borrowed */
	struct bufio_client *cache;
	_Atomic mblock_t known_blocks; /* bm_nr_blocks() as last seen; devices do not shrink */
	atomic_bool read_only;
	_Atomic uint64_t failure; /* pack_failure() */
	struct block_type types[MAX_TYPES];
#ifdef TP_DEBUG_LOCKS
	_Atomic int16_t *lock_states; /* a block: readers, or -1 for a writer */
#endif
};

_Static_assert(sizeof(struct bufio_waiter) <= sizeof(((struct block_waiter *)0)->opaque),
	       "a bufio_waiter lives in a block_waiter's opaque part");

/* ---- lock states ---- */

#ifdef TP_DEBUG_LOCKS
static int lock_states_create(struct block_manager *bm)
{
	/* Untouched pages cost nothing, and the device may grow. */
	bm->lock_states = calloc(MAX_METADATA_BLOCKS, sizeof(*bm->lock_states));
	return bm->lock_states ? 0 : -ENOMEM;
}

static void lock_states_destroy(struct block_manager *bm)
{
	free(bm->lock_states);
}

static void note_locked(struct block_manager *bm, const struct locked_block *lb)
{
	_Atomic int16_t *state = &bm->lock_states[block_location(lb)];

	if ((uintptr_t)lb & WRITE_LOCKED) {
		int16_t nobody = 0;
		bool free_before = atomic_compare_exchange_strong(state, &nobody, -1);

		TP_INVARIANT(free_before);
	} else {
		int16_t readers = atomic_fetch_add(state, 1);

		TP_INVARIANT(readers >= 0 && readers < INT16_MAX);
	}
	tp_lock_hold_begin(lb, LC_block);
}

static void note_unlocked(struct block_manager *bm, const struct locked_block *lb)
{
	_Atomic int16_t *state = &bm->lock_states[block_location(lb)];

	tp_lock_hold_end(lb, LC_block);
	if ((uintptr_t)lb & WRITE_LOCKED) {
		int16_t before = atomic_exchange(state, 0);

		TP_INVARIANT(before == -1);
	} else {
		int16_t before = atomic_fetch_sub(state, 1);

		TP_INVARIANT(before > 0);
	}
}
#else
static int lock_states_create(struct block_manager *bm)
{
	(void)bm;
	return 0;
}

static void lock_states_destroy(struct block_manager *bm)
{
	(void)bm;
}

static inline void note_locked(struct block_manager *bm, const struct locked_block *lb)
{
	(void)bm;
	(void)lb;
}

static inline void note_unlocked(struct block_manager *bm, const struct locked_block *lb)
{
	(void)bm;
	(void)lb;
}
#endif

/* ---- failures ---- */

/* One word, so that any thread can leave it: kind, error, block. */
#define FAILURE_KIND_SHIFT 56
#define FAILURE_ERROR_SHIFT 40
_Static_assert(MAX_METADATA_BLOCKS < UINT64_C(1) << FAILURE_ERROR_SHIFT, "a block number fits");

/* Lack of memory is nothing that a device or a block is to blame for. */
static int note_failure(struct block_manager *bm, enum bm_failure_kind kind, mblock_t block, int r)
{
	if (r != -ENOMEM)
		atomic_store_explicit(&bm->failure,
				      (uint64_t)kind << FAILURE_KIND_SHIFT |
					      (uint64_t)-r << FAILURE_ERROR_SHIFT |
					      MIN(block, MAX_METADATA_BLOCKS),
				      memory_order_relaxed);
	return r;
}

struct bm_failure bm_last_failure(const struct block_manager *bm)
{
	uint64_t word = atomic_load_explicit(&bm->failure, memory_order_relaxed);

	return (struct bm_failure){
		.kind = (enum bm_failure_kind)(word >> FAILURE_KIND_SHIFT),
		.error = -(int)(word >> FAILURE_ERROR_SHIFT & 0xffff),
		.block = word & ((UINT64_C(1) << FAILURE_ERROR_SHIFT) - 1),
	};
}

/* ---- types ---- */

static struct block_type *type_of(struct block_manager *bm, const struct block_validator *v)
{
	for (unsigned i = 0; i < MAX_TYPES; i++) {
		struct block_type *type = &bm->types[i];
		const struct block_validator *have = atomic_load(&type->validator);

		/* Whoever loses the race for a free entry finds the winner's type in have. */
		if (!have && atomic_compare_exchange_strong(&type->validator, &have, v))
			return type;
		if (have == v)
			return type;
	}
	TP_INVARIANT(!"more block types than MAX_TYPES");
	return NULL;
}

static const struct block_validator *type_validator(const struct block_type *type)
{
	return atomic_load_explicit(&type->validator, memory_order_relaxed);
}

static struct block_type *buffer_type(const struct bufio_buffer *buffer)
{
	return (struct block_type *)(bufio_aux(buffer) & ~WRITE_LOCKED);
}

static bool is_write_locked(const struct bufio_buffer *buffer)
{
	return bufio_aux(buffer) & WRITE_LOCKED;
}

uint32_t bm_checksum(const void *data, uint32_t csum_xor)
{
	const uint8_t *bytes = data;

	return crc32c_raw(0xffffffff, bytes + sizeof(struct le32),
			  METADATA_BLOCK_SIZE - sizeof(struct le32)) ^
	       csum_xor;
}

/* Called by the cache on the copy it is about to write. */
static void prepare_write(mblock_t block, void *data, uintptr_t aux)
{
	const struct block_type *type = (const struct block_type *)(aux & ~WRITE_LOCKED);
	struct disk_block_header *header = data;

	TP_INVARIANT(type); /* invariant 2 */
	header->blocknr = le64_make(block);
	header->csum = le32_make(bm_checksum(data, type_validator(type)->csum_xor));
}

static int check_content(struct block_manager *bm, mblock_t b, const struct block_validator *v,
			 const void *data)
{
	const struct disk_block_header *header = data;
	int r;

	if (le64_get(header->blocknr) != b) {
		log_err_limited("%s: block %" PRIu64 " (type: %s) says that it is block %" PRIu64
				"; reading it fails",
				io_device_name(bm->dev), b, v->name, le64_get(header->blocknr));
		return -ENOTBLK;
	}
	if (le32_get(header->csum) != bm_checksum(data, v->csum_xor)) {
		log_err_limited("%s: block %" PRIu64 " (type: %s) has checksum 0x%08x, 0x%08x "
				"expected; reading it fails",
				io_device_name(bm->dev), b, v->name, le32_get(header->csum),
				bm_checksum(data, v->csum_xor));
		return -EILSEQ;
	}
	r = v->check ? v->check(data, b, bm_nr_blocks(bm)) : 0;
	if (r)
		log_err_limited("%s: block %" PRIu64 " (type: %s) has the right checksum, but "
				"its content breaks the format's rules; reading it fails",
				io_device_name(bm->dev), b, v->name);
	return r;
}

/* The slow part of locking: a buffer seen for the first time, or of another type. */
static int check_first_use(struct block_manager *bm, mblock_t b, const struct block_validator *v,
			   struct bufio_buffer *buffer)
{
	const struct block_type *type = buffer_type(buffer);
	int r;

	if (is_write_locked(buffer)) {
		log_err_limited("%s: block %" PRIu64 " (type: %s) is being changed as another part "
				"of the metadata; the second use fails",
				io_device_name(bm->dev), b, v->name);
		return -EUCLEAN;
	}
	if (type && type_validator(type) == v)
		return 0; /* another reader was here since the caller looked */
	if (type) {
		log_err_limited("%s: block %" PRIu64 " is used as two types, %s and %s; the "
				"second use fails",
				io_device_name(bm->dev), b, type_validator(type)->name, v->name);
		return -EUCLEAN;
	}
	r = check_content(bm, b, v, bufio_data(buffer));
	if (r)
		return r;

	/* Two readers may both come here; they write the same word. */
	bufio_set_aux(buffer, (uintptr_t)type_of(bm, v));
	return 0;
}

/* Turn a held buffer into a locked block; on failure it is held no more. */
static int lock_buffer(struct block_manager *bm, mblock_t b, const struct block_validator *v,
		       struct bufio_buffer *buffer, uintptr_t mode, struct locked_block **ret_lb)
{
	const struct block_type *type = buffer_type(buffer);
	struct locked_block *lb;

	if (unlikely(is_write_locked(buffer) || !type || type_validator(type) != v)) {
		int r = check_first_use(bm, b, v, buffer);

		if (r) {
			bufio_release(buffer);
			return note_failure(bm, BM_FAILURE_CONTENT, b, r);
		}
	}
	lb = (struct locked_block *)((uintptr_t)buffer | mode);
	note_locked(bm, lb);
	if (mode)
		bufio_set_aux(buffer, bufio_aux(buffer) | WRITE_LOCKED);
	*ret_lb = lb;
	return 0;
}

static struct bufio_buffer *buffer_of(const struct locked_block *lb)
{
	return (struct bufio_buffer *)((uintptr_t)lb & ~WRITE_LOCKED);
}

/* ---- life ---- */

static void block_manager_freep(struct block_manager **bmp)
{
	if (!*bmp)
		return;
	lock_states_destroy(*bmp);
	free(*bmp);
}

int bm_create(struct io_device *dev, const struct block_manager_options *options,
	      struct block_manager **ret_bm)
{
	TP_CLEANUP(block_manager_freep) struct block_manager *bm = calloc(1, sizeof(*bm));
	const struct bufio_options cache_options = {
		.name = io_device_name(dev),
		.limit_bytes = options->cache_bytes,
		.reserve_buffers = RESERVE_BUFFERS,
		.prepare_write = prepare_write,
	};
	int r;

	if (!bm)
		return -ENOMEM;
	bm->dev = dev;
	atomic_init(&bm->read_only, options->read_only);
	for (unsigned i = 0; i < MAX_TYPES; i++)
		bm->types[i].bm = bm;
	r = lock_states_create(bm);
	if (r)
		return r;
	r = bufio_client_create(dev, &cache_options, &bm->cache);
	if (r)
		return r;

	*ret_bm = tp_take(&bm);
	return 0;
}

struct block_manager *bm_destroy(struct block_manager *bm)
{
	if (bm)
		bufio_client_destroy(bm->cache);
	block_manager_freep(&bm);
	return NULL;
}

mblock_t bm_nr_blocks(const struct block_manager *bm)
{
	return MIN(io_device_size(bm->dev) / METADATA_BLOCK_SIZE, MAX_METADATA_BLOCKS);
}

/* ---- locking ---- */

/* Not before the known end: perhaps the device grew, else the pointer is damaged. */
static int check_past_known_end(struct block_manager *bm, mblock_t b,
				const struct block_validator *v)
{
	mblock_t nr_blocks = bm_nr_blocks(bm);

	atomic_store_explicit(&bm->known_blocks, nr_blocks, memory_order_relaxed);
	if (b < nr_blocks)
		return 0;
	log_err_limited("%s: block %" PRIu64 " (type: %s) lies past the end (%" PRIu64
			" blocks); using it fails",
			io_device_name(bm->dev), b, v->name, nr_blocks);
	return note_failure(bm, BM_FAILURE_CONTENT, b, -EUCLEAN);
}

static inline int check_bounds(struct block_manager *bm, mblock_t b,
			       const struct block_validator *v)
{
	if (likely(b < atomic_load_explicit(&bm->known_blocks, memory_order_relaxed)))
		return 0;
	return check_past_known_end(bm, b, v);
}

static int read_and_lock(struct block_manager *bm, mblock_t b, const struct block_validator *v,
			 uintptr_t mode, struct locked_block **ret_lb)
{
	struct bufio_buffer *buffer;
	int r;

	r = check_bounds(bm, b, v);
	if (r)
		return r;
	r = bufio_read(bm->cache, b, &buffer);
	if (r)
		return note_failure(bm, BM_FAILURE_READ, b, r);
	return lock_buffer(bm, b, v, buffer, mode, ret_lb);
}

int bm_read_lock(struct block_manager *bm, mblock_t b, const struct block_validator *v,
		 struct locked_block **ret_lb)
{
	return read_and_lock(bm, b, v, 0, ret_lb);
}

int bm_read_try_lock(struct block_manager *bm, mblock_t b, const struct block_validator *v,
		     struct locked_block **ret_lb)
{
	struct bufio_buffer *buffer;
	int r;

	r = check_bounds(bm, b, v);
	if (r)
		return r;
	r = bufio_get(bm->cache, b, &buffer);
	if (r)
		return r;
	return lock_buffer(bm, b, v, buffer, 0, ret_lb);
}

int bm_write_lock(struct block_manager *bm, mblock_t b, const struct block_validator *v,
		  struct locked_block **ret_lb)
{
	if (bm_is_read_only(bm))
		return -EPERM;
	return read_and_lock(bm, b, v, WRITE_LOCKED, ret_lb);
}

/* A block that is said to be free is not zeroed under who is changing it. */
static int check_unlocked(struct block_manager *bm, mblock_t b, const struct block_validator *v)
{
	struct bufio_buffer *buffer;
	int r = 0;

	if (bufio_get(bm->cache, b, &buffer))
		return 0; /* not cached, so not locked */
	if (is_write_locked(buffer))
		r = check_first_use(bm, b, v, buffer);
	bufio_release(buffer);
	return r;
}

int bm_write_lock_zero(struct block_manager *bm, mblock_t b, const struct block_validator *v,
		       struct locked_block **ret_lb)
{
	struct bufio_buffer *buffer;
	int r;

	if (bm_is_read_only(bm))
		return -EPERM;
	r = check_bounds(bm, b, v);
	if (r)
		return r;
	r = check_unlocked(bm, b, v);
	if (r)
		return r;
	r = bufio_new(bm->cache, b, &buffer);
	if (r)
		return r;
	bufio_set_aux(buffer, (uintptr_t)type_of(bm, v));
	return lock_buffer(bm, b, v, buffer, WRITE_LOCKED, ret_lb);
}

void bm_unlock(struct locked_block *lb)
{
	struct bufio_buffer *buffer = buffer_of(lb);

	note_unlocked(buffer_type(buffer)->bm, lb);
	if ((uintptr_t)lb & WRITE_LOCKED) {
		bufio_set_aux(buffer, bufio_aux(buffer) & ~WRITE_LOCKED);
		bufio_mark_dirty(buffer);
	}
	bufio_release(buffer);
}

mblock_t block_location(const struct locked_block *lb)
{
	return bufio_block(buffer_of(lb));
}

const void *block_data(const struct locked_block *lb)
{
	return bufio_data(buffer_of(lb));
}

void *block_data_mut(struct locked_block *lb)
{
	TP_INVARIANT((uintptr_t)lb & WRITE_LOCKED);
	return bufio_data(buffer_of(lb));
}

/* ---- the whole device ---- */

int bm_read_raw(struct block_manager *bm, mblock_t b, void *data)
{
	int r;

	if (b >= bm_nr_blocks(bm))
		return note_failure(bm, BM_FAILURE_CONTENT, b, -EUCLEAN);
	r = io_device_read(bm->dev, data, METADATA_BLOCK_SIZE, b * METADATA_BLOCK_SIZE);
	return r ? note_failure(bm, BM_FAILURE_READ, b, r) : 0;
}

int bm_flush(struct block_manager *bm)
{
	int r;

	if (bm_is_read_only(bm))
		return -EPERM;
	r = bufio_write_dirty_buffers(bm->cache);
	if (r)
		return note_failure(bm, BM_FAILURE_WRITE, bufio_failed_block(bm->cache), r);
	r = bufio_issue_flush(bm->cache);
	return r ? note_failure(bm, BM_FAILURE_FLUSH, 0, r) : 0;
}

void bm_reset(struct block_manager *bm)
{
	bufio_client_reset(bm->cache);
}

void bm_prefetch(struct block_manager *bm, mblock_t b, unsigned nr_blocks)
{
	mblock_t end = bm_nr_blocks(bm);

	if (b < end)
		bufio_prefetch(bm->cache, b, MIN(nr_blocks, end - b));
}

static void read_done(struct bufio_waiter *bw, int r)
{
	struct block_waiter *w = container_of(bw, struct block_waiter, opaque);

	w->done(w, r);
}

int bm_read_async(struct block_manager *bm, mblock_t b, struct block_waiter *w)
{
	struct bufio_waiter *bw = (struct bufio_waiter *)w->opaque;

	if (b >= bm_nr_blocks(bm))
		return -EUCLEAN;
	bw->done = read_done;
	return bufio_read_async(bm->cache, b, bw);
}

void bm_forget(struct block_manager *bm, mblock_t b)
{
	bufio_forget(bm->cache, b);
}

void bm_set_read_only(struct block_manager *bm, bool read_only)
{
	atomic_store(&bm->read_only, read_only);
}

bool bm_is_read_only(const struct block_manager *bm)
{
	return atomic_load_explicit(&bm->read_only, memory_order_relaxed);
}

void bm_get_stats(struct block_manager *bm, struct cache_stats *ret_stats)
{
	bufio_get_stats(bm->cache, ret_stats);
}

void bm_set_cache_limit(struct block_manager *bm, uint64_t bytes)
{
	bufio_set_limit(bm->cache, bytes);
}
