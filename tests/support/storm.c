/* storm CHAINS SLEEPERS: SLEEPERS processes that wait, and CHAINS that fork and end as fast as they can, for ever.
   Each in a session of its own. What a person may do to outlive their process's end. */
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

int main(int count, char **words) {
    int chains = atoi(words[1]), sleepers = count > 2 ? atoi(words[2]) : 0;
    for (int i = 0; i < sleepers; i++)
        if (fork() == 0) {
            setsid();
            for (;;) pause();
        }
    for (int i = 0; i < chains; i++)
        if (fork() == 0) {
            setsid();
            for (;;) {
                pid_t child = fork();
                if (child > 0) _exit(0);
                if (child < 0) usleep(1000);
            }
        }
    return 0;
}
