// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup probe: tells udev whether there is a cowfile on a device.
 */

#include "cowsetup.h"

#include "../boot/boot.h"

int cmd_probe(struct cowloop_ctx *ctx, int argc, char **argv)
{
	(void)argc;
	return boot_probe(ctx, argv[0], opt.part);
}
