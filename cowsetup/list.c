// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup list: the active devices.
 */

#include "cowsetup.h"

#include <stdlib.h>

#include <json-c/json.h>

#include "../boot/memory.h"
#include "../lib/lost.h"
#include "device.h"
#include "report.h"

enum { LIST_NAME, LIST_SIZE, LIST_USED, LIST_FREE, LIST_FULL, LIST_STATE, LIST_MODE, LIST_RDO, LIST_COW, LIST_COLUMNS };

static void list_row(const struct dm_device *d, char **cell)
{
	char full[16];
	struct space s;

	space_of(d, &s);
	cell[LIST_NAME] = xasprintf("%s", d->name);
	cell[LIST_SIZE] = xasprintf("%s", size_text(d->sectors * 512));
	cell[LIST_USED] = xasprintf("%s", size_text(d->used * d->mapunit));
	cell[LIST_FREE] = xasprintf("%s", s.of && dm_has_cow(d) ? size_text(s.free) : "-");
	cell[LIST_FULL] = xasprintf("%s", full_text(d, &s, full) ? full : "-");
	cell[LIST_STATE] = xasprintf("%s", d->dirty ? "dirty" : "clean");
	cell[LIST_MODE] = xasprintf("%s", d->mode_word);
	cell[LIST_RDO] = xtext(device_file(d->rdo));
	cell[LIST_COW] = dm_has_cow(d) ? xtext(device_file(d->cow)) : xasprintf("-");
}

static void print_table(const struct dm_device *devices, size_t nr)
{
	static const char *const titles[LIST_COLUMNS] = {
		"NAME", "SIZE", "USED", "FREE", "FULL%", "STATE", "MODE", "RDO", "COW",
	};
	char **cells = xmalloc((nr + 1) * LIST_COLUMNS * sizeof(*cells));

	for (unsigned int i = 0; i < LIST_COLUMNS; i++)
		cells[i] = xasprintf("%s", titles[i]);
	for (size_t i = 0; i < nr; i++)
		list_row(&devices[i], cells + (i + 1) * LIST_COLUMNS);
	if (nr)
		report_table(cells, nr + 1, LIST_COLUMNS,
			     1 << LIST_SIZE | 1 << LIST_USED | 1 << LIST_FREE | 1 << LIST_FULL);
	for (size_t i = 0; i < (nr + 1) * LIST_COLUMNS; i++)
		free(cells[i]);
	free(cells);
}

int cmd_list(struct cowloop_ctx *ctx, int argc, char **argv)
{
	struct json_object *list, *all;
	struct dm_device *devices;
	size_t nr;
	int r = dm_check_kernel(ctx);

	(void)argc;
	(void)argv;
	if (!r)
		r = dm_list(ctx, &devices, &nr);
	if (r)
		return r;
	if (opt.json) {
		list = json_object_new_array();
		for (size_t i = 0; i < nr; i++) {
			report_device(&devices[i]);
			json_object_array_add(list, report_take());
		}
		all = json_object_new_object();
		json_object_object_add(all, "devices", list);
		report_print(all);
	} else {
		print_table(devices, nr);
		for (size_t i = 0; i < nr; i++)
			warn_lost(ctx, &devices[i]);
	}
	free(devices);
	return OK;
}
