// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: files that get their name when they are complete, and those that
 * they replace.
 */

#include "newfile.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "holders.h"
#include "owner.h"
#include "text.h"

/* The rights of @st, a file: those of its group are only another group's if everybody has them. */
static mode_t rights(const struct stat *st, gid_t gid)
{
	const mode_t mode = st->st_mode & 0666;

	if (!S_ISREG(st->st_mode))
		return 0600;
	return gid == st->st_gid ? mode : (mode & ~070) | (mode & 07) << 3;
}

/* May it become @replaced's owner's, who could then read what is made of @source? */
static bool may_have(const struct stat *replaced, const struct stat *source)
{
	return !source || replaced->st_uid == source->st_uid || replaced->st_uid == geteuid() ||
	       source->st_mode & S_IROTH;
}

/* Owner, group and permissions of a new file, which nobody else can open yet. Never wider than asked for. */
static int set_rights(struct cowloop_ctx *ctx, int fd, const char *path, const struct stat *replaced,
		      const struct stat *source)
{
	const struct stat *like = replaced ? replaced : source;
	mode_t mode = 0600;
	struct stat st;

	if (replaced && S_ISREG(replaced->st_mode) &&
	    (!may_have(replaced, source) || fchown(fd, replaced->st_uid, -1)))
		warn(ctx, "%s: its owner cannot be kept.", path);
	/* A group that cannot be had has no rights in it. */
	if (like && S_ISREG(like->st_mode))
		(void)!fchown(fd, -1, like->st_gid);
	if (fstat(fd, &st))
		return error_errno(ctx, "%s: cannot be examined", path);
	if (like)
		mode = rights(like, st.st_gid);
	if (source && S_ISREG(source->st_mode))
		mode &= rights(source, st.st_gid);
	if (fchmod(fd, mode))
		warn(ctx, "%s: its permissions cannot be set: %s.", path, strerror(errno));
	return OK;
}

/* Beside @target; to be freed, NULL: no memory. */
static char *temporary_name(const char *target)
{
	char *base = strdup(target), *dir = strdup(target), *name = NULL;

	if (base && dir)
		name = text_of("%s/.%.200s.XXXXXX", dirname(dir), basename(base));
	free(base);
	free(dir);
	return name;
}

int new_file_create(struct cowloop_ctx *ctx, struct new_file *n, const char *path, const struct stat *replaced,
		    const struct stat *source, bool force)
{
	int fd, r;

	*n = (struct new_file){ .file = FILE_CLOSED };
	/* A symbolic link stays, and the file is replaced that it leads to. */
	r = owner_follow(ctx, path, force, &n->target, NULL);
	if (r) {
		new_file_abort(n);
		return r;
	}
	n->temporary = temporary_name(n->target);
	/* For nobody else, and not there yet. */
	fd = n->temporary ? mkostemp(n->temporary, O_CLOEXEC) : -1;
	if (fd < 0) {
		r = n->temporary ? error_errno(ctx, "%s: cannot be created", path) : error_memory(ctx);
		free(n->temporary);
		n->temporary = NULL;
		new_file_abort(n);
		return r;
	}
	n->file.fd = fd;
	r = set_rights(ctx, fd, path, replaced, source);
	return r ? r : file_from_fd(ctx, &n->file, fd, path);
}

static int sync_directory(struct cowloop_ctx *ctx, const char *path)
{
	char *copy = strdup(path);
	int fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	int r = OK;

	free(copy);
	if (fd < 0 || fsync(fd))
		r = error_errno(ctx, "%s: its directory cannot be written to stable storage", path);
	if (fd >= 0)
		close(fd);
	return r;
}

/* Not every filesystem can refuse to replace a file; then there is a short race. */
static int rename_new(const char *from, const char *to)
{
	int r = renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE);

	if (!r || (errno != EINVAL && errno != ENOSYS))
		return r;
	if (!access(to, F_OK)) {
		errno = EEXIST;
		return -1;
	}
	return rename(from, to);
}

int new_file_commit(struct cowloop_ctx *ctx, struct new_file *n, bool replace)
{
	int r = file_sync(ctx, &n->file);

	if (r)
		return r;
	if (replace ? rename(n->temporary, n->target) : rename_new(n->temporary, n->target))
		return error_errno(ctx, "%s: cannot be given its name", n->file.path);
	free(n->temporary);
	n->temporary = NULL;
	return sync_directory(ctx, n->target);
}

void new_file_abort(struct new_file *n)
{
	if (n->temporary)
		unlink(n->temporary);
	free(n->temporary);
	free(n->target);
	n->temporary = n->target = NULL;
	file_close(&n->file);
}

/* ---- What they replace ---- */

int replaced_hold(struct cowloop_ctx *ctx, struct replaced *old, const struct file *f)
{
	old->file = *f;
	return file_read_padded(ctx, f, 0, old->start, sizeof(old->start));
}

/* Our lock keeps cowsetup away, and nobody else. */
int replaced_check(struct cowloop_ctx *ctx, const struct replaced *old, const char *target)
{
	const char *path = old->file.path;
	u8 start[COW_BLANK_SIZE];
	char *user;
	int r;

	if (!file_is_at(&old->file, target))
		return error(ctx, BUSY, "%s: another file has this name by now; it stays, and nothing is changed.", path);
	r = file_used_by(ctx, &old->file, &user);
	if (user) {
		r = error(ctx, BUSY, "%s: in use by now: %s; nothing is changed.", path, user);
		free(user);
		return r;
	}
	if (!r)
		r = file_read_padded(ctx, &old->file, 0, start, sizeof(start));
	if (!r && memcmp(start, old->start, sizeof(start)))
		r = error(ctx, BUSY, "%s: another program has written it meanwhile; it stays, and nothing is changed.", path);
	return r;
}
