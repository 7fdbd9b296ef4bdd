/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bufio.c - the buffer cache of the metadata device: life, lookup, and the reset in place
 *
 * A client has 64 shards.  A shard is a hash table with a rwlock, a clean list (in clock
 * order) and a dirty list.  A hit takes the shard's lock shared and touches nothing of the
 * client's.  Everything slow (memory, waiting, write-back) is guarded by the client's lock.
 *
 * Invariants:
 *   1. A buffer is hashed in one shard at most, and is on that shard's dirty list if
 *      BUFFER_DIRTY is set, else on its clean list.
 *   2. A hashed buffer that is not READING has the content the block is to have.
 *   3. Held, READING, WRITING and dirty buffers are not evicted.
 *   4. At most one write of a block is in flight: a WRITING buffer stays hashed until
 *      its write has ended, so nobody can create a second buffer for the block.
 *   5. While "resetting" is set no pass of the helper and no write pass starts, and
 *      no asynchronous read.
 *
 * The reset needs meta_root, the locks of this cache and the metadata device, and waits
 * for nobody who needs more than the latter two: for no event loop, whose thread may be asleep. The
 * registry of shrinkers is taken by create and destroy only: that is what the cache is reset for.
 */
#include "bufio/bufio-internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BUCKET_BITS_MIN 4
#define BUCKET_BITS_MAX 16
#define RESERVE_MIN 6 /* a B-tree operation holds no more at a time */

/* ---- shards ---- */

static inline unsigned bucket_of(mblock_t block, unsigned bits)
{
	return (unsigned)((block * UINT64_C(0x9e3779b97f4a7c15)) >> (64 - bits));
}

struct bufio_buffer *shard_find(const struct bufio_shard *s, mblock_t block)
{
	struct bufio_buffer *b = s->buckets[bucket_of(block, s->bucket_bits)];

	while (b && b->block != block)
		b = b->next;
	return b;
}

void shard_insert(struct bufio_shard *s, struct bufio_buffer *b, mblock_t block, unsigned state)
{
	struct bufio_buffer **head = &s->buckets[bucket_of(block, s->bucket_bits)];

	b->block = block;
	b->error = 0;
	b->age = 0;
	b->pass = 0;
	b->reader = NULL;
	buffer_set_state(b, state);
	b->next = *head;
	*head = b;
	TAILQ_INSERT_TAIL(&s->clean, b, link);
	atomic_fetch_add_explicit(&s->nr_buffers, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&b->client->nr_cached, 1, memory_order_relaxed);
}

void shard_remove(struct bufio_shard *s, struct bufio_buffer *b)
{
	struct bufio_buffer **p = &s->buckets[bucket_of(b->block, s->bucket_bits)];

	while (*p != b)
		p = &(*p)->next;
	*p = b->next;
	if (buffer_state(b) & BUFFER_DIRTY)
		buffer_make_clean(s, b);
	TAILQ_REMOVE(&s->clean, b, link);
	atomic_fetch_sub_explicit(&s->nr_buffers, 1, memory_order_relaxed);
	atomic_fetch_sub_explicit(&b->client->nr_cached, 1, memory_order_relaxed);
}

void buffer_make_dirty(struct bufio_shard *s, struct bufio_buffer *b)
{
	buffer_set_state(b, (buffer_state(b) | BUFFER_DIRTY) & ~BUFFER_DROP);
	TAILQ_REMOVE(&s->clean, b, link);
	TAILQ_INSERT_TAIL(&s->dirty, b, link);
	atomic_fetch_add_explicit(&b->client->nr_dirty, 1, memory_order_relaxed);
}

void buffer_make_clean(struct bufio_shard *s, struct bufio_buffer *b)
{
	buffer_set_state(b, buffer_state(b) & ~BUFFER_DIRTY);
	TAILQ_REMOVE(&s->dirty, b, link);
	TAILQ_INSERT_TAIL(&s->clean, b, link);
	atomic_fetch_sub_explicit(&b->client->nr_dirty, 1, memory_order_relaxed);
}

