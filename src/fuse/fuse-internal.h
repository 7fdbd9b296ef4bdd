/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-internal.h - what the files of fuse/ know of each other
 *
 *	fuse-session.c   life of a server: options, INIT, start, stop
 *	fuse-mount.c     mount and unmount, by mount(2) or fusermount3
 *	fuse-reactor.c   workers: requests in, buffers, hand-over between threads
 *	fuse-uring.c     requests and answers over io_uring instead of /dev/fuse
 *	fuse-fs.c        names, attributes, directories
 *	fuse-io.c        open files: read, write, fallocate, fsync, lseek
 *	fuse-node.c      inode numbers, open volumes, attributes of a volume
 *	fuse-virtual.c   the files of .thinpool
 *	fuse-xattr.c     extended attributes
 *	fuse-state.c     what outlives the daemon: handles, changes under way
 *	fuse-again.c     changes of names that come again
 *	fuse-notify.c    telling the kernel what to forget
 *	fuse-reclaim.c   giving back memory: request buffers, and the pages of volumes
 *	fuse-refuse.c    a mount that nobody can serve
 *	fuse-errno.c     the only translation of errors
 */
#ifndef TP_FUSE_FUSE_INTERNAL_H
#define TP_FUSE_FUSE_INTERNAL_H

#define FUSE_USE_VERSION FUSE_MAKE_VERSION(3, 12)

#include <fuse_lowlevel.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/queue.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "fuse/fuse-mount.h"
#include "fuse/fuse-session.h"
#include "fuse/fuse-state.h"
#include "fuse/fuse-uring-abi.h"
#include "io/io-queue.h"
#include "util/lock-class.h"

/* ---- numbers of the tree ---- */

enum {
	INO_DIRECTORY = 2,     /* .thinpool */
	INO_VIRTUAL_FIRST = 3, /* its files */
	INO_VOLUME_FIRST = 16, /* + thin id */
};
#define DIRECTORY_NAME ".thinpool"

static inline bool ino_is_volume(fuse_ino_t ino)
{
	return ino >= INO_VOLUME_FIRST && ino - INO_VOLUME_FIRST <= THIN_ID_MAX;
}

static inline thin_id_t ino_thin_id(fuse_ino_t ino)
{
	return (thin_id_t)(ino - INO_VOLUME_FIRST);
}

static inline fuse_ino_t thin_id_ino(thin_id_t id)
{
	return (fuse_ino_t)id + INO_VOLUME_FIRST;
}

/* Every change made behind the kernel's back is told to it; the time is a second safeguard. */
#define CACHE_TIMEOUT_SEC 1.0
/* What never changes while mounted. */
#define FIXED_TIMEOUT_SEC 3600.0

/* ---- requests ---- */

#define FUSE_PAGE 4096u
#define FUSE_MAX_WRITE (1u << 20)
#define FUSE_WRITE_HEADER 80u /* of a WRITE request: its payload starts at a page */

/*
 * A request in work and its buffer, one stretch of memory:
 *
 *	page 0       this structure ... | the request as read, its last 80 bytes a WRITE's header
 *	page 1..     payload of a WRITE, or the answer of a READ
 *	one more     so that an answer can start as far into a page as its offset does
 *
 * A slot belongs to a worker for good and is in one of these places: its free list, being
 * filled, or taken by an operation, which gives it back by fuse_slot_end() after the reply.
 */
struct fuse_slot {
	struct fuse_worker *worker;
	struct fuse_server *server;
	SLIST_ENTRY(fuse_slot) link;
	size_t touched;     /* bytes of payload pages that may be backed by memory */
	size_t ready_bytes; /* ... that are, whatever requests do */

	fuse_req_t req;
	struct volume *reference; /* put at the end; NULL: an open handle holds the volume */
	union {
		struct pool_io io;
		struct pool_command command;
	};
	struct { /* kept between the steps of an operation */
		int flags, mode;
		uint32_t handle;
		uint64_t offset, length;
		struct volume *volume;
		fuse_ino_t ino;
		struct fuse_change *change;
		void (*done)(struct pool_command *cmd, int r);
	} step;

	/* For good it belongs to a queue of the kernel's: see fuse-uring.c. */
	bool is_entry;
	struct {
		bool is_busy; /* holds a request; else the kernel has it */
		bool is_answered;
		uint16_t qid;
		struct io_command command;
		struct iovec iov[2];
		struct fuse_uring_header header;
	} entry;
};

