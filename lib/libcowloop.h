/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: cowfiles, and the devices made of them.
 *
 * Functions that can fail return one of enum cowloop_code. Sizes are bytes unless
 * something else is said.
 */

#ifndef LIBCOWLOOP_H
#define LIBCOWLOOP_H

#include <stdbool.h>

#include <linux/types.h>

/* As the exit codes of cryptsetup, integritysetup and veritysetup. */
enum cowloop_code {
	COWLOOP_OK = 0,
	COWLOOP_USAGE = 1,	/* wrong arguments; cancelled, or not confirmed */
	COWLOOP_DENIED = 2,	/* no permission */
	COWLOOP_NO_MEMORY = 3,
	COWLOOP_WRONG = 4,	/* wrong device or cowfile, and I/O errors */
	COWLOOP_BUSY = 5,	/* exists already, or is in use */
};

/* ---- The context ---- */

enum cowloop_level {
	COWLOOP_LOG_ERROR,	/* why a function has failed */
	COWLOOP_LOG_WARNING,
	COWLOOP_LOG_RESULT,	/* what it has come to, "mine.cow: merged: ..." */
	COWLOOP_LOG_VERBOSE,	/* what is done */
};

enum cowloop_stage {
	COWLOOP_STARTED,
	COWLOOP_GOING,
	COWLOOP_FINISHED,
	COWLOOP_GIVEN_UP,
};

/* How far a piece of work has got; a function may have several. */
struct cowloop_progress {
	const char *path;	/* of the file or device */
	const char *done_word;	/* the bytes were "written", "read"... */
	__u64 done, total;
	enum cowloop_stage stage;
};

/*
 * What a function calls while it works, in the thread of its caller; each may be NULL.
 * @data is that of the context. Texts are one line, without a newline; names in them may
 * be anything, control characters included. They are gone when the callback returns.
 */
struct cowloop_callbacks {
	void (*log)(void *data, enum cowloop_level level, const char *text);
	void (*progress)(void *data, const struct cowloop_progress *p);
	/* To be ended? Asked now and then; the function gives up as soon as it can then. */
	bool (*cancelled)(void *data);
	/* May it do what cannot be undone? NULL: it may. */
	bool (*confirm)(void *data, const char *question);
};

struct cowloop_ctx;

/* A context, of which one thread at a time makes use; NULL: there is no memory. */
struct cowloop_ctx *cowloop_ctx_new(const struct cowloop_callbacks *call, void *data);
void cowloop_ctx_free(struct cowloop_ctx *ctx);

enum cowloop_compress {
	COWLOOP_COMPRESS_NONE,
	COWLOOP_COMPRESS_GZIP,
	COWLOOP_COMPRESS_ZSTD,
	COWLOOP_COMPRESS_COWPACK,	/* what the original's cowpack -z writes: gzip, and no gaps */
};

enum cowloop_state {
	COWLOOP_CLEAN,
	COWLOOP_DIRTY,		/* in use now, or when the machine crashed */
	COWLOOP_PACKED,
	COWLOOP_MERGING,	/* a merge was interrupted */
	COWLOOP_MERGED,		/* the same, with the emptying of the cowfile left to do */
};

/* ---- What functions are to do. All zeroes is the default. ---- */

/* A new cowfile. */
struct cowloop_new {
	unsigned int format;	/* 1 or 2; 0: 2 */
	unsigned int mapunit;	/* the unit of change, a power of two from 4096 to 1 MiB, format 1: 1024; 0: the default */
	const char *label;	/* NULL: none */
	const char *rdo_spec;	/* where to find the read-only device: UUID=, a path...; NULL: not noted */
	bool force;		/* overwrite what is there, and use what others own or may write */
};

struct cowloop_repair {
	bool dry_run;		/* only say what would be done */
	bool force;		/* mend what can only be guessed */
};

struct cowloop_pack {
	enum cowloop_compress compress;
	bool force;		/* overwrite what is there */
};

struct cowloop_unpack {
	__u64 max_size;		/* write no more; 0: any */
	bool force;		/* overwrite what is there, and use what others own or may write */
};

