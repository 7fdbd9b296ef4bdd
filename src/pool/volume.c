/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * volume.c - the table of volumes: by name and by id, references, handles
 *
 * Owns the indices and nothing else: what a volume is called and how large it is on disk is
 * decided in command.c and written in volume-commit.c.
 *
 * By id: a two-level array, since ids are small and dense and are walked in order.  By name:
 * a hash table that doubles.  A bit map has the ids that are taken, also by volumes that can
 * be found no more, so that no id is used twice at a time.
 *
 * A volume in the table holds a reference on itself, so the count of one that is found is
 * never zero and only the worker frees it; a handle keeps it as a reference does.  Who drops the
 * last but one reference, or closes the last handle, looks at nr_leaving afterwards; the worker
 * raises nr_leaving before it looks at the counts.  So one of the two always sees the other (both
 * sequentially consistent), and nobody touches a volume that he has given up.
 *
 * Invariants
 *   1. Found by name: the LIVE ones.  Found by id: LIVE and UNLINKED.
 *   2. A volume is on states[its state], or LIVE.
 *   3. An id's bit is set while a volume of any state has it.
 *   4. Only volumes that are found get new references and handles.
 */
#include "pool/volume.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pool/pool-internal.h"
#include "util/cleanup.h"

#define FIRST_BUCKETS 1024u
#define ID_WORDS ((THIN_ID_MAX + 1) / 64)

/* ---- indices ---- */

static uint32_t hash_name(const char *name)
{
	uint32_t h = 2166136261u; /* FNV-1a */

	for (; *name; name++)
		h = (h ^ (unsigned char)*name) * 16777619u;
	return h ^ h >> 15;
}

static struct volume_bucket *bucket_of(const struct volume_table *t, const char *name)
{
	return &t->buckets[hash_name(name) & (t->nr_buckets - 1)];
}

struct volume *volume_lookup_name(const struct volume_table *t, const char *name)
{
	struct volume *v;

	LIST_FOREACH(v, bucket_of(t, name), entry.name_link) {
		if (strcmp(v->entry.now.name, name) == 0)
			return v;
	}
	return NULL;
}

struct volume *volume_lookup_id(const struct volume_table *t, thin_id_t id)
{
	struct volume **page = id <= THIN_ID_MAX ? t->pages[id >> VOLUME_PAGE_BITS] : NULL;

	return page ? page[id % VOLUME_PAGE_SIZE] : NULL;
}

/* Without memory the table stays as it is, and gets slower. */
static void grow_buckets(struct volume_table *t)
{
	uint32_t old_nr = t->nr_buckets;
	struct volume_bucket *old = t->buckets;
	struct volume_bucket *new = calloc((size_t)old_nr * 2, sizeof(*new));
	struct volume *v;

	if (!new)
		return;
	t->buckets = new;
	t->nr_buckets = old_nr * 2;
	for (uint32_t i = 0; i < old_nr; i++) {
		while ((v = LIST_FIRST(&old[i]))) {
			LIST_REMOVE(v, entry.name_link);
			LIST_INSERT_HEAD(bucket_of(t, v->entry.now.name), v, entry.name_link);
		}
	}
	free(old);
}

static void enter_name(struct volume_table *t, struct volume *v)
{
	if (t->nr_named >= t->nr_buckets)
		grow_buckets(t);
	LIST_INSERT_HEAD(bucket_of(t, v->entry.now.name), v, entry.name_link);
	t->nr_named++;
}

static void remove_name(struct volume_table *t, struct volume *v)
{
	LIST_REMOVE(v, entry.name_link);
	t->nr_named--;
}

static void set_slot(struct volume_table *t, thin_id_t id, struct volume *v)
{
	t->pages[id >> VOLUME_PAGE_BITS][id % VOLUME_PAGE_SIZE] = v;
}

bool volume_id_is_used(const struct volume_table *t, thin_id_t id)
{
	return t->used_ids[id / 64] >> (id % 64) & 1;
}

int volume_reserve_id(struct volume_table *t, thin_id_t id)
{
	struct volume ***page = &t->pages[id >> VOLUME_PAGE_BITS];

	if (!*page)
		*page = calloc(VOLUME_PAGE_SIZE, sizeof(**page));
	if (!*page)
		return -ENOMEM;
	t->used_ids[id / 64] |= UINT64_C(1) << (id % 64);
	return 0;
}

