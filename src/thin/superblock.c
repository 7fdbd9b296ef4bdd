/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * superblock.c - block 0: what is allowed in it, and writing it
 *
 * The block is read past the buffer cache, because who may open a pool is decided here with a
 * message for a person, not by a validator deep below; and it is written from a copy that
 * thin-metadata.c keeps, so that fields nobody here knows (uuid, unknown flag bits, the unused
 * tail) are carried from commit to commit.
 *
 * Invariant: the buffer of block 0 is dirty only between superblock_set() and the flush that
 * follows it.  Otherwise background write-back could publish roots before what they name.
 */
#include "thin/superblock.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "util/le.h"

static int check_block(const void *data, mblock_t block, mblock_t nr_blocks)
{
	const struct thin_disk_superblock *sb = data;

	(void)block;
	(void)nr_blocks;
	return le64_get(sb->magic) == THIN_SUPERBLOCK_MAGIC ? 0 : -EILSEQ;
}

const struct block_validator superblock_validator = {
	.name = "superblock",
	.csum_xor = SUPERBLOCK_CSUM_XOR,
	.check = check_block,
};

bool superblock_is_blank(const struct thin_disk_superblock *sb)
{
	const char *p = (const char *)sb;

	return !p[0] && !memcmp(p, p + 1, sizeof(*sb) - 1);
}

void superblock_init(struct thin_disk_superblock *sb, uint32_t data_block_sectors,
		     mblock_t nr_metadata_blocks)
{
	memset(sb, 0, sizeof(*sb));
	sb->magic = le64_make(THIN_SUPERBLOCK_MAGIC);
	sb->version = le32_make(THIN_METADATA_VERSION);
	sb->data_block_size = le32_make(data_block_sectors);
	sb->metadata_block_size = le32_make(METADATA_BLOCK_SECTORS);
	sb->metadata_nr_blocks = le64_make(nr_metadata_blocks);
}

/* Is it a superblock at all, and as it was written? */
static int check_identity(const struct thin_disk_superblock *sb, const char *name,
			  struct tp_error *error)
{
	if (superblock_is_blank(sb))
		return tp_error(error, -ENODATA,
				"\"%s\" is not formatted: use \"thinpoolctl format\"", name);
	if (le64_get(sb->magic) != THIN_SUPERBLOCK_MAGIC)
		return tp_error(error, -EILSEQ,
				"\"%s\" does not hold thin-pool metadata (wrong magic number): "
				"is it the right file?",
				name);
	if (le64_get(sb->blocknr) != THIN_SUPERBLOCK_LOCATION)
		return tp_error(error, -ENOTBLK,
				"the superblock of \"%s\" says it is block %" PRIu64
				": the file is not a plain copy of a metadata device",
				name, le64_get(sb->blocknr));
	if (le32_get(sb->csum) != bm_checksum(sb, SUPERBLOCK_CSUM_XOR))
		return tp_error(error, -EILSEQ,
				"the superblock of \"%s\" is damaged (checksum): repair a copy "
				"with thin_repair",
				name);
	return 0;
}

static int check_features(const struct thin_disk_superblock *sb, bool read_only, const char *name,
			  struct tp_error *error)
{
	uint32_t version = le32_get(sb->version);

	if (version != THIN_METADATA_VERSION)
		return tp_error(error, -EOPNOTSUPP,
				"\"%s\" has metadata version %" PRIu32
				", only version %u is supported: convert it with thin_dump and "
				"thin_restore",
				name, version, THIN_METADATA_VERSION);
	if (le32_get(sb->incompat_flags))
		return tp_error(error, -EOPNOTSUPP,
				"\"%s\" uses features (0x%" PRIx32
				") that this version does not know: use a newer one",
				name, le32_get(sb->incompat_flags));
	if (le32_get(sb->compat_ro_flags) && !read_only)
		return tp_error(error, -EOPNOTSUPP,
				"\"%s\" uses features (0x%" PRIx32
				") that this version can only read: open the pool read-only",
				name, le32_get(sb->compat_ro_flags));
	return 0;
}

