// SPDX-License-Identifier: GPL-2.0-only
/*
 * libdevmapper-event-cowloop.so: has dmeventd(8) warn of cowloop devices that
 * have little room left for changes.
 *
 * dmeventd has a thread for each device that was registered with it, by
 * `cowsetup monitor'. It calls process_event() upon every event of the device,
 * and every ten seconds, since nothing tells when a filesystem fills up. Each
 * time we look how things are, and say what is new, in syslog: that it is 80,
 * 85, 90, 95 or 100 percent full, and again if it had fallen by 5 percent in
 * between; and that it is out of space, has failed, or let go of its cowfile.
 * Full is what has the least room left of limit, cow device and filesystem:
 * cowloop_device_space() says which.
 *
 * With all that PROGRAM is run, if there is one. It has a fixed place, since a
 * registration has no room but for the names of the plugin and of the device;
 * and what a daemon of root's runs should depend on nothing but files of root's.
 *
 * This is a guest in a daemon that has other devices to look after: it never
 * exits, and libcowloop does not either.
 */

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <syslog.h>

#include <libdevmapper.h>
#include <libdevmapper-event.h>

#include "../lib/libcowloop.h"

/* Names that dmeventd looks up; all others stay hidden, or they would clash with names of the C library. */
#define EXPORTED	__attribute__((visibility("default")))

#define PROGRAM_DIR	"/etc/cowsetup"
#define PROGRAM		PROGRAM_DIR "/low-space"

#define FIRST_WARNING	80	/* percent */
#define STEP		5
#define CALM_LOOKS	6	/* a minute */

/* A device, and what has been said about it. */
struct monitor {
	unsigned int full;	/* percent: a multiple of STEP; 0: nothing yet */
	enum cowloop_mode mode;	/* COWLOOP_MODE_RW is 0 */
	unsigned int calm;	/* looks in a row, not for an event, with space again */
	int err;		/* of cowloop_device_look() */
};

static __attribute__((format(printf, 2, 3)))
void log_line(int level, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	dm_event_log("cowloop", level, __FILE__, __LINE__, 0, fmt, ap);
	va_end(ap);
}

/* @level is one of syslog's. Names and paths may be anything, and are made visible. */
static __attribute__((format(printf, 2, 3)))
void say(int level, const char *fmt, ...)
{
	char *text, *visible = NULL;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		text = NULL;
	va_end(ap);
	if (text)
		visible = cowloop_text_visible(text);
	log_line(level, "%s", visible ? visible : "cowloop: out of memory");
	free(visible);
	free(text);
}

/* ---- The program ---- */

/* May it be run? It need not be there at all. */
static bool program_is_fit(void)
{
	static const char *const paths[] = { PROGRAM_DIR, PROGRAM };
	struct stat st;

	for (unsigned int i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
		if (stat(paths[i], &st)) {
			if (errno != ENOENT)
				say(LOG_ERR, "%s: not run: %s.", PROGRAM, strerror(errno));
			return false;
		}
		if (st.st_uid || (st.st_mode & (S_IWGRP | S_IWOTH))) {
			say(LOG_ERR, "%s: not run, since others than root may write to %s: chown root, chmod go-w.",
			    PROGRAM, paths[i]);
			return false;
		}
	}
	return true;
}

/* As a process of its own should be: dmeventd blocks signals, and has descriptors open. */
static int spawn_program(pid_t *pid, char **env)
{
	char *argv[] = { PROGRAM, NULL };
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attr;
	sigset_t signals;
	int err;

	posix_spawnattr_init(&attr);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	sigfillset(&signals);
	posix_spawnattr_setsigdefault(&attr, &signals);
	sigemptyset(&signals);
	posix_spawnattr_setsigmask(&attr, &signals);

	posix_spawn_file_actions_init(&files);
	err = posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
	if (!err)
		err = posix_spawn_file_actions_addclosefrom_np(&files, STDERR_FILENO + 1);
	if (!err)
		err = posix_spawn(pid, PROGRAM, &files, &attr, argv, env);
	posix_spawn_file_actions_destroy(&files);
	posix_spawnattr_destroy(&attr);

	return err;
}

/* The program is waited for: until it has ended, dmeventd does not call for this device again. */
static void run_program(const struct cowloop_device *d, const struct cowloop_space *s)
{
	char name[160], mode[64], room[32], total[32];
	char path[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
	char *env[] = { path, name, mode, room, total, NULL };
	int err, status;
	pid_t pid;

	if (!program_is_fit())
		return;
	snprintf(name, sizeof(name), "NAME=%s", cowloop_device_name(d));
	snprintf(mode, sizeof(mode), "MODE=%s", cowloop_device_mode_word(d));
	snprintf(room, sizeof(room), "FREE=%llu", s->free);
	snprintf(total, sizeof(total), "TOTAL=%llu", s->total);

	err = spawn_program(&pid, env);
	if (err) {
		say(LOG_ERR, "%s: cannot be run: %s.", PROGRAM, strerror(err));
		return;
	}
	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR) {
			say(LOG_ERR, "%s: was lost: %s.", PROGRAM, strerror(errno));
			return;
		}
	}
	if (WIFSIGNALED(status))
		say(LOG_ERR, "%s: was ended by signal %d, for %s.", PROGRAM, WTERMSIG(status),
		    cowloop_device_name(d));
	else if (WEXITSTATUS(status))
		say(LOG_ERR, "%s: ended with status %d, for %s.", PROGRAM, WEXITSTATUS(status),
		    cowloop_device_name(d));
}

