/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Metadata that gets full by random work of several shapes, again and again: the commit's reserve
 * is never eaten, nothing fails but for want of space, and deleting volumes always works and
 * makes the pool writable again before the last of them is gone.
 *
 * TP_SEED repeats a run, TP_OPS is the number of times that the metadata is filled.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fault-device.h"
#include "pool-fixture.h"
#include "prng.h"

#define BLOCK (64 * KIB)
#define NR_DATA_BLOCKS 400000u
#define METADATA_BYTES (1536 * KIB)
#define VOLUME_BLOCKS (1u << 20)
#define VOLUMES_MAX 200u
#define PAGE 4096u
#define STEPS_MAX 200000u

/* What most of the work is, in 100 steps; the rest are writes to random blocks. */
struct shape {
	const char *name;
	unsigned creates, snapshots, punches, deletions, runs;
};

static const struct shape shapes[] = {
	{ "mappings far apart", .creates = 1 },
	{ "runs of blocks, and holes in them", .creates = 1, .punches = 10, .runs = 60 },
	{ "snapshots of everything", .creates = 1, .snapshots = 10 },
	{ "sharing broken a block at a time", .creates = 1, .snapshots = 2, .runs = 20 },
	{ "volumes and no blocks", .creates = 90 },
	{ "all of it", .creates = 5, .snapshots = 5, .punches = 10, .deletions = 4, .runs = 30 },
};

static struct pool_rig *rig;
static struct prng prng;
static void *page;

/* The volumes that there are, in no order. */
static unsigned names[VOLUMES_MAX], nr_names, next_name;
static bool refused; /* something was, since this was last made false */

static unsigned below(unsigned n)
{
	return (unsigned)prng_below(&prng, n);
}

static const char *name_of(unsigned number)
{
	static char name[2][32];
	static unsigned turn;

	turn ^= 1;
	snprintf(name[turn], sizeof(name[turn]), "v%u", number);
	return name[turn];
}

static bool is_full(void)
{
	return rig_status(rig).mode == POOL_MODE_OUT_OF_METADATA_SPACE;
}

/* Nothing but space may be wanting. */
static void require_space_is_all(int r)
{
	struct pool_status status;

	assert_true(r == 0 || r == -ENOSPC);
	refused |= r != 0;
	if (!r && below(100))
		return; /* status is slow on devices in memory */
	status = rig_status(rig);
	assert_int_equal(status.stats.aborts, 0);
	assert_false(status.needs_check);
	assert_true(status.mode == POOL_MODE_WRITE ||
		    status.mode == POOL_MODE_OUT_OF_METADATA_SPACE);
}

static int run_command(enum pool_command_op op, const char *name, const char *new_name)
{
	struct pool_command cmd = { .op = op, .size_bytes = VOLUME_BLOCKS * BLOCK };

	snprintf(cmd.name, sizeof(cmd.name), "%s", name);
	snprintf(cmd.new_name, sizeof(cmd.new_name), "%s", new_name);
	return pool_command_run(rig->pool, &cmd);
}

static void add_volume(void)
{
	bool snapshot = nr_names && below(2);
	int r;

	if (nr_names == VOLUMES_MAX)
		return;
	r = snapshot ? run_command(POOL_SNAPSHOT, name_of(names[below(nr_names)]),
				   name_of(next_name))
		     : run_command(POOL_CREATE, name_of(next_name), "");
	require_space_is_all(r);
	if (!r)
		names[nr_names++] = next_name;
	next_name++;
}

/* Works whatever is full. */
static void delete_volume(void)
{
	unsigned i = below(nr_names);

	assert_int_equal(rig_delete(rig, name_of(names[i])), 0);
	names[i] = names[--nr_names];
	while (rig_status(rig).nr_volumes > nr_names) /* it goes in the background */
		assert_int_equal(rig_commit(rig), 0);
	require_space_is_all(0);
}

static void change_volume(const struct shape *shape, unsigned choice)
{
	struct volume *v = rig_open_volume(rig, name_of(names[below(nr_names)]));
	uint64_t block = below(VOLUME_BLOCKS - 256);
	unsigned nr = choice < shape->runs ? 1 + below(32) : 1;
	int r = 0;

	if (below(100) < shape->punches)
		r = rig_punch(rig, v, block * BLOCK, (1 + below(256)) * BLOCK);
	else
		for (unsigned i = 0; !r && i < nr; i++)
			r = rig_io(rig, v, POOL_WRITE, (block + i) * BLOCK, PAGE, page);
	rig_close_volume(v);
	require_space_is_all(r);
}

static void step(const struct shape *shape)
{
	unsigned choice = below(100);

	if (!nr_names || choice < shape->creates + shape->snapshots)
		add_volume();
	else if (choice < shape->creates + shape->snapshots + shape->deletions)
		delete_volume();
	else
		change_volume(shape, below(100));
	if (!below(200))
		assert_int_equal(rig_commit(rig), 0);
}

static void fill_up(const struct shape *shape)
{
	for (unsigned n = 0; !refused || !is_full(); n++) {
		assert_true(n < STEPS_MAX);
		refused = false;
		step(shape);
	}
	/* Whoever still tries changes nothing of that, nor does opening the pool again. */
	for (unsigned n = below(50); n && nr_names; n--)
		step(&(const struct shape){ "what is refused", .runs = 50 });
	if (is_full() && below(2)) {
		pool_rig_reopen(rig);
		assert_true(is_full());
	}
}

static void a_full_metadata_device_is_brought_back_by_deleting(void **state)
{
	uint64_t nr = prng_ops(12);
	unsigned nr_deleted = 0;

	(void)state;
	for (uint64_t i = 0; i < nr; i++) {
		const struct shape *shape = &shapes[i % (sizeof(shapes) / sizeof(shapes[0]))];

		if (nr_names < VOLUMES_MAX / 2 && below(2))
			add_volume();
		fill_up(shape);
		while (is_full()) {
			assert_true(nr_names);
			delete_volume();
			nr_deleted++;
		}
		print_message("# %s: %u volumes deleted so far\n", shape->name, nr_deleted);
		add_volume();
		assert_int_equal(rig_commit(rig), 0);
		if (!below(3)) {
			assert_int_equal(pool_rig_close(rig), 0);
			assert_true(pool_rig_is_clean(rig));
			pool_rig_open(rig);
		}
	}
}

static int setup(void **state)
{
	(void)state;
	prng_init(&prng, prng_seed());
	page = io_buffer_alloc(PAGE);
	memset(page, 1, PAGE);
	rig = pool_rig_create_sized(BLOCK, NR_DATA_BLOCKS, 512, METADATA_BYTES);
	rig->options.zero_new_blocks = false; /* a device in memory is slow to say what is zero */
	pool_rig_reopen(rig);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	assert_int_equal(pool_rig_close(rig), 0);
	assert_true(pool_rig_is_clean(rig));
	pool_rig_destroy(rig);
	free(page);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_full_metadata_device_is_brought_back_by_deleting,
						setup, teardown),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("metadata-full", tests, NULL, NULL);
}
