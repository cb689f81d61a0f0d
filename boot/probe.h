/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cowsetup: telling cowfiles on block devices from everything else.
 */

#ifndef COWSETUP_PROBE_H
#define COWSETUP_PROBE_H

#include "../lib/cowfile.h"

/* A device that holds a cowfile. */
struct cow_device {
	char *path;
	struct cow_head head;
	unsigned int format;
};

/* The label and the place of rdo in a head, texts to be freed; empty in format 1. */
char *head_label(const struct cow_head *head, unsigned int format);
char *head_rdo_spec(const struct cow_head *head, unsigned int format);

/* All of them there are now, in an array for free_cow_devices(). What can't be read is none. */
int find_cow_devices(struct cowloop_ctx *ctx, struct cow_device **devices, size_t *nr);
void free_cow_devices(struct cow_device *devices, size_t nr);

/*
 * The device of a tag with its value, "UUID=...", say; a path to be freed, or NULL.
 * A cowloop device is none, since it has the filesystem of its read-only device, and
 * so the same UUID and label.
 */
char *find_tagged(const char *spec);

#endif /* COWSETUP_PROBE_H */
