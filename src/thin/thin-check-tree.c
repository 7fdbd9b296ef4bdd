/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-check-tree.c - B-trees: every node once, every path
 *
 * Depth first, with a stack of frames instead of recursion.  The unread children of a node are
 * read together (at most BATCH_MAX), and their content stays in the batch of their parent's
 * frame while they are on the stack.
 *
 * A node may have several parents.  It is descended into at the first arrival only, and leaves a
 * memo of its subtree (least and greatest key, height, number of values); at later arrivals the
 * memo says whether the subtree fits there too.  So time is linear in the number of distinct
 * nodes, however many volumes share them.  Memos are kept only where a second arrival is
 * legal: nodes that the metadata map counts more than once, roots of devices, and the top-level
 * and details trees.  A second arrival without one is a wrong count, which is found elsewhere.
 *
 * The two small trees may be shared between the superblock and the metadata snapshot, each of
 * which needs the list of its devices: there a second arrival is descended into again, without
 * counting.  This is at most one more walk: within a walk key ranges are disjoint, so that a
 * node which fits into one does not fit into another.
 *
 * Roots of devices hang on leaves of the top-level tree, bitmaps on leaves of the data index
 * tree: both are walked like children, in the same stack.
 *
 * Bounds on damaged metadata: a node that is still on the stack is not entered (a cycle), no
 * tree is entered deeper than MAX_HEIGHT, and no block is read that cannot be referred to.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "thin/thin-check-internal.h"
#include "util/le.h"

/* With at least 84 children a node, 4161600 blocks make less than 5 levels and a root. */
#define MAX_HEIGHT 8u
#define MAX_FRAMES (2 * MAX_HEIGHT) /* top-level tree, then a device's */
#define MAX_CHILDREN NODE_MAX_ENTRIES(8)
#define NO_SLOT 0xffu

_Static_assert(BATCH_MAX < NO_SLOT, "slots fit a byte");

/* What a pointer promises about the node it leads to. */
struct expectation {
	struct place from, at;
	uint64_t first, last; /* keys, both inclusive */
	const void *data;     /* content, if it was read */
	bool is_root, counted;
	bool trusted;    /* all bounds on the way here were sound */
	unsigned height; /* below the root, which is 1 */
};

struct frame {
	struct expectation e;
	const struct disk_node_header *node;
	unsigned nr, value_size;
	bool ordered;                     /* its keys are: bounds for children make sense */
	bool trusted;                     /* and so were all above */
	unsigned nr_children, next, read; /* children below @read are in the batch, if needed */
	struct node_memo memo;
	struct batch batch;
	uint8_t slot[MAX_CHILDREN]; /* of each child in the batch, or NO_SLOT */
};

struct walk {
	struct check *c;
	unsigned nr_frames;
	struct frame frames[MAX_FRAMES];
	struct node_memo result; /* of the whole */
};

/* ---- access to nodes ---- */

static uint64_t node_key(const struct frame *f, unsigned i)
{
	const struct le64 *keys = (const void *)(f->node + 1);

	return le64_get(keys[i]);
}

static const void *node_value(const struct frame *f, unsigned i)
{
	size_t keys = (size_t)NODE_MAX_ENTRIES(f->value_size) * sizeof(struct le64);

	return (const uint8_t *)(f->node + 1) + keys + (size_t)i * f->value_size;
}

/* Every child pointer is the first thing in its value. */
static mblock_t node_child(const struct frame *f, unsigned i)
{
	const struct le64 *pointer = node_value(f, i);

	return le64_get(*pointer);
}

static uint32_t leaf_value_size(enum block_kind kind)
{
	switch (kind) {
	case KIND_DETAILS:
		return sizeof(struct disk_device_details);
	case KIND_DATA_INDEX:
		return sizeof(struct disk_index_entry);
	case KIND_DATA_COUNTS:
	case KIND_METADATA_COUNTS:
		return sizeof(struct le32);
	default:
		return sizeof(struct le64);
	}
}

static enum block_kind child_kind(const struct frame *f)
{
	if (!f->e.at.is_leaf)
		return f->e.at.kind;
	return f->e.at.kind == KIND_TOP ? KIND_MAPPING : KIND_DATA_BITMAP;
}

