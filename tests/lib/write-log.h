/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * write-log.h - all that several devices were asked to change, in one global order
 *
 * A log, and a wrapper for each device that notes every write (with its data), discard, zero,
 * flush and growth: when it was submitted and when its submitter was told.  What a power cut at
 * any moment can leave is made from it by crash-replay.h.
 *
 * Threads:  any; the log is read and cleared while no request is in flight.
 * Units:    bytes.
 */
#ifndef TP_TESTS_WRITE_LOG_H
#define TP_TESTS_WRITE_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/device.h"

struct write_log;

/* Besides those of enum io_op, which are never IO_READ: the device has grown to @length. */
#define WRITE_LOG_GROW (IO_ZERO + 1)

struct write_log_entry {
	unsigned device;
	unsigned op; /* enum io_op or WRITE_LOG_GROW */
	uint64_t offset, length;
	/*
	 * By the log's clock, which ticks for each entry twice and for whoever asks: a flush covers
	 * what ended before it began.  ended 0: never.
	 */
	uint64_t began, ended;
	void *data; /* of a write */
};

/* Aborts without memory, as everything here. */
struct write_log *write_log_create(void);
/* The wrappers are closed. */
void write_log_destroy(struct write_log *log);

/* Takes @inner over: closing the wrapper closes it.  @device is what entries call it. */
struct io_device *write_log_wrap(struct write_log *log, unsigned device, struct io_device *inner);

/* The clock's next value. */
uint64_t write_log_tick(struct write_log *log);

/*
 * A device that lies: entries for which @keeps is false are carried out and answered, but leave no
 * trace.  Called under the log's lock.  NULL: none.
 */
void write_log_set_filter(struct write_log *log,
			  bool (*keeps)(void *ctx, const struct write_log_entry *e), void *ctx);

/* In the order they began. */
const struct write_log_entry *write_log_entries(const struct write_log *log, size_t *ret_nr);

#endif
