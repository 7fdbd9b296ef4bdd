/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuzz-control.c - what a client may send to the control socket of a pool in memory
 *
 * An input is a byte of options and what is sent: calls of JSON, ended by NUL bytes, or anything
 * else.  One thread is server and client.
 *
 * What must hold, besides that nothing breaks and nothing is leaked:
 *
 *	K1  each call is answered, in order, by a JSON object with "parameters" and perhaps an
 *	    "error" that is known; nothing else is sent
 *	K2  another client is served then, and what it is told is one JSON document
 *	K3  the socket is gone at the end, and no descriptor is left
 *	K4  the pool closes without an error, and the checker finds nothing in its metadata
 */
#include "fuzz.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "control/control-server.h"
#include "fault-device.h"
#include "io/device.h"
#include "mem-device.h"
#include "pool-fixture.h"
#include "pool/pool-internal.h"
#include "thin/thin-check.h"
#include "thinpoold/control.h"
#include "util/clock.h"
#include "util/log.h"

enum { INPUT_MAX = 60000, PIECE = 7, DEVICE_MAX = 64 << 20 };

#define ANSWER_USEC (UINT64_C(30) * USEC_PER_SEC)

enum options { IN_PIECES = 1, READ_ONLY = 2, NO_PRESSURE = 4, CLOSE_EARLY = 8 };

static struct bench {
	struct io_device *meta, *data; /* pristine */
	struct io_queue *q;
	char directory[64], path[96];
	/* Of one input. */
	struct io_device *own_meta, *own_data;
	struct pool *pool;
	struct pressure *pressure;
	struct control_server *server;
	struct control_service service;
} bench;

static int count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	int nr = 0;

	while (d && readdir(d))
		nr++;
	if (d)
		closedir(d);
	return nr;
}

/* ---- the daemon's part ---- */

static int refuse_restart(void *ctx, unsigned *ret_restarts, struct tp_error *error)
{
	(void)ctx;
	*ret_restarts = 0;
	return tp_error(error, -EOPNOTSUPP, "nobody keeps this mount");
}

static void get_restarts(void *ctx, unsigned *ret_restarts, uint64_t *ret_pause_usec)
{
	(void)ctx;
	*ret_restarts = 3;
	*ret_pause_usec = 4;
}

static const char *transport(void *ctx)
{
	(void)ctx;
	return "none";
}

static void begin(uint8_t options)
{
	const struct pool_options pool_options = {
		.read_only = options & READ_ONLY,
		.cache_bytes = MIB,
		.commit_interval_usec = USEC_PER_SEC,
		.zero_new_blocks = true,
	};
	const struct pressure_options pressure_options = {
		.enabled = { [PRESSURE_REQUEST] = !(options & NO_PRESSURE) },
	};
	struct tp_error error = { "" };

	bench.own_meta = mem_device_clone(bench.meta);
	bench.own_data = mem_device_clone(bench.data);
	mem_device_set_limit(bench.own_meta, DEVICE_MAX);
	mem_device_set_limit(bench.own_data, DEVICE_MAX);
	HOLDS(!pool_open_devices(&pool_options, bench.own_meta, bench.own_data, &bench.pool,
				 &error));
	HOLDS(!pressure_start(&pressure_options, &bench.pressure));
	bench.service = (struct control_service){ .restart = refuse_restart,
						  .get_restarts = get_restarts,
						  .transport = transport };
	HOLDS(!control_server_create(bench.q, bench.pool, bench.pressure, &bench.service,
				     bench.path, &bench.server, &error));
}

static void check_pool(void)
{
	const struct thin_check_options options = { .data_bytes = UINT64_MAX };
	struct thin_check_result result;

	HOLDS(!thin_check(bench.own_meta, &options, &result));
	REQUIRE(!result.nr_damages && !result.nr_leaks, "%lu damages, %lu leaks",
		(unsigned long)result.nr_damages, (unsigned long)result.nr_leaks);
}

static void end(void)
{
	bench.server = control_server_destroy(bench.server);
	HOLDS(access(bench.path, F_OK));
	bench.pressure = pressure_destroy(bench.pressure);
	HOLDS(!pool_close(bench.pool));
	check_pool();
	io_device_close(bench.own_meta);
	io_device_close(bench.own_data);
}

/* ---- the client's ---- */

static int new_client(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	HOLDS(fd >= 0);
	memcpy(addr.sun_path, bench.path, strlen(bench.path));
	HOLDS(!connect(fd, (struct sockaddr *)&addr, sizeof(addr)));
	return fd;
}

/* Gives the server its turn until @deadline. */
static void serve(uint64_t deadline)
{
	HOLDS(time_monotonic_usec() < deadline);
	io_queue_run(bench.q, USEC_PER_MSEC);
}

