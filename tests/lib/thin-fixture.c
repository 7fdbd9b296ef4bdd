/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-fixture.c - a pool's metadata over two devices in memory, for cmocka tests
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "fault-device.h"
#include "mem-device.h"
#include "thin-fixture.h"
#include "thin-image.h"
#include "thinpoold/disk-format.h"
#include "util/crc32c.h"
#include "util/le.h"

struct thin_metadata *open_metadata(struct fixture *f)
{
	const struct thin_metadata_options options = { .cache_bytes = 4 * MIB, .data = f->data };
	struct tp_error error = { 0 };
	struct thin_metadata *tmd = NULL;

	if (thin_metadata_open(f->meta, &options, &tmd, &error))
		fail_msg("%s", error.text);
	return tmd;
}

int fixture_setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->meta = fault_device_create_mem(METADATA_BYTES);
	f->data = fault_device_create_mem((uint64_t)NR_DATA * BLOCK_BYTES);
	assert_int_equal(thin_metadata_format(f->meta, SECTORS, NULL), 0);
	f->tmd = open_metadata(f);
	assert_int_equal(thin_metadata_resize_data(f->tmd, NR_DATA), 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	*state = f;
	return 0;
}

int fixture_teardown(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(thin_metadata_close(f->tmd), 0);
	io_device_close(f->meta);
	io_device_close(f->data);
	free(f);
	return 0;
}

void reopen(struct fixture *f)
{
	assert_int_equal(thin_metadata_close(f->tmd), 0);
	f->tmd = open_metadata(f);
}

struct thin_metadata_info info_of(struct fixture *f)
{
	struct thin_metadata_info info;

	assert_int_equal(thin_metadata_get_info(f->tmd, &info), 0);
	return info;
}

struct thin_device *open_device(struct fixture *f, thin_id_t id)
{
	struct thin_device *td = NULL;

	assert_int_equal(thin_device_open(f->tmd, id, &td), 0);
	return td;
}

dblock_t write_block(struct thin_metadata *tmd, struct thin_device *td, vblock_t v)
{
	dblock_t b;

	assert_int_equal(thin_metadata_reserve_data_block(tmd, &b), 0);
	assert_int_equal(thin_insert_block(td, v, b), 0);
	return b;
}

struct thin_run find(struct thin_device *td, vblock_t v, uint64_t max)
{
	struct thin_run run = { 0 }, again = { 0 };
	mblock_t missing;

	assert_int_equal(thin_find_run(td, v, max, &run), 0);
	/* What the sleeping form has read, the other one finds in the cache. */
	assert_int_equal(thin_try_find_run(td, v, max, &again, &missing), 0);
	assert_memory_equal(&run, &again, sizeof(run));
	return run;
}

void assert_hole(struct thin_device *td, vblock_t v)
{
	assert_false(find(td, v, 1).mapped);
}

void assert_mapped(struct thin_device *td, vblock_t v, dblock_t b, bool shared)
{
	struct thin_run run = find(td, v, 1);

	assert_true(run.mapped);
	assert_int_equal(run.dblock, b);
	assert_int_equal(run.shared, shared);
}

bool is_clean(struct fixture *f)
{
	return thin_device_is_clean(fault_device_inner(f->meta));
}

void set_time(struct fixture *f, uint32_t time)
{
	struct io_device *mem = fault_device_inner(f->meta);
	struct thin_disk_superblock *sb = mem_device_data(mem);

	sb->time = le32_make(time);
	sb->csum = le32_make(crc32c_raw(0xffffffff, (char *)sb + 4, METADATA_BLOCK_SIZE - 4) ^
			     SUPERBLOCK_CSUM_XOR);
	mem_device_touch(mem, 0, METADATA_BLOCK_SIZE);
}

void hold_metadata(struct fixture *f)
{
	assert_int_equal(thin_metadata_reserve_snap(f->tmd), 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
}
