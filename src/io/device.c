/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * device.c - opening files and block devices, and the calls every device has
 *
 * Owns the descriptor of a file device and with it the lock on the file.
 *
 * Exclusion: a regular file is held by flock (exclusive, or shared for readers).
 * A block device is held by O_EXCL, which mounts, md, dm and other daemons respect;
 * it has no shared form, so a reader only makes sure that nobody holds the device
 * when it opens.  What is held is tried again for HELD_WAIT_MSEC: the kernel lets go of
 * the files of an io_uring only some time after the process that used it has died.
 *
 * Direct or page-cached: O_DIRECT where a read of one aligned sector works, tried
 * once at open.  File systems in memory are page-cached by nature.
 *
 * Invariant: alignment is 1 exactly if the descriptor is not O_DIRECT.
 *
 * No locks: after open a file device does not change, but for its size and for the
 * two flags that file-io.c sets, which are atomic.
 */
#include "io/io-internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "util/cleanup.h"

enum { MIN_DIRECT_ALIGNMENT = 512, MAX_DIRECT_ALIGNMENT = 4096 };

/* What is allocated in advance takes at most this part of what the host has left. */
#define CHEAP_PART 8

enum { HELD_WAIT_MSEC = 2000, HELD_RETRY_MSEC = 20 };

/* What one system call moves at most, in whole pages; the kernel's own limit. */
#define MAX_TRANSFER_BYTES UINT32_C(0x7ffff000)

static struct file_device *file_device(struct io_device *dev)
{
	return container_of(dev, struct file_device, base);
}

/* ------------------------------------------------------------- the file's ops */

static void file_submit(struct io_device *dev, struct io_queue *q, struct io_request *io)
{
	file_io_begin(file_device(dev), io);
	io_queue_start(q, io);
}

static int file_execute(struct io_device *dev, struct io_request *io)
{
	return file_io_execute(file_device(dev), io);
}

int file_current_size(int fd, bool is_block_device, uint64_t *ret_bytes)
{
	struct stat st;

	if (is_block_device)
		return ioctl(fd, BLKGETSIZE64, ret_bytes) ? -errno : 0;
	if (fstat(fd, &st))
		return -errno;
	*ret_bytes = (uint64_t)st.st_size;
	return 0;
}

static int file_next_data(struct io_device *dev, uint64_t offset, uint64_t *ret_offset)
{
	uint64_t size = io_device_size(dev), now = 0;
	off_t at;

	if (dev->is_block_device || offset >= size) {
		*ret_offset = MIN(offset, size);
		return 0;
	}
	/* Moves the file position, which nobody uses. */
	at = lseek(file_device(dev)->fd, (off_t)offset, SEEK_DATA);
	if (at < 0 && errno != ENXIO)
		return -errno;
	/* Behind the end of a file that somebody has truncated there are not even zeros. */
	if (at < 0 && (file_current_size(file_device(dev)->fd, false, &now) || now < size))
		*ret_offset = MAX(offset, MIN(now, size));
	else
		*ret_offset = at < 0 ? size : MIN((uint64_t)at, size);
	return 0;
}

static int file_resize(struct io_device *dev, uint64_t bytes)
{
	struct file_device *f = file_device(dev);
	uint64_t now;
	int r = file_current_size(f->fd, dev->is_block_device, &now);

	if (r)
		return r;
	/* Grown already by somebody else, who may well have meant this: take it as it is. */
	if (now >= bytes)
		return 0;
	if (dev->is_block_device)
		return -EOPNOTSUPP;
	return ftruncate(f->fd, (off_t)bytes) ? -errno : 0;
}

static int file_allocated(struct io_device *dev, uint64_t *ret_bytes)
{
	struct stat st;

	if (dev->is_block_device) {
		*ret_bytes = io_device_size(dev);
		return 0;
	}
	if (fstat(file_device(dev)->fd, &st))
		return -errno;
	*ret_bytes = (uint64_t)st.st_blocks * 512;
	return 0;
}

