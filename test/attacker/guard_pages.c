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
 * LD_PRELOAD: every shared mapping that a process makes gets a page before it
 * and one behind it that nobody may touch, so that whoever runs past a
 * segment ends there, instead of in a neighbour that happens to be mapped.
 *
 * What lies around the mapping stays reserved after munmap(); a test does not
 * live long enough to mind.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static void *kernel_mmap(void *at, size_t len, int prot, int flags, int fd,
                         off_t off)
{
    return (void *)syscall(SYS_mmap, at, len, prot, flags, fd, off);
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
    room = kernel_mmap(NULL, pages + 2 * page, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) {
        return MAP_FAILED;
    }
    return kernel_mmap(room + page, len, prot, flags | MAP_FIXED, fd, off);
}

void *mmap64(void *at, size_t len, int prot, int flags, int fd, off_t off)
{
    return mmap(at, len, prot, flags, fd, off);
}
