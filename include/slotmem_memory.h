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
 * @file  slotmem_memory.h
 * @brief Shared memory made, opened and removed, and read though it may go.
 *
 * Knows APR, nothing of httpd.  Functions answer 0 (APR_SUCCESS) or an errno.
 *
 * Named memory is an object under the name and in the form that APR gives it
 * (slotmem_platform.h), so httpd's own module and any program on APR find it.
 * apr_shm_create() and apr_shm_attach() are not asked to make or open it: the
 * one makes objects that all may read, and uses a mapping without looking
 * whether there is one; the other opens whatever lies under the name, for
 * ever if that is a pipe, and believes the size that the object says of
 * itself.  Memory without a name is APR's.
 *
 *     memory_make_named      an object, made         memory_unmap
 *     memory_map             an object, opened       memory_unmap
 *     memory_make_anonymous  no object, no name      memory_unmap
 *     object_remove          its name goes, mappings stay
 *     object_is_ours         may it?
 *
 * Any thread may call these; guarded(), and with it memory_make_anonymous(),
 * one thread of a process at a time.
 */
#ifndef SLOTMEM_MEMORY_H
#define SLOTMEM_MEMORY_H

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "apr.h"
#include "apr_errno.h"
#include "apr_pools.h"
#include "apr_shm.h"

#include "mod_slotmem_shm.h"
#include "slotmem_platform.h"
#include "slotmem_word.h"

/* ==================== guard ==================== */

/**
 * Memory does not stay.  A child can give pages of a segment back to the
 * system (madvise with MADV_REMOVE) and use up what there is, and then even
 * to read one is a SIGBUS.  So whatever the parent reads of memory that
 * children have had, it reads under a guard that makes an error of it.
 *
 * Only the thread that asked is caught; a fault of any other goes where it
 * would have gone.
 */
static _Thread_local sigjmp_buf *guard_env;
static struct sigaction guard_old_bus, guard_old_segv;

static inline void guard_handler(int signum)
{
    if (guard_env) {
        siglongjmp(*guard_env, 1);
    }
    /* Not ours: with the former handler back, the instruction faults again. */
    sigaction(SIGBUS, &guard_old_bus, NULL);
    sigaction(SIGSEGV, &guard_old_segv, NULL);
    (void)signum;
}

/** Runs fn(ctx); APR_ENOMEM if it touched memory that is not there.  Called
 *  by the only thread of the parent or of its helper. */
static inline apr_status_t guarded(apr_status_t (*fn)(void *ctx), void *ctx)
{
    struct sigaction action;
    sigjmp_buf env;
    apr_status_t rv;

    memset(&action, 0, sizeof(action));
    action.sa_handler = guard_handler;
    sigemptyset(&action.sa_mask);

    if (sigsetjmp(env, 1) == 0) {
        guard_env = &env;
        sigaction(SIGBUS, &action, &guard_old_bus);
        sigaction(SIGSEGV, &action, &guard_old_segv);
        rv = fn(ctx);
    }
    else {
        rv = APR_ENOMEM;
    }
    guard_env = NULL;
    sigaction(SIGBUS, &guard_old_bus, NULL);
    sigaction(SIGSEGV, &guard_old_segv, NULL);
    return rv;
}

/* ==================== memory ==================== */

static inline int memory_exceeds_machine(apr_size_t size)
{
    static long pages; /* asking costs more than the rest of a create */
    long page = sysconf(_SC_PAGESIZE);

    if (pages == 0) {
        pages = sysconf(_SC_PHYS_PAGES);
    }
    return pages > 0 && page > 0 && size / (apr_size_t)page > (apr_size_t)pages;
}

/** Mapped memory, and how to be rid of it. */
typedef struct {
    void *base;     /* where a header may begin; NULL: none              */
    apr_size_t len; /* bytes from there on                               */
    apr_shm_t *shm; /* of anonymous memory; NULL: it is an object's      */
    enum platform_shm kind;
} memory_t;

static inline void memory_unmap(memory_t *m)
{
    if (m->shm) {
        apr_shm_destroy(m->shm);
    }
    else if (m->base) {
        platform_unmap(m->kind, m->base, m->len);
    }
    m->base = NULL;
    m->shm = NULL;
}

/** What guarded() is to do, and what came of it. */
typedef struct {
    memory_t *m;
    apr_size_t len;
    apr_pool_t *pool;
} make_t;

