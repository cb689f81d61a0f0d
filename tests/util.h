/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the test programs share: exit statuses, messages, numbers, memory, devices
 * and files. What fails here ends the program.
 */

#ifndef TESTS_UTIL_H
#define TESTS_UTIL_H

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "random.h"

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define SECTOR		512
#define WORDS		(SECTOR / sizeof(uint64_t))

enum { EXIT_OK, EXIT_MISMATCH, EXIT_USAGE, EXIT_SYSTEM };

/* ---- Messages ---- */

/* Of those that the program has, the one that it does; in its messages. */
static const char *command = "";

static inline void __attribute__((format(printf, 2, 0))) complain_of(int err, const char *fmt, va_list ap)
{
	const char *name = strerrorname_np(err);

	fflush(stdout);
	fprintf(stderr, "%s: %s%s", program_invocation_short_name, command, *command ? ": " : "");
	vfprintf(stderr, fmt, ap);
	if (err)
		fprintf(stderr, ": %s (%s)", name ? name : "unknown error", strerror(err));
	fputc('\n', stderr);
}

static inline void __attribute__((format(printf, 2, 3), noreturn)) die(int status, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	complain_of(0, fmt, ap);
	exit(status);
}

/* What has failed with the error @err, whose name scripts look for. */
static inline void __attribute__((format(printf, 2, 3), noreturn)) die_errno(int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	complain_of(err, fmt, ap);
	exit(EXIT_SYSTEM);
}

/* ---- Numbers ---- */

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/*
 * The number that @name was given: decimal, 0x or 0, with an optional binary
 * suffix K, M, G or T. What is behind it goes to @end, or may not be.
 */
static inline uint64_t parse_number(const char *name, const char *text, const char **end)
{
	static const char suffixes[] = "KMGT";
	const char *suffix;
	uint64_t value;
	unsigned int shift = 0;
	char *rest;

	errno = 0;
	value = strtoull(text, &rest, 0);
	if (errno || rest == text || !isdigit((unsigned char)*text))
		die(EXIT_USAGE, "%s: '%s' is not a number", name, text);
	suffix = *rest ? strchr(suffixes, toupper((unsigned char)*rest)) : NULL;
	if (suffix) {
		shift = 10 * (suffix - suffixes + 1);
		rest++;
	}
	if (value > UINT64_MAX >> shift)
		die(EXIT_USAGE, "%s: '%s' is too large", name, text);
	if (end)
		*end = rest;
	else if (*rest)
		die(EXIT_USAGE, "%s: '%s' is not a number", name, text);
	return value << shift;
}

/* The same of the option --@name, from @min to @max. */
static inline uint64_t number(const char *name, const char *text, uint64_t min, uint64_t max)
{
	const uint64_t value = parse_number(name, text, NULL);

	if (value < min || value > max)
		die(EXIT_USAGE, "--%s: must be %" PRIu64 " to %" PRIu64, name, min, max);
	return value;
}

/* ---- Memory ---- */

/* Zeroes, good for direct I/O. */
static inline void *allocate(size_t size)
{
	void *p = NULL;
	int err = posix_memalign(&p, 4096, size ? size : 1);

	if (err)
		die_errno(err, "allocating memory");
	memset(p, 0, size);
	return p;
}

/* Is this a sector of zeroes? */
static inline bool is_zero(const uint64_t *w)
{
	uint64_t any = 0;

	for (unsigned int i = 0; i < WORDS; i++)
		any |= w[i];
	return !any;
}

/*
 * A sector that says where it belongs, which write made it and of which seed,
 * in its first words and in its last ones, so that one that is torn shows.
 */
static inline void stamp_sector(uint64_t *w, uint64_t magic, uint64_t sector, uint64_t stamp, uint64_t seed)
{
	const uint64_t key = mix(sector ^ mix(stamp ^ mix(seed)));

	w[0] = magic;
	w[1] = sector;
	w[2] = stamp;
	w[3] = seed;
	for (unsigned int i = 4; i < 61; i++)
		w[i] = key + i * GOLDEN;
	w[61] = sector;
	w[62] = stamp;
	w[63] = mix(key);
}

/* ---- Files and devices ---- */

static inline int open_path(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0666);

	if (fd < 0)
		die_errno(errno, "%s: open", path);
	return fd;
}

/* All of it; @path is for a message. */
static inline void read_exactly(int fd, const char *path, void *to, size_t size, uint64_t at)
{
	const ssize_t n = pread(fd, to, size, at);

	if (n != (ssize_t)size)
		die_errno(n < 0 ? errno : EIO, "%s: read of %zu bytes at %" PRIu64, path, size, at);
}

static inline void write_exactly(int fd, const char *path, const void *from, size_t size, uint64_t at)
{
	const ssize_t n = pwrite(fd, from, size, at);

	if (n != (ssize_t)size)
		die_errno(n < 0 ? errno : EIO, "%s: write of %zu bytes at %" PRIu64, path, size, at);
}

static inline void *map_file(const char *path, size_t *size)
{
	int fd = open_path(path, O_RDONLY);
	off_t end = lseek(fd, 0, SEEK_END);
	void *map;

	if (end <= 0)
		die_errno(end ? errno : ENODATA, "%s", path);
	map = mmap(NULL, end, PROT_READ, MAP_PRIVATE, fd, 0);
	if (map == MAP_FAILED)
		die_errno(errno, "%s: mmap", path);
	close(fd);
	*size = end;
	return map;
}

/* The size of an open block device in bytes, and of its logical blocks if @lbs. */
static inline uint64_t device_bytes(int fd, const char *path, unsigned int *lbs)
{
	uint64_t bytes;
	int size;

	if (ioctl(fd, BLKGETSIZE64, &bytes))
		die_errno(errno, "%s: BLKGETSIZE64", path);
	if (lbs && ioctl(fd, BLKSSZGET, &size))
		die_errno(errno, "%s: BLKSSZGET", path);
	if (lbs)
		*lbs = size;
	return bytes;
}

static inline uint64_t device_sectors(const char *path)
{
	int fd = open_path(path, O_RDONLY);
	const uint64_t bytes = device_bytes(fd, path, NULL);

	close(fd);
	return bytes / SECTOR;
}

#endif /* TESTS_UTIL_H */
