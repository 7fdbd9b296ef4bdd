/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-check.h - is this pool's metadata right in every respect?
 *
 * Reads the device itself, block by block, and trusts nothing; shares no code with the
 * engine beyond disk-format.h and the checksum, so that one can be the judge of the other.
 *
 * Layer:    thin.
 * Threads:  one.
 * Units:    blocks of the kind that a name says; sizes of devices are bytes.
 * Errors:   a negative errno only when the check could not be done; damage is a finding.
 * Memory:   6 bytes a metadata block in use and 32 more where two nodes may refer to it, 1 byte
 *           a data block in use; whatever sizes the disk claims.  Time linear in the metadata.
 */
#ifndef TP_THIN_THIN_CHECK_H
#define TP_THIN_THIN_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "thinpoold/types.h"
#include "util/compiler.h"
#include "util/lock-class.h"

struct io_device;

enum thin_check_severity {
	THIN_CHECK_HINT, /* a wrong accounting hint (nr_free ...): harmless */
	/*
	 * Counted but not used: space is lost, nothing else.  May be repaired if there is no
	 * damage, which could hide the users.  Neighbouring blocks are one finding.
	 */
	THIN_CHECK_LEAK,
	THIN_CHECK_DAMAGE, /* the pool must not be written */
};

struct thin_check_options {
	/* Size of the data device in bytes; UINT64_MAX: unknown. */
	uint64_t data_bytes;
	/* One line per finding, at most max_findings (0: all); then "... and N more".  Or NULL. */
	void (*report)(void *ctx, enum thin_check_severity severity, const char *line);
	/* Now and then: blocks read, blocks in use according to the metadata map.  Or NULL. */
	void (*progress)(void *ctx, uint64_t done, uint64_t total);
	void *ctx;
	unsigned max_findings;
};

struct thin_check_result {
	uint64_t nr_hints, nr_leaks, nr_damages; /* findings, told or not */
	bool needs_check;                        /* the flag in the superblock */
	uint64_t transaction_id;
	/* What was found in the trees; and blocks in use according to the maps. */
	uint64_t nr_devices, nr_mappings, nr_metadata_used, nr_data_used;
};

/*
 * 0: the check was done, see *@ret_result.  -errno: it could not be (device error, no
 * memory).  Damage is a finding, not an error.
 */
int thin_check(struct io_device *metadata, const struct thin_check_options *options,
	       struct thin_check_result *ret_result) TP_TAKES(bufio) TP_MUST_CHECK;

#endif
