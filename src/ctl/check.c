/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * check.c - the verb that verifies a pool that is not in use
 *
 * Both devices are opened first, so a pool in service is refused before anything is
 * looked at.  Nothing is ever written.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "ctl/ctl.h"
#include "io/device.h"
#include "thin/thin-check.h"

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

int ctl_open_half(const char *pooldir, const char *what, struct io_device **ret_dev)
{
	char path[PATH_BYTES];
	int r;

	if (snprintf(path, sizeof(path), "%s/%s", pooldir, what) >= (int)sizeof(path))
		return ctl_fail(CTL_USAGE, "%s: the path is too long", pooldir);
	r = io_device_open(path, IO_OPEN_READ_ONLY, ret_dev);
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
	if (result->needs_check)
		printf("%s: the needs_check flag is set: it will be served read-only\n", pooldir);
	return CTL_OK;
}

int ctl_check(const struct ctl_args *a)
{
	struct progress progress = { 0 };
	struct thin_check_options options = { .report = report_finding,
					      .progress =
						      isatty(STDERR_FILENO) ? show_progress : NULL,
					      .ctx = &progress,
					      .max_findings = MAX_FINDINGS };
	struct io_device *data = NULL, *metadata = NULL;
	struct thin_check_result result;
	int code, r;

	code = ctl_open_half(a->args[0], "metadata", &metadata);
	if (!code)
		code = ctl_open_half(a->args[0], "data", &data);
	if (!code && io_device_is_same(io_device_name(metadata), io_device_name(data)))
		code = ctl_fail(CTL_FAILED,
				"%s and %s are the same file or device: one of the two "
				"is a wrong link",
				io_device_name(metadata), io_device_name(data));
	if (!code) {
		options.data_bytes = io_device_size(data);
		r = thin_check(metadata, &options, &result);
		wipe_progress(&progress);
		code = r ? ctl_fail(CTL_FAILED, "%s cannot be checked: %s", a->args[0],
				    strerror(-r))
			 : print_result(a->args[0], &result);
	}
	io_device_close(data);
	io_device_close(metadata);
	return code;
}
