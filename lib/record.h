/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: the record of a merge, by which a merge that was interrupted knows
 * its read-only device again. See merge.c.
 */

#ifndef LIBCOWLOOP_RECORD_H
#define LIBCOWLOOP_RECORD_H

#include "cowfile.h"

enum record_state {
	RECORD_NONE,		/* zeroes */
	RECORD_VALID,
	RECORD_DAMAGED,		/* or of another merge, or something else */
};

const char *record_state_text(enum record_state state);

/* Read what is in the place of the record. */
int record_read(struct cowloop_ctx *ctx, const struct cowfile *c, struct cow_merge_record *record,
		enum record_state *state);

/* Does it begin like a record, whatever follows? */
bool record_has_magic(const struct cow_merge_record *record);

/* Write the record of @rdo as it is now; the head's fingerprint is the masked one already. */
int record_write(struct cowloop_ctx *ctx, const struct cowfile *c, const struct file *rdo);

/* Make zeroes of it. */
int record_remove(struct cowloop_ctx *ctx, const struct cowfile *c);

/*
 * Compare @rdo with a valid record: *@same is false if a sector of it is neither
 * as it was nor as the cowfile has it, and *@sector is then its number.
 */
int record_compare(struct cowloop_ctx *ctx, const struct cowfile *c, const struct file *rdo,
		   const struct cow_merge_record *record, bool *same, u64 *sector);

#endif /* LIBCOWLOOP_RECORD_H */
