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

#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "dm.h"

#define MAGIC		0x6863617263776f63ULL	/* cowcrach */
#define BASE		(1ULL << 63)		/* the stamp of rdo's sectors */

/* ---- Contents ---- */

/* What sector @sector holds after write number @stamp; stamp 0 is zeroes. */
static inline void make_sector(uint64_t *to, uint64_t sector, uint64_t stamp)
{
	const uint64_t key = mix(sector * GOLDEN + stamp);

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
			die_errno(errno, "fork");
		if (!pid)
			exit(share(i, context));
	}
	while (wait(&status) > 0) {
		int code = WIFEXITED(status) ? WEXITSTATUS(status) : 3;

		worst = code > worst ? code : worst;
	}
	return worst;
}

/* ---- Devices ---- */

/* Create a device with one target; returns its minor number, or -1 with errno. */
static inline int dm_create(const char *name, uint64_t sectors, const char *target, const char *params)
{
	int err;

	dm_simple(DM_DEV_CREATE, name, 0);
	err = dm_try_load(name, sectors, target, params);
	if (err) {
		dm_simple(DM_DEV_REMOVE, name, 0);
		errno = err;
		return -1;
	}
	dm_simple(DM_DEV_SUSPEND, name, 0);	/* resumes */
	return minor(dm_device(name));
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
	if (super->magic != LOG_MAGIC || super->sectorsize != SECTOR)
		die(EXIT_SYSTEM, "not a log of dm-log-writes with sectors of 512 bytes");
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
