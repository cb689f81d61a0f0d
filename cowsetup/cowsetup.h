/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cowsetup: the commands. Each has a file of its own.
 */

#ifndef COWSETUP_H
#define COWSETUP_H

#include "../lib/context.h"
#include "../lib/size.h"
#include "options.h"

int cmd_format(struct cowloop_ctx *ctx, int argc, char **argv);
int cmd_dump(struct cowloop_ctx *ctx, int argc, char **argv);
int cmd_probe(struct cowloop_ctx *ctx, int argc, char **argv);
int cmd_generate(struct cowloop_ctx *ctx, int argc, char **argv);
int cmd_map(struct cowloop_ctx *ctx, int argc, char **argv);
int cmd_check(struct cowloop_ctx *ctx, int argc, char **argv);
int cmd_repair(struct cowloop_ctx *ctx, int argc, char **argv);
int cmd_pack(struct cowloop_ctx *ctx, int argc, char **argv);
int cmd_unpack(struct cowloop_ctx *ctx, int argc, char **argv);
int cmd_merge(struct cowloop_ctx *ctx, int argc, char **argv);
int cmd_upgrade(struct cowloop_ctx *ctx, int argc, char **argv);

int cmd_open(struct cowloop_ctx *ctx, int argc, char **argv);
int cmd_assemble(struct cowloop_ctx *ctx, int argc, char **argv);
int cmd_close(struct cowloop_ctx *ctx, int argc, char **argv);
int cmd_list(struct cowloop_ctx *ctx, int argc, char **argv);
int cmd_status(struct cowloop_ctx *ctx, int argc, char **argv);
int cmd_sync(struct cowloop_ctx *ctx, int argc, char **argv);
int cmd_watch(struct cowloop_ctx *ctx, int argc, char **argv);
int cmd_monitor(struct cowloop_ctx *ctx, int argc, char **argv);
int cmd_readonly(struct cowloop_ctx *ctx, int argc, char **argv);
int cmd_detach(struct cowloop_ctx *ctx, int argc, char **argv);

#endif /* COWSETUP_H */
