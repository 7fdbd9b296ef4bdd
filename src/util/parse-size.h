/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * parse-size.h - sizes as people write and read them, in the grammar of util-linux
 *
 * A number, with an optional decimal fraction when a suffix follows, and a suffix:
 * K, KiB = 1024, KB = 1000 and so on for M G T P E; B = 1; s = sectors of 512.
 * Case matters for s only.  Nothing else: no sign, no spaces inside, no hex.
 *
 * Layer:    util.
 * Threads:  any.
 * Units:    bytes.
 * Errors:   0 or a negative errno.
 */
#ifndef TP_UTIL_PARSE_SIZE_H
#define TP_UTIL_PARSE_SIZE_H

#include <stddef.h>
#include <stdint.h>

#include "util/compiler.h"

/*
 *   -EINVAL  not a size
 *   -ERANGE  above INT64_MAX bytes, or not a whole number of bytes
 */
int parse_size(const char *text, uint64_t *ret_bytes) TP_MUST_CHECK;

/* "1.5G", "64K", "0B": at most one decimal, powers of 1024.  Returns @buf. */
char *format_size(uint64_t bytes, char *buf, size_t len);
#define FORMAT_SIZE_MAX 16 /* bytes that any size fits in */

#endif
