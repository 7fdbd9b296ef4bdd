/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * disk-format.h - dm-thin metadata, version 2, as it lies on disk
 *
 * Every integer is little-endian and unsigned, wrapped in struct leNN so that
 * reading one without conversion does not compile.  Every block in use starts
 * with a checksum of bytes 4..4095 (CRC-32C, preset to all ones, not inverted
 * at the end, XORed with a constant of the block's type) and, at byte 8, with
 * its own location.
 */
#ifndef THINPOOLD_DISK_FORMAT_H
#define THINPOOLD_DISK_FORMAT_H

#include <stddef.h>
#include <stdint.h>

/* For C++, which spells it without the underscore. */
#ifdef __cplusplus
#define _Static_assert static_assert
#endif

struct le16 {
	uint8_t b[2];
};
struct le32 {
	uint8_t b[4];
};
struct le64 {
	uint8_t b[8];
};

#define METADATA_BLOCK_SIZE 4096u /* bytes */
#define METADATA_BLOCK_SECTORS 8u

/* ---- block types: the checksum's XOR constant is the only type mark on disk ---- */

#define SUPERBLOCK_CSUM_XOR 160774u
#define BTREE_CSUM_XOR 121107u
#define BITMAP_CSUM_XOR 240779u
#define INDEX_CSUM_XOR 160478u

/* ---- superblock: block 0, and the held copy of a metadata snapshot ---- */

#define THIN_SUPERBLOCK_MAGIC 27022010u
#define THIN_SUPERBLOCK_LOCATION 0u
#define THIN_METADATA_VERSION 2u
#define THIN_NEEDS_CHECK_FLAG (1u << 0)
#define THIN_MAX_TIME ((1u << 24) - 1) /* the clock shares 64 bits with a 40-bit block */

/* Root of a space map, at the start of a 128-byte field. */
struct disk_sm_root {
	struct le64 nr_blocks;    /* blocks the map describes */
	struct le64 nr_allocated; /* of these, count > 0; a hint, never a reason to refuse */
	struct le64 bitmap_root;  /* data: root of the index tree; metadata: the index block */
	struct le64 ref_count_root;
};

#define SPACE_MAP_ROOT_SIZE 128u

struct thin_disk_superblock {
	struct le32 csum;
	struct le32 flags;
	struct le64 blocknr;
	uint8_t uuid[16];
	struct le64 magic;
	struct le32 version;
	struct le32 time;     /* snapshot clock, < 2^24 */
	struct le64 trans_id; /* opaque; compare-and-swap number of the caller */
	struct le64 held_root;
	uint8_t data_sm_root[SPACE_MAP_ROOT_SIZE];
	uint8_t metadata_sm_root[SPACE_MAP_ROOT_SIZE];
	struct le64 data_mapping_root;
	struct le64 device_details_root;
	struct le32 data_block_size;     /* sectors: a multiple of 128, 128..2097152 */
	struct le32 metadata_block_size; /* sectors: 8 */
	struct le64 metadata_nr_blocks;  /* the kernel does not update it when they grow */
	struct le32 compat_flags;
	struct le32 compat_ro_flags;
	struct le32 incompat_flags;
	uint8_t zero[3732];
};

_Static_assert(offsetof(struct thin_disk_superblock, flags) == 4, "on-disk layout");
_Static_assert(offsetof(struct thin_disk_superblock, blocknr) == 8, "on-disk layout");
_Static_assert(offsetof(struct thin_disk_superblock, uuid) == 16, "on-disk layout");
_Static_assert(offsetof(struct thin_disk_superblock, magic) == 32, "on-disk layout");
_Static_assert(offsetof(struct thin_disk_superblock, version) == 40, "on-disk layout");
_Static_assert(offsetof(struct thin_disk_superblock, time) == 44, "on-disk layout");
_Static_assert(offsetof(struct thin_disk_superblock, trans_id) == 48, "on-disk layout");
_Static_assert(offsetof(struct thin_disk_superblock, held_root) == 56, "on-disk layout");
_Static_assert(offsetof(struct thin_disk_superblock, data_sm_root) == 64, "on-disk layout");
_Static_assert(offsetof(struct thin_disk_superblock, metadata_sm_root) == 192, "on-disk layout");
_Static_assert(offsetof(struct thin_disk_superblock, data_mapping_root) == 320, "on-disk layout");
_Static_assert(offsetof(struct thin_disk_superblock, device_details_root) == 328, "on-disk layout");
_Static_assert(offsetof(struct thin_disk_superblock, data_block_size) == 336, "on-disk layout");
_Static_assert(offsetof(struct thin_disk_superblock, metadata_block_size) == 340, "on-disk layout");
_Static_assert(offsetof(struct thin_disk_superblock, metadata_nr_blocks) == 344, "on-disk layout");
_Static_assert(offsetof(struct thin_disk_superblock, compat_flags) == 352, "on-disk layout");
_Static_assert(offsetof(struct thin_disk_superblock, compat_ro_flags) == 356, "on-disk layout");
_Static_assert(offsetof(struct thin_disk_superblock, incompat_flags) == 360, "on-disk layout");
_Static_assert(sizeof(struct thin_disk_superblock) == METADATA_BLOCK_SIZE, "on-disk layout");

#define DATA_BLOCK_MIN_SECTORS 128u     /* 64 KiB; every size is a multiple of it */
#define DATA_BLOCK_MAX_SECTORS 2097152u /* 1 GiB */

/* ---- B-tree node: header, keys[max_entries], values[max_entries] ---- */

#define INTERNAL_NODE (1u << 0)
#define LEAF_NODE (1u << 1)

struct disk_node_header {
	struct le32 csum;
	struct le32 flags;
	struct le64 blocknr;
	struct le32 nr_entries;
	struct le32 max_entries;
	struct le32 value_size; /* bytes */
	struct le32 padding;
};

_Static_assert(offsetof(struct disk_node_header, nr_entries) == 16, "on-disk layout");
_Static_assert(offsetof(struct disk_node_header, max_entries) == 20, "on-disk layout");
_Static_assert(offsetof(struct disk_node_header, value_size) == 24, "on-disk layout");
_Static_assert(sizeof(struct disk_node_header) == 32, "on-disk layout");

/* Capacity of a node with values of @v bytes: a multiple of three. */
#define NODE_MAX_ENTRIES(v) \
	((METADATA_BLOCK_SIZE - (uint32_t)sizeof(struct disk_node_header)) / (8 + (v)) / 3 * 3)

_Static_assert(NODE_MAX_ENTRIES(8) == 252, "on-disk layout");
_Static_assert(NODE_MAX_ENTRIES(24) == 126, "on-disk layout");
_Static_assert(NODE_MAX_ENTRIES(16) == 168, "on-disk layout");
_Static_assert(NODE_MAX_ENTRIES(4) == 336, "on-disk layout");

/* Value of a device tree: data block in the upper 40 bits, clock in the lower 24. */
#define MAPPING_TIME_BITS 24
#define DATA_BLOCK_LIMIT (UINT64_C(1) << 40)

/* Value of the details tree, key = device id. */
struct disk_device_details {
	struct le64 mapped_blocks;
	struct le64 transaction_id; /* the superblock's when the device was created */
	struct le32 creation_time;
	struct le32 snapshotted_time;
};

_Static_assert(sizeof(struct disk_device_details) == 24, "on-disk layout");

/* ---- space maps ---- */

#define ENTRIES_PER_BITMAP 16320u /* (4096 - 16) * 4 */
#define MAX_METADATA_BITMAPS 255u
#define MAX_METADATA_BLOCKS (MAX_METADATA_BITMAPS * (uint64_t)ENTRIES_PER_BITMAP)

/* In front of 4080 bytes of 2-bit counts, the high bit first. */
struct disk_bitmap_header {
	struct le32 csum;
	struct le32 not_used;
	struct le64 blocknr;
};

_Static_assert(sizeof(struct disk_bitmap_header) == 16, "on-disk layout");

struct disk_index_entry {
	struct le64 blocknr; /* location of the bitmap */
	struct le32 nr_free; /* the last bitmap counts entries past the end as free */
	struct le32 none_free_before;
};

_Static_assert(sizeof(struct disk_index_entry) == 16, "on-disk layout");

struct disk_metadata_index {
	struct le32 csum;
	struct le32 padding;
	struct le64 blocknr;
	struct disk_index_entry index[MAX_METADATA_BITMAPS];
};

_Static_assert(sizeof(struct disk_metadata_index) == METADATA_BLOCK_SIZE, "on-disk layout");

#endif
