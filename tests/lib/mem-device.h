/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mem-device.h - a device in memory
 *
 * Sparse: memory is taken for the 4 KiB pages that were written, so a device may be
 * hundreds of gigabytes large.  Requests are carried out when they are submitted and end through
 * the queue.  Faults, delays and a log: wrap it in a fault-device.h.
 *
 * Threads:  any.
 */
#ifndef TP_TESTS_MEM_DEVICE_H
#define TP_TESTS_MEM_DEVICE_H

#include "io/device.h"

/* Never fails: a test without memory aborts.  Alignment 1.  Close with io_device_close(). */
struct io_device *mem_device_create(uint64_t bytes);

/* As if it were a direct device: requests that are not so aligned are refused. */
void mem_device_set_alignment(struct io_device *dev, uint32_t alignment);
/* It cannot be resized beyond that: -ENOSPC, as of a file on a full file system. */
void mem_device_set_limit(struct io_device *dev, uint64_t bytes);
void mem_device_set_read_only(struct io_device *dev, bool read_only);

/* The content, bypassing requests; valid until the device is resized or closed. */
void *mem_device_data(struct io_device *dev);

/* Marks a range as written to, after a test has changed it through mem_device_data(). */
void mem_device_touch(struct io_device *dev, uint64_t offset, uint64_t length);

/*
 * The file system that devices are on: pages that were not written before take of its free space,
 * and when that is all gone a write is cut short there and ends with -ENOSPC.
 */
struct mem_host {
	_Atomic uint64_t total, used; /* bytes */
};

/* NULL: no such file system, and no end of space.  What the device has by now is counted. */
void mem_device_set_host(struct io_device *dev, struct mem_host *host);

/* A new device of the same size and content, on no host. */
struct io_device *mem_device_clone(struct io_device *dev);

#endif
