/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cowsetup: what all of its parts share: the options, and the commands.
 */

#ifndef COWSETUP_H
#define COWSETUP_H

#include "../lib/context.h"
#include "../lib/size.h"

/* ---- Options ---- */

/* The options of the command line. Set once by main(). */
struct options {
	bool batch_mode;
	bool verbose;
	bool json;
	bool progress_json;
	unsigned int progress_frequency;	/* seconds; 0: a bar, on a terminal */

	bool force;
	bool dry_run;
	const char *rdo;
	enum cowloop_compress compress;

	struct cowloop_open open;	/* and of new cowfiles, in any command */
	bool deferred;
	u64 max_size;			/* bytes that unpack writes; 0: any */
	u64 threshold;			/* bytes */
	bool have_threshold;
	const char *exec;
	bool monitor;
	bool off;
	bool all;
	bool gone;
	bool part;
	const char *cowtab;
};

extern struct options opt;

/* ---- Commands ---- */

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
