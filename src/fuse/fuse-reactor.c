/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-reactor.c - the workers: requests in, buffers, hand-over between threads
 *
 * This is how requests come over /dev/fuse; fuse-uring.c has the other way, in which slots are
 * entries of the kernel's queues.
 *
 * All workers read one nonblocking connection (cloned descriptors would break a later
 * hand-over to a new daemon).  A worker reads requests in batches, starts them, and sleeps in
 * io_queue_run() until data I/O has ended or there are new requests.  Nothing here waits for
 * anything else, and a request costs no thread: it is a slot (fuse-internal.h) until answered.
 *
 * A new request would wake every worker that watches the connection, and all but one in vain.
 * So the first worker always watches; the others rest when there is little to do, until a worker
 * meets more than it wants to do alone: a full batch, or large requests.
 *
 * Slots are address space until used, and used last in, first out, so that a lightly loaded
 * worker stays within a few pages.  What a burst has touched is given back to the system when
 * a worker has had nothing to do for a while.
 *
 * A slot may be answered by any thread (the pool's worker).  Its own worker takes it back
 * without a lock, another thread under fuse_worker.lock.
 *
 * Invariants
 *   R1  nr_busy counts slots taken and not yet moved back to "free"; those on "returned" count.
 *   R2  a worker without free slots does not watch the connection, and has set wants_wake.  While
 *       that is the first worker, no other rests.
 *   R3  a worker's thread ends only when service has ended and nr_busy is 0; whoever returned
 *       the last slot has left the worker's lock by then, so the worker may go.
 */
#include "fuse/fuse-internal.h"

#include <errno.h>
#include <linux/fuse.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "io/device.h"

#define LOG_MODULE "fuse"
#include "util/log.h"

/* Requests read before data I/O is submitted and completions are looked at. */
enum { BATCH = 32 };

/*
 * Payload in one batch from which on another thread is worth waking: copying it takes longer
 * than that.
 */
#define HELP_BYTES (256u << 10)

/*
 * A helper rests after so many batches in a row that the first worker could well have taken
 * besides its own.  (Wake-ups in vain cannot be counted: the ring hides them.)
 */
enum { SMALL_BATCH = 8, SMALL_BATCHES_MAX = 32 };

/* Long enough that a busy mount never pays for faulting its buffers in again. */
#define IDLE_TRIM_USEC UINT64_C(5000000)

/* See ready_slot().  All requests that a kernel has in the background take 32 MiB of it. */
#define READY_BYTES (128u << 10)
#define OVERFLOW_BYTES (FUSE_MAX_WRITE - READY_BYTES)

/* libfuse hands its callbacks no context but the server: the rest is found by thread. */
static _Thread_local struct fuse_worker *this_worker;

/* -------------------------------------------------------------------- slots */

struct fuse_slot *fuse_slot_make(struct fuse_worker *w)
{
	struct fuse_slot *slot;

	if (w->nr_made == FUSE_SLOTS_PER_WORKER)
		return NULL;
	slot = fuse_slot_at(w, w->nr_made++);
	slot->worker = w;
	slot->server = w->server;
	return slot;
}

static void put_slot(struct fuse_worker *w, struct fuse_slot *slot)
{
	if (slot->is_entry)
		fuse_uring_give_back(slot);
	else
		SLIST_INSERT_HEAD(&w->free, slot, link);
}

/* Move what other threads gave back to the free list; ask to be woken by the next, or not. */
static bool collect_returned(struct fuse_worker *w, bool wants_wake) TP_TAKES(fuse)
{
	struct fuse_slot_list returned;
	struct fuse_slot *slot;
	bool any;

	lock_fuse(&w->lock);
	returned = w->returned;
	SLIST_INIT(&w->returned);
	w->nr_busy -= w->nr_returned;
	w->nr_returned = 0;
	w->wants_wake = wants_wake;
	unlock_fuse(&w->lock);

	any = !SLIST_EMPTY(&returned);
	while ((slot = SLIST_FIRST(&returned))) {
		SLIST_REMOVE_HEAD(&returned, link);
		put_slot(w, slot);
	}
	return any;
}

static struct fuse_slot *get_slot(struct fuse_worker *w)
{
	struct fuse_slot *slot = SLIST_FIRST(&w->free);

	/* Used ones before new ones: their pages are there already. */
	if (!slot && w->nr_busy && collect_returned(w, false))
		slot = SLIST_FIRST(&w->free);
	if (slot) {
		SLIST_REMOVE_HEAD(&w->free, link);
		return slot;
	}
	return fuse_slot_make(w);
}

struct fuse_slot *fuse_slot_take(fuse_req_t req)
{
	struct fuse_worker *w = this_worker;
	struct fuse_slot *slot = w->filling;

	TP_INVARIANT(slot);
	w->filling = NULL;
	w->nr_busy++;
	slot->req = req;
	slot->reference = NULL;
	return slot;
}

static struct fuse_in_header *taken_header(const struct fuse_slot *slot)
{
	const struct fuse_worker *w = slot->worker;

	return fuse_state_taken(w->server->state, w->index, fuse_slot_index(slot));
}

/* The request has been answered, or needs no answer. */
static void not_taken_any_more(const struct fuse_slot *slot)
{
	if (!slot->server->can_resend && !slot->is_entry)
		taken_header(slot)->unique = 0;
}

void fuse_slot_end(struct fuse_slot *slot)
{
	struct fuse_worker *w = slot->worker;

	not_taken_any_more(slot);

	if (slot->reference)
		volume_put(slot->reference);
	if (w == this_worker) {
		w->nr_busy--;
		put_slot(w, slot);
		return;
	}
	/* After unlocking nothing of the worker may be touched: it may be the last slot (R3). */
	lock_fuse(&w->lock);
	SLIST_INSERT_HEAD(&w->returned, slot, link);
	w->nr_returned++;
	w->handed_over++;
	if (slot->is_entry)
		atomic_store(&w->has_entries_back, true);
	if (w->wants_wake || slot->is_entry) {
		w->wants_wake = false;
		io_queue_wake(w->queue);
	}
	unlock_fuse(&w->lock);
}

void fuse_slot_end_with(struct fuse_slot *slot, int r)
{
	reply_error(slot->req, r);
	fuse_slot_end(slot);
}

/* Under mlockall() an old kernel keeps the memory of locked pages: then it stays as it is. */
static size_t trim_slot(struct fuse_worker *w, struct fuse_slot *slot)
{
	size_t bytes = slot->touched;

	if (madvise(fuse_slot_payload(slot), FUSE_SLOT_BYTES - FUSE_PAGE, MADV_DONTNEED_LOCKED))
		return 0;
	slot->touched = slot->ready_bytes = 0;
	atomic_fetch_sub_explicit(&w->touched, bytes, memory_order_relaxed);
	return bytes;
}

/* Entries that the kernel has: it fills them from within our own calls only. */
static size_t trim_entries(struct fuse_worker *w, size_t wanted)
{
	size_t done = 0;

	for (unsigned i = 0; i < w->nr_made && done < wanted; i++) {
		struct fuse_slot *slot = fuse_slot_at(w, i);

		if (slot->is_entry && !slot->entry.is_busy && slot->touched)
			done += trim_slot(w, slot);
	}
	return done;
}

/*
 * Give back @wanted bytes of free slots, those first that have been idle for longest: they are
 * at the end of the list.
 */
static size_t trim_free_slots(struct fuse_worker *w, size_t wanted) TP_TAKES(fuse)
{
	struct fuse_slot *slot;
	size_t there = 0, done = 0;

	collect_returned(w, false);
	if (w->server->over_uring) {
		done = trim_entries(w, wanted);
		wanted -= done;
	}
	SLIST_FOREACH(slot, &w->free, link)
	there += slot->touched;
	SLIST_FOREACH(slot, &w->free, link)
	{
		size_t bytes = slot->touched;

		if (there <= wanted && bytes)
			done += trim_slot(w, slot);
		there -= bytes;
	}
	return done;
}

/* What fuse_worker_ask_trim() asked for. */
static void trim_as_asked(struct fuse_worker *w) TP_TAKES(fuse)
{
	uint64_t asked;
	size_t wanted;

	lock_fuse(&w->lock);
	asked = w->trims_asked;
	wanted = atomic_exchange(&w->trim_wanted, 0);
	unlock_fuse(&w->lock);
	atomic_fetch_add(&w->trimmed, trim_free_slots(w, wanted));
	lock_fuse(&w->lock);
	w->trims_done = asked;
	pthread_cond_broadcast(&w->trim_cond);
	unlock_fuse(&w->lock);
}

void fuse_worker_ask_trim(struct fuse_worker *w, size_t bytes)
{
	lock_fuse(&w->lock);
	if (w->queue) {
		w->trims_asked++;
		atomic_fetch_add(&w->trim_wanted, bytes);
		io_queue_wake(w->queue);
	}
	unlock_fuse(&w->lock);
}

void fuse_worker_await_trim(struct fuse_worker *w)
{
	uint64_t asked;

	tp_lock_may_wait(LC_completion);
	lock_fuse(&w->lock);
	for (asked = w->trims_asked; w->queue && w->trims_done < asked;)
		tp_lock_wait(&w->lock, &w->trim_cond);
	unlock_fuse(&w->lock);
}

/* -------------------------------------------------------------- submissions */

struct io_queue *fuse_queue_self(void)
{
	struct io_queue *q;

	if (this_worker)
		return this_worker->queue;
	/* The pool's worker, going on with an operation of several steps. */
	if (io_queue_self(&q))
		return NULL;
	return q;
}

void fuse_slot_submit_io(struct fuse_slot *slot)
{
	struct io_queue *q = fuse_queue_self();

	if (likely(q))
		pool_io_submit(slot->server->pool, q, &slot->io);
	else
		slot->io.done(&slot->io, -ENOMEM);
}

/* ---------------------------------------------------------------- a worker */

/* Data that a request moves, as far as its header tells. */
static size_t payload_of(const struct fuse_buf *buf)
{
	const struct fuse_in_header *in = buf->mem;
	const struct fuse_read_in *arg = (const void *)(in + 1);

	return in->opcode == FUSE_READ && buf->size >= sizeof(*in) + sizeof(*arg) ? arg->size
										  : buf->size;
}

/*
 * A process that is killed while the kernel copies a request to pages that are not there yet
 * fails the request, which no later daemon can mend.  So pages for all but the largest are there
 * before, and those that this buffer lacks are lent by the worker.
 */
static void ready_slot(struct fuse_slot *slot)
{
	char *payload = fuse_slot_payload(slot);

	if (likely(slot->ready_bytes >= READY_BYTES))
		return;
	/* Before 5.14 one by one. */
	if (madvise(payload, READY_BYTES, MADV_POPULATE_WRITE))
		for (size_t i = 0; i < READY_BYTES; i += FUSE_PAGE)
			payload[i] = 0;
	fuse_slot_touch(slot, READY_BYTES);
	slot->ready_bytes = READY_BYTES;
}

/* What came to the lent pages takes its place; next time this buffer has pages of its own. */
static void take_overflow(struct fuse_worker *w, struct fuse_slot *slot, size_t bytes)
{
	size_t own = FUSE_WRITE_HEADER + READY_BYTES;

	if (bytes <= own || slot->ready_bytes == FUSE_MAX_WRITE)
		return;
	memcpy(fuse_slot_payload(slot) + READY_BYTES, w->overflow, bytes - own);
	memset(fuse_slot_payload(slot) + bytes - FUSE_WRITE_HEADER, 0,
	       FUSE_WRITE_HEADER + FUSE_MAX_WRITE - bytes);
	fuse_slot_touch(slot, FUSE_MAX_WRITE);
	slot->ready_bytes = FUSE_MAX_WRITE;
}

/*
 * Where the kernel does not send a dead daemon's requests to the next one, that one has to fail
 * them at least: their headers are read straight into what outlives us, so that none that was taken
 * is missing there, whenever we end.
 */
static ssize_t read_into(struct fuse_worker *w, struct fuse_slot *slot, char *memory)
{
	bool apart = !slot->server->can_resend, is_whole = slot->ready_bytes == FUSE_MAX_WRITE;
	struct fuse_in_header *in = apart ? taken_header(slot) : (void *)memory;
	size_t own = FUSE_WRITE_HEADER + (is_whole ? FUSE_MAX_WRITE : READY_BYTES);
	struct iovec iov[3] = {
		{ .iov_base = in, .iov_len = sizeof(*in) },
		{ .iov_base = memory + sizeof(*in), .iov_len = own - sizeof(*in) },
		{ .iov_base = w->overflow, .iov_len = is_whole ? 0 : OVERFLOW_BYTES },
	};
	ssize_t n = readv(slot->server->fd, iov, is_whole ? 2 : 3);

	if (n <= 0)
		return n;
	if (apart)
		memcpy(memory, in, sizeof(*in));
	take_overflow(w, slot, (size_t)n);
	return n;
}

/*
 * The length that the header tells is that of what was read, for whoever goes by it.  A name
 * ends where the request does: after it come the rests of an earlier one.
 */
static void bound_request(const struct fuse_buf *buf)
{
	struct fuse_in_header *in = buf->mem;

	in->len = (uint32_t)buf->size;
	if (in->opcode != FUSE_WRITE)
		((char *)buf->mem)[buf->size] = '\0';
}

void fuse_worker_process(struct fuse_slot *slot, const struct fuse_buf *buf)
{
	struct fuse_worker *w = slot->worker;

	bound_request(buf);
	w->filling = slot;
	atomic_store_explicit(&w->requests,
			      atomic_load_explicit(&w->requests, memory_order_relaxed) + 1,
			      memory_order_relaxed);
	fuse_session_process_buf(w->server->session, buf);
	if (w->filling) { /* answered without needing it */
		not_taken_any_more(slot);
		put_slot(w, slot);
		w->filling = NULL;
	}
}

/* Returns how much data the request moves; 0: there is nothing more to read now. */
static size_t read_request(struct fuse_worker *w)
{
	struct fuse_server *server = w->server;
	struct fuse_slot *slot = get_slot(w);
	struct fuse_buf buf;
	size_t payload;
	ssize_t n;

	if (unlikely(!slot))
		return 0;
	ready_slot(slot);
	buf = (struct fuse_buf){ .mem = (char *)slot + FUSE_REQUEST_OFFSET };
	n = read_into(w, slot, buf.mem);
	if (n <= 0) {
		put_slot(w, slot);
		if (n < 0 && (errno == EINTR || errno == ENOENT))
			return 1; /* ENOENT: the request was withdrawn while we took it */
		if (n < 0 && errno == EAGAIN)
			return 0;
		if (n < 0 && errno != ENODEV && errno != ECONNABORTED)
			log_err("cannot read requests of the mount: %s, it ends", strerror(errno));
		fuse_server_ended(server);
		return 0;
	}

	buf.size = (size_t)n;
	payload = payload_of(&buf);
	if (buf.size > FUSE_WRITE_HEADER)
		fuse_slot_touch(slot, buf.size);
	fuse_worker_process(slot, &buf);
	return payload;
}

static void unwatch(struct fuse_worker *w)
{
	if (w->watching)
		io_queue_unwatch(w->queue, &w->watch);
	w->watching = false;
}

static bool has_slot(const struct fuse_worker *w)
{
	return !SLIST_EMPTY(&w->free) || w->nr_made < FUSE_SLOTS_PER_WORKER;
}

/* Set by others, cleared by the helper itself when it decides to rest again. */
static void call_helpers(struct fuse_server *server)
{
	for (unsigned i = 1; i < server->nr_workers; i++) {
		struct fuse_worker *w = &server->workers[i];

		if (!atomic_load(&w->resting) || !atomic_exchange(&w->resting, false))
			continue;
		lock_fuse(&w->lock);
		if (w->queue)
			io_queue_wake(w->queue);
		unlock_fuse(&w->lock);
	}
}

/* After a batch: would it be better to leave them to the others? */
static void consider_rest(struct fuse_worker *w, bool was_small)
{
	w->small_batches = was_small ? w->small_batches + 1 : 0;
	if (w->index == 0 || w->small_batches < SMALL_BATCHES_MAX)
		return;
	w->small_batches = 0;
	/* Either we see that the first cannot read, or it sees that we rest, and calls. */
	atomic_store(&w->resting, true);
	if (atomic_load(&w->server->workers[0].is_starved))
		atomic_store(&w->resting, false);
}

static void connection_ready(struct io_watch *watch, short revents)
{
	struct fuse_worker *w = container_of(watch, struct fuse_worker, watch);
	size_t bytes = 0, n;
	bool much = false;
	unsigned nr;

	(void)revents;
	for (nr = 0; nr < BATCH && (n = read_request(w)); nr++) {
		bytes += n;
		if (!much && (bytes >= HELP_BYTES || nr == BATCH - 1)) {
			much = true;
			call_helpers(w->server);
		}
	}
	consider_rest(w, !much && nr < SMALL_BATCH);
}

/* Watch the connection while there is a slot to read into (R2) and it is worth while. */
static void update_watch(struct fuse_worker *w) TP_TAKES(fuse)
{
	if (atomic_load(&w->resting)) {
		unwatch(w);
	} else if (has_slot(w) || collect_returned(w, true)) {
		atomic_store(&w->is_starved, false);
		if (!w->watching)
			io_queue_watch(w->queue, &w->watch);
		w->watching = true;
	} else if (w->watching) {
		unwatch(w);
		atomic_fetch_add_explicit(&w->starved, 1, memory_order_relaxed);
		atomic_store(&w->is_starved, true);
		call_helpers(w->server);
	}
}

bool fuse_server_going_on(const struct fuse_server *server)
{
	return !atomic_load_explicit(&server->ended, memory_order_acquire) &&
	       !atomic_load_explicit(&server->stopping, memory_order_acquire);
}

/* Service is over: wait for the answers that are still owed. */
static void finish(struct fuse_worker *w) TP_TAKES(bufio)
{
	unwatch(w);
	for (;;) {
		collect_returned(w, true);
		if (!w->nr_busy)
			break;
		io_queue_run(w->queue, UINT64_MAX);
	}
	io_queue_kick(w->queue); /* answers in entries */
}

/* Other threads wake the queue under the lock, so that it is not destroyed under their hands. */
static void set_queue(struct fuse_worker *w, struct io_queue *q) TP_TAKES(fuse)
{
	lock_fuse(&w->lock);
	w->queue = q;
	pthread_cond_broadcast(&w->trim_cond);
	unlock_fuse(&w->lock);
}

static void *worker_main(void *arg)
{
	struct fuse_worker *w = arg;
	struct io_queue *q;
	char name[16];
	int r;

	snprintf(name, sizeof(name), "fuse-%u", w->index);
	pthread_setname_np(pthread_self(), name);
	/* The one that metadata is prefetched on, so that this loop sees the nodes arrive. */
	r = io_queue_self(&q);
	if (r) {
		log_err("cannot make an I/O queue: %s, the mount ends", strerror(-r));
		fuse_server_ended(w->server);
		return NULL;
	}
	this_worker = w;
	set_queue(w, q);
	w->watch = (struct io_watch){ .fd = w->server->fd,
				      .events = POLLIN,
				      .ready = connection_ready };

	tp_lock_hold_begin(w, LC_completion); /* every request is waited for until it is answered */
	if (w->server->over_uring)
		fuse_uring_register(w);
	while (fuse_server_going_on(w->server)) {
		unsigned nr;

		if (atomic_load(&w->has_entries_back) &&
		    atomic_exchange(&w->has_entries_back, false))
			collect_returned(w, false);
		update_watch(w);
		nr = io_queue_run(w->queue, IDLE_TRIM_USEC);
		if (unlikely(atomic_load_explicit(&w->trim_wanted, memory_order_relaxed)))
			trim_as_asked(w);
		else if (!nr && !w->nr_busy)
			(void)trim_free_slots(w, SIZE_MAX);
	}

	finish(w);
	tp_lock_hold_end(w, LC_completion);
	this_worker = NULL;
	set_queue(w, NULL);
	return NULL;
}

/* ------------------------------------------------------------- all of them */

static int worker_init(struct fuse_worker *w, struct fuse_server *server, unsigned index)
{
	size_t bytes = (size_t)FUSE_SLOTS_PER_WORKER * FUSE_SLOT_BYTES;

	w->server = server;
	w->index = index;
	SLIST_INIT(&w->free);
	SLIST_INIT(&w->returned);
	tp_lock_init(&w->lock, LC_fuse, LOCK_KIND_MUTEX);
	tp_cond_init(&w->trim_cond);
	w->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (w->memory == MAP_FAILED) {
		w->memory = NULL;
		return -errno;
	}
	/* A huge page would back a dozen small requests with two megabytes. */
	(void)madvise(w->memory, bytes, MADV_NOHUGEPAGE);
	w->overflow = io_buffer_alloc(OVERFLOW_BYTES);
	if (!w->overflow)
		return -ENOMEM;
	memset(w->overflow, 0, OVERFLOW_BYTES);
	return 0;
}

int fuse_workers_create(struct fuse_server *server)
{
	int r = 0;

	server->workers = calloc(server->nr_workers, sizeof(*server->workers));
	if (!server->workers) {
		server->nr_workers = 0;
		return -ENOMEM;
	}
	for (unsigned i = 0; i < server->nr_workers; i++) {
		int s = worker_init(&server->workers[i], server, i);

		r = r ? r : s;
	}
	return r;
}

int fuse_workers_start(struct fuse_server *server)
{
	sigset_t all, old;
	int r = 0;

	/* Signals are for the main thread. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	for (unsigned i = 0; i < server->nr_workers && !r; i++) {
		struct fuse_worker *w = &server->workers[i];

		/* A queue each, and hardly anything over the connection. */
		atomic_store(&w->resting, server->over_uring && i > 0);
		r = -pthread_create(&w->thread, NULL, worker_main, w);
		w->started = !r;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return r;
}

void fuse_workers_wake(struct fuse_server *server)
{
	for (unsigned i = 0; i < server->nr_workers; i++) {
		struct fuse_worker *w = &server->workers[i];

		lock_fuse(&w->lock);
		if (w->queue)
			io_queue_wake(w->queue);
		unlock_fuse(&w->lock);
	}
}

void fuse_server_ended(struct fuse_server *server)
{
	uint64_t one = 1;

	if (atomic_exchange(&server->ended, true))
		return;
	fuse_workers_wake(server);
	while (write(server->end_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

void fuse_workers_join(struct fuse_server *server)
{
	/* They may wait for requests that the pool's worker ends. */
	tp_lock_may_wait(LC_shrinkers);
	for (unsigned i = 0; i < server->nr_workers; i++)
		if (server->workers[i].started)
			pthread_join(server->workers[i].thread, NULL);
}

void fuse_workers_destroy(struct fuse_server *server)
{
	size_t bytes = (size_t)FUSE_SLOTS_PER_WORKER * FUSE_SLOT_BYTES;

	for (unsigned i = 0; server->workers && i < server->nr_workers; i++) {
		struct fuse_worker *w = &server->workers[i];

		if (w->memory)
			munmap(w->memory, bytes);
		free(w->overflow);
		pthread_cond_destroy(&w->trim_cond);
		tp_lock_destroy(&w->lock);
	}
	free(server->workers);
}
