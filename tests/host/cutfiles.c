// SPDX-License-Identifier: GPL-2.0-only
/*
 * cutfiles: kills a program at its n-th change of a file, and takes back what
 * would not have survived a power cut. To be preloaded:
 *
 *	CUT_AT=n	before change n (0: never)
 *	CUT_LOSE=WHAT	what was written and not synced: none is lost, all of it, or,
 *			for a number, some of it, by a random number generator
 *	CUT_COUNT=FILE	where to write how many changes there were
 *
 * A change is a write, an fsync, a truncation, a hole punched or a renaming. For
 * each write since the last fsync of its file the old contents are kept, and put
 * back in the opposite order. What is renamed stays renamed.
 */

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/falloc.h>

#define REAL(name, ...) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))(__VA_ARGS__)

/* The old contents of what was written. */
struct kept {
	struct kept *older;
	int fd;			/* our own */
	dev_t dev;
	ino_t ino;
	off_t offset;
	size_t length;
	off_t size;		/* of the file */
	char data[];
};

static struct kept *kept;
static unsigned long changes;

static void put_back(void)
{
	const char *lose = getenv("CUT_LOSE");
	const int all = lose && !strcmp(lose, "all");

	if (!lose || !strcmp(lose, "none"))
		return;
	srandom(atoi(lose));
	for (struct kept *k = kept; k; k = k->older) {
		if (!all && random() & 0x100)
			continue;
		if (REAL(pwrite, k->fd, k->data, k->length, k->offset) != (ssize_t)k->length ||
		    (all && REAL(ftruncate, k->fd, k->size)))
			abort();
	}
}

static void change(void)
{
	const char *at = getenv("CUT_AT");

	if (++changes == (at ? strtoul(at, NULL, 10) : 0)) {
		put_back();
		_exit(77);
	}
}

__attribute__((destructor)) static void write_count(void)
{
	const char *path = getenv("CUT_COUNT");
	FILE *f = path ? fopen(path, "w") : NULL;

	if (f)
		fprintf(f, "%lu\n", changes);
}

static void keep(int fd, off_t offset, off_t length)
{
	struct kept *k;
	struct stat st;
	char path[32];
	ssize_t n;

	if (fstat(fd, &st) || !S_ISREG(st.st_mode))
		return;
	if (offset + length > st.st_size)
		length = offset < st.st_size ? st.st_size - offset : 0;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	k = malloc(sizeof(*k) + length);
	if (!k)
		abort();
	*k = (struct kept){
		kept, open(path, O_RDWR | O_CLOEXEC), st.st_dev, st.st_ino,
		offset, length, st.st_size,
	};
	n = pread(k->fd, k->data, length, offset);
	if (n != length)
		abort();
	kept = k;
}

static void forget(int fd)
{
	struct kept **link = &kept, *k;
	struct stat st;

	if (fstat(fd, &st))
		return;
	while ((k = *link)) {
		if (k->dev == st.st_dev && k->ino == st.st_ino) {
			*link = k->older;
			close(k->fd);
			free(k);
		} else {
			link = &k->older;
		}
	}
}

ssize_t pwrite(int fd, const void *buf, size_t length, off_t offset)
{
	change();
	keep(fd, offset, length);
	return REAL(pwrite, fd, buf, length, offset);
}

ssize_t pwrite64(int fd, const void *buf, size_t length, off_t offset)
{
	return pwrite(fd, buf, length, offset);
}

int fsync(int fd)
{
	int r;

	change();
	r = REAL(fsync, fd);
	if (!r)
		forget(fd);
	return r;
}

int fdatasync(int fd)
{
	return fsync(fd);
}

int ftruncate(int fd, off_t size)
{
	struct stat st;

	change();
	if (!fstat(fd, &st) && size < st.st_size)
		keep(fd, size, st.st_size - size);
	return REAL(ftruncate, fd, size);
}

int ftruncate64(int fd, off_t size)
{
	return ftruncate(fd, size);
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
	change();
	keep(fd, offset, length);
	return REAL(fallocate, fd, mode, offset, length);
}

int fallocate64(int fd, int mode, off_t offset, off_t length)
{
	return fallocate(fd, mode, offset, length);
}

int rename(const char *from, const char *to)
{
	change();
	return REAL(rename, from, to);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned int flags)
{
	change();
	return REAL(renameat2, from_dir, from, to_dir, to, flags);
}