static void send_all(int fd, const char *bytes, size_t length, size_t piece)
{
	uint64_t deadline = time_monotonic_usec() + ANSWER_USEC;
	ssize_t n;

	while (length) {
		n = send(fd, bytes, MIN(length, piece), MSG_NOSIGNAL);
		HOLDS(n > 0 || errno == EAGAIN);
		if (n > 0) {
			bytes += n;
			length -= (size_t)n;
		}
		if (n < 0 || piece == PIECE)
			io_queue_run(bench.q, n < 0 ? USEC_PER_MSEC : 0);
	}
	HOLDS(time_monotonic_usec() < deadline);
}

/* One answer, without its NUL; to be freed. */
static char *receive(int fd)
{
	uint64_t deadline = time_monotonic_usec() + ANSWER_USEC;
	size_t length = 0, room = 1024;
	char *text = malloc(room);

	HOLDS(text);
	for (;;) {
		ssize_t n = recv(fd, text + length, 1, 0);

		HOLDS(n == 1 || (n < 0 && errno == EAGAIN));
		if (n < 0) {
			serve(deadline);
			continue;
		}
		if (!text[length++])
			return text;
		if (length == room) {
			text = realloc(text, room *= 2);
			HOLDS(text);
		}
	}
}

static bool is_known(const char *error)
{
	static const char *const known[] = {
		CONTROL_INTERFACE "." CONTROL_ERROR_NOT_FOUND,
		CONTROL_INTERFACE "." CONTROL_ERROR_EXISTS,
		CONTROL_INTERFACE "." CONTROL_ERROR_BUSY,
		CONTROL_INTERFACE "." CONTROL_ERROR_NO_SPACE,
		CONTROL_INTERFACE "." CONTROL_ERROR_FAILED,
		"org.varlink.service.MethodNotFound",
		"org.varlink.service.InvalidParameter",
		"org.varlink.service.InterfaceNotFound",
	};

	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (!strcmp(error, known[i]))
			return true;
	return false;
}

/* K1. */
static void take_answer(int fd)
{
	char *text = receive(fd);
	json_t *answer = json_loads(text, JSON_REJECT_DUPLICATES, NULL), *error;

	REQUIRE(json_is_object(answer), "%s", text);
	REQUIRE(json_is_object(json_object_get(answer, "parameters")), "%s", text);
	error = json_object_get(answer, "error");
	REQUIRE(!error || (json_is_string(error) && is_known(json_string_value(error))), "%s",
		text);
	REQUIRE(json_object_size(answer) == (error ? 2 : 1), "%s", text);
	json_decref(answer);
	free(text);
}

static unsigned count_calls(const char *bytes, size_t length)
{
	unsigned nr = 0;

	for (size_t i = 0; i < length; i++)
		nr += !bytes[i];
	return nr;
}

/* K2. */
static void is_served(void)
{
	static const char calls[] = "{\"method\": \"" CONTROL_INTERFACE ".List\"}\0"
				    "{\"method\": \"" CONTROL_INTERFACE ".GetStatus\"}";
	int fd = new_client();

	send_all(fd, calls, sizeof(calls), sizeof(calls));
	take_answer(fd);
	take_answer(fd);
	close(fd);
}

static void converse(const char *bytes, size_t length, uint8_t options)
{
	unsigned nr = count_calls(bytes, length);
	int fd = new_client();

	send_all(fd, bytes, length, options & IN_PIECES ? PIECE : length);
	for (unsigned i = 0; i < nr && !(options & CLOSE_EARLY); i++)
		take_answer(fd);
	is_served();
	if (!(options & CLOSE_EARLY))
		HOLDS(recv(fd, (char[1]){ 0 }, 1, 0) < 0 && errno == EAGAIN);
	close(fd);
}

/* ---- one input ---- */

static void remove_directory(void)
{
	rmdir(bench.directory);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct pool_rig *rig = pool_rig_create_sized(64 * KIB, 48, 512, MIB / 2);
	struct volume *v = rig_create_volume(rig, "vol", MIB);

	(void)argc;
	(void)argv;
	HOLDS(!rig_fill(rig, v, 0, 256 * KIB, 0x5a));
	HOLDS(!rig_snapshot(rig, "vol", "snap"));
	rig_close_volume(v);
	HOLDS(!pool_rig_close(rig));
	bench.meta = mem_device_clone(fault_device_inner(rig->meta));
	bench.data = mem_device_clone(fault_device_inner(rig->data));
	pool_rig_destroy(rig);
	HOLDS(!io_queue_self(&bench.q));
	snprintf(bench.directory, sizeof(bench.directory), "/tmp/fuzz-control-XXXXXX");
	HOLDS(mkdtemp(bench.directory));
	HOLDS(!atexit(remove_directory));
	snprintf(bench.path, sizeof(bench.path), "%s/socket", bench.directory);
	log_set_level(LOG_LEVEL_ERR - 1);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_input in = { data, size };
	uint8_t options = fuzz_u8(&in);
	int nr_fds = count_fds();

	begin(options);
	converse((const char *)in.data, MIN(in.left, (size_t)INPUT_MAX), options);
	end();
	HOLDS(count_fds() == nr_fds);
	return 0;
}
