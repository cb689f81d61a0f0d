/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: device-mapper. Cowloop devices as the kernel has them: made,
 * reloaded, removed, asked and told. All that knows of libdevmapper.
 */

#ifndef LIBCOWLOOP_DM_H
#define LIBCOWLOOP_DM_H

#include "context.h"

#include <sys/types.h>

/* Where the nodes are. */
#define DM_NODES		"/dev/mapper"

/* The target's name in the kernel. */
#define DM_TARGET		"cowloop"

#define DM_MAX_COUNTERS	32	/* those that come after these are not kept */

enum dm_mode {
	DM_MODE_RW = COWLOOP_MODE_RW,
	DM_MODE_RO = COWLOOP_MODE_RO,
	DM_MODE_CLOSED = COWLOOP_MODE_CLOSED,
	DM_MODE_OUT_OF_SPACE = COWLOOP_MODE_OUT_OF_SPACE,
	DM_MODE_FAIL = COWLOOP_MODE_FAIL,
	DM_MODE_UNKNOWN = COWLOOP_MODE_UNKNOWN,	/* a newer module's */
};

/* The target's counters. */
struct dm_counter {
	char name[32];
	u64 value;
};

/* An active cowloop device: its table line and its status line, taken apart. */
struct dm_device {
	char name[128];		/* as people write it */
	char uuid[132];
	dev_t dev;
	u32 event_nr;
	int open_count;
	bool suspended;
	bool read_only;		/* as a block device */
	bool deferred_remove;

	/* table */
	u64 start, sectors;	/* of the target */
	dev_t rdo, cow;		/* 0: it has let go of it */
	char options[256];	/* the optional parameters, without their number */
	u64 reserve;		/* units of the limit that are not for data */

	/* status */
	unsigned int format;
	unsigned int mapunit;
	u64 used, total, limit, low_water;	/* units */
	bool dirty;
	enum dm_mode mode;
	char mode_word[32];
	unsigned int nr_counters;
	struct dm_counter counters[DM_MAX_COUNTERS];
};

/* ---- device.c ---- */

/* Reasons why a device cannot be read, besides errnos. */
enum {
	DM_NOT_COWLOOP = COWLOOP_NOT_COWLOOP,
	DM_NO_TABLE = COWLOOP_NO_TABLE,
};

/* Ask the kernel for a device. Returns 0, an errno, or one of these. */
int dm_read(const char *name, struct dm_device *d);

/* Has it a cow device? With mode closed, its number may be somebody else's by now. */
bool dm_has_cow(const struct dm_device *d);

/* A UUID that cowsetup open gives a device begins so; the cowfile's follows, without hyphens, and the name. */
#define DM_UUID_PREFIX		"COWLOOP-"

#define DM_COW_UUID_SIZE	37

/*
 * The UUID of the cowfile, with which the device was opened: it is not read from
 * there, which might take for ever. False: format 1 has none, and neither is it
 * known of a device that cowsetup has not opened.
 */
bool dm_cow_uuid(const struct dm_device *d, char uuid[DM_COW_UUID_SIZE]);

/* Has the table the option @word, one that has no value? */
bool dm_has_option(const struct dm_device *d, const char *word);

/* ---- dm.c ---- */

/* Why the command can't work at all: not root, no device-mapper, no module. */
int dm_check_kernel(struct cowloop_ctx *ctx);

/* The version of the target, a text to be freed; NULL if it isn't loaded, and it stays so. */
char *dm_loaded_version(struct cowloop_ctx *ctx);

/* Is the target that is loaded of this version, or newer? */
bool dm_target_has(unsigned int major_nr, unsigned int minor_nr, unsigned int patch);

/* A name that device-mapper takes? Prints why not. */
int dm_check_name(struct cowloop_ctx *ctx, const char *name);

bool dm_name_exists(const char *name);

/* Refuse a name that a device has, and say what is to be done about it. */
int dm_refuse_name(struct cowloop_ctx *ctx, const char *name);

/* A cowloop device by its name, or /dev/mapper/ and its name. */
int dm_find(struct cowloop_ctx *ctx, const char *name, struct dm_device *d);

/* The same, without a word when there is none; -1 then. */
int dm_look(const char *name, struct dm_device *d);

/* All of them, in an array to be freed. */
int dm_list(struct cowloop_ctx *ctx, struct dm_device **devices, size_t *nr);

/* Can a block device, or one that it is made of, run out of space for what is written? */
bool dm_is_thin(dev_t dev);

/*
 * The part of a table line behind "cowloop"; @options is a list of words or
 * empty. To be freed; NULL: no memory.
 */
char *dm_params(dev_t rdo, dev_t cow, const char *options);

/*
 * Make a device; when it can't be done there is none, unless *@left: somebody
 * has it open already, and so it can't be removed again. An error is printed by
 * the caller, who knows what may be the matter: an errno is returned, or 0.
 * *@dev is its number, for dm_log_last(), even if it is gone.
 */
int dm_create(struct cowloop_ctx *ctx, const char *name, const char *uuid, u64 sectors, const char *params,
	      bool read_only,
	      dev_t *dev, bool *left);

/* Give a device another table, and switch over to it; likewise. */
int dm_replace(struct cowloop_ctx *ctx, const struct dm_device *d, const char *params, bool read_only);

/* Remove a device. Returns 0 or an errno. */
int dm_remove(struct cowloop_ctx *ctx, const struct dm_device *d, bool deferred);

/* Send a message to a device. Returns 0 or an errno. */
int dm_message(const struct dm_device *d, const char *message);

/* Open something that becomes readable with the next event of any dm device. */
int dm_open_events(struct cowloop_ctx *ctx);

/* The library's first error since dm_error_mark(), in its own words. */
void dm_error_mark(struct cowloop_ctx *ctx);
const char *dm_error_first(struct cowloop_ctx *ctx);

/*
 * The last line of the kernel's log about a cowloop device since dm_log_mark(): a
 * text to be freed, or NULL.
 */
void dm_log_mark(struct cowloop_ctx *ctx);
char *dm_log_last(struct cowloop_ctx *ctx, dev_t dev);

#endif /* LIBCOWLOOP_DM_H */
