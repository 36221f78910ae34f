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
 * mod_slotmem_test: a consumer of the slotmem provider that does what a test
 * tells it to, in the process and at the stage of httpd's life that the test
 * chooses.
 *
 * Every provider call is an *operation*: one line of text,
 *
 *     NAME key=value key=value ...          (values %XX-encoded)
 *
 * answered by one JSON object on one line.  Operations arrive
 *
 *   - in a POST to /slotmem-test: any child that accepts the connection;
 *   - on CTL/child-PID-GENERATION-BIRTH.sock: exactly that child, each connection
 *     being a thread of its own in it;
 *   - from CTL/STAGE.ops, read once and removed when httpd reaches STAGE
 *     (register, pre_config, post_config_check, post_config, child_init),
 *     and from the directives SlotmemTestCreate, SlotmemTestPostConfig and
 *     SlotmemTestAttach; answers are appended to CTL/STAGE.out.
 *
 * CTL is the directory in the environment variable SLOTMEM_TEST_DIR.
 *
 * Instances are kept in a table by *handle*; what the parent creates in
 * post_config is found under the same handle in every child, as an instance
 * pointer inherited over fork.  The handle NULL stands for a NULL instance.
 */

#include "httpd.h"
#include "http_config.h"
#include "http_core.h"
#include "http_log.h"
#include "http_protocol.h"
#include "ap_mpm.h"
#include "ap_provider.h"
#include "ap_slotmem.h"
#include "apr_strings.h"
#include "apr_lib.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

APLOG_USE_MODULE(slotmem_test);
module AP_MODULE_DECLARE_DATA slotmem_test_module;

#define URI             "/slotmem-test"
#define MAX_CONNECTIONS 64

/* What output arguments hold before a call, to see whether it wrote them. */
#define SENTINEL_SIZE ((apr_size_t)0xdeadbeefcafef00dULL)
#define SENTINEL_NUM  0xfeedfaceU
#define SENTINEL_ID   0xabad1deaU
#define SENTINEL_PTR  ((void *)(uintptr_t)0x5a5a5a5a5a5a5a50ULL)

static apr_pool_t *conf_pool;
static apr_pool_t *child_pool;
static int mpm_is_ready;
static const char *default_provider = "shm";
static apr_array_header_t *post_config_ops; /* const char * */
static const char *start_fails;             /* "first", "last" or NULL */
static apr_array_header_t *child_init_ops;  /* const char * */

/* ------------------------------------------------------------------------
 * Answers: a growing text
 */

typedef struct {
    char *text;
    size_t length;
    size_t room;
} answer_t;

static void answer_reserve(answer_t *a, size_t more)
{
    if (a->length + more + 1 > a->room) {
        a->room = 2 * (a->length + more + 1);
        a->text = realloc(a->text, a->room);
        if (a->text == NULL) {
            abort();
        }
    }
}

static void answer_put(answer_t *a, const char *text, size_t length)
{
    answer_reserve(a, length);
    memcpy(a->text + a->length, text, length);
    a->length += length;
    a->text[a->length] = '\0';
}

