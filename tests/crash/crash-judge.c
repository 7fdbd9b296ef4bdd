/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * crash-judge.c - is what a power cut has left right in every respect?
 *
 * First the checker, on what is there; then the pool is opened (some times read-only, which may
 * write nothing), all its volumes are read and shown to the model, and it is closed.  Some times
 * it is given the time to remove what was being deleted, and the checker looks again: nothing may
 * be left over, neither a device nor a block.
 */
#include "crash-judge.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "crash-life.h"
#include "crash-model.h"
#include "crash-replay.h"
#include "io/device.h"
#include "pool-fixture.h"
#include "pool/pool-internal.h"
#include "prng.h"
#include "thin/thin-check.h"
#include "thinpoold/disk-format.h"
#include "util/clock.h"
#include "util/le.h"

#define MAX_BYTES ((uint64_t)MODEL_MAX_SECTORS * MODEL_SECTOR)
#define ONE_IN_READ_ONLY 4u
#define ONE_IN_REMOVING 8u /* waits for removals */
#define PASSES_A_REMOVAL 4u

struct state {
	struct io_device *metadata, *data;
	char *why;
	size_t why_bytes;
};

void crash_judge_init(struct crash_judge *j)
{
	*j = (struct crash_judge){ .contents = io_buffer_alloc(MODEL_NAMES * MAX_BYTES) };
	TP_INVARIANT(j->contents);
}

void crash_judge_destroy(struct crash_judge *j)
{
	free(j->contents);
}

/* ---- metadata ---- */

static void note_finding(void *ctx, enum thin_check_severity severity, const char *line)
{
	struct state *s = ctx;

	(void)severity;
	if (s->why[0]) /* the first one says enough */
		return;
	snprintf(s->why, s->why_bytes, "the checker: %s", line);
}

static bool check_metadata(struct state *s, struct thin_check_result *ret_result)
{
	struct thin_check_options options = { .data_bytes = io_device_size(s->data),
					      .report = note_finding,
					      .ctx = s,
					      .max_findings = 1 };
	int r;

	s->why[0] = '\0';
	r = thin_check(s->metadata, &options, ret_result);
	if (r)
		snprintf(s->why, s->why_bytes, "the checker fails: %s", strerror(-r));
	return !r && !ret_result->nr_damages && !ret_result->nr_leaks && !ret_result->nr_hints;
}

static bool look_at_superblock(struct crash_judge *j, struct state *s)
{
	struct thin_disk_superblock sb;
	uint64_t hash = UINT64_C(0xcbf29ce484222325);

	if (io_device_read(s->metadata, &sb, sizeof(sb), 0)) {
		snprintf(s->why, s->why_bytes, "the superblock cannot be read");
		return false;
	}
	for (size_t i = 0; i < sizeof(sb); i++)
		hash = (hash ^ ((const uint8_t *)&sb)[i]) * UINT64_C(0x100000001b3);
	j->superblock = hash;
	j->needs_check = le32_get(sb.flags) & THIN_NEEDS_CHECK_FLAG;
	j->nr_needs_check += j->needs_check;
	return true;
}

/* ---- the pool ---- */

static bool read_volume(struct crash_judge *j, struct state *s, struct pool *pool,
			const struct volume_info *info, struct model_found *found)
{
	struct io_queue *q = NULL;
	struct volume *v = NULL;
	struct pool_io io = { .op = POOL_READ, .length = info->size_bytes };
	unsigned name = (unsigned)info->name[0] - 'a';
	int r;

	if (name >= MODEL_NAMES || info->name[1] || info->size_bytes > MAX_BYTES) {
		snprintf(s->why, s->why_bytes, "there is a volume \"%.100s\" of %" PRIu64 " bytes",
			 info->name, info->size_bytes);
		return false;
	}
	io.buffer = j->contents + name * MAX_BYTES;
	found->exists[name] = true;
	found->size_bytes[name] = info->size_bytes;
	found->content[name] = io.buffer;
	r = pool_volume_find(pool, info->name, &v);
	if (!r)
		r = io_queue_self(&q);
	io.volume = v;
	if (!r)
		r = pool_io_run(pool, q, &io);
	if (v)
		volume_put(v);
	if (r)
		snprintf(s->why, s->why_bytes, "volume \"%s\" cannot be read: %s", info->name,
			 strerror(-r));
	return !r;
}

