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
 * @file  slotmem_status.h
 * @brief What an administrator is told of segments, in words: the section of
 *        server-status, and the same under ?auto for programs.
 *
 *     status_tally_t t = { 0 };
 *     for each segment: fill in a row, status_tally_add(&t, &row)
 *     status_write(&out, &t, rows, num, form)
 *
 * Keys under ?auto are published (README.md) and read by programs: `Key:
 * value` lines, keys of letters and digits that begin with Slotmem, totals
 * first, then SlotmemSegment0..., in the order in which the segments were
 * made.  Times are seconds since 1970.
 *
 * Knows APR's pools and strings, nothing of httpd: what prints and escapes is
 * handed in.  Every function may be called by any thread and touches nothing
 * but its arguments.
 */
#ifndef SLOTMEM_STATUS_H
#define SLOTMEM_STATUS_H

#include <string.h>

#include "apr.h"
#include "apr_pools.h"
#include "apr_strings.h"
#include "apr_time.h"

#define STATUS_ROWS     200  /* on the page; ?auto has every segment        */
#define STATUS_NAME     28   /* characters of a name before it is cut       */
#define STATUS_AUTO_MAX 4096 /* of a line: some readers give up at 64 KiB   */

/** What a segment began with. */
enum origin {
    ORIGIN_NOTHING,
    ORIGIN_FILE,
    ORIGIN_GENERATION, /* the memory of the generation before this one  */
    ORIGIN_MEMORY,     /* the memory of a run that was killed, or that
                          still holds the directory                     */
    ORIGIN_BAD_FILE,   /* nothing, though there was a file              */
    ORIGIN_UNREADABLE, /* nothing, and its file is left alone           */
    ORIGIN_PROCESS,
    ORIGINS
};

static const char *const origin_text[ORIGINS] = {
    "nothing",
    "stored file",
    "memory of the former generation",
    "memory of a killed run",
    "nothing (file put aside)",
    "nothing (file cannot be read)",
    "another process"
};

/** What the server is to its runtime directory. */
enum runtime_state {
    RUNTIME_UNKNOWN, /* not looked at yet by this process */
    RUNTIME_OWNER,
    RUNTIME_HEIR,
    RUNTIME_UNLISTED
};

static const char *const runtime_text[] = { "unknown", "owner", "heir",
                                            "unlisted" };

/** One segment at one moment. */
typedef struct {
    const char *name;     /* any bytes                                       */
    const char *file;     /* that it is stored in; NULL: none                */
    const char *flags;    /* that it was made with                          */
    apr_size_t item_size; /* bytes in a slot                             */
    unsigned int item_num, used;
    apr_uint64_t memory; /* bytes                                        */
    enum origin origin;
    int mortal;        /* its memory has no name                         */
    apr_time_t stored; /* 0: not yet, or never                           */
} status_row_t;

/** All of them.  Begins as zeros; the last two are the caller's to fill in. */
typedef struct {
    int segments;
    int stored;        /* those that are kept in files     */
    int from[ORIGINS]; /* what those began with            */
    int mortal;        /* those whose memory has no name   */
    apr_uint64_t slots, used, memory;
    apr_time_t oldest; /* store of all; 0: one has none    */
    int storing_fails;
    enum runtime_state directory;
} status_tally_t;

enum status_form {
    STATUS_AUTO, /* ?auto, for programs                    */
    STATUS_LIST, /* ?notable, for browsers without tables  */
    STATUS_TABLE
};

/** Where it goes. */
typedef struct {
    void (*print)(void *to, const char *format, ...); /* APR's formats      */
    /* Names hold any bytes: without control characters, ASCII alone, since
     * the page is ISO-8859-1; and that with what HTML reserves escaped. */
    const char *(*plain)(apr_pool_t *p, const char *text);
    const char *(*html)(apr_pool_t *p, const char *text);
    void *to;
    apr_pool_t *pool; /* of the request */
} status_out_t;

