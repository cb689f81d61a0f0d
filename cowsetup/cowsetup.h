/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cowsetup: what all of its parts share. The exit codes, the options, messages,
 * sizes as people write them, and the commands.
 *
 * Functions that can fail return one of the exit codes, and have said why by
 * then: error() prints a message and returns its first argument, so that
 * `return error(WRONG, ...)' is all there is to giving up.
 */

#ifndef COWSETUP_H
#define COWSETUP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <linux/types.h>

#include "../lib/libcowloop.h"

typedef __u8 u8;
typedef __u32 u32;
typedef __u64 u64;

static inline u64 min_u64(u64 a, u64 b)
{
	return a < b ? a : b;
}

/* What is returned. */
enum exit_code {
	OK = COWLOOP_OK,
	USAGE = COWLOOP_USAGE,
	DENIED = COWLOOP_DENIED,
	NO_MEMORY = COWLOOP_NO_MEMORY,
	WRONG = COWLOOP_WRONG,
	BUSY = COWLOOP_BUSY,
};

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

/* ---- Messages (report.c) ---- */

/* All go to stderr, as "cowsetup: ...", one line each. */
int error(enum exit_code code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void verbose(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* A line on stdout, with a newline behind it; controls in it are made visible, as in all messages. */
void tell(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* The message, ": " and what errno says; returns the exit code for errno. */
int error_errno(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Never return NULL: they print a message and exit instead. */
void *xmalloc(size_t size);
char *xasprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/*
 * Ask for a YES in capitals. Returns OK at once in batch mode, USAGE when the
 * answer is another one.
 */
int confirm(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Set by SIGINT and SIGTERM, which otherwise do nothing but end system calls. */
extern volatile int interrupted;

/* ---- Sizes ---- */

/* "4096", "64K", "1.5G"; false when it is not a size or too large. */
bool parse_size(const char *text, u64 *size);

/* "1.5 GiB"; the buffer is one of a few that are used in turn. */
const char *size_text(u64 size);

/* "12.3%", likewise. */
const char *percent_text(u64 part, u64 whole);

/* ---- Commands ---- */

int cmd_format(int argc, char **argv);
int cmd_dump(int argc, char **argv);
int cmd_probe(int argc, char **argv);
int cmd_generate(int argc, char **argv);
int cmd_map(int argc, char **argv);
int cmd_check(int argc, char **argv);
int cmd_repair(int argc, char **argv);
int cmd_pack(int argc, char **argv);
int cmd_unpack(int argc, char **argv);
int cmd_merge(int argc, char **argv);
int cmd_upgrade(int argc, char **argv);

int cmd_open(int argc, char **argv);
int cmd_assemble(int argc, char **argv);
int cmd_close(int argc, char **argv);
int cmd_list(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_sync(int argc, char **argv);
int cmd_watch(int argc, char **argv);
int cmd_monitor(int argc, char **argv);
int cmd_readonly(int argc, char **argv);
int cmd_detach(int argc, char **argv);

#endif /* COWSETUP_H */
