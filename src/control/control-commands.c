/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * control-commands.c - the methods of the control socket
 *
 * A table names each method with its parameters; what a client sends is checked
 * against it completely (unknown, missing, wrong type) before anything is done.
 * Queries are answered at once; changes become a pool command.
 */
#include "control/control-internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control/status-document.h"
#include "thinpoold/control.h"
#include "util/error.h"

#define VARLINK "org.varlink.service"

static const char interface_description[] =
	"# Thin volumes of one pool.  Sizes are bytes.\n"
	"interface " CONTROL_INTERFACE "\n"
	"\n"
	"type Volume (\n"
	"  name: string, id: int, size: int, used: int, origin: ?string,\n"
	"  read_only: bool, created: int, open: bool\n"
	")\n"
	"\n"
	"method GetStatus() -> (\n"
	"  mode: string, reason: string, remedy: string, needs_check: bool,\n"
	"  longest_abort_usec: int, version: string, pid: int,\n"
	"  transaction_id: int, held_root: int, block_size: int, data_used: int, data_total: int,\n"
	"  data_allocated: int, metadata_used: int, metadata_total: int,\n"
	"  metadata_reserve: int, read_only: bool, catalog: bool, virtual_total: int,\n"
	"  low_water_data: int, data_is_low: bool, low_water_metadata: int,\n"
	"  metadata_is_low: bool, cache: object, statistics: object, settings: object,\n"
	"  autoextend: object, hook: ?object, pressure: ?object, longest_throttle_usec: int,\n"
	"  transport: string\n"
	")\n"
	"method List() -> (volumes: []Volume)\n"
	"method Create(name: string, size: int) -> (id: int)\n"
	"method Snapshot(origin: string, name: string, read_only: ?bool) -> (id: int)\n"
	"method Delete(name: string) -> ()\n"
	"method Rename(name: string, new_name: string) -> ()\n"
	"method Resize(name: string, size: int, shrink: ?bool) -> ()\n"
	"method MetadataSnap(reserve: bool) -> ()\n"
	"method Extend(data_size: ?int, metadata_size: ?int)"
	" -> (data_size: int, metadata_size: int)\n"
	"# Metadata as committed now can be read through the file descriptor beside the reply "
	"until\n"
	"# Unpin or the end of the connection, all but block 0, which is superblock (in "
	"hexadecimal).\n"
	"# Unpin tells by Busy that it could not be kept so long.\n"
	"method Pin() -> (superblock: string, data_size: int)\n"
	"method Unpin() -> ()\n"
	"method Trim() -> (bytes: int)\n"
	"# As if memory were short: all caches are emptied.\n"
	"method Reclaim() -> (\n"
	"  bytes: int, resident_before: int, resident_after: int,\n"
	"  shrinkers: [](name: string, objects: int, bytes: int)\n"
	")\n"
	"# How often the mount was taken over by a new daemon, and how long the last time took; "
	"Restart\n"
	"# tells it from before.\n"
	"method GetRestarts() -> (restarts: int, pause_usec: int)\n"
	"method Restart() -> (restarts: int)\n"
	"\n"
	"error NotFound (message: string)\n"
	"error Exists (message: string)\n"
	"error Busy (message: string)\n"
	"error NoSpace (message: string)\n"
	"error Failed (message: string)\n";

json_t *control_text(const char *text)
{
	char *copy = strdup(text);
	json_t *string = copy ? json_string(one_line(copy)) : NULL;

	free(copy);
	return string;
}

json_t *control_reply_error(const char *error, const char *message)
{
	return json_pack("{s:s++ s:{s:o}}", "error", CONTROL_INTERFACE, ".", error, "parameters",
			 "message", control_text(message));
}

static json_t *reply_parameters(json_t *parameters)
{
	return json_pack("{so}", "parameters", parameters);
}

static json_t *reply_invalid(const char *parameter, const char *what)
{
	char message[512];

	snprintf(message, sizeof(message), "parameter \"%.64s\": %s", parameter, what);
	return json_pack("{ss s{ss so}}", "error", VARLINK ".InvalidParameter", "parameters",
			 "parameter", parameter, "message", control_text(message));
}

