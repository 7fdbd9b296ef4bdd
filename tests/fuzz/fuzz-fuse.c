/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuzz-fuse.c - requests as no kernel would send them, to a mount of a pool in memory
 *
 * The server is given a socket for its connection, as if it went on with the mount of an earlier
 * daemon; the other end plays the kernel.  An input is a first byte of options and a list of
 * requests: built as they should be, with names, inodes and handles out of a few, and then
 * perhaps cut, lengthened or overwritten.  Requests are sent without waiting for answers unless
 * the input says so, with one rule of the kernel's kept: a handle is not released while a request
 * is under way, for that is what fuse-node.c relies on.
 *
 * What must hold, besides that nothing breaks and nothing is leaked:
 *
 *	Q1  each request that wants an answer gets one, within ANSWER_MSEC, and no other message
 *	    comes than such answers and notices
 *	Q2  an answer says how long it is, has an error that a system call may return and nothing
 *	    with it, or what a request of this kind is answered with
 *	Q3  the server can be replaced in between, and ends when told so
 *	Q4  the pool closes without an error, and the checker finds nothing in its metadata
 */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fault-device.h"
#include "fuse/fuse-session.h"
#include "fuse/fuse-state.h"
#include "io/device.h"
#include "mem-device.h"
#include "pool-fixture.h"
#include "pool/pool-internal.h"
#include "thin/thin-check.h"
#include "util/clock.h"
#include "util/log.h"

enum {
	ANSWER_MSEC = 30000,
	MAX_REQUESTS = 120, /* of an input */
	MAX_UNDER_WAY = 16,
	NR_KNOWN = 8, /* inodes and handles to choose from */
	MAX_BODY = 1 << 17,
	MAX_ANSWER = (1 << 20) + 4096,
	CONNECTION_BYTES = 64 << 20,
};

/* Of the kernel's header, newer than ours. */
#define INIT2_HAS_RESEND (1u << (39 - 32))
#define NOTIFY_CODES 16 /* more than there are */

struct request {
	uint64_t unique;
	uint32_t opcode;
	uint32_t size;   /* of what it asks for, or of all that came with a WRITE */
	bool is_mangled; /* then its answer may be one to another question */
};

static struct bench {
	struct io_device *meta, *data; /* pristine */
	pthread_mutex_t lock;          /* server */
	/* Of one input. */
	struct io_device *own_meta, *own_data;
	struct pool *pool;
	struct fuse_server *server;
	struct fuse_virtual_file files[1];
	bool read_only, no_resend, no_pages;
	int fd; /* the kernel's end */
	uint64_t last_unique;
	struct request under_way[MAX_UNDER_WAY];
	unsigned nr_under_way;
	uint64_t inodes[NR_KNOWN], handles[NR_KNOWN];
	unsigned nr_inodes, nr_handles;
	char message[MAX_BODY + 4096], answer[MAX_ANSWER], last[4096];
	size_t last_length;
} bench = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* ---- life ---- */

static void on_event(void *ctx, const struct pool_event *ev)
{
	(void)ctx;
	pthread_mutex_lock(&bench.lock);
	if (bench.server)
		fuse_server_event(bench.server, ev);
	pthread_mutex_unlock(&bench.lock);
}

static char *render(void *ctx)
{
	(void)ctx;
	return strdup("some text\n");
}

static void open_pool(void)
{
	const struct pool_options options = {
		.cache_bytes = MIB,
		.commit_interval_usec = USEC_PER_SEC,
		.zero_new_blocks = true,
		.read_only = bench.read_only,
		.event = on_event,
	};
	struct tp_error error = { "" };

	bench.own_meta = mem_device_clone(bench.meta);
	bench.own_data = mem_device_clone(bench.data);
	HOLDS(!pool_open_devices(&options, bench.own_meta, bench.own_data, &bench.pool, &error));
}

