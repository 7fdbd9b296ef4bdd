/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * volume-name.c - what a volume may be called
 *
 * A volume is a file in a directory, and its name is printed in lists and logs.  So: what a
 * file system can hold, what a terminal shows as it is, and nothing that starts with a dot
 * (".thinpool" and hidden files are not volumes).  UTF-8 is checked strictly, so that two
 * byte strings never show as one name by way of an overlong form.
 */
#include <errno.h>
#include <string.h>

#include "catalog/catalog.h"
#include "util/utf8.h"

int volume_name_check(const char *name)
{
	size_t left = strnlen(name, VOLUME_NAME_MAX + 1), nr = 0;

	if (left > VOLUME_NAME_MAX)
		return -ENAMETOOLONG;
	if (left == 0 || *name == '.')
		return -EINVAL;

	for (; left; name += nr, left -= nr) {
		int32_t c = utf8_decode(name, left, &nr);

		if (c < 0x20 || c == '/' || (c >= 0x7f && c <= 0x9f))
			return -EINVAL;
	}
	return 0;
}
