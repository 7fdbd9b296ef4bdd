/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * config.h - the INI configuration: thinpoold.conf, and pool.conf of one pool
 *
 * Layer:    daemon.
 * Threads:  one; nothing is shared.
 * Errors:   0 or a negative errno, with a line that names file, line, thing and remedy.
 * Units:    bytes and microseconds in memory; sizes and seconds in the files.
 *
 * Three sources, the later one wins: built-in defaults, the configuration file, and
 * pool.conf in the pool directory.  Every mistake is an error with file and line: an
 * unknown section or key, a bad value, a duplicate, a line that is no "key = value".
 */
#ifndef TP_DAEMON_CONFIG_H
#define TP_DAEMON_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "pool/pool.h"
#include "util/compiler.h"
#include "util/error.h"
#include "util/log.h"

#define CONFIG_LINE_MAX 180 /* bytes; libinih cuts longer lines in two */

enum config_cache { CONFIG_CACHE_PAGES, CONFIG_CACHE_NONE };
enum config_io_uring { CONFIG_IO_URING_AUTO, CONFIG_IO_URING_YES, CONFIG_IO_URING_NO };

struct config {
	/* [pool] */
	uint64_t cache_size; /* bytes of metadata buffers */
	uint64_t commit_interval_usec;
	enum pool_discard discard;
	bool zero_new_blocks;
	bool queue_if_no_space;
	uint64_t no_space_timeout_usec;
	struct pool_low_water low_water_data, low_water_metadata;
	unsigned autoextend_threshold, autoextend_percent;
	uint64_t max_size;                      /* 0: none */
	char on_low_space[CONFIG_LINE_MAX + 1]; /* "": none */
	uint64_t on_low_space_timeout_usec;
	/* [fuse] */
	unsigned workers;
	enum config_cache cache;
	bool allow_other;
	unsigned max_background;
	enum config_io_uring io_uring; /* between the kernel and the daemon */
	unsigned io_uring_depth;       /* requests of one CPU in work at a time */
	/* [reclaim] */
	bool psi, cgroup, watch, request;
	uint64_t stall_usec, timer_usec; /* timer 0: none */
	bool page_cache;
	uint64_t page_cache_limit_usec, page_cache_interval_usec;
	/* [daemon] */
	bool lock_memory;
	unsigned restart_limit; /* deaths in restart_window_usec; of the keeper */
	uint64_t restart_window_usec;
	enum log_level log_level;
};

#define CONFIG_DEFAULT_PATH "/etc/thinpoold/thinpoold.conf"
#define CONFIG_FILE_MAX 65536 /* bytes */

void config_set_defaults(struct config *cfg);

/*
 * Read @path over what @cfg holds.
 *   -ENOENT  no such file (then @error says nothing)
 *   -EINVAL  a mistake; @error names file, line, thing and remedy; @cfg is unchanged
 */
int config_read(const char *path, struct config *cfg, struct tp_error *error) TP_MUST_CHECK;

struct config_changes {
	char made[512];  /* "key = value, ...", or "" */
	char later[256]; /* "key, ...": what only takes effect when the daemon is started again */
};

/*
 * Make of @cfg what @fresh says, as far as that can change while the daemon runs.  -ENOMEM: nothing
 * was changed.
 */
int config_apply(struct config *cfg, const struct config *fresh,
		 struct config_changes *ret_changes) TP_MUST_CHECK;

/* The effective values, in the form of the file. */
void config_print(const struct config *cfg, FILE *out);

#endif
