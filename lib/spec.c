// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: the tags by which devices are looked for, and their links.
 */

#include <stdio.h>
#include <string.h>

#include "spec.h"
#include "text.h"

static const struct spec_tag tags[] = {
	{ "UUID=", "/dev/disk/by-uuid/", "/dev/disk/by-uuid/", true },
	/* A filesystem may have the same label. */
	{ "LABEL=", "/dev/disk/by-label/", "/dev/disk/by-cow-label/", true },
	{ "PARTUUID=", "/dev/disk/by-partuuid/", "/dev/disk/by-partuuid/", false },
	{ "PARTLABEL=", "/dev/disk/by-partlabel/", "/dev/disk/by-partlabel/", false },
};

/* The rest of @text behind @prefix, or NULL. */
static const char *behind(const char *text, const char *prefix)
{
	const size_t n = strlen(prefix);

	return strncmp(text, prefix, n) ? NULL : text + n;
}

const struct spec_tag *spec_tag(const char *spec, const char **value)
{
	for (size_t i = 0; i < sizeof(tags) / sizeof(tags[0]); i++) {
		*value = behind(spec, tags[i].name);
		if (*value)
			return &tags[i];
	}
	return NULL;
}

const struct spec_tag *spec_link(const char *path, const char **value)
{
	for (size_t i = 0; i < sizeof(tags) / sizeof(tags[0]); i++) {
		*value = behind(path, tags[i].links);
		if (*value)
			return &tags[i];
	}
	return NULL;
}

/* As udev writes what the name of a link cannot have: \x20 for a blank. */
static void decode(char *text)
{
	unsigned int c;
	char *to = text;

	for (; *text; to++) {
		if (text[0] == '\\' && text[1] == 'x' && sscanf(text + 2, "%2x", &c) == 1 && c) {
			*to = c;
			text += strnlen(text, 4);
		} else {
			*to = *text++;
		}
	}
	*to = 0;
}

char *spec_unlink(const char *spec)
{
	const char *value;
	const struct spec_tag *tag = spec_link(spec, &value);
	char *text;

	if (!tag || !tag->moves || !*value)
		return strdup(spec);
	text = text_of("%s%s", tag->name, value);
	if (text)
		decode(text + strlen(tag->name));
	return text;
}

bool spec_is_valid(const char *spec)
{
	const char *value;

	return spec[0] == '/' || (spec_tag(spec, &value) && *value);
}
