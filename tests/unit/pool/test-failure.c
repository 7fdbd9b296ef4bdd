/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for pool/failure.c: every operation that metadata can fail under, with every kind of
 * failure at every place, goes the one way; and who is told of what was lost.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "commands.h"
#include "thin/thin-check.h"
#include "thinpoold/disk-format.h"
#include "util/le.h"
#include "util/log.h"

#define BLOCK (64 * KIB)
#define NR_BLOCKS 256u
#define WRITES FAULT_OP(IO_WRITE)
#define FLUSHES FAULT_OP(IO_FLUSH)
#define READS FAULT_OP(IO_READ)

static struct pool_rig *rig;
static struct volume *v, *w;

static bool flag_is_stored(void)
{
	const struct thin_disk_superblock *sb = mem_device_data(fault_device_inner(rig->meta));

	return le32_get(sb->flags) & THIN_NEEDS_CHECK_FLAG;
}

/* Closed: nothing damaged and nothing leaked.  The tools of others would take too long here. */
static bool is_right(void)
{
	const struct thin_check_options options = { .data_bytes = io_device_size(rig->data) };
	struct thin_check_result result;

	return !thin_check(fault_device_inner(rig->meta), &options, &result) &&
	       !result.nr_damages && !result.nr_leaks;
}

/* ---- the sweep: operations ---- */

static int write_and_flush(uint64_t offset)
{
	int r = rig_fill(rig, v, offset, 2 * BLOCK, 9);

	return r ? r : rig_flush(rig, v);
}

static int op_provision(void)
{
	return write_and_flush(40 * BLOCK);
}

static int op_break_sharing(void)
{
	return write_and_flush(4 * BLOCK);
}

static int op_allocate(void)
{
	int r = rig_io(rig, v, POOL_ALLOCATE, 50 * BLOCK, BLOCK, NULL);

	return r ? r : rig_flush(rig, v);
}

static int op_punch(void)
{
	int r = rig_punch(rig, v, 4 * BLOCK + 100, 3 * BLOCK);

	return r ? r : rig_flush(rig, v);
}

static int op_durable_write(void)
{
	void *buffer = io_buffer_alloc(BLOCK);
	int r;

	memset(buffer, 9, BLOCK);
	r = rig_durable(rig, v, POOL_WRITE, 60 * BLOCK, BLOCK, buffer);
	free(buffer);
	return r;
}

static int op_grow(void)
{
	int r = rig_fill(rig, v, 16 * MIB, BLOCK, 9);

	return r ? r : rig_flush(rig, v);
}

static int op_read(void)
{
	void *buffer = io_buffer_alloc(BLOCK);
	int r = rig_io(rig, v, POOL_READ, 0, BLOCK, buffer);

	free(buffer);
	return r;
}

static int op_seek(void)
{
	return rig_io(rig, v, POOL_SEEK_HOLE, 0, 0, NULL);
}

static int op_create(void)
{
	return create(rig, "new", MIB);
}

static int op_snapshot(void)
{
	return snapshot(rig, 0, "vol", "new");
}

static int op_delete(void)
{
	return delete_volume(rig, 0, "snap");
}

static int op_rename(void)
{
	return rename_to(rig, 0, "snap", "new");
}

static int op_shrink(void)
{
	return resize(rig, POOL_CMD_SHRINK, "vol", 5 * BLOCK + 7);
}

static int op_set_read_only(void)
{
	return run(rig, POOL_SET_READ_ONLY, POOL_CMD_READ_ONLY, "vol", "", 0);
}

static int op_metadata_snap(void)
{
	int r = run(rig, POOL_METADATA_SNAP_RESERVE, 0, "", "", 0);

	return r ? r : run(rig, POOL_METADATA_SNAP_RELEASE, 0, "", "", 0);
}

static int op_pin(void)
{
	struct pool_command cmd = command(POOL_PIN, 0, "", "", 0);
	uint8_t superblock[METADATA_BLOCK_SIZE];
	int r;

	cmd.superblock = superblock;
	r = pool_command_run(rig->pool, &cmd);
	if (r)
		return r;
	cmd.op = POOL_UNPIN;
	return pool_command_run(rig->pool, &cmd);
}

static int op_trim(void)
{
	return run(rig, POOL_TRIM, 0, "", "", 0);
}

