// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: the devices of a target, and which cowfiles are in use by whom.
 */

#include "dm-cowloop-internal.h"

#include <linux/srcu.h>

#define DM_MSG_PREFIX "cowloop"

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
	struct list_head users;
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

/* Nobody may have our cow device, which is @number, as its read-only device. */
static int check_read_only_devices(struct cowloop *cow, dev_t number)
{
	struct cowfile *file;
	struct cowloop *user;

	lockdep_assert_held(&cowfiles_lock);
	list_for_each_entry(file, &cowfiles, list)
		list_for_each_entry(user, &file->users, user)
			if (user->rdo_bdev->bd_dev == number)
				return in_use(cow, user->rdo_bdev, file->owner,
					      "read-only device");
	return 0;
}

/* Another device must not have our cow device at all, nor our rdo as its cow device. */
static int check_devices(struct cowloop *cow, struct mapped_device *md)
{
	struct block_device *bdev = cow->cow->bdev;
	struct cowfile *file;
	struct cowloop *user;

	list_for_each_entry(file, &cowfiles, list) {
		if (file->bdev == cow->rdo->bdev)
			return in_use(cow, file->bdev, file->owner, "cow device");
		if (file->bdev == bdev && (file->owner != md || !file->md || file->closing))
			return in_use(cow, bdev, file->owner, "cow device");
		list_for_each_entry(user, &file->users, user)
			if (file->bdev == bdev && user->ti->table == cow->ti->table)
				return in_use(cow, bdev, md, "cow device in the same table");
	}
	/* Again: others may have come since cow_get_devices(). */
	return check_read_only_devices(cow, bdev->bd_dev);
}

/* ---- How deep ---- */

