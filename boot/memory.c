// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup: memory for a program that ends where there is none.
 */

#include "memory.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "../lib/context.h"

void out_of_memory(void)
{
	fflush(stdout);
	fputs("cowsetup: Out of memory.\n", stderr);
	exit(NO_MEMORY);
}

void *xmalloc(size_t size)
{
	return xrealloc(NULL, size);
}

void *xrealloc(void *old, size_t size)
{
	void *p = realloc(old, size);

	if (!p)
		out_of_memory();
	return p;
}

char *xasprintf(const char *fmt, ...)
{
	va_list ap;
	char *text;
	int r;

	va_start(ap, fmt);
	r = vasprintf(&text, fmt, ap);
	va_end(ap);
	if (r < 0)
		out_of_memory();
	return text;
}

char *xtext(char *text)
{
	if (!text)
		out_of_memory();
	return text;
}
