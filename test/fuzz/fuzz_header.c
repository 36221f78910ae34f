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
 * libFuzzer: what a child can make of a segment, and what becomes of it.
 *
 * The input chooses a geometry, changes any bytes of a segment of it (the
 * size that APR keeps in the first word, header, tables, locks, slots), the
 * length of the object that it lies in, and then
 *
 *     MARKER    is the text of the marker, parsed
 *     ATTACH    attaches to it, as a child does by name
 *     TAKEOVER  takes it over, as the parent does after a kill
 *     CALLS     calls the provider, changing bytes between the calls
 *
 * AddressSanitizer watches all but shared memory; there, guard pages lie
 * around the mapping, and the rest of its last page is poisoned, as is all of
 * it once it was unmapped.  SIGSEGV is not for guarded() to catch here: nothing
 * may run past a mapping.  run.sh gives the module few stripes and a small
 * sink, so that small segments have slots that share a lock, and images in
 * several parts.
 *
 * Time is made up: it goes on with every look at the clock and every nap, so
 * a call that would wait for 10 s does so in no time.
 */
#include <sanitizer/asan_interface.h>

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "apr.h"
#include "apr_global_mutex.h"
#include "apr_shm.h"
#include "apr_strings.h"
#include "apr_time.h"
#include "httpd.h"
#include "http_config.h"
#include "http_log.h"

/* ------------------------------------------------------------------------
 * Stand-ins: the clock, processes, anonymous memory as APR makes it, and an
 * object that lies under every name
 */

static void check(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "does not hold: %s\n", what);
        abort();
    }
}

static apr_time_t standin_clock;

static apr_time_t standin_time_now(void)
{
    return standin_clock++;
}

static int standin_gettime(clockid_t which, struct timespec *ts)
{
    apr_time_t now = standin_clock++;

    (void)which;
    ts->tv_sec = (time_t)(now / 1000000);
    ts->tv_nsec = (long)(now % 1000000) * 1000;
    return 0;
}

static void standin_sleep(apr_interval_time_t t)
{
    standin_clock += t;
}

static int standin_yield(void)
{
    return 0;
}

/* Every other process number is in use. */
static int standin_kill(pid_t pid, int sig)
{
    if (sig != 0) {
        abort();
    }
    if (pid % 2) {
        errno = ESRCH;
        return -1;
    }
    return 0;
}

/* The process the module runs in, as every process, began when its number
 * says; of some nobody knows. */
static pid_t standin_getpid(void)
{
    return 4244;
}

/* No stored file is there. */
static int standin_lstat(const char *path, struct stat *st)
{
    (void)path;
    (void)st;
    errno = ENOENT;
    return -1;
}

/* To set a handler twice for each guarded() is much of a run, so one stays,
 * and does what the handler would do that the module has set. */
static struct sigaction bus_set, bus_before;

static void bus_handler(int sig)
{
    if (bus_set.sa_handler != SIG_DFL) {
        bus_set.sa_handler(sig);
        return;
    }
    sigaction(sig, &bus_before, NULL); /* the instruction faults again */
}

static int standin_sigaction(int sig, const struct sigaction *act,
                             struct sigaction *old)
{
    static int is_there;

    if (sig == SIGSEGV) {
        return 0;
    }
    if (sig != SIGBUS) {
        abort();
    }
    if (!is_there) {
        struct sigaction stays;

        memset(&stays, 0, sizeof(stays));
        stays.sa_handler = bus_handler;
        stays.sa_flags = SA_NODEFER; /* sigsetjmp() keeps no mask, below */
        sigemptyset(&stays.sa_mask);
        is_there = sigaction(sig, &stays, &bus_before) == 0;
    }
    if (old) {
        *old = bus_set;
    }
    bus_set = *act;
    return 0;
}

static apr_status_t standin_trylock(apr_global_mutex_t *m)
{
    (void)m;
    return APR_SUCCESS;
}

