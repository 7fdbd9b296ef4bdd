/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dump.c - metadata as XML, of a pool that is not in use, or of a mounted one as it was when its
 * daemon was asked
 */
#include <stdio.h>

#include "ctl/ctl.h"
#include "io/device.h"
#include "thin/thin-dump.h"
#include "thin/thin-metadata.h"
#include "util/error.h"

#define CACHE_BYTES (UINT64_C(16) << 20)

static int dump_metadata(const char *pooldir, struct io_device *metadata)
{
	const struct thin_metadata_options options = { .cache_bytes = CACHE_BYTES,
						       .read_only = true };
	struct tp_error error = { "" };
	struct thin_metadata *tmd = NULL;
	int r, r2;

	r = thin_metadata_open(metadata, &options, &tmd, &error);
	if (r)
		return ctl_fail(CTL_FAILED, "%s cannot be dumped: %s", pooldir,
				error.text[0] ? error.text : tp_error_words(r));
	r = thin_dump(tmd, stdout);
	r2 = thin_metadata_close(tmd);
	if (r || r2)
		return ctl_fail(CTL_FAILED, "%s: the dump is not complete: %s", pooldir,
				tp_error_words(r ? r : r2));
	return CTL_OK;
}

int ctl_dump(const struct ctl_args *a)
{
	struct io_device *metadata = NULL;
	struct ctl_pin pin;
	int code, code2;

	if (ctl_is_mount(a->args[0])) {
		code = ctl_pin(a->args[0], &pin);
		if (code)
			return code;
		code = dump_metadata(a->args[0], pin.metadata);
		code2 = ctl_unpin(&pin);
		return code2 ? code2 : code;
	}
	code = ctl_open_half(a->args[0], "metadata", IO_OPEN_READ_ONLY, &metadata);
	if (!code)
		code = dump_metadata(a->args[0], metadata);
	io_device_close(metadata);
	return code;
}
