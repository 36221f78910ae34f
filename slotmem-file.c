/* Licensed to the Apache Software Foundation (ASF) under one or more
 * contributor license agreements.  See the NOTICE file distributed with
 * this work for additional information regarding copyright ownership.
 * The ASF licenses this file to You under the Apache License, Version 2.0
 * (the "License"); you may not use this file except in compliance with
 * the License.  You may obtain a copy of the License at
 *
 *     http://www.apache.org/licenses/LICENSE-2.0
 *
 * Unless required by applicable law or agreed to in writing, software
 * distributed under the License is distributed on an "AS IS" BASIS,
 * WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
 * See the License for the specific language governing permissions and
 * limitations under the License.
 */

/*
 * Tells what a stored file of a slotmem segment holds.
 *
 *     slotmem-file [--json] [-x SLOT | -s SLOT] FILE
 *
 * Ends with 0 when the file holds a whole image, 1 when it does not, 2 when
 * it cannot be read or the call is wrong.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

#include "slotmem_image.h"

#define STRING_MIN 4u

enum { WHOLE = 0, DAMAGED = 1, NO_READING = 2 };

static const char usage[] =
    "usage: slotmem-file [--json] [-x SLOT | -s SLOT] FILE\n"
    "  --json   one JSON object\n"
    "  -x SLOT  the bytes of a slot, as hexadecimal\n"
    "  -s SLOT  the strings of a slot, one a line\n"
    "Ends with 0: a whole image, 1: damaged, 2: cannot be read.\n";

/* What is known of a file. */
typedef struct {
    slotmem_image_t image;
    int described; /* the file's end describes a geometry              */
    const char *why;
    unsigned char *used;  /* item_num bytes, from the table             */
    unsigned char *kinds; /* item_num bytes, or NULL: no trailer        */
} report_t;

static void take_used(void *ctx, enum slotmem_image_part part, uint64_t off,
                      const unsigned char *bytes, size_t len)
{
    report_t *report = ctx;

    if (part == SLOTMEM_IMAGE_USED) {
        memcpy(report->used + off, bytes, len);
    }
}

static unsigned int count(const unsigned char *bytes, unsigned int num,
                          unsigned char wanted)
{
    unsigned int i, n = 0;

    for (i = 0; bytes && i < num; i++) {
        n += bytes[i] == wanted;
    }
    return n;
}

/* WHOLE, DAMAGED or NO_READING with errno. */
static int look(const slotmem_image_source_t *source, report_t *report)
{
    slotmem_image_t list[SLOTMEM_IMAGE_MAX];
    unsigned char digest[APR_MD5_DIGESTSIZE];
    enum slotmem_image_result result;
    int n = slotmem_image_find(source, NULL, list), kinds;

    if (n < 0) {
        return NO_READING;
    }
    if (n == 0) {
        report->why = "its end describes no image of its length";
        return DAMAGED;
    }
    report->image = list[0];
    report->described = 1;
    report->used = calloc((size_t)list[0].item_num + 1, 1);
    report->kinds = malloc((size_t)list[0].item_num + 1);
    if (!report->used || !report->kinds) {
        errno = ENOMEM;
        return NO_READING;
    }
    result = slotmem_image_read(source, &list[0], take_used, report, digest);
    if (result == SLOTMEM_IMAGE_UNREADABLE) {
        return NO_READING;
    }
    kinds = result == SLOTMEM_IMAGE_OK
                ? slotmem_image_kinds(source, &list[0], digest, report->kinds)
                : 0;
    if (kinds < 0) {
        return NO_READING;
    }
    if (!kinds) {
        free(report->kinds);
        report->kinds = NULL;
    }
    if (result == SLOTMEM_IMAGE_DAMAGED) {
        report->why = "its MD5 is not that of its content";
        return DAMAGED;
    }
    return WHOLE;
}

static void print_json(const report_t *report, const char *since, int whole)
{
    const slotmem_image_t *image = &report->image;

    printf("{\"valid\": %s, \"why\": ", whole ? "true" : "false");
    if (report->why) {
        printf("\"%s\"", report->why);
    }
    else {
        printf("null");
    }
    printf(", \"since\": \"%s\"", since);
    if (report->described) {
        printf(", \"item_size\": %" PRIu64 ", \"item_num\": %u, \"type\": %u",
               image->item_size, image->item_num, image->type);
    }
    if (whole) {
        printf(", \"used\": %u", count(report->used, image->item_num, 1));
    }
    if (report->kinds) {
        printf(
            ", \"configured\": %u, \"runtime\": %u",
            count(report->kinds, image->item_num, SLOTMEM_SHM_KIND_CONFIGURED),
            count(report->kinds, image->item_num, SLOTMEM_SHM_KIND_RUNTIME));
    }
    printf("}\n");
}

