/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for io/copier.c.  Each test says one fact.
 */
#include "io-fixture.h"

#include "fault-device.h"
#include "io/copier.h"
#include "mem-device.h"

enum { BUFFER = 64 * 1024, NR_BUFFERS = 4 };

struct tracked_job {
	struct copy_job job;
	unsigned nr_done;
	int result;
};

static void job_done(struct copy_job *job, int r)
{
	struct tracked_job *t = container_of(job, struct tracked_job, job);

	t->nr_done++;
	t->result = r;
}

static struct tracked_job job_of(struct io_device *dev, uint64_t from, uint64_t to, uint64_t length)
{
	return (struct tracked_job){
		.job = { .device = dev, .from = from, .to = to, .length = length, .done = job_done }
	};
}

static int job_wait(struct io_queue *q, struct tracked_job *t)
{
	assert_int_equal(t->nr_done, 0);
	while (!t->nr_done)
		io_queue_run(q, UINT64_MAX);
	while (io_queue_in_flight(q))
		io_queue_run(q, UINT64_MAX);
	assert_int_equal(t->nr_done, 1);
	return t->result;
}

static struct copier *copier_with(struct io_queue *q, unsigned nr_buffers)
{
	struct copier *c;

	assert_int_equal(copier_create(q, BUFFER, nr_buffers, &c), 0);
	return c;
}

static struct copier *copier_of(struct io_queue *q)
{
	return copier_with(q, NR_BUFFERS);
}

static void bad_geometry_is_refused(void **state)
{
	struct fixture *f = *state;
	struct copier *c = NULL;

	assert_int_equal(copier_create(f->q, BUFFER, 0, &c), -EINVAL);
	assert_int_equal(copier_create(f->q, 0, 1, &c), -EINVAL);
	assert_int_equal(copier_create(f->q, 1000, 1, &c), -EINVAL);
	assert_null(c);
	assert_null(copier_destroy(NULL));
}

/* Shorter than a buffer, one, several with an odd end, more than all buffers hold. */
static void check_copies(struct fixture *f, unsigned nr_buffers)
{
	const uint64_t lengths[] = { 4 * KIB, 64 * KIB, 148 * KIB, 3 * MIB };
	struct io_device *dev = fixture_file(f, 8 * MIB, 0);
	struct copier *c = copier_with(f->q, nr_buffers);
	char *a = io_buffer_alloc(4 * MIB), *b = io_buffer_alloc(4 * MIB);
	struct prng prng;

	prng_init(&prng, prng_seed());
	prng_fill(&prng, a, 4 * MIB);
	assert_int_equal(io_device_write(dev, a, 4 * MIB, 0), 0);
	for (unsigned i = 0; i < ARRAY_SIZE(lengths); i++) {
		struct tracked_job t = job_of(dev, 8 * KIB, 4 * MIB, lengths[i]);

		assert_int_equal(io_device_zero(dev, 4 * MIB, 4 * MIB), 0);
		copier_copy(c, &t.job);
		assert_int_equal(job_wait(f->q, &t), 0);
		assert_int_equal(io_device_read(dev, b, 4 * MIB, 4 * MIB), 0);
		assert_memory_equal(a + 8 * KIB, b, lengths[i]);
		assert_true(all_zero(b + lengths[i], 4 * MIB - lengths[i]));
	}
	free(a);
	free(b);
	copier_destroy(c);
	io_device_close(dev);
}

static void a_copy_equals_its_source(void **state)
{
	check_copies(*state, NR_BUFFERS);
	check_copies(*state, 1);
}

/* What was begun is waited for, nothing more is begun. */
static void a_failed_job_stops(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = fault_device_create_mem(4 * MIB);
	struct copier *c = copier_of(f->q);
	struct tracked_job t = job_of(dev, 0, 2 * MIB, 2 * MIB);

	fault_device_add(dev, &(struct fault){ .ops = FAULT_OP(IO_READ), .error = -ENODATA });
	copier_copy(c, &t.job);
	assert_int_equal(job_wait(f->q, &t), -ENODATA);
	assert_int_equal(fault_device_nr_requests(dev, FAULT_OP(IO_READ)), NR_BUFFERS);
	assert_int_equal(fault_device_nr_requests(dev, FAULT_OP(IO_WRITE)), 0);
	copier_destroy(c);
	io_device_close(dev);
}

static void zero_clears_the_range_and_no_more(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = fixture_file(f, 4 * MIB, 0);
	struct copier *c = copier_of(f->q);
	struct tracked_job t = job_of(dev, 0, 4 * KIB, 3 * MIB);
	char *b = io_buffer_alloc(4 * MIB);

	memset(b, 1, 4 * MIB);
	assert_int_equal(io_device_write(dev, b, 4 * MIB, 0), 0);
	copier_zero(c, &t.job);
	assert_int_equal(job_wait(f->q, &t), 0);
	assert_int_equal(io_device_read(dev, b, 4 * MIB, 0), 0);
	assert_int_equal(b[4 * KIB - 1], 1);
	assert_true(all_zero(b + 4 * KIB, 3 * MIB));
	assert_int_equal(b[3 * MIB + 4 * KIB], 1);
	free(b);
	copier_destroy(c);
	io_device_close(dev);
}

