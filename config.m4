dnl Licensed to the Apache Software Foundation (ASF) under one or more
dnl contributor license agreements.  See the NOTICE file distributed with
dnl this work for additional information regarding copyright ownership.
dnl The ASF licenses this file to You under the Apache License, Version 2.0
dnl (the "License"); you may not use this file except in compliance with
dnl the License.  You may obtain a copy of the License at
dnl
dnl     http://www.apache.org/licenses/LICENSE-2.0
dnl
dnl Unless required by applicable law or agreed to in writing, software
dnl distributed under the License is distributed on an "AS IS" BASIS,
dnl WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
dnl See the License for the specific language governing permissions and
dnl limitations under the License.

dnl For this directory as modules/slotmem of an httpd source tree.  Outside of
dnl one, the Makefile beside this file builds the module with apxs.

dnl SLOTMEM_SHM_TRY_ATOMICS(flags, if-yes, if-no)
dnl
dnl Whether the compiler, with httpd's flags and these, has what the module is
dnl written in.  An atomic behind which a library's lock stands would lock in
dnl one process only, so it does not count.  The program gives no reason for a
dnl warning: maintainer mode makes errors of them.
AC_DEFUN([SLOTMEM_SHM_TRY_ATOMICS], [
  slotmem_shm_saved_CFLAGS="$CFLAGS"
  CFLAGS="$CFLAGS $EXTRA_CFLAGS $NOTEST_CFLAGS $1"
  AC_LINK_IFELSE([AC_LANG_SOURCE([[
#include <stdatomic.h>
#if ATOMIC_LLONG_LOCK_FREE != 2
#error "64-bit atomics are not always lock-free"
#endif
_Static_assert(sizeof(_Atomic unsigned long long) == 8, "a word is 8 bytes");
static _Atomic unsigned long long word;
static _Thread_local int number;
static inline int lowest_bit(unsigned long long of)
{
    return __builtin_ctzll(of);
}
int main(void)
{
    unsigned long long is = atomic_load_explicit(&word, memory_order_acquire);

    if (!atomic_compare_exchange_strong(&word, &is, is | 4)) {
        return 1;
    }
    number = lowest_bit(atomic_fetch_and(&word, 12));
    return number != 2;
}
]])], [slotmem_shm_works=yes], [slotmem_shm_works=no])
  CFLAGS="$slotmem_shm_saved_CFLAGS"
  if test "$slotmem_shm_works" = "yes"; then
    $2
  else
    $3
  fi
])

dnl SLOTMEM_SHM_CHECK_COMPILER
dnl
dnl Sets ac_cv_slotmem_shm_std to the flag that makes the compiler one for
dnl C11 with the system's interfaces (maintainer mode asks for C89), "none" if
dnl it needs none, or "no" if it cannot be had.
AC_DEFUN([SLOTMEM_SHM_CHECK_COMPILER], [
  AC_CACHE_CHECK([for C11 with lock-free 64-bit atomics],
                 [ac_cv_slotmem_shm_std], [
    ac_cv_slotmem_shm_std=no
    for slotmem_shm_std in none -std=gnu11; do
      slotmem_shm_flag=`echo " $slotmem_shm_std" | sed 's/ none//'`
      SLOTMEM_SHM_TRY_ATOMICS([$slotmem_shm_flag],
        [ac_cv_slotmem_shm_std="$slotmem_shm_std"
         break],
        [:])
    done
  ])
])

dnl SLOTMEM_SHM_CHECK_NEEDS
dnl
dnl What APACHE_MODULE runs before it settles that the module is built.
AC_DEFUN([SLOTMEM_SHM_CHECK_NEEDS], [
  SLOTMEM_SHM_CHECK_COMPILER
  if test "$ac_cv_slotmem_shm_std" = "no"; then
    AC_MSG_WARN([mod_slotmem_shm needs a C11 compiler whose 64-bit atomics are lock-free and that has the built-in functions of GCC (GCC 4.9 or Clang 3.6, or newer); on 32-bit x86 add -march=i586 or newer to CFLAGS])
    enable_slotmem_shm=no
  fi
  APR_CHECK_APR_DEFINE(APR_HAS_SHARED_MEMORY)
  APR_CHECK_APR_DEFINE(APR_HAS_FORK)
  if test "$ac_cv_define_APR_HAS_SHARED_MEMORY" != "yes" \
       -o "$ac_cv_define_APR_HAS_FORK" != "yes"; then
    AC_MSG_WARN([mod_slotmem_shm needs an APR that has shared memory and fork()])
    enable_slotmem_shm=no
  fi
])

APACHE_MODPATH_INIT(slotmem)

APACHE_MODULE(slotmem_shm, slotmem provider that uses shared memory, , , most, [
  SLOTMEM_SHM_CHECK_NEEDS
])

dnl httpd's own module for tests; its source may not have been kept.
APACHE_MODULE(slotmem_plain, slotmem provider that uses plain memory, , , , [
  if test ! -f "$srcdir/$modpath_current/mod_slotmem_plain.c"; then
    AC_MSG_NOTICE([mod_slotmem_plain.c is not in $modpath_current])
    enable_slotmem_plain=no
  fi
])

APR_ADDTO(MOD_INCLUDES, [-I\$(top_srcdir)/$modpath_current/include])

dnl Makefile.in puts this after httpd's own flags, which may ask for C89.
if test "$enable_slotmem_shm" != "no" \
     -a "$ac_cv_slotmem_shm_std" != "none"; then
  echo "SLOTMEM_SHM_STD = $ac_cv_slotmem_shm_std" \
    >> $modpath_current/modules.mk
fi

APACHE_MODPATH_FINISH
