/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * lock-class.c - locks
 *
 * Thin wrappers of pthread's, each with a call of the checker (lock-check.h), which is
 * nothing but in debug builds.
 */
#include "util/lock-class.h"

#include <errno.h>
#include <stdlib.h>

#include "util/clock.h"
#include "util/lock-check.h"

#define LC_DEFINE(name, after, what) struct lock_class_token lc_##name;
LOCK_CLASSES(LC_DEFINE)
struct lock_class_token lc_outermost;

/* The caller's: the wrappers of lock-class.h are always inline. */
#define SITE __builtin_return_address(0)

void tp_lock_may_wait(enum lock_class class)
{
	lock_check_wait(class, SITE);
}

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
	lock_check_class(l->class, class, SITE);
	lock_check_take(class, SITE); /* before blocking: report, do not hang */
	lock_check_held(l, class, SITE);
	if (l->kind == LOCK_KIND_MUTEX)
		must(pthread_mutex_lock(&l->mutex));
	else
		must(shared ? pthread_rwlock_rdlock(&l->rw) : pthread_rwlock_wrlock(&l->rw));
}

bool tp_lock_try(struct tp_lock *l, enum lock_class class, bool shared)
{
	int r;

	lock_check_class(l->class, class, SITE);
	if (l->kind == LOCK_KIND_MUTEX)
		r = pthread_mutex_trylock(&l->mutex);
	else
		r = shared ? pthread_rwlock_tryrdlock(&l->rw) : pthread_rwlock_trywrlock(&l->rw);
	if (r == EBUSY || r == EAGAIN)
		return false;
	must(r);
	lock_check_held(l, class, SITE);
	return true;
}

void tp_lock_drop(struct tp_lock *l)
{
	lock_check_dropped(l, l->class, SITE);
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
	lock_check_held(what, class, SITE);
}

void tp_lock_hold_end(const void *what, enum lock_class class)
{
	lock_check_dropped(what, class, SITE);
}