static void start_server(int connection_fd, int state_fd)
{
	struct fuse_server *server;
	const struct fuse_server_options options = {
		.pool = bench.pool,
		.nr_workers = 1,
		.cache = bench.no_pages ? FUSE_CACHE_NONE : FUSE_CACHE_PAGES,
		.read_only = bench.read_only,
		.connection_fd = connection_fd,
		.state_fd = state_fd,
		.no_resend = bench.no_resend,
		.files = bench.files,
		.nr_files = 1,
	};
	struct tp_error error = { "" };

	if (fuse_server_start(&options, &server, &error))
		REQUIRE(false, "%s", error.text);
	pthread_mutex_lock(&bench.lock);
	bench.server = server;
	pthread_mutex_unlock(&bench.lock);
}

/* The state as it is when a mount has been made. */
static int make_state(void)
{
	struct {
		struct fuse_in_header head;
		struct fuse_init_in init;
	} request = {
		.head = { .len = sizeof(request), .opcode = FUSE_INIT, .unique = 1 },
		.init = { .major = FUSE_KERNEL_VERSION,
			  .minor = FUSE_KERNEL_MINOR_VERSION,
			  .max_readahead = 1 << 17,
			  .flags = ~0u,
			  .flags2 = INIT2_HAS_RESEND },
	};
	const struct fuse_init_out answer = { .major = FUSE_KERNEL_VERSION,
					      .minor = FUSE_KERNEL_MINOR_VERSION,
					      .max_write = 1 << 20 };
	struct fuse_state *state;
	struct fuse_state_mount *m;
	int fd;

	HOLDS(!fuse_state_create(&state));
	m = fuse_state_mount(state);
	memcpy(m->request, &request, sizeof(request));
	memcpy(m->answer, &answer, sizeof(answer));
	m->request_bytes = sizeof(request);
	m->answer_bytes = sizeof(answer);
	snprintf(m->path, sizeof(m->path), "/nonexistent");
	fd = fcntl(fuse_state_fd(state), F_DUPFD_CLOEXEC, 3);
	HOLDS(fd >= 0);
	fuse_state_close(state);
	return fd;
}

static void make_connection(int ret_fds[2])
{
	int bytes = CONNECTION_BYTES;

	HOLDS(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ret_fds));
	for (int i = 0; i < 2; i++)
		if (setsockopt(ret_fds[i], SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)))
			HOLDS(!setsockopt(ret_fds[i], SOL_SOCKET, SO_SNDBUF, &bytes,
					  sizeof(bytes)));
}

/* The largest answer that fits into the connection with as many others as there may be. */
static uint32_t max_transfer(void)
{
	int bytes = 0;
	socklen_t length = sizeof(bytes);

	HOLDS(!getsockopt(bench.fd, SOL_SOCKET, SO_SNDBUF, &bytes, &length));
	return MIN((uint32_t)bytes / (4 * MAX_UNDER_WAY), 1u << 20);
}

static void hand_over(int *ret_connection_fd, int *ret_state_fd)
{
	struct fuse_server *server = bench.server;

	HOLDS(!fuse_server_hand_over(server, ret_connection_fd, ret_state_fd));
	pthread_mutex_lock(&bench.lock);
	bench.server = NULL;
	pthread_mutex_unlock(&bench.lock);
	fuse_server_destroy(server);
}

/* ---- answers ---- */

static bool wants_answer(uint32_t opcode)
{
	return opcode != FUSE_FORGET && opcode != FUSE_BATCH_FORGET && opcode != FUSE_INTERRUPT;
}

static void know_inode(uint64_t inode)
{
	bench.inodes[bench.nr_inodes++ % NR_KNOWN] = inode;
}

static void know_handle(uint64_t handle)
{
	bench.handles[bench.nr_handles++ % NR_KNOWN] = handle;
}

