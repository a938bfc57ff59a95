// A socket without a place among the files: each request is a number, each answer a file, or a text that says why there is none. Both sides see to
// it that the other is of the same user.
#include "handover.h"

#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>

#include "driver.h"

namespace rankmesh::cuda {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kPatience{5};
constexpr size_t kLongest = 512;

class Socket {
 public:
  explicit Socket(int of) : file(of) {}
  Socket(const Socket&) = delete;
  ~Socket() {
    if (file >= 0) close(file);
  }
  const int file;
};

int NewSocket() { return socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0); }

/** With a zero before the name, which keeps it out of the files. */
socklen_t AddressOf(const std::string& desk, sockaddr_un& address) {
  address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, desk.data(), std::min(desk.size(), sizeof address.sun_path - 1));
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + desk.size());
}

bool SameUser(int peer) {
  ucred who{};
  socklen_t length = sizeof who;
  return getsockopt(peer, SOL_SOCKET, SO_PEERCRED, &who, &length) == 0 && who.uid == geteuid();
}

void BePatient(int peer, std::chrono::seconds seconds) {
  const timeval patience{seconds.count(), 0};
  setsockopt(peer, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  setsockopt(peer, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
}

/** What the system does until a signal interrupts it, again, unless it has taken too long altogether: such calls are not resumed. */
template <typename Call>
ssize_t Insist(Clock::time_point until, Call call) {
  for (;;) {
    const ssize_t result = call();
    if (result >= 0 || errno != EINTR || Clock::now() >= until) return result;
  }
}

/** A message that may carry a file. */
struct Letter {
  explicit Letter(char* text, size_t length) : text_{text, length} {
    header.msg_iov = &text_;
    header.msg_iovlen = 1;
    header.msg_control = room_;
    header.msg_controllen = sizeof room_;
  }
  /** `file`: -1 for none. */
  void Enclose(int file) {
    if (file < 0) {
      header.msg_controllen = 0;
      return;
    }
    cmsghdr* const enclosed = CMSG_FIRSTHDR(&header);
    enclosed->cmsg_level = SOL_SOCKET;
    enclosed->cmsg_type = SCM_RIGHTS;
    enclosed->cmsg_len = CMSG_LEN(sizeof file);
    std::memcpy(CMSG_DATA(enclosed), &file, sizeof file);
  }
  /** The file that has come, one alone; -1 for none. */
  int Enclosed() {
    const cmsghdr* const enclosed = CMSG_FIRSTHDR(&header);
    if (!enclosed || enclosed->cmsg_level != SOL_SOCKET || enclosed->cmsg_type != SCM_RIGHTS) return -1;
    int files[2] = {-1, -1};
    std::memcpy(files, CMSG_DATA(enclosed), std::min(sizeof files, static_cast<size_t>(enclosed->cmsg_len - CMSG_LEN(0))));
    if (files[1] < 0) return files[0];
    for (const int file : files) close(file);
    return -1;
  }
  msghdr header{};

 private:
  iovec text_;
  alignas(cmsghdr) char room_[CMSG_SPACE(sizeof(int))] = {};
};

void Answer(int peer, Provider provider) {
  uint64_t number = 0;
  if (!SameUser(peer)) return;
  BePatient(peer, std::chrono::seconds(1));
  if (recv(peer, &number, sizeof number, 0) != sizeof number) return;
  std::string why = " ";
  int file = -1;
  try {
    file = provider(number);
  } catch (const std::exception& refused) {
    why = std::string(refused.what()).substr(0, kLongest);
  }
  const Socket given(file);
  Letter letter(why.data(), why.size());
  letter.Enclose(file);
  sendmsg(peer, &letter.header, MSG_NOSIGNAL);
}

void Serve(int listener, Provider provider) {
  // Signals are for other threads.
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
  for (;;) {
    const Socket peer(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    if (peer.file >= 0) Answer(peer.file, provider);
    else if (errno != EINTR && errno != ECONNABORTED) std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

std::string Opened(Provider provider) {
  std::random_device random;
  std::string name = "rankmesh-";
  for (int i = 0; i < 4; i++) {
    char digits[9];
    std::snprintf(digits, sizeof digits, "%08x", random());
    name += digits;
  }
  sockaddr_un address;
  const socklen_t length = AddressOf(name, address);
  const int listener = NewSocket();
  if (listener >= 0 && bind(listener, reinterpret_cast<const sockaddr*>(&address), length) == 0 && listen(listener, 64) == 0) {
    try {
      std::thread(Serve, listener, provider).detach();
      return name;
    } catch (const std::system_error&) {
    }
  }
  if (listener >= 0) close(listener);
  return "";
}

}  // namespace

const std::string& DeskOf(Provider provider) {
  static const auto* const name = new std::string(Opened(provider));  // the thread may outlive static objects
  return *name;
}

int Fetch(const std::string& desk, uint64_t number) {
  if (desk.empty()) throw Unavailable("the process that has it could open no socket to hand it over");
  const auto fail = [](const char* what) -> void { throw Unavailable(std::string(what) + ": " + std::strerror(errno)); };
  const Socket peer(NewSocket());
  sockaddr_un address;
  const socklen_t length = AddressOf(desk, address);
  const auto until = Clock::now() + kPatience;
  BePatient(peer.file, kPatience);
  const auto connected = [&] { return connect(peer.file, reinterpret_cast<const sockaddr*>(&address), length); };
  if (peer.file < 0 || Insist(until, connected) != 0) fail("the process that has it cannot be asked for it");
  if (!SameUser(peer.file)) throw Unavailable("the process that was to hand it over is another user's");
  if (Insist(until, [&] { return send(peer.file, &number, sizeof number, MSG_NOSIGNAL); }) != sizeof number) fail("the process that has it cannot be asked for it");
  char text[kLongest];
  Letter letter(text, sizeof text);
  const ssize_t got = Insist(until, [&] { return recvmsg(peer.file, &letter.header, MSG_CMSG_CLOEXEC); });
  if (got <= 0) {
    if (got == 0) errno = ECONNRESET;
    fail("the process that has it has not handed it over");
  }
  const int file = letter.Enclosed();
  if (file < 0) throw Unavailable("the process that has it does not hand it over: " + std::string(text, static_cast<size_t>(got)));
  return file;
}

}  // namespace rankmesh::cuda