/* As many buckets as there can be buffers; a table that cannot be had is done without. */
static void shard_size(struct bufio_shard *s, uint64_t limit) TP_TAKES(bufio)
{
	struct bufio_buffer **buckets, **old, *b, *next;
	unsigned bits = BUCKET_BITS_MIN;

	while (bits < BUCKET_BITS_MAX && (UINT64_C(1) << bits) < limit / NR_SHARDS)
		bits++;
	buckets = calloc((size_t)1 << bits, sizeof(struct bufio_buffer *));
	if (!buckets)
		return;

	lock_bufio(&s->lock);
	for (size_t i = 0; s->buckets && i < (size_t)1 << s->bucket_bits; i++) {
		for (b = s->buckets[i]; b; b = next) {
			struct bufio_buffer **head = &buckets[bucket_of(b->block, bits)];

			next = b->next;
			b->next = *head;
			*head = b;
		}
	}
	old = s->buckets;
	s->buckets = buckets;
	s->bucket_bits = bits;
	unlock_bufio(&s->lock);
	free(old);
}

/* ---- life ---- */

/* Nobody else knows the client yet. */
TP_NO_TSA static int client_init(struct bufio_client *c, struct io_device *dev,
				 const struct bufio_options *options)
{
	c->dev = dev;
	c->prepare_write = options->prepare_write;
	c->reserve = MAX(options->reserve_buffers, RESERVE_MIN);
	c->limit = MAX(options->limit_bytes / METADATA_BLOCK_SIZE, 1);
	tp_lock_init(&c->lock, LC_bufio_lru, LOCK_KIND_MUTEX);
	tp_cond_init(&c->changed);
	tp_cond_init(&c->work);
	STAILQ_INIT(&c->calls);
	for (unsigned i = 0; i < NR_SHARDS; i++) {
		struct bufio_shard *s = &c->shards[i];

		tp_lock_init(&s->lock, LC_bufio, LOCK_KIND_RW);
		TAILQ_INIT(&s->clean);
		TAILQ_INIT(&s->dirty);
	}
	for (unsigned i = 0; i < NR_SHARDS; i++) {
		shard_size(&c->shards[i], c->limit);
		if (!c->shards[i].buckets)
			return -ENOMEM;
	}
	c->name = strdup(options->name);
	return c->name ? 0 : -ENOMEM;
}

static int client_start(struct bufio_client *c)
{
	int r = write_init(c);

	if (r)
		return r;
	reserve_refill(c);
	if (!reserve_is_full(c))
		return -ENOMEM;
	r = helper_start(c);
	if (r)
		return r;
	return shrinker_register(c->name, &bufio_shrinker_ops, c, &c->shrinker);
}

int bufio_client_create(struct io_device *dev, const struct bufio_options *options,
			struct bufio_client **ret_c)
{
	struct bufio_client *c =
		aligned_alloc(_Alignof(struct bufio_client), sizeof(struct bufio_client));
	int r;

	if (!c)
		return -ENOMEM;
	memset(c, 0, sizeof(*c));
	r = client_init(c, dev, options);
	if (!r)
		r = client_start(c);
	if (r) {
		(void)bufio_client_destroy(c);
		return r;
	}
	*ret_c = c;
	return 0;
}

/* Everything cached goes, dirty or not.  Nothing is in flight and nothing held. */
static void drop_all(struct bufio_client *c) TP_TAKES(bufio)
{
	for (unsigned i = 0; i < NR_SHARDS; i++) {
		struct bufio_shard *s = &c->shards[i];
		struct buffer_list dropped = TAILQ_HEAD_INITIALIZER(dropped);
		struct bufio_buffer *b;

		lock_bufio(&s->lock);
		while ((b = TAILQ_FIRST(&s->dirty)) || (b = TAILQ_FIRST(&s->clean))) {
			TP_INVARIANT(atomic_load(&b->hold) == 0);
			TP_INVARIANT(!(buffer_state(b) & (BUFFER_READING | BUFFER_WRITING)));
			shard_remove(s, b);
			TAILQ_INSERT_TAIL(&dropped, b, link);
		}
		unlock_bufio(&s->lock);

		while ((b = TAILQ_FIRST(&dropped))) {
			TAILQ_REMOVE(&dropped, b, link);
			buffer_free(c, b);
		}
	}
}