static bool judge_volumes(struct crash_judge *j, struct state *s, struct pool *pool,
			  const struct model *m, uint64_t moment, unsigned *ret_nr)
{
	struct model_found found = { 0 };
	struct volume_info info;

	*ret_nr = 0;
	for (thin_id_t id = 0; !pool_volume_next(pool, id, &info); id = info.id + 1) {
		if (!read_volume(j, s, pool, &info, &found))
			return false;
		++*ret_nr;
	}
	return model_allows(m, moment, &found, s->why, s->why_bytes);
}

/* Each command is a pass of the worker, and each pass removes a slice. */
static void let_it_remove(struct pool *pool, uint64_t nr_devices)
{
	for (uint64_t i = 0; i < nr_devices * PASSES_A_REMOVAL; i++) {
		struct pool_command cmd = { .op = POOL_COMMIT };

		if (pool_command_run(pool, &cmd))
			return;
	}
}

static bool judge_closed(struct crash_judge *j, struct state *s, bool removed, unsigned nr_volumes)
{
	struct thin_check_result result;

	if (!check_metadata(s, &result))
		return false;
	if (!removed || result.nr_devices == nr_volumes + 1)
		return true; /* one more is the catalog */
	snprintf(s->why, s->why_bytes, "%" PRIu64 " devices are left over",
		 result.nr_devices - nr_volumes - 1);
	j->nr_removals++;
	return false;
}

static bool judge_pool(struct crash_judge *j, struct state *s, const struct model *m,
		       uint64_t moment, bool read_only, bool removes, uint64_t nr_devices)
{
	struct pool_options options = { .cache_bytes = MIB,
					.commit_interval_usec = 3600 * USEC_PER_SEC,
					.read_only = read_only,
					.zero_new_blocks = true };
	struct tp_error error = { "" };
	struct pool *pool = NULL;
	unsigned nr_volumes;
	bool right;
	int r;

	if (pool_open_devices(&options, s->metadata, s->data, &pool, &error)) {
		snprintf(s->why, s->why_bytes, "the pool cannot be opened: %s", error.text);
		return false;
	}
	right = judge_volumes(j, s, pool, m, moment, &nr_volumes);
	removes &= right && nr_devices > nr_volumes + 1;
	if (removes)
		let_it_remove(pool, nr_devices - nr_volumes);
	j->nr_removals += removes;
	r = pool_close(pool);
	if (!right)
		return false;
	if (r) {
		snprintf(s->why, s->why_bytes, "the pool cannot be closed: %s", strerror(-r));
		return false;
	}
	return read_only || judge_closed(j, s, removes, nr_volumes);
}

bool crash_judge_state(struct crash_judge *j, struct crash_replay *replay,
		       const struct model *model, uint64_t moment, bool failed, struct prng *p,
		       char *why, size_t why_bytes)
{
	struct state s = { .metadata = crash_replay_device(replay, CRASH_METADATA),
			   .data = crash_replay_device(replay, CRASH_DATA),
			   .why = why,
			   .why_bytes = why_bytes };
	bool read_only = prng_below(p, ONE_IN_READ_ONLY) == 0;
	bool removes = !read_only && prng_below(p, ONE_IN_REMOVING) == 0;
	struct thin_check_result result;

	if (!look_at_superblock(j, &s) || !check_metadata(&s, &result))
		return false;
	if (j->needs_check && !failed) {
		snprintf(why, why_bytes, "NEEDS_CHECK is set, and nothing had failed");
		return false;
	}
	if (!judge_pool(j, &s, model, moment, read_only, removes && !j->needs_check,
			result.nr_devices))
		return false;
	if (!read_only || (!crash_replay_was_written(replay, CRASH_METADATA) &&
			   !crash_replay_was_written(replay, CRASH_DATA)))
		return true;
	snprintf(why, why_bytes, "a pool opened read-only was written to");
	return false;
}
