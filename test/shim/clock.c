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
 * A preloaded library with other clocks.
 *
 *     LD_PRELOAD=clock.so CLOCK_FILE=/path CLOCK_SPEED=N
 *
 * CLOCK_FILE   holds a number of seconds, as text, by which the wall clock is
 *              off; what is written there takes effect at once
 * CLOCK_SPEED  for root's processes, which are httpd's parent and its helpers,
 *              but not the children that serve: every clock goes N times as
 *              fast, and every wait takes an N-th
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define GIGA 1000000000LL

static void *real(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);

    if (!found) {
        abort();
    }
    return found;
}

#define REAL(name) ((__typeof__(&name))real(#name))

static long long speed(void)
{
    const char *text = getenv("CLOCK_SPEED");
    long long factor = text ? atoll(text) : 1;

    return factor > 1 && syscall(SYS_geteuid) == 0 ? factor : 1;
}

static long long offset(void)
{
    const char *path = getenv("CLOCK_FILE");
    char text[32] = "";
    int saved = errno;
    long fd =
        path ? syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;

    if (fd >= 0) {
        if (syscall(SYS_read, fd, text, sizeof text - 1) < 0) {
            abort();
        }
        syscall(SYS_close, fd);
    }
    errno = saved;
    return atoll(text);
}

static int is_wall(clockid_t id)
{
    return id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE;
}

static int is_scaled(clockid_t id)
{
    return is_wall(id) || id == CLOCK_MONOTONIC || id == CLOCK_MONOTONIC_RAW
           || id == CLOCK_MONOTONIC_COARSE || id == CLOCK_BOOTTIME;
}

int clock_gettime(clockid_t id, struct timespec *now)
{
    /* When the first process of the test began to look. */
    static struct timespec first[CLOCK_BOOTTIME + 1];
    long long factor = speed(), passed;

    if (syscall(SYS_clock_gettime, id, now) != 0) {
        return -1;
    }
    if (is_scaled(id) && factor > 1) {
        if (first[id].tv_sec == 0) {
            first[id] = *now;
        }
        passed = (now->tv_sec - first[id].tv_sec) * GIGA
                 + (now->tv_nsec - first[id].tv_nsec);
        passed = passed * factor + first[id].tv_nsec;
        now->tv_sec = first[id].tv_sec + passed / GIGA;
        now->tv_nsec = passed % GIGA;
    }
    if (is_wall(id)) {
        now->tv_sec += offset();
    }
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec precise;

    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *where)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    if (where) {
        *where = now.tv_sec;
    }
    return now.tv_sec;
}

/* -- waits: never shorter than a millisecond, unless asked for */

static struct timespec shorter(const struct timespec *wait)
{
    long long factor = speed();
    long long ns = wait->tv_sec * GIGA + wait->tv_nsec;
    struct timespec result;

    if (factor > 1 && ns > 1000000) {
        ns = ns / factor > 1000000 ? ns / factor : 1000000;
    }
    result.tv_sec = ns / GIGA;
    result.tv_nsec = ns % GIGA;
    return result;
}

int nanosleep(const struct timespec *wait, struct timespec *left)
{
    struct timespec part = shorter(wait);

    return REAL(nanosleep)(&part, left);
}

int clock_nanosleep(clockid_t id, int flags, const struct timespec *wait,
                    struct timespec *left)
{
    struct timespec part = flags ? *wait : shorter(wait);

    return REAL(clock_nanosleep)(id, flags, &part, left);
}

int usleep(useconds_t us)
{
    struct timespec wait = { us / 1000000, us % 1000000 * 1000 };

    return nanosleep(&wait, NULL);
}

unsigned int sleep(unsigned int seconds)
{
    struct timespec wait = { seconds, 0 };

    nanosleep(&wait, NULL);
    return 0;
}

int select(int count, fd_set *restrict in, fd_set *restrict out,
           fd_set *restrict other, struct timeval *restrict wait)
{
    struct timespec part;
    struct timeval shortened;

    if (wait) {
        part.tv_sec = wait->tv_sec;
        part.tv_nsec = wait->tv_usec * 1000;
        part = shorter(&part);
        shortened.tv_sec = part.tv_sec;
        shortened.tv_usec = part.tv_nsec / 1000;
    }
    return REAL(select)(count, in, out, other, wait ? &shortened : NULL);
}

int poll(struct pollfd *set, nfds_t count, int wait)
{
    long long factor = speed();

    if (wait > 1 && factor > 1) {
        wait = wait / factor > 1 ? (int)(wait / factor) : 1;
    }
    return REAL(poll)(set, count, wait);
}

int sigtimedwait(const sigset_t *restrict set, siginfo_t *restrict info,
                 const struct timespec *restrict wait)
{
    struct timespec part;

    if (wait) {
        part = shorter(wait);
    }
    return REAL(sigtimedwait)(set, info, wait ? &part : NULL);
}
