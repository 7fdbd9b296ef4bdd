/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for reclaim/pressure-source.c: what a service manager may name, what is written into
 * it, what counts as an event, and what is wrong with the rest.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "reclaim/pressure-source.h"

static struct {
	char directory[64], path[96];
} bench;

static int set_up(void **state)
{
	(void)state;
	snprintf(bench.directory, sizeof(bench.directory), "/tmp/test-pressure-XXXXXX");
	if (!mkdtemp(bench.directory))
		return -1;
	snprintf(bench.path, sizeof(bench.path), "%s/watch", bench.directory);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	unlink(bench.path);
	return rmdir(bench.directory);
}

static struct pressure_fd watch(const char *text)
{
	struct tp_error error = { "" };
	struct pressure_fd f = { .fd = -1 };

	if (pressure_fd_open_watch(bench.path, text, &f, &error))
		fail_msg("%s", error.text);
	return f;
}

static void assert_refused(const char *path, const char *text, int r, const char *words)
{
	struct tp_error error = { "" };
	struct pressure_fd f = { .fd = -7 };

	assert_int_equal(pressure_fd_open_watch(path, text, &f, &error), r);
	assert_int_equal(f.fd, -7);
	if (!strstr(error.text, words))
		fail_msg("\"%s\" is not in \"%s\"", words, error.text);
}

static bool is_ready(const struct pressure_fd *f)
{
	struct pollfd polled = { .fd = f->fd, .events = f->events };

	return poll(&polled, 1, 0) == 1;
}

static void a_fifo_is_ready_when_something_was_written(void **state)
{
	struct pressure_fd f;
	int writer;

	(void)state;
	assert_int_equal(mkfifo(bench.path, 0600), 0);
	f = watch(NULL);
	assert_int_equal(f.events, POLLIN);
	assert_false(is_ready(&f));
	writer = open(bench.path, O_WRONLY);
	assert_int_equal(write(writer, "now", 3), 3);
	assert_true(is_ready(&f));
	assert_int_equal(pressure_fd_take(&f, POLLIN), 1);
	assert_false(is_ready(&f));
	/* The last writer may go: a manager that is started again opens it anew. */
	close(writer);
	assert_false(is_ready(&f));
	assert_int_equal(pressure_fd_take(&f, POLLIN), 0);
	close(f.fd);
}

static void a_regular_file_gets_the_decoded_bytes(void **state)
{
	static const struct {
		const char *text, *bytes;
		size_t len;
	} cases[] = {
		{ "c29tZSAyMDAwMDAgMjAwMDAwMAA=", "some 200000 2000000", 20 },
		{ "YQ==", "a", 1 },
		{ "YWI=", "ab", 2 },
		{ "YWJj", "abc", 3 },
		{ "+/+/", "\xfb\xff\xbf", 3 },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		char back[64];
		int fd = open(bench.path, O_RDWR | O_CREAT | O_TRUNC, 0600);
		struct pressure_fd f = watch(cases[i].text);

		assert_int_equal(f.events, POLLPRI);
		assert_int_equal(read(fd, back, sizeof(back)), cases[i].len);
		assert_memory_equal(back, cases[i].bytes, cases[i].len);
		close(f.fd);
		close(fd);
	}
}

static void a_socket_gets_the_bytes_and_is_lost_when_it_ends(void **state)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int listening = socket(AF_UNIX, SOCK_STREAM, 0), peer;
	struct pressure_fd f;
	char back[8];

	(void)state;
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", bench.path);
	assert_int_equal(bind(listening, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(listening, 1), 0);
	f = watch("YWJj");
	peer = accept(listening, NULL, NULL);
	assert_int_equal(read(peer, back, sizeof(back)), 3);
	assert_memory_equal(back, "abc", 3);
	assert_false(is_ready(&f));
	assert_int_equal(write(peer, "1", 1), 1);
	assert_int_equal(pressure_fd_take(&f, POLLIN), 1);
	/* What was sent last counts, and then comes the end. */
	assert_int_equal(write(peer, "2", 1), 1);
	close(peer);
	assert_int_equal(pressure_fd_take(&f, POLLIN | POLLHUP), 1);
	assert_true(is_ready(&f));
	assert_int_equal(pressure_fd_take(&f, POLLIN | POLLHUP), -EPIPE);
	close(f.fd);
	close(listening);
}

static void what_cannot_be_watched_is_told(void **state)
{
	static const char *const bad[] = { "YWJ", "YW=j", "Y===", "====", "YWJ\n", "YW J" };

	(void)state;
	assert_refused(NULL, NULL, -ENOENT, "is not set");
	assert_refused("", NULL, -ENOENT, "is not set");
	assert_refused("run/watch", NULL, -EINVAL, "no absolute path");
	assert_refused(bench.path, NULL, -ENOENT, bench.path);
	close(open(bench.path, O_RDWR | O_CREAT, 0600));
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_refused(bench.path, bad[i], -EINVAL, "no Base64");
}

static void only_dev_null_forbids_watching(void **state)
{
	(void)state;
	assert_true(pressure_watch_is_forbidden("/dev/null"));
	assert_false(pressure_watch_is_forbidden("/dev/zero"));
	assert_false(pressure_watch_is_forbidden(NULL));
}

static void a_pressure_file_that_is_none_is_told(void **state)
{
	struct tp_error error = { "" };
	struct pressure_fd f = { .fd = -7 };

	(void)state;
	assert_int_equal(pressure_fd_open_psi(bench.path, 1000, 2000000, &f, &error), -ENOENT);
	assert_non_null(strstr(error.text, bench.path));
	assert_int_equal(f.fd, -7);
}

/* As far as this machine has them. */
static void the_kernel_takes_our_triggers(void **state)
{
	struct tp_error error = { "" };
	struct pressure_fd f;

	(void)state;
	if (access("/proc/pressure/memory", R_OK | W_OK))
		skip();
	assert_int_equal(pressure_fd_open_psi("/proc/pressure/memory", 200000, 2000000, &f, &error),
			 0);
	assert_int_equal(f.events, POLLPRI);
	assert_int_equal(pressure_fd_take(&f, POLLPRI), 1);
	assert_int_equal(pressure_fd_take(&f, 0), 0);
	assert_int_equal(pressure_fd_take(&f, POLLPRI | POLLERR), -ENODEV);
	close(f.fd);
	/* Longer than the window: the kernel says no, and so do we. */
	assert_int_equal(
		pressure_fd_open_psi("/proc/pressure/memory", 3000000, 2000000, &f, &error),
		-EINVAL);
	error.text[0] = '\0';
	if (pressure_fd_open_cgroup(200000, 2000000, &f, &error) == 0)
		close(f.fd);
	else
		assert_true(error.text[0]);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_fifo_is_ready_when_something_was_written),
		TEST(a_regular_file_gets_the_decoded_bytes),
		TEST(a_socket_gets_the_bytes_and_is_lost_when_it_ends),
		TEST(what_cannot_be_watched_is_told),
		TEST(only_dev_null_forbids_watching),
		TEST(a_pressure_file_that_is_none_is_told),
		TEST(the_kernel_takes_our_triggers),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("pressure-source", tests, NULL, NULL);
}