void volume_release_id(struct volume_table *t, thin_id_t id)
{
	t->used_ids[id / 64] &= ~(UINT64_C(1) << (id % 64));
	if (id && id < t->lowest_free)
		t->lowest_free = id;
}

int volume_find_free_id(struct volume_table *t, thin_id_t *ret_id)
{
	if (t->nr_volumes >= VOLUMES_MAX)
		return -ENOSPC;

	for (size_t w = t->lowest_free / 64; w < ID_WORDS; w++) {
		uint64_t free_ids = ~t->used_ids[w];

		if (w == 0)
			free_ids &= ~UINT64_C(1);
		if (free_ids) {
			t->lowest_free = (thin_id_t)(w * 64) + (thin_id_t)__builtin_ctzll(free_ids);
			*ret_id = t->lowest_free;
			return 0;
		}
	}
	return -ENOSPC;
}

/* ---- states ---- */

static bool found_by_id(enum volume_state state)
{
	return state == VOLUME_LIVE || state == VOLUME_UNLINKED;
}

/* Its last user must tell the worker. */
static bool is_leaving(enum volume_state state)
{
	return state == VOLUME_UNLINKED || state == VOLUME_GONE;
}

static void leave_state(struct volume_table *t, struct volume *v)
{
	struct volume_entry *e = &v->entry;

	if (e->state == VOLUME_LIVE)
		remove_name(t, v);
	else
		TAILQ_REMOVE(&t->states[e->state], v, entry.state_link);
	if (is_leaving(e->state))
		atomic_fetch_sub(&t->nr_leaving, 1);
	if (found_by_id(e->state))
		set_slot(t, v->id, NULL);
}

static void enter_state(struct volume_table *t, struct volume *v, enum volume_state state)
{
	v->entry.state = state;
	if (state == VOLUME_LIVE)
		enter_name(t, v);
	else
		TAILQ_INSERT_TAIL(&t->states[state], v, entry.state_link);
	if (found_by_id(state))
		set_slot(t, v->id, v);
	if (is_leaving(state)) {
		atomic_fetch_add(&t->nr_leaving, 1);
		atomic_store(&t->look, true);
	}
}

void volume_set_state(struct pool *pool, struct volume *v, enum volume_state state)
{
	if (state == v->entry.state)
		return;
	leave_state(pool->volumes, v);
	enter_state(pool->volumes, v, state);
}

void volume_set_name(struct pool *pool, struct volume *v, const char *name)
{
	struct catalog_record *now = &v->entry.now;

	TP_INVARIANT(v->entry.state == VOLUME_LIVE);
	remove_name(pool->volumes, v);
	memmove(now->name, name, strlen(name) + 1);
	enter_name(pool->volumes, v);
}

void volume_insert(struct pool *pool, struct volume *v, const char *name)
{
	struct volume_table *t = pool->volumes;

	if (name)
		memmove(v->entry.now.name, name, strlen(name) + 1);
	TAILQ_INSERT_TAIL(&t->all, v, entry.all_link);
	t->nr_volumes++;
	enter_state(t, v, name ? VOLUME_LIVE : VOLUME_UNLINKED);
}

void volume_erase(struct pool *pool, struct volume *v)
{
	struct volume_table *t = pool->volumes;

	leave_state(t, v);
	if (v->entry.touched)
		STAILQ_REMOVE(&t->touched, v, volume, entry.touched_link);
	TAILQ_REMOVE(&t->all, v, entry.all_link);
	t->nr_volumes--;
	volume_release_id(t, v->id);
}

void volume_touch(struct volume *v)
{
	if (!v->entry.touched)
		STAILQ_INSERT_TAIL(&v->pool->volumes->touched, v, entry.touched_link);
	v->entry.touched = true;
}

void volume_make_record(const struct volume *v, struct catalog_record *ret_rec)
{
	*ret_rec = v->entry.now;
	ret_rec->size_bytes = volume_size(v);
}

bool volume_is_idle(const struct volume *v)
{
	return atomic_load(&v->entry.refs) == 1 && atomic_load(&v->entry.open_count) == 0;
}

