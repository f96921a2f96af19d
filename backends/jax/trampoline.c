/* The bridge from XLA to parnl's kernels, in plain C.

   XLA knows one custom call, `parnl_kernel`. The attribute "kernel" names the kernel that is meant;
   whoever loads a kernel adds it, by that name, to the table that stands here. So generated kernels
   know nothing of XLA, and its C header is read here alone, once for each jaxlib. The header's names
   change: those used here are the same in jaxlib 0.9 to 0.12. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

/* Threads for a kernel, and the kernel: see `kernel_on_pool` in backends/c/threads.h. */
typedef int Ask(const void *context, void (*help)(void *job), void *job);
typedef void Kernel(const int64_t *a, Ask *ask, const void *context);

/* The table: lists of entries, which are added at the front and never removed. */
typedef struct Entry {
  struct Entry *next;
  Kernel *kernel;
  char name[];
} Entry;
static Entry *table[4096];

static Entry **list(const char *name, size_t length) {
  uint32_t hash = 0;
  for (size_t i = 0; i < length; i++) hash = 31 * hash + (unsigned char)name[i];
  return &table[hash % (sizeof table / sizeof *table)];
}

static Kernel *find(const char *name, size_t length) {
  const Entry *entry = __atomic_load_n(list(name, length), __ATOMIC_ACQUIRE);
  while (entry && (strlen(entry->name) != length || memcmp(entry->name, name, length)))
    entry = entry->next;
  return entry ? entry->kernel : 0;
}

/* Make a kernel known by its name; 0 if there is no memory left. */
int add(const char *name, Kernel *kernel) {
  Entry *entry = malloc(sizeof *entry + strlen(name) + 1), **first = list(name, strlen(name));
  if (!entry) return 0;
  strcpy(entry->name, name);
  entry->kernel = kernel;
  entry->next = __atomic_load_n(first, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(first, &entry->next, entry, 0, __ATOMIC_RELEASE,
                                      __ATOMIC_RELAXED)) {}
  return 1;
}

/* One of XLA's own threads. */
static int ask_xla(const void *context, void (*help)(void *), void *job) {
  const XLA_FFI_CallFrame *frame = context;
  XLA_FFI_ThreadPool_Schedule_Args schedule = {
    .struct_size = XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE,
    .ctx = frame->ctx, .task = help, .data = job,
  };
  XLA_FFI_Error *error = frame->api->XLA_FFI_ThreadPool_Schedule(&schedule);
  if (!error) return 1;
  XLA_FFI_Error_Destroy_Args destroy = {
    .struct_size = XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, .error = error,
  };
  frame->api->XLA_FFI_Error_Destroy(&destroy);
  return 0;
}

static XLA_FFI_Error *unknown(const XLA_FFI_CallFrame *frame, const XLA_FFI_ByteSpan *name) {
  char message[512];
  snprintf(message, sizeof message,
           "parnl: kernel %.*s is not loaded. Another process compiled this program, and this one "
           "has not yet built its kernels. Call parnl.solve here with the same cell, shapes and "
           "dtype first, or compile or export the program with PARNL_KERNELS=off.",
           (int)name->len, name->ptr);
  XLA_FFI_Error_Create_Args error = {
    .struct_size = XLA_FFI_Error_Create_Args_STRUCT_SIZE,
    .message = message, .errc = XLA_FFI_Error_Code_FAILED_PRECONDITION,
  };
  return frame->api->XLA_FFI_Error_Create(&error);
}

/* Attributes come sorted by name: "kernel"; "slots" and "table", arrays of one length. An entry of
   the array that a kernel is given is that of `table` where its slot is 0; else an address: slot
   i > 0 is that of argument i - 1, i < 0 that of result -i - 1. */
XLA_FFI_Error *handler(XLA_FFI_CallFrame *frame) {
  typedef XLA_FFI_Metadata_Extension Extension;
  for (Extension *e = (Extension *)frame->extension_start; e;
       e = (Extension *)e->extension_base.next)
    if (e->extension_base.type == XLA_FFI_Extension_Metadata) {
      e->metadata->api_version.major_version = XLA_FFI_API_MAJOR;
      e->metadata->api_version.minor_version = XLA_FFI_API_MINOR;
      e->metadata->traits = 0;
      return 0;
    }
  if (frame->stage != XLA_FFI_ExecutionStage_EXECUTE) return 0;
  const XLA_FFI_ByteSpan *name = frame->attrs.attrs[0];
  const XLA_FFI_Array *slots = frame->attrs.attrs[1], *numbers = frame->attrs.attrs[2];
  Kernel *kernel = find(name->ptr, name->len);
  if (!kernel) return unknown(frame, name);
  int64_t a[numbers->size];
  for (size_t i = 0; i < numbers->size; i++) {
    const int64_t slot = ((const int64_t *)slots->data)[i];
    if (slot > 0) a[i] = (int64_t)((XLA_FFI_Buffer *)frame->args.args[slot - 1])->data;
    else if (slot < 0) a[i] = (int64_t)((XLA_FFI_Buffer *)frame->rets.rets[-slot - 1])->data;
    else a[i] = ((const int64_t *)numbers->data)[i];
  }
  kernel(a, ask_xla, frame);
  return 0;
}
