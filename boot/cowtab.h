/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cowsetup: /etc/cowtab, the table of the pairs that are opened by themselves;
 * see cowtab(5).
 */

#ifndef COWSETUP_COWTAB_H
#define COWSETUP_COWTAB_H

#include "../lib/share.h"

#define COWTAB		"/etc/cowtab"

/* The names of devices that a line, or the kernel's command line, names: a file for each, for udev's rules. */
#define COWSETUP_NAMED	COWSETUP_RUN "/named"

/* The name in the line for all the cow devices that say where their rdo is. */
#define COWTAB_ANY	"*"

struct cowtab_entry {
	unsigned int line;
	char *name;
	char *rdo, *cow;	/* a path, or UUID= and the like */
	bool noauto;		/* opened only when asked for by name */
	bool rdo_silent, cow_silent;	/* for assemble: a path that does not answer */
	char *options;		/* all of them, as they are there */
	bool monitor;
	struct cowloop_open open;	/* how it is opened */
};

struct cowtab {
	const char *path;
	bool quiet;		/* say nothing of lines that are wrong */
	struct cowtab_entry *entries;
	size_t nr;
};

/*
 * Read a table; there need not be one. What is wrong with a line is printed,
 * and the line left out: the exit code is WRONG then, and the others are there.
 */
int cowtab_read(struct cowloop_ctx *ctx, struct cowtab *tab, const char *path, bool quiet);

void cowtab_free(struct cowtab *tab);

const struct cowtab_entry *cowtab_find(const struct cowtab *tab, const char *name);

/* Make an empty file, which is a mark for udev's rules, in @dir, which is made if it is missing. */
int cowtab_mark(struct cowloop_ctx *ctx, const char *dir, const char *name);

#endif /* COWSETUP_COWTAB_H */
