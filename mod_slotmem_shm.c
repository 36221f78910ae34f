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
 * mod_slotmem_shm: shared memory divided into slots, for other modules.
 *
 * A segment is an array of fixed-size slots that every process of the server
 * sees.  Its memory (include/mod_slotmem_shm.h has it to the byte):
 *
 *     +--------+-----------+------------+-------------------+----------+
 *     | header | table:    | locks:     | slot 0, 1, 2, ... | slack    |
 *     |        | in use    | put, get   | item_size apart   | 64 bytes |
 *     +--------+-----------+------------+-------------------+----------+
 *
 * Table and locks are lock-free, know nothing of httpd, and are argued in
 * slotmem_table.h and slotmem_locks.h.  They lie before the slots because one
 * published consumer writes an int past its last slot: that lands in the
 * slack and hurts nobody.
 *
 * A stored file (a PERSIST segment, at stop, restart and every checkpoint;
 * slotmem_store.h writes it, slotmem_image.h reads it):
 *
 *     +---------+-------+---------------+-----+--------------------+-------+
 *     | free: 8 | slots | 1 byte a slot | MD5 | item_size,num,type | whose |
 *     +---------+-------+---------------+-----+--------------------+-------+
 *
 * The rule of trust.  The parent is root, its children are not, and they can
 * write every word of a segment.  So geometry, type, names and paths live in
 * private memory (ap_slotmem_instance_t, inherited by fork), and nothing read
 * from shared memory chooses an address, a length, a path, or how long the
 * parent waits.  test/shared-words.md lists every shared word and what
 * happens when it holds anything at all; and every open, map, stat, kill.
 *
 * The rule of locks.  grab, release, fgrab, dptr, doall and the counts take
 * none.  put takes the lock of its slot; get takes nothing.  The registry
 * lock (threads of one process) comes before the global mutex (processes),
 * and a slot lock is never waited for under either.  The parent never waits
 * without bound for anything that a child can hold.
 *
 * The rule of state.  A PERSIST segment passes from life to life: over a
 * restart through memory, after a kill through named memory, after a stop or
 * a power cut through its file.  One function fills a fresh segment from any
 * of them ("inheritance"), and the runtime directory has one state that says
 * what may be written ("runtime directory").
 *
 * What knows no httpd is in headers of its own, each of which opens with what
 * it is, its format or drawing, and who may call it:
 *
 *     slotmem_table.h     which slots are in use (lock-free)
 *     slotmem_locks.h     put against get (lock-free), the dead, what is torn
 *     slotmem_layout.h    what lies where in a segment
 *     slotmem_search.h    whose slots are whose, while the parent configures
 *     slotmem_platform.h  what differs from one system to the next
 *     slotmem_memory.h    shared memory made and opened; the guard
 *     slotmem_names.h     names of segments and files
 *     slotmem_image.h     a stored file, read and checked
 *     slotmem_store.h     a stored file's image, made of a segment
 *     slotmem_marker.h    the list of a run's memory: text, lock
 *     slotmem_pace.h      how long between two checkpoints
 *     slotmem_status.h    the words of the status page
 *
 * Sections here, each using only those above it:
 *
 *     segment             as one process sees it
 *     names               keys, stored files
 *     processes           who we are, who lives, the global mutex
 *     memory              a segment's header: written, published, believed
 *     registry            the segments of this process
 *     slot claims         of the configuration, while the parent configures
 *     store               the files that hold segments, all together
 *     runtime directory   owner, heir, unlisted; the marker
 *     inheritance         what a fresh segment begins with
 *     checkpoint          the process that stores while the server runs
 *     provider calls      what ap_slotmem.h promises
 *     status              what an administrator sees
 *     hooks               when all this happens
 */

#include "apr.h"
#include "apr_file_info.h"
#include "apr_file_io.h"
#include "apr_general.h"
#include "apr_global_mutex.h"
#include "apr_hash.h"
#include "apr_md5.h"
#include "apr_optional_hooks.h"
#include "apr_signal.h"
#include "apr_strings.h"
#include "apr_thread_mutex.h"
#include "apr_thread_proc.h"
#include "apr_time.h"

#define APR_WANT_MEMFUNC
#define APR_WANT_STRFUNC
#include "apr_want.h"

#include "httpd.h"
#include "http_config.h"
#include "http_core.h"
#include "http_log.h"
#include "http_main.h"
#include "http_protocol.h"
#include "ap_listen.h"
#include "ap_mpm.h"
#include "ap_provider.h"
#include "ap_slotmem.h"
#include "mod_status.h"
#include "mpm_common.h"
#include "unixd.h"
#include "util_mutex.h"

#include "mod_slotmem_shm.h"
#include "slotmem_image.h"
#include "slotmem_layout.h"
#include "slotmem_locks.h"
#include "slotmem_marker.h"
#include "slotmem_memory.h"
#include "slotmem_names.h"
#include "slotmem_pace.h"
#include "slotmem_platform.h"
#include "slotmem_search.h"
#include "slotmem_status.h"
#include "slotmem_store.h"
#include "slotmem_table.h"

#if !APR_HAS_FORK || !APR_HAS_SHARED_MEMORY
#error                                                                         \
    "mod_slotmem_shm needs fork() and shared memory (mpm_winnt is not supported)"
#endif

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

module AP_MODULE_DECLARE_DATA slotmem_shm_module;
APLOG_USE_MODULE(slotmem_shm);

/* What is rare, in a function of its own, so that the call beside it stays as
 * short as it reads. */
#define RARELY static __attribute__((noinline))

/* ==================== segment ==================== */

/* A segment as one process sees it.  Everything here is private; a pointer
 * into shared memory is one to the header or to the slots, or in one of the
 * two that the core headers keep. */
struct ap_slotmem_instance_t {
    char *slots; /* shared                                  */
    layout_t layout;
    ap_slotmem_type_t type;
    slotmem_table_t table;             /* which slots are in use */
    slotmem_locks_t locks;             /* put against get        */
    struct slotmem_shm_header *header; /* shared                 */
    memory_t memory;

    const char *name;   /* as given by the caller; NULL: anonymous       */
    const char *key;    /* of the shared memory; NULL: anonymous         */
    const char *store;  /* stored file; NULL: none                       */
    enum origin origin; /* what it began with                            */
    int by_run;         /* the key bears the run's identity, see name_key */

    apr_uint64_t *claims;     /* of the configuration: 1 bit a slot, or NULL  */
    slotmem_search_t *search; /* NULL: nothing left to be found          */
    int prefer_zero;          /* a free slot may hold what somebody looks for */
    int was_short;            /* somebody was told that it has fewer slots   */

    unsigned char digest[APR_MD5_DIGESTSIZE];
    int has_digest;    /* the stored file bears this digest                 */
    apr_uint64_t mark; /* of the file that this process knows to be ours    */
    ap_slotmem_instance_t *next; /* in order of creation                 */
};

static const slotmem_locks_env_t locks_env; /* see "processes" */

/* Lays an instance whose layout is made over its memory. */
static void segment_lay(ap_slotmem_instance_t *s)
{
    char *start;

    s->header = s->memory.base;
    start = (char *)s->header;
    s->slots = start + s->layout.slots_off;
    slotmem_table_lay(&s->table, s->layout.item_num,
                      (slotmem_word_t *)(void *)(s->header + 1));
    slotmem_locks_lay(&s->locks, s->layout.item_num, s->layout.item_size,
                      (slotmem_word_t *)(void *)(start + s->layout.locks_off),
                      (slotmem_byte_t *)s->slots, &locks_env);
}

static char *slot_at(const ap_slotmem_instance_t *s, unsigned int id)
{
    return s->slots + s->layout.item_size * id;
}

static apr_uint64_t *bits_make(unsigned int item_num, apr_pool_t *p)
{
    return apr_pcalloc(p, (slotmem_words_for(item_num) + 1)
                              * sizeof(apr_uint64_t));
}

/* ==================== names ==================== */

/* The key of the shared memory; NULL when the name makes no path.  `run`, if
 * given, is made part of it: somebody else has the plain one. */
static const char *name_key(apr_pool_t *p, const char *name,
                            unsigned int generation, const char *run)
{
    const char *mark = run ? "." : "", *id = run ? run : "";

    if (name_is_absolute(name)) {
        return apr_pstrcat(p, name, mark, id, NULL);
    }
    return ap_runtime_dir_relative(p,
                                   apr_psprintf(p, "slotmem-shm-%s_%x%s%s.shm",
                                                name, generation, mark, id));
}

/* Where it is stored; NULL when the name makes no path. */
static const char *name_store(apr_pool_t *p, const char *name)
{
    const char *path =
        name_is_absolute(name)
            ? name
            : ap_runtime_dir_relative(
                p, apr_pstrcat(p, "slotmem-shm-", name, ".shm", NULL));

    if (!path) {
        return NULL;
    }
    path = apr_pstrcat(p, path, SLOTMEM_SHM_FILE_SUFFIX, NULL);
    return path_is_too_long(path) ? NULL : path;
}

/* ==================== processes ==================== */

#define MUTEX_TYPE "slotmem-shm"
#define MUTEX_WAIT apr_time_from_sec(1)

/* What this process is to the module. */
enum role {
    ROLE_CONFIGURING, /* the parent, until every module has configured    */
    ROLE_PARENT,      /* the parent, while the server runs; httpd -X too  */
    ROLE_CHILD
};

/* What this process knows of itself.  Private, hence inherited by fork. */
static struct {
    slotmem_process_t process; /* set anew after every fork             */
    slotmem_process_t server;  /* the parent                            */
    enum role role;
    apr_global_mutex_t *mutex; /* NULL until every module has configured,
                                  and where none could be had            */
} self;

enum process_state { PROCESS_GONE, PROCESS_ALIVE };

/*
 * When process `pid` began, folded to the bits that a lock has for it, so that
 * a number which the kernel has handed to somebody else is not taken for the
 * one that died.  BIRTH_UNKNOWN where the system does not tell; the number
 * alone then has to do.
 */
#define BIRTH_UNKNOWN 0u
#define BIRTH_NONE    (SLOTMEM_LOCK_BIRTH_MASK + 1) /* dead */

static unsigned int process_birth(pid_t pid)
{
    apr_uint64_t began = 0;
    unsigned int birth;

    switch (platform_process_birth(pid, &began)) {
    case PLATFORM_PROCESS_DEAD:
        return BIRTH_NONE;
    case PLATFORM_PROCESS_BEGAN:
        birth = (unsigned int)began & SLOTMEM_LOCK_BIRTH_MASK;
        return birth == BIRTH_UNKNOWN ? 1 : birth;
    case PLATFORM_PROCESS_UNKNOWN:
        break;
    }
    return BIRTH_UNKNOWN;
}

/* Of this process, after every fork: a forked grandchild (mpm-itk has them)
 * that writes a slot must not do so in its parent's name. */
static void process_note_self(void)
{
    pid_t pid = getpid();

    self.process.pid = (apr_uint32_t)pid;
    self.process.birth = process_birth(pid);
}

/* `pid` and `birth` may be any numbers: they come from shared memory. */
static enum process_state process_state(slotmem_process_t process)
{
    pid_t pid = (pid_t)process.pid;
    unsigned int now;

    if (pid <= 0 || (kill(pid, 0) != 0 && errno == ESRCH)) {
        return PROCESS_GONE;
    }
    now = process_birth(pid);
    if (now == BIRTH_UNKNOWN || process.birth == BIRTH_UNKNOWN) {
        return PROCESS_ALIVE;
    }
    return now == process.birth ? PROCESS_ALIVE : PROCESS_GONE;
}

/* Microseconds that no change of the wall clock touches. */
static apr_uint64_t monotonic_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (apr_uint64_t)now.tv_sec * 1000000u
           + (apr_uint64_t)now.tv_nsec / 1000u + 1;
}

/*
 * The mutex between processes, for what is rare.  Bounded: some mechanisms
 * (posixsem) stay locked for ever when their owner is killed, and a hostile
 * child may simply keep it.
 */
static apr_status_t mutex_lock(void)
{
    apr_uint64_t end = monotonic_now() + MUTEX_WAIT;
    apr_status_t rv;

    if (!self.mutex) {
        return APR_SUCCESS;
    }
    while ((rv = apr_global_mutex_trylock(self.mutex)) != APR_SUCCESS) {
        if (!APR_STATUS_IS_EBUSY(rv)) {
            return rv;
        }
        if (monotonic_now() > end) {
            return APR_TIMEUP;
        }
        apr_sleep(1000);
    }
    return APR_SUCCESS;
}

static void mutex_unlock(void)
{
    if (self.mutex) {
        apr_global_mutex_unlock(self.mutex);
    }
}

/* What slotmem_locks.h wants to know of the world, and what its answers are
 * in this module's words. */

static int locks_lives(slotmem_process_t process)
{
    return process_state(process) == PROCESS_ALIVE;
}

static void locks_nap(unsigned int microseconds)
{
    if (microseconds) {
        apr_sleep((apr_interval_time_t)microseconds);
    }
    else {
        sched_yield();
    }
}

static void locks_died(const slotmem_locks_t *k, slotmem_process_t process,
                       unsigned int torn)
{
    const char *at = (const char *)k - offsetof(ap_slotmem_instance_t, locks);
    const ap_slotmem_instance_t *s = (const void *)at;

    ap_log_error(
        APLOG_MARK, torn ? APLOG_WARNING : APLOG_DEBUG, 0, ap_server_conf,
        "slotmem_shm: process %" APR_PID_T_FMT " died while it wrote "
        "to %s; %u of its slots hold part of that write, and get refuses "
        "them until they are put again, at least as far",
        (pid_t)process.pid, s->name ? s->name : "an anonymous segment", torn);
}

static const slotmem_locks_env_t locks_env = { &self.process, locks_lives,
                                               monotonic_now, locks_nap,
                                               locks_died };

static apr_status_t locks_status(slotmem_locks_result_t result)
{
    switch (result) {
    case SLOTMEM_LOCKS_OK:
        return APR_SUCCESS;
    case SLOTMEM_LOCKS_TORN:
        return APR_EINCOMPLETE;
    case SLOTMEM_LOCKS_TIMEUP:
    case SLOTMEM_LOCKS_BUSY:
        break;
    }
    return APR_TIMEUP;
}

/* ==================== memory ==================== */

/* A fresh segment's header; the magic, by segment_publish, makes it count. */
static void segment_format(ap_slotmem_instance_t *s, int generation,
                           const unsigned char *run,
                           const unsigned char *directory)
{
    struct slotmem_shm_header *h = s->header;

    h->version = SLOTMEM_SHM_VERSION;
    h->type = s->type;
    h->item_size = s->layout.item_size;
    h->item_num = s->layout.item_num;
    h->slots_offset = s->layout.slots_off;
    h->total_size = s->layout.total;
    h->generation = (apr_uint64_t)generation;
    h->pid = self.server.pid;
    h->birth = self.server.birth;
    memcpy(h->run, run, sizeof(h->run));
    memcpy(h->directory, directory, sizeof(h->directory));
}

/* Release: who finds the magic, after a kill or in another child, finds all
 * that was restored before it.  Pairs with the acquire in segment_open. */
static void segment_publish(ap_slotmem_instance_t *s)
{
    atomic_store_explicit((slotmem_word_t *)(void *)&s->header->magic,
                          SLOTMEM_SHM_MAGIC, memory_order_release);
}

/*
 * Lays `s` over the object of that key which a process of this user and of
 * that run has made.  Nothing is mapped before all of that is known, and its
 * pages are there, since its maker saw to that.  APR_EINCOMPLETE: it is being
 * made just now.  Any other error: what lies there is something else.
 */
static apr_status_t segment_open(ap_slotmem_instance_t *s, const char *key,
                                 const unsigned char *run)
{
    struct slotmem_shm_header head = { 0 };
    platform_object_t o;
    apr_status_t rv = platform_object_open(&o, key, geteuid());

    if (rv != APR_SUCCESS) {
        return rv;
    }
    rv = o.size == 0 ? APR_EINCOMPLETE
                     : platform_object_read(&o, o.header, &head, sizeof(head));
    if (rv == APR_SUCCESS
        && !layout_of_header(&head, o.size - o.header, run, &s->layout)) {
        rv = head.magic == 0 ? APR_EINCOMPLETE : APR_EACCES;
    }
    if (rv == APR_SUCCESS) {
        rv = memory_map(&s->memory, &o);
    }
    platform_object_close(&o);
    if (rv == APR_SUCCESS) {
        s->type = head.type;
        segment_lay(s);
        /* Pairs with segment_publish. */
        atomic_thread_fence(memory_order_acquire);
    }
    return rv;
}

/* ==================== registry ==================== */

/*
 * The segments of this process, by the name the caller gave.  The parent
 * fills it while it configures and its children inherit it, so a segment made
 * before they were forked is there in each of them.  It lives in a pool of
 * its own, with its own allocator, touched only under the lock, and without
 * a parent: it ends in a cleanup registered in pre_config, hence after those
 * of every consumer that may still look at its slots.
 */
