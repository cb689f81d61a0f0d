// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: device-mapper.
 *
 * Nodes under /dev/mapper are udev's business where it runs: with the cookie
 * that goes with every change, udev.c waits until its rules are through.
 * Where there is no udev, or DM_DISABLE_UDEV says so, the library makes them
 * itself; that is why it is not told to leave everything to udev.
 *
 * The library's log is for people who look for mistakes in it, so it is shown
 * only with --verbose. What the kernel has against a table is one EINVAL
 * for everything; the reason is in the kernel's log.
 */

#include "dm.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <libdevmapper.h>

#include "name.h"
#include "text.h"
#include "udev.h"

/* ---- The library ---- */

/* As <lvm/log.h> has them, which is not installed. */
#define LOG_LEVEL_MASK	7
#define LOG_ERR		3
#define LOG_WARN	4

static __attribute__((format(printf, 5, 6)))
void show_log(int level, const char *file, int line, int err, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	(void)file;
	(void)line;
	(void)err;
	if ((level & LOG_LEVEL_MASK) > LOG_WARN || !dm_context)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if ((level & LOG_LEVEL_MASK) <= LOG_ERR && !*dm_context->dm_error)
		snprintf(dm_context->dm_error, sizeof(dm_context->dm_error), "%s", text);
	verbose(dm_context, "libdevmapper: %s", text);
}

void dm_error_mark(struct cowloop_ctx *ctx)
{
	*ctx->dm_error = 0;
}

const char *dm_error_first(struct cowloop_ctx *ctx)
{
	const size_t n = strlen(ctx->dm_error);

	if (n && ctx->dm_error[n - 1] == '.')
		ctx->dm_error[n - 1] = 0;
	return ctx->dm_error;
}

static void end_task(struct dm_task *task)
{
	if (task)
		dm_task_destroy(task);
}

/* NULL: there is no memory, which run() says. */
static struct dm_task *new_task(int type, const char *name)
{
	struct dm_task *task = dm_task_create(type);

	if (!task || !name || dm_task_set_name(task, name))
		return task;
	end_task(task);
	return NULL;
}

/* Run a task; 0 or an errno. */
static int run(struct dm_task *task)
{
	int err;

	if (!task)
		return ENOMEM;
	if (dm_task_run(task))
		return 0;
	err = dm_task_get_errno(task);
	return err ? err : EIO;
}

/* Run a task that makes, changes or removes the node of @name; wait until that is done. */
static int run_with_udev(struct cowloop_ctx *ctx, struct dm_task *task, const char *name, uint16_t flags)
{
	uint32_t cookie = 0;
	int err;

	if (!task)
		return ENOMEM;
	if (!dm_task_set_cookie(task, &cookie, flags))
		return EIO;
	err = run(task);
	udev_wait(ctx, name, cookie);
	dm_task_update_nodes();

	return err;
}

/* ---- What the kernel can do ---- */

int dm_check_kernel(struct cowloop_ctx *ctx)
{
	struct dm_task *task;
	int err;

	if (geteuid())
		return error(ctx, DENIED, "Only root can do this: try sudo cowsetup.");

	/* The library makes no task without the kernel's version. */
	dm_context = ctx;
	dm_log_with_errno_init(show_log);
	task = dm_task_create(DM_DEVICE_VERSION);
	if (!task && access("/proc/devices", R_OK))
		return error(ctx, WRONG, "Devices cannot be looked for: /proc is not mounted here.");
	if (!task)
		return error(ctx, WRONG, "There is no device-mapper in this kernel: modprobe dm-mod loads it, or says why not.");
	end_task(task);

	/* Has the kernel load the module. */
	task = new_task(DM_DEVICE_GET_TARGET_VERSION, DM_TARGET);
	err = run(task);
	end_task(task);
	if (!err)
		return OK;
	if (err == ENOMEM)
		return error_memory(ctx);
	if (err == EPERM || err == EACCES)
		return error(ctx, DENIED, "The kernel does not let this process use device-mapper: %s.", strerror(err));
	return error(ctx, WRONG, "The kernel has no target \"%s\": modprobe dm-cowloop loads it, or says why not. Is the module installed for this kernel?",
		     DM_TARGET);
}

