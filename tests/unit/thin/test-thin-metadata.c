/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests of format and open: one fact a test, over devices in memory.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "abort-alone.h"
#include "fault-device.h"
#include "mem-device.h"
#include "thin-fixture.h"
#include "thin-image.h"
#include "thin/thin-metadata.h"
#include "thinpoold/disk-format.h"
#include "util/le.h"

/* ---- format and open ---- */

static void fresh_image_is_golden(void **state)
{
	static const uint32_t csums[] = { 0x9bbc0c88, 0x18e0660a, 0xc360e452, 0xa19f6375,
					  0x787f52c8, 0x41bfaa04, 0xcb3dda35, 0xb1c81346 };
	static const uint8_t zeros[METADATA_BLOCK_SIZE];
	struct io_device *dev = mem_device_create(METADATA_BYTES);
	const uint8_t *image;
	bool unformatted = false;

	(void)state;
	assert_int_equal(thin_metadata_is_unformatted(dev, &unformatted), 0);
	assert_true(unformatted);
	assert_int_equal(thin_metadata_format(dev, 128, NULL), 0);
	assert_int_equal(thin_metadata_is_unformatted(dev, &unformatted), 0);
	assert_false(unformatted);

	image = mem_device_data(dev);
	for (unsigned i = 0; i < ARRAY_SIZE(csums); i++) {
		const uint8_t *block = image + i * METADATA_BLOCK_SIZE;
		struct le32 csum;

		memcpy(&csum, block, sizeof(csum));
		assert_int_equal(le32_get(csum), csums[i]);
	}
	for (unsigned i = ARRAY_SIZE(csums); i < METADATA_BYTES / METADATA_BLOCK_SIZE; i++)
		assert_memory_equal(image + i * METADATA_BLOCK_SIZE, zeros, sizeof(zeros));
	assert_true(thin_device_is_clean(dev));
	io_device_close(dev);
}

