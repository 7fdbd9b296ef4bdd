/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fake-pool.c - pool/pool.h over volumes in memory, for tests of front ends
 *
 * One mutex guards the table of volumes, their names and counts; a rwlock each guards a volume's
 * blocks.  The worker thread carries out commands, and I/O when that is deferred.
 */
#include "fake-pool.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/clock.h"

enum { MAX_VOLUMES = 8192, NR_OPS = POOL_SEEK_HOLE + 1 };

struct volume {
	struct pool *pool;
	thin_id_t id, origin;
	uint32_t generation;
	char name[VOLUME_NAME_MAX + 1];
	_Atomic uint64_t size;
	bool read_only, has_origin, unlinked;
	unsigned refs, opens;
	uint64_t created_usec;
	pthread_rwlock_t lock;
	char **blocks; /* NULL: a hole */
	uint64_t nr_blocks;
	_Atomic uint64_t nr_mapped;
};

struct deferred {
	STAILQ_ENTRY(deferred) link;
	struct pool_io *io;
};

struct pool {
	struct pool_options options;
	pthread_mutex_t lock;
	pthread_cond_t wake;
	pthread_t worker;
	bool stop, hold, hold_commands;
	int command_r;
	struct tp_error command_error;
	STAILQ_HEAD(, pool_command) commands;
	STAILQ_HEAD(, deferred) ios;
	struct volume *volumes[MAX_VOLUMES];
	uint32_t last_generation;
	atomic_bool deferred;
	atomic_int fail_count[NR_OPS], fail_r[NR_OPS];
	atomic_ulong count[NR_OPS], durable, commits, unaligned;
};

/* ------------------------------------------------------------------ volumes */

static struct volume *find_locked(struct pool *pool, const char *name)
{
	for (thin_id_t i = 0; i < MAX_VOLUMES; i++) {
		struct volume *v = pool->volumes[i];

		if (v && !v->unlinked && !strcmp(v->name, name))
			return v;
	}
	return NULL;
}

static void free_if_unused_locked(struct volume *v)
{
	if (!v->unlinked || v->opens)
		return;
	if (v->pool->volumes[v->id] == v)
		v->pool->volumes[v->id] = NULL;
	if (v->refs)
		return;
	for (uint64_t b = 0; b < v->nr_blocks; b++)
		free(v->blocks[b]);
	free(v->blocks);
	pthread_rwlock_destroy(&v->lock);
	free(v);
}

static int find(struct pool *pool, const char *name, thin_id_t id, struct volume **ret_v)
{
	struct volume *v;

	pthread_mutex_lock(&pool->lock);
	v = name ? find_locked(pool, name) : id < MAX_VOLUMES ? pool->volumes[id] : NULL;
	if (v)
		v->refs++;
	pthread_mutex_unlock(&pool->lock);
	if (!v)
		return -ENOENT;
	*ret_v = v;
	return 0;
}

int pool_volume_find(struct pool *pool, const char *name, struct volume **ret_v)
{
	return find(pool, name, 0, ret_v);
}

int pool_volume_get(struct pool *pool, thin_id_t id, struct volume **ret_v)
{
	return find(pool, NULL, id, ret_v);
}

void volume_put(struct volume *v)
{
	struct pool *pool = v->pool;

	pthread_mutex_lock(&pool->lock);
	TP_INVARIANT(v->refs);
	v->refs--;
	free_if_unused_locked(v);
	pthread_mutex_unlock(&pool->lock);
}

thin_id_t volume_id(const struct volume *v)
{
	return v->id;
}

uint64_t volume_size(const struct volume *v)
{
	return v->size;
}

static void fill_info(const struct volume *v, struct volume_info *info)
{
	*info = (struct volume_info){
		.id = v->id,
		.generation = v->generation,
		.size_bytes = v->size,
		.mapped_bytes = v->nr_mapped * FAKE_BLOCK_SIZE,
		.read_only = v->read_only,
		.has_origin = v->has_origin,
		.unlinked = v->unlinked,
		.origin = v->origin,
		.created_usec = v->created_usec,
		.open_count = v->opens,
	};
	memcpy(info->name, v->name, sizeof(info->name));
}

