/* By io_uring alone: `uring PORT` asks for http://127.0.0.1:PORT/ok/uring; `uring` echoes what comes, one connection
 * after the other, and prints where it listens. */
#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static char *sq, *cq;
static struct io_uring_sqe *entries;
static struct io_uring_params parameters;
static int ring;

static int submit(int operation, int fd, void *buffer, unsigned length) {
	unsigned *tail = (unsigned *)(sq + parameters.sq_off.tail), *array = (unsigned *)(sq + parameters.sq_off.array);
	unsigned mask = *(unsigned *)(sq + parameters.sq_off.ring_mask), at = *tail & mask;
	memset(&entries[at], 0, sizeof entries[at]);
	entries[at].opcode = operation;
	entries[at].fd = fd;
	entries[at].addr = (unsigned long)buffer;
	entries[at].len = length;
	array[at] = at;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) < 0) {
		perror("io_uring_enter");
		exit(1);
	}
	unsigned *head = (unsigned *)(cq + parameters.cq_off.head);
	struct io_uring_cqe *done = (struct io_uring_cqe *)(cq + parameters.cq_off.cqes);
	int result = done[*head & *(unsigned *)(cq + parameters.cq_off.ring_mask)].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return result;
}

static int echo(void) {
	struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof own;
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&own, sizeof own) || listen(listener, 8))
		return 6;
	getsockname(listener, (struct sockaddr *)&own, &size);
	printf("listening on 127.0.0.1:%d\n", ntohs(own.sin_port));
	fflush(stdout);
	static char room[4096];
	for (;;) {
		int fd = submit(IORING_OP_ACCEPT, listener, 0, 0), length;
		if (fd < 0)
			return 7;
		while ((length = submit(IORING_OP_RECV, fd, room, sizeof room)) > 0)
			submit(IORING_OP_SEND, fd, room, length);
		close(fd);
	}
}

int main(int count, char **words) {
	ring = syscall(SYS_io_uring_setup, 8, &parameters);
	if (ring < 0) {
		perror("io_uring_setup");
		return 3;
	}
	sq = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
	cq = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_CQ_RING);
	entries = mmap(0, 8 * sizeof *entries, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
	if (count != 2)
		return echo();
	struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1]))};
	server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(fd, (struct sockaddr *)&server, sizeof server))
		return 4;
	static char request[] = "GET /ok/uring HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", answer[4096];
	if (submit(IORING_OP_SEND, fd, request, sizeof request - 1) != sizeof request - 1)
		return 5;
	while (submit(IORING_OP_RECV, fd, answer, sizeof answer) > 0) {
	}
	return 0;
}
