/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fake-space-map.h - counts in an array: a space map without a disk
 *
 * Keeps the rule L2: a block in use in the committed state is not handed out.  Counts that
 * would go below zero give -EINVAL, like the real maps.
 */
#ifndef TP_TESTS_FAKE_SPACE_MAP_H
#define TP_TESTS_FAKE_SPACE_MAP_H

#include "pdata/space-map.h"

/* Block 0 starts with count 1, as that of a superblock does.  Aborts without memory. */
struct space_map *fake_sm_create(uint64_t nr_blocks);

/* Back to the state of the last commit. */
void fake_sm_abort(struct space_map *sm);

/* Fail the @nth allocation from now on (1: the next) with -ENOSPC, once; 0: none. */
void fake_sm_fail_new_block(struct space_map *sm, uint64_t nth);

/* Blocks with a count above 0 now. */
uint64_t fake_sm_nr_allocated(struct space_map *sm);

#endif
