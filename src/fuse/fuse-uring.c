/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-uring.c - requests and answers over io_uring instead of /dev/fuse
 *
 * The kernel has a queue for each CPU; the CPU of who asks decides.  A queue belongs to a worker,
 * which registers entries for it: an entry is a slot for good, either in the kernel's hands or
 * holding a request.  A request comes as the end of a command, and its answer goes with the
 * command that gives the entry back, in the one system call in which the worker submits its I/O
 * and waits: none of its own.
 *
 * An entry is filled and given back by its worker only; another thread that ends a request wakes
 * it (fuse_slot_end()).
 *
 * libfuse does not know of this.  The request is put together in front of its payload as it would
 * have been read, and its number is replaced by the slot's: by that the answer finds the entry.
 *
 * /dev/fuse stays in use for what the kernel never sends otherwise (FORGET, INTERRUPT), for
 * notices, and for everything when the queues cannot be registered.
 *
 * Requests in entries are not sent again to another daemon, nor is an entry ever given up by the
 * kernel in good order: such a mount ends with its daemon, and nobody is asked to keep it.
 *
 * Invariants
 *   U1  an entry is in the kernel's hands, or counted in nr_busy from when it is filled until
 *       it is given back.
 *   U2  an answer is complete in the entry before fuse_slot_end(), by whichever thread.
 */
#include "fuse/fuse-internal.h"

#include <errno.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOG_MODULE "fuse"
#include "util/log.h"

/* Of a worker's slots; the rest are for what comes over /dev/fuse. */
#define ENTRIES_PER_WORKER FUSE_URING_DEPTH_MAX
_Static_assert(ENTRIES_PER_WORKER <= FUSE_SLOTS_PER_WORKER - 64, "there are some for /dev/fuse");

#define PAYLOAD_BYTES (FUSE_SLOT_BYTES - FUSE_PAGE)

/* ------------------------------------------------------------ can it be had? */

unsigned fuse_uring_parse_cpus(const char *text)
{
	unsigned nr = 0;

	while (*text && *text != '\n') {
		char *end;
		unsigned long first = strtoul(text, &end, 10), last = first;

		if (end == text)
			return 0;
		if (*end == '-') {
			text = end + 1;
			last = strtoul(text, &end, 10);
			if (end == text)
				return 0;
		}
		if (last < first || last > UINT16_MAX)
			return 0;
		nr += (unsigned)(last - first + 1);
		text = *end == ',' ? end + 1 : end;
		if (*end && *end != ',' && *end != '\n')
			return 0;
	}
	return nr;
}

/* As many queues the kernel has.  0: unknown. */
static unsigned count_cpus(void)
{
	FILE *f = fopen("/sys/devices/system/cpu/possible", "re");
	char line[256] = "";

	if (!f)
		return 0;
	if (!fgets(line, sizeof(line), f))
		line[0] = '\0';
	fclose(f);
	return fuse_uring_parse_cpus(line);
}

static bool queues_have_commands(void)
{
	struct io_queue *q;
	bool yes;

	if (io_queue_create(1, &q))
		return false;
	yes = io_queue_has_commands(q);
	io_queue_destroy(q);
	return yes;
}

/*
 * From the answer to INIT on the kernel holds every request back until the queues are there, so
 * what can be known is found out before.
 */
bool fuse_uring_prepare(struct fuse_server *server, unsigned depth)
{
	unsigned nr_queues = count_cpus(), most = ENTRIES_PER_WORKER / depth;

	if (!nr_queues || !queues_have_commands())
		return false;
	/* Not less deep: requests that wait for space would keep others of their CPU waiting. */
	if (DIV_ROUND_UP(nr_queues, server->nr_workers) > most) {
		log_info("requests come over /dev/fuse: for io_uring and %u CPUs it takes %u "
			 "workers",
			 nr_queues, DIV_ROUND_UP(nr_queues, most));
		return false;
	}
	server->uring.nr_queues = nr_queues;
	server->uring.depth = depth;
	return true;
}

/* ------------------------------------------------------------------ entries */

static void filled(struct io_command *cmd, int r);

static void give(struct fuse_slot *slot, uint32_t op)
{
	struct fuse_uring_command command = { .qid = slot->entry.qid,
					      .commit_id = slot->entry.header.entry.commit_id };

	_Static_assert(sizeof(command) <= IO_COMMAND_BYTES, "the area has room");
	slot->entry.command = (struct io_command){
		.fd = slot->server->fd,
		.op = op,
		.done = filled,
	};
	if (op == FUSE_URING_REGISTER) {
		slot->entry.command.address = slot->entry.iov;
		slot->entry.command.length = ARRAY_SIZE(slot->entry.iov);
	}
	memcpy(slot->entry.command.area, &command, sizeof(command));
	io_queue_command(slot->worker->queue, &slot->entry.command);
}

void fuse_uring_give_back(struct fuse_slot *slot)
{
	slot->entry.is_busy = false;
	give(slot, FUSE_URING_COMMIT_AND_FETCH);
}

