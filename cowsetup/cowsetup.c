// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup: makes, opens and looks after cowfiles. This file is the command
 * line: a table of options, a table of commands, and who may have which.
 *
 * A new command is a line in commands[] and a prototype in cowsetup.h. A new
 * option is a line in option_table[], a constant, a member of struct options
 * and a line in targets[].
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

/* ---- Options ---- */

/* Options that not every command takes have a bit, for commands[]. */
enum {
	OPT_FORCE = 1,
	OPT_DRY_RUN,
	OPT_FORMAT,
	OPT_MAPUNIT,
	OPT_LABEL,
	OPT_RDO_SPEC,
	OPT_RDO,
	OPT_COMPRESS,
	OPT_JSON,
	OPT_READ_ONLY,
	OPT_REPAIR,
	OPT_LIMIT,
	OPT_LOW_WATER,
	OPT_RESERVE,
	OPT_QUEUE,
	OPT_NO_PASSDOWN,
	OPT_MAX_SIZE,
	OPT_DEFERRED,
	OPT_THRESHOLD,
	OPT_EXEC,
	OPT_MONITOR,
	OPT_OFF,
	OPT_ALL,
	OPT_COWTAB,
	OPT_GONE,
	OPT_PART,
	/* These go with any command. */
	OPT_COMMON,
	OPT_BATCH_MODE = OPT_COMMON,
	OPT_VERBOSE,
	OPT_PROGRESS_FREQUENCY,
	OPT_PROGRESS_JSON,
	OPT_HELP,
	OPT_USAGE,
	OPT_VERSION,
};

#define BIT(n)	(1ULL << (n))

static const struct poptOption help_table[] = {
	{ "help", '?', POPT_ARG_NONE, NULL, OPT_HELP, "Show this help message, or that of the action", NULL },
	{ NULL, 'h', POPT_ARG_NONE | POPT_ARGFLAG_DOC_HIDDEN, NULL, OPT_HELP, NULL, NULL },
	{ "usage", '\0', POPT_ARG_NONE, NULL, OPT_USAGE, "Display brief usage", NULL },
	{ "version", 'V', POPT_ARG_NONE, NULL, OPT_VERSION, "Print package version", NULL },
	POPT_TABLEEND
};

