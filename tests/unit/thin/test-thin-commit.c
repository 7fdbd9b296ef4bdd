/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests of commit, abort and NEEDS_CHECK.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <pthread.h>
#include <sched.h>

#include "abort-alone.h"
#include "fault-device.h"
#include "mem-device.h"
#include "thin-fixture.h"
#include "thin/thin-internal.h"
#include "thinpoold/disk-format.h"
#include "util/le.h"

/* ---- commit ---- */

static void commit_of_nothing_does_nothing(void **state)
{
	struct fixture *f = *state;
	uint64_t requests = fault_device_nr_requests(f->meta, FAULT_ALL_OPS);
	uint64_t flushes = fault_device_nr_requests(f->data, FLUSHES);

	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	assert_int_equal(fault_device_nr_requests(f->meta, FAULT_ALL_OPS), requests);
	assert_int_equal(fault_device_nr_requests(f->data, FLUSHES), flushes);
}

/* Index of the first entry from @i on that is of kind @op; the number of entries: none. */
static size_t next_entry(const struct fault_log_entry *log, size_t nr, size_t i, enum io_op op)
{
	while (i < nr && log[i].op != op)
		i++;
	return i;
}

static void superblock_is_written_last_and_alone(void **state)
{
	struct fixture *f = *state;
	const struct fault_log_entry *log;
	size_t nr, i, flush;
	struct thin_device *td;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	td = open_device(f, 1);
	for (unsigned v = 0; v < 300; v++)
		write_block(f->tmd, td, v);
	fault_device_log_start(f->meta, false);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	log = fault_device_log(f->meta, &nr);

	/* Writes of anything but block 0; a flush; block 0 alone; a flush. */
	flush = next_entry(log, nr, 0, IO_FLUSH);
	assert_true(flush > 0 && flush + 3 == nr);
	for (i = 0; i < flush; i++) {
		assert_int_equal(log[i].op, IO_WRITE);
		assert_true(log[i].offset >= METADATA_BLOCK_SIZE);
		assert_true(log[i].ended < log[flush].began);
	}
	assert_int_equal(log[flush + 1].op, IO_WRITE);
	assert_int_equal(log[flush + 1].offset, 0);
	assert_int_equal(log[flush + 1].length, METADATA_BLOCK_SIZE);
	assert_true(log[flush].ended < log[flush + 1].began);
	assert_int_equal(log[flush + 2].op, IO_FLUSH);
	fault_device_log_stop(f->meta);
	thin_device_close(td);
}

static void superblock_is_not_written_when_data_cannot_be_flushed(void **state)
{
	struct fixture *f = *state;
	const struct fault_log_entry *log;
	size_t nr;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	fault_device_fail_nth(f->data, FLUSHES, 1);
	fault_device_log_start(f->meta, false);
	assert_int_equal(thin_metadata_commit(f->tmd), -EIO);
	log = fault_device_log(f->meta, &nr);
	for (size_t i = 0; i < nr; i++)
		assert_true(log[i].op != IO_WRITE || log[i].offset);
	fault_device_log_stop(f->meta);
	assert_int_equal(thin_metadata_commit(f->tmd), -EINVAL);
	assert_int_equal(thin_metadata_create_thin(f->tmd, 2), -EINVAL);
	assert_int_equal(abort_alone(f->tmd), 0);
	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
}

static void changed_lasts_until_the_commit_is_durable(void **state)
{
	struct fixture *f = *state;
	struct thin_device *td;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	td = open_device(f, 1);
	assert_false(thin_device_changed(td));
	write_block(f->tmd, td, 0);
	assert_true(thin_device_changed(td));
	/* The superblock's write fails: everything before it has succeeded. */
	fault_device_add(f->meta, &(struct fault){ .ops = WRITES, .offset = 0, .length = 1 });
	assert_int_equal(thin_metadata_commit(f->tmd), -EIO);
	assert_true(thin_device_changed(td));
	assert_false(thin_device_aborted_changes(td));
	assert_int_equal(abort_alone(f->tmd), 0);
	assert_true(thin_device_aborted_changes(td));
	assert_false(thin_device_changed(td));
	assert_hole(td, 0);
	assert_int_equal(thin_device_mapped_blocks(td), 0);
	thin_device_close(td);
	td = open_device(f, 1);
	assert_true(thin_device_aborted_changes(td));
	thin_device_close(td);
}

