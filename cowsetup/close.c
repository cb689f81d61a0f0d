// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup close: removes devices.
 */

#include "cowsetup.h"

#include "../lib/dm.h"

/* Each is tried, whatever becomes of the others. */
int cmd_close(int argc, char **argv)
{
	const struct cowloop_close how = { .deferred = opt.deferred, .force = opt.force };
	int r, one;

	if (opt.gone == !!argc)
		return error(USAGE, "close: requires <name>... or --gone.");
	if (opt.gone)
		return cowloop_close_gone(opt.force);
	r = dm_check_kernel();
	if (r)
		return r;
	for (int i = 0; i < argc && !interrupted; i++) {
		one = cowloop_close(argv[i], &how);
		r = r ? r : one;
	}
	return r;
}