/* The depth of the cowloop device that @bdev is, or is a part of; 0 if it is none. */
static unsigned int depth_of(struct block_device *bdev)
{
	unsigned int depth = 0;
	struct cowfile *file;
	struct cowloop *user;

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
	struct cowloop *user;

	lockdep_assert_held(&cowfiles_lock);
	list_for_each_entry(file, &cowfiles, list)
		list_for_each_entry(user, &file->users, user)
			if (user->rdo_bdev->bd_disk == dm_disk(md) ||
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
	const unsigned int depth = max(depth_of(cow->rdo->bdev), depth_of(cow->cow->bdev)) + 1;
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
	cow->depth = depth;

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

void cow_put_cowfile(struct cowloop *cow)
{
	struct cowfile *file = cow->cowfile;

	mutex_lock(&cowfiles_lock);
	list_del(&cow->user);
	if (list_empty(&file->users))
		list_del(&file->list);
	else
		file = NULL;
	mutex_unlock(&cowfiles_lock);

	if (file) {
		if (file->md && cow->cow)
			cow_log_unsaved(cow, true);
		if (file->md)
			cow_md_close(file->md);
		kfree(file);
	}
}

/*
 * Open the cowfile, or, when a table is reloaded, share the one that the old
 * table has open. Opening may take long and is done without the lock.
 */
int cow_get_cowfile(struct cowloop *cow, const struct cow_md_args *args)
{
	struct mapped_device *owner = dm_table_get_md(cow->ti->table);
	struct cowfile *file, *new;
	struct cow_md *md;
	int r;

	new = kzalloc(sizeof(*new), GFP_KERNEL);
	if (!new)
		return -ENOMEM;

	mutex_lock(&cowfiles_lock);
	r = check_devices(cow, owner);
	if (!r)
		r = check_depth(cow, owner);
	if (r) {
		mutex_unlock(&cowfiles_lock);
		kfree(new);
		return r;
	}
	file = find_cowfile(cow->cow->bdev);
	md = file ? file->md : NULL;
	if (!file) {
		file = new;
		new = NULL;
		file->bdev = cow->cow->bdev;
		file->owner = owner;
		INIT_LIST_HEAD(&file->users);
		list_add(&file->list, &cowfiles);
	}
	cow->cowfile = file;
	list_add(&cow->user, &file->users);
	mutex_unlock(&cowfiles_lock);
	kfree(new);

	if (md) {
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
	if (r) {
		cow_put_cowfile(cow);
		cow->cowfile = NULL;
	} else {
		cow->md = md;
	}
	return r;
}

int cow_begin_closing(struct cowloop *cow)
{
	int r = 0;

	mutex_lock(&cowfiles_lock);
	if (list_is_singular(&cow->cowfile->users))
		cow->cowfile->closing = true;
	else
		r = -EBUSY;
	mutex_unlock(&cowfiles_lock);

	return r;
}

void cow_end_closing(struct cowloop *cow, bool closed)
{
	struct dm_dev *dev = cow->cow;

	mutex_lock(&cowfiles_lock);
	cow->cowfile->closing = false;
	if (closed) {
		cow->cowfile->bdev = NULL;
		WRITE_ONCE(cow->cow, NULL);
	}
	mutex_unlock(&cowfiles_lock);

	if (closed) {
		/* Not even cowloop_iterate_devices() has it any more. */
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

int cow_get_devices(struct cowloop *cow, struct dm_target *ti, char **argv)
{
	const blk_mode_t mode = cow->opt.read_only ? BLK_OPEN_READ :
						     BLK_OPEN_READ | BLK_OPEN_WRITE;
	dev_t number;
	int r;

	r = dm_get_device(ti, argv[0], BLK_OPEN_READ, &cow->rdo);
	if (r) {
		DMERR("%s: cannot open the read-only device %s: error %d",
		      cow_name(cow), argv[0], r);
		ti->error = "Cannot open the read-only device";
		return r;
	}
	cow->rdo_bdev = cow->rdo->bdev;

	/*
	 * Before the cow device is opened: a device that the table has already,
	 * but not for writing, would get another dm_dev, and whoever has the old
	 * one would be left with freed memory.
	 */
	r = device_number(argv[1], &number);
	if (!r && number == cow->rdo->bdev->bd_dev) {
		DMERR("%s: %pg is given as the read-only device and as the cow device",
		      cow_name(cow), cow->rdo->bdev);
		ti->error = "Read-only device and cow device are the same";
		return -EINVAL;
	}
	if (!r) {
		mutex_lock(&cowfiles_lock);
		r = check_read_only_devices(cow, number);
		mutex_unlock(&cowfiles_lock);
		if (r)
			return r;
		r = dm_get_device(ti, argv[1], mode, &cow->cow);
	}
	if (r) {
		DMERR("%s: cannot open the cow device %s: error %d", cow_name(cow), argv[1], r);
		ti->error = "Cannot open the cow device";
		return r;
	}
	if (!cow->opt.read_only && bdev_read_only(cow->cow->bdev)) {
		DMERR("%s: cow device %pg is read-only, expected writable or option 'read_only'",
		      cow_name(cow), cow->cow->bdev);
		ti->error = "Cow device is read-only";
		return -EACCES;
	}
	return 0;
}

/* What device-mapper has now for the device that @name, "major:minor", is; it is in our table. */
static void renew_device(struct cowloop *cow, const char *name, struct dm_dev **dev)
{
	struct dm_dev *now;

	/* This opens nothing, and counts once more what we have counted already. */
	if (!dm_get_device(cow->ti, name, BLK_OPEN_READ, &now)) {
		*dev = now;
		dm_put_device(cow->ti, now);
	}
}

/*
 * When a later target of the table opens a device for writing that we have open for reading,
 * device-mapper makes another dm_dev of it, and frees ours. (The block device stays what and
 * where it is.) So dm_devs are looked up again before they are used, until the table is live:
 * then all of its targets are there. Sleeps.
 */
void cow_renew_devices(struct cowloop *cow)
{
	if (READ_ONCE(cow->has_resumed))
		return;
	renew_device(cow, cow->rdo_name, &cow->rdo);
	renew_device(cow, cow->cow_name, &cow->cow);
}

int cowloop_iterate_devices(struct dm_target *ti, iterate_devices_callout_fn fn, void *data)
{
	struct cowloop *cow = ti->private;
	struct dm_dev *dev;
	unsigned int block;
	sector_t cow_len;
	int r, idx;

	cow_renew_devices(cow);
	r = fn(ti, cow->rdo, 0, ti->len, data);
	idx = srcu_read_lock(&cow_devices_srcu);
	dev = READ_ONCE(cow->cow);
	if (!r && dev) {
		/*
		 * The cow device may end before its last unit, so there is no length to
		 * ask for: take all of it, in the larger of both devices' blocks.
		 */
		block = max(bdev_logical_block_size(cow->rdo->bdev),
			    bdev_logical_block_size(dev->bdev));
		cow_len = round_down(bdev_nr_sectors(dev->bdev), block >> SECTOR_SHIFT);
		r = fn(ti, dev, 0, cow_len, data);
	}
	srcu_read_unlock(&cow_devices_srcu, idx);

	return r;
}
