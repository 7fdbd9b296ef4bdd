/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bufio-memory.c - memory of buffers, the reserve, eviction
 *
 * Buffers come in slabs: sixteen descriptors and sixteen pages.  A slab stays until the
 * client is destroyed; what comes and goes is the memory behind single pages, which is
 * given back to the system by madvise(), so that shrinking by n buffers frees n pages
 * wherever they lie.  (malloc() would take two pages for each aligned one.)
 *
 * Unused buffers are "ready" (the page has memory) or "idle" (it has none).  The ready
 * ones are the reserve and a few more, so that freeing and allocating in turn makes no
 * system calls.  The reserve itself is touched only if memory cannot be had and nothing
 * can be evicted, and whatever is freed goes there first.
 *
 * Eviction is a clock over each shard's clean list; the shards take turns.
 *
 * Lock: free lists and slabs belong to the client's lock; a shard's lock is taken for one
 * shard at a time, never with the client's.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "bufio/bufio-internal.h"

#define SLAB_BUFFERS 16u
#define SLAB_BYTES ((size_t)SLAB_BUFFERS * METADATA_BLOCK_SIZE)
#define READY_SLACK 64u /* ready buffers beyond the reserve */
#define EVICT_GLANCE 8u /* looked at in a shard before the next shard is tried */
#define AGE_SWEEPS 5u   /* unused for so many sweeps: evicted */

struct buffer_slab {
	struct buffer_slab *next;
	void *pages;
	struct bufio_buffer buffers[SLAB_BUFFERS];
};

/* ---- slabs and pages ---- */

static struct buffer_slab *slab_create(struct bufio_client *c)
{
	struct buffer_slab *slab;

	if (atomic_load(&c->fail_allocations))
		return NULL;
	slab = calloc(1, sizeof(*slab));
	if (!slab)
		return NULL;
	slab->pages =
		mmap(NULL, SLAB_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (slab->pages == MAP_FAILED) {
		free(slab);
		return NULL;
	}
	for (unsigned i = 0; i < SLAB_BUFFERS; i++) {
		struct bufio_buffer *b = &slab->buffers[i];

		b->client = c;
		b->data = (char *)slab->pages + (size_t)i * METADATA_BLOCK_SIZE;
		STAILQ_INIT(&b->waiters);
	}
	return slab;
}

/* Give the page's memory back.  Under mlockall() an old kernel wants it unlocked first. */
static void page_drop(struct bufio_buffer *b)
{
	if (madvise(b->data, METADATA_BLOCK_SIZE, MADV_DONTNEED_LOCKED) == 0) {
		b->resident = false;
		return;
	}
	if (munlock(b->data, METADATA_BLOCK_SIZE) == 0) {
		b->unlocked = true;
		b->resident = madvise(b->data, METADATA_BLOCK_SIZE, MADV_DONTNEED) != 0;
	}
}

/* Give the page memory.  Returns false if it cannot be locked again as it was. */
static bool page_populate(struct bufio_client *c, struct bufio_buffer *b)
{
	if (b->resident)
		return true;
	if (atomic_load(&c->fail_allocations))
		return false;
	if (b->unlocked && mlock(b->data, METADATA_BLOCK_SIZE))
		return false;
	b->unlocked = false;
	*(volatile char *)b->data = 0;
	b->resident = true;
	return true;
}

static void push(struct bufio_buffer **list, struct bufio_buffer *b)
{
	b->next = *list;
	*list = b;
}

static struct bufio_buffer *pop(struct bufio_buffer **list)
{
	struct bufio_buffer *b = *list;

	if (b)
		*list = b->next;
	return b;
}

static struct bufio_buffer *take_idle(struct bufio_client *c) TP_TAKES(bufio_lru)
{
	struct buffer_slab *slab = NULL;
	struct bufio_buffer *b;

	lock_bufio_lru(&c->lock);
	b = pop(&c->idle);
	unlock_bufio_lru(&c->lock);
	if (!b) {
		slab = slab_create(c);
		if (!slab)
			return NULL;
		b = &slab->buffers[0];
	}

	bool populated = page_populate(c, b);

