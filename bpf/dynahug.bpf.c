// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * dynahugd, kernel side: which thread is loading a model, what it calls, and what it leaves behind.
 *
 * A load is a span on a thread: from the open of a model file to its close (descriptor span), and
 * the time inside CPython's C unpickler (unpickling span, by uprobes). Calls are counted in place;
 * rare, telling calls go through the ring. Every table has a size, every overflow is counted.
 *
 * A program on every system call of the host costs all of it, so there is one only while a load may
 * be under way: dh_enter() counts. While ML processes live but load nothing, telling calls are seen
 * by tracepoints of their own: dh_call(). Otherwise nothing is on the way of system calls.
 *
 * Stable interfaces only: system-call tracepoints, sched_process_*, uprobes, helpers. No kernel
 * structure is read, so nothing has to be relocated.
 */
#include "compat.h"
#include "dynahug.h"

#define AT_FDCWD_ -100
#define O_ACCMODE_ 3
#define O_WRONLY_ 1
#if defined(DYNAHUG_X86)
#define O_NO_DATA_ 0x210000 /* O_PATH, O_DIRECTORY: nothing can be read */
#else
#define O_NO_DATA_ 0x204000
#endif
#define PROT_EXEC_ 4
#define AF_UNIX_ 1
#define CLONE_THREAD_ 0x00010000
#define PATH_MAX_ 4096

struct scratch {
	__u64 base;			/* where the last name of a path begins, see forget() */
	char front[DH_SUFFIX];		/* the end of a short path is read from here on */
	char path[PATH_MAX_ + DH_TEXT]; /* the slack keeps masked offsets in bounds */
};

DECLARE_MAP(ring, BPF_MAP_TYPE_RINGBUF, 0, 0, 0)
DECLARE_MAP(loads, BPF_MAP_TYPE_ARRAY, 4, sizeof(struct dh_load), BPF_F_MMAPABLE)
DECLARE_MAP(counters, BPF_MAP_TYPE_ARRAY, 4, sizeof(struct dh_counters), BPF_F_MMAPABLE)
DECLARE_MAP(losses, BPF_MAP_TYPE_ARRAY, 4, 8, BPF_F_MMAPABLE)
DECLARE_MAP(free_slots, BPF_MAP_TYPE_QUEUE, 0, 4, 0)
DECLARE_MAP(tasks, BPF_MAP_TYPE_HASH, 4, sizeof(struct dh_task), 0)
DECLARE_MAP(marks, BPF_MAP_TYPE_ARRAY, 4, DH_MARKS, BPF_F_MMAPABLE)
DECLARE_MAP(files, BPF_MAP_TYPE_HASH, sizeof(struct dh_file_key), 8, 0)
DECLARE_MAP(suffixes, BPF_MAP_TYPE_HASH, DH_SUFFIX, 4, 0)
DECLARE_MAP(known_globals, BPF_MAP_TYPE_HASH, sizeof(struct dh_global_key), 4, 0)
DECLARE_MAP(actions, BPF_MAP_TYPE_ARRAY, 4, 4, 0)
DECLARE_MAP(config, BPF_MAP_TYPE_ARRAY, 4, sizeof(struct dh_config), 0)
DECLARE_MAP(newcomers, BPF_MAP_TYPE_QUEUE, 0, 4, 0)
DECLARE_MAP(scratches, BPF_MAP_TYPE_PERCPU_ARRAY, 4, sizeof(struct scratch), 0)

struct syscall_args {
	__u64 a[6];
};

/*
 * The smaller of n and a mask (2^k - 1), in a way that the verifier can follow: without the barrier
 * the compiler drops the mask as redundant, and the verifier does not see the comparison.
 */
static __always_inline __u64 at_most(__u64 n, __u64 mask)
{
	if (n > mask)
		n = mask;
	asm volatile("" : "+r"(n));
	return n & mask;
}

/* ---- tables ------------------------------------------------------------------------------- */

static __always_inline void lose(__u32 reason, struct dh_load *l)
{
	__u64 *n = bpf_map_lookup_elem(MAP(losses), &reason);

	if (n)
		__sync_fetch_and_add(n, 1);
	if (l)
		__sync_fetch_and_add(&l->lost, 1);
}

static __always_inline struct dh_config *configuration(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(MAP(config), &zero);
}

static __always_inline struct scratch *scratch_of_cpu(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(MAP(scratches), &zero);
}

/*
 * The byte that tells whether a task is in the table: nearly all system calls of a host are of tasks
 * that are not, and for these a byte costs half of what a look into the table does.
 */
static __always_inline __u8 *mark_of(__u32 tid)
{
	__u32 word = tid / DH_MARKS;
	__u8 *bytes = bpf_map_lookup_elem(MAP(marks), &word);

	return bytes ? bytes + (tid & (DH_MARKS - 1)) : 0;
}

static __always_inline struct dh_task *task_of(__u32 tid)
{
	__u8 *mark = mark_of(tid);

	if (mark && !*mark)
		return 0;
	return bpf_map_lookup_elem(MAP(tasks), &tid);
}

static __always_inline int add_task(__u32 tid, struct dh_task *t, struct dh_load *l)
{
	__u8 *mark = mark_of(tid);

	if (bpf_map_update_elem(MAP(tasks), &tid, t, BPF_ANY)) {
		lose(DH_LOST_TASKS, l);
		return 0;
	}
	if (mark)
		*mark = 1;
	return 1;
}

static __always_inline void drop_task(__u32 tid)
{
	__u8 *mark = mark_of(tid);

	if (mark)
		*mark = 0;
	bpf_map_delete_elem(MAP(tasks), &tid);
}

