/* Attaches one program of an object, says so, and waits: least.c OBJECT PROGRAM */
#include <bpf/libbpf.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct bpf_program *program, *wanted = NULL;
	struct bpf_object *object;

	if (argc != 3)
		return 2;
	object = bpf_object__open_file(argv[1], NULL);
	if (!object)
		return 1;
	bpf_object__for_each_program(program, object)
	{
		int is = !strcmp(bpf_program__name(program), argv[2]);

		bpf_program__set_autoload(program, is);
		if (is)
			wanted = program;
	}
	if (!wanted || bpf_object__load(object) || !bpf_program__attach(wanted))
		return 1;
	puts("attached");
	fflush(stdout);
	pause();
	return 0;
}
