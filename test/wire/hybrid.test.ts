// HybridWire over wires of promises: bytes of all ranks on nodes of any shape, groups split off, failures that reach every node.
import { describe, expect, it } from 'vitest'
import { connectHybridWire } from '../../runtime/comm/wire/hybrid-wire.ts'
import { type Wire, waitFor } from '../../runtime/comm/wire.ts'
import type { RankmeshError } from '../../runtime/core/errors.ts'
import { type FakeWire, fakeWires } from '../support/fake-wire.ts'
import { Random, seed } from '../support/random.ts'

interface Ranks {
  wires: Wire[]
  locals: FakeWire[]
  across: FakeWire[]
}

/** A hybrid wire for each rank; `nodes` are the ranks of each node. */
async function connect(nodes: readonly (readonly number[])[]): Promise<Ranks> {
  const size = nodes.flat().length
  const across = fakeWires(Array.from({ length: size }, (_, rank) => rank))
  const locals: FakeWire[] = []
  for (const ranks of nodes) {
    for (const [i, wire] of fakeWires(ranks).entries()) locals[ranks[i] as number] = wire
  }
  const one = (rank: number): Promise<Wire> =>
    connectHybridWire({ local: locals[rank] as Wire, across: across[rank] as Wire, nodes }, waitFor(1000, 'connect'))
  return { wires: await Promise.all(across.map((_, rank) => one(rank))), locals, across }
}

/** Ranks thrown onto nodes at random; no node is empty. */
function shape(random: Random, size: number, count: number): number[][] {
  const nodes: number[][] = Array.from({ length: count }, () => [])
  const order = Array.from({ length: size }, (_, rank) => rank)
  for (let i = size - 1; i > 0; i--) {
    const j = random.int(i + 1)
    ;[order[i], order[j]] = [order[j] as number, order[i] as number]
  }
  order.forEach((rank, i) => void (nodes[i < count ? i : random.int(count)] as number[]).push(rank))
  return nodes.map((ranks) => ranks.sort((a, b) => a - b))
}

const bytesOf = (random: Random): Uint8Array =>
  Uint8Array.from({ length: random.int(4) === 0 ? 0 : random.int(300) }, () => random.int(256))

/** Every wire sends random bytes through `rounds` rounds of both lanes, without awaiting one before the next. */
async function check(wires: readonly Wire[], random: Random, rounds = 6): Promise<void> {
  const sent = Array.from({ length: rounds * 2 }, () => wires.map(() => bytesOf(random)))
  const all = await Promise.all(
    sent.flatMap((bytes, i) =>
      wires.map(async (wire, rank) => {
        const got = await wire[i % 2 ? 'data' : 'control'].exchange(bytes[rank] as Uint8Array, waitFor(2000, `round ${i}`))
        return { i, got: got.map((each) => [...each]) }
      }),
    ),
  )
  for (const { i, got } of all) expect(got).toEqual((sent[i] as Uint8Array[]).map((each) => [...each]))
}

const SHAPES = [
  [
    [0, 1],
    [2, 3],
  ],
  [
    [0, 2, 4],
    [1, 3],
  ],
  [[1, 2], [0]],
  [[0], [1], [2]],
  [[3], [0, 1, 2, 5], [4]],
  [[0, 1, 2]],
]

async function errorsOf(work: readonly Promise<unknown>[]): Promise<(RankmeshError | null)[]> {
  const settled = await Promise.allSettled(work)
  return settled.map((one) => (one.status === 'rejected' ? one.reason : null))
}

describe('rounds', () => {
  for (const nodes of SHAPES) {
    it(`give the bytes of all ranks in order, for nodes ${JSON.stringify(nodes)}`, async () => {
      const value = seed()
      const { wires } = await connect(nodes)
      expect(wires.map(({ rank, size }) => [rank, size])).toEqual(wires.map((_, rank) => [rank, wires.length]))
      await check(wires, new Random(value))
    })
  }

  it('and for 30 other shapes', async () => {
    const value = seed()
    const random = new Random(value)
    for (let i = 0; i < 30; i++) {
      const size = 1 + random.int(9)
      const nodes = shape(random, size, 1 + random.int(size))
      const { wires } = await connect(nodes)
      await check(wires, random, 2).catch((error) => {
        throw new Error(`seed ${value}, nodes ${JSON.stringify(nodes)}: ${error.message}`, { cause: error })
      })
    }
  })
})

describe('pairs', () => {
  it('of one node and of two carry bytes both ways', async () => {
    const { wires } = await connect([
      [0, 3],
      [1, 2],
    ])
    for (let src = 0; src < 4; src++) {
      for (let dst = 0; dst < 4; dst++) {
        if (src === dst) continue
        const [a, b] = [wires[src]!.pair(src, dst), wires[dst]!.pair(src, dst)]
        expect([a.rank, b.rank]).toEqual([0, 1])
        const [x, y] = await Promise.all([
          a.exchange(Uint8Array.of(src), waitFor(1000, 'a')),
          b.exchange(Uint8Array.of(dst, 9), waitFor(1000, 'b')),
        ])
        for (const got of [x, y]) expect(got.map((each) => [...each])).toEqual([[src], [dst, 9]])
      }
    }
  })
})

