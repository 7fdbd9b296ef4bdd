/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuzz-metadata.c - the metadata of a pool, damaged, given to the checker and to the engine
 *
 * An input is a list of records of 16 bytes.  The first picks one of some images that the engine
 * has written; records of damage change it (block checksums are made good again, unless the record
 * says otherwise), the others are what is done with the pool then.
 *
 * What must hold, besides that nothing breaks and nothing is leaked:
 *
 *	F1  the checker, and whoever opens read-only, changes nothing
 *	F2  what the checker finds no damage in can be opened and read, and no work on it ends
 *	    with an error that speaks of damage
 *	F3  what it finds no damage in has none after any work, and if it had no leak it has none
 */
#include "fuzz.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "abort-alone.h"
#include "check-rig.h"
#include "io/device.h"
#include "mem-device.h"
#include "thin/thin-dump.h"
#include "thin/thin-metadata.h"
#include "util/error.h"
#include "util/le.h"
#include "util/log.h"

#define MIB (UINT64_C(1) << 20)

/* More cannot be told from what fewer do, and takes time. */
enum { MAX_RECORDS = 200, MAX_IDS = 400, MAX_RUNS = 3000, DUMP_BYTES = 65536 };

struct record {
	uint8_t op;
	uint8_t kind; /* of damage: width, and what becomes of the checksum */
	uint16_t block;
	uint16_t offset;
	uint16_t aux;
	uint64_t value;
};
_Static_assert(sizeof(struct record) == 16, "as in the corpus");

enum { KIND_WIDTH = 3, KIND_BROKEN = 0x80 };

/* ---- images ---- */

struct base {
	struct io_device *(*make)(void);
	struct io_device *dev; /* restored after each input */
	uint8_t *pristine;
	uint32_t *types; /* XOR constants; 0: not a block */
	mblock_t nr, nr_used;
	uint64_t data_bytes;
};

static struct io_device *small_image(void);
static struct io_device *blank_image(void);
static struct io_device *full_image(void);

static struct base bases[] = {
	{ .make = small_image },   { .make = rich_image }, { .make = blank_image },
	{ .make = crowded_image }, { .make = full_image }, { .make = large_image },
};

static struct thin_metadata *create(struct io_device *meta, dblock_t nr_data)
{
	const struct thin_metadata_options options = { .cache_bytes = MIB };
	struct thin_metadata *tmd;

	HOLDS(!thin_metadata_format(meta, 128, NULL));
	HOLDS(!thin_metadata_open(meta, &options, &tmd, NULL));
	HOLDS(!thin_metadata_resize_data(tmd, nr_data));
	HOLDS(!thin_metadata_commit(tmd));
	return tmd;
}

static int map_some(struct thin_metadata *tmd, thin_id_t id, vblock_t begin, vblock_t end)
{
	struct thin_device *td;
	dblock_t block;
	int r = thin_device_open(tmd, id, &td);

	HOLDS(!r);
	for (vblock_t v = begin; v < end && !r; v++) {
		r = thin_metadata_reserve_data_block(tmd, &block);
		if (!r)
			r = thin_insert_block(td, v, block);
	}
	thin_device_close(td);
	return r;
}

static void finish(struct thin_metadata *tmd)
{
	HOLDS(!thin_metadata_commit(tmd));
	HOLDS(!thin_metadata_close(tmd));
}

/* Two volumes, a snapshot, a tree of two levels, and a metadata snapshot. */
static struct io_device *small_image(void)
{
	struct io_device *meta = mem_device_create(MIB / 4);
	struct thin_metadata *tmd = create(meta, 1000);

	HOLDS(!thin_metadata_create_thin(tmd, 1));
	HOLDS(!map_some(tmd, 1, 5, 40));
	HOLDS(!thin_metadata_create_thin(tmd, 2));
	HOLDS(!map_some(tmd, 2, 0, 300));
	HOLDS(!thin_metadata_create_snap(tmd, 3, 1));
	HOLDS(!thin_metadata_reserve_snap(tmd));
	HOLDS(!thin_metadata_commit(tmd));
	HOLDS(!map_some(tmd, 3, 10, 12));
	finish(tmd);
	return meta;
}

