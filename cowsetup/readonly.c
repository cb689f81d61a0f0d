// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup readonly: a device takes no more writes.
 */

#include "cowsetup.h"

int cmd_readonly(int argc, char **argv)
{
	(void)argc;
	return cowloop_readonly(argv[0], opt.force);
}