static void answer_printf(answer_t *a, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void answer_printf(answer_t *a, const char *format, ...)
{
    va_list ap;
    int needed;

    va_start(ap, format);
    needed = vsnprintf(NULL, 0, format, ap);
    va_end(ap);
    if (needed < 0) {
        abort();
    }
    answer_reserve(a, (size_t)needed);
    va_start(ap, format);
    vsnprintf(a->text + a->length, (size_t)needed + 1, format, ap);
    va_end(ap);
    a->length += (size_t)needed;
}

static void answer_quoted(answer_t *a, const char *text)
{
    const char *c;

    answer_put(a, "\"", 1);
    for (c = text; *c; c++) {
        unsigned char u = (unsigned char)*c;

        if (u < 0x20 || u == '"' || u == '\\' || u >= 0x7f) {
            answer_printf(a, "\\u%04x", u);
        }
        else {
            answer_put(a, c, 1);
        }
    }
    answer_put(a, "\"", 1);
}

static void answer_string(answer_t *a, const char *key, const char *value)
{
    answer_printf(a, ",\"%s\":", key);
    answer_quoted(a, value);
}

static void answer_number(answer_t *a, const char *key, uint64_t value)
{
    answer_printf(a, ",\"%s\":%" PRIu64, key, value);
}

static void answer_bool(answer_t *a, const char *key, int value)
{
    answer_printf(a, ",\"%s\":%s", key, value ? "true" : "false");
}

static void answer_pointer(answer_t *a, const char *key, const void *value)
{
    answer_printf(a, ",\"%s\":%" PRIu64, key, (uint64_t)(uintptr_t)value);
}

static void answer_bytes(answer_t *a, const char *key,
                         const unsigned char *bytes, size_t length)
{
    static const char digit[] = "0123456789abcdef";
    size_t i;

    answer_printf(a, ",\"%s\":\"", key);
    answer_reserve(a, 2 * length);
    for (i = 0; i < length; i++) {
        a->text[a->length++] = digit[bytes[i] >> 4];
        a->text[a->length++] = digit[bytes[i] & 15];
    }
    answer_put(a, "\"", 1);
}

static const char *status_name(apr_status_t rv)
{
    static const struct {
        apr_status_t rv;
        const char *name;
    } names[] = {
        { APR_SUCCESS, "APR_SUCCESS" },
        { APR_EINVAL, "APR_EINVAL" },
        { APR_NOTFOUND, "APR_NOTFOUND" },
        { APR_ENOSHMAVAIL, "APR_ENOSHMAVAIL" },
        { APR_TIMEUP, "APR_TIMEUP" },
        { APR_EINCOMPLETE, "APR_EINCOMPLETE" },
        { APR_ENOTIMPL, "APR_ENOTIMPL" },
        { APR_EGENERAL, "APR_EGENERAL" },
        { APR_ENOPOOL, "APR_ENOPOOL" },
        { APR_EBADPATH, "APR_EBADPATH" },
        { APR_EBUSY, "APR_EBUSY" },
        { APR_EOF, "APR_EOF" },
        { APR_ENOMEM, "APR_ENOMEM" },
        { APR_ENOENT, "APR_ENOENT" },
        { APR_EEXIST, "APR_EEXIST" },
        { APR_EACCES, "APR_EACCES" },
        { APR_ENOSPC, "APR_ENOSPC" },
        { APR_EINTR, "APR_EINTR" },
        { APR_EAGAIN, "APR_EAGAIN" },
        { APR_ENAMETOOLONG, "APR_ENAMETOOLONG" },
    };
    size_t i;

    for (i = 0; i < sizeof names / sizeof *names; i++) {
        if (names[i].rv == rv) {
            return names[i].name;
        }
    }
    return "other";
}

static void answer_status(answer_t *a, apr_status_t rv)
{
    char message[128];

    answer_printf(a, ",\"code\":%d", rv);
    answer_string(a, "rv", status_name(rv));
    answer_string(a, "message", apr_strerror(rv, message, sizeof message));
}

/* ------------------------------------------------------------------------
 * Operations: parsing
 */

typedef struct {
    const char *name;
    apr_table_t *args;
    apr_pool_t *pool; /* gone when the operation is answered */
    answer_t *answer;
    const char *error; /* the test wrote nonsense */
} op_t;

static char *percent_decode(apr_pool_t *p, const char *text)
{
    char *decoded = apr_palloc(p, strlen(text) + 1);
    char *to = decoded;

    while (*text) {
        if (*text == '%' && apr_isxdigit(text[1]) && apr_isxdigit(text[2])) {
            char hex[3] = { text[1], text[2], '\0' };

            *to++ = (char)strtoul(hex, NULL, 16);
            text += 3;
        }
        else {
            *to++ = *text++;
        }
    }
    *to = '\0';
    return decoded;
}

static const char *op_text(op_t *op, const char *key, const char *otherwise)
{
    const char *value = apr_table_get(op->args, key);

    return value ? percent_decode(op->pool, value) : otherwise;
}

static uint64_t op_number(op_t *op, const char *key, uint64_t otherwise)
{
    const char *value = apr_table_get(op->args, key);
    char *end;
    uint64_t number;

    if (value == NULL) {
        return otherwise;
    }
    number = (uint64_t)strtoull(value, &end, 0);
    if (*value == '\0' || *end != '\0') {
        op->error = apr_psprintf(op->pool, "%s=%s is no number", key, value);
    }
    return number;
}

static unsigned int op_uint(op_t *op, const char *key, unsigned int otherwise)
{
    return (unsigned int)op_number(op, key, otherwise);
}

static int64_t op_offset(op_t *op)
{
    const char *value = apr_table_get(op->args, "off");

    return value ? (int64_t)strtoll(value, NULL, 0) : 0;
}

/* A segment's name: @NULL is the NULL pointer, @EMPTY the empty string. */
static const char *op_segment_name(op_t *op)
{
    const char *value = apr_table_get(op->args, "name");

    if (value == NULL || strcmp(value, "@NULL") == 0) {
        return NULL;
    }
    if (strcmp(value, "@EMPTY") == 0) {
        return "";
    }
    return percent_decode(op->pool, value);
}

static ap_slotmem_type_t op_type(op_t *op)
{
    static const struct {
        const char *name;
        ap_slotmem_type_t bit;
    } bits[] = {
        { "persist", AP_SLOTMEM_TYPE_PERSIST },
        { "notmpsafe", AP_SLOTMEM_TYPE_NOTMPSAFE },
        { "pregrab", AP_SLOTMEM_TYPE_PREGRAB },
        { "clearinuse", AP_SLOTMEM_TYPE_CLEARINUSE },
    };
    char *words = apr_pstrdup(op->pool, op_text(op, "type", "0"));
    ap_slotmem_type_t type = 0;
    char *state = NULL;
    char *word;

    for (word = apr_strtok(words, "+", &state); word;
         word = apr_strtok(NULL, "+", &state)) {
        size_t i, n = sizeof bits / sizeof *bits;

        for (i = 0; i < n && strcmp(bits[i].name, word) != 0; i++) {
            continue;
        }
        if (i < n) {
            type |= bits[i].bit;
        }
        else if (apr_isdigit(*word)) {
            type |= (ap_slotmem_type_t)strtoul(word, NULL, 0);
        }
        else {
            op->error = apr_psprintf(op->pool, "no such type: %s", word);
        }
    }
    return type;
}

static unsigned char *op_bytes(op_t *op, size_t *length)
{
    const char *hex = apr_table_get(op->args, "data");
    unsigned char *bytes;
    size_t i;

    if (hex == NULL) {
        *length = (size_t)op_number(op, "len", 0);
        bytes = apr_palloc(op->pool, *length + 1);
        memset(bytes, (int)op_uint(op, "byte", 0), *length);
        return bytes;
    }
    *length = strlen(hex) / 2;
    bytes = apr_palloc(op->pool, *length + 1);
    for (i = 0; i < *length; i++) {
        char two[3] = { hex[2 * i], hex[2 * i + 1], '\0' };

        bytes[i] = (unsigned char)strtoul(two, NULL, 16);
    }
    return bytes;
}

static const ap_slotmem_provider_t *op_provider(op_t *op)
{
    const char *name = op_text(op, "provider", default_provider);
    const ap_slotmem_provider_t *provider = ap_lookup_provider(
        AP_SLOTMEM_PROVIDER_GROUP, name, AP_SLOTMEM_PROVIDER_VERSION);

    if (provider == NULL) {
        op->error = apr_psprintf(op->pool, "no slotmem provider %s", name);
    }
    return provider;
}

/*
 * The pool a call is given: by default one that dies with the operation,
 * since no segment may depend on it.
 */
static apr_pool_t *op_call_pool(op_t *op)
{
    const char *which = op_text(op, "pool", "op");

    if (strcmp(which, "op") == 0) {
        return op->pool;
    }
    if (strcmp(which, "conf") == 0) {
        return conf_pool;
    }
    if (strcmp(which, "child") == 0 && child_pool) {
        return child_pool;
    }
    op->error = apr_psprintf(op->pool, "no pool %s here", which);
    return op->pool;
}

/* ------------------------------------------------------------------------
 * Handles
 */

typedef struct handle_t handle_t;
struct handle_t {
    handle_t *next;
    ap_slotmem_instance_t *instance;
    char name[1];
};

static handle_t *handles;
static pthread_mutex_t handles_lock = PTHREAD_MUTEX_INITIALIZER;

static handle_t *handle_find(const char *name)
{
    handle_t *h;

    for (h = handles; h && strcmp(h->name, name) != 0; h = h->next) {
        continue;
    }
    return h;
}

static void handle_set(const char *name, ap_slotmem_instance_t *instance)
{
    handle_t *h;

    pthread_mutex_lock(&handles_lock);
    h = handle_find(name);
    if (h == NULL) {
        h = calloc(1, sizeof *h + strlen(name));
        if (h == NULL) {
            abort();
        }
        strcpy(h->name, name);
        h->next = handles;
        handles = h;
    }
    h->instance = instance;
    pthread_mutex_unlock(&handles_lock);
}

static void handles_forget(void)
{
    while (handles) {
        handle_t *h = handles;

        handles = h->next;
        free(h);
    }
}

static ap_slotmem_instance_t *op_instance(op_t *op)
{
    const char *name = op_text(op, "h", NULL);
    ap_slotmem_instance_t *instance = NULL;
    handle_t *h;

    if (name == NULL) {
        op->error = "h= is missing";
        return NULL;
    }
    if (strcmp(name, "NULL") == 0) {
        return NULL;
    }
    pthread_mutex_lock(&handles_lock);
    h = handle_find(name);
    if (h) {
        instance = h->instance;
    }
    pthread_mutex_unlock(&handles_lock);
    if (h == NULL) {
        op->error = apr_psprintf(op->pool, "no handle %s in process %d", name,
                                 (int)getpid());
    }
    return instance;
}

/* ------------------------------------------------------------------------
 * The provider's calls, one operation each
 */

static void do_ping(op_t *op)
{
    const char *mpm = ap_show_mpm();

    answer_string(op->answer, "mpm", mpm ? mpm : "");
}

static void do_provider(op_t *op)
{
    const ap_slotmem_provider_t *p = op_provider(op);

    if (p == NULL) {
        op->error = NULL;
        answer_bool(op->answer, "found", 0);
        return;
    }
    answer_bool(op->answer, "found", 1);
    answer_pointer(op->answer, "address", p);
    answer_string(op->answer, "member", p->name ? p->name : "(null)");
    answer_bool(op->answer, "complete",
                p->doall && p->create && p->attach && p->dptr && p->get
                    && p->put && p->num_slots && p->num_free_slots
                    && p->slot_size && p->grab && p->release && p->fgrab);
}

static void do_create(op_t *op)
{
    const ap_slotmem_provider_t *p = op_provider(op);
    ap_slotmem_instance_t *instance = SENTINEL_PTR;
    const char *name = op_segment_name(op);
    apr_size_t size = (apr_size_t)op_number(op, "size", 0);
    unsigned int num = op_uint(op, "num", 0);
    ap_slotmem_type_t type = op_type(op);
    apr_pool_t *pool = op_call_pool(op);
    apr_status_t rv;

    if (op->error) {
        return;
    }
    rv = p->create(&instance, name, size, num, type, pool);
    answer_status(op->answer, rv);
    answer_pointer(op->answer, "instance", instance);
    answer_bool(op->answer, "untouched", instance == SENTINEL_PTR);
    if (rv == APR_SUCCESS) {
        handle_set(op_text(op, "h", name ? name : "@NULL"), instance);
    }
}

static void do_attach(op_t *op)
{
    const ap_slotmem_provider_t *p = op_provider(op);
    ap_slotmem_instance_t *instance = SENTINEL_PTR;
    const char *name = op_segment_name(op);
    apr_size_t size = (apr_size_t)op_number(op, "size", SENTINEL_SIZE);
    unsigned int num = op_uint(op, "num", SENTINEL_NUM);
    apr_size_t size_before = size;
    unsigned int num_before = num;
    apr_pool_t *pool = op_call_pool(op);
    apr_status_t rv;

    if (op->error) {
        return;
    }
    rv = p->attach(&instance, name, &size, &num, pool);
    answer_status(op->answer, rv);
    answer_pointer(op->answer, "instance", instance);
    answer_bool(op->answer, "untouched",
                instance == SENTINEL_PTR && size == size_before
                    && num == num_before);
    answer_number(op->answer, "size", size);
    answer_number(op->answer, "num", num);
    if (rv == APR_SUCCESS) {
        handle_set(op_text(op, "h", name ? name : "@NULL"), instance);
    }
}

static void do_grab(op_t *op)
{
    const ap_slotmem_provider_t *p = op_provider(op);
    ap_slotmem_instance_t *instance = op_instance(op);
    uint64_t i, n = op_number(op, "n", 1);
    unsigned int id = SENTINEL_ID;
    apr_status_t rv = APR_SUCCESS;

    if (op->error) {
        return;
    }
    answer_printf(op->answer, ",\"ids\":[");
    for (i = 0; i < n; i++) {
        id = SENTINEL_ID;
        rv = p->grab(instance, &id);
        if (rv != APR_SUCCESS) {
            break;
        }
        answer_printf(op->answer, "%s%u", i ? "," : "", id);
    }
    answer_printf(op->answer, "]");
    answer_number(op->answer, "id", id);
    answer_bool(op->answer, "untouched", id == SENTINEL_ID);
    answer_status(op->answer, rv);
}

/* fgrab and release: of slot i, or of n slots from i on. */
static void do_mark(op_t *op, int in_use)
{
    const ap_slotmem_provider_t *p = op_provider(op);
    ap_slotmem_instance_t *instance = op_instance(op);
    unsigned int i, first = op_uint(op, "i", 0), n = op_uint(op, "n", 1);
    apr_status_t rv = APR_SUCCESS;
    uint64_t done = 0;

    if (op->error) {
        return;
    }
    for (i = 0; i < n; i++) {
        apr_status_t one = in_use ? p->fgrab(instance, first + i)
                                  : p->release(instance, first + i);

        if (one == APR_SUCCESS) {
            done++;
        }
        else {
            rv = one;
        }
    }
    answer_status(op->answer, rv);
    answer_number(op->answer, "done", done);
}

static void do_fgrab(op_t *op)
{
    do_mark(op, 1);
}

static void do_release(op_t *op)
{
    do_mark(op, 0);
}

static void do_dptr(op_t *op)
{
    const ap_slotmem_provider_t *p = op_provider(op);
    ap_slotmem_instance_t *instance = op_instance(op);
    unsigned int id = op_uint(op, "i", 0);
    void *slot = SENTINEL_PTR;
    apr_status_t rv;

    if (op->error) {
        return;
    }
    rv = p->dptr(instance, id, &slot);
    answer_status(op->answer, rv);
    answer_pointer(op->answer, "address", slot);
    answer_bool(op->answer, "untouched", slot == SENTINEL_PTR);
}

/* The buffer is filled with A5 and ends in a guard that get must not touch. */
static void do_get(op_t *op)
{
    enum { GUARD = 64 };
    const ap_slotmem_provider_t *p = op_provider(op);
    ap_slotmem_instance_t *instance = op_instance(op);
    unsigned int id = op_uint(op, "i", 0);
    size_t i, length = (size_t)op_number(op, "len", 0);
    /* A length past any segment is asked for with a small buffer. */
    size_t room = (size_t)op_number(op, "room", length);
    unsigned char *buffer;
    int untouched = 1, guarded = 1;
    apr_status_t rv;

    if (op->error) {
        return;
    }
    buffer = apr_palloc(op->pool, room + GUARD);
    memset(buffer, 0xa5, room + GUARD);
    rv = p->get(instance, id, buffer, length);
    for (i = 0; i < room; i++) {
        untouched = untouched && buffer[i] == 0xa5;
    }
    for (i = room; i < room + GUARD; i++) {
        guarded = guarded && buffer[i] == 0xa5;
    }
    answer_status(op->answer, rv);
    answer_bool(op->answer, "untouched", untouched);
    answer_bool(op->answer, "guarded", guarded);
    answer_bytes(op->answer, "data", buffer, room);
}

static void do_put(op_t *op)
{
    const ap_slotmem_provider_t *p = op_provider(op);
    ap_slotmem_instance_t *instance = op_instance(op);
    unsigned int id = op_uint(op, "i", 0);
    size_t length;
    unsigned char *bytes = op_bytes(op, &length);

    if (op->error) {
        return;
    }
    length = (size_t)op_number(op, "claim", length);
    answer_status(op->answer, p->put(instance, id, bytes, length));
}

static void do_info(op_t *op)
{
    const ap_slotmem_provider_t *p = op_provider(op);
    ap_slotmem_instance_t *instance = op_instance(op);

    if (op->error) {
        return;
    }
    answer_number(op->answer, "num_slots", p->num_slots(instance));
    answer_number(op->answer, "slot_size", p->slot_size(instance));
    answer_number(op->answer, "num_free", p->num_free_slots(instance));
}

/* ------------------------------------------------------------------------
 * Waiting for a file: how a test holds a request or a callback
 */

static int file_exists(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0;
}

static void file_note(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);

    if (fd >= 0) {
        if (write(fd, text, strlen(text)) < 0) {
            fprintf(stderr, "mod_slotmem_test: cannot write %s\n", path);
        }
        close(fd);
    }
}

