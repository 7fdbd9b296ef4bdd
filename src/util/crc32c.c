/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * crc32c.c - CRC-32C (Castagnoli), by the ISA-L library
 *
 * ISA-L picks the fastest way the processor has (SSE4.2 with folding, ARM CRC,
 * tables) and leaves the register uninverted, as dm-thin wants it.
 */
#include "util/crc32c.h"

#include <isa-l/crc.h>

uint32_t crc32c_raw(uint32_t crc, const void *data, size_t len)
{
	/* The library's prototype lacks a const; it only reads. */
	return crc32_iscsi((unsigned char *)(uintptr_t)data, (int)len, crc);
}
