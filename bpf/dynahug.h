/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The one definition of everything that crosses from the kernel to user space: the record in the
 * ring, the state of a load, its counters, the configuration. dynahugd/probes/layout.py mirrors it
 * as numpy dtypes; a test compiles this file and compares every size and offset.
 *
 * Fixed-width types only, no implicit padding.
 */
#ifndef DYNAHUG_H
#define DYNAHUG_H

#define DH_TEXT 256 /* bytes of text in a record */
#define DH_HALF 128 /* where the second text of a record begins */
#define DH_FRONT 48 /* bytes of a longer path that come first in a half of the text, */
#define DH_ELLIPSIS "\xe2\x80\xa6" /* ... what stands for the middle, */
#define DH_BACK 77		   /* ... and bytes that come last, its NUL included */
#define DH_COMM 16		   /* TASK_COMM_LEN */
#define DH_SYSCALLS 512 /* system calls counted; a higher number counts in the last cell */
#define DH_MARKS 8	/* tasks to an element of the table of marks */
#define DH_SUFFIX 16	/* longest file suffix, without its dot, zero padded */
#define DH_SEEN 64	/* bytes of a module's or a name's text in the key of a known global */
#define DH_MAX_DEPTH 60 /* the kernel keeps 64 return probes of a thread; see unpickle_enter() */

/* What a record says. */
enum dh_kind {
	DH_BEGIN = 1, /* a load begins: text = path; args = descriptor, flags of open, start (ns) */
	DH_END = 2,   /* its span ends: args[0] = enum dh_reason */
	DH_OPEN = 3,  /* a file was opened: text = path; ret; args = flags, address, dirfd */
	DH_CALL = 4,  /* a telling system call is made: nr, args, text by its action */
	DH_GLOBAL =
		5, /* a pickle resolves module (text) and name (text + DH_HALF); args = lengths, kinds */
	DH_BIRTH = 6,	/* a thread or process is born in a load: args = its tid, clone flags */
	DH_RUNTIME = 7, /* a process becomes an ML process: text = the file that shows it, if any */
	DH_EXEC = 8, /* a task of a load, or an ML process, now runs another program: text = path */
};

/* Flags of a record. */
#define DH_INSIDE 0x01	   /* inside an unpickling, or born inside one */
#define DH_DESCENDANT 0x02 /* by a thread or process that the load created */
#define DH_AFTER 0x04	   /* after the load's span had ended */
#define DH_TRUNCATED 0x08  /* text = the first and the last DH_HALF bytes of a longer path */
#define DH_UNREADABLE 0x10 /* the text could not be read */
#define DH_MEMORY 0x20	   /* the load has no file: an unpickling that did something telling */
#define DH_WIDE 0x40	   /* a name of a global is not ASCII; see args[2] */
#define DH_UNCOUNTED 0x80  /* of a begin: not every call of the load is counted, only later ones */

/* Why a span ended. */
enum dh_reason {
	DH_CLOSED = 1,	 /* its descriptor was closed, or reused */
	DH_RETURNED = 2, /* the unpickling of a load without a file returned */
	DH_EXITED = 3,	 /* its thread is gone */
	DH_REPLACED = 4, /* its process executed another program */
	DH_IDLE = 5,	 /* user space: the thread left the descriptor alone */
};

/* State of a slot of the table of loads. */
enum dh_state {
	DH_FREE = 0,
	DH_OPENED = 1,
	DH_ENDED = 2, /* the span is over; descendants may still be alive */
};

/* Where calls are counted. */
enum dh_bank {
	DH_OUTSIDE = 0,	 /* the loading thread, in the span, outside any unpickling */
	DH_WITHIN = 1,	 /* the loading thread inside an unpickling */
	DH_CHILDREN = 2, /* threads and processes that the load created, in the span */
	DH_BANKS = 3,
};

/* Why something was lost: index into the map of losses. */
enum dh_loss {
	DH_LOST_RING = 0,  /* no room in the ring: the reader is too slow */
	DH_LOST_LOADS = 1, /* more loads open at once than the table has slots */
	DH_LOST_TASKS = 2, /* more tracked tasks than the table has entries */
	DH_LOST_FILES = 3, /* more model descriptors open than the table has entries */
	DH_LOST_DEPTH = 4, /* unpicklings nested deeper than return probes are kept */
	DH_LOST_LATE = 5,  /* an ML process went on before its system calls were watched */
	DH_LOSSES = 6,
};

/*
 * What the kernel side does with a system call: a table by system-call number, filled from user
 * space, so that one source serves architectures that number them differently. The digits say
 * which arguments hold what.
 */
