/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * config.c - the INI configuration
 *
 * One table says everything about a key: where it stands, how it is read and
 * written, and its default as text, so that defaults, files and the printed
 * configuration cannot disagree.  libinih splits the lines; it cuts long ones in
 * two and hands no line numbers to its handler, so the text is looked at first
 * (length, encoding) and the number of the first bad line is what it returns.
 */
#include "daemon/config.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <ini.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "reclaim/pressure.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/parse-size.h"
#include "util/utf8.h"

struct config_key;

struct value_kind {
	/* 0, or -EINVAL; *@field is written on success only */
	int (*parse)(const struct config_key *key, const char *text, void *field);
	void (*print)(const struct config_key *key, const void *field, FILE *out);
};

struct config_key {
	const char *section, *name, *def;
	size_t offset;
	bool at_once; /* can change while the daemon runs */
	const struct value_kind *kind;
	uint64_t min, max;        /* sizes, counts, seconds */
	const char *const *words; /* enumerations: NULL-terminated, in the order of the values */
	const char *expected;     /* for the message */
};

/* ---- kinds of value ---- */

static int parse_size_value(const struct config_key *key, const char *text, void *field)
{
	uint64_t bytes;
	int r = parse_size(text, &bytes);

	if (r || bytes < key->min || bytes > key->max)
		return -EINVAL;
	*(uint64_t *)field = bytes;
	return 0;
}

static void print_size_value(const struct config_key *key, const void *field, FILE *out)
{
	char buf[FORMAT_SIZE_MAX];
	uint64_t bytes = *(const uint64_t *)field, back;

	(void)key;
	/* The short form only if it says exactly the same. */
	if (bytes && !parse_size(format_size(bytes, buf, sizeof(buf)), &back) && back == bytes)
		fputs(buf, out);
	else
		fprintf(out, "%" PRIu64, bytes);
}

/* "10%" of the total, or a size. */
static int parse_mark_value(const struct config_key *key, const char *text, void *field)
{
	struct pool_low_water mark = { 0 };
	size_t len = strlen(text), digits = strspn(text, "0123456789");

	if (len && text[len - 1] == '%') {
		if (digits != len - 1 || !digits || digits > 2)
			return -EINVAL;
		mark.percent = strtoul(text, NULL, 10);
	} else if (parse_size_value(key, text, &mark.bytes)) {
		return -EINVAL;
	}
	*(struct pool_low_water *)field = mark;
	return 0;
}

static void print_mark_value(const struct config_key *key, const void *field, FILE *out)
{
	const struct pool_low_water *mark = field;

	if (mark->percent)
		fprintf(out, "%" PRIu64 "%%", mark->percent);
	else
		print_size_value(key, &mark->bytes, out);
}

/* Decimal seconds, down to a millisecond: "1", "0.5". */
static int parse_seconds_value(const struct config_key *key, const char *text, void *field)
{
	uint64_t msec;
	double seconds;
	char *end;

	if (*text < '0' || *text > '9' || strspn(text, "0123456789.") != strlen(text))
		return -EINVAL;
	seconds = strtod(text, &end);
	if (*end || seconds * USEC_PER_SEC < (double)key->min ||
	    seconds * USEC_PER_SEC > (double)key->max)
		return -EINVAL;
	msec = (uint64_t)(seconds * 1000 + 0.5);
	if (!msec && seconds > 0)
		return -EINVAL; /* 0 means something else */
	*(uint64_t *)field = msec * USEC_PER_MSEC;
	return 0;
}

static void print_seconds_value(const struct config_key *key, const void *field, FILE *out)
{
	uint64_t msec = *(const uint64_t *)field / USEC_PER_MSEC;
	char text[32];
	size_t n = (size_t)snprintf(text, sizeof(text), "%" PRIu64 ".%03u", msec / 1000,
				    (unsigned)(msec % 1000));

	(void)key;
	while (text[n - 1] == '0')
		text[--n] = '\0';
	if (text[n - 1] == '.')
		text[--n] = '\0';
	fputs(text, out);
}

