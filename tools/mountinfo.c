// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup: what is mounted, by /proc/self/mountinfo: unlike /proc/mounts it
 * has the device numbers, and no filesystem, whose server may be gone, has to
 * be asked for its own. Part of the plugin for dmeventd, too: nothing here
 * prints or exits.
 */

#include "mountinfo.h"

#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

FILE *mountinfo_open(void)
{
	return fopen("/proc/self/mountinfo", "re");
}

/* Blanks and the like are written as \040. */
static void unescape(char *text)
{
	unsigned int c;
	char *to = text;

	for (; *text; to++) {
		if (*text == '\\' && sscanf(text + 1, "%3o", &c) == 1) {
			*to = c;
			text += 4;
		} else {
			*to = *text++;
		}
	}
	*to = 0;
}

/* "36 35 98:0 /root /point rw,noatime shared:1 - ext3 /dev/root rw": any number of fields before the hyphen. */
static bool parse(const char *line, struct mountinfo *m)
{
	const char *rest = strstr(line, " - ");
	unsigned int maj, min;
	char access[3];

	if (!rest || sscanf(line, "%*u %*u %u:%u %*s %4095s %2s", &maj, &min, m->point, access) != 4 ||
	    sscanf(rest, " - %63s %4095s", m->type, m->source) != 2)
		return false;
	m->dev = makedev(maj, min);
	m->writable = !strcmp(access, "rw");
	unescape(m->point);
	unescape(m->source);
	return true;
}

bool mountinfo_next(FILE *f, struct mountinfo *m)
{
	char *line = NULL;
	size_t room = 0;
	bool found = false;

	while (!found && getline(&line, &room, f) > 0)
		found = parse(line, m);
	free(line);
	return found;
}
