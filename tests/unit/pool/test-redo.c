/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The redo area by itself: records come back or nothing does, whatever happens to the memory and
 * wherever its writer is killed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pool/redo.h"

#define AREA_BYTES 65536
#define HALF_BYTES (AREA_BYTES / 2)
#define HEADER_BYTES 8192
#define RECORD_BYTES 32
#define CAPACITY ((HALF_BYTES - HEADER_BYTES) / RECORD_BYTES)

static const struct redo_owner owner = { .boot_id = "a-boot", .devices = { 1, 2, 3, 4, 5, 6 } };
static const struct redo_record some[] = {
	{ .type = REDO_INSERT, .volume = 7, .vblock = 1, .nr = 3, .dblock = 12345 },
	{ .type = REDO_UNMAP, .volume = THIN_ID_MAX - 1, .vblock = 1, .nr = UINT64_C(1) << 40 },
	{ .type = REDO_SIZE, .volume = 0, .bytes = INT64_MAX },
	{ .type = REDO_LOST, .volume = 1 },
};

static uint8_t states[3][THIN_STATE_BYTES];
static int fd;
static struct redo *redo;

static struct redo *open_area(const struct redo_owner *by)
{
	struct redo *r;

	assert_int_equal(redo_open(fd, by, &r), 0);
	return r;
}

static int setup(void **unused)
{
	(void)unused;
	for (unsigned i = 0; i < ARRAY_SIZE(states); i++)
		memset(states[i], (int)(i + 1), sizeof(states[i]));
	fd = memfd_create("redo", MFD_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, AREA_BYTES), 0);
	redo = open_area(&owner);
	return 0;
}

static int teardown(void **unused)
{
	(void)unused;
	redo = redo_close(redo);
	close(fd);
	return 0;
}

/* What the next process finds. */
static enum redo_finding look(const void *state, uint64_t *ret_nr)
{
	struct redo *next = open_area(&owner);
	enum redo_finding finding = redo_look(next, state, ret_nr);

	redo_close(next);
	return finding;
}

static bool finds(const void *state, enum redo_finding finding, uint64_t nr)
{
	uint64_t found;

	return look(state, &found) == finding && found == nr;
}

static void append_some(unsigned nr)
{
	for (unsigned i = 0; i < nr; i++)
		redo_append(redo, &some[i % ARRAY_SIZE(some)]);
}

/* ------------------------------------------------------------------ what it is for */

