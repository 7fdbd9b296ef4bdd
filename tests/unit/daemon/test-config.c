/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for daemon/config.c: what is accepted, and that every mistake is told with its line
 * and changes nothing.
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
#include <unistd.h>

#include "daemon/config.h"

static char path[] = "/tmp/test-config-XXXXXX";

static int make_file(void **state)
{
	int fd = mkstemp(path);

	(void)state;
	return fd < 0 || close(fd);
}

static int remove_file(void **state)
{
	(void)state;
	return unlink(path);
}

static void write_bytes(const char *text, size_t len)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	assert_int_equal(fwrite(text, 1, len, f), len);
	assert_int_equal(fclose(f), 0);
}

static void write_text(const char *text)
{
	write_bytes(text, strlen(text));
}

static void defaults_are_the_documented_ones(void **state)
{
	struct config cfg;

	(void)state;
	config_set_defaults(&cfg);
	assert_int_equal(cfg.cache_size, 64 << 20);
	assert_int_equal(cfg.commit_interval_usec, 1000000);
	assert_int_equal(cfg.discard, POOL_DISCARD_PASSDOWN);
	assert_true(cfg.zero_new_blocks);
	assert_true(cfg.queue_if_no_space);
	assert_int_equal(cfg.no_space_timeout_usec, 60000000);
	assert_int_equal(cfg.low_water_data.percent, 10);
	assert_int_equal(cfg.low_water_metadata.percent, 10);
	assert_string_equal(cfg.on_low_space, "");
	assert_int_equal(cfg.on_low_space_timeout_usec, 60000000);
	assert_int_equal(cfg.autoextend_threshold, 80);
	assert_int_equal(cfg.autoextend_percent, 20);
	assert_int_equal(cfg.max_size, 0);
	assert_int_equal(cfg.workers, 2);
	assert_int_equal(cfg.cache, CONFIG_CACHE_PAGES);
	assert_false(cfg.allow_other);
	assert_int_equal(cfg.max_background, 256);
	assert_int_equal(cfg.io_uring, CONFIG_IO_URING_AUTO);
	assert_int_equal(cfg.io_uring_depth, 320);
	assert_true(cfg.lock_memory);
	assert_int_equal(cfg.log_level, LOG_LEVEL_INFO);
}

static void every_key_is_read(void **state)
{
	struct tp_error error = { "" };
	struct config cfg;

	(void)state;
	write_text("# a comment\n"
		   "[pool]\n"
		   "cache_size = 8MiB ; after a value\n"
		   "commit_interval=0.25\n"
		   "discard = no_passdown\n"
		   "zero_new_blocks = no\n"
		   "no_space = error\n"
		   "no_space_timeout = 0\n"
		   "low_water_data = 25%\n"
		   "low_water_metadata = 3M\n"
		   "autoextend_threshold = 100%\n"
		   "autoextend_percent = 150%\n"
		   "max_size = 2T\n"
		   "on_low_space = /bin/sh\n"
		   "on_low_space_timeout = 5\n"
		   "[fuse]\n"
		   "workers = 7\n"
		   "cache = none\n"
		   "allow_other = yes\n"
		   "io_uring = yes\n"
		   "io_uring_depth = 960\n"
		   "[daemon]\n"
		   "lock_memory = no\n"
		   "log_level = debug\n");
	config_set_defaults(&cfg);
	assert_int_equal(config_read(path, &cfg, &error), 0);
	assert_int_equal(cfg.cache_size, 8 << 20);
	assert_int_equal(cfg.commit_interval_usec, 250000);
	assert_int_equal(cfg.discard, POOL_DISCARD_NO_PASSDOWN);
	assert_false(cfg.zero_new_blocks);
	assert_false(cfg.queue_if_no_space);
	assert_int_equal(cfg.no_space_timeout_usec, 0);
	assert_int_equal(cfg.low_water_data.percent, 25);
	assert_int_equal(cfg.low_water_data.bytes, 0);
	assert_int_equal(cfg.low_water_metadata.percent, 0);
	assert_int_equal(cfg.low_water_metadata.bytes, 3 << 20);
	assert_int_equal(cfg.autoextend_threshold, 100);
	assert_int_equal(cfg.autoextend_percent, 150);
	assert_int_equal(cfg.max_size, UINT64_C(2) << 40);
	assert_string_equal(cfg.on_low_space, "/bin/sh");
	assert_int_equal(cfg.on_low_space_timeout_usec, 5000000);
	assert_int_equal(cfg.workers, 7);
	assert_int_equal(cfg.cache, CONFIG_CACHE_NONE);
	assert_true(cfg.allow_other);
	assert_int_equal(cfg.io_uring, CONFIG_IO_URING_YES);
	assert_int_equal(cfg.io_uring_depth, 960);
	assert_false(cfg.lock_memory);
	assert_int_equal(cfg.log_level, LOG_LEVEL_DEBUG);
}

