/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Submits 64 records as large as dynahugd's to a ring; returns how many found room. */
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define RECORDS 64
#define SIZE 352

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

SEC("socket")
int produce(void *ctx)
{
	int i, submitted = 0;

	for (i = 0; i < RECORDS; i++) {
		__u64 *record = bpf_ringbuf_reserve(&ring, SIZE, 0);

		if (!record)
			break;
		__builtin_memset(record, 0, SIZE);
		record[0] = bpf_ktime_get_ns();
		bpf_ringbuf_submit(record, 0);
		submitted++;
	}
	return submitted;
}
