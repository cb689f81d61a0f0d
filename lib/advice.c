// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup: what to do about a device that is not as it should be. For the
 * plugin, too: nothing here prints or exits.
 */

#include "advice.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "loopfile.h"
#include "sysfs.h"
#include "text.h"

/* ---- Texts ---- */

typedef void print_fn(FILE *to, const struct dm_device *d, const struct space *s);

/* All that @print prints, to be freed; NULL: nothing, or there is no memory for it. */
static char *printed(print_fn *print, const struct dm_device *d, const struct space *s)
{
	char *text = NULL;
	size_t size;
	FILE *to = open_memstream(&text, &size);

	if (!to)
		return NULL;
	print(to, d, s);
	fclose(to);
	if (text && *text)
		return text;
	free(text);
	return NULL;
}

/* ---- Commands ---- */

/* The path by which a device of @d can be given to cowsetup open: its file's, if cowsetup has attached that. */
static char *given_path(dev_t dev)
{
	char *file = loop_autoclear(dev) ? loop_file(dev) : NULL;

	return file ? file : dev_path(dev);
}

static void print_path(FILE *to, dev_t dev)
{
	char *path = given_path(dev);

	text_print_word(to, path ? path : "?");
	free(path);
}

/* The command that opens a device as it is now, but with writes. */
static void print_open(FILE *to, const struct dm_device *d)
{
	fputs("cowsetup open ", to);
	if (d->limit)
		fprintf(to, "--limit %llu ", d->limit * d->mapunit);
	if (d->reserve)
		fprintf(to, "--reserve %llu ", d->reserve * d->mapunit);
	if (d->low_water)
		fprintf(to, "--low-water %llu ", d->low_water * d->mapunit);
	if (dm_has_option(d, "queue_if_no_space"))
		fputs("--queue-if-no-space ", to);
	if (dm_has_option(d, "no_discard_passdown"))
		fputs("--no-discard-passdown ", to);
	print_path(to, d->rdo);
	fputc(' ', to);
	if (dm_has_cow(d))
		print_path(to, d->cow);
	else
		fputs("COW", to);
	fputc(' ', to);
	text_print_word(to, d->name);
}

static void print_close(FILE *to, const struct dm_device *d, const char *option)
{
	fprintf(to, "cowsetup close %s", option);
	text_print_word(to, d->name);
}

/* ---- Space ---- */

/* Twice the limit, or none if that is more than there is. */
static void print_raise(FILE *to, const struct dm_device *d)
{
	const u64 limit = d->limit < d->total / 2 ? 2 * d->limit : 0;

	if (limit)
		fprintf(to, "to double the limit, to %s", size_text(limit * d->mapunit));
	else
		fprintf(to, "to have no limit instead of one of %s", size_text(d->limit * d->mapunit));
	fputs(": dmsetup message ", to);
	text_print_word(to, d->name);
	fprintf(to, " 0 limit %llu", limit);
}

static void print_space(FILE *to, const struct dm_device *d, const struct space *s)
{
	const bool out = d->mode == DM_MODE_OUT_OF_SPACE;
	char *file = dm_has_cow(d) ? loop_file(d->cow) : NULL, *path = dev_path(d->cow);

	/* With room below the limit it is not that which is in the way. */
	if (s->of && !strcmp(s->of, "limit") && (!s->free || !out))
		print_raise(to, d);
	else if (s->of && !strcmp(s->of, "device") && s->total < d->total * d->mapunit)
		fprintf(to, "make the cow device, %s, larger", path ? path : "?");
	else if (file)
		fprintf(to, "make room where %s is", file);
	else if (out)
		fprintf(to, "make room in what the cow device, %s, is made of, as a thin pool", path ? path : "?");
	else
		fputs("the cow device has room for every unit, so nothing will fail for want of it", to);
	free(path);
	free(file);
}

char *advice_space_text(const struct dm_device *d, const struct space *s)
{
	return printed(print_space, d, s);
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

static void print_advice(FILE *to, const struct dm_device *d, const struct space *s)
{
	switch (d->mode) {
	case DM_MODE_RW:
		if (d->suspended) {
			fputs("it is suspended: I/O waits; to let it go on: dmsetup resume ", to);
			text_print_word(to, d->name);
		}
		break;
	case DM_MODE_RO:
		fputs("it takes no writes; to write again: ", to);
		print_close(to, d, "");
		fputs(" && ", to);
		print_open(to, d);
		break;
	case DM_MODE_CLOSED:
		fputs("it has let go of its cowfile, so what was modified cannot be read; to read it again, with the cowfile for COW: ", to);
		print_close(to, d, "");
		fputs(" && ", to);
		print_open(to, d);
		break;
	case DM_MODE_OUT_OF_SPACE:
		fputs(dm_has_option(d, "queue_if_no_space") ? "new changes wait for space, and go on when there is some; " :
		      "new changes fail for want of space, and work again when there is some; ", to);
		print_space(to, d, s);
		break;
	case DM_MODE_FAIL:
		fputs("the cow device has failed: writes fail, and what was not synced may be lost; dmesg says why; when it works again: ", to);
		print_close(to, d, "--force ");
		fputs(" && cowsetup check ", to);
		print_path(to, d->cow);
		fputs(" && ", to);
		print_open(to, d);
		break;
	case DM_MODE_UNKNOWN:
		fputs("this cowsetup is older than the module and does not know this mode", to);
		break;
	}
}

char *advice_text(const struct dm_device *d, const struct space *s)
{
	return printed(print_advice, d, s);
}