void volume_get_info(struct volume *v, struct volume_info *ret_info)
{
	pthread_mutex_lock(&v->pool->lock);
	fill_info(v, ret_info);
	pthread_mutex_unlock(&v->pool->lock);
}

int volume_open(struct volume *v, bool for_writing)
{
	int r = 0;

	pthread_mutex_lock(&v->pool->lock);
	if (for_writing && (v->read_only || v->pool->options.read_only))
		r = -EROFS;
	else
		v->opens++;
	pthread_mutex_unlock(&v->pool->lock);
	return r;
}

uint32_t volume_handle(struct volume *v)
{
	(void)v;
	return 1;
}

void volume_forget_handle(struct volume *v, uint32_t handle)
{
	(void)v;
	(void)handle;
}

void volume_close(struct volume *v)
{
	struct pool *pool = v->pool; /* @v may be gone before the lock is dropped */

	pthread_mutex_lock(&pool->lock);
	TP_INVARIANT(v->opens && v->refs);
	v->opens--;
	free_if_unused_locked(v);
	pthread_mutex_unlock(&pool->lock);
}

int pool_volume_next(struct pool *pool, thin_id_t from, struct volume_info *ret_info)
{
	int r = -ENODATA;

	pthread_mutex_lock(&pool->lock);
	for (; from < MAX_VOLUMES && r; from++) {
		if (!pool->volumes[from] || pool->volumes[from]->unlinked)
			continue;
		fill_info(pool->volumes[from], ret_info);
		r = 0;
	}
	pthread_mutex_unlock(&pool->lock);
	return r;
}

/* ----------------------------------------------------------------- contents */

static void reserve_locked(struct volume *v, uint64_t bytes)
{
	uint64_t need = DIV_ROUND_UP(bytes, FAKE_BLOCK_SIZE);

	if (need <= v->nr_blocks)
		return;
	v->blocks = realloc(v->blocks, need * sizeof(*v->blocks));
	TP_INVARIANT(v->blocks);
	memset(v->blocks + v->nr_blocks, 0, (need - v->nr_blocks) * sizeof(*v->blocks));
	v->nr_blocks = need;
}

static char *block_locked(struct volume *v, uint64_t b, bool allocate)
{
	if (allocate && !v->blocks[b]) {
		v->blocks[b] = calloc(1, FAKE_BLOCK_SIZE);
		TP_INVARIANT(v->blocks[b]);
		v->nr_mapped++;
	}
	return b < v->nr_blocks ? v->blocks[b] : NULL;
}

/* Calls for each piece of the range that lies in one block. */
#define FOR_EACH_PIECE(at, n, offset, length) \
	for (uint64_t at = (offset), end_ = (offset) + (length), n; \
	     at < end_ && (n = MIN(end_ - at, FAKE_BLOCK_SIZE - at % FAKE_BLOCK_SIZE)); at += n)

static void read_locked(struct volume *v, char *to, uint64_t offset, uint64_t length)
{
	FOR_EACH_PIECE(at, n, offset, length)
	{
		const char *block = block_locked(v, at / FAKE_BLOCK_SIZE, false);

		if (block)
			memcpy(to, block + at % FAKE_BLOCK_SIZE, n);
		else
			memset(to, 0, n);
		to += n;
	}
}

static void write_locked(struct volume *v, const char *from, uint64_t offset, uint64_t length)
{
	reserve_locked(v, offset + length);
	FOR_EACH_PIECE(at, n, offset, length)
	{
		memcpy(block_locked(v, at / FAKE_BLOCK_SIZE, true) + at % FAKE_BLOCK_SIZE, from, n);
		from += n;
	}
}

static void punch_locked(struct volume *v, uint64_t offset, uint64_t length)
{
	FOR_EACH_PIECE(at, n, offset, length)
	{
		char *block = block_locked(v, at / FAKE_BLOCK_SIZE, false);

		if (block && n == FAKE_BLOCK_SIZE) {
			free(block);
			v->blocks[at / FAKE_BLOCK_SIZE] = NULL;
			v->nr_mapped--;
		} else if (block) {
			memset(block + at % FAKE_BLOCK_SIZE, 0, n);
		}
	}
}

