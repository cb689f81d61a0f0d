/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cowsetup: opening a pair of a read-only device and a cowfile, in open.c.
 */

#ifndef COWSETUP_OPEN_H
#define COWSETUP_OPEN_H

#include "../cowsetup/cowsetup.h"

/*
 * Open a pair as @opt says, and print the path of the device; NULL: a name
 * that follows from @cow. With @make a missing or blank cowfile is made first;
 * without, that is an error.
 */
int open_pair(const char *rdo, const char *cow, const char *name, bool make);

/* The active device that has this cowfile: its name, to be freed; NULL: none. */
int find_active(const char *cow, char **name);

/* Is it made of what names are made of? */
bool name_is_plain(const char *name);

/* Make '_' of everything else. */
void name_make_plain(char *name);

#endif /* COWSETUP_OPEN_H */
