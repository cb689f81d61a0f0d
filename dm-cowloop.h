/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * dm-cowloop: the cowfile on disk, for the kernel and for the tools.
 *
 * A cowfile is a head, a bitmap with a bit for every unit of the read-only
 * device (rdo), and room for all the units, each at its own place:
 *
 *	+--------+ 0
 *	| head   |
 *	+--------+ moffset
 *	| bitmap | mapsize bytes
 *	+--------+ doffset
 *	| unit 0 |
 *	| unit 1 | unit n is at doffset + n * mapunit, if its bit is set
 *	| ...    |
 *	+--------+
 *
 * All integers are little-endian. All offsets and sizes are bytes unless a
 * name says otherwise.
 */

#ifndef DM_COWLOOP_H
#define DM_COWLOOP_H

#include <linux/types.h>

#ifdef __KERNEL__
#include <linux/math64.h>
#else
#ifndef __packed
#define __packed	__attribute__((packed))
#endif

static inline __u64 div_u64(__u64 dividend, __u32 divisor)
{
	return dividend / divisor;
}
#endif

#define COW_MAGIC		0x574f437fU	/* bytes 7f 43 4f 57 */

/* cow_head.flags */
#define COW_FLAG_DIRTY		0x0001	/* cowused (format 1: and the bitmap) may be behind */
#define COW_FLAG_PACKED		0x0002	/* a packed file, for transport only */

#define COW_V1_MAPUNIT		1024U	/* also the size of a format 1 head */
#define COW_V2_MAPUNIT		4096U	/* the default */
#define COW_V2_MAPUNIT_MAX	(1024U * 1024)
#define COW_V2_MOFFSET		4096U
#define COW_BLANK_SIZE		4096U	/* a cow device that begins with so many zeroes is blank */

/*
 * The bitmap is handled in sectors. Those of format 1 are all bits. Those of
 * format 2 stand for themselves: the bits, then a CRC-32C of the bits and of
 * the sector's index (as a le64 that is not stored). A sector of zeroes only
 * is valid: no unit is set.
 */
#define COW_MAP_SECTOR		512U
#define COW_V1_SECTOR_BYTES	512U
#define COW_V2_SECTOR_BYTES	508U

/*
 * Marks of a merge that has begun and not come to its end. The cowfile can't be
 * used meanwhile. In format 1 they make the version one that no driver knows (and
 * not a negative one: the original takes it for signed).
 */
#define COW_INCOMPAT_MERGING	0x00000001U	/* rdo is being written */
#define COW_INCOMPAT_MERGED	0x00000002U	/* rdo has it all; the cowfile is being emptied */
#define COW_V1_MERGING		0x4001U
#define COW_V1_MERGED		0x4002U

/*
 * A record of what rdo was when the merge began, at COW_RECORD_OFFSET: valid while MERGING,
 * zeroes in a cowfile that is not being merged. A merge that is taken up again
 * knows by it that this is the same device still: each sector of the samples is
 * as it was, or as the cowfile has it. In format 1 the record ends after one
 * sector.
 */
#define COW_RECORD_OFFSET	512U
#define COW_RECORD_MAGIC	0x4752454dU	/* bytes "MERG" */
#define COW_RECORD_NO_BLOCK	(~0ULL)
#define COW_V1_RECORD_SIZE	512U
#define COW_V2_RECORD_SIZE	3584U

/* The features with which a cowfile can be used. */
#define COW_INCOMPAT_KNOWN	0U
#define COW_COMPAT_RO_KNOWN	0U

/* Format 1 ends with cowused, zero-padded to 1024 bytes. */
struct cow_head {
	__le32 magic;
	__le16 version;
	__le16 flags;
	__le64 mapunit;
	__le64 mapsize;
	__le64 doffset;
	__le64 rdoblocks;	/* units in the read-only device */
	__le64 rdofingerprint;
	__le64 cowused;		/* bits set; exact unless DIRTY */

