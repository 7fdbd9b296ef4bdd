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
#include "util/compiler.h"

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
/* For thin_check_options.report, @ctx being a struct report. */
void report_line(void *ctx, enum thin_check_severity severity, const char *line);
void report_free(struct report *report);
static inline bool report_is_clean(const struct report *report)
{
	return !report->r && !report->length;
}

/* The metadata of a pool in tests/fixtures, in memory. */
struct io_device *fixture_image(const char *name);

/*
 * An image with all that the format has: trees of two levels, devices that share roots, leaves
 * and data blocks, counts above 255, a metadata snapshot that shares nodes with the superblock.
 */
struct io_device *rich_image(void);
#define RICH_DATA_BLOCKS 20000u

/* An image whose data index is a tree of two levels: 183 bitmaps. */
struct io_device *large_image(void);

/* Data blocks with 300 users each, all of them leaves of their own. */
struct io_device *crowded_image(void);

/* A block of an image in a mem-device; changes are made good by seal(). */
static inline void *image_block(void *image, mblock_t block)
{
	return (uint8_t *)image + block * METADATA_BLOCK_SIZE;
}
/* The XOR constant of the type that the block's checksum is right for; 0: of none. */
uint32_t block_type(const void *block);
void seal(void *block, uint32_t csum_xor);

/* What tests/tools/thinmeta.py thinks of images. */
struct judge;
enum verdict { VERDICT_CLEAN, VERDICT_HINTS, VERDICT_BAD };
struct judge *judge_start(void);
void judge_stop(struct judge *judge);
/* @ret_why: its line, valid until the next call. */
enum verdict judge_image(struct judge *judge, struct io_device *meta, const char **ret_why);

/*
 * Open a copy of the image with the engine, read all of it, change it at random, commit.  Any
 * call may fail; it must return, and touch only its own memory.
 */
void engine_survives(struct io_device *meta, uint64_t seed);

/*
 * Both of them: the test fails if the judge has found what @report has not, or the engine does
 * not survive.
 */
void show_to_others(struct judge *judge, struct io_device *meta, const struct report *report,
		    uint64_t seed);

/* Told if this process dies: what it was about.  Also starts a clock: 60 s until the next call. */
void now_about(const char *fmt, ...) TP_PRINTF(1, 2);

#endif
