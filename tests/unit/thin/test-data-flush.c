/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests of the flush of data that goes along with a commit.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>

#include "fault-device.h"
#include "thin-fixture.h"
#include "thin/thin-internal.h"
#include "util/clock.h"
#include "write-log.h"

enum { METADATA, DATA };

#define PATIENCE_USEC (10 * USEC_PER_SEC)

struct rig {
	struct io_device *meta, *data; /* fault devices, below what logs */
	uint64_t meta_flushes;         /* before the commit */
	bool seen;                     /* metadata was flushed while data was held */
};

static void *release_data_when_metadata_is_flushed(void *arg)
{
	uint64_t end = time_monotonic_usec() + PATIENCE_USEC;
	struct rig *rig = arg;

	while (fault_device_nr_requests(rig->meta, FLUSHES) == rig->meta_flushes &&
	       time_monotonic_usec() < end)
		sched_yield();
	rig->seen = fault_device_nr_requests(rig->meta, FLUSHES) != rig->meta_flushes &&
		    fault_device_nr_held(rig->data) == 1;
	fault_device_release_all(rig->data);
	return NULL;
}

static const struct write_log_entry *find_entry(struct write_log *log, unsigned device, unsigned op,
						uint64_t since)
{
	size_t nr;
	const struct write_log_entry *e = write_log_entries(log, &nr);

	for (size_t i = 0; i < nr; i++)
		if (e[i].device == device && e[i].op == op && e[i].began > since &&
		    (op != IO_WRITE || !e[i].offset))
			return &e[i];
	fail_msg("device %u: nothing of kind %u", device, op);
	return NULL;
}

static void data_is_flushed_along_with_metadata_and_before_the_superblock(void **state)
{
	struct rig rig = { .meta = fault_device_create_mem(METADATA_BYTES),
			   .data = fault_device_create_mem((uint64_t)NR_DATA * BLOCK_BYTES) };
	struct write_log *log = write_log_create();
	struct fixture f = { .meta = write_log_wrap(log, METADATA, rig.meta),
			     .data = write_log_wrap(log, DATA, rig.data) };
	const struct write_log_entry *flush, *superblock;
	pthread_t releaser;
	uint64_t before;

	(void)state;
	assert_int_equal(thin_metadata_format(f.meta, SECTORS, NULL), 0);
	f.tmd = open_metadata(&f);
	assert_int_equal(thin_metadata_resize_data(f.tmd, NR_DATA), 0);
	before = write_log_tick(log);
	rig.meta_flushes = fault_device_nr_requests(rig.meta, FLUSHES);
	fault_device_delay(rig.data, FLUSHES);
	assert_int_equal(
		pthread_create(&releaser, NULL, release_data_when_metadata_is_flushed, &rig), 0);
	assert_int_equal(thin_metadata_commit(f.tmd), 0);
	pthread_join(releaser, NULL);

	assert_true(rig.seen);
	flush = find_entry(log, DATA, IO_FLUSH, before);
	superblock = find_entry(log, METADATA, IO_WRITE, before);
	assert_true(flush->ended && flush->ended < superblock->began);

	assert_int_equal(thin_metadata_close(f.tmd), 0);
	io_device_close(f.meta);
	io_device_close(f.data);
	write_log_destroy(log);
}

/* What has begun is over when the commit returns, though nothing was written. */
static void flush_has_ended_when_metadata_cannot_be_written(void **state)
{
	struct fixture *f = *state;
	struct io_queue *q;

	assert_int_equal(io_queue_self(&q), 0);
	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	fault_device_fail_nth(f->meta, WRITES, 1);
	assert_int_equal(thin_metadata_commit(f->tmd), -EIO);
	assert_int_equal(io_queue_in_flight(q), 0);
}

static void failure_is_told_to_whoever_asks(void **state)
{
	struct fixture *f = *state;
	struct data_flush flush;

	fault_device_fail_nth(f->data, FLUSHES, 1);
	data_flush_begin(&flush, f->data);
	data_flush_end(&flush);
	assert_int_equal(data_flush_wait(&flush), -EIO);
	assert_int_equal(data_flush_wait(&flush), -EIO);
}

static void without_a_data_device_there_is_nothing_to_wait_for(void **state)
{
	struct data_flush flush;

	(void)state;
	data_flush_begin(&flush, NULL);
	assert_int_equal(data_flush_wait(&flush), 0);
	data_flush_end(&flush);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(data_is_flushed_along_with_metadata_and_before_the_superblock),
		TEST(flush_has_ended_when_metadata_cannot_be_written),
		TEST(failure_is_told_to_whoever_asks),
		TEST(without_a_data_device_there_is_nothing_to_wait_for),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
