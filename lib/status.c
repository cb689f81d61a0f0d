// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: what other programs ask about devices. dmeventd's plugin needs no more
 * than this of the library, and so has no more of it in it.
 */

#include <errno.h>
#include <stdlib.h>

#include "advice.h"
#include "size.h"
#include "text.h"

/* ---- Devices ---- */

struct cowloop_device {
	struct dm_device d;
};

int cowloop_device_look(const char *name, struct cowloop_device **device)
{
	int err;

	*device = malloc(sizeof(**device));
	if (!*device)
		return ENOMEM;
	err = dm_read(name, &(*device)->d);
	if (err) {
		free(*device);
		*device = NULL;
	}
	return err;
}

void cowloop_device_free(struct cowloop_device *d)
{
	free(d);
}

const char *cowloop_device_name(const struct cowloop_device *d)
{
	return d->d.name;
}

enum cowloop_mode cowloop_device_mode(const struct cowloop_device *d)
{
	return (enum cowloop_mode)d->d.mode;
}

const char *cowloop_device_mode_word(const struct cowloop_device *d)
{
	return d->d.mode_word;
}

__u64 cowloop_device_bytes(const struct cowloop_device *d)
{
	return d->d.sectors * 512;
}

void cowloop_device_units(const struct cowloop_device *d, __u64 *used, __u64 *total, unsigned int *mapunit)
{
	if (used)
		*used = d->d.used;
	if (total)
		*total = d->d.total;
	if (mapunit)
		*mapunit = d->d.mapunit;
}

static void space_now(const struct cowloop_device *d, struct space *s)
{
	struct statvfs fs;

	space_look(&d->d, &fs);
	space_least(&d->d, &fs, s);
}

void cowloop_device_space(const struct cowloop_device *d, struct cowloop_space *s)
{
	struct space now;

	space_now(d, &now);
	*s = (struct cowloop_space){ .free = now.free, .total = now.total, .of = now.of };
}

char *cowloop_device_advice(const struct cowloop_device *d)
{
	struct space s;

	space_now(d, &s);
	return advice_text(&d->d, &s);
}

char *cowloop_device_space_advice(const struct cowloop_device *d)
{
	struct space s;

	space_now(d, &s);
	return advice_space_text(&d->d, &s);
}

/* ---- Texts ---- */

const char *cowloop_size_text(__u64 size)
{
	return size_text(size);
}

const char *cowloop_percent_text(__u64 part, __u64 whole)
{
	return percent_text(part, whole);
}

char *cowloop_text_visible(const char *text)
{
	return text_visible(text);
}
