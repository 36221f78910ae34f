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
 * @file  slotmem_image.h
 * @brief Finds, reads and checks the image of a segment in a stored file.
 *
 * The module, its fuzzer and the program slotmem-file read a file through
 * these functions and no others, so what one of them believes all do.  The
 * format is drawn in mod_slotmem_shm.h.  Of APR only its MD5 is used.
 *
 * A file is anybody's bytes.  What it says of itself (a descriptor, the
 * length of a trailer) only proposes a geometry; that counts when it fits
 * the length to the byte and the MD5 over the content agrees.
 *
 *     slotmem_image_t list[SLOTMEM_IMAGE_MAX];
 *     n = slotmem_image_find(&source, &wanted, list);
 *     for (i = 0; i < n; i++)
 *         result = slotmem_image_read(&source, &list[i], take, ctx);
 *
 * Every function may be called by any thread, and touches nothing but its
 * arguments and the source.
 */
#ifndef SLOTMEM_IMAGE_H
#define SLOTMEM_IMAGE_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "apr_md5.h"

#include "mod_slotmem_shm.h"

/** Where the bytes are: in an open file, or in memory. */
typedef struct {
    int fd;                     /* used when `bytes` is NULL          */
    const unsigned char *bytes; /* or NULL                            */
    uint64_t size;              /* bytes there are; of a file, as fstat
                                   said of the descriptor             */
} slotmem_image_source_t;

/** Which of the forms that httpd's modules have written. */
enum slotmem_image_form {
    SLOTMEM_IMAGE_WHOLE,         /* MD5 and descriptor                    */
    SLOTMEM_IMAGE_NO_DESCRIPTOR, /* MD5 alone: httpd before about 2.4.30  */
    SLOTMEM_IMAGE_BARE           /* neither: httpd before 2.4.7           */
};

/** An image that a file may hold. */
typedef struct {
    enum slotmem_image_form form;
    uint64_t item_size; /* bytes in a slot                              */
    unsigned int item_num;
    unsigned int type; /* AP_SLOTMEM_TYPE_* bits                       */
    uint64_t size;     /* bytes of the image, from the file's start    */
} slotmem_image_t;

enum slotmem_image_result {
    SLOTMEM_IMAGE_OK,
    SLOTMEM_IMAGE_DAMAGED,   /* the content is not what was written       */
    SLOTMEM_IMAGE_UNREADABLE /* errno says why; the file may be all right */
};

/** Images that one file can propose: the wanted one, the one its end
 *  describes, and the two older forms of the wanted one. */
#define SLOTMEM_IMAGE_MAX 4

/** The parts in the order in which they lie in the file. */
enum slotmem_image_part {
    SLOTMEM_IMAGE_COUNT,
    SLOTMEM_IMAGE_SLOTS,
    SLOTMEM_IMAGE_USED
};

/**
 * Takes `len` bytes at offset `off` of a part.  Called in ascending order,
 * before it is known whether the image is good: what was taken is to be
 * dropped again unless slotmem_image_read() says SLOTMEM_IMAGE_OK.
 */
typedef void slotmem_image_take_fn(void *ctx, enum slotmem_image_part part,
                                   uint64_t off, const unsigned char *bytes,
                                   size_t len);

#define SLOTMEM_IMAGE_CHUNK 65536u

/** Reads exactly `len` bytes at `off`.  0, or -1 with errno; past the end,
 *  which a file can have lost since it was looked at, EINVAL. */
static inline int slotmem_image_bytes(const slotmem_image_source_t *source,
                                      uint64_t off, void *to, size_t len)
{
    unsigned char *at = (unsigned char *)to;

    if (off > source->size || len > source->size - off) {
        errno = EINVAL;
        return -1;
    }
    if (source->bytes) {
        memcpy(to, source->bytes + off, len);
        return 0;
    }
    while (len) {
        ssize_t got = pread(source->fd, at, len, (off_t)off);

        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            errno = got < 0 ? errno : EINVAL;
            return -1;
        }
        at += got;
        off += (uint64_t)got;
        len -= (size_t)got;
    }
    return 0;
}

/** The descriptor of a geometry, as it stands in a file. */
static inline void slotmem_image_desc(unsigned char *to, uint64_t item_size,
                                      unsigned int item_num, unsigned int type)
{
    struct slotmem_shm_file_desc desc;

    memset(to, 0, SLOTMEM_SHM_FILE_DESC_SIZE);
    memset(&desc, 0, sizeof(desc));
    desc.item_size = (size_t)item_size;
    desc.item_num = item_num;
    desc.type = type;
    memcpy(to, &desc, sizeof(desc));
}

/** The geometry that the 16 bytes before `end` describe, if an image of it
 *  is `end` bytes long.  1, 0, or -1 with errno. */