static void jobs_beyond_the_buffers_wait_inside(void **state)
{
	enum { NR = 40 };
	struct fixture *f = *state;
	struct io_device *dev = mem_device_create(2 * NR * BUFFER);
	struct copier *c = copier_of(f->q);
	struct tracked_job t[NR];
	char *data = mem_device_data(dev);

	for (unsigned i = 0; i < NR; i++)
		memset(data + i * BUFFER, (int)i + 1, BUFFER);
	mem_device_touch(dev, 0, NR * BUFFER);
	for (unsigned i = 0; i < NR; i++) {
		t[i] = job_of(dev, i * BUFFER, (NR + i) * BUFFER, BUFFER);
		copier_copy(c, &t[i].job);
		assert_true(io_queue_in_flight(f->q) <= NR_BUFFERS);
	}
	while (io_queue_in_flight(f->q))
		io_queue_run(f->q, UINT64_MAX);
	for (unsigned i = 0; i < NR; i++) {
		assert_int_equal(t[i].nr_done, 1);
		assert_int_equal(t[i].result, 0);
	}
	assert_memory_equal(data, data + NR * BUFFER, NR * BUFFER);
	copier_destroy(c);
	io_device_close(dev);
}

/* Whatever request fails, the job ends once, with that error, and leaves the copier usable. */
static void a_failed_request_fails_its_job_alone(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = fault_device_create_mem(4 * MIB);
	struct copier *c = copier_of(f->q);
	uint64_t nth = 0, failed;

	do {
		struct tracked_job bad = job_of(dev, 0, 1 * MIB, 10 * BUFFER);
		struct tracked_job good = job_of(dev, 2 * MIB, 3 * MIB, 3 * BUFFER);

		fault_device_add(
			dev, &(struct fault){ .length = 2 * MIB, .skip = nth++, .error = -ENODEV });
		failed = fault_device_nr_failed(dev);
		copier_copy(c, &bad.job);
		copier_copy(c, &good.job);
		failed = job_wait(f->q, &bad) ? failed : UINT64_MAX;
		if (failed != UINT64_MAX) {
			assert_int_equal(bad.result, -ENODEV);
			assert_int_equal(fault_device_nr_failed(dev), failed + 1);
		}
		assert_int_equal(good.nr_done, 1);
		assert_int_equal(good.result, 0);
		fault_device_clear(dev);
	} while (failed != UINT64_MAX);
	assert_int_equal(nth, 21); /* each of ten reads and ten writes has failed once */
	copier_destroy(c);
	io_device_close(dev);
}

static void an_empty_job_ends_by_run_too(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = mem_device_create(1 * MIB);
	struct copier *c = copier_of(f->q);
	struct tracked_job a = job_of(dev, 0, 0, 0), b = job_of(dev, 0, 0, 0);

	copier_copy(c, &a.job);
	copier_zero(c, &b.job);
	assert_int_equal(job_wait(f->q, &a), 0);
	assert_int_equal(b.nr_done, 1);
	assert_int_equal(b.result, 0);
	copier_destroy(c);
	io_device_close(dev);
}

struct chain {
	struct tracked_job t;
	struct copier *c;
	unsigned left;
};

static void chain_done(struct copy_job *job, int r)
{
	struct chain *chain = container_of(job, struct chain, t.job);

	if (--chain->left) {
		copier_copy(chain->c, job);
		return;
	}
	copier_destroy(chain->c);
	job_done(job, r);
}

static void done_may_start_a_job_or_destroy_the_copier(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = mem_device_create(1 * MIB);
	struct chain chain = { .t = job_of(dev, 0, 512 * KIB, 400 * KIB),
			       .c = copier_of(f->q),
			       .left = 5 };

	chain.t.job.done = chain_done;
	copier_copy(chain.c, &chain.t.job);
	assert_int_equal(job_wait(f->q, &chain.t), 0);
	io_device_close(dev);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_BOTH_BACKENDS(bad_geometry_is_refused),
		ON_BOTH_BACKENDS(a_copy_equals_its_source),
		ON_BOTH_BACKENDS(zero_clears_the_range_and_no_more),
		ON_BOTH_BACKENDS(jobs_beyond_the_buffers_wait_inside),
		ON_BOTH_BACKENDS(a_failed_request_fails_its_job_alone),
		ON_BOTH_BACKENDS(a_failed_job_stops),
		ON_BOTH_BACKENDS(an_empty_job_ends_by_run_too),
		ON_BOTH_BACKENDS(done_may_start_a_job_or_destroy_the_copier),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
