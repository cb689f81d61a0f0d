// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup status: everything about an active device.
 */

#include "cowsetup.h"

#include "../lib/lost.h"
#include "../lib/monitor.h"
#include "device.h"
#include "report.h"

int cmd_status(struct cowloop_ctx *ctx, int argc, char **argv)
{
	struct dm_device d;
	int r = dm_check_kernel(ctx);

	(void)argc;
	if (!r)
		r = dm_find(ctx, argv[0], &d);
	if (r)
		return r;
	report_device(&d);
	if (!opt.json)
		warn_lost(ctx, &d);
	report_bool("monitored", "Monitored", monitor_is_on(&d));
	report_end();

	return OK;
}
