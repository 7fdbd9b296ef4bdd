/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * status-document.h - what a pool is doing, as JSON and as text
 *
 * Layer:    control.
 * Threads:  any.
 * Units:    bytes, in every key that counts space.
 * Errors:   NULL: no memory.
 *
 * A pressure thread of NULL says that there is none.  The transport is how requests come from the
 * kernel, in a word.
 */
#ifndef TP_CONTROL_STATUS_DOCUMENT_H
#define TP_CONTROL_STATUS_DOCUMENT_H

#include <jansson.h>

#include "pool/pool.h"
#include "reclaim/pressure.h"
#include "util/lock-class.h"

/* The program that is run when space is short; see daemon/hook.h. */
struct hook_status {
	bool running;
	uint64_t runs, failures; /* failures: not started, ended badly, or took too long */
};

/*
 * The object of status --json.  NULL: no memory.  The caller owns the reference.  A @hook of NULL
 * says that there is none.
 */
json_t *status_document(struct pool *pool, struct pressure *pressure, const char *transport,
			const struct hook_status *hook) TP_TAKES(catalog);

/* The array of list --json, in order of name.  NULL: no memory. */
json_t *list_document(struct pool *pool) TP_TAKES(catalog);

/* For .thinpool/status.json and .thinpool/status: strings that the caller frees.  NULL: no memory.
 */
char *status_render_json(struct pool *pool, struct pressure *pressure, const char *transport,
			 const struct hook_status *hook) TP_TAKES(catalog);
char *status_render_text(struct pool *pool, struct pressure *pressure, const char *transport,
			 const struct hook_status *hook) TP_TAKES(catalog);

#endif
