/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: the parts of making a new cowfile, in newcow.c, for all the
 * commands that do so.
 */

#ifndef LIBCOWLOOP_NEWCOW_H
#define LIBCOWLOOP_NEWCOW_H

#include "cowfile.h"
#include "newfile.h"

/*
 * Make a new, empty cowfile at @path for a read-only device: all that the
 * format command does. A file that is missing is created, and not left behind
 * if it can't be done. @how is for refuse_overwrite(). @made is the file, open for
 * ourselves alone all the time, to be closed by the caller; NULL: it is not needed.
 * With it nothing is overwritten, forced or not, and whoever asks has seen that
 * nobody writes the read-only device.
 */
int cow_make(struct cowloop_ctx *ctx, const char *rdo_path, const char *path, const struct cowloop_new *new,
	     const char *how,
	     struct file *made);

/* Do label, rdo_spec and mapunit go with a format? */
int check_new_options(struct cowloop_ctx *ctx, const struct cowloop_new *new, unsigned int format);

/* Put label and rdo_spec into a new head. */
void set_new_names(struct cow_head *head, const struct cowloop_new *new);

/* Open a read-only device for which there is no cowfile yet. */
int open_plain_rdo(struct cowloop_ctx *ctx, struct file *rdo, const char *path);

/* The geometry of a new cowfile; @mapunit 0: the default. */
int choose_geometry(struct cowloop_ctx *ctx, const struct file *rdo, unsigned int format, unsigned int mapunit,
		    struct cow_geometry *geo);

/*
 * Unless forced: refuse if it holds anything that somebody may miss. @how is
 * what to type to overwrite it, --force if the command has that.
 */
int refuse_overwrite(struct cowloop_ctx *ctx, const struct file *f, const char *how, bool force);

/* Unless forced: refuse it as refuse_overwrite() does. @file_flags: FILE_READ or FILE_WRITE: who may replace it. */
int replaced_open(struct cowloop_ctx *ctx, struct replaced *old, const char *path, unsigned int file_flags, bool force);

/* Make it blank and, a file, as long as it has to be. */
int blank_cow(struct cowloop_ctx *ctx, struct file *f, const struct cow_geometry *geo);

#endif /* LIBCOWLOOP_NEWCOW_H */