typedef struct {
    apr_pool_t *pool;
    apr_hash_t *by_name;
    ap_slotmem_instance_t *first, *last;
    unsigned int count;
    int config;     /* which configuration of the process, AP_SQ_CONFIG_GEN */
    int generation; /* that keys bear */
    int by_run;     /* keys of this generation bear the run's identity   */
    pid_t looked;   /* the process that has looked at the directory      */
    int arrived;    /* the first generation of this server               */
    int remains;    /* and there may be what another one left            */
    int littered;   /* the directory has files that are to be removed   */
#if APR_HAS_THREADS
    apr_thread_mutex_t *lock;
#endif
} registry_t;

static registry_t *registry; /* NULL: configuration has not begun */

static void registry_lock(void)
{
#if APR_HAS_THREADS
    apr_thread_mutex_lock(registry->lock);
#endif
}

static void registry_unlock(void)
{
#if APR_HAS_THREADS
    apr_thread_mutex_unlock(registry->lock);
#endif
}

static apr_status_t registry_lock_make(void)
{
#if APR_HAS_THREADS
    return apr_thread_mutex_create(&registry->lock, APR_THREAD_MUTEX_DEFAULT,
                                   registry->pool);
#else
    return APR_SUCCESS;
#endif
}

static apr_status_t registry_open(void)
{
    apr_allocator_t *allocator;
    apr_pool_t *pool;
    apr_status_t rv = apr_allocator_create(&allocator);

    if (rv != APR_SUCCESS) {
        return rv;
    }
    rv = apr_pool_create_unmanaged_ex(&pool, NULL, allocator);
    if (rv != APR_SUCCESS) {
        apr_allocator_destroy(allocator);
        return rv;
    }
    apr_allocator_owner_set(allocator, pool);
    apr_pool_tag(pool, "slotmem_shm");
    registry = apr_pcalloc(pool, sizeof(*registry));
    registry->pool = pool;
    registry->by_name = apr_hash_make(pool);
    registry->config = ap_state_query(AP_SQ_CONFIG_GEN);
    return registry_lock_make();
}

/* Ends a registry, this generation's or the one before. */
static void registry_close(registry_t *r)
{
    ap_slotmem_instance_t *s;

    for (s = r->first; s; s = s->next) {
        memory_unmap(&s->memory);
    }
    apr_pool_destroy(r->pool);
}

static ap_slotmem_instance_t *registry_find(const registry_t *r,
                                            const char *name)
{
    return apr_hash_get(r->by_name, name, APR_HASH_KEY_STRING);
}

static void registry_add(ap_slotmem_instance_t *s)
{
    if (s->name) {
        apr_hash_set(registry->by_name, s->name, APR_HASH_KEY_STRING, s);
    }
    if (registry->last) {
        registry->last->next = s;
    }
    else {
        registry->first = s;
    }
    registry->last = s;
    registry->count++;
}

/* A child that asks in vain, again and again, must not fill the registry's
 * pool: what a call needs for itself is in a pool of its own. */
static apr_pool_t *scratch_pool(void)
{
    apr_pool_t *p = NULL;

    apr_pool_create(&p, registry->pool);
    return p;
}

/* ==================== slot claims ==================== */

/*
 * Which slots the configuration has, in the parent's private memory, so that
 * nothing a child writes makes a slot one of the configuration's.  Why, and
 * what an inherited segment looks like until every module has configured, is
 * in slotmem_search.h.
 */

static int claims_matter(const ap_slotmem_instance_t *s)
{
    const ap_slotmem_type_t both =
        AP_SLOTMEM_TYPE_PERSIST | AP_SLOTMEM_TYPE_CLEARINUSE;

    return s->name && (s->type & both) == both && s->layout.item_num;
}

static void claims_make(ap_slotmem_instance_t *s)
{
    if (!s->claims) {
        s->claims = bits_make(s->layout.item_num, registry->pool);
    }
}

RARELY void claim_put(ap_slotmem_instance_t *s, unsigned int id, int on)
{
    if (claims_matter(s)) {
        claims_make(s);
        slotmem_set_put(s->claims, id, on);
    }
}

static void claim_note(ap_slotmem_instance_t *s, unsigned int id, int on)
{
    if (self.role == ROLE_CONFIGURING) {
        claim_put(s, id, on);
    }
}

/* The lowest free slot that holds nothing: so long as there is one, nobody
 * gets a slot whose content somebody may still look for. */
static int zero_grab(ap_slotmem_instance_t *s, unsigned int *id)
{
    unsigned int i;

    for (i = 0; i < s->layout.item_num; i++) {
        if (!slotmem_table_used(&s->table, i)
            && slotmem_all_zero(slot_at(s, i), s->layout.item_size)
            && slotmem_table_fgrab(&s->table, i)) {
            *id = i;
            return 1;
        }
    }
    return 0;
}

/* ==================== store ==================== */

/*
 * The files that hold segments: which of them are to be written, what becomes
 * of those that are there, and how they get in their place all together.
 * slotmem_store.h makes the image, slotmem_image.h reads it.
 */
static apr_status_t segment_image(image_t *i, const ap_slotmem_instance_t *s,
                                  sink_t *k)
{
    const image_source_t of = { .layout = &s->layout,
                                .type = s->type,
                                .cleared =
                                    (s->type & AP_SLOTMEM_TYPE_CLEARINUSE) != 0,
                                .unlocked =
                                    (s->type & AP_SLOTMEM_TYPE_NOTMPSAFE) != 0,
                                .with_kinds = claims_matter(s),
                                .claims = s->claims,
                                .table = &s->table,
                                .locks = &s->locks,
                                .slots = (const slotmem_byte_t *)s->slots };

    return image_begin(i, &of, k);
}

/*
 * Is the image so much larger than the segment's own that reading it is out
 * of proportion?  Whoever owns the directory can make a file of a terabyte
 * that takes no disk and ends in a descriptor; to hash it, if only to say what
 * is wrong with it, would hold the parent up for an hour.  No configuration
 * shrinks that much.
 */
#define IMAGE_LARGE ((apr_uint64_t)64 * 1024 * 1024)
#define IMAGE_RATIO 16

static int image_is_huge(const ap_slotmem_instance_t *s,
                         const slotmem_image_t *image)
{
    return image->size > IMAGE_LARGE
           && image->size / IMAGE_RATIO > slotmem_shm_file_size(
                  s->layout.item_size, s->layout.item_num);
}

/* May that be a whole image of anything?  Then nothing is put in its place. */
static int file_is_good(const ap_slotmem_instance_t *s, const char *path,
                        apr_pool_t *p)
{
    slotmem_image_source_t source = { -1, NULL, 0 };
    slotmem_image_t image[SLOTMEM_IMAGE_MAX];
    apr_os_file_t fd = -1;
    apr_file_t *file = NULL;
    struct stat st;
    apr_status_t rv = stored_open(&file, path, &st, ap_unixd_config.user_id, p);
    int found;

    if (rv != APR_SUCCESS) {
        return !APR_STATUS_IS_ENOENT(rv) && rv != APR_EINVAL;
    }
    apr_os_file_get(&fd, file);
    source.fd = fd;
    source.size = (apr_uint64_t)st.st_size;
    found = slotmem_image_find(&source, NULL, image);
    if (found > 0 && !image_is_huge(s, image)
        && slotmem_image_read(&source, image, NULL, NULL, NULL)
               == SLOTMEM_IMAGE_DAMAGED) {
        found = 0;
    }
    apr_file_close(file);
    return found != 0;
}

/* The file cannot be used: it is put aside, so that a person can look at it
 * and no store replaces it.  In place of one that was put aside before, but
 * never of one that is whole. */
static void store_put_aside(const ap_slotmem_instance_t *s, const char *why,
                            const char *then, apr_status_t rv, apr_pool_t *p)
{
    const char *aside = name_beside(p, s->store, ".rejected");
    apr_status_t moved;

    if (file_is_good(s, aside, p)) {
        aside = name_beside(p, s->store, ".rejected.2");
    }
    moved = apr_file_rename(s->store, aside, p);
    if (moved == APR_SUCCESS) {
        ap_log_error(APLOG_MARK, APLOG_WARNING, rv, ap_server_conf,
                     APLOGNO(02551) "slotmem_shm: %s: %s; %s, and "
                                    "the file is kept as %s",
                     s->store, why, then, aside);
    }
    else {
        ap_log_error(
            APLOG_MARK, APLOG_ERR, moved, ap_server_conf,
            APLOGNO(
                02554) "slotmem_shm: %s: %s; %s, and "
                       "the file could not be kept as %s: the next store will "
                       "replace it",
            s->store, why, then, aside);
    }
}

/*
 * The segment notes which file holds it, and when that was last seen to be so
 * (for people): marks[0] is the file that was put in place last, marks[1] one
 * that is about to be.  Both are noted before the rename, so that after a kill
 * at any moment the file there is one of the two.
 */
typedef struct {
    ap_slotmem_instance_t *s;
    apr_uint64_t mark;     /* of the file about to be put in place; 0: none */
    apr_uint64_t there;    /* of the file in place now; 0: none             */
    int seen;              /* it has been seen to be stored, just now       */
    apr_uint64_t marks[2]; /* as they are now                               */
    apr_uint64_t stored;   /* when, as that is now                          */
} note_t;

static apr_status_t note_unguarded(void *ctx)
{
    note_t *n = ctx;
    struct slotmem_shm_header *h = n->s->header;

    if (n->mark && n->mark != h->marks[1]) {
        /* The file noted last may never have been put in place. */
        if (!n->there || h->marks[0] != n->there) {
            h->marks[0] = h->marks[1];
        }
        h->marks[1] = n->mark;
    }
    if (n->seen) {
        h->stored = (apr_uint64_t)apr_time_now();
    }
    return APR_SUCCESS;
}

static void note_make(ap_slotmem_instance_t *s, const struct stat *st,
                      const struct stat *there, int seen)
{
    note_t n = { .s = s,
                 .mark = st ? file_mark(st) : 0,
                 .there = there ? file_mark(there) : 0,
                 .seen = seen };

    s->mark = n.mark ? n.mark : s->mark;
    (void)guarded(note_unguarded, &n);
}

/* It is stored, in that file; NULL: in the one that is noted. */
static void stored_note(ap_slotmem_instance_t *s, const struct stat *st)
{
    note_make(s, st, NULL, 1);
}

static apr_status_t note_forget_unguarded(void *ctx)
{
    struct slotmem_shm_header *h = ((note_t *)ctx)->s->header;

    h->marks[0] = h->marks[1] = h->stored = 0;
    return APR_SUCCESS;
}

/* No file holds it any more, and that is not to mean anything. */
static void stored_forget(ap_slotmem_instance_t *s)
{
    note_t n = { .s = s };

    (void)guarded(note_forget_unguarded, &n);
}

static apr_status_t note_read_unguarded(void *ctx)
{
    note_t *n = ctx;

    n->marks[0] = n->s->header->marks[0];
    n->marks[1] = n->s->header->marks[1];
    n->stored = n->s->header->stored;
    return APR_SUCCESS;
}

/* Is that file one which this segment was stored in?  -1: its memory cannot be
 * read.  *stored: it was in some file. */
static int note_has(ap_slotmem_instance_t *s, const struct stat *st,
                    int *stored)
{
    note_t n = { .s = s };

    if (guarded(note_read_unguarded, &n) != APR_SUCCESS) {
        return -1;
    }
    /* Announced alone, the file may never have come; and after stored_forget
     * the helper may tell once more of the file that is gone. */
    *stored = n.stored && (n.marks[0] || n.marks[1]);
    return st && (n.marks[0] == file_mark(st) || n.marks[1] == file_mark(st));
}

/* Does the file hold just what memory holds, and is it for nobody else to
 * read? */
static int image_is_stored(ap_slotmem_instance_t *s, image_t *i, apr_pool_t *p)
{
    apr_file_t *file = NULL;
    struct stat st = { 0 };
    int same;

    if (stored_open(&file, s->store, &st, ap_unixd_config.user_id, p)
        != APR_SUCCESS) {
        return 0;
    }
    same = !(st.st_mode & 0077)
           && image_is_in(i, file, (apr_uint64_t)st.st_size, s->digest);
    if (same) {
        s->has_digest = 1;
        stored_note(s, &st);
    }
    apr_file_close(file);
    return same;
}

/* For what the files are written: it says how far a store goes, and what its
 * new files are called.  Two roles never write the same new file. */
enum store_mode {
    STORE_STOP,      /* flushed, all together                              */
    STORE_RESTART,   /* not flushed: no restart waits for a disk; the next
                        generation's helper flushes (checkpoint)           */
    STORE_CHECKPOINT /* flushed, by the helper                             */
};

/*
 * What a restart puts in place is not flushed, and where a file system does not
 * order a rename after the bytes, a power cut leaves the name with nothing
 * behind it.  So the file of before, which is flushed, keeps a second name
 * until the new one is flushed, too.  That name says that the file is not yet:
 * it is there, empty, where there was no file before, or no links are to be
 * had.
 */
#define STORE_BEFORE ".before"

/* By the mode, then that; of what is looked for in the runtime directory. */
static const char *const store_suffix[] = { ".new", ".new", ".checkpoint",
                                            STORE_BEFORE, NULL };

/* A file written and not yet renamed. */
typedef struct {
    ap_slotmem_instance_t *s;
    apr_file_t *file; /* to be flushed; NULL: with its file system */
} pending_t;

/* A directory of stored files, opened before anything is written there, so
 * that a flush of its file system tells of every error since. */
typedef struct store_dir_t {
    const char *path;
    int fd;
    dev_t dev;
    struct store_dir_t *next;
} store_dir_t;

/*
 * A rename must not reach the disk before the bytes, so each file is flushed
 * first.  Thousands of flushes in a row take longer than whoever waits for a
 * stop is patient (a stop that takes too long ends in a kill), so from
 * STORE_SINGLY files on all are flushed in one call that covers their file
 * system, renamed, and then each directory is flushed once.
 */
#define STORE_SINGLY 16

typedef struct {
    enum store_mode mode;
    apr_pool_t *pool;
    sink_t sink;
    apr_array_header_t *pending; /* of pending_t                      */
    store_dir_t *dirs;
    int written, unchanged, failed;
    apr_uint64_t bytes;
    apr_status_t error; /* the first, with what it was about          */
    const char *what, *path;
} store_t;

static void store_failed(store_t *st, apr_status_t rv, ap_slotmem_instance_t *s,
                         const char *what)
{
    s->has_digest = 0;
    if (st->failed++ == 0) {
        st->error = rv;
        st->what = what;
        st->path = s->store;
    }
}

static const char *store_path(const store_t *st, const ap_slotmem_instance_t *s)
{
    return name_beside(st->pool, s->store, store_suffix[st->mode]);
}

static store_dir_t *store_dir(store_t *st, const ap_slotmem_instance_t *s)
{
    const char *path = name_directory(st->pool, s->store);
    store_dir_t *dir = st->dirs;
    struct stat info;

    while (dir && strcmp(dir->path, path) != 0) {
        dir = dir->next;
    }
    if (!dir) {
        dir = apr_pcalloc(st->pool, sizeof(*dir));
        dir->path = path;
        dir->next = st->dirs;
        st->dirs = dir;
        dir->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (dir->fd >= 0 && fstat(dir->fd, &info) == 0) {
            dir->dev = info.st_dev;
        }
    }
    return dir;
}

/* Flushes every file system that has a file of the batch; which of them
 * failed is noted by closing its directories' descriptors. */
static void store_flush_systems(store_t *st)
{
    store_dir_t *dir, *seen;

    for (dir = st->dirs; dir; dir = dir->next) {
        seen = st->dirs;
        while (seen != dir && (seen->dev != dir->dev || seen->fd < 0)) {
            seen = seen->next;
        }
        if (seen == dir && dir->fd >= 0
            && platform_flush_system(dir->fd) != 0) {
            close(dir->fd);
            dir->fd = -1;
        }
    }
}

static apr_status_t store_flush_one(store_t *st, const pending_t *one)
{
    apr_status_t rv = APR_SUCCESS, closed;
    apr_os_file_t fd;

    if (!one->file) { /* done, if that succeeded */
        return st->mode == STORE_RESTART || store_dir(st, one->s)->fd >= 0
                   ? APR_SUCCESS
                   : EIO;
    }
    apr_os_file_get(&fd, one->file);
    rv = platform_flush(fd);
    closed = apr_file_close(one->file);
    return rv == APR_SUCCESS ? closed : rv;
}

/*
 * Somebody may have put a file there since the segment was last stored, an
 * administrator a backup for example.  If it is a whole one it is kept aside.
 * What this process has stored itself it knows without the segment's note:
 * a child that spoils that would have a file put aside every second.
 */
