/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * stall-watch.c - does every thread of a test get on, and if not, was it the machine?
 *
 * Stalls and hold-ups of the reference thread are noted with their times and compared at the
 * end: a heart may beat again before the reference thread has noticed anything.
 */
#include "stall-watch.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/clock.h"
#include "util/compiler.h"

#define MAX_HEARTS 16u
#define MAX_STALLS 4096u
#define STALL_MIN_USEC (100 * USEC_PER_MSEC) /* shorter ones are not worth a note */
#define LOST_MIN_USEC (5 * USEC_PER_MSEC)
#define SLEEP_USEC (20 * USEC_PER_MSEC)
#define WORK_USEC 500u
#define CHAIN 5u /* a client, a worker, a helper, and their answers */

struct span {
	uint64_t begin, end;
	uint64_t lost; /* hold-up: so much of it; stall: not used */
};

struct heart {
	struct stall_watch *watch;
	const char *name;
	_Atomic uint64_t last; /* 0: it rests */
	uint64_t longest;
	unsigned nr_stalls;
	struct span stalls[MAX_STALLS]; /* the longest ones, if there are more */
};

struct stall_watch {
	pthread_t reference;
	atomic_bool stop;
	uint64_t hang_usec;
	atomic_uint nr_hearts;
	struct heart *hearts[MAX_HEARTS];
	struct span *held_up;
	size_t nr_held_up, room;
	uint64_t machine_usec;
};

/* ---- hearts ---- */

static void note_stall(struct heart *h, uint64_t begin, uint64_t end)
{
	struct span *to = &h->stalls[0];

	if (h->nr_stalls < MAX_STALLS) {
		to = &h->stalls[h->nr_stalls++];
	} else {
		for (unsigned i = 1; i < MAX_STALLS; i++)
			if (h->stalls[i].end - h->stalls[i].begin < to->end - to->begin)
				to = &h->stalls[i];
		if (to->end - to->begin >= end - begin)
			return;
	}
	*to = (struct span){ .begin = begin, .end = end };
}

void heart_beat(struct heart *h)
{
	uint64_t now = time_monotonic_usec();
	uint64_t last = atomic_exchange_explicit(&h->last, now, memory_order_relaxed);

	if (!last)
		return;
	if (now - last > h->longest)
		h->longest = now - last;
	if (now - last >= STALL_MIN_USEC)
		note_stall(h, last, now);
}

void heart_rest(struct heart *h)
{
	heart_beat(h);
	atomic_store_explicit(&h->last, 0, memory_order_relaxed);
}

struct heart *stall_watch_enter(struct stall_watch *w, const char *name)
{
	struct heart *h = calloc(1, sizeof(*h));
	unsigned i = atomic_load(&w->nr_hearts);

	TP_INVARIANT(h && i < MAX_HEARTS);
	h->watch = w;
	h->name = name;
	w->hearts[i] = h;
	atomic_store(&w->nr_hearts, i + 1);
	return h;
}

/* ---- the reference thread ---- */

static void work_a_little(void)
{
	uint64_t end = time_read_usec(CLOCK_THREAD_CPUTIME_ID) + WORK_USEC;

	while (time_read_usec(CLOCK_THREAD_CPUTIME_ID) < end)
		;
}

static void note_held_up(struct stall_watch *w, uint64_t begin, uint64_t end)
{
	uint64_t lost = end - begin - MIN(end - begin, SLEEP_USEC + WORK_USEC);

	if (lost > w->machine_usec)
		w->machine_usec = lost;
	if (lost < LOST_MIN_USEC)
		return;
	if (w->nr_held_up == w->room) {
		w->room = w->room ? 2 * w->room : 1024;
		w->held_up = realloc(w->held_up, w->room * sizeof(*w->held_up));
		TP_INVARIANT(w->held_up);
	}
	w->held_up[w->nr_held_up++] = (struct span){ .begin = begin, .end = end, .lost = lost };
}

static uint64_t unexplained(const struct stall_watch *w, uint64_t begin, uint64_t end)
{
	uint64_t lost = 0;

	for (size_t i = w->nr_held_up; i-- > 0 && w->held_up[i].end > begin;) {
		const struct span *s = &w->held_up[i];

		if (s->begin < end)
			lost += MIN(s->lost,
				    MIN(s->end, end) - (s->begin > begin ? s->begin : begin));
	}
	return end - begin - MIN(end - begin, lost);
}

static void look_for_a_hang(const struct stall_watch *w)
{
	unsigned nr = atomic_load(&w->nr_hearts);
	uint64_t now = time_monotonic_usec(), last;

	for (unsigned i = 0; i < nr; i++) {
		last = atomic_load(&w->hearts[i]->last);
		if (last && last < now && now - last > w->hang_usec &&
		    unexplained(w, last, now) > w->hang_usec)
			break;
		if (i + 1 == nr)
			return;
	}
	for (unsigned i = 0; i < nr; i++) {
		last = atomic_load(&w->hearts[i]->last);
		fprintf(stderr, "# \"%s\": last sign of life %.3f s ago\n", w->hearts[i]->name,
			last && last < now ? (double)(now - last) / USEC_PER_SEC : 0.0);
	}
	if (nr)
		abort();
}

static void *reference_main(void *arg)
{
	const struct timespec pause = { .tv_nsec = SLEEP_USEC * NSEC_PER_USEC };
	struct stall_watch *w = arg;
	uint64_t begin;

	while (!atomic_load(&w->stop)) {
		begin = time_monotonic_usec();
		nanosleep(&pause, NULL);
		work_a_little();
		note_held_up(w, begin, time_monotonic_usec());
		look_for_a_hang(w);
	}
	return NULL;
}

struct stall_watch *stall_watch_start(uint64_t hang_usec)
{
	struct stall_watch *w = calloc(1, sizeof(*w));

	TP_INVARIANT(w);
	w->hang_usec = hang_usec;
	TP_INVARIANT(!pthread_create(&w->reference, NULL, reference_main, w));
	return w;
}

struct stall_report stall_watch_end(struct stall_watch *w)
{
	struct stall_report report = { .name = "nobody" };
	unsigned nr = atomic_load(&w->nr_hearts);

	atomic_store(&w->stop, true);
	pthread_join(w->reference, NULL);
	report.machine_usec = w->machine_usec;
	report.limit_usec = MAX(USEC_PER_SEC, CHAIN * w->machine_usec);
	for (unsigned i = 0; i < nr; i++) {
		struct heart *h = w->hearts[i];

		report.longest_usec = MAX(report.longest_usec, h->longest);
		for (unsigned s = 0; s < h->nr_stalls; s++) {
			uint64_t own = unexplained(w, h->stalls[s].begin, h->stalls[s].end);

			if (own > report.unexplained_usec) {
				report.unexplained_usec = own;
				report.name = h->name;
			}
		}
		free(h);
	}
	free(w->held_up);
	free(w);
	return report;
}
