/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * catalog-format.h - the catalog of a pool, as it lies in its data blocks
 *
 * The catalog is thin device 0xffffff of a pool.  The record of device N stands at byte
 * N * 1024 of it; a slot that is all zeros or not mapped has no record.  The record in the
 * device's own slot, named ".catalog", tells a catalog from a volume that happens to have
 * that id.  One further data block, the spare, is mapped just beyond the last record; what
 * it holds has no meaning.
 *
 * Integers are little-endian; names are UTF-8 without a terminator, padded with zeros.
 */
#ifndef THINPOOLD_CATALOG_FORMAT_H
#define THINPOOLD_CATALOG_FORMAT_H

#include <stddef.h>
#include <stdint.h>

#include "thinpoold/disk-format.h"

#define CATALOG_MAGIC UINT64_C(0x6c7461436e696874) /* "thinCatl" as bytes */
#define CATALOG_VERSION 1u
#define CATALOG_RECORD_SIZE 1024u
#define CATALOG_NAME_SIZE 256u
#define CATALOG_OWN_NAME ".catalog"

struct disk_catalog_record {
	struct le64 magic;
	struct le32 csum; /* standard CRC-32C of bytes 12..1023 */
	struct le32 version;
	struct le32 id; /* equals the slot's number */
	struct le32 flags;
	struct le64 size_bytes;
	struct le64 created_usec; /* since 1970; 0: unknown */
	struct le32 origin;       /* with the flag that says so */
	struct le32 name_bytes;   /* 1..255 */
	uint8_t name[CATALOG_NAME_SIZE];
	uint8_t reserved[720]; /* zero; kept as they are when a record is updated */
};

_Static_assert(offsetof(struct disk_catalog_record, csum) == 8, "on-disk layout");
_Static_assert(offsetof(struct disk_catalog_record, version) == 12, "on-disk layout");
_Static_assert(offsetof(struct disk_catalog_record, id) == 16, "on-disk layout");
_Static_assert(offsetof(struct disk_catalog_record, flags) == 20, "on-disk layout");
_Static_assert(offsetof(struct disk_catalog_record, size_bytes) == 24, "on-disk layout");
_Static_assert(offsetof(struct disk_catalog_record, created_usec) == 32, "on-disk layout");
_Static_assert(offsetof(struct disk_catalog_record, origin) == 40, "on-disk layout");
_Static_assert(offsetof(struct disk_catalog_record, name_bytes) == 44, "on-disk layout");
_Static_assert(offsetof(struct disk_catalog_record, name) == 48, "on-disk layout");
_Static_assert(offsetof(struct disk_catalog_record, reserved) == 304, "on-disk layout");
_Static_assert(sizeof(struct disk_catalog_record) == CATALOG_RECORD_SIZE, "on-disk layout");

/* Flags of a record. */
#define CATALOG_DISK_READ_ONLY (1u << 0)
#define CATALOG_DISK_UNLINKED (1u << 1)
#define CATALOG_DISK_HAS_ORIGIN (1u << 2)

#endif
