/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for bufio/bufio-write.c.  Each test says one fact about the module.
 */
#include <errno.h>
#include <string.h>

#include "fixture.h"

/* ---- write-back ---- */

static void dirty_is_written_once_and_prepared_in_the_copy(void **state)
{
	struct fixture *f = *state;
	struct bufio_buffer *b;

	write_word(f, 7, 100);
	assert_int_equal(bufio_get(f->c, 7, &b), 0);
	bufio_set_aux(b, 55);
	assert_int_equal(stats(f).dirty_bytes, METADATA_BLOCK_SIZE);
	assert_int_equal(bufio_write_dirty_buffers(f->c), 0);
	assert_int_equal(bufio_write_dirty_buffers(f->c), 0);
	assert_int_equal(stats(f).writes, 1);
	assert_int_equal(stats(f).dirty_bytes, 0);
	assert_int_equal(first_word(disk(f, 7)), 100);
	assert_int_equal(first_word((char *)disk(f, 7) + STAMP_AT), 7);
	assert_int_equal(first_word((char *)disk(f, 7) + STAMP_AT + 8), 55);
	assert_int_equal(first_word((char *)bufio_data(b) + STAMP_AT), 0);
	bufio_release(b);
}

static void neighbours_are_written_with_one_request(void **state)
{
	struct fixture *f = *state;
	const mblock_t blocks[] = { 19, 17, 16, 40, 18 };

	for (unsigned i = 0; i < ARRAY_SIZE(blocks); i++)
		write_word(f, blocks[i], 100 + blocks[i]);
	assert_int_equal(bufio_write_dirty_buffers(f->c), 0);
	assert_int_equal(nr_requests(f, IO_WRITE), 2);
	for (unsigned i = 0; i < ARRAY_SIZE(blocks); i++)
		assert_int_equal(first_word(disk(f, blocks[i])), 100 + blocks[i]);
}

static void more_than_two_batches_are_written(void **state)
{
	struct fixture *f = *state;

	for (mblock_t i = 0; i < LIMIT_BLOCKS; i++)
		write_word(f, i * 3, i + 5000);
	assert_int_equal(bufio_write_dirty_buffers(f->c), 0);
	for (mblock_t i = 0; i < LIMIT_BLOCKS; i++)
		assert_int_equal(first_word(disk(f, i * 3)), i + 5000);
	assert_int_equal(stats(f).dirty_bytes, 0);
	assert_int_equal(stats(f).writes, LIMIT_BLOCKS);
}

/* Somebody who is always faster. */
static struct bufio_client *dirtied_client;

static void dirty_again(mblock_t block, void *data, uintptr_t aux)
{
	struct bufio_buffer *b;

	(void)data;
	(void)aux;
	if (bufio_get(dirtied_client, block, &b))
		return;
	bufio_mark_dirty(b);
	bufio_release(b);
}

/* More of one shard than both batches hold, so that the scan meets them again. */
static void a_pass_ends_though_all_it_writes_is_dirtied_again(void **state)
{
	const unsigned nr = 300, range = 32 * 1024;
	struct fixture *f = *state;
	unsigned made = 0;

	assert_int_equal(io_device_resize(f->dev, (uint64_t)range * METADATA_BLOCK_SIZE), 0);
	bufio_set_limit(f->c, (uint64_t)range * METADATA_BLOCK_SIZE);
	dirtied_client = f->c;
	f->c->prepare_write = dirty_again;
	for (mblock_t i = 0; i < range && made < nr; i++) {
		if (shard_of(f->c, i) != &f->c->shards[0])
			continue;
		write_word(f, i, i);
		made++;
	}
	assert_int_equal(made, nr);
	assert_int_equal(bufio_write_dirty_buffers(f->c), 0);
	assert_int_equal(stats(f).writes, nr);
	assert_int_equal(stats(f).dirty_bytes, nr * METADATA_BLOCK_SIZE);
}

static void write_error_sticks_until_reported_once(void **state)
{
	struct fixture *f = *state;

	fault_device_fail_nth(f->dev, FAULT_OP(IO_WRITE), 1);
	write_word(f, 7, 100);
	bufio_write_dirty_buffers_async(f->c);
	bufio_test_settle(f->c);
	assert_int_equal(fault_device_nr_failed(f->dev), 1);
	assert_int_equal(bufio_write_dirty_buffers(f->c), -EIO);
	assert_int_equal(bufio_write_dirty_buffers(f->c), 0);
}

/* The device has not what the cache has: it must neither be evicted nor forgotten about. */
static void what_could_not_be_written_stays_dirty(void **state)
{
	struct fixture *f = *state;

	fault_device_add(f->dev, &(struct fault){ .ops = FAULT_OP(IO_WRITE), .count = UINT64_MAX });
	write_word(f, 7, 100);
	assert_int_equal(bufio_write_dirty_buffers(f->c), -EIO);
	assert_int_equal(stats(f).dirty_bytes, METADATA_BLOCK_SIZE);
	assert_int_equal(evict_count(f->c, UINT64_MAX), 0);
	assert_int_equal(read_word(f, 7), 100);
	fault_device_clear(f->dev);
	assert_int_equal(bufio_write_dirty_buffers(f->c), 0);
	assert_int_equal(first_word(disk(f, 7)), 100);
}

