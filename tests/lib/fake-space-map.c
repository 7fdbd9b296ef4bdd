/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fake-space-map.c - counts in an array: a space map without a disk
 */
#include "fake-space-map.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct fake_sm {
	struct space_map sm;
	uint64_t nr_blocks, cursor, fail_in;
	uint32_t *now, *old;
};

static struct fake_sm *fake_of(struct space_map *sm)
{
	return (struct fake_sm *)sm;
}

static void fake_destroy(struct space_map *sm)
{
	struct fake_sm *f = fake_of(sm);

	free(f->now);
	free(f->old);
	free(f);
}

static int fake_extend(struct space_map *sm, uint64_t extra_blocks)
{
	(void)sm;
	(void)extra_blocks;
	return -EOPNOTSUPP;
}

static int fake_get_nr_blocks(struct space_map *sm, uint64_t *ret_count)
{
	*ret_count = fake_of(sm)->nr_blocks;
	return 0;
}

static int fake_get_nr_free(struct space_map *sm, uint64_t *ret_count)
{
	struct fake_sm *f = fake_of(sm);
	uint64_t nr = 0;

	for (uint64_t b = 0; b < f->nr_blocks; b++)
		nr += !f->now[b] && !f->old[b];
	*ret_count = nr;
	return 0;
}

static int fake_get_count(struct space_map *sm, uint64_t b, uint32_t *ret_count)
{
	if (b >= fake_of(sm)->nr_blocks)
		return -EINVAL;
	*ret_count = fake_of(sm)->now[b];
	return 0;
}

static int fake_count_is_more_than_one(struct space_map *sm, uint64_t b, bool *ret_more)
{
	if (b >= fake_of(sm)->nr_blocks)
		return -EINVAL;
	*ret_more = fake_of(sm)->now[b] > 1;
	return 0;
}

static int fake_inc_blocks(struct space_map *sm, uint64_t begin, uint64_t end)
{
	if (begin > end || end > fake_of(sm)->nr_blocks)
		return -EINVAL;
	for (uint64_t b = begin; b < end; b++)
		fake_of(sm)->now[b]++;
	return 0;
}

static int fake_dec_blocks(struct space_map *sm, uint64_t begin, uint64_t end)
{
	if (begin > end || end > fake_of(sm)->nr_blocks)
		return -EINVAL;
	for (uint64_t b = begin; b < end; b++) {
		if (!fake_of(sm)->now[b])
			return -EINVAL;
		fake_of(sm)->now[b]--;
	}
	return 0;
}

static int fake_new_block(struct space_map *sm, uint64_t *ret_b)
{
	struct fake_sm *f = fake_of(sm);

	if (f->fail_in && --f->fail_in == 0)
		return -ENOSPC;
	for (uint64_t i = 0; i < f->nr_blocks; i++) {
		uint64_t b = (f->cursor + i) % f->nr_blocks;

		if (f->now[b] || f->old[b])
			continue;
		f->now[b] = 1;
		f->cursor = b + 1;
		*ret_b = b;
		return 0;
	}
	return -ENOSPC;
}

static int fake_commit(struct space_map *sm)
{
	struct fake_sm *f = fake_of(sm);

	memcpy(f->old, f->now, f->nr_blocks * sizeof(*f->now));
	return 0;
}

static void fake_copy_root(struct space_map *sm, struct disk_sm_root *ret_root)
{
	(void)sm;
	memset(ret_root, 0, sizeof(*ret_root));
}

static const struct space_map_ops fake_ops = {
	.destroy = fake_destroy,
	.extend = fake_extend,
	.get_nr_blocks = fake_get_nr_blocks,
	.get_nr_free = fake_get_nr_free,
	.get_count = fake_get_count,
	.count_is_more_than_one = fake_count_is_more_than_one,
	.inc_blocks = fake_inc_blocks,
	.dec_blocks = fake_dec_blocks,
	.new_block = fake_new_block,
	.commit = fake_commit,
	.copy_root = fake_copy_root,
};

struct space_map *fake_sm_create(uint64_t nr_blocks)
{
	struct fake_sm *f = calloc(1, sizeof(*f));

	if (!f)
		abort();
	f->sm.ops = &fake_ops;
	f->nr_blocks = nr_blocks;
	f->now = calloc(nr_blocks, sizeof(*f->now));
	f->old = calloc(nr_blocks, sizeof(*f->old));
	if (!f->now || !f->old)
		abort();
	f->now[0] = f->old[0] = 1;
	return &f->sm;
}

void fake_sm_abort(struct space_map *sm)
{
	struct fake_sm *f = fake_of(sm);

	memcpy(f->now, f->old, f->nr_blocks * sizeof(*f->now));
	f->cursor = f->fail_in = 0;
}

void fake_sm_fail_new_block(struct space_map *sm, uint64_t nth)
{
	fake_of(sm)->fail_in = nth;
}

uint64_t fake_sm_nr_allocated(struct space_map *sm)
{
	uint64_t nr = 0;

	for (uint64_t b = 0; b < fake_of(sm)->nr_blocks; b++)
		nr += fake_of(sm)->now[b] > 0;
	return nr;
}
