/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * format.c - the verb that makes a pool
 *
 * Everything that can be decided is decided before anything is overwritten: both devices are
 * open and held, and found unused; what lies in the way of a link is held too, so that no daemon
 * serves it; the links are there under names of their own.  Then the devices lose what they
 * held, get a pool, and the links their names.
 *
 * Invariant: when it fails, nothing is left that was not there before, and nothing is changed
 * unless the devices had begun to be written.
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "catalog/catalog.h"
#include "ctl/ctl.h"
#include "io/device.h"
#include "thin/thin-metadata.h"
#include "thinpoold/disk-format.h"
#include "util/cleanup.h"
#include "util/parse-size.h"

#define PATH_BYTES 4096
#define DEFAULT_BLOCK_SIZE (64u << 10)
#define MIN_METADATA_SIZE (UINT64_C(2) << 20)      /* the smallest that LVM makes */
#define DEFAULT_METADATA_SIZE (UINT64_C(16) << 20) /* at least */
#define METADATA_BYTES_PER_BLOCK 64 /* mappings of some snapshots too; as LVM counts */
/*
 * So much of a metadata file is written before it is used, if it takes no more than this part of
 * what its host has left: a commit then overwrites what is there, and its flushes do not wait for
 * the host's file system to make new extents durable.
 */
#define WRITTEN_METADATA (UINT64_C(64) << 20)
#define WRITTEN_PART 8
#define ZEROS_BYTES (UINT64_C(1) << 20)
#define FORMAT_CACHE_BYTES (UINT64_C(16) << 20)

/* Where file systems, partition tables, LVM and RAID have their marks: at the start, at the end. */
#define MARKS_BYTES (UINT64_C(1) << 20)

/* Records, their spare, and the catalog's own record. */
#define CATALOG_BLOCKS 3

/* One of the two halves of a pool. */
struct half {
	const char *what;          /* "data" or "metadata": also the name in POOLDIR */
	const char *elsewhere;     /* the path given by an option, or NULL */
	char path[PATH_BYTES];     /* in POOLDIR */
	char target[PATH_BYTES];   /* where it is: path, or elsewhere made absolute */
	char new_link[PATH_BYTES]; /* in POOLDIR, until it gets its name */
	uint64_t size;             /* bytes; 0: not known yet */
	bool made_file, needs_link, made_link;
	struct io_device *dev;
	struct io_device *in_the_way; /* what path leads to, held until a link replaces it */
};

struct format {
	struct half data, metadata;
	uint64_t block_size;
	bool made_directory, force;
};

/* ---- paths ---- */

