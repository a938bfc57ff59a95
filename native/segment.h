// Segments: named memory that the processes of one user share, and who of them is alive, as the system knows it.
#pragma once
#include <cstddef>
#include <memory>
#include <set>
#include <string>

namespace rankmesh {

/** What the system refused: an errno, and a sentence. */
struct SystemError {
  int number;
  std::string message;
};

/** The mapped memory; unmapped with this. */
class Mapping {
 public:
  Mapping(void* data, size_t bytes) : data_(data), bytes_(bytes) {}
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void* const data_;
  const size_t bytes_;
};

class Segment {
 public:
  /** A new segment of zeroes. @throws SystemError */
  static std::unique_ptr<Segment> Create(const std::string& name, size_t bytes);
  /** One that another has created. @throws SystemError; ENOENT where it is not there, or not complete. */
  static std::unique_ptr<Segment> Open(const std::string& name);
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;
  ~Segment() { Close(); }

  const std::shared_ptr<Mapping>& mapping() const { return mapping_; }
  /** @throws SystemError: EBUSY where another one has the lock. */
  void Claim(size_t rank);
  bool Claimed(size_t rank) const;
  void Unlink();
  void Close();

 private:
  Segment(std::string name, int file) : name_(std::move(name)), file_(file) {}
  void Map(size_t bytes);

  const std::string name_;
  int file_;
  std::shared_ptr<Mapping> mapping_;
  /** Own locks: the system tells only of those of others. */
  std::set<size_t> claims_;
};

}  // namespace rankmesh
