/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-again.c - changes of names that come again
 *
 * A daemon that dies may have carried out a request without answering it.  The kernel then sends
 * it again, to the next daemon.  Reads, writes, resizes and the like are simply done once more: no
 * other request can have built on one that was not answered.  But a create would find its volume
 * there already, an unlink would find it gone, and two exchanges are none.
 *
 * So these are entered in the state of the mount (fuse-state.c) before they are begun, with what
 * their names lead to, and when their outcome is known.  Between the commit and the second entry
 * there is a gap; whoever falls into it is judged by what the names lead to now:
 *
 *	create    the name was free and leads somewhere
 *	snapshot  the new name was free and leads to a snapshot of the origin
 *	unlink    the name does not lead to the volume any more
 *	rename    the new name leads to the volume (also of an exchange)
 */
#include "fuse/fuse-internal.h"

static thin_id_t volume_called(struct fuse_server *server, const char *name,
			       struct volume_info *ret_info)
{
	struct volume *v;

	if (!*name || pool_volume_find(server->pool, name, &v))
		return FUSE_NO_VOLUME;
	volume_get_info(v, ret_info);
	volume_put(v);
	return ret_info->id;
}

/* Was it carried out though nobody had the time to say so? */
static bool happened(struct fuse_server *server, const struct fuse_change *change,
		     struct pool_command *cmd)
{
	struct volume_info info = { .id = FUSE_NO_VOLUME };
	thin_id_t source = volume_called(server, cmd->name, &info);
	thin_id_t target =
		volume_called(server, cmd->new_name, &info); /* info: of the last found */

	switch (cmd->op) {
	case POOL_CREATE:
		cmd->id = source;
		return change->source == FUSE_NO_VOLUME && source != FUSE_NO_VOLUME;
	case POOL_SNAPSHOT:
		cmd->id = target;
		return change->target == FUSE_NO_VOLUME && target != FUSE_NO_VOLUME &&
		       info.has_origin && info.origin == change->source;
	case POOL_DELETE:
		return change->source != FUSE_NO_VOLUME && source != change->source;
	case POOL_RENAME:
		return change->source != FUSE_NO_VOLUME && target == change->source &&
		       change->target != change->source;
	default:
		return false;
	}
}

static bool was_done(struct fuse_server *server, const struct fuse_change *change,
		     struct pool_command *cmd, int *ret_r)
{
	if (atomic_load(&change->state) == FUSE_CHANGE_DONE) {
		cmd->id = change->id;
		*ret_r = MIN(change->result, 0);
		return true;
	}
	*ret_r = 0;
	return happened(server, change, cmd);
}

static void change_done(struct pool_command *cmd, int r)
{
	struct fuse_slot *slot = container_of(cmd, struct fuse_slot, command);

	fuse_change_done(slot->step.change, r, cmd->id);
	slot->step.done(cmd, r);
}

void fuse_change_submit(struct fuse_slot *slot)
{
	struct fuse_server *server = slot->server;
	struct pool_command *cmd = &slot->command;
	uint64_t unique = fuse_slot_unique(slot);
	const struct fuse_change *change = NULL;
	struct volume_info info;
	int r;

	if (unlikely(unique & FUSE_RESENT))
		change = fuse_state_find_change(server->state, unique);
	if (change && was_done(server, change, cmd, &r)) {
		cmd->done(cmd, r);
		return;
	}
	slot->step.change = fuse_state_begin_change(server->state, unique,
						    volume_called(server, cmd->name, &info),
						    volume_called(server, cmd->new_name, &info));
	slot->step.done = cmd->done;
	cmd->done = change_done;
	pool_command_submit(server->pool, cmd);
}
