/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-dump.c - the metadata as XML, as thin_dump(8) prints it
 *
 * One element a line.  Mappings that follow each other in the volume and on the data device,
 * and have the same time, are one range.
 */
#include "thin/thin-dump.h"

#include <errno.h>
#include <inttypes.h>

#include "thin/thin-metadata.h"
#include "thinpoold/disk-format.h"

struct dump {
	struct thin_metadata *tmd;
	FILE *out;
};

static int written(FILE *out)
{
	if (!ferror(out))
		return 0;
	return errno > 0 ? -errno : -EIO;
}

static int dump_mapping(void *ctx, const struct thin_mapping *m)
{
	FILE *out = ((struct dump *)ctx)->out;

	if (m->nr_blocks == 1)
		fprintf(out,
			"    <single_mapping origin_block=\"%" PRIu64 "\" data_block=\"%" PRIu64
			"\" time=\"%" PRIu32 "\"/>\n",
			m->vblock, m->dblock, m->time);
	else
		fprintf(out,
			"    <range_mapping origin_begin=\"%" PRIu64 "\" data_begin=\"%" PRIu64
			"\" length=\"%" PRIu64 "\" time=\"%" PRIu32 "\"/>\n",
			m->vblock, m->dblock, m->nr_blocks, m->time);
	return written(out);
}

static int dump_device(void *ctx, const struct thin_device_details *d)
{
	struct dump *dump = ctx;
	int r;

	fprintf(dump->out,
		"  <device dev_id=\"%" PRIu32 "\" mapped_blocks=\"%" PRIu64
		"\" transaction=\"%" PRIu64 "\" creation_time=\"%" PRIu32 "\" snap_time=\"%" PRIu32
		"\">\n",
		d->id, d->mapped_blocks, d->transaction_id, d->creation_time, d->snapshotted_time);
	r = thin_metadata_for_each_mapping(dump->tmd, d->id, dump_mapping, dump);
	if (r)
		return r;
	fputs("  </device>\n", dump->out);
	return written(dump->out);
}

int thin_dump(struct thin_metadata *tmd, FILE *out)
{
	struct dump dump = { tmd, out };
	struct thin_metadata_info info;
	int r;

	r = thin_metadata_get_info(tmd, &info);
	if (r)
		return r;
	fprintf(out,
		"<superblock uuid=\"\" time=\"%" PRIu32 "\" transaction=\"%" PRIu64
		"\" flags=\"%u\" version=\"2\" data_block_size=\"%" PRIu32
		"\" nr_data_blocks=\"%" PRIu64 "\">\n",
		info.time, info.transaction_id, info.needs_check ? THIN_NEEDS_CHECK_FLAG : 0,
		info.data_block_sectors, info.nr_data_blocks);
	r = thin_metadata_for_each_device(tmd, dump_device, &dump);
	if (r)
		return r;
	fputs("</superblock>\n", out);
	errno = 0;
	return fflush(out) ? (errno ? -errno : -EIO) : written(out);
}
