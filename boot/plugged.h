/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cowsetup: pairs that no line of the table names, in plugged.c.
 */

#ifndef COWSETUP_PLUGGED_H
#define COWSETUP_PLUGGED_H

#include "cowtab.h"
#include "probe.h"

/* Their devices are named so, and no line of the table may be. */
#define PLUGGED_PREFIX	"cow-auto-"

/* Pairs that are opened at most. */
#define PLUGGED_MAX	16

/*
 * The device that a head's text @spec says to be rdo: its path, to be freed. NULL:
 * there is none, and *@why is NULL, or such a one is not opened, which *@why says.
 */
char *plugged_find_rdo(const char *spec, const char **why);

/* Why a device is not opened as the cow of such a pair; NULL: nothing speaks against it. */
const char *plugged_refuse_cow(const char *path);

/* A name for the device, to be freed. */
char *plugged_name(const struct cowtab *tab, const struct cow_device *cow);

/* Refuse one more device than there may be. */
int plugged_check_number(struct cowloop_ctx *ctx, const char *cow);

#endif /* COWSETUP_PLUGGED_H */