static void check_directory(const char *at, size_t length, size_t extra)
{
	while (length) {
		struct fuse_dirent entry;
		size_t bytes;

		HOLDS(length >= extra + FUSE_NAME_OFFSET);
		memcpy(&entry, at + extra, FUSE_NAME_OFFSET);
		HOLDS(entry.namelen && entry.namelen <= 255 && entry.ino);
		bytes = extra + FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + entry.namelen);
		HOLDS(bytes <= length);
		at += bytes;
		length -= bytes;
	}
}

static void check_entry(const struct fuse_entry_out *entry)
{
	HOLDS(entry->nodeid && entry->attr.ino == entry->nodeid);
	HOLDS((entry->attr.mode & 0170000) == 0100000 || (entry->attr.mode & 0170000) == 0040000);
	know_inode(entry->nodeid);
}

/* Q2: of an answer without an error. */
static void check_content(const struct request *req, const char *body, size_t length)
{
	struct fuse_entry_out entry;
	struct fuse_write_out written;
	struct fuse_open_out opened;

	switch (req->opcode) {
	case FUSE_LOOKUP:
	case FUSE_MKNOD:
	case FUSE_MKDIR:
	case FUSE_SYMLINK:
	case FUSE_LINK:
	case FUSE_CREATE:
		HOLDS(length == sizeof(entry) + (req->opcode == FUSE_CREATE ? sizeof(opened) : 0));
		memcpy(&entry, body, sizeof(entry));
		check_entry(&entry);
		if (req->opcode != FUSE_CREATE)
			return;
		memcpy(&opened, body + sizeof(entry), sizeof(opened));
		know_handle(opened.fh);
		return;
	case FUSE_OPEN:
	case FUSE_OPENDIR:
		HOLDS(length == sizeof(opened));
		memcpy(&opened, body, sizeof(opened));
		know_handle(opened.fh);
		return;
	case FUSE_GETATTR:
	case FUSE_SETATTR:
		HOLDS(length == sizeof(struct fuse_attr_out));
		return;
	case FUSE_READ:
		HOLDS(req->is_mangled || length <= req->size);
		return;
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
		HOLDS(req->is_mangled || length <= req->size);
		check_directory(body, length,
				req->opcode == FUSE_READDIR ? 0 : sizeof(struct fuse_entry_out));
		return;
	case FUSE_WRITE:
		HOLDS(length == sizeof(written));
		memcpy(&written, body, sizeof(written));
		HOLDS(written.size <= req->size);
		return;
	case FUSE_STATFS:
		HOLDS(length == sizeof(struct fuse_statfs_out));
		return;
	case FUSE_LSEEK:
		HOLDS(length == sizeof(struct fuse_lseek_out));
		return;
	case FUSE_GETXATTR:
	case FUSE_LISTXATTR:
		HOLDS(req->is_mangled || (req->size ? length <= req->size
						    : length == sizeof(struct fuse_getxattr_out)));
		return;
	default:
		HOLDS(req->is_mangled || !length);
	}
}

static void take_answer(const struct fuse_out_header *out, const char *body, size_t length)
{
	unsigned i = 0;

	if (out->unique & 1) { /* an interrupt, to be tried again */
		HOLDS(out->error == -EAGAIN);
		return;
	}
	while (i < bench.nr_under_way && bench.under_way[i].unique != out->unique)
		i++;
	REQUIRE(i < bench.nr_under_way, "nobody asked %llx", (unsigned long long)out->unique);
	HOLDS(out->error <= 0 && (!out->error || strerrorname_np(-out->error)));
	HOLDS(!out->error || !length);
	if (!out->error)
		check_content(&bench.under_way[i], body, length);
	bench.under_way[i] = bench.under_way[--bench.nr_under_way];
}