static void a_later_file_wins_only_where_it_speaks(void **state)
{
	struct config cfg;

	(void)state;
	config_set_defaults(&cfg);
	write_text("[pool]\ncache_size = 8M\ncommit_interval = 2\n");
	assert_int_equal(config_read(path, &cfg, NULL), 0);
	write_text("[pool]\ncache_size = 9M\n");
	assert_int_equal(config_read(path, &cfg, NULL), 0);
	assert_int_equal(cfg.cache_size, 9 << 20);
	assert_int_equal(cfg.commit_interval_usec, 2000000);
}

static void a_missing_file_is_told_apart(void **state)
{
	struct tp_error error = { "" };
	struct config cfg;

	(void)state;
	assert_int_equal(config_read("/nonexistent/thinpoold.conf", &cfg, &error), -ENOENT);
	assert_string_equal(error.text, "");
	assert_int_equal(config_read("/tmp", &cfg, &error), -EINVAL);
	assert_non_null(strstr(error.text, "/tmp: cannot be read"));
	assert_int_equal(config_read("/dev/null", &cfg, NULL), 0);
}

/* The text is refused, the line number and the word are told, and the configuration stays. */
static void expect_mistake(const char *text, size_t len, const char *line, const char *word)
{
	struct config cfg, before;
	struct tp_error error = { "" };
	char where[64];

	config_set_defaults(&cfg);
	before = cfg;
	write_bytes(text, len);
	assert_int_equal(config_read(path, &cfg, &error), -EINVAL);
	snprintf(where, sizeof(where), "%s:%s: ", path, line);
	if (strncmp(error.text, where, strlen(where)) || !strstr(error.text, word))
		fail_msg("\"%s\" does not begin with \"%s\" and name \"%s\"", error.text, where,
			 word);
	assert_memory_equal(&cfg, &before, sizeof(cfg));
}

static void mistakes_are_told_with_their_line(void **state)
{
	static const struct {
		const char *text, *line, *word;
	} mistakes[] = {
		{ "[pool]\n\ncash_size = 1M\n", "3", "cash_size" },
		{ "[pond]\ncache_size = 1M\n", "1", "[pond]" },
		{ "[pool]\n[empty]\n", "2", "[empty]" },
		{ "cache_size = 64M\n", "1", "before any [section]" },
		{ "[fuse]\ncache_size = 64M\n", "2", "cache_size" },
		{ "[pool]\ncache_size = 64X\n", "2", "64X" },
		{ "[pool]\ncache_size = 0\n", "2", "1M to 1T" },
		{ "[pool]\ncache_size = -1\n", "2", "-1" },
		{ "[pool]\ncache_size =\n", "2", "cache_size" },
		{ "[pool]\ncache_size = 99999999999999999999G\n", "2", "cache_size" },
		{ "[pool]\ncache_size = 8M\ncache_size = 9M\n", "3", "twice" },
		{ "[pool]\ncache_size = 8M\n  9M\n", "3", "indented" },
		{ "[pool]\n  cache_size = 8M\n", "2", "indented" },
		{ "[pool\nno_such = 1\n", "1", "lacks" },
		{ "[pool]\njust words\nno_such = 1\n", "2", "key = value" },
		{ "[pool]\ncommit_interval = 1s\n", "2", "1s" },
		{ "[pool]\nno_space_timeout = 0.0001\n", "2", "0.0001" },
		{ "[pool]\ncommit_interval = nan\n", "2", "nan" },
		{ "[pool]\ndiscard = Passdown\n", "2", "passdown, no_passdown or ignore" },
		{ "[fuse]\nworkers = 0\n", "2", "from 1 to 64" },
		{ "[fuse]\nworkers = 2.5\n", "2", "2.5" },
		{ "[fuse]\nmax_background = 1025\n", "2", "from 1 to 1024" },
		{ "[pool]\nlow_water_data = 100%\n", "2", "0% (none) to 99%" },
		{ "[pool]\nlow_water_data = %\n", "2", "low_water_data" },
		{ "[pool]\nlow_water_metadata = -5%\n", "2", "-5%" },
		{ "[pool]\nlow_water_metadata = 1.5%\n", "2", "1.5%" },
		{ "[pool]\nlow_water_metadata = much\n", "2", "or a size" },
		{ "[pool]\nautoextend_threshold = 80\n", "2", "1% to 100% (never)" },
		{ "[pool]\nautoextend_threshold = 0%\n", "2", "autoextend_threshold" },
		{ "[pool]\nautoextend_threshold = 101%\n", "2", "101%" },
		{ "[pool]\nautoextend_percent = %\n", "2", "1% to 1000%" },
		{ "[pool]\nautoextend_percent = 1001%\n", "2", "1001%" },
		{ "[pool]\nmax_size = 10%\n", "2", "or 0 for none" },
		{ "[pool]\non_low_space = sh\n", "2", "the absolute path of a program" },
		{ "[pool]\non_low_space = /nowhere/sh\n", "2", "/nowhere/sh" },
		{ "[pool]\non_low_space = /etc/passwd\n", "2", "that can be executed" },
		{ "[pool]\non_low_space = /bin\n", "2", "on_low_space" },
		{ "[pool]\non_low_space_timeout = 0\n", "2", "seconds from 1" },
		{ "[daemon]\nlock_memory = maybe\n", "2", "yes or no" },
		{ "[pool]\njust words\n", "2", "key = value" },
		{ "[pool]\ncache_size = 8M\xff\n", "2", "UTF-8" },
	};
	char long_line[CONFIG_LINE_MAX + 32] = "[pool]\n#";

	(void)state;
	for (size_t i = 0; i < sizeof(mistakes) / sizeof(mistakes[0]); i++)
		expect_mistake(mistakes[i].text, strlen(mistakes[i].text), mistakes[i].line,
			       mistakes[i].word);
	expect_mistake("[pool]\ncache_size = 8M\0x\n", 25, "2", "UTF-8");
	memset(long_line + 8, 'x', sizeof(long_line) - 8);
	expect_mistake(long_line, sizeof(long_line), "2", "longer than");
}

