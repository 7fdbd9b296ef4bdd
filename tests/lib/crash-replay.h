/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * crash-replay.h - what a power cut can leave of two devices
 *
 * From the content of the devices before, and the log of what they were asked to change since
 * (write-log.h).  At a moment of the log's clock some of it is durable: what had ended before a
 * flush began that has ended.  All that was submitted besides is in a volatile cache: any subset
 * of it, on either device independently and torn at 512 bytes, may have reached the medium.
 *
 * A state is built over the durable content, copying only the pages that differ; the devices it
 * is looked at through can be written, and forget that when the next state is built.
 *
 * Threads:  one; the devices: any.
 * Units:    bytes; moments of the log's clock.
 */
#ifndef TP_TESTS_CRASH_REPLAY_H
#define TP_TESTS_CRASH_REPLAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct crash_replay;
struct io_device;
struct prng;
struct write_log;

#define CRASH_DEVICES 2u

/*
 * @before: mem-devices, copied.  @capacity: what each device grows to at most.  The log stays the
 * caller's and is complete.  Aborts without memory, as everything here.
 */
struct crash_replay *crash_replay_create(const struct write_log *log,
					 struct io_device *const before[CRASH_DEVICES],
					 const uint64_t capacity[CRASH_DEVICES]);
void crash_replay_destroy(struct crash_replay *r);

/* Go on to a later moment.  No state is built there yet. */
void crash_replay_advance(struct crash_replay *r, uint64_t moment);

/*
 * Build one of the states that a power cut at this moment can leave.  @how, at least 256 bytes:
 * a line that tells what was chosen.
 */
void crash_replay_build(struct crash_replay *r, struct prng *p, char *how, size_t how_bytes);

/* A device in the state that was built last.  Owned by the replay. */
struct io_device *crash_replay_device(struct crash_replay *r, unsigned device);

/* Its content as a mem-device, which is the caller's. */
struct io_device *crash_replay_copy(struct crash_replay *r, unsigned device);

/* Has the device been changed through crash_replay_device() since the state was built? */
bool crash_replay_was_written(const struct crash_replay *r, unsigned device);

#endif
