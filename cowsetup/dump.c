// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup dump and map: what a cowfile's head says, and which parts of the
 * device are in the cowfile.
 */

#include "cowsetup.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <json-c/json.h>
#include <uuid/uuid.h>

#include "../lib/cowfile.h"
#include "../lib/record.h"
#include "../lib/size.h"
#include "report.h"

/* ---- dump ---- */

/* Faults are told after what the head says. */
struct fault_list {
	struct cow_faults faults;
	struct json_object *list;
};

static void keep_fault(struct cow_faults *faults, const char *id, const char *text)
{
	struct fault_list *list = (struct fault_list *)faults;
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "id", json_object_new_string(id));
	json_object_object_add(o, "message", json_text(text));
	json_object_array_add(list->list, o);
}

/* A text from the head: NUL-padded, and possibly anything. */
static void head_text(char *to, const u8 *from, size_t size)
{
	memcpy(to, from, size);
	to[size] = 0;
}

static void dump_v2(const struct cow_head *head)
{
	char uuid[37], label[sizeof(head->label) + 1], rdospec[sizeof(head->rdospec) + 1];

	uuid_unparse(head->uuid, uuid);
	head_text(label, head->label, sizeof(head->label));
	head_text(rdospec, head->rdospec, sizeof(head->rdospec));

	report_text("uuid", "UUID", uuid);
	report_text("label", "Label", label);
	if (opt.json || *rdospec)
		report_text("rdo_spec", "Place of rdo", rdospec);
	else
		report_text("", "Place of rdo", "not noted (--rdo-spec)");
	report_number("rdo_sectors", "Sectors of rdo", le64(head->rdosectors));
	report_hex("incompat", "Incompatible features", le32(head->incompat), 8);
	report_hex("compat_ro", "Read-only features", le32(head->compat_ro), 8);
	report_number("rdo_mtime", "Time of rdo, s since 1970", le64(head->rdomtime));
	report_hex("csum", "Checksum", le32(head->csum), 8);
}

static void dump_head(struct cowloop_ctx *ctx, const struct cowfile *c)
{
	const struct cow_head *head = &c->head;
	const u64 mapunit = le64(head->mapunit), used = le64(head->cowused);
	struct cow_merge_record record;
	enum record_state state;
	struct stat st;

	report_number("format", "Format", c->format);
	report_text("state", "State", cow_state_text(c->state));
	report_size("unit_bytes", "Unit", mapunit);
	report_number("units_total", "Units", le64(head->rdoblocks));
	report_number("units_used",
		      c->state == COW_DIRTY ? "Units used, last count" : "Units used", used);
	if (c->geo.rdo_sectors)
		report_size("device_bytes", "Device", c->geo.rdo_sectors * 512);
	report_number("map_offset", "Bitmap offset",
		      c->format == 1 ? COW_V1_MAPUNIT : le64(head->moffset));
	report_number("map_bytes", "Bitmap bytes", le64(head->mapsize));
	report_number("data_offset", "Data offset", le64(head->doffset));
	report_hex("rdo_fingerprint", "Fingerprint of rdo", le64(head->rdofingerprint), 16);
	if (c->format == 2)
		dump_v2(head);
	report_size("file_bytes", "File", c->file.size);
	if (c->state == COW_MERGING && !record_read(ctx, c, &record, &state))
		report_text("merge_record", "Record of the merge", record_state_text(state));
	if (!c->file.block && !fstat(c->file.fd, &st))
		report_size("allocated_bytes", "Space it takes", st.st_blocks * 512ULL);
}

static void print_faults(struct cowloop_ctx *ctx, const char *path, struct json_object *list)
{
	for (size_t i = 0; i < json_object_array_length(list); i++) {
		struct json_object *fault = json_object_array_get_idx(list, i);

		error(ctx, WRONG, "%s: %s.", path,
		      json_object_get_string(json_object_object_get(fault, "message")));
	}
}

int cmd_dump(struct cowloop_ctx *ctx, int argc, char **argv)
{
	struct fault_list faults = { .faults.found = keep_fault };
	struct cowfile c;
	size_t nr;
	int r;

	(void)argc;
	faults.list = json_object_new_array();
	r = cow_open_faulty(ctx, &c, argv[0], FILE_READ, &faults.faults);
	nr = json_object_array_length(faults.list);
	if (c.format) {
		report_start("cowfile", "Cowfile", argv[0]);
		dump_head(ctx, &c);
		if (opt.json)
			report_json("faults", json_object_get(faults.list));
		report_end();
	}
	if (!opt.json || !c.format)
		print_faults(ctx, argv[0], faults.list);
	json_object_put(faults.list);
	cow_close(&c);

	return r ? r : nr ? WRONG : OK;
}

