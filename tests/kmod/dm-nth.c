// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-nth: a device-mapper target for tests. Passes everything on to a device,
 * but for the n-th bio of a kind, counted from when it was told to, which fails
 * as it was told to.
 *
 *	<start> <length> nth <dev>
 *
 * Messages:
 *	arm <read|write|flush|any> <n> <eio|enospc|timeout|drop|meta|preflush> [<how many>]
 *		n counts from 1; how many: 1 by default, 0 for all from there on
 *	disarm
 *	bad <sector>...
 *		besides, these can't be read any more, until they are written
 *	good
 *		all can
 *
 * Status: <bios of the kind since it was armed> <bios that have failed> <bad sectors>
 *
 * "drop" completes writes and flushes without doing them, and fails reads. With
 * "meta" nothing fails, but is passed on as a filesystem's metadata is; with "preflush"
 * as a write with a flush before it, and without FUA.
 */

#include <linux/bio.h>
#include <linux/bitmap.h>
#include <linux/device-mapper.h>
#include <linux/module.h>
#include <linux/spinlock.h>
#include <linux/vmalloc.h>

#define DM_MSG_PREFIX "nth"

enum { KIND_READ = 1, KIND_WRITE = 2, KIND_FLUSH = 4 };

struct nth {
	struct dm_dev *dev;
	spinlock_t lock;	/* all that follows */
	unsigned int kinds;	/* 0: not armed */
	unsigned long from, until;	/* the bios that fail; until is not one of them */
	blk_status_t status;
	bool drop;
	blk_opf_t as;		/* passed on with that, or 0: they fail */
	unsigned long seen, failed;
	unsigned long *bad;	/* a bit for each sector */
};

static int nth_ctr(struct dm_target *ti, unsigned int argc, char **argv)
{
	struct nth *nth;
	int r;

	if (argc != 1) {
		ti->error = "Requires <dev>";
		return -EINVAL;
	}
	nth = kzalloc(sizeof(*nth), GFP_KERNEL);
	if (!nth) {
		ti->error = "Cannot allocate memory";
		return -ENOMEM;
	}
	spin_lock_init(&nth->lock);
	nth->bad = vzalloc(BITS_TO_LONGS(ti->len) * sizeof(long));
	if (!nth->bad) {
		ti->error = "Cannot allocate memory";
		kfree(nth);
		return -ENOMEM;
	}
	r = dm_get_device(ti, argv[0], dm_table_get_mode(ti->table), &nth->dev);
	if (r) {
		ti->error = "Cannot open the device";
		vfree(nth->bad);
		kfree(nth);
		return r;
	}
	ti->private = nth;
	ti->num_flush_bios = 1;
	ti->num_discard_bios = 1;
	ti->num_write_zeroes_bios = 1;
	ti->flush_supported = true;

	return 0;
}

static void nth_dtr(struct dm_target *ti)
{
	struct nth *nth = ti->private;

	dm_put_device(ti, nth->dev);
	vfree(nth->bad);
	kfree(nth);
}

/* Does a read meet a bad sector? A write makes it good, as a drive does that has others for it. */
static bool nth_meets_bad(struct dm_target *ti, struct bio *bio)
{
	struct nth *nth = ti->private;
	unsigned long first, nr = bio_sectors(bio);

	if (!nr || (bio_op(bio) != REQ_OP_READ && bio_op(bio) != REQ_OP_WRITE))
		return false;
	first = dm_target_offset(ti, bio->bi_iter.bi_sector);
	if (bio_op(bio) == REQ_OP_READ)
		return find_next_bit(nth->bad, first + nr, first) < first + nr;
	bitmap_clear(nth->bad, first, nr);
	return false;
}

static int nth_map(struct dm_target *ti, struct bio *bio)
{
	struct nth *nth = ti->private;
	const unsigned int kind = bio->bi_opf & REQ_PREFLUSH ? KIND_FLUSH :
				  op_is_write(bio_op(bio)) ? KIND_WRITE : KIND_READ;
	bool fail = false, drop = false;
	blk_opf_t as = 0;
	blk_status_t status = BLK_STS_OK;
	unsigned long flags;

	spin_lock_irqsave(&nth->lock, flags);
	if (nth->kinds & kind) {
		nth->seen++;
		fail = nth->seen >= nth->from && nth->seen < nth->until;
		nth->failed += fail;
		status = nth->status;
		drop = nth->drop && kind != KIND_READ;
		as = nth->as;
	}
	if (fail && as) {
		fail = false;
		bio->bi_opf |= as;
		if (as & REQ_PREFLUSH)
			bio->bi_opf &= ~REQ_FUA;
	}
	if (!fail && nth_meets_bad(ti, bio)) {
		fail = true;
		status = BLK_STS_MEDIUM;
	}
	spin_unlock_irqrestore(&nth->lock, flags);

	if (fail) {
		bio->bi_status = drop ? BLK_STS_OK : status;
		bio_endio(bio);
		return DM_MAPIO_SUBMITTED;
	}
	bio_set_dev(bio, nth->dev->bdev);
	if (bio_sectors(bio))
		bio->bi_iter.bi_sector = dm_target_offset(ti, bio->bi_iter.bi_sector);

	return DM_MAPIO_REMAPPED;
}

