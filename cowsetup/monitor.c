// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup monitor: has dmeventd warn when a device gets full.
 */

#include "cowsetup.h"

int cmd_monitor(int argc, char **argv)
{
	(void)argc;
	return cowloop_monitor(argv[0], !opt.off);
}
