/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for control/status-document.c: the keys scripts rely on, order, origins, and that a
 * long list is made in time.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control/status-document.h"
#include "fake-pool.h"
#include "util/clock.h"

static int open_pool(void **state)
{
	const struct pool_options options = { .read_only = false };
	struct pool *pool;

	if (pool_open(&options, &pool, NULL))
		return -1;
	*state = pool;
	return 0;
}

static int close_pool(void **state)
{
	return pool_close(*state);
}

static void command(struct pool *pool, enum pool_command_op op, const char *name,
		    const char *new_name)
{
	struct pool_command cmd = { .op = op, .size_bytes = 1 << 20 };

	snprintf(cmd.name, sizeof(cmd.name), "%s", name);
	snprintf(cmd.new_name, sizeof(cmd.new_name), "%s", new_name);
	assert_int_equal(pool_command_run(pool, &cmd), 0);
}

static const char *name_at(json_t *list, size_t i, const char *key)
{
	return json_string_value(json_object_get(json_array_get(list, i), key));
}

static void the_status_has_its_keys(void **state)
{
	static const char *const numbers[] = {
		"pid",           "transaction_id", "block_size",
		"data_used",     "data_total",     "data_allocated",
		"metadata_used", "metadata_total", "metadata_reserve",
		"virtual_total"
	};
	json_t *s = status_document(*state, NULL, "/dev/fuse", NULL);

	assert_non_null(s);
	for (size_t i = 0; i < ARRAY_SIZE(numbers); i++)
		assert_true(json_is_integer(json_object_get(s, numbers[i])));
	assert_string_equal(json_string_value(json_object_get(s, "mode")), "rw");
	assert_string_equal(json_string_value(json_object_get(s, "reason")), "");
	assert_true(json_is_false(json_object_get(s, "needs_check")));
	assert_int_equal(json_object_size(json_object_get(s, "statistics")),
			 sizeof(struct pool_stats) / sizeof(uint64_t));
	assert_int_equal(json_object_size(json_object_get(s, "cache")), 5);
	assert_string_equal(json_string_value(json_object_get(s, "transport")), "/dev/fuse");
	json_decref(s);
}

static void a_list_is_in_order_of_name_and_tells_origins(void **state)
{
	json_t *list;

	command(*state, POOL_CREATE, "zebra", "");
	command(*state, POOL_SNAPSHOT, "zebra", "ant");
	command(*state, POOL_CREATE, "mouse", "");
	command(*state, POOL_SNAPSHOT, "mouse", "bee");
	command(*state, POOL_DELETE, "mouse", "");
	list = list_document(*state);
	assert_int_equal(json_array_size(list), 3);
	assert_string_equal(name_at(list, 0, "name"), "ant");
	assert_string_equal(name_at(list, 0, "origin"), "zebra");
	assert_string_equal(name_at(list, 1, "name"), "bee");
	assert_true(json_is_null(json_object_get(json_array_get(list, 1), "origin")));
	assert_string_equal(name_at(list, 2, "name"), "zebra");
	assert_true(json_is_null(json_object_get(json_array_get(list, 2), "origin")));
	json_decref(list);
}

static void an_empty_pool_has_an_empty_list(void **state)
{
	json_t *list = list_document(*state);

	assert_true(json_is_array(list));
	assert_int_equal(json_array_size(list), 0);
	json_decref(list);
}

static void a_long_list_is_made_in_time(void **state)
{
	enum { NR = 5000 };
	uint64_t start, usec;
	json_t *list;
	char name[32], origin[32] = "";

	for (unsigned i = 0; i < NR; i++) {
		snprintf(name, sizeof(name), "volume-%08x", i * 2654435761u);
		command(*state, i ? POOL_SNAPSHOT : POOL_CREATE, i ? origin : name, name);
		memcpy(origin, name, sizeof(name));
	}
	start = time_monotonic_usec();
	list = list_document(*state);
	usec = time_monotonic_usec() - start;
	print_message("# %u volumes in %u usec\n", NR, (unsigned)usec);
	assert_int_equal(json_array_size(list), NR);
	for (size_t i = 1; i < NR; i++)
		assert_true(strcmp(name_at(list, i - 1, "name"), name_at(list, i, "name")) < 0);
	/* A hundredfold of what it takes; a list that is made by searching takes more. */
	assert_true(usec < 5000000);
	json_decref(list);
}

static void the_files_are_text_and_json(void **state)
{
	char *text, *json;
	json_t *parsed;

	command(*state, POOL_CREATE, "v", "");
	text = status_render_text(*state, NULL, "/dev/fuse", NULL);
	json = status_render_json(*state, NULL, "/dev/fuse", NULL);
	assert_non_null(strstr(text, "mode         rw\n"));
	assert_non_null(strstr(text, "volumes      1, 1M together\n"));
	assert_non_null(strstr(text, "transport    /dev/fuse\n"));
	assert_int_equal(text[strlen(text) - 1], '\n');
	parsed = json_loads(json, 0, NULL);
	assert_int_equal(json_integer_value(json_object_get(parsed, "virtual_total")), 1 << 20);
	json_decref(parsed);
	free(json);
	free(text);
}

#define POOL_TEST(f) cmocka_unit_test_setup_teardown(f, open_pool, close_pool)

int main(void)
{
	const struct CMUnitTest tests[] = {
		POOL_TEST(the_status_has_its_keys),
		POOL_TEST(a_list_is_in_order_of_name_and_tells_origins),
		POOL_TEST(an_empty_pool_has_an_empty_list),
		POOL_TEST(a_long_list_is_made_in_time),
		POOL_TEST(the_files_are_text_and_json),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
