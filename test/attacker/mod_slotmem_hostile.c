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
 * mod_slotmem_hostile: a child of httpd that an attacker holds.
 *
 * In every child, a thread of its own serves CTL/hostile-PID.sock (CTL is the
 * environment variable SLOTMEM_TEST_DIR): one command a line, one line of
 * answer, "ok ..." or "error ...".  It knows nothing of the provider: it has
 * what the child's user has, which is every byte of every mapping.  Numbers
 * are hexadecimal without prefix.
 *
 *     put ADDR HEX               writes bytes
 *     get ADDR LEN               reads bytes
 *     fill KIND ADDR LEN SEED    once over the range, see below
 *     copy TO FROM LEN           from another segment, say
 *     storm KIND ADDR LEN SEED   the same for ever, in a thread, until
 *     calm                       ends all storms; answers words written
 *     punch ADDR LEN             gives pages back (MADV_REMOVE)
 *     hoard PATH                 a file that takes what its file system has
 *     drop                       removes it
 *     stubborn                   SIGTERM is not obeyed from here on
 *     plant PATH ADDR LEN        a file of our own that holds that memory
 *     shorten PATH SIZE          cuts a file of our own
 *     claim PID                  writes PID into this process's place in the
 *                                scoreboard
 *     make DIR                   makes and removes directories in DIR for
 *                                ever, in a thread, until
 *     made                       ends that; answers how many there were, and
 *                                how many had another mode than the first
 *
 * Kinds: zero, ones, random (every word), flip (all bits of each word, so
 * over and over in a storm), more and less (each word by one), one (a random
 * word gets a random value), bits (a random bit of a random word), held
 * (each word looks like a lock held by this live process), dead (by one that
 * is gone).
 */

#include "httpd.h"
#include "http_config.h"
#include "http_log.h"
#include "ap_mpm.h"
#include "scoreboard.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

module AP_MODULE_DECLARE_DATA slotmem_hostile_module;

#define LINE 65536

typedef volatile uint64_t word_t;

typedef struct {
    char kind[16];
    word_t *at;
    size_t words;
    uint64_t seed;
    uint64_t done;
    pthread_t thread;
} storm_t;

#define STORMS 16
static storm_t storms[STORMS];
static int storm_count;
static int storm_end;
static char hoard_path[1024];
static int listener = -1;

static uint64_t noise(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static uint64_t lock_of(uint64_t pid, uint64_t seen)
{
    return pid << 32 | (seen & 0x1fffc) | 1;
}

/* One pass over the words; 0 for a kind that does not exist. */
static int pass(const char *kind, word_t *at, size_t words, uint64_t *seed)
{
    size_t i;
    uint64_t pid = (uint64_t)getpid();

    if (strcmp(kind, "one") == 0) {
        at[noise(seed) % words] = noise(seed);
        return 1;
    }
    if (strcmp(kind, "bits") == 0) {
        uint64_t which = noise(seed);

        at[which % words] ^= UINT64_C(1) << (which >> 58);
        return 1;
    }
    if (strcmp(kind, "add") == 0) {
        for (i = 0; i < 1024 * words; i++) {
            __atomic_fetch_add(&at[i % words], 1, __ATOMIC_SEQ_CST);
        }
        return 1;
    }
    for (i = 0; i < words; i++) {
        uint64_t v = at[i];

        if (strcmp(kind, "zero") == 0) {
            v = 0;
        }
        else if (strcmp(kind, "ones") == 0) {
            v = ~UINT64_C(0);
        }
        else if (strcmp(kind, "random") == 0) {
            v = noise(seed);
        }
        else if (strcmp(kind, "flip") == 0) {
            v = ~v;
        }
        else if (strcmp(kind, "more") == 0) {
            v++;
        }
        else if (strcmp(kind, "less") == 0) {
            v--;
        }
        else if (strcmp(kind, "held") == 0) {
            v = lock_of(pid, v);
        }
        else if (strcmp(kind, "dead") == 0) {
            v = lock_of(0x7ffffff0, v);
        }
        else {
            return 0;
        }
        at[i] = v;
    }
    return 1;
}

static void *storm_run(void *data)
{
    storm_t *s = data;

    while (!__atomic_load_n(&storm_end, __ATOMIC_RELAXED)
           && pass(s->kind, s->at, s->words, &s->seed)) {
        s->done++;
    }
    return NULL;
}

static uint64_t storms_calm(void)
{
    uint64_t done = 0;

    __atomic_store_n(&storm_end, 1, __ATOMIC_RELAXED);
    while (storm_count > 0) {
        storm_count--;
        pthread_join(storms[storm_count].thread, NULL);
        done += storms[storm_count].done;
    }
    __atomic_store_n(&storm_end, 0, __ATOMIC_RELAXED);
    return done;
}

/* Takes all that the file system has left. */
static int64_t hoard(const char *path)
{
    static const char bytes[4096];
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    int64_t took = 0;
    ssize_t n;

    if (fd < 0) {
        return -1;
    }
    snprintf(hoard_path, sizeof hoard_path, "%s", path);
    while ((n = write(fd, bytes, sizeof bytes)) > 0) {
        took += n;
    }
    close(fd);
    return took;
}

static int plant(const char *path, const void *from, size_t len)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    ssize_t n;

    if (fd < 0) {
        return -1;
    }
    n = write(fd, from, len);
    close(fd);
    return n == (ssize_t)len ? 0 : -1;
}