static struct io_device *blank_image(void)
{
	struct io_device *meta = mem_device_create(MIB / 4);

	finish(create(meta, 20));
	return meta;
}

/* No data block is free, and not many of the others. */
static struct io_device *full_image(void)
{
	struct io_device *meta = mem_device_create(MIB / 4);
	struct thin_metadata *tmd = create(meta, 600);

	for (thin_id_t id = 1; id <= 6; id++) {
		HOLDS(!thin_metadata_create_thin(tmd, id));
		HOLDS(!map_some(tmd, id, id, id + 100));
	}
	finish(tmd);
	return meta;
}

static void base_init(struct base *b)
{
	const struct thin_disk_superblock *sb;

	b->dev = b->make();
	b->nr = io_device_size(b->dev) / METADATA_BLOCK_SIZE;
	b->pristine = malloc(io_device_size(b->dev));
	b->types = calloc(b->nr, sizeof(*b->types));
	HOLDS(b->pristine && b->types);
	memcpy(b->pristine, mem_device_data(b->dev), io_device_size(b->dev));
	for (mblock_t i = 0; i < b->nr; i++) {
		b->types[i] = block_type(image_block(b->pristine, i));
		if (b->types[i])
			b->nr_used = i + 1;
	}
	sb = (const void *)b->pristine;
	b->data_bytes = le64_get(((const struct disk_sm_root *)sb->data_sm_root)->nr_blocks) *
			le32_get(sb->data_block_size) * 512;
}

static void base_restore(struct base *b)
{
	uint8_t *now = mem_device_data(b->dev);

	for (mblock_t i = 0; i < b->nr; i++)
		if (memcmp(image_block(now, i), image_block(b->pristine, i), METADATA_BLOCK_SIZE))
			memcpy(image_block(now, i), image_block(b->pristine, i),
			       METADATA_BLOCK_SIZE);
}

/* ---- damage ---- */

enum damage {
	DAMAGE_SET,
	DAMAGE_ADD,
	DAMAGE_FLIP,
	DAMAGE_POINT, /* a pointer to another block */
	DAMAGE_FIELD, /* a field of the superblock, or of a node's header */
	DAMAGE_KEY,   /* of an entry */
	DAMAGE_VALUE,
	DAMAGE_COPY,   /* a block over another one */
	DAMAGE_RETYPE, /* the checksum of another kind of block */
	DAMAGE_COUNT,  /* in the metadata's bitmap */
	DAMAGE_MOVE,   /* a block to another place, and all pointers to it (a harmless change) */
	NR_DAMAGES,
};

#define OP_WORK 0x40 /* set: what is done with the pool; else damage */

struct image {
	struct base *base;
	uint8_t *data;
	uint32_t *types;
};

static void *block_at(struct image *im, mblock_t b)
{
	return image_block(im->data, b);
}

static void change(struct image *im, const struct record *rec, mblock_t b, size_t offset,
		   unsigned width, bool add)
{
	uint8_t *at = (uint8_t *)block_at(im, b);
	uint64_t v = 0;

	offset = MIN(offset, (size_t)METADATA_BLOCK_SIZE - width);
	memcpy(&v, at + offset, width);
	v = add ? v + rec->value : rec->value;
	memcpy(at + offset, &v, width);
}

static void change_field(struct image *im, const struct record *rec, mblock_t b)
{
	static const uint16_t sb[] = { 4,   8,   16,  32,  40,  44,  48,  56,  64,  72,  80,  88,
				       192, 200, 208, 216, 320, 328, 336, 340, 344, 352, 356, 360 };
	static const uint16_t node[] = { 4, 8, 16, 20, 24, 28 };
	bool is_sb = im->types[b] == SUPERBLOCK_CSUM_XOR;
	unsigned offset =
		is_sb ? sb[rec->offset % ARRAY_SIZE(sb)] : node[rec->offset % ARRAY_SIZE(node)];

	change(im, rec, b, offset, rec->kind & KIND_WIDTH ? 4 : 8, rec->aux & 1);
}

