/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for util/error.c: the first reason wins, and a line stays a line.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "util/error.h"
#include "util/utf8.h"

static void the_first_reason_wins(void **state)
{
	struct tp_error e = { "" };

	(void)state;
	assert_int_equal(tp_error(&e, -EIO, "block %d", 7), -EIO);
	assert_int_equal(tp_error(&e, -ENOENT, "the pool"), -ENOENT);
	assert_string_equal(e.text, "block 7");
	assert_int_equal(tp_error(NULL, -EIO, "nobody listens"), -EIO);
}

static void whatever_a_user_wrote_is_one_line(void **state)
{
	static const struct {
		const char *is, *becomes;
	} lines[] = {
		{ "", "" },
		{ "plain", "plain" },
		{ "two\nlines\r\x1b[1m", "two?lines??[1m" },
		{ "caf\xc3\xa9", "caf\xc3\xa9" },
		{ "\xff\xfe", "??" },
		{ "cut \xe2\x82", "cut ??" },
		{ "c1 \xc2\x85", "c1 ??" },
		{ "del\x7f", "del?" },
	};
	char text[64];

	(void)state;
	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		strcpy(text, lines[i].is);
		assert_ptr_equal(one_line(text), text);
		assert_string_equal(text, lines[i].becomes);
	}
}

/* The text is cut at its limit, which may fall into the middle of a character. */
static void a_cut_line_is_still_utf8(void **state)
{
	char name[600];

	(void)state;
	for (size_t i = 0; i + 2 < sizeof(name); i += 2)
		memcpy(name + i, "\xc3\xa9", 2);
	name[sizeof(name) - 2] = '\0';
	for (int pad = 0; pad < 2; pad++) {
		struct tp_error e = { "" };

		assert_int_equal(tp_error(&e, -EINVAL, "%.*s%s", pad, "x", name), -EINVAL);
		assert_int_equal(strlen(e.text), sizeof(e.text) - 1);
		assert_true(utf8_is_valid(e.text, strlen(e.text)));
	}
}

static void damage_has_words_of_its_own(void **state)
{
	(void)state;
	assert_string_equal(tp_error_words(-EIO), strerror(EIO));
	assert_non_null(strstr(tp_error_words(-EILSEQ), "checksum"));
	assert_non_null(strstr(tp_error_words(-ENOTBLK), "elsewhere"));
	assert_non_null(strstr(tp_error_words(-EUCLEAN), "format"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_first_reason_wins),
		cmocka_unit_test(whatever_a_user_wrote_is_one_line),
		cmocka_unit_test(a_cut_line_is_still_utf8),
		cmocka_unit_test(damage_has_words_of_its_own),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("error", tests, NULL, NULL);
}