static int parse_count_value(const struct config_key *key, const char *text, void *field)
{
	unsigned long n;
	char *end;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	n = strtoul(text, &end, 10);
	if (errno || *end || n < key->min || n > key->max)
		return -EINVAL;
	*(unsigned *)field = (unsigned)n;
	return 0;
}

static void print_count_value(const struct config_key *key, const void *field, FILE *out)
{
	(void)key;
	fprintf(out, "%u", *(const unsigned *)field);
}

/* "80%". */
static int parse_percent_value(const struct config_key *key, const char *text, void *field)
{
	size_t digits = strspn(text, "0123456789");
	unsigned long n = strtoul(text, NULL, 10);

	if (!digits || digits > 4 || strcmp(text + digits, "%") || n < key->min || n > key->max)
		return -EINVAL;
	*(unsigned *)field = (unsigned)n;
	return 0;
}

static void print_percent_value(const struct config_key *key, const void *field, FILE *out)
{
	(void)key;
	fprintf(out, "%u%%", *(const unsigned *)field);
}

/* Looked at when it is read, so that a mistake is told before the day it is needed. */
static int parse_program_value(const struct config_key *key, const char *text, void *field)
{
	struct stat st;

	(void)key;
	if (*text && (*text != '/' || stat(text, &st) || !S_ISREG(st.st_mode) ||
		      access(text, X_OK) || strlen(text) > CONFIG_LINE_MAX))
		return -EINVAL;
	memcpy(field, text, strlen(text) + 1);
	return 0;
}

static void print_program_value(const struct config_key *key, const void *field, FILE *out)
{
	(void)key;
	fputs(field, out);
}

static int find_word(const struct config_key *key, const char *text)
{
	for (int i = 0; key->words[i]; i++)
		if (!strcmp(key->words[i], text))
			return i;
	return -EINVAL;
}

static int parse_bool_value(const struct config_key *key, const char *text, void *field)
{
	int i = find_word(key, text);

	if (i < 0)
		return i;
	*(bool *)field = i == 1;
	return 0;
}

static void print_bool_value(const struct config_key *key, const void *field, FILE *out)
{
	fputs(key->words[*(const bool *)field ? 1 : 0], out);
}

static int parse_word_value(const struct config_key *key, const char *text, void *field)
{
	int i = find_word(key, text);

	if (i < 0)
		return i;
	*(int *)field = i;
	return 0;
}

static void print_word_value(const struct config_key *key, const void *field, FILE *out)
{
	fputs(key->words[*(const int *)field], out);
}

static const char *const level_words[] = { "error", "warning", "info", "debug", NULL };
static const enum log_level level_values[] = { LOG_LEVEL_ERR, LOG_LEVEL_WARN, LOG_LEVEL_INFO,
					       LOG_LEVEL_DEBUG };

static int parse_level_value(const struct config_key *key, const char *text, void *field)
{
	int i = find_word(key, text);

	if (i < 0)
		return i;
	*(enum log_level *)field = level_values[i];
	return 0;
}

static void print_level_value(const struct config_key *key, const void *field, FILE *out)
{
	for (size_t i = 0; i < ARRAY_SIZE(level_values); i++)
		if (level_values[i] == *(const enum log_level *)field)
			fputs(key->words[i], out);
}

static const struct value_kind kind_size = { parse_size_value, print_size_value };
static const struct value_kind kind_mark = { parse_mark_value, print_mark_value };
static const struct value_kind kind_seconds = { parse_seconds_value, print_seconds_value };
static const struct value_kind kind_count = { parse_count_value, print_count_value };
static const struct value_kind kind_program = { parse_program_value, print_program_value };
static const struct value_kind kind_percent = { parse_percent_value, print_percent_value };
static const struct value_kind kind_bool = { parse_bool_value, print_bool_value };
static const struct value_kind kind_word = { parse_word_value, print_word_value };
static const struct value_kind kind_level = { parse_level_value, print_level_value };

