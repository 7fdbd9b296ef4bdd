/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * main.c - thinpoolctl: the verbs and their command lines
 *
 * One table entry a verb: its arguments, its options, its function.  argp makes
 * --help and --usage of each from it.
 */
#include <argp.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/ctl.h"
#include "util/error.h"
#include "util/parse-size.h"

const char *argp_program_version = "thinpoolctl " TP_VERSION;
const char *argp_program_bug_address = NULL;

enum {
	OPT_SIZE = 's',
	OPT_JSON = 256,
	OPT_FORCE,
	OPT_READ_ONLY,
	OPT_SHRINK,
	OPT_BLOCK_SIZE,
	OPT_METADATA_SIZE,
	OPT_DATA,
	OPT_METADATA,
	OPT_EXTEND_DATA,
	OPT_EXTEND_METADATA,
	OPT_CLEAR_NEEDS_CHECK,
};

#define OPTION_JSON \
	{ \
		"json", OPT_JSON, NULL, 0, "Print JSON", 0 \
	}

static const struct argp_option json_options[] = { OPTION_JSON, { 0 } };
static const struct argp_option format_options[] = {
	{ "size", OPT_SIZE, "SIZE", 0, "Room for data; block devices default to their size", 0 },
	{ "block-size", OPT_BLOCK_SIZE, "SIZE", 0,
	  "Unit of allocation: a multiple of 64K up to 1G (default: 64K)", 0 },
	{ "metadata-size", OPT_METADATA_SIZE, "SIZE", 0,
	  "Room for metadata (default: 64 bytes a data block, at least 16M)", 0 },
	{ "data", OPT_DATA, "PATH", 0, "Keep data in this file or block device", 0 },
	{ "metadata", OPT_METADATA, "PATH", 0, "Keep metadata in this file or block device", 0 },
	{ "force", OPT_FORCE, NULL, 0, "Overwrite what is there", 0 },
	{ 0 },
};
static const struct argp_option check_options[] = {
	{ "clear-needs-check", OPT_CLEAR_NEEDS_CHECK, NULL, 0,
	  "If nothing is damaged, let the pool be written to again", 0 },
	{ 0 },
};
static const struct argp_option create_options[] = {
	{ "size", OPT_SIZE, "SIZE", 0, "What the volume claims to be", 0 },
	{ 0 },
};
static const struct argp_option snapshot_options[] = {
	{ "read-only", OPT_READ_ONLY, NULL, 0, "Let nobody write to the snapshot", 0 },
	{ 0 },
};
static const struct argp_option resize_options[] = {
	{ "shrink", OPT_SHRINK, NULL, 0, "Allow it to lose what lies past the new end", 0 },
	{ 0 },
};

static const struct argp_option extend_options[] = {
	{ "data", OPT_EXTEND_DATA, "SIZE", 0, "Room for data from now on", 0 },
	{ "metadata", OPT_EXTEND_METADATA, "SIZE", 0, "Room for metadata from now on", 0 },
	{ 0 },
};

struct verb {
	const char *name, *arguments, *about;
	unsigned nr_args;
	const struct argp_option *options;
	int (*run)(const struct ctl_args *a);
};

static const struct verb verbs[] = {
	{ "format", "POOLDIR", "Make a new pool in a directory", 1, format_options, ctl_format },
	{ "check", "POOLDIR|MNT", "Verify the metadata of a pool", 1, check_options, ctl_check },
	{ "dump", "POOLDIR|MNT", "Print the metadata as XML, as thin_dump does", 1, NULL,
	  ctl_dump },
	{ "create", "MNT/VOLUME", "Create a volume", 1, create_options, ctl_create },
	{ "snapshot", "MNT/VOLUME MNT/SNAPSHOT", "Take a snapshot of a volume", 2, snapshot_options,
	  ctl_snapshot },
	{ "delete", "MNT/VOLUME", "Delete a volume that nobody has open", 1, NULL, ctl_delete },
	{ "rename", "MNT/VOLUME MNT/NEW", "Rename a volume", 2, NULL, ctl_rename },
	{ "resize", "MNT/VOLUME SIZE", "Change what a volume claims to be", 2, resize_options,
	  ctl_resize },
	{ "metadata-snap", "reserve|release MNT", "Keep a copy of the metadata for thin_dump -m", 2,
	  NULL, ctl_metadata_snap },
	{ "extend", "MNT", "Make a pool larger while it is in use", 1, extend_options, ctl_extend },
	{ "list", "MNT", "List the volumes of a pool", 1, json_options, ctl_list },
	{ "status", "MNT", "Show how a pool is doing", 1, json_options, ctl_status },
	{ "trim", "MNT", "Give every free data block back to the host", 1, json_options, ctl_trim },
	{ "reclaim", "MNT", "Give back the memory of caches", 1, json_options, ctl_reclaim },
	{ "restart", "MNT", "Let a new daemon take over, while the mount is in use", 1,
	  json_options, ctl_restart },
};

int ctl_fail(enum ctl_exit code, const char *fmt, ...)
{
	char line[1024];
	va_list args;

	va_start(args, fmt);
	vsnprintf(line, sizeof(line), fmt, args);
	va_end(args);
	fflush(stdout); /* what was found comes before what follows from it */
	fprintf(stderr, "thinpoolctl: %s\n", one_line(line));
	return (int)code;
}

const char *ctl_size_words(int r)
{
	return r == -ERANGE ? "too large, or no whole number of bytes"
			    : "no size: write 10G, 512M, 64K ...";
}

