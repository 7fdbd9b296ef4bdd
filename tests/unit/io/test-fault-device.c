/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Tests of the tests' own fault-device and mem-device, which others rely on.
 */
#include "io-fixture.h"

#include "fault-device.h"
#include "mem-device.h"

static void the_nth_matching_request_fails(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = fault_device_create_mem(1 * MIB);
	char b[512] = { 1 };

	fault_device_fail_nth(dev, FAULT_OP(IO_WRITE), 3);
	fault_device_add(dev, &(struct fault){ .ops = FAULT_OP(IO_READ),
					       .offset = 64 * KIB,
					       .length = 4 * KIB,
					       .count = UINT64_MAX,
					       .error = -ETIMEDOUT });
	for (int i = 1; i <= 5; i++)
		assert_int_equal(tracked_io(f->q, dev, IO_WRITE, 0, b, 512), i == 3 ? -EIO : 0);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(tracked_io(f->q, dev, IO_READ, 0, b, 512), 0);
		assert_int_equal(io_device_read(dev, b, 512, 64 * KIB), -ETIMEDOUT);
		assert_int_equal(tracked_io(f->q, dev, IO_READ, 68 * KIB - 512, b, 512),
				 -ETIMEDOUT);
	}
	assert_int_equal(fault_device_nr_failed(dev), 7);
	assert_int_equal(fault_device_nr_requests(dev, FAULT_OP(IO_READ)), 9);
	fault_device_clear(dev);
	assert_int_equal(tracked_io(f->q, dev, IO_READ, 64 * KIB, b, 512), 0);
	io_device_close(dev);
}

static void a_torn_write_leaves_its_first_bytes(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = fault_device_create(fixture_file(f, 1 * MIB, 0));
	uint64_t half = 4 * KIB;
	char *b = io_buffer_alloc(8 * KIB);

	memset(b, 9, 8 * KIB);
	fault_device_add(dev, &(struct fault){ .apply = half });
	assert_int_equal(tracked_io(f->q, dev, IO_WRITE, 0, b, 8 * KIB), -EIO);
	assert_int_equal(tracked_io(f->q, dev, IO_READ, 0, b, 8 * KIB), 0);
	assert_int_equal(b[half - 1], 9);
	assert_true(all_zero(b + half, half));
	free(b);
	io_device_close(dev);
}

static void delayed_requests_wait_for_their_release(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = fault_device_create_mem(1 * MIB);
	struct tracked t[3], other;
	char b[512] = { 1 };

	fault_device_delay(dev, FAULT_OP(IO_WRITE));
	for (unsigned i = 0; i < 3; i++)
		tracked_submit(f->q, &t[i], dev, IO_WRITE, i * 512, b, 512);
	tracked_submit(f->q, &other, dev, IO_FLUSH, 0, NULL, 0);
	assert_int_equal(tracked_wait(f->q, &other), 0);
	assert_int_equal(fault_device_nr_held(dev), 3);
	assert_int_equal(io_queue_in_flight(f->q), 3);
	assert_int_equal(io_queue_run(f->q, 1000), 0);

	assert_int_equal(fault_device_release(dev, 1), 1);
	assert_int_equal(tracked_wait(f->q, &t[0]), 0);
	assert_int_equal(t[1].nr_done, 0);
	fault_device_release_all(dev);
	assert_int_equal(tracked_wait(f->q, &t[1]), 0);
	assert_int_equal(tracked_wait(f->q, &t[2]), 0);
	assert_int_equal(fault_device_nr_held(dev), 0);
	io_device_close(dev);
}

struct remote {
	struct io_device *dev;
	bool blocking;
	int result;
};

static void *remote_write(void *arg)
{
	struct remote *r = arg;
	struct io_queue *q;
	char b[512] = { 1 };

	if (r->blocking)
		r->result = io_device_write(r->dev, b, sizeof(b), 0);
	else if (!io_queue_self(&q))
		r->result = tracked_io(q, r->dev, IO_WRITE, 0, b, sizeof(b));
	return NULL;
}