static inline void status_tally_add(status_tally_t *t, const status_row_t *row)
{
    t->segments++;
    t->slots += row->item_num;
    t->used += row->used;
    t->memory += row->memory;
    if (row->file) {
        if (t->stored == 0 || row->stored < t->oldest) {
            t->oldest = row->stored;
        }
        t->stored++;
        t->from[row->origin]++;
        t->mortal += row->mortal;
    }
}

/* ==================== words ==================== */

/** In the units of the rest of the page. */
static inline const char *status_bytes(apr_pool_t *p, apr_uint64_t bytes)
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

static inline const char *status_ago(apr_pool_t *p, apr_time_t when)
{
    apr_int64_t s = apr_time_sec(apr_time_now() - when);

    return s < 0        ? "now"
           : s < 120    ? apr_psprintf(p, "%d s ago", (int)s)
           : s < 7200   ? apr_psprintf(p, "%d min ago", (int)(s / 60))
           : s < 172800 ? apr_psprintf(p, "%d h ago", (int)(s / 3600))
                        : apr_psprintf(p, "%d days ago", (int)(s / 86400));
}

static inline const char *status_date(apr_pool_t *p, apr_time_t when)
{
    char *text = apr_palloc(p, APR_RFC822_DATE_LEN);

    return apr_rfc822_date(text, when) == APR_SUCCESS ? text : "";
}

/** What those that are kept in files began with. */
static inline const char *status_origins(apr_pool_t *p, const status_tally_t *t)
{
    return apr_psprintf(p,
                        "%d went on with the memory of the generation before, "
                        "%d with that of a killed run, %d were restored from "
                        "file, %d began empty",
                        t->from[ORIGIN_GENERATION], t->from[ORIGIN_MEMORY],
                        t->from[ORIGIN_FILE],
                        t->from[ORIGIN_NOTHING] + t->from[ORIGIN_BAD_FILE]
                            + t->from[ORIGIN_UNREADABLE]);
}

static inline int status_lost(const status_tally_t *t)
{
    return t->from[ORIGIN_BAD_FILE] + t->from[ORIGIN_UNREADABLE];
}

/* ==================== pages ==================== */

/** The end of a name from `shown` on, cut, with the whole of it at hand. */
static inline const char *status_cut(const status_out_t *o, const char *whole,
                                     const char *shown)
{
    const int cut = strlen(shown) > STATUS_NAME;

    if (shown == whole && !cut) {
        return o->html(o->pool, whole);
    }
    return apr_pstrcat(
        o->pool, "<abbr title=\"", o->html(o->pool, whole), "\">",
        cut ? o->html(o->pool, apr_pstrmemdup(o->pool, shown, STATUS_NAME - 3))
            : o->html(o->pool, shown),
        cut ? "..." : "", "</abbr>", NULL);
}

static inline const char *status_file(const status_out_t *o,
                                      const status_row_t *row)
{
    const char *slash = row->file ? strrchr(row->file, '/') : NULL;

    return slash ? status_cut(o, row->file, slash + 1) : "-";
}

static inline const char *status_stored(const status_out_t *o,
                                        const status_row_t *row)
{
    return !row->file ? "no"
           : !row->stored
               ? "not yet"
               : apr_psprintf(o->pool, "<span title=\"%s\">%s</span>",
                              status_date(o->pool, row->stored),
                              status_ago(o->pool, row->stored));
}

/** What matters first, since a phone shows the left of the table.  The bar is
 *  made of borders, in the colour of the text: a browser that darkens the page
 *  takes a background for one, and leaves black on black. */
