/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for control/control-commands.c: what each method answers, and that nothing is done
 * unless every parameter is right.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control/control-internal.h"
#include "fake-pool.h"
#include "thinpoold/control.h"

#define ORG CONTROL_INTERFACE "."
#define LETTERS "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" /* 64 */

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

/* A daemon that has been restarted so many times, and can be once more. */
struct fake_service {
	unsigned restarts;
	int r;
};

static int fake_restart(void *ctx, unsigned *ret_restarts, struct tp_error *error)
{
	struct fake_service *s = ctx;

	if (s->r)
		return tp_error(error, s->r, "the new program is broken");
	*ret_restarts = s->restarts++;
	return 0;
}

static void fake_get_restarts(void *ctx, unsigned *ret_restarts, uint64_t *ret_pause_usec)
{
	struct fake_service *s = ctx;

	*ret_restarts = s->restarts;
	*ret_pause_usec = 1000 * s->restarts;
}

static const char *fake_transport(void *ctx)
{
	(void)ctx;
	return "pigeons";
}

static void fake_get_hook(void *ctx, struct hook_status *ret_status)
{
	(void)ctx;
	*ret_status = (struct hook_status){ .runs = 3, .failures = 1 };
}

static struct fake_service fake = { .restarts = 4 };
static const struct control_service service = { .restart = fake_restart,
						.get_hook = fake_get_hook,
						.get_restarts = fake_get_restarts,
						.transport = fake_transport,
						.ctx = &fake };

/* The reply to @request, as JSON with sorted keys, which is good until the next call. */
static const char *answer(struct pool *pool, const char *request)
{
	static char text[1 << 16];
	struct control_call call = { .pool = pool, .service = &service };
	json_t *json = json_loads(request, JSON_ALLOW_NUL, NULL);
	size_t len;

	assert_non_null(json);
	if (control_call_begin(&call, json) == CONTROL_COMMAND)
		control_call_finish(&call, pool_command_run(pool, &call.command));
	json_decref(json);
	assert_non_null(call.reply);
	len = json_dumpb(call.reply, text, sizeof(text) - 1, JSON_SORT_KEYS);
	assert_true(len < sizeof(text));
	text[len] = '\0';
	json_decref(call.reply);
	return text;
}

static void assert_answer(struct pool *pool, const char *method, const char *parameters,
			  const char *reply)
{
	char request[2048];

	assert_true(snprintf(request, sizeof(request), "{\"method\": \"%s\", \"parameters\": %s}",
			     method, parameters) < (int)sizeof(request));
	assert_string_equal(answer(pool, request), reply);
}

static void assert_error(struct pool *pool, const char *method, const char *parameters,
			 const char *error)
{
	char request[2048], start[64];

	assert_true(snprintf(request, sizeof(request), "{\"method\": \"%s\", \"parameters\": %s}",
			     method, parameters) < (int)sizeof(request));
	snprintf(start, sizeof(start), "{\"error\": \"%s\", ", error);
	assert_memory_equal(answer(pool, request), start, strlen(start));
}

static void assert_invalid(struct pool *pool, const char *method, const char *parameters,
			   const char *parameter, const char *what)
{
	char reply[2048];

	snprintf(reply, sizeof(reply),
		 "{\"error\": \"org.varlink.service.InvalidParameter\", \"parameters\": "
		 "{\"message\": \"parameter \\\"%s\\\": %s\", \"parameter\": \"%s\"}}",
		 parameter, what, parameter);
	assert_answer(pool, method, parameters, reply);
}

static unsigned nr_volumes(struct pool *pool)
{
	struct fake_pool_counts counts;

	fake_pool_get_counts(pool, &counts);
	return counts.volumes;
}

static struct volume_info info_of(struct pool *pool, const char *name)
{
	struct volume_info info;
	struct volume *v;

	assert_int_equal(pool_volume_find(pool, name, &v), 0);
	volume_get_info(v, &info);
	volume_put(v);
	return info;
}

