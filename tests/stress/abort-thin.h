/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * abort-thin.h - what the mutator and the clients of test-abort-thin.c share
 */
#ifndef TP_TESTS_ABORT_THIN_H
#define TP_TESTS_ABORT_THIN_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/queue.h>

#include "io/device.h"
#include "mapping-model.h"
#include "prng.h"
#include "reclaim/shrinker.h"
#include "require.h"
#include "stall-watch.h"
#include "thin/thin-metadata.h"

/* Devices that are always there; 0 is never written to, the others by clients. */
#define NR_LIVE 4u
#define NR_IO_THREADS 4u
#define NR_CLIENTS (NR_IO_THREADS + 1)      /* and the shrinker */
#define NR_OWN (MODEL_VBLOCKS / NR_CLIENTS) /* blocks of a live device that are one client's */

enum request_kind { REQUEST_FIND, REQUEST_WRITE, REQUEST_PUNCH, REQUEST_FLUSH };

/* Of a client, who waits for the answer. */
struct request {
	enum request_kind kind;
	unsigned device, first, nr; /* the client's blocks first, first + NR_CLIENTS ... */
	uint64_t write;             /* the number of the first block's write */
	struct thin_run run;        /* of the first block */
	int result;
	bool done;
	STAILQ_ENTRY(request) link;
};
STAILQ_HEAD(request_list, request);

/* What a client knows of one of its blocks.  Its writes have rising numbers; 0 is a hole. */
struct own_block {
	uint64_t expected;           /* if no transaction was thrown away since it is known */
	uint64_t durable, submitted; /* else what is read lies between the two */
	bool may_be_hole;            /* since the last flush, or still */
};

struct client {
	unsigned number;
	pthread_t thread;
	struct prng prng;
	struct heart *heart;
	uint64_t nr_writes;
	unsigned known; /* the epoch in which all own blocks are as expected; odd: none */
	struct own_block own[NR_LIVE][NR_OWN];
	uint64_t nr_steps, nr_reads, nr_verified, nr_retried, nr_answered, nr_failed;
};

struct world {
	struct io_device *meta, *data; /* fault devices */
	struct thin_metadata *tmd;
	struct thin_device *live[NR_LIVE];
	struct tp_lock throttle, lock; /* classes throttle and pool */
	pthread_cond_t answered;
	struct request_list requests TP_GUARDED_BY(lc_pool);
	/*
	 * Go up before and after each change that may free a data block, and each abort: readers
	 * without the cells of a pool see by them whether what they have looked up was still so.
	 */
	atomic_uint churn, epoch, still; /* the last one never does */
	atomic_uint read_faults;         /* odd: reads of metadata may fail */
	atomic_bool stop;
	atomic_uint nr_running; /* threads that may ask for something */
};
extern struct world world;

/* Which write it was: those of clients 0 .. NR_CLIENTS - 1, and of others. */
static inline uint64_t write_number(unsigned client, uint64_t n)
{
	return (uint64_t)(client + 1) << 48 | n;
}

/* Nothing is known yet, all is holes.  @heart is the thread's that will be it. */
void client_init(struct client *c, unsigned number, uint64_t seed, struct heart *heart);

/* A thread's main function: a client until the world stops. */
void *io_thread_main(void *client);
/* Another: runs the shrinkers without a pause, one of which is to be volume_shrinker. */
void *pressure_main(void *client);
extern const struct shrinker_ops volume_shrinker; /* with the client as its context */

#endif
