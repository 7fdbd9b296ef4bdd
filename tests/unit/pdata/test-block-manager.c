/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for pdata/block-manager.c.  Each test says one fact about the module.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fault-device.h"
#include "pdata-fixture.h"
#include "util/le.h"
#include "util/log.h"

#define NR_BLOCKS 64
#define MARK 16 /* a byte of the content */

static unsigned nr_checks;

static int check_mark(const void *data, mblock_t b, mblock_t nr_blocks)
{
	(void)b;
	(void)nr_blocks;
	nr_checks++;
	return ((const uint8_t *)data)[MARK] == 0xee ? -EUCLEAN : 0;
}

static const struct block_validator apple = { .name = "apple", .csum_xor = 1, .check = check_mark };
static const struct block_validator pear = { .name = "pear", .csum_xor = 2 };

static int setup(void **state)
{
	struct pdata_fixture *f = calloc(1, sizeof(*f));

	pdata_fixture_init(f, NR_BLOCKS, 1 << 20);
	nr_checks = 0;
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	pdata_fixture_destroy(*state);
	free(*state);
	return 0;
}

static void write_apple(struct pdata_fixture *f, mblock_t b, uint8_t mark)
{
	struct locked_block *lb;

	assert_int_equal(bm_write_lock_zero(f->bm, b, &apple, &lb), 0);
	((uint8_t *)block_data_mut(lb))[MARK] = mark;
	bm_unlock(lb);
}

/* On the device, out of the cache. */
static void store_apple(struct pdata_fixture *f, mblock_t b, uint8_t mark)
{
	write_apple(f, b, mark);
	assert_int_equal(bm_flush(f->bm), 0);
	pdata_fixture_reset(f);
}

static int try_read(struct pdata_fixture *f, mblock_t b, const struct block_validator *v)
{
	struct locked_block *lb;
	int r = bm_read_lock(f->bm, b, v, &lb);

	if (!r)
		bm_unlock(lb);
	return r;
}

/* The last call that failed is the one to blame. */
static void assert_blamed(struct pdata_fixture *f, enum bm_failure_kind kind, int error, mblock_t b)
{
	struct bm_failure failure = bm_last_failure(f->bm);

	assert_int_equal(failure.kind, kind);
	assert_int_equal(failure.error, error);
	assert_int_equal(failure.block, b);
}

static void a_new_block_is_zero_and_reaches_the_disk_sealed(void **state)
{
	struct pdata_fixture *f = *state;
	const struct disk_bitmap_header *header = pdata_fixture_disk(f, 5);
	struct locked_block *lb;

	memset(pdata_fixture_disk(f, 5), 0x55, METADATA_BLOCK_SIZE);
	assert_int_equal(bm_write_lock_zero(f->bm, 5, &apple, &lb), 0);
	for (unsigned i = 0; i < METADATA_BLOCK_SIZE; i++)
		assert_int_equal(((const uint8_t *)block_data(lb))[i], 0);
	((uint8_t *)block_data_mut(lb))[MARK] = 7;
	bm_unlock(lb);
	assert_int_equal(bm_flush(f->bm), 0);

	assert_int_equal(le64_get(header->blocknr), 5);
	assert_int_equal(le32_get(header->csum), bm_checksum(header, apple.csum_xor));
	assert_int_equal(((const uint8_t *)header)[MARK], 7);
	pdata_fixture_reset(f);
	assert_int_equal(bm_read_lock(f->bm, 5, &apple, &lb), 0);
	assert_int_equal(((const uint8_t *)block_data(lb))[MARK], 7);
	assert_int_equal(block_location(lb), 5);
	bm_unlock(lb);
}

static void the_golden_checksum_of_an_empty_mapping_leaf(void **state)
{
	struct disk_node_header leaf[METADATA_BLOCK_SIZE / sizeof(struct disk_node_header)] = { 0 };

	(void)state;
	leaf[0].flags = le32_make(LEAF_NODE);
	leaf[0].blocknr = le64_make(6);
	leaf[0].max_entries = le32_make(252);
	leaf[0].value_size = le32_make(8);
	assert_int_equal(bm_checksum(leaf, BTREE_CSUM_XOR), 0xCB3DDA35);
}

static void content_is_checked_once(void **state)
{
	struct pdata_fixture *f = *state;

	store_apple(f, 5, 1);
	nr_checks = 0;
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(try_read(f, 5, &apple), 0);
	assert_int_equal(nr_checks, 1);
	pdata_fixture_reset(f);
	assert_int_equal(try_read(f, 5, &apple), 0);
	assert_int_equal(nr_checks, 2);
}

