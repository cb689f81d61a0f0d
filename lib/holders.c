// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup: who has a file or a block device in use.
 *
 * The kernel says "busy" at most, and not even that where device-mapper shares
 * a device with other device-mapper devices, or where a file is concerned. The
 * sources, each of which knows a part: sysfs (devices above, loop devices,
 * partitions), mountinfo, /proc/swaps, the open files of all processes, and a
 * lease, which the kernel refuses for a file that anybody has open for writing,
 * whether that can be seen from here or not.
 *
 * A loop device does not claim the block device it is made of, and so all loop
 * devices are asked. Devices below are followed through loop devices only: what
 * else is made of the disk of a volume has other parts of that.
 */

#include "holders.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "dm.h"
#include "loopfile.h"
#include "mountinfo.h"
#include "sysfs.h"

#define MAX_DEPTH	8	/* of devices above devices that are looked at */
#define MAX_TEXTS	3	/* of holders that are named in a message */

/* Add one; takes over the texts. */
static void add(struct holders *h, dev_t dev, bool writes, char *text, char *end)
{
	struct holder *grown = realloc(h->list, (h->nr + 1) * sizeof(*grown));

	if (!grown)
		exit(error(NO_MEMORY, "Out of memory."));
	h->list = grown;
	h->list[h->nr++] = (struct holder){ .dev = dev, .writes = writes, .text = text, .end = end };
}

void holders_free(struct holders *h)
{
	for (size_t i = 0; i < h->nr; i++) {
		free(h->list[i].text);
		free(h->list[i].end);
	}
	free(h->list);
	*h = HOLDERS_NONE;
}

/* Leave those only that may write, or, with @dev, all but that device. */
static void keep(struct holders *h, dev_t dev)
{
	size_t nr = 0;

	for (size_t i = 0; i < h->nr; i++) {
		if (dev ? h->list[i].dev != dev : h->list[i].writes) {
			h->list[nr++] = h->list[i];
		} else {
			free(h->list[i].text);
			free(h->list[i].end);
		}
	}
	h->nr = nr;
}

void holders_drop(struct holders *h, dev_t dev)
{
	keep(h, dev);
}

char *holders_text(const struct holders *h, bool how)
{
	char *text = NULL, *more;

	for (size_t i = 0; i < h->nr && i < MAX_TEXTS; i++) {
		const struct holder *one = &h->list[i];

		more = xasprintf("%s%s%s%s%s%s", text ? text : "", text ? "; " : "", one->text,
				 how && !i && one->end ? " (to end that: " : "",
				 how && !i && one->end ? one->end : "", how && !i && one->end ? ")" : "");
		free(text);
		text = more;
	}
	if (h->nr > MAX_TEXTS) {
		more = xasprintf("%s; and %zu more", text, h->nr - MAX_TEXTS);
		free(text);
		text = more;
	}
	return text;
}

/* "123 (vim)", with whose it is if it is another user's; to be freed. */
static char *process_name(const char *pid)
{
	char *path = xasprintf("/proc/%s/comm", pid), comm[64] = "", *name;
	FILE *f = fopen(path, "re");
	const struct passwd *user;
	struct stat st;

	if (!f || fscanf(f, "%63[^\n]", comm) != 1)
		snprintf(comm, sizeof(comm), "?");
	if (f)
		fclose(f);
	free(path);
	path = xasprintf("/proc/%s", pid);
	if (stat(path, &st) || st.st_uid == geteuid()) {
		name = xasprintf("%s (%s)", pid, comm);
	} else {
		user = getpwuid(st.st_uid);
		name = user ? xasprintf("%s (%s, user %s)", pid, comm, user->pw_name) :
			      xasprintf("%s (%s, user %u)", pid, comm, st.st_uid);
	}
	free(path);
	return name;
}

/* ---- Directories ---- */

