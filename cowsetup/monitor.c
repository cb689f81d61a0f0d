// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup monitor: has dmeventd warn when a device gets full.
 */

#include "cowsetup.h"

int cmd_monitor(struct cowloop_ctx *ctx, int argc, char **argv)
{
	(void)argc;
	return cowloop_monitor(ctx, argv[0], !opt.off);
}
