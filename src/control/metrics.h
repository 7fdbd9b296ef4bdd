/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * metrics.h - what a pool is doing, for Prometheus
 *
 * Layer:    control.
 * Threads:  any.
 * Units:    those of Prometheus: bytes and seconds; names end in them.
 * Errors:   NULL: no memory.
 */
#ifndef TP_CONTROL_METRICS_H
#define TP_CONTROL_METRICS_H

#include <stddef.h>
#include <stdint.h>

#include "pool/pool.h"
#include "reclaim/pressure.h"
#include "util/lock-class.h"

/* One number; a name that ends in _total is a counter's, all others are gauges'. */
struct metric {
	const char *name, *help; /* without "thinpoold_" and without a full stop */
	uint64_t value;
};

/*
 * The text exposition format, version 0.0.4, for .thinpool/metrics: a string that the caller
 * frees.  @more is what the caller has to add; @pressure may be NULL.  NULL: no memory.
 */
char *metrics_render(struct pool *pool, struct pressure *pressure, const struct metric *more,
		     size_t nr_more) TP_TAKES(catalog);

/* Volumes with samples of their own: those with the smallest ids. */
#define METRICS_VOLUMES_MAX 1000

#endif