enum dh_action {
	DH_NOTHING = 0,
	DH_TOUCH = 1,	 /* uses descriptor 0 */
	DH_MMAP = 2,	 /* uses descriptor 4; telling when the memory is executable */
	DH_MPROTECT = 3, /* telling when the memory becomes executable */
	DH_OPEN01 = 4,	 /* path 0, flags 1 */
	DH_OPEN12 = 5,	 /* path 1, flags 2 */
	DH_OPENHOW = 6,	 /* path 1, struct open_how 2 */
	DH_CLOSE = 7,	 /* closes descriptor 0 */
	DH_DUP2 = 8,	 /* closes descriptor 1 */
	DH_CLONE = 9,	 /* flags 0 */
	DH_CLONE3 = 10,	 /* struct clone_args 0 */
	DH_FORK = 11,
	DH_PLAIN = 12,	 /* telling; the arguments are numbers */
	DH_PATH0 = 13,	 /* telling; path 0 */
	DH_PATH1 = 14,	 /* telling; path 1 */
	DH_PATHS01 = 15, /* telling; paths 0 and 1 */
	DH_PATHS13 = 16, /* telling; paths 1 and 3 */
	DH_PATHS02 = 17, /* telling; paths 0 and 2 */
	DH_ADDR1 = 18,	 /* telling; socket address 1 of length 2 */
	DH_ADDR4 = 19,	 /* telling when there is a socket address 4, of length 5 */
	DH_MSG1 = 20,	 /* telling when struct msghdr 1 has a name */
	DH_IGNORE = 21,	 /* not a call of the program: the return of a uprobe */
	DH_ACTIONS = 22,
};
/* Beside the action: the call has a tracepoint of its own, which sees to it; see dh_call(). */
#define DH_APART 0x100

struct dh_record {
	__u64 time; /* CLOCK_MONOTONIC, ns */
	__u64 load; /* id of the load, 0 for none: sequence << 16 | slot */
	__u32 tgid; /* process, as the initial pid namespace numbers it */
	__u32 tid;  /* thread */
	__u16 kind; /* enum dh_kind */
	__u16 nr;   /* system-call number, of this machine's architecture */
	__u32 flags;
	__s64 ret;
	__u64 args[3];
	__u64 cgroup; /* id of the cgroup v2 */
	__u32 uid;
	__u32 length; /* bytes of text; of the whole path when truncated */
	char comm[DH_COMM];
	char text[DH_TEXT];
};

/* Whether the descriptor of a load was read by an unpickling. */
enum dh_exact {
	DH_EXACT = 1,	 /* it was: only what is inside an unpickling counts */
	DH_UNPROVEN = 2, /* there was an unpickling, but nobody saw what it read */
};

/* One slot of the table of loads. User space maps it, reads it at every hop and frees it. */
struct dh_load {
	__u64 id;
	__u64 begin;   /* ns */
	__u64 touched; /* last use of the descriptor, ns */
	__u64 active;  /* last use of the descriptor or end of an unpickling, ns */
	__u32 state;   /* enum dh_state */
	__u32 reason;  /* enum dh_reason, once ended */
	__u32 refs;    /* living descendants */
	__u32 inside;  /* loading threads that are inside an unpickling */
	__u32 exact;   /* enum dh_exact */
	__u32 quiet;   /* 1: user space found a format that runs no code */
	__u32 memory;  /* 1: no file */
	__u32 lost;    /* records of this load that were lost */
	__u32 tgid;
	__u32 tid;
	__u32 fd;
	__u32 uid;
};

struct dh_counters {
	__u64 calls[DH_BANKS][DH_SYSCALLS];
};

#define DH_NEVER 0xffffffffffffffffULL

struct dh_config {
	__u64 rejoin;	/* ns: an unpickling this soon after a read belongs to that file */
	__u64 watched;	/* since when telling calls are seen, ns; DH_NEVER: they are not now */
	__u64 counted;	/* since when all calls are seen, ns; DH_NEVER: they are not now */
	__u32 self;	/* tgid of the daemon: never watched */
	__u32 task_pid; /* offset of pid in struct task_struct, from the kernel's BTF */
	__u32 program_filename; /* offset of filename in struct linux_binprm */
	__u32 unused;
};

/* A tracked task: a thread of an ML process, or a descendant of a load. */
struct dh_task {
	__u64 load;	 /* the load that it belongs to now */
	__u64 last;	 /* the load that it left open */
	__u64 open_path; /* user address, while it is in an open call */
	__u64 open_flags;
	__u64 unpickle; /* start of the outermost unpickling, ns */
	__u64 stack;	/* stack pointer at that start */
	__u32 tgid;
	__u32 depth;	   /* unpicklings entered and not yet returned */
	__u32 flags;	   /* DH_TASK_* */
	__u32 clone_flags; /* of the clone call that it is in */
	__u32 open_nr;
	__u32 open_dirfd;
};
#define DH_TASK_ML 0x1
#define DH_TASK_CHILD 0x2  /* a descendant of its load, not its loader */
#define DH_TASK_INSIDE 0x4 /* born inside an unpickling */
#define DH_TASK_DEEP 0x8   /* a return probe may have been dropped */

struct dh_file_key {
	__u32 tgid;
	__u32 fd;
};

struct dh_global_key {
	char module[DH_SEEN];
	char name[DH_SEEN];
};

#endif
