/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * error.c - why something a user asked for could not be done, in one line
 *
 * The first reason wins: it was told by the layer that knew the details.
 */
#include "util/error.h"

#include <stdarg.h>
#include <stdio.h>

int tp_error(struct tp_error *e, int r, const char *fmt, ...)
{
	va_list args;

	if (e && !e->text[0]) {
		va_start(args, fmt);
		vsnprintf(e->text, sizeof(e->text), fmt, args);
		va_end(args);
	}
	return r;
}
