/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A pool whose process dies, over and over, against arrays: random requests and commands, then
 * death, at rest or before the n-th I/O that the worker begins, and the next process on what is
 * left.  Everything acknowledged must be there; of the one operation that was under way each cell
 * may be old or new; nothing else may be.  At times the machine's power goes too: then each
 * cell is what it was at the last commit, or something that was written since.  The metadata is
 * checked after every death.
 *
 * A cell is 4 KiB of one number, which is never used twice.  TP_SEED repeats a run, TP_OPS is the
 * number of deaths.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dying-pool.h"
#include "io/device.h"
#include "pool/pool-internal.h"
#include "prng.h"

#define BLOCK (64 * KIB)
#define NR_BLOCKS 56 /* of the pool: at times it is full */
#define CELL UINT64_C(4096)
#define MAX_CELLS (40 * (BLOCK / CELL))
#define NR_VOLUMES 4
#define MAX_OPS_A_LIFE 24

struct vol {
	bool exists;
	char name[8];
	uint64_t serial; /* of the volume, through all renamings */
	uint64_t nr_cells;
	uint32_t cells[MAX_CELLS]; /* 0: zeros; behind the end too */
};

struct model {
	struct vol vols[NR_VOLUMES];
};

static struct prng prng;
static struct dying_pool *dp;
static struct pool_rig *rig;
/* What is there; what an operation would make of it; what the last commit has for certain. */
static struct model now, next, durable;
static uint32_t last_value, durable_value;
static uint64_t last_serial;
static unsigned nr_deaths, nr_inside, nr_cuts, nr_refused;
static uint8_t *buffer;

static TP_PRINTF(1, 2) TP_NORETURN void wrong(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fprintf(stderr, "# death %u: ", nr_deaths);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	va_end(args);
	abort();
}

static struct vol *find(struct model *m, const char *name)
{
	for (unsigned i = 0; i < NR_VOLUMES; i++)
		if (m->vols[i].exists && !strcmp(m->vols[i].name, name))
			return &m->vols[i];
	return NULL;
}

static struct vol *find_serial(struct model *m, uint64_t serial)
{
	for (unsigned i = 0; i < NR_VOLUMES; i++)
		if (m->vols[i].exists && m->vols[i].serial == serial)
			return &m->vols[i];
	return NULL;
}

/* ------------------------------------------------------------------ looking */

static uint32_t cell_value(const uint8_t *cell)
{
	uint32_t value;

	memcpy(&value, cell, sizeof(value));
	return value;
}

/* A sector is old or new; the rest of the cell follows its first sector unless that is allowed. */
static void check_cell(const uint8_t *cell, const char *name, uint64_t i, uint32_t a, uint32_t b,
		       bool any_newer)
{
	for (unsigned at = 0; at < CELL; at += 4) {
		uint32_t value = cell_value(cell + at);

		if (value == a || value == b)
			continue;
		if (any_newer && (!value || (value > durable_value && value <= last_value)))
			continue;
		wrong("\"%s\" cell %llu byte %u is %u, not %u or %u", name, (unsigned long long)i,
		      at, value, a, b);
	}
}

/* Compare volume @is with what may be, and take over what is. */
static void check_volume(struct volume *v, struct vol *is, struct vol *was, struct vol *will,
			 bool power)
{
	uint64_t bytes = volume_size(v);

	if (bytes % CELL)
		wrong("\"%s\" has %llu bytes", is->name, (unsigned long long)bytes);
	is->nr_cells = bytes / CELL;
	if (!power && (!was || is->nr_cells != was->nr_cells) &&
	    (!will || is->nr_cells != will->nr_cells))
		wrong("\"%s\" has %llu cells, not %llu or %llu", is->name,
		      (unsigned long long)is->nr_cells,
		      (unsigned long long)(was ? was->nr_cells : 0),
		      (unsigned long long)(will ? will->nr_cells : 0));
	if (is->nr_cells > MAX_CELLS)
		wrong("\"%s\" is too large", is->name);
	memset(is->cells, 0, sizeof(is->cells));
	if (is->nr_cells && rig_io(rig, v, POOL_READ, 0, bytes, buffer))
		wrong("\"%s\" cannot be read", is->name);
	for (uint64_t i = 0; i < is->nr_cells; i++) {
		uint32_t a = was ? was->cells[i] : will->cells[i];
		uint32_t b = will ? will->cells[i] : a;

		check_cell(buffer + i * CELL, is->name, i, a, b, power);
		is->cells[i] = cell_value(buffer + i * CELL);
		for (unsigned at = 0; at < CELL; at += 4)
			if (cell_value(buffer + i * CELL + at) != is->cells[i])
				is->cells[i] = UINT32_MAX; /* half of each: written again below */
	}
}

