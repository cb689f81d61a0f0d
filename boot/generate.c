// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup: makes systemd's units of /etc/cowtab, for its generator.
 *
 * Laid out as those of veritysetup and cryptsetup are. The service of a line
 * starts when both its devices are there, or the filesystems of its files are
 * mounted, and stops when they go. What is made of it, /dev/mapper/NAME, is a
 * device unit that requires the service, so that a mount in fstab does, too;
 * and each half that is plugged in later starts it.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <blkid/blkid.h>

#include "../lib/dm.h"
#include "../lib/spec.h"
#include "boot.h"
#include "cowtab.h"
#include "memory.h"

/* ---- Names of units ---- */

static bool unit_char(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
	       c == ':' || c == '_' || c == '.';
}

/* As systemd-escape does it, without and with --path. To be freed. */
static char *escape(const char *text, bool path)
{
	char *escaped = xmalloc(4 * strlen(text) + 2), *to = escaped;

	for (const char *p = text; *p; p++) {
		if (path && *p == '/' && (p == text || p[1] == '/' || !p[1]))
			continue;
		if (*p == '/')
			*to++ = '-';
		else if (unit_char(*p) && !(*p == '.' && to == escaped))
			*to++ = *p;
		else
			to += sprintf(to, "\\x%02x", (unsigned char)*p);
	}
	if (path && to == escaped)
		*to++ = '-';
	*to = 0;
	return escaped;
}

/* A text in a unit file, where % is special. To be freed. */
static char *double_percent(const char *text)
{
	char *quoted = xmalloc(2 * strlen(text) + 1), *to = quoted;

	for (; *text; text++) {
		if (*text == '%')
			*to++ = *text;
		*to++ = *text;
	}
	*to = 0;
	return quoted;
}

/* A path as one word in a unit file. To be freed. */
static char *quote(const char *path)
{
	char *text = double_percent(path), *quoted, *to;

	if (!strpbrk(text, " \"'\\"))
		return text;
	quoted = xmalloc(2 * strlen(text) + 3);
	to = quoted;
	*to++ = '"';
	for (const char *p = text; *p; p++) {
		if (*p == '"' || *p == '\\')
			*to++ = '\\';
		*to++ = *p;
	}
	strcpy(to, "\"");
	free(text);
	return quoted;
}

/* The link that udev makes for a tag, or a path that is a device's; NULL: a file. To be freed. */
static char *device_node(const char *spec, bool cow)
{
	const struct spec_tag *tag;
	char *encoded, *node;
	const char *value;
	size_t room;

	if (spec[0] == '/')
		return strncmp(spec, "/dev/", 5) ? NULL : xasprintf("%s", spec);
	tag = spec_tag(spec, &value);
	if (!tag)
		abort();	/* cowtab_read() has checked it */
	room = 4 * strlen(value) + 1;
	encoded = xmalloc(room);
	if (blkid_encode_string(value, encoded, room))
		*encoded = 0;
	node = xasprintf("%s%s", cow ? tag->cow_links : tag->links, encoded);
	free(encoded);
	return node;
}

/* ---- Files ---- */

static int write_file(struct cowloop_ctx *ctx, const char *path, const char *text)
{
	FILE *f = fopen(path, "wxe");
	int r = OK;

	if (!f)
		return error_errno(ctx, "%s: cannot be created", path);
	if (fputs(text, f) < 0 || fflush(f))
		r = error_errno(ctx, "%s: cannot be written", path);
	fclose(f);
	return r;
}

/* A directory of @unit, as DIR/UNIT.wants; the path of @name in it, to be freed, or NULL. */
static char *in_unit_dir(struct cowloop_ctx *ctx, const char *dir, const char *unit, const char *kind, const char *name)
{
	char *sub = xasprintf("%s/%s.%s", dir, unit, kind), *path = NULL;

	if (mkdir(sub, 0755) && errno != EEXIST)
		error_errno(ctx, "%s: cannot be made", sub);
	else
		path = xasprintf("%s/%s", sub, name);
	free(sub);
	return path;
}

