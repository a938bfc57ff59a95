// Mapping against the recorded cases of the original, its worked examples, every refusal, and properties over random factorisations.
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { ArgumentError } from '../../runtime/core/errors.ts'
import { Mapping, type MappingDictInput, type MappingOptions, type RankGroup } from '../../runtime/scheduler/mapping.ts'

interface Fixture {
  cases: { args: MappingDictInput; expect: Record<string, unknown> }[]
  errors: { args: MappingDictInput; error: string; message: string }[]
}

const fixture: Fixture = JSON.parse(readFileSync(new URL('../fixtures/mapping.json', import.meta.url), 'utf8'))

const KINDS = ['tp', 'pp', 'cp', 'moeTp', 'moeCluster', 'moeEp'] as const

function groupsOf(mapping: Mapping, kind: (typeof KINDS)[number]): readonly RankGroup[] {
  return mapping[`${kind}Groups`]
}

/** What `mapping` says under a name of the recorded cases: `tp_group`, `is_first_pp_rank`, `pp_layers_32`, ... */
function read(mapping: Mapping, key: string): unknown {
  if (key === 'sizes') return mapping.toDict()
  const counted = /^(pp_layers|ep_experts)_(\d+)$/.exec(key)
  if (counted) return counted[1] === 'pp_layers' ? mapping.ppLayers(Number(counted[2])) : mapping.epExperts(Number(counted[2]))
  const name = key.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase())
  if (!(name in mapping)) return expect.fail(`a recorded case has ${key}, which is not read here`)
  const member = mapping[name as keyof Mapping]
  return typeof member === 'function' ? (member as () => unknown).call(mapping) : member
}

/** Our MoE groups from their definition: every tp group in turn, cut at `stride` or in runs. */
function moeGroupsInside(mapping: Mapping): Record<string, number[][]> {
  const { moeTpSize, moeClusterSize, moeEpSize, tpGroups } = mapping
  const stride = moeClusterSize * moeEpSize
  const cut = (count: number, member: (group: RankGroup, i: number) => number[]) =>
    tpGroups.flatMap((group) => Array.from({ length: count }, (_, i) => member(group, i)))
  return {
    moe_tp_groups: cut(stride, (group, i) => group.filter((_, at) => at % stride === i)),
    moe_cluster_groups: cut(moeTpSize, (group, i) => group.slice(i * stride, (i + 1) * stride)),
    moe_ep_groups: cut(moeTpSize * moeClusterSize, (group, i) => group.slice(i * moeEpSize, (i + 1) * moeEpSize)),
  }
}

function expectArgumentError(action: () => unknown, message: RegExp): void {
  try {
    action()
  } catch (error) {
    expect(error).toBeInstanceOf(ArgumentError)
    expect(error).toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringMatching(message) })
    return
  }
  expect.fail(`nothing was thrown; expected ${message}`)
}

