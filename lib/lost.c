// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: files of a device that somebody has removed, or cut off, since it was opened.
 */

#include "lost.h"

#include <stdlib.h>

#include "loopfile.h"
#include "size.h"
#include "sysfs.h"
#include "text.h"

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
 * closed, and is lost then: *@text says so, and how to keep it, to be freed.
 * NULL: all are where they were, or there is nothing to lose.
 */
static int removed_text(struct cowloop_ctx *ctx, const struct dm_device *d, char **text)
{
	char *path;

	*text = NULL;
	if (has_lost_cow(d) && d->used) {
		path = dev_path(d->cow);
		*text = path ? text_of("its cowfile was removed while in use: all that was modified is lost when it is closed. To keep it, unmount what is on it, then: dmsetup message %s 0 read_only && dd if=%s of=NEW.cow bs=1M iflag=direct conv=sparse && cowsetup close --force %s",
				       d->name, path, d->name) : NULL;
	} else if (loop_file_is_removed(d->rdo)) {
		path = dev_path(d->rdo);
		*text = path ? text_of("the file of its read-only device was removed while in use: without it the cowfile cannot be used. To keep it: dd if=%s of=NEW bs=1M iflag=direct conv=sparse && cowsetup close --force %s",
				       path, d->name) : NULL;
	} else {
		return OK;
	}
	free(path);
	return *text ? OK : error_memory(ctx);
}

static void warn_cut_off(struct cowloop_ctx *ctx, const struct dm_device *d, dev_t dev, const char *what)
{
	const u64 lacks = loop_file_lacks(dev);
	char *file;

	if (!lacks)
		return;
	file = device_file(dev);
	warn(ctx, "%s: its %s, %s, was cut off while in use: its last %s are lost, and read as zeroes.",
	     d->name, what, file ? file : "?", size_text(lacks));
	free(file);
}

void warn_cut(struct cowloop_ctx *ctx, const struct dm_device *d)
{
	warn_cut_off(ctx, d, d->rdo, "image");
	if (dm_has_cow(d))
		warn_cut_off(ctx, d, d->cow, "cowfile");
}

void warn_lost(struct cowloop_ctx *ctx, const struct dm_device *d)
{
	char *text;

	if (!removed_text(ctx, d, &text) && text)
		warn(ctx, "%s: %s.", d->name, text);
	free(text);
	warn_cut(ctx, d);
}

int refuse_removed(struct cowloop_ctx *ctx, const struct dm_device *d, const char *what)
{
	char *text;
	int r = removed_text(ctx, d, &text);

	if (text)
		r = error(ctx, WRONG, "%s: not %s: %s.", d->name, what, text);
	free(text);
	return r;
}
