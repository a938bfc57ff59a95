// Reads the words of commands one after the other; what reads commands of one kind of engine alone reads through this as well.
#pragma once
#include <string>

#include "commands.h"

namespace rankmesh::engine {

class Reader {
 public:
  /** No size that a command gives is larger. */
  static constexpr double kMost = 1ull << 48;
  static constexpr double kMostSlices = 1 << 20;

  Reader(const double* words, size_t count, Registry& registry) : words_(words), left_(count), registry_(registry) {}

  bool empty() const { return left_ == 0; }
  Command Next();

  /** Throws BadCommand: the command has `what`. */
  [[noreturn]] void Fail(const std::string& what) const;

  // What follows takes the next words. All but `Word` and `Size` also write down what they read in the command's call.

  double Word();
  /** An integer in [0, most]. */
  double Size(double most = kMost);
  double Number();
  /** Bytes of an element. */
  double Float(Type most = kF16);
  /** Bytes of an element of a weight with rows of `n` elements; a fraction, and exact, for blocks. */
  double Weight(double n);
  /** Of the last weight: blocks begin anywhere. */
  double WeightAlignment() const { return kFormats[weight_].values > 1 ? 1 : static_cast<double>(kFormats[weight_].bytes); }
  bool Flag();
  void Scalar();
  void Operand(double bytes, double alignment);
  /** The memory of an operand, which `kept` keeps. */
  std::byte* Place(double bytes, double alignment, std::shared_ptr<Block>& kept);
  /** A slice's number; its memory comes behind all of them. */
  size_t AddSlice();
  /** How `count` slices are joined: after each so many of the sums that wait are, and in the end one is left. */
  void Joins(double count);
  /** The memory of all slices that were added. */
  void Slices(double bytes, double alignment);

 private:
  void Read(Command& command);
  void PlaceSlice(Slice& slice, double bytes, double alignment) { slice.at = Place(bytes, alignment, command_->slice_blocks.emplace_back()); }
  void EndSlices();
  void Meet(Command& command);
  void Wait();

  const double* words_;
  size_t left_;
  Registry& registry_;
  Command* command_ = nullptr;
  Type weight_ = kF32;
  size_t numbers_ = 0, operands_ = 0, types_ = 0, flags_ = 0;
};

}  // namespace rankmesh::engine
