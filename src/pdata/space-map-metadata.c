/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * space-map-metadata.c - counts of the metadata device's own blocks
 *
 * Changing a count may copy a bitmap, a node of the overflow tree or the index: that
 * allocates a block and frees another, which are changes of counts again.  So changes are
 * queued, first in first out, and only the outermost call applies them; what applying brings up is
 * appended, until the queue is empty.  It ends because a block is copied once a transaction.
 * The order matters: a block can be allocated and freed again within one operation, and
 * must not lose its user before it has one.
 *
 *      outermost call                          nested, out of the transaction manager
 *      --------------                          --------------------------------------
 *      append; apply until the queue is empty  append, return
 *
 * While the map is made or grown its bitmaps cannot be asked yet (or have no room): then
 * a second table of operations hands out consecutive blocks of the new area, takes every block
 * for unshared, and only queues.  What was handed out is counted afterwards.
 *
 * A pin keeps the committed state readable for somebody else: no block that it uses is handed
 * out before the pin goes, whatever is committed meanwhile.  Two sets in memory are all it takes:
 *
 *   taken     blocks that got a first user since the pin: it does not need them
 *   freed     others that lost their last; with the next commit they become
 *   pinned    free in both states, and avoided by the search
 *
 * Invariants
 *  1. depth is 0 outside of calls; then the queue is empty, unless the map is broken.
 *  2. a block handed out is free in both states, has no increment pending and none being applied.
 *  3. after an error inside a change the map is broken: the same error is the answer to every
 *     further change.  Queries go on.
 *
 * Locks: the caller's meta_root, shared for queries.
 */
#include "pdata/space-map-metadata.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "pdata/space-map-common.h"
#include "util/log.h"

#define LOG_MODULE "space-map"

/* A transaction copies each of at most 255 bitmaps once; a million is a bug or damage. */
#define QUEUE_MIN 1024u
#define QUEUE_MAX (1024u * 1024u)

/* Below this many extra blocks an extension takes its bitmaps from anywhere: see metadata_extend().
 */
#define BOOTSTRAP_MIN_BLOCKS 1024u

/* A change of the counts of [begin, end) that is due. */
struct pending {
	enum sm_change how;
	uint64_t begin, end;
};

/* A ring, growing by doubling. */
struct queue {
	struct pending *ring;
	unsigned size; /* a power of two */
	unsigned head, nr;
};

struct sm_metadata {
	struct space_map sm;
	struct sm_ll ll;
	struct queue queue;
	struct pending applying; /* begin == end: none */
	unsigned depth;
	int broken;

	uint64_t bootstrap_next, bootstrap_end;

	uint64_t threshold;
	bool below_threshold;
	void (*threshold_fn)(void *ctx);
	void *threshold_ctx;

	unsigned nr_pins; /* without, the sets are empty */
	uint32_t pins_lost;
	struct sparse_bitmap taken, freed, pinned;
};

static const struct space_map_ops metadata_ops;
static const struct space_map_ops bootstrap_ops;

static struct sm_metadata *to_metadata(struct space_map *sm)
{
	return container_of(sm, struct sm_metadata, sm);
}

/* ---- queue ---- */

static struct pending *queue_at(const struct queue *q, unsigned k)
{
	return &q->ring[(q->head + k) & (q->size - 1)];
}

static int queue_grow(struct queue *q)
{
	unsigned size = q->size ? 2 * q->size : QUEUE_MIN;
	struct pending *ring;

	if (size > QUEUE_MAX) {
		log_err("metadata map: %u changes of counts are pending; the operation fails",
			q->nr);
		return -ENOMEM;
	}
	ring = calloc(size, sizeof(*ring));
	if (!ring)
		return -ENOMEM;
	for (unsigned k = 0; k < q->nr; k++)
		ring[k] = *queue_at(q, k);
	free(q->ring);
	*q = (struct queue){ .ring = ring, .size = size, .nr = q->nr };
	return 0;
}

