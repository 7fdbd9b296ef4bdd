/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pool.c - a pool's life and its status
 *
 * Opening builds devices, metadata, prison, worker, volumes, in that order, and then starts the
 * worker's thread; closing takes them down the other way round, and also what a failed
 * opening has left half-built.
 */
#define LOG_MODULE "pool"
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pool/request.h"
#include "thinpoold/disk-format.h"
#include "util/clock.h"
#include "util/log.h"

#define ZONE_BYTES (UINT64_C(4) << 20) /* of the prison: several of the largest requests */
#define VOLUME_BLOCKS_MAX (UINT64_C(1) << 40)

/* ------------------------------------------------------------------ open */

static int open_device(const char *what, const char *path, unsigned flags,
		       struct io_device **ret_dev, struct tp_error *error)
{
	int r = io_device_open(path, flags, ret_dev);

	if (r)
		return tp_error(error, r, "%s \"%s\": %s%s", what, path, io_device_open_words(r),
				r == -ENOENT ? ", name a directory that \"thinpoolctl format\" made"
					     : "");
	return 0;
}

/* NULL: it is not known, which is no harm. */
static char *directory_of(const char *metadata_path)
{
	const char *slash = strrchr(metadata_path, '/');
	char *directory = slash && slash > metadata_path
				  ? strndup(metadata_path, (size_t)(slash - metadata_path))
				  : NULL;
	char *absolute = directory ? realpath(directory, NULL) : NULL;

	free(directory);
	return absolute;
}

static int open_devices(struct pool *pool, const struct pool_options *options,
			struct tp_error *error)
{
	unsigned flags = options->read_only ? IO_OPEN_READ_ONLY : 0;
	int r;

	pool->owns_devices = true;
	if (io_device_is_same(options->metadata_path, options->data_path))
		return tp_error(
			error, -EINVAL,
			"metadata \"%s\" and data \"%s\" are the same file or device: one of "
			"the two is a wrong link",
			options->metadata_path, options->data_path);
	pool->directory = directory_of(options->metadata_path);
	r = open_device("metadata", options->metadata_path, flags, &pool->metadata, error);
	if (!r)
		r = open_device("data", options->data_path, flags, &pool->data, error);
	return r;
}

static int set_geometry(struct pool *pool, const struct thin_metadata_info *info,
			struct tp_error *error)
{
	uint64_t size = (uint64_t)info->data_block_sectors * SECTOR_SIZE, blocks;

	pool->block_size = size;
	pool->block_shift = size & (size - 1) ? -1 : __builtin_ctzll(size);
	pool->alignment = io_device_alignment(pool->data);
	if (size % pool->alignment)
		return tp_error(error, -EINVAL,
				"blocks of %llu bytes are not a multiple of the %u bytes that "
				"\"%s\" wants",
				(unsigned long long)size, pool->alignment,
				io_device_name(pool->data));
	for (blocks = 1; 2 * blocks * size <= ZONE_BYTES; blocks *= 2)
		;
	pool->zone_bytes = blocks * size;
	pool->max_bytes = size > INT64_MAX / VOLUME_BLOCKS_MAX ? INT64_MAX / size * size
							       : VOLUME_BLOCKS_MAX * size;
	return prison_create(blocks, &pool->prison);
}

TP_NO_TSA static int open_metadata(struct pool *pool, struct tp_error *error)
{
	struct thin_metadata_options options = {
		.cache_bytes = pool->options.cache_bytes,
		.read_only = pool->options.read_only,
		.data = pool->data,
	};
	struct thin_metadata_info info;
	char remedy[POOL_REASON_MAX];
	int r = thin_metadata_open(pool->metadata, &options, &pool->tmd, error);

	if (r)
		return r;
	r = thin_metadata_get_info(pool->tmd, &info);
	if (r)
		return r;
	pool->info = info;
	pool->needs_check = info.needs_check;
	if (info.needs_check || pool->options.read_only) {
		pool->opened_read_only = true;
		pool->mode = POOL_MODE_READ_ONLY;
		snprintf(pool->reason, sizeof(pool->reason), "%s",
			 info.needs_check ? "the metadata needs a check (NEEDS_CHECK is set)"
					  : "opened read-only");
		thin_metadata_set_read_only(pool->tmd);
	}
	if (info.needs_check) {
		pool_describe_remedy(pool, remedy, sizeof(remedy));
		log_warn("the metadata needs a check (NEEDS_CHECK is set), the pool is read-only: "
			 "%s",
			 remedy);
	}
	return set_geometry(pool, &info, error);
}