bool dm_target_has(unsigned int major_nr, unsigned int minor_nr, unsigned int patch)
{
	struct dm_task *task = new_task(DM_DEVICE_GET_TARGET_VERSION, DM_TARGET);
	const struct dm_versions *v = run(task) ? NULL : dm_task_get_versions(task);
	const bool has = v && (v->version[0] << 20 | v->version[1] << 10 | v->version[2]) >=
			      (major_nr << 20 | minor_nr << 10 | patch);

	end_task(task);
	return has;
}

char *dm_loaded_version(struct cowloop_ctx *ctx)
{
	struct dm_versions *v;
	struct dm_task *task;
	char *found = NULL;

	/* To ask device-mapper would load it. */
	if (access("/sys/module/dm_mod", F_OK))
		return NULL;
	if (geteuid())
		return access("/sys/module/dm_cowloop", F_OK) ? NULL : strdup("loaded; root sees its version");
	dm_context = ctx;
	dm_log_with_errno_init(show_log);
	task = dm_task_create(DM_DEVICE_LIST_VERSIONS);
	if (!task)
		return NULL;
	for (v = run(task) ? NULL : dm_task_get_versions(task); v && !found;
	     v = v->next ? (struct dm_versions *)((char *)v + v->next) : NULL)
		if (!strcmp(v->name, DM_TARGET))
			found = text_of("%u.%u.%u", v->version[0], v->version[1], v->version[2]);
	end_task(task);
	return found;
}

int dm_check_name(struct cowloop_ctx *ctx, const char *name)
{
	if (!*name)
		return error(ctx, USAGE, "The name of the device is empty.");
	if (strchr(name, '/') || name_is_special(name))
		return error(ctx, USAGE, "%s: the name of a device cannot have a / in it or be ., .. or control: it is to become a name in /dev/mapper.",
			     name);
	if (strlen(name) > 100)
		return error(ctx, USAGE, "%s: the name of a device can have 100 characters at most.", name);
	return OK;
}

/* ---- Devices ---- */

static const char *plain_name(const char *name)
{
	const size_t n = strlen(dm_dir());

	return !strncmp(name, dm_dir(), n) && name[n] == '/' ? name + n + 1 : name;
}

int dm_look(const char *name, struct dm_device *d)
{
	return dm_read(plain_name(name), d) ? -1 : 0;
}

int dm_find(struct cowloop_ctx *ctx, const char *name, struct dm_device *d)
{
	int err;

	name = plain_name(name);
	if (!*name || strchr(name, '/'))
		return error(ctx, WRONG, "%s: not the name of a device; cowsetup list shows the names.", name);
	err = dm_read(name, d);
	if (!err)
		return OK;
	if (err == ENXIO)
		return error(ctx, WRONG, "%s: there is no device of this name; cowsetup list shows those there are.", name);
	if (err == DM_NO_TABLE)
		return error(ctx, WRONG, "%s: this device has no table, since its cowsetup open was killed, or is not through yet; dmsetup remove %s removes it.",
			     name, name);
	if (err == DM_NOT_COWLOOP)
		return error(ctx, WRONG, "%s: this is not a cowloop device; cowsetup list shows those there are.", name);
	errno = err;
	return error_errno(ctx, "%s: cannot be asked", name);
}

static bool get_info(const char *name, struct dm_info *info)
{
	struct dm_task *task = new_task(DM_DEVICE_INFO, name);
	const bool exists = !run(task) && dm_task_get_info(task, info) && info->exists;

	end_task(task);
	return exists;
}

bool dm_name_exists(const char *name)
{
	struct dm_info info;

	return get_info(name, &info);
}

int dm_refuse_name(struct cowloop_ctx *ctx, const char *name)
{
	struct dm_info info;

	if (!get_info(name, &info))
		return OK;
	if (!info.live_table)
		return error(ctx, BUSY, "%s: there is a device of this name already, without a table, since its cowsetup open was killed, or is not through yet; dmsetup remove %s removes it.",
			     name, name);
	return error(ctx, BUSY, "%s: there is a device of this name already; choose another name, or cowsetup close %s first.",
		     name, name);
}

static int compare_names(const void *a, const void *b)
{
	return strverscmp(((const struct dm_device *)a)->name, ((const struct dm_device *)b)->name);
}

