// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup generate: makes systemd's units of /etc/cowtab.
 */

#include "cowsetup.h"

#include <stdio.h>

#include "../boot/boot.h"
#include "../boot/cowtab.h"

int cmd_generate(struct cowloop_ctx *ctx, int argc, char **argv)
{
	(void)argc;
	/* A line is a record in the kernel's log, if that is where it goes. */
	setvbuf(stderr, NULL, _IOLBF, BUFSIZ);
	return boot_generate(ctx, argv[0], opt.cowtab ? opt.cowtab : COWTAB);
}
