/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * clock.h - time, in microseconds
 *
 * Layer:    util.
 * Threads:  any.
 * Units:    microseconds.
 * Errors:   none.
 */
#ifndef TP_UTIL_CLOCK_H
#define TP_UTIL_CLOCK_H

#include <stdint.h>
#include <time.h>

#define USEC_PER_SEC UINT64_C(1000000)
#define USEC_PER_MSEC UINT64_C(1000)
#define NSEC_PER_USEC UINT64_C(1000)

static inline uint64_t time_read_usec(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * USEC_PER_SEC + (uint64_t)ts.tv_nsec / NSEC_PER_USEC;
}

/* For intervals and deadlines. */
static inline uint64_t time_monotonic_usec(void)
{
	return time_read_usec(CLOCK_MONOTONIC);
}

/* Since 1970, for what people read. */
static inline uint64_t time_real_usec(void)
{
	return time_read_usec(CLOCK_REALTIME);
}

#endif
