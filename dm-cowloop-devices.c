// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: the devices of a target, and which cowfiles are in use by whom.
 *
 * When a later target of a table opens a device for writing that we have open for reading,
 * device-mapper makes another dm_dev of it, and frees ours. (The block device stays where it
 * is.) So dm_devs are looked up again before they are used, until the table is live: then
 * all of its targets are there.
 */

#include "dm-cowloop-internal.h"

#include <linux/dm-io.h>
#include <linux/srcu.h>

/*
 * Cowloop devices that may lie one over the other, as rdo or as cow device. The end of a bio
 * is told from the lowest to the highest on one stack, which some two hundred exhaust.
 */
#define COW_MAX_DEPTH		16

struct cow_devices {
	struct cowloop *cow;
	struct dm_dev *rdo;
	struct dm_dev *cow_dev;		/* NULL once it has been let go */
	bool are_live;
	char rdo_name[sizeof_field(struct dm_dev, name)];
	char cow_name[sizeof_field(struct dm_dev, name)];

	struct cowfile *cowfile;
	struct list_head user;		/* in cowfile->users */
	unsigned int depth;		/* of cowloop devices one over the other, with this one */
};

/*
 * A cowfile in use, and the targets that use it: more than one while a table
 * is reloaded, of which one at most is live.
 */
struct cowfile {
	struct list_head list;
	struct block_device *bdev;
	struct mapped_device *owner;
	struct cow_md *md;		/* NULL while it is being opened */
	bool closing;			/* not to be shared any more */
	struct list_head users;		/* of cow_devices */
};

static DEFINE_MUTEX(cowfiles_lock);
/* Cow devices are let go of when nobody looks at them: see cowloop_iterate_devices(). */
DEFINE_STATIC_SRCU(cow_devices_srcu);
static LIST_HEAD(cowfiles);

/* ---- Who may use what ---- */

static int in_use(struct cowloop *cow, struct block_device *bdev, struct mapped_device *by,
		  const char *as)
{
	DMERR("%s: device %pg is in use by %s as its %s", cow_name(cow), bdev,
	      dm_device_name(by), as);
	cow->ti->error = "Device is in use by another cowloop device";

	return -EBUSY;
}

/* Our cow device, which is @number, may be nobody's read-only device. */
static int check_read_only_devices(struct cowloop *cow, dev_t number)
{
	struct cowfile *file;
	struct cow_devices *user;

	lockdep_assert_held(&cowfiles_lock);
	list_for_each_entry(file, &cowfiles, list)
		list_for_each_entry(user, &file->users, user)
			if (user->cow->rdo_bdev->bd_dev == number)
				return in_use(cow, user->cow->rdo_bdev, file->owner,
					      "read-only device");
	return 0;
}

/* Another device must not have our cow device at all, nor our rdo as its cow device. */
static int check_devices(struct cowloop *cow, struct mapped_device *md)
{
	struct block_device *bdev = cow->cow_bdev;
	struct cowfile *file;
	struct cow_devices *user;

	list_for_each_entry(file, &cowfiles, list) {
		if (file->bdev == cow->rdo_bdev)
			return in_use(cow, file->bdev, file->owner, "cow device");
		if (file->bdev == bdev && (file->owner != md || !file->md || file->closing))
			return in_use(cow, bdev, file->owner, "cow device");
		list_for_each_entry(user, &file->users, user)
			if (file->bdev == bdev && user->cow->ti->table == cow->ti->table)
				return in_use(cow, bdev, md, "cow device in the same table");
	}
	/* Again: others may have come since check_cow_number(). */
	return check_read_only_devices(cow, bdev->bd_dev);
}

/* ---- How deep ---- */

/* The depth of the cowloop device that @bdev is, or is a part of; 0 if it is none. */
static unsigned int depth_of(struct block_device *bdev)
{
	unsigned int depth = 0;
	struct cowfile *file;
	struct cow_devices *user;

	lockdep_assert_held(&cowfiles_lock);
	list_for_each_entry(file, &cowfiles, list)
		if (dm_disk(file->owner) == bdev->bd_disk)
			list_for_each_entry(user, &file->users, user)
				depth = max(depth, user->depth);
	return depth;
}

