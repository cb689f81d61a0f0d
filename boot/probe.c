// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup: tells udev whether there is a cowfile on a device.
 *
 * A cowfile is looked for on every device that appears, of which nearly none has
 * one: no more than a head is read, nothing is said when it is something else, and
 * it is a cowfile only if its head breaks no rule: format 2 has its checksum,
 * format 1, which has none, its sizes, which follow from each other, and the
 * zeroes behind them.
 *
 * Or else: whether the device is a part of a cowloop device. What is in an
 * image, a volume group say, is then on two devices or three with the same
 * contents, and udev is to see it on the cowloop device alone.
 */

#include "probe.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <blkid/blkid.h>
#include <uuid/uuid.h>

#include "../lib/loopfile.h"
#include "../lib/spec.h"
#include "../lib/sysfs.h"
#include "../lib/text.h"
#include "boot.h"
#include "memory.h"

/* blkid(8)'s, for nothing that could be identified. */
#define NOTHING	2

/* The bytes of a head of format 1 that mean something. */
#define V1_HEAD_BYTES	56

/* ---- Heads ---- */

struct counter {
	struct cow_faults faults;
	unsigned int nr;
};

static void count(struct cow_faults *faults, const char *id, const char *text)
{
	(void)id;
	(void)text;
	((struct counter *)faults)->nr++;
}

/* Is there a cowfile that could be opened, or merged or repaired? Not a packed one: that is not for devices. */
static bool is_cowfile(struct cowfile *c)
{
	struct counter counter = { .faults.found = count };

	if (c->file.size < COW_V1_MAPUNIT ||
	    pread(c->file.fd, &c->head, sizeof(c->head), 0) != sizeof(c->head) ||
	    le32(c->head.magic) != COW_MAGIC ||
	    cow_check_head(c, &counter.faults) || counter.nr || c->state == COW_PACKED)
		return false;
	return c->format != 1 || all_zero((u8 *)&c->head + V1_HEAD_BYTES, sizeof(c->head) - V1_HEAD_BYTES);
}

char *head_label(const struct cow_head *head, unsigned int format)
{
	return xasprintf("%.*s", format == 2 ? (int)sizeof(head->label) : 0, (const char *)head->label);
}

char *head_rdo_spec(const struct cow_head *head, unsigned int format)
{
	return xasprintf("%.*s", format == 2 ? (int)sizeof(head->rdospec) : 0, (const char *)head->rdospec);
}

/* ---- All devices ---- */

/* Without a word about what can't be opened: drives without a medium, for example. */
static bool look_at(struct cowloop_ctx *ctx, const char *path, struct cowfile *c)
{
	int fd = open_checked(path, O_RDONLY | O_NONBLOCK, false);
	bool found;

	*c = (struct cowfile){ .file = FILE_CLOSED };
	if (fd < 0)
		return false;
	found = !file_from_fd(ctx, &c->file, fd, path) && is_cowfile(c);
	cow_close(c);
	return found;
}

static dev_t device_number(const char *name)
{
	char *path = xasprintf("/sys/class/block/%s/dev", name);
	unsigned int maj = 0, min = 0;
	FILE *f = fopen(path, "re");

	if (f && fscanf(f, "%u:%u", &maj, &min) != 2)
		maj = min = 0;
	if (f)
		fclose(f);
	free(path);
	return makedev(maj, min);
}

/* The next device that has anything in it: its path, to be freed; NULL: that was the last. */
static char *next_device(DIR *dir, dev_t *dev)
{
	struct dirent *entry;
	char *size, *path;

	while ((entry = readdir(dir))) {
		*dev = device_number(entry->d_name);
		size = *dev ? dev_attribute(*dev, "size") : NULL;
		path = size && strcmp(size, "0") ? dev_path(*dev) : NULL;
		free(size);
		if (path)
			return path;
	}
	return NULL;
}

int find_cow_devices(struct cowloop_ctx *ctx, struct cow_device **devices, size_t *nr)
{
	DIR *dir = opendir("/sys/class/block");
	struct cow_device *grown;
	struct cowfile c;
	char *path;
	dev_t dev;

	*devices = NULL;
	*nr = 0;
	if (!dir)
		return error_errno(ctx, "/sys/class/block: the block devices cannot be listed");
	while ((path = next_device(dir, &dev))) {
		if (!look_at(ctx, path, &c)) {
			free(path);
			continue;
		}
		grown = xrealloc(*devices, (*nr + 1) * sizeof(**devices));
		if (!grown)
			out_of_memory();
		*devices = grown;
		grown[(*nr)++] = (struct cow_device){ path, c.head, c.format };
	}
	closedir(dir);
	return OK;
}

