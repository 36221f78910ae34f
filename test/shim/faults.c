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
 * A preloaded library that lets the n-th file operation go wrong.
 *
 *     LD_PRELOAD=faults.so FAULTS_FILE=/path FAULTS_PREFIX=/dir:/other
 *
 * While the file at FAULTS_FILE is there, the operations of one process on
 * paths that begin with one of the prefixes, and on POSIX shared memory, are
 * counted from 1, anew each time the file's text changes.  Its text is
 *
 *     N ACTION WHO CALLS
 *
 * N       the operation that goes wrong; N+: every one from the N-th on;
 *         0: none, they are only logged
 * ACTION  a name of an errno (EIO ENOSPC EINTR EACCES EMFILE EAGAIN ENOMEM
 *         EINVAL EFAULT ENOLCK EROFS), or
 *         short  half of a read or write is done
 *         kill   the process dies before the operation
 *         torn   it dies after half of a write
 *         after  it dies right after the operation
 *         power  as kill, and what was written but not flushed is gone
 *         block  the operation never returns
 *         wait   the operation waits until FAULTS_FILE.go exists
 * WHO     leader: the leader of the session, httpd's parent under test
 *         helper: any other process of it
 *         any: both, each counted by itself
 * CALLS   * or a comma-separated list of calls that count.  These must be
 *         named: fork, syncfs, lock (fcntl's and flock's, also those that only
 *         ask), mmap (what is shared), populate (of madvise), and malloc
 *         (calloc and realloc too) of 64 KiB or more
 *
 * Each operation is appended to FAULTS_FILE.log as "N call path".
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE /* the C library may be older than the kernel */
#define MADV_POPULATE_WRITE 23
#endif

#define PATH_LEN  4096
#define DIRTY_MAX 1024

enum { GO_ON = 0, FAIL, SHORT, TORN, AFTER };

static char plan[256];
static unsigned long counted;
static pid_t counting;

/* What was written and not flushed; lost in a power cut.  Shared with all that
 * the server forks: its helper flushes what the parent wrote. */
static struct dirty {
    dev_t dev;
    ino_t ino;
    char path[PATH_LEN];
} * dirty;
static int *dirty_number;
#define dirty_count (*dirty_number)

/* The system's own calls, past every wrapper. */

static int raw_open(const char *path, int flags)
{
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, 0600);
}

/* i386 and s390x have a SYS_mmap that takes its arguments in memory. */
static void *raw_mmap(void *at, size_t len, int prot, int flags, int fd,
                      off64_t off)
{
#ifdef SYS_mmap2
    return (void *)syscall(SYS_mmap2, at, len, prot, flags, fd,
                           (long)(off / 4096));
#elif defined(__s390x__)
    long words[] = { (long)at, (long)len, prot, flags, fd, off };

    return (void *)syscall(SYS_mmap, words);
#else
    return (void *)syscall(SYS_mmap, at, len, prot, flags, fd, off);
#endif
}

__attribute__((constructor)) static void dirty_begin(void)
{
    dirty = (struct dirty *)raw_mmap(NULL, (DIRTY_MAX + 1) * sizeof(*dirty),
                                     PROT_READ | PROT_WRITE,
                                     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (dirty == MAP_FAILED) {
        abort();
    }
    dirty_number = (int *)&dirty[DIRTY_MAX];
}

static void die(void)
{
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) {
        pause();
    }
}

static int is_watched(const char *path)
{
    const char *prefix = getenv("FAULTS_PREFIX");

    while (prefix && *prefix) {
        size_t len = strcspn(prefix, ":");
        if (strncmp(path, prefix, len) == 0) {
            return 1;
        }
        prefix += len + (prefix[len] == ':');
    }
    return 0;
}

static const char *path_of(int fd, char *path)
{
    char link[64];
    long len;

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    len = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_LEN - 1);
    path[len > 0 ? len : 0] = '\0';
    return path;
}