/* Says "PID" in PATH.reached, then waits until PATH exists. */
static int wait_for_file(const char *path, uint64_t seconds)
{
    apr_time_t limit = apr_time_now() + (apr_time_t)apr_time_from_sec(seconds);
    char reached[4096], pid[32];

    snprintf(reached, sizeof reached, "%s.reached", path);
    snprintf(pid, sizeof pid, "%d\n", (int)getpid());
    file_note(reached, pid);
    while (!file_exists(path)) {
        if (apr_time_now() > limit) {
            return 0;
        }
        apr_sleep(apr_time_from_msec(5));
    }
    return 1;
}

static void do_hold(op_t *op)
{
    const char *until = op_text(op, "until", NULL);
    uint64_t seconds = op_number(op, "limit", 60);

    if (until == NULL) {
        op->error = "until= is missing";
        return;
    }
    answer_bool(op->answer, "released", wait_for_file(until, seconds));
}

/*
 * A put that stops in its middle: its source runs into a page that nobody may
 * read, and the thread that reads it waits there, inside the provider's own
 * copy, until it is killed or the file until= is there.
 *
 * "at" bytes of the source lie before the page, and until.reached tells who
 * waits.  Only one thread of a process may do it at a time.
 */
static struct {
    unsigned char *page;
    size_t page_size;
    const char *until;
    char reached[PATH_MAX];
} half;

