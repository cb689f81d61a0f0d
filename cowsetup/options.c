// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup: the options. A new one is a line in options[], and a member of struct
 * options where it goes.
 */

#include "options.h"

#include <errno.h>
#include <popt.h>
#include <stdlib.h>
#include <string.h>

#include "../boot/memory.h"
#include "../dm-cowloop.h"
#include "../lib/size.h"

struct options opt;

/* ---- Values ---- */

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

/* The place of a word among @words, of which the last is NULL; -1: it is none of them. */
static int find_word(const char *const *words, const char *text)
{
	for (int i = 0; words[i]; i++)
		if (!strcmp(text, words[i]))
			return i;
	return -1;
}

static int parse_compress(struct cowloop_ctx *ctx, const char *text)
{
	static const char *const types[] = { "none", "gzip", "zstd", "cowpack", NULL };
	const int type = find_word(types, text);

	if (type < 0)
		return error(ctx, USAGE, "--compress %s: it must be none, gzip, zstd or cowpack.", text);
	opt.compress = type;
	return OK;
}

static int parse_rdo_cache(struct cowloop_ctx *ctx, const char *text)
{
	static const char *const whens[] = { "auto", "always", "never", NULL };
	const int when = find_word(whens, text);

	if (when < 0)
		return error(ctx, USAGE, "--rdo-cache %s: it must be auto, always or never.", text);
	opt.open.rdo_cache = when;
	return OK;
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

/* ---- The table ---- */

/* Masks of commands. */
#define C(command)	BIT(CMD_##command)
#define ANY	(~0ULL)

/* Where it goes: each that is set is for it. */
#define FLAG(member)	.flag = &opt.member	/* true: it was given */
#define TEXT(member)	.text = &opt.member	/* its value as it is */
#define BYTES(member)	.bytes = &opt.member	/* its value as a size */

static const struct option {
	const char *name;
	char letter;
	const char *value;	/* what help calls its value; NULL: it has none */
	const char *help;
	u64 commands;		/* that take it */
	bool *flag;
	const char **text;
	u64 *bytes;
	int (*parse)(struct cowloop_ctx *ctx, const char *value);
} options[] = {
	{ "all", 'a', NULL, "All that there is",
	  C(ASSEMBLE), FLAG(all) },
	{ "batch-mode", 'q', NULL, "Do not ask for confirmation",
	  ANY, FLAG(batch_mode) },
	{ "compress", 0, "TYPE", "How to compress a packed file: none, gzip, zstd, or as cowpack -z did",
	  C(PACK), .parse = parse_compress },
	{ "cowtab", 0, "FILE", "The table of pairs, instead of /etc/cowtab",
	  C(ASSEMBLE) | C(GENERATE), TEXT(cowtab) },
	{ "deferred", 0, NULL, "Close the device when the last user has gone",
	  C(CLOSE), FLAG(deferred) },
	{ "dry-run", 'n', NULL, "Only say what would be done",
	  C(ASSEMBLE) | C(REPAIR), FLAG(dry_run) },
	{ "exec", 0, "COMMAND", "Run a command when space is short, and go on watching",
	  C(WATCH), TEXT(exec) },
	{ "force", 'f', NULL, "Overwrite what is there; use what others own or may write; repair what can only be guessed; close what cannot be synced",
	  C(FORMAT) | C(OPEN) | C(CLOSE) | C(READONLY) | C(DETACH) | C(REPAIR) | C(PACK) |
	  C(UNPACK) | C(UPGRADE), FLAG(force) },
	{ "format", 0, "NUMBER", "Format of the cowfile: 1 (the original's) or 2 (the default)",
	  C(FORMAT) | C(OPEN), .parse = parse_format },
	{ "gone", 0, NULL, "All devices of which a part is not there any more",
	  C(CLOSE), FLAG(gone) },
	{ "json", 0, NULL, "Print JSON, for scripts",
	  C(LIST) | C(STATUS) | C(WATCH) | C(DUMP) | C(MAP) | C(CHECK), FLAG(json) },
	{ "label", 0, "LABEL", "Name of the new cowfile",
	  C(FORMAT) | C(OPEN) | C(UPGRADE), TEXT(open.new.label) },
	{ "limit", 0, "SIZE", "At most so much may be written into the cowfile",
	  C(OPEN), BYTES(open.limit) },
	{ "low-water", 0, "SIZE", "Raise an event when so little of the limit is left",
	  C(OPEN), BYTES(open.low_water) },
	{ "mapunit", 0, "SIZE", "Unit of change, a power of two from 4K to 1M",
	  C(FORMAT) | C(OPEN) | C(UPGRADE), .parse = parse_mapunit },
	{ "max-size", 0, "SIZE", "Unpack no more than so much",
	  C(UNPACK), BYTES(max_size) },
	{ "monitor", 0, NULL, "Have dmeventd warn when it gets full",
	  C(OPEN), FLAG(monitor) },
	{ "no-discard-passdown", 0, NULL, "Keep the space of what is discarded in the cowfile",
	  C(OPEN), FLAG(open.no_passdown) },
	{ "off", 0, NULL, "Monitor it no longer",
	  C(MONITOR), FLAG(off) },
	{ "part", 0, NULL, "Say whether a device is a part of a cowloop device",
	  C(PROBE), FLAG(part) },
	{ "progress-frequency", 0, "SECS", "Print a line of progress every so many seconds",
	  ANY, .parse = parse_frequency },
	{ "progress-json", 0, NULL, "Print progress as JSON, one object a line",
	  ANY, FLAG(progress_json) },
	{ "queue-if-no-space", 0, NULL, "Let writes that find no space wait for it, rather than fail",
	  C(OPEN), FLAG(open.queue) },
	{ "rdo", 0, "RDO", "The read-only device of the cowfile",
	  C(CHECK) | C(UPGRADE), TEXT(rdo) },
	{ "rdo-cache", 0, "WHEN", "Keep what is read of an image in the page cache: auto (when several devices are over it), always or never",
	  C(OPEN), .parse = parse_rdo_cache },
	{ "rdo-spec", 0, "SPEC", "Where to find the read-only device: UUID=, LABEL=, PARTUUID=, PARTLABEL= or a path",
	  C(FORMAT) | C(OPEN) | C(UPGRADE), TEXT(open.new.rdo_spec) },
	{ "read-only", 'r', NULL, "Open for reading only; nothing is written to the cowfile",
	  C(OPEN), FLAG(open.read_only) },
	{ "repair", 0, NULL, "Open a cowfile of format 1 that was in use in a crash, and repair it",
	  C(OPEN), FLAG(open.repair) },
	{ "reserve", 0, "SIZE", "So much of the limit is for filesystems' own blocks",
	  C(OPEN), BYTES(open.reserve) },
	{ "threshold", 0, "SIZE", "How much free space is short",
	  C(WATCH), FLAG(have_threshold), BYTES(threshold) },
	{ "verbose", 'v', NULL, "Say more about what is done",
	  ANY, FLAG(verbose) },
};

#define NR_OPTIONS	(sizeof(options) / sizeof(options[0]))

/* popt returns an index in options[] and 1, or one of these. */
enum {
	OPT_HELP = NR_OPTIONS + 1,
	OPT_USAGE,
	OPT_VERSION,
};

static const struct poptOption help_table[] = {
	{ "help", '?', POPT_ARG_NONE, NULL, OPT_HELP, "Show this help message, or that of the action", NULL },
	{ NULL, 'h', POPT_ARG_NONE | POPT_ARGFLAG_DOC_HIDDEN, NULL, OPT_HELP, NULL, NULL },
	{ "usage", '\0', POPT_ARG_NONE, NULL, OPT_USAGE, "Display brief usage", NULL },
	{ "version", 'V', POPT_ARG_NONE, NULL, OPT_VERSION, "Print package version", NULL },
	POPT_TABLEEND
};

/* popt wants it to stay as long as the context. */
static struct poptOption popt_table[NR_OPTIONS + 2];

poptContext options_context(int argc, char **argv, u64 commands)
{
	struct poptOption *to = popt_table;
	poptContext context;

	*to++ = (struct poptOption){ NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)help_table, 0, "Help options:", NULL };
	for (unsigned int i = 0; i < NR_OPTIONS; i++) {
		const struct option *o = &options[i];

		if (o->commands & commands)
			*to++ = (struct poptOption){ o->name, o->letter, o->value ? POPT_ARG_STRING : POPT_ARG_NONE,
						     NULL, i + 1, o->help, o->value };
	}
	*to = (struct poptOption)POPT_TABLEEND;
	context = poptGetContext("cowsetup", argc, (const char **)argv, popt_table, 0);
	if (!context)
		out_of_memory();
	return context;
}