/* A directory below @at, an open one or AT_FDCWD; NULL: it cannot be read. */
static DIR *open_dir(int at, const char *path)
{
	int fd = openat(at, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;

	if (!dir && fd >= 0)
		close(fd);
	return dir;
}

/* The next name in @dir, which may be NULL, that is a number: a process, or a descriptor; NULL after the last. */
static const char *next_number(DIR *dir)
{
	struct dirent *entry;

	while (dir && (entry = readdir(dir)))
		if (entry->d_name[0] >= '0' && entry->d_name[0] <= '9')
			return entry->d_name;
	return NULL;
}

/* ---- Devices in sysfs ---- */

/* The device number in a file called dev; 0: there is none. */
static dev_t read_dev(const char *path)
{
	FILE *f = fopen(path, "re");
	unsigned int maj, min;
	dev_t dev = 0;

	if (f && fscanf(f, "%u:%u", &maj, &min) == 2)
		dev = makedev(maj, min);
	if (f)
		fclose(f);
	return dev;
}

/* The next device that is an entry of a directory in sysfs, and has a file called @mark; 0 after the last. */
static dev_t next_dev(DIR *dir, const char *at, const char *mark)
{
	struct dirent *entry;
	char *path;
	dev_t dev = 0;

	while (dir && !dev && (entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		path = xasprintf("%s/%s/%s", at, entry->d_name, mark);
		if (!access(path, F_OK)) {
			free(path);
			path = xasprintf("%s/%s/dev", at, entry->d_name);
			dev = read_dev(path);
		}
		free(path);
	}
	return dev;
}

static bool is_read_only(dev_t dev)
{
	char *text = dev_attribute(dev, "ro");
	const bool read_only = text && !strcmp(text, "1");

	free(text);
	return read_only;
}

/* Is @above a cowloop device, whose read-only device this is? */
static bool only_reads(dev_t above, dev_t dev)
{
	char *name = dev_attribute(above, "dm/name");
	struct dm_device d;
	const bool reads = name && !dm_read(name, &d) && d.rdo == dev && d.cow != dev;

	free(name);
	return reads;
}

/* Its path; of device-mapper's devices the name, which says more than a number where there is no node yet. */
static char *device_name(dev_t dev)
{
	char *name = dev_attribute(dev, "dm/name"), *path;

	path = name ? xasprintf("%s/%s", DM_NODES, name) : dev_path(dev);
	free(name);
	return path;
}

/* The volume group of a volume, by its device's name: a single hyphen ends it, two of them are one of its own. */
static char *volume_group(const char *name)
{
	char *group = xasprintf("%s", name), *to = group;

	for (; *name && !(name[0] == '-' && name[1] != '-'); name++) {
		*to++ = *name;
		name += name[0] == '-';
	}
	*to = 0;
	return group;
}

/* The command that takes down a device. */
static char *end_device(dev_t dev)
{
	char *name = dev_attribute(dev, "dm/name"), *uuid = dev_attribute(dev, "dm/uuid");
	char *array = dev_attribute(dev, "md/level"), *path = dev_path(dev), *end = NULL, *group;

	if (array) {
		end = xasprintf("mdadm --stop %s", path);
	} else if (name && uuid && !strncmp(uuid, "LVM-", 4)) {
		group = volume_group(name);
		end = xasprintf("vgchange --activate n %s", group);
		free(group);
	} else if (name && uuid) {
		end = xasprintf("%s %s", !strncmp(uuid, "CRYPT-", 6) ? "cryptsetup close" :
				!strncmp(uuid, "COWLOOP-", 8) ? "cowsetup close" :
				!strncmp(uuid, "mpath-", 6) ? "multipath -f" : "dmsetup remove", name);
	}
	free(path);
	free(array);
	free(uuid);
	free(name);
	return end;
}

/* ---- What is made of a device ---- */

static void find_uses(struct holders *h, dev_t dev, unsigned int depth);

/*
 * Add a device that is made of another one, with what it is used for itself,
 * which has to end first. @text is "part of /dev/mapper/x"; @idle is what to say
 * where it is not used. Takes over @text and @end.
 */
static void add_device(struct holders *h, dev_t dev, bool writes, char *text, const char *idle, char *end,
		       unsigned int depth)
{
	struct holders above = HOLDERS_NONE;
	const struct holder *first;
	char *own_text = text, *own_end = end;

	if (depth < MAX_DEPTH)
		find_uses(&above, dev, depth + 1);
	first = above.list;
	text = xasprintf("%s%s", own_text, first ? "" : idle);
	if (first) {
		free(text);
		text = xasprintf("%s, %s", own_text, first->text);
	}
	if (first && first->end) {
		end = own_end ? xasprintf("%s && %s", first->end, own_end) : xasprintf("%s", first->end);
		free(own_end);
	}
	free(own_text);
	holders_free(&above);
	add(h, dev, writes, text, end);
}

/* The devices that sysfs has as holders: those of device-mapper, md, bcache. */
static void find_above(struct holders *h, dev_t dev, const char *subject, unsigned int depth)
{
	char *at = xasprintf("/sys/dev/block/%u:%u/holders", major(dev), minor(dev)), *path;
	DIR *dir = opendir(at);
	dev_t above;

	while ((above = next_dev(dir, at, "dev"))) {
		path = device_name(above);
		add_device(h, above, !is_read_only(above) && !only_reads(above, dev),
			   xasprintf("%spart of %s", subject, path), ", which is active", end_device(above), depth);
		free(path);
	}
	if (dir)
		closedir(dir);
	free(at);
}

/* Of namespaces, by their inodes; adds @ino, and says whether it was there. */
static bool was_seen(ino_t **seen, size_t *nr, ino_t ino)
{
	ino_t *grown;

	for (size_t i = 0; i < *nr; i++)
		if ((*seen)[i] == ino)
			return true;
	grown = realloc(*seen, (*nr + 1) * sizeof(ino));
	if (!grown)
		exit(error(NO_MEMORY, "Out of memory."));
	*seen = grown;
	grown[(*nr)++] = ino;
	return false;
}

/* The number of the next process that is in another mount namespace than those before; 0 after the last. */
static int next_namespace(DIR *proc, ino_t **seen, size_t *nr)
{
	const char *name;
	struct stat st;
	int pid = 0, found;
	char *path;

	while (!pid && (name = next_number(proc))) {
		path = xasprintf("/proc/%s/ns/mnt", name);
		found = stat(path, &st);
		free(path);
		if (!found && !was_seen(seen, nr, st.st_ino))
			pid = atoi(name);
	}
	return pid;
}

/* Where a device is mounted in another mount namespace, as a container's, and by which process that is known. */
static char *mount_elsewhere(dev_t dev, bool *writable, int *pid)
{
	DIR *proc = opendir("/proc");
	ino_t *seen = NULL;
	char *point = NULL, *path;
	struct stat st;
	size_t nr = 0;

	if (!stat("/proc/self/ns/mnt", &st))
		was_seen(&seen, &nr, st.st_ino);
	while (!point && (*pid = next_namespace(proc, &seen, &nr))) {
		path = xasprintf("/proc/%d/mountinfo", *pid);
		point = device_mount(path, dev, writable);
		free(path);
	}
	free(seen);
	if (proc)
		closedir(proc);
	return point;
}

static char *mount_text(const char *point, int pid)
{
	char *number = xasprintf("%d", pid), *name, *text;

	name = pid ? process_name(number) : NULL;
	text = pid ? xasprintf("%s in the mount namespace of process %s", point, name) : xasprintf("%s", point);
	free(name);
	free(number);
	return text;
}

char *device_mount_anywhere(dev_t dev, bool *writable)
{
	char *point = device_mount(MOUNTINFO, dev, writable), *text;
	int pid = 0;

	if (!point)
		point = mount_elsewhere(dev, writable, &pid);
	text = point ? mount_text(point, pid) : NULL;
	free(point);
	return text;
}

static void find_mount(struct holders *h, dev_t dev, const char *subject)
{
	bool writable;
	char *point = device_mount(MOUNTINFO, dev, &writable), *text, *end;
	int pid = 0;

	if (!point)
		point = mount_elsewhere(dev, &writable, &pid);
	if (!point)
		return;
	text = mount_text(point, pid);
	end = pid ? xasprintf("nsenter --target %d --mount umount %s", pid, point) : xasprintf("umount %s", point);
	add(h, 0, writable, xasprintf("%smounted on %s", subject, text), end);
	free(text);
	free(point);
}

static void find_swap(struct holders *h, const struct stat *wanted, const char *subject)
{
	FILE *f = fopen("/proc/swaps", "re");
	char *line = NULL, path[4096];
	size_t room = 0;
	struct stat st;

	while (f && getline(&line, &room, f) > 0)
		if (sscanf(line, "%4095s", path) == 1 && path[0] == '/' && !stat(path, &st) && stat_same(&st, wanted))
			add(h, 0, true, xasprintf("%sused as swap", subject), xasprintf("swapoff %s", path));
	free(line);
	if (f)
		fclose(f);
}

static struct stat block_stat(dev_t dev)
{
	return (struct stat){ .st_mode = S_IFBLK, .st_rdev = dev };
}

/* A device's own uses, and not its partitions'. */
static void find_own_uses(struct holders *h, dev_t dev, const char *subject, unsigned int depth)
{
	const struct stat st = block_stat(dev);

	find_above(h, dev, subject, depth);
	find_mount(h, dev, subject);
	find_swap(h, &st, subject);
}

static void find_partition_uses(struct holders *h, dev_t dev, unsigned int depth)
{
	char *at = xasprintf("/sys/dev/block/%u:%u", major(dev), minor(dev)), *path, *subject;
	DIR *dir = opendir(at);
	dev_t partition;

	while ((partition = next_dev(dir, at, "partition"))) {
		path = dev_path(partition);
		subject = xasprintf("%s partition %s is ", depth ? "whose" : "its", path);
		find_own_uses(h, partition, subject, depth);
		free(subject);
		free(path);
	}
	if (dir)
		closedir(dir);
	free(at);
}

/* At depth 0 the texts speak of the device, further up they go on from "part of /dev/mapper/x, ". */
static void find_uses(struct holders *h, dev_t dev, unsigned int depth)
{
	const dev_t disk = depth ? 0 : dev_disk(dev);
	char *path, *subject;

	find_own_uses(h, dev, depth ? "which is " : "", depth);
	find_partition_uses(h, dev, depth);
	if (disk) {
		path = dev_path(disk);
		subject = xasprintf("its disk %s is ", path);
		find_own_uses(h, disk, subject, depth);
		free(subject);
		free(path);
	}
}

/* ---- Loop devices ---- */

/* @file is the name by which it was attached, which all may know; it may be another one's by now. */
static bool is_attached(dev_t dev, const char *file, const struct stat *st)
{
	struct stat named;

	if (loop_may_be_asked(dev))
		return loop_has(dev, st);
	return !stat(file, &named) && stat_same(&named, st);
}

/* The loop devices that a file or a device is attached to, and what these are used for. */
static void find_loops(struct holders *h, const struct stat *st)
{
	DIR *dir = opendir("/sys/block");
	char *file, *path, *autoclear;
	bool by_itself;
	dev_t dev;

	while ((dev = next_dev(dir, "/sys/block", "loop/backing_file"))) {
		file = dev_attribute(dev, "loop/backing_file");
		if (file && is_attached(dev, file, st)) {
			path = dev_path(dev);
			autoclear = dev_attribute(dev, "loop/autoclear");
			by_itself = autoclear && !strcmp(autoclear, "1");
			add_device(h, dev, !is_read_only(dev), xasprintf("attached to %s", path), "",
				   by_itself ? NULL : xasprintf("losetup --detach %s", path), 0);
			free(autoclear);
			free(path);
		}
		free(file);
	}
	if (dir)
		closedir(dir);
}

/* ---- Processes ---- */

/* An open file of a process, as far as it is that file. */
struct open_file {
	bool writes;
	bool locked;
};

/*
 * Read /proc/PID/fdinfo/FD: an inode's number, by which other files are passed
 * over without being asked, for the server of a filesystem may be gone; and locks.
 */
static bool read_fdinfo(int proc, const char *fd, const struct stat *wanted, struct open_file *o)
{
	char *path = xasprintf("fdinfo/%s", fd), *line = NULL;
	int info = openat(proc, path, O_RDONLY | O_CLOEXEC);
	FILE *f = info >= 0 ? fdopen(info, "r") : NULL;
	unsigned long long ino;
	bool may_be = f;
	size_t room = 0;
	unsigned int flags;

	free(path);
	while (f && getline(&line, &room, f) > 0) {
		if (sscanf(line, "flags: %o", &flags) == 1)
			o->writes = (flags & O_ACCMODE) != O_RDONLY && !(flags & O_PATH);
		else if (!S_ISBLK(wanted->st_mode) && sscanf(line, "ino: %llu", &ino) == 1)
			may_be &= ino == wanted->st_ino;
		else if (!strncmp(line, "lock:", 5))
			o->locked = true;
	}
	free(line);
	if (f)
		fclose(f);
	else if (info >= 0)
		close(info);
	return may_be;
}

/* Nodes of devices are looked for where they use to be, in a container's directory, too. */
static bool may_be_node(int proc, const char *path)
{
	char target[4096];
	const ssize_t n = readlinkat(proc, path, target, sizeof(target) - 1);

	if (n < 0)
		return false;
	target[n] = 0;
	return strstr(target, "/dev/");
}

/* Has a process a file open? All its descriptors of it count as one. */
static bool process_has(int proc, const struct stat *wanted, struct open_file *all)
{
	DIR *dir = open_dir(proc, "fd");
	const char *fd;
	bool found = false;
	struct stat st;
	char *path;

	*all = (struct open_file){ 0 };
	while ((fd = next_number(dir))) {
		struct open_file one = { 0 };

		path = xasprintf("fd/%s", fd);
		if ((!S_ISBLK(wanted->st_mode) || may_be_node(proc, path)) &&
		    read_fdinfo(proc, fd, wanted, &one) &&
		    !fstatat(proc, path, &st, 0) && stat_same(&st, wanted)) {
			found = true;
			all->writes |= one.writes;
			all->locked |= one.locked;
		}
		free(path);
	}
	if (dir)
		closedir(dir);
	return found;
}

static void add_process(struct holders *h, const char *pid, const struct open_file *o, const char *called)
{
	char *name = process_name(pid);

	add(h, 0, o->writes, xasprintf("process %s has %s %s", name, called, o->locked ? "locked" :
				       o->writes ? "open for writing" : "open"), NULL);
	free(name);
}

/* @called is what the texts call it: "it", "its partition /dev/sda1". */
static void find_processes(struct holders *h, const struct stat *wanted, const char *called, bool locked)
{
	DIR *dir = open_dir(AT_FDCWD, "/proc");
	struct open_file o;
	const char *pid;
	int proc;

	while ((pid = next_number(dir))) {
		proc = atoi(pid) == getpid() ? -1 : openat(dirfd(dir), pid, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (proc < 0)
			continue;
		if (process_has(proc, wanted, &o) && (o.locked || !locked))
			add_process(h, pid, &o, called);
		close(proc);
	}
	if (dir)
		closedir(dir);
}

/*
 * Whose flock() a file has, by /proc/locks, for those who cannot see the open
 * files of others: "1: FLOCK  ADVISORY  WRITE 359 08:01:11691 0 EOF".
 */
static void find_locks(struct holders *h, const struct stat *wanted)
{
	const struct open_file o = { .locked = true };
	FILE *f = fopen("/proc/locks", "re");
	char *line = NULL, pid[16], kind[8];
	unsigned long long ino;
	unsigned int maj, min;
	size_t room = 0;

	while (f && getline(&line, &room, f) > 0)
		if (sscanf(line, "%*u: %7s %*s %*s %15[0-9] %x:%x:%llu", kind, pid, &maj, &min, &ino) == 5 &&
		    !strcmp(kind, "FLOCK") && atoi(pid) > 0 && atoi(pid) != getpid() && ino == wanted->st_ino &&
		    makedev(maj, min) == wanted->st_dev)
			add_process(h, pid, &o, "it");
	free(line);
	if (f)
		fclose(f);
}

/* A device, and what shares its contents: its partitions, or the disk that it is one of. */
static void find_device_processes(struct holders *h, dev_t dev)
{
	char *at = xasprintf("/sys/dev/block/%u:%u", major(dev), minor(dev)), *path, *called;
	struct stat st = block_stat(dev);
	DIR *dir = opendir(at);
	dev_t other = dev_disk(dev);

	find_processes(h, &st, "it", false);
	if (other) {
		path = dev_path(other);
		called = xasprintf("its disk %s", path);
		st = block_stat(other);
		find_processes(h, &st, called, false);
		free(called);
		free(path);
	}
	while ((other = next_dev(dir, at, "partition"))) {
		path = dev_path(other);
		called = xasprintf("its partition %s", path);
		st = block_stat(other);
		find_processes(h, &st, called, false);
		free(called);
		free(path);
	}
	if (dir)
		closedir(dir);
	free(at);
}

/* ---- All of it ---- */

static void find(struct holders *h, const struct stat *st, unsigned int what)
{
	const bool block = S_ISBLK(st->st_mode);

	if (what & HOLDERS_CLAIMS && block)
		find_uses(h, st->st_rdev, 0);
	else if (what & HOLDERS_CLAIMS)
		find_swap(h, st, "");
	if (what & HOLDERS_LOOPS)
		find_loops(h, st);
	if (what & HOLDERS_OPEN && block)
		find_device_processes(h, st->st_rdev);
	else if (what & (HOLDERS_OPEN | HOLDERS_LOCKED))
		find_processes(h, st, "it", !(what & HOLDERS_OPEN));
	if (what & HOLDERS_LOCKED && geteuid())
		find_locks(h, st);
}

void holders_find(struct holders *h, const struct file *f, unsigned int what)
{
	struct stat st;

	if (!fstat(f->fd, &st))
		find(h, &st, what);
}

void holders_find_device(struct holders *h, dev_t dev, unsigned int what)
{
	const struct stat st = block_stat(dev);

	find(h, &st, what);
}

char *file_used_by(const struct file *f)
{
	struct holders h = HOLDERS_NONE;
	char *text;

	holders_find(&h, f, HOLDERS_USES);
	text = holders_text(&h, false);
	holders_free(&h);
	return text;
}

/* ---- Writers ---- */

/*
 * Has anybody a file open for writing? The kernel refuses a lease for reading
 * then. This holds for programs in other namespaces, too, and for what has
 * mapped it. False where a filesystem has no leases, or the file is another
 * user's.
 */
static bool is_open_for_writing(int fd)
{
	/* A program that opens it for writing meanwhile waits for us, and we are sent a signal. */
	const sighandler_t old = signal(SIGIO, SIG_IGN);
	bool refused;

	refused = fcntl(fd, F_SETLEASE, F_RDLCK) && errno == EAGAIN;
	fcntl(fd, F_SETLEASE, F_UNLCK);
	signal(SIGIO, old);
	return refused;
}

/* Find all that may write a loop device's file, but for that loop device. */
static void find_behind(struct holders *h, dev_t loop, unsigned int depth)
{
	const size_t before = h->nr;
	struct stat st;

	if (depth == MAX_DEPTH || !loop_backing(loop, &st))
		return;
	find(h, &st, HOLDERS_USES | HOLDERS_OPEN);
	for (size_t i = before; i < h->nr; i++)
		if (h->list[i].dev == loop)
			h->list[i].writes = false;
	if (S_ISBLK(st.st_mode) && dev_is_loop(st.st_rdev))
		find_behind(h, st.st_rdev, depth + 1);
}

int refuse_writers(const struct file *rdo, bool force)
{
	struct holders h = HOLDERS_NONE;
	struct stat st;
	char *text;
	int r = OK;

	if (fstat(rdo->fd, &st))
		return error_errno("%s: cannot be examined", rdo->path);
	find(&h, &st, HOLDERS_USES | HOLDERS_OPEN);
	if (rdo->block && dev_is_loop(st.st_rdev))
		find_behind(&h, st.st_rdev, 0);
	keep(&h, 0);
	if (!h.nr && !rdo->block && !rdo->writable && is_open_for_writing(rdo->fd))
		add(&h, 0, true, xasprintf("open for writing by a program that cannot be seen from here"), NULL);
	text = holders_text(&h, true);
	if (text && force)
		warn("%s: may be written by others: %s. Once it has changed, its cowfiles cannot be used any more.",
		     rdo->path, text);
	else if (text)
		r = error(BUSY, "%s: in use by what may write it: %s. Once it has changed, its cowfiles cannot be used any more; --force takes it all the same.",
			  rdo->path, text);
	free(text);
	holders_free(&h);
	return r;
}
