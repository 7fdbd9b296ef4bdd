/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * check.c - the verb that verifies a pool
 *
 * Of a directory both devices are opened first, so a pool in service is refused before anything is
 * looked at; of a mount it is the metadata as it was when its daemon was asked.  Nothing is ever
 * written, but for the one bit that --clear-needs-check is about, and that only when no damage was
 * found.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "ctl/ctl.h"
#include "io/device.h"
#include "thin/thin-check.h"
#include "thin/thin-metadata.h"
#include "util/error.h"

#define PATH_BYTES 4096
#define MAX_FINDINGS 100 /* lines; a wrecked pool has millions */

/* Only on a terminal: one line that is written over, and wiped out in the end. */
struct progress {
	unsigned percent;
};

static void show_progress(void *ctx, uint64_t done, uint64_t total)
{
	struct progress *p = ctx;
	unsigned percent = total ? (unsigned)(100.0 * (double)MIN(done, total) / (double)total) : 0;

	if (percent == p->percent)
		return;
	p->percent = percent;
	fprintf(stderr, "\rchecking: %u %%", percent);
}

static void wipe_progress(const struct progress *p)
{
	if (p->percent)
		fputs("\r\033[K", stderr);
}

static void report_finding(void *ctx, enum thin_check_severity severity, const char *line)
{
	static const char *const words[] = {
		[THIN_CHECK_HINT] = "hint",
		[THIN_CHECK_LEAK] = "leak",
		[THIN_CHECK_DAMAGE] = "damage",
	};

	wipe_progress(ctx);
	printf("%s: %s\n", words[severity], line);
}

int ctl_open_half(const char *pooldir, const char *what, unsigned flags, struct io_device **ret_dev)
{
	char path[PATH_BYTES];
	int r;

	if (snprintf(path, sizeof(path), "%s/%s", pooldir, what) >= (int)sizeof(path))
		return ctl_fail(CTL_USAGE, "%s: the path is too long", pooldir);
	r = io_device_open(path, flags, ret_dev);
	if (r)
		return ctl_fail(ctl_exit_of(r), "%s: %s", path, io_device_open_words(r));
	return CTL_OK;
}

static int print_result(const char *pooldir, const struct thin_check_result *result)
{
	if (result->nr_damages)
		return ctl_fail(CTL_FAILED,
				"%s is damaged: %" PRIu64 " findings, do not write to it", pooldir,
				result->nr_damages);
	printf("%s: clean, transaction %" PRIu64 ", %" PRIu64 " devices, %" PRIu64 " mappings, "
	       "%" PRIu64 " metadata blocks and %" PRIu64 " data blocks in use\n",
	       pooldir, result->transaction_id, result->nr_devices, result->nr_mappings,
	       result->nr_metadata_used, result->nr_data_used);
	if (result->nr_leaks)
		printf("%s: %" PRIu64
		       " blocks are lost to leaks, nothing else is wrong with them\n",
		       pooldir, result->nr_leaks);
	return CTL_OK;
}

/* The metadata was found right. */
static int handle_flag(const struct ctl_args *a, struct io_device *metadata, bool needs_check)
{
	const char *pooldir = a->args[0];
	struct tp_error error = { "" };
	int r;

	if (!needs_check && a->clear_needs_check)
		printf("%s: the needs_check flag is not set\n", pooldir);
	if (!needs_check)
		return CTL_OK;
	if (!a->clear_needs_check) {
		printf("%s: the needs_check flag is set: it will be served read-only until "
		       "\"thinpoolctl check --clear-needs-check\"\n",
		       pooldir);
		return CTL_OK;
	}
	r = thin_metadata_clear_needs_check(metadata, &error);
	if (r)
		return ctl_fail(ctl_exit_of(r), "%s", error.text);
	printf("%s: the needs_check flag is cleared\n", pooldir);
	return CTL_OK;
}

static int check_devices(const struct ctl_args *a, struct io_device *metadata, uint64_t data_bytes)
{
	struct progress progress = { 0 };
	struct thin_check_options options = {
		/* Who wants the flag cleared gets it, or one line why not. */
		.report = a->clear_needs_check ? NULL : report_finding,
		.progress = isatty(STDERR_FILENO) ? show_progress : NULL,
		.ctx = &progress,
		.data_bytes = data_bytes,
		.max_findings = MAX_FINDINGS,
	};
	struct thin_check_result result;
	int code, r = thin_check(metadata, &options, &result);

	wipe_progress(&progress);
	if (r)
		return ctl_fail(CTL_FAILED, "%s cannot be checked: %s", a->args[0],
				tp_error_words(r));
	if (a->clear_needs_check && result.nr_damages)
		return ctl_fail(CTL_FAILED,
				"%s is damaged: %" PRIu64 " findings (\"thinpoolctl check\" lists "
				"them), needs_check is not cleared",
				a->args[0], result.nr_damages);
	code = print_result(a->args[0], &result);
	return code ? code : handle_flag(a, metadata, result.needs_check);
}

/* If the daemon could not keep what was read, findings mean nothing: its message comes last. */
static int check_online(const struct ctl_args *a)
{
	struct ctl_pin pin;
	int code, code2;

	if (a->clear_needs_check)
		return ctl_fail(CTL_BUSY, "%s is mounted: the flag is cleared when it is not",
				a->args[0]);
	code = ctl_pin(a->args[0], &pin);
	if (code)
		return code;
	code = check_devices(a, pin.metadata, pin.data_bytes);
	code2 = ctl_unpin(&pin);
	return code2 ? code2 : code;
}

int ctl_check(const struct ctl_args *a)
{
	struct io_device *data = NULL, *metadata = NULL;
	int code;

	if (ctl_is_mount(a->args[0]))
		return check_online(a);
	code = ctl_open_half(a->args[0], "metadata", a->clear_needs_check ? 0 : IO_OPEN_READ_ONLY,
			     &metadata);
	if (!code)
		code = ctl_open_half(a->args[0], "data", IO_OPEN_READ_ONLY, &data);
	if (!code && io_device_is_same(io_device_name(metadata), io_device_name(data)))
		code = ctl_fail(CTL_FAILED,
				"%s and %s are the same file or device: one of the two "
				"is a wrong link",
				io_device_name(metadata), io_device_name(data));
	if (!code)
		code = check_devices(a, metadata, io_device_size(data));
	io_device_close(data);
	io_device_close(metadata);
	return code;
}
