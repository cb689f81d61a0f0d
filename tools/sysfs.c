// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup: what sysfs says of block devices. Part of the plugin for dmeventd,
 * too: nothing here prints or exits.
 */

#include "sysfs.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/sysmacros.h>

#include <linux/major.h>

char *dev_attribute(dev_t dev, const char *name)
{
	char path[128], *line = NULL;
	size_t room = 0;
	ssize_t n = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s", major(dev), minor(dev), name);
	f = fopen(path, "re");
	if (f) {
		n = getline(&line, &room, f);
		fclose(f);
	}
	if (n < 0) {
		free(line);
		return NULL;
	}
	if (n && line[n - 1] == '\n')
		line[n - 1] = 0;
	return line;
}

bool dev_is_loop(dev_t dev)
{
	return major(dev) == LOOP_MAJOR;
}

char *loop_file(dev_t dev)
{
	return dev_is_loop(dev) ? dev_attribute(dev, "loop/backing_file") : NULL;
}