/* The load with this id, or NULL when its slot has been freed since: ids are never used twice. */
static __always_inline struct dh_load *load_of(__u64 id)
{
	__u32 slot = id & 0xffff;
	struct dh_load *l;

	if (!id)
		return 0;
	l = bpf_map_lookup_elem(MAP(loads), &slot);
	if (!l || l->id != id || l->state == DH_FREE)
		return 0;
	return l;
}

static __always_inline void count(__u64 id, __u32 bank, __u32 nr)
{
	__u32 slot = id & 0xffff;
	struct dh_counters *c = bpf_map_lookup_elem(MAP(counters), &slot);

	/* Several threads can belong to one load, so the addition has to be atomic. */
	if (c && bank < DH_BANKS)
		__sync_fetch_and_add(&c->calls[bank][nr & (DH_SYSCALLS - 1)], 1);
}

/* In which bank a task's calls count. */
static __always_inline __u32 bank_of(struct dh_task *t)
{
	if (t->flags & DH_TASK_CHILD)
		return DH_CHILDREN;
	return t->depth ? DH_WITHIN : DH_OUTSIDE;
}

static __always_inline struct dh_task *track(__u32 tgid, __u32 tid, __u32 flags)
{
	struct dh_config *config = configuration();
	struct dh_task fresh = {};
	struct dh_task *t;

	if (!config || config->self == tgid)
		return 0;
	t = task_of(tid);
	if (t) {
		t->flags |= flags;
		return t;
	}
	fresh.tgid = tgid;
	fresh.flags = flags;
	return add_task(tid, &fresh, 0) ? task_of(tid) : 0;
}

/* ---- records ------------------------------------------------------------------------------ */

static __always_inline struct dh_record *reserve(struct dh_task *t, struct dh_load *l, __u16 kind)
{
	struct dh_record *r = bpf_ringbuf_reserve(MAP(ring), sizeof(*r), 0);
	__u64 ids = bpf_get_current_pid_tgid();

	if (!r) {
		lose(DH_LOST_RING, l);
		return 0;
	}
	__builtin_memset(r, 0, sizeof(*r));
	r->time = bpf_ktime_get_ns();
	r->tgid = ids >> 32;
	r->tid = (__u32)ids;
	r->kind = kind;
	r->cgroup = bpf_get_current_cgroup_id();
	r->uid = (__u32)bpf_get_current_uid_gid();
	bpf_get_current_comm(r->comm, sizeof(r->comm));
	if (l) {
		r->load = l->id;
		if (l->state == DH_ENDED)
			r->flags |= DH_AFTER;
		if (l->memory)
			r->flags |= DH_MEMORY;
	}
	if (t) {
		if (t->flags & DH_TASK_CHILD)
			r->flags |= DH_DESCENDANT | (t->flags & DH_TASK_INSIDE ? DH_INSIDE : 0);
		else if (t->depth)
			r->flags |= DH_INSIDE;
	}
	return r;
}

/* The text of a path in the scratch area, whole or its two ends. n counts the final NUL. */
static __always_inline void put_path(struct dh_record *r, struct scratch *s, long n)
{
	if (n <= 0) {
		r->flags |= DH_UNREADABLE;
		return;
	}
	r->length = n - 1;
	if (n <= DH_TEXT) {
		__builtin_memcpy(r->text, s->path, DH_TEXT);
		r->text[at_most(n - 1, DH_TEXT - 1)] = 0;
		/* What an earlier, longer path left in the scratch area lies behind the NUL. */
		return;
	}
	r->flags |= DH_TRUNCATED;
	__builtin_memcpy(r->text, s->path, DH_HALF);
	bpf_probe_read_kernel(r->text + DH_HALF, DH_HALF,
			      s->path + ((n - 1 - DH_HALF) & (PATH_MAX_ - 1)));
}

/* The path at a user address, whole or its two ends. */
static __always_inline void put_text(struct dh_record *r, __u64 address)
{
	long n = bpf_probe_read_user_str(r->text, DH_TEXT, (const void *)address);
	struct scratch *s;

	if (n < 0) {
		r->flags |= DH_UNREADABLE;
		return;
	}
	r->length = n - 1;
	s = n == DH_TEXT ? scratch_of_cpu() : 0;
	if (!s)
		return;
	n = bpf_probe_read_user_str(s->path, PATH_MAX_, (const void *)address);
	if (n > DH_TEXT && n <= PATH_MAX_)
		put_path(r, s, n);
}

/*
 * One of two paths, in its half of the text. Of a longer one its two ends: the end tells what file
 * it is, such as bytecode under __pycache__ in a deep folder.
 */
static __always_inline void put_half(struct dh_record *r, __u32 at, __u64 address)
{
	long n = bpf_probe_read_user_str(r->text + at, DH_HALF, (const void *)address);
	struct scratch *s;

	if (n < 0) {
		r->flags |= DH_UNREADABLE;
		return;
	}
	s = n == DH_HALF ? scratch_of_cpu() : 0;
	if (!s)
		return;
	n = bpf_probe_read_user_str(s->path, PATH_MAX_, (const void *)address);
	if (n <= DH_HALF || n > PATH_MAX_)
		return;
	__builtin_memcpy(r->text + at + DH_FRONT, DH_ELLIPSIS, sizeof(DH_ELLIPSIS) - 1);
	bpf_probe_read_kernel(r->text + at + DH_HALF - DH_BACK, DH_BACK,
			      s->path + ((n - DH_BACK) & (PATH_MAX_ - 1)));
}

static __always_inline void end_load(struct dh_task *t, struct dh_load *l, __u32 reason)
{
	struct dh_record *r;

	/* Two threads may end one load at once: two records, of which the reader takes the first. */
	if (l->state != DH_OPENED)
		return;
	l->reason = reason;
	l->state = DH_ENDED;
	r = reserve(t, l, DH_END);
	if (r) {
		r->args[0] = reason;
		bpf_ringbuf_submit(r, 0);
	}
}