static bool is_space_map_tree(enum block_kind kind)
{
	return kind == KIND_DATA_INDEX || kind == KIND_DATA_COUNTS || kind == KIND_METADATA_COUNTS;
}

/* The trees that are walked once for the superblock and once for the metadata snapshot. */
static bool is_walked_twice(enum block_kind kind)
{
	return kind == KIND_TOP || kind == KIND_DETAILS;
}

/* ---- memos ---- */

static const struct node_memo *find_memo(const struct check *c, mblock_t block)
{
	return c->memo[block] == NO_MEMO ? NULL : &c->memos[c->memo[block]];
}

static int keep_memo(struct check *c, const struct frame *f)
{
	mblock_t block = f->e.at.block;
	int r;

	if (!f->e.is_root && !is_walked_twice(f->e.at.kind) && metadata_recorded(c, block) < 2)
		return 0;
	r = array_grow(&c->memos, c->nr_memos, &c->max_memos, sizeof(*c->memos));
	if (r)
		return r;
	c->memos[c->nr_memos] = f->memo;
	c->memo[block] = (uint32_t)c->nr_memos++;
	return 0;
}

/* ---- checks of one node ---- */

/* Can keys and values be found in it? */
static bool header_is_sound(struct check *c, struct expectation *e,
			    const struct disk_node_header *node)
{
	uint32_t flags = le32_get(node->flags), nr = le32_get(node->nr_entries);
	uint32_t max = le32_get(node->max_entries), value_size = le32_get(node->value_size);
	uint32_t expected;

	if (!block_is_intact(c, &e->at, node))
		return false;
	if (flags != INTERNAL_NODE && flags != LEAF_NODE) {
		finding_at(c, &e->at, "flags 0x%" PRIx32 ", neither leaf nor internal node", flags);
		return false;
	}
	e->at.is_leaf = flags == LEAF_NODE;
	expected = e->at.is_leaf ? leaf_value_size(e->at.kind) : (uint32_t)sizeof(struct le64);
	if (value_size != expected) {
		finding_at(c, &e->at, "values of %" PRIu32 " bytes, expected %" PRIu32, value_size,
			   expected);
		return false;
	}
	if (max != NODE_MAX_ENTRIES(expected)) {
		finding_at(c, &e->at, "room for %" PRIu32 " entries, expected %" PRIu32, max,
			   NODE_MAX_ENTRIES(expected));
		return false;
	}
	if (nr > max) {
		finding_at(c, &e->at, "%" PRIu32 " entries in room for %" PRIu32, nr, max);
		return false;
	}
	if (!nr && !e->at.is_leaf) {
		finding_at(c, &e->at, "an internal node without entries");
		return false;
	}
	return true;
}

static void check_order(struct check *c, struct frame *f)
{
	f->ordered = true;
	for (unsigned i = 1; i < f->nr; i++) {
		if (node_key(f, i) > node_key(f, i - 1))
			continue;
		finding_at(c, &f->e.at, "key %" PRIu64 " after key %" PRIu64, node_key(f, i),
			   node_key(f, i - 1));
		f->ordered = false;
		f->memo.complete = false;
		return;
	}
}

/* Do the keys of a subtree fit where a pointer puts them? */
static bool keys_fit(struct check *c, const struct expectation *e, const struct node_memo *memo)
{
	if (memo->empty)
		return true;
	if (memo->min_key < e->first) {
		finding_at(c, &e->at,
			   "first key %" PRIu64 " is below %" PRIu64
			   ", where its parent says it begins",
			   memo->min_key, e->first);
		return false;
	}
	if (memo->max_key > e->last) {
		finding_at(c, &e->at,
			   "last key %" PRIu64 " is above %" PRIu64
			   ", the last that its parent allows",
			   memo->max_key, e->last);
		return false;
	}
	return true;
}

static bool fill_fits(struct check *c, const struct expectation *e, const struct node_memo *memo,
		      unsigned nr, unsigned max)
{
	if (e->is_root || !memo->underfull)
		return true;
	if (nr)
		finding_at(c, &e->at, "%u entries, at least %u are due", nr, max / 3);
	else
		finding_at(c, &e->at, "too few entries for a node that is no root");
	return false;
}