/* A device that is opened. */
struct cowloop_open {
	struct cowloop_new new;	/* of a missing or blank cowfile; of one that is there, format and mapunit must agree */
	bool create;		/* make a cowfile of one that is missing or blank */
	bool read_only;		/* write nothing to the cowfile */
	bool repair;		/* one of format 1 that was in use in a crash */
	bool queue;		/* writes that find no space wait for it */
	bool no_passdown;	/* keep the space of what is discarded */
	__u64 limit;		/* of what is written into the cowfile; 0: none */
	__u64 reserve;		/* of the limit: for filesystems' own blocks */
	__u64 low_water;	/* raise an event when so little of the limit is left */
};

struct cowloop_close {
	bool deferred;		/* when the last user has gone */
	bool force;		/* what cannot be synced, too, and what would be lost */
};

/* ---- Cowfiles ---- */

/* What cowloop_check() tells while it reads. */
struct cowloop_findings {
	/* @id is one word, for programs; @text is for people, and without the name of the file. */
	void (*fault)(void *data, const char *id, const char *text);
	/* Something unusual that is not wrong. */
	void (*note)(void *data, const char *text);
	void *data;
};

/* What it has found in all. */
struct cowloop_check {
	unsigned int format;		/* 0: not a cowfile; then only what follows nr_faults is known */
	enum cowloop_state state;
	unsigned int mapunit;
	__u64 units_used, units;
	__u64 nr_faults;
	bool repairable;		/* cowloop_repair() can do something about them, forced if need be */
};

/*
 * Read all of a cowfile, and its read-only device too unless @rdo is NULL; change
 * nothing. COWLOOP_OK: it could be read to the end, faults or not.
 */
int cowloop_check(struct cowloop_ctx *ctx, const char *cow, const char *rdo, const struct cowloop_findings *to,
		  struct cowloop_check *result);

/* Pack a cowfile into the file @to, "-": stdout. */
int cowloop_pack(struct cowloop_ctx *ctx, const char *cow, const char *to, const struct cowloop_pack *how);

/* Make a cowfile of a packed one; @from "-": stdin. */
int cowloop_unpack(struct cowloop_ctx *ctx, const char *from, const char *cow, const struct cowloop_unpack *how);

/* Write all that is in a cowfile into its read-only device, and empty the cowfile. */
int cowloop_merge(struct cowloop_ctx *ctx, const char *rdo, const char *cow);

/* Make a cowfile of format 2 of one of format 1; @new NULL: in its place. */
int cowloop_upgrade(struct cowloop_ctx *ctx, const char *cow, const char *rdo, const char *new_path,
		    const struct cowloop_new *how);

/* Mend a cowfile, and tell what was done. COWLOOP_WRONG: something is left. */
int cowloop_repair(struct cowloop_ctx *ctx, const char *cow, const struct cowloop_repair *how);

/* ---- Devices ---- */

/*
 * Make a writable device of a read-only one and a cowfile. @name NULL: one that
 * follows from @cow. *@device is its path, to be freed; NULL: there is no memory for it.
 */
int cowloop_open(struct cowloop_ctx *ctx, const char *rdo, const char *cow, const char *name,
		 const struct cowloop_open *how, char **device);

/* Remove a device, with all that was written to it made durable. */
int cowloop_close(struct cowloop_ctx *ctx, const char *name, const struct cowloop_close *how);

/* The same for all devices of which a part has gone, as soon as nobody uses them. */
int cowloop_close_gone(struct cowloop_ctx *ctx, bool force);

/* Have a device make durable what was written to it. */
int cowloop_sync(struct cowloop_ctx *ctx, const char *name);

/* Have a device take no more writes, so that what holds the cowfile can be remounted read-only. */
int cowloop_readonly(struct cowloop_ctx *ctx, const char *name, bool force);

/* Have a device let go of its cowfile, so that what holds it can be unmounted. */
int cowloop_detach(struct cowloop_ctx *ctx, const char *name, bool force);

/* Have dmeventd warn when a device gets full, or no more. */
int cowloop_monitor(struct cowloop_ctx *ctx, const char *name, bool on);

#endif /* LIBCOWLOOP_H */