/* Take a slot and make the task the loader. The path, if any, is in the scratch area. */
static __always_inline struct dh_load *begin_load(struct dh_task *t, __u64 fd, struct scratch *s,
						  long n, __u64 open_flags)
{
	__u64 ids = bpf_get_current_pid_tgid(), now = bpf_ktime_get_ns(), id;
	struct dh_config *config = configuration();
	struct dh_record *r;
	struct dh_load *l;
	__u32 slot;

	if (bpf_map_pop_elem(MAP(free_slots), &slot)) {
		lose(DH_LOST_LOADS, 0);
		return 0;
	}
	l = bpf_map_lookup_elem(MAP(loads), &slot);
	if (!l)
		return 0;
	/* Microseconds since boot and the slot: a slot is not reused within a microsecond. */
	id = (now >> 10) << 16 | slot;
	l->begin = t->depth ? t->unpickle : now;
	l->touched = now;
	l->active = now;
	l->reason = 0;
	l->refs = 0;
	l->inside = t->depth ? 1 : 0;
	l->exact = 0;
	l->quiet = 0;
	l->memory = s ? 0 : 1;
	l->lost = 0;
	l->tgid = ids >> 32;
	l->tid = (__u32)ids;
	l->fd = (__u32)fd;
	l->uid = (__u32)bpf_get_current_uid_gid();
	l->id = id;
	l->state = DH_OPENED;
	t->last = t->load;
	t->load = id;
	t->flags &= ~(DH_TASK_CHILD | DH_TASK_INSIDE);
	if (config && l->begin < config->watched)
		lose(DH_LOST_LATE, l);

	r = reserve(t, l, DH_BEGIN);
	if (r) {
		if (config && l->begin < config->counted)
			r->flags |= DH_UNCOUNTED;
		r->args[0] = fd;
		r->args[1] = open_flags;
		r->args[2] = l->begin;
		if (s)
			put_path(r, s, n);
		bpf_ringbuf_submit(r, 0);
	}
	return l;
}

/* ---- belonging ---------------------------------------------------------------------------- */

/* The load that the task belongs to now. A stale or finished one is dropped here. */
static __always_inline struct dh_load *current_load(struct dh_task *t)
{
	struct dh_load *l;

	if (!t->load)
		return 0;
	l = load_of(t->load);
	if (l && t->flags & DH_TASK_CHILD)
		return l;
	if (l && l->state == DH_OPENED && (t->depth || !(l->exact == DH_EXACT || l->quiet)))
		return l;
	if (l && l->state == DH_OPENED)
		t->last = t->load; /* only what is inside a pickle counts: leave it for now */
	t->load = 0;
	t->flags &= ~(DH_TASK_CHILD | DH_TASK_INSIDE);
	return 0;
}

/* Back to the load that was open around the one that has just ended. */
static __always_inline void fall_back(struct dh_task *t)
{
	t->load = t->last;
	t->last = 0;
	current_load(t);
}

/* A descendant that was born outside any pickle and starts a load of its own is its own master. */
static __always_inline void emancipate(struct dh_task *t)
{
	struct dh_load *l;

	if (!(t->flags & DH_TASK_CHILD) || t->flags & DH_TASK_INSIDE)
		return;
	l = load_of(t->load);
	if (l)
		__sync_fetch_and_add(&l->refs, -1);
	t->load = 0;
	t->flags &= ~DH_TASK_CHILD;
}

static __always_inline struct dh_load *load_of_file(__u32 tgid, __u32 fd, struct dh_file_key *key)
{
	__u64 *id;

	key->tgid = tgid;
	key->fd = fd;
	id = bpf_map_lookup_elem(MAP(files), key);
	return id ? load_of(*id) : 0;
}

/* The thread uses a descriptor: if it is a model's, the thread is (again) loading that model. */
static __always_inline void touch(struct dh_task *t, __u32 fd, __u32 nr)
{
	struct dh_file_key key;
	struct dh_load *l;

	if (t->flags & DH_TASK_CHILD)
		return;
	l = load_of_file(t->tgid, fd, &key);
	if (!l || l->state != DH_OPENED)
		return;
	l->touched = l->active = bpf_ktime_get_ns();
	if (t->depth) {
		/* The unpickler itself reads this file: from now on its span is the load. */
		if (l->exact != DH_EXACT)
			l->exact = DH_EXACT;
		if (!current_load(t)) {
			t->load = l->id;
			__sync_fetch_and_add(&l->inside, 1);
		}
	} else if (l->exact == DH_EXACT || l->quiet) {
		count(l->id, DH_OUTSIDE, nr);
	} else if (t->load != l->id) {
		t->last = t->load;
		t->load = l->id;
	}
}

static __always_inline void closing(struct dh_task *t, __u32 fd, __u32 nr)
{
	struct dh_file_key key;
	struct dh_load *l = load_of_file(t->tgid, fd, &key);

	if (!l)
		return;
	bpf_map_delete_elem(MAP(files), &key);
	if (t->load != l->id)
		count(l->id, DH_OUTSIDE, nr);
	if (t->depth && t->load == l->id)
		return; /* closed from inside its own pickle: the load goes on until that returns */
	end_load(t, l, DH_CLOSED);
	/* A descendant stays one: a program executed in place closes what has the same number now. */
	if (t->load == l->id && !(t->flags & DH_TASK_CHILD))
		fall_back(t);
}

/* ---- paths -------------------------------------------------------------------------------- */

/*
 * The value of the suffix that ends before position end (exclusive), 0 for none; *dot is where its
 * dot stands. 1: a model's suffix. 2: a wrapper (.gz, .tar): the suffix before it decides.
 * Keys have bit 5 set in every byte, padding included, on both sides: letters of any case match.
 */