/* The least depth of the cowloop devices that lie directly on @md; UINT_MAX if none does. */
static unsigned int depth_above(struct mapped_device *md)
{
	unsigned int depth = UINT_MAX;
	struct cowfile *file;
	struct cow_devices *user;

	lockdep_assert_held(&cowfiles_lock);
	list_for_each_entry(file, &cowfiles, list)
		list_for_each_entry(user, &file->users, user)
			if (user->cow->rdo_bdev->bd_disk == dm_disk(md) ||
			    (file->bdev && file->bdev->bd_disk == dm_disk(md)))
				depth = min(depth, user->depth);
	return depth;
}

/*
 * Work out our depth, and refuse what is too deep. The depth of a device that others lie
 * on does not become larger, since theirs would. Linear and loop devices, say, that are in
 * between are not seen.
 */
static int check_depth(struct cowloop *cow, struct mapped_device *md)
{
	const unsigned int depth = max(depth_of(cow->rdo_bdev), depth_of(cow->cow_bdev)) + 1;
	const unsigned int above = depth_above(md);

	if (depth > COW_MAX_DEPTH) {
		DMERR("%s: found %u cowloop devices one over the other, expected at most %u",
		      cow_name(cow), depth, COW_MAX_DEPTH);
		cow->ti->error = "Too many cowloop devices one over the other";
		return -EINVAL;
	}
	if (depth >= above) {
		DMERR("%s: cowloop devices lie on this one: found %u below it, expected at most %u",
		      cow_name(cow), depth - 1, above - 2);
		cow->ti->error = "Too many cowloop devices below one that others lie on";
		return -EINVAL;
	}
	cow->devices->depth = depth;

	return 0;
}

/* ---- Cowfiles ---- */

static struct cowfile *find_cowfile(struct block_device *bdev)
{
	struct cowfile *file;

	list_for_each_entry(file, &cowfiles, list)
		if (file->bdev == bdev)
			return file;
	return NULL;
}

static void put_cowfile(struct cow_devices *d)
{
	struct cowfile *file = d->cowfile;

	mutex_lock(&cowfiles_lock);
	list_del(&d->user);
	if (list_empty(&file->users))
		list_del(&file->list);
	else
		file = NULL;
	mutex_unlock(&cowfiles_lock);

	if (file) {
		if (file->md && d->cow_dev)
			cow_log_unsaved(d->cow, true);
		if (file->md)
			cow_md_close(file->md);
		kfree(file);
	}
}

/*
 * Find the cowfile that the live table of this device has open, or enter a new one, as which
 * @new is used, that is to be opened. Returns NULL with an errno in *@r if it may not be used.
 */
static struct cowfile *enter_cowfile(struct cow_devices *d, struct cowfile *new, int *r)
{
	struct cowloop *cow = d->cow;
	struct mapped_device *owner = dm_table_get_md(cow->ti->table);
	struct cowfile *file = NULL;

	mutex_lock(&cowfiles_lock);
	*r = check_devices(cow, owner);
	if (!*r)
		*r = check_depth(cow, owner);
	if (!*r) {
		file = find_cowfile(cow->cow_bdev);
		if (!file) {
			file = new;
			file->bdev = cow->cow_bdev;
			file->owner = owner;
			INIT_LIST_HEAD(&file->users);
			list_add(&file->list, &cowfiles);
		}
		d->cowfile = file;
		list_add(&d->user, &file->users);
	}
	mutex_unlock(&cowfiles_lock);

	return file;
}

/*
 * Open the cowfile, or, when a table is reloaded, share the one that the old
 * table has open. Opening may take long and is done without the lock.
 */
