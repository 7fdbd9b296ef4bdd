/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * io-fixture.h - what the tests of io/ have in common
 *
 * A test gets a queue, a file of its own in a directory of its own, and runs once a
 * backend: list it with ON_BOTH_BACKENDS().
 */
#ifndef TP_TESTS_IO_FIXTURE_H
#define TP_TESTS_IO_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/device.h"
#include "io/io-internal.h"
#include "prng.h"

#define KIB UINT64_C(1024)
#define MIB (UINT64_C(1024) * KIB)

/* Depth of the fixture's queue: small, so that tests go beyond it. */
enum { FIXTURE_DEPTH = 8 };

struct fixture {
	struct io_queue *q;
	char directory[64], path[96];
};

static inline int fixture_setup(void **state, int (*create)(unsigned, struct io_queue **))
{
	struct fixture *f = calloc(1, sizeof(*f));

	/* Not /tmp: that is often in memory, and direct I/O is to be tested. */
	strcpy(f->directory, "/var/tmp/tp-io-XXXXXX");
	if (!mkdtemp(f->directory))
		return -1;
	snprintf(f->path, sizeof(f->path), "%s/file", f->directory);
	*state = f;
	return create(FIXTURE_DEPTH, &f->q);
}

static inline int fixture_setup_any(void **state)
{
	return fixture_setup(state, io_queue_create);
}

static inline int fixture_setup_sync(void **state)
{
	return fixture_setup(state, io_queue_create_sync);
}

static inline int fixture_teardown(void **state)
{
	struct fixture *f = *state;

	io_queue_destroy(f->q);
	unlink(f->path);
	rmdir(f->directory);
	free(f);
	return 0;
}

#define ON_BOTH_BACKENDS(test) \
	{ #test ", best backend", test, fixture_setup_any, fixture_teardown, NULL }, \
	{ \
#test ", system calls", test, fixture_setup_sync, fixture_teardown, NULL \
	}

/* A new file of @bytes, all hole. */
static inline struct io_device *fixture_file(struct fixture *f, uint64_t bytes, unsigned flags)
{
	struct io_device *dev;

	assert_int_equal(io_device_open(f->path, flags | IO_OPEN_CREATE, &dev), 0);
	assert_int_equal(io_device_resize(dev, bytes), 0);
	return dev;
}

/* A request that remembers how it ended. */
struct tracked {
	struct io_request io;
	unsigned nr_done;
	int result;
};

static inline void tracked_done(struct io_request *io, int r)
{
	struct tracked *t = container_of(io, struct tracked, io);

	t->nr_done++;
	t->result = r;
}

static inline void tracked_submit(struct io_queue *q, struct tracked *t, struct io_device *dev,
				  enum io_op op, uint64_t offset, void *buffer, uint64_t length)
{
	memset(t, 0, sizeof(*t));
	t->io.device = dev;
	t->io.op = op;
	t->io.offset = offset;
	t->io.length = length;
	t->io.done = tracked_done;
	if (buffer)
		io_request_set_buffer(&t->io, buffer, length);
	io_queue_submit(q, &t->io);
}

static inline int tracked_wait(struct io_queue *q, struct tracked *t)
{
	while (!t->nr_done)
		io_queue_run(q, UINT64_MAX);
	assert_int_equal(t->nr_done, 1);
	return t->result;
}

/* Submit, wait, return how it ended. */
static inline int tracked_io(struct io_queue *q, struct io_device *dev, enum io_op op,
			     uint64_t offset, void *buffer, uint64_t length)
{
	struct tracked t;

	tracked_submit(q, &t, dev, op, offset, buffer, length);
	return tracked_wait(q, &t);
}

static inline bool all_zero(const void *buffer, uint64_t length)
{
	const char *b = buffer;

	return !length || (!b[0] && !memcmp(b, b + 1, length - 1));
}

#endif