/* Exactly these are there? */
static bool names_are(struct model *m)
{
	struct volume_info info;
	unsigned nr = 0, wanted = 0;

	for (thin_id_t from = 0; !pool_volume_next(rig->pool, from, &info); from = info.id + 1) {
		nr++;
		if (!find(m, info.name))
			return false;
	}
	for (unsigned i = 0; i < NR_VOLUMES; i++)
		wanted += m->vols[i].exists;
	return nr == wanted;
}

/* A cell that a death has cut in two gets one value. */
static void mend(struct vol *vol, struct volume *v)
{
	for (uint64_t i = 0; i < vol->nr_cells; i++) {
		if (vol->cells[i] != UINT32_MAX)
			continue;
		vol->cells[i] = ++last_value;
		for (unsigned at = 0; at < CELL; at += 4)
			memcpy(buffer + at, &last_value, sizeof(last_value));
		if (rig_io(rig, v, POOL_WRITE, i * CELL, CELL, buffer))
			wrong("\"%s\" cannot be mended", vol->name);
	}
}

/* @now or @next is there, or, cell by cell, some of each; after it @now is what is there. */
static void look(bool power)
{
	struct model *names = names_are(&next) ? &next : &now, found = *names;

	if (names == &now && !names_are(&now))
		wrong("other volumes are there than should be");
	for (unsigned i = 0; i < NR_VOLUMES; i++) {
		struct vol *vol = &found.vols[i];
		struct volume *v;

		if (!vol->exists)
			continue;
		v = rig_open_volume(rig, vol->name);
		check_volume(v, vol, find_serial(power ? &durable : &now, vol->serial),
			     find_serial(&next, vol->serial), power);
		mend(vol, v);
		rig_close_volume(v);
	}
	now = next = found;
}

static void is_durable(void)
{
	durable = now;
	durable_value = last_value;
}

/* ------------------------------------------------------------------ operations */

static uint64_t random_cell(uint64_t end)
{
	return prng_below(&prng, end);
}

static void fill_cells(uint64_t nr, struct vol *vol, uint64_t first)
{
	for (uint64_t i = 0; i < nr; i++) {
		vol->cells[first + i] = ++last_value;
		for (unsigned at = 0; at < CELL; at += 4)
			memcpy(buffer + i * CELL + at, &last_value, sizeof(last_value));
	}
}

static int do_write(struct vol *vol, struct volume *v)
{
	uint64_t first = random_cell(MIN(vol->nr_cells + 4, MAX_CELLS));
	uint64_t nr = 1 + random_cell(prng_below(&prng, 4) ? 4 : 70);
	int (*io)(struct pool_rig *, struct volume *, enum pool_io_op, uint64_t, uint64_t, void *) =
		prng_below(&prng, 12) ? rig_io : rig_durable;

	nr = MIN(nr, MAX_CELLS - first);
	fill_cells(nr, vol, first);
	vol->nr_cells = MAX(vol->nr_cells, first + nr);
	return io(rig, v, POOL_WRITE, first * CELL, nr * CELL, buffer);
}

static int do_punch(struct vol *vol, struct volume *v)
{
	uint64_t first = random_cell(vol->nr_cells), nr = 1 + random_cell(60);

	nr = MIN(nr, vol->nr_cells - first);
	memset(vol->cells + first, 0, nr * sizeof(*vol->cells));
	return rig_io(rig, v, prng_below(&prng, 2) ? POOL_PUNCH : POOL_ZERO, first * CELL,
		      nr * CELL, NULL);
}

