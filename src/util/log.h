/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * log.h - one line for a human, on stderr
 *
 * Layer:    util.
 * Units:    none.
 * Errors:   none: what cannot be written is lost.
 * Threads:  any.  A line is written with one write(2), so lines never mix.
 * Form:     "<N>module: what, where (numbers with units), consequence", N being
 *           the priority that journald understands; on a terminal the mark is left out.
 *
 * Corruption and device errors are logged once, where they are found (only that
 * place knows the block number).  Every other error is passed up silently and
 * logged by whoever ends the operation.
 */
#ifndef TP_UTIL_LOG_H
#define TP_UTIL_LOG_H

#include <stdatomic.h>
#include <stdint.h>

#include "util/compiler.h"

enum log_level { LOG_LEVEL_ERR = 3, LOG_LEVEL_WARN = 4, LOG_LEVEL_INFO = 6, LOG_LEVEL_DEBUG = 7 };

/* Lines above this level are dropped.  Default: LOG_LEVEL_INFO. */
void log_set_level(enum log_level level);

/* Besides stderr, hand each line (without the mark) to @fn; NULL: to nobody.  For syslog, tests. */
void log_set_tap(void (*fn)(enum log_level level, const char *line, void *ctx), void *ctx);

void log_line(enum log_level level, const char *module, const char *fmt, ...) TP_PRINTF(3, 4);

/* Each .c file that logs defines LOG_MODULE first. */
#define log_err(...) log_line(LOG_LEVEL_ERR, LOG_MODULE, __VA_ARGS__)
#define log_warn(...) log_line(LOG_LEVEL_WARN, LOG_MODULE, __VA_ARGS__)
#define log_info(...) log_line(LOG_LEVEL_INFO, LOG_MODULE, __VA_ARGS__)
#define log_debug(...) log_line(LOG_LEVEL_DEBUG, LOG_MODULE, __VA_ARGS__)

/* For paths that a client or a damaged disk can trigger at will: at most one line in five seconds.
 */
struct log_limit {
	_Atomic uint64_t next_usec;
	atomic_uint suppressed;
};
void log_line_limited(struct log_limit *limit, enum log_level level, const char *module,
		      const char *fmt, ...) TP_PRINTF(4, 5);

#define log_err_limited(...) \
	do { \
		static struct log_limit limit_; \
		log_line_limited(&limit_, LOG_LEVEL_ERR, LOG_MODULE, __VA_ARGS__); \
	} while (0)
#define log_warn_limited(...) \
	do { \
		static struct log_limit limit_; \
		log_line_limited(&limit_, LOG_LEVEL_WARN, LOG_MODULE, __VA_ARGS__); \
	} while (0)

#endif
