/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * parse-size.c - sizes as people write and read them, in the grammar of util-linux
 *
 * Integer arithmetic only: a fraction is kept as digits over a power of ten, so
 * "0.1G" is refused rather than rounded (it is no whole number of bytes).
 */
#include "util/parse-size.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define MAX_FRACTION_DIGITS 9
__extension__ typedef unsigned __int128 uint128;

static const char units[] = "KMGTPE";

/* The factor that @suffix stands for, or 0. */
static uint64_t suffix_factor(const char *suffix)
{
	const char *unit;
	uint64_t factor = 1, base;

	if (!*suffix || !strcasecmp(suffix, "B"))
		return 1;
	if (!strcmp(suffix, "s"))
		return 512;
	unit = strchr(units, toupper((unsigned char)*suffix));
	if (!unit)
		return 0;
	if (!suffix[1] || !strcasecmp(suffix + 1, "iB"))
		base = 1024;
	else if (!strcasecmp(suffix + 1, "B"))
		base = 1000;
	else
		return 0;
	for (const char *u = units; u <= unit; u++)
		factor *= base;
	return factor;
}

int parse_size(const char *text, uint64_t *ret_bytes)
{
	uint64_t whole = 0, fraction = 0, scale = 1, factor, bytes;
	const char *p = text;

	if (!isdigit((unsigned char)*p))
		return -EINVAL;
	for (; isdigit((unsigned char)*p); p++)
		if (__builtin_mul_overflow(whole, 10, &whole) ||
		    __builtin_add_overflow(whole, (uint64_t)(*p - '0'), &whole))
			return -ERANGE;
	if (*p == '.') {
		const char *digits = ++p;

		for (; isdigit((unsigned char)*p); p++) {
			if (p - digits >= MAX_FRACTION_DIGITS)
				return -ERANGE;
			fraction = fraction * 10 + (uint64_t)(*p - '0');
			scale *= 10;
		}
		if (p == digits || !*p)
			return -EINVAL;
	}

	factor = suffix_factor(p);
	if (!factor)
		return -EINVAL;
	if (__builtin_mul_overflow(whole, factor, &bytes))
		return -ERANGE;

	/* fraction < 10^9 and factor <= 2^60: the product needs 128 bits. */
	uint128 part = (uint128)fraction * factor;

	if (part % scale || __builtin_add_overflow(bytes, (uint64_t)(part / scale), &bytes) ||
	    bytes > INT64_MAX)
		return -ERANGE;
	*ret_bytes = bytes;
	return 0;
}

char *format_size(uint64_t bytes, char *buf, size_t len)
{
	unsigned unit = 0;
	uint64_t tenths;

	if (bytes < 1024) {
		snprintf(buf, len, "%uB", (unsigned)bytes);
		return buf;
	}
	while (unit + 1 < sizeof(units) - 1 && bytes >> (10 * (unit + 2)))
		unit++;
	/* Shift before multiplying: a full 64-bit size must not overflow. */
	tenths = (bytes >> (10 * unit)) * 10 / 1024;
	if (tenths % 10)
		snprintf(buf, len, "%u.%u%c", (unsigned)(tenths / 10), (unsigned)(tenths % 10),
			 units[unit]);
	else
		snprintf(buf, len, "%u%c", (unsigned)(tenths / 10), units[unit]);
	return buf;
}
