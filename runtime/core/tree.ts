// One fixed binary tree over the blocks of a sum: whoever adds, in whatever parts, adds in this order, and so gets the same bits.
import { ArgumentError, checkInteger } from './errors.ts'

/** Items [start, start + count) of a list. */
export interface Span {
  readonly start: number
  readonly count: number
}

/** Blocks [start, start + 2^level), start a multiple of 2^level. */
export interface TreeNode {
  readonly start: number
  readonly level: number
}

/** Slots of the schedule in `mergesOf` that hold no node. */
export const NO_NODE = 255

/**
 * The largest whole subtrees inside a span of blocks, from left to right: what one rank sends. A span that the tree cuts evenly is one node;
 * any other has at most two for each level.
 */
export function nodesOf({ start, count }: Span): TreeNode[] {
  checkInteger('start', start, 0)
  checkInteger('count', count, 0)
  const nodes: TreeNode[] = []
  for (let block = start; block < start + count; block++) push(nodes, { start: block, level: 0 })
  return nodes
}

/**
 * How the nodes of all ranks complete the tree. Slot by slot, `slots` of them a rank: the number of joins after the slot's node is put on a
 * stack, each join replacing the two topmost sums by left + right; NO_NODE for an empty slot. In the end one sum is left. Where the number of
 * blocks is no power of two, a node without a right part is its left part.
 * @throws ERR_ARGUMENT unless the spans follow one another from block 0 on.
 */
export function mergesOf(spans: readonly Span[], slots: number = slotsOf(spans)): number[] {
  let next = 0
  const stack: TreeNode[] = []
  const merges: number[] = []
  let last = -1
  for (const [rank, span] of spans.entries()) {
    if (span.start !== next)
      throw new ArgumentError(`Expected the blocks of rank ${rank} to begin at ${next} but they begin at ${span.start}`)
    next += span.count
    const nodes = nodesOf(span)
    if (nodes.length > slots) throw new ArgumentError(`Expected at most ${slots} subtrees but rank ${rank} holds ${nodes.length}`)
    for (let slot = 0; slot < slots; slot++) {
      const node = nodes[slot]
      if (node) last = merges.length
      merges.push(node ? push(stack, node) : NO_NODE)
    }
  }
  if (last >= 0) merges[last] = (merges[last] as number) + stack.length - 1
  return merges
}

/** What is joined into one node: at the slots of those who hold its parts the number of joins, as in `mergesOf`, and NO_NODE at all others. */
export interface Subtree {
  readonly node: TreeNode
  readonly merges: readonly number[]
}

/** The largest whole subtrees inside the spans of ranks that follow one another, together, and how each is made of those that the ranks hold. */
export function subtreesOf(spans: readonly Span[], slots: number): Subtree[] {
  const held = spans.map(nodesOf)
  const [{ start }] = spans as [Span]
  return nodesOf({ start, count: spans.reduce((sum, { count }) => sum + count, 0) }).map((node) => {
    const merges = new Array<number>(spans.length * slots).fill(NO_NODE)
    const stack: TreeNode[] = []
    for (const [rank, nodes] of held.entries()) {
      for (const [slot, part] of nodes.entries()) {
        if (part.start >= node.start && part.start < node.start + 2 ** node.level) merges[rank * slots + slot] = push(stack, part)
      }
    }
    return { node, merges }
  })
}

/** Nodes of the rank that has most. */
export function slotsOf(spans: readonly Span[]): number {
  return Math.max(1, ...spans.map((span) => nodesOf(span).length))
}

/** Puts a node on the stack and joins while the two topmost are the halves of one node; returns the number of joins. */
function push(stack: TreeNode[], node: TreeNode): number {
  let joins = 0
  let right = node
  for (;;) {
    const left = stack.at(-1)
    const width = 2 ** right.level
    if (!left || left.level !== right.level || left.start + width !== right.start || left.start % (2 * width) !== 0) break
    stack.pop()
    right = { start: left.start, level: left.level + 1 }
    joins++
  }
  stack.push(right)
  return joins
}

/** The slots that hold sums, ranks ascending, and behind each how many of the sums that wait are joined: a program for sums of slices. */
export function joinsOf(spans: readonly Span[]): { used: readonly number[]; joins: readonly number[] } {
  const merges = mergesOf(spans, slotsOf(spans))
  const used = [...merges.keys()].filter((slot) => merges[slot] !== NO_NODE)
  return { used, joins: used.map((slot) => merges[slot] as number) }
}