TP_NO_TSA static struct pool *pool_alloc(const struct pool_options *options)
{
	struct pool *pool = calloc(1, sizeof(*pool));

	if (!pool)
		return NULL;
	pool->stats = aligned_alloc(64, sizeof(*pool->stats));
	if (!pool->stats) {
		free(pool);
		return NULL;
	}
	memset(pool->stats, 0, sizeof(*pool->stats));
	pool->flushes_begun = 1; /* volume->written: 0 is none */
	pool->options = *options;
	pool->options.metadata_path = pool->options.data_path = NULL;
	pool->keep_unlinked = options->keep_unlinked;
	pool->refuses_discards = options->discard == POOL_DISCARD_IGNORE;
	tp_lock_init(&pool->throttle, LC_throttle, LOCK_KIND_RW);
	tp_lock_init(&pool->lock, LC_pool, LOCK_KIND_MUTEX);
	tp_lock_init(&pool->catalog_lock, LC_catalog, LOCK_KIND_RW);
	STAILQ_INIT(&pool->commands);
	pool->mode = POOL_MODE_WRITE;
	/* Not where a predecessor began, whose handles may be open still. */
	pool->next_handle = (uint32_t)(time_monotonic_usec() * UINT64_C(0x9e3779b97f4a7c15) >> 32);
	return pool;
}

static int pool_build(struct pool *pool, struct tp_error *error)
{
	int r = open_metadata(pool, error);

	if (!r)
		r = worker_create(pool);
	if (!r)
		r = volumes_load(pool, error);
	if (!r && pool->options.redo_fd > 0 && !pool->options.read_only)
		r = pool_redo_open(pool, pool->options.redo_fd);
	if (r)
		return r;
	if (!pool->opened_read_only)
		pool_allocate_metadata(pool);
	/* Each opening that let a first write through would eat of the reserve. */
	pool_refresh_info(pool, true);
	return worker_start(pool);
}

static int finish_open(struct pool *pool, int r, struct pool **ret_pool, struct tp_error *error)
{
	if (!r)
		r = pool_build(pool, error);
	if (r) {
		(void)pool_close(pool); /* the first error is the one to tell */
		return tp_error(error, r, "cannot open the pool: %s", strerror(-r));
	}
	*ret_pool = pool;
	return 0;
}

int pool_open(const struct pool_options *options, struct pool **ret_pool, struct tp_error *error)
{
	struct pool *pool = pool_alloc(options);

	if (!pool)
		return tp_error(error, -ENOMEM, "cannot open the pool: no memory");
	return finish_open(pool, open_devices(pool, options, error), ret_pool, error);
}

int pool_open_devices(const struct pool_options *options, struct io_device *metadata,
		      struct io_device *data, struct pool **ret_pool, struct tp_error *error)
{
	struct pool *pool = pool_alloc(options);

	if (!pool)
		return tp_error(error, -ENOMEM, "cannot open the pool: no memory");
	pool->metadata = metadata;
	pool->data = data;
	return finish_open(pool, 0, ret_pool, error);
}

int pool_close(struct pool *pool)
{
	bool served;
	int r;

	if (!pool)
		return 0;
	served = pool->worker && pool->worker->running;
	r = worker_stop(pool);
	pool_redo_close(pool, served && !r && !pool_check_writable(pool));
	volumes_unload(pool);
	worker_destroy(pool);
	TP_INVARIANT(thin_metadata_close(pool->tmd) == 0);
	pool->prison = prison_destroy(pool->prison);
	if (pool->owns_devices) {
		io_device_close(pool->data);
		io_device_close(pool->metadata);
	}
	tp_lock_destroy(&pool->catalog_lock);
	tp_lock_destroy(&pool->lock);
	tp_lock_destroy(&pool->throttle);
	free(pool->directory);
	free(pool->stats);
	free(pool);
	return r;
}

/* ------------------------------------------------------------------ configuration */

void pool_configure(struct pool *pool, const struct pool_options *options)
{
	lock_pool(&pool->lock);
	pool->wanted = *options;
	unlock_pool(&pool->lock);
	atomic_store(&pool->is_wanted, true);
	pool_wake_worker(pool);
}

