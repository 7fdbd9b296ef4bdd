/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for thin/superblock.c: what may be opened, and what a refusal says.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "thin/superblock.h"
#include "util/le.h"

#define NR_BLOCKS 4096u

static struct thin_disk_superblock sb;

static void seal(void)
{
	sb.csum = le32_make(bm_checksum(&sb, SUPERBLOCK_CSUM_XOR));
}

/* A superblock that passes. */
static int make_good(void **state)
{
	struct disk_sm_root root = {
		.nr_blocks = le64_make(1000),
		.bitmap_root = le64_make(4),
		.ref_count_root = le64_make(5),
	};

	(void)state;
	superblock_init(&sb, 128, NR_BLOCKS);
	memcpy(sb.data_sm_root, &root, sizeof(root));
	root.nr_blocks = le64_make(NR_BLOCKS);
	memcpy(sb.metadata_sm_root, &root, sizeof(root));
	sb.data_mapping_root = le64_make(6);
	sb.device_details_root = le64_make(7);
	seal();
	return 0;
}

static int check(bool read_only, const char *text)
{
	struct tp_error error = { 0 };
	int r = superblock_check(&sb, NR_BLOCKS, read_only, "meta", &error);

	if (r)
		assert_non_null(strstr(error.text, "\"meta\""));
	if (r && !strstr(error.text, text))
		fail_msg("\"%s\" does not say \"%s\"", error.text, text);
	return r;
}

static void a_good_one_passes(void **state)
{
	(void)state;
	assert_int_equal(check(false, ""), 0);
}

static void blank_means_not_formatted(void **state)
{
	(void)state;
	memset(&sb, 0, sizeof(sb));
	assert_true(superblock_is_blank(&sb));
	assert_int_equal(check(false, "not formatted: use \"thinpoolctl format\""), -ENODATA);
	((char *)&sb)[sizeof(sb) - 1] = 1;
	assert_false(superblock_is_blank(&sb));
	assert_int_equal(check(false, "magic"), -EILSEQ);
}

static void identity_is_checked(void **state)
{
	(void)state;
	sb.blocknr = le64_make(3);
	seal();
	assert_int_equal(check(false, "block 3"), -ENOTBLK);
	make_good(NULL);
	sb.zero[3000] ^= 1;
	assert_int_equal(check(false, "checksum"), -EILSEQ);
}

static void version_must_be_2(void **state)
{
	(void)state;
	sb.version = le32_make(1);
	seal();
	assert_int_equal(check(false, "version 1"), -EOPNOTSUPP);
}

static void unknown_features_are_respected(void **state)
{
	(void)state;
	sb.compat_flags = le32_make(8);
	seal();
	assert_int_equal(check(false, ""), 0);
	sb.compat_ro_flags = le32_make(4);
	seal();
	assert_int_equal(check(false, "read-only"), -EOPNOTSUPP);
	assert_int_equal(check(true, ""), 0);
	sb.incompat_flags = le32_make(2);
	seal();
	assert_int_equal(check(true, "newer"), -EOPNOTSUPP);
}

static void block_sizes_are_checked(void **state)
{
	static const uint32_t bad[] = { 0, 64, 127, 129, 200, DATA_BLOCK_MAX_SECTORS + 128 };

	(void)state;
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		sb.data_block_size = le32_make(bad[i]);
		seal();
		assert_int_equal(check(false, "data blocks"), -EUCLEAN);
	}
	sb.data_block_size = le32_make(384); /* not a power of two */
	seal();
	assert_int_equal(check(false, ""), 0);
	sb.metadata_block_size = le32_make(16);
	seal();
	assert_int_equal(check(false, "metadata blocks"), -EUCLEAN);
}

static void set_metadata_blocks(uint64_t nr)
{
	struct disk_sm_root *root = (void *)sb.metadata_sm_root;

	root->nr_blocks = le64_make(nr);
	seal();
}

static void a_device_that_was_cut_off_is_refused(void **state)
{
	(void)state;
	set_metadata_blocks(NR_BLOCKS + 1);
	assert_int_equal(check(false, "4096 of the 4097"), -EINVAL);
	set_metadata_blocks(MAX_METADATA_BLOCKS + 1);
	assert_int_equal(check(false, "impossible"), -EUCLEAN);
}

static void impossible_values_are_refused(void **state)
{
	struct disk_sm_root *data = (void *)sb.data_sm_root;

	(void)state;
	sb.data_mapping_root = le64_make(0);
	seal();
	assert_int_equal(check(false, "impossible"), -EUCLEAN);
	make_good(NULL);
	sb.device_details_root = le64_make(NR_BLOCKS);
	seal();
	assert_int_equal(check(false, "impossible"), -EUCLEAN);
	make_good(NULL);
	sb.held_root = le64_make(NR_BLOCKS);
	seal();
	assert_int_equal(check(false, "impossible"), -EUCLEAN);
	make_good(NULL);
	sb.time = le32_make(THIN_MAX_TIME + 1);
	seal();
	assert_int_equal(check(false, "impossible"), -EUCLEAN);
	make_good(NULL);
	data->nr_blocks = le64_make(DATA_BLOCK_LIMIT + 1);
	seal();
	assert_int_equal(check(false, "impossible"), -EUCLEAN);
}

static void the_largest_values_are_possible(void **state)
{
	struct disk_sm_root *data = (void *)sb.data_sm_root;

	(void)state;
	sb.time = le32_make(THIN_MAX_TIME);
	data->nr_blocks = le64_make(DATA_BLOCK_LIMIT);
	sb.data_block_size = le32_make(DATA_BLOCK_MAX_SECTORS);
	sb.held_root = le64_make(NR_BLOCKS - 1);
	sb.data_mapping_root = le64_make(NR_BLOCKS - 1);
	set_metadata_blocks(NR_BLOCKS);
	assert_int_equal(check(false, ""), 0);
	sb.data_block_size = le32_make(DATA_BLOCK_MIN_SECTORS);
	seal();
	assert_int_equal(check(false, ""), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(a_good_one_passes, make_good),
		cmocka_unit_test_setup(blank_means_not_formatted, make_good),
		cmocka_unit_test_setup(identity_is_checked, make_good),
		cmocka_unit_test_setup(version_must_be_2, make_good),
		cmocka_unit_test_setup(unknown_features_are_respected, make_good),
		cmocka_unit_test_setup(block_sizes_are_checked, make_good),
		cmocka_unit_test_setup(a_device_that_was_cut_off_is_refused, make_good),
		cmocka_unit_test_setup(impossible_values_are_refused, make_good),
		cmocka_unit_test_setup(the_largest_values_are_possible, make_good),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("superblock", tests, NULL, NULL);
}