static int seek_locked(struct volume *v, struct pool_io *io, bool data)
{
	uint64_t b = io->offset / FAKE_BLOCK_SIZE, end = DIV_ROUND_UP(v->size, FAKE_BLOCK_SIZE);

	if (io->offset >= v->size)
		return -ENXIO;
	while (b < end && !!block_locked(v, b, false) != data)
		b++;
	if (b == end && data)
		return -ENXIO;
	io->ret_offset = MIN(MAX(b * FAKE_BLOCK_SIZE, io->offset), v->size);
	return 0;
}

static int change(struct volume *v, struct pool_io *io)
{
	int r = 0;

	if (v->read_only)
		return -EROFS;
	pthread_rwlock_wrlock(&v->lock);
	switch (io->op) {
	case POOL_WRITE:
		write_locked(v, io->buffer, io->offset, io->length);
		if (io->offset + io->length > v->size)
			v->size = io->offset + io->length;
		break;
	case POOL_PUNCH:
	case POOL_ZERO:
		punch_locked(v, io->offset, io->length);
		break;
	case POOL_ALLOCATE:
		reserve_locked(v, io->offset + io->length);
		FOR_EACH_PIECE(at, n, io->offset, io->length)
		block_locked(v, at / FAKE_BLOCK_SIZE, true);
		break;
	default:
		r = -EINVAL;
	}
	pthread_rwlock_unlock(&v->lock);
	return r;
}

static int look(struct volume *v, struct pool_io *io)
{
	int r = 0;

	pthread_rwlock_rdlock(&v->lock);
	if (io->op == POOL_READ)
		read_locked(v, io->buffer, io->offset, io->length);
	else if (io->op != POOL_FLUSH)
		r = seek_locked(v, io, io->op == POOL_SEEK_DATA);
	pthread_rwlock_unlock(&v->lock);
	return r;
}

static bool take_fault(struct pool *pool, enum pool_io_op op)
{
	int left = pool->fail_count[op];

	while (left > 0 && !atomic_compare_exchange_weak(&pool->fail_count[op], &left, left - 1))
		;
	return left;
}

static void execute(struct pool *pool, struct pool_io *io)
{
	bool changes = io->op == POOL_WRITE || io->op == POOL_PUNCH || io->op == POOL_ZERO ||
		       io->op == POOL_ALLOCATE;
	int r;

	atomic_fetch_add_explicit(&pool->count[io->op], 1, memory_order_relaxed);
	if (io->durable)
		pool->durable++;
	if (io->buffer && ((uintptr_t)io->buffer - io->offset) % 4096)
		pool->unaligned++;
	if (unlikely(take_fault(pool, io->op)))
		r = pool->fail_r[io->op];
	else
		r = changes ? change(io->volume, io) : look(io->volume, io);
	io->done(io, r);
}

void pool_io_submit(struct pool *pool, struct io_queue *q, struct pool_io *io)
{
	struct deferred *d;

	TP_INVARIANT(q);
	if (!pool->deferred) {
		execute(pool, io);
		return;
	}
	d = malloc(sizeof(*d));
	TP_INVARIANT(d);
	d->io = io;
	pthread_mutex_lock(&pool->lock);
	STAILQ_INSERT_TAIL(&pool->ios, d, link);
	pthread_cond_signal(&pool->wake);
	pthread_mutex_unlock(&pool->lock);
}

/* ----------------------------------------------------------------- commands */

static void tell(struct pool *pool, enum pool_event_kind kind, thin_id_t id, const char *name)
{
	struct pool_event ev = { .kind = kind, .id = id, .name = name };

	if (pool->options.event)
		pool->options.event(pool->options.event_ctx, &ev);
}

static int make_locked(struct pool *pool, const char *name, struct volume **ret_v)
{
	struct volume *v;
	thin_id_t id = 0;
	int r = volume_name_check(name);

	if (r)
		return r;
	if (find_locked(pool, name))
		return -EEXIST;
	while (id < MAX_VOLUMES && pool->volumes[id])
		id++;
	if (id == MAX_VOLUMES)
		return -ENOSPC;
	v = calloc(1, sizeof(*v));
	TP_INVARIANT(v);
	v->pool = pool;
	v->id = id;
	v->generation = ++pool->last_generation;
	v->created_usec = time_real_usec();
	snprintf(v->name, sizeof(v->name), "%s", name);
	pthread_rwlock_init(&v->lock, NULL);
	pool->volumes[id] = v;
	*ret_v = v;
	return 0;
}

