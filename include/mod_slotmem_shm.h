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
 * @file  mod_slotmem_shm.h
 * @brief What mod_slotmem_shm leaves where others can read it: the stored
 *        file, and the head of a segment of shared memory.
 *
 * Needs nothing but the C library, so that a tool outside httpd (an offline
 * reader, a backup check) can include it.  Everything is in the byte order
 * and with the type sizes of the machine that wrote it.
 *
 * The provider itself is declared by the server's own ap_slotmem.h.
 */
#ifndef MOD_SLOTMEM_SHM_H
#define MOD_SLOTMEM_SHM_H

#include <stddef.h>
#include <stdint.h>

/* ------------------------------------------------------------------ */
/* The stored file                                                     */
/* ------------------------------------------------------------------ */

/*
 * One file a segment of type AP_SLOTMEM_TYPE_PERSIST, mode 0600:
 *
 *     a relative name NAME   DefaultRuntimeDir/slotmem-shm-NAME.shm.persist
 *     an absolute name /NAME                              /NAME.persist
 *
 * It is the format of httpd 2.4's own module, so either module starts from
 * what the other one stored.
 *
 *     offset               bytes                what
 *     0                    8                    number of slots not in use,
 *                                               an unsigned int and padding
 *     8                    item_num*item_size   the slots, in order
 *     + slots              item_num             one byte a slot: 1 in use, 0 not
 *     + table              16                   MD5 of every byte before it
 *     + digest             16                   struct slotmem_shm_file_desc
 *                                               and padding
 *
 * httpd's own module may leave older bytes behind the descriptor, since it
 * never shortens a file.  The number at offset 0 is not to be relied on:
 * count the table.
 *
 * Of a segment whose table a restart clears (CLEARINUSE), this module notes
 * behind the image whose slots they were, for the table in the file no
 * longer says it.  httpd's own module ignores what follows the descriptor.
 *
 *     image                item_num             one byte a slot:
 *                                               SLOTMEM_SHM_KIND_*
 *     + kinds              48                   struct slotmem_shm_trailer_end
 *
 * The end names the image by its MD5: a trailer that stayed behind when
 * another image was written in front of it speaks of no image any more.
 * slotmem_image.h has the functions that read all this.
 */
#define SLOTMEM_SHM_FILE_SUFFIX      ".persist"
#define SLOTMEM_SHM_FILE_COUNT_SIZE  8u  /* bytes at offset 0              */
#define SLOTMEM_SHM_FILE_DIGEST_SIZE 16u /* bytes of MD5                   */
#define SLOTMEM_SHM_FILE_DESC_SIZE   16u /* bytes of descriptor and padding*/

struct slotmem_shm_file_desc {
    size_t item_size;      /* bytes in a slot                              */
    unsigned int item_num; /* slots                                        */
    unsigned int type;     /* AP_SLOTMEM_TYPE_* bits given to create()     */
};

/**
 * Bytes in a stored file.
 * @param item_size bytes in a slot
 * @param item_num number of slots
 * @return the length, or 0 when it does not fit 64 bits
 */
static inline uint64_t slotmem_shm_file_size(uint64_t item_size,
                                             uint64_t item_num)
{
    const uint64_t fixed = SLOTMEM_SHM_FILE_COUNT_SIZE
                           + SLOTMEM_SHM_FILE_DIGEST_SIZE
                           + SLOTMEM_SHM_FILE_DESC_SIZE;

    if (item_num && item_size + 1 > (UINT64_MAX - fixed) / item_num) {
        return 0;
    }
    return item_num * (item_size + 1) + fixed;
}

#define SLOTMEM_SHM_KIND_NONE 0u /* nobody's                         */
#define SLOTMEM_SHM_KIND_CONFIGURED                                            \
    1u                              /* claimed by the parent, before it
                                          forked children                  */
#define SLOTMEM_SHM_KIND_RUNTIME 2u /* claimed at run time              */

/* "slotkind" read as a 64-bit number. */
#define SLOTMEM_SHM_TRAILER_MAGIC UINT64_C(0x646e696b746f6c73)

struct slotmem_shm_trailer_end {
    unsigned char image[16];  /*  0: MD5 of the image that it belongs to    */
    unsigned char digest[16]; /* 16: MD5 of the kinds and of `image`        */
    uint64_t size;            /* 32: bytes of the kinds and of this         */
    uint64_t magic;           /* 40: SLOTMEM_SHM_TRAILER_MAGIC              */
};

/** Bytes of a trailer, kinds and end. */
static inline uint64_t slotmem_shm_trailer_size(unsigned int item_num)
{
    return (uint64_t)item_num + sizeof(struct slotmem_shm_trailer_end);
}

/* ------------------------------------------------------------------ */
/* The segment of shared memory                                        */
/* ------------------------------------------------------------------ */

/*
 * The key given to apr_shm_create() is
 *
 *     a relative name NAME   DefaultRuntimeDir/slotmem-shm-NAME_GEN.shm
 *     an absolute name /NAME                              /NAME
 *
 * with GEN the generation's number in hexadecimal, from 0 on, as the MPM's in
 * httpd 2.4 (its trunk raises that later).  The header lies at the
 * first multiple of SLOTMEM_SHM_ALIGN in the memory that APR hands out, and
 * everything else at fixed distances from it:
 *
 *     header | in-use table | slot locks, torn marks | slots | slack
 *
 * (slotmem_table.h and slotmem_locks.h draw the second and the third.)
 *
 * Each part begins at a multiple of SLOTMEM_SHM_ALIGN; the slots are exactly
 * item_size apart, and SLOTMEM_SHM_SLACK bytes at least follow the last one.
 *
 * Every process of the server may write all of it.  A reader outside must
 * take each field for a claim and check it against the size of the object.
 */
#define SLOTMEM_SHM_ALIGN   64u
#define SLOTMEM_SHM_SLACK   64u
#define SLOTMEM_SHM_VERSION 2u
#define SLOTMEM_SHM_RUN_LEN 16u

/* "slotmem1" read as a 64-bit number; written last, so that it is only there
 * once all else is in place. */
#define SLOTMEM_SHM_MAGIC UINT64_C(0x316d656d746f6c73)

struct slotmem_shm_header {
    uint64_t magic;        /*  0: SLOTMEM_SHM_MAGIC                          */
    uint32_t version;      /*  8: SLOTMEM_SHM_VERSION                        */
    uint32_t type;         /* 12: AP_SLOTMEM_TYPE_* bits                     */
    uint64_t item_size;    /* 16: bytes in a slot                            */
    uint64_t item_num;     /* 24: slots                                      */
    uint64_t slots_offset; /* 32: of slot 0, from the header                 */
    uint64_t total_size;   /* 40: bytes from the header to the slack's end   */
    uint64_t generation;   /* 48: that made it, as its key has it            */
    uint64_t pid;          /* 56: of the server's parent process             */
    unsigned char run[SLOTMEM_SHM_RUN_LEN]; /* 64: identity of the run       */
    uint64_t stored; /* 80: when last stored, microseconds since 1970        */
    uint64_t birth;  /* 88: of the parent, as slotmem_locks.h has it         */
    unsigned char directory[16]; /*  96: identity of the runtime directory   */
    uint64_t marks[2];           /* 112: of its stored files                 */
};

#endif /* MOD_SLOTMEM_SHM_H */
