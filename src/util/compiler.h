/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * compiler.h - attributes, small macros and the assertion that stays in release builds
 *
 * Layer:    util.
 * Threads:  any.
 * Units:    none.
 * Errors:   none; TP_INVARIANT() ends the process.
 */
#ifndef TP_UTIL_COMPILER_H
#define TP_UTIL_COMPILER_H

#include <stddef.h>

#define TP_MUST_CHECK __attribute__((warn_unused_result))
#define TP_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define TP_NORETURN __attribute__((noreturn))
#define TP_UNUSED __attribute__((unused))

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define DIV_ROUND_UP(n, d) (((n) + (d)-1) / (d))

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

/* In a loop that waits for another CPU. */
static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/*
 * For invariants of this program's own state, never for what comes from disk or
 * from a client.  Stays on in release builds: a dead daemon is better than a
 * wrong commit.
 */
#define TP_INVARIANT(cond) \
	do { \
		if (unlikely(!(cond))) \
			tp_invariant_failed(#cond, __FILE__, __LINE__); \
	} while (0)

TP_NORETURN void tp_invariant_failed(const char *cond, const char *file, int line);

#endif
