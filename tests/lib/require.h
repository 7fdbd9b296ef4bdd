/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * require.h - an assertion for threads that cmocka knows nothing of: says why and ends the program
 */
#ifndef TP_TESTS_REQUIRE_H
#define TP_TESTS_REQUIRE_H

#include <stdio.h>
#include <stdlib.h>

#define REQUIRE(cond, ...) \
	do { \
		if (!(cond)) { \
			fprintf(stderr, "# %s:%d: %s: ", __FILE__, __LINE__, #cond); \
			fprintf(stderr, __VA_ARGS__); \
			fputc('\n', stderr); \
			abort(); \
		} \
	} while (0)

#endif
