/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The checker and the engine against arbitrary damage: several blocks at once, of any kind, with
 * checksums that are right.  Whatever is done to an image, the checker ends and says so if
 * thinmeta.py does; the engine ends too.  TP_OPS: images; TP_SEED repeats a run.
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

struct damage {
	struct io_device *meta; /* a copy, to be damaged */
	uint8_t *image;
	mblock_t nr_blocks;
	const mblock_t *used;
	size_t nr_used;
	struct prng prng;
};

static mblock_t random_used(struct damage *d)
{
	return d->used[prng_below(&d->prng, d->nr_used)];
}

static void reseal(void *block, mblock_t location, uint32_t type)
{
	struct disk_bitmap_header *header = block; /* all blocks begin alike */

	header->blocknr = le64_make(location);
	if (type)
		seal(block, type);
}

/* ---- kinds of damage; each to one block ---- */

static void change_bytes(struct damage *d, mblock_t b)
{
	uint8_t *block = image_block(d->image, b);
	uint32_t type = block_type(block);

	for (uint64_t n = 1 + prng_below(&d->prng, 8); n; n--)
		block[16 + prng_below(&d->prng, METADATA_BLOCK_SIZE - 16)] =
			(uint8_t)prng_next(&d->prng);
	reseal(block, b, type);
}

static void fill_with_noise(struct damage *d, mblock_t b)
{
	uint8_t *block = image_block(d->image, b);
	uint32_t type = block_type(block);
	size_t from = 16 + prng_below(&d->prng, METADATA_BLOCK_SIZE - 16);

	prng_fill(&d->prng, block + from, METADATA_BLOCK_SIZE - from);
	reseal(block, b, prng_below(&d->prng, 4) ? type : 0);
}

static void take_for_another(struct damage *d, mblock_t b)
{
	uint8_t *block = image_block(d->image, b);

	memcpy(block, image_block(d->image, random_used(d)), METADATA_BLOCK_SIZE);
	reseal(block, b, block_type(block) ? block_type(block) : BTREE_CSUM_XOR);
}

static void wipe(struct damage *d, mblock_t b)
{
	memset(image_block(d->image, b), 0, METADATA_BLOCK_SIZE);
}

/* A field of a node's header, or an entry of it, becomes something that looks likely. */
static void change_node(struct damage *d, mblock_t b)
{
	struct disk_node_header *node = image_block(d->image, b);
	struct le64 *words = (void *)(node + 1);
	uint32_t small = (uint32_t)prng_below(&d->prng, 400);

	if (block_type(node) != BTREE_CSUM_XOR)
		return;
	switch (prng_below(&d->prng, 7)) {
	case 0:
		node->flags = le32_make(1 + (uint32_t)prng_below(&d->prng, 3));
		break;
	case 1:
		node->nr_entries = le32_make(small);
		break;
	case 2:
		node->max_entries = le32_make(prng_below(&d->prng, 2) ? small : UINT32_MAX - small);
		break;
	case 3:
		node->value_size = le32_make(4u << prng_below(&d->prng, 4));
		break;
	case 4: /* a pointer: to any block, to itself, or past the end */
		words[252 + prng_below(&d->prng, 252)] =
			le64_make(prng_below(&d->prng, 3) ? random_used(d) : b);
		break;
	case 5:
		words[252] = le64_make(d->nr_blocks + prng_next(&d->prng) % 1000);
		break;
	default:
		words[prng_below(&d->prng, 252)] = le64_make(prng_next(&d->prng));
		break;
	}
	reseal(node, b, BTREE_CSUM_XOR);
}

/* The internal node above is made its own descendant. */
static void close_a_cycle(struct damage *d, mblock_t b)
{
	struct disk_node_header *node = image_block(d->image, b);
	struct le64 *values = (struct le64 *)(node + 1) + 252;
	struct disk_node_header *child;

	if (block_type(node) != BTREE_CSUM_XOR || le32_get(node->flags) != INTERNAL_NODE)
		return;
	b = le64_get(values[0]) % d->nr_blocks;
	child = image_block(d->image, b);
	memcpy(child, node, METADATA_BLOCK_SIZE);
	((struct le64 *)(child + 1))[252] = le64_make(le64_get(node->blocknr));
	reseal(child, b, BTREE_CSUM_XOR);
}

static void damage_one(struct damage *d)
{
	static void (*const kinds[])(struct damage * d, mblock_t b) = {
		change_bytes, fill_with_noise, take_for_another, wipe,
		change_node,  change_node,     close_a_cycle,
	};

	kinds[prng_below(&d->prng, ARRAY_SIZE(kinds))](d, random_used(d));
}

/* ---- images ---- */

static size_t find_used(struct io_device *meta, mblock_t *used)
{
	void *image = mem_device_data(meta);
	size_t nr = 0;

	for (mblock_t b = 0; b < io_device_size(meta) / METADATA_BLOCK_SIZE; b++)
		if (block_type(image_block(image, b)))
			used[nr++] = b;
	return nr;
}

/* The device ends early, perhaps within a block. */
static void truncate_copy(struct damage *d)
{
	uint64_t size = prng_below(&d->prng, 2) ? prng_below(&d->prng, io_device_size(d->meta))
						: d->used[d->nr_used - 1] * METADATA_BLOCK_SIZE;
	struct io_device *shorter = mem_device_create(size);

	memcpy(mem_device_data(shorter), d->image, size);
	mem_device_touch(shorter, 0, size);
	io_device_close(d->meta);
	d->meta = shorter;
}

static void damage_images(struct io_device *meta, uint64_t nr_images)
{
	struct judge *judge = judge_start();
	mblock_t *used = calloc(io_device_size(meta) / METADATA_BLOCK_SIZE, sizeof(*used));
	uint64_t seed = prng_seed();
	struct damage d = {
		.nr_blocks = io_device_size(meta) / METADATA_BLOCK_SIZE,
		.used = used,
		.nr_used = find_used(meta, used),
	};

	log_set_level(0); /* the engine has much to say about these images */
	for (uint64_t i = 0; i < nr_images; i++) {
		struct report report;

		prng_init(&d.prng, seed + i);
		now_about("TP_SEED=%llu, first image", (unsigned long long)(seed + i));
		d.meta = mem_device_clone(meta);
		d.image = mem_device_data(d.meta);
		for (uint64_t n = 1 + prng_below(&d.prng, 3); n; n--)
			damage_one(&d);
		mem_device_touch(d.meta, 0, io_device_size(d.meta));
		if (!prng_below(&d.prng, 20))
			truncate_copy(&d);
		check_image(d.meta, UINT64_MAX, &report);
		assert_int_equal(report.r, 0);
		show_to_others(judge, d.meta, &report, prng_next(&d.prng));
		report_free(&report);
		io_device_close(d.meta);
	}
	free(used);
	judge_stop(judge);
	io_device_close(meta);
}

static void damaged_volumes(void **state)
{
	(void)state;
	damage_images(rich_image(), prng_ops(60));
}

static void damaged_metadata_snapshot(void **state)
{
	(void)state;
	damage_images(fixture_image("metasnap"), prng_ops(60));
}

static void damaged_many_volumes(void **state)
{
	(void)state;
	damage_images(fixture_image("many300"), prng_ops(40));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(damaged_volumes),
		cmocka_unit_test(damaged_metadata_snapshot),
		cmocka_unit_test(damaged_many_volumes),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("thin-check-random", tests, NULL, NULL);
}