/* ---- the keys ---- */

static const char *const yes_no_words[] = { "no", "yes", NULL };
static const char *const no_space_words[] = { "error", "queue", NULL };
static const char *const discard_words[] = { "passdown", "no_passdown", "ignore", NULL };
static const char *const io_uring_words[] = { "auto", "yes", "no", NULL };
static const char *const cache_words[] = { "pages", "none", NULL };

#define FIELD(f) .offset = offsetof(struct config, f)
#define AT_ONCE .at_once = true
#define SECONDS(n) ((n)*USEC_PER_SEC)

/* clang-format off: a table */
static const struct config_key keys[] = {
	{ "pool", "cache_size", "64M", AT_ONCE, FIELD(cache_size), .kind = &kind_size,
	  .min = 1 << 20, .max = UINT64_C(1) << 40, .expected = "a size from 1M to 1T" },
	{ "pool", "commit_interval", "1", AT_ONCE, FIELD(commit_interval_usec),
	  .kind = &kind_seconds, .min = SECONDS(1) / 100, .max = SECONDS(60),
	  .expected = "seconds from 0.01 to 60" },
	{ "pool", "discard", "passdown", AT_ONCE, FIELD(discard), .kind = &kind_word,
	  .words = discard_words, .expected = "passdown, no_passdown or ignore" },
	{ "pool", "zero_new_blocks", "yes", AT_ONCE, FIELD(zero_new_blocks), .kind = &kind_bool,
	  .words = yes_no_words, .expected = "yes or no" },
	{ "pool", "no_space", "queue", AT_ONCE, FIELD(queue_if_no_space), .kind = &kind_bool,
	  .words = no_space_words, .expected = "error or queue" },
	{ "pool", "no_space_timeout", "60", AT_ONCE, FIELD(no_space_timeout_usec),
	  .kind = &kind_seconds, .min = 0, .max = SECONDS(86400),
	  .expected = "seconds from 0 (for ever) to 86400" },
	{ "pool", "low_water_data", "10%", AT_ONCE, FIELD(low_water_data), .kind = &kind_mark,
	  .max = INT64_MAX, .expected = "a percentage from 0% (none) to 99%, or a size" },
	{ "pool", "low_water_metadata", "10%", AT_ONCE, FIELD(low_water_metadata),
	  .kind = &kind_mark, .max = INT64_MAX,
	  .expected = "a percentage from 0% (none) to 99%, or a size" },
	{ "pool", "on_low_space", "", AT_ONCE, FIELD(on_low_space), .kind = &kind_program,
	  .expected = "the absolute path of a program that can be executed, or nothing" },
	{ "pool", "on_low_space_timeout", "60", AT_ONCE, FIELD(on_low_space_timeout_usec),
	  .kind = &kind_seconds, .min = SECONDS(1), .max = SECONDS(86400),
	  .expected = "seconds from 1 to 86400" },
	{ "pool", "autoextend_threshold", "80%", AT_ONCE, FIELD(autoextend_threshold),
	  .kind = &kind_percent, .min = 1, .max = 100,
	  .expected = "a percentage from 1% to 100% (never)" },
	{ "pool", "autoextend_percent", "20%", AT_ONCE, FIELD(autoextend_percent),
	  .kind = &kind_percent, .min = 1, .max = 1000,
	  .expected = "a percentage from 1% to 1000%" },
	{ "pool", "max_size", "0", AT_ONCE, FIELD(max_size), .kind = &kind_size, .max = INT64_MAX,
	  .expected = "a size, or 0 for none" },
	{ "fuse", "workers", "2", FIELD(workers), .kind = &kind_count, .min = 1, .max = 64,
	  .expected = "a number from 1 to 64" },
	{ "fuse", "cache", "pages", FIELD(cache), .kind = &kind_word, .words = cache_words,
	  .expected = "pages or none" },
	{ "fuse", "allow_other", "no", FIELD(allow_other), .kind = &kind_bool,
	  .words = yes_no_words, .expected = "yes or no" },
	{ "fuse", "max_background", "256", FIELD(max_background), .kind = &kind_count, .min = 1,
	  .max = 1024, .expected = "a number from 1 to 1024" },
	{ "fuse", "io_uring", "auto", FIELD(io_uring), .kind = &kind_word, .words = io_uring_words,
	  .expected = "auto, yes or no" },
	{ "fuse", "io_uring_depth", "320", FIELD(io_uring_depth), .kind = &kind_count, .min = 1,
	  .max = 960, .expected = "a number from 1 to 960" },
	{ "reclaim", "psi", "yes", FIELD(psi), .kind = &kind_bool, .words = yes_no_words,
	  .expected = "yes or no" },
	{ "reclaim", "cgroup", "yes", FIELD(cgroup), .kind = &kind_bool, .words = yes_no_words,
	  .expected = "yes or no" },
	{ "reclaim", "watch", "yes", FIELD(watch), .kind = &kind_bool, .words = yes_no_words,
	  .expected = "yes or no" },
	{ "reclaim", "request", "yes", FIELD(request), .kind = &kind_bool, .words = yes_no_words,
	  .expected = "yes or no" },
	{ "reclaim", "stall", "0.2", FIELD(stall_usec), .kind = &kind_seconds,
	  .min = SECONDS(1) / 1000, .max = PRESSURE_WINDOW_USEC - SECONDS(1) / 1000,
	  .expected = "seconds from 0.001 to 1.999" },
	{ "reclaim", "timer", "0", FIELD(timer_usec), .kind = &kind_seconds, .min = 0,
	  .max = SECONDS(86400), .expected = "seconds from 0 (none) to 86400" },
	{ "reclaim", "page_cache", "no", FIELD(page_cache), .kind = &kind_bool,
	  .words = yes_no_words, .expected = "yes or no" },
	{ "reclaim", "page_cache_limit", "0.1", FIELD(page_cache_limit_usec), .kind = &kind_seconds,
	  .min = SECONDS(1) / 1000, .max = SECONDS(60), .expected = "seconds from 0.001 to 60" },
	{ "reclaim", "page_cache_interval", "10", FIELD(page_cache_interval_usec),
	  .kind = &kind_seconds, .min = 0, .max = SECONDS(86400),
	  .expected = "seconds from 0 to 86400" },
	{ "daemon", "lock_memory", "yes", FIELD(lock_memory), .kind = &kind_bool,
	  .words = yes_no_words, .expected = "yes or no" },
	{ "daemon", "restart_limit", "10", FIELD(restart_limit), .kind = &kind_count, .min = 1,
	  .max = 100000, .expected = "a number from 1 to 100000" },
	{ "daemon", "restart_window", "60", FIELD(restart_window_usec), .kind = &kind_seconds,
	  .min = SECONDS(1), .max = SECONDS(86400), .expected = "seconds from 1 to 86400" },
	{ "daemon", "log_level", "info", AT_ONCE, FIELD(log_level), .kind = &kind_level,
	  .words = level_words, .expected = "error, warning, info or debug" },
};
/* clang-format on */

