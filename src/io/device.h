/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * device.h - a file or a block device that holds metadata or data
 *
 * Layer:    io; uses util/ only.
 * Threads:  any, at the same time.
 * Units:    bytes throughout.
 * Errors:   0 or a negative errno.
 *
 * A device is a small ops table, so that tests can put one in memory, make the
 * n-th request fail, delay it, or write a log of all of them.  The calls below
 * are wrappers around that table; only io/ and tests look inside.
 */
#ifndef TP_IO_DEVICE_H
#define TP_IO_DEVICE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "io/io-queue.h"
#include "util/compiler.h"
#include "util/lock-class.h"

struct io_device;

/* The file system that a file is on; bytes. */
struct io_host_space {
	uint64_t id; /* the same for all files of one file system */
	uint64_t total;
	uint64_t free;      /* to root */
	uint64_t available; /* to everybody */
};

struct io_device_ops {
	/* Start @io; it ends through io_queue_complete() on the same queue. Never fails itself. */
	void (*submit)(struct io_device *dev, struct io_queue *q, struct io_request *io);
	/* The same, blocking; for callers without a queue. Returns 0 or -errno. */
	int (*execute)(struct io_device *dev, struct io_request *io);
	/* First byte at or after @offset that may not read as zeros, or the device's size. */
	int (*next_data)(struct io_device *dev, uint64_t offset, uint64_t *ret_offset);
	int (*resize)(struct io_device *dev, uint64_t bytes);
	int (*allocated)(struct io_device *dev, uint64_t *ret_bytes);
	/* NULL: nobody else's space is behind this device. */
	int (*host_space)(struct io_device *dev, struct io_host_space *ret_space);
	int (*allocate)(struct io_device *dev, uint64_t offset, uint64_t length);
	void (*close)(struct io_device *dev);
};

/* First member of every implementation. */
struct io_device {
	const struct io_device_ops *ops;
	const char *name;   /* for messages; owned by the implementation */
	uint64_t size;      /* bytes; changed by io_device_resize() only */
	uint32_t alignment; /* see io_device_alignment() */
	bool read_only, is_block_device;
	atomic_bool no_discard; /* see io_device_can_discard() */
};

enum io_open_flags {
	IO_OPEN_READ_ONLY = 1 << 0, /* takes a shared lock instead of an exclusive one */
	IO_OPEN_BUFFERED = 1 << 1,  /* do not try O_DIRECT */
	IO_OPEN_CREATE = 1 << 2,    /* a missing file is created, mode 0600 */
	IO_OPEN_NO_WAIT = 1 << 3,   /* -EBUSY at once, not after two seconds */
	IO_OPEN_AS_GUEST = 1 << 4,  /* for reading only: who holds it has asked us in */
};

/*
 * Open a regular file (locked by flock) or a block device (O_EXCL) and hold it
 * exclusively until closed; readers share.  O_DIRECT is used where it works,
 * otherwise page-cached I/O.
 *
 *   -EBUSY    somebody else has it open (another daemon, a mount, the kernel), and that for
 *             two seconds now
 *   -ENOTBLK  neither a regular file nor a block device
 */
int io_device_open(const char *path, unsigned flags, struct io_device **ret_dev) TP_MUST_CHECK;

/*
 * A descriptor of the same file, for reading only, to be handed to somebody else: he opens
 * /proc/self/fd/N as a guest.  -EOPNOTSUPP: no file has this device's content.
 */
int io_device_share(struct io_device *dev, int *ret_fd) TP_MUST_CHECK;

/*
 * What @inner held when the first @bytes of it were @beginning, for reading only.  It is @inner's
 * owner who keeps the rest as it was.  @inner is closed with the new device; on error it stays the
 * caller's.
 */
int io_device_open_pinned(struct io_device *inner, const void *beginning, uint32_t bytes,
			  struct io_device **ret_dev) TP_MUST_CHECK;

