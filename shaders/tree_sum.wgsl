// y = the sum of all ranks' subtree sums in the order of one fixed binary tree: what completes matmul_tree over ranks.
//
// Operands: 1 x [ranks, nodes, count] (read; slot s is node s % nodes of rank s / nodes, at (s / nodes) * pitch + (s % nodes) * count), 2 y [count]
// (written), float32, in quads. `merges` holds a byte a slot: how often, after the slot's sum is put on a stack, the two topmost sums become
// left + right; 255 for a slot without a node. Grid: one invocation per quad. Contract: one float32 addition a join; the bits depend on the tree alone, not on the cut.
override WG: u32 = 64;

const MAX_DEPTH = 34u;

struct Params {
  slices: Slices,
  count: u32,
  pitch: u32,
  nodes: u32,
  slots: u32,
  merges: array<vec4u, 9>,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4f>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = (group.y * groups.x + group.x) * WG + lane;
  if (i >= p.count) {
    return;
  }
  let xi = slice(0u, group.z) / 16u + i;
  var stack: array<vec4f, MAX_DEPTH>;
  var depth = 0u;
  for (var s = 0u; s < p.slots; s++) {
    let joins = (p.merges[s >> 4u][(s >> 2u) & 3u] >> ((s & 3u) * 8u)) & 255u;
    if (joins == 255u) {
      continue;
    }
    var sum = x[xi + (s / p.nodes) * p.pitch + (s % p.nodes) * p.count];
    for (var j = 0u; j < joins; j++) {
      depth--;
      sum = stack[depth] + sum;
    }
    stack[depth] = sum;
    depth++;
  }
  y[slice(1u, group.z) / 16u + i] = stack[0];
}
