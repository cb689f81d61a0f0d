/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: cowfiles, and the devices made of them.
 *
 * Nothing here prints, exits, or reads options or the environment (but TMPDIR and
 * SUDO_UID). Functions that can fail return one of enum cowloop_code, and have said why by
 * way of their context by then, in texts that are written for users of cowsetup(8) and
 * name its options. Sizes are in bytes, unless something else is said. Paths are of files
 * or block devices. What is to be freed is freed by free().
 *
 * Functions take as long as what they do: cowloop_callbacks has a way to end them early.
 * Those about devices take root. While they work they may fork, change what SIGIO does,
 * and set libdevmapper's log function, all of which are the whole process's: a program
 * with threads has one of them call these.
 *
 * Structures are to be all zeroes but for what is wanted. They may get more members, and
 * then the library gets another soname.
 */

#ifndef LIBCOWLOOP_H
#define LIBCOWLOOP_H

#include <stdbool.h>
#include <stddef.h>

#include <linux/types.h>

#ifdef __cplusplus
extern "C" {
#endif

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
	COWLOOP_STOPPED,	/* before the end: given up, or the rest was not needed */
};

/* How far a piece of work has got; a function may have several, one after the other. */
struct cowloop_progress {
	const char *path;	/* of the file or device */
	const char *done_word;	/* the bytes were "written", "read"... */
	__u64 done, total;
	enum cowloop_stage stage;
};

/*
 * What a function calls while it works, in the thread of its caller; each may be NULL.
 * @data is that of the context. Texts are one line, without a newline; names in them may
 * be anything, control characters included: cowloop_text_visible() is for that. They are
 * gone when the callback returns, and so is @p.
 */
struct cowloop_callbacks {
	void (*log)(void *data, enum cowloop_level level, const char *text);
	void (*progress)(void *data, const struct cowloop_progress *p);
	/* Is it to end? Asked now and then; the function gives up as soon as it can then. */
	bool (*cancelled)(void *data);
	/* May it do what cannot be undone? NULL: it may. */
	bool (*confirm)(void *data, const char *question);
};

struct cowloop_ctx;

/*
 * A context, which one thread at a time makes use of; NULL: there is no memory. @call is
 * copied and may be NULL. A program may have several.
 */
struct cowloop_ctx *cowloop_ctx_new(const struct cowloop_callbacks *call, void *data);

/* @ctx may be NULL. */
void cowloop_ctx_free(struct cowloop_ctx *ctx);

/* ---- Cowfiles ---- */

enum cowloop_state {
	COWLOOP_CLEAN,
	COWLOOP_DIRTY,		/* in use now, or when the machine crashed */
	COWLOOP_PACKED,
	COWLOOP_MERGING,	/* a merge was interrupted */
	COWLOOP_MERGED,		/* the same, with the emptying of the cowfile left to do */
};

/* "clean", "dirty"...: one word, for programs. */
const char *cowloop_state_text(enum cowloop_state state);

/* A new cowfile. */
struct cowloop_new {
	unsigned int format;	/* 1 or 2; 0: 2 */
	/* The unit of change: a power of two from 4096 to 1 MiB; format 1: 1024. 0: the smallest. */
	unsigned int mapunit;
	const char *label;	/* UTF-8, shorter than 64 bytes; NULL: none */
	const char *rdo_spec;	/* where to find the read-only device: UUID=, a path...; NULL: not noted */
	bool force;		/* overwrite what is there, and use what others own or may write */
};

/*
 * Make a new, empty cowfile for a read-only device. A file that is missing is created,
 * and not left behind if that fails.
 */
int cowloop_format(struct cowloop_ctx *ctx, const char *rdo, const char *cow, const struct cowloop_new *how);

/* The head of a cowfile. */
struct cowloop_info {
	unsigned int format;
	enum cowloop_state state;
	unsigned int mapunit;
	__u64 device_bytes;
	__u64 units, units_used;	/* dirty: units_used is what it was once */
	char uuid[37];			/* format 1: empty, as the texts */
	char label[65], rdo_spec[257];
};

/* Read the head of a cowfile, of any state, and check it. */
int cowloop_info(struct cowloop_ctx *ctx, const char *cow, struct cowloop_info *info);

/* Callbacks of cowloop_check(), for all that it finds; @data is that of this struct. Both are needed. */
struct cowloop_findings {
	/* @id is one word, for programs; @text is for people, and without the name of the file. */
	void (*fault)(void *data, const char *id, const char *text);
	/* Something unusual that is not wrong. */
	void (*note)(void *data, const char *text);
	void *data;
};

/* The result of cowloop_check(). */
struct cowloop_check {
	unsigned int format;		/* 0: not a cowfile: nothing is known but nr_faults */
	enum cowloop_state state;
	unsigned int mapunit;
	__u64 units, units_used;
	__u64 nr_faults;
	bool repairable;		/* cowloop_repair() can do something about them, forced if need be */
};

/*
 * Read all of a cowfile, and its read-only device too unless @rdo is NULL; nothing is
 * changed. COWLOOP_OK: it could be read to the end, faults or not, and *@result is set.
 */
int cowloop_check(struct cowloop_ctx *ctx, const char *cow, const char *rdo, const struct cowloop_findings *to,
		  struct cowloop_check *result);

struct cowloop_repair {
	bool dry_run;		/* only say what would be done */
	bool force;		/* mend what can only be guessed */
};

/* Mend a cowfile; each thing that is mended is a result. COWLOOP_WRONG: something is left that is not. */
int cowloop_repair(struct cowloop_ctx *ctx, const char *cow, const struct cowloop_repair *how);

