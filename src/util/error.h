/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * error.h - why something a user asked for could not be done, in one line
 *
 * Used where a failure is told to a person: opening a pool, reading a
 * configuration, a control request.  The line names the thing and the remedy.
 *
 * Layer:    util.
 * Threads:  any; a struct tp_error belongs to one at a time.
 * Units:    bytes.
 * Errors:   tp_error() returns what it was given.
 */
#ifndef TP_UTIL_ERROR_H
#define TP_UTIL_ERROR_H

#include <stddef.h>

#include "util/compiler.h"

struct tp_error {
	char text[512]; /* empty: nothing told yet; see one_line() */
};

/* Fill @e (NULL is allowed) unless it already says something; returns @r, for "return
 * tp_error(...)". */
int tp_error(struct tp_error *e, int r, const char *fmt, ...) TP_PRINTF(3, 4);

/*
 * What a negative errno says, in words: for those that mean damage in this program (-EUCLEAN,
 * -EILSEQ, -ENOTBLK) what is damaged, for all others strerror().
 */
const char *tp_error_words(int r);

/*
 * Make of @text, whatever a user put into it, one line of valid UTF-8: each control character
 * and each byte of anything else becomes a '?'.  Returns @text.
 */
char *one_line(char *text);

#endif