static int queue_push(struct queue *q, enum sm_change how, uint64_t begin, uint64_t end)
{
	struct pending *last = q->nr ? queue_at(q, q->nr - 1) : NULL;
	int r;

	if (begin == end)
		return 0;
	if (last && last->how == how && last->end == begin) {
		last->end = end;
		return 0;
	}
	if (q->nr == q->size) {
		r = queue_grow(q);
		if (r)
			return r;
	}
	*queue_at(q, q->nr++) = (struct pending){ .how = how, .begin = begin, .end = end };
	return 0;
}

static struct pending queue_pop(struct queue *q)
{
	struct pending first = *queue_at(q, 0);

	q->head = (q->head + 1) & (q->size - 1);
	q->nr--;
	return first;
}

/* What the queue will add to the count of @b. */
static int64_t queue_sum(const struct queue *q, uint64_t b)
{
	int64_t sum = 0;

	for (unsigned k = 0; k < q->nr; k++) {
		const struct pending *p = queue_at(q, k);

		if (p->begin <= b && b < p->end)
			sum += p->how == SM_INC ? 1 : -1;
	}
	return sum;
}

/* ---- index: one block ---- */

static int index_check(const void *data, mblock_t block, mblock_t nr_blocks)
{
	(void)data;
	(void)block;
	(void)nr_blocks;
	return 0; /* entries are checked when used: how many there are says the root */
}

static const struct block_validator index_validator = {
	.name = "metadata index",
	.csum_xor = INDEX_CSUM_XOR,
	.check = index_check,
};

static int create_index(struct sm_ll *ll, mblock_t *ret_root)
{
	struct locked_block *lb;
	int r;

	r = tm_new_block(ll->tm, &index_validator, &lb);
	if (r)
		return r;
	*ret_root = block_location(lb);
	tm_unlock(ll->tm, lb);
	return 0;
}

static int load_index(struct sm_ll *ll, uint64_t first, uint64_t end,
		      struct sm_index_entry *entries)
{
	const struct disk_metadata_index *disk;
	struct locked_block *lb;
	int r;

	r = tm_read_lock(ll->tm, ll->now.bitmap_root, &index_validator, &lb);
	if (r)
		return r;
	disk = block_data(lb);
	for (uint64_t i = first; i < end; i++)
		sm_index_entry_from_disk(&entries[i - first], &disk->index[i]);
	tm_unlock(ll->tm, lb);
	return 0;
}

/* Copying the index block changes counts, hence entries: they are written out only after that. */
static int write_index(struct sm_ll *ll)
{
	const struct sm_index_chunk *chunk;
	struct disk_metadata_index *disk;
	struct locked_block *lb;
	bool inc; /* the bitmaps have one user each whatever happens to the index */
	int r;

	r = tm_shadow_block(ll->tm, ll->now.bitmap_root, &index_validator, &lb, &inc);
	if (r)
		return r;
	ll->now.bitmap_root = block_location(lb);
	disk = block_data_mut(lb);
	chunk = sm_index_loaded_chunk(&ll->index, 0);
	for (unsigned i = 0; i < MAX_METADATA_BITMAPS; i++)
		sm_index_entry_to_disk(&chunk->entries[i], &disk->index[i]);
	tm_unlock(ll->tm, lb);
	return 0;
}

/* Invariant 2.  The cursor wraps onto such blocks only when the device is nearly full. */
static uint64_t skip_pending(struct sm_ll *ll, uint64_t b)
{
	struct sm_metadata *smm = container_of(ll, struct sm_metadata, ll);
	const struct pending *p = &smm->applying;

	if (p->how == SM_INC && p->begin <= b && b < p->end)
		return p->end;
	for (unsigned k = 0; k < smm->queue.nr; k++) {
		p = queue_at(&smm->queue, k);
		if (p->how == SM_INC && p->begin <= b && b < p->end)
			return p->end;
	}
	return 0;
}

