/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * lock-class.h - the order in which thinpoold takes its locks
 *
 * One class per kind of lock, outermost first.  A thread may take a lock only
 * if its class comes after every class the thread already holds.  Two checkers
 * read this one table:
 *
 *   compile time   clang -Wthread-safety -Wthread-safety-beta, through the
 *                  tokens lc_<class>;
 *   run time       lock-check.c, built with -DTP_DEBUG_LOCKS, for what clang
 *                  cannot see: function pointers, unannotated callees, waits.
 *
 * Tokens stand for classes, not instances, so they work with opaque types.
 * src/LOCKING.md tells what each class is for and who waits for whom.
 *
 * Layer:    util.
 * Threads:  any.
 * Units:    microseconds for deadlines.
 * Errors:   none: a lock that cannot be had in this order, or at all, ends the process.
 */
#ifndef TP_UTIL_LOCK_CLASS_H
#define TP_UTIL_LOCK_CLASS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "util/compiler.h"

/* clang-format off: tables */
#ifdef __clang__
#define TP_TSA(x) __attribute__((x))
#else
#define TP_TSA(x)
#endif
#define TP_ACQUIRE(...) TP_TSA(acquire_capability(__VA_ARGS__))
#define TP_ACQUIRE_SHARED(...) TP_TSA(acquire_shared_capability(__VA_ARGS__))
#define TP_TRY_ACQUIRE(...) TP_TSA(try_acquire_capability(true, __VA_ARGS__))
#define TP_TRY_ACQUIRE_SHARED(...) TP_TSA(try_acquire_shared_capability(true, __VA_ARGS__))
#define TP_RELEASE(...) TP_TSA(release_capability(__VA_ARGS__))
#define TP_RELEASE_SHARED(...) TP_TSA(release_shared_capability(__VA_ARGS__))
#define TP_ASSERTS(...) TP_TSA(assert_capability(__VA_ARGS__))
#define TP_REQUIRES(...) TP_TSA(requires_capability(__VA_ARGS__))
#define TP_REQUIRES_SHARED(...) TP_TSA(requires_shared_capability(__VA_ARGS__))
#define TP_EXCLUDES(...) TP_TSA(locks_excluded(__VA_ARGS__))
#define TP_GUARDED_BY(x) TP_TSA(guarded_by(x))
#define TP_NO_TSA TP_TSA(no_thread_safety_analysis)

/*    class       comes after  what it protects */
#define LOCK_CLASSES(X) \
	X(shrinkers, outermost, "the list of registered shrinkers") \
	X(completion, shrinkers, \
	  "no lock: requests that others wait for, until they are answered") \
	X(throttle, completion, "new deferrals, while the worker catches up") \
	X(catalog, throttle, "the table of volumes, their names and sizes") \
	X(pool, catalog, "deferred requests and the pool mode") \
	X(prison, pool, "cells of one shard of a prison") \
	X(meta_root, prison, "roots, space maps and devices of the open transaction") \
	X(block, meta_root, "the content of one metadata block; parent before child") \
	X(tm, block, "a transaction manager; nothing at present") \
	X(bufio, tm, "the buffers of one shard of a cache") \
	X(bufio_lru, bufio, "sizes, write-back and waiting of one cache") \
	X(io, bufio_lru, "a queue's or a device's own lists") \
	X(fuse, io, "handles, notices and idle buffers of the mount; a leaf") \
	X(control, fuse, "finished control calls; the configuration in force; a leaf") \
	X(pressure, control, "requests to the pressure thread, and its numbers; a leaf") \
	X(log, pressure, "logging")

struct TP_TSA(capability("lock class")) lock_class_token {
	char unused;
};
extern struct lock_class_token lc_outermost;

#define LC_TOKEN(name, after, what) \
	extern struct lock_class_token lc_##name TP_TSA(acquired_after(lc_##after));
LOCK_CLASSES(LC_TOKEN)
#undef LC_TOKEN

#define LC_ENUM(name, after, what) LC_##name,
enum lock_class { LOCK_CLASSES(LC_ENUM) LC_COUNT };
#undef LC_ENUM

/*
 * What a public function says of itself: it may take locks of @class or a later one, or wait
 * for somebody who does, so its caller holds none of them.  TP_EXCLUDES alone would not do:
 * it says nothing of the classes in between, and taking one of those is a wrong order too.
 * tests/lint/locks.py compares these lists with the table, and the functions with the lists.
 */
#define TP_TAKES(class) TP_EXCLUDES(TP_FROM_##class)
#define TP_FROM_log lc_log
#define TP_FROM_pressure lc_pressure, TP_FROM_log
#define TP_FROM_control lc_control, TP_FROM_pressure
#define TP_FROM_fuse lc_fuse, TP_FROM_control
#define TP_FROM_io lc_io, TP_FROM_fuse
#define TP_FROM_bufio_lru lc_bufio_lru, TP_FROM_io
#define TP_FROM_bufio lc_bufio, TP_FROM_bufio_lru
#define TP_FROM_tm lc_tm, TP_FROM_bufio
#define TP_FROM_block lc_block, TP_FROM_tm
#define TP_FROM_meta_root lc_meta_root, TP_FROM_block
#define TP_FROM_prison lc_prison, TP_FROM_meta_root
#define TP_FROM_pool lc_pool, TP_FROM_prison
#define TP_FROM_catalog lc_catalog, TP_FROM_pool
#define TP_FROM_throttle lc_throttle, TP_FROM_catalog
#define TP_FROM_completion lc_completion, TP_FROM_throttle
#define TP_FROM_shrinkers lc_shrinkers, TP_FROM_completion

