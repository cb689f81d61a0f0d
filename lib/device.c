// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: a device as the kernel describes it, its table line and its status
 * line taken apart.
 *
 * Threads may call it at the same time.
 */

#include "dm.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>

#include <libdevmapper.h>

/* ---- Lines ---- */

static dev_t parse_dev(const char *text)
{
	unsigned int maj, min;

	return sscanf(text, "%u:%u", &maj, &min) == 2 ? makedev(maj, min) : 0;
}

static bool parse_table(struct dm_device *d, const char *line)
{
	const char *reserve;
	char rdo[64], cow[64];
	int at = 0, nr = 0;

	if (sscanf(line, "%63s %63s %n", rdo, cow, &at) != 2)
		return false;
	d->rdo = parse_dev(rdo);
	d->cow = parse_dev(cow);
	line += at;
	if (sscanf(line, "%*u %n", &nr) != EOF)
		line += nr;
	snprintf(d->options, sizeof(d->options), "%s", line);
	/* The other values that are in force are in the status line. */
	reserve = strstr(d->options, "reserve:");
	if (reserve)
		sscanf(reserve, "reserve:%llu", &d->reserve);
	return d->rdo;
}

static enum dm_mode parse_mode(const char *word)
{
	static const char *const words[] = {
		[DM_MODE_RW] = "rw",
		[DM_MODE_RO] = "ro",
		[DM_MODE_CLOSED] = "closed",
		[DM_MODE_OUT_OF_SPACE] = "out_of_space",
		[DM_MODE_FAIL] = "fail",
	};
	unsigned int i;

	for (i = 0; i < DM_MODE_UNKNOWN && strcmp(word, words[i]); i++)
		;
	return i;
}

static bool parse_status(struct dm_device *d, const char *line)
{
	unsigned int nr = 0;
	char state[16];
	int at = 0;

	if (sscanf(line, "%u %u %llu/%llu %llu %llu %15s %31s %u%n", &d->format, &d->mapunit, &d->used,
		   &d->total, &d->limit, &d->low_water, state, d->mode_word, &nr, &at) != 9)
		return false;
	d->dirty = strcmp(state, "clean");
	d->mode = parse_mode(d->mode_word);
	for (d->nr_counters = 0; d->nr_counters < DM_MAX_COUNTERS && d->nr_counters < nr; d->nr_counters++) {
		line += at;
		if (sscanf(line, " %31s %llu%n", d->counters[d->nr_counters].name,
			   &d->counters[d->nr_counters].value, &at) != 2)
			return false;
	}
	return d->mapunit;
}

/* ---- Devices ---- */

/* Ask the kernel by way of @task; returns what dm_read() does. */
static int ask(struct dm_task *task, const char *name, struct dm_info *info)
{
	int err;

	if (!task || !dm_task_set_name(task, name))
		return ENOMEM;
	if (!dm_task_run(task)) {
		err = dm_task_get_errno(task);
		return err ? err : EIO;
	}
	if (!dm_task_get_info(task, info) || !info->exists)
		return ENXIO;
	return info->live_table ? 0 : DM_NO_TABLE;
}

/* The first cowloop target's line, for which @task must stay; or NULL. */
static const char *find_line(struct dm_task *task, struct dm_device *d)
{
	char *type, *params;
	uint64_t start, length;
	void *next = NULL;

	do {
		next = dm_get_next_target(task, next, &start, &length, &type, &params);
		if (type && !strcmp(type, DM_TARGET)) {
			d->start = start;
			d->sectors = length;
			return params;
		}
	} while (next);
	return NULL;
}

static int read_lines(struct dm_task *table, struct dm_task *status, struct dm_device *d)
{
	const char *line, *uuid;
	struct dm_info info;
	int err = ask(table, d->name, &info);

	if (err)
		return err;
	line = find_line(table, d);
	if (!line || !parse_table(d, line))
		return DM_NOT_COWLOOP;
	err = ask(status, d->name, &info);
	if (err)
		return err;
	line = find_line(status, d);
	if (!line || !parse_status(d, line))
		return DM_NOT_COWLOOP;

	uuid = dm_task_get_uuid(status);
	snprintf(d->uuid, sizeof(d->uuid), "%s", uuid ? uuid : "");
	d->dev = makedev(info.major, info.minor);
	d->event_nr = info.event_nr;
	d->open_count = info.open_count;
	d->suspended = info.suspended;
	d->read_only = info.read_only;
	d->deferred_remove = info.deferred_remove;

	return 0;
}

int dm_read(const char *name, struct dm_device *d)
{
	struct dm_task *table = dm_task_create(DM_DEVICE_TABLE);
	struct dm_task *status = dm_task_create(DM_DEVICE_STATUS);
	int err;

	*d = (struct dm_device){ 0 };
	snprintf(d->name, sizeof(d->name), "%s", name);
	err = read_lines(table, status, d);
	if (table)
		dm_task_destroy(table);
	if (status)
		dm_task_destroy(status);

	return err;
}

/* ---- What that means ---- */

bool dm_has_cow(const struct dm_device *d)
{
	return d->cow && d->mode != DM_MODE_CLOSED;
}

bool dm_cow_uuid(const struct dm_device *d, char uuid[DM_COW_UUID_SIZE])
{
	const char *hex = d->uuid + strlen(DM_UUID_PREFIX);

	if (d->format < 2 || strncmp(d->uuid, DM_UUID_PREFIX, strlen(DM_UUID_PREFIX)) ||
	    strspn(hex, "0123456789abcdef") != 32)
		return false;
	snprintf(uuid, DM_COW_UUID_SIZE, "%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12, hex + 16, hex + 20);
	return true;
}

bool dm_has_option(const struct dm_device *d, const char *word)
{
	const size_t n = strlen(word);

	for (const char *p = strstr(d->options, word); p; p = strstr(p + n, word))
		if ((p == d->options || p[-1] == ' ') && (!p[n] || p[n] == ' '))
			return true;
	return false;
}