/* ---- Reading ---- */

static int take(struct cowloop_ctx *ctx, const struct option *o, const char *value)
{
	if (o->flag)
		*o->flag = true;
	if (o->text)
		*o->text = xasprintf("%s", value);
	if (o->bytes && !parse_size(value, o->bytes))
		return error(ctx, USAGE, "--%s %s: it must be a size, as 4096, 64K or 1.5G.", o->name, value);
	return o->parse ? o->parse(ctx, value) : OK;
}

int options_read(struct cowloop_ctx *ctx, poptContext context, u64 *given, enum question *asked)
{
	int which, r;
	char *value;

	while ((which = poptGetNextOpt(context)) > 0) {
		if (which >= OPT_HELP) {
			*asked = which == OPT_HELP ? ASKED_HELP : which == OPT_USAGE ? ASKED_USAGE : ASKED_VERSION;
			continue;
		}
		value = poptGetOptArg(context);
		r = take(ctx, &options[which - 1], value);
		free(value);
		if (r)
			return r;
		*given |= BIT(which - 1);
	}
	if (which < -1)
		return error(ctx, USAGE, "%s: %s; see cowsetup --help.",
			     poptBadOption(context, POPT_BADOPTION_NOALIAS), poptStrerror(which));
	return OK;
}

int options_refuse(struct cowloop_ctx *ctx, u64 given, enum command_id id, const char *name)
{
	for (unsigned int i = 0; i < NR_OPTIONS; i++)
		if (given & BIT(i) && !(options[i].commands & BIT(id)))
			return error(ctx, USAGE, "Option --%s is not allowed with action %s.", options[i].name, name);
	return OK;
}