/* ---- methods ---- */

struct method {
	const char *name;
	/* "name:type?", types s(tring) i(nteger) b(oolean), '?': may be left out */
	const char *parameters[4];
	json_t *(*query)(struct control_call *call, json_t *parameters);
	void (*fill)(struct pool_command *cmd, json_t *parameters); /* both NULL: reclaim */
};

static json_t *get_status(struct control_call *call, json_t *parameters)
{
	struct hook_status hook;

	(void)parameters;
	if (call->service->get_hook)
		call->service->get_hook(call->service->ctx, &hook);
	return reply_parameters(status_document(call->pool, call->pressure,
						call->service->transport(call->service->ctx),
						call->service->get_hook ? &hook : NULL));
}

static json_t *list(struct control_call *call, json_t *parameters)
{
	(void)parameters;
	return reply_parameters(json_pack("{so}", "volumes", list_document(call->pool)));
}

static json_t *get_info(struct control_call *call, json_t *parameters)
{
	(void)call;
	(void)parameters;
	return reply_parameters(json_pack("{ss ss ss s[ss]}", "vendor", "thinpoold", "product",
					  "thinpoold", "version", TP_VERSION, "interfaces", VARLINK,
					  CONTROL_INTERFACE));
}

static json_t *get_interface_description(struct control_call *call, json_t *parameters)
{
	const char *name = json_string_value(json_object_get(parameters, "interface"));

	(void)call;
	if (strcmp(name, CONTROL_INTERFACE))
		return json_pack("{ss s{ss}}", "error", VARLINK ".InterfaceNotFound", "parameters",
				 "interface", name);
	return reply_parameters(json_pack("{ss}", "description", interface_description));
}

static json_t *get_restarts(struct control_call *call, json_t *parameters)
{
	uint64_t pause_usec;
	unsigned restarts;

	(void)parameters;
	call->service->get_restarts(call->service->ctx, &restarts, &pause_usec);
	return reply_parameters(json_pack("{sI sI}", "restarts", (json_int_t)restarts, "pause_usec",
					  (json_int_t)pause_usec));
}

static json_t *restart(struct control_call *call, json_t *parameters)
{
	struct tp_error error = { "" };
	unsigned restarts;
	int r = call->service->restart(call->service->ctx, &restarts, &error);

	(void)parameters;
	if (r)
		return control_reply_error(CONTROL_ERROR_FAILED,
					   error.text[0] ? error.text : strerror(-r));
	return reply_parameters(json_pack("{sI}", "restarts", (json_int_t)restarts));
}

/* check_type() has bounded the length. */
static void copy_name(char *to, json_t *parameters, const char *key)
{
	snprintf(to, VOLUME_NAME_MAX + 1, "%s",
		 json_string_value(json_object_get(parameters, key)));
}

/* 0 also when it was left out. */
static uint64_t size_of(json_t *parameters, const char *key)
{
	return (uint64_t)json_integer_value(json_object_get(parameters, key));
}

static void fill_create(struct pool_command *cmd, json_t *parameters)
{
	cmd->op = POOL_CREATE;
	copy_name(cmd->name, parameters, "name");
	cmd->size_bytes = size_of(parameters, "size");
}

static void fill_snapshot(struct pool_command *cmd, json_t *parameters)
{
	cmd->op = POOL_SNAPSHOT;
	copy_name(cmd->name, parameters, "origin");
	copy_name(cmd->new_name, parameters, "name");
	if (json_is_true(json_object_get(parameters, "read_only")))
		cmd->flags |= POOL_CMD_READ_ONLY;
}

static void fill_delete(struct pool_command *cmd, json_t *parameters)
{
	cmd->op = POOL_DELETE;
	cmd->flags = POOL_CMD_IF_CLOSED;
	copy_name(cmd->name, parameters, "name");
}