static __always_inline __u32 suffix_at(struct scratch *s, __u32 end, __u32 *dot)
{
	__u64 key[DH_SUFFIX / 8] = {};
	__u32 *value, i, length = 0, over = 0;
	char tail[DH_SUFFIX];

	bpf_probe_read_kernel(tail, sizeof(tail), s->front + (end & (PATH_MAX_ - 1)));
#pragma unroll
	for (i = 1; i <= DH_SUFFIX; i++) {
		char c = tail[DH_SUFFIX - i];

		if (i > end || c == '/')
			over = 1;
		else if (c == '.' && !over) {
			length = i - 1;
			over = 1;
		}
	}
	if (!length)
		return 0;
	*dot = end - length - 1;
	bpf_probe_read_kernel(key, at_most(length, DH_SUFFIX - 1),
			      s->path + ((end - length) & (PATH_MAX_ - 1)));
#pragma unroll
	for (i = 0; i < DH_SUFFIX / 8; i++)
		key[i] |= 0x2020202020202020ULL;
	value = bpf_map_lookup_elem(MAP(suffixes), key);
	return value ? *value : 0;
}

static __always_inline __u32 basename_at(struct scratch *s, long n)
{
	__u32 i;

	for (i = 2; i < 66; i++) {
		if (i > n)
			return 0;
		if (s->path[(n - i) & (PATH_MAX_ - 1)] == '/')
			return n - i + 1;
	}
	return PATH_MAX_; /* longer than any name that we look for */
}

/*
 * A number as the verifier cannot know it: else it follows each end of the search for the last slash
 * through all that comes after it, and gives up.
 */
static __always_inline __u32 forget(struct scratch *s, __u32 base)
{
	*(volatile __u64 *)&s->base = base;
	return *(volatile __u64 *)&s->base;
}

#define AT(k) (s->path[((b) + (k)) & (PATH_MAX_ - 1)])

/*
 * The .pth files beside installed packages are lines for the module site, which reads all of them
 * at the start of every interpreter: torch's suffix, but no models.
 */
static __always_inline int is_path_file(struct scratch *s, long n, __u32 b)
{
	__u64 folder[2] = {};
	__u32 ends = 0;

	if (b < 16 || b == PATH_MAX_)
		return 0;
	bpf_probe_read_kernel(&ends, sizeof(ends), s->path + ((n - 5) & (PATH_MAX_ - 1)));
	bpf_probe_read_kernel(folder, sizeof(folder), s->path + ((b - 16) & (PATH_MAX_ - 1)));
	/* ".pth" in "?/site-packages/" or "?/dist-packages/"; both architectures are little-endian. */
	return ends == 0x6874702e && folder[1] == 0x2f736567616b6361ULL &&
	       (folder[0] >> 8 == 0x702d657469732fULL || folder[0] >> 8 == 0x702d747369642fULL);
}

static __always_inline int is_model(struct scratch *s, long n)
{
	__u32 dot = 0, kind;

	if (n < 3)
		return 0;
	kind = suffix_at(s, n - 1, &dot);
	if (kind == 2)
		kind = suffix_at(s, dot, &dot);
	return kind == 1;
}

static __always_inline int is_python(struct scratch *s, long n)
{
	__u32 b = basename_at(s, n);

	return b != PATH_MAX_ && AT(0) == 'p' && AT(1) == 'y' && AT(2) == 't' && AT(3) == 'h' &&
	       AT(4) == 'o' && AT(5) == 'n';
}

/* Whether a path can be a library's: it ends as .so or .so.1 do. */
static __always_inline int is_library(struct scratch *s, long n)
{
	char last;

	if (n < 8)
		return 0;
	last = s->path[(n - 2) & (PATH_MAX_ - 1)];
	return last == 'o' || (last >= '0' && last <= '9');
}

/* libpython*, libtorch*, _pickle*: the libraries that make a process an ML process. */
static __always_inline int is_runtime(struct scratch *s, __u32 b)
{
	if (b == PATH_MAX_)
		return 0;
	if (AT(0) == '_')
		return AT(1) == 'p' && AT(2) == 'i' && AT(3) == 'c' && AT(4) == 'k' &&
		       AT(5) == 'l' && AT(6) == 'e' && AT(7) == '.';
	if (AT(0) != 'l' || AT(1) != 'i' || AT(2) != 'b')
		return 0;
	return (AT(3) == 'p' && AT(4) == 'y' && AT(5) == 't' && AT(6) == 'h' && AT(7) == 'o' &&
		AT(8) == 'n') ||
	       (AT(3) == 't' && AT(4) == 'o' && AT(5) == 'r' && AT(6) == 'c' && AT(7) == 'h');
}

static __always_inline void report_runtime(struct dh_task *t, struct scratch *s, long n)
{
	struct dh_record *r = reserve(t, 0, DH_RUNTIME);

	if (!r)
		return;
	if (s)
		put_path(r, s, n);
	bpf_ringbuf_submit(r, 0);
}

/* ---- system calls ------------------------------------------------------------------------- */

static __always_inline void read_args(struct bpf_raw_tracepoint_args *ctx,
				      struct syscall_args *args)
{
	__u64 w[SYSCALL_WORDS] = {};

	bpf_probe_read_kernel(w, sizeof(w), (const __u64 *)ctx->args[0] + SYSCALL_FIRST);
	args->a[0] = SYSCALL_ARG(w, 0);
	args->a[1] = SYSCALL_ARG(w, 1);
	args->a[2] = SYSCALL_ARG(w, 2);
	args->a[3] = SYSCALL_ARG(w, 3);
	args->a[4] = SYSCALL_ARG(w, 4);
	args->a[5] = SYSCALL_ARG(w, 5);
}

static __always_inline void put_address(struct dh_record *r, __u64 address, __u64 length)
{
	length = at_most(length, DH_HALF - 1);
	if (bpf_probe_read_user(r->text, length, (const void *)address))
		r->flags |= DH_UNREADABLE;
	else
		r->length = length;
}

