// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: whether a read-only device has been changed since its cowfile was made.
 *
 * The fingerprint samples 64 places, and a filesystem in a partition is written
 * elsewhere. The head of format 2 has the time when an image, a regular file, was
 * last modified. Another time is a hint: the file may be a copy that has not kept
 * it. So the superblocks of the filesystems in it are asked, too. ext4 has in its
 * superblock when it was last written, mounting and unmounting included; a later
 * time than the one in the head says that the image is not what it was.
 */

#include "changed.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <blkid/blkid.h>

#include "text.h"

/* In the superblock of ext2, ext3, ext4, at 1024 bytes: its magic, and when it was written, 40 bits of it. */
#define EXT_SUPER	1024
#define EXT_MAGIC	56
#define EXT_WTIME	48
#define EXT_WTIME_HIGH	0x274

/* A regular file's, in seconds since 1970; 0: not known. */
static u64 mtime_of(const struct file *rdo)
{
	struct stat st;

	return rdo->block || fstat(rdo->fd, &st) || st.st_mtime < 0 ? 0 : st.st_mtime;
}

bool changed_remember(struct cow_head *head, const struct file *rdo)
{
	const __le64 mtime = htole64(mtime_of(rdo));
	const bool changes = head->rdomtime != mtime;

	head->rdomtime = mtime;
	return changes;
}

/* When the filesystem at @offset was last written, 0 if it is none that has this. */
static u64 written_at(const struct file *rdo, u64 offset)
{
	u8 super[1024];
	__le32 low;

	if (offset > rdo->size ||
	    pread(rdo->fd, super, sizeof(super), offset + EXT_SUPER) != sizeof(super) ||
	    super[EXT_MAGIC] != 0x53 || super[EXT_MAGIC + 1] != 0xef)
		return 0;
	memcpy(&low, super + EXT_WTIME, sizeof(low));
	return le32(low) | (u64)super[EXT_WTIME_HIGH] << 32;
}

static const char *time_text(u64 seconds, char *text, size_t room)
{
	const time_t when = seconds;
	struct tm tm;

	if (!localtime_r(&when, &tm) || !strftime(text, room, "%Y-%m-%d %H:%M:%S", &tm))
		return "a time that is none";
	return text;
}

static char *written_text(u64 when, int partition)
{
	char text[40];

	return partition ? text_of("the filesystem in partition %d was written on %s", partition,
				   time_text(when, text, sizeof(text))) :
			   text_of("its filesystem was written on %s", time_text(when, text, sizeof(text)));
}

/* Which filesystem was written after @since: *@text, or NULL. */
static int find_written(struct cowloop_ctx *ctx, const struct file *rdo, u64 since, char **text)
{
	blkid_probe pr = blkid_new_probe();
	blkid_partlist parts = NULL;
	u64 when = written_at(rdo, 0);
	bool found = when > since;
	blkid_partition part;

	*text = found ? written_text(when, 0) : NULL;
	if (!found && pr && !blkid_probe_set_device(pr, rdo->fd, 0, 0))
		parts = blkid_probe_get_partitions(pr);
	for (int i = 0; parts && !found && i < blkid_partlist_numof_partitions(parts); i++) {
		part = blkid_partlist_get_partition(parts, i);
		when = written_at(rdo, (u64)blkid_partition_get_start(part) * 512);
		found = when > since;
		if (found)
			*text = written_text(when, blkid_partition_get_partno(part));
	}
	blkid_free_probe(pr);
	return !pr || (found && !*text) ? error_memory(ctx) : OK;
}

int changed_since(struct cowloop_ctx *ctx, const struct cow_head *head, const struct file *rdo, char **text,
		  bool *proof)
{
	const u64 then = le64(head->rdomtime), now = mtime_of(rdo);
	char then_text[40], now_text[40], *written;
	int r;

	*text = NULL;
	*proof = false;
	if (le16(head->version) != 2 || !then || !now || then == now)
		return OK;
	r = find_written(ctx, rdo, then, &written);
	if (r)
		return r;
	*proof = written;
	*text = text_of("%s has been modified since this cowfile was made for it, or was last found to agree with it: on %s, and then it was of %s%s%s",
			rdo->path, time_text(now, now_text, sizeof(now_text)),
			time_text(then, then_text, sizeof(then_text)), written ? "; " : "", written ? written : "");
	free(written);
	return *text ? OK : error_memory(ctx);
}
