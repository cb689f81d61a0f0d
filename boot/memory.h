/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cowsetup: memory for a program that ends where there is none.
 */

#ifndef COWSETUP_MEMORY_H
#define COWSETUP_MEMORY_H

#include <stddef.h>

/* Never return NULL: they print a message and exit instead. */
void *xmalloc(size_t size);
void *xrealloc(void *old, size_t size);
char *xasprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Returns a text to be freed that may be NULL for want of memory. */
char *xtext(char *text);

__attribute__((noreturn)) void out_of_memory(void);

#endif /* COWSETUP_MEMORY_H */