static const struct poptOption option_table[] = {
	{ NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)help_table, 0, "Help options:", NULL },
	{ "all", 'a', POPT_ARG_NONE, NULL, OPT_ALL,
	  "All that there is", NULL },
	{ "batch-mode", 'q', POPT_ARG_NONE, NULL, OPT_BATCH_MODE,
	  "Do not ask for confirmation", NULL },
	{ "compress", '\0', POPT_ARG_STRING, NULL, OPT_COMPRESS,
	  "How to compress a packed file: none, gzip, zstd, or as cowpack -z did", "TYPE" },
	{ "cowtab", '\0', POPT_ARG_STRING, NULL, OPT_COWTAB,
	  "The table of pairs, instead of /etc/cowtab", "FILE" },
	{ "deferred", '\0', POPT_ARG_NONE, NULL, OPT_DEFERRED,
	  "Close the device when the last user has gone", NULL },
	{ "dry-run", 'n', POPT_ARG_NONE, NULL, OPT_DRY_RUN,
	  "Only say what would be done", NULL },
	{ "exec", '\0', POPT_ARG_STRING, NULL, OPT_EXEC,
	  "Run a command when space is short, and go on watching", "COMMAND" },
	{ "force", 'f', POPT_ARG_NONE, NULL, OPT_FORCE,
	  "Overwrite what is there; use what others own or may write; repair what can only be guessed; close what cannot be synced", NULL },
	{ "format", '\0', POPT_ARG_STRING, NULL, OPT_FORMAT,
	  "Format of the cowfile: 1 (the original's) or 2 (the default)", "NUMBER" },
	{ "gone", '\0', POPT_ARG_NONE, NULL, OPT_GONE,
	  "All devices of which a part is not there any more", NULL },
	{ "json", '\0', POPT_ARG_NONE, NULL, OPT_JSON,
	  "Print JSON, for scripts", NULL },
	{ "label", '\0', POPT_ARG_STRING, NULL, OPT_LABEL,
	  "Name of the new cowfile", "LABEL" },
	{ "limit", '\0', POPT_ARG_STRING, NULL, OPT_LIMIT,
	  "At most so much may be written into the cowfile", "SIZE" },
	{ "low-water", '\0', POPT_ARG_STRING, NULL, OPT_LOW_WATER,
	  "Raise an event when so little of the limit is left", "SIZE" },
	{ "mapunit", '\0', POPT_ARG_STRING, NULL, OPT_MAPUNIT,
	  "Unit of change, a power of two from 4K to 1M", "SIZE" },
	{ "max-size", '\0', POPT_ARG_STRING, NULL, OPT_MAX_SIZE,
	  "Unpack no more than so much", "SIZE" },
	{ "monitor", '\0', POPT_ARG_NONE, NULL, OPT_MONITOR,
	  "Have dmeventd warn when it gets full", NULL },
	{ "no-discard-passdown", '\0', POPT_ARG_NONE, NULL, OPT_NO_PASSDOWN,
	  "Keep the space of what is discarded in the cowfile", NULL },
	{ "off", '\0', POPT_ARG_NONE, NULL, OPT_OFF,
	  "Monitor it no longer", NULL },
	{ "part", '\0', POPT_ARG_NONE, NULL, OPT_PART,
	  "Say whether a device is a part of a cowloop device", NULL },
	{ "progress-frequency", '\0', POPT_ARG_STRING, NULL, OPT_PROGRESS_FREQUENCY,
	  "Print a line of progress every so many seconds", "SECS" },
	{ "progress-json", '\0', POPT_ARG_NONE, NULL, OPT_PROGRESS_JSON,
	  "Print progress as JSON, one object a line", NULL },
	{ "queue-if-no-space", '\0', POPT_ARG_NONE, NULL, OPT_QUEUE,
	  "Let writes that find no space wait for it, rather than fail", NULL },
	{ "rdo", '\0', POPT_ARG_STRING, NULL, OPT_RDO,
	  "The read-only device of the cowfile", "RDO" },
	{ "rdo-spec", '\0', POPT_ARG_STRING, NULL, OPT_RDO_SPEC,
	  "Where to find the read-only device: UUID=, LABEL=, PARTUUID=, PARTLABEL= or a path", "SPEC" },
	{ "read-only", 'r', POPT_ARG_NONE, NULL, OPT_READ_ONLY,
	  "Open for reading only; nothing is written to the cowfile", NULL },
	{ "repair", '\0', POPT_ARG_NONE, NULL, OPT_REPAIR,
	  "Open a cowfile of format 1 that was in use in a crash, and repair it", NULL },
	{ "reserve", '\0', POPT_ARG_STRING, NULL, OPT_RESERVE,
	  "So much of the limit is for filesystems' own blocks", "SIZE" },
	{ "threshold", '\0', POPT_ARG_STRING, NULL, OPT_THRESHOLD,
	  "How much free space is short", "SIZE" },
	{ "verbose", 'v', POPT_ARG_NONE, NULL, OPT_VERBOSE,
	  "Say more about what is done", NULL },
	POPT_TABLEEND
};

#define NR_OPTIONS	(sizeof(option_table) / sizeof(option_table[0]))

static int parse_format(struct cowloop_ctx *ctx, const char *text)
{
	if (strcmp(text, "1") && strcmp(text, "2"))
		return error(ctx, USAGE, "--format %s: it must be 1 or 2.", text);
	opt.open.new.format = text[0] - '0';
	return OK;
}

static int parse_mapunit(struct cowloop_ctx *ctx, const char *text)
{
	u64 size;

	if (!parse_size(text, &size) ||
	    (size != COW_V1_MAPUNIT && !cow_v2_mapunit_valid(size)))
		return error(ctx, USAGE, "--mapunit %s: it must be a power of two from 4K to 1M (format 1: 1K).",
			     text);
	opt.open.new.mapunit = size;
	return OK;
}

static int parse_compress(struct cowloop_ctx *ctx, const char *text)
{
	static const char *const types[] = { "none", "gzip", "zstd", "cowpack" };

	for (unsigned int i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
		if (!strcmp(text, types[i])) {
			opt.compress = i;
			return OK;
		}
	}
	return error(ctx, USAGE, "--compress %s: it must be none, gzip, zstd or cowpack.", text);
}

