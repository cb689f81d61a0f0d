// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: how much can still be written into a cowfile.
 */

#include "space.h"

#include <stdlib.h>
#include <sys/stat.h>

#include "../dm-cowloop.h"
#include "loopfile.h"
#include "sysfs.h"

static u64 device_size(dev_t dev)
{
	char *text = dev_attribute(dev, "size");
	const u64 size = text ? strtoull(text, NULL, 10) * 512 : 0;

	free(text);
	return size;
}

static void bound_space(struct space *s, u64 free, u64 total, const char *of)
{
	if (s->of && s->free <= free)
		return;
	s->free = free;
	s->total = total;
	s->of = of;
}

/* How many units the cow device has room for, of those there are. */
static u64 units_with_room(const struct dm_device *d)
{
	const u64 size = device_size(d->cow);
	struct cow_geometry geo;
	u64 units;

	cow_geometry_init(&geo, d->format, d->mapunit, d->start + d->sectors);
	units = size > geo.doffset ? (size - geo.doffset) / geo.mapunit : 0;
	return units < d->total ? units : d->total;
}

void space_look(const struct dm_device *d, struct statvfs *fs)
{
	char *file = dm_has_cow(d) ? loop_file(d->cow) : NULL;
	struct stat st;

	/* A device's node is on a filesystem, too, of which it takes nothing. */
	if (!file || stat(file, &st) || S_ISBLK(st.st_mode) || statvfs(file, fs))
		fs->f_frsize = 0;
	free(file);
}

void space_least(const struct dm_device *d, const struct statvfs *fs, struct space *s)
{
	const u64 unit = d->mapunit, limit = d->limit > d->reserve ? d->limit - d->reserve : 0;
	u64 room;

	*s = (struct space){ 0 };
	if (d->limit)
		bound_space(s, limit > d->used ? (limit - d->used) * unit : 0, limit * unit, "limit");
	if (fs->f_frsize)
		bound_space(s, (u64)fs->f_bavail * fs->f_frsize, (u64)fs->f_blocks * fs->f_frsize,
			    "filesystem");
	if (!dm_has_cow(d))
		return;

	/*
	 * A device that has room for everything bounds nothing, unless nothing else
	 * does, or there is a low water, which counts on it.
	 */
	room = units_with_room(d);
	if (room < d->total || !s->of || d->low_water)
		bound_space(s, room > d->used ? (room - d->used) * unit : 0, room * unit, "device");
}

double space_percent(const struct dm_device *d, const struct space *s)
{
	const double used = d->used * d->mapunit, percent = 100 * used / (used + s->free);

	if (d->mode == DM_MODE_OUT_OF_SPACE)
		return 100;
	if (!s->of || !dm_has_cow(d))
		return -1;
	if (!s->free)
		return 100;
	return percent > 99.9 ? 99.9 : percent;
}