/*
 * Mappings, each between two guard pages.  They stay for the runs to come,
 * for a new one costs more than a run; what nobody has is out of bounds.
 */
#define PAGE       ((size_t)4096)
#define OBJECT_MAX (256 * PAGE)

static int object = -1; /* what lies under every name: a file of OBJECT_MAX */
static char *object_bytes;
static size_t object_size; /* bytes that it has now */

static struct {
    char *base;
    size_t pages;
    int fd; /* -1: nobody else's memory */
    int taken;
} regions[512];
#define REGIONS (sizeof(regions) / sizeof(regions[0]))

static size_t pages_of(size_t len)
{
    return (len + PAGE - 1) / PAGE;
}

static char *region_map(size_t pages, int fd)
{
    char *room = mmap(NULL, (pages + 2) * PAGE, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char *base;

    check(room != MAP_FAILED, "room");
    base = mmap(room + PAGE, pages * PAGE, PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_FIXED | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);
    check(base != MAP_FAILED, "a mapping");
    return base;
}

/* `len` bytes of an object, or of memory of zeros. */
static char *region_take(size_t len, int fd)
{
    const size_t pages = pages_of(len);
    size_t i;

    for (i = 0; i < REGIONS && regions[i].base; i++) {
        if (!regions[i].taken && regions[i].pages == pages
            && regions[i].fd == fd) {
            break;
        }
    }
    check(i < REGIONS, "few segments");
    if (!regions[i].base) {
        regions[i].base = region_map(pages, fd);
        regions[i].pages = pages;
        regions[i].fd = fd;
    }
    regions[i].taken = 1;
    __asan_unpoison_memory_region(regions[i].base, len);
    __asan_poison_memory_region(regions[i].base + len, pages * PAGE - len);
    if (fd < 0) {
        memset(regions[i].base, 0, len);
    }
    return regions[i].base;
}

static void region_give(const char *base, size_t len)
{
    size_t i;

    for (i = 0; i < REGIONS && regions[i].base != base; i++) {
        check(regions[i].base != NULL, "it is mapped");
    }
    check(i < REGIONS && regions[i].taken, "it is unmapped once");
    check(regions[i].pages == pages_of(len), "and all of it");
    regions[i].taken = 0;
    __asan_poison_memory_region(regions[i].base, regions[i].pages * PAGE);
}

/* All of it is there already. */
static int standin_madvise(void *base, size_t len, int advice)
{
    check(advice == MADV_POPULATE_WRITE, "the only advice");
    check(__asan_region_is_poisoned(base, len) == NULL,
          "memory that is asked for is mapped");
    return 0;
}

struct apr_shm_t {
    char *base;
    size_t realsize, reqsize;
    apr_pool_t *pool;
};

static apr_status_t standin_shm_cleanup(void *data)
{
    apr_shm_t *m = data;

    region_give(m->base, m->realsize);
    m->base = NULL;
    return APR_SUCCESS;
}

static apr_status_t standin_shm_create(apr_shm_t **m, apr_size_t size,
                                       const char *key, apr_pool_t *p)
{
    (void)key;
    *m = apr_pcalloc(p, sizeof(**m));
    (*m)->pool = p;
    (*m)->reqsize = size;
    (*m)->realsize = size + 8;
    (*m)->base = region_take((*m)->realsize, -1);
    memcpy((*m)->base, &(*m)->realsize, 8);
    apr_pool_cleanup_register(p, *m, standin_shm_cleanup,
                              apr_pool_cleanup_null);
    return APR_SUCCESS;
}

static apr_status_t standin_shm_close(apr_shm_t *m)
{
    return apr_pool_cleanup_run(m->pool, m, standin_shm_cleanup);
}

static void *standin_shm_baseaddr(const apr_shm_t *m)
{
    return (char *)((uintptr_t)m->base + 8);
}

/* Registries, of which there is one at a time, have their memory of one
 * allocator, which keeps it. */
static apr_status_t standin_allocator_create(apr_allocator_t **allocator)
{
    static apr_allocator_t *stays;
    apr_status_t rv = stays ? APR_SUCCESS : apr_allocator_create(&stays);

    *allocator = stays;
    return rv;
}

static void standin_allocator_owner(apr_allocator_t *allocator,
                                    apr_pool_t *pool)
{
    (void)allocator;
    (void)pool;
}

#include "slotmem_platform.h"

static enum platform_process standin_process_birth(pid_t pid, uint64_t *birth)
{
    *birth = (uint64_t)pid * 3;
    return pid % 2   ? PLATFORM_PROCESS_DEAD
           : pid & 2 ? PLATFORM_PROCESS_UNKNOWN
                     : PLATFORM_PROCESS_BEGAN;
}

static int standin_object_open(platform_object_t *o, const char *key, uid_t uid)
{
    (void)uid;
    check(key[0] == '/', "a key is a path");
    platform_object_init(o, PLATFORM_SHM_POSIX);
    o->fd = dup(object);
    check(o->fd >= 0, "a descriptor");
    o->size = object_size;
    return 0;
}

/* With guard pages around it, and the rest of the last page out of bounds. */
static int standin_object_map(const platform_object_t *o, void **base,
                              size_t *len)
{
    if (o->size <= o->header) {
        return EINVAL;
    }
    *base = region_take(o->size, object) + o->header;
    *len = o->size - o->header;
    return 0;
}

static void standin_object_unmap(enum platform_shm kind, void *base, size_t len)
{
    check(kind == PLATFORM_SHM_POSIX, "it is the object's");
    region_give((char *)base - SLOTMEM_SHM_ALIGN, len + SLOTMEM_SHM_ALIGN);
}

static void standin_object_remove(const platform_object_t *o, const char *key)
{
    (void)o;
    (void)key;
}

#define platform_object_open   standin_object_open
#define platform_object_map    standin_object_map
#define platform_unmap         standin_object_unmap
#define platform_object_remove standin_object_remove
#define platform_process_birth standin_process_birth

#define apr_time_now             standin_time_now
#define clock_gettime            standin_gettime
#define apr_sleep                standin_sleep
#define sched_yield              standin_yield
#define kill                     standin_kill
#define getpid                   standin_getpid
#define lstat                    standin_lstat
#define madvise                  standin_madvise
#define sigaction(s, a, o)       standin_sigaction(s, a, o)
#define apr_global_mutex_trylock standin_trylock
#define apr_allocator_create     standin_allocator_create
#define apr_allocator_owner_set  standin_allocator_owner
#define apr_shm_create           standin_shm_create
#define apr_shm_destroy          standin_shm_close
#define apr_shm_baseaddr_get     standin_shm_baseaddr

/* To save the mask of signals, which nobody changes, is a system call. */
#include <setjmp.h>
#undef sigsetjmp
#define sigsetjmp(env, mask) __sigsetjmp(env, 0)

#include "mod_slotmem_shm.c"

#undef sigaction
#undef kill
#undef getpid
#undef lstat
#undef madvise

#include "standin_httpd.h"

/* ------------------------------------------------------------------------
 * The input
 */

typedef struct {
    const uint8_t *at;
    size_t left;
    unsigned int sum; /* of all its bytes */
} input_t;

static uint64_t take(input_t *in, size_t bytes)
{
    uint64_t v = 0;

    if (bytes > in->left) {
        bytes = in->left;
    }
    memcpy(&v, in->at, bytes);
    in->at += bytes;
    in->left -= bytes;
    return v;
}

/* Changes some bytes in [base, base + len). */
static void scribble(input_t *in, char *base, size_t len)
{
    uint64_t where = take(in, 2), value = take(in, 8), k = where >> 14;
    size_t at = (where & 0x3fff) * 8;

    if (len < 8) {
        return;
    }
    at %= len - 7;
    switch (k) {
    case 0: /* a word */
        memcpy(base + at, &value, 8);
        break;
    case 1: /* a little more or less */
        base[at] = (char)(base[at] + (int8_t)value);
        break;
    case 2: /* a word among the first */
        memcpy(base + at % (len < 256 ? len - 7 : 256), &value, 8);
        break;
    default: /* all that follows */
        memset(base + at, (int)value, len - at);
        break;
    }
}

/* ------------------------------------------------------------------------
 * Calls
 */

typedef struct {
    input_t *in;
    ap_slotmem_instance_t *s;
    unsigned int seen;
} visit_t;

static apr_status_t visit(void *mem, void *data, apr_pool_t *p)
{
    visit_t *v = data;
    const layout_t *l = &v->s->layout;
    size_t off = (size_t)((char *)mem - v->s->slots);

    (void)p;
    check((char *)mem >= v->s->slots && off <= l->slots_len - l->item_size,
          "doall stays within the slots");
    check(l->item_size == 0 || off % l->item_size == 0, "doall is on a slot");
    return ++v->seen < 100 ? APR_SUCCESS : APR_EOF;
}

static void emit_all(ap_slotmem_instance_t *s)
{
    static unsigned char buffers[2 * SINK_SIZE];
    unsigned char *tail;
    apr_size_t len;
    image_t i;
    sink_t k;

    memset(&k, 0, sizeof(k));
    k.buffer = buffers;
    k.other = buffers + SINK_SIZE;
    k.patience = SLOTMEM_SNAPSHOT_TRIES;
    if (segment_image(&i, s, &k) == APR_SUCCESS) {
        check(image_free_slots(&i) <= s->layout.item_num,
              "no more used than there are");
        if (image_emit(&i, SINK_HASH, NULL) == APR_SUCCESS) {
            tail = image_tail(&i, &len);
            check(tail != NULL, "a tail");
            free(tail);
        }
    }
    image_end(&i);
}

static void call_one(input_t *in, ap_slotmem_instance_t *s,
                     unsigned char *bytes, size_t room)
{
    unsigned int id = (unsigned int)take(in, 2), out = ~0u;
    size_t len = (size_t)take(in, 2);
    visit_t v = { in, s, 0 };
    void *mem;

    /* Any, or with the top bit clear about what there is. */
    id = id & 0x8000 ? id : id % (s->layout.item_num + 2);
    len = len & 0x8000 ? len : len % (s->layout.item_size + 2);
    len = len < room ? len : room;
    switch (take(in, 1) % 12) {
    case 0:
        if (slotmem_grab(s, &out) == APR_SUCCESS) {
            check(out < s->layout.item_num, "grab gives a slot that exists");
        }
        break;
    case 1:
        slotmem_fgrab(s, id);
        break;
    case 2:
        slotmem_release(s, id);
        break;
    case 3:
        slotmem_put(s, id, bytes, len);
        break;
    case 4:
        slotmem_get(s, id, bytes, len);
        break;
    case 5:
        slotmem_put(s, id, bytes,
                    s->layout.item_size < room ? s->layout.item_size : room);
        break;
    case 6:
        slotmem_doall(s, visit, &v, NULL);
        break;
    case 7:
        check(slotmem_num_free_slots(s) <= slotmem_num_slots(s),
              "no more free than there are");
        break;
    case 8:
        if (slotmem_dptr(s, id, &mem) == APR_SUCCESS) {
            check((char *)mem >= s->slots
                      && (size_t)((char *)mem - s->slots)
                             <= s->layout.slots_len - s->layout.item_size,
                  "dptr is within the slots");
        }
        break;
    case 9:
        emit_all(s);
        break;
    case 10:
        scribble(in, (char *)s->header, s->layout.total);
        break;
    default:
        stored_note(s, NULL);
        (void)is_touched(s);
        break;
    }
}

static void call_many(input_t *in, ap_slotmem_instance_t *s)
{
    static unsigned char bytes[65536];
    layout_t before = s->layout;
    int n;

    for (n = 0; n < 60 && in->left; n++) {
        call_one(in, s, bytes, sizeof(bytes));
    }
    check(memcmp(&before, &s->layout, sizeof(before)) == 0,
          "what a segment is does not depend on what is in it");
}

/* ------------------------------------------------------------------------
 * The scenes
 */

static const unsigned char run_identity[SLOTMEM_SHM_RUN_LEN] =
    "fuzzfuzzfuzzfuzz";

typedef struct {
    apr_size_t size;
    unsigned int num;
    ap_slotmem_type_t type;
} geometry_t;

static geometry_t geometry(input_t *in)
{
    static const unsigned int sizes[] = { 0, 1, 7, 8, 24, 64, 200, 272 };
    static const unsigned int nums[] = { 0, 1, 2,  3,  4,  5,  6,   7,
                                         2, 3, 63, 64, 65, 66, 129, 4097 };
    uint64_t v = take(in, 3);
    geometry_t g;

    /* Large ones seldom: speed is worth more.  By all of the input, or what is
     * found with a large one would be tried again and again with it. */
    g.size = sizes[v % 8];
    g.num = nums[(v >> 3)
                 % (in->sum % 64 == 0  ? 16
                    : in->sum % 8 == 0 ? 15
                                       : 10)];
    if (g.size > 64) {
        g.num %= 4;
    }
    g.type = (ap_slotmem_type_t)((v >> 16) & 15);
    return g;
}

static ap_slotmem_instance_t *fresh(const geometry_t *g, const char *name)
{
    ap_slotmem_instance_t *s = NULL;

    self.role = ROLE_CHILD;
    check(slotmem_create(&s, name, g->size, g->num, g->type, NULL)
              == APR_SUCCESS,
          "a segment can be made");
    s->type = g->type;
    return s;
}

/* An object that holds a segment of that geometry, changed. */
static void object_make(input_t *in, const geometry_t *g)
{
    static const unsigned char directory[16] = "a directory";
    ap_slotmem_instance_t s;
    size_t len, cut;
    unsigned int changes = (unsigned int)take(in, 1) % 5;
    char *image;

    memset(&s, 0, sizeof(s));
    check(layout_make(&s.layout, g->size, g->num) == APR_SUCCESS, "it fits");
    len = SLOTMEM_SHM_ALIGN + s.layout.total;
    check(len <= OBJECT_MAX, "room");
    image = object_bytes;
    memset(image, 0, pages_of(len) * PAGE);
    memcpy(image, &len, sizeof(len));
    s.type = g->type;
    s.memory.base = image + SLOTMEM_SHM_ALIGN;
    segment_lay(&s);
    segment_format(&s, 0, run_identity, directory);
    segment_publish(&s);
    while (changes--) {
        scribble(in, image, len);
    }
    cut = (size_t)take(in, 1);
    object_size = cut & 1 ? len * cut / 256 : len;
}

static void orphans_of(char *text)
{
    orphans.by_key = apr_hash_make(registry->pool);
    orphans.by_name = apr_hash_make(registry->pool);
    marker_parse(text, orphan_add, NULL);
}

static void scene_marker(input_t *in, apr_pool_t *p)
{
    const char *head =
        apr_psprintf(p, MARKER_TITLE "run %s 1 0\nsegment ",
                     hex_text(p, run_identity, sizeof(run_identity)));
    size_t plain = take(in, 1) % 2 ? strlen(head) : 0;
    geometry_t g = geometry(in);
    apr_hash_index_t *at;
    char *text;

    object_make(in, &g);
    text = apr_pcalloc(p, plain + in->left + 1);
    memcpy(text, head, plain);
    memcpy(text + plain, in->at, in->left);
    orphans_of(text);
    for (at = apr_hash_first(p, orphans.by_key); at; at = apr_hash_next(at)) {
        const orphan_t *o = apr_hash_this_val(at);

        check(*o->name != '\0', "an orphan's name is not empty");
        check(!o->s || o->s->layout.total == o->s->memory.len,
              "it is all mapped");
        check(!o->s || orphan_find(o->name) != NULL, "and can be found");
    }
    orphans_end(0);
}

static void scene_attach(input_t *in)
{
    geometry_t g = geometry(in);
    ap_slotmem_instance_t *s = NULL;
    apr_size_t size = 77;
    unsigned int num = 77;

    object_make(in, &g);
    self.role = ROLE_CHILD;
    if (slotmem_attach(&s, "other", &size, &num, NULL) == APR_SUCCESS) {
        check(size == s->layout.item_size && num == s->layout.item_num,
              "attach tells what it found");
        check(s->layout.total == s->memory.len, "it is all mapped");
        call_many(in, s);
    }
    else {
        check(size == 77 && num == 77 && s == NULL,
              "a failed attach leaves its output arguments alone");
    }
}

static void scene_takeover(input_t *in, apr_pool_t *p)
{
    geometry_t g = geometry(in), now;
    ap_slotmem_instance_t *s;
    orphan_t *o;

    g.type |= AP_SLOTMEM_TYPE_PERSIST;
    now = g;
    object_make(in, &g);
    if (take(in, 1) % 2 == 0) { /* fewer, mostly, or a little more */
        now.num = (unsigned int)take(in, 1) % (g.num + 3);
    }
    orphans_of(apr_psprintf(p,
                            MARKER_TITLE
                            "run %s 1 0\nsegment 0 0 %x %" APR_SIZE_T_FMT
                            " %u 616263 1-2,64\n",
                            hex_text(p, run_identity, sizeof(run_identity)),
                            g.type, g.size, g.num));
    check(apr_hash_count(orphans.by_key) == 1, "the marker lists it");
    s = fresh(&now, NULL);
    s->name = "abc";
    o = orphan_find("abc");
    if (o) {
        check(o->s->layout.total == o->s->memory.len, "it is all mapped");
        check(o->s->type == g.type && o->s->layout.item_num == g.num
                  && o->s->layout.item_size == g.size,
              "it is what the marker says");
        emit_all(o->s);
        (void)orphan_is_newer(o, p);
        (void)inherit_memory(s, o->s, ORIGIN_MEMORY);
    }
    emit_all(s);
    if (s->search) {
        self.role = ROLE_CONFIGURING;
        call_many(in, s);
        self.role = ROLE_CHILD;
        (void)slotmem_search_end(s->search);
        s->search = NULL;
    }
    call_many(in, s);
    orphans_end(0);
}

static void scene_calls(input_t *in)
{
    geometry_t g = geometry(in);
    ap_slotmem_instance_t *canary = fresh(&g, NULL), *s = fresh(&g, NULL);
    char *before = malloc(canary->layout.total);

    memcpy(before, canary->header, canary->layout.total);
    call_many(in, s);
    check(memcmp(before, canary->header, canary->layout.total) == 0,
          "no other segment is touched");
    free(before);
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    apr_initialize();
    retained = calloc(1, sizeof(*retained));
    memcpy(retained->run, run_identity, sizeof(run_identity));
    /* Of small pages, where memfd_create() may take huge ones: to clear those
     * was most of a run. */
    object = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    check(object >= 0 && ftruncate(object, OBJECT_MAX) == 0, "an object");
    object_bytes = region_map(OBJECT_MAX / PAGE, object);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input_t in = { data, size, 0 };
    apr_pool_t *p;
    size_t i;

    for (i = 0; i < size; i++) {
        in.sum += data[i];
    }
    if (registry_open() != APR_SUCCESS) {
        abort();
    }
    apr_pool_create(&p, registry->pool);
    standin_clock = apr_time_from_sec(1700000000);
    process_note_self();
    switch (take(&in, 1) % 4) {
    case 0:
        scene_marker(&in, p);
        break;
    case 1:
        scene_attach(&in);
        break;
    case 2:
        scene_takeover(&in, p);
        break;
    default:
        scene_calls(&in);
        break;
    }
    registry_close(registry);
    registry = NULL;
    return 0;
}