static void change_entry(struct image *im, const struct record *rec, mblock_t b, bool is_key)
{
	const struct disk_node_header *head = block_at(im, b);
	uint32_t nr = le32_get(head->nr_entries), max = le32_get(head->max_entries);
	uint32_t size = le32_get(head->value_size), i = nr ? rec->offset % nr : 0;
	uint64_t at =
		sizeof(*head) + (is_key ? i * UINT64_C(8) : max * UINT64_C(8) + i * (uint64_t)size);

	if (!is_key && size > 8)
		at += rec->aux / 2 % (size / 4) * 4;
	change(im, rec, b, (size_t)MIN(at, UINT64_C(4088)), !is_key && size == 4 ? 4 : 8,
	       rec->aux & 1);
}

static void copy_block(struct image *im, const struct record *rec, mblock_t b)
{
	mblock_t from = rec->value % im->base->nr_used;

	memmove(block_at(im, b), block_at(im, from), METADATA_BLOCK_SIZE);
	im->types[b] = im->types[from];
	if (rec->aux & 1)
		((struct disk_node_header *)block_at(im, b))->blocknr = le64_make(b);
}

/* The two bits of @block in the first metadata bitmap of the undamaged image. */
static void change_count(struct image *im, mblock_t block, unsigned count)
{
	const struct thin_disk_superblock *sb = (const void *)im->base->pristine;
	const struct disk_sm_root *root = (const void *)sb->metadata_sm_root;
	const struct disk_metadata_index *index =
		image_block(im->base->pristine, le64_get(root->bitmap_root));
	mblock_t where = le64_get(index->index[0].blocknr);
	uint8_t *bitmap = block_at(im, where);
	unsigned shift = block % 4 * 2;
	uint8_t *byte = bitmap + sizeof(struct disk_bitmap_header) + block / 4;

	*byte = (uint8_t)((*byte & ~(3u << shift)) | (count >> 1 & 1) << shift |
			  (count & 1) << (shift + 1));
	seal(bitmap, BITMAP_CSUM_XOR);
}

/* Every aligned number that looks like a pointer to @from names @to then. */
static void redirect(struct image *im, mblock_t from, mblock_t to)
{
	const uint64_t was = from;

	for (mblock_t b = 0; b < im->base->nr_used; b++) {
		uint8_t *block = block_at(im, b);
		bool changed = false;

		if (im->types[b] == BITMAP_CSUM_XOR || !im->types[b])
			continue;
		for (size_t at = 16; at < METADATA_BLOCK_SIZE; at += 8) {
			if (memcmp(block + at, &was, 8))
				continue;
			memcpy(block + at, &to, 8);
			changed = true;
		}
		if (changed)
			seal(block, im->types[b]);
	}
}

static void move_block(struct image *im, const struct record *rec, mblock_t b)
{
	mblock_t to = rec->value % im->base->nr;

	if (!b || im->types[to] || !im->types[b])
		return;
	memcpy(block_at(im, to), block_at(im, b), METADATA_BLOCK_SIZE);
	im->types[to] = im->types[b];
	((struct disk_node_header *)block_at(im, to))->blocknr = le64_make(to);
	seal(block_at(im, to), im->types[to]);
	redirect(im, b, to);
	change_count(im, b, 0);
	change_count(im, to, 1);
}

static void damage(struct image *im, const struct record *rec)
{
	static const uint32_t types[] = { SUPERBLOCK_CSUM_XOR, BTREE_CSUM_XOR, BITMAP_CSUM_XOR,
					  INDEX_CSUM_XOR };
	mblock_t b = rec->block % (im->base->nr_used + 2);
	unsigned width = 1u << (rec->kind & KIND_WIDTH);
	size_t offset = rec->offset % METADATA_BLOCK_SIZE;

	if (b >= im->base->nr)
		return;
	switch (rec->op % NR_DAMAGES) {
	case DAMAGE_SET:
	case DAMAGE_ADD:
		change(im, rec, b, offset, width, rec->op % NR_DAMAGES == DAMAGE_ADD);
		break;
	case DAMAGE_FLIP:
		((uint8_t *)block_at(im, b))[offset] ^= (uint8_t)(1u << rec->aux % 8);
		break;
	case DAMAGE_POINT: {
		struct record to = *rec;

		to.value %= im->base->nr_used + 1;
		change(im, &to, b, offset & ~(size_t)7, 8, false);
		break;
	}
	case DAMAGE_FIELD:
		change_field(im, rec, b);
		break;
	case DAMAGE_KEY:
	case DAMAGE_VALUE:
		change_entry(im, rec, b, rec->op % NR_DAMAGES == DAMAGE_KEY);
		break;
	case DAMAGE_COPY:
		copy_block(im, rec, b);
		break;
	case DAMAGE_RETYPE:
		im->types[b] = types[rec->value % ARRAY_SIZE(types)];
		break;
	case DAMAGE_COUNT:
		change_count(im, rec->value % (im->base->nr_used + 2), rec->aux % 4);
		return;
	case DAMAGE_MOVE:
		move_block(im, rec, b);
		return;
	}
	if (im->types[b] && !(rec->kind & KIND_BROKEN))
		seal(block_at(im, b), im->types[b]);
}

