// The native engine by itself: it refuses what is no command, keeps the event loop free, and ends with the thread and the process it is in.
import { spawn } from 'node:child_process'
import { rmSync } from 'node:fs'
import { dirname } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { CpuEngine, EngineQueue } from '../../runtime/core/addon.ts'
import { loadAddon } from '../../runtime/core/addon-node.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import { CpuDevice } from '../../runtime/device/cpu/device.ts'
import { OP } from '../../runtime/device/engine/commands.ts'
import { bundle } from '../support/bundle.ts'
import { reason } from '../support/cpu.ts'
import { Random, seed } from '../support/random.ts'

const create = loadAddon()?.createCpuEngine as () => CpuEngine

describe.skipIf(reason)(`the native engine${reason}`, () => {
  it('aligns its memory, and takes it back at once', () => {
    const engine = create()
    const { id, buffer } = engine.allocate(100)
    expect(buffer.byteLength).toBe(100)
    new Uint8Array(buffer).fill(1)
    engine.free(id, buffer)
    expect(buffer.byteLength).toBe(0)
    for (const bytes of [0, -1, 0.5, Number.NaN, 2 ** 50]) expect(() => engine.allocate(bytes)).toThrow(RangeError)
  })

  it.each([
    ['no such op', [17]],
    ['an op that is no number', [Number.NaN]],
    ['too few words', [OP.copy, 8, 1, 0, 1]],
    ['a block that is not there', [OP.copy, 8, 1, 0, 7, 0]],
    ['an operand past the end', [OP.copy, 65, 1, 0, 1, 0]],
    ['an offset past the end', [OP.add, 4, 0, 1, 0, 1, 0, 1, 64]],
    ['an operand that is not aligned', [OP.add, 4, 0, 1, 0, 1, 2, 1, 0]],
    ['half a size', [OP.softmax, 0.5, 4, 1, 0, 1, 0]],
    ['a negative size', [OP.softmax, -1, 4, 1, 0, 1, 0]],
    ['no such type', [OP.cast, 4, 0, 3, 1, 0, 1, 0]],
    ['a product of sizes past all numbers', [OP.matmul, 2 ** 47, 2 ** 47, 2 ** 47, 0, 0, 0, 1, 0, 1, 0, 1, 0, 1, 0]],
    ['a rounding that is none', [OP.matmul, 1, 4, 1, 1, 0, 3, 0, 0, 0, 1, 0, 1, 0, 1, 0, 1, 16]],
    ['heads that do not divide', [OP.attention, 1, 3, 2, 4, 0, 0, 1, 1, 0, 1, 0, 1, 0, 1, 0]],
    ['a tree of blocks of nothing', [OP.matmulTree, 1, 4, 1, 0, 0, 0, 0, 0, 1, 1, 0, 1, 0, 1, 0, 1, 0]],
    ['a queue that is not there', [OP.wait, 5, 1]],
    ['a meeting of nobody', [OP.meet, 1, 0, 0]],
    ['a meeting that nobody leads', [OP.meet, 1, 1, 0]],
    ['a meeting that brings no work', [OP.meet, 1, 1, 1]],
    ['a wait as shared work', [OP.meet, 1, 1, 1, OP.wait, 0, 1]],
    ['a meeting as shared work', [OP.meet, 1, 1, 1, OP.meet, 2, 1, 1]],
    ['a join of nothing', [OP.reduce, 1, 4, 4, 2, 0, 1, 0, 0, 1, 1, 1, 0, 1, 16, 1, 32]],
    ['slices that are not joined', [OP.reduce, 1, 4, 4, 2, 0, 1, 0, 0, 0, 0, 1, 0, 1, 16, 1, 32]],
    ['more slices than words', [OP.reduce, 1, 4, 4, 2 ** 19, 0, 1, 0, 0, 0, 1, 1, 1]],
    ['a slice past the end', [OP.reduce, 1, 4, 4, 2, 0, 1, 0, 0, 0, 1, 1, 0, 1, 52, 1, 32]],
    ['rows that overlap', [OP.reduce, 2, 4, 3, 1, 0, 1, 0, 0, 0, 1, 0, 1, 32]],
    ['a signed reduction of floats', [OP.reduce, 1, 4, 4, 1, 4, 1, 0, 0, 0, 1, 0, 1, 32]],
    ['words as floats', [OP.reduce, 1, 4, 4, 1, 0, 1, 3, 0, 0, 1, 0, 1, 32]],
    ['a division by nothing', [OP.reduce, 1, 4, 4, 1, 0, 0, 0, 0, 0, 1, 0, 1, 32]],
    ['a residual past the end', [OP.reduceNorm, 1, 8, 1, 0, 0, 1, 0, 0, 0, 1, 0, 1, 40, 1, 0, 1, 0, 1, 32]],
    ['rows wider than their pitch', [OP.gather, 1, 2, 7, 4, 4, 1, 0, 1, 4, 1, 32]],
  ])('refuses %s', (_, words) => {
    const engine = create()
    engine.allocate(64)
    const queue = engine.createQueue(-1)
    expect(() => queue.submit(Float64Array.from(words), words.length)).toThrow(RangeError)
    queue.close()
  })

  it('a queue that would wait for itself is refused', () => {
    const queue = create().createQueue(-1)
    expect(() => queue.submit(Float64Array.of(OP.wait, 0, 5), 3)).toThrow(RangeError)
    queue.close()
  })

  const start = seed()
  it(`random words are refused or run, and touch nothing else (seed ${start})`, async () => {
    const random = new Random(start)
    const engine = create()
    const blocks = Array.from({ length: 3 }, () => engine.allocate(256))
    for (const { buffer } of blocks) new Uint8Array(buffer).fill(0)
    const queue = engine.createQueue(-1)
    let ran = 0
    for (let round = 0; round < 40_000; round++) {
      // No meeting anywhere among them: its other members would never come.
      const words = Float64Array.from({ length: 24 }, () => random.int(random.int(4) === 0 ? 20 : 4)).map((word) =>
        word === OP.meet ? 0 : word,
      )
      words[0] = 1 + random.int(16)
      if (words[0] === OP.meet) words[0] = OP.reduce
      try {
        queue.submit(words, 24)
        ran++
      } catch (error) {
        expect(error).toBeInstanceOf(RangeError)
      }
      // Any prefix that is a whole command, too.
      for (const count of [5, 6, 7, 9, 12, 14]) {
        try {
          queue.submit(words, count)
          ran++
        } catch {}
      }
    }
    expect(await queue.finish()).toBe(true)
    expect(ran).toBeGreaterThan(100)
    queue.close()
    expect(await queue.finish()).toBe(false)
  })

  /** Adds two numbers of block 1 into the third, as a queue that meets others. */
  const sum = (id: number, members: number): number[] => [
    OP.meet,
    id,
    members,
    1,
    OP.reduce,
    1,
    1,
    1,
    2,
    0,
    1,
    0,
    0,
    0,
    1,
    1,
    0,
    1,
    4,
    1,
    8,
  ]

  it('queues that meet share the work out, whoever comes first', async () => {
    const engine = create()
    const { buffer } = engine.allocate(64)
    const numbers = new Float32Array(buffer)
    const queues = Array.from({ length: 3 }, () => engine.createQueue(-1))
    for (let id = 0; id < 300; id++) {
      numbers.set([id, 1, 0])
      for (const [i, queue] of queues.entries()) {
        const words = i === id % 3 ? sum(id, 3) : [OP.meet, id, 3, 0]
        queue.submit(Float64Array.from(words), words.length)
      }
      expect(await (queues[(id + 1) % 3] as EngineQueue).finish()).toBe(true)
      expect(numbers[2]).toBe(id + 1)
    }
    for (const queue of queues) queue.close()
  })

  it('a queue whose peer was closed before they met ends when it is closed, and says so', async () => {
    const engine = create()
    engine.allocate(64)
    for (let round = 0; round < 20; round++) {
      const [a, b, c] = [engine.createQueue(-1), engine.createQueue(-1), engine.createQueue(-1)]
      const id = 1000 + round
      a.submit(Float64Array.from(sum(id, 3)), sum(id, 3).length)
      b.submit(Float64Array.from([OP.meet, id, 3, 0]), 4)
      const pending = [a.finish(), b.finish()]
      if (round % 2 === 0) await new Promise((resolve) => setTimeout(resolve, 2))
      // The third has this meeting behind one that nobody else comes to.
      c.submit(Float64Array.from([...sum(2000 + round, 2), OP.meet, id, 3, 0]), sum(id, 2).length + 4)
      for (const queue of [c, a, b]) queue.close()
      expect(await Promise.all(pending)).toEqual([false, false])
    }
  })

  it('the event loop goes on while a queue computes', async () => {
    using device = CpuDevice.open(create())
    const x = Tensor.full([64, 2048], 1, { device })
    const w = Tensor.full([2048, 2048], 0.5, { device })
    for (let i = 0; i < 10; i++) device.matmul(x, w).dispose()
    let ticks = 0
    const timer = setInterval(() => ticks++, 1)
    const began = performance.now()
    await device.sync()
    const took = performance.now() - began
    clearInterval(timer)
    expect(took).toBeGreaterThan(10)
    expect(ticks, `in ${took} ms`).toBeGreaterThan(took / 10)
  })
})

describe.skipIf(reason)(`programs that end in the middle${reason}`, () => {
  let program: string
  beforeAll(async () => {
    program = await bundle('test/cpu/endings.ts')
  })
  afterAll(() => rmSync(dirname(program), { recursive: true, force: true }))

  it.each(['idle', 'unread', 'exit', 'worker', 'collected'])('%s', async (ending) => {
    const child = spawn(process.execPath, ['--expose-gc', program, ending], { timeout: 60_000 })
    let text = ''
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (text += chunk))
    const [code, signal] = await new Promise<[number | null, string | null]>((resolve) => child.on('close', (...how) => resolve(how)))
    expect({ code, signal, text }).toEqual({ code: 0, signal: null, text: 'done\n' })
  })
})