/* ---- life ---- */

struct volume *volume_free(struct volume *v)
{
	if (!v)
		return NULL;
	volume_io_destroy(v);
	thin_device_close(v->td);
	free(v);
	return NULL;
}

uint32_t volume_make_generation(uint64_t created)
{
	created ^= created >> 33;
	created *= UINT64_C(0xff51afd7ed558ccd);
	return (uint32_t)(created >> 32);
}

int volume_new(struct pool *pool, const struct catalog_record *rec, struct volume **ret_v)
{
	struct volume *v = aligned_alloc(_Alignof(struct volume), sizeof(*v));
	struct thin_device *td;
	int r;

	if (!v)
		return -ENOMEM;
	memset(v, 0, sizeof(*v));
	r = thin_device_open(pool->tmd, rec->id, &td);
	if (r) {
		free(v);
		return r;
	}
	v->pool = pool;
	v->id = rec->id;
	v->entry.now = *rec;
	v->entry.generation = volume_make_generation(rec->created_usec);
	atomic_init(&v->entry.refs, 1);
	atomic_init(&v->read_only, (rec->flags & CATALOG_READ_ONLY) != 0);
	volume_io_init(v, pool, td, rec->size_bytes);
	*ret_v = v;
	return 0;
}

int volume_table_create(struct volume_table **ret_table)
{
	struct volume_table *t = calloc(1, sizeof(*t));

	if (!t)
		return -ENOMEM;
	TAILQ_INIT(&t->all);
	STAILQ_INIT(&t->touched);
	STAILQ_INIT(&t->events);
	STAILQ_INIT(&t->answers);
	for (unsigned i = 0; i < VOLUME_NR_STATES; i++)
		TAILQ_INIT(&t->states[i]);
	t->lowest_free = 1;
	t->nr_buckets = FIRST_BUCKETS;
	t->buckets = calloc(t->nr_buckets, sizeof(*t->buckets));
	t->used_ids = calloc(ID_WORDS, sizeof(*t->used_ids));
	if (!t->buckets || !t->used_ids) {
		volume_table_destroy(t);
		return -ENOMEM;
	}
	*ret_table = t;
	return 0;
}

struct volume_table *volume_table_destroy(struct volume_table *t)
{
	struct volume *v;

	if (!t)
		return NULL;
	while ((v = TAILQ_FIRST(&t->all))) {
		TP_INVARIANT(atomic_load(&v->entry.refs) == 1);
		TAILQ_REMOVE(&t->all, v, entry.all_link);
		volume_free(v);
	}
	volumes_drop_events(t);
	for (unsigned i = 0; i < VOLUME_NR_PAGES; i++)
		free(t->pages[i]);
	free(t->orphans);
	free(t->used_ids);
	free(t->buckets);
	free(t);
	return NULL;
}

/* ---- for front ends ---- */

/*
 * A volume that a crash could undo is not to be found yet: what is written to it would be
 * acknowledged before the command that creates it.
 */
static bool volume_is_seen(const struct volume *v)
{
	return v && atomic_load(&v->entry.is_committed);
}

static int get_ref(struct volume *v, struct volume **ret_v)
{
	if (!volume_is_seen(v))
		return -ENOENT;
	atomic_fetch_add(&v->entry.refs, 1);
	*ret_v = v;
	return 0;
}

int pool_volume_find(struct pool *pool, const char *name, struct volume **ret_v)
{
	int r;

	lock_catalog_shared(&pool->catalog_lock);
	r = get_ref(volume_lookup_name(pool->volumes, name), ret_v);
	unlock_catalog_shared(&pool->catalog_lock);
	return r;
}

int pool_volume_get(struct pool *pool, thin_id_t id, struct volume **ret_v)
{
	int r;

	lock_catalog_shared(&pool->catalog_lock);
	r = get_ref(volume_lookup_id(pool->volumes, id), ret_v);
	unlock_catalog_shared(&pool->catalog_lock);
	return r;
}

/* The volume may be gone already: a user of it has left. */
static void tell_worker(struct pool *pool)
{
	struct volume_table *t = pool->volumes;

	if (atomic_load(&t->nr_leaving) > 0) {
		atomic_store(&t->look, true);
		pool_wake_worker(pool);
	}
}