/* Returns false if there is none and @timeout_msec have passed. */
static bool take_message(int timeout_msec)
{
	struct pollfd pfd = { .fd = bench.fd, .events = POLLIN };
	struct fuse_out_header out;
	ssize_t n;

	int r;

	do { /* a fuzzer has an alarm clock */
		r = poll(&pfd, 1, timeout_msec);
	} while (r < 0 && errno == EINTR);
	if (!r)
		return false;
	n = recv(bench.fd, bench.answer, sizeof(bench.answer), 0);
	REQUIRE(n >= (ssize_t)sizeof(out), "%zd bytes: %s", n, n < 0 ? strerror(errno) : "");
	memcpy(&out, bench.answer, sizeof(out));
	HOLDS(out.len == (size_t)n);
	if (out.unique)
		take_answer(&out, bench.answer + sizeof(out), (size_t)n - sizeof(out));
	else
		HOLDS(out.error > 0 && out.error < NOTIFY_CODES);
	return true;
}

/* Q1. */
static void take_answers(unsigned leave)
{
	while (bench.nr_under_way > leave)
		REQUIRE(take_message(ANSWER_MSEC), "opcode %u is not answered",
			bench.under_way[0].opcode);
}

/* ---- requests ---- */

static const char *const names[] = {
	"vol",
	"snap",
	"new",
	"other",
	".thinpool",
	"status",
	"",
	"user.thinpool.origin",
	"user.thinpool.rollback",
	"user.thinpool.socket",
	"a/b",
	"..",
	"\xff\xfe",
	"user.thinpool.read_only",
	"user.thinpool.mapped",
	"trusted.x",
};

/* A body that grows; what does not fit is left out. */
struct body {
	char *at;
	size_t length;
};

static void add(struct body *b, const void *bytes, size_t size)
{
	size = MIN(size, (size_t)MAX_BODY - b->length);
	memcpy(b->at + b->length, bytes, size);
	b->length += size;
}

static void add_name(struct body *b, struct fuzz_input *in)
{
	uint8_t which = fuzz_u8(in);
	char text[512];
	size_t length;

	if (which < 0xc0) {
		add(b, names[which % ARRAY_SIZE(names)],
		    strlen(names[which % ARRAY_SIZE(names)]) + 1);
		return;
	}
	length = which < 0xf0 ? which & 15 : fuzz_u16(in) % (sizeof(text) - 1);
	memset(text, 'x', sizeof(text));
	fuzz_take(in, text, MIN(length, in->left));
	text[length] = '\0';
	add(b, text, length + 1);
}

static uint64_t pick_inode(struct fuzz_input *in)
{
	uint8_t which = fuzz_u8(in);

	if (which < 0x60)
		return FUSE_ROOT_ID + which % 4;
	if (which < 0xf0)
		return bench.inodes[which % NR_KNOWN];
	return fuzz_u64(in);
}

static uint64_t pick_handle(struct fuzz_input *in)
{
	uint8_t which = fuzz_u8(in);

	return which < 0xf0 ? bench.handles[which % NR_KNOWN] : fuzz_u64(in);
}

/* Mostly within a volume and aligned, but not always. */
static uint64_t pick_offset(struct fuzz_input *in)
{
	uint8_t how = fuzz_u8(in);

	if (how < 0x80)
		return fuzz_u16(in) * UINT64_C(512) % (2 * MIB);
	return how < 0xf0 ? (uint64_t)fuzz_u16(in) << (how & 7) : fuzz_u64(in);
}

static uint32_t pick_size(struct fuzz_input *in, uint32_t limit)
{
	uint8_t how = fuzz_u8(in);

	return (uint32_t)MIN(how & 1 ? (how >> 1) * UINT64_C(4096) : fuzz_u16(in) & 0x1fffu, limit);
}

static void build_setattr(struct body *b, struct fuzz_input *in)
{
	struct fuse_setattr_in arg = { .valid = fuzz_u16(in), .fh = pick_handle(in) };

	arg.size = pick_offset(in);
	arg.mode = fuzz_u16(in);
	add(b, &arg, sizeof(arg));
}