static void store_spare_foreign(ap_slotmem_instance_t *s, apr_pool_t *p)
{
    struct stat info;
    int stored;

    if (lstat(s->store, &info) == 0 && s->mark != file_mark(&info)
        && note_has(s, &info, &stored) == 0 && file_is_good(s, s->store, p)) {
        store_put_aside(s, "it was put there while the server ran",
                        "the state of the running server takes its place", 0,
                        p);
    }
}

static void store_keep_before(store_t *st, const ap_slotmem_instance_t *s)
{
    const char *before = name_beside(st->pool, s->store, STORE_BEFORE);
    int fd;

    /* One that is there is older, and flushed: the file is not. */
    if (link(s->store, before) != 0 && errno != EEXIST) {
        fd = open(before, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd >= 0) {
            close(fd);
        }
    }
}

static apr_status_t store_rename(store_t *st, ap_slotmem_instance_t *s,
                                 const char *path)
{
    struct stat info, there;
    apr_status_t rv;

    if (lstat(path, &info) != 0) {
        return errno;
    }
    store_spare_foreign(s, st->pool);
    note_make(s, &info, lstat(s->store, &there) == 0 ? &there : NULL, 0);
    if (st->mode == STORE_RESTART) {
        store_keep_before(st, s);
    }
    rv = apr_file_rename(path, s->store, st->pool);
    if (rv == APR_SUCCESS) {
        stored_note(s, NULL);
        if (st->mode != STORE_RESTART) {
            unlink(name_beside(st->pool, s->store, STORE_BEFORE));
        }
    }
    return rv;
}

static apr_status_t store_flush_file(const char *path)
{
    const int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    apr_status_t rv = fd < 0 ? errno : platform_flush(fd);

    if (fd >= 0) {
        close(fd);
    }
    return rv;
}

/* Flushes what the last restart has put in place. */
static void store_flush_late(store_t *st)
{
    apr_array_header_t *late =
        apr_array_make(st->pool, 16, sizeof(ap_slotmem_instance_t *));
    ap_slotmem_instance_t *s;
    int i;

    for (s = registry->first; s; s = s->next) {
        struct stat info;

        if (s->store
            && lstat(name_beside(st->pool, s->store, STORE_BEFORE), &info)
                   == 0) {
            APR_ARRAY_PUSH(late, ap_slotmem_instance_t *) = s;
            (void)store_dir(st, s);
        }
    }
    if (PLATFORM_FLUSHES_SYSTEMS && late->nelts) {
        store_flush_systems(st);
    }
    for (i = 0; i < late->nelts; i++) {
        s = APR_ARRAY_IDX(late, i, ap_slotmem_instance_t *);
        if ((PLATFORM_FLUSHES_SYSTEMS && store_dir(st, s)->fd >= 0)
            || store_flush_file(s->store) == APR_SUCCESS) {
            unlink(name_beside(st->pool, s->store, STORE_BEFORE));
        }
    }
}

/* A power cut has left the file without its bytes: the one of before takes its
 * place.  0: there is none. */
static int store_go_back(const ap_slotmem_instance_t *s, apr_pool_t *p)
{
    const char *before = name_beside(p, s->store, STORE_BEFORE);
    struct stat info;

    if (lstat(before, &info) != 0 || info.st_size == 0
        || rename(before, s->store) != 0) {
        return 0;
    }
    ap_log_error(APLOG_MARK, APLOG_WARNING, 0, ap_server_conf,
                 APLOGNO(02551) "slotmem_shm: %s: it is cut short or damaged, "
                                "as a power cut right after a restart leaves "
                                "it; %s goes on with the file of before",
                 s->store, s->name);
    return 1;
}

/* Puts all files that have been written in their places. */
static void store_commit(store_t *st)
{
    store_dir_t *dir;
    int i;

    if (st->mode != STORE_RESTART && PLATFORM_FLUSHES_SYSTEMS
        && st->pending->nelts > STORE_SINGLY) {
        store_flush_systems(st);
    }
    for (i = 0; i < st->pending->nelts; i++) {
        const pending_t *one = &APR_ARRAY_IDX(st->pending, i, pending_t);
        const char *path = store_path(st, one->s);
        const char *what = "flushing";
        apr_status_t rv = store_flush_one(st, one);

        if (rv == APR_SUCCESS) {
            what = "renaming";
            rv = store_rename(st, one->s, path);
        }
        if (rv != APR_SUCCESS) {
            store_failed(st, rv, one->s, what);
            unlink(path);
            continue;
        }
        one->s->has_digest = 1;
        st->written++;
    }
    apr_array_clear(st->pending);
    /* A renamed file is safe once its directory has been flushed too.  Not
     * every file system can, and then there is nothing better to be had. */
    for (dir = st->dirs; dir; dir = dir->next) {
        if (dir->fd >= 0) {
            if (st->mode != STORE_RESTART && st->written) {
                (void)platform_flush(dir->fd);
            }
            close(dir->fd);
        }
    }
    st->dirs = NULL;
}

/* A new file of our own: a link or a leftover of that name is removed, never
 * followed or written to.  When there are no descriptors left, what has been
 * written so far is put in place first. */
static apr_status_t store_open(store_t *st, apr_file_t **file,
                               const ap_slotmem_instance_t *s)
{
    const apr_int32_t flags =
        APR_FOPEN_WRITE | APR_FOPEN_CREATE | APR_FOPEN_EXCL;
    const apr_fileperms_t mode = APR_FPROT_UREAD | APR_FPROT_UWRITE;
    const char *path = store_path(st, s);
    apr_status_t rv = apr_file_open(file, path, flags, mode, st->pool);

    if (APR_STATUS_IS_EEXIST(rv)) {
        unlink(path);
        rv = apr_file_open(file, path, flags, mode, st->pool);
    }
    if (APR_STATUS_IS_EMFILE(rv) && st->pending->nelts) {
        store_commit(st);
        rv = apr_file_open(file, path, flags, mode, st->pool);
    }
    return rv;
}

/* The file is written: what is left to be done with it, at the commit. */
static apr_status_t store_pend(store_t *st, ap_slotmem_instance_t *s,
                               apr_file_t *file)
{
    const int singly =
        st->mode != STORE_RESTART
        && (!PLATFORM_FLUSHES_SYSTEMS || st->pending->nelts < STORE_SINGLY
            || store_dir(st, s)->fd < 0);
    pending_t *one;
    apr_status_t rv;

    if (!singly && (rv = apr_file_close(file)) != APR_SUCCESS) {
        return rv;
    }
    one = apr_array_push(st->pending);
    one->s = s;
    one->file = singly ? file : NULL;
    return APR_SUCCESS;
}

/* Is there nothing new to be written?  The helper knows what it has stored;
 * the parent looks at the file. */
static int store_is_needless(store_t *st, ap_slotmem_instance_t *s,
                             image_t *image)
{
    if (st->mode == STORE_CHECKPOINT && s->has_digest) {
        return image_bears(image, s->digest);
    }
    return image_is_stored(s, image, st->pool);
}

/* Writes the new file of a segment, for store_commit to put in its place. */
static void store_segment(store_t *st, ap_slotmem_instance_t *s)
{
    image_t image;
    apr_file_t *file = NULL;
    const char *what = "reading memory for";
    apr_status_t rv = segment_image(&image, s, &st->sink);

    if (rv == APR_SUCCESS && store_is_needless(st, s, &image)) {
        st->unchanged++;
        stored_note(s, NULL);
        image_end(&image);
        return;
    }
    if (rv == APR_SUCCESS) {
        ap_log_error(APLOG_MARK, APLOG_TRACE1, 0, ap_server_conf,
                     APLOGNO(02334) "storing %s", s->store);
        what = "creating";
        (void)store_dir(st, s);
        rv = store_open(st, &file, s);
    }
    if (rv == APR_SUCCESS) {
        rv = image_write(&image, file, s->digest);
        what = rv == APR_ENOMEM ? "reading memory for" : "writing";
        if (rv == APR_SUCCESS) {
            what = "closing";
            rv = store_pend(st, s, file);
        }
        else {
            apr_file_close(file);
        }
        if (rv != APR_SUCCESS) {
            unlink(store_path(st, s));
        }
    }
    if (rv == APR_SUCCESS) {
        st->bytes +=
            slotmem_shm_file_size(s->layout.item_size, s->layout.item_num);
    }
    else {
        store_failed(st, rv, s, what);
    }
    image_end(&image);
}

/* A pool without parent, for a forked child must not touch those it got. */
static apr_status_t store_begin(store_t *st, enum store_mode mode)
{
    apr_status_t rv;

    memset(st, 0, sizeof(*st));
    st->mode = mode;
    st->sink.buffer = malloc((apr_size_t)2 * SINK_SIZE);
    if (!st->sink.buffer) {
        return APR_ENOMEM;
    }
    st->sink.other = st->sink.buffer + SINK_SIZE;
    st->sink.patience = SLOTMEM_SNAPSHOT_TRIES;
    rv = apr_pool_create_unmanaged_ex(&st->pool, NULL, NULL);
    if (rv != APR_SUCCESS) {
        free(st->sink.buffer);
        return rv;
    }
    st->pending = apr_array_make(st->pool, 64, sizeof(pending_t));
    return APR_SUCCESS;
}

/*
 * Storing fails, or works again: said once, by whoever sees the change first,
 * the parent or its helper.  `*failing` is theirs together.
 */
static void store_tell(const store_t *st, volatile apr_uint32_t *failing)
{
    if (st->failed && !*failing) {
        ap_log_error(
            APLOG_MARK, APLOG_ERR, st->error, ap_server_conf,
            APLOGNO(02334) "slotmem_shm: cannot store %s: %s its new file "
                           "failed (%d segments could not be stored). The "
                           "files keep what they held before, and the state "
                           "lives on in memory, over restarts too. Check that "
                           "the directory exists, that the parent process may "
                           "write to it, and that its disk has room; it is "
                           "tried again and again, and said when it works",
            st->path, st->what, st->failed);
    }
    else if (!st->failed && *failing) {
        ap_log_error(APLOG_MARK, APLOG_NOTICE, 0, ap_server_conf,
                     "slotmem_shm: storing works again");
    }
    *failing = st->failed != 0;
}

static void store_end(store_t *st, volatile apr_uint32_t *failing)
{
    store_commit(st);
    store_tell(st, failing);
    ap_log_error(APLOG_MARK, APLOG_DEBUG, 0, ap_server_conf,
                 "slotmem_shm: stored %d segments, %d unchanged, %d failed",
                 st->written, st->unchanged, st->failed);
    apr_pool_destroy(st->pool);
    free(st->sink.buffer);
}

static apr_status_t touched_unguarded(void *ctx)
{
    const ap_slotmem_instance_t *s = ctx;

    return slotmem_table_count(&s->table) == 0
                   && slotmem_all_zero(s->slots, s->layout.slots_len)
               ? APR_SUCCESS
               : APR_EINVAL;
}

/* Has somebody put anything into it? */
static int is_touched(ap_slotmem_instance_t *s)
{
    return guarded(touched_unguarded, s) != APR_SUCCESS;
}

/* Is the segment to be stored?  One whose file could not be read, and may be
 * good, leaves that in place for as long as it runs; at the end of the
 * generation what it has got since counts, too (store_spare_foreign). */
static int is_stored(ap_slotmem_instance_t *s, enum store_mode mode)
{
    return s->store
           && (s->origin != ORIGIN_UNREADABLE
               || (mode != STORE_CHECKPOINT && is_touched(s)));
}

/* Does a segment of this process have a file? */
static int store_is_wanted(void)
{
    const ap_slotmem_instance_t *s;

    for (s = registry->first; s; s = s->next) {
        if (s->store) {
            return 1;
        }
    }
    return 0;
}

/* Stores every segment that is to be; *st says what became of it. */
static apr_status_t store_all(store_t *st, enum store_mode mode,
                              volatile apr_uint32_t *failing)
{
    ap_slotmem_instance_t *s;
    apr_status_t rv = store_begin(st, mode);

    if (rv != APR_SUCCESS) {
        ap_log_error(
            APLOG_MARK, APLOG_ERR, rv, ap_server_conf,
            APLOGNO(02334) "slotmem_shm: no memory to store segments with; the "
                           "stored files keep what they held before");
        return rv;
    }
    if (mode == STORE_STOP) {
        store_flush_late(st); /* the helper may not have come to it */
    }
    for (s = registry->first; s; s = s->next) {
        if (is_stored(s, mode)) {
            store_segment(st, s);
        }
    }
    store_end(st, failing);
    return st->failed ? APR_EGENERAL : APR_SUCCESS;
}

/* ==================== runtime directory ==================== */

/*
 * What this server is to its runtime directory is one value, moved by one
 * function, runtime_look, at every start, stop, restart and monitor round.
 * Everything else asks runtime_may_write().
 *
 *     OWNER     we hold the lock on the marker, on the very file that its
 *               path names.  Files are read and written, segments listed.
 *     HEIR      another httpd holds it: one that is stopping gracefully, or
 *               that shares the directory by mistake.  What it has is read,
 *               from its memory or its files, but never written; our segments
 *               are named by our run, so that children share them.  When the
 *               lock can be had the heir becomes owner, and stores what it
 *               has.
 *     UNLISTED  the marker cannot be used (a read-only directory, a file
 *               system without locks).  Files as far as the directory lets
 *               us; what killed runs left is known by its header alone.
 *
 * Named shared memory outlives processes that are killed.  The marker, a file
 * in the runtime directory, lists it (slotmem_marker.h): a line is written
 * before the segment is made, and all of them anew when every module has
 * configured.
 *
 * Two starts at once: one may lock a file that the other has just unlinked,
 * so after locking the path is looked at again, and it has to name the locked
 * file.
 *
 * Who finds the marker unlocked finds the segments of a run that was killed.
 * Geometry and names come from the marker, which only the parent's user can
 * write; the segment itself must bear the run's identity in a header that
 * fits, else it is not believed.
 */
/* For the log and the status page of every process, not for any decision: the
 * children can write it. */
typedef struct {
    volatile apr_uint32_t failing; /* storing, by the parent or its helper */
    volatile apr_uint32_t state;   /* enum runtime_state of the parent     */
} told_t;

/*
 * What outlives a restart, which unloads this module and loads it again, or
 * another version of it.  The key of this bears the version of the struct, so
 * no other version takes it for its own; it finds what this one stored.
 */
typedef struct {
    enum runtime_state state;
    pid_t pid;  /* that found it so                             */
    int marker; /* descriptor, open while we own the directory  */
    char path[APR_PATH_MAX];
    unsigned char run[SLOTMEM_SHM_RUN_LEN];
    unsigned char directory[16]; /* its identity, for headers                */
    registry_t *former;          /* segments of the last generation, or NULL */
    pid_t helper;                /* a checkpoint process; 0: none            */
    int doubtful;                /* others could write the marker we found   */
    told_t *told;                /* shared with all that this process forks  */
} retained_t;

#define RETAINED_KEY "mod_slotmem_shm 3"

static retained_t *retained;

/* A segment of a run that was killed, or of one that still goes on. */
typedef struct {
    const char *name;
    const char *key;
    unsigned char run[SLOTMEM_SHM_RUN_LEN];
    ap_slotmem_instance_t *s; /* laid over its memory; NULL: not mapped */
} orphan_t;

/* In the registry's pool, until every module has configured. */
static struct {
    apr_hash_t *by_key;  /* all that the marker lists, NULL: none          */
    apr_hash_t *by_name; /* those that are mapped, the latest of each name */
    int unseen;          /* a persisted one is listed, and not mapped      */
} orphans;

static int runtime_may_write(void)
{
    return retained->state != RUNTIME_HEIR;
}

/* -- the marker -- */

static void marker_failed(apr_status_t rv)
{
    ap_log_error(APLOG_MARK, APLOG_WARNING, rv, ap_server_conf,
                 "slotmem_shm: cannot write %s: after a kill, state is taken "
                 "from the stored files instead of from memory. Has the disk "
                 "of the runtime directory room?",
                 retained->path);
}

/* Who this run is, as a line of the marker. */
static void marker_add_run(marker_text_t *t)
{
    marker_text_run(t, retained->run, getpid(), self.server.birth);
}

static void marker_add_segment(marker_text_t *t, const ap_slotmem_instance_t *s)
{
    marker_line_t line = { { 0 },
                           (unsigned int)registry->generation,
                           s->by_run,
                           s->type,
                           s->layout.item_size,
                           s->layout.item_num,
                           s->name,
                           NULL };

    marker_text_segment(t, &line, s->claims);
}

static void marker_put(const marker_text_t *t, off_t at)
{
    if (t->bytes
        && pwrite(retained->marker, t->bytes, t->len, at) != (ssize_t)t->len) {
        marker_failed(errno);
    }
}

