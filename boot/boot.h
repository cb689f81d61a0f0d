/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cowsetup: what udev and the boot ask for.
 */

#ifndef COWSETUP_BOOT_H
#define COWSETUP_BOOT_H

#include "../lib/context.h"

/*
 * Open the pairs of the table @cowtab that are complete: all, the one of a name, or
 * those that a device is a part of: @what is NULL, a name, or a path.
 */
int boot_assemble(struct cowloop_ctx *ctx, const char *what, const char *cowtab, bool dry_run);

/* Make systemd's units of the table @cowtab in @dir. */
int boot_generate(struct cowloop_ctx *ctx, const char *dir, const char *cowtab);

/* Print udev's properties of a device that holds a cowfile; with @part, of one that is a part of a cowloop device. */
int boot_probe(struct cowloop_ctx *ctx, const char *device, bool part);

#endif /* COWSETUP_BOOT_H */