static void a_release_reaches_other_threads(void **state)
{
	struct io_device *dev = fault_device_create_mem(1 * MIB);
	pthread_t thread[2];
	struct remote r[2] = { { .dev = dev, .result = 1 },
			       { .dev = dev, .result = 1, .blocking = true } };

	(void)state;
	fault_device_delay(dev, FAULT_ALL_OPS);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, remote_write, &r[i]), 0);
	assert_true(fault_device_wait_held(dev, 2));
	fault_device_release_all(dev);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(pthread_join(thread[i], NULL), 0);
		assert_int_equal(r[i].result, 0);
	}
	io_device_close(dev);
}

static void the_log_tells_what_a_flush_covers(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = fault_device_create_mem(1 * MIB);
	struct tracked early, late, flush;
	char b[512];
	const struct fault_log_entry *log;
	size_t nr;

	fault_device_log_start(dev, true);
	memset(b, 1, sizeof(b));
	tracked_submit(f->q, &early, dev, IO_WRITE, 0, b, 512);
	assert_int_equal(tracked_wait(f->q, &early), 0);
	memset(b, 2, sizeof(b));
	tracked_submit(f->q, &late, dev, IO_WRITE, 512, b, 512);
	tracked_submit(f->q, &flush, dev, IO_FLUSH, 0, NULL, 0);
	assert_int_equal(tracked_wait(f->q, &flush), 0);
	fault_device_log_stop(dev);
	assert_int_equal(io_device_flush(dev), 0);

	log = fault_device_log(dev, &nr);
	assert_int_equal(nr, 3);
	assert_int_equal(log[0].op, IO_WRITE);
	assert_int_equal(((char *)log[0].data)[511], 1);
	assert_int_equal(((char *)log[1].data)[511], 2);
	assert_int_equal(log[1].offset, 512);
	assert_int_equal(log[1].length, 512);
	assert_int_equal(log[2].op, IO_FLUSH);
	assert_true(log[0].ended < log[2].began);
	assert_true(log[1].ended > log[2].began);
	fault_device_log_clear(dev);
	(void)fault_device_log(dev, &nr);
	assert_int_equal(nr, 0);
	io_device_close(dev);
}

static void a_large_mem_device_takes_what_was_written(void **state)
{
	struct fixture *f = *state;
	uint64_t size = 64 * 1024 * MIB, at = size - 8 * KIB, bytes;
	struct io_device *dev = mem_device_create(size), *copy;
	char b[8 * 1024];

	memset(b, 3, sizeof(b));
	assert_int_equal(tracked_io(f->q, dev, IO_WRITE, at - 100, b, 200), 0);
	assert_int_equal(io_device_allocated(dev, &bytes), 0);
	assert_int_equal(bytes, 8 * KIB);
	assert_true(io_device_known_zero(dev, 0, at - 4 * KIB));
	assert_false(io_device_known_zero(dev, 0, at));
	copy = mem_device_clone(dev);
	assert_int_equal(io_device_resize(dev, size + 1 * MIB), 0);
	assert_int_equal(tracked_io(f->q, dev, IO_DISCARD, at - 50, NULL, 8 * KIB), 0);
	assert_int_equal(io_device_read(dev, b, 300, at - 150), 0);
	assert_true(all_zero(b, 50) && !all_zero(b + 50, 50) && all_zero(b + 100, 200));
	assert_int_equal(io_device_read(copy, b, 300, at - 150), 0);
	assert_int_equal(b[249], 3);
	assert_int_equal(io_device_allocated(dev, &bytes), 0);
	assert_int_equal(bytes, 4 * KIB);
	assert_int_equal(io_device_discard(dev, 0, size), 0);
	assert_int_equal(io_device_allocated(dev, &bytes), 0);
	assert_int_equal(bytes, 0);
	io_device_close(copy);
	io_device_close(dev);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_BOTH_BACKENDS(the_nth_matching_request_fails),
		ON_BOTH_BACKENDS(a_torn_write_leaves_its_first_bytes),
		ON_BOTH_BACKENDS(delayed_requests_wait_for_their_release),
		ON_BOTH_BACKENDS(a_release_reaches_other_threads),
		ON_BOTH_BACKENDS(the_log_tells_what_a_flush_covers),
		ON_BOTH_BACKENDS(a_large_mem_device_takes_what_was_written),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
