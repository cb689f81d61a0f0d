// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup: opens the pairs that are complete.
 *
 * A pair is a line of /etc/cowtab, or, if a line there allows that (see
 * COWTAB_ANY), a cow device whose head says where its rdo is, within the bounds
 * of plugged.c. Nothing else is opened: a machine may be there to look at devices
 * that must not change.
 *
 * Each half may appear last, and udev calls for each that appears, for several
 * at the same time: one assemble looks and opens at a time, and what it finds
 * open is as good as opened. That rdo is the right one cowloop_open() finds out.
 */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <uuid/uuid.h>

#include "../lib/dm.h"
#include "../lib/monitor.h"
#include "../lib/open.h"
#include "../lib/spec.h"
#include "boot.h"
#include "cowtab.h"
#include "memory.h"
#include "plugged.h"
#include "probe.h"

struct assembly {
	struct cowtab tab;
	const struct cowtab_entry *any;		/* its options are those of pairs that no line names */
	struct cow_device *cows;		/* all there are */
	size_t nr_cows;
	bool dry_run;
	const char *device;			/* only pairs that this is a part of; NULL: all */
	bool checked;				/* the kernel can do it */
	unsigned int nr;			/* pairs that were complete */
	struct planned *planned;		/* those that a dry run would have opened */
	size_t nr_planned;
};

struct planned {
	char *name, *rdo, *cow;
};

/* ---- Paths that do not answer ---- */

/*
 * A path may be on a filesystem whose server is gone. Whoever opens it then waits in
 * the kernel, without end, and all the other lines with him. So processes of their
 * own do that first, one for each path and all at the same time, and what none of
 * them comes back from is not touched again.
 */
#define PATIENCE	30	/* seconds */

struct look {
	pid_t pid;		/* 0: there is no such process, nor need of one */
	int fd;			/* a pipe that is closed when it ends */
};

static struct look look_start(const char *spec)
{
	struct look l = { .fd = -1 };
	int ends[2];

	/* The kernel itself answers for what is in /dev. */
	if (spec[0] != '/' || !strncmp(spec, "/dev/", 5) || pipe2(ends, O_CLOEXEC))
		return l;
	l.pid = fork();
	if (!l.pid) {
		/* The attributes may be remembered; that it is opened its server has to know. */
		open_checked(spec, O_RDONLY | O_NONBLOCK, false);
		_exit(0);
	}
	close(ends[1]);
	l.fd = ends[0];
	if (l.pid > 0)
		return l;
	close(l.fd);
	return (struct look){ .fd = -1 };
}

/* Has it not come back by then, or before somebody interrupts this? */
static bool look_is_silent(struct cowloop_ctx *ctx, struct look *l, time_t until)
{
	struct pollfd p = { .fd = l->fd, .events = POLLIN };
	struct timespec now;
	int n = -1;

	if (!l->pid)
		return false;
	while (n < 0 && !is_cancelled(ctx)) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		n = poll(&p, 1, now.tv_sec < until ? (until - now.tv_sec) * 1000 : 0);
	}
	/* The child may hang in the kernel: nobody waits for it. */
	if (n <= 0)
		kill(l->pid, SIGKILL);
	waitpid(l->pid, NULL, n <= 0 ? WNOHANG : 0);
	close(l->fd);
	return n <= 0;
}

/* Find the silent paths of @nr lines. */
static void find_silent(struct cowloop_ctx *ctx, struct cowtab_entry *entries, size_t nr)
{
	struct look *looks = xmalloc((2 * nr + 1) * sizeof(*looks));
	struct timespec now;

	for (size_t i = 0; i < nr; i++) {
		looks[2 * i] = look_start(entries[i].rdo);
		looks[2 * i + 1] = look_start(entries[i].cow);
	}
	clock_gettime(CLOCK_MONOTONIC, &now);
	for (size_t i = 0; i < nr; i++) {
		entries[i].rdo_silent = look_is_silent(ctx, &looks[2 * i], now.tv_sec + PATIENCE);
		entries[i].cow_silent = look_is_silent(ctx, &looks[2 * i + 1], now.tv_sec + PATIENCE);
	}
	free(looks);
}

/* ---- Finding the halves ---- */

/* Where a half of a line is: a path to be freed, or NULL. */
static char *find_half(const char *spec)
{
	char *what = xtext(spec_unlink(spec)), *path;

	if (what[0] != '/')
		path = find_tagged(what);
	else
		path = access(what, F_OK) ? NULL : xasprintf("%s", what);
	free(what);
	return path;
}

