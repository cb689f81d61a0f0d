// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup format: a new, empty cowfile.
 */

#include "cowsetup.h"

int cmd_format(struct cowloop_ctx *ctx, int argc, char **argv)
{
	(void)argc;
	return cowloop_format(ctx, argv[0], argv[1], &opt.open.new);
}
