/* A 32-bit task that asks for http://127.0.0.1:PORT/ok/32, without a library: PORT is compiled in.
 * cc -m32 -nostdlib -static -DPORT=8080 task32.c */
static int call(int number, long a, long b, long c) {
	int result;
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
	return result;
}

static const char request[] = "GET /ok/32 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
static char answer[4096];

void _start(void) {
	struct {
		unsigned short family, port;
		unsigned address;
		char zero[8];
	} server = {2, (PORT >> 8 & 255) | (PORT & 255) << 8, 0x0100007f, {0}};
	int socket = call(359, 2, 1, 0);
	int failed = call(362, socket, (long)&server, sizeof server);
	call(4, socket, (long)request, sizeof request - 1);
	while (call(3, socket, (long)answer, sizeof answer) > 0) {
	}
	call(1, failed != 0, 0, 0);
}
