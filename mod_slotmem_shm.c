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
 *     +--------+---------------+--------------+-------------------+-------+
 *     | header | in-use table  | slot locks   | slot 0, 1, 2, ... | slack |
 *     +--------+---------------+--------------+-------------------+-------+
 *                slotmem_table.h slotmem_locks.h  item_size apart  64 bytes
 *
 * Control words lie before the slots because one published consumer writes
 * an int past its last slot: that lands in the slack and hurts nobody.
 *
 * A stored file (a PERSIST segment, at stop, restart and every checkpoint):
 *
 *     +-----------+--------+---------------+-----+------------------------+
 *     | free: 8 B | slots  | 1 byte a slot | MD5 | item_size, _num, type  |
 *     +-----------+--------+---------------+-----+------------------------+
 *
 * The rule of trust.  The parent is root, its children are not, and they can
 * write every word of a segment.  So geometry, type, names and paths live in
 * private memory (ap_slotmem_instance_t, inherited by fork), and nothing read
 * from shared memory chooses an address, a length, a path, or how long the
 * parent waits.  An index made from shared bits is masked to the geometry
 * before it is used.  test/shared-words.md lists every shared word and what
 * happens when it holds anything at all.
 *
 * The rule of locks.  grab, release, fgrab, dptr, doall and the counts take
 * none.  put takes the seqlock of its slot; get takes nothing.  The registry
 * lock (threads of one process) comes before the global mutex (processes),
 * and a slot lock is never waited for under either.  The parent never waits
 * without bound for anything that a child can hold.
 */

#include "apr.h"
#include "apr_escape.h"
#include "apr_file_info.h"
#include "apr_file_io.h"
#include "apr_general.h"
#include "apr_global_mutex.h"
#include "apr_hash.h"
#include "apr_md5.h"
#include "apr_optional_hooks.h"
#include "apr_shm.h"
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
#include "scoreboard.h"
#include "util_mutex.h"

#include "mod_slotmem_shm.h"
#include "slotmem_locks.h"
#include "slotmem_table.h"

#if !APR_HAS_FORK || !APR_HAS_SHARED_MEMORY
#error                                                                         \
    "mod_slotmem_shm needs fork() and shared memory (mpm_winnt is not supported)"
#endif

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

module AP_MODULE_DECLARE_DATA slotmem_shm_module;
APLOG_USE_MODULE(slotmem_shm);

/* ==================== layout ==================== */

_Static_assert(sizeof(struct slotmem_shm_header) == 128
                   && SLOTMEM_SHM_ALIGN == SLOTMEM_PART_ALIGN,
               "the header is part of the published layout");

/* Where everything lies, from the header; computed from what the caller
 * asked for, kept in private memory, never read back from the segment. */
typedef struct {
    apr_size_t item_size;
    unsigned int item_num;
    apr_size_t locks_off;
    apr_size_t slots_off;
    apr_size_t slots_len;
    apr_size_t total;
} layout_t;

/*
 * The only place where sizes are added and multiplied.  Half of the address
 * space is more than any machine maps, so with the slots below that nothing
 * that follows can wrap.
 */
static apr_status_t layout_make(layout_t *l, apr_size_t item_size,
                                unsigned int item_num)
{
    const apr_size_t limit = ~(apr_size_t)0 / 2;
    const apr_size_t table = sizeof(struct slotmem_shm_header);

    memset(l, 0, sizeof(*l));
    if (item_num && item_size > limit / item_num) {
        return APR_EINVAL;
    }
    l->item_size = item_size;
    l->item_num = item_num;
    l->slots_len = item_size * item_num;
    l->locks_off = table + slotmem_table_size(item_num);
    l->slots_off = l->locks_off + slotmem_locks_size(item_num);
    if (l->slots_len > limit - l->slots_off - 2 * SLOTMEM_SHM_SLACK) {
        return APR_EINVAL;
    }
    l->total =
        slotmem_part_end(l->slots_off + l->slots_len + SLOTMEM_SHM_SLACK);
    return APR_SUCCESS;
}

/* What a segment began with. */
enum origin {
    ORIGIN_NOTHING,
    ORIGIN_FILE,
    ORIGIN_MEMORY,
    ORIGIN_BAD_FILE, /* with nothing, though there is a file */
    ORIGIN_PROCESS,
    ORIGINS
};

static const char *const origin_text[ORIGINS] = { "nothing", "stored file",
                                                  "memory of a killed run",
                                                  "nothing (file put aside)",
                                                  "another process" };

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

    const char *name;  /* as given by the caller; NULL: anonymous */
    const char *key;   /* of the shared memory; NULL: anonymous   */
    const char *store; /* stored file; NULL: none                 */
    apr_pool_t *pool;  /* holds this struct and the mapping       */
    apr_shm_t *shm;
    enum origin origin; /* what it began with, for people          */
    unsigned char digest[APR_MD5_DIGESTSIZE];
    int has_digest;                  /* the file bears this digest            */
    _Atomic unsigned int grown_left; /* so many unwritten slots go first   */
    ap_slotmem_instance_t *next;     /* in order of creation                  */
};

/* Bytes to ask of APR: the header begins at a multiple of 64, and APR hands
 * out memory that begins 8 bytes into a page. */
static apr_size_t layout_request(const layout_t *l)
{
    return l->total + SLOTMEM_SHM_ALIGN;
}

static struct slotmem_shm_header *header_at(void *base)
{
    apr_size_t past = (apr_uintptr_t)base % SLOTMEM_SHM_ALIGN;

    return (
        struct slotmem_shm_header *)((char *)base
                                     + (past ? SLOTMEM_SHM_ALIGN - past : 0));
}

static const slotmem_locks_env_t locks_env; /* see "slot locks" */

/* Lays an instance whose layout is made over mapped memory. */
static void segment_lay(ap_slotmem_instance_t *s, void *base)
{
    char *start;

    s->header = header_at(base);
    start = (char *)s->header;
    s->slots = start + s->layout.slots_off;
    slotmem_table_lay(&s->table, s->layout.item_num,
                      (slotmem_word_t *)(void *)(s->header + 1));
    slotmem_locks_lay(&s->locks, s->layout.item_num, s->layout.item_size,
                      (slotmem_word_t *)(void *)(start + s->layout.locks_off),
                      (slotmem_byte_t *)s->slots, &locks_env);
}

/* ==================== names ==================== */

static int name_is_anonymous(const char *name)
{
    return name == NULL || *name == '\0' || !strcasecmp(name, "none");
}

static int name_is_absolute(const char *name)
{
    return *name == '/';
}

static unsigned int mpm_generation(void)
{
    int generation = 0;

    ap_mpm_query(AP_MPMQ_GENERATION, &generation);
    return (unsigned int)generation;
}

/* The key of the shared memory; NULL when the name makes no path. */
static const char *name_key(apr_pool_t *p, const char *name,
                            unsigned int generation)
{
    if (name_is_absolute(name)) {
        return apr_pstrdup(p, name);
    }
    return ap_runtime_dir_relative(
        p, apr_psprintf(p, "slotmem-shm-%s_%x.shm", name, generation));
}

