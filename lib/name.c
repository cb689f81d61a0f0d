// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: the names of devices.
 */

#include "name.h"

#include <ctype.h>
#include <string.h>

static bool name_char(char c)
{
	return isalnum((unsigned char)c) || strchr("#+-.:=@_", c);
}

bool name_is_plain(const char *name)
{
	while (*name && name_char(*name))
		name++;
	return !*name;
}

bool name_is_special(const char *name)
{
	return !strcmp(name, ".") || !strcmp(name, "..") || !strcmp(name, "control");
}

void name_make_plain(char *name)
{
	for (; *name; name++)
		if (!name_char(*name))
			*name = '_';
}
