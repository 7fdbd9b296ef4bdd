/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * crash-life.h - a pool in service, doing random work on devices that log everything
 *
 * A life begins with opening what two devices hold, goes on with writes, discards, flushes, and
 * commands, several at once, perhaps with a failing request that aborts the transaction, and
 * ends with closing.  The model (crash-model.h) and the log know all of it afterwards.
 *
 * Threads:  one.
 */
#ifndef TP_TESTS_CRASH_LIFE_H
#define TP_TESTS_CRASH_LIFE_H

#include <stdbool.h>
#include <stdint.h>

#include "crash-replay.h"

struct io_device;
struct model;
struct prng;
struct write_log_entry;

enum { CRASH_METADATA, CRASH_DATA }; /* devices of the log and of the replay */

struct crash_geometry {
	uint64_t block_bytes, capacity[CRASH_DEVICES];
};

struct crash_life {
	struct write_log *log;
	struct io_device *before[CRASH_DEVICES]; /* mem-devices: as it was */
	uint64_t fault_moment; /* a request may have failed from here on; 0: none */
	uint64_t end_moment;
	unsigned nr_aborts;
};

/* Devices of a new pool, with room to be extended to what @g says, which is chosen too. */
void crash_devices_create(struct prng *p, struct io_device *devices[CRASH_DEVICES],
			  struct crash_geometry *g);

/*
 * Live one.  @devices, mem-devices that hold a pool, are taken over.  @keeps, @ctx: see
 * write_log_set_filter().  @model is cleared first.
 */
struct crash_life *crash_life_run(struct prng *p, struct model *m,
				  struct io_device *devices[CRASH_DEVICES],
				  const struct crash_geometry *g, unsigned nr_ops, bool faults,
				  bool (*keeps)(void *ctx, const struct write_log_entry *e),
				  void *ctx);
void crash_life_destroy(struct crash_life *life);

#endif
