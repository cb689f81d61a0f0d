// SPDX-License-Identifier: GPL-2.0-only
/*
 * nthalloc - has the n-th allocation of a device-mapper ioctl fail
 *
 * Only this thread's allocations in the kernel count, and only those made in the ioctl: see
 * fail-nth in the kernel's Documentation/fault-injection. Needs a kernel with fault injection.
 */
#include "dm.h"

/* "0 LENGTH TYPE PARAMS", as dmsetup takes it. */
static void prepare_table(struct dm_call *request, const char *name, const char *table)
{
	unsigned long long start, length;
	char type[16];
	int used;

	if (sscanf(table, "%llu %llu %15s %n", &start, &length, type, &used) != 3 || start)
		die(EXIT_USAGE, "the table is not `0 LENGTH TYPE PARAMS'");
	dm_prepare_load(request, name, length, type, table + used);
}

/* Returns the ioctl's errno, or 0; *met tells whether an allocation failed. */
static int do_with_fault(struct dm_call *call, unsigned long request, unsigned long n, int *met)
{
	char text[24];
	ssize_t len;
	int fd, err;

	dm_control();	/* its allocations are none of the request's */
	fd = open_path("/proc/thread-self/fail-nth", O_RDWR);
	len = snprintf(text, sizeof(text), "%lu", n);
	if (write(fd, text, len) != len)
		die_errno(errno, "arming");
	err = dm_do(call, request);

	len = pread(fd, text, sizeof(text) - 1, 0);
	if (len <= 0)
		die_errno(errno, "reading fail-nth");
	text[len] = '\0';
	*met = atoi(text) == 0;
	if (write(fd, "0", 1) != 1)
		die_errno(errno, "disarming");
	close(fd);

	return err;
}

int main(int argc, char **argv)
{
	static struct dm_call call;
	unsigned long request;
	int err, met;

	if (argc < 4 || argc > 5) {
		fprintf(stderr, "Usage: nthalloc N load DEVICE 'TABLE' | N message DEVICE 'MESSAGE' |\n"
			"                N suspend DEVICE | N resume DEVICE\n"
			"Prints `met' or `passed', and then `ok' or the error.\n");
		return EXIT_USAGE;
	}
	dm_prepare(&call, argv[3]);
	if (!strcmp(argv[2], "load") && argc == 5) {
		request = DM_TABLE_LOAD;
		prepare_table(&call, argv[3], argv[4]);
	} else if (!strcmp(argv[2], "message") && argc == 5) {
		request = DM_TARGET_MSG;
		dm_prepare_message(&call, argv[3], argv[4]);
	} else if (!strcmp(argv[2], "suspend")) {
		request = DM_DEV_SUSPEND;
		call.io.flags = DM_SUSPEND_FLAG;
	} else if (!strcmp(argv[2], "resume")) {
		request = DM_DEV_SUSPEND;
	} else {
		die(EXIT_USAGE, "%s: no such request", argv[2]);
	}

	err = do_with_fault(&call, request, strtoul(argv[1], NULL, 10), &met);
	printf("%s %s\n", met ? "met" : "passed", err ? strerror(err) : "ok");

	return EXIT_OK;
}