static int parse_frequency(struct cowloop_ctx *ctx, const char *text)
{
	char *end;
	unsigned long secs;

	errno = 0;
	secs = strtoul(text, &end, 10);
	if (errno || *end || text[0] < '0' || text[0] > '9' || secs > 86400)
		return error(ctx, USAGE, "--progress-frequency %s: it must be a number of seconds.", text);
	opt.progress_frequency = secs;
	return OK;
}

/* Where an option goes: each member that is set is for it. */
static const struct target {
	bool *flag;		/* true: it was given */
	const char **text;	/* its value as it is */
	u64 *bytes;		/* its value as a size */
	int (*parse)(struct cowloop_ctx *ctx, const char *value);
} targets[OPT_HELP] = {
	[OPT_FORCE] = { .flag = &opt.force },
	[OPT_DRY_RUN] = { .flag = &opt.dry_run },
	[OPT_FORMAT] = { .parse = parse_format },
	[OPT_MAPUNIT] = { .parse = parse_mapunit },
	[OPT_LABEL] = { .text = &opt.open.new.label },
	[OPT_RDO_SPEC] = { .text = &opt.open.new.rdo_spec },
	[OPT_RDO] = { .text = &opt.rdo },
	[OPT_COMPRESS] = { .parse = parse_compress },
	[OPT_JSON] = { .flag = &opt.json },
	[OPT_READ_ONLY] = { .flag = &opt.open.read_only },
	[OPT_REPAIR] = { .flag = &opt.open.repair },
	[OPT_LIMIT] = { .bytes = &opt.open.limit },
	[OPT_LOW_WATER] = { .bytes = &opt.open.low_water },
	[OPT_RESERVE] = { .bytes = &opt.open.reserve },
	[OPT_QUEUE] = { .flag = &opt.open.queue },
	[OPT_NO_PASSDOWN] = { .flag = &opt.open.no_passdown },
	[OPT_MAX_SIZE] = { .bytes = &opt.max_size },
	[OPT_DEFERRED] = { .flag = &opt.deferred },
	[OPT_THRESHOLD] = { .flag = &opt.have_threshold, .bytes = &opt.threshold },
	[OPT_EXEC] = { .text = &opt.exec },
	[OPT_MONITOR] = { .flag = &opt.monitor },
	[OPT_OFF] = { .flag = &opt.off },
	[OPT_ALL] = { .flag = &opt.all },
	[OPT_COWTAB] = { .text = &opt.cowtab },
	[OPT_GONE] = { .flag = &opt.gone },
	[OPT_PART] = { .flag = &opt.part },
	[OPT_BATCH_MODE] = { .flag = &opt.batch_mode },
	[OPT_VERBOSE] = { .flag = &opt.verbose },
	[OPT_PROGRESS_FREQUENCY] = { .parse = parse_frequency },
	[OPT_PROGRESS_JSON] = { .flag = &opt.progress_json },
};

static const char *option_name(int which)
{
	for (const struct poptOption *o = option_table; o->longName || o->arg; o++)
		if (o->val == which && o->longName)
			return o->longName;
	return "?";
}

static int parse_option(struct cowloop_ctx *ctx, int which, const char *value)
{
	const struct target *t = &targets[which];

	if (t->flag)
		*t->flag = true;
	if (t->text)
		*t->text = xasprintf("%s", value);
	if (t->bytes && !parse_size(value, t->bytes))
		return error(ctx, USAGE, "--%s %s: it must be a size, as 4096, 64K or 1.5G.", option_name(which), value);
	return t->parse ? t->parse(ctx, value) : OK;
}

/* ---- Commands ---- */

struct command {
	const char *name;
	const char *args;
	int min_args;
	int max_args;
	const char *help;
	u64 options;		/* those it takes, besides the common ones */
	int (*run)(struct cowloop_ctx *ctx, int argc, char **argv);
};

static int cmd_help(struct cowloop_ctx *ctx, int argc, char **argv);

