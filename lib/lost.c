// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup: files of a device that somebody has removed, or cut off, since it was opened.
 */

#include "lost.h"

#include <stdlib.h>

#include "loopfile.h"
#include "sysfs.h"

char *device_file(dev_t dev)
{
	char *file = loop_file(dev);

	return file ? file : dev_path(dev);
}

bool has_lost_cow(const struct dm_device *d)
{
	return dm_has_cow(d) && loop_file_is_removed(d->cow);
}

/*
 * A file that was removed while the device has it lives on until the device is
 * closed, and is lost then: a text that says so, and how to keep it, to be freed.
 * NULL: all are where they were, or there is nothing to lose.
 */
static char *removed_text(const struct dm_device *d)
{
	char *path, *text;

	if (has_lost_cow(d) && d->used) {
		path = dev_path(d->cow);
		text = xasprintf("its cowfile was removed while in use: all that was modified is lost when it is closed. To keep it, unmount what is on it, then: dmsetup message %s 0 read_only && dd if=%s of=NEW.cow bs=1M iflag=direct conv=sparse && cowsetup close --force %s",
				 d->name, path, d->name);
	} else if (loop_file_is_removed(d->rdo)) {
		path = dev_path(d->rdo);
		text = xasprintf("the file of its read-only device was removed while in use: without it the cowfile cannot be used. To keep it: dd if=%s of=NEW bs=1M iflag=direct conv=sparse && cowsetup close --force %s",
				 path, d->name);
	} else {
		return NULL;
	}
	free(path);
	return text;
}

static void warn_cut_off(const struct dm_device *d, dev_t dev, const char *what)
{
	const u64 lacks = loop_file_lacks(dev);
	char *file;

	if (!lacks)
		return;
	file = device_file(dev);
	warn("%s: its %s, %s, was cut off while in use: its last %s are lost, and read as zeroes.",
	     d->name, what, file, size_text(lacks));
	free(file);
}

void warn_cut(const struct dm_device *d)
{
	warn_cut_off(d, d->rdo, "image");
	if (dm_has_cow(d))
		warn_cut_off(d, d->cow, "cowfile");
}

void warn_lost(const struct dm_device *d)
{
	char *text = removed_text(d);

	if (text)
		warn("%s: %s.", d->name, text);
	free(text);
	warn_cut(d);
}

int refuse_removed(const struct dm_device *d, const char *what)
{
	char *text = removed_text(d);
	int r = OK;

	if (text)
		r = error(WRONG, "%s: not %s: %s.", d->name, what, text);
	free(text);
	return r;
}
