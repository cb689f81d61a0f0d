/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: what says where a device is: an absolute path, or a tag and its
 * value, "UUID=...".
 */

#ifndef LIBCOWLOOP_SPEC_H
#define LIBCOWLOOP_SPEC_H

#include <stdbool.h>

/* For messages: all that a text can be that says where a device is. */
#define SPEC_KINDS	"an absolute path, or UUID=, LABEL=, PARTUUID= or PARTLABEL= and a value"

struct spec_tag {
	const char *name;	/* with the = */
	const char *links;	/* the directory of the links that udev makes by it */
	const char *cow_links;	/* of those to cow devices */
	bool moves;		/* a link goes over from a device to what is opened over it */
};

/* The tag of @spec, and its value; NULL: it has none that is known. */
const struct spec_tag *spec_tag(const char *spec, const char **value);

/* The tag of the link @path and its value, as it is encoded there; NULL: it is not such a link. */
const struct spec_tag *spec_link(const char *path, const char **value);

/*
 * The text by which a device is looked for, to be freed, NULL without memory: a tag for a link that moves,
 * and any other @spec as it is. The link says what the tag does, but goes over to
 * whatever is opened over the device.
 */
char *spec_unlink(const char *spec);

/* An absolute path, or a tag with a value? */
bool spec_is_valid(const char *spec);

#endif /* LIBCOWLOOP_SPEC_H */
