/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * lock-check.h - the run-time check of the order of locks (debug builds)
 *
 * Layer:    util; for lock-class.c and for tests.
 * Threads:  any.  Takes no lock but its own, and that only to report.
 * Units:    none.
 * Errors:   none: a violation is reported, which ends the process.
 *
 * @site is the address of the code that takes, waits or drops.  Without TP_DEBUG_LOCKS
 * there is nothing of this but empty functions.
 */
#ifndef TP_UTIL_LOCK_CHECK_H
#define TP_UTIL_LOCK_CHECK_H

#include <stdbool.h>

#include "util/compiler.h"
#include "util/lock-class.h"

#ifdef TP_DEBUG_LOCKS
/* About to wait for a lock of @class; called before it blocks. */
void lock_check_take(enum lock_class class, const void *site);
/* About to wait for somebody who may need @class. */
void lock_check_wait(enum lock_class class, const void *site);
/* @what, a lock or whatever stands for one, is held from now on, or no longer. */
void lock_check_held(const void *what, enum lock_class class, const void *site);
void lock_check_dropped(const void *what, enum lock_class class, const void *site);
/* The lock named as one of class @claimed is one of @class. */
void lock_check_class(enum lock_class class, enum lock_class claimed, const void *site);

/*
 * Hand reports to @report and go on, instead of printing them and ending the process; code
 * is named by its address only then.  NULL: as before.  For tests that want to see what
 * happens next.
 */
void lock_check_set_report(void (*report)(const char *text));
#else
static inline void lock_check_take(enum lock_class class, const void *site)
{
	(void)class;
	(void)site;
}
static inline void lock_check_held(const void *what, enum lock_class class, const void *site)
{
	(void)what;
	(void)class;
	(void)site;
}
static inline void lock_check_dropped(const void *what, enum lock_class class, const void *site)
{
	(void)what;
	(void)class;
	(void)site;
}
static inline void lock_check_wait(enum lock_class class, const void *site)
{
	(void)class;
	(void)site;
}
static inline void lock_check_class(enum lock_class class, enum lock_class claimed,
				    const void *site)
{
	(void)class;
	(void)claimed;
	(void)site;
}
#endif

#endif
