// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: what other programs ask about cowfiles, by what the library has.
 */

#include <string.h>

#include <uuid/uuid.h>

#include "cowfile.h"
#include "newcow.h"

const char *cowloop_state_text(enum cowloop_state state)
{
	return cow_state_text((enum cow_state)state);
}

int cowloop_format(struct cowloop_ctx *ctx, const char *rdo, const char *cow, const struct cowloop_new *how)
{
	return cow_make(ctx, rdo, cow, how, "--force", NULL);
}

/* A text from the head: NUL-padded, and possibly anything. */
static void head_text(char *to, const u8 *from, size_t size)
{
	memcpy(to, from, size);
	to[size] = 0;
}

int cowloop_info(struct cowloop_ctx *ctx, const char *cow, struct cowloop_info *info)
{
	struct cowfile c;
	int r = cow_open(ctx, &c, cow, FILE_READ, COW_ACCEPT_DIRTY | COW_ACCEPT_PACKED | COW_ACCEPT_MERGE);

	if (r)
		return r;
	*info = (struct cowloop_info){
		.format = c.format,
		.state = (enum cowloop_state)c.state,
		.mapunit = c.geo.mapunit,
		.device_bytes = c.geo.rdo_sectors * 512,
		.units = c.geo.nr_units,
		.units_used = le64(c.head.cowused),
	};
	if (c.format == 2) {
		uuid_unparse_lower(c.head.uuid, info->uuid);
		head_text(info->label, c.head.label, sizeof(c.head.label));
		head_text(info->rdo_spec, c.head.rdospec, sizeof(c.head.rdospec));
	}
	cow_close(&c);
	return OK;
}

_Static_assert(sizeof(((struct cowloop_info *)0)->label) == sizeof(((struct cow_head *)0)->label) + 1, "room for a label");
_Static_assert(sizeof(((struct cowloop_info *)0)->rdo_spec) == sizeof(((struct cow_head *)0)->rdospec) + 1,
	       "room for the place of rdo");
