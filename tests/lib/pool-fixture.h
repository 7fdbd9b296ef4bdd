/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pool-fixture.h - a pool in service over two devices in memory, for cmocka tests
 *
 * What can go wrong without being the point of a test fails the test.
 */
#ifndef TP_TESTS_POOL_FIXTURE_H
#define TP_TESTS_POOL_FIXTURE_H

#include <stdbool.h>

#include "pool/pool.h"

#define KIB UINT64_C(1024)
#define MIB (UINT64_C(1) << 20)

struct pool_rig {
	struct io_device *meta, *data; /* fault devices around mem-devices */
	struct pool_options options;   /* changes count from the next pool_rig_open() on */
	struct pool *pool;             /* NULL: closed */
	struct io_queue *q;            /* the thread's own */
};

/* @block_bytes: of the pool; @alignment: of the data device.  With a catalog, and open. */
struct pool_rig *pool_rig_create(uint64_t block_bytes, uint64_t nr_blocks, uint32_t alignment);
/* With a metadata device that is not 8 MiB. */
struct pool_rig *pool_rig_create_sized(uint64_t block_bytes, uint64_t nr_blocks, uint32_t alignment,
				       uint64_t metadata_bytes);
void pool_rig_destroy(struct pool_rig *rig);
/*
 * How most tests begin: 256 blocks of 64 KiB, alignment 512, and the volume "vol" of 8 MiB, open.
 * Returns 0, for setup.
 */
int pool_rig_begin(struct pool_rig **ret_rig, struct volume **ret_v);
/*
 * How a test ends: @v (NULL: none) and the pool are closed, which must succeed and leave the
 * metadata clean, and all is freed.  Returns 0, for teardown.
 */
int pool_rig_end(struct pool_rig *rig, struct volume *v);
/* The same after a failure of the pool: nothing can be expected of it. */
int pool_rig_end_failed(struct pool_rig *rig, struct volume *v);

void pool_rig_open(struct pool_rig *rig);
int pool_rig_close(struct pool_rig *rig);
void pool_rig_reopen(struct pool_rig *rig);

/* Closed: do all checkers find the metadata right, and no data block leaked? */
bool pool_rig_is_clean(struct pool_rig *rig);

/* With a handle open for writing. */
struct volume *rig_create_volume(struct pool_rig *rig, const char *name, uint64_t bytes);
struct volume *rig_open_volume(struct pool_rig *rig, const char *name);
void rig_close_volume(struct volume *v);
int rig_snapshot(struct pool_rig *rig, const char *origin, const char *name);
int rig_delete(struct pool_rig *rig, const char *name);
/* Take the metadata snapshot, or give it up. */
int rig_metadata_snap(struct pool_rig *rig, bool reserve);

/* One request, to its end. */
int rig_io(struct pool_rig *rig, struct volume *v, enum pool_io_op op, uint64_t offset,
	   uint64_t length, void *buffer);
int rig_durable(struct pool_rig *rig, struct volume *v, enum pool_io_op op, uint64_t offset,
		uint64_t length, void *buffer);
/* Bytes of one value, in an aligned buffer. */
int rig_fill(struct pool_rig *rig, struct volume *v, uint64_t offset, uint64_t length, int byte);
/* All bytes of the range have this value. */
bool rig_reads_as(struct pool_rig *rig, struct volume *v, uint64_t offset, uint64_t length,
		  int byte);
int rig_flush(struct pool_rig *rig, struct volume *v);
int rig_punch(struct pool_rig *rig, struct volume *v, uint64_t offset, uint64_t length);
int rig_commit(struct pool_rig *rig);
struct pool_status rig_status(struct pool_rig *rig);
uint64_t rig_mapped(struct volume *v);

/* A request that is under way. */
struct rig_request {
	struct pool_io io;
	int result;
	bool done; /* atomic */
};
void rig_start(struct pool_rig *rig, struct rig_request *req, struct volume *v, enum pool_io_op op,
	       uint64_t offset, uint64_t length, void *buffer);
bool rig_is_done(struct rig_request *req);
int rig_wait(struct pool_rig *rig, struct rig_request *req);
/* Runs the queue until the condition holds, at most 10 s. */
bool rig_await(struct pool_rig *rig, bool (*holds)(void *ctx), void *ctx);

#endif