/*
 * multiprocessing hands descriptors over through a socket named listener-xxxxxxxx: a queue of
 * tensors connects to it at every message. That alone makes no load; see docs/limits.md.
 */
static __always_inline int is_queue(__u32 action, struct syscall_args *args)
{
	char name[144] = {};
	__u16 family = 0;
	__u64 b;
	long n;

	if (action != DH_ADDR1)
		return 0;
	bpf_probe_read_user(&family, sizeof(family), (const void *)args->a[1]);
	if (family != AF_UNIX_)
		return 0;
	n = bpf_probe_read_user_str(name, 108, (const void *)(args->a[1] + 2));
	if (n < 19 || n > 108)
		return 0;
	b = at_most(n - 18, 127);
	return name[b] == 'l' && name[b + 1] == 'i' && name[b + 2] == 's' && name[b + 3] == 't' &&
	       name[b + 4] == 'e' && name[b + 5] == 'n' && name[b + 6] == 'e' &&
	       name[b + 7] == 'r' && name[b + 8] == '-';
}

static __always_inline int is_telling(__u32 action, struct syscall_args *args)
{
	__u64 name = 0;

	switch (action) {
	case DH_MMAP:
	case DH_MPROTECT:
		return (args->a[2] & PROT_EXEC_) != 0;
	case DH_ADDR4:
		return args->a[4] != 0;
	case DH_MSG1:
		bpf_probe_read_user(&name, sizeof(name), (const void *)args->a[1]);
		return name != 0;
	default:
		return action >= DH_PLAIN;
	}
}

static __always_inline void report_call(struct dh_task *t, struct dh_load *l, __u32 nr,
					__u32 action, struct syscall_args *args)
{
	struct dh_record *r = reserve(t, l, DH_CALL);
	__u64 name = 0;
	__u32 length = 0;

	if (!r)
		return;
	r->nr = nr;
	r->args[0] = args->a[0];
	r->args[1] = args->a[1];
	r->args[2] = args->a[2];
	switch (action) {
	case DH_MMAP:
		r->args[1] = args->a[3]; /* flags; the length tells nothing */
		r->args[0] = args->a[4]; /* descriptor */
		break;
	case DH_PATH0:
		put_text(r, args->a[0]);
		break;
	case DH_PATH1:
		put_text(r, args->a[1]);
		break;
	case DH_PATHS01:
		put_half(r, 0, args->a[0]);
		put_half(r, DH_HALF, args->a[1]);
		break;
	case DH_PATHS13:
		put_half(r, 0, args->a[1]);
		put_half(r, DH_HALF, args->a[3]);
		break;
	case DH_PATHS02:
		put_half(r, 0, args->a[0]);
		put_half(r, DH_HALF, args->a[2]);
		break;
	case DH_ADDR1:
		put_address(r, args->a[1], args->a[2]);
		break;
	case DH_ADDR4:
		put_address(r, args->a[4], args->a[5]);
		break;
	case DH_MSG1:
		bpf_probe_read_user(&name, sizeof(name), (const void *)args->a[1]);
		bpf_probe_read_user(&length, sizeof(length), (const void *)(args->a[1] + 8));
		put_address(r, name, length);
		break;
	}
	bpf_ringbuf_submit(r, 0);
}

/* An open by a task that is not tracked: the first sign of an interpreter loaded as a library. */
static __always_inline void notice_runtime(struct syscall_args *args, __u32 action)
{
	__u64 address = action == DH_OPEN01 ? args->a[0] : args->a[1];
	__u64 ids = bpf_get_current_pid_tgid();
	struct scratch *s = scratch_of_cpu();
	struct dh_task *t;
	long n;

	if (!s)
		return;
	n = bpf_probe_read_user_str(s->path, PATH_MAX_, (const void *)address);
	if (n <= 0 || n > PATH_MAX_ || !is_library(s, n) || !is_runtime(s, basename_at(s, n)))
		return;
	t = track(ids >> 32, (__u32)ids, DH_TASK_ML);
	if (t)
		report_runtime(t, s, n);
}

/* A tracked task makes a system call: it counts, and may be telling. */
static __always_inline void entered(struct dh_task *t, __u32 nr, __u32 action,
				    struct syscall_args *args)
{
	struct dh_load *l;

	if (action == DH_TOUCH)
		touch(t, args->a[0], nr);
	else if (action == DH_MMAP && (__s32)args->a[4] >= 0)
		touch(t, args->a[4], nr);
	l = current_load(t);
	if (l && l->state == DH_OPENED)
		count(l->id, bank_of(t), nr);

	switch (action) {
	case DH_TOUCH:
		return;
	case DH_CLOSE:
		closing(t, args->a[0], nr);
		return;
	case DH_DUP2:
		closing(t, args->a[1], nr);
		return;
	case DH_OPEN01:
		t->open_path = args->a[0];
		t->open_flags = args->a[1];
		t->open_dirfd = (__u32)AT_FDCWD_;
		t->open_nr = nr;
		return;
	case DH_OPEN12:
		t->open_path = args->a[1];
		t->open_flags = args->a[2];
		t->open_dirfd = args->a[0];
		t->open_nr = nr;
		return;
	case DH_OPENHOW:
		t->open_path = args->a[1];
		t->open_flags = 0;
		bpf_probe_read_user(&t->open_flags, 8, (const void *)args->a[2]);
		t->open_dirfd = args->a[0];
		t->open_nr = nr;
		return;
	case DH_CLONE:
		t->clone_flags = args->a[0];
		break;
	case DH_CLONE3:
		t->clone_flags = 0;
		bpf_probe_read_user(&t->clone_flags, 4, (const void *)args->a[0]);
		break;
	case DH_FORK:
		t->clone_flags = 0;
		break;
	}
	if (action >= DH_CLONE && action <= DH_FORK) {
		/* The child has to find a load to belong to. */
		if (!l && t->depth)
			begin_load(t, -1, 0, 0, 0);
		return;
	}
	if ((!l && !t->depth) || !is_telling(action, args))
		return;
	if (!l) {
		if (is_queue(action, args))
			return;
		l = begin_load(t, -1, 0, 0, 0);
		if (l)
			count(l->id, DH_WITHIN, nr);
	}
	if (l)
		report_call(t, l, nr, action, args);
}

