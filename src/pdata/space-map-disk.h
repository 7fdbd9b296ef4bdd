/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * space-map-disk.h - counts of the data device's blocks
 *
 * Layer:    pdata.
 * Threads:  as space-map.h.
 * Units:    data blocks.
 * Errors:   as space-map.h.
 *
 * Beyond the common operations this map knows two things that live in memory only:
 *
 *   reserved   blocks kept out of allocation without being counted on disk: a block
 *              whose first write is under way, or one being punched.  A crash or an
 *              abort forgets them, so neither can leak a block.  So are, until the commit,
 *              blocks that the open transaction has taken into use and freed again.
 *   freed      blocks whose count fell to 0 in this transaction, for passing the
 *              discard down once the transaction is durable.
 */
#ifndef TP_PDATA_SPACE_MAP_DISK_H
#define TP_PDATA_SPACE_MAP_DISK_H

#include "pdata/space-map.h"
#include "thinpoold/types.h"
#include "util/lock-class.h"

struct transaction_manager;

int sm_disk_create(struct transaction_manager *tm, dblock_t nr_blocks, struct space_map **ret_sm)
	TP_TAKES(bufio) TP_MUST_CHECK;
int sm_disk_open(struct transaction_manager *tm, const struct disk_sm_root *root,
		 struct space_map **ret_sm) TP_MUST_CHECK;

/*
 * Find a block free in both states and not reserved, and reserve it; its count stays 0.
 * Consecutive calls give consecutive blocks where they are free.  Reserved blocks do not
 * count as free.  -ENOSPC.
 */
int sm_disk_reserve_block(struct space_map *sm, dblock_t *ret_b) TP_TAKES(bufio) TP_MUST_CHECK;

/* Take [begin, end), all free now, out of allocation.  -EINVAL if one is in use or reserved. */
int sm_disk_reserve_range(struct space_map *sm, dblock_t begin, dblock_t end)
	TP_TAKES(bufio) TP_MUST_CHECK;

/* Put reserved blocks back; a block inside the range that is not reserved is passed over. */
void sm_disk_unreserve_range(struct space_map *sm, dblock_t begin, dblock_t end);

/* The block was reserved and gets its first user: count 1, no longer reserved. */
int sm_disk_use_reserved(struct space_map *sm, dblock_t b) TP_TAKES(bufio) TP_MUST_CHECK;

/*
 * Runs of blocks freed by the transaction just committed (call it after the commit):
 * calls @fn for each and forgets them.  Runs used again or too many to remember are left
 * out: then only a punch is lost.
 */
void sm_disk_take_freed(struct space_map *sm, void (*fn)(void *ctx, dblock_t begin, dblock_t end),
			void *ctx);

/*
 * The next blocks in a row that are free in both states and not reserved, from @from on,
 * @max_blocks of them at most, and no more is looked at.  -ENODATA: none.
 */
int sm_disk_next_free_run(struct space_map *sm, dblock_t from, uint64_t max_blocks,
			  dblock_t *ret_begin, dblock_t *ret_end) TP_TAKES(bufio) TP_MUST_CHECK;

#endif