/* Have @unit want or require another one, which is here, too. */
static int link_unit(struct cowloop_ctx *ctx, const char *dir, const char *unit, const char *kind, const char *name)
{
	char *path = in_unit_dir(ctx, dir, unit, kind, name), *target = xasprintf("../%s", name);
	int r = path ? OK : WRONG;

	if (path && symlink(target, path) && errno != EEXIST)
		r = error_errno(ctx, "%s: cannot be created", path);
	free(target);
	free(path);
	return r;
}

/* ---- A line ---- */

/* An option for systemd: its value, "" if it has none, to be freed; NULL: it is not there. */
static char *option(const struct cowtab_entry *e, const char *name)
{
	char *copy = xasprintf("%s", e->options), *save, *found = NULL;
	const size_t n = strlen(name);

	for (char *o = strtok_r(copy, ",", &save); o; o = strtok_r(NULL, ",", &save)) {
		if (strncmp(o, name, n) || (o[n] && o[n] != '='))
			continue;
		free(found);
		found = xasprintf("%s", o[n] ? o + n + 1 : "");
	}
	free(copy);
	return found;
}

static bool has_option(const struct cowtab_entry *e, const char *name)
{
	char *value = option(e, name);

	free(value);
	return value;
}

/* How long the start of the service waits for a device. */
static int write_timeout(struct cowloop_ctx *ctx, const struct cowtab_entry *e, const char *dir, const char *unit)
{
	char *timeout = option(e, "x-systemd.device-timeout"), *name, *path, *quoted, *text;
	int r = OK;

	if (!timeout)
		return OK;
	quoted = double_percent(timeout);
	name = xasprintf("50-cowsetup-%s.conf", e->name);
	path = in_unit_dir(ctx, dir, unit, "d", name);
	text = xasprintf("[Unit]\nJobRunningTimeoutSec=%s\n", quoted);
	r = path ? write_file(ctx, path, text) : WRONG;
	free(text);
	free(path);
	free(name);
	free(quoted);
	free(timeout);
	return r;
}

/* Add one half of the pair to the unit @text, and to what that wants. */
static int add_half(struct cowloop_ctx *ctx, const struct cowtab_entry *e, const char *dir, const char *service,
		    const char *spec,
		    bool cow, char **text)
{
	char *node = device_node(spec, cow), *unit, *name, *quoted, *more;
	const char *value;
	const struct spec_tag *tag = node && !cow ? spec_link(node, &value) : NULL;
	/*
	 * This link goes over to the device itself, which has the same filesystem, and to others
	 * like it; whoever stops one of these would stop what requires the link.
	 */
	const bool moves = tag && tag->moves;
	int r = OK;

	if (node) {
		name = escape(node, true);
		unit = xasprintf("%s.device", name);
		free(name);
		quoted = double_percent(unit);
		more = xasprintf("%s%s=%s\nAfter=%s\n", *text, moves ? "Wants" : "BindsTo", quoted,
				 quoted);
		if (!e->noauto)
			r = link_unit(ctx, dir, unit, "wants", service);
		if (!r)
			r = write_timeout(ctx, e, dir, unit);
		free(unit);
	} else {
		quoted = quote(spec);
		/* At that time nothing else may have loaded it. */
		more = xasprintf("%sRequiresMountsFor=%s\n"
				 "Wants=modprobe@loop.service\nAfter=modprobe@loop.service\n", *text, quoted);
	}
	free(quoted);
	free(node);
	free(*text);
	*text = more;
	return r;
}

