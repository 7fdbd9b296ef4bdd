/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for daemon/handover.c: descriptors come and go as sd_listen_fds(3) has it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/handover.h"

static void set_environment(int pid_offset, const char *count, const char *names)
{
	char pid[24];

	snprintf(pid, sizeof(pid), "%d", (int)getpid() + pid_offset);
	setenv("LISTEN_PID", pid, 1);
	setenv("LISTEN_FDS", count, 1);
	if (names)
		setenv("LISTEN_FDNAMES", names, 1);
}

static ino_t inode_of(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? 0 : st.st_ino;
}

static int memory(void)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

/* In a child, whose descriptors from 3 on nobody misses. */
static void in_a_child(int (*fn)(void))
{
	int status;
	pid_t pid = fork();

	if (!pid)
		_exit(fn());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static int round_trip(void)
{
	struct legacy legacy = { .fds = { 0 } }, got;
	ino_t state, connection;

	/* In the way of each other. */
	for (int i = 0; i < 4; i++)
		memory();
	legacy.fds[LEGACY_CONNECTION] = 4;
	legacy.fds[LEGACY_STATE] = 3;
	connection = inode_of(4);
	state = inode_of(3);
	if (legacy_prepare_exec(&legacy) || fcntl(3, F_GETFD) || fcntl(4, F_GETFD))
		return 1;
	legacy_take(&got);
	if (inode_of(got.fds[LEGACY_CONNECTION]) != connection ||
	    inode_of(got.fds[LEGACY_STATE]) != state || got.fds[LEGACY_REDO] ||
	    got.fds[LEGACY_LIFE] || !legacy_is_whole(&got))
		return 2;
	if (!(fcntl(3, F_GETFD) & FD_CLOEXEC) || getenv("LISTEN_FDS") || getenv("LISTEN_PID") ||
	    getenv("LISTEN_FDNAMES"))
		return 3;
	legacy_close(&got);
	return legacy_is_whole(&got) || fcntl(3, F_GETFD) >= 0 ? 4 : 0;
}

static void what_is_prepared_is_what_is_taken(void **state)
{
	(void)state;
	in_a_child(round_trip);
}

static int strange(void)
{
	struct legacy got;

	for (int i = 0; i < 6; i++)
		memory();
	set_environment(0, "4", "redo:foreign:redo:state");
	legacy_take(&got);
	/* The second of a name and an unknown one are closed. */
	return got.fds[LEGACY_REDO] != 3 || got.fds[LEGACY_STATE] != 6 ||
	       got.fds[LEGACY_CONNECTION] || legacy_is_whole(&got) || fcntl(4, F_GETFD) >= 0 ||
	       fcntl(5, F_GETFD) >= 0 || fcntl(7, F_GETFD) < 0;
}

static void unknown_descriptors_are_closed(void **state)
{
	(void)state;
	in_a_child(strange);
}

static int not_for_us(void)
{
	struct legacy got;

	memory();
	set_environment(1, "1", "connection");
	legacy_take(&got);
	if (got.fds[LEGACY_CONNECTION] || fcntl(3, F_GETFD) < 0)
		return 1;
	set_environment(0, "1000000", "connection");
	legacy_take(&got);
	if (got.fds[LEGACY_CONNECTION])
		return 2;
	set_environment(0, "1", NULL); /* a manager that names nothing */
	legacy_take(&got);
	return got.fds[LEGACY_CONNECTION] ? 3 : 0;
}

static void what_is_meant_for_another_process_is_left_alone(void **state)
{
	(void)state;
	in_a_child(not_for_us);
}

static void each_kind_has_a_name(void **state)
{
	(void)state;
	for (int i = 0; i < NR_LEGACIES; i++)
		assert_int_equal(legacy_kind_of(legacy_name((enum legacy_kind)i)), i);
	assert_int_equal(legacy_kind_of(""), NR_LEGACIES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_prepared_is_what_is_taken),
		cmocka_unit_test(unknown_descriptors_are_closed),
		cmocka_unit_test(what_is_meant_for_another_process_is_left_alone),
		cmocka_unit_test(each_kind_has_a_name),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
