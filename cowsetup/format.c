// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup format: a new, empty cowfile.
 */

#include "cowsetup.h"

#include "../lib/newcow.h"

int cmd_format(struct cowloop_ctx *ctx, int argc, char **argv)
{
	(void)argc;
	return cow_make(ctx, argv[0], argv[1], &opt.open.new, "--force", NULL);
}