static int half_paths(struct half *h, const char *pooldir)
{
	TP_INVARIANT(pooldir);
	if (snprintf(h->path, sizeof(h->path), "%s/%s", pooldir, h->what) >= (int)sizeof(h->path) ||
	    snprintf(h->new_link, sizeof(h->new_link), "%s/.%s.new", pooldir, h->what) >=
		    (int)sizeof(h->new_link))
		return ctl_fail(CTL_USAGE, "%s: the path is too long", pooldir);
	if (!h->elsewhere || *h->elsewhere == '/') {
		const char *target = h->elsewhere ? h->elsewhere : h->path;

		if (snprintf(h->target, sizeof(h->target), "%s", target) >= (int)sizeof(h->target))
			return ctl_fail(CTL_USAGE, "%s: the path is too long", target);
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

/* Creating the file would create it wherever the link leads, in /dev even. */
static bool leads_nowhere(const char *path)
{
	struct stat st;

	return exists(path) && stat(path, &st) && errno == ENOENT;
}

/* The same file, found by the same name or by a hard link of it; links are not followed. */
static bool same_entry(const char *a, const char *b)
{
	struct stat sa, sb;

	return !lstat(a, &sa) && !lstat(b, &sb) && sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
}

/* What was made in a directory stays there from now on.  Some file systems know no such thing. */
static int sync_directory(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), r;

	if (fd < 0)
		return -errno;
	r = fsync(fd) && errno != EINVAL && errno != ENOTSUP ? -errno : 0;
	close(fd);
	return r;
}

static int sync_parent(const char *path)
{
	char copy[PATH_BYTES];

	snprintf(copy, sizeof(copy), "%s", path);
	return sync_directory(dirname(copy));
}

/* ---- sizes ---- */

/* What the options say; a size of 0 is decided when the device is open. */
static int check_options(const struct format *f)
{
	uint64_t blocks;

	if (f->block_size % ((uint64_t)DATA_BLOCK_MIN_SECTORS * SECTOR_SIZE) ||
	    f->block_size > (uint64_t)DATA_BLOCK_MAX_SECTORS * SECTOR_SIZE)
		return ctl_fail(CTL_USAGE, "--block-size must be a multiple of 64K, at most 1G");
	if (f->metadata.size && f->metadata.size < MIN_METADATA_SIZE)
		return ctl_fail(CTL_USAGE, "--metadata-size is too small: at least 2M");
	blocks = f->data.size / f->block_size;
	if (f->data.size && blocks < CATALOG_BLOCKS + 1)
		return ctl_fail(CTL_USAGE,
				"--size is too small: a pool needs %u data blocks or more",
				CATALOG_BLOCKS + 1);
	if (blocks > DATA_BLOCK_LIMIT)
		return ctl_fail(CTL_USAGE, "--size is too large: use larger blocks");
	return CTL_OK;
}

static uint64_t default_metadata_size(const struct format *f)
{
	uint64_t bytes = f->data.size / f->block_size * METADATA_BYTES_PER_BLOCK;

	return MIN(MAX(bytes, DEFAULT_METADATA_SIZE), MAX_METADATA_BLOCKS * METADATA_BLOCK_SIZE);
}

/*
 * A block device is used whole, as the daemon would grow into it anyway; a file gets whole units
 * of the size asked for, or keeps the one it has, or gets the default.
 */
static int settle_size(struct half *h, uint64_t unit, uint64_t smallest, uint64_t otherwise)
{
	uint64_t has = io_device_size(h->dev);
	char size[FORMAT_SIZE_MAX];

	if (h->dev->is_block_device) {
		if (has < h->size)
			return ctl_fail(CTL_NO_SPACE, "%s has %s only", io_device_name(h->dev),
					format_size(has, size, sizeof(size)));
		h->size = has;
	} else if (!h->size) {
		h->size = has ? has : otherwise;
	}
	if (!h->size)
		return ctl_fail(CTL_USAGE, "%s is empty: give its size with --size",
				io_device_name(h->dev));
	if (!h->dev->is_block_device)
		h->size -= h->size % unit;
	if (h->size < smallest)
		return ctl_fail(CTL_NO_SPACE, "%s is too small: %s needs %s",
				io_device_name(h->dev), h->what,
				format_size(smallest, size, sizeof(size)));
	return CTL_OK;
}

/* ---- what is there ---- */

static int told_open_error(const char *path, int r)
{
	return ctl_fail(ctl_exit_of(r), "%s: %s", path, io_device_open_words(r));
}

/* The name in POOLDIR that a link shall get: taken only with --force, and never from a daemon. */
static int hold_what_is_in_the_way(struct half *h, bool force)
{
	int r;

	if (!exists(h->path))
		return CTL_OK;
	if (!force)
		return ctl_fail(CTL_EXISTS, "%s exists: use --force to replace it", h->path);
	if (leads_nowhere(h->path) || io_device_is_same(h->path, h->target))
		return CTL_OK;
	r = io_device_open(h->path, 0, &h->in_the_way);
	return r ? told_open_error(h->path, r) : CTL_OK;
}

static int open_half(struct half *h, bool force, bool needs_size)
{
	int code = CTL_OK, r;

	if (leads_nowhere(h->target))
		return ctl_fail(CTL_FAILED,
				"%s is a link to nothing: remove it, or what it names "
				"is missing",
				h->target);
	h->needs_link = h->elsewhere && !same_entry(h->target, h->path);
	if (h->needs_link)
		code = hold_what_is_in_the_way(h, force);
	if (code)
		return code;
	h->made_file = !exists(h->target);
	if (h->made_file && needs_size && !h->size)
		return ctl_fail(CTL_USAGE, "%s does not exist: give its size with --size",
				h->target);
	r = io_device_open(h->target, IO_OPEN_CREATE, &h->dev);
	if (!r)
		return CTL_OK;
	h->made_file = h->made_file && exists(h->target);
	return told_open_error(h->target, r);
}

static int reads_as_zeros(struct io_device *dev, uint64_t offset, uint64_t length, bool *ret_zeros)
{
	char *buffer;
	int r;

	*ret_zeros = true;
	if (!length || io_device_known_zero(dev, offset, length))
		return 0;
	buffer = io_buffer_alloc(length);
	if (!buffer)
		return -ENOMEM;
	r = io_device_read(dev, buffer, length, offset);
	if (!r)
		*ret_zeros = !buffer[0] && !memcmp(buffer, buffer + 1, length - 1);
	free(buffer);
	return r;
}

/* Without --force, what holds anything but zeros where marks are is somebody's. */
static int refuse_used(struct half *h)
{
	uint64_t unit = io_device_alignment(h->dev), size = io_device_size(h->dev), some;
	bool start = false, end = false;
	int r = 0;

	if (h->made_file || !size)
		return CTL_OK;
	size -= size % unit;
	some = MIN(size, MARKS_BYTES);
	if (size)
		r = reads_as_zeros(h->dev, 0, some, &start);
	if (!r && size)
		r = reads_as_zeros(h->dev, size - some, some, &end);
	if (r)
		return ctl_fail(CTL_FAILED, "%s cannot be read: %s", h->target, strerror(-r));
	if (!start || !end)
		return ctl_fail(CTL_EXISTS,
				"%s holds something already: use --force to overwrite it",
				h->target);
	return CTL_OK;
}

/* ---- making it ---- */

static int make_link(struct half *h)
{
	struct stat st;

	if (!h->needs_link)
		return CTL_OK;
	if (!lstat(h->new_link, &st) && S_ISLNK(st.st_mode))
		unlink(h->new_link); /* a format that was killed left it */
	if (symlink(h->target, h->new_link))
		return ctl_fail(ctl_exit_of(-errno), "%s cannot be made: %s", h->new_link,
				strerror(errno));
	h->made_link = true;
	return CTL_OK;
}

static int name_link(struct half *h)
{
	if (!h->made_link)
		return CTL_OK;
	if (rename(h->new_link, h->path))
		return ctl_fail(ctl_exit_of(-errno), "%s cannot be made: %s", h->path,
				strerror(errno));
	h->made_link = false;
	return CTL_OK;
}

static int size_half(struct half *h)
{
	int r = h->dev->is_block_device ? 0 : io_device_empty(h->dev, h->size);

	if (r)
		return ctl_fail(ctl_exit_of(r), "%s cannot be made that large: %s", h->target,
				strerror(-r));
	return CTL_OK;
}

static bool host_has_plenty(const struct half *h, uint64_t bytes)
{
	struct statvfs fs;

	return !statvfs(h->target, &fs) && bytes <= fs.f_bavail * fs.f_frsize / WRITTEN_PART;
}

/* That there is no room is found out, if ever, by who needs it. */
static int write_metadata_once(struct half *h)
{
	uint64_t bytes = MIN(h->size, WRITTEN_METADATA), n;
	void *zeros;
	int r = 0;

	if (h->dev->is_block_device || !host_has_plenty(h, bytes))
		return CTL_OK;
	zeros = io_buffer_alloc(ZEROS_BYTES);
	if (!zeros)
		return ctl_fail(CTL_FAILED, "no memory");
	memset(zeros, 0, ZEROS_BYTES);
	for (uint64_t at = 0; at < bytes && !r; at += n) {
		n = MIN(bytes - at, ZEROS_BYTES);
		r = io_device_write(h->dev, zeros, n, at);
	}
	free(zeros);
	if (r && r != -ENOSPC)
		return ctl_fail(ctl_exit_of(r), "%s cannot be written: %s", h->target,
				strerror(-r));
	return CTL_OK;
}

/* A host that is full shall not make metadata fail; where that costs too much the daemon says so.
 */
static int allocate_metadata(struct half *h)
{
	int r = io_device_allocate_cheaply(h->dev, 0, h->size);

	if (r && r != -ENOSPC)
		return ctl_fail(ctl_exit_of(r), "%s cannot be allocated: %s", h->target,
				strerror(-r));
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

/* Durable with its names. */
static int sync_pool(const struct format *f, const char *pooldir)
{
	int r = io_device_flush(f->data.dev);

	if (!r)
		r = io_device_flush(f->metadata.dev);
	if (!r)
		r = sync_directory(pooldir);
	if (!r && f->made_directory)
		r = sync_parent(pooldir);
	if (!r && f->data.made_file)
		r = sync_parent(f->data.target);
	if (!r && f->metadata.made_file)
		r = sync_parent(f->metadata.target);
	return r ? ctl_fail(ctl_exit_of(r), "%s cannot be made durable: %s", pooldir, strerror(-r))
		 : CTL_OK;
}

/* Both halves open, held, unused, and large enough; nothing is changed. */
static int find_devices(struct format *f)
{
	int code = open_half(&f->data, f->force, true);

	if (!code)
		code = settle_size(&f->data, f->block_size, (CATALOG_BLOCKS + 1) * f->block_size,
				   0);
	if (!code && f->data.size / f->block_size > DATA_BLOCK_LIMIT)
		code = ctl_fail(CTL_USAGE, "%s is too large: use larger blocks", f->data.target);
	if (!code && io_device_is_same(f->data.target, f->metadata.target))
		code = ctl_fail(CTL_USAGE, "data and metadata must not be the same file");
	if (!code)
		code = open_half(&f->metadata, f->force, false);
	if (!code)
		code = settle_size(&f->metadata, METADATA_BLOCK_SIZE, MIN_METADATA_SIZE,
				   default_metadata_size(f));
	if (!code && !f->force)
		code = refuse_used(&f->metadata);
	if (!code && !f->force)
		code = refuse_used(&f->data);
	return code;
}

static int format_devices(struct format *f, const char *pooldir)
{
	struct tp_error error = { "" };
	int code, r;

	code = find_devices(f);
	if (!code)
		code = make_link(&f->data);
	if (!code)
		code = make_link(&f->metadata);
	if (!code)
		code = size_half(&f->data);
	if (!code)
		code = size_half(&f->metadata);
	if (!code)
		code = allocate_metadata(&f->metadata);
	if (!code)
		code = write_metadata_once(&f->metadata);
	if (code)
		return code;
	r = write_pool(f, &error);
	if (r)
		return ctl_fail(ctl_exit_of(r), "%s", error.text[0] ? error.text : strerror(-r));
	code = name_link(&f->data);
	if (!code)
		code = name_link(&f->metadata);
	return code ? code : sync_pool(f, pooldir);
}

static void undo_half(struct half *h)
{
	if (h->made_link)
		unlink(h->new_link);
	if (h->made_file)
		unlink(h->target);
}

static void close_half(struct half *h)
{
	io_device_close(h->dev);
	io_device_close(h->in_the_way);
}

static int make_directory(struct format *f, const char *pooldir)
{
	struct stat st;

	if (!mkdir(pooldir, 0700)) {
		f->made_directory = true;
		return CTL_OK;
	}
	if (errno != EEXIST)
		return ctl_fail(ctl_exit_of(-errno), "%s cannot be made: %s", pooldir,
				strerror(errno));
	if (stat(pooldir, &st) || !S_ISDIR(st.st_mode))
		return ctl_fail(CTL_FAILED, "%s is not a directory", pooldir);
	return CTL_OK;
}

static void tell_what_was_made(const struct format *f, const char *pooldir)
{
	char size[FORMAT_SIZE_MAX], metadata_size[FORMAT_SIZE_MAX], block[FORMAT_SIZE_MAX];

	printf("%s: a pool of %s in blocks of %s, metadata %s\n", pooldir,
	       format_size(f->data.size, size, sizeof(size)),
	       format_size(f->block_size, block, sizeof(block)),
	       format_size(f->metadata.size, metadata_size, sizeof(metadata_size)));
}

int ctl_format(const struct ctl_args *a)
{
	struct format f = {
		.data = { .what = "data", .elsewhere = a->data, .size = a->size },
		.metadata = { .what = "metadata",
			      .elsewhere = a->metadata,
			      .size = a->metadata_size },
		.block_size = a->block_size ? a->block_size : DEFAULT_BLOCK_SIZE,
		.force = a->force,
	};
	const char *pooldir = a->args[0];
	int code;

	if (!a->has_size && !a->data)
		return ctl_fail(CTL_USAGE, "format needs --size");
	if (a->has_size && !a->size)
		return ctl_fail(CTL_USAGE, "--size must not be 0");
	code = check_options(&f);
	if (!code)
		code = half_paths(&f.data, pooldir);
	if (!code)
		code = half_paths(&f.metadata, pooldir);
	if (!code)
		code = make_directory(&f, pooldir);
	if (code)
		return code;

	code = format_devices(&f, pooldir);
	/* Removed while they are held: nobody else can have begun to use them. */
	if (code) {
		undo_half(&f.data);
		undo_half(&f.metadata);
		if (f.made_directory)
			rmdir(pooldir);
	}
	close_half(&f.data);
	close_half(&f.metadata);
	if (!code)
		tell_what_was_made(&f, pooldir);
	return code;
}
