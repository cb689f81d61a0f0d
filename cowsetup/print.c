// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup: texts on a terminal and in JSON, which may be anything.
 */

#include "print.h"

#include <stdlib.h>

#include <json-c/json.h>

#include "../boot/memory.h"
#include "../lib/context.h"
#include "../lib/text.h"

void text_print(FILE *to, const char *text)
{
	char *visible = xtext(text_visible(text));

	fputs(visible, to);
	free(visible);
}

/* Controls are left by json-c as they are. Its own blanks and newlines between values are for the reader. */
void json_print(FILE *to, struct json_object *o, int flags)
{
	const char *text = json_object_to_json_string_ext(o, flags | JSON_C_TO_STRING_NOSLASHESCAPE);
	unsigned int n, code;
	bool control;

	for (const u8 *p = (const u8 *)text; *p; p += n) {
		n = text_char((const char *)p, &control);
		n = n ? n : 1;
		code = n == 1 ? *p : n == 2 ? (*p & 31) << 6 | (p[1] & 63) :
			       (*p & 15) << 12 | (p[1] & 63) << 6 | (p[2] & 63);
		if (control && *p != '\n')
			fprintf(to, "\\u%04x", code);
		else
			fwrite(p, 1, n, to);
	}
	json_object_put(o);
}

struct json_object *json_text(const char *text)
{
	char *copy = xasprintf("%s", text);
	struct json_object *o;

	text_make_utf8(copy);
	o = json_object_new_string(copy);
	free(copy);
	return o;
}

