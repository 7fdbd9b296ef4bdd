/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for catalog/volume-name.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "catalog/catalog.h"
#include "util/compiler.h"

static void ordinary_names_are_fine(void **state)
{
	static const char *const good[] = {
		"a",
		"vm-01.img",
		"with space",
		"a.b",
		"-rf",
		"~",
		"\xc3\xa4",
		"\xe2\x82\xac",
		"\xf0\x9f\x92\xbe",
		"%n\\\"'",
		"\xc2\xa0", /* U+00A0 */
		"\xed\x9f\xbf",
		"\xee\x80\x80",
		"\xf4\x8f\xbf\xbf", /* around the surrogates; the last */
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(good); i++)
		assert_int_equal(volume_name_check(good[i]), 0);
}

static void slash_dot_and_empty_are_refused(void **state)
{
	static const char *const bad[] = { "", ".", "..", ".hidden", ".catalog", "a/b", "/", "a/" };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(volume_name_check(bad[i]), -EINVAL);
}

static void every_control_character_is_refused(void **state)
{
	(void)state;
	for (int c = 1; c < 0x20; c++) {
		char name[] = { 'a', (char)c, 'b', 0 };

		assert_int_equal(volume_name_check(name), -EINVAL);
	}
	assert_int_equal(volume_name_check("a\x7f"), -EINVAL);
	for (int c = 0x80; c <= 0x9f; c++) {
		char name[] = { 'a', (char)0xc2, (char)c, 0 };

		assert_int_equal(volume_name_check(name), -EINVAL);
	}
}

static void what_is_not_utf8_is_refused(void **state)
{
	static const char *const bad[] = {
		"\x80",
		"\xbf",
		"a\xff",
		"\xfe",
		"\xc3",
		"\xc3(",
		"\xe2\x82",
		"\xf0\x9f\x92",
		"\xc0\xaf",
		"\xc1\xbf",
		"\xe0\x80\xaf",
		"\xe0\x9f\xbf",
		"\xf0\x80\x80\xaf",
		"\xf0\x8f\xbf\xbf",
		"\xed\xa0\x80",
		"\xed\xbf\xbf",
		"\xf4\x90\x80\x80",
		"\xf8\x88\x80\x80\x80",
		"\xf5\x80\x80\x80",
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(volume_name_check(bad[i]), -EINVAL);
}

static void two_hundred_fifty_five_bytes_is_the_limit(void **state)
{
	char name[VOLUME_NAME_MAX + 2] = { 0 };

	(void)state;
	memset(name, 'x', VOLUME_NAME_MAX);
	assert_int_equal(volume_name_check(name), 0);
	name[VOLUME_NAME_MAX] = 'x';
	assert_int_equal(volume_name_check(name), -ENAMETOOLONG);
	name[0] = '.';
	assert_int_equal(volume_name_check(name), -ENAMETOOLONG);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ordinary_names_are_fine),
		cmocka_unit_test(slash_dot_and_empty_are_refused),
		cmocka_unit_test(every_control_character_is_refused),
		cmocka_unit_test(what_is_not_utf8_is_refused),
		cmocka_unit_test(two_hundred_fifty_five_bytes_is_the_limit),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("volume-name", tests, NULL, NULL);
}
