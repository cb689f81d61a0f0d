/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cowsetup: the options.
 */

#ifndef COWSETUP_OPTIONS_H
#define COWSETUP_OPTIONS_H

#include <popt.h>

#include "../lib/context.h"

#define BIT(n)	(1ULL << (n))

/* The commands, as help lists them. */
enum command_id {
	CMD_HELP,
	CMD_FORMAT,
	CMD_OPEN,
	CMD_ASSEMBLE,
	CMD_CLOSE,
	CMD_LIST,
	CMD_STATUS,
	CMD_SYNC,
	CMD_WATCH,
	CMD_MONITOR,
	CMD_READONLY,
	CMD_DETACH,
	CMD_DUMP,
	CMD_PROBE,
	CMD_GENERATE,
	CMD_MAP,
	CMD_CHECK,
	CMD_REPAIR,
	CMD_PACK,
	CMD_UNPACK,
	CMD_MERGE,
	CMD_UPGRADE,
	NR_COMMANDS,
};

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

/* popt's context for the options that any of the commands in the mask takes. */
poptContext options_context(int argc, char **argv, u64 commands);

/* Questions about cowsetup itself. */
enum question {
	ASKED_NOTHING,
	ASKED_HELP,
	ASKED_USAGE,
	ASKED_VERSION,
};

/* Read the options that were given, into opt; *@given is a mask of them. */
int options_read(struct cowloop_ctx *ctx, poptContext context, u64 *given, enum question *asked);

/* Refuse those that a command does not take. */
int options_refuse(struct cowloop_ctx *ctx, u64 given, enum command_id id, const char *name);

#endif /* COWSETUP_OPTIONS_H */
