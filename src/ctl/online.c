/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * online.c - verbs about a mounted pool, carried to its daemon
 *
 * Verbs take paths, so that the shell completes them.  The directory of a path is
 * the mount; an extended attribute of it names the daemon's socket.
 */
#include <errno.h>
#include <inttypes.h>
#include <libgen.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "ctl/ctl.h"
#include "io/device.h"
#include "thinpoold/disk-format.h"
#include "util/cleanup.h"
#include "util/parse-size.h"
#include "util/utf8.h"

/* A list of 100,000 volumes with the longest names; one of all 2^24 is no use to anybody. */
#define REPLY_MAX ((size_t)256 << 20)

/* Who reads all of the metadata of a pool that others use stands back. */
#define PINNED_NICE 10

/* Requests in flight, and the last commit, come first. */
#define RESTART_PATIENCE_MSEC 120000

/* ---- paths ---- */

struct target {
	char *directory, *name; /* of MNT/name; allocated */
};

static void free_target(struct target *t)
{
	free(t->directory);
	free(t->name);
}

static int split_path(const char *path, struct target *t)
{
	TP_CLEANUP(tp_free_string) char *a = strdup(path);
	TP_CLEANUP(tp_free_string) char *b = strdup(path);

	if (a && b) {
		t->directory = strdup(dirname(a));
		t->name = strdup(basename(b));
	}
	if (!t->directory || !t->name)
		return ctl_fail(CTL_FAILED, "out of memory");
	/* Neither JSON nor the catalog could hold it. */
	if (!utf8_is_valid(t->name, strlen(t->name)))
		return ctl_fail(CTL_FAILED, "\"%s\" is no name for a volume: it is not UTF-8",
				t->name);
	return CTL_OK;
}

/* Both paths must name volumes of one mount. */
static int same_mount(const struct target *a, const struct target *b)
{
	struct stat sa, sb;

	if (!stat(a->directory, &sa) && !stat(b->directory, &sb) && sa.st_dev == sb.st_dev &&
	    sa.st_ino == sb.st_ino)
		return CTL_OK;
	return ctl_fail(CTL_USAGE, "%s and %s are not in the same pool", a->directory,
			b->directory);
}

/* ---- one call ---- */

static int connect_to(const char *directory, int *ret_fd)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	ssize_t n = getxattr(directory, CONTROL_XATTR, addr.sun_path, sizeof(addr.sun_path) - 1);
	int fd;

	if (n < 0 && (errno == ENOENT || errno == ENOTDIR))
		return ctl_fail(CTL_NOT_FOUND, "%s: %s", directory, strerror(errno));
	if (n < 0 && errno == EACCES)
		return ctl_fail(CTL_FAILED, "%s: %s", directory, strerror(errno));
	if (n < 0)
		return ctl_fail(CTL_NO_DAEMON, "%s: no pool is mounted here, start thinpoold",
				directory);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return ctl_fail(CTL_FAILED, "no socket: %s", strerror(errno));
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr))) {
		int err = errno;

		close(fd);
		return ctl_fail(err == EACCES ? CTL_FAILED : CTL_NO_DAEMON,
				"%s: the daemon does not answer at %s: %s", directory,
				addr.sun_path, strerror(err));
	}
	*ret_fd = fd;
	return CTL_OK;
}

static int send_all(int fd, const char *data, size_t len)
{
	while (len) {
		ssize_t n = send(fd, data, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		data += n;
		len -= (size_t)n;
	}
	return 0;
}

/* Some bytes, and the descriptor that came with them, if any. */
static ssize_t receive_some(int fd, char *buf, size_t size, int *ret_fd)
{
	struct iovec iov = { buf, size };
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(int))];
	} control = { .space = { 0 } };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	ssize_t n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
	const struct cmsghdr *head = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL;

	if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS && *ret_fd < 0)
		memcpy(ret_fd, CMSG_DATA(head), sizeof(int));
	return n;
}

/* A reply up to its NUL, as a string that the caller frees. */
static int receive(int fd, char **ret_text, int *ret_fd)
{
	TP_CLEANUP(tp_free_string) char *text = NULL;
	size_t len = 0, room = 4096;

	text = malloc(room);
	while (text) {
		ssize_t n = receive_some(fd, text + len, room - len, ret_fd);
		char *bigger;

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return ctl_fail(CTL_NO_DAEMON, "the daemon ended before it answered");
		if (memchr(text + len, '\0', (size_t)n)) {
			*ret_text = tp_take(&text);
			return CTL_OK;
		}
		len += (size_t)n;
		if (len < room)
			continue;
		room *= 2;
		if (room > REPLY_MAX)
			return ctl_fail(CTL_FAILED, "the daemon's answer is too long");
		bigger = realloc(text, room);
		if (!bigger)
			break;
		text = bigger;
	}
	return ctl_fail(CTL_FAILED, "out of memory");
}