/* ---- reading ---- */

struct survey {
	thin_id_t ids[MAX_IDS];
	unsigned nr;
	uint64_t nr_runs;
};

static int note_device(void *ctx, const struct thin_device_details *d)
{
	struct survey *s = ctx;

	HOLDS(d->id <= THIN_ID_MAX);
	s->ids[s->nr++] = d->id;
	return s->nr == MAX_IDS;
}

static int note_run(void *ctx, const struct thin_mapping *m)
{
	struct survey *s = ctx;

	HOLDS(m->nr_blocks);
	return ++s->nr_runs >= MAX_RUNS;
}

/* An error that speaks of damage: none of these may come from what the checker found right. */
static bool is_damage(int r)
{
	return r == -EILSEQ || r == -ENOTBLK || r == -EUCLEAN || r == -EIO;
}

static void expect(bool sound, int r)
{
	HOLDS(!sound || !is_damage(r));
}

static void look(struct thin_metadata *tmd, thin_id_t id, vblock_t v, bool sound)
{
	struct thin_device *td;
	struct thin_run run, tried;
	mblock_t missing;
	vblock_t highest;
	int r = thin_device_open(tmd, id, &td);

	expect(sound, r);
	if (r)
		return;
	r = thin_find_run(td, v, 1000, &run);
	expect(sound, r);
	if (!r)
		HOLDS(run.nr_blocks && run.nr_blocks <= 1000);
	if (!r && !thin_try_find_run(td, v, 1000, &tried, &missing))
		HOLDS(run.mapped == tried.mapped && run.nr_blocks == tried.nr_blocks &&
		      (!run.mapped || run.dblock == tried.dblock));
	r = thin_device_highest_mapped(td, &highest);
	expect(sound, r);
	if (!r && v > highest && !thin_find_run(td, v, 1000, &run))
		HOLDS(!sound || !run.mapped);
	thin_device_close(td);
}

static void survey_pool(struct thin_metadata *tmd, struct survey *s, bool sound)
{
	struct thin_metadata_info info;

	s->nr = 0;
	s->nr_runs = 0;
	expect(sound, thin_metadata_get_info(tmd, &info));
	expect(sound, thin_metadata_for_each_device(tmd, note_device, s));
	for (unsigned i = 0; i < s->nr && s->nr_runs < MAX_RUNS; i++)
		expect(sound, thin_metadata_for_each_mapping(tmd, s->ids[i], note_run, s));
}

static void dump(struct thin_metadata *tmd, bool sound)
{
	static char text[DUMP_BYTES];
	FILE *out = fmemopen(text, sizeof(text), "w");
	int r;

	HOLDS(out);
	r = thin_dump(tmd, out); /* of what is too long: an error of writing */
	expect(sound, r);
	fclose(out);
}

static void read_all(struct base *b, bool sound, bool may_open)
{
	const struct thin_metadata_options options = { .cache_bytes = MIB, .read_only = true };
	struct tp_error error = { "" };
	struct thin_metadata *tmd;
	struct survey s;
	int r = thin_metadata_open(b->dev, &options, &tmd, &error);

	HOLDS(!may_open || !r);
	if (r) {
		HOLDS(error.text[0]);
		return;
	}
	survey_pool(tmd, &s, sound);
	dump(tmd, sound);
	for (unsigned i = 0; i < s.nr && i < 8; i++)
		look(tmd, s.ids[i], 5, sound);
	HOLDS(thin_metadata_create_thin(tmd, 77));
	HOLDS(!thin_metadata_close(tmd));
}