static int op_extend(void)
{
	struct pool_command cmd = command(POOL_EXTEND, 0, "", "", 2 * NR_BLOCKS * BLOCK);

	cmd.metadata_bytes = 12 * MIB;
	return pool_command_run(rig->pool, &cmd);
}

/* Nobody asks for the commit; the error is met when the pool is closed, or never. */
static int op_close(void)
{
	int r = rig_fill(rig, v, 40 * BLOCK, BLOCK, 9);

	rig_close_volume(v);
	v = NULL;
	return r;
}

static const struct operation {
	const char *name;
	int (*run)(void);
} operations[] = {
	{ "provision", op_provision },
	{ "break sharing", op_break_sharing },
	{ "allocate", op_allocate },
	{ "punch", op_punch },
	{ "durable write", op_durable_write },
	{ "grow", op_grow },
	{ "read", op_read },
	{ "seek", op_seek },
	{ "create", op_create },
	{ "snapshot", op_snapshot },
	{ "delete", op_delete },
	{ "rename", op_rename },
	{ "shrink", op_shrink },
	{ "set read-only", op_set_read_only },
	{ "metadata snapshot", op_metadata_snap },
	{ "pin", op_pin },
	{ "trim", op_trim },
	{ "extend", op_extend },
	{ "close", op_close },
};

/* ---- the sweep: what must hold ---- */

static struct io_device *base_meta, *base_data;

static int sweep_setup(void **state)
{
	(void)state;
	rig = pool_rig_create(BLOCK, NR_BLOCKS, 512);
	v = rig_create_volume(rig, "vol", 8 * MIB);
	assert_int_equal(rig_fill(rig, v, 0, 8 * BLOCK, 1), 0);
	assert_int_equal(snapshot(rig, 0, "vol", "snap"), 0);
	assert_int_equal(rig_fill(rig, v, 2 * BLOCK, BLOCK, 2), 0);
	rig_close_volume(v);
	assert_int_equal(pool_rig_close(rig), 0);
	base_meta = mem_device_clone(fault_device_inner(rig->meta));
	base_data = mem_device_clone(fault_device_inner(rig->data));
	pool_rig_destroy(rig);
	log_set_level(LOG_LEVEL_ERR - 1); /* errors are what this is about */
	return 0;
}

static int sweep_teardown(void **state)
{
	(void)state;
	log_set_level(LOG_LEVEL_INFO);
	io_device_close(base_meta);
	io_device_close(base_data);
	return 0;
}

static void open_base(void)
{
	rig = calloc(1, sizeof(*rig));
	assert_non_null(rig);
	rig->options = (struct pool_options){
		.cache_bytes = 1 * MIB,
		.commit_interval_usec = 60 * 1000 * 1000, /* only those that are asked for */
		.zero_new_blocks = true,
	};
	assert_int_equal(io_queue_self(&rig->q), 0);
	rig->meta = fault_device_create(mem_device_clone(base_meta));
	rig->data = fault_device_create(mem_device_clone(base_data));
	pool_rig_open(rig);
	v = rig_open_volume(rig, "vol");
}

/* An operation has ended with @r: either nothing has failed, or it has gone the one way. */
static void check_one_way(const struct operation *op, int r, uint64_t nth)
{
	struct pool_status s = rig_status(rig);

	if (s.mode == POOL_MODE_WRITE) {
		if (r)
			fail_msg("%s, place %u: error %d, and the pool goes on", op->name,
				 (unsigned)nth, r);
		assert_int_equal(s.stats.aborts, 0);
		return;
	}
	if (r != -EIO && r)
		fail_msg("%s, place %u: error %d", op->name, (unsigned)nth, r);
	assert_int_equal(s.stats.aborts, 1);
	assert_true(s.longest_abort_usec > 0);
	assert_true(s.needs_check);
	assert_memory_equal(s.reason, "cannot ", 7);
	assert_non_null(strstr(s.remedy, "--clear-needs-check"));
	if (s.mode == POOL_MODE_READ_ONLY && !flag_is_stored())
		fail_msg("%s, place %u: the flag is not stored", op->name, (unsigned)nth);
	/* What follows is refused, and adds nothing. */
	assert_int_equal(create(rig, "later", MIB), -EIO);
	assert_int_equal(rig_status(rig).stats.aborts, 1);
}

