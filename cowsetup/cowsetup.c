// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup: makes, opens and looks after cowfiles. This file is the command
 * line.
 *
 * A new command is a line in commands[], an entry of enum command_id, a prototype
 * in cowsetup.h, and a file. Options are in options.c.
 */

#include "cowsetup.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <popt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../boot/memory.h"
#include "../dm-cowloop.h"
#include "../lib/dm.h"
#include "output.h"

/* ---- Commands ---- */

struct command {
	const char *name;
	const char *args;
	int min_args;
	int max_args;
	const char *help;
	int (*run)(struct cowloop_ctx *ctx, int argc, char **argv);
};

static int cmd_help(struct cowloop_ctx *ctx, int argc, char **argv);

static const struct command commands[NR_COMMANDS] = {
	[CMD_HELP] = { "help", "[<action>]", 0, 1, "show help, of all or of one action", cmd_help },
	[CMD_FORMAT] = { "format", "<rdo> <cow>", 2, 2, "make a new cowfile", cmd_format },
	[CMD_OPEN] = { "open", "<rdo> <cow> [<name>]", 2, 3, "make a writable device of both; makes the cowfile, too", cmd_open },
	[CMD_ASSEMBLE] = { "assemble", "[<device> or <name>]", 0, 1, "open what /etc/cowtab says: all of it, or what a device is a part of", cmd_assemble },
	[CMD_CLOSE] = { "close", "<name>...", 0, INT_MAX, "remove the devices", cmd_close },
	[CMD_LIST] = { "list", "", 0, 0, "list the active devices", cmd_list },
	[CMD_STATUS] = { "status", "<name>", 1, 1, "show everything about an active device", cmd_status },
	[CMD_SYNC] = { "sync", "[<name>...]", 0, INT_MAX, "write everything to stable storage", cmd_sync },
	[CMD_WATCH] = { "watch", "<name>", 1, 1, "wait until space for changes is short", cmd_watch },
	[CMD_MONITOR] = { "monitor", "<name>", 1, 1, "have dmeventd warn when space for changes is short", cmd_monitor },
	[CMD_READONLY] = { "readonly", "<name>", 1, 1, "take no more writes, so that what holds the cowfile can be remounted read-only", cmd_readonly },
	[CMD_DETACH] = { "detach", "<name>", 1, 1, "let go of the cowfile, so that what holds it can be unmounted", cmd_detach },
	[CMD_DUMP] = { "dump", "<cow>", 1, 1, "show the head of a cowfile", cmd_dump },
	[CMD_PROBE] = { "probe", "<device>", 1, 1, "say for udev whether there is a cowfile on a device, or what the device is a part of", cmd_probe },
	[CMD_GENERATE] = { "generate", "<directory>", 1, 3, "make systemd's units of /etc/cowtab, for its generator", cmd_generate },
	[CMD_MAP] = { "map", "<cow>", 1, 1, "show which parts have been modified", cmd_map },
	[CMD_CHECK] = { "check", "<cow>", 1, 1, "look for faults in a cowfile", cmd_check },
	[CMD_REPAIR] = { "repair", "<cow>", 1, 1, "mend a cowfile", cmd_repair },
	[CMD_PACK] = { "pack", "<cow> <file>", 2, 2, "pack a cowfile for transport (- is stdout)", cmd_pack },
	[CMD_UNPACK] = { "unpack", "<file> <cow>", 2, 2, "make a cowfile of a packed one (- is stdin)", cmd_unpack },
	[CMD_MERGE] = { "merge", "<rdo> <cow>", 2, 2, "write the modified parts into the read-only device", cmd_merge },
	[CMD_UPGRADE] = { "upgrade", "<cow> [<new cow>]", 1, 2, "make format 2 of format 1 (needs --rdo)", cmd_upgrade },
};

/* NR_COMMANDS: there is none of this name. */
static enum command_id find_command(const char *name)
{
	enum command_id id = 0;

	while (id < NR_COMMANDS && strcmp(name, commands[id].name))
		id++;
	return id;
}

/* ---- The command line ---- */

static void print_version(void)
{
	printf("cowsetup %s\n", COWSETUP_VERSION);
}

/* And of the driver, which may be another one than it came with. */
static void print_versions(struct cowloop_ctx *ctx)
{
	char *target = dm_loaded_version(ctx);

	print_version();
	if (target)
		printf("target %s: %s\n", DM_TARGET, target);
	free(target);
}