/* As CVE-2007-3304 had it. */
static int claim(pid_t pid)
{
    int most = 0, i;

    ap_mpm_query(AP_MPMQ_HARD_LIMIT_DAEMONS, &most);
    for (i = 0; i < most; i++) {
        process_score *place = ap_get_scoreboard_process(i);

        if (place && place->pid == getpid()) {
            place->pid = pid;
            return 1;
        }
    }
    errno = ESRCH;
    return 0;
}

/* What another thread of this process makes of what is made here. */
static struct {
    char path[1024];
    uint64_t made, odd;
    int end;
    pthread_t thread;
} maker;

static void *maker_run(void *data)
{
    mode_t first = 0;
    struct stat st;

    (void)data;
    while (!__atomic_load_n(&maker.end, __ATOMIC_RELAXED)
           && mkdir(maker.path, 0777) == 0) {
        if (stat(maker.path, &st) != 0 || rmdir(maker.path) != 0) {
            break;
        }
        first = maker.made++ ? first : st.st_mode;
        maker.odd += st.st_mode != first;
    }
    return NULL;
}

static int maker_begin(const char *dir)
{
    snprintf(maker.path, sizeof maker.path, "%s/made-%ld", dir, (long)getpid());
    maker.made = maker.odd = 0;
    maker.end = 0;
    return pthread_create(&maker.thread, NULL, maker_run, NULL) == 0;
}

static void maker_end(char *answer)
{
    __atomic_store_n(&maker.end, 1, __ATOMIC_RELAXED);
    pthread_join(maker.thread, NULL);
    sprintf(answer, "ok %" PRIx64 " %" PRIx64, maker.made, maker.odd);
}

static void answer_hex(char *to, const unsigned char *bytes, size_t len)
{
    size_t i;

    to += sprintf(to, "ok ");
    for (i = 0; i < len; i++) {
        to += sprintf(to, "%02x", bytes[i]);
    }
}

static int take_hex(unsigned char *to, const char *hex)
{
    unsigned int byte;

    for (; sscanf(hex, "%2x", &byte) == 1; hex += 2) {
        *to++ = (unsigned char)byte;
    }
    return 1;
}

static int command_on_memory(char *line, char *answer)
{
    static char text[LINE];
    char kind[16];
    uint64_t a, b, c;

    if (sscanf(line, "put %" SCNx64 " %65000s", &a, text) == 2) {
        take_hex((unsigned char *)(uintptr_t)a, text);
    }
    else if (sscanf(line, "get %" SCNx64 " %" SCNx64, &a, &b) == 2
             && b < LINE / 2 - 8) {
        answer_hex(answer, (unsigned char *)(uintptr_t)a, (size_t)b);
    }
    else if (sscanf(line, "fill %15s %" SCNx64 " %" SCNx64 " %" SCNx64, kind,
                    &a, &b, &c)
             == 4) {
        return pass(kind, (word_t *)(uintptr_t)a, (size_t)b / 8, &c);
    }
    else if (sscanf(line, "copy %" SCNx64 " %" SCNx64 " %" SCNx64, &a, &b, &c)
             == 3) {
        memmove((void *)(uintptr_t)a, (const void *)(uintptr_t)b, (size_t)c);
    }
    else if (sscanf(line, "storm %15s %" SCNx64 " %" SCNx64 " %" SCNx64, kind,
                    &a, &b, &c)
                 == 4
             && storm_count < STORMS) {
        storm_t *s = &storms[storm_count];

        memset(s, 0, sizeof *s);
        strcpy(s->kind, kind);
        s->at = (word_t *)(uintptr_t)a;
        s->words = (size_t)b / 8;
        s->seed = c;
        if (pthread_create(&s->thread, NULL, storm_run, s) != 0) {
            return 0;
        }
        storm_count++;
    }
    else if (sscanf(line, "punch %" SCNx64 " %" SCNx64, &a, &b) == 2) {
        return madvise((void *)(uintptr_t)a, (size_t)b, MADV_REMOVE) == 0;
    }
    else {
        return -1;
    }
    return 1;
}

