/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * offline.c - verbs about a pool that is not in use: format and check
 *
 * Both open the devices exclusively first, so a pool in service is refused before
 * anything is looked at.  format decides everything it can before it writes; what
 * it created it removes again when it fails.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "catalog/catalog.h"
#include "ctl/ctl.h"
#include "io/device.h"
#include "thin/thin-check.h"
#include "thin/thin-metadata.h"
#include "thinpoold/disk-format.h"
#include "util/cleanup.h"
#include "util/parse-size.h"

#define PATH_BYTES 4096
#define DEFAULT_BLOCK_SIZE (64u << 10)
#define MIN_METADATA_SIZE (UINT64_C(2) << 20)      /* the smallest that LVM makes */
#define DEFAULT_METADATA_SIZE (UINT64_C(16) << 20) /* at least; it is sparse */
#define METADATA_BYTES_PER_BLOCK 64 /* mappings of some snapshots too; as LVM counts */
#define FORMAT_CACHE_BYTES (UINT64_C(16) << 20)
#define MAX_FINDINGS 100 /* lines; a wrecked pool has millions */

/* Records, their spare, and the catalog's own record. */
#define CATALOG_BLOCKS 3

/* ---- format ---- */

/* One of the two halves of a pool. */
struct half {
	const char *what;        /* "data" or "metadata": also the name in POOLDIR */
	const char *elsewhere;   /* the path given by an option, or NULL */
	char path[PATH_BYTES];   /* in POOLDIR */
	char target[PATH_BYTES]; /* what the link shall say */
	uint64_t size;           /* bytes; 0: the device's */
	bool made_file, made_link;
	struct io_device *dev;
};

struct format {
	struct half data, metadata;
	uint64_t block_size;
	bool made_directory;
};

static int half_paths(struct half *h, const char *pooldir)
{
	TP_INVARIANT(pooldir);
	if (snprintf(h->path, sizeof(h->path), "%s/%s", pooldir, h->what) >= (int)sizeof(h->path))
		return ctl_fail(CTL_USAGE, "%s: the path is too long", pooldir);
	if (!h->elsewhere)
		return CTL_OK;
	if (*h->elsewhere == '/') {
		snprintf(h->target, sizeof(h->target), "%s", h->elsewhere);
	} else {
		char cwd[PATH_BYTES / 2];

		if (!getcwd(cwd, sizeof(cwd)))
			return ctl_fail(CTL_FAILED, "no working directory: %s", strerror(errno));
		if (snprintf(h->target, sizeof(h->target), "%s/%s", cwd, h->elsewhere) >=
		    (int)sizeof(h->target))
			return ctl_fail(CTL_USAGE, "%s: the path is too long", h->elsewhere);
	}
	return CTL_OK;
}

static bool exists(const char *path)
{
	struct stat st;

	return !lstat(path, &st);
}

/* Open, or make, the file or device of one half; link it into the pool directory. */
static int open_half(struct half *h, bool force)
{
	const char *path = h->elsewhere ? h->target : h->path;
	char size[FORMAT_SIZE_MAX];
	int r;

	if (h->elsewhere && exists(h->path) && !force)
		return ctl_fail(CTL_EXISTS, "%s exists: use --force to replace it", h->path);
	h->made_file = !exists(path);
	if (h->made_file && !h->size)
		return ctl_fail(CTL_USAGE, "%s does not exist: give its size with --size", path);
	r = io_device_open(path, IO_OPEN_CREATE, &h->dev);
	if (r) {
		h->made_file = h->made_file && exists(path);
		if (r == -EBUSY)
			return ctl_fail(CTL_BUSY, "%s is in use: stop the daemon that serves it",
					path);
		return ctl_fail(ctl_exit_of(r), "%s cannot be opened: %s", path, strerror(-r));
	}
	if (h->dev->is_block_device) {
		if (!h->size)
			h->size = io_device_size(h->dev);
		if (io_device_size(h->dev) < h->size)
			return ctl_fail(CTL_NO_SPACE, "%s has %s only", path,
					format_size(io_device_size(h->dev), size, sizeof(size)));
	} else if (!h->size) {
		h->size = io_device_size(h->dev);
	}
	return CTL_OK;
}

