/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * le.h - read and write the little-endian integers of disk-format.h
 *
 * The wrapped types have alignment 1, so these may be used on any address.
 *
 * Layer:    util.
 * Threads:  any.
 * Units:    none.
 * Errors:   none.
 */
#ifndef TP_UTIL_LE_H
#define TP_UTIL_LE_H

#include <endian.h>
#include <string.h>

#include "thinpoold/disk-format.h"

static inline uint32_t le32_get(struct le32 v)
{
	uint32_t x;

	memcpy(&x, v.b, sizeof(x));
	return le32toh(x);
}

static inline uint64_t le64_get(struct le64 v)
{
	uint64_t x;

	memcpy(&x, v.b, sizeof(x));
	return le64toh(x);
}

static inline struct le32 le32_make(uint32_t x)
{
	struct le32 v;

	x = htole32(x);
	memcpy(v.b, &x, sizeof(x));
	return v;
}

static inline struct le64 le64_make(uint64_t x)
{
	struct le64 v;

	x = htole64(x);
	memcpy(v.b, &x, sizeof(x));
	return v;
}

#endif