struct lookup_thread {
	struct thin_device *td;
	int r;
	mblock_t missing;
};

static void *try_lookup(void *arg)
{
	struct lookup_thread *t = arg;
	struct thin_run run;

	t->r = thin_try_find_run(t->td, 0, 1, &run, &t->missing);
	return NULL;
}

static void *commit_thread(void *arg)
{
	return (void *)(intptr_t)thin_metadata_commit(arg);
}

static void lookups_go_on_during_a_commit(void **state)
{
	struct fixture *f = *state;
	struct lookup_thread t = { 0 };
	pthread_t committer, reader;
	void *r;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	t.td = open_device(f, 1);
	write_block(f->tmd, t.td, 0);
	assert_true(find(t.td, 0, 1).mapped);

	for (unsigned phase = 0; phase < 2; phase++) {
		/* Both flushes of the metadata device: before and after the superblock. */
		fault_device_delay(f->meta, FLUSHES);
		if (phase == 0)
			assert_int_equal(pthread_create(&committer, NULL, commit_thread, f->tmd),
					 0);
		assert_true(fault_device_wait_held(f->meta, 1));
		t.r = 1;
		assert_int_equal(pthread_create(&reader, NULL, try_lookup, &t), 0);
		pthread_join(reader, NULL);
		assert_int_equal(t.r, 0);
		if (phase == 1)
			fault_device_release_all(f->meta);
		else
			fault_device_release(f->meta, 1);
	}
	pthread_join(committer, &r);
	assert_null(r);
	thin_device_close(t.td);
}

/* ---- abort and needs_check ---- */

static void abort_goes_back_to_the_committed_state(void **state)
{
	struct fixture *f = *state;
	struct thin_device *old, *new;
	struct thin_run run;
	dblock_t b, again;
	vblock_t next;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	assert_int_equal(thin_metadata_create_thin(f->tmd, 9), 0);
	old = open_device(f, 1);
	b = write_block(f->tmd, old, 5);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);

	write_block(f->tmd, old, 6);
	write_block(f->tmd, old, 5);
	assert_int_equal(thin_metadata_create_snap(f->tmd, 2, 1), 0);
	assert_int_equal(thin_metadata_delete_thin(f->tmd, 9), 0);
	new = open_device(f, 2);
	assert_int_equal(thin_metadata_set_transaction_id(f->tmd, 0, 8), 0);
	assert_int_equal(abort_alone(f->tmd), 0);

	assert_int_equal(info_of(f).time, 0);
	assert_int_equal(info_of(f).transaction_id, 0);
	assert_false(thin_metadata_changed(f->tmd));
	assert_mapped(old, 5, b, false);
	assert_hole(old, 6);
	assert_int_equal(thin_device_mapped_blocks(old), 1);
	assert_true(thin_device_aborted_changes(old));

	/* The snapshot never was. */
	assert_int_equal(thin_find_run(new, 5, 1, &run), -ENODATA);
	assert_int_equal(thin_remove_range(new, 0, 10, 1, &next), -ENODATA);
	assert_int_equal(thin_device_highest_mapped(new, &next), -ENODATA);
	assert_int_equal(thin_metadata_reserve_data_block(f->tmd, &again), 0);
	assert_int_equal(thin_insert_block(new, 5, again), -ENODATA);
	assert_int_equal(thin_metadata_create_thin(f->tmd, 2), 0); /* so its id is free */
	assert_int_equal(thin_find_run(new, 5, 1, &run), -ENODATA);
	assert_int_equal(thin_metadata_create_thin(f->tmd, 9), -EEXIST);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	thin_device_close(new);
	thin_device_close(old);
	assert_true(is_clean(f));
}

