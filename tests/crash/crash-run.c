/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * crash-run.c - lives, and after each of them a look at what power cuts leave of it
 */
#include "crash-run.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "crash-judge.h"
#include "crash-life.h"
#include "crash-model.h"
#include "crash-replay.h"
#include "io/device.h"
#include "mem-device.h"
#include "prng.h"
#include "thin-image.h"
#include "util/log.h"
#include "write-log.h"

#define LIVES_A_POOL 8u          /* then another one is formatted */
#define ONE_IN_OTHER_TOOLS 1500u /* states shown to thin_check and thinmeta.py too */
#define NEAR_SUPERBLOCK 8u       /* ticks of the clock */
#define MISSES_TO_END 2u         /* threads make two lives differ a little */

/* Hashes seen, open addressing; 0 is free. */
struct hash_set {
	uint64_t *slots;
	size_t nr, room;
};

struct run {
	const struct crash_plan *plan;
	struct crash_result *result;
	struct prng prng;
	struct model model;
	struct crash_judge judge;
	struct hash_set superblocks;

	struct crash_geometry geometry;
	struct io_device *devices[CRASH_DEVICES]; /* what the next life begins with; or NULL */
	bool reached;                             /* in the last life something failed */
	uint64_t *superblock_moments;
	size_t nr_superblock_moments;
};

/* ---- a set ---- */

static void hash_set_add(struct hash_set *set, uint64_t hash)
{
	size_t i;

	hash |= 1;
	if (2 * set->nr >= set->room) {
		struct hash_set larger = { .room = MAX(1024, 2 * set->room) };

		larger.slots = calloc(larger.room, sizeof(*larger.slots));
		TP_INVARIANT(larger.slots);
		for (i = 0; i < set->room; i++)
			if (set->slots[i])
				hash_set_add(&larger, set->slots[i]);
		free(set->slots);
		*set = larger;
	}
	for (i = hash % set->room; set->slots[i] && set->slots[i] != hash;)
		i = (i + 1) % set->room;
	set->nr += !set->slots[i];
	set->slots[i] = hash;
}

/* ---- moments ---- */

