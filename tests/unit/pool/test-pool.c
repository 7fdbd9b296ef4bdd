/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Unit tests for pool/pool.c: opening and closing pools that are files. */
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

#include "catalog/catalog.h"
#include "io/device.h"
#include "pool-fixture.h"
#include "thin/thin-metadata.h"
#include "util/clock.h"

#define BLOCK (64 * KIB)
#define NR_BLOCKS 64u

static char dir[] = "/tmp/test-pool-XXXXXX", metadata_path[64], data_path[64];
static struct pool_rig rig;

static struct io_device *make_file(const char *path, uint64_t bytes)
{
	struct io_device *dev;

	assert_int_equal(io_device_open(path, IO_OPEN_CREATE, &dev), 0);
	assert_int_equal(io_device_resize(dev, bytes), 0);
	return dev;
}

static int setup(void **state)
{
	struct thin_metadata_options options = { .cache_bytes = 1 * MIB };
	struct thin_metadata *tmd;
	struct io_device *meta, *data;

	(void)state;
	strcpy(dir + strlen(dir) - 6, "XXXXXX");
	assert_non_null(mkdtemp(dir));
	snprintf(metadata_path, sizeof(metadata_path), "%s/metadata", dir);
	snprintf(data_path, sizeof(data_path), "%s/data", dir);
	meta = make_file(metadata_path, 4 * MIB);
	options.data = data = make_file(data_path, NR_BLOCKS * BLOCK);
	assert_int_equal(thin_metadata_format(meta, BLOCK / SECTOR_SIZE, NULL), 0);
	assert_int_equal(thin_metadata_open(meta, &options, &tmd, NULL), 0);
	assert_int_equal(thin_metadata_resize_data(tmd, NR_BLOCKS), 0);
	assert_int_equal(thin_metadata_commit(tmd), 0);
	assert_int_equal(catalog_create(tmd, data), 0);
	assert_int_equal(thin_metadata_commit(tmd), 0);
	assert_int_equal(thin_metadata_close(tmd), 0);
	io_device_close(meta);
	io_device_close(data);

	rig = (struct pool_rig){ .options = { .metadata_path = metadata_path,
					      .data_path = data_path,
					      .cache_bytes = 1 * MIB,
					      .commit_interval_usec = USEC_PER_SEC,
					      .zero_new_blocks = true } };
	return io_queue_self(&rig.q);
}

static int teardown(void **state)
{
	(void)state;
	unlink(metadata_path);
	unlink(data_path);
	rmdir(dir);
	return 0;
}

static void files_keep_what_was_written(void **state)
{
	struct volume *v;

	(void)state;
	assert_int_equal(pool_open(&rig.options, &rig.pool, NULL), 0);
	v = rig_create_volume(&rig, "vol", 2 * MIB);
	assert_int_equal(rig_fill(&rig, v, 1000, 300000, 0x42), 0);
	assert_int_equal(rig_snapshot(&rig, "vol", "snap"), 0);
	assert_int_equal(rig_fill(&rig, v, 5000, 1, 0x43), 0);
	assert_int_equal(rig_punch(&rig, v, 2 * BLOCK, BLOCK), 0);
	rig_close_volume(v);
	assert_int_equal(pool_close(rig.pool), 0);

	assert_int_equal(pool_open(&rig.options, &rig.pool, NULL), 0);
	v = rig_open_volume(&rig, "snap");
	assert_true(rig_reads_as(&rig, v, 0, 1000, 0));
	assert_true(rig_reads_as(&rig, v, 1000, 300000, 0x42));
	rig_close_volume(v);
	v = rig_open_volume(&rig, "vol");
	assert_true(rig_reads_as(&rig, v, 5000, 1, 0x43));
	assert_true(rig_reads_as(&rig, v, 5001, 2 * BLOCK - 5001, 0x42));
	assert_true(rig_reads_as(&rig, v, 2 * BLOCK, BLOCK, 0));
	assert_int_equal(volume_size(v), 2 * MIB);
	rig_close_volume(v);
	assert_int_equal(pool_close(rig.pool), 0);
}

static void a_hole_of_the_data_file_stays_one(void **state)
{
	struct volume *v;
	uint64_t before;

	(void)state;
	assert_int_equal(pool_open(&rig.options, &rig.pool, NULL), 0);
	v = rig_create_volume(&rig, "vol", 2 * MIB);
	before = rig_status(&rig).data_allocated;
	assert_int_equal(rig_fill(&rig, v, 10 * BLOCK + 8192, 4096, 1), 0);
	assert_true(rig_status(&rig).data_allocated - before < BLOCK);
	assert_true(rig_reads_as(&rig, v, 10 * BLOCK, 8192, 0));
	rig_close_volume(v);
	assert_int_equal(pool_close(rig.pool), 0);
}

static void a_pool_in_use_is_not_opened_again(void **state)
{
	struct tp_error error = { "" };
	struct pool *second = NULL;

	(void)state;
	assert_int_equal(pool_open(&rig.options, &rig.pool, NULL), 0);
	assert_int_equal(pool_open(&rig.options, &second, &error), -EBUSY);
	assert_non_null(strstr(error.text, "in use"));
	assert_int_equal(pool_close(rig.pool), 0);
}

static void what_cannot_be_opened_is_named(void **state)
{
	struct tp_error error = { "" };
	struct pool *pool = NULL;

	(void)state;
	rig.options.data_path = "/nonexistent/data";
	assert_int_equal(pool_open(&rig.options, &pool, &error), -ENOENT);
	assert_non_null(strstr(error.text, "/nonexistent/data"));
	assert_null(pool);
}

static void a_data_file_that_has_shrunk_is_refused(void **state)
{
	struct tp_error error = { "" };
	struct pool *pool = NULL;

	(void)state;
	assert_int_equal(truncate(data_path, NR_BLOCKS * BLOCK - 1), 0);
	assert_int_equal(pool_open(&rig.options, &pool, &error), -EINVAL);
	assert_non_null(strstr(error.text, "data"));
	assert_null(pool);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(files_keep_what_was_written),
		T(a_hole_of_the_data_file_stays_one),
		T(a_pool_in_use_is_not_opened_again),
		T(what_cannot_be_opened_is_named),
		T(a_data_file_that_has_shrunk_is_refused),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
