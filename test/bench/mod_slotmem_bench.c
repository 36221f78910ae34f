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
 * mod_slotmem_bench: times the slotmem provider inside a real httpd.
 *
 * Segments are made in post_config, in the parent, as every consumer makes
 * them; what making them costs goes to BenchLog.  The calls of the hot path are
 * timed in a child, in answer to a request for the handler "slotmem-bench",
 * whose query string names the work:
 *
 *     op=pair&seg=NAME&ms=50&limit=rmw      nanoseconds a grab + release
 *     op=full|free|doall|dptr|get|put|attach|nothing       likewise
 *     op=fill&seg=NAME&how=empty|half|brim|full|sparse     which are in use
 *     op=race&race=K&procs=N&ms=300&check=1[&seg=NAME]     see race()
 *     op=count&seg=NAME                     what the segment says of itself
 *     op=instructions&of=OP&n=1000&seg=NAME for callgrind: see instructions()
 *
 * Each timed answer has the limit of that work beside it, timed in turn with it
 * in the same process: limit=rmw is one uncontended atomic read-modify-write,
 * limit=memcpy:LEN a memcpy of LEN bytes.
 *
 * Every call goes through the provider's table, a pointer that the compiler
 * cannot see through, so that no work is optimised away.
 */

#include "httpd.h"
#include "http_config.h"
#include "http_core.h"
#include "http_log.h"
#include "http_main.h"
#include "http_protocol.h"
#include "http_request.h"
#include "ap_mpm.h"
#include "ap_provider.h"
#include "ap_slotmem.h"
#include "apr_hash.h"
#include "apr_md5.h"
#include "apr_strings.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#if defined(__has_include)
#if __has_include(<valgrind/callgrind.h>)
#include <valgrind/callgrind.h>
#endif
#endif
#ifndef CALLGRIND_DUMP_STATS_AT
#define CALLGRIND_ZERO_STATS
#define CALLGRIND_DUMP_STATS_AT(name) ((void)(name))
#endif

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

module AP_MODULE_DECLARE_DATA slotmem_bench_module;

/* ------------------------------------------------------------------------
 * What the configuration asks for
 * --------------------------------------------------------------------- */

typedef struct {
    const char *name; /* a prefix, if count > 1 */
    unsigned int count;
    apr_size_t item_size;
    unsigned int item_num;
    ap_slotmem_type_t type;
} wanted_t;

typedef struct {
    const char *kind; /* populate, store, restore */
    unsigned int count;
    apr_size_t size;
} limit_t;

static apr_array_header_t *wanted; /* of wanted_t */
static apr_array_header_t *limits; /* of limit_t */
static const char *log_path;
static const char *touch_path; /* while it exists, contents change */

static const ap_slotmem_provider_t *provider;
static apr_hash_t *segments; /* name -> ap_slotmem_instance_t * */

/* ------------------------------------------------------------------------
 * The clock
 * --------------------------------------------------------------------- */

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* One line of the log that the driver reads.  Written with plain system
 * calls, since it is also used while pools are being cleaned up.
 */
static void report(const char *what, const char *name, uint64_t ns,
                   uint64_t extra)
{
    char line[512];
    int fd, len;

    if (log_path == NULL) {
        return;
    }
    len = apr_snprintf(line, sizeof line,
                       "%s %s %" APR_UINT64_T_FMT " %" APR_UINT64_T_FMT "\n",
                       what, name, (apr_uint64_t)ns, (apr_uint64_t)extra);
    fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (fd >= 0) {
        if (write(fd, line, (size_t)len) != len) {
            abort(); /* a lost line would be a wrong table */
        }
        close(fd);
    }
}

/* ------------------------------------------------------------------------
 * The work, n times
 * --------------------------------------------------------------------- */

typedef struct {
    ap_slotmem_instance_t *seg;
    unsigned int num;      /* its slots */
    apr_size_t len;        /* of a get, a put or a memcpy */
    unsigned char *buffer; /* that many bytes, and as many again */
    const char **names;    /* attach: the segments' names */
    unsigned int count;    /* attach: how many */
    apr_pool_t *pool;
    uint64_t sum;        /* of what was seen: see keep() */
    unsigned int failed; /* calls that did not answer as they must */
} work_t;

typedef void work_fn(work_t *w, uint64_t n);