static void half_wait(int number, siginfo_t *info, void *context)
{
    unsigned char *at = info->si_addr;
    struct timespec moment = { 0, 5000000 };
    int fd;

    (void)context;
    if (half.page == NULL || at < half.page
        || at >= half.page + half.page_size) {
        signal(number, SIG_DFL); /* not ours: the child crashes */
        return;
    }
    fd = open(half.reached, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || close(fd) != 0) {
        _exit(1);
    }
    while (access(half.until, F_OK) != 0) {
        nanosleep(&moment, NULL);
    }
    mprotect(half.page, half.page_size, PROT_READ | PROT_WRITE);
}

static void do_halfput(op_t *op)
{
    const ap_slotmem_provider_t *p = op_provider(op);
    ap_slotmem_instance_t *instance = op_instance(op);
    unsigned int id = op_uint(op, "i", 0);
    size_t length = (size_t)op_number(op, "len", 0);
    size_t at = (size_t)op_number(op, "at", length / 2);
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t before = (at + page - 1) / page * page;
    size_t whole = before + page + length;
    struct sigaction action, old;
    unsigned char *room;
    sigset_t fault;

    half.until = op_text(op, "until", NULL);
    if (half.until == NULL || at > length) {
        op->error = "until= is missing, or at= is behind the end";
    }
    if (op->error) {
        return;
    }
    apr_snprintf(half.reached, sizeof half.reached, "%s.reached", half.until);
    room = mmap(NULL, whole, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED) {
        op->error = "no memory";
        return;
    }
    memset(room, (int)op_uint(op, "byte", 0), whole);
    half.page = room + before;
    half.page_size = page;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = half_wait;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, &old);
    sigemptyset(&fault); /* httpd's threads block all signals */
    sigaddset(&fault, SIGSEGV);
    pthread_sigmask(SIG_UNBLOCK, &fault, NULL);
    mprotect(half.page, page, PROT_NONE);
    answer_status(op->answer, p->put(instance, id, room + before - at, length));
    sigaction(SIGSEGV, &old, NULL);
    half.page = NULL;
    munmap(room, whole);
}

/* ------------------------------------------------------------------------
 * doall
 */

typedef struct {
    const ap_slotmem_provider_t *provider;
    ap_slotmem_instance_t *instance;
    answer_t *answer;
    const char *action;
    const char *until;
    apr_pool_t *pool;
    unsigned char *slot0;
    size_t size;
    uint64_t visited;
    uint64_t stop_at;
    uint64_t acted;
    apr_status_t stop_rv;
    apr_status_t action_rv;
    int pool_same;
    unsigned char *buffer;
} doall_t;

/* What the callback of this thread must be handed as its data. */
static __thread doall_t *doall_expected;

static apr_status_t doall_act(doall_t *d, unsigned int id)
{
    unsigned int grabbed;

    if (strcmp(d->action, "grab") == 0) {
        return d->provider->grab(d->instance, &grabbed);
    }
    if (strcmp(d->action, "fgrab") == 0) {
        return d->provider->fgrab(d->instance, id);
    }
    if (strcmp(d->action, "release") == 0) {
        return d->provider->release(d->instance, id);
    }
    if (strcmp(d->action, "get") == 0) {
        return d->provider->get(d->instance, id, d->buffer, d->size);
    }
    if (strcmp(d->action, "put") == 0) {
        memset(d->buffer, (int)(id & 0xff), d->size);
        return d->provider->put(d->instance, id, d->buffer, d->size);
    }
    if (strcmp(d->action, "free") == 0) {
        return d->provider->num_free_slots(d->instance)
                       <= d->provider->num_slots(d->instance)
                   ? APR_SUCCESS
                   : APR_EGENERAL;
    }
    if (strcmp(d->action, "wait") == 0) {
        return wait_for_file(d->until, 60) ? APR_SUCCESS : APR_TIMEUP;
    }
    return APR_SUCCESS;
}

static apr_status_t doall_visit(void *mem, void *data, apr_pool_t *pool)
{
    doall_t *d = doall_expected;
    unsigned int id;

    if (data != d) {
        return APR_EGENERAL;
    }
    id = d->size ? (unsigned int)((size_t)((unsigned char *)mem - d->slot0)
                                  / d->size)
                 : (unsigned int)d->visited;
    d->pool_same = d->pool_same && pool == d->pool;
    answer_printf(d->answer, "%s%u", d->visited ? "," : "", id);
    d->visited++;
    if (*d->action) {
        apr_status_t rv = doall_act(d, id);

        if (rv == APR_SUCCESS) {
            d->acted++;
        }
        else {
            d->action_rv = rv;
        }
    }
    return d->visited == d->stop_at ? d->stop_rv : APR_SUCCESS;
}

static void do_doall(op_t *op)
{
    doall_t d;
    const char *pool = op_text(op, "pool", "op");
    void *slot0 = NULL;
    apr_status_t rv;

    memset(&d, 0, sizeof d);
    d.provider = op_provider(op);
    d.instance = op_instance(op);
    d.answer = op->answer;
    d.action = op_text(op, "do", "");
    d.until = op_text(op, "until", "");
    d.stop_at = op_number(op, "stop", 0);
    d.stop_rv = (apr_status_t)op_uint(op, "status", APR_EGENERAL);
    d.pool_same = 1;
    if (strcmp(pool, "bogus") == 0) {
        d.pool = SENTINEL_PTR;
    }
    else {
        d.pool = op_call_pool(op);
    }
    if (op->error) {
        return;
    }
    if (d.instance) {
        d.size = d.provider->slot_size(d.instance);
        d.provider->dptr(d.instance, 0, &slot0);
    }
    d.slot0 = slot0;
    d.buffer = apr_palloc(op->pool, d.size + 1);
    doall_expected = &d;
    answer_printf(op->answer, ",\"ids\":[");
    rv = d.provider->doall(d.instance, doall_visit, &d, d.pool);
    answer_printf(op->answer, "]");
    doall_expected = NULL;
    answer_status(op->answer, rv);
    answer_number(op->answer, "visited", d.visited);
    answer_bool(op->answer, "pool_same", d.pool_same);
    answer_number(op->answer, "acted", d.acted);
    answer_string(op->answer, "action_rv", status_name(d.action_rv));
}

/* ------------------------------------------------------------------------
 * Raw memory, as consumers reach it through dptr, and as an attacker would
 */

static unsigned char *op_raw(op_t *op)
{
    const ap_slotmem_provider_t *p = op_provider(op);
    ap_slotmem_instance_t *instance = op_instance(op);
    unsigned int id = op_uint(op, "i", 0);
    void *slot = NULL;
    apr_status_t rv;

    if (op->error) {
        return NULL;
    }
    rv = p->dptr(instance, id, &slot);
    if (rv != APR_SUCCESS) {
        op->error = apr_psprintf(op->pool, "dptr(%u) failed: %d", id, rv);
        return NULL;
    }
    return (unsigned char *)slot + op_offset(op);
}

static void do_read(op_t *op)
{
    unsigned char *at = op_raw(op);

    if (at) {
        answer_pointer(op->answer, "address", at);
        answer_bytes(op->answer, "data", at, (size_t)op_number(op, "len", 0));
    }
}

static void do_write(op_t *op)
{
    unsigned char *at = op_raw(op);
    size_t length;
    unsigned char *bytes = op_bytes(op, &length);

    if (at) {
        memcpy(at, bytes, length);
        answer_pointer(op->answer, "address", at);
    }
}

typedef struct {
    uintptr_t start;
    uintptr_t end;
    char line[512];
} range_t;

/* The mapping that an address lies in. */
static int mapping_find(const void *address, range_t *range)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    uintptr_t wanted = (uintptr_t)address;
    int found = 0;

    if (maps == NULL) {
        return 0;
    }
    while (!found && fgets(range->line, sizeof range->line, maps)) {
        found = sscanf(range->line, "%" SCNxPTR "-%" SCNxPTR, &range->start,
                       &range->end)
                    == 2
                && wanted >= range->start && wanted < range->end;
    }
    fclose(maps);
    range->line[strcspn(range->line, "\n")] = '\0';
    return found;
}