static inline void status_row_table(const status_out_t *o,
                                    const status_row_t *row)
{
    unsigned int percent =
        row->item_num
            ? (unsigned int)((apr_uint64_t)row->used * 100 / row->item_num)
            : 0;

    o->print(o->to,
             "<tr><td>%s</td><td>%u of %u</td>"
             "<td title=\"%u%%\">"
             "<div style=\"width:5em;height:.7em;border:1px solid\">"
             "<div style=\"width:%u%%;border-top:.7em solid\">"
             "</div></div></td><td>%s</td><td>%s</td>"
             "<td>%" APR_SIZE_T_FMT " B</td>"
             "<td title=\"%" APR_UINT64_T_FMT " bytes\">%s</td>"
             "<td>%s</td><td>%s</td></tr>\n",
             status_cut(o, row->name, row->name), row->used, row->item_num,
             percent, percent, status_stored(o, row), origin_text[row->origin],
             row->item_size, row->memory, status_bytes(o->pool, row->memory),
             row->flags, status_file(o, row));
}

/** ?notable: for browsers without tables. */
static inline void status_row_list(const status_out_t *o,
                                   const status_row_t *row)
{
    o->print(o->to,
             "<dt>%s: %u of %u slots of %" APR_SIZE_T_FMT " bytes in use, "
             "%s, flags %s, stored: %s, began with %s</dt>\n",
             status_cut(o, row->name, row->name), row->used, row->item_num,
             row->item_size, status_bytes(o->pool, row->memory), row->flags,
             status_stored(o, row), origin_text[row->origin]);
}

static inline void status_row_auto(const status_out_t *o, int i,
                                   const status_row_t *row)
{
    o->print(o->to,
             "SlotmemSegment%dName: %.*s\n"
             "SlotmemSegment%dSlots: %u\n"
             "SlotmemSegment%dUsed: %u\n"
             "SlotmemSegment%dSlotSize: %" APR_SIZE_T_FMT "\n"
             "SlotmemSegment%dBytes: %" APR_UINT64_T_FMT "\n"
             "SlotmemSegment%dFlags: %s\n"
             "SlotmemSegment%dOrigin: %s\n",
             i, STATUS_AUTO_MAX, o->plain(o->pool, row->name), i, row->item_num,
             i, row->used, i, row->item_size, i, row->memory, i, row->flags, i,
             origin_text[row->origin]);
    o->print(o->to,
             "SlotmemSegment%dFile: %.*s\n"
             "SlotmemSegment%dStored: %" APR_TIME_T_FMT "\n",
             i, STATUS_AUTO_MAX, row->file ? o->plain(o->pool, row->file) : "-",
             i, apr_time_sec(row->stored));
}

static inline void status_tally_auto(const status_out_t *o,
                                     const status_tally_t *t)
{
    o->print(o->to,
             "SlotmemSegments: %d\n"
             "SlotmemSlots: %" APR_UINT64_T_FMT "\n"
             "SlotmemUsed: %" APR_UINT64_T_FMT "\n"
             "SlotmemBytes: %" APR_UINT64_T_FMT "\n"
             "SlotmemStoredSegments: %d\n"
             "SlotmemStoredOldest: %" APR_TIME_T_FMT "\n"
             "SlotmemBeganWithFile: %d\n"
             "SlotmemBeganWithGeneration: %d\n"
             "SlotmemBeganWithMemory: %d\n"
             "SlotmemBeganWithNothing: %d\n"
             "SlotmemBeganWithBadFile: %d\n"
             "SlotmemStoringFails: %d\n"
             "SlotmemRuntimeDir: %s\n",
             t->segments, t->slots, t->used, t->memory, t->stored,
             apr_time_sec(t->oldest), t->from[ORIGIN_FILE],
             t->from[ORIGIN_GENERATION], t->from[ORIGIN_MEMORY],
             t->from[ORIGIN_NOTHING], status_lost(t), t->storing_fails,
             runtime_text[t->directory]);
}

/** Above the table, in words: how full, what is stored, and what the last
 *  restart brought back. */
