// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup: reads /etc/cowtab.
 *
 * A line has a name, rdo, cow, and options with commas between them. A line that
 * is wrong is told with its number and left out, since the others may be what
 * a machine needs to come up.
 */

#include "cowtab.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../lib/name.h"
#include "../lib/size.h"
#include "../lib/spec.h"
#include "memory.h"
#include "plugged.h"

static const char BLANKS[] = " \t\r\n";

/* A line that is being read. */
struct line {
	struct cowloop_ctx *ctx;
	const struct cowtab *tab;
	struct cowtab_entry e;
};

static __attribute__((format(printf, 2, 3)))
int bad(const struct line *l, const char *fmt, ...)
{
	struct cowloop_ctx *ctx = l->ctx;
	va_list ap;
	char *text;

	if (l->tab->quiet)
		return WRONG;
	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		out_of_memory();
	va_end(ap);
	error(ctx, WRONG, "%s:%u: %s; the line is left out, see cowtab(5).", l->tab->path, l->e.line, text);
	free(text);
	return WRONG;
}

/* ---- Options ---- */

static bool *flag(struct cowtab_entry *e, const char *name)
{
	const struct {
		const char *name;
		bool *flag;
	} flags[] = {
		{ "create", &e->open.create },
		{ "force", &e->open.new.force },
		{ "monitor", &e->monitor },
		{ "no-discard-passdown", &e->open.no_passdown },
		{ "noauto", &e->noauto },
		{ "queue-if-no-space", &e->open.queue },
		{ "read-only", &e->open.read_only },
		{ "repair", &e->open.repair },
	};

	for (unsigned int i = 0; i < sizeof(flags) / sizeof(flags[0]); i++)
		if (!strcmp(name, flags[i].name))
			return flags[i].flag;
	return NULL;
}

static u64 *size(struct cowtab_entry *e, const char *name)
{
	if (!strcmp(name, "limit"))
		return &e->open.limit;
	if (!strcmp(name, "low-water"))
		return &e->open.low_water;
	if (!strcmp(name, "reserve"))
		return &e->open.reserve;
	return NULL;
}

/* Options for systemd's generator, and those that say what is so anyway. */
static bool is_others(const char *option)
{
	return !strcmp(option, "defaults") || !strcmp(option, "nofail") || !strcmp(option, "_netdev") ||
	       !strncmp(option, "x-", 2);
}

static int parse_one(struct line *l, char *option)
{
	char *value = strchr(option, '=');
	bool *on = flag(&l->e, option);
	u64 *bytes;

	if (on) {
		*on = true;
		return OK;
	}
	if (is_others(option))
		return OK;
	if (value)
		*value++ = 0;
	bytes = size(&l->e, option);
	if (!bytes)
		return bad(l, "unknown option %s", option);
	if (!value || !parse_size(value, bytes))
		return bad(l, "%s=%s: it must be a size, as 4096, 64K or 1.5G", option, value ? value : "");
	return OK;
}

static int parse_options(struct line *l, char *text)
{
	char *save;
	int r = OK;

	for (char *o = strtok_r(text, ",", &save); o && !r; o = strtok_r(NULL, ",", &save))
		r = parse_one(l, o);
	if (!r && l->e.open.create && l->e.open.read_only)
		r = bad(l, "create and read-only: a cowfile that is never written cannot be made");
	if (!r && l->e.open.create && !strcmp(l->e.name, COWTAB_ANY))
		r = bad(l, "%s: create: it stands for what has a cowfile already", COWTAB_ANY);
	if (!r && l->e.open.new.force && !strcmp(l->e.name, COWTAB_ANY))
		r = bad(l, "%s: force: what no line names is opened with care only", COWTAB_ANY);
	return r;
}

/* ---- Fields ---- */

static int check_fields(const struct line *l)
{
	const struct cowtab_entry *e = &l->e, *other;
	const bool any = !strcmp(e->name, COWTAB_ANY);

	if (!any && (name_is_special(e->name) || strlen(e->name) > 100 || !name_is_plain(e->name)))
		return bad(l, "%s: not a name for a device: found other characters than letters, digits and #+-.:=@_, or more than 100",
			   e->name);
	if (!strncmp(e->name, PLUGGED_PREFIX, strlen(PLUGGED_PREFIX)))
		return bad(l, "%s: the names that begin with %s are those of devices that no line names", e->name,
			   PLUGGED_PREFIX);
	other = cowtab_find(l->tab, e->name);
	if (other)
		return bad(l, "%s: the name is that of line %u already", e->name, other->line);
	if (any && (strcmp(e->rdo, "-") || strcmp(e->cow, "-")))
		return bad(l, "%s: stands for cow devices that say where their rdo is: found %s and %s, expected - and -",
			   e->name, e->rdo, e->cow);
	if (!any && !spec_is_valid(e->rdo))
		return bad(l, "%s: found %s for rdo, expected " SPEC_KINDS, e->name, e->rdo);
	if (!any && !spec_is_valid(e->cow))
		return bad(l, "%s: found %s for cow, expected " SPEC_KINDS, e->name, e->cow);
	return OK;
}