/* The n-th request of these kinds fails.  False: there are not so many. */
static bool fail_nth(const struct operation *op, unsigned ops, uint64_t nth)
{
	bool met, failed;
	int r;

	open_base();
	fault_device_fail_nth(rig->meta, ops, nth);
	r = op->run();
	check_one_way(op, r, nth);
	failed = rig_status(rig).mode != POOL_MODE_WRITE;
	if (failed) {
		assert_int_equal(rig_status(rig).mode, POOL_MODE_READ_ONLY);
		if (v) /* of the snapshot, whose blocks nobody changes */
			assert_true(rig_reads_as(rig, v, 0, BLOCK, 1));
	}
	if (v)
		rig_close_volume(v);
	r = pool_rig_close(rig);
	met = fault_device_nr_failed(rig->meta) > 0;
	assert_true(r == 0 || (met && r == -EIO));
	if (r)
		assert_true(flag_is_stored()); /* closing has committed, and failed */
	fault_device_clear(rig->meta);
	if (!is_right())
		fail_msg("%s, place %u: not clean", op->name, (unsigned)nth);
	pool_rig_destroy(rig);
	return met;
}

static void sweep(unsigned ops, unsigned at_least)
{
	unsigned places = 0;

	for (size_t i = 0; i < ARRAY_SIZE(operations); i++) {
		uint64_t nth = 1;

		while (fail_nth(&operations[i], ops, nth))
			nth++;
		places += (unsigned)nth - 1;
	}
	print_message("# %u places\n", places);
	assert_true(places >= at_least);
}

static void any_write_may_fail(void **state)
{
	(void)state;
	sweep(WRITES, 40);
}

static void any_flush_may_fail(void **state)
{
	(void)state;
	sweep(FLUSHES, 30);
}

static void any_read_may_fail(void **state)
{
	(void)state;
	sweep(READS, 30);
}

/* A block has other bits than were written; those that only opening reads are not met. */
static void any_block_may_be_damaged(void **state)
{
	const uint8_t *base = mem_device_data(base_meta);
	unsigned failed = 0;
	uint8_t *bytes;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(operations); i++) {
		for (mblock_t b = 0; b < 40; b++) {
			const struct le64 *number = (const void *)(base + b * METADATA_BLOCK_SIZE);
			int r;

			if (le64_get(number[1]) != b || !le64_get(number[0]))
				continue; /* never written */
			open_base();
			bytes = mem_device_data(fault_device_inner(rig->meta));
			bytes[b * METADATA_BLOCK_SIZE + 100] ^= 0x55;
			r = operations[i].run();
			check_one_way(&operations[i], r, b);
			failed += r != 0;
			if (v)
				rig_close_volume(v);
			(void)pool_rig_close(rig);
			pool_rig_destroy(rig);
		}
	}
	print_message("# %u operations met damage\n", failed);
	assert_true(failed > 30);
}

/* ---- one failure ---- */

static int setup(void **state)
{
	(void)state;
	rig = pool_rig_create(BLOCK, NR_BLOCKS, 512);
	rig_close_volume(rig_create_volume(rig, "vol", 8 * MIB));
	rig_close_volume(rig_create_volume(rig, "other", 8 * MIB));
	rig->options.commit_interval_usec = 60 * 1000 * 1000;
	pool_rig_reopen(rig);
	v = rig_open_volume(rig, "vol");
	w = rig_open_volume(rig, "other");
	assert_int_equal(rig_fill(rig, v, 0, BLOCK, 1), 0);
	assert_int_equal(rig_flush(rig, v), 0);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	fault_device_clear(rig->meta);
	fault_device_release_all(rig->meta);
	fault_device_release_all(rig->data);
	if (v)
		rig_close_volume(v);
	rig_close_volume(w);
	(void)pool_rig_close(rig);
	assert_true(is_right());
	pool_rig_destroy(rig);
	return 0;
}

static int flush_by(struct volume *vol, uint32_t handle)
{
	struct pool_io io = { .op = POOL_FLUSH, .volume = vol, .handle = handle };

	return pool_io_run(rig->pool, rig->q, &io);
}

static int durable_write_by(struct volume *vol, uint32_t handle)
{
	void *buffer = io_buffer_alloc(BLOCK);
	struct pool_io io = { .op = POOL_WRITE,
			      .durable = true,
			      .volume = vol,
			      .handle = handle,
			      .length = BLOCK,
			      .buffer = buffer };
	int r;

	memset(buffer, 7, BLOCK);
	r = pool_io_run(rig->pool, rig->q, &io);
	free(buffer);
	return r;
}

