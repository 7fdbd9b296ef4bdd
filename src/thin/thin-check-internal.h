/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-check-internal.h - the state of one run of the checker
 *
 *   thin-check.c        superblocks, devices, the order of things
 *   thin-check-report.c findings and the names of places
 *   thin-check-read.c   blocks from the device, many at a time
 *   thin-check-refs.c   who is referred to how often
 *   thin-check-tree.c   B-trees
 *   thin-check-maps.c   space maps, and comparing them with the references
 *
 * Layer:    thin; private to the checker.
 * Threads:  one.
 * Errors:   0 or a negative errno for what keeps the check from being done; what is
 *           wrong on the disk is a finding.
 */
#ifndef TP_THIN_THIN_CHECK_INTERNAL_H
#define TP_THIN_THIN_CHECK_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/io-queue.h"
#include "thin/thin-check.h"
#include "thinpoold/disk-format.h"
#include "thinpoold/types.h"
#include "util/compiler.h"
#include "util/lock-class.h"

/* What a block is, known from who refers to it.  0: nobody has yet. */
enum block_kind {
	KIND_UNSEEN,
	KIND_SUPERBLOCK,
	KIND_SNAPSHOT, /* the superblock of the metadata snapshot */
	KIND_TOP,      /* nodes: device id -> root of its mappings */
	KIND_MAPPING,
	KIND_DETAILS,
	KIND_DATA_INDEX,
	KIND_DATA_COUNTS,
	KIND_METADATA_COUNTS,
	KIND_METADATA_INDEX, /* the index block */
	KIND_DATA_BITMAP,
	KIND_METADATA_BITMAP,
	NR_KINDS,
};

/* ---- where something was found ---- */

struct place {
	enum block_kind kind;
	mblock_t block;
	uint64_t device; /* of KIND_MAPPING */
	bool is_leaf;
	bool of_snapshot; /* reached from the metadata snapshot */
};

#define PLACE_TEXT 128

/* ---- reading ---- */

/* Reads in flight at once: enough to keep a disk's queue full, little memory. */
#define BATCH_MAX 64u

/* Blocks that are read together; sorted by batch_read(). */
struct batch {
	uint8_t *buffer; /* BATCH_MAX blocks, allocated at the first use */
	unsigned nr;
	mblock_t block[BATCH_MAX];
	uint16_t owner[BATCH_MAX]; /* the caller's */
};

/* ---- references ---- */

/* uint64_t -> uint64_t, growing. */
struct number_map {
	uint64_t *slots; /* pairs: key + 1, value */
	size_t nr, nr_slots;
};

/* A divisor of the entries of a bitmap, so that no page straddles two. */
#define DATA_PAGE_ENTRIES 960u
_Static_assert(ENTRIES_PER_BITMAP % DATA_PAGE_ENTRIES == 0 && DATA_PAGE_ENTRIES % 4 == 0,
	       "pages fit into bitmaps");

/* A byte of a page: references up to DATA_REFS_MANY, which stands for "see data_many". */
#define DATA_REFS_MANY 0x7fu
#define DATA_REFS_IN_TREE 0x80u /* the ref count tree has an entry */

/* What is remembered of a node whose subtree was walked. */
struct node_memo {
	uint64_t min_key, max_key; /* of all nodes of the subtree; nothing if @empty */
	uint64_t nr_values;        /* in its leaves */
	uint32_t max_time;         /* of its mappings */
	uint8_t height;            /* 1: a leaf; 0: not known */
	bool empty : 1;
	bool complete : 1;  /* nothing is missing below, and no finding */
	bool underfull : 1; /* too few entries for a node that is no root */
};

enum block_state {
	BLOCK_OPEN, /* its subtree is being walked */
	BLOCK_DONE,
	BLOCK_BAD, /* cannot be used; reported */
};

#define NO_MEMO 0u

struct device_entry {
	uint64_t id;
	uint64_t nr_mappings;
	bool complete, has_details;
};

struct metadata_count {
	uint64_t block;
	uint32_t count;
};

/* What a map says against what was seen; neighbours with the same difference are one finding. */
struct count_compare {
	const char *what;        /* "data", "metadata" */
	uint64_t nr_blocks;      /* in the map */
	uint64_t nr_allocated;   /* of these, according to the bitmaps */
	uint64_t begin, end;     /* the run of blocks that is open, if any ... */
	uint64_t recorded, used; /* ... each with these counts */
	uint64_t nr_hidden;      /* blocks that may be used by what is hidden */
	bool counts_complete;    /* the whole ref count tree was read */
};

struct check {
	struct io_device *dev;
	const struct thin_check_options *options;
	struct thin_check_result result;
	struct io_queue *queue;
	struct batch batch; /* for what is no tree */
	uint64_t nr_read, nr_reported;
	enum thin_check_severity worst_unreported;

	struct thin_disk_superblock *superblock, *snapshot;
	uint32_t clock;          /* of the superblock whose trees are being walked */
	dblock_t nr_data_blocks; /* at most DATA_BLOCK_LIMIT */
	mblock_t nr_device_blocks, nr_metadata_blocks;

	/* Of each metadata block that the metadata map describes and the device has. */
	mblock_t nr_blocks;
	uint8_t *refs;  /* UINT8_MAX: see @many */
	uint8_t *kinds; /* enum block_kind | enum block_state << 4 */
	uint32_t *memo; /* index into @memos */
	struct number_map many;
	struct node_memo *memos;
	size_t nr_memos, max_memos;
	/* 2-bit counts as they lie in the bitmaps, which follow each other. */
	uint8_t *metadata_bits;
	bool has_bitmap[MAX_METADATA_BITMAPS];
	struct metadata_count *metadata_counts;
	size_t nr_metadata_counts, max_metadata_counts;

