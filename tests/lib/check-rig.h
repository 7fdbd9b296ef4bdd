/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * check-rig.h - images of metadata, their damage, and what the checker says about them
 */
#ifndef TP_TESTS_CHECK_RIG_H
#define TP_TESTS_CHECK_RIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "thin/thin-check.h"
#include "thinpoold/disk-format.h"
#include "thinpoold/types.h"

struct io_device;

/* A run of the checker, with all its lines: "hint: ...\n", "leak: ...", "damage: ...". */
struct report {
	int r;
	struct thin_check_result result;
	char *lines;
	size_t length;
};

/* Runs the checker; report_free() afterwards.  UINT64_MAX: size of the data device unknown. */
void check_image(struct io_device *meta, uint64_t data_bytes, struct report *report);
void report_free(struct report *report);
static inline bool report_is_clean(const struct report *report)
{
	return !report->r && !report->length;
}

/* The metadata of a pool in tests/fixtures, in memory. */
struct io_device *fixture_image(const char *name);

/* A block of an image in a mem-device; changes are made good by seal(). */
static inline void *image_block(void *image, mblock_t block)
{
	return (uint8_t *)image + block * METADATA_BLOCK_SIZE;
}
/* The XOR constant of the type that the block's checksum is right for; 0: of none. */
uint32_t block_type(const void *block);
void seal(void *block, uint32_t csum_xor);

#endif
