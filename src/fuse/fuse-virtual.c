/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-virtual.c - the files of .thinpool
 *
 * The text of a file is made when it is opened and stays the same for that handle, so that a
 * reader with a small buffer sees one state and not several.  Its length is not known before:
 * st_size is 0 and reads go past the page cache.
 *
 * A handle is an index into a small table together with a cookie, so a number that an earlier
 * daemon gave out cannot be mistaken for one of ours.
 *
 * Locks: fuse_server.lock covers the table and the texts.  Another worker may be asked to release a
 * handle while the answer to its last read is still on its way out, so a read copies its piece.
 */
#include "fuse/fuse-internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util/clock.h"

bool fuse_virtual_exists(struct fuse_server *server, fuse_ino_t ino)
{
	return ino >= INO_VIRTUAL_FIRST && ino - INO_VIRTUAL_FIRST < server->nr_files;
}

fuse_ino_t fuse_virtual_lookup(struct fuse_server *server, const char *name)
{
	for (unsigned i = 0; i < server->nr_files; i++)
		if (!strcmp(server->files[i].name, name))
			return INO_VIRTUAL_FIRST + i;
	return 0;
}

/* The root and .thinpool too: all that is no volume. */
void fuse_virtual_attr(struct fuse_server *server, fuse_ino_t ino, struct stat *ret_attr)
{
	bool is_file = ino >= INO_VIRTUAL_FIRST;
	struct timespec started = { .tv_sec = (time_t)(server->start_usec / USEC_PER_SEC) };

	*ret_attr = (struct stat){
		.st_ino = ino,
		.st_mode = is_file ? S_IFREG | 0444 : S_IFDIR | (ino == FUSE_ROOT_ID ? 0755 : 0555),
		.st_nlink = is_file ? 1 : 2,
		.st_uid = server->uid,
		.st_gid = server->gid,
		.st_blksize = FUSE_PAGE,
		.st_atim = started,
		.st_mtim = started,
		.st_ctim = started,
	};
	if (ino == FUSE_ROOT_ID)
		ret_attr->st_nlink = 3;
}

static int keep_text(struct fuse_server *server, char *text, uint64_t *ret_fh)
{
	struct fuse_virtual_handle *h;
	int r = -ENFILE;

	lock_fuse(&server->lock);
	for (uint32_t i = 0; i < FUSE_VIRTUAL_OPEN_MAX && r; i++) {
		h = &server->virtual_handles[i];
		if (h->text)
			continue;
		h->text = text;
		h->length = strlen(text);
		h->cookie = ++server->last_cookie;
		*ret_fh = (uint64_t)h->cookie << 32 | i;
		r = 0;
	}
	unlock_fuse(&server->lock);
	return r;
}

/* NULL: no such handle. */
TP_REQUIRES(lc_fuse)
static struct fuse_virtual_handle *find_handle_locked(struct fuse_server *server, uint64_t fh)
{
	struct fuse_virtual_handle *h;

	if ((uint32_t)fh >= FUSE_VIRTUAL_OPEN_MAX)
		return NULL;
	h = &server->virtual_handles[(uint32_t)fh];
	return h->text && h->cookie == fh >> 32 ? h : NULL;
}

static void drop_text(struct fuse_server *server, uint64_t fh)
{
	struct fuse_virtual_handle *h;
	char *text = NULL;

	lock_fuse(&server->lock);
	h = find_handle_locked(server, fh);
	if (h) {
		text = h->text;
		h->text = NULL;
	}
	unlock_fuse(&server->lock);
	free(text);
}

void fuse_virtual_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct fuse_server *server = request_server(req);
	const struct fuse_virtual_file *file;
	char *text;
	int r;

	if (!fuse_virtual_exists(server, ino)) {
		reply_error(req, -ENOENT);
		return;
	}
	if ((fi->flags & O_ACCMODE) != O_RDONLY || fi->flags & O_TRUNC) {
		reply_error(req, -EACCES);
		return;
	}
	file = &server->files[ino - INO_VIRTUAL_FIRST];
	text = file->render(file->ctx);
	r = text ? keep_text(server, text, &fi->fh) : -ENOMEM;
	if (r) {
		free(text);
		reply_error(req, r);
		return;
	}
	fi->direct_io = 1;
	if (fuse_reply_open(req, fi) == -ENOENT) /* withdrawn: no RELEASE will come */
		drop_text(server, fi->fh);
}

void fuse_virtual_read(fuse_req_t req, size_t size, off_t offset, struct fuse_file_info *fi)
{
	struct fuse_slot *slot = fuse_slot_take(req);
	struct fuse_server *server = slot->server;
	const struct fuse_virtual_handle *h;
	size_t length = 0;

	lock_fuse(&server->lock);
	h = find_handle_locked(server, fi->fh);
	if (h && offset >= 0 && (size_t)offset < h->length) {
		length = MIN(MIN(size, (size_t)FUSE_MAX_WRITE), h->length - (size_t)offset);
		memcpy(fuse_slot_payload(slot), h->text + offset, length);
	}
	unlock_fuse(&server->lock);

	fuse_slot_touch(slot, length);
	if (h)
		fuse_reply_buf(req, fuse_slot_payload(slot), length);
	else
		reply_error(req, -ESTALE);
	fuse_slot_end(slot);
}

void fuse_virtual_release(fuse_req_t req, struct fuse_file_info *fi)
{
	drop_text(request_server(req), fi->fh);
	fuse_reply_err(req, 0);
}

void fuse_virtual_destroy(struct fuse_server *server)
{
	lock_fuse(&server->lock);
	for (size_t i = 0; i < FUSE_VIRTUAL_OPEN_MAX; i++) {
		free(server->virtual_handles[i].text);
		server->virtual_handles[i].text = NULL;
	}
	unlock_fuse(&server->lock);
}