/* A segment is about to be made: from now on it is listed. */
static void marker_add(const ap_slotmem_instance_t *s)
{
    marker_text_t t = { 0 };

    if (retained->state == RUNTIME_OWNER) {
        marker_add_segment(&t, s);
        marker_put(&t, lseek(retained->marker, 0, SEEK_END));
        free(t.bytes);
    }
}

/*
 * Writes the whole list anew, of what there is in this process.  From the
 * start, and shortened afterwards: a kill in between leaves the new list, with
 * the rest of the old one behind it.
 */
static void marker_write(void)
{
    const ap_slotmem_instance_t *s;
    marker_text_t t = { 0 };

    if (retained->state != RUNTIME_OWNER) {
        return;
    }
    marker_text_add(&t, MARKER_TITLE);
    marker_add_run(&t);
    for (s = registry ? registry->first : NULL; s; s = s->next) {
        if (s->key) {
            marker_add_segment(&t, s);
        }
    }
    marker_put(&t, 0);
    if (ftruncate(retained->marker, (off_t)t.len) != 0) {
        marker_failed(errno);
    }
    free(t.bytes);
}

static void marker_close(void)
{
    if (retained->marker >= 0) {
        close(retained->marker);
        retained->marker = -1;
    }
}

/*
 * Opens and locks the file that the path names.  One that others could write
 * (a volume's fsGroup gives them the right) or that has a second name is
 * replaced by a new one with the same text: the segments that it lists have
 * to be this user's and to bear their run's identity in any case.
 */
static apr_status_t marker_take(const char *path, pid_t *holder)
{
    apr_status_t rv = APR_EACCES;
    char *text = NULL;
    struct stat st;
    int fd, tries;

    for (tries = 0; tries < 10 && retained->marker < 0; tries++) {
        rv = marker_open(path, &fd);
        if (rv != APR_SUCCESS) {
            break;
        }
        rv = marker_lock(fd, holder);
        if (rv == APR_SUCCESS && marker_is_named(fd, path, &st)) {
            if (marker_is_private(&st)) {
                retained->marker = fd;
                break;
            }
            retained->doubtful |= (st.st_mode & 0022) != 0;
            free(text);
            text = marker_read(fd);
            unlink(path);
        }
        close(fd);
        if (rv == EBUSY && *holder && *holder == retained->pid) {
            /* Ourselves, before the server detached, about to end. */
            apr_sleep(apr_time_from_msec(50));
        }
        else if (rv != APR_SUCCESS) {
            break;
        }
        rv = APR_EACCES;
    }
    if (text && retained->marker >= 0 && st.st_size == 0) {
        const marker_text_t same = { text, strlen(text), 0 };

        marker_put(&same, 0);
    }
    free(text);
    return rv;
}

/* Who we are, in the headers of our segments and to those of killed runs: the
 * directory by its number, too, since several containers may share their
 * memory and call their directories alike. */
static void runtime_begin(const char *path)
{
    struct {
        dev_t dev;
        ino_t ino;
        char path[APR_PATH_MAX];
    } id;
    struct stat st;
    apr_pool_t *p = scratch_pool();

    memset(&id, 0, sizeof(id));
    if (path && stat(name_directory(p, path), &st) == 0) {
        id.dev = st.st_dev;
        id.ino = st.st_ino;
    }
    apr_cpystrn(id.path, path ? path : "", sizeof(id.path));
    apr_md5(retained->directory, &id, sizeof(id));
    apr_generate_random_bytes(retained->run, sizeof(retained->run));
    apr_pool_destroy(p);
}

static void runtime_log(enum runtime_state before, apr_status_t rv,
                        pid_t holder)
{
    if (retained->state == RUNTIME_HEIR) {
        ap_log_error(APLOG_MARK, APLOG_WARNING, 0, ap_server_conf,
                     "slotmem_shm: another httpd (process %" APR_PID_T_FMT
                     "%s) uses this runtime directory (%s is locked). This one "
                     "begins with what that one has, and leaves its memory and "
                     "files alone: nothing is stored here before it has ended. "
                     "If it is not about to, give each server a "
                     "DefaultRuntimeDir of its own",
                     holder, holder ? "" : ", in another container",
                     retained->path);
    }
    else if (retained->state == RUNTIME_UNLISTED) {
        ap_log_error(APLOG_MARK, APLOG_WARNING, rv, ap_server_conf,
                     "slotmem_shm: cannot use %s; after a kill, state is taken "
                     "from the stored files instead of from memory. Check "
                     "owner and permissions of the runtime directory, and "
                     "whether its file system has locks",
                     retained->path);
    }
    else if (before == RUNTIME_HEIR || before == RUNTIME_UNLISTED) {
        ap_log_error(APLOG_MARK, APLOG_NOTICE, 0, ap_server_conf,
                     "slotmem_shm: the runtime directory is ours now (%s)",
                     retained->path);
    }
}

/* The only place where the state changes; *before is what it was.  1 if the
 * marker is another file than at the last look: nothing is listed in it. */
static int runtime_look(enum runtime_state *before)
{
    apr_pool_t *p = scratch_pool();
    const char *path = ap_runtime_dir_relative(p, MARKER_NAME);
    apr_status_t rv = APR_SUCCESS;
    pid_t holder = 0;
    struct stat st;
    int fresh;

    *before = retained->state;
    if (retained->pid != getpid() || !path
        || strcmp(path, retained->path) != 0) {
        /* A new server, one that has just detached, or one whose
         * DefaultRuntimeDir has changed. */
        if (retained->state == RUNTIME_OWNER && retained->pid == getpid()) {
            unlink(retained->path);
        }
        marker_close();
        *before = RUNTIME_UNKNOWN;
        runtime_begin(path);
    }
    if (retained->marker >= 0
        && (!path || !marker_is_named(retained->marker, path, &st)
            || !marker_is_private(&st)
            || marker_lock(retained->marker, &holder) != APR_SUCCESS)) {
        marker_close(); /* somebody has removed or replaced it */
    }
    fresh = retained->marker < 0;
    if (fresh) {
        rv = path ? marker_take(path, &holder) : APR_ENOTDIR;
    }
    retained->state = rv == APR_SUCCESS ? RUNTIME_OWNER
                      : rv == EBUSY     ? RUNTIME_HEIR
                                        : RUNTIME_UNLISTED;
    retained->told->state = retained->state;
    retained->pid = getpid();
    apr_cpystrn(retained->path, path ? path : "", sizeof(retained->path));
    if (retained->state != *before) {
        runtime_log(*before, rv, holder);
    }
    apr_pool_destroy(p);
    return fresh && retained->state == RUNTIME_OWNER;
}

/* -- what others have left -- */

static void litter_look(void)
{
    registry->littered = directory_has(
        name_directory(registry->pool, retained->path), store_suffix);
}

/* May a new file of the segment be there which a killed process has left half
 * written, or one of before, and is it ours to remove?  There seldom is one, so
 * the runtime directory is asked once, and not for each segment. */
static int litter_may_be(const ap_slotmem_instance_t *s)
{
    return s->store && runtime_may_write()
           && (registry->littered || strchr(s->name, '/'));
}

static void litter_remove(const ap_slotmem_instance_t *s, apr_pool_t *p)
{
    if (litter_may_be(s)) {
        unlink(name_beside(p, s->store, store_suffix[STORE_STOP]));
        unlink(name_beside(p, s->store, store_suffix[STORE_CHECKPOINT]));
    }
}

static void litter_remove_all(void)
{
    const ap_slotmem_instance_t *s;
    apr_pool_t *p = scratch_pool();

    litter_look();
    for (s = registry->first; s; s = s->next) {
        litter_remove(s, p);
    }
    apr_pool_destroy(p);
}

/* Maps what the marker lists, if it is just that. */
static void orphan_map(orphan_t *o, const marker_line_t *line)
{
    apr_pool_t *p = registry->pool;
    ap_slotmem_instance_t *s = apr_pcalloc(p, sizeof(*s));

    s->name = o->name;
    s->store = name_store(p, o->name);
    if (!s->store || segment_open(s, o->key, o->run) != APR_SUCCESS) {
        return;
    }
    if (s->type != line->type || s->layout.item_size != line->item_size
        || s->layout.item_num != line->item_num) {
        memory_unmap(&s->memory);
        return;
    }
    s->origin = ORIGIN_MEMORY;
    s->claims = bits_make(s->layout.item_num, p);
    /* Whose the slots were is not for others to say. */
    if (retained->doubtful
        || !marker_claims(line->claims, s->layout.item_num, s->claims)) {
        s->claims = NULL;
    }
    o->s = s;
    apr_hash_set(orphans.by_name, o->name, APR_HASH_KEY_STRING, o);
}

static void orphan_add(void *ctx, const marker_line_t *line)
{
    apr_pool_t *p = registry->pool;
    orphan_t *o = apr_pcalloc(p, sizeof(*o));

    (void)ctx;
    memcpy(o->run, line->run, sizeof(o->run));
    o->name = apr_pstrdup(p, line->name);
    o->key =
        name_key(p, o->name, line->generation,
                 line->by_run ? hex_text(p, o->run, sizeof(o->run)) : NULL);
    if (!o->key) {
        return;
    }
    apr_hash_set(orphans.by_key, o->key, APR_HASH_KEY_STRING, o);
    if (line->type & AP_SLOTMEM_TYPE_PERSIST) {
        orphan_map(o, line);
        orphans.unseen |= o->s == NULL;
    }
}

/* Maps what the marker lists: of a run that was killed, or of the one that
 * holds the directory. */
static void orphans_find(void)
{
    int fd = retained->marker;
    char *text;

    orphans.by_key = apr_hash_make(registry->pool);
    orphans.by_name = apr_hash_make(registry->pool);
    if (fd < 0 && marker_open(retained->path, &fd) != APR_SUCCESS) {
        return;
    }
    text = marker_read(fd);
    if (text) {
        marker_parse(text, orphan_add, NULL);
        free(text);
    }
    if (fd != retained->marker) {
        close(fd);
    }
    retained->doubtful = 0;
}

/* apr_hash_this_val() needs APR 1.5. */
static orphan_t *orphan_at(apr_hash_index_t *at)
{
    void *o;

    apr_hash_this(at, NULL, NULL, &o);
    return o;
}

static int key_is_ours(const char *name, const char *key, const void *run)
{
    return object_is_ours(
        key, name_is_absolute(name) ? NULL : retained->directory, run);
}

/* The end of the search for an heir: unmaps them, and takes those that an
 * owner found off the system. */
static void orphans_end(int owner)
{
    apr_hash_index_t *at =
        orphans.by_key ? apr_hash_first(registry->pool, orphans.by_key) : NULL;

    for (; at; at = apr_hash_next(at)) {
        orphan_t *o = orphan_at(at);
        const ap_slotmem_instance_t *s = registry_find(registry, o->name);

        if (owner && (!s || !s->key || strcmp(s->key, o->key) != 0)
            && key_is_ours(o->name, o->key, o->run)) {
            object_remove(o->key);
        }
        if (o->s) {
            memory_unmap(&o->s->memory);
        }
    }
    memset(&orphans, 0, sizeof(orphans));
}

/* Of a run in this directory whose parent is gone. */
static int head_is_left(const struct slotmem_shm_header *head, const void *run)
{
    slotmem_process_t parent;

    parent.pid = (apr_uint32_t)head->pid;
    parent.birth = (apr_uint32_t)head->birth;
    return memcmp(head->directory, retained->directory, sizeof(head->directory))
               == 0
           && !head_is_of(head, run) && process_state(parent) == PROCESS_GONE;
}

static void runtime_sweep(platform_wanted_fn *wanted)
{
    apr_pool_t *p = scratch_pool();
    const char *dir =
        *retained->path ? name_directory(p, retained->path) : NULL;
    const int alone = retained->state == RUNTIME_OWNER;
    const int used = alone || wanted == head_is_of; /* our own, or dead */

    platform_shm_sweep(dir, alone, used, wanted, retained->run, geteuid());
    if (geteuid() == 0 && ap_unixd_config.user_id != 0
        && ap_unixd_config.user_id != (uid_t)-1) {
        platform_shm_sweep(dir, alone, used, wanted, retained->run,
                           ap_unixd_config.user_id);
    }
    apr_pool_destroy(p);
}

/* ==================== inheritance ==================== */

/*
 * What a fresh PERSIST segment of the parent's begins with, before anybody
 * else knows it.  The first that fits, of
 *
 *     the generation before this one, whose memory the parent has kept,
 *     the memory of a run that was killed (or of the one whose heir we are),
 *     the stored file.
 *
 * All are copied by one rule: item size and type are the same, and nothing is
 * cut off.  A segment that has fewer slots now keeps what lies beyond its end
 * only where claims say whose that was: then it is a spare, and the consumer
 * may find it ("slot claims").
 */
typedef struct {
    ap_slotmem_instance_t *s;
    const ap_slotmem_instance_t *old; /* memory; NULL: it is an image      */
    unsigned int num;                 /* slots of what is inherited        */
    char *beyond; /* what slots from item_num on held, malloc'ed or NULL   */
    unsigned char *kinds;  /* of each slot, malloc'ed           */
    int has_kinds;         /* somebody noted them               */
    int cut;               /* something beyond the end was there */
    apr_uint64_t stored;   /* when that was stored last          */
    apr_uint64_t marks[2]; /* and in which file                  */
} legacy_t;

/* Room for what may not fit.  0: there is none. */
static int legacy_begin(legacy_t *g, ap_slotmem_instance_t *s,
                        const ap_slotmem_instance_t *old, unsigned int num)
{
    memset(g, 0, sizeof(*g));
    g->s = s;
    g->old = old;
    g->num = num;
    if (claims_matter(s)) {
        g->kinds = calloc((apr_size_t)num + 1, 1);
        if (num > s->layout.item_num) {
            g->beyond =
                calloc(num - s->layout.item_num, s->layout.item_size + 1);
        }
        return g->kinds && (g->beyond || num <= s->layout.item_num);
    }
    return 1;
}

static int legacy_has_configured(const legacy_t *g)
{
    return g->has_kinds && g->kinds
           && memchr(g->kinds, SLOTMEM_SHM_KIND_CONFIGURED, g->num) != NULL;
}

/* It has been copied.  0, and an empty segment, if it must not be. */
static int legacy_end(legacy_t *g, int good)
{
    ap_slotmem_instance_t *s = g->s;

    if (g->beyond && !legacy_has_configured(g)
        && !slotmem_all_zero(g->beyond, (g->num - s->layout.item_num)
                                            * s->layout.item_size)) {
        g->cut = 1;
    }
    good = good && !g->cut;
    if (good) {
        slotmem_table_hint_all(&s->table);
        if (g->kinds) {
            claims_make(s);
            s->search = slotmem_search_begin(
                &s->table, s->slots, s->layout.item_size, s->claims,
                g->has_kinds ? g->kinds : NULL, g->num, g->beyond);
        }
        s->header->stored = g->stored;
        s->header->marks[0] = g->marks[0];
        s->header->marks[1] = g->marks[1];
    }
    else {
        memset((char *)s->header + sizeof(*s->header), 0,
               s->layout.slots_off - sizeof(*s->header));
        memset(s->slots, 0, s->layout.slots_len);
    }
    free(g->kinds);
    free(g->beyond);
    return good;
}

/* -- from memory -- */

/* Slot by slot, each whole if that can be had: the children of the generation
 * before may still be writing. */
static apr_status_t legacy_copy_unguarded(void *ctx)
{
    legacy_t *g = ctx;
    ap_slotmem_instance_t *s = g->s;
    const apr_size_t size = s->layout.item_size;
    const int clear = (s->type & AP_SLOTMEM_TYPE_CLEARINUSE) != 0;
    unsigned int patience = SLOTMEM_SNAPSHOT_TRIES, id;

    /* Of a file in another runtime directory it says nothing. */
    if (s->store && g->old->store && !strcmp(s->store, g->old->store)) {
        s->mark = g->old->mark;
        g->stored = g->old->header->stored;
        g->marks[0] = g->old->header->marks[0];
        g->marks[1] = g->old->header->marks[1];
    }
    for (id = 0; id < g->num; id++) {
        const int used = slotmem_table_used(&g->old->table, id);

        if (g->kinds) {
            g->kinds[id] = slotmem_kind_of(g->old->claims, id, used);
        }
        if (id < s->layout.item_num) {
            slotmem_locks_carry(&s->locks, id, &g->old->locks, id, &patience);
            if (used && !clear) {
                slotmem_table_fgrab(&s->table, id);
            }
            continue;
        }
        if (g->beyond) {
            memcpy(g->beyond + size * (id - s->layout.item_num),
                   slot_at(g->old, id), size);
        }
        else if ((used && !clear)
                 || !slotmem_all_zero(slot_at(g->old, id), size)) {
            g->cut = 1;
        }
    }
    return APR_SUCCESS;
}

