// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup close, list, status, sync, readonly and detach: active devices.
 *
 * A loop device under a device goes away by itself when the device lets go of
 * it (see loop.c); the commands that make it do so wait for that, since
 * whoever asks for them is about to unmount what the file is on.
 */

#include "live.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <json-c/json.h>

#include "../lib/advice.h"
#include "../lib/cowfile.h"
#include "../lib/flush.h"
#include "../lib/holders.h"
#include "../lib/loop.h"
#include "../lib/monitor.h"
#include "../lib/sysfs.h"
#include "report.h"

/* ---- What there is ---- */

int live_find(const char *name, struct dm_device *d)
{
	const int r = dm_check_kernel();

	return r ? r : dm_find(name, d);
}

char *live_file(dev_t dev)
{
	char *file = loop_file(dev);

	return file ? file : dev_path(dev);
}

/* ---- Files that have been removed ---- */

static bool has_lost_cow(const struct dm_device *d)
{
	return dm_has_cow(d) && loop_file_is_removed(d->cow);
}

/*
 * A file that was removed while the device has it lives on until the device is
 * closed, and is lost then: a text that says so, and how to keep it, to be freed.
 * NULL: all are where they were, or there is nothing to lose.
 */
static char *removed_text(const struct dm_device *d)
{
	char *path, *text;

	if (has_lost_cow(d) && d->used) {
		path = dev_path(d->cow);
		text = xasprintf("its cowfile was removed while in use: all that was modified is lost when it is closed. To keep it, unmount what is on it, then: dmsetup message %s 0 read_only && dd if=%s of=NEW.cow bs=1M iflag=direct conv=sparse && cowsetup close --force %s",
				 d->name, path, d->name);
	} else if (loop_file_is_removed(d->rdo)) {
		path = dev_path(d->rdo);
		text = xasprintf("the file of its read-only device was removed while in use: without it the cowfile cannot be used. To keep it: dd if=%s of=NEW bs=1M iflag=direct conv=sparse && cowsetup close --force %s",
				 path, d->name);
	} else {
		return NULL;
	}
	free(path);
	return text;
}

static void warn_cut_off(const struct dm_device *d, dev_t dev, const char *what)
{
	const u64 lacks = loop_file_lacks(dev);
	char *file;

	if (!lacks)
		return;
	file = live_file(dev);
	warn("%s: its %s, %s, was cut off while in use: its last %s are lost, and read as zeroes.",
	     d->name, what, file, size_text(lacks));
	free(file);
}

static void warn_cut(const struct dm_device *d)
{
	warn_cut_off(d, d->rdo, "image");
	if (dm_has_cow(d))
		warn_cut_off(d, d->cow, "cowfile");
}

/* Warn of files of the device that somebody has removed, or cut off, since it was opened. */
static void warn_lost(const struct dm_device *d)
{
	char *text = removed_text(d);

	if (text)
		warn("%s: %s.", d->name, text);
	free(text);
	warn_cut(d);
}

/* @what will not be done: "closed". */
static int refuse_removed(const struct dm_device *d, const char *what)
{
	char *text = opt.force || opt.gone ? NULL : removed_text(d);
	int r = OK;

	if (text)
		r = error(WRONG, "%s: not %s: %s.", d->name, what, text);
	free(text);
	return r;
}

/* ---- list, status ---- */

static void space_of(const struct dm_device *d, struct space *s)
{
	struct statvfs fs;

	space_look(d, &fs);
	space_least(d, &fs, s);
}

void report_space(const struct space *s)
{
	char text[120];

	if (opt.json) {
		report_json("free_bytes", s->of ? json_object_new_uint64(s->free) : NULL);
		report_json("free_total_bytes", s->of ? json_object_new_uint64(s->total) : NULL);
		report_json("free_of", s->of ? json_object_new_string(s->of) : NULL);
	} else if (s->of) {
		snprintf(text, sizeof(text), "%s of %s (%s, the least there is)", size_text(s->free),
			 size_text(s->total), s->of);
		report_text("", "Free for changes", text);
	}
}

