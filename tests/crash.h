/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the programs share that check what a crash leaves: contents that can be
 * told apart, device-mapper, and the log of dm-log-writes.
 *
 * A log is a super block and then the entries in the order of their completion,
 * as far as a flush or FUA write has got them into it: a sector that describes
 * the entry, then its data. An entry with LOG_MARK has the mark's name behind
 * the description, in the same sector.
 */

#ifndef CRASH_H
#define CRASH_H

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/dm-ioctl.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECTOR		512
#define WORDS		(SECTOR / sizeof(uint64_t))
#define MAGIC		0x6863617263776f63ULL	/* cowcrach */
#define BASE		(1ULL << 63)		/* the stamp of rdo's sectors */

static inline void __attribute__((format(printf, 1, 2), noreturn)) die(const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "%s: ", program_invocation_short_name);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	if (errno)
		fprintf(stderr, ": %s", strerror(errno));
	fputc('\n', stderr);
	exit(3);
}

/* ---- Contents ---- */

static inline uint64_t mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ULL;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

/* What sector @sector holds after write number @stamp; stamp 0 is zeroes. */
static inline void make_sector(uint64_t *to, uint64_t sector, uint64_t stamp)
{
	const uint64_t key = mix(sector * 0x9e3779b97f4a7c15ULL + stamp);

	if (!stamp) {
		memset(to, 0, SECTOR);
		return;
	}
	to[0] = MAGIC;
	to[1] = sector;
	to[2] = stamp;
	for (size_t i = 3; i < WORDS; i++)
		to[i] = key + i;
}

static uint64_t random_state;

static inline uint64_t rnd(uint64_t below)
{
	random_state += 0x9e3779b97f4a7c15ULL;
	return mix(random_state) % below;
}

/* ---- Workers ---- */

/* Each of @nr processes does its share of the work; returns the worst of their exit statuses. */
static inline int share_out(unsigned int nr, int (*share)(unsigned int worker, void *context),
			    void *context)
{
	int worst = 0, status;

	fflush(NULL);
	for (unsigned int i = 0; i < nr; i++) {
		pid_t pid = fork();

		if (pid < 0)
			die("fork");
		if (!pid)
			exit(share(i, context));
	}
	while (wait(&status) > 0) {
		int code = WIFEXITED(status) ? WEXITSTATUS(status) : 3;

		worst = code > worst ? code : worst;
	}
	return worst;
}

/* ---- device-mapper ---- */

static int dm_fd = -1;

struct dm_call {
	struct dm_ioctl io;
	char data[4096];
};

/* One ioctl on device @name; the data behind the header is the caller's. */
static inline int dm_call(struct dm_call *call, unsigned long request, const char *name)
{
	if (dm_fd < 0) {
		dm_fd = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
		if (dm_fd < 0)
			die("/dev/mapper/control");
	}
	call->io.version[0] = DM_VERSION_MAJOR;
	call->io.data_size = sizeof(*call);
	call->io.data_start = sizeof(call->io);
	snprintf(call->io.name, sizeof(call->io.name), "%s", name);
	return ioctl(dm_fd, request, call);
}

static inline void dm_simple(unsigned long request, const char *name, uint32_t flags)
{
	struct dm_call call = { .io.flags = flags };

	if (dm_call(&call, request, name))
		die("device-mapper request %#lx on %s", request, name);
}

static inline void dm_message(const char *name, const char *fmt, ...)
{
	struct dm_call call = { };
	struct dm_target_msg *msg = (void *)call.data;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(msg->message, sizeof(call.data) - sizeof(*msg), fmt, ap);
	va_end(ap);
	if (dm_call(&call, DM_TARGET_MSG, name))
		die("message '%s' to %s", msg->message, name);
}

/* Create a device with one target; returns its minor number, or -1. */
static inline int dm_create(const char *name, uint64_t sectors, const char *target, const char *params)
{
	struct dm_call call = { };
	struct dm_target_spec *spec = (void *)call.data;

	if (dm_call(&call, DM_DEV_CREATE, name))
		die("creating %s", name);

	memset(&call, 0, sizeof(call));
	call.io.target_count = 1;
	spec->length = sectors;
	snprintf(spec->target_type, sizeof(spec->target_type), "%s", target);
	snprintf((char *)(spec + 1), sizeof(call.data) - sizeof(*spec), "%s", params);
	if (dm_call(&call, DM_TABLE_LOAD, name)) {
		dm_simple(DM_DEV_REMOVE, name, 0);
		return -1;
	}
	memset(&call, 0, sizeof(call));
	if (dm_call(&call, DM_DEV_SUSPEND, name))	/* resumes */
		die("resuming %s", name);
	return minor(call.io.dev);
}

/* ---- Files and devices ---- */

static inline void *map_file(const char *path, size_t *size)
{
	int fd = open(path, O_RDONLY);
	off_t end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
	void *map;

	if (end <= 0)
		die("%s", path);
	map = mmap(NULL, end, PROT_READ, MAP_PRIVATE, fd, 0);
	if (map == MAP_FAILED)
		die("%s", path);
	close(fd);
	*size = end;
	return map;
}

static inline uint64_t device_sectors(const char *path)
{
	int fd = open(path, O_RDONLY);
	uint64_t bytes;

	if (fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes))
		die("%s", path);
	close(fd);
	return bytes / SECTOR;
}

/* ---- The log that dm-log-writes has left ---- */

#define LOG_MAGIC	0x6a736677736872ULL
#define LOG_FLUSH	1
#define LOG_FUA		2
#define LOG_DISCARD	4
#define LOG_MARK	8

struct log_super {
	uint64_t magic, version, nr_entries;
	uint32_t sectorsize;
} __attribute__((packed));

struct log_entry {
	uint64_t sector, nr_sectors, flags, data_len;
};

static inline const struct log_entry *log_first(const struct log_super *super)
{
	errno = 0;
	if (super->magic != LOG_MAGIC || super->sectorsize != SECTOR)
		die("not a log of dm-log-writes with sectors of 512 bytes");
	return (const void *)((const char *)super + super->sectorsize);
}

static inline const char *log_data(const struct log_entry *entry)
{
	return (const char *)entry + SECTOR;
}

static inline const struct log_entry *log_next(const struct log_entry *entry)
{
	const uint64_t sectors = entry->flags & LOG_DISCARD ? 0 : entry->nr_sectors;

	return (const void *)(log_data(entry) + sectors * SECTOR);
}

/* Marks are called m1, m2...; returns 0 for all that is no mark. */
static inline uint64_t log_mark(const struct log_entry *entry)
{
	const char *name = (const char *)(entry + 1);

	return entry->flags & LOG_MARK && *name == 'm' ? strtoull(name + 1, NULL, 10) : 0;
}

#endif /* CRASH_H */
