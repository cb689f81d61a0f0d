// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup readonly: a device takes no more writes.
 */

#include "cowsetup.h"

int cmd_readonly(struct cowloop_ctx *ctx, int argc, char **argv)
{
	(void)argc;
	return cowloop_readonly(ctx, argv[0], opt.force);
}