/* ---- pins ---- */

static void forget_pinned(struct sm_metadata *smm)
{
	sparse_bitmap_clear(&smm->taken);
	sparse_bitmap_clear(&smm->freed);
	sparse_bitmap_clear(&smm->pinned);
	smm->ll.exhausted = false;
}

static void drop_pins(struct sm_metadata *smm)
{
	smm->pins_lost += smm->nr_pins != 0;
	smm->nr_pins = 0;
	forget_pinned(smm);
}

static int note_moved(struct sm_metadata *smm, uint64_t b, bool fresh, enum sm_change how)
{
	if (how == SM_INC && fresh)
		return sparse_bitmap_set_range(&smm->taken, b, b + 1);
	if (how == SM_INC)
		sparse_bitmap_clear_range(&smm->freed, b, b + 1);
	else if (!fresh && !sparse_bitmap_test(&smm->taken, b))
		return sparse_bitmap_set_range(&smm->freed, b, b + 1);
	return 0;
}

/* A pin that cannot be kept is lost, and whoever relies on it finds that out. */
static void moved(struct sm_ll *ll, uint64_t base, uint32_t mask, uint32_t fresh,
		  enum sm_change how)
{
	struct sm_metadata *smm = container_of(ll, struct sm_metadata, ll);

	for (; smm->nr_pins && mask; mask &= mask - 1) {
		unsigned k = (unsigned)__builtin_ctz(mask);

		if (note_moved(smm, base + k, fresh >> k & 1, how))
			drop_pins(smm);
	}
}

static void pin_run(void *ctx, uint64_t begin, uint64_t end)
{
	struct sm_metadata *smm = ctx;

	if (smm->nr_pins && sparse_bitmap_set_range(&smm->pinned, begin, end))
		drop_pins(smm);
}

/* What was freed is free in both states now. */
static void pin_freed(struct sm_metadata *smm)
{
	struct sparse_bitmap freed = smm->freed;

	smm->freed = (struct sparse_bitmap){ 0 };
	if (freed.nr_set && sparse_bitmap_for_each_run(&freed, pin_run, smm))
		drop_pins(smm);
	sparse_bitmap_clear(&freed);
}

/* A further pin has more blocks than the first: those that were taken since. */
uint32_t sm_metadata_pin(struct space_map *sm)
{
	struct sm_metadata *smm = to_metadata(sm);

	sparse_bitmap_clear(&smm->taken);
	smm->nr_pins++;
	return smm->pins_lost;
}

bool sm_metadata_unpin(struct space_map *sm, uint32_t pin)
{
	struct sm_metadata *smm = to_metadata(sm);

	if (pin != smm->pins_lost)
		return false;
	TP_INVARIANT(smm->nr_pins);
	if (--smm->nr_pins == 0)
		forget_pinned(smm);
	return true;
}

bool sm_metadata_drop_pins(struct space_map *sm)
{
	struct sm_metadata *smm = to_metadata(sm);
	bool any = smm->pinned.nr_set != 0;

	if (any)
		drop_pins(smm);
	return any;
}

static const struct sm_ll_ops ll_ops = {
	.name = "metadata",
	.max_blocks = MAX_METADATA_BLOCKS,
	.create_index = create_index,
	.load_index = load_index,
	.write_index = write_index,
	.skip = skip_pending,
	.moved = moved,
};

/* ---- changes ---- */

static int apply_pending(struct sm_metadata *smm)
{
	int r = 0;

	smm->depth++;
	while (!r && smm->queue.nr) {
		smm->applying = queue_pop(&smm->queue);
		r = sm_ll_change(&smm->ll, smm->applying.begin, smm->applying.end,
				 smm->applying.how);
	}
	smm->applying.begin = smm->applying.end;
	smm->depth--;
	if (r)
		smm->broken = r;
	return r;
}

