// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: who has a file or a block device in use.
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
#include "text.h"

#define MAX_DEPTH	8	/* of devices above devices that are looked at */
#define MAX_TEXTS	3	/* of holders that are named in a message */

/* Add one; takes over the texts. @text NULL: there was no memory for it. */
static void add(struct holders *h, dev_t dev, bool writes, char *text, char *end)
{
	struct holder *grown = text ? realloc(h->list, (h->nr + 1) * sizeof(*grown)) : NULL;

	if (!grown) {
		h->no_memory = true;
		free(text);
		free(end);
		return;
	}
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
	struct text t = { 0 };

	for (size_t i = 0; i < h->nr && i < MAX_TEXTS; i++) {
		const struct holder *one = &h->list[i];

		text_add(&t, "%s%s", i ? "; " : "", one->text);
		if (how && !i && one->end)
			text_add(&t, " (to end that: %s)", one->end);
	}
	if (h->nr > MAX_TEXTS)
		text_add(&t, "; and %zu more", h->nr - MAX_TEXTS);
	return text_take(&t);
}

/* "123 (vim)", with whose it is if it is another user's; to be freed. */
static char *process_name(const char *pid)
{
	char path[300], comm[64] = "";
	const struct passwd *user;
	struct stat st;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%s/comm", pid);
	f = fopen(path, "re");
	if (!f || fscanf(f, "%63[^\n]", comm) != 1)
		snprintf(comm, sizeof(comm), "?");
	if (f)
		fclose(f);
	snprintf(path, sizeof(path), "/proc/%s", pid);
	if (stat(path, &st) || st.st_uid == geteuid())
		return text_of("%s (%s)", pid, comm);
	user = getpwuid(st.st_uid);
	return user ? text_of("%s (%s, user %s)", pid, comm, user->pw_name) :
		      text_of("%s (%s, user %u)", pid, comm, st.st_uid);
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
	char path[600];
	dev_t dev = 0;

	while (dir && !dev && (entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s/%s", at, entry->d_name, mark);
		if (!access(path, F_OK)) {
			snprintf(path, sizeof(path), "%s/%s/dev", at, entry->d_name);
			dev = read_dev(path);
		}
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

	path = name ? text_of("%s/%s", DM_NODES, name) : dev_path(dev);
	free(name);
	return path;
}

/* The volume group of a volume, by its device's name: a single hyphen ends it, two of them are one of its own. */
static char *volume_group(const char *name)
{
	char *group = strdup(name), *to = group;

	if (!group)
		return NULL;
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
		end = path ? text_of("mdadm --stop %s", path) : NULL;
	} else if (name && uuid && !strncmp(uuid, "LVM-", 4)) {
		group = volume_group(name);
		end = group ? text_of("vgchange --activate n %s", group) : NULL;
		free(group);
	} else if (name && uuid) {
		end = text_of("%s %s", !strncmp(uuid, "CRYPT-", 6) ? "cryptsetup close" :
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
 * where it is not used. Takes over @text and @end; @text NULL: there was no memory for it.
 */
static void add_device(struct holders *h, dev_t dev, bool writes, char *text, const char *idle, char *end,
		       unsigned int depth)
{
	struct holders above = HOLDERS_NONE;
	const struct holder *first;
	char *whole = NULL, *commands = NULL;

	if (depth < MAX_DEPTH)
		find_uses(&above, dev, depth + 1);
	first = above.list;
	if (text)
		whole = first ? text_of("%s, %s", text, first->text) : text_of("%s%s", text, idle);
	if (first && first->end) {
		commands = text_of("%s%s%s", first->end, end ? " && " : "", end ? end : "");
		free(end);
		end = commands;
	}
	h->no_memory |= above.no_memory;
	free(text);
	holders_free(&above);
	add(h, dev, writes, whole, end);
}

/* The devices that sysfs has as holders: those of device-mapper, md, bcache. */
static void find_above(struct holders *h, dev_t dev, const char *subject, unsigned int depth)
{
	char at[64], *path;
	dev_t above;
	DIR *dir;

	snprintf(at, sizeof(at), "/sys/dev/block/%u:%u/holders", major(dev), minor(dev));
	dir = opendir(at);
	while ((above = next_dev(dir, at, "dev"))) {
		path = device_name(above);
		add_device(h, above, !is_read_only(above) && !only_reads(above, dev),
			   path ? text_of("%spart of %s", subject, path) : NULL, ", which is active",
			   end_device(above), depth);
		free(path);
	}
	if (dir)
		closedir(dir);
}

/* Of namespaces, by their inodes; adds @ino, and says whether it was there. One that could not be added comes again. */
static bool was_seen(ino_t **seen, size_t *nr, ino_t ino)
{
	ino_t *grown;

	for (size_t i = 0; i < *nr; i++)
		if ((*seen)[i] == ino)
			return true;
	grown = realloc(*seen, (*nr + 1) * sizeof(ino));
	if (!grown)
		return false;
	*seen = grown;
	grown[(*nr)++] = ino;
	return false;
}

/* The number of the next process that is in another mount namespace than those before; 0 after the last. */
static int next_namespace(DIR *proc, ino_t **seen, size_t *nr)
{
	const char *name;
	struct stat st;
	char path[300];
	int pid = 0;

	while (!pid && (name = next_number(proc))) {
		snprintf(path, sizeof(path), "/proc/%s/ns/mnt", name);
		if (!stat(path, &st) && !was_seen(seen, nr, st.st_ino))
			pid = atoi(name);
	}
	return pid;
}

/* Where a device is mounted in another mount namespace, as a container's, and by which process that is known. */
static int mount_elsewhere(dev_t dev, char **point, bool *writable, int *pid)
{
	DIR *proc = opendir("/proc");
	ino_t *seen = NULL;
	char path[64];
	struct stat st;
	size_t nr = 0;
	int err = 0;

	*point = NULL;
	if (!stat("/proc/self/ns/mnt", &st))
		was_seen(&seen, &nr, st.st_ino);
	while (!err && !*point && (*pid = next_namespace(proc, &seen, &nr))) {
		snprintf(path, sizeof(path), "/proc/%d/mountinfo", *pid);
		err = device_mount(path, dev, point, writable);
	}
	free(seen);
	if (proc)
		closedir(proc);
	return err;
}

/* Where a device is mounted, here or elsewhere: by which process that is known, 0: here. 0 or ENOMEM. */
static int find_point(dev_t dev, char **point, bool *writable, int *pid)
{
	int err = device_mount(MOUNTINFO, dev, point, writable);

	*pid = 0;
	return err || *point ? err : mount_elsewhere(dev, point, writable, pid);
}

static char *mount_text(const char *point, int pid)
{
	char number[16], *name, *text;

	if (!pid)
		return strdup(point);
	snprintf(number, sizeof(number), "%d", pid);
	name = process_name(number);
	text = name ? text_of("%s in the mount namespace of process %s", point, name) : NULL;
	free(name);
	return text;
}

char *device_mount_anywhere(dev_t dev, bool *writable)
{
	char *point = NULL, *text = NULL;
	int pid;

	if (!find_point(dev, &point, writable, &pid) && point)
		text = mount_text(point, pid);
	free(point);
	return text;
}

static void find_mount(struct holders *h, dev_t dev, const char *subject)
{
	char *point = NULL, *text, *end;
	bool writable;
	int pid;

	if (find_point(dev, &point, &writable, &pid))
		h->no_memory = true;
	if (!point)
		return;
	text = mount_text(point, pid);
	end = pid ? text_of("nsenter --target %d --mount umount %s", pid, point) : text_of("umount %s", point);
	add(h, 0, writable, text ? text_of("%smounted on %s", subject, text) : NULL, end);
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
			add(h, 0, true, text_of("%sused as swap", subject), text_of("swapoff %s", path));
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
	char at[64], *path, *subject;
	dev_t partition;
	DIR *dir;

	snprintf(at, sizeof(at), "/sys/dev/block/%u:%u", major(dev), minor(dev));
	dir = opendir(at);
	while ((partition = next_dev(dir, at, "partition"))) {
		path = dev_path(partition);
		subject = path ? text_of("%s partition %s is ", depth ? "whose" : "its", path) : NULL;
		if (subject)
			find_own_uses(h, partition, subject, depth);
		else
			h->no_memory = true;
		free(subject);
		free(path);
	}
	if (dir)
		closedir(dir);
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
		subject = path ? text_of("its disk %s is ", path) : NULL;
		if (subject)
			find_own_uses(h, disk, subject, depth);
		else
			h->no_memory = true;
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
			add_device(h, dev, !is_read_only(dev), path ? text_of("attached to %s", path) : NULL, "",
				   by_itself || !path ? NULL : text_of("losetup --detach %s", path), 0);
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
	char path[300], *line = NULL;
	unsigned long long ino;
	unsigned int flags;
	size_t room = 0;
	bool may_be;
	FILE *f;
	int info;

	snprintf(path, sizeof(path), "fdinfo/%s", fd);
	info = openat(proc, path, O_RDONLY | O_CLOEXEC);
	f = info >= 0 ? fdopen(info, "r") : NULL;
	may_be = f;
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
	char path[300];
	struct stat st;

	*all = (struct open_file){ 0 };
	while ((fd = next_number(dir))) {
		struct open_file one = { 0 };

		snprintf(path, sizeof(path), "fd/%s", fd);
		if ((!S_ISBLK(wanted->st_mode) || may_be_node(proc, path)) &&
		    read_fdinfo(proc, fd, wanted, &one) &&
		    !fstatat(proc, path, &st, 0) && stat_same(&st, wanted)) {
			found = true;
			all->writes |= one.writes;
			all->locked |= one.locked;
		}
	}
	if (dir)
		closedir(dir);
	return found;
}

static void add_process(struct holders *h, const char *pid, const struct open_file *o, const char *called)
{
	char *name = process_name(pid);

	add(h, 0, o->writes, name ? text_of("process %s has %s %s", name, called, o->locked ? "locked" :
					    o->writes ? "open for writing" : "open") : NULL, NULL);
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

/* Of a device that has the same contents, or a part of them: @what it is, "its disk". */
static void find_other_processes(struct holders *h, dev_t other, const char *what)
{
	const struct stat st = block_stat(other);
	char *path = dev_path(other), *called = path ? text_of("%s %s", what, path) : NULL;

	if (called)
		find_processes(h, &st, called, false);
	else
		h->no_memory = true;
	free(called);
	free(path);
}

/* A device, and what shares its contents: its partitions, or the disk that it is one of. */
static void find_device_processes(struct holders *h, dev_t dev)
{
	const struct stat st = block_stat(dev);
	dev_t other = dev_disk(dev);
	char at[64];
	DIR *dir;

	find_processes(h, &st, "it", false);
	if (other)
		find_other_processes(h, other, "its disk");
	snprintf(at, sizeof(at), "/sys/dev/block/%u:%u", major(dev), minor(dev));
	dir = opendir(at);
	while ((other = next_dev(dir, at, "partition")))
		find_other_processes(h, other, "its partition");
	if (dir)
		closedir(dir);
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

bool holders_are_unknown(const struct holders *h, const char *text)
{
	return h->no_memory || (h->nr && !text);
}

int file_used_by(struct cowloop_ctx *ctx, const struct file *f, char **user)
{
	struct holders h = HOLDERS_NONE;
	int r = OK;

	holders_find(&h, f, HOLDERS_USES);
	*user = holders_text(&h, false);
	if (holders_are_unknown(&h, *user)) {
		free(*user);
		*user = NULL;
		r = error_memory(ctx);
	}
	holders_free(&h);
	return r;
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

int refuse_writers(struct cowloop_ctx *ctx, const struct file *rdo, bool force)
{
	struct holders h = HOLDERS_NONE;
	struct stat st;
	char *text;
	int r = OK;

	if (fstat(rdo->fd, &st))
		return error_errno(ctx, "%s: cannot be examined", rdo->path);
	find(&h, &st, HOLDERS_USES | HOLDERS_OPEN);
	if (rdo->block && dev_is_loop(st.st_rdev))
		find_behind(&h, st.st_rdev, 0);
	keep(&h, 0);
	if (!h.nr && !rdo->block && !rdo->writable && is_open_for_writing(rdo->fd))
		add(&h, 0, true, text_of("open for writing by a program that cannot be seen from here"), NULL);
	text = holders_text(&h, true);
	if (holders_are_unknown(&h, text))
		r = error_memory(ctx);
	else if (text && force)
		warn(ctx, "%s: may be written by others: %s. Once it has changed, its cowfiles cannot be used any more.",
		     rdo->path, text);
	else if (text)
		r = error(ctx, BUSY, "%s: in use by what may write it: %s. Once it has changed, its cowfiles cannot be used any more; --force takes it all the same.",
			  rdo->path, text);
	free(text);
	holders_free(&h);
	return r;
}
