/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-node.c - inode numbers, open volumes, attributes of a volume
 *
 * The kernel is given numbers that follow from the pool alone (inode 16 + thin id), so nothing has
 * to be remembered for what it has merely looked up: FORGET is a no-op and a request without a
 * handle asks the pool by id.  What is remembered is which volumes are open, because reads and
 * writes must find their volume without a lock, and when a volume was last written to, because
 * the pool does not record that.
 *
 * Nodes stand in a two-level table by thin id, made at the first open and kept: the second level
 * holds 4096 of them, and ids are given out densely.
 *
 * Invariants
 *   N1  node.volume is set exactly while nr_open > 0, and each open has one reference and one
 *       volume_open() of it.  The kernel sends a handle's RELEASE after all its other requests
 *       have ended, so a request that carries a handle may use node.volume as it is.
 *       An opening that a daemon before us gave out counts as one of ours, see fuse-state.c.
 *   N2  a thin id is not used again while its volume is open.
 */
#include "fuse/fuse-internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util/clock.h"

#define LOG_MODULE "fuse"
#include "util/log.h"

/*
 * What cp, tar and stdio take as the unit of a read.  It is not the data block size: that may be
 * 1 GiB, and is what statfs tells.
 */
#define PREFERRED_IO_BYTES (128u << 10)

/* -------------------------------------------------------------------- nodes */

struct fuse_node *fuse_node_find(struct fuse_server *server, thin_id_t id)
{
	struct fuse_node_leaf *leaf;

	if (unlikely(id > THIN_ID_MAX))
		return NULL;
	leaf = atomic_load_explicit(&server->leaves[id >> NODE_LEAF_BITS], memory_order_acquire);
	return leaf ? &leaf->nodes[id & (NODE_LEAF_SIZE - 1)] : NULL;
}

struct fuse_node *fuse_node_get(struct fuse_server *server, thin_id_t id)
{
	struct fuse_node_leaf *leaf, *none = NULL;

	if (id > THIN_ID_MAX)
		return NULL;
	if (!fuse_node_find(server, id)) {
		leaf = calloc(1, sizeof(*leaf));
		if (!leaf)
			return NULL;
		/* Another thread may have been faster. */
		if (!atomic_compare_exchange_strong(&server->leaves[id >> NODE_LEAF_BITS], &none,
						    leaf))
			free(leaf);
	}
	return fuse_node_find(server, id);
}

/* One more user of the node, who brings a reference and an opening of @v. */
static void node_enter(struct fuse_server *server, struct fuse_node *node, struct volume *v,
		       uint32_t generation)
{
	lock_fuse(&server->lock);
	if (!node->nr_open++) {
		if (node->generation != generation)
			node->modified_usec = 0;
		node->generation = generation;
		atomic_store_explicit(&node->volume, v, memory_order_release);
		server->nr_open_volumes++;
	}
	TP_INVARIANT(node->volume == v); /* N2 */
	unlock_fuse(&server->lock);
}

static void node_leave(struct fuse_server *server, thin_id_t id, uint32_t handle)
{
	struct fuse_node *node = fuse_node_find(server, id);
	struct volume *v;

	if (!node)
		return;
	lock_fuse(&server->lock);
	v = node->volume;
	if (v && !--node->nr_open) {
		node->volume = NULL;
		server->nr_open_volumes--;
	}
	unlock_fuse(&server->lock);
	if (!v)
		return;
	volume_forget_handle(v, handle);
	volume_close(v);
	volume_put(v);
}

void fuse_nodes_destroy(struct fuse_server *server)
{
	for (size_t i = 0; i < ARRAY_SIZE(server->leaves); i++) {
		struct fuse_node_leaf *leaf = server->leaves[i];

		/* What was open when the connection ended will not be released by the kernel. */
		for (size_t k = 0; leaf && k < NODE_LEAF_SIZE; k++)
			while (leaf->nodes[k].volume)
				node_leave(server, (thin_id_t)(i << NODE_LEAF_BITS | k),
					   POOL_NO_HANDLE);
		server->leaves[i] = NULL;
		free(leaf);
	}
}

int fuse_node_open(struct fuse_server *server, struct volume *v, bool for_writing, uint64_t unique,
		   uint64_t *ret_fh)
{
	struct fuse_node *node = fuse_node_get(server, volume_id(v));
	struct fuse_state_handle handle = { .unique = unique };
	struct volume_info info;
	bool is_old;
	int r;

	if (!node)
		return -ENOMEM;
	if (for_writing && server->read_only)
		return -EROFS;
	r = volume_open(v, for_writing);
	if (r)
		return r;
	volume_get_info(v, &info);
	handle.generation = info.generation;
	handle.pool_handle = volume_handle(v);
	r = fuse_state_open_handle(server->state, &handle, info.id, ret_fh, &is_old);
	if (r || is_old) { /* an old one was entered by fuse_nodes_adopt() */
		volume_close(v);
		if (!r)
			volume_put(v);
		return r;
	}
	node_enter(server, node, v, info.generation);
	return 0;
}

