/* storm CHAINS SLEEPERS: SLEEPERS processes that wait, and CHAINS that fork and end as fast as they can, as long as they may.
   Each in a session of its own. What a person may do to outlive their process's end. Whatever becomes of the test,
   all of them end by themselves after LONGEST_S. */
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define LONGEST_S 120

int main(int count, char **words) {
    int chains = atoi(words[1]), sleepers = count > 2 ? atoi(words[2]) : 0;
    time_t end = time(NULL) + LONGEST_S;
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
