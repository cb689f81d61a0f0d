// SPDX-License-Identifier: GPL-2.0-only
/*
 * The crash checker for filesystems: a filesystem on a cowloop device must find
 * what it has flushed, whenever the machine dies.
 *
 *	fscrash fill	makes the first files on a filesystem that will be the rdo
 *	fscrash work	changes files on a cowloop device whose cow device is recorded
 *			by dm-log-writes, and keeps a journal of what it did
 *	fscrash check	replays the recording: at every flush and FUA write in it, it
 *			opens the cowfile, mounts the filesystem, compares every file
 *			with the journal, unmounts and runs fsck. For each flush it
 *			looks at states, too, in which writes since the one before
 *			were lost
 *
 * Files are made of sectors with stamps, as in cowcrash: each tells the file it
 * belongs to, its place and the write it is from. Sizes are whole sectors. Both
 * the work and the check keep a model of all files, made from the journal: for
 * each sector of a file, for its size and for its name what it was when it was
 * last made durable, and all that it has been since. After a crash each may be
 * any of them, by itself, and nothing else. A file has always one of its names,
 * unless none (it was not made yet, or has been deleted) is among them.
 *
 * The work makes things durable with fsync of a file (its contents and, on all
 * filesystems with a journal, its name), with fsync of all directories (the
 * names of all files) or with syncfs (everything). Each is followed by a mark
 * in the recording, whose number is in the journal.
 */

#include "crash.h"

#include <dirent.h>
#include <ftw.h>
#include <getopt.h>
#include <limits.h>
#include <sys/mount.h>

#define MAX_FILES	8192
#define MAX_SECTORS	512	/* of a file */
#define MAX_CHANGES	12	/* of a file, before it is made durable */
#define MAX_LIVE	40	/* files at a time */
#define NR_DIRS		5
#define NAME_SIZE	16

enum op {
	CREATE,		/* file, name */
	WRITE,		/* file, first, count, stamp */
	TRUNCATE,	/* file, count; or make it larger */
	RENAME,		/* file, name, which replaces the file that had it */
	UNLINK,		/* file */
	FSYNC,		/* file, mark; here and below: it has been done, and the mark is in the log */
	FSYNC_DIRS,	/* mark */
	SYNC,		/* mark */
};

struct record {
	uint32_t op, file, first, count;
	uint64_t stamp;
	uint64_t mark;
	char name[NAME_SIZE];
};

struct options {
	const char *log, *journal, *cowloop, *target_options, *rdo, *type;
	uint64_t seed, ops;
	unsigned int samples, workers;
};

/* ---- The model ---- */

/* Of stamps and names, what is durable comes first, and the latest last. */
struct file {
	unsigned int changes;
	uint32_t size, min_size, max_size;	/* the latest, and the range since it was durable */
	unsigned int nr_names;
	char names[MAX_CHANGES + 3][NAME_SIZE];	/* "": none */
	uint8_t nr_stamps[MAX_SECTORS];
	uint64_t stamps[MAX_SECTORS][MAX_CHANGES + 2];
	bool found;
};

static struct file *files[MAX_FILES];
static unsigned int nr_files;

static const char *latest_name(const struct file *file)
{
	return file->names[file->nr_names - 1];
}

static uint64_t latest_stamp(const struct file *file, uint32_t sector)
{
	return file->stamps[sector][file->nr_stamps[sector] - 1];
}

/* The file that is called @name now, or NULL. */
static struct file *file_called(const char *name)
{
	for (unsigned int i = 0; i < nr_files; i++)
		if (!strcmp(latest_name(files[i]), name))
			return files[i];
	return NULL;
}

static void add_name(struct file *file, const char *name)
{
	snprintf(file->names[file->nr_names++], NAME_SIZE, "%s", name);
}

static void add_stamp(struct file *file, uint32_t sector, uint64_t stamp)
{
	if (stamp != latest_stamp(file, sector))
		file->stamps[sector][file->nr_stamps[sector]++] = stamp;
}

