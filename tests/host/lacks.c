// SPDX-License-Identifier: GPL-2.0-only
/*
 * lacks: a filesystem that lacks what LACKS names, "holes" or "locks". To be
 * preloaded.
 */

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/types.h>

#include <linux/falloc.h>

static int lacks(const char *what)
{
	const char *text = getenv("LACKS");

	return text && !strcmp(text, what);
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
	if (lacks("holes")) {
		errno = EOPNOTSUPP;
		return -1;
	}
	return ((__typeof__(&fallocate))dlsym(RTLD_NEXT, "fallocate"))(fd, mode, offset, length);
}

int fallocate64(int fd, int mode, off_t offset, off_t length)
{
	return fallocate(fd, mode, offset, length);
}

int flock(int fd, int how)
{
	if (lacks("locks")) {
		errno = ENOLCK;
		return -1;
	}
	return ((__typeof__(&flock))dlsym(RTLD_NEXT, "flock"))(fd, how);
}