static inline int slotmem_image_described(const slotmem_image_source_t *source,
                                          uint64_t end, slotmem_image_t *image)
{
    unsigned char bytes[SLOTMEM_SHM_FILE_DESC_SIZE], again[sizeof(bytes)];
    struct slotmem_shm_file_desc desc;

    if (end < sizeof(bytes)) {
        return 0;
    }
    if (slotmem_image_bytes(source, end - sizeof(bytes), bytes, sizeof(bytes))
        != 0) {
        return -1;
    }
    memcpy(&desc, bytes, sizeof(desc));
    image->form = SLOTMEM_IMAGE_WHOLE;
    image->item_size = desc.item_size;
    image->item_num = desc.item_num;
    image->type = desc.type;
    image->size = end;
    slotmem_image_desc(again, desc.item_size, desc.item_num, desc.type);
    return memcmp(bytes, again, sizeof(bytes)) == 0
           && slotmem_shm_file_size(desc.item_size, desc.item_num) == end;
}

/** Where the image ends in a file that ends in a trailer; the file's own end
 *  if it does not.  0, or -1 with errno. */
static inline int slotmem_image_end(const slotmem_image_source_t *source,
                                    uint64_t *end)
{
    struct slotmem_shm_trailer_end last;

    *end = source->size;
    if (source->size < sizeof(last)) {
        return 0;
    }
    if (slotmem_image_bytes(source, source->size - sizeof(last), &last,
                            sizeof(last))
        != 0) {
        return -1;
    }
    if (last.magic == SLOTMEM_SHM_TRAILER_MAGIC && last.size <= source->size) {
        *end = source->size - last.size;
    }
    return 0;
}

/**
 * The images that a file may hold, most likely first.
 *
 * First one of the wanted geometry at the start, whatever follows: httpd's
 * own module never shortens a file, so its files may carry older bytes
 * behind.  Then the geometry that the end of the file describes.  Last the
 * wanted geometry in an older form, which its exact length gives away.
 *
 * @param wanted geometry looked for (form and size are not read), or NULL:
 *        whatever the file says of itself
 * @param list   room for SLOTMEM_IMAGE_MAX
 * @return how many; -1 with errno when the file cannot be read
 */
static inline int slotmem_image_find(const slotmem_image_source_t *source,
                                     const slotmem_image_t *wanted,
                                     slotmem_image_t *list)
{
    uint64_t size =
        wanted ? slotmem_shm_file_size(wanted->item_size, wanted->item_num) : 0;
    int n = 0, found = 0;
    uint64_t end;

    if (size && size <= source->size) {
        found = slotmem_image_described(source, size, &list[0]);
        n = found == 1 && list[0].item_size == wanted->item_size
            && list[0].item_num == wanted->item_num
            && list[0].type == wanted->type;
    }
    if (found < 0 || slotmem_image_end(source, &end) != 0) {
        return -1;
    }
    found =
        end == size && n ? 0 : slotmem_image_described(source, end, &list[n]);
    if (found < 0) {
        return -1;
    }
    n += found;
    if (size && source->size == size - SLOTMEM_SHM_FILE_DESC_SIZE) {
        list[n] = *wanted;
        list[n].form = SLOTMEM_IMAGE_NO_DESCRIPTOR;
        list[n++].size = source->size;
    }
    else if (size
             && source->size
                    == size - SLOTMEM_SHM_FILE_DESC_SIZE
                           - SLOTMEM_SHM_FILE_DIGEST_SIZE) {
        list[n] = *wanted;
        list[n].form = SLOTMEM_IMAGE_BARE;
        list[n++].size = source->size;
    }
    return n;
}

/** One part: hashed, checked for what may stand there, and handed on. */
static inline int slotmem_image_part_read(const slotmem_image_source_t *source,
                                          uint64_t start, uint64_t len,
                                          enum slotmem_image_part part,
                                          slotmem_image_take_fn *take,
                                          void *ctx, apr_md5_ctx_t *md5,
                                          int *odd)
{
    unsigned char buffer[SLOTMEM_IMAGE_CHUNK];
    uint64_t off;
    size_t i;

    for (off = 0; off < len; off += sizeof(buffer)) {
        size_t here =
            len - off < sizeof(buffer) ? (size_t)(len - off) : sizeof(buffer);

        if (slotmem_image_bytes(source, start + off, buffer, here) != 0) {
            return -1;
        }
        apr_md5_update(md5, buffer, here);
        for (i = 0; part == SLOTMEM_IMAGE_USED && i < here; i++) {
            *odd |= buffer[i] > 1;
        }
        if (take) {
            take(ctx, part, off, buffer, here);
        }
    }
    return 0;
}

/**
 * Reads an image in one pass, and checks the very bytes that it hands on.
 *
 * @param take   given each part; NULL: only check
 * @param digest receives the MD5 of the content (16 bytes); may be NULL
 * @return SLOTMEM_IMAGE_OK; anything else: drop what was taken
 */