/* A commit that no volume waits for. */
static void fail_a_commit(unsigned ops, uint64_t skip)
{
	fault_device_add(rig->meta, &(struct fault){ .ops = ops, .skip = skip, .count = 1 });
	assert_int_equal(create(rig, "new", MIB), -EIO);
	fault_device_clear(rig->meta);
	assert_int_equal(rig_status(rig).mode, POOL_MODE_READ_ONLY);
	assert_false(exists(rig, "new") && ops != FLUSHES);
}

static void every_handle_is_told_once(void **state)
{
	uint32_t a = volume_handle(v), b = volume_handle(v), of_other = volume_handle(w), c;

	(void)state;
	assert_int_equal(rig_fill(rig, v, BLOCK, BLOCK, 2), 0);
	fail_a_commit(WRITES, 0);
	c = volume_handle(v); /* nobody has been told yet */
	assert_int_equal(flush_by(v, a), -EIO);
	assert_int_equal(flush_by(v, a), 0);
	assert_int_equal(flush_by(v, volume_handle(v)), 0); /* somebody has */
	assert_int_equal(flush_by(v, b), -EIO);
	assert_int_equal(flush_by(v, c), -EIO);
	assert_int_equal(flush_by(v, POOL_NO_HANDLE), -EIO);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(flush_by(v, a), 0);
		assert_int_equal(flush_by(v, b), 0);
		assert_int_equal(flush_by(v, c), 0);
		assert_int_equal(flush_by(v, POOL_NO_HANDLE), 0);
		assert_int_equal(flush_by(w, of_other), 0);
	}
	assert_int_equal(flush_by(v, a + 0x40000000), -EIO); /* not of this pool's life */
}

static void many_handles_are_told_once(void **state)
{
	enum { NR = 100 };
	uint32_t handles[NR];

	(void)state;
	for (unsigned i = 0; i < NR; i++)
		handles[i] = volume_handle(v);
	assert_int_equal(rig_fill(rig, v, BLOCK, BLOCK, 2), 0);
	fail_a_commit(WRITES, 0);
	for (unsigned i = 0; i < NR; i++)
		assert_int_equal(flush_by(v, handles[i]), -EIO);
	for (unsigned i = 0; i < NR; i += 2)
		volume_forget_handle(v, handles[i]);
	for (unsigned i = 1; i < NR; i += 2)
		assert_int_equal(flush_by(v, handles[i]), 0);
}

static void who_waited_for_the_commit_has_been_told(void **state)
{
	uint32_t a = volume_handle(v), b = volume_handle(v);

	(void)state;
	assert_int_equal(rig_fill(rig, v, BLOCK, BLOCK, 2), 0);
	fault_device_add(rig->meta, &(struct fault){ .ops = WRITES, .count = 1 });
	assert_int_equal(flush_by(v, a), -EIO);
	assert_int_equal(flush_by(v, a), 0);
	assert_int_equal(flush_by(v, b), -EIO);
	assert_int_equal(flush_by(v, b), 0);
}

static void a_durable_write_counts_as_a_flush(void **state)
{
	uint32_t a = volume_handle(v);

	(void)state;
	assert_int_equal(rig_fill(rig, v, BLOCK, BLOCK, 2), 0);
	fail_a_commit(WRITES, 0);
	assert_int_equal(durable_write_by(v, a), -EIO);
	assert_int_equal(durable_write_by(v, a), 0);
	assert_int_equal(flush_by(v, a), 0);
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 7));
}

static int disk_flush(uint32_t handle)
{
	struct pool_io io = { .op = POOL_FLUSH, .volume = v, .of_disk = true, .handle = handle };

	return pool_io_run(rig->pool, rig->q, &io);
}

static int change_by(enum pool_io_op op, uint32_t handle)
{
	void *buffer = io_buffer_alloc(BLOCK);
	struct pool_io io = {
		.op = op, .volume = v, .handle = handle, .length = BLOCK, .buffer = buffer
	};
	int r;

	memset(buffer, 9, BLOCK);
	r = pool_io_run(rig->pool, rig->q, &io);
	free(buffer);
	return r;
}

