/* The first program of an emulated board: loads the modules that reach the disk, and hands over to the disk's own init.
 * mkinitramfs would do the same, in ten minutes under emulation. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void fail(const char *what)
{
	printf("init: %s: %s\n", what, strerror(errno));
	sleep(5);
	_exit(1);
}

int main(void)
{
	char name[256];
	FILE *list = fopen("/modules", "r");

	if (!list)
		fail("/modules");
	while (fscanf(list, "%255s", name) == 1) {
		int file = open(name, O_RDONLY | O_CLOEXEC);

		if (file < 0 || (syscall(SYS_finit_module, file, "", 0) && errno != EEXIST))
			printf("init: %s: %s\n", name, strerror(errno));
		close(file);
	}
	mkdir("/dev", 0755);
	mkdir("/disk", 0755);
	if (mount("devtmpfs", "/dev", "devtmpfs", 0, NULL) && errno != EBUSY)
		fail("/dev");
	for (int tries = 0; mount("/dev/vda", "/disk", "ext4", 0, NULL); tries++) {
		if (tries == 100)
			fail("/dev/vda");
		usleep(100000);
	}
	mount("/dev", "/disk/dev", NULL, MS_MOVE, NULL);
	if (chdir("/disk") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
		fail("/disk");
	execl("/sbin/init", "/sbin/init", NULL);
	fail("/sbin/init");
}