static uint64_t raw_free(const struct sm_metadata *smm)
{
	const struct sm_ll_state *committed = &smm->ll.committed;
	uint64_t used = committed->nr_allocated + smm->ll.nr_taken + smm->pinned.nr_set;

	return committed->nr_blocks - MIN(used, committed->nr_blocks);
}

/* After an allocation.  Edge-triggered; commit and sm_metadata_set_threshold() re-arm it. */
static void check_threshold(struct sm_metadata *smm)
{
	if (smm->below_threshold || !smm->threshold_fn || raw_free(smm) > smm->threshold)
		return;
	smm->below_threshold = true;
	smm->threshold_fn(smm->threshold_ctx);
}

static int change(struct sm_metadata *smm, enum sm_change how, uint64_t begin, uint64_t end)
{
	int r;

	if (smm->broken)
		return smm->broken;
	r = sm_ll_check_range(&smm->ll, begin, end);
	if (r)
		return r;
	r = queue_push(&smm->queue, how, begin, end);
	if (r || smm->depth)
		return r;
	return apply_pending(smm);
}

static int metadata_inc_blocks(struct space_map *sm, uint64_t begin, uint64_t end)
{
	return change(to_metadata(sm), SM_INC, begin, end);
}

static int metadata_dec_blocks(struct space_map *sm, uint64_t begin, uint64_t end)
{
	return change(to_metadata(sm), SM_DEC, begin, end);
}

static int metadata_new_block(struct space_map *sm, uint64_t *ret_b)
{
	struct sm_metadata *smm = to_metadata(sm);
	uint64_t b;
	int r;

	if (smm->broken)
		return smm->broken;
	r = sm_ll_find_new(&smm->ll, smm->ll.now.nr_blocks, &b);
	if (r == -ENOSPC && smm->pinned.nr_set) {
		drop_pins(smm);
		r = sm_ll_find_new(&smm->ll, smm->ll.now.nr_blocks, &b);
	}
	if (r)
		return r;
	r = change(smm, SM_INC, b, b + 1);
	if (r)
		return r;
	if (!smm->depth)
		check_threshold(smm);
	*ret_b = b;
	return 0;
}

/* ---- queries ---- */

static int metadata_get_nr_blocks(struct space_map *sm, uint64_t *ret_count)
{
	*ret_count = to_metadata(sm)->ll.committed.nr_blocks;
	return 0;
}

static int metadata_get_nr_free(struct space_map *sm, uint64_t *ret_count)
{
	return sm_ll_nr_free(&to_metadata(sm)->ll, ret_count);
}

/*
 * Inside a change the tree may be locked or half changed, so it is not asked: three
 * stands for three or more.  Whoever asks then wants to know about 0 and 1 only.
 */
static int metadata_get_count(struct space_map *sm, uint64_t b, uint32_t *ret_count)
{
	struct sm_metadata *smm = to_metadata(sm);
	int64_t count;
	unsigned bits;
	int r;

	if (!smm->depth && !smm->queue.nr)
		return sm_ll_get_count(&smm->ll, b, ret_count);
	r = sm_ll_get_bits(&smm->ll, b, &bits);
	if (r)
		return r;
	count = (int64_t)bits + queue_sum(&smm->queue, b);
	*ret_count = (uint32_t)MAX(count, 0);
	return 0;
}

static int metadata_count_is_more_than_one(struct space_map *sm, uint64_t b, bool *ret_more)
{
	struct sm_metadata *smm = to_metadata(sm);
	unsigned bits;
	int r;

	r = sm_ll_get_bits(&smm->ll, b, &bits);
	if (r)
		return r;
	*ret_more = bits == 3 || (int64_t)bits + queue_sum(&smm->queue, b) > 1;
	return 0;
}

/* ---- extending, commit ---- */

