/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * shrinker.c - registry of caches that can give memory back
 *
 * Plays the part of the kernel's shrinker list, including the property that
 * matters to dm-thin: callbacks run under the list lock.  A reader (shrinkers_reclaim)
 * can therefore sit on the lock for as long as a callback takes, and whoever
 * wants to register must wait for it.  That wait is what must never happen
 * below another pool lock; the lock class makes it a build or a test failure.
 *
 * Invariant: a shrinker is on the list from just before shrinker_register()
 * returns 0 until shrinker_unregister() has the lock.
 */
#include "reclaim/shrinker.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "util/cleanup.h"
#include "util/clock.h"

struct shrinker {
	TAILQ_ENTRY(shrinker) link TP_GUARDED_BY(lc_shrinkers);
	char *name;                     /* constant after register */
	const struct shrinker_ops *ops; /* borrowed */
	void *ctx;                      /* borrowed */
};

TAILQ_HEAD(shrinker_list, shrinker);

static struct tp_lock list_lock = TP_LOCK_INIT(shrinkers);
static struct shrinker_list list TP_GUARDED_BY(lc_shrinkers) = TAILQ_HEAD_INITIALIZER(list);
static _Atomic uint64_t longest_hold_usec;

/* Accepts a half-built shrinker: that is what keeps register() free of gotos. */
static void shrinker_freep(struct shrinker **sp)
{
	if (*sp)
		free((*sp)->name);
	free(*sp);
}

int shrinker_register(const char *name, const struct shrinker_ops *ops, void *ctx,
		      struct shrinker **ret_s)
{
	TP_CLEANUP(shrinker_freep) struct shrinker *s = NULL;

	if (!name || !*name || !ops->count || !ops->scan || !ops->freed != !ops->settle)
		return -EINVAL;

	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;

	s->name = strdup(name);
	if (!s->name)
		return -ENOMEM;

	s->ops = ops;
	s->ctx = ctx;

	lock_shrinkers(&list_lock);
	TAILQ_INSERT_TAIL(&list, s, link);
	unlock_shrinkers(&list_lock);

	*ret_s = tp_take(&s);
	return 0;
}

struct shrinker *shrinker_unregister(struct shrinker *s)
{
	if (!s)
		return NULL;

	lock_shrinkers(&list_lock); /* waits for running callbacks */
	TAILQ_REMOVE(&list, s, link);
	unlock_shrinkers(&list_lock);

	shrinker_freep(&s);
	return NULL;
}

static void note_hold(uint64_t began_usec)
{
	uint64_t usec = time_monotonic_usec() - began_usec, longest = longest_hold_usec;

	while (usec > longest && !atomic_compare_exchange_weak(&longest_hold_usec, &longest, usec))
		;
}

uint64_t shrinkers_longest_hold_usec(void)
{
	return atomic_load(&longest_hold_usec);
}

static TP_REQUIRES_SHARED(lc_shrinkers) void ask(const struct shrinker *s, unsigned divisor,
						 struct shrinker_result *ret_result)
{
	uint64_t nr = s->ops->count(s->ctx);

	snprintf(ret_result->name, sizeof(ret_result->name), "%s", s->name);
	ret_result->asked = nr / divisor + !!(nr % divisor);
	ret_result->freed = ret_result->asked ? s->ops->scan(s->ctx, ret_result->asked) : 0;
}

/* The _locked twin may return anywhere; the outer one owns the lock.  Ask them all before waiting
 * for the first: their helpers work side by side. */
static TP_REQUIRES_SHARED(lc_shrinkers) void reclaim_locked(unsigned divisor,
							    struct shrinkers_report *report)
{
	uint64_t before[SHRINKER_RESULTS_MAX];
	struct shrinker_result unreported, *result;
	const struct shrinker *s;
	unsigned i = 0;

	TAILQ_FOREACH(s, &list, link) {
		if (i == SHRINKER_RESULTS_MAX) {
			ask(s, divisor, &unreported);
			continue;
		}
		before[i] = s->ops->freed ? s->ops->freed(s->ctx) : 0;
		ask(s, divisor, &report->results[i++]);
	}
	report->nr_results = i;
	s = TAILQ_FIRST(&list);
	for (i = 0; i < report->nr_results; i++, s = TAILQ_NEXT(s, link)) {
		result = &report->results[i];
		if (s->ops->settle && result->asked) {
			s->ops->settle(s->ctx);
			result->freed = s->ops->freed(s->ctx) - before[i];
		}
		result->bytes = result->freed * s->ops->object_bytes;
		report->bytes += result->bytes;
	}
}

void shrinkers_reclaim(unsigned divisor, struct shrinkers_report *ret_report)
{
	struct shrinkers_report report = { .nr_results = 0 };
	uint64_t began_usec;

	lock_shrinkers_shared(&list_lock);
	began_usec = time_monotonic_usec();
	reclaim_locked(divisor, &report);
	note_hold(began_usec);
	unlock_shrinkers_shared(&list_lock);
	*ret_report = report;
}