void free_cow_devices(struct cow_device *devices, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		free(devices[i].path);
	free(devices);
}

/* Does libblkid find that UUID or label there? */
static bool device_has_tag(const char *path, const char *tag, const char *value)
{
	int fd = open_checked(path, O_RDONLY | O_NONBLOCK, false);
	blkid_probe pr = fd < 0 ? NULL : blkid_new_probe();
	const char *found;
	bool has = false;

	if (pr && !blkid_probe_set_device(pr, fd, 0, 0)) {
		blkid_probe_enable_superblocks(pr, 1);
		blkid_probe_set_superblocks_flags(pr, BLKID_SUBLKS_UUID | BLKID_SUBLKS_LABEL);
		has = !blkid_do_safeprobe(pr) && !blkid_probe_lookup_value(pr, tag, &found, NULL) &&
		      !strcmp(found, value);
	}
	if (pr)
		blkid_free_probe(pr);
	if (fd >= 0)
		close(fd);
	return has;
}

/* The first device that is no cowloop device and has that tag: its path, to be freed, or NULL. */
static char *find_below(const char *tag, const char *value)
{
	DIR *dir = opendir("/sys/class/block");
	char *path;
	dev_t dev;

	while ((path = dir ? next_device(dir, &dev) : NULL)) {
		if (!dev_is_cowloop(dev) && device_has_tag(path, tag, value))
			break;
		free(path);
	}
	if (dir)
		closedir(dir);
	return path;
}

char *find_tagged(const char *spec)
{
	const char *value;
	const struct spec_tag *kind = spec_tag(spec, &value);
	char *tag, *path;
	struct stat st;

	if (!kind)
		return NULL;
	tag = xasprintf("%.*s", (int)strlen(kind->name) - 1, kind->name);
	path = blkid_evaluate_tag(tag, value, NULL);
	if (path && !stat(path, &st) && dev_is_cowloop(st.st_rdev)) {
		free(path);
		path = find_below(tag, value);
	}
	free(tag);
	return path;
}

/* ---- The whole ---- */

/*
 * As udev itself prints what libblkid finds: safe in a line, and, encoded, in the
 * name of a link. Controls, which udev leaves in, are visible: many a program
 * prints the properties of devices.
 */
static void print_text(const char *key, const char *text)
{
	/* Each byte may become four. */
	const size_t room = 4 * strlen(text) + 1;
	char *safe = xmalloc(room), *visible;

	if (!blkid_safe_string(text, safe, room)) {
		visible = xtext(text_visible(safe));
		printf("%s=%s\n", key, visible);
		free(visible);
	}
	if (!blkid_encode_string(text, safe, room))
		printf("%s_ENC=%s\n", key, safe);
	free(safe);
}

static void print_properties(const struct cowfile *c)
{
	char uuid[UUID_STR_LEN], *label = head_label(&c->head, c->format);

	printf("ID_FS_TYPE=cowloop\nID_FS_USAGE=other\nID_FS_VERSION=%u\n", c->format);
	if (c->format == 2) {
		uuid_unparse_lower(c->head.uuid, uuid);
		print_text("ID_FS_UUID", uuid);
	}
	if (*label)
		print_text("ID_FS_LABEL", label);
	free(label);
}

/* Tell which part of a cowloop device this one is; it is not read. */
static int probe_part(struct cowloop_ctx *ctx, const char *path)
{
	struct stat st;

	if (stat(path, &st))
		return error_errno(ctx, "%s: cannot be looked at", path);
	if (!S_ISBLK(st.st_mode))
		return error(ctx, WRONG, "%s: a file; only a block device can be a part of a cowloop device. The image or cowfile of an open one is attached to a loop device: losetup --list.",
			     path);
	if (dev_is_our_loop(st.st_rdev))
		printf("COWLOOP_PART=loop\n");
	else if (dev_is_part_of_cowloop(st.st_rdev))
		printf("COWLOOP_PART=device\n");
	else
		return NOTHING;
	return OK;
}

int boot_probe(struct cowloop_ctx *ctx, const char *device, bool part)
{
	struct cowfile c;
	int r;

	if (part)
		return probe_part(ctx, device);
	c = (struct cowfile){ .file = FILE_CLOSED };
	r = file_open(ctx, &c.file, device, FILE_READ);
	if (r)
		return r;
	if (is_cowfile(&c))
		print_properties(&c);
	else
		r = NOTHING;
	cow_close(&c);
	return r;
}