static void a_disk_is_told_until_it_is_closed_and_changes_nothing_any_more(void **state)
{
	uint32_t disk = volume_handle(v), file = volume_handle(v), later;

	(void)state;
	assert_int_equal(rig_fill(rig, v, BLOCK, BLOCK, 2), 0);
	fail_a_commit(WRITES, 0);
	/* Somebody who shares the disk may have ordered this before anybody is told. */
	assert_int_equal(change_by(POOL_WRITE, disk), 0);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(disk_flush(disk), -EIO);
	for (enum pool_io_op op = POOL_WRITE; op <= POOL_ALLOCATE; op++)
		assert_true(op == POOL_FLUSH || change_by(op, disk) == -EIO);
	assert_int_equal(change_by(POOL_READ, disk), 0);
	assert_int_equal(disk_flush(disk), -EIO);
	/* Others are what they are. */
	assert_int_equal(flush_by(v, file), -EIO);
	assert_int_equal(flush_by(v, file), 0);
	assert_int_equal(change_by(POOL_WRITE, file), 0);
	/* Set up again it is a disk that has the committed content. */
	volume_forget_handle(v, disk);
	later = volume_handle(v);
	assert_int_equal(disk_flush(later), 0);
	assert_int_equal(change_by(POOL_WRITE, later), 0);
	assert_int_equal(disk_flush(later), 0);
}

/* One handle, first used as a file and then set up as a disk. */
static void a_file_that_becomes_a_disk_is_told_as_one(void **state)
{
	uint32_t a = volume_handle(v);

	(void)state;
	assert_int_equal(rig_fill(rig, v, BLOCK, BLOCK, 2), 0);
	fail_a_commit(WRITES, 0);
	assert_int_equal(flush_by(v, a), -EIO);
	assert_int_equal(flush_by(v, a), 0);
	assert_int_equal(disk_flush(a), -EIO);
	assert_int_equal(disk_flush(a), -EIO);
	assert_int_equal(change_by(POOL_WRITE, a), -EIO);
}

static void a_size_that_was_lost_is_told(void **state)
{
	uint32_t a = volume_handle(v);

	(void)state;
	assert_int_equal(rig_fill(rig, v, 8 * MIB, 100, 1), 0);
	assert_int_equal(flush_by(v, a), 0);
	/* The block is mapped: only the size is new. */
	assert_int_equal(rig_fill(rig, v, 8 * MIB + 100, 100, 2), 0);
	fail_a_commit(WRITES, 0);
	assert_int_equal(volume_size(v), 8 * MIB + 100);
	assert_int_equal(flush_by(v, a), -EIO);
	assert_int_equal(flush_by(v, a), 0);
}

/* Its record is written and not committed: the flush has to wait for the same commit. */
static void a_flush_during_the_commit_of_a_size_waits_for_it(void **state)
{
	struct async committing;
	struct rig_request flush;

	(void)state;
	assert_int_equal(rig_fill(rig, v, 8 * MIB, 100, 1), 0);
	assert_int_equal(rig_flush(rig, v), 0);
	assert_int_equal(rig_fill(rig, v, 8 * MIB + 100, 100, 2), 0);
	fault_device_delay(rig->meta, FLUSHES);
	start(rig, &committing, POOL_COMMIT, "", "", 0);
	assert_true(fault_device_wait_held(rig->meta, 1));
	rig_start(rig, &flush, v, POOL_FLUSH, 0, 0, NULL);
	io_queue_run(rig->q, 50 * 1000); /* time enough to flush the data device and answer */
	assert_false(rig_is_done(&flush));
	fault_device_release_all(rig->meta);
	assert_int_equal(rig_wait(rig, &flush), 0);
	assert_int_equal(finish(rig, &committing), 0);
}

/* ---- a commit of which only the last flush failed ---- */

static void a_commit_that_landed_has_lost_nothing(void **state)
{
	uint32_t a = volume_handle(v);
	struct pool_rig *image;

	(void)state;
	assert_int_equal(rig_fill(rig, v, BLOCK, BLOCK, 2), 0);
	fail_a_commit(FLUSHES, 1); /* the first is that of everything but the superblock */
	assert_true(exists(rig, "new"));
	assert_int_equal(flush_by(v, a), 0);
	assert_true(rig_reads_as(rig, v, BLOCK, BLOCK, 2));
	assert_true(flag_is_stored());
	image = crash_image(rig);
	assert_true(exists(image, "new"));
	assert_int_equal(pool_rig_close(image), 0);
	pool_rig_destroy(image);
}

