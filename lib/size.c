// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: sizes, as people read and write them.
 */

#include "size.h"

#include <stdio.h>
#include <string.h>

bool parse_size(const char *text, u64 *size)
{
	static const char suffixes[] = "KMGTPE";
	const char *suffix;
	u64 n = 0, fraction = 0, scale = 1, unit = 1;
	const char *p = text;

	if (*p < '0' || *p > '9')
		return false;
	for (; *p >= '0' && *p <= '9'; p++)
		if (__builtin_mul_overflow(n, 10, &n) || __builtin_add_overflow(n, *p - '0', &n))
			return false;
	if (*p == '.') {
		for (p++; *p >= '0' && *p <= '9' && scale < 1000000; p++) {
			fraction = fraction * 10 + (*p - '0');
			scale *= 10;
		}
		if (scale == 1)
			return false;
	}
	if (*p) {
		suffix = *p & ~0x20 ? strchr(suffixes, *p & ~0x20) : NULL; /* a blank would be its end */
		if (!suffix)
			return false;
		unit <<= 10 * (suffix - suffixes + 1);
		p++;
		if (!strcmp(p, "iB"))
			p += 2;
	}
	if (*p || (scale > 1 && unit == 1) || __builtin_mul_overflow(n, unit, &n))
		return false;
	/* A fraction of an exbibyte does not overflow: it is at most 6 digits. */
	fraction = (unsigned __int128)fraction * unit / scale;
	return !__builtin_add_overflow(n, fraction, size);
}

static char *next_buffer(size_t *size)
{
	static _Thread_local char buffers[8][32];
	static _Thread_local unsigned int next;

	*size = sizeof(buffers[0]);
	return buffers[next++ % 8];
}

const char *size_text(u64 size)
{
	static const char *const units[] = { "bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	size_t room;
	char *text = next_buffer(&room);
	unsigned int i = 0;
	double n = size;

	for (; n >= 1024 && i + 1 < sizeof(units) / sizeof(units[0]); i++)
		n /= 1024;
	if (!i)
		snprintf(text, room, "%llu byte%s", size, size == 1 ? "" : "s");
	else if (n == (u64)n || n >= 100)
		snprintf(text, room, "%.0f %s", n, units[i]);
	else
		snprintf(text, room, "%.1f %s", n, units[i]);
	return text;
}

const char *percent_text(u64 part, u64 whole)
{
	size_t room;
	char *text = next_buffer(&room);

	snprintf(text, room, "%.1f%%", whole ? 100.0 * part / whole : 0.0);
	return text;
}
