/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * main.c - replay inputs of a fuzz target without a fuzzer
 *
 *	usage: fuzz-TARGET FILE|DIRECTORY...
 *
 * One TAP line an input.  An input that takes longer than INPUT_SEC ends the program.
 */
#include "fuzz.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum { INPUT_SEC = 60, INPUT_MAX = 1 << 20 };

static unsigned nr_inputs;

static void replay_file(const char *path)
{
	uint8_t *data = malloc(INPUT_MAX);
	FILE *file = fopen(path, "rb");
	size_t size;

	if (!data || !file) {
		perror(path);
		exit(1);
	}
	size = fread(data, 1, INPUT_MAX, file);
	fclose(file);
	data = realloc(data, size + !size); /* so that a sanitizer sees its end */
	HOLDS(data);
	alarm(INPUT_SEC);
	fprintf(stderr, "# %s\n", path); /* in case it is the last */
	LLVMFuzzerTestOneInput(data, size);
	printf("ok %u - %s\n", ++nr_inputs, path);
	free(data);
}

static int is_input(const struct dirent *e)
{
	return e->d_name[0] != '.';
}

static void replay(const char *path)
{
	struct dirent **entries;
	struct stat st;
	char name[4096];
	int nr;

	if (stat(path, &st)) {
		perror(path);
		exit(1);
	}
	if (!S_ISDIR(st.st_mode)) {
		replay_file(path);
		return;
	}
	nr = scandir(path, &entries, is_input, alphasort);
	for (int i = 0; i < nr; i++) {
		snprintf(name, sizeof(name), "%s/%s", path, entries[i]->d_name);
		replay(name);
		free(entries[i]);
	}
	if (nr >= 0)
		free(entries);
}

int main(int argc, char **argv)
{
	LLVMFuzzerInitialize(&argc, &argv);
	for (int i = 1; i < argc; i++)
		replay(argv[i]);
	printf("1..%u\n", nr_inputs);
	return nr_inputs ? 0 : 1;
}