static void fill_rename(struct pool_command *cmd, json_t *parameters)
{
	cmd->op = POOL_RENAME;
	cmd->flags = POOL_CMD_NO_REPLACE;
	copy_name(cmd->name, parameters, "name");
	copy_name(cmd->new_name, parameters, "new_name");
}

static void fill_resize(struct pool_command *cmd, json_t *parameters)
{
	cmd->op = POOL_RESIZE;
	copy_name(cmd->name, parameters, "name");
	cmd->size_bytes = size_of(parameters, "size");
	if (json_is_true(json_object_get(parameters, "shrink")))
		cmd->flags |= POOL_CMD_SHRINK;
}

static void fill_metadata_snap(struct pool_command *cmd, json_t *parameters)
{
	cmd->op = json_is_true(json_object_get(parameters, "reserve")) ? POOL_METADATA_SNAP_RESERVE
								       : POOL_METADATA_SNAP_RELEASE;
}

static void fill_extend(struct pool_command *cmd, json_t *parameters)
{
	cmd->op = POOL_EXTEND;
	cmd->size_bytes = size_of(parameters, "data_size");
	cmd->metadata_bytes = size_of(parameters, "metadata_size");
}

static void fill_pin(struct pool_command *cmd, json_t *parameters)
{
	(void)parameters;
	cmd->op = POOL_PIN;
}

static void fill_unpin(struct pool_command *cmd, json_t *parameters)
{
	(void)parameters;
	cmd->op = POOL_UNPIN;
}

static void fill_trim(struct pool_command *cmd, json_t *parameters)
{
	(void)parameters;
	cmd->op = POOL_TRIM;
}

static const struct method methods[] = {
	{ CONTROL_INTERFACE ".GetStatus", { NULL }, .query = get_status },
	{ CONTROL_INTERFACE ".List", { NULL }, .query = list },
	{ CONTROL_INTERFACE ".Create", { "name:s", "size:i" }, .fill = fill_create },
	{ CONTROL_INTERFACE ".Snapshot",
	  { "origin:s", "name:s", "read_only:b?" },
	  .fill = fill_snapshot },
	{ CONTROL_INTERFACE ".Delete", { "name:s" }, .fill = fill_delete },
	{ CONTROL_INTERFACE ".Rename", { "name:s", "new_name:s" }, .fill = fill_rename },
	{ CONTROL_INTERFACE ".Resize", { "name:s", "size:i", "shrink:b?" }, .fill = fill_resize },
	{ CONTROL_INTERFACE ".MetadataSnap", { "reserve:b" }, .fill = fill_metadata_snap },
	{ CONTROL_INTERFACE ".Extend",
	  { "data_size:i?", "metadata_size:i?" },
	  .fill = fill_extend },
	{ CONTROL_INTERFACE ".Pin", { NULL }, .fill = fill_pin },
	{ CONTROL_INTERFACE ".Unpin", { NULL }, .fill = fill_unpin },
	{ CONTROL_INTERFACE ".Trim", { NULL }, .fill = fill_trim },
	{ CONTROL_INTERFACE ".Reclaim", { NULL }, .query = NULL },
	{ CONTROL_INTERFACE ".GetRestarts", { NULL }, .query = get_restarts },
	{ CONTROL_INTERFACE ".Restart", { NULL }, .query = restart },
	{ VARLINK ".GetInfo", { NULL }, .query = get_info },
	{ VARLINK ".GetInterfaceDescription",
	  { "interface:s" },
	  .query = get_interface_description },
};

/* ---- what a client sent, against the table ---- */

static bool key_matches(const char *spec, const char *key)
{
	size_t n = strcspn(spec, ":");

	return strlen(key) == n && !memcmp(spec, key, n);
}

static const char *check_type(char type, json_t *value)
{
	switch (type) {
	case 's':
		if (!json_is_string(value))
			return "must be a string";
		/* An embedded NUL would make it another name. */
		if (strlen(json_string_value(value)) != json_string_length(value))
			return "must not contain a NUL";
		if (json_string_length(value) > VOLUME_NAME_MAX)
			return "is longer than 255 bytes";
		return NULL;
	case 'i':
		return json_is_integer(value) && json_integer_value(value) >= 0
			       ? NULL
			       : "must be a whole number, not negative";
	default:
		return json_is_boolean(value) ? NULL : "must be true or false";
	}
}

