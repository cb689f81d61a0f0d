/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: texts that may be anything: the name of a file, a label, what a
 * process calls itself.
 */

#ifndef LIBCOWLOOP_TEXT_H
#define LIBCOWLOOP_TEXT_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

/*
 * The length of the character at @text, 0 if there is none in UTF-8. Set *@control
 * if it does something to a terminal, and is not seen.
 */
unsigned int text_char(const char *text, bool *control);

bool text_is_utf8(const char *text);

/* Make '?' of what is not UTF-8. */
void text_make_utf8(char *text);

/*
 * A text with \x1b for what is no character that can be seen, a newline among
 * them, to be freed. All that is printed for people looks so. NULL: no memory.
 */
char *text_visible(const char *text);

/* How many columns text_visible() makes it need, if each character needs one. */
unsigned int text_columns(const char *text);

/* A text as a shell takes it for one word, quoted if need be, to be freed; NULL: no memory. */
char *text_word(const char *text);

/* As asprintf(): to be freed; NULL: no memory. */
char *text_of(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
char *text_vof(const char *fmt, va_list ap) __attribute__((format(printf, 1, 0)));

/* A text that grows, all zeroes at first. */
struct text {
	char *text;
	size_t length;
	bool failed;		/* there was no memory for it */
};

void text_add(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The end: the text, to be freed; NULL: nothing was added, or there was no memory. */
char *text_take(struct text *t);

#endif /* LIBCOWLOOP_TEXT_H */
