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

/**
 * @file  slotmem_marker.h
 * @brief The marker: the file in the runtime directory that lists the memory
 *        of a run, its text, and how it is opened and locked.
 *
 *     slotmem-shm 2
 *     run IDENTITY PID BIRTH
 *     segment GEN BYRUN TYPE SIZE NUM NAME CLAIMS
 *     segment ...
 *
 * with numbers in hexadecimal but for PID, SIZE (bytes in a slot) and NUM
 * (slots), IDENTITY and NAME in hexadecimal digits, and the slots that the
 * configuration claimed as "0-2,5", or "-".  Any other line is passed over.  A
 * text may have several runs; of several segments of a name (a restart was
 * under way) the last is the one to go on with.
 *
 * The text is whoever's could write the file: whatever it holds, reading it
 * ends, and touches nothing but the text, the line and the set.  Nothing here
 * judges what it says.
 *
 * The lock is fcntl's: the kernel drops it with its holder, and no child
 * inherits it, so no number of a process has to be believed.
 *
 * Knows neither httpd nor APR.  Functions about the file answer 0 or an
 * errno.  One thread at a time: fcntl's locks are the process's.
 */
#ifndef SLOTMEM_MARKER_H
#define SLOTMEM_MARKER_H

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include "mod_slotmem_shm.h"
#include "slotmem_platform.h"
#include "slotmem_search.h"

#define MARKER_NAME     "slotmem-shm.run"
#define MARKER_TITLE    "slotmem-shm 2\n"
#define MARKER_SIZE_MAX ((off_t)64 * 1024 * 1024)

/** One line "segment", and the line "run" that it stands under. */
typedef struct {
    unsigned char run[SLOTMEM_SHM_RUN_LEN];
    unsigned int generation; /* that made it, as its key has it          */
    int by_run;              /* its key bears the run's identity         */
    unsigned int type;       /* AP_SLOTMEM_TYPE_* bits                   */
    size_t item_size;        /* bytes in a slot                          */
    unsigned int item_num;   /* slots                                    */
    const char *name;        /* as given to create                       */
    const char *claims;      /* for marker_claims()                      */
} marker_line_t;

/* ==================== written ==================== */

/** A text that grows.  Begins as zeros; `bytes` is malloc'ed, for the caller
 *  to free.  What there is no memory for is left out. */
typedef struct {
    char *bytes; /* NULL: nothing yet */
    size_t len, room;
} marker_text_t;

static inline void marker_text_add(marker_text_t *t, const char *more)
{
    size_t len = strlen(more);

    if (t->len + len + 1 > t->room) {
        size_t room = 2 * (t->len + len + 1);
        char *bytes = (char *)realloc(t->bytes, room);

        if (!bytes) {
            return;
        }
        t->bytes = bytes;
        t->room = room;
    }
    memcpy(t->bytes + t->len, more, len + 1);
    t->len += len;
}

/** Bytes as hexadecimal digits. */
static inline void marker_text_hex(marker_text_t *t, const void *from,
                                   size_t len)
{
    static const char digits[] = "0123456789abcdef";
    const unsigned char *bytes = (const unsigned char *)from;
    char two[3] = { 0 };
    size_t i;

    for (i = 0; i < len; i++) {
        two[0] = digits[bytes[i] >> 4];
        two[1] = digits[bytes[i] & 15];
        marker_text_add(t, two);
    }
}

/** The line that begins a run: what follows is of it. */
static inline void marker_text_run(marker_text_t *t, const unsigned char *run,
                                   pid_t pid, unsigned int birth)
{
    char rest[64];

    (void)snprintf(rest, sizeof(rest), " %ld %x\n", (long)pid, birth);
    marker_text_add(t, "run ");
    marker_text_hex(t, run, SLOTMEM_SHM_RUN_LEN);
    marker_text_add(t, rest);
}

/** Which slots are set, as "0-2,5"; "-" when there is none, or no set. */
static inline void marker_text_claims(marker_text_t *t, const uint64_t *set,
                                      unsigned int num)
{
    unsigned int id, from, any = 0;
    char range[32];

    for (id = 0; set && id < num; id++) {
        if (!slotmem_set_has(set, id)) {
            continue;
        }
        for (from = id; id + 1 < num && slotmem_set_has(set, id + 1);) {
            id++;
        }
        (void)snprintf(range, sizeof(range), from == id ? "%s%u" : "%s%u-%u",
                       any++ ? "," : "", from, id);
        marker_text_add(t, range);
    }
    marker_text_add(t, any ? "" : "-");
}

/** A line "segment": of `line`, all but the run and the claims, which are the
 *  set. */
static inline void marker_text_segment(marker_text_t *t,
                                       const marker_line_t *line,
                                       const uint64_t *claims)
{
    char fixed[128];

    (void)snprintf(fixed, sizeof(fixed), "segment %x %x %x %zu %u ",
                   line->generation, line->by_run != 0, line->type,
                   line->item_size, line->item_num);
    marker_text_add(t, fixed);
    marker_text_hex(t, line->name, strlen(line->name));
    marker_text_add(t, " ");
    marker_text_claims(t, claims, line->item_num);
    marker_text_add(t, "\n");
}

/* ==================== read ==================== */

/** Hexadecimal digits in lower case as bytes: `text` to `to`, which may be
 *  one.  How many; -1 when it is no such text. */
