/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dying-pool.c - a pool whose process dies, and the one that comes after it
 */
#include "dying-pool.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fault-device.h"
#include "mem-device.h"
#include "pool/request.h"
#include "thin/thin-check.h"
#include "util/clock.h"

#define MUST(cond) \
	do { \
		if (!(cond)) { \
			fprintf(stderr, "# %s:%d: %s\n", __FILE__, __LINE__, #cond); \
			abort(); \
		} \
	} while (0)

struct death {
	struct io_device *meta, *data; /* in memory */
	uint8_t *area;
	size_t area_bytes;
};

/* ---- a device that counts what the worker does ---- */

struct watched {
	struct io_device base;
	struct io_device *inner; /* a fault device */
	struct dying_pool *dp;
};

static struct watched *watched(struct io_device *dev)
{
	return container_of(dev, struct watched, base);
}

static struct death *copy_all(struct dying_pool *dp);

/* Others than the worker have no part in what an area describes. */
static void watch(struct dying_pool *dp)
{
	struct pool *pool = dp->rig->pool;

	if (pool && on_worker(pool) && dp->countdown && !--dp->countdown)
		dp->death = copy_all(dp);
}

static void watched_submit(struct io_device *dev, struct io_queue *q, struct io_request *io)
{
	watch(watched(dev)->dp);
	io->device = watched(dev)->inner;
	io->device->ops->submit(io->device, q, io);
}

static int watched_execute(struct io_device *dev, struct io_request *io)
{
	watch(watched(dev)->dp);
	return watched(dev)->inner->ops->execute(watched(dev)->inner, io);
}

static int watched_next_data(struct io_device *dev, uint64_t offset, uint64_t *ret_offset)
{
	return watched(dev)->inner->ops->next_data(watched(dev)->inner, offset, ret_offset);
}

static int watched_allocated(struct io_device *dev, uint64_t *ret_bytes)
{
	return watched(dev)->inner->ops->allocated(watched(dev)->inner, ret_bytes);
}

static void watched_close(struct io_device *dev)
{
	io_device_close(watched(dev)->inner);
	free(watched(dev));
}

static const struct io_device_ops watched_ops = {
	.submit = watched_submit,
	.execute = watched_execute,
	.next_data = watched_next_data,
	.allocated = watched_allocated,
	.close = watched_close,
};

static struct io_device *watch_device(struct dying_pool *dp, struct io_device *mem)
{
	struct watched *w = calloc(1, sizeof(*w));

	MUST(w);
	w->inner = fault_device_create(mem);
	w->dp = dp;
	w->base = (struct io_device){ .ops = &watched_ops,
				      .name = w->inner->name,
				      .size = w->inner->size,
				      .alignment = w->inner->alignment };
	return &w->base;
}

struct io_device *dying_pool_metadata(struct dying_pool *dp)
{
	return watched(dp->rig->meta)->inner;
}

struct io_device *dying_pool_data(struct dying_pool *dp)
{
	return watched(dp->rig->data)->inner;
}

/* ---- the area ---- */

static int area_create(uint64_t bytes)
{
	int fd = memfd_create("redo", MFD_CLOEXEC);

	MUST(fd > 0 && !ftruncate(fd, (off_t)bytes));
	return fd;
}

/* ---- death ---- */

static struct death *copy_all(struct dying_pool *dp)
{
	struct death *death = calloc(1, sizeof(*death));
	off_t bytes = lseek(dp->area_fd, 0, SEEK_END);

	MUST(death && bytes >= 0);
	death->area_bytes = (size_t)bytes;
	death->area = malloc(MAX(death->area_bytes, 1));
	MUST(death->area &&
	     pread(dp->area_fd, death->area, death->area_bytes, 0) == (ssize_t)death->area_bytes);
	death->meta = mem_device_clone(fault_device_inner(dying_pool_metadata(dp)));
	death->data = mem_device_clone(fault_device_inner(dying_pool_data(dp)));
	return death;
}

void death_free(struct death *death)
{
	if (!death)
		return;
	io_device_close(death->meta);
	io_device_close(death->data);
	free(death->area);
	free(death);
}

static bool worker_sleeps(void *ctx)
{
	struct worker *w = ((struct dying_pool *)ctx)->rig->pool->worker;

	return atomic_load(&w->sleeping) && !atomic_load(&w->deferred) && !atomic_load(&w->poked);
}

struct death *dying_pool_die_now(struct dying_pool *dp)
{
	return copy_all(dp);
}

struct death *dying_pool_die(struct dying_pool *dp)
{
	MUST(rig_await(dp->rig, worker_sleeps, dp));
	return copy_all(dp);
}

void dying_pool_die_at(struct dying_pool *dp, unsigned long n)
{
	MUST(rig_await(dp->rig, worker_sleeps, dp));
	dp->countdown = n;
}

int dying_pool_try_rise(struct dying_pool *dp, struct death *death, bool same_boot)
{
	struct pool_rig *rig = dp->rig;
	struct tp_error error = { "" };

	dp->countdown = 0;
	(void)pool_rig_close(rig); /* what it says of its end is of no interest */
	io_device_close(rig->meta);
	io_device_close(rig->data);
	close(dp->area_fd);
	rig->meta = watch_device(dp, death->meta);
	rig->data = watch_device(dp, death->data);
	dp->area_fd = area_create(death->area_bytes);
	if (same_boot)
		MUST(pwrite(dp->area_fd, death->area, death->area_bytes, 0) ==
		     (ssize_t)death->area_bytes);
	rig->options.redo_fd = dp->area_fd;
	free(death->area);
	free(death);
	return pool_open_devices(&rig->options, rig->meta, rig->data, &rig->pool, &error);
}

void dying_pool_rise(struct dying_pool *dp, struct death *death, bool same_boot)
{
	MUST(!dying_pool_try_rise(dp, death, same_boot));
}

/* ---- life ---- */

struct dying_pool *dying_pool_create(uint64_t block_bytes, uint64_t nr_blocks,
				     uint64_t metadata_bytes, uint64_t area_bytes)
{
	struct dying_pool *dp = calloc(1, sizeof(*dp));
	struct io_device *meta, *data;

	MUST(dp);
	dp->rig = pool_rig_create_sized(block_bytes, nr_blocks, 512, metadata_bytes);
	MUST(!pool_rig_close(dp->rig));
	meta = mem_device_clone(fault_device_inner(dp->rig->meta));
	data = mem_device_clone(fault_device_inner(dp->rig->data));
	io_device_close(dp->rig->meta);
	io_device_close(dp->rig->data);
	dp->rig->meta = watch_device(dp, meta);
	dp->rig->data = watch_device(dp, data);
	dp->rig->options.commit_interval_usec = 3600 * USEC_PER_SEC;
	dp->rig->options.redo_fd = dp->area_fd = area_create(area_bytes);
	pool_rig_open(dp->rig);
	return dp;
}

void dying_pool_destroy(struct dying_pool *dp)
{
	if (!dp)
		return;
	pool_rig_destroy(dp->rig);
	close(dp->area_fd);
	free(dp);
}

static void report(void *ctx, enum thin_check_severity severity, const char *line)
{
	(void)ctx;
	(void)severity;
	fprintf(stderr, "# %s\n", line);
}

bool dying_pool_is_clean(struct dying_pool *dp)
{
	const struct thin_check_options options = { .data_bytes = io_device_size(dp->rig->data),
						    .report = report,
						    .max_findings = 10 };
	struct io_device *copy;
	struct thin_check_result result;
	int r;

	MUST(rig_await(dp->rig, worker_sleeps, dp));
	copy = mem_device_clone(fault_device_inner(dying_pool_metadata(dp)));
	r = thin_check(copy, &options, &result);
	io_device_close(copy);
	return !r && !result.nr_hints && !result.nr_leaks && !result.nr_damages;
}