static void each_method_does_what_it_says(void **state)
{
	struct pool *pool = *state;

	assert_answer(pool, ORG "Create", "{\"name\": \"v\", \"size\": 1048576}",
		      "{\"parameters\": {\"id\": 0}}");
	assert_int_equal(info_of(pool, "v").size_bytes, 1048576);
	assert_answer(pool, ORG "Snapshot", "{\"origin\": \"v\", \"name\": \"s\"}",
		      "{\"parameters\": {\"id\": 1}}");
	assert_false(info_of(pool, "s").read_only);
	assert_answer(pool, ORG "Snapshot",
		      "{\"origin\": \"v\", \"name\": \"r\", \"read_only\": true}",
		      "{\"parameters\": {\"id\": 2}}");
	assert_true(info_of(pool, "r").read_only);
	assert_answer(pool, ORG "Rename", "{\"name\": \"s\", \"new_name\": \"t\"}",
		      "{\"parameters\": {}}");
	assert_int_equal(info_of(pool, "t").id, 1);
	assert_answer(pool, ORG "Resize", "{\"name\": \"t\", \"size\": 2097152}",
		      "{\"parameters\": {}}");
	assert_int_equal(info_of(pool, "t").size_bytes, 2097152);
	assert_answer(pool, ORG "Resize", "{\"name\": \"t\", \"size\": 0, \"shrink\": true}",
		      "{\"parameters\": {}}");
	assert_int_equal(info_of(pool, "t").size_bytes, 0);
	assert_answer(pool, ORG "Delete", "{\"name\": \"t\"}", "{\"parameters\": {}}");
	assert_int_equal(nr_volumes(pool), 2);
}

static void what_the_pool_refuses_is_told_by_the_right_error(void **state)
{
	struct pool *pool = *state;
	struct volume *v;

	answer(pool,
	       "{\"method\": \"" ORG "Create\", \"parameters\": {\"name\": \"v\", \"size\": 9}}");
	answer(pool,
	       "{\"method\": \"" ORG "Create\", \"parameters\": {\"name\": \"w\", \"size\": 9}}");
	assert_error(pool, ORG "Create", "{\"name\": \"v\", \"size\": 1}", ORG "Exists");
	assert_error(pool, ORG "Create", "{\"name\": \".v\", \"size\": 1}", ORG "Failed");
	assert_error(pool, ORG "Delete", "{\"name\": \"none\"}", ORG "NotFound");
	assert_error(pool, ORG "Snapshot", "{\"origin\": \"none\", \"name\": \"x\"}",
		     ORG "NotFound");
	assert_error(pool, ORG "Rename", "{\"name\": \"v\", \"new_name\": \"w\"}", ORG "Exists");
	assert_error(pool, ORG "Resize", "{\"name\": \"v\", \"size\": 1}", ORG "Failed");

	assert_int_equal(pool_volume_find(pool, "v", &v), 0);
	assert_int_equal(volume_open(v, false), 0);
	assert_error(pool, ORG "Delete", "{\"name\": \"v\"}", ORG "Busy");
	volume_close(v);
	volume_put(v);

	fake_pool_fail_commands(pool, -ENOSPC, "no room at all");
	assert_answer(pool, ORG "Delete", "{\"name\": \"v\"}",
		      "{\"error\": \"org.thinpoold.NoSpace\", \"parameters\": "
		      "{\"message\": \"no room at all\"}}");
	fake_pool_fail_commands(pool, -EIO, "");
	assert_answer(pool, ORG "Delete", "{\"name\": \"v\"}",
		      "{\"error\": \"org.thinpoold.Failed\", \"parameters\": "
		      "{\"message\": \"Input/output error\"}}");
}

static void a_message_that_was_cut_inside_a_character_still_arrives(void **state)
{
	struct pool *pool = *state;

	fake_pool_fail_commands(pool, -EEXIST, "caf\xc3");
	assert_answer(pool, ORG "Delete", "{\"name\": \"v\"}",
		      "{\"error\": \"org.thinpoold.Exists\", \"parameters\": "
		      "{\"message\": \"caf?\"}}");
}

