/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The least that can be on the way of system calls: programs that do nothing. */
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* On one call that hardly anyone makes: what remains is that the kernel looks, at every call. */
SEC("tp/syscalls/sys_enter_sethostname")
int one(void *ctx)
{
	return 0;
}

SEC("raw_tp/sys_enter")
int every(void *ctx)
{
	return 0;
}
