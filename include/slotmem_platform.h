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
 * @file  slotmem_platform.h
 * @brief What differs from one system to the next: when a process began, how
 *        a file is flushed, and above all where APR puts shared memory, and
 *        how to make, find, judge and remove it there.
 *
 * Of APR only the macros of apr.h are used.  Functions answer 0 or an errno,
 * which on these systems is an apr_status_t.
 *
 * A key is what apr_shm_create() is given: an absolute path.  What it makes
 * of that is one of three things; configure chooses, and a package's APR
 * may have been exchanged since this was compiled, so what is *found* is
 * judged by what lies there and not by apr.h:
 *
 *     POSIX      an object "/ShM.%xH%x" with two hashes of the path.  APR
 *     (mmap)     1.7.1 and later on Linux; its own 8 bytes come first
 *     System V   a key file at the path that holds a size_t, and a segment
 *                under ftok() of it.  APR before 1.7.1 on Linux (Debian 11,
 *                Ubuntu 20.04 and 22.04, RHEL 7 to 9)
 *     file       the path itself, mapped; its own 8 bytes come first.  Where
 *                there is neither
 *
 * Tested: every Linux branch by test/unit/platform_tests.c and in a server by
 * `make platforms` (POSIX on Debian 12, System V on Debian 11) and `make
 * portability` (file).  The branches for other systems were written by their
 * manuals, and have been compiled nowhere.
 */
#ifndef SLOTMEM_PLATFORM_H
#define SLOTMEM_PLATFORM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1 /* syncfs, F_SETLEASE */
#endif

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/stat.h>
#ifdef __linux__
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#endif
#include <sys/time.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#if defined(__FreeBSD__) || defined(__DragonFly__) || defined(__NetBSD__)      \
    || defined(__OpenBSD__) || defined(__APPLE__)
#define PLATFORM_BSD 1
#include <sys/sysctl.h>
#if defined(__FreeBSD__) || defined(__DragonFly__)
#include <sys/user.h>
#endif
#elif defined(__sun)
#include <procfs.h>
#endif

#include "apr.h"

#include "mod_slotmem_shm.h"

/* Linux 5.14's.  The headers of glibc before 2.35 and of musl 1.2.3 do
 * not have it, and what is built there runs on newer kernels as well; an older
 * one answers EINVAL. */
#if defined(__linux__) && !defined(MADV_POPULATE_WRITE)                        \
    && !defined(PLATFORM_NO_POPULATE)
#define MADV_POPULATE_WRITE 23
#endif

/* ==================== processes ==================== */

enum platform_process {
    PLATFORM_PROCESS_UNKNOWN, /* the system does not tell             */
    PLATFORM_PROCESS_DEAD,    /* no such process, or a zombie         */
    PLATFORM_PROCESS_BEGAN    /* alive; *birth says since when        */
};

/*
 * When process `pid` began, in a unit that only has to differ between two
 * processes which had the same number: a lock's dead owner must not be taken
 * for the process that got its number, nor a living one for dead.
 */