describe('recorded cases of the original', () => {
  // With cpSize > 1 the original lists MoE groups for the first ppSize * tpSize ranks only, and a rank's own group may not contain it.
  // The recorded cases leave those fields out; ours are compared with their definition instead. No recorded rank is outside its world.
  const MOE_FIELDS = ['moe_tp_group', 'moe_cluster_group', 'moe_ep_group', 'moe_tp_groups', 'moe_cluster_groups', 'moe_ep_groups']
  const exact = fixture.cases.filter(({ args }) => args.cp_size === 1)
  const differing = fixture.cases.filter(({ args }) => args.cp_size !== 1)

  test('every case is compared, half of them with our own MoE groups', () => {
    expect(fixture.cases.length).toBe(40)
    expect(exact.length).toBe(20)
    expect(differing.length).toBe(20)
    for (const { expect: fields } of exact) expect(Object.keys(fields)).toEqual(expect.arrayContaining([...MOE_FIELDS, 'ep_experts_8']))
    for (const { expect: fields } of differing)
      for (const field of [...MOE_FIELDS, 'ep_experts_8']) expect(fields).not.toHaveProperty(field)
    expect(fixture.errors.length).toBe(20)
  })

  test.each(fixture.cases.map((each) => ({ ...each, name: JSON.stringify(each.args) })))('$name', ({ args, expect: fields }) => {
    const mapping = Mapping.fromDict(args)
    for (const [key, value] of Object.entries(fields)) expect(read(mapping, key), key).toEqual(value)
    for (const [key, value] of Object.entries(moeGroupsInside(mapping))) {
      expect(read(mapping, key), key).toEqual(value)
      const own = value.filter((group) => group.includes(mapping.rank))
      expect(own).toEqual([read(mapping, key.slice(0, -1))])
    }
  })

  const REFUSALS: [theirs: RegExp, ours: RegExp][] = [
    [/^attn_cp_size must be 1/, /attnCpSize 1/],
    [/^world_size must equal/, /tpSize \* ppSize \* cpSize to equal worldSize/],
    [/^tp_size must equal to moe/, /moeTpSize \* moeEpSize \* moeClusterSize to equal tpSize/],
    [/^tp_size \* cp_size must equal to attn/, /attnTpSize \* attnCpSize to equal tpSize \* cpSize/],
    [/^CP don't support MoE/, /moeEpSize 1 with cpSize/],
  ]

  test.each(fixture.errors.map((each) => ({ ...each, name: JSON.stringify(each.args) })))('refused for the same reason: $name', (each) => {
    const ours = REFUSALS.find(([theirs]) => theirs.test(each.message))?.[1]
    if (ours === undefined) return expect.fail(`no counterpart of ${each.message}`)
    expectArgumentError(() => Mapping.fromDict(each.args), ours)
  })
})

describe('refusals', () => {
  const CASES: [MappingOptions, RegExp][] = [
    [{ attnCpSize: 2 }, /attnCpSize 1 but received 2/],
    [{ worldSize: 4, cpSize: 2, tpSize: 2, attnTpSize: 2 }, /attnCpSize 1 but received 2 \(attnTpSize 2\)/],
    [{ worldSize: 8, autoParallel: true, tpSize: 2 }, /with autoParallel but received 2, 1 and 1/],
    [{ worldSize: 8, autoParallel: true, ppSize: 2 }, /with autoParallel but received 1, 2 and 1/],
    [{ worldSize: 8, autoParallel: true, cpSize: 2 }, /with autoParallel but received 1, 1 and 2/],
    [{ worldSize: 8, tpSize: 4 }, /received 4 \* 1 \* 1 for a world of 8; .*worldSize to 4/],
    [{ worldSize: 8, tpSize: 8, moeTpSize: 3 }, /received 3 \* 2 \* 1 for tpSize 8/],
    [{ worldSize: 8, tpSize: 8, moeTpSize: 4, moeEpSize: 4 }, /received 4 \* 4 \* 1 for tpSize 8/],
    [{ worldSize: 2, tpSize: 2, moeEpSize: 4 }, /received 0 \* 4 \* 1 for tpSize 2/],
    [{ worldSize: 2, tpSize: 2, attnTpSize: 4, attnCpSize: 1 }, /received 4 \* 1 for 2 \* 1/],
    [{ worldSize: 8, tpSize: 4, cpSize: 2, moeEpSize: 2 }, /moeEpSize 1 with cpSize 2/],
    [{ worldSize: 8, tpSize: 8, moeEpSize: 2, moeClusterSize: 2 }, /moeEpSize 1 with moeClusterSize 2/],
    [{ autoParallel: 1 } as unknown as MappingOptions, /a boolean for autoParallel/],
    [{ world_size: 8 } as MappingOptions, /Unknown option "world_size".*fromDict/],
    [{ tpsize: 8 } as MappingOptions, /Unknown option "tpsize".*tpSize/],
  ]

  test.each(CASES)('%j', (options, message) => {
    expectArgumentError(() => new Mapping(options), message)
  })

  test.each(['worldSize', 'gpusPerNode', 'cpSize', 'tpSize', 'ppSize'])('%s has to be a positive integer', (name) => {
    for (const size of [0, -1, -2, 1.5, Number.NaN, Infinity, '2', null, 2n]) {
      expectArgumentError(() => new Mapping({ [name]: size }), new RegExp(`for ${name} but received`))
    }
  })

  test.each(['moeClusterSize', 'moeTpSize', 'moeEpSize', 'attnTpSize', 'attnCpSize'])('%s has to be a positive integer or -1', (name) => {
    for (const size of [0, -2, 1.5, Number.NaN, Infinity, '2', null, 2n]) {
      expectArgumentError(() => new Mapping({ [name]: size }), new RegExp(`for ${name} but received`))
    }
    expect(new Mapping({ [name]: -1 }).equals(new Mapping())).toBe(true)
  })

  test.each([false, true])('a rank outside the world, in the constructor and in the setter, enableAttentionDp %s', (enableAttentionDp) => {
    const mapping = new Mapping({ worldSize: 8, tpSize: 8, rank: 3, enableAttentionDp })
    for (const rank of [8, -1, 1e9, 1.5, Number.NaN, '1', null, 1n] as number[]) {
      const message = /an integer in \[0, 7\].*for rank but received/
      expectArgumentError(() => new Mapping({ worldSize: 8, tpSize: 8, rank, enableAttentionDp }), message)
      expectArgumentError(() => {
        mapping.rank = rank
      }, message)
      expectArgumentError(() => mapping.getNodeRank(rank), message)
      expectArgumentError(() => mapping.getLocalRank(rank), message)
    }
    expect(mapping.rank).toBe(3)
  })

  test('counts of layers and experts', () => {
    const mapping = new Mapping()
    for (const count of [-1, 1.5, Number.NaN]) {
      expectArgumentError(() => mapping.ppLayers(count), /for layerCount/)
      expectArgumentError(() => mapping.epExperts(count), /for expertCount/)
    }
    expectArgumentError(() => new Mapping({ worldSize: 8, tpSize: 4, cpSize: 2 }).epExperts(8), /cpSize 1 for epExperts but received 2/)
  })

  test('an unknown key of a dict', () => {
    expectArgumentError(() => Mapping.fromDict({ worldSize: 8 } as MappingDictInput), /Unknown key "worldSize".*world_size/)
    expectArgumentError(() => Mapping.fromDict({ toString: 1 } as unknown as MappingDictInput), /Unknown key "toString"/)
  })

  test('groups are frozen', () => {
    const mapping = new Mapping({ worldSize: 4, tpSize: 4 })
    expect(() => (mapping.tpGroup as number[]).push(9)).toThrow(TypeError)
    expect(() => (mapping.tpGroups as RankGroup[]).pop()).toThrow(TypeError)
    expect(() => ((mapping.tpGroups[0] as number[])[0] = 9)).toThrow(TypeError)
  })
})

describe('worked examples', () => {
  test('A: two stages of tp 4', () => {
    const mapping = new Mapping({ worldSize: 8, tpSize: 4, ppSize: 2, rank: 5 })
    expect(mapping.tpGroups).toEqual([
      [0, 1, 2, 3],
      [4, 5, 6, 7],
    ])
    expect(mapping.ppGroups).toEqual([
      [0, 4],
      [1, 5],
      [2, 6],
      [3, 7],
    ])
    expect(mapping.cpGroups).toEqual([[0], [1], [2], [3], [4], [5], [6], [7]])
    expect([mapping.tpRank, mapping.ppRank, mapping.cpRank, mapping.prevPpRank(), mapping.nextPpRank()]).toEqual([1, 1, 0, 1, 1])
    expect(mapping.tpGroup).toEqual([4, 5, 6, 7])
    expect(mapping.ppGroup).toEqual([1, 5])
    expect(mapping.ppLayers(10)).toEqual([5, 6, 7, 8, 9])
    expect(mapping.ppLayers(61).length).toBe(30)
    mapping.rank = 1
    expect(mapping.ppLayers(61).length).toBe(31)
  })

  test('B: cp 2, where the original lists one MoE group only', () => {
    const mapping = new Mapping({ worldSize: 8, tpSize: 4, cpSize: 2, rank: 5 })
    expect(mapping.cpGroups).toEqual([
      [0, 4],
      [1, 5],
      [2, 6],
      [3, 7],
    ])
    expect(mapping.ppGroups).toEqual([[0], [1], [2], [3], [4], [5], [6], [7]])
    expect([mapping.attnTpSize, mapping.attnCpSize, mapping.tpRank, mapping.cpRank]).toEqual([8, 1, 1, 1])
    expect(mapping.cpGroup).toEqual([1, 5])
    expect([mapping.prevPpRank(), mapping.nextPpRank()]).toEqual([5, 5])
    expect(mapping.moeTpGroups).toEqual([
      [0, 1, 2, 3],
      [4, 5, 6, 7],
    ])
    expect(mapping.moeTpGroup).toEqual([4, 5, 6, 7])
  })

  test('C: moe tp 2, moe ep 4', () => {
    const mapping = new Mapping({ worldSize: 8, tpSize: 8, moeTpSize: 2, moeEpSize: 4, rank: 6 })
    expect(mapping.moeTpGroups).toEqual([
      [0, 4],
      [1, 5],
      [2, 6],
      [3, 7],
    ])
    expect(mapping.moeEpGroups).toEqual([
      [0, 1, 2, 3],
      [4, 5, 6, 7],
    ])
    expect([mapping.moeTpRank, mapping.moeEpRank]).toEqual([1, 2])
    expect(mapping.moeTpGroup).toEqual([2, 6])
    expect(mapping.moeEpGroup).toEqual([4, 5, 6, 7])
    expect(mapping.epExperts(256)).toEqual(Array.from({ length: 64 }, (_, i) => 128 + i))
    expect(mapping.epExperts(7)).toEqual([2])
  })

  test('D: the same over two nodes and two stages', () => {
    const mapping = new Mapping({ worldSize: 16, tpSize: 8, ppSize: 2, moeTpSize: 2, moeEpSize: 4, rank: 13 })
    expect(mapping.moeTpGroups).toEqual([0, 1, 2, 3, 8, 9, 10, 11].map((first) => [first, first + 4]))
    expect(mapping.moeEpGroups).toEqual([0, 4, 8, 12].map((first) => [first, first + 1, first + 2, first + 3]))
    expect(mapping.ppGroups).toEqual(Array.from({ length: 8 }, (_, i) => [i, i + 8]))
    expect([mapping.nodeRank, mapping.localRank, mapping.ppRank, mapping.moeTpRank, mapping.moeEpRank]).toEqual([1, 5, 1, 1, 1])
    expect(mapping.moeTpGroup).toEqual([9, 13])
    expect(mapping.moeEpGroup).toEqual([12, 13, 14, 15])
    expect([mapping.prevPpRank(), mapping.nextPpRank()]).toEqual([5, 5])
    expect(mapping.epExperts(256)).toEqual(Array.from({ length: 64 }, (_, i) => 64 + i))
    expect(mapping.isMultiNode()).toBe(true)
    expect(new Mapping({ worldSize: 8, tpSize: 8 }).isMultiNode()).toBe(false)
    expect([mapping.getNodeRank(7), mapping.getLocalRank(7), mapping.getNodeRank(8), mapping.getLocalRank(8)]).toEqual([0, 7, 1, 0])
  })

  test('E: tp 2, pp 2, cp 2, where the MoE group of rank 3 does not contain it in the original', () => {
    const mapping = new Mapping({ worldSize: 8, tpSize: 2, ppSize: 2, cpSize: 2, rank: 3 })
    const pairs = (...groups: [number, number][]) => groups
    expect(mapping.tpGroups).toEqual(pairs([0, 1], [2, 3], [4, 5], [6, 7]))
    expect(mapping.ppGroups).toEqual(pairs([0, 4], [1, 5], [2, 6], [3, 7]))
    expect(mapping.cpGroups).toEqual(pairs([0, 2], [1, 3], [4, 6], [5, 7]))
    expect([mapping.tpRank, mapping.cpRank, mapping.ppRank]).toEqual([1, 1, 0])
    expect([mapping.prevPpRank(), mapping.nextPpRank()]).toEqual([7, 7])
    expect([mapping.isFirstPpRank(), mapping.isSecondLastPpRank(), mapping.isLastPpRank()]).toEqual([true, true, false])
    expect(mapping.ppLayers(10)).toEqual([0, 1, 2, 3, 4])
    expect(mapping.moeTpGroups).toEqual(pairs([0, 1], [2, 3], [4, 5], [6, 7]))
    expect(mapping.moeTpGroup).toEqual([2, 3])
  })

  test('F: a moe cluster of 2; three stages of one rank', () => {
    const mapping = new Mapping({ worldSize: 8, tpSize: 8, moeClusterSize: 2 })
    expect([mapping.moeTpSize, mapping.moeEpSize, mapping.hasMoeCluster(), mapping.hasMoeTp(), mapping.hasMoeEp()]).toEqual([
      4,
      1,
      true,
      true,
      false,
    ])
    expect(mapping.moeClusterGroups).toEqual([
      [0, 1],
      [2, 3],
      [4, 5],
      [6, 7],
    ])
    expect(mapping.moeTpGroups).toEqual([
      [0, 2, 4, 6],
      [1, 3, 5, 7],
    ])
    const stages = [0, 1, 2].map((rank) => new Mapping({ worldSize: 3, ppSize: 3, rank }))
    expect(stages.map((stage) => stage.ppLayers(10))).toEqual([
      [0, 1, 2, 3],
      [4, 5, 6],
      [7, 8, 9],
    ])
    expect(stages.map((stage) => stage.prevPpRank())).toEqual([2, 0, 1])
    expect(stages.map((stage) => stage.nextPpRank())).toEqual([1, 2, 0])
    expect(stages.map((stage) => stage.ppLayers(2))).toEqual([[0], [1], []])
  })

  test('the defaults are a world of one rank', () => {
    const mapping = new Mapping()
    expect(mapping.toDict()).toEqual({
      world_size: 1,
      rank: 0,
      gpus_per_node: 8,
      cp_size: 1,
      tp_size: 1,
      pp_size: 1,
      moe_tp_size: 1,
      moe_cluster_size: 1,
      moe_ep_size: 1,
      attn_tp_size: 1,
      attn_cp_size: 1,
      auto_parallel: false,
    })
    expect(mapping.cpConfig).toEqual({})
    expect([mapping.hasTp(), mapping.hasPp(), mapping.hasCp(), mapping.isMultiNode()]).toEqual([false, false, false, false])
  })

  test('autoParallel: a world of any size, every rank alone', () => {
    const mapping = new Mapping({ worldSize: 6, autoParallel: true, rank: 4 })
    expect([mapping.tpRank, mapping.ppRank, mapping.cpRank]).toEqual([0, 0, 0])
    for (const kind of KINDS) {
      expect(groupsOf(mapping, kind)).toEqual([[0], [1], [2], [3], [4], [5]])
      expect(mapping[`${kind}Group`]).toEqual([4])
    }
    expect([mapping.prevPpRank(), mapping.nextPpRank()]).toEqual([4, 4])
    expect(mapping.toDict().auto_parallel).toBe(true)
    expect(Mapping.fromDict(mapping.toDict()).equals(mapping)).toBe(true)
  })
})

test('equals: by the values of toDict, for mappings only', () => {
  const options = { worldSize: 8, tpSize: 4, ppSize: 2, rank: 3 }
  const mapping = new Mapping({ ...options, cpConfig: { kind: 'ring' }, enableAttentionDp: true })
  expect([mapping.cpConfig, mapping.enableAttentionDp]).toEqual([{ kind: 'ring' }, true])
  expect(mapping.equals(new Mapping(options))).toBe(true)
  expect(mapping.equals(new Mapping({ ...options, rank: 4 }))).toBe(false)
  expect(mapping.equals(new Mapping({ ...options, gpusPerNode: 4 }))).toBe(false)
  expect(mapping.equals(mapping.toDict())).toBe(false)
  expect(mapping.equals(undefined)).toBe(false)
  const dict = { ...mapping.toDict(), cp_config: null, enable_attention_dp: true }
  expect(Mapping.fromDict(dict)).toMatchObject({ cpConfig: {}, enableAttentionDp: true })
})

describe('properties over random factorisations', () => {
  /** Sizes whose product is the world; experts and clusters exclude each other, experts and context too. */
  const factorisation = fc
    .record({
      ppSize: fc.integer({ min: 1, max: 5 }),
      cpSize: fc.integer({ min: 1, max: 4 }),
      moeTpSize: fc.integer({ min: 1, max: 4 }),
      inner: fc.integer({ min: 1, max: 4 }),
      experts: fc.boolean(),
      gpusPerNode: fc.integer({ min: 1, max: 16 }),
    })
    .map(({ inner, experts, ...sizes }) => {
      const cpSize = experts ? 1 : sizes.cpSize
      const tpSize = sizes.moeTpSize * inner
      const moeSizes = { moeEpSize: experts ? inner : 1, moeClusterSize: experts ? 1 : inner }
      return { ...sizes, ...moeSizes, cpSize, tpSize, worldSize: tpSize * cpSize * sizes.ppSize }
    })

  const everyRank = (sizes: MappingOptions & { worldSize: number }) =>
    Array.from({ length: sizes.worldSize }, (_, rank) => new Mapping({ ...sizes, rank }))

  test('each rank is in exactly one group of every kind, which is its own, at its own place', () => {
    fc.assert(
      fc.property(factorisation, (sizes) => {
        const world = Array.from({ length: sizes.worldSize }, (_, rank) => rank)
        for (const mapping of everyRank(sizes)) {
          // Ranks between two members of a moe tp group: a cluster or, with moeEpSize > 1, the ep group.
          const between = mapping.moeClusterSize * mapping.moeEpSize
          const kinds = {
            tp: [mapping.tpSize, mapping.tpRank],
            pp: [mapping.ppSize, mapping.ppRank],
            cp: [mapping.cpSize, mapping.cpRank],
            moeTp: [mapping.moeTpSize, mapping.moeTpRank],
            moeCluster: [between, mapping.moeClusterRank * mapping.moeEpSize + mapping.moeEpRank],
            moeEp: [mapping.moeEpSize, mapping.moeEpRank],
          } as const
          for (const kind of KINDS) {
            const groups = groupsOf(mapping, kind)
            const [size, at] = kinds[kind]
            expect(groups.flat().sort((a, b) => a - b)).toEqual(world)
            expect(groups.every((group) => group.length === size)).toBe(true)
            expect(groups.filter((group) => group.includes(mapping.rank))).toEqual([mapping[`${kind}Group`]])
            expect(mapping[`${kind}Group`][at]).toBe(mapping.rank)
          }
        }
      }),
      { numRuns: 60 },
    )
  })

  test('MoE groups lie inside one tp group', () => {
    fc.assert(
      fc.property(factorisation, (sizes) => {
        const mapping = new Mapping(sizes)
        for (const [key, groups] of Object.entries(moeGroupsInside(mapping))) expect(read(mapping, key)).toEqual(groups)
      }),
    )
  })

  test('sizes left out are found again', () => {
    fc.assert(
      fc.property(factorisation, ({ moeTpSize, moeEpSize, ...sizes }) => {
        const full = new Mapping({ ...sizes, moeTpSize, moeEpSize })
        expect(new Mapping({ ...sizes, moeTpSize }).equals(full)).toBe(true)
        expect(new Mapping({ ...sizes, moeEpSize, moeTpSize: -1 }).equals(full)).toBe(true)
        if (moeEpSize === 1) expect(new Mapping(sizes).equals(full)).toBe(true)
        expect([full.attnTpSize, full.attnCpSize]).toEqual([full.tpSize * full.cpSize, 1])
      }),
    )
  })

  test('toDict and fromDict are inverses, also through JSON', () => {
    fc.assert(
      fc.property(factorisation, fc.nat(), (sizes, n) => {
        const mapping = new Mapping({ ...sizes, rank: n % sizes.worldSize })
        const copy = Mapping.fromDict(JSON.parse(JSON.stringify(mapping.toDict())))
        expect(copy.equals(mapping)).toBe(true)
        expect(copy.toDict()).toEqual(mapping.toDict())
      }),
    )
  })

  test('the layers of the stages are a partition in order, none larger than another by more than one', () => {
    fc.assert(
      fc.property(factorisation, fc.nat({ max: 70 }), (sizes, layers) => {
        const mapping = new Mapping(sizes)
        const chunks = mapping.ppGroup.map((rank) => {
          mapping.rank = rank
          return mapping.ppLayers(layers)
        })
        expect(chunks.flat()).toEqual(Array.from({ length: layers }, (_, i) => i))
        const lengths = chunks.map((chunk) => chunk.length)
        expect(lengths).toEqual([...lengths].sort((a, b) => b - a))
        expect((lengths[0] as number) - (lengths.at(-1) as number)).toBeLessThanOrEqual(1)
      }),
    )
  })

  test('going to the next stage ppSize times visits the pp group and comes back', () => {
    fc.assert(
      fc.property(factorisation, fc.nat(), (sizes, n) => {
        const mapping = new Mapping({ ...sizes, rank: n % sizes.worldSize })
        const start = mapping.rank
        const visited = mapping.ppGroup.map(() => {
          const next = mapping.nextPpRank()
          const here = mapping.rank
          mapping.rank = next
          expect(mapping.prevPpRank()).toBe(here)
          return next
        })
        expect(mapping.rank).toBe(start)
        expect(visited.sort((a, b) => a - b)).toEqual(mapping.ppGroup)
      }),
    )
  })

  test('experts are disjoint over an ep group, equally many, the remainder left out', () => {
    fc.assert(
      fc.property(factorisation, fc.nat({ max: 70 }), (sizes, experts) => {
        fc.pre(sizes.cpSize === 1)
        const mapping = new Mapping(sizes)
        const parts = mapping.moeEpGroup.map((rank) => {
          mapping.rank = rank
          return mapping.epExperts(experts)
        })
        expect(parts.flat()).toEqual(Array.from({ length: experts - (experts % mapping.moeEpSize) }, (_, i) => i))
        expect(new Set(parts.map((part) => part.length)).size).toBe(1)
      }),
    )
  })
})