int dm_list(struct cowloop_ctx *ctx, struct dm_device **devices, size_t *nr)
{
	struct dm_task *task = new_task(DM_DEVICE_LIST, NULL);
	struct dm_names *names;
	struct dm_device d, *grown;
	int r = OK;

	*devices = NULL;
	*nr = 0;
	errno = run(task);
	if (errno)
		r = error_errno(ctx, "The device-mapper devices cannot be listed");
	names = r ? NULL : dm_task_get_names(task);
	while (names && names->dev) {
		/* A device that is gone by now, or can't be asked, is not listed. */
		if (!dm_read(names->name, &d)) {
			grown = realloc(*devices, (*nr + 1) * sizeof(d));
			if (!grown) {
				r = error_memory(ctx);
				break;
			}
			*devices = grown;
			(*devices)[(*nr)++] = d;
		}
		if (!names->next)
			break;
		names = (struct dm_names *)((char *)names + names->next);
	}
	end_task(task);
	if (*nr)
		qsort(*devices, *nr, sizeof(d), compare_names);

	return r;
}

/* ---- Changes ---- */

/* Of a device by its number. */
static struct dm_task *run_task_of(int type, dev_t dev)
{
	struct dm_task *task = new_task(type, NULL);

	if (task && dm_task_set_major(task, major(dev)) && dm_task_set_minor(task, minor(dev)) && !run(task))
		return task;
	end_task(task);
	return NULL;
}

static bool has_thin_target(dev_t dev)
{
	struct dm_task *task = run_task_of(DM_DEVICE_TABLE, dev);
	char *type = NULL, *params;
	uint64_t start, length;
	bool found = false;
	void *next = NULL;

	while (task && !found) {
		next = dm_get_next_target(task, next, &start, &length, &type, &params);
		found = type && (!strcmp(type, "thin") || !strcmp(type, "vdo"));
		if (!next)
			break;
	}
	end_task(task);
	return found;
}

/* @depth: more than device-mapper can be stacked. */
static bool is_thin(dev_t dev, unsigned int depth)
{
	struct dm_task *task;
	struct dm_deps *deps;
	bool found = has_thin_target(dev);

	task = found || !depth ? NULL : run_task_of(DM_DEVICE_DEPS, dev);
	deps = task ? dm_task_get_deps(task) : NULL;
	for (u32 i = 0; deps && i < deps->count && !found; i++)
		found = is_thin(deps->device[i], depth - 1);
	end_task(task);
	return found;
}

bool dm_is_thin(dev_t dev)
{
	return is_thin(dev, 32);
}

static unsigned int count_words(const char *text)
{
	unsigned int nr = 0;

	for (bool in = false; *text; text++) {
		nr += !in && *text != ' ';
		in = *text != ' ';
	}
	return nr;
}

char *dm_params(dev_t rdo, dev_t cow, const char *options)
{
	const unsigned int nr = count_words(options);

	if (!nr)
		return text_of("%u:%u %u:%u", major(rdo), minor(rdo), major(cow), minor(cow));
	return text_of("%u:%u %u:%u %u %s", major(rdo), minor(rdo), major(cow), minor(cow), nr, options);
}

/* A device without a table. */
static int create_bare(const char *name, const char *uuid, dev_t *dev)
{
	struct dm_task *task = new_task(DM_DEVICE_CREATE, name);
	struct dm_info info;
	int err;

	if (!task || !dm_task_set_uuid(task, uuid) || !dm_task_set_add_node(task, DM_ADD_NODE_ON_RESUME))
		err = ENOMEM;
	else
		err = run(task);
	if (!err && dm_task_get_info(task, &info))
		*dev = makedev(info.major, info.minor);
	end_task(task);

	return err;
}

static int load(struct cowloop_ctx *ctx, const char *name, u64 start, u64 sectors, const char *params, bool read_only)
{
	struct dm_task *task = new_task(DM_DEVICE_RELOAD, name);
	int err;

	verbose(ctx, "%s: table: %llu %llu %s %s", name, start, sectors, DM_TARGET, params);
	if (!task || !dm_task_add_target(task, start, sectors, DM_TARGET, params) ||
	    (read_only && !dm_task_set_ro(task)))
		err = ENOMEM;
	else
		err = run(task);
	end_task(task);

	return err;
}