static int do_allocate(struct vol *vol, struct volume *v)
{
	uint64_t first = random_cell(vol->nr_cells);

	return rig_io(rig, v, POOL_ALLOCATE, first * CELL, MIN(20, vol->nr_cells - first) * CELL,
		      NULL);
}

/* Of this volume: what has changed in others may not be committed by it. */
static int do_flush(const struct vol *vol, struct volume *v)
{
	struct vol *flushed = find_serial(&durable, vol->serial);
	int r = rig_flush(rig, v);

	if (!r && !dp->death)
		*flushed = *vol;
	return r;
}

static int command(enum pool_command_op op, const char *name, const char *new_name, uint64_t cells,
		   unsigned flags)
{
	struct pool_command cmd = { .op = op, .size_bytes = cells * CELL, .flags = flags };

	snprintf(cmd.name, sizeof(cmd.name), "%s", name);
	snprintf(cmd.new_name, sizeof(cmd.new_name), "%s", new_name);
	return pool_command_run(rig->pool, &cmd);
}

static void make_name(char *ret_name)
{
	char name[8];

	do
		snprintf(name, sizeof(name), "v%u", (unsigned)prng_below(&prng, 8));
	while (find(&next, name));
	memcpy(ret_name, name, sizeof(name));
}

static int do_snapshot(const struct vol *origin, struct vol *slot)
{
	*slot = *origin;
	slot->serial = ++last_serial;
	make_name(slot->name);
	return command(POOL_SNAPSHOT, origin->name, slot->name, 0, 0);
}

static int do_create(struct vol *slot)
{
	memset(slot, 0, sizeof(*slot));
	make_name(slot->name);
	slot->exists = true;
	slot->serial = ++last_serial;
	slot->nr_cells = 1 + random_cell(200);
	return command(POOL_CREATE, slot->name, "", slot->nr_cells, 0);
}

static int do_delete(struct vol *vol)
{
	vol->exists = false;
	return command(POOL_DELETE, vol->name, "", 0, 0);
}

static int do_rename(struct vol *vol)
{
	char old[8];

	memcpy(old, vol->name, sizeof(old));
	make_name(vol->name);
	return command(POOL_RENAME, old, vol->name, 0, 0);
}

static int do_resize(struct vol *vol)
{
	uint64_t cells = 1 + random_cell(MAX_CELLS);

	if (cells < vol->nr_cells)
		memset(vol->cells + cells, 0, (vol->nr_cells - cells) * sizeof(*vol->cells));
	vol->nr_cells = cells;
	return command(POOL_RESIZE, vol->name, "", cells, POOL_CMD_SHRINK);
}

/* All that is done to a volume; *@ret_commits: if it succeeds, all is durable. */
static int operate_on(struct vol *vol, struct vol *free_slot, bool *ret_commits)
{
	unsigned kind = (unsigned)prng_below(&prng, 40);
	struct volume *v;
	int r;

	*ret_commits = kind >= 34 && kind != 39;
	if (kind == 34)
		return free_slot ? do_snapshot(vol, free_slot) : command(POOL_COMMIT, "", "", 0, 0);
	if (kind == 35)
		return do_delete(vol);
	if (kind == 36)
		return do_rename(vol);
	if (kind == 37)
		return do_resize(vol);
	if (kind == 38)
		return command(POOL_COMMIT, "", "", 0, 0);
	v = rig_open_volume(rig, vol->name);
	if (kind == 39)
		r = do_flush(vol, v);
	else if (kind < 22)
		r = do_write(vol, v);
	else if (kind < 31)
		r = do_punch(vol, v);
	else
		r = do_allocate(vol, v);
	rig_close_volume(v);
	return r;
}

/* One operation: @next is what it makes of @now. */
static int operate(bool *ret_commits)
{
	struct vol *vol = &next.vols[prng_below(&prng, NR_VOLUMES)], *free_slot = NULL;

	for (unsigned i = 0; i < NR_VOLUMES; i++)
		if (!next.vols[i].exists)
			free_slot = &next.vols[i];
	if (vol->exists)
		return operate_on(vol, free_slot, ret_commits);
	*ret_commits = true;
	return do_create(vol);
}