static void parameters_are_checked(void **state)
{
	static const struct {
		const char *method, *parameters, *parameter, *what;
	} cases[] = {
		{ "Create", "{}", "name", "is missing" },
		{ "Create", "{\"name\": \"v\"}", "size", "is missing" },
		{ "Create", "{\"name\": 1, \"size\": 1}", "name", "must be a string" },
		{ "Create", "{\"name\": null, \"size\": 1}", "name", "must be a string" },
		{ "Create", "{\"name\": \"v\\u0000w\", \"size\": 1}", "name",
		  "must not contain a NUL" },
		{ "Create", "{\"name\": \"" LETTERS LETTERS LETTERS LETTERS "\", \"size\": 1}",
		  "name", "is longer than 255 bytes" },
		{ "Create", "{\"name\": \"v\", \"size\": \"1\"}", "size",
		  "must be a whole number, not negative" },
		{ "Create", "{\"name\": \"v\", \"size\": -1}", "size",
		  "must be a whole number, not negative" },
		{ "Create", "{\"name\": \"v\", \"size\": 1.5}", "size",
		  "must be a whole number, not negative" },
		{ "Create", "{\"name\": \"v\", \"size\": 1, \"colour\": \"red\"}", "colour",
		  "is unknown to this method" },
		{ "Create", "{\"name\": \"v\", \"size\": 1, \"\": 1}", "",
		  "is unknown to this method" },
		{ "Create", "[\"v\", 1]", "parameters", "must be an object" },
		{ "Create", "null", "parameters", "must be an object" },
		{ "Snapshot", "{\"origin\": \"v\", \"name\": \"s\", \"read_only\": 1}", "read_only",
		  "must be true or false" },
		{ "Resize", "{\"name\": \"v\", \"size\": 1, \"shrink\": null}", "shrink",
		  "must be true or false" },
		{ "Rename", "{\"name\": \"v\", \"newname\": \"w\"}", "new_name", "is missing" },
		{ "Delete", "{\"name\": \"v\", \"force\": true}", "force",
		  "is unknown to this method" },
		{ "List", "{\"all\": true}", "all", "is unknown to this method" },
	};
	char method[64];

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		snprintf(method, sizeof(method), ORG "%s", cases[i].method);
		assert_invalid(*state, method, cases[i].parameters, cases[i].parameter,
			       cases[i].what);
	}
	assert_int_equal(nr_volumes(*state), 0);
}

/* 63 letters, then a character of two bytes: the message holds 64 bytes of the name. */
static void an_unknown_parameter_of_any_name_is_refused(void **state)
{
	char name[80], parameters[256];

	snprintf(name, sizeof(name), "%.63s\xc3\xa9", LETTERS);
	snprintf(parameters, sizeof(parameters), "{\"name\": \"v\", \"size\": 1, \"%s\": 1}", name);
	assert_error(*state, ORG "Create", parameters, "org.varlink.service.InvalidParameter");
	assert_int_equal(nr_volumes(*state), 0);
}

static void names_of_255_bytes_are_taken(void **state)
{
	char name[256], parameters[320];

	snprintf(name, sizeof(name), "%.255s", LETTERS LETTERS LETTERS LETTERS);
	assert_int_equal(strlen(name), 255);
	snprintf(parameters, sizeof(parameters), "{\"name\": \"%s\", \"size\": 1}", name);
	assert_answer(*state, ORG "Create", parameters, "{\"parameters\": {\"id\": 0}}");
	assert_int_equal(info_of(*state, name).id, 0);
}

static void what_is_no_call_is_refused(void **state)
{
	assert_string_equal(answer(*state, "{}"),
			    "{\"error\": \"org.thinpoold.Failed\", \"parameters\": "
			    "{\"message\": \"a call needs a \\\"method\\\"\"}}");
	assert_string_equal(answer(*state, "{\"method\": 7}"),
			    "{\"error\": \"org.thinpoold.Failed\", \"parameters\": "
			    "{\"message\": \"a call needs a \\\"method\\\"\"}}");
	assert_answer(*state, ORG "Explode", "{}",
		      "{\"error\": \"org.varlink.service.MethodNotFound\", \"parameters\": "
		      "{\"method\": \"org.thinpoold.Explode\"}}");
	assert_string_equal(answer(*state, "{\"method\": \"" ORG "List\", \"oneway\": true}"),
			    "{\"error\": \"org.varlink.service.InvalidParameter\", "
			    "\"parameters\": {\"message\": \"parameter \\\"oneway\\\": is no part "
			    "of a call\", \"parameter\": \"oneway\"}}");
}