static void build_write(struct body *b, struct fuzz_input *in)
{
	static char payload[MAX_BODY];
	struct fuse_write_in arg = { .fh = pick_handle(in), .offset = pick_offset(in) };

	arg.size = pick_size(in, MAX_BODY - sizeof(arg));
	arg.flags = fuzz_u8(in) & 1 ? O_DSYNC | O_DIRECT : 0;
	add(b, &arg, sizeof(arg));
	memset(payload, (int)bench.last_unique, arg.size);
	add(b, payload, arg.size);
}

static void build_read(struct body *b, struct fuzz_input *in, struct request *req)
{
	struct fuse_read_in arg = { .fh = pick_handle(in), .offset = pick_offset(in) };

	arg.size = pick_size(in, max_transfer());
	req->size = arg.size;
	add(b, &arg, sizeof(arg));
}

static void build_rename(struct body *b, struct fuzz_input *in, uint32_t opcode)
{
	struct fuse_rename2_in arg = { .newdir = pick_inode(in) };

	if (opcode == FUSE_RENAME2)
		arg.flags = fuzz_u8(in) % 8;
	add(b, &arg, opcode == FUSE_RENAME2 ? sizeof(arg) : sizeof(struct fuse_rename_in));
	add_name(b, in);
	add_name(b, in);
}

static void build_create(struct body *b, struct fuzz_input *in, uint32_t opcode)
{
	struct fuse_create_in create = { .flags = fuzz_u16(in), .mode = fuzz_u16(in) };
	struct fuse_mknod_in mknod = { .mode = create.mode | 0100000, .rdev = create.flags & 1 };

	if (opcode == FUSE_CREATE)
		add(b, &create, sizeof(create));
	else
		add(b, &mknod, sizeof(mknod));
	add_name(b, in);
}

static void build_xattr(struct body *b, struct fuzz_input *in, struct request *req)
{
	struct fuse_getxattr_in get = { .size = pick_size(in, 65536) };
	struct fuse_setxattr_in set = { .size = fuzz_u8(in) };
	char value[256];

	req->size = get.size;
	if (req->opcode == FUSE_GETXATTR || req->opcode == FUSE_LISTXATTR)
		add(b, &get, sizeof(get));
	else if (req->opcode == FUSE_SETXATTR)
		add(b, &set, sizeof(set)); /* with its flags */
	if (req->opcode != FUSE_LISTXATTR)
		add_name(b, in);
	if (req->opcode != FUSE_SETXATTR)
		return;
	memset(value, 0, sizeof(value));
	fuzz_take(in, value, MIN(set.size, in->left));
	add(b, value, set.size);
}

static void build_fallocate(struct body *b, struct fuzz_input *in)
{
	struct fuse_fallocate_in arg = { .fh = pick_handle(in) };

	arg.offset = pick_offset(in);
	arg.length = pick_offset(in);
	arg.mode = fuzz_u8(in) % 64;
	add(b, &arg, sizeof(arg));
}

static void build_forgets(struct body *b, struct fuzz_input *in)
{
	struct fuse_batch_forget_in arg = { .count = fuzz_u8(in) % 8 };

	add(b, &arg, sizeof(arg));
	for (uint32_t i = 0; i < arg.count; i++) {
		struct fuse_forget_one one = { .nodeid = pick_inode(in), .nlookup = 1 };

		add(b, &one, sizeof(one));
	}
}

static void build_raw(struct body *b, struct fuzz_input *in)
{
	char bytes[256];
	size_t length = fuzz_u8(in);

	fuzz_take(in, bytes, MIN(length, in->left));
	add(b, bytes, MIN(length, sizeof(bytes)));
}