static void do_mapping(op_t *op)
{
    unsigned char *at = op_raw(op);
    range_t range;

    if (at == NULL) {
        return;
    }
    if (!mapping_find(at, &range)) {
        op->error = "dptr points into no mapping";
        return;
    }
    answer_number(op->answer, "start", range.start);
    answer_number(op->answer, "end", range.end);
    answer_pointer(op->answer, "address", at);
    answer_string(op->answer, "line", range.line);
}

/*
 * Overwrites the whole mapping, or its bytes [from, to), with one byte or,
 * given a seed, with noise.  What a hostile child can do to its parent.
 */
static void do_scribble(op_t *op)
{
    unsigned char *at = op_raw(op);
    uint64_t seed = op_number(op, "seed", 0);
    uint64_t byte = op_number(op, "byte", 0xff);
    range_t range;
    uintptr_t from, to;

    if (at == NULL || !mapping_find(at, &range)) {
        return;
    }
    from = range.start + (uintptr_t)op_number(op, "from", 0);
    to = range.start + (uintptr_t)op_number(op, "to", range.end - range.start);
    if (to > range.end || from > to) {
        op->error = "from/to outside of the mapping";
        return;
    }
    answer_number(op->answer, "bytes", to - from);
    for (; from < to; from++) {
        if (seed) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            byte = seed & 0xff;
        }
        *(volatile unsigned char *)from = (unsigned char)byte;
    }
}

/* ------------------------------------------------------------------------
 * Hammers: many operations by many threads of this process
 */

typedef struct {
    const ap_slotmem_provider_t *provider;
    ap_slotmem_instance_t *instance;
    void (*run)(void *);
    uint64_t ops;
    uint64_t stamp;
    uint64_t random;
    unsigned int stop_seen;
    unsigned int first;
    unsigned int count;
    size_t length;
    /* counted */
    uint64_t done;
    uint64_t full;
    uint64_t double_owner;
    uint64_t torn;
    uint64_t timeup;
    uint64_t failed;
    apr_status_t failed_rv;
    const char *failed_call;
} hammer_t;

static unsigned int hammer_stop;

static int hammer_goes_on(hammer_t *h)
{
    return (h->ops == 0 || h->done + h->full + h->failed + h->timeup < h->ops)
           && __atomic_load_n(&hammer_stop, __ATOMIC_RELAXED) == h->stop_seen;
}

static uint64_t hammer_random(hammer_t *h)
{
    h->random ^= h->random << 13;
    h->random ^= h->random >> 7;
    h->random ^= h->random << 17;
    return h->random;
}

static void hammer_judge(hammer_t *h, const char *call, apr_status_t rv)
{
    if (rv == APR_SUCCESS) {
        h->done++;
    }
    else if (APR_STATUS_IS_TIMEUP(rv)) {
        h->timeup++;
    }
    else {
        h->failed++;
        h->failed_rv = rv;
        h->failed_call = call;
    }
}

/*
 * Grab a slot, stamp it, look whether anybody else holds it, release it.
 * Slots not held hold 0 in their first eight bytes.
 */
static void hammer_owner(void *data)
{
    hammer_t *h = data;

    while (hammer_goes_on(h)) {
        unsigned int id = SENTINEL_ID;
        apr_status_t rv = h->provider->grab(h->instance, &id);
        void *slot = NULL;

        if (rv == APR_EINVAL) {
            h->full++;
            sched_yield();
            continue;
        }
        if (rv != APR_SUCCESS
            || (rv = h->provider->dptr(h->instance, id, &slot))
                   != APR_SUCCESS) {
            hammer_judge(h, "grab/dptr", rv);
            continue;
        }
        if (__atomic_exchange_n((uint64_t *)slot, h->stamp, __ATOMIC_ACQ_REL)
            != 0) {
            h->double_owner++;
        }
        if (hammer_random(h) % 64 == 0) {
            sched_yield();
        }
        if (__atomic_exchange_n((uint64_t *)slot, (uint64_t)0, __ATOMIC_ACQ_REL)
            != h->stamp) {
            h->double_owner++;
        }
        hammer_judge(h, "release", h->provider->release(h->instance, id));
    }
}

static int is_uniform(const unsigned char *bytes, size_t length)
{
    return length == 0 || memcmp(bytes, bytes + 1, length - 1) == 0;
}

static void hammer_write(void *data)
{
    hammer_t *h = data;
    unsigned char *buffer = malloc(h->length + 1);

    if (buffer == NULL) {
        abort();
    }
    while (hammer_goes_on(h)) {
        uint64_t random = hammer_random(h);
        unsigned int id = h->first + (unsigned int)((random >> 8) % h->count);

        memset(buffer, (int)(random & 0xff), h->length);
        hammer_judge(h, "put",
                     h->provider->put(h->instance, id, buffer, h->length));
    }
    free(buffer);
}

static void hammer_read(void *data)
{
    hammer_t *h = data;
    unsigned char *buffer = malloc(h->length + 1);

    if (buffer == NULL) {
        abort();
    }
    while (hammer_goes_on(h)) {
        unsigned int id =
            h->first + (unsigned int)((hammer_random(h) >> 8) % h->count);
        apr_status_t rv = h->provider->get(h->instance, id, buffer, h->length);

        if (rv == APR_SUCCESS && !is_uniform(buffer, h->length)) {
            h->torn++;
        }
        hammer_judge(h, "get", rv);
    }
    free(buffer);
}

static apr_status_t mix_visit(void *mem, void *data, apr_pool_t *pool)
{
    hammer_t *h = data;

    (void)mem;
    (void)pool;
    return hammer_random(h) % 32 ? APR_SUCCESS : APR_EOF;
}

/* Any call on any slot; an answer no caller could explain is a failure. */
static void hammer_mix(void *data)
{
    hammer_t *h = data;
    unsigned char *buffer = malloc(h->length + 1);
    const ap_slotmem_provider_t *p = h->provider;
    ap_slotmem_instance_t *s = h->instance;

    if (buffer == NULL) {
        abort();
    }
    memset(buffer, 0x77, h->length);
    while (hammer_goes_on(h)) {
        uint64_t random = hammer_random(h);
        unsigned int grabbed;
        unsigned int id = h->first + (unsigned int)((random >> 8) % h->count);
        const char *call = "";
        apr_status_t rv = APR_SUCCESS;
        apr_status_t fine = APR_SUCCESS;
        void *slot = NULL;

        switch (random & 7) {
        case 0:
            call = "grab", rv = p->grab(s, &grabbed), fine = APR_EINVAL;
            break;
        case 1:
            call = "release", rv = p->release(s, id), fine = APR_NOTFOUND;
            break;
        case 2:
            call = "fgrab", rv = p->fgrab(s, id);
            break;
        case 3:
            call = "put", rv = p->put(s, id, buffer, h->length);
            fine = APR_NOTFOUND;
            break;
        case 4:
            call = "get", rv = p->get(s, id, buffer, h->length);
            fine = APR_NOTFOUND;
            break;
        case 5:
            call = "dptr", rv = p->dptr(s, id, &slot);
            break;
        case 6:
            call = "num_free_slots";
            rv = p->num_free_slots(s) <= p->num_slots(s) ? APR_SUCCESS
                                                         : APR_EGENERAL;
            break;
        default:
            call = "doall", rv = p->doall(s, mix_visit, h, NULL);
            fine = APR_EOF;
            break;
        }
        hammer_judge(h, call, rv == fine ? APR_SUCCESS : rv);
    }
    free(buffer);
}

static void *hammer_thread(void *data)
{
    hammer_t *h = data;

    h->run(h);
    return NULL;
}

