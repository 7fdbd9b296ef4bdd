/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pdata-fixture.c - metadata in memory: device, block manager, counts, transaction manager
 */
#include "pdata-fixture.h"

#include <stdlib.h>
#include <string.h>

#include "fake-space-map.h"
#include "fault-device.h"
#include "mem-device.h"
#include "util/le.h"

static void must(int r)
{
	if (r)
		abort();
}

void pdata_fixture_init(struct pdata_fixture *f, mblock_t nr_blocks, uint64_t cache_bytes)
{
	const struct block_manager_options options = { .cache_bytes = cache_bytes };

	memset(f, 0, sizeof(*f));
	f->nr_blocks = nr_blocks;
	tp_lock_init(&f->meta_root, LC_meta_root, LOCK_KIND_RW);
	f->dev = fault_device_create_mem(nr_blocks * METADATA_BLOCK_SIZE);
	must(bm_create(f->dev, &options, &f->bm));
	f->sm = fake_sm_create(nr_blocks);
	must(tm_create(f->bm, f->sm, &f->tm));
}

void pdata_fixture_destroy(struct pdata_fixture *f)
{
	f->tm = tm_destroy(f->tm);
	f->sm = sm_destroy(f->sm);
	f->bm = bm_destroy(f->bm);
	io_device_close(f->dev);
	tp_lock_destroy(&f->meta_root);
}

void *pdata_fixture_disk(struct pdata_fixture *f, mblock_t b)
{
	return (uint8_t *)mem_device_data(fault_device_inner(f->dev)) + b * METADATA_BLOCK_SIZE;
}

void pdata_fixture_commit(struct pdata_fixture *f)
{
	must(tm_pre_commit(f->tm));
	must(tm_flush(f->tm));
	tm_end_transaction(f->tm);
}

void pdata_fixture_reset(struct pdata_fixture *f)
{
	lock_meta_root(&f->meta_root);
	bm_reset(f->bm);
	unlock_meta_root(&f->meta_root);
}

void pdata_fixture_abort(struct pdata_fixture *f)
{
	f->tm = tm_destroy(f->tm);
	fake_sm_abort(f->sm);
	pdata_fixture_reset(f);
	must(tm_create(f->bm, f->sm, &f->tm));
}

void pdata_fixture_seal(struct pdata_fixture *f, mblock_t b, uint32_t csum_xor)
{
	struct disk_bitmap_header *header = pdata_fixture_disk(f, b);

	header->blocknr = le64_make(b);
	header->csum = le32_make(bm_checksum(header, csum_xor));
	mem_device_touch(fault_device_inner(f->dev), b * METADATA_BLOCK_SIZE, METADATA_BLOCK_SIZE);
}