/* Copes with what client_init() and client_start() left unbuilt.  At the end nobody else knows it.
 */
TP_NO_TSA struct bufio_client *bufio_client_destroy(struct bufio_client *c)
{
	if (!c)
		return NULL;
	c->shrinker = shrinker_unregister(c->shrinker);
	helper_stop(c);
	reads_drain(c);
	drop_all(c);
	memory_destroy(c);
	write_destroy(c);
	for (unsigned i = 0; i < NR_SHARDS; i++) {
		tp_lock_destroy(&c->shards[i].lock);
		free(c->shards[i].buckets);
	}
	pthread_cond_destroy(&c->work);
	pthread_cond_destroy(&c->changed);
	tp_lock_destroy(&c->lock);
	free(c->name);
	free(c);
	return NULL;
}

/* ---- reset ---- */

static void reset_begin(struct bufio_client *c) TP_TAKES(bufio)
{
	tp_lock_may_wait(LC_bufio);
	lock_bufio_lru(&c->lock);
	TP_INVARIANT(!c->resetting);
	c->resetting = true;
	c->wanted = (struct helper_work){ .shrink = 0 };
	while (c->helper_busy || c->writer_busy)
		tp_lock_wait(&c->lock, &c->changed);
	unlock_bufio_lru(&c->lock);
}

static void reset_end(struct bufio_client *c) TP_TAKES(bufio_lru)
{
	lock_bufio_lru(&c->lock);
	c->write_error = 0;
	c->wanted = (struct helper_work){ .shrink = 0 };
	c->scans_done = c->scans_asked;
	c->resetting = false;
	pthread_cond_broadcast(&c->changed);
	pthread_cond_signal(&c->work);
	unlock_bufio_lru(&c->lock);
}

void bufio_client_reset(struct bufio_client *c)
{
	tp_lock_assert_held(LC_meta_root);
	TP_INVARIANT(!bufio_self.submitting);

	reset_begin(c);
	reads_abandon(c);
	drop_all(c);
	reserve_refill(c);
	reset_end(c);
	atomic_fetch_add(&c->resets, 1);
}

/* ---- buffers ---- */

static struct bufio_counters *own_counters(struct bufio_client *c)
{
	uint64_t thread = (uintptr_t)&bufio_self;

	return &c->counters[(thread * UINT64_C(0x9e3779b97f4a7c15)) >> (64 - COUNTER_BITS)];
}

int bufio_get(struct bufio_client *c, mblock_t block, struct bufio_buffer **ret_b)
{
	struct bufio_shard *s = shard_of(c, block);
	struct bufio_buffer *b;

	lock_bufio_shared(&s->lock);
	b = shard_find(s, block);
	if (unlikely(!b || (buffer_state(b) & BUFFER_READING))) {
		unlock_bufio_shared(&s->lock);
		atomic_fetch_add_explicit(&own_counters(c)->misses, 1, memory_order_relaxed);
		return -EWOULDBLOCK;
	}
	atomic_fetch_add_explicit(&b->hold, 1, memory_order_relaxed);
	unlock_bufio_shared(&s->lock);
	atomic_fetch_add_explicit(&own_counters(c)->hits, 1, memory_order_relaxed);

	if (!atomic_load_explicit(&b->referenced, memory_order_relaxed))
		atomic_store_explicit(&b->referenced, true, memory_order_relaxed);
	*ret_b = b;
	return 0;
}

/*
 * Is the end of the read of @b up to the event loop of a thread?  Nobody waits for that but
 * the thread itself (@mine is its own then): it may sleep on a lock that the waiter holds.
 */