static void parameters_may_be_left_out_when_there_are_none(void **state)
{
	assert_string_equal(answer(*state, "{\"method\": \"" ORG "List\"}"),
			    "{\"parameters\": {\"volumes\": []}}");
	assert_string_equal(answer(*state, "{\"method\": \"" ORG "List\", \"more\": false}"),
			    "{\"parameters\": {\"volumes\": []}}");
	assert_string_equal(answer(*state, "{\"method\": \"" ORG "Delete\"}"),
			    "{\"error\": \"org.varlink.service.InvalidParameter\", "
			    "\"parameters\": {\"message\": \"parameter \\\"name\\\": is missing\", "
			    "\"parameter\": \"name\"}}");
}

static void a_restart_tells_what_to_compare_with(void **state)
{
	assert_answer(*state, ORG "Restart", "{}", "{\"parameters\": {\"restarts\": 4}}");
	assert_answer(*state, ORG "GetRestarts", "{}",
		      "{\"parameters\": {\"pause_usec\": 5000, \"restarts\": 5}}");
	fake.r = -ENOEXEC;
	assert_answer(*state, ORG "Restart", "{}",
		      "{\"error\": \"org.thinpoold.Failed\", \"parameters\": {\"message\": \"the "
		      "new program is broken\"}}");
	fake.r = 0;
}

static void the_interface_describes_itself(void **state)
{
	const char *text;

	assert_error(*state, "org.varlink.service.GetInterfaceDescription",
		     "{\"interface\": \"org.nobody\"}", "org.varlink.service.InterfaceNotFound");
	assert_non_null(strstr(answer(*state, "{\"method\": \"org.varlink.service.GetInfo\"}"),
			       "\"org.thinpoold\""));
	text = answer(*state, "{\"method\": \"org.varlink.service.GetInterfaceDescription\", "
			      "\"parameters\": {\"interface\": \"org.thinpoold\"}}");
	for (const char *const *m = (const char *[]){ "GetStatus", "List", "Create", "Snapshot",
						      "Delete", "Rename", "Resize", "MetadataSnap",
						      "GetRestarts", "Restart", NULL };
	     *m; m++) {
		char word[32];

		snprintf(word, sizeof(word), "method %s(", *m);
		assert_non_null(strstr(text, word));
	}
}

/* Each key of the documents is in the description, so that neither grows alone. */
static void the_description_has_every_key(void **state)
{
	json_t *reply, *object;
	const char *key, *text;
	json_t *value;

	answer(*state,
	       "{\"method\": \"" ORG "Create\", \"parameters\": {\"name\": \"v\", \"size\": 9}}");
	reply = json_loads(answer(*state, "{\"method\": \"" ORG "List\"}"), 0, NULL);
	object =
		json_array_get(json_object_get(json_object_get(reply, "parameters"), "volumes"), 0);
	json_t *status = json_loads(answer(*state, "{\"method\": \"" ORG "GetStatus\"}"), 0, NULL);

	assert_non_null(object);
	assert_non_null(status);
	json_object_update_missing(object, json_object_get(status, "parameters"));
	text = answer(*state, "{\"method\": \"org.varlink.service.GetInterfaceDescription\", "
			      "\"parameters\": {\"interface\": \"org.thinpoold\"}}");
	json_object_foreach(object, key, value)
	{
		char word[64];

		snprintf(word, sizeof(word), " %s: ", key);
		if (!strstr(text, word))
			fail_msg("\"%s\" is not described", key);
	}
	json_decref(status);
	json_decref(reply);
}

#define POOL_TEST(f) cmocka_unit_test_setup_teardown(f, open_pool, close_pool)

int main(void)
{
	const struct CMUnitTest tests[] = {
		POOL_TEST(each_method_does_what_it_says),
		POOL_TEST(what_the_pool_refuses_is_told_by_the_right_error),
		POOL_TEST(a_message_that_was_cut_inside_a_character_still_arrives),
		POOL_TEST(parameters_are_checked),
		POOL_TEST(an_unknown_parameter_of_any_name_is_refused),
		POOL_TEST(names_of_255_bytes_are_taken),
		POOL_TEST(what_is_no_call_is_refused),
		POOL_TEST(parameters_may_be_left_out_when_there_are_none),
		POOL_TEST(a_restart_tells_what_to_compare_with),
		POOL_TEST(the_interface_describes_itself),
		POOL_TEST(the_description_has_every_key),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