static int command(char *line, char *answer)
{
    static char path[1024];
    uint64_t a, b;
    int done;

    strcpy(answer, "ok");
    done = command_on_memory(line, answer);
    if (done >= 0) {
        return done;
    }
    if (strcmp(line, "calm") == 0) {
        sprintf(answer, "ok %" PRIx64, storms_calm());
        return 1;
    }
    if (sscanf(line, "hoard %1000s", path) == 1) {
        int64_t took = hoard(path);

        sprintf(answer, "ok %" PRIx64, (uint64_t)took);
        return took >= 0;
    }
    if (strcmp(line, "drop") == 0) {
        return unlink(hoard_path) == 0;
    }
    if (strcmp(line, "stubborn") == 0) {
        return signal(SIGTERM, SIG_IGN) != SIG_ERR;
    }
    if (sscanf(line, "plant %1000s %" SCNx64 " %" SCNx64, path, &a, &b) == 3) {
        return plant(path, (const void *)(uintptr_t)a, (size_t)b) == 0;
    }
    if (sscanf(line, "shorten %1000s %" SCNx64, path, &a) == 2) {
        return truncate(path, (off_t)a) == 0;
    }
    if (sscanf(line, "claim %" SCNx64, &a) == 1) {
        return claim((pid_t)a);
    }
    if (sscanf(line, "make %1000s", path) == 1) {
        return maker_begin(path);
    }
    if (strcmp(line, "made") == 0) {
        maker_end(answer);
        return 1;
    }
    errno = EINVAL;
    return 0;
}

/* The next order, one at a time is sent.  Without stdio: where a thread waits
 * in it, musl's exit() waits for that thread, and so for ever. */
static int read_line(int fd, char *line)
{
    size_t len = 0;
    ssize_t got;

    do {
        got = len < LINE ? read(fd, line + len, LINE - len) : 0;
        len += got > 0 ? (size_t)got : 0;
    } while (got > 0 && line[len - 1] != '\n');
    if (got > 0) {
        line[len - 1] = '\0';
    }
    return got > 0;
}

static void serve(int fd)
{
    static char line[LINE], answer[LINE];

    while (read_line(fd, line)) {
        size_t len;

        errno = 0;
        if (!command(line, answer)) {
            sprintf(answer, "error %s", strerror(errno));
        }
        len = strlen(answer);
        answer[len] = '\n';
        if (write(fd, answer, len + 1) != (ssize_t)len + 1) {
            break;
        }
    }
    close(fd);
}

static void *serve_all(void *data)
{
    int fd;

    (void)data;
    while ((fd = accept(listener, NULL, NULL)) >= 0) {
        serve(fd);
    }
    return NULL;
}

static void hostile_child_init(apr_pool_t *p, server_rec *s)
{
    struct sockaddr_un name;
    const char *dir = getenv("SLOTMEM_TEST_DIR");
    pthread_t thread;
    sigset_t all, old;

    (void)p;
    (void)s;
    if (!dir) {
        return;
    }
    memset(&name, 0, sizeof name);
    name.sun_family = AF_UNIX;
    snprintf(name.sun_path, sizeof name.sun_path, "%s/hostile-%ld.sock", dir,
             (long)getpid());
    unlink(name.sun_path);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0
        || bind(listener, (struct sockaddr *)&name, sizeof name) != 0
        || listen(listener, 4) != 0) {
        return;
    }
    /* Signals are for the MPM's own threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_create(&thread, NULL, serve_all, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static void register_hooks(apr_pool_t *p)
{
    (void)p;
    ap_hook_child_init(hostile_child_init, NULL, NULL, APR_HOOK_LAST);
}

module AP_MODULE_DECLARE_DATA slotmem_hostile_module = {
    STANDARD20_MODULE_STUFF, NULL, NULL, NULL, NULL, NULL, register_hooks, 0
};