static void build_fixed(struct body *b, struct fuzz_input *in, uint32_t opcode)
{
	struct fuse_open_in open = { .flags = fuzz_u8(in) & 3 };
	struct fuse_release_in release = { .fh = pick_handle(in) };
	struct fuse_fsync_in fsync = { .fh = release.fh };
	struct fuse_getattr_in getattr = { .fh = release.fh, .getattr_flags = open.flags & 1 };
	struct fuse_lseek_in seek = { .fh = release.fh, .whence = open.flags + 2 };
	struct fuse_interrupt_in interrupt = { .unique = bench.last_unique + 4 - 2 * open.flags };
	struct fuse_forget_in forget = { .nlookup = open.flags };

	switch (opcode) {
	case FUSE_OPEN:
	case FUSE_OPENDIR:
		add(b, &open, sizeof(open));
		break;
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
		add(b, &release, sizeof(release));
		break;
	case FUSE_FSYNC:
	case FUSE_FSYNCDIR:
		add(b, &fsync, sizeof(fsync));
		break;
	case FUSE_GETATTR:
		add(b, &getattr, sizeof(getattr));
		break;
	case FUSE_LSEEK:
		seek.offset = pick_offset(in);
		add(b, &seek, sizeof(seek));
		break;
	case FUSE_INTERRUPT:
		add(b, &interrupt, sizeof(interrupt));
		break;
	case FUSE_FORGET:
		add(b, &forget, sizeof(forget));
		break;
	default:
		break;
	}
}

static void build(struct body *b, struct fuzz_input *in, struct request *req)
{
	uint64_t old = 0;

	switch (req->opcode) {
	case FUSE_LINK:
		old = pick_inode(in);
		add(b, &old, sizeof(old));
		add_name(b, in);
		break;
	case FUSE_LOOKUP:
	case FUSE_UNLINK:
	case FUSE_RMDIR:
		add_name(b, in);
		break;
	case FUSE_SETATTR:
		build_setattr(b, in);
		break;
	case FUSE_WRITE:
		build_write(b, in);
		break;
	case FUSE_READ:
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
		build_read(b, in, req);
		break;
	case FUSE_RENAME:
	case FUSE_RENAME2:
		build_rename(b, in, req->opcode);
		break;
	case FUSE_MKNOD:
	case FUSE_CREATE:
		build_create(b, in, req->opcode);
		break;
	case FUSE_GETXATTR:
	case FUSE_LISTXATTR:
	case FUSE_SETXATTR:
	case FUSE_REMOVEXATTR:
		build_xattr(b, in, req);
		break;
	case FUSE_FALLOCATE:
		build_fallocate(b, in);
		break;
	case FUSE_BATCH_FORGET:
		build_forgets(b, in);
		break;
	default:
		build_fixed(b, in, req->opcode);
	}
}

/* Cut, lengthen or overwrite what was built.  The header stays whole: the kernel sends it so. */
static void mangle(struct body *b, struct fuzz_input *in)
{
	uint8_t how = fuzz_u8(in);
	uint16_t at = fuzz_u16(in);
	uint64_t value = fuzz_u64(in);

	if (how & 1)
		b->length = b->length ? at % b->length : 0;
	else if (how & 2)
		add(b, &value, sizeof(value));
	else if (b->length)
		memcpy(b->at + at % b->length, &value,
		       MIN(b->length - at % b->length, (size_t)1 << (how >> 2 & 3)));
}

static void send_message(struct request *req, size_t length)
{
	bool releases = req->opcode == FUSE_RELEASE || req->opcode == FUSE_RELEASEDIR;

	take_answers(releases ? 0 : MAX_UNDER_WAY - 1);
	if (wants_answer(req->opcode))
		bench.under_way[bench.nr_under_way++] = *req;
	HOLDS(send(bench.fd, bench.message, length, 0) == (ssize_t)length);
	if (length <= sizeof(bench.last)) {
		memcpy(bench.last, bench.message, length);
		bench.last_length = length;
	}
	if (releases) /* nor may one be sent after it before it is done: the kernel knows none */
		take_answers(0);
}