/* Every system call of the host, but for those that have a tracepoint of their own. */
SEC("raw_tp/sys_enter")
int dh_enter(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct dh_task *t = task_of(tid);
	__u64 number = ctx->args[1];
	__u32 nr = number < DH_SYSCALLS ? number : DH_SYSCALLS - 1;
	__u32 *entry = bpf_map_lookup_elem(MAP(actions), &nr), action;
	struct syscall_args args;
	struct dh_load *l;

	if (!entry)
		return 0;
	action = *entry;
	if (action & DH_APART || action == DH_IGNORE)
		return 0;
	if (!t) {
		if (action >= DH_OPEN01 && action <= DH_OPENHOW) {
			read_args(ctx, &args);
			notice_runtime(&args, action);
		}
		return 0;
	}
	if (action == DH_NOTHING) {
		l = current_load(t);
		if (l && l->state == DH_OPENED)
			count(l->id, bank_of(t), nr);
		return 0;
	}
	read_args(ctx, &args);
	entered(t, nr, action, &args);
	return 0;
}

struct call_args {
	__u64 common;
	__u32 nr;
};
#define CALL_ARGS 16 /* offset of the arguments, as many as the call has, in any sys_enter_* */

/*
 * The same for one system call, by a tracepoint of its own. In the table of actions the call is
 * apart from when this sees it on: so that, whatever else is attached, each call is seen to once.
 * The kernel refuses a program that reads more arguments than the call has, hence the helper; what
 * lies behind the last is not looked at.
 */
SEC("tp/syscalls/sys_enter_openat")
int dh_call(struct call_args *ctx)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid(), nr = ctx->nr;
	struct dh_task *t = task_of(tid);
	__u32 *entry, action;
	struct syscall_args args;

	if (nr >= DH_SYSCALLS)
		return 0;
	entry = bpf_map_lookup_elem(MAP(actions), &nr);
	if (!entry || !(*entry & DH_APART))
		return 0;
	action = *entry & ~DH_APART;
	if (!t && (action < DH_OPEN01 || action > DH_OPENHOW))
		return 0;
	bpf_probe_read_kernel(&args, sizeof(args), (const char *)ctx + CALL_ARGS);
	if (t)
		entered(t, nr, action, &args);
	else
		notice_runtime(&args, action);
	return 0;
}

/* A call that opens a file has returned. */
static __always_inline int opened(__s64 ret)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct dh_task *t = task_of(tid);
	struct dh_file_key key = {};
	struct dh_record *r;
	struct dh_load *l;
	struct scratch *s;
	__u64 address;
	__u32 b;
	long n;

	if (!t || !t->open_path)
		return 0;
	s = scratch_of_cpu();
	if (!s)
		return 0;
	/* Read at the return: by then the page is present, and only what was opened matters. */
	address = t->open_path;
	t->open_path = 0;
	n = bpf_probe_read_user_str(s->path, PATH_MAX_, (const void *)address);
	if (n > PATH_MAX_)
		return 0;
	b = forget(s, n > 0 ? basename_at(s, n) : PATH_MAX_);

	if (ret >= 0) {
		/* The descriptor was free: whatever load still claims it was closed unseen. */
		l = load_of_file(t->tgid, ret, &key);
		if (l)
			end_load(t, l, DH_CLOSED);
		if (n > 0 && is_library(s, n) && is_runtime(s, b))
			report_runtime(t, s, n);
	}
	if (ret >= 0 && n > 0 && t->flags & DH_TASK_ML && !t->depth &&
	    (t->open_flags & O_ACCMODE_) != O_WRONLY_ && !(t->open_flags & O_NO_DATA_) &&
	    is_model(s, n) && !is_path_file(s, n, b)) {
		emancipate(t);
		if (!(t->flags & DH_TASK_CHILD)) {
			current_load(t);
			l = begin_load(t, ret, s, n, t->open_flags);
			if (!l)
				return 0;
			count(l->id, DH_OUTSIDE, t->open_nr);
			key.tgid = t->tgid;
			key.fd = ret;
			if (bpf_map_update_elem(MAP(files), &key, &l->id, BPF_ANY))
				lose(DH_LOST_FILES, l);
			return 0;
		}
	}
	l = current_load(t);
	if (!l) {
		if (!t->depth)
			return 0;
		if (n > 9 && s->path[0] == '/' && s->path[1] == 'd' && s->path[2] == 'e' &&
		    s->path[3] == 'v' && s->path[4] == '/' && s->path[5] == 's' &&
		    s->path[6] == 'h' && s->path[7] == 'm' && s->path[8] == '/')
			return 0; /* shared memory of a queue's tensors */
		l = begin_load(t, -1, 0, 0, 0);
		if (!l)
			return 0;
		count(l->id, DH_WITHIN, t->open_nr);
	}
	if (l->state == DH_ENDED && !(t->open_flags & ~0x98000ULL) && ret < 0)
		return 0; /* after the span, a read-only open that failed tells nothing */
	r = reserve(t, l, DH_OPEN);
	if (!r)
		return 0;
	r->nr = t->open_nr;
	r->ret = ret;
	r->args[0] = t->open_flags;
	r->args[1] = address;
	r->args[2] = (__u64)(__s64)(__s32)t->open_dirfd;
	put_path(r, s, n);
	bpf_ringbuf_submit(r, 0);
	return 0;
}