static int plan_read(const char *file, char *text, size_t size)
{
    int fd = raw_open(file, O_RDONLY | O_CLOEXEC);
    long len;

    if (fd < 0) {
        return 0;
    }
    len = syscall(SYS_read, fd, text, size - 1);
    syscall(SYS_close, fd);
    text[len > 0 ? len : 0] = '\0';
    return len > 0;
}

static void log_call(const char *file, const char *call, const char *path)
{
    char name[PATH_LEN], line[PATH_LEN + 64];
    int fd, len;

    snprintf(name, sizeof name, "%s.log", file);
    fd = raw_open(name, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC);
    if (fd >= 0) {
        len = snprintf(line, sizeof line, "%lu %s %s\n", counted, call, path);
        syscall(SYS_write, fd, line, len);
        syscall(SYS_close, fd);
    }
}

static int is_listed(const char *list, const char *call)
{
    size_t len = strlen(call);

    if (*list == '*') {
        return 1;
    }
    while (*list) {
        size_t here = strcspn(list, ",");
        if (here == len && strncmp(list, call, len) == 0) {
            return 1;
        }
        list += here + (list[here] == ',');
    }
    return 0;
}

static void power_cut(void)
{
    struct stat st;
    int i;

    for (i = 0; i < dirty_count; i++) {
        if (stat(dirty[i].path, &st) == 0 && st.st_dev == dirty[i].dev
            && st.st_ino == dirty[i].ino) {
            syscall(SYS_truncate, dirty[i].path, 0L);
        }
    }
    die();
}

static int dirty_find(const struct stat *st)
{
    int i;

    for (i = 0; i < dirty_count; i++) {
        if (dirty[i].dev == st->st_dev && dirty[i].ino == st->st_ino) {
            break;
        }
    }
    return i;
}

static void dirty_note(int fd, const char *path)
{
    struct stat st;
    int i;

    if (syscall(SYS_fstat, fd, &st) != 0 || !S_ISREG(st.st_mode)
        || strncmp(path, "/dev/shm/", 9) == 0) {
        return;
    }
    i = dirty_find(&st);
    if (i < DIRTY_MAX) {
        dirty[i].dev = st.st_dev;
        dirty[i].ino = st.st_ino;
        snprintf(dirty[i].path, PATH_LEN, "%s", path);
        dirty_count += i == dirty_count;
    }
}

static void dirty_flushed(int fd)
{
    struct stat st;
    int i;

    if (syscall(SYS_fstat, fd, &st) == 0
        && (i = dirty_find(&st)) < dirty_count) {
        dirty[i] = dirty[--dirty_count];
    }
}

static void dirty_renamed(const char *to)
{
    struct stat st;
    int i;

    if (stat(to, &st) == 0 && (i = dirty_find(&st)) < dirty_count) {
        snprintf(dirty[i].path, PATH_LEN, "%s", to);
    }
}

static int wait_for_go(const char *file)
{
    char go[PATH_LEN];
    int fd;

    snprintf(go, sizeof go, "%s.go", file);
    while ((fd = raw_open(go, O_RDONLY | O_CLOEXEC)) < 0) {
        usleep(5000);
    }
    syscall(SYS_close, fd);
    return GO_ON;
}

static int act(const char *file, const char *action)
{
    static const struct {
        const char *name;
        int number;
    } errors[] = {
        { "EIO", EIO },       { "ENOSPC", ENOSPC }, { "EINTR", EINTR },
        { "EACCES", EACCES }, { "EMFILE", EMFILE }, { "EAGAIN", EAGAIN },
        { "ENOMEM", ENOMEM }, { "ENOLCK", ENOLCK }, { "EROFS", EROFS },
        { "EINVAL", EINVAL }, { "EFAULT", EFAULT },
    };
    size_t i;

    for (i = 0; i < sizeof errors / sizeof errors[0]; i++) {
        if (strcmp(action, errors[i].name) == 0) {
            errno = errors[i].number;
            return FAIL;
        }
    }
    if (strcmp(action, "kill") == 0) {
        die();
    }
    if (strcmp(action, "power") == 0) {
        power_cut();
    }
    if (strcmp(action, "block") == 0) {
        for (;;) {
            pause();
        }
    }
    if (strcmp(action, "wait") == 0) {
        return wait_for_go(file);
    }
    return strcmp(action, "short") == 0   ? SHORT
           : strcmp(action, "torn") == 0  ? TORN
           : strcmp(action, "after") == 0 ? AFTER
                                          : GO_ON;
}

