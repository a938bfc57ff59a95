// Lanes: each rank's commands in its own order, and how lanes are merged so that nobody sees another order than that of the calls.
import { type Command, type MergedCommand, type Range, sameCommand, single, together } from './commands.ts'
import type { PooledBuffer } from './pool.ts'

/** Places of one buffer that a lane keeps apart; with more of them it takes them for one. */
const MAX_SPANS = 32

/** Bytes of a buffer that waiting commands use; `at` is the place in the lane of the last of them. */
interface Span {
  begin: number
  end: number
  written: boolean
  at: number
}

class Lane {
  commands: Command[] = []
  readonly spans = new Map<PooledBuffer, Span[]>()

  /** The last waiting command that must run before `command`, for the bytes they share; -1 where there is none. */
  lastBefore(command: Command | MergedCommand): number {
    let last = -1
    eachAccess(command, ({ buffer, offset, byteLength }, written) => {
      for (const span of this.spans.get(buffer) ?? []) {
        const clash = (written || span.written) && span.begin < offset + byteLength && offset < span.end
        if (clash) last = Math.max(last, span.at)
      }
    })
    return last
  }

  add(command: Command): void {
    const at = this.commands.length
    this.commands.push(command)
    eachAccess(command, (range, written) => {
      const spans = this.spans.get(range.buffer)
      const end = range.offset + range.byteLength
      if (!spans) {
        this.spans.set(range.buffer, [{ begin: range.offset, end, written, at }])
        return
      }
      const same = spans.find((span) => span.begin === range.offset && span.end === end)
      if (same) {
        same.at = at
        same.written ||= written
      } else if (spans.length < MAX_SPANS) spans.push({ begin: range.offset, end, written, at })
      else spans.splice(0, spans.length, { begin: 0, end: range.buffer.size, written: written || spans.some((s) => s.written), at })
    })
  }

  take(): Command[] {
    this.spans.clear()
    const commands = this.commands
    this.commands = []
    return commands
  }
}

/**
 * Merging takes the lanes in lockstep: first command of each, second of each, and so on, so that what ranks do alike becomes one command.
 * Ranks that share memory would notice where that changes the order of two commands that touch the same bytes; then lanes are merged before
 * the later of the two is recorded.
 */
export class Lanes {
  readonly #lanes: Lane[] = []
  /** Some lane relies on another one being merged no later than itself. */
  #linked = false

  /** Opens a lane and returns its number. */
  open(): number {
    return this.#lanes.push(new Lane()) - 1
  }

  /** Commands that wait in a lane. */
  length(lane: number): number {
    return (this.#lanes[lane] as Lane).commands.length
  }

  add(lane: number, command: Command, stream: MergedCommand[]): void {
    const own = this.#lanes[lane] as Lane
    if (this.#mustMergeBefore(command, own)) this.mergeAll(stream)
    own.add(command)
  }

  /** Merges all lanes if one of them must come before a command that is about to join the stream. */
  settleFor(command: MergedCommand, stream: MergedCommand[]): void {
    if (this.#lanes.some((lane) => lane.commands.length > 0 && lane.lastBefore(command) >= 0)) this.mergeAll(stream)
  }

  merge(lanes: readonly number[], stream: MergedCommand[]): void {
    if (this.#linked) this.mergeAll(stream)
    else lockstep(lanes.map((lane) => (this.#lanes[lane] as Lane).take()).filter(isFilled), stream)
  }

  mergeAll(stream: MergedCommand[]): void {
    this.#linked = false
    lockstep(this.#lanes.map((lane) => lane.take()).filter(isFilled), stream)
  }

  #mustMergeBefore(command: Command, own: Lane): boolean {
    const place = own.commands.length
    for (const lane of this.#lanes) {
      if (lane === own || lane.commands.length === 0) continue
      const last = lane.lastBefore(command)
      const twin = last >= place ? lane.commands[place] : undefined
      if (last >= place && !(twin && sameCommand(twin, command))) return true
      if (last >= 0) this.#linked = true
    }
    return false
  }
}

function isFilled(commands: readonly Command[]): boolean {
  return commands.length > 0
}

function lockstep(queues: readonly (readonly Command[])[], stream: MergedCommand[]): void {
  const length = Math.max(0, ...queues.map((queue) => queue.length))
  for (let i = 0; i < length; i++) {
    for (const alike of groups(queues.filter((queue) => i < queue.length).map((queue) => queue[i] as Command))) {
      const merged = alike.length > 1 ? together(alike) : null
      if (merged) stream.push(merged)
      else for (const command of alike) stream.push(single(command))
    }
  }
}

/** Commands of one kind and kernel, together; the rest of a row of lanes does not keep them from being merged. */
function groups(row: readonly Command[]): Iterable<readonly Command[]> {
  if (row.length === 1) return [row]
  const byKind = new Map<unknown, Command[]>()
  for (const command of row) {
    const kind = command.kind === 'dispatch' ? command.kernel : command.kind
    const alike = byKind.get(kind)
    if (alike) alike.push(command)
    else byKind.set(kind, [command])
  }
  return byKind.values()
}

/** Tells of each range that a command reads or writes. */
function eachAccess(command: Command | MergedCommand, tell: (range: Range, written: boolean) => void): void {
  switch (command.kind) {
    case 'dispatch':
      for (let i = 0; i < command.operands.length; i++) {
        const range = command.operands[i] as Range
        const more = 'ranks' in command ? (command.ranks - 1) * (command.strides[i] as number) : 0
        tell(more === 0 ? range : { ...range, byteLength: range.byteLength + more }, command.kernel.access[i] === 'w')
      }
      break
    case 'copy':
      tell(command.from, false)
      tell(command.to, true)
      break
    case 'upload':
      tell(command.to, true)
      break
    case 'read':
      tell(command.from, false)
  }
}