/* ------------------------------------------------------------------ lives */

/*
 * A power cut may take the growth of a volume back and leave what was written to the rest of its
 * last block: that shows when the volume grows again.  It is cut off here.
 */
static void cut_tails(void)
{
	for (unsigned i = 0; i < NR_VOLUMES; i++) {
		struct vol *vol = &now.vols[i];
		uint64_t cells = DIV_ROUND_UP(vol->nr_cells * CELL, BLOCK) * (BLOCK / CELL);

		if (!vol->exists || cells == vol->nr_cells)
			continue;
		if (command(POOL_RESIZE, vol->name, "", cells, 0))
			wrong("\"%s\" cannot be made larger", vol->name);
		if (!command(POOL_RESIZE, vol->name, "", vol->nr_cells, POOL_CMD_SHRINK))
			continue;
		/* A snapshot has the block too, and there is no other. */
		if (command(POOL_DELETE, vol->name, "", 0, 0))
			wrong("\"%s\" cannot be deleted", vol->name);
		vol->exists = false;
	}
}

static void rise(struct death *death)
{
	bool power = prng_below(&prng, 8) == 0;

	nr_deaths++;
	nr_cuts += power;
	dying_pool_rise(dp, death, !power);
	if (rig_status(rig).mode != POOL_MODE_WRITE)
		wrong("the pool is not writable");
	if (!dying_pool_is_clean(dp))
		wrong("the metadata is not clean");
	look(power);
	if (power)
		cut_tails();
	/* It may have been written to, and the model is not sure what of it is durable. */
	if (rig_commit(rig))
		wrong("cannot commit");
	is_durable();
}

/* An operation to its end, or to a death on the way. */
static bool step(bool dies)
{
	bool commits;
	int r;

	next = now;
	if (dies)
		dying_pool_die_at(dp, 1 + prng_below(&prng, prng_below(&prng, 2) ? 4 : 16));
	r = operate(&commits);
	if (dp->death) {
		struct death *death = dp->death;

		dp->death = NULL;
		nr_inside++;
		rise(death);
		return true;
	}
	if (dies)
		dying_pool_die_at(dp, 0);
	if (dp->death) { /* between the answer and now */
		now = next;
		rise(dp->death);
		dp->death = NULL;
		return true;
	}
	if (r && r != -ENOSPC)
		wrong("an operation fails: %s", strerror(-r));
	if (r) {
		nr_refused++;
		look(false);
	} else {
		now = next;
	}
	if (!r && commits)
		is_durable();
	return false;
}

static void live(void)
{
	unsigned nr_ops = (unsigned)prng_below(&prng, MAX_OPS_A_LIFE);

	for (unsigned i = 0; i < nr_ops; i++)
		(void)step(false);
	/* In one of the next few, or else at rest. */
	for (unsigned i = 0; i < 4 && prng_below(&prng, 4); i++)
		if (step(true))
			return;
	next = now;
	rise(dying_pool_die(dp));
}

static void whatever_was_acknowledged_survives(void **unused)
{
	uint64_t deaths = prng_ops(300);

	(void)unused;
	prng_init(&prng, prng_seed());
	/* A small area: at times it is full. */
	dp = dying_pool_create(BLOCK, NR_BLOCKS, 512 * KIB, 2 * (8192 + 64 * 32));
	rig = dp->rig;
	buffer = io_buffer_alloc(MAX_CELLS * CELL);
	assert_non_null(buffer);
	while (nr_deaths < deaths)
		live();
	print_message("# %u deaths, %u of them within an operation, %u with a power cut; %u "
		      "operations found no space\n",
		      nr_deaths, nr_inside, nr_cuts, nr_refused);
	assert_true(nr_inside > deaths / 10);
	free(buffer);
	dying_pool_destroy(dp);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(whatever_was_acknowledged_survives) };

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("redo-model", tests, NULL, NULL);
}