#define FUSE_REQUEST_OFFSET (FUSE_PAGE - FUSE_WRITE_HEADER)
#define FUSE_SLOT_BYTES (FUSE_PAGE + FUSE_MAX_WRITE + FUSE_PAGE)
/* The longest request without its payload: of an entry, whose header says where that starts. */
#define FUSE_HEADERS_MAX (sizeof(struct fuse_in_header) + 128)
_Static_assert(sizeof(struct fuse_slot) <= FUSE_PAGE - FUSE_HEADERS_MAX,
	       "a slot fits before its request");

static inline char *fuse_slot_payload(struct fuse_slot *slot)
{
	return (char *)slot + FUSE_PAGE;
}

/* Of the request in it; with FUSE_RESENT. */
static inline uint64_t fuse_slot_unique(const struct fuse_slot *slot)
{
	const struct fuse_in_header *in =
		slot->is_entry ? (const void *)slot->entry.header.in_out
			       : (const void *)((const char *)slot + FUSE_REQUEST_OFFSET);

	return in->unique;
}

/* Bytes of the request in it from @at, which libfuse has found in there, to the end. */
static inline size_t fuse_slot_left(const struct fuse_slot *slot, const char *at)
{
	const char *request = (const char *)slot + FUSE_REQUEST_OFFSET;
	const struct fuse_in_header *in = (const void *)request;

	return at < request + in->len ? (size_t)(request + in->len - at) : 0;
}

SLIST_HEAD(fuse_slot_list, fuse_slot);

/* More than the kernel has in the background; foreground requests are one a waiting thread. */
#define FUSE_MAX_BACKGROUND 256
#define FUSE_SLOTS_PER_WORKER 1024

struct fuse_worker {
	struct fuse_server *server;
	pthread_t thread;
	bool started;
	unsigned index;

	/* The thread's own. */
	struct io_queue *queue;
	struct io_watch watch;
	bool watching;
	struct fuse_slot_list free;
	struct fuse_slot *filling; /* read from the kernel, not taken by an operation yet */
	unsigned nr_made;          /* slots [0, nr_made) of memory exist */
	unsigned nr_busy;          /* taken and not known to be back */
	char *memory;
	char *overflow;               /* pages lent to a slot that a large request is read to */
	unsigned small_batches;       /* in a row, see consider_rest() */
	atomic_bool resting;          /* does not watch until called */
	atomic_bool is_starved;       /* does not watch until a slot comes back */
	atomic_bool has_entries_back; /* entries of it are on "returned" */
	atomic_ulong requests, starved;
	atomic_size_t touched;     /* sum of the slots' */
	atomic_size_t trim_wanted; /* bytes of free slots that somebody asks for */
	atomic_ulong trimmed;      /* bytes that such asking gave back, ever */

	/* Slots that other threads gave back. */
	struct tp_lock lock; /* LC_fuse, a mutex */
	struct fuse_slot_list returned TP_GUARDED_BY(lc_fuse);
	unsigned nr_returned TP_GUARDED_BY(lc_fuse);
	unsigned long handed_over TP_GUARDED_BY(lc_fuse);
	bool wants_wake TP_GUARDED_BY(lc_fuse); /* cannot go on without a slot coming back */
	/* Trims, numbered: asked for and done; all are when there is no queue. */
	uint64_t trims_asked TP_GUARDED_BY(lc_fuse), trims_done TP_GUARDED_BY(lc_fuse);
	pthread_cond_t trim_cond;
};

static inline struct fuse_slot *fuse_slot_at(const struct fuse_worker *w, unsigned index)
{
	return (struct fuse_slot *)(void *)(w->memory + (size_t)index * FUSE_SLOT_BYTES);
}

static inline unsigned fuse_slot_index(const struct fuse_slot *slot)
{
	return (unsigned)((size_t)((const char *)slot - slot->worker->memory) / FUSE_SLOT_BYTES);
}

/* What an entry's request is called in place of the kernel's number, which has no such bit. */
#define FUSE_ENTRY_NUMBER (UINT64_C(1) << 62)

static inline uint64_t fuse_slot_number(const struct fuse_slot *slot)
{
	return FUSE_ENTRY_NUMBER | (uint64_t)slot->worker->index << 32 | fuse_slot_index(slot);
}

