// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup: what people read, and scripts. Messages, questions, sizes, reports.
 */

#include "cowsetup.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <json-c/json.h>

#include "progress.h"
#include "report.h"

/* ---- Messages ---- */

static void message(const char *prefix, const char *fmt, va_list ap, const char *suffix)
{
	progress_clear();
	fflush(stdout);
	fprintf(stderr, "cowsetup: %s", prefix);
	text_vprint(stderr, fmt, ap);
	if (suffix)
		fprintf(stderr, ": %s.", suffix);
	fputc('\n', stderr);
}

void tell(const char *fmt, ...)
{
	va_list ap;

	progress_clear();
	va_start(ap, fmt);
	text_vprint(stdout, fmt, ap);
	va_end(ap);
	putchar('\n');
}

int error(enum exit_code code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	message("", fmt, ap, NULL);
	va_end(ap);

	return code;
}

void warn(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	message("Warning: ", fmt, ap, NULL);
	va_end(ap);
}

void verbose(const char *fmt, ...)
{
	va_list ap;

	if (!opt.verbose)
		return;
	va_start(ap, fmt);
	message("", fmt, ap, NULL);
	va_end(ap);
}

static enum exit_code code_of_errno(int err)
{
	switch (err) {
	case EPERM:
	case EACCES:
	case EROFS:
		return DENIED;
	case ENOMEM:
		return NO_MEMORY;
	case EEXIST:
	case EBUSY:
	case ETXTBSY:
		return BUSY;
	case EINTR:
		return USAGE;
	default:
		return WRONG;
	}
}

int error_errno(const char *fmt, ...)
{
	const int err = errno;
	const char *text = strerror(err);
	va_list ap;

	if (err == EINTR && interrupted)
		text = "interrupted";
	else if (err == EACCES && geteuid())
		text = "permission denied (are you root?)";
	va_start(ap, fmt);
	message("", fmt, ap, text);
	va_end(ap);

	return code_of_errno(err);
}

void *xmalloc(size_t size)
{
	void *p = malloc(size);

	if (!p)
		exit(error(NO_MEMORY, "Out of memory."));
	return p;
}

char *xasprintf(const char *fmt, ...)
{
	va_list ap;
	char *text;
	int r;

	va_start(ap, fmt);
	r = vasprintf(&text, fmt, ap);
	va_end(ap);
	if (r < 0)
		exit(error(NO_MEMORY, "Out of memory."));
	return text;
}