static int get_cowfile(struct cow_devices *d, const struct cow_md_args *args)
{
	struct cowfile *new = kzalloc(sizeof(*new), GFP_KERNEL);
	struct cowloop *cow = d->cow;
	struct cowfile *file;
	struct cow_md *md;
	int r;

	if (!new)
		return -ENOMEM;
	file = enter_cowfile(d, new, &r);
	if (file != new)
		kfree(new);
	if (!file)
		return r;

	if (file != new) {
		md = file->md;
		/* The live table may go meanwhile, and leave the cowfile to us. */
		cow->md = md;
		r = cow_md_check(md, args, &cow->ti->error);
	} else {
		md = cow_md_open(args, &cow->ti->error);
		r = PTR_ERR_OR_ZERO(md);
		if (!r) {
			mutex_lock(&cowfiles_lock);
			file->md = md;
			mutex_unlock(&cowfiles_lock);
		}
	}
	if (!r) {
		cow->md = md;
		return 0;
	}
	put_cowfile(d);
	d->cowfile = NULL;

	return r;
}

int cow_begin_closing(struct cowloop *cow)
{
	struct cowfile *file = cow->devices->cowfile;
	int r = 0;

	mutex_lock(&cowfiles_lock);
	if (list_is_singular(&file->users))
		file->closing = true;
	else
		r = -EBUSY;
	mutex_unlock(&cowfiles_lock);

	return r;
}

void cow_end_closing(struct cowloop *cow, bool closed)
{
	struct cow_devices *d = cow->devices;
	struct dm_dev *dev = d->cow_dev;

	mutex_lock(&cowfiles_lock);
	d->cowfile->closing = false;
	if (closed) {
		d->cowfile->bdev = NULL;
		WRITE_ONCE(d->cow_dev, NULL);
		WRITE_ONCE(cow->cow_bdev, NULL);
	}
	mutex_unlock(&cowfiles_lock);

	if (closed) {
		/* After that cowloop_iterate_devices() has it no more, either. */
		synchronize_srcu(&cow_devices_srcu);
		dm_put_device(cow->ti, dev);
	}
}

/* ---- Devices ---- */

/* The number of the device that dm_get_device() would open. */
static int device_number(const char *path, dev_t *number)
{
	unsigned int major, minor;
	char dummy;

	if (sscanf(path, "%u:%u%c", &major, &minor, &dummy) != 2)
		return lookup_bdev(path, number);
	*number = MKDEV(major, minor);
	return 0;
}

static int get_rdo(struct cow_devices *d, const char *path)
{
	struct cowloop *cow = d->cow;
	int r;

	r = dm_get_device(cow->ti, path, BLK_OPEN_READ, &d->rdo);
	if (r) {
		DMERR("%s: cannot open the read-only device %s: error %d",
		      cow_name(cow), path, r);
		cow->ti->error = "Cannot open the read-only device";
		return r;
	}
	cow->rdo_bdev = d->rdo->bdev;
	strscpy(d->rdo_name, d->rdo->name, sizeof(d->rdo_name));

	return 0;
}

/*
 * Before the cow device, which is @number, is opened: a device that the table has already,
 * but not for writing, would get another dm_dev, and whoever has the old one would be left
 * with freed memory.
 */
static int check_cow_number(struct cowloop *cow, dev_t number)
{
	int r;

	if (number == cow->rdo_bdev->bd_dev) {
		DMERR("%s: %pg is given as the read-only device and as the cow device",
		      cow_name(cow), cow->rdo_bdev);
		cow->ti->error = "Read-only device and cow device are the same";
		return -EINVAL;
	}
	mutex_lock(&cowfiles_lock);
	r = check_read_only_devices(cow, number);
	mutex_unlock(&cowfiles_lock);

	return r;
}

static int get_cow(struct cow_devices *d, const char *path)
{
	struct cowloop *cow = d->cow;
	const blk_mode_t mode = cow->opt.read_only ? BLK_OPEN_READ :
						     BLK_OPEN_READ | BLK_OPEN_WRITE;
	dev_t number;
	int r;

	r = device_number(path, &number);
	if (!r) {
		r = check_cow_number(cow, number);
		if (r)
			return r;
		r = dm_get_device(cow->ti, path, mode, &d->cow_dev);
	}
	if (r) {
		DMERR("%s: cannot open the cow device %s: error %d", cow_name(cow), path, r);
		cow->ti->error = "Cannot open the cow device";
		return r;
	}
	cow->cow_bdev = d->cow_dev->bdev;
	strscpy(d->cow_name, d->cow_dev->name, sizeof(d->cow_name));
	if (!cow->opt.read_only && bdev_read_only(cow->cow_bdev)) {
		DMERR("%s: cow device %pg is read-only, expected writable or option 'read_only'",
		      cow_name(cow), cow->cow_bdev);
		cow->ti->error = "Cow device is read-only";
		return -EACCES;
	}
	return 0;
}