/* So that no result counts as unused. */
static void keep(work_t *w, uint64_t value)
{
    w->sum += value;
}

/* As an ordinary function, so that each loop has the same shape as work_nothing's. */
static apr_status_t nothing(ap_slotmem_instance_t *s, unsigned int id)
{
    (void)s;
    return (apr_status_t)(id & 0);
}

static apr_status_t (*volatile nothing_fn)(ap_slotmem_instance_t *,
                                           unsigned int) = nothing;
static void *(*volatile memcpy_fn)(void *, const void *, size_t) = memcpy;

static void work_nothing(work_t *w, uint64_t n)
{
    while (n--) {
        w->failed += nothing_fn(w->seg, 0) != APR_SUCCESS;
    }
}

/* In shared memory, as the words of a segment are. */
static _Atomic uint64_t *rmw_word;

static void work_rmw(work_t *w, uint64_t n)
{
    while (n--) {
        keep(w, atomic_fetch_add(rmw_word, 1));
    }
}

static void work_memcpy(work_t *w, uint64_t n)
{
    while (n--) {
        memcpy_fn(w->buffer + w->len, w->buffer, w->len);
    }
}

static void work_pair(work_t *w, uint64_t n)
{
    unsigned int id;

    while (n--) {
        w->failed += provider->grab(w->seg, &id) != APR_SUCCESS;
        w->failed += provider->release(w->seg, id) != APR_SUCCESS;
    }
}

static void work_full(work_t *w, uint64_t n)
{
    unsigned int id;

    while (n--) {
        w->failed += provider->grab(w->seg, &id) != APR_EINVAL;
    }
}

static void work_grab(work_t *w, uint64_t n)
{
    unsigned int id;

    while (n--) {
        w->failed += provider->grab(w->seg, &id) != APR_SUCCESS;
    }
}

/* The slots that work_grab() takes from an empty segment. */
static void work_release(work_t *w, uint64_t n)
{
    while (n--) {
        w->failed += provider->release(w->seg, (unsigned int)n) != APR_SUCCESS;
    }
}

static void work_free(work_t *w, uint64_t n)
{
    while (n--) {
        keep(w, provider->num_free_slots(w->seg));
    }
}

static apr_status_t visit(void *mem, void *data, apr_pool_t *pool)
{
    (void)pool;
    *(uint64_t *)data += (uintptr_t)mem;
    return APR_SUCCESS;
}

static void work_doall(work_t *w, uint64_t n)
{
    uint64_t sum = 0;

    while (n--) {
        w->failed +=
            provider->doall(w->seg, visit, &sum, w->pool) != APR_SUCCESS;
    }
    keep(w, sum);
}

static void work_dptr(work_t *w, uint64_t n)
{
    void *mem;

    while (n--) {
        w->failed +=
            provider->dptr(w->seg, (unsigned int)n & 7, &mem) != APR_SUCCESS;
        keep(w, (uintptr_t)mem);
    }
}

static void work_get(work_t *w, uint64_t n)
{
    while (n--) {
        w->failed += provider->get(w->seg, 3, w->buffer, w->len) != APR_SUCCESS;
    }
}

static void work_put(work_t *w, uint64_t n)
{
    while (n--) {
        w->failed += provider->put(w->seg, 3, w->buffer, w->len) != APR_SUCCESS;
    }
}

/* Every segment of the process in turn, in an order that has no pattern. */
static void work_attach(work_t *w, uint64_t n)
{
    static uint64_t at;

    while (n--) {
        ap_slotmem_instance_t *seg;
        apr_size_t size = 0;
        unsigned int num = 0;

        at = at * 6364136223846793005u + 1442695040888963407u;
        w->failed += provider->attach(&seg, w->names[(at >> 33) % w->count],
                                      &size, &num, w->pool)
                     != APR_SUCCESS;
        if ((n & 255) == 0) {
            apr_pool_clear(w->pool);
        }
    }
}

static const struct {
    const char *name;
    work_fn *fn;
} works[] = {
    { "nothing", work_nothing }, { "rmw", work_rmw },
    { "memcpy", work_memcpy },   { "pair", work_pair },
    { "full", work_full },       { "grab", work_grab },
    { "release", work_release }, { "free", work_free },
    { "doall", work_doall },     { "dptr", work_dptr },
    { "get", work_get },         { "put", work_put },
    { "attach", work_attach },
};