static void failed_snapshot_loses_nothing_of_its_origin(void **state)
{
	struct fixture *f = *state;
	struct thin_device *td;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	td = open_device(f, 1);
	assert_int_equal(thin_metadata_create_snap(f->tmd, 2, 1), 0);
	assert_false(thin_device_changed(td));
	assert_int_equal(abort_alone(f->tmd), 0);
	assert_false(thin_device_aborted_changes(td));
	thin_device_close(td);
}

static void abort_that_cannot_read_fails_for_good(void **state)
{
	struct fixture *f = *state;
	struct thin_metadata_info info;
	struct thin_device *td;
	struct thin_run run;
	mblock_t missing;
	dblock_t b;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	td = open_device(f, 1);
	fault_device_add(f->meta, &(struct fault){ .ops = FAULT_OP(IO_READ), .count = UINT64_MAX });
	assert_int_not_equal(abort_alone(f->tmd), 0);
	fault_device_clear(f->meta);

	info = info_of(f);
	assert_true(info.failed);
	assert_int_equal(abort_alone(f->tmd), -EINVAL);
	assert_int_equal(thin_metadata_commit(f->tmd), -EINVAL);
	assert_int_equal(thin_metadata_set_needs_check(f->tmd), -EINVAL);
	assert_int_equal(thin_metadata_create_thin(f->tmd, 2), -EINVAL);
	assert_int_equal(thin_metadata_reserve_data_block(f->tmd, &b), -EINVAL);
	thin_metadata_unreserve_data_blocks(f->tmd, 0, 1);
	thin_metadata_take_freed(f->tmd, NULL, NULL);
	assert_int_equal(thin_find_run(td, 0, 1, &run), -EINVAL);
	assert_int_equal(thin_try_find_run(td, 0, 1, &run, &missing), -EINVAL);
	assert_int_equal(thin_device_open(f->tmd, 1, &td), -EINVAL);
	thin_device_close(td);
	reopen(f); /* closing works, and nothing is lost */
	assert_int_equal(info_of(f).nr_data_blocks, NR_DATA);
}

/* Where the committed state has the details of devices. */
static uint64_t details_at(struct fixture *f)
{
	const struct thin_disk_superblock *sb = mem_device_data(fault_device_inner(f->meta));

	return le64_get(sb->device_details_root) * METADATA_BLOCK_SIZE;
}

static void abort_that_cannot_read_a_device_fails_for_good(void **state)
{
	struct fixture *f = *state;
	struct thin_device *td;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	td = open_device(f, 1);
	write_block(f->tmd, td, 0);
	fault_device_add(f->meta, &(struct fault){ .ops = FAULT_OP(IO_READ),
						   .offset = details_at(f),
						   .length = 1,
						   .count = UINT64_MAX });
	assert_int_equal(abort_alone(f->tmd), -EIO);
	fault_device_clear(f->meta);
	assert_true(info_of(f).failed);
	assert_true(thin_device_aborted_changes(td));
	thin_device_close(td);
	reopen(f);
	td = open_device(f, 1);
	assert_hole(td, 0);
	thin_device_close(td);
}

/* Who has it open keeps a handle to nothing, whatever takes its number. */
static void device_that_an_abort_took_stays_gone(void **state)
{
	struct fixture *f = *state;
	struct thin_device *gone, *td;
	struct thin_run run;
	dblock_t b;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	gone = open_device(f, 1);
	assert_int_equal(abort_alone(f->tmd), 0);
	assert_int_equal(thin_find_run(gone, 0, 1, &run), -ENODATA);
	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	td = open_device(f, 1);
	assert_ptr_not_equal(td, gone);
	b = write_block(f->tmd, td, 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	assert_int_equal(abort_alone(f->tmd), 0);
	assert_int_equal(thin_find_run(gone, 0, 1, &run), -ENODATA);
	assert_mapped(td, 0, b, false);
	thin_device_close(gone);
	thin_device_close(td);
}

struct superblock_user {
	struct thin_metadata *tmd;
	atomic_bool has_it, is_done;
	int r;
};

TP_NO_TSA static void *change_superblock(void *arg)
{
	struct superblock_user *user = arg;
	struct locked_block *lb;

	user->r =
		bm_write_lock(user->tmd->bm, THIN_SUPERBLOCK_LOCATION, &superblock_validator, &lb);
	user->has_it = true;
	while (!user->is_done)
		sched_yield();
	if (!user->r)
		bm_unlock(lb);
	return NULL;
}

static void needs_check_waits_for_nobody(void **state)
{
	struct fixture *f = *state;
	struct superblock_user user = { .tmd = f->tmd };
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, change_superblock, &user), 0);
	while (!user.has_it)
		sched_yield();
	assert_int_equal(thin_metadata_set_needs_check(f->tmd), -EUCLEAN);
	user.is_done = true;
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(user.r, 0);
	assert_false(info_of(f).needs_check);
	assert_int_equal(thin_metadata_set_needs_check(f->tmd), 0);
	assert_true(info_of(f).needs_check);
}

