/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cowsetup: texts that may be anything: the name of a file, a label, what a
 * process calls itself. For the plugin, too: nothing here exits.
 */

#ifndef COWSETUP_TEXT_H
#define COWSETUP_TEXT_H

#include <stdbool.h>
#include <stdio.h>

/*
 * The length of the character at @text, 0 if there is none in UTF-8. Set *@control
 * if it does something to a terminal, and is not seen.
 */
unsigned int text_char(const char *text, bool *control);

bool text_is_utf8(const char *text);

/* Make '?' of what is not UTF-8. */
void text_make_utf8(char *text);

/*
 * Print a text, and show as \x1b what is no character that can be seen, a newline
 * among them. All that cowsetup and the plugin print for people goes through here.
 */
void text_print(FILE *to, const char *text);

/* What text_print() prints, to be freed; NULL: out of memory. */
char *text_visible(const char *text);

/* How many columns text_print() needs, if each character needs one. */
unsigned int text_columns(const char *text);

/* Print a text as a shell takes it for one word, quoted if need be. */
void text_print_word(FILE *to, const char *text);

/* The same, to be freed. */
char *text_word(const char *text);

#endif /* COWSETUP_TEXT_H */
