// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup open: makes a writable device of a read-only device and a cowfile.
 */

#include "cowsetup.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../boot/memory.h"
#include "../lib/monitor.h"
#include "output.h"

int cmd_open(struct cowloop_ctx *ctx, int argc, char **argv)
{
	char *device;
	int r;

	/* The device's path is what stdout is for. */
	output_to_stderr();
	opt.open.create = true;
	r = cowloop_open(ctx, argv[0], argv[1], argc > 2 ? argv[2] : NULL, &opt.open, &device);
	if (r)
		return r;
	device = xtext(device);
	printf("%s\n", device);
	if (opt.monitor)
		monitor_opened(ctx, strrchr(device, '/') + 1);
	free(device);
	return OK;
}