static bool is_read_elsewhere(const struct bufio_buffer *b, const struct bufio_thread *mine)
	TP_REQUIRES_SHARED(lc_bufio)
{
	return (buffer_state(b) & BUFFER_READING) && b->reader && b->reader != mine;
}

/* Hold the buffer of @block if it is valid or can be awaited, else NULL. */
static struct bufio_buffer *hold_cached(struct bufio_client *c, mblock_t block,
					const struct bufio_thread *mine) TP_TAKES(bufio)
{
	struct bufio_shard *s = shard_of(c, block);
	struct bufio_buffer *b;

	lock_bufio_shared(&s->lock);
	b = shard_find(s, block);
	if (b && is_read_elsewhere(b, mine))
		b = NULL;
	if (b)
		atomic_fetch_add_explicit(&b->hold, 1, memory_order_relaxed);
	unlock_bufio_shared(&s->lock);
	return b;
}

/*
 * Insert @fresh held as @block, in the place of one that cannot be awaited; or hold the
 * one that came first, then @fresh is freed.
 */
static struct bufio_buffer *hold_or_insert(struct bufio_client *c, mblock_t block,
					   const struct bufio_thread *mine,
					   struct bufio_buffer *fresh, unsigned state)
	TP_TAKES(bufio)
{
	struct waiter_list waiters = STAILQ_HEAD_INITIALIZER(waiters);
	struct bufio_shard *s = shard_of(c, block);
	struct bufio_buffer *b;

	lock_bufio(&s->lock);
	b = shard_find(s, block);
	if (b && is_read_elsewhere(b, mine)) {
		buffer_orphan(s, b, &waiters);
		b = NULL;
	}
	if (!b) {
		b = fresh;
		shard_insert(s, b, block, state);
		if (state & BUFFER_READING) {
			atomic_fetch_add(&c->nr_reading, 1);
			STAILQ_CONCAT(&b->waiters, &waiters);
		}
	}
	atomic_fetch_add_explicit(&b->hold, 1, memory_order_relaxed);
	unlock_bufio(&s->lock);
	if (b != fresh)
		buffer_free(c, fresh);
	if (!STAILQ_EMPTY(&waiters))
		helper_call(c, &waiters, 0);
	return b;
}

/* Wait for the read of a held buffer; on failure the hold is gone. */
static int await_held(struct bufio_buffer *b) TP_TAKES(bufio)
{
	int r;

	/* A read that has ended meanwhile may have failed: then the buffer is nobody's block. */
	r = buffer_await_read(b);
	if (r)
		buffer_put_failed(b);
	return r;
}

int bufio_read(struct bufio_client *c, mblock_t block, struct bufio_buffer **ret_b)
{
	struct bufio_buffer *b, *fresh;
	int r = bufio_get(c, block, ret_b);

	if (likely(r != -EWOULDBLOCK))
		return r;
	for (;;) {
		b = hold_cached(c, block, &bufio_self);
		if (!b) {
			fresh = buffer_alloc(c, ALLOC_MUST);
			if (!fresh)
				return -ENOMEM;
			b = hold_or_insert(c, block, &bufio_self, fresh, BUFFER_READING);
			if (b == fresh) {
				r = buffer_read_now(b);
				break;
			}
		}
		r = await_held(b);
		if (!r)
			break;
		/* What a prefetch failed with counts for nothing: find out. */
	}
	if (!r)
		*ret_b = b;
	return r;
}

int bufio_new(struct bufio_client *c, mblock_t block, struct bufio_buffer **ret_b)
{
	struct bufio_buffer *b, *fresh;

	for (;;) {
		b = hold_cached(c, block, NULL);
		if (!b) {
			fresh = buffer_alloc(c, ALLOC_MUST);
			if (!fresh)
				return -ENOMEM;
			memset(fresh->data, 0, METADATA_BLOCK_SIZE);
			b = hold_or_insert(c, block, NULL, fresh, 0);
			if (b == fresh)
				break;
		}
		if (await_held(b)) /* that read does not matter here */
			continue;
		memset(b->data, 0, METADATA_BLOCK_SIZE);
		bufio_set_aux(b, 0);
		break;
	}
	*ret_b = b;
	return 0;
}

