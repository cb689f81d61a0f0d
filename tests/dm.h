/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Device-mapper for the test programs, without a library. dm_try() and its like
 * return an error number; the others end the program when there is one.
 */

#ifndef TESTS_DM_H
#define TESTS_DM_H

#include <linux/dm-ioctl.h>
#include <sys/sysmacros.h>

#include "util.h"

struct dm_call {
	struct dm_ioctl io;
	char data[16384 - sizeof(struct dm_ioctl)];
};

static inline int dm_control(void)
{
	static int fd = -1;

	if (fd < 0)
		fd = open_path("/dev/mapper/control", O_RDWR);
	return fd;
}

/* About device @name; returns where the request's own data goes. */
static inline void *dm_prepare(struct dm_call *call, const char *name)
{
	memset(call, 0, sizeof(*call));
	call->io.version[0] = DM_VERSION_MAJOR;
	call->io.data_size = sizeof(*call);
	call->io.data_start = sizeof(call->io);
	snprintf(call->io.name, sizeof(call->io.name), "%s", name);
	return call->data;
}

static inline int dm_do(struct dm_call *call, unsigned long request)
{
	return ioctl(dm_control(), request, call) ? errno : 0;
}

/* A request without data. */
static inline int dm_try(unsigned long request, const char *name, uint32_t flags)
{
	struct dm_call call;

	dm_prepare(&call, name);
	call.io.flags = flags;
	return dm_do(&call, request);
}

static inline void dm_simple(unsigned long request, const char *name, uint32_t flags)
{
	const int err = dm_try(request, name, flags);

	if (err)
		die_errno(err, "device-mapper request %#lx on %s", request, name);
}

static inline void dm_prepare_message(struct dm_call *call, const char *name, const char *message)
{
	struct dm_target_msg *msg = dm_prepare(call, name);
	const size_t size = sizeof(call->data) - sizeof(*msg);

	if ((size_t)snprintf(msg->message, size, "%s", message) >= size)
		die(EXIT_USAGE, "message: too long");
}

static inline int dm_try_message(const char *name, const char *message)
{
	struct dm_call call;

	dm_prepare_message(&call, name, message);
	return dm_do(&call, DM_TARGET_MSG);
}

static inline void __attribute__((format(printf, 2, 3))) dm_message(const char *name, const char *fmt, ...)
{
	char message[256];
	va_list ap;
	int err;

	va_start(ap, fmt);
	vsnprintf(message, sizeof(message), fmt, ap);
	va_end(ap);
	err = dm_try_message(name, message);
	if (err)
		die_errno(err, "message '%s' to %s", message, name);
}

/* A table of one target. */
static inline void dm_prepare_load(struct dm_call *call, const char *name, uint64_t sectors, const char *target,
				   const char *params)
{
	struct dm_target_spec *spec = dm_prepare(call, name);
	const size_t size = sizeof(call->data) - sizeof(*spec);

	call->io.target_count = 1;
	spec->length = sectors;
	snprintf(spec->target_type, sizeof(spec->target_type), "%s", target);
	if ((size_t)snprintf((char *)(spec + 1), size, "%s", params) >= size)
		die(EXIT_USAGE, "table: too long");
}

static inline int dm_try_load(const char *name, uint64_t sectors, const char *target, const char *params)
{
	struct dm_call call;

	dm_prepare_load(&call, name, sectors, target, params);
	return dm_do(&call, DM_TABLE_LOAD);
}

static inline dev_t dm_device(const char *name)
{
	struct dm_call call;
	int err;

	dm_prepare(&call, name);
	err = dm_do(&call, DM_DEV_STATUS);
	if (err)
		die_errno(err, "status of %s", name);
	return call.io.dev;
}

#endif /* TESTS_DM_H */
