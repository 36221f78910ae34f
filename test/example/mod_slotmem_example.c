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
 * A complete module that keeps its state in slots: it counts the visits of
 * whoever the query string names, in all children together and over restarts.
 *
 *     apxs -c mod_slotmem_example.c
 *
 *     LoadModule slotmem_shm_module     modules/mod_slotmem_shm.so
 *     LoadModule slotmem_example_module .libs/mod_slotmem_example.so
 *     <Location /visits>
 *         SetHandler slotmem-example
 *     </Location>
 *
 *     curl localhost/visits?jane
 *     jane: 1 (99 of 100 slots are free)
 */

#include "apr_atomic.h"
#include "apr_strings.h"

#include "httpd.h"
#include "http_config.h"
#include "http_core.h"
#include "http_log.h"
#include "http_protocol.h"
#include "ap_provider.h"
#include "ap_slotmem.h"
#include "util_mutex.h"

module AP_MODULE_DECLARE_DATA slotmem_example_module;
APLOG_USE_MODULE(slotmem_example);

#define SEGMENT "example-visits"
#define SLOTS   100

/* What a slot holds.  No pointers: each process has the memory elsewhere, and
 * a stored file outlives them all. */
typedef struct {
    char name[60];
    volatile apr_uint32_t visits;
} visitor_t;

static const ap_slotmem_provider_t *slotmem;
static ap_slotmem_instance_t *visitors;
static apr_global_mutex_t *mutex;

static int example_pre_config(apr_pool_t *pconf, apr_pool_t *plog,
                              apr_pool_t *ptemp)
{
    return ap_mutex_register(pconf, SEGMENT, NULL, APR_LOCK_DEFAULT, 0)
                   == APR_SUCCESS
               ? OK
               : HTTP_INTERNAL_SERVER_ERROR;
}

/*
 * Segments are made here, in the parent and as root: only then are they stored
 * and restored, and every child inherits them.  After a restart, graceful or
 * not, this runs again and gets back what was stored.
 */
static int example_post_config(apr_pool_t *pconf, apr_pool_t *plog,
                               apr_pool_t *ptemp, server_rec *s)
{
    apr_status_t rv;

    /* httpd reads its configuration twice when it starts; the first time
     * only checks it. */
    if (ap_state_query(AP_SQ_MAIN_STATE) == AP_SQ_MS_CREATE_PRE_CONFIG) {
        return OK;
    }
    slotmem = ap_lookup_provider(AP_SLOTMEM_PROVIDER_GROUP, "shm",
                                 AP_SLOTMEM_PROVIDER_VERSION);
    if (!slotmem) {
        ap_log_error(APLOG_MARK, APLOG_EMERG, 0, s,
                     "slotmem_example needs mod_slotmem_shm to be loaded");
        return HTTP_INTERNAL_SERVER_ERROR;
    }
    rv = slotmem->create(&visitors, SEGMENT, sizeof(visitor_t), SLOTS,
                         AP_SLOTMEM_TYPE_PERSIST | AP_SLOTMEM_TYPE_PREGRAB,
                         pconf);
    if (rv == APR_SUCCESS) {
        rv = ap_global_mutex_create(&mutex, NULL, SEGMENT, NULL, s, pconf, 0);
    }
    if (rv != APR_SUCCESS) {
        ap_log_error(APLOG_MARK, APLOG_EMERG, rv, s,
                     "slotmem_example cannot begin");
        return HTTP_INTERNAL_SERVER_ERROR;
    }
    return OK;
}

/* The segment is here already; attach() asks for it by name all the same, as
 * a module would that is loaded where the parent's instance is not at hand. */
static void example_child_init(apr_pool_t *pchild, server_rec *s)
{
    apr_size_t size;
    unsigned int slots;

    if (slotmem->attach(&visitors, SEGMENT, &size, &slots, pchild)
            != APR_SUCCESS
        || apr_global_mutex_child_init(&mutex, apr_global_mutex_lockfile(mutex),
                                       pchild)
               != APR_SUCCESS) {
        ap_log_error(APLOG_MARK, APLOG_CRIT, 0, s,
                     "slotmem_example cannot go on in this child");
    }
}

typedef struct {
    const char *name;
    visitor_t *found;
} search_t;

/* doall() calls this for each slot in use, until it returns something else
 * than APR_SUCCESS. */
static apr_status_t is_visitor(void *slot, void *data, apr_pool_t *pool)
{
    visitor_t *visitor = slot;
    search_t *search = data;

    if (strcmp(visitor->name, search->name) != 0) {
        return APR_SUCCESS;
    }
    search->found = visitor;
    return APR_EEXIST;
}

/*
 * A visitor's slot, with a new one taken if there is none.  grab() never gives
 * a slot to two callers.  But two who look for the same name at once would
 * both find none and take one each, so looking and taking are under a mutex.
 */
static visitor_t *visitor_get(const char *name, apr_pool_t *p)
{
    search_t search = { name, NULL };
    visitor_t fresh = { "", 0 };
    unsigned int id;
    void *slot;

    apr_cpystrn(fresh.name, name, sizeof(fresh.name));
    search.name = fresh.name;
    if (apr_global_mutex_lock(mutex) != APR_SUCCESS) {
        return NULL;
    }
    slotmem->doall(visitors, is_visitor, &search, p);
    if (!search.found && slotmem->grab(visitors, &id) == APR_SUCCESS
        && slotmem->put(visitors, id, (unsigned char *)&fresh, sizeof(fresh))
               == APR_SUCCESS
        && slotmem->dptr(visitors, id, &slot) == APR_SUCCESS) {
        search.found = slot;
    }
    apr_global_mutex_unlock(mutex);
    return search.found;
}

static int example_handler(request_rec *r)
{
    visitor_t *visitor;

    if (!r->handler || strcmp(r->handler, "slotmem-example") != 0) {
        return DECLINED;
    }
    if (!r->args || !*r->args) {
        return HTTP_BAD_REQUEST;
    }
    visitor = visitor_get(r->args, r->pool);
    if (!visitor) {
        return HTTP_SERVICE_UNAVAILABLE; /* every slot is taken */
    }
    ap_set_content_type(r, "text/plain");
    /* A slot's memory is nobody's but ours to guard: hence the atomic. */
    ap_rprintf(r, "%s: %u (%u of %u slots are free)\n", visitor->name,
               apr_atomic_inc32(&visitor->visits) + 1,
               slotmem->num_free_slots(visitors), slotmem->num_slots(visitors));
    return OK;
}

static void register_hooks(apr_pool_t *p)
{
    ap_hook_pre_config(example_pre_config, NULL, NULL, APR_HOOK_MIDDLE);
    /* Never after "mod_slotmem_shm.c": httpd's own module stores only what was
     * made before its hook ran, and crashes at the next restart. */
    ap_hook_post_config(example_post_config, NULL, NULL, APR_HOOK_MIDDLE);
    ap_hook_child_init(example_child_init, NULL, NULL, APR_HOOK_MIDDLE);
    ap_hook_handler(example_handler, NULL, NULL, APR_HOOK_MIDDLE);
}

module AP_MODULE_DECLARE_DATA slotmem_example_module = {
    STANDARD20_MODULE_STUFF, NULL, NULL, NULL, NULL, NULL, register_hooks,
};