static inline enum platform_process platform_process_birth(pid_t pid,
                                                           uint64_t *birth)
{
#ifdef __linux__
    /*
     * Not /proc/PID/stat: under qemu-user (containers for a foreign processor)
     * a process that opens its own gets a made-up one, in which it began at
     * another time than everybody else sees, so its live lock looked like a
     * dead process's.  The file of its first thread says the same and is the
     * kernel's.
     */
    char path[64], text[512], *at;
    ssize_t len;
    int fd, field;

    (void)snprintf(path, sizeof(path), "/proc/%ld/task/%ld/stat", (long)pid,
                   (long)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        /* Without /proc nobody is found there, ourselves neither. */
        return kill(pid, 0) != 0 && errno == ESRCH ? PLATFORM_PROCESS_DEAD
                                                   : PLATFORM_PROCESS_UNKNOWN;
    }
    len = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (len <= 0) {
        return len < 0 && errno == ESRCH ? PLATFORM_PROCESS_DEAD
                                         : PLATFORM_PROCESS_UNKNOWN;
    }
    text[len] = '\0';

    /* "pid (name) state ...": the name may hold anything, so the fields are
     * counted from its closing parenthesis; proc(5): 3 is the state, 22 the
     * time of the start. */
    at = strrchr(text, ')');
    if (!at || at[1] != ' ') {
        return PLATFORM_PROCESS_UNKNOWN;
    }
    if (at[2] == 'Z' || at[2] == 'X') {
        return PLATFORM_PROCESS_DEAD;
    }
    for (field = 2; field < 22 && at; field++) {
        at = strchr(at + 1, ' ');
    }
    if (!at) {
        return PLATFORM_PROCESS_UNKNOWN;
    }
    *birth = strtoull(at, NULL, 10);
    return PLATFORM_PROCESS_BEGAN;

#elif defined(__FreeBSD__) || defined(__DragonFly__)
    /* sysctl(3), <sys/user.h>.  By reading only. */
    int mib[4] = { CTL_KERN, KERN_PROC, KERN_PROC_PID, (int)pid };
    struct kinfo_proc info;
    size_t len = sizeof(info);

    if (sysctl(mib, 4, &info, &len, NULL, 0) != 0) {
        return errno == ESRCH ? PLATFORM_PROCESS_DEAD
                              : PLATFORM_PROCESS_UNKNOWN;
    }
    if (len < sizeof(info)) {
        return PLATFORM_PROCESS_DEAD;
    }
#ifdef __DragonFly__
    if (info.kp_stat == SZOMB) {
        return PLATFORM_PROCESS_DEAD;
    }
    *birth = (uint64_t)info.kp_start.tv_sec * 1000000u
             + (uint64_t)info.kp_start.tv_usec;
#else
    if (info.ki_stat == SZOMB) {
        return PLATFORM_PROCESS_DEAD;
    }
    *birth = (uint64_t)info.ki_start.tv_sec * 1000000u
             + (uint64_t)info.ki_start.tv_usec;
#endif
    return PLATFORM_PROCESS_BEGAN;

#elif defined(__APPLE__)
    /* A process that is gone is no error but nothing (len 0).  By reading
     * only. */
    int mib[4] = { CTL_KERN, KERN_PROC, KERN_PROC_PID, (int)pid };
    struct kinfo_proc info;
    size_t len = sizeof(info);

    if (sysctl(mib, 4, &info, &len, NULL, 0) != 0) {
        return PLATFORM_PROCESS_UNKNOWN;
    }
    if (len < sizeof(info) || info.kp_proc.p_stat == SZOMB) {
        return PLATFORM_PROCESS_DEAD;
    }
    *birth = (uint64_t)info.kp_proc.p_starttime.tv_sec * 1000000u
             + (uint64_t)info.kp_proc.p_starttime.tv_usec;
    return PLATFORM_PROCESS_BEGAN;

#elif defined(__NetBSD__) || defined(__OpenBSD__)
    /* Both want the size of an element and how many; NetBSD keeps KERN_PROC
     * for its old struct.  By reading only. */
#ifdef __NetBSD__
    int mib[6] = { CTL_KERN,
                   KERN_PROC2,
                   KERN_PROC_PID,
                   (int)pid,
                   (int)sizeof(struct kinfo_proc2),
                   1 };
    struct kinfo_proc2 info;
#define PLATFORM_STAT        p_realstat
#define PLATFORM_ENDED(stat) ((stat) == SZOMB)
#else
    int mib[6] = { CTL_KERN,
                   KERN_PROC,
                   KERN_PROC_PID,
                   (int)pid,
                   (int)sizeof(struct kinfo_proc),
                   1 };
    struct kinfo_proc info;
#define PLATFORM_STAT        p_stat
#define PLATFORM_ENDED(stat) ((stat) == SZOMB || (stat) == SDEAD)
#endif
    size_t len = sizeof(info);

    if (sysctl(mib, 6, &info, &len, NULL, 0) != 0) {
        return errno == ESRCH ? PLATFORM_PROCESS_DEAD
                              : PLATFORM_PROCESS_UNKNOWN;
    }
    if (len < sizeof(info) || PLATFORM_ENDED(info.PLATFORM_STAT)) {
        return PLATFORM_PROCESS_DEAD;
    }
    *birth =
        (uint64_t)info.p_ustart_sec * 1000000u + (uint64_t)info.p_ustart_usec;
    return PLATFORM_PROCESS_BEGAN;

#elif defined(__sun)
    /* proc(5); a zombie has no threads left.  By reading only. */
    char path[64];
    psinfo_t info;
    ssize_t len;
    int fd;

    (void)snprintf(path, sizeof(path), "/proc/%ld/psinfo", (long)pid);
    fd = open(path, O_RDONLY);
    if (fd < 0) {
        return errno == ENOENT && kill(pid, 0) != 0 && errno == ESRCH
                   ? PLATFORM_PROCESS_DEAD
                   : PLATFORM_PROCESS_UNKNOWN;
    }
    len = read(fd, &info, sizeof(info));
    close(fd);
    if (len != (ssize_t)sizeof(info)) {
        return PLATFORM_PROCESS_UNKNOWN;
    }
    if (info.pr_nlwp == 0) {
        return PLATFORM_PROCESS_DEAD;
    }
    *birth = (uint64_t)info.pr_start.tv_sec * 1000000u
             + (uint64_t)info.pr_start.tv_nsec / 1000u;
    return PLATFORM_PROCESS_BEGAN;

#else
    /* AIX and others: the number alone has to do. */
    (void)birth;
    return kill(pid, 0) != 0 && errno == ESRCH ? PLATFORM_PROCESS_DEAD
                                               : PLATFORM_PROCESS_UNKNOWN;
#endif
}

/* fork(), but a signal waits until the child heeds it, or has it ignored, and
 * sets its mask. */
static inline pid_t platform_fork_deaf(void)
{
    sigset_t all, before;
    pid_t pid;

    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    pid = fork();
    if (pid != 0) {
        sigprocmask(SIG_SETMASK, &before, NULL);
    }
    return pid;
}

/*
 * This process, forked by `parent`, shall not outlive it: not even for as long
 * as a disk holds it in the kernel, where it sees no pipe end.  Elsewhere than
 * on Linux the caller has to look by itself.
 */
static inline void platform_die_with(pid_t parent)
{
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
#endif
    if (getppid() != parent) { /* it has ended before that took effect */
        _exit(0);
    }
}

/* ==================== files ==================== */

/*
 * Has the disk keep it.  On macOS fsync() leaves it in the drive's cache, and
 * F_FULLFSYNC is what reaches the medium, where the file system has it.
 */
static inline int platform_flush(int fd)
{
#ifdef F_FULLFSYNC
    if (fcntl(fd, F_FULLFSYNC) == 0) {
        return 0;
    }
#endif
    return fsync(fd) == 0 ? 0 : errno;
}

/* Has the disk keep everything of the file system of an open directory.  Since
 * Linux 5.8 it tells of each error since that was opened; elsewhere nothing
 * tells when it is done, so there each file is flushed by itself. */
#ifdef __linux__
/* Where a container forbids the call, which is told before the descriptor is
 * looked at, each file as well. */
#define PLATFORM_FLUSHES_SYSTEMS                                               \
    (syscall(SYS_syncfs, -1) != 0 && errno == EBADF)
