// Rows of the weights `w` that a kernel binds, in plain floats: where a row begins, and its quads. Put after the prelude of the weight type.
// blocks.wgsl and the preludes of blocks define the same two functions.

// Row `row` of `quads` quads, in a matrix that begins at byte `start`: a number for wload.
fn wrow(start: u32, row: u32, quads: u32) -> u32 {
  return start / WQUAD_BYTES + row * quads;
}

fn wload(row: u32, i: u32) -> vec4f {
  return wload4(w[row + i]);
}