/* Payload pages of @slot, which the caller has taken, are used now: its first @bytes. */
static inline void fuse_slot_touch(struct fuse_slot *slot, size_t bytes)
{
	bytes = (bytes + FUSE_PAGE - 1) & ~(size_t)(FUSE_PAGE - 1);
	if (bytes <= slot->touched)
		return;
	atomic_fetch_add_explicit(&slot->worker->touched, bytes - slot->touched,
				  memory_order_relaxed);
	slot->touched = bytes;
}

/* ---- a volume that is or was open ---- */

struct fuse_node {
	_Atomic(struct volume *) volume; /* while nr_open; each open holds it */
	_Atomic uint64_t modified_usec;  /* last write seen, since 1970; 0: none */
	unsigned nr_open TP_GUARDED_BY(lc_fuse);
	atomic_uint generation; /* of the volume the rest is about */
};

#define NODE_LEAF_BITS 12
#define NODE_LEAF_SIZE (1u << NODE_LEAF_BITS)

struct fuse_node_leaf {
	struct fuse_node nodes[NODE_LEAF_SIZE];
};

/* ---- an open file of .thinpool ---- */

#define FUSE_VIRTUAL_OPEN_MAX 256

struct fuse_virtual_handle {
	char *text; /* NULL: free */
	size_t length;
	uint64_t fh;
};

/* ---- what the kernel has to be told ---- */

#define FUSE_NOTICES_MAX 4096

struct fuse_notice {
	STAILQ_ENTRY(fuse_notice) link;
	enum pool_event_kind kind;
	thin_id_t id;
	char name[];
};
STAILQ_HEAD(fuse_notice_list, fuse_notice);

/* Pages that the shrinker wants to be dropped; one such wish at a time. */
struct fuse_drop {
	enum { FUSE_DROP_NONE, FUSE_DROP_WANTED, FUSE_DROP_UNDER_WAY, FUSE_DROP_DONE } state;
	thin_id_t id;
	uint64_t offset, length;
	bool is_known; /* DONE: the kernel knows the volume */
};

/* ---- the server ---- */

struct fuse_server {
	/* Constant once started. */
	struct pool *pool;
	struct fuse_session *session;
	struct fuse_mount *mount;
	struct fuse_state *state;
	bool is_adopted;            /* an earlier daemon mounted it */
	bool no_resend, can_resend; /* the kernel sends a dead daemon's requests to the next */
	int fd;                     /* owned by session once that took it */
	int end_fd;
	enum fuse_cache_mode cache;
	bool read_only, can_expire;
	char *socket_path;
	const struct fuse_virtual_file *files;
	unsigned nr_files;
	uid_t uid;
	gid_t gid;
	uint32_t block_size;
	uint64_t start_usec;
	unsigned nr_workers, max_background;
	struct fuse_worker *workers;

	/* While INIT is answered: what the kernel offered.  NULL afterwards. */
	const struct fuse_init_in *offer;
	bool adopting; /* an earlier daemon has answered it */

	/* fuse-uring.c.  Constant once started, but for has_failed. */
	bool over_uring; /* agreed on with the kernel */
	struct {
		unsigned nr_queues, depth; /* entries of each */
		bool is_refused;           /* for tests: they are too small */
		atomic_bool has_failed;    /* a queue could not be had: everything over /dev/fuse */
	} uring;

	atomic_bool ended, stopping;
	atomic_bool withholding; /* answers that only mean that service ends: see send_message() */

	_Atomic(struct fuse_node_leaf *) leaves[(THIN_ID_MAX + 1) >> NODE_LEAF_BITS];
	atomic_uint nr_open_volumes;

	struct tp_lock lock; /* LC_fuse, a mutex */
	struct fuse_virtual_handle virtual_handles[FUSE_VIRTUAL_OPEN_MAX] TP_GUARDED_BY(lc_fuse);
	uint64_t last_virtual TP_GUARDED_BY(lc_fuse);

	pthread_t notifier;
	bool notifier_started;
	pthread_cond_t notify_cond, drop_cond;
	struct fuse_drop drop TP_GUARDED_BY(lc_fuse);
	struct fuse_notice_list notices TP_GUARDED_BY(lc_fuse);
	unsigned nr_notices TP_GUARDED_BY(lc_fuse);
	bool forget_all TP_GUARDED_BY(lc_fuse); /* notices were lost */
	bool notifier_stop TP_GUARDED_BY(lc_fuse);
	uint64_t notices_sent TP_GUARDED_BY(lc_fuse), notices_dropped TP_GUARDED_BY(lc_fuse);