void pool_take_configuration(struct pool *pool)
{
	struct pool_options *o = &pool->options, *wanted = &pool->wanted;

	if (likely(!atomic_load_explicit(&pool->is_wanted, memory_order_relaxed)))
		return;
	atomic_store(&pool->is_wanted, false);
	lock_pool(&pool->lock);
	o->cache_bytes = wanted->cache_bytes;
	o->commit_interval_usec = wanted->commit_interval_usec;
	o->discard = wanted->discard;
	o->zero_new_blocks = wanted->zero_new_blocks;
	o->queue_if_no_space = wanted->queue_if_no_space;
	o->no_space_timeout_usec = wanted->no_space_timeout_usec;
	o->low_water_data = wanted->low_water_data;
	o->low_water_metadata = wanted->low_water_metadata;
	o->autoextend = wanted->autoextend;
	unlock_pool(&pool->lock);
	atomic_store(&pool->refuses_discards, o->discard == POOL_DISCARD_IGNORE);
	thin_metadata_set_cache_limit(pool->tmd, o->cache_bytes);
	low_space_restart(pool);
	for (unsigned i = 0; i < NR_GROWTHS; i++)
		pool->growth[i].retry_usec = 0; /* what was in the way may have been a limit */
}

/* ------------------------------------------------------------------ status */

uint32_t pool_block_size(const struct pool *pool)
{
	return pool->block_size;
}

void pool_get_latency(struct pool *pool, struct pool_latency ret_latency[POOL_NR_LATENCY_OPS])
{
	stats_read_latency(pool->stats, ret_latency);
}

void pool_get_status(struct pool *pool, struct pool_status *ret_status)
{
	struct pool_status s = { .block_size = pool->block_size };
	struct thin_metadata_info info;
	struct cache_stats cache;
	struct pool_low_water low_water_data, low_water_metadata;
	const struct pool_command *cmd;

	/* A copy that the worker keeps: nobody here waits for metadata that is being changed. */
	lock_pool(&pool->lock);
	info = pool->info;
	s.mode = pool->mode;
	s.waiting_space = pool->waiting_space;
	STAILQ_FOREACH(cmd, &pool->commands, link)
	s.waiting_commands++;
	memcpy(s.reason, pool->reason, sizeof(s.reason));
	s.discard = pool->options.discard;
	s.zero_new_blocks = pool->options.zero_new_blocks;
	s.queue_if_no_space = pool->options.queue_if_no_space;
	s.no_space_timeout_usec = pool->options.no_space_timeout_usec;
	s.commit_interval_usec = pool->options.commit_interval_usec;
	low_water_data = pool->options.low_water_data;
	low_water_metadata = pool->options.low_water_metadata;
	s.autoextend = pool->options.autoextend;
	memcpy(s.data_not_extended, pool->growth[GROWTH_DATA].why, GROWTH_WHY_MAX);
	memcpy(s.metadata_not_extended, pool->growth[GROWTH_METADATA].why, GROWTH_WHY_MAX);
	unlock_pool(&pool->lock);

	s.needs_check = pool->needs_check;
	if (s.needs_check || pool->data_failed)
		pool_describe_remedy(pool, s.remedy, sizeof(s.remedy));
	s.longest_abort_usec = pool->longest_abort_usec;
	s.has_catalog = pool->has_catalog;
	s.read_only = pool->options.read_only;
	s.transaction_id = info.transaction_id;
	s.held_root = info.held_root;
	s.data_is_low = pool->data_is_low;
	s.metadata_is_low = pool->metadata_is_low;
	s.data_total = info.nr_data_blocks * pool->block_size;
	s.data_used = (info.nr_data_blocks - info.nr_data_free) * pool->block_size;
	s.metadata_total = info.nr_metadata_blocks * METADATA_BLOCK_SIZE;
	s.metadata_reserve = info.metadata_reserve * METADATA_BLOCK_SIZE;
	s.metadata_used = s.metadata_total - s.metadata_reserve -
			  MIN(info.nr_metadata_free * METADATA_BLOCK_SIZE,
			      s.metadata_total - s.metadata_reserve);
	s.low_water_data = low_water_mark(&low_water_data, s.data_total);
	s.low_water_metadata = low_water_mark(&low_water_metadata, s.metadata_total);
	if (io_device_allocated(pool->data, &s.data_allocated))
		s.data_allocated = 0;
	volumes_get_totals(pool, &s.nr_volumes, &s.virtual_total);
	thin_metadata_get_cache_stats(pool->tmd, &cache);
	s.cache_bytes = cache.cached_bytes;
	s.cache_limit_bytes = cache.limit_bytes;
	s.cache_hits = cache.hits;
	s.cache_misses = cache.misses;
	s.cache_shrunk = cache.shrunk_buffers;
	s.longest_throttle_usec = pool->worker->longest_throttle_usec;
	s.in_flight = stats_in_flight(pool->stats);
	s.waiting_worker = atomic_load_explicit(&pool->worker->nr_deferred, memory_order_relaxed);
	stats_read(pool->stats, &s.stats);
	*ret_status = s;
}