enum cowloop_compress {
	COWLOOP_COMPRESS_NONE,
	COWLOOP_COMPRESS_GZIP,
	COWLOOP_COMPRESS_ZSTD,
	COWLOOP_COMPRESS_COWPACK,	/* what the original's cowpack -z writes: gzip, and no gaps; format 1 only */
};

struct cowloop_pack {
	enum cowloop_compress compress;
	bool force;		/* overwrite what is there */
};

/* Pack a cowfile into the file @to, "-": stdout. A file gets its name when it is complete. */
int cowloop_pack(struct cowloop_ctx *ctx, const char *cow, const char *to, const struct cowloop_pack *how);

struct cowloop_unpack {
	__u64 max_size;		/* write no more than this; 0: any amount */
	bool force;		/* overwrite what is there, and use what others own or may write */
};

/* Make a cowfile of a packed one; @from "-": stdin. */
int cowloop_unpack(struct cowloop_ctx *ctx, const char *from, const char *cow, const struct cowloop_unpack *how);

/*
 * Write all that is in a cowfile into its read-only device, and empty the cowfile. There
 * is no way back: it is asked about by the callback confirm. One that was ended early is
 * completed by the next call.
 */
int cowloop_merge(struct cowloop_ctx *ctx, const char *rdo, const char *cow);

/* Make a cowfile of format 2 of one of format 1, at @to; NULL: in its place. Of @how, format does not count. */
int cowloop_upgrade(struct cowloop_ctx *ctx, const char *cow, const char *rdo, const char *to,
		    const struct cowloop_new *how);

/* ---- Devices ---- */

/* Whether what is read of an image, a file, is kept in the page cache, for all devices over it. */
enum cowloop_cache {
	COWLOOP_CACHE_AUTO,	/* as soon as there is more than one */
	COWLOOP_CACHE_ALWAYS,
	COWLOOP_CACHE_NEVER,
};

struct cowloop_open {
	/* Of a missing or blank cowfile; with one that is there, format and mapunit must agree. */
	struct cowloop_new new;
	bool create;		/* make a cowfile of one that is missing or blank */
	bool read_only;		/* write nothing to the cowfile */
	bool repair;		/* one of format 1 that was in use in a crash */
	bool queue;		/* writes that find no space wait for it */
	bool no_passdown;	/* keep the space of what is discarded */
	__u64 limit;		/* of what is written into the cowfile; 0: none */
	__u64 reserve;		/* of the limit: for filesystems' own blocks */
	__u64 low_water;	/* raise an event when so little of the limit is left */
	enum cowloop_cache rdo_cache;
};

/*
 * Make a writable device of a read-only one and a cowfile. @name NULL: one that follows
 * from @cow. *@device is set to its path, to be freed; NULL: there is no memory for it.
 * After a failure, or when it is cancelled, everything is as it was, but for what
 * how->repair has done.
 */
int cowloop_open(struct cowloop_ctx *ctx, const char *rdo, const char *cow, const char *name,
		 const struct cowloop_open *how, char **device);

struct cowloop_close {
	bool deferred;		/* when the last user has gone */
	bool force;		/* what cannot be synced, too, and what would be lost */
};

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

/* ---- How a device is ---- */

/* The state of a device at one moment. Threads may use these functions at the same time. */
struct cowloop_device;

enum cowloop_mode {
	COWLOOP_MODE_RW,
	COWLOOP_MODE_RO,
	COWLOOP_MODE_CLOSED,		/* it has let go of its cowfile */
	COWLOOP_MODE_OUT_OF_SPACE,
	COWLOOP_MODE_FAIL,
	COWLOOP_MODE_UNKNOWN,		/* a newer module's */
};

/* Why there is none, besides errnos. */
enum {
	COWLOOP_NOT_COWLOOP = -1,	/* a device of another kind */
	COWLOOP_NO_TABLE = -2,		/* one that is being made */
};

/*
 * Ask the kernel for a device. Returns 0, an errno, or one of these, without a word; but
 * what libdevmapper has to say goes to the log function that the program has given it.
 */
int cowloop_device_look(const char *name, struct cowloop_device **device);
void cowloop_device_free(struct cowloop_device *d);

/* Texts live as long as the device does. */
const char *cowloop_device_name(const struct cowloop_device *d);
enum cowloop_mode cowloop_device_mode(const struct cowloop_device *d);
const char *cowloop_device_mode_word(const struct cowloop_device *d);
__u64 cowloop_device_bytes(const struct cowloop_device *d);

/* The units in the cowfile, and those there are; *@mapunit is what each has in bytes. Each may be NULL. */
void cowloop_device_units(const struct cowloop_device *d, __u64 *used, __u64 *total, unsigned int *mapunit);

/* How much can still be written into the cowfile. */
struct cowloop_space {
	__u64 free, total;
	const char *of;		/* what sets this bound: "limit", "device" or "filesystem"; NULL: nothing is known */
};

/* Looks at the filesystem of the cowfile as it is now. */
void cowloop_device_space(const struct cowloop_device *d, struct cowloop_space *s);

/*
 * What to do about the mode it is in: a text for people, with commands, to be freed.
 * NULL: nothing needs to be done, or there is no memory.
 */
char *cowloop_device_advice(const struct cowloop_device *d);

/* How to get more space; NULL: there is no memory. */
char *cowloop_device_space_advice(const struct cowloop_device *d);

/* ---- Texts ---- */

/* "1.5 GiB", "12.3%"; the buffer is one of eight that each thread uses in turn. */
const char *cowloop_size_text(__u64 size);
const char *cowloop_percent_text(__u64 part, __u64 whole);

/*
 * A text with \x1b for what is no character that can be seen, a newline among them, to
 * be freed; NULL: no memory.
 */
char *cowloop_text_visible(const char *text);

#ifdef __cplusplus
}
#endif

#endif /* LIBCOWLOOP_H */
