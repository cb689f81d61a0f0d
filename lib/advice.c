// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: what to do about a device that is not as it should be.
 */

#include "advice.h"

#include <stdlib.h>
#include <string.h>

#include "loopfile.h"
#include "size.h"
#include "sysfs.h"
#include "text.h"

/* ---- Commands ---- */

/* The path by which a device of @d can be given to cowsetup open: its file's, if cowsetup has attached that. */
static char *given_path(dev_t dev)
{
	char *file = loop_autoclear(dev) ? loop_file(dev) : NULL;

	return file ? file : dev_path(dev);
}

static void add_word(struct text *t, const char *text)
{
	char *word = text_word(text);

	if (!word) {
		t->failed = true;
		return;
	}
	text_add(t, "%s", word);
	free(word);
}

static void add_path(struct text *t, dev_t dev)
{
	char *path = given_path(dev);

	add_word(t, path ? path : "?");
	free(path);
}

/* The command that opens a device as it is now, but with writes. */
static void add_open(struct text *t, const struct dm_device *d)
{
	text_add(t, "cowsetup open ");
	if (d->limit)
		text_add(t, "--limit %llu ", d->limit * d->mapunit);
	if (d->reserve)
		text_add(t, "--reserve %llu ", d->reserve * d->mapunit);
	if (d->low_water)
		text_add(t, "--low-water %llu ", d->low_water * d->mapunit);
	if (dm_has_option(d, "queue_if_no_space"))
		text_add(t, "--queue-if-no-space ");
	if (dm_has_option(d, "no_discard_passdown"))
		text_add(t, "--no-discard-passdown ");
	add_path(t, d->rdo);
	text_add(t, " ");
	if (dm_has_cow(d))
		add_path(t, d->cow);
	else
		text_add(t, "COW");
	text_add(t, " ");
	add_word(t, d->name);
}

static void add_close(struct text *t, const struct dm_device *d, const char *option)
{
	text_add(t, "cowsetup close %s", option);
	add_word(t, d->name);
}

/* ---- Space ---- */

/* Twice the limit, or none if that is more than there is. */
static void add_raise(struct text *t, const struct dm_device *d)
{
	const u64 limit = d->limit < d->total / 2 ? 2 * d->limit : 0;

	if (limit)
		text_add(t, "to double the limit, to %s", size_text(limit * d->mapunit));
	else
		text_add(t, "to have no limit instead of one of %s", size_text(d->limit * d->mapunit));
	text_add(t, ": dmsetup message ");
	add_word(t, d->name);
	text_add(t, " 0 limit %llu", limit);
}

static void add_space(struct text *t, const struct dm_device *d, const struct space *s)
{
	const bool out = d->mode == DM_MODE_OUT_OF_SPACE;
	char *file = dm_has_cow(d) ? loop_file(d->cow) : NULL, *path = dev_path(d->cow);

	/* With room below the limit it is not that which is in the way. */
	if (s->of && !strcmp(s->of, "limit") && (!s->free || !out))
		add_raise(t, d);
	else if (s->of && !strcmp(s->of, "device") && s->total < d->total * d->mapunit)
		text_add(t, "make the cow device, %s, larger", path ? path : "?");
	else if (file)
		text_add(t, "make room where %s is", file);
	else if (out)
		text_add(t, "make room in what the cow device, %s, is made of, as a thin pool", path ? path : "?");
	else
		text_add(t, "the cow device has room for every unit, so nothing will fail for want of it");
	free(path);
	free(file);
}

char *advice_space_text(const struct dm_device *d, const struct space *s)
{
	struct text t = { 0 };

	add_space(&t, d, s);
	return text_take(&t);
}

char *advice_no_space(const char *name)
{
	struct dm_device d;
	struct statvfs fs;
	struct space s;

	if (dm_read(name, &d))
		return NULL;
	d.mode = DM_MODE_OUT_OF_SPACE;
	space_look(&d, &fs);
	space_least(&d, &fs, &s);
	return advice_space_text(&d, &s);
}

/* ---- Modes ---- */

static void add_reopen(struct text *t, const struct dm_device *d)
{
	add_close(t, d, "");
	text_add(t, " && ");
	add_open(t, d);
}

static void add_advice(struct text *t, const struct dm_device *d, const struct space *s)
{
	switch (d->mode) {
	case DM_MODE_RW:
		if (d->suspended) {
			text_add(t, "it is suspended: I/O waits; to let it go on: dmsetup resume ");
			add_word(t, d->name);
		}
		break;
	case DM_MODE_RO:
		text_add(t, "it takes no writes; to write again: ");
		add_reopen(t, d);
		break;
	case DM_MODE_CLOSED:
		text_add(t, "it has let go of its cowfile, so what was modified cannot be read; to read it again, with the cowfile for COW: ");
		add_reopen(t, d);
		break;
	case DM_MODE_OUT_OF_SPACE:
		text_add(t, "%s", dm_has_option(d, "queue_if_no_space") ?
			 "new changes wait for space, and go on when there is some; " :
			 "new changes fail for want of space, and work again when there is some; ");
		add_space(t, d, s);
		break;
	case DM_MODE_FAIL:
		text_add(t, "the cow device has failed: writes fail, and what was not synced may be lost; dmesg says why; when it works again: ");
		add_close(t, d, "--force ");
		text_add(t, " && cowsetup check ");
		add_path(t, d->cow);
		text_add(t, " && ");
		add_open(t, d);
		break;
	case DM_MODE_UNKNOWN:
		text_add(t, "this cowsetup is older than the module and does not know this mode");
		break;
	}
}

char *advice_text(const struct dm_device *d, const struct space *s)
{
	struct text t = { 0 };

	add_advice(&t, d, s);
	return text_take(&t);
}