static int link_half(struct half *h, bool force)
{
	if (!h->elsewhere)
		return CTL_OK;
	if (force && exists(h->path) && unlink(h->path))
		return ctl_fail(CTL_FAILED, "%s cannot be replaced: %s", h->path, strerror(errno));
	if (symlink(h->target, h->path))
		return ctl_fail(CTL_FAILED, "%s cannot be made: %s", h->path, strerror(errno));
	h->made_link = true;
	return CTL_OK;
}

/* Without --force, what holds anything but zeros at its start is somebody's. */
static int refuse_used(struct half *h)
{
	bool unformatted;
	int r;

	if (h->made_file || !io_device_size(h->dev))
		return CTL_OK;
	if (io_device_size(h->dev) < METADATA_BLOCK_SIZE)
		return ctl_fail(CTL_EXISTS, "%s exists: use --force to overwrite it",
				io_device_name(h->dev));
	r = thin_metadata_is_unformatted(h->dev, &unformatted);
	if (r)
		return ctl_fail(CTL_FAILED, "%s cannot be read: %s", io_device_name(h->dev),
				strerror(-r));
	if (!unformatted)
		return ctl_fail(CTL_EXISTS, "%s holds %s already: use --force to overwrite it",
				io_device_name(h->dev),
				h->what[0] == 'm' ? "metadata" : "something");
	return CTL_OK;
}

static bool same_device(const char *a, const char *b)
{
	struct stat sa, sb;

	if (stat(a, &sa) || stat(b, &sb))
		return false;
	return (sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino) ||
	       (S_ISBLK(sa.st_mode) && S_ISBLK(sb.st_mode) && sa.st_rdev == sb.st_rdev);
}

static int check_sizes(struct format *f)
{
	uint64_t blocks;

	if (f->block_size % ((uint64_t)DATA_BLOCK_MIN_SECTORS * SECTOR_SIZE) ||
	    f->block_size > (uint64_t)DATA_BLOCK_MAX_SECTORS * SECTOR_SIZE)
		return ctl_fail(CTL_USAGE, "--block-size must be a multiple of 64K, at most 1G");
	if (!f->data.size)
		return CTL_OK; /* a device's size, known later */
	blocks = f->data.size / f->block_size;
	if (blocks < CATALOG_BLOCKS + 1)
		return ctl_fail(CTL_USAGE,
				"--size is too small: a pool needs %u data blocks or more",
				CATALOG_BLOCKS + 1);
	if (blocks > DATA_BLOCK_LIMIT)
		return ctl_fail(CTL_USAGE, "--size is too large: use larger blocks");
	if (f->metadata.size && f->metadata.size < MIN_METADATA_SIZE)
		return ctl_fail(CTL_USAGE, "--metadata-size is too small: at least 2M");
	return CTL_OK;
}

static uint64_t default_metadata_size(const struct format *f)
{
	uint64_t bytes = f->data.size / f->block_size * METADATA_BYTES_PER_BLOCK;

	bytes = (bytes + METADATA_BLOCK_SIZE - 1) / METADATA_BLOCK_SIZE * METADATA_BLOCK_SIZE;
	return MIN(MAX(bytes, DEFAULT_METADATA_SIZE), MAX_METADATA_BLOCKS * METADATA_BLOCK_SIZE);
}

