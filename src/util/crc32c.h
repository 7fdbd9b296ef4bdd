/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * crc32c.h - CRC-32C (Castagnoli), by the ISA-L library
 *
 * Layer:    util.
 * Threads:  any.
 * Units:    bytes.
 * Errors:   none.
 */
#ifndef TP_UTIL_CRC32C_H
#define TP_UTIL_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/*
 * The register after @len bytes at @data, starting from @crc, without the final
 * inversion that the standard value has.  dm-thin presets @crc to 0xffffffff.
 */
uint32_t crc32c_raw(uint32_t crc, const void *data, size_t len);

/* The standard CRC-32C of @len bytes: preset and inverted. */
static inline uint32_t crc32c(const void *data, size_t len)
{
	return ~crc32c_raw(0xffffffff, data, len);
}

#endif
