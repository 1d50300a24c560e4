/* Stands for the driver's CUDA library, libcuda.so.1, of a card that gives out 15,842 of its 16,303 MiB.
 *
 * Source of names: cuda.h of CUDA 13.
 */
#include <stddef.h>

static int is_initialized;

int cuInit(unsigned flags) {
    is_initialized = 1;
    return (int)flags;
}
int cuDeviceGet(int *device, int ordinal) {
    *device = 7;
    return is_initialized && ordinal == 0 ? 0 : 3;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    *bytes = (size_t)15842 << 20;
    return device == 7 ? 0 : 101;
}