	/* fuse-reclaim.c */
	struct shrinker *buffers_shrinker, *pages_shrinker; /* NULL: not registered */
	struct {
		uint64_t interval_usec, limit_usec;
		_Atomic uint64_t next_usec; /* the next sweep: not before */
		atomic_bool busy, stop;
		/* Where the last sweep stopped; belongs to who is in one. */
		thin_id_t id;
		uint64_t offset;
	} pages;
};

static inline struct fuse_server *request_server(fuse_req_t req)
{
	return fuse_req_userdata(req);
}

/* ---- fuse-errno.c ---- */

/* 0 or a negative errno of ours -> 0 or a positive errno a system call may return. */
int fuse_errno(int r);

static inline void reply_error(fuse_req_t req, int r)
{
	fuse_reply_err(req, fuse_errno(r));
}

/* ---- fuse-session.c ---- */

/* Requests taken and not answered come again. */
void fuse_ask_to_resend(int connection_fd);

/* ---- fuse-reactor.c ---- */

int fuse_workers_create(struct fuse_server *server) TP_MUST_CHECK;
int fuse_workers_start(struct fuse_server *server) TP_MUST_CHECK;
/* The end of service has been decided: the workers notice, finish what they have and go. */
void fuse_workers_wake(struct fuse_server *server) TP_TAKES(fuse);
void fuse_workers_join(struct fuse_server *server) TP_EXCLUDES_ALL;
void fuse_workers_destroy(struct fuse_server *server);
void fuse_server_ended(struct fuse_server *server) TP_TAKES(fuse);

/*
 * Take the buffer of the request that this worker is processing; it then lives until
 * fuse_slot_end(), which any thread may call, after the reply and with no lock held.
 */
struct fuse_slot *fuse_slot_take(fuse_req_t req);
void fuse_slot_end(struct fuse_slot *slot) TP_TAKES(fuse);
/* Answer with an error of ours, or with 0 if the answer says no more than that, and end. */
void fuse_slot_end_with(struct fuse_slot *slot, int r) TP_TAKES(fuse);

/* Ask the worker to give back @bytes of its free buffers. */
void fuse_worker_ask_trim(struct fuse_worker *w, size_t bytes) TP_TAKES(fuse);
/* Wait until that is done. */
void fuse_worker_await_trim(struct fuse_worker *w) TP_TAKES(completion);

/* Any thread: the calling worker's queue; a thread that is no worker gets one of its own. */
struct io_queue *fuse_queue_self(void) TP_TAKES(bufio);

void fuse_slot_submit_io(struct fuse_slot *slot) TP_TAKES(throttle);

/* Neither has the mount gone nor is service to end. */
bool fuse_server_going_on(const struct fuse_server *server);
/* For fuse-uring.c: a slot never used before; NULL: there is none.  By its worker. */
struct fuse_slot *fuse_slot_make(struct fuse_worker *w);
/* Have the request @buf in @slot carried out, by its worker. */
void fuse_worker_process(struct fuse_slot *slot, const struct fuse_buf *buf);

/* ---- fuse-uring.c ---- */

/* The CPUs in a list like "0-3,8"; 0: it is none. */
unsigned fuse_uring_parse_cpus(const char *text);
/* Whether the kernel, if it offers it, can be asked for queues of @depth entries. */
bool fuse_uring_prepare(struct fuse_server *server, unsigned depth) TP_TAKES(bufio);
/* Give the kernel the entries of a worker's queues; by that worker, once. */
void fuse_uring_register(struct fuse_worker *w);
/* The answer is complete, or there is none: the kernel takes it, and may fill the entry anew. */
void fuse_uring_give_back(struct fuse_slot *slot);
/* Put an answer into its entry.  Returns its length. */
ssize_t fuse_uring_answer(struct fuse_server *server, const struct iovec *iov, int count);

/* ---- fuse-node.c ---- */

/* The node of a volume, made at need; NULL: no memory. */
struct fuse_node *fuse_node_get(struct fuse_server *server, thin_id_t id);
/* NULL: never opened. */
struct fuse_node *fuse_node_find(struct fuse_server *server, thin_id_t id);
void fuse_nodes_destroy(struct fuse_server *server) TP_TAKES(pool);

/*
 * A handle on @v, for the open request @unique.  @v's reference passes to the node on success.
 */
int fuse_node_open(struct fuse_server *server, struct volume *v, bool for_writing, uint64_t unique,
		   uint64_t *ret_fh) TP_TAKES(catalog) TP_MUST_CHECK;
