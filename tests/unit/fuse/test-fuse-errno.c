/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for fuse/fuse-errno.c: what may reach a program and what may not.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>

#include "fuse/fuse-internal.h"

static void success_stays_success(void **state)
{
	(void)state;
	assert_int_equal(fuse_errno(0), 0);
}

static void what_a_program_understands_passes(void **state)
{
	static const int known[] = { ENOENT, EEXIST, EINVAL, ENAMETOOLONG, EBUSY,  ENOSPC,    EROFS,
				     EIO,    EFBIG,  ENXIO,  EPERM,        ENOMEM, EOPNOTSUPP };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		assert_int_equal(fuse_errno(-known[i]), known[i]);
}

static void damage_of_the_pool_is_an_io_error(void **state)
{
	static const int inner[] = { EUCLEAN, EILSEQ, ENOTBLK, ENODATA, EWOULDBLOCK };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(inner); i++)
		assert_int_equal(fuse_errno(-inner[i]), EIO);
}

/* ENOSYS would make the kernel never ask again; ERESTARTSYS is no errno at all. */
static void numbers_with_a_meaning_for_the_kernel_do_not_pass(void **state)
{
	(void)state;
	assert_int_equal(fuse_errno(-ENOSYS), EIO);
	assert_int_equal(fuse_errno(-EINTR), EIO);
	assert_int_equal(fuse_errno(-EAGAIN), EIO);
	assert_int_equal(fuse_errno(-512), EIO);
	assert_int_equal(fuse_errno(EIO), EIO); /* a sign lost on the way is still an error */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(success_stays_success),
		cmocka_unit_test(what_a_program_understands_passes),
		cmocka_unit_test(damage_of_the_pool_is_an_io_error),
		cmocka_unit_test(numbers_with_a_meaning_for_the_kernel_do_not_pass),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("fuse-errno", tests, NULL, NULL);
}