static void resize(struct file *file, uint32_t size)
{
	for (uint32_t s = size; s < file->size; s++)
		add_stamp(file, s, 0);
	file->size = size;
	file->min_size = size < file->min_size ? size : file->min_size;
	file->max_size = size > file->max_size ? size : file->max_size;
}

static void settle_name(struct file *file)
{
	memmove(file->names[0], latest_name(file), NAME_SIZE);
	file->nr_names = 1;
}

static void settle(struct file *file)
{
	settle_name(file);
	for (uint32_t s = 0; s < MAX_SECTORS; s++) {
		file->stamps[s][0] = latest_stamp(file, s);
		file->nr_stamps[s] = 1;
	}
	file->min_size = file->max_size = file->size;
	file->changes = 0;
}

static void new_file(const char *name)
{
	struct file *file = allocate(sizeof(*file));

	if (nr_files == MAX_FILES)
		die(EXIT_SYSTEM, "too many files");
	files[nr_files++] = file;
	file->nr_names = 1;
	memset(file->nr_stamps, 1, sizeof(file->nr_stamps));
	add_name(file, name);
}

static void apply(const struct record *r)
{
	struct file *file = r->file < nr_files ? files[r->file] : NULL, *other;

	if (file && r->op < FSYNC && ++file->changes > MAX_CHANGES)
		die(EXIT_SYSTEM, "too many changes of a file in the journal");
	switch ((enum op)r->op) {
	case CREATE:
		new_file(r->name);
		break;
	case WRITE:
		for (uint32_t s = r->first; s < r->first + r->count; s++)
			add_stamp(file, s, r->stamp);
		if (r->first + r->count > file->size)
			resize(file, r->first + r->count);
		break;
	case TRUNCATE:
		resize(file, r->count);
		break;
	case RENAME:
		other = file_called(r->name);
		if (other)
			add_name(other, "");
		add_name(file, r->name);
		break;
	case UNLINK:
		add_name(file, "");
		break;
	case FSYNC:
		settle(file);
		break;
	case FSYNC_DIRS:
		for (unsigned int i = 0; i < nr_files; i++)
			settle_name(files[i]);
		break;
	case SYNC:
		for (unsigned int i = 0; i < nr_files; i++)
			settle(files[i]);
		break;
	}
}

/* What sector @sector of file number @file holds after write number @stamp. */
static void make_contents(uint64_t *to, unsigned int file, uint32_t sector, uint64_t stamp)
{
	make_sector(to, (uint64_t)file << 32 | sector, stamp);
}

/* ---- work ---- */

struct work {
	const struct options *opt;
	FILE *journal;
	uint64_t stamp, mark, fsyncs, syncs;
	char *buf;
};

static void put_record(struct work *work, const struct record *record)
{
	if (fwrite(record, sizeof(*record), 1, work->journal) != 1)
		die_errno(errno, "%s", work->opt->journal);
	apply(record);
}

/* Everything that @record is about has been made durable. */
static void put_mark(struct work *work, struct record record)
{
	if (work->opt->log) {
		record.mark = ++work->mark;
		dm_message(work->opt->log, "mark m%" PRIu64, record.mark);
	}
	put_record(work, &record);
}

static void fsync_path(const char *name)
{
	int fd = open_path(name, O_RDONLY);

	if (fsync(fd))
		die_errno(errno, "fsync %s", name);
	close(fd);
}

static void fsync_file(struct work *work, unsigned int file)
{
	fsync_path(latest_name(files[file]));
	put_mark(work, (struct record) { .op = FSYNC, .file = file });
	work->fsyncs++;
}

static void fsync_dirs(struct work *work)
{
	char name[NAME_SIZE];

	fsync_path(".");
	for (int i = 0; i < NR_DIRS; i++) {
		snprintf(name, sizeof(name), "d%d", i);
		if (!access(name, F_OK))
			fsync_path(name);
	}
	put_mark(work, (struct record) { .op = FSYNC_DIRS });
	work->syncs++;
}