static void *field_of(const struct config_key *key, struct config *cfg)
{
	return (char *)cfg + key->offset;
}

void config_set_defaults(struct config *cfg)
{
	memset(cfg, 0, sizeof(*cfg));
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
		TP_INVARIANT(!keys[i].kind->parse(&keys[i], keys[i].def, field_of(&keys[i], cfg)));
}

void config_print(const struct config *cfg, FILE *out)
{
	const char *section = "";

	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		if (strcmp(section, keys[i].section)) {
			fprintf(out, "%s[%s]\n", *section ? "\n" : "", keys[i].section);
			section = keys[i].section;
		}
		fprintf(out, "%s = ", keys[i].name);
		keys[i].kind->print(&keys[i], (const char *)cfg + keys[i].offset, out);
		fputc('\n', out);
	}
}

/* ---- changing it while the daemon runs ---- */

/* The value as the file has it; NULL: no memory. */
static char *value_text(const struct config_key *key, const struct config *cfg)
{
	char *text = NULL;
	size_t length;
	FILE *out = open_memstream(&text, &length);

	if (!out)
		return NULL;
	key->kind->print(key, (const char *)cfg + key->offset, out);
	if (!fclose(out))
		return text;
	free(text);
	return NULL;
}

static void append(char *list, size_t size, const char *name, const char *value)
{
	size_t used = strlen(list);

	snprintf(list + used, size - used, "%s%s%s%s", used ? ", " : "", name, *value ? " = " : "",
		 value);
}

