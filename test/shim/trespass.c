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
 * A preloaded library that notes what a server must not do, and that plays
 * the one who exchanges a file just when it hurts.
 *
 *     TRESPASS_LOG   where to note, a line each:
 *
 *         open FLAGS PATH      a file or object of the module's that may be
 *                              somebody else's, opened so that it can be
 *                              followed, waited for, or inherited
 *         map LEN SIZE PATH    more of an object mapped than there is of it
 *         kill PID SIGNAL      a signal from the leader of the session
 *                              (httpd's parent) to what is not its child
 *         umask MASK           changed in any other process, in which other
 *                              threads make files meanwhile
 *
 *     TRESPASS_WHEN  look: after the first look at a file by its path (stat,
 *     TRESPASS_PATH        access, ...) that finds it,
 *     TRESPASS_WITH  open: before the first time it is opened,
 *                    what lies at WITH is renamed to PATH, and what was there
 *                    to WITH.aside.  Nothing happens while WITH is not there.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATH_LEN 4096
#define PAGE     4096

static void note(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void note(const char *format, ...)
{
    const char *log = getenv("TRESPASS_LOG");
    int saved = errno, fd, len;
    char line[PATH_LEN + 256];
    va_list ap;

    if (!log) {
        return;
    }
    va_start(ap, format);
    len = vsnprintf(line, sizeof line - 1, format, ap);
    va_end(ap);
    line[len++] = '\n';
    fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND, 0);
    if (fd >= 0) {
        (void)!write(fd, line, (size_t)len);
        close(fd);
    }
    errno = saved;
}

static int is_parent(void)
{
    return getpid() == getsid(0);
}

/* ------------------------------------------------------------------------
 * Exchanged between a look and an open
 */

/* A directory cannot be replaced by what is none, so it goes aside first. */
static void exchange_now(const char *target, const char *with)
{
    char aside[PATH_LEN + 8];
    struct stat64 st;

    snprintf(aside, sizeof aside, "%s.aside", with);
    if (syscall(SYS_newfstatat, AT_FDCWD, with, &st, AT_SYMLINK_NOFOLLOW) == 0
        && syscall(SYS_renameat2, AT_FDCWD, target, AT_FDCWD, aside, 0) == 0) {
        syscall(SYS_renameat2, AT_FDCWD, with, AT_FDCWD, target, 0);
    }
}

static void exchange(const char *when, const char *path)
{
    const char *wanted = getenv("TRESPASS_WHEN");
    const char *target = getenv("TRESPASS_PATH");
    const char *with = getenv("TRESPASS_WITH");
    int saved = errno;

    if (wanted && target && with && path && !strcmp(wanted, when)
        && !strcmp(target, path)) {
        exchange_now(target, with);
    }
    errno = saved;
}

static int looked(int result, const char *path)
{
    if (result == 0) {
        exchange("look", path);
    }
    return result;
}

#define LOOK(name, parameters, arguments)                                      \
    int name parameters                                                        \
    {                                                                          \
        static int(*next) parameters;                                          \
        if (!next) {                                                           \
            *(void **)&next = dlsym(RTLD_NEXT, #name);                         \
        }                                                                      \
        return looked(next arguments, path);                                   \
    }

/* The C library declares some arguments as never NULL. */
#pragma GCC diagnostic ignored "-Wnonnull-compare"

LOOK(stat, (const char *path, struct stat *st), (path, st))
LOOK(lstat, (const char *path, struct stat *st), (path, st))
#ifdef __GLIBC__ /* to musl these are other words for the same */
LOOK(stat64, (const char *path, struct stat64 *st), (path, st))
LOOK(lstat64, (const char *path, struct stat64 *st), (path, st))
LOOK(fstatat64, (int fd, const char *path, struct stat64 *st, int flags),
     (fd, path, st, flags))
#endif
LOOK(access, (const char *path, int mode), (path, mode))
LOOK(fstatat, (int fd, const char *path, struct stat *st, int flags),
     (fd, path, st, flags))
#ifdef STATX_TYPE /* musl has it since 1.2.5 */
LOOK(statx,
     (int fd, const char *path, int flags, unsigned int mask, struct statx *st),
     (fd, path, flags, mask, st))
#endif

/* ------------------------------------------------------------------------
 * Opened
 */

/* Stored files, the marker, shared memory: by their names. */
static int is_the_modules(const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    size_t len = strlen(name);

    return !strncmp(name, "slotmem-shm", 11) || !strncmp(name, "ShM.", 4)
           || (len > 8 && !strcmp(name + len - 8, ".persist"));
}

static void opening(const char *path, int flags)
{
    const int careful = O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;

    exchange("open", path);
    /* What is made in the same breath can be nobody else's. */
    if (is_the_modules(path) && (flags & careful) != careful
        && (flags & (O_CREAT | O_EXCL)) != (O_CREAT | O_EXCL)) {
        note("open%s%s%s %s", flags & O_NOFOLLOW ? "" : " follows",
             flags & O_NONBLOCK ? "" : " waits",
             flags & O_CLOEXEC ? "" : " is-inherited", path);
    }
}

static mode_t mode_of(int flags, va_list ap)
{
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, mode_t) : 0;
}

static int real_openat(int fd, const char *path, int flags, mode_t mode)
{
    opening(path, flags);
    return (int)syscall(SYS_openat, fd, path, flags, mode);
}

#define OPEN(name)                                                             \
    int name(const char *path, int flags, ...)                                 \
    {                                                                          \
        va_list ap;                                                            \
        mode_t mode;                                                           \
        va_start(ap, flags);                                                   \
        mode = mode_of(flags, ap);                                             \
        va_end(ap);                                                            \
        return real_openat(AT_FDCWD, path, flags, mode);                       \
    }
#define OPENAT(name)                                                           \
    int name(int fd, const char *path, int flags, ...)                         \
    {                                                                          \
        va_list ap;                                                            \
        mode_t mode;                                                           \
        va_start(ap, flags);                                                   \
        mode = mode_of(flags, ap);                                             \
        va_end(ap);                                                            \
        return real_openat(fd, path, flags, mode);                             \
    }

OPEN(open)
OPENAT(openat)

#ifdef __GLIBC__
OPEN(open64)
OPENAT(openat64)

/* What the headers make of them when they fortify. */
#define FORTIFIED(name)                                                        \
    int name(const char *path, int flags);                                     \
    int name(const char *path, int flags)                                      \
    {                                                                          \
        return real_openat(AT_FDCWD, path, flags, 0);                          \
    }
#define FORTIFIEDAT(name)                                                      \
    int name(int fd, const char *path, int flags);                             \
    int name(int fd, const char *path, int flags)                              \
    {                                                                          \
        return real_openat(fd, path, flags, 0);                                \
    }

FORTIFIED(__open_2)
FORTIFIED(__open64_2)
FORTIFIEDAT(__openat_2)
FORTIFIEDAT(__openat64_2)
#endif

int shm_open(const char *name, int flags, mode_t mode)
{
    static int (*next)(const char *, int, mode_t);

    if (!next) {
        *(void **)&next = dlsym(RTLD_NEXT, "shm_open");
    }
    /* The C library adds these two. */
    opening(name, flags | O_NOFOLLOW | O_CLOEXEC);
    return next(name, flags, mode);
}

/* ------------------------------------------------------------------------
 * Mapped
 */

static void mapping(size_t len, int flags, int fd, off_t off)
{
    char link[64], path[PATH_LEN];
    struct stat st;
    ssize_t got;

    if (fd < 0 || !(flags & MAP_SHARED)) {
        return;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    got = readlink(link, path, sizeof path - 1);
    path[got > 0 ? got : 0] = '\0';
    if (strncmp(path, "/dev/shm/ShM.", 13) != 0 || fstat(fd, &st) != 0) {
        return;
    }
    if (len > ((size_t)st.st_size + PAGE - 1) / PAGE * PAGE - (size_t)off) {
        note("map %zu %zu %s", len, (size_t)st.st_size, path);
    }
}

#define MMAP(name)                                                             \
    void *name(void *at, size_t len, int prot, int flags, int fd, off_t off)   \
    {                                                                          \
        static void *(*next)(void *, size_t, int, int, int, off_t);            \
        if (!next) {                                                           \
            *(void **)&next = dlsym(RTLD_NEXT, #name);                         \
        }                                                                      \
        mapping(len, flags, fd, off);                                          \
        return next(at, len, prot, flags, fd, off);                            \
    }

MMAP(mmap)
#ifdef __GLIBC__
MMAP(mmap64)
#endif

/* ------------------------------------------------------------------------
 * Signals and the mask
 */

int kill(pid_t pid, int sig)
{
    siginfo_t info;

    if (sig != 0 && pid > 0 && pid != getpid() && is_parent()
        && waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) != 0
        && errno == ECHILD) {
        note("kill %ld %d", (long)pid, sig);
    }
    return (int)syscall(SYS_kill, pid, sig);
}

mode_t umask(mode_t mask)
{
    if (!is_parent()) {
        note("umask %o", (unsigned int)mask);
    }
    return (mode_t)syscall(SYS_umask, mask);
}
