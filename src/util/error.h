/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * error.h - why something a user asked for could not be done, in one line
 *
 * Used where a failure is told to a person: opening a pool, reading a
 * configuration, a control request.  The line names the thing and the remedy.
 */
#ifndef TP_UTIL_ERROR_H
#define TP_UTIL_ERROR_H

#include "util/compiler.h"

struct tp_error {
	char text[512];
};

/* Fill @e (NULL is allowed) unless it already says something; returns @r, for "return
 * tp_error(...)". */
int tp_error(struct tp_error *e, int r, const char *fmt, ...) TP_PRINTF(3, 4);

#endif