/* A device below: where it is, and the file it is made of. */
static void report_below(const char *which, const char *title, dev_t dev, bool there)
{
	char *path = there ? dev_path(dev) : NULL, *file = there ? loop_file(dev) : NULL;
	char *key, *text;

	if (opt.json) {
		key = xasprintf("%s_device", which);
		report_json(key, path ? json_text(path) : NULL);
		free(key);
		key = xasprintf("%s_file", which);
		report_json(key, file ? json_text(file) : NULL);
		free(key);
		key = xasprintf("%s_file_removed", which);
		report_json(key, json_object_new_boolean(there && loop_file_is_removed(dev)));
		free(key);
	} else {
		text = !path ? xasprintf("- (let go of)") :
		       file ? xasprintf("%s (%s)", file, path) : xasprintf("%s", path);
		report_text("", title, text);
		free(text);
	}
	free(path);
	free(file);
}

static void report_counters(const struct dm_device *d)
{
	struct json_object *counters;
	char title[64];

	if (opt.json) {
		counters = json_object_new_object();
		for (unsigned int i = 0; i < d->nr_counters; i++)
			json_object_object_add(counters, d->counters[i].name,
					       json_object_new_uint64(d->counters[i].value));
		report_json("counters", counters);
		return;
	}
	for (unsigned int i = 0; i < d->nr_counters; i++) {
		snprintf(title, sizeof(title), "Count of %s", d->counters[i].name);
		for (char *p = title; *p; p++)
			if (*p == '_')
				*p = ' ';
		report_number("", title, d->counters[i].value);
	}
}

static void report_used(const struct dm_device *d)
{
	char text[120];

	if (opt.json) {
		report_number("units_used", "", d->used);
		report_number("units_total", "", d->total);
		report_number("used_bytes", "", d->used * d->mapunit);
	} else {
		snprintf(text, sizeof(text), "%s, %s (%llu of %llu units)", size_text(d->used * d->mapunit),
			 percent_text(d->used, d->total), d->used, d->total);
		report_text("", "Modified", text);
	}
}

/* "99.9%", or NULL if it is not known. */
static const char *full_text(const struct dm_device *d, const struct space *s, char text[16])
{
	const double percent = space_percent(d, s);

	snprintf(text, 16, "%.1f%%", percent);
	return percent < 0 ? NULL : text;
}

static void report_full(const struct dm_device *d, const struct space *s)
{
	char number[16];
	const char *text = full_text(d, s, number);

	if (!opt.json) {
		report_text("", "Full", text ? text : "");
		return;
	}
	/* The number, without the sign. */
	if (text)
		number[strlen(text) - 1] = 0;
	report_json("full_percent", text ? json_object_new_double_s(space_percent(d, s), number) : NULL);
}

static void report_advice(const struct dm_device *d, const struct space *s)
{
	char *advice = advice_text(d, s);

	if (opt.json)
		report_json("advice", advice ? json_text(advice) : NULL);
	else if (advice)
		report_text("", "What to do", advice);
	free(advice);
}

static void report_cow_uuid(const struct dm_device *d)
{
	char uuid[DM_COW_UUID_SIZE];
	const bool known = dm_cow_uuid(d, uuid);

	if (opt.json)
		report_json("cow_uuid", known ? json_object_new_string(uuid) : NULL);
	else
		report_text("", "UUID of the cowfile", known ? uuid : "");
}

/* What happens with space: of the limit and what goes with it only what is set, for people. */
static void report_space_options(const struct dm_device *d)
{
	if (opt.json || d->limit)
		report_size("limit_bytes", "Limit", d->limit * d->mapunit);
	if (opt.json || d->reserve)
		report_size("reserve_bytes", "Reserve", d->reserve * d->mapunit);
	if (opt.json || d->low_water)
		report_size("low_water_bytes", "Low water", d->low_water * d->mapunit);
	report_bool("queue_if_no_space", "Queues if no space", dm_has_option(d, "queue_if_no_space"));
	report_bool("discard_passdown", "Passes discards down", !dm_has_option(d, "no_discard_passdown"));
}

