/* Forks children that exit at once, one after the other. With a file: while it is open. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	long i, n;
	pid_t child;

	if (argc < 2)
		return 2;
	n = atol(argv[1]);
	if (argc > 2 && open(argv[2], O_RDONLY) < 0) {
		perror(argv[2]);
		return 1;
	}
	for (i = 0; i < n; i++) {
		child = fork();
		if (child < 0)
			return 1;
		if (!child)
			_exit(0);
		waitpid(child, 0, 0);
	}
	return 0;
}