static void a_needs_check_that_fails_leaves_nothing_dirty(void **state)
{
	struct fixture *f = *state;
	struct cache_stats stats;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	assert_int_equal(abort_alone(f->tmd), 0);
	for (unsigned i = 0; i < 3; i++) {
		fault_device_add(f->meta, &(struct fault){ .ops = i < 2 ? WRITES : FLUSHES });
		assert_int_equal(thin_metadata_set_needs_check(f->tmd), -EIO);
		thin_metadata_get_cache_stats(f->tmd, &stats);
		assert_int_equal(stats.dirty_bytes, 0);
		assert_false(info_of(f).needs_check);
		thin_metadata_set_read_only(f->tmd);
	}
	assert_int_equal(thin_metadata_set_needs_check(f->tmd), 0);
	assert_true(info_of(f).needs_check);
	assert_int_equal(thin_metadata_create_thin(f->tmd, 2), -EPERM); /* still read-only */
	reopen(f);
	assert_true(info_of(f).needs_check);
}

static uint64_t writes_of(const struct fixture *f)
{
	return fault_device_nr_requests(f->meta, FAULT_OP(IO_WRITE));
}

/* So much is changed that a cache without room has to write what was changed before. */
static void block_0_is_dirty_in_commits_only(void **state)
{
	const struct fault_log_entry *log;
	struct fixture *f = *state;
	struct thin_device *td;
	uint64_t writes_before;
	unsigned writes = 0;
	size_t nr;

	thin_metadata_set_cache_limit(f->tmd, 0);
	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	assert_int_equal(thin_metadata_reserve_snap(f->tmd), 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	td = open_device(f, 1);
	fault_device_log_start(f->meta, false);
	writes_before = writes_of(f);
	assert_int_equal(thin_metadata_release_snap(f->tmd), 0);
	write_block(f->tmd, td, 1);
	assert_int_equal(thin_metadata_create_snap(f->tmd, 2, 1), 0);
	assert_int_equal(thin_metadata_set_transaction_id(f->tmd, 0, 8), 0);
	/* The cache's helper writes when it comes to it, and no more than it has been asked to. */
	for (unsigned i = 0; i < 900 || (i < 20000 && writes_of(f) < writes_before + 6); i++) {
		write_block(f->tmd, td, i * 1000);
		sched_yield();
	}
	fault_device_log_stop(f->meta);
	log = fault_device_log(f->meta, &nr);
	for (size_t i = 0; i < nr; i++) {
		assert_true(log[i].op != IO_WRITE || log[i].offset > 0);
		writes += log[i].op == IO_WRITE;
	}
	assert_true(writes > 5);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	assert_int_equal(info_of(f).held_root, 0);
	thin_device_close(td);
}

/* Only the flush of the superblock fails: the abort finds the new state, and nobody has lost. */
static void a_commit_that_landed_is_known(void **state)
{
	struct fixture *f = *state;
	struct thin_device *td;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	td = open_device(f, 1);
	for (unsigned flush = 0; flush < 2; flush++) {
		write_block(f->tmd, td, flush);
		fault_device_add(f->meta, &(struct fault){ .ops = FLUSHES, .skip = 1 - flush });
		assert_int_equal(thin_metadata_commit(f->tmd), -EIO);
		assert_true(thin_device_changed(td));
		assert_int_equal(abort_alone(f->tmd), 0);
		assert_int_equal(thin_metadata_commit_landed(f->tmd), !flush);
		assert_int_equal(thin_device_aborted_changes(td), flush);
		assert_int_equal(thin_device_mapped_blocks(td), 1);
	}
	thin_device_close(td);
}

static void needs_check_is_durable_at_once(void **state)
{
	struct fixture *f = *state;
	struct thin_device *td;
	struct thin_run run;
	dblock_t b, other;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	td = open_device(f, 1);
	b = write_block(f->tmd, td, 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	write_block(f->tmd, td, 1);
	assert_int_equal(abort_alone(f->tmd), 0);
	assert_int_equal(thin_metadata_set_needs_check(f->tmd), 0);
	assert_false(bm_is_read_only(f->tmd->bm));
	thin_metadata_set_read_only(f->tmd);
	assert_true(bm_is_read_only(f->tmd->bm)); /* nothing gets past that */
	assert_true(info_of(f).needs_check);
	assert_int_equal(thin_metadata_set_needs_check(f->tmd), 0); /* it is set */
	assert_true(is_clean(f));
	thin_device_close(td);

	reopen(f);
	assert_true(info_of(f).needs_check);
	assert_false(info_of(f).read_only);
	td = open_device(f, 1);
	assert_mapped(td, 0, b, false);
	assert_hole(td, 1);
	assert_int_equal(thin_metadata_reserve_data_block(f->tmd, &other), -EPERM);
	assert_int_equal(thin_insert_block(td, 1, 5), -EPERM);
	assert_int_equal(thin_metadata_create_thin(f->tmd, 2), -EPERM);
	assert_int_equal(thin_metadata_delete_thin(f->tmd, 1), -EPERM);
	assert_int_equal(thin_metadata_resize_data(f->tmd, NR_DATA), -EPERM);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	assert_int_equal(thin_find_run(td, 0, 1, &run), 0);
	thin_device_close(td);
}

/* Whose records build on the state goes on finding it. */
static void a_flag_is_no_other_state(void **state)
{
	struct fixture *f = *state;
	uint8_t *before = malloc(THIN_STATE_BYTES), *after = malloc(THIN_STATE_BYTES);

	assert_non_null(before);
	assert_non_null(after);
	thin_metadata_get_state(f->tmd, before);
	assert_int_equal(thin_metadata_set_needs_check(f->tmd), 0);
	thin_metadata_get_state(f->tmd, after);
	assert_memory_equal(before, after, THIN_STATE_BYTES);
	free(before);
	free(after);
}

static void note_state(void *ctx, const void *state)
{
	memcpy(ctx, state, THIN_STATE_BYTES);
}

static void the_state_that_comes_is_told_before_the_superblock_is_written(void **state)
{
	struct fixture *f = *state;
	uint8_t *told = calloc(1, THIN_STATE_BYTES), *is = malloc(THIN_STATE_BYTES);

	assert_non_null(told);
	assert_non_null(is);
	thin_metadata_set_commit_hook(f->tmd, note_state, told);
	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	fault_device_add(f->meta, &(struct fault){ .ops = FAULT_OP(IO_WRITE),
						   .length = METADATA_BLOCK_SIZE,
						   .count = 1 });
	assert_int_equal(thin_metadata_commit(f->tmd), -EIO);
	thin_metadata_get_state(f->tmd, is);
	assert_memory_not_equal(told, is, THIN_STATE_BYTES);
	fault_device_clear(f->meta);
	assert_int_equal(abort_alone(f->tmd), 0);
	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	thin_metadata_get_state(f->tmd, is);
	assert_memory_equal(told, is, THIN_STATE_BYTES);
	free(told);
	free(is);
}

static void failed_needs_check_is_told(void **state)
{
	struct fixture *f = *state;

	fault_device_fail_nth(f->meta, WRITES, 1);
	assert_int_equal(thin_metadata_set_needs_check(f->tmd), -EIO);
	assert_false(info_of(f).needs_check);
}

/* ---- clearing the flag of a pool that nobody serves ---- */

static void close_with_needs_check(struct fixture *f)
{
	assert_int_equal(thin_metadata_set_needs_check(f->tmd), 0);
	assert_int_equal(thin_metadata_close(f->tmd), 0);
}

static void needs_check_is_cleared_durably(void **state)
{
	struct fixture *f = *state;
	struct tp_error error = { 0 };
	uint64_t writes, flushes;

	close_with_needs_check(f);
	flushes = fault_device_nr_requests(f->meta, FLUSHES);
	assert_int_equal(thin_metadata_clear_needs_check(f->meta, &error), 0);
	assert_int_equal(fault_device_nr_requests(f->meta, FLUSHES), flushes + 1);
	writes = writes_of(f);
	assert_int_equal(thin_metadata_clear_needs_check(f->meta, &error), 0);
	assert_int_equal(writes_of(f), writes); /* there was none to clear */
	assert_string_equal(error.text, "");
	f->tmd = open_metadata(f);
	assert_false(info_of(f).needs_check);
	assert_int_equal(info_of(f).nr_data_blocks, NR_DATA);
	assert_true(is_clean(f));
}

static void needs_check_that_cannot_be_cleared_is_told(void **state)
{
	static const unsigned ops[] = { FAULT_OP(IO_READ), WRITES, FLUSHES };
	struct fixture *f = *state;

	close_with_needs_check(f);
	for (unsigned i = 0; i < ARRAY_SIZE(ops); i++) {
		struct tp_error error = { 0 };

		fault_device_fail_nth(f->meta, ops[i], 1);
		assert_int_equal(thin_metadata_clear_needs_check(f->meta, &error), -EIO);
		assert_non_null(strstr(error.text, "needs_check"));
		if (i < 2) {
			f->tmd = open_metadata(f);
			assert_true(info_of(f).needs_check);
			assert_int_equal(thin_metadata_close(f->tmd), 0);
		}
	}
	f->tmd = open_metadata(f);
}

static void nothing_is_cleared_in_a_damaged_superblock(void **state)
{
	struct fixture *f = *state;
	char *disk = mem_device_data(fault_device_inner(f->meta));
	struct tp_error error = { 0 };
	uint64_t writes;

	close_with_needs_check(f);
	disk[100] ^= 1;
	writes = writes_of(f);
	assert_int_equal(thin_metadata_clear_needs_check(f->meta, &error), -EILSEQ);
	assert_int_equal(writes_of(f), writes);
	disk[100] ^= 1;
	f->tmd = open_metadata(f);
	assert_true(info_of(f).needs_check);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(commit_of_nothing_does_nothing),
		TEST(superblock_is_written_last_and_alone),
		TEST(superblock_is_not_written_when_data_cannot_be_flushed),
		TEST(changed_lasts_until_the_commit_is_durable),
		TEST(lookups_go_on_during_a_commit),
		TEST(abort_goes_back_to_the_committed_state),
		TEST(failed_snapshot_loses_nothing_of_its_origin),
		TEST(abort_that_cannot_read_fails_for_good),
		TEST(abort_that_cannot_read_a_device_fails_for_good),
		TEST(device_that_an_abort_took_stays_gone),
		TEST(needs_check_waits_for_nobody),
		TEST(needs_check_is_durable_at_once),
		TEST(a_needs_check_that_fails_leaves_nothing_dirty),
		TEST(block_0_is_dirty_in_commits_only),
		TEST(a_commit_that_landed_is_known),
		TEST(a_flag_is_no_other_state),
		TEST(the_state_that_comes_is_told_before_the_superblock_is_written),
		TEST(failed_needs_check_is_told),
		TEST(needs_check_is_cleared_durably),
		TEST(needs_check_that_cannot_be_cleared_is_told),
		TEST(nothing_is_cleared_in_a_damaged_superblock),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("thin-commit", tests, NULL, NULL);
}
