/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * types.h - the numbers that cross layers
 *
 * Three kinds of block are counted in this program.  They are all plain
 * integers, so the names say which one is meant:
 *
 *   mblock_t   4096-byte block of the metadata device
 *   dblock_t   data block of the pool (64 KiB .. 1 GiB) on the data device
 *   vblock_t   data block of a volume, as its user counts
 */
#ifndef THINPOOLD_TYPES_H
#define THINPOOLD_TYPES_H

#include <stdint.h>

typedef uint64_t mblock_t;
typedef uint64_t dblock_t;
typedef uint64_t vblock_t;

/* Device id of a thin volume: 24 bits, 0..THIN_ID_MAX. */
typedef uint32_t thin_id_t;

#define THIN_ID_MAX 0xffffffu
#define SECTOR_SIZE 512u /* bytes */
#define SECTOR_SHIFT 9

/* The cache of metadata blocks: what it holds now, and what it has done since it was made. */
struct cache_stats {
	uint64_t cached_bytes, dirty_bytes, limit_bytes;
	uint64_t hits, misses, reads, writes; /* blocks */
	uint64_t shrunk_buffers, resets;
};

#endif
