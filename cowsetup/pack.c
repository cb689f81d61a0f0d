// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup pack and unpack: cowfiles without their holes, for transport.
 */

#include "cowsetup.h"

#include <string.h>

#include "output.h"

int cmd_pack(struct cowloop_ctx *ctx, int argc, char **argv)
{
	const struct cowloop_pack how = { .compress = opt.compress, .force = opt.force };

	(void)argc;
	if (!strcmp(argv[1], "-"))
		output_to_stderr();
	return cowloop_pack(ctx, argv[0], argv[1], &how);
}

int cmd_unpack(struct cowloop_ctx *ctx, int argc, char **argv)
{
	const struct cowloop_unpack how = { .max_size = opt.max_size, .force = opt.force };

	(void)argc;
	return cowloop_unpack(ctx, argv[0], argv[1], &how);
}
