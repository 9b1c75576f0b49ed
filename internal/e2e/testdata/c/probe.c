// Does what static C programs do, and prints "ok NAME" or "broken NAME: WHY" for each.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <pwd.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static void report(const char *name, const char *why) {
	if (why)
		printf("broken %s: %s (%s)\n", name, why, strerror(errno));
	else
		printf("ok %s\n", name);
	fflush(stdout);
}

static const char *user(void) {
	struct passwd *p = getpwuid(getuid());
	if (!p)
		return "no entry";
	if (strcmp(p->pw_name, getenv("USER") ?: ""))
		return "another name";
	return strcmp(p->pw_dir, getenv("HOME") ?: "") ? "another home" : NULL;
}

static const char *temporary(void) {
	char path[] = "/tmp/c-XXXXXX";
	int fd = mkstemp(path);
	if (fd < 0)
		return "mkstemp";
	return unlink(path) ? "unlink" : NULL;
}

static const char *shared_memory(void) {
	char name[64];
	snprintf(name, sizeof name, "/e2e-%d", (int)getpid());
	int fd = shm_open(name, O_CREAT | O_EXCL | O_RDWR, 0600);
	if (fd < 0)
		return "shm_open";
	shm_unlink(name);
	if (ftruncate(fd, 4096))
		return "ftruncate";
	char *m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (m == MAP_FAILED)
		return "mmap";
	if (fork() == 0) {
		m[0] = 'x';
		_exit(0);
	}
	wait(NULL);
	return m[0] == 'x' ? NULL : "not shared";
}

static const char *semaphore(void) {
	char name[64];
	snprintf(name, sizeof name, "/e2e-%d", (int)getpid());
	sem_t *s = sem_open(name, O_CREAT | O_EXCL, 0600, 0);
	if (s == SEM_FAILED)
		return "sem_open";
	sem_unlink(name);
	if (fork() == 0) {
		sem_post(s);
		_exit(0);
	}
	wait(NULL);
	return sem_trywait(s) ? "sem_trywait" : NULL;
}

static const char *system_v(void) {
	int id = shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600);
	if (id < 0)
		return "shmget";
	char *m = shmat(id, NULL, 0);
	if (m == (void *)-1)
		return "shmat";
	m[0] = 'x';
	shmdt(m);
	return shmctl(id, IPC_RMID, NULL) ? "shmctl" : NULL;
}

static const char *unix_socket(void) {
	char dir[] = "/tmp/c-XXXXXX";
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	if (!mkdtemp(dir))
		return "mkdtemp";
	snprintf(a.sun_path, sizeof a.sun_path, "%s/s", dir);
	int l = socket(AF_UNIX, SOCK_STREAM, 0), c = socket(AF_UNIX, SOCK_STREAM, 0);
	if (bind(l, (void *)&a, sizeof a) || listen(l, 1))
		return "bind";
	const char *why = connect(c, (void *)&a, sizeof a) ? "connect" : NULL;
	unlink(a.sun_path);
	rmdir(dir);
	return why;
}

static const char *children(void) {
	// An orphan is somebody's to reap: of the init of its view.
	pid_t middle = fork();
	if (middle == 0) {
		if (fork() == 0)
			_exit(0);
		_exit(7);
	}
	int status;
	if (waitpid(middle, &status, 0) < 0)
		return "waitpid";
	return WEXITSTATUS(status) == 7 ? NULL : "another status";
}

static int look_up(const char *host, const char *port, struct addrinfo **found) {
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG};
	return getaddrinfo(host, port, &hints, found);
}

static const char *names(void) {
	struct addrinfo *found;
	if (look_up(getenv("E2E_HOST"), "80", &found))
		return "getaddrinfo";
	return look_up("localhost", "80", &found) ? "localhost" : NULL;
}

static const char *unknown_name(void) {
	struct addrinfo *found;
	return look_up("no-such-name.test.example", "80", &found) == EAI_NONAME ? NULL : "it was resolved, or another error";
}

static const char *http(void) {
	char url[256], request[512], answer[4096];
	snprintf(url, sizeof url, "%s", getenv("E2E_HTTP"));
	char *host = url + strlen("http://"), *path = strchr(host, '/'), *port = strchr(host, ':');
	*path++ = *port++ = 0;
	struct addrinfo *found;
	if (look_up(host, port, &found))
		return "getaddrinfo";
	int s = socket(found->ai_family, SOCK_STREAM, 0);
	if (connect(s, found->ai_addr, found->ai_addrlen))
		return "connect";
	int n = snprintf(request, sizeof request, "GET /%s HTTP/1.0\r\nHost: %s:%s\r\n\r\n", path, host, port);
	if (write(s, request, n) != n)
		return "write";
	for (n = 0;;) {
		ssize_t got = read(s, answer + n, sizeof answer - 1 - n);
		if (got < 0)
			return "read";
		if (got == 0)
			break;
		n += got;
	}
	answer[n] = 0;
	return strstr(answer, "hello GET") ? NULL : "another answer";
}

int main(int argc, char **argv) {
	alarm(40);
	report("user", user());
	report("temporary file", temporary());
	report("shared memory", shared_memory());
	report("semaphore", semaphore());
	report("System V shared memory", system_v());
	report("unix socket", unix_socket());
	report("children", children());
	if (argc < 2 || strcmp(argv[1], "network"))
		return 0;
	report("names", names());
	report("unknown name", unknown_name());
	report("http", http());
	return 0;
}