/* Files get their size; what an old file held goes. */
static int size_half(struct half *h)
{
	uint64_t old = io_device_size(h->dev);
	int r = 0;

	if (h->dev->is_block_device)
		return CTL_OK;
	if (old)
		r = io_device_discard(h->dev, 0, old);
	if (!r && h->size > old)
		r = io_device_resize(h->dev, h->size);
	if (r)
		return ctl_fail(ctl_exit_of(r), "%s cannot be made that large: %s",
				io_device_name(h->dev), strerror(-r));
	return CTL_OK;
}

/* Metadata, data size and catalog; the pool is whole when the last commit is durable. */
static int write_pool(struct format *f, struct tp_error *error)
{
	struct thin_metadata_options options = { .cache_bytes = FORMAT_CACHE_BYTES,
						 .data = f->data.dev };
	struct thin_metadata *tmd = NULL;
	int r, r2;

	r = thin_metadata_format(f->metadata.dev, (uint32_t)(f->block_size / SECTOR_SIZE), error);
	if (!r)
		r = thin_metadata_open(f->metadata.dev, &options, &tmd, error);
	if (!r)
		r = thin_metadata_resize_data(tmd, f->data.size / f->block_size);
	if (!r)
		r = thin_metadata_commit(tmd);
	if (!r)
		r = catalog_create(tmd, f->data.dev);
	if (!r)
		r = thin_metadata_commit(tmd);
	r2 = thin_metadata_close(tmd);
	return r ? r : r2;
}

static int format_devices(struct format *f, const struct ctl_args *a)
{
	struct tp_error error = { "" };
	int code, r;

	code = open_half(&f->data, a->force);
	if (!code)
		code = check_sizes(f);
	if (!code && !f->metadata.size && !f->metadata.elsewhere)
		f->metadata.size = default_metadata_size(f);
	if (!code && f->metadata.elsewhere && !f->metadata.size && !exists(f->metadata.target))
		f->metadata.size = default_metadata_size(f);
	if (!code && same_device(f->data.elsewhere ? f->data.target : f->data.path,
				 f->metadata.elsewhere ? f->metadata.target : f->metadata.path))
		code = ctl_fail(CTL_USAGE, "data and metadata must not be the same file");
	if (!code)
		code = open_half(&f->metadata, a->force);
	if (!code && !a->force)
		code = refuse_used(&f->metadata);
	if (!code && !a->force)
		code = refuse_used(&f->data);
	if (!code)
		code = link_half(&f->data, a->force);
	if (!code)
		code = link_half(&f->metadata, a->force);
	if (!code)
		code = size_half(&f->data);
	if (!code)
		code = size_half(&f->metadata);
	if (code)
		return code;
	r = write_pool(f, &error);
	if (r)
		return ctl_fail(ctl_exit_of(r), "%s", error.text[0] ? error.text : strerror(-r));
	return CTL_OK;
}

static void undo_half(struct half *h)
{
	if (h->made_link)
		unlink(h->path);
	if (h->made_file)
		unlink(h->elsewhere ? h->target : h->path);
}

static int make_directory(struct format *f, const char *pooldir)
{
	struct stat st;

	if (!mkdir(pooldir, 0700)) {
		f->made_directory = true;
		return CTL_OK;
	}
	if (errno != EEXIST)
		return ctl_fail(CTL_FAILED, "%s cannot be made: %s", pooldir, strerror(errno));
	if (stat(pooldir, &st) || !S_ISDIR(st.st_mode))
		return ctl_fail(CTL_FAILED, "%s is not a directory", pooldir);
	return CTL_OK;
}

