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
 * Shared memory as an APR makes it that is built for another kind than this
 * system's: OTHER_SHM is sysv or file.  To be included before everything else
 * (run-platform.sh), so that slotmem_platform.h is compiled for that kind, and
 * its tests meet what such an APR makes.  `make platforms` and `make
 * portability` have the real ones.
 */
#ifndef UNIT_OTHER_SHM_H
#define UNIT_OTHER_SHM_H

#include <errno.h>
#include <fcntl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <unistd.h>

#include "apr.h"

#undef APR_USE_SHMEM_MMAP_SHM
#define APR_USE_SHMEM_MMAP_SHM 0
#undef APR_USE_SHMEM_SHMGET
#ifdef OTHER_SHM_SYSV
#define APR_USE_SHMEM_SHMGET 1
#else
#define APR_USE_SHMEM_SHMGET 0
#endif

#include "apr_pools.h"
#include "apr_shm.h"
#include "apr_strings.h"

struct apr_shm_t {
    void *mapped;
    apr_size_t size;  /* that was asked for */
    apr_size_t extra; /* before it          */
    int id;
    apr_pool_t *pool;
    const char *key; /* of its maker; NULL: attached */
};

static apr_status_t other_shm_end(void *data)
{
    apr_shm_t *m = data;

#ifdef OTHER_SHM_SYSV
    shmdt(m->mapped);
    if (m->key) {
        shmctl(m->id, IPC_RMID, NULL);
    }
#else
    munmap(m->mapped, m->size + m->extra);
#endif
    if (m->key) {
        unlink(m->key);
    }
    return APR_SUCCESS;
}

/* `fd` is the key file, or the memory itself. */
static apr_status_t other_shm_map(apr_shm_t *m, int fd, const char *key,
                                  int flags)
{
#ifdef OTHER_SHM_SYSV
    unsigned int hash = 0;
    const char *at;

    (void)fd;
    for (at = key; *at; at++) {
        hash = hash * 33 + (unsigned char)*at;
    }
    m->id = shmget(ftok(key, (int)hash), flags ? m->size : 0, flags | 0600);
    m->mapped = m->id < 0 ? (void *)-1 : shmat(m->id, NULL, 0);
#else
    (void)key;
    (void)flags;
    m->mapped = mmap(NULL, m->size + m->extra, PROT_READ | PROT_WRITE,
                     MAP_SHARED, fd, 0);
#endif
    return m->mapped == (void *)-1 ? errno : APR_SUCCESS;
}

static apr_status_t other_shm_open(apr_shm_t **made, apr_size_t size,
                                   const char *key, apr_pool_t *p)
{
    const int fd = open(key, size ? O_RDWR | O_CREAT | O_EXCL : O_RDWR, 0644);
    apr_shm_t *m = apr_pcalloc(p, sizeof(*m));
    apr_status_t rv = fd < 0 ? errno : APR_SUCCESS;

    m->pool = p;
    m->size = size;
    m->key = size ? apr_pstrdup(p, key) : NULL;
#ifndef OTHER_SHM_SYSV
    m->extra = 8; /* APR_ALIGN_DEFAULT of a size_t */
#endif
    if (rv == APR_SUCCESS && size) {
        rv = write(fd, &m->size, sizeof(m->size)) == sizeof(m->size)
                     && (m->extra == 0
                         || ftruncate(fd, (off_t)(size + m->extra)) == 0)
                 ? APR_SUCCESS
                 : errno;
    }
    else if (rv == APR_SUCCESS
             && read(fd, &m->size, sizeof(m->size)) != sizeof(m->size)) {
        rv = APR_EGENERAL;
    }
    if (rv == APR_SUCCESS) {
        rv = other_shm_map(m, fd, key, size ? IPC_CREAT | IPC_EXCL : 0);
    }
    if (fd >= 0) {
        close(fd);
    }
    if (rv == APR_SUCCESS) {
        apr_pool_cleanup_register(p, m, other_shm_end, apr_pool_cleanup_null);
        *made = m;
    }
    return rv;
}

apr_status_t apr_shm_create(apr_shm_t **made, apr_size_t size, const char *key,
                            apr_pool_t *p)
{
    return other_shm_open(made, size, key, p);
}

apr_status_t apr_shm_attach(apr_shm_t **found, const char *key, apr_pool_t *p)
{
    return other_shm_open(found, 0, key, p);
}

apr_status_t apr_shm_detach(apr_shm_t *m)
{
    return apr_pool_cleanup_run(m->pool, m, other_shm_end);
}

void *apr_shm_baseaddr_get(const apr_shm_t *m)
{
    return (char *)m->mapped + m->extra;
}

apr_size_t apr_shm_size_get(const apr_shm_t *m)
{
    return m->size;
}

#endif /* UNIT_OTHER_SHM_H */