static void a_wrong_checksum_is_eilseq(void **state)
{
	struct pdata_fixture *f = *state;

	store_apple(f, 5, 1);
	((uint8_t *)pdata_fixture_disk(f, 5))[4095] ^= 1;
	assert_int_equal(try_read(f, 5, &apple), -EILSEQ);
	assert_int_equal(try_read(f, 5, &apple), -EILSEQ);
	assert_blamed(f, BM_FAILURE_CONTENT, -EILSEQ, 5);
}

static void a_block_of_another_place_is_enotblk(void **state)
{
	struct pdata_fixture *f = *state;

	store_apple(f, 5, 1);
	memcpy(pdata_fixture_disk(f, 6), pdata_fixture_disk(f, 5), METADATA_BLOCK_SIZE);
	assert_int_equal(try_read(f, 6, &apple), -ENOTBLK);
}

static void content_that_breaks_the_rules_is_euclean(void **state)
{
	struct pdata_fixture *f = *state;

	store_apple(f, 5, 0xee);
	assert_int_equal(try_read(f, 5, &apple), -EUCLEAN);
}

static void another_type_on_disk_is_eilseq(void **state)
{
	struct pdata_fixture *f = *state;

	store_apple(f, 5, 1);
	assert_int_equal(try_read(f, 5, &pear), -EILSEQ);
	assert_int_equal(try_read(f, 5, &apple), 0); /* a wrong guess does no harm */
}

static void another_type_while_cached_is_euclean(void **state)
{
	struct pdata_fixture *f = *state;
	struct locked_block *lb;

	write_apple(f, 5, 1);
	assert_int_equal(try_read(f, 5, &pear), -EUCLEAN);
	assert_int_equal(bm_write_lock(f->bm, 5, &pear, &lb), -EUCLEAN);
	assert_int_equal(try_read(f, 5, &apple), 0);
}

static void a_new_block_may_change_its_type(void **state)
{
	struct pdata_fixture *f = *state;
	struct locked_block *lb;

	write_apple(f, 5, 1);
	assert_int_equal(bm_write_lock_zero(f->bm, 5, &pear, &lb), 0);
	bm_unlock(lb);
	assert_int_equal(bm_flush(f->bm), 0);
	pdata_fixture_reset(f);
	assert_int_equal(try_read(f, 5, &pear), 0);
}

static void no_call_goes_past_the_end(void **state)
{
	struct pdata_fixture *f = *state;
	struct block_waiter waiter = { 0 };
	uint8_t data[METADATA_BLOCK_SIZE];
	struct locked_block *lb;

	for (unsigned i = 0; i < 2; i++) {
		mblock_t b = i ? UINT64_MAX : NR_BLOCKS;

		assert_int_equal(bm_read_lock(f->bm, b, &apple, &lb), -EUCLEAN);
		assert_int_equal(bm_read_try_lock(f->bm, b, &apple, &lb), -EUCLEAN);
		assert_int_equal(bm_write_lock(f->bm, b, &apple, &lb), -EUCLEAN);
		assert_int_equal(bm_write_lock_zero(f->bm, b, &apple, &lb), -EUCLEAN);
		assert_int_equal(bm_read_async(f->bm, b, &waiter), -EUCLEAN);
		assert_int_equal(bm_read_raw(f->bm, b, data), -EUCLEAN);
		bm_prefetch(f->bm, b, 4);
	}
	bm_prefetch(f->bm, NR_BLOCKS - 1, 4);
}

static void a_grown_device_has_more_blocks(void **state)
{
	struct pdata_fixture *f = *state;
	struct locked_block *lb;

	assert_int_equal(bm_write_lock_zero(f->bm, NR_BLOCKS, &apple, &lb), -EUCLEAN);
	assert_int_equal(io_device_resize(f->dev, 2 * NR_BLOCKS * METADATA_BLOCK_SIZE + 512), 0);
	assert_int_equal(bm_nr_blocks(f->bm), 2 * NR_BLOCKS);
	write_apple(f, NR_BLOCKS, 1);
	assert_int_equal(try_read(f, NR_BLOCKS, &apple), 0);
}

static void try_lock_does_no_io(void **state)
{
	struct pdata_fixture *f = *state;
	struct locked_block *lb;
	uint64_t reads;

	store_apple(f, 5, 1);
	reads = fault_device_nr_requests(f->dev, FAULT_OP(IO_READ));
	assert_int_equal(bm_read_try_lock(f->bm, 5, &apple, &lb), -EWOULDBLOCK);
	assert_int_equal(fault_device_nr_requests(f->dev, FAULT_OP(IO_READ)), reads);
	assert_int_equal(try_read(f, 5, &apple), 0);
	assert_int_equal(bm_read_try_lock(f->bm, 5, &apple, &lb), 0);
	bm_unlock(lb);
}