int ctl_format(const struct ctl_args *a)
{
	struct format f = {
		.data = { .what = "data", .elsewhere = a->data, .size = a->size },
		.metadata = { .what = "metadata",
			      .elsewhere = a->metadata,
			      .size = a->metadata_size },
		.block_size = a->block_size ? a->block_size : DEFAULT_BLOCK_SIZE,
	};
	const char *pooldir = a->args[0];
	char size[FORMAT_SIZE_MAX], metadata_size[FORMAT_SIZE_MAX], block[FORMAT_SIZE_MAX];
	int code;

	if (!a->has_size && !a->data)
		return ctl_fail(CTL_USAGE, "format needs --size");
	if (a->has_size && !a->size)
		return ctl_fail(CTL_USAGE, "--size must not be 0");
	code = half_paths(&f.data, pooldir);
	if (!code)
		code = half_paths(&f.metadata, pooldir);
	if (!code)
		code = check_sizes(&f);
	if (!code)
		code = make_directory(&f, pooldir);
	if (code)
		return code;

	code = format_devices(&f, a);
	io_device_close(f.data.dev);
	io_device_close(f.metadata.dev);
	if (code) {
		undo_half(&f.data);
		undo_half(&f.metadata);
		if (f.made_directory)
			rmdir(pooldir);
		return code;
	}
	printf("%s: a pool of %s in blocks of %s, metadata %s\n", pooldir,
	       format_size(f.data.size, size, sizeof(size)),
	       format_size(f.block_size, block, sizeof(block)),
	       format_size(f.metadata.size, metadata_size, sizeof(metadata_size)));
	return CTL_OK;
}

/* ---- check ---- */

static void report_finding(void *ctx, enum thin_check_severity severity, const char *line)
{
	static const char *const words[] = {
		[THIN_CHECK_HINT] = "hint",
		[THIN_CHECK_LEAK] = "leak",
		[THIN_CHECK_DAMAGE] = "damage",
	};

	(void)ctx;
	printf("%s: %s\n", words[severity], line);
}

static int open_for_check(const char *pooldir, const char *what, struct io_device **ret_dev)
{
	char path[PATH_BYTES];
	int r;

	if (snprintf(path, sizeof(path), "%s/%s", pooldir, what) >= (int)sizeof(path))
		return ctl_fail(CTL_USAGE, "%s: the path is too long", pooldir);
	r = io_device_open(path, IO_OPEN_READ_ONLY, ret_dev);
	if (r == -EBUSY)
		return ctl_fail(CTL_BUSY, "%s is in use: stop the daemon that serves it", path);
	if (r)
		return ctl_fail(ctl_exit_of(r), "%s cannot be opened: %s", path, strerror(-r));
	return CTL_OK;
}

static int print_result(const char *pooldir, const struct thin_check_result *result)
{
	if (result->nr_damages)
		return ctl_fail(CTL_FAILED,
				"%s is damaged: %" PRIu64 " findings, do not write to it", pooldir,
				result->nr_damages);
	printf("%s: clean, transaction %" PRIu64 ", %" PRIu64 " devices, %" PRIu64 " mappings, "
	       "%" PRIu64 " metadata blocks and %" PRIu64 " data blocks in use\n",
	       pooldir, result->transaction_id, result->nr_devices, result->nr_mappings,
	       result->nr_metadata_used, result->nr_data_used);
	if (result->nr_leaks)
		printf("%s: %" PRIu64
		       " blocks are lost to leaks, nothing else is wrong with them\n",
		       pooldir, result->nr_leaks);
	if (result->needs_check)
		printf("%s: the needs_check flag is set: it will be served read-only\n", pooldir);
	return CTL_OK;
}

int ctl_check(const struct ctl_args *a)
{
	struct thin_check_options options = { .report = report_finding,
					      .max_findings = MAX_FINDINGS };
	struct io_device *data = NULL, *metadata = NULL;
	struct thin_check_result result;
	int code, r;

	code = open_for_check(a->args[0], "metadata", &metadata);
	if (!code)
		code = open_for_check(a->args[0], "data", &data);
	if (!code) {
		options.data_bytes = io_device_size(data);
		r = thin_check(metadata, &options, &result);
		code = r ? ctl_fail(CTL_FAILED, "%s cannot be checked: %s", a->args[0],
				    strerror(-r))
			 : print_result(a->args[0], &result);
	}
	io_device_close(data);
	io_device_close(metadata);
	return code;
}
