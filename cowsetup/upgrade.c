// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup upgrade: a cowfile of format 2 from one of format 1.
 */

#include "cowsetup.h"

int cmd_upgrade(struct cowloop_ctx *ctx, int argc, char **argv)
{
	if (!opt.rdo)
		return error(ctx, USAGE, "upgrade: give the read-only device of the cowfile with --rdo: what format 1 does not say about it is needed, and the rest of units that were written in part.");
	return cowloop_upgrade(ctx, argv[0], opt.rdo, argc > 1 ? argv[1] : NULL, &opt.open.new);
}
