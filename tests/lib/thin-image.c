/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-image.c - metadata in memory, shown to our checker and to everybody else's
 */
#include "thin-image.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/device.h"
#include "mem-device.h"
#include "thin/thin-check.h"
#include "thin/thin-internal.h"
#include "thinpoold/disk-format.h"
#include "util/crc32c.h"
#include "util/le.h"

static void must(bool ok, const char *what)
{
	if (!ok) {
		perror(what);
		abort();
	}
}

struct thin_image thin_image_save(struct io_device *mem)
{
	static const char zeros[METADATA_BLOCK_SIZE];
	const char *directory = getenv("TMPDIR");
	struct thin_image image;
	uint64_t size = io_device_size(mem);
	const char *data = mem_device_data(mem);
	int fd;

	snprintf(image.path, sizeof(image.path), "%s/thin-image-XXXXXX",
		 directory ? directory : "/tmp");
	fd = mkstemp(image.path);
	must(fd >= 0, image.path);
	must(ftruncate(fd, (off_t)size) == 0, image.path);
	for (uint64_t at = 0; at + METADATA_BLOCK_SIZE <= size; at += METADATA_BLOCK_SIZE)
		if (memcmp(data + at, zeros, METADATA_BLOCK_SIZE) != 0)
			must(pwrite(fd, data + at, METADATA_BLOCK_SIZE, (off_t)at) ==
				     METADATA_BLOCK_SIZE,
			     image.path);
	close(fd);
	return image;
}

void thin_image_remove(struct thin_image *image)
{
	unlink(image->path);
}

/* True if the command succeeds; else its output is shown. */
static bool succeeds(const char *tool, const char *path)
{
	char command[512], line[512];
	FILE *out;
	int status;

	snprintf(command, sizeof(command), "%s '%s' >'%s.out' 2>&1", tool, path, path);
	status = system(command);
	snprintf(line, sizeof(line), "%s.out", path);
	out = fopen(line, "r");
	unlink(line);
	if (status != 0) {
		fprintf(stderr, "# %s: status %d\n", command, status);
		while (out && fgets(line, sizeof(line), out))
			fprintf(stderr, "# %s", line);
	}
	if (out)
		fclose(out);
	return status == 0;
}

static void show_finding(void *ctx, enum thin_check_severity severity, const char *line)
{
	(void)ctx;
	(void)severity;
	fprintf(stderr, "# our checker: %s\n", line);
}

/* Nothing at all to find, not even a wrong hint. */
static bool our_checker_agrees(const char *path)
{
	struct thin_check_options options = { .data_bytes = UINT64_MAX, .report = show_finding };
	struct thin_check_result result;
	struct io_device *dev;
	int r = io_device_open(path, IO_OPEN_READ_ONLY | IO_OPEN_BUFFERED, &dev);

	must(r == 0, path);
	r = thin_check(dev, &options, &result);
	io_device_close(dev);
	return !r && !result.nr_hints && !result.nr_leaks && !result.nr_damages;
}

bool thin_image_is_clean(const struct thin_image *image)
{
	return our_checker_agrees(image->path) && succeeds("thin_check", image->path) &&
	       succeeds("python3 " THINMETA " check --strict", image->path);
}

void thin_image_clear_needs_check(struct io_device *mem)
{
	struct thin_disk_superblock *sb = mem_device_data(mem);
	uint32_t flags = le32_get(sb->flags);

	must((flags & THIN_NEEDS_CHECK_FLAG) != 0, "NEEDS_CHECK");
	sb->flags = le32_make(flags & ~THIN_NEEDS_CHECK_FLAG);
	sb->csum = le32_make(crc32c_raw(0xffffffff, (char *)sb + 4, METADATA_BLOCK_SIZE - 4) ^
			     SUPERBLOCK_CSUM_XOR);
	mem_device_touch(mem, 0, METADATA_BLOCK_SIZE);
}

bool thin_device_is_clean(struct io_device *mem)
{
	struct thin_image image = thin_image_save(mem);
	bool clean = thin_image_is_clean(&image);

	thin_image_remove(&image);
	return clean;
}

TP_NO_TSA void thin_forget_details(struct thin_metadata *tmd, thin_id_t id)
{
	const uint64_t key = id;

	lock_meta_root(&tmd->lock);
	metadata_change_begin(tmd);
	must(btree_remove(&tmd->details_info, tmd->details_root, &key, &tmd->details_root) == 0,
	     "remove details");
	unlock_meta_root(&tmd->lock);
}