describe('groups split off', () => {
  it('of any ranks in any order exchange as the whole does, and the whole goes on', async () => {
    const value = seed()
    const random = new Random(value)
    for (let i = 0; i < 20; i++) {
      const nodes = shape(random, 6, 1 + random.int(4))
      const { wires } = await connect(nodes)
      const ranks = shape(random, 6, 1)[0]!.filter(() => random.int(3) > 0)
      const order = ranks.length > 0 ? ranks.reverse() : [4]
      const parts = await Promise.all(order.map((rank) => wires[rank]!.split(order, 'part', waitFor(1000, 'split'))))
      expect(
        parts.map(({ rank }) => rank),
        `seed ${value}`,
      ).toEqual(order.map((_, rank) => rank))
      expect(parts.map(({ members }) => members)).toEqual(order.map(() => order))
      await check(parts, random, 2)
      await check(wires, random, 2)
    }
  })

  it('on one node stay there; with one rank of each need no leaders', async () => {
    const { wires } = await connect([
      [0, 1],
      [2, 3],
    ])
    const split = (ranks: readonly number[]): Promise<Wire[]> =>
      Promise.all(ranks.map((rank) => wires[rank]!.split(ranks, `${ranks}`, waitFor(1000, 'split'))))
    expect((await split([1, 0])).map(({ backend }) => backend)).toEqual(['thread', 'thread'])
    expect((await split([1, 2])).map(({ backend }) => backend)).toEqual(['thread', 'thread'])
    expect((await split([0, 1, 2])).map(({ backend }) => backend)).toEqual(['hybrid', 'hybrid', 'hybrid'])
  })
})

describe('failures', () => {
  const NODES = [
    [0, 1],
    [2, 3],
  ]

  it('inside one node reach all ranks of the others', async () => {
    const { wires, locals } = await connect(NODES)
    const waiting = errorsOf([0, 1, 2].map((rank) => wires[rank]!.control.exchange(new Uint8Array(1), waitFor(60_000, 'never()'))))
    locals[2]!.fail({ code: 'ERR_RANK_FAILED', message: 'Rank 3 died', rank: 3 })
    for (const error of await waiting) expect(error).toMatchObject({ code: 'ERR_RANK_FAILED', rank: 3, message: 'Rank 3 died' })
    for (const wire of wires) expect(wire.failure).toMatchObject({ rank: 3 })
  })

  it('between nodes reach all ranks inside', async () => {
    const { wires, across } = await connect(NODES)
    const waiting = errorsOf(wires.slice(0, 3).map((wire) => wire.data.exchange(new Uint8Array(1), waitFor(60_000, 'never()'))))
    const watched = new Promise<RankmeshError>((resolve) => void wires[1]!.watch(resolve))
    across[0]!.fail({ code: 'ERR_RANK_FAILED', message: 'Rank 2 is gone', rank: 2 })
    for (const error of await waiting) expect(error).toMatchObject({ code: 'ERR_RANK_FAILED', rank: 2 })
    expect(await watched).toMatchObject({ rank: 2 })
  })

  for (const absent of [0, 1, 2, 3]) {
    it(`name rank ${absent}, which does not arrive, and not a leader that waits for it`, async () => {
      const { wires } = await connect(NODES)
      const others = wires.filter((_, rank) => rank !== absent)
      const errors = await errorsOf(others.map((wire) => wire.control.exchange(new Uint8Array(1), waitFor(150, 'late()'))))
      for (const error of errors)
        expect(error).toMatchObject({ code: 'ERR_TIMEOUT', rank: absent, message: expect.stringContaining('late()') })
    })
  }

  it('of one rank that is told to stop reach all others', async () => {
    const { wires } = await connect(NODES)
    const controller = new AbortController()
    const call = (wire: Wire, signal?: AbortSignal): Promise<unknown> =>
      wire.control.exchange(new Uint8Array(1), waitFor(60_000, 'never()', signal))
    const waiting = errorsOf([call(wires[0]!), call(wires[1]!), call(wires[3]!, controller.signal)])
    controller.abort(new Error('enough'))
    const [first, second, third] = await waiting
    expect(third).toMatchObject({ message: 'enough' })
    for (const error of [first, second]) expect(error).toMatchObject({ code: 'ERR_RANK_FAILED', rank: 3 })
  })

  it('a rank that leaves completes what it has joined; what it has not fails for the others', async () => {
    const value = seed()
    const { wires } = await connect(NODES)
    const last = wires[3]!.control.exchange(Uint8Array.of(3), waitFor(2000, 'last()'))
    wires[3]!.close()
    const others = wires.slice(0, 3)
    const rest = await Promise.all(others.map((wire, rank) => wire.control.exchange(Uint8Array.of(rank), waitFor(2000, 'last()'))))
    for (const got of [await last, ...rest])
      expect(
        got.map(([byte]) => byte),
        `seed ${value}`,
      ).toEqual([0, 1, 2, 3])
    const errors = await errorsOf(others.map((wire) => wire.control.exchange(new Uint8Array(1), waitFor(2000, 'alone()'))))
    for (const error of errors) expect(error).toMatchObject({ code: 'ERR_RANK_FAILED', rank: 3 })
    const [own] = await errorsOf([wires[3]!.control.exchange(new Uint8Array(1), waitFor(2000, 'again()'))])
    expect(own).toMatchObject({ code: 'ERR_RANK_FAILED', rank: 3, message: expect.stringContaining('closed its part') })
  })
})
