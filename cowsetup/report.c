// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup: reports, which people read, and scripts.
 */

#include "cowsetup.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#include "../boot/memory.h"
#include "../lib/text.h"
#include "print.h"
#include "progress.h"
#include "report.h"

static struct json_object *report;

/* The lines of a report for people: titles and values, in turn. They are printed when all widths are known. */
static char **items;
static size_t nr_items;

void report_start(const char *key, const char *title, const char *name)
{
	if (opt.json)
		report = json_object_new_object();
	report_text(key, title, name);
}

void report_json(const char *key, struct json_object *value)
{
	json_object_object_add(report, key, value);
}

static void add_item(const char *title, const char *value)
{
	items = xrealloc(items, (nr_items + 2) * sizeof(*items));
	items[nr_items++] = xasprintf("%s", title);
	items[nr_items++] = xasprintf("%s", value);
}

static void print_items(void)
{
	report_table(items, nr_items / 2, 2, 0);
	while (nr_items)
		free(items[--nr_items]);
	free(items);
	items = NULL;
}

void report_table(char *const *cells, size_t lines, unsigned int columns, u32 right)
{
	unsigned int *width = xmalloc(columns * sizeof(*width)), n;

	for (unsigned int c = 0; c < columns; c++) {
		width[c] = 0;
		for (size_t i = 0; i < lines; i++) {
			n = text_columns(cells[i * columns + c]);
			width[c] = n > width[c] ? n : width[c];
		}
	}
	progress_clear();
	for (size_t i = 0; i < lines; i++) {
		for (unsigned int c = 0; c < columns; c++) {
			const char *cell = cells[i * columns + c];

			n = width[c] - text_columns(cell);
			printf("%*s", right >> c & 1 ? (int)n : 0, "");
			text_print(stdout, cell);
			if (c + 1 < columns)
				printf("%*s", 1 + (right >> c & 1 ? 0 : (int)n), "");
		}
		putchar('\n');
	}
	free(width);
}

void report_text(const char *key, const char *title, const char *value)
{
	if (opt.json)
		report_json(key, json_text(value));
	else
		add_item(title, *value ? value : "-");
}

void report_number(const char *key, const char *title, u64 value)
{
	char text[32];

	snprintf(text, sizeof(text), "%llu", value);
	if (opt.json)
		report_json(key, json_object_new_uint64(value));
	else
		add_item(title, text);
}

void report_hex(const char *key, const char *title, u64 value, int digits)
{
	char text[32];

	snprintf(text, sizeof(text), "0x%0*llx", digits, value);
	report_text(key, title, text);
}

void report_bool(const char *key, const char *title, bool value)
{
	if (opt.json)
		report_json(key, json_object_new_boolean(value));
	else
		add_item(title, value ? "yes" : "no");
}

void report_size(const char *key, const char *title, u64 bytes)
{
	char text[80];

	if (bytes < 1024)
		snprintf(text, sizeof(text), "%s", size_text(bytes));
	else
		snprintf(text, sizeof(text), "%s (%llu bytes)", size_text(bytes), bytes);
	if (opt.json)
		report_json(key, json_object_new_uint64(bytes));
	else
		add_item(title, text);
}

void report_print(struct json_object *o)
{
	json_print(stdout, o, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED);
	putchar('\n');
}

struct json_object *report_take(void)
{
	struct json_object *o = report;

	report = NULL;
	return o;
}

void report_end(void)
{
	if (opt.json)
		report_print(report_take());
	else
		print_items();
}