static void report_device(const struct dm_device *d)
{
	char *path = xasprintf("%s/%s", DM_NODES, d->name);
	struct space s;

	space_of(d, &s);
	report_start("name", "Name", d->name);
	report_text("device", "Device", path);
	report_text("mode", "Mode", d->mode_word);
	report_advice(d, &s);
	report_text("state", "State", d->dirty ? "dirty" : "clean");
	report_size("device_bytes", "Size", d->sectors * 512);
	report_used(d);
	report_space(&s);
	report_full(d, &s);
	report_below("rdo", "Read-only device", d->rdo, true);
	report_below("cow", "Cowfile", d->cow, dm_has_cow(d));
	report_cow_uuid(d);
	report_number("format", "Format", d->format);
	report_size("unit_bytes", "Unit", d->mapunit);
	report_space_options(d);
	report_bool("read_only", "Read-only to users", d->read_only);
	report_bool("suspended", "Suspended", d->suspended);
	report_bool("deferred_remove", "Closes when unused", d->deferred_remove);
	report_number("open_count", "Open by", d->open_count);
	report_text("uuid", "UUID of the device", d->uuid);
	report_counters(d);
	free(path);
}

int cmd_status(int argc, char **argv)
{
	struct dm_device d;
	int r = live_find(argv[0], &d);

	(void)argc;
	if (r)
		return r;
	report_device(&d);
	if (!opt.json)
		warn_lost(&d);
	report_bool("monitored", "Monitored", monitor_is_on(&d));
	report_end();

	return OK;
}

enum { LIST_NAME, LIST_SIZE, LIST_USED, LIST_FREE, LIST_FULL, LIST_STATE, LIST_MODE, LIST_RDO, LIST_COW, LIST_COLUMNS };

static void list_row(const struct dm_device *d, char **cell)
{
	char full[16];
	struct space s;

	space_of(d, &s);
	cell[LIST_NAME] = xasprintf("%s", d->name);
	cell[LIST_SIZE] = xasprintf("%s", size_text(d->sectors * 512));
	cell[LIST_USED] = xasprintf("%s", size_text(d->used * d->mapunit));
	cell[LIST_FREE] = xasprintf("%s", s.of && dm_has_cow(d) ? size_text(s.free) : "-");
	cell[LIST_FULL] = xasprintf("%s", full_text(d, &s, full) ? full : "-");
	cell[LIST_STATE] = xasprintf("%s", d->dirty ? "dirty" : "clean");
	cell[LIST_MODE] = xasprintf("%s", d->mode_word);
	cell[LIST_RDO] = live_file(d->rdo);
	cell[LIST_COW] = dm_has_cow(d) ? live_file(d->cow) : xasprintf("-");
}

static void print_table(const struct dm_device *devices, size_t nr)
{
	static const char *const titles[LIST_COLUMNS] = {
		"NAME", "SIZE", "USED", "FREE", "FULL%", "STATE", "MODE", "RDO", "COW",
	};
	char **cells = xmalloc((nr + 1) * LIST_COLUMNS * sizeof(*cells));

	for (unsigned int i = 0; i < LIST_COLUMNS; i++)
		cells[i] = xasprintf("%s", titles[i]);
	for (size_t i = 0; i < nr; i++)
		list_row(&devices[i], cells + (i + 1) * LIST_COLUMNS);
	if (nr)
		report_table(cells, nr + 1, LIST_COLUMNS,
			     1 << LIST_SIZE | 1 << LIST_USED | 1 << LIST_FREE | 1 << LIST_FULL);
	for (size_t i = 0; i < (nr + 1) * LIST_COLUMNS; i++)
		free(cells[i]);
	free(cells);
}

