/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fixture.h - a cache on a device in memory, and threads that use it
 *
 * Block i of the device has i as its first word.
 */
#ifndef TP_TESTS_UNIT_BUFIO_FIXTURE_H
#define TP_TESTS_UNIT_BUFIO_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "bufio/bufio-internal.h"
#include "fault-device.h"
#include "mem-device.h"

#define NR_BLOCKS 1024u
#define LIMIT_BLOCKS 256u
#define RESERVE 8u

#define FACT(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

struct fixture {
	struct io_device *dev;
	struct bufio_client *c;
	struct tp_lock meta_root;
};

int setup(void **state);
int teardown(void **state);

void reset(struct fixture *f);
struct cache_stats stats(struct fixture *f);
uint64_t nr_requests(struct fixture *f, enum io_op op);
bool is_cached(struct fixture *f, mblock_t block);
void run_own_queue(void); /* until nothing is in flight */

/* A written copy has the block number and the aux word here. */
#define STAMP_AT (METADATA_BLOCK_SIZE - 16)
void *disk(struct fixture *f, mblock_t block); /* what the device has */
uint64_t first_word(const void *data);

/* Read the block through the cache; returns its first word. */
uint64_t read_word(struct fixture *f, mblock_t block);
/* Make a new block with the word in it. */
void write_word(struct fixture *f, mblock_t block, uint64_t word);

/* ---- other threads; they assert nothing, the test looks at what they left ---- */

struct actor {
	struct fixture *f;
	mblock_t block;
	pthread_t thread;
	atomic_bool started;
	int r;
	uint64_t word;
	bool after_release; /* what "released" was when the call returned */
};

extern atomic_bool released; /* the test has let the delayed requests go */

void start(struct actor *a, struct fixture *f, mblock_t block, void *(*fn)(void *));
void finish(struct actor *a);

void *reading(void *arg);
void *prefetching_only(void *arg); /* and no event loop before "released" */
void *writing(void *arg);
void *resetting(void *arg);
void *releasing_when_held(void *arg);

/* Give a call that does not wait the time to return too early, then let the requests go. */
void release_late(struct fixture *f);
void await_reset_begun(struct fixture *f);
/* No descriptor can be had any more, so no queue can be made; or it can again. */
void fail_descriptors(bool fail);

/* ---- waiters ---- */

struct told {
	struct bufio_waiter w;
	atomic_int calls, r;
};

void tell(struct bufio_waiter *w, int r); /* dies if the thread holds any lock */
void await_told(struct told *t);

#endif