void bufio_release(struct bufio_buffer *b)
{
	/* The last touch: from here on the buffer may be evicted. */
	unsigned old = atomic_fetch_sub_explicit(&b->hold, 1, memory_order_release);

	TP_INVARIANT(old > 0);
}

/*
 * If it is dirty already the shard's lock is not needed: background passes leave held
 * buffers alone, and a flush excludes those who modify, so the copy is taken later.
 */
void bufio_mark_dirty(struct bufio_buffer *b)
{
	struct bufio_shard *s = shard_of(b->client, b->block);

	if (buffer_state(b) & BUFFER_DIRTY)
		return;
	lock_bufio(&s->lock);
	TP_INVARIANT(atomic_load_explicit(&b->hold, memory_order_relaxed) > 0);
	if (!(buffer_state(b) & BUFFER_DIRTY))
		buffer_make_dirty(s, b);
	unlock_bufio(&s->lock);
}

void *bufio_data(struct bufio_buffer *b)
{
	return b->data;
}

mblock_t bufio_block(const struct bufio_buffer *b)
{
	return b->block;
}

uintptr_t bufio_aux(const struct bufio_buffer *b)
{
	return atomic_load_explicit(&b->aux, memory_order_acquire);
}

void bufio_set_aux(struct bufio_buffer *b, uintptr_t aux)
{
	atomic_store_explicit(&b->aux, aux, memory_order_release);
}

static struct bufio_buffer *forget_locked(struct bufio_shard *s, mblock_t block)
	TP_REQUIRES(lc_bufio)
{
	struct bufio_buffer *b = shard_find(s, block);

	if (!b || atomic_load_explicit(&b->hold, memory_order_acquire))
		return NULL;
	if (buffer_state(b) & BUFFER_DIRTY)
		buffer_make_clean(s, b);
	if (buffer_state(b) & (BUFFER_READING | BUFFER_WRITING)) {
		buffer_set_state(b, buffer_state(b) | BUFFER_DROP);
		return NULL;
	}
	shard_remove(s, b);
	return b;
}

void bufio_forget(struct bufio_client *c, mblock_t block)
{
	struct bufio_shard *s = shard_of(c, block);
	struct bufio_buffer *b;

	lock_bufio(&s->lock);
	b = forget_locked(s, block);
	unlock_bufio(&s->lock);
	buffer_free(c, b);
}

/* ---- numbers ---- */

void bufio_get_stats(struct bufio_client *c, struct cache_stats *ret_stats)
{
	struct cache_stats stats = {
		.cached_bytes = atomic_load(&c->nr_cached) * METADATA_BLOCK_SIZE,
		.dirty_bytes = atomic_load(&c->nr_dirty) * METADATA_BLOCK_SIZE,
		.limit_bytes = atomic_load(&c->limit) * METADATA_BLOCK_SIZE,
		.reads = atomic_load(&c->reads),
		.writes = atomic_load(&c->writes),
		.shrunk_buffers = atomic_load(&c->shrunk),
		.resets = atomic_load(&c->resets),
	};

	for (unsigned i = 0; i < NR_COUNTERS; i++) {
		stats.hits += atomic_load_explicit(&c->counters[i].hits, memory_order_relaxed);
		stats.misses += atomic_load_explicit(&c->counters[i].misses, memory_order_relaxed);
	}
	*ret_stats = stats;
}

void bufio_set_limit(struct bufio_client *c, uint64_t limit_bytes)
{
	uint64_t limit = MAX(limit_bytes / METADATA_BLOCK_SIZE, 1), cached;

	atomic_store(&c->limit, limit);
	for (unsigned i = 0; i < NR_SHARDS; i++)
		shard_size(&c->shards[i], limit);
	cached = atomic_load(&c->nr_cached);
	if (cached > limit && evict_count(c, cached - limit) < cached - limit)
		helper_ask(c, &(struct helper_work){ .limit = true });
}
