/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuse-virtual.c - the files of .thinpool
 *
 * The text of a file is made when it is opened and stays the same for that handle, so that a
 * reader with a small buffer sees one state and not several.  Its length is not known before:
 * st_size is 0 and reads go past the page cache.
 *
 * Handles are numbered by the clock, so one that an earlier daemon gave out is not mistaken for one
 * of ours.  A read of such a handle has the text made anew: whoever was in the middle of it may see
 * two states, but no error.
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

/* NULL: no such handle. */
TP_REQUIRES(lc_fuse)
static struct fuse_virtual_handle *find_handle_locked(struct fuse_server *server, uint64_t fh)
{
	for (size_t i = 0; i < FUSE_VIRTUAL_OPEN_MAX; i++)
		if (server->virtual_handles[i].text && server->virtual_handles[i].fh == fh)
			return &server->virtual_handles[i];
	return NULL;
}

/* Owns @text on success.  *@fh: the number it is to have; 0: a new one. */
static int keep_text(struct fuse_server *server, char *text, uint64_t *fh)
{
	struct fuse_virtual_handle *h;
	int r = -ENFILE;

	lock_fuse(&server->lock);
	if (*fh && find_handle_locked(server, *fh))
		r = -EEXIST;
	for (uint32_t i = 0; i < FUSE_VIRTUAL_OPEN_MAX && r == -ENFILE; i++) {
		h = &server->virtual_handles[i];
		if (h->text)
			continue;
		if (!*fh) {
			server->last_virtual = MAX(server->last_virtual + 1, time_monotonic_usec());
			*fh = server->last_virtual;
		}
		h->text = text;
		h->length = strlen(text);
		h->fh = *fh;
		r = 0;
	}
	unlock_fuse(&server->lock);
	return r;
}

static int make_text(struct fuse_server *server, fuse_ino_t ino, uint64_t *fh)
{
	const struct fuse_virtual_file *file = &server->files[ino - INO_VIRTUAL_FIRST];
	char *text = file->render(file->ctx);
	int r = text ? keep_text(server, text, fh) : -ENOMEM;

	if (r)
		free(text);
	return r == -EEXIST ? 0 : r; /* another read of the same handle was faster */
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
	int r;

	if (!fuse_virtual_exists(server, ino)) {
		reply_error(req, -ENOENT);
		return;
	}
	if ((fi->flags & O_ACCMODE) != O_RDONLY || fi->flags & O_TRUNC) {
		reply_error(req, -EACCES);
		return;
	}
	fi->fh = 0;
	r = make_text(server, ino, &fi->fh);
	if (r) {
		reply_error(req, r);
		return;
	}
	fi->direct_io = 1;
	if (fuse_reply_open(req, fi) == -ENOENT) /* withdrawn: no RELEASE will come */
		drop_text(server, fi->fh);
}

/* Copy a piece of a handle's text.  False: there is no such handle. */
static bool copy_text(struct fuse_server *server, uint64_t fh, size_t size, off_t offset, char *to,
		      size_t *ret_length)
{
	const struct fuse_virtual_handle *h;

	lock_fuse(&server->lock);
	h = find_handle_locked(server, fh);
	if (h && offset >= 0 && (size_t)offset < h->length) {
		*ret_length = MIN(size, h->length - (size_t)offset);
		memcpy(to, h->text + offset, *ret_length);
	}
	unlock_fuse(&server->lock);
	return h;
}

void fuse_virtual_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
		       struct fuse_file_info *fi)
{
	struct fuse_slot *slot = fuse_slot_take(req);
	struct fuse_server *server = slot->server;
	char *to = fuse_slot_payload(slot);
	size_t length = 0;
	int r = 0;

	size = MIN(size, (size_t)FUSE_MAX_WRITE);
	if (!copy_text(server, fi->fh, size, offset, to, &length)) {
		/* Of an earlier daemon. */
		r = fuse_virtual_exists(server, ino) ? make_text(server, ino, &fi->fh) : -ESTALE;
		if (!r && !copy_text(server, fi->fh, size, offset, to, &length))
			r = -ESTALE;
	}
	fuse_slot_touch(slot, length);
	if (r)
		reply_error(req, r);
	else
		fuse_reply_buf(req, to, length);
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