struct exit_args {
	__u64 common;
	__u64 nr;
	__s64 ret;
};

SEC("tp/syscalls/sys_exit_openat")
int dh_opened(struct exit_args *ctx)
{
	return opened(ctx->ret);
}

/* The same at the return of every call, for where perf events are refused. */
SEC("raw_tp/sys_exit")
int dh_returned(struct bpf_raw_tracepoint_args *ctx)
{
	return opened(ctx->args[1]);
}

/* ---- tasks -------------------------------------------------------------------------------- */

/* The tracepoint's arguments: the parent's and the child's task_struct. */
SEC("raw_tp/sched_process_fork")
int dh_fork(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 ids = bpf_get_current_pid_tgid();
	struct dh_task *t = task_of((__u32)ids), child = {};
	struct dh_config *config = configuration();
	struct dh_record *r;
	struct dh_load *l;
	__u32 tid = 0, thread;

	if (!t || !config)
		return 0;
	bpf_probe_read_kernel(&tid, sizeof(tid), (const char *)ctx->args[1] + config->task_pid);
	if (!tid)
		return 0;
	thread = t->clone_flags & CLONE_THREAD_;
	l = current_load(t);
	if (!l && !(t->flags & DH_TASK_ML))
		return 0;
	child.tgid = thread ? t->tgid : tid;
	child.flags = t->flags & DH_TASK_ML;
	if (l) {
		child.load = l->id;
		child.flags |= DH_TASK_CHILD;
		if (t->flags & DH_TASK_CHILD ? t->flags & DH_TASK_INSIDE : t->depth)
			child.flags |= DH_TASK_INSIDE;
	}
	if (!add_task(tid, &child, l) || !l)
		return 0;
	__sync_fetch_and_add(&l->refs, 1);
	r = reserve(t, l, DH_BIRTH);
	if (r) {
		r->args[0] = tid;
		r->args[1] = t->clone_flags;
		bpf_ringbuf_submit(r, 0);
	}
	return 0;
}

/* The tracepoint's arguments: the task, the number it had before, the linux_binprm. */
SEC("raw_tp/sched_process_exec")
int dh_exec(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 ids = bpf_get_current_pid_tgid(), name = 0;
	__u32 tgid = ids >> 32, tid = (__u32)ids, old = ctx->args[1];
	struct dh_config *config = configuration();
	struct scratch *s = scratch_of_cpu();
	struct dh_task *t, *before;
	struct dh_record *r;
	struct dh_load *l;
	int python;
	long n;

	if (!s || !config)
		return 0;
	bpf_probe_read_kernel(&name, sizeof(name),
			      (const char *)ctx->args[2] + config->program_filename);
	n = bpf_probe_read_kernel_str(s->path, PATH_MAX_, (const void *)name);
	if (n <= 0 || n > PATH_MAX_)
		return 0;
	python = is_python(s, n);

	if (old != tid) {
		/* A thread other than the first has taken over the process and its number. */
		before = task_of(old);
		if (before) {
			struct dh_task copy = *before;

			drop_task(old);
			add_task(tid, &copy, 0);
		}
	}
	t = task_of(tid);
	if (!t) {
		if (!python) {
			/* Nobody sees it open an interpreter's library: user space will look. */
			if (config->watched == DH_NEVER)
				bpf_map_push_elem(MAP(newcomers), &tgid, BPF_EXIST);
			return 0;
		}
		t = track(tgid, tid, DH_TASK_ML);
		if (t)
			report_runtime(t, s, n);
		return 0;
	}

	l = current_load(t);
	if (l && !(t->flags & DH_TASK_CHILD)) {
		/* The loader itself is replaced: what the new program does descends from the load. */
		__sync_fetch_and_add(&l->refs, 1);
		t->flags |= DH_TASK_CHILD | (t->depth ? DH_TASK_INSIDE : 0);
		end_load(t, l, DH_REPLACED);
	}
	t->depth = 0;
	t->last = 0;
	t->open_path = 0;
	if (python)
		t->flags |= DH_TASK_ML;
	else
		t->flags &= ~DH_TASK_ML;
	if (python)
		report_runtime(t, s, n);
	if (!l) {
		if (!python)
			drop_task(tid);
		return 0;
	}
	r = reserve(t, l, DH_EXEC);
	if (r) {
		put_path(r, s, n);
		bpf_ringbuf_submit(r, 0);
	}
	return 0;
}

SEC("raw_tp/sched_process_exit")
int dh_exit(void *ctx)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct dh_task *t = task_of(tid);
	struct dh_load *l;

	if (!t)
		return 0;
	l = load_of(t->load);
	if (l && t->flags & DH_TASK_CHILD)
		__sync_fetch_and_add(&l->refs, -1);
	else if (l && l->tid == tid)
		end_load(t, l, DH_EXITED);
	l = load_of(t->last);
	if (l && l->tid == tid)
		end_load(t, l, DH_EXITED);
	drop_task(tid);
	return 0;
}

/* ---- the unpickler ------------------------------------------------------------------------ */

SEC("uprobe")
int dh_runtime(void *ctx)
{
	__u64 ids = bpf_get_current_pid_tgid();
	struct dh_task *t = track(ids >> 32, (__u32)ids, DH_TASK_ML);

	if (t)
		report_runtime(t, 0, 0);
	return 0;
}