/* Copies `old`, if it is there and fits.  0 if not. */
static int inherit_memory(ap_slotmem_instance_t *s,
                          const ap_slotmem_instance_t *old, enum origin origin)
{
    legacy_t g;
    int good;

    if (!old || !old->memory.base
        || old->layout.item_size != s->layout.item_size
        || old->type != s->type) {
        return 0;
    }
    good = legacy_begin(&g, s, old, old->layout.item_num)
           && guarded(legacy_copy_unguarded, &g) == APR_SUCCESS;
    g.has_kinds = g.kinds != NULL;
    if (!legacy_end(&g, good)) {
        return 0;
    }
    s->origin = origin;
    ap_log_error(APLOG_MARK, APLOG_DEBUG, 0, ap_server_conf,
                 "slotmem_shm: %s goes on with the %s: %u of %u slots in use",
                 s->name,
                 origin == ORIGIN_MEMORY ? "memory of a run that was killed"
                                         : origin_text[origin],
                 slotmem_table_count(&s->table), s->layout.item_num);
    return 1;
}

/* -- from the stored file -- */

static void legacy_take(void *ctx, enum slotmem_image_part part,
                        apr_uint64_t off, const unsigned char *bytes,
                        apr_size_t len)
{
    legacy_t *g = ctx;
    const layout_t *l = &g->s->layout;
    apr_size_t here = 0, i;

    if (part == SLOTMEM_IMAGE_SLOTS) {
        if (off < l->slots_len) {
            here = l->slots_len - (apr_size_t)off;
            here = here < len ? here : len;
            memcpy(g->s->slots + off, bytes, here);
        }
        if (here < len && g->beyond) {
            memcpy(g->beyond + (off + here - l->slots_len), bytes + here,
                   len - here);
        }
        else if (!slotmem_all_zero(bytes + here, len - here)) {
            g->cut = 1;
        }
    }
    for (i = 0; part == SLOTMEM_IMAGE_USED && i < len; i++) {
        if (bytes[i] && off + i < l->item_num) {
            if (!(g->s->type & AP_SLOTMEM_TYPE_CLEARINUSE)) {
                slotmem_table_fgrab(&g->s->table, (unsigned int)(off + i));
            }
        }
        else if (bytes[i]) {
            g->cut = 1;
        }
    }
}

enum restored {
    RESTORED,
    RESTORE_NO_FILE,
    RESTORE_NOT_FIT, /* a whole image, but not one of this segment         */
    RESTORE_DAMAGED,
    RESTORE_STRANGE,   /* no regular file, or somebody else's               */
    RESTORE_UNREADABLE /* it may be good: *rv says why it cannot be read    */
};

static enum restored image_restore(ap_slotmem_instance_t *s,
                                   const slotmem_image_source_t *source,
                                   const slotmem_image_t *image)
{
    unsigned char digest[APR_MD5_DIGESTSIZE];
    enum slotmem_image_result result;
    legacy_t g;
    int room;

    if (image->item_size != s->layout.item_size || image->type != s->type) {
        result = slotmem_image_read(source, image, NULL, NULL, NULL);
        return result == SLOTMEM_IMAGE_OK        ? RESTORE_NOT_FIT
               : result == SLOTMEM_IMAGE_DAMAGED ? RESTORE_DAMAGED
                                                 : RESTORE_UNREADABLE;
    }
    room = legacy_begin(&g, s, NULL, image->item_num);
    errno = ENOMEM;
    result = room ? slotmem_image_read(source, image, legacy_take, &g, digest)
                  : SLOTMEM_IMAGE_UNREADABLE;
    if (result == SLOTMEM_IMAGE_OK && g.kinds) {
        int found = slotmem_image_kinds(source, image, digest, g.kinds);

        g.has_kinds = found == 1;
        result = found < 0 ? SLOTMEM_IMAGE_UNREADABLE : result;
    }
    if (legacy_end(&g, result == SLOTMEM_IMAGE_OK)) {
        return RESTORED;
    }
    return result == SLOTMEM_IMAGE_OK        ? RESTORE_NOT_FIT
           : result == SLOTMEM_IMAGE_DAMAGED ? RESTORE_DAMAGED
                                             : RESTORE_UNREADABLE;
}

/* Tries what the open file may hold.  *rv says why it cannot be read. */
static enum restored file_restore(ap_slotmem_instance_t *s,
                                  const slotmem_image_source_t *source,
                                  apr_status_t *rv)
{
    slotmem_image_t wanted, list[SLOTMEM_IMAGE_MAX];
    enum restored result = RESTORE_DAMAGED, one;
    int n, i;

    memset(&wanted, 0, sizeof(wanted));
    wanted.item_size = s->layout.item_size;
    wanted.item_num = s->layout.item_num;
    wanted.type = s->type;
    n = slotmem_image_find(source, &wanted, list);
    if (n < 0) {
        *rv = errno;
        return RESTORE_UNREADABLE;
    }
    for (i = 0; i < n; i++) {
        one = image_is_huge(s, &list[i]) ? RESTORE_NOT_FIT
                                         : image_restore(s, source, &list[i]);
        if (one == RESTORED || one == RESTORE_UNREADABLE) {
            *rv = errno;
            return one;
        }
        result = one == RESTORE_NOT_FIT ? one : result;
    }
    return result;
}

static enum restored persist_restore_once(ap_slotmem_instance_t *s,
                                          apr_status_t *rv, apr_pool_t *p)
{
    slotmem_image_source_t source = { -1, NULL, 0 };
    enum restored result;
    apr_os_file_t fd = -1;
    apr_file_t *file = NULL;
    struct stat st;

    *rv = stored_open(&file, s->store, &st, ap_unixd_config.user_id, p);
    if (APR_STATUS_IS_ENOENT(*rv) || APR_STATUS_IS_ENOTDIR(*rv)
        || APR_STATUS_IS_ENAMETOOLONG(*rv)) {
        return RESTORE_NO_FILE;
    }
    if (*rv != APR_SUCCESS) {
        return *rv == APR_EINVAL ? RESTORE_STRANGE : RESTORE_UNREADABLE;
    }
    apr_os_file_get(&fd, file);
    source.fd = fd;
    source.size = (apr_uint64_t)st.st_size;
    result = file_restore(s, &source, rv);
    apr_file_close(file);
    if (result == RESTORED) {
        stored_note(s, &st);
    }
    return result;
}

static void restore_refused(ap_slotmem_instance_t *s, const char *why,
                            apr_status_t rv, apr_pool_t *p)
{
    s->origin = ORIGIN_BAD_FILE;
    if (runtime_may_write()) { /* else it is somebody else's to judge */
        store_put_aside(s, why, apr_pstrcat(p, s->name, " starts empty", NULL),
                        rv, p);
    }
}

/* Fills a fresh segment from its stored file, if there is one that fits.  What
 * fails to be read (descriptors, memory, the disk) is tried again, and then
 * left where it is: it may be good, so nothing is stored over it. */
static void persist_restore(ap_slotmem_instance_t *s, apr_pool_t *p)
{
    enum restored result;
    apr_status_t rv = APR_SUCCESS;
    int tries;

    for (tries = 0; tries < 3; tries++) {
        result = persist_restore_once(s, &rv, p);
        if (result == RESTORE_UNREADABLE) {
            apr_sleep(apr_time_from_msec(10));
        }
        else if (result != RESTORE_DAMAGED || !runtime_may_write()
                 || !store_go_back(s, p)) {
            break;
        }
    }
    switch (result) {
    case RESTORED:
        s->origin = ORIGIN_FILE;
        ap_log_error(APLOG_MARK, APLOG_DEBUG, 0, ap_server_conf,
                     APLOGNO(02335) "restoring %s: %u of %u slots in use",
                     s->store, slotmem_table_count(&s->table),
                     s->layout.item_num);
        break;
    case RESTORE_NO_FILE: /* who removed it wants to begin anew */
        if (litter_may_be(s)) {
            unlink(name_beside(p, s->store, STORE_BEFORE));
        }
        ap_log_error(APLOG_MARK, APLOG_TRACE1, 0, ap_server_conf,
                     APLOGNO(02335) "restoring %s: no such file yet", s->store);
        break;
    case RESTORE_NOT_FIT:
        restore_refused(s,
                        "it is whole, but was stored with another size or "
                        "number of slots or another type, and does not fit "
                        "the configuration of today",
                        0, p);
        break;
    case RESTORE_DAMAGED:
        restore_refused(s,
                        "it is cut short or damaged (its length, descriptor "
                        "or MD5 is wrong)",
                        0, p);
        break;
    case RESTORE_STRANGE:
        restore_refused(s, "it is no regular file of this server's user", rv,
                        p);
        break;
    case RESTORE_UNREADABLE:
        s->origin = ORIGIN_UNREADABLE;
        ap_log_error(
            APLOG_MARK, APLOG_ERR, rv, ap_server_conf,
            APLOGNO(02553) "slotmem_shm: %s cannot be read; %s starts "
                           "empty. The file may be good, so it is left "
                           "alone while this generation runs, and "
                           "kept under another name when there is "
                           "something else to store. Once the cause "
                           "is gone: stop, move it back if need be, "
                           "start",
            s->store, s->name);
        break;
    }
}

/* -- which of them -- */

/*
 * Is the memory of a run that was killed to be preferred to the file?  It says
 * which file holds it:
 *   - it was stored, but there is no file: somebody has deleted that, to begin
 *     anew.
 *   - it was never stored, but there is a file: one that could not be read.
 *   - the file is another one, and whole: httpd's own module was put in place
 *     of this one for a while, or an administrator has put it there.
 * The header is the children's to write, too: at worst they lose what is
 * theirs.
 */
static int orphan_is_newer(const orphan_t *o, apr_pool_t *p)
{
    struct stat st;
    int stored = 0;
    const int there = lstat(o->s->store, &st) == 0;
    const int same = note_has(o->s, there ? &st : NULL, &stored);

    if (same == 0 && (there ? !file_is_good(o->s, o->s->store, p) : !stored)) {
        if (there && runtime_may_write()) {
            store_put_aside(o->s, "it is damaged, or no file of this server's",
                            "the memory of the run that was killed is used", 0,
                            p);
        }
        return 1;
    }
    if (!there && same == 0) {
        ap_log_error(APLOG_MARK, APLOG_NOTICE, 0, ap_server_conf,
                     "slotmem_shm: %s had been stored and has been deleted: "
                     "%s begins anew, although memory of the killed run is "
                     "still there",
                     o->s->store, o->name);
    }
    else if (same == 0 && stored) {
        ap_log_error(APLOG_MARK, APLOG_NOTICE, 0, ap_server_conf,
                     "slotmem_shm: %s was stored after the run whose memory "
                     "is still there had been killed, or put there: the file "
                     "is used, and not the memory",
                     o->s->store);
    }
    return same == 1;
}

/* Leaves of the orphans those whose memory counts.  An owner has that on disk
 * before anything is removed, so that a second kill, or a start that fails,
 * loses nothing. */
static void orphans_judge(void)
{
    const int owner = retained->state == RUNTIME_OWNER;
    apr_hash_index_t *at;
    apr_pool_t *p;
    store_t st;

    if (apr_hash_count(orphans.by_name) == 0
        || (owner && store_begin(&st, STORE_STOP) != APR_SUCCESS)) {
        return;
    }
    p = scratch_pool();
    for (at = apr_hash_first(registry->pool, orphans.by_name); at;
         at = apr_hash_next(at)) {
        orphan_t *o = orphan_at(at);
        if (!orphan_is_newer(o, p)) {
            memory_unmap(&o->s->memory);
        }
        else if (owner) {
            store_segment(&st, o->s);
        }
    }
    if (owner) {
        store_end(&st, &retained->told->failing);
    }
    apr_pool_destroy(p);
}

/* What the former generation left has been taken, or is not wanted. */
static void former_end(void)
{
    ap_slotmem_instance_t *s =
        retained->former ? retained->former->first : NULL;

    for (; s; s = s->next) {
        if (s->key) {
            object_remove(s->key);
        }
    }
    if (retained->former) {
        registry_close(retained->former);
        retained->former = NULL;
    }
}

/* As the MPM counts, which httpd's trunk raises only when all have configured:
 * there the keys of the generation before would be taken. */
static void generation_begin(void)
{
    const int next = retained->former ? retained->former->generation + 1 : 0;
    int mpm = 0;

    ap_mpm_query(AP_MPMQ_GENERATION, &mpm);
    registry->generation = mpm > next ? mpm : next;
}

#define HEIR_PATIENCE apr_time_from_msec(1500)

/* The first look of a server at its directory, while it configures. */
static void runtime_arrive(void)
{
    enum runtime_state before;

    /* Once in a configuration (and again if the server has detached since):
     * what is decided here, keys bear and lists name. */
    if (registry->looked == getpid()) {
        return;
    }
    registry->looked = getpid();
    generation_begin();
    (void)runtime_look(&before);
    litter_look();
    if (before == RUNTIME_UNKNOWN) {
        registry->arrived = 1;
        registry->remains = platform_has_objects();
        if (retained->state != RUNTIME_UNLISTED) {
            orphans_find();
        }
        if (retained->state == RUNTIME_HEIR && orphans.unseen) {
            /* The other's memory is out of sight (containers that share a
             * volume); what it changed just now is on its way to the files,
             * where its helper puts it each second. */
            apr_sleep(HEIR_PATIENCE);
        }
        if (retained->state == RUNTIME_OWNER) {
            const unsigned int listed = apr_hash_count(orphans.by_key);
            marker_text_t t = { 0 };

            /* Behind what is listed, until that has been taken over; if
             * there was nothing, what follows makes a new list. */
            marker_text_add(&t, listed ? "\n" : MARKER_TITLE);
            marker_add_run(&t);
            marker_put(&t, listed ? lseek(retained->marker, 0, SEEK_END) : 0);
            if (!listed && ftruncate(retained->marker, (off_t)t.len) != 0) {
                marker_failed(errno);
            }
            free(t.bytes);
        }
        if (orphans.by_name) {
            orphans_judge();
        }
    }
    registry->by_run = retained->state == RUNTIME_HEIR;
    /* If another module, or another version of this one, has had a generation
     * in between, what was handed over is old, and what that has stored
     * counts. */
    if (retained->former && retained->former->config != registry->config - 1) {
        former_end();
    }
}

/* The segment of that name which the generation before this one has left. */
static ap_slotmem_instance_t *former_find(const char *name)
{
    return retained->former ? registry_find(retained->former, name) : NULL;
}

/*
 * There is another marker than at the last look, and it is ours.  A former
 * heir goes on with what it has; what the other had and it has not is stored,
 * if its memory is still there, and then taken off the system.
 */
static void runtime_succeed(enum runtime_state before)
{
    ap_slotmem_instance_t *s;
    apr_hash_index_t *at;
    struct stat st;

    if (before == RUNTIME_OWNER) {
        /* Somebody has cleared the directory.  Nobody has asked to begin anew
         * by that, if a kill comes before the files are there again. */
        for (s = registry->first; s; s = s->next) {
            if (s->store && lstat(s->store, &st) != 0 && errno == ENOENT) {
                stored_forget(s);
            }
        }
        marker_write();
        return;
    }
    /* The files that are there are known, and ours to replace. */
    for (s = registry->first; s; s = s->next) {
        if (s->store && lstat(s->store, &st) == 0) {
            stored_note(s, &st);
        }
    }
    orphans_find();
    for (at = apr_hash_first(registry->pool, orphans.by_name); at;
         at = apr_hash_next(at)) {
        orphan_t *o = orphan_at(at);

        if (registry_find(registry, o->name)) {
            apr_hash_set(orphans.by_name, o->name, APR_HASH_KEY_STRING, NULL);
        }
    }
    orphans_judge();
    orphans_end(1);
    runtime_sweep(head_is_left);
    marker_write();
}

/* The killed run's segment of that name, whatever its memory is worth. */
static orphan_t *orphan_find(const char *name)
{
    return orphans.by_name
               ? apr_hash_get(orphans.by_name, name, APR_HASH_KEY_STRING)
               : NULL;
}

static void segment_inherit(ap_slotmem_instance_t *s)
{
    ap_slotmem_instance_t *former = former_find(s->name);
    const orphan_t *o = orphan_find(s->name);
    apr_pool_t *p = scratch_pool();

    litter_remove(s, p);
    /* What was born empty because its file could not be read, and stayed so,
     * gives way to the file. */
    if (former && former->origin == ORIGIN_UNREADABLE && !is_touched(former)) {
        former = NULL;
    }
    if (inherit_memory(s, former, ORIGIN_GENERATION)) {
        /* What lies in a runtime directory that is new to us is older. */
        if (s->store && !s->mark && runtime_may_write()) {
            store_spare_foreign(s, p);
        }
    }
    else if (!inherit_memory(s, o ? o->s : NULL, ORIGIN_MEMORY) && s->store) {
        persist_restore(s, p);
    }
    apr_pool_destroy(p);
}

