/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * redo.c - the redo area: layout, checksums, and the order of stores
 *
 *	half 0: header | count | record 0, 1, 2 ...      half 1: the same
 *
 * The process may be killed between any two instructions; what it has stored by then is what the
 * next one sees.  So everything becomes valid by one store, the last: a record by that of the
 * count behind it, a half by that of its first count.  (Threads of this process do not look at it,
 * so all it takes to have the stores in order is a release store.)
 *
 * Invariants
 *   1  a count is stored together with its checksum, in one word;
 *   2  the checksums of count and records are those of a half's sequence number and of their place:
 *      what an earlier use of the half has left there is not taken for anything;
 *   3  the half that builds on the superblock on the device is never the one being rewritten:
 *      between two redo_begin() there is a superblock, or nothing that was acknowledged.
 */
#define LOG_MODULE "redo"
#include "pool/redo.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/crc32c.h"
#include "util/log.h"

#define AREA_MAGIC UINT64_C(0x6f646572706874)
#define AREA_VERSION 1u
#define HEADER_BYTES 8192u
#define MIN_RECORDS 16u

struct half_header {
	_Atomic uint64_t magic;
	uint32_t version;
	uint32_t crc; /* of what follows, but for the count */
	uint64_t sequence;
	uint64_t capacity; /* records */
	struct redo_owner owner;
	uint8_t state[THIN_STATE_BYTES];
	_Atomic uint64_t count; /* checksum << 32 | records */
};

struct area_record {
	uint32_t crc;
	uint32_t type_volume; /* type << 24 | volume */
	uint64_t vblock, nr, dblock;
};

_Static_assert(sizeof(struct half_header) <= HEADER_BYTES, "records follow");
_Static_assert(sizeof(struct area_record) == 32, "there are no gaps");
_Static_assert(THIN_ID_MAX < 1u << 24, "an id has room beside the type");

struct redo {
	uint8_t *map;
	uint64_t map_bytes, half_bytes, capacity;
	struct redo_owner owner;
	unsigned current;  /* half that records go to, or were found in */
	uint64_t sequence; /* of that half */
	uint64_t count;    /* records in it */
	uint64_t highest;  /* sequence in the area */
};

/* ---- places and checksums ---- */

static struct half_header *half(const struct redo *redo, unsigned i)
{
	return (struct half_header *)(void *)(redo->map + i * redo->half_bytes);
}

static struct area_record *place(const struct redo *redo, unsigned i, uint64_t record)
{
	return (struct area_record *)(void *)(redo->map + i * redo->half_bytes + HEADER_BYTES) +
	       record;
}

static uint32_t seed(uint64_t sequence, uint64_t place)
{
	const uint64_t words[2] = { sequence, place };

	return crc32c_raw(0xffffffff, words, sizeof(words));
}

static uint32_t record_crc(const struct area_record *ar, uint64_t sequence, uint64_t place)
{
	const uint8_t *from = (const uint8_t *)&ar->type_volume;

	return crc32c_raw(seed(sequence, place), from, sizeof(*ar) - sizeof(ar->crc));
}

static uint64_t count_word(uint64_t sequence, uint64_t count)
{
	return (uint64_t)seed(~sequence, count) << 32 | count;
}

static uint32_t header_crc(const struct half_header *h)
{
	const size_t from = offsetof(struct half_header, sequence);

	return crc32c_raw(0xffffffff, (const uint8_t *)h + from,
			  offsetof(struct half_header, count) - from);
}

/* ---- life ---- */

static void identify(uint64_t *ret_words, const char *path)
{
	struct stat st;

	if (stat(path, &st))
		return; /* a device in memory */
	ret_words[0] = st.st_dev;
	ret_words[1] = st.st_ino;
	ret_words[2] = st.st_rdev;
}

