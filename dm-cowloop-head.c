// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: heads are checked, and devices read for that, before a cowfile is used.
 *
 * The checks for format 1 alone are in dm-cowloop-format1.c, which calls this file.
 */

#include "dm-cowloop-compat.h"
#include "dm-cowloop-metadata-internal.h"

#include <linux/blkdev.h>
#include <linux/completion.h>
#include <linux/crc32c.h>
#include <linux/device-mapper.h>
#include <linux/dm-io.h>
#include <linux/sched/signal.h>
#include <linux/vmalloc.h>

u64 cow_bdev_bytes(struct block_device *bdev)
{
	return (u64)bdev_nr_sectors(bdev) << SECTOR_SHIFT;
}

int cow_read_sectors(const struct cow_md_args *args, struct block_device *bdev,
		     sector_t sector, sector_t count, void *to)
{
	struct dm_io_request req = {
		.bi_opf = REQ_OP_READ | REQ_SYNC,
		.mem.type = DM_IO_VMA,
		.mem.ptr.vma = to,
		.client = args->io,
	};
	struct dm_io_region where = {
		.bdev = bdev,
		.sector = sector,
		.count = count,
	};

	if (fatal_signal_pending(current))
		return -EINTR;
	cond_resched();
	return cow_dm_io(&req, 1, &where, NULL);
}

int cow_refuse(const struct cow_md_args *args, char **error, char *what, const char *fmt, ...)
{
	struct va_format vaf = { .fmt = fmt };
	va_list ap;

	va_start(ap, fmt);
	vaf.va = &ap;
	DMERR("%s: cow device %pg: %s: %pV", args->name, args->cow, what, &vaf);
	va_end(ap);
	*error = what;

	return -EINVAL;
}

int cow_refuse_io(const struct cow_md_args *args, char **error, int r,
		  struct block_device *bdev, char *what)
{
	DMERR("%s: device %pg: %s: error %d", args->name, bdev, what, r);
	*error = what;

	return r;
}

/* ---- The fingerprint of format 2 ---- */

#define COW_SAMPLES		64
#define COW_SAMPLE_SIZE		4096

struct cow_samples {
	atomic_t pending;
	atomic_t errors;
	struct completion done;
};

static void sample_read(unsigned long error, void *context)
{
	struct cow_samples *samples = context;

	if (error)
		atomic_inc(&samples->errors);
	if (atomic_dec_and_test(&samples->pending))
		complete(&samples->done);
}

COW_DM_IO_NOTIFY(sample_read)

/*
 * The fingerprint of format 2: a CRC-32C over 64 samples spread over the
 * device, all read at once, since the device may be far away.
 */
int cow_v2_fingerprint(const struct cow_md_args *args, void *buf, u64 *fingerprint)
{
	const sector_t nr_sectors = bdev_nr_sectors(args->rdo);
	const u64 nr_blocks = max_t(u64, nr_sectors / (COW_SAMPLE_SIZE / 512), 1);
	struct cow_samples samples = {
		.pending = ATOMIC_INIT(COW_SAMPLES + 1),
		.errors = ATOMIC_INIT(0),
	};
	struct dm_io_request req = {
		.bi_opf = REQ_OP_READ,
		.notify.fn = sample_read_notify,
		.notify.context = &samples,
		.client = args->io,
	};
	struct dm_io_region where = {
		.bdev = args->rdo,
		.count = min_t(sector_t, nr_sectors, COW_SAMPLE_SIZE / 512),
	};
	unsigned int i;

	BUILD_BUG_ON(COW_SAMPLES * COW_SAMPLE_SIZE > COW_IO_SIZE);
	memset(buf, 0, COW_SAMPLES * COW_SAMPLE_SIZE);
	init_completion(&samples.done);

	for (i = 0; i < COW_SAMPLES; i++) {
		where.sector = div_u64((nr_blocks - 1) * i, COW_SAMPLES - 1) *
			       (COW_SAMPLE_SIZE / 512);
		req.mem.type = DM_IO_VMA;
		req.mem.ptr.vma = buf + i * COW_SAMPLE_SIZE;
		if (cow_dm_io(&req, 1, &where, NULL))
			sample_read(1, &samples);
	}
	sample_read(0, &samples);
	wait_for_completion_io(&samples.done);
	if (atomic_read(&samples.errors))
		return -EIO;

	*fingerprint = (u32)~crc32c(~0U, buf, COW_SAMPLES * COW_SAMPLE_SIZE);
	return 0;
}

