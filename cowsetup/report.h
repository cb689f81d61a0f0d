/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cowsetup: what is known about a thing, as lines for people or, with --json,
 * as one object for scripts. Every item has a key for those, which is part of
 * the interface and stays, and a title for these, which may get better.
 */

#ifndef COWSETUP_REPORT_H
#define COWSETUP_REPORT_H

#include "options.h"
#include "print.h"

/* Begin the report about @name; @key and @title say what that is. */
void report_start(const char *key, const char *title, const char *name);

void report_text(const char *key, const char *title, const char *value);
void report_number(const char *key, const char *title, u64 value);
void report_hex(const char *key, const char *title, u64 value, int digits);
void report_bool(const char *key, const char *title, bool value);

/* Bytes: "1.5 GiB (1610612736 bytes)"; in JSON the number. */
void report_size(const char *key, const char *title, u64 bytes);

/* An item that is for scripts only; takes the object over. */
void report_json(const char *key, struct json_object *value);

/* Print the object, or the lines. */
void report_end(void);

/* End the report without printing the object: it is the caller's. */
struct json_object *report_take(void);

/*
 * Print lines of columns that are as wide as what is in them: @cells, line by line.
 * @right has a bit for each column that is aligned to the right.
 */
void report_table(char *const *cells, size_t lines, unsigned int columns, u32 right);

/* Print an object, or an array, in the way that report_end() does, and free it. */
void report_print(struct json_object *o);

#endif /* COWSETUP_REPORT_H */
