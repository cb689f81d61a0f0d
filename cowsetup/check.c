// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup check: looks for faults in a cowfile.
 */

#include "cowsetup.h"

#include <stdlib.h>

#include <json-c/json.h>

#include "../boot/memory.h"
#include "../lib/cowfile.h"
#include "../lib/text.h"
#include "progress.h"
#include "report.h"

/* More of the same are counted, not listed. */
#define MAX_LISTED	1000

struct listing {
	struct cowloop_ctx *ctx;
	const char *path;
	u64 nr_faults;
	struct json_object *faults, *notes;
};

static void list_fault(void *data, const char *id, const char *text)
{
	struct listing *l = data;
	struct cowloop_ctx *ctx = l->ctx;
	struct json_object *o;

	if (++l->nr_faults > MAX_LISTED)
		return;
	if (!opt.json) {
		tell(ctx, "%s: fault: %s.", l->path, text);
		return;
	}
	o = json_object_new_object();
	json_object_object_add(o, "id", json_object_new_string(id));
	json_object_object_add(o, "message", json_text(text));
	json_object_array_add(l->faults, o);
}

static void list_note(void *data, const char *text)
{
	struct listing *l = data;
	struct cowloop_ctx *ctx = l->ctx;

	if (opt.json)
		json_object_array_add(l->notes, json_text(text));
	else
		tell(ctx, "%s: note: %s.", l->path, text);
}

/* The advice for the faults that were found. */
static void print_advice(struct cowloop_ctx *ctx, const char *path, const struct cowloop_check *k)
{
	const char *s = k->nr_faults == 1 ? "" : "s";
	char *word = xtext(text_word(path));

	if (k->repairable)
		tell(ctx, "%s: %llu fault%s; to see what can be done: cowsetup repair -n %s", path, k->nr_faults, s, word);
	else if (k->format && k->state == COWLOOP_PACKED)
		tell(ctx, "%s: %llu fault%s; a packed file is not repaired: get another copy of it.", path, k->nr_faults, s);
	else
		tell(ctx, "%s: %llu fault%s; cowsetup repair can do nothing about %s.", path, k->nr_faults, s,
		     k->nr_faults == 1 ? "it" : "them");
	free(word);
}

static void print_result(struct cowloop_ctx *ctx, const char *path, const struct cowloop_check *k)
{
	if (k->nr_faults > MAX_LISTED)
		tell(ctx, "%s: and %llu more faults.", path, k->nr_faults - MAX_LISTED);
	if (k->nr_faults)
		print_advice(ctx, path, k);
	else
		tell(ctx, "%s: no faults: format %u, %s, %llu of %llu units used (%s, %s).", path, k->format,
		     cow_state_text((enum cow_state)k->state), k->units_used, k->units,
		     size_text(k->units_used * k->mapunit), percent_text(k->units_used, k->units));
}

static void report_result(const struct listing *l, const struct cowloop_check *k)
{
	report_start("cowfile", "", l->path);
	report_bool("ok", "", !k->nr_faults);
	if (k->format) {
		report_number("format", "", k->format);
		report_text("state", "", cow_state_text((enum cow_state)k->state));
		report_number("units_used", "", k->units_used);
		report_number("units_total", "", k->units);
	}
	report_number("nr_faults", "", k->nr_faults);
	report_bool("repairable", "", k->repairable);
	report_json("faults", json_object_get(l->faults));
	report_json("notes", json_object_get(l->notes));
	report_end();
}

int cmd_check(struct cowloop_ctx *ctx, int argc, char **argv)
{
	struct listing l = { .ctx = ctx, .path = argv[0] };
	const struct cowloop_findings to = { .fault = list_fault, .note = list_note, .data = &l };
	struct cowloop_check k;
	int r;

	(void)argc;
	if (opt.json)
		progress_to_stderr();
	l.faults = json_object_new_array();
	l.notes = json_object_new_array();
	r = cowloop_check(ctx, argv[0], opt.rdo, &to, &k);
	if (!r && opt.json)
		report_result(&l, &k);
	else if (!r)
		print_result(ctx, argv[0], &k);
	json_object_put(l.faults);
	json_object_put(l.notes);

	return r ? r : k.nr_faults ? WRONG : OK;
}
