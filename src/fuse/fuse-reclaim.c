/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-reclaim.c - giving back memory: request buffers, and the pages of volumes
 *
 * Buffers: a worker's slots are its own, so it is asked to trim them, and waited for.
 *
 * Pages: the kernel's page cache of the volumes, by notices to forget a range.  Before it
 * drops a dirty page (of a shared mapping) the kernel writes it to us and waits, and so does
 * the callback, with the registry's lock held: as a file system's inode shrinker waits for
 * I/O on a thin device.  FUSE workers and the pool worker serve that write without ever
 * waiting for the registry.  A sweep takes a limited time and goes on next time where it
 * stopped; what the limit cannot cut short is one notice.
 */
#include "fuse/fuse-internal.h"

#include "reclaim/shrinker.h"
#include "util/clock.h"

/* Of a volume at a time: written back page by page if all of it is dirty. */
#define PIECE_BYTES (UINT64_C(64) << 20)

/* ---- buffers ---- */

static uint64_t buffers_count(void *ctx)
{
	const struct fuse_server *server = ctx;
	uint64_t bytes = 0;

	for (unsigned i = 0; i < server->nr_workers; i++)
		bytes += atomic_load_explicit(&server->workers[i].touched, memory_order_relaxed);
	return bytes / FUSE_PAGE;
}

static uint64_t buffers_scan(void *ctx, uint64_t nr)
{
	struct fuse_server *server = ctx;
	uint64_t left = nr;

	for (unsigned i = 0; i < server->nr_workers; i++) {
		struct fuse_worker *w = &server->workers[i];
		uint64_t pages = MIN(left, atomic_load(&w->touched) / FUSE_PAGE);

		if (pages)
			fuse_worker_ask_trim(w, pages * FUSE_PAGE);
		left -= pages;
	}
	return nr - left;
}

static uint64_t buffers_freed(void *ctx)
{
	const struct fuse_server *server = ctx;
	uint64_t bytes = 0;

	for (unsigned i = 0; i < server->nr_workers; i++)
		bytes += atomic_load(&server->workers[i].trimmed);
	return bytes / FUSE_PAGE;
}

static void buffers_settle(void *ctx)
{
	struct fuse_server *server = ctx;

	for (unsigned i = 0; i < server->nr_workers; i++)
		fuse_worker_await_trim(&server->workers[i]);
}

static const struct shrinker_ops buffers_ops = { .count = buffers_count,
						 .scan = buffers_scan,
						 .freed = buffers_freed,
						 .settle = buffers_settle,
						 .object_bytes = FUSE_PAGE };

/* ---- pages: an object is a sweep ---- */

static uint64_t pages_count(void *ctx)
{
	const struct fuse_server *server = ctx;

	return time_monotonic_usec() >= server->pages.next_usec && !server->pages.busy;
}

/* From the next volume on, in order of id.  Returns false after the last one. */
static bool next_volume(struct fuse_server *server, struct volume_info *ret_info)
{
	if (server->pages.id > THIN_ID_MAX ||
	    pool_volume_next(server->pool, server->pages.id, ret_info))
		return false;
	if (ret_info->id != server->pages.id)
		server->pages.offset = 0;
	server->pages.id = ret_info->id;
	return true;
}

static void sweep(struct fuse_server *server)
{
	uint64_t deadline = time_monotonic_usec() + server->pages.limit_usec;
	struct volume_info info;

	do {
		if (!next_volume(server, &info)) {
			server->pages.id = 0;
			server->pages.offset = 0;
			return;
		}
		if (fuse_notify_drop(server, info.id, server->pages.offset, PIECE_BYTES))
			server->pages.offset += PIECE_BYTES;
		else
			server->pages.offset = UINT64_MAX; /* the kernel does not know it */
		if (server->pages.offset >= info.size_bytes) {
			server->pages.id = info.id + 1;
			server->pages.offset = 0;
		}
	} while (time_monotonic_usec() < deadline && !atomic_load(&server->pages.stop) &&
		 !atomic_load(&server->ended));
}

static uint64_t pages_scan(void *ctx, uint64_t nr)
{
	struct fuse_server *server = ctx;

	(void)nr;
	if (atomic_exchange(&server->pages.busy, true))
		return 0;
	sweep(server);
	atomic_store(&server->pages.next_usec, time_monotonic_usec() + server->pages.interval_usec);
	atomic_store(&server->pages.busy, false);
	return 1;
}

static const struct shrinker_ops pages_ops = { .count = pages_count, .scan = pages_scan };

/* ---- life ---- */

int fuse_reclaim_start(struct fuse_server *server)
{
	int r = shrinker_register("request buffers", &buffers_ops, server,
				  &server->buffers_shrinker);

	if (r || !server->pages.limit_usec)
		return r;
	return shrinker_register("pages of volumes", &pages_ops, server, &server->pages_shrinker);
}

void fuse_reclaim_stop(struct fuse_server *server)
{
	atomic_store(&server->pages.stop, true);
	server->pages_shrinker = shrinker_unregister(server->pages_shrinker);
	server->buffers_shrinker = shrinker_unregister(server->buffers_shrinker);
}
