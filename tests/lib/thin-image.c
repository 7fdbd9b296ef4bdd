/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-image.c - metadata in memory, shown to the tools that everybody else uses
 */
#include "thin-image.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mem-device.h"
#include "thinpoold/disk-format.h"

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
	struct thin_image image = { .path = "/tmp/thin-image-XXXXXX" };
	uint64_t size = io_device_size(mem);
	const char *data = mem_device_data(mem);
	int fd = mkstemp(image.path);

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

bool thin_image_is_clean(const struct thin_image *image)
{
	return succeeds("thin_check", image->path) &&
	       succeeds("python3 " THINMETA " check --strict", image->path);
}

bool thin_device_is_clean(struct io_device *mem)
{
	struct thin_image image = thin_image_save(mem);
	bool clean = thin_image_is_clean(&image);

	thin_image_remove(&image);
	return clean;
}