static const struct command commands[] = {
	{ "help", "[<action>]", 0, 1, "show help, of all or of one action", 0, cmd_help },
	{ "format", "<rdo> <cow>", 2, 2, "make a new cowfile",
	  BIT(OPT_FORMAT) | BIT(OPT_MAPUNIT) | BIT(OPT_LABEL) | BIT(OPT_RDO_SPEC) | BIT(OPT_FORCE),
	  cmd_format },
	{ "open", "<rdo> <cow> [<name>]", 2, 3, "make a writable device of both; makes the cowfile, too",
	  BIT(OPT_READ_ONLY) | BIT(OPT_REPAIR) | BIT(OPT_LIMIT) | BIT(OPT_LOW_WATER) | BIT(OPT_MONITOR) |
	  BIT(OPT_RESERVE) | BIT(OPT_QUEUE) | BIT(OPT_NO_PASSDOWN) |
	  BIT(OPT_FORMAT) | BIT(OPT_MAPUNIT) | BIT(OPT_LABEL) | BIT(OPT_RDO_SPEC) | BIT(OPT_FORCE),
	  cmd_open },
	{ "assemble", "[<device> or <name>]", 0, 1, "open what /etc/cowtab says: all of it, or what a device is a part of",
	  BIT(OPT_ALL) | BIT(OPT_DRY_RUN) | BIT(OPT_COWTAB), cmd_assemble },
	{ "close", "<name>...", 0, INT_MAX, "remove the devices",
	  BIT(OPT_DEFERRED) | BIT(OPT_FORCE) | BIT(OPT_GONE), cmd_close },
	{ "list", "", 0, 0, "list the active devices",
	  BIT(OPT_JSON), cmd_list },
	{ "status", "<name>", 1, 1, "show everything about an active device",
	  BIT(OPT_JSON), cmd_status },
	{ "sync", "[<name>...]", 0, INT_MAX, "write everything to stable storage",
	  0, cmd_sync },
	{ "watch", "<name>", 1, 1, "wait until space for changes is short",
	  BIT(OPT_THRESHOLD) | BIT(OPT_EXEC) | BIT(OPT_JSON), cmd_watch },
	{ "monitor", "<name>", 1, 1, "have dmeventd warn when space for changes is short",
	  BIT(OPT_OFF), cmd_monitor },
	{ "readonly", "<name>", 1, 1, "take no more writes, so that what holds the cowfile can be remounted read-only",
	  BIT(OPT_FORCE), cmd_readonly },
	{ "detach", "<name>", 1, 1, "let go of the cowfile, so that what holds it can be unmounted",
	  BIT(OPT_FORCE), cmd_detach },
	{ "dump", "<cow>", 1, 1, "show the head of a cowfile",
	  BIT(OPT_JSON), cmd_dump },
	{ "probe", "<device>", 1, 1, "say for udev whether there is a cowfile on a device, or what the device is a part of",
	  BIT(OPT_PART), cmd_probe },
	{ "generate", "<directory>", 1, 3, "make systemd's units of /etc/cowtab, for its generator",
	  BIT(OPT_COWTAB), cmd_generate },
	{ "map", "<cow>", 1, 1, "show which parts have been modified",
	  BIT(OPT_JSON), cmd_map },
	{ "check", "<cow>", 1, 1, "look for faults in a cowfile",
	  BIT(OPT_RDO) | BIT(OPT_JSON), cmd_check },
	{ "repair", "<cow>", 1, 1, "mend a cowfile",
	  BIT(OPT_DRY_RUN) | BIT(OPT_FORCE), cmd_repair },
	{ "pack", "<cow> <file>", 2, 2, "pack a cowfile for transport (- is stdout)",
	  BIT(OPT_COMPRESS) | BIT(OPT_FORCE), cmd_pack },
	{ "unpack", "<file> <cow>", 2, 2, "make a cowfile of a packed one (- is stdin)",
	  BIT(OPT_FORCE) | BIT(OPT_MAX_SIZE), cmd_unpack },
	{ "merge", "<rdo> <cow>", 2, 2, "write the modified parts into the read-only device",
	  0, cmd_merge },
	{ "upgrade", "<cow> [<new cow>]", 1, 2, "make format 2 of format 1 (needs --rdo)",
	  BIT(OPT_RDO) | BIT(OPT_MAPUNIT) | BIT(OPT_LABEL) | BIT(OPT_RDO_SPEC) | BIT(OPT_FORCE),
	  cmd_upgrade },
};

#define NR_COMMANDS	(sizeof(commands) / sizeof(commands[0]))