static void hammer_answer(answer_t *a, const hammer_t *all, unsigned int n)
{
    hammer_t sum;
    unsigned int i;

    memset(&sum, 0, sizeof sum);
    for (i = 0; i < n; i++) {
        sum.done += all[i].done;
        sum.full += all[i].full;
        sum.double_owner += all[i].double_owner;
        sum.torn += all[i].torn;
        sum.timeup += all[i].timeup;
        sum.failed += all[i].failed;
        if (all[i].failed) {
            sum.failed_rv = all[i].failed_rv;
            sum.failed_call = all[i].failed_call;
        }
    }
    answer_number(a, "done", sum.done);
    answer_number(a, "full", sum.full);
    answer_number(a, "double_owner", sum.double_owner);
    answer_number(a, "torn", sum.torn);
    answer_number(a, "timeup", sum.timeup);
    answer_number(a, "failed", sum.failed);
    answer_string(a, "failed_rv", status_name(sum.failed_rv));
    answer_string(a, "failed_call", sum.failed_call ? sum.failed_call : "");
}

/*
 * hammer h=.. kind=owner|tear|write|read|mix threads=T ops=N [i=, count=]
 * [len=]: tear runs T writers and T readers.  ops=0 goes on until the
 * operation "stop" reaches this process.
 */
static void do_hammer(op_t *op)
{
    const ap_slotmem_provider_t *p = op_provider(op);
    ap_slotmem_instance_t *instance = op_instance(op);
    const char *kind = op_text(op, "kind", "owner");
    unsigned int threads = op_uint(op, "threads", 1);
    unsigned int i, n = strcmp(kind, "tear") == 0 ? 2 * threads : threads;
    uint64_t ops = op_number(op, "ops", 1000);
    unsigned int first = op_uint(op, "i", 0);
    unsigned int count = op_uint(op, "count", 0);
    unsigned int stop_seen = __atomic_load_n(&hammer_stop, __ATOMIC_RELAXED);
    pthread_t *ids;
    hammer_t *all;

    if (op->error) {
        return;
    }
    all = calloc(n + 1, sizeof *all);
    ids = calloc(n + 1, sizeof *ids);
    if (all == NULL || ids == NULL) {
        abort();
    }
    for (i = 0; i < n; i++) {
        hammer_t *h = &all[i];

        h->provider = p;
        h->instance = instance;
        h->ops = ops;
        h->stamp =
            ((uint64_t)getpid() << 24) + ((uint64_t)gettid() << 1) * 64 + i + 1;
        h->random = 0x9e3779b97f4a7c15ULL * (h->stamp + 1) | 1;
        h->stop_seen = stop_seen;
        h->first = first;
        h->count = count ? count : p->num_slots(instance) - first;
        h->length = (size_t)op_number(op, "len", p->slot_size(instance));
        h->run = strcmp(kind, "owner") == 0   ? hammer_owner
                 : strcmp(kind, "mix") == 0   ? hammer_mix
                 : strcmp(kind, "read") == 0  ? hammer_read
                 : strcmp(kind, "write") == 0 ? hammer_write
                 : strcmp(kind, "tear") != 0  ? NULL
                 : i & 1                      ? hammer_read
                                              : hammer_write;
        if (h->run == NULL || h->count == 0) {
            op->error = "no such kind of hammer, or nothing to hammer";
            break;
        }
        if (pthread_create(&ids[i], NULL, hammer_thread, h) != 0) {
            op->error = "pthread_create failed";
            break;
        }
    }
    if (op->error) {
        __atomic_add_fetch(&hammer_stop, 1, __ATOMIC_RELAXED);
    }
    n = i;
    for (i = 0; i < n; i++) {
        pthread_join(ids[i], NULL);
    }
    hammer_answer(op->answer, all, n);
    free(all);
    free(ids);
}

static void do_stop(op_t *op)
{
    (void)op;
    __atomic_add_fetch(&hammer_stop, 1, __ATOMIC_RELAXED);
}

/* ------------------------------------------------------------------------
 * Running an operation
 */

static const struct {
    const char *name;
    void (*run)(op_t *);
} operations[] = {
    { "ping", do_ping },         { "provider", do_provider },
    { "create", do_create },     { "attach", do_attach },
    { "grab", do_grab },         { "fgrab", do_fgrab },
    { "release", do_release },   { "dptr", do_dptr },
    { "get", do_get },           { "put", do_put },
    { "info", do_info },         { "doall", do_doall },
    { "hold", do_hold },         { "read", do_read },
    { "write", do_write },       { "mapping", do_mapping },
    { "scribble", do_scribble }, { "hammer", do_hammer },
    { "stop", do_stop },         { "halfput", do_halfput },
};

/* -1 as long as no MPM has been set up: asking one then is fatal. */
static int generation(void)
{
    int gen = -1;

    if (mpm_is_ready) {
        ap_mpm_query(AP_MPMQ_GENERATION, &gen);
    }
    return gen;
}

static void run_line(apr_pool_t *parent_pool, const char *line,
                     answer_t *answer)
{
    op_t op;
    char *state = NULL, *word;
    size_t i, n = sizeof operations / sizeof *operations;
    size_t start;

    memset(&op, 0, sizeof op);
    apr_pool_create(&op.pool, parent_pool);
    op.answer = answer;
    op.args = apr_table_make(op.pool, 8);
    op.name = apr_strtok(apr_pstrdup(op.pool, line), " \t\r\n", &state);
    if (op.name == NULL) {
        apr_pool_destroy(op.pool);
        return;
    }
    while ((word = apr_strtok(NULL, " \t\r\n", &state)) != NULL) {
        char *equals = strchr(word, '=');

        if (equals) {
            *equals = '\0';
            apr_table_setn(op.args, word, equals + 1);
        }
        else {
            op.error = apr_psprintf(op.pool, "%s is no key=value", word);
        }
    }
    start = answer->length;
    answer_printf(answer, "{\"op\":");
    answer_quoted(answer, op.name);
    answer_number(answer, "pid", (uint64_t)getpid());
    answer_number(answer, "tid", (uint64_t)gettid());
    answer_printf(answer, ",\"generation\":%d", generation());
    for (i = 0; i < n && strcmp(operations[i].name, op.name) != 0; i++) {
        continue;
    }
    if (i == n) {
        op.error = apr_psprintf(op.pool, "no operation %s", op.name);
    }
    if (op.error == NULL) {
        operations[i].run(&op);
    }
    if (op.error) {
        answer->length = start;
        answer_printf(answer, "{\"op\":");
        answer_quoted(answer, op.name);
        answer_string(answer, "error", op.error);
    }
    answer_printf(answer, "}\n");
    apr_pool_destroy(op.pool);
}

/* ------------------------------------------------------------------------
 * Stages of httpd's life
 */

static const char *control_dir(void)
{
    const char *dir = getenv("SLOTMEM_TEST_DIR");

    return dir && *dir ? dir : NULL;
}

static void stage_line(apr_pool_t *pool, const char *stage, const char *line)
{
    answer_t answer = { NULL, 0, 0 };
    char path[4096];

    run_line(pool, line, &answer);
    if (answer.length && control_dir()) {
        snprintf(path, sizeof path, "%s/%s.out", control_dir(), stage);
        file_note(path, answer.text);
    }
    free(answer.text);
}

/* Runs CTL/STAGE.ops; `keep` leaves it there, for every child to read. */
static void stage_file(apr_pool_t *pool, const char *stage, int keep)
{
    char path[4096], *line = NULL;
    size_t room = 0;
    FILE *file;

    if (control_dir() == NULL) {
        return;
    }
    snprintf(path, sizeof path, "%s/%s.ops", control_dir(), stage);
    file = fopen(path, "re");
    if (file == NULL) {
        return;
    }
    while (getline(&line, &room, file) > 0) {
        stage_line(pool, stage, line);
    }
    free(line);
    fclose(file);
    if (!keep) {
        unlink(path);
    }
}