static void old_metadata_is_formatted_over(void **state)
{
	struct fixture *f = *state;
	struct thin_metadata_info info;

	assert_int_equal(thin_metadata_create_thin(f->tmd, 3), 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	assert_int_equal(thin_metadata_close(f->tmd), 0);
	f->tmd = NULL;
	assert_int_equal(thin_metadata_format(f->meta, 256, NULL), 0);
	f->tmd = open_metadata(f);
	info = info_of(f);
	assert_int_equal(info.data_block_sectors, 256);
	assert_int_equal(info.nr_data_blocks, 0);
	assert_int_equal(thin_metadata_delete_thin(f->tmd, 3), -ENODATA);
}

static void interrupted_format_leaves_nothing_to_open(void **state)
{
	struct fixture *f = *state;
	bool unformatted = false;

	assert_int_equal(thin_metadata_close(f->tmd), 0);
	f->tmd = NULL;
	/* The wipe and its flush pass, then nothing more. */
	fault_device_add(f->meta, &(struct fault){ .ops = WRITES, .skip = 1, .count = UINT64_MAX });
	assert_int_equal(thin_metadata_format(f->meta, 128, NULL), -EIO);
	fault_device_clear(f->meta);
	assert_int_equal(thin_metadata_is_unformatted(f->meta, &unformatted), 0);
	assert_true(unformatted);
}

/* What a power cut may reorder must not come before the old superblock is gone. */
static void nothing_is_formatted_before_the_old_superblock_is_gone(void **state)
{
	struct fixture *f = *state;
	uint64_t writes;

	assert_int_equal(thin_metadata_close(f->tmd), 0);
	f->tmd = NULL;
	writes = fault_device_nr_requests(f->meta, WRITES);
	fault_device_fail_nth(f->meta, FLUSHES, 1);
	assert_int_equal(thin_metadata_format(f->meta, 128, NULL), -EIO);
	assert_int_equal(fault_device_nr_requests(f->meta, WRITES), writes + 1);
}

static void format_refuses_what_cannot_work(void **state)
{
	static const uint32_t bad[] = { 0, 64, 130, DATA_BLOCK_MAX_SECTORS + 128 };
	struct io_device *small = mem_device_create(128 << 10);
	struct tp_error error = { 0 };

	(void)state;
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(thin_metadata_format(small, bad[i], NULL), -EINVAL);
	assert_int_equal(thin_metadata_format(small, 128, &error), -EINVAL);
	assert_non_null(strstr(error.text, "at least"));
	io_device_close(small);
}

static int try_open(struct io_device *meta, struct io_device *data, const char *text)
{
	const struct thin_metadata_options options = { .cache_bytes = MIB, .data = data };
	struct tp_error error = { 0 };
	struct thin_metadata *tmd = NULL;
	int r = thin_metadata_open(meta, &options, &tmd, &error);

	assert_true(r != 0 && !tmd);
	if (!strstr(error.text, text))
		fail_msg("\"%s\" does not say \"%s\"", error.text, text);
	return r;
}

static void open_says_what_is_wrong(void **state)
{
	struct fixture *f = *state;
	struct io_device *blank = mem_device_create(METADATA_BYTES);
	struct io_device *nothing = mem_device_create(0);
	struct io_device *short_data = mem_device_create((uint64_t)(NR_DATA - 1) * BLOCK_BYTES);
	struct io_device *cut = mem_device_create(METADATA_BYTES / 2);
	struct io_device *damaged = mem_device_clone(fault_device_inner(f->meta));

	assert_int_equal(try_open(blank, NULL, "thinpoolctl format"), -ENODATA);
	assert_int_equal(try_open(nothing, NULL, "thinpoolctl format"), -ENODATA);
	assert_int_equal(try_open(f->meta, short_data, "data device"), -EINVAL);
	memcpy(mem_device_data(cut), mem_device_data(damaged), METADATA_BYTES / 2);
	mem_device_touch(cut, 0, METADATA_BYTES / 2);
	assert_int_equal(try_open(cut, NULL, "2048 of the 4096"), -EINVAL);
	((uint8_t *)mem_device_data(damaged))[100] ^= 1;
	assert_int_equal(try_open(damaged, NULL, "damaged"), -EILSEQ);
	fault_device_fail_nth(f->meta, FAULT_OP(IO_READ), 1);
	assert_int_equal(try_open(f->meta, NULL, "cannot read"), -EIO);

	io_device_close(blank);
	io_device_close(nothing);
	io_device_close(short_data);
	io_device_close(cut);
	io_device_close(damaged);
}

static void read_only_writes_no_byte(void **state)
{
	struct fixture *f = *state;
	struct thin_metadata_options options = { .cache_bytes = MIB, .read_only = true };
	uint64_t writes = fault_device_nr_requests(f->meta, WRITES | FLUSHES);
	struct thin_metadata *tmd;
	dblock_t b;

	assert_int_equal(thin_metadata_open(f->meta, &options, &tmd, NULL), 0);
	assert_int_equal(thin_metadata_create_thin(tmd, 1), -EPERM);
	assert_int_equal(thin_metadata_reserve_data_block(tmd, &b), -EPERM);
	assert_int_equal(thin_metadata_set_needs_check(tmd), -EPERM);
	assert_int_equal(thin_metadata_commit(tmd), 0); /* nothing to write */
	assert_int_equal(abort_alone(tmd), 0);
	assert_int_equal(thin_metadata_close(tmd), 0);
	assert_int_equal(fault_device_nr_requests(f->meta, WRITES | FLUSHES), writes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fresh_image_is_golden),
		TEST(old_metadata_is_formatted_over),
		TEST(interrupted_format_leaves_nothing_to_open),
		TEST(nothing_is_formatted_before_the_old_superblock_is_gone),
		cmocka_unit_test(format_refuses_what_cannot_work),
		TEST(open_says_what_is_wrong),
		TEST(read_only_writes_no_byte),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("thin-metadata", tests, NULL, NULL);
}