static void sync_all(struct work *work)
{
	int fd = open_path(".", O_RDONLY);

	if (syncfs(fd))
		die_errno(errno, "syncfs");
	close(fd);
	put_mark(work, (struct record) { .op = SYNC });
	work->syncs++;
}

static void write_file(struct work *work, unsigned int file, uint32_t first, uint32_t count)
{
	const struct record record = { .op = WRITE, .file = file, .first = first, .count = count,
				       .stamp = ++work->stamp };
	/* Direct writes of single sectors become writes of parts of units. */
	int fd = open_path(latest_name(files[file]), O_WRONLY | (rnd(3) ? 0 : O_DIRECT));

	for (uint32_t s = 0; s < count; s++)
		make_contents((uint64_t *)(work->buf + s * SECTOR), file, first + s, record.stamp);
	put_record(work, &record);
	write_exactly(fd, latest_name(files[file]), work->buf, count * SECTOR, (uint64_t)first * SECTOR);
	close(fd);
}

/* A name in one of the directories, which may be new. */
static void choose_name(char *name)
{
	int dir = rnd(NR_DIRS + 2);

	*name = 0;
	if (dir < NR_DIRS) {
		snprintf(name, NAME_SIZE, "d%d", dir);
		if (mkdir(name, 0755) && errno != EEXIST)
			die_errno(errno, "%s", name);
		strcat(name, "/");
	}
	sprintf(name + strlen(name), "f%d", (int)rnd(30));
}

static uint32_t choose_size(uint32_t max)
{
	static const uint32_t sizes[] = { 1, 1, 2, 3, 7, 8, 8, 9, 16, 24, 40, 64, 129, 200, 400 };
	uint32_t size = sizes[rnd(sizeof(sizes) / sizeof(*sizes))];

	return size < max ? size : max;
}

static void create(struct work *work)
{
	struct record record = { .op = CREATE, .file = nr_files };

	do {
		choose_name(record.name);
	} while (file_called(record.name));
	put_record(work, &record);
	close(open_path(record.name, O_WRONLY | O_CREAT | O_EXCL));
	if (rnd(16))
		write_file(work, record.file, 0, choose_size(MAX_SECTORS));
}

static void overwrite(struct work *work, unsigned int file)
{
	const uint32_t size = files[file]->size;
	uint32_t first;

	if (!size)
		return;
	first = rnd(size);
	if (rnd(2))
		first -= first % 8;
	write_file(work, file, first, choose_size(size - first));
}

static void append(struct work *work, unsigned int file)
{
	const uint32_t size = files[file]->size;

	if (size < MAX_SECTORS)
		write_file(work, file, size, choose_size(MAX_SECTORS - size));
}

static void truncate_file(struct work *work, unsigned int file)
{
	const uint32_t size = files[file]->size;
	const uint32_t to = rnd(3) ? rnd(size + 1) : size + choose_size(MAX_SECTORS - size);

	put_record(work, &(struct record) { .op = TRUNCATE, .file = file, .count = to });
	if (truncate(latest_name(files[file]), to * SECTOR))
		die_errno(errno, "truncating %s", latest_name(files[file]));
}

static void rename_file(struct work *work, unsigned int file)
{
	struct record record = { .op = RENAME, .file = file };
	char from[NAME_SIZE];

	strcpy(from, latest_name(files[file]));
	choose_name(record.name);
	if (!strcmp(from, record.name))
		return;
	put_record(work, &record);
	if (rename(from, record.name))
		die_errno(errno, "renaming %s to %s", from, record.name);
}

static void unlink_file(struct work *work, unsigned int file)
{
	char name[NAME_SIZE];

	strcpy(name, latest_name(files[file]));
	put_record(work, &(struct record) { .op = UNLINK, .file = file });
	if (unlink(name))
		die_errno(errno, "deleting %s", name);
}