	lock_bufio_lru(&c->lock);
	if (slab) {
		slab->next = c->slabs;
		c->slabs = slab;
		for (unsigned i = SLAB_BUFFERS - 1; i > 0; i--)
			push(&c->idle, &slab->buffers[i]);
	}
	if (!populated)
		push(&c->idle, b);
	unlock_bufio_lru(&c->lock);
	return populated ? b : NULL;
}

/* From the ready ones, of which @leave must remain. */
static struct bufio_buffer *take_ready(struct bufio_client *c, unsigned leave) TP_TAKES(bufio_lru)
{
	struct bufio_buffer *b = NULL;

	lock_bufio_lru(&c->lock);
	if (c->nr_ready > leave) {
		b = pop(&c->ready);
		c->nr_ready--;
	}
	unlock_bufio_lru(&c->lock);
	return b;
}

static struct bufio_buffer *take_unused(struct bufio_client *c) TP_TAKES(bufio_lru)
{
	struct bufio_buffer *b = take_ready(c, c->reserve);

	return b ? b : take_idle(c);
}

/* Put @b on the ready list if that has fewer than @below buffers. */
static bool put_ready(struct bufio_client *c, struct bufio_buffer *b, unsigned below)
	TP_TAKES(bufio_lru)
{
	bool room;

	lock_bufio_lru(&c->lock);
	room = c->nr_ready < below;
	if (room) {
		push(&c->ready, b);
		c->nr_ready++;
	}
	unlock_bufio_lru(&c->lock);
	return room;
}

static void put_idle(struct bufio_client *c, struct bufio_buffer *b) TP_TAKES(bufio_lru)
{
	page_drop(b);
	lock_bufio_lru(&c->lock);
	push(&c->idle, b);
	unlock_bufio_lru(&c->lock);
}

/* ---- eviction ---- */

/* @b, found under the shard's exclusive lock, is nobody's and has nothing to lose. */
static bool evictable(const struct bufio_buffer *b) TP_REQUIRES(lc_bufio)
{
	return atomic_load_explicit(&b->hold, memory_order_acquire) == 0 &&
	       !(buffer_state(b) & (BUFFER_READING | BUFFER_WRITING | BUFFER_DIRTY));
}

static struct bufio_buffer *evict_locked(struct bufio_shard *s, unsigned steps)
	TP_REQUIRES(lc_bufio)
{
	struct bufio_buffer *b;

	while (steps-- && (b = TAILQ_FIRST(&s->clean))) {
		if (!atomic_load_explicit(&b->referenced, memory_order_relaxed) && evictable(b)) {
			shard_remove(s, b);
			return b;
		}
		atomic_store_explicit(&b->referenced, false, memory_order_relaxed);
		TAILQ_REMOVE(&s->clean, b, link);
		TAILQ_INSERT_TAIL(&s->clean, b, link);
	}
	return NULL;
}

/* A glance at each shard in turn; then, if all was in use, a thorough look. */
struct bufio_buffer *evict_one(struct bufio_client *c)
{
	if (atomic_load(&c->nr_cached) <= atomic_load(&c->nr_dirty))
		return NULL;
	for (unsigned i = 0; i < 2 * NR_SHARDS; i++) {
		struct bufio_shard *s = &c->shards[atomic_fetch_add(&c->hand, 1) % NR_SHARDS];
		unsigned nr = atomic_load_explicit(&s->nr_buffers, memory_order_relaxed);
		struct bufio_buffer *b;

		if (nr == 0)
			continue;
		lock_bufio(&s->lock);
		b = evict_locked(s, i < NR_SHARDS ? EVICT_GLANCE : 2 * nr);
		unlock_bufio(&s->lock);
		if (b)
			return b;
	}
	return NULL;
}

uint64_t evict_count(struct bufio_client *c, uint64_t nr)
{
	uint64_t done = 0;
	struct bufio_buffer *b;

	/* A reset waits for the helper, and drops everything anyway. */
	while (done < nr && !atomic_load(&c->resetting) && (b = evict_one(c))) {
		buffer_free(c, b);
		done++;
	}
	return done;
}

static void sweep_locked(struct bufio_shard *s, struct buffer_list *ret_old) TP_REQUIRES(lc_bufio)
{
	struct bufio_buffer *b, *next;

	for (b = TAILQ_FIRST(&s->clean); b; b = next) {
		next = TAILQ_NEXT(b, link);
		if (atomic_exchange_explicit(&b->referenced, false, memory_order_relaxed))
			b->age = 0;
		else
			b->age++;
		if (b->age >= AGE_SWEEPS && evictable(b)) {
			shard_remove(s, b);
			TAILQ_INSERT_TAIL(ret_old, b, link);
		}
	}
}

void evict_aged(struct bufio_client *c)
{
	for (unsigned i = 0; i < NR_SHARDS; i++) {
		struct bufio_shard *s = &c->shards[i];
		struct buffer_list old = TAILQ_HEAD_INITIALIZER(old);
		struct bufio_buffer *b;

		lock_bufio(&s->lock);
		sweep_locked(s, &old);
		unlock_bufio(&s->lock);
		while ((b = TAILQ_FIRST(&old))) {
			TAILQ_REMOVE(&old, b, link);
			buffer_free(c, b);
		}
	}
}

/* ---- allocation ---- */

/* No memory, nothing to evict: the reserve, and then what is dirty. */
static struct bufio_buffer *alloc_must(struct bufio_client *c)
{
	struct bufio_buffer *b;