/* What is to become of this operation. */
static int judge(const char *call, const char *path)
{
    const char *file = getenv("FAULTS_FILE");
    char text[256], number[32], action[32], who[32], calls[128], *more;
    unsigned long at;
    int saved = errno, result = GO_ON;

    if (!file || !is_watched(path) || !plan_read(file, text, sizeof text)) {
        return GO_ON;
    }
    if (sscanf(text, "%31s %31s %31s %127s", number, action, who, calls) != 4
        || (strcmp(who, "any") != 0
            && (getpid() == getsid(0)) != (strcmp(who, "leader") == 0))
        || !is_listed(calls, call)) {
        errno = saved;
        return GO_ON;
    }
    at = strtoul(number, &more, 10);
    if (strcmp(text, plan) != 0 || counting != getpid()) {
        strcpy(plan, text);
        counting = getpid();
        counted = 0;
    }
    counted++;
    log_call(file, call, path);
    errno = saved;
    if (counted == at || (*more == '+' && counted > at)) {
        result = act(file, action);
    }
    return result;
}

static int judge_fd(const char *call, int fd)
{
    char path[PATH_LEN];

    return judge(call, path_of(fd, path));
}

static int judge_shm(const char *call, const char *name)
{
    char path[PATH_LEN];

    snprintf(path, sizeof path, "/dev/shm%s", name);
    return judge(call, path);
}

static void *real(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);

    if (!found) {
        fprintf(stderr, "the C library has no %s\n", name);
        abort();
    }
    return found;
}

#define REAL(name) ((__typeof__(&name))real(#name))

/* The end of an operation whose result is known. */
#define END(verdict, result)                                                   \
    do {                                                                       \
        if ((verdict) == AFTER) {                                              \
            die();                                                             \
        }                                                                      \
        return (result);                                                       \
    } while (0)

