// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup merge: writes what is in a cowfile into its read-only device.
 */

#include "cowsetup.h"

int cmd_merge(struct cowloop_ctx *ctx, int argc, char **argv)
{
	(void)argc;
	return cowloop_merge(ctx, argv[0], argv[1]);
}
