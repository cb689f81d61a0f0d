// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup close: removes devices.
 */

#include "cowsetup.h"

#include "../lib/dm.h"

/* Each is tried, whatever becomes of the others. */
int cmd_close(struct cowloop_ctx *ctx, int argc, char **argv)
{
	const struct cowloop_close how = { .deferred = opt.deferred, .force = opt.force };
	int r, one;

	if (opt.gone == !!argc)
		return error(ctx, USAGE, "close: requires <name>... or --gone.");
	if (opt.gone)
		return cowloop_close_gone(ctx, opt.force);
	r = dm_check_kernel(ctx);
	if (r)
		return r;
	for (int i = 0; i < argc && !is_cancelled(ctx); i++) {
		one = cowloop_close(ctx, argv[i], &how);
		r = r ? r : one;
	}
	return r;
}