static int file_host_space(struct io_device *dev, struct io_host_space *ret_space)
{
	int fd = file_device(dev)->fd;
	struct statvfs fs;
	struct stat st;

	if (dev->is_block_device)
		return -EOPNOTSUPP;
	if (fstatvfs(fd, &fs) || fstat(fd, &st))
		return -errno;
	*ret_space = (struct io_host_space){ .id = st.st_dev,
					     .total = fs.f_blocks * fs.f_frsize,
					     .free = fs.f_bfree * fs.f_frsize,
					     .available = fs.f_bavail * fs.f_frsize };
	return 0;
}

static int file_allocate(struct io_device *dev, uint64_t offset, uint64_t length)
{
	if (dev->is_block_device)
		return 0;
	while (fallocate(file_device(dev)->fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length)) {
		if (errno == EOPNOTSUPP || errno == ENOSYS)
			return 0;
		if (errno != EINTR)
			return errno == EDQUOT ? -ENOSPC : -errno;
	}
	return 0;
}

static void file_close(struct io_device *dev)
{
	struct file_device *f = file_device(dev);

	if (f->fd >= 0)
		close(f->fd);
	free((char *)dev->name);
	free(f);
}

static const struct io_device_ops file_ops = {
	.submit = file_submit,
	.execute = file_execute,
	.next_data = file_next_data,
	.resize = file_resize,
	.allocated = file_allocated,
	.host_space = file_host_space,
	.allocate = file_allocate,
	.close = file_close,
};

/* ----------------------------------------------------------------------- open */

/* The type decides how to open, so it has to be known before. */
static int file_type(const char *path, unsigned flags, mode_t *ret_type)
{
	struct stat st;

	if (!stat(path, &st))
		*ret_type = st.st_mode & S_IFMT;
	else if (errno == ENOENT && flags & IO_OPEN_CREATE)
		*ret_type = S_IFREG;
	else
		return -errno;
	return *ret_type == S_IFREG || *ret_type == S_IFBLK ? 0 : -ENOTBLK;
}

static int open_fd(const char *path, int oflags, int *ret_fd)
{
	int fd = open(path, oflags | O_CLOEXEC, 0600);

	if (fd < 0)
		return -errno;
	*ret_fd = fd;
	return 0;
}

/* Once. */
static int try_open_regular(const char *path, unsigned flags, int *ret_fd)
{
	bool reader = flags & IO_OPEN_READ_ONLY;
	int fd = -1, r;

	r = open_fd(path, (reader ? O_RDONLY : O_RDWR) | (flags & IO_OPEN_CREATE ? O_CREAT : 0),
		    &fd);
	if (r)
		return r;
	if (!(flags & IO_OPEN_AS_GUEST) && flock(fd, (reader ? LOCK_SH : LOCK_EX) | LOCK_NB)) {
		r = errno == EWOULDBLOCK ? -EBUSY : -errno;
		close(fd);
		return r;
	}
	*ret_fd = fd;
	return 0;
}

/* Once. */
static int try_open_block(const char *path, unsigned flags, int *ret_fd)
{
	int fd = -1, r;

	if (!(flags & IO_OPEN_READ_ONLY))
		return open_fd(path, O_RDWR | O_EXCL, ret_fd);
	if (flags & IO_OPEN_AS_GUEST)
		return open_fd(path, O_RDONLY, ret_fd);
	r = open_fd(path, O_RDONLY | O_EXCL, &fd);
	if (r)
		return r;
	close(fd);
	return open_fd(path, O_RDONLY, ret_fd);
}

/* Nothing tells when a holder lets go: ask again every HELD_RETRY_MSEC. */
static int open_held(bool is_block, const char *path, unsigned flags, int *ret_fd)
{
	const struct timespec pause = { .tv_nsec = HELD_RETRY_MSEC * 1000000L };

	for (unsigned waited = 0;; waited += HELD_RETRY_MSEC) {
		int r = is_block ? try_open_block(path, flags, ret_fd)
				 : try_open_regular(path, flags, ret_fd);

		if (r != -EBUSY || flags & IO_OPEN_NO_WAIT || waited >= HELD_WAIT_MSEC)
			return r;
		(void)nanosleep(&pause, NULL); /* shorter is as good */
	}
}

