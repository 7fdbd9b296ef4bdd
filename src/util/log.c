/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * log.c - one line for a human, on stderr
 *
 * No lock: the level is an atomic, a line is built on the stack and leaves in a
 * single write(2).  The tap is set before threads start.
 */
#include "util/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util/clock.h"
#include "util/error.h"

#define LINE_BYTES 1024
#define LIMIT_USEC (5 * USEC_PER_SEC) /* slow enough for a disk that fails every request */

static atomic_int log_level = LOG_LEVEL_INFO;
static void (*log_tap)(enum log_level, const char *, void *);
static void *log_tap_ctx;

void log_set_level(enum log_level level)
{
	log_level = level;
}

void log_set_tap(void (*fn)(enum log_level, const char *, void *), void *ctx)
{
	log_tap_ctx = ctx;
	log_tap = fn;
}

static void log_write(enum log_level level, const char *module, const char *suffix, const char *fmt,
		      va_list args) TP_PRINTF(4, 0);

static void log_write(enum log_level level, const char *module, const char *suffix, const char *fmt,
		      va_list args)
{
	char line[LINE_BYTES];
	int mark = snprintf(line, sizeof(line), "<%d>", (int)level);
	int n = mark + snprintf(line + mark, sizeof(line) - mark, "%s: ", module);
	int r = vsnprintf(line + n, sizeof(line) - n, fmt, args);

	if (r > 0)
		n += r;
	if (n < (int)sizeof(line))
		n += snprintf(line + n, sizeof(line) - n, "%s", suffix);
	if (n > (int)sizeof(line) - 2)
		n = sizeof(line) - 2;

	line[n] = '\0';
	one_line(line); /* whatever a client put into a name */
	if (log_tap)
		log_tap(level, line + mark, log_tap_ctx);
	line[n++] = '\n';

	if (isatty(STDERR_FILENO))
		(void)!write(STDERR_FILENO, line + mark, n - mark);
	else
		(void)!write(STDERR_FILENO, line, n);
}

void log_line(enum log_level level, const char *module, const char *fmt, ...)
{
	va_list args;

	if ((int)level > log_level)
		return;
	va_start(args, fmt);
	log_write(level, module, "", fmt, args);
	va_end(args);
}

void log_line_limited(struct log_limit *limit, enum log_level level, const char *module,
		      const char *fmt, ...)
{
	uint64_t now = time_monotonic_usec(), next = limit->next_usec;
	char suffix[64] = "";
	unsigned suppressed;
	va_list args;

	if ((int)level > log_level)
		return;
	if (now < next ||
	    !atomic_compare_exchange_strong(&limit->next_usec, &next, now + LIMIT_USEC)) {
		limit->suppressed++;
		return;
	}
	suppressed = atomic_exchange(&limit->suppressed, 0);
	if (suppressed)
		snprintf(suffix, sizeof(suffix), " (and %u more like this)", suppressed);
	va_start(args, fmt);
	log_write(level, module, suffix, fmt, args);
	va_end(args);
}

void tp_invariant_failed(const char *cond, const char *file, int line)
{
	log_line(LOG_LEVEL_ERR, "invariant", "%s does not hold at %s:%d, stopping", cond, file,
		 line);
	abort();
}
