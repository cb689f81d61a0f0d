// SPDX-License-Identifier: GPL-2.0-only
/*
 * mountfuzz: has the reader of /proc/PID/mountinfo read what a hostile user can
 * put there, who chooses sources, mount points and what follows "fuse." in a
 * type. What the kernel would write comes back as it was; and of lines with any
 * byte changed, which the kernel would not write, nothing more is asked than
 * that they do no harm.
 *
 *	mountfuzz COUNT		with COWFUZZ_SEED, the same inputs again
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "../../lib/mountinfo.h"
#include "fuzz.h"

#define MAX_MOUNTS	6
#define MAX_TEXT	9000	/* longer than any path */

struct line {
	unsigned int maj, min;
	bool writable;
	char point[MAX_TEXT], type[MAX_TEXT], source[MAX_TEXT];
};

static struct line lines[MAX_MOUNTS];
static char input[MAX_MOUNTS * 3 * 4 * MAX_TEXT];

/* Texts are short, or about as long as buffers are. */
static size_t length(size_t least)
{
	static const size_t near[] = { 64, 256, 4096, 4096 };
	const size_t n = rnd(3) ? rnd(20) : near[rnd(4)] + rnd(24) - 12;

	return n < least ? least : n;
}

static void make_text(char *text, const char *start, size_t least)
{
	static const char odd[] = " \t\n\\#-,:\"\r\v\f\033\177\233";
	size_t n = length(least), at = strlen(start);

	memcpy(text, start, at);
	for (n += at; at < n; at++)
		text[at] = rnd(2) ? odd[rnd(sizeof(odd) - 1)] : (char)(rnd(255) + 1);
	text[n] = 0;
}

/* As the kernel's mangle() does. */
static void put_escaped(FILE *f, const char *text, const char *escape)
{
	for (; *text; text++) {
		if (strchr(escape, *text))
			fprintf(f, "\\%03o", (unsigned char)*text);
		else
			fputc(*text, f);
	}
}

static void put_line(FILE *f, struct line *l, unsigned int n)
{
	l->maj = rnd(2) ? 0 : rnd(4096);
	l->min = rnd(1 << 20);
	l->writable = rnd(2);
	make_text(l->point, "/", 0);
	make_text(l->type, rnd(2) ? "fuse." : "ext4", 0);
	make_text(l->source, rnd(2) ? "/dev/" : "x", 0);
	fprintf(f, "%u 1 %u:%u / ", n + 20, l->maj, l->min);
	put_escaped(f, l->point, " \t\n\\");
	fprintf(f, " %s,relatime shared:%u master:1 - ", l->writable ? "rw" : "ro", n);
	put_escaped(f, l->type, " \t\n\\#");
	fputc(' ', f);
	put_escaped(f, l->source, " \t\n\\#");
	fprintf(f, " rw,user_id=0\n");
}

static size_t make_input(unsigned int nr)
{
	FILE *f = fmemopen(input, sizeof(input), "w");
	size_t size;

	if (!f)
		abort();
	for (unsigned int i = 0; i < nr; i++)
		put_line(f, &lines[i], i);
	size = ftell(f);
	fclose(f);
	return size;
}

static struct mounts *read_input(size_t size)
{
	struct mounts *mounts;
	char path[32];
	int fd = memfd_create("mountfuzz", MFD_CLOEXEC);

	if (fd < 0 || write(fd, input, size) != (ssize_t)size)
		abort();
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	mounts = mounts_read(path);
	close(fd);
	return mounts;
}

static bool is_line(const struct mount *m, const struct line *l)
{
	return m->dev == makedev(l->maj, l->min) && m->writable == l->writable && !strcmp(m->point, l->point) &&
	       !strcmp(m->type, l->type) && !strcmp(m->source, l->source);
}

/* How many of the lines do not come back as they were. */
static unsigned int check_lines(unsigned int nr, size_t size)
{
	struct mounts *mounts = read_input(size);
	unsigned int wrong = 0;
	struct mount m;

	for (unsigned int i = 0; i < nr; i++) {
		if (mounts && mounts_next(mounts, &m) && is_line(&m, &lines[i]))
			continue;
		wrong++;
	}
	if (mounts && mounts_next(mounts, &m))
		wrong++;
	mounts_free(mounts);
	return wrong;
}

static size_t read_mutant(size_t size)
{
	struct mounts *mounts;
	size_t sum = 0;
	struct mount m;

	for (unsigned int i = rnd(4) + 1; i; i--)
		input[rnd(size)] = rnd(256);
	mounts = read_input(rnd(4) ? size : rnd(size));
	while (mounts && mounts_next(mounts, &m))
		sum += strlen(m.point) + strlen(m.type) + strlen(m.source) + mount_is_of(&m, 0);
	mounts_free(mounts);
	return sum;
}

int main(int argc, char **argv)
{
	const unsigned long count = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
	unsigned long wrong = 0, all = 0, text = 0;

	seed_random("mountfuzz", "COWFUZZ_SEED");
	/* What libmount says of lines that are none is of no interest. */
	if (!freopen("/dev/null", "w", stderr))
		return 1;
	for (unsigned long n = 0; n < count; n++) {
		const unsigned int nr = rnd(MAX_MOUNTS) + 1;
		const size_t size = make_input(nr);

		limit_time();
		all += nr;
		wrong += check_lines(nr, size);
		text += read_mutant(size);
	}
	printf("%lu of %lu mounts did not come back as they were; %lu bytes of others\n", wrong, all, text);
	return wrong || !text;
}
