/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * utf8.h - is this text valid UTF-8?
 *
 * Layer:    util.
 * Threads:  any.
 * Units:    bytes; code points.
 * Errors:   -1, or false: not UTF-8.
 */
#ifndef TP_UTIL_UTF8_H
#define TP_UTIL_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * The code point at @p of at most @len bytes, and its length in *@ret_len; -1 if these bytes
 * are none: an overlong form, a surrogate, above U+10FFFF, cut off, a stray continuation.
 */
static inline int32_t utf8_decode(const char *p, size_t len, size_t *ret_len)
{
	static const int32_t smallest[] = { 0, 0, 0x80, 0x800, 0x10000 };
	const unsigned char *s = (const unsigned char *)p;
	size_t n = s[0] < 0x80 ? 1 : s[0] < 0xc0 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
	int32_t c;

	if (!n || n > len || s[0] > 0xf4)
		return -1;
	c = n == 1 ? s[0] : s[0] & (0x7f >> n);
	for (size_t i = 1; i < n; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return -1;
		c = c << 6 | (s[i] & 0x3f);
	}
	if (c < smallest[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
		return -1;
	*ret_len = n;
	return c;
}

static inline bool utf8_is_valid(const char *p, size_t len)
{
	size_t n;

	for (; len; p += n, len -= n)
		if (utf8_decode(p, len, &n) < 0)
			return false;
	return true;
}

#endif