static void register_entry(struct fuse_worker *w, unsigned queue)
{
	struct fuse_slot *slot = fuse_slot_make(w);

	TP_INVARIANT(slot);
	slot->is_entry = true;
	slot->entry.qid = (uint16_t)queue;
	slot->entry.iov[0] = (struct iovec){ .iov_base = &slot->entry.header,
					     .iov_len = sizeof(slot->entry.header) };
	slot->entry.iov[1] =
		(struct iovec){ .iov_base = fuse_slot_payload(slot),
				.iov_len =
					w->server->uring.is_refused ? FUSE_PAGE : PAYLOAD_BYTES };
	give(slot, FUSE_URING_REGISTER);
}

void fuse_uring_register(struct fuse_worker *w)
{
	const struct fuse_server *server = w->server;

	for (unsigned q = w->index; q < server->uring.nr_queues; q += server->nr_workers)
		for (unsigned i = 0; i < server->uring.depth; i++)
			register_entry(w, q);
}

/* ----------------------------------------------------------------- requests */

/* What libfuse would have been given, its payload, if any, where it is. */
static struct fuse_buf put_together(struct fuse_slot *slot)
{
	const struct fuse_uring_header *header = &slot->entry.header;
	size_t payload = MIN(header->entry.payload_bytes, PAYLOAD_BYTES), op_bytes;
	struct fuse_in_header in;
	char *at;

	memcpy(&in, header->in_out, sizeof(in));
	op_bytes = in.len - sizeof(in) - payload;
	/* The kernel is trusted, but not to be the one we know. */
	if (in.len < sizeof(in) + payload || op_bytes > sizeof(header->op_in))
		op_bytes = payload = 0;
	in.len = (uint32_t)(sizeof(in) + op_bytes + payload);
	in.unique = fuse_slot_number(slot);
	at = fuse_slot_payload(slot) - op_bytes - sizeof(in);
	memcpy(at, &in, sizeof(in));
	memcpy(at + sizeof(in), header->op_in, op_bytes);
	return (struct fuse_buf){ .mem = at, .size = in.len };
}

static void command_failed(struct fuse_slot *slot, int r)
{
	struct fuse_server *server = slot->server;

	if (r == -ENOTCONN || r == -ECONNABORTED || r == -ENODEV) {
		fuse_server_ended(server);
		return;
	}
	if (slot->entry.command.op != FUSE_URING_REGISTER) {
		log_err_limited("an answer was not taken by the kernel: %s", strerror(-r));
		return;
	}
	/* It goes on without queues then: all that was held back comes over /dev/fuse. */
	if (!atomic_exchange(&server->uring.has_failed, true))
		log_warn("requests come over /dev/fuse: a queue was not taken by the kernel (%s)",
			 strerror(-r));
}

static void filled(struct io_command *cmd, int r)
{
	struct fuse_slot *slot = container_of(cmd, struct fuse_slot, entry.command);
	struct fuse_buf buf;

	if (unlikely(r < 0)) {
		command_failed(slot, r);
		return;
	}
	/* Like requests that nobody reads any more: they end with the connection. */
	if (unlikely(!fuse_server_going_on(slot->server)))
		return;
	slot->entry.is_busy = true;
	slot->entry.is_answered = false;
	fuse_slot_touch(slot, slot->entry.header.entry.payload_bytes);
	buf = put_together(slot);
	fuse_worker_process(slot, &buf);
}

/* ------------------------------------------------------------------ answers */

static struct fuse_slot *slot_of_answer(struct fuse_server *server, uint64_t number)
{
	unsigned worker = (unsigned)(number >> 32 & (FUSE_WORKERS_MAX - 1));
	unsigned index = (uint32_t)number;

	TP_INVARIANT(worker < server->nr_workers && index < FUSE_SLOTS_PER_WORKER);
	return fuse_slot_at(&server->workers[worker], index);
}

ssize_t fuse_uring_answer(struct fuse_server *server, const struct iovec *iov, int count)
{
	struct fuse_out_header out;
	struct fuse_slot *slot;
	size_t bytes = 0;

	memcpy(&out, iov[0].iov_base, sizeof(out));
	slot = slot_of_answer(server, out.unique);
	TP_INVARIANT(!slot->entry.is_answered);
	slot->entry.is_answered = true;
	out.unique = fuse_slot_unique(slot);
	for (int i = 1; i < count; i++) {
		TP_INVARIANT(iov[i].iov_len <= PAYLOAD_BYTES - bytes);
		/* What was read for this request is there already, or a little further on. */
		if (iov[i].iov_base != fuse_slot_payload(slot) + bytes)
			memmove(fuse_slot_payload(slot) + bytes, iov[i].iov_base, iov[i].iov_len);
		bytes += iov[i].iov_len;
	}
	fuse_slot_touch(slot, bytes);
	slot->entry.header.entry.payload_bytes = (uint32_t)bytes;
	memcpy(slot->entry.header.in_out, &out, sizeof(out));
	return (ssize_t)(sizeof(out) + bytes);
}