static void print_text(const report_t *report, const char *since, int whole)
{
    const slotmem_image_t *image = &report->image;

    if (whole) {
        printf("valid: yes\n");
    }
    else {
        printf("valid: no, %s\n", report->why);
    }
    printf("since: %s\n", since);
    if (report->described) {
        printf("slots: %u of %" PRIu64 " bytes, type %u\n", image->item_num,
               image->item_size, image->type);
    }
    if (whole) {
        printf("in use: %u\n", count(report->used, image->item_num, 1));
    }
    if (report->kinds) {
        printf(
            "configured: %u\nclaimed at run time: %u\n",
            count(report->kinds, image->item_num, SLOTMEM_SHM_KIND_CONFIGURED),
            count(report->kinds, image->item_num, SLOTMEM_SHM_KIND_RUNTIME));
    }
}

static void print_hex(const unsigned char *bytes, size_t len)
{
    size_t at, i;

    for (at = 0; at < len; at += 16) {
        printf("%08zx ", at);
        for (i = at; i < at + 16; i++) {
            if (i < len) {
                printf(" %02x", bytes[i]);
            }
            else {
                printf("   ");
            }
        }
        printf("  ");
        for (i = at; i < at + 16 && i < len; i++) {
            putchar(bytes[i] >= ' ' && bytes[i] < 127 ? bytes[i] : '.');
        }
        putchar('\n');
    }
}

static void print_strings(const unsigned char *bytes, size_t len)
{
    size_t begin = 0, i;

    for (i = 0; i <= len; i++) {
        if (i < len && bytes[i] >= ' ' && bytes[i] < 127) {
            continue;
        }
        if (i - begin >= STRING_MIN) {
            printf("%.*s\n", (int)(i - begin), (const char *)bytes + begin);
        }
        begin = i + 1;
    }
}

static int cannot(const char *name)
{
    (void)fprintf(stderr, "slotmem-file: %s: %s\n", name, strerror(errno));
    return NO_READING;
}

static int wrong_call(void)
{
    (void)fputs(usage, stderr);
    return NO_READING;
}

/* A slot is shown of a damaged image too: there it is wanted most. */
static int print_slot(const slotmem_image_source_t *source,
                      const report_t *report, const char *name, char how,
                      unsigned long slot)
{
    const size_t size = (size_t)report->image.item_size;
    unsigned char *bytes;

    if (!report->described || slot >= report->image.item_num) {
        (void)fprintf(stderr, "slotmem-file: %s: no slot %lu\n", name, slot);
        return NO_READING;
    }
    bytes = malloc(size + 1);
    if (!bytes
        || slotmem_image_bytes(source,
                               SLOTMEM_SHM_FILE_COUNT_SIZE
                                   + slot * report->image.item_size,
                               bytes, size)
               != 0) {
        free(bytes);
        return cannot(name);
    }
    (how == 'x' ? print_hex : print_strings)(bytes, size);
    free(bytes);
    return 0;
}

int main(int argc, char **argv)
{
    const char *name = NULL;
    slotmem_image_source_t source = { 0 };
    report_t report = { 0 };
    unsigned long slot = 0;
    int json = 0, status, i;
    char how = 0, since[32], *end;
    struct stat info;
    struct tm tm;

    for (i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0) {
            json = 1;
        }
        else if ((strcmp(argv[i], "-x") == 0 || strcmp(argv[i], "-s") == 0)
                 && i + 1 < argc && !how) {
            how = argv[i++][1];
            slot = strtoul(argv[i], &end, 10);
            if (argv[i][0] < '0' || argv[i][0] > '9' || *end) {
                return wrong_call();
            }
        }
        else if (argv[i][0] == '-' || name) {
            return wrong_call();
        }
        else {
            name = argv[i];
        }
    }
    if (!name || (json && how)) {
        return wrong_call();
    }
    /* Not to wait for the writer of a FIFO. */
    source.fd = open(name, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (source.fd < 0 || fstat(source.fd, &info) != 0) {
        return cannot(name);
    }
    if (!S_ISREG(info.st_mode)) {
        (void)fprintf(stderr, "slotmem-file: %s: no regular file\n", name);
        return NO_READING;
    }
    source.size = (uint64_t)info.st_size;
    status = look(&source, &report);
    if (status == NO_READING) {
        (void)cannot(name);
    }
    else if (how) {
        i = print_slot(&source, &report, name, how, slot);
        status = i ? i : status;
    }
    else {
        (void)gmtime_r(&info.st_mtime, &tm);
        (void)strftime(since, sizeof(since), "%Y-%m-%dT%H:%M:%SZ", &tm);
        (json ? print_json : print_text)(&report, since, status == WHOLE);
    }
    free(report.used);
    free(report.kinds);
    close(source.fd);
    if (fflush(stdout) != 0) {
        return cannot("standard output");
    }
    return status;
}