enum ctl_exit ctl_exit_of(int r)
{
	switch (r) {
	case 0:
		return CTL_OK;
	case -ENOENT:
		return CTL_NOT_FOUND;
	case -EEXIST:
		return CTL_EXISTS;
	case -EBUSY:
		return CTL_BUSY;
	case -ENOSPC:
		return CTL_NO_SPACE;
	default:
		return CTL_FAILED;
	}
}

/* ---- one verb ---- */

/* The one line that a mistake on the command line gets. */
static TP_NORETURN void usage_error(struct argp_state *state, const char *fmt, ...) TP_PRINTF(2, 3);

static void usage_error(struct argp_state *state, const char *fmt, ...)
{
	char line[1024];
	va_list args;

	va_start(args, fmt);
	vsnprintf(line, sizeof(line), fmt, args);
	va_end(args);
	fprintf(stderr, "%s: %s\n", state->name, one_line(line));
	exit(CTL_USAGE);
}

struct parsing {
	const struct verb *verb;
	struct ctl_args args;
};

static void size_argument(struct argp_state *state, const char *option, const char *text,
			  uint64_t *ret_bytes)
{
	int r = parse_size(text, ret_bytes);

	if (r)
		usage_error(state, "%s \"%s\" is %s", option, text, ctl_size_words(r));
}

static error_t parse_verb_option(int key, char *arg, struct argp_state *state)
{
	struct parsing *p = state->input;
	struct ctl_args *a = &p->args;

	switch (key) {
	case OPT_SIZE:
		size_argument(state, "--size", arg, &a->size);
		a->has_size = true;
		return 0;
	case OPT_BLOCK_SIZE:
		size_argument(state, "--block-size", arg, &a->block_size);
		if (!a->block_size)
			usage_error(state, "--block-size must not be 0");
		return 0;
	case OPT_METADATA_SIZE:
		size_argument(state, "--metadata-size", arg, &a->metadata_size);
		if (!a->metadata_size)
			usage_error(state, "--metadata-size must not be 0");
		return 0;
	case OPT_EXTEND_DATA:
		size_argument(state, "--data", arg, &a->size);
		a->has_size = true;
		if (!a->size)
			usage_error(state, "--data must not be 0");
		return 0;
	case OPT_EXTEND_METADATA:
		size_argument(state, "--metadata", arg, &a->metadata_size);
		if (!a->metadata_size)
			usage_error(state, "--metadata must not be 0");
		return 0;
	case OPT_DATA:
		a->data = arg;
		return 0;
	case OPT_METADATA:
		a->metadata = arg;
		return 0;
	case OPT_JSON:
		a->json = true;
		return 0;
	case OPT_FORCE:
		a->force = true;
		return 0;
	case OPT_READ_ONLY:
		a->read_only = true;
		return 0;
	case OPT_SHRINK:
		a->shrink = true;
		return 0;
	case OPT_CLEAR_NEEDS_CHECK:
		a->clear_needs_check = true;
		return 0;
	case ARGP_KEY_ARG:
		if (a->nr_args == p->verb->nr_args)
			usage_error(state, "too many arguments: \"%s\"", arg);
		a->args[a->nr_args++] = arg;
		return 0;
	case ARGP_KEY_END:
		if (a->nr_args < p->verb->nr_args)
			usage_error(state, "expected %s", p->verb->arguments);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static int run_verb(const struct verb *verb, int argc, char **argv)
{
	struct argp argp = { .options = verb->options,
			     .parser = parse_verb_option,
			     .args_doc = verb->arguments,
			     .doc = verb->about };
	struct parsing p = { .verb = verb };
	char name[64];
	int code;

	/* argp names the program by argv[0] in its messages. */
	snprintf(name, sizeof(name), "thinpoolctl %s", verb->name);
	argv[0] = name;
	argp_parse(&argp, argc, argv, 0, NULL, &p);
	code = verb->run(&p.args);
	if (fflush(stdout) || ferror(stdout))
		return ctl_fail(code ? (enum ctl_exit)code : CTL_FAILED,
				"standard output cannot be written");
	return code;
}

/* ---- the program ---- */

static void print_help(FILE *out)
{
	fputs("Usage: thinpoolctl VERB [OPTION...] ARGUMENT...\n"
	      "Make and check thin pools, and manage the volumes of a mounted one.\n\n",
	      out);
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		fprintf(out, "  %-13s %-24s %s\n", verbs[i].name, verbs[i].arguments,
			verbs[i].about);
	fputs("\nSizes: K, M, G ... are powers of 1024 (KB, MB ... of 1000), s is sectors of 512.\n"
	      "thinpoolctl VERB --help tells the options of a verb.  See thinpoolctl(8).\n",
	      out);
}

int main(int argc, char **argv)
{
	const char *word = argc > 1 ? argv[1] : "";

	argp_err_exit_status = CTL_USAGE;
	if (!strcmp(word, "--help") || !strcmp(word, "-?") || !strcmp(word, "help")) {
		print_help(stdout);
		return CTL_OK;
	}
	if (!strcmp(word, "--version") || !strcmp(word, "-V")) {
		puts(argp_program_version);
		return CTL_OK;
	}
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		if (!strcmp(word, verbs[i].name))
			return run_verb(&verbs[i], argc - 1, argv + 1);
	if (!*word)
		print_help(stderr);
	else
		ctl_fail(CTL_USAGE, "no verb \"%s\", see thinpoolctl --help", word);
	return CTL_USAGE;
}