static bool has_tag(const struct cow_device *cow, const char *spec)
{
	char *label = head_label(&cow->head, cow->format), uuid[UUID_STR_LEN] = "";
	bool r = false;

	if (cow->format == 2)
		uuid_unparse_lower(cow->head.uuid, uuid);
	if (!strncmp(spec, "LABEL=", 6))
		r = !strcmp(spec + 6, label);
	else if (!strncmp(spec, "UUID=", 5))
		r = *uuid && !strcasecmp(spec + 5, uuid);
	free(label);
	return r;
}

static char *find_rdo(const struct cowtab_entry *e)
{
	return e->rdo_silent ? NULL : find_half(e->rdo);
}

/* The same for a cow: UUID= and LABEL= are what its head has. */
static char *find_cow(const struct assembly *a, const struct cowtab_entry *e)
{
	const char *spec = e->cow;

	if (e->cow_silent)
		return NULL;
	if (spec[0] == '/')
		return access(spec, F_OK) ? NULL : xasprintf("%s", spec);
	if (strncmp(spec, "UUID=", 5) && strncmp(spec, "LABEL=", 6))
		return find_half(spec);
	for (size_t i = 0; i < a->nr_cows; i++)
		if (has_tag(&a->cows[i], spec))
			return xasprintf("%s", a->cows[i].path);
	return NULL;
}

/* Is the pair among those asked for? */
static bool wanted(const struct assembly *a, const char *rdo, const char *cow)
{
	return !a->device || (rdo && file_same_path(rdo, a->device)) ||
	       (cow && file_same_path(cow, a->device));
}

/* ---- Opening ---- */