int cmd_list(int argc, char **argv)
{
	struct json_object *list, *all;
	struct dm_device *devices;
	size_t nr;
	int r = dm_check_kernel();

	(void)argc;
	(void)argv;
	if (!r)
		r = dm_list(&devices, &nr);
	if (r)
		return r;
	if (opt.json) {
		list = json_object_new_array();
		for (size_t i = 0; i < nr; i++) {
			report_device(&devices[i]);
			json_object_array_add(list, report_take());
		}
		all = json_object_new_object();
		json_object_object_add(all, "devices", list);
		report_print(all);
	} else {
		print_table(devices, nr);
		for (size_t i = 0; i < nr; i++)
			warn_lost(&devices[i]);
	}
	free(devices);
	return OK;
}

/* ---- sync ---- */

static int sync_device(const struct dm_device *d)
{
	errno = dm_message(d, "sync");
	if (!errno)
		return OK;
	return error_errno("%s: cannot be synced (cowsetup status %s, and dmesg, say more)", d->name, d->name);
}

static int sync_all(void)
{
	struct dm_device *devices;
	size_t nr;
	int r = dm_list(&devices, &nr), failed;

	for (size_t i = 0; i < nr; i++) {
		failed = sync_device(&devices[i]);
		r = r ? r : failed;
	}
	free(devices);
	return r;
}

int cmd_sync(int argc, char **argv)
{
	struct dm_device d;
	int r = dm_check_kernel(), failed;

	if (r || !argc)
		return r ? r : sync_all();
	for (int i = 0; i < argc; i++) {
		failed = dm_find(argv[i], &d);
		if (!failed)
			failed = sync_device(&d);
		r = r ? r : failed;
	}
	return r;
}

/* ---- close ---- */

/* Wait for a loop device to go; it stays if its user attached it himself. */
static int wait_for_loop(dev_t dev, const char *file, bool autoclear)
{
	struct holders h = HOLDERS_NONE;
	char *path, *user;
	int r = OK;

	if (!file || !autoclear || loop_wait_gone(dev, file))
		return OK;
	path = dev_path(dev);
	holders_find_device(&h, dev, HOLDERS_USES | HOLDERS_OPEN);
	user = holders_text(&h, true);
	r = error(BUSY, "%s: still attached to %s, which is in use: %s. When that has ended, it is detached by itself.",
		  file, path, user ? user : "another program has it open");
	free(user);
	holders_free(&h);
	free(path);
	return r;
}

/*
 * A loop device of ours goes with the device it was made for, unless something
 * else has been made of it by then, as LVM does that finds its volumes there.
 * This is found out before, as long as the device is there to be closed again.
 */
static int refuse_busy_loop(const struct dm_device *d, dev_t loop)
{
	struct holders h = HOLDERS_NONE;
	char *path, *user;
	int r = OK;

	if (!loop_autoclear(loop))
		return OK;
	holders_find_device(&h, loop, HOLDERS_USES);
	holders_drop(&h, d->dev);
	user = holders_text(&h, true);
	if (user) {
		path = dev_path(loop);
		r = error(BUSY, "%s: not closed, since its loop device %s is in use by others: %s. End that, and close it then; --force closes it now, and what it is made of stays in use.",
			  d->name, path, user);
		free(path);
	}
	free(user);
	holders_free(&h);
	return r;
}

static int refuse_busy(const struct dm_device *d, int err)
{
	struct holders h = HOLDERS_NONE;
	char *user;
	int r;

	if (err != EBUSY) {
		errno = err;
		return error_errno("%s: cannot be closed", d->name);
	}
	holders_find_device(&h, d->dev, HOLDERS_USES | HOLDERS_OPEN);
	user = holders_text(&h, true);
	r = error(BUSY, "%s: in use: %s; with --deferred it is closed when that has ended.", d->name,
		  user ? user : "another program has it open");
	free(user);
	holders_free(&h);
	return r;
}