static void send_request(struct fuzz_input *in, uint32_t opcode, bool is_mangled, bool is_raw)
{
	struct request req = { .opcode = opcode, .is_mangled = is_mangled || is_raw };
	struct body body = { .at = bench.message + sizeof(struct fuse_in_header) };
	struct fuse_in_header head = { .opcode = opcode, .nodeid = pick_inode(in) };

	bench.last_unique += 2;
	req.unique = head.unique = bench.last_unique + (opcode == FUSE_INTERRUPT);
	if (is_raw)
		build_raw(&body, in);
	else
		build(&body, in, &req);
	if (is_mangled)
		mangle(&body, in);
	if (opcode == FUSE_WRITE)
		req.size = (uint32_t)body.length;
	head.len = (uint32_t)(sizeof(head) + body.length);
	memcpy(bench.message, &head, sizeof(head));
	send_message(&req, head.len);
}

/* As after the death of a daemon: answered or not, it comes again. */
static void resend(void)
{
	struct fuse_in_header head;
	struct request req;

	if (!bench.last_length || bench.no_resend)
		return;
	memcpy(&head, bench.last, sizeof(head));
	take_answers(0);
	req = (struct request){ .unique = head.unique | FUSE_RESENT,
				.opcode = head.opcode,
				.size = (uint32_t)bench.last_length,
				.is_mangled = true };
	head.unique |= FUSE_RESENT;
	memcpy(bench.message, bench.last, bench.last_length);
	memcpy(bench.message, &head, sizeof(head));
	send_message(&req, bench.last_length);
}

/*
 * A number in what outlives the server, which it says it does not trust: the counters in front of
 * the description of the mount, or the tables behind it.
 */
static void damage_state(int state_fd, struct fuzz_input *in)
{
	const off_t counters = 16, tables = 32 + (off_t)sizeof(struct fuse_state_mount);
	uint8_t where = fuzz_u8(in);
	uint64_t value = fuzz_u64(in);
	off_t at = where < 4 ? counters + where % 3 * 4 : tables + fuzz_u16(in) % 4096 / 4 * 4;
	size_t size = where < 4 || where & 1 ? 4 : 8;

	HOLDS(pwrite(state_fd, &value, size, at) == (ssize_t)size);
}

static void replace_server(struct fuzz_input *in, bool with_damage)
{
	int connection_fd, state_fd;

	take_answers(0);
	hand_over(&connection_fd, &state_fd);
	if (with_damage)
		damage_state(state_fd, in);
	start_server(connection_fd, state_fd);
}

enum { ACT_RAW = 32, ACT_WAIT, ACT_RESEND, ACT_REPLACE, ACT_DAMAGE, NR_ACTS };
enum { HOW_MANGLED = 1, HOW_WAIT = 2 };

/* A mount has one INIT and one DESTROY; what NOTIFY_REPLY answers we never ask. */
static bool may_come(uint32_t opcode)
{
	return opcode != FUSE_INIT && opcode != FUSE_DESTROY && opcode != FUSE_NOTIFY_REPLY;
}

