/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cowsetup: texts on a terminal and in JSON, which may be anything.
 */

#ifndef COWSETUP_PRINT_H
#define COWSETUP_PRINT_H

#include <stdio.h>

struct json_object;

/* Print a text as text_visible() makes it. */
void text_print(FILE *to, const char *text);

/*
 * Print an object, and free it. Control characters, which may be in any text, are
 * escaped. @flags: json-c's.
 */
void json_print(FILE *to, struct json_object *o, int flags);

/*
 * A string for JSON, which has to be UTF-8, of a text that may be anything, as
 * the names of files may.
 */
struct json_object *json_text(const char *text);

#endif /* COWSETUP_PRINT_H */