static int create(struct pool *pool, struct pool_command *cmd)
{
	struct volume *v;
	int r = make_locked(pool, cmd->name, &v);

	if (r)
		return r;
	v->size = cmd->size_bytes;
	cmd->id = v->id;
	tell(pool, POOL_EVENT_VOLUME_ADDED, v->id, v->name);
	return 0;
}

static int snapshot(struct pool *pool, struct pool_command *cmd)
{
	struct volume *from = find_locked(pool, cmd->name), *v;
	int r = from ? make_locked(pool, cmd->new_name, &v) : -ENOENT;

	if (r)
		return r;
	pthread_rwlock_rdlock(&from->lock);
	reserve_locked(v, from->nr_blocks * FAKE_BLOCK_SIZE);
	for (uint64_t b = 0; b < from->nr_blocks; b++)
		if (from->blocks[b])
			memcpy(block_locked(v, b, true), from->blocks[b], FAKE_BLOCK_SIZE);
	v->size = from->size;
	pthread_rwlock_unlock(&from->lock);
	v->has_origin = true;
	v->origin = from->id;
	v->read_only = cmd->flags & POOL_CMD_READ_ONLY;
	cmd->id = v->id;
	tell(pool, POOL_EVENT_VOLUME_ADDED, v->id, v->name);
	return 0;
}

static void unlink_locked(struct pool *pool, struct volume *v)
{
	v->unlinked = true;
	tell(pool, POOL_EVENT_VOLUME_GONE, v->id, v->name);
	free_if_unused_locked(v);
}

static int delete (struct pool *pool, struct pool_command *cmd)
{
	struct volume *v = find_locked(pool, cmd->name);

	if (!v)
		return -ENOENT;
	if (v->opens && cmd->flags & POOL_CMD_IF_CLOSED)
		return -EBUSY;
	unlink_locked(pool, v);
	return 0;
}

static int rename_to(struct pool *pool, struct pool_command *cmd)
{
	struct volume *v = find_locked(pool, cmd->name), *w = find_locked(pool, cmd->new_name);
	int r = volume_name_check(cmd->new_name);

	if (r || !v)
		return r ? r : -ENOENT;
	if (cmd->flags & POOL_CMD_EXCHANGE) {
		if (!w)
			return -ENOENT;
		snprintf(w->name, sizeof(w->name), "%s", cmd->name);
	} else if (w) {
		if (cmd->flags & POOL_CMD_NO_REPLACE)
			return -EEXIST;
		if (w == v)
			return 0;
		unlink_locked(pool, w);
	}
	snprintf(v->name, sizeof(v->name), "%s", cmd->new_name);
	tell(pool, POOL_EVENT_VOLUME_GONE, v->id, cmd->name);
	tell(pool, POOL_EVENT_VOLUME_ADDED, v->id, cmd->new_name);
	return 0;
}

static int resize(struct pool *pool, struct pool_command *cmd)
{
	struct volume *v = NULL;

	if (!(cmd->flags & POOL_CMD_BY_ID))
		v = find_locked(pool, cmd->name);
	else if (cmd->id < MAX_VOLUMES)
		v = pool->volumes[cmd->id];
	if (!v)
		return -ENOENT;
	if (v->read_only)
		return -EROFS;
	if (cmd->size_bytes < v->size && !(cmd->flags & POOL_CMD_SHRINK))
		return -EINVAL;
	pthread_rwlock_wrlock(&v->lock);
	if (cmd->size_bytes < v->size)
		punch_locked(v, cmd->size_bytes,
			     v->nr_blocks * FAKE_BLOCK_SIZE > cmd->size_bytes
				     ? v->nr_blocks * FAKE_BLOCK_SIZE - cmd->size_bytes
				     : 0);
	v->size = cmd->size_bytes;
	pthread_rwlock_unlock(&v->lock);
	cmd->id = v->id;
	tell(pool, POOL_EVENT_VOLUME_RESIZED, v->id, v->name);
	return 0;
}

