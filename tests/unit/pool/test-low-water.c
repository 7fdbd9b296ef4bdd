/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for pool/low-water.c: falling to a mark is told once, and again only after free space
 * was well above it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "commands.h"
#include "pool/request.h"
#include "util/log.h"

#define BLOCK (64 * KIB)
#define NR_BLOCKS 128u
#define MARK 32u /* blocks; the margin is 4 */

static struct pool_rig *rig;
static struct volume *v;
static unsigned data_lines, metadata_lines;

static void count_lines(enum log_level level, const char *line, void *ctx)
{
	(void)level;
	(void)ctx;
	data_lines += strstr(line, "data space is low") && !strstr(line, "metadata space");
	metadata_lines += strstr(line, "metadata space is low") != NULL;
}

static void open_with(struct pool_low_water data, struct pool_low_water metadata)
{
	rig_close_volume(v);
	rig->options.low_water_data = data;
	rig->options.low_water_metadata = metadata;
	pool_rig_reopen(rig);
	v = rig_open_volume(rig, "vol");
}

static int setup(void **state)
{
	(void)state;
	rig = pool_rig_create(BLOCK, NR_BLOCKS, 512);
	v = rig_create_volume(rig, "vol", 16 * MIB);
	data_lines = metadata_lines = 0;
	log_set_tap(count_lines, NULL);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	log_set_tap(NULL, NULL);
	return pool_rig_end(rig, v);
}

static uint64_t nr_free(void)
{
	struct pool_status s = rig_status(rig);

	return (s.data_total - s.data_used) / BLOCK;
}

static bool has_free(void *nr)
{
	return rig_commit(rig) == 0 && nr_free() == *(uint64_t *)nr;
}

/* Blocks are mapped and unmapped from the front until so many are free, punches included. */
static void leave_free(uint64_t nr)
{
	static uint64_t mapped;
	uint64_t now = nr_free();

	if (!rig_mapped(v))
		mapped = 0;
	for (; now > nr; now--)
		assert_int_equal(rig_fill(rig, v, mapped++ * BLOCK, BLOCK, 1), 0);
	for (; now < nr; now++)
		assert_int_equal(rig_punch(rig, v, --mapped * BLOCK, BLOCK), 0);
	assert_true(rig_await(rig, has_free, &nr));
}

static void a_mark_is_a_share_or_a_size(void **state)
{
	const struct pool_low_water tenth = { .percent = 10 }, size = { .bytes = 4711 },
				    none = { 0 };

	(void)state;
	assert_int_equal(low_water_mark(&tenth, 1000), 100);
	assert_int_equal(low_water_mark(&tenth, 1009), 100);
	assert_int_equal(low_water_mark(&tenth, UINT64_MAX), UINT64_MAX / 10);
	assert_int_equal(low_water_mark(&size, 1000), 4711);
	assert_int_equal(low_water_mark(&none, 1000), 0);
}

static void falling_to_the_mark_is_told_once(void **state)
{
	(void)state;
	open_with((struct pool_low_water){ .percent = 25 }, (struct pool_low_water){ 0 });
	assert_int_equal(rig_status(rig).low_water_data, MARK * BLOCK);
	leave_free(MARK + 1);
	assert_false(rig_status(rig).data_is_low);
	assert_int_equal(data_lines, 0);
	leave_free(MARK);
	assert_true(rig_status(rig).data_is_low);
	leave_free(MARK - 10);
	leave_free(MARK + 4); /* not above the margin */
	leave_free(MARK - 1);
	assert_true(rig_status(rig).data_is_low);
	assert_int_equal(data_lines, 1);
	assert_int_equal(rig_status(rig).stats.low_water_data, 1);
	assert_int_equal(rig_status(rig).mode, POOL_MODE_WRITE);
}

static void well_above_the_mark_it_is_armed_again(void **state)
{
	(void)state;
	open_with((struct pool_low_water){ .bytes = MARK * BLOCK }, (struct pool_low_water){ 0 });
	leave_free(MARK);
	leave_free(MARK + 5);
	assert_false(rig_status(rig).data_is_low);
	leave_free(MARK);
	assert_true(rig_status(rig).data_is_low);
	/* The log is limited to a line in five seconds, the count is not. */
	assert_int_equal(rig_status(rig).stats.low_water_data, 2);
	assert_int_equal(data_lines, 1);
}

static void metadata_has_a_mark_of_its_own(void **state)
{
	struct pool_status s = rig_status(rig);
	uint64_t unused = s.metadata_total - s.metadata_reserve - s.metadata_used;

	(void)state;
	open_with((struct pool_low_water){ 0 }, (struct pool_low_water){ .bytes = unused });
	assert_int_equal(rig_commit(rig), 0);
	s = rig_status(rig);
	assert_true(s.metadata_is_low);
	assert_false(s.data_is_low);
	assert_int_equal(s.low_water_metadata, unused);
	assert_int_equal(s.stats.low_water_metadata, 1);
	assert_int_equal(metadata_lines, 1);
	leave_free(1);
	assert_int_equal(data_lines, 0);
	assert_int_equal(rig_status(rig).stats.low_water_data, 0);
}

/* A trim takes what is free out of allocation for a moment: that is no lack of space. */
static void what_is_being_punched_counts_as_free(void **state)
{
	struct async trim;

	(void)state;
	open_with((struct pool_low_water){ .bytes = MARK * BLOCK }, (struct pool_low_water){ 0 });
	leave_free(MARK + 8);
	fault_device_delay(rig->data, FAULT_OP(IO_DISCARD));
	start(rig, &trim, POOL_TRIM, "", "", 0);
	assert_true(fault_device_wait_held(rig->data, 1));
	assert_int_equal(rig_commit(rig), 0);
	assert_true(nr_free() <= MARK);
	assert_false(rig_status(rig).data_is_low);
	fault_device_release_all(rig->data);
	assert_int_equal(finish(rig, &trim), 0);
	assert_int_equal(rig_status(rig).stats.low_water_data, 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_mark_is_a_share_or_a_size),
		T(falling_to_the_mark_is_told_once),
		T(well_above_the_mark_it_is_armed_again),
		T(what_is_being_punched_counts_as_free),
		T(metadata_has_a_mark_of_its_own),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
