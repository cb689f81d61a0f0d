/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: the file that a loop device is made of.
 */

#ifndef LIBCOWLOOP_LOOPFILE_H
#define LIBCOWLOOP_LOOPFILE_H

#include "context.h"

#include <sys/stat.h>
#include <sys/types.h>

/*
 * What the names begin with that cowsetup gives its loop devices (lo_file_name,
 * which is for whoever attaches one; sysfs has the file's true path). udev's rules
 * leave such a device alone.
 */
#define LOOP_MARK	"cowsetup:"

/* Has cowsetup attached this loop device, or the one it is a partition of? Takes root. */
bool dev_is_our_loop(dev_t dev);

/* Does a loop device go away by itself, as those do that cowsetup attaches? */
bool loop_autoclear(dev_t dev);

/* Only root and its like may. */
bool loop_may_be_asked(dev_t dev);

/* Is this the loop device's file, or the block device it is made of? */
bool loop_has(dev_t dev, const struct stat *st);

/* The same the other way round: what a loop device is made of, as far as it takes to know it; false: it has nothing. */
bool loop_backing(dev_t dev, struct stat *st);

/* The path of the file a loop device is made of, to be freed; or NULL. One that is gone has the name it had. */
char *loop_file(dev_t dev);

/*
 * Has the file of a loop device lost the name by which it was opened, other than
 * by being renamed? Its contents then live as long as the loop device does, unless
 * it has another name, a hard link.
 */
bool loop_file_is_removed(dev_t dev);

/*
 * The bytes that the file of a loop device lacks at its end of those it had when the
 * device was attached: somebody has cut it off since. 0 if it lacks none, or if that
 * cannot be known. Zeroes are read in their place.
 */
u64 loop_file_lacks(dev_t dev);

#endif /* LIBCOWLOOP_LOOPFILE_H */