	helper_ask(c, &(struct helper_work){ .refill = true });
	b = take_ready(c, 0);
	if (b || atomic_load(&c->nr_dirty) == 0)
		return b;
	(void)write_pass_run(c, WRITE_UNHELD, SLAB_BUFFERS); /* errors are kept for the flush */
	b = evict_one(c);
	return b ? b : take_ready(c, 0);
}

struct bufio_buffer *buffer_alloc(struct bufio_client *c, enum alloc_how how)
{
	uint64_t cached = atomic_load(&c->nr_cached), limit = atomic_load(&c->limit);
	struct bufio_buffer *b = cached < limit ? take_unused(c) : NULL;
	bool recycled = false;

	if (!b) {
		b = evict_one(c);
		recycled = b != NULL;
	}
	/* Recycling what the helper has just cleaned keeps the size: ask again while above. */
	if (cached > limit || (cached == limit && !recycled))
		helper_ask(c, &(struct helper_work){ .limit = true });
	if (!b && cached >= limit && how != ALLOC_IF_EASY)
		b = take_unused(c); /* the limit gives way to held and dirty ones */
	if (!b && how == ALLOC_MUST)
		b = alloc_must(c);
	if (!b)
		return NULL;
	atomic_store_explicit(&b->aux, 0, memory_order_relaxed);
	atomic_store_explicit(&b->referenced, false, memory_order_relaxed);
	return b;
}

void buffer_free(struct bufio_client *c, struct bufio_buffer *b)
{
	if (b && !put_ready(c, b, c->reserve + READY_SLACK))
		put_idle(c, b);
}

bool reserve_is_full(struct bufio_client *c)
{
	bool full;

	lock_bufio_lru(&c->lock);
	full = c->nr_ready >= c->reserve;
	unlock_bufio_lru(&c->lock);
	return full;
}

void reserve_refill(struct bufio_client *c)
{
	struct bufio_buffer *b;

	while (!reserve_is_full(c)) {
		b = take_idle(c);
		if (!b)
			b = evict_one(c);
		if (!b)
			return;
		buffer_free(c, b);
	}
}

void memory_trim(struct bufio_client *c)
{
	struct bufio_buffer *b;

	while ((b = take_ready(c, c->reserve)))
		put_idle(c, b);
}

/* Nobody else knows the client any more. */
TP_NO_TSA void memory_destroy(struct bufio_client *c)
{
	struct buffer_slab *slab;

	while ((slab = c->slabs)) {
		c->slabs = slab->next;
		munmap(slab->pages, SLAB_BYTES);
		free(slab);
	}
}

/* ---- for tests ---- */

void bufio_test_fail_allocations(struct bufio_client *c, bool fail)
{
	atomic_store(&c->fail_allocations, fail);
}

uint64_t bufio_test_lost_count(struct bufio_client *c)
{
	uint64_t nr = 0;

	lock_bufio_lru(&c->lock);
	for (const struct buffer_slab *slab = c->slabs; slab; slab = slab->next)
		nr += SLAB_BUFFERS;
	for (const struct bufio_buffer *b = c->idle; b; b = b->next)
		nr--;
	nr -= c->nr_ready + atomic_load(&c->nr_cached);
	unlock_bufio_lru(&c->lock);
	return nr;
}

unsigned bufio_test_reserve_count(struct bufio_client *c)
{
	unsigned nr;

	lock_bufio_lru(&c->lock);
	nr = MIN(c->nr_ready, c->reserve);
	unlock_bufio_lru(&c->lock);
	return nr;
}