static const struct command *find_command(const char *name)
{
	for (unsigned int i = 0; i < NR_COMMANDS; i++)
		if (!strcmp(name, commands[i].name))
			return &commands[i];
	return NULL;
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

static poptContext new_context(int argc, char **argv, const struct poptOption *table)
{
	poptContext context = poptGetContext("cowsetup", argc, (const char **)argv, table, 0);

	if (!context)
		out_of_memory();
	return context;
}

/* The options that the command takes, and those that go with any. */
static void print_command_help(const struct command *command)
{
	struct poptOption table[NR_OPTIONS];
	unsigned int nr = 0;
	poptContext context;
	char *usage, *name[] = { "cowsetup", NULL };

	for (const struct poptOption *o = option_table; o->longName || o->arg; o++)
		if (o->arg || o->val >= OPT_COMMON || command->options & BIT(o->val))
			table[nr++] = *o;
	table[nr] = (struct poptOption)POPT_TABLEEND;
	usage = xasprintf("[OPTION...] %s %s", command->name, command->args);
	context = new_context(1, name, table);
	poptSetOtherOptionHelp(context, usage);
	poptPrintHelp(context, stdout, 0);
	printf("\n%s - %s. See cowsetup(8).\n", command->name, command->help);
	poptFreeContext(context);
	free(usage);
}

static poptContext main_context(int argc, char **argv)
{
	poptContext context = new_context(argc, argv, option_table);

	poptSetOtherOptionHelp(context, "[OPTION...] <action> <action-specific>");
	return context;
}

/* Help of the action that @argv names, or of all. */
static int cmd_help(struct cowloop_ctx *ctx, int argc, char **argv)
{
	const struct command *command = argc ? find_command(argv[0]) : NULL;
	char *name[] = { "cowsetup", NULL };
	poptContext context;

	if (argc && !command)
		return error(ctx, USAGE, "%s: unknown action; see cowsetup --help.", argv[0]);
	if (command) {
		print_command_help(command);
	} else {
		context = main_context(1, name);
		print_help(context);
		poptFreeContext(context);
	}
	return OK;
}

/* Set *@given to the options that were given, and *@asked to the one that asks about cowsetup itself, or 0. */
static int parse_options(struct cowloop_ctx *ctx, poptContext context, u64 *given, int *asked)
{
	int which, r;
	char *value;

	while ((which = poptGetNextOpt(context)) > 0) {
		if (which == OPT_HELP || which == OPT_USAGE || which == OPT_VERSION) {
			*asked = which;
			continue;
		}
		value = poptGetOptArg(context);
		r = parse_option(ctx, which, value);
		free(value);
		if (r)
			return r;
		*given |= BIT(which);
	}
	if (which < -1)
		return error(ctx, USAGE, "%s: %s; see cowsetup --help.",
			     poptBadOption(context, POPT_BADOPTION_NOALIAS), poptStrerror(which));
	return OK;
}

static int answer(struct cowloop_ctx *ctx, poptContext context, int asked, int argc, char **argv)
{
	if (asked == OPT_HELP)
		return cmd_help(ctx, argc ? 1 : 0, argv);
	if (asked == OPT_USAGE)
		poptPrintUsage(context, stdout, 0);
	else
		print_versions(ctx);
	return OK;
}

static int run_command(struct cowloop_ctx *ctx, int argc, char **argv, u64 given)
{
	const struct command *command;

	if (!argc)
		return error(ctx, USAGE, "An action is missing; see cowsetup --help.");
	command = find_command(argv[0]);
	if (!command)
		return error(ctx, USAGE, "%s: unknown action; see cowsetup --help.", argv[0]);
	argc--;
	argv++;
	if (argc > command->max_args && !*command->args)
		return error(ctx, USAGE, "%s: takes no arguments.", command->name);
	if (argc < command->min_args || argc > command->max_args)
		return error(ctx, USAGE, "%s: requires %s as arguments.", command->name, command->args);

	given &= ~command->options & (BIT(OPT_COMMON) - 1);
	if (given)
		return error(ctx, USAGE, "Option --%s is not allowed with action %s.",
			     option_name(__builtin_ctzll(given)), command->name);

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
	int r, asked = 0, nr = 0;
	const char **rest;

	catch_signals();

	context = main_context(argc, argv);
	r = parse_options(ctx, context, &given, &asked);
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
