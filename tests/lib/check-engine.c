/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * check-engine.c - what others do with a damaged image: thinmeta.py, and the engine
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "abort-alone.h"
#include "check-rig.h"
#include "io/device.h"
#include "mem-device.h"
#include "prng.h"
#include "thin/thin-metadata.h"

/* ---- thinmeta.py ---- */

struct judge {
	pid_t pid;
	FILE *to, *from;
	int image; /* a file without a name, which lies in its own descriptor's path */
	char why[512];
};

struct judge *judge_start(void)
{
	struct judge *judge = calloc(1, sizeof(*judge));
	int in[2], out[2];

	TP_INVARIANT(judge && !pipe(in) && !pipe(out));
	judge->image = memfd_create("image", MFD_CLOEXEC);
	TP_INVARIANT(judge->image >= 0);
	fflush(NULL);
	judge->pid = fork();
	TP_INVARIANT(judge->pid >= 0);
	if (!judge->pid) {
		dup2(in[0], STDIN_FILENO);
		dup2(out[1], STDOUT_FILENO);
		close(in[1]);
		close(out[0]);
		execlp("python3", "python3", JUDGE, (char *)NULL);
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	judge->to = fdopen(in[1], "w");
	judge->from = fdopen(out[0], "r");
	TP_INVARIANT(judge->to && judge->from);
	return judge;
}

void judge_stop(struct judge *judge)
{
	fclose(judge->to);
	fclose(judge->from);
	close(judge->image);
	TP_INVARIANT(waitpid(judge->pid, NULL, 0) == judge->pid);
	free(judge);
}

enum verdict judge_image(struct judge *judge, struct io_device *meta, const char **ret_why)
{
	uint64_t size = io_device_size(meta);

	TP_INVARIANT(!ftruncate(judge->image, (off_t)size));
	TP_INVARIANT(pwrite(judge->image, mem_device_data(meta), size, 0) == (ssize_t)size);
	fprintf(judge->to, "/proc/%d/fd/%d\n", (int)getpid(), judge->image);
	fflush(judge->to);
	TP_INVARIANT(fgets(judge->why, sizeof(judge->why), judge->from));
	*ret_why = judge->why;
	if (!strncmp(judge->why, "bad", 3))
		return VERDICT_BAD;
	return strncmp(judge->why, "hints", 5) ? VERDICT_CLEAN : VERDICT_HINTS;
}

/* ---- the engine ---- */

enum { MAX_DEVICES = 16, MAX_RUNS = 5000 };

struct survey {
	thin_id_t ids[MAX_DEVICES];
	unsigned nr;
	uint64_t nr_runs;
};

static int note_device(void *ctx, const struct thin_device_details *d)
{
	struct survey *survey = ctx;

	survey->ids[survey->nr++] = d->id;
	return survey->nr == MAX_DEVICES;
}

static int note_run(void *ctx, const struct thin_mapping *m)
{
	struct survey *survey = ctx;

	(void)m;
	return ++survey->nr_runs >= MAX_RUNS;
}

/* Some changes of one device; the first that fails is the last. */
static int change_device(struct thin_metadata *tmd, thin_id_t id, struct prng *prng)
{
	struct thin_device *td;
	vblock_t next, highest;
	struct thin_run run;
	dblock_t block;
	int r = thin_device_open(tmd, id, &td);

	if (r)
		return r;
	(void)!thin_device_highest_mapped(td, &highest); /* may fail, like all here */
	for (unsigned i = 0; i < 6 && !r; i++) {
		vblock_t v = prng_below(prng, 2500);

		(void)!thin_find_run(td, v, 1000, &run);
		r = thin_metadata_reserve_data_block(tmd, &block);
		if (!r)
			r = thin_insert_block(td, v, block);
		if (!r)
			r = thin_remove_range(td, v + 3, v + 3 + prng_below(prng, 300), 200, &next);
	}
	thin_device_close(td);
	return r;
}

static int change_pool(struct thin_metadata *tmd, const struct survey *survey, struct prng *prng)
{
	int r = 0;

	for (unsigned i = 0; i < 3 && i < survey->nr && !r; i++)
		r = change_device(tmd, survey->ids[prng_below(prng, survey->nr)], prng);
	if (!r && survey->nr)
		r = thin_metadata_create_snap(tmd, 5000, survey->ids[0]);
	if (!r && survey->nr)
		r = thin_metadata_delete_thin(tmd, survey->ids[prng_below(prng, survey->nr)]);
	return r ? r : thin_metadata_commit(tmd);
}

void engine_survives(struct io_device *meta, uint64_t seed)
{
	const struct thin_metadata_options options = { .cache_bytes = 1 << 20 };
	struct io_device *copy = mem_device_clone(meta);
	struct survey survey = { .nr = 0 };
	struct thin_metadata *tmd = NULL;
	struct prng prng;
	int r;

	prng_init(&prng, seed);
	r = thin_metadata_open(copy, &options, &tmd, NULL);
	if (!r) {
		r = thin_metadata_for_each_device(tmd, note_device, &survey);
		for (unsigned i = 0; i < survey.nr; i++)
			r = thin_metadata_for_each_mapping(tmd, survey.ids[i], note_run, &survey);
		r = change_pool(tmd, &survey, &prng);
		if (r)
			r = abort_alone(tmd);
		if (!r)
			r = change_pool(tmd, &survey, &prng);
		TP_INVARIANT(!thin_metadata_close(tmd)); /* no device is open */
	}
	io_device_close(copy);
}

void show_to_others(struct judge *judge, struct io_device *meta, const struct report *report,
		    uint64_t seed)
{
	const char *why = "";
	enum verdict verdict;

	engine_survives(meta, seed);
	verdict = judge_image(judge, meta, &why);
	if (verdict == VERDICT_BAD && !report->result.nr_damages && !report->result.nr_leaks)
		fail_msg("thinmeta.py says: %s", why);
	if (verdict == VERDICT_HINTS && !report->length)
		fail_msg("thinmeta.py says: %s", why);
}

/* ---- last words ---- */

static char about[256];

static void say_about(void)
{
	static const char words[] = "\n# died of: ";

	if (write(STDERR_FILENO, words, sizeof(words) - 1) < 0 ||
	    write(STDERR_FILENO, about, strlen(about)) < 0 || write(STDERR_FILENO, "\n", 1) < 0)
		return;
}

static void die(int sig)
{
	say_about();
	signal(sig, SIG_DFL);
	raise(sig);
}

/* Where a sanitizer is linked in. */
void __sanitizer_set_death_callback(void (*fn)(void)) __attribute__((weak));

void now_about(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(about, sizeof(about), fmt, ap);
	va_end(ap);
	if (__sanitizer_set_death_callback)
		__sanitizer_set_death_callback(say_about);
	signal(SIGABRT, die);
	signal(SIGALRM, die);
	alarm(60);
	if (getenv("TP_VERBOSE"))
		fprintf(stderr, "# %s\n", about);
}