void fuse_node_close(struct fuse_server *server, uint64_t fh)
{
	uint32_t handle = fuse_state_pool_handle(server->state, fh);

	/* Otherwise closed already: by an earlier daemon, which had no time to say so. */
	if (fuse_state_close_handle(server->state, fh))
		node_leave(server, fuse_handle_id(fh), handle);
}

/* False: what was open does not exist any more. */
static bool adopt_handle(struct fuse_server *server, struct fuse_state_handle *h)
{
	thin_id_t id = fuse_handle_id(atomic_load(&h->fh));
	struct fuse_node *node = fuse_node_get(server, id);
	struct volume_info info;
	struct volume *v;

	if (!node || pool_volume_get(server->pool, id, &v))
		return false;
	volume_get_info(v, &info);
	if (info.generation != h->generation || volume_open(v, false)) {
		volume_put(v);
		return false;
	}
	h->pool_handle = volume_handle(v);
	node_enter(server, node, v, info.generation);
	return true;
}

void fuse_nodes_adopt(struct fuse_server *server)
{
	struct fuse_state_handle *h;
	uint32_t index = 0;

	while ((h = fuse_state_next_handle(server->state, &index))) {
		uint64_t fh = atomic_load(&h->fh);

		if (adopt_handle(server, h))
			continue;
		log_warn("volume %u was open and is no more: its users get ESTALE",
			 fuse_handle_id(fh));
		(void)fuse_state_close_handle(server->state, fh);
	}
}

void fuse_node_modified(struct fuse_server *server, thin_id_t id)
{
	struct fuse_node *node = fuse_node_find(server, id);

	if (node) /* the coarse clock costs no more than the store */
		atomic_store_explicit(&node->modified_usec, time_read_usec(CLOCK_REALTIME_COARSE),
				      memory_order_relaxed);
}

void fuse_node_touch(struct fuse_server *server, const struct volume_info *info)
{
	struct fuse_node *node = fuse_node_get(server, info->id);

	if (!node)
		return; /* its time stamp stays that of the start */
	node->generation = info->generation;
	fuse_node_modified(server, info->id);
}

int fuse_volume_of(struct fuse_slot *slot, thin_id_t id, struct volume **ret_v)
{
	struct fuse_node *node = fuse_node_find(slot->server, id);
	struct volume *v = node ? atomic_load_explicit(&node->volume, memory_order_acquire) : NULL;
	int r;

	if (unlikely(!v)) {
		r = pool_volume_get(slot->server->pool, id, &v);
		if (r)
			return r == -ENOENT ? -ESTALE : r;
		slot->reference = v;
	}
	*ret_v = v;
	return 0;
}

/* --------------------------------------------------------------- attributes */

/*
 * When the content last changed.  A write seen in this life of the daemon, or else its start: a
 * backup by time stamps may look once too often, never once too rarely.
 */
static uint64_t modified_usec(struct fuse_server *server, const struct volume_info *info)
{
	const struct fuse_node *node = fuse_node_find(server, info->id);
	uint64_t seen = 0;

	if (node && node->generation == info->generation)
		seen = node->modified_usec;
	if (seen)
		return seen;
	if (info->read_only && info->created_usec)
		return info->created_usec;
	return MAX(info->created_usec, server->start_usec);
}

static struct timespec timespec_of(uint64_t usec)
{
	return (struct timespec){ .tv_sec = (time_t)(usec / USEC_PER_SEC),
				  .tv_nsec = (long)(usec % USEC_PER_SEC * NSEC_PER_USEC) };
}

void fuse_volume_attr(struct fuse_server *server, const struct volume_info *info,
		      struct stat *ret_attr)
{
	struct timespec changed = timespec_of(modified_usec(server, info));

	*ret_attr = (struct stat){
		.st_ino = thin_id_ino(info->id),
		.st_mode = S_IFREG | (info->read_only ? 0400 : 0600),
		.st_nlink = info->unlinked ? 0 : 1,
		.st_uid = server->uid,
		.st_gid = server->gid,
		.st_size = (off_t)info->size_bytes,
		.st_blocks = (blkcnt_t)(info->mapped_bytes / SECTOR_SIZE),
		.st_blksize = PREFERRED_IO_BYTES,
		.st_atim = changed,
		.st_mtim = changed,
		.st_ctim = changed,
	};
}

void fuse_volume_entry(struct fuse_server *server, const struct volume_info *info,
		       struct fuse_entry_param *ret_entry)
{
	*ret_entry = (struct fuse_entry_param){
		.ino = thin_id_ino(info->id),
		.generation = info->generation,
		.attr_timeout = CACHE_TIMEOUT_SEC,
		.entry_timeout = CACHE_TIMEOUT_SEC,
	};
	fuse_volume_attr(server, info, &ret_entry->attr);
}