static void print_help(poptContext context)
{
	print_version();
	poptPrintHelp(context, stdout, 0);
	printf("\n<action> is one of:\n");
	for (unsigned int i = 0; i < NR_COMMANDS; i++)
		printf("\t%s %s - %s\n", commands[i].name, commands[i].args, commands[i].help);
	printf("\n<rdo> is the read-only device or image, <cow> the cowfile or the device that holds it\n"
	       "<name> is the device under /dev/mapper\n"
	       "\ncowsetup help <action> shows the options of one action. See cowsetup(8).\n"
	       "\nExit status: %d success, %d wrong usage, %d no permission, %d out of memory,\n"
	       "%d wrong device or cowfile, %d exists already or is in use.\n",
	       OK, USAGE, DENIED, NO_MEMORY, WRONG, BUSY);
}

static void print_command_help(enum command_id id)
{
	const struct command *command = &commands[id];
	char *usage, *name[] = { "cowsetup", NULL };
	poptContext context = options_context(1, name, BIT(id));

	usage = xasprintf("[OPTION...] %s %s", command->name, command->args);
	poptSetOtherOptionHelp(context, usage);
	poptPrintHelp(context, stdout, 0);
	printf("\n%s - %s. See cowsetup(8).\n", command->name, command->help);
	poptFreeContext(context);
	free(usage);
}

static poptContext main_context(int argc, char **argv)
{
	poptContext context = options_context(argc, argv, ~0ULL);

	poptSetOtherOptionHelp(context, "[OPTION...] <action> <action-specific>");
	return context;
}

/* Help of the action that @argv names, or of all. */
static int cmd_help(struct cowloop_ctx *ctx, int argc, char **argv)
{
	const enum command_id id = argc ? find_command(argv[0]) : NR_COMMANDS;
	char *name[] = { "cowsetup", NULL };
	poptContext context;

	if (argc && id == NR_COMMANDS)
		return error(ctx, USAGE, "%s: unknown action; see cowsetup --help.", argv[0]);
	if (argc) {
		print_command_help(id);
	} else {
		context = main_context(1, name);
		print_help(context);
		poptFreeContext(context);
	}
	return OK;
}

static int answer(struct cowloop_ctx *ctx, poptContext context, enum question asked, int argc, char **argv)
{
	if (asked == ASKED_HELP)
		return cmd_help(ctx, argc ? 1 : 0, argv);
	if (asked == ASKED_USAGE)
		poptPrintUsage(context, stdout, 0);
	else
		print_versions(ctx);
	return OK;
}

static int run_command(struct cowloop_ctx *ctx, int argc, char **argv, u64 given)
{
	const struct command *command;
	enum command_id id;
	int r;

	if (!argc)
		return error(ctx, USAGE, "An action is missing; see cowsetup --help.");
	id = find_command(argv[0]);
	if (id == NR_COMMANDS)
		return error(ctx, USAGE, "%s: unknown action; see cowsetup --help.", argv[0]);
	command = &commands[id];
	argc--;
	argv++;
	if (argc > command->max_args && !*command->args)
		return error(ctx, USAGE, "%s: takes no arguments.", command->name);
	if (argc < command->min_args || argc > command->max_args)
		return error(ctx, USAGE, "%s: requires %s as arguments.", command->name, command->args);

	r = options_refuse(ctx, given, id, command->name);
	if (r)
		return r;
	opt.open.new.force = opt.force;
	return command->run(ctx, argc, argv);
}

/* Has the reader gone, as head does when it has seen enough? */
static bool output_is_unwanted(void)
{
	struct pollfd out = { .fd = STDOUT_FILENO, .events = POLLOUT };

	return poll(&out, 1, 0) > 0 && out.revents & (POLLERR | POLLHUP);
}

static int finish_output(struct cowloop_ctx *ctx, int r)
{
	if ((!fflush(stdout) && !ferror(stdout)) || r)
		return r;
	if (!output_is_unwanted())
		return error_errno(ctx, "Cannot write the output");
	/* End as any program does that writes to nobody: without a word. */
	signal(SIGPIPE, SIG_DFL);
	raise(SIGPIPE);
	return WRONG;
}

int main(int argc, char **argv)
{
	struct cowloop_ctx *ctx = output_context();
	poptContext context;
	u64 given = 0;
	enum question asked = ASKED_NOTHING;
	int r, nr = 0;
	const char **rest;

	catch_signals();

	context = main_context(argc, argv);
	r = options_read(ctx, context, &given, &asked);
	if (!r) {
		rest = poptGetArgs(context);
		while (rest && rest[nr])
			nr++;
		r = asked ? answer(ctx, context, asked, nr, (char **)rest) : run_command(ctx, nr, (char **)rest, given);
	}
	poptFreeContext(context);

	r = finish_output(ctx, r);
	cowloop_ctx_free(ctx);
	return r;
}