static int compare_moments(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

static void find_superblocks(struct run *run, const struct crash_life *life)
{
	size_t nr;
	const struct write_log_entry *log = write_log_entries(life->log, &nr);

	run->superblock_moments = malloc((nr + 1) * sizeof(*run->superblock_moments));
	TP_INVARIANT(run->superblock_moments);
	run->nr_superblock_moments = 0;
	for (size_t i = 0; i < nr; i++)
		if (log[i].device == CRASH_METADATA && log[i].op == IO_WRITE && !log[i].offset)
			run->superblock_moments[run->nr_superblock_moments++] = log[i].began;
	run->result->nr_entries += nr;
}

/* Half of them around the moments when a transaction becomes the state. */
static void choose_moments(struct run *run, const struct crash_life *life, uint64_t *moments)
{
	for (unsigned i = 0; i < run->plan->states_a_life; i++) {
		uint64_t moment = prng_below(&run->prng, life->end_moment + 1);

		if (i % 2 && run->nr_superblock_moments) {
			moment = run->superblock_moments[prng_below(&run->prng,
								    run->nr_superblock_moments)];
			moment += prng_below(&run->prng, NEAR_SUPERBLOCK);
			moment -= MIN(moment, NEAR_SUPERBLOCK / 2);
		}
		moments[i] = moment;
	}
	moments[0] = life->end_moment;
	qsort(moments, run->plan->states_a_life, sizeof(*moments), compare_moments);
}

/* ---- what is wrong ---- */

static void save(struct crash_replay *replay, unsigned device, const char *path)
{
	struct io_device *copy = crash_replay_copy(replay, device);
	FILE *out = fopen(path, "w");

	if (!out || fwrite(mem_device_data(copy), io_device_size(copy), 1, out) != 1)
		fprintf(stderr, "# %s cannot be written\n", path);
	if (out)
		fclose(out);
	io_device_close(copy);
}

/* Everything that happened in the life, one line each; sort -n puts it in order. */
static void save_story(const struct run *run, const struct crash_life *life, const char *path)
{
	static const char *const ops[] = { "read", "write", "flush", "discard", "zero", "grow" };
	size_t nr;
	const struct write_log_entry *log = write_log_entries(life->log, &nr);
	FILE *out = fopen(path, "w");

	if (!out)
		return;
	for (size_t i = 0; i < nr; i++)
		fprintf(out, "%" PRIu64 " to %" PRIu64 " device %u: %s %" PRIu64 " + %" PRIu64 "\n",
			log[i].began, log[i].ended, log[i].device, ops[log[i].op], log[i].offset,
			log[i].length);
	model_tell(&run->model, out);
	fclose(out);
}

/* The same state again, before anybody looked at it. */
static void save_images(const struct run *run, const struct crash_life *life,
			struct crash_replay *replay, struct prng before)
{
	char how[256], dir[] = "/tmp/power-cut-XXXXXX", path[64];

	if (!mkdtemp(dir))
		return;
	crash_replay_build(replay, &before, how, sizeof(how));
	snprintf(path, sizeof(path), "%s/metadata", dir);
	save(replay, CRASH_METADATA, path);
	snprintf(path, sizeof(path), "%s/data", dir);
	save(replay, CRASH_DATA, path);
	snprintf(path, sizeof(path), "%s/story", dir);
	save_story(run, life, path);
	fprintf(stderr, "# the state is in %s\n", dir);
}

/* ---- states ---- */

static bool other_tools_agree(struct crash_replay *replay)
{
	struct io_device *copy = crash_replay_copy(replay, CRASH_METADATA);
	bool clean = thin_device_is_clean(copy);

	io_device_close(copy);
	return clean;
}

static void set_base(struct run *run, struct io_device *metadata, struct io_device *data)
{
	for (unsigned i = 0; i < CRASH_DEVICES; i++)
		if (run->devices[i])
			io_device_close(run->devices[i]);
	run->devices[CRASH_METADATA] = metadata;
	run->devices[CRASH_DATA] = data;
}

/* @becomes_base: the next life shall begin with it, if it can. */
static bool look_at_state(struct run *run, struct crash_replay *replay,
			  const struct crash_life *life, uint64_t moment, bool becomes_base)
{
	bool failed = life->fault_moment && moment >= life->fault_moment, right;
	struct io_device *base[CRASH_DEVICES] = { NULL };
	struct crash_result *result = run->result;
	struct prng before = run->prng;
	char how[256], why[320] = "the other tools find something";

	crash_replay_build(replay, &run->prng, how, sizeof(how));
	for (unsigned i = 0; i < CRASH_DEVICES && becomes_base; i++)
		base[i] = crash_replay_copy(replay, i);
	result->nr_states++;
	right = true;
	if (prng_below(&run->prng, ONE_IN_OTHER_TOOLS) == 0) {
		result->nr_judged++;
		right = other_tools_agree(replay);
	}
	right = right && crash_judge_state(&run->judge, replay, &run->model, moment, failed,
					   &run->prng, why, sizeof(why));
	hash_set_add(&run->superblocks, run->judge.superblock);
	if (becomes_base && right && !run->judge.needs_check) {
		set_base(run, base[CRASH_METADATA], base[CRASH_DATA]);
	} else if (becomes_base) {
		io_device_close(base[CRASH_METADATA]);
		io_device_close(base[CRASH_DATA]);
	}
	if (right)
		return true;
	result->wrong = true;
	snprintf(result->what, sizeof(result->what),
		 "life %" PRIu64 ", state %" PRIu64 ", moment %" PRIu64 " of %" PRIu64 ", %s: %s",
		 result->nr_lives, result->nr_states, moment, life->end_moment, how, why);
	if (run->plan->keep_images)
		save_images(run, life, replay, before);
	return false;
}

static void look_at_life(struct run *run, const struct crash_life *life)
{
	unsigned nr = run->plan->states_a_life, base = (unsigned)prng_below(&run->prng, nr);
	uint64_t *moments = malloc(nr * sizeof(*moments));
	struct crash_replay *replay =
		crash_replay_create(life->log, life->before, run->geometry.capacity);

	TP_INVARIANT(moments);
	find_superblocks(run, life);
	choose_moments(run, life, moments);
	for (unsigned i = 0; i < nr; i++) {
		crash_replay_advance(replay, moments[i]);
		if (!look_at_state(run, replay, life, moments[i], i == base))
			break;
	}
	crash_replay_destroy(replay);
	free(run->superblock_moments);
	free(moments);
}

static void live_and_look(struct run *run, const struct crash_life_plan *plan, struct prng *p)
{
	struct crash_life *life =
		crash_life_run(plan, p, &run->model, run->devices, &run->geometry);
	struct crash_result *result = run->result;

	result->nr_lives++;
	result->nr_aborts += life->nr_aborts;
	result->nr_errors += life->nr_errors;
	run->reached = life->reached;
	look_at_life(run, life);
	crash_life_destroy(life);
}

static void run_life(struct run *run)
{
	const struct crash_plan *plan = run->plan;
	struct crash_life_plan life_plan = plan->life;

	if (!run->devices[0] || run->result->nr_lives % LIVES_A_POOL == 0) {
		set_base(run, NULL, NULL);
		crash_devices_create(&run->prng, run->devices, &run->geometry);
	}
	if (plan->before_life)
		plan->before_life(plan->life.ctx);
	life_plan.faults &= prng_below(&run->prng, 3) == 0;
	live_and_look(run, &life_plan, &run->prng);
}

static struct run *run_begin(const struct crash_plan *plan, struct crash_result *result)
{
	struct run *run = calloc(1, sizeof(*run));

	TP_INVARIANT(run);
	*result = (struct crash_result){ .wrong = false };
	run->plan = plan;
	run->result = result;
	log_set_level(LOG_LEVEL_ERR - 1);
	prng_init(&run->prng, plan->seed);
	crash_judge_init(&run->judge);
	return run;
}

static void run_end(struct run *run)
{
	run->result->nr_superblocks = run->superblocks.nr;
	run->result->nr_needs_check = run->judge.nr_needs_check;
	run->result->nr_removals = run->judge.nr_removals;
	set_base(run, NULL, NULL);
	model_clear(&run->model);
	crash_judge_destroy(&run->judge);
	free(run->superblocks.slots);
	free(run);
}

void crash_run(const struct crash_plan *plan, struct crash_result *ret_result)
{
	struct run *run = run_begin(plan, ret_result);

	while (ret_result->nr_states < plan->nr_states && !ret_result->wrong)
		run_life(run);
	run_end(run);
}

/* ---- sweeps ---- */

/* A pool that has lived, and was closed. */
static void make_template(struct run *run, struct io_device *template[CRASH_DEVICES])
{
	const struct crash_life_plan plan = { .nr_ops = 60 };
	struct crash_life *life;

	crash_devices_create(&run->prng, run->devices, &run->geometry);
	life = crash_life_run(&plan, &run->prng, &run->model, run->devices, &run->geometry);
	for (unsigned i = 0; i < CRASH_DEVICES; i++)
		template[i] = mem_device_clone(life->after[i]);
	crash_life_destroy(life);
}

void crash_sweep(const struct crash_plan *plan, void (*arm_nth)(void *ctx, uint64_t nth),
		 struct crash_result *ret_result)
{
	struct run *run = run_begin(plan, ret_result);
	struct io_device *template[CRASH_DEVICES];
	unsigned misses = 0;
	uint64_t seed;

	make_template(run, template);
	seed = prng_next(&run->prng);
	for (uint64_t nth = 1; misses < MISSES_TO_END && !ret_result->wrong; nth++) {
		struct prng p;

		prng_init(&p, seed);
		set_base(run, mem_device_clone(template[CRASH_METADATA]),
			 mem_device_clone(template[CRASH_DATA]));
		arm_nth(plan->life.ctx, nth);
		live_and_look(run, &plan->life, &p);
		misses = run->reached ? 0 : misses + 1;
	}
	io_device_close(template[CRASH_METADATA]);
	io_device_close(template[CRASH_DATA]);
	run_end(run);
}