void volume_put(struct volume *v)
{
	struct pool *pool = v->pool;
	unsigned before = atomic_fetch_sub(&v->entry.refs, 1);

	TP_INVARIANT(before > 1);
	if (before == 2)
		tell_worker(pool);
}

int volume_open(struct volume *v, bool for_writing)
{
	struct pool *pool = v->pool;
	int r = 0;

	if (for_writing && (pool->opened_read_only || atomic_load(&v->read_only)))
		return -EROFS;
	/* Whoever holds the lock exclusively decides by the count what to do with the volume. */
	lock_catalog_shared(&pool->catalog_lock);
	if (found_by_id(v->entry.state))
		atomic_fetch_add(&v->entry.open_count, 1);
	else
		r = -ENOENT;
	unlock_catalog_shared(&pool->catalog_lock);
	return r;
}

void volume_close(struct volume *v)
{
	struct pool *pool = v->pool;
	unsigned before = atomic_fetch_sub(&v->entry.open_count, 1);

	TP_INVARIANT(before > 0);
	if (before == 1)
		tell_worker(pool);
}

thin_id_t volume_id(const struct volume *v)
{
	return v->id;
}

uint64_t volume_size(const struct volume *v)
{
	return atomic_load_explicit(&v->size_bytes, memory_order_relaxed);
}

static TP_REQUIRES_SHARED(lc_catalog) void fill_info(const struct volume *v,
						     struct volume_info *info)
{
	const struct volume_entry *e = &v->entry;

	*info = (struct volume_info){
		.id = v->id,
		.generation = e->generation,
		.size_bytes = volume_size(v),
		.mapped_bytes = v->td ? thin_device_mapped_blocks(v->td) * v->pool->block_size : 0,
		.read_only = atomic_load(&v->read_only),
		.has_origin = (e->now.flags & CATALOG_HAS_ORIGIN) != 0,
		.unlinked = e->state != VOLUME_LIVE,
		.origin = e->now.origin,
		.created_usec = e->now.created_usec,
		.open_count = atomic_load(&e->open_count),
	};
	memcpy(info->name, e->now.name, sizeof(info->name));
}

void volume_get_info(struct volume *v, struct volume_info *ret_info)
{
	struct pool *pool = v->pool;

	lock_catalog_shared(&pool->catalog_lock);
	fill_info(v, ret_info);
	unlock_catalog_shared(&pool->catalog_lock);
}

static struct volume *next_live(const struct volume_table *t, thin_id_t from)
{
	for (uint32_t id = from; id <= THIN_ID_MAX; id++) {
		struct volume **page = t->pages[id >> VOLUME_PAGE_BITS];

		if (!page)
			id |= VOLUME_PAGE_SIZE - 1;
		else if (volume_is_seen(page[id % VOLUME_PAGE_SIZE]) &&
			 page[id % VOLUME_PAGE_SIZE]->entry.state == VOLUME_LIVE)
			return page[id % VOLUME_PAGE_SIZE];
	}
	return NULL;
}

int pool_volume_next(struct pool *pool, thin_id_t from, struct volume_info *ret_info)
{
	const struct volume *v;

	lock_catalog_shared(&pool->catalog_lock);
	v = next_live(pool->volumes, from);
	if (v)
		fill_info(v, ret_info);
	unlock_catalog_shared(&pool->catalog_lock);
	return v ? 0 : -ENODATA;
}

void volumes_get_totals(struct pool *pool, unsigned *ret_nr, uint64_t *ret_virtual_bytes)
{
	const struct volume *v;
	uint64_t bytes = 0;
	unsigned nr;

	lock_catalog_shared(&pool->catalog_lock);
	TAILQ_FOREACH(v, &pool->volumes->all, entry.all_link) {
		uint64_t size = v->entry.state == VOLUME_LIVE ? volume_size(v) : 0;

		bytes = size <= UINT64_MAX - bytes ? bytes + size : UINT64_MAX;
	}
	nr = pool->volumes->nr_named;
	unlock_catalog_shared(&pool->catalog_lock);
	*ret_nr = nr;
	*ret_virtual_bytes = bytes;
}