/* It may take the outermost lock.  Never below another lock, nor by who answers requests. */
#define TP_EXCLUDES_ALL TP_TAKES(shrinkers)

/*
 * A lock is a writer-preferring rwlock (as the kernel's rwsem: readers queue
 * behind a waiting writer, which glibc's default does not do) or a mutex that
 * conditions can wait on.
 */
enum lock_kind { LOCK_KIND_RW, LOCK_KIND_MUTEX };

struct tp_lock {
	union {
		pthread_rwlock_t rw;
		pthread_mutex_t mutex;
	};
	enum lock_class class;
	enum lock_kind kind;
};

/* A file-scope rwlock. */
#define TP_LOCK_INIT(cls) \
	{ \
		.rw = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP, .class = LC_##cls, \
		.kind = LOCK_KIND_RW \
	}

void tp_lock_init(struct tp_lock *l, enum lock_class class, enum lock_kind kind);
void tp_lock_destroy(struct tp_lock *l);

/* The calls below are for the wrappers at the end of this file. */
void tp_lock_take(struct tp_lock *l, enum lock_class class, bool shared);
bool tp_lock_try(struct tp_lock *l, enum lock_class class, bool shared);
void tp_lock_drop(struct tp_lock *l);

/* Conditions on a LOCK_KIND_MUTEX, with CLOCK_MONOTONIC deadlines.  Must be the innermost lock
 * held. */
void tp_cond_init(pthread_cond_t *cond);
void tp_lock_wait(struct tp_lock *l, pthread_cond_t *cond);
/* Returns false when @deadline_usec (time_monotonic_usec()) has passed. */
bool tp_lock_wait_until(struct tp_lock *l, pthread_cond_t *cond, uint64_t deadline_usec);

/*
 * About to wait for something whose progress may need @class: hold nothing at or
 * after it.  Call it before every wait for a completion, a work item, a thread or
 * the throttle.
 */
void tp_lock_may_wait(enum lock_class class);

/*
 * Like a lock of @class for the checkers only, for what is held without a lock: a locked
 * block, or "completion" by a thread that answers requests (it holds that for life: also
 * a request that comes while it sleeps is one that somebody waits for).
 */
void tp_lock_hold_begin(const void *what, enum lock_class class);
void tp_lock_hold_end(const void *what, enum lock_class class);

/* Debug builds: the caller holds a lock of @class (in either mode); otherwise no code. */
void tp_lock_assert_held(enum lock_class class);

/* The caller is a thread that answers requests: checked in debug builds, and told to clang. */
TP_ASSERTS(lc_completion) TP_NO_TSA static inline void tp_lock_assert_answers(void)
{
	tp_lock_assert_held(LC_completion);
}

/*
 * lock_<class>(), trylock_<class>(), their _shared forms, and unlocks.  Always inline: the
 * address that the checker notes is the caller's.
 */
#define TP_INLINE inline __attribute__((always_inline))
#define LC_OPS(name, after, what) \
	TP_ACQUIRE(lc_##name) TP_NO_TSA static TP_INLINE void lock_##name(struct tp_lock *l) \
	{ \
		tp_lock_take(l, LC_##name, false); \
	} \
	TP_RELEASE(lc_##name) TP_NO_TSA static TP_INLINE void unlock_##name(struct tp_lock *l) \
	{ \
		tp_lock_drop(l); \
	} \
	TP_ACQUIRE_SHARED(lc_##name) \
	TP_NO_TSA static TP_INLINE void lock_##name##_shared(struct tp_lock *l) \
	{ \
		tp_lock_take(l, LC_##name, true); \
	} \
	TP_RELEASE_SHARED(lc_##name) \
	TP_NO_TSA static TP_INLINE void unlock_##name##_shared(struct tp_lock *l) \
	{ \
		tp_lock_drop(l); \
	} \
	TP_TRY_ACQUIRE(lc_##name) \
	TP_NO_TSA static TP_INLINE bool trylock_##name(struct tp_lock *l) \
	{ \
		return tp_lock_try(l, LC_##name, false); \
	} \
	TP_TRY_ACQUIRE_SHARED(lc_##name) \
	TP_NO_TSA static TP_INLINE bool trylock_##name##_shared(struct tp_lock *l) \
	{ \
		return tp_lock_try(l, LC_##name, true); \
	}
LOCK_CLASSES(LC_OPS)
#undef LC_OPS
#undef TP_INLINE
/* clang-format on */

#endif