SEC("uprobe")
int dh_unpickle(void *ctx)
{
	__u64 ids = bpf_get_current_pid_tgid(), now, sp = ((__u64 *)ctx)[REGS_SP];
	struct dh_task *t = task_of((__u32)ids);
	struct dh_config *config;
	struct dh_load *l;

	if (!t) {
		t = track(ids >> 32, (__u32)ids, DH_TASK_ML);
		if (!t)
			return 0;
		report_runtime(t, 0, 0);
	}
	/*
	 * The kernel keeps at most 64 pending return probes of a thread and drops more without a
	 * word, so after a deep nesting the depth could stay above zero for ever. The stack grows
	 * down: an entry at or above the outermost frame proves that this one has returned.
	 */
	if (t->depth && sp >= t->stack) {
		if (t->flags & DH_TASK_DEEP)
			lose(DH_LOST_DEPTH, load_of(t->load));
		t->depth = 0;
	}
	if (t->depth) {
		t->depth++;
		if (t->depth > DH_MAX_DEPTH)
			t->flags |= DH_TASK_DEEP;
		return 0;
	}
	now = bpf_ktime_get_ns();
	emancipate(t);
	l = current_load(t);
	t->depth = 1;
	t->unpickle = now;
	t->stack = sp;
	t->flags &= ~DH_TASK_DEEP;
	config = configuration();
	if (config && now < config->watched)
		lose(DH_LOST_LATE, l);
	if (!l && t->last) {
		/* The second pickle of a file may lie in a buffer that the first one has filled. */
		l = load_of(t->last);
		if (l && config && l->state == DH_OPENED && now - l->touched < config->rejoin)
			t->load = t->last;
		else
			l = 0;
	}
	if (l && !(t->flags & DH_TASK_CHILD))
		__sync_fetch_and_add(&l->inside, 1);
	return 0;
}

SEC("uprobe")
int dh_unpickled(void *ctx)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct dh_task *t = task_of(tid);
	struct dh_config *config;
	struct dh_file_key key;
	struct dh_load *l;

	if (!t || !t->depth)
		return 0;
	if (--t->depth)
		return 0;
	l = load_of(t->load);
	if (!l || t->flags & DH_TASK_CHILD)
		return 0;
	config = configuration();
	if (!l->exact && config && t->unpickle < config->counted)
		l->exact = DH_UNPROVEN;
	if (l->inside)
		__sync_fetch_and_add(&l->inside, -1);
	l->active = bpf_ktime_get_ns();
	if (l->memory) {
		end_load(t, l, DH_RETURNED);
		fall_back(t);
	} else if (!load_of_file(t->tgid, l->fd, &key) || key.fd != l->fd) {
		end_load(t, l, DH_CLOSED); /* it was closed inside its own pickle */
		fall_back(t);
	}
	return 0;
}

/*
 * At the call of PySys_Audit("pickle.find_class", "OO", module, name): CPython makes it whether or
 * not there is an audit hook. PyASCIIObject: length at 16, state at 32 (bit 6: ASCII, bits 2-4:
 * bytes per character); text behind the header, whose size depends on the version.
 */
static __always_inline __u32 put_name(struct dh_record *r, __u32 at, __u64 object,
				      __u32 ascii_offset, __u64 *wide)
{
	__u64 text, characters = 0, length;
	__u32 state = 0, width;

	bpf_probe_read_user(&characters, sizeof(characters), (const void *)(object + 16));
	bpf_probe_read_user(&state, sizeof(state), (const void *)(object + 32));
	width = (state >> 2) & 7;
	if (state & 0x40) {
		text = object + ascii_offset;
	} else {
		/* PyCompactUnicodeObject adds utf8_length and utf8, up to 3.11 wstr_length as well. */
		text = object + ascii_offset + (ascii_offset == 48 ? 24 : 16);
		r->flags |= DH_WIDE;
	}
	*wide = *wide << 8 | (state & 0x40 ? 0 : width);
	length = at_most(characters, 0xffff) * width;
	if (length > DH_HALF - 1)
		r->flags |= DH_TRUNCATED;
	length = at_most(length, DH_HALF - 1);
	if (bpf_probe_read_user(r->text + at, length, (const void *)text))
		r->flags |= DH_UNREADABLE;
	return characters;
}

/* The texts alone, for the table of known globals; false when they do not fit or are not ASCII. */
static __always_inline int read_key(char *to, __u64 object, __u32 ascii_offset)
{
	__u64 characters = 0;
	__u32 state = 0;

	bpf_probe_read_user(&characters, sizeof(characters), (const void *)(object + 16));
	bpf_probe_read_user(&state, sizeof(state), (const void *)(object + 32));
	if (!(state & 0x40) || characters >= DH_SEEN)
		return 0;
	return !bpf_probe_read_user(to, at_most(characters, DH_SEEN - 1),
				    (const void *)(object + ascii_offset));
}

static __always_inline int find_class(void *ctx, __u32 ascii_offset)
{
	__u64 module = ((__u64 *)ctx)[REGS_ARG3], name = ((__u64 *)ctx)[REGS_ARG4], wide = 0;
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct dh_task *t = task_of(tid);
	struct dh_global_key key = {};
	struct dh_record *r;
	struct dh_load *l;

	if (!t)
		return 0;
	l = current_load(t);
	if (!l) {
		if (!t->depth)
			return 0;
		if (read_key(key.module, module, ascii_offset) &&
		    read_key(key.name, name, ascii_offset) &&
		    bpf_map_lookup_elem(MAP(known_globals), &key))
			return 0;
		l = begin_load(t, -1, 0, 0, 0);
		if (!l)
			return 0;
	}
	r = reserve(t, l, DH_GLOBAL);
	if (!r)
		return 0;
	r->args[0] = put_name(r, 0, module, ascii_offset, &wide);
	r->args[1] = put_name(r, DH_HALF, name, ascii_offset, &wide);
	r->args[2] = wide;
	bpf_ringbuf_submit(r, 0);
	return 0;
}

/* CPython up to 3.11 */
SEC("uprobe")
int dh_find_class48(void *ctx)
{
	return find_class(ctx, 48);
}

/* CPython 3.12 and 3.13 */
SEC("uprobe")
int dh_find_class40(void *ctx)
{
	return find_class(ctx, 40);
}
