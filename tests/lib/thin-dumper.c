/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-dumper.c - a program: what thin/ reads from a metadata device, as thin_dump would print it
 *
 *   thin-dumper META             print XML
 *   thin-dumper --exercise META  on the writable image: snapshot every device, write to and discard
 *                                from the snapshots, delete them; everything but the clock is
 *                                then as before.  Exit 3: the pool refuses changes (NEEDS_CHECK).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/device.h"
#include "thin/thin-dump.h"
#include "thin/thin-metadata.h"
#include "thinpoold/disk-format.h"

#define MAX_DEVICES 1000u
#define WRITES_PER_SNAPSHOT 20u
#define FAR_BLOCK (UINT64_C(1) << 39)
#define FIRST_SNAPSHOT 1000u
#define EXIT_REFUSED 3

static void die_if(int r, const char *what)
{
	if (r) {
		fprintf(stderr, "thin-dumper: %s: %s\n", what, strerror(-r));
		exit(EXIT_FAILURE);
	}
}

/* ---- exercise ---- */

struct device_list {
	unsigned nr;
	thin_id_t ids[MAX_DEVICES];
};

static int collect_device(void *ctx, const struct thin_device_details *d)
{
	struct device_list *list = ctx;

	if (list->nr == MAX_DEVICES)
		return -E2BIG;
	list->ids[list->nr++] = d->id;
	return 0;
}

static thin_id_t unused_id(const struct device_list *list, thin_id_t from)
{
	for (unsigned i = 0; i < list->nr; i++)
		if (list->ids[i] == from)
			return unused_id(list, from + 1);
	return from;
}

static void write_and_discard(struct thin_metadata *tmd, thin_id_t id)
{
	struct thin_device *td;
	vblock_t next;
	dblock_t b;
	int r = 0;

	die_if(thin_device_open(tmd, id, &td), "open of the snapshot");
	for (vblock_t v = 0; v < WRITES_PER_SNAPSHOT && !r; v++) {
		r = thin_metadata_reserve_data_block(tmd, &b);
		if (r == -ENOSPC)
			break;
		die_if(r, "reserve");
		die_if(thin_insert_block(td, v * 5, b), "insert");
	}
	die_if(thin_remove_range(td, 10, 1000, UINT64_MAX, &next), "discard");
	thin_device_close(td);
}

/*
 * First of all, because a metadata snapshot shares the leaf of the top tree only until the first
 * change: a mapping that was not there comes and goes.
 */
static int come_and_go(struct thin_metadata *tmd, thin_id_t id)
{
	struct thin_device *td;
	vblock_t next;
	dblock_t b;
	int r;

	die_if(thin_device_open(tmd, id, &td), "open");
	r = thin_metadata_reserve_data_block(tmd, &b);
	if (!r) {
		die_if(thin_insert_block(td, FAR_BLOCK, b), "insert");
		die_if(thin_metadata_commit(tmd), "commit");
		die_if(thin_remove_range(td, FAR_BLOCK, FAR_BLOCK + 1, 1, &next), "remove");
	}
	thin_device_close(td);
	return r;
}

static void exercise(struct thin_metadata *tmd)
{
	struct device_list list = { 0 };
	thin_id_t snap = FIRST_SNAPSHOT;
	int r;

	die_if(thin_metadata_for_each_device(tmd, collect_device, &list), "devices");
	r = list.nr ? come_and_go(tmd, list.ids[0]) : 0;
	if (r == -EPERM)
		exit(EXIT_REFUSED);
	if (r != -ENOSPC)
		die_if(r, "reserve");
	for (unsigned i = 0; i < list.nr; i++) {
		snap = unused_id(&list, snap + 1);
		die_if(thin_metadata_create_snap(tmd, snap, list.ids[i]), "snapshot");
		write_and_discard(tmd, snap);
		if (i % 2)
			die_if(thin_metadata_commit(tmd), "commit");
		die_if(thin_metadata_delete_thin(tmd, snap), "delete");
	}
	die_if(thin_metadata_commit(tmd), "last commit");
}

int main(int argc, char **argv)
{
	bool writing = argc == 3 && !strcmp(argv[1], "--exercise");
	const struct thin_metadata_options options = {
		.cache_bytes = 8 << 20,
		.read_only = !writing,
	};
	struct thin_metadata *tmd;
	struct tp_error error = { 0 };
	struct io_device *dev;

	if (argc != 2 && !writing) {
		fprintf(stderr, "usage: thin-dumper [--exercise] META\n");
		return EXIT_FAILURE;
	}
	die_if(io_device_open(argv[argc - 1], writing ? 0 : IO_OPEN_READ_ONLY, &dev),
	       argv[argc - 1]);
	if (thin_metadata_open(dev, &options, &tmd, &error)) {
		fprintf(stderr, "thin-dumper: %s\n", error.text);
		return EXIT_FAILURE;
	}
	if (writing)
		exercise(tmd);
	else
		die_if(thin_dump(tmd, stdout), "dump");
	die_if(thin_metadata_close(tmd), "close");
	io_device_close(dev);
	return EXIT_SUCCESS;
}