/* False: *@ret_reply tells the mistake, or is NULL when there is no memory to tell it. */
static bool check_parameters(const struct method *m, json_t *parameters, json_t **ret_reply)
{
	const char *key;
	json_t *value;

	for (size_t i = 0; i < ARRAY_SIZE(m->parameters) && m->parameters[i]; i++) {
		const char *spec = m->parameters[i], *type = strchr(spec, ':') + 1, *what;
		char name[32];

		snprintf(name, sizeof(name), "%.*s", (int)(type - 1 - spec), spec);
		value = json_object_get(parameters, name);
		if (!value && type[1] == '?')
			continue;
		what = value ? check_type(*type, value) : "is missing";
		if (what) {
			*ret_reply = reply_invalid(name, what);
			return false;
		}
	}
	json_object_foreach(parameters, key, value)
	{
		bool known = false;

		for (size_t i = 0; i < ARRAY_SIZE(m->parameters) && m->parameters[i]; i++)
			known |= key_matches(m->parameters[i], key);
		if (!known) {
			*ret_reply = reply_invalid(key, "is unknown to this method");
			return false;
		}
	}
	return true;
}

/* What varlink has besides and we have not: calls without a reply, or with many. */
static bool check_request(json_t *request, json_t **ret_reply)
{
	const char *key;
	json_t *value;

	json_object_foreach(request, key, value)
	{
		if (strcmp(key, "method") && strcmp(key, "parameters") && !json_is_false(value)) {
			*ret_reply = reply_invalid(key, "is no part of a call");
			return false;
		}
	}
	value = json_object_get(request, "parameters");
	if (value && !json_is_object(value)) {
		*ret_reply = reply_invalid("parameters", "must be an object");
		return false;
	}
	return true;
}

static const struct method *find_method(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(methods); i++)
		if (!strcmp(methods[i].name, name))
			return &methods[i];
	return NULL;
}

/* One pin a connection: false, and the reply says why not. */
static bool begin_pin(struct control_call *call)
{
	struct pool_command *cmd = &call->command;
	bool wants = cmd->op == POOL_PIN;

	if (wants == call->has_pin) {
		call->reply = control_reply_error(CONTROL_ERROR_FAILED,
						  wants ? "this connection has a pin already"
							: "this connection has no pin");
		return false;
	}
	cmd->pin = call->pin;
	cmd->superblock = call->superblock;
	return true;
}

void control_call_unpin(struct control_call *call)
{
	call->next = CONTROL_COMMAND;
	memset(&call->command, 0, sizeof(call->command));
	call->command.op = POOL_UNPIN;
	call->command.pin = call->pin;
}

/* Makes the reply, if there is nothing to wait for. */
static enum control_next begin(struct control_call *call, json_t *request)
{
	const char *name = json_string_value(json_object_get(request, "method"));
	const struct method *m = name ? find_method(name) : NULL;
	json_t *parameters = json_object_get(request, "parameters");

	call->reply = NULL;
	call->reply_fd = -1;
	memset(&call->command, 0, sizeof(call->command));
	if (!name) {
		call->reply =
			control_reply_error(CONTROL_ERROR_FAILED, "a call needs a \"method\"");
		return CONTROL_ANSWERED;
	}
	if (!m) {
		call->reply = json_pack("{ss s{ss}}", "error", VARLINK ".MethodNotFound",
					"parameters", "method", name);
		return CONTROL_ANSWERED;
	}
	/* No parameters are as good as an empty object: jansson takes NULL for one. */
	if (!check_request(request, &call->reply) || !check_parameters(m, parameters, &call->reply))
		return CONTROL_ANSWERED;
	if (m->query) {
		call->reply = m->query(call, parameters);
		return CONTROL_ANSWERED;
	}
	if (!m->fill)
		return CONTROL_RECLAIM;
	m->fill(&call->command, parameters);
	if ((m->fill == fill_pin || m->fill == fill_unpin) && !begin_pin(call))
		return CONTROL_ANSWERED;
	return CONTROL_COMMAND;
}