/*
 * The alignment to try first for direct I/O, 0 if there is none.  Newer kernels
 * tell; on older ones a block device has its logical sectors and a file is probed.
 */
static uint32_t direct_alignment(int fd, const struct io_device *dev)
{
	int sector = MIN_DIRECT_ALIGNMENT;
#ifdef STATX_DIOALIGN
	struct statx stx;

	if (!statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) && stx.stx_mask & STATX_DIOALIGN) {
		if (!stx.stx_dio_offset_align)
			return 0;
		return MAX(MAX(stx.stx_dio_mem_align, stx.stx_dio_offset_align),
			   (uint32_t)MIN_DIRECT_ALIGNMENT);
	}
#endif
	if (dev->is_block_device)
		return ioctl(fd, BLKSSZGET, &sector) ? MAX_DIRECT_ALIGNMENT : (uint32_t)sector;
	/* Nothing to probe in an empty file: be careful instead. */
	return dev->size ? MIN_DIRECT_ALIGNMENT : MAX_DIRECT_ALIGNMENT;
}

/* An error other than "not like this" is for whoever reads there; it says nothing here. */
static bool probe(int fd, void *buffer, uint32_t alignment)
{
	return pread(fd, buffer, alignment, 0) >= 0 || (errno != EINVAL && errno != EOPNOTSUPP);
}

static bool in_memory(int fd)
{
	struct statfs fs;

	return !fstatfs(fd, &fs) && (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC);
}

static void freep(void **p)
{
	free(*p);
}

/* Switch to O_DIRECT if it works.  Returns the alignment, 1 for page-cached. */
static uint32_t try_direct(int fd, const struct io_device *dev)
{
	TP_CLEANUP(freep) void *buffer = NULL;
	uint32_t alignment = direct_alignment(fd, dev);
	int fl = fcntl(fd, F_GETFL);

	if (!alignment || (!dev->is_block_device && in_memory(fd)))
		return 1;
	buffer = io_buffer_alloc(MAX_DIRECT_ALIGNMENT);
	if (!buffer || fl < 0 || fcntl(fd, F_SETFL, fl | O_DIRECT))
		return 1;
	for (; alignment <= MAX_DIRECT_ALIGNMENT; alignment *= 2)
		if (probe(fd, buffer, alignment))
			return alignment;
	(void)fcntl(fd, F_SETFL, fl); /* taking a flag back does not fail */
	return 1;
}

/*
 * Whether a block device can unmap a range so that it reads as zeros: the kernel
 * tells in the queue's directory, which a partition finds one level up.  Told before
 * the first discard, so that nobody begins one that would write gigabytes of zeros.
 */
static bool block_can_discard(dev_t id)
{
	static const char *const up[] = { "", "/.." };
	unsigned long long bytes = 0;
	char path[96];
	FILE *file;

	for (size_t i = 0; i < ARRAY_SIZE(up); i++) {
		snprintf(path, sizeof(path), "/sys/dev/block/%u:%u%s/queue/write_zeroes_max_bytes",
			 major(id), minor(id), up[i]);
		file = fopen(path, "re");
		if (!file)
			continue;
		if (fscanf(file, "%llu", &bytes) != 1)
			bytes = 0;
		fclose(file);
		return bytes != 0;
	}
	return true; /* it will say so itself */
}

const char *io_device_open_words(int r)
{
	switch (r) {
	case -EBUSY:
		return "in use by another program: stop the daemon that serves it, or what else "
		       "has it open";
	case -ENOENT:
		return "does not exist";
	case -ENOTBLK:
		return "neither a file nor a block device: put one there, or a link to one";
	case -EACCES:
	case -EPERM:
		return "permission denied: do this as its owner or as root";
	case -EROFS:
		return "on a read-only file system";
	default:
		return strerror(-r);
	}
}