static void an_empty_file_becomes_an_area(void **unused)
{
	int empty = memfd_create("redo", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct redo *new;
	struct stat st;
	uint64_t nr;

	(void)unused;
	assert_int_equal(redo_open(empty, &owner, &new), 0);
	assert_int_equal(redo_look(new, states[0], &nr), REDO_BLANK);
	assert_int_equal(nr, 0);
	assert_int_equal(fstat(empty, &st), 0);
	assert_int_equal(st.st_size, REDO_BYTES);
	assert_int_equal(ftruncate(empty, 0), -1); /* nobody takes it away */
	redo_close(new);
	close(empty);
}

static void a_file_that_is_too_small_is_refused(void **unused)
{
	int small = memfd_create("redo", MFD_CLOEXEC);
	struct redo *new;

	(void)unused;
	assert_int_equal(ftruncate(small, HEADER_BYTES), 0);
	assert_int_equal(redo_open(small, &owner, &new), -EINVAL);
	close(small);
}

static void records_of_every_kind_come_back(void **unused)
{
	struct redo_record record;
	struct redo *next;
	uint64_t nr;

	(void)unused;
	redo_begin(redo, states[0]);
	append_some(ARRAY_SIZE(some));
	next = open_area(&owner);
	assert_int_equal(redo_look(next, states[0], &nr), REDO_GOOD);
	assert_int_equal(nr, ARRAY_SIZE(some));
	for (unsigned i = 0; i < nr; i++) {
		assert_int_equal(redo_get(next, i, &record), 0);
		assert_int_equal(record.type, some[i].type);
		assert_int_equal(record.volume, some[i].volume);
		assert_int_equal(record.vblock, some[i].vblock);
		assert_int_equal(record.nr, some[i].nr);
		assert_int_equal(record.dblock, some[i].dblock);
	}
	assert_int_equal(redo_get(next, nr, &record), -EUCLEAN);
	redo_close(next);
}

static void the_state_on_the_device_says_which_half_counts(void **unused)
{
	(void)unused;
	redo_begin(redo, states[0]);
	append_some(3);
	redo_begin(redo, states[1]); /* a commit is about to write its superblock */
	append_some(1);
	assert_true(finds(states[0], REDO_GOOD, 3));
	assert_true(finds(states[1], REDO_GOOD, 1));
}

static void what_was_committed_is_not_found_again(void **unused)
{
	(void)unused;
	redo_begin(redo, states[0]);
	append_some(3);
	redo_begin(redo, states[1]);
	redo_begin(redo, states[2]);
	assert_true(finds(states[2], REDO_GOOD, 0));
	assert_true(finds(states[0], REDO_OLD, 0));
}

/* A commit that fails leaves the state as it is: both halves build on it, and the new one counts.
 */
static void of_two_halves_for_one_state_the_later_counts(void **unused)
{
	(void)unused;
	redo_begin(redo, states[0]);
	append_some(3);
	redo_begin(redo, states[0]);
	append_some(1);
	assert_true(finds(states[0], REDO_GOOD, 1));
}

/* The one that a commit had begun which did not get as far as its superblock. */
static void a_half_found_first_is_not_begun_again(void **unused)
{
	struct redo *next;
	uint64_t nr;

	(void)unused;
	redo_begin(redo, states[0]);
	append_some(3);
	redo_begin(redo, states[1]);
	next = open_area(&owner);
	assert_int_equal(redo_look(next, states[0], &nr), REDO_GOOD);
	redo_begin(next, states[2]);
	assert_true(finds(states[0], REDO_GOOD, 3));
	assert_true(finds(states[2], REDO_GOOD, 0));
	redo_close(next);
}

static void a_cleared_area_says_nothing(void **unused)
{
	(void)unused;
	redo_begin(redo, states[0]);
	append_some(3);
	redo_begin(redo, states[1]);
	redo_clear(redo);
	assert_true(finds(states[1], REDO_BLANK, 0));
}

/* ------------------------------------------------------------------ not to be used */

static void of_another_boot_or_pool_it_is_alien(void **unused)
{
	struct redo_owner other = owner;
	struct redo *next;
	uint64_t nr;

	(void)unused;
	redo_begin(redo, states[0]);
	append_some(3);
	other.boot_id[0] = 'b';
	next = open_area(&other);
	assert_int_equal(redo_look(next, states[0], &nr), REDO_ALIEN);
	redo_close(next);
	for (unsigned i = 0; i < ARRAY_SIZE(other.devices); i++) {
		other = owner;
		other.devices[i]++;
		next = open_area(&other);
		assert_int_equal(redo_look(next, states[0], &nr), REDO_ALIEN);
		redo_close(next);
	}
}

static void records_for_a_state_that_is_gone_are_orphans(void **unused)
{
	(void)unused;
	redo_begin(redo, states[0]);
	append_some(1);
	assert_true(finds(states[1], REDO_ORPHAN, 0));
	/* One byte of a superblock is enough. */
	states[0][THIN_STATE_BYTES - 1]++;
	assert_true(finds(states[0], REDO_ORPHAN, 0));
}

static void without_records_another_state_is_only_old(void **unused)
{
	(void)unused;
	redo_begin(redo, states[0]);
	assert_true(finds(states[1], REDO_OLD, 0));
}

static void any_damaged_byte_is_noticed(void **unused)
{
	unsigned used = HEADER_BYTES + 3 * RECORD_BYTES, header = THIN_STATE_BYTES + 200;
	uint8_t *map = mmap(NULL, AREA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	unsigned noticed = 0;
	uint64_t nr;

	(void)unused;
	redo_begin(redo, states[0]); /* half 1: of two blank ones the first is the present one */
	append_some(3);
	for (unsigned i = 0; i < used; i++) {
		uint8_t *byte = map + HALF_BYTES + i;
		enum redo_finding finding;

		if (i >= header && i < HEADER_BYTES)
			continue; /* between them is nothing */
		*byte ^= 1u << i % 8;
		finding = look(states[0], &nr);
		*byte ^= 1u << i % 8;
		if (finding == REDO_GOOD)
			assert_true(i >= THIN_STATE_BYTES); /* behind the count: padding */
		else
			noticed++;
		assert_int_equal(nr, finding == REDO_GOOD ? 3 : 0);
		assert_true(finding == REDO_GOOD || finding == REDO_DAMAGED);
	}
	/* The state, who it belongs to, three records: none of these is padding. */
	assert_true(noticed >= THIN_STATE_BYTES + sizeof(owner) + 3 * RECORD_BYTES + 40);
	assert_true(finds(states[0], REDO_GOOD, 3));
	munmap(map, AREA_BYTES);
}

static void damage_beside_a_half_that_builds_on_another_state_is_not_overlooked(void **unused)
{
	uint8_t *map = mmap(NULL, AREA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	(void)unused;
	redo_begin(redo, states[0]);
	redo_begin(redo, states[1]);
	append_some(2);
	map[100] ^= 1; /* half 0 */
	assert_true(finds(states[1], REDO_DAMAGED, 0));
	munmap(map, AREA_BYTES);
}

static void records_of_an_earlier_use_are_not_taken_for_present_ones(void **unused)
{
	uint8_t *map = mmap(NULL, AREA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	uint8_t old[RECORD_BYTES];

	(void)unused;
	redo_begin(redo, states[0]);
	append_some(1);
	memcpy(old, map + HALF_BYTES + HEADER_BYTES, sizeof(old));
	redo_begin(redo, states[1]);
	redo_begin(redo, states[2]);
	append_some(1);
	assert_true(finds(states[2], REDO_GOOD, 1));
	memcpy(map + HALF_BYTES + HEADER_BYTES, old, sizeof(old));
	assert_true(finds(states[2], REDO_DAMAGED, 0));
	munmap(map, AREA_BYTES);
}

static void a_file_that_was_cut_is_damaged(void **unused)
{
	int cut = memfd_create("redo", MFD_CLOEXEC);
	uint8_t *bytes = malloc(AREA_BYTES);
	struct redo *next;
	uint64_t nr;

	(void)unused;
	redo_begin(redo, states[0]);
	redo_begin(redo, states[1]);
	append_some(1);
	assert_int_equal(pread(fd, bytes, AREA_BYTES, 0), AREA_BYTES);
	assert_int_equal(write(cut, bytes, AREA_BYTES - 4096), AREA_BYTES - 4096);
	assert_int_equal(redo_open(cut, &owner, &next), 0);
	assert_int_equal(redo_look(next, states[1], &nr), REDO_DAMAGED);
	redo_close(next);
	close(cut);
	free(bytes);
}

static void a_full_area_says_so(void **unused)
{
	(void)unused;
	redo_begin(redo, states[0]);
	for (unsigned i = 0; i < CAPACITY; i++) {
		assert_true(redo_has_room(redo));
		append_some(1);
	}
	assert_false(redo_has_room(redo));
	assert_true(finds(states[0], REDO_GOOD, CAPACITY));
	redo_begin(redo, states[1]);
	assert_true(redo_has_room(redo));
}

static void what_finds_no_room_is_found_missing(void **unused)
{
	(void)unused;
	redo_begin(redo, states[0]);
	append_some(CAPACITY + 1);
	assert_true(finds(states[0], REDO_DAMAGED, 0));
	assert_false(redo_has_room(redo));
}

/* ------------------------------------------------------------------ killed anywhere */

struct progress {
	atomic_uint begun, done;
};

/* The story of a writer; the number of a step is what progress says. */
static void write_story(struct progress *p)
{
	unsigned step = 0;

#define STEP(call) \
	atomic_store(&p->begun, ++step); \
	call; \
	atomic_store(&p->done, step)

	STEP(append_some(1));
	STEP(append_some(1));
	STEP(redo_begin(redo, states[1]));
	STEP(append_some(1));
	STEP(redo_begin(redo, states[2]));
	STEP(redo_clear(redo));
#undef STEP
}

/* @begun and @done of the story's steps: what may be found? */
static void check_story(unsigned begun, unsigned done)
{
	enum redo_finding finding;
	uint64_t nr;

	if (begun < 5) { /* state 0 may be on the device */
		assert_int_equal(look(states[0], &nr), REDO_GOOD);
		assert_true(nr >= MIN(done, 2) && nr <= MIN(begun, 2));
	}
	if (done >= 3 && begun < 6) { /* state 1 may be */
		assert_int_equal(look(states[1], &nr), REDO_GOOD);
		assert_true(nr >= (done >= 4) && nr <= (begun >= 4));
	}
	if (done >= 5) {
		finding = look(states[2], &nr);
		assert_true(finding == REDO_GOOD || (begun == 6 && finding == REDO_BLANK));
		assert_int_equal(nr, 0);
	}
}

/* Nothing was recorded, somebody else had the pool, and the area is begun anew. */
static void write_anew(struct progress *p)
{
	atomic_store(&p->begun, 1);
	redo_begin(redo, states[2]);
	atomic_store(&p->done, 1);
}

static void check_anew(unsigned begun, unsigned done)
{
	uint64_t nr;
	enum redo_finding finding = look(states[2], &nr);

	assert_int_equal(nr, 0);
	assert_true(done ? finding == REDO_GOOD
			 : finding == REDO_OLD || (begun && finding == REDO_GOOD));
}

/* A tracer stops the writer behind each instruction, and looks as the next process would. */
static unsigned trace(void (*write_it)(struct progress *p),
		      void (*check)(unsigned begun, unsigned done))
{
	struct progress *p =
		mmap(NULL, sizeof(*p), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	unsigned long steps = 0;
	unsigned done;
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) || raise(SIGSTOP))
			_exit(1);
		write_it(p);
		kill(getpid(), SIGKILL);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	while (WIFSTOPPED(status)) {
		check(atomic_load(&p->begun), atomic_load(&p->done));
		assert_int_equal(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL), 0);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		steps++;
	}
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	assert_true(steps > 300);
	print_message("# %lu instructions\n", steps);
	done = atomic_load(&p->done);
	munmap(p, sizeof(*p));
	return done;
}

static void killed_between_any_two_instructions_it_is_whole(void **unused)
{
	(void)unused;
	redo_begin(redo, states[0]);
	assert_int_equal(trace(write_story, check_story), 6);
}

static void so_it_is_when_it_is_begun_anew(void **unused)
{
	(void)unused;
	redo_begin(redo, states[0]);
	redo_begin(redo, states[1]);
	assert_int_equal(trace(write_anew, check_anew), 1);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(an_empty_file_becomes_an_area),
		T(a_file_that_is_too_small_is_refused),
		T(records_of_every_kind_come_back),
		T(the_state_on_the_device_says_which_half_counts),
		T(what_was_committed_is_not_found_again),
		T(of_two_halves_for_one_state_the_later_counts),
		T(a_half_found_first_is_not_begun_again),
		T(a_cleared_area_says_nothing),
		T(of_another_boot_or_pool_it_is_alien),
		T(records_for_a_state_that_is_gone_are_orphans),
		T(without_records_another_state_is_only_old),
		T(any_damaged_byte_is_noticed),
		T(damage_beside_a_half_that_builds_on_another_state_is_not_overlooked),
		T(records_of_an_earlier_use_are_not_taken_for_present_ones),
		T(a_file_that_was_cut_is_damaged),
		T(a_full_area_says_so),
		T(what_finds_no_room_is_found_missing),
		T(killed_between_any_two_instructions_it_is_whole),
		T(so_it_is_when_it_is_begun_anew),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("redo", tests, NULL, NULL);
}
