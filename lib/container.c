// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: images that are packed in something.
 *
 * The bytes of such a file are not those of the disk that is in it: a device made
 * of it has no filesystem, and the changes in a cowfile over it are to nothing.
 * squashfs, erofs and ISO 9660 are no containers in this sense, since the kernel
 * mounts them, and neither is LUKS, which cryptsetup opens above the device.
 *
 * A new one is a line in kinds[].
 */

#include "container.h"

#include <string.h>
#include <unistd.h>

#include "text.h"

/* Where it has its magic. */
#define FOOTER		(-512)	/* before the end, of files only: an old disk may have an old footer */

/* Bytes of the beginning, and of the end, that have all magics. */
#define MAGIC_ROOM	512

struct kind {
	int at;			/* bytes */
	size_t length;
	const char *magic;
	const char *what;
	const char *qemu;	/* its name there, if it is an image of a virtual machine */
	const char *command;	/* else: what to run, with the file's path, */
	const char *arguments;	/* and these behind it */
};

static const struct kind kinds[] = {
	{ 0, 8, "QFI\xfb\0\0\0\1", "a qcow image", "qcow", NULL, NULL },
	{ 0, 4, "QFI\xfb", "a qcow2 image", "qcow2", NULL, NULL },
	{ 0, 4, "QED\0", "a QED image", "qed", NULL, NULL },
	{ 0, 4, "KDMV", "a VMDK image", "vmdk", NULL, NULL },
	{ 0, 4, "COWD", "a VMDK image", "vmdk", NULL, NULL },
	{ 0, 8, "\xbe\xba\xfe\xca\0\0\0\0", "a VMDK image", "vmdk", NULL, NULL },
	{ 0, 21, "# Disk DescriptorFile", "the descriptor of a VMDK image", "vmdk", NULL, NULL },
	{ 0, 8, "\x63onectix", "a VHD image", "vpc", NULL, NULL },
	{ FOOTER, 8, "\x63onectix", "a VHD image, of fixed size", "vpc", NULL, NULL },
	{ 0, 8, "vhdxfile", "a VHDX image", "vhdx", NULL, NULL },
	{ 64, 4, "\x7f\x10\xda\xbe", "a VDI image", "vdi", NULL, NULL },
	{ 0, 16, "WithoutFreeSpace", "a Parallels image", "parallels", NULL, NULL },
	{ 0, 16, "WithouFreSpacExt", "a Parallels image", "parallels", NULL, NULL },
	{ FOOTER, 4, "koly", "a DMG image", "dmg", NULL, NULL },
	{ 0, 3, "\x1f\x8b\x08", "gzip data", NULL, "gzip -dk", "" },
	{ 0, 6, "\3757zXZ\0", "xz data", NULL, "xz -dk", "" },
	{ 0, 4, "\x28\xb5\x2f\xfd", "zstd data", NULL, "zstd -d", "" },
	{ 4, 6, "1AY&SY", "bzip2 data", NULL, "bzip2 -dk", "" },
	{ 0, 4, "\x04\x22\x4d\x18", "lz4 data", NULL, "lz4 -d", "" },
	{ 0, 5, "LZIP\1", "lzip data", NULL, "lzip -dk", "" },
	{ 0, 4, "PK\3\4", "a zip archive, or an AFF4 image", NULL, "unzip", "" },
	{ 0, 6, "7z\xbc\xaf\x27\x1c", "a 7z archive", NULL, "7z x", "" },
	{ 0, 8, "EVF\x09\x0d\x0a\xff\0", "an EWF image (E01)", NULL, "ewfmount", " DIRECTORY" },
	{ 0, 8, "EVF2\x0d\x0a\x81\0", "an EWF image (Ex01)", NULL, "ewfmount", " DIRECTORY" },
	{ 0, 8, "AFF10\x0d\x0a\0", "an AFF image", NULL, "affuse", " DIRECTORY" },
	{ 0, 4, "\x3a\xff\x26\xed", "an Android sparse image", NULL, "simg2img", " NEW" },
	{ 0, 15, "partclone-image", "a partclone image", NULL, "partclone.restore -C -s", " -O NEW" },
};

/* Without a word about errors: whoever needs what is in the file meets them, too. */
static bool read_at(const struct file *f, u64 offset, u8 *buf)
{
	memset(buf, 0, MAGIC_ROOM);
	return pread(f->fd, buf, MAGIC_ROOM, offset) > 0;
}

static const struct kind *find_kind(const struct file *f)
{
	u8 start[MAGIC_ROOM], end[MAGIC_ROOM];
	const struct kind *k;

	if (!read_at(f, 0, start))
		return NULL;
	if (f->block || f->size < MAGIC_ROOM || !read_at(f, f->size - MAGIC_ROOM, end))
		memset(end, 0, sizeof(end));
	for (k = kinds; k < kinds + sizeof(kinds) / sizeof(kinds[0]); k++)
		if (!memcmp(k->at == FOOTER ? end : start + k->at, k->magic, k->length))
			return k;
	return NULL;
}

int container_text(struct cowloop_ctx *ctx, const struct file *f, char **text)
{
	const struct kind *k = find_kind(f);

	*text = NULL;
	if (!k)
		return OK;
	if (!k->qemu)
		*text = text_of("this is %s, and not an image as it is, which %s %s%s makes of it",
				k->what, k->command, f->path, k->arguments);
	else
		*text = text_of("this is %s, and not an image as it is, which qemu-img convert -f %s -O raw %s NEW makes of it; qemu-nbd -f %s --read-only --connect=/dev/nbd0 %s makes a device",
				k->what, k->qemu, f->path, k->qemu, f->path);
	return *text ? OK : error_memory(ctx);
}
