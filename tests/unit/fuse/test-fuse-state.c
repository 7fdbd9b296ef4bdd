/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for fuse/fuse-state.c: what a daemon entered is what the next one finds, at whatever
 * point the first one ended.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuse/fuse-state.h"

static int create(void **state)
{
	struct fuse_state *s;

	if (fuse_state_create(&s))
		return -1;
	*state = s;
	return 0;
}

static int destroy(void **state)
{
	*state = fuse_state_close(*state);
	return 0;
}

/* The daemon has died: all that is left is the descriptor. */
static struct fuse_state *next_daemon(void **state)
{
	int fd = fcntl(fuse_state_fd(*state), F_DUPFD_CLOEXEC, 3);
	struct tp_error error = { "" };
	struct fuse_state *s;

	assert_true(fd >= 0);
	fuse_state_close(*state);
	if (fuse_state_open(fd, &s, &error))
		fail_msg("%s", error.text);
	*state = s;
	return s;
}

static uint64_t open_handle(struct fuse_state *s, thin_id_t id, uint64_t unique, bool want_old)
{
	struct fuse_state_handle h = { .unique = unique, .generation = 7, .pool_handle = id + 100 };
	uint64_t fh;
	bool is_old;

	assert_int_equal(fuse_state_open_handle(s, &h, id, &fh, &is_old), 0);
	assert_int_equal(is_old, want_old);
	assert_int_equal(fuse_state_pool_handle(s, fh), id + 100);
	assert_int_equal(fuse_handle_id(fh), id);
	return fh;
}

static unsigned count_handles(struct fuse_state *s)
{
	uint32_t index = 0;
	unsigned n = 0;

	while (fuse_state_next_handle(s, &index))
		n++;
	return n;
}

static void handles_are_distinct_and_tell_their_volume(void **state)
{
	uint64_t a = open_handle(*state, 0, 1, false), b = open_handle(*state, 0, 2, false);
	uint64_t c = open_handle(*state, THIN_ID_MAX, 3, false);

	assert_true(a && b && c && a != b && b != c);
	assert_int_equal(count_handles(*state), 3);
}

static void an_open_handle_outlives_the_daemon(void **state)
{
	uint64_t a = open_handle(*state, 5, 1, false), b = open_handle(*state, 6, 2, false);
	const struct fuse_state_handle *h;
	struct fuse_state *s;
	uint32_t index = 0;

	assert_true(fuse_state_close_handle(*state, a));
	s = next_daemon(state);
	h = fuse_state_next_handle(s, &index);
	assert_non_null(h);
	assert_int_equal(atomic_load(&h->fh), b);
	assert_int_equal(h->generation, 7);
	assert_null(fuse_state_next_handle(s, &index));
	assert_true(fuse_state_close_handle(s, b));
	assert_int_equal(count_handles(s), 0);
}

static void an_open_that_comes_again_gets_the_handle_it_had(void **state)
{
	uint64_t a = open_handle(*state, 5, 40, false);
	struct fuse_state *s = next_daemon(state);

	assert_int_equal(open_handle(s, 5, 40 | FUSE_RESENT, true), a);
	assert_int_equal(open_handle(s, 5, 40 | FUSE_RESENT, true), a);
	/* One that had not been begun gets a new one. */
	assert_int_not_equal(open_handle(s, 5, 41 | FUSE_RESENT, false), a);
	assert_int_equal(open_handle(next_daemon(state), 5, 40 | FUSE_RESENT, true), a);
}

static void a_release_that_comes_again_closes_nothing_else(void **state)
{
	uint64_t a = open_handle(*state, 5, 1, false), b;

	assert_true(fuse_state_close_handle(*state, a));
	b = open_handle(next_daemon(state), 5, 2, false); /* takes the place of the first */
	assert_int_not_equal(a, b);
	assert_false(fuse_state_close_handle(*state, a));
	assert_int_equal(fuse_state_pool_handle(*state, a), POOL_NO_HANDLE);
	assert_int_equal(count_handles(*state), 1);
	assert_false(fuse_state_close_handle(*state, 0));
	assert_false(fuse_state_close_handle(*state, UINT64_MAX));
}

static void places_are_used_again(void **state)
{
	for (uint64_t round = 1; round < 1000000; round++)
		assert_true(fuse_state_close_handle(*state, open_handle(*state, 1, round, false)));
	assert_int_equal(count_handles(*state), 0);
}