	/* Of each data block: pages of DATA_PAGE_ENTRIES bytes, in chunks. */
	struct number_map data_pages; /* number of the page -> its address */
	uint8_t **chunks;
	size_t nr_chunks, nr_pages;
	uint64_t last_page_nr;
	uint8_t *last_page;
	struct number_map data_many;

	/* Some blocks may be referred to from where damage keeps us from looking. */
	bool hidden;
	struct count_compare compare;
	uint64_t next_bitmap;

	/* Devices of the superblock at hand. */
	struct device_entry *devices;
	size_t nr_devices, max_devices;
	bool devices_complete; /* the whole list could be read */
};

/* ---- thin-check-report.c ---- */

/* A finding; @fmt makes the line. */
void finding(struct check *c, enum thin_check_severity severity, const char *fmt, ...)
	TP_PRINTF(3, 4);
/* The same, "PLACE: ..." */
void finding_at(struct check *c, const struct place *place, const char *fmt, ...) TP_PRINTF(3, 4);
const char *kind_text(enum block_kind kind);
/* "... and N more" */
void findings_end(struct check *c);

/* ---- thin-check-read.c ---- */

/* @b->block[0..nr) are read to the buffer, in rising order. */
int batch_read(struct check *c, struct batch *b) TP_TAKES(bufio) TP_MUST_CHECK;
static inline const void *batch_block(const struct batch *b, unsigned i)
{
	return b->buffer + (size_t)i * METADATA_BLOCK_SIZE;
}
/* One block; valid until the next call, or use of c->batch. */
int read_block(struct check *c, mblock_t block, const void **ret_data)
	TP_TAKES(bufio) TP_MUST_CHECK;
/* Checksum and own location; a finding if they are wrong. */
bool block_is_intact(struct check *c, const struct place *place, const void *data);

/* ---- thin-check-refs.c ---- */

int number_map_get(const struct number_map *m, uint64_t key, uint64_t *ret_value);
int number_map_set(struct number_map *m, uint64_t key, uint64_t value) TP_MUST_CHECK;
void number_map_free(struct number_map *m);

/* Make room for one more in a growing array. */
int array_grow(void *array, size_t nr, size_t *max, size_t size) TP_MUST_CHECK;

enum arrival {
	ARRIVE_FIRST,
	ARRIVE_AGAIN,  /* as the same kind */
	ARRIVE_REFUSED /* reported: out of range, or of another kind */
};
/* @from refers to @block as a @kind; @counted: this pointer is seen for the first time. */
int refer(struct check *c, const struct place *from, mblock_t block, enum block_kind kind,
	  bool counted, enum arrival *ret_arrival) TP_MUST_CHECK;
uint64_t metadata_refs(const struct check *c, mblock_t block);

static inline enum block_kind block_kind(const struct check *c, mblock_t block)
{
	return c->kinds[block] & 0xf;
}

static inline enum block_state block_state(const struct check *c, mblock_t block)
{
	return c->kinds[block] >> 4;
}

static inline void set_block_state(struct check *c, mblock_t block, enum block_state state)
{
	c->kinds[block] = (uint8_t)(block_kind(c, block) | state << 4);
}

int data_refs_add(struct check *c, dblock_t block) TP_MUST_CHECK;
/* Remember that the ref count tree has an entry; @ret_refs: the references. */
int data_refs_mark(struct check *c, dblock_t block, uint64_t *ret_refs) TP_MUST_CHECK;
/* The page's bytes, NULL if nothing in it is referred to. */
const uint8_t *data_refs_page(struct check *c, uint64_t page_nr);
uint64_t data_refs_value(const struct check *c, dblock_t block, uint8_t byte);
void refs_free(struct check *c);

/* ---- thin-check-tree.c ---- */

/* Walk the tree at @root of @from, a superblock.  @ret_complete: all of it could be read. */
int walk_tree(struct check *c, const struct place *from, enum block_kind kind, mblock_t root,
	      bool *ret_complete) TP_TAKES(bufio) TP_MUST_CHECK;

/* ---- thin-check-maps.c ---- */

/* Index and bitmaps of the metadata map, to know what is shared. */
int metadata_map_load(struct check *c) TP_TAKES(bufio) TP_MUST_CHECK;
/* Its ref count tree, then all counts against the references. */
int metadata_map_compare(struct check *c) TP_TAKES(bufio) TP_MUST_CHECK;
int data_map_compare(struct check *c) TP_TAKES(bufio) TP_MUST_CHECK;

/* The 2-bit count of a metadata block, 0 if not known. */
unsigned metadata_recorded(const struct check *c, mblock_t block);

/* From the walks: entries of the trees. */
void data_index_entry(struct check *c, const struct place *at, uint64_t bitmap_nr,
		      const struct disk_index_entry *entry, const void *bitmap);
int count_entry(struct check *c, const struct place *at, uint64_t block,
		uint32_t count) TP_MUST_CHECK;

/* ---- thin-check.c ---- */

int device_found(struct check *c, const struct place *at, uint64_t id,
		 const struct node_memo *memo) TP_MUST_CHECK;
void device_details(struct check *c, const struct place *at, uint64_t id,
		    const struct disk_device_details *details);

#endif
