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
 * LD_PRELOAD: all shared memory that a process maps gets a page before it
 * and one behind it that nobody may touch, so that whoever runs past a
 * segment ends there, instead of in a neighbour that happens to be mapped.
 *
 * What lies around the mapping stays reserved after munmap(); a test does not
 * live long enough to mind.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <unistd.h>

static void *kernel_mmap(void *at, size_t len, int prot, int flags, int fd,
                         off_t off)
{
    return (void *)syscall(SYS_mmap, at, len, prot, flags, fd, off);
}

/* So many pages with one more on each side; NULL when there is no room. */
static char *fenced(size_t pages, size_t page)
{
    char *room =
        kernel_mmap(NULL, pages + 2 * page, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return room == MAP_FAILED ? NULL : room + page;
}

void *mmap(void *at, size_t len, int prot, int flags, int fd, off_t off)
{
    const size_t page = 4096;
    size_t pages = (len + page - 1) / page * page;
    char *room;

    if (at || !len || pages > SIZE_MAX / 4 || !(flags & MAP_SHARED)
        || !(prot & PROT_WRITE) || (flags & MAP_FIXED)) {
        return kernel_mmap(at, len, prot, flags, fd, off);
    }
    room = fenced(pages, page);
    return room ? kernel_mmap(room, len, prot, flags | MAP_FIXED, fd, off)
                : MAP_FAILED;
}

#ifdef __GLIBC__ /* to musl it is another word for the same */
void *mmap64(void *at, size_t len, int prot, int flags, int fd, off_t off)
{
    return mmap(at, len, prot, flags, fd, off);
}
#endif

/* A System V segment lies at a multiple of SHMLBA, which is a page nearly
 * everywhere; where it is more, the fence before it is wider. */
void *shmat(int id, const void *at, int flags)
{
    void *(*real)(int, const void *, int) = dlsym(RTLD_NEXT, "shmat");
    const size_t page = (size_t)SHMLBA;
    struct shmid_ds ds;
    size_t pages;
    char *room;

    if (at || (flags & SHM_RDONLY) || shmctl(id, IPC_STAT, &ds) != 0) {
        return real(id, at, flags);
    }
    pages = (ds.shm_segsz + page - 1) / page * page;
    room = fenced(pages, page);
    return real(id, room, room ? flags | SHM_REMAP : flags);
}
