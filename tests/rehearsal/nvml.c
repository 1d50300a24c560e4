/* Stands for the driver's library, libnvidia-ml.so.1. What it tells is read at each call from the file
 * that LLM_REHEARSAL_DRIVER names, which a test replaces while programs run (see driver.py):
 *
 *   error 15                              every call fails with this code
 *   mute                                  no call returns until the file is replaced
 *   wsl                                   what WSL2's driver does not support is not supported
 *   card 12 0 16303 461 1900 NVIDIA …     capability, MiB in all, reserved, and used by programs; name
 *   process 903 1900 G blender            of the card above: pid, MiB, G(raphics) or C(ompute), name
 *
 * Source of names, codes and structures: nvml.h of driver 580, and nvidia-ml-py 13.615.
 */
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

enum {
    SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, VERSION_MISMATCH = 18,
};
enum { MAX_CARDS = 4, MAX_PROCESSES = 32 };

typedef unsigned long long bytes_t;
typedef struct { unsigned pid; bytes_t mib; char kind; char name[64]; } process_t;
typedef struct {
    int major, minor, num_processes;
    bytes_t total, reserved, used;
    char name[64];
    process_t processes[MAX_PROCESSES];
} card_t;
typedef struct { int error, is_mute, is_wsl, num_cards; card_t cards[MAX_CARDS]; } state_t;

static const char *path_of_state(void) { return getenv("LLM_REHEARSAL_DRIVER"); }

static void read_state(state_t *state) {
    memset(state, 0, sizeof *state);
    FILE *file = path_of_state() ? fopen(path_of_state(), "r") : NULL;
    if (!file) {
        state->error = DRIVER_NOT_LOADED;
        return;
    }
    char line[256];
    while (fgets(line, sizeof line, file)) {
        card_t *next = &state->cards[state->num_cards % MAX_CARDS];
        card_t *last = state->num_cards ? &state->cards[state->num_cards - 1] : next;
        process_t *process = &last->processes[last->num_processes % MAX_PROCESSES];
        if (!strncmp(line, "mute", 4)) state->is_mute = 1;
        else if (!strncmp(line, "wsl", 3)) state->is_wsl = 1;
        else if (sscanf(line, "error %d", &state->error) == 1) continue;
        else if (sscanf(line, "card %d %d %llu %llu %llu %63[^\n]", &next->major, &next->minor,
                        &next->total, &next->reserved, &next->used, next->name) == 6)
            state->num_cards++;
        else if (sscanf(line, "process %u %llu %c %63[^\n]", &process->pid, &process->mib,
                        &process->kind, process->name) == 4)
            last->num_processes++;
    }
    fclose(file);
}

/* Answers when the driver does. */
static int ask(state_t *state) {
    read_state(state);
    if (state->is_mute) {
        char folder[PATH_MAX], event[4096];
        snprintf(folder, sizeof folder, "%s", path_of_state());
        int changes = inotify_init1(IN_CLOEXEC);
        inotify_add_watch(changes, dirname(folder), IN_MOVED_TO);
        for (read_state(state); state->is_mute; read_state(state))
            if (read(changes, event, sizeof event) < 0) break;
        close(changes);
    }
    return state->error;
}