/* Has it been unplugged? */
static bool is_gone(dev_t dev)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u", major(dev), minor(dev));
	return dev && access(path, F_OK) && errno == ENOENT;
}

/* An errno: has somebody else closed it meanwhile? As when udev and systemd both see that it was unplugged. */
static bool is_closed(const struct dm_device *d, int err)
{
	return err == ENXIO && !dm_name_exists(d->name);
}

/*
 * The kernel has nobody to tell when it can't make everything durable as it
 * removes a device, so have it done before that, while there is a way back.
 */
static int sync_before_close(const struct dm_device *d)
{
	const bool failed = d->mode == DM_MODE_FAIL, gone = dm_has_cow(d) && is_gone(d->cow);
	char *advice;
	int err, r;

	err = dm_message(d, "sync");
	if (!err || is_closed(d, err))
		return OK;
	/* There is nowhere left to sync it to. */
	if (gone) {
		warn("%s: its cow device has gone: what was written since the last sync that succeeded may be lost.",
		     d->name);
		return OK;
	}
	if (opt.force) {
		warn("%s: closed without being synced (%s): what was written since the last sync that succeeded may be lost.",
		     d->name, strerror(err));
		return OK;
	}
	advice = err == ENOSPC ? advice_no_space(d->name) : NULL;
	errno = err;
	r = error_errno("%s: not closed, since it cannot be synced%s: what was written since the last sync that succeeded would be lost: %s; close --force closes it all the same",
			d->name, failed ? ", as its cow device has failed" : "", advice ? advice : "see dmesg");
	free(advice);
	return r;
}

/* Has it any use that does not end by itself: a mount, a device above, swap? */
static bool is_used(const struct dm_device *d)
{
	struct holders h = HOLDERS_NONE;
	bool used;

	holders_find_device(&h, d->dev, HOLDERS_USES);
	used = h.nr;
	holders_free(&h);
	return used;
}

static int close_device(const struct dm_device *d)
{
	char *rdo_file, *cow_file;
	bool rdo_autoclear, cow_autoclear, monitored = false;
	int err, r;

	/* A user that is here to stay is not waited for. */
	if (!opt.deferred && d->open_count && is_used(d))
		return refuse_busy(d, EBUSY);
	r = opt.force || opt.deferred ? OK : refuse_busy_loop(d, d->rdo);
	if (!r && !opt.force && !opt.deferred && dm_has_cow(d))
		r = refuse_busy_loop(d, d->cow);
	if (!r)
		r = refuse_removed(d, "closed");
	if (!r)
		r = sync_before_close(d);
	if (r)
		return r;
	warn_cut(d);

	rdo_file = loop_file(d->rdo);
	rdo_autoclear = loop_autoclear(d->rdo);
	cow_file = dm_has_cow(d) ? loop_file(d->cow) : NULL;
	cow_autoclear = cow_file && loop_autoclear(d->cow);
	/* Before it goes, or dmeventd logs an error; but a device in use stays for now, with --deferred. */
	if (!opt.deferred || !d->open_count)
		monitored = monitor_is_on(d) && !monitor_stop(d);
	err = dm_remove(d, opt.deferred);
	if (is_closed(d, err))
		err = 0;
	if (err && monitored)
		monitor_start(d);
	if (err) {
		r = refuse_busy(d, err);
	} else if (!dm_name_exists(d->name)) {
		r = wait_for_loop(d->rdo, rdo_file, rdo_autoclear);
		if (!r)
			r = wait_for_loop(d->cow, cow_file, cow_autoclear);
	}
	free(rdo_file);
	free(cow_file);
	return r;
}

/* Is a device that it is made of gone? */
static bool has_lost(const struct dm_device *d)
{
	return is_gone(d->rdo) || (dm_has_cow(d) && is_gone(d->cow));
}

