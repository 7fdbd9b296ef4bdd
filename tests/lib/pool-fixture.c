/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pool-fixture.c - a pool in service over two devices in memory
 */
#include "pool-fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "catalog/catalog.h"
#include "fault-device.h"
#include "mem-device.h"
#include "pool/pool-internal.h"
#include "thin-image.h"
#include "thin/thin-metadata.h"
#include "util/clock.h"

/* Unlike assert_int_equal(): from any thread, and before main() has started a test. */
static void must_be_0(int r, const char *what)
{
	if (r) {
		fprintf(stderr, "# %s: %s\n", what, strerror(-r));
		abort();
	}
}

/* ---- life ---- */

static void format(struct pool_rig *rig, uint64_t block_bytes, uint64_t nr_blocks)
{
	struct thin_metadata_options options = { .cache_bytes = 4 * MIB, .data = rig->data };
	struct thin_metadata *tmd = NULL;

	must_be_0(thin_metadata_format(rig->meta, block_bytes / SECTOR_SIZE, NULL), "format");
	must_be_0(thin_metadata_open(rig->meta, &options, &tmd, NULL), "open metadata");
	must_be_0(thin_metadata_resize_data(tmd, nr_blocks), "size of data");
	must_be_0(thin_metadata_commit(tmd), "commit of the size");
	must_be_0(catalog_create(tmd, rig->data), "create a catalog");
	must_be_0(thin_metadata_commit(tmd), "commit of the catalog");
	must_be_0(thin_metadata_close(tmd), "close metadata");
}

struct pool_rig *pool_rig_create_sized(uint64_t block_bytes, uint64_t nr_blocks, uint32_t alignment,
				       uint64_t metadata_bytes)
{
	struct pool_rig *rig = calloc(1, sizeof(*rig));
	struct io_device *data = mem_device_create(block_bytes * nr_blocks);

	must_be_0(rig ? 0 : -ENOMEM, "memory");
	mem_device_set_alignment(data, alignment);
	rig->data = fault_device_create(data);
	rig->meta = fault_device_create_mem(metadata_bytes);
	rig->options = (struct pool_options){
		.cache_bytes = 4 * MIB,
		.commit_interval_usec = USEC_PER_SEC,
		.zero_new_blocks = true,
	};
	must_be_0(io_queue_self(&rig->q), "the thread's queue");
	format(rig, block_bytes, nr_blocks);
	pool_rig_open(rig);
	return rig;
}

struct pool_rig *pool_rig_create(uint64_t block_bytes, uint64_t nr_blocks, uint32_t alignment)
{
	return pool_rig_create_sized(block_bytes, nr_blocks, alignment, 8 * MIB);
}

void pool_rig_open(struct pool_rig *rig)
{
	struct tp_error error = { "" };
	int r = pool_open_devices(&rig->options, rig->meta, rig->data, &rig->pool, &error);

	must_be_0(r, error.text);
}

int pool_rig_close(struct pool_rig *rig)
{
	int r = pool_close(rig->pool);

	rig->pool = NULL;
	return r;
}

void pool_rig_reopen(struct pool_rig *rig)
{
	must_be_0(pool_rig_close(rig), "close the pool");
	pool_rig_open(rig);
}

void pool_rig_destroy(struct pool_rig *rig)
{
	if (!rig)
		return;
	(void)pool_close(rig->pool);
	io_device_close(rig->data);
	io_device_close(rig->meta);
	free(rig);
}

int pool_rig_begin(struct pool_rig **ret_rig, struct volume **ret_v)
{
	*ret_rig = pool_rig_create(64 * KIB, 256, 512);
	*ret_v = rig_create_volume(*ret_rig, "vol", 8 * MIB);
	return 0;
}

int pool_rig_end(struct pool_rig *rig, struct volume *v)
{
	if (v)
		rig_close_volume(v);
	assert_int_equal(pool_rig_close(rig), 0);
	assert_true(pool_rig_is_clean(rig));
	pool_rig_destroy(rig);
	return 0;
}

int pool_rig_end_failed(struct pool_rig *rig, struct volume *v)
{
	if (v)
		rig_close_volume(v);
	(void)pool_rig_close(rig);
	pool_rig_destroy(rig);
	return 0;
}

bool pool_rig_is_clean(struct pool_rig *rig)
{
	return thin_device_is_clean(fault_device_inner(rig->meta));
}

/* ---- volumes ---- */

struct volume *rig_open_volume(struct pool_rig *rig, const char *name)
{
	struct volume *v = NULL;

	must_be_0(pool_volume_find(rig->pool, name, &v), name);
	must_be_0(volume_open(v, true), name);
	return v;
}

void rig_close_volume(struct volume *v)
{
	volume_close(v);
	volume_put(v);
}

static int run_command(struct pool_rig *rig, enum pool_command_op op, const char *name,
		       const char *new_name, uint64_t bytes)
{
	struct pool_command cmd = { .op = op, .size_bytes = bytes };

	snprintf(cmd.name, sizeof(cmd.name), "%s", name);
	snprintf(cmd.new_name, sizeof(cmd.new_name), "%s", new_name);
	return pool_command_run(rig->pool, &cmd);
}

struct volume *rig_create_volume(struct pool_rig *rig, const char *name, uint64_t bytes)
{
	must_be_0(run_command(rig, POOL_CREATE, name, "", bytes), name);
	return rig_open_volume(rig, name);
}

