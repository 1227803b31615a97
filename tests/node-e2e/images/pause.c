// The process of a pod's sandbox: holds the namespaces open, reaps what is orphaned into its
// PID namespace, and goes when it is told to.
#include <signal.h>
#include <sys/wait.h>

int main(void) {
    // Waited for rather than handled: a signal without a handler never reaches PID 1, but one
    // that is blocked is kept for sigwait.
    sigset_t awaited;
    sigemptyset(&awaited);
    sigaddset(&awaited, SIGCHLD);
    sigaddset(&awaited, SIGINT);
    sigaddset(&awaited, SIGTERM);
    sigprocmask(SIG_BLOCK, &awaited, 0);
    for (;;) {
        int signal;
        if (sigwait(&awaited, &signal) != 0)
            continue;
        if (signal != SIGCHLD)
            return 0;
        while (waitpid(-1, 0, WNOHANG) > 0) {
        }
    }
}
