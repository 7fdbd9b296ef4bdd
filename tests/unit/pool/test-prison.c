/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Unit tests for pool/prison.c: who holds a cell, who waits for whom, and in which order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#include "pool/prison.h"
#include "prng.h"

#define ZONE 64u

static struct prison *prison;
static const char volume_a, volume_b;

static int setup(void **state)
{
	(void)state;
	return prison_create(ZONE, &prison);
}

static int teardown(void **state)
{
	(void)state;
	prison = prison_destroy(prison); /* checks that nothing is held */
	return 0;
}

static struct cell cell_of(const void *owner, uint64_t begin, uint64_t end, bool exclusive)
{
	return (struct cell){ .owner = owner, .begin = begin, .end = end, .exclusive = exclusive };
}

static void release_alone(struct cell *cell)
{
	assert_null(prison_release(prison, cell));
}

static void shared_cells_are_held_together(void **state)
{
	struct cell a = cell_of(&volume_a, 1, 3, false), b = cell_of(&volume_a, 2, 4, false);

	(void)state;
	assert_true(prison_acquire(prison, &a));
	assert_true(prison_acquire(prison, &b));
	release_alone(&a);
	release_alone(&b);
}

static void an_exclusive_cell_waits_for_all_shared_ones(void **state)
{
	struct cell a = cell_of(&volume_a, 1, 2, false), b = cell_of(&volume_a, 2, 3, false);
	struct cell x = cell_of(&volume_a, 1, 3, true);

	(void)state;
	assert_true(prison_acquire(prison, &a));
	assert_true(prison_acquire(prison, &b));
	assert_false(prison_acquire(prison, &x));
	release_alone(&a);
	assert_ptr_equal(prison_release(prison, &b), &x);
	assert_null(x.next_granted);
	release_alone(&x);
}

static void other_blocks_and_other_volumes_do_not_matter(void **state)
{
	struct cell x = cell_of(&volume_a, 4, 8, true), before = cell_of(&volume_a, 3, 4, true);
	struct cell behind = cell_of(&volume_a, 8, 9, false);
	struct cell other = cell_of(&volume_b, 4, 8, true);

	(void)state;
	assert_true(prison_acquire(prison, &x));
	assert_true(prison_acquire(prison, &before));
	assert_true(prison_acquire(prison, &behind));
	assert_true(prison_acquire(prison, &other));
	release_alone(&x);
	release_alone(&before);
	release_alone(&behind);
	release_alone(&other);
}

static void one_release_grants_all_shared_waiters(void **state)
{
	struct cell x = cell_of(&volume_a, 0, 8, true), a = cell_of(&volume_a, 0, 4, false);
	struct cell b = cell_of(&volume_a, 2, 8, false), *granted;

	(void)state;
	assert_true(prison_acquire(prison, &x));
	assert_false(prison_acquire(prison, &a));
	assert_false(prison_acquire(prison, &b));
	granted = prison_release(prison, &x);
	assert_ptr_equal(granted, &a);
	assert_ptr_equal(granted->next_granted, &b);
	assert_null(b.next_granted);
	release_alone(&a);
	release_alone(&b);
}

static void a_waiting_exclusive_cell_is_not_overtaken(void **state)
{
	struct cell a = cell_of(&volume_a, 1, 2, false), x = cell_of(&volume_a, 1, 2, true);
	struct cell late = cell_of(&volume_a, 1, 2, false);

	(void)state;
	assert_true(prison_acquire(prison, &a));
	assert_false(prison_acquire(prison, &x));
	assert_false(prison_acquire(prison, &late));
	assert_ptr_equal(prison_release(prison, &a), &x);
	assert_null(x.next_granted);
	assert_ptr_equal(prison_release(prison, &x), &late);
	release_alone(&late);
}

static void who_waits_for_nobody_near_is_not_held_up(void **state)
{
	struct cell a = cell_of(&volume_a, 1, 2, true), x = cell_of(&volume_a, 1, 4, true);
	struct cell near = cell_of(&volume_a, 3, 4, false);
	struct cell far = cell_of(&volume_a, 4, 5, false);

	(void)state;
	assert_true(prison_acquire(prison, &a));
	assert_false(prison_acquire(prison, &x));
	assert_false(prison_acquire(prison, &near)); /* behind x */
	assert_true(prison_acquire(prison, &far));
	release_alone(&far);
	assert_ptr_equal(prison_release(prison, &a), &x);
	assert_ptr_equal(prison_release(prison, &x), &near);
	release_alone(&near);
}