void redo_find_owner(struct redo_owner *ret_owner, const char *metadata_path, const char *data_path)
{
	FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");

	memset(ret_owner, 0, sizeof(*ret_owner));
	if (f && !fgets(ret_owner->boot_id, sizeof(ret_owner->boot_id), f))
		ret_owner->boot_id[0] = '\0';
	if (f)
		fclose(f);
	identify(ret_owner->devices, metadata_path);
	identify(ret_owner->devices + 3, data_path);
}

/* Memory that cannot be had is found missing here, not by a signal when it is written to. */
static int prepare_file(int fd, uint64_t *ret_bytes)
{
	struct stat st;
	int r;

	if (fstat(fd, &st))
		return -errno;
	if (!st.st_size && ftruncate(fd, REDO_BYTES))
		return -errno;
	*ret_bytes = st.st_size ? (uint64_t)st.st_size : REDO_BYTES;
	if (*ret_bytes < 2 * (HEADER_BYTES + MIN_RECORDS * sizeof(struct area_record)))
		return -EINVAL;
	r = -posix_fallocate(fd, 0, (off_t)*ret_bytes);
	if (r)
		return r;
	/* Nobody makes a memfd smaller under us; anything else cannot be sealed. */
	(void)fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK);
	return 0;
}

int redo_open(int fd, const struct redo_owner *owner, struct redo **ret_redo)
{
	struct redo *redo;
	uint64_t bytes = 0;
	void *map;
	int r;

	r = prepare_file(fd, &bytes);
	if (r)
		return r;
	map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return -errno;
	redo = calloc(1, sizeof(*redo));
	if (!redo) {
		munmap(map, bytes);
		return -ENOMEM;
	}
	redo->map = map;
	redo->map_bytes = bytes;
	redo->half_bytes = bytes / 2 / 64 * 64;
	redo->capacity = (redo->half_bytes - HEADER_BYTES) / sizeof(struct area_record);
	if (redo->capacity > UINT32_MAX)
		redo->capacity = UINT32_MAX;
	redo->owner = *owner;
	*ret_redo = redo;
	return 0;
}

struct redo *redo_close(struct redo *redo)
{
	if (!redo)
		return NULL;
	munmap(redo->map, redo->map_bytes);
	free(redo);
	return NULL;
}

/* ---- reading ---- */

struct half_look {
	bool blank, sane, ours, matches, counted;
	uint64_t sequence, count;
};

static struct half_look look_at_half(struct redo *redo, unsigned i, const void *state)
{
	const struct half_header *h = half(redo, i);
	uint64_t word = atomic_load(&h->count);
	struct half_look look = { .blank = !h->magic };

	look.sane = h->magic == AREA_MAGIC && h->version == AREA_VERSION &&
		    h->capacity == redo->capacity && h->crc == header_crc(h);
	if (!look.sane)
		return look;
	look.sequence = h->sequence;
	look.count = word & UINT32_MAX;
	look.counted = word == count_word(h->sequence, look.count) && look.count <= h->capacity;
	look.ours = !memcmp(&h->owner, &redo->owner, sizeof(h->owner));
	look.matches = look.ours && !memcmp(h->state, state, sizeof(h->state));
	return look;
}

static int read_record(const struct redo *redo, unsigned i, uint64_t sequence, uint64_t n,
		       struct redo_record *ret)
{
	struct area_record ar;

	memcpy(&ar, place(redo, i, n), sizeof(ar)); /* what is checked is what is used */
	if (ar.crc != record_crc(&ar, sequence, n))
		return -EUCLEAN;
	*ret = (struct redo_record){
		.type = (enum redo_type)(ar.type_volume >> 24),
		.volume = ar.type_volume & THIN_ID_MAX,
		.vblock = ar.vblock,
		.nr = ar.nr,
		.dblock = ar.dblock,
	};
	return 0;
}