/* ---- values of leaves ---- */

static int mapping_entry(struct check *c, struct frame *f, unsigned i)
{
	const struct le64 *value = node_value(f, i);
	dblock_t dblock = le64_get(*value) >> MAPPING_TIME_BITS;
	uint32_t time = (uint32_t)(le64_get(*value) & THIN_MAX_TIME);

	f->memo.max_time = MAX(f->memo.max_time, time);
	if (time > c->clock)
		finding_at(c, &f->e.at,
			   "block %" PRIu64 " was mapped at time %" PRIu32
			   ", but the clock says %" PRIu32,
			   node_key(f, i), time, c->clock);
	if (dblock < c->nr_data_blocks)
		return data_refs_add(c, dblock);
	finding_at(c, &f->e.at,
		   "block %" PRIu64 " is mapped to data block %" PRIu64
		   ", but the pool has %" PRIu64,
		   node_key(f, i), dblock, c->nr_data_blocks);
	return 0;
}

static int leaf_entry(struct check *c, struct frame *f, unsigned i)
{
	const struct le32 *count = node_value(f, i);

	switch (f->e.at.kind) {
	case KIND_MAPPING:
		return mapping_entry(c, f, i);
	case KIND_DETAILS:
		device_details(c, &f->e.at, node_key(f, i), node_value(f, i));
		return 0;
	case KIND_DATA_COUNTS:
	case KIND_METADATA_COUNTS:
		return count_entry(c, &f->e.at, node_key(f, i), le32_get(*count));
	default:
		return 0; /* what hangs on the others are children */
	}
}

/* ---- the walk ---- */

/* A subtree below the frame on top of the stack is known. */
static int deliver(struct walk *w, const struct node_memo *memo)
{
	struct frame *f;

	if (!w->nr_frames) {
		w->result = *memo;
		return 0;
	}
	f = &w->frames[w->nr_frames - 1];
	if (f->e.at.is_leaf) {
		/* Damage of one device's mappings leaves the list of devices whole. */
		if (f->e.at.kind == KIND_DATA_INDEX)
			f->memo.complete &= memo->complete;
		else
			return device_found(w->c, &f->e.at, node_key(f, f->next - 1), memo);
		return 0;
	}
	f->memo.complete &= memo->complete;
	f->memo.nr_values += memo->nr_values;
	f->memo.max_time = MAX(f->memo.max_time, memo->max_time);
	if (!memo->empty) {
		f->memo.min_key = MIN(f->memo.min_key, memo->min_key);
		f->memo.max_key = MAX(f->memo.max_key, memo->max_key);
	}
	if (!f->memo.height && memo->height)
		f->memo.height = (uint8_t)(memo->height + 1);
	if (memo->height && memo->height + 1 != f->memo.height) {
		finding_at(w->c, &f->e.at,
			   "the subtree at key %" PRIu64 " has height %u, others have %u",
			   node_key(f, f->next - 1), memo->height, f->memo.height - 1);
		f->memo.complete = false;
	}
	return 0;
}

/* What the pointer leads to cannot be used. */
static int deliver_nothing(struct walk *w)
{
	static const struct node_memo nothing = { .empty = true };

	return deliver(w, &nothing);
}

static int enter(struct walk *w, struct expectation *e)
{
	struct check *c = w->c;
	struct frame *f = &w->frames[w->nr_frames];
	int r = 0;

	TP_INVARIANT(e->data);
	if (!header_is_sound(c, e, e->data)) {
		set_block_state(c, e->at.block, BLOCK_BAD);
		c->hidden = true;
		return deliver_nothing(w);
	}
	f->e = *e;
	f->node = e->data;
	f->nr = le32_get(f->node->nr_entries);
	f->value_size = le32_get(f->node->value_size);
	f->memo = (struct node_memo){ .empty = !f->nr, .complete = true };
	f->memo.underfull = f->nr < NODE_MAX_ENTRIES(f->value_size) / 3;
	if (f->nr) {
		f->memo.min_key = node_key(f, 0);
		f->memo.max_key = node_key(f, f->nr - 1);
	}
	check_order(c, f);
	if (!keys_fit(c, e, &f->memo) ||
	    !fill_fits(c, e, &f->memo, f->nr, NODE_MAX_ENTRIES(f->value_size)))
		f->memo.complete = false;
	f->trusted = e->trusted && f->memo.complete;
	f->next = f->read = 0;
	f->nr_children = f->nr;
	if (e->at.is_leaf) {
		f->memo.height = 1;
		f->memo.nr_values = f->nr;
		if (e->at.kind != KIND_TOP && e->at.kind != KIND_DATA_INDEX)
			f->nr_children = 0;
		for (unsigned i = 0; i < f->nr && !r; i++)
			r = leaf_entry(c, f, i);
	}
	if (!r)
		w->nr_frames++;
	return r;
}

