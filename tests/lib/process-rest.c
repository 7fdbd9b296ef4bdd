/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * process-rest.c - does a process hang?
 *
 * From /proc/PID/task/TID/stat (the state) and schedstat (how often it has run).
 */
#include "process-rest.h"

#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOOK_USEC 1000u

static bool read_line(const char *path, char *line, int size)
{
	FILE *f = fopen(path, "re");
	bool got = f && fgets(line, size, f);

	if (f)
		fclose(f);
	return got;
}

/* False: a thread is awake, or has just gone. */
static bool thread_sleeps(pid_t pid, const char *tid, uint64_t *total_runs)
{
	char path[64], line[512], *state;
	unsigned long long ran, waited, runs;

	snprintf(path, sizeof(path), "/proc/%d/task/%.16s/stat", (int)pid, tid);
	if (!read_line(path, line, sizeof(line)))
		return false;
	state = strrchr(line, ')'); /* the name before it may hold anything */
	if (!state || state[1] != ' ' || state[2] != 'S')
		return false;
	snprintf(path, sizeof(path), "/proc/%d/task/%.16s/schedstat", (int)pid, tid);
	if (!read_line(path, line, sizeof(line)) ||
	    sscanf(line, "%llu %llu %llu", &ran, &waited, &runs) != 3)
		return false;
	*total_runs += runs;
	return true;
}

static bool all_sleep(pid_t pid, uint64_t *ret_runs)
{
	char path[32];
	struct dirent *d;
	bool sleep = true;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	dir = opendir(path);
	if (!dir)
		return false;
	*ret_runs = 0;
	while (sleep && (d = readdir(dir)))
		if (d->d_name[0] != '.')
			sleep = thread_sleeps(pid, d->d_name, ret_runs);
	closedir(dir);
	return sleep;
}

bool process_rests(pid_t pid, unsigned msec)
{
	uint64_t before, now;

	if (!all_sleep(pid, &before)) {
		usleep(LOOK_USEC);
		return false;
	}
	for (unsigned i = 0; i < msec; i++) {
		usleep(LOOK_USEC);
		if (!all_sleep(pid, &now) || now != before)
			return false;
	}
	return true;
}
