/*
 * Runs the program of produce.bpf.c: produce PROGRAM_FD RECORDS_PER_SECOND SECONDS
 *
 * Prints records submitted, records that found no room, and seconds. At rate 0, as fast as the
 * reader takes them: what finds no room is tried again and counts as nothing lost.
 */
#define _GNU_SOURCE
#include <linux/bpf.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { RECORDS = 64 };

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	double rate, length, begun, at;
	long submitted = 0, lost = 0;
	union bpf_attr attr;
	char packet[64] = {0};
	int n;

	if (argc < 4)
		return 2;
	rate = atof(argv[2]);
	length = atof(argv[3]);
	begun = now();
	while ((at = now() - begun) < length) {
		if (rate && submitted + lost > at * rate) {
			sched_yield();
			continue;
		}
		memset(&attr, 0, sizeof(attr));
		attr.test.prog_fd = atoi(argv[1]);
		attr.test.data_in = (unsigned long)packet;
		attr.test.data_size_in = sizeof(packet);
		attr.test.repeat = 1;
		if (syscall(SYS_bpf, BPF_PROG_TEST_RUN, &attr, sizeof(attr))) {
			perror("BPF_PROG_TEST_RUN");
			return 1;
		}
		n = attr.test.retval;
		submitted += n;
		if (n == RECORDS)
			continue;
		if (rate)
			lost += RECORDS - n;
		else
			sched_yield();
	}
	printf("%ld %ld %f\n", submitted, lost, now() - begun);
	return 0;
}