int rig_snapshot(struct pool_rig *rig, const char *origin, const char *name)
{
	return run_command(rig, POOL_SNAPSHOT, origin, name, 0);
}

int rig_delete(struct pool_rig *rig, const char *name)
{
	return run_command(rig, POOL_DELETE, name, "", 0);
}

int rig_metadata_snap(struct pool_rig *rig, bool reserve)
{
	return run_command(rig, reserve ? POOL_METADATA_SNAP_RESERVE : POOL_METADATA_SNAP_RELEASE,
			   "", "", 0);
}

int rig_commit(struct pool_rig *rig)
{
	return run_command(rig, POOL_COMMIT, "", "", 0);
}

struct pool_status rig_status(struct pool_rig *rig)
{
	struct pool_status s;

	pool_get_status(rig->pool, &s);
	return s;
}

uint64_t rig_mapped(struct volume *v)
{
	struct volume_info info;

	volume_get_info(v, &info);
	return info.mapped_bytes;
}

/* ---- I/O ---- */

static int run_io(struct pool_rig *rig, struct volume *v, enum pool_io_op op, uint64_t offset,
		  uint64_t length, void *buffer, bool durable)
{
	struct pool_io io = { .op = op,
			      .durable = durable,
			      .volume = v,
			      .offset = offset,
			      .length = length,
			      .buffer = buffer };

	return pool_io_run(rig->pool, rig->q, &io);
}

int rig_io(struct pool_rig *rig, struct volume *v, enum pool_io_op op, uint64_t offset,
	   uint64_t length, void *buffer)
{
	return run_io(rig, v, op, offset, length, buffer, false);
}

int rig_durable(struct pool_rig *rig, struct volume *v, enum pool_io_op op, uint64_t offset,
		uint64_t length, void *buffer)
{
	return run_io(rig, v, op, offset, length, buffer, true);
}

/* A buffer as pool.h likes it: congruent to the offset; free() *@ret_base. */
static uint8_t *congruent_buffer(uint64_t offset, uint64_t length, void **ret_base)
{
	*ret_base = io_buffer_alloc(length + 4096);
	must_be_0(*ret_base ? 0 : -ENOMEM, "memory");
	return (uint8_t *)*ret_base + offset % 4096;
}

int rig_fill(struct pool_rig *rig, struct volume *v, uint64_t offset, uint64_t length, int byte)
{
	void *base;
	uint8_t *buffer = congruent_buffer(offset, length, &base);
	int r;

	memset(buffer, byte, length);
	r = rig_io(rig, v, POOL_WRITE, offset, length, buffer);
	free(base);
	return r;
}

bool rig_reads_as(struct pool_rig *rig, struct volume *v, uint64_t offset, uint64_t length,
		  int byte)
{
	void *base;
	uint8_t *buffer = congruent_buffer(offset, length, &base);
	uint64_t i = 0;
	int r;

	memset(buffer, ~byte, length);
	r = rig_io(rig, v, POOL_READ, offset, length, buffer);
	while (!r && i < length && buffer[i] == (uint8_t)byte)
		i++;
	if (r)
		fprintf(stderr, "# read of %llu: %s\n", (unsigned long long)offset, strerror(-r));
	else if (i < length)
		fprintf(stderr, "# byte %llu reads as %#x, not %#x\n",
			(unsigned long long)(offset + i), buffer[i], (uint8_t)byte);
	free(base);
	return !r && i == length;
}

int rig_flush(struct pool_rig *rig, struct volume *v)
{
	return rig_io(rig, v, POOL_FLUSH, 0, 0, NULL);
}

int rig_punch(struct pool_rig *rig, struct volume *v, uint64_t offset, uint64_t length)
{
	return rig_io(rig, v, POOL_PUNCH, offset, length, NULL);
}

/* ---- requests under way ---- */

static void request_done(struct pool_io *io, int r)
{
	struct rig_request *req = container_of(io, struct rig_request, io);

	req->result = r;
	__atomic_store_n(&req->done, true, __ATOMIC_RELEASE);
}

void rig_start(struct pool_rig *rig, struct rig_request *req, struct volume *v, enum pool_io_op op,
	       uint64_t offset, uint64_t length, void *buffer)
{
	memset(&req->io, 0, sizeof(req->io));
	req->io.op = op;
	req->io.volume = v;
	req->io.offset = offset;
	req->io.length = length;
	req->io.buffer = buffer;
	req->io.done = request_done;
	req->done = false;
	pool_io_submit(rig->pool, rig->q, &req->io);
}

bool rig_is_done(struct rig_request *req)
{
	return __atomic_load_n(&req->done, __ATOMIC_ACQUIRE);
}

bool rig_await(struct pool_rig *rig, bool (*holds)(void *ctx), void *ctx)
{
	uint64_t deadline = time_monotonic_usec() + 10 * USEC_PER_SEC;

	while (!holds(ctx)) {
		if (time_monotonic_usec() > deadline)
			return false;
		/* Another thread may make it true: it does not wake this one. */
		io_queue_run(rig->q, USEC_PER_MSEC);
	}
	return true;
}

static bool request_is_done(void *req)
{
	return rig_is_done(req);
}

int rig_wait(struct pool_rig *rig, struct rig_request *req)
{
	if (!rig_await(rig, request_is_done, req)) {
		fprintf(stderr, "# a request is not done after 10 s\n");
		abort();
	}
	return req->result;
}