static void shrinking_lets_others_in(void **state)
{
	struct cell a = cell_of(&volume_a, 0, 8, false), x = cell_of(&volume_a, 4, 8, true);

	(void)state;
	assert_true(prison_acquire(prison, &a));
	assert_false(prison_acquire(prison, &x));
	assert_null(prison_shrink(prison, &a, 5));
	assert_ptr_equal(prison_shrink(prison, &a, 4), &x);
	release_alone(&a);
	release_alone(&x);
}

/* ---- two threads: P1 holds at every moment ---- */

#define NR_BLOCKS 8
#define NR_THREADS 2
#define CELLS_A_THREAD 8

static atomic_int users[NR_BLOCKS]; /* shared: +1, exclusive: +1000 */
static atomic_int nr_wrong;

struct user {
	struct cell cell;
	atomic_bool granted;
	bool busy;
};

static void grant_chain(struct cell *cell)
{
	while (cell) {
		struct cell *next = cell->next_granted;

		atomic_store(&container_of(cell, struct user, cell)->granted, true);
		cell = next;
	}
}

static void occupy(struct cell *cell)
{
	for (uint64_t b = cell->begin; b < cell->end; b++) {
		int old = atomic_fetch_add(&users[b], cell->exclusive ? 1000 : 1);

		if (cell->exclusive ? old : old >= 1000)
			nr_wrong++;
	}
}

static void vacate(struct cell *cell, uint64_t begin)
{
	for (uint64_t b = begin; b < cell->end; b++)
		atomic_fetch_sub(&users[b], cell->exclusive ? 1000 : 1);
}

static void step(struct prng *p, struct user *u)
{
	if (!u->busy) {
		uint64_t begin = prng_below(p, NR_BLOCKS);

		u->cell = cell_of(&volume_a, begin, begin + 1 + prng_below(p, NR_BLOCKS - begin),
				  prng_below(p, 3) == 0);
		u->busy = true;
		atomic_store(&u->granted, false);
		if (prison_acquire(prison, &u->cell))
			atomic_store(&u->granted, true);
		return;
	}
	if (!atomic_load(&u->granted))
		return;
	occupy(&u->cell);
	if (prng_below(p, 2))
		sched_yield();
	if (u->cell.end - u->cell.begin > 1 && prng_below(p, 2)) {
		uint64_t end = u->cell.end - 1;

		vacate(&u->cell, end);
		grant_chain(prison_shrink(prison, &u->cell, end));
	}
	vacate(&u->cell, u->cell.begin);
	grant_chain(prison_release(prison, &u->cell));
	u->busy = false;
}

static void *hammer(void *arg)
{
	struct user cells[CELLS_A_THREAD];
	uint64_t ops = prng_ops(20000);
	struct prng p;
	bool busy = true;

	memset(cells, 0, sizeof(cells));
	prng_init(&p, *(uint64_t *)arg);
	for (uint64_t i = 0; i < ops; i++)
		step(&p, &cells[prng_below(&p, CELLS_A_THREAD)]);
	while (busy) {
		busy = false;
		for (unsigned i = 0; i < CELLS_A_THREAD; i++)
			if (cells[i].busy) {
				step(&p, &cells[i]);
				busy = true;
			}
		sched_yield();
	}
	return NULL;
}

static void threads_never_share_an_exclusive_cell(void **state)
{
	uint64_t seeds[NR_THREADS], seed = prng_seed();
	pthread_t threads[NR_THREADS];

	(void)state;
	for (unsigned i = 0; i < NR_THREADS; i++) {
		seeds[i] = seed + i;
		assert_int_equal(pthread_create(&threads[i], NULL, hammer, &seeds[i]), 0);
	}
	for (unsigned i = 0; i < NR_THREADS; i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(nr_wrong, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(shared_cells_are_held_together, setup, teardown),
		cmocka_unit_test_setup_teardown(an_exclusive_cell_waits_for_all_shared_ones, setup,
						teardown),
		cmocka_unit_test_setup_teardown(other_blocks_and_other_volumes_do_not_matter, setup,
						teardown),
		cmocka_unit_test_setup_teardown(one_release_grants_all_shared_waiters, setup,
						teardown),
		cmocka_unit_test_setup_teardown(a_waiting_exclusive_cell_is_not_overtaken, setup,
						teardown),
		cmocka_unit_test_setup_teardown(who_waits_for_nobody_near_is_not_held_up, setup,
						teardown),
		cmocka_unit_test_setup_teardown(shrinking_lets_others_in, setup, teardown),
		cmocka_unit_test_setup_teardown(threads_never_share_an_exclusive_cell, setup,
						teardown),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