/* The character that \NNN at *@text stands for, or another one there; 0: a field cannot have it. */
static char decode_one(const char **text)
{
	unsigned int c = (unsigned char)*(*text)++;

	if (c == '"' || c == '\'')
		return 0;
	if (c != '\\')
		return c;
	if (strspn(*text, "01234567") < 3 || sscanf(*text, "%3o", &c) != 1 || c < ' ' || c == 127 || c > 255)
		return 0;
	*text += 3;
	return c;
}

/*
 * A device's field with what it cannot have as it is, as fstab has it: \040 for a
 * blank. Quotes would be taken for what keeps a field together, which they do not.
 * To be freed; NULL: it is not right.
 */
static char *decode_field(const struct line *l, const char *text)
{
	char *decoded = xasprintf("%s", text), *to = decoded;

	while (*text) {
		*to = decode_one(&text);
		if (!*to++) {
			bad(l, "%s: rdo and cow cannot have quotes or \\ in them, but as \\040 for a blank, \\042 and \\047 for quotes, \\134 for \\",
			    l->e.name);
			free(decoded);
			return NULL;
		}
	}
	*to = 0;
	return decoded;
}

static void free_entry(struct cowtab_entry *e)
{
	free(e->name);
	free(e->rdo);
	free(e->cow);
	free(e->options);
}

static int parse_line(struct cowloop_ctx *ctx, struct cowtab *tab, unsigned int number, char *text)
{
	struct line l = { .ctx = ctx, .tab = tab, .e = { .line = number } };
	char *field[5], *save = NULL;
	struct cowtab_entry *grown;
	unsigned int nr = 0;
	int r;

	for (char *f = strtok_r(text, BLANKS, &save); f && nr < 5; f = strtok_r(NULL, BLANKS, &save))
		field[nr++] = f;
	if (!nr || field[0][0] == '#')
		return OK;
	if (nr < 3 || nr > 4)
		return bad(&l, "found %s%u fields, expected a name, rdo, cow and, maybe, options",
			   nr > 4 ? "at least " : "", nr);

	l.e.name = xasprintf("%s", field[0]);
	l.e.rdo = decode_field(&l, field[1]);
	l.e.cow = l.e.rdo ? decode_field(&l, field[2]) : NULL;
	l.e.options = xasprintf("%s", nr > 3 && strcmp(field[3], "-") ? field[3] : "");
	r = l.e.cow ? check_fields(&l) : WRONG;
	if (!r && *l.e.options)
		r = parse_options(&l, field[3]);
	if (r) {
		free_entry(&l.e);
		return r;
	}
	grown = xrealloc(tab->entries, (tab->nr + 1) * sizeof(*grown));
	tab->entries = grown;
	grown[tab->nr++] = l.e;
	return OK;
}

/* ---- The table ---- */

int cowtab_read(struct cowloop_ctx *ctx, struct cowtab *tab, const char *path, bool quiet)
{
	FILE *f = fopen(path, "re");
	unsigned int number = 0;
	char *text = NULL;
	size_t room = 0;
	ssize_t n;
	int r = OK;

	*tab = (struct cowtab){ .path = path, .quiet = quiet };
	if (!f && errno == ENOENT) {
		verbose(ctx, "%s: there is no such table, and so no line.", path);
		return OK;
	}
	if (!f)
		return error_errno(ctx, "%s: cannot be read", path);
	while ((n = getline(&text, &room, f)) >= 0) {
		number++;
		/* A zero byte would end it. */
		for (ssize_t i = 0; i < n; i++)
			if (!text[i])
				text[i] = '?';
		if (parse_line(ctx, tab, number, text))
			r = WRONG;
	}
	if (ferror(f))
		r = error_errno(ctx, "%s: cannot be read", path);
	free(text);
	fclose(f);
	return r;
}

void cowtab_free(struct cowtab *tab)
{
	for (size_t i = 0; i < tab->nr; i++)
		free_entry(&tab->entries[i]);
	free(tab->entries);
	*tab = (struct cowtab){ 0 };
}

const struct cowtab_entry *cowtab_find(const struct cowtab *tab, const char *name)
{
	for (size_t i = 0; i < tab->nr; i++)
		if (!strcmp(tab->entries[i].name, name))
			return &tab->entries[i];
	return NULL;
}

int cowtab_mark(struct cowloop_ctx *ctx, const char *dir, const char *name)
{
	char *path;
	int r = OK, fd;

	if (mkdir(dir, 0755) && errno != EEXIST)
		return error_errno(ctx, "%s: cannot be made", dir);
	path = xasprintf("%s/%s", dir, name);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	if (fd < 0)
		r = error_errno(ctx, "%s: cannot be created", path);
	else
		close(fd);
	free(path);
	return r;
}