static void act(struct fuzz_input *in)
{
	static const uint8_t opcodes[ACT_RAW] = {
		FUSE_LOOKUP,      FUSE_FORGET,      FUSE_GETATTR,      FUSE_SETATTR,   FUSE_MKNOD,
		FUSE_UNLINK,      FUSE_RENAME,      FUSE_RENAME2,      FUSE_LINK,      FUSE_OPEN,
		FUSE_READ,        FUSE_WRITE,       FUSE_STATFS,       FUSE_RELEASE,   FUSE_FSYNC,
		FUSE_SETXATTR,    FUSE_GETXATTR,    FUSE_LISTXATTR,    FUSE_OPENDIR,   FUSE_READDIR,
		FUSE_CREATE,      FUSE_READDIRPLUS, FUSE_RELEASEDIR,   FUSE_FALLOCATE, FUSE_LSEEK,
		FUSE_REMOVEXATTR, FUSE_INTERRUPT,   FUSE_BATCH_FORGET, FUSE_FSYNCDIR,  FUSE_RMDIR,
		FUSE_WRITE,       FUSE_READ,
	};
	uint8_t what = fuzz_u8(in) % NR_ACTS, how = fuzz_u8(in);
	uint32_t opcode;

	switch (what) {
	case ACT_RAW:
		opcode = fuzz_u16(in) % 64;
		if (may_come(opcode))
			send_request(in, opcode, how & HOW_MANGLED, true);
		break;
	case ACT_WAIT:
		take_answers(0);
		break;
	case ACT_RESEND:
		resend();
		break;
	case ACT_REPLACE:
	case ACT_DAMAGE:
		replace_server(in, what == ACT_DAMAGE);
		break;
	default:
		send_request(in, opcodes[what], how & HOW_MANGLED, false);
	}
	if (!(how & HOW_WAIT))
		take_answers(0);
}

/* ---- one input ---- */

/*
 * libfuse keeps interrupts of requests that it does not know until the next request, and loses
 * them at the end.  Requests that are lost otherwise are those that Q1 misses.
 */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
	return "leak:libfuse3.so\n";
}

static void begin(uint8_t options)
{
	int fds[2];

	bench.read_only = options & 1;
	bench.no_resend = options & 2;
	bench.no_pages = options & 4;
	bench.last_unique = 0x100;
	bench.nr_under_way = bench.nr_inodes = bench.nr_handles = 0;
	bench.last_length = 0;
	memset(bench.handles, 0, sizeof(bench.handles));
	for (unsigned i = 0; i < NR_KNOWN; i++)
		know_inode(16 + i);
	open_pool();
	make_connection(fds);
	bench.fd = fds[0];
	start_server(fds[1], make_state());
}

/* Q4. */
static void check_pool(struct io_device *meta)
{
	const struct thin_check_options options = { .data_bytes = UINT64_MAX };
	struct thin_check_result result;

	HOLDS(!thin_check(meta, &options, &result));
	REQUIRE(!result.nr_damages && !result.nr_leaks, "%lu damages, %lu leaks",
		(unsigned long)result.nr_damages, (unsigned long)result.nr_leaks);
}

static void end(void)
{
	int connection_fd, state_fd;

	take_answers(0);
	hand_over(&connection_fd, &state_fd);
	while (take_message(0)) /* notices */
		;
	close(connection_fd);
	close(state_fd);
	close(bench.fd);
	HOLDS(!pool_close(bench.pool));
	check_pool(bench.own_meta);
	io_device_close(bench.own_meta);
	io_device_close(bench.own_data);
}

static void fill(struct pool_rig *rig, struct volume *v)
{
	for (uint64_t at = 0; at < MIB; at += 3 * 64 * KIB)
		HOLDS(!rig_fill(rig, v, at, 64 * KIB, 0x5a));
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct pool_rig *rig = pool_rig_create_sized(64 * KIB, 48, 512, MIB / 2);
	struct volume *v = rig_create_volume(rig, "vol", MIB);

	(void)argc;
	(void)argv;
	fill(rig, v);
	HOLDS(!rig_snapshot(rig, "vol", "snap"));
	rig_close_volume(v);
	HOLDS(!pool_rig_close(rig));
	bench.meta = mem_device_clone(fault_device_inner(rig->meta));
	bench.data = mem_device_clone(fault_device_inner(rig->data));
	pool_rig_destroy(rig);
	bench.files[0] = (struct fuse_virtual_file){ .name = "status", .render = render };
	log_set_level(LOG_LEVEL_ERR - 1);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_input in = { data, size };

	begin(fuzz_u8(&in));
	for (unsigned i = 0; i < MAX_REQUESTS && in.left; i++)
		act(&in);
	end();
	return 0;
}