static void search_close(ap_slotmem_instance_t *s)
{
    const slotmem_search_end_t end = slotmem_search_end(s->search);

    s->search = NULL;
    s->prefer_zero = end.leftover;
    if (end.unseen && s->store && runtime_may_write()) {
        apr_pool_t *p = scratch_pool();

        store_put_aside(s,
                        "it holds more slots than the configuration of "
                        "today has",
                        "what fits is in use", 0, p);
        apr_pool_destroy(p);
    }
    else if (end.lost) {
        ap_log_error(
            APLOG_MARK, APLOG_WARNING, 0, ap_server_conf,
            "slotmem_shm: %s: the configuration of today needs so many of the "
            "%u slots that %u which were added at run time have no room; what "
            "they held is gone. A larger growth= of the balancer gives room, "
            "or name them in the configuration",
            s->name, s->layout.item_num, end.lost);
    }
    if (end.dropped) {
        ap_log_error(
            APLOG_MARK, APLOG_WARNING, 0, ap_server_conf,
            "slotmem_shm: %s was stored by httpd's own module, which does not "
            "note what was added at run time, and the configuration has "
            "changed: %u slots that it does not name are dropped",
            s->name, end.dropped);
    }
}

/* Every module has configured: what nobody asked for goes, and the list is
 * made anew. */
static void inheritance_end(void)
{
    const int arrived = registry->arrived;
    ap_slotmem_instance_t *s;

    for (s = registry->first; s; s = s->next) {
        if (s->search) {
            search_close(s);
        }
    }
    orphans_end(retained->state == RUNTIME_OWNER);
    former_end();
    if (arrived) {
        runtime_sweep(head_is_left);
    }
    marker_write();
}

/* ==================== checkpoint ==================== */

/*
 * A power cut, or a container that dies with its /dev/shm, shall cost no more
 * than a short while: a helper process stores what the parent would store at
 * a stop.  It lives as long as its generation, looks at every segment each
 * second, and writes what has changed since it last wrote it; shared mappings
 * are not copied by fork, so to begin it is quick at any size.
 *
 *
 * A pipe leads from the parent to the helper: a byte has it look at once, and
 * its end, which comes with the parent's, is the helper's.  (Every process
 * that the parent forks closes its copy of the writing end: fork_in_child.)
 *
 * The parent ends the helper before it stores for itself, and the two write
 * different new files, so a helper that a dead disk held in the kernel can
 * neither delay a stop for long nor replace what was stored after it: the
 * SIGKILL is waiting for it when the kernel lets go.
 */
#define CHECKPOINT_STOP_WAIT (PACE_SECOND / 2)

#define WAKE_NOW 'n' /* look at once                                   */
#define WAKE_ALL 'a' /* and store everything: the files are gone       */

static struct {
    apr_proc_t proc;
    apr_pool_t *pool;   /* NULL: there is no helper               */
    int pipe;           /* to it; -1: none                        */
    unsigned int count; /* segments that it knows of              */
    int called_off;     /* we have asked it to end, or began none */
} checkpoint = { .pipe = -1, .called_off = 1 };

/* One look at everything.  Returns how long to wait for the next. */
static apr_uint64_t checkpoint_look(pace_t *pace)
{
    const apr_uint64_t began = monotonic_now();
    ap_slotmem_instance_t *s;
    apr_uint64_t now;
    store_t st;

    if (store_begin(&st, STORE_CHECKPOINT) != APR_SUCCESS) {
        return PACE_SECOND;
    }
    if (pace->looks++ == 0) {
        store_flush_late(&st);
    }
    for (s = registry->first; s; s = s->next) {
        if (is_stored(s, STORE_CHECKPOINT)) {
            store_segment(&st, s);
        }
    }
    store_end(&st, &retained->told->failing);
    now = monotonic_now();
    return pace_pause(pace, now - began, st.bytes, now);
}

/* Waits so long, or for the parent.  Ends with it. */
static void checkpoint_wait(int pipe, apr_uint64_t pause)
{
    const apr_uint64_t end = monotonic_now() + pause;
    struct pollfd wake = { pipe, POLLIN, 0 };
    ap_slotmem_instance_t *s;
    apr_uint64_t now;
    char bytes[512];
    ssize_t got;

    while ((now = monotonic_now()) < end) {
        if (poll(&wake, 1, (int)((end - now) / 1000 + 1)) <= 0) {
            continue;
        }
        got = read(pipe, bytes, sizeof(bytes));
        if (got <= 0) {
            _exit(0);
        }
        if (memchr(bytes, WAKE_ALL, (size_t)got)) {
            for (s = registry->first; s; s = s->next) {
                s->has_digest = 0;
            }
        }
        return;
    }
}

/* The helper's life.  Of the parent's it keeps the memory and the log; not
 * its listeners, which a helper on a dead disk would keep from the next
 * server.  What the MPM or a terminal sends to the whole process group, to
 * stop or restart, is not for it: its parent sends SIGKILL. */
static void checkpoint_helper(int pipe)
{
    static const int signals[] = { SIGTERM, SIGHUP,   SIGINT,
                                   SIGUSR1, SIGWINCH, SIGPIPE };
    pace_t pace = { 0 };
    sigset_t none;
    apr_size_t i;

    for (i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        apr_signal(signals[i], SIG_IGN);
    }
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    ap_close_listeners();
    platform_die_with((pid_t)self.server.pid);
    setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) + 10);
    pace.paid = monotonic_now();
    for (;;) {
        checkpoint_wait(pipe, checkpoint_look(&pace));
    }
}

static void checkpoint_wake(char how)
{
    if (checkpoint.pipe >= 0 && write(checkpoint.pipe, &how, 1) != 1) {
        return; /* it has ended, and a monitor round will see it */
    }
}

/* Unregisters the helper, too: a cleanup of the pool does it. */
static void checkpoint_forget(void)
{
    if (checkpoint.pipe >= 0) {
        close(checkpoint.pipe);
        checkpoint.pipe = -1;
    }
    if (checkpoint.pool) {
        registry_lock();
        apr_pool_destroy(checkpoint.pool);
        registry_unlock();
        checkpoint.pool = NULL;
    }
}

/* The helper has ended, whoever has reaped it: the MPM, APR or this module.
 * -1: that is not known, the status with which it did. */
static void checkpoint_ended(int status)
{
    if (!checkpoint.called_off) {
        ap_log_error(APLOG_MARK, APLOG_WARNING, 0, ap_server_conf,
                     "slotmem_shm: checkpoint process %" APR_PID_T_FMT
                     " ended (%d), which nobody asked it to; another one "
                     "begins, unless the server stops",
                     retained->helper, status);
    }
    retained->helper = 0;
}

/*
 * Is it still our child?  Only then may its number be signalled: a child can
 * write that number into its slot of the scoreboard, the MPM then reaps the
 * helper as one of its own, and the number is somebody else's.
 */
static int checkpoint_lives(void)
{
    int status = -1;

    if (retained->helper > 0
        && waitpid(retained->helper, &status, WNOHANG) != 0) {
        checkpoint_ended(status);
    }
    return retained->helper > 0;
}

/* Calls the helper off.  If it has ended by itself, that is said first. */
static void checkpoint_kill(void)
{
    if (checkpoint_lives()) {
        checkpoint.called_off = 1;
        /* On a busy machine it would not come to its end: it is waited for. */
        setpriority(PRIO_PROCESS, (id_t)retained->helper,
                    getpriority(PRIO_PROCESS, 0));
        kill(retained->helper, SIGKILL);
    }
}

/* Before the parent stores: no helper may be at it any more. */
static void checkpoint_stop(void)
{
    const apr_uint64_t end = monotonic_now() + CHECKPOINT_STOP_WAIT;

    checkpoint_kill();
    while (checkpoint_lives() && monotonic_now() < end) {
        apr_sleep(1000);
    }
    if (retained->helper) {
        ap_log_error(APLOG_MARK, APLOG_WARNING, 0, ap_server_conf,
                     "slotmem_shm: checkpoint process %" APR_PID_T_FMT " was "
                     "killed but does not end; its disk may not answer. It "
                     "can no longer change a stored file",
                     retained->helper);
    }
    checkpoint_forget();
}

/* The MPM reaps the helper and calls this, for apr_proc_other_child_*. */
static void checkpoint_maintain(int reason, void *data, int status)
{
    (void)data;
    switch (reason) {
    case APR_OC_REASON_DEATH:
    case APR_OC_REASON_LOST:
        if (retained->helper == checkpoint.proc.pid) {
            checkpoint_ended(status);
        }
        checkpoint_forget();
        break; /* the next monitor round begins another one */
    case APR_OC_REASON_RESTART:
        /* The MPM gathers in its children, to stop or restart. */
        checkpoint_kill();
        break;
    default:
        break;
    }
}

/* What the MPM asks when it finds that a process has ended. */
static void checkpoint_register(void)
{
    registry_lock();
    apr_pool_create(&checkpoint.pool, registry->pool);
    registry_unlock();
    checkpoint.proc.pid = retained->helper;
    /* APR finds a registration again by its data: NULL may be another's. */
    apr_proc_other_child_register(&checkpoint.proc, checkpoint_maintain,
                                  &checkpoint, NULL, checkpoint.pool);
}

/* Begins the helper, if there is something for it to do and none lives.  One
 * that a restart could not end is still this process's child, and no other
 * begins before it has ended. */
static void checkpoint_start(void)
{
    int ends[2] = { -1, -1 };
    pid_t pid;

    if (!runtime_may_write() || !store_is_wanted()) {
        return;
    }
    if (checkpoint_lives()) {
        if (!checkpoint.pool) {
            checkpoint.count = registry->count; /* nothing to be told anew */
            checkpoint_register();
        }
        return;
    }
    checkpoint_forget();
    pid = pipe(ends) == 0 ? platform_fork_deaf() : -1;
    if (pid == 0) {
        close(ends[1]);
        checkpoint_helper(ends[0]);
    }
    if (ends[0] >= 0) {
        close(ends[0]);
    }
    if (pid < 0) {
        ap_log_error(APLOG_MARK, APLOG_WARNING, errno, ap_server_conf,
                     "slotmem_shm: no process for checkpoints; the stored "
                     "files grow old until one can be had");
        if (ends[1] >= 0) {
            close(ends[1]);
        }
        return;
    }
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);
    fcntl(ends[1], F_SETFL, O_NONBLOCK);
    checkpoint.pipe = ends[1];
    checkpoint.count = registry->count;
    checkpoint.called_off = 0;
    retained->helper = pid;
    checkpoint_register();
    ap_log_error(APLOG_MARK, APLOG_TRACE1, 0, ap_server_conf,
                 "slotmem_shm: checkpoint process %" APR_PID_T_FMT " began",
                 pid);
}

/* A round of the parent's: every ten seconds or so. */
static int checkpoint_monitor(apr_pool_t *p, server_rec *server)
{
    enum runtime_state before;

    (void)p;
    (void)server;
    if (self.role != ROLE_PARENT || !registry) {
        return DECLINED;
    }
    if (runtime_look(&before)) {
        /* Another marker: we have become owner, or somebody has cleared the
         * directory, and with it the files. */
        runtime_succeed(before);
        checkpoint_wake(WAKE_ALL);
    }
    if (!runtime_may_write() || checkpoint.count != registry->count) {
        if (checkpoint.pool) {
            checkpoint_stop();
        }
    }
    checkpoint_start();
    return OK;
}

/* A child ended.  If that is because the server stops, what is in memory is
 * stored now: somebody may kill the server before it has ended. */
static void checkpoint_child_status(server_rec *server, pid_t pid,
                                    ap_generation_t generation, int slot,
                                    mpm_child_status state)
{
    int mpm = AP_MPMQ_RUNNING;

    (void)server;
    (void)pid;
    (void)generation;
    (void)slot;
    if (registry && self.role == ROLE_PARENT && state != MPM_CHILD_STARTED) {
        ap_mpm_query(AP_MPMQ_MPM_STATE, &mpm);
        if (mpm == AP_MPMQ_STOPPING) {
            checkpoint_wake(WAKE_NOW);
        }
    }
}

/* ==================== provider calls ==================== */

/* Not in the pass that only checks the configuration, when httpd starts: what
 * it makes is gone before the server runs. */
static int runs_for_real(void)
{
    return ap_state_query(AP_SQ_MAIN_STATE) != AP_SQ_MS_CREATE_PRE_CONFIG;
}

static const char *segment_name(const ap_slotmem_instance_t *s)
{
    return s->name ? s->name : "anonymous";
}

static void log_create_failed(apr_status_t rv, const ap_slotmem_instance_t *s,
                              const char *then)
{
    ap_log_error(APLOG_MARK, APLOG_WARNING, rv, ap_server_conf,
                 APLOGNO(02611) "create: apr_shm_create(%s) of %" APR_SIZE_T_FMT
                                " bytes failed%s%s",
                 s->key ? s->key : "", s->layout.total, then,
                 !s->key                    ? ""
                 : APR_STATUS_IS_EEXIST(rv) ? platform_shm_where()
                                            : platform_shm_advice(rv));
}

/*
 * The name is taken.  Of a directory that is ours alone the relative names
 * are ours, too, whoever made what lies there; anything else must be of this
 * user and mapped by nobody.  0: it has to stay.
 */
static int key_clear(const ap_slotmem_instance_t *s, int *hold)
{
    ap_slotmem_instance_t *former = former_find(s->name);
    const orphan_t *o =
        orphans.by_key && retained->state == RUNTIME_OWNER
            ? apr_hash_get(orphans.by_key, s->key, APR_HASH_KEY_STRING)
            : NULL;
    int ours = retained->state == RUNTIME_OWNER
               && key_is_ours(s->name, s->key, o ? o->run : NULL);

    if (former && former->key && !strcmp(former->key, s->key)) {
        former->key = NULL; /* ours, and about to go on in this one */
        ours = 1;
    }
    return platform_name_clear(s->key, ours, hold);
}

/*
 * httpd's own module lists nothing.  When it was killed after restarts, its
 * objects lie under the names of a later generation.  A new server looks for
 * them: so many generations, and altogether so many looks as no start notices.
 */
#define STOCK_GENERATIONS 32u
#define STOCK_LOOKS       2000u

static void stock_sweep(const char *name, apr_pool_t *p)
{
    unsigned int generation;

    /* No list: the directory has become ours only since the arrival. */
    if (!registry->remains || retained->state != RUNTIME_OWNER
        || !orphans.by_key || name_is_absolute(name)
        || registry->count * STOCK_GENERATIONS > STOCK_LOOKS) {
        return;
    }
    for (generation = 1; generation <= STOCK_GENERATIONS; generation++) {
        const char *key = name_key(p, name, generation, NULL);
        int hold = -1;

        if (!apr_hash_get(orphans.by_key, key, APR_HASH_KEY_STRING)) {
            platform_name_clear(key, 0, &hold);
        }
        if (hold >= 0) {
            close(hold);
        }
    }
}

/* The key of a segment that this generation makes. */
static const char *own_key(apr_pool_t *p, const char *name, int by_run)
{
    return name_key(p, name, (unsigned int)registry->generation,
                    by_run ? hex_text(p, retained->run, sizeof(retained->run))
                           : NULL);
}

static apr_status_t segment_map_named(ap_slotmem_instance_t *s, apr_pool_t *p)
{
    apr_status_t rv;
    int hold = -1;

    stock_sweep(s->name, p);
    marker_add(s);
    rv = memory_make_named(&s->memory, s->layout.total, s->key);
    if (APR_STATUS_IS_EEXIST(rv) && key_clear(s, &hold)) {
        rv = memory_make_named(&s->memory, s->layout.total, s->key);
    }
    else if (APR_STATUS_IS_EEXIST(rv) && !s->by_run
             && !name_is_absolute(s->name)
             && retained->state == RUNTIME_OWNER) {
        s->by_run = 1; /* who has it has another directory of that path */
        s->key = own_key(p, s->name, 1);
        rv = s->key ? segment_map_named(s, p) : rv;
    }
    if (hold >= 0) {
        close(hold);
    }
    return rv;
}

/* Memory for a segment of the parent's: named, or anonymous when no name can
 * be had, since children inherit either. */
static apr_status_t segment_map_parent(ap_slotmem_instance_t *s, apr_pool_t *p)
{
    apr_status_t rv = s->key ? segment_map_named(s, p) : APR_SUCCESS;

    if (rv != APR_SUCCESS) {
        log_create_failed(
            rv, s,
            APR_STATUS_IS_EEXIST(rv)
                ? ": the name is in use and not by this server. The segment "
                  "is made without a name: it works as ever, but its memory "
                  "will not outlive a kill of the server. If no other server "
                  "uses it, remove the object, known by its owner and age, "
                : ". The segment is made without a name: it works as ever, "
                  "but its memory will not outlive a kill of the server. ");
        s->key = NULL;
    }
    if (!s->key) {
        rv = memory_make_anonymous(&s->memory, s->layout.total, registry->pool);
        if (rv != APR_SUCCESS) {
            log_create_failed(rv, s,
                              ": the machine or its container has not "
                              "that much memory to give");
            return rv;
        }
    }
    segment_lay(s);
    segment_format(s, registry->generation, retained->run, retained->directory);
    return APR_SUCCESS;
}