/* A handle is the number of the card, plus one. */
static int ask_card(state_t *state, void *handle, card_t **card) {
    int failed = ask(state);
    size_t number = (size_t)handle;
    if (failed) return failed;
    if (!number || number > (size_t)state->num_cards) return INVALID_ARGUMENT;
    *card = &state->cards[number - 1];
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    state_t state;
    int failed = ask(&state);
    return failed == GPU_IS_LOST ? SUCCESS : failed; /* the driver is there, the card is not */
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlInit(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int error) {
    switch (error) {
    case SUCCESS: return "Success";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case GPU_IS_LOST: return "GPU is lost";
    case VERSION_MISMATCH: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    state_t state;
    int failed = ask(&state);
    if (!failed) snprintf(text, size, "580.95.05");
    return failed;
}
int nvmlSystemGetNVMLVersion(char *text, unsigned size) {
    snprintf(text, size, "13.580.95.05");
    return SUCCESS;
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    state_t state;
    int failed = ask(&state);
    if (!failed) *version = 13000;
    return failed;
}
int nvmlSystemGetCudaDriverVersion(int *version) {
    return nvmlSystemGetCudaDriverVersion_v2(version);
}
int nvmlSystemGetProcessName(unsigned pid, char *text, unsigned size) {
    state_t state;
    int failed = ask(&state);
    if (failed) return failed;
    for (int card = 0; card < state.num_cards; card++)
        for (int i = 0; i < state.cards[card].num_processes; i++)
            if (state.cards[card].processes[i].pid == pid) {
                snprintf(text, size, "%s", state.cards[card].processes[i].name);
                return SUCCESS;
            }
    return NOT_FOUND;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    state_t state;
    int failed = ask(&state);
    if (!failed) *count = state.num_cards;
    return failed;
}
int nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    state_t state;
    card_t *card;
    *handle = (void *)(size_t)(index + 1);
    return ask_card(&state, *handle, &card);
}
int nvmlDeviceGetHandleByIndex(unsigned index, void **handle) {
    return nvmlDeviceGetHandleByIndex_v2(index, handle);
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    unsigned index;
    if (sscanf(uuid, "GPU-%8x", &index) != 1) return INVALID_ARGUMENT;
    return nvmlDeviceGetHandleByIndex_v2(index, handle);
}
int nvmlDeviceGetIndex(void *handle, unsigned *index) {
    state_t state;
    card_t *card;
    int failed = ask_card(&state, handle, &card);
    if (!failed) *index = (unsigned)((size_t)handle - 1);
    return failed;
}
int nvmlDeviceGetMinorNumber(void *handle, unsigned *minor) {
    return nvmlDeviceGetIndex(handle, minor);
}
int nvmlDeviceGetUUID(void *handle, char *text, unsigned size) {
    unsigned index = 0;
    int failed = nvmlDeviceGetIndex(handle, &index);
    if (!failed) snprintf(text, size, "GPU-%08x-0000-0000-0000-000000000000", index);
    return failed;
}
int nvmlDeviceGetName(void *handle, char *text, unsigned size) {
    state_t state;
    card_t *card;
    int failed = ask_card(&state, handle, &card);
    if (!failed) snprintf(text, size, "%s", card->name);
    return failed;
}
int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    state_t state;
    card_t *card;
    int failed = ask_card(&state, handle, &card);
    if (!failed) *major = card->major, *minor = card->minor;
    return failed;
}

/* In version 1 what the driver keeps counts as used; version 2 tells it apart. */
typedef struct { bytes_t total, free, used; } memory_t;
typedef struct { unsigned version; bytes_t total, reserved, free, used; } memory_v2_t;
int nvmlDeviceGetMemoryInfo_v2(void *handle, memory_v2_t *memory) {
    state_t state;
    card_t *card;
    int failed = ask_card(&state, handle, &card);
    if (failed) return failed;
    memory->total = card->total << 20;
    memory->reserved = card->reserved << 20;
    memory->used = card->used << 20;
    memory->free = memory->total - memory->reserved - memory->used;
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory) {
    memory_v2_t told;
    int failed = nvmlDeviceGetMemoryInfo_v2(handle, &told);
    if (failed) return failed;
    memory->total = told.total;
    memory->free = told.free;
    memory->used = told.total - told.free;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *handle, unsigned *rates) {
    state_t state;
    card_t *card;
    int failed = ask_card(&state, handle, &card);
    if (failed) return failed;
    if (state.is_wsl) return NOT_SUPPORTED;
    rates[0] = 3, rates[1] = 1;
    return SUCCESS;
}
int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *celsius) {
    (void)sensor;
    *celsius = 41;
    state_t state;
    card_t *card;
    return ask_card(&state, handle, &card);
}
int nvmlDeviceGetPowerUsage(void *handle, unsigned *milliwatt) {
    *milliwatt = 31000;
    state_t state;
    card_t *card;
    return ask_card(&state, handle, &card);
}

typedef struct { unsigned pid; bytes_t used; unsigned gpu_instance, compute_instance; } holder_t;
static int holders(void *handle, char kind, unsigned *count, holder_t *found) {
    state_t state;
    card_t *card;
    int failed = ask_card(&state, handle, &card);
    if (failed) return failed;
    if (state.is_wsl) return NOT_SUPPORTED;
    unsigned number = 0, room = *count;
    for (int i = 0; i < card->num_processes; i++) {
        process_t *process = &card->processes[i];
        if (process->kind != kind) continue;
        if (found && number < room)
            found[number] = (holder_t){process->pid, process->mib << 20, ~0u, ~0u};
        number++;
    }
    *count = number;
    return number > room || (number && !found) ? INSUFFICIENT_SIZE : SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, holder_t *found) {
    return holders(handle, 'C', count, found);
}
int nvmlDeviceGetComputeRunningProcesses_v2(void *handle, unsigned *count, holder_t *found) {
    return holders(handle, 'C', count, found);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, holder_t *found) {
    return holders(handle, 'G', count, found);
}
int nvmlDeviceGetGraphicsRunningProcesses_v2(void *handle, unsigned *count, holder_t *found) {
    return holders(handle, 'G', count, found);
}