int config_apply(struct config *cfg, const struct config *fresh, struct config_changes *ret_changes)
{
	struct config_changes changes = { "", "" };
	struct config next = *cfg;

	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		TP_CLEANUP(tp_free_string) char *is = value_text(&keys[i], cfg);
		TP_CLEANUP(tp_free_string) char *wanted = value_text(&keys[i], fresh);

		if (!is || !wanted)
			return -ENOMEM;
		if (!strcmp(is, wanted))
			continue;
		if (!keys[i].at_once) {
			append(changes.later, sizeof(changes.later), keys[i].name, "");
			continue;
		}
		append(changes.made, sizeof(changes.made), keys[i].name, wanted);
		if (keys[i].kind->parse(&keys[i], wanted, field_of(&keys[i], &next)))
			return -EINVAL; /* it was printed from a value that was parsed */
	}
	*cfg = next;
	*ret_changes = changes;
	return 0;
}

/* ---- reading a file ---- */

struct reading {
	struct config cfg; /* becomes the caller's when all is well */
	bool seen[ARRAY_SIZE(keys)];
	struct tp_error what; /* the first mistake, without file and line */
};

static bool section_exists(const char *section)
{
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
		if (!strcmp(keys[i].section, section))
			return true;
	return false;
}

/* libinih's handler: 0 makes this line the one ini_parse_string() returns, if it is the first. */
static int handle_line(void *ctx, const char *section, const char *name, const char *value)
{
	struct reading *rd = ctx;

	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		if (strcmp(keys[i].section, section) || strcmp(keys[i].name, name))
			continue;
		if (rd->seen[i]) {
			tp_error(&rd->what, 0, "\"%s\" is set twice, remove one", name);
			return 0;
		}
		rd->seen[i] = true;
		if (!value || keys[i].kind->parse(&keys[i], value, field_of(&keys[i], &rd->cfg))) {
			tp_error(&rd->what, 0, "\"%s\" is no value for %s, expected %s",
				 value ? value : "", name, keys[i].expected);
			return 0;
		}
		return 1;
	}
	if (!*section)
		tp_error(&rd->what, 0, "\"%s\" stands before any [section]", name);
	else if (!section_exists(section))
		tp_error(&rd->what, 0, "unknown section [%s], see thinpoold.conf(5)", section);
	else
		tp_error(&rd->what, 0, "unknown key \"%s\" in [%s], see thinpoold.conf(5)", name,
			 section);
	return 0;
}

/*
 * What is wrong with the form of a line, or NULL.  libinih goes on after such a line, and takes an
 * indented one as part of the value before, which nobody means.
 */
static const char *mistake_in_form(const char *line, size_t n)
{
	size_t indent = 0;

	while (indent < n && isspace((unsigned char)line[indent]))
		indent++;
	if (indent == n || line[indent] == '#' || line[indent] == ';')
		return NULL;
	if (indent)
		return "the line is indented, move it to the left margin";
	if (*line == '[')
		return memchr(line, ']', n) ? NULL : "the name of the section lacks its \"]\"";
	return memchr(line, '=', n) || memchr(line, ':', n) ? NULL : "expected \"key = value\"";
}