/* ---- Checking a head ---- */

int cow_check_packed(const struct cow_md_args *args, char **error,
		     const struct cow_head *head)
{
	if (le16_to_cpu(head->flags) & COW_FLAG_PACKED)
		return cow_refuse(args, error, "Cowfile is packed",
				  "found PACKED set, expected a cowfile that was unpacked");
	return 0;
}

int cow_check_sizes(const struct cow_md_args *args, char **error,
		    const struct cow_head *head, const struct cow_geometry *geo)
{
	u64 found;

	found = le64_to_cpu(head->rdoblocks);
	if (found != geo->nr_units)
		return cow_refuse(args, error,
				  "Cowfile belongs to a read-only device of another size",
				  "found %llu units of %u bytes, expected %llu, as %pg has",
				  found, geo->mapunit, geo->nr_units, args->rdo);

	found = le64_to_cpu(head->mapsize);
	if (found != geo->mapsize)
		return cow_refuse(args, error, "Wrong bitmap size in cowfile",
				  "found mapsize %llu, expected %llu", found, geo->mapsize);
	return 0;
}

int cow_refuse_merging(const struct cow_md_args *args, char **error)
{
	return cow_refuse(args, error, "Cowfile is being merged",
			  "found a merge begun, expected it to be done: see cowsetup merge");
}

int cow_v2_check_head(const struct cow_md_args *args, char **error,
		      const struct cow_head *head, struct cow_geometry *geo)
{
	u64 found, align;
	u32 csum, unknown;
	int r;

	csum = ~crc32c(~0U, head, offsetof(struct cow_head, csum));
	if (le32_to_cpu(head->csum) != csum)
		return cow_refuse(args, error, "Cowfile's head is damaged",
				  "found checksum 0x%08x, expected 0x%08x",
				  le32_to_cpu(head->csum), csum);

	r = cow_check_packed(args, error, head);
	if (r)
		return r;

	if (le32_to_cpu(head->incompat) & (COW_INCOMPAT_MERGING | COW_INCOMPAT_MERGED))
		return cow_refuse_merging(args, error);
	unknown = le32_to_cpu(head->incompat) & ~COW_INCOMPAT_KNOWN;
	if (unknown)
		return cow_refuse(args, error, "Cowfile needs features that this version lacks",
				  "found incompat 0x%08x, expected none but 0x%08x",
				  le32_to_cpu(head->incompat), COW_INCOMPAT_KNOWN);

	found = le64_to_cpu(head->mapunit);
	if (!cow_v2_mapunit_valid(found))
		return cow_refuse(args, error, "Wrong unit size in cowfile",
				  "found mapunit %llu, expected a power of two from %u to %u",
				  found, COW_V2_MAPUNIT, COW_V2_MAPUNIT_MAX);

	cow_geometry_init(geo, 2, found, bdev_nr_sectors(args->rdo));

	found = le64_to_cpu(head->rdosectors);
	if (found != geo->rdo_sectors)
		return cow_refuse(args, error,
				  "Cowfile belongs to a read-only device of another size",
				  "found %llu sectors, expected %llu, as %pg has",
				  found, geo->rdo_sectors, args->rdo);

	r = cow_check_sizes(args, error, head, geo);
	if (r)
		return r;

	found = le64_to_cpu(head->moffset);
	if (found != geo->moffset)
		return cow_refuse(args, error, "Wrong bitmap offset in cowfile",
				  "found moffset %llu, expected %llu", found, geo->moffset);

	found = le64_to_cpu(head->doffset);
	align = max(geo->mapunit, 4096U);
	if (found < geo->doffset || found & (align - 1) || found > S64_MAX / 2)
		return cow_refuse(args, error, "Wrong data offset in cowfile",
				  "found doffset %llu, expected a multiple of %llu from %llu on",
				  found, align, geo->doffset);
	geo->doffset = found;

	found = le64_to_cpu(head->cowused);
	if (!(le16_to_cpu(head->flags) & COW_FLAG_DIRTY) && found > geo->nr_units)
		return cow_refuse(args, error, "Wrong count of used units in cowfile",
				  "found cowused %llu, expected at most %llu",
				  found, geo->nr_units);
	return 0;
}
