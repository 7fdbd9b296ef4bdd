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

struct crash_life_plan {
	unsigned nr_ops;
	bool faults; /* one request fails, some time */
	/* See write_log_set_filter(); may be NULL. */
	bool (*keeps)(void *ctx, const struct write_log_entry *e);
	/*
	 * Before the pool is opened and after it was closed: faults may be added to the devices,
	 * which are fault-devices, or elsewhere.  reached: did anything fail?  Both or neither.
	 */
	void (*arm)(void *ctx, struct io_device *const devices[CRASH_DEVICES]);
	bool (*reached)(void *ctx, struct io_device *const devices[CRASH_DEVICES]);
	void *ctx;
};

struct crash_life {
	struct write_log *log;
	struct io_device *before[CRASH_DEVICES]; /* mem-devices: as it was */
	struct io_device *after[CRASH_DEVICES];  /* at its end */
	uint64_t fault_moment;                   /* something may have failed from here on; 0: no */
	uint64_t end_moment;
	bool reached;
	unsigned nr_aborts, nr_errors; /* errors: of requests and commands */
};

/* Devices of a new pool, with room to be extended to what @g says, which is chosen too. */
void crash_devices_create(struct prng *p, struct io_device *devices[CRASH_DEVICES],
			  struct crash_geometry *g);

/*
 * Live one.  @devices, mem-devices that hold a pool, are taken over.  @model is cleared first.  The
 * pool need not open if something is armed.
 */
struct crash_life *crash_life_run(const struct crash_life_plan *plan, struct prng *p,
				  struct model *m, struct io_device *devices[CRASH_DEVICES],
				  const struct crash_geometry *g);
void crash_life_destroy(struct crash_life *life);

#endif