int confirm(const char *fmt, ...)
{
	char answer[16] = "";
	va_list ap;

	if (opt.batch_mode)
		return OK;

	fprintf(stderr, "\nWARNING!\n========\n");
	va_start(ap, fmt);
	text_vprint(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\n\nAre you sure? (Type 'yes' in capital letters): ");
	fflush(stderr);
	if (!fgets(answer, sizeof(answer), stdin))
		fputc('\n', stderr);
	if (!strcmp(answer, "YES\n") || !strcmp(answer, "YES"))
		return OK;
	return error(USAGE, "Not confirmed; nothing was changed.");
}

/* ---- Reports ---- */

static struct json_object *report;

void report_start(const char *key, const char *title, const char *name)
{
	if (opt.json)
		report = json_object_new_object();
	report_text(key, title, name);
}

void report_json(const char *key, struct json_object *value)
{
	json_object_object_add(report, key, value);
}

static void print_item(const char *title, const char *value)
{
	tell("%-22s %s", title, value);
}

void report_text(const char *key, const char *title, const char *value)
{
	if (opt.json)
		report_json(key, json_text(value));
	else
		print_item(title, *value ? value : "-");
}

void report_number(const char *key, const char *title, u64 value)
{
	char text[32];

	snprintf(text, sizeof(text), "%llu", value);
	if (opt.json)
		report_json(key, json_object_new_uint64(value));
	else
		print_item(title, text);
}

void report_hex(const char *key, const char *title, u64 value, int digits)
{
	char text[32];

	snprintf(text, sizeof(text), "0x%0*llx", digits, value);
	report_text(key, title, text);
}

void report_bool(const char *key, const char *title, bool value)
{
	if (opt.json)
		report_json(key, json_object_new_boolean(value));
	else
		print_item(title, value ? "yes" : "no");
}

void report_size(const char *key, const char *title, u64 bytes)
{
	char text[80];

	if (bytes < 1024)
		snprintf(text, sizeof(text), "%s", size_text(bytes));
	else
		snprintf(text, sizeof(text), "%s (%llu bytes)", size_text(bytes), bytes);
	if (opt.json)
		report_json(key, json_object_new_uint64(bytes));
	else
		print_item(title, text);
}

void report_print(struct json_object *o)
{
	json_print(stdout, o, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED);
	putchar('\n');
}

struct json_object *report_take(void)
{
	struct json_object *o = report;

	report = NULL;
	return o;
}

void report_end(void)
{
	if (report)
		report_print(report_take());
}

/* ---- Texts ---- */

/* The length of the character that @p begins with; 0 if it is none. */
static unsigned int utf8_length(const u8 *p)
{
	const u8 c = *p;
	const unsigned int n = c < 0x80 ? 1 : c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 :
			       c < 0xf5 ? 4 : 0;

	if ((c == 0xe0 && p[1] < 0xa0) || (c == 0xed && p[1] > 0x9f) ||
	    (c == 0xf0 && p[1] < 0x90) || (c == 0xf4 && p[1] > 0x8f))
		return 0;
	for (unsigned int i = 1; i < n; i++)
		if ((p[i] & 0xc0) != 0x80)
			return 0;
	return n;
}

bool text_is_utf8(const char *text)
{
	const u8 *p = (const u8 *)text;
	unsigned int n;

	for (; *p; p += n) {
		n = utf8_length(p);
		if (!n)
			return false;
	}
	return true;
}

void text_make_utf8(char *text)
{
	unsigned int n;

	for (u8 *p = (u8 *)text; *p; p += n) {
		n = utf8_length(p);
		if (!n) {
			*p = '?';
			n = 1;
		}
	}
}

/*
 * A character that does something to a terminal, and is not seen: controls, also
 * those from U+0080 to U+009F, and what changes the direction of the text.
 */
static bool is_control(const u8 *p, unsigned int length)
{
	switch (length) {
	case 1:
		return *p < 0x20 || *p == 0x7f;
	case 2:
		return *p == 0xc2 && p[1] < 0xa0;
	case 3:
		return *p == 0xe2 && ((p[1] == 0x80 && p[2] >= 0xaa && p[2] <= 0xae) ||
				      (p[1] == 0x81 && p[2] >= 0xa6 && p[2] <= 0xa9));
	default:
		return false;
	}
}

void text_print(FILE *to, const char *text)
{
	unsigned int n;

	for (const u8 *p = (const u8 *)text; *p; p += n) {
		n = utf8_length(p);
		if (n && !is_control(p, n)) {
			fwrite(p, 1, n, to);
			continue;
		}
		n = n ? n : 1;
		for (unsigned int i = 0; i < n; i++)
			fprintf(to, "\\x%02x", p[i]);
	}
}

void text_vprint(FILE *to, const char *fmt, va_list ap)
{
	char *text;

	if (vasprintf(&text, fmt, ap) < 0) {
		fputs("Out of memory.\n", stderr);
		exit(NO_MEMORY);
	}
	text_print(to, text);
	free(text);
}

/* Controls are left by json-c as they are. Its own blanks and newlines between values are for the reader. */
void json_print(FILE *to, struct json_object *o, int flags)
{
	const char *text = json_object_to_json_string_ext(o, flags | JSON_C_TO_STRING_NOSLASHESCAPE);
	unsigned int n, code;

	for (const u8 *p = (const u8 *)text; *p; p += n) {
		n = utf8_length(p);
		n = n ? n : 1;
		code = n == 1 ? *p : n == 2 ? (*p & 31) << 6 | (p[1] & 63) :
			       (*p & 15) << 12 | (p[1] & 63) << 6 | (p[2] & 63);
		if (is_control(p, n) && *p != '\n')
			fprintf(to, "\\u%04x", code);
		else
			fwrite(p, 1, n, to);
	}
	json_object_put(o);
}

struct json_object *json_text(const char *text)
{
	char *copy = xasprintf("%s", text);
	struct json_object *o;

	text_make_utf8(copy);
	o = json_object_new_string(copy);
	free(copy);
	return o;
}
