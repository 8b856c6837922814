/* storm CHAINS SLEEPERS: SLEEPERS processes that wait, and CHAINS that fork and end as fast as they can, as long as they may.
   Each in a session of its own. A person may do this to outlive the end of their process. All of them end by themselves
   after LONGEST_S. Zombies that their parent is too slow to reap count towards MOST, so a busy host keeps process ids. */
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define LONGEST_S 120
#define MOST 6000

int main(int count, char **words) {
    int chains = atoi(words[1]), sleepers = count > 2 ? atoi(words[2]) : 0;
    time_t end = time(NULL) + LONGEST_S;
    struct rlimit most = {MOST, MOST};
    if (setrlimit(RLIMIT_NPROC, &most)) return 1;
    for (int i = 0; i < sleepers; i++)
        if (fork() == 0) {
            setsid();
            sleep(LONGEST_S);
            _exit(0);
        }
    for (int i = 0; i < chains; i++)
        if (fork() == 0) {
            setsid();
            while (time(NULL) < end) {
                pid_t child = fork();
                if (child > 0) _exit(0);
                if (child < 0) usleep(1000);
            }
            _exit(0);
        }
    return 0;
}
