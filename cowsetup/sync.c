// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup sync: has devices write everything to stable storage.
 */

#include "cowsetup.h"

#include <stdlib.h>

#include "../lib/close.h"

static int sync_all(void)
{
	struct dm_device *devices;
	size_t nr;
	int r = dm_list(&devices, &nr), failed;

	for (size_t i = 0; i < nr; i++) {
		failed = sync_device(&devices[i]);
		r = r ? r : failed;
	}
	free(devices);
	return r;
}

int cmd_sync(int argc, char **argv)
{
	int r = dm_check_kernel(), failed;

	if (r || !argc)
		return r ? r : sync_all();
	for (int i = 0; i < argc; i++) {
		failed = cowloop_sync(argv[i]);
		r = r ? r : failed;
	}
	return r;
}