static int path_is_too_long(const char *path)
{
    struct stat st;

    return lstat(path, &st) != 0 && errno == ENAMETOOLONG;
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

/*
 * A path in the directory of `path`, for a file that will replace it or that
 * keeps what it held.  A name that would grow past NAME_MAX gives way to its
 * MD5, which is as good: the name only has to be the same each time.
 */
static const char *name_beside(apr_pool_t *p, const char *path,
                               const char *suffix)
{
    const char *slash = ap_strrchr_c(path, '/');
    const char *file = slash ? slash + 1 : path;
    unsigned char digest[APR_MD5_DIGESTSIZE];

    if (strlen(file) + strlen(suffix) <= 255) {
        return apr_pstrcat(p, path, suffix, NULL);
    }
    apr_md5(digest, file, strlen(file));
    return apr_pstrcat(
        p, apr_pstrmemdup(p, path, (apr_size_t)(file - path)), "slotmem-shm-",
        apr_pescape_hex(p, digest, sizeof(digest), 0), suffix, NULL);
}

/* ==================== segments that have grown ==================== */

static int all_zero(const unsigned char *bytes, apr_size_t len)
{
    return len == 0
           || (bytes[0] == 0 && memcmp(bytes, bytes + 1, len - 1) == 0);
}

/*
 * A CLEARINUSE segment comes back with every slot free and its content in
 * place, for its owners to find and to claim with fgrab.  When it has grown,
 * there are new owners as well, and mod_proxy_balancer grabs for a new one
 * before it has looked for the old ones that stand after it in the
 * configuration.  So as many slots as it has grown by are given away first
 * from those that nobody ever wrote to: else one member more would push out
 * the first one, that one the second, and all state was lost.  The lowest of
 * them, so that nothing is cut off when the segment shrinks again.
 */
static void grown_note(ap_slotmem_instance_t *s, unsigned int stored_num)
{
    if ((s->type & AP_SLOTMEM_TYPE_CLEARINUSE)
        && stored_num < s->layout.item_num) {
        atomic_store_explicit(&s->grown_left, s->layout.item_num - stored_num,
                              memory_order_relaxed);
    }
}

static int grown_grab(ap_slotmem_instance_t *s, unsigned int *id)
{
    unsigned int left =
        atomic_load_explicit(&s->grown_left, memory_order_relaxed);
    unsigned int i;

    if (left == 0) {
        return 0;
    }
    atomic_store_explicit(&s->grown_left, left - 1, memory_order_relaxed);
    for (i = 0; i < s->layout.item_num; i++) {
        const char *slot = s->slots + (apr_size_t)i * s->layout.item_size;

        if (!slotmem_table_used(&s->table, i)
            && all_zero((const unsigned char *)slot, s->layout.item_size)
            && slotmem_table_fgrab(&s->table, i)) {
            *id = i;
            return 1;
        }
    }
    return 0;
}

/* ==================== processes and the global mutex ==================== */

#define MUTEX_TYPE "slotmem-shm"
#define MUTEX_WAIT apr_time_from_sec(1)

/* What this process knows of itself.  Private, hence inherited by fork and
 * set again in child_init. */
static struct {
    pid_t pid;
    slotmem_process_t process; /* as the slot locks note it            */
    int is_child;              /* forked by the parent, not the parent */
    apr_global_mutex_t *mutex; /* NULL until post_config               */
} self;

enum process_state { PROCESS_GONE, PROCESS_ALIVE };

/*
 * When process `pid` began, folded to 15 bits, so that a number which the
 * kernel has handed to somebody else is not taken for the one that died.
 * BIRTH_UNKNOWN where it cannot be told; the pid alone then has to do.
 */
#define BIRTH_UNKNOWN 0u
#define BIRTH_NONE                                                             \
    (SLOTMEM_LOCK_BIRTH_MASK + 1) /* a zombie: dead, not yet reaped */

static unsigned int process_birth(pid_t pid)
{
#ifdef __linux__
    char path[64], text[512], *at;
    unsigned int birth;
    ssize_t len;
    int fd, field;

    apr_snprintf(path, sizeof(path), "/proc/%ld/stat", (long)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return BIRTH_UNKNOWN;
    }
    len = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (len <= 0) {
        return BIRTH_UNKNOWN;
    }
    text[len] = '\0';

    /* "pid (name) state ...": the name may hold anything, so the fields are
     * counted from its closing parenthesis; proc(5): 3 is the state, 22 the
     * time of the start. */
    at = strrchr(text, ')');
    if (!at || at[1] != ' ') {
        return BIRTH_UNKNOWN;
    }
    if (at[2] == 'Z' || at[2] == 'X') {
        return BIRTH_NONE;
    }
    for (field = 2; field < 22 && at; field++) {
        at = strchr(at + 1, ' ');
    }
    if (!at) {
        return BIRTH_UNKNOWN;
    }
    birth = (unsigned int)apr_strtoi64(at, NULL, 10) & SLOTMEM_LOCK_BIRTH_MASK;
    return birth == BIRTH_UNKNOWN ? 1 : birth;
#else
    (void)pid;
    return BIRTH_UNKNOWN;
#endif
}

static void process_note_self(void)
{
    self.pid = getpid();
    self.process.pid = (apr_uint32_t)self.pid;
    self.process.birth = process_birth(self.pid);
}

/* `pid` and `birth` may be any numbers: they come from shared memory. */
static enum process_state process_state(pid_t pid, unsigned int birth)
{
    unsigned int now;

    if (pid <= 0 || (kill(pid, 0) != 0 && errno == ESRCH)) {
        return PROCESS_GONE;
    }
    now = process_birth(pid);
    if (now == BIRTH_UNKNOWN || birth == BIRTH_UNKNOWN) {
        return PROCESS_ALIVE;
    }
    return now == birth ? PROCESS_ALIVE : PROCESS_GONE;
}

/*
 * The mutex between processes, for what is rare.  Bounded: some mechanisms
 * (posixsem) stay locked for ever when their owner is killed, and a hostile
 * child may simply keep it.
 */
static apr_status_t mutex_lock(void)
{
    apr_time_t end = apr_time_now() + MUTEX_WAIT;
    apr_status_t rv;

    if (!self.mutex) {
        return APR_SUCCESS;
    }
    while ((rv = apr_global_mutex_trylock(self.mutex)) != APR_SUCCESS) {
        if (!APR_STATUS_IS_EBUSY(rv)) {
            return rv;
        }
        if (apr_time_now() > end) {
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

/* ==================== slot locks ==================== */

/* What slotmem_locks.h wants to know of the world, and what its answers are
 * in this module's words. */

static int locks_lives(slotmem_process_t process)
{
    return process_state((pid_t)process.pid, process.birth) == PROCESS_ALIVE;
}

static apr_uint64_t locks_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (apr_uint64_t)now.tv_sec * 1000000u
           + (apr_uint64_t)now.tv_nsec / 1000u + 1;
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
                                               locks_now, locks_nap,
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

static char *slot_at(const ap_slotmem_instance_t *s, unsigned int id)
{
    return s->slots + s->layout.item_size * id;
}

/* ==================== segments ==================== */

/*
 * Memory that is promised is not memory that is there.  Up to APR 1.7.6 at
 * least, apr_shm_create() and apr_shm_attach() use what mmap() gave without
 * looking whether it gave anything, and write the first page of an object
 * whose file system may have no page left: SIGSEGV and SIGBUS, in the root
 * parent.  So APR's calls, and whatever first touches a page, run under a
 * guard that turns both signals into an error.
 *
 * Nor does memory stay.  A child can give pages of a segment back to the
 * system (madvise with MADV_REMOVE) and use up what there is, and then even
 * to read one is a SIGBUS.  So whatever the parent reads of memory that
 * children have had, it reads under the guard.
 *
 * Only the thread that asked is caught; a fault of any other goes where it
 * would have gone.
 */
static _Thread_local sigjmp_buf *guard_env;
static struct sigaction guard_old_bus, guard_old_segv;

static void guard_handler(int signum)
{
    if (guard_env) {
        siglongjmp(*guard_env, 1);
    }
    /* Not ours: with the former handler back, the instruction faults again. */
    sigaction(SIGBUS, &guard_old_bus, NULL);
    sigaction(SIGSEGV, &guard_old_segv, NULL);
    (void)signum;
}

/* Runs fn(ctx); APR_ENOMEM if it touched memory that is not there.  Called
 * with the registry lock held, or by the only thread of the parent, so one
 * at a time in a process. */
static apr_status_t guarded(apr_status_t (*fn)(void *ctx), void *ctx)
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

/*
 * Makes sure that every page of the memory is there, now.  The kernel does
 * it in one call since Linux 5.14 and answers an error where a touch would
 * be a SIGBUS; elsewhere each page is touched, under the guard.
 */
static apr_status_t memory_back(void *base, apr_size_t len)
{
    const apr_size_t page = (apr_size_t)sysconf(_SC_PAGESIZE);
    char *start = (char *)((apr_uintptr_t)base & ~(apr_uintptr_t)(page - 1));
    char *end = (char *)base + len;
    char *at;

#ifdef MADV_POPULATE_WRITE
    if (madvise(start, (apr_size_t)(end - start), MADV_POPULATE_WRITE) == 0) {
        return APR_SUCCESS;
    }
    if (errno != EINVAL) {
        return errno == EFAULT || errno == EHWPOISON ? APR_ENOMEM : errno;
    }
#endif
    for (at = start; at < end; at += page) {
        volatile char *byte = at < (char *)base ? base : at;
        char held = *byte;
        *byte = held;
    }
    return APR_SUCCESS;
}

/* What guarded() is to do, and what came of it. */
typedef struct {
    apr_shm_t *shm;
    apr_size_t size; /* bytes, all of them backed; to attach, 0: find out */
    const char *key;
    apr_pool_t *pool;
} memory_t;

static apr_status_t memory_create_unguarded(void *ctx)
{
    memory_t *m = ctx;
    apr_status_t rv = apr_shm_create(&m->shm, m->size, m->key, m->pool);

    if (rv == APR_SUCCESS) {
        rv = memory_back(apr_shm_baseaddr_get(m->shm), m->size);
    }
    return rv;
}

static apr_status_t memory_attach_unguarded(void *ctx)
{
    memory_t *m = ctx;
    apr_status_t rv = apr_shm_attach(&m->shm, m->key, m->pool);
    apr_size_t size;
    char *base;

    if (rv != APR_SUCCESS) {
        return rv;
    }
    /* APR has the size from the first word of the object, which is anyone's
     * to write, and takes 8 from it: of a 7 it makes the largest size there
     * is, over a mapping of one page.  What counts in the end is whether the
     * pages are there, and no more of them than are asked for, since they are
     * made if need be.  An address in the first page is what APR makes of a
     * mapping that failed. */
    base = apr_shm_baseaddr_get(m->shm);
    size = apr_shm_size_get(m->shm);
    if (size > ~(apr_size_t)0 / 2 || size < m->size
        || (apr_uintptr_t)base < 4096) {
        return APR_EINVAL;
    }
    m->size = m->size ? m->size : size;
    return memory_back(base, m->size);
}

/*
 * Shared memory of m->size bytes under m->key, or anonymous.  Older APR makes
 * POSIX objects readable by all, and secrets of AJP members lie in them, so
 * the mask keeps them 0600 from the first instant.  (The mask is the whole
 * process's: another thread that creates a file just now gets a more private
 * one.)  On error nothing stays.
 */
static apr_status_t memory_create(memory_t *m)
{
    mode_t mask = umask(0177);
    apr_status_t rv;

    m->shm = NULL;
    rv = guarded(memory_create_unguarded, m);
    umask(mask);
    if (rv == APR_SUCCESS) {
        return rv;
    }
    if (m->shm) {
        apr_shm_destroy(m->shm);
        m->shm = NULL;
    }
    else if (m->key && rv == APR_ENOMEM) {
        /* APR made the object and fell over its first page. */
        apr_shm_remove(m->key, m->pool);
    }
    return rv;
}

static apr_status_t memory_attach(memory_t *m)
{
    apr_status_t rv;

    m->shm = NULL;
    rv = guarded(memory_attach_unguarded, m);
    if (rv != APR_SUCCESS && m->shm
        && (apr_uintptr_t)apr_shm_baseaddr_get(m->shm) >= 4096) {
        apr_shm_detach(m->shm);
    }
    return rv;
}

static int memory_exceeds_machine(apr_size_t size)
{
    static long pages; /* asking costs more than the rest of a create */
    long page = sysconf(_SC_PAGESIZE);

    if (pages == 0) {
        pages = sysconf(_SC_PHYS_PAGES);
    }
    return pages > 0 && page > 0 && size / (apr_size_t)page > (apr_size_t)pages;
}

/* A fresh segment's header; the magic, by segment_publish, makes it count. */
static void segment_format(ap_slotmem_instance_t *s, const unsigned char *run)
{
    struct slotmem_shm_header *h = s->header;

    memset(h, 0, sizeof(*h));
    h->version = SLOTMEM_SHM_VERSION;
    h->type = s->type;
    h->item_size = s->layout.item_size;
    h->item_num = s->layout.item_num;
    h->slots_offset = s->layout.slots_off;
    h->total_size = s->layout.total;
    h->generation = mpm_generation();
    h->pid = (apr_uint64_t)self.pid;
    memcpy(h->run, run, sizeof(h->run));
}

/* Release: who finds the magic, after a kill or in another child, finds all
 * that was restored before it.  Pairs with the acquire in header_check. */
static void segment_publish(ap_slotmem_instance_t *s)
{
    atomic_store_explicit((slotmem_word_t *)(void *)&s->header->magic,
                          SLOTMEM_SHM_MAGIC, memory_order_release);
}

/*
 * Is this the header of a segment of the run that it should be?  Nothing of
 * it is believed further than that: `size` is what is really mapped from the
 * header on.  Fills in `l` from a private copy of the geometry.
 */
static apr_status_t header_check(struct slotmem_shm_header *h, apr_size_t size,
                                 const unsigned char *run, layout_t *l,
                                 ap_slotmem_type_t *type)
{
    struct slotmem_shm_header copy;

    if (size < sizeof(copy)
        || atomic_load_explicit((slotmem_word_t *)(void *)&h->magic,
                                memory_order_acquire)
               != SLOTMEM_SHM_MAGIC) {
        return APR_EINVAL;
    }
    memcpy(&copy, h, sizeof(copy));
    if (copy.version != SLOTMEM_SHM_VERSION
        || memcmp(copy.run, run, sizeof(copy.run)) != 0
        || copy.item_num > APR_UINT32_MAX || copy.item_size > ~(apr_size_t)0
        || layout_make(l, (apr_size_t)copy.item_size,
                       (unsigned int)copy.item_num)
               != APR_SUCCESS
        || l->slots_off != copy.slots_offset || l->total != copy.total_size
        || l->total > size) {
        return APR_EINVAL;
    }
    *type = copy.type;
    return APR_SUCCESS;
}

/* ==================== registry ==================== */

/*
 * The segments of this process, by the name the caller gave.  The parent
 * fills it in post_config and its children inherit it, so a segment made
 * before they were forked is there in each of them.  It lives in a pool of
 * its own, with its own allocator, touched only under the lock, and without
 * a parent: it is destroyed by a cleanup registered in pre_config, hence after
 * those of every consumer that may still look at its slots.
 */
static struct {
    apr_pool_t *pool; /* NULL: configuration has not begun     */
    apr_hash_t *by_name;
    ap_slotmem_instance_t *first, *last;
#if APR_HAS_THREADS
    apr_thread_mutex_t *lock;
#endif
    int claimed;  /* runtime_claim has been called       */
    int isolated; /* another httpd owns the directory    */
} registry;

/* What outlives a restart, which unloads this module and loads it again. */
typedef struct {
    apr_file_t *marker; /* open and locked: the run is on       */
    char marker_path[APR_PATH_MAX];
    pid_t pid; /* that locked it                       */
    unsigned char run[SLOTMEM_SHM_RUN_LEN];
    apr_time_t checkpoint_due;
    int unmarked;     /* a generation ran without a marker    */
    apr_proc_t stuck; /* a helper that a restart had to leave */
} retained_t;

#define RETAINED_KEY "mod_slotmem_shm"

static retained_t *retained;

static void registry_lock(void)
{
#if APR_HAS_THREADS
    apr_thread_mutex_lock(registry.lock);
#endif
}

static void registry_unlock(void)
{
#if APR_HAS_THREADS
    apr_thread_mutex_unlock(registry.lock);
#endif
}

static apr_status_t registry_lock_make(void)
{
#if APR_HAS_THREADS
    return apr_thread_mutex_create(&registry.lock, APR_THREAD_MUTEX_DEFAULT,
                                   registry.pool);
#else
    return APR_SUCCESS;
#endif
}

static apr_status_t registry_open(void)
{
    apr_allocator_t *allocator;
    apr_status_t rv;

    memset(&registry, 0, sizeof(registry));
    rv = apr_allocator_create(&allocator);
    if (rv != APR_SUCCESS) {
        return rv;
    }
    rv = apr_pool_create_unmanaged_ex(&registry.pool, NULL, allocator);
    if (rv != APR_SUCCESS) {
        apr_allocator_destroy(allocator);
        return rv;
    }
    apr_allocator_owner_set(allocator, registry.pool);
    apr_pool_tag(registry.pool, "slotmem_shm");
    registry.by_name = apr_hash_make(registry.pool);
    return registry_lock_make();
}

static ap_slotmem_instance_t *registry_find(const char *name)
{
    return apr_hash_get(registry.by_name, name, APR_HASH_KEY_STRING);
}

static void registry_add(ap_slotmem_instance_t *s)
{
    if (s->name) {
        apr_hash_set(registry.by_name, s->name, APR_HASH_KEY_STRING, s);
    }
    if (registry.last) {
        registry.last->next = s;
    }
    else {
        registry.first = s;
    }
    registry.last = s;
}

/* ==================== store ==================== */

/*
 * A stored image is made by one function, image_emit, into one of three
 * sinks: to write it (hashing the very bytes that go to the file: hashing
 * live memory and then writing live memory is how a store under load ends in
 * a file that nobody believes), to compare it with a file, or to hash it.
 */
#define SINK_SIZE 65536u

enum sink_mode { SINK_WRITE, SINK_COMPARE, SINK_HASH };

typedef struct {
    enum sink_mode mode;
    apr_file_t *file;
    apr_md5_ctx_t md5;
    apr_size_t fill;
    unsigned char *buffer; /* SINK_SIZE */
    unsigned char *other;  /* SINK_SIZE: what the file has */
    unsigned int patience; /* left, with slots being written */
} sink_t;

/* The in-use table as the file will have it. */
typedef struct {
    apr_uint64_t *words;
    apr_size_t count;
    unsigned int used;
} used_t;

static apr_status_t sink_flush(sink_t *k)
{
    apr_status_t rv = APR_SUCCESS;

    if (k->mode == SINK_COMPARE) {
        rv = apr_file_read_full(k->file, k->other, k->fill, NULL);
        if (rv == APR_SUCCESS && memcmp(k->buffer, k->other, k->fill) != 0) {
            rv = APR_EMISMATCH;
        }
    }
    else {
        apr_md5_update(&k->md5, k->buffer, k->fill);
        if (k->mode == SINK_WRITE) {
            rv = apr_file_write_full(k->file, k->buffer, k->fill, NULL);
        }
    }
    k->fill = 0;
    return rv;
}

/* Space for `len` bytes, at most SINK_SIZE, that the caller fills in. */
static apr_status_t sink_room(sink_t *k, apr_size_t len, unsigned char **at)
{
    if (k->fill + len > SINK_SIZE) {
        apr_status_t rv = sink_flush(k);
        if (rv != APR_SUCCESS) {
            return rv;
        }
    }
    *at = k->buffer + k->fill;
    k->fill += len;
    return APR_SUCCESS;
}

/* What guarded() is to read of a segment, and to where. */
typedef struct {
    const ap_slotmem_instance_t *s;
    used_t *used;
    const used_t *known; /* for the sink */
    sink_t *sink;
} read_t;

static apr_status_t used_read_unguarded(void *ctx)
{
    const ap_slotmem_instance_t *s = ((read_t *)ctx)->s;
    used_t *u = ((read_t *)ctx)->used;
    apr_size_t w;

    for (w = 0; w < u->count; w++) {
        u->words[w] = slotmem_table_leaf(&s->table, w);
        u->used += slotmem_bits_count(u->words[w]);
    }
    return APR_SUCCESS;
}

/* The in-use table as it is now; as the file has it, so empty if the type
 * says that it is to be cleared.  The children's own table stays as it is. */
static apr_status_t used_read(const ap_slotmem_instance_t *s, used_t *u)
{
    read_t r = { s, u, NULL, NULL };

    u->count = slotmem_table_leaves(&s->table);
    u->used = 0;
    u->words = calloc(u->count + 1, sizeof(*u->words));
    if (!u->words) {
        return APR_ENOMEM;
    }
    return s->type & AP_SLOTMEM_TYPE_CLEARINUSE
               ? APR_SUCCESS
               : guarded(used_read_unguarded, &r);
}

static apr_status_t emit_slots(const ap_slotmem_instance_t *s, sink_t *k)
{
    const layout_t *l = &s->layout;
    unsigned int id;
    unsigned char *at;
    apr_status_t rv;
    apr_size_t off;

    if (l->item_size <= SINK_SIZE && !(s->type & AP_SLOTMEM_TYPE_NOTMPSAFE)) {
        for (id = 0; id < l->item_num; id++) {
            rv = sink_room(k, l->item_size, &at);
            if (rv != APR_SUCCESS) {
                return rv;
            }
            slotmem_locks_snapshot(&s->locks, id, at, &k->patience);
        }
        return APR_SUCCESS;
    }
    for (off = 0; off < l->slots_len; off += SINK_SIZE) {
        apr_size_t len =
            l->slots_len - off < SINK_SIZE ? l->slots_len - off : SINK_SIZE;

        rv = sink_room(k, len, &at);
        if (rv != APR_SUCCESS) {
            return rv;
        }
        slotmem_copy_out(at, (slotmem_byte_t *)s->slots + off, len);
    }
    return APR_SUCCESS;
}

static apr_status_t image_emit_unguarded(void *ctx)
{
    const ap_slotmem_instance_t *s = ((read_t *)ctx)->s;
    const used_t *u = ((read_t *)ctx)->known;
    sink_t *k = ((read_t *)ctx)->sink;
    unsigned int free_slots = s->layout.item_num - u->used, id;
    unsigned char *at;
    apr_status_t rv;

    k->fill = 0;
    apr_md5_init(&k->md5);
    rv = sink_room(k, SLOTMEM_SHM_FILE_COUNT_SIZE, &at);
    if (rv == APR_SUCCESS) {
        memset(at, 0, SLOTMEM_SHM_FILE_COUNT_SIZE);
        memcpy(at, &free_slots, sizeof(free_slots));
        rv = emit_slots(s, k);
    }
    for (id = 0; id < s->layout.item_num && rv == APR_SUCCESS; id++) {
        rv = sink_room(k, 1, &at);
        if (rv == APR_SUCCESS) {
            *at = (u->words[id / SLOTMEM_WORD_BITS] & slotmem_bit(id)) != 0;
        }
    }
    return rv == APR_SUCCESS ? sink_flush(k) : rv;
}

/* Everything up to the digest. */
static apr_status_t image_emit(const ap_slotmem_instance_t *s, const used_t *u,
                               sink_t *k)
{
    read_t r = { s, NULL, u, k };

    return guarded(image_emit_unguarded, &r);
}

/* When the segment was stored, for status and for orphan_is_outdated. */
static apr_status_t stored_note_unguarded(void *ctx)
{
    ((ap_slotmem_instance_t *)ctx)->header->stored =
        (apr_uint64_t)apr_time_now();
    return APR_SUCCESS;
}

static void stored_note(ap_slotmem_instance_t *s)
{
    (void)guarded(stored_note_unguarded, s);
}

static void desc_make(unsigned char *to, apr_size_t item_size,
                      unsigned int item_num, ap_slotmem_type_t type)
{
    struct slotmem_shm_file_desc desc;

    memset(to, 0, SLOTMEM_SHM_FILE_DESC_SIZE);
    memset(&desc, 0, sizeof(desc));
    desc.item_size = item_size;
    desc.item_num = item_num;
    desc.type = type;
    memcpy(to, &desc, sizeof(desc));
}

_Static_assert(sizeof(struct slotmem_shm_file_desc)
                   <= SLOTMEM_SHM_FILE_DESC_SIZE,
               "the descriptor fits its place");
_Static_assert(sizeof(unsigned int) <= SLOTMEM_SHM_FILE_COUNT_SIZE,
               "the count fits its place");

static apr_status_t image_write(ap_slotmem_instance_t *s, const used_t *u,
                                sink_t *k, apr_file_t *file)
{
    unsigned char
        tail[SLOTMEM_SHM_FILE_DIGEST_SIZE + SLOTMEM_SHM_FILE_DESC_SIZE];
    apr_status_t rv;

    k->mode = SINK_WRITE;
    k->file = file;
    rv = image_emit(s, u, k);
    if (rv != APR_SUCCESS) {
        return rv;
    }
    apr_md5_final(s->digest, &k->md5);
    s->has_digest = 1;
    memcpy(tail, s->digest, SLOTMEM_SHM_FILE_DIGEST_SIZE);
    desc_make(tail + SLOTMEM_SHM_FILE_DIGEST_SIZE, s->layout.item_size,
              s->layout.item_num, s->type);
    return apr_file_write_full(file, tail, sizeof(tail), NULL);
}

/* Permissions of group and others: a file that has any was not made here. */
#define PERMS_TOO_WIDE                                                         \
    (APR_FPROT_GREAD | APR_FPROT_GWRITE | APR_FPROT_GEXECUTE | APR_FPROT_WREAD \
     | APR_FPROT_WWRITE | APR_FPROT_WEXECUTE)

/* Does the file hold just what memory holds, under a digest that is right? */
static int image_is_stored(ap_slotmem_instance_t *s, const used_t *u, sink_t *k,
                           apr_pool_t *p)
{
    unsigned char
        tail[SLOTMEM_SHM_FILE_DIGEST_SIZE + SLOTMEM_SHM_FILE_DESC_SIZE];
    unsigned char desc[SLOTMEM_SHM_FILE_DESC_SIZE];
    apr_finfo_t info;
    int same;

    if (apr_stat(&info, s->store,
                 APR_FINFO_TYPE | APR_FINFO_SIZE | APR_FINFO_PROT
                     | APR_FINFO_LINK,
                 p)
            != APR_SUCCESS
        || info.filetype != APR_REG || (info.protection & PERMS_TOO_WIDE)
        || (apr_uint64_t)info.size
               != slotmem_shm_file_size(s->layout.item_size, s->layout.item_num)
        || apr_file_open(&k->file, s->store, APR_FOPEN_READ, APR_OS_DEFAULT, p)
               != APR_SUCCESS) {
        return 0;
    }
    k->mode = SINK_COMPARE;
    same =
        image_emit(s, u, k) == APR_SUCCESS
        && apr_file_read_full(k->file, tail, sizeof(tail), NULL) == APR_SUCCESS;
    apr_file_close(k->file);
    desc_make(desc, s->layout.item_size, s->layout.item_num, s->type);
    if (!same
        || memcmp(tail + SLOTMEM_SHM_FILE_DIGEST_SIZE, desc, sizeof(desc))
               != 0) {
        return 0;
    }
    if (s->has_digest && memcmp(tail, s->digest, sizeof(s->digest)) == 0) {
        return 1;
    }
    /* The content is there; is the digest, which this process never saw? */
    k->mode = SINK_HASH;
    if (image_emit(s, u, k) != APR_SUCCESS) {
        return 0;
    }
    apr_md5_final(s->digest, &k->md5);
    s->has_digest = 1;
    return memcmp(tail, s->digest, sizeof(s->digest)) == 0;
}

#define STORE_SUFFIX_STOP       ".new"
#define STORE_SUFFIX_CHECKPOINT ".checkpoint"

/*
 * Files written and not yet renamed.  A rename must not reach the disk before
 * the bytes, so each file is flushed first.  Thousands of flushes in a row
 * take longer than whoever waits for a stop is patient (a stop that takes too
 * long ends in a kill), so there a large batch is flushed in one call that
 * covers the whole file system; each file is then only asked for its own
 * errors.  A checkpoint has time, and spares the rest of that file system.
 */
#define STORE_TOGETHER 16
#define STORE_BATCH    64

typedef struct {
    ap_slotmem_instance_t *s;
    apr_file_t *file;
    const char *path; /* of the new file */
} stored_t;

typedef struct {
    const char *suffix; /* of the new file: one a role, see checkpoint */
    apr_pool_t *pool;   /* cleared with each batch */
    sink_t sink;
    stored_t batch[STORE_BATCH];
    int filled;
    char dir[APR_PATH_MAX]; /* to be flushed */
    int written, unchanged, failed;
    apr_uint64_t bytes;
} store_t;

static void store_log_failure(store_t *st, apr_status_t rv,
                              const ap_slotmem_instance_t *s, const char *what,
                              const char *path)
{
    st->failed++;
    ap_log_error(
        APLOG_MARK, APLOG_ERR, rv, ap_server_conf,
        APLOGNO(
            02334) "slotmem_shm: cannot store %s: %s %s failed; %s keeps what it "
                   "held before. Check that the directory exists, that the "
                   "parent process may write to it, and that its disk has room",
        s->name, what, path, s->store);
}

/* A renamed file is safe once its directory has been flushed too.  Not every
 * file system can, and then there is nothing better to be had. */
static void dir_flush(const char *dir, apr_pool_t *p)
{
    apr_file_t *file;

    if (apr_file_open(&file, dir, APR_FOPEN_READ, APR_OS_DEFAULT, p)
        == APR_SUCCESS) {
        apr_file_sync(file);
        apr_file_close(file);
    }
}

static void store_renamed(store_t *st, const char *path)
{
    const char *slash = ap_strrchr_c(path, '/');
    char dir[APR_PATH_MAX];

    apr_cpystrn(dir, path,
                slash && slash > path
                        && (apr_size_t)(slash - path) < sizeof(dir)
                    ? (apr_size_t)(slash - path) + 1
                    : 2);
    if (st->dir[0] && strcmp(st->dir, dir) != 0) {
        dir_flush(st->dir, st->pool);
    }
    apr_cpystrn(st->dir, dir, sizeof(st->dir));
}

/* Flushes all files of the batch at once; 0 when each has to be. */
static int batch_flush(const store_t *st)
{
#ifdef __linux__
    struct stat first = { 0 }, other;
    apr_os_file_t fd;
    int i;

    if (st->filled < STORE_TOGETHER
        || strcmp(st->suffix, STORE_SUFFIX_STOP) != 0) {
        return 0;
    }
    for (i = st->filled - 1; i >= 0; i--) {
        apr_os_file_get(&fd, st->batch[i].file);
        if (fstat(fd, &other) != 0
            || (i < st->filled - 1 && other.st_dev != first.st_dev)) {
            return 0;
        }
        first = other;
    }
    return syncfs(fd) == 0;
#else
    (void)st;
    return 0;
#endif
}

static apr_status_t file_flush(apr_file_t *file, int flushed)
{
#ifdef __linux__
    const unsigned int wait = SYNC_FILE_RANGE_WAIT_BEFORE
                              | SYNC_FILE_RANGE_WRITE
                              | SYNC_FILE_RANGE_WAIT_AFTER;
    apr_os_file_t fd;

    if (flushed) {
        apr_os_file_get(&fd, file);
        return sync_file_range(fd, 0, 0, wait) == 0 ? APR_SUCCESS : errno;
    }
#else
    (void)flushed;
#endif
    return apr_file_sync(file);
}

static void store_commit_one(store_t *st, stored_t *done, int flushed)
{
    const char *what = "flushing";
    apr_status_t rv = file_flush(done->file, flushed);
    apr_status_t closed = apr_file_close(done->file);

    if (rv == APR_SUCCESS) {
        what = "closing";
        rv = closed;
    }
    if (rv == APR_SUCCESS) {
        what = "renaming";
        /* Noted first: after a kill in between, the file must not look newer
         * than what the memory says of it (see orphan_is_outdated). */
        stored_note(done->s);
        rv = apr_file_rename(done->path, done->s->store, st->pool);
    }
    if (rv != APR_SUCCESS) {
        done->s->has_digest = 0;
        store_log_failure(st, rv, done->s, what, done->path);
        apr_file_remove(done->path, st->pool);
        return;
    }
    store_renamed(st, done->s->store);
    st->written++;
}

static void store_commit(store_t *st)
{
    const int flushed = batch_flush(st);
    int i;

    for (i = 0; i < st->filled; i++) {
        store_commit_one(st, &st->batch[i], flushed);
    }
    st->filled = 0;
    apr_pool_clear(st->pool);
}

/* A new file of our own: a link or a leftover of that name is removed, never
 * followed or written to. */
static apr_status_t store_open(apr_file_t **file, const char *path,
                               apr_pool_t *p)
{
    const apr_int32_t flags =
        APR_FOPEN_WRITE | APR_FOPEN_CREATE | APR_FOPEN_EXCL;
    const apr_fileperms_t mode = APR_FPROT_UREAD | APR_FPROT_UWRITE;
    apr_status_t rv = apr_file_open(file, path, flags, mode, p);

    if (APR_STATUS_IS_EEXIST(rv)) {
        apr_file_remove(path, p);
        rv = apr_file_open(file, path, flags, mode, p);
    }
    return rv;
}

/* Writes the new file of a segment, for store_commit to put in its place. */
static void persist_store(store_t *st, ap_slotmem_instance_t *s)
{
    stored_t *next = &st->batch[st->filled];
    used_t used = { 0 };
    apr_status_t rv = used_read(s, &used);

    next->s = s;
    next->path = name_beside(st->pool, s->store, st->suffix);
    if (rv != APR_SUCCESS) {
        store_log_failure(st, rv, s, "getting memory for", next->path);
        free(used.words);
        return;
    }
    if (image_is_stored(s, &used, &st->sink, st->pool)) {
        st->unchanged++;
        stored_note(s);
        free(used.words);
        return;
    }

    ap_log_error(APLOG_MARK, APLOG_TRACE1, 0, ap_server_conf,
                 APLOGNO(02334) "storing %s", s->store);
    rv = store_open(&next->file, next->path, st->pool);
    if (rv != APR_SUCCESS) {
        store_log_failure(st, rv, s, "creating", next->path);
    }
    else if ((rv = image_write(s, &used, &st->sink, next->file))
             != APR_SUCCESS) {
        s->has_digest = 0;
        store_log_failure(st, rv, s,
                          rv == APR_ENOMEM ? "reading memory for" : "writing",
                          next->path);
        apr_file_close(next->file);
        apr_file_remove(next->path, st->pool);
    }
    else {
        st->bytes +=
            slotmem_shm_file_size(s->layout.item_size, s->layout.item_num);
        if (++st->filled == STORE_BATCH) {
            store_commit(st);
        }
    }
    free(used.words);
}

/* A pool without parent, for a forked child must not touch those it got. */
static apr_status_t store_begin(store_t *st, const char *suffix)
{
    apr_status_t rv;

    memset(st, 0, sizeof(*st));
    st->suffix = suffix;
    st->sink.buffer = malloc(2 * SINK_SIZE);
    if (!st->sink.buffer) {
        return APR_ENOMEM;
    }
    st->sink.other = st->sink.buffer + SINK_SIZE;
    st->sink.patience = SLOTMEM_SNAPSHOT_TRIES + SLOTMEM_SNAPSHOT_NAPS;
    rv = apr_pool_create_unmanaged_ex(&st->pool, NULL, NULL);
    if (rv != APR_SUCCESS) {
        free(st->sink.buffer);
    }
    return rv;
}

static void store_end(store_t *st)
{
    store_commit(st);
    if (st->dir[0]) {
        dir_flush(st->dir, st->pool);
    }
    apr_pool_destroy(st->pool);
    free(st->sink.buffer);
}

/* New files that a killed process left half written. */
static void store_sweep(const ap_slotmem_instance_t *s, apr_pool_t *p)
{
    unlink(name_beside(p, s->store, STORE_SUFFIX_STOP));
    unlink(name_beside(p, s->store, STORE_SUFFIX_CHECKPOINT));
}

static void store_sweep_all(void)
{
    const ap_slotmem_instance_t *s;

    for (s = registry.first; s; s = s->next) {
        if (s->store) {
            store_sweep(s, s->pool);
        }
    }
}

/* Stores every segment that is to be. */
static apr_status_t persist_store_all(store_t *st, const char *suffix)
{
    ap_slotmem_instance_t *s;
    apr_status_t rv = store_begin(st, suffix);

    if (rv != APR_SUCCESS) {
        ap_log_error(
            APLOG_MARK, APLOG_ERR, rv, ap_server_conf,
            APLOGNO(02334) "slotmem_shm: no memory to store segments with; the "
                           "stored files keep what they held before");
        return rv;
    }
    for (s = registry.first; s; s = s->next) {
        if (s->store) {
            persist_store(st, s);
        }
    }
    store_end(st);
    ap_log_error(APLOG_MARK, APLOG_DEBUG, 0, ap_server_conf,
                 "slotmem_shm: stored %d segments, %d unchanged, %d failed",
                 st->written, st->unchanged, st->failed);
    return st->failed ? APR_EGENERAL : APR_SUCCESS;
}

/* ==================== restore ==================== */

enum restored {
    RESTORED, /* the segment holds what the image held               */
    RESTORE_NO_FILE,
    RESTORE_NOT_FIT, /* a whole image, but something would be cut off       */
    RESTORE_DAMAGED,
    RESTORE_FAILED /* could not be read: *rv says why                     */
};

/* Zero and not in use, as a fresh segment is. */
static void segment_wipe(ap_slotmem_instance_t *s)
{
    memset((char *)s->header + sizeof(*s->header), 0,
           s->layout.slots_off - sizeof(*s->header));
    memset(s->slots, 0, s->layout.slots_len);
}

/* The part of an image that a buffer holds goes to where it belongs. */
static void image_take_slots(ap_slotmem_instance_t *s, apr_uint64_t off,
                             const unsigned char *bytes, apr_size_t len,
                             int *cut)
{
    apr_size_t here = 0;

    if (off < s->layout.slots_len) {
        here = s->layout.slots_len - (apr_size_t)off;
        here = here < len ? here : len;
        memcpy(s->slots + off, bytes, here);
    }
    if (!all_zero(bytes + here, len - here)) {
        *cut = 1;
    }
}

static void image_take_used(ap_slotmem_instance_t *s, apr_uint64_t off,
                            const unsigned char *bytes, apr_size_t len,
                            int *cut)
{
    apr_size_t i;

    for (i = 0; i < len; i++) {
        if (bytes[i] && off + i < s->layout.item_num) {
            slotmem_table_fgrab(&s->table, (unsigned int)(off + i));
        }
        else if (bytes[i]) {
            *cut = 1;
        }
    }
}

typedef void image_take_fn(ap_slotmem_instance_t *s, apr_uint64_t off,
                           const unsigned char *bytes, apr_size_t len,
                           int *cut);

/* One part of an image, hashed and handed on chunk by chunk. */
static apr_status_t image_read_part(ap_slotmem_instance_t *s, sink_t *k,
                                    apr_uint64_t part, image_take_fn *take,
                                    int *cut)
{
    apr_uint64_t off;

    for (off = 0; off < part; off += SINK_SIZE) {
        apr_size_t len =
            part - off < SINK_SIZE ? (apr_size_t)(part - off) : SINK_SIZE;
        apr_status_t rv = apr_file_read_full(k->file, k->buffer, len, NULL);

        if (rv != APR_SUCCESS) {
            return rv;
        }
        apr_md5_update(&k->md5, k->buffer, len);
        if (take) {
            take(s, off, k->buffer, len, cut);
        }
    }
    return APR_SUCCESS;
}

/*
 * Reads an image of `num` slots from the start of the file into the fresh
 * segment, which nobody else knows yet.  What it took is wiped again unless
 * all of it turns out right, so one pass over the file is enough.
 */
static enum restored image_read(ap_slotmem_instance_t *s, sink_t *k,
                                unsigned int num, apr_status_t *rv)
{
    unsigned char digest[APR_MD5_DIGESTSIZE], stored[APR_MD5_DIGESTSIZE];
    apr_off_t start = 0;
    int cut = 0;

    apr_md5_init(&k->md5);
    *rv = apr_file_seek(k->file, APR_SET, &start);
    if (*rv == APR_SUCCESS) {
        *rv = image_read_part(s, k, SLOTMEM_SHM_FILE_COUNT_SIZE, NULL, &cut);
    }
    if (*rv == APR_SUCCESS) {
        *rv = image_read_part(s, k, (apr_uint64_t)num * s->layout.item_size,
                              image_take_slots, &cut);
    }
    if (*rv == APR_SUCCESS) {
        *rv = image_read_part(s, k, num, image_take_used, &cut);
    }
    apr_md5_final(digest, &k->md5);
    if (*rv == APR_SUCCESS) {
        *rv = apr_file_read_full(k->file, stored, sizeof(stored), NULL);
    }
    if (*rv == APR_SUCCESS && memcmp(digest, stored, sizeof(digest)) == 0
        && !cut) {
        slotmem_table_hint_all(&s->table);
        memcpy(s->digest, digest, sizeof(digest));
        s->has_digest = num == s->layout.item_num;
        grown_note(s, num);
        return RESTORED;
    }
    segment_wipe(s);
    if (*rv != APR_SUCCESS) {
        return APR_STATUS_IS_EOF(*rv) ? RESTORE_DAMAGED : RESTORE_FAILED;
    }
    return memcmp(digest, stored, sizeof(digest)) == 0 ? RESTORE_NOT_FIT
                                                       : RESTORE_DAMAGED;
}

/* The descriptor at `off`. */
static apr_status_t desc_read(apr_file_t *file, apr_off_t off,
                              unsigned char *desc)
{
    apr_status_t rv = apr_file_seek(file, APR_SET, &off);

    return rv == APR_SUCCESS ? apr_file_read_full(
               file, desc, SLOTMEM_SHM_FILE_DESC_SIZE, NULL)
                             : rv;
}

/*
 * What an open file of `size` bytes holds.  First an image of the segment's
 * own geometry, whatever follows: httpd's own module never shortens a file,
 * so its files may carry older bytes behind.  Else whatever the last 16 bytes
 * describe, if that is just as long as the file: the same slots, fewer or
 * more of them, after the configuration changed.
 */
static enum restored image_find(ap_slotmem_instance_t *s, sink_t *k,
                                apr_uint64_t size, apr_status_t *rv)
{
    const layout_t *l = &s->layout;
    const apr_uint64_t expected =
        slotmem_shm_file_size(l->item_size, l->item_num);
    unsigned char found[SLOTMEM_SHM_FILE_DESC_SIZE];
    unsigned char wanted[SLOTMEM_SHM_FILE_DESC_SIZE];
    struct slotmem_shm_file_desc desc;
    enum restored result = RESTORE_DAMAGED;

    *rv = APR_SUCCESS;
    desc_make(wanted, l->item_size, l->item_num, s->type);
    if (expected && size >= expected) {
        *rv = desc_read(k->file, (apr_off_t)(expected - sizeof(found)), found);
        if (*rv != APR_SUCCESS) {
            return RESTORE_FAILED;
        }
        if (memcmp(found, wanted, sizeof(found)) == 0) {
            result = image_read(s, k, l->item_num, rv);
        }
    }
    if (result != RESTORE_DAMAGED || size < sizeof(found)) {
        return result;
    }

    *rv = desc_read(k->file, (apr_off_t)(size - sizeof(found)), found);
    if (*rv != APR_SUCCESS) {
        return RESTORE_FAILED;
    }
    memcpy(&desc, found, sizeof(desc));
    if (size != slotmem_shm_file_size(desc.item_size, desc.item_num)
        || memcmp(found, wanted, sizeof(found)) == 0) {
        return RESTORE_DAMAGED;
    }
    if (desc.item_size != l->item_size || desc.type != s->type
        || desc.item_num == l->item_num) {
        return RESTORE_NOT_FIT;
    }
    return image_read(s, k, desc.item_num, rv);
}

/* The file cannot be used: it is put aside, in place of one that was put
 * aside before, so that a person can look at it and no store replaces it. */
static void store_put_aside(ap_slotmem_instance_t *s, const char *why,
                            apr_status_t rv, apr_pool_t *p)
{
    const char *aside = name_beside(p, s->store, ".rejected");
    apr_status_t moved = apr_file_rename(s->store, aside, p);

    s->origin = ORIGIN_BAD_FILE;
    if (moved == APR_SUCCESS) {
        ap_log_error(APLOG_MARK, APLOG_WARNING, rv, ap_server_conf,
                     APLOGNO(02551) "slotmem_shm: %s: %s; %s starts empty, and "
                                    "the file is kept as %s",
                     s->store, why, s->name, aside);
    }
    else {
        ap_log_error(
            APLOG_MARK, APLOG_ERR, moved, ap_server_conf,
            APLOGNO(
                02554) "slotmem_shm: %s: %s; %s starts empty, and "
                       "the file could not be kept as %s: the next store will "
                       "replace it",
            s->store, why, s->name, aside);
    }
}

/*
 * Opens a stored file for reading.  Looked at first: opening a pipe that
 * somebody left there would hold up the start of the server for ever.
 */
static apr_status_t restore_open(apr_file_t **file, const char *path,
                                 apr_uint64_t *size, apr_pool_t *p)
{
    apr_finfo_t info;
    apr_status_t rv = apr_stat(&info, path, APR_FINFO_TYPE | APR_FINFO_SIZE, p);

    if (rv != APR_SUCCESS && rv != APR_INCOMPLETE) {
        return rv;
    }
    if (info.filetype != APR_REG) {
        return info.filetype == APR_DIR ? EISDIR : APR_EINVAL;
    }
    *size = (apr_uint64_t)info.size;
    return apr_file_open(file, path, APR_FOPEN_READ, APR_OS_DEFAULT, p);
}

/* Fills a fresh segment from its stored file, if there is one that fits. */
static void persist_restore(ap_slotmem_instance_t *s)
{
    enum restored result = RESTORE_FAILED;
    apr_uint64_t size = 0;
    apr_status_t rv;
    sink_t k;
    apr_pool_t *p;

    apr_pool_create(&p, s->pool);
    store_sweep(s, p);
    k.buffer = malloc(SINK_SIZE);
    rv = k.buffer ? restore_open(&k.file, s->store, &size, p) : APR_ENOMEM;
    if (rv == APR_SUCCESS) {
        result = image_find(s, &k, size, &rv);
        apr_file_close(k.file);
    }
    else if (APR_STATUS_IS_ENOENT(rv) || APR_STATUS_IS_ENOTDIR(rv)
             || APR_STATUS_IS_ENAMETOOLONG(rv)) {
        result = RESTORE_NO_FILE;
    }
    free(k.buffer);

    switch (result) {
    case RESTORED:
        s->origin = ORIGIN_FILE;
        s->header->stored = (apr_uint64_t)apr_time_now();
        ap_log_error(APLOG_MARK, APLOG_DEBUG, 0, ap_server_conf,
                     APLOGNO(02335) "restoring %s: %u of %u slots in use",
                     s->store, slotmem_table_count(&s->table),
                     s->layout.item_num);
        break;
    case RESTORE_NO_FILE:
        ap_log_error(APLOG_MARK, APLOG_TRACE1, 0, ap_server_conf,
                     APLOGNO(02335) "restoring %s: no such file yet", s->store);
        break;
    case RESTORE_NOT_FIT:
        store_put_aside(s,
                        "it is whole, but was stored with another size or "
                        "number of slots or another type, and does not fit "
                        "the configuration of today",
                        0, p);
        break;
    case RESTORE_DAMAGED:
        store_put_aside(s,
                        "it is cut short or damaged (its length, descriptor "
                        "or MD5 is wrong)",
                        0, p);
        break;
    case RESTORE_FAILED:
        store_put_aside(s, "it cannot be read", rv, p);
        break;
    }
    apr_pool_destroy(p);
}

/* ==================== checkpoint ==================== */

/*
 * A power cut, or a container that dies with its /dev/shm, shall cost no more
 * than a short while: about every ten seconds a helper process stores what
 * the parent would store at a stop.  The parent forks it from the monitor
 * hook and goes on; shared mappings are not copied by fork, so that is quick
 * at any size.  The helper tells by its exit status how long the next one has
 * to wait, so that no amount of state becomes a burden: the longest of ten
 * seconds, fifty times what this one took, and the time its bytes would take
 * at 64 KiB a second.
 *
 * The parent stops a helper before it stores for itself, and the two write
 * different new files, so a helper that a dead disk held in the kernel can
 * neither delay the stop for long nor replace what was stored after it: the
 * SIGKILL is waiting for it when the kernel lets go.
 */

/* The monitor hook comes about every 10 s: better one checkpoint early than
 * ten seconds late.  SHARE: so many times what the last one took. */
#define CHECKPOINT_PAUSE     apr_time_from_sec(10)
#define CHECKPOINT_EARLY     apr_time_from_sec(1)
#define CHECKPOINT_SHARE     50
#define CHECKPOINT_BYTES_SEC 65536
#define CHECKPOINT_SLOW      apr_time_from_sec(300)
#define CHECKPOINT_STOP_WAIT apr_time_from_sec(2)

/* Exit status CHECKPOINT_CODE + k: the pause is 10 s times 1.25^k.  Above the
 * signals, since APR reports the number of a fatal signal in the same place. */
#define CHECKPOINT_CODE  65
#define CHECKPOINT_CODES 62

static struct {
    apr_proc_t proc;
    apr_pool_t *pool; /* NULL: no helper runs */
    apr_time_t began;
    int was_slow;
    int called_off; /* by a stop or restart */
} checkpoint;

static apr_time_t checkpoint_pause(int code)
{
    apr_time_t pause = CHECKPOINT_PAUSE;

    for (code -= CHECKPOINT_CODE; code > 0; code--) {
        pause += pause / 4;
    }
    return pause;
}

static int checkpoint_code(apr_time_t took, apr_uint64_t bytes)
{
    apr_time_t wanted = took * CHECKPOINT_SHARE;
    apr_time_t written =
        apr_time_from_sec((apr_int64_t)(bytes / CHECKPOINT_BYTES_SEC));
    int code = CHECKPOINT_CODE;

    wanted = written > wanted ? written : wanted;
    while (checkpoint_pause(code) < wanted
           && code < CHECKPOINT_CODE + CHECKPOINT_CODES - 1) {
        code++;
    }
    return code;
}

/* The parent ends its helper before anything newer is stored; when it is
 * killed itself, the kernel has to, where it can. */
static void checkpoint_die_with_parent(void)
{
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
    if (getppid() != self.pid) {
        _exit(0);
    }
}

/* The helper's life.  Of the parent's it keeps the memory and the log; not
 * its listeners, which a helper on a dead disk would keep from the next
 * server.  What the MPM or a terminal sends to the whole process group, to
 * stop or restart, is not for it: its parent sends SIGKILL. */
static void checkpoint_helper(void)
{
    static const int signals[] = { SIGTERM, SIGHUP,   SIGINT,
                                   SIGUSR1, SIGWINCH, SIGPIPE };
    apr_time_t began = apr_time_now();
    ap_listen_rec *listener;
    sigset_t none;
    store_t st;
    apr_size_t i;

    for (i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        apr_signal(signals[i], SIG_IGN);
    }
    checkpoint_die_with_parent();
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (listener = ap_listeners; listener; listener = listener->next) {
        if (listener->sd) {
            apr_socket_close(listener->sd);
        }
    }
    setpriority(PRIO_PROCESS, 0, 10);

    st.bytes = 0;
    persist_store_all(&st, STORE_SUFFIX_CHECKPOINT);
    _exit(checkpoint_code(apr_time_now() - began, st.bytes));
}

/* Unregisters the helper, too: a cleanup of the pool does it. */
static void checkpoint_forget(void)
{
    registry_lock();
    apr_pool_destroy(checkpoint.pool);
    checkpoint.pool = NULL;
    registry_unlock();
}

static void checkpoint_ended(int status)
{
    int told;

    /* The MPM passes on the exit status; APR, when it is APR that finds the
     * helper gone at a stop or restart, the whole word that waitpid() wrote. */
    if (status > 0xff) {
        status = WEXITSTATUS(status);
    }
    told = status >= CHECKPOINT_CODE;
    checkpoint_forget();
    retained->checkpoint_due = checkpoint.began + checkpoint_pause(status);
    ap_log_error(APLOG_MARK,
                 told || checkpoint.called_off ? APLOG_TRACE1 : APLOG_WARNING,
                 0, ap_server_conf,
                 "slotmem_shm: checkpoint process %" APR_PID_T_FMT " ended "
                 "with status %d%s; the next one begins %d s after it did",
                 checkpoint.proc.pid, status,
                 told ? "" : ", before it had stored everything",
                 (int)apr_time_sec(checkpoint_pause(status)));
}

/* The MPM reaps the helper and calls this, for apr_proc_other_child_*. */
static void checkpoint_maintain(int reason, void *data, int status)
{
    (void)data;
    switch (reason) {
    case APR_OC_REASON_DEATH:
    case APR_OC_REASON_LOST:
        if (checkpoint.pool) {
            checkpoint_ended(status);
        }
        break;
    case APR_OC_REASON_RESTART:
        /* The MPM gathers in its children, to stop or restart. */
        checkpoint.called_off = 1;
        kill(checkpoint.proc.pid, SIGKILL);
        break;
    default:
        break;
    }
}

/* Before the parent stores: no helper may be at it any more. */
static void checkpoint_stop(void)
{
    apr_time_t end = apr_time_now() + CHECKPOINT_STOP_WAIT;
    apr_status_t rv;

    if (!checkpoint.pool) {
        return;
    }
    kill(checkpoint.proc.pid, SIGKILL);
    do {
        rv = apr_proc_wait(&checkpoint.proc, NULL, NULL, APR_NOWAIT);
        if (rv == APR_CHILD_NOTDONE) {
            apr_sleep(1000);
        }
    } while (rv == APR_CHILD_NOTDONE && apr_time_now() < end);
    if (rv == APR_CHILD_NOTDONE) {
        ap_log_error(APLOG_MARK, APLOG_WARNING, 0, ap_server_conf,
                     "slotmem_shm: checkpoint process %" APR_PID_T_FMT " was "
                     "killed but does not end; its disk may not answer. It "
                     "can no longer change a stored file",
                     checkpoint.proc.pid);
        retained->stuck = checkpoint.proc;
    }
    checkpoint_forget();
}

static void checkpoint_begin(void)
{
    registry_lock();
    apr_pool_create(&checkpoint.pool, registry.pool);
    registry_unlock();
    checkpoint.began = apr_time_now();
    checkpoint.was_slow = 0;
    checkpoint.called_off = 0;
}

static void checkpoint_register(void)
{
    /* APR finds a registration again by its data: NULL may be another's. */
    apr_proc_other_child_register(&checkpoint.proc, checkpoint_maintain,
                                  &checkpoint, NULL, checkpoint.pool);
}

/* After a restart: a helper that would not end is still this process's child,
 * whose end the MPM must know what to make of, and no other begins before. */
static void checkpoint_resume(void)
{
    if (retained->stuck.pid) {
        checkpoint_begin();
        checkpoint.called_off = 1;
        checkpoint.proc = retained->stuck;
        retained->stuck.pid = 0;
        checkpoint_register();
    }
}

static void checkpoint_start(void)
{
    apr_status_t rv;

    checkpoint_begin();
    rv = apr_proc_fork(&checkpoint.proc, checkpoint.pool);
    if (rv == APR_INCHILD) {
        checkpoint_helper();
    }
    if (rv != APR_INPARENT) {
        ap_log_error(APLOG_MARK, APLOG_WARNING, rv, ap_server_conf,
                     "slotmem_shm: no process for a checkpoint; the stored "
                     "files grow old until one can be had");
        checkpoint_forget();
        retained->checkpoint_due = apr_time_now() + CHECKPOINT_PAUSE;
        return;
    }
    checkpoint_register();
    ap_log_error(APLOG_MARK, APLOG_TRACE1, 0, ap_server_conf,
                 "slotmem_shm: checkpoint process %" APR_PID_T_FMT " began",
                 checkpoint.proc.pid);
}

static int checkpoint_wanted(void)
{
    const ap_slotmem_instance_t *s;

    for (s = registry.first; s; s = s->next) {
        if (s->store) {
            return 1;
        }
    }
    return 0;
}

static int checkpoint_monitor(apr_pool_t *p, server_rec *server)
{
    apr_time_t now = apr_time_now();

    (void)p;
    if (self.is_child || !registry.pool) {
        return DECLINED;
    }
    if (checkpoint.pool) {
        if (now - checkpoint.began > CHECKPOINT_SLOW && !checkpoint.was_slow) {
            checkpoint.was_slow = 1;
            ap_log_error(APLOG_MARK, APLOG_WARNING, 0, server,
                         "slotmem_shm: checkpoint process %" APR_PID_T_FMT
                         " is still at work after %d s; no other begins "
                         "before it ends. Is the disk of the runtime "
                         "directory answering?",
                         checkpoint.proc.pid,
                         (int)apr_time_sec(now - checkpoint.began));
        }
        return OK;
    }
    if (now + CHECKPOINT_EARLY >= retained->checkpoint_due
        && checkpoint_wanted()) {
        checkpoint_start();
    }
    return OK;
}

/* ==================== take-over ==================== */

/*
 * Named shared memory outlives processes that are killed.  A marker file in
 * the runtime directory says whose it is:
 *
 *     slotmem-shm 1
 *     run IDENTITY PID BOOT               a run began: 32 hex digits, ...
 *     segment GEN TYPE SIZE NUM NAME      it made this segment (NAME in hex)
 *     drop IDENTITY                       all of that run's are gone
 *
 * It is 0600, locked by the parent for as long as it lives (fcntl: the kernel
 * drops the lock with its holder, and no child inherits it, so no number of a
 * process has to be believed), emptied when every segment has been removed at
 * a restart, and removed by a clean stop.  A line is written before the
 * segment is made, so nothing can be left behind unlisted.
 *
 * Who finds the marker unlocked finds the segments of a run that was killed.
 * A PERSIST one becomes what create gives back (first stored, so that a
 * second kill in the middle loses nothing), the others are removed.  Geometry
 * and names come from the marker, which only the parent's user can write; the
 * segment itself must bear the run's identity in a header that fits, else it
 * is not believed.  A marker from before the machine booted lists nothing.
 *
 * Who finds it locked shares the directory with a live httpd: hands off.
 */
#define MARKER_NAME     "slotmem-shm.run"
#define MARKER_TITLE    "slotmem-shm 1\n"
#define MARKER_SIZE_MAX ((apr_off_t)64 * 1024 * 1024)

/* A segment of a run that was killed, as the marker lists it; and, first of
 * each run, one without a name for whatever its children have made. */
typedef struct {
    const char *name;
    unsigned int generation;
    ap_slotmem_type_t type;
    apr_size_t item_size;
    unsigned int item_num;
    unsigned char run[SLOTMEM_SHM_RUN_LEN];
    int gone;          /* removed from the system */
    apr_time_t stored; /* says its header: any number */
    memory_t memory;
    ap_slotmem_instance_t *s; /* laid over its memory; NULL: not mapped */
} orphan_t;

static apr_array_header_t *orphans; /* in registry.pool; NULL: none */

static const char *run_text(const unsigned char *run, apr_pool_t *p)
{
    return apr_pescape_hex(p, run, SLOTMEM_SHM_RUN_LEN, 0);
}

static int run_parse(const char *text, unsigned char *run)
{
    apr_size_t len = 0;

    return text && strlen(text) == 2 * SLOTMEM_SHM_RUN_LEN
           && apr_unescape_hex(run, text, APR_ESCAPE_STRING, 0, &len)
                  == APR_SUCCESS
           && len == SLOTMEM_SHM_RUN_LEN;
}

/* Which boot of the machine this is; "-" where the system does not say. */
static const char *boot_text(apr_pool_t *p)
{
    char text[64];
    apr_size_t len = sizeof(text) - 1;
    apr_file_t *file;

    if (apr_file_open(&file, "/proc/sys/kernel/random/boot_id", APR_FOPEN_READ,
                      APR_OS_DEFAULT, p)
        != APR_SUCCESS) {
        return "-";
    }
    if (apr_file_read(file, text, &len) != APR_SUCCESS) {
        len = 0;
    }
    apr_file_close(file);
    text[len] = '\0';
    text[strcspn(text, " \n")] = '\0';
    return text[0] ? apr_pstrdup(p, text) : "-";
}

static void marker_append(const char *line)
{
    apr_status_t rv;

    if (!retained->marker) {
        return;
    }
    rv = apr_file_write_full(retained->marker, line, strlen(line), NULL);
    if (rv != APR_SUCCESS) {
        ap_log_error(APLOG_MARK, APLOG_WARNING, rv, ap_server_conf,
                     "slotmem_shm: cannot write %s: after a kill, state is "
                     "taken from the stored files instead of from memory. Has "
                     "the disk of the runtime directory room?",
                     retained->marker_path);
    }
}

static void marker_note_run(apr_pool_t *p)
{
    marker_append(apr_psprintf(p, "run %s %" APR_PID_T_FMT " %s\n",
                               run_text(retained->run, p), getpid(),
                               boot_text(p)));
}

static void marker_note_segment(const ap_slotmem_instance_t *s, apr_pool_t *p)
{
    marker_append(apr_psprintf(
        p, "segment %x %x %" APR_SIZE_T_FMT " %u %s\n", mpm_generation(),
        s->type, s->layout.item_size, s->layout.item_num,
        apr_pescape_hex(p, s->name, strlen(s->name), 0)));
}

/* The next word of a line, and what follows it. */
static const char *line_word(char **line)
{
    return apr_strtok(*line, " ", line);
}

static orphan_t *orphan_add(const char *name, const unsigned char *run,
                            apr_pool_t *p)
{
    orphan_t *o;

    if (!orphans) {
        orphans = apr_array_make(p, 64, sizeof(orphan_t));
    }
    o = apr_array_push(orphans);
    memset(o, 0, sizeof(*o));
    o->name = name;
    memcpy(o->run, run, sizeof(o->run));
    return o;
}

static void marker_parse_segment(char *line, const unsigned char *run,
                                 apr_pool_t *p)
{
    const char *gen = line_word(&line), *type = line_word(&line);
    const char *size = line_word(&line), *num = line_word(&line);
    const char *name = line_word(&line);
    apr_size_t len = 0;
    orphan_t *o;

    if (!name) {
        return;
    }
    name = apr_punescape_hex(p, name, 0, &len); /* bytes, without an end */
    if (!name || !len) {
        return;
    }
    o = orphan_add(apr_pstrmemdup(p, name, len), run, p);
    o->generation = (unsigned int)apr_strtoi64(gen, NULL, 16);
    o->type = (ap_slotmem_type_t)apr_strtoi64(type, NULL, 16);
    o->item_size = (apr_size_t)apr_strtoi64(size, NULL, 10);
    o->item_num = (unsigned int)apr_strtoi64(num, NULL, 10);
}

static void orphans_drop(const unsigned char *run)
{
    int i;

    for (i = 0; orphans && i < orphans->nelts; i++) {
        orphan_t *o = &APR_ARRAY_IDX(orphans, i, orphan_t);
        if (memcmp(o->run, run, sizeof(o->run)) == 0) {
            o->gone = 1;
        }
    }
}

/* Fills `orphans` from the marker's text; a line without its end was being
 * written when the parent died, before the segment was made. */
static void marker_parse(char *text, apr_pool_t *p)
{
    unsigned char run[SLOTMEM_SHM_RUN_LEN], dropped[SLOTMEM_SHM_RUN_LEN];
    const char *boot = boot_text(p);
    int believed = 0;
    char *end, *line = text;

    if (strncmp(text, MARKER_TITLE, sizeof(MARKER_TITLE) - 1) != 0) {
        return;
    }
    for (; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        char *rest = line;
        const char *what;

        *end = '\0';
        what = line_word(&rest);
        if (what && !strcmp(what, "run")) {
            believed = run_parse(line_word(&rest), run)
                       && line_word(&rest) /* the pid */
                       && !strcmp(rest, boot);
            if (believed) {
                orphan_add(NULL, run, p);
            }
        }
        else if (what && !strcmp(what, "segment") && believed) {
            marker_parse_segment(rest, run, p);
        }
        else if (what && !strcmp(what, "drop")
                 && run_parse(line_word(&rest), dropped)) {
            orphans_drop(dropped);
        }
    }
}

/* The marker, opened so that a link planted in its place is not followed. */
static apr_status_t marker_open(const char *path, apr_pool_t *p)
{
    const int flags = O_RDWR | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC;
    apr_os_file_t fd = open(path, flags, 0600);
    struct stat st;

    if (fd < 0 && errno == ELOOP) {
        unlink(path);
        fd = open(path, flags | O_EXCL, 0600);
    }
    if (fd < 0) {
        return errno;
    }
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_nlink != 1
        || st.st_uid != geteuid() || (st.st_mode & 0077)) {
        close(fd);
        return APR_EACCES;
    }
    return apr_os_file_put(&retained->marker, &fd,
                           APR_FOPEN_READ | APR_FOPEN_WRITE | APR_FOPEN_APPEND,
                           p);
}

static void marker_close(void)
{
    if (retained->marker) {
        apr_file_close(retained->marker);
        retained->marker = NULL;
    }
}

/* APR_SUCCESS, or APR_EBUSY with the pid of whoever holds it. */
static apr_status_t marker_lock(pid_t *holder)
{
    struct flock lock;
    apr_os_file_t fd;

    apr_os_file_get(&fd, retained->marker);
    memset(&lock, 0, sizeof(lock));
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    if (fcntl(fd, F_SETLK, &lock) == 0) {
        return APR_SUCCESS;
    }
    if (errno != EAGAIN && errno != EACCES) {
        return errno;
    }
    *holder = fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK
                  ? lock.l_pid
                  : 0;
    return APR_EBUSY;
}

/* The text of the marker; "" when there is none to be believed. */
static char *marker_text(apr_pool_t *p)
{
    apr_finfo_t info;
    apr_size_t got = 0;
    char *text;

    if (apr_file_info_get(&info, APR_FINFO_SIZE, retained->marker)
            != APR_SUCCESS
        || info.size > MARKER_SIZE_MAX) {
        return apr_pstrdup(p, "");
    }
    text = apr_pcalloc(p, (apr_size_t)info.size + 1);
    apr_file_read_full(retained->marker, text, (apr_size_t)info.size, &got);
    text[got] = '\0';
    return text;
}

/* Is that the header of the segment that the marker lists?  What else is asked
 * of it is read here, under the guard, since children of the killed run may
 * still be there to take its pages away. */
static apr_status_t orphan_check_unguarded(void *ctx)
{
    orphan_t *o = ctx;
    struct slotmem_shm_header *h =
        header_at(apr_shm_baseaddr_get(o->memory.shm));
    ap_slotmem_type_t type = 0;
    layout_t found;
    apr_status_t rv = header_check(h, o->memory.size - SLOTMEM_SHM_ALIGN,
                                   o->run, &found, &type);

    o->stored = rv == APR_SUCCESS ? (apr_time_t)h->stored : 0;
    return rv == APR_SUCCESS && type == o->type
                   && found.item_size == o->item_size
                   && found.item_num == o->item_num
               ? APR_SUCCESS
               : APR_EINVAL;
}

/* Lays the orphan over its memory, if that is to be believed. */
static apr_status_t orphan_map(orphan_t *o, apr_pool_t *p)
{
    ap_slotmem_instance_t *s = apr_pcalloc(p, sizeof(*s));
    apr_status_t rv;

    s->name = o->name;
    s->type = o->type;
    s->store = name_store(p, o->name);
    o->memory.key = name_key(p, o->name, o->generation);
    o->memory.pool = p;
    if (!o->memory.key || !s->store
        || layout_make(&s->layout, o->item_size, o->item_num) != APR_SUCCESS) {
        return APR_EINVAL;
    }
    o->memory.size = layout_request(&s->layout);
    rv = memory_attach(&o->memory);
    if (rv != APR_SUCCESS) {
        return rv;
    }
    rv = guarded(orphan_check_unguarded, o);
    if (rv != APR_SUCCESS) {
        apr_shm_detach(o->memory.shm);
        return rv;
    }
    segment_lay(s, apr_shm_baseaddr_get(o->memory.shm));
    o->s = s;
    return APR_SUCCESS;
}

/*
 * Has somebody stored since the run was killed, as httpd's own module does
 * when it is put in place of this one for a while?  Then the file is newer
 * than the memory.  What the run itself did to the file it noted, in the
 * segment or by a line in the marker (`noted`), within a moment.
 */
#define STORED_SINCE apr_time_from_sec(2)

static int orphan_is_outdated(const orphan_t *o, apr_time_t noted,
                              apr_pool_t *p)
{
    apr_time_t last = o->stored > noted ? o->stored : noted;
    apr_finfo_t info;

    return apr_stat(&info, o->s->store, APR_FINFO_MTIME, p) == APR_SUCCESS
           && info.mtime - STORED_SINCE > last;
}

static void orphan_detach(orphan_t *o)
{
    if (o->s) {
        apr_shm_detach(o->memory.shm);
        o->s = NULL;
    }
}

/* What is to be kept goes to its stored file before anything is removed, so
 * a second kill at any moment from here on loses nothing. */
static void orphans_store(apr_time_t noted, apr_pool_t *p)
{
    store_t st;
    int i;

    if (store_begin(&st, STORE_SUFFIX_STOP) != APR_SUCCESS) {
        return;
    }
    for (i = 0; i < orphans->nelts; i++) {
        orphan_t *o = &APR_ARRAY_IDX(orphans, i, orphan_t);

        if (o->gone || !(o->type & AP_SLOTMEM_TYPE_PERSIST)
            || orphan_map(o, p) != APR_SUCCESS) {
            continue;
        }
        if (orphan_is_outdated(o, noted, p)) {
            ap_log_error(APLOG_MARK, APLOG_NOTICE, 0, ap_server_conf,
                         "slotmem_shm: %s was stored after the run whose "
                         "memory is still there had been killed: the file is "
                         "used, and not the memory",
                         o->s->store);
            orphan_detach(o);
            continue;
        }
        persist_store(&st, o->s);
    }
    store_end(&st);
}

/* Does the object bear the run's identity, or nothing, since the kill came
 * before anything was written to it? */
static apr_status_t orphan_bears_unguarded(void *ctx)
{
    const orphan_t *o = ctx;
    const unsigned char *base = apr_shm_baseaddr_get(o->memory.shm);
    const struct slotmem_shm_header *h = header_at((void *)base);
    const unsigned char *end = (const unsigned char *)(h + 1);

    return o->memory.size >= SLOTMEM_SHM_ALIGN + sizeof(*h)
                   && (memcmp(h->run, o->run, sizeof(o->run)) == 0
                       || all_zero(base, (apr_size_t)(end - base)))
               ? APR_SUCCESS
               : APR_EINVAL;
}

/* The key of a relative name is in the directory that is ours; an object
 * under an absolute one may be another server's. */
static int orphan_is_ours(orphan_t *o, const char *key, apr_pool_t *p)
{
    apr_status_t rv;

    if (o->s || !name_is_absolute(o->name)) {
        return 1;
    }
    o->memory.key = key;
    o->memory.pool = p;
    o->memory.size = 0;
    rv = memory_attach(&o->memory);
    if (rv != APR_SUCCESS) {
        return APR_STATUS_IS_EOF(rv); /* it never got a size */
    }
    rv = guarded(orphan_bears_unguarded, o);
    apr_shm_detach(o->memory.shm);
    return rv == APR_SUCCESS;
}

/* Takes the orphan's name off the system.  Its mapping, if any, stays. */
static void orphan_unlink(orphan_t *o, apr_pool_t *p)
{
    const char *key = o->name ? name_key(p, o->name, o->generation) : NULL;

    if (key && !o->gone && orphan_is_ours(o, key, p)) {
        apr_shm_remove(key, p);
    }
    o->gone = 1;
}

static int orphans_left(void)
{
    int i;

    for (i = 0; orphans && i < orphans->nelts; i++) {
        if (!APR_ARRAY_IDX(orphans, i, orphan_t).gone) {
            return 1;
        }
    }
    return 0;
}

/*
 * Frees the name for a segment that is about to be made.  Of several orphans
 * of that name (a restart was under way when the kill came) the latest that
 * is mapped is the one to go on with; NULL when there is none.
 */
static orphan_t *orphans_take(const char *name, apr_pool_t *p)
{
    orphan_t *latest = NULL;
    int i;

    for (i = 0; orphans && i < orphans->nelts; i++) {
        orphan_t *o = &APR_ARRAY_IDX(orphans, i, orphan_t);

        if (!o->gone && o->name && !strcmp(o->name, name)) {
            orphan_unlink(o, p);
            latest = o->s ? o : latest;
        }
    }
    return latest;
}

/* Says that this run is on, and looks for one that was killed. */
static void marker_begin(apr_pool_t *p)
{
    apr_finfo_t info;
    apr_time_t noted = 0;

    if (apr_file_info_get(&info, APR_FINFO_MTIME, retained->marker)
        == APR_SUCCESS) {
        noted = info.mtime;
    }
    apr_generate_random_bytes(retained->run, sizeof(retained->run));
    marker_parse(marker_text(p), p);
    if (orphans_left()) {
        marker_append("\n"); /* the last line may have no end */
    }
    else {
        orphans = NULL;
        apr_file_trunc(retained->marker, 0);
        marker_append(MARKER_TITLE);
    }
    marker_note_run(p);
    /* Else this server has stored since the other one was killed. */
    if (orphans && !retained->unmarked) {
        orphans_store(noted, p);
    }
    retained->unmarked = 0;
}

/*
 * Makes the runtime directory ours, once a generation.  Only for a
 * configuration that will run: the pass before that only checks, and the
 * process it checks in is not the one that stays when the server detaches.
 */
static void runtime_claim(void)
{
    apr_pool_t *p = registry.pool;
    const char *path = ap_runtime_dir_relative(p, MARKER_NAME);
    pid_t holder = 0;
    apr_status_t rv;

    if (registry.claimed) {
        return;
    }
    registry.claimed = 1;
    if (retained->marker && retained->pid == getpid() && path
        && !strcmp(path, retained->marker_path)) {
        return;
    }
    if (retained->marker && retained->pid == getpid()) {
        /* DefaultRuntimeDir has changed; every segment is gone by now. */
        apr_file_remove(retained->marker_path, p);
    }
    marker_close();
    retained->pid = getpid();
    apr_generate_random_bytes(retained->run, sizeof(retained->run));
    if (!path) {
        return;
    }
    apr_cpystrn(retained->marker_path, path, sizeof(retained->marker_path));

    rv = marker_open(path, ap_pglobal);
    if (rv == APR_SUCCESS) {
        rv = marker_lock(&holder);
    }
    if (rv == APR_SUCCESS) {
        marker_begin(p);
        return;
    }
    marker_close();
    if (rv == APR_EBUSY) {
        registry.isolated = 1;
        ap_log_error(APLOG_MARK, APLOG_ERR, 0, ap_server_conf,
                     "slotmem_shm: another httpd (process %" APR_PID_T_FMT
                     ") uses this runtime directory (%s is locked). Its "
                     "memory and files are left alone: nothing is stored or "
                     "restored here. Give each server a DefaultRuntimeDir of "
                     "its own",
                     holder, path);
        return;
    }
    retained->unmarked = 1;
    ap_log_error(APLOG_MARK, APLOG_WARNING, rv, ap_server_conf,
                 "slotmem_shm: cannot use %s; after a kill, state is taken "
                 "from the stored files instead of from memory, and shared "
                 "memory may be left behind. Check owner and permissions of "
                 "the runtime directory",
                 path);
}

/* What a killed run left, and the fresh segment that it is to fill. */
typedef struct {
    ap_slotmem_instance_t *s;
    const ap_slotmem_instance_t *old;
} adopt_t;

static apr_status_t adopt_copy_unguarded(void *ctx)
{
    ap_slotmem_instance_t *s = ((adopt_t *)ctx)->s;
    const ap_slotmem_instance_t *old = ((adopt_t *)ctx)->old;
    unsigned int id;
    int cut = 0;

    image_take_slots(s, 0, (const unsigned char *)old->slots,
                     old->layout.slots_len, &cut);
    if (!(s->type & AP_SLOTMEM_TYPE_CLEARINUSE)) {
        for (id = slotmem_table_next_used(&old->table, 0);
             id < old->layout.item_num;
             id = slotmem_table_next_used(&old->table, id + 1)) {
            if (id >= s->layout.item_num) {
                cut = 1;
                break;
            }
            slotmem_table_fgrab(&s->table, id);
        }
    }
    /* What a kill left half written stays marked as such. */
    for (id = 0; id < old->layout.item_num && id < s->layout.item_num; id++) {
        slotmem_locks_tear(&s->locks, id, slotmem_locks_torn(&old->locks, id));
    }
    return cut ? APR_EMISMATCH : APR_SUCCESS;
}

/* Copies a killed run's segment into the fresh one, by the rule of a stored
 * file: nothing of it may be cut off. */
static int adopt_fill(ap_slotmem_instance_t *s,
                      const ap_slotmem_instance_t *old)
{
    adopt_t a = { s, old };

    if (old->layout.item_size != s->layout.item_size || old->type != s->type) {
        return 0;
    }
    if (guarded(adopt_copy_unguarded, &a) != APR_SUCCESS) {
        segment_wipe(s);
        return 0;
    }
    slotmem_table_hint_all(&s->table);
    s->origin = ORIGIN_MEMORY;
    grown_note(s, old->layout.item_num);
    s->header->stored = (apr_uint64_t)apr_time_now(); /* by orphans_store */
    ap_log_error(APLOG_MARK, APLOG_DEBUG, 0, ap_server_conf,
                 "slotmem_shm: %s goes on with the memory of a run that was "
                 "killed: %u of %u slots in use",
                 s->name, slotmem_table_count(&s->table), s->layout.item_num);
    return 1;
}

/*
 * Segments that children made bear the run's identity too, but stand in no
 * list.  Where APR puts POSIX objects is known on Linux only; elsewhere such
 * segments stay until the machine boots.  What is removed here can at worst
 * be an object that a hostile child dressed up, and then it is its own.
 */
static void shm_sweep(const unsigned char *run)
{
#ifdef __linux__
    DIR *dir = opendir("/dev/shm");
    struct dirent *entry;

    while (dir && (entry = readdir(dir)) != NULL) {
        struct slotmem_shm_header head;
        struct stat st;
        int fd, ours;

        if (strncmp(entry->d_name, "ShM.", 4) != 0) {
            continue;
        }
        fd = openat(dirfd(dir), entry->d_name,
                    O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        if (fd < 0) {
            continue;
        }
        ours = fstat(fd, &st) == 0 && S_ISREG(st.st_mode)
               && pread(fd, &head, sizeof(head), SLOTMEM_SHM_ALIGN)
                      == (ssize_t)sizeof(head)
               && head.magic == SLOTMEM_SHM_MAGIC
               && memcmp(head.run, run, sizeof(head.run)) == 0;
        close(fd);
        if (ours) {
            unlinkat(dirfd(dir), entry->d_name, 0);
        }
    }
    if (dir) {
        closedir(dir);
    }
#else
    (void)run;
#endif
}

/* Once every consumer has created its segments: what the killed run left and
 * nobody asked for is removed. */
static void takeover_finish(void)
{
    apr_pool_t *p;
    int i;

    if (!orphans) {
        return;
    }
    apr_pool_create(&p, registry.pool);
    for (i = 0; i < orphans->nelts; i++) {
        orphan_t *o = &APR_ARRAY_IDX(orphans, i, orphan_t);

        orphan_unlink(o, p);
        orphan_detach(o);
    }
    for (i = 0; i < orphans->nelts; i++) {
        orphan_t *o = &APR_ARRAY_IDX(orphans, i, orphan_t);

        if (!o->name) {
            shm_sweep(o->run);
            marker_append(apr_psprintf(p, "drop %s\n", run_text(o->run, p)));
        }
    }
    orphans = NULL;
    apr_pool_destroy(p);
}

/* Every segment of this run has been removed from the system: nothing is left
 * to list, unless (`left`) the server gave up before it took over what it had
 * found. */
static void marker_end(int exiting, int left)
{
    apr_pool_t *p;

    if (!retained->marker || retained->pid != getpid()) {
        return;
    }
    shm_sweep(retained->run);
    apr_pool_create_unmanaged_ex(&p, NULL, NULL);
    if (left) {
        marker_append(apr_psprintf(p, "drop %s\n", run_text(retained->run, p)));
    }
    else if (exiting) {
        unlink(retained->marker_path);
    }
    else {
        apr_file_trunc(retained->marker, 0);
        marker_append(MARKER_TITLE);
        marker_note_run(p);
    }
    if (exiting) {
        marker_close();
    }
    apr_pool_destroy(p);
}

/* ==================== provider calls ==================== */

/* Not in the pass that only checks the configuration, when httpd starts: what
 * it makes is gone before the server runs. */
static int runs_for_real(void)
{
    return ap_state_query(AP_SQ_MAIN_STATE) != AP_SQ_MS_CREATE_PRE_CONFIG;
}

/* May what lies under that key be removed?  A relative name's key is in the
 * runtime directory, and that is ours while we hold its marker. */
static int key_is_ours(const char *name)
{
    return retained->marker && !name_is_absolute(name);
}

static void log_create_failed(apr_status_t rv, const ap_slotmem_instance_t *s,
                              const char *then)
{
    ap_log_error(APLOG_MARK, APLOG_WARNING, rv, ap_server_conf,
                 APLOGNO(02611) "create: apr_shm_create(%s) of %" APR_SIZE_T_FMT
                                " bytes "
                                "failed%s",
                 s->key ? s->key : "", layout_request(&s->layout), then);
}

/* Memory for a segment of the parent's: named, or anonymous when no name can
 * be had, since children inherit either. */
static apr_status_t segment_map_parent(ap_slotmem_instance_t *s)
{
    memory_t m = { 0 };
    apr_status_t rv = APR_SUCCESS;

    m.size = layout_request(&s->layout);
    m.pool = s->pool;
    if (s->key) {
        m.key = s->key;
        marker_note_segment(s, s->pool);
        rv = memory_create(&m);
        if (APR_STATUS_IS_EEXIST(rv) && key_is_ours(s->name)) {
            apr_shm_remove(s->key, s->pool);
            rv = memory_create(&m);
        }
        if (rv != APR_SUCCESS) {
            log_create_failed(
                rv, s,
                APR_STATUS_IS_EEXIST(rv)
                    ? ": the name is in use and not by this server. The segment "
                      "is made without a name: it works as ever, but its memory "
                      "will not outlive a kill of the server. If no other server "
                      "uses it, find the object by its owner and age in /dev/shm "
                      "(elsewhere with ipcs -m) and remove it"
                    : ". The segment is made without a name: it works as ever, "
                      "but its memory will not outlive a kill of the server. Is "
                      "/dev/shm mounted, writable and large enough?");
            s->key = NULL;
        }
    }
    if (!s->key) {
        m.key = NULL;
        rv = memory_create(&m);
        if (rv != APR_SUCCESS) {
            log_create_failed(rv, s,
                              ": the machine or its container has not "
                              "that much memory to give");
            return rv;
        }
    }
    s->shm = m.shm;
    segment_lay(s, apr_shm_baseaddr_get(m.shm));
    segment_format(s, retained->run);
    return APR_SUCCESS;
}

/* Is a segment at hand as large as the caller asks for? */
static int segment_suffices(const ap_slotmem_instance_t *s,
                            apr_size_t item_size, unsigned int item_num)
{
    return s->layout.item_size >= item_size && s->layout.item_num >= item_num;
}

/* Lays `s` over a segment that another process of this run has made. */
static apr_status_t segment_attach(ap_slotmem_instance_t *s)
{
    memory_t m = { 0 };
    apr_status_t rv;
    struct slotmem_shm_header *h;
    char *base;

    m.key = s->key;
    m.pool = s->pool;
    rv = memory_attach(&m);
    if (rv != APR_SUCCESS) {
        return rv;
    }
    base = apr_shm_baseaddr_get(m.shm);
    h = header_at(base);
    if ((apr_size_t)((char *)h - base) > m.size) {
        rv = APR_EINVAL;
    }
    else {
        rv = header_check(h, m.size - (apr_size_t)((char *)h - base),
                          retained->run, &s->layout, &s->type);
    }
    if (rv != APR_SUCCESS) {
        apr_shm_detach(m.shm);
        return rv;
    }
    s->shm = m.shm;
    s->origin = ORIGIN_PROCESS;
    segment_lay(s, base);
    return APR_SUCCESS;
}

/*
 * A child makes a segment: its siblings shall find it, so it must have a name,
 * and who comes second gets what the first one made.  Both are settled under
 * the global mutex.  The object outlives the child, since httpd's children
 * end without destroying this pool; the parent removes it (shm_sweep).
 */
static apr_status_t segment_map_child(ap_slotmem_instance_t *s)
{
    memory_t m = { 0 };
    const layout_t wanted = s->layout;
    apr_status_t rv;

    m.key = s->key;
    m.size = layout_request(&wanted);
    m.pool = s->pool;
    if (!s->key) {
        rv = memory_create(&m);
    }
    else {
        if ((rv = mutex_lock()) != APR_SUCCESS) {
            return rv;
        }
        if (segment_attach(s) == APR_SUCCESS) {
            mutex_unlock();
            return segment_suffices(s, wanted.item_size, wanted.item_num)
                       ? APR_SUCCESS
                       : APR_EINVAL;
        }
        s->layout = wanted;
        rv = memory_create(&m);
    }
    if (rv == APR_SUCCESS) {
        s->shm = m.shm;
        segment_lay(s, apr_shm_baseaddr_get(m.shm));
        segment_format(s, retained->run);
        segment_publish(s);
    }
    else {
        log_create_failed(rv, s,
                          ". A child process cannot share memory that "
                          "has no name. Is /dev/shm mounted, writable and "
                          "large enough, and the name not in use?");
    }
    if (s->key) {
        mutex_unlock();
    }
    return rv;
}

/* The parent's segment: from a killed run, from its stored file, or fresh. */
static apr_status_t segment_make_parent(ap_slotmem_instance_t *s,
                                        orphan_t *orphan)
{
    apr_status_t rv = segment_map_parent(s);

    if (rv != APR_SUCCESS) {
        return rv;
    }
    if (s->store && !(orphan && orphan->s && adopt_fill(s, orphan->s))) {
        persist_restore(s);
    }
    segment_publish(s);
    return APR_SUCCESS;
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

/*
 * Key and stored file of a named segment.  A name that makes no path is no
 * reason not to start: the parent's segment goes without, since children
 * inherit it anyway.  A child's must have a key to be found by.
 */
static apr_status_t segment_paths(ap_slotmem_instance_t *s)
{
    s->key = name_key(s->pool, s->name, mpm_generation());
    if (self.is_child) {
        return s->key ? APR_SUCCESS : APR_ENAMETOOLONG;
    }
    if (!s->key) {
        log_long_name(s, "its memory will not outlive a kill of the server");
    }
    if (s->type & AP_SLOTMEM_TYPE_PERSIST) {
        s->store = name_store(s->pool, s->name);
        if (!s->store) {
            log_long_name(s, "it is not stored: every restart empties it");
        }
    }
    return APR_SUCCESS;
}

static apr_status_t segment_create(ap_slotmem_instance_t **made,
                                   const char *name, apr_size_t item_size,
                                   unsigned int item_num,
                                   ap_slotmem_type_t type)
{
    ap_slotmem_instance_t *s;
    orphan_t *orphan = NULL;
    apr_pool_t *pool;
    apr_status_t rv;

    apr_pool_create(&pool, registry.pool);
    s = apr_pcalloc(pool, sizeof(*s));
    s->pool = pool;
    s->type = type;
    s->origin = ORIGIN_NOTHING;
    rv = layout_make(&s->layout, item_size, item_num);
    if (rv == APR_SUCCESS
        && memory_exceeds_machine(layout_request(&s->layout))) {
        rv = APR_ENOMEM;
    }
    if (rv == APR_SUCCESS && !name_is_anonymous(name)) {
        s->name = apr_pstrdup(pool, name);
        if (!self.is_child && runs_for_real()) {
            runtime_claim();
        }
        if (!registry.isolated && runs_for_real()) {
            rv = segment_paths(s);
        }
    }
    if (rv == APR_SUCCESS && self.is_child) {
        rv = segment_map_child(s);
    }
    else if (rv == APR_SUCCESS) {
        orphan = s->key ? orphans_take(name, pool) : NULL;
        rv = segment_make_parent(s, orphan);
    }
    if (orphan) {
        orphan_detach(orphan);
    }
    if (rv != APR_SUCCESS) {
        apr_pool_destroy(pool);
        return rv;
    }
    registry_add(s);
    *made = s;
    return APR_SUCCESS;
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
    if (!registry.pool) {
        return APR_ENOSHMAVAIL;
    }
    registry_lock();
    if (!name_is_anonymous(name)) {
        s = registry_find(name);
    }
    if (s) {
        ap_log_error(APLOG_MARK, APLOG_DEBUG, 0, ap_server_conf,
                     APLOGNO(02603) "create found %s in global list", name);
        if (!segment_suffices(s, item_size, item_num)) {
            rv = APR_EINVAL;
        }
    }
    else {
        ap_log_error(APLOG_MARK, APLOG_DEBUG, 0, ap_server_conf,
                     APLOGNO(02602) "create didn't find %s in global list",
                     name ? name : "anonymous");
        rv = segment_create(&s, name, item_size, item_num, type);
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
                                     : ": exists already, and smaller");
    if (rv == APR_SUCCESS) {
        *inst = s;
    }
    return rv;
}

/* Maps a segment by its name that this process does not know yet. */
static apr_status_t attach_by_name(ap_slotmem_instance_t **found,
                                   const char *name)
{
    ap_slotmem_instance_t *s;
    apr_pool_t *pool;
    apr_status_t rv;

    apr_pool_create(&pool, registry.pool);
    s = apr_pcalloc(pool, sizeof(*s));
    s->pool = pool;
    s->name = apr_pstrdup(pool, name);
    s->key = name_key(pool, name, mpm_generation());
    /* The parent believes only what it made, and that is in its registry: an
     * object of that name can but come from a child. */
    rv = !self.is_child ? APR_ENOENT : s->key ? mutex_lock() : APR_EINVAL;
    if (rv == APR_SUCCESS) {
        rv = segment_attach(s);
        mutex_unlock();
    }
    if (rv != APR_SUCCESS) {
        apr_pool_destroy(pool);
        return rv;
    }
    registry_add(s);
    *found = s;
    return APR_SUCCESS;
}

static apr_status_t slotmem_attach(ap_slotmem_instance_t **inst,
                                   const char *name, apr_size_t *item_size,
                                   unsigned int *item_num, apr_pool_t *pool)
{
    ap_slotmem_instance_t *s;
    apr_status_t rv = APR_SUCCESS;
    int known;

    (void)pool;
    if (!registry.pool || name_is_anonymous(name)) {
        return APR_ENOSHMAVAIL;
    }
    ap_log_error(APLOG_MARK, APLOG_TRACE1, 0, ap_server_conf,
                 APLOGNO(02301) "attach looking for %s", name);
    registry_lock();
    s = registry_find(name);
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
    apr_size_t w;

    for (w = 0; w < slotmem_table_leaves(&s->table); w++) {
        apr_uint64_t left = SLOTMEM_WORD_FULL, used;

        while ((used = slotmem_table_leaf(&s->table, w) & left)) {
            unsigned int bit = slotmem_bits_lowest(used);
            apr_status_t rv =
                func(slot_at(s, (unsigned int)(w * SLOTMEM_WORD_BITS + bit)),
                     data, pool);

            if (rv != APR_SUCCESS) {
                return rv;
            }
            left &= SLOTMEM_WORD_FULL << bit << 1;
        }
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

static apr_status_t slotmem_dptr(ap_slotmem_instance_t *s, unsigned int id,
                                 void **mem)
{
    if (!s) {
        return APR_ENOSHMAVAIL;
    }
    if (id >= s->layout.item_num) {
        return APR_EINVAL;
    }
    *mem = slot_at(s, id);
    return APR_SUCCESS;
}

/* What get and put ask first; without PREGRAB it leaves the slot in use. */
static apr_status_t access_check(ap_slotmem_instance_t *s, unsigned int id,
                                 apr_size_t len)
{
    if (!s) {
        return APR_ENOSHMAVAIL;
    }
    if (!slotmem_locks_fit(&s->locks, id, len)) {
        return APR_EINVAL;
    }
    if (!slotmem_table_used(&s->table, id)) {
        if (s->type & AP_SLOTMEM_TYPE_PREGRAB) {
            return APR_NOTFOUND;
        }
        slotmem_table_fgrab(&s->table, id);
    }
    return APR_SUCCESS;
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
    return s ? s->layout.item_num : 0;
}

static unsigned int slotmem_num_free_slots(ap_slotmem_instance_t *s)
{
    return s ? s->layout.item_num - slotmem_table_count(&s->table) : 0;
}

static apr_size_t slotmem_slot_size(ap_slotmem_instance_t *s)
{
    return s ? s->layout.item_size : 0;
}

static const char *segment_name(const ap_slotmem_instance_t *s)
{
    return s->name ? s->name : "anonymous";
}

/* Whether a refusal matters is for the caller to know and to say, so these
 * calls log at debug, as httpd's own module does. */
static apr_status_t slotmem_grab(ap_slotmem_instance_t *s, unsigned int *id)
{
    unsigned int found;

    if (!s) {
        return APR_ENOSHMAVAIL;
    }
    if ((!self.is_child && grown_grab(s, &found))
        || slotmem_table_grab(&s->table, &found)) {
        *id = found;
        return APR_SUCCESS;
    }
    ap_log_error(APLOG_MARK, APLOG_DEBUG, 0, ap_server_conf,
                 APLOGNO(02293) "slotmem(%s) grab failed. Num %u/num_free %u",
                 segment_name(s), s->layout.item_num,
                 slotmem_num_free_slots(s));
    return APR_EINVAL;
}

static apr_status_t slotmem_fgrab(ap_slotmem_instance_t *s, unsigned int id)
{
    if (!s) {
        return APR_ENOSHMAVAIL;
    }
    if (id < s->layout.item_num) {
        slotmem_table_fgrab(&s->table, id);
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
 * ?auto for programs, and one line in the log when the server has started.
 *
 * Keys under ?auto are published (README.md) and read by programs: `Key:
 * value` lines, keys of letters and digits that begin with Slotmem, totals
 * first, then SlotmemSegment0..., in the order in which the segments were
 * made.  Times are seconds since 1970.
 */
#define STATUS_ROWS     200  /* on the page; ?auto has every segment        */
#define STATUS_NAME     28   /* characters of a name before it is cut       */
#define STATUS_AUTO_MAX 4096 /* of a line: some readers give up at 64 KiB   */

typedef struct {
    int segments;
    int stored;        /* those that are kept in files     */
    int from[ORIGINS]; /* what those began with            */
    int mortal;        /* those whose memory has no name   */
    apr_uint64_t slots, used, memory;
    apr_time_t oldest; /* store of all; 0: one has none    */
} tally_t;

/* One segment at one moment, so that a row and the total agree while children
 * change the table. */
typedef struct {
    const ap_slotmem_instance_t *s;
    const char *name;
    unsigned int used;
    apr_uint64_t memory;
    apr_time_t stored; /* 0: not yet, or never */
} row_t;

/* The time comes from shared memory, where a child may write any number. */
static apr_time_t stored_time(const ap_slotmem_instance_t *s)
{
    apr_time_t when = (apr_time_t)s->header->stored;

    return s->store && when > 0 && when <= apr_time_now() + apr_time_from_sec(1)
               ? when
               : 0;
}

static void row_read(row_t *row, const ap_slotmem_instance_t *s)
{
    row->s = s;
    row->name = s->name ? s->name : "(anonymous)";
    row->used = slotmem_table_count(&s->table);
    row->memory = layout_request(&s->layout);
    row->stored = stored_time(s);
}

static void tally_add(tally_t *t, const row_t *row)
{
    const ap_slotmem_instance_t *s = row->s;

    t->segments++;
    t->slots += s->layout.item_num;
    t->used += row->used;
    t->memory += row->memory;
    if (s->store) {
        if (t->stored == 0 || row->stored < t->oldest) {
            t->oldest = row->stored;
        }
        t->stored++;
        t->from[s->origin]++;
        t->mortal += !s->key;
    }
}

/* Every segment of this process.  A copy, since writing to a slow client
 * under the registry's lock would hold up whoever creates or attaches; a
 * segment itself stays for as long as the process lives. */
static apr_array_header_t *rows_read(apr_pool_t *p, tally_t *t)
{
    apr_array_header_t *rows = apr_array_make(p, 64, sizeof(row_t));
    const ap_slotmem_instance_t *s;

    memset(t, 0, sizeof(*t));
    registry_lock();
    for (s = registry.first; s; s = s->next) {
        row_t *row = apr_array_push(rows);

        row_read(row, s);
        tally_add(t, row);
    }
    registry_unlock();
    return rows;
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

/* In the units of the rest of the page. */
static const char *bytes_text(apr_pool_t *p, apr_uint64_t bytes)
{
    static const char *const units[] = { "kB", "MB", "GB", "TB" };
    double value = (double)bytes / 1024;
    unsigned int unit = 0;

    if (bytes < 1024) {
        return apr_psprintf(p, "%d B", (int)bytes);
    }
    while (value >= 1024 && unit < sizeof(units) / sizeof(units[0]) - 1) {
        value /= 1024;
        unit++;
    }
    return apr_psprintf(p, "%.1f %s", value, units[unit]);
}

static const char *ago_text(apr_pool_t *p, apr_time_t when)
{
    apr_int64_t s = apr_time_sec(apr_time_now() - when);

    return s < 0        ? "now"
           : s < 120    ? apr_psprintf(p, "%d s ago", (int)s)
           : s < 7200   ? apr_psprintf(p, "%d min ago", (int)(s / 60))
           : s < 172800 ? apr_psprintf(p, "%d h ago", (int)(s / 3600))
                        : apr_psprintf(p, "%d days ago", (int)(s / 86400));
}

static const char *date_text(apr_pool_t *p, apr_time_t when)
{
    char *text = apr_palloc(p, APR_RFC822_DATE_LEN);

    return apr_rfc822_date(text, when) == APR_SUCCESS ? text : "";
}

/* Names hold any bytes: control characters and what is not ASCII as \xhh,
 * since the page is ISO-8859-1, then what HTML reserves. */
static const char *html_text(apr_pool_t *p, const char *text)
{
    return ap_escape_html(p, ap_escape_logitem(p, text));
}

/* The end of a name from `shown` on, cut, with the whole of it at hand. */
static const char *html_cut(apr_pool_t *p, const char *whole, const char *shown)
{
    const int cut = strlen(shown) > STATUS_NAME;

    if (shown == whole && !cut) {
        return html_text(p, whole);
    }
    return apr_pstrcat(
        p, "<abbr title=\"", html_text(p, whole), "\">",
        cut ? html_text(p, apr_pstrmemdup(p, shown, STATUS_NAME - 3))
            : html_text(p, shown),
        cut ? "..." : "", "</abbr>", NULL);
}

static const char *html_file(apr_pool_t *p, const ap_slotmem_instance_t *s)
{
    const char *slash = s->store ? ap_strrchr_c(s->store, '/') : NULL;

    return slash ? html_cut(p, s->store, slash + 1) : "-";
}

static const char *html_stored(apr_pool_t *p, const row_t *row)
{
    return !row->s->store ? "no"
           : !row->stored ? "not yet"
                          : apr_psprintf(p, "<span title=\"%s\">%s</span>",
                                         date_text(p, row->stored),
                                         ago_text(p, row->stored));
}

/* What matters first, since a phone shows the left of the table.  The bar is
 * made of borders, in the colour of the text: a browser that darkens the page
 * takes a background for one, and leaves black on black. */
static void row_html(request_rec *r, const row_t *row)
{
    const ap_slotmem_instance_t *s = row->s;
    apr_pool_t *p = r->pool;
    unsigned int percent =
        s->layout.item_num
            ? (unsigned int)((apr_uint64_t)row->used * 100 / s->layout.item_num)
            : 0;

    ap_rprintf(r,
               "<tr><td>%s</td><td>%u of %u</td>"
               "<td title=\"%u%%\">"
               "<div style=\"width:5em;height:.7em;border:1px solid\">"
               "<div style=\"width:%u%%;border-top:.7em solid\">"
               "</div></div></td><td>%s</td><td>%s</td>"
               "<td>%" APR_SIZE_T_FMT " B</td>"
               "<td title=\"%" APR_UINT64_T_FMT " bytes\">%s</td>"
               "<td>%s</td><td>%s</td></tr>\n",
               html_cut(p, row->name, row->name), row->used, s->layout.item_num,
               percent, percent, html_stored(p, row), origin_text[s->origin],
               s->layout.item_size, row->memory, bytes_text(p, row->memory),
               flags_text(p, s->type), html_file(p, s));
}

/* ?notable: for browsers without tables. */
static void row_line(request_rec *r, const row_t *row)
{
    const ap_slotmem_instance_t *s = row->s;
    apr_pool_t *p = r->pool;

    ap_rprintf(r,
               "<dt>%s: %u of %u slots of %" APR_SIZE_T_FMT " bytes in use, "
               "%s, flags %s, stored: %s, began with %s</dt>\n",
               html_cut(p, row->name, row->name), row->used, s->layout.item_num,
               s->layout.item_size, bytes_text(p, row->memory),
               flags_text(p, s->type), html_stored(p, row),
               origin_text[s->origin]);
}

static void row_auto(request_rec *r, int i, const row_t *row)
{
    const ap_slotmem_instance_t *s = row->s;
    apr_pool_t *p = r->pool;

    ap_rprintf(r,
               "SlotmemSegment%dName: %.*s\n"
               "SlotmemSegment%dSlots: %u\n"
               "SlotmemSegment%dUsed: %u\n"
               "SlotmemSegment%dSlotSize: %" APR_SIZE_T_FMT "\n"
               "SlotmemSegment%dBytes: %" APR_UINT64_T_FMT "\n"
               "SlotmemSegment%dFlags: %s\n"
               "SlotmemSegment%dOrigin: %s\n",
               i, STATUS_AUTO_MAX, ap_escape_logitem(p, row->name), i,
               s->layout.item_num, i, row->used, i, s->layout.item_size, i,
               row->memory, i, flags_text(p, s->type), i,
               origin_text[s->origin]);
    ap_rprintf(r,
               "SlotmemSegment%dFile: %.*s\n"
               "SlotmemSegment%dStored: %" APR_TIME_T_FMT "\n",
               i, STATUS_AUTO_MAX,
               s->store ? ap_escape_logitem(p, s->store) : "-", i,
               apr_time_sec(row->stored));
}

static void tally_auto(request_rec *r, const tally_t *t)
{
    ap_rprintf(r,
               "SlotmemSegments: %d\n"
               "SlotmemSlots: %" APR_UINT64_T_FMT "\n"
               "SlotmemUsed: %" APR_UINT64_T_FMT "\n"
               "SlotmemBytes: %" APR_UINT64_T_FMT "\n"
               "SlotmemStoredSegments: %d\n"
               "SlotmemStoredOldest: %" APR_TIME_T_FMT "\n"
               "SlotmemBeganWithFile: %d\n"
               "SlotmemBeganWithMemory: %d\n"
               "SlotmemBeganWithNothing: %d\n"
               "SlotmemBeganWithBadFile: %d\n"
               "SlotmemIsolated: %d\n",
               t->segments, t->slots, t->used, t->memory, t->stored,
               apr_time_sec(t->oldest), t->from[ORIGIN_FILE],
               t->from[ORIGIN_MEMORY], t->from[ORIGIN_NOTHING],
               t->from[ORIGIN_BAD_FILE], registry.isolated);
}

/* Above the table, in words: how full, what is stored, and what the last
 * restart brought back. */
static void tally_html(request_rec *r, const tally_t *t)
{
    ap_rprintf(r,
               "<dl>\n<dt>%d segment%s, %" APR_UINT64_T_FMT
               " of %" APR_UINT64_T_FMT
               " slots in use, %s of shared memory</dt>\n",
               t->segments, t->segments == 1 ? "" : "s", t->used, t->slots,
               bytes_text(r->pool, t->memory));
    if (t->stored) {
        ap_rprintf(r,
                   "<dt>Kept in files: %d, %s%s</dt>\n"
                   "<dt>At the last start or restart %d of them were "
                   "restored from file, %d from the memory of a killed run, "
                   "%d began empty</dt>\n",
                   t->stored, t->oldest ? "stored " : "not all stored yet",
                   t->oldest ? ago_text(r->pool, t->oldest) : "",
                   t->from[ORIGIN_FILE], t->from[ORIGIN_MEMORY],
                   t->from[ORIGIN_NOTHING] + t->from[ORIGIN_BAD_FILE]);
    }
    if (t->from[ORIGIN_BAD_FILE]) {
        ap_rprintf(r,
                   "<dt><b>Lost: %d stored file%s could not be used and "
                   "%s put aside; the error log says why</b></dt>\n",
                   t->from[ORIGIN_BAD_FILE],
                   t->from[ORIGIN_BAD_FILE] == 1 ? "" : "s",
                   t->from[ORIGIN_BAD_FILE] == 1 ? "was" : "were");
    }
    if (t->mortal) {
        ap_rprintf(r,
                   "<dt><b>The memory of %d would not outlive a kill of "
                   "the server; the error log says why</b></dt>\n",
                   t->mortal);
    }
    if (registry.isolated) {
        ap_rputs("<dt><b>Another httpd uses this runtime directory: nothing "
                 "is stored or restored here</b></dt>\n",
                 r);
    }
}

static void table_html(request_rec *r, const apr_array_header_t *rows,
                       const tally_t *t)
{
    int i;

    ap_rputs(
        "<div style=\"overflow-x:auto;white-space:nowrap\">"
        "<table cellpadding=\"4\" summary=\"The segments\">\n<thead align=\"left\"><tr>"
        "<th>Segment</th><th colspan=\"2\">In use</th><th>Stored</th>"
        "<th>Began with</th><th>Slot size</th><th>Memory</th>"
        "<th>Flags</th><th>Stored file</th></tr></thead>\n<tbody>\n",
        r);
    for (i = 0; i < rows->nelts && i < STATUS_ROWS; i++) {
        row_html(r, &APR_ARRAY_IDX(rows, i, row_t));
    }
    ap_rprintf(r,
               "<tr align=\"left\"><th>Sum of %d</th><th>%" APR_UINT64_T_FMT
               " of %" APR_UINT64_T_FMT "</th><td colspan=\"4\"></td>"
               "<th title=\"%" APR_UINT64_T_FMT " bytes\">%s</th>"
               "<td colspan=\"2\"></td></tr>\n</tbody></table></div>\n",
               t->segments, t->used, t->slots, t->memory,
               bytes_text(r->pool, t->memory));
}

static void list_html(request_rec *r, const apr_array_header_t *rows)
{
    int i;

    for (i = 0; i < rows->nelts && i < STATUS_ROWS; i++) {
        row_line(r, &APR_ARRAY_IDX(rows, i, row_t));
    }
}

/* The section of server-status: mod_status calls it, if it is there. */
static int slotmem_status(request_rec *r, int flags)
{
    const apr_array_header_t *rows;
    tally_t tally;
    int i;

    if (!registry.pool) {
        return DECLINED;
    }
    rows = rows_read(r->pool, &tally);
    if (flags & AP_STATUS_SHORT) {
        tally_auto(r, &tally);
        for (i = 0; i < rows->nelts; i++) {
            row_auto(r, i, &APR_ARRAY_IDX(rows, i, row_t));
        }
        return OK;
    }

    ap_rputs("<hr />\n<h2 id=\"slotmem\">Shared memory slots</h2>\n", r);
    tally_html(r, &tally);
    if (flags & AP_STATUS_NOTABLE) {
        list_html(r, rows);
    }
    if (rows->nelts > STATUS_ROWS) {
        ap_rprintf(r, "<dt>%d more are not shown here</dt>\n",
                   rows->nelts - STATUS_ROWS);
    }
    ap_rputs("<dt><a href=\"?auto\">All of it as text</a></dt>\n</dl>\n", r);
    if (!(flags & AP_STATUS_NOTABLE) && rows->nelts) {
        table_html(r, rows, &tally);
    }
    return OK;
}

/* The one line of a normal start or restart. */
static void status_log(apr_pool_t *p)
{
    const char *kept = "none of them kept in a file";
    tally_t t;

    rows_read(p, &t);
    if (t.segments == 0) {
        return;
    }
    if (t.stored) {
        kept =
            apr_psprintf(p,
                         "%d of them kept in files: %d restored from "
                         "file, %d from the memory of a killed run, %d "
                         "began empty",
                         t.stored, t.from[ORIGIN_FILE], t.from[ORIGIN_MEMORY],
                         t.from[ORIGIN_NOTHING] + t.from[ORIGIN_BAD_FILE]);
    }
    ap_log_error(APLOG_MARK, t.from[ORIGIN_MEMORY] ? APLOG_NOTICE : APLOG_INFO,
                 0, ap_server_conf, "slotmem_shm: %d segment%s, %s", t.segments,
                 t.segments == 1 ? "" : "s", kept);
}

/* ==================== hooks ==================== */

/* Before any pool of the configuration goes: what is to be kept is stored
 * while every segment is still there. */
static apr_status_t close_store(void *data)
{
    store_t st;

    (void)data;
    if (self.pid != getpid() || self.is_child) {
        return APR_SUCCESS;
    }
    checkpoint_stop();
    if (checkpoint_wanted()) {
        persist_store_all(&st, STORE_SUFFIX_STOP);
        store_sweep_all();
    }
    return APR_SUCCESS;
}

static int server_exits(void)
{
#ifdef AP_SQ_MS_EXITING
    return ap_state_query(AP_SQ_MAIN_STATE) == AP_SQ_MS_EXITING;
#else
    return 0;
#endif
}

/* After the cleanups of all who were configured after this module: removes
 * every segment from the system and from this process. */
static apr_status_t close_remove(void *data)
{
    int left;

    (void)data;
    if (self.pid != getpid() || self.is_child || !registry.pool) {
        return APR_SUCCESS;
    }
    left = orphans_left();
    apr_pool_destroy(registry.pool);
    memset(&registry, 0, sizeof(registry));
    orphans = NULL;
    self.mutex = NULL;
    marker_end(server_exits(), left);
    return APR_SUCCESS;
}

/* The marker steers the parent, so it is not for others to write.  Not all
 * that is forked comes by child_init: mod_cgid's daemon does not. */
static void fork_in_child(void)
{
    if (retained) {
        marker_close();
    }
}

static int slotmem_pre_config(apr_pool_t *pconf, apr_pool_t *plog,
                              apr_pool_t *ptemp)
{
    static int watching; /* until this module is unloaded */
    apr_status_t rv;

    (void)plog;
    (void)ptemp;
    retained = ap_retained_data_get(RETAINED_KEY);
    if (!retained) {
        retained = ap_retained_data_create(RETAINED_KEY, sizeof(*retained));
    }
    orphans = NULL;
    self.is_child = 0;
    process_note_self();
    if (!watching) {
        watching = pthread_atfork(NULL, NULL, fork_in_child) == 0;
    }

    rv = registry_open();
    if (rv != APR_SUCCESS) {
        ap_log_error(APLOG_MARK, APLOG_CRIT, rv, NULL,
                     "slotmem_shm: no memory to begin with");
        return HTTP_INTERNAL_SERVER_ERROR;
    }
    apr_pool_pre_cleanup_register(pconf, NULL, close_store);
    apr_pool_cleanup_register(pconf, NULL, close_remove, apr_pool_cleanup_null);

    rv = ap_mutex_register(pconf, MUTEX_TYPE, NULL, APR_LOCK_DEFAULT, 0);
    return rv == APR_SUCCESS ? OK : HTTP_INTERNAL_SERVER_ERROR;
}

static int slotmem_post_config(apr_pool_t *pconf, apr_pool_t *plog,
                               apr_pool_t *ptemp, server_rec *server)
{
    apr_status_t rv;

    (void)plog;
    (void)ptemp;
    if (!runs_for_real()) {
        return OK;
    }
    if (self.pid != getpid()) {
        /* The server has detached since pre_config, and a lock that somebody's
         * early create took has stayed with the former process. */
        process_note_self();
        registry.claimed = 0;
    }
    rv = ap_global_mutex_create(&self.mutex, NULL, MUTEX_TYPE, NULL, server,
                                pconf, 0);
    if (rv != APR_SUCCESS) {
        return HTTP_INTERNAL_SERVER_ERROR; /* and it has said why */
    }
    if (retained->checkpoint_due < apr_time_now() + CHECKPOINT_PAUSE) {
        retained->checkpoint_due = apr_time_now() + CHECKPOINT_PAUSE;
    }
    runtime_claim();
    checkpoint_resume();
    return OK;
}

/* After every module's post_config, at each start and restart. */
static int slotmem_ready(apr_pool_t *pconf, apr_pool_t *plog, apr_pool_t *ptemp,
                         server_rec *server)
{
    (void)pconf;
    (void)plog;
    (void)server;
    if (runs_for_real()) {
        /* Nobody will ask any more for what a killed run left. */
        takeover_finish();
        status_log(ptemp);
    }
    return OK;
}

static apr_status_t child_close(void *data)
{
    close_store(data);
    return close_remove(data);
}

static void slotmem_child_init(apr_pool_t *pchild, server_rec *server)
{
    apr_status_t rv;

    if (self.pid == getpid()) {
        /* httpd -X: parent and child are one, and end with this pool. */
        apr_pool_pre_cleanup_register(pchild, NULL, child_close);
        return;
    }
    self.is_child = 1;
    process_note_self();
    /* A thread of the parent's may have held it during the fork. */
    registry_lock_make();

    if (!self.mutex) {
        return;
    }
    rv = apr_global_mutex_child_init(
        &self.mutex, apr_global_mutex_lockfile(self.mutex), pchild);
    if (rv != APR_SUCCESS) {
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