static int exchange(int fd, json_t *call, json_t **ret_reply, int *ret_fd)
{
	TP_CLEANUP(tp_free_string) char *flat = json_dumps(call, JSON_COMPACT);
	TP_CLEANUP(tp_free_string) char *text = NULL;
	int r;

	if (!flat)
		return ctl_fail(CTL_FAILED, "out of memory");
	r = send_all(fd, flat, strlen(flat) + 1);
	if (r)
		return ctl_fail(CTL_NO_DAEMON, "the daemon cannot be asked: %s", strerror(-r));
	r = receive(fd, &text, ret_fd);
	if (r)
		return r;
	*ret_reply = json_loads(text, 0, NULL);
	if (!*ret_reply)
		return ctl_fail(CTL_FAILED, "the daemon's answer cannot be understood");
	return CTL_OK;
}

static enum ctl_exit exit_of_error(const char *error)
{
	static const struct {
		const char *error;
		enum ctl_exit code;
	} codes[] = {
		{ CONTROL_ERROR_NOT_FOUND, CTL_NOT_FOUND },
		{ CONTROL_ERROR_EXISTS, CTL_EXISTS },
		{ CONTROL_ERROR_BUSY, CTL_BUSY },
		{ CONTROL_ERROR_NO_SPACE, CTL_NO_SPACE },
	};
	const char *dot = strrchr(error, '.');

	for (size_t i = 0; dot && i < ARRAY_SIZE(codes); i++)
		if (!strcmp(dot + 1, codes[i].error))
			return codes[i].code;
	return CTL_FAILED;
}

/* What @reply, which is consumed, says: its parameters, if asked for, or an error. */
static int result_of(json_t *reply, json_t **ret_parameters)
{
	const char *error = json_string_value(json_object_get(reply, "error"));
	json_t *parameters = json_object_get(reply, "parameters");
	int code = CTL_OK;

	if (error) {
		const char *message = json_string_value(json_object_get(parameters, "message"));

		code = ctl_fail(exit_of_error(error), "%s", message ? message : error);
	} else if (ret_parameters) {
		*ret_parameters = json_incref(parameters);
	}
	json_decref(reply);
	return code;
}

/*
 * Call @method of the pool mounted at @directory.  @parameters is consumed.  On success
 * *@ret_parameters, if asked for, is the reply's, which the caller releases.
 */
static int call_daemon(const char *directory, const char *method, json_t *parameters,
		       json_t **ret_parameters)
{
	json_t *call, *reply = NULL;
	int fd = -1, reply_fd = -1, code;

	code = connect_to(directory, &fd);
	if (code) {
		json_decref(parameters);
		return code;
	}
	call = json_pack("{s:s+ s:o}", "method", CONTROL_INTERFACE ".", method, "parameters",
			 parameters);
	code = exchange(fd, call, &reply, &reply_fd);
	json_decref(call);
	close(fd);
	if (reply_fd >= 0)
		close(reply_fd);
	return code ? code : result_of(reply, ret_parameters);
}

/* ---- verbs ---- */

static int call_about(const char *path, const char *method, json_t *more)
{
	TP_CLEANUP(free_target) struct target t = { NULL, NULL };
	int code = split_path(path, &t);

	if (code) {
		json_decref(more);
		return code;
	}
	json_object_set_new(more, "name", json_string(t.name));
	return call_daemon(t.directory, method, more, NULL);
}

int ctl_create(const struct ctl_args *a)
{
	if (!a->has_size)
		return ctl_fail(CTL_USAGE, "create needs --size");
	return call_about(a->args[0], "Create", json_pack("{sI}", "size", (json_int_t)a->size));
}

int ctl_delete(const struct ctl_args *a)
{
	return call_about(a->args[0], "Delete", json_object());
}

int ctl_resize(const struct ctl_args *a)
{
	uint64_t size;
	int r = parse_size(a->args[1], &size);

	if (r)
		return ctl_fail(CTL_USAGE, "\"%s\" is %s", a->args[1], ctl_size_words(r));
	return call_about(a->args[0], "Resize",
			  json_pack("{sI sb}", "size", (json_int_t)size, "shrink", a->shrink));
}

/* Two paths in one pool, as parameters @first and @second. */
static int call_about_two(const struct ctl_args *a, const char *method, const char *first,
			  const char *second, json_t *more)
{
	TP_CLEANUP(free_target) struct target from = { NULL, NULL };
	TP_CLEANUP(free_target) struct target to = { NULL, NULL };
	int code = split_path(a->args[0], &from);

	if (!code)
		code = split_path(a->args[1], &to);
	if (!code)
		code = same_mount(&from, &to);
	if (code) {
		json_decref(more);
		return code;
	}
	json_object_set_new(more, first, json_string(from.name));
	json_object_set_new(more, second, json_string(to.name));
	return call_daemon(from.directory, method, more, NULL);
}