static int write_service(struct cowloop_ctx *ctx, const struct cowtab *tab, const struct cowtab_entry *e,
			 const char *dir,
			 const char *device, const char *service, const char *self)
{
	const bool netdev = has_option(e, "_netdev"), nofail = has_option(e, "nofail");
	const char *target = netdev ? "remote-cowsetup.target" : "cowsetup.target";
	char *text, *whole, *path;
	int r;

	text = xasprintf("# Made by cowsetup-generator of line %u in %s.\n"
			 "\n"
			 "[Unit]\n"
			 "Description=Writable device %%I over a read-only one\n"
			 "Documentation=man:cowtab(5) man:cowsetup(8)\n"
			 "SourcePath=%s\n"
			 "DefaultDependencies=no\n"
			 "IgnoreOnIsolate=true\n"
			 "Wants=modprobe@dm_mod.service\n"
			 "After=modprobe@dm_mod.service\n"
			 "Conflicts=umount.target\n"
			 "Before=umount.target\n"
			 "Wants=blockdev@dev-mapper-%%i.target\n"
			 "Before=blockdev@dev-mapper-%%i.target\n"
			 "%s%s%s%s",
			 e->line, tab->path, tab->path,
			 nofail ? "" : "Before=", nofail ? "" : target, nofail ? "" : "\n",
			 netdev ? "After=remote-fs-pre.target\n" : "");
	r = add_half(ctx, e, dir, service, e->rdo, false, &text);
	if (!r)
		r = add_half(ctx, e, dir, service, e->cow, true, &text);
	/* The device may have been closed by hand, or because one of its devices has gone, which is no failure. */
	if (!r) {
		whole = xasprintf("%s\n"
				  "[Service]\n"
				  "Type=oneshot\n"
				  "RemainAfterExit=yes\n"
				  "TimeoutStartSec=infinity\n"
				  "ExecStart=%s assemble -- %s\n"
				  "ExecStop=-%s close --deferred -- %s\n",
				  text, self, e->name, self, e->name);
		path = xasprintf("%s/%s", dir, service);
		r = write_file(ctx, path, whole);
		free(path);
		free(whole);
	}
	free(text);
	if (!r)
		r = link_unit(ctx, dir, device, "requires", service);
	if (!r && !e->noauto)
		r = link_unit(ctx, dir, target, nofail ? "wants" : "requires", service);
	return r;
}

static int make_units(struct cowloop_ctx *ctx, const struct cowtab *tab, const struct cowtab_entry *e,
		      const char *dir, const char *self)
{
	char *escaped = escape(e->name, false);
	char *service = xasprintf("cowsetup@%s.service", escaped);
	char *node = xasprintf("%s/%s", DM_NODES, e->name), *name = escape(node, true);
	char *device = xasprintf("%s.device", name);
	int r = write_service(ctx, tab, e, dir, device, service, self);

	free(device);
	free(name);
	free(node);
	free(service);
	free(escaped);
	return r;
}

/* ---- The whole ---- */

/* The mark is for udev, which asks for it with each device: see 65-cowsetup.rules. */
static int set_mark(struct cowloop_ctx *ctx, bool on)
{
	const char *run = getenv("RUNTIME_DIRECTORY");
	const char *dir = run ? run : COWSETUP_RUN;
	char *path;
	int r = OK;

	if (on)
		return cowtab_mark(ctx, dir, "assemble");
	path = xasprintf("%s/assemble", dir);
	if (unlink(path) && errno != ENOENT)
		r = error_errno(ctx, "%s: cannot be removed", path);
	free(path);
	return r;
}

int boot_generate(struct cowloop_ctx *ctx, const char *dir, const char *cowtab)
{
	const struct cowtab_entry *any;
	struct cowtab tab;
	char *self = realpath("/proc/self/exe", NULL), *quoted;
	int r, one;

	if (!self)
		return error_errno(ctx, "/proc/self/exe: cannot be read");
	quoted = quote(self);
	r = cowtab_read(ctx, &tab, cowtab, false);
	for (size_t i = 0; i < tab.nr; i++) {
		const struct cowtab_entry *e = &tab.entries[i];

		if (!strcmp(e->name, COWTAB_ANY))
			continue;
		one = make_units(ctx, &tab, e, dir, quoted);
		if (!r)
			r = one;
	}
	any = cowtab_find(&tab, COWTAB_ANY);
	one = set_mark(ctx, any && !any->noauto);
	if (!r)
		r = one;
	free(quoted);
	free(self);
	cowtab_free(&tab);
	return r;
}