enum control_next control_call_begin(struct control_call *call, json_t *request)
{
	call->next = begin(call, request);
	return call->next;
}

static json_t *pin_parameters(const struct control_call *call)
{
	char hex[2 * METADATA_BLOCK_SIZE + 1];
	struct pool_status status;

	for (unsigned i = 0; i < METADATA_BLOCK_SIZE; i++)
		snprintf(hex + (size_t)2 * i, 3, "%02x", call->superblock[i]);
	pool_get_status(call->pool, &status);
	return json_pack("{ss sI}", "superblock", hex, "data_size", (json_int_t)status.data_total);
}

/* What a command that succeeded has to tell. */
static json_t *result_parameters(const struct control_call *call)
{
	const struct pool_command *cmd = &call->command;

	switch (cmd->op) {
	case POOL_CREATE:
	case POOL_SNAPSHOT:
		return json_pack("{sI}", "id", (json_int_t)cmd->id);
	case POOL_EXTEND:
		return json_pack("{sI sI}", "data_size", (json_int_t)cmd->size_bytes,
				 "metadata_size", (json_int_t)cmd->metadata_bytes);
	case POOL_TRIM:
		return json_pack("{sI}", "bytes", (json_int_t)cmd->size_bytes);
	case POOL_PIN:
		return pin_parameters(call);
	default:
		return json_object();
	}
}

static json_t *reclaim_parameters(const struct pressure_request *request)
{
	const struct shrinkers_report *report = &request->report;
	json_t *shrinkers = json_array();

	for (unsigned i = 0; shrinkers && i < report->nr_results; i++) {
		const struct shrinker_result *result = &report->results[i];
		json_t *object =
			json_pack("{so sI sI}", "name", control_text(result->name), "objects",
				  (json_int_t)result->freed, "bytes", (json_int_t)result->bytes);

		if (json_array_append_new(shrinkers, object)) {
			json_decref(shrinkers);
			shrinkers = NULL;
		}
	}
	return json_pack("{sI sI sI so}", "bytes", (json_int_t)report->bytes, "resident_before",
			 (json_int_t)request->resident_before, "resident_after",
			 (json_int_t)request->resident_after, "shrinkers", shrinkers);
}

static json_t *reclaim_reply(const struct pressure_request *request, int r)
{
	if (!r)
		return reply_parameters(reclaim_parameters(request));
	return control_reply_error(CONTROL_ERROR_FAILED,
				   r == -EOPNOTSUPP
					   ? "requests are switched off by the configuration, set "
					     "request = yes in [reclaim]"
					   : "the daemon is about to end");
}

void control_call_finish(struct control_call *call, int r)
{
	static const struct {
		int r;
		const char *error;
	} errors[] = {
		{ -ENOENT, CONTROL_ERROR_NOT_FOUND },
		{ -EEXIST, CONTROL_ERROR_EXISTS },
		{ -EBUSY, CONTROL_ERROR_BUSY },
		{ -ENOSPC, CONTROL_ERROR_NO_SPACE },
	};
	const struct pool_command *cmd = &call->command;
	const char *error = CONTROL_ERROR_FAILED;

	if (call->next == CONTROL_RECLAIM) {
		call->reply = reclaim_reply(&call->reclaim, r);
		return;
	}
	if (cmd->op == POOL_UNPIN)
		call->has_pin = false;
	if (!r && cmd->op == POOL_PIN) {
		call->has_pin = true;
		call->pin = cmd->pin;
		call->reply_fd = cmd->fd;
	}
	if (!r) {
		call->reply = reply_parameters(result_parameters(call));
		return;
	}
	for (size_t i = 0; i < ARRAY_SIZE(errors); i++)
		if (errors[i].r == r)
			error = errors[i].error;
	call->reply =
		control_reply_error(error, cmd->error.text[0] ? cmd->error.text : strerror(-r));
}
