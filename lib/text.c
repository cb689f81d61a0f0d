// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup: texts that may be anything. For the plugin, too: nothing here exits.
 */

#include "text.h"

#include <stdlib.h>
#include <string.h>

#include "../cowsetup/cowsetup.h"

/* The length of the character that @p begins with; 0 if it is none. */
static unsigned int utf8_length(const u8 *p)
{
	const u8 c = *p;
	const unsigned int n = c < 0x80 ? 1 : c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 :
			       c < 0xf5 ? 4 : 0;

	if ((c == 0xe0 && p[1] < 0xa0) || (c == 0xed && p[1] > 0x9f) ||
	    (c == 0xf0 && p[1] < 0x90) || (c == 0xf4 && p[1] > 0x8f))
		return 0;
	for (unsigned int i = 1; i < n; i++)
		if ((p[i] & 0xc0) != 0x80)
			return 0;
	return n;
}

/*
 * A character that does something to a terminal, and is not seen: controls, also
 * those from U+0080 to U+009F, and what changes the direction of the text.
 */
static bool is_control(const u8 *p, unsigned int length)
{
	switch (length) {
	case 1:
		return *p < 0x20 || *p == 0x7f;
	case 2:
		return *p == 0xc2 && p[1] < 0xa0;
	case 3:
		return *p == 0xe2 && ((p[1] == 0x80 && p[2] >= 0xaa && p[2] <= 0xae) ||
				      (p[1] == 0x81 && p[2] >= 0xa6 && p[2] <= 0xa9));
	default:
		return false;
	}
}

unsigned int text_char(const char *text, bool *control)
{
	const u8 *p = (const u8 *)text;
	const unsigned int n = utf8_length(p);

	*control = is_control(p, n);
	return n;
}

bool text_is_utf8(const char *text)
{
	const u8 *p = (const u8 *)text;
	unsigned int n;

	for (; *p; p += n) {
		n = utf8_length(p);
		if (!n)
			return false;
	}
	return true;
}

void text_make_utf8(char *text)
{
	unsigned int n;

	for (u8 *p = (u8 *)text; *p; p += n) {
		n = utf8_length(p);
		if (!n) {
			*p = '?';
			n = 1;
		}
	}
}

void text_print(FILE *to, const char *text)
{
	unsigned int n;
	bool control;

	for (; *text; text += n) {
		n = text_char(text, &control);
		if (n && !control) {
			fwrite(text, 1, n, to);
			continue;
		}
		n = n ? n : 1;
		for (unsigned int i = 0; i < n; i++)
			fprintf(to, "\\x%02x", (u8)text[i]);
	}
}

char *text_visible(const char *text)
{
	char *visible = NULL;
	size_t size;
	FILE *to = open_memstream(&visible, &size);

	if (!to)
		return NULL;
	text_print(to, text);
	if (!fclose(to))
		return visible;
	free(visible);
	return NULL;
}

unsigned int text_columns(const char *text)
{
	unsigned int n, columns = 0;
	bool control;

	for (; *text; text += n ? n : 1) {
		n = text_char(text, &control);
		columns += n && !control ? 1 : 4 * (n ? n : 1);
	}
	return columns;
}

void text_print_word(FILE *to, const char *text)
{
	static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=.,:/@%";

	if (*text && !text[strspn(text, plain)]) {
		fputs(text, to);
		return;
	}
	fputc('\'', to);
	for (; *text; text++)
		if (*text == '\'')
			fputs("'\\''", to);
		else
			fputc(*text, to);
	fputc('\'', to);
}

char *text_word(const char *text)
{
	char *word = NULL;
	size_t size;
	FILE *to = open_memstream(&word, &size);

	if (to)
		text_print_word(to, text);
	if (!to || fclose(to) || !word)
		exit(error(NO_MEMORY, "Out of memory."));
	return word;
}
