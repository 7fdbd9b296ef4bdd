/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for thin/thin-dump.c.  That thin_dump(8) says the same is tested end to end.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "fault-device.h"
#include "mem-device.h"
#include "thin-fixture.h"
#include "thin/thin-dump.h"
#include "thinpoold/disk-format.h"
#include "util/le.h"

static int setup(void **state)
{
	struct thin_device *td;
	struct fixture *f;

	fixture_setup(state);
	f = *state;
	assert_int_equal(thin_metadata_create_thin(f->tmd, 1), 0);
	td = open_device(f, 1);
	for (vblock_t v = 5; v < 8; v++)
		assert_int_equal(write_block(f->tmd, td, v), v - 5);
	assert_int_equal(write_block(f->tmd, td, 100), 3);
	assert_int_equal(thin_metadata_create_snap(f->tmd, 4, 1), 0);
	assert_int_equal(write_block(f->tmd, td, 101), 4);
	assert_int_equal(thin_metadata_set_transaction_id(f->tmd, 0, 9), 0);
	assert_int_equal(thin_metadata_commit(f->tmd), 0);
	thin_device_close(td);
	reopen(f);
	return 0;
}

#define OLD_MAPPINGS \
	"    <range_mapping origin_begin=\"5\" data_begin=\"0\" length=\"3\" time=\"0\"/>\n" \
	"    <single_mapping origin_block=\"100\" data_block=\"3\" time=\"0\"/>\n"

static void every_mapping_is_there_in_its_form(void **state)
{
	static const char wanted[] =
		"<superblock uuid=\"\" time=\"1\" transaction=\"9\" flags=\"0\" version=\"2\" "
		"data_block_size=\"128\" nr_data_blocks=\"1000\">\n"
		"  <device dev_id=\"1\" mapped_blocks=\"5\" transaction=\"0\" creation_time=\"0\" "
		"snap_time=\"1\">\n" OLD_MAPPINGS
		"    <single_mapping origin_block=\"101\" data_block=\"4\" time=\"1\"/>\n"
		"  </device>\n"
		"  <device dev_id=\"4\" mapped_blocks=\"4\" transaction=\"0\" creation_time=\"1\" "
		"snap_time=\"1\">\n" OLD_MAPPINGS "  </device>\n"
		"</superblock>\n";
	struct fixture *f = *state;
	char *text = NULL;
	size_t length;
	FILE *out = open_memstream(&text, &length);

	assert_non_null(out);
	assert_int_equal(thin_dump(f->tmd, out), 0);
	fclose(out);
	assert_string_equal(text, wanted);
	free(text);
}

static int dump_to(struct fixture *f, const char *path, int buffering)
{
	FILE *out = fopen(path, "w");
	int r;

	assert_non_null(out);
	assert_int_equal(setvbuf(out, NULL, buffering, 1 << 16), 0);
	r = thin_dump(f->tmd, out);
	fclose(out);
	return r;
}

static void output_that_cannot_be_written_is_told(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(dump_to(f, "/dev/full", _IONBF), -ENOSPC);
	assert_int_equal(dump_to(f, "/dev/full", _IOLBF), -ENOSPC);
	assert_int_equal(dump_to(f, "/dev/full", _IOFBF), -ENOSPC); /* by the last flush */
	assert_int_equal(dump_to(f, "/dev/null", _IOFBF), 0);
}

static void metadata_that_cannot_be_read_is_told(void **state)
{
	struct fixture *f = *state;
	const struct thin_disk_superblock *sb = mem_device_data(fault_device_inner(f->meta));
	const uint64_t roots[] = { le64_get(sb->device_details_root),
				   le64_get(sb->data_mapping_root) };

	for (unsigned i = 0; i < ARRAY_SIZE(roots); i++) {
		fault_device_add(f->meta, &(struct fault){ .ops = FAULT_OP(IO_READ),
							   .offset = roots[i] * METADATA_BLOCK_SIZE,
							   .length = 1,
							   .count = UINT64_MAX });
		assert_int_equal(dump_to(f, "/dev/null", _IOFBF), -EIO);
		fault_device_clear(f->meta);
	}
	assert_int_equal(dump_to(f, "/dev/null", _IOFBF), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(every_mapping_is_there_in_its_form, setup,
						fixture_teardown),
		cmocka_unit_test_setup_teardown(output_that_cannot_be_written_is_told, setup,
						fixture_teardown),
		cmocka_unit_test_setup_teardown(metadata_that_cannot_be_read_is_told, setup,
						fixture_teardown),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("thin-dump", tests, NULL, NULL);
}
