/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * commands.h - commands of a pool in a line each, and what a crash leaves; for cmocka tests
 */
#ifndef TP_TESTS_POOL_COMMANDS_H
#define TP_TESTS_POOL_COMMANDS_H

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fault-device.h"
#include "mem-device.h"
#include "pool-fixture.h"
#include "util/compiler.h"

static inline struct pool_command command(enum pool_command_op op, unsigned flags, const char *name,
					  const char *new_name, uint64_t bytes)
{
	struct pool_command cmd = { .op = op, .flags = flags, .size_bytes = bytes };

	snprintf(cmd.name, sizeof(cmd.name), "%s", name);
	snprintf(cmd.new_name, sizeof(cmd.new_name), "%s", new_name);
	return cmd;
}

/* A failure comes with a line that says why. */
static inline int run(struct pool_rig *rig, enum pool_command_op op, unsigned flags,
		      const char *name, const char *new_name, uint64_t bytes)
{
	struct pool_command cmd = command(op, flags, name, new_name, bytes);
	int r = pool_command_run(rig->pool, &cmd);

	assert_int_equal(r != 0, cmd.error.text[0] != '\0');
	return r;
}

static inline int create(struct pool_rig *rig, const char *name, uint64_t bytes)
{
	return run(rig, POOL_CREATE, 0, name, "", bytes);
}

static inline int rename_to(struct pool_rig *rig, unsigned flags, const char *name,
			    const char *new_name)
{
	return run(rig, POOL_RENAME, flags, name, new_name, 0);
}

static inline int resize(struct pool_rig *rig, unsigned flags, const char *name, uint64_t bytes)
{
	return run(rig, POOL_RESIZE, flags, name, "", bytes);
}

static inline int snapshot(struct pool_rig *rig, unsigned flags, const char *name,
			   const char *new_name)
{
	return run(rig, POOL_SNAPSHOT, flags, name, new_name, 0);
}

static inline int delete_volume(struct pool_rig *rig, unsigned flags, const char *name)
{
	return run(rig, POOL_DELETE, flags, name, "", 0);
}

static inline bool exists(struct pool_rig *rig, const char *name)
{
	struct volume *v;

	if (pool_volume_find(rig->pool, name, &v))
		return false;
	volume_put(v);
	return true;
}

/* id THIN_ID_MAX: there is none. */
static inline struct volume_info info_of(struct pool_rig *rig, const char *name)
{
	struct volume_info info = { .id = THIN_ID_MAX };
	struct volume *v;

	if (pool_volume_find(rig->pool, name, &v) == 0) {
		volume_get_info(v, &info);
		volume_put(v);
	}
	return info;
}

static inline bool id_exists(struct pool_rig *rig, thin_id_t id)
{
	struct volume *v;

	if (pool_volume_get(rig->pool, id, &v))
		return false;
	volume_put(v);
	return true;
}

/* ---- several at a time ---- */

struct async {
	struct pool_command cmd;
	int result;
	atomic_bool done;
};

static inline void async_done(struct pool_command *cmd, int r)
{
	struct async *a = container_of(cmd, struct async, cmd);

	a->result = r;
	atomic_store(&a->done, true);
}

static inline void start(struct pool_rig *rig, struct async *a, enum pool_command_op op,
			 const char *name, const char *new_name, uint64_t bytes)
{
	a->cmd = command(op, 0, name, new_name, bytes);
	a->cmd.done = async_done;
	a->result = 1;
	atomic_store(&a->done, false);
	pool_command_submit(rig->pool, &a->cmd);
}

static inline bool async_is_done(void *ctx)
{
	return atomic_load(&((struct async *)ctx)->done);
}

static inline int finish(struct pool_rig *rig, struct async *a)
{
	assert_true(rig_await(rig, async_is_done, a));
	return a->result;
}

/* ---- waiting for what goes on behind ---- */

struct space {
	struct pool_rig *rig;
	uint64_t bytes;
};

static inline bool space_is_down(void *ctx)
{
	struct space *s = ctx;

	return rig_commit(s->rig) || rig_status(s->rig).data_used <= s->bytes;
}

/* Until no more than @bytes of data are in use. */
static inline void await_data_used(struct pool_rig *rig, uint64_t bytes)
{
	struct space s = { rig, bytes };

	assert_true(rig_await(rig, space_is_down, &s));
	assert_int_equal(rig_status(rig).data_used, bytes);
}

/* ---- crashes ---- */

/* What is on the devices now, in service as another pool. */
static inline struct pool_rig *crash_image(struct pool_rig *rig)
{
	struct pool_rig *image = calloc(1, sizeof(*image));

	assert_non_null(image);
	image->options = rig->options;
	image->options.event = NULL;
	image->q = rig->q;
	image->meta = fault_device_create(mem_device_clone(fault_device_inner(rig->meta)));
	image->data = fault_device_create(mem_device_clone(fault_device_inner(rig->data)));
	pool_rig_open(image);
	return image;
}

#endif