static work_fn *find_work(const char *name)
{
    size_t i;

    for (i = 0; name && i < sizeof works / sizeof *works; i++) {
        if (strcmp(works[i].name, name) == 0) {
            return works[i].fn;
        }
    }
    return NULL;
}

/* ------------------------------------------------------------------------
 * Timing it
 * --------------------------------------------------------------------- */

#define BATCHES 7

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static uint64_t time_once(work_fn *fn, work_t *w, uint64_t n)
{
    uint64_t start = now_ns();

    fn(w, n);
    return now_ns() - start;
}

/* How many pieces of work make one batch of ms / BATCHES. */
static uint64_t batch_size(work_fn *fn, work_t *w, unsigned int ms)
{
    const uint64_t batch_ns = (uint64_t)ms * 1000000u / BATCHES;
    uint64_t n = 1, took, again;

    for (;;) {
        /* The better of two, lest the first touch of a page, or another
         * process that gets the processor just now, pass for a long run.
         */
        took = time_once(fn, w, n);
        again = time_once(fn, w, n);
        if (again < took) {
            took = again;
        }
        if (took >= batch_ns / 4) {
            break;
        }
        n = took < 1000 ? n * 8 : n * 2;
    }
    n = (uint64_t)((double)n * (double)batch_ns / (double)took);
    return n ? n : 1;
}

static double median(double *values, size_t count)
{
    qsort(values, count, sizeof *values, by_value);
    return values[count / 2];
}

typedef struct {
    double ns, limit, ratio;
} timing_t;

/* Nanoseconds that one piece of work takes, and one of its limit: medians of
 * BATCHES batches, which last about ms altogether.  The batches of the work
 * and of its limit take turns, so that a processor that changes its speed, or
 * a noisy neighbour, changes both; the ratio is the median of theirs.
 */
static timing_t time_work(work_fn *fn, work_t *w, work_fn *limit_fn,
                          work_t *limit_w, unsigned int ms)
{
    const uint64_t n = batch_size(fn, w, ms);
    const uint64_t limit_n = limit_fn ? batch_size(limit_fn, limit_w, ms) : 0;
    double work[BATCHES], limit[BATCHES], ratio[BATCHES];
    timing_t result = { 0, 0, 0 };
    int i;

    for (i = 0; i < BATCHES; i++) {
        if (limit_fn) {
            limit[i] =
                (double)time_once(limit_fn, limit_w, limit_n) / (double)limit_n;
        }
        work[i] = (double)time_once(fn, w, n) / (double)n;
        if (limit_fn) {
            ratio[i] = work[i] / limit[i];
        }
    }
    result.ns = median(work, BATCHES);
    if (limit_fn) {
        result.limit = median(limit, BATCHES);
        result.ratio = median(ratio, BATCHES);
    }
    return result;
}

/* ------------------------------------------------------------------------
 * Several processes on one segment
 * --------------------------------------------------------------------- */

#define RACES  512
#define OWNERS 65536

typedef struct {
    _Atomic unsigned int arrived;
} race_t;

typedef struct {
    _Atomic uint64_t rmw_word;
    char away_from_it[248];
    _Atomic uint64_t cas_word;
    char away_from_that[248];
    race_t race[RACES];
    _Atomic unsigned int owner[OWNERS];
} shared_t;

static shared_t *shared;

typedef struct {
    uint64_t grabs, none_free, doubles, not_ours, ns;
} race_result_t;

/* The least that is right: 64 slots in one word, a compare-and-swap loop to take
 * the lowest and an atomic and to give it back.  What several processes reach
 * with this is the limit of what they can reach with a table.
 */
static apr_status_t word_grab(ap_slotmem_instance_t *unused, unsigned int *id)
{
    uint64_t seen = atomic_load(&shared->cas_word);

    (void)unused;
    while (~seen) {
        *id = (unsigned int)__builtin_ctzll(~seen);
        if (atomic_compare_exchange_weak(&shared->cas_word, &seen,
                                         seen | ((uint64_t)1 << *id))) {
            return APR_SUCCESS;
        }
    }
    return APR_EINVAL;
}

static apr_status_t word_release(ap_slotmem_instance_t *unused, unsigned int id)
{
    const uint64_t bit = (uint64_t)1 << id;

    (void)unused;
    return atomic_fetch_and(&shared->cas_word, ~bit) & bit ? APR_SUCCESS
                                                           : APR_NOTFOUND;
}

