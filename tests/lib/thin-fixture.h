/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-fixture.h - a pool's metadata over two devices in memory, for cmocka tests
 */
#ifndef TP_TESTS_THIN_FIXTURE_H
#define TP_TESTS_THIN_FIXTURE_H

#include <stdbool.h>

#include "thin/thin-metadata.h"

#define MIB (UINT64_C(1) << 20)
#define METADATA_BYTES (16 * MIB)
#define SECTORS 128u
#define BLOCK_BYTES (SECTORS * 512u)
#define NR_DATA 1000u
#define WRITES FAULT_OP(IO_WRITE)
#define FLUSHES FAULT_OP(IO_FLUSH)

struct fixture {
	struct io_device *meta, *data; /* fault devices around mem-devices */
	struct thin_metadata *tmd;     /* 0 devices, NR_DATA data blocks */
};

/* For cmocka_unit_test_setup_teardown(). */
int fixture_setup(void **state);
int fixture_teardown(void **state);
#define TEST(name) cmocka_unit_test_setup_teardown(name, fixture_setup, fixture_teardown)

/* All of these fail the test if something goes wrong. */

struct thin_metadata *open_metadata(struct fixture *f);
/* Uncommitted changes are lost. */
void reopen(struct fixture *f);
struct thin_metadata_info info_of(struct fixture *f);
struct thin_device *open_device(struct fixture *f, thin_id_t id);
/* Map @v to a new block. */
dblock_t write_block(struct thin_metadata *tmd, struct thin_device *td, vblock_t v);
/* By both forms of the lookup. */
struct thin_run find(struct thin_device *td, vblock_t v, uint64_t max);
void assert_hole(struct thin_device *td, vblock_t v);
void assert_mapped(struct thin_device *td, vblock_t v, dblock_t b, bool shared);
/* Do other people's tools find nothing wrong? */
bool is_clean(struct fixture *f);
/* Take a metadata snapshot, and commit. */
void hold_metadata(struct fixture *f);
/* Change the superblock of a closed pool: its clock and what was done to it before. */
void set_time(struct fixture *f, uint32_t time);

#endif