bool io_device_is_same(const char *a, const char *b)
{
	struct stat sa, sb;

	if (stat(a, &sa) || stat(b, &sb))
		return false;
	return (sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino) ||
	       (S_ISBLK(sa.st_mode) && S_ISBLK(sb.st_mode) && sa.st_rdev == sb.st_rdev);
}

int io_device_share(struct io_device *dev, int *ret_fd)
{
	char path[32];
	int fd;

	if (dev->ops != &file_ops)
		return -EOPNOTSUPP;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", file_device(dev)->fd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	*ret_fd = fd;
	return 0;
}

static void closep(struct io_device **dev)
{
	io_device_close(*dev);
}

int io_device_open(const char *path, unsigned flags, struct io_device **ret_dev)
{
	TP_CLEANUP(closep) struct io_device *dev = NULL;
	struct file_device *f;
	struct stat st;
	mode_t type;
	int r;

	if (flags & IO_OPEN_READ_ONLY && flags & IO_OPEN_CREATE)
		return -EINVAL;
	r = file_type(path, flags, &type);
	if (r)
		return r;

	f = calloc(1, sizeof(*f));
	if (!f)
		return -ENOMEM;
	dev = &f->base;
	dev->ops = &file_ops;
	dev->read_only = flags & IO_OPEN_READ_ONLY;
	dev->is_block_device = type == S_IFBLK;
	f->max_transfer = MAX_TRANSFER_BYTES;
	f->fd = -1;
	dev->name = strdup(path);
	if (!dev->name)
		return -ENOMEM;

	r = open_held(dev->is_block_device, path, flags, &f->fd);
	if (r)
		return r;
	if (fstat(f->fd, &st))
		return -errno;
	if ((st.st_mode & S_IFMT) != type)
		return -EBUSY; /* replaced while we looked */
	r = file_current_size(f->fd, dev->is_block_device, &dev->size);
	if (r)
		return r;
	dev->no_discard = dev->is_block_device && !block_can_discard(st.st_rdev);
	dev->alignment = flags & IO_OPEN_BUFFERED ? 1 : try_direct(f->fd, dev);
	*ret_dev = tp_take(&dev);
	return 0;
}

struct io_device *io_device_close(struct io_device *dev)
{
	if (dev)
		dev->ops->close(dev);
	return NULL;
}

void io_device_set_max_transfer(struct io_device *dev, uint32_t bytes)
{
	file_device(dev)->max_transfer = bytes;
}

void io_device_set_no_fallocate(struct io_device *dev)
{
	atomic_store(&dev->no_discard, true);
	atomic_store(&file_device(dev)->no_zero_range, true);
}

/* -------------------------------------------------- requests, on any device */

static int check_vectors(const struct io_request *io, uint64_t mask)
{
	uint64_t sum = 0, unaligned = 0;

	for (unsigned i = 0; i < io->nr_iov; i++) {
		sum += io->iov[i].iov_len;
		unaligned |= (uintptr_t)io->iov[i].iov_base | io->iov[i].iov_len;
	}
	return sum != io->length || unaligned & mask ? -EINVAL : 0;
}

static int check_request(const struct io_request *io)
{
	const struct io_device *dev = io->device;
	uint64_t mask = dev->alignment - 1, size = io_device_size(dev);

	if (unlikely(dev->read_only && io->op != IO_READ))
		return -EROFS;
	if (unlikely((io->offset | io->length) & mask))
		return -EINVAL;
	if (unlikely(io->length > size || io->offset > size - io->length))
		return -EIO;
	return io->op == IO_READ || io->op == IO_WRITE ? check_vectors(io, mask) : 0;
}

bool io_request_ends_at_once(const struct io_request *io, int *ret_r)
{
	if (io->op == IO_FLUSH) {
		*ret_r = 0;
		return io->device->read_only;
	}
	*ret_r = check_request(io);
	return *ret_r || !io->length;
}