/* ---- what is in flight ---- */

/* A write in place, held at the device while @fail happens. */
static int write_over_a_failure(uint64_t offset, uint64_t length)
{
	void *buffer = io_buffer_alloc(BLOCK);
	struct rig_request write;
	int r;

	memset(buffer, 5, BLOCK);
	fault_device_delay(rig->data, WRITES);
	rig_start(rig, &write, v, POOL_WRITE, offset, length, buffer);
	assert_true(fault_device_wait_held(rig->data, 1));
	fault_device_delay(rig->data, 0);
	fault_device_add(rig->meta, &(struct fault){ .ops = WRITES, .count = 1 });
	assert_int_equal(rig_commit(rig), -EIO);
	fault_device_clear(rig->meta);
	fault_device_release_all(rig->data);
	r = rig_wait(rig, &write);
	free(buffer);
	return r;
}

static void a_write_in_place_goes_on_over_an_abort(void **state)
{
	(void)state;
	assert_int_equal(rig_fill(rig, v, BLOCK, BLOCK, 2), 0);
	assert_int_equal(write_over_a_failure(0, BLOCK), 0);
	assert_true(rig_reads_as(rig, v, 0, BLOCK, 5));
}

static void a_write_to_a_block_that_is_taken_back_fails(void **state)
{
	(void)state;
	assert_int_equal(rig_fill(rig, v, BLOCK, BLOCK, 2), 0);
	assert_int_equal(write_over_a_failure(BLOCK, BLOCK), -EIO);
	assert_true(rig_reads_as(rig, v, BLOCK, BLOCK, 0));
}

/* Through the worker, in the middle of a sector. */
static void an_unaligned_write_in_place_goes_on_over_an_abort(void **state)
{
	(void)state;
	assert_int_equal(rig_fill(rig, v, BLOCK, BLOCK, 2), 0);
	assert_int_equal(write_over_a_failure(100, 300), 0);
	assert_true(rig_reads_as(rig, v, 0, 100, 1));
	assert_true(rig_reads_as(rig, v, 100, 300, 5));
	assert_true(rig_reads_as(rig, v, 400, BLOCK - 400, 1));
}

static void an_unaligned_write_to_a_block_that_is_taken_back_fails(void **state)
{
	(void)state;
	assert_int_equal(rig_fill(rig, v, BLOCK, BLOCK, 2), 0);
	assert_int_equal(write_over_a_failure(BLOCK + 100, 300), -EIO);
	assert_true(rig_reads_as(rig, v, BLOCK, BLOCK, 0));
}

/* ---- the state, the flag, the words ---- */

static void numbers_are_those_of_the_committed_state(void **state)
{
	struct pool_status before, after;

	(void)state;
	assert_int_equal(rig_commit(rig), 0);
	before = rig_status(rig);
	assert_int_equal(rig_fill(rig, v, BLOCK, 20 * BLOCK, 2), 0);
	assert_int_equal(rig_mapped(v), 21 * BLOCK);
	fail_a_commit(WRITES, 0);
	after = rig_status(rig);
	assert_int_equal(rig_mapped(v), BLOCK);
	assert_int_equal(after.data_used, before.data_used);
	assert_int_equal(after.metadata_used, before.metadata_used);
	assert_int_equal(after.transaction_id, before.transaction_id);
	assert_int_equal(after.nr_volumes, before.nr_volumes);
	assert_int_equal(after.held_root, before.held_root);
}

static void a_flag_that_cannot_be_stored_is_stored_at_the_end(void **state)
{
	(void)state;
	assert_int_equal(rig_fill(rig, v, BLOCK, BLOCK, 2), 0);
	fault_device_add(rig->meta, &(struct fault){ .ops = WRITES, .count = UINT64_MAX });
	assert_int_equal(rig_flush(rig, v), -EIO);
	assert_false(flag_is_stored());
	assert_int_equal(rig_commit(rig), -EIO);
	assert_true(rig_status(rig).needs_check);
	fault_device_clear(rig->meta);
	assert_false(flag_is_stored()); /* block 0 is not left dirty for somebody to write */
	rig_close_volume(v);
	v = NULL;
	rig_close_volume(w);
	(void)pool_rig_close(rig);
	assert_true(flag_is_stored());
	pool_rig_open(rig);
	assert_int_equal(rig_status(rig).mode, POOL_MODE_READ_ONLY);
	assert_int_equal(pool_volume_find(rig->pool, "other", &w), 0);
	assert_int_equal(volume_open(w, false), 0);
}