/* One at a time, until this process ends. */
static int lock(struct cowloop_ctx *ctx)
{
	int fd;

	if (mkdir(COWSETUP_RUN, 0755) && errno != EEXIST)
		return error_errno(ctx, "%s: cannot be made", COWSETUP_RUN);
	fd = open(COWSETUP_RUN "/lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || flock(fd, LOCK_EX))
		return error_errno(ctx, "%s/lock: cannot be locked", COWSETUP_RUN);
	return OK;
}

/* The module is not loaded before there is something to be opened. */
static int prepare(struct cowloop_ctx *ctx, struct assembly *a)
{
	int r;

	if (a->checked)
		return OK;
	r = dm_check_kernel(ctx);
	if (!r)
		r = lock(ctx);
	a->checked = !r;
	return r;
}

/*
 * A mark for udev's rules: the device of this name, which somebody who is trusted has
 * chosen, has /dev/disk/by-uuid and the like lead to it, whatever else has the same
 * UUID. It stays when the device is closed: the name is still in the table then.
 */
static int mark_named(struct cowloop_ctx *ctx, const char *name)
{
	return cowtab_mark(ctx, COWSETUP_NAMED, name);
}

/* Set *@name to the name that a pair is to have, to be freed, if it may be opened; @any: no line names it. */
static int prepare_name(struct cowloop_ctx *ctx, const struct assembly *a, const struct cowtab_entry *e,
			const struct cow_device *any,
			char **name)
{
	const int r = any ? plugged_check_number(ctx, any->path) : mark_named(ctx, e->name);

	if (!r)
		*name = any ? plugged_name(&a->tab, any) : xasprintf("%s", e->name);
	return r;
}

/* The same file? One that is going to be made is known by its name only. */
static bool is_same(const char *a, const char *b)
{
	return !strcmp(a, b) || file_same_path(a, b);
}

/* Refuse a pair that could not be opened after those before it. */
static int check_planned(struct cowloop_ctx *ctx, const struct assembly *a, const struct planned *new)
{
	if (is_same(new->rdo, new->cow))
		return error(ctx, WRONG, "%s: %s cannot be the read-only device and the cowfile at the same time.",
			     new->name, new->cow);
	for (size_t i = 0; i < a->nr_planned; i++) {
		const struct planned *p = &a->planned[i];

		if (is_same(new->cow, p->cow))
			return error(ctx, BUSY, "%s: its cowfile, %s, is that of %s, too: it can be open once only.",
				     new->name, new->cow, p->name);
		if (is_same(new->cow, p->rdo))
			return error(ctx, BUSY, "%s: its cowfile, %s, is the read-only device of %s.", new->name,
				     new->cow, p->name);
		if (is_same(new->rdo, p->cow))
			return error(ctx, BUSY, "%s: its read-only device, %s, is the cowfile of %s.", new->name,
				     new->rdo, p->name);
	}
	return OK;
}

static void free_planned(struct planned *p)
{
	free(p->name);
	free(p->rdo);
	free(p->cow);
}

/* A dry run's part of opening a pair. */
static int plan(struct cowloop_ctx *ctx, struct assembly *a, const char *name, const char *rdo, const char *cow)
{
	struct planned new = { xasprintf("%s", name), xasprintf("%s", rdo), xasprintf("%s", cow) }, *grown;
	const int r = check_planned(ctx, a, &new);

	if (r) {
		free_planned(&new);
		return r;
	}
	grown = xrealloc(a->planned, (a->nr_planned + 1) * sizeof(*grown));
	a->planned = grown;
	grown[a->nr_planned++] = new;
	tell(ctx, "%s: %s %s", name, rdo, cow);
	return OK;
}

static void free_plan(struct assembly *a)
{
	for (size_t i = 0; i < a->nr_planned; i++)
		free_planned(&a->planned[i]);
	free(a->planned);
}

/* Open a pair that is complete; @any: no line names it, and a name is chosen. */
static int open_one(struct cowloop_ctx *ctx, struct assembly *a, const struct cowtab_entry *e,
		    const struct cow_device *any,
		    const char *rdo, const char *cow)
{
	char *active = NULL, *name = NULL, *device;
	int r = OK;

	a->nr++;
	if (a->dry_run)
		return plan(ctx, a, any ? COWTAB_ANY : e->name, rdo, cow);
	r = prepare(ctx, a);
	if (!r && !access(cow, F_OK))
		r = find_active(ctx, cow, &active);
	/* A line's device has to have its name: cowloop_open() says what is the matter. */
	if (!r && active && (any || !strcmp(active, e->name))) {
		verbose(ctx, "%s: open already.", active);
	} else if (!r) {
		r = prepare_name(ctx, a, e, any, &name);
		if (!r)
			r = cowloop_open(ctx, rdo, cow, name, &e->open, &device);
		if (!r) {
			device = xtext(device);
			printf("%s\n", device);
			free(device);
		}
		if (!r && e->monitor)
			monitor_opened(ctx, name);
		free(name);
	}
	free(active);
	return r;
}

/* A text that says which half of a pair is missing, to be freed. */
static char *missing_text(const struct assembly *a, const struct cowtab_entry *e, bool rdo, bool cow)
{
	if (e->rdo_silent || e->cow_silent)
		return xasprintf("%s: not opened: %s has not answered for %u seconds, as what is on a server that is gone; cowsetup assemble %s tries again (%s:%u).",
				 e->name, e->rdo_silent ? e->rdo : e->cow, PATIENCE, e->name, a->tab.path, e->line);
	return xasprintf("%s: not complete: there is no %s%s%s (%s:%u).", e->name, rdo ? "" : e->rdo,
			 rdo || cow ? "" : ", nor ", cow ? "" : e->cow, a->tab.path, e->line);
}

/* A line; @named: it was asked for, so that all that is missing is an error. */
static int assemble_entry(struct cowloop_ctx *ctx, struct assembly *a, const struct cowtab_entry *e, bool named)
{
	char *rdo = find_rdo(e), *cow = find_cow(a, e), *missing;
	int r = OK;

	/* A cowfile that is going to be made need not be there. */
	if (!cow && e->open.create && e->cow[0] == '/' && !e->cow_silent)
		cow = xasprintf("%s", e->cow);
	missing = missing_text(a, e, rdo, cow);
	if (rdo && cow && wanted(a, rdo, cow))
		r = open_one(ctx, a, e, NULL, rdo, cow);
	else if (named || (wanted(a, rdo, cow) && (e->rdo_silent || e->cow_silent)))
		r = error(ctx, WRONG, "%s", missing);
	else if (wanted(a, rdo, cow))
		verbose(ctx, "%s", missing);
	free(missing);
	free(rdo);
	free(cow);
	return r;
}

/* Why this pair is not opened by itself, or NULL; @found: for its rdo. */
static const char *refuse_plugged(const struct assembly *a, const struct cow_device *cow, const char *rdo,
				  const char *found)
{
	const char *why = plugged_refuse_cow(cow->path);

	for (size_t i = 0; i < a->nr_cows && !why && !found && rdo; i++)
		if (file_same_path(rdo, a->cows[i].path))
			why = "its read-only device has a cowfile";
	return why ? why : found;
}

/* A cow device that says where its rdo is, and is no line's. */
static int assemble_cow(struct cowloop_ctx *ctx, struct assembly *a, const struct cow_device *cow)
{
	char *spec = head_rdo_spec(&cow->head, cow->format), *rdo = NULL;
	const char *why = NULL;
	int r = OK;

	if (*spec)
		rdo = plugged_find_rdo(spec, &why);
	if (!*spec || !wanted(a, rdo, cow->path)) {
		;
	} else if (!a->any) {
		verbose(ctx, "%s: belongs to %s, and is not opened, since no line of %s says so; see cowtab(5).",
			cow->path, spec, a->tab.path);
	} else {
		why = refuse_plugged(a, cow, rdo, why);
		if (why)
			warn(ctx, "%s: not opened, since no line of %s names it, and %s (its read-only device: %s).",
			     cow->path, a->tab.path, why, spec);
		else if (!rdo)
			verbose(ctx, "%s: not complete: there is no %s.", cow->path, spec);
		else
			r = open_one(ctx, a, a->any, cow, rdo, cow->path);
	}
	free(spec);
	free(rdo);
	return r;
}

/* Is it the cow of a line? Then that line, noauto and all, says what becomes of it. */
static bool has_entry(const struct assembly *a, const struct cow_device *cow)
{
	bool found = false;
	char *path;

	for (size_t i = 0; i < a->tab.nr && !found; i++) {
		path = find_cow(a, &a->tab.entries[i]);
		found = path && file_same_path(path, cow->path);
		free(path);
	}
	return found;
}

/* All go on when one fails; the exit code is that of the first. */
static int assemble_all(struct cowloop_ctx *ctx, struct assembly *a)
{
	const struct cowtab_entry *e;
	int r = OK, one;

	find_silent(ctx, a->tab.entries, a->tab.nr);
	for (size_t i = 0; i < a->tab.nr && !is_cancelled(ctx); i++) {
		e = &a->tab.entries[i];
		if (!strcmp(e->name, COWTAB_ANY))
			continue;
		if (e->noauto) {
			if (!a->device)
				verbose(ctx, "%s: noauto: not opened but by its name (%s:%u).", e->name, a->tab.path,
					e->line);
			continue;
		}
		one = assemble_entry(ctx, a, e, false);
		if (!r)
			r = one;
	}
	for (size_t i = 0; i < a->nr_cows && !is_cancelled(ctx); i++) {
		if (has_entry(a, &a->cows[i]))
			continue;
		one = assemble_cow(ctx, a, &a->cows[i]);
		if (!r)
			r = one;
	}
	return r;
}

static int assemble_named(struct cowloop_ctx *ctx, struct assembly *a, const char *name)
{
	const struct cowtab_entry *e = cowtab_find(&a->tab, name);

	if (!e || !strcmp(name, COWTAB_ANY))
		return error(ctx, WRONG, "%s: %s has no line for a device of this name that is right; cowsetup assemble --all --dry-run shows those that are not.",
			     name, a->tab.path);
	find_silent(ctx, &a->tab.entries[e - a->tab.entries], 1);
	return assemble_entry(ctx, a, e, true);
}

/* ---- The whole ---- */

int boot_assemble(struct cowloop_ctx *ctx, const char *what, const char *cowtab, bool dry_run)
{
	const char *name = what && !strchr(what, '/') ? what : NULL;
	struct assembly a = { .dry_run = dry_run, .device = name ? NULL : what };
	int r, bad_lines;

	if (what && !name && access(what, F_OK))
		return error_errno(ctx, "%s", what);
	/* The generator has told of lines that are wrong, and without @what this does: not again for each device. */
	bad_lines = cowtab_read(ctx, &a.tab, cowtab, what);
	a.any = cowtab_find(&a.tab, COWTAB_ANY);
	if (a.any && a.any->noauto)
		a.any = NULL;
	r = find_cow_devices(ctx, &a.cows, &a.nr_cows);
	if (!r)
		r = name ? assemble_named(ctx, &a, name) : assemble_all(ctx, &a);
	if (!r && !name && !a.nr)
		verbose(ctx, "There is no pair to be opened.");
	free_plan(&a);
	free_cow_devices(a.cows, a.nr_cows);
	cowtab_free(&a.tab);
	return r || what ? r : bad_lines;
}
