/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * lock-check.c - the run-time check of the order of locks (debug builds)
 *
 * Each thread keeps what it holds.  A wrong order is reported the first time the two classes
 * meet, whether or not any other thread is near: no deadlock has to happen.  A try-lock
 * cannot wait, so it may be taken in any order; what is taken after it is checked against it.
 *
 * What was taken, or waited for, below what is kept once for each pair of classes, by all
 * threads together.  A report so tells both chains: what this thread holds and asks for, and
 * who asked for them the other way round, with the places in the code.
 *
 * Locks are held by address, so one may be dropped in any order.  The class "block" alone
 * may be held several times (a parent and its children).
 */
#include "util/lock-check.h"

#ifdef TP_DEBUG_LOCKS
#include <dlfcn.h>
#include <execinfo.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_HELD 32
#define MAX_FRAMES 16
#define MAX_PLACES (MAX_HELD + MAX_FRAMES + 4 * LC_COUNT)
#define REPORT_BYTES 8192

#define LC_NAME(name, after, what) [LC_##name] = #name,
static const char *const class_names[] = { LOCK_CLASSES(LC_NAME) };

static _Thread_local struct {
	const void *what;
	const void *site; /* that took it */
	enum lock_class class;
} held[MAX_HELD];
static _Thread_local unsigned nr_held;

/* Seen for the first time: @inner was asked for by who held the outer class since @outer. */
struct edge {
	atomic_int state; /* 0: never seen, 1: being filled in, 2: the rest can be read */
	bool is_wait;
	const void *outer, *inner;
	char thread[16];
};
static struct edge edges[LC_COUNT][LC_COUNT];

static void (*_Atomic reporter)(const char *text);

/* ---- places in the code ---- */

/* Of one report; guarded by its lock. */
static struct {
	const void *address[MAX_PLACES];
	char name[MAX_PLACES][128];
	unsigned nr, nr_resolved;
} places;

static const char *place_name(const void *address)
{
	for (unsigned i = 0; i < places.nr; i++)
		if (places.address[i] == address)
			return places.name[i];
	if (places.nr == MAX_PLACES)
		return "?";
	places.address[places.nr] = address;
	snprintf(places.name[places.nr], sizeof(places.name[0]), "%p", address);
	return places.name[places.nr++];
}

/*
 * A line of addr2line(1): "0x1234: function at file:line" begins a place, and lines with
 * "(inlined by)" for "0x1234:" go on with it.  Who called a wrapper of lock-class.h is meant.
 */
static void place_take_line(char *line)
{
	char *words = strstr(line, "0x") == line ? strstr(line, ": ") : NULL;

	line[strcspn(line, "\n")] = '\0';
	if (words)
		places.nr_resolved++;
	else
		words = strstr(line, ") ");
	if (!words || !places.nr_resolved || places.nr_resolved > places.nr)
		return;
	words += 2;
	if (words[0] != '?' && !strstr(places.name[places.nr_resolved - 1], " at ") &&
	    !strstr(words, "lock-class.h"))
		snprintf(places.name[places.nr_resolved - 1], sizeof(places.name[0]), "%s", words);
}

/* Ask the debug information.  What cannot be found keeps its address for a name. */
static void places_resolve(void)
{
	char command[MAX_PLACES * 20 + 64], line[sizeof(places.name[0])];
	size_t length;
	Dl_info self, info;
	FILE *f;

	places.nr_resolved = 0;
	if (!dladdr(class_names, &self))
		return;
	length = (size_t)snprintf(command, sizeof(command),
				  "addr2line -a -f -i -s -p -e /proc/%d/exe", (int)getpid());
	for (unsigned i = 0; i < places.nr; i++) {
		uintptr_t a = (uintptr_t)places.address[i];

		/* A return address belongs to the call before it; of libraries nothing is known. */
		if (!dladdr(places.address[i], &info) || info.dli_fbase != self.dli_fbase)
			a = (uintptr_t)self.dli_fbase + 1;
		length += (size_t)snprintf(command + length, sizeof(command) - length, " %#lx",
					   (unsigned long)(a - (uintptr_t)self.dli_fbase - 1));
	}
	f = popen(command, "re");
	if (!f)
		return;
	while (fgets(line, sizeof(line), f))
		place_take_line(line);
	(void)pclose(f);
}

/* ---- the report ---- */

static pthread_mutex_t report_lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
	char text[REPORT_BYTES];
	size_t length;
} report;

static void say(const char *fmt, ...) TP_PRINTF(1, 2);
static void say(const char *fmt, ...)
{
	size_t room = sizeof(report.text) - report.length;
	va_list args;
	int n;

	va_start(args, fmt);
	n = vsnprintf(report.text + report.length, room, fmt, args);
	va_end(args);
	if (n > 0)
		report.length += MIN((size_t)n, room - 1);
}

static void say_edge(enum lock_class outer, enum lock_class inner)
{
	const struct edge *e = &edges[outer][inner];

	say("    \"%s\" since %s,\n      then %s \"%s\" in %s, thread %s\n", class_names[outer],
	    place_name(e->outer), e->is_wait ? "waited for a user of" : "took", class_names[inner],
	    place_name(e->inner), e->thread);
}