/* Have it written, without making it durable. */
static void write_back(unsigned int file)
{
	int fd = open_path(latest_name(files[file]), O_RDONLY);

	if (sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER))
		die_errno(errno, "sync_file_range");
	close(fd);
}

static void work_some(struct work *work)
{
	unsigned int live[MAX_FILES], nr = 0, file;

	for (unsigned int i = 0; i < nr_files; i++)
		if (*latest_name(files[i]))
			live[nr++] = i;
	if (nr < MAX_LIVE / 2 || (nr < MAX_LIVE && !rnd(5))) {
		create(work);
		return;
	}
	file = live[rnd(nr)];
	if (files[file]->changes >= MAX_CHANGES)
		fsync_file(work, file);
	switch (rnd(20)) {
	case 0 ... 5:
		overwrite(work, file);
		break;
	case 6 ... 7:
		append(work, file);
		break;
	case 8:
		truncate_file(work, file);
		break;
	case 9 ... 10:
		rename_file(work, file);
		break;
	case 11:
		unlink_file(work, file);
		break;
	case 12:
		write_back(file);
		break;
	case 13 ... 17:
		for (unsigned int i = 0; i < nr && !files[file]->changes; i++)
			file = live[i];
		fsync_file(work, file);
		break;
	case 18:
		fsync_dirs(work);
		break;
	case 19:
		if (rnd(2))
			sync_all(work);
		else if (work->opt->cowloop)
			dm_message(work->opt->cowloop, "sync");
		break;
	}
}

/* Make what is in the journal the model. */
static void load_journal(const char *path)
{
	struct record *records;
	size_t size;

	records = map_file(path, &size);
	for (size_t i = 0; i < size / sizeof(*records); i++)
		apply(&records[i]);
	munmap(records, size);
}

static int work(const char *dir, const struct options *opt, bool fill)
{
	struct work work = { .opt = opt, .stamp = fill ? BASE : 0 };

	random_state = opt->seed;
	if (!fill)
		load_journal(opt->journal);
	work.journal = fopen(opt->journal, fill ? "w" : "a");
	if (!work.journal)
		die_errno(errno, "%s", opt->journal);
	work.buf = allocate(MAX_SECTORS * SECTOR);
	if (chdir(dir))
		die_errno(errno, "%s", dir);

	for (uint64_t op = 0; op < opt->ops; op++)
		work_some(&work);
	sync_all(&work);
	if (fclose(work.journal))
		die_errno(errno, "%s", opt->journal);

	printf("fscrash: %" PRIu64 " operations, %" PRIu64 " writes, %" PRIu64 " fsyncs of files, %" PRIu64
	       " of more\n", opt->ops, (uint64_t)(work.stamp & (BASE - 1)), work.fsyncs, work.syncs);
	return 0;
}

/* ---- check ---- */

struct check {
	const struct options *opt;
	unsigned int worker;
	char name[32], image_name[32], dir[PATH_MAX];	/* devices, and where to mount */
	const char *base, *scratch;
	const struct record *records;
	size_t nr_records, next;	/* the first that is not in the model */

	const struct log_entry **pending;	/* since the last flush */
	size_t nr_pending;
	int base_fd;			/* has all the rest */
	uint64_t base_sectors, rdo_sectors;

	const char *what;		/* the state that is looked at */
	unsigned int complaints;
	uint64_t marks, states, lost, compared, bad;
};

static void __attribute__((format(printf, 2, 3))) complain(struct check *check, const char *fmt, ...)
{
	va_list ap;

	if (check->complaints++ > 8)
		return;
	fprintf(stderr, "fscrash: %s: ", check->what);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}

/* Take what may have been done before the next mark into the model. */
static void take_changes(struct check *check)
{
	while (check->next < check->nr_records && check->records[check->next].op < FSYNC)
		apply(&check->records[check->next++]);
}

