/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * ctl.h - between the parts of thinpoolctl
 *
 * Layer:    ctl.
 * Threads:  one.
 * Units:    bytes.
 * Errors:   exit codes; a negative errno where a call says so.
 * A verb returns an exit code (enum ctl_exit) and has told the reason on stderr.
 */
#ifndef TP_CTL_CTL_H
#define TP_CTL_CTL_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "thinpoold/control.h"
#include "util/compiler.h"
#include "util/lock-class.h"

struct io_device;

#define CTL_ARGS_MAX 2

/* A parsed command line; which fields a verb reads its table entry says. */
struct ctl_args {
	const char *args[CTL_ARGS_MAX];
	unsigned nr_args;
	bool json, force, read_only, shrink, clear_needs_check;
	bool has_size;
	uint64_t size, block_size, metadata_size; /* bytes; 0: not given */
	const char *data, *metadata;              /* paths */
};

int ctl_format(const struct ctl_args *a) TP_EXCLUDES_ALL;
/* Of a pool directory or of a mount. */
int ctl_check(const struct ctl_args *a) TP_TAKES(bufio);
int ctl_dump(const struct ctl_args *a) TP_EXCLUDES_ALL;

int ctl_create(const struct ctl_args *a);
int ctl_snapshot(const struct ctl_args *a);
int ctl_delete(const struct ctl_args *a);
int ctl_rename(const struct ctl_args *a);
int ctl_resize(const struct ctl_args *a);
int ctl_metadata_snap(const struct ctl_args *a);
int ctl_extend(const struct ctl_args *a);
int ctl_list(const struct ctl_args *a);
int ctl_status(const struct ctl_args *a);
int ctl_trim(const struct ctl_args *a);
int ctl_reclaim(const struct ctl_args *a);
int ctl_restart(const struct ctl_args *a);

/* The metadata of a mounted pool as it was committed last, which its daemon keeps for us. */
struct ctl_pin {
	int socket;
	struct io_device *metadata; /* closed by ctl_unpin() */
	uint64_t data_bytes;
};
int ctl_pin(const char *mount, struct ctl_pin *ret_pin);
/* Tells if it could not be kept until now: then what was read may be anything. */
int ctl_unpin(struct ctl_pin *pin);

/* Is this the root of a mounted pool? */
bool ctl_is_mount(const char *path);

/* Open "metadata" or "data" of a pool that is not in use; @flags: enum io_open_flags. */
int ctl_open_half(const char *pooldir, const char *what, unsigned flags,
		  struct io_device **ret_dev);

/* "thinpoolctl: ..." on stderr; returns @code. */
int ctl_fail(enum ctl_exit code, const char *fmt, ...) TP_PRINTF(2, 3);
/* The exit code that stands for a negative errno. */
enum ctl_exit ctl_exit_of(int r);
/* What is wrong with a size that parse_size() has refused, to follow "... is". */
const char *ctl_size_words(int r);

void ctl_print_json(json_t *document);
int ctl_print_list(json_t *volumes);
int ctl_print_status(json_t *status);

#endif