/* How somebody came from @from to @to: breadth first over the orders seen. */
static void say_other_chain(enum lock_class from, enum lock_class to)
{
	int before[LC_COUNT], queue[LC_COUNT], chain[LC_COUNT];
	unsigned head = 0, tail = 0, n = 0;

	memset(before, -1, sizeof(before));
	before[from] = (int)from;
	queue[tail++] = (int)from;
	while (head < tail && before[to] < 0) {
		int c = queue[head++];

		for (int i = 0; i < LC_COUNT; i++) {
			if (before[i] >= 0 || atomic_load(&edges[c][i].state) != 2)
				continue;
			before[i] = c;
			queue[tail++] = i;
		}
	}
	if (before[to] < 0) {
		say("  \"%s\" comes before \"%s\" in the table; nobody has taken them so yet\n",
		    class_names[from], class_names[to]);
		return;
	}
	say("  the other way round, seen before:\n");
	for (int c = (int)to; c != (int)from; c = before[c])
		chain[n++] = c;
	for (int c = (int)from; n-- > 0; c = chain[n])
		say_edge((enum lock_class)c, (enum lock_class)chain[n]);
}

static void say_all(const char *what, enum lock_class class, bool order, const void *site,
		    void *const *frames, int nr_frames)
{
	char thread[16] = "?";

	report.length = 0;
	(void)pthread_getname_np(pthread_self(), thread, sizeof(thread));
	say("lock order: %s \"%s\" in %s, thread %s, while holding%s\n", what, class_names[class],
	    place_name(site), thread, nr_held ? ":" : " nothing");
	for (unsigned i = 0; i < nr_held; i++)
		say("    \"%s\" since %s\n", class_names[held[i].class], place_name(held[i].site));
	for (unsigned i = 0; order && i < nr_held; i++) {
		if (held[i].class > class)
			say_other_chain(class, held[i].class);
		else if (held[i].class == class)
			say("  \"%s\" is held already\n", class_names[class]);
	}
	say("  called from:\n");
	for (int i = 0; i < nr_frames; i++)
		say("    %s\n", place_name(frames[i]));
}

/* @order: what is wrong is the order.  Returns only to a test that wants to go on. */
static void violation(const char *what, enum lock_class class, bool order, const void *site)
{
	void (*hand_to)(const char *text) = atomic_load(&reporter);
	void *frames[MAX_FRAMES];
	int nr_frames = backtrace(frames, MAX_FRAMES);
	unsigned nr_places;

	pthread_mutex_lock(&report_lock);
	places.nr = 0;
	say_all(what, class, order, site, frames, nr_frames);
	if (hand_to) {
		hand_to(report.text);
		pthread_mutex_unlock(&report_lock);
		return;
	}
	do { /* again, with names; other threads may have been seen in new places meanwhile */
		nr_places = places.nr;
		places_resolve();
		say_all(what, class, order, site, frames, nr_frames);
	} while (places.nr > nr_places);
	fputs(report.text, stderr);
	abort();
}

void lock_check_set_report(void (*fn)(const char *text))
{
	atomic_store(&reporter, fn);
}

/* ---- the checks ---- */

static void note_order(enum lock_class class, bool is_wait, const void *site)
{
	for (unsigned i = 0; i < nr_held; i++) {
		struct edge *e = &edges[held[i].class][class];
		int never = 0;

		if (likely(atomic_load_explicit(&e->state, memory_order_relaxed)) ||
		    held[i].class >= class || !atomic_compare_exchange_strong(&e->state, &never, 1))
			continue;
		e->is_wait = is_wait;
		e->outer = held[i].site;
		e->inner = site;
		(void)pthread_getname_np(pthread_self(), e->thread, sizeof(e->thread));
		atomic_store(&e->state, 2);
	}
}

void lock_check_take(enum lock_class class, const void *site)
{
	for (unsigned i = 0; i < nr_held; i++) {
		if (likely(held[i].class < class || (held[i].class == class && class == LC_block)))
			continue;
		violation("taking", class, true, site);
		return;
	}
	note_order(class, false, site);
}

void lock_check_wait(enum lock_class class, const void *site)
{
	for (unsigned i = 0; i < nr_held; i++) {
		if (likely(held[i].class < class))
			continue;
		violation("waiting for a user of", class, true, site);
		return;
	}
	note_order(class, true, site);
}

void lock_check_held(const void *what, enum lock_class class, const void *site)
{
	if (nr_held == MAX_HELD) {
		atomic_store(&reporter, NULL); /* there is no way to go on */
		violation("too many locks for", class, false, site);
	}
	held[nr_held].what = what;
	held[nr_held].site = site;
	held[nr_held++].class = class;
}

void lock_check_dropped(const void *what, enum lock_class class, const void *site)
{
	for (unsigned i = nr_held; i-- > 0;) {
		if (held[i].what != what)
			continue;
		for (nr_held--; i < nr_held; i++)
			held[i] = held[i + 1];
		return;
	}
	violation("dropping unheld", class, false, site);
}

void lock_check_class(enum lock_class class, enum lock_class claimed, const void *site)
{
	if (unlikely(class != claimed))
		violation("bad class for", claimed, false, site);
}

void tp_lock_assert_held(enum lock_class class)
{
	for (unsigned i = 0; i < nr_held; i++)
		if (held[i].class == class)
			return;
	violation("caller lacks", class, false, __builtin_return_address(0));
}
#else
void tp_lock_assert_held(enum lock_class class)
{
	(void)class;
}
#endif