int ctl_snapshot(const struct ctl_args *a)
{
	return call_about_two(a, "Snapshot", "origin", "name",
			      json_pack("{sb}", "read_only", a->read_only));
}

int ctl_rename(const struct ctl_args *a)
{
	return call_about_two(a, "Rename", "name", "new_name", json_object());
}

int ctl_metadata_snap(const struct ctl_args *a)
{
	bool reserve = !strcmp(a->args[0], "reserve");

	if (!reserve && strcmp(a->args[0], "release"))
		return ctl_fail(CTL_USAGE, "\"%s\": say reserve or release", a->args[0]);
	return call_daemon(a->args[1], "MetadataSnap", json_pack("{sb}", "reserve", reserve), NULL);
}

/* The pool has whole blocks: say so when that is less than was asked for. */
static void note_rounding(json_t *reply, const char *key, const char *what, uint64_t asked)
{
	uint64_t got = (uint64_t)json_integer_value(json_object_get(reply, key));

	if (asked > got)
		fprintf(stderr,
			"thinpoolctl: note: %s has %" PRIu64 " bytes, not %" PRIu64
			": whole blocks, and no more than the format has room for\n",
			what, got, asked);
}

int ctl_extend(const struct ctl_args *a)
{
	json_t *parameters = json_object(), *reply = NULL;
	char data[FORMAT_SIZE_MAX], metadata[FORMAT_SIZE_MAX];
	int code;

	if (!a->has_size && !a->metadata_size) {
		json_decref(parameters);
		return ctl_fail(CTL_USAGE, "extend needs --data or --metadata");
	}
	if (a->has_size)
		json_object_set_new(parameters, "data_size", json_integer((json_int_t)a->size));
	if (a->metadata_size)
		json_object_set_new(parameters, "metadata_size",
				    json_integer((json_int_t)a->metadata_size));
	code = call_daemon(a->args[0], "Extend", parameters, &reply);
	if (code)
		return code;
	note_rounding(reply, "data_size", "data", a->size);
	note_rounding(reply, "metadata_size", "metadata", a->metadata_size);
	printf("%s: data %s, metadata %s\n", a->args[0],
	       format_size((uint64_t)json_integer_value(json_object_get(reply, "data_size")), data,
			   sizeof(data)),
	       format_size((uint64_t)json_integer_value(json_object_get(reply, "metadata_size")),
			   metadata, sizeof(metadata)));
	json_decref(reply);
	return CTL_OK;
}

int ctl_list(const struct ctl_args *a)
{
	json_t *reply;
	int code = call_daemon(a->args[0], "List", json_object(), &reply);

	if (code)
		return code;
	if (a->json)
		ctl_print_json(json_object_get(reply, "volumes"));
	else
		code = ctl_print_list(json_object_get(reply, "volumes"));
	json_decref(reply);
	return code;
}

int ctl_status(const struct ctl_args *a)
{
	json_t *reply;
	int code = call_daemon(a->args[0], "GetStatus", json_object(), &reply);

	if (code)
		return code;
	if (a->json)
		ctl_print_json(reply);
	else
		code = ctl_print_status(reply);
	json_decref(reply);
	return code;
}

bool ctl_is_mount(const char *path)
{
	return getxattr(path, CONTROL_XATTR, NULL, 0) > 0;
}

/* ---- metadata of a pool that goes on ---- */

/* What control.h says: two digits a byte. */
static bool from_hex(const char *hex, uint8_t *bytes, size_t nr)
{
	if (!hex || strlen(hex) != 2 * nr)
		return false;
	for (size_t i = 0; i < nr; i++) {
		unsigned byte;

		if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
			return false;
		bytes[i] = (uint8_t)byte;
	}
	return true;
}

/* @fd is consumed. */
static int open_pinned(const char *mount, int fd, json_t *parameters, struct ctl_pin *pin)
{
	uint8_t superblock[METADATA_BLOCK_SIZE];
	struct io_device *inner = NULL;
	char path[32];
	int r = -EPROTO;

	pin->data_bytes = (uint64_t)json_integer_value(json_object_get(parameters, "data_size"));
	if (from_hex(json_string_value(json_object_get(parameters, "superblock")), superblock,
		     sizeof(superblock)) &&
	    fd >= 0) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		r = io_device_open(path, IO_OPEN_READ_ONLY | IO_OPEN_AS_GUEST, &inner);
	}
	if (!r)
		r = io_device_open_pinned(inner, superblock, sizeof(superblock), &pin->metadata);
	if (r)
		io_device_close(inner);
	if (fd >= 0)
		close(fd);
	return r ? ctl_fail(CTL_FAILED, "%s: the metadata cannot be read: %s", mount, strerror(-r))
		 : CTL_OK;
}

