// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup repair: mends what can be mended, and says what.
 */

#include "cowsetup.h"

int cmd_repair(struct cowloop_ctx *ctx, int argc, char **argv)
{
	const struct cowloop_repair how = { .dry_run = opt.dry_run, .force = opt.force };

	(void)argc;
	return cowloop_repair(ctx, argv[0], &how);
}
