// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup assemble: opens the pairs that are complete.
 */

#include "cowsetup.h"

#include "../boot/boot.h"
#include "../boot/cowtab.h"
#include "output.h"

int cmd_assemble(struct cowloop_ctx *ctx, int argc, char **argv)
{
	if (opt.all == !!argc)
		return error(ctx, USAGE, "assemble: requires --all, a device, or a name that %s has.", COWTAB);
	/* A dry run tells what would not be opened, too, and why. */
	opt.verbose |= opt.dry_run;
	/* The devices' paths are what stdout is for. */
	if (!opt.dry_run)
		output_to_stderr();
	return boot_assemble(ctx, argc ? argv[0] : NULL, opt.cowtab ? opt.cowtab : COWTAB, opt.dry_run);
}