static int set_read_only(struct pool *pool, struct pool_command *cmd)
{
	struct volume *v = cmd->id < MAX_VOLUMES ? pool->volumes[cmd->id] : NULL;

	if (!v)
		return -ENOENT;
	v->read_only = cmd->flags & POOL_CMD_READ_ONLY;
	return 0;
}

static int carry_out_locked(struct pool *pool, struct pool_command *cmd)
{
	if (pool->command_r) {
		cmd->error = pool->command_error;
		return pool->command_r;
	}
	if (pool->options.read_only)
		return -EROFS;
	switch (cmd->op) {
	case POOL_CREATE:
		return create(pool, cmd);
	case POOL_SNAPSHOT:
		return snapshot(pool, cmd);
	case POOL_DELETE:
		return delete (pool, cmd);
	case POOL_RENAME:
		return rename_to(pool, cmd);
	case POOL_RESIZE:
		return resize(pool, cmd);
	case POOL_SET_READ_ONLY:
		return set_read_only(pool, cmd);
	case POOL_EXTEND: /* the fake has no end */
	case POOL_COMMIT:
		pool->commits++;
		return 0;
	case POOL_METADATA_SNAP_RESERVE:
	case POOL_METADATA_SNAP_RELEASE:
	case POOL_PIN:
	case POOL_UNPIN:
	case POOL_TRIM:
		return -EOPNOTSUPP;
	}
	return -EINVAL;
}

void pool_command_submit(struct pool *pool, struct pool_command *cmd)
{
	pthread_mutex_lock(&pool->lock);
	STAILQ_INSERT_TAIL(&pool->commands, cmd, link);
	pthread_cond_signal(&pool->wake);
	pthread_mutex_unlock(&pool->lock);
}

/* Carried out by the calling thread, under the same lock. */
int pool_command_run(struct pool *pool, struct pool_command *cmd)
{
	int r;

	pthread_mutex_lock(&pool->lock);
	r = carry_out_locked(pool, cmd);
	pthread_mutex_unlock(&pool->lock);
	return r;
}

static bool work_once(struct pool *pool)
{
	struct pool_command *cmd;
	struct deferred *d = NULL;
	int r = 0;

	pthread_mutex_lock(&pool->lock);
	while (!pool->stop && (pool->hold_commands || STAILQ_EMPTY(&pool->commands)) &&
	       (pool->hold || STAILQ_EMPTY(&pool->ios)))
		pthread_cond_wait(&pool->wake, &pool->lock);
	cmd = pool->hold_commands ? NULL : STAILQ_FIRST(&pool->commands);
	if (cmd) {
		STAILQ_REMOVE_HEAD(&pool->commands, link);
		r = carry_out_locked(pool, cmd);
	} else if (!pool->hold) {
		d = STAILQ_FIRST(&pool->ios);
		if (d)
			STAILQ_REMOVE_HEAD(&pool->ios, link);
	}
	pthread_mutex_unlock(&pool->lock);

	if (cmd)
		cmd->done(cmd, r);
	else if (d)
		execute(pool, d->io);
	free(d);
	return cmd || d || !pool->stop;
}

static void *worker_main(void *arg)
{
	while (work_once(arg))
		;
	return NULL;
}

/* ------------------------------------------------------------- life, status */

int pool_open(const struct pool_options *options, struct pool **ret_pool, struct tp_error *error)
{
	struct pool *pool = calloc(1, sizeof(*pool));

	(void)error;
	TP_INVARIANT(pool);
	pool->options = *options;
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->wake, NULL);
	STAILQ_INIT(&pool->commands);
	STAILQ_INIT(&pool->ios);
	pthread_create(&pool->worker, NULL, worker_main, pool);
	*ret_pool = pool;
	return 0;
}

int pool_close(struct pool *pool)
{
	if (!pool)
		return 0;
	pthread_mutex_lock(&pool->lock);
	pool->stop = true;
	pthread_cond_signal(&pool->wake);
	pthread_mutex_unlock(&pool->lock);
	pthread_join(pool->worker, NULL);
	for (thin_id_t i = 0; i < MAX_VOLUMES; i++) {
		struct volume *v = pool->volumes[i];

		if (!v)
			continue;
		TP_INVARIANT(!v->refs && !v->opens);
		v->unlinked = true;
		free_if_unused_locked(v);
	}
	pthread_mutex_destroy(&pool->lock);
	pthread_cond_destroy(&pool->wake);
	free(pool);
	return 0;
}

