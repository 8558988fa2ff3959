/*
 * Holds a model file open in each of some threads for some seconds, and makes system calls at some
 * rate in all of them together: hold FILE THREADS CALLS_PER_SECOND SECONDS
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { TICKS = 4 }; /* a second */

static const char *file;
static double calls, until;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void *load(void *unused)
{
	struct timespec pause = {0, 1000000000 / TICKS};
	int fd = open(file, O_RDONLY);
	double due = 0;
	char byte;

	if (fd < 0)
		return 0;
	while (now() < until) {
		/* The file is used, so the load does not end. */
		if (pread(fd, &byte, 1, 0) < 0)
			break;
		for (due += calls / TICKS; due >= 1; due--)
			syscall(SYS_getppid);
		nanosleep(&pause, 0);
	}
	close(fd);
	return 0;
}

int main(int argc, char **argv)
{
	pthread_attr_t small;
	pthread_t *threads;
	int i, n;

	if (argc < 5)
		return 2;
	file = argv[1];
	n = atoi(argv[2]);
	calls = atof(argv[3]) / n;
	until = now() + atof(argv[4]);
	threads = calloc(n, sizeof(*threads));
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	for (i = 0; i < n; i++)
		if (pthread_create(&threads[i], &small, load, 0))
			return 1;
	for (i = 0; i < n; i++)
		pthread_join(threads[i], 0);
	return 0;
}