/* ---- work ---- */

enum work {
	WORK_CREATE,
	WORK_SNAPSHOT,
	WORK_DELETE,
	WORK_INSERT,
	WORK_REMOVE,
	WORK_SWAP,
	WORK_LOOK,
	WORK_COMMIT,
	WORK_ABORT,
	WORK_HOLD,
	WORK_RELEASE,
	WORK_GROW_DATA,
	WORK_REOPEN,
	WORK_FREE_RUN,
	WORK_SURVEY,
	WORK_TRANSACTION_ID,
	NR_WORKS,
};

struct worker {
	struct base *base;
	struct thin_metadata *tmd; /* NULL: it could not be opened again */
	struct survey survey;
	bool sound;
};

static void open_pool(struct worker *w)
{
	const struct thin_metadata_options options = { .cache_bytes = MIB };
	int r = thin_metadata_open(w->base->dev, &options, &w->tmd, NULL);

	HOLDS(!w->sound || !r);
	if (r)
		w->tmd = NULL;
	else
		survey_pool(w->tmd, &w->survey, w->sound);
}

static thin_id_t pick_id(const struct worker *w, const struct record *rec)
{
	if (rec->kind & 1 || !w->survey.nr)
		return rec->block % 512;
	return w->survey.ids[rec->block % w->survey.nr];
}

/* Maps aux blocks from value on, each to a block of its own. */
static int insert(struct worker *w, struct thin_device *td, const struct record *rec)
{
	vblock_t v = rec->kind & 2 ? rec->value : rec->value % 1024;
	dblock_t block;
	int r = 0;

	for (unsigned i = 0; i <= rec->aux % 32 && !r; i++) {
		r = thin_metadata_reserve_data_block(w->tmd, &block);
		if (r)
			return r;
		r = thin_insert_block(td, v + i, block);
	}
	return r;
}

static int work_on_device(struct worker *w, const struct record *rec, enum work work)
{
	vblock_t v = rec->kind & 2 ? rec->value : rec->value % 1024, next;
	struct thin_device *td;
	int r = thin_device_open(w->tmd, pick_id(w, rec), &td);

	if (r)
		return r;
	if (work == WORK_INSERT)
		r = insert(w, td, rec);
	else if (work == WORK_REMOVE)
		r = thin_remove_range(td, v, MAX(v + rec->aux, v), rec->offset + 1u, &next);
	else
		r = thin_swap_blocks(td, v, v + rec->aux % 256);
	thin_device_close(td);
	return r;
}

static int grow_data(struct worker *w, const struct record *rec)
{
	struct thin_metadata_info info;
	int r = thin_metadata_get_info(w->tmd, &info);

	return r ? r : thin_metadata_resize_data(w->tmd, info.nr_data_blocks + rec->aux % 20000);
}

static int take_free_run(struct worker *w, const struct record *rec)
{
	dblock_t begin, end;
	int r = thin_metadata_reserve_free_run(w->tmd, rec->value, rec->aux + 1u, &begin, &end);

	if (r)
		return r;
	HOLDS(begin < end && end - begin <= rec->aux + 1u);
	thin_metadata_unreserve_data_blocks(w->tmd, begin, end);
	return 0;
}

static void reopen(struct worker *w)
{
	HOLDS(!thin_metadata_close(w->tmd));
	open_pool(w);
}