/* The parent's segment, with what it inherits. */
static apr_status_t segment_make_parent(ap_slotmem_instance_t *s, apr_pool_t *p)
{
    apr_status_t rv = segment_map_parent(s, p);

    if (rv != APR_SUCCESS) {
        return rv;
    }
    if (s->name && (s->type & AP_SLOTMEM_TYPE_PERSIST) && runs_for_real()) {
        segment_inherit(s);
    }
    segment_publish(s);
    return APR_SUCCESS;
}

/*
 * What lies under the key, if it is a segment of this run.  Whoever makes one
 * holds the global mutex, or, where none could be had, has been seen to begin:
 * then it is waited for, a little.
 */
static apr_status_t segment_find(ap_slotmem_instance_t *s)
{
    apr_status_t rv;
    int tries;

    for (tries = 0; tries < 200; tries++) {
        rv = segment_open(s, s->key, retained->run);
        if (rv != APR_EINCOMPLETE || self.mutex) {
            break;
        }
        apr_sleep(apr_time_from_msec(5));
    }
    if (rv == APR_SUCCESS) {
        s->origin = ORIGIN_PROCESS;
    }
    return rv;
}

/*
 * A child makes a segment: its siblings shall find it, so it must have a name,
 * and who comes second gets what the first one made.  Both are settled under
 * the global mutex; where there is none, by who makes the object.  The object
 * outlives the child; the parent removes it (runtime_sweep).
 */
static apr_status_t segment_make_child(ap_slotmem_instance_t *s)
{
    const layout_t wanted = s->layout;
    const ap_slotmem_type_t type = s->type;
    apr_status_t rv = mutex_lock();
    int hold = -1;

    if (rv != APR_SUCCESS) {
        return rv;
    }
    rv = segment_find(s);
    if (rv != APR_SUCCESS) {
        s->layout = wanted;
        s->type = type;
        rv = memory_make_named(&s->memory, wanted.total, s->key);
        if (APR_STATUS_IS_EEXIST(rv) && !self.mutex) {
            rv = segment_find(s);
        }
        else if (APR_STATUS_IS_EEXIST(rv)
                 && platform_name_clear(s->key, 0, &hold)) {
            rv = memory_make_named(&s->memory, wanted.total, s->key);
        }
        if (hold >= 0) {
            close(hold);
        }
        if (rv == APR_SUCCESS && s->origin != ORIGIN_PROCESS) {
            segment_lay(s);
            segment_format(s, registry->generation, retained->run,
                           retained->directory);
            segment_publish(s);
        }
    }
    mutex_unlock();
    if (rv != APR_SUCCESS) {
        log_create_failed(rv, s,
                          ". A child process cannot share memory that "
                          "has no name. ");
    }
    return rv;
}

static void log_long_name(const ap_slotmem_instance_t *s, const char *cost)
{
    ap_log_error(APLOG_MARK, APLOG_WARNING, APR_ENAMETOOLONG, ap_server_conf,
                 "slotmem_shm: a segment's name of %" APR_SIZE_T_FMT
                 " characters, \"%.60s...\", makes a path longer than this "
                 "system takes: the segment works as ever, but %s. A shorter "
                 "name helps, or a shorter path of DefaultRuntimeDir",
                 strlen(s->name), s->name, cost);
}

/* The killed run's object of the same key must stay until its content is safe
 * elsewhere. */
static int key_must_differ(const ap_slotmem_instance_t *s, const char *key)
{
    const orphan_t *o = orphan_find(s->name);

    return o && o->s->memory.base && !o->s->has_digest
           && retained->state == RUNTIME_OWNER && !strcmp(o->key, key);
}

/*
 * Key and stored file of a named segment.  A name that makes no path is no
 * reason not to start: the parent's segment goes without, since children
 * inherit it anyway.  A child's must have a key to be found by.
 */
static apr_status_t segment_paths(ap_slotmem_instance_t *s, apr_pool_t *p)
{
    s->by_run = registry->by_run;
    s->key = own_key(p, s->name, s->by_run);
    if (self.role == ROLE_CHILD) {
        return s->key ? APR_SUCCESS : APR_ENAMETOOLONG;
    }
    if (s->key && !s->by_run && key_must_differ(s, s->key)) {
        s->by_run = 1;
        s->key = own_key(p, s->name, s->by_run);
    }
    if (!s->key) {
        log_long_name(s, "its memory will not outlive a kill of the server");
    }
    if (s->type & AP_SLOTMEM_TYPE_PERSIST) {
        s->store = name_store(p, s->name);
        if (!s->store) {
            log_long_name(s, "it is not stored: only a restart keeps it");
        }
    }
    return APR_SUCCESS;
}

/* What is to stay goes to the registry's pool. */
static ap_slotmem_instance_t *segment_keep(const ap_slotmem_instance_t *made)
{
    apr_pool_t *p = registry->pool;
    ap_slotmem_instance_t *s = apr_pmemdup(p, made, sizeof(*made));

    s->name = made->name ? apr_pstrdup(p, made->name) : NULL;
    s->key = made->key ? apr_pstrdup(p, made->key) : NULL;
    s->store = made->store ? apr_pstrdup(p, made->store) : NULL;
    if (s->search) {
        s->search->table = &s->table; /* it moved with the struct */
    }
    registry_add(s);
    return s;
}

static apr_status_t segment_create(ap_slotmem_instance_t **kept,
                                   const char *name, apr_size_t item_size,
                                   unsigned int item_num,
                                   ap_slotmem_type_t type)
{
    apr_pool_t *p = scratch_pool();
    ap_slotmem_instance_t made, *s = &made;
    apr_status_t rv;

    memset(s, 0, sizeof(*s));
    s->type = type;
    rv = layout_make(&s->layout, item_size, item_num);
    if (rv == APR_SUCCESS && memory_exceeds_machine(s->layout.total)) {
        rv = APR_ENOMEM;
    }
    if (rv == APR_SUCCESS && !name_is_anonymous(name)) {
        s->name = name;
        if (runs_for_real()) {
            if (self.role == ROLE_CONFIGURING) {
                runtime_arrive();
            }
            rv = segment_paths(s, p);
        }
    }
    if (rv == APR_SUCCESS) {
        rv = self.role == ROLE_CHILD && s->name ? segment_make_child(s)
                                                : segment_make_parent(s, p);
    }
    if (rv == APR_SUCCESS) {
        *kept = segment_keep(s);
    }
    apr_pool_destroy(p);
    return rv;
}

/* Is a segment at hand large enough for who asks?  With fewer slots it will
 * do, since every call is bounded; two names may make one segment. */
static int segment_suffices(ap_slotmem_instance_t *s, apr_size_t item_size,
                            unsigned int item_num)
{
    if (s->layout.item_size < item_size) {
        return 0;
    }
    if (s->layout.item_num < item_num && !s->was_short) {
        s->was_short = 1;
        ap_log_error(
            APLOG_MARK, APLOG_WARNING, 0, ap_server_conf,
            "slotmem_shm: %s was made with %u slots of %" APR_SIZE_T_FMT
            " bytes, and is asked for again with %u of %" APR_SIZE_T_FMT
            ": both share the smaller one. Two things in the configuration "
            "have one name here (of balancers \"app-1\" and \"app.1\" both "
            "become \"app_1\"): rename one of them",
            segment_name(s), s->layout.item_num, s->layout.item_size, item_num,
            item_size);
    }
    return 1;
}

static apr_status_t slotmem_create(ap_slotmem_instance_t **inst,
                                   const char *name, apr_size_t item_size,
                                   unsigned int item_num,
                                   ap_slotmem_type_t type, apr_pool_t *pool)
{
    ap_slotmem_instance_t *s = NULL;
    apr_status_t rv = APR_SUCCESS;

    (void)pool; /* a segment lives until the restart, whatever the caller's */
    *inst = NULL;
    if (!registry) {
        return APR_ENOSHMAVAIL;
    }
    registry_lock();
    if (!name_is_anonymous(name)) {
        s = registry_find(registry, name);
    }
    if (s) {
        ap_log_error(APLOG_MARK, APLOG_DEBUG, 0, ap_server_conf,
                     APLOGNO(02603) "create found %s in global list", name);
    }
    else {
        ap_log_error(APLOG_MARK, APLOG_DEBUG, 0, ap_server_conf,
                     APLOGNO(02602) "create didn't find %s in global list",
                     name ? name : "anonymous");
        rv = segment_create(&s, name, item_size, item_num, type);
    }
    if (rv == APR_SUCCESS && !segment_suffices(s, item_size, item_num)) {
        rv = APR_EINVAL;
    }
    registry_unlock();

    ap_log_error(APLOG_MARK, rv == APR_SUCCESS ? APLOG_DEBUG : APLOG_ERR, rv,
                 ap_server_conf,
                 APLOGNO(02300) "create %s: %" APR_SIZE_T_FMT "/%u%s%s",
                 name ? name : "anonymous", item_size, item_num,
                 rv == APR_SUCCESS ? ", begins with " : "",
                 !s ? " failed. Another line says why, unless the size asked "
                      "for is more than this machine has"
                 : rv == APR_SUCCESS ? origin_text[s->origin]
                                     : ": exists already, with smaller slots");
    if (rv == APR_SUCCESS) {
        *inst = s;
    }
    return rv;
}

/* Maps a segment by its name that this process does not know yet.  The parent
 * believes only what it made, and that is in its registry: an object of that
 * name can but come from a child. */
static apr_status_t attach_by_name(ap_slotmem_instance_t **found,
                                   const char *name)
{
    ap_slotmem_instance_t made, *s = &made;
    apr_pool_t *p = scratch_pool();
    apr_status_t rv = self.role == ROLE_CHILD ? mutex_lock() : APR_ENOENT;

    if (rv == APR_SUCCESS) {
        memset(s, 0, sizeof(*s));
        s->name = name;
        s->key = own_key(p, name, registry->by_run);
        rv = s->key ? segment_find(s) : APR_EINVAL;
        mutex_unlock();
    }
    if (rv == APR_SUCCESS) {
        *found = segment_keep(s);
    }
    apr_pool_destroy(p);
    return rv;
}

static apr_status_t slotmem_attach(ap_slotmem_instance_t **inst,
                                   const char *name, apr_size_t *item_size,
                                   unsigned int *item_num, apr_pool_t *pool)
{
    ap_slotmem_instance_t *s;
    apr_status_t rv = APR_SUCCESS;
    int known;

    (void)pool;
    if (!registry || name_is_anonymous(name)) {
        return APR_ENOSHMAVAIL;
    }
    ap_log_error(APLOG_MARK, APLOG_TRACE1, 0, ap_server_conf,
                 APLOGNO(02301) "attach looking for %s", name);
    registry_lock();
    s = registry_find(registry, name);
    known = s != NULL;
    if (!known) {
        rv = attach_by_name(&s, name);
    }
    registry_unlock();
    if (rv != APR_SUCCESS) {
        ap_log_error(APLOG_MARK, APLOG_DEBUG, rv, ap_server_conf,
                     "slotmem_shm: attach did not find %s", name);
        return rv;
    }
    ap_log_error(APLOG_MARK, APLOG_TRACE1, 0, ap_server_conf,
                 "%sattach found %s: %" APR_SIZE_T_FMT "/%u",
                 known ? APLOGNO(02302) : APLOGNO(02303), name,
                 s->layout.item_size, s->layout.item_num);
    *inst = s;
    if (item_size) {
        *item_size = s->layout.item_size;
    }
    if (item_num) {
        *item_num = s->layout.item_num;
    }
    return APR_SUCCESS;
}

/* The slots in use, ascending.  A word of the table is read again after each
 * call, since the callback may grab and release. */
static apr_status_t doall_used(ap_slotmem_instance_t *s,
                               ap_slotmem_callback_fn_t *func, void *data,
                               apr_pool_t *pool)
{
    const slotmem_table_t t = s->table; /* where it lies does not change */
    const apr_size_t size = s->layout.item_size;
    char *slot = s->slots; /* the first of word w */
    apr_size_t w;

    for (w = 0; w < slotmem_table_leaves(&t); w++) {
        apr_uint64_t left = SLOTMEM_WORD_FULL, used;

        while ((used = slotmem_table_leaf(&t, w) & left)) {
            const unsigned int bit = slotmem_bits_lowest(used);
            const apr_status_t rv = func(slot + size * bit, data, pool);

            if (rv != APR_SUCCESS) {
                return rv;
            }
            left &= SLOTMEM_WORD_FULL << bit << 1;
        }
        slot += size * SLOTMEM_WORD_BITS;
    }
    return APR_SUCCESS;
}

static apr_status_t slotmem_doall(ap_slotmem_instance_t *s,
                                  ap_slotmem_callback_fn_t *func, void *data,
                                  apr_pool_t *pool)
{
    unsigned int id;
    apr_status_t rv = APR_SUCCESS;

    if (!s) {
        return APR_ENOSHMAVAIL;
    }
    if (s->type & AP_SLOTMEM_TYPE_PREGRAB) {
        return doall_used(s, func, data, pool);
    }
    for (id = 0; id < s->layout.item_num && rv == APR_SUCCESS; id++) {
        rv = func(slot_at(s, id), data, pool);
    }
    return rv;
}

RARELY apr_status_t dptr_searched(ap_slotmem_instance_t *s, unsigned int id,
                                  void **mem)
{
    if (id >= s->layout.item_num) {
        return slotmem_search_show(s->search, id, mem) ? APR_SUCCESS
                                                       : APR_EINVAL;
    }
    slotmem_search_look(s->search, id);
    *mem = slot_at(s, id);
    return APR_SUCCESS;
}

static apr_status_t slotmem_dptr(ap_slotmem_instance_t *s, unsigned int id,
                                 void **mem)
{
    if (!s) {
        return APR_ENOSHMAVAIL;
    }
    if (s->search) {
        return dptr_searched(s, id, mem);
    }
    if (id >= s->layout.item_num) {
        return APR_EINVAL;
    }
    *mem = slot_at(s, id);
    return APR_SUCCESS;
}

/* Of a slot that is not in use, or of a segment that is searched: without
 * PREGRAB the slot is in use from now on. */
RARELY apr_status_t access_unusual(ap_slotmem_instance_t *s, unsigned int id)
{
    if (s->search) {
        slotmem_search_look(s->search, id);
    }
    if (!slotmem_table_used(&s->table, id)) {
        if (s->type & AP_SLOTMEM_TYPE_PREGRAB) {
            return APR_NOTFOUND;
        }
        if (s->search) {
            slotmem_search_claim(s->search, id);
        }
        else {
            slotmem_table_fgrab(&s->table, id);
            claim_note(s, id, 1);
        }
    }
    return APR_SUCCESS;
}

/* What get and put ask first. */
static apr_status_t access_check(ap_slotmem_instance_t *s, unsigned int id,
                                 apr_size_t len)
{
    if (!s) {
        return APR_ENOSHMAVAIL;
    }
    if (!slotmem_locks_fit(&s->locks, id, len)) {
        return APR_EINVAL;
    }
    return !s->search && slotmem_table_used(&s->table, id)
               ? APR_SUCCESS
               : access_unusual(s, id);
}

static apr_status_t slotmem_get(ap_slotmem_instance_t *s, unsigned int id,
                                unsigned char *dest, apr_size_t len)
{
    apr_status_t rv = access_check(s, id, len);

    if (rv != APR_SUCCESS) {
        return rv;
    }
    if (s->type & AP_SLOTMEM_TYPE_NOTMPSAFE) {
        memcpy(dest, slot_at(s, id), len);
        return APR_SUCCESS;
    }
    return locks_status(slotmem_locks_read(&s->locks, id, dest, len));
}

static apr_status_t slotmem_put(ap_slotmem_instance_t *s, unsigned int id,
                                unsigned char *src, apr_size_t len)
{
    apr_status_t rv = access_check(s, id, len);

    if (rv != APR_SUCCESS) {
        return rv;
    }
    if (s->type & AP_SLOTMEM_TYPE_NOTMPSAFE) {
        memcpy(slot_at(s, id), src, len);
        return APR_SUCCESS;
    }
    return locks_status(slotmem_locks_write(&s->locks, id, src, len));
}

static unsigned int slotmem_num_slots(ap_slotmem_instance_t *s)
{
    return !s          ? 0
           : s->search ? slotmem_search_num_slots(s->search)
                       : s->layout.item_num;
}

static unsigned int slotmem_num_free_slots(ap_slotmem_instance_t *s)
{
    return s ? s->layout.item_num - slotmem_table_count(&s->table) : 0;
}

static apr_size_t slotmem_slot_size(ap_slotmem_instance_t *s)
{
    return s ? s->layout.item_size : 0;
}