const char *pool_mode_name(enum pool_mode mode)
{
	return mode == POOL_MODE_WRITE ? "rw" : "other";
}

void pool_get_status(struct pool *pool, struct pool_status *ret_status)
{
	struct pool_status s = { .block_size = FAKE_BLOCK_SIZE,
				 .has_catalog = true,
				 .data_total = UINT64_C(1) << 34 };
	struct volume_info info;

	for (thin_id_t from = 0; !pool_volume_next(pool, from, &info); from = info.id + 1) {
		s.nr_volumes++;
		s.data_used += info.mapped_bytes;
		s.virtual_total += info.size_bytes;
	}
	*ret_status = s;
}

void pool_keep_unlinked(struct pool *pool, bool keep)
{
	(void)pool; /* nothing outlives it anyway */
	(void)keep;
}

void pool_stop_waiting(struct pool *pool)
{
	(void)pool; /* nobody waits for space here */
}

void pool_get_latency(struct pool *pool, struct pool_latency ret_latency[POOL_NR_LATENCY_OPS])
{
	(void)pool;
	memset(ret_latency, 0, POOL_NR_LATENCY_OPS * sizeof(*ret_latency));
}

uint32_t pool_block_size(const struct pool *pool)
{
	(void)pool;
	return FAKE_BLOCK_SIZE;
}

/* ----------------------------------------------------------------- controls */

void fake_pool_set_deferred(struct pool *pool, bool deferred)
{
	pool->deferred = deferred;
}

void fake_pool_hold(struct pool *pool, bool hold)
{
	pthread_mutex_lock(&pool->lock);
	pool->hold = hold;
	pthread_cond_signal(&pool->wake);
	pthread_mutex_unlock(&pool->lock);
}

void fake_pool_hold_commands(struct pool *pool, bool hold)
{
	pthread_mutex_lock(&pool->lock);
	pool->hold_commands = hold;
	pthread_cond_signal(&pool->wake);
	pthread_mutex_unlock(&pool->lock);
}

void fake_pool_fail_commands(struct pool *pool, int r, const char *text)
{
	pthread_mutex_lock(&pool->lock);
	pool->command_r = r;
	snprintf(pool->command_error.text, sizeof(pool->command_error.text), "%s", text);
	pthread_mutex_unlock(&pool->lock);
}

void fake_pool_fail(struct pool *pool, enum pool_io_op op, int r, int count)
{
	pool->fail_r[op] = r;
	pool->fail_count[op] = count;
}

int fake_pool_fill(struct pool *pool, const char *name, unsigned char byte)
{
	struct volume *v;
	int r = pool_volume_find(pool, name, &v);

	if (r)
		return r;
	pthread_rwlock_wrlock(&v->lock);
	for (uint64_t b = 0; b < v->nr_blocks; b++)
		if (v->blocks[b])
			memset(v->blocks[b], byte, FAKE_BLOCK_SIZE);
	pthread_rwlock_unlock(&v->lock);
	tell(pool, POOL_EVENT_VOLUME_CONTENT, v->id, name);
	volume_put(v);
	return 0;
}

void fake_pool_get_counts(struct pool *pool, struct fake_pool_counts *ret_counts)
{
	struct fake_pool_counts c = {
		.reads = pool->count[POOL_READ],
		.writes = pool->count[POOL_WRITE],
		.durable_writes = pool->durable,
		.flushes = pool->count[POOL_FLUSH],
		.punches = pool->count[POOL_PUNCH],
		.zeroes = pool->count[POOL_ZERO],
		.allocates = pool->count[POOL_ALLOCATE],
		.commits = pool->commits,
		.unaligned_buffers = pool->unaligned,
	};

	pthread_mutex_lock(&pool->lock);
	for (thin_id_t i = 0; i < MAX_VOLUMES; i++) {
		if (!pool->volumes[i])
			continue;
		c.volumes++;
		c.references += pool->volumes[i]->refs;
	}
	pthread_mutex_unlock(&pool->lock);
	*ret_counts = c;
}
