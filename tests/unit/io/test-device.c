/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for io/device.c and io/file-io.c.  Each test says one fact.
 *
 * Those of block devices use a loop device on a file of their own; where there are
 * none (no root, a container) they say so and pass.
 */
#include "io-fixture.h"

#include <fcntl.h>
#include <linux/loop.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

/* ------------------------------------------------------------------- opening */

static void what_cannot_be_a_device_is_refused(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = NULL;

	assert_int_equal(io_device_open("/dev/null", 0, &dev), -ENOTBLK);
	assert_int_equal(io_device_open(f->directory, IO_OPEN_READ_ONLY, &dev), -ENOTBLK);
	assert_int_equal(io_device_open(f->path, 0, &dev), -ENOENT);
	assert_int_equal(io_device_open(f->path, IO_OPEN_CREATE | IO_OPEN_READ_ONLY, &dev),
			 -EINVAL);
	assert_null(dev);
	assert_null(io_device_close(NULL));
}

static void a_created_file_is_private_and_empty(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = fixture_file(f, 0, 0);
	struct stat st;

	assert_int_equal(stat(f->path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_int_equal(io_device_size(dev), 0);
	assert_string_equal(io_device_name(dev), f->path);
	io_device_close(dev);
}

static void a_writer_excludes_all_and_readers_share(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = fixture_file(f, 64 * KIB, 0), *a, *b;

	assert_int_equal(io_device_open(f->path, IO_OPEN_NO_WAIT, &a), -EBUSY);
	assert_int_equal(io_device_open(f->path, IO_OPEN_READ_ONLY | IO_OPEN_NO_WAIT, &a), -EBUSY);
	io_device_close(dev);

	assert_int_equal(io_device_open(f->path, IO_OPEN_READ_ONLY, &a), 0);
	assert_int_equal(io_device_open(f->path, IO_OPEN_READ_ONLY, &b), 0);
	assert_int_equal(io_device_open(f->path, IO_OPEN_NO_WAIT, &dev), -EBUSY);
	io_device_close(a);
	assert_int_equal(io_device_open(f->path, IO_OPEN_NO_WAIT, &dev), -EBUSY);
	io_device_close(b);
	assert_int_equal(io_device_open(f->path, 0, &dev), 0);
	io_device_close(dev);
}

static void *open_for_writing(void *arg)
{
	struct fixture *f = arg;
	struct io_device *dev;

	if (io_device_open(f->path, 0, &dev))
		return NULL;
	io_device_close(dev);
	return f;
}

/* As after a daemon was killed: the kernel closes the files of its io_uring a little later. */
static void a_holder_that_is_about_to_let_go_is_waited_for(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = fixture_file(f, 64 * KIB, 0);
	pthread_t opener;
	void *opened = NULL;

	assert_int_equal(pthread_create(&opener, NULL, open_for_writing, f), 0);
	usleep(100 * 1000); /* whenever it comes, the open succeeds */
	io_device_close(dev);
	assert_int_equal(pthread_join(opener, &opened), 0);
	assert_ptr_equal(opened, f);
}

static void a_read_only_device_cannot_be_changed(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = fixture_file(f, 64 * KIB, 0);
	char *b = io_buffer_alloc(4 * KIB);

	io_device_close(dev);
	assert_int_equal(io_device_open(f->path, IO_OPEN_READ_ONLY, &dev), 0);
	assert_int_equal(io_device_read(dev, b, 4 * KIB, 0), 0);
	assert_int_equal(io_device_write(dev, b, 4 * KIB, 0), -EROFS);
	assert_int_equal(io_device_discard(dev, 0, 4 * KIB), -EROFS);
	assert_int_equal(io_device_resize(dev, 128 * KIB), -EROFS);
	assert_int_equal(io_device_flush(dev), 0);
	free(b);
	io_device_close(dev);
}

static int descriptor_flags(const struct io_device *dev)
{
	return fcntl(container_of(dev, struct file_device, base)->fd, F_GETFL);
}

static void files_are_opened_for_direct_io(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = fixture_file(f, 64 * KIB, 0);
	uint32_t alignment;

	io_device_close(dev);
	assert_int_equal(io_device_open(f->path, 0, &dev), 0);
	alignment = io_device_alignment(dev);
	if (alignment == 1)
		print_message("# %s has no direct I/O\n", f->directory);
	assert_int_equal(alignment & (alignment - 1), 0);
	assert_true(alignment == 1 || (alignment >= 512 && alignment <= 4096));
	assert_int_equal(alignment > 1, !!(descriptor_flags(dev) & O_DIRECT));
	io_device_close(dev);

	assert_int_equal(io_device_open(f->path, IO_OPEN_BUFFERED, &dev), 0);
	assert_int_equal(io_device_alignment(dev), 1);
	assert_false(descriptor_flags(dev) & O_DIRECT);
	io_device_close(dev);
}

static void unaligned_requests_are_refused_or_work(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = fixture_file(f, 64 * KIB, 0);
	char *b = io_buffer_alloc(8 * KIB);
	int want = io_device_alignment(dev) == 1 ? 0 : -EINVAL;

	memset(b, 7, 8 * KIB);
	assert_int_equal(io_device_write(dev, b, 4 * KIB, 100), want);
	assert_int_equal(io_device_write(dev, b, 100, 0), want);
	assert_int_equal(io_device_write(dev, b + 1, 4 * KIB, 0), want);
	assert_int_equal(io_device_zero(dev, 1, 4 * KIB), want);
	io_device_close(dev);

	assert_int_equal(io_device_open(f->path, IO_OPEN_BUFFERED, &dev), 0);
	assert_int_equal(io_device_write(dev, b + 1, 99, 1), 0);
	assert_int_equal(io_device_read(dev, b + 200, 101, 0), 0);
	assert_memory_equal(b, b + 201, 99);
	free(b);
	io_device_close(dev);
}

static void a_file_in_memory_is_page_cached(void **state)
{
	char path[] = "/dev/shm/tp-io-XXXXXX", buffer[8] = "thin";
	struct io_device *dev;
	int fd = mkstemp(path);

	(void)state;
	if (fd < 0) {
		print_message("# no /dev/shm here\n");
		return;
	}
	close(fd);
	assert_int_equal(io_device_open(path, 0, &dev), 0);
	assert_int_equal(io_device_resize(dev, 64 * KIB), 0);
	assert_int_equal(io_device_alignment(dev), 1);
	assert_true(io_device_known_zero(dev, 0, 64 * KIB));
	assert_int_equal(io_device_write(dev, buffer, sizeof(buffer), 4 * KIB + 1), 0);
	assert_false(io_device_known_zero(dev, 0, 64 * KIB));
	/* tmpfs punches but zeroes no ranges: that is done by writing. */
	assert_int_equal(io_device_zero(dev, 4 * KIB, 4 * KIB), 0);
	assert_int_equal(io_device_read(dev, buffer, sizeof(buffer), 4 * KIB + 1), 0);
	assert_true(all_zero(buffer, sizeof(buffer)));
	io_device_close(dev);
	unlink(path);
}

/* --------------------------------------------------------- zeros and discards */

static uint64_t allocated(struct io_device *dev)
{
	uint64_t bytes;

	/* Delayed allocation decides at the flush. */
	assert_int_equal(io_device_flush(dev), 0);
	assert_int_equal(io_device_allocated(dev, &bytes), 0);
	return bytes;
}

static void fill(struct io_device *dev)
{
	uint64_t size = io_device_size(dev);
	char *b = io_buffer_alloc(size);

	memset(b, 0xa5, size);
	assert_int_equal(io_device_write(dev, b, size, 0), 0);
	free(b);
}

/* Zeros in [from, to) and what fill() wrote around it. */
static void assert_only_zero(struct io_device *dev, uint64_t from, uint64_t to)
{
	uint64_t size = io_device_size(dev);
	unsigned char *b = io_buffer_alloc(size);

	assert_int_equal(io_device_read(dev, b, size, 0), 0);
	assert_true(all_zero(b + from, to - from));
	assert_int_equal(b[from - 1], 0xa5);
	assert_int_equal(b[to], 0xa5);
	free(b);
}

static void a_discarded_range_is_zero_and_takes_no_space(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = fixture_file(f, 4 * MIB, 0);
	uint64_t full;

	fill(dev);
	full = allocated(dev);
	assert_true(full >= 4 * MIB);
	assert_int_equal(tracked_io(f->q, dev, IO_DISCARD, 1 * MIB, NULL, 2 * MIB), 0);
	assert_only_zero(dev, 1 * MIB, 3 * MIB);
	assert_true(allocated(dev) <= full - 2 * MIB);
	assert_true(io_device_known_zero(dev, 1 * MIB, 2 * MIB));
	assert_true(io_device_can_discard(dev));
	assert_int_equal(io_device_size(dev), 4 * MIB);
	io_device_close(dev);
}

static void a_zeroed_range_is_zero_and_keeps_its_space(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = fixture_file(f, 4 * MIB, 0);
	uint64_t full;

	fill(dev);
	full = allocated(dev);
	assert_int_equal(tracked_io(f->q, dev, IO_ZERO, 1 * MIB, NULL, 2 * MIB), 0);
	assert_only_zero(dev, 1 * MIB, 3 * MIB);
	assert_int_equal(allocated(dev), full);
	io_device_close(dev);
}

/* In pieces, as a 3 MiB range is longer than what zeros are written from. */
static void without_fallocate_zeros_are_written(void **state)
{
	struct fixture *f = *state;
	const enum io_op ops[] = { IO_DISCARD, IO_ZERO };
	struct io_device *dev = fixture_file(f, 5 * MIB, 0);

	io_device_set_no_fallocate(dev);
	for (unsigned i = 0; i < ARRAY_SIZE(ops); i++) {
		fill(dev);
		assert_int_equal(tracked_io(f->q, dev, ops[i], 4 * KIB, NULL, 3 * MIB), 0);
		assert_only_zero(dev, 4 * KIB, 3 * MIB + 4 * KIB);
		assert_true(allocated(dev) >= 5 * MIB);
		assert_false(io_device_can_discard(dev));
	}
	io_device_close(dev);
}

static void a_refused_fallocate_leads_to_the_next_best(void **state)
{
	struct file_device dev = { .base.alignment = 1, .max_transfer = 1 << 30 };
	struct io_request io = { .op = IO_DISCARD, .offset = 8, .length = 100 };
	struct io_step step;
	int r = 1;

	(void)state;
	file_io_begin(&dev, &io);
	file_io_step(&dev, &io, &step);
	assert_int_equal(step.kind, STEP_FALLOCATE);
	assert_int_equal(step.mode, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
	assert_false(file_io_advance(&dev, &io, -EOPNOTSUPP, &r));
	file_io_step(&dev, &io, &step);
	assert_int_equal(step.mode, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE);
	assert_false(file_io_advance(&dev, &io, -EINTR, &r));
	assert_false(file_io_advance(&dev, &io, -EOPNOTSUPP, &r));
	file_io_step(&dev, &io, &step);
	assert_int_equal(step.kind, STEP_WRITE);
	assert_int_equal(step.length, 100);
	assert_false(file_io_advance(&dev, &io, 60, &r));
	file_io_step(&dev, &io, &step);
	assert_int_equal(step.offset, 68);
	assert_int_equal(step.length, 40);
	assert_true(file_io_advance(&dev, &io, 40, &r));
	assert_int_equal(r, 0);

	/* Asked again, the file is not. */
	io.op = IO_ZERO;
	file_io_begin(&dev, &io);
	file_io_step(&dev, &io, &step);
	assert_int_equal(step.kind, STEP_WRITE);
	/* A real error is no reason to try something else. */
	assert_true(file_io_advance(&dev, &io, -ENOSPC, &r));
	assert_int_equal(r, -ENOSPC);
}

static void only_holes_are_known_to_be_zero(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = fixture_file(f, 16 * MIB, 0);
	char *b = io_buffer_alloc(64 * KIB);
	uint64_t size = io_device_size(dev);

	memset(b, 0, 64 * KIB);
	assert_true(io_device_known_zero(dev, 0, size));
	assert_int_equal(io_device_write(dev, b, 64 * KIB, 8 * MIB), 0);
	/* Zeros that were written are not known, and one of them is enough. */
	assert_false(io_device_known_zero(dev, 8 * MIB, 64 * KIB));
	assert_false(io_device_known_zero(dev, 0, size));
	assert_false(io_device_known_zero(dev, 8 * MIB + 32 * KIB, size - 8 * MIB - 32 * KIB));
	assert_true(io_device_known_zero(dev, 0, 8 * MIB));
	assert_true(io_device_known_zero(dev, 8 * MIB + 64 * KIB, size - 8 * MIB - 64 * KIB));
	/* Nothing is known about what is not there. */
	assert_false(io_device_known_zero(dev, size, 4 * KIB));
	assert_false(io_device_known_zero(dev, 0, size + 1));
	free(b);
	io_device_close(dev);
}

/* ----------------------------------------------------------------------- size */

static void files_grow_and_never_shrink(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev = fixture_file(f, 1 * MIB, 0);
	struct stat st;

	assert_int_equal(io_device_resize(dev, 64 * KIB), -EINVAL);
	assert_int_equal(io_device_size(dev), 1 * MIB);
	assert_int_equal(io_device_resize(dev, 3 * MIB), 0);
	assert_int_equal(io_device_size(dev), 3 * MIB);
	assert_int_equal(stat(f->path, &st), 0);
	assert_int_equal(st.st_size, 3 * MIB);

	/* Grown from outside: noticed only when asked to, never cut. */
	assert_int_equal(truncate(f->path, 8 * MIB), 0);
	assert_int_equal(io_device_size(dev), 3 * MIB);
	assert_int_equal(io_device_resize(dev, 5 * MIB), 0);
	assert_int_equal(io_device_size(dev), 5 * MIB);
	assert_int_equal(stat(f->path, &st), 0);
	assert_int_equal(st.st_size, 8 * MIB);
	io_device_close(dev);
}

static void an_emptied_file_is_one_hole_of_its_new_size(void **state)
{
	static const uint64_t sizes[] = { 64 * KIB, 3 * MIB };
	struct fixture *f = *state;
	struct io_device *dev = fixture_file(f, 1 * MIB, 0);
	uint64_t allocated;
	struct stat st;

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		fill(dev);
		assert_int_equal(io_device_empty(dev, sizes[i]), 0);
		assert_int_equal(io_device_size(dev), sizes[i]);
		assert_int_equal(stat(f->path, &st), 0);
		assert_int_equal(st.st_size, sizes[i]);
		assert_int_equal(io_device_allocated(dev, &allocated), 0);
		assert_int_equal(allocated, 0);
		assert_int_equal(io_device_empty(dev, 1 * MIB), 0);
	}
	assert_int_equal(io_device_empty(dev, UINT64_MAX), -EINVAL);
	assert_int_equal(io_device_size(dev), 1 * MIB);
	io_device_close(dev);
}

/* -------------------------------------------------------------- block devices */

/* Goes away by itself when nobody has it open.  False: none to be had. */
static bool loop_attach(const char *file, char *path, size_t path_size, int *ret_fd)
{
	struct loop_config config = { .info.lo_flags = LO_FLAGS_AUTOCLEAR };
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC), backing, nr, fd;
	bool attached = false;

	backing = open(file, O_RDWR | O_CLOEXEC);
	config.fd = (uint32_t)backing;
	/* Others may take the free one first. */
	for (unsigned i = 0; i < 20 && control >= 0 && !attached; i++) {
		nr = ioctl(control, LOOP_CTL_GET_FREE);
		snprintf(path, path_size, "/dev/loop%d", nr);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			break;
		attached = !ioctl(fd, LOOP_CONFIGURE, &config);
		if (attached)
			*ret_fd = fd;
		else
			close(fd);
	}
	close(backing);
	if (control >= 0)
		close(control);
	return attached;
}

static void a_block_device_is_held_exclusively(void **state)
{
	struct fixture *f = *state;
	struct io_device *dev, *other;
	char path[32], *b;
	int fd;

	io_device_close(fixture_file(f, 8 * MIB, 0));
	if (!loop_attach(f->path, path, sizeof(path), &fd)) {
		print_message("# no loop devices here\n");
		return;
	}
	assert_int_equal(io_device_open(path, 0, &dev), 0);
	assert_true(dev->is_block_device);
	assert_int_equal(io_device_size(dev), 8 * MIB);
	assert_int_equal(io_device_open(path, IO_OPEN_NO_WAIT, &other), -EBUSY);
	assert_int_equal(io_device_open(path, IO_OPEN_READ_ONLY | IO_OPEN_NO_WAIT, &other), -EBUSY);

	b = io_buffer_alloc(4 * KIB);
	assert_false(io_device_known_zero(dev, 0, 4 * KIB));
	assert_int_equal(io_device_resize(dev, 8 * MIB), 0);
	assert_int_equal(io_device_resize(dev, 9 * MIB), -EOPNOTSUPP);
	assert_true(io_device_can_discard(dev));
	fill(dev);
	assert_int_equal(tracked_io(f->q, dev, IO_DISCARD, 1 * MIB, NULL, 1 * MIB), 0);
	assert_only_zero(dev, 1 * MIB, 2 * MIB);
	assert_int_equal(tracked_io(f->q, dev, IO_ZERO, 4 * MIB, NULL, 2 * MIB), 0);
	assert_only_zero(dev, 4 * MIB, 6 * MIB);
	assert_int_equal(tracked_io(f->q, dev, IO_FLUSH, 0, NULL, 0), 0);
	if (io_device_alignment(dev) > 1)
		assert_int_equal(io_device_read(dev, b, 4 * KIB, 1), -EINVAL);
	io_device_close(dev);

	assert_int_equal(io_device_open(path, IO_OPEN_READ_ONLY, &dev), 0);
	assert_int_equal(io_device_open(path, IO_OPEN_READ_ONLY, &other), 0);
	assert_int_equal(io_device_read(other, b, 4 * KIB, 8 * MIB - 4 * KIB), 0);
	assert_int_equal((unsigned char)b[0], 0xa5);
	io_device_close(dev);
	io_device_close(other);
	free(b);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(what_cannot_be_a_device_is_refused,
						fixture_setup_any, fixture_teardown),
		cmocka_unit_test_setup_teardown(a_created_file_is_private_and_empty,
						fixture_setup_any, fixture_teardown),
		cmocka_unit_test_setup_teardown(a_holder_that_is_about_to_let_go_is_waited_for,
						fixture_setup_any, fixture_teardown),
		cmocka_unit_test_setup_teardown(a_writer_excludes_all_and_readers_share,
						fixture_setup_any, fixture_teardown),
		cmocka_unit_test_setup_teardown(a_read_only_device_cannot_be_changed,
						fixture_setup_any, fixture_teardown),
		cmocka_unit_test_setup_teardown(files_are_opened_for_direct_io, fixture_setup_any,
						fixture_teardown),
		cmocka_unit_test_setup_teardown(unaligned_requests_are_refused_or_work,
						fixture_setup_any, fixture_teardown),
		cmocka_unit_test(a_file_in_memory_is_page_cached),
		ON_BOTH_BACKENDS(a_discarded_range_is_zero_and_takes_no_space),
		ON_BOTH_BACKENDS(a_zeroed_range_is_zero_and_keeps_its_space),
		ON_BOTH_BACKENDS(without_fallocate_zeros_are_written),
		cmocka_unit_test(a_refused_fallocate_leads_to_the_next_best),
		cmocka_unit_test_setup_teardown(only_holes_are_known_to_be_zero, fixture_setup_any,
						fixture_teardown),
		cmocka_unit_test_setup_teardown(an_emptied_file_is_one_hole_of_its_new_size,
						fixture_setup_any, fixture_teardown),
		cmocka_unit_test_setup_teardown(files_grow_and_never_shrink, fixture_setup_any,
						fixture_teardown),
		ON_BOTH_BACKENDS(a_block_device_is_held_exclusively),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