static void dirtied_again_while_written_stays_dirty(void **state)
{
	struct fixture *f = *state;
	struct bufio_buffer *b;
	const uint64_t word = 200;
	struct actor a;

	write_word(f, 7, 100);
	fault_device_delay(f->dev, FAULT_OP(IO_WRITE));
	start(&a, f, 0, writing);
	assert_true(fault_device_wait_held(f->dev, 1));
	assert_int_equal(bufio_get(f->c, 7, &b), 0);
	memcpy(bufio_data(b), &word, sizeof(word));
	bufio_mark_dirty(b);
	bufio_release(b);
	fault_device_release_all(f->dev);
	finish(&a);
	assert_int_equal(a.r, 0);
	assert_int_equal(first_word(disk(f, 7)), 100);
	assert_int_equal(stats(f).dirty_bytes, METADATA_BLOCK_SIZE);
	assert_int_equal(bufio_write_dirty_buffers(f->c), 0);
	assert_int_equal(first_word(disk(f, 7)), 200);
}

static void flush_awaits_a_write_of_the_helper(void **state)
{
	struct fixture *f = *state;
	struct actor a;

	write_word(f, 7, 100);
	fault_device_delay(f->dev, FAULT_OP(IO_WRITE));
	bufio_write_dirty_buffers_async(f->c);
	assert_true(fault_device_wait_held(f->dev, 1));
	start(&a, f, 0, writing);
	release_late(f);
	finish(&a);
	assert_true(a.after_release);
	assert_int_equal(first_word(disk(f, 7)), 100);
	assert_int_equal(stats(f).writes, 1);
}

static void background_leaves_held_buffers_alone_a_flush_does_not(void **state)
{
	struct fixture *f = *state;
	struct bufio_buffer *b;

	assert_int_equal(bufio_new(f->c, 7, &b), 0);
	bufio_mark_dirty(b);
	bufio_write_dirty_buffers_async(f->c);
	bufio_test_settle(f->c);
	assert_int_equal(nr_requests(f, IO_WRITE), 0);
	assert_int_equal(bufio_write_dirty_buffers(f->c), 0);
	assert_int_equal(nr_requests(f, IO_WRITE), 1);
	bufio_release(b);
}

static void foreign_callbacks_do_not_run_in_a_flush(void **state)
{
	struct fixture *f = *state;
	struct told t = { .w.done = tell };

	write_word(f, 7, 100);
	assert_int_equal(bufio_read_async(f->c, 8, &t.w), -EINPROGRESS);
	assert_int_equal(bufio_write_dirty_buffers(f->c), 0);
	assert_int_equal(t.calls, 0);
	run_own_queue();
	assert_int_equal(t.calls, 1);
}

static void flush_goes_to_the_device_and_its_error_comes_back(void **state)
{
	struct fixture *f = *state;

	fault_device_fail_nth(f->dev, FAULT_OP(IO_FLUSH), 2);
	assert_int_equal(bufio_issue_flush(f->c), 0);
	assert_int_equal(bufio_issue_flush(f->c), -EIO);
}

/* One by one, and with what follows a failure left dirty. */
static void a_thread_without_a_queue_writes_all_the_same(void **state)
{
	static const mblock_t blocks[] = { 7, 8, 9, 20, 400 };
	struct fixture *f = *state;
	struct actor a;

	for (unsigned i = 0; i < ARRAY_SIZE(blocks); i++)
		write_word(f, blocks[i], 5000 + blocks[i]);
	fault_device_add(f->dev, &(struct fault){ .ops = FAULT_OP(IO_WRITE),
						  .offset = 8 * METADATA_BLOCK_SIZE,
						  .length = 1,
						  .count = 1 });
	fail_descriptors(true);
	start(&a, f, 0, writing);
	finish(&a);
	assert_int_equal(a.r, -EIO);
	assert_int_equal(first_word(disk(f, 8)), 8);
	assert_true(stats(f).dirty_bytes > 0);
	start(&a, f, 0, writing);
	finish(&a);
	fail_descriptors(false);
	assert_int_equal(a.r, 0);
	for (unsigned i = 0; i < ARRAY_SIZE(blocks); i++)
		assert_int_equal(first_word(disk(f, blocks[i])), 5000 + blocks[i]);
	assert_int_equal(stats(f).dirty_bytes, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		FACT(dirty_is_written_once_and_prepared_in_the_copy),
		FACT(neighbours_are_written_with_one_request),
		FACT(more_than_two_batches_are_written),
		FACT(a_pass_ends_though_all_it_writes_is_dirtied_again),
		FACT(write_error_sticks_until_reported_once),
		FACT(what_could_not_be_written_stays_dirty),
		FACT(dirtied_again_while_written_stays_dirty),
		FACT(flush_awaits_a_write_of_the_helper),
		FACT(background_leaves_held_buffers_alone_a_flush_does_not),
		FACT(foreign_callbacks_do_not_run_in_a_flush),
		FACT(flush_goes_to_the_device_and_its_error_comes_back),
		FACT(a_thread_without_a_queue_writes_all_the_same),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("bufio-write", tests, NULL, NULL);
}
