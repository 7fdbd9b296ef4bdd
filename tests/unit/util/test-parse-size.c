/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for util/parse-size.c: what util-linux accepts, and what nobody should.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>

#include "util/parse-size.h"

static void good_sizes(void **state)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} good[] = {
		{ "0", 0 },
		{ "1", 1 },
		{ "512", 512 },
		{ "7B", 7 },
		{ "8s", 4096 },
		{ "64K", 65536 },
		{ "64k", 65536 },
		{ "64KiB", 65536 },
		{ "64KB", 64000 },
		{ "1.5G", 1610612736 },
		{ "0.5K", 512 },
		{ "10GiB", 10737418240 },
		{ "3MB", 3000000 },
		{ "1P", UINT64_C(1) << 50 },
		{ "7E", UINT64_C(7) << 60 },
		{ "9223372036854775807", INT64_MAX },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		uint64_t bytes = 1234;

		assert_int_equal(parse_size(good[i].text, &bytes), 0);
		assert_int_equal(bytes, good[i].bytes);
	}
}

static void bad_sizes(void **state)
{
	static const struct {
		const char *text;
		int r;
	} bad[] = {
		{ "", -EINVAL },
		{ "-1", -EINVAL },
		{ "+1", -EINVAL },
		{ " 1", -EINVAL },
		{ "1 K", -EINVAL },
		{ "1.", -EINVAL },
		{ "1.5", -EINVAL },
		{ "K", -EINVAL },
		{ "1KK", -EINVAL },
		{ "1Ki", -EINVAL },
		{ "1X", -EINVAL },
		{ "1S", -EINVAL },
		{ "0x10", -EINVAL },
		{ "1.2.3K", -EINVAL },
		{ "8E", -ERANGE },
		{ "16E", -ERANGE },
		{ "0.1G", -ERANGE },
		{ "9223372036854775808", -ERANGE },
		{ "99999999999999999999", -ERANGE },
		{ "1.0000000001K", -ERANGE },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		uint64_t bytes = 1234;

		assert_int_equal(parse_size(bad[i].text, &bytes), bad[i].r);
		assert_int_equal(bytes, 1234);
	}
}

static void formatted_sizes(void **state)
{
	char buf[FORMAT_SIZE_MAX];

	(void)state;
	assert_string_equal(format_size(0, buf, sizeof(buf)), "0B");
	assert_string_equal(format_size(1023, buf, sizeof(buf)), "1023B");
	assert_string_equal(format_size(1024, buf, sizeof(buf)), "1K");
	assert_string_equal(format_size(1536, buf, sizeof(buf)), "1.5K");
	assert_string_equal(format_size(10737418240, buf, sizeof(buf)), "10G");
	assert_string_equal(format_size(UINT64_MAX, buf, sizeof(buf)), "15.9E");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(good_sizes),
		cmocka_unit_test(bad_sizes),
		cmocka_unit_test(formatted_sizes),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("parse-size", tests, NULL, NULL);
}
