/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * error.c - why something a user asked for could not be done, in one line
 *
 * The first reason wins: it was told by the layer that knew the details.
 */
#include "util/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "util/utf8.h"

int tp_error(struct tp_error *e, int r, const char *fmt, ...)
{
	va_list args;

	if (e && !e->text[0]) {
		va_start(args, fmt);
		vsnprintf(e->text, sizeof(e->text), fmt, args);
		va_end(args);
		one_line(e->text);
	}
	return r;
}

const char *tp_error_words(int r)
{
	switch (r) {
	case -EILSEQ:
		return "a block has a wrong checksum or magic number";
	case -ENOTBLK:
		return "a block says that it belongs elsewhere";
	case -EUCLEAN:
		return "a block breaks the rules of the format";
	default:
		return strerror(-r);
	}
}

char *one_line(char *text)
{
	size_t left = strlen(text), n;

	for (char *p = text; left; p += n, left -= n) {
		int32_t c = utf8_decode(p, left, &n);

		if (c >= 0x20 && (c < 0x7f || c > 0x9f))
			continue;
		if (c < 0)
			n = 1;
		memset(p, '?', n);
	}
	return text;
}
