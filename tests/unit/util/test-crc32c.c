/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for util/crc32c.c, with the check values of the on-disk format.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "util/crc32c.h"

static void known_values(void **state)
{
	static const uint8_t zeros[4092];

	(void)state;
	assert_int_equal(crc32c_raw(0xffffffff, "123456789", 9), 0x1cf96d7c);
	assert_int_equal(crc32c("123456789", 9), 0xe3069283);
	assert_int_equal(crc32c_raw(0xffffffff, zeros, sizeof(zeros)), 0x58cda791);
}

static void pieces_give_the_whole(void **state)
{
	const char text[] = "a thin pool in a directory";
	uint32_t crc = crc32c_raw(0xffffffff, text, 7);

	(void)state;
	assert_int_equal(crc32c_raw(crc, text + 7, sizeof(text) - 7),
			 crc32c_raw(0xffffffff, text, sizeof(text)));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(known_values),
		cmocka_unit_test(pieces_give_the_whole),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("crc32c", tests, NULL, NULL);
}