	__le64 rdosectors;	/* exact size of rdo, 512-byte sectors */
	__le64 moffset;
	__le32 incompat;	/* unknown bit set: refuse */
	__le32 compat_ro;	/* unknown bit set: read-only at most */
	__u8 uuid[16];
	__u8 label[64];		/* UTF-8, NUL-padded */
	__u8 rdospec[256];	/* where to find rdo at assembly, NUL-padded */
	__u8 reserved[32];
	__le64 rdomtime;	/* a hint for tools: when rdo, a file, was last modified */
	__u8 reserved2[52];
	__le32 csum;		/* CRC-32C of all that is before it */
} __packed;

#define COW_V1_HEAD_SIZE	56U	/* what is used of the 1024 bytes */
#define COW_V2_HEAD_SIZE	512U

/* A bitmap sector of format 2. */
struct cow_map_sector {
	__u8 bits[COW_V2_SECTOR_BYTES];
	__le32 csum;
} __packed;

/*
 * The record of a merge. The samples are what the fingerprint is made of: in
 * format 1 four blocks of 1024 bytes, in format 2 64 of 4096.
 */
struct cow_merge_record {
	__le32 magic;
	__le32 csum;		/* CRC-32C of all that is behind it */
	__le64 rdofingerprint;	/* the same as in the head */
	__le64 block[4];	/* format 1: the samples, in blocks of 1024; or NO_BLOCK */
	__le32 sector[512];	/* CRC-32C of each sector of each sample, as it was */
	__u8 zero[1488];
} __packed;

/* How a cowfile is laid out; follows from format, mapunit and rdo's size. */
struct cow_geometry {
	__u32 format;
	__u32 mapunit;
	__u64 nr_units;
	__u64 moffset;
	__u64 mapsize;
	__u64 doffset;		/* of a new cowfile; format 2 may have a larger one */
	__u64 rdo_sectors;	/* what the units span */
};

static inline __u64 cow_round_up(__u64 n, __u32 power_of_two)
{
	return (n + power_of_two - 1) & ~((__u64)power_of_two - 1);
}

/*
 * Work out the geometry of a cowfile of @format (1 or 2) with units of
 * @mapunit bytes (a valid one) over a read-only device of @rdo_sectors.
 */
static inline void cow_geometry_init(struct cow_geometry *geo, __u32 format,
				     __u32 mapunit, __u64 rdo_sectors)
{
	const __u32 unit_sectors = mapunit / 512;

	geo->format = format;
	geo->mapunit = mapunit;
	if (format == 1) {
		geo->nr_units = div_u64(rdo_sectors, unit_sectors);
		geo->rdo_sectors = geo->nr_units * unit_sectors;
		geo->moffset = COW_V1_MAPUNIT;
		/* Not quite DIV_ROUND_UP(nr_units, 8): the original's arithmetic. */
		geo->mapsize = geo->nr_units;
		if (geo->mapsize % 8)
			geo->mapsize += 8;
		geo->mapsize = cow_round_up(geo->mapsize / 8, 1024);
		geo->doffset = cow_round_up(geo->moffset + geo->mapsize, 4096);
	} else {
		geo->nr_units = div_u64(rdo_sectors + unit_sectors - 1, unit_sectors);
		geo->rdo_sectors = rdo_sectors;
		geo->moffset = COW_V2_MOFFSET;
		geo->mapsize = div_u64(geo->nr_units + COW_V2_SECTOR_BYTES * 8 - 1,
				       COW_V2_SECTOR_BYTES * 8) * COW_MAP_SECTOR;
		geo->mapsize = cow_round_up(geo->mapsize, 4096);
		geo->doffset = cow_round_up(geo->moffset + geo->mapsize, mapunit);
	}
}

static inline int cow_v2_mapunit_valid(__u64 mapunit)
{
	return mapunit >= COW_V2_MAPUNIT && mapunit <= COW_V2_MAPUNIT_MAX &&
	       !(mapunit & (mapunit - 1));
}

#endif /* DM_COWLOOP_H */
