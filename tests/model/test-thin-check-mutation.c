/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The checker against damage: every field of every kind of block is changed, one at a time, with
 * the checksum made good again.
 *
 * Each field has a class that says what its change must be called; what may be changed without
 * anybody being harmed is listed here too, and must not be called anything.  A sample of the
 * images is also shown to thinmeta.py, which may not find what the checker has missed, and given
 * to the engine, which has to survive it.  TP_OPS makes the sample larger; TP_SEED repeats one.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "check-rig.h"
#include "io/device.h"
#include "mem-device.h"
#include "prng.h"
#include "util/le.h"
#include "util/log.h"

#define SAMPLE 150u /* images for the others, of each test */

/* What a change of the field is. */
enum class {
	IDENTITY, /* damage: nothing in the block can be believed */
	POINTER,  /* damage */
	HELD,     /* a pointer, which may be 0: then its trees are leaks */
	FACT,     /* damage */
	COUNT,    /* of the ref count tree: higher is a leak, lower is damage */
	MAPPING,  /* another block is damage, another time if it is in the future */
	KEY,      /* damage if the order or the bounds are broken */
	TIME,     /* damage if it does not fit with others */
	SIZE,     /* damage if it is impossible */
	HINT,     /* a hint, or not even that; never more */
	FREE,     /* nothing */
};

struct field {
	mblock_t block;
	unsigned offset, size; /* bytes */
	enum class class;
	const char *name;
};

struct mutation {
	struct io_device *meta;
	uint8_t *image;
	uint64_t data_bytes;
	struct field *fields;
	size_t nr_fields, max_fields;
	struct prng prng;
	uint64_t sample; /* one in so many is shown to the others */
	bool all;        /* values, not only some of each field */
	struct judge *judge;
	uint64_t nr_images, nr_shown;
	uint64_t nr_found[THIN_CHECK_DAMAGE + 2];
};

/* ---- which fields there are ---- */

static void add_field(struct mutation *m, mblock_t block, size_t offset, unsigned size,
		      enum class class, const char *name)
{
	if (m->nr_fields == m->max_fields) {
		m->max_fields = m->max_fields ? m->max_fields * 2 : 256;
		m->fields = reallocarray(m->fields, m->max_fields, sizeof(*m->fields));
		assert_non_null(m->fields);
	}
	m->fields[m->nr_fields++] = (struct field){
		.block = block,
		.offset = (unsigned)offset,
		.size = size,
		.class = class,
		.name = name,
	};
}

static void add_space_map_root(struct mutation *m, size_t offset)
{
	add_field(m, 0, offset + offsetof(struct disk_sm_root, nr_blocks), 8, SIZE, "nr_blocks");
	add_field(m, 0, offset + offsetof(struct disk_sm_root, nr_allocated), 8, HINT,
		  "nr_allocated");
	add_field(m, 0, offset + offsetof(struct disk_sm_root, bitmap_root), 8, POINTER,
		  "bitmap_root");
	add_field(m, 0, offset + offsetof(struct disk_sm_root, ref_count_root), 8, POINTER,
		  "ref_count_root");
	add_field(m, 0, offset + sizeof(struct disk_sm_root), 8, FREE, "space map root's tail");
}

