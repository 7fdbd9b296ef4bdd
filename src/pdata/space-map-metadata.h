/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * space-map-metadata.h - counts of the metadata device's own blocks
 *
 * Layer:    pdata.
 * Threads:  as space-map.h.
 * Units:    blocks of the metadata device.
 * Errors:   as space-map.h.
 */
#ifndef TP_PDATA_SPACE_MAP_METADATA_H
#define TP_PDATA_SPACE_MAP_METADATA_H

#include "pdata/space-map.h"
#include "thinpoold/types.h"
#include "util/lock-class.h"

struct transaction_manager;

/* An empty shell, so that a transaction manager can be made around it; then create or open. */
struct space_map *sm_metadata_init(void);

/* Format: the map of @nr_blocks, its own blocks handed out from block @first on (1). */
int sm_metadata_create(struct space_map *sm, struct transaction_manager *tm, mblock_t nr_blocks,
		       mblock_t first) TP_TAKES(bufio) TP_MUST_CHECK;

int sm_metadata_open(struct space_map *sm, struct transaction_manager *tm,
		     const struct disk_sm_root *root) TP_MUST_CHECK;

/*
 * Called (with meta_root held) when an allocation brings the raw free count to @threshold
 * blocks or below, once per crossing; @fn may not change the map.  NULL: nobody.
 */
void sm_metadata_set_threshold(struct space_map *sm, uint64_t threshold_blocks,
			       void (*fn)(void *ctx), void *ctx);

/*
 * With nothing changed since the last commit: keep the blocks of the committed state from being
 * handed out until the pin is taken back, so that somebody else can go on reading them.  In
 * memory only.  Pins may be several, and all are lost when there is no memory, with the map, or
 * by sm_metadata_drop_pins().
 */
uint32_t sm_metadata_pin(struct space_map *sm);
/* @pin: what sm_metadata_pin() returned.  False: it was lost. */
bool sm_metadata_unpin(struct space_map *sm, uint32_t pin) TP_MUST_CHECK;
/* If pins keep any block from being handed out, give them up.  Returns whether. */
bool sm_metadata_drop_pins(struct space_map *sm);

#endif