/* Devices that are in use are closed when they are not any more: until then there are errors of I/O. */
static int close_gone(void)
{
	struct dm_device *devices, now;
	int r, one;
	size_t nr;

	opt.deferred = true;
	r = dm_check_kernel();
	if (r)
		return r;
	r = dm_list(&devices, &nr);
	for (size_t i = 0; i < nr && !interrupted; i++) {
		if (!has_lost(&devices[i]))
			continue;
		/* Closing another one, or somebody else, may have changed it, or opened it anew. */
		if (dm_look(devices[i].name, &now) || now.deferred_remove || !has_lost(&now))
			continue;
		one = close_device(&now);
		if (!r)
			r = one;
	}
	free(devices);
	return r;
}

/* Each is tried, whatever becomes of the others. */
int cmd_close(int argc, char **argv)
{
	struct dm_device d;
	int r, one;

	if (opt.gone == !!argc)
		return error(USAGE, "close: requires <name>... or --gone.");
	if (opt.gone)
		return close_gone();
	r = dm_check_kernel();
	if (r)
		return r;
	for (int i = 0; i < argc && !interrupted; i++) {
		one = dm_find(argv[i], &d);
		if (!one)
			one = close_device(&d);
		r = r ? r : one;
	}
	return r;
}

/* ---- readonly, detach ---- */

/*
 * The device has let go of the loop device, and so will the loop device of the
 * file; but one that was there before us stays, so say so.
 */
static int release_file(const struct dm_device *d, const char *file)
{
	char *now = loop_file(d->cow), *path = dev_path(d->cow);
	int r = OK;

	if (now && !strcmp(now, file)) {
		if (loop_autoclear(d->cow))
			r = wait_for_loop(d->cow, file, true);
		else
			warn("%s: still held by %s, which was not attached by cowsetup: losetup --detach %s.",
			     file, path, path);
	}
	free(now);
	free(path);
	return r;
}

/*
 * A filesystem that is mounted on it is no reason to refuse: where it is the
 * machine's root, and that goes down, nobody could do anything about it. But it
 * is told what is lost by it; what there is to write has been written by then.
 */
static void warn_mounted(const struct dm_device *d, bool unreadable)
{
	bool writable;
	char *point = device_mount_anywhere(d->dev, &writable);

	if (point && unreadable)
		warn("%s: mounted on %s: what has been modified cannot be read there from now on.", d->name, point);
	if (point && writable)
		warn("%s: mounted on %s for writing: what is written there from now on is lost.",
		     d->name, point);
	free(point);
}