static void a_full_table_is_told(void **state)
{
	struct fuse_state_handle h = { .unique = 1 };
	uint64_t fh;
	bool is_old;
	int r;

	for (; !(r = fuse_state_open_handle(*state, &h, 1, &fh, &is_old)); h.unique++)
		assert_true(h.unique < 10000000);
	assert_int_equal(r, -ENFILE);
	assert_int_equal(count_handles(*state), h.unique - 1);
	fuse_state_drop_handles_of(*state, 77);
	assert_int_equal(fuse_state_open_handle(*state, &h, 1, &fh, &is_old), 0);
}

static void a_change_is_known_by_its_request(void **state)
{
	struct fuse_change *a = fuse_state_begin_change(*state, 10, 3, FUSE_NO_VOLUME), *b;
	struct fuse_state *s;

	fuse_state_begin_change(*state, 11, 4, 5);
	fuse_change_done(a, -EEXIST, 9);
	s = next_daemon(state);
	a = fuse_state_find_change(s, 10 | FUSE_RESENT);
	b = fuse_state_find_change(s, 11 | FUSE_RESENT);
	assert_int_equal(atomic_load(&a->state), FUSE_CHANGE_DONE);
	assert_int_equal(a->result, -EEXIST);
	assert_int_equal(a->id, 9);
	assert_int_equal(atomic_load(&b->state), FUSE_CHANGE_BEGUN);
	assert_int_equal(b->source, 4);
	assert_int_equal(b->target, 5);
	assert_null(fuse_state_find_change(s, 12 | FUSE_RESENT));
}

static void a_change_begun_once_more_has_one_entry(void **state)
{
	struct fuse_change *a = fuse_state_begin_change(*state, 10, 3, 4);

	assert_ptr_equal(fuse_state_begin_change(*state, 10 | FUSE_RESENT, 5, 6), a);
	assert_int_equal(a->source, 5);
	/* The oldest give way. */
	for (uint64_t unique = 100; unique < 300; unique++)
		fuse_state_begin_change(*state, unique, 1, 1);
	assert_null(fuse_state_find_change(*state, 10));
	assert_non_null(fuse_state_find_change(*state, 299));
}

static void note_unique(void *ctx, struct fuse_in_header *in)
{
	uint64_t *sum = ctx;

	*sum += in->unique;
	in->unique = 0;
}

static void requests_taken_are_found(void **state)
{
	uint64_t sum = 0;
	struct fuse_state *s;

	fuse_state_taken(*state, 0, 0)->unique = 1;
	fuse_state_taken(*state, 1, 1023)->unique = 20;
	fuse_state_taken(*state, FUSE_WORKERS_MAX - 1, 1023)->unique = 300;
	s = next_daemon(state);
	fuse_state_for_each_taken(s, note_unique, &sum);
	assert_int_equal(sum, 321);
	sum = 0;
	fuse_state_for_each_taken(s, note_unique, &sum);
	assert_int_equal(sum, 0);
}

static void what_is_no_state_is_refused(void **state)
{
	int fd = fcntl(fuse_state_fd(*state), F_DUPFD_CLOEXEC, 3);
	struct fuse_state *s = NULL;
	struct tp_error error = { "" };
	uint64_t wrong = 1;
	int other;

	assert_int_equal(pwrite(fd, &wrong, sizeof(wrong), 0), sizeof(wrong));
	assert_int_equal(fuse_state_open(fd, &s, &error), -EPROTO);
	assert_non_null(strstr(error.text, "version"));
	other = memfd_create("other", MFD_CLOEXEC);
	assert_int_equal(ftruncate(other, 4096), 0);
	assert_int_equal(fuse_state_open(other, &s, NULL), -EPROTO);
	assert_int_equal(fuse_state_open(open("/dev/null", O_RDWR), &s, NULL), -EPROTO);
	assert_null(s);
}

#define STATE_TEST(f) cmocka_unit_test_setup_teardown(f, create, destroy)

int main(void)
{
	const struct CMUnitTest tests[] = {
		STATE_TEST(handles_are_distinct_and_tell_their_volume),
		STATE_TEST(an_open_handle_outlives_the_daemon),
		STATE_TEST(an_open_that_comes_again_gets_the_handle_it_had),
		STATE_TEST(a_release_that_comes_again_closes_nothing_else),
		STATE_TEST(places_are_used_again),
		STATE_TEST(a_full_table_is_told),
		STATE_TEST(a_change_is_known_by_its_request),
		STATE_TEST(a_change_begun_once_more_has_one_entry),
		STATE_TEST(requests_taken_are_found),
		STATE_TEST(what_is_no_state_is_refused),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
