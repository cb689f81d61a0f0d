// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-zeroes: a device-mapper target for tests. Gives write-zeroes to a device
 * that has none, by writing zeroes to it, and passes everything else on.
 *
 *	<start> <length> zeroes <dev> [<delay>]
 *
 * Discards and write-zeroes begin <delay> milliseconds later, so that other
 * writes, which do not, can overtake them.
 */

#include <linux/bio.h>
#include <linux/device-mapper.h>
#include <linux/dm-kcopyd.h>
#include <linux/module.h>
#include <linux/workqueue.h>

#define DM_MSG_PREFIX "zeroes"

struct zeroes {
	struct dm_dev *dev;
	struct dm_kcopyd_client *kcopyd;
	unsigned int delay;	/* in milliseconds */
};

/* A discard or write-zeroes that is to begin later */
struct zeroes_io {
	struct delayed_work work;
	struct dm_target *ti;
	struct bio *bio;
};

static int zeroes_ctr(struct dm_target *ti, unsigned int argc, char **argv)
{
	struct zeroes *zeroes;
	int r;

	if (argc != 1 && argc != 2) {
		ti->error = "Requires <dev> [<delay>]";
		return -EINVAL;
	}
	zeroes = kzalloc(sizeof(*zeroes), GFP_KERNEL);
	if (!zeroes) {
		ti->error = "Cannot allocate memory";
		return -ENOMEM;
	}
	zeroes->kcopyd = dm_kcopyd_client_create(NULL);
	if (IS_ERR(zeroes->kcopyd)) {
		ti->error = "Cannot allocate memory";
		r = PTR_ERR(zeroes->kcopyd);
		goto bad;
	}
	r = dm_get_device(ti, argv[0], dm_table_get_mode(ti->table), &zeroes->dev);
	if (r) {
		ti->error = "Cannot open the device";
		dm_kcopyd_client_destroy(zeroes->kcopyd);
		goto bad;
	}
	if (argc == 2 && kstrtouint(argv[1], 10, &zeroes->delay)) {
		ti->error = "Invalid delay";
		r = -EINVAL;
		dm_put_device(ti, zeroes->dev);
		dm_kcopyd_client_destroy(zeroes->kcopyd);
		goto bad;
	}
	ti->private = zeroes;
	ti->per_io_data_size = sizeof(struct zeroes_io);
	ti->num_flush_bios = 1;
	ti->num_discard_bios = 1;
	ti->num_write_zeroes_bios = 1;
	ti->flush_supported = true;

	return 0;
bad:
	kfree(zeroes);
	return r;
}

static void zeroes_dtr(struct dm_target *ti)
{
	struct zeroes *zeroes = ti->private;

	dm_kcopyd_client_destroy(zeroes->kcopyd);
	dm_put_device(ti, zeroes->dev);
	kfree(zeroes);
}

static void zeroes_written(int read_error, unsigned long write_error, void *context)
{
	struct bio *bio = context;

	bio->bi_status = write_error ? BLK_STS_IOERR : BLK_STS_OK;
	bio_endio(bio);
}

static int zeroes_begin(struct dm_target *ti, struct bio *bio)
{
	struct zeroes *zeroes = ti->private;
	struct dm_io_region to = {
		.bdev = zeroes->dev->bdev,
		.sector = dm_target_offset(ti, bio->bi_iter.bi_sector),
		.count = bio_sectors(bio),
	};

	if (bio_op(bio) == REQ_OP_WRITE_ZEROES) {
		dm_kcopyd_zero(zeroes->kcopyd, 1, &to, 0, zeroes_written, bio);
		return DM_MAPIO_SUBMITTED;
	}
	bio_set_dev(bio, to.bdev);
	bio->bi_iter.bi_sector = to.sector;

	return DM_MAPIO_REMAPPED;
}

static void zeroes_later(struct work_struct *work)
{
	struct zeroes_io *io = container_of(to_delayed_work(work), struct zeroes_io, work);

	if (zeroes_begin(io->ti, io->bio) == DM_MAPIO_REMAPPED)
		submit_bio_noacct(io->bio);
}

static int zeroes_map(struct dm_target *ti, struct bio *bio)
{
	struct zeroes *zeroes = ti->private;
	struct zeroes_io *io = dm_per_bio_data(bio, sizeof(*io));

	if (!zeroes->delay ||
	    (bio_op(bio) != REQ_OP_WRITE_ZEROES && bio_op(bio) != REQ_OP_DISCARD))
		return zeroes_begin(ti, bio);
	io->ti = ti;
	io->bio = bio;
	INIT_DELAYED_WORK(&io->work, zeroes_later);
	schedule_delayed_work(&io->work, msecs_to_jiffies(zeroes->delay));

	return DM_MAPIO_SUBMITTED;
}

/* The device has no write-zeroes, but this is not to be held against it. */
static int zeroes_iterate_devices(struct dm_target *ti, iterate_devices_callout_fn fn, void *data)
{
	return 0;
}

static void zeroes_io_hints(struct dm_target *ti, struct queue_limits *limits)
{
	struct zeroes *zeroes = ti->private;

	/*
	 * By hand, since dm takes over nothing from a device that it is not
	 * shown. Write-zeroes have no limit then.
	 */
	limits->logical_block_size = bdev_logical_block_size(zeroes->dev->bdev);
	limits->max_discard_sectors = bdev_max_discard_sectors(zeroes->dev->bdev);
	limits->max_hw_discard_sectors = limits->max_discard_sectors;
	limits->discard_granularity = bdev_discard_granularity(zeroes->dev->bdev);
}

static struct target_type zeroes_target = {
	.name = "zeroes",
	.version = {1, 0, 0},
	.module = THIS_MODULE,
	.ctr = zeroes_ctr,
	.dtr = zeroes_dtr,
	.map = zeroes_map,
	.iterate_devices = zeroes_iterate_devices,
	.io_hints = zeroes_io_hints,
};

static int __init zeroes_init(void)
{
	return dm_register_target(&zeroes_target);
}

static void __exit zeroes_exit(void)
{
	dm_unregister_target(&zeroes_target);
}

module_init(zeroes_init);
module_exit(zeroes_exit);

MODULE_DESCRIPTION("device-mapper target that writes zeroes where a device can't");
MODULE_LICENSE("GPL");
