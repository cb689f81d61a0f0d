// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: texts, which may be anything.
 */

#include "text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "context.h"

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

char *text_visible(const char *text)
{
	/* Each byte may become four. */
	char *visible = malloc(4 * strlen(text) + 1), *to = visible;
	unsigned int n;
	bool control;

	for (; visible && *text; text += n) {
		n = text_char(text, &control);
		if (n && !control) {
			memcpy(to, text, n);
			to += n;
			continue;
		}
		n = n ? n : 1;
		for (unsigned int i = 0; i < n; i++)
			to += sprintf(to, "\\x%02x", (u8)text[i]);
	}
	if (visible)
		*to = 0;
	return visible;
}

char *text_word(const char *text)
{
	static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=.,:/@%";
	char *word, *to;

	if (*text && !text[strspn(text, plain)])
		return strdup(text);
	/* A quote becomes four characters. */
	word = malloc(4 * strlen(text) + 3);
	if (!word)
		return NULL;
	to = word;
	*to++ = '\'';
	for (; *text; text++)
		to = *text == '\'' ? stpcpy(to, "'\\''") : stpncpy(to, text, 1);
	strcpy(to, "'");
	return word;
}

char *text_vof(const char *fmt, va_list ap)
{
	char *text;

	return vasprintf(&text, fmt, ap) < 0 ? NULL : text;
}

char *text_of(const char *fmt, ...)
{
	va_list ap;
	char *text;

	va_start(ap, fmt);
	text = text_vof(fmt, ap);
	va_end(ap);
	return text;
}

void text_add(struct text *t, const char *fmt, ...)
{
	char *more, *all;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&more, fmt, ap);
	va_end(ap);
	if (n < 0) {
		t->failed = true;
		return;
	}
	all = t->failed ? NULL : realloc(t->text, t->length + n + 1);
	if (all) {
		memcpy(all + t->length, more, n + 1);
		t->text = all;
		t->length += n;
	} else {
		t->failed = true;
	}
	free(more);
}

char *text_take(struct text *t)
{
	char *text = t->text;

	if (t->failed) {
		free(text);
		text = NULL;
	}
	*t = (struct text){ 0 };
	return text;
}
