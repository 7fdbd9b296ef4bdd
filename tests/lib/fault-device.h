/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fault-device.h - a wrapper around any device: requests fail, wait, and are logged
 *
 * Threads:  any, except as said below.  Functions taking a device want the wrapper.
 * Order:    a request is counted against the faults when it arrives; a delayed one
 *           is logged and carried out when it is released.
 */
#ifndef TP_TESTS_FAULT_DEVICE_H
#define TP_TESTS_FAULT_DEVICE_H

#include "io/device.h"

/* Takes @inner over: closing the wrapper closes it.  Aborts without memory. */
struct io_device *fault_device_create(struct io_device *inner);

/* The same around a new mem-device. */
struct io_device *fault_device_create_mem(uint64_t bytes);

struct io_device *fault_device_inner(struct io_device *dev);

/* ------------------------------------------------------------------ failing */

#define FAULT_OP(op) (1u << (op))
#define FAULT_ALL_OPS (~0u)

struct fault {
	unsigned ops;            /* FAULT_OP()s that it is about; 0: all */
	uint64_t offset, length; /* bytes that the request touches; length 0: anywhere */
	uint64_t skip;           /* this many such requests pass first */
	uint64_t count;          /* then this many fail; UINT64_MAX: all; 0: one */
	int error;               /* negative errno; 0: -EIO */
	uint64_t apply;          /* a write: so many of its first bytes reach the device */
};

/* At most 16 faults at a time; the first that matches decides. */
void fault_device_add(struct io_device *dev, const struct fault *fault);

/* Fail the @nth request (from 1, as they come from now on) with -EIO, once. */
void fault_device_fail_nth(struct io_device *dev, unsigned ops, uint64_t nth);

/* Forget all faults. */
void fault_device_clear(struct io_device *dev);

/* Requests that failed by a fault, since the wrapper was made. */
uint64_t fault_device_nr_failed(struct io_device *dev);

/* Requests of these kinds that have come, since the wrapper was made. */
uint64_t fault_device_nr_requests(struct io_device *dev, unsigned ops);

/* ----------------------------------------------------------------- delaying */

/* Hold back all requests of these kinds that come from now on (0: none any more). */
void fault_device_delay(struct io_device *dev, unsigned ops);

/*
 * Let the first @nr held requests go, in the order they came; from any thread.  Those
 * of another thread's queue go when it runs (it is made to).  Returns how many.
 */
unsigned fault_device_release(struct io_device *dev, unsigned nr);

/* Stop delaying and let all go. */
void fault_device_release_all(struct io_device *dev);

/* Requests held now. */
unsigned fault_device_nr_held(struct io_device *dev);

/* Block until @nr requests are held at once; false after 10 s.  Not on a queue's own thread. */
bool fault_device_wait_held(struct io_device *dev, unsigned nr);

/* ------------------------------------------------------------------ logging */

struct fault_log_entry {
	enum io_op op;
	uint64_t offset, length;
	int result;
	/*
	 * One clock for all: when it was carried out and when its submitter was told (0:
	 * not yet).  A flush covers what ended before it began.
	 */
	uint64_t began, ended;
	void *data; /* a copy of what a write wrote, else NULL */
};

/* Log from now on; @with_data: keep copies of what is written. */
void fault_device_log_start(struct io_device *dev, bool with_data);
void fault_device_log_stop(struct io_device *dev);
/* Free all entries. */
void fault_device_log_clear(struct io_device *dev);

/* Entries in the order they began, valid while nothing is in flight and until cleared. */
const struct fault_log_entry *fault_device_log(struct io_device *dev, size_t *ret_nr);

#endif
