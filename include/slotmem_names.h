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
 * @file  slotmem_names.h
 * @brief Names of segments and of files, and bytes as text.
 *
 * Knows APR's pools and MD5, nothing of httpd.  Every function may be called
 * by any thread and touches nothing but its arguments; path_is_too_long() and
 * directory_has() ask the file system.
 *
 *     a segment's name    "" or NULL or "none"   it has none
 *                         "/PATH"                absolute: the path itself
 *                         "NAME"                 in the runtime directory
 *     a file              DIRECTORY/FILE         the stored file
 *                         DIRECTORY/FILE.SUFFIX  beside it; FILE gives way to
 *                         its MD5 where the two are longer than NAME_LONGEST
 */
#ifndef SLOTMEM_NAMES_H
#define SLOTMEM_NAMES_H

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "apr_md5.h"
#include "apr_pools.h"
#include "apr_strings.h"

/** Bytes of a file's name that every file system in use takes. */
#define NAME_LONGEST 255u
/** Bytes of a name, and of a path, that all of them take without being asked. */
#define NAME_SURE    128u
#define PATH_SURE    1000u

static inline int name_is_anonymous(const char *name)
{
    return name == NULL || *name == '\0' || !strcasecmp(name, "none");
}

static inline int name_is_absolute(const char *name)
{
    return *name == '/';
}

static inline int path_is_too_long(const char *path)
{
    const char *slash = strrchr(path, '/');
    struct stat st;

    return (strlen(slash ? slash : path) > NAME_SURE
            || strlen(path) > PATH_SURE)
           && lstat(path, &st) != 0 && errno == ENAMETOOLONG;
}

/** Bytes as hexadecimal digits. */
static inline const char *hex_text(apr_pool_t *p, const void *from,
                                   apr_size_t len)
{
    static const char digits[] = "0123456789abcdef";
    const unsigned char *bytes = from;
    char *text = apr_palloc(p, 2 * len + 1);
    apr_size_t i;

    for (i = 0; i < len; i++) {
        text[2 * i] = digits[bytes[i] >> 4];
        text[2 * i + 1] = digits[bytes[i] & 15];
    }
    text[2 * len] = '\0';
    return text;
}

/**
 * A path in the directory of `path`, for a file that will replace it or that
 * keeps what it held.  A name that would grow past NAME_MAX gives way to its
 * MD5, which is as good: the name only has to be the same each time.
 */
static inline const char *name_beside(apr_pool_t *p, const char *path,
                                      const char *suffix)
{
    const char *slash = strrchr(path, '/');
    const char *file = slash ? slash + 1 : path;
    unsigned char digest[APR_MD5_DIGESTSIZE];

    if (strlen(file) + strlen(suffix) <= NAME_LONGEST) {
        return apr_pstrcat(p, path, suffix, NULL);
    }
    apr_md5(digest, file, strlen(file));
    return apr_pstrcat(p, apr_pstrmemdup(p, path, (apr_size_t)(file - path)),
                       "slotmem-shm-", hex_text(p, digest, sizeof(digest)),
                       suffix, NULL);
}

static inline const char *name_directory(apr_pool_t *p, const char *path)
{
    const char *slash = strrchr(path, '/');

    return !slash ? "."
           : slash == path
               ? "/"
               : apr_pstrmemdup(p, path, (apr_size_t)(slash - path));
}

/** Has a directory a name that ends in one of those, the last of which is
 *  NULL?  1, too, if it cannot be read.  Suffixes have one dot each. */
static inline int directory_has(const char *path, const char *const *suffixes)
{
    DIR *d = opendir(path);
    const struct dirent *entry;
    int found = d == NULL, i;

    while (!found && (entry = readdir(d)) != NULL) {
        const char *dot = strrchr(entry->d_name, '.');

        for (i = 0; dot && suffixes[i] && !found; i++) {
            found = strcmp(dot, suffixes[i]) == 0;
        }
    }
    if (d) {
        closedir(d);
    }
    return found;
}

#endif /* SLOTMEM_NAMES_H */
