// SPDX-License-Identifier: GPL-2.0-only
/*
 * tabfuzz: feeds cowsetup's reader of /etc/cowtab with tables that may be
 * anything. Their lines may be refused, but there is no crash, and a line that is
 * taken breaks no rule.
 *
 * tabfuzz COUNT runs COUNT mutations of some tables, other ones each time; it
 * prints the seed by which they come again (TABFUZZ_SEED).
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../boot/cowtab.h"
#include "../../cowsetup/output.h"
#include "../../lib/name.h"
#include "../../lib/spec.h"
#include "fuzz.h"

static const char *const tables[] = {
	"# a table\nmine /dev/vg/golden UUID=5f0c1a4e-8f6d-4f7e-9a31-0c9b2d7e6f58 limit=20G,reserve=512M\n",
	"ci /srv/golden.img /var/ci.cow create,nofail\n* - - read-only,monitor\n",
	"try PARTUUID=6a1f-03 /dev/disk/by-id/usb-stick noauto,read-only,x-systemd.device-timeout=5\n",
	"a\\040b /with\\040blank /c\\134d defaults\nmine LABEL=a PARTLABEL=b queue-if-no-space,low-water=1M,_netdev -\n",
	"n /a /b -\nn /a /b create,read-only\n",
};

static const char *const pieces[] = {
	" ", "\t", "\n", "\r", ",", "=", "-", "*", "#", "/", "\\", "\\040", "\\777", "\"", "'", "UUID=", "LABEL=", "limit=",
	"9999999999999999999E", "1.5G", "create", "force", "noauto", "x-", "/dev/disk/by-uuid/\\x20", "\xc2\x9b", "\xff", "\033[", "%s%n",
};

static size_t mutate(char *data, size_t size, size_t room)
{
	for (unsigned int i = rnd(8) + 1; i; i--) {
		const size_t at = rnd(size + 1);
		const char *piece = pieces[rnd(sizeof(pieces) / sizeof(pieces[0]))];
		const size_t n = strlen(piece);

		if (rnd(3) && size + n < room) {
			memmove(data + at + n, data + at, size - at);
			memcpy(data + at, piece, n);
			size += n;
		} else if (at < size && rnd(2)) {
			data[at] = rnd(256);
		} else if (at < size) {
			memmove(data + at, data + at + 1, size - at - 1);
			size--;
		}
	}
	return size;
}

static struct cowloop_ctx *ctx;

static void run(int fd, const char *data, size_t size)
{
	struct cowtab tab;
	char path[32];

	if (ftruncate(fd, 0) || pwrite(fd, data, size, 0) != (ssize_t)size)
		abort();
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	cowtab_read(ctx, &tab, path, rnd(2));
	for (size_t i = 0; i < tab.nr; i++) {
		const struct cowtab_entry *e = &tab.entries[i];

		if (cowtab_find(&tab, e->name) != e)
			abort();
		if (!strcmp(e->name, COWTAB_ANY)) {
			if (e->open.create || e->open.new.force)
				abort();
			continue;
		}
		if (!name_is_plain(e->name) || !spec_is_valid(e->rdo) || !spec_is_valid(e->cow))
			abort();
	}
	cowtab_free(&tab);
}

int main(int argc, char **argv)
{
	const unsigned long count = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
	int fd = memfd_create("tabfuzz", MFD_CLOEXEC);
	char data[4096];

	if (fd < 0)
		abort();
	seed_random("tabfuzz", "TABFUZZ_SEED");
	/* What is said of bad lines is of no interest here; what the compiler's checks say goes to 2. */
	stderr = fopen("/dev/null", "w");
	if (!stderr)
		return 1;
	ctx = output_context();
	for (unsigned long n = 0; n < count; n++) {
		const char *from = tables[rnd(sizeof(tables) / sizeof(tables[0]))];
		size_t size = strlen(from);

		memcpy(data, from, size);
		size = mutate(data, size, sizeof(data));
		limit_time();
		run(fd, data, size);
	}
	printf("%lu tables\n", count);
	return 0;
}