/* Why io_device_open() failed, and what to do about it where that is known, to follow "PATH: ". */
const char *io_device_open_words(int r);

/* Do both paths lead to the same file or block device? */
bool io_device_is_same(const char *a, const char *b);

/* The caller has no request in flight.  NULL is allowed.  Returns NULL. */
struct io_device *io_device_close(struct io_device *dev);

static inline uint64_t io_device_size(const struct io_device *dev)
{
	return __atomic_load_n(&dev->size, __ATOMIC_RELAXED);
}

/*
 * Offset, length and every buffer of a read or write must be multiples of this:
 * 1 when page-cached, else a power of two, 512..4096.  A size that is no multiple of
 * it leaves a rest at the end that cannot be reached.
 */
static inline uint32_t io_device_alignment(const struct io_device *dev)
{
	return dev->alignment;
}

static inline const char *io_device_name(const struct io_device *dev)
{
	return dev->name;
}

/* Blocking forms, for callers that may sleep and for tools.  Alignment rules hold. */
int io_device_read(struct io_device *dev, void *buffer, uint64_t length, uint64_t offset)
	TP_TAKES(bufio) TP_MUST_CHECK;
int io_device_write(struct io_device *dev, const void *buffer, uint64_t length, uint64_t offset)
	TP_TAKES(bufio) TP_MUST_CHECK;
int io_device_flush(struct io_device *dev) TP_TAKES(bufio) TP_MUST_CHECK;
int io_device_discard(struct io_device *dev, uint64_t offset, uint64_t length)
	TP_TAKES(bufio) TP_MUST_CHECK;
int io_device_zero(struct io_device *dev, uint64_t offset, uint64_t length)
	TP_TAKES(bufio) TP_MUST_CHECK;

/*
 * Is the range known to read as zeros without looking at it (a hole or an
 * unwritten extent of a file)?  Block devices and errors answer false.
 */
bool io_device_known_zero(struct io_device *dev, uint64_t offset, uint64_t length);

/*
 * Can a discard give space back?  False once the device has said that it cannot;
 * a discard then writes zeros, which costs as much as any other writing.
 */
static inline bool io_device_can_discard(const struct io_device *dev)
{
	return !atomic_load_explicit(&dev->no_discard, memory_order_relaxed);
}

/* Grow a file.  -EOPNOTSUPP for a block device that is not that large already. */
int io_device_resize(struct io_device *dev, uint64_t bytes) TP_MUST_CHECK;

/* What a file held goes; it becomes one hole of @bytes.  -EOPNOTSUPP for anything else. */
int io_device_empty(struct io_device *dev, uint64_t bytes) TP_MUST_CHECK;

/* Space the file takes on its host; a block device: its size. */
int io_device_allocated(struct io_device *dev, uint64_t *ret_bytes) TP_MUST_CHECK;

/* -EOPNOTSUPP: a block device. */
int io_device_host_space(struct io_device *dev, struct io_host_space *ret_space) TP_MUST_CHECK;

/*
 * Have the host keep space for the range, so that writing there cannot fail for want of it; the
 * content stays.  -ENOSPC; 0 also where there is no such thing (block devices, some file systems).
 */
int io_device_allocate(struct io_device *dev, uint64_t offset, uint64_t length)
	TP_TAKES(bufio) TP_MUST_CHECK;

/*
 * The same, unless it would take more than an eighth of what the host has left: then -ENOSPC, and
 * nothing is changed.
 */
int io_device_allocate_cheaply(struct io_device *dev, uint64_t offset, uint64_t length)
	TP_TAKES(bufio) TP_MUST_CHECK;

/*
 * For implementations: @io has ended with @r.  Only the queue's thread may call
 * it; @io->done follows from io_queue_run().
 */
void io_queue_complete(struct io_queue *q, struct io_request *io, int r);

/* A buffer for direct I/O: aligned to 4096, length rounded up; free() it.  NULL: no memory. */
void *io_buffer_alloc(uint64_t length);

#endif
