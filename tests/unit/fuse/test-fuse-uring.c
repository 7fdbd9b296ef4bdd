/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for fuse/fuse-uring.c: what needs no kernel.  The rest is tested mounted.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fuse/fuse-internal.h"

static void every_possible_cpu_is_counted(void **state)
{
	(void)state;
	assert_int_equal(fuse_uring_parse_cpus("0\n"), 1);
	assert_int_equal(fuse_uring_parse_cpus("0-1\n"), 2);
	assert_int_equal(fuse_uring_parse_cpus("0-3,8-11,16"), 9);
	assert_int_equal(fuse_uring_parse_cpus("0-511\n"), 512);
}

static void what_is_no_list_gives_none(void **state)
{
	(void)state;
	assert_int_equal(fuse_uring_parse_cpus(""), 0);
	assert_int_equal(fuse_uring_parse_cpus("\n"), 0);
	assert_int_equal(fuse_uring_parse_cpus("all"), 0);
	assert_int_equal(fuse_uring_parse_cpus("0-"), 0);
	assert_int_equal(fuse_uring_parse_cpus("3-0"), 0);
	assert_int_equal(fuse_uring_parse_cpus("0-1;4"), 0);
	assert_int_equal(fuse_uring_parse_cpus("0-70000"), 0);
}

/* An answer finds its entry by this number alone. */
static void the_number_of_an_entry_leads_back_to_it(void **state)
{
	static _Alignas(FUSE_PAGE) char memory[2 * FUSE_SLOT_BYTES];
	struct fuse_worker w = { .index = 63, .memory = memory };
	struct fuse_slot *slot = fuse_slot_at(&w, 1);
	uint64_t number;

	(void)state;
	slot->worker = &w;
	assert_int_equal(fuse_slot_index(slot), 1);
	number = fuse_slot_number(slot);
	assert_true(number & FUSE_ENTRY_NUMBER);
	assert_false(number & FUSE_RESENT);
	assert_int_equal(number >> 32 & (FUSE_WORKERS_MAX - 1), 63);
	assert_int_equal((uint32_t)number, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_possible_cpu_is_counted),
		cmocka_unit_test(what_is_no_list_gives_none),
		cmocka_unit_test(the_number_of_an_entry_leads_back_to_it),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("fuse-uring", tests, NULL, NULL);
}
