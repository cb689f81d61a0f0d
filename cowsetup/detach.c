// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup detach: a device lets go of its cowfile.
 */

#include "cowsetup.h"

int cmd_detach(struct cowloop_ctx *ctx, int argc, char **argv)
{
	(void)argc;
	return cowloop_detach(ctx, argv[0], opt.force);
}
