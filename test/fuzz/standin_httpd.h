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
 * What the module asks of httpd's core, answered as far as the code under
 * the fuzzer needs it.  To be included after the module's source.
 */
#ifndef STANDIN_HTTPD_H
#define STANDIN_HTTPD_H

#include <stdarg.h>
#include <stdlib.h>

unixd_config_rec ap_unixd_config;
server_rec *ap_server_conf;
apr_pool_t *ap_pglobal;
ap_listen_rec *ap_listeners;

/* Formats the line, since that reads what it is given, and drops it. */
void ap_log_error_(const char *file, int line, int module_index, int level,
                   apr_status_t status, const server_rec *s, const char *fmt,
                   ...)
{
    char text[16384];
    va_list ap;

    (void)file, (void)line, (void)module_index, (void)level, (void)status;
    (void)s;
    va_start(ap, fmt);
    apr_vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
}

apr_status_t ap_mpm_query(int query_code, int *result)
{
    (void)query_code;
    *result = 0;
    return APR_SUCCESS;
}

int ap_state_query(int query_code)
{
    (void)query_code;
    return AP_SQ_MS_CREATE_CONFIG;
}

char *ap_runtime_dir_relative(apr_pool_t *p, const char *path)
{
    return strlen(path) > 4000 ? NULL
                               : apr_pstrcat(p, "/nonexistent/", path, NULL);
}

void *ap_retained_data_get(const char *key)
{
    (void)key;
    return NULL;
}

void *ap_retained_data_create(const char *key, apr_size_t size)
{
    (void)key;
    return calloc(1, size);
}

apr_status_t ap_mutex_register(apr_pool_t *p, const char *type, const char *dir,
                               apr_lockmech_e mech, apr_int32_t options)
{
    (void)p, (void)type, (void)dir, (void)mech, (void)options;
    return APR_SUCCESS;
}

apr_status_t ap_global_mutex_create(apr_global_mutex_t **mutex,
                                    const char **name, const char *type,
                                    const char *instance, server_rec *s,
                                    apr_pool_t *p, apr_int32_t options)
{
    (void)mutex, (void)name, (void)type, (void)instance, (void)s, (void)p;
    (void)options;
    return APR_ENOTIMPL;
}

apr_status_t ap_register_provider(apr_pool_t *p, const char *group,
                                  const char *name, const char *version,
                                  const void *provider_given)
{
    (void)p, (void)group, (void)name, (void)version, (void)provider_given;
    return APR_SUCCESS;
}

#define STANDIN_HOOK(name, type)                                               \
    void ap_hook_##name(type *fn, const char *const *before,                   \
                        const char *const *after, int order)                   \
    {                                                                          \
        (void)fn, (void)before, (void)after, (void)order;                      \
    }
STANDIN_HOOK(pre_config, ap_HOOK_pre_config_t)
STANDIN_HOOK(post_config, ap_HOOK_post_config_t)
STANDIN_HOOK(pre_mpm, ap_HOOK_pre_mpm_t)
STANDIN_HOOK(child_init, ap_HOOK_child_init_t)
STANDIN_HOOK(child_status, ap_HOOK_child_status_t)
STANDIN_HOOK(monitor, ap_HOOK_monitor_t)

int ap_rwrite(const void *buf, int nbyte, request_rec *r)
{
    (void)buf, (void)r;
    return nbyte;
}

int ap_vrprintf(request_rec *r, const char *fmt, va_list arguments)
{
    (void)r, (void)fmt, (void)arguments;
    return 0;
}

char *ap_escape_html2(apr_pool_t *p, const char *s, int toasc)
{
    (void)toasc;
    return apr_pstrdup(p, s);
}

char *ap_escape_logitem(apr_pool_t *p, const char *str)
{
    return apr_pstrdup(p, str);
}

#endif /* STANDIN_HTTPD_H */