/* All or nothing: what lies behind a hole in the story could be read the wrong way. */
static enum redo_finding check_records(struct redo *redo, unsigned i, const struct half_look *look,
				       uint64_t *ret_nr)
{
	struct redo_record record;

	if (!look->counted)
		return REDO_DAMAGED;
	for (uint64_t n = 0; n < look->count; n++)
		if (read_record(redo, i, look->sequence, n, &record))
			return REDO_DAMAGED;
	redo->count = look->count;
	*ret_nr = look->count;
	return REDO_GOOD;
}

enum redo_finding redo_look(struct redo *redo, const void *state, uint64_t *ret_nr)
{
	const struct half_look looks[2] = { look_at_half(redo, 0, state),
					    look_at_half(redo, 1, state) };
	/* The one begun last; one that is being begun does not count yet. */
	const unsigned last = looks[1].sequence > looks[0].sequence;
	const struct half_look *l = &looks[last];

	*ret_nr = 0;
	redo->current = last;
	redo->sequence = redo->highest = l->sequence;
	redo->count = 0;
	if (!l->sane)
		return looks[0].blank && looks[1].blank ? REDO_BLANK : REDO_DAMAGED;
	if (!l->ours)
		return REDO_ALIEN;
	if (l->matches)
		return check_records(redo, last, l, ret_nr);
	if (looks[!last].matches) {
		/* The commit that began the last one did not get as far as its superblock. */
		redo->current = !last;
		redo->sequence = looks[!last].sequence;
		return check_records(redo, !last, &looks[!last], ret_nr);
	}
	if (!looks[!last].sane && !looks[!last].blank)
		return REDO_DAMAGED;
	return l->counted && !l->count ? REDO_OLD : REDO_ORPHAN;
}

int redo_get(const struct redo *redo, uint64_t i, struct redo_record *ret_record)
{
	if (i >= redo->count)
		return -EUCLEAN;
	return read_record(redo, redo->current, redo->sequence, i, ret_record);
}

/* ---- writing ---- */

static void store_count(struct redo *redo, uint64_t count)
{
	atomic_store_explicit(&half(redo, redo->current)->count, count_word(redo->sequence, count),
			      memory_order_release);
	redo->count = count;
}

void redo_begin(struct redo *redo, const void *state)
{
	struct half_header *h;

	redo->current = !redo->current;
	redo->sequence = ++redo->highest;
	h = half(redo, redo->current);

	/* Without its magic number a half is blank. */
	atomic_store_explicit(&h->magic, 0, memory_order_relaxed);
	atomic_thread_fence(memory_order_release);
	h->version = AREA_VERSION;
	h->sequence = redo->sequence;
	h->capacity = redo->capacity;
	h->owner = redo->owner;
	memcpy(h->state, state, sizeof(h->state));
	h->crc = header_crc(h);
	store_count(redo, 0);
	atomic_store_explicit(&h->magic, AREA_MAGIC, memory_order_release);
}

void redo_clear(struct redo *redo)
{
	/* The older one first: what is left for a moment says what the device says. */
	atomic_store_explicit(&half(redo, !redo->current)->magic, 0, memory_order_release);
	atomic_store_explicit(&half(redo, redo->current)->magic, 0, memory_order_release);
	redo->count = 0;
}

bool redo_has_room(const struct redo *redo)
{
	return redo->count < redo->capacity;
}

void redo_append(struct redo *redo, const struct redo_record *record)
{
	struct area_record *ar = place(redo, redo->current, redo->count);

	if (!redo_has_room(redo)) {
		redo_spoil(redo);
		return;
	}
	ar->type_volume = (uint32_t)record->type << 24 | record->volume;
	ar->vblock = record->vblock;
	ar->nr = record->nr;
	ar->dblock = record->dblock;
	ar->crc = record_crc(ar, redo->sequence, redo->count);
	store_count(redo, redo->count + 1);
}

void redo_spoil(struct redo *redo)
{
	atomic_store_explicit(&half(redo, redo->current)->count, 0, memory_order_release);
	redo->count = redo->capacity;
}