/* A root must be a block of the metadata other than the superblock. */
static bool roots_are_inside(const struct thin_disk_superblock *sb, mblock_t nr_blocks)
{
	const struct disk_sm_root *data = (const void *)sb->data_sm_root;
	const struct disk_sm_root *metadata = (const void *)sb->metadata_sm_root;
	const uint64_t roots[] = {
		le64_get(sb->data_mapping_root), le64_get(sb->device_details_root),
		le64_get(data->bitmap_root),     le64_get(data->ref_count_root),
		le64_get(metadata->bitmap_root), le64_get(metadata->ref_count_root),
	};

	for (unsigned i = 0; i < ARRAY_SIZE(roots); i++)
		if (roots[i] == THIN_SUPERBLOCK_LOCATION || roots[i] >= nr_blocks)
			return false;
	return le64_get(sb->held_root) < nr_blocks;
}

static int check_sizes(const struct thin_disk_superblock *sb, mblock_t device_blocks,
		       const char *name, struct tp_error *error)
{
	const struct disk_sm_root *data = (const void *)sb->data_sm_root;
	const struct disk_sm_root *metadata = (const void *)sb->metadata_sm_root;
	mblock_t nr_blocks = le64_get(metadata->nr_blocks);
	uint32_t sectors = le32_get(sb->data_block_size);

	if (le32_get(sb->metadata_block_size) != METADATA_BLOCK_SECTORS)
		return tp_error(error, -EUCLEAN,
				"\"%s\" has metadata blocks of %" PRIu32
				" sectors, only %u is possible: repair a copy with thin_repair",
				name, le32_get(sb->metadata_block_size), METADATA_BLOCK_SECTORS);
	if (sectors < DATA_BLOCK_MIN_SECTORS || sectors > DATA_BLOCK_MAX_SECTORS ||
	    sectors % DATA_BLOCK_MIN_SECTORS)
		return tp_error(error, -EUCLEAN,
				"\"%s\" has data blocks of %" PRIu32
				" sectors, which is not possible: repair a copy with thin_repair",
				name, sectors);
	if (nr_blocks > MAX_METADATA_BLOCKS || !roots_are_inside(sb, nr_blocks) ||
	    le64_get(data->nr_blocks) > DATA_BLOCK_LIMIT || le32_get(sb->time) > THIN_MAX_TIME)
		return tp_error(error, -EUCLEAN,
				"the superblock of \"%s\" holds impossible values: repair a copy "
				"with thin_repair",
				name);
	if (nr_blocks > device_blocks)
		return tp_error(error, -EINVAL,
				"\"%s\" has only %" PRIu64 " of the %" PRIu64
				" blocks of 4096 bytes that its metadata spans: it was cut off, "
				"restore its size",
				name, device_blocks, nr_blocks);
	return 0;
}

int superblock_check(const struct thin_disk_superblock *sb, mblock_t nr_blocks, bool read_only,
		     const char *name, struct tp_error *error)
{
	int r;

	r = check_identity(sb, name, error);
	if (!r)
		r = check_features(sb, read_only, name, error);
	if (!r)
		r = check_sizes(sb, nr_blocks, name, error);
	return r;
}

int superblock_read(struct block_manager *bm, bool read_only, const char *name,
		    struct thin_disk_superblock *sb, struct tp_error *error)
{
	int r;

	r = bm_read_raw(bm, THIN_SUPERBLOCK_LOCATION, sb);
	if (r)
		return tp_error(error, r, "cannot read the superblock of \"%s\": %s", name,
				strerror(-r));
	return superblock_check(sb, bm_nr_blocks(bm), read_only, name, error);
}

int superblock_set(struct block_manager *bm, const struct thin_disk_superblock *sb)
{
	struct locked_block *lb;
	int r;

	r = bm_write_lock_zero(bm, THIN_SUPERBLOCK_LOCATION, &superblock_validator, &lb);
	if (r)
		return r;
	memcpy(block_data_mut(lb), sb, sizeof(*sb));
	bm_unlock(lb);
	return 0;
}