/* Count what the bootstrap handed out, and what counting it hands out, until it ends. */
static int count_bootstrap(struct sm_metadata *smm, uint64_t from)
{
	int r = 0;

	while (!r && (from < smm->bootstrap_next || smm->queue.nr)) {
		r = queue_push(&smm->queue, SM_INC, from, smm->bootstrap_next);
		from = smm->bootstrap_next;
		if (!r)
			r = apply_pending(smm);
	}
	return r;
}

/*
 * The device may be full, so the new bitmaps, and the copies of old ones needed to count
 * them, go into the new area.  The index is written at the commit, when allocation works again.
 * An extension too small to hold all that takes what it needs from the old area.
 */
static int metadata_extend(struct space_map *sm, uint64_t extra_blocks)
{
	struct sm_metadata *smm = to_metadata(sm);
	uint64_t from = smm->ll.now.nr_blocks;
	int r;

	if (smm->broken)
		return smm->broken;
	if (extra_blocks > MAX_METADATA_BLOCKS - from ||
	    from + extra_blocks > bm_nr_blocks(smm->ll.bm))
		return -EINVAL;
	if (extra_blocks < BOOTSTRAP_MIN_BLOCKS) {
		r = sm_ll_extend(&smm->ll, extra_blocks);
	} else {
		smm->bootstrap_next = from;
		smm->bootstrap_end = from + extra_blocks;
		smm->sm.ops = &bootstrap_ops;
		r = sm_ll_extend(&smm->ll, extra_blocks);
		if (!r)
			r = count_bootstrap(smm, from);
		smm->sm.ops = &metadata_ops;
		smm->ll.cursor = smm->bootstrap_next;
	}
	if (r)
		smm->broken = r;
	return r;
}

static int metadata_commit(struct space_map *sm)
{
	struct sm_metadata *smm = to_metadata(sm);
	int r;

	if (smm->broken)
		return smm->broken;
	r = sm_ll_commit(&smm->ll);
	if (r) {
		smm->broken = r;
		return r;
	}
	pin_freed(smm);
	if (raw_free(smm) > smm->threshold)
		smm->below_threshold = false;
	return 0;
}

static void metadata_copy_root(struct space_map *sm, struct disk_sm_root *ret_root)
{
	sm_ll_copy_root(&to_metadata(sm)->ll, ret_root);
}

static void metadata_destroy(struct space_map *sm)
{
	struct sm_metadata *smm = to_metadata(sm);

	sm_ll_exit(&smm->ll);
	drop_pins(smm);
	free(smm->queue.ring);
	free(smm);
}

static const struct space_map_ops metadata_ops = {
	.destroy = metadata_destroy,
	.extend = metadata_extend,
	.get_nr_blocks = metadata_get_nr_blocks,
	.get_nr_free = metadata_get_nr_free,
	.get_count = metadata_get_count,
	.count_is_more_than_one = metadata_count_is_more_than_one,
	.inc_blocks = metadata_inc_blocks,
	.dec_blocks = metadata_dec_blocks,
	.new_block = metadata_new_block,
	.commit = metadata_commit,
	.copy_root = metadata_copy_root,
};

/* ---- bootstrap ---- */

static int bootstrap_new_block(struct space_map *sm, uint64_t *ret_b)
{
	struct sm_metadata *smm = to_metadata(sm);

	if (smm->bootstrap_next >= smm->bootstrap_end)
		return -ENOSPC;
	*ret_b = smm->bootstrap_next++;
	return 0;
}

static int bootstrap_inc_blocks(struct space_map *sm, uint64_t begin, uint64_t end)
{
	return queue_push(&to_metadata(sm)->queue, SM_INC, begin, end);
}

static int bootstrap_dec_blocks(struct space_map *sm, uint64_t begin, uint64_t end)
{
	return queue_push(&to_metadata(sm)->queue, SM_DEC, begin, end);
}

static int bootstrap_get_count(struct space_map *sm, uint64_t b, uint32_t *ret_count)
{
	(void)sm;
	(void)b;
	*ret_count = 1;
	return 0;
}

