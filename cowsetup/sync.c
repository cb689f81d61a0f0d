// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup sync: has devices write everything to stable storage.
 */

#include "cowsetup.h"

#include <stdlib.h>

#include "../lib/close.h"

static int sync_all(struct cowloop_ctx *ctx)
{
	struct dm_device *devices;
	size_t nr;
	int r = dm_list(ctx, &devices, &nr), failed;

	for (size_t i = 0; i < nr; i++) {
		failed = sync_device(ctx, &devices[i]);
		r = r ? r : failed;
	}
	free(devices);
	return r;
}

int cmd_sync(struct cowloop_ctx *ctx, int argc, char **argv)
{
	int r = dm_check_kernel(ctx), failed;

	if (r || !argc)
		return r ? r : sync_all(ctx);
	for (int i = 0; i < argc; i++) {
		failed = cowloop_sync(ctx, argv[i]);
		r = r ? r : failed;
	}
	return r;
}
