/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * catalog-internal.h - records between memory and disk; for catalog/ and its tests
 */
#ifndef TP_CATALOG_CATALOG_INTERNAL_H
#define TP_CATALOG_CATALOG_INTERNAL_H

#include "catalog/catalog.h"
#include "thinpoold/catalog-format.h"

/* All zeros: no record. */
bool catalog_slot_is_empty(const struct disk_catalog_record *d);

/*
 * Over whatever is in @d.  If that is a valid record of the same id, its reserved part is
 * kept; otherwise it becomes zeros.
 */
void catalog_record_encode(const struct catalog_record *rec, struct disk_catalog_record *d);

/* -EUCLEAN: not a record of @id in a version we know; *@ret_why says what is wrong. */
int catalog_record_decode(const struct disk_catalog_record *d, thin_id_t id,
			  struct catalog_record *ret_rec, const char **ret_why) TP_MUST_CHECK;

#endif