static inline int platform_flush_system(int fd)
{
    return syncfs(fd) == 0 ? 0 : errno;
}
#else
#define PLATFORM_FLUSHES_SYSTEMS 0
static inline int platform_flush_system(int fd)
{
    (void)fd;
    return ENOSYS;
}
#endif

/* Does that errno of open(O_NOFOLLOW) say that the last part of the path is a
 * symbolic link?  POSIX has ELOOP; FreeBSD answers EMLINK, NetBSD EFTYPE. */
static inline int platform_is_symlink_error(int error)
{
#ifdef EFTYPE
    if (error == EFTYPE) {
        return 1;
    }
#endif
    return error == ELOOP || error == EMLINK;
}

/*
 * A file that others may have put there: no link is followed, no FIFO waited
 * for, no device touched.  0 and a descriptor of a regular file of `uid` that
 * has no second name; else an errno, EACCES for what is no such file.
 */
static inline int platform_file_open(const char *path, int flags, uid_t uid,
                                     int *fd, struct stat *st)
{
    *fd = open(path, flags | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (*fd < 0) {
        return platform_is_symlink_error(errno) ? EACCES : errno;
    }
    if (fstat(*fd, st) != 0 || !S_ISREG(st->st_mode) || st->st_uid != uid
        || st->st_nlink > 1) {
        close(*fd);
        *fd = -1;
        return EACCES;
    }
    return 0;
}

/* ==================== shared memory ==================== */

enum platform_shm { PLATFORM_SHM_POSIX, PLATFORM_SHM_SYSV, PLATFORM_SHM_FILE };

/* What the APR that this was compiled with makes, for advice in the log. */
static inline enum platform_shm platform_shm_kind(void)
{
#if APR_USE_SHMEM_SHMGET
    return PLATFORM_SHM_SYSV;
#elif APR_USE_SHMEM_MMAP_SHM
    return PLATFORM_SHM_POSIX;
#else
    return PLATFORM_SHM_FILE;
#endif
}

/* For the log: where an administrator finds the segments of this system. */
static inline const char *platform_shm_where(void)
{
    switch (platform_shm_kind()) {
    case PLATFORM_SHM_SYSV:
        return "in the list of ipcs -m (ipcrm -m removes), and its key file "
               "beside it";
    case PLATFORM_SHM_FILE:
        return "in the runtime directory";
    case PLATFORM_SHM_POSIX:
    default:
#ifdef __linux__
        return "in /dev/shm";
#else
        return "where this system keeps POSIX shared memory";
#endif
    }
}

/* For the log: what may be wrong when apr_shm_create() answered `error`. */
static inline const char *platform_shm_advice(int error)
{
    switch (platform_shm_kind()) {
    case PLATFORM_SHM_SYSV:
        if (error == ENOSPC) {
            return "Has the directory of the key file room, or does ipcs -m "
                   "show as many segments, or as much memory, as the system "
                   "allows (on Linux, sysctl kernel.shmmni and "
                   "kernel.shmall)?";
        }
        if (error == EINVAL) {
            return "Does the system allow a segment of this size (on Linux, "
                   "sysctl kernel.shmmax)?";
        }
        if (error == EACCES) {
            return "May this process write in the directory of the key file?";
        }
        return "Has the machine so much memory, and the directory of the key "
               "file room?";
    case PLATFORM_SHM_FILE:
        return "Is the directory writable, and has its file system room?";
    case PLATFORM_SHM_POSIX:
    default:
#ifdef __linux__
        return "Is /dev/shm mounted, writable and large enough?";
#else
        return "Does the system allow that much POSIX shared memory?";
#endif
    }
}

/* Room for the name of a POSIX object, and of the directory on Linux. */
#define PLATFORM_NAME_SIZE 64u

/* APR's first hash of a path; the second byte of its System V key, too. */
static inline unsigned int platform_hash(const char *path)
{
    unsigned int hash = 0;

    for (; *path; path++) {
        hash = hash * 33 + (unsigned char)*path;
    }
    return hash;
}

/* The POSIX object's name, as APR makes it.  Its second hash adds plain
 * chars, which have a sign on x86 and none on ARM: so does this one. */
static inline void platform_posix_name(const char *key,
                                       char name[PLATFORM_NAME_SIZE])
{
    unsigned int factor = 63689, hash = 0;
    const char *at;

    for (at = key; *at; at++) {
        hash = hash * factor + (unsigned int)*at;
        factor *= 378551;
    }
    (void)snprintf(name, PLATFORM_NAME_SIZE, "/ShM.%xH%x", platform_hash(key),
                   hash);
}

#define PLATFORM_DIR "/dev/shm" /* Linux: every C library's, by convention */

/*
 * Opens a POSIX object of APR's.  On Linux as a file in /dev/shm, which is
 * what shm_open() does there: to call that itself would take -lrt before
 * glibc 2.34, and an httpd whose APR uses System V has not loaded it.
 * Elsewhere they need be no files, and shm_open() takes no further flags.
 */
static inline int platform_posix_open(const char *key, uid_t uid, int *fd,
                                      struct stat *st)
{
    char name[sizeof(PLATFORM_DIR) + PLATFORM_NAME_SIZE];

    *fd = -1;
#ifdef __linux__
    strcpy(name, PLATFORM_DIR);
    platform_posix_name(key, name + sizeof(PLATFORM_DIR) - 1);
    return platform_file_open(name, O_RDWR, uid, fd, st);
#elif APR_USE_SHMEM_MMAP_SHM
    /* By reading only. */
    platform_posix_name(key, name);
    *fd = shm_open(name, O_RDWR, 0);
    if (*fd < 0) {
        return errno;
    }
    if (fstat(*fd, st) != 0 || st->st_uid != uid) {
        close(*fd);
        *fd = -1;
        return EACCES;
    }
    return 0;
#else
    (void)name;
    (void)key;
    (void)uid;
    (void)st;
    return ENOENT;
#endif
}

static inline void platform_posix_unlink(const char *key)
{
    char name[sizeof(PLATFORM_DIR) + PLATFORM_NAME_SIZE];

#ifdef __linux__
    strcpy(name, PLATFORM_DIR);
    platform_posix_name(key, name + sizeof(PLATFORM_DIR) - 1);
    unlink(name);
#elif APR_USE_SHMEM_MMAP_SHM
    platform_posix_name(key, name);
    shm_unlink(name);
#else
    (void)name;
    (void)key;
#endif
}

/*
 * The System V segment under a key file; -1 when there is none.  Since APR
 * 1.5 the second byte of ftok() is a hash of the path, before that a 1.
 * No permission is asked for here: shmctl() will say whose it is.
 */
static inline int platform_sysv_id(const char *key)
{
    const int project[2] = { (int)platform_hash(key), 1 };
    unsigned int i;

    for (i = 0; i < 2; i++) {
        key_t number = ftok(key, project[i]);
        int id = number == (key_t)-1 ? -1 : shmget(number, 0, 0);

        if (id >= 0) {
            return id;
        }
    }
    return -1;
}

/* A shared memory object that is open, and not yet mapped. */
typedef struct {
    enum platform_shm kind;
    int fd;                 /* POSIX, file                                    */
    int shmid;              /* System V                                       */
    uint64_t size;          /* bytes, as the kernel says                      */
    size_t header;          /* where struct slotmem_shm_header begins         */
    pid_t creator;          /* System V: who made it                          */
    unsigned long attached; /* System V: mappings there are          */
} platform_object_t;

/* APR's size_t comes first, and the header at the next multiple; a System V
 * segment has no such word. */
static inline void platform_object_init(platform_object_t *o,
                                        enum platform_shm kind)
{
    memset(o, 0, sizeof(*o));
    o->kind = kind;
    o->fd = o->shmid = -1;
    o->header = kind == PLATFORM_SHM_SYSV ? 0 : SLOTMEM_SHM_ALIGN;
}

/* Is that System V segment `uid`'s?  Both the owner, who may be given, and
 * the creator, who stays. */
static inline int platform_sysv_stat(platform_object_t *o, int id, uid_t uid)
{
    struct shmid_ds ds = { 0 };

    if (shmctl(id, IPC_STAT, &ds) != 0) {
        return errno;
    }
    if (ds.shm_perm.uid != uid || ds.shm_perm.cuid != uid) {
        return EACCES;
    }
    platform_object_init(o, PLATFORM_SHM_SYSV);
    o->shmid = id;
    o->size = (uint64_t)ds.shm_segsz;
    o->creator = (pid_t)ds.shm_cpid;
    o->attached = (unsigned long)ds.shm_nattch;
    return 0;
}

static inline void platform_object_close(platform_object_t *o)
{
    if (o->fd >= 0) {
        close(o->fd);
        o->fd = -1;
    }
    o->shmid = -1;
}

/*
 * Opens what lies under `key`, if it is `uid`'s, and touches no page of it.
 * ENOENT: there is nothing; EACCES: something that is not `uid`'s, or no
 * shared memory; EIDRM: a key file whose segment is gone, as after a boot.
 *
 * POSIX comes first: where APR makes those, a file may lie at the path that
 * has nothing to do with us, since an absolute name is any path.
 */
static inline int platform_object_open(platform_object_t *o, const char *key,
                                       uid_t uid)
{
    struct stat st = { 0 };
    int posix, rv, fd, id;

    platform_object_init(o, PLATFORM_SHM_POSIX);
    posix = platform_posix_open(key, uid, &o->fd, &st);
    if (posix == 0) {
        o->size = (uint64_t)st.st_size;
        return 0;
    }
    rv = platform_file_open(key, O_RDWR, uid, &fd, &st);
    if (rv != 0) {
        return rv == ENOENT ? posix : rv;
    }
    if (st.st_size > (off_t)sizeof(size_t)) {
        platform_object_init(o, PLATFORM_SHM_FILE);
        o->fd = fd;
        o->size = (uint64_t)st.st_size;
        return 0;
    }
    close(fd);
    id = platform_sysv_id(key);
    return id < 0 ? EIDRM : platform_sysv_stat(o, id, uid);
}

/*
 * Reads bytes of the object without mapping it, or as if: whatever happens to
 * its pages meanwhile (a hostile child can give them back, or shorten the
 * object), the answer is an error and no signal.  `to` and a pipe hold them;
 * len is at most PIPE_BUF, so the pipe takes all of them.
 */
static inline int platform_copy(const void *from, void *to, size_t len)
{
    ssize_t got = -1;
    int ends[2], error = EFAULT;

    if (pipe(ends) != 0) {
        return errno;
    }
    /* The kernel reads the page, and answers EFAULT where we would get a
     * SIGBUS. */
    if (write(ends[1], from, len) == (ssize_t)len) {
        got = read(ends[0], to, len);
        error = 0;
    }
    close(ends[0]);
    close(ends[1]);
    return got == (ssize_t)len ? 0 : error ? error : EIO;
}

static inline int platform_object_read(const platform_object_t *o, uint64_t at,
                                       void *to, size_t len)
{
    char *base;
    int rv;

    if (len > _POSIX_PIPE_BUF || at > o->size || len > o->size - at) {
        return EINVAL;
    }
    if (o->kind == PLATFORM_SHM_SYSV) {
        base = shmat(o->shmid, NULL, SHM_RDONLY);
        if (base == (char *)-1) {
            return errno;
        }
        rv = platform_copy(base + at, to, len);
        shmdt(base);
        return rv;
    }
#ifdef __linux__
    return pread(o->fd, to, len, (off_t)at) == (ssize_t)len ? 0 : EIO;
#else
    /* A POSIX object cannot be read() everywhere (macOS). */
    base = mmap(NULL, (size_t)(at + len), PROT_READ, MAP_SHARED, o->fd, 0);
    if (base == (char *)MAP_FAILED) {
        return errno;
    }
    rv = platform_copy(base + at, to, len);
    munmap(base, (size_t)(at + len));
    return rv;
#endif
}

/*
 * Maps the whole object; *base is where struct slotmem_shm_header begins and
 * *len how many bytes there are from there on.  Nothing is touched yet: to do
 * so wants a guard against SIGBUS, as for any memory that others can write.
 */
static inline int platform_object_map(const platform_object_t *o, void **base,
                                      size_t *len)
{
    void *start;

    *base = NULL;
    *len = 0;
    if (o->size <= o->header || o->size > SIZE_MAX / 2) {
        return EINVAL;
    }
    if (o->kind == PLATFORM_SHM_SYSV) {
        start = shmat(o->shmid, NULL, 0);
    }
    else {
        start = mmap(NULL, (size_t)o->size, PROT_READ | PROT_WRITE, MAP_SHARED,
                     o->fd, 0);
    }
    if (start == (void *)-1) { /* MAP_FAILED as well */
        return errno;
    }
    *base = (char *)start + o->header;
    *len = (size_t)o->size - o->header;
    return 0;
}

/* `kind`, `base` and `len` as of platform_object_map(); the object itself may
 * have been closed. */
static inline void platform_unmap(enum platform_shm kind, void *base,
                                  size_t len)
{
    if (kind == PLATFORM_SHM_SYSV) {
        shmdt(base);
    }
    else {
        munmap((char *)base - SLOTMEM_SHM_ALIGN, len + SLOTMEM_SHM_ALIGN);
    }
}

/* Takes an open object's name off the system; who has it mapped keeps it.
 * NULL as key: a System V segment whose key file is not known. */
static inline void platform_object_remove(const platform_object_t *o,
                                          const char *key)
{
    switch (o->kind) {
    case PLATFORM_SHM_SYSV:
        shmctl(o->shmid, IPC_RMID, NULL);
        /* fall through */
    case PLATFORM_SHM_FILE:
        if (key) {
            unlink(key);
        }
        break;
    case PLATFORM_SHM_POSIX:
    default:
        platform_posix_unlink(key);
    }
}

/* Chooses by a header, which is a claim, since every child can write it: good
 * enough to remove what is `uid`'s, no more. */
typedef int platform_wanted_fn(const struct slotmem_shm_header *head,
                               const void *ctx);

enum platform_bearer {
    PLATFORM_BEARS, /* a header that is wanted                          */
    PLATFORM_EMPTY, /* nothing: its maker died before it wrote anything */
    PLATFORM_OTHER  /* something else, or it cannot be read             */
};

static inline enum platform_bearer
platform_object_bears(const platform_object_t *o, platform_wanted_fn *wanted,
                      const void *ctx)
{
    struct slotmem_shm_header head;
    static const struct slotmem_shm_header nothing;

    if (platform_object_read(o, o->header, &head, sizeof(head)) != 0) {
        return PLATFORM_OTHER;
    }
    if (head.magic == SLOTMEM_SHM_MAGIC && wanted(&head, ctx)) {
        return PLATFORM_BEARS;
    }
    return memcmp(&head, &nothing, sizeof(head)) == 0 ? PLATFORM_EMPTY
                                                      : PLATFORM_OTHER;
}

/* Every page of a new object is there, or this says why not: to allocate is
 * an error where to touch would be a SIGBUS.  A signal may interrupt it. */
static inline int platform_back(int fd, size_t len)
{
    int rv;

#ifdef __APPLE__ /* no such call, and no file system under it */
    rv = ftruncate(fd, (off_t)len) == 0 ? 0 : errno;
#else
    do {
        rv = posix_fallocate(fd, 0, (off_t)len); /* it grows, too */
    } while (rv == EINTR);
#endif
    return rv;
}

/* The same for an object that begins with its own size, as APR's do.  What
 * fits in a page is written, which is one call instead of two: most segments
 * are as small. */
static inline int platform_back_sized(int fd, size_t size)
{
    char page[4096] = { 0 };
    const size_t len = size <= sizeof(page) ? size : sizeof(size);
    int rv = len == size ? 0 : platform_back(fd, size);

    memcpy(page, &size, sizeof(size));
    if (rv == 0) {
        const ssize_t put = pwrite(fd, page, len, 0);

        rv = put == (ssize_t)len ? 0 : put < 0 ? errno : ENOSPC;
    }
    return rv;
}

/* A new file of our own, for an object or for a key: readable by nobody else
 * from its first instant, which apr_shm_create() does not see to. */
static inline int platform_new_file(const char *path)
{
    return open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
}

static inline int platform_mapped_make(const char *path, size_t size,
                                       platform_object_t *o)
{
    int rv;

    o->fd = platform_new_file(path);
    if (o->fd < 0) {
        return errno;
    }
    o->size = size;
    rv = platform_back_sized(o->fd, size);
    if (rv != 0) {
        unlink(path);
    }
    return rv;
}

static inline int platform_posix_make(const char *key, size_t size,
                                      platform_object_t *o)
{
    char name[sizeof(PLATFORM_DIR) + PLATFORM_NAME_SIZE];
#ifdef __linux__
    strcpy(name, PLATFORM_DIR);
    platform_posix_name(key, name + sizeof(PLATFORM_DIR) - 1);
    return platform_mapped_make(name, size, o);
#elif APR_USE_SHMEM_MMAP_SHM
    /* By reading only. */
    platform_posix_name(key, name);
    o->fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (o->fd < 0) {
        return errno;
    }
    o->size = size;
    if (platform_back(o->fd, size) != 0) {
        shm_unlink(name);
        return ENOSPC;
    }
    return 0;
#else
    (void)name;
    (void)key;
    (void)size;
    (void)o;
    return ENOSYS;
#endif
}

/*
 * One attempt at a key file and the segment under its number; *fd is the file
 * as long as it matters which inode it has, else -1.
 */
static inline int platform_sysv_try(const char *key, size_t size,
                                    platform_object_t *o, int *fd)
{
    key_t number = (key_t)-1;
    int rv = 0;

    *fd = platform_new_file(key);
    if (*fd < 0) {
        return errno;
    }
    if (write(*fd, &size, sizeof(size)) != (ssize_t)sizeof(size)) {
        rv = ENOSPC;
    }
    else {
        number = ftok(key, (int)platform_hash(key));
        rv = number == (key_t)-1 ? errno : 0;
    }
    if (rv == 0) {
        o->shmid = shmget(number, size, IPC_CREAT | IPC_EXCL | 0600);
        rv = o->shmid < 0 ? errno : 0;
    }
    if (rv != 0) {
        unlink(key);
    }
    return rv;
}

/*
 * EEXIST of a key file that did not exist: under its number stands a segment
 * that is not ours (ftok() keeps 16 bits of the inode), or that is, and has
 * lost its file.  Another file has another inode and so another number, as
 * long as the first is held open; three misfortunes in a row are an error.
 */
#define PLATFORM_SYSV_TRIES 4

static inline int platform_sysv_make(const char *key, size_t size,
                                     platform_object_t *o)
{
    int fds[PLATFORM_SYSV_TRIES], tries = 0, rv;

    do {
        rv = platform_sysv_try(key, size, o, &fds[tries]);
    } while (fds[tries++] >= 0 && rv == EEXIST && tries < PLATFORM_SYSV_TRIES);

    while (tries-- > 0) {
        if (fds[tries] >= 0) {
            close(fds[tries]);
        }
    }
    o->size = size;
    return rv;
}

/*
 * Makes the object of a key, as apr_shm_create() would for `len` bytes, so
 * that apr_shm_attach() finds it; but 0600 from its first instant, and with
 * every page there.  EEXIST: the name is taken.
 */
static inline int platform_object_make(platform_object_t *o, const char *key,
                                       size_t len)
{
    int rv;

    platform_object_init(o, platform_shm_kind());
    switch (o->kind) {
    case PLATFORM_SHM_SYSV:
        return platform_sysv_make(key, len, o);
    case PLATFORM_SHM_FILE:
        rv = platform_mapped_make(key, len + o->header, o);
        break;
    case PLATFORM_SHM_POSIX:
    default:
        rv = platform_posix_make(key, len + o->header, o);
    }
    if (rv != 0) {
        platform_object_close(o);
    }
    return rv;
}

/* Does the line of /proc/PID/maps show that file?  "from-to rights offset
 * major:minor inode path". */
static inline int platform_line_shows(const char *line, const struct stat *st)
{
    unsigned long device[2];
    unsigned long long inode;
    char *at = (char *)(intptr_t)line;
    int field;

    for (field = 0; field < 3 && at; field++) {
        at = strchr(at, ' ');
        at = at ? at + 1 : NULL;
    }
    if (!at) {
        return 0;
    }
    device[0] = strtoul(at, &at, 16);
    device[1] = *at == ':' ? strtoul(at + 1, &at, 16) : 0;
    inode = strtoull(at, NULL, 10);
    return inode == (unsigned long long)st->st_ino
           && makedev((unsigned int)device[0], (unsigned int)device[1])
                  == st->st_dev;
}

/* Does such a list show that file?  What counts of a line stands before its
 * path, hence in its first bytes; the rest is passed over up to the end of the
 * line (the kernel writes a newline in a path as \012), so that a long path
 * of somebody's making is never taken for a line. */
static inline int platform_maps_show(int fd, const struct stat *st)
{
    char chunk[512], line[128];
    size_t len = 0;
    ssize_t got, i;

    while ((got = read(fd, chunk, sizeof(chunk))) != 0) {
        if (got < 0 && errno != EINTR) {
            return errno == EACCES || errno == EPERM;
        }
        for (i = 0; i < got; i++) {
            if (chunk[i] != '\n') {
                if (len < sizeof(line) - 1) {
                    line[len++] = chunk[i];
                }
                continue;
            }
            line[len] = '\0';
            len = 0;
            if (platform_line_shows(line, st)) {
                return 1;
            }
        }
    }
    return 0;
}

/* Does process `pid` map it?  Who may not be looked at may. */
static inline int platform_process_maps(const char *pid, const struct stat *st)
{
    char path[288];
    int fd, found;

    (void)snprintf(path, sizeof(path), "/proc/%s/maps", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return errno == EACCES || errno == EPERM;
    }
    found = platform_maps_show(fd, st);
    close(fd);
    return found;
}

/* So many times in its life a process waits a millisecond for whoever looks
 * at an object just now: many that are mapped hold no start up. */
#define PLATFORM_LEASE_PATIENCE 50

/*
 * Does any living process map the file that is open for writing?  Where that
 * cannot be told, perhaps.  Linux gives a write lease only on a file that
 * nobody else has open, and a mapping keeps its file open; that holds over the
 * borders of containers, too, and needs no look at processes that may not be
 * looked at.
 */
static inline int platform_is_mapped(int fd, const struct stat *st)
{
    DIR *proc;
    struct dirent *entry;
    int seen = 0, found = 0;

#ifdef F_SETLEASE
    static int patience = PLATFORM_LEASE_PATIENCE;
    const struct timespec moment = { 0, 1000000 };

    /* Whoever opens it before the lease is given back has the kernel tell us,
     * by SIGIO, of which a process dies; by SIGURG, it does not.  And another
     * server that starts just now has it open for a moment, to look at it. */
    while (fcntl(fd, F_SETSIG, SIGURG) == 0) {
        if (fcntl(fd, F_SETLEASE, F_WRLCK) == 0) {
            fcntl(fd, F_SETLEASE, F_UNLCK);
            return 0;
        }
        if (errno != EAGAIN) {
            break;
        }
        if (patience <= 0) {
            return 1;
        }
        patience--;
        nanosleep(&moment, NULL);
    }
#endif
    (void)fd;
    proc = opendir("/proc");
    while (proc && !found && (entry = readdir(proc)) != NULL) {
        if (entry->d_name[0] >= '0' && entry->d_name[0] <= '9') {
            seen = 1;
            found = platform_process_maps(entry->d_name, st);
        }
    }
    if (proc) {
        closedir(proc);
    }
    return found || !seen;
}

/*
 * Could the file be a key file, so that it may go when its segment has gone?
 * An absolute name is any path, and a note of eight letters lies as well
 * there: as a size that is more than an eighth of all addresses, which no
 * segment has, since no letter's byte has its upper three bits clear.
 */
static inline int platform_is_key_file(int fd, const struct stat *st,
                                       size_t *size)
{
    return st->st_size == (off_t)sizeof(*size)
           && pread(fd, size, sizeof(*size), 0) == (ssize_t)sizeof(*size)
           && *size <= SIZE_MAX >> 3;
}

/*
 * Did a dead run make that segment, which nobody has attached, for the key
 * file that gives this size?  One of this module bears our magic.  httpd's own
 * bears nothing, but it has the size exactly, and its maker, the parent, has
 * ended: between making and attaching one it lives.
 */
static inline int platform_sysv_is_left(const platform_object_t *o, size_t size)
{
    uint64_t magic = 0;

    if (o->attached != 0) {
        return 0;
    }
    return (platform_object_read(o, o->header, &magic, sizeof(magic)) == 0
            && magic == SLOTMEM_SHM_MAGIC)
           || (o->size == size && kill(o->creator, 0) != 0 && errno == ESRCH);
}

/*
 * apr_shm_create() under `key` answered EEXIST.  Removes what is in the way,
 * if it may be removed, and answers 1 when to try again is worthwhile.
 * `ours`: the key is a relative name's, in a runtime directory that is ours
 * alone, and no process of this run uses the name.  Of an absolute name only
 * what nobody can be using is removed.
 *
 *     a POSIX object                    if `ours`; or if it is this user's and
 *                                       nobody maps it: a dead run's, of this
 *                                       module or of httpd's own
 *     a mapped file                     if `ours`
 *     a key file without a segment      always: the machine booted, or whoever
 *                                       made it died in between
 *     a segment of this user            if `ours`; or if nobody has it mapped
 *                                       and it is a dead run's, of this
 *                                       module or of httpd's own
 *     somebody else's segment           never the segment.  ftok() makes a
 *                                       number of 16 bits of the inode and 8
 *                                       of the path, so two key files may
 *                                       share it, and APR's own removal would
 *                                       take, say, a database's memory.  A key
 *                                       file with another inode has another
 *                                       number, so ours is removed, and *hold
 *                                       keeps its inode from being used again
 *                                       until the caller has tried and closed
 *                                       it (-1: there is nothing to close).
 */
static inline int platform_name_clear(const char *key, int ours, int *hold)
{
    platform_object_t o;
    struct stat st = { 0 };
    size_t size = 0;
    int fd, id, rv, free = ours;

    *hold = -1;
    rv = platform_posix_open(key, geteuid(), &fd, &st);
    if (rv == 0) {
        free = ours || !platform_is_mapped(fd, &st);
        close(fd);
    }
    if (rv != ENOENT) {
        if (free) {
            platform_posix_unlink(key);
        }
        return free;
    }
    if (platform_shm_kind() == PLATFORM_SHM_POSIX) {
        return 1; /* gone meanwhile; a file at that path is not ours */
    }
    rv = platform_file_open(key, O_RDONLY, geteuid(), &fd, &st);
    if (rv != 0) {
        /* Nothing any more, or something else that was planted. */
        return rv == ENOENT || (ours && unlink(key) == 0);
    }
    if (!platform_is_key_file(fd, &st, &size)) {
        close(fd);
        return ours && unlink(key) == 0;
    }
    id = platform_sysv_id(key);
    if (id < 0) {
        free = 1;
    }
    else if (platform_sysv_stat(&o, id, geteuid()) != 0) {
        free = 1;
        *hold = fd;
    }
    else {
        free = ours || platform_sysv_is_left(&o, size);
        if (free) {
            shmctl(o.shmid, IPC_RMID, NULL);
        }
    }
    free = free && unlink(key) == 0;
    if (*hold < 0) {
        close(fd);
    }
    return free;
}

/* -- what children made, and runs that were killed left -- */

static inline int platform_ends_with(const char *text, const char *end)
{
    size_t len = strlen(text), n = strlen(end);

    return len >= n && strcmp(text + len - n, end) == 0;
}

/* Does anybody who lives, in another container perhaps, map it? */
static inline int platform_object_is_used(const platform_object_t *o)
{
    struct stat st;

    return o->kind == PLATFORM_SHM_SYSV ? o->attached != 0
           : fstat(o->fd, &st) != 0     ? 1
                                        : platform_is_mapped(o->fd, &st);
}

/*
 * Key files (System V) and mapped files in a runtime directory: those whose
 * header is wanted, and, if the directory is ours `alone` just now, key files
 * that lead to nothing, or to a segment that its dead maker left empty.
 */
static inline void platform_sweep_keys(const char *dir, int alone, int used,
                                       platform_wanted_fn *wanted,
                                       const void *ctx, uid_t uid)
{
    DIR *d = opendir(dir);
    struct dirent *entry;
    char key[PATH_MAX];
    platform_object_t o = { 0 }; /* for gcc 10, which warns */

    while (d && (entry = readdir(d)) != NULL) {
        enum platform_bearer bears;
        int rv;

        if (strncmp(entry->d_name, "slotmem-shm-", 12) != 0
            || !platform_ends_with(entry->d_name, ".shm")
            || (size_t)snprintf(key, sizeof(key), "%s/%s", dir, entry->d_name)
                   >= sizeof(key)) {
            continue;
        }
        rv = platform_object_open(&o, key, uid);
        if (rv == EIDRM && alone) {
            unlink(key);
        }
        if (rv != 0) {
            continue;
        }
        bears = platform_object_bears(&o, wanted, ctx);
        if ((bears == PLATFORM_BEARS && (used || !platform_object_is_used(&o)))
            || (bears == PLATFORM_EMPTY && alone && o.kind == PLATFORM_SHM_SYSV
                && kill(o.creator, 0) != 0 && errno == ESRCH)) {
            platform_object_remove(&o, key);
        }
        platform_object_close(&o);
    }
    if (d) {
        closedir(d);
    }
}

/* May there be objects of APR's?  No is said only where they can be listed. */
static inline int platform_has_objects(void)
{
#ifdef __linux__
    DIR *d = platform_shm_kind() == PLATFORM_SHM_POSIX ? opendir(PLATFORM_DIR)
                                                       : NULL;
    struct dirent *entry;
    int found = d == NULL;

    while (!found && (entry = readdir(d)) != NULL) {
        found = strncmp(entry->d_name, "ShM.", 4) == 0;
    }
    if (d) {
        closedir(d);
    }
    return found;
#else
    return 1;
#endif
}

/* POSIX objects of `uid` whose header is wanted.  Their names are hashes, so all have
 * to be looked at, and only Linux has them where they can be. */
static inline void platform_sweep_posix(int used, platform_wanted_fn *wanted,
                                        const void *ctx, uid_t uid)
{
#ifdef __linux__
    DIR *d = opendir(PLATFORM_DIR);
    struct dirent *entry;
    char path[sizeof(PLATFORM_DIR) + 1 + sizeof(entry->d_name)];
    platform_object_t o;
    struct stat st = { 0 };

    while (d && (entry = readdir(d)) != NULL) {
        if (strncmp(entry->d_name, "ShM.", 4) != 0) {
            continue;
        }
        (void)snprintf(path, sizeof(path), "%s/%s", PLATFORM_DIR,
                       entry->d_name);
        platform_object_init(&o, PLATFORM_SHM_POSIX);
        if (platform_file_open(path, O_RDONLY, uid, &o.fd, &st) != 0) {
            continue;
        }
        o.size = (uint64_t)st.st_size;
        if (platform_object_bears(&o, wanted, ctx) == PLATFORM_BEARS
            && (used || !platform_is_mapped(o.fd, &st))) {
            unlink(path);
        }
        platform_object_close(&o);
    }
    if (d) {
        closedir(d);
    }
#else
    (void)used;
    (void)wanted;
    (void)ctx;
    (void)uid;
#endif
}

/* System V segments of `uid` whose header is wanted, whatever their key: those under
 * an absolute name, whose key file is not known.  Only Linux lists them. */
static inline void platform_sweep_sysv(int used, platform_wanted_fn *wanted,
                                       const void *ctx, uid_t uid)
{
#if defined(__linux__) && defined(SHM_INFO) && defined(SHM_STAT)
    struct shmid_ds ds = { 0 };
    struct shm_info info;
    int i, last;

    last = shmctl(0, SHM_INFO, (struct shmid_ds *)(void *)&info);
    for (i = 0; i <= last; i++) {
        platform_object_t o = { 0 };
        int id = shmctl(i, SHM_STAT, &ds);

        if (id >= 0 && platform_sysv_stat(&o, id, uid) == 0
            && (used || o.attached == 0)
            && platform_object_bears(&o, wanted, ctx) == PLATFORM_BEARS) {
            platform_object_remove(&o, NULL);
        }
    }
#else
    (void)used;
    (void)wanted;
    (void)ctx;
    (void)uid;
#endif
}

/*
 * Removes every shared memory object of `uid` whose header is wanted, of all
 * three kinds, since a run that was killed may have had another APR.  `dir` is the
 * runtime directory (NULL: there is none), and `alone` says that no other
 * server uses it just now.  What somebody maps goes only if `used` says so:
 * that its maker's number is nobody's says nothing of other containers.  What is removed here can at worst be an object
 * that a hostile child dressed up, and then it is its own.
 *
 * To be called for the parent's user, and again for its children's where that
 * is another.
 */
static inline void platform_shm_sweep(const char *dir, int alone, int used,
                                      platform_wanted_fn *wanted,
                                      const void *ctx, uid_t uid)
{
    platform_sweep_posix(used, wanted, ctx, uid);
    if (dir) { /* first, for a key file without its segment says nothing */
        platform_sweep_keys(dir, alone, used, wanted, ctx, uid);
    }
    platform_sweep_sysv(used, wanted, ctx, uid);
}

#endif /* SLOTMEM_PLATFORM_H */
