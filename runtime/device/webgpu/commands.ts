// What a rank asks of a device, and how the same request of several ranks becomes one.
import { roundUp } from '../../core/shape.ts'
import type { Kernel } from './kernel.ts'
import type { PooledBuffer } from './pool.ts'

/** A part of a buffer, in bytes. */
export interface Range {
  buffer: PooledBuffer
  offset: number
  byteLength: number
}

export interface Dispatch {
  kind: 'dispatch'
  kernel: Kernel
  /** For storage bindings 1, 2, 3 ... */
  operands: readonly Range[]
  /** Words of the kernel's parameters after `slices`; floats by their bits. */
  params: readonly number[]
  /** The one parameter that may differ from rank to rank. */
  own: number
  /** Workgroups in x and y; z counts ranks. */
  grid: readonly [number, number]
}

export interface Copy {
  kind: 'copy'
  from: Range
  to: Range
}

export interface Upload {
  kind: 'upload'
  to: Range
  bytes: Uint8Array<ArrayBuffer>
}

export interface Reader {
  resolve(bytes: Uint8Array<ArrayBuffer>): void
  reject(error: unknown): void
}

export interface Read {
  kind: 'read'
  from: Range
  readers: Reader[]
}

export type Command = Dispatch | Copy | Upload | Read

/** A dispatch for `ranks` ranks: rank r's operand i begins `r * strides[i]` bytes after rank 0's, its own number is `own + r * ownStep`. */
export interface MergedDispatch extends Dispatch {
  ranks: number
  strides: readonly number[]
  ownStep: number
}

export type MergedCommand = MergedDispatch | Copy | Upload | Read

/** Bytes that a copy of whole words moves for a range of any alignment. */
export function paddedBytes(range: Range): number {
  return roundUp((range.offset & 3) + range.byteLength, 4)
}

export function single(command: Command): MergedCommand {
  if (command.kind !== 'dispatch') return command
  return { ...command, ranks: 1, strides: command.operands.map(() => 0), ownStep: 0 }
}

/**
 * One command that does what all of `commands` do, one a rank, or null where there is none: dispatches of one kernel on operands that
 * are shared or lie at equal steps in one buffer; uploads of the same bytes to the same place; reads of the same place.
 */
export function together(commands: readonly Command[]): MergedCommand | null {
  const first = commands[0] as Command
  if (!commands.every((c) => c.kind === first.kind)) return null
  switch (first.kind) {
    case 'dispatch':
      return dispatchTogether(commands as readonly Dispatch[])
    case 'upload':
      return (commands as readonly Upload[]).every((c) => sameRange(c.to, first.to) && sameBytes(c.bytes, first.bytes)) ? first : null
    case 'read':
      if (!(commands as readonly Read[]).every((c) => sameRange(c.from, first.from))) return null
      return { ...first, readers: (commands as readonly Read[]).flatMap((c) => c.readers) }
    case 'copy':
      return (commands as readonly Copy[]).every((c) => sameRange(c.from, first.from) && sameRange(c.to, first.to)) ? first : null
  }
}

/** True for a command that all ranks may record although it writes what they share: doing it once is what each of them means. */
export function sameCommand(a: Command, b: Command): boolean {
  const both = together([a, b])
  return both !== null && (both.kind !== 'dispatch' || both.ranks === 1)
}

function dispatchTogether(commands: readonly Dispatch[]): MergedDispatch | null {
  const [first, second] = commands as readonly [Dispatch, Dispatch]
  if (second.kernel !== first.kernel) return null
  const ownStep = second.own - first.own
  const strides = first.operands.map((range, i) => (second.operands[i] as Range).offset - range.offset)
  if (strides.some((stride) => stride < 0)) return null
  for (let r = 1; r < commands.length; r++) {
    const c = commands[r] as Dispatch
    if (c.kernel !== first.kernel || c.own !== first.own + r * ownStep) return null
    if (c.grid[0] !== first.grid[0] || c.grid[1] !== first.grid[1]) return null
    for (let i = 0; i < first.params.length; i++) if (c.params[i] !== first.params[i]) return null
    for (let i = 0; i < first.operands.length; i++) {
      const a = first.operands[i] as Range
      const b = c.operands[i] as Range
      if (b.buffer !== a.buffer || b.byteLength !== a.byteLength || b.offset !== a.offset + r * (strides[i] as number)) return null
    }
  }
  const shared = strides.every((stride) => stride === 0) && ownStep === 0
  if (shared) return { ...first, ranks: 1, strides, ownStep: 0 } // what all ranks would do alike is done once
  return keepApart(first, strides) ? { ...first, ranks: commands.length, strides, ownStep } : null
}

/** True if ranks at these strides write neither a common word nor, through two operands, a common part of a buffer. */
function keepApart({ kernel, operands }: Dispatch, strides: readonly number[]): boolean {
  const written = new Set<PooledBuffer>()
  for (const [i, { buffer, offset, byteLength }] of operands.entries()) {
    const stride = strides[i] as number
    if (stride % 4 !== 0) return false
    if (kernel.access[i] !== 'w') continue
    if (written.has(buffer) || stride < roundUp((offset & 3) + byteLength, 4)) return false
    written.add(buffer)
  }
  return true
}

function sameRange(a: Range, b: Range): boolean {
  return a.buffer === b.buffer && a.offset === b.offset && a.byteLength === b.byteLength
}

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i])
}
