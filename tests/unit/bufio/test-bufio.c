/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for bufio/.  Each test says one fact about the cache.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "bufio/bufio-internal.h"
#include "fault-device.h"
#include "mem-device.h"

#define NR_BLOCKS 1024u
#define LIMIT_BLOCKS 256u
#define RESERVE 8u

struct fixture {
	struct io_device *dev;
	struct bufio_client *c;
	struct tp_lock meta_root;
};

/* The copy gets the block number and the aux word in its last bytes. */
#define STAMP_AT (METADATA_BLOCK_SIZE - 16)

static void stamp(mblock_t block, void *data, uintptr_t aux)
{
	uint64_t words[2] = { block, aux };

	memcpy((char *)data + STAMP_AT, words, sizeof(words));
}

static void *disk(struct fixture *f, mblock_t block)
{
	return (char *)mem_device_data(fault_device_inner(f->dev)) + block * METADATA_BLOCK_SIZE;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct bufio_options options = {
		.name = "test",
		.limit_bytes = (uint64_t)LIMIT_BLOCKS * METADATA_BLOCK_SIZE,
		.reserve_buffers = RESERVE,
		.prepare_write = stamp,
	};

	f->dev = fault_device_create_mem((uint64_t)NR_BLOCKS * METADATA_BLOCK_SIZE);
	mem_device_set_alignment(fault_device_inner(f->dev), 4096);
	tp_lock_init(&f->meta_root, LC_meta_root, LOCK_KIND_RW);
	for (mblock_t i = 0; i < NR_BLOCKS; i++)
		memcpy(disk(f, i), &i, sizeof(i));
	*state = f;
	return bufio_client_create(f->dev, &options, &f->c);
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	assert_null(bufio_client_destroy(f->c));
	io_device_close(f->dev);
	tp_lock_destroy(&f->meta_root);
	free(f);
	return 0;
}

static void reset(struct fixture *f)
{
	lock_meta_root(&f->meta_root);
	bufio_client_reset(f->c);
	unlock_meta_root(&f->meta_root);
}

static struct bufio_stats stats(struct fixture *f)
{
	struct bufio_stats s;

	bufio_get_stats(f->c, &s);
	return s;
}

static uint64_t first_word(const void *data)
{
	uint64_t x;

	memcpy(&x, data, sizeof(x));
	return x;
}

/* Read the block through the cache; returns its first word. */
static uint64_t read_word(struct fixture *f, mblock_t block)
{
	struct bufio_buffer *b;
	uint64_t x;

	assert_int_equal(bufio_read(f->c, block, &b), 0);
	x = first_word(bufio_data(b));
	bufio_release(b);
	return x;
}

/* Make a new block with the word in it. */
static void write_word(struct fixture *f, mblock_t block, uint64_t word)
{
	struct bufio_buffer *b;

	assert_int_equal(bufio_new(f->c, block, &b), 0);
	memcpy(bufio_data(b), &word, sizeof(word));
	bufio_mark_dirty(b);
	bufio_release(b);
}

/* ---- lookup ---- */

static void first_read_misses_second_hits(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(read_word(f, 7), 7);
	assert_int_equal(read_word(f, 7), 7);
	assert_int_equal(stats(f).misses, 1);
	assert_int_equal(stats(f).hits, 1);
	assert_int_equal(stats(f).reads, 1);
	assert_int_equal(stats(f).cached_bytes, METADATA_BLOCK_SIZE);
}

static void get_never_reads(void **state)
{
	struct fixture *f = *state;
	struct bufio_buffer *b;

	assert_int_equal(bufio_get(f->c, 7, &b), -EWOULDBLOCK);
	assert_int_equal(fault_device_nr_requests(f->dev, FAULT_ALL_OPS), 0);
	assert_int_equal(read_word(f, 7), 7);
	assert_int_equal(bufio_get(f->c, 7, &b), 0);
	assert_int_equal(bufio_block(b), 7);
	bufio_release(b);
}

/* ---- reset ---- */

static void reset_discards_dirty_and_never_writes(void **state)
{
	struct fixture *f = *state;

	write_word(f, 7, 100);
	reset(f);
	assert_int_equal(fault_device_nr_requests(f->dev, FAULT_OP(IO_WRITE)), 0);
	assert_int_equal(stats(f).dirty_bytes, 0);
	assert_int_equal(stats(f).cached_bytes, 0);
	assert_int_equal(read_word(f, 7), 7);
	assert_int_equal(stats(f).resets, 1);
}

static void dirty_is_written_once_and_prepared_in_the_copy(void **state)
{
	struct fixture *f = *state;
	struct bufio_buffer *b;

	write_word(f, 7, 100);
	assert_int_equal(bufio_get(f->c, 7, &b), 0);
	bufio_set_aux(b, 55);
	assert_int_equal(bufio_write_dirty_buffers(f->c), 0);
	assert_int_equal(bufio_write_dirty_buffers(f->c), 0);
	assert_int_equal(stats(f).writes, 1);
	assert_int_equal(first_word(disk(f, 7)), 100);
	assert_int_equal(first_word((char *)disk(f, 7) + STAMP_AT), 7);
	assert_int_equal(first_word((char *)disk(f, 7) + STAMP_AT + 8), 55);
	assert_int_equal(first_word((char *)bufio_data(b) + STAMP_AT), 0);
	bufio_release(b);
}

int main(void)
{
#define FACT(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		FACT(first_read_misses_second_hits),
		FACT(get_never_reads),
		FACT(dirty_is_written_once_and_prepared_in_the_copy),
		FACT(reset_discards_dirty_and_never_writes),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("bufio", tests, NULL, NULL);
}