/* The node was met before: does it fit here as well? */
static int arrive_again(struct walk *w, struct expectation *e)
{
	struct check *c = w->c;
	const struct node_memo *memo = find_memo(c, e->at.block);
	struct node_memo here = { .empty = true };

	if (block_state(c, e->at.block) == BLOCK_OPEN) {
		finding_at(c, &e->from, "refers to block %" PRIu64 ", which is above it: a cycle",
			   e->at.block);
		c->hidden = true;
		return deliver_nothing(w);
	}
	if (is_space_map_tree(e->at.kind))
		finding_at(c, &e->from, "refers to block %" PRIu64 ", which is in use already",
			   e->at.block);
	if (block_state(c, e->at.block) == BLOCK_BAD)
		finding_at(c, &e->at, "the damaged node is used here too");
	if (!memo || block_state(c, e->at.block) == BLOCK_BAD)
		return deliver_nothing(w);
	here = *memo;
	e->at.is_leaf = memo->height == 1;
	if (!keys_fit(c, e, memo)) {
		c->hidden = true; /* the pointer was meant for another node */
		here.complete = false;
	}
	if (!fill_fits(c, e, memo, 0, 0))
		here.complete = false;
	if (memo->max_time > c->clock) {
		finding_at(c, &e->at,
			   "a block was mapped at time %" PRIu32 ", but the clock says %" PRIu32,
			   memo->max_time, c->clock);
		here.complete = false;
	}
	if (is_walked_twice(e->at.kind) && here.complete && e->trusted && e->data) {
		e->counted = false;
		return enter(w, e);
	}
	return deliver(w, &here);
}

static int arrive(struct walk *w, struct expectation *e)
{
	struct check *c = w->c;
	enum arrival arrival;
	int r;

	r = refer(c, &e->from, e->at.block, e->at.kind, e->counted, &arrival);
	if (r)
		return r;
	if (arrival == ARRIVE_REFUSED)
		return deliver_nothing(w);
	if (arrival == ARRIVE_AGAIN)
		return arrive_again(w, e);
	if (e->height > MAX_HEIGHT || w->nr_frames == MAX_FRAMES) {
		finding_at(c, &e->at, "%u levels below its root, deeper than any tree can be",
			   e->height);
		set_block_state(c, e->at.block, BLOCK_BAD);
		c->hidden = true;
		return deliver_nothing(w);
	}
	return enter(w, e);
}

/* A bitmap, from a leaf of the data index tree. */
static int arrive_at_bitmap(struct walk *w, struct expectation *e, uint64_t bitmap_nr,
			    const struct disk_index_entry *entry)
{
	struct check *c = w->c;
	struct node_memo memo = { .empty = true };
	enum arrival arrival;
	int r;

	r = refer(c, &e->from, e->at.block, e->at.kind, e->counted, &arrival);
	if (r)
		return r;
	if (arrival == ARRIVE_AGAIN)
		finding_at(c, &e->from, "refers to block %" PRIu64 ", which is in use already",
			   e->at.block);
	memo.complete = arrival == ARRIVE_FIRST && block_is_intact(c, &e->at, e->data);
	data_index_entry(c, &e->from, bitmap_nr, entry, memo.complete ? e->data : NULL);
	return deliver(w, &memo);
}