/* Grabs and releases for ms milliseconds, beginning when as many processes as
 * are to take part have come; on one word if there is no segment.  With check, owner[] says who has each slot: a
 * slot that is handed to two at once is counted.
 */
static apr_status_t race(ap_slotmem_instance_t *seg, race_t *r,
                         unsigned int procs, unsigned int ms, int check,
                         race_result_t *result)
{
    apr_status_t (*const grab)(ap_slotmem_instance_t *, unsigned int *) =
        seg ? provider->grab : word_grab;
    apr_status_t (*const release)(ap_slotmem_instance_t *, unsigned int) =
        seg ? provider->release : word_release;
    const unsigned int me = (unsigned int)getpid();
    uint64_t start = now_ns(), end;
    unsigned int id, i;

    memset(result, 0, sizeof *result);
    atomic_fetch_add(&r->arrived, 1);
    while (atomic_load(&r->arrived) < procs) {
        if (now_ns() - start > 20000000000u) {
            return APR_TIMEUP;
        }
        sched_yield();
    }
    start = now_ns();
    end = start + (uint64_t)ms * 1000000u;
    while (now_ns() < end) {
        for (i = 0; i < 64; i++) {
            if (grab(seg, &id) != APR_SUCCESS) {
                result->none_free++;
                continue;
            }
            if (check) {
                result->doubles += atomic_exchange(&shared->owner[id], me) != 0;
                atomic_exchange(&shared->owner[id], 0);
            }
            result->not_ours += release(seg, id) != APR_SUCCESS;
            result->grabs++;
        }
    }
    result->ns = now_ns() - start;
    return APR_SUCCESS;
}

/* ------------------------------------------------------------------------
 * Limits that are measured in the parent
 * --------------------------------------------------------------------- */

static void must(int good, const char *what)
{
    if (!good) {
        ap_log_error(APLOG_MARK, APLOG_EMERG, errno, ap_server_conf,
                     "slotmem_bench: %s failed", what);
        exit(1);
    }
}

/* Fresh shared memory, all its pages supplied by the kernel. */
static void *populated(apr_size_t size)
{
    const char *name = "/slotmem-bench-limit";
    void *mem;
    int fd;

    fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    must(fd >= 0, "shm_open");
    shm_unlink(name);
    must(ftruncate(fd, (off_t)size) == 0, "ftruncate");
    mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    must(mem != MAP_FAILED, "mmap");
    must(madvise(mem, size, MADV_POPULATE_WRITE) == 0, "madvise");
    close(fd);
    return mem;
}

static void limit_populate(const limit_t *l)
{
    uint64_t start = now_ns();
    void *mem = populated(l->size);

    report("limit", "populate", now_ns() - start, l->size);
    munmap(mem, l->size);
}

/* What restoring cannot do without: the memory, the file's bytes in it, and
 * MD5 over them.
 */
static uint64_t limit_restore(const limit_t *l, const char *path)
{
    unsigned char digest[APR_MD5_DIGESTSIZE];
    uint64_t sum = 0;
    unsigned int i;

    for (i = 0; i < l->count; i++) {
        uint64_t start = now_ns();
        unsigned char *mem = populated(l->size);
        apr_size_t done = 0;
        ssize_t got;
        int fd = open(path, O_RDONLY);

        must(fd >= 0, path);
        while (done < l->size
               && (got = read(fd, mem + done, l->size - done)) > 0) {
            done += (apr_size_t)got;
        }
        must(done == l->size, "read");
        close(fd);
        apr_md5(digest, mem, l->size);
        sum += now_ns() - start;
        munmap(mem, l->size);
    }
    return sum;
}

/* MD5 over so many files' contents, and the plainest way to get those to the
 * disk as whole new files: with and without a flush of each.
 */