static int do_work(struct worker *w, const struct record *rec)
{
	enum work work = rec->op % OP_WORK % NR_WORKS;

	switch (work) {
	case WORK_CREATE:
		return thin_metadata_create_thin(w->tmd, pick_id(w, rec));
	case WORK_SNAPSHOT:
		return thin_metadata_create_snap(w->tmd, rec->aux % 1024, pick_id(w, rec));
	case WORK_DELETE:
		return thin_metadata_delete_thin(w->tmd, pick_id(w, rec));
	case WORK_INSERT:
	case WORK_REMOVE:
	case WORK_SWAP:
		return work_on_device(w, rec, work);
	case WORK_LOOK:
		look(w->tmd, pick_id(w, rec), rec->value, w->sound);
		return 0;
	case WORK_COMMIT:
		return thin_metadata_commit(w->tmd);
	case WORK_ABORT:
		return abort_alone(w->tmd);
	case WORK_HOLD:
		return thin_metadata_reserve_snap(w->tmd);
	case WORK_RELEASE:
		return thin_metadata_release_snap(w->tmd);
	case WORK_GROW_DATA:
		return grow_data(w, rec);
	case WORK_REOPEN:
		reopen(w);
		return 0;
	case WORK_FREE_RUN:
		return take_free_run(w, rec);
	case WORK_SURVEY:
		survey_pool(w->tmd, &w->survey, w->sound);
		return 0;
	case WORK_TRANSACTION_ID:
		return thin_metadata_set_transaction_id(w->tmd, rec->aux, rec->value);
	case NR_WORKS:
		break;
	}
	return 0;
}

/* These have changed nothing; after all others there is only the abort. */
static bool is_harmless(int r)
{
	return !r || r == -EEXIST || r == -ENODATA || r == -EBUSY || r == -EPERM || r == -EOVERFLOW;
}

/* Returns whether the metadata can still be worked with. */
static bool work(struct worker *w, const struct record *rec)
{
	int r = do_work(w, rec);

	expect(w->sound, r);
	if (!w->tmd)
		return false;
	if (is_harmless(r))
		return true;
	r = abort_alone(w->tmd);
	HOLDS(!w->sound || !r);
	return !r;
}

static void work_all(struct base *b, const struct record *records, size_t nr, bool sound)
{
	struct worker w = { .base = b, .sound = sound };
	bool going_on;
	int r;

	open_pool(&w);
	going_on = w.tmd;
	for (size_t i = 0; i < nr && going_on; i++)
		if (records[i].op & OP_WORK)
			going_on = work(&w, &records[i]);
	if (going_on) {
		r = thin_metadata_commit(w.tmd);
		expect(sound, r);
	}
	if (w.tmd)
		HOLDS(!thin_metadata_close(w.tmd));
}

/* ---- one input ---- */

static void check(struct base *b, uint64_t data_bytes, struct report *report)
{
	check_image(b->dev, data_bytes, report);
	HOLDS(!report->r);
}

static void run(struct base *b, const struct record *records, size_t nr)
{
	static uint8_t before[4 * MIB];
	struct image im = { b, mem_device_data(b->dev), malloc(b->nr * sizeof(*b->types)) };
	bool size_known = records[0].kind & 1, sound;
	struct report report;
	uint64_t leaks;

	HOLDS(im.types && io_device_size(b->dev) <= sizeof(before));
	memcpy(im.types, b->types, b->nr * sizeof(*b->types));
	for (size_t i = 1; i < nr; i++)
		if (!(records[i].op & OP_WORK))
			damage(&im, &records[i]);
	free(im.types);
	memcpy(before, im.data, io_device_size(b->dev));

	check(b, size_known ? b->data_bytes : UINT64_MAX, &report);
	leaks = report.result.nr_leaks;
	sound = !report.result.nr_damages && !report.result.needs_check;
	report_free(&report);

	mem_device_set_read_only(b->dev, true);
	read_all(b, sound, sound);
	mem_device_set_read_only(b->dev, false);
	HOLDS(!memcmp(before, im.data, io_device_size(b->dev)));

	work_all(b, records + 1, nr - 1, sound);
	check(b, UINT64_MAX, &report);
	if (sound && (report.result.nr_damages || (!leaks && report.result.nr_leaks))) {
		fprintf(stderr, "%s", report.lines);
		HOLDS(!"what was right is right after any work");
	}
	report_free(&report);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	log_set_level(LOG_LEVEL_ERR - 1);
	for (size_t i = 0; i < ARRAY_SIZE(bases); i++)
		base_init(&bases[i]);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct record records[MAX_RECORDS];
	size_t nr = MIN(size / sizeof(*records), (size_t)MAX_RECORDS);
	struct base *b;

	if (!nr)
		return 0;
	memcpy(records, data, nr * sizeof(*records));
	b = &bases[records[0].op % ARRAY_SIZE(bases)];
	run(b, records, nr);
	base_restore(b);
	return 0;
}