/* Does arriving at @block as a @kind need its content? */
static bool must_read(const struct check *c, mblock_t block, enum block_kind kind, bool trusted)
{
	enum block_kind known;

	if (block >= c->nr_blocks)
		return false;
	known = block_kind(c, block);
	return known == KIND_UNSEEN || (known == kind && is_walked_twice(kind) && trusted &&
					block_state(c, block) == BLOCK_DONE);
}

static bool batch_has(const struct batch *b, mblock_t block)
{
	for (unsigned i = 0; i < b->nr; i++)
		if (b->block[i] == block)
			return true;
	return false;
}

/*
 * Read what the next children need, together.  A block that several of them are is read for the
 * first, the others will arrive again.
 */
static int read_children(struct check *c, struct frame *f)
{
	struct batch *b = &f->batch;
	int r;

	b->nr = 0;
	for (; f->read < f->nr_children && b->nr < BATCH_MAX; f->read++) {
		mblock_t child = node_child(f, f->read);

		f->slot[f->read] = NO_SLOT;
		if (!must_read(c, child, child_kind(f), f->trusted) || batch_has(b, child))
			continue;
		b->block[b->nr] = child;
		b->owner[b->nr++] = (uint16_t)f->read;
	}
	if (!b->nr)
		return 0;
	r = batch_read(c, b);
	for (unsigned i = 0; i < b->nr; i++)
		f->slot[b->owner[i]] = (uint8_t)i;
	return r;
}

static void expect_child(const struct frame *f, unsigned i, struct expectation *e)
{
	bool is_device = f->e.at.is_leaf;

	*e = (struct expectation){
		.from = f->e.at,
		.at = f->e.at,
		.last = UINT64_MAX,
		.is_root = is_device,
		.counted = f->e.counted,
		.trusted = f->trusted,
		.height = is_device ? 1 : f->e.height + 1,
	};
	e->at.kind = child_kind(f);
	e->at.block = node_child(f, i);
	e->at.is_leaf = false;
	if (is_device)
		e->at.device = node_key(f, i);
	if (f->slot[i] != NO_SLOT)
		e->data = batch_block(&f->batch, f->slot[i]);
	if (is_device || !f->ordered)
		return;
	e->first = node_key(f, i);
	e->last = i + 1 < f->nr ? node_key(f, i + 1) - 1 : f->e.last;
}

static int leave(struct walk *w, struct frame *f)
{
	struct check *c = w->c;
	bool was_open = block_state(c, f->e.at.block) == BLOCK_OPEN;
	int r = 0;

	if (was_open) {
		set_block_state(c, f->e.at.block, BLOCK_DONE);
		r = keep_memo(c, f);
	}
	w->nr_frames--;
	return r ? r : deliver(w, &f->memo);
}

static int step(struct walk *w)
{
	struct frame *f = &w->frames[w->nr_frames - 1];
	struct expectation e;
	unsigned i = f->next;
	int r = 0;

	if (i == f->nr_children)
		return leave(w, f);
	if (i == f->read)
		r = read_children(w->c, f);
	if (r)
		return r;
	f->next++;
	expect_child(f, i, &e);
	if (e.at.kind == KIND_DATA_BITMAP)
		return arrive_at_bitmap(w, &e, node_key(f, i), node_value(f, i));
	return arrive(w, &e);
}

static void walk_free(struct walk *w)
{
	for (unsigned i = 0; i < MAX_FRAMES; i++)
		free(w->frames[i].batch.buffer);
	free(w);
}

int walk_tree(struct check *c, const struct place *from, enum block_kind kind, mblock_t root,
	      bool *ret_complete)
{
	struct expectation e = {
		.from = *from,
		.at = { .kind = kind, .block = root, .of_snapshot = from->of_snapshot },
		.last = UINT64_MAX,
		.is_root = true,
		.counted = true,
		.trusted = true,
		.height = 1,
	};
	struct walk *w = calloc(1, sizeof(*w));
	int r = 0;

	if (!w)
		return -ENOMEM;
	w->c = c;
	if (must_read(c, root, kind, true))
		r = read_block(c, root, &e.data);
	if (!r)
		r = arrive(w, &e);
	while (!r && w->nr_frames)
		r = step(w);
	if (!r)
		*ret_complete = w->result.complete;
	walk_free(w);
	return r;
}