#define SB_FIELD(block, member, class) \
	add_field(m, block, offsetof(struct thin_disk_superblock, member), \
		  sizeof(((struct thin_disk_superblock *)0)->member), class, #member)

static void add_superblock(struct mutation *m, mblock_t block, bool is_held)
{
	SB_FIELD(block, flags, HINT);
	SB_FIELD(block, blocknr, IDENTITY);
	add_field(m, block, offsetof(struct thin_disk_superblock, uuid), 8, FREE, "uuid");
	SB_FIELD(block, magic, IDENTITY);
	SB_FIELD(block, version, FACT);
	SB_FIELD(block, time, TIME);
	SB_FIELD(block, trans_id, FREE);
	SB_FIELD(block, data_mapping_root, POINTER);
	SB_FIELD(block, device_details_root, POINTER);
	SB_FIELD(block, data_block_size, SIZE);
	SB_FIELD(block, metadata_block_size, FACT);
	SB_FIELD(block, metadata_nr_blocks, FREE);
	SB_FIELD(block, compat_flags, FREE);
	SB_FIELD(block, compat_ro_flags, FACT);
	SB_FIELD(block, incompat_flags, FACT);
	add_field(m, block, offsetof(struct thin_disk_superblock, zero), 8, FREE, "tail");
	if (is_held) {
		SB_FIELD(block, held_root, HINT);
		add_field(m, block, offsetof(struct thin_disk_superblock, data_sm_root), 8, HINT,
			  "data_sm_root");
		return;
	}
	SB_FIELD(block, held_root, HELD);
	add_space_map_root(m, offsetof(struct thin_disk_superblock, data_sm_root));
	add_space_map_root(m, offsetof(struct thin_disk_superblock, metadata_sm_root));
}

/* The fields of a value, known from its size but for the two kinds that have 8 bytes. */
static void add_value(struct mutation *m, mblock_t block, size_t at, uint32_t value_size,
		      bool is_mapping)
{
	switch (value_size) {
	case sizeof(struct le32):
		add_field(m, block, at, 4, COUNT, "count");
		break;
	case sizeof(struct disk_index_entry):
		add_field(m, block, at, 8, POINTER, "bitmap");
		add_field(m, block, at + 8, 4, HINT, "nr_free");
		add_field(m, block, at + 12, 4, HINT, "none_free_before");
		break;
	case sizeof(struct disk_device_details):
		add_field(m, block, at, 8, FACT, "mapped_blocks");
		add_field(m, block, at + 8, 8, FREE, "transaction_id");
		add_field(m, block, at + 16, 4, TIME, "creation_time");
		add_field(m, block, at + 20, 4, TIME, "snapshotted_time");
		break;
	default:
		add_field(m, block, at, 8, is_mapping ? MAPPING : POINTER,
			  is_mapping ? "mapping" : "pointer");
		break;
	}
}

#define NODE_FIELD(member, class) \
	add_field(m, block, offsetof(struct disk_node_header, member), \
		  sizeof(((struct disk_node_header *)0)->member), class, #member)

static void add_node(struct mutation *m, mblock_t block, bool is_mapping)
{
	const struct disk_node_header *node = image_block(m->image, block);
	uint32_t nr = le32_get(node->nr_entries), value_size = le32_get(node->value_size);
	bool is_leaf = le32_get(node->flags) == LEAF_NODE;
	const uint32_t picks[] = { 0, 1, nr / 2, nr - 1 };
	size_t keys = sizeof(*node), values = keys + 8 * (size_t)le32_get(node->max_entries);

	NODE_FIELD(flags, IDENTITY);
	NODE_FIELD(blocknr, IDENTITY);
	NODE_FIELD(nr_entries, FACT);
	NODE_FIELD(max_entries, IDENTITY);
	NODE_FIELD(value_size, IDENTITY);
	NODE_FIELD(padding, FREE);
	for (unsigned i = 0; i < ARRAY_SIZE(picks) && nr; i++) {
		if (picks[i] >= nr || (i && picks[i] == picks[i - 1]))
			continue;
		add_field(m, block, keys + 8 * (size_t)picks[i], 8,
			  !is_leaf || is_mapping ? KEY : FACT, "key");
		add_value(m, block, values + (size_t)value_size * picks[i], value_size,
			  is_leaf && is_mapping);
	}
	if (nr < le32_get(node->max_entries)) {
		add_field(m, block, keys + 8 * (size_t)nr, 8, FREE, "unused key");
		add_field(m, block, values + (size_t)value_size * nr, 4, FREE, "unused value");
	}
}

/* @depth_of_maps: leaves hold the roots of further trees. */
static void add_tree(struct mutation *m, uint8_t *seen, mblock_t root, bool is_top, bool is_mapping)
{
	const struct disk_node_header *node = image_block(m->image, root);
	uint32_t nr = le32_get(node->nr_entries), value_size = le32_get(node->value_size);
	bool is_leaf = le32_get(node->flags) == LEAF_NODE;
	const struct le64 *values = (const void *)((const uint8_t *)(node + 1) +
						   8 * (size_t)le32_get(node->max_entries));

	if (seen[root])
		return;
	seen[root] = 1;
	add_node(m, root, is_mapping);
	for (uint32_t i = 0; i < nr && (!is_leaf || is_top) && value_size == 8; i++)
		add_tree(m, seen, le64_get(values[i]), is_top && !is_leaf,
			 is_mapping || (is_top && is_leaf));
}

static void add_devices(struct mutation *m, uint8_t *seen, const struct thin_disk_superblock *sb)
{
	add_tree(m, seen, le64_get(sb->data_mapping_root), true, false);
	add_tree(m, seen, le64_get(sb->device_details_root), false, false);
}

static void add_index(struct mutation *m, mblock_t block)
{
	const size_t entries = offsetof(struct disk_metadata_index, index);

	add_field(m, block, 4, 4, FREE, "padding");
	add_field(m, block, 8, 8, IDENTITY, "blocknr");
	add_value(m, block, entries, sizeof(struct disk_index_entry), false);
	add_field(m, block, entries + 16, 8, FACT, "unused entry");
	add_field(m, block, METADATA_BLOCK_SIZE - 4, 4, FACT, "last unused entry");
}

static void add_all_fields(struct mutation *m)
{
	const struct thin_disk_superblock *sb = (const void *)m->image;
	const struct disk_sm_root *data = (const void *)sb->data_sm_root;
	const struct disk_sm_root *metadata = (const void *)sb->metadata_sm_root;
	uint8_t *seen = calloc(io_device_size(m->meta) / METADATA_BLOCK_SIZE, 1);
	mblock_t held = le64_get(sb->held_root);

	add_superblock(m, 0, false);
	add_devices(m, seen, sb);
	if (held) {
		add_superblock(m, held, true);
		add_devices(m, seen, image_block(m->image, held));
	}
	add_tree(m, seen, le64_get(data->bitmap_root), false, false);
	add_tree(m, seen, le64_get(data->ref_count_root), false, false);
	add_index(m, le64_get(metadata->bitmap_root));
	add_tree(m, seen, le64_get(metadata->ref_count_root), false, false);
	free(seen);
}

/* ---- changes ---- */

static uint64_t get(const uint8_t *p, unsigned size)
{
	uint64_t value = 0;

	memcpy(&value, p, size); /* the tests run on little-endian machines only */
	return value;
}

static bool is_mapping_in_the_past(const struct mutation *m, uint64_t old, uint64_t new)
{
	const struct thin_disk_superblock *sb = (const void *)m->image;
	const struct thin_disk_superblock *held = image_block(m->image, le64_get(sb->held_root));

	return old >> MAPPING_TIME_BITS == new >> MAPPING_TIME_BITS &&
	       (new &THIN_MAX_TIME) <= le32_get(held->time);
}

static void assert_class(const struct mutation *m, const struct field *f, uint64_t old,
			 uint64_t new, const struct thin_check_result *result)
{
	bool damage = result->nr_damages, leak = result->nr_leaks, hint = result->nr_hints;

	switch (f->class) {
	case IDENTITY:
	case POINTER:
	case FACT:
		assert_true(damage);
		break;
	case HELD:
		assert_true(new ? damage : leak);
		break;
	case COUNT:
		assert_true(new < old ? damage : leak && !damage);
		break;
	case MAPPING:
		if (is_mapping_in_the_past(m, old, new))
			assert_false(damage || leak || hint);
		else if (old >> MAPPING_TIME_BITS != new >> MAPPING_TIME_BITS)
			assert_true(damage);
		break;
	case KEY:
	case TIME:
	case SIZE:
		break; /* left to the others to judge */
	case HINT:
		assert_false(damage || leak);
		break;
	case FREE:
		assert_false(damage || leak || hint);
		break;
	}
}

/* Show the image as it is now: to the checker, and now and then to the others. */
static void show(struct mutation *m, struct report *report)
{
	check_image(m->meta, m->data_bytes, report);
	assert_int_equal(report->r, 0);
	m->nr_images++;
	m->nr_found[report->result.nr_damages ? 3
		    : report->result.nr_leaks ? 2
		    : report->result.nr_hints ? 1
					      : 0]++;
	if (prng_below(&m->prng, m->sample))
		return;
	m->nr_shown++;
	show_to_others(m->judge, m->meta, report, prng_next(&m->prng));
}

static void try_value(struct mutation *m, const struct field *f, uint64_t new)
{
	uint8_t *block = image_block(m->image, f->block), saved[METADATA_BLOCK_SIZE];
	uint32_t type = block_type(block);
	uint64_t old = get(block + f->offset, f->size);
	struct report report;

	if (f->size < 8)
		new &= UINT32_MAX;
	if (new == old)
		return;
	now_about("block %llu, %s at %u: 0x%llx -> 0x%llx", (unsigned long long)f->block, f->name,
		  f->offset, (unsigned long long)old, (unsigned long long)new);
	memcpy(saved, block, sizeof(saved));
	memcpy(block + f->offset, &new, f->size);
	seal(block, type);
	show(m, &report);
	memcpy(block, saved, sizeof(saved));
	assert_class(m, f, old, new, &report.result);
	report_free(&report);
}

static void try_field(struct mutation *m, const struct field *f)
{
	uint64_t old = get((uint8_t *)image_block(m->image, f->block) + f->offset, f->size);
	uint64_t nr_blocks = io_device_size(m->meta) / METADATA_BLOCK_SIZE;

	const uint64_t values[] = {
		old + 1,
		old ^ UINT64_C(1) << prng_below(&m->prng, 8 * f->size),
		old - 1,
		0,
		UINT64_MAX,
		old ^ UINT64_C(1) << MAPPING_TIME_BITS,
		prng_next(&m->prng),
		/* For pointers: other blocks that are in use, and the end. */
		prng_below(&m->prng, 60),
		m->fields[prng_below(&m->prng, m->nr_fields)].block,
		nr_blocks,
		nr_blocks - 1,
	};

	for (unsigned i = 0; i < ARRAY_SIZE(values); i++)
		if (m->all || i < 2 || !prng_below(&m->prng, 8))
			try_value(m, f, values[i]);
}

/* One entry of a bitmap, to each other value. */
static void try_entry(struct mutation *m, mblock_t bitmap, unsigned entry, unsigned nr_existing)
{
	uint8_t *block = image_block(m->image, bitmap), saved[METADATA_BLOCK_SIZE];
	uint8_t *byte = block + sizeof(struct disk_bitmap_header) + entry / 4;
	unsigned shift = entry % 4 * 2, bits = *byte >> shift & 3;
	unsigned old = (bits & 1) << 1 | bits >> 1;
	struct report report;

	memcpy(saved, block, sizeof(saved));
	for (unsigned new = 0; new < 4; new ++) {
		unsigned new_bits = (new & 1) << 1 | new >> 1;

		if (new == old)
			continue;
		now_about("bitmap %llu, entry %u: %u -> %u", (unsigned long long)bitmap, entry, old,
			  new);
		*byte = (uint8_t)((*byte & ~(3u << shift)) | new_bits << shift);
		seal(block, BITMAP_CSUM_XOR);
		show(m, &report);
		memcpy(block, saved, sizeof(saved));
		if (new < old || new == 3 || entry >= nr_existing)
			assert_true(report.result.nr_damages);
		else
			assert_true(report.result.nr_leaks && !report.result.nr_damages);
		report_free(&report);
	}
}

static void try_bitmap(struct mutation *m, mblock_t bitmap, unsigned nr_existing)
{
	uint32_t seen = 0;

	/* The first of each value, the last that exists, the first that does not, the last. */
	for (unsigned e = 0; e < ENTRIES_PER_BITMAP; e++) {
		const uint8_t *bits = image_block(m->image, bitmap);
		unsigned value = bits[sizeof(struct disk_bitmap_header) + e / 4] >> e % 4 * 2 & 3;

		if (!(seen & 1u << value) || e == nr_existing - 1 || e == nr_existing ||
		    e == ENTRIES_PER_BITMAP - 1 || !prng_below(&m->prng, 2000))
			try_entry(m, bitmap, e, nr_existing);
		seen |= 1u << value;
	}
}

static void mutate_bitmaps(struct mutation *m, unsigned nr_data_blocks)
{
	const struct thin_disk_superblock *sb = (const void *)m->image;
	const struct disk_sm_root *data = (const void *)sb->data_sm_root;
	const struct disk_sm_root *metadata = (const void *)sb->metadata_sm_root;
	const struct disk_metadata_index *index =
		image_block(m->image, le64_get(metadata->bitmap_root));
	const struct disk_node_header *root = image_block(m->image, le64_get(data->bitmap_root));
	const struct le64 *keys = (const void *)(root + 1);
	const struct disk_index_entry *entries =
		(const void *)(keys + NODE_MAX_ENTRIES(sizeof(*entries)));

	try_bitmap(m, le64_get(index->index[0].blocknr), (unsigned)le64_get(metadata->nr_blocks));
	for (unsigned i = 0; i < le32_get(root->nr_entries); i++)
		try_bitmap(m, le64_get(entries[i].blocknr),
			   MIN(nr_data_blocks - i * ENTRIES_PER_BITMAP, ENTRIES_PER_BITMAP));
}

static void mutation_begin(struct mutation *m, struct io_device *meta, uint64_t nr_data_blocks)
{
	struct report report;

	memset(m, 0, sizeof(*m));
	m->meta = meta;
	m->image = mem_device_data(meta);
	m->data_bytes = nr_data_blocks == UINT64_MAX ? UINT64_MAX : nr_data_blocks << 16;
	prng_init(&m->prng, prng_seed());
	m->judge = judge_start();
	log_set_level(0); /* the engine has much to say about these images */
	check_image(meta, m->data_bytes, &report);
	assert_true(report_is_clean(&report));
}

static void mutation_end(struct mutation *m)
{
	print_message("# %llu images: %llu damaged, %llu leaks, %llu hints, %llu clean; "
		      "%llu shown to the others\n",
		      (unsigned long long)m->nr_images, (unsigned long long)m->nr_found[3],
		      (unsigned long long)m->nr_found[2], (unsigned long long)m->nr_found[1],
		      (unsigned long long)m->nr_found[0], (unsigned long long)m->nr_shown);
	judge_stop(m->judge);
	free(m->fields);
	io_device_close(m->meta);
}

static void mutate_all(struct io_device *meta, uint64_t nr_data_blocks, uint64_t nr_shown)
{
	struct mutation m;

	mutation_begin(&m, meta, nr_data_blocks);
	add_all_fields(&m);
	m.all = nr_shown > SAMPLE;
	m.sample = MAX(m.nr_fields * (m.all ? 10 : 3) / MAX(nr_shown, 1), 1);
	for (size_t i = 0; i < m.nr_fields; i++)
		try_field(&m, &m.fields[i]);
	mutation_end(&m);
}

/* ---- the tests ---- */

static void every_field_counts(void **state)
{
	(void)state;
	mutate_all(rich_image(), RICH_DATA_BLOCKS, prng_ops(SAMPLE));
}

static void every_count_of_a_bitmap_counts(void **state)
{
	struct mutation m;

	(void)state;
	mutation_begin(&m, rich_image(), RICH_DATA_BLOCKS);
	m.sample = 10;
	mutate_bitmaps(&m, RICH_DATA_BLOCKS);
	mutation_end(&m);
}

static void every_field_of_a_large_data_map_counts(void **state)
{
	(void)state;
	mutate_all(large_image(), UINT64_MAX, prng_ops(SAMPLE) / 10);
}

static void every_field_under_a_metadata_snapshot_counts(void **state)
{
	(void)state;
	mutate_all(fixture_image("metasnap"), 1024, prng_ops(SAMPLE));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_field_counts),
		cmocka_unit_test(every_count_of_a_bitmap_counts),
		cmocka_unit_test(every_field_of_a_large_data_map_counts),
		cmocka_unit_test(every_field_under_a_metadata_snapshot_counts),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("thin-check-mutation", tests, NULL, NULL);
}
