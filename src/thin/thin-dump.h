/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-dump.h - the metadata as XML, as thin_dump(8) prints it
 *
 * Layer:    thin.
 * Threads:  one; devices and mappings are those of the open transaction, so nobody may change
 *           them meanwhile if they are to belong together.
 * Errors:   0 or a negative errno.
 * Units:    blocks and sectors, as the XML has them.
 */
#ifndef TP_THIN_THIN_DUMP_H
#define TP_THIN_THIN_DUMP_H

#include <stdio.h>

#include "util/compiler.h"
#include "util/lock-class.h"

struct thin_metadata;

/*
 * The form is that of thin-provisioning-tools 0.9.0, byte for byte; thin_restore(8) reads it.
 * Errors: those of thin-metadata.h, or what writing to @out said.  Then @out holds a part.
 */
int thin_dump(struct thin_metadata *tmd, FILE *out) TP_TAKES(meta_root) TP_MUST_CHECK;

#endif