static void a_huge_file_is_refused(void **state)
{
	struct tp_error error = { "" };
	struct config cfg;
	char *text = malloc(CONFIG_FILE_MAX + 1);

	(void)state;
	assert_non_null(text);
	memset(text, '\n', CONFIG_FILE_MAX + 1);
	write_bytes(text, CONFIG_FILE_MAX + 1);
	free(text);
	assert_int_equal(config_read(path, &cfg, &error), -EINVAL);
	assert_non_null(strstr(error.text, "larger than"));
}

static void what_is_printed_reads_back(void **state)
{
	struct config cfg, back;
	FILE *f;

	(void)state;
	config_set_defaults(&cfg);
	cfg.cache_size = 12345678;
	cfg.commit_interval_usec = 20000;
	cfg.low_water_data = (struct pool_low_water){ .bytes = 1234567 };
	cfg.low_water_metadata = (struct pool_low_water){ .percent = 7 };
	cfg.cache = CONFIG_CACHE_NONE;
	cfg.log_level = LOG_LEVEL_WARN;
	f = fopen(path, "w");
	assert_non_null(f);
	config_print(&cfg, f);
	assert_int_equal(fclose(f), 0);
	config_set_defaults(&back);
	assert_int_equal(config_read(path, &back, NULL), 0);
	assert_memory_equal(&cfg, &back, sizeof(cfg));
}

static void what_can_change_at_run_time_does_and_the_rest_is_named(void **state)
{
	struct config cfg, fresh;
	struct config_changes changes;

	(void)state;
	config_set_defaults(&cfg);
	fresh = cfg;
	assert_int_equal(config_apply(&cfg, &fresh, &changes), 0);
	assert_string_equal(changes.made, "");
	assert_string_equal(changes.later, "");
	fresh.cache_size = 1 << 20;
	fresh.log_level = LOG_LEVEL_DEBUG;
	fresh.workers = 7;
	fresh.allow_other = true;
	assert_int_equal(config_apply(&cfg, &fresh, &changes), 0);
	assert_string_equal(changes.made, "cache_size = 1M, log_level = debug");
	assert_string_equal(changes.later, "workers, allow_other");
	assert_int_equal(cfg.cache_size, 1 << 20);
	assert_int_equal(cfg.log_level, LOG_LEVEL_DEBUG);
	assert_int_equal(cfg.workers, 2);
	assert_false(cfg.allow_other);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_can_change_at_run_time_does_and_the_rest_is_named),
		cmocka_unit_test(defaults_are_the_documented_ones),
		cmocka_unit_test(every_key_is_read),
		cmocka_unit_test(a_later_file_wins_only_where_it_speaks),
		cmocka_unit_test(a_missing_file_is_told_apart),
		cmocka_unit_test(mistakes_are_told_with_their_line),
		cmocka_unit_test(a_huge_file_is_refused),
		cmocka_unit_test(what_is_printed_reads_back),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("config", tests, make_file, remove_file);
}