/* ---- map ---- */

#define UNITS_TITLE	"units"
#define START_TITLE	"device offset"
#define DATA_TITLE	"cowfile offset"

/* Of the columns. */
struct widths {
	int units, bytes, data;
};

/*
 * A map may be long, so its JSON is printed as it is found, and not made of
 * objects.
 */
static void print_run(const struct cowfile *c, const struct widths *w, u64 first, u64 nr, u64 data, bool is_first)
{
	const u64 start = first * c->geo.mapunit, bytes = cow_run_bytes(c, first, nr);

	if (opt.json)
		printf("%s\n    {\"unit\":%llu,\"units\":%llu,\"offset\":%llu,\"bytes\":%llu,\"cow_offset\":%llu}",
		       is_first ? "" : ",", first, nr, start, bytes, data);
	else
		printf("%*llu %*llu %*llu %*llu %*llu\n", w->units, first, w->units, nr, w->bytes, start,
		       w->bytes, bytes, w->data, data);
}

static int digits(u64 n)
{
	int nr = 1;

	while (n /= 10)
		nr++;
	return nr;
}

/* The largest numbers that there can be, or the titles. */
static void set_widths(const struct cowfile *c, struct widths *w)
{
	w->units = digits(c->geo.nr_units);
	if (w->units < (int)strlen(UNITS_TITLE))
		w->units = strlen(UNITS_TITLE);
	w->bytes = digits(c->geo.rdo_sectors * 512);
	if (w->bytes < (int)strlen(START_TITLE))
		w->bytes = strlen(START_TITLE);
	w->data = digits(cow_full_size(&c->geo));
	if (w->data < (int)strlen(DATA_TITLE))
		w->data = strlen(DATA_TITLE);
}

static void print_map_head(const struct cowfile *c, const struct widths *w)
{
	if (opt.json) {
		printf("{\n  \"cowfile\":");
		json_print(stdout, json_text(c->file.path), JSON_C_TO_STRING_PLAIN);
		printf(",\n  \"format\":%u,\n  \"unit_bytes\":%u,\n  \"device_bytes\":%llu,\n  \"extents\":[",
		       c->format, c->geo.mapunit, c->geo.rdo_sectors * 512);
	} else {
		printf("%*s %*s %*s %*s %*s\n", w->units, "unit", w->units, UNITS_TITLE, w->bytes, START_TITLE,
		       w->bytes, "bytes", w->data, DATA_TITLE);
	}
}

static void print_map_end(const struct cowfile *c, u64 used, u64 nr_runs, u64 nr_bad)
{
	if (opt.json)
		printf("%s],\n  \"units_used\":%llu,\n  \"units_total\":%llu,\n  \"damaged_sectors\":%llu\n}\n",
		       nr_runs ? "\n  " : "", used, c->geo.nr_units, nr_bad);
	else
		printf("%llu extent%s, %llu of %llu units (%s): %s\n", nr_runs, nr_runs == 1 ? "" : "s",
		       used, c->geo.nr_units, percent_text(used, c->geo.nr_units),
		       size_text(used * c->geo.mapunit));
}

int cmd_map(struct cowloop_ctx *ctx, int argc, char **argv)
{
	struct cowfile c;
	struct widths w;
	struct cow_runs runs;
	u64 first, nr, used = 0, nr_runs = 0;
	int r;

	(void)argc;
	r = cow_open(ctx, &c, argv[0], FILE_READ,
		     COW_ACCEPT_DIRTY | COW_ACCEPT_PACKED | COW_ACCEPT_MERGE);
	if (r)
		return r;
	if (c.state == COW_DIRTY)
		warn(ctx, "%s: dirty: units that were written last may be missing.", argv[0]);

	set_widths(&c, &w);
	print_map_head(&c, &w);
	cow_runs_start(&runs, &c);
	runs.skip_bad = true;
	while (cow_runs_next(ctx, &runs, &first, &nr) && !ferror(stdout)) {
		/* Packed data is without gaps. */
		const u64 place = c.state == COW_PACKED ? used : first;

		print_run(&c, &w, first, nr, c.geo.doffset + place * c.geo.mapunit, !nr_runs);
		used += nr;
		nr_runs++;
	}
	r = cow_runs_end(&runs, OK);
	print_map_end(&c, used, nr_runs, runs.nr_bad);
	cow_close(&c);

	return r ? r : runs.nr_bad ? WRONG : OK;
}