static inline enum slotmem_image_result
slotmem_image_read(const slotmem_image_source_t *source,
                   const slotmem_image_t *image, slotmem_image_take_fn *take,
                   void *ctx, unsigned char *digest)
{
    const uint64_t slots = image->item_size * image->item_num;
    const uint64_t used = SLOTMEM_SHM_FILE_COUNT_SIZE + slots;
    unsigned char made[APR_MD5_DIGESTSIZE], stored[APR_MD5_DIGESTSIZE];
    apr_md5_ctx_t md5;
    int odd = 0;

    apr_md5_init(&md5);
    if (slotmem_image_part_read(source, 0, SLOTMEM_SHM_FILE_COUNT_SIZE,
                                SLOTMEM_IMAGE_COUNT, take, ctx, &md5, &odd)
            != 0
        || slotmem_image_part_read(source, SLOTMEM_SHM_FILE_COUNT_SIZE, slots,
                                   SLOTMEM_IMAGE_SLOTS, take, ctx, &md5, &odd)
               != 0
        || slotmem_image_part_read(source, used, image->item_num,
                                   SLOTMEM_IMAGE_USED, take, ctx, &md5, &odd)
               != 0) {
        return errno == EINVAL ? SLOTMEM_IMAGE_DAMAGED
                               : SLOTMEM_IMAGE_UNREADABLE;
    }
    apr_md5_final(made, &md5);
    if (digest) {
        memcpy(digest, made, sizeof(made));
    }
    /* Without a digest, a table of zeros and ones is what can be asked. */
    if (image->form == SLOTMEM_IMAGE_BARE) {
        return odd ? SLOTMEM_IMAGE_DAMAGED : SLOTMEM_IMAGE_OK;
    }
    if (slotmem_image_bytes(source, used + image->item_num, stored,
                            sizeof(stored))
        != 0) {
        return errno == EINVAL ? SLOTMEM_IMAGE_DAMAGED
                               : SLOTMEM_IMAGE_UNREADABLE;
    }
    return memcmp(made, stored, sizeof(made)) == 0 ? SLOTMEM_IMAGE_OK
                                                   : SLOTMEM_IMAGE_DAMAGED;
}

/** Finishes a trailer whose kinds stand at `to`: see mod_slotmem_shm.h. */
static inline void slotmem_image_trailer_end(unsigned char *to,
                                             unsigned int item_num,
                                             const unsigned char *digest)
{
    struct slotmem_shm_trailer_end last;
    apr_md5_ctx_t md5;

    memset(&last, 0, sizeof(last));
    memcpy(last.image, digest, sizeof(last.image));
    last.size = slotmem_shm_trailer_size(item_num);
    last.magic = SLOTMEM_SHM_TRAILER_MAGIC;
    apr_md5_init(&md5);
    apr_md5_update(&md5, to, item_num);
    apr_md5_update(&md5, last.image, sizeof(last.image));
    apr_md5_final(last.digest, &md5);
    memcpy(to + item_num, &last, sizeof(last));
}

/**
 * What the trailer behind an image says of each slot.
 *
 * @param digest of the image, from slotmem_image_read()
 * @param kinds  receives image->item_num bytes of SLOTMEM_SHM_KIND_*
 * @return 1; 0 when there is no trailer, or one of another image; -1 with
 *         errno when it cannot be read
 */
static inline int slotmem_image_kinds(const slotmem_image_source_t *source,
                                      const slotmem_image_t *image,
                                      const unsigned char *digest,
                                      unsigned char *kinds)
{
    struct slotmem_shm_trailer_end last;
    unsigned char made[APR_MD5_DIGESTSIZE];
    apr_md5_ctx_t md5;
    unsigned int i;

    if (source->size - image->size
        < slotmem_shm_trailer_size(image->item_num)) {
        return 0;
    }
    if (slotmem_image_bytes(source, image->size, kinds, image->item_num) != 0
        || slotmem_image_bytes(source, image->size + image->item_num, &last,
                               sizeof(last))
               != 0) {
        return -1;
    }
    apr_md5_init(&md5);
    apr_md5_update(&md5, kinds, image->item_num);
    apr_md5_update(&md5, last.image, sizeof(last.image));
    apr_md5_final(made, &md5);
    for (i = 0; i < image->item_num; i++) {
        if (kinds[i] > SLOTMEM_SHM_KIND_RUNTIME) {
            return 0;
        }
    }
    return last.magic == SLOTMEM_SHM_TRAILER_MAGIC
           && memcmp(last.image, digest, sizeof(last.image)) == 0
           && memcmp(last.digest, made, sizeof(made)) == 0;
}

#endif /* SLOTMEM_IMAGE_H */
