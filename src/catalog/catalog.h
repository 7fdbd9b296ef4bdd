/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * catalog.h - names, sizes and properties of volumes, kept inside the pool
 *
 * The catalog is itself a thin device of the pool, id CATALOG_ID.  The record of device N
 * stands at byte N * 1024 of it.  It is recognised by the record at its own slot, which
 * carries magic and checksum and names itself; never by its id alone.
 *
 * A record is never overwritten where the committed state can see it: the data block that
 * holds it is rewritten to another block and mapped in the open transaction, so name and
 * mapping change together.  One spare block is kept mapped beyond the records and swapped
 * with the block it replaces, so that an update never needs free space.
 *
 * Layer:    catalog; uses util/, io/ and thin/.
 * Threads:  the mutator thread of thin-metadata.h only.
 * Units:    bytes where said.
 * Errors:   those of thin-metadata.h; -EUCLEAN: a record is damaged.
 *           After an error of a change the transaction must be aborted, except for
 *           -ENOSPC (no data block free), -EINVAL and -ENAMETOOLONG: nothing has changed.
 */
#ifndef TP_CATALOG_CATALOG_H
#define TP_CATALOG_CATALOG_H

#include <stdbool.h>
#include <stdint.h>

#include "thinpoold/types.h"
#include "util/compiler.h"
#include "util/lock-class.h"

struct io_device;
struct thin_metadata;
struct catalog;

#define CATALOG_ID THIN_ID_MAX
#define CATALOG_RECORD_BYTES 1024u
#define VOLUME_NAME_MAX 255 /* bytes, without the terminating NUL */

enum catalog_flags {
	CATALOG_READ_ONLY = 1 << 0,
	CATALOG_UNLINKED =
		1 << 1, /* unlinked while open: removed at last close or next open of the pool */
	CATALOG_HAS_ORIGIN = 1 << 2,
};

struct catalog_record {
	thin_id_t id;
	thin_id_t origin; /* with CATALOG_HAS_ORIGIN */
	uint32_t flags;   /* enum catalog_flags; unknown ones are preserved */
	uint64_t size_bytes;
	uint64_t created_usec; /* since 1970 */
	char name[VOLUME_NAME_MAX + 1];
};

/* May this be a volume's name?  0, or -EINVAL (UTF-8, '/', leading dot, control), -ENAMETOOLONG. */
int volume_name_check(const char *name) TP_MUST_CHECK;

/* Make an empty catalog in the open transaction of a pool that has none.  -EEXIST. */
int catalog_create(struct thin_metadata *tmd, struct io_device *data)
	TP_TAKES(meta_root) TP_MUST_CHECK;

/* -ENODATA: the pool has no catalog (device CATALOG_ID is missing or is somebody's volume). */
int catalog_open(struct thin_metadata *tmd, struct io_device *data, struct catalog **ret_catalog)
	TP_TAKES(meta_root) TP_MUST_CHECK;
/* NULL is allowed.  Returns NULL. */
struct catalog *catalog_close(struct catalog *c) TP_TAKES(meta_root);

/*
 * Call @fn for each record in order of id until it returns non-zero, which is returned.  A damaged
 * record is logged and handed over with an empty name.  What the data device cannot read is logged
 * and left out; the walk goes on, and the error is returned in the end.
 */
int catalog_for_each(struct catalog *c, int (*fn)(void *ctx, const struct catalog_record *rec),
		     void *ctx) TP_TAKES(meta_root) TP_MUST_CHECK;

/* Write the record of rec->id in the open transaction; sleeps for data I/O. */
int catalog_put(struct catalog *c, const struct catalog_record *rec)
	TP_TAKES(meta_root) TP_MUST_CHECK;

/* The device is gone: its slot becomes zeros. */
int catalog_erase(struct catalog *c, thin_id_t id) TP_TAKES(meta_root) TP_MUST_CHECK;

/*
 * Can the records of all @ids be put or erased in the open transaction?  Each data block of the
 * catalog that a transaction touches moves; the spare takes the first, the others need a free
 * data block each.  0; -EAGAIN: not before a commit; -ENOSPC: the pool is full.
 * A single record that exists is never refused with -ENOSPC: that is what the spare is for.  What
 * will be written gets its space on the host now, so -ENOSPC can also mean that the host is full.
 */
int catalog_check_room(struct catalog *c, const thin_id_t *ids, unsigned nr)
	TP_TAKES(meta_root) TP_MUST_CHECK;

/* Has the data device failed a change?  Then nothing is wrong with the metadata. */
bool catalog_data_failed(const struct catalog *c);

/* Tell the catalog how the transaction ended. */
void catalog_committed(struct catalog *c);
void catalog_aborted(struct catalog *c);

#endif
