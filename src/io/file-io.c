/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * file-io.c - one request on a file or block device as a series of system calls
 *
 * Most requests are one step.  There are more when the kernel moved less than it
 * was asked to, when it wants to be asked again (-EINTR, -EAGAIN), and when a file
 * cannot punch or zero a range, where the next best way is tried:
 *
 *	IO_DISCARD  punch a hole -> zero the range -> write zeros
 *	IO_ZERO                     zero the range -> write zeros
 *
 * A punched range of a block device reads as zeros: the kernel refuses rather than
 * use a discard that does not promise it.  That is why BLKDISCARD has no place here.
 *
 * The state between two steps is io_request.transferred and .stage, nothing else;
 * so a step can be an io_uring submission as well as a blocking call.
 *
 * Invariant: before each step of a read or write, transferred < length.
 */
#include "io/io-internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

enum { STAGE_TRANSFER, STAGE_PUNCH, STAGE_ZERO_RANGE, STAGE_WRITE_ZEROS };

/* Never written, so it takes no memory: every page of it is the kernel's zero page. */
#define ZEROS_BYTES (UINT64_C(1) << 20)
static char zeros[ZEROS_BYTES] __attribute__((aligned(4096)));

static int first_stage(struct file_device *dev, enum io_op op)
{
	if (op != IO_DISCARD && op != IO_ZERO)
		return STAGE_TRANSFER;
	if (op == IO_DISCARD && io_device_can_discard(&dev->base))
		return STAGE_PUNCH;
	if (!atomic_load_explicit(&dev->no_zero_range, memory_order_relaxed))
		return STAGE_ZERO_RANGE;
	return STAGE_WRITE_ZEROS;
}

void file_io_begin(struct file_device *dev, struct io_request *io)
{
	io->target = &dev->base;
	io->transferred = 0;
	io->stage = first_stage(dev, io->op);
}

/* Where the vectors go on after io->transferred bytes. */
static void transfer_step(const struct file_device *dev, const struct io_request *io,
			  struct io_step *step)
{
	uint64_t left = io->length - io->transferred, skip = io->transferred;
	unsigned i = 0;

	while (skip >= io->iov[i].iov_len)
		skip -= io->iov[i++].iov_len;

	step->kind = io->op == IO_READ ? STEP_READ : STEP_WRITE;
	step->iov = NULL;
	if (skip == 0 && i + 1 < io->nr_iov && left <= dev->max_transfer) {
		step->iov = io->iov + i;
		step->nr_iov = MIN(io->nr_iov - i, (unsigned)IOV_MAX);
		return;
	}
	step->buffer = (char *)io->iov[i].iov_base + skip;
	step->length = MIN(io->iov[i].iov_len - skip, dev->max_transfer);
}

void file_io_step(const struct file_device *dev, const struct io_request *io, struct io_step *step)
{
	if (io->op == IO_FLUSH) {
		step->kind = STEP_SYNC;
		return;
	}
	step->offset = io->offset + io->transferred;
	switch (io->stage) {
	case STAGE_TRANSFER:
		transfer_step(dev, io, step);
		return;
	case STAGE_WRITE_ZEROS:
		step->kind = STEP_WRITE;
		step->iov = NULL;
		step->buffer = zeros;
		step->length =
			MIN(io->length - io->transferred, MIN(ZEROS_BYTES, dev->max_transfer));
		return;
	default:
		step->kind = STEP_FALLOCATE;
		step->mode =
			FALLOC_FL_KEEP_SIZE |
			(io->stage == STAGE_PUNCH ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
		step->length = io->length;
	}
}

/* A file system says which modes it knows only when it is asked; remember a "no". */
static bool fallocate_advance(struct file_device *dev, struct io_request *io, int res, int *ret_r)
{
	if (res != -EOPNOTSUPP && res != -ENOSYS && res != -ENODEV) {
		*ret_r = res;
		return true;
	}
	atomic_store_explicit(io->stage == STAGE_PUNCH ? &dev->base.no_discard
						       : &dev->no_zero_range,
			      true, memory_order_relaxed);
	io->stage = first_stage(dev, io->op);
	return false;
}

/* A block device says -ENOSPC of a write behind an end that was farther once. */
static bool is_behind_end(const struct file_device *dev, const struct io_request *io)
{
	uint64_t size;

	return dev->base.is_block_device && !file_current_size(dev->fd, true, &size) &&
	       io->offset + io->length > size;
}

bool file_io_advance(struct file_device *dev, struct io_request *io, int64_t res, int *ret_r)
{
	if (unlikely(res == -ENOSPC) && is_behind_end(dev, io))
		res = -EIO;
	if (unlikely(res == -EINTR || res == -EAGAIN))
		return false;
	if (unlikely(res == -EDQUOT))
		res = -ENOSPC; /* no more for us, which is all that counts */
	if (io->stage == STAGE_PUNCH || io->stage == STAGE_ZERO_RANGE)
		return fallocate_advance(dev, io, (int)res, ret_r);
	if (io->op == IO_FLUSH || unlikely(res < 0)) {
		*ret_r = (int)res;
		return true;
	}
	io->transferred += (uint64_t)res;
	if (likely(io->transferred == io->length)) {
		*ret_r = 0;
		return true;
	}
	/* The file ends early, or inside a sector: somebody has truncated it. */
	if (res == 0 || io->transferred % dev->base.alignment) {
		*ret_r = -EIO;
		return true;
	}
	return false;
}

static int64_t step_call(const struct file_device *dev, const struct io_step *s)
{
	int64_t n = -1;

	switch (s->kind) {
	case STEP_READ:
		n = s->iov ? preadv(dev->fd, s->iov, (int)s->nr_iov, (off_t)s->offset)
			   : pread(dev->fd, s->buffer, s->length, (off_t)s->offset);
		break;
	case STEP_WRITE:
		n = s->iov ? pwritev(dev->fd, s->iov, (int)s->nr_iov, (off_t)s->offset)
			   : pwrite(dev->fd, s->buffer, s->length, (off_t)s->offset);
		break;
	case STEP_SYNC:
		n = fdatasync(dev->fd);
		break;
	case STEP_FALLOCATE:
		n = fallocate(dev->fd, s->mode, (off_t)s->offset, (off_t)s->length);
		break;
	}
	return n < 0 ? -errno : n;
}

int file_io_execute(struct file_device *dev, struct io_request *io)
{
	struct io_step step;
	int r;

	file_io_begin(dev, io);
	do {
		file_io_step(dev, io, &step);
	} while (!file_io_advance(dev, io, step_call(dev, &step), &r));
	return r;
}
