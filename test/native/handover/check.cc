// Asks another process for its files, as an asker should and as it should not: says what came of it, a line each.
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "driver.h"
#include "handover.h"

using namespace rankmesh::cuda;

namespace {

/** A file with the number in it; of 0 none. */
int Opened(uint64_t number) {
  if (number == 0) throw std::runtime_error("there is no file 0");
  int ends[2];
  if (pipe(ends) != 0) throw std::runtime_error("no pipe");
  if (number > 1000) usleep(20'000);  // longer than signals leave alone
  if (write(ends[1], &number, sizeof number) < 0) std::abort();
  close(ends[1]);
  return ends[0];
}

void Ask(const char* what, const std::string& desk, uint64_t number) {
  try {
    const int file = Fetch(desk, number);
    uint64_t in = 0;
    const ssize_t got = read(file, &in, sizeof in);
    std::printf("%s: %s\n", what, got == sizeof in && in == number ? "the file" : "another file");
    close(file);
  } catch (const Unavailable& refused) {
    std::printf("%s: %s\n", what, refused.what());
  }
  std::fflush(stdout);
}

/** Connects, sends so many bytes, and goes. */
void Disturb(const std::string& desk, size_t bytes) {
  const int peer = socket(AF_UNIX, SOCK_SEQPACKET, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, desk.data(), desk.size());
  const char text[64] = {};
  if (connect(peer, reinterpret_cast<sockaddr*>(&address), static_cast<socklen_t>(sizeof address.sun_family + 1 + desk.size())) != 0) std::abort();
  if (bytes > 0 && send(peer, text, bytes, MSG_NOSIGNAL) < 0) std::abort();
  close(peer);
}

}  // namespace

int main() {
  int named[2];
  char name[64] = {};
  if (pipe(named) != 0) return 1;
  const pid_t owner = fork();
  if (owner == 0) {
    const std::string desk = DeskOf(Opened);
    if (write(named[1], desk.data(), desk.size()) < 0) return 1;
    for (;;) pause();
  }
  if (read(named[0], name, sizeof name - 1) <= 0) return 1;
  const std::string desk = name;
  for (uint64_t number = 1; number <= 100; number++)
    if (close(Fetch(desk, number)) != 0) return 1;
  Ask("a file", desk, 7);
  Ask("no file", desk, 0);
  for (const size_t bytes : {0, 1, 7, 9, 64}) Disturb(desk, bytes);
  Ask("after askers that make no sense", desk, 8);
  struct sigaction ignored {};
  ignored.sa_handler = [](int) {};
  ignored.sa_flags = SA_RESTART;
  sigaction(SIGALRM, &ignored, nullptr);
  const itimerval often{{0, 1000}, {0, 1000}}, never{};
  setitimer(ITIMER_REAL, &often, nullptr);
  for (int i = 0; i < 10; i++) Ask("among signals", desk, 1001);
  setitimer(ITIMER_REAL, &never, nullptr);
  Ask("nobody", "rankmesh-nobody", 7);
  Ask("no desk", "", 7);
  if (geteuid() == 0) {
    std::fflush(stdout);
    const pid_t other = fork();
    if (other == 0) {
      if (setuid(65534) != 0) std::abort();
      Ask("another user", desk, 7);
      _exit(0);
    }
    waitpid(other, nullptr, 0);
  }
  kill(owner, SIGSTOP);
  waitpid(owner, nullptr, WUNTRACED);
  Ask("a stopped process", desk, 7);
  kill(owner, SIGKILL);
  waitpid(owner, nullptr, 0);
  Ask("a process that has ended", desk, 7);
  return 0;
}
