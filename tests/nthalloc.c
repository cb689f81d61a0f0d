// SPDX-License-Identifier: GPL-2.0-only
/*
 * nthalloc - has the n-th allocation of a device-mapper ioctl fail
 *
 * Only this thread's allocations in the kernel count, and only those made in the ioctl: see
 * fail-nth in the kernel's Documentation/fault-injection. Needs a kernel with fault injection.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define SIZE 16384

static union {
	struct dm_ioctl dmi;
	char bytes[SIZE];
} u;

static void __attribute__((noreturn)) die(const char *what)
{
	fprintf(stderr, "nthalloc: %s: %s\n", what, strerror(errno));
	exit(3);
}

static void put(size_t offset, const char *text)
{
	if (strlen(text) >= SIZE - offset) {
		errno = E2BIG;
		die("argument");
	}
	strcpy(u.bytes + offset, text);
}

/* "START LENGTH TYPE PARAMS", as dmsetup takes it. */
static void put_table(const char *table)
{
	struct dm_target_spec *spec = (struct dm_target_spec *)(u.bytes + sizeof(u.dmi));
	unsigned long long start, length;
	int used;

	if (sscanf(table, "%llu %llu %15s %n", &start, &length, spec->target_type, &used) != 3) {
		errno = EINVAL;
		die("table");
	}
	spec->sector_start = start;
	spec->length = length;
	u.dmi.target_count = 1;
	put(sizeof(u.dmi) + sizeof(*spec), table + used);
}

/* Returns the ioctl's errno, or 0; *met tells whether an allocation failed. */
static int call(int control, unsigned long request, unsigned long n, int *met)
{
	char text[24];
	ssize_t len;
	int fd, err;

	fd = open("/proc/thread-self/fail-nth", O_RDWR);
	if (fd < 0)
		die("/proc/thread-self/fail-nth");
	len = snprintf(text, sizeof(text), "%lu", n);
	if (write(fd, text, len) != len)
		die("arming");
	err = ioctl(control, request, &u) ? errno : 0;

	len = pread(fd, text, sizeof(text) - 1, 0);
	if (len <= 0)
		die("reading fail-nth");
	text[len] = '\0';
	*met = atoi(text) == 0;
	if (write(fd, "0", 1) != 1)
		die("disarming");
	close(fd);

	return err;
}

int main(int argc, char **argv)
{
	unsigned long request;
	int control, err, met;

	if (argc < 4 || argc > 5) {
		fprintf(stderr, "Usage: nthalloc N load DEVICE 'TABLE' | N message DEVICE 'MESSAGE' |\n"
			"                N suspend DEVICE | N resume DEVICE\n"
			"Prints `met' or `passed', and then `ok' or the error.\n");
		return 2;
	}
	u.dmi.version[0] = DM_VERSION_MAJOR;
	u.dmi.data_size = SIZE;
	u.dmi.data_start = sizeof(u.dmi);
	snprintf(u.dmi.name, sizeof(u.dmi.name), "%s", argv[3]);

	if (!strcmp(argv[2], "load") && argc == 5) {
		request = DM_TABLE_LOAD;
		put_table(argv[4]);
	} else if (!strcmp(argv[2], "message") && argc == 5) {
		request = DM_TARGET_MSG;
		put(sizeof(u.dmi) + sizeof(struct dm_target_msg), argv[4]);
	} else if (!strcmp(argv[2], "suspend")) {
		request = DM_DEV_SUSPEND;
		u.dmi.flags = DM_SUSPEND_FLAG;
	} else if (!strcmp(argv[2], "resume")) {
		request = DM_DEV_SUSPEND;
	} else {
		errno = EINVAL;
		die(argv[2]);
	}

	control = open("/dev/mapper/control", O_RDWR);
	if (control < 0)
		die("/dev/mapper/control");
	err = call(control, request, strtoul(argv[1], NULL, 10), &met);
	printf("%s %s\n", met ? "met" : "passed", err ? strerror(err) : "ok");

	return 0;
}