static void stage_array(apr_pool_t *pool, const char *stage,
                        const apr_array_header_t *lines)
{
    int i;

    for (i = 0; lines && i < lines->nelts; i++) {
        stage_line(pool, stage, APR_ARRAY_IDX(lines, i, const char *));
    }
}

/* ------------------------------------------------------------------------
 * The control socket of a child
 */

static struct {
    pthread_mutex_t lock;
    pthread_t acceptor;
    char path[sizeof((struct sockaddr_un *)0)->sun_path];
    int listening;
    int wake[2];
    int stopping;
    int open; /* connections, each a thread */
    int connection[MAX_CONNECTIONS];
} control = { .lock = PTHREAD_MUTEX_INITIALIZER, .listening = -1 };

static void write_all(int fd, const char *text, size_t length)
{
    while (length) {
        ssize_t n = send(fd, text, length, MSG_NOSIGNAL);

        if (n < 0 && errno != EINTR) {
            return;
        }
        if (n > 0) {
            text += n;
            length -= (size_t)n;
        }
    }
}

static void *connection_thread(void *data)
{
    int slot = (int)(intptr_t)data;
    int fd = control.connection[slot];
    int keep_open = dup(fd);
    FILE *in = fdopen(keep_open, "r");
    char *line = NULL;
    size_t room = 0;

    while (in && getline(&line, &room, in) > 0) {
        answer_t answer = { NULL, 0, 0 };

        run_line(NULL, line, &answer);
        write_all(fd, answer.text, answer.length);
        free(answer.text);
    }
    free(line);
    if (in) {
        fclose(in);
    }
    pthread_mutex_lock(&control.lock);
    close(fd);
    control.connection[slot] = -1;
    control.open--;
    pthread_mutex_unlock(&control.lock);
    return NULL;
}

static void connection_start(int fd)
{
    pthread_attr_t detached;
    pthread_t thread;
    int slot;

    pthread_mutex_lock(&control.lock);
    for (slot = 0; slot < MAX_CONNECTIONS && control.connection[slot] != -1;
         slot++) {
        continue;
    }
    if (control.stopping || slot == MAX_CONNECTIONS) {
        close(fd);
        pthread_mutex_unlock(&control.lock);
        return;
    }
    control.connection[slot] = fd;
    control.open++;
    pthread_mutex_unlock(&control.lock);

    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    if (pthread_create(&thread, &detached, connection_thread,
                       (void *)(intptr_t)slot)
        != 0) {
        abort();
    }
    pthread_attr_destroy(&detached);
}

static void *acceptor_thread(void *data)
{
    (void)data;
    for (;;) {
        struct pollfd fds[2] = {
            { .fd = control.listening, .events = POLLIN },
            { .fd = control.wake[0], .events = POLLIN },
        };

        if (poll(fds, 2, -1) < 0 && errno != EINTR) {
            return NULL;
        }
        if (fds[1].revents) {
            return NULL;
        }
        if (fds[0].revents & POLLIN) {
            int fd = accept4(control.listening, NULL, NULL, SOCK_CLOEXEC);

            if (fd >= 0) {
                connection_start(fd);
            }
        }
    }
}

/*
 * The threads must be gone before the child's pool and the modules' data
 * are; an operation that does not end in time is left to exit().
 */
static apr_status_t control_close(void *data)
{
    int i, waited;

    (void)data;
    unlink(control.path);
    pthread_mutex_lock(&control.lock);
    control.stopping = 1;
    for (i = 0; i < MAX_CONNECTIONS; i++) {
        if (control.connection[i] != -1) {
            shutdown(control.connection[i], SHUT_RD);
        }
    }
    pthread_mutex_unlock(&control.lock);
    __atomic_add_fetch(&hammer_stop, 1, __ATOMIC_RELAXED);
    if (write(control.wake[1], "x", 1) == 1) {
        pthread_join(control.acceptor, NULL);
    }
    for (waited = 0; waited < 400; waited++) {
        int open;

        pthread_mutex_lock(&control.lock);
        open = control.open;
        pthread_mutex_unlock(&control.lock);
        if (open == 0) {
            break;
        }
        apr_sleep(apr_time_from_msec(5));
    }
    close(control.listening);
    close(control.wake[0]);
    close(control.wake[1]);
    return APR_SUCCESS;
}

/*
 * When this process began, in clock ticks since the system did: with it the
 * name of a child that was killed is not taken for another of that number.
 */
static unsigned long long birth(void)
{
    FILE *stat = fopen("/proc/self/stat", "r");
    unsigned long long ticks = 0;
    char line[1024], *field = NULL;

    if (stat) {
        field = fgets(line, sizeof line, stat) ? strrchr(line, ')') : NULL;
        fclose(stat);
    }
    if (field) {
        sscanf(field,
               ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d"
               " %*d %*d %*d %*d %llu",
               &ticks);
    }
    return ticks;
}