static inline void status_tally_page(const status_out_t *o,
                                     const status_tally_t *t)
{
    o->print(o->to,
             "<dl>\n<dt>%d segment%s, %" APR_UINT64_T_FMT
             " of %" APR_UINT64_T_FMT
             " slots in use, %s of shared memory</dt>\n",
             t->segments, t->segments == 1 ? "" : "s", t->used, t->slots,
             status_bytes(o->pool, t->memory));
    if (t->stored) {
        o->print(o->to,
                 "<dt>Kept in files: %d, %s%s</dt>\n"
                 "<dt>At the last start or restart %s</dt>\n",
                 t->stored, t->oldest ? "stored " : "not all stored yet",
                 t->oldest ? status_ago(o->pool, t->oldest) : "",
                 status_origins(o->pool, t));
    }
    if (status_lost(t)) {
        o->print(o->to,
                 "<dt><b>Lost: %d stored file%s could not be used; the "
                 "error log says why</b></dt>\n",
                 status_lost(t), status_lost(t) == 1 ? "" : "s");
    }
    if (t->storing_fails) {
        o->print(o->to,
                 "<dt><b>Storing fails: state is in memory alone; the error "
                 "log says why</b></dt>\n");
    }
    if (t->mortal) {
        o->print(o->to,
                 "<dt><b>The memory of %d would not outlive a kill of "
                 "the server; the error log says why</b></dt>\n",
                 t->mortal);
    }
    if (t->directory == RUNTIME_HEIR) {
        o->print(o->to,
                 "<dt><b>Another httpd uses this runtime directory: nothing "
                 "is stored here before that one has ended</b></dt>\n");
    }
}

static inline void status_table(const status_out_t *o, const status_row_t *rows,
                                int shown, const status_tally_t *t)
{
    int i;

    o->print(
        o->to,
        "<div style=\"overflow-x:auto;white-space:nowrap\">"
        "<table cellpadding=\"4\" summary=\"The segments\">\n<thead align=\"left\"><tr>"
        "<th>Segment</th><th colspan=\"2\">In use</th><th>Stored</th>"
        "<th>Began with</th><th>Slot size</th><th>Memory</th>"
        "<th>Flags</th><th>Stored file</th></tr></thead>\n<tbody>\n");
    for (i = 0; i < shown; i++) {
        status_row_table(o, &rows[i]);
    }
    o->print(o->to,
             "<tr align=\"left\"><th>Sum of %d</th><th>%" APR_UINT64_T_FMT
             " of %" APR_UINT64_T_FMT "</th><td colspan=\"4\"></td>"
             "<th title=\"%" APR_UINT64_T_FMT " bytes\">%s</th>"
             "<td colspan=\"2\"></td></tr>\n</tbody></table></div>\n",
             t->segments, t->used, t->slots, t->memory,
             status_bytes(o->pool, t->memory));
}

/** The whole section of server-status. */
static inline void status_write(const status_out_t *o, const status_tally_t *t,
                                const status_row_t *rows, int num,
                                enum status_form form)
{
    const int shown = num < STATUS_ROWS ? num : STATUS_ROWS;
    int i;

    if (form == STATUS_AUTO) {
        status_tally_auto(o, t);
        for (i = 0; i < num; i++) {
            status_row_auto(o, i, &rows[i]);
        }
        return;
    }
    o->print(o->to, "<hr />\n<h2 id=\"slotmem\">Shared memory slots</h2>\n");
    status_tally_page(o, t);
    for (i = 0; form == STATUS_LIST && i < shown; i++) {
        status_row_list(o, &rows[i]);
    }
    if (num > shown) {
        o->print(o->to, "<dt>%d more are not shown here</dt>\n", num - shown);
    }
    o->print(o->to,
             "<dt><a href=\"?auto\">All of it as text</a></dt>\n</dl>\n");
    if (form == STATUS_TABLE && num) {
        status_table(o, rows, shown, t);
    }
}

#endif /* SLOTMEM_STATUS_H */
