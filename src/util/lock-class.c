/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * lock-class.c - locks, and the run-time check of their order (debug builds)
 *
 * Each thread keeps the locks it holds.  A wrong order is reported the first
 * time the two locks meet, whether or not any other thread is near: no
 * deadlock has to happen.  A try-lock cannot wait, so it may be taken in any
 * order; what is taken after it is checked against it.
 *
 * Locks are held by address, so one may be dropped in any order.  The class
 * "block" alone may be held several times (a parent and its children).
 */
#include "util/lock-class.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "util/clock.h"

#define LC_DEFINE(name, after, what) struct lock_class_token lc_##name;
LOCK_CLASSES(LC_DEFINE)
struct lock_class_token lc_outermost;

#ifdef TP_DEBUG_LOCKS
#define MAX_HELD 32

#define LC_NAME(name, after, what) [LC_##name] = #name,
static const char *const class_names[] = { LOCK_CLASSES(LC_NAME) };

static _Thread_local struct {
	const void *lock;
	enum lock_class class;
} held[MAX_HELD];
static _Thread_local unsigned nr_held;

static TP_NORETURN void die(const char *what, enum lock_class wanted)
{
	fprintf(stderr, "lock order: %s \"%s\" while holding:", what, class_names[wanted]);
	for (unsigned i = 0; i < nr_held; i++)
		fprintf(stderr, " \"%s\"", class_names[held[i].class]);
	fputc('\n', stderr);
	abort();
}

static void check_none_from(const char *what, enum lock_class class)
{
	for (unsigned i = 0; i < nr_held; i++)
		if (held[i].class > class || (held[i].class == class && class != LC_block))
			die(what, class);
}

static void note_held(const void *what, enum lock_class class)
{
	if (nr_held == MAX_HELD)
		die("too many locks for", class);
	held[nr_held].lock = what;
	held[nr_held++].class = class;
}

static void note_dropped(const void *what, enum lock_class class)
{
	for (unsigned i = nr_held; i-- > 0;) {
		if (held[i].lock != what)
			continue;
		for (nr_held--; i < nr_held; i++)
			held[i] = held[i + 1];
		return;
	}
	die("dropping unheld", class);
}

static void check_class(const struct tp_lock *l, enum lock_class class)
{
	if (l->class != class)
		die("bad class for", class);
}

void tp_lock_may_wait(enum lock_class class)
{
	for (unsigned i = 0; i < nr_held; i++)
		if (held[i].class >= class)
			die("waiting on a user of", class);
}

void tp_lock_assert_held(enum lock_class class)
{
	for (unsigned i = 0; i < nr_held; i++)
		if (held[i].class == class)
			return;
	die("caller lacks", class);
}
#else
static inline void check_none_from(const char *what, enum lock_class class)
{
	(void)what;
	(void)class;
}
static inline void note_held(const void *what, enum lock_class class)
{
	(void)what;
	(void)class;
}
static inline void note_dropped(const void *what, enum lock_class class)
{
	(void)what;
	(void)class;
}
static inline void check_class(const struct tp_lock *l, enum lock_class class)
{
	(void)l;
	(void)class;
}
void tp_lock_may_wait(enum lock_class class)
{
	(void)class;
}
void tp_lock_assert_held(enum lock_class class)
{
	(void)class;
}
#endif

/* pthread errors here mean a corrupted or misused lock: nothing sane can follow. */
static void must(int r)
{
	if (r)
		abort();
}

void tp_lock_init(struct tp_lock *l, enum lock_class class, enum lock_kind kind)
{
	l->class = class;
	l->kind = kind;
	if (kind == LOCK_KIND_MUTEX) {
		must(pthread_mutex_init(&l->mutex, NULL));
	} else {
		pthread_rwlockattr_t attr;

		must(pthread_rwlockattr_init(&attr));
		must(pthread_rwlockattr_setkind_np(&attr,
						   PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP));
		must(pthread_rwlock_init(&l->rw, &attr));
		pthread_rwlockattr_destroy(&attr);
	}
}

void tp_lock_destroy(struct tp_lock *l)
{
	must(l->kind == LOCK_KIND_MUTEX ? pthread_mutex_destroy(&l->mutex)
					: pthread_rwlock_destroy(&l->rw));
}

void tp_lock_take(struct tp_lock *l, enum lock_class class, bool shared)
{
	check_class(l, class);
	check_none_from("taking", class); /* before blocking: report, do not hang */
	note_held(l, class);
	if (l->kind == LOCK_KIND_MUTEX)
		must(pthread_mutex_lock(&l->mutex));
	else
		must(shared ? pthread_rwlock_rdlock(&l->rw) : pthread_rwlock_wrlock(&l->rw));
}

bool tp_lock_try(struct tp_lock *l, enum lock_class class, bool shared)
{
	int r;

	check_class(l, class);
	if (l->kind == LOCK_KIND_MUTEX)
		r = pthread_mutex_trylock(&l->mutex);
	else
		r = shared ? pthread_rwlock_tryrdlock(&l->rw) : pthread_rwlock_trywrlock(&l->rw);
	if (r == EBUSY || r == EAGAIN)
		return false;
	must(r);
	note_held(l, class);
	return true;
}

void tp_lock_drop(struct tp_lock *l)
{
	note_dropped(l, l->class);
	must(l->kind == LOCK_KIND_MUTEX ? pthread_mutex_unlock(&l->mutex)
					: pthread_rwlock_unlock(&l->rw));
}

void tp_cond_init(pthread_cond_t *cond)
{
	pthread_condattr_t attr;

	must(pthread_condattr_init(&attr));
	must(pthread_condattr_setclock(&attr, CLOCK_MONOTONIC));
	must(pthread_cond_init(cond, &attr));
	pthread_condattr_destroy(&attr);
}

void tp_lock_wait(struct tp_lock *l, pthread_cond_t *cond)
{
	must(pthread_cond_wait(cond, &l->mutex));
}

bool tp_lock_wait_until(struct tp_lock *l, pthread_cond_t *cond, uint64_t deadline_usec)
{
	struct timespec ts = {
		.tv_sec = deadline_usec / USEC_PER_SEC,
		.tv_nsec = deadline_usec % USEC_PER_SEC * NSEC_PER_USEC,
	};
	int r = pthread_cond_timedwait(cond, &l->mutex, &ts);

	if (r == ETIMEDOUT)
		return false;
	must(r);
	return true;
}

void tp_lock_hold_begin(const void *what, enum lock_class class)
{
	note_held(what, class);
}

void tp_lock_hold_end(const void *what, enum lock_class class)
{
	note_dropped(what, class);
}