static inline long marker_hex(const char *text, char *to)
{
    static const char digits[] = "0123456789abcdef";
    size_t i;

    for (i = 0; text[2 * i]; i++) {
        const char *high = strchr(digits, text[2 * i]);
        const char *low =
            text[2 * i + 1] ? strchr(digits, text[2 * i + 1]) : NULL;

        if (!high || !low) {
            return -1;
        }
        to[i] = (char)((high - digits) << 4 | (low - digits));
    }
    return (long)i;
}

/** Adds the slots that such a text names to an empty set of `num` slots.  0
 *  when it names none, or one that there is not: then the set is void. */
static inline int marker_claims(const char *text, unsigned int num,
                                uint64_t *set)
{
    unsigned long first, last;
    int any = 0;
    char *end;

    while (text && *text >= '0' && *text <= '9') {
        first = last = strtoul(text, &end, 10);
        if (*end == '-') {
            last = strtoul(end + 1, &end, 10);
        }
        if (last >= num || first > last) {
            return 0;
        }
        for (any = 1; first <= last; first++) {
            slotmem_set_put(set, (unsigned int)first, 1);
        }
        text = *end == ',' ? end + 1 : NULL;
    }
    return any;
}

/** The next word of a line, ended where it ends; NULL: there is none. */
static inline char *marker_word(char **at)
{
    char *word = *at + strspn(*at, " ");
    char *end = word + strcspn(word, " ");

    *at = *end ? end + 1 : end;
    *end = '\0';
    return *word ? word : NULL;
}

/** A line behind "segment ", which is changed; 0: it is none. */
static inline int marker_segment(char *text, marker_line_t *line)
{
    const char *gen = marker_word(&text);
    const char *by_run = marker_word(&text);
    const char *type = marker_word(&text);
    const char *size = marker_word(&text);
    const char *num = marker_word(&text);
    char *name = marker_word(&text);
    long len;

    line->claims = marker_word(&text);
    len = line->claims ? marker_hex(name, name) : 0;
    if (len <= 0 || memchr(name, '\0', (size_t)len)) {
        return 0;
    }
    name[len] = '\0';
    line->name = name;
    line->generation = (unsigned int)strtoul(gen, NULL, 16);
    line->by_run = *by_run == '1';
    line->type = (unsigned int)strtoul(type, NULL, 16);
    line->item_size = (size_t)strtoull(size, NULL, 10);
    line->item_num = (unsigned int)strtoul(num, NULL, 10);
    return 1;
}

/** Is given each segment, in the order of the file.  What `line` points to
 *  is gone when the text is. */
typedef void marker_take_fn(void *ctx, const marker_line_t *line);

/** Reads a text, which is changed.  A line without its end was being written
 *  when the parent died, before the segment was made: it does not count. */
static inline void marker_parse(char *text, marker_take_fn *take, void *ctx)
{
    char *at = text, *end, *word;
    marker_line_t line;
    int in_run = 0;

    if (strncmp(text, MARKER_TITLE, sizeof(MARKER_TITLE) - 1) != 0) {
        return;
    }
    memset(&line, 0, sizeof(line));
    for (; (end = strchr(at, '\n')) != NULL; at = end + 1) {
        *end = '\0';
        if (!strncmp(at, "run ", 4)) {
            at += 4;
            word = marker_word(&at);
            in_run = word && strlen(word) == 2 * sizeof(line.run)
                     && marker_hex(word, (char *)line.run) > 0;
        }
        else if (!strncmp(at, "segment ", 8) && in_run
                 && marker_segment(at + 8, &line)) {
            take(ctx, &line);
        }
    }
}

/* ==================== the file ==================== */

/** Does the path name the open file? */
static inline int marker_is_named(int fd, const char *path,
                                  struct stat *open_one)
{
    struct stat named;

    return fstat(fd, open_one) == 0 && lstat(path, &named) == 0
           && open_one->st_dev == named.st_dev
           && open_one->st_ino == named.st_ino;
}

/** Could nobody but this user have written it? */
static inline int marker_is_private(const struct stat *st)
{
    return !(st->st_mode & 0077) && st->st_nlink == 1;
}

/** 0, or EBUSY with the pid of whoever holds it. */
static inline int marker_lock(int fd, pid_t *holder)
{
    struct flock lock;

    memset(&lock, 0, sizeof(lock));
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    if (fcntl(fd, F_SETLK, &lock) == 0) {
        return 0;
    }
    if (errno != EAGAIN && errno != EACCES) {
        return errno;
    }
    *holder = fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK
                  ? lock.l_pid
                  : 0;
    return EBUSY;
}

/** The marker, opened so that a link planted in its place is not followed and
 *  a pipe not waited for. */
static inline int marker_open(const char *path, int *fd)
{
    const int flags = O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    struct stat st;

    *fd = open(path, flags, 0600);
    if (*fd < 0 && platform_is_symlink_error(errno)) {
        unlink(path);
        *fd = open(path, flags | O_EXCL, 0600);
    }
    if (*fd < 0) {
        return errno;
    }
    if (fstat(*fd, &st) != 0 || !S_ISREG(st.st_mode)
        || st.st_uid != geteuid()) {
        close(*fd);
        return EACCES;
    }
    return 0;
}

/** The text of an open marker, malloc'ed; NULL when there is none. */
static inline char *marker_read(int fd)
{
    struct stat st;
    ssize_t got;
    char *text;

    if (fstat(fd, &st) != 0 || st.st_size >= MARKER_SIZE_MAX
        || (text = malloc((size_t)st.st_size + 1)) == NULL) {
        return NULL;
    }
    got = pread(fd, text, (size_t)st.st_size, 0);
    text[got > 0 ? got : 0] = '\0';
    return text;
}

#endif /* SLOTMEM_MARKER_H */
