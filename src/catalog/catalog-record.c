/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * catalog-record.c - one record of the catalog, between memory and disk
 *
 * A record is valid when magic, version and checksum are right, it names the slot it stands
 * in, and its name is one that a volume may have; only the catalog's own record, at its own
 * slot, has the one name that no volume can have.
 */
#include "catalog/catalog-internal.h"

#include <errno.h>
#include <string.h>

#include "util/crc32c.h"
#include "util/le.h"

_Static_assert(CATALOG_RECORD_SIZE == CATALOG_RECORD_BYTES, "one size of records");
_Static_assert(CATALOG_NAME_SIZE == VOLUME_NAME_MAX + 1, "one size of names");
_Static_assert((int)CATALOG_READ_ONLY == (int)CATALOG_DISK_READ_ONLY,
	       "flags are stored as they are");
_Static_assert((int)CATALOG_UNLINKED == (int)CATALOG_DISK_UNLINKED, "flags are stored as they are");
_Static_assert((int)CATALOG_HAS_ORIGIN == (int)CATALOG_DISK_HAS_ORIGIN,
	       "flags are stored as they are");

static uint32_t record_csum(const struct disk_catalog_record *d)
{
	size_t from = offsetof(struct disk_catalog_record, version);

	return crc32c((const uint8_t *)d + from, sizeof(*d) - from);
}

bool catalog_slot_is_empty(const struct disk_catalog_record *d)
{
	const uint8_t *b = (const uint8_t *)d;

	return b[0] == 0 && memcmp(b, b + 1, sizeof(*d) - 1) == 0;
}

void catalog_record_encode(const struct catalog_record *rec, struct disk_catalog_record *d)
{
	size_t length = strnlen(rec->name, VOLUME_NAME_MAX);
	struct catalog_record old;
	const char *why;

	if (catalog_record_decode(d, rec->id, &old, &why))
		memset(d, 0, sizeof(*d));

	d->magic = le64_make(CATALOG_MAGIC);
	d->version = le32_make(CATALOG_VERSION);
	d->id = le32_make(rec->id);
	d->flags = le32_make(rec->flags);
	d->size_bytes = le64_make(rec->size_bytes);
	d->created_usec = le64_make(rec->created_usec);
	d->origin = le32_make(rec->origin);
	d->name_bytes = le32_make((uint32_t)length);
	memset(d->name, 0, sizeof(d->name));
	memcpy(d->name, rec->name, length);
	d->csum = le32_make(record_csum(d));
}

int catalog_record_decode(const struct disk_catalog_record *d, thin_id_t id,
			  struct catalog_record *ret_rec, const char **ret_why)
{
	uint32_t length = le32_get(d->name_bytes);
	struct catalog_record rec = { .id = id };

	*ret_why = "magic";
	if (le64_get(d->magic) != CATALOG_MAGIC)
		return -EUCLEAN;
	*ret_why = "checksum";
	if (le32_get(d->csum) != record_csum(d))
		return -EUCLEAN;
	*ret_why = "version";
	if (le32_get(d->version) != CATALOG_VERSION)
		return -EUCLEAN;
	*ret_why = "id";
	if (le32_get(d->id) != id)
		return -EUCLEAN;
	*ret_why = "name";
	if (length > VOLUME_NAME_MAX || memchr(d->name, 0, length))
		return -EUCLEAN;
	memcpy(rec.name, d->name, length);
	if (strcmp(rec.name, CATALOG_OWN_NAME) == 0 ? id != CATALOG_ID
						    : volume_name_check(rec.name) != 0)
		return -EUCLEAN;

	rec.flags = le32_get(d->flags);
	rec.size_bytes = le64_get(d->size_bytes);
	rec.created_usec = le64_get(d->created_usec);
	rec.origin = le32_get(d->origin);
	*ret_rec = rec;
	return 0;
}