static void pass_mark(struct check *check, uint64_t mark)
{
	if (check->next == check->nr_records || check->records[check->next].mark != mark) {
		die(EXIT_SYSTEM, "mark %" PRIu64 " is not in its place in the journal", mark);
	}
	apply(&check->records[check->next++]);
	take_changes(check);
	check->marks++;
}

static bool sector_allowed(const struct file *file, unsigned int nr, uint32_t sector, const char *found)
{
	uint64_t want[WORDS];

	for (unsigned int i = 0; i < file->nr_stamps[sector]; i++) {
		make_contents(want, nr, sector, file->stamps[sector][i]);
		if (!memcmp(found, want, SECTOR))
			return true;
	}
	return false;
}

static bool has_name(const struct file *file, const char *name)
{
	for (unsigned int i = 0; i < file->nr_names; i++)
		if (!strcmp(file->names[i], name))
			return true;
	return false;
}

/* Whether what was found may be file number @nr; if not, says why in @why. */
static bool is_file(unsigned int nr, const char *found, size_t size, char *why, size_t why_size)
{
	const struct file *file = files[nr];
	uint64_t word[3];
	int n;

	if (size % SECTOR || size / SECTOR < file->min_size || size / SECTOR > file->max_size) {
		snprintf(why, why_size, "file %u should have %" PRIu32 " to %" PRIu32 " sectors, and has %zu bytes",
			 nr, file->min_size, file->max_size, size);
		return false;
	}
	for (uint32_t s = 0; s < size / SECTOR; s++) {
		if (sector_allowed(file, nr, s, found + s * SECTOR))
			continue;
		memcpy(word, found + s * SECTOR, sizeof(word));
		n = snprintf(why, why_size, "file %u, sector %" PRIu32 " of %zu: expected stamp", nr, s,
			     size / SECTOR);
		for (unsigned int i = 0; i < file->nr_stamps[s]; i++)
			n += snprintf(why + n, why_size - n, "%s %" PRIx64, i ? " or" : "",
				      file->stamps[s][i]);
		if (word[0] == MAGIC)
			snprintf(why + n, why_size - n, ", found stamp %" PRIx64 " of file %u, sector %u", word[2],
				 (unsigned int)(word[1] >> 32), (unsigned int)word[1]);
		else
			snprintf(why + n, why_size - n, ", found %016" PRIx64 "...", word[0]);
		return false;
	}
	return true;
}

static struct check *visiting;		/* nftw() passes nothing on */

/* A file is there: it must be one that may have this name, with contents that it may have. */
static int visit(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	static char found[MAX_SECTORS * SECTOR];
	struct check *check = visiting;
	char why[512] = "no file may have this name";
	bool good = false;
	int fd;

	(void)ftw;
	if (type == FTW_D)
		return 0;
	path += 2;			/* ./ */
	if (type != FTW_F || (size_t)st->st_size > sizeof(found)) {
		complain(check, "%s: not a file of ours", path);
		return 0;
	}
	fd = open(path, O_RDONLY);
	if (fd < 0 || read(fd, found, st->st_size) != st->st_size) {
		complain(check, "%s: cannot be read: %s", path, strerror(errno));
		if (fd >= 0)
			close(fd);
		return 0;
	}
	close(fd);
	for (unsigned int i = 0; i < nr_files; i++) {
		if (has_name(files[i], path) && is_file(i, found, st->st_size, why, sizeof(why))) {
			files[i]->found = true;
			good = true;
		}
	}
	if (!good)
		complain(check, "%s: %s", path, why);
	check->compared++;
	return 0;
}