/** APR writes the first page of what mmap() gave, if it gave anything. */
static inline apr_status_t memory_anonymous_unguarded(void *ctx)
{
    make_t *make = ctx;
    apr_status_t rv = apr_shm_create(
        &make->m->shm, make->len + SLOTMEM_SHM_ALIGN, NULL, make->pool);
    apr_uintptr_t base;

    if (rv != APR_SUCCESS) {
        make->m->shm = NULL;
        return rv;
    }
    base = (apr_uintptr_t)apr_shm_baseaddr_get(make->m->shm);
    make->m->base = (void *)slotmem_part_end(base);
    make->m->len = make->len;
    return APR_SUCCESS;
}

/** Memory without a name, for this process and those it forks. */
static inline apr_status_t memory_make_anonymous(memory_t *m, apr_size_t len,
                                                 apr_pool_t *p)
{
    make_t make = { m, len, p };
    apr_status_t rv;

    memset(m, 0, sizeof(*m));
    rv = guarded(memory_anonymous_unguarded, &make);
#ifdef MADV_POPULATE_WRITE
    /* Each page is there now, or this says why not.  Older kernels do not
     * know the call (EINVAL), and a container may forbid it. */
    if (rv == APR_SUCCESS) {
        const apr_uintptr_t page = (apr_uintptr_t)sysconf(_SC_PAGESIZE);
        char *start = (char *)((apr_uintptr_t)m->base & ~(page - 1));

        if (madvise(start, (apr_size_t)((char *)m->base + len - start),
                    MADV_POPULATE_WRITE)
                != 0
            && errno != EINVAL && errno != EPERM && errno != ENOSYS) {
            rv = errno == EFAULT || errno == EHWPOISON ? APR_ENOMEM : errno;
            memory_unmap(m);
        }
    }
#endif
    return rv;
}

static inline apr_status_t memory_map(memory_t *m, const platform_object_t *o)
{
    memset(m, 0, sizeof(*m));
    m->kind = o->kind;
    return platform_object_map(o, &m->base, &m->len);
}

/** APR_EEXIST: the name is taken. */
static inline apr_status_t memory_make_named(memory_t *m, apr_size_t len,
                                             const char *key)
{
    platform_object_t o;
    apr_status_t rv = platform_object_make(&o, key, len);

    if (rv != APR_SUCCESS) {
        return rv;
    }
    rv = memory_map(m, &o);
    if (rv != APR_SUCCESS) {
        platform_object_remove(&o, key);
    }
    platform_object_close(&o);
    return rv;
}

/** Takes the name of an object that this process or its former self made off
 *  the system.  Mappings stay. */
static inline void object_remove(const char *key)
{
    platform_object_t o;

    if (platform_object_open(&o, key, geteuid()) == 0) {
        platform_object_remove(&o, key);
        platform_object_close(&o);
    }
}

/** Is that the header of an object of that run? */
static inline int head_is_of(const struct slotmem_shm_header *head,
                             const void *run)
{
    return memcmp(head->run, run, sizeof(head->run)) == 0;
}

/** Is it of a server in another directory, by its number, not its path?
 *  Containers that share their memory may call their directories alike. */
static inline int head_is_elsewhere(const struct slotmem_shm_header *head,
                                    const void *directory)
{
    return memcmp(head->directory, directory, sizeof(head->directory)) != 0;
}

/**
 * May what lies under a key be removed?  What bears the identity of `run`, a
 * dead one in our directory (NULL: there is none), may.  `directory` is our
 * own, which is ours alone, if the key is in there: then all may but what
 * another directory's server has made and somebody uses.  NULL: nothing else,
 * but what bears nothing, since the kill came before anything was written.
 */
static inline int object_is_ours(const char *key, const void *directory,
                                 const void *run)
{
    platform_object_t o;
    int ours = directory != NULL;

    if ((directory || run) && platform_object_open(&o, key, geteuid()) == 0) {
        const enum platform_bearer of_run =
            run ? platform_object_bears(&o, head_is_of, run) : PLATFORM_OTHER;

        ours = of_run == PLATFORM_BEARS
               || (directory
                       ? platform_object_bears(&o, head_is_elsewhere, directory)
                                 != PLATFORM_BEARS
                             || !platform_object_is_used(&o)
                       : of_run == PLATFORM_EMPTY);
        platform_object_close(&o);
    }
    return ours;
}

#endif /* SLOTMEM_MEMORY_H */
