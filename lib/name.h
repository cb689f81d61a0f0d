/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: the names of devices.
 */

#ifndef LIBCOWLOOP_NAME_H
#define LIBCOWLOOP_NAME_H

#include <stdbool.h>

/* Is it made of what names are made of? */
bool name_is_plain(const char *name);

/*
 * A name that is something else's in the directory of the nodes? One called control
 * would take the place of the node that device-mapper itself is asked by.
 */
bool name_is_special(const char *name);

/* Make '_' of everything else. */
void name_make_plain(char *name);

#endif /* LIBCOWLOOP_NAME_H */
