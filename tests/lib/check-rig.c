/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * check-rig.c - images of metadata, their damage, and what the checker says about them
 */
#include "check-rig.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/device.h"
#include "mem-device.h"
#include "util/compiler.h"
#include "util/crc32c.h"
#include "util/le.h"

void report_line(void *ctx, enum thin_check_severity severity, const char *line)
{
	static const char *const names[] = { "hint", "leak", "damage" };
	struct report *report = ctx;
	size_t length = strlen(line) + 16;

	report->lines = realloc(report->lines, report->length + length);
	TP_INVARIANT(report->lines);
	report->length += (size_t)snprintf(report->lines + report->length, length, "%s: %s\n",
					   names[severity], line);
}

void check_image(struct io_device *meta, uint64_t data_bytes, struct report *report)
{
	const struct thin_check_options options = {
		.data_bytes = data_bytes,
		.report = report_line,
		.ctx = report,
	};

	memset(report, 0, sizeof(*report));
	report->r = thin_check(meta, &options, &report->result);
}

void report_free(struct report *report)
{
	free(report->lines);
	memset(report, 0, sizeof(*report));
}

struct io_device *fixture_image(const char *name)
{
	const char *parent = getenv("TMPDIR");
	char dir[128], path[512];
	struct io_device *dev;
	struct stat st;
	int fd;

	snprintf(dir, sizeof(dir), "%s/tp-check-XXXXXX", parent ? parent : "/tmp");
	TP_INVARIANT(mkdtemp(dir));
	snprintf(path, sizeof(path), "tar --zstd -xf '%s/%s.tar.zst' -C %s ./meta.img", FIXTURES,
		 name, dir);
	TP_INVARIANT(!system(path));
	snprintf(path, sizeof(path), "%s/meta.img", dir);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	TP_INVARIANT(fd >= 0 && !fstat(fd, &st));
	dev = mem_device_create((uint64_t)st.st_size);
	TP_INVARIANT(pread(fd, mem_device_data(dev), (size_t)st.st_size, 0) == st.st_size);
	mem_device_touch(dev, 0, (uint64_t)st.st_size);
	close(fd);
	TP_INVARIANT(!unlink(path) && !rmdir(dir));
	return dev;
}

static uint32_t csum_of(const void *block)
{
	return crc32c_raw(0xffffffff, (const uint8_t *)block + 4, METADATA_BLOCK_SIZE - 4);
}

uint32_t block_type(const void *block)
{
	static const uint32_t types[] = { SUPERBLOCK_CSUM_XOR, BTREE_CSUM_XOR, BITMAP_CSUM_XOR,
					  INDEX_CSUM_XOR };
	struct le32 csum;

	memcpy(&csum, block, sizeof(csum));
	for (unsigned i = 0; i < ARRAY_SIZE(types); i++)
		if ((le32_get(csum) ^ csum_of(block)) == types[i])
			return types[i];
	return 0;
}

void seal(void *block, uint32_t csum_xor)
{
	struct le32 csum = le32_make(csum_of(block) ^ csum_xor);

	memcpy(block, &csum, sizeof(csum));
}