static void a_state_that_cannot_be_read_again_ends_the_service(void **state)
{
	static _Alignas(4096) uint8_t buffer[4096];

	(void)state;
	assert_int_equal(rig_fill(rig, v, BLOCK, BLOCK, 2), 0);
	fault_device_add(rig->meta, &(struct fault){ .ops = READS, .count = UINT64_MAX });
	fault_device_add(rig->meta, &(struct fault){ .ops = WRITES, .count = 1 });
	assert_int_equal(rig_flush(rig, v), -EIO);
	fault_device_clear(rig->meta);
	assert_int_equal(rig_status(rig).mode, POOL_MODE_FAIL);
	assert_true(rig_status(rig).needs_check);
	assert_int_equal(rig_io(rig, v, POOL_READ, 0, sizeof(buffer), buffer), -EIO);
	assert_int_equal(rig_io(rig, v, POOL_WRITE, 0, sizeof(buffer), buffer), -EIO);
	assert_int_equal(rig_flush(rig, v), -EIO);
	assert_int_equal(create(rig, "x", MIB), -EIO);
}

static void expect_reason(const char *begins, const char *has)
{
	struct pool_status s = rig_status(rig);

	if (strncmp(s.reason, begins, strlen(begins)) != 0 || !strstr(s.reason, has))
		fail_msg("the reason is: %s", s.reason);
}

static void the_reason_names_block_and_device(void **state)
{
	unsigned block;

	(void)state;
	assert_int_equal(rig_fill(rig, v, BLOCK, BLOCK, 2), 0);
	fault_device_add(rig->meta, &(struct fault){ .ops = WRITES, .count = 1 });
	assert_int_equal(rig_flush(rig, v), -EIO);
	expect_reason("cannot commit: metadata block ", " cannot be written (Input/output error)");
	assert_int_equal(sscanf(rig_status(rig).reason, "cannot commit: metadata block %u", &block),
			 1);
	assert_true(block > 0 && block < 100);
}

static void the_reason_names_a_flush(void **state)
{
	(void)state;
	fail_a_commit(FLUSHES, 0);
	expect_reason("cannot commit: ", "the metadata device cannot be flushed");
}

static void the_reason_names_the_data_device(void **state)
{
	(void)state;
	fault_device_add(rig->data, &(struct fault){ .ops = FLUSHES, .count = 1 });
	assert_int_equal(create(rig, "new", MIB), -EIO);
	fault_device_clear(rig->data);
	expect_reason("cannot commit: ", "the data device cannot be flushed");
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define SWEEP(name) cmocka_unit_test_setup_teardown(name, sweep_setup, sweep_teardown)
	const struct CMUnitTest tests[] = {
		SWEEP(any_write_may_fail),
		SWEEP(any_flush_may_fail),
		SWEEP(any_read_may_fail),
		SWEEP(any_block_may_be_damaged),
		T(every_handle_is_told_once),
		T(many_handles_are_told_once),
		T(who_waited_for_the_commit_has_been_told),
		T(a_durable_write_counts_as_a_flush),
		T(a_disk_is_told_until_it_is_closed_and_changes_nothing_any_more),
		T(a_file_that_becomes_a_disk_is_told_as_one),
		T(a_size_that_was_lost_is_told),
		T(a_flush_during_the_commit_of_a_size_waits_for_it),
		T(a_commit_that_landed_has_lost_nothing),
		T(a_write_in_place_goes_on_over_an_abort),
		T(a_write_to_a_block_that_is_taken_back_fails),
		T(an_unaligned_write_in_place_goes_on_over_an_abort),
		T(an_unaligned_write_to_a_block_that_is_taken_back_fails),
		T(numbers_are_those_of_the_committed_state),
		T(a_flag_that_cannot_be_stored_is_stored_at_the_end),
		T(a_state_that_cannot_be_read_again_ends_the_service),
		T(the_reason_names_block_and_device),
		T(the_reason_names_a_flush),
		T(the_reason_names_the_data_device),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