static void limit_store(const limit_t *l, apr_pool_t *p)
{
    const char *target = apr_pstrcat(p, log_path, ".limit", NULL);
    const char *fresh = apr_pstrcat(p, target, ".new", NULL);
    unsigned char *content = malloc(l->size);
    unsigned char digest[APR_MD5_DIGESTSIZE];
    uint64_t start, md5_ns, write_ns[2], restore_ns;
    unsigned int i;
    int flush, fd;

    must(content != NULL, "malloc");
    memset(content, 0x5a, l->size);

    start = now_ns();
    for (i = 0; i < l->count; i++) {
        apr_md5(digest, content, l->size);
    }
    md5_ns = now_ns() - start;

    for (flush = 0; flush < 2; flush++) {
        start = now_ns();
        for (i = 0; i < l->count; i++) {
            apr_size_t done = 0;

            fd = open(fresh, O_WRONLY | O_CREAT | O_EXCL, 0600);
            must(fd >= 0, fresh);
            while (done < l->size) {
                size_t chunk = l->size - done < 65536 ? l->size - done : 65536;

                must(write(fd, content + done, chunk) == (ssize_t)chunk,
                     "write");
                done += chunk;
            }
            must(!flush || fsync(fd) == 0, "fsync");
            must(close(fd) == 0, "close");
            must(rename(fresh, target) == 0, "rename");
        }
        write_ns[flush] = now_ns() - start;
    }

    restore_ns = limit_restore(l, target);
    unlink(target);
    free(content);
    report("limit", "md5", md5_ns, l->size * l->count);
    report("limit", "write", write_ns[0], l->size * l->count);
    report("limit", "write+flush", write_ns[1], l->size * l->count);
    report("limit", "restore", restore_ns, l->size * l->count);
}

static void measure_limits(apr_pool_t *p)
{
    int i;

    for (i = 0; i < limits->nelts; i++) {
        const limit_t *l = &APR_ARRAY_IDX(limits, i, limit_t);

        if (strcmp(l->kind, "populate") == 0) {
            limit_populate(l);
        }
        else {
            limit_store(l, p);
        }
    }
}

/* ------------------------------------------------------------------------
 * Making the segments, and telling what that costs
 * --------------------------------------------------------------------- */

/* Bytes that this process has mapped from named shared memory. */
static uint64_t mapped_shm(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[1024];
    uint64_t sum = 0;

    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long from, to;

        if (strstr(line, "/dev/shm/")
            && sscanf(line, "%lx-%lx", &from, &to) == 2) {
            sum += to - from;
        }
    }
    if (maps) {
        fclose(maps);
    }
    return sum;
}

/* Private memory of this process.  From the kernel: APR may take the memory of
 * its pools from malloc or from mmap.
 */
