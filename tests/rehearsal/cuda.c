/* Stands for the driver's CUDA library, libcuda.so.1, of a machine whose card nobody can use: a program
 * that looks for it finds it, and whether one has done so is seen among its libraries.
 *
 * Source of names and codes: cuda.h of CUDA 13.
 */
enum { NOT_INITIALIZED = 3, NO_DEVICE = 100 };

static int is_initialized;

int cuInit(unsigned flags) {
    (void)flags;
    is_initialized = 1;
    return NO_DEVICE;
}
int cuDeviceGetCount(int *count) {
    *count = 0;
    return is_initialized ? NO_DEVICE : NOT_INITIALIZED;
}
int cuDriverGetVersion(int *version) {
    *version = 13000;
    return 0;
}
