/* failing_sendmsg.c - preloaded into the daemon: while the file that FAIL_WHILE names exists, the kernel has no memory
 * for what is sent to a netlink socket. */
#include <dlfcn.h>
#include <errno.h>
#include <linux/netlink.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	ssize_t (*real)(int, const struct msghdr *, int) = dlsym(RTLD_NEXT, "sendmsg");
	const char *file = getenv("FAIL_WHILE");

	if (file && message->msg_namelen == sizeof(struct sockaddr_nl) && !access(file, F_OK)) {
		errno = ENOBUFS;
		return -1;
	}
	return real(fd, message, flags);
}
