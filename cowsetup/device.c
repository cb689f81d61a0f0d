// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup: reports about active devices.
 */

#include "device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#include "../boot/memory.h"
#include "../lib/advice.h"
#include "../lib/loopfile.h"
#include "../lib/size.h"
#include "../lib/sysfs.h"
#include "report.h"

void space_of(const struct dm_device *d, struct space *s)
{
	struct statvfs fs;

	space_look(d, &fs);
	space_least(d, &fs, s);
}

void report_space(const struct space *s)
{
	char text[120];

	if (opt.json) {
		report_json("free_bytes", s->of ? json_object_new_uint64(s->free) : NULL);
		report_json("free_total_bytes", s->of ? json_object_new_uint64(s->total) : NULL);
		report_json("free_of", s->of ? json_object_new_string(s->of) : NULL);
	} else if (s->of) {
		snprintf(text, sizeof(text), "%s of %s (%s, the least there is)", size_text(s->free),
			 size_text(s->total), s->of);
		report_text("", "Free for changes", text);
	}
}

/* A device below: where it is, and the file it is made of. */
static void report_below(const char *which, const char *title, dev_t dev, bool there)
{
	char *path = there ? dev_path(dev) : NULL, *file = there ? loop_file(dev) : NULL;
	char *key, *text;

	if (opt.json) {
		key = xasprintf("%s_device", which);
		report_json(key, path ? json_text(path) : NULL);
		free(key);
		key = xasprintf("%s_file", which);
		report_json(key, file ? json_text(file) : NULL);
		free(key);
		key = xasprintf("%s_file_removed", which);
		report_json(key, json_object_new_boolean(there && loop_file_is_removed(dev)));
		free(key);
	} else {
		text = !path ? xasprintf("- (let go of)") :
		       file ? xasprintf("%s (%s)", file, path) : xasprintf("%s", path);
		report_text("", title, text);
		free(text);
	}
	free(path);
	free(file);
}

static void report_counters(const struct dm_device *d)
{
	struct json_object *counters;
	char title[64];

	if (opt.json) {
		counters = json_object_new_object();
		for (unsigned int i = 0; i < d->nr_counters; i++)
			json_object_object_add(counters, d->counters[i].name,
					       json_object_new_uint64(d->counters[i].value));
		report_json("counters", counters);
		return;
	}
	for (unsigned int i = 0; i < d->nr_counters; i++) {
		snprintf(title, sizeof(title), "Count of %s", d->counters[i].name);
		for (char *p = title; *p; p++)
			if (*p == '_')
				*p = ' ';
		report_number("", title, d->counters[i].value);
	}
}

static void report_used(const struct dm_device *d)
{
	char text[120];

	if (opt.json) {
		report_number("units_used", "", d->used);
		report_number("units_total", "", d->total);
		report_number("used_bytes", "", d->used * d->mapunit);
	} else {
		snprintf(text, sizeof(text), "%s, %s (%llu of %llu units)", size_text(d->used * d->mapunit),
			 percent_text(d->used, d->total), d->used, d->total);
		report_text("", "Modified", text);
	}
}

const char *full_text(const struct dm_device *d, const struct space *s, char text[16])
{
	const double percent = space_percent(d, s);

	snprintf(text, 16, "%.1f%%", percent);
	return percent < 0 ? NULL : text;
}

static void report_full(const struct dm_device *d, const struct space *s)
{
	char number[16];
	const char *text = full_text(d, s, number);

	if (!opt.json) {
		report_text("", "Full", text ? text : "");
		return;
	}
	/* The number, without the sign. */
	if (text)
		number[strlen(text) - 1] = 0;
	report_json("full_percent", text ? json_object_new_double_s(space_percent(d, s), number) : NULL);
}

static void report_advice(const struct dm_device *d, const struct space *s)
{
	char *advice = advice_text(d, s);

	if (opt.json)
		report_json("advice", advice ? json_text(advice) : NULL);
	else if (advice)
		report_text("", "What to do", advice);
	free(advice);
}

static void report_cow_uuid(const struct dm_device *d)
{
	char uuid[DM_COW_UUID_SIZE];
	const bool known = dm_cow_uuid(d, uuid);

	if (opt.json)
		report_json("cow_uuid", known ? json_object_new_string(uuid) : NULL);
	else
		report_text("", "UUID of the cowfile", known ? uuid : "");
}

/* The space: of the limit and its companions only those that are set, for people. */
static void report_space_options(const struct dm_device *d)
{
	if (opt.json || d->limit)
		report_size("limit_bytes", "Limit", d->limit * d->mapunit);
	if (opt.json || d->reserve)
		report_size("reserve_bytes", "Reserve", d->reserve * d->mapunit);
	if (opt.json || d->low_water)
		report_size("low_water_bytes", "Low water", d->low_water * d->mapunit);
	report_bool("queue_if_no_space", "Queues if no space", dm_has_option(d, "queue_if_no_space"));
	report_bool("discard_passdown", "Passes discards down", !dm_has_option(d, "no_discard_passdown"));
}

void report_device(const struct dm_device *d)
{
	char *path = xasprintf("%s/%s", DM_NODES, d->name);
	struct space s;

	space_of(d, &s);
	report_start("name", "Name", d->name);
	report_text("device", "Device", path);
	report_text("mode", "Mode", d->mode_word);
	report_advice(d, &s);
	report_text("state", "State", d->dirty ? "dirty" : "clean");
	report_size("device_bytes", "Size", d->sectors * 512);
	report_used(d);
	report_space(&s);
	report_full(d, &s);
	report_below("rdo", "Read-only device", d->rdo, true);
	report_below("cow", "Cowfile", d->cow, dm_has_cow(d));
	report_cow_uuid(d);
	report_number("format", "Format", d->format);
	report_size("unit_bytes", "Unit", d->mapunit);
	report_space_options(d);
	report_bool("read_only", "Read-only to users", d->read_only);
	report_bool("suspended", "Suspended", d->suspended);
	report_bool("deferred_remove", "Closes when unused", d->deferred_remove);
	report_number("open_count", "Open by", d->open_count);
	report_text("uuid", "UUID of the device", d->uuid);
	report_counters(d);
	free(path);
}