/* ---- What is new ---- */

/*
 * Where some writes find space and others do not, the mode goes to and fro: it is
 * out of space until it has not been for a while.
 */
static bool still_out_of_space(struct monitor *m, enum cowloop_mode mode, bool in_time)
{
	if (m->mode != COWLOOP_MODE_OUT_OF_SPACE || mode != COWLOOP_MODE_RW)
		m->calm = 0;
	else if (in_time)
		m->calm++;
	return m->mode == COWLOOP_MODE_OUT_OF_SPACE && mode == COWLOOP_MODE_RW && m->calm < CALM_LOOKS;
}

/* True if it is worth a run of the program; so below. */
static bool tell_mode(struct monitor *m, const struct cowloop_device *d, bool in_time)
{
	const enum cowloop_mode before = m->mode, mode = cowloop_device_mode(d);
	char *advice;

	if (still_out_of_space(m, mode, in_time) || mode == before)
		return false;
	m->mode = mode;
	switch (mode) {
	case COWLOOP_MODE_OUT_OF_SPACE:
	case COWLOOP_MODE_FAIL:
	case COWLOOP_MODE_CLOSED:
		advice = cowloop_device_advice(d);
		say(LOG_WARNING, "WARNING: Cowloop device %s is in mode %s: %s.", cowloop_device_name(d),
		    cowloop_device_mode_word(d), advice ? advice : "cowsetup status says what to do");
		free(advice);
		return true;
	case COWLOOP_MODE_RW:
		say(LOG_NOTICE, "Cowloop device %s has space again.", cowloop_device_name(d));
		return false;
	case COWLOOP_MODE_RO:
	case COWLOOP_MODE_UNKNOWN:
		break;
	}
	return false;
}

static void warn_full(const struct cowloop_device *d, const struct cowloop_space *s)
{
	char *advice = cowloop_device_space_advice(d);

	say(LOG_WARNING, "WARNING: Cowloop device %s is now %s full: %s of %s free (%s); %s.", cowloop_device_name(d),
	    cowloop_percent_text(s->total - s->free, s->total), cowloop_size_text(s->free), cowloop_size_text(s->total), s->of,
	    advice ? advice : "cowsetup status says what to do");
	free(advice);
}

static bool tell_full(struct monitor *m, const struct cowloop_device *d, const struct cowloop_space *s)
{
	const double percent = s->total ? 100.0 * (s->total - s->free) / s->total : 100;
	const unsigned int step = (unsigned int)(percent / STEP) * STEP;

	while (m->full && percent <= m->full - STEP)
		m->full = m->full > FIRST_WARNING ? m->full - STEP : 0;
	if (step < FIRST_WARNING || step <= m->full)
		return false;
	m->full = step;
	warn_full(d, s);
	return true;
}

static bool takes_writes(const struct cowloop_device *d)
{
	const enum cowloop_mode mode = cowloop_device_mode(d);

	return mode == COWLOOP_MODE_RW || mode == COWLOOP_MODE_OUT_OF_SPACE || mode == COWLOOP_MODE_UNKNOWN;
}

static void look(struct monitor *m, const struct cowloop_device *d, bool in_time)
{
	struct cowloop_space s;
	bool news;

	cowloop_device_space(d, &s);
	news = tell_mode(m, d, in_time);
	if (s.of && takes_writes(d))
		news |= tell_full(m, d, &s);
	if (news)
		run_program(d, &s);
}

/* ---- What dmeventd calls ---- */

EXPORTED
void process_event(struct dm_task *task, enum dm_event_mask events, void **user)
{
	const char *name = dm_task_get_name(task);
	struct monitor *m = *user;
	struct cowloop_device *d;
	const int err = cowloop_device_look(name, &d);

	if (!err)
		look(m, d, events & DM_EVENT_TIMEOUT);
	else if (err != m->err)
		say(LOG_ERR, "Cowloop device %s cannot be monitored: %s.", name,
		    err == COWLOOP_NO_TABLE ? "it has no table" :
		    err == COWLOOP_NOT_COWLOOP ? "it is none any more, or this plugin is older than the module" :
					    strerror(err));
	cowloop_device_free(d);
	m->err = err;
}

EXPORTED
int register_device(const char *name, const char *uuid, int major, int minor, void **user)
{
	(void)uuid;
	(void)major;
	(void)minor;
	*user = calloc(1, sizeof(struct monitor));
	if (!*user) {
		say(LOG_ERR, "Cowloop device %s cannot be monitored: out of memory.", name);
		return 0;
	}
	say(LOG_INFO, "Monitoring cowloop device %s.", name);
	return 1;
}

EXPORTED
int unregister_device(const char *name, const char *uuid, int major, int minor, void **user)
{
	(void)uuid;
	(void)major;
	(void)minor;
	free(*user);
	*user = NULL;
	say(LOG_INFO, "No longer monitoring cowloop device %s.", name);
	return 1;
}