/* Whether a refusal matters is for the caller to know and to say, so these
 * calls log at debug, as httpd's own module does. */
RARELY apr_status_t grab_refused(ap_slotmem_instance_t *s)
{
    ap_log_error(APLOG_MARK, APLOG_DEBUG, 0, ap_server_conf,
                 APLOGNO(02293) "slotmem(%s) grab failed. Num %u/num_free %u",
                 segment_name(s), s->layout.item_num,
                 slotmem_num_free_slots(s));
    return APR_EINVAL;
}

/* While some slots may hold what somebody looks for.  *id is the caller's, and
 * stays as it is when there is none. */
RARELY int grab_searched(ap_slotmem_instance_t *s, unsigned int *id)
{
    unsigned int found = 0;
    int done = s->search ? slotmem_search_grab(s->search, &found)
                         : zero_grab(s, &found)
                               || slotmem_table_grab(&s->table, &found);

    if (done) {
        *id = found;
    }
    return done;
}

static apr_status_t slotmem_grab(ap_slotmem_instance_t *s, unsigned int *id)
{
    if (!s) {
        return APR_ENOSHMAVAIL;
    }
    if (!(s->search || s->prefer_zero ? grab_searched(s, id)
                                      : slotmem_table_grab(&s->table, id))) {
        return grab_refused(s);
    }
    claim_note(s, *id, 1);
    return APR_SUCCESS;
}

static apr_status_t slotmem_fgrab(ap_slotmem_instance_t *s, unsigned int id)
{
    if (!s) {
        return APR_ENOSHMAVAIL;
    }
    if (s->search) {
        if (slotmem_search_fgrab(s->search, id)) {
            return APR_SUCCESS;
        }
    }
    else if (id < s->layout.item_num) {
        slotmem_table_fgrab(&s->table, id);
        claim_note(s, id, 1);
        return APR_SUCCESS;
    }
    ap_log_error(APLOG_MARK, APLOG_DEBUG, 0, ap_server_conf,
                 APLOGNO(02397) "slotmem(%s) fgrab failed. Num %u: no slot %u",
                 segment_name(s), s->layout.item_num, id);
    return APR_EINVAL;
}

static apr_status_t slotmem_release(ap_slotmem_instance_t *s, unsigned int id)
{
    apr_status_t rv = APR_EINVAL;

    if (!s) {
        return APR_ENOSHMAVAIL;
    }
    if (id < s->layout.item_num) {
        if (slotmem_table_release(&s->table, id)) {
            claim_note(s, id, 0);
            return APR_SUCCESS;
        }
        rv = APR_NOTFOUND;
    }
    ap_log_error(
        APLOG_MARK, APLOG_DEBUG, 0, ap_server_conf,
        APLOGNO(02294) "slotmem(%s) release failed. Num %u: slot %u %s",
        segment_name(s), s->layout.item_num, id,
        rv == APR_NOTFOUND ? "is not in use" : "does not exist");
    return rv;
}

static const ap_slotmem_provider_t provider = {
    "sharedmem",       slotmem_doall,     slotmem_create,
    slotmem_attach,    slotmem_dptr,      slotmem_get,
    slotmem_put,       slotmem_num_slots, slotmem_num_free_slots,
    slotmem_slot_size, slotmem_grab,      slotmem_release,
    slotmem_fgrab
};

/* ==================== status ==================== */

/*
 * What an administrator is told: a section of server-status, the same under
 * ?auto for programs (slotmem_status.h words both), and one line in the log
 * when the server has started.
 */

/* The time comes from shared memory, where a child may write any number. */
static apr_time_t stored_time(const ap_slotmem_instance_t *s)
{
    apr_time_t when = (apr_time_t)s->header->stored;

    return s->store && when > 0 && when <= apr_time_now() + apr_time_from_sec(1)
               ? when
               : 0;
}

static const char *flags_text(apr_pool_t *p, ap_slotmem_type_t type)
{
    const char *text =
        apr_pstrcat(p, type & AP_SLOTMEM_TYPE_PERSIST ? " persist" : "",
                    type & AP_SLOTMEM_TYPE_CLEARINUSE ? " clearinuse" : "",
                    type & AP_SLOTMEM_TYPE_PREGRAB ? " pregrab" : "",
                    type & AP_SLOTMEM_TYPE_NOTMPSAFE ? " notmpsafe" : "", NULL);

    return *text ? text + 1 : "-";
}

/* At one moment, so that a row and the total agree while children change the
 * table. */
static void row_read(status_row_t *row, const ap_slotmem_instance_t *s,
                     apr_pool_t *p)
{
    row->name = s->name ? s->name : "(anonymous)";
    row->file = s->store;
    row->flags = flags_text(p, s->type);
    row->item_size = s->layout.item_size;
    row->item_num = s->layout.item_num;
    row->used = slotmem_table_count(&s->table);
    row->memory = s->layout.total;
    row->origin = s->origin;
    row->mortal = !s->key;
    row->stored = stored_time(s);
}

/* Every segment of this process.  A copy, since writing to a slow client
 * under the registry's lock would hold up whoever creates or attaches; a
 * segment itself stays for as long as the process lives. */
static apr_array_header_t *rows_read(apr_pool_t *p, status_tally_t *t)
{
    apr_array_header_t *rows = apr_array_make(p, 64, sizeof(status_row_t));
    const ap_slotmem_instance_t *s;

    memset(t, 0, sizeof(*t));
    registry_lock();
    for (s = registry->first; s; s = s->next) {
        status_row_t *row = apr_array_push(rows);

        row_read(row, s, p);
        status_tally_add(t, row);
    }
    registry_unlock();
    return rows;
}

/* What the parent is to the directory: a child was forked at some time. */
static enum runtime_state told_state(void)
{
    const apr_uint32_t state = retained->told->state;

    return state <= RUNTIME_UNLISTED ? (enum runtime_state)state
                                     : RUNTIME_UNKNOWN;
}

static void status_print(void *r, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    ap_vrprintf(r, format, arguments);
    va_end(arguments);
}

/* Control characters, and what is not ASCII, as \xhh. */
static const char *status_plain(apr_pool_t *p, const char *text)
{
    return ap_escape_logitem(p, text);
}

static const char *status_html(apr_pool_t *p, const char *text)
{
    return ap_escape_html(p, ap_escape_logitem(p, text));
}

/* The section of server-status: mod_status calls it, if it is there. */
static int slotmem_status(request_rec *r, int flags)
{
    const status_out_t out = { status_print, status_plain, status_html, r,
                               r->pool };
    const apr_array_header_t *rows;
    status_tally_t tally;

    if (!registry) {
        return DECLINED;
    }
    rows = rows_read(r->pool, &tally);
    tally.storing_fails = retained->told->failing != 0;
    tally.directory = told_state();
    status_write(&out, &tally, (const status_row_t *)(const void *)rows->elts,
                 rows->nelts,
                 flags & AP_STATUS_SHORT     ? STATUS_AUTO
                 : flags & AP_STATUS_NOTABLE ? STATUS_LIST
                                             : STATUS_TABLE);
    return OK;
}

/* The one line of a normal start or restart. */
static void status_log(apr_pool_t *p)
{
    const char *kept = "none of them kept in a file";
    status_tally_t t;

    rows_read(p, &t);
    if (t.segments == 0) {
        return;
    }
    if (t.stored) {
        kept = apr_psprintf(p, "%d of them kept in files: %s", t.stored,
                            status_origins(p, &t));
    }
    ap_log_error(APLOG_MARK,
                 t.from[ORIGIN_MEMORY] && runtime_may_write() ? APLOG_NOTICE
                                                              : APLOG_INFO,
                 0, ap_server_conf, "slotmem_shm: %d segment%s, %s", t.segments,
                 t.segments == 1 ? "" : "s", kept);
}

/* ==================== hooks ==================== */

static int server_exits(void)
{
#ifdef AP_SQ_MS_EXITING
    return ap_state_query(AP_SQ_MAIN_STATE) == AP_SQ_MS_EXITING;
#else
    return 0;
#endif
}

/* Takes the names of this process's segments off the system.  A stored
 * segment whose file could not be written keeps its name, and the list keeps
 * it, so that whatever comes next (a kill, the next start) finds it.  Returns
 * how many those are. */
static unsigned int names_remove(void)
{
    ap_slotmem_instance_t *s =
        retained->former ? retained->former->first : NULL;
    unsigned int kept = 0;

    for (; s; s = s->next) { /* a restart fails: kept when that began */
        kept += s->key != NULL;
    }
    for (s = registry->first; s; s = s->next) {
        if (s->key && retained->state == RUNTIME_OWNER && !s->has_digest
            && is_stored(s, STORE_STOP)) {
            kept++;
        }
        else if (s->key) {
            object_remove(s->key);
            s->key = NULL;
        }
    }
    if (!kept) {
        runtime_sweep(head_is_of); /* what children made: no list has that */
    }
    return kept;
}

/* What the next start finds. */
static void marker_leave(int exiting, unsigned int kept)
{
    if (retained->state != RUNTIME_OWNER) {
        return;
    }
    if (!exiting) {
        marker_write();
    }
    else if (!kept) {
        unlink(retained->path);
    }
    if (exiting) {
        marker_close();
    }
}

/*
 * The generation ends: everything is stored, and handed over.  A plain cleanup
 * of pconf, registered in pre_config, so after the cleanups of all who were
 * configured later, among them the one in which httpd forgets that it was
 * asked to stop or restart: a signal that comes while this stores is kept.
 */
static apr_status_t slotmem_close(void *data)
{
    const int exiting = server_exits();
    enum runtime_state before;
    unsigned int kept;
    store_t st;

    (void)data;
    if (self.process.pid != (apr_uint32_t)getpid() || self.role == ROLE_CHILD
        || !registry) {
        return APR_SUCCESS;
    }
    checkpoint_stop();
    if (retained->state != RUNTIME_UNKNOWN && retained->pid == getpid()) {
        const int arriving =
            self.role == ROLE_CONFIGURING && orphans.by_key != NULL;

        if (runtime_look(&before)) {
            runtime_succeed(before);
        }
        if (runtime_may_write() && store_is_wanted()) {
            store_all(&st, exiting ? STORE_STOP : STORE_RESTART,
                      &retained->told->failing);
            litter_remove_all(); /* what the helper was about to write */
        }
        kept = names_remove();
        /* A start that is given up before it took over what it found leaves
         * the list of that as it is. */
        if (!arriving) {
            marker_leave(exiting, kept);
        }
    }
    orphans_end(0);
    if (exiting || retained->state == RUNTIME_UNKNOWN) {
        registry_close(registry);
    }
    else {
        retained->former = registry;
    }
    registry = NULL;
    self.mutex = NULL;
    return APR_SUCCESS;
}

/* After every fork, whoever forked.  The marker steers the parent, so it is
 * not for others to write; and the helper must see its pipe end when the
 * parent ends. */
static void fork_in_child(void)
{
    process_note_self();
    if (retained) {
        marker_close();
    }
    if (checkpoint.pipe >= 0) {
        close(checkpoint.pipe);
        checkpoint.pipe = -1;
    }
}

static int retained_open(void)
{
    ap_slotmem_instance_t *s;
    void *page;

    retained = ap_retained_data_get(RETAINED_KEY);
    if (retained) {
        /* A copy that waits for a put calls functions, which lay elsewhere
         * when this module was loaded for the generation before. */
        s = retained->former ? retained->former->first : NULL;
        for (; s; s = s->next) {
            s->locks.env = &locks_env;
        }
        return 1;
    }
    page = mmap(NULL, sizeof(*retained->told), PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) {
        return 0;
    }
    retained = ap_retained_data_create(RETAINED_KEY, sizeof(*retained));
    retained->marker = -1;
    retained->told = page;
    return 1;
}

static int slotmem_pre_config(apr_pool_t *pconf, apr_pool_t *plog,
                              apr_pool_t *ptemp)
{
    static int watching; /* until this module is unloaded */
    apr_status_t rv;

    (void)plog;
    (void)ptemp;
    memset(&orphans, 0, sizeof(orphans));
    self.role = ROLE_CONFIGURING;
    process_note_self();
    self.server = self.process;
    if (!watching) {
        watching = pthread_atfork(NULL, NULL, fork_in_child) == 0;
    }
    rv = retained_open() ? registry_open() : APR_ENOMEM;
    if (rv != APR_SUCCESS) {
        ap_log_error(APLOG_MARK, APLOG_CRIT, rv, NULL,
                     "slotmem_shm: no memory to begin with");
        return HTTP_INTERNAL_SERVER_ERROR;
    }
    apr_pool_cleanup_register(pconf, NULL, slotmem_close,
                              apr_pool_cleanup_null);
    rv = ap_mutex_register(pconf, MUTEX_TYPE, NULL, APR_LOCK_DEFAULT, 0);
    return rv == APR_SUCCESS ? OK : HTTP_INTERNAL_SERVER_ERROR;
}

static int slotmem_post_config(apr_pool_t *pconf, apr_pool_t *plog,
                               apr_pool_t *ptemp, server_rec *server)
{
    (void)pconf;
    (void)plog;
    (void)ptemp;
    (void)server;
    if (runs_for_real()) {
        self.server = self.process; /* the server may have detached */
        runtime_arrive();
    }
    return OK;
}

/*
 * After every module's post_config, at each start and restart.  The mutex
 * comes last, when all others have theirs, since it is for what is rare: two
 * children that make one segment.  Where the system has no more to give, the
 * server starts without.
 */
static int slotmem_ready(apr_pool_t *pconf, apr_pool_t *plog, apr_pool_t *ptemp,
                         server_rec *server)
{
    (void)plog;
    if (!runs_for_real()) {
        return OK;
    }
    inheritance_end();
    self.role = ROLE_PARENT;
    status_log(ptemp);
    checkpoint_start();
    if (registry->count
        && ap_global_mutex_create(&self.mutex, NULL, MUTEX_TYPE, NULL, server,
                                  pconf, 0)
               != APR_SUCCESS) {
        self.mutex = NULL;
        ap_log_error(APLOG_MARK, APLOG_WARNING, 0, server,
                     "slotmem_shm: no mutex \"" MUTEX_TYPE "\" could be had "
                     "(the line before says why). The server works without, "
                     "but for one thing: of two processes that make a segment "
                     "of one name at run time, and one of which dies doing so, "
                     "the other may be refused. Another mechanism in the Mutex "
                     "directive helps");
    }
    return OK;
}

static void slotmem_child_init(apr_pool_t *pchild, server_rec *server)
{
    apr_status_t rv;

    if (self.role == ROLE_PARENT && self.server.pid == (apr_uint32_t)getpid()) {
        /* httpd -X: parent and child are one, and end with this pool. */
        apr_pool_cleanup_register(pchild, NULL, slotmem_close,
                                  apr_pool_cleanup_null);
        return;
    }
    self.role = ROLE_CHILD;
    if (!registry) {
        return;
    }
    /* A thread of the parent's may have held it during the fork. */
    registry_lock_make();
    if (!self.mutex) {
        return;
    }
    rv = apr_global_mutex_child_init(
        &self.mutex, apr_global_mutex_lockfile(self.mutex), pchild);
    if (rv != APR_SUCCESS) {
        self.mutex = NULL;
        ap_log_error(APLOG_MARK, APLOG_CRIT, rv, server,
                     "slotmem_shm: cannot open the mutex \"" MUTEX_TYPE "\" "
                     "in a child; try another mechanism in the Mutex "
                     "directive");
    }
}

static void register_hooks(apr_pool_t *p)
{
    static const char *const names[] = { "shm", "shared" };
    apr_size_t i;

    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        ap_register_provider(p, AP_SLOTMEM_PROVIDER_GROUP, names[i],
                             AP_SLOTMEM_PROVIDER_VERSION, &provider);
    }
    ap_hook_pre_config(slotmem_pre_config, NULL, NULL, APR_HOOK_REALLY_FIRST);
    ap_hook_post_config(slotmem_post_config, NULL, NULL, APR_HOOK_REALLY_FIRST);
    ap_hook_post_config(slotmem_ready, NULL, NULL, APR_HOOK_REALLY_LAST + 1);
    ap_hook_child_init(slotmem_child_init, NULL, NULL, APR_HOOK_REALLY_FIRST);
    ap_hook_child_status(checkpoint_child_status, NULL, NULL, APR_HOOK_MIDDLE);
    ap_hook_monitor(checkpoint_monitor, NULL, NULL, APR_HOOK_MIDDLE);
    APR_OPTIONAL_HOOK(ap, status_hook, slotmem_status, NULL, NULL,
                      APR_HOOK_MIDDLE);
}

module AP_MODULE_DECLARE_DATA slotmem_shm_module = {
    STANDARD20_MODULE_STUFF, NULL, NULL, NULL, NULL, NULL, register_hooks,
#ifdef AP_MODULE_FLAG_NONE
    AP_MODULE_FLAG_NONE
#endif
};
