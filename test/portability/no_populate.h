/* As where the C library or the kernel has no MADV_POPULATE_WRITE. */
#include <sys/mman.h>
#undef MADV_POPULATE_WRITE
