/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * control-internal.h - between connections (control-server.c) and methods (control-commands.c)
 */
#ifndef TP_CONTROL_CONTROL_INTERNAL_H
#define TP_CONTROL_CONTROL_INTERNAL_H

#include <jansson.h>
#include <stdbool.h>

#include "control/control-server.h"
#include "pool/pool.h"
#include "reclaim/pressure.h"
#include "thinpoold/disk-format.h"

/* What answers a call. */
enum control_next {
	CONTROL_ANSWERED, /* call->reply is set */
	CONTROL_COMMAND,  /* call->command, to be submitted */
	CONTROL_RECLAIM,  /* call->reclaim, likewise */
};

/* One call being answered. */
struct control_call {
	struct pool *pool;
	struct pressure *pressure; /* NULL: there is none */
	const struct control_service *service;
	enum control_next next;
	struct pool_command command;
	struct pressure_request reclaim;
	json_t *reply; /* set once the answer is known */
	int reply_fd;  /* to go with it; -1: none.  Whoever sends it closes it */
	/* Of this connection, between Pin and Unpin; if it ends earlier, the pin is given back. */
	bool has_pin;
	uint64_t pin;
	uint8_t superblock[METADATA_BLOCK_SIZE]; /* for the reply */
};

/*
 * Start answering @request (a JSON object, borrowed).  Returns call->next: unless the call is
 * answered, something is to be submitted, and control_call_finish() makes the reply at its end.
 * A reply of NULL says that there was no memory for it.
 */
enum control_next control_call_begin(struct control_call *call, json_t *request);
void control_call_finish(struct control_call *call, int r) TP_TAKES(catalog);

/* For a connection that ends and has a pin: the command that gives it back. */
void control_call_unpin(struct control_call *call);

/* An error of ours (CONTROL_ERROR_FAILED ...) as a reply.  NULL: no memory. */
json_t *control_reply_error(const char *error, const char *message);

/*
 * @text as a string, made one_line() of UTF-8: texts that are cut to a length, or quote what
 * somebody sent, must not cost the whole document.  NULL: no memory.
 */
json_t *control_text(const char *text);

#endif
