/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What differs between the two loaders and the two architectures, and nothing else.
 *
 * libbpf: the object is compiled ahead of time, its maps are replaced by those that user space has
 * created. bcc: the same source is compiled on the host; the maps exist already and their
 * descriptors come as -DFD_<name>=<n>.
 */
#ifndef DYNAHUG_COMPAT_H
#define DYNAHUG_COMPAT_H

#ifdef DYNAHUG_BCC

#define SEC(name)
#define MAP(name) ((void *)bpf_pseudo_fd(1, FD_##name))
#define DECLARE_MAP(name, type_, key_, value_, flags_)
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#else

#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define MAP(name) (&name)
/* The sizes that count are those of the maps that user space passes in. */
#define DECLARE_MAP(name, type_, key_, value_, flags_) \
	struct {                                       \
		__uint(type, type_);                   \
		__uint(key_size, key_);                \
		__uint(value_size, value_);            \
		__uint(map_flags, flags_);             \
		__uint(max_entries, 1);                \
	} name SEC(".maps");

#endif

/*
 * struct pt_regs as user space knows it (asm/ptrace.h), as an array of words: the kernel promises
 * this layout to debuggers, so nothing has to be relocated.
 */
#if defined(DYNAHUG_X86)
#define REGS_ARG3 12 /* rdx */
#define REGS_ARG4 11 /* rcx */
#define REGS_SP 19
/* r10, r9, r8, rax, rcx, rdx, rsi, rdi: the arguments of a system call in one read */
#define SYSCALL_FIRST 7
#define SYSCALL_WORDS 8
#define SYSCALL_ARG(w, n)    \
	((n) == 0   ? (w)[7] \
	 : (n) == 1 ? (w)[6] \
	 : (n) == 2 ? (w)[5] \
	 : (n) == 3 ? (w)[0] \
	 : (n) == 4 ? (w)[2] \
		    : (w)[1])
#elif defined(DYNAHUG_ARM64)
#define REGS_ARG3 2
#define REGS_ARG4 3
#define REGS_SP 31
#define SYSCALL_FIRST 0
#define SYSCALL_WORDS 6
#define SYSCALL_ARG(w, n) ((w)[n])
#else
#error "compile with -DDYNAHUG_X86 or -DDYNAHUG_ARM64"
#endif

#endif
