/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuzz-config.c - files that call themselves a configuration
 *
 * An input is the text of a file, and of a second one behind the line "%%" (pool.conf over
 * thinpoold.conf).
 *
 * What must hold, besides that nothing breaks and nothing is leaked:
 *
 *	I1  a file is read, or refused with one line of UTF-8 that names it, and then the
 *	    configuration is what it was
 *	I2  every value is one that the daemon can work with
 *	I3  what is printed is read again, as the same values
 *	I4  a change while the daemon runs leaves alone what only a start can change
 */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/config.h"
#include "reclaim/pressure.h"
#include "util/clock.h"
#include "util/utf8.h"

#define SEPARATOR "\n%%\n"

static int file; /* in memory */
static char path[64];

static void write_file(const void *bytes, size_t size)
{
	HOLDS(!ftruncate(file, 0));
	HOLDS(pwrite(file, bytes, size, 0) == (ssize_t)size);
}

static char *print(const struct config *cfg, size_t *ret_size)
{
	char *text = NULL;
	FILE *out = open_memstream(&text, ret_size);

	HOLDS(out);
	config_print(cfg, out);
	HOLDS(!fclose(out));
	return text;
}

/* As text, for a structure has holes. */
static bool are_equal(const struct config *a, const struct config *b)
{
	size_t a_size, b_size;
	char *x = print(a, &a_size), *y = print(b, &b_size);
	bool equal = a_size == b_size && !memcmp(x, y, a_size);

	free(x);
	free(y);
	return equal;
}

static void check_mark(const struct pool_low_water *mark)
{
	HOLDS(mark->percent < 100 && mark->bytes <= INT64_MAX);
	HOLDS(!mark->percent || !mark->bytes);
}

/* I2. */
static void check_values(const struct config *cfg)
{
	HOLDS(cfg->cache_size >= 1 << 20 && cfg->cache_size <= UINT64_C(1) << 40);
	HOLDS(cfg->commit_interval_usec >= 10000 && cfg->commit_interval_usec <= 60000000);
	HOLDS(cfg->discard <= POOL_DISCARD_IGNORE && cfg->cache <= CONFIG_CACHE_NONE);
	HOLDS(cfg->no_space_timeout_usec <= 86400 * USEC_PER_SEC);
	HOLDS(cfg->workers >= 1 && cfg->workers <= 64);
	HOLDS(cfg->stall_usec && cfg->stall_usec < PRESSURE_WINDOW_USEC);
	HOLDS(cfg->timer_usec <= 86400 * USEC_PER_SEC);
	HOLDS(cfg->page_cache_limit_usec && cfg->page_cache_limit_usec <= 60 * USEC_PER_SEC);
	HOLDS(cfg->restart_limit >= 1 && cfg->restart_window_usec >= USEC_PER_SEC);
	HOLDS(cfg->log_level >= LOG_LEVEL_ERR && cfg->log_level <= LOG_LEVEL_DEBUG);
	check_mark(&cfg->low_water_data);
	check_mark(&cfg->low_water_metadata);
}

/* I3. */
static void read_again(const struct config *cfg)
{
	struct tp_error error = { "" };
	struct config again;
	size_t size;
	char *text = print(cfg, &size);

	config_set_defaults(&again);
	write_file(text, size);
	REQUIRE(!config_read(path, &again, &error), "%s", error.text);
	REQUIRE(are_equal(cfg, &again), "%s", text);
	HOLDS(again.cache_size == cfg->cache_size &&
	      again.commit_interval_usec == cfg->commit_interval_usec);
	HOLDS(again.low_water_data.bytes == cfg->low_water_data.bytes &&
	      again.low_water_data.percent == cfg->low_water_data.percent);
	REQUIRE(again.no_space_timeout_usec == cfg->no_space_timeout_usec &&
			again.timer_usec == cfg->timer_usec &&
			again.page_cache_interval_usec == cfg->page_cache_interval_usec &&
			again.restart_window_usec == cfg->restart_window_usec,
		"%s", text);
	free(text);
}

/* I1. */
static bool read_file(const void *bytes, size_t size, struct config *cfg)
{
	struct tp_error error = { "" };
	struct config before = *cfg;
	int r;

	write_file(bytes, size);
	r = config_read(path, cfg, &error);
	HOLDS(!r || r == -EINVAL);
	if (!r)
		return true;
	HOLDS(are_equal(&before, cfg));
	REQUIRE(strstr(error.text, path) && !strchr(error.text, '\n') &&
			utf8_is_valid(error.text, strlen(error.text)),
		"%s", error.text);
	return false;
}

/* I4. */
static void change(const struct config *from, const struct config *to)
{
	struct config_changes changes;
	struct config cfg = *from;

	HOLDS(!config_apply(&cfg, to, &changes));
	HOLDS(cfg.workers == from->workers && cfg.lock_memory == from->lock_memory &&
	      cfg.restart_limit == from->restart_limit);
	HOLDS(cfg.cache_size == to->cache_size && cfg.log_level == to->log_level);
	HOLDS(!changes.made[0] == are_equal(from, &cfg));
	HOLDS(!changes.later[0] == are_equal(to, &cfg));
	check_values(&cfg);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	file = memfd_create("configuration", MFD_CLOEXEC);
	HOLDS(file >= 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const uint8_t *cut = memmem(data, size, SEPARATOR, strlen(SEPARATOR));
	size_t first = cut ? (size_t)(cut - data) : size;
	struct config defaults, cfg;

	config_set_defaults(&defaults);
	cfg = defaults;
	if (read_file(data, first, &cfg))
		read_again(&cfg);
	change(&defaults, &cfg);
	if (cut && read_file(cut + strlen(SEPARATOR), size - first - strlen(SEPARATOR), &cfg))
		read_again(&cfg);
	check_values(&cfg);
	change(&cfg, &defaults);
	return 0;
}