static int nth_arm(struct nth *nth, unsigned int argc, char **argv)
{
	static const struct { const char *name; unsigned int kinds; } kinds[] = {
		{ "read", KIND_READ }, { "write", KIND_WRITE }, { "flush", KIND_FLUSH },
		{ "any", KIND_READ | KIND_WRITE | KIND_FLUSH },
	};
	static const struct {
		const char *name;
		blk_status_t status;
		bool drop;
		blk_opf_t as;
	} hows[] = {
		{ "eio", BLK_STS_IOERR }, { "enospc", BLK_STS_NOSPC },
		{ "timeout", BLK_STS_TIMEOUT }, { "drop", BLK_STS_IOERR, true },
		{ "meta", BLK_STS_OK, false, REQ_META },
		{ "preflush", BLK_STS_OK, false, REQ_PREFLUSH },
	};
	unsigned long n, count = 1;
	unsigned int kind, how;

	for (kind = 0; kind < ARRAY_SIZE(kinds) && strcmp(argv[1], kinds[kind].name);)
		kind++;
	for (how = 0; how < ARRAY_SIZE(hows) && strcmp(argv[3], hows[how].name);)
		how++;
	if (kind == ARRAY_SIZE(kinds) || how == ARRAY_SIZE(hows) ||
	    kstrtoul(argv[2], 10, &n) || !n ||
	    (argc == 5 && kstrtoul(argv[4], 10, &count)))
		return -EINVAL;

	spin_lock_irq(&nth->lock);
	nth->kinds = kinds[kind].kinds;
	nth->from = n;
	nth->until = count ? n + count : ULONG_MAX;
	nth->status = hows[how].status;
	nth->drop = hows[how].drop;
	nth->as = hows[how].as;
	nth->seen = 0;
	nth->failed = 0;
	spin_unlock_irq(&nth->lock);

	return 0;
}

static int nth_bad(struct dm_target *ti, unsigned int argc, char **argv)
{
	struct nth *nth = ti->private;
	unsigned long sector;

	for (; argc; argc--, argv++) {
		if (kstrtoul(*argv, 10, &sector) || sector >= ti->len)
			return -EINVAL;
		spin_lock_irq(&nth->lock);
		__set_bit(sector, nth->bad);
		spin_unlock_irq(&nth->lock);
	}
	return 0;
}

static int nth_message(struct dm_target *ti, unsigned int argc, char **argv,
		       char *result, unsigned int maxlen)
{
	struct nth *nth = ti->private;

	if ((argc == 4 || argc == 5) && !strcmp(argv[0], "arm"))
		return nth_arm(nth, argc, argv);
	if (argc > 1 && !strcmp(argv[0], "bad"))
		return nth_bad(ti, argc - 1, argv + 1);
	if (argc == 1 && !strcmp(argv[0], "good")) {
		spin_lock_irq(&nth->lock);
		bitmap_zero(nth->bad, ti->len);
		spin_unlock_irq(&nth->lock);
		return 0;
	}
	if (argc == 1 && !strcmp(argv[0], "disarm")) {
		spin_lock_irq(&nth->lock);
		nth->kinds = 0;
		spin_unlock_irq(&nth->lock);
		return 0;
	}
	return -EINVAL;
}

static void nth_status(struct dm_target *ti, status_type_t type, unsigned int status_flags,
		       char *result, unsigned int maxlen)
{
	struct nth *nth = ti->private;
	unsigned int sz = 0;

	switch (type) {
	case STATUSTYPE_INFO:
		DMEMIT("%lu %lu %u", READ_ONCE(nth->seen), READ_ONCE(nth->failed),
		       bitmap_weight(nth->bad, ti->len));
		break;
	case STATUSTYPE_TABLE:
		DMEMIT("%s", nth->dev->name);
		break;
	case STATUSTYPE_IMA:
		*result = '\0';
		break;
	}
}

static int nth_iterate_devices(struct dm_target *ti, iterate_devices_callout_fn fn, void *data)
{
	struct nth *nth = ti->private;

	return fn(ti, nth->dev, 0, ti->len, data);
}

static struct target_type nth_target = {
	.name = "nth",
	.version = {1, 0, 0},
	.module = THIS_MODULE,
	.ctr = nth_ctr,
	.dtr = nth_dtr,
	.map = nth_map,
	.message = nth_message,
	.status = nth_status,
	.iterate_devices = nth_iterate_devices,
};

static int __init dm_nth_init(void)
{
	return dm_register_target(&nth_target);
}

static void __exit dm_nth_exit(void)
{
	dm_unregister_target(&nth_target);
}

module_init(dm_nth_init);
module_exit(dm_nth_exit);

MODULE_DESCRIPTION(DM_NAME " target that fails the n-th I/O, for tests");
MODULE_LICENSE("GPL");
