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
 * around the mapping, and the rest of its last page is poisoned.  SIGSEGV is
 * not for guarded() to catch here: nothing may run past a mapping.  SIGBUS
 * is, for objects may be cut short.
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

static int standin_sigaction(int sig, const struct sigaction *act,
                             struct sigaction *old)
{
    return sig == SIGSEGV ? 0 : sigaction(sig, act, old);
}

static apr_status_t standin_trylock(apr_global_mutex_t *m)
{
    (void)m;
    return APR_SUCCESS;
}

struct apr_shm_t {
    char *base;
    size_t realsize, reqsize;
    apr_pool_t *pool;
    int spare; /* its place among the spare, from 1; 0: none */
};

/* Anonymous mappings are used again, for a new one costs more than a run. */
static struct {
    char *base;
    size_t realsize;
    int taken;
} spare[64];

#define PAGE ((size_t)4096)

static size_t pages_of(size_t len)
{
    return (len + PAGE - 1) / PAGE * PAGE;
}

static char *standin_map(size_t len, int fd)
{
    size_t pages = pages_of(len);
    char *room, *base;

    if (len == 0 || len > (size_t)1 << 40) {
        return MAP_FAILED;
    }
    room = mmap(NULL, pages + 2 * PAGE, PROT_NONE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) {
        return MAP_FAILED;
    }
    base = mmap(room + PAGE, len, PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_FIXED | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);
    if (base == MAP_FAILED) {
        abort();
    }
    return base;
}

static apr_status_t standin_shm_end(apr_shm_t *m)
{
    size_t pages = pages_of(m->realsize);

    if (m->base != MAP_FAILED) {
        if (m->spare) {
            spare[m->spare - 1].taken = 0;
            m->base = MAP_FAILED;
            return APR_SUCCESS;
        }
        __asan_unpoison_memory_region(m->base + pages - PAGE, PAGE);
        munmap(m->base - PAGE, pages + 2 * PAGE);
        m->base = MAP_FAILED;
    }
    return APR_SUCCESS;
}

static apr_status_t standin_shm_cleanup(void *m)
{
    return standin_shm_end(m);
}

static char *standin_spare(apr_shm_t *m)
{
    size_t i, n = sizeof(spare) / sizeof(spare[0]);

    for (i = 0; i < n && spare[i].base; i++) {
        if (!spare[i].taken && spare[i].realsize == m->realsize) {
            memset(spare[i].base, 0, m->realsize);
            break;
        }
    }
    if (i == n) {
        return standin_map(m->realsize, -1);
    }
    if (!spare[i].base) {
        spare[i].base = standin_map(m->realsize, -1);
        spare[i].realsize = m->realsize;
    }
    spare[i].taken = 1;
    m->spare = (int)i + 1;
    return spare[i].base;
}

static apr_status_t standin_shm_create(apr_shm_t **m, apr_size_t size,
                                       const char *key, apr_pool_t *p)
{
    (void)key;
    *m = apr_pcalloc(p, sizeof(**m));
    (*m)->pool = p;
    (*m)->reqsize = size;
    (*m)->realsize = size + 8;
    (*m)->base = standin_spare(*m);
    memcpy((*m)->base, &(*m)->realsize, 8);
    __asan_poison_memory_region((*m)->base + (*m)->realsize,
                                pages_of((*m)->realsize) - (*m)->realsize);
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

#include "slotmem_platform.h"

static int object = -1; /* what lies under every name */

static int standin_object_open(platform_object_t *o, const char *key, uid_t uid)
{
    struct stat st;

    (void)uid;
    check(key[0] == '/', "a key is a path");
    platform_object_init(o, PLATFORM_SHM_POSIX);
    o->fd = dup(object);
    if (o->fd < 0 || fstat(o->fd, &st) != 0) {
        abort();
    }
    o->size = (uint64_t)st.st_size;
    return 0;
}

/* With guard pages around it, and the rest of the last page out of bounds. */
static int standin_object_map(const platform_object_t *o, void **base,
                              size_t *len)
{
    char *start;

    if (o->size <= o->header) {
        return EINVAL;
    }
    start = standin_map(o->size, o->fd);
    if (start == MAP_FAILED) {
        return ENOMEM;
    }
    __asan_poison_memory_region(start + o->size, pages_of(o->size) - o->size);
    *base = start + o->header;
    *len = o->size - o->header;
    return 0;
}

static void standin_object_unmap(enum platform_shm kind, void *base, size_t len)
{
    char *start = (char *)base - SLOTMEM_SHM_ALIGN;
    const size_t pages = pages_of(len + SLOTMEM_SHM_ALIGN);

    check(kind == PLATFORM_SHM_POSIX, "it is the object's");
    __asan_unpoison_memory_region(start + pages - PAGE, PAGE);
    munmap(start - PAGE, pages + 2 * PAGE);
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

#define apr_time_now             standin_time_now
#define clock_gettime            standin_gettime
#define apr_sleep                standin_sleep
#define sched_yield              standin_yield
#define kill                     standin_kill
#define sigaction(s, a, o)       standin_sigaction(s, a, o)
#define apr_global_mutex_trylock standin_trylock
#define apr_shm_create           standin_shm_create
#define apr_shm_destroy          standin_shm_close
#define apr_shm_baseaddr_get     standin_shm_baseaddr

#include "mod_slotmem_shm.c"

#undef sigaction
#undef kill

#include "standin_httpd.h"

/* ------------------------------------------------------------------------
 * The input
 */

typedef struct {
    const uint8_t *at;
    size_t left;
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
                      && (char *)mem <= s->slots + s->layout.slots_len,
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
    static const unsigned int sizes[] = { 0, 1, 7, 8, 24, 64, 200, 66000 };
    static const unsigned int nums[] = { 0,  1,  2, 63,  64, 65,   130,
                                         65, 64, 3, 129, 66, 1025, 4097 };
    uint64_t v = take(in, 3);
    geometry_t g;

    g.size = sizes[v % 8];
    g.num = nums[(v >> 3) % (v >> 8 & 15 ? 12 : 14)]; /* large ones seldom */
    if (g.size > 200) { /* speed is worth more than size */
        g.num %= 2;
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
    size_t len, cut, keep;
    unsigned int changes = (unsigned int)take(in, 1) % 5;
    char *image;

    memset(&s, 0, sizeof(s));
    check(layout_make(&s.layout, g->size, g->num) == APR_SUCCESS, "it fits");
    len = SLOTMEM_SHM_ALIGN + s.layout.total;
    image = aligned_alloc(SLOTMEM_SHM_ALIGN, slotmem_part_end(len));
    memset(image, 0, len);
    memcpy(image, &len, sizeof(len));
    s.type = g->type;
    s.memory.base = image + SLOTMEM_SHM_ALIGN;
    segment_lay(&s);
    segment_format(&s, run_identity, directory);
    segment_publish(&s);
    while (changes--) {
        scribble(in, image, len);
    }
    cut = (size_t)take(in, 1);
    keep = cut & 1 ? len * cut / 256 : len;
    if (pwrite(object, image, len, 0) != (ssize_t)len
        || ftruncate(object, (off_t)keep) != 0) {
        abort();
    }
    free(image);
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
    if (take(in, 1) % 4 == 0) {
        now.num = (unsigned int)take(in, 1);
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
    return object < 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input_t in = { data, size };
    apr_pool_t *p;

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
