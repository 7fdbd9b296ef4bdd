/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * catalog-rig.c - a pool in memory: two devices, its metadata and its catalog
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "abort-alone.h"
#include "catalog-rig.h"
#include "fault-device.h"
#include "mem-device.h"
#include "thin-image.h"
#include "thin/thin-metadata.h"

#define META_BYTES (8u << 20)

void rig_open_tmd(struct rig *rig)
{
	struct thin_metadata_options options = { .cache_bytes = 1 << 20, .data = rig->data };

	assert_int_equal(thin_metadata_open(rig->meta, &options, &rig->tmd, NULL), 0);
}

void rig_open(struct rig *rig)
{
	rig_open_tmd(rig);
	assert_int_equal(catalog_open(rig->tmd, rig->data, &rig->c), 0);
}

void rig_shut(struct rig *rig)
{
	rig->c = catalog_close(rig->c);
	assert_int_equal(thin_metadata_close(rig->tmd), 0);
}

void rig_commit(struct rig *rig)
{
	assert_int_equal(thin_metadata_commit(rig->tmd), 0);
	catalog_committed(rig->c);
}

void rig_abort(struct rig *rig)
{
	assert_int_equal(abort_alone(rig->tmd), 0);
	catalog_aborted(rig->c);
}

void rig_reopen(struct rig *rig)
{
	rig_shut(rig);
	rig_open(rig);
}

void rig_format(struct rig *rig, uint64_t block_bytes, uint64_t nr_blocks)
{
	rig->block_bytes = block_bytes;
	rig->meta_mem = mem_device_create(META_BYTES);
	rig->meta = fault_device_create(rig->meta_mem);
	rig->data_mem = mem_device_create(block_bytes * nr_blocks);
	mem_device_set_alignment(rig->data_mem, 4096);
	rig->data = fault_device_create(rig->data_mem);
	assert_int_equal(
		thin_metadata_format(rig->meta, (uint32_t)(block_bytes / SECTOR_SIZE), NULL), 0);
	rig_open_tmd(rig);
	assert_int_equal(thin_metadata_resize_data(rig->tmd, nr_blocks), 0);
	assert_int_equal(thin_metadata_commit(rig->tmd), 0);
}

void rig_make(struct rig *rig, uint64_t block_bytes, uint64_t nr_blocks)
{
	rig_format(rig, block_bytes, nr_blocks);
	assert_int_equal(catalog_create(rig->tmd, rig->data), 0);
	assert_int_equal(thin_metadata_commit(rig->tmd), 0);
	assert_int_equal(catalog_open(rig->tmd, rig->data, &rig->c), 0);
}

void rig_drop(struct rig *rig)
{
	rig_shut(rig);
	io_device_close(rig->meta);
	io_device_close(rig->data);
}

void rig_end(struct rig *rig)
{
	assert_true(thin_device_is_clean(rig->meta_mem));
	rig_drop(rig);
}

void rig_clone(struct rig *rig, struct rig *image)
{
	*image = (struct rig){ .block_bytes = rig->block_bytes };
	image->meta_mem = mem_device_clone(rig->meta_mem);
	image->meta = fault_device_create(image->meta_mem);
	image->data_mem = mem_device_clone(rig->data_mem);
	image->data = fault_device_create(image->data_mem);
}

void rig_crash_image(struct rig *rig, struct rig *image)
{
	rig_clone(rig, image);
	rig_open(image);
}

uint64_t data_bytes_written(struct rig *rig)
{
	const struct fault_log_entry *log;
	uint64_t bytes = 0;
	size_t nr;

	log = fault_device_log(rig->data, &nr);
	for (size_t i = 0; i < nr; i++)
		bytes += log[i].op == IO_WRITE || log[i].op == IO_ZERO ? log[i].length : 0;
	fault_device_log_clear(rig->data);
	return bytes;
}