void fuse_node_close(struct fuse_server *server, uint64_t fh) TP_TAKES(pool);
/* Open what was open when an earlier daemon ended; before any request is served. */
void fuse_nodes_adopt(struct fuse_server *server) TP_TAKES(catalog);

/* Remember that an open volume is being written to: what st_mtime tells. */
void fuse_node_modified(struct fuse_server *server, thin_id_t id);
/* The same of one that may not be open. */
void fuse_node_touch(struct fuse_server *server, const struct volume_info *info);

/*
 * The volume of an open handle, or else (a request without one) with a reference for
 * slot->reference.
 */
int fuse_volume_of(struct fuse_slot *slot, thin_id_t id, struct volume **ret_v)
	TP_TAKES(catalog) TP_MUST_CHECK;

void fuse_volume_attr(struct fuse_server *server, const struct volume_info *info,
		      struct stat *ret_attr);
void fuse_volume_entry(struct fuse_server *server, const struct volume_info *info,
		       struct fuse_entry_param *ret_entry);

/* ---- fuse-virtual.c ---- */

void fuse_virtual_attr(struct fuse_server *server, fuse_ino_t ino, struct stat *ret_attr);
/* 0: no such file. */
fuse_ino_t fuse_virtual_lookup(struct fuse_server *server, const char *name);
bool fuse_virtual_exists(struct fuse_server *server, fuse_ino_t ino);
void fuse_virtual_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) TP_TAKES(fuse);
void fuse_virtual_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
		       struct fuse_file_info *fi) TP_TAKES(fuse);
void fuse_virtual_release(fuse_req_t req, struct fuse_file_info *fi) TP_TAKES(fuse);
void fuse_virtual_destroy(struct fuse_server *server) TP_TAKES(fuse);

/* ---- fuse-io.c ---- */

/* Answer an open: flags that libfuse cannot express included.  @entry: of a create, else NULL. */
int fuse_reply_open_volume(struct fuse_slot *slot, const struct fuse_entry_param *entry,
			   uint64_t fh);

void fuse_op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) TP_TAKES(catalog);
void fuse_op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) TP_TAKES(pool);
void fuse_op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
		  struct fuse_file_info *fi) TP_TAKES(throttle);
void fuse_op_write(fuse_req_t req, fuse_ino_t ino, const char *buffer, size_t size, off_t offset,
		   struct fuse_file_info *fi) TP_TAKES(throttle);
void fuse_op_fsync(fuse_req_t req, fuse_ino_t ino, int data_only, struct fuse_file_info *fi)
	TP_TAKES(throttle);
void fuse_op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
		       struct fuse_file_info *fi) TP_TAKES(throttle);
void fuse_op_lseek(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence,
		   struct fuse_file_info *fi) TP_TAKES(throttle);

/* ---- fuse-xattr.c ---- */

void fuse_op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
	TP_TAKES(catalog);
void fuse_op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size) TP_TAKES(catalog);
void fuse_op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value,
		      size_t size, int flags) TP_TAKES(pool);
void fuse_op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name);

/* ---- fuse-again.c ---- */

/* Submit slot->command, a change of names, unless an earlier daemon has carried it out. */
void fuse_change_submit(struct fuse_slot *slot) TP_TAKES(catalog);

/* ---- fuse-fs.c ---- */

/* Answer a command that returns nothing but its outcome: for pool_command.done. */
void fuse_command_done(struct pool_command *cmd, int r) TP_TAKES(fuse);

/* All operations; those of fuse-io.c included. */
extern const struct fuse_lowlevel_ops fuse_operations;

/* ---- fuse-reclaim.c ---- */

/* Register the shrinkers; the workers are there. */
int fuse_reclaim_start(struct fuse_server *server) TP_EXCLUDES_ALL TP_MUST_CHECK;
/* While requests are still served: a callback under way may wait for some. */
void fuse_reclaim_stop(struct fuse_server *server) TP_EXCLUDES_ALL;

/* ---- fuse-notify.c ---- */

/* Drop @length bytes of cached pages from @offset on, dirty ones being written back first; 0: all
 * that follow.  Returns false if the kernel does not know the volume. */
bool fuse_notify_drop(struct fuse_server *server, thin_id_t id, uint64_t offset, uint64_t length)
	TP_TAKES(completion);

int fuse_notifier_start(struct fuse_server *server) TP_MUST_CHECK;
void fuse_notifier_stop(struct fuse_server *server) TP_EXCLUDES_ALL;
void fuse_notices_destroy(struct fuse_server *server) TP_TAKES(fuse);

#endif