static int call_pin(const struct ctl_pin *pin, const char *method, json_t **ret_parameters,
		    int *ret_fd)
{
	json_t *call = json_pack("{s:s+}", "method", CONTROL_INTERFACE ".", method);
	json_t *reply = NULL;
	int code = exchange(pin->socket, call, &reply, ret_fd);

	json_decref(call);
	return code ? code : result_of(reply, ret_parameters);
}

int ctl_pin(const char *mount, struct ctl_pin *ret_pin)
{
	struct ctl_pin pin = { .socket = -1 };
	json_t *parameters = NULL;
	int fd = -1, code = connect_to(mount, &pin.socket);

	if (code)
		return code;
	code = call_pin(&pin, "Pin", &parameters, &fd);
	(void)!nice(PINNED_NICE); /* the pool is in use; if it cannot be had, no matter */
	if (!code)
		code = open_pinned(mount, fd, parameters, &pin);
	json_decref(parameters);
	if (code)
		close(pin.socket);
	else
		*ret_pin = pin;
	return code;
}

int ctl_unpin(struct ctl_pin *pin)
{
	int fd = -1, code = call_pin(pin, "Unpin", NULL, &fd);

	if (fd >= 0)
		close(fd);
	io_device_close(pin->metadata);
	close(pin->socket);
	return code;
}

int ctl_trim(const struct ctl_args *a)
{
	char size[FORMAT_SIZE_MAX];
	json_t *reply;
	int code = call_daemon(a->args[0], "Trim", json_object(), &reply);
	uint64_t bytes;

	if (code)
		return code;
	bytes = (uint64_t)json_integer_value(json_object_get(reply, "bytes"));
	if (a->json)
		ctl_print_json(reply);
	else
		printf("%s: %s (%" PRIu64 " bytes) trimmed\n", a->args[0],
		       format_size(bytes, size, sizeof(size)), bytes);
	json_decref(reply);
	return CTL_OK;
}

int ctl_reclaim(const struct ctl_args *a)
{
	char size[FORMAT_SIZE_MAX];
	json_t *reply, *shrinker;
	size_t i;
	int code = call_daemon(a->args[0], "Reclaim", json_object(), &reply);

	if (code)
		return code;
	if (a->json) {
		ctl_print_json(reply);
	} else {
		printf("%s: %s given back\n", a->args[0],
		       format_size((uint64_t)json_integer_value(json_object_get(reply, "bytes")),
				   size, sizeof(size)));
		json_array_foreach(json_object_get(reply, "shrinkers"), i, shrinker)
			printf("  %s: %s\n", json_string_value(json_object_get(shrinker, "name")),
			       format_size((uint64_t)json_integer_value(
						   json_object_get(shrinker, "bytes")),
					   size, sizeof(size)));
	}
	json_decref(reply);
	return CTL_OK;
}

/* The daemon closes its connections when it has stopped serving the mount. */
static int await_hang_up(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	char byte;

	if (poll(&pfd, 1, RESTART_PATIENCE_MSEC) == 1 && read(fd, &byte, 1) <= 0)
		return CTL_OK;
	return ctl_fail(CTL_FAILED, "the daemon does not come to an end, see its log");
}

static int begin_restart(const char *mount, json_t **ret_before)
{
	json_t *call, *reply;
	int fd, reply_fd = -1, code = connect_to(mount, &fd);

	if (code)
		return code;
	call = json_pack("{s:s}", "method", CONTROL_INTERFACE ".Restart");
	code = exchange(fd, call, &reply, &reply_fd);
	json_decref(call);
	if (!code)
		code = result_of(reply, ret_before);
	if (!code)
		code = await_hang_up(fd);
	close(fd);
	return code;
}

int ctl_restart(const struct ctl_args *a)
{
	json_t *before = NULL, *after = NULL;
	int code = begin_restart(a->args[0], &before);

	/* Asking the mount for the socket waits for the new daemon. */
	if (!code)
		code = call_daemon(a->args[0], "GetRestarts", json_object(), &after);
	if (!code && json_integer_value(json_object_get(after, "restarts")) ==
			     json_integer_value(json_object_get(before, "restarts")))
		code = ctl_fail(CTL_FAILED, "the mount was not handed over, see the daemon's log");
	if (!code && a->json)
		ctl_print_json(after);
	else if (!code)
		printf("%s: handed over to a new daemon, which took %.3f s\n", a->args[0],
		       (double)json_integer_value(json_object_get(after, "pause_usec")) / 1e6);
	json_decref(before);
	json_decref(after);
	return code;
}
