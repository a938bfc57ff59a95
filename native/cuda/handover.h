// Files that a process hands to others of the same user on the same machine when they ask for them: open files, whatever they are of.
#pragma once
#include <cstdint>
#include <string>

namespace rankmesh::cuda {

/** Opens the file of a number. Throws std::runtime_error with the reason where there is none. Called by a thread of its own. */
using Provider = int (*)(uint64_t number);

/** Where others ask this process for files: a name that no other process has; it is opened for the first caller. Empty where the system refuses it. */
const std::string& DeskOf(Provider provider);

/** A file that the process with such a desk has, open here as well. Throws Unavailable with its reason, or the system's. */
int Fetch(const std::string& desk, uint64_t number);

}  // namespace rankmesh::cuda