static uint64_t private_memory(void)
{
    FILE *statm = fopen("/proc/self/statm", "r");
    unsigned long data = 0;

    if (statm) {
        if (fscanf(statm, "%*u %*u %*u %*u %*u %lu", &data) != 1) {
            data = 0;
        }
        fclose(statm);
    }
    return data * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* A content that does not stay the same from one generation to the next, if
 * the driver wants it to change, and is never all zero.
 */
static void change_contents(const wanted_t *want, ap_slotmem_instance_t *seg)
{
    const int touch = touch_path && access(touch_path, F_OK) == 0;
    unsigned int i;
    void *mem;

    for (i = 0; i < want->item_num; i++) {
        if (provider->dptr(seg, i, &mem) != APR_SUCCESS) {
            return;
        }
        if (((unsigned char *)mem)[0] == 0) {
            memset(mem, (int)(i % 251 + 1), want->item_size);
        }
        else if (touch && i == 0) {
            ((unsigned char *)mem)[want->item_size - 1]++;
        }
    }
}

static int make_segments(apr_pool_t *p, apr_pool_t *ptemp)
{
    int i;

    for (i = 0; i < wanted->nelts; i++) {
        const wanted_t *want = &APR_ARRAY_IDX(wanted, i, wanted_t);
        const char **names = apr_palloc(p, want->count * sizeof *names);
        ap_slotmem_instance_t **made =
            apr_palloc(p, want->count * sizeof *made);
        uint64_t private, mapped, start;
        unsigned int k;

        for (k = 0; k < want->count; k++) {
            names[k] = want->count == 1
                           ? want->name
                           : apr_psprintf(p, "%s-%u", want->name, k);
        }
        private = private_memory();
        mapped = mapped_shm();
        start = now_ns();
        for (k = 0; k < want->count; k++) {
            apr_status_t rv =
                provider->create(&made[k], names[k], want->item_size,
                                 want->item_num, want->type, p);
            if (rv != APR_SUCCESS) {
                ap_log_error(APLOG_MARK, APLOG_EMERG, rv, ap_server_conf,
                             "slotmem_bench: create %s failed", names[k]);
                return HTTP_INTERNAL_SERVER_ERROR;
            }
        }
        report("create", want->name, now_ns() - start, want->count);
        report("private", want->name, private_memory() - private, want->count);
        report("mapped", want->name, mapped_shm() - mapped, want->count);
        for (k = 0; k < want->count; k++) {
            apr_hash_set(segments, names[k], APR_HASH_KEY_STRING, made[k]);
            if (want->type & AP_SLOTMEM_TYPE_PERSIST) {
                change_contents(want, made[k]);
            }
        }
    }
    (void)ptemp;
    return OK;
}

/* ------------------------------------------------------------------------
 * What a restart or a stop costs: the time that clearing the configuration's
 * pool takes, in which segments are stored and destroyed.
 * --------------------------------------------------------------------- */

static uint64_t clearing_since;

static apr_status_t clearing_begins(void *unused)
{
    (void)unused;
    clearing_since = now_ns();
    return APR_SUCCESS;
}

static apr_status_t clearing_ends(void *unused)
{
    (void)unused;
    if (clearing_since) {
        report("clear", "-", now_ns() - clearing_since, 0);
    }
    return APR_SUCCESS;
}

/* ------------------------------------------------------------------------
 * Requests
 * --------------------------------------------------------------------- */

static const char *arg(request_rec *r, const char *name, const char *otherwise)
{
    const char *args = r->args ? r->args : "";
    const size_t len = strlen(name);

    while (*args) {
        size_t word = strcspn(args, "&");

        if (word > len && strncmp(args, name, len) == 0 && args[len] == '=') {
            return apr_pstrmemdup(r->pool, args + len + 1, word - len - 1);
        }
        args += word + (args[word] == '&');
    }
    return otherwise;
}

static unsigned int number_arg(request_rec *r, const char *name,
                               const char *otherwise)
{
    return (unsigned int)apr_atoi64(arg(r, name, otherwise));
}

static int is_wanted(const char *how, unsigned int i, unsigned int num)
{
    return strcmp(how, "full") == 0 || (strcmp(how, "half") == 0 && i < num / 2)
           || (strcmp(how, "brim") == 0 && i + 1 < num)
           || (strcmp(how, "sparse") == 0 && i % 100 == 0);
}

static void fill(work_t *w, const char *how)
{
    unsigned int i;

    for (i = 0; i < w->num; i++) {
        if (is_wanted(how, i, w->num)) {
            w->failed += provider->fgrab(w->seg, i) != APR_SUCCESS;
        }
        else {
            provider->release(w->seg, i);
        }
    }
}

/* Runs the work n times between two marks that callgrind understands.  The
 * instructions counted are the work's, its loop's and the marks'; the driver
 * subtracts what it gets for op=nothing.
 */
static void instructions(work_fn *fn, work_t *w, const char *name, uint64_t n)
{
    fn(w, n); /* so that symbols are bound and hints set */
    if (fn == work_grab) {
        fill(w, "empty");
    }
    else if (fn == work_release) {
        fill(w, "full");
    }
    CALLGRIND_ZERO_STATS;
    fn(w, n);
    CALLGRIND_DUMP_STATS_AT(name);
}

static void prepare_attach(request_rec *r, work_t *w)
{
    const char *prefix = arg(r, "prefix", "many");
    unsigned int i;

    w->count = number_arg(r, "count", "500");
    w->names = apr_palloc(r->pool, w->count * sizeof *w->names);
    for (i = 0; i < w->count; i++) {
        w->names[i] = apr_psprintf(r->pool, "%s-%u", prefix, i);
    }
    /* Once all in order: what a new process pays for its first look at a page
     * is the machine's affair, and in a virtual one far above the call's.
     */
    for (i = 0; i < w->count; i++) {
        ap_slotmem_instance_t *seg;
        apr_size_t size = 0;
        unsigned int num = 0;

        w->failed += provider->attach(&seg, w->names[i], &size, &num, w->pool)
                     != APR_SUCCESS;
    }
}

static void answer_race(request_rec *r, work_t *w)
{
    race_result_t result;
    apr_status_t rv;

    rv = race(w->seg, &shared->race[number_arg(r, "race", "0") % RACES],
              number_arg(r, "procs", "1"), number_arg(r, "ms", "300"),
              (int)number_arg(r, "check", "0"), &result);
    ap_rprintf(r, "status %d\n", (int)rv);
    ap_rprintf(r, "grabs %" APR_UINT64_T_FMT "\n", (apr_uint64_t)result.grabs);
    ap_rprintf(r, "none_free %" APR_UINT64_T_FMT "\n",
               (apr_uint64_t)result.none_free);
    ap_rprintf(r, "doubles %" APR_UINT64_T_FMT "\n",
               (apr_uint64_t)result.doubles);
    ap_rprintf(r, "not_ours %" APR_UINT64_T_FMT "\n",
               (apr_uint64_t)result.not_ours);
    ap_rprintf(r, "ns %" APR_UINT64_T_FMT "\n", (apr_uint64_t)result.ns);
    ap_rprintf(r, "pid %d\n", (int)getpid());
}

/* How many slots can really be grabbed; they are released again. */
static void answer_count(request_rec *r, work_t *w)
{
    unsigned int *ids = apr_palloc(r->pool, (w->num + 1) * sizeof *ids);
    unsigned int got = 0, said = provider->num_free_slots(w->seg);

    while (got < w->num && provider->grab(w->seg, &ids[got]) == APR_SUCCESS) {
        got++;
    }
    ap_rprintf(r, "slots %u\nsaid_free %u\nfree %u\n", w->num, said, got);
    while (got--) {
        provider->release(w->seg, ids[got]);
    }
}

static void answer_timed(request_rec *r, work_t *w, work_fn *fn)
{
    const char *limit = arg(r, "limit", NULL);
    work_t of_limit = *w;
    work_fn *limit_fn = NULL;
    timing_t t;

    if (limit && strncmp(limit, "memcpy:", 7) == 0) {
        of_limit.len = (apr_size_t)apr_atoi64(limit + 7);
        limit_fn = work_memcpy;
    }
    else if (limit) {
        limit_fn = find_work(limit);
    }
    t = time_work(fn, w, limit_fn, &of_limit, number_arg(r, "ms", "50"));
    ap_rprintf(r, "ns %.3f\nlimit %.3f\nratio %.4f\n", t.ns, t.limit, t.ratio);
}

static int bench_handler(request_rec *r)
{
    const char *op, *name;
    work_t w = { 0 };
    work_fn *fn;

    if (strcmp(r->handler, "slotmem-bench") != 0) {
        return DECLINED;
    }
    op = arg(r, "op", "");
    name = arg(r, "seg", NULL);
    if (name) {
        w.seg = apr_hash_get(segments, name, APR_HASH_KEY_STRING);
        if (w.seg == NULL) {
            return HTTP_NOT_FOUND;
        }
        w.num = provider->num_slots(w.seg);
    }
    w.len = (apr_size_t)number_arg(r, "len", "64");
    w.buffer = malloc(2 * w.len + 64 * 1024);
    memset(w.buffer, 0xa5, 2 * w.len);
    apr_pool_create(&w.pool, r->pool);
    if (strcmp(arg(r, "of", op), "attach") == 0) {
        prepare_attach(r, &w);
    }

    ap_set_content_type(r, "text/plain");
    fn = find_work(op);
    if (fn) {
        answer_timed(r, &w, fn);
    }
    else if (strcmp(op, "fill") == 0) {
        fill(&w, arg(r, "how", "empty"));
    }
    else if (strcmp(op, "race") == 0) {
        answer_race(r, &w);
    }
    else if (strcmp(op, "count") == 0) {
        answer_count(r, &w);
    }
    else if (strcmp(op, "instructions") == 0
             && (fn = find_work(arg(r, "of", ""))) != NULL) {
        instructions(fn, &w, arg(r, "mark", "work"),
                     number_arg(r, "n", "1000"));
    }
    else {
        free(w.buffer);
        return HTTP_BAD_REQUEST;
    }
    ap_rprintf(r, "failed %u\n", w.failed);
    free(w.buffer);
    return OK;
}

/* ------------------------------------------------------------------------
 * Hooks and directives
 * --------------------------------------------------------------------- */

static int bench_pre_config(apr_pool_t *p, apr_pool_t *plog, apr_pool_t *ptemp)
{
    (void)plog;
    (void)ptemp;
    wanted = apr_array_make(p, 8, sizeof(wanted_t));
    limits = apr_array_make(p, 8, sizeof(limit_t));
    segments = apr_hash_make(p);
    log_path = touch_path = NULL;
    clearing_since = 0;
    apr_pool_cleanup_register(p, NULL, clearing_ends, apr_pool_cleanup_null);
    return OK;
}

static int bench_post_config(apr_pool_t *p, apr_pool_t *plog, apr_pool_t *ptemp,
                             server_rec *s)
{
    (void)plog;
    (void)s;
    if (ap_state_query(AP_SQ_MAIN_STATE) == AP_SQ_MS_CREATE_PRE_CONFIG) {
        return OK;
    }
    provider = ap_lookup_provider(AP_SLOTMEM_PROVIDER_GROUP, "shm",
                                  AP_SLOTMEM_PROVIDER_VERSION);
    must(provider != NULL, "ap_lookup_provider");
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(shared != MAP_FAILED, "mmap");
    rmw_word = &shared->rmw_word;
    apr_pool_pre_cleanup_register(p, NULL, clearing_begins);
    measure_limits(ptemp);
    return make_segments(p, ptemp);
}

static ap_slotmem_type_t parse_type(const char *letters)
{
    ap_slotmem_type_t type = 0;

    for (; *letters; letters++) {
        type |= *letters == 'p'   ? AP_SLOTMEM_TYPE_PERSIST
                : *letters == 'n' ? AP_SLOTMEM_TYPE_NOTMPSAFE
                : *letters == 'g' ? AP_SLOTMEM_TYPE_PREGRAB
                : *letters == 'c' ? AP_SLOTMEM_TYPE_CLEARINUSE
                                  : 0;
    }
    return type;
}

static const char *cmd_segment(cmd_parms *cmd, void *dummy, int argc,
                               char *const argv[])
{
    wanted_t *want;

    (void)dummy;
    if (argc != 5) {
        return "BenchSegment NAME COUNT ITEM-SIZE ITEM-NUM TYPE-LETTERS";
    }
    want = apr_array_push(wanted);
    want->name = argv[0];
    want->count = (unsigned int)apr_atoi64(argv[1]);
    want->item_size = (apr_size_t)apr_atoi64(argv[2]);
    want->item_num = (unsigned int)apr_atoi64(argv[3]);
    want->type = parse_type(argv[4]);
    (void)cmd;
    return NULL;
}

static const char *cmd_limit(cmd_parms *cmd, void *dummy, const char *kind,
                             const char *count, const char *size)
{
    limit_t *l = apr_array_push(limits);

    (void)cmd;
    (void)dummy;
    l->kind = kind;
    l->count = (unsigned int)apr_atoi64(count);
    l->size = (apr_size_t)apr_atoi64(size);
    return NULL;
}

static const char *cmd_log(cmd_parms *cmd, void *dummy, const char *path,
                           const char *touch)
{
    (void)cmd;
    (void)dummy;
    log_path = path;
    touch_path = touch;
    return NULL;
}

static const command_rec bench_cmds[] = {
    AP_INIT_TAKE_ARGV("BenchSegment", cmd_segment, NULL, RSRC_CONF,
                      "NAME COUNT ITEM-SIZE ITEM-NUM TYPE: segments to create"),
    AP_INIT_TAKE3("BenchLimit", cmd_limit, NULL, RSRC_CONF,
                  "populate|store COUNT SIZE: what to measure in the parent"),
    AP_INIT_TAKE12("BenchLog", cmd_log, NULL, RSRC_CONF,
                   "FILE [FILE-THAT-SAYS-CHANGE]: where results go"),
    { NULL }
};

static void bench_hooks(apr_pool_t *p)
{
    (void)p;
    ap_hook_pre_config(bench_pre_config, NULL, NULL, APR_HOOK_REALLY_FIRST);
    ap_hook_post_config(bench_post_config, NULL, NULL, APR_HOOK_MIDDLE);
    ap_hook_handler(bench_handler, NULL, NULL, APR_HOOK_MIDDLE);
}

AP_DECLARE_MODULE(slotmem_bench) = {
    STANDARD20_MODULE_STUFF, NULL, NULL, NULL, NULL, bench_cmds, bench_hooks,
    AP_MODULE_FLAG_NONE
};
