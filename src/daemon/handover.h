/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * handover.h - what one daemon leaves to the next
 *
 * The connection of the mount, its state (fuse/fuse-state.h) and the redo area of the pool; and,
 * from the keeper, the pipe that tells it of the daemon's death: that one is only held.  Between
 * two daemons they are kept by whoever starts them: the service manager, the keeper (keeper.h) or,
 * when a daemon replaces itself by a newer binary, the process itself. Coming and going they are
 * named as sd_listen_fds(3) and sd_pid_notify_with_fds(3) have it.
 *
 * Layer:    daemon.
 * Threads:  one.
 * Units:    none.
 * Errors:   0 or a negative errno.
 */
#ifndef TP_DAEMON_HANDOVER_H
#define TP_DAEMON_HANDOVER_H

#include <stdbool.h>

#include "util/compiler.h"

enum legacy_kind { LEGACY_CONNECTION, LEGACY_STATE, LEGACY_REDO, LEGACY_LIFE, NR_LEGACIES };

/* 0: there is none.  A descriptor below 3 is never one. */
struct legacy {
	int fds[NR_LEGACIES];
};

const char *legacy_name(enum legacy_kind kind);
/* NR_LEGACIES: no such name. */
enum legacy_kind legacy_kind_of(const char *name);

/* What this process was started with.  The environment does not say so afterwards. */
void legacy_take(struct legacy *ret_legacy);
void legacy_close(struct legacy *legacy);

/* A mount to go on with is among it. */
static inline bool legacy_is_whole(const struct legacy *legacy)
{
	return legacy->fds[LEGACY_CONNECTION] && legacy->fds[LEGACY_STATE];
}

/* Give one, or take it back, to or from whoever started us. */
void legacy_store(enum legacy_kind kind, int fd);
void legacy_remove_all(void);

/*
 * Place the descriptors where the next program expects them and tell its environment of them.  For
 * a process that is about to call execv() and has no other use for descriptors from 3 on.
 */
int legacy_prepare_exec(const struct legacy *legacy) TP_MUST_CHECK;

#endif