int cow_devices_create(struct cowloop *cow, char **argv)
{
	struct cow_devices *d = kzalloc(sizeof(*d), GFP_KERNEL);
	struct cow_md_args args;
	int r;

	if (!d)
		return -ENOMEM;
	cow->devices = d;
	d->cow = cow;
	r = get_rdo(d, argv[0]);
	if (!r)
		r = get_cow(d, argv[1]);
	if (r)
		return r;

	args = (struct cow_md_args) {
		.name = cow_name(cow),
		.rdo = cow->rdo_bdev,
		.cow = cow->cow_bdev,
		.io = dm_io_client_create(),
		.length = cow->ti->len,
		.format = cow->opt.format,
		.mapunit = cow->opt.mapunit,
		.repair = cow->opt.repair,
		.read_only = cow->opt.read_only,
	};
	if (IS_ERR(args.io))
		return PTR_ERR(args.io);
	r = get_cowfile(d, &args);
	dm_io_client_destroy(args.io);

	return r;
}

void cow_devices_destroy(struct cowloop *cow)
{
	struct cow_devices *d = cow->devices;

	if (!d)
		return;
	if (d->cowfile)
		put_cowfile(d);
	if (d->cow_dev)
		dm_put_device(cow->ti, d->cow_dev);
	if (d->rdo)
		dm_put_device(cow->ti, d->rdo);
	kfree(d);
}

/* Look up what device-mapper has now for the device that @name is; it is in our table. */
static void renew_device(struct cowloop *cow, const char *name, struct dm_dev **dev)
{
	struct dm_dev *now;

	/* A device that we have counted already is counted once more: nothing is opened. */
	if (!dm_get_device(cow->ti, name, BLK_OPEN_READ, &now)) {
		*dev = now;
		dm_put_device(cow->ti, now);
	}
}

void cow_renew_devices(struct cowloop *cow)
{
	struct cow_devices *d = cow->devices;

	if (READ_ONCE(d->are_live))
		return;
	renew_device(cow, d->rdo_name, &d->rdo);
	if (d->cow_dev)
		renew_device(cow, d->cow_name, &d->cow_dev);
}

void cow_devices_are_live(struct cowloop *cow)
{
	cow_renew_devices(cow);
	WRITE_ONCE(cow->devices->are_live, true);
}

const char *cow_rdo_name(struct cowloop *cow)
{
	return cow->devices->rdo_name;
}

const char *cow_cow_name(struct cowloop *cow)
{
	return cow->devices->cow_name;
}

int cowloop_iterate_devices(struct dm_target *ti, iterate_devices_callout_fn fn, void *data)
{
	struct cowloop *cow = ti->private;
	struct cow_devices *d = cow->devices;
	struct dm_dev *dev;
	unsigned int block;
	sector_t cow_len;
	int r, idx;

	cow_renew_devices(cow);
	r = fn(ti, d->rdo, 0, ti->len, data);
	idx = srcu_read_lock(&cow_devices_srcu);
	dev = READ_ONCE(d->cow_dev);
	if (!r && dev) {
		/*
		 * The cow device may end before its last unit, so there is no length to
		 * ask for: take all of it, in the larger of both devices' blocks.
		 */
		block = max(bdev_logical_block_size(d->rdo->bdev),
			    bdev_logical_block_size(dev->bdev));
		cow_len = round_down(bdev_nr_sectors(dev->bdev), block >> SECTOR_SHIFT);
		r = fn(ti, dev, 0, cow_len, data);
	}
	srcu_read_unlock(&cow_devices_srcu, idx);

	return r;
}