static void check_tree(struct check *check)
{
	for (unsigned int i = 0; i < nr_files; i++)
		files[i]->found = false;
	if (chdir(check->dir))
		die_errno(errno, "%s", check->dir);
	visiting = check;
	if (nftw(".", visit, 16, FTW_PHYS))
		complain(check, "the files cannot be listed: %s", strerror(errno));
	for (unsigned int i = 0; i < nr_files; i++)
		if (!files[i]->found && !has_name(files[i], ""))
			complain(check, "file %u is lost, which was %s", i, files[i]->names[0]);
	if (chdir("/"))
		die_errno(errno, "/");
}

static void fsck(struct check *check, const char *device)
{
	FILE *out = tmpfile();
	char line[256];
	int status;
	pid_t pid = fork();

	if (pid < 0 || !out)
		die_errno(errno, "fork");
	if (!pid) {
		if (dup2(fileno(out), 1) < 0 || dup2(fileno(out), 2) < 0)
			die_errno(errno, "dup2");
		if (!strcmp(check->opt->type, "xfs"))
			execlp("xfs_repair", "xfs_repair", "-n", device, NULL);
		else
			execlp("e2fsck", "e2fsck", "-fn", device, NULL);
		die_errno(errno, "fsck");
	}
	if (waitpid(pid, &status, 0) != pid)
		die_errno(errno, "waitpid");
	if (status) {
		complain(check, "fsck finds faults, status %#x:", status);
		rewind(out);
		while (fgets(line, sizeof(line), out)) {
			line[strcspn(line, "\n")] = 0;
			complain(check, "%s", line);
		}
	}
	fclose(out);
}

static void check_cowloop(struct check *check, int image)
{
	char params[256], path[64];
	int minor;

	snprintf(params, sizeof(params), "%s /dev/dm-%d %s", check->opt->rdo, image, check->opt->target_options);
	minor = dm_create(check->name, check->rdo_sectors, "cowloop", params);
	if (minor < 0) {
		complain(check, "the cowfile does not open: %s", strerror(errno));
		return;
	}
	snprintf(path, sizeof(path), "/dev/dm-%d", minor);
	/* other workers have the same filesystem mounted, and xfs minds */
	if (mount(path, check->dir, check->opt->type, 0, strcmp(check->opt->type, "xfs") ? "" : "nouuid")) {
		complain(check, "cannot be mounted: %s", strerror(errno));
	} else {
		check_tree(check);
		if (umount(check->dir))
			die_errno(errno, "unmounting %s", check->dir);
		fsck(check, path);
	}
	dm_simple(DM_DEV_REMOVE, check->name, 0);
}

static void write_entry(int fd, const struct log_entry *entry)
{
	const size_t size = entry->nr_sectors * SECTOR;
	char *zeroes = entry->flags & LOG_DISCARD ? allocate(size) : NULL;

	write_exactly(fd, "replaying the log", zeroes ? zeroes : log_data(entry), size, entry->sector * SECTOR);
	free(zeroes);
}

/*
 * Which of the pending writes are lost: some of them, or, every other time, all but the last,
 * which shows best what must not overtake what was before it. Returns how many.
 */
static unsigned int choose_lost(struct check *check, bool *lose)
{
	const unsigned int odds = 2 + rnd(3);
	const bool all = rnd(2);
	unsigned int lost = 0;

	for (size_t i = 0; i < check->nr_pending; i++) {
		lose[i] = all ? check->nr_pending == 1 || i + 1 < check->nr_pending : !rnd(odds);
		if (check->pending[i]->flags & LOG_FUA)
			lose[i] = false;	/* never */
		lost += lose[i];
	}
	return lost;
}

