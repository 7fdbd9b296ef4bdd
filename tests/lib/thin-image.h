/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-image.h - metadata in memory, shown to our checker and to everybody else's
 */
#ifndef TP_TESTS_THIN_IMAGE_H
#define TP_TESTS_THIN_IMAGE_H

#include <stdbool.h>

#include "thinpoold/types.h"

struct io_device;
struct thin_metadata;

struct thin_image {
	char path[128];
};

/* Write a mem-device to a (sparse) file in TMPDIR, or else /tmp; aborts if that is not possible. */
struct thin_image thin_image_save(struct io_device *mem);
void thin_image_remove(struct thin_image *image);

/*
 * Do our checker, thin_check and tests/tools/thinmeta.py find nothing, not even a wrong
 * accounting hint?  What they say goes to stderr if not.
 */
bool thin_image_is_clean(const struct thin_image *image);

/* The metadata in a mem-device, of a closed pool, had NEEDS_CHECK set: it was checked now. */
void thin_image_clear_needs_check(struct io_device *mem);

/* Damage: @id loses its details and keeps its mapping tree.  In the open transaction. */
void thin_forget_details(struct thin_metadata *tmd, thin_id_t id);

/* Save, check, remove. */
bool thin_device_is_clean(struct io_device *mem);

#endif
