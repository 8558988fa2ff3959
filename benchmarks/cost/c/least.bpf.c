/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What can be on the way of system calls: as little as possible, and ways to do a thing. */
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, char[64]);
} tasks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 524288);
	__type(key, __u32);
	__type(value, __u64);
} marks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, char[64]);
} storage SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} total SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} totals SEC(".maps");

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

/* Is this task followed? */
SEC("raw_tp/sys_enter")
int by_hash(void *ctx)
{
	__u32 tid = bpf_get_current_pid_tgid();

	return bpf_map_lookup_elem(&tasks, &tid) != 0;
}

SEC("raw_tp/sys_enter")
int by_byte(void *ctx)
{
	__u32 tid = bpf_get_current_pid_tgid(), word = tid >> 3;
	__u8 *bytes = bpf_map_lookup_elem(&marks, &word);

	return bytes && bytes[tid & 7];
}

SEC("raw_tp/sys_enter")
int by_storage(void *ctx)
{
	return bpf_task_storage_get(&storage, bpf_get_current_task_btf(), 0, 0) != 0;
}

/* One more call. */
SEC("raw_tp/sys_enter")
int atomic(void *ctx)
{
	__u32 zero = 0;
	__u64 *n = bpf_map_lookup_elem(&total, &zero);

	if (n)
		__sync_fetch_and_add(n, 1);
	return 0;
}

SEC("raw_tp/sys_enter")
int per_cpu(void *ctx)
{
	__u32 zero = 0;
	__u64 *n = bpf_map_lookup_elem(&totals, &zero);

	if (n)
		(*n)++;
	return 0;
}