static int bootstrap_count_is_more_than_one(struct space_map *sm, uint64_t b, bool *ret_more)
{
	(void)sm;
	(void)b;
	*ret_more = false;
	return 0;
}

static int bootstrap_get_nr_free(struct space_map *sm, uint64_t *ret_count)
{
	struct sm_metadata *smm = to_metadata(sm);

	*ret_count = smm->bootstrap_end - smm->bootstrap_next;
	return 0;
}

static int bootstrap_extend(struct space_map *sm, uint64_t extra_blocks)
{
	(void)sm;
	(void)extra_blocks;
	return -EINVAL;
}

static int bootstrap_commit(struct space_map *sm)
{
	(void)sm;
	return -EINVAL;
}

static const struct space_map_ops bootstrap_ops = {
	.destroy = metadata_destroy,
	.extend = bootstrap_extend,
	.get_nr_blocks = metadata_get_nr_blocks,
	.get_nr_free = bootstrap_get_nr_free,
	.get_count = bootstrap_get_count,
	.count_is_more_than_one = bootstrap_count_is_more_than_one,
	.inc_blocks = bootstrap_inc_blocks,
	.dec_blocks = bootstrap_dec_blocks,
	.new_block = bootstrap_new_block,
	.commit = bootstrap_commit,
	.copy_root = metadata_copy_root,
};

/* ---- life ---- */

struct space_map *sm_metadata_init(void)
{
	struct sm_metadata *smm = calloc(1, sizeof(*smm));

	if (!smm)
		return NULL;
	smm->sm.ops = &metadata_ops;
	return &smm->sm;
}

int sm_metadata_create(struct space_map *sm, struct transaction_manager *tm, mblock_t nr_blocks,
		       mblock_t first)
{
	struct sm_metadata *smm = to_metadata(sm);
	int r;

	sm_ll_init(&smm->ll, tm, &ll_ops);
	smm->ll.avoid = &smm->pinned;
	if (nr_blocks > MAX_METADATA_BLOCKS || nr_blocks > bm_nr_blocks(smm->ll.bm))
		return -EINVAL;
	smm->bootstrap_next = first;
	smm->bootstrap_end = nr_blocks;
	sm->ops = &bootstrap_ops;
	r = sm_ll_create(&smm->ll);
	if (!r)
		r = sm_ll_extend(&smm->ll, nr_blocks);
	sm->ops = &metadata_ops;
	if (!r)
		r = change(smm, SM_INC, 0, smm->bootstrap_next);
	if (r) {
		smm->broken = r;
		return r;
	}
	smm->ll.cursor = smm->bootstrap_next;
	return metadata_commit(sm);
}

int sm_metadata_open(struct space_map *sm, struct transaction_manager *tm,
		     const struct disk_sm_root *root)
{
	struct sm_metadata *smm = to_metadata(sm);
	struct sm_index_chunk *chunk;
	int r;

	sm_ll_init(&smm->ll, tm, &ll_ops);
	smm->ll.avoid = &smm->pinned;
	r = sm_ll_open(&smm->ll, root);
	if (r)
		return r;
	if (!smm->ll.now.nr_blocks || smm->ll.now.nr_blocks > bm_nr_blocks(smm->ll.bm)) {
		log_err("metadata map: it counts %" PRIu64 " blocks, the device has %" PRIu64
			"; it cannot be opened",
			smm->ll.now.nr_blocks, bm_nr_blocks(smm->ll.bm));
		return -EUCLEAN;
	}
	return sm_index_get_chunk(&smm->ll.index, 0, sm_ll_load_chunk, &smm->ll, &chunk);
}

void sm_metadata_set_threshold(struct space_map *sm, uint64_t threshold_blocks,
			       void (*fn)(void *ctx), void *ctx)
{
	struct sm_metadata *smm = to_metadata(sm);

	smm->threshold = threshold_blocks;
	smm->threshold_fn = fn;
	smm->threshold_ctx = ctx;
	smm->below_threshold = false;
}