static int async_result;

static void async_done(struct block_waiter *w, int r)
{
	(void)w;
	async_result = r;
}

static void an_async_read_ends_with_a_call(void **state)
{
	struct pdata_fixture *f = *state;
	struct block_waiter waiter = { .done = async_done };
	struct locked_block *lb;
	struct io_queue *q;

	store_apple(f, 5, 1);
	async_result = 1;
	assert_int_equal(bm_read_async(f->bm, 5, &waiter), -EINPROGRESS);
	assert_int_equal(io_queue_self(&q), 0);
	while (async_result == 1)
		io_queue_run(q, 1000);
	assert_int_equal(async_result, 0);
	assert_int_equal(bm_read_try_lock(f->bm, 5, &apple, &lb), 0);
	bm_unlock(lb);
	assert_int_equal(bm_read_async(f->bm, 5, &waiter), 0); /* there already */
}

static void a_read_error_is_passed_on_and_not_kept(void **state)
{
	struct pdata_fixture *f = *state;

	store_apple(f, 5, 1);
	assert_int_equal(bm_last_failure(f->bm).kind, BM_FAILURE_NONE);
	fault_device_fail_nth(f->dev, FAULT_OP(IO_READ), 1);
	assert_int_equal(try_read(f, 5, &apple), -EIO);
	assert_blamed(f, BM_FAILURE_READ, -EIO, 5);
	assert_int_equal(try_read(f, 5, &apple), 0);
}

static void a_write_error_fails_the_flush(void **state)
{
	struct pdata_fixture *f = *state;

	write_apple(f, 5, 1);
	fault_device_fail_nth(f->dev, FAULT_OP(IO_WRITE), 1);
	assert_int_equal(bm_flush(f->bm), -EIO);
	assert_blamed(f, BM_FAILURE_WRITE, -EIO, 5);
	write_apple(f, 5, 1);
	fault_device_fail_nth(f->dev, FAULT_OP(IO_FLUSH), 1);
	assert_int_equal(bm_flush(f->bm), -EIO);
	assert_blamed(f, BM_FAILURE_FLUSH, -EIO, 0);
}

static void read_only_refuses_changes_and_flushes(void **state)
{
	struct pdata_fixture *f = *state;
	struct locked_block *lb;

	store_apple(f, 5, 1);
	bm_set_read_only(f->bm, true);
	assert_int_equal(bm_write_lock(f->bm, 5, &apple, &lb), -EPERM);
	assert_int_equal(bm_write_lock_zero(f->bm, 6, &apple, &lb), -EPERM);
	assert_int_equal(bm_flush(f->bm), -EPERM);
	assert_int_equal(try_read(f, 5, &apple), 0);
	bm_set_read_only(f->bm, false);
	assert_int_equal(bm_write_lock(f->bm, 5, &apple, &lb), 0);
	bm_unlock(lb);
}

static void raw_reads_ask_the_device_and_know_no_type(void **state)
{
	struct pdata_fixture *f = *state;
	uint8_t *data = aligned_alloc(4096, METADATA_BLOCK_SIZE);

	assert_int_equal(bm_read_raw(f->bm, NR_BLOCKS, data), -EUCLEAN);
	assert_blamed(f, BM_FAILURE_CONTENT, -EUCLEAN, NR_BLOCKS);
	fault_device_fail_nth(f->dev, FAULT_OP(IO_READ), 1);
	assert_int_equal(bm_read_raw(f->bm, 3, data), -EIO);
	assert_blamed(f, BM_FAILURE_READ, -EIO, 3);
	write_apple(f, 0, 1);
	assert_int_equal(bm_read_raw(f->bm, 0, data), 0);
	assert_int_equal(data[MARK], 0); /* only in the cache */
	assert_int_equal(bm_flush(f->bm), 0);
	assert_int_equal(bm_read_raw(f->bm, 0, data), 0);
	assert_int_equal(data[MARK], 1);
	assert_int_equal(try_read(f, 0, &apple), 0);
	free(data);
}

static void a_forgotten_block_is_not_written(void **state)
{
	struct pdata_fixture *f = *state;

	write_apple(f, 5, 1);
	bm_forget(f->bm, 5);
	assert_int_equal(bm_flush(f->bm), 0);
	assert_int_equal(((uint8_t *)pdata_fixture_disk(f, 5))[MARK], 0);
}

