/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * superblock.h - block 0: what is allowed in it, and writing it
 *
 * Layer:    thin; private to it.
 * Threads:  the mutator, or a tool's one thread.
 * Units:    blocks of the metadata device; the data block size is in sectors of 512 bytes.
 * Errors:   0 or a negative errno, with a line for a person in @error.
 */
#ifndef TP_THIN_SUPERBLOCK_H
#define TP_THIN_SUPERBLOCK_H

#include <stdbool.h>

#include "pdata/block-manager.h"
#include "thinpoold/disk-format.h"
#include "util/compiler.h"
#include "util/error.h"
#include "util/lock-class.h"

extern const struct block_validator superblock_validator;

bool superblock_is_blank(const struct thin_disk_superblock *sb);

/* Fill in what format fixes for good; everything else is zero. */
void superblock_init(struct thin_disk_superblock *sb, uint32_t data_block_sectors,
		     mblock_t nr_metadata_blocks);

/*
 * May this pool be opened?  @nr_blocks: size of the metadata device.  @name: of the device, for
 * the message.
 *   -ENODATA     blank
 *   -ENOTBLK, -EILSEQ  not a superblock, or a damaged one
 *   -EUCLEAN     a field breaks the format's rules
 *   -EOPNOTSUPP  version or feature flags
 *   -EINVAL      the device is too small
 */
int superblock_check(const struct thin_disk_superblock *sb, mblock_t nr_blocks, bool read_only,
		     const char *name, struct tp_error *error) TP_MUST_CHECK;

/*
 * Read block 0 past the cache into @sb (4096-aligned) and check it.  Needs no memory, so an
 * abort can rely on it.
 */
int superblock_read(struct block_manager *bm, bool read_only, const char *name,
		    struct thin_disk_superblock *sb, struct tp_error *error)
	TP_TAKES(bufio) TP_MUST_CHECK;

/* Make the buffer of block 0 equal to @sb; the next tm_flush() writes it.  Does not read. */
int superblock_set(struct block_manager *bm, const struct thin_disk_superblock *sb)
	TP_TAKES(bufio) TP_MUST_CHECK;

#endif