static int control_listen(void)
{
    struct sockaddr_un address;
    char temporary[sizeof address.sun_path];
    int fd;

    if (snprintf(control.path, sizeof control.path, "%s/child-%d-%d-%llu.sock",
                 control_dir(), (int)getpid(), generation(), birth())
            >= (int)sizeof control.path
        || snprintf(temporary, sizeof temporary, "%s/%d.tmp", control_dir(),
                    (int)getpid())
               >= (int)sizeof temporary) {
        errno = ENAMETOOLONG;
        return -1;
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return -1;
    }
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    strcpy(address.sun_path, temporary);
    /* Whoever sees the final name can connect to it. */
    if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0
        || listen(fd, 64) != 0 || rename(temporary, control.path) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static void control_open(apr_pool_t *pchild, server_rec *s)
{
    sigset_t all, before;
    int i, failed;

    for (i = 0; i < MAX_CONNECTIONS; i++) {
        control.connection[i] = -1;
    }
    control.stopping = control.open = 0;
    control.listening = control_listen();
    if (control.listening < 0 || pipe2(control.wake, O_CLOEXEC) != 0) {
        ap_log_error(APLOG_MARK, APLOG_ERR, errno, s,
                     "mod_slotmem_test: no control socket %s", control.path);
        return;
    }
    /* httpd's signals are for httpd's threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    failed = pthread_create(&control.acceptor, NULL, acceptor_thread, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        ap_log_error(APLOG_MARK, APLOG_ERR, failed, s,
                     "mod_slotmem_test: no control thread");
        return;
    }
    apr_pool_pre_cleanup_register(pchild, NULL, control_close);
}

/* ------------------------------------------------------------------------
 * Over HTTP
 */

static char *read_body(request_rec *r)
{
    char chunk[16384];
    answer_t body = { NULL, 0, 0 };
    char *text;
    long n;

    if (ap_setup_client_block(r, REQUEST_CHUNKED_DECHUNK) != OK) {
        return NULL;
    }
    if (ap_should_client_block(r)) {
        while ((n = ap_get_client_block(r, chunk, sizeof chunk)) > 0) {
            answer_put(&body, chunk, (size_t)n);
        }
        if (n < 0) {
            free(body.text);
            return NULL;
        }
    }
    text = apr_pstrmemdup(r->pool, body.text ? body.text : "", body.length);
    free(body.text);
    return text;
}

static int slotmem_test_handler(request_rec *r)
{
    answer_t answer = { NULL, 0, 0 };
    char *body, *line, *end;

    if (strcmp(r->uri, URI) != 0) {
        return DECLINED;
    }
    body = read_body(r);
    if (body == NULL) {
        return HTTP_BAD_REQUEST;
    }
    for (line = body; *line; line = end) {
        end = line + strcspn(line, "\n");
        if (*end) {
            *end++ = '\0';
        }
        run_line(r->pool, line, &answer);
    }
    ap_set_content_type(r, "application/x-ndjson");
    ap_set_content_length(r, (apr_off_t)answer.length);
    ap_rwrite(answer.text ? answer.text : "", (int)answer.length, r);
    free(answer.text);
    return OK;
}

/* ------------------------------------------------------------------------
 * Directives and hooks
 */

static const char *set_provider(cmd_parms *cmd, void *dummy, const char *name)
{
    (void)cmd;
    (void)dummy;
    default_provider = name;
    return NULL;
}

/* NAME ITEM_SIZE ITEM_NUM TYPE [HANDLE] */
static const char *add_create(cmd_parms *cmd, void *dummy, int argc,
                              char *const argv[])
{
    (void)dummy;
    if (argc < 4 || argc > 5) {
        return "SlotmemTestCreate NAME ITEM_SIZE ITEM_NUM TYPE [HANDLE]";
    }
    APR_ARRAY_PUSH(post_config_ops, const char *) = apr_psprintf(
        cmd->pool,
        "create name=%s size=%s num=%s type=%s h=%s "
        "pool=conf",
        argv[0], argv[1], argv[2], argv[3], argc == 5 ? argv[4] : argv[0]);
    return NULL;
}

static const char *add_attach(cmd_parms *cmd, void *dummy, const char *name,
                              const char *handle)
{
    (void)dummy;
    APR_ARRAY_PUSH(child_init_ops, const char *) = apr_psprintf(
        cmd->pool, "attach name=%s pool=child h=%s", name,
        handle ? handle : apr_pstrcat(cmd->pool, "attach:", name, NULL));
    return NULL;
}

static const char *add_post_config(cmd_parms *cmd, void *dummy,
                                   const char *line)
{
    (void)dummy;
    APR_ARRAY_PUSH(post_config_ops, const char *) =
        apr_pstrdup(cmd->pool, line);
    return NULL;
}

static const char *fail_the_start(cmd_parms *cmd, void *dummy, const char *when)
{
    (void)cmd;
    (void)dummy;
    start_fails = when;
    return NULL;
}

static const command_rec commands[] = {
    AP_INIT_TAKE1("SlotmemTestProvider", set_provider, NULL, RSRC_CONF,
                  "the provider's name: shm (default) or shared"),
    AP_INIT_TAKE_ARGV("SlotmemTestCreate", add_create, NULL, RSRC_CONF,
                      "a segment to create in post_config"),
    AP_INIT_TAKE12("SlotmemTestAttach", add_attach, NULL, RSRC_CONF,
                   "a segment to attach in child_init"),
    AP_INIT_TAKE1("SlotmemTestFailStart", fail_the_start, NULL, RSRC_CONF,
                  "the start fails in post_config, before (first) or after "
                  "(last) everything else there"),
    AP_INIT_RAW_ARGS("SlotmemTestPostConfig", add_post_config, NULL, RSRC_CONF,
                     "an operation to run in post_config"),
    { .name = NULL }
};

/* ------------------------------------------------------------------------
 * With SLOTMEM_TEST_LATE in the environment, httpd counts as its trunk does:
 * a restart raises the generation when all modules have configured, not before
 */

static int counts_late; /* the generation is one behind what the MPM says */

static apr_status_t count_late(void *data)
{
    (void)data;
    counts_late = getenv("SLOTMEM_TEST_LATE") != NULL;
    return APR_SUCCESS;
}

static int slotmem_test_query(int code, int *result, apr_status_t *rv)
{
    if (!counts_late || code != AP_MPMQ_GENERATION) {
        return DECLINED;
    }
    counts_late = 0; /* the MPM answers */
    *rv = ap_mpm_query(code, result);
    counts_late = 1;
    *result -= *result > 0;
    return OK;
}

static int slotmem_test_pre_config(apr_pool_t *pconf, apr_pool_t *plog,
                                   apr_pool_t *ptemp)
{
    (void)plog;
    (void)ptemp;
    count_late(NULL);
    /* Where the module stays loaded over a restart, its data does too. */
    handles_forget();
    mpm_is_ready = 0;
    conf_pool = pconf;
    default_provider = "shm";
    start_fails = NULL;
    post_config_ops = apr_array_make(pconf, 8, sizeof(const char *));
    child_init_ops = apr_array_make(pconf, 8, sizeof(const char *));
    stage_file(pconf, "pre_config", 0);
    return OK;
}

static int slotmem_test_post_config(apr_pool_t *pconf, apr_pool_t *plog,
                                    apr_pool_t *ptemp, server_rec *s)
{
    (void)plog;
    (void)ptemp;
    (void)s;
    mpm_is_ready = 1;
    /* A restart begins with the cleanups, the module's among them. */
    apr_pool_cleanup_register(pconf, NULL, count_late, apr_pool_cleanup_null);
    if (ap_state_query(AP_SQ_MAIN_STATE) == AP_SQ_MS_CREATE_PRE_CONFIG) {
        stage_file(pconf, "post_config_check", 0);
        return OK;
    }
    stage_array(pconf, "post_config", post_config_ops);
    stage_file(pconf, "post_config", 0);
    return OK;
}

static int start_goes_on(const char *when)
{
    return start_fails && strcmp(start_fails, when) == 0
                   && ap_state_query(AP_SQ_MAIN_STATE)
                          != AP_SQ_MS_CREATE_PRE_CONFIG
               ? HTTP_INTERNAL_SERVER_ERROR
               : OK;
}

static int slotmem_test_first(apr_pool_t *pconf, apr_pool_t *plog,
                              apr_pool_t *ptemp, server_rec *s)
{
    (void)pconf;
    (void)plog;
    (void)ptemp;
    (void)s;
    return start_goes_on("first");
}

static int slotmem_test_last(apr_pool_t *pconf, apr_pool_t *plog,
                             apr_pool_t *ptemp, server_rec *s)
{
    (void)pconf;
    (void)plog;
    (void)ptemp;
    (void)s;
    counts_late = 0;
    return start_goes_on("last");
}

static void slotmem_test_child_init(apr_pool_t *pchild, server_rec *s)
{
    child_pool = pchild;
    stage_array(pchild, "child_init", child_init_ops);
    stage_file(pchild, "child_init", 1);
    if (control_dir()) {
        control_open(pchild, s);
    }
}

static void register_hooks(apr_pool_t *p)
{
    /* As mod_proxy_balancer orders itself: by name in child_init, and by
     * nothing but APR_HOOK_MIDDLE in post_config. */
    static const char *const after[] = { "mpm_winnt.c", "mod_slotmem_shm.c",
                                         NULL };

    stage_file(p, "register", 0);
    ap_hook_pre_config(slotmem_test_pre_config, NULL, NULL,
                       APR_HOOK_REALLY_FIRST);
    ap_hook_post_config(slotmem_test_post_config, NULL, NULL, APR_HOOK_MIDDLE);
    ap_hook_post_config(slotmem_test_first, NULL, NULL, APR_HOOK_FIRST);
    ap_hook_post_config(slotmem_test_last, NULL, NULL,
                        APR_HOOK_REALLY_LAST + 2);
    ap_hook_mpm_query(slotmem_test_query, NULL, NULL, APR_HOOK_FIRST);
    ap_hook_child_init(slotmem_test_child_init, after, NULL, APR_HOOK_MIDDLE);
    ap_hook_handler(slotmem_test_handler, NULL, NULL, APR_HOOK_FIRST);
}

module AP_MODULE_DECLARE_DATA slotmem_test_module = {
    STANDARD20_MODULE_STUFF, NULL, NULL, NULL, NULL, commands, register_hooks,
    AP_MODULE_FLAG_NONE
};