/* A section that holds no key never reaches the handler, so look at the text for it too. */
static int check_text(const char *path, const char *text, size_t len, struct tp_error *error)
{
	unsigned line = 1;

	for (const char *p = text, *end = text + len; p < end; line++) {
		const char *eol = memchr(p, '\n', (size_t)(end - p));
		size_t n = (size_t)((eol ? eol : end) - p);
		char section[CONFIG_LINE_MAX + 1];

		if (n > CONFIG_LINE_MAX)
			return tp_error(error, -EINVAL, "%s:%u: the line is longer than %u bytes",
					path, line, CONFIG_LINE_MAX);
		if (memchr(p, '\0', n) || !utf8_is_valid(p, n))
			return tp_error(error, -EINVAL, "%s:%u: the line is not UTF-8 text", path,
					line);
		if (mistake_in_form(p, n))
			return tp_error(error, -EINVAL, "%s:%u: %s", path, line,
					mistake_in_form(p, n));
		if (*p == '[') {
			memcpy(section, p + 1, n - 1);
			*strchr(section, ']') = '\0';
			if (!section_exists(section))
				return tp_error(
					error, -EINVAL,
					"%s:%u: unknown section [%s], see thinpoold.conf(5)", path,
					line, section);
		}
		p += n + 1;
	}
	return 0;
}

/*
 * Opening a FIFO would wait for somebody to write, and what it says could not be read again.
 * A character device may be /dev/null, for no configuration at all.
 */
static int open_text(const char *path, int *ret_fd, struct tp_error *error)
{
	TP_CLEANUP(tp_close_fd) int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	struct stat st;

	if (fd < 0 && errno == ENOENT)
		return -ENOENT;
	if (fd < 0 || fstat(fd, &st))
		return tp_error(error, -EINVAL, "%s: cannot be read: %s", path, strerror(errno));
	if (S_ISDIR(st.st_mode))
		return tp_error(error, -EINVAL, "%s: cannot be read: %s", path, strerror(EISDIR));
	if (!S_ISREG(st.st_mode) && !S_ISCHR(st.st_mode))
		return tp_error(error, -EINVAL, "%s: cannot be read: not a regular file", path);
	*ret_fd = fd;
	fd = -1;
	return 0;
}

/* Up to @size bytes. */
static int read_bytes(int fd, char *text, size_t size, size_t *ret_len)
{
	size_t len = 0;

	while (len < size) {
		ssize_t n = read(fd, text + len, size - len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n)
			break;
		len += (size_t)n;
	}
	*ret_len = len;
	return 0;
}

/* The whole file as a string; the caller frees it. */
static int read_text(const char *path, char **ret_text, size_t *ret_len, struct tp_error *error)
{
	TP_CLEANUP(tp_free_string) char *text = malloc(CONFIG_FILE_MAX + 2);
	TP_CLEANUP(tp_close_fd) int fd = -1;
	size_t len = 0;
	int r;

	if (!text)
		return tp_error(error, -ENOMEM, "%s: out of memory", path);
	r = open_text(path, &fd, error);
	if (r)
		return r;
	r = read_bytes(fd, text, CONFIG_FILE_MAX + 1, &len);
	if (r)
		return tp_error(error, -EINVAL, "%s: cannot be read: %s", path, strerror(-r));
	if (len > CONFIG_FILE_MAX)
		return tp_error(error, -EINVAL, "%s: is larger than %u bytes", path,
				CONFIG_FILE_MAX);
	text[len] = '\0';
	*ret_text = tp_take(&text);
	*ret_len = len;
	return 0;
}

int config_read(const char *path, struct config *cfg, struct tp_error *error)
{
	TP_CLEANUP(tp_free_string) char *text = NULL;
	struct reading rd = { .cfg = *cfg };
	size_t len = 0;
	int r = read_text(path, &text, &len, error);

	if (!r)
		r = check_text(path, text, len, error);
	if (r)
		return r;
	r = ini_parse_string(text, handle_line, &rd);
	if (r > 0)
		return tp_error(error, -EINVAL, "%s:%d: %s", path, r, rd.what.text);
	if (r)
		return tp_error(error, -ENOMEM, "%s: out of memory", path);
	*cfg = rd.cfg;
	return 0;
}