/* The base and what is pending, but for @lost writes that @lose tells. */
static void check_state(struct check *check, uint64_t entry, const bool *lose, unsigned int lost)
{
	char params[256], path[64], what[96];
	int image, fd;

	check->lost += !!lost;
	if (check->states++ % check->opt->workers != check->worker)
		return;

	/* Both cowloop and the filesystem write when they find a crash: that is thrown away. */
	snprintf(params, sizeof(params), "%s %s N 8", check->base, check->scratch);
	image = dm_create(check->image_name, check->base_sectors, "snapshot", params);
	if (image < 0)
		die_errno(errno, "the snapshot");
	snprintf(path, sizeof(path), "/dev/dm-%d", image);
	fd = open_path(path, O_WRONLY | O_DIRECT);
	for (size_t i = 0; i < check->nr_pending; i++)
		if (!lost || !lose[i])
			write_entry(fd, check->pending[i]);
	close(fd);

	snprintf(what, sizeof(what), "entry %" PRIu64 " of the log, mark %" PRIu64 ", %u of %zu writes lost",
		 entry, check->marks, lost, check->nr_pending);
	check->what = what;
	check->complaints = 0;
	check_cowloop(check, image);
	check->bad += !!check->complaints;
	dm_simple(DM_DEV_REMOVE, check->image_name, 0);
}

static void flush_pending(struct check *check)
{
	for (size_t i = 0; i < check->nr_pending; i++)
		write_entry(check->base_fd, check->pending[i]);
	check->nr_pending = 0;
}

static void replay(struct check *check, const struct log_super *super)
{
	const struct log_entry *entry = log_first(super);
	bool *lose = allocate(super->nr_entries * sizeof(*lose));
	unsigned int lost;

	check->pending = allocate(super->nr_entries * sizeof(*check->pending));
	for (uint64_t i = 0; i < super->nr_entries; i++, entry = log_next(entry)) {
		if (log_mark(entry))
			pass_mark(check, log_mark(entry));
		if (entry->flags & LOG_MARK)
			continue;
		if (entry->flags & LOG_FLUSH) {
			/* before it has completed */
			for (unsigned int sample = 0; sample < check->opt->samples; sample++) {
				lost = choose_lost(check, lose);
				if (lost)
					check_state(check, i, lose, lost);
			}
			flush_pending(check);
		}
		if (entry->nr_sectors)
			check->pending[check->nr_pending++] = entry;
		if (entry->flags & (LOG_FLUSH | LOG_FUA))
			check_state(check, i, NULL, 0);
	}
	free(check->pending);
	free(lose);
}

/* Worker @worker looks at its share of the states, on its own devices. */
static int check_share(unsigned int worker, const char *log, const char *dir, char **devices,
		       const struct options *opt)
{
	struct check check = { .opt = opt, .worker = worker, .base = devices[2 * worker],
			       .scratch = devices[2 * worker + 1] };
	const struct log_super *super;
	size_t size;

	random_state = opt->seed;	/* the same states in all workers */
	snprintf(check.name, sizeof(check.name), "fscrash%u", worker);
	snprintf(check.image_name, sizeof(check.image_name), "fscrash-image%u", worker);
	snprintf(check.dir, sizeof(check.dir), "%s/%u", dir, worker);
	if (mkdir(check.dir, 0755) && errno != EEXIST)
		die_errno(errno, "%s", check.dir);
	super = map_file(log, &size);
	check.records = map_file(opt->journal, &size);
	check.nr_records = size / sizeof(*check.records);
	check.rdo_sectors = device_sectors(opt->rdo);
	check.base_sectors = device_sectors(check.base);
	check.base_fd = open_path(check.base, O_WRONLY | O_DIRECT);
	take_changes(&check);
	while (check.next < check.nr_records && !check.records[check.next].mark)
		pass_mark(&check, 0);	/* those of fill, all done */
	check.marks = 0;

	replay(&check, super);

	if (check.next != check.nr_records) {
		die(EXIT_SYSTEM, "only %" PRIu64 " marks in the log: it is not complete", check.marks);
	}
	if (!worker)
		printf("fscrash: %" PRIu64 " states: %" PRIu64 " at flushes and FUA writes, %" PRIu64
		       " with writes lost; %" PRIu64 " marks, %" PRIu64 " entries in the log\n", check.states,
		       check.states - check.lost, check.lost, check.marks, (uint64_t)super->nr_entries);
	printf("fscrash: worker %u: %" PRIu64 " files compared\n", worker, check.compared);
	if (check.bad)
		fprintf(stderr, "fscrash: worker %u: %" PRIu64 " bad states\n", worker, check.bad);
	return check.bad ? 1 : 0;
}