static int execute(struct io_request *io)
{
	int r;

	tp_lock_may_wait(LC_bufio);
	if (io_request_ends_at_once(io, &r))
		return r;
	return io->device->ops->execute(io->device, io);
}

int io_device_read(struct io_device *dev, void *buffer, uint64_t length, uint64_t offset)
{
	struct io_request io = { .device = dev, .op = IO_READ, .offset = offset };

	io_request_set_buffer(&io, buffer, length);
	return execute(&io);
}

int io_device_write(struct io_device *dev, const void *buffer, uint64_t length, uint64_t offset)
{
	struct io_request io = { .device = dev, .op = IO_WRITE, .offset = offset };

	io_request_set_buffer(&io, (void *)(uintptr_t)buffer, length);
	return execute(&io);
}

int io_device_flush(struct io_device *dev)
{
	struct io_request io = { .device = dev, .op = IO_FLUSH };

	return execute(&io);
}

int io_device_discard(struct io_device *dev, uint64_t offset, uint64_t length)
{
	struct io_request io = {
		.device = dev, .op = IO_DISCARD, .offset = offset, .length = length
	};

	return execute(&io);
}

int io_device_zero(struct io_device *dev, uint64_t offset, uint64_t length)
{
	struct io_request io = { .device = dev, .op = IO_ZERO, .offset = offset, .length = length };

	return execute(&io);
}

/* One lseek(): about a microsecond, and no I/O as a rule. */
bool io_device_known_zero(struct io_device *dev, uint64_t offset, uint64_t length)
{
	uint64_t data;

	if (dev->is_block_device || length > io_device_size(dev) ||
	    offset > io_device_size(dev) - length)
		return false;
	return !dev->ops->next_data(dev, offset, &data) && data >= offset + length;
}

int io_device_resize(struct io_device *dev, uint64_t bytes)
{
	int r;

	if (dev->read_only)
		return -EROFS;
	if (bytes > INT64_MAX || bytes < io_device_size(dev))
		return -EINVAL;
	r = dev->ops->resize(dev, bytes);
	if (r)
		return r;
	__atomic_store_n(&dev->size, bytes, __ATOMIC_RELAXED);
	return 0;
}

int io_device_empty(struct io_device *dev, uint64_t bytes)
{
	int fd;

	if (dev->read_only)
		return -EROFS;
	if (dev->ops != &file_ops || dev->is_block_device)
		return -EOPNOTSUPP;
	fd = file_device(dev)->fd;
	if (bytes > INT64_MAX)
		return -EINVAL;
	if (ftruncate(fd, 0) || ftruncate(fd, (off_t)bytes))
		return -errno;
	__atomic_store_n(&dev->size, bytes, __ATOMIC_RELAXED);
	return 0;
}

int io_device_allocated(struct io_device *dev, uint64_t *ret_bytes)
{
	return dev->ops->allocated(dev, ret_bytes);
}

int io_device_host_space(struct io_device *dev, struct io_host_space *ret_space)
{
	return dev->ops->host_space ? dev->ops->host_space(dev, ret_space) : -EOPNOTSUPP;
}

int io_device_allocate(struct io_device *dev, uint64_t offset, uint64_t length)
{
	tp_lock_may_wait(LC_bufio);
	if (dev->read_only)
		return -EROFS;
	return length && dev->ops->allocate ? dev->ops->allocate(dev, offset, length) : 0;
}

int io_device_allocate_cheaply(struct io_device *dev, uint64_t offset, uint64_t length)
{
	struct io_host_space host;
	uint64_t allocated, missing;

	if (io_device_host_space(dev, &host) || io_device_allocated(dev, &allocated))
		return 0;
	missing = MIN(io_device_size(dev) - MIN(io_device_size(dev), allocated), length);
	if (missing > host.available / CHEAP_PART)
		return -ENOSPC;
	return io_device_allocate(dev, offset, length);
}

void *io_buffer_alloc(uint64_t length)
{
	uint64_t rounded = DIV_ROUND_UP(MAX(length, 1), UINT64_C(4096)) * 4096;

	return aligned_alloc(4096, rounded);
}
