/* How a kernel's groups of lanes are shared among threads.

   Generated before it: `group` takes one group through its steps, `large_results` prepares the
   memory of results, and FADES is 1 for a backward run. Two functions are seen from outside:
   `kernel` uses threads of its own or OpenMP's, `kernel_on_pool` those of whoever calls it. */
#include <pthread.h>
#include <stdlib.h>

/* Where a cell forgets, the adjoints of a backward run fade below the smallest normal number.
   Processors are up to a hundred times slower with such numbers. So a backward run takes them for
   zero: it changes the processor's setting, and puts it back. Forward runs keep every bit of the
   states. */
#if FADES && defined __SSE2__
#include <xmmintrin.h>
typedef unsigned Setting;
static Setting setting(void) { return _mm_getcsr(); }
static void set(Setting s) { _mm_setcsr(s); }
#define FADING(s) ((s) | 0x8000)
#elif FADES && defined __aarch64__
typedef uint64_t Setting;
static Setting setting(void) { Setting s; __asm__ volatile("mrs %0, fpcr" : "=r"(s)); return s; }
static void set(Setting s) { __asm__ volatile("msr fpcr, %0" : : "r"(s) : "memory"); }
#define FADING(s) ((s) | 1 << 24)
#else
typedef int Setting;
static Setting setting(void) { return 0; }
static void set(Setting s) { (void)s; }
#define FADING(s) (s)
#endif

typedef struct { const int64_t *a; int64_t items, some, next; } Work;

/* Whoever is free takes the next few, until there are none: who comes late holds up nobody. */
static void share(void *given) {
  Work *w = given;
  const Setting before = setting();
  int64_t first;
  set(FADING(before));
  while ((first = __atomic_fetch_add(&w->next, w->some, __ATOMIC_RELAXED)) < w->items) {
    const int64_t last = first + w->some < w->items ? first + w->some : w->items;
    for (int64_t item = first; item < last; item++) group(w->a, item);
  }
  set(before);
}

static Work begun(const int64_t *a) {
  const int64_t items = count(a);
  large_results(a);
  return (Work){a, items, items / (8 * a[6] + 1) + 1, 0};
}

/* Work that helpers were asked for: they may come late, even when all is done and forgotten. */
typedef struct {
  Work work;
  pthread_mutex_t lock;
  pthread_cond_t idle;
  int known_to, active, over;
} Job;

/* under the lock, which it gives up */
static void forget(Job *job) {
  const int last = --job->known_to == 0;
  pthread_mutex_unlock(&job->lock);
  if (!last) return;
  pthread_mutex_destroy(&job->lock);
  pthread_cond_destroy(&job->idle);
  free(job);
}

static void help(void *given) {
  Job *job = given;
  pthread_mutex_lock(&job->lock);
  if (!job->over) {
    job->active++;
    pthread_mutex_unlock(&job->lock);
    share(&job->work);
    pthread_mutex_lock(&job->lock);
    if (--job->active == 0) pthread_cond_signal(&job->idle);
  }
  forget(job);
}

/* Ask one more thread to call help(job); return whether one will. */
typedef int Ask(const void *context, void (*help)(void *job), void *job);

void kernel_on_pool(const int64_t *a, Ask *ask, const void *context) {
  Work work = begun(a);
  const int64_t most = a[6] < work.items ? a[6] : work.items;
  Job *job = most > 1 ? malloc(sizeof *job) : 0;
  if (!job) { share(&work); return; }
  *job = (Job){.work = work, .known_to = most};
  pthread_mutex_init(&job->lock, 0);
  pthread_cond_init(&job->idle, 0);
  int64_t asked = 1;
  while (asked < most && ask(context, help, job)) asked++;
  share(&job->work);
  pthread_mutex_lock(&job->lock);
  job->over = 1;
  while (job->active) pthread_cond_wait(&job->idle, &job->lock);
  job->known_to -= most - asked;
  forget(job);
}

static void *thread(void *job) { help(job); return 0; }

/* Threads of our own end with the work: nothing is left that a fork could break. */
static int make_thread(const void *context, void (*task)(void *), void *job) {
  (void)context, (void)task;  /* it is help */
  pthread_t id;
  if (pthread_create(&id, 0, thread, job) != 0) return 0;
  pthread_detach(id);
  return 1;
}

/* On a team of OpenMP's threads, or on our own. */
void kernel(const int64_t *a) {
  if (!a[7] || a[6] < 2) { kernel_on_pool(a, make_thread, 0); return; }
  Work work = begun(a);
  ((void (*)(void (*)(void *), void *, unsigned, unsigned))a[7])(share, &work, a[6], 0);
}
