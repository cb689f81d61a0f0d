// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: whose a file is.
 *
 * A user who owns a cowfile, or may write it, reads all that is written to its
 * device, and can change it under a filesystem that is mounted. In a directory
 * like /tmp anybody can make a file, or a symbolic link, of the name that somebody
 * else is going to use. So a cowfile must be root's or the caller's own, and be
 * written by nobody else; and so must the links be that lead to it. The
 * directories above are trusted: whoever can rename things there can do more.
 */

#include "owner.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <libgen.h>
#include <limits.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <linux/magic.h>

#include "text.h"

/* How to have it all the same */
#define BY_FORCE "--force (in cowtab and cowroot=: force) uses it all the same."

/* Root, whoever runs this, and whoever has sudo run it. */
static bool is_trusted(uid_t uid)
{
	const char *sudo = geteuid() ? NULL : secure_getenv("SUDO_UID");
	unsigned long caller;
	char *end;

	if (!uid || uid == geteuid())
		return true;
	if (!sudo || *sudo < '0' || *sudo > '9')
		return false;
	errno = 0;
	caller = strtoul(sudo, &end, 10);
	return !errno && !*end && caller == uid;
}

/* May a group write it that somebody else could be in? Many have a group of their own, of the same name. */
static bool is_shared_group(const struct stat *st)
{
	const struct passwd *pw;
	const struct group *gr;

	if (!(st->st_mode & S_IWGRP) || !st->st_gid)
		return false;
	pw = getpwuid(st->st_uid);
	gr = pw && pw->pw_gid == st->st_gid ? getgrgid(st->st_gid) : NULL;
	return !gr || strcmp(gr->gr_name, pw->pw_name) || *gr->gr_mem;
}

static const char *user_name(uid_t uid)
{
	const struct passwd *pw = getpwuid(uid);

	return pw ? pw->pw_name : "an unknown user";
}

/* The next path after the symbolic link @fd at @path, *@target, to be freed; NULL: it leads to no path. */
static int read_link(struct cowloop_ctx *ctx, int fd, const char *path, char **target)
{
	char to[PATH_MAX], *copy, *next = NULL;
	struct statfs fs;
	ssize_t n;

	/* A link of /proc leads to its file by no name at all. */
	if (fstatfs(fd, &fs) || fs.f_type == PROC_SUPER_MAGIC)
		return OK;
	n = readlinkat(fd, "", to, sizeof(to) - 1);
	if (n < 0)
		return OK;
	to[n] = 0;
	copy = strdup(path);
	if (copy)
		next = *to == '/' ? strdup(to) : text_of("%s/%s", dirname(copy), to);
	free(copy);
	*target = next;
	return next ? OK : error_memory(ctx);
}

int owner_follow(struct cowloop_ctx *ctx, const char *path, bool force, char **target, bool *is_path)
{
	char *at = strdup(path), *next;
	bool named = true;
	struct stat st;
	int fd, r = OK;

	*target = NULL;
	if (!at)
		return error_memory(ctx);
	for (int i = 0; i < 40 && !r; i++) {
		fd = open(at, O_PATH | O_NOFOLLOW | O_CLOEXEC);
		if (fd < 0 || fstat(fd, &st) || !S_ISLNK(st.st_mode)) {
			if (fd >= 0)
				close(fd);
			break;
		}
		if (!force && !is_trusted(st.st_uid))
			r = error(ctx, DENIED, "%s: %s is a symbolic link that %s has made, and is not followed; name what it leads to, or use --force.",
				  path, at, user_name(st.st_uid));
		next = NULL;
		if (!r)
			r = read_link(ctx, fd, at, &next);
		close(fd);
		named = next;
		if (!named)
			break;
		free(at);
		at = next;
	}
	*target = at;
	if (is_path)
		*is_path = named;
	return r;
}

int owner_refuse(struct cowloop_ctx *ctx, const struct file *f)
{
	struct stat st, named;
	bool is_path = false;
	char *target;
	int r;

	if (f->block)
		return OK;
	r = owner_follow(ctx, f->path, false, &target, &is_path);
	if (!r && fstat(f->fd, &st))
		r = error_errno(ctx, "%s: cannot be examined", f->path);
	if (!r && target && is_path && (lstat(target, &named) || st.st_dev != named.st_dev || st.st_ino != named.st_ino))
		r = error(ctx, BUSY, "%s: in use: it is replaced by another file all the time.", f->path);
	if (!r && !is_trusted(st.st_uid))
		r = error(ctx, DENIED, "%s: belongs to %s (UID %u), who could read and change what is written to the device; expected a file of root's or your own. " BY_FORCE,
			  f->path, user_name(st.st_uid), st.st_uid);
	if (!r && (st.st_mode & S_IWOTH || is_shared_group(&st)))
		r = error(ctx, DENIED, "%s: others may write it (mode %04o), and so change what is on the device; chmod go-w %s, if none of them has. " BY_FORCE,
			  f->path, st.st_mode & 07777, f->path);
	free(target);
	return r;
}