static void a_reset_forgets_changes_and_types(void **state)
{
	struct pdata_fixture *f = *state;

	store_apple(f, 5, 1);
	write_apple(f, 5, 2);
	write_apple(f, 6, 2);
	pdata_fixture_reset(f);
	assert_int_equal(try_read(f, 6, &pear), -ENOTBLK); /* not EUCLEAN: it is an unknown block */
	assert_int_equal(((uint8_t *)pdata_fixture_disk(f, 5))[MARK], 1);
}

static char last_line[400];

static void keep_line(enum log_level level, const char *line, void *ctx)
{
	(void)level;
	(void)ctx;
	strncpy(last_line, line, sizeof(last_line) - 1);
}

static void damage_is_logged_with_block_and_type(void **state)
{
	struct pdata_fixture *f = *state;

	log_set_tap(keep_line, NULL);
	assert_int_equal(try_read(f, 1234567, &apple), -EUCLEAN);
	log_set_tap(NULL, NULL);
	/* At most one line in five seconds: an earlier test may have used it up. */
	if (last_line[0]) {
		assert_non_null(strstr(last_line, "1234567"));
		assert_non_null(strstr(last_line, "apple"));
	}
}

/* Damaged metadata may name a block twice, or call one free that is in use. */
static void a_block_being_changed_cannot_be_had_again(void **state)
{
	struct pdata_fixture *f = *state;
	struct locked_block *lb, *again;

	store_apple(f, 5, 1);
	assert_int_equal(bm_write_lock(f->bm, 5, &apple, &lb), 0);
	assert_int_equal(bm_read_lock(f->bm, 5, &apple, &again), -EUCLEAN);
	assert_int_equal(bm_read_try_lock(f->bm, 5, &apple, &again), -EUCLEAN);
	assert_int_equal(bm_write_lock(f->bm, 5, &apple, &again), -EUCLEAN);
	assert_int_equal(bm_write_lock_zero(f->bm, 5, &apple, &again), -EUCLEAN);
	assert_int_equal(((const uint8_t *)block_data(lb))[MARK], 1);
	bm_unlock(lb);
	assert_int_equal(try_read(f, 5, &apple), 0);
}

#ifdef TP_DEBUG_LOCKS
typedef int lock_fn(struct block_manager *bm, mblock_t b, const struct block_validator *v,
		    struct locked_block **ret_lb);

static bool second_lock_dies(struct pdata_fixture *f, lock_fn *first, lock_fn *second)
{
	struct rlimit no_core = { 0, 0 };
	struct locked_block *a, *b;
	int status;
	pid_t pid;

	store_apple(f, 5, 1);
	assert_int_equal(try_read(f, 5, &apple), 0);
	pid = fork();
	if (pid == 0) {
		signal(SIGABRT, SIG_DFL);
		setrlimit(RLIMIT_CORE, &no_core);
		if (!freopen("/dev/null", "w", stderr))
			_exit(1);
		_exit(first(f->bm, 5, &apple, &a) || second(f->bm, 5, &apple, &b));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

static void conflicting_locks_stop_the_program(void **state)
{
	struct pdata_fixture *f = *state;

	assert_true(second_lock_dies(f, bm_read_lock, bm_write_lock));
	assert_true(second_lock_dies(f, bm_read_try_lock, bm_write_lock));
	assert_false(second_lock_dies(f, bm_read_lock, bm_read_try_lock));
}
#endif

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_new_block_is_zero_and_reaches_the_disk_sealed),
		TEST(the_golden_checksum_of_an_empty_mapping_leaf),
		TEST(content_is_checked_once),
		TEST(a_wrong_checksum_is_eilseq),
		TEST(a_block_of_another_place_is_enotblk),
		TEST(content_that_breaks_the_rules_is_euclean),
		TEST(another_type_on_disk_is_eilseq),
		TEST(another_type_while_cached_is_euclean),
		TEST(a_new_block_may_change_its_type),
		TEST(no_call_goes_past_the_end),
		TEST(a_grown_device_has_more_blocks),
		TEST(try_lock_does_no_io),
		TEST(an_async_read_ends_with_a_call),
		TEST(a_read_error_is_passed_on_and_not_kept),
		TEST(a_write_error_fails_the_flush),
		TEST(read_only_refuses_changes_and_flushes),
		TEST(raw_reads_ask_the_device_and_know_no_type),
		TEST(a_forgotten_block_is_not_written),
		TEST(a_reset_forgets_changes_and_types),
		TEST(damage_is_logged_with_block_and_type),
		TEST(a_block_being_changed_cannot_be_had_again),
#ifdef TP_DEBUG_LOCKS
		TEST(conflicting_locks_stop_the_program),
#endif
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