struct job {
	const char *log, *dir;
	char **devices;
	const struct options *opt;
};

static int check_job(unsigned int worker, void *context)
{
	const struct job *job = context;

	return check_share(worker, job->log, job->dir, job->devices, job->opt);
}

static int check(const char *log, const char *dir, char **devices, unsigned int nr, struct options *opt)
{
	struct job job = { log, dir, devices, opt };

	opt->workers = nr;
	return share_out(nr, check_job, &job);
}

static void usage(void)
{
	fputs("Usage: fscrash fill DIR --journal FILE [--seed N] [--ops N]\n"
	      "       fscrash work DIR --journal FILE --log NAME --cowloop NAME [--seed N] [--ops N]\n"
	      "       fscrash check LOGDEV DIR {BASE SCRATCH}... --journal FILE --rdo RDO --type TYPE\n"
	      "                [--options 'N OPTION...'] [--samples N] [--seed N]\n"
	      "\n"
	      "  --journal FILE   fill makes it, work adds to it, check reads it\n"
	      "  --log NAME       the log-writes device, --cowloop NAME: the cowloop device on it\n"
	      "  BASE SCRATCH     two devices for each worker. BASE is of the size of the cow device and all\n"
	      "                   zeroes: the recording is replayed to it. SCRATCH takes what is written when\n"
	      "                   a state is looked at\n"
	      "  --type TYPE      ext4 or xfs\n"
	      "  --samples N      states with lost writes for each flush (default 1)\n"
	      "\n"
	      "Exit status: 0 all right, 1 a bad state was found, 2 usage, 3 something failed\n", stderr);
	exit(2);
}

int main(int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "log", required_argument, NULL, 'l' },
		{ "journal", required_argument, NULL, 'j' },
		{ "cowloop", required_argument, NULL, 'c' },
		{ "options", required_argument, NULL, 'o' },
		{ "rdo", required_argument, NULL, 'r' },
		{ "type", required_argument, NULL, 't' },
		{ "seed", required_argument, NULL, 's' },
		{ "ops", required_argument, NULL, 'n' },
		{ "samples", required_argument, NULL, 'm' },
		{ }
	};
	struct options opt = { .seed = 1, .ops = 50, .samples = 1, .target_options = "" };
	int c;

	setvbuf(stderr, NULL, _IOLBF, 0);
	while ((c = getopt_long(argc, argv, "", longopts, NULL)) != -1) {
		switch (c) {
		case 'l': opt.log = optarg; break;
		case 'j': opt.journal = optarg; break;
		case 'c': opt.cowloop = optarg; break;
		case 'o': opt.target_options = optarg; break;
		case 'r': opt.rdo = optarg; break;
		case 't': opt.type = optarg; break;
		case 's': opt.seed = number("seed", optarg, 0, UINT64_MAX); break;
		case 'n': opt.ops = number("ops", optarg, 0, UINT64_MAX); break;
		case 'm': opt.samples = number("samples", optarg, 0, UINT_MAX); break;
		default: usage();
		}
	}
	argc -= optind;
	argv += optind;

	if (argc == 2 && !strcmp(argv[0], "fill") && opt.journal && !opt.log && !opt.cowloop)
		return work(argv[1], &opt, true);
	if (argc == 2 && !strcmp(argv[0], "work") && opt.journal && opt.log && opt.cowloop)
		return work(argv[1], &opt, false);
	if (argc >= 5 && argc % 2 && !strcmp(argv[0], "check") && opt.journal && opt.rdo && opt.type)
		return check(argv[1], argv[2], argv + 3, (argc - 3) / 2, &opt);
	usage();
}