/* Calls that take a path, and do nothing when they fail. */
#define BY_PATH(name, params, args, path)                                      \
    int name params                                                            \
    {                                                                          \
        int result, verdict = judge(#name, path);                              \
        if (verdict == FAIL) {                                                 \
            return -1;                                                         \
        }                                                                      \
        result = REAL(name) args;                                              \
        END(verdict, result);                                                  \
    }

/* httpd itself looks whether its directories are there. */
static const char *below(const char *path)
{
    const char *prefix = getenv("FAULTS_PREFIX");
    size_t len = strlen(path);

    return prefix && strncmp(prefix, path, len) == 0
                   && (prefix[len] == ':' || prefix[len] == '\0')
               ? ""
               : path;
}

BY_PATH(unlink, (const char *path), (path), path)
BY_PATH(link, (const char *from, const char *to), (from, to), to)
#if defined(__GLIBC__) && defined(_STAT_VER)
/* Before 2.33 stat() is linked into each program, and asks this of the
 * library. */
#define STAT(name, asked, kind)                                                \
    int asked(int version, const char *path, struct kind *st)                  \
    {                                                                          \
        int result, verdict = judge(#name, below(path));                       \
        if (verdict == FAIL) {                                                 \
            return -1;                                                         \
        }                                                                      \
        result = REAL(asked)(version, path, st);                               \
        END(verdict, result);                                                  \
    }
#else
#define STAT(name, asked, kind)                                                \
    BY_PATH(name, (const char *restrict path, struct kind *restrict st),       \
            (path, st), below(path))
#endif

STAT(stat, __xstat, stat)
STAT(lstat, __lxstat, stat)
#ifdef __GLIBC__ /* to musl these are other words for the same */
STAT(stat64, __xstat64, stat64)
STAT(lstat64, __lxstat64, stat64)
#endif

/* Whether CALLS names this one, which "*" does not mean. */
static int is_named(const char *call)
{
    char plan_text[256];
    const char *file = getenv("FAULTS_FILE");
    int saved = errno, named;

    named = file && plan_read(file, plan_text, sizeof plan_text)
            && strstr(plan_text, call);
    errno = saved;
    return named;
}

/* What is on no path. */
static int judge_nowhere(const char *call)
{
    char path[PATH_LEN];
    const char *prefix = getenv("FAULTS_PREFIX");
    int saved = errno, verdict = GO_ON;

    if (prefix && is_named(call)) {
        snprintf(path, sizeof path, "%.*s", (int)strcspn(prefix, ":"), prefix);
        verdict = judge(call, path);
    }
    if (verdict != FAIL) {
        errno = saved;
    }
    return verdict;
}

pid_t fork(void)
{
    return judge_nowhere("fork") == FAIL ? -1 : REAL(fork)();
}

/* -- memory */

#define MMAP(name, type)                                                       \
    void *name(void *at, size_t len, int prot, int flags, int fd, type off)    \
    {                                                                          \
        char path[PATH_LEN];                                                   \
        int verdict = GO_ON;                                                   \
        if (flags & MAP_SHARED) {                                              \
            verdict = flags & MAP_ANONYMOUS ? judge_nowhere("mmap")            \
                      : is_named("mmap")    ? judge("mmap", path_of(fd, path)) \
                                            : GO_ON;                              \
        }                                                                      \
        return verdict == FAIL ? MAP_FAILED                                    \
                               : raw_mmap(at, len, prot, flags, fd, off);      \
    }

MMAP(mmap, off_t)
#ifdef __GLIBC__
MMAP(mmap64, off64_t)
#endif

int madvise(void *at, size_t len, int advice)
{
    if (advice == MADV_POPULATE_WRITE && judge_nowhere("populate") == FAIL) {
        return -1;
    }
    return (int)syscall(SYS_madvise, at, len, advice);
}

#ifdef __GLIBC__
/* Its own, since dlsym() allocates. */
extern void *__libc_malloc(size_t len);
extern void *__libc_calloc(size_t count, size_t len);
extern void *__libc_realloc(void *old, size_t len);
#else
#define __libc_malloc  REAL(malloc)
#define __libc_calloc  REAL(calloc)
#define __libc_realloc REAL(realloc)
#endif

#define MUCH 65536

void *malloc(size_t len)
{
    return len >= MUCH && judge_nowhere("malloc") == FAIL ? NULL
                                                          : __libc_malloc(len);
}

void *calloc(size_t count, size_t len)
{
    return count && len >= MUCH / count && judge_nowhere("malloc") == FAIL
               ? NULL
               : __libc_calloc(count, len);
}

void *realloc(void *old, size_t len)
{
    return len >= MUCH && judge_nowhere("malloc") == FAIL
               ? NULL
               : __libc_realloc(old, len);
}

int rename(const char *from, const char *to)
{
    int result, verdict = judge("rename", to);

    if (verdict == FAIL) {
        return -1;
    }
    result = REAL(rename)(from, to);
    if (result == 0) {
        dirty_renamed(to);
    }
    END(verdict, result);
}

#define OPEN(name)                                                             \
    int name(const char *path, int flags, ...)                                 \
    {                                                                          \
        int result, verdict = judge("open", path);                             \
        mode_t mode;                                                           \
        va_list ap;                                                            \
        va_start(ap, flags);                                                   \
        mode = va_arg(ap, mode_t);                                             \
        va_end(ap);                                                            \
        if (verdict == FAIL) {                                                 \
            return -1;                                                         \
        }                                                                      \
        result = REAL(name)(path, flags, mode);                                \
        END(verdict, result);                                                  \
    }

OPEN(open)
#ifdef __GLIBC__
OPEN(open64)

/* What <fcntl.h> makes of a call without a mode whose flags it cannot see. */
int __open_2(const char *path, int flags)
{
    int result, verdict = judge("open", path);

    if (verdict == FAIL) {
        return -1;
    }
    result = REAL(__open_2)(path, flags);
    END(verdict, result);
}
#endif

int shm_open(const char *name, int flags, mode_t mode)
{
    int result, verdict = judge_shm("shm_open", name);

    if (verdict == FAIL) {
        return -1;
    }
    result = REAL(shm_open)(name, flags, mode);
    END(verdict, result);
}

int shm_unlink(const char *name)
{
    int result, verdict = judge_shm("shm_unlink", name);

    if (verdict == FAIL) {
        return -1;
    }
    result = REAL(shm_unlink)(name);
    END(verdict, result);
}

int openat(int dir, const char *path, int flags, ...)
{
    char where[PATH_LEN], whole[2 * PATH_LEN];
    int result, verdict;
    mode_t mode;
    va_list ap;

    va_start(ap, flags);
    mode = va_arg(ap, mode_t);
    va_end(ap);
    snprintf(whole, sizeof whole, "%s/%s", path_of(dir, where), path);
    verdict = judge("openat", whole);
    if (verdict == FAIL) {
        return -1;
    }
    result = REAL(openat)(dir, path, flags, mode);
    END(verdict, result);
}

int unlinkat(int dir, const char *path, int flags)
{
    char where[PATH_LEN], whole[2 * PATH_LEN];
    int result, verdict;

    snprintf(whole, sizeof whole, "%s/%s", path_of(dir, where), path);
    verdict = judge("unlinkat", whole);
    if (verdict == FAIL) {
        return -1;
    }
    result = REAL(unlinkat)(dir, path, flags);
    END(verdict, result);
}

/* Calls that take a descriptor. */

ssize_t read(int fd, void *buffer, size_t len)
{
    ssize_t result;
    int verdict = judge_fd("read", fd);

    if (verdict == FAIL) {
        return -1;
    }
    if (verdict == SHORT && len > 1) {
        len /= 2;
    }
    result = REAL(read)(fd, buffer, len);
    END(verdict, result);
}

#define PREAD(name, type)                                                      \
    ssize_t name(int fd, void *buffer, size_t len, type off)                   \
    {                                                                          \
        int verdict = judge_fd("pread", fd);                                   \
        ssize_t result;                                                        \
        if (verdict == FAIL) {                                                 \
            return -1;                                                         \
        }                                                                      \
        if (verdict == SHORT && len > 1) {                                     \
            len /= 2;                                                          \
        }                                                                      \
        result = REAL(name)(fd, buffer, len, off);                             \
        END(verdict, result);                                                  \
    }

PREAD(pread, off_t)
#ifdef __GLIBC__
PREAD(pread64, off64_t)
#endif

off_t lseek(int fd, off_t off, int whence)
{
    int verdict = judge_fd("lseek", fd);
    off_t result;

    if (verdict == FAIL) {
        return -1;
    }
    result = REAL(lseek)(fd, off, whence);
    END(verdict, result);
}

ssize_t write(int fd, const void *buffer, size_t len)
{
    char path[PATH_LEN];
    ssize_t result;
    int watched = is_watched(path_of(fd, path));
    int verdict = watched ? judge("write", path) : GO_ON;

    if (verdict == FAIL) {
        return -1;
    }
    if (verdict == SHORT || verdict == TORN) {
        len = len > 1 ? len / 2 : len;
    }
    result = REAL(write)(fd, buffer, len);
    if (watched) {
        dirty_note(fd, path);
    }
    if (verdict == TORN) {
        die();
    }
    END(verdict, result);
}

#define PWRITE(name, type)                                                     \
    ssize_t name(int fd, const void *buffer, size_t len, type off)             \
    {                                                                          \
        char path[PATH_LEN];                                                   \
        ssize_t result;                                                        \
        int watched = is_watched(path_of(fd, path));                           \
        int verdict = watched ? judge("pwrite", path) : GO_ON;                 \
        if (verdict == FAIL) {                                                 \
            return -1;                                                         \
        }                                                                      \
        if (verdict == SHORT || verdict == TORN) {                             \
            len = len > 1 ? len / 2 : len;                                     \
        }                                                                      \
        result = REAL(name)(fd, buffer, len, off);                             \
        if (watched) {                                                         \
            dirty_note(fd, path);                                              \
        }                                                                      \
        if (verdict == TORN) {                                                 \
            die();                                                             \
        }                                                                      \
        END(verdict, result);                                                  \
    }

PWRITE(pwrite, off_t)
#ifdef __GLIBC__
PWRITE(pwrite64, off64_t)
#endif

#define FLUSH(name)                                                            \
    int name(int fd)                                                           \
    {                                                                          \
        int result, verdict = judge_fd(#name, fd);                             \
        if (verdict == FAIL) {                                                 \
            return -1;                                                         \
        }                                                                      \
        result = REAL(name)(fd);                                               \
        dirty_flushed(fd);                                                     \
        END(verdict, result);                                                  \
    }

FLUSH(fsync)
FLUSH(fdatasync)

/* All that this process has written is flushed. */
int syncfs(int fd)
{
    int result, verdict = is_named("syncfs") ? judge_fd("syncfs", fd) : GO_ON;

    if (verdict == FAIL) {
        return -1;
    }
    result = REAL(syncfs)(fd);
    dirty_count = 0;
    END(verdict, result);
}

#define LOCK(name)                                                             \
    int name(int fd, int what, ...)                                            \
    {                                                                          \
        int result, verdict = GO_ON;                                           \
        void *with;                                                            \
        va_list ap;                                                            \
        va_start(ap, what);                                                    \
        with = va_arg(ap, void *);                                             \
        va_end(ap);                                                            \
        if ((what == F_GETLK || what == F_SETLK || what == F_SETLKW            \
             || what == F_OFD_GETLK || what == F_OFD_SETLK                     \
             || what == F_OFD_SETLKW)                                          \
            && is_named("lock")) {                                             \
            verdict = judge_fd("lock", fd);                                    \
        }                                                                      \
        if (verdict == FAIL) {                                                 \
            return -1;                                                         \
        }                                                                      \
        result = REAL(name)(fd, what, with);                                   \
        END(verdict, result);                                                  \
    }

LOCK(fcntl)
#ifdef __GLIBC__
LOCK(fcntl64)
#endif

int flock(int fd, int what)
{
    int result, verdict = is_named("lock") ? judge_fd("lock", fd) : GO_ON;

    if (verdict == FAIL) {
        return -1;
    }
    result = REAL(flock)(fd, what);
    END(verdict, result);
}

#define TRUNCATE(name, type)                                                   \
    int name(int fd, type len)                                                 \
    {                                                                          \
        int result, verdict = judge_fd("ftruncate", fd);                       \
        if (verdict == FAIL) {                                                 \
            return -1;                                                         \
        }                                                                      \
        result = REAL(name)(fd, len);                                          \
        END(verdict, result);                                                  \
    }

TRUNCATE(ftruncate, off_t)
#ifdef __GLIBC__
TRUNCATE(ftruncate64, off64_t)
#endif

/* The descriptor is gone even when close() says that something failed, which
 * it never does for memory. */
int close(int fd)
{
    char path[PATH_LEN];
    int memory = strncmp(path_of(fd, path), "/dev/shm/", 9) == 0;
    int verdict = memory ? GO_ON : judge("close", path), saved = errno;
    int result = REAL(close)(fd);

    if (verdict == FAIL) {
        errno = saved;
        return -1;
    }
    END(verdict, result);
}