static int resume(struct cowloop_ctx *ctx, const char *name)
{
	struct dm_task *task = new_task(DM_DEVICE_RESUME, name);
	int err = run_with_udev(ctx, task, name, 0);

	end_task(task);
	return err;
}

static int remove_named(struct cowloop_ctx *ctx, const char *name, bool deferred)
{
	struct dm_task *task = new_task(DM_DEVICE_REMOVE, name);
	int err;

	/* Otherwise whoever has it open for a moment, as udev's rules do, would be in the way. */
	if (task && deferred)
		dm_task_deferred_remove(task);
	else if (task)
		dm_task_retry_remove(task);
	/* Nor would the library wait with the node until a device in use has gone. */
	err = run_with_udev(ctx, task, name, deferred ? DM_UDEV_DISABLE_LIBRARY_FALLBACK : 0);
	end_task(task);

	return err;
}

/* In steps: the library's own way of doing all this at once loses the errno. */
int dm_create(struct cowloop_ctx *ctx, const char *name, const char *uuid, u64 sectors, const char *params,
	      bool read_only,
	      dev_t *dev, bool *left)
{
	int err, removed;

	*dev = 0;
	*left = false;
	err = create_bare(name, uuid, dev);
	if (err)
		return err;
	err = load(ctx, name, 0, sectors, params, read_only);
	if (!err)
		err = resume(ctx, name);
	if (err) {
		removed = remove_named(ctx, name, false);
		*left = removed && removed != ENXIO;
	}
	return err;
}

int dm_replace(struct cowloop_ctx *ctx, const struct dm_device *d, const char *params, bool read_only)
{
	struct dm_task *task;
	int err = load(ctx, d->name, d->start, d->sectors, params, read_only);

	if (err)
		return err;
	/* The program may be on the device, and its pages cannot be read while that is suspended. */
	mlockall(MCL_CURRENT | MCL_FUTURE);
	/* Without freezing a filesystem on it, which would want to write. */
	task = new_task(DM_DEVICE_SUSPEND, d->name);
	if (task)
		dm_task_skip_lockfs(task);
	err = run(task);
	end_task(task);
	if (!err) {
		err = resume(ctx, d->name);
	} else {
		task = new_task(DM_DEVICE_CLEAR, d->name);
		run(task);
		end_task(task);
	}
	munlockall();
	return err;
}

int dm_remove(struct cowloop_ctx *ctx, const struct dm_device *d, bool deferred)
{
	return remove_named(ctx, d->name, deferred);
}

int dm_message(const struct dm_device *d, const char *message)
{
	struct dm_task *task = new_task(DM_DEVICE_TARGET_MSG, d->name);
	int err;

	if (!task || !dm_task_set_sector(task, d->start) || !dm_task_set_message(task, message))
		err = ENOMEM;
	else
		err = run(task);
	end_task(task);

	return err;
}

/* ---- Events, log ---- */

/* The number of events is kept from its opening on: see dm_poll() in the kernel. */
int dm_open_events(struct cowloop_ctx *ctx)
{
	char path[PATH_MAX];
	int fd;

	snprintf(path, sizeof(path), "%s/control", dm_dir());
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		error_errno(ctx, "%s: cannot be opened", path);
	return fd;
}

void dm_log_mark(struct cowloop_ctx *ctx)
{
	if (ctx->kmsg < 0)
		ctx->kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (ctx->kmsg >= 0)
		lseek(ctx->kmsg, 0, SEEK_END);
}

char *dm_log_last(struct cowloop_ctx *ctx, dev_t dev)
{
	char from[80], record[8192], *text, *last = NULL;
	ssize_t n;

	snprintf(from, sizeof(from), "device-mapper: " DM_TARGET ": %u:%u: ", major(dev), minor(dev));
	/* A record a time: "6,339,5140900,-;text", and lines of more about it. */
	while (ctx->kmsg >= 0) {
		n = read(ctx->kmsg, record, sizeof(record) - 1);
		if (n < 0 && (errno == EPIPE || errno == EINTR))
			continue;
		if (n <= 0)
			break;
		record[n] = 0;
		record[strcspn(record, "\n")] = 0;
		text = strstr(record, from);
		if (text) {
			free(last);
			last = strdup(text + strlen(from));
		}
	}
	return last;
}