/* The options that still mean something to a device that is never written. */
static char *read_only_options(const struct dm_device *d)
{
	char *words = xasprintf("%s", d->options), *save, *options = xasprintf("read_only"), *more;

	for (char *word = strtok_r(words, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
		if (strncmp(word, "limit:", 6) && strncmp(word, "reserve:", 8) &&
		    strncmp(word, "low_water:", 10) &&
		    strcmp(word, "queue_if_no_space") && strcmp(word, "no_discard_passdown"))
			continue;
		more = xasprintf("%s %s", options, word);
		free(options);
		options = more;
	}
	free(words);
	return options;
}

/*
 * As long as a loop device has the file open for writing, the filesystem it is
 * on can't be remounted read-only. So put one in its place that has not.
 */
static int exchange_loop(const struct dm_device *d, const struct file *f, const char *path)
{
	char *options = read_only_options(d), *params, *said;
	struct loop l;
	int err, r = loop_attach(&l, f);

	if (!r) {
		params = dm_params(d->rdo, l.dev, options);
		dm_log_mark();
		err = dm_replace(d, params, true);
		free(params);
		loop_close(&l);
		if (err) {
			said = dm_log_last(d->dev);
			errno = err;
			r = error_errno("%s: takes no more writes, but still holds %s for writing: the kernel refuses another table%s%s",
					d->name, path, said ? ": " : "", said ? said : "");
			free(said);
		}
	}
	free(options);
	return r;
}

int cmd_readonly(int argc, char **argv)
{
	struct file f = FILE_CLOSED;
	struct dm_device d;
	char *path = NULL;
	int r = live_find(argv[0], &d);

	(void)argc;
	if (r)
		return r;
	if (d.mode == DM_MODE_CLOSED)
		return error(WRONG, "%s: it has let go of its cowfile already.", d.name);
	if (d.suspended)
		return error(BUSY, "%s: suspended; dmsetup resume %s first.", d.name, d.name);

	path = loop_file(d.cow);
	if (path) {
		r = file_open(&f, path, FILE_READ);
		if (!r && !loop_has_file(d.cow, &f))
			r = error(WRONG, "%s: this is not the cowfile of %s any more: it was renamed or removed.",
				  path, d.name);
	}
	if (!r)
		r = flush_device(&d, "readonly");
	if (!r) {
		warn_mounted(&d, false);
		errno = dm_message(&d, "read_only");
		if (errno)
			r = error_errno("%s: cannot be made read-only (cowsetup status %s, and dmesg, say more)",
					d.name, d.name);
	}
	if (!r && path && !loop_read_only(d.cow)) {
		r = exchange_loop(&d, &f, path);
		if (!r)
			r = release_file(&d, path);
		/* The new loop device holds it, as the old one did, so that who can't ask loop devices sees it, too. */
		if (!r)
			file_try_share(&f);
	}
	file_close(&f);
	free(path);
	return r;
}

/*
 * A cowfile is let go of so that the filesystem that it is on can be unmounted;
 * but there may be another file on that.
 */
static void warn_rdo_beside(const struct dm_device *d, const char *cow_file, dev_t cow_fs)
{
	char *rdo_file = loop_file(d->rdo);
	struct stat st;

	if (rdo_file && !stat(rdo_file, &st) && S_ISREG(st.st_mode) && st.st_dev == cow_fs)
		warn("%s: its read-only device, %s, is on the same filesystem as %s was, which stays in use by that until cowsetup close %s.",
		     d->name, rdo_file, cow_file, d->name);
	free(rdo_file);
}

int cmd_detach(int argc, char **argv)
{
	struct dm_device d, now;
	char *path, *said;
	struct stat st;
	bool lost;
	int err, r = live_find(argv[0], &d);

	(void)argc;
	if (r)
		return r;
	if (d.mode == DM_MODE_CLOSED) {
		tell("%s: it has let go of its cowfile already.", d.name);
		return OK;
	}

	if (d.suspended)
		return error(BUSY, "%s: suspended; dmsetup resume %s first.", d.name, d.name);
	if (has_lost_cow(&d))
		r = refuse_removed(&d, "detached");
	if (!r)
		r = flush_device(&d, "detach");
	if (r)
		return r;

	path = loop_file(d.cow);
	if (!path || stat(path, &st))
		st.st_dev = 0;
	warn_mounted(&d, true);
	dm_log_mark();
	err = dm_message(&d, "close");
	/* One that has failed lets go all the same. */
	lost = err && !dm_look(d.name, &now) && now.mode == DM_MODE_CLOSED;
	if (err) {
		said = dm_log_last(d.dev);
		errno = err;
		if (lost)
			r = error(WRONG, "%s: has let go of its cowfile, and had failed before: %s", d.name,
				  said ? said : "what was not flushed is lost");
		else if (said && strstr(said, "unrecognised message"))
			r = error(WRONG, "The module dm-cowloop that is loaded cannot let go of a cowfile; a newer one can.");
		else
			r = error_errno("%s: cannot let go of its cowfile%s%s", d.name, said ? ": " : "", said ? said : "");
		free(said);
	}
	if (path && (!err || lost)) {
		err = release_file(&d, path);
		r = r ? r : err;
		if (!err && st.st_dev)
			warn_rdo_beside(&d, path, st.st_dev);
	}
	free(path);
	return r;
}
